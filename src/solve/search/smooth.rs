//! A placement of a layer with the smooth cost of its rank loads.
//!
//! The cost is the sum over samples and ranks of (load / mean)^p. The maximum has no slope where several ranks
//! of several samples are hot. This cost has one, and approaches the maximum as p rises. Load of an expert off
//! its home node adds its price.
//!
//! Loads are scaled so that the costs of a sample sum up to its weight times the norm of its rank loads. That
//! norm approaches the maximum from above. So a gain divided by p is about the gain of the weighted mean of the
//! norms.

use super::lanes::{Kernel, LANES, Lanes, Vector, Vectors};
use super::state::State;

/// A placement with its smooth cost.
pub(super) struct Smooth<'a> {
    /// The placement at the start, with its loads, pins and ranks.
    pub start: &'a State,
    vectors: Vectors,
    /// The exponent is 2 to this power.
    squarings: u32,
    /// Lanes of one load: the samples over 16, rounded up.
    pub blocks: usize,
    /// `[experts][blocks]`
    pub loads: Vec<Lanes>,
    replica_loads: Vec<Lanes>,
    /// `[slots]`
    pub slots: Vec<u32>,
    pub counts: Vec<u32>,
    /// The load, the cost and the gradient of each rank, `[ranks][blocks]`, `[ranks]`, `[ranks][blocks]`.
    pub rank_loads: Vec<Lanes>,
    pub costs: Vec<f32>,
    pub gradients: Vec<Lanes>,
    /// The cost of all load of each expert off its home node, scaled as the cost is, `[experts]`. Empty if nodes
    /// do not matter.
    pub off_node: Vec<f32>,
    /// A number for each rank that changes with its slots.
    pub versions: Vec<u32>,
    last_version: u32,
}

/// What an unsuccessful perturbation restores.
pub(super) struct Kept {
    slots: Vec<u32>,
    counts: Vec<u32>,
    rank_loads: Vec<Lanes>,
    costs: Vec<f32>,
    gradients: Vec<Lanes>,
    versions: Vec<u32>,
}

impl<'a> Smooth<'a> {
    /// The slots of `start`. [`Smooth::rescale`] sets the exponent.
    pub fn new(start: &'a State) -> Self {
        let (num_ranks, num_experts) = (start.num_ranks(), start.num_experts());
        let blocks = start.num_samples().div_ceil(LANES);
        Smooth {
            start,
            vectors: Vectors::detect(),
            squarings: 0,
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
            last_version: 0,
        }
    }

    /// Runs a kernel with the present exponent.
    pub fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.vectors.run(self.squarings, kernel)
    }

    /// Returns the exact cost: see [`State::cost`].
    pub fn exact_cost(&self) -> f64 {
        self.start.cost_of(&self.slots, &self.counts)
    }

    /// Exchanges slots of two ranks.
    pub fn swap(&mut self, slot: usize, other: usize) {
        self.slots.swap(slot, other);
        self.update_rank(self.start.rank_of(slot));
        self.update_rank(self.start.rank_of(other));
    }

    /// Returns the cost.
    pub fn cost(&self) -> f32 {
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
    pub fn replica_off_node(&self, expert: u32, rank: usize) -> f32 {
        match self.off_node.is_empty() || self.start.is_on_home_node(expert, rank) {
            true => 0.0,
            false => self.off_node[expert as usize] / self.counts[expert as usize] as f32,
        }
    }

    /// Scales all loads for the exponent 2^squarings and the present placement.
    pub fn rescale(&mut self, squarings: u32) {
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
    pub fn replica_loads_of(&self, expert: u32) -> &[Lanes] {
        &self.replica_loads[expert as usize * self.blocks..][..self.blocks]
    }

    /// Returns the cost of a rank with a part of an expert's load added.
    #[inline(always)]
    pub fn cost_with<V: Vector, const SQUARINGS: usize>(&self, rank: usize, expert: u32, part: f32) -> f32 {
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
    pub fn holds(&self, rank: usize, expert: u32) -> bool {
        self.slots[self.start.slots_of(rank)].contains(&expert)
    }

    /// Gives a slot another expert.
    pub fn set_expert(&mut self, slot: usize, to: u32) {
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

    pub fn may_give(&self, slot: usize) -> bool {
        let rank = self.start.rank_of(slot);
        self.start.may_give_of(rank, &self.slots[self.start.slots_of(rank)], self.slots[slot])
    }

    pub fn keep(&self) -> Kept {
        Kept {
            slots: self.slots.clone(),
            counts: self.counts.clone(),
            rank_loads: self.rank_loads.clone(),
            costs: self.costs.clone(),
            gradients: self.gradients.clone(),
            versions: self.versions.clone(),
        }
    }

    pub fn restore(&mut self, kept: Kept) {
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
