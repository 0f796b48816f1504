//! The descent: lowers the sum over samples and ranks of (load / mean)^p, step by step.
//!
//! The maximum has no slope where several ranks of several samples are hot. This cost has one, and approaches
//! the maximum as p rises. A step exchanges two slots of two ranks, or gives a slot another expert, and never
//! adds a duplicate.
//!
//! Load of an expert off its home node adds its price.
//!
//! Loads are scaled so that the costs of a sample sum up to its weight times the norm of its rank loads.
//! That norm approaches the maximum from above. So a gain divided by p is about the gain of the weighted mean
//! of the norms.

use super::lanes::{Kernel, LANES, Lanes, Vector, Vectors, dot};
use super::random::Random;
use super::state::State;
use crate::placement::NO_EXPERT;

/// The squarings of each exponent: 8, then 16. Higher ones fit the samples better, but not later loads.
const SQUARINGS: [u32; 2] = [3, 4];

/// A smaller gain, relative to the cost, is rounding.
const LEAST_GAIN: f32 = 1e-6;

/// Replica count changes of one scan.
const CHANGES_PER_SCAN: usize = 8;

/// Random changes of each perturbation.
const CHANGES_PER_PERTURBATION: usize = 4;

/// Perturbations in a row that may fail.
const FAILURES: usize = 64;

/// Sweeps that follow a perturbation.
const SWEEPS_PER_PERTURBATION: usize = 5;

/// A placement of a layer during the descent.
pub(super) struct Descent<'a> {
    /// The placement at the start, with its loads, pins and ranks.
    start: &'a State,
    vectors: Vectors,
    squarings: u32,
    /// Lanes of one load: the samples over 16, rounded up.
    blocks: usize,
    /// `[experts][blocks]`
    loads: Vec<Lanes>,
    replica_loads: Vec<Lanes>,
    /// `[slots]`
    slots: Vec<u32>,
    counts: Vec<u32>,
    /// The load, the cost and the gradient of each rank, `[ranks][blocks]`, `[ranks]`, `[ranks][blocks]`.
    rank_loads: Vec<Lanes>,
    costs: Vec<f32>,
    gradients: Vec<Lanes>,
    /// The cost of all load of each expert off its home node, scaled as the cost is, `[experts]`. Empty if nodes
    /// do not matter.
    off_node: Vec<f32>,
    /// A number for each rank that changes with its slots.
    versions: Vec<u32>,
    /// The versions of two ranks between which no exchange helped, `[ranks][ranks]`.
    without_gain: Vec<[u32; 2]>,
    last_version: u32,
    /// Exchanges evaluated so far, and at most.
    evaluated: usize,
    effort: usize,
}

/// What an unsuccessful perturbation restores.
struct Kept {
    slots: Vec<u32>,
    counts: Vec<u32>,
    rank_loads: Vec<Lanes>,
    costs: Vec<f32>,
    gradients: Vec<Lanes>,
    versions: Vec<u32>,
}

impl<'a> Descent<'a> {
    pub fn new(start: &'a State, effort: usize) -> Self {
        let (num_ranks, num_experts) = (start.num_ranks(), start.num_experts());
        let blocks = start.num_samples().div_ceil(LANES);
        Descent {
            start,
            vectors: Vectors::detect(),
            squarings: SQUARINGS[0],
            blocks,
            loads: vec![Lanes::ZERO; num_experts * blocks],
            replica_loads: vec![Lanes::ZERO; num_experts * blocks],
            slots: start.slots().to_vec(),
            counts: (0..num_experts as u32).map(|expert| start.count(expert)).collect(),
            rank_loads: vec![Lanes::ZERO; num_ranks * blocks],
            costs: vec![0.0; num_ranks],
            gradients: vec![Lanes::ZERO; num_ranks * blocks],
            off_node: Vec::new(),
            versions: vec![0; num_ranks],
            without_gain: vec![[0; 2]; num_ranks * num_ranks],
            last_version: 0,
            evaluated: 0,
            effort,
        }
    }

