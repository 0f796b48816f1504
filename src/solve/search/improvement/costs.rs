//! The exact cost and the smooth cost of a placement, with what each slot and expert would gain.

use super::Improvement;
use super::changes::{Arrangement, Replacement, SlotChange};
use crate::placement::{NO_EXPERT, held_slots};
use crate::solve::search::lanes::{Kernel, LANES, Lanes, Vector, Vectors};

/// The exact loads of a layer, scaled so that the mean load of an active rank is the sample's weight.
pub(super) struct ExactLoads {
    num_samples: usize,
    /// `[experts][samples]`
    loads: Vec<f64>,
    /// The cost where all ranks are even: the weight of samples with load.
    even: f64,
}

impl ExactLoads {
    pub fn new(improvement: &Improvement<'_>) -> Self {
        let Improvement { shape, samples, sample_weights, active, .. } = *improvement;
        let (num_samples, num_experts) = (samples.len(), shape.num_experts());
        let is_active = |rank: &usize| active.is_none_or(|active| active[*rank]);
        let num_active = (0..shape.num_ranks()).filter(is_active).count() as f64;
        let mut exact = ExactLoads { num_samples, loads: vec![0.0; num_experts * num_samples], even: 0.0 };
        for (sample, (loads, weight)) in samples.iter().zip(sample_weights).enumerate() {
            let mean = loads.iter().sum::<f64>() / num_active;
            if mean == 0.0 || *weight == 0.0 {
                continue;
            }
            exact.even += weight;
            for (scaled, load) in exact.loads[sample..].iter_mut().step_by(num_samples).zip(*loads) {
                // Divides first: the factor would be infinite for a tiny mean.
                *scaled = load / mean * weight;
            }
        }
        exact
    }

    pub fn even(&self) -> f64 {
        self.even
    }

    /// Computes the load of a rank, `[samples]`.
    pub fn sum_rank(&self, experts: &[u32], counts: &[u32], sums: &mut [f64]) {
        sums.fill(0.0);
        for (_, expert) in held_slots(experts) {
            let part = 1.0 / f64::from(counts[expert as usize]);
            let loads = &self.loads[expert as usize * self.num_samples..][..self.num_samples];
            sums.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load * part);
        }
    }

    /// Returns the cost of rank loads, `[ranks][samples]`.
    pub fn cost(&self, rank_loads: &[f64]) -> f64 {
        (0..self.num_samples).map(|sample| self.max(rank_loads, sample)).sum()
    }

    fn max(&self, rank_loads: &[f64], sample: usize) -> f64 {
        rank_loads[sample..].iter().step_by(self.num_samples).copied().fold(0.0, f64::max)
    }
}

/// A placement with its costs.
///
/// As in the search, loads are scaled so that the smooth costs of a sample sum up to its weight times the norm of
/// its rank loads. So a gain divided by p is about the gain in the exact cost.
pub(super) struct LayerCosts<'a> {
    exact: &'a ExactLoads,
    vectors: Vectors,
    squarings: u32,
    blocks: usize,
    width: usize,
    /// The slots that each rank may use.
    pub ranges: Vec<std::ops::Range<usize>>,
    /// By the start of the round.
    arrangement: Arrangement,
    pub counts: Vec<u32>,
    slots_of: Vec<Vec<u32>>,
    /// `[ranks][samples]`
    exact_rank_loads: Vec<f64>,
    /// `[experts][blocks]`
    pub loads: Vec<Lanes>,
    /// The load, the cost and the gradient of each rank: `[ranks][blocks]`, `[ranks]`, `[ranks][blocks]`.
    pub rank_loads: Vec<Lanes>,
    pub costs: Vec<f32>,
    pub gradients: Vec<Lanes>,
    /// What the rank of each slot would gain without the replica.
    pub removed: Vec<f32>,
    /// What the rank would gain if the expert had a replica more elsewhere, and lose if it had one fewer.
    thinner: Vec<f32>,
    thicker: Vec<f32>,
    /// The sum of `thinner` over all replicas of an expert, `[experts]`.
    pub gained: Vec<f32>,
}

