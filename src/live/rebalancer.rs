//! The rebalancer: observes windows of counts and plans the moves that gain most.

use std::sync::Arc;

use super::Fabric;
use super::agreement::Hash;
use super::candidates::{must_change, num_lost};
use super::config::RebalancerConfig;
use super::history::History;
use super::layer_loads::Measure;
use super::layer_plan::PlannedBalance;
use super::limits::Limits;
use super::plan::{KeepReason, Plan};
use super::planning::{Planned, Planning};
use super::searched::Searched;
use crate::error::{Error, Result};
use crate::placement::{NO_EXPERT, Placement, Shape, replica_counts};

/// Numbers of a rebalancer, for logs and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RebalancerInfo {
    /// Observations, those that do not count included.
    pub observations: u64,
    /// Windows with counts.
    pub num_windows: usize,
    /// Tokens of these windows.
    pub num_tokens: u64,
    /// The number of layers that the plan in flight has yet to commit; 0 without a plan.
    pub layers_in_flight: usize,
    /// Ranks that are active.
    pub num_active_ranks: usize,
    /// Experts of all layers that no active rank holds.
    pub num_lost_experts: usize,
    /// Plans that move something.
    pub num_plans: u64,
    /// Plans that keep the placement, by reason.
    pub num_kept: [u64; KeepReason::ALL.len()],
    /// Commits of layers.
    pub num_commits: u64,
    /// Slots that received an expert by them.
    pub num_moves: u64,
    /// Balancedness of the windows in the placement in force; 0 without counts.
    pub balance: f64,
    /// What the last plan promised; 0 before the first.
    pub balance_promised: f64,
    /// Balancedness of the last window in the placement in force.
    pub balance_measured: f64,
}

/// A plan that layers are committed of.
#[derive(Debug)]
struct InFlight {
    plan: Arc<()>,
    layers_left: usize,
}

/// Observes counts and plans with few moves. It holds the placement in force. Equal calls give equal plans on every rank.
#[derive(Debug)]
pub struct Rebalancer {
    config: RebalancerConfig,
    placement: Placement,
    /// The expert of each slot in force, by layer.
    slots: Vec<Vec<u32>>,
    /// A hash of the slots of each layer.
    slot_hashes: Vec<u64>,
    generations: Vec<u64>,
    /// Slots that the planner does not change, `[layers][slots]`: pinned ones, and those that were empty at the start.
    is_fixed: Vec<Vec<bool>>,
    active: Vec<bool>,
    /// Whether a rank was inactive since the start, so that experts may have no replica.
    had_inactive: bool,
    history: History,
    /// The last search of each layer that moved nothing, for the slots in force.
    searched: Vec<Option<Searched>>,
    /// Whether balancedness fell below the trigger and has not reached the release.
    is_triggered: bool,
    /// The observation at which the last plan ended.
    last_end: Option<u64>,
    in_flight: Option<InFlight>,
    /// Tells its plans from those of others.
    identity: Arc<()>,
    counters: RebalancerInfo,
}

impl Rebalancer {
    /// Starts with the placement in force. Slots that are empty in it stay empty.
    pub fn new(config: RebalancerConfig, placement: Placement) -> Result<Self> {
        let shape = placement.shape();
        config.check(&placement)?;
        let history = History::new(
            placement.layers().len(),
            shape.num_experts(),
            config.num_windows,
            config.half_life,
            config.num_phases,
        );
        let mut rebalancer = Rebalancer {
            slots: Vec::new(),
            slot_hashes: Vec::new(),
            generations: Vec::new(),
            is_fixed: Vec::new(),
            active: vec![true; shape.num_ranks()],
            had_inactive: false,
            history,
            searched: Vec::new(),
            is_triggered: false,
            last_end: None,
            in_flight: None,
            identity: Arc::new(()),
            counters: RebalancerInfo::default(),
            config,
            placement,
        };
        rebalancer.take_placement(|_, _| true);
        Ok(rebalancer)
    }

    /// Starts from the placement. An empty slot of a layer, by its index, stays empty if `stays_empty`.
    fn take_placement(&mut self, stays_empty: impl Fn(usize, usize) -> bool) {
        self.slots = self.placement.iter().map(|(_, experts)| experts.to_vec()).collect();
        self.slot_hashes = self.slots.iter().map(|slots| Hash::of_values(slots)).collect();
        self.generations = vec![1; self.slots.len()];
        let pinned = self.config.pinned_slots.as_deref();
        let of_layer = |(index, slots): (usize, &Vec<u32>)| -> Vec<bool> {
            let is_fixed = |(slot, &expert): (usize, &u32)| match expert {
                NO_EXPERT => stays_empty(index, slot),
                _ => pinned.is_some_and(|pinned| pinned[slot]),
            };
            slots.iter().enumerate().map(is_fixed).collect()
        };
        self.is_fixed = self.slots.iter().enumerate().map(of_layer).collect();
        self.active.fill(true);
        self.had_inactive = false;
        self.searched = self.slots.iter().map(|_| None).collect();
        self.is_triggered = false;
        self.last_end = None;
        self.in_flight = None;
    }