    /// Improves the placement until the measure reaches `target` or the effort is spent. Returns the best
    /// slots by the exact measure.
    pub fn run(mut self, target: f64) -> Vec<u32> {
        let mut best = (self.start.cost(), self.slots.clone());
        for (stage, squarings) in (1..).zip(SQUARINGS) {
            let until = self.effort / SQUARINGS.len() * stage;
            loop {
                self.rescale(squarings);
                let before = self.cost();
                self.change_replica_counts();
                self.sweep();
                self.offer(&mut best);
                if best.0 <= target {
                    return best.1;
                }
                if before - self.cost() <= LEAST_GAIN * before || self.evaluated >= until {
                    break;
                }
            }
        }
        let mut random = Random::new(0);
        self.rescale(SQUARINGS[1]);
        let mut failures = 0;
        while self.evaluated < self.effort && best.0 > target && failures < FAILURES {
            // A shape may have no steps at all.
            self.evaluated += self.slots.len();
            let (kept, before) = (self.keep(), self.cost());
            self.perturb(&mut random);
            for _ in 0..SWEEPS_PER_PERTURBATION {
                let before = self.cost();
                self.sweep();
                self.change_replica_counts();
                if before - self.cost() <= LEAST_GAIN * before {
                    break;
                }
            }
            failures = if self.cost() < before { 0 } else { failures + 1 };
            if self.cost() > before {
                self.restore(kept);
            } else {
                self.offer(&mut best);
            }
        }
        best.1
    }

    fn offer(&self, best: &mut (f64, Vec<u32>)) {
        let cost = self.start.cost_of(&self.slots, &self.counts);
        if cost < best.0 {
            (best.0, best.1) = (cost, self.slots.clone());
        }
    }

    fn cost(&self) -> f32 {
        let mut cost: f32 = self.costs.iter().sum();
        if !self.off_node.is_empty() {
            for rank in 0..self.costs.len() {
                let slots = &self.slots[self.start.slots_of(rank)];
                cost += slots.iter().map(|&expert| self.replica_off_node(expert, rank)).sum::<f32>();
            }
        }
        cost
    }

    /// Returns the off-node cost of a replica on a rank.
    #[inline(always)]
    fn replica_off_node(&self, expert: u32, rank: usize) -> f32 {
        match self.off_node.is_empty() || self.start.is_on_home_node(expert, rank) {
            true => 0.0,
            false => self.off_node[expert as usize] / self.counts[expert as usize] as f32,
        }
    }

    /// Scales all loads for the exponent 2^squarings and the present placement.
    fn rescale(&mut self, squarings: u32) {
        self.squarings = squarings;
        let (start, num_samples) = (self.start, self.start.num_samples());
        let rank_loads = start.rank_loads_of(&self.slots, &self.counts);
        let power = |x: f64| (0..squarings).fold(x, |power, _| power * power);
        let root = |x: f64| (0..squarings).fold(x, |root, _| root.sqrt());
        for sample in 0..num_samples {
            let loads = || rank_loads[sample..].iter().step_by(num_samples);
            let max = loads().copied().fold(0.0, f64::max);
            // The norm is max * root(sum), and the mean load of a rank is the sample's weight.
            let sum: f64 = loads().map(|load| power(load / max)).sum();
            let scale = if max > 0.0 { root(max * root(sum) / sum) / max } else { 0.0 };
            let (block, lane) = (sample / LANES, sample % LANES);
            for expert in 0..self.counts.len() {
                let load = start.load(expert as u32)[sample];
                self.loads[expert * self.blocks + block].0[lane] = (load * scale) as f32;
            }
        }
        if start.has_home_nodes() {
            // A gain of the measure is that of the cost divided by the exponent.
            let price = start.off_node_price() * f64::from(1 << squarings);
            let load = |expert| start.load(expert).iter().sum::<f64>();
            self.off_node =
                (0..self.counts.len() as u32).map(|expert| (price * load(expert)) as f32).collect();
        }
        (0..self.counts.len() as u32).for_each(|expert| self.update_replica_loads(expert));
        (0..self.costs.len()).for_each(|rank| self.update_rank(rank));
    }

    fn update_replica_loads(&mut self, expert: u32) {
        let (range, part) = (self.blocks_of(expert as usize), 1.0 / self.counts[expert as usize] as f32);
        for (replica_load, load) in self.replica_loads[range.clone()].iter_mut().zip(&self.loads[range]) {
            *replica_load = Lanes(load.0.map(|load| load * part));
        }
    }

    fn blocks_of(&self, index: usize) -> std::ops::Range<usize> {
        index * self.blocks..(index + 1) * self.blocks
    }

