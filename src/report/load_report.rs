//! The load report: how uneven ranks and experts are, per layer and per iteration, as dumped and as projected.

use serde::Serialize;

use super::balance::{average, in_order, worst_layer};
use super::{Balance, Recording, Score};
use crate::error::{Error, Result};
use crate::placement::{Shape, expert_ranks};
use crate::stats::Summary;
use crate::threads;

/// How the load of a dump spreads over ranks and experts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// What was counted.
    pub summary: Summary,
    /// Whether slots were counted and not experts.
    pub counts_slots: bool,
    /// The ranks of [`Views::before`] and, with a placement, of [`Views::projected`].
    pub num_ranks: usize,
    /// Experts, slots and ranks of the placement that is projected, if any.
    pub shape: Option<Shape>,
    /// The layers that were counted, ascending.
    pub layers: Vec<LayerReport>,
    /// The iterations that were counted.
    pub iterations: Vec<IterationReport>,
}

/// One load in up to three arrangements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Views<T = Balance> {
    /// As dumped.
    pub measured: T,
    /// Without a load balancer: experts in order, as many on each rank. `None` where the measured load is that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unbalanced: Option<T>,
    /// With the placement, an expert's load split evenly over its replicas. `None` without a placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<T>,
}

impl<T> Views<T> {
    /// Without a load balancer.
    pub fn before(&self) -> &T {
        self.unbalanced.as_ref().unwrap_or(&self.measured)
    }

    /// Each view by its name in files, in a fixed order.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &T)> {
        let views = [
            ("measured", Some(&self.measured)),
            ("unbalanced", self.unbalanced.as_ref()),
            ("projected", self.projected.as_ref()),
        ];
        views.into_iter().filter_map(|(name, view)| Some((name, view?)))
    }

    fn map<U>(&self, mut of: impl FnMut(&T) -> U) -> Views<U> {
        Views {
            measured: of(&self.measured),
            unbalanced: self.unbalanced.as_ref().map(&mut of),
            projected: self.projected.as_ref().map(&mut of),
        }
    }
}

/// The mean over layers of each figure of a [`Balance`]; layers without a ratio are left out of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AverageBalance {
    /// Of [`Balance::mean`].
    pub mean: f64,
    /// Of [`Balance::std`].
    pub std: f64,
    /// Of [`Balance::max`].
    pub max: f64,
    /// Of [`Balance::imbalance_ratio`].
    pub imbalance_ratio: Option<f64>,
    /// Of [`Balance::balancedness`].
    pub balancedness: Option<f64>,
}

impl AverageBalance {
    fn of(layers: &[Balance]) -> AverageBalance {
        let mean = |of: fn(&Balance) -> f64| layers.iter().map(of).sum::<f64>() / layers.len() as f64;
        AverageBalance {
            mean: mean(|balance| balance.mean),
            std: mean(|balance| balance.std),
            max: mean(|balance| balance.max),
            imbalance_ratio: average(layers.iter().map(|balance| balance.imbalance_ratio)),
            balancedness: average(layers.iter().map(|balance| balance.balancedness)),
        }
    }
}

/// The load of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerReport {
    /// The layer's number.
    pub layer: u32,
    /// How even the ranks are.
    pub ranks: Views,
    /// How even the experts are, or the slots where those were counted or are projected; [`Balance::worst_rank`] is the
    /// hottest of them.
    pub experts: Views,
    /// The tokens of each rank, the mean of an iteration.
    pub rank_tokens: Views<Vec<f64>>,
    /// The tokens of each expert over all iterations, or of each slot where those were counted and there is no placement.
    pub tokens: Vec<u64>,
    /// The slots of each expert; empty without a placement.
    pub replicas: Vec<u32>,
    /// The ranks that hold each expert, ascending; empty without a placement.
    pub expert_ranks: Vec<Vec<u32>>,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: usize,
}

