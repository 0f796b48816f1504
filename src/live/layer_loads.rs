//! The loads of a layer's ranks in a placement, and how much of it may be noise.

use super::Fabric;
use crate::placement::{NO_EXPERT, held_slots};
use crate::solve::lower_bound_of_unequal_ranks;

/// One sample of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample<'a> {
    /// `[experts]`
    pub loads: &'a [f64],
    /// The weights of all samples sum up to 1.
    pub weight: f64,
    /// Of the loads.
    pub hash: u64,
}

/// How even samples of a layer are in a placement: weighted means.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Measure {
    /// mean / max of the loads of active ranks by even split, 1 without load.
    pub balance: f64,
    /// The balance that no placement exceeds.
    pub bound: f64,
    /// max / mean, 1 without load.
    pub cost: f64,
    /// The cost that no placement is below.
    pub least_cost: f64,
    /// The standard deviation of a rank's load by sampling noise, in parts of the mean: of the rank that has most.
    pub deviation: f64,
    /// The variance of the samples' sum of that.
    pub variance: f64,
}

impl Measure {
    /// Measures samples, `[samples][experts]`, that weigh the same. `num_slots` are those of active ranks.
    pub fn new(fabric: &Fabric, num_slots: usize, slots: &[u32], loads: &[f64]) -> Self {
        let counts = counts(fabric, slots);
        let mut measure = Measure::default();
        let samples = loads.chunks_exact(fabric.shape.num_experts());
        let weight = 1.0 / samples.len() as f64;
        for loads in samples {
            measure.add(weight, &of_sample(fabric, num_slots, slots, &counts, loads));
        }
        measure
    }

    /// Adds other samples.
    pub fn add(&mut self, weight: f64, other: &Measure) {
        self.balance += weight * other.balance;
        self.bound += weight * other.bound;
        self.cost += weight * other.cost;
        self.least_cost += weight * other.least_cost;
        self.deviation += weight * other.deviation;
        self.variance += weight * weight * other.variance;
    }

    /// What a planner may gain in max / mean from sampling noise alone, with `deviations` to spare.
    ///
    /// Counts are sums of independent choices, so a count n has the variance n, and a replica of c has n / c^2. Of R ranks that
    /// are even, the most loaded one is about sqrt(2 ln R) standard deviations above the mean.
    pub fn noise(&self, fabric: &Fabric, deviations: f64) -> f64 {
        // At least 2 ln R, in operations that every machine rounds alike.
        let two_ln = 2.0 * std::f64::consts::LN_2 * f64::from(fabric.num_active().ilog2() + 1);
        self.deviation * two_ln.sqrt() + deviations * self.variance.sqrt()
    }
}

fn of_sample(fabric: &Fabric, num_slots: usize, slots: &[u32], counts: &[u32], loads: &[f64]) -> Measure {
    let mean = loads.iter().sum::<f64>() / fabric.num_active() as f64;
    if mean == 0.0 {
        return Measure { balance: 1.0, bound: 1.0, cost: 1.0, least_cost: 1.0, ..Measure::default() };
    }
    let (mut max, mut variance) = (0.0, 0.0);
    for_each_rank(fabric, slots, |experts| {
        let (mut load, mut of_rank) = (0.0, 0.0);
        for &expert in experts.iter().filter(|&&expert| expert != NO_EXPERT) {
            let (of_expert, count) = (loads[expert as usize], counts[expert as usize]);
            let replicas = f64::from(count);
            load += if count > 1 { of_expert / replicas } else { of_expert };
            of_rank += if count > 1 { of_expert / (replicas * replicas) } else { of_expert };
        }
        max = f64::max(max, load);
        variance = f64::max(variance, of_rank);
    });
    let least = least_max(fabric, num_slots, loads, mean);
    let deviation = variance.sqrt() / mean;
    Measure {
        balance: if max > 0.0 { mean / max } else { 1.0 },
        bound: mean / least,
        cost: max / mean,
        least_cost: least / mean,
        deviation,
        variance: deviation * deviation,
    }
}

/// A load that the most loaded rank has at least, in any placement.
fn least_max(fabric: &Fabric, num_slots: usize, loads: &[f64], mean: f64) -> f64 {
    // The mean, if experts with enough replicas to be below it fit.
    let spare = num_slots.saturating_sub(fabric.shape.num_experts()) as f64;
    let needed: f64 =
        loads.iter().map(|&load| if load > mean { (load / mean).ceil() - 1.0 } else { 0.0 }).sum();
    match needed <= spare {
        true => mean,
        false => lower_bound_of_unequal_ranks(loads, num_slots, fabric.num_active()).max(mean),
    }
}

/// mean / max over samples, weighted.
pub(super) fn mean_balance(fabric: &Fabric, slots: &[u32], samples: &[Sample]) -> f64 {
    let counts = counts(fabric, slots);
    samples.iter().map(|sample| sample.weight * balance(fabric, slots, &counts, sample.loads)).sum()
}

fn balance(fabric: &Fabric, slots: &[u32], counts: &[u32], loads: &[f64]) -> f64 {
    let mean = loads.iter().sum::<f64>() / fabric.num_active() as f64;
    let of_replicas: Vec<f64> =
        loads.iter().zip(counts).map(|(load, &count)| load / f64::from(count.max(1))).collect();
    let mut max = 0.0;
    for_each_rank(fabric, slots, |experts| {
        let load = held_slots(experts).map(|(_, expert)| of_replicas[expert as usize]).sum();
        max = f64::max(max, load);
    });
    if max > 0.0 { mean / max } else { 1.0 }
}

/// The replicas of each expert on active ranks.
fn counts(fabric: &Fabric, slots: &[u32]) -> Vec<u32> {
    let mut counts = vec![0; fabric.shape.num_experts()];
    for_each_rank(fabric, slots, |experts| {
        held_slots(experts).for_each(|(_, expert)| counts[expert as usize] += 1);
    });
    counts
}

/// Calls `visit` with the slots of each active rank.
fn for_each_rank(fabric: &Fabric, slots: &[u32], mut visit: impl FnMut(&[u32])) {
    for (rank, experts) in slots.chunks_exact(fabric.shape.slots_per_rank()).enumerate() {
        if fabric.is_active(rank) {
            visit(experts);
        }
    }
}