    fn update_rank(&mut self, rank: usize) {
        let range = self.blocks_of(rank);
        self.last_version += 1;
        self.versions[rank] = self.last_version;
        self.costs[rank] = self.vectors.run(
            self.squarings,
            RankCost {
                experts: &self.slots[self.start.slots_of(rank)],
                replica_loads: &self.replica_loads,
                loads: &mut self.rank_loads[range.clone()],
                gradients: &mut self.gradients[range],
            },
        );
    }

    #[inline(always)]
    fn replica_loads_of(&self, expert: u32) -> &[Lanes] {
        &self.replica_loads[expert as usize * self.blocks..][..self.blocks]
    }

    /// Returns the cost of a rank with a part of an expert's load added.
    #[inline(always)]
    fn cost_with<V: Vector, const SQUARINGS: usize>(&self, rank: usize, expert: u32, part: f32) -> f32 {
        let loads = &self.rank_loads[rank * self.blocks..][..self.blocks];
        let added = &self.loads[expert as usize * self.blocks..][..self.blocks];
        let mut cost = V::zero();
        for (load, added) in loads.iter().zip(added) {
            let with = V::load(load).add(V::load(added).mul(V::splat(part)));
            cost = cost.add(with.power::<SQUARINGS>());
        }
        cost.sum()
    }

    #[inline(always)]
    fn holds(&self, rank: usize, expert: u32) -> bool {
        self.slots[self.start.slots_of(rank)].contains(&expert)
    }

    /// Exchanges slots between each two ranks: the best exchange of each, hot ranks first.
    fn sweep(&mut self) {
        let num_ranks = self.costs.len();
        let least_gain = LEAST_GAIN * self.cost();
        let mut order: Vec<usize> = (0..num_ranks).collect();
        order.sort_by(|&a, &b| self.costs[b].total_cmp(&self.costs[a]).then(a.cmp(&b)));
        for (place, &hot) in order.iter().enumerate() {
            for &cold in order[place + 1..].iter().rev() {
                if self.evaluated >= self.effort {
                    return;
                }
                let (low, high) = (hot.min(cold), hot.max(cold));
                let versions = [self.versions[low], self.versions[high]];
                if self.without_gain[low * num_ranks + high] == versions {
                    continue;
                }
                match self.best_exchange(hot, cold, least_gain) {
                    None => self.without_gain[low * num_ranks + high] = versions,
                    Some((slot, other)) => {
                        self.slots.swap(slot, other);
                        self.update_rank(hot);
                        self.update_rank(cold);
                    }
                }
            }
        }
    }

    /// Returns the exchange between two ranks that lowers the cost most.
    fn best_exchange(&mut self, one: usize, other: usize, least_gain: f32) -> Option<(usize, usize)> {
        let found = self.vectors.run(
            self.squarings,
            BestExchange {
                descent: self,
                ranks: [one, other],
                base: self.costs[one] + self.costs[other],
                least_gain,
            },
        );
        self.evaluated += found.evaluated;
        found.slots
    }

