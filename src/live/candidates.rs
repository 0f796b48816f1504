//! What a layer may become: its placements after so many moves, each with a lower cost than all before.

use super::keep_slots::keep_slots;
use super::layer_loads::{Measure, Sample};
use super::limits::{Gates, Limits};
use super::sources::{Memory, copies};
use super::{Fabric, KeepReason};
use crate::placement::{NO_EXPERT, held_slots, replica_counts};
use crate::solve::{ChangeLimits, ChangePrice, Improvement, Loads, SolveConfig, Step, Workspace, solve};

/// A placement by search must be better by this much in max / mean, since it moves almost all experts.
const LEAST_FRESH_GAIN: f64 = 5e-4;

/// A layer, and what it is planned from.
pub(super) struct Layer<'a> {
    pub fabric: &'a Fabric<'a>,
    pub rank_num_slots: &'a [u32],
    /// The expert of each slot in force.
    pub slots: &'a [u32],
    /// Whether a slot keeps what it holds, `[slots]`.
    pub is_fixed: &'a [bool],
    /// In the placement in force.
    pub measure: Measure,
    /// Whether inactive ranks hold slots, or experts have no replica.
    pub must_change: bool,
    pub max_replicas: usize,
    pub gates: &'a Gates,
    pub limits: &'a Limits,
}

/// A placement that the layer may get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// Steps from the start to it. `None`: it is the fresh one.
    num_steps: Option<usize>,
    /// The slots that receive an expert once those that stay keep their slots.
    pub num_moves: usize,
    /// Experts without a replica on an active rank.
    pub num_lost: usize,
    pub cost: f64,
}

/// The placements of a layer by rising moves and falling cost.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidates {
    pub num_lost: usize,
    pub cost: f64,
    pub list: Vec<Candidate>,
    /// Why the list is empty.
    pub reason: KeepReason,
    /// The lowest cost that a search found; that in force without a search.
    pub lowest_cost: f64,
    /// The slots in force without those of inactive ranks, where some are.
    start: Option<Vec<u32>>,
    steps: Vec<Step>,
    /// A placement by search.
    fresh: Vec<u32>,
}

impl Candidates {
    /// None, for a reason.
    pub fn none(cost: f64, reason: KeepReason) -> Self {
        Candidates {
            num_lost: 0,
            cost,
            list: Vec::new(),
            reason,
            lowest_cost: cost,
            start: None,
            steps: Vec::new(),
            fresh: Vec::new(),
        }
    }

    /// The slots of a candidate, in any order within a rank, from those in force.
    pub fn slots(&self, index: usize, in_force: &[u32]) -> Vec<u32> {
        let Some(num_steps) = self.list[index].num_steps else { return self.fresh.clone() };
        let mut slots = self.start.as_deref().unwrap_or(in_force).to_vec();
        for &(slot, expert) in self.steps[..num_steps].iter().flat_map(|step| step.changes.iter()) {
            slots[slot as usize] = expert;
        }
        slots
    }
}

