//! Improves a placement in force with few changed slots.
//!
//! Each step gives a slot another expert or exchanges two slots of two ranks. It is the step with the best gain
//! per changed slot in the smooth cost, the sum over samples and ranks of (load / mean)^p. The exponent rises
//! as no step helps: 8, 16, 64. At the end the steps after the lowest exact cost are dropped.
//!
//! From the result the descent runs again, as if the result were in force, until a round gains nothing. So a
//! second call from the result of a call that met no limit returns no step.

mod changes;
mod costs;
mod steps;

use self::changes::{Arrangement, Changes, Prices, Replacement};
use self::costs::{ExactLoads, LayerCosts};
use self::steps::{BestStep, Rules};
use crate::placement::{NO_EXPERT, Shape, held_slots};

/// The squarings of each exponent.
const SQUARINGS: [u32; 3] = [3, 4, 6];

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
        let (start, exact) = (self.usable(start), ExactLoads::new(self));
        let counts = self.counts(&start);
        let cost = self.exact_cost(&exact, &start, &counts);
        if is_even(cost, &exact) && counts.iter().all(|&count| count > 0) {
            return Improved { cost, steps: Vec::new() };
        }
        let mut run = Run {
            improvement: self,
            keeps_limits,
            exact: &exact,
            costs: LayerCosts::new(self, &exact, &start),
            is_pinned: self.is_pinned(),
            arrangement: Arrangement::new(self.shape.slots_per_rank(), start, self.is_pinned()),
            since_start: Changes::new(self.shape.num_ranks()),
            refused: Vec::new(),
            steps: Vec::new(),
        };
        run.restore_experts();
        while run.round() {}
        Improved { cost, steps: run.steps }
    }

    /// Returns the exact cost of other slots: see [`Improved::cost`].
    pub fn cost(&self, slots: &[u32]) -> f64 {
        let slots = self.usable(slots);
        self.exact_cost(&ExactLoads::new(self), &slots, &self.counts(&slots))
    }

    fn exact_cost(&self, exact: &ExactLoads, slots: &[u32], counts: &[u32]) -> f64 {
        let mut rank_loads = vec![0.0; self.shape.num_ranks() * self.samples.len()];
        for (rank, sums) in rank_loads.chunks_exact_mut(self.samples.len()).enumerate() {
            exact.sum_rank(&slots[self.slots_of(rank)], counts, sums);
        }
        exact.cost(&rank_loads)
    }

    fn counts(&self, slots: &[u32]) -> Vec<u32> {
        let mut counts = vec![0; self.shape.num_experts()];
        held_slots(slots).for_each(|(_, expert)| counts[expert as usize] += 1);
        counts
    }

    /// Whether each slot is pinned, or nothing.
    fn is_pinned(&self) -> Vec<bool> {
        self.pinned_experts.unwrap_or_default().iter().map(|&expert| expert != NO_EXPERT).collect()
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
    /// The slots, by the start.
    arrangement: Arrangement,
    since_start: Changes,
    /// Ranks and experts that they may not receive.
    refused: Vec<(usize, u32)>,
    steps: Vec<Step>,
}

/// The point to which a round returns.
struct Kept {
    arrangement: Arrangement,
    since_start: Changes,
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
        let experts = 0..self.costs.counts.len();
        let without: Vec<usize> = experts.filter(|&expert| self.costs.counts[expert] == 0).collect();
        if without.is_empty() {
            return;
        }
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
        let mut best = self.kept(first.cost);
        for squarings in SQUARINGS {
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
                let cost = self.costs.exact_cost() + changes.price(&prices);
                if cost < best.cost {
                    best = self.kept(cost);
                }
            }
        }
        let has_gained = first.cost - best.cost > LEAST_ROUND_GAIN;
        let kept = if has_gained { best } else { first };
        self.steps.truncate(kept.num_steps);
        (self.arrangement, self.since_start) = (kept.arrangement, kept.since_start);
        has_gained
    }

    fn kept(&self, cost: f64) -> Kept {
        Kept {
            arrangement: self.arrangement.clone(),
            since_start: self.since_start.clone(),
            num_steps: self.steps.len(),
            cost,
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
        let found = self.costs.run(BestStep { costs: &self.costs, rules: &rules, restored });
        let Some(found) = found else { return Outcome::Nothing };
        let mut arrangement = self.arrangement.clone();
        let mut slot_changes = Vec::new();
        for &Replacement { rank, out, taken } in found.replacements() {
            let changes = arrangement.replace(rank, out, taken);
            slot_changes.extend(changes.map(|change| (change.slot, change.expert)));
        }
        if !(self.keeps_limits)(arrangement.slots()) {
            self.refused
                .extend(found.replacements().iter().map(|replacement| (replacement.rank, replacement.taken)));
            return Outcome::Refused;
        }
        self.arrangement = arrangement;
        for &replacement in found.replacements() {
            changes.add(replacement);
            self.since_start.add(replacement);
        }
        self.costs.replace(found.replacements());
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
