//! Placements for an engine that uses the best split.
//!
//! Such an engine moves load between two ranks wherever an expert has replicas on both: the ranks are nodes
//! of a graph, linked by experts. Load stays above the mean on a set of ranks if too much of it has no
//! replica outside the set. Drift makes it another set. So a placement is measured in many scenarios of
//! drifted loads ([`super::drift`]), each with its own split.
//!
//! The cost is the sum over scenarios and ranks of (load / mean)^p. Scenarios are the lanes of a vector. A
//! split is kept for the present placement. After a change, each two ranks of an expert even out their loads
//! in turn, which approaches the best split. A change that gains nothing at the present prices of the ranks
//! cannot gain with another split either, since the cost is convex. So it is rejected without one.

use std::sync::Arc;

use super::lanes::{Kernel, LANES, Lanes, Vector, Vectors};
use super::measure::Measure;
use super::random::Random;
use crate::placement::{NO_EXPERT, Shape, held_slots};
use crate::solve::pinned::Pins;

/// The part by which the even split may get worse, for an engine that falls back to it.
const EVEN_SPLIT_LOSS: f64 = 0.01;

/// The part of proposals that change replica counts. The others exchange slots.
const REPLICA_COUNT_CHANGES: f64 = 0.4;

/// The part of proposals that start from any rank. The others start from a hot one.
const ANYWHERE: f64 = 0.1;

/// The exponent of the cost is 2 to this power.
const SQUARINGS: u32 = 6;

/// Times that all experts even out their ranks: at the start, and after a change.
const FIRST_SWEEPS: usize = 32;
const SWEEPS: usize = 3;

/// A smaller relative gain is rounding.
const LEAST_GAIN: f32 = 1e-5;

/// Proposals of which the one that may gain most is tried.
const PROPOSALS: usize = 8;

/// What a proposal and, for each slot, a new split take of the effort.
const PROPOSAL_EFFORT: f64 = 1.25;
const SPLIT_EFFORT: f64 = 0.125;

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
    pins: Option<Arc<Pins>>,
    vectors: Vectors,
    /// Lanes of one load: the scenarios over 16, rounded up.
    blocks: usize,
    /// `[experts][blocks]`
    loads: Vec<Lanes>,
    /// The factor of the loads of each scenario.
    scales: Vec<f64>,
    slots: Vec<u32>,
    /// The slots of each expert, ascending.
    slots_of: Vec<Vec<u32>>,
    split: Split,
    /// The rank loads of the samples by even split, `[samples][ranks]`.
    even_loads: Vec<f64>,
    /// The largest cost of the even split of the samples that is allowed.
    max_even_split_cost: f64,
}

/// What each slot carries of its expert's load in each scenario, and what that costs.
struct Split {
    /// `[slots][blocks]`
    portions: Vec<Lanes>,
    /// The load of each rank, and the derivative of its cost, `[ranks][blocks]`.
    rank_loads: Vec<Lanes>,
    prices: Vec<Lanes>,
    /// `[ranks]`
    costs: Vec<f32>,
}

impl Clone for Split {
    fn clone(&self) -> Self {
        let Split { portions, rank_loads, prices, costs } = self;
        Split {
            portions: portions.clone(),
            rank_loads: rank_loads.clone(),
            prices: prices.clone(),
            costs: costs.clone(),
        }
    }

    // The derived one would allocate.
    fn clone_from(&mut self, other: &Self) {
        self.portions.clone_from(&other.portions);
        self.rank_loads.clone_from(&other.rank_loads);
        self.prices.clone_from(&other.prices);
        self.costs.clone_from(&other.costs);
    }
}

impl Split {
    fn cost(&self) -> f32 {
        self.costs.iter().sum()
    }
}

impl<'a> ReplicaGraph<'a> {
    pub fn new(
        shape: Shape,
        samples: MeasuredLoads<'a>,
        scenarios: MeasuredLoads<'a>,
        slots: Vec<u32>,
        pins: Option<Arc<Pins>>,
    ) -> Self {
        let blocks = scenarios.loads.len().div_ceil(LANES);
        let mut loads = vec![Lanes::ZERO; shape.num_experts() * blocks];
        let scales = scales(scenarios.loads, shape.num_ranks());
        for (scenario, (of_experts, scale)) in scenarios.loads.iter().zip(&scales).enumerate() {
            for (expert, load) in of_experts.iter().enumerate() {
                loads[expert * blocks + scenario / LANES].0[scenario % LANES] = (load * scale) as f32;
            }
        }
        let mut slots_of = vec![Vec::new(); shape.num_experts()];
        held_slots(&slots).for_each(|(slot, expert)| slots_of[expert as usize].push(slot as u32));
        let split = Split {
            portions: vec![Lanes::ZERO; slots.len() * blocks],
            rank_loads: vec![Lanes::ZERO; shape.num_ranks() * blocks],
            prices: vec![Lanes::ZERO; shape.num_ranks() * blocks],
            costs: vec![0.0; shape.num_ranks()],
        };
        let vectors = Vectors::detect();
        let mut graph = ReplicaGraph {
            shape,
            samples,
            scenarios,
            pins,
            vectors,
            blocks,
            loads,
            scales,
            slots,
            slots_of,
            split,
            even_loads: vec![0.0; samples.loads.len() * shape.num_ranks()],
            max_even_split_cost: f64::INFINITY,
        };
        graph.update_even_loads();
        graph.max_even_split_cost = graph.even_split_cost(&graph.even_loads) * (1.0 + EVEN_SPLIT_LOSS);
        (0..shape.num_experts()).for_each(|expert| graph.split_evenly(expert));
        graph.even_out(FIRST_SWEEPS);
        graph
    }

