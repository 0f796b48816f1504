//! Experts in all slots at once.

use super::costs::LayerCosts;
use super::rules::{Best, Rules};
use crate::solve::search::lanes::{LANES, Lanes, Vector, most_of};

/// How many experts are tried at once.
const CHUNK: usize = 16;

/// Experts for slots.
pub(super) struct Added<'a> {
    pub experts: &'a [u32],
    /// In whole vectors.
    pub gained: &'a [f32],
    pub most_gained: f32,
    pub loads: &'a [f32],
}

/// What experts gain in the slots that may give what they hold, of a layer with one sample.
#[derive(Default)]
pub(super) struct Matrix {
    /// The cost of each slot's rank and what it gets back, less what the other replicas take over. Where the slot may not change,
    /// it is below all gains. In whole vectors.
    costs: Vec<f32>,
    /// `[experts][slots]`, of one chunk, in whole vectors.
    gains: Vec<f32>,
}

impl Matrix {
    /// Finds the best slot for one of the experts. None goes to `holder`, a rank that holds all of them.
    #[inline(always)]
    pub fn find<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        added: &Added<'_>,
        holder: Option<usize>,
        best: &mut Best,
    ) {
        let most_refunded = (1 << SQUARINGS) as f32 * rules.most_refunded(costs.num_ranks);
        let most_given = most_of::<V>(&costs.givers.given) + most_refunded;
        if added.most_gained + most_given <= best.score {
            return;
        }
        self.set_slots::<SQUARINGS>(costs, rules, holder);
        let num_lanes = self.costs.len();
        self.gains.resize(CHUNK * num_lanes, 0.0);
        // The best score rises with each chunk.
        let numbers = added.gained.chunks(CHUNK).zip(added.loads.chunks(CHUNK));
        for (experts, (gained, loads)) in added.experts.chunks(CHUNK).zip(numbers) {
            let rows =
                self.gains.chunks_exact_mut(num_lanes).zip(gained.iter().zip(loads)).take(experts.len());
            let mut most = V::splat(f32::NEG_INFINITY);
            for (row, (&gained, &load)) in rows {
                if gained + most_given <= best.score {
                    row.fill(f32::NEG_INFINITY);
                    continue;
                }
                let (gained, load) = (V::splat(gained), V::splat(load));
                let slots = costs.givers.without.as_chunks().0.iter().zip(self.costs.as_chunks().0);
                for ((without, costs), gains) in slots.zip(row.as_chunks_mut().0) {
                    let cost = V::load(&Lanes(*without)).add(load).power::<SQUARINGS>();
                    let of_slots = gained.add(V::load(&Lanes(*costs)).sub(cost));
                    most = most.max(of_slots);
                    let mut lanes = Lanes::ZERO;
                    of_slots.store(&mut lanes);
                    *gains = lanes.0;
                }
            }
            self.take_best::<V>(costs, rules, experts, most.most(), best);
        }
    }

    /// Takes the best allowed gain. `most` is the largest.
    #[inline(always)]
    fn take_best<V: Vector>(
        &self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        experts: &[u32],
        most: f32,
        best: &mut Best,
    ) {
        let num_lanes = self.costs.len();
        let gains = &self.gains[..experts.len() * num_lanes];
        // The best one first: the others rarely beat it.
        for bound in [most.next_down(), f32::NEG_INFINITY] {
            if best.score >= most {
                break;
            }
            for (block, gains) in gains.as_chunks::<LANES>().0.iter().enumerate() {
                let mut above = V::load(&Lanes(*gains)).above(bound.max(best.score));
                while above != 0 {
                    let place = block * LANES + above.trailing_zeros() as usize;
                    above &= above - 1;
                    let (expert, slot) = (experts[place / num_lanes], place % num_lanes);
                    let cell = costs.givers.cells[slot] as usize;
                    best.try_replacement(costs, rules, cell, expert, self.gains[place]);
                }
            }
        }
    }

    /// Takes the slots.
    #[inline(always)]
    fn set_slots<const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        holder: Option<usize>,
    ) {
        let givers = &costs.givers;
        self.costs.clone_from(&givers.left);
        if !rules.all_may_change() || !rules.prices.are_zero() {
            for (&cell, of_slot) in givers.cells.iter().zip(&mut self.costs) {
                let (cell, rank) = (cell as usize, costs.rank_of(cell as usize));
                let refund = (1 << SQUARINGS) as f32 * rules.refund(rank, costs.experts[cell]);
                *of_slot = if rules.may_change(costs, cell) { *of_slot + refund } else { f32::NEG_INFINITY };
            }
        }
        if let Some(holder) = holder {
            self.costs[givers.lanes_of(costs.cells_of(holder))].fill(f32::NEG_INFINITY);
        }
    }
}
