//! The score of a placement: the one place where a placement and loads become figures.

use serde::{Serialize, Serializer};

use super::Balance;
use super::balance::{average, ratio, worst_layer};
use crate::error::{Error, Result};
use crate::placement::{NO_EXPERT, Placement, Shape, duplicates_in, held_slots, replica_counts};
use crate::solve::{Loads, Nodes, best_split, lower_bound, lower_bound_of_uneven};
use crate::stats::{LayerLoads, Stats};
use crate::threads;

/// One layer of a placement with the loads of its experts. Each figure is computed when it is asked for, per sample and then
/// averaged over the samples.
#[derive(Debug, Clone)]
pub struct Score<'a> {
    shape: Shape,
    layer: u32,
    slot_experts: &'a [u32],
    replicas: Vec<u32>,
    /// `[samples][experts]`, at least one sample.
    samples: &'a [f64],
}

/// What no placement is below, and how far this one is above it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundGap {
    /// What the most loaded rank carries at least, whatever the placement: see [`lower_bound`].
    pub lower_bound: f64,
    /// `(max - lower bound) / lower bound` of the even split: 0 is as good as any placement. `None` where a sample has no load.
    pub gap: Option<f64>,
}

/// The ranks where each expert's load is split over its replicas in the best fractions: see [`best_split`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestSplit {
    /// The load of the most loaded rank.
    pub max: f64,
    /// `(max - mean) / mean`. `None` where a sample has no load.
    pub imbalance_ratio: Option<f64>,
    /// `mean / max`. `None` where a sample has no load.
    pub balancedness: Option<f64>,
}

/// Scores a layer of `placement` against its loads, `[num_samples][num_experts]`. The number of experts is a check.
///
/// Fails with [`Error::InvalidLoads`], and with [`Error::InvalidArgument`] for lengths that do not fit and an unknown layer.
pub fn score<'a>(
    placement: &'a Placement,
    layer: u32,
    loads: &'a [f64],
    num_samples: usize,
    num_experts: usize,
) -> Result<Score<'a>> {
    let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
    if num_experts != shape.num_experts() {
        let held = shape.num_experts();
        let message = format!("num_experts is {num_experts}, the placement has {held}");
        return Err(Error::InvalidArgument(message));
    }
    Loads::new(loads, &[layer], num_samples, num_experts)?;
    Ok(Score::new(shape, layer, slot_experts, loads))
}

impl<'a> Score<'a> {
    /// Of loads that were checked before.
    pub(super) fn new(shape: Shape, layer: u32, slot_experts: &'a [u32], samples: &'a [f64]) -> Self {
        Score { shape, layer, slot_experts, replicas: replica_counts(shape, slot_experts), samples }
    }

    fn samples(&self) -> impl ExactSizeIterator<Item = &'a [f64]> + use<'a> {
        self.samples.chunks_exact(self.shape.num_experts())
    }

    /// The slots of each expert, `[num_experts]`.
    pub fn replicas(&self) -> &[u32] {
        &self.replicas
    }

    /// The largest number of slots that an expert has.
    pub fn max_replicas(&self) -> u32 {
        self.replicas.iter().copied().max().unwrap_or(0)
    }

    /// Slots that repeat an expert of their own rank.
    pub fn num_duplicates(&self) -> usize {
        duplicates_in(self.shape, self.layer, self.slot_experts).len()
    }

    /// How even the ranks are if each expert's load is split evenly over its replicas.
    pub fn balance(&self) -> Balance {
        Balance::of_ranks(self.rank_loads())
    }

    /// The load of each rank, sample by sample, if each expert's load is split evenly over its replicas.
    pub fn rank_loads(&self) -> impl Iterator<Item = Vec<f64>> {
        self.samples().map(|loads| self.ranks(loads).collect())
    }

    fn ranks(&self, loads: &[f64]) -> impl Iterator<Item = f64> {
        let ranks = self.slot_experts.chunks_exact(self.shape.slots_per_rank());
        ranks.map(move |rank| {
            let held = rank.iter().filter(|&&expert| expert != NO_EXPERT);
            held.map(|&expert| self.replica_load(loads, expert)).sum()
        })
    }

    /// The load of each slot that holds an expert, sample by sample.
    pub(super) fn slot_loads(&self) -> impl Iterator<Item = Vec<f64>> {
        self.samples().map(|loads| {
            held_slots(self.slot_experts).map(|(_, expert)| self.replica_load(loads, expert)).collect()
        })
    }

    fn replica_load(&self, loads: &[f64], expert: u32) -> f64 {
        loads[expert as usize] / f64::from(self.replicas[expert as usize])
    }

