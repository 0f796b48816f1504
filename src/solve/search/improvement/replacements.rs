//! The best expert for a slot.

use super::costs::LayerCosts;
use super::matrix::{Added, Matrix};
use super::rules::{Best, Rules};
use crate::placement::NO_EXPERT;
use crate::solve::search::lanes::{LANES, Lanes, Vector, most_of};

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
    slopes: Slopes,
    matrix: Matrix,
}

/// Bounds what experts gain on one rank.
///
/// The cost is convex. So an expert in place of another adds at least what the slopes of the rank's costs say.
#[derive(Default)]
struct Slopes {
    rank: Option<usize>,
    /// `[samples]`
    slopes: Vec<f32>,
    /// The most of each vector of experts, less what it adds at least.
    most_of_vectors: Vec<f32>,
}

impl Wanted {
    /// Finds the best expert for a slot: for all slots an expert of a hot rank, and for slots of hot ranks any. Where an
    /// expert is to be restored, finds its best slot.
    #[inline(always)]
    pub fn find<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        restored: Option<u32>,
        hot: &[usize],
        best: &mut Best,
    ) {
        self.experts.clear();
        if let Some(expert) = restored {
            // No rank would gain.
            let load = |sample: usize| costs.loads[sample * costs.expert_lanes + expert as usize];
            self.push(costs, expert, 0.0, load);
        } else if hot.len() < costs.num_ranks {
            let most_refunded = rules.most_refunded(costs.num_ranks);
            let most_given = most_of::<V>(&costs.givers.given) + (1 << SQUARINGS) as f32 * most_refunded;
            for cell in hot.iter().flat_map(|&rank| costs.cells_of(rank)) {
                let expert = costs.experts[cell];
                if costs.gained[cell] + most_given > best.score
                    && expert != NO_EXPERT
                    && rules.may_grow(costs.counts[expert as usize])
                {
                    let load = |sample: usize| costs.more_loads[sample * costs.experts.len() + cell];
                    self.push(costs, expert, costs.gained[cell], load);
                }
            }
        }
        let givers = &costs.givers;
        let gained = &self.gained[..self.experts.len().next_multiple_of(LANES)];
        let is_one_sample = costs.num_samples == 1;
        if is_one_sample && !self.experts.is_empty() {
            let holder = if let (None, &[rank]) = (restored, hot) { Some(rank) } else { None };
            let most_gained = most_of::<V>(gained);
            let added = Added { experts: &self.experts, gained, most_gained, loads: &self.loads };
            self.matrix.find::<V, SQUARINGS>(costs, rules, &added, holder, best);
        }
        // In all slots, otherwise those experts. Then all experts in the slots of each hot rank. One loop has the code once.
        let all_slots = (!is_one_sample && !self.experts.is_empty()).then_some(None);
        for hot in all_slots.into_iter().chain(hot.iter().map(Some)) {
            self.slopes.rank = None;
            let (experts, gained, loads, lanes) = match hot {
                None => (&*self.experts, gained, &*self.loads, 0..givers.cells.len()),
                Some(&rank) => {
                    let lanes = givers.lanes_of(costs.cells_of(rank));
                    (&*costs.experts, &*costs.gained, &*costs.more_loads, lanes)
                }
            };
            let (most_gained, slopes) = (most_of::<V>(gained), &mut self.slopes);
            let mut candidates =
                Candidates { costs, rules, experts, gained, most_gained, loads, slopes, best: &mut *best };
            candidates.try_lanes::<V, SQUARINGS>(lanes);
        }
    }

    /// Adds an expert, which gains so much. `load` returns what a new replica takes of a sample.
    #[inline(always)]
    fn push(&mut self, costs: &LayerCosts, expert: u32, gained: f32, load: impl Fn(usize) -> f32) {
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
        for sample in 0..costs.num_samples {
            self.loads[sample * num_cells + lane] = load(sample);
        }
    }
}

/// Returns the first lane with the largest number, of those with a bit.
#[inline(always)]
fn largest_of(numbers: &Lanes, mut lanes: u16) -> Option<(usize, f32)> {
    let mut largest = None;
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        if largest.is_none_or(|(_, most)| numbers.0[lane] > most) {
            largest = Some((lane, numbers.0[lane]));
        }
    }
    largest
}

/// Experts for the slots of ranks.
struct Candidates<'c> {
    costs: &'c LayerCosts,
    rules: &'c Rules<'c>,
    /// Of the first ones of whole vectors. Some are empty.
    experts: &'c [u32],
    gained: &'c [f32],
    most_gained: f32,
    /// `[samples][cells]`
    loads: &'c [f32],
    slopes: &'c mut Slopes,
    best: &'c mut Best,
}