    /// Starts again from a placement that all ranks share, without windows. Plans from before are stale. Slots that were empty
    /// at creation stay empty; other empty ones, such as those of ranks that died, may be filled.
    pub fn reset(&mut self, placement: Placement) -> Result<()> {
        let same = placement.shape() == self.placement.shape()
            && placement.layers() == self.placement.layers()
            && placement.rank_num_slots() == self.placement.rank_num_slots();
        if !same {
            return Err(Error::InvalidShape(
                "the placement has other experts, slots, ranks or layers than the rebalancer; create another rebalancer"
                    .into(),
            ));
        }
        self.config.check(&placement)?;
        self.placement = placement;
        self.history.clear();
        let was_fixed = std::mem::take(&mut self.is_fixed);
        self.take_placement(|index, slot| was_fixed[index][slot]);
        Ok(())
    }

    /// Experts, slots and ranks.
    pub fn shape(&self) -> Shape {
        self.placement.shape()
    }

    /// The layers' numbers.
    pub fn layers(&self) -> &[u32] {
        self.placement.layers()
    }

    /// The generation of each layer: 1, and one more with each commit.
    pub fn generations(&self) -> &[u64] {
        &self.generations
    }

    /// Observes a window: counts of all ranks, `[num_samples][layers][experts]`, of `num_tokens` tokens of all ranks. `None` for
    /// the phase passes time and counts nothing, for warm-up, dummy and capture steps.
    pub fn observe(
        &mut self,
        counts: &[i64],
        num_samples: usize,
        num_tokens: u64,
        phase: Option<usize>,
    ) -> Result<()> {
        let Some(phase) = phase else {
            self.history.skip();
            return Ok(());
        };
        if phase >= self.config.num_phases {
            return Err(Error::InvalidArgument(format!(
                "phase {phase}, of {} phases; set num_phases of the configuration",
                self.config.num_phases
            )));
        }
        let row = self.slots.len() * self.shape().num_experts();
        if num_samples == 0 || num_samples.checked_mul(row) != Some(counts.len()) {
            return Err(Error::InvalidArgument(format!(
                "{} counts of {num_samples} samples; each sample has {row}",
                counts.len()
            )));
        }
        let fabric = fabric(&self.placement, &self.config, &self.active);
        let num_slots = fabric.num_slots(self.placement.rank_num_slots());
        let measure_of =
            |layer: usize, loads: &[f64]| Measure::new(&fabric, num_slots, &self.slots[layer], loads);
        let layers = self.placement.layers();
        self.history.observe(counts, num_samples, num_tokens, phase, layers, measure_of)
    }

    /// Plans the moves that gain most from the placement in force, within `limits`. A plan that keeps the placement has its
    /// reason. Another one is in flight until each of its layers is committed, or it is aborted.
    pub fn plan(&mut self, limits: &Limits) -> Result<Plan> {
        limits.check()?;
        let default_layers = self.placement.layer_updates_per_iter();
        let max_layers = limits.max_layers.or((default_layers > 0).then_some(default_layers));
        let limits = Limits { max_layers, ..*limits };
        let hash = self.hash(&limits);
        let (shape, before) = (self.shape(), self.history.balance());
        let keep = |reason: KeepReason, message: String| {
            let balance = PlannedBalance { before, after: before, bound: 0.0 };
            Plan::new(shape, Some((reason, message)), Vec::new(), balance, hash)
        };
        let plan = match self.gate(before) {
            Some((reason, message)) => keep(reason, message),
            None => match self.planned(&limits)? {
                Err(reason) => keep(reason, reason.text().to_owned()),
                Ok(Planned { layers, balance }) => Plan::new(shape, None, layers, balance, hash),
            },
        };
        Ok(self.start(plan))
    }

    /// Counts a plan, and puts it in flight unless it keeps the placement.
    fn start(&mut self, plan: Plan) -> Plan {
        match plan.keep_reason() {
            Some(reason) => {
                self.counters.num_kept[reason as usize] += 1;
                // All is as even as the gates require: the next plan waits for the trigger.
                self.is_triggered &= reason != KeepReason::Balanced;
                plan
            }
            None => {
                let ticket = Arc::new(());
                self.in_flight = Some(InFlight { plan: ticket.clone(), layers_left: plan.layers().len() });
                self.counters.num_plans += 1;
                self.counters.balance_promised = plan.balance().after;
                self.is_triggered = true;
                plan.of(self.identity.clone(), ticket)
            }
        }
    }