    /// How far the even split is from the best possible.
    pub fn bound_gap(&self) -> BoundGap {
        let num_slots = held_slots(self.slot_experts).count();
        let (mut bounds, mut gaps) = (0.0, 0.0);
        for loads in self.samples() {
            let bound = match num_slots == self.shape.num_slots() {
                true => lower_bound(loads, self.shape),
                false => lower_bound_of_uneven(loads, num_slots, self.shape.num_ranks()),
            };
            let max = self.ranks(loads).fold(0.0, f64::max);
            bounds += bound;
            // A maximum that reaches the bound may be below it by the rounding of sums.
            gaps += if max > 0.0 { (max - bound).max(0.0) / bound } else { f64::NAN };
        }
        let num_samples = self.samples().len() as f64;
        BoundGap { lower_bound: bounds / num_samples, gap: ratio(gaps, num_samples) }
    }

    /// What a router reaches that splits each sample in the best fractions.
    pub fn best_split(&self) -> BestSplit {
        let (mut maxima, mut imbalance, mut balancedness) = (0.0, 0.0, 0.0);
        for loads in self.samples() {
            let mean = loads.iter().sum::<f64>() / self.shape.num_ranks() as f64;
            let max = best_split(loads, self.slot_experts, self.shape);
            maxima += max;
            imbalance += (max - mean) / mean;
            balancedness += mean / max;
        }
        let num_samples = self.samples().len() as f64;
        BestSplit {
            max: maxima / num_samples,
            imbalance_ratio: ratio(imbalance, num_samples),
            balancedness: ratio(balancedness, num_samples),
        }
    }

    /// The share of the load on another node than its group's home, the load of each expert split evenly over its replicas.
    ///
    /// `num_groups` groups have equally many consecutive experts. `rank_to_node` names the node of each rank, `[num_ranks]`, by
    /// any int32. A group's home is the node that carries most of its load over all samples, the lower one of equal nodes. `None`
    /// where a sample has no load.
    ///
    /// Fails with [`Error::InvalidShape`] where the groups are not equally large, and with [`Error::InvalidArgument`] where
    /// `rank_to_node` has another length.
    pub fn off_node_share(&self, num_groups: usize, rank_to_node: &[i32]) -> Result<Option<f64>> {
        Ok(self.off_home_share(&Nodes::new(self.shape, num_groups, 1, Some(rank_to_node))?))
    }

    fn off_home_share(&self, nodes: &Nodes) -> Option<f64> {
        let (num_groups, num_nodes) = (nodes.num_groups, nodes.num_ranks.len());
        let (num_experts, size) = (self.shape.num_experts(), self.shape.num_experts() / num_groups);
        // The share of all load that each node carries of each group, summed over samples: [groups][nodes].
        let mut sums = vec![0.0; num_groups * num_nodes];
        for loads in self.samples() {
            // Divided first, so that no sum overflows.
            let total: f64 = loads.iter().map(|load| load / num_experts as f64).sum();
            let mut shares = vec![0.0; num_groups * num_nodes];
            for (slot, expert) in held_slots(self.slot_experts) {
                let node = nodes.of_rank[self.shape.rank_of(slot)] as usize;
                let replicas = f64::from(self.replicas[expert as usize]);
                let part = loads[expert as usize] / num_experts as f64 / replicas;
                shares[expert as usize / size * num_nodes + node] += part / total;
            }
            sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
        let at_home: f64 =
            sums.chunks_exact(num_nodes).map(|of| of.iter().copied().fold(0.0, f64::max)).sum();
        let share = 1.0 - at_home / self.samples().len() as f64;
        Some(share.max(0.0)).filter(|_| sums.iter().all(|sum| sum.is_finite()))
    }
}

/// The score of one layer of a dump. Balances are those of the iterations; gaps and shares of nodes are those of the samples
/// that the iterations were grouped into.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerScore {
    /// The layer's number.
    pub layer: u32,
    /// On as many ranks without a load balancer.
    #[serde(skip)]
    pub unbalanced: Balance,
    /// With the placement, each expert's tokens split evenly over its replicas.
    #[serde(rename = "imbalance_ratio", serialize_with = "imbalance_ratio")]
    pub balance: Balance,
    /// [`BestSplit::imbalance_ratio`] of the iterations. `None` where it was not asked for, or an iteration has no load.
    pub best_split_imbalance_ratio: Option<f64>,
    /// [`BoundGap::gap`] of the samples, all of them with the same weight. `None` where it was not asked for, or one has no load.
    pub gap: Option<f64>,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: usize,
    /// [`Score::off_node_share`] of the samples. `None` where nodes do not matter, or a sample has no load.
    #[serde(skip)]
    pub off_node_share: Option<f64>,
}