/// The imbalance ratio of one iteration over the layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Imbalance {
    /// The mean over layers, those without load left out; `None` where no layer has any.
    pub average: Option<f64>,
    /// The largest of them.
    pub worst: Option<f64>,
    /// The layer that has it.
    pub worst_layer: Option<u32>,
}

/// One iteration over all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IterationReport {
    /// The iteration's number.
    pub iteration: u64,
    /// How uneven its ranks are.
    pub imbalance: Views<Imbalance>,
}

/// `[iterations][ranks]` of a layer.
type RankRows = Vec<Vec<f64>>;

/// The imbalance ratio of each iteration of a layer; `None` where its ranks are all zero.
type Ratios = Vec<Option<f64>>;

impl LoadReport {
    /// Reports on `recording`, with its placement projected if it has one.
    ///
    /// `num_ranks` is the number of ranks without a load balancer; `None` takes that of the placement, or of the dump. Fails
    /// where it is not that of the placement, and where there are more ranks than experts.
    pub fn new(recording: &Recording<'_>, num_ranks: Option<usize>, threads: usize) -> Result<LoadReport> {
        let summary = recording.summary();
        let shape = recording.placement().map(|placement| placement.shape());
        let num_experts = shape.map_or(summary.num_experts, |shape| shape.num_experts());
        let placed = shape.map(|shape| shape.num_ranks());
        let num_ranks = num_ranks.or(placed).unwrap_or(recording.num_ranks());
        if let Some(placed) = placed.filter(|&placed| placed != num_ranks) {
            let message = format!("{num_ranks} ranks asked for, the placement is for {placed}");
            return Err(Error::InvalidArgument(message));
        }
        if shape.is_none() && recording.counts_slots() && num_ranks != recording.num_ranks() {
            return Err(Error::InvalidArgument(format!(
                "the dump counts slots of {} ranks: give the configuration file that was in force, and its experts can be \
                 arranged on {num_ranks}",
                recording.num_ranks()
            )));
        }
        if num_ranks == 0 || num_ranks > num_experts {
            let message = format!("{num_ranks} ranks: there must be 1 to the {num_experts} experts");
            return Err(Error::InvalidShape(message));
        }
        let made = threads::map(summary.layers.len(), threads::resolve(threads), |index| {
            layer_report(recording, summary.layers[index], num_ranks)
        })?;
        let (layers, ratios): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let iterations = (0..summary.iterations.len() as usize).map(|index| {
            let over_layers = |view: fn(&Views<Ratios>) -> Option<&Ratios>| {
                let ratios = ratios.iter().map(|ratios| view(ratios).map(|ratios| ratios[index]));
                Some(Imbalance::of(&summary.layers, &ratios.collect::<Option<Ratios>>()?))
            };
            let measured = Imbalance::of(
                &summary.layers,
                &ratios.iter().map(|ratios| ratios.measured[index]).collect::<Ratios>(),
            );
            let (unbalanced, projected) = (
                over_layers(|ratios| ratios.unbalanced.as_ref()),
                over_layers(|ratios| ratios.projected.as_ref()),
            );
            IterationReport {
                iteration: summary.iterations.start + index as u64,
                imbalance: Views { measured, unbalanced, projected },
            }
        });
        let iterations = iterations.collect();
        let (summary, counts_slots) = (summary.clone(), recording.counts_slots());
        Ok(LoadReport { summary, counts_slots, num_ranks, shape, layers, iterations })
    }

    /// The average row of the report, of ranks or of experts.
    pub fn averages(&self, of: impl Fn(&LayerReport) -> Views) -> Views<AverageBalance> {
        let balances: Vec<Views> = self.layers.iter().map(of).collect();
        let all = |view: fn(&Views) -> Option<Balance>| balances.iter().map(view).collect::<Option<Vec<_>>>();
        Views {
            measured: AverageBalance::of(&balances.iter().map(|views| views.measured).collect::<Vec<_>>()),
            unbalanced: all(|views| views.unbalanced).map(|balances| AverageBalance::of(&balances)),
            projected: all(|views| views.projected).map(|balances| AverageBalance::of(&balances)),
        }
    }

