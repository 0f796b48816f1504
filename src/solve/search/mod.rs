//! The search: replica counts and ranks chosen together.
//!
//! A first placement without duplicates is improved by exchanging slots of the most loaded rank, one or two at once, with
//! those of a less loaded one. Where no exchange helps, a slot changes its expert, and exchanges level what that upset; it
//! is kept if the most loaded rank carries less in the end. This goes on until the certificate says that no placement can be
//! better by more than one or two ten-thousandths, or the effort is spent. Effort counts what was looked at, not time, so that results
//! repeat.

mod moves;
mod start;
mod state;

use self::moves::{Riddance, exchange, exchange_for_all, exchange_of_two, recounts, riddance};
use self::state::State;
use super::lower_bound;
use crate::placement::Shape;

/// Better by less than this is not worth looking for.
const TOLERANCE: f64 = 1.5e-4;

/// Less than this is no improvement worth its while.
const LEAST_GAIN: f64 = 1e-10;

/// What sums in another order may differ by.
const ROUNDING: f64 = 1e-13;

/// Changes of an expert that are tried out, the cheapest first.
const RECOUNTS: usize = 6;

/// Slots that change their expert before the outcome has to be better.
const RECOUNT_DEPTH: usize = 2;

/// Smaller placements are searched as hard as one of so many slots.
const LEAST_SLOTS: usize = 256;

/// A layer's loads, and how hard to look.
pub(super) struct Search<'a> {
    pub shape: Shape,
    /// One row of experts a sample; samples without load are left out by their weight.
    pub samples: &'a [&'a [f64]],
    /// What each sample counts for.
    pub weights: &'a [f64],
    /// Exchanges that are looked at for each slot, about.
    pub effort: usize,
}

impl Search<'_> {
    /// The expert of each slot. The `others` are placements to start from where the search's own does not end below them.
    pub fn place(&self, others: &[Vec<u32>]) -> Vec<u32> {
        let units = self.units();
        let loads = self.scaled(&units);
        let bounds =
            self.samples.iter().zip(&units).map(|(loads, unit)| unit.scale(lower_bound(loads, self.shape)));
        let enough = bounds.sum::<f64>() * (1.0 + TOLERANCE);
        let costs: Vec<f64> = others.iter().map(|slots| self.cost(&loads, slots)).collect();
        let to_beat = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let mut best = self.start(&loads);
        self.improve(&mut best, enough.min(to_beat));
        for (slots, cost) in others.iter().zip(costs) {
            if cost < best.cost() * (1.0 - ROUNDING) {
                best = self.state(loads.clone(), slots);
                self.improve(&mut best, enough);
            }
        }
        best.slots().to_vec()
    }

    fn units(&self) -> Vec<Unit> {
        let unit = |(loads, &weight): (&&[f64], &f64)| {
            let mean = loads.iter().sum::<f64>() / self.shape.num_ranks() as f64;
            Unit { mean, weight: if mean > 0.0 { weight } else { 0.0 } }
        };
        self.samples.iter().zip(self.weights).map(unit).collect()
    }

    /// `[experts][samples]`
    fn scaled(&self, units: &[Unit]) -> Vec<f64> {
        let of_expert = |expert: usize| {
            self.samples.iter().zip(units).map(move |(loads, unit)| unit.scale(loads[expert]))
        };
        (0..self.shape.num_experts()).flat_map(of_expert).collect()
    }

    fn start(&self, loads: &[f64]) -> State {
        let num_samples = self.samples.len();
        let sums: Vec<f64> = loads.chunks_exact(num_samples).map(|samples| samples.iter().sum()).collect();
        let counts = start::counts(&sums, self.shape);
        let weights: Vec<f64> =
            sums.iter().zip(&counts).map(|(sum, &count)| sum / f64::from(count)).collect();
        let mut state = State::new(loads.to_vec(), counts, self.shape.num_slots(), self.shape.num_ranks());
        start::pack(&mut state, &weights);
        state.settle();
        state
    }

    /// As [`State::cost`].
    fn cost(&self, loads: &[f64], slot_experts: &[u32]) -> f64 {
        let counts = self.counts(slot_experts);
        let num_samples = self.samples.len();
        let of_rank = |sample: usize, rank: &[u32]| -> f64 {
            let weight = |&expert: &u32| {
                loads[expert as usize * num_samples + sample] / f64::from(counts[expert as usize])
            };
            rank.iter().map(weight).sum()
        };
        let ranks = || slot_experts.chunks_exact(self.shape.slots_per_rank());
        let most = |sample| ranks().map(|rank| of_rank(sample, rank)).fold(0.0, f64::max);
        (0..num_samples).map(most).sum()
    }

    fn counts(&self, slot_experts: &[u32]) -> Vec<u32> {
        let mut counts = vec![0; self.shape.num_experts()];
        slot_experts.iter().for_each(|&expert| counts[expert as usize] += 1);
        counts
    }

    fn state(&self, loads: Vec<f64>, slot_experts: &[u32]) -> State {
        let counts = self.counts(slot_experts);
        let mut state = State::new(loads, counts, self.shape.num_slots(), self.shape.num_ranks());
        slot_experts.iter().enumerate().for_each(|(slot, &expert)| state.fill(slot, expert));
        state.settle();
        state
    }

    /// Until the cost is not above `enough`, or as good as it can be.
    fn improve(&self, state: &mut State, enough: f64) {
        let left = self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS));
        let mut effort = Effort { enough, left };
        effort.level(state);
        while effort.recount(state, RECOUNT_DEPTH) {}
        effort.left = left;
        effort.rid(state);
    }
}