impl<'a> LayerCosts<'a> {
    pub fn new(improvement: &Improvement<'_>, exact: &'a ExactLoads, slots: &[u32]) -> Self {
        let shape = improvement.shape;
        let (num_experts, num_ranks, num_slots) = (shape.num_experts(), shape.num_ranks(), shape.num_slots());
        let blocks = exact.num_samples.div_ceil(LANES);
        let mut costs = LayerCosts {
            exact,
            vectors: Vectors::detect(),
            squarings: 0,
            blocks,
            width: shape.slots_per_rank(),
            ranges: (0..num_ranks).map(|rank| improvement.slots_of(rank)).collect(),
            arrangement: Arrangement::new(shape.slots_per_rank(), slots.to_vec(), improvement.is_pinned()),
            counts: vec![0; num_experts],
            slots_of: vec![Vec::new(); num_experts],
            exact_rank_loads: vec![0.0; num_ranks * exact.num_samples],
            loads: vec![Lanes::ZERO; num_experts * blocks],
            rank_loads: vec![Lanes::ZERO; num_ranks * blocks],
            costs: vec![0.0; num_ranks],
            gradients: vec![Lanes::ZERO; num_ranks * blocks],
            removed: vec![0.0; num_slots],
            thinner: vec![0.0; num_slots],
            thicker: vec![0.0; num_slots],
            gained: vec![0.0; num_experts],
        };
        costs.restart(slots);
        costs
    }

    /// Sets the slots. [`LayerCosts::rescale`] must follow.
    pub fn restart(&mut self, slots: &[u32]) {
        self.arrangement.restart(slots);
        self.counts.fill(0);
        self.slots_of.iter_mut().for_each(Vec::clear);
        for (slot, expert) in held_slots(slots) {
            self.counts[expert as usize] += 1;
            self.slots_of[expert as usize].push(slot as u32);
        }
        (0..self.ranges.len()).for_each(|rank| self.sum_exactly(rank));
    }

    pub fn slots(&self) -> &[u32] {
        self.arrangement.slots()
    }

    /// The experts of the slots that a rank may use, [`NO_EXPERT`] in empty ones.
    #[inline(always)]
    pub fn experts(&self, rank: usize) -> &[u32] {
        &self.arrangement.slots()[self.ranges[rank].clone()]
    }

    #[inline(always)]
    pub fn blocks_of(&self, index: usize) -> std::ops::Range<usize> {
        index * self.blocks..(index + 1) * self.blocks
    }

    /// The exact cost.
    pub fn exact_cost(&self) -> f64 {
        self.exact.cost(&self.exact_rank_loads)
    }

