//! The policy `search`: chooses replica counts and ranks together.
//!
//! Tiny shapes: it lists all placements.
//!
//! Several samples: it starts from a placement without duplicates and descends on a smooth cost.
//!
//! One sample: it exchanges one or two slots of the most loaded rank with those of a less loaded one; where ranks
//! have few slots, of the best of all ranks, and a few exchanges in a row may raise the maximum. If no exchange
//! helps, a slot takes another expert, and exchanges follow. The change is kept if the most loaded rank carries
//! less in the end. Far above the target it restarts with the same effort.
//!
//! It stops at the target, slightly above the lower bound, when no step helps, or when the effort is spent.
//! Effort counts evaluated exchanges, not time, so that results repeat.

mod columns;
mod descent;
mod drift;
mod effort;
mod home_node;
mod improvement;
mod lanes;
mod listing;
mod measure;
mod moves;
mod node_relief;
mod nodes;
mod random;
mod relief_scan;
mod relief_steps;
mod replica_graph;
mod smooth;
mod start;
mod state;
mod steps;

use std::sync::Arc;

use self::descent::Descent;
use self::effort::{Effort, perturb};
pub(crate) use self::home_node::Nodes;
pub(crate) use self::improvement::{ChangeLimits, ChangePrice, Improvement, Step, Workspace};
#[cfg(test)]
pub(crate) use self::lanes::names_of_vectors;
use self::listing::Listing;
pub(super) use self::measure::Measure;
pub(super) use self::nodes::PricedNodes;
use self::random::Random;
use self::replica_graph::{MeasuredLoads, ReplicaGraph};
use self::state::State;
use super::pinned::Pins;
use super::{lower_bound, lower_bound_of_unequal_ranks};
use crate::placement::{NO_EXPERT, Shape, held_slots};

/// The target is this part above the lower bound.
const TOLERANCE: f64 = 1.5e-4;

/// The search restarts if the cost is this part above the target.
const FAR: f64 = 1e-3;

/// The order of summation may change a sum by this part.
const ROUNDING: f64 = 1e-13;

/// Restarts with other replica counts: the limits on a replica's load, as parts of the lower bound, and how
/// many of the starts are tried.
const REPLICA_LOAD_LIMITS: [f64; 8] = [1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6];
const STARTS_WITH_OTHER_COUNTS: usize = 2;

/// Perturbations of a placement that stalls or has to lose its duplicates. If many ranks are the most loaded,
/// no single step helps.
const PERTURBATIONS: usize = 64;

/// A smaller drift counts as this. Without any, all placements of the search have even best splits, and nothing
/// links the ranks for later loads.
const LEAST_DRIFT: f64 = 0.02;

/// A smaller placement gets the effort of one with this number of slots.
const LEAST_SLOTS: usize = 256;

/// The loads of a layer, and the effort.
pub(super) struct Search<'a> {
    pub shape: Shape,
    /// `[ranks]`, if some lack slots.
    pub rank_num_slots: Option<&'a [u32]>,
    /// `[samples][experts]`. Samples without load get the weight 0.
    pub samples: &'a [&'a [f64]],
    /// The weights of the samples. Their sum is 1.
    pub sample_weights: &'a [f64],
    /// What to minimise over samples.
    pub measure: &'a Arc<Measure>,
    /// Slots that ranks keep. The starts have them, and no step takes them.
    pub pins: Option<&'a Arc<Pins>>,
    /// About how many exchanges to evaluate for each slot.
    pub effort: usize,
}