/// In what a sample is measured: its mean rank load is its weight.
struct Unit {
    mean: f64,
    weight: f64,
}

impl Unit {
    fn scale(&self, load: f64) -> f64 {
        // Not by a factor, which is infinite where the mean is tiny.
        if self.weight == 0.0 { 0.0 } else { load / self.mean * self.weight }
    }
}

/// What may still be looked at, and when to be content.
struct Effort {
    enough: f64,
    left: usize,
}

impl Effort {
    fn is_over(&self, state: &State) -> bool {
        self.left == 0 || state.cost() <= self.enough
    }

    fn spend<T>(&mut self, look: impl FnOnce(&mut usize) -> T) -> T {
        let mut looked_at = 0;
        let found = look(&mut looked_at);
        self.left = self.left.saturating_sub(looked_at);
        found
    }

    /// Exchanges slots while that helps.
    fn level(&mut self, state: &mut State) {
        while !self.is_over(state) {
            let found = self.spend(|looked_at| match state.num_samples() {
                1 => exchange(state, looked_at).or_else(|| exchange_of_two(state, looked_at)),
                _ => exchange_for_all(state, looked_at),
            });
            let Some(found) = found else { return };
            state.swap(found.pairs());
        }
    }

    /// Has up to `depth` slots change their expert, one after the other, until that helps. Returns whether it did.
    fn recount(&mut self, state: &mut State, depth: usize) -> bool {
        if self.is_over(state) {
            return false;
        }
        let (to_beat, left) = (state.cost() * (1.0 - LEAST_GAIN), self.left);
        let mut tried: Vec<State> = Vec::new();
        for recount in self.spend(|looked_at| recounts(state, RECOUNTS, left, looked_at)) {
            let mut changed = state.clone();
            changed.recount(recount.slot, recount.to);
            self.level(&mut changed);
            if changed.cost() < to_beat {
                *state = changed;
                return true;
            }
            tried.push(changed);
        }
        if depth > 1 {
            for mut changed in tried {
                // Whatever it takes, but below where this began.
                while changed.cost() >= to_beat {
                    if !self.recount(&mut changed, depth - 1) {
                        break;
                    }
                }
                if changed.cost() < to_beat {
                    *state = changed;
                    return true;
                }
            }
        }
        false
    }

    /// Has no rank hold an expert twice where that costs nothing.
    fn rid(&mut self, state: &mut State) {
        if state.num_ranks() == 1 {
            return;
        }
        let most = state.cost() * (1.0 + ROUNDING);
        let mut twice: Vec<usize> = state.duplicates().collect();
        while let Some(slot) = twice.pop()
            && self.left > 0
        {
            match self.spend(|looked_at| riddance(state, slot, most, looked_at)) {
                None => continue,
                Some(Riddance::Recount(recount)) => state.recount(recount.slot, recount.to),
                Some(Riddance::Exchange(exchange)) => state.swap(exchange.pairs()),
            }
            // Slots of a rank lie by weight, and may have moved.
            let left = twice.len();
            twice = self.spend(|looked_at| {
                *looked_at += state.num_slots() * state.width();
                state.duplicates().collect()
            });
            twice.truncate(left);
        }
    }
}
