//! The best expert for a slot.

use super::changes::Replacement;
use super::costs::LayerCosts;
use super::rules::{Best, FoundStep, Rules};
use crate::placement::NO_EXPERT;
use crate::solve::search::lanes::{LANES, Lanes, Vector};

/// Experts that may get one more replica.
///
/// A replacement has three parts: what the other replicas of the slot's expert take over, what those of the new
/// expert give up, and the slot's rank. Only the last depends on both, and gains at most what the removal of the
/// slot's expert gains. Where another rank holds both experts, the sum is less than the gain.
#[derive(Default)]
pub(super) struct Wanted {
    experts: Vec<u32>,
    gained: Vec<f32>,
    /// The loads of the new replicas, `[samples][cells]`.
    loads: Vec<f32>,
    /// The most that each vector of them gains.
    most_of_blocks: Vec<f32>,
}

impl Wanted {
    /// Finds the best expert for a slot: for all slots an expert of a hot rank, and for slots of hot ranks any.
    #[inline(always)]
    pub fn find<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        hot: &[usize],
        best: &mut Best,
    ) {
        if hot.len() < costs.num_ranks {
            let exponent = (1 << SQUARINGS) as f32;
            let mut most_given = most_of(&costs.most_given);
            if !rules.prices.are_zero() {
                for (rank, &given) in costs.most_given.iter().enumerate() {
                    let given = given + exponent * rules.refund_of_rank(rank);
                    most_given = if given > most_given { given } else { most_given };
                }
            }
            self.clear();
            for cell in hot.iter().flat_map(|&rank| costs.cells_of(rank)) {
                let expert = costs.experts[cell];
                if costs.gained[cell] + most_given > best.score
                    && expert != NO_EXPERT
                    && rules.may_grow(costs.counts[expert as usize])
                {
                    self.push(costs, expert, costs.gained[cell]);
                }
            }
            if !self.experts.is_empty() {
                self.try_slots::<V, SQUARINGS>(costs, rules, best);
            }
        }
        let most_gained = most_of(&costs.most_gained);
        let all = Candidates {
            experts: &costs.experts,
            gained: &costs.gained,
            most_of_blocks: &costs.most_gained,
            loads: &costs.more_loads,
        };
        for &rank in hot {
            all.try_rank::<V, SQUARINGS>(costs, rules, rank, most_gained, best);
        }
    }

    pub fn clear(&mut self) {
        self.experts.clear();
    }

    /// Adds an expert, which gains so much. One without a replica has no rank that would gain.
    #[inline(always)]
    pub fn push(&mut self, costs: &LayerCosts, expert: u32, gained: f32) {
        let (lane, num_cells) = (self.experts.len(), costs.experts.len());
        if lane == 0 {
            self.gained.resize(num_cells, 0.0);
            self.loads.resize(num_cells * costs.num_samples, 0.0);
        }
        if lane.is_multiple_of(LANES) {
            self.gained[lane..lane + LANES].copy_from_slice(&[f32::NEG_INFINITY; LANES]);
        }
        self.experts.push(expert);
        self.gained[lane] = gained;
        let part = 1.0 / (costs.counts[expert as usize] + 1) as f32;
        for sample in 0..costs.num_samples {
            let load = costs.loads[sample * costs.expert_lanes + expert as usize];
            self.loads[sample * num_cells + lane] = load * part;
        }
    }

    /// Tries the experts in all slots.
    #[inline(always)]
    pub fn try_slots<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        best: &mut Best,
    ) {
        let lanes = self.experts.len().next_multiple_of(LANES);
        let gained = &self.gained[..lanes];
        self.most_of_blocks.clear();
        self.most_of_blocks.extend(gained.as_chunks().0.iter().map(|gained| V::load(&Lanes(*gained)).most()));
        let most_gained = most_of(&self.most_of_blocks);
        let candidates = Candidates {
            experts: &self.experts,
            gained,
            most_of_blocks: &self.most_of_blocks,
            loads: &self.loads,
        };
        let are_free = rules.prices.are_zero();
        for (rank, &given) in costs.most_given.iter().enumerate() {
            if most_gained + given > best.score || !are_free {
                candidates.try_rank::<V, SQUARINGS>(costs, rules, rank, most_gained, best);
            }
        }
    }
}

