//! The score of a placement: every figure that is computed from a placement and loads.

use serde::{Serialize, Serializer};

use super::Balance;
use super::balance::{Peak, RatioMean, average, worst_layer};
use crate::error::{Error, Result};
use crate::placement::{
    NO_EXPERT, Placement, Shape, duplicates_in, experts_in_order, held_slots, replica_counts,
};
use crate::solve::{Loads, Nodes, best_split, lower_bound, lower_bound_of_unequal_ranks};
use crate::stats::{LayerLoads, Stats};
use crate::threads;

/// One layer of a placement with the loads of its experts.
///
/// Each method computes its figure per sample, and averages it over the samples. Ratios are averaged over the samples with load.
#[derive(Debug, Clone)]
pub struct Score<'a> {
    shape: Shape,
    layer: u32,
    slot_experts: &'a [u32],
    replicas: Vec<u32>,
    /// `[samples][experts]`, at least one sample.
    samples: &'a [f64],
}

/// The lower bound of the hottest rank's load, and the distance to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundGap {
    /// A load that the hottest rank has at least in any placement: see [`lower_bound`].
    pub lower_bound: f64,
    /// `(max - lower bound) / lower bound` with the even split; 0 is optimal. `None` if no sample has load.
    pub gap: Option<f64>,
}

/// The balance of the ranks with the best split of each expert's load over its replicas: see [`best_split`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestSplit {
    /// The load of the hottest rank.
    pub max: f64,
    /// `(max - mean) / mean`. `None` if no sample has load.
    pub imbalance_ratio: Option<f64>,
    /// `mean / max`. `None` if no sample has load.
    pub balancedness: Option<f64>,
}

/// Scores a layer of `placement` on `loads`, `[num_samples][num_experts]`.
///
/// Fails with [`Error::InvalidLoads`]. Fails with [`Error::InvalidArgument`] for a wrong length, an unknown layer, or a number of
/// experts that differs from the placement's.
pub fn score<'a>(
    placement: &'a Placement,
    layer: u32,
    loads: &'a [f64],
    num_samples: usize,
    num_experts: usize,
) -> Result<Score<'a>> {
    let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
    if num_experts != shape.num_experts() {
        let message = format!("num_experts is {num_experts}, the placement has {}", shape.num_experts());
        return Err(Error::InvalidArgument(message));
    }
    Loads::new(loads, &[layer], num_samples, num_experts)?;
    Ok(Score::new(shape, layer, slot_experts, loads))
}

impl<'a> Score<'a> {
    /// For loads that are known to be valid.
    pub(super) fn new(shape: Shape, layer: u32, slot_experts: &'a [u32], samples: &'a [f64]) -> Self {
        Score { shape, layer, slot_experts, replicas: replica_counts(shape, slot_experts), samples }
    }

    fn samples(&self) -> impl ExactSizeIterator<Item = &'a [f64]> + use<'a> {
        self.samples.chunks_exact(self.shape.num_experts())
    }

    /// The replica count of each expert, `[num_experts]`.
    pub fn replicas(&self) -> &[u32] {
        &self.replicas
    }

    /// The largest replica count.
    pub fn max_replicas(&self) -> u32 {
        self.replicas.iter().copied().max().unwrap_or(0)
    }

    /// Slots that repeat an expert of their rank.
    pub fn num_duplicates(&self) -> usize {
        duplicates_in(self.shape, self.layer, self.slot_experts).len()
    }

    /// The balance of the ranks with the even split.
    pub fn balance(&self) -> Balance {
        Balance::from_rank_loads(self.rank_loads())
    }

    /// The load of each rank with the even split, one item a sample.
    pub fn rank_loads(&self) -> impl Iterator<Item = Vec<f64>> {
        self.samples().map(|loads| self.rank_loads_of(loads).collect())
    }

    fn rank_loads_of(&self, loads: &[f64]) -> impl Iterator<Item = f64> {
        let ranks = self.slot_experts.chunks_exact(self.shape.slots_per_rank());
        ranks.map(move |rank| {
            let held = rank.iter().filter(|&&expert| expert != NO_EXPERT);
            held.map(|&expert| self.replica_load(loads, expert)).sum()
        })
    }

    /// The load of each slot that holds an expert, one item a sample.
    pub(super) fn slot_loads(&self) -> impl Iterator<Item = Vec<f64>> {
        self.samples().map(|loads| {
            held_slots(self.slot_experts).map(|(_, expert)| self.replica_load(loads, expert)).collect()
        })
    }

    fn replica_load(&self, loads: &[f64], expert: u32) -> f64 {
        loads[expert as usize] / f64::from(self.replicas[expert as usize])
    }

