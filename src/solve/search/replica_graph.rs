//! Placements for an engine that uses the best split.
//!
//! Such an engine moves load between two ranks wherever an expert has replicas on both: the ranks are nodes
//! of a graph, linked by experts. Load stays above the mean on a set of ranks if too much of it has no
//! replica outside the set. Drift makes it another set. So a placement is measured in many scenarios of
//! drifted loads ([`super::drift`]), each by its best split ([`Split`]). Replicas move out of such sets while
//! that lowers the measure.
//!
//! Each set that was found is kept as a cut. However load is split, the ranks of the set carry the load
//! confined to them. So the cuts give a lower bound on a changed placement by a few comparisons. It rejects
//! most changes without a split.

use std::sync::Arc;

use super::measure::Measure;
use super::random::Random;
use crate::placement::{NO_EXPERT, Shape, held_slots};
use crate::solve::pinned::Pins;
use crate::solve::split::Split;

/// The part by which the even split may get worse, for an engine that falls back to it.
const EVEN_SPLIT_LOSS: f64 = 0.01;

/// The part of proposals that change replica counts. The others exchange slots.
const REPLICA_COUNT_CHANGES: f64 = 0.2;

/// The part of proposals that do not start from a set of ranks above the mean.
const ANYWHERE: f64 = 0.1;

/// Cuts kept for each scenario. More take longer to evaluate than they save.
const CUTS: usize = 12;

/// A smaller gain is rounding.
const LEAST_GAIN: f64 = 1e-9;

/// Loads of the layer, planned or drifted, and the measure over them.
#[derive(Clone, Copy)]
pub(super) struct MeasuredLoads<'a> {
    /// `[samples or scenarios][experts]`
    pub loads: &'a [Vec<f64>],
    pub measure: &'a Measure,
}

/// A placement of a layer, as ranks linked by replicas.
pub(super) struct ReplicaGraph<'a> {
    shape: Shape,
    samples: MeasuredLoads<'a>,
    scenarios: MeasuredLoads<'a>,
    /// The mean rank load of each scenario.
    means: Vec<f64>,
    slots: Vec<u32>,
    pins: Option<Arc<Pins>>,
    counts: Vec<u32>,
    /// The ranks of each expert, each once.
    ranks_of: Vec<Vec<u32>>,
    /// The maximum rank load of each scenario in its best split, and the ranks that confine it.
    max_loads: Vec<f64>,
    confined: Vec<Vec<u32>>,
    cuts: Vec<Cut>,
    split: Split,
    /// The largest cost of the even split of the samples that is allowed.
    max_even_split_cost: f64,
    /// The remaining effort.
    left: usize,
}

impl<'a> ReplicaGraph<'a> {
    pub fn new(
        shape: Shape,
        samples: MeasuredLoads<'a>,
        scenarios: MeasuredLoads<'a>,
        slots: Vec<u32>,
        pins: Option<Arc<Pins>>,
    ) -> Self {
        let (mut counts, mut ranks_of) =
            (vec![0; shape.num_experts()], vec![Vec::new(); shape.num_experts()]);
        for (slot, expert) in held_slots(&slots) {
            let (rank, ranks) = (shape.rank_of(slot) as u32, &mut ranks_of[expert as usize]);
            counts[expert as usize] += 1;
            if ranks.last() != Some(&rank) {
                ranks.push(rank);
            }
        }
        let (num_ranks, num_scenarios) = (shape.num_ranks(), scenarios.loads.len());
        let mut graph = ReplicaGraph {
            shape,
            samples,
            scenarios,
            means: scenarios.loads.iter().map(|loads| loads.iter().sum::<f64>() / num_ranks as f64).collect(),
            slots,
            pins,
            counts,
            ranks_of,
            max_loads: vec![0.0; num_scenarios],
            confined: vec![Vec::new(); num_scenarios],
            cuts: Vec::new(),
            split: Split::new(num_ranks),
            max_even_split_cost: f64::INFINITY,
            left: 0,
        };
        graph.max_even_split_cost = graph.even_split_cost() * (1.0 + EVEN_SPLIT_LOSS);
        graph.split.place(&graph.ranks_of);
        for scenario in 0..num_scenarios {
            graph.max_loads[scenario] = graph.split.max_load(&scenarios.loads[scenario], f64::INFINITY);
            graph.confined[scenario] = graph.split.confined().to_vec();
            graph.keep_cut(scenario);
        }
        graph
    }