impl Layer<'_> {
    /// What a layer has to gain in max / mean.
    fn least_gain(&self) -> f64 {
        self.gates.min_gain.max(self.gates.min_relative_gain * (self.measure.cost - 1.0)).max(0.0)
    }

    /// What a layer may gain by sampling noise.
    fn noise(&self) -> f64 {
        match self.gates.noise {
            negative if negative < 0.0 => 0.0,
            deviations => self.measure.noise(self.fabric, deviations),
        }
    }

    /// Returns why the layer keeps its slots, if the lowest cost that it may reach gains too little.
    pub fn reason(&self, lowest_cost: f64) -> Option<KeepReason> {
        let (least_gain, noise, gain) = (self.least_gain(), self.noise(), self.measure.cost - lowest_cost);
        match gain {
            gain if gain < noise => Some(KeepReason::Noise),
            gain if gain < least_gain => Some(KeepReason::SmallGain),
            gain if gain <= Improvement::LEAST_GAIN => Some(KeepReason::NoMove),
            _ => None,
        }
    }

    /// Searches placements for `samples`.
    pub fn search(&self, samples: &[Sample], workspace: &mut Workspace) -> Candidates {
        let (cost, must_change) = (self.measure.cost, self.must_change);
        let mut found = Candidates::none(cost, KeepReason::NoMove);
        found.num_lost = if must_change { num_lost(self.fabric, self.slots) } else { 0 };
        self.improve(samples, workspace, &mut found);
        let least_gain = self.least_gain().max(self.noise());
        found
            .list
            .retain(|candidate| must_change || cost - candidate.cost >= least_gain && candidate.cost < cost);
        if found.list.is_empty() && found.lowest_cost < cost {
            found.reason = self.reason(found.lowest_cost).unwrap_or(KeepReason::NoMove);
        }
        found
    }

    /// Lists the placements that are better than all before.
    fn improve(&self, samples: &[Sample], workspace: &mut Workspace, found: &mut Candidates) {
        let loads: Vec<&[f64]> = samples.iter().map(|sample| sample.loads).collect();
        let weights: Vec<f64> = samples.iter().map(|sample| sample.weight).collect();
        let pinned: Option<Vec<u32>> =
            self.is_fixed.iter().fold(false, |any, &is_fixed| any | is_fixed).then(|| {
                self.is_fixed.iter().map(|&is_fixed| if is_fixed { 0 } else { NO_EXPERT }).collect()
            });
        let moves = |limit: Option<u32>| limit.map_or(usize::MAX, |limit| limit as usize);
        let has_price = self.limits.node_price + self.limits.remote_price > 0.0;
        let mean = if has_price { self.mean_load(samples) } else { 0.0 };
        let price = |price: f64| if mean > 0.0 { price / (self.limits.horizon * mean) } else { 0.0 };
        let improvement = Improvement {
            shape: self.fabric.shape,
            rank_num_slots: Some(self.rank_num_slots),
            active: self.fabric.active,
            samples: &loads,
            sample_weights: &weights,
            pinned_experts: pinned.as_deref(),
            limits: ChangeLimits {
                of_layer: moves(self.limits.max_layer_moves).min(moves(self.limits.max_moves)),
                of_rank: moves(self.limits.max_rank_moves),
                max_replicas: self.max_replicas,
            },
            price: ChangePrice {
                same_node: price(self.limits.node_price),
                other: price(self.limits.remote_price),
                rank_to_node: self.fabric.nodes,
            },
        };
        let most_of_pair = moves(self.limits.max_pair_moves);
        let pairs_left = |_: usize, _: usize| most_of_pair;
        let doubles = if pinned.is_some() { self.doubles_of_fixed() } else { Vec::new() };
        let keeps_limits = |slots: &[u32]| {
            let copies = || {
                let (buffering, mut memory) = (self.limits.buffering, Memory::default());
                copies(self.fabric, buffering, self.slots, slots, Some(&pairs_left), &mut memory)
            };
            doubles.iter().all(|&fixed| self.holds(slots, fixed))
                && (most_of_pair == usize::MAX || copies().is_some())
        };
        found.start = self.fabric.active.is_some().then(|| self.usable());
        let start = found.start.as_deref().unwrap_or(self.slots);
        found.list.reserve(usize::min(8, improvement.limits.of_layer));
        let improved = improvement.run(workspace, start, &keeps_limits);
        found.steps = improved.steps;
        let (mut num_moves, mut num_lost) = (0, found.num_lost);
        let mut best = (num_lost, improved.cost);
        if self.must_change {
            found.list.push(Candidate { num_steps: Some(0), num_moves, num_lost, cost: improved.cost });
        }
        let mut slots = if num_lost > 0 { start.to_vec() } else { Vec::new() };
        for (index, step) in found.steps.iter().enumerate() {
            // A step takes no last replica.
            if num_lost > 0 {
                step.changes.iter().for_each(|&(slot, expert)| slots[slot as usize] = expert);
                num_lost = self::num_lost(self.fabric, &slots);
            }
            let this = (num_lost, step.cost);
            if this < best {
                // Later steps may take moves back.
                let takes_back = |last: &Candidate| last.num_moves >= step.num_changed && num_moves > 0;
                while found.list.last().is_some_and(takes_back) {
                    found.list.pop();
                }
                best = this;
                num_moves = step.num_changed;
                found.list.push(Candidate {
                    num_steps: Some(index + 1),
                    num_moves,
                    num_lost,
                    cost: step.cost,
                });
            }
        }
        if let Some((slots, cost)) = self.fresh(&improvement, workspace, best.1) {
            let kept = keep_slots(self.fabric.shape, self.slots, slots, |slot| self.is_fixed[slot]);
            let num_moves = held_slots(&kept).filter(|&(slot, expert)| self.slots[slot] != expert).count();
            found.list.push(Candidate { num_steps: None, num_moves, num_lost: 0, cost });
            found.fresh = kept;
            best.1 = cost;
        }
        found.lowest_cost = best.1;
    }

    /// Returns a placement by search, improved until nothing more helps, if there is no limit and it is clearly better. One that
    /// costs more before that is not improved.
    fn fresh(
        &self,
        improvement: &Improvement,
        workspace: &mut Workspace,
        cost: f64,
    ) -> Option<(Vec<u32>, f64)> {
        let (shape, limits) = (self.fabric.shape, self.limits);
        let lacks_slots =
            |slot: usize| slot % shape.slots_per_rank() >= self.rank_num_slots[shape.rank_of(slot)] as usize;
        let is_limited = limits.max_layer_moves.is_some()
            || limits.are_shared()
            || limits.node_price + limits.remote_price > 0.0
            || self.fabric.active.is_some()
            || (0..shape.num_slots()).any(|slot| self.is_fixed[slot] && !lacks_slots(slot));
        if is_limited || cost - 1.0 < LEAST_FRESH_GAIN {
            return None;
        }
        let loads = improvement.samples.concat();
        let loads = Loads::new(&loads, &[0], improvement.samples.len(), shape.num_experts()).ok()?;
        let rank_num_slots =
            self.rank_num_slots.iter().any(|&slots| (slots as usize) < shape.slots_per_rank());
        let config = SolveConfig {
            sample_weights: Some(improvement.sample_weights),
            rank_num_slots: rank_num_slots.then_some(self.rank_num_slots),
            ..SolveConfig::default()
        };
        let mut slots = solve(&config, shape, &loads, 1).ok()?.layer_experts(0).ok()?.to_vec();
        if improvement.cost(workspace, &slots) >= cost {
            return None;
        }
        for step in improvement.run(workspace, &slots, &|_| true).steps {
            step.changes.iter().for_each(|&(slot, expert)| slots[slot as usize] = expert);
        }
        let fresh = improvement.cost(workspace, &slots);
        let most = replica_counts(shape, &slots).into_iter().max()? as usize;
        (fresh < cost - LEAST_FRESH_GAIN && most <= self.max_replicas).then_some((slots, fresh))
    }

    /// Where a rank holds an expert in fixed slots and in others, or has empty slots of both kinds: the rank, the expert or
    /// [`NO_EXPERT`], and the number of its fixed slots.
    fn doubles_of_fixed(&self) -> Vec<(usize, u32, usize)> {
        let mut doubles: Vec<(usize, u32, usize)> = Vec::new();
        for (slot, &expert) in self.slots.iter().enumerate().filter(|&(slot, _)| self.is_fixed[slot]) {
            let rank = self.fabric.shape.rank_of(slot);
            let width = self.fabric.shape.slots_per_rank();
            let of_rank = rank * width..(rank + 1) * width;
            let is_double = |other: usize| self.slots[other] == expert && !self.is_fixed[other];
            if !self.fabric.is_active(rank) || !of_rank.clone().any(is_double) {
                continue;
            }
            let fixed = of_rank.filter(|&other| self.slots[other] == expert && self.is_fixed[other]).count();
            if !doubles.contains(&(rank, expert, fixed)) {
                doubles.push((rank, expert, fixed));
            }
        }
        doubles
    }

    fn holds(&self, slots: &[u32], (rank, expert, times): (usize, u32, usize)) -> bool {
        let of_rank = slots.chunks_exact(self.fabric.shape.slots_per_rank()).nth(rank).unwrap_or_default();
        of_rank.iter().filter(|&&held| held == expert).count() >= times
    }

    /// The mean load of an active rank, weighted.
    fn mean_load(&self, samples: &[Sample]) -> f64 {
        let of_sample = |sample: &Sample| sample.weight * sample.loads.iter().sum::<f64>();
        samples.iter().map(of_sample).sum::<f64>() / self.fabric.num_active() as f64
    }

    /// The slots without those of inactive ranks.
    fn usable(&self) -> Vec<u32> {
        let is_active = |slot: usize| self.fabric.is_active(self.fabric.shape.rank_of(slot));
        let expert = |(slot, &expert): (usize, &u32)| if is_active(slot) { expert } else { NO_EXPERT };
        self.slots.iter().enumerate().map(expert).collect()
    }
}

/// Whether inactive ranks hold slots of a layer, or experts have no replica.
pub(super) fn must_change(fabric: &Fabric, slots: &[u32]) -> bool {
    let of_ranks = || slots.chunks_exact(fabric.shape.slots_per_rank()).enumerate();
    let is_dead = |(rank, slots): (usize, &[u32])| {
        !fabric.is_active(rank) && slots.iter().any(|&expert| expert != NO_EXPERT)
    };
    fabric.active.is_some() && of_ranks().any(is_dead) || num_lost(fabric, slots) > 0
}

/// Experts without a replica on an active rank.
pub(super) fn num_lost(fabric: &Fabric, slots: &[u32]) -> usize {
    let mut is_held = vec![false; fabric.shape.num_experts()];
    for (rank, slots) in slots.chunks_exact(fabric.shape.slots_per_rank()).enumerate() {
        if fabric.is_active(rank) {
            held_slots(slots).for_each(|(_, expert)| is_held[expert as usize] = true);
        }
    }
    is_held.iter().filter(|&&is_held| !is_held).count()
}
