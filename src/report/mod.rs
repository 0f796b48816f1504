//! How even a placement makes the ranks: what needs a load and a placement together.

mod against;
mod candidate;
#[cfg(feature = "cli")]
pub mod chart;
mod document;
mod evaluation;
mod expected;
mod load_report;
mod metrics;
mod nodes;
pub mod page;
mod recording;
mod sweep;

pub use against::{Against, AverageAgainst, LayerAgainst};
pub use candidate::{Candidate, CandidateLayer, Planner, moved_slots};
pub use document::Document;
pub use evaluation::{Certificate, Evaluation, evaluate};
pub(crate) use expected::routed_load;
pub use expected::{Routed, expected_load};
pub use load_report::{AverageBalance, Imbalance, IterationReport, LayerReport, LoadReport, Views};
pub use metrics::Metrics;
pub use nodes::off_node_share;
pub use recording::Recording;
pub use sweep::{Fewest, Point, fewest_slots, usual_num_slots};

use serde::Serialize;

use crate::placement::{NO_EXPERT, Shape, held_slots};
use crate::solve::best_split;

/// How evenly the ranks of one layer are loaded, over one or more samples (iterations).
///
/// Figures are taken per sample and then averaged over the samples, as TensorRT-LLM's load report does, so that a layer
/// whose hot rank changes from iteration to iteration does not look even.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Balance {
    /// Mean load of a rank.
    pub mean: f64,
    /// Standard deviation of the ranks' loads, that of a sample (divided by ranks - 1); 0 for a single rank.
    pub std: f64,
    /// Load of the most loaded rank.
    pub max: f64,
    /// The rank with the largest load over all samples.
    pub worst_rank: usize,
    /// `(max - mean) / mean`: 0 is even. `None` where a sample has no load at all.
    pub imbalance_ratio: Option<f64>,
    /// `mean / max`: 1 is even. `None` where a sample has no load at all.
    pub balancedness: Option<f64>,
}

impl Balance {
    /// The balance of ranks whose loads are given sample by sample.
    fn of_ranks(samples: impl Iterator<Item: AsRef<[f64]>>) -> Balance {
        let (mut num_samples, mut totals) = (0.0, Vec::new());
        let (mut mean, mut std, mut max, mut imbalance, mut balancedness) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for ranks in samples {
            let ranks = ranks.as_ref();
            let sample_mean = ranks.iter().sum::<f64>() / ranks.len() as f64;
            let sample_max = ranks.iter().copied().fold(0.0, f64::max);
            mean += sample_mean;
            max += sample_max;
            let squares: f64 = ranks.iter().map(|load| (load - sample_mean).powi(2)).sum();
            std += (squares / (ranks.len().max(2) - 1) as f64).sqrt();
            // 0 / 0 in a sample without load makes the layer's ratio NaN, and None below.
            imbalance += (sample_max - sample_mean) / sample_mean;
            balancedness += sample_mean / sample_max;
            num_samples += 1.0;
            totals.resize(ranks.len(), 0.0);
            totals.iter_mut().zip(ranks).for_each(|(total, load)| *total += load);
        }
        let ratio = |sum: f64| Some(sum / num_samples).filter(|ratio| ratio.is_finite());
        let heavier = |worst: usize, rank: usize| if totals[rank] > totals[worst] { rank } else { worst };
        Balance {
            mean: mean / num_samples,
            std: std / num_samples,
            max: max / num_samples,
            worst_rank: (1..totals.len()).fold(0, heavier),
            imbalance_ratio: ratio(imbalance),
            balancedness: ratio(balancedness),
        }
    }

    /// With `slot_experts` in force: the expert of each slot, an expert's load split evenly over its replicas.
    /// Each sample is `[experts]`.
    pub fn projected<'a>(
        shape: Shape,
        slot_experts: &[u32],
        samples: impl Iterator<Item = &'a [f64]>,
    ) -> Balance {
        let replicas = replica_counts(shape, slot_experts);
        let ranks = |loads| even_split(shape, slot_experts, &replicas, loads).collect::<Vec<_>>();
        Balance::of_ranks(samples.map(ranks))
    }

    /// Without a load balancer: consecutive experts on each rank, as many as divide evenly. Each sample is `[experts]`.
    pub fn unbalanced<'a>(num_ranks: usize, samples: impl Iterator<Item = &'a [f64]>) -> Balance {
        Balance::of_ranks(samples.map(|loads| in_order(num_ranks, loads)))
    }
}