    /// Returns the expert of each slot.
    pub fn into_slots(self) -> Vec<u32> {
        self.slots
    }

    /// Tries changes while ranks are above the mean in some scenario. `effort` is about the number of slots
    /// to evaluate.
    pub fn improve(&mut self, effort: usize, random: &mut Random) {
        self.left = effort;
        let mut max_loads = self.means.clone();
        while self.left > 0 {
            let excess: f64 = self.max_loads.iter().zip(&self.means).map(|(max, mean)| max - mean).sum();
            if excess <= LEAST_GAIN {
                return;
            }
            self.spend(1 + self.cuts.len() / 128);
            let Some(change) = self.proposal(excess, random) else { continue };
            let to_beat = self.scenarios.measure.of(self.max_loads.iter().copied()) * (1.0 - LEAST_GAIN);
            self.bound(&change, &mut max_loads);
            if self.scenarios.measure.of(max_loads.iter().copied()) >= to_beat {
                continue;
            }
            self.apply(&change);
            match self.evaluate(&mut max_loads, to_beat) {
                Outcome::Better(confined) => {
                    self.max_loads.clone_from(&max_loads);
                    self.confined = confined;
                    for cut in &mut self.cuts {
                        cut.follow(&change, &self.scenarios.loads[cut.scenario]);
                    }
                }
                Outcome::WorseIn(scenario) => {
                    self.apply(&change.reversed());
                    self.keep_cut(scenario);
                }
                Outcome::WorseEvenSplit => self.apply(&change.reversed()),
            }
        }
    }

    fn spend(&mut self, evaluated: usize) {
        self.left = self.left.saturating_sub(evaluated);
    }

    /// Proposes a change for an expert that is confined to ranks above the mean. Its slot is exchanged with
    /// one of another rank, or a slot there becomes a replica of it. `None` if the slots drawn do not allow
    /// it.
    fn proposal(&self, excess: f64, random: &mut Random) -> Option<Change> {
        let mut place = random.unit() * excess;
        let scenario = self.max_loads.iter().zip(&self.means).position(|(max, mean)| {
            place -= max - mean;
            place <= 0.0
        });
        let confined = &self.confined[scenario.unwrap_or(self.max_loads.len() - 1)];
        let anywhere = random.unit() < ANYWHERE || confined.is_empty();
        let rank = match anywhere {
            true => random.below(self.shape.num_ranks()),
            false => confined[random.below(confined.len())] as usize,
        };
        let other = random.below(self.shape.num_ranks());
        if other == rank || !anywhere && confined.contains(&(other as u32)) {
            return None;
        }
        let width = self.shape.slots_per_rank();
        let (slot, other_slot) = (rank * width + random.below(width), other * width + random.below(width));
        let is_exchange = random.unit() >= REPLICA_COUNT_CHANGES;
        let (expert, other_expert) = (self.slots[slot], self.slots[other_slot]);
        if expert == NO_EXPERT || other_expert == NO_EXPERT {
            return None;
        }
        let is_on = |expert: u32, rank: usize| self.ranks_of[expert as usize].contains(&(rank as u32));
        if is_on(expert, other) {
            return None;
        }
        let may_give = |slot: usize| {
            let rank = self.shape.rank_of(slot);
            let held = &self.slots[rank * width..][..width];
            self.pins.as_ref().is_none_or(|pins| pins.may_give(rank, held, self.slots[slot], 1))
        };
        if !may_give(other_slot) || is_exchange && !may_give(slot) {
            return None;
        }
        let leaves = |slot: usize| {
            let rank = self.shape.rank_of(slot);
            let held = self.slots[rank * width..][..width].iter().filter(|&&held| held == self.slots[slot]);
            (held.count() == 1).then_some(rank as u32)
        };
        let filled = |slot, was, is| Some(Filled { slot, was, is });
        if is_exchange {
            (!is_on(other_expert, rank)).then(|| Change {
                slots: [filled(slot, expert, other_expert), filled(other_slot, other_expert, expert)],
                moves: [
                    Move { expert, leaves: leaves(slot), joins: Some(other as u32) },
                    Move { expert: other_expert, leaves: leaves(other_slot), joins: Some(rank as u32) },
                ],
            })
        } else {
            (self.counts[other_expert as usize] > 1).then(|| Change {
                slots: [filled(other_slot, other_expert, expert), None],
                moves: [
                    Move { expert, leaves: None, joins: Some(other as u32) },
                    Move { expert: other_expert, leaves: leaves(other_slot), joins: None },
                ],
            })
        }
    }