    /// Runs a kernel with the present exponent.
    pub fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.vectors.run(self.squarings, kernel)
    }

    fn sum_exactly(&mut self, rank: usize) {
        let num_samples = self.exact.num_samples;
        let sums = &mut self.exact_rank_loads[rank * num_samples..][..num_samples];
        self.exact.sum_rank(&self.arrangement.slots()[self.ranges[rank].clone()], &self.counts, sums);
    }

    /// Scales all loads for the exponent 2^squarings and the present slots.
    pub fn rescale(&mut self, squarings: u32) {
        self.squarings = squarings;
        let num_samples = self.exact.num_samples;
        let power = |x: f64| (0..squarings).fold(x, |power, _| power * power);
        let root = |x: f64| (0..squarings).fold(x, |root, _| root.sqrt());
        for sample in 0..num_samples {
            let max = self.exact.max(&self.exact_rank_loads, sample);
            // The norm is max * root(sum).
            let loads = self.exact_rank_loads[sample..].iter().step_by(num_samples);
            let sum: f64 = loads.map(|load| power(load / max)).sum();
            let scale = if max > 0.0 { root(max * root(sum) / sum) / max } else { 0.0 };
            let of_experts = self.exact.loads[sample..].iter().step_by(num_samples);
            for (lanes, load) in self.loads[sample / LANES..].iter_mut().step_by(self.blocks).zip(of_experts)
            {
                lanes.0[sample % LANES] = (load * scale) as f32;
            }
        }
        let all: Vec<usize> = (0..self.ranges.len()).collect();
        self.update(&all);
    }

    /// Gives ranks an expert each in place of another, or of [`NO_EXPERT`] in an empty slot.
    pub fn replace(&mut self, replacements: &[Replacement]) {
        let mut ranks: Vec<usize> = Vec::new();
        for &Replacement { rank, out, taken } in replacements {
            for SlotChange { slot, was, expert } in self.arrangement.replace(rank, out, taken) {
                if was != NO_EXPERT {
                    self.counts[was as usize] -= 1;
                    self.slots_of[was as usize].retain(|&other| other != slot);
                }
                self.counts[expert as usize] += 1;
                let slots = &mut self.slots_of[expert as usize];
                slots.insert(slots.partition_point(|&other| other < slot), slot);
            }
            ranks.push(rank);
        }
        // An exchange changes no replica count, and so no other rank.
        if let &[Replacement { out, taken, .. }] = replacements {
            for expert in [out, taken].into_iter().filter(|&expert| expert != NO_EXPERT) {
                ranks.extend(self.slots_of[expert as usize].iter().map(|&slot| slot as usize / self.width));
            }
        }
        ranks.sort_unstable();
        ranks.dedup();
        ranks.iter().for_each(|&rank| self.sum_exactly(rank));
        self.update(&ranks);
    }

    /// Computes all that depends on the loads of ranks.
    fn update(&mut self, ranks: &[usize]) {
        let (vectors, squarings) = (self.vectors, self.squarings);
        vectors.run(squarings, UpdateRanks { costs: self, ranks });
        for &rank in ranks {
            for slot in self.ranges[rank].clone() {
                let expert = self.slots()[slot];
                if expert != NO_EXPERT {
                    let slots = self.slots_of[expert as usize].iter();
                    self.gained[expert as usize] = slots.map(|&slot| self.thinner[slot as usize]).sum();
                }
            }
        }
    }

    /// Returns what the ranks of the other replicas of a slot's expert lose without it. A difference of sums would
    /// be rounding where the slot's own part is large.
    #[inline(always)]
    pub fn others_lose(&self, slot: usize, expert: u32) -> f32 {
        let slots = self.slots_of[expert as usize].iter().map(|&other| other as usize);
        slots.filter(|&other| other != slot).map(|other| self.thicker[other]).sum()
    }
}

/// Computes the loads and costs of ranks, and what each of their slots would gain or lose.
struct UpdateRanks<'c, 'a> {
    costs: &'c mut LayerCosts<'a>,
    ranks: &'c [usize],
}

impl Kernel for UpdateRanks<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) {
        let UpdateRanks { costs, ranks } = self;
        let blocks = costs.blocks;
        for &rank in ranks {
            let mut cost = V::zero();
            for block in 0..blocks {
                let mut load = V::zero();
                for &expert in costs.experts(rank).iter().filter(|&&expert| expert != NO_EXPERT) {
                    let part = V::splat(1.0 / costs.counts[expert as usize] as f32);
                    load = load.add(V::load(&costs.loads[expert as usize * blocks + block]).mul(part));
                }
                let (mut power, mut slope) = (load, V::splat((1 << SQUARINGS) as f32));
                for _ in 0..SQUARINGS {
                    slope = slope.mul(power);
                    power = power.mul(power);
                }
                cost = cost.add(power);
                slope.store(&mut costs.gradients[rank * blocks + block]);
                load.store(&mut costs.rank_loads[rank * blocks + block]);
            }
            let cost = cost.sum();
            costs.costs[rank] = cost;
            for slot in costs.ranges[rank].clone() {
                let expert = costs.slots()[slot];
                if expert == NO_EXPERT {
                    continue;
                }
                let count = costs.counts[expert as usize] as f32;
                let cost_with = |part: f32| {
                    let mut cost = V::zero();
                    for block in 0..blocks {
                        let load = V::load(&costs.loads[expert as usize * blocks + block]);
                        let with =
                            V::load(&costs.rank_loads[rank * blocks + block]).add(load.mul(V::splat(part)));
                        cost = cost.add(with.power::<SQUARINGS>());
                    }
                    cost.sum()
                };
                let part = 1.0 / count;
                let removed = cost - cost_with(-part);
                let thinner = cost - cost_with(1.0 / (count + 1.0) - part);
                let thicker = match count > 1.0 {
                    true => cost_with(1.0 / (count - 1.0) - part) - cost,
                    false => 0.0,
                };
                (costs.removed[slot], costs.thinner[slot], costs.thicker[slot]) = (removed, thinner, thicker);
            }
        }
    }
}