    /// Returns the expert of each slot.
    pub fn into_slots(self) -> Vec<u32> {
        self.slots
    }

    /// Tries random changes until the effort is spent. Evaluates about `effort` proposals.
    pub fn improve(&mut self, effort: usize, random: &mut Random) {
        let mut left = effort as f64;
        let mut measure = self.measure();
        let (mut before, mut even_loads) = (self.split.clone(), Vec::new());
        while left > 0.0 {
            left -= PROPOSAL_EFFORT * PROPOSALS as f64;
            let Some((most_gain, change)) = self.best_proposal(random) else { continue };
            let least_gain = LEAST_GAIN * self.split.cost();
            if most_gain <= least_gain
                || self.even_split_cost_after(&change, &mut even_loads) > self.max_even_split_cost
            {
                continue;
            }
            left -= SPLIT_EFFORT * self.slots.len() as f64;
            before.clone_from(&self.split);
            self.apply(&change);
            for expert in [change.given, change.taken] {
                self.split_evenly(expert as usize);
            }
            self.even_out(SWEEPS);
            let changed = self.measure();
            if before.cost() - self.split.cost() > least_gain
                && (*self.scenarios.measure == Measure::Mean || changed <= measure)
            {
                measure = changed;
                self.update_even_loads();
            } else {
                self.apply(&change.reversed());
                std::mem::swap(&mut self.split, &mut before);
            }
        }
    }

    /// Returns the one of some proposals that may gain most, and a gain that it does not exceed.
    fn best_proposal(&self, random: &mut Random) -> Option<(f32, Change)> {
        let mut best: Option<(f32, Change)> = None;
        for _ in 0..PROPOSALS {
            let Some(change) = self.proposal(random) else { continue };
            let most_gain = self.most_gain(&change);
            if best.as_ref().is_none_or(|&(best, _)| most_gain > best) {
                best = Some((most_gain, change));
            }
        }
        best
    }

    /// Returns the measure of the present split, where only a quantile needs it.
    fn measure(&self) -> f64 {
        if *self.scenarios.measure == Measure::Mean {
            return 0.0;
        }
        self.scenarios.measure.of((0..self.scenarios.loads.len()).map(|scenario| {
            let of_rank = |loads: &[Lanes]| loads[scenario / LANES].0[scenario % LANES];
            let max = self.split.rank_loads.chunks_exact(self.blocks).map(of_rank).fold(0.0, f32::max);
            f64::from(max) / self.scales[scenario]
        }))
    }

    /// Proposes to exchange a slot with one of another rank, or that a slot there becomes a replica of its
    /// expert. `None` if the slots drawn do not allow it.
    fn proposal(&self, random: &mut Random) -> Option<Change> {
        let (num_ranks, width) = (self.shape.num_ranks(), self.shape.slots_per_rank());
        let rank = if random.unit() < ANYWHERE {
            random.below(num_ranks)
        } else {
            let mut place = random.unit() as f32 * self.split.cost();
            let is_reached = |cost: &f32| {
                place -= cost;
                place <= 0.0
            };
            self.split.costs.iter().position(is_reached).unwrap_or(0)
        };
        let other_rank = random.below(num_ranks);
        let (slot, other) = (rank * width + random.below(width), other_rank * width + random.below(width));
        let is_exchange = random.unit() >= REPLICA_COUNT_CHANGES;
        let (expert, other_expert) = (self.slots[slot], self.slots[other]);
        if rank == other_rank
            || expert == NO_EXPERT
            || other_expert == NO_EXPERT
            || self.held(other_rank).contains(&expert)
            || !self.may_give(other)
        {
            return None;
        }
        if is_exchange {
            let is_allowed = !self.held(rank).contains(&other_expert) && self.may_give(slot);
            is_allowed.then_some(Change { slot: Some(slot), other, given: expert, taken: other_expert })
        } else {
            let is_allowed = self.slots_of[other_expert as usize].len() > 1;
            is_allowed.then_some(Change { slot: None, other, given: expert, taken: other_expert })
        }
    }

