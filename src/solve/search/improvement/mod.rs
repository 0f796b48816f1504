//! Improves a placement in force with few changed slots.
//!
//! Each step gives a slot another expert or exchanges two slots of two ranks. It is the step with the best gain
//! per changed slot in the smooth cost, the sum over samples and ranks of (load / mean)^p, of those that take
//! load off a hot rank. The exponent rises as no step helps: 8, 16, 64. At the end the steps after the lowest
//! exact cost are dropped.
//!
//! Where no limit is met, the descent runs again from the result, as if that were in force, until a round gains
//! nothing. So a second call from the result of such a call returns no step.

mod changes;
mod costs;
mod exchanges;
mod replacements;
mod rules;
mod steps;

use self::changes::{Arrangement, Changes, Prices};
use self::costs::{ExactLoads, LayerCosts};
use self::exchanges::Exchanges;
use self::replacements::Wanted;
use self::rules::{FoundStep, Rules};
use self::steps::BestStep;
use super::lanes::Vectors;
use crate::placement::{NO_EXPERT, Shape, held_slots};

/// The squarings of each exponent.
const SQUARINGS: [u32; 3] = [3, 4, 6];

/// Where a layer may change less than this part of its slots, and has more than this number of ranks, the first
/// exponent is left out: few steps lower the most loaded ranks only.
const FEW_CHANGES: usize = 8;
const FEW_RANKS: usize = 16;

/// A placement is even if its cost is this part above 1.
const TOLERANCE: f64 = 1.5e-4;

/// A round that lowers the cost by less, in load relative to the mean, changes nothing.
const LEAST_ROUND_GAIN: f64 = 1e-4;

/// A step that gains less, in load relative to the mean, is none.
const LEAST_STEP_GAIN: f32 = 1e-5;

/// Steps of one exponent for each slot, at most. Far fewer are usual.
const STEPS_PER_SLOT: usize = 8;

/// What to improve: one layer, with its limits. The result depends only on this and the start.
pub(crate) struct Improvement<'a> {
    pub shape: Shape,
    /// The slots of each rank, `[num_ranks]`, the first ones of its row. `None`: all of them.
    pub rank_num_slots: Option<&'a [u32]>,
    /// `[num_ranks]`. Slots of a rank that is not active count as empty, and receive nothing. `None`: all are.
    pub active: Option<&'a [bool]>,
    /// `[samples][experts]`
    pub samples: &'a [&'a [f64]],
    /// The weights of the samples. Their sum is 1. Samples without load get the weight 0.
    pub sample_weights: &'a [f64],
    /// `[num_slots]`: where this is an expert, the slot keeps what it holds. `None`: no slot is pinned.
    pub pinned_experts: Option<&'a [u32]>,
    pub limits: ChangeLimits,
    pub price: ChangePrice<'a>,
}

/// Hard limits. A slot counts as changed if its rank did not hold its expert at the start. So a slot that gets
/// back its first expert counts no more, and an exchange counts as two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChangeLimits {
    /// Changed slots of the layer.
    pub of_layer: usize,
    /// Changed slots of each rank.
    pub of_rank: usize,
    /// Replicas of an expert. Steps add none beyond it.
    pub max_replicas: usize,
}

#[cfg(test)]
impl ChangeLimits {
    /// No limits.
    pub const NONE: ChangeLimits =
        ChangeLimits { of_layer: usize::MAX, of_rank: usize::MAX, max_replicas: usize::MAX };
}

/// What a changed slot has to gain, in load relative to the mean. The gain is that of the smooth cost divided by
/// its exponent, which counts large gains for less.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ChangePrice<'a> {
    /// If the start holds the expert on an active rank of the same node.
    pub same_node: f64,
    /// Otherwise.
    pub other: f64,
    /// The node of each rank, `[num_ranks]`. `None`: all are on one node.
    pub rank_to_node: Option<&'a [i32]>,
}

/// One step of an improvement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// Slots and their new experts, at most four: an expert that returns to a rank gets back its slot.
    pub changes: Vec<(u32, u32)>,
    /// Changed slots so far: see [`ChangeLimits`].
    pub num_changed: usize,
    /// The exact cost after the step: see [`Improved`].
    pub cost: f64,
}

/// The steps of an improvement. A caller may take the first ones only, best up to a step where the cost is
/// lower than at all before.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Improved {
    /// The exact cost at the start: the weighted mean over samples of the most loaded rank's load over the mean
    /// of active ranks. Load of experts without a replica counts in the mean only.
    pub cost: f64,
    /// The first steps restore experts without a replica, where the limits allow it, whatever they cost.
    pub steps: Vec<Step>,
}

