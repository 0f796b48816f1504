//! The descent: lowers the smooth cost of [`super::smooth`] step by step.
//!
//! A step exchanges two slots of two ranks, or gives a slot another expert, and never adds a duplicate.

use super::random::Random;
use super::smooth::Smooth;
use super::state::State;
use super::steps::{BestExchange, Change, ReplicaCountChanges};
use crate::placement::NO_EXPERT;

/// The squarings of each exponent: 8, then 16. Higher ones fit the samples better, but not later loads.
const SQUARINGS: [u32; 2] = [3, 4];

/// A smaller gain, relative to the cost, is rounding.
const LEAST_GAIN: f32 = 1e-6;

/// Replica count changes of one scan.
const CHANGES_PER_SCAN: usize = 8;

/// Random changes of each perturbation.
const CHANGES_PER_PERTURBATION: usize = 4;

/// Perturbations in a row that may fail.
const FAILURES: usize = 64;

/// Sweeps that follow a perturbation.
const SWEEPS_PER_PERTURBATION: usize = 5;

/// The improvement of a placement.
pub(super) struct Descent<'a> {
    smooth: Smooth<'a>,
    /// The versions of two ranks between which no exchange helped, `[ranks][ranks]`.
    without_gain: Vec<[u32; 2]>,
    /// Exchanges evaluated so far, and at most.
    evaluated: usize,
    effort: usize,
}

impl<'a> Descent<'a> {
    pub fn new(start: &'a State, effort: usize) -> Self {
        let without_gain = vec![[0; 2]; start.num_ranks() * start.num_ranks()];
        Descent { smooth: Smooth::new(start), without_gain, evaluated: 0, effort }
    }

    /// Improves the placement until the measure reaches `target` or the effort is spent. Returns the best
    /// slots by the exact measure.
    pub fn run(mut self, target: f64) -> Vec<u32> {
        let mut best = (self.smooth.start.cost(), self.smooth.slots.clone());
        for (stage, squarings) in (1..).zip(SQUARINGS) {
            let until = self.effort / SQUARINGS.len() * stage;
            loop {
                self.smooth.rescale(squarings);
                let before = self.smooth.cost();
                self.change_replica_counts();
                self.sweep();
                self.offer(&mut best);
                if best.0 <= target {
                    return best.1;
                }
                if before - self.smooth.cost() <= LEAST_GAIN * before || self.evaluated >= until {
                    break;
                }
            }
        }
        let mut random = Random::new(0);
        self.smooth.rescale(SQUARINGS[1]);
        let mut failures = 0;
        while self.evaluated < self.effort && best.0 > target && failures < FAILURES {
            // A shape may have no steps at all.
            self.evaluated += self.smooth.slots.len();
            let (kept, before) = (self.smooth.keep(), self.smooth.cost());
            self.perturb(&mut random);
            for _ in 0..SWEEPS_PER_PERTURBATION {
                let before = self.smooth.cost();
                self.sweep();
                self.change_replica_counts();
                if before - self.smooth.cost() <= LEAST_GAIN * before {
                    break;
                }
            }
            failures = if self.smooth.cost() < before { 0 } else { failures + 1 };
            if self.smooth.cost() > before {
                self.smooth.restore(kept);
            } else {
                self.offer(&mut best);
            }
        }
        best.1
    }

    fn offer(&self, best: &mut (f64, Vec<u32>)) {
        let cost = self.smooth.exact_cost();
        if cost < best.0 {
            (best.0, best.1) = (cost, self.smooth.slots.clone());
        }
    }

    /// Exchanges slots between each two ranks: the best exchange of each, hot ranks first.
    fn sweep(&mut self) {
        let num_ranks = self.smooth.costs.len();
        let least_gain = LEAST_GAIN * self.smooth.cost();
        let mut order: Vec<usize> = (0..num_ranks).collect();
        order.sort_by(|&a, &b| self.smooth.costs[b].total_cmp(&self.smooth.costs[a]).then(a.cmp(&b)));
        for (place, &hot) in order.iter().enumerate() {
            for &cold in order[place + 1..].iter().rev() {
                if self.evaluated >= self.effort {
                    return;
                }
                let (low, high) = (hot.min(cold), hot.max(cold));
                let versions = [self.smooth.versions[low], self.smooth.versions[high]];
                if self.without_gain[low * num_ranks + high] == versions {
                    continue;
                }
                match self.best_exchange(hot, cold, least_gain) {
                    None => self.without_gain[low * num_ranks + high] = versions,
                    Some((slot, other)) => {
                        self.smooth.swap(slot, other);
                    }
                }
            }
        }
    }

    /// Returns the exchange between two ranks that lowers the cost most.
    fn best_exchange(&mut self, one: usize, other: usize, least_gain: f32) -> Option<(usize, usize)> {
        let costs = &self.smooth.costs;
        let found = self.smooth.run(BestExchange {
            smooth: &self.smooth,
            ranks: [one, other],
            base: costs[one] + costs[other],
            least_gain,
            left: self.effort - self.evaluated,
        });
        self.evaluated += found.evaluated;
        found.slots
    }

    /// Gives slots other experts, the best changes of one scan.
    fn change_replica_counts(&mut self) {
        let least_gain = LEAST_GAIN * self.smooth.cost();
        let left = self.effort.saturating_sub(self.evaluated);
        let (mut changes, evaluated) =
            self.smooth.run(ReplicaCountChanges { smooth: &self.smooth, least_gain, left });
        self.evaluated += evaluated;
        changes.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.slot.cmp(&b.slot)));
        let mut changed: Vec<u32> = Vec::new();
        for Change { slot, to, .. } in changes {
            let (from, rank) = (self.smooth.slots[slot], self.smooth.start.rank_of(slot));
            // A change of an expert changes the gains of its others.
            if changed.contains(&from) || changed.contains(&to) || self.smooth.holds(rank, to) {
                continue;
            }
            let before = self.smooth.cost();
            self.smooth.set_expert(slot, to);
            if before - self.smooth.cost() <= least_gain {
                self.smooth.set_expert(slot, from);
                continue;
            }
            changed.extend([from, to]);
            if changed.len() == 2 * CHANGES_PER_SCAN {
                break;
            }
        }
    }

    fn perturb(&mut self, random: &mut Random) {
        for _ in 0..CHANGES_PER_PERTURBATION {
            let (slot, other) =
                (random.below(self.smooth.slots.len()), random.below(self.smooth.slots.len()));
            let (rank, other_rank) = (self.smooth.start.rank_of(slot), self.smooth.start.rank_of(other));
            let (expert, other_expert) = (self.smooth.slots[slot], self.smooth.slots[other]);
            if expert == NO_EXPERT
                || other_expert == NO_EXPERT
                || expert == other_expert
                || self.smooth.holds(rank, other_expert)
                || !self.smooth.may_give(slot)
            {
                continue;
            }
            if random.below(2) == 0 && self.smooth.counts[expert as usize] > 1 {
                self.smooth.set_expert(slot, other_expert);
            } else if rank != other_rank
                && !self.smooth.holds(other_rank, expert)
                && self.smooth.may_give(other)
            {
                self.smooth.swap(slot, other);
            }
        }
    }
}