impl Search<'_> {
    /// Returns the expert of each slot. The result is not above any of `others`, which are further placements
    /// to start from.
    pub fn place(&self, others: &[Vec<u32>]) -> Vec<u32> {
        if let Some(cheapest) = self.cheapest_of_all(others) {
            return cheapest;
        }
        let Descended { mut best, target, to_beat } = self.descend(others);
        if best.cost() > target * (1.0 + FAR) && self.samples.len() == 1 {
            self.restart(&mut best, target, to_beat);
        }
        best.slots().to_vec()
    }

    /// Returns the cheapest of all placements where listing them takes no more steps than a search.
    fn cheapest_of_all(&self, others: &[Vec<u32>]) -> Option<Vec<u32>> {
        let loads = &self.scaled(&self.scales());
        let (shape, rank_num_slots, measure) = (self.shape, self.rank_num_slots, &**self.measure);
        let listing = Listing { shape, rank_num_slots, pins: self.pins.map(|pins| &**pins), measure, loads };
        let to_beat = others.iter().map(|slots| self.cost(loads, slots)).fold(f64::INFINITY, f64::min);
        if to_beat == 0.0 || !listing.is_short(self.num_steps()) {
            return None;
        }
        let without = listing.cheapest(to_beat, false, self.num_steps()).ok()?;
        if without.is_some() && !self.keeps_duplicates() {
            return without;
        }
        let to_beat = without.as_ref().map_or(to_beat, |slots| self.cost(loads, slots));
        listing.cheapest(to_beat, true, self.num_steps()).ok()?.or(without)
    }

    /// Returns whether the result may have duplicates that lower the cost. With unequal ranks or pins, no greedy
    /// bounds the cost.
    fn keeps_duplicates(&self) -> bool {
        self.rank_num_slots.is_some() || self.pins.is_some()
    }

    /// The number of steps to evaluate.
    fn num_steps(&self) -> usize {
        self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS))
    }

    /// Returns the best placement reached from the search's own start and from the `others`.
    fn descend(&self, others: &[Vec<u32>]) -> Descended {
        let scales = self.scales();
        let loads = self.scaled(&scales);
        let target = self.bound(&scales) * (1.0 + TOLERANCE);
        let costs: Vec<f64> = others.iter().map(|slots| self.cost(&loads, slots)).collect();
        let to_beat = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let mut best = self.start(&loads);
        self.improve(&mut best, target.min(to_beat));
        for (slots, cost) in others.iter().zip(costs) {
            if cost < best.cost() * (1.0 - ROUNDING) {
                best = self.state(loads.clone(), slots);
                self.improve(&mut best, target);
                if best.duplicates().next().is_some() {
                    best = self.improve_with_duplicates(best, target, to_beat);
                }
            }
        }
        Descended { best, target, to_beat }
    }

    /// Restarts with as much effort again, since the result is mostly a local optimum. Tries other replica
    /// counts, then duplicates for a while, then perturbations.
    fn restart(&self, best: &mut State, target: f64, to_beat: f64) {
        let mut effort = self.effort(target);
        let has_duplicates = |state: &State| state.duplicates().next().is_some();
        for mut other in self.starts_with_other_counts(&self.scaled(&self.scales())) {
            effort.improve(&mut other);
            let is_better = match has_duplicates(best) {
                true => other.cost() <= to_beat * (1.0 + ROUNDING),
                false => other.cost() < best.cost() * (1.0 - ROUNDING),
            };
            if is_better && !has_duplicates(&other) {
                *best = other;
            }
        }
        // Duplicates allow more exchanges, and most can be removed at the end.
        let keep_duplicates = self.keeps_duplicates();
        let mut with = best.clone();
        with.allow_duplicates(true);
        effort.improve(&mut with);
        if with.cost() < best.cost() * (1.0 - ROUNDING) {
            let to_beat = if keep_duplicates { with.cost() } else { best.cost() };
            match self.without_duplicates(&with, target, to_beat) {
                Some(without) => *best = without,
                None if keep_duplicates => *best = with,
                None => (),
            }
        }
        let mut random = Random::new(0);
        for _ in 0..PERTURBATIONS {
            if effort.is_over(best) {
                break;
            }
            let mut perturbed = best.clone();
            perturb(&mut perturbed, &mut random);
            effort.improve(&mut perturbed);
            if perturbed.cost() <= best.cost() {
                *best = perturbed;
            }
        }
    }

    /// Removes the duplicates of a placement if the cost allows it. Otherwise improves it with duplicates.
    fn improve_with_duplicates(&self, mut state: State, target: f64, to_beat: f64) -> State {
        if let Some(without) = self.without_duplicates(&state, target, to_beat) {
            return without;
        }
        state.allow_duplicates(true);
        self.improve(&mut state, target);
        self.without_duplicates(&state, target, to_beat).unwrap_or(state)
    }

    /// Removes all duplicates at any cost and improves the placement without them. Returns `None` if
    /// duplicates remain or the cost ends above `to_beat`.
    fn without_duplicates(&self, state: &State, target: f64, to_beat: f64) -> Option<State> {
        let mut without = state.clone();
        without.allow_duplicates(false);
        self.effort(target).remove_duplicates(&mut without, f64::INFINITY);
        self.improve_until(&mut without, target.min(to_beat), to_beat);
        let limit = to_beat * (1.0 + ROUNDING);
        let (short, mut random) = (Search { effort: self.effort / 8, ..*self }, Random::new(0));
        for _ in 0..if self.shape.num_slots() <= LEAST_SLOTS { PERTURBATIONS } else { 0 } {
            if without.cost() <= limit || without.duplicates().next().is_some() {
                break;
            }
            let mut perturbed = without.clone();
            perturb(&mut perturbed, &mut random);
            short.improve_until(&mut perturbed, target.min(to_beat), to_beat);
            if perturbed.cost() <= without.cost() {
                without = perturbed;
            }
        }
        (without.cost() <= limit && without.duplicates().next().is_none()).then_some(without)
    }

    /// Returns the expert of each slot for an engine that uses the best split, where loads drift. Minimises
    /// the best split of drifted loads. The even split of the planned loads stays within 1 % of
    /// [`Search::place`].
    pub fn place_for_best_split(&self, others: &[Vec<u32>], drift: f64) -> Vec<u32> {
        let loads = self.scaled(&self.scales());
        let num_samples = self.samples.len();
        let mut random = Random::new(0);
        let scenarios = drift::scenarios(&loads, num_samples, drift.max(LEAST_DRIFT), &mut random);
        let measure = self.measure.repeated(drift::scenarios_per_sample(num_samples));
        let samples: Vec<Vec<f64>> = (0..num_samples)
            .map(|sample| loads[sample..].iter().step_by(num_samples).copied().collect())
            .collect();
        let samples = MeasuredLoads { loads: &samples, measure: self.measure };
        let scenarios = MeasuredLoads { loads: &scenarios, measure: &measure };
        let mut graph =
            ReplicaGraph::new(self.shape, samples, scenarios, self.place(others), self.pins.cloned());
        graph.improve(self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS)), &mut random);
        graph.into_slots()
    }

    /// Returns a lower bound of the cost.
    fn bound(&self, scales: &[SampleScale]) -> f64 {
        let bound = |loads: &[f64]| match self.rank_num_slots {
            None => lower_bound(loads, self.shape),
            Some(_) => lower_bound_of_unequal_ranks(loads, self.num_slots(), self.shape.num_ranks()),
        };
        self.measure.of(self.samples.iter().zip(scales).map(|(loads, scale)| scale.scale(bound(loads))))
    }

    /// The number of slots of all ranks.
    fn num_slots(&self) -> usize {
        let of_ranks = |slots: &[u32]| slots.iter().map(|&slots| slots as usize).sum();
        self.rank_num_slots.map_or(self.shape.num_slots(), of_ranks)
    }

    fn scales(&self) -> Vec<SampleScale> {
        let scale = |(loads, &weight): (&&[f64], &f64)| {
            let mean = loads.iter().sum::<f64>() / self.shape.num_ranks() as f64;
            SampleScale { mean, weight: if mean > 0.0 { weight } else { 0.0 } }
        };
        self.samples.iter().zip(self.sample_weights).map(scale).collect()
    }

    /// `[experts][samples]`
    fn scaled(&self, scales: &[SampleScale]) -> Vec<f64> {
        let of_expert = |expert: usize| {
            self.samples.iter().zip(scales).map(move |(loads, scale)| scale.scale(loads[expert]))
        };
        (0..self.shape.num_experts()).flat_map(of_expert).collect()
    }

    fn start(&self, loads: &[f64]) -> State {
        let num_samples = self.samples.len();
        let sums: Vec<f64> = loads.chunks_exact(num_samples).map(|samples| samples.iter().sum()).collect();
        let counts =
            start::replica_counts(&sums, self.num_slots(), self.shape.num_ranks(), self.pinned_counts());
        let replica_loads: Vec<f64> =
            sums.iter().zip(&counts).map(|(sum, &count)| sum / f64::from(count)).collect();
        let mut state = self.empty(loads.to_vec(), counts);
        self.pack(&mut state, &replica_loads);
        state
    }

    /// Fills the slots of a state.
    fn pack(&self, state: &mut State, replica_loads: &[f64]) {
        match self.pins {
            None => start::pack(state, replica_loads),
            Some(pins) => start::pack_with_pins(state, replica_loads, pins),
        }
        state.update_all();
    }

    /// The pinned slots of each expert, or nothing.
    fn pinned_counts(&self) -> &[u32] {
        self.pins.map_or(&[], |pins| pins.counts())
    }

    /// Returns the most even starts with fewer and heavier replicas of hot experts. Their limit keeps two
    /// such replicas from sharing a rank.
    fn starts_with_other_counts(&self, loads: &[f64]) -> Vec<State> {
        let num_samples = self.samples.len();
        let sums: Vec<f64> = loads.chunks_exact(num_samples).map(|samples| samples.iter().sum()).collect();
        let (num_slots, num_ranks) = (self.num_slots(), self.shape.num_ranks());
        let bound = match self.rank_num_slots {
            None => lower_bound(&sums, self.shape),
            Some(_) => lower_bound_of_unequal_ranks(&sums, num_slots, num_ranks),
        };
        let start = |part: &f64| {
            let counts =
                start::replica_counts_below(&sums, num_slots, num_ranks, part * bound, self.pinned_counts())?;
            let replica_loads: Vec<f64> =
                sums.iter().zip(&counts).map(|(sum, &count)| sum / f64::from(count)).collect();
            let mut state = self.empty(loads.to_vec(), counts);
            self.pack(&mut state, &replica_loads);
            Some(state)
        };
        let mut starts: Vec<State> = REPLICA_LOAD_LIMITS.iter().filter_map(start).collect();
        starts.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        starts.truncate(STARTS_WITH_OTHER_COUNTS);
        starts
    }

    fn empty(&self, loads: Vec<f64>, counts: Vec<u32>) -> State {
        State::new(loads, self.measure.clone(), counts, self.shape, self.rank_num_slots, self.pins.cloned())
    }

    /// Returns the cost of a placement: see [`State::cost`].
    fn cost(&self, loads: &[f64], slot_experts: &[u32]) -> f64 {
        let counts = self.counts(slot_experts);
        let num_samples = self.samples.len();
        let of_rank = |sample: usize, rank: &[u32]| -> f64 {
            let replica_load = |&expert: &u32| {
                loads[expert as usize * num_samples + sample] / f64::from(counts[expert as usize])
            };
            rank.iter().filter(|&&expert| expert != NO_EXPERT).map(replica_load).sum()
        };
        let ranks = || slot_experts.chunks_exact(self.shape.slots_per_rank());
        let max = |sample| ranks().map(|rank| of_rank(sample, rank)).fold(0.0, f64::max);
        self.measure.of((0..num_samples).map(max))
    }

    fn counts(&self, slot_experts: &[u32]) -> Vec<u32> {
        let mut counts = vec![0; self.shape.num_experts()];
        held_slots(slot_experts).for_each(|(_, expert)| counts[expert as usize] += 1);
        counts
    }

    fn state(&self, loads: Vec<f64>, slot_experts: &[u32]) -> State {
        let counts = self.counts(slot_experts);
        let mut state = self.empty(loads, counts);
        held_slots(slot_experts).for_each(|(slot, expert)| state.place(slot, expert));
        state.update_all();
        state
    }

    /// Improves a placement until its cost reaches `target` or no step helps.
    fn improve(&self, state: &mut State, target: f64) {
        self.improve_until(state, target, f64::INFINITY);
    }

    /// Like [`Search::improve`], where replica counts may change as long as the cost is above `to_beat`.
    fn improve_until(&self, state: &mut State, target: f64, to_beat: f64) {
        if state.num_samples() > 1 && state.cost() > target {
            let slots = Descent::new(state, self.num_steps()).run(target);
            state.replace(&slots);
            return;
        }
        let effort = self.effort(target);
        Effort { near: effort.near.min(to_beat), ..effort }.improve(state);
        self.effort(target).remove_duplicates(state, state.cost() * (1.0 + ROUNDING));
    }

    fn effort(&self, target: f64) -> Effort {
        Effort { target, near: target * (1.0 + FAR), left: self.num_steps() }
    }
}

/// Scales the loads of a sample so that the mean rank load is the sample's weight.
struct SampleScale {
    mean: f64,
    weight: f64,
}

impl SampleScale {
    fn scale(&self, load: f64) -> f64 {
        // Divides first: the factor would be infinite for a tiny mean.
        if self.weight == 0.0 { 0.0 } else { load / self.mean * self.weight }
    }
}

/// The result of [`Search::descend`].
struct Descended {
    best: State,
    /// The cost at which the search stops.
    target: f64,
    /// The lowest cost of the other placements, which the result must not exceed.
    to_beat: f64,
}
