//! Placements for a run time that splits each expert's tokens over its replicas by need.
//!
//! Such a run time levels ranks along links: an expert with replicas on two ranks lets load flow between them. What is above
//! the mean is then a set of ranks that together hold too much which has no replica outside. Where load drifts from what was
//! planned, that set is another one, so the placement is measured in many scenarios of drifted loads ([`super::drift`]), each by
//! its best split ([`Split`]). Replicas and links are moved out of such sets while that lessens the measure.
//!
//! Each such set found is kept as a cut. However load is split, the set's ranks carry what is confined to them, so the cuts
//! bound a changed placement from below at the cost of a few comparisons, and most changes need no split to be dropped.

use super::measure::Measure;
use super::random::Random;
use crate::placement::{NO_EXPERT, Shape, held_slots};
use crate::solve::split::Split;

/// What the even split may lose of what it had, for an engine that has to fall back to it.
const EVEN_MAY_LOSE: f64 = 0.01;

/// Of the proposals: those that give an expert another replica in place of another expert's; the others exchange slots.
const RECOUNTS: f64 = 0.2;

/// Of the proposals: those that are not out of a set of ranks which is above the mean.
const ANYWHERE: f64 = 0.1;

/// Cuts that are kept of each scenario: more take longer to ask than they spare.
const CUTS: usize = 12;

/// Less than this is no improvement but rounding.
const LEAST_GAIN: f64 = 1e-9;

/// Loads of the layer, drifted or as they are, and what of them is to be small.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// `[rows][experts]`
    pub loads: &'a [Vec<f64>],
    pub measure: &'a Measure,
}

/// A placement of a layer while its links are searched.
pub(super) struct Linking<'a> {
    shape: Shape,
    samples: Rows<'a>,
    scenarios: Rows<'a>,
    /// The mean rank load of each scenario.
    means: Vec<f64>,
    slots: Vec<u32>,
    counts: Vec<u32>,
    /// The ranks of each expert, each once.
    ranks_of: Vec<Vec<u32>>,
    /// What the most loaded rank carries in the best split of each scenario, and which ranks together are why.
    levels: Vec<f64>,
    confined: Vec<Vec<u32>>,
    cuts: Vec<Cut>,
    split: Split,
    /// What the even split of the samples may cost.
    most_even: f64,
    /// What may still be looked at.
    left: usize,
}

impl<'a> Linking<'a> {
    pub fn new(shape: Shape, samples: Rows<'a>, scenarios: Rows<'a>, slots: Vec<u32>) -> Self {
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
        let mut linking = Linking {
            shape,
            samples,
            scenarios,
            means: scenarios.loads.iter().map(|loads| loads.iter().sum::<f64>() / num_ranks as f64).collect(),
            slots,
            counts,
            ranks_of,
            levels: vec![0.0; num_scenarios],
            confined: vec![Vec::new(); num_scenarios],
            cuts: Vec::new(),
            split: Split::new(num_ranks),
            most_even: f64::INFINITY,
            left: 0,
        };
        linking.most_even = linking.even() * (1.0 + EVEN_MAY_LOSE);
        linking.split.place(&linking.ranks_of);
        for scenario in 0..num_scenarios {
            linking.levels[scenario] = linking.split.level(&scenarios.loads[scenario], f64::INFINITY);
            linking.confined[scenario] = linking.split.confined().to_vec();
            linking.keep_cut(scenario);
        }
        linking
    }

    /// The expert of each slot.
    pub fn into_slots(self) -> Vec<u32> {
        self.slots
    }

    /// Tries changes while ranks are above the mean in some scenario. `effort` is what may be looked at, about, in slots.
    pub fn improve(&mut self, effort: usize, random: &mut Random) {
        self.left = effort;
        let mut levels = self.means.clone();
        while self.left > 0 {
            let excess: f64 = self.levels.iter().zip(&self.means).map(|(level, mean)| level - mean).sum();
            if excess <= LEAST_GAIN {
                return;
            }
            self.spend(1 + self.cuts.len() / 128);
            let Some(change) = self.proposal(excess, random) else { continue };
            let to_beat = self.scenarios.measure.of(self.levels.iter().copied()) * (1.0 - LEAST_GAIN);
            self.bound(&change, &mut levels);
            if self.scenarios.measure.of(levels.iter().copied()) >= to_beat {
                continue;
            }
            self.apply(&change);
            match self.verdict(&mut levels, to_beat) {
                Verdict::Better(confined) => {
                    self.levels.clone_from(&levels);
                    self.confined = confined;
                    for cut in &mut self.cuts {
                        cut.follow(&change, &self.scenarios.loads[cut.scenario]);
                    }
                }
                Verdict::WorseIn(scenario) => {
                    self.apply(&change.reversed());
                    self.keep_cut(scenario);
                }
                Verdict::LessEven => self.apply(&change.reversed()),
            }
        }
    }

    fn spend(&mut self, looks: usize) {
        self.left = self.left.saturating_sub(looks);
    }