impl Improvement<'_> {
    /// Improves `start`, the expert of each slot, `[num_slots]`, [`NO_EXPERT`] in empty ones.
    ///
    /// `keeps_limits` is called with the slots after each step that would be taken, and returns whether they
    /// keep the caller's further limits. It must be a pure function. The experts that ranks would receive by a
    /// refused step are not tried again.
    pub fn run(&self, start: &[u32], keeps_limits: &dyn Fn(&[u32]) -> bool) -> Improved {
        self.run_with(Vectors::detect(), start, keeps_limits)
    }

    fn run_with(&self, vectors: Vectors, start: &[u32], keeps_limits: &dyn Fn(&[u32]) -> bool) -> Improved {
        let (start, exact) = (self.usable(start), ExactLoads::new(self));
        let counts = self.counts(&start);
        let cost = self.exact_cost(&exact, &start, &counts);
        let may_change = self.limits.of_layer > 0 && self.limits.of_rank > 0;
        // No changes gain more than what makes the ranks even.
        let is_too_dear = cost - exact.even() <= self.price.same_node.min(self.price.other);
        let has_nothing_to_gain = is_even(cost, &exact) || is_too_dear;
        if !may_change || has_nothing_to_gain && counts.iter().all(|&count| count > 0) {
            return Improved { cost, steps: Vec::new() };
        }
        let is_pinned = |&expert: &u32| expert != NO_EXPERT;
        let costs = LayerCosts::new(self, &exact, vectors);
        let exchanges = Exchanges::new(&costs);
        let mut run = Run {
            improvement: self,
            keeps_limits,
            exact: &exact,
            costs,
            is_pinned: self.pinned_experts.unwrap_or_default().iter().map(is_pinned).collect(),
            arrangement: Arrangement::new(self.shape.slots_per_rank(), start),
            since_start: Changes::new(self.shape.num_ranks()),
            exchanges,
            wanted: Wanted::default(),
            refused: Vec::new(),
            steps: Vec::new(),
            taken: Vec::new(),
        };
        run.restore_experts();
        while run.round() && !run.is_full() {}
        Improved { cost, steps: run.steps }
    }

    /// Returns the exact cost of other slots: see [`Improved::cost`].
    pub fn cost(&self, slots: &[u32]) -> f64 {
        let slots = self.usable(slots);
        self.exact_cost(&ExactLoads::new(self), &slots, &self.counts(&slots))
    }

    fn exact_cost(&self, exact: &ExactLoads, slots: &[u32], counts: &[u32]) -> f64 {
        let replica_loads = exact.replica_loads(counts);
        let mut rank_loads = vec![0.0; self.shape.num_ranks() * self.samples.len()];
        for (rank, sums) in rank_loads.chunks_exact_mut(self.samples.len()).enumerate() {
            exact.sum_rank(&slots[self.slots_of(rank)], &replica_loads, sums);
        }
        exact.cost(&rank_loads)
    }

    fn counts(&self, slots: &[u32]) -> Vec<u32> {
        let mut counts = vec![0; self.shape.num_experts()];
        held_slots(slots).for_each(|(_, expert)| counts[expert as usize] += 1);
        counts
    }

    /// The slots that a rank may use.
    fn slots_of(&self, rank: usize) -> std::ops::Range<usize> {
        let width = self.shape.slots_per_rank();
        let held = match self.active.is_none_or(|active| active[rank]) {
            true => self.rank_num_slots.map_or(width, |slots| slots[rank] as usize),
            false => 0,
        };
        rank * width..rank * width + held
    }

    /// Returns the slots with those emptied that no rank may use.
    fn usable(&self, slots: &[u32]) -> Vec<u32> {
        let mut usable = vec![NO_EXPERT; slots.len()];
        for rank in 0..self.shape.num_ranks() {
            usable[self.slots_of(rank)].copy_from_slice(&slots[self.slots_of(rank)]);
        }
        usable
    }
}

fn is_even(cost: f64, exact: &ExactLoads) -> bool {
    cost <= exact.even() * (1.0 + TOLERANCE)
}

/// The progress of [`Improvement::run`].
struct Run<'r, 'a> {
    improvement: &'r Improvement<'a>,
    keeps_limits: &'r dyn Fn(&[u32]) -> bool,
    exact: &'r ExactLoads,
    costs: LayerCosts<'r>,
    /// `[slots]`, or empty.
    is_pinned: Vec<bool>,
    exchanges: Exchanges,
    wanted: Wanted,
    /// The slots, by the start.
    arrangement: Arrangement,
    since_start: Changes,
    /// Ranks and experts that they may not receive.
    refused: Vec<(usize, u32)>,
    steps: Vec<Step>,
    /// What each step replaced.
    taken: Vec<FoundStep>,
}

/// The point to which a round returns.
#[derive(Clone, Copy)]
struct Kept {
    num_steps: usize,
    /// With the price of the round's changes.
    cost: f64,
}

