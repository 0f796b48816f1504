//! Improves a placement in force with few changed slots.
//!
//! Each step gives a slot another expert or exchanges two slots of two ranks. It is the step with the best gain
//! per changed slot in the smooth cost, the sum over samples and ranks of (load / mean)^p, of those that take
//! load off a hot rank and are tried: exchanges are tried by their last scores. The exponent rises as no step helps: 8, 16, 64. At the end the steps after the lowest
//! exact cost are dropped.
//!
//! Where no limit is met, the descent runs again from the result, as if that were in force, until a round gains
//! nothing. So a second call from the result of such a call returns no step.

mod changes;
mod costs;
mod exact;
mod exchanges;
mod matrix;
mod replacements;
mod rules;
mod steps;

use self::changes::{Arrangement, Changes, Prices, SlotChanges};
use self::costs::LayerCosts;
use self::exact::ExactLoads;
use self::exchanges::Exchanges;
use self::replacements::Wanted;
use self::rules::{FoundStep, Rules};
use self::steps::BestStep;
use super::lanes::Vectors;
use crate::placement::{NO_EXPERT, Shape};

/// The squarings of each exponent.
const SQUARINGS: [u32; 3] = [3, 4, LAST_SQUARINGS as u32];
const LAST_SQUARINGS: usize = 6;

/// Where a layer may change less than this part of its slots, and has more than this number of ranks, the first
/// exponent is left out: few steps lower the most loaded ranks only.
const FEW_CHANGES: usize = 8;
const FEW_RANKS: usize = 16;

/// A placement is even if its cost is this part above 1.
const TOLERANCE: f64 = 1.5e-4;

/// A step that gains less, in load relative to the mean, is none.
const LEAST_STEP_GAIN: f32 = 1e-5;

/// Steps of one exponent for each slot, at most. Far fewer are usual.
const STEPS_PER_SLOT: usize = 8;

/// Memory for one improvement after the other. No result depends on what was in it.
#[derive(Default)]
pub(crate) struct Workspace {
    costs: LayerCosts,
    exchanges: Exchanges,
    wanted: Wanted,
    hot: Vec<usize>,
    /// The slots, by the start.
    arrangement: Arrangement,
    since_start: Changes,
    since_round: Changes,
}

impl Workspace {
    /// Updates that one improvement never reaches. The clock of all must not overflow.
    const MOST_UPDATES: u32 = 1 << 31;

    fn start(&mut self, improvement: &Improvement<'_>, vectors: Vectors) {
        if self.costs.clock > Workspace::MOST_UPDATES {
            *self = Workspace::default();
        }
        self.costs.start(improvement, vectors);
        self.exchanges.start(&self.costs);
    }
}

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
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// Slots and their new experts. An expert that returns to a rank gets back its slot.
    pub changes: SlotChanges,
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
    /// Steps that lower the cost by no more are not taken.
    pub const LEAST_GAIN: f64 = 1e-4;

    /// Improves `start`, the expert of each slot, `[num_slots]`, [`NO_EXPERT`] in empty ones.
    ///
    /// `keeps_limits` is called with the slots after each step that would be taken, and returns whether they
    /// keep the caller's further limits. It must be a pure function. The experts that ranks would receive by a
    /// refused step are not tried again.
    pub fn run(
        &self,
        workspace: &mut Workspace,
        start: &[u32],
        keeps_limits: &dyn Fn(&[u32]) -> bool,
    ) -> Improved {
        self.run_with(Vectors::detect(), workspace, start, keeps_limits)
    }

    fn run_with(
        &self,
        vectors: Vectors,
        workspace: &mut Workspace,
        start: &[u32],
        keeps_limits: &dyn Fn(&[u32]) -> bool,
    ) -> Improved {
        let (num_ranks, width) = (self.shape.num_ranks(), self.shape.slots_per_rank());
        workspace.start(self, vectors);
        workspace.arrangement.start(width, start, |slots| self.empty_unusable(slots));
        workspace.costs.restart(workspace.arrangement.slots());
        let (cost, exact) = (workspace.costs.exact_cost(), &workspace.costs.exact);
        let may_change = self.limits.of_layer > 0 && self.limits.of_rank > 0;
        // No changes gain more than what makes the ranks even.
        let is_too_dear = cost - exact.even() <= self.price.same_node.min(self.price.other);
        let has_nothing_to_gain = is_even(cost, exact) || is_too_dear;
        if !may_change || has_nothing_to_gain && !workspace.costs.counts.contains(&0) {
            return Improved { cost, steps: Vec::new() };
        }
        let is_pinned = |&expert: &u32| expert != NO_EXPERT;
        workspace.since_start.restart(num_ranks, width);
        let mut run = Run {
            improvement: self,
            keeps_limits,
            is_pinned: self.pinned_experts.unwrap_or_default().iter().map(is_pinned).collect(),
            workspace,
            refused: Vec::new(),
            steps: Vec::with_capacity(self.limits.of_layer.min(self.shape.num_slots())),
            taken: Vec::with_capacity(self.limits.of_layer.min(self.shape.num_slots())),
            is_behind: false,
        };
        run.restore_experts();
        while run.round() && !run.is_full() {}
        Improved { cost, steps: run.steps }
    }

    /// Returns the exact cost of other slots: see [`Improved::cost`].
    pub fn cost(&self, workspace: &mut Workspace, slots: &[u32]) -> f64 {
        workspace.start(self, Vectors::detect());
        let width = self.shape.slots_per_rank();
        workspace.arrangement.start(width, slots, |slots| self.empty_unusable(slots));
        workspace.costs.restart(workspace.arrangement.slots());
        workspace.costs.exact_cost()
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

    /// Empties the slots that no rank may use.
    fn empty_unusable(&self, slots: &mut [u32]) {
        if self.rank_num_slots.is_some() || self.active.is_some() {
            let width = self.shape.slots_per_rank();
            for (rank, slots) in slots.chunks_exact_mut(width).enumerate() {
                slots[self.slots_of(rank).len()..].fill(NO_EXPERT);
            }
        }
    }
}

