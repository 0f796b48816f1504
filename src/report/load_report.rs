//! The load report: the imbalance of ranks and experts by layer and by iteration, measured and projected.

use serde::Serialize;

use super::balance::{average, in_order_rank_loads, worst_layer};
use super::{Balance, Recording, Score};
use crate::error::{Error, Result};
use crate::placement::{self, Shape};
use crate::stats::Summary;
use crate::threads;

/// How a dump's load is distributed over ranks and experts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// The dump's sizes.
    pub summary: Summary,
    /// Whether the counts are of slots, not of experts.
    pub counts_slots: bool,
    /// The ranks of [`Views::before`] and, with a placement, of [`Views::projected`].
    pub num_ranks: usize,
    /// Experts, slots and ranks of the projected placement. `None` without a placement.
    pub shape: Option<Shape>,
    /// The counted layers, ascending.
    pub layers: Vec<LayerReport>,
    /// The counted iterations, ascending.
    pub iterations: Vec<IterationReport>,
}

/// A figure of one load as measured, without a load balancer, and with a placement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Views<T = Balance> {
    /// As dumped.
    pub measured: T,
    /// Without a load balancer: the experts in order. `None` if that equals the measured load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unbalanced: Option<T>,
    /// With the placement, each expert's load split evenly over its replicas. `None` without a placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<T>,
}

impl<T> Views<T> {
    /// The view without a load balancer.
    pub fn before(&self) -> &T {
        self.unbalanced.as_ref().unwrap_or(&self.measured)
    }

    /// The views that exist, each with its name in JSON and CSV, in a fixed order.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &T)> {
        let views = [
            ("measured", Some(&self.measured)),
            ("unbalanced", self.unbalanced.as_ref()),
            ("projected", self.projected.as_ref()),
        ];
        views.into_iter().filter_map(|(name, view)| Some((name, view?)))
    }

    fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Views<U> {
        Views {
            measured: f(&self.measured),
            unbalanced: self.unbalanced.as_ref().map(&mut f),
            projected: self.projected.as_ref().map(&mut f),
        }
    }
}

/// The means over layers of the fields of [`Balance`]. The mean of a ratio is over the layers that have one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AverageBalance {
    /// Mean of [`Balance::mean`].
    pub mean: f64,
    /// Mean of [`Balance::std`].
    pub std: f64,
    /// Mean of [`Balance::max`].
    pub max: f64,
    /// Mean of [`Balance::imbalance_ratio`].
    pub imbalance_ratio: Option<f64>,
    /// Mean of [`Balance::balancedness`].
    pub balancedness: Option<f64>,
}

impl AverageBalance {
    fn new(layers: &[Balance]) -> AverageBalance {
        let mean = |field: fn(&Balance) -> f64| layers.iter().map(field).sum::<f64>() / layers.len() as f64;
        AverageBalance {
            mean: mean(|balance| balance.mean),
            std: mean(|balance| balance.std),
            max: mean(|balance| balance.max),
            imbalance_ratio: average(layers.iter().map(|balance| balance.imbalance_ratio)),
            balancedness: average(layers.iter().map(|balance| balance.balancedness)),
        }
    }
}

/// One layer of a [`LoadReport`].
#[derive(Debug, Clone, PartialEq)]
pub struct LayerReport {
    /// The layer's number.
    pub layer: u32,
    /// The balance of the ranks.
    pub ranks: Views,
    /// The balance of the experts, or of the slots in views of slots. [`Balance::worst_rank`] is the hottest expert or slot.
    pub experts: Views,
    /// The mean number of tokens of each rank in an iteration.
    pub rank_tokens: Views<Vec<f64>>,
    /// The tokens of each expert over all iterations; of each slot if slots were counted and there is no placement.
    pub tokens: Vec<u64>,
    /// The replica count of each expert; empty without a placement.
    pub replicas: Vec<u32>,
    /// The ranks that hold each expert, ascending; empty without a placement.
    pub expert_ranks: Vec<Vec<u32>>,
    /// Slots that repeat an expert of their rank.
    pub num_duplicates: usize,
}

/// The layers' imbalance ratios in one iteration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct IterationImbalance {
    /// The mean over the layers with load. `None` if no layer has load.
    pub average: Option<f64>,
    /// The largest ratio of a layer.
    pub worst: Option<f64>,
    /// The layer with the largest ratio.
    pub worst_layer: Option<u32>,
}

