//! The search: replica counts and ranks chosen together.
//!
//! A first placement without duplicates is improved by exchanging slots of the most loaded rank, one or two at once, with
//! those of a less loaded one. Where no exchange helps, a slot changes its expert, and exchanges level what that upset; it
//! is kept if the most loaded rank carries less in the end. This goes on until the certificate says that no placement can be
//! better by more than a ten-thousandth, or the effort is spent. Effort counts what was looked at, not time, so that results
//! repeat.

mod moves;
mod start;
mod state;

use self::moves::{Riddance, exchange, exchange_for_all, exchange_of_two, recounts, riddance};
use self::state::State;
use crate::placement::Shape;

/// Better by less than this is not worth looking for.
const TOLERANCE: f64 = 1e-4;

/// Less than this is no improvement but rounding.
const LEAST_GAIN: f64 = 1e-10;

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
    /// Exchanges that are looked at for each slot and sample, about.
    pub effort: usize,
}

impl Search<'_> {
    /// The expert of each slot. The `others` are placements to start from where the search's own does not end below them.
    pub fn place(&self, others: &[Vec<u32>]) -> Vec<u32> {
        let loads = self.scaled();
        let others: Vec<State> = others.iter().map(|slots| self.state(loads.clone(), slots)).collect();
        let to_beat = others.iter().map(State::cost).fold(f64::INFINITY, f64::min);
        let mut best = self.start(&loads);
        self.improve(&mut best, to_beat);
        for mut other in others {
            if other.cost() < best.cost() {
                self.improve(&mut other, f64::INFINITY);
                best = other;
            }
        }
        best.slots().to_vec()
    }

    /// `[experts][samples]`: the mean rank load of each sample is its weight.
    fn scaled(&self) -> Vec<f64> {
        let num_experts = self.shape.num_experts();
        let scales: Vec<f64> = self
            .samples
            .iter()
            .zip(self.weights)
            .map(|(loads, weight)| {
                let mean = loads.iter().sum::<f64>() / self.shape.num_ranks() as f64;
                if mean > 0.0 { weight / mean } else { 0.0 }
            })
            .collect();
        (0..num_experts)
            .flat_map(|expert| {
                self.samples.iter().zip(&scales).map(move |(loads, scale)| loads[expert] * scale)
            })
            .collect()
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

    fn state(&self, loads: Vec<f64>, slot_experts: &[u32]) -> State {
        let mut counts = vec![0; self.shape.num_experts()];
        slot_experts.iter().for_each(|&expert| counts[expert as usize] += 1);
        let mut state = State::new(loads, counts, self.shape.num_slots(), self.shape.num_ranks());
        slot_experts.iter().enumerate().for_each(|(slot, &expert)| state.fill(slot, expert));
        state.settle();
        state
    }

    /// Until the cost is as good as it can be, and not above `most`.
    fn improve(&self, state: &mut State, most: f64) {
        let means: f64 = (0..state.num_samples()).map(|sample| state.mean(sample)).sum();
        let mut effort = Effort {
            enough: (means * (1.0 + TOLERANCE)).min(most),
            left: self.effort * self.shape.num_slots().max(LEAST_SLOTS),
        };
        effort.level(state);
        while effort.recount(state, RECOUNT_DEPTH) {}
        effort.rid(state);
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
        let to_beat = state.cost() * (1.0 - LEAST_GAIN);
        let mut tried: Vec<State> = Vec::new();
        for recount in self.spend(|looked_at| recounts(state, RECOUNTS, looked_at)) {
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
        let most = state.cost().max(self.enough.min(state.cost() * (1.0 + LEAST_GAIN)));
        let mut twice: Vec<usize> = state.duplicates().collect();
        while let Some(slot) = twice.pop() {
            match self.spend(|looked_at| riddance(state, slot, most, looked_at)) {
                None => continue,
                Some(Riddance::Recount(recount)) => state.recount(recount.slot, recount.to),
                Some(Riddance::Exchange(exchange)) => state.swap(exchange.pairs()),
            }
            // Slots of a rank lie by weight, and may have moved.
            let left = twice.len();
            twice = state.duplicates().collect();
            twice.truncate(left);
        }
    }
}