    /// The load of the hottest ranks without the placement over that with it: all ranks wait for the hottest. `None` without a
    /// placement or without load.
    pub fn speedup(&self) -> Option<f64> {
        let (mut before, mut after) = (0.0, 0.0);
        for layer in &self.layers {
            before += layer.ranks.before().max;
            after += layer.ranks.projected.as_ref()?.max;
        }
        Some(before / after).filter(|speedup| speedup.is_finite())
    }

    /// The layer with the largest imbalance ratio in one of the views, and the ratio.
    pub fn worst_layer(&self, view: impl Fn(&Views) -> Option<&Balance>) -> Option<(u32, f64)> {
        worst_layer(
            self.layers
                .iter()
                .map(|layer| (layer.layer, view(&layer.ranks).and_then(|balance| balance.imbalance_ratio))),
        )
    }

    /// The `count` experts with the largest share of their layer's tokens, as (index of the layer, expert), hottest first.
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

impl Imbalance {
    fn of(layers: &[u32], ratios: &[Option<f64>]) -> Imbalance {
        let worst = worst_layer(layers.iter().copied().zip(ratios.iter().copied()));
        Imbalance {
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
) -> Result<(LayerReport, Views<Ratios>)> {
    let loads = recording.loads(layer)?;
    let num_ids = recording.summary().num_experts;
    let num_experts = recording.placement().map_or(num_ids, |placement| placement.shape().num_experts());
    let (ids, experts) = (loads.dumped().chunks_exact(num_ids), loads.experts().chunks_exact(num_experts));
    let rearranged = match recording.counts_slots() {
        true => recording.placement().is_some(),
        false => num_ranks != recording.num_ranks(),
    };
    let mut ranks = Views {
        measured: recording.measured(&loads),
        unbalanced: rearranged.then(|| experts.clone().map(|loads| in_order(num_ranks, loads)).collect()),
        projected: None,
    };
    let mut balances = Views {
        measured: Balance::of_ranks(ids),
        unbalanced: rearranged.then(|| Balance::of_ranks(experts.clone())),
        projected: None,
    };
    let (mut replicas, mut ranks_of, mut num_duplicates) = (Vec::new(), Vec::new(), 0);
    if let Some(placement) = recording.placement() {
        let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
        let score = Score::new(shape, layer, slot_experts, loads.experts());
        ranks.projected = Some(score.rank_loads().collect());
        balances.projected = Some(Balance::of_ranks(score.slot_loads()));
        replicas = score.replicas().to_vec();
        ranks_of = expert_ranks(shape, slot_experts);
        num_duplicates = score.num_duplicates();
    }
    let mut tokens = vec![0; num_experts];
    for loads in experts {
        // Whole numbers below 2^53: see Stats::layer_samples.
        tokens.iter_mut().zip(loads).for_each(|(tokens, &load)| *tokens += load as u64);
    }
    let report = LayerReport {
        layer,
        ranks: ranks.map(|rows: &RankRows| Balance::of_ranks(rows.iter())),
        experts: balances,
        rank_tokens: ranks.map(mean_row),
        tokens,
        replicas,
        expert_ranks: ranks_of,
        num_duplicates,
    };
    let ratio = |ranks: &Vec<f64>| Balance::of_ranks([ranks].into_iter()).imbalance_ratio;
    Ok((report, ranks.map(|rows| rows.iter().map(ratio).collect())))
}

fn mean_row(rows: &RankRows) -> Vec<f64> {
    let mut means = vec![0.0; rows[0].len()];
    for row in rows {
        means.iter_mut().zip(row).for_each(|(mean, load)| *mean += load / rows.len() as f64);
    }
    means
}