    /// Gives slots other experts, the best changes of one scan.
    fn change_replica_counts(&mut self) {
        let least_gain = LEAST_GAIN * self.cost();
        let (mut changes, evaluated) =
            self.vectors.run(self.squarings, ReplicaCountChanges { descent: self, least_gain });
        self.evaluated += evaluated;
        changes.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.slot.cmp(&b.slot)));
        let mut changed: Vec<u32> = Vec::new();
        for Change { slot, to, .. } in changes {
            let (from, rank) = (self.slots[slot], self.start.rank_of(slot));
            // A change of an expert changes the gains of its others.
            if changed.contains(&from) || changed.contains(&to) || self.holds(rank, to) {
                continue;
            }
            let before = self.cost();
            self.set_expert(slot, to);
            if before - self.cost() <= least_gain {
                self.set_expert(slot, from);
                continue;
            }
            changed.extend([from, to]);
            if changed.len() == 2 * CHANGES_PER_SCAN {
                break;
            }
        }
    }

    /// Gives a slot another expert.
    fn set_expert(&mut self, slot: usize, to: u32) {
        let from = std::mem::replace(&mut self.slots[slot], to);
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
        self.update_replica_loads(from);
        self.update_replica_loads(to);
        for rank in 0..self.costs.len() {
            if rank == self.start.rank_of(slot) || self.holds(rank, from) || self.holds(rank, to) {
                self.update_rank(rank);
            }
        }
    }

    fn may_give(&self, slot: usize) -> bool {
        let rank = self.start.rank_of(slot);
        self.start.may_give_of(rank, &self.slots[self.start.slots_of(rank)], self.slots[slot])
    }

    fn perturb(&mut self, random: &mut Random) {
        for _ in 0..CHANGES_PER_PERTURBATION {
            let (slot, other) = (random.below(self.slots.len()), random.below(self.slots.len()));
            let (rank, other_rank) = (self.start.rank_of(slot), self.start.rank_of(other));
            let (expert, other_expert) = (self.slots[slot], self.slots[other]);
            if expert == NO_EXPERT
                || other_expert == NO_EXPERT
                || expert == other_expert
                || self.holds(rank, other_expert)
                || !self.may_give(slot)
            {
                continue;
            }
            if random.below(2) == 0 && self.counts[expert as usize] > 1 {
                self.set_expert(slot, other_expert);
            } else if rank != other_rank && !self.holds(other_rank, expert) && self.may_give(other) {
                self.slots.swap(slot, other);
                self.update_rank(rank);
                self.update_rank(other_rank);
            }
        }
    }

    fn keep(&self) -> Kept {
        Kept {
            slots: self.slots.clone(),
            counts: self.counts.clone(),
            rank_loads: self.rank_loads.clone(),
            costs: self.costs.clone(),
            gradients: self.gradients.clone(),
            versions: self.versions.clone(),
        }
    }

    fn restore(&mut self, kept: Kept) {
        let changed: Vec<usize> =
            (0..self.counts.len()).filter(|&expert| self.counts[expert] != kept.counts[expert]).collect();
        self.slots = kept.slots;
        self.counts = kept.counts;
        self.rank_loads = kept.rank_loads;
        self.costs = kept.costs;
        self.gradients = kept.gradients;
        self.versions = kept.versions;
        changed.into_iter().for_each(|expert| self.update_replica_loads(expert as u32));
    }
}

/// Sums the loads of a rank. Returns the cost.
struct RankCost<'a> {
    experts: &'a [u32],
    replica_loads: &'a [Lanes],
    loads: &'a mut [Lanes],
    gradients: &'a mut [Lanes],
}

impl Kernel for RankCost<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> f32 {
        let blocks = self.loads.len();
        let mut cost = V::zero();
        for (block, (loads, gradients)) in self.loads.iter_mut().zip(self.gradients).enumerate() {
            let mut load = V::zero();
            for &expert in self.experts {
                load = load.add(V::load(&self.replica_loads[expert as usize * blocks + block]));
            }
            let (mut power, mut slope) = (load, V::splat((1 << SQUARINGS) as f32));
            for _ in 0..SQUARINGS {
                slope = slope.mul(power);
                power = power.mul(power);
            }
            cost = cost.add(power);
            slope.store(gradients);
            load.store(loads);
        }
        cost.sum()
    }
}

/// Finds the best exchange between two ranks.
///
/// The cost is convex. So the gain by the gradient is at least the gain, and rejects most pairs.
struct BestExchange<'d, 'a> {
    descent: &'d Descent<'a>,
    ranks: [usize; 2],
    base: f32,
    least_gain: f32,
}

struct FoundExchange {
    slots: Option<(usize, usize)>,
    evaluated: usize,
}

/// The most slots of a rank whose gains are computed at once.
const CHUNK: usize = 32;

