//! The load report: the imbalance of ranks and experts by layer and by iteration, measured and projected.

use serde::Serialize;

use super::balance::{Peak, average, in_order_rank_loads, worst_layer};
use super::{Balance, Balancedness, Idle, Recording, Score};
use crate::error::{Error, Result};
use crate::placement::{self, Shape, experts_in_order};
use crate::stats::Summary;
use crate::threads;

/// How a dump's load is distributed over ranks and experts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// The dump's sizes.
    pub summary: Summary,
    /// Whether the counts are of slots, not of experts.
    pub counts_slots: bool,
    /// [`Recording::is_ambiguous`].
    pub is_ambiguous: bool,
    /// The ranks of [`Views::before`] and, with a placement, of [`Views::projected`].
    pub num_ranks: usize,
    /// Whether [`Views::before`] differs from [`Views::measured`]: experts in order on other ranks than as dumped.
    pub is_rearranged: bool,
    /// Experts, slots and ranks of the projected placement. `None` without a placement.
    pub shape: Option<Shape>,
    /// Where the dump has no load.
    pub idle: Idle,
    /// The counted layers, ascending.
    pub layers: Vec<LayerReport>,
    /// The counted iterations, ascending.
    pub iterations: Vec<IterationReport>,
    /// The peaks of the ranks in each iteration, by layer.
    peaks: Vec<Views<Vec<Peak>>>,
}

/// A figure of one load as measured, without a load balancer, and with a placement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Views<T = Balance> {
    /// As dumped. `None` for ranks of a dump that counts experts on more ranks than experts: the slots of the ranks are unknown.
    pub measured: Option<T>,
    /// Without a load balancer: the experts in order. On more ranks than experts, in as many slots as the placement. `None` for
    /// more ranks than experts without a placement.
    pub before: Option<T>,
    /// With the placement, each expert's load split evenly over its replicas. `None` without a placement.
    pub projected: Option<T>,
}

impl<T> Views<T> {
    /// Applies `f` to each view.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Views<U> {
        Views {
            measured: self.measured.as_ref().map(&mut f),
            before: self.before.as_ref().map(&mut f),
            projected: self.projected.as_ref().map(&mut f),
        }
    }

    /// Combines the views of all layers, those that each layer has.
    fn combine<'a, U>(
        layers: impl Iterator<Item = &'a Views<T>> + Clone,
        f: impl Fn(Vec<&'a T>) -> U,
    ) -> Views<U>
    where
        T: 'a,
    {
        let all =
            |view: fn(&'a Views<T>) -> Option<&'a T>| layers.clone().map(view).collect::<Option<_>>().map(&f);
        Views {
            measured: all(|views| views.measured.as_ref()),
            before: all(|views| views.before.as_ref()),
            projected: all(|views| views.projected.as_ref()),
        }
    }
}

/// The means over layers of the fields of [`Balance`]: ratios over the layers with load, all else over all layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AverageBalance {
    /// Mean of [`Balance::mean`].
    pub mean: f64,
    /// Mean of [`Balance::std`].
    pub std: Option<f64>,
    /// Mean of [`Balance::max`].
    pub max: f64,
    /// Mean of [`Balance::imbalance_ratio`].
    pub imbalance_ratio: Option<f64>,
    /// Mean of [`Balance::balancedness`].
    pub balancedness: Option<f64>,
}