fn imbalance_ratio<S: Serializer>(balance: &Balance, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    balance.imbalance_ratio.serialize(serializer)
}

/// The figures of a [`LayerScore`] that take time, or need to know the nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub best_split: bool,
    pub gap: bool,
    pub nodes: Option<Nodes>,
}

impl LayerScore {
    #[inline(never)]
    pub(super) fn new(
        shape: Shape,
        layer: u32,
        slot_experts: &[u32],
        loads: &LayerLoads,
        figures: &Figures,
    ) -> LayerScore {
        let iterations = Score::new(shape, layer, slot_experts, &loads.iterations);
        let samples = || Score::new(shape, layer, slot_experts, &loads.samples);
        LayerScore {
            layer,
            unbalanced: Balance::unbalanced(shape.num_ranks(), iterations.samples()),
            balance: iterations.balance(),
            best_split_imbalance_ratio: figures
                .best_split
                .then(|| iterations.best_split().imbalance_ratio)
                .flatten(),
            gap: figures.gap.then(|| samples().bound_gap().gap).flatten(),
            num_duplicates: iterations.num_duplicates(),
            off_node_share: figures.nodes.as_ref().and_then(|nodes| samples().off_home_share(nodes)),
        }
    }
}

/// The score of a placement against a dump: each layer, and means over layers that leave out those without the figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DumpScore {
    /// The mean of [`Balance::imbalance_ratio`].
    pub imbalance_ratio: Option<f64>,
    /// The mean of [`LayerScore::best_split_imbalance_ratio`].
    pub best_split_imbalance_ratio: Option<f64>,
    /// The mean of [`LayerScore::gap`].
    pub gap: Option<f64>,
    /// The layer with the largest imbalance ratio.
    pub worst_layer: Option<u32>,
    /// Its imbalance ratio.
    pub worst_imbalance_ratio: Option<f64>,
    /// Slots that repeat an expert of their own rank, in all layers.
    pub num_duplicates: usize,
    /// The mean of the imbalance ratio without a load balancer.
    #[serde(skip)]
    pub unbalanced_imbalance_ratio: Option<f64>,
    /// The mean of [`LayerScore::off_node_share`].
    #[serde(skip)]
    pub off_node_share: Option<f64>,
    /// Each layer of the dump.
    pub layers: Vec<LayerScore>,
}

impl DumpScore {
    pub(super) fn new(layers: Vec<LayerScore>) -> DumpScore {
        let mean = |of: fn(&LayerScore) -> Option<f64>| average(layers.iter().map(of));
        let worst = worst_layer(layers.iter().map(|layer| (layer.layer, layer.balance.imbalance_ratio)));
        DumpScore {
            imbalance_ratio: mean(|layer| layer.balance.imbalance_ratio),
            best_split_imbalance_ratio: mean(|layer| layer.best_split_imbalance_ratio),
            gap: mean(|layer| layer.gap),
            worst_layer: worst.map(|(layer, _)| layer),
            worst_imbalance_ratio: worst.map(|(_, ratio)| ratio),
            num_duplicates: layers.iter().map(|layer| layer.num_duplicates).sum(),
            unbalanced_imbalance_ratio: mean(|layer| layer.unbalanced.imbalance_ratio),
            off_node_share: mean(|layer| layer.off_node_share),
            layers,
        }
    }

