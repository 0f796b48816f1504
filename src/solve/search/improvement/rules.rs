//! Which steps are allowed, and what they cost.

use super::ChangeLimits;
use super::changes::{Changes, Prices, Replacement};
use super::costs::LayerCosts;
use crate::placement::NO_EXPERT;

/// Which steps are allowed and what they cost.
pub(super) struct Rules<'r> {
    pub limits: ChangeLimits,
    /// `[slots]`, or empty.
    pub is_pinned: &'r [bool],
    /// Since the start, for the limits.
    pub since_start: &'r Changes,
    /// Since the start of the round.
    pub changes: &'r Changes,
    pub prices: &'r Prices,
    /// Ranks and experts that they may not receive.
    pub refused: &'r [(usize, u32)],
}

impl Rules<'_> {
    #[inline(always)]
    pub fn is_pinned(&self, costs: &LayerCosts, cell: usize) -> bool {
        !self.is_pinned.is_empty() && self.is_pinned[costs.slot_of(cell)]
    }

    /// Returns whether a rank has changed.
    pub fn is_changed(&self, rank: usize) -> bool {
        self.changes.of_rank(rank) > 0 || self.since_start.of_rank(rank) > 0
    }

    /// Returns whether the limits let one more slot of a rank change.
    pub fn may_receive(&self, rank: usize) -> bool {
        self.since_start.of_rank(rank) < self.limits.of_rank
    }

    /// Returns whether a rank may not receive an expert.
    pub fn refuses(&self, rank: usize, expert: u32) -> bool {
        self.refused.contains(&(rank, expert))
    }

    /// Returns how many more slots of the layer may change.
    pub fn left(&self) -> usize {
        self.limits.of_layer.saturating_sub(self.since_start.total())
    }

    /// Returns whether every slot may take another expert.
    #[inline(always)]
    pub fn all_may_change(&self) -> bool {
        self.left() > 0 && self.is_pinned.is_empty()
    }

    /// Returns whether a slot may take another expert. Beyond the limit, a slot may change again.
    #[inline(always)]
    pub fn may_change(&self, costs: &LayerCosts, cell: usize) -> bool {
        let rank = costs.rank_of(cell);
        let may_change = self.left() > 0
            || self.since_start.of_rank(rank) > 0 && self.since_start.is_received(rank, costs.experts[cell]);
        may_change && !self.is_pinned(costs, cell)
    }

    /// Returns whether steps may add a replica to an expert with `count`.
    pub fn may_grow(&self, count: u32) -> bool {
        count > 0 && (count as usize) < self.limits.max_replicas
    }

    /// Returns whether replacements of different ranks keep the limits.
    #[inline(always)]
    pub fn allow(&self, replacements: &[Replacement]) -> bool {
        let may_receive = |replacement: &Replacement| self.may_receive(replacement.rank);
        let has_room = self.refused.is_empty() && self.left() >= replacements.len();
        has_room && replacements.iter().all(may_receive) || self.allow_exactly(replacements)
    }

    fn allow_exactly(&self, replacements: &[Replacement]) -> bool {
        let mut added = 0;
        for &replacement in replacements {
            let of_rank = self.since_start.added(replacement);
            added += of_rank;
            if of_rank > 0 && self.since_start.of_rank(replacement.rank) >= self.limits.of_rank
                || self.refuses(replacement.rank, replacement.taken)
            {
                return false;
            }
        }
        added <= 0 || self.since_start.total().saturating_add(added as usize) <= self.limits.of_layer
    }

    /// Returns the price that a rank gets back for an expert.
    #[inline(always)]
    pub fn refund(&self, rank: usize, expert: u32) -> f32 {
        match !self.prices.are_zero() && self.changes.is_received(rank, expert) {
            true => self.prices.of(rank, expert) as f32,
            false => 0.0,
        }
    }

    /// Returns the price that a rank gets back for all its experts.
    #[inline(always)]
    pub fn refund_of_rank(&self, rank: usize) -> f32 {
        match self.prices.are_zero() {
            true => 0.0,
            false => self.changes.price_of_rank(self.prices, rank) as f32,
        }
    }

    /// Returns the most that a rank gets back.
    pub fn most_refunded(&self, num_ranks: usize) -> f32 {
        match self.prices.are_zero() {
            true => 0.0,
            false => (0..num_ranks).map(|rank| self.refund_of_rank(rank)).fold(0.0, f32::max),
        }
    }

    /// Returns the price of a replacement.
    #[inline(always)]
    pub fn price_of(&self, replacement: Replacement) -> f32 {
        match self.prices.are_zero() {
            true => 0.0,
            false => self.prices.added(self.changes, replacement) as f32,
        }
    }
}

/// A step.
#[derive(Debug, Clone, Copy)]
pub(super) enum FoundStep {
    Replace(Replacement),
    Exchange([Replacement; 2]),
}

impl FoundStep {
    pub fn replacements(&self) -> &[Replacement] {
        match self {
            FoundStep::Replace(replacement) => std::slice::from_ref(replacement),
            FoundStep::Exchange(replacements) => replacements,
        }
    }
}

/// The best step so far.
pub(super) struct Best {
    /// The gain per changed slot.
    pub score: f32,
    pub step: Option<FoundStep>,
}

impl Best {
    /// Takes an expert in place of another if that is allowed and better. `gain` is without prices, but with what the rank gets
    /// back.
    // No vector stays in a register over this call, and few steps come here.
    #[inline(never)]
    pub fn try_replacement(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        cell: usize,
        taken: u32,
        gain: f32,
    ) {
        let (rank, out) = (costs.rank_of(cell), costs.experts[cell]);
        let replacement = Replacement { rank, out, taken };
        // One without a replica is restored.
        let may_grow = |count: u32| count == 0 || rules.may_grow(count);
        if taken == NO_EXPERT
            || costs.holds(rank, taken)
            || !may_grow(costs.counts[taken as usize])
            || !rules.allow(&[replacement])
        {
            return;
        }
        let score = gain - costs.exponent() * (rules.refund(rank, out) + rules.price_of(replacement));
        if score > self.score {
            *self = Best { score, step: Some(FoundStep::Replace(replacement)) };
        }
    }
}