    fn held(&self, rank: usize) -> &[u32] {
        let width = self.shape.slots_per_rank();
        &self.slots[rank * width..][..width]
    }

    fn may_give(&self, slot: usize) -> bool {
        let rank = self.shape.rank_of(slot);
        self.pins.as_ref().is_none_or(|pins| pins.may_give(rank, self.held(rank), self.slots[slot], 1))
    }

    /// Returns a gain that the change does not exceed: all load goes to the cheapest ranks at present prices.
    fn most_gain(&self, change: &Change) -> f32 {
        let rank_of = |slot: usize| self.shape.rank_of(slot) as u32;
        let (from, to) = (change.slot.map(rank_of), Some(rank_of(change.other)));
        [(change.given, from, to), (change.taken, to, from)]
            .into_iter()
            .map(|(expert, leaves, joins)| {
                let kernel = MovedLoad {
                    load: &self.loads[expert as usize * self.blocks..][..self.blocks],
                    prices: &self.split.prices,
                    slots: &self.slots_of[expert as usize],
                    width: self.shape.slots_per_rank() as u32,
                    leaves,
                    joins,
                };
                self.vectors.run(SQUARINGS, kernel)
            })
            .sum()
    }

    /// Changes the slots.
    fn apply(&mut self, change: &Change) {
        let Change { slot, other, given, taken } = *change;
        self.fill(other, given);
        if let Some(slot) = slot {
            self.fill(slot, taken);
        }
    }

    fn fill(&mut self, slot: usize, expert: u32) {
        let was = std::mem::replace(&mut self.slots[slot], expert);
        self.slots_of[was as usize].retain(|&held| held != slot as u32);
        let slots = &mut self.slots_of[expert as usize];
        let place = slots.partition_point(|&held| held < slot as u32);
        slots.insert(place, slot as u32);
    }

    fn split_evenly(&mut self, expert: usize) {
        let part = 1.0 / self.slots_of[expert].len() as f32;
        for &slot in &self.slots_of[expert] {
            for block in 0..self.blocks {
                let load = self.loads[expert * self.blocks + block].0;
                self.split.portions[slot as usize * self.blocks + block] =
                    Lanes(load.map(|load| load * part));
            }
        }
    }

    /// Improves the split, and computes costs and prices.
    fn even_out(&mut self, sweeps: usize) {
        let kernel = EvenOut {
            split: &mut self.split,
            slots_of: &self.slots_of,
            slots: &self.slots,
            width: self.shape.slots_per_rank(),
            blocks: self.blocks,
            sweeps,
        };
        self.vectors.run(SQUARINGS, kernel);
    }

    /// Computes the rank loads of the samples by even split.
    fn update_even_loads(&mut self) {
        let num_ranks = self.shape.num_ranks();
        for (loads, of_ranks) in self.samples.loads.iter().zip(self.even_loads.chunks_exact_mut(num_ranks)) {
            for (load, slots) in of_ranks.iter_mut().zip(self.slots.chunks_exact(self.shape.slots_per_rank()))
            {
                let replica_load = |(_, expert): (usize, u32)| {
                    loads[expert as usize] / self.slots_of[expert as usize].len() as f64
                };
                *load = held_slots(slots).map(replica_load).sum();
            }
        }
    }

    /// Returns the measure of the samples by even split after a change. `loads` is reused memory.
    fn even_split_cost_after(&self, change: &Change, loads: &mut Vec<f64>) -> f64 {
        loads.clone_from(&self.even_loads);
        let num_ranks = self.shape.num_ranks();
        let rank_of = |slot: usize| self.shape.rank_of(slot);
        let (from, to) = (change.slot.map(rank_of), Some(rank_of(change.other)));
        for (of_experts, of_ranks) in self.samples.loads.iter().zip(loads.chunks_exact_mut(num_ranks)) {
            for (expert, leaves, joins) in [(change.given, from, to), (change.taken, to, from)] {
                let slots = &self.slots_of[expert as usize];
                let count = slots.len() + usize::from(joins.is_some()) - usize::from(leaves.is_some());
                let load = of_experts[expert as usize];
                let (before, after) = (load / slots.len() as f64, load / count as f64);
                if count != slots.len() {
                    slots.iter().for_each(|&slot| of_ranks[rank_of(slot as usize)] += after - before);
                }
                leaves.into_iter().for_each(|rank| of_ranks[rank] -= after);
                joins.into_iter().for_each(|rank| of_ranks[rank] += after);
            }
        }
        self.even_split_cost(loads)
    }

    fn even_split_cost(&self, loads: &[f64]) -> f64 {
        let max = |of_ranks: &[f64]| of_ranks.iter().copied().fold(0.0, f64::max);
        self.samples.measure.of(loads.chunks_exact(self.shape.num_ranks()).map(max))
    }
}