    /// Returns why no plan is made, unless one has to be.
    fn gate(&self, balance: f64) -> Option<(KeepReason, String)> {
        let gates = &self.config.gates;
        if let Some(in_flight) = &self.in_flight {
            let message = format!(
                "a plan is in flight, with {} layers to commit; commit them or abort it",
                in_flight.layers_left
            );
            return Some((KeepReason::InFlight, message));
        }
        if self.must_change() {
            return None;
        }
        let (tokens, now) = (self.history.num_tokens(), self.history.now());
        if self.history.num_windows() == 0 || balance == 0.0 {
            return Some((KeepReason::NoCounts, "no window with counts was observed".into()));
        }
        if tokens < gates.min_tokens {
            let message = format!("{tokens} tokens were observed, min_tokens is {}", gates.min_tokens);
            return Some((KeepReason::FewTokens, message));
        }
        if let Some(passed) = self.last_end.map(|end| now - end).filter(|&passed| passed < gates.cooldown) {
            let message =
                format!("{passed} observations since the last plan ended, cooldown is {}", gates.cooldown);
            return Some((KeepReason::Cooldown, message));
        }
        let (name, enough) = match self.is_triggered {
            true => ("release", gates.release),
            false => ("trigger", gates.trigger),
        };
        if balance >= enough {
            return Some((KeepReason::Balanced, format!("balancedness is {balance:.4}, {name} is {enough}")));
        }
        None
    }

    /// Whether an inactive rank is still in a table, or an expert has no replica.
    fn must_change(&self) -> bool {
        let fabric = fabric(&self.placement, &self.config, &self.active);
        self.had_inactive && self.slots.iter().any(|slots| must_change(&fabric, slots))
    }

    fn planned(&mut self, limits: &Limits) -> Result<std::result::Result<Planned, KeepReason>> {
        let planning = Planning {
            config: &self.config,
            fabric: &fabric(&self.placement, &self.config, &self.active),
            placement: &self.placement,
            slots: &self.slots,
            generations: &self.generations,
            is_fixed: &self.is_fixed,
            had_inactive: self.had_inactive,
            history: &self.history,
            limits,
        };
        planning.run(&mut self.searched)
    }

    /// What a plan depends on.
    fn hash(&self, limits: &Limits) -> Hash {
        let mut hash = Hash::new();
        hash.add_all(self.slot_hashes.iter().copied());
        hash.add_all(self.generations.iter().copied());
        hash.add_all(self.active.iter().map(|&active| u64::from(active)));
        hash.add_all(limits.words());
        hash.add_all(self.config.gates.words());
        hash.add_all([u64::from(self.is_triggered), self.last_end.map_or(u64::MAX, |end| end)]);
        self.history.add_to(&mut hash);
        hash
    }

    /// Notes that the next commit of a plan's layer is in force: its next table of [`LayerPlan::num_commits`](super::LayerPlan::num_commits).
    pub fn commit_layer(&mut self, plan: &Plan, layer: u32) -> Result<()> {
        self.check_own(plan)?;
        let of_layer = plan.layer(layer)?;
        let is_in_flight = self.in_flight.as_ref().is_some_and(|in_flight| plan.has_ticket(&in_flight.plan));
        let index =
            self.layers().binary_search(&layer).map_err(|_| Error::Internal("a planned layer".into()))?;
        let commit = self.generations[index].wrapping_sub(of_layer.generation()) as usize;
        let is_next = commit < of_layer.num_commits() && of_layer.update(commit).from == self.slots[index];
        if !is_in_flight {
            return Err(Error::Stale(format!(
                "layer {layer}: the plan has ended: it was committed, aborted, or the active ranks changed; plan again"
            )));
        }
        if !is_next {
            return Err(Error::Stale(format!(
                "layer {layer} is of generation {}, and the plan's commits are of {} to {}; plan again",
                self.generations[index],
                of_layer.generation(),
                of_layer.generation() + of_layer.num_commits() as u64 - 1
            )));
        }
        self.slots[index] = of_layer.update(commit).to.to_vec();
        self.generations[index] += 1;
        self.measure(index);
        self.counters.num_commits += 1;
        if commit + 1 == of_layer.num_commits() {
            self.counters.num_moves += of_layer.num_moves() as u64;
            let left = self.in_flight.as_mut().map_or(0, |in_flight| {
                in_flight.layers_left -= 1;
                in_flight.layers_left
            });
            if left == 0 {
                self.end();
            }
        }
        Ok(())
    }

    /// Measures a layer anew, whose slots or ranks have changed.
    fn measure(&mut self, index: usize) {
        let fabric = fabric(&self.placement, &self.config, &self.active);
        let (slots, num_slots) = (&self.slots[index], fabric.num_slots(self.placement.rank_num_slots()));
        self.history.measure(index, |loads| Measure::new(&fabric, num_slots, slots, loads));
        self.slot_hashes[index] = Hash::of_values(slots);
        self.searched[index] = None;
    }