/// What became of the best step.
enum Outcome {
    Taken,
    Refused,
    /// There is none.
    Nothing,
}

impl Run<'_, '_> {
    /// Gives experts without a replica one each, as the limits allow.
    fn restore_experts(&mut self) {
        let counts = self.improvement.counts(self.arrangement.slots());
        let without: Vec<usize> = (0..counts.len()).filter(|&expert| counts[expert] == 0).collect();
        if without.is_empty() {
            return;
        }
        self.costs.restart(self.arrangement.slots());
        self.costs.rescale(SQUARINGS[0]);
        let (prices, mut changes) = (Prices::NONE, Changes::new(self.improvement.shape.num_ranks()));
        for expert in without {
            while let Outcome::Refused = self.step(&mut changes, &prices, Some(expert as u32)) {}
        }
    }

    /// Descends from the present slots. Returns whether that lowered the cost.
    fn round(&mut self) -> bool {
        let prices = Prices::new(self.improvement, self.arrangement.slots());
        let mut changes = Changes::new(self.improvement.shape.num_ranks());
        self.costs.restart(self.arrangement.slots());
        let first = self.kept(self.costs.exact_cost());
        let mut best = first;
        for (stage, &squarings) in self.squarings().iter().enumerate() {
            if stage > 0 && self.is_full() {
                break;
            }
            self.costs.rescale(squarings);
            for _ in 0..STEPS_PER_SLOT * self.arrangement.slots().len() {
                if is_even(best.cost, self.exact) {
                    break;
                }
                match self.step(&mut changes, &prices, None) {
                    Outcome::Nothing => break,
                    Outcome::Refused => continue,
                    Outcome::Taken => (),
                }
                let cost = self.steps.last().map_or(0.0, |step| step.cost) + changes.price(&prices);
                if cost < best.cost {
                    best = self.kept(cost);
                }
            }
        }
        let has_gained = first.cost - best.cost > LEAST_ROUND_GAIN;
        let kept = if has_gained { best } else { first };
        if kept.num_steps < self.steps.len() {
            self.return_to(kept);
        }
        has_gained
    }

    /// The squarings of each exponent.
    fn squarings(&self) -> &'static [u32] {
        let Improvement { shape, limits, .. } = self.improvement;
        let are_few = limits.of_layer < shape.num_slots() / FEW_CHANGES;
        if are_few && shape.num_ranks() > FEW_RANKS { &SQUARINGS[1..] } else { &SQUARINGS }
    }

    /// Returns whether the limit of the layer leaves no exchange.
    fn is_full(&self) -> bool {
        self.since_start.total() >= self.improvement.limits.of_layer.saturating_sub(1)
    }

    fn kept(&self, cost: f64) -> Kept {
        Kept { num_steps: self.steps.len(), cost }
    }

    /// Drops the steps after a kept point.
    fn return_to(&mut self, kept: Kept) {
        self.steps.truncate(kept.num_steps);
        self.taken.truncate(kept.num_steps);
        self.arrangement.restart();
        self.since_start = Changes::new(self.improvement.shape.num_ranks());
        for &replacement in self.taken.iter().flat_map(FoundStep::replacements) {
            self.arrangement.replace(replacement).for_each(drop);
            self.since_start.add(replacement);
        }
    }

    /// Takes the best step, if there is one.
    fn step(&mut self, changes: &mut Changes, prices: &Prices, restored: Option<u32>) -> Outcome {
        let rules = Rules {
            limits: self.improvement.limits,
            is_pinned: &self.is_pinned,
            since_start: &self.since_start,
            changes,
            prices,
            refused: &self.refused,
        };
        let (costs, exchanges) = (&self.costs, &mut self.exchanges);
        let wanted = &mut self.wanted;
        let found = costs.run(BestStep { costs, rules: &rules, exchanges, wanted, restored });
        let Some(found) = found else { return Outcome::Nothing };
        let mut slot_changes = Vec::new();
        for &replacement in found.replacements() {
            slot_changes.extend(self.arrangement.replace(replacement));
        }
        if !(self.keeps_limits)(self.arrangement.slots()) {
            self.refused
                .extend(found.replacements().iter().map(|replacement| (replacement.rank, replacement.taken)));
            self.return_to(self.kept(0.0));
            return Outcome::Refused;
        }
        for &replacement in found.replacements() {
            changes.add(replacement);
            self.since_start.add(replacement);
        }
        self.costs.replace(found.replacements());
        self.taken.push(found);
        self.steps.push(Step {
            changes: slot_changes,
            num_changed: self.since_start.total(),
            cost: self.costs.exact_cost(),
        });
        Outcome::Taken
    }
}

#[cfg(test)]
mod tests;