/// One iteration of a [`LoadReport`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IterationReport {
    /// The iteration's number.
    pub iteration: u64,
    /// The imbalance of the ranks.
    pub imbalance: Views<IterationImbalance>,
}

/// The rank loads of a layer, `[iterations][ranks]`.
type RankRows = Vec<Vec<f64>>;

/// The imbalance ratio of each iteration of a layer; `None` for an iteration without load.
type Ratios = Vec<Option<f64>>;

impl LoadReport {
    /// Reports on `recording`, and projects its placement if it has one.
    ///
    /// `num_ranks` is the number of ranks without a load balancer. `None` takes that of the placement, or of the dump. Fails if
    /// it differs from the placement's, or exceeds the number of experts.
    pub fn new(recording: &Recording<'_>, num_ranks: Option<usize>, threads: usize) -> Result<LoadReport> {
        let summary = recording.summary();
        let shape = recording.placement().map(|placement| placement.shape());
        let num_experts = shape.map_or(summary.num_experts, |shape| shape.num_experts());
        let placement_ranks = shape.map(|shape| shape.num_ranks());
        let num_ranks = num_ranks.or(placement_ranks).map_or_else(|| recording.num_ranks(), Ok)?;
        if let Some(placed) = placement_ranks.filter(|&placed| placed != num_ranks) {
            let message = format!("{num_ranks} ranks requested, but the placement has {placed}");
            return Err(Error::InvalidArgument(message));
        }
        // The ranks as dumped. Where they are unknown, those requested.
        let dumped_ranks = recording.num_ranks().unwrap_or(num_ranks);
        if shape.is_none() && recording.counts_slots() && num_ranks != dumped_ranks {
            return Err(Error::InvalidArgument(format!(
                "the dump counts slots of {dumped_ranks} ranks: pass the configuration file that was in use to place its \
                 experts on {num_ranks} ranks"
            )));
        }
        if num_ranks == 0 || num_ranks > num_experts {
            let message = format!("{num_ranks} ranks: there must be 1 to the {num_experts} experts");
            return Err(Error::InvalidShape(message));
        }
        let reports = threads::map(summary.layers.len(), threads::resolve(threads), |index| {
            layer_report(recording, summary.layers[index], num_ranks, dumped_ranks)
        })?;
        let (layers, ratios): (Vec<_>, Vec<_>) = reports.into_iter().unzip();
        let iterations = (0..summary.rows.len() as usize).map(|index| {
            let over_layers = |view: fn(&Views<Ratios>) -> Option<&Ratios>| {
                let ratios = ratios.iter().map(|ratios| view(ratios).map(|ratios| ratios[index]));
                Some(IterationImbalance::new(&summary.layers, &ratios.collect::<Option<Ratios>>()?))
            };
            let measured = IterationImbalance::new(
                &summary.layers,
                &ratios.iter().map(|ratios| ratios.measured[index]).collect::<Ratios>(),
            );
            let (unbalanced, projected) = (
                over_layers(|ratios| ratios.unbalanced.as_ref()),
                over_layers(|ratios| ratios.projected.as_ref()),
            );
            IterationReport {
                iteration: summary.rows.first_iteration(index as u64),
                imbalance: Views { measured, unbalanced, projected },
            }
        });
        let iterations = iterations.collect();
        let (summary, counts_slots) = (summary.clone(), recording.counts_slots());
        Ok(LoadReport { summary, counts_slots, num_ranks, shape, layers, iterations })
    }

    /// The means over layers of the balance that `balance` selects: of ranks or of experts.
    pub fn averages(&self, balance: impl Fn(&LayerReport) -> Views) -> Views<AverageBalance> {
        let balances: Vec<Views> = self.layers.iter().map(balance).collect();
        let all = |view: fn(&Views) -> Option<Balance>| balances.iter().map(view).collect::<Option<Vec<_>>>();
        Views {
            measured: AverageBalance::new(&balances.iter().map(|views| views.measured).collect::<Vec<_>>()),
            unbalanced: all(|views| views.unbalanced).map(|balances| AverageBalance::new(&balances)),
            projected: all(|views| views.projected).map(|balances| AverageBalance::new(&balances)),
        }
    }