    /// Sets lower bounds on the maximum rank load of each scenario after `change`.
    fn bound(&self, change: &Change, max_loads: &mut [f64]) {
        max_loads.copy_from_slice(&self.means);
        for cut in &self.cuts {
            let max_load = &mut max_loads[cut.scenario];
            *max_load = max_load.max(cut.after(change, &self.scenarios.loads[cut.scenario]) / cut.num_ranks);
        }
    }

    fn apply(&mut self, change: &Change) {
        for &Filled { slot, was, is } in change.slots.iter().flatten() {
            self.slots[slot] = is;
            self.counts[was as usize] -= 1;
            self.counts[is as usize] += 1;
        }
        for &Move { expert, leaves, joins } in &change.moves {
            let ranks = &mut self.ranks_of[expert as usize];
            ranks.retain(|&rank| Some(rank) != leaves);
            ranks.extend(joins);
        }
    }

    /// Splits each scenario until the measure cannot stay below `to_beat`. `max_loads` holds lower bounds,
    /// and afterwards the results.
    fn evaluate(&mut self, max_loads: &mut [f64], to_beat: f64) -> Outcome {
        self.spend(self.shape.num_slots() / 32);
        if self.even_split_cost() > self.max_even_split_cost {
            return Outcome::WorseEvenSplit;
        }
        // The worst scenarios first: they reject a change soonest.
        let mut order: Vec<usize> = (0..max_loads.len()).collect();
        order.sort_by(|&a, &b| self.max_loads[b].total_cmp(&self.max_loads[a]));
        let mut confined = vec![Vec::new(); max_loads.len()];
        self.split.place(&self.ranks_of);
        for scenario in order {
            self.spend(self.shape.num_slots() / 32);
            let measured = self.scenarios.measure.of(max_loads.iter().copied());
            let stop_at = self.scenarios.measure.sample_limit(max_loads[scenario], measured, to_beat);
            max_loads[scenario] = self.split.max_load(&self.scenarios.loads[scenario], stop_at);
            if self.scenarios.measure.of(max_loads.iter().copied()) >= to_beat {
                return Outcome::WorseIn(scenario);
            }
            confined[scenario] = self.split.confined().to_vec();
        }
        Outcome::Better(confined)
    }

    /// Returns the measure of the samples by even split.
    fn even_split_cost(&self) -> f64 {
        let mut rank_loads = vec![0.0; self.shape.num_ranks()];
        self.samples.measure.of(self.samples.loads.iter().map(|loads| {
            for (load, slots) in
                rank_loads.iter_mut().zip(self.slots.chunks_exact(self.shape.slots_per_rank()))
            {
                let replica_load =
                    |&expert: &u32| loads[expert as usize] / f64::from(self.counts[expert as usize]);
                *load = slots.iter().filter(|&&expert| expert != NO_EXPERT).map(replica_load).sum();
            }
            rank_loads.iter().copied().fold(0.0, f64::max)
        }))
    }