    /// Compares the even split with the lower bound of all placements.
    pub fn bound_gap(&self) -> BoundGap {
        let num_slots = held_slots(self.slot_experts).count();
        let (mut bounds, mut gaps) = (0.0, RatioMean::default());
        for loads in self.samples() {
            let bound = match num_slots == self.shape.num_slots() {
                true => lower_bound(loads, self.shape),
                false => lower_bound_of_unequal_ranks(loads, num_slots, self.shape.num_ranks()),
            };
            let max = self.rank_loads_of(loads).fold(0.0, f64::max);
            bounds += bound;
            // Rounding of sums may put a maximum that equals the bound below it.
            gaps.add((max > 0.0).then(|| (max - bound).max(0.0) / bound));
        }
        BoundGap { lower_bound: bounds / self.samples().len() as f64, gap: gaps.get() }
    }

    /// The balance of the ranks with the best split of each sample.
    pub fn best_split(&self) -> BestSplit {
        let (mut maxima, mut imbalance, mut balancedness) = (0.0, RatioMean::default(), RatioMean::default());
        for loads in self.samples() {
            let peak = Peak {
                mean: loads.iter().sum::<f64>() / self.shape.num_ranks() as f64,
                max: best_split(loads, self.slot_experts, self.shape),
            };
            maxima += peak.max;
            imbalance.add(peak.imbalance_ratio());
            balancedness.add(peak.balancedness());
        }
        BestSplit {
            max: maxima / self.samples().len() as f64,
            imbalance_ratio: imbalance.get(),
            balancedness: balancedness.get(),
        }
    }

    /// The share of the load away from the home node of its group, with the even split. `None` if no sample has load.
    ///
    /// Each of `num_groups` groups has equally many consecutive experts. `rank_to_node` has the node of each rank, `[num_ranks]`,
    /// any int32. A group's home node is the node with most of its load over all samples, the lower one of equal nodes.
    ///
    /// Fails with [`Error::InvalidShape`] if the groups differ in size, and with [`Error::InvalidArgument`] if the length of
    /// `rank_to_node` is wrong.
    pub fn off_node_share(&self, num_groups: usize, rank_to_node: &[i32]) -> Result<Option<f64>> {
        Ok(self.off_home_share(&Nodes::new(self.shape, num_groups, 1, Some(rank_to_node))?))
    }

    fn off_home_share(&self, nodes: &Nodes) -> Option<f64> {
        let (num_groups, num_nodes) = (nodes.num_groups, nodes.num_ranks.len());
        let (num_experts, group_size) = (self.shape.num_experts(), self.shape.num_experts() / num_groups);
        // The share of all load by group and node, summed over samples: [groups][nodes].
        let (mut sums, mut num_samples) = (vec![0.0; num_groups * num_nodes], 0);
        for loads in self.samples().filter(|loads| loads.iter().any(|&load| load > 0.0)) {
            num_samples += 1;
            // Divide first, so that no sum overflows.
            let total: f64 = loads.iter().map(|load| load / num_experts as f64).sum();
            let mut shares = vec![0.0; num_groups * num_nodes];
            for (slot, expert) in held_slots(self.slot_experts) {
                let node = nodes.of_rank[self.shape.rank_of(slot)] as usize;
                let replicas = f64::from(self.replicas[expert as usize]);
                let part = loads[expert as usize] / num_experts as f64 / replicas;
                shares[expert as usize / group_size * num_nodes + node] += part / total;
            }
            sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
        let home_share: f64 =
            sums.chunks_exact(num_nodes).map(|group| group.iter().copied().fold(0.0, f64::max)).sum();
        let share = 1.0 - home_share / f64::from(num_samples);
        Some(share.max(0.0)).filter(|_| num_samples > 0 && sums.iter().all(|sum| sum.is_finite()))
    }
}

/// The score of one layer of a dump.
///
/// Balances are computed over iterations. The gap and the off-node share are computed over the samples that the iterations were
/// grouped into.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerScore {
    /// The layer's number.
    pub layer: u32,
    /// The balance on as many ranks without a load balancer: the experts in order. On more ranks than experts, in as many slots.
    #[serde(skip)]
    pub unbalanced: Balance,
    /// The balance with the placement and the even split.
    #[serde(rename = "imbalance_ratio", serialize_with = "imbalance_ratio")]
    pub balance: Balance,
    /// [`BestSplit::imbalance_ratio`] over iterations. `None` if not requested, or without load.
    pub best_split_imbalance_ratio: Option<f64>,
    /// [`BoundGap::gap`] over samples, each with the same weight. `None` if not requested, or without load.
    pub gap: Option<f64>,
    /// Slots that repeat an expert of their rank.
    pub num_duplicates: usize,
    /// [`Score::off_node_share`] over samples. `None` if not requested, or without load.
    #[serde(skip)]
    pub off_node_share: Option<f64>,
}