impl Candidates<'_> {
    /// Tries some of the slots that may give what they hold.
    #[inline(always)]
    fn try_lanes<V: Vector, const SQUARINGS: usize>(&mut self, lanes: std::ops::Range<usize>) {
        let (costs, rules) = (self.costs, self.rules);
        let all_may_change = rules.all_may_change();
        for lane in lanes {
            let cell = costs.givers.cells[lane] as usize;
            let refund = (1 << SQUARINGS) as f32 * rules.refund(costs.rank_of(cell), costs.experts[cell]);
            let most_given = costs.givers.given[lane] + refund;
            if self.most_gained + most_given > self.best.score
                && (all_may_change || rules.may_change(costs, cell))
            {
                self.try_slot::<V, SQUARINGS>(lane, refund);
            }
        }
    }

    /// Prepares the bounds of a rank.
    #[inline(always)]
    fn bound_rank<V: Vector, const SQUARINGS: usize>(&mut self, rank: usize) {
        let Candidates { costs, gained, loads, slopes, .. } = self;
        let num_cells = costs.experts.len();
        slopes.rank = Some(rank);
        slopes.slopes.clear();
        slopes.slopes.extend((0..costs.num_samples).map(|sample| {
            let load = costs.rank_loads[sample * costs.rank_lanes + rank];
            let power = (0..SQUARINGS).fold(load, |power, _| power * power);
            let slope = if load > 0.0 { power / load * costs.exponent() } else { 0.0 };
            // Above 0, since empty cells have infinite loads.
            slope.max(f32::MIN_POSITIVE)
        }));
        slopes.most_of_vectors.clear();
        for (vector, gained) in gained.as_chunks::<LANES>().0.iter().enumerate() {
            let mut most = V::load(&Lanes(*gained));
            for (sample, &slope) in slopes.slopes.iter().enumerate() {
                let added = V::of(&loads[sample * num_cells + vector * LANES..][..LANES]);
                most = most.sub(added.mul(V::splat(slope)));
            }
            slopes.most_of_vectors.push(most.most());
        }
    }

    #[inline(always)]
    fn try_slot<V: Vector, const SQUARINGS: usize>(&mut self, lane: usize, refund: f32) {
        let (costs, num_cells) = (self.costs, self.costs.experts.len());
        let cell = costs.givers.cells[lane] as usize;
        let (rank, others_lose) = (costs.rank_of(cell), costs.givers.others_lose[lane]);
        // With one sample, bounds take as long as what they save.
        let has_slopes = costs.num_samples > 1;
        if has_slopes && self.slopes.rank != Some(rank) {
            self.bound_rank::<V, SQUARINGS>(rank);
        }
        let Candidates { gained, loads, .. } = *self;
        let base = V::splat(costs.costs[rank] - others_lose + refund);
        let most_given = V::splat(costs.givers.given[lane] + refund);
        let mut most_by_slopes = refund - others_lose;
        if has_slopes {
            for (sample, slope) in self.slopes.slopes.iter().enumerate() {
                most_by_slopes += slope * costs.replica_loads[sample * num_cells + cell];
            }
        }
        if costs.num_samples == 1 {
            // Most slots end here, without a branch for each vector.
            let without = V::splat(costs.givers.without[lane]);
            let mut most = V::splat(f32::NEG_INFINITY);
            for (gained, added) in gained.as_chunks().0.iter().zip(loads.as_chunks().0) {
                let cost = without.add(V::load(&Lanes(*added))).power::<SQUARINGS>();
                most = most.max(V::load(&Lanes(*gained)).add(base.sub(cost)));
            }
            if most.above(self.best.score) == 0 {
                return;
            }
        }
        for (vector, gained) in gained.as_chunks().0.iter().enumerate() {
            let gained = V::load(&Lanes(*gained));
            if gained.add(most_given).above(self.best.score) == 0
                || has_slopes && self.slopes.most_of_vectors[vector] + most_by_slopes <= self.best.score
            {
                continue;
            }
            let mut cost = V::zero();
            for sample in 0..costs.num_samples {
                let without = costs.rank_loads[sample * costs.rank_lanes + rank]
                    - costs.replica_loads[sample * num_cells + cell];
                let added = V::of(&loads[sample * num_cells + vector * LANES..][..LANES]);
                cost = cost.add(V::splat(without).add(added).power::<SQUARINGS>());
            }
            let gains = gained.add(base.sub(cost));
            let above = gains.above(self.best.score);
            if above != 0 {
                let mut lanes = Lanes::ZERO;
                gains.store(&mut lanes);
                self.try_experts(cell, &self.experts[vector * LANES..], &lanes, above);
            }
        }
    }

    /// Tries the experts that have a bit in `above`: those that gain more than the best score.
    ///
    /// No vector stays in a register over this call, and few steps come here.
    #[inline(never)]
    fn try_experts(&mut self, cell: usize, experts: &[u32], gains: &Lanes, mut above: u16) {
        // The best ones first: the others rarely beat them.
        while let Some((lane, gain)) = largest_of(gains, above) {
            above &= !(1 << lane);
            if gain <= self.best.score {
                break;
            }
            self.best.try_replacement(self.costs, self.rules, cell, experts[lane], gain);
        }
    }
}
