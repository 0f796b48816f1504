//! What a layer may become: its placements after so many moves, each with a lower cost than all before.

use super::history::Sample;
use super::keep_slots::keep_slots;
use super::layer_loads::{cost, noise};
use super::limits::{Gates, Limits};
use super::sources::copies;
use super::{Fabric, KeepReason};
use crate::placement::{NO_EXPERT, held_slots, replica_counts};
use crate::solve::{ChangeLimits, ChangePrice, Improvement, Loads, SolveConfig, solve};

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
    pub samples: &'a [Sample<'a>],
    pub max_replicas: usize,
    pub gates: &'a Gates,
    pub limits: &'a Limits,
}

/// A placement that the layer may get.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    /// In any order within a rank.
    pub slots: Vec<u32>,
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
}

impl Layer<'_> {
    pub fn candidates(&self) -> Candidates {
        let cost = cost(self.fabric, self.slots, self.samples);
        let num_lost = self.num_lost(self.slots);
        let mut found = Candidates { num_lost, cost, list: Vec::new(), reason: KeepReason::NoMove };
        let least_gain = self.gates.min_gain.max(self.gates.min_relative_gain * (cost - 1.0)).max(0.0);
        let noise = match self.gates.noise {
            negative if negative < 0.0 => 0.0,
            deviations => noise(self.fabric, self.slots, self.samples, deviations),
        };
        let must_change = num_lost > 0 || self.usable() != self.slots;
        if !must_change && cost - 1.0 < least_gain.max(noise) {
            found.reason = if noise > least_gain { KeepReason::Noise } else { KeepReason::SmallGain };
            return found;
        }
        let best = self.improve(must_change, &mut found.list);
        found.list.retain(|candidate| {
            must_change || cost - candidate.cost >= least_gain.max(noise) && candidate.cost < cost
        });
        if found.list.is_empty() && best < cost {
            found.reason = if cost - best < noise { KeepReason::Noise } else { KeepReason::SmallGain };
        }
        found
    }

    /// Lists the placements that are better than all before. Returns the lowest cost.
    fn improve(&self, must_change: bool, list: &mut Vec<Candidate>) -> f64 {
        // Equal samples are one, so that a load that stays gives the same as before.
        let (mut loads, mut weights): (Vec<&[f64]>, Vec<f64>) = (Vec::new(), Vec::new());
        for sample in self.samples {
            match loads.iter().position(|loads| *loads == sample.loads) {
                Some(same) => weights[same] += sample.weight,
                None => {
                    loads.push(sample.loads);
                    weights.push(sample.weight);
                }
            }
        }
        let pinned: Vec<u32> =
            self.is_fixed.iter().map(|&is_fixed| if is_fixed { 0 } else { NO_EXPERT }).collect();
        let moves = |limit: Option<u32>| limit.map_or(usize::MAX, |limit| limit as usize);
        let mean = self.mean_load();
        let price = |price: f64| if mean > 0.0 { price / (self.limits.horizon * mean) } else { 0.0 };
        let improvement = Improvement {
            shape: self.fabric.shape,
            rank_num_slots: Some(self.rank_num_slots),
            active: self.fabric.active,
            samples: &loads,
            sample_weights: &weights,
            pinned_experts: Some(&pinned),
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
        let doubles = self.doubles_of_fixed();
        let keeps_limits = |slots: &[u32]| {
            let copies = || copies(self.fabric, self.limits.buffering, self.slots, slots, Some(&pairs_left));
            doubles.iter().all(|&fixed| self.holds(slots, fixed))
                && (most_of_pair == usize::MAX || copies().is_some())
        };
        let usable = self.usable();
        let improved = improvement.run(&usable, &keeps_limits);
        let (mut slots, mut num_moves) = (usable, 0);
        let mut best = (self.num_lost(&slots), improved.cost);
        let candidate = |slots: &[u32], num_moves: usize, (num_lost, cost): (usize, f64)| Candidate {
            slots: slots.to_vec(),
            num_moves,
            num_lost,
            cost,
        };
        if must_change {
            list.push(candidate(&slots, 0, best));
        }
        for step in improved.steps {
            for (slot, expert) in step.changes {
                slots[slot as usize] = expert;
            }
            let this = (self.num_lost(&slots), step.cost);
            if this < best {
                // Later steps may take moves back.
                while list.last().is_some_and(|last| last.num_moves >= step.num_changed && num_moves > 0) {
                    list.pop();
                }
                best = this;
                num_moves = step.num_changed;
                list.push(candidate(&slots, num_moves, this));
            }
        }
        if let Some((slots, cost)) = self.fresh(&improvement, best.1) {
            let kept = keep_slots(self.fabric.shape, self.slots, &slots, |slot| self.is_fixed[slot]);
            let changed = held_slots(&kept).filter(|&(slot, expert)| self.slots[slot] != expert).count();
            list.push(candidate(&kept, changed, (0, cost)));
            best.1 = cost;
        }
        best.1
    }

    /// Returns a placement by search, improved until nothing more helps, if there is no limit and it is clearly better.
    fn fresh(&self, improvement: &Improvement, cost: f64) -> Option<(Vec<u32>, f64)> {
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
        for (slot, expert) in
            improvement.run(&slots, &|_| true).steps.into_iter().flat_map(|step| step.changes)
        {
            slots[slot as usize] = expert;
        }
        let fresh = improvement.cost(&slots);
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
    fn mean_load(&self) -> f64 {
        let of_sample = |sample: &Sample| sample.weight * sample.loads.iter().sum::<f64>();
        self.samples.iter().map(of_sample).sum::<f64>() / self.fabric.num_active() as f64
    }

    /// The slots without those of inactive ranks.
    fn usable(&self) -> Vec<u32> {
        let is_active = |slot: usize| self.fabric.is_active(self.fabric.shape.rank_of(slot));
        let expert = |(slot, &expert): (usize, &u32)| if is_active(slot) { expert } else { NO_EXPERT };
        self.slots.iter().enumerate().map(expert).collect()
    }

    fn num_lost(&self, slots: &[u32]) -> usize {
        let mut is_held = vec![false; self.fabric.shape.num_experts()];
        for (slot, expert) in held_slots(slots) {
            is_held[expert as usize] |= self.fabric.is_active(self.fabric.shape.rank_of(slot));
        }
        is_held.iter().filter(|&&is_held| !is_held).count()
    }
}
