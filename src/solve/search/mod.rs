//! The search: replica counts and ranks chosen together.
//!
//! A first placement without duplicates is improved by exchanging slots of the most loaded rank, one or two at once, with
//! those of a less loaded one. Where no exchange helps, a slot changes its expert, and exchanges level what that upset; it
//! is kept if the most loaded rank carries less in the end. This goes on until the certificate says that no placement can be
//! better by more than one or two ten-thousandths, or no such step helps, or the effort is spent. What then is more than a thousandth
//! above the certificate is given as much effort again, from other beginnings. Effort counts what was looked at, not time, so that
//! results repeat.

mod drift;
mod easing;
mod homes;
mod linking;
mod measure;
mod moves;
mod nodes;
mod random;
mod start;
mod state;

use std::sync::Arc;

pub(crate) use self::homes::Nodes;
use self::linking::{Linking, Rows};
pub(super) use self::measure::Measure;
use self::moves::{Riddance, exchange, exchange_for_all, exchange_of_two, recounts, riddance};
pub(super) use self::nodes::Priced;
use self::random::Random;
use self::state::State;
use super::{lower_bound, lower_bound_of_uneven};
use crate::placement::{NO_EXPERT, Shape, held_slots};

/// Better by less than this is not worth looking for.
const TOLERANCE: f64 = 1.5e-4;

/// Further than this above what would be enough, other beginnings are worth a try.
const FAR: f64 = 1e-3;

/// Less than this is no improvement worth its while.
const LEAST_GAIN: f64 = 1e-10;

/// What sums in another order may differ by.
const ROUNDING: f64 = 1e-13;

/// Changes of an expert that are tried out, the cheapest first.
const RECOUNTS: usize = 6;

/// Slots that change their expert before the outcome has to be better.
const RECOUNT_DEPTH: usize = 2;

/// What a replica may weigh in other beginnings, in parts of what a rank has to carry, and how many of these are tried out.
const HEAVIEST: [f64; 8] = [1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6];
const OTHER_STARTS: usize = 2;

/// How often a placement is changed by lot and improved again where it stalls, or is to have no duplicates: where many ranks are the
/// most loaded, no single step helps.
const KICKS: usize = 64;

/// Changes at each of these times.
const CHANGES: usize = 4;

/// Smaller placements are searched as hard as one of so many slots.
const LEAST_SLOTS: usize = 256;

/// A layer's loads, and how hard to look.
pub(super) struct Search<'a> {
    pub shape: Shape,
    /// `[ranks]`, where some lack slots.
    pub slots_per_rank: Option<&'a [u32]>,
    /// One row of experts a sample; samples without load are left out by their weight.
    pub samples: &'a [&'a [f64]],
    /// What each sample counts for, of 1 together.
    pub weights: &'a [f64],
    /// What is to be small of all samples.
    pub measure: &'a Arc<Measure>,
    /// Exchanges that are looked at for each slot, about.
    pub effort: usize,
}