    /// A slot with an expert that is confined to ranks above the mean, to be exchanged with one of another rank, or to get a
    /// replica in its place. `None` where the slots drawn do not allow it.
    fn proposal(&self, excess: f64, random: &mut Random) -> Option<Change> {
        let mut place = random.unit() * excess;
        let scenario = self.levels.iter().zip(&self.means).position(|(level, mean)| {
            place -= level - mean;
            place <= 0.0
        });
        let confined = &self.confined[scenario.unwrap_or(self.levels.len() - 1)];
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
        let (mine, theirs) = (rank * width + random.below(width), other * width + random.below(width));
        let is_exchange = random.unit() >= RECOUNTS;
        let (expert, other_expert) = (self.slots[mine], self.slots[theirs]);
        if expert == NO_EXPERT || other_expert == NO_EXPERT {
            return None;
        }
        let is_on = |expert: u32, rank: usize| self.ranks_of[expert as usize].contains(&(rank as u32));
        if is_on(expert, other) {
            return None;
        }
        let leaves = |slot: usize| {
            let rank = self.shape.rank_of(slot);
            let held = self.slots[rank * width..][..width].iter().filter(|&&held| held == self.slots[slot]);
            (held.count() == 1).then_some(rank as u32)
        };
        let came = |slot, was, is| Some(Filled { slot, was, is });
        if is_exchange {
            (!is_on(other_expert, rank)).then(|| Change {
                slots: [came(mine, expert, other_expert), came(theirs, other_expert, expert)],
                moves: [
                    Move { expert, leaves: leaves(mine), joins: Some(other as u32) },
                    Move { expert: other_expert, leaves: leaves(theirs), joins: Some(rank as u32) },
                ],
            })
        } else {
            (self.counts[other_expert as usize] > 1).then(|| Change {
                slots: [came(theirs, other_expert, expert), None],
                moves: [
                    Move { expert, leaves: None, joins: Some(other as u32) },
                    Move { expert: other_expert, leaves: leaves(theirs), joins: None },
                ],
            })
        }
    }

    /// What each scenario's level is not below once `change` is made.
    fn bound(&self, change: &Change, levels: &mut [f64]) {
        levels.copy_from_slice(&self.means);
        for cut in &self.cuts {
            let level = &mut levels[cut.scenario];
            *level = level.max(cut.after(change, &self.scenarios.loads[cut.scenario]) / cut.num_ranks);
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

    /// Splits each scenario until the measure cannot stay below `to_beat`. `levels` holds what bounds them from below, and then
    /// what they are.
    fn verdict(&mut self, levels: &mut [f64], to_beat: f64) -> Verdict {
        self.spend(self.shape.num_slots() / 32);
        if self.even() > self.most_even {
            return Verdict::LessEven;
        }
        // Those that were worst are most likely to be too bad.
        let mut order: Vec<usize> = (0..levels.len()).collect();
        order.sort_by(|&a, &b| self.levels[b].total_cmp(&self.levels[a]));
        let mut confined = vec![Vec::new(); levels.len()];
        self.split.place(&self.ranks_of);
        for scenario in order {
            self.spend(self.shape.num_slots() / 32);
            let measured = self.scenarios.measure.of(levels.iter().copied());
            let enough = self.scenarios.measure.room(levels[scenario], measured, to_beat);
            levels[scenario] = self.split.level(&self.scenarios.loads[scenario], enough);
            if self.scenarios.measure.of(levels.iter().copied()) >= to_beat {
                return Verdict::WorseIn(scenario);
            }
            confined[scenario] = self.split.confined().to_vec();
        }
        Verdict::Better(confined)
    }

    /// What is to be small, where each expert's load is split evenly over its slots.
    fn even(&self) -> f64 {
        let mut rank_loads = vec![0.0; self.shape.num_ranks()];
        self.samples.measure.of(self.samples.loads.iter().map(|loads| {
            for (load, slots) in
                rank_loads.iter_mut().zip(self.slots.chunks_exact(self.shape.slots_per_rank()))
            {
                let weight = |&expert: &u32| loads[expert as usize] / f64::from(self.counts[expert as usize]);
                *load = slots.iter().filter(|&&expert| expert != NO_EXPERT).map(weight).sum();
            }
            rank_loads.iter().copied().fold(0.0, f64::max)
        }))
    }

    /// Keeps the ranks that the last split found to be too loaded, in place of the cut that says least.
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
        let weakest = of_scenario().min_by(|(_, a), (_, b)| a.level().total_cmp(&b.level()));
        match weakest {
            Some((weakest, _)) if of_scenario().count() >= CUTS => self.cuts[weakest] = cut,
            _ => self.cuts.push(cut),
        }
    }
}

/// What came of a change.
enum Verdict {
    /// With these ranks confining each scenario's level.
    Better(Vec<Vec<u32>>),
    WorseIn(usize),
    LessEven,
}

/// Slots that change their expert, and what this does to the ranks of the two experts.
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

/// Ranks that were too loaded together in a scenario.
struct Cut {
    scenario: usize,
    /// `[ranks]`
    has: Vec<bool>,
    num_ranks: f64,
    /// On how many other ranks each expert is.
    outside: Vec<u32>,
    /// The load of the experts that are on none.
    confined: f64,
}

impl Cut {
    /// What one of its ranks carries at least.
    fn level(&self) -> f64 {
        self.confined / self.num_ranks
    }

    fn outside_after(&self, change: &Move) -> u32 {
        let is_outside = |rank: Option<u32>| u32::from(rank.is_some_and(|rank| !self.has[rank as usize]));
        self.outside[change.expert as usize] + is_outside(change.joins) - is_outside(change.leaves)
    }

    /// What will be confined to it.
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