    /// Scores `placement`, which has the dump's layers and experts. Gaps are those of `num_samples` groups of iterations.
    pub(super) fn of_placement(
        stats: &Stats,
        placement: &Placement,
        num_samples: usize,
        threads: usize,
    ) -> Result<DumpScore> {
        let figures = Figures { best_split: true, gap: true, nodes: None };
        let layers = &stats.summary().layers;
        let scores = threads::map(layers.len(), threads::resolve(threads), |index| {
            let (layer, slot_experts) = (layers[index], placement.layer_experts(layers[index])?);
            let loads = stats.layer_loads(layer, num_samples)?;
            Ok(LayerScore::new(placement.shape(), layer, slot_experts, &loads, &figures))
        })?;
        Ok(DumpScore::new(scores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks hold 0 1 | 0 2.
    fn placement() -> Placement {
        Placement::new(Shape::new(3, 4, 2).unwrap(), &[5], &[0, 1, 0, 2]).unwrap()
    }

    fn of(loads: &[f64], num_samples: usize) -> (BoundGap, BestSplit) {
        let placement = placement();
        let score = score(&placement, 5, loads, num_samples, 3).unwrap();
        (score.bound_gap(), score.best_split())
    }

    #[test]
    fn balance_splits_a_replicated_expert_evenly() {
        // Expert 0 (load 6) on slots 0, 1 and 3; expert 1 (load 1) on slot 2: ranks carry 2 + 2 and 1 + 2.
        let placement = Placement::new(Shape::new(2, 4, 2).unwrap(), &[5], &[0, 0, 1, 0]).unwrap();
        let score = score(&placement, 5, &[6.0, 1.0], 1, 2).unwrap();
        let balance = score.balance();
        assert_eq!((balance.mean, balance.max, balance.worst_rank), (3.5, 4.0, 0));
        assert_eq!((score.replicas(), score.max_replicas(), score.num_duplicates()), (&[3, 1][..], 3, 1));
    }

    #[test]
    fn gap_and_best_split_are_averaged_over_samples() {
        // 6 4 1: the ranks carry 3 + 4 and 3 + 1. Below 6, expert 0 would need both its slots, and of 3, 3 and 4 two would
        // share a rank. The best split gives 1.5 of expert 0 to rank 0: 5.5, which is the mean.
        let (bound, best) = of(&[6.0, 4.0, 1.0], 1);
        assert_eq!(bound, BoundGap { lower_bound: 6.0, gap: Some(1.0 / 6.0) });
        let even = BestSplit { max: 5.5, imbalance_ratio: Some(0.0), balancedness: Some(1.0) };
        assert_eq!(best, even);
        // 2 6 0: 1 + 6 and 1 + 0. The best split gives all of expert 0 to rank 1: 6 and 2. No placement is below 3 + 2, but the
        // bound is the mean.
        let (bound, best) = of(&[2.0, 6.0, 0.0], 1);
        assert_eq!(bound, BoundGap { lower_bound: 4.0, gap: Some(3.0 / 4.0) });
        assert_eq!((best.max, best.imbalance_ratio, best.balancedness), (6.0, Some(0.5), Some(4.0 / 6.0)));
        let (bound, best) = of(&[6.0, 4.0, 1.0, 2.0, 6.0, 0.0], 2);
        let gap = (1.0 / 6.0 + 3.0 / 4.0) / 2.0;
        assert_eq!(bound, BoundGap { lower_bound: 5.0, gap: Some(gap) });
        assert_eq!((best.max, best.balancedness), (5.75, Some((1.0 + 4.0 / 6.0) / 2.0)));
    }

    #[test]
    fn score_has_no_ratios_where_a_sample_has_no_load() {
        let (bound, best) = of(&[6.0, 4.0, 1.0, 0.0, 0.0, 0.0], 2);
        assert_eq!(bound, BoundGap { lower_bound: 6.0 / 2.0, gap: None });
        assert_eq!(best, BestSplit { max: 5.5 / 2.0, imbalance_ratio: None, balancedness: None });
    }

    #[test]
    fn score_refuses_loads_of_another_model() {
        let placement = placement();
        let refused = |layer, loads: &[f64], num_experts| {
            score(&placement, layer, loads, 1, num_experts).unwrap_err().to_string()
        };
        assert_eq!(refused(5, &[1.0; 4], 4), "num_experts is 4, the placement has 3");
        assert!(refused(6, &[1.0; 3], 3).starts_with("layer 6 is not in this placement"));
        assert!(refused(5, &[1.0, f64::NAN, 1.0], 3).contains("expert 1"));
    }

    #[test]
    fn off_node_share_counts_load_off_the_node_that_carries_most_of_its_group() {
        // Ranks hold 0 1 | 2 0 | 3 3; groups are 0 1 and 2 3.
        let placement = Placement::new(Shape::new(4, 6, 3).unwrap(), &[5], &[0, 1, 2, 0, 3, 3]).unwrap();
        let share = |loads: &[f64], num_samples, rank_to_node: &[i32]| {
            score(&placement, 5, loads, num_samples, 4).unwrap().off_node_share(2, rank_to_node).unwrap()
        };
        // Nodes are rank 0, and ranks 1 and 2. Group 0: 3 + 2 on the first, 3 on the other; group 1: all 4 on the other.
        assert_eq!(share(&[6.0, 2.0, 1.0, 3.0], 1, &[7, -2, -2]), Some(1.0 - 9.0 / 12.0));
        // In the other sample, 1 + 0 and 1; 2 and 0. Homes are the same: 1 of 4.
        let both = share(&[6.0, 2.0, 1.0, 3.0, 2.0, 0.0, 2.0, 0.0], 2, &[i32::MAX, i32::MIN, i32::MIN]);
        assert_eq!(both, Some(0.25));
        assert_eq!(share(&[6.0, 2.0, 1.0, 3.0], 1, &[4, 4, 4]), Some(0.0));
        assert_eq!(share(&[0.0; 4], 1, &[7, 2, 2]), None);
    }
}