/// Returns factors that make the cost of an even scenario its weight, relative to the largest weight.
fn scales(scenarios: &[Vec<f64>], num_ranks: usize) -> Vec<f64> {
    let means: Vec<f64> =
        scenarios.iter().map(|loads| loads.iter().sum::<f64>() / num_ranks as f64).collect();
    let most = means.iter().copied().fold(0.0, f64::max);
    let root = |x: f64| (0..SQUARINGS).fold(x, |root, _| root.sqrt());
    // A mean is the scenario's weight. Without load there is nothing to scale.
    means.iter().map(|&mean| if mean > 0.0 { root(mean / most) / mean } else { 1.0 }).collect()
}

/// Slot `other` holds `given` in place of `taken`, and `slot` the opposite if it is an exchange.
struct Change {
    slot: Option<usize>,
    other: usize,
    given: u32,
    taken: u32,
}

impl Change {
    fn reversed(&self) -> Change {
        Change { given: self.taken, taken: self.given, ..*self }
    }
}

/// Evens out the ranks of each expert, two at a time.
struct EvenOut<'a> {
    split: &'a mut Split,
    slots_of: &'a [Vec<u32>],
    slots: &'a [u32],
    width: usize,
    blocks: usize,
    sweeps: usize,
}

impl Kernel for EvenOut<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) {
        let EvenOut { split: Split { portions, rank_loads, prices, costs }, blocks, width, .. } = self;
        for (rank, slots) in self.slots.chunks_exact(width).enumerate() {
            for block in 0..blocks {
                let mut load = V::zero();
                for (slot, _) in held_slots(slots) {
                    load = load.add(V::load(&portions[(rank * width + slot) * blocks + block]));
                }
                load.store(&mut rank_loads[rank * blocks + block]);
            }
        }
        for _ in 0..self.sweeps {
            for slots in self.slots_of.iter().filter(|slots| slots.len() > 1) {
                // Two slots are one pair, three or more a ring.
                let num_pairs = if slots.len() == 2 { 1 } else { slots.len() };
                for pair in 0..num_pairs {
                    let (one, other) = (
                        slots[pair] as usize,
                        slots[if pair + 1 == slots.len() { 0 } else { pair + 1 }] as usize,
                    );
                    let (rank, other_rank) = (one / width, other / width);
                    if rank == other_rank {
                        continue;
                    }
                    for block in 0..blocks {
                        let (one, other) = (one * blocks + block, other * blocks + block);
                        let (rank, other_rank) = (rank * blocks + block, other_rank * blocks + block);
                        let (portion, other_portion) = (V::load(&portions[one]), V::load(&portions[other]));
                        let (load, other_load) =
                            (V::load(&rank_loads[rank]), V::load(&rank_loads[other_rank]));
                        let moved = load.sub(other_load).mul(V::splat(0.5));
                        let moved = moved.min(portion).max(V::zero().sub(other_portion));
                        portion.sub(moved).store(&mut portions[one]);
                        other_portion.add(moved).store(&mut portions[other]);
                        load.sub(moved).store(&mut rank_loads[rank]);
                        other_load.add(moved).store(&mut rank_loads[other_rank]);
                    }
                }
            }
        }
        for (rank, cost) in costs.iter_mut().enumerate() {
            let mut sum = V::zero();
            for block in rank * blocks..(rank + 1) * blocks {
                let (mut power, mut price) = (V::load(&rank_loads[block]), V::splat((1 << SQUARINGS) as f32));
                for _ in 0..SQUARINGS {
                    price = price.mul(power);
                    power = power.mul(power);
                }
                sum = sum.add(power);
                price.store(&mut prices[block]);
            }
            *cost = sum.sum();
        }
    }
}

/// Returns what an expert's load costs less at the prices of its ranks after it leaves one and joins another.
struct MovedLoad<'a> {
    load: &'a [Lanes],
    prices: &'a [Lanes],
    slots: &'a [u32],
    width: u32,
    leaves: Option<u32>,
    joins: Option<u32>,
}

impl Kernel for MovedLoad<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> f32 {
        let blocks = self.load.len();
        let mut gain = V::zero();
        for (block, load) in self.load.iter().enumerate() {
            let price = |rank: u32| V::load(&self.prices[rank as usize * blocks + block]);
            let most = V::splat(f32::MAX);
            let (mut before, mut after) = (most, self.joins.map_or(most, price));
            for &slot in self.slots {
                let rank = slot / self.width;
                before = before.min(price(rank));
                if Some(rank) != self.leaves {
                    after = after.min(price(rank));
                }
            }
            gain = gain.add(V::load(load).mul(before.sub(after)));
        }
        gain.sum()
    }
}
