//! Placements that might be used, held against a dump and against each other.

use serde::Serialize;

use super::{Balance, Certificate, Recording, average, best_split_imbalance_ratio};
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape, duplicates_in};
use crate::solve::{Loads, Policy, SolveConfig, solve};
use crate::stats::{Counted, Stats, Summary};
use crate::threads;

/// How to place experts by a dump, and on how many threads.
#[derive(Debug, Clone, Copy)]
pub struct Planner<'a> {
    /// The rule.
    pub solve: SolveConfig<'a>,
    /// Samples that the iterations are grouped into, for [`Policy::Search`] to level each of and for gaps to be measured
    /// with; fewer where there are fewer iterations.
    pub num_samples: usize,
    /// 0 for one a core, at most 8.
    pub threads: usize,
}

impl Planner<'_> {
    /// The placement that `generate` would write.
    pub fn place(&self, stats: &Stats, shape: Shape) -> Result<Placement> {
        let summary = stats.summary();
        let num_samples = match self.solve.policy {
            Policy::Search => samples_of(summary, self.num_samples),
            _ => 1,
        };
        let loads = stats.samples(num_samples)?;
        let loads = Loads::new(&loads, &summary.layers, num_samples, summary.num_experts)?;
        solve(&self.solve, shape, &loads, self.threads)
    }
}

fn samples_of(summary: &Summary, wanted: usize) -> usize {
    wanted.clamp(1, summary.iterations.len() as usize)
}

/// What a placement comes to for a dump: the means over layers, and each layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// The imbalance ratio of the ranks, an expert's tokens split evenly over its replicas: [`Balance::imbalance_ratio`] per
    /// iteration.
    pub imbalance_ratio: Option<f64>,
    /// The same if tokens are split in the best fractions, iteration by iteration: what a router can reach.
    pub best_split_imbalance_ratio: Option<f64>,
    /// How far it is from the best that any placement could do for the samples it would be planned with: [`Certificate::gap`].
    pub gap: Option<f64>,
    /// The layer with the largest imbalance ratio.
    pub worst_layer: Option<u32>,
    /// Its imbalance ratio.
    pub worst_imbalance_ratio: Option<f64>,
    /// Slots that repeat an expert of their own rank, in all layers.
    pub num_duplicates: usize,
    /// Each layer of the dump.
    pub layers: Vec<CandidateLayer>,
}

/// One layer of a [`Candidate`]; the figures are those of the same name there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "said of the whole")]
pub struct CandidateLayer {
    pub layer: u32,
    pub imbalance_ratio: Option<f64>,
    pub best_split_imbalance_ratio: Option<f64>,
    pub gap: Option<f64>,
    pub num_duplicates: usize,
}

impl Candidate {
    /// Holds `placement` against a dump of experts.
    pub fn new(
        stats: &Stats,
        placement: &Placement,
        num_samples: usize,
        threads: usize,
    ) -> Result<Candidate> {
        refuse_slots(stats)?;
        let recording = Recording::new(stats, Some(placement))?;
        let (summary, shape) = (stats.summary(), placement.shape());
        let num_samples = samples_of(summary, num_samples);
        let layers = threads::map(summary.layers.len(), threads::resolve(threads), |index| {
            let layer = summary.layers[index];
            let (experts, loads) = (placement.layer_experts(layer)?, recording.expert_loads(layer)?);
            let iterations = || loads.chunks_exact(shape.num_experts());
            let samples = stats.layer_samples(layer, num_samples, shape.num_experts())?;
            Ok(CandidateLayer {
                layer,
                imbalance_ratio: Balance::projected(shape, experts, iterations()).imbalance_ratio,
                best_split_imbalance_ratio: best_split_imbalance_ratio(shape, experts, iterations()),
                gap: Certificate::new(shape, experts, samples.chunks_exact(shape.num_experts())).gap,
                num_duplicates: duplicates_in(shape, layer, experts).len(),
            })
        })?;
        let ratios = layers.iter().filter_map(|layer| Some((layer.layer, layer.imbalance_ratio?)));
        let worst = ratios.reduce(|worst, layer| if layer.1 > worst.1 { layer } else { worst });
        Ok(Candidate {
            imbalance_ratio: average(layers.iter().map(|layer| layer.imbalance_ratio)),
            best_split_imbalance_ratio: average(layers.iter().map(|layer| layer.best_split_imbalance_ratio)),
            gap: average(layers.iter().map(|layer| layer.gap)),
            worst_layer: worst.map(|(layer, _)| layer),
            worst_imbalance_ratio: worst.map(|(_, ratio)| ratio),
            num_duplicates: layers.iter().map(|layer| layer.num_duplicates).sum(),
            layers,
        })
    }
}

/// What is placed and judged by experts cannot be by slots.
pub(super) fn refuse_slots(stats: &Stats) -> Result<()> {
    match stats.summary().counted {
        Counted::Experts => Ok(()),
        Counted::Slots => Err(Error::InvalidDump(
            "it counts slots, not experts; count with the placement off, or with experts counted".into(),
        )),
    }
}

/// How many experts' weights have to be moved for `to` to take the place of `from`, in the layers of `to`: those that a rank is to
/// hold and does not, each once a rank, whatever its slots there. What changes its slot within a rank is not moved between ranks.
///
/// `None` where the two are not for as many experts and ranks, or `from` lacks a layer.
pub fn moved_slots(from: &Placement, to: &Placement) -> Option<usize> {
    let same = |of: fn(Shape) -> usize| of(from.shape()) == of(to.shape());
    if !same(|shape| shape.num_experts()) || !same(|shape| shape.num_ranks()) {
        return None;
    }
    let mut moved = 0;
    for &layer in to.layers() {
        for rank in 0..to.shape().num_ranks() {
            let held = from.distinct_experts(layer, rank).ok()?;
            let wanted = to.distinct_experts(layer, rank).ok()?;
            moved += wanted.iter().filter(|expert| held.binary_search(expert).is_err()).count();
        }
    }
    Some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rank_holds_already_is_not_moved() {
        let placement = |slots: usize, ranks: usize, experts: &[u32]| {
            let num_layers = experts.len() / slots;
            let layers: Vec<u32> = (0..num_layers as u32).collect();
            Placement::new(Shape::new(3, slots, ranks).unwrap(), &layers, experts).unwrap()
        };
        let from = placement(4, 2, &[0, 1, 0, 2]);
        // The same on each rank, in other slots.
        assert_eq!(moved_slots(&from, &placement(4, 2, &[1, 0, 2, 0])), Some(0));
        // Rank 0 gets expert 2, rank 1 expert 1.
        assert_eq!(moved_slots(&from, &placement(4, 2, &[0, 2, 1, 0])), Some(2));
        // With another slot each, rank 0 gets 2, and rank 1 gets 1, which it then has twice.
        assert_eq!(moved_slots(&from, &placement(6, 2, &[0, 1, 2, 1, 2, 1])), Some(2));
        assert_eq!(moved_slots(&from, &placement(4, 1, &[0, 1, 0, 2])), None);
        assert_eq!(moved_slots(&from, &placement(4, 2, &[0, 1, 0, 2, 0, 1, 0, 2])), None);
    }
}