impl Search<'_> {
    /// The expert of each slot. The `others` are placements to start from where the search's own does not end below them.
    pub fn place(&self, others: &[Vec<u32>]) -> Vec<u32> {
        let Descent { mut best, enough, to_beat } = self.descend(others);
        if best.cost() > enough * (1.0 + FAR) {
            self.start_over(&mut best, enough, to_beat);
        }
        best.slots().to_vec()
    }

    /// The best of what can be reached from the search's own start and from the `others`.
    fn descend(&self, others: &[Vec<u32>]) -> Descent {
        let units = self.units();
        let loads = self.scaled(&units);
        let enough = self.bound(&units) * (1.0 + TOLERANCE);
        let costs: Vec<f64> = others.iter().map(|slots| self.cost(&loads, slots)).collect();
        let to_beat = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let mut best = self.start(&loads);
        self.improve(&mut best, enough.min(to_beat));
        for (slots, cost) in others.iter().zip(costs) {
            if cost < best.cost() * (1.0 - ROUNDING) {
                best = self.state(loads.clone(), slots);
                self.improve(&mut best, enough);
                if best.duplicates().next().is_some() {
                    best = self.improve_with_duplicates(best, enough, to_beat);
                }
            }
        }
        Descent { best, enough, to_beat }
    }

    /// What the search ends at far above the bound is mostly the best of what it can reach from there. As much effort again goes
    /// to other beginnings: other counts, then duplicates for a while, then changes by lot.
    fn start_over(&self, best: &mut State, enough: f64, to_beat: f64) {
        let mut effort = self.effort(enough);
        let has_duplicates = |state: &State| state.duplicates().next().is_some();
        for mut other in self.other_starts(&self.scaled(&self.units())) {
            effort.improve(&mut other);
            let is_better = match has_duplicates(best) {
                true => other.cost() <= to_beat * (1.0 + ROUNDING),
                false => other.cost() < best.cost() * (1.0 - ROUNDING),
            };
            if is_better && !has_duplicates(&other) {
                *best = other;
            }
        }
        // With duplicates there are more ways down, and most can be left behind at the end. They pay where ranks differ: there is
        // no greedy that would show it.
        let pays = self.slots_per_rank.is_some();
        let mut with = best.clone();
        with.allow_duplicates(true);
        effort.improve(&mut with);
        if with.cost() < best.cost() * (1.0 - ROUNDING) {
            let to_beat = if pays { with.cost() } else { best.cost() };
            match self.without_duplicates(&with, enough, to_beat) {
                Some(clean) => *best = clean,
                None if pays => *best = with,
                None => (),
            }
        }
        let mut random = Random::new(0);
        for _ in 0..KICKS {
            if effort.is_over(best) {
                break;
            }
            let mut kicked = best.clone();
            kick(&mut kicked, &mut random);
            effort.improve(&mut kicked);
            if kicked.cost() <= best.cost() {
                *best = kicked;
            }
        }
    }

    /// What comes of a placement that has duplicates: without any where that will do, else with whichever pay.
    fn improve_with_duplicates(&self, mut state: State, enough: f64, to_beat: f64) -> State {
        if let Some(clean) = self.without_duplicates(&state, enough, to_beat) {
            return clean;
        }
        state.allow_duplicates(true);
        self.improve(&mut state, enough);
        self.without_duplicates(&state, enough, to_beat).unwrap_or(state)
    }

    /// Rids a placement of its duplicates whatever it costs, and improves it from there; `None` where that leaves some, or ends
    /// above `to_beat`.
    fn without_duplicates(&self, state: &State, enough: f64, to_beat: f64) -> Option<State> {
        let mut clean = state.clone();
        clean.allow_duplicates(false);
        self.effort(enough).rid(&mut clean, f64::INFINITY);
        self.improve(&mut clean, enough.min(to_beat));
        let most = to_beat * (1.0 + ROUNDING);
        let (again, mut random) = (Search { effort: self.effort / 8, ..*self }, Random::new(0));
        for _ in 0..if self.shape.num_slots() <= LEAST_SLOTS { KICKS } else { 0 } {
            if clean.cost() <= most || clean.duplicates().next().is_some() {
                break;
            }
            let mut kicked = clean.clone();
            kick(&mut kicked, &mut random);
            again.improve(&mut kicked, enough.min(to_beat));
            if kicked.cost() <= clean.cost() {
                clean = kicked;
            }
        }
        (clean.cost() <= most && clean.duplicates().next().is_none()).then_some(clean)
    }

    /// As [`Search::place`] for a run time that splits each expert's load by need, where loads may drift from these: a small
    /// best split of drifted loads. The even split of these loads stays within a hundredth of what [`Search::place`] finds.
    pub fn place_linked(&self, others: &[Vec<u32>], drift: f64) -> Vec<u32> {
        let loads = self.scaled(&self.units());
        let num_samples = self.samples.len();
        let mut random = Random::new(0);
        let scenarios = drift::scenarios(&loads, num_samples, drift, &mut random);
        let measure = self.measure.of_copies(drift::copies(num_samples));
        let samples: Vec<Vec<f64>> = (0..num_samples)
            .map(|sample| loads[sample..].iter().step_by(num_samples).copied().collect())
            .collect();
        let samples = Rows { loads: &samples, measure: self.measure };
        let scenarios = Rows { loads: &scenarios, measure: &measure };
        let mut linking = Linking::new(self.shape, samples, scenarios, self.place(others));
        linking.improve(self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS)), &mut random);
        linking.into_slots()
    }

    /// What no placement is below.
    fn bound(&self, units: &[Unit]) -> f64 {
        let bound = |loads: &[f64]| match self.slots_per_rank {
            None => lower_bound(loads, self.shape),
            Some(_) => lower_bound_of_uneven(loads, self.num_slots(), self.shape.num_ranks()),
        };
        self.measure.of(self.samples.iter().zip(units).map(|(loads, unit)| unit.scale(bound(loads))))
    }

    /// The slots that there are.
    fn num_slots(&self) -> usize {
        let of_ranks = |slots: &[u32]| slots.iter().map(|&slots| slots as usize).sum();
        self.slots_per_rank.map_or(self.shape.num_slots(), of_ranks)
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
        let counts = start::counts(&sums, self.num_slots(), self.shape.num_ranks());
        let weights: Vec<f64> =
            sums.iter().zip(&counts).map(|(sum, &count)| sum / f64::from(count)).collect();
        let mut state = self.empty(loads.to_vec(), counts);
        start::pack(&mut state, &weights);
        state.settle();
        state
    }

    /// The most level starts with fewer replicas of hot experts, and so heavier ones, of which two may not meet on a rank.
    fn other_starts(&self, loads: &[f64]) -> Vec<State> {
        let num_samples = self.samples.len();
        let sums: Vec<f64> = loads.chunks_exact(num_samples).map(|samples| samples.iter().sum()).collect();
        let (num_slots, num_ranks) = (self.num_slots(), self.shape.num_ranks());
        let bound = match self.slots_per_rank {
            None => lower_bound(&sums, self.shape),
            Some(_) => lower_bound_of_uneven(&sums, num_slots, num_ranks),
        };
        let start = |part: &f64| {
            let counts = start::counts_below(&sums, num_slots, num_ranks, part * bound)?;
            let weights: Vec<f64> =
                sums.iter().zip(&counts).map(|(sum, &count)| sum / f64::from(count)).collect();
            let mut state = self.empty(loads.to_vec(), counts);
            start::pack(&mut state, &weights);
            state.settle();
            Some(state)
        };
        let mut starts: Vec<State> = HEAVIEST.iter().filter_map(start).collect();
        starts.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        starts.truncate(OTHER_STARTS);
        starts
    }

    fn empty(&self, loads: Vec<f64>, counts: Vec<u32>) -> State {
        State::new(loads, self.measure.clone(), counts, self.shape, self.slots_per_rank)
    }

    /// As [`State::cost`].
    fn cost(&self, loads: &[f64], slot_experts: &[u32]) -> f64 {
        let counts = self.counts(slot_experts);
        let num_samples = self.samples.len();
        let of_rank = |sample: usize, rank: &[u32]| -> f64 {
            let weight = |&expert: &u32| {
                loads[expert as usize * num_samples + sample] / f64::from(counts[expert as usize])
            };
            rank.iter().filter(|&&expert| expert != NO_EXPERT).map(weight).sum()
        };
        let ranks = || slot_experts.chunks_exact(self.shape.slots_per_rank());
        let most = |sample| ranks().map(|rank| of_rank(sample, rank)).fold(0.0, f64::max);
        self.measure.of((0..num_samples).map(most))
    }

    fn counts(&self, slot_experts: &[u32]) -> Vec<u32> {
        let mut counts = vec![0; self.shape.num_experts()];
        held_slots(slot_experts).for_each(|(_, expert)| counts[expert as usize] += 1);
        counts
    }

    fn state(&self, loads: Vec<f64>, slot_experts: &[u32]) -> State {
        let counts = self.counts(slot_experts);
        let mut state = self.empty(loads, counts);
        held_slots(slot_experts).for_each(|(slot, expert)| state.fill(slot, expert));
        state.settle();
        state
    }

    /// Until the cost is not above `enough`, or as good as it can be.
    fn improve(&self, state: &mut State, enough: f64) {
        self.effort(enough).improve(state);
        self.effort(enough).rid(state, state.cost() * (1.0 + ROUNDING));
    }

    fn effort(&self, enough: f64) -> Effort {
        Effort { enough, left: self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS)) }
    }
}