impl AverageBalance {
    fn new(layers: Vec<&Balance>) -> AverageBalance {
        let mean =
            |field: fn(&Balance) -> f64| layers.iter().map(|&b| field(b)).sum::<f64>() / layers.len() as f64;
        AverageBalance {
            mean: mean(|balance| balance.mean),
            std: average(layers.iter().map(|balance| balance.std)),
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

/// The ranks of one layer in one view.
#[derive(Debug, Clone)]
struct RankLoads {
    balance: Balance,
    /// The mean of each rank.
    means: Vec<f64>,
    /// By iteration.
    peaks: Vec<Peak>,
}

impl LoadReport {
    /// Reports on `recording`, and projects its placement if it has one.
    ///
    /// `num_ranks` is the number of ranks without a load balancer. `None` takes that of the placement, or of the dump. Fails if
    /// it differs from the placement's.
    pub fn new(recording: &Recording<'_>, num_ranks: Option<usize>, threads: usize) -> Result<LoadReport> {
        let summary = recording.summary();
        let shape = recording.placement().map(|placement| placement.shape());
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
        if num_ranks == 0 {
            return Err(Error::InvalidShape("0 ranks: there must be at least 1".into()));
        }
        let is_rearranged = match recording.counts_slots() {
            true => shape.is_some(),
            false => num_ranks != dumped_ranks || num_ranks > summary.num_experts,
        };
        let ranks = Ranks { num_ranks, dumped_ranks, is_rearranged };
        let reports = threads::map(summary.layers.len(), threads::resolve(threads), |index| {
            layer_report(recording, summary.layers[index], ranks)
        })?;
        let (layers, peaks): (Vec<_>, Vec<_>) = reports.into_iter().unzip();
        let iterations = (0..summary.rows.len() as usize).map(|index| IterationReport {
            iteration: summary.rows.first_iteration(index as u64),
            imbalance: Views::combine(peaks.iter(), |peaks: Vec<&Vec<Peak>>| {
                let ratios = peaks.into_iter().map(|peaks| peaks[index].imbalance_ratio());
                IterationImbalance::new(&summary.layers, &ratios.collect::<Vec<_>>())
            }),
        });
        let iterations = iterations.collect();
        let (summary, counts_slots, idle) = (summary.clone(), recording.counts_slots(), recording.idle()?);
        Ok(LoadReport {
            summary,
            counts_slots,
            is_ambiguous: recording.is_ambiguous(),
            num_ranks,
            is_rearranged,
            shape,
            idle,
            layers,
            iterations,
            peaks,
        })
    }

    /// The means over layers of the balance that `balance` selects: of ranks or of experts.
    pub fn averages(&self, balance: impl Fn(&LayerReport) -> Views) -> Views<AverageBalance> {
        let balances: Vec<Views> = self.layers.iter().map(balance).collect();
        Views::combine(balances.iter(), AverageBalance::new)
    }

    /// The balance of the ranks by the definitions of several systems. `num_layers` is the number of layers of the model, see
    /// [`LoadReport::model_layers`].
    pub fn balancedness(&self, num_layers: usize) -> Views<Balancedness> {
        Views::combine(self.peaks.iter(), |peaks| {
            let layers = self.summary.layers.iter().copied().zip(peaks.into_iter().map(|peaks| &peaks[..]));
            Balancedness::new(&layers.collect::<Vec<_>>(), num_layers)
        })
    }

    /// The layers of the model, dense ones included, if the dump's last layer is the model's.
    pub fn model_layers(&self) -> usize {
        self.summary.layers.last().map_or(0, |&last| last as usize + 1)
    }

    /// What a reader of the figures must know: what was left out, and why a view is missing.
    pub fn notes(&self) -> Vec<String> {
        let (num_ranks, num_experts) = (self.num_ranks, self.summary.num_experts);
        let mut notes = Vec::new();
        notes.extend(self.idle.note(self.layers.len()));
        if self.is_ambiguous {
            notes.push(
                "the dump does not say whether it counts experts or slots, of which the placement has as many; it is read \
                 as counts of experts"
                    .into(),
            );
        }
        if self.layers.iter().any(|layer| layer.ranks.before.is_none()) {
            notes.push(format!(
                "{num_ranks} ranks cannot hold {num_experts} experts in order, one slot each, so there is no load without \
                 a placement; pass a configuration file for {num_ranks} ranks"
            ));
        }
        if self.layers.iter().any(|layer| layer.ranks.measured.is_none()) {
            notes.push(format!(
                "the dump counts {num_experts} experts on more ranks, whose slots it does not have, so the measured load of \
                 a rank is unknown; count slots to measure it"
            ));
        }
        notes
    }

    /// The hottest ranks' load, added up over layers, without the placement over that with it. All ranks wait for the hottest,
    /// so this is the speedup of the experts' work. `None` without a placement or load.
    pub fn speedup(&self) -> Option<f64> {
        let (mut before, mut after) = (0.0, 0.0);
        for layer in &self.layers {
            before += layer.ranks.before.as_ref()?.max;
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

/// The ranks of a report.
#[derive(Debug, Clone, Copy)]
struct Ranks {
    num_ranks: usize,
    dumped_ranks: usize,
    is_rearranged: bool,
}

fn layer_report(
    recording: &Recording<'_>,
    layer: u32,
    ranks: Ranks,
) -> Result<(LayerReport, Views<Vec<Peak>>)> {
    let Ranks { num_ranks, dumped_ranks, is_rearranged } = ranks;
    let loads = recording.loads(layer)?;
    let num_ids = recording.summary().num_experts;
    let num_experts = recording.placement().map_or(num_ids, |placement| placement.shape().num_experts());
    let (ids, experts) = (loads.dumped().chunks_exact(num_ids), loads.experts().chunks_exact(num_experts));
    let shape = recording.placement().map(|placement| placement.shape());
    let in_order = || match shape {
        _ if num_ranks <= num_experts => {
            Some(experts.clone().map(|loads| in_order_rank_loads(num_ranks, loads)).collect())
        }
        Some(shape) => {
            Some(Score::new(shape, layer, &experts_in_order(shape), loads.experts()).rank_loads().collect())
        }
        None => None,
    };
    let measured =
        (dumped_ranks <= num_ids).then(|| RankLoads::new(recording.measured(&loads, dumped_ranks)));
    let before = if is_rearranged { in_order().map(RankLoads::new) } else { measured.clone() };
    let mut ranks = Views { measured, before, projected: None };
    let measured = Balance::from_rank_loads(ids);
    let before = if is_rearranged { Balance::from_rank_loads(experts.clone()) } else { measured };
    let mut balances = Views { measured: Some(measured), before: Some(before), projected: None };
    let (mut replicas, mut expert_ranks, mut num_duplicates) = (Vec::new(), Vec::new(), 0);
    if let Some(placement) = recording.placement() {
        let (shape, slot_experts) = (placement.shape(), placement.layer_experts(layer)?);
        let score = Score::new(shape, layer, slot_experts, loads.experts());
        ranks.projected = Some(RankLoads::new(score.rank_loads().collect()));
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
        ranks: ranks.map(|ranks| ranks.balance),
        experts: balances,
        rank_tokens: ranks.map(|ranks| ranks.means.clone()),
        tokens,
        replicas,
        expert_ranks,
        num_duplicates,
    };
    Ok((report, ranks.map(|ranks| ranks.peaks.clone())))
}

impl RankLoads {
    /// `rows` is `[iterations][ranks]`.
    fn new(rows: Vec<Vec<f64>>) -> RankLoads {
        let mut means = vec![0.0; rows[0].len()];
        for row in &rows {
            means.iter_mut().zip(row).for_each(|(mean, load)| *mean += load / rows.len() as f64);
        }
        RankLoads {
            balance: Balance::from_rank_loads(rows.iter()),
            means,
            peaks: rows.iter().map(|ranks| Peak::new(ranks)).collect(),
        }
    }
}