    /// The hottest ranks' load, added up over layers, without the placement over that with it. All ranks wait for the hottest,
    /// so this is the speedup of the experts' work. `None` without a placement or load.
    pub fn speedup(&self) -> Option<f64> {
        let (mut before, mut after) = (0.0, 0.0);
        for layer in &self.layers {
            before += layer.ranks.before().max;
            after += layer.ranks.projected.as_ref()?.max;
        }
        Some(before / after).filter(|speedup| speedup.is_finite())
    }

    /// The layer with the largest imbalance ratio of its ranks in the selected view, and the ratio.
    pub fn worst_layer(&self, view: impl Fn(&Views) -> Option<&Balance>) -> Option<(u32, f64)> {
        worst_layer(
            self.layers
                .iter()
                .map(|layer| (layer.layer, view(&layer.ranks).and_then(|balance| balance.imbalance_ratio))),
        )
    }

    /// The `count` experts with the largest share of their layer's tokens, hottest first, as (index of the layer, expert).
    pub fn hottest(&self, count: usize) -> Vec<(usize, usize)> {
        let mut hottest = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let total = layer.tokens.iter().sum::<u64>() as f64;
            let tokens = layer.tokens.iter().enumerate().filter(|&(_, &tokens)| tokens > 0);
            hottest.extend(tokens.map(|(expert, &tokens)| (tokens as f64 / total, index, expert)));
        }
        hottest.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        hottest.into_iter().take(count).map(|(_, layer, expert)| (layer, expert)).collect()
    }
}

impl IterationImbalance {
    fn new(layers: &[u32], ratios: &[Option<f64>]) -> IterationImbalance {
        let worst = worst_layer(layers.iter().copied().zip(ratios.iter().copied()));
        IterationImbalance {
            average: average(ratios.iter().copied()),
            worst: worst.map(|(_, ratio)| ratio),
            worst_layer: worst.map(|(layer, _)| layer),
        }
    }
}

fn layer_report(
    recording: &Recording<'_>,
    layer: u32,
    num_ranks: usize,
    dumped_ranks: usize,
) -> Result<(LayerReport, Views<Ratios>)> {
    let loads = recording.loads(layer)?;
    let num_ids = recording.summary().num_experts;
    let num_experts = recording.placement().map_or(num_ids, |placement| placement.shape().num_experts());
    let (ids, experts) = (loads.dumped().chunks_exact(num_ids), loads.experts().chunks_exact(num_experts));
    let is_rearranged = match recording.counts_slots() {
        true => recording.placement().is_some(),
        false => num_ranks != dumped_ranks,
    };
    let mut ranks = Views {
        measured: recording.measured(&loads, dumped_ranks),
        unbalanced: is_rearranged
            .then(|| experts.clone().map(|loads| in_order_rank_loads(num_ranks, loads)).collect()),
        projected: None,
    };
    let mut balances = Views {
        measured: Balance::from_rank_loads(ids),
        unbalanced: is_rearranged.then(|| Balance::from_rank_loads(experts.clone())),
        projected: None,
    };
    let (mut replicas, mut expert_ranks, mut num_duplicates) = (Vec::new(), Vec::new(), 0);
    if let Some(placement) = recording.placement() {
        let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
        let score = Score::new(shape, layer, slot_experts, loads.experts());
        ranks.projected = Some(score.rank_loads().collect());
        balances.projected = Some(Balance::from_rank_loads(score.slot_loads()));
        replicas = score.replicas().to_vec();
        expert_ranks = placement::expert_ranks(shape, slot_experts);
        num_duplicates = score.num_duplicates();
    }
    let mut tokens = vec![0; num_experts];
    for loads in experts {
        // Whole numbers below 2^53, unless a dump has a weight that is none.
        tokens.iter_mut().zip(loads).for_each(|(tokens, &load)| *tokens += load.round() as u64);
    }
    let report = LayerReport {
        layer,
        ranks: ranks.map(|rows: &RankRows| Balance::from_rank_loads(rows.iter())),
        experts: balances,
        rank_tokens: ranks.map(mean_row),
        tokens,
        replicas,
        expert_ranks,
        num_duplicates,
    };
    let ratio = |ranks: &Vec<f64>| Balance::from_rank_loads([ranks].into_iter()).imbalance_ratio;
    Ok((report, ranks.map(|rows| rows.iter().map(ratio).collect())))
}

fn mean_row(rows: &RankRows) -> Vec<f64> {
    let mut means = vec![0.0; rows[0].len()];
    for row in rows {
        means.iter_mut().zip(row).for_each(|(mean, load)| *mean += load / rows.len() as f64);
    }
    means
}