/// The load of each rank where consecutive experts are on each, as many as divide evenly.
fn in_order(num_ranks: usize, loads: &[f64]) -> Vec<f64> {
    let first_of = |rank: usize| rank * loads.len() / num_ranks;
    (0..num_ranks).map(|rank| loads[first_of(rank)..first_of(rank + 1)].iter().sum()).collect()
}

/// The load of each rank where each expert's is split evenly over its `replicas`.
fn even_split<'a>(
    shape: Shape,
    slot_experts: &'a [u32],
    replicas: &'a [u32],
    loads: &'a [f64],
) -> impl Iterator<Item = f64> + 'a {
    let load_of = |&expert: &u32| loads[expert as usize] / f64::from(replicas[expert as usize]);
    let ranks = slot_experts.chunks_exact(shape.slots_per_rank());
    ranks.map(move |rank| rank.iter().filter(|&&expert| expert != NO_EXPERT).map(load_of).sum())
}

/// [`Balance::imbalance_ratio`] where each sample's tokens are split in the best fractions (see [`best_split`]) instead of evenly.
/// Each sample is `[experts]`.
pub(crate) fn best_split_imbalance_ratio<'a>(
    shape: Shape,
    slot_experts: &[u32],
    samples: impl ExactSizeIterator<Item = &'a [f64]>,
) -> Option<f64> {
    let num_samples = samples.len() as f64;
    let ratios = samples.map(|loads| {
        let mean = loads.iter().sum::<f64>() / shape.num_ranks() as f64;
        (best_split(loads, slot_experts, shape) - mean) / mean
    });
    Some(ratios.sum::<f64>() / num_samples).filter(|ratio| ratio.is_finite())
}

/// How many slots each expert has.
pub fn replica_counts(shape: Shape, slot_experts: &[u32]) -> Vec<u32> {
    let mut counts = vec![0; shape.num_experts()];
    held_slots(slot_experts).for_each(|(_, expert)| counts[expert as usize] += 1);
    counts
}

/// The mean over layers of a ratio, leaving out the layers that have none; `None` where no layer has one.
pub fn average(ratios: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = ratios.flatten().fold((0.0, 0), |(sum, count), ratio| (sum + ratio, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_first_and_layers_second() {
        // needs.md: [[100, 200], [100, 200]] -> 0.75. Along the wrong axis it would be 1.
        let layers = [[100.0, 200.0], [100.0, 200.0]];
        let balances = layers.map(|layer| Balance::unbalanced(2, [&layer[..]].into_iter()));
        assert_eq!(average(balances.iter().map(|balance| balance.balancedness)), Some(0.75));
        assert_eq!(balances[0].imbalance_ratio, Some(50.0 / 150.0));
        assert_eq!((balances[0].mean, balances[0].max, balances[0].worst_rank), (150.0, 200.0, 1));
        // Two ranks, 50 from the mean each: the root of 5000 / 1.
        assert_eq!(balances[0].std, 5000f64.sqrt());
    }

    #[test]
    fn a_hot_rank_that_changes_between_samples_is_seen() {
        let samples: [&[f64]; 2] = [&[3.0, 1.0], &[1.0, 3.0]];
        assert_eq!(Balance::unbalanced(2, samples.into_iter()).imbalance_ratio, Some(0.5));
    }

    #[test]
    fn a_replicated_expert_splits_its_load_evenly() {
        // Expert 0 (load 6) on slots 0, 1 and 3; expert 1 (load 1) on slot 2: ranks carry 2 + 2 and 1 + 2.
        let shape = Shape::new(2, 4, 2).unwrap();
        let balance = Balance::projected(shape, &[0, 0, 1, 0], [&[6.0, 1.0][..]].into_iter());
        assert_eq!((balance.mean, balance.max, balance.worst_rank), (3.5, 4.0, 0));
    }

    #[test]
    fn a_sample_without_load_leaves_the_layer_without_a_ratio_and_out_of_the_average() {
        let samples: [&[f64]; 2] = [&[0.0, 0.0], &[1.0, 3.0]];
        let balance = Balance::unbalanced(2, samples.into_iter());
        assert_eq!((balance.mean, balance.max), (1.0, 1.5));
        assert_eq!((balance.imbalance_ratio, balance.balancedness), (None, None));
        assert_eq!(average([None, Some(1.0), Some(2.0)].into_iter()), Some(1.5));
        assert_eq!(average([None].into_iter()), None);
    }
}