    /// Keeps the ranks that confine the last split, in place of the weakest cut.
    fn keep_cut(&mut self, scenario: usize) {
        let mut has = vec![false; self.shape.num_ranks()];
        self.split.confined().iter().for_each(|&rank| has[rank as usize] = true);
        let of_scenario = || self.cuts.iter().enumerate().filter(|(_, cut)| cut.scenario == scenario);
        if self.split.confined().is_empty() || of_scenario().any(|(_, cut)| cut.has == has) {
            return;
        }
        let outside = |ranks: &Vec<u32>| ranks.iter().filter(|&&rank| !has[rank as usize]).count() as u32;
        let outside: Vec<u32> = self.ranks_of.iter().map(outside).collect();
        let confined =
            outside.iter().zip(&self.scenarios.loads[scenario]).filter(|&(&outside, _)| outside == 0);
        let confined = confined.map(|(_, load)| load).sum();
        let num_ranks = self.split.confined().len() as f64;
        let cut = Cut { scenario, has, num_ranks, outside, confined };
        let weakest = of_scenario().min_by(|(_, a), (_, b)| a.min_load().total_cmp(&b.min_load()));
        match weakest {
            Some((weakest, _)) if of_scenario().count() >= CUTS => self.cuts[weakest] = cut,
            _ => self.cuts.push(cut),
        }
    }
}

/// The effect of a change.
enum Outcome {
    /// The ranks that confine each scenario.
    Better(Vec<Vec<u32>>),
    WorseIn(usize),
    WorseEvenSplit,
}

/// Slots that take another expert, and the ranks that the two experts leave and join.
struct Change {
    slots: [Option<Filled>; 2],
    moves: [Move; 2],
}

#[derive(Clone, Copy)]
struct Filled {
    slot: usize,
    was: u32,
    is: u32,
}

#[derive(Clone, Copy)]
struct Move {
    expert: u32,
    leaves: Option<u32>,
    joins: Option<u32>,
}

impl Change {
    fn reversed(&self) -> Change {
        Change {
            slots: self
                .slots
                .map(|filled| filled.map(|Filled { slot, was, is }| Filled { slot, was: is, is: was })),
            moves: self.moves.map(|Move { expert, leaves, joins }| Move {
                expert,
                leaves: joins,
                joins: leaves,
            }),
        }
    }
}

/// Ranks that together had too much load in a scenario.
struct Cut {
    scenario: usize,
    /// `[ranks]`
    has: Vec<bool>,
    num_ranks: f64,
    /// The number of ranks outside the cut that hold each expert.
    outside: Vec<u32>,
    /// The load of experts without a replica outside.
    confined: f64,
}

impl Cut {
    /// Returns a load that one of the ranks carries at least.
    fn min_load(&self) -> f64 {
        self.confined / self.num_ranks
    }

    fn outside_after(&self, change: &Move) -> u32 {
        let is_outside = |rank: Option<u32>| u32::from(rank.is_some_and(|rank| !self.has[rank as usize]));
        self.outside[change.expert as usize] + is_outside(change.joins) - is_outside(change.leaves)
    }

    /// Returns the confined load after `change`.
    fn after(&self, change: &Change, loads: &[f64]) -> f64 {
        change.moves.iter().fold(self.confined, |confined, change| {
            let load = loads[change.expert as usize];
            match (self.outside[change.expert as usize], self.outside_after(change)) {
                (0, 1..) => confined - load,
                (1.., 0) => confined + load,
                _ => confined,
            }
        })
    }

    fn follow(&mut self, change: &Change, loads: &[f64]) {
        self.confined = self.after(change, loads);
        for change in &change.moves {
            self.outside[change.expert as usize] = self.outside_after(change);
        }
    }
}
