//! The loads of a layer's ranks in a placement, and how much of it may be noise.

use super::Fabric;
use super::history::Sample;
use crate::placement::{held_slots, replica_counts};

/// mean / max of the loads of active ranks by even split, 1 without load.
pub(super) fn balance(fabric: &Fabric, slots: &[u32], loads: &[f64]) -> f64 {
    let (mean, max) = mean_and_max(fabric, slots, loads);
    if max > 0.0 { mean / max } else { 1.0 }
}

/// max / mean over samples, weighted.
pub(super) fn cost(fabric: &Fabric, slots: &[u32], samples: &[Sample]) -> f64 {
    let of_sample = |sample: &Sample| {
        let (mean, max) = mean_and_max(fabric, slots, sample.loads);
        if mean > 0.0 { sample.weight * (max / mean) } else { sample.weight }
    };
    samples.iter().map(of_sample).sum()
}

/// mean / max over samples, weighted.
pub(super) fn mean_balance(fabric: &Fabric, slots: &[u32], samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.weight * balance(fabric, slots, sample.loads)).sum()
}

fn mean_and_max(fabric: &Fabric, slots: &[u32], loads: &[f64]) -> (f64, f64) {
    let rank_loads = rank_sums(fabric, slots, |expert, replicas| loads[expert] / replicas);
    let mean = loads.iter().sum::<f64>() / fabric.num_active() as f64;
    (mean, rank_loads.into_iter().fold(0.0, f64::max))
}

/// Sums a value of each replica over each rank. The value has the expert and its replicas on active ranks.
fn rank_sums(fabric: &Fabric, slots: &[u32], value: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let shape = fabric.shape;
    let counts = match fabric.active {
        None => replica_counts(shape, slots),
        Some(_) => {
            let mut counts = vec![0; shape.num_experts()];
            let active = held_slots(slots).filter(|&(slot, _)| fabric.is_active(shape.rank_of(slot)));
            active.for_each(|(_, expert)| counts[expert as usize] += 1);
            counts
        }
    };
    let mut sums = vec![0.0; shape.num_ranks()];
    for (rank, (sum, experts)) in sums.iter_mut().zip(slots.chunks_exact(shape.slots_per_rank())).enumerate()
    {
        if fabric.is_active(rank) {
            for (_, expert) in held_slots(experts) {
                *sum += value(expert as usize, f64::from(counts[expert as usize]));
            }
        }
    }
    sums
}

/// What a planner may gain in max / mean from sampling noise alone, with `deviations` to spare.
///
/// Counts are sums of independent choices, so a count n has the variance n, and a replica of c has n / c^2. Of R ranks that are
/// even, the most loaded one is about sqrt(2 ln R) standard deviations above the mean.
pub(super) fn noise(fabric: &Fabric, slots: &[u32], samples: &[Sample], deviations: f64) -> f64 {
    // At least 2 ln R, in operations that every machine rounds alike.
    let two_ln = 2.0 * std::f64::consts::LN_2 * f64::from(fabric.num_active().ilog2() + 1);
    let (mut expected, mut variance) = (0.0, 0.0);
    for sample in samples {
        let variances =
            rank_sums(fabric, slots, |expert, replicas| sample.loads[expert] / (replicas * replicas));
        let mean = sample.loads.iter().sum::<f64>() / fabric.num_active() as f64;
        let most = variances.into_iter().fold(0.0, f64::max);
        if mean > 0.0 {
            let deviation = sample.weight * (most.sqrt() / mean);
            expected += deviation;
            variance += deviation * deviation;
        }
    }
    expected * two_ln.sqrt() + deviations * variance.sqrt()
}