fn is_even(cost: f64, exact: &ExactLoads) -> bool {
    cost <= exact.even() * (1.0 + TOLERANCE)
}

/// The progress of [`Improvement::run`].
struct Run<'r, 'a> {
    improvement: &'r Improvement<'a>,
    keeps_limits: &'r dyn Fn(&[u32]) -> bool,
    workspace: &'r mut Workspace,
    /// `[slots]`, or empty.
    is_pinned: Vec<bool>,
    /// Ranks and experts that they may not receive.
    refused: Vec<(usize, u32)>,
    steps: Vec<Step>,
    /// What each step replaced.
    taken: Vec<FoundStep>,
    /// Whether the smooth costs are those before the last step.
    is_behind: bool,
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
    /// Gives experts without a replica one each, as the limits allow. The costs have the start.
    fn restore_experts(&mut self) {
        if !self.workspace.costs.counts.contains(&0) {
            return;
        }
        let of_layer = self.workspace.costs.counts.iter().enumerate();
        let without: Vec<usize> =
            of_layer.filter(|&(_, &count)| count == 0).map(|(expert, _)| expert).collect();
        self.workspace.costs.rescale(SQUARINGS[0]);
        self.is_behind = false;
        self.start_changes();
        for expert in without {
            while let Outcome::Refused = self.step(&Prices::NONE, Some(expert as u32)) {}
        }
        self.workspace.costs.restart(self.workspace.arrangement.slots());
    }

    fn start_changes(&mut self) {
        let shape = self.improvement.shape;
        self.workspace.since_round.restart(shape.num_ranks(), shape.slots_per_rank());
    }

    /// Descends from the present slots, which the costs have. Returns whether that lowered the cost.
    fn round(&mut self) -> bool {
        let prices = Prices::new(self.improvement, self.workspace.arrangement.slots());
        self.start_changes();
        let first = self.kept(self.workspace.costs.exact_cost());
        let mut best = first;
        for (stage, &squarings) in self.squarings().iter().enumerate() {
            if stage > 0 && self.is_full() {
                break;
            }
            self.workspace.costs.rescale(squarings);
            self.workspace.exchanges.restart(&self.workspace.costs);
            self.is_behind = false;
            for _ in 0..STEPS_PER_SLOT * self.improvement.shape.num_slots() {
                if is_even(best.cost, &self.workspace.costs.exact) {
                    break;
                }
                match self.step(&prices, None) {
                    Outcome::Nothing => break,
                    Outcome::Refused => continue,
                    Outcome::Taken => (),
                }
                let price = self.workspace.since_round.price(&prices);
                let cost = self.steps.last().map_or(0.0, |step| step.cost) + price;
                if cost < best.cost {
                    best = self.kept(cost);
                }
            }
        }
        let has_gained = first.cost - best.cost > Improvement::LEAST_GAIN;
        let kept = if has_gained { best } else { first };
        if kept.num_steps < self.steps.len() {
            self.return_to(kept);
        }
        if has_gained && !self.is_full() {
            self.workspace.costs.restart(self.workspace.arrangement.slots());
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
        self.workspace.since_start.total() >= self.improvement.limits.of_layer.saturating_sub(1)
    }

    fn kept(&self, cost: f64) -> Kept {
        Kept { num_steps: self.steps.len(), cost }
    }

    /// Drops the steps after a kept point.
    fn return_to(&mut self, kept: Kept) {
        self.steps.truncate(kept.num_steps);
        self.taken.truncate(kept.num_steps);
        let shape = self.improvement.shape;
        let Workspace { arrangement, since_start, .. } = &mut *self.workspace;
        arrangement.restart();
        since_start.restart(shape.num_ranks(), shape.slots_per_rank());
        for &replacement in self.taken.iter().flat_map(FoundStep::replacements) {
            arrangement.replace(replacement, &mut SlotChanges::default());
            since_start.add(replacement);
        }
    }

    /// Takes the best step, if there is one.
    fn step(&mut self, prices: &Prices, restored: Option<u32>) -> Outcome {
        let Workspace { costs, exchanges, wanted, hot, arrangement, since_start, since_round, .. } =
            &mut *self.workspace;
        let rules = Rules {
            limits: self.improvement.limits,
            is_pinned: &self.is_pinned,
            since_start,
            changes: since_round,
            prices,
            refused: &self.refused,
        };
        if self.is_behind {
            costs.follow();
            self.is_behind = false;
        }
        let found = costs.run(BestStep { costs, rules: &rules, exchanges, wanted, hot, restored });
        let Some(found) = found else { return Outcome::Nothing };
        let mut changes = SlotChanges::default();
        for &replacement in found.replacements() {
            arrangement.replace(replacement, &mut changes);
        }
        if !(self.keeps_limits)(arrangement.slots()) {
            self.refused
                .extend(found.replacements().iter().map(|replacement| (replacement.rank, replacement.taken)));
            self.return_to(self.kept(0.0));
            return Outcome::Refused;
        }
        for &replacement in found.replacements() {
            since_round.add(replacement);
            since_start.add(replacement);
        }
        costs.replace(found.replacements());
        self.is_behind = true;
        let (num_changed, cost) = (since_start.total(), costs.exact_cost());
        self.taken.push(found);
        self.steps.push(Step { changes, num_changed, cost });
        Outcome::Taken
    }
}

#[cfg(test)]
mod tests;
