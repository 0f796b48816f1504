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
    most_of_vectors: Vec<f32>,
    slopes: Slopes,
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
            let most_given = most_of::<V>(&costs.most_given) + (1 << SQUARINGS) as f32 * most_refunded;
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
        if !self.experts.is_empty() {
            self.try_slots::<V, SQUARINGS>(costs, rules, best);
        }
        let most_gained = most_of::<V>(&costs.most_gained);
        for &rank in hot {
            self.slopes.rank = None;
            let mut all = Candidates {
                slopes: &mut self.slopes,
                costs,
                rules,
                experts: &costs.experts,
                gained: &costs.gained,
                most_of_vectors: &costs.most_gained,
                most_gained,
                loads: &costs.more_loads,
                best,
            };
            for vector in rank * costs.row / LANES..(rank + 1) * costs.row / LANES {
                all.try_vector::<V, SQUARINGS>(vector);
            }
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

    /// Tries the experts in all slots.
    #[inline(always)]
    fn try_slots<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        best: &mut Best,
    ) {
        let gained = &self.gained[..self.experts.len().next_multiple_of(LANES)];
        self.most_of_vectors.clear();
        self.most_of_vectors
            .extend(gained.as_chunks().0.iter().map(|gained| V::load(&Lanes(*gained)).most()));
        let most_gained = self.most_of_vectors.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.slopes.rank = None;
        let mut wanted = Candidates {
            slopes: &mut self.slopes,
            costs,
            rules,
            experts: &self.experts,
            gained,
            most_of_vectors: &self.most_of_vectors,
            most_gained,
            loads: &self.loads,
            best,
        };
        wanted.try_all::<V, SQUARINGS>();
    }
}

/// Returns the largest number of whole vectors.
#[inline(always)]
pub(super) fn most_of<V: Vector>(numbers: &[f32]) -> f32 {
    let (first, others) = numbers.split_at(LANES);
    others.chunks_exact(LANES).fold(V::of(first), |most, block| most.max(V::of(block))).most()
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
    most_of_vectors: &'c [f32],
    most_gained: f32,
    /// `[samples][cells]`
    loads: &'c [f32],
    slopes: &'c mut Slopes,
    best: &'c mut Best,
}

impl Candidates<'_> {
    /// Tries the slots of all ranks.
    #[inline(always)]
    fn try_all<V: Vector, const SQUARINGS: usize>(&mut self) {
        let (costs, rules) = (self.costs, self.rules);
        let refund = (1 << SQUARINGS) as f32 * rules.most_refunded(costs.num_ranks);
        for (block, most_given) in costs.most_given.as_chunks().0.iter().enumerate() {
            let most = V::load(&Lanes(*most_given)).add(V::splat(self.most_gained + refund));
            let mut above = most.above(self.best.score);
            while above != 0 {
                self.try_vector::<V, SQUARINGS>(block * LANES + above.trailing_zeros() as usize);
                above &= above - 1;
            }
        }
    }

    /// Tries a vector of slots.
    #[inline(always)]
    fn try_vector<V: Vector, const SQUARINGS: usize>(&mut self, vector: usize) {
        let (costs, rules, first) = (self.costs, self.rules, vector * LANES);
        let refund = (1 << SQUARINGS) as f32 * rules.refund_of_rank(costs.rank_of(first));
        let most = self.most_gained + refund;
        let mut above = V::of(&costs.given[first..][..LANES]).add(V::splat(most)).above(self.best.score);
        let all_may_change = rules.left() > 0 && rules.is_pinned.is_empty();
        while above != 0 {
            let cell = first + above.trailing_zeros() as usize;
            above &= above - 1;
            // The score rises meanwhile.
            if costs.given[cell] + most > self.best.score && (all_may_change || self.may_change(cell)) {
                self.try_cell::<V, SQUARINGS>(cell);
            }
        }
    }

    /// Returns whether a slot may take another expert. Beyond the limit, a slot may change again.
    #[inline(never)]
    fn may_change(&self, cell: usize) -> bool {
        let Candidates { costs, rules, .. } = self;
        let (rank, expert) = (costs.rank_of(cell), costs.experts[cell]);
        let may_change = rules.left() > 0
            || rules.since_start.of_rank(rank) > 0 && rules.since_start.is_received(rank, expert);
        may_change && !rules.is_pinned(costs, cell)
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
    fn try_cell<V: Vector, const SQUARINGS: usize>(&mut self, cell: usize) {
        let (costs, rules) = (self.costs, self.rules);
        let (rank, num_cells) = (costs.rank_of(cell), costs.experts.len());
        // With one sample, bounds take as long as what they save.
        let has_slopes = costs.num_samples > 1;
        if has_slopes && self.slopes.rank != Some(rank) {
            self.bound_rank::<V, SQUARINGS>(rank);
        }
        let Candidates { gained, most_of_vectors, loads, .. } = *self;
        let refund = (1 << SQUARINGS) as f32 * rules.refund(rank, costs.experts[cell]);
        let base = V::splat(costs.costs[rank] - costs.others_lose[cell] + refund);
        let most_given = costs.given[cell] + refund;
        let mut most_by_slopes = refund - costs.others_lose[cell];
        if has_slopes {
            for (sample, slope) in self.slopes.slopes.iter().enumerate() {
                most_by_slopes += slope * costs.replica_loads[sample * num_cells + cell];
            }
        }
        for (vector, &most_gained) in most_of_vectors.iter().enumerate() {
            if most_gained + most_given <= self.best.score
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
            let gains = V::of(&gained[vector * LANES..][..LANES]).add(base.sub(cost));
            let above = gains.above(self.best.score);
            if above != 0 {
                let mut lanes = Lanes::ZERO;
                gains.store(&mut lanes);
                self.try_experts(rank, cell, &self.experts[vector * LANES..], &lanes, above);
            }
        }
    }

    /// Tries the experts that have a bit in `above`: those that gain more than the best score.
    ///
    /// No vector stays in a register over this call, and few steps come here.
    #[inline(never)]
    fn try_experts(&mut self, rank: usize, cell: usize, experts: &[u32], gains: &Lanes, mut above: u16) {
        let (costs, rules) = (self.costs, self.rules);
        let (exponent, out) = (costs.exponent(), costs.experts[cell]);
        // The best ones first: the others rarely beat them.
        while let Some((lane, gain)) = largest_of(gains, above) {
            above &= !(1 << lane);
            if gain <= self.best.score {
                break;
            }
            let replacement = Replacement { rank, out, taken: experts[lane] };
            // One without a replica is restored.
            let may_grow = |count: u32| count == 0 || rules.may_grow(count);
            if replacement.taken == NO_EXPERT
                || costs.holds(rank, replacement.taken)
                || !may_grow(costs.counts[replacement.taken as usize])
                || !rules.allow(&[replacement])
            {
                continue;
            }
            let score = gain - exponent * (rules.refund(rank, out) + rules.price_of(replacement));
            if score > self.best.score {
                *self.best = Best { score, step: Some(FoundStep::Replace(replacement)) };
            }
        }
    }
}