/// Changes a placement by lot: exchanges of slots, and slots that change their expert. No duplicates come of it that may not.
fn kick(state: &mut State, random: &mut Random) {
    for _ in 0..CHANGES {
        let (slot, other) = (random.below(state.num_slots()), random.below(state.num_slots()));
        let (expert, other_expert) = (state.expert(slot), state.expert(other));
        if expert == NO_EXPERT
            || other_expert == NO_EXPERT
            || !state.may_take(state.rank_of(slot), other_expert)
        {
            continue;
        }
        if random.below(2) == 0 && state.count(expert) > 1 {
            state.recount(slot, other_expert);
        } else if state.rank_of(slot) != state.rank_of(other) && state.may_take(state.rank_of(other), expert)
        {
            state.swap(&[(slot, other)]);
        }
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

/// What the search comes to.
struct Descent {
    best: State,
    /// The cost beyond which it is not worth while to go on.
    enough: f64,
    /// The cheapest of the placements that it must not be above.
    to_beat: f64,
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

    /// Exchanges slots and changes their experts while that helps.
    fn improve(&mut self, state: &mut State) {
        self.level(state);
        while self.recount(state, RECOUNT_DEPTH) {}
    }

    /// Exchanges slots while that helps.
    fn level(&mut self, state: &mut State) {
        while !self.is_over(state) {
            let found = self.spend(|looked_at| {
                let of_one = |looked_at: &mut usize| {
                    exchange(state, looked_at).or_else(|| exchange_of_two(state, looked_at))
                };
                match (state.num_samples(), state.has_homes()) {
                    (1, false) => of_one(looked_at),
                    (1, true) => of_one(looked_at).or_else(|| exchange_for_all(state, looked_at)),
                    _ => exchange_for_all(state, looked_at),
                }
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

    /// Has no rank hold an expert twice where each step leaves the cost not above `most`.
    fn rid(&mut self, state: &mut State, most: f64) {
        if state.num_ranks() == 1 {
            return;
        }
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