    fn end(&mut self) {
        self.in_flight = None;
        self.last_end = Some(self.history.now());
    }

    /// Ends a plan before all its layers are committed; `None`: that in flight. The next plan starts from what is in force. Does
    /// nothing for a plan that has ended.
    pub fn abort(&mut self, plan: Option<&Plan>) -> Result<()> {
        plan.map_or(Ok(()), |plan| self.check_own(plan))?;
        let is_meant = |in_flight: &InFlight| plan.is_none_or(|plan| plan.has_ticket(&in_flight.plan));
        if self.in_flight.as_ref().is_some_and(is_meant) {
            self.end();
        }
        Ok(())
    }

    fn check_own(&self, plan: &Plan) -> Result<()> {
        if plan.keep_reason().is_none() && !plan.is_owned_by(&self.identity) {
            return Err(Error::InvalidArgument("the plan is not of this rebalancer".into()));
        }
        Ok(())
    }

    /// The placement in force.
    pub fn placement(&self) -> Result<Placement> {
        let placement = Placement::with_empty_slots(
            self.shape(),
            Some(self.placement.rank_num_slots()),
            self.layers(),
            &self.slots.concat(),
        )?;
        Ok(placement.with_layer_updates_per_iter(self.placement.layer_updates_per_iter()))
    }

    /// Sets which ranks are active, `[num_ranks]`. If each expert has a replica on one, the slots of other ranks become empty,
    /// as in a dispatch. Otherwise slots stay, and the next plan loads the lost experts. The plan in flight becomes stale.
    ///
    /// Fails with [`Error::NoReplica`] if the active ranks have too few slots for all experts.
    pub fn set_active_ranks(&mut self, active: &[bool]) -> Result<()> {
        let shape = self.shape();
        if active.len() != shape.num_ranks() {
            return Err(Error::InvalidArgument(format!(
                "{} ranks, the rebalancer has {}",
                active.len(),
                shape.num_ranks()
            )));
        }
        for (layer, is_fixed) in self.layers().iter().zip(&self.is_fixed) {
            let slots = &self.slots[self.layers().binary_search(layer).unwrap_or(0)];
            let may_hold =
                |&slot: &usize| active[shape.rank_of(slot)] && (!is_fixed[slot] || slots[slot] != NO_EXPERT);
            let room = (0..shape.num_slots()).filter(may_hold).count();
            if room < shape.num_experts() {
                return Err(Error::NoReplica(format!(
                    "layer {layer}: the active ranks have {room} slots for {} experts",
                    shape.num_experts()
                )));
            }
        }
        if self.active == active {
            return Ok(());
        }
        self.active.copy_from_slice(active);
        self.had_inactive |= active.contains(&false);
        self.in_flight = None;
        let empty = |slots: &Vec<u32>| -> Vec<u32> {
            let expert = |(slot, &expert): (usize, &u32)| {
                if active[shape.rank_of(slot)] { expert } else { NO_EXPERT }
            };
            slots.iter().enumerate().map(expert).collect()
        };
        let emptied: Vec<Vec<u32>> = self.slots.iter().map(empty).collect();
        if emptied.iter().all(|slots| !replica_counts(shape, slots).contains(&0)) {
            self.slots = emptied;
        }
        (0..self.slots.len()).for_each(|index| self.measure(index));
        Ok(())
    }

    /// Balancedness of the windows of a layer, by its index, in the placement in force; 0 without counts.
    pub fn layer_balance(&self, index: usize) -> f64 {
        self.history.layer_balance(index)
    }

    /// Numbers for logs and metrics.
    pub fn info(&self) -> RebalancerInfo {
        let fabric = fabric(&self.placement, &self.config, &self.active);
        let lost = |slots: &Vec<u32>| num_lost(&fabric, slots);
        RebalancerInfo {
            observations: self.history.now(),
            num_windows: self.history.num_windows(),
            num_tokens: self.history.num_tokens(),
            layers_in_flight: self.in_flight.as_ref().map_or(0, |in_flight| in_flight.layers_left),
            num_active_ranks: self.active.iter().filter(|&&active| active).count(),
            num_lost_experts: self.slots.iter().map(lost).sum(),
            balance: self.history.balance(),
            balance_measured: self.history.last_balance(),
            ..self.counters
        }
    }
}

fn fabric<'a>(placement: &Placement, config: &'a RebalancerConfig, active: &'a [bool]) -> Fabric<'a> {
    let active = active.contains(&false).then_some(active);
    Fabric { shape: placement.shape(), nodes: config.rank_to_node.as_deref(), active }
}