impl Kernel for BestExchange<'_, '_> {
    type Output = FoundExchange;

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> FoundExchange {
        let BestExchange { descent, ranks: [one, other], base, least_gain } = self;
        let blocks = descent.blocks;
        let loads_of = |index: usize| index * blocks..(index + 1) * blocks;
        let (one_loads, other_loads) =
            (&descent.rank_loads[loads_of(one)], &descent.rank_loads[loads_of(other)]);
        let mut found = FoundExchange { slots: None, evaluated: 1 };
        // If all samples were even on both ranks, no exchange would gain more.
        let mut even = V::zero();
        for (one, other) in one_loads.iter().zip(other_loads) {
            let mean = V::load(one).add(V::load(other)).mul(V::splat(0.5));
            even = even.add(mean.power::<SQUARINGS>());
        }
        let on_one_node = descent.start.are_on_one_node(one, other);
        if on_one_node && base - 2.0 * even.sum() <= least_gain {
            return found;
        }
        // The off-node cost that a move from one rank to another adds.
        let off_node = |expert: u32, from: usize, to: usize| match on_one_node {
            true => 0.0,
            false => descent.replica_off_node(expert, to) - descent.replica_off_node(expert, from),
        };
        let gradients = (&descent.gradients[loads_of(one)], &descent.gradients[loads_of(other)]);
        let mut best = least_gain;
        let has_pins = descent.start.has_pins();
        let (slots, other_slots) = (descent.start.slots_of(one), descent.start.slots_of(other));
        let mut first = other_slots.start;
        while first < other_slots.end && descent.evaluated + found.evaluated < descent.effort {
            let chunk = first..other_slots.end.min(first + CHUNK);
            let mut lost = [0.0; CHUNK];
            found.evaluated += (slots.len() + chunk.len()) / 4;
            for (lost, slot) in lost.iter_mut().zip(chunk.clone()) {
                let expert = descent.slots[slot];
                *lost = gain_by_gradient::<V>(gradients, descent.replica_loads_of(expert))
                    + off_node(expert, other, one);
            }
            for slot in slots.clone() {
                let expert = descent.slots[slot];
                let load = descent.replica_loads_of(expert);
                let off_node_cost = off_node(expert, one, other);
                let most = gain_by_gradient::<V>(gradients, load) - off_node_cost;
                if descent.holds(other, expert) || has_pins && !descent.may_give(slot) {
                    continue;
                }
                for (other_slot, &lost) in chunk.clone().zip(&lost) {
                    if most - lost <= best {
                        continue;
                    }
                    found.evaluated += 1;
                    let other_expert = descent.slots[other_slot];
                    let other_load = descent.replica_loads_of(other_expert);
                    let mut cost = V::zero();
                    for block in 0..blocks {
                        let moved = V::load(&load[block]).sub(V::load(&other_load[block]));
                        let one = V::load(&one_loads[block]).sub(moved).power::<SQUARINGS>();
                        let other = V::load(&other_loads[block]).add(moved).power::<SQUARINGS>();
                        cost = cost.add(one.add(other));
                    }
                    let gain = base - cost.sum() - off_node_cost - off_node(other_expert, other, one);
                    if gain > best
                        && !descent.holds(one, other_expert)
                        && !(has_pins && !descent.may_give(other_slot))
                    {
                        (best, found.slots) = (gain, Some((slot, other_slot)));
                    }
                }
            }
            first = chunk.end;
        }
        found
    }
}

/// Returns what the first of two ranks gains, and the second loses, if a load moves, to first order.
#[inline(always)]
fn gain_by_gradient<V: Vector>(gradients: (&[Lanes], &[Lanes]), load: &[Lanes]) -> f32 {
    dot::<V>(gradients.0, load) - dot::<V>(gradients.1, load)
}

/// A slot that takes another expert.
struct Change {
    gain: f32,
    slot: usize,
    to: u32,
}

/// Finds the best expert for each slot, where the gain is above `least_gain`.
///
/// A change has three parts: what the other replicas of the slot's expert take over, what those of the new
/// expert give up, and the slot's rank. Only the last depends on both.
struct ReplicaCountChanges<'d, 'a> {
    descent: &'d Descent<'a>,
    least_gain: f32,
}