fn imbalance_ratio<S: Serializer>(balance: &Balance, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    balance.imbalance_ratio.serialize(serializer)
}

/// The optional figures of a [`LayerScore`]: they take time, or need the nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScoreOptions {
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
        options: &ScoreOptions,
    ) -> LayerScore {
        let iterations = Score::new(shape, layer, slot_experts, &loads.rows);
        let samples = || Score::new(shape, layer, slot_experts, &loads.samples);
        LayerScore {
            layer,
            unbalanced: match shape.num_ranks() <= shape.num_experts() {
                true => Balance::unbalanced(shape.num_ranks(), iterations.samples()),
                false => Score::new(shape, layer, &experts_in_order(shape), &loads.rows).balance(),
            },
            balance: iterations.balance(),
            best_split_imbalance_ratio: options
                .best_split
                .then(|| iterations.best_split().imbalance_ratio)
                .flatten(),
            gap: options.gap.then(|| samples().bound_gap().gap).flatten(),
            num_duplicates: iterations.num_duplicates(),
            off_node_share: options.nodes.as_ref().and_then(|nodes| samples().off_home_share(nodes)),
        }
    }
}

/// The score of a placement on a dump. Means are over the layers with load.
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
    /// The mean imbalance ratio without a load balancer.
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
        let mean = |field: fn(&LayerScore) -> Option<f64>| average(layers.iter().map(field));
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

    /// Scores `placement`, which must have the dump's layers and experts. Gaps are computed over `num_samples` samples.
    pub(super) fn of_placement(
        stats: &Stats,
        placement: &Placement,
        num_samples: usize,
        threads: usize,
    ) -> Result<DumpScore> {
        let options = ScoreOptions { best_split: true, gap: true, nodes: None };
        let layers = &stats.summary().layers;
        let scores = threads::map(layers.len(), threads::resolve(threads), |index| {
            let (layer, slot_experts) = (layers[index], placement.layer_experts(layers[index])?);
            let loads = stats.layer_loads(layer, num_samples)?;
            Ok(LayerScore::new(placement.shape(), layer, slot_experts, &loads, &options))
        })?;
        Ok(DumpScore::new(scores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rank 0 holds experts 0 and 1, rank 1 holds 0 and 2.
    fn placement() -> Placement {
        Placement::new(Shape::new(3, 4, 2).unwrap(), &[5], &[0, 1, 0, 2]).unwrap()
    }

    fn bound_and_best_split(loads: &[f64], num_samples: usize) -> (BoundGap, BestSplit) {
        let placement = placement();
        let score = score(&placement, 5, loads, num_samples, 3).unwrap();
        (score.bound_gap(), score.best_split())
    }

    #[test]
    fn balance_splits_a_replicated_expert_evenly() {
        // Expert 0 (load 6) is in slots 0, 1 and 3, expert 1 (load 1) in slot 2: rank loads 2 + 2 and 1 + 2.
        let placement = Placement::new(Shape::new(2, 4, 2).unwrap(), &[5], &[0, 0, 1, 0]).unwrap();
        let score = score(&placement, 5, &[6.0, 1.0], 1, 2).unwrap();
        let balance = score.balance();
        assert_eq!((balance.mean, balance.max, balance.worst_rank), (3.5, 4.0, 0));
        assert_eq!((score.replicas(), score.max_replicas(), score.num_duplicates()), (&[3, 1][..], 3, 1));
    }

    #[test]
    fn gap_and_best_split_are_averaged_over_samples() {
        // Loads 6 4 1: rank loads 3 + 4 and 3 + 1. For a max below 6, expert 0 needs two slots, and of 3, 3 and 4 two are on
        // one rank. The best split gives 1.5 of expert 0 to rank 0: 5.5, which is the mean.
        let (bound, best) = bound_and_best_split(&[6.0, 4.0, 1.0], 1);
        assert_eq!(bound, BoundGap { lower_bound: 6.0, gap: Some(1.0 / 6.0) });
        let even = BestSplit { max: 5.5, imbalance_ratio: Some(0.0), balancedness: Some(1.0) };
        assert_eq!(best, even);
        // Loads 2 6 0: rank loads 1 + 6 and 1 + 0. The best split gives all of expert 0 to rank 1: 6 and 2. No placement is
        // below 3 + 2, but the bound is the mean.
        let (bound, best) = bound_and_best_split(&[2.0, 6.0, 0.0], 1);
        assert_eq!(bound, BoundGap { lower_bound: 4.0, gap: Some(3.0 / 4.0) });
        assert_eq!((best.max, best.imbalance_ratio, best.balancedness), (6.0, Some(0.5), Some(4.0 / 6.0)));
        let (bound, best) = bound_and_best_split(&[6.0, 4.0, 1.0, 2.0, 6.0, 0.0], 2);
        let gap = (1.0 / 6.0 + 3.0 / 4.0) / 2.0;
        assert_eq!(bound, BoundGap { lower_bound: 5.0, gap: Some(gap) });
        assert_eq!((best.max, best.balancedness), (5.75, Some((1.0 + 4.0 / 6.0) / 2.0)));
    }

    #[test]
    fn ratios_leave_out_samples_without_load() {
        let (bound, best) = bound_and_best_split(&[6.0, 4.0, 1.0, 0.0, 0.0, 0.0], 2);
        assert_eq!(bound, BoundGap { lower_bound: 6.0 / 2.0, gap: Some(1.0 / 6.0) });
        assert_eq!(best, BestSplit { max: 5.5 / 2.0, imbalance_ratio: Some(0.0), balancedness: Some(1.0) });
        let (bound, best) = bound_and_best_split(&[0.0; 6], 2);
        assert_eq!(bound, BoundGap { lower_bound: 0.0, gap: None });
        assert_eq!(best, BestSplit { max: 0.0, imbalance_ratio: None, balancedness: None });
    }

    #[test]
    fn before_more_ranks_than_experts_is_in_order_in_the_same_slots() {
        // 2 experts on 3 ranks of one slot: rank r holds expert 2r / 3, so 0 0 1. Loads 6 and 1: ranks 3 3 1, mean 7 / 3.
        let loads = LayerLoads { rows: vec![6.0, 1.0], samples: vec![6.0, 1.0] };
        let score =
            LayerScore::new(Shape::new(2, 3, 3).unwrap(), 5, &[0, 1, 0], &loads, &ScoreOptions::default());
        assert_eq!((score.unbalanced.max, score.unbalanced.worst_rank), (3.0, 0));
        assert_eq!(score.unbalanced.balancedness, Some(7.0 / 3.0 / 3.0));
    }

    #[test]
    fn score_rejects_loads_of_another_model() {
        let placement = placement();
        let error = |layer, loads: &[f64], num_experts| {
            score(&placement, layer, loads, 1, num_experts).unwrap_err().to_string()
        };
        assert_eq!(error(5, &[1.0; 4], 4), "num_experts is 4, the placement has 3");
        assert!(error(6, &[1.0; 3], 3).starts_with("layer 6 is not in this placement"));
        assert!(error(5, &[1.0, f64::NAN, 1.0], 3).contains("expert 1"));
    }

    #[test]
    fn off_node_share_is_the_load_away_from_the_node_with_most_of_its_group() {
        // Ranks hold 0 1 | 2 0 | 3 3. Groups are experts 0 1 and 2 3.
        let placement = Placement::new(Shape::new(4, 6, 3).unwrap(), &[5], &[0, 1, 2, 0, 3, 3]).unwrap();
        let share = |loads: &[f64], num_samples, rank_to_node: &[i32]| {
            score(&placement, 5, loads, num_samples, 4).unwrap().off_node_share(2, rank_to_node).unwrap()
        };
        // One node has rank 0, the other ranks 1 and 2. Group 0 has 3 + 2 on the first and 3 on the other, group 1 all 4 on the
        // other.
        assert_eq!(share(&[6.0, 2.0, 1.0, 3.0], 1, &[7, -2, -2]), Some(1.0 - 9.0 / 12.0));
        // Second sample: group 0 has 1 + 0 and 1, group 1 has 0 and 2. With the same home nodes, 1 of 4 is off-node.
        let both = share(&[6.0, 2.0, 1.0, 3.0, 2.0, 0.0, 2.0, 0.0], 2, &[i32::MAX, i32::MIN, i32::MIN]);
        assert_eq!(both, Some(0.25));
        assert_eq!(share(&[6.0, 2.0, 1.0, 3.0], 1, &[4, 4, 4]), Some(0.0));
        // A sample without load is left out.
        let idle = share(&[6.0, 2.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0], 2, &[7, -2, -2]);
        assert_eq!(idle, Some(1.0 - 9.0 / 12.0));
        assert_eq!(share(&[0.0; 4], 1, &[7, 2, 2]), None);
    }
}