fn most_of(numbers: &[f32]) -> f32 {
    numbers.iter().fold(f32::NEG_INFINITY, |most, &number| if number > most { number } else { most })
}

/// Experts for a slot.
struct Candidates<'w> {
    /// Of the first ones of whole vectors. Some are empty.
    experts: &'w [u32],
    gained: &'w [f32],
    most_of_blocks: &'w [f32],
    /// `[samples][cells]`
    loads: &'w [f32],
}

impl Candidates<'_> {
    #[inline(always)]
    fn try_rank<V: Vector, const SQUARINGS: usize>(
        &self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        rank: usize,
        most_gained: f32,
        best: &mut Best,
    ) {
        let refund = (1 << SQUARINGS) as f32 * rules.refund_of_rank(rank);
        if most_gained + costs.most_given[rank] + refund <= best.score || !rules.may_change(rank) {
            return;
        }
        let is_full = rules.left() == 0;
        let blocks = costs.row / LANES;
        for (block, &givers) in costs.givers[rank * blocks..][..blocks].iter().enumerate() {
            let mut givers = givers;
            while givers != 0 {
                let cell = (rank * blocks + block) * LANES + givers.trailing_zeros() as usize;
                givers &= givers - 1;
                // Beyond the limit, a slot may change again.
                if most_gained + costs.given[cell] + refund > best.score
                    && !rules.is_pinned(costs, cell)
                    && (!is_full || rules.since_start.is_received(rank, costs.experts[cell]))
                {
                    self.try_cell::<V, SQUARINGS>(costs, rules, rank, cell, best);
                }
            }
        }
    }

    #[inline(always)]
    fn try_cell<V: Vector, const SQUARINGS: usize>(
        &self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        rank: usize,
        cell: usize,
        best: &mut Best,
    ) {
        let exponent = (1 << SQUARINGS) as f32;
        let (num_cells, out) = (costs.experts.len(), costs.experts[cell]);
        let refund = exponent * rules.refund(rank, out);
        let base = V::splat(costs.costs[rank] - costs.others_lose[cell] + refund);
        let most_given = costs.given[cell] + refund;
        for (block, gained) in self.gained.as_chunks().0.iter().enumerate() {
            if self.most_of_blocks[block] + most_given <= best.score {
                continue;
            }
            let mut cost = V::zero();
            for (sample, loads) in self.loads.chunks_exact(num_cells).enumerate() {
                let without = costs.rank_loads[sample * costs.rank_lanes + rank]
                    - costs.replica_loads[sample * num_cells + cell];
                let added = V::of(&loads[block * LANES..][..LANES]);
                cost = cost.add(V::splat(without).add(added).power::<SQUARINGS>());
            }
            let gains = V::load(&Lanes(*gained)).add(base.sub(cost));
            if gains.most() <= best.score {
                continue;
            }
            let mut lanes = Lanes::ZERO;
            gains.store(&mut lanes);
            for (lane, &gain) in lanes.0.iter().enumerate() {
                if gain <= best.score {
                    continue;
                }
                let taken = self.experts[block * LANES + lane];
                let replacement = Replacement { rank, out, taken };
                // One without a replica is restored.
                let may_grow = |count: u32| count == 0 || rules.may_grow(count);
                if taken == NO_EXPERT
                    || costs.holds(rank, taken)
                    || !may_grow(costs.counts[taken as usize])
                    || !rules.allow(&[replacement])
                {
                    continue;
                }
                let score = gain - refund - exponent * rules.price_of(replacement);
                if score > best.score {
                    *best = Best { score, step: Some(FoundStep::Replace(replacement)) };
                }
            }
        }
    }
}