impl Kernel for ReplicaCountChanges<'_, '_> {
    type Output = (Vec<Change>, usize);

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> Self::Output {
        let (descent, least_gain) = (self.descent, self.least_gain);
        let (blocks, num_experts) = (descent.blocks, descent.counts.len());
        let mut evaluated = 0;
        let mut gained = vec![0.0; num_experts];
        let mut lost = vec![0.0; num_experts];
        let mut lost_at = vec![0.0; descent.slots.len()];
        let num_ranks = descent.costs.len();
        for rank in 0..num_ranks {
            for slot in descent.start.slots_of(rank) {
                let expert = descent.slots[slot];
                let count = descent.counts[expert as usize] as f32;
                gained[expert as usize] += descent.costs[rank]
                    - descent.cost_with::<V, SQUARINGS>(rank, expert, 1.0 / (count + 1.0) - 1.0 / count);
                evaluated += 1;
                if count > 1.0 {
                    lost_at[slot] =
                        descent.cost_with::<V, SQUARINGS>(rank, expert, 1.0 / (count - 1.0) - 1.0 / count)
                            - descent.costs[rank];
                    lost[expert as usize] += lost_at[slot];
                    evaluated += 1;
                }
            }
        }
        let off_node = OffNodeChanges::new(descent);
        // At first as if the new replica were on the home node, which costs least.
        (0..num_experts as u32).for_each(|to| gained[to as usize] -= off_node.of_more(to, true));
        let mut wanted: Vec<u32> = (0..num_experts as u32).collect();
        wanted.sort_by(|&a, &b| gained[b as usize].total_cmp(&gained[a as usize]).then(a.cmp(&b)));
        let mut changes = Vec::new();
        let mut without = vec![Lanes::ZERO; blocks];
        for rank in 0..num_ranks {
            for slot in descent.start.slots_of(rank) {
                let from = descent.slots[slot];
                if descent.counts[from as usize] < 2 || !descent.may_give(slot) {
                    continue;
                }
                let mut cost = V::zero();
                for (block, without) in without.iter_mut().enumerate() {
                    let load = V::load(&descent.rank_loads[rank * blocks + block])
                        .sub(V::load(&descent.replica_loads[from as usize * blocks + block]));
                    cost = cost.add(load.power::<SQUARINGS>());
                    load.store(without);
                }
                let others_lose = lost[from as usize] - lost_at[slot] + off_node.of_fewer(from, rank);
                let most = descent.costs[rank] - cost.sum() - others_lose;
                let mut best = Change { gain: least_gain, slot, to: NO_EXPERT };
                for &to in &wanted {
                    if gained[to as usize] + most <= best.gain
                        || descent.evaluated + evaluated >= descent.effort
                    {
                        break;
                    }
                    if to == from || descent.holds(rank, to) {
                        continue;
                    }
                    evaluated += 1;
                    let part = 1.0 / (descent.counts[to as usize] + 1) as f32;
                    let mut cost = V::zero();
                    for (block, without) in without.iter().enumerate() {
                        let load = V::load(&descent.loads[to as usize * blocks + block]);
                        let with = V::load(without).add(load.mul(V::splat(part)));
                        cost = cost.add(with.power::<SQUARINGS>());
                    }
                    let gain = gained[to as usize] - others_lose + descent.costs[rank]
                        - cost.sum()
                        - off_node.of_more_beyond_home(to, rank);
                    if gain > best.gain {
                        best = Change { gain, slot, to };
                    }
                }
                if best.to != NO_EXPERT {
                    changes.push(best);
                }
            }
        }
        (changes, evaluated)
    }
}

/// The changes of the off-node cost as experts get more or fewer replicas.
struct OffNodeChanges<'d, 'a> {
    descent: &'d Descent<'a>,
    /// Replicas off the home node, `[experts]`. Empty if nodes do not matter.
    counts: Vec<u32>,
}

impl<'d, 'a> OffNodeChanges<'d, 'a> {
    fn new(descent: &'d Descent<'a>) -> Self {
        let mut counts = Vec::new();
        if !descent.off_node.is_empty() {
            counts = vec![0; descent.counts.len()];
            for rank in 0..descent.costs.len() {
                for &expert in &descent.slots[descent.start.slots_of(rank)] {
                    counts[expert as usize] += u32::from(!descent.start.is_on_home_node(expert, rank));
                }
            }
        }
        OffNodeChanges { descent, counts }
    }

    /// Returns the off-node cost of an expert with `count` replicas, `off` of them off the home node.
    fn cost(&self, expert: u32, off: u32, count: u32) -> f32 {
        self.descent.off_node[expert as usize] * off as f32 / count as f32
    }

    /// Returns what one replica fewer adds, that on `rank`.
    fn of_fewer(&self, expert: u32, rank: usize) -> f32 {
        let Some(&off) = self.counts.get(expert as usize) else { return 0.0 };
        let count = self.descent.counts[expert as usize];
        let removed = u32::from(!self.descent.start.is_on_home_node(expert, rank));
        self.cost(expert, off - removed, count - 1) - self.cost(expert, off, count)
    }

    /// Returns what one more replica adds, on the home node or off it.
    fn of_more(&self, expert: u32, is_on_home_node: bool) -> f32 {
        let Some(&off) = self.counts.get(expert as usize) else { return 0.0 };
        let count = self.descent.counts[expert as usize];
        self.cost(expert, off + u32::from(!is_on_home_node), count + 1) - self.cost(expert, off, count)
    }

    /// Returns how much more that is on `rank` than on the home node.
    fn of_more_beyond_home(&self, expert: u32, rank: usize) -> f32 {
        match self.counts.is_empty() || self.descent.start.is_on_home_node(expert, rank) {
            true => 0.0,
            false => self.of_more(expert, false) - self.of_more(expert, true),
        }
    }
}
