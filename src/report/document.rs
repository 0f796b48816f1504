//! The load report as JSON, which `eplb report --json` prints and the page embeds.

use std::path::Path;

use serde::{Serialize, Serializer};

use super::{
    AverageBalance, Balance, Balancedness, Idle, LayerPrediction, LayerReport, LoadReport, PredictionReport,
    Views,
};
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::stats::{IdKind, RowRange, Summary};

/// Number of experts in the list of the hottest.
const NUM_HOTTEST: usize = 20;

/// A report with the paths of its inputs.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    /// The report.
    pub report: &'a LoadReport,
    /// The dump's directory.
    pub dump: &'a Path,
    /// Layers of the model, dense ones included. `None`: see [`LoadReport::model_layers`].
    pub num_layers: Option<usize>,
    /// The projected placement, and its file.
    pub placement: Option<(&'a Path, &'a Placement)>,
    /// The comparison with a second dump, and that dump's directory.
    pub against: Option<(&'a Path, &'a PredictionReport)>,
}

impl Document<'_> {
    /// Formats the report as JSON. Layers are keys of objects, ascending. `per_expert` adds the figures of each expert.
    pub fn to_json(&self, per_expert: bool) -> Result<String> {
        let report = self.report;
        let LoadReport { summary, counts_slots, num_ranks, layers, iterations, .. } = report;
        let by_layer =
            |of: fn(&LayerReport) -> Views<Balance>| self.by_layer(|layer| of(layer).map(|&balance| balance));
        let root = Root {
            eplb: env!("CARGO_PKG_VERSION"),
            dump: Dump::new(self.dump, summary, *counts_slots),
            placement: self.placement.map(|(path, placement)| PlacementEntry::new(path, placement)),
            num_ranks: *num_ranks,
            notes: report.notes(),
            idle: &report.idle,
            ranks: by_layer(|layer| layer.ranks),
            average: self.named(report.averages(|layer| layer.ranks)),
            balancedness: Definitions {
                num_layers: self.num_layers(),
                views: self.named(report.balancedness(self.num_layers())),
            },
            iterations: iterations
                .iter()
                .map(|i| Iteration { iteration: i.iteration, imbalance: self.named(i.imbalance) })
                .collect(),
            rank_tokens: self.by_layer(|layer| layer.rank_tokens.map(|tokens| tokens.clone())),
            per_expert: per_expert.then(|| PerExpert {
                balances: by_layer(|layer| layer.experts),
                average: self.named(report.averages(|layer| layer.experts)),
                tokens: Ordered(layers.iter().map(|layer| (layer.layer, &layer.tokens[..])).collect()),
                replicas: report.shape.map(|_| {
                    Ordered(layers.iter().map(|layer| (layer.layer, &layer.replicas[..])).collect())
                }),
                hottest: self.hottest(),
            }),
            against: self.against.map(|(path, prediction)| SecondDump {
                dump: Dump::new(path, &prediction.summary, prediction.counts_slots),
                layers: Ordered(prediction.layers.iter().map(|layer| (layer.layer, layer)).collect()),
                average: prediction.averages(),
            }),
        };
        serde_json::to_string(&root).map_err(|e| Error::Internal(e.to_string()))
    }

    /// The layers of the model, dense ones included.
    pub fn num_layers(&self) -> usize {
        self.num_layers.unwrap_or_else(|| self.report.model_layers())
    }

    fn named<T>(&self, views: Views<T>) -> Named<T> {
        let unbalanced = self.report.is_rearranged.then_some(views.before);
        Named { measured: views.measured, unbalanced, projected: views.projected }
    }

    /// A map of layers for each view.
    fn by_layer<T>(&self, of: impl Fn(&LayerReport) -> Views<T>) -> Named<Ordered<T>> {
        let mut maps = [(); 3].map(|()| Vec::new());
        for layer in &self.report.layers {
            let views = of(layer);
            for (map, view) in maps.iter_mut().zip([views.measured, views.before, views.projected]) {
                map.extend(view.map(|view| (layer.layer, view)));
            }
        }
        let [measured, before, projected] =
            maps.map(|layers| Some(Ordered(layers)).filter(|layers| !layers.0.is_empty()));
        self.named(Views { measured, before, projected })
    }

    fn hottest(&self) -> Vec<HotExpert<'_>> {
        let hot = |(index, expert): (usize, usize)| {
            let layer = &self.report.layers[index];
            HotExpert {
                layer: layer.layer,
                expert,
                tokens: layer.tokens[expert],
                share: layer.tokens[expert] as f64 / layer.tokens.iter().sum::<u64>() as f64,
                ranks: layer.expert_ranks.get(expert).map(|ranks| &ranks[..]),
            }
        };
        self.report.hottest(NUM_HOTTEST).into_iter().map(hot).collect()
    }
}

/// The views by their names in JSON.
#[derive(Serialize)]
struct Named<T> {
    measured: Option<T>,
    /// Without a load balancer. Absent if it equals `measured`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unbalanced: Option<Option<T>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projected: Option<T>,
}

/// A map that serializes in the order of its entries.
struct Ordered<T>(Vec<(u32, T)>);

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(layer, value)| (layer, value)))
    }
}

#[derive(Serialize)]
struct Root<'a> {
    eplb: &'static str,
    dump: Dump,
    placement: Option<PlacementEntry>,
    num_ranks: usize,
    notes: Vec<String>,
    idle: &'a Idle,
    #[serde(flatten)]
    ranks: Named<Ordered<Balance>>,
    average: Named<AverageBalance>,
    balancedness: Definitions,
    iterations: Vec<Iteration>,
    rank_tokens: Named<Ordered<Vec<f64>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_expert: Option<PerExpert<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<SecondDump<'a>>,
}

#[derive(Serialize)]
struct Definitions {
    /// Of the model: the divisor of SGLang's.
    num_layers: usize,
    #[serde(flatten)]
    views: Named<Balancedness>,
}

#[derive(Serialize)]
struct Dump {
    path: String,
    num_experts: usize,
    experts_per_token: usize,
    /// 0 if pipeline stages have different numbers.
    num_ranks: usize,
    num_files: usize,
    missing_ranks: Vec<u32>,
    counts: IdKind,
    /// Of the first dump, if there are several.
    #[serde(flatten)]
    rows: DumpRows,
    /// Of each dump, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dumps: Vec<DumpRows>,
}

#[derive(Serialize)]
struct DumpRows {
    iter_start: u64,
    iter_stop: u64,
    iter_bucket: u64,
    iter_stride: u64,
}

impl DumpRows {
    fn new(rows: &RowRange) -> DumpRows {
        DumpRows {
            iter_start: rows.iterations.start,
            iter_stop: rows.iterations.stop,
            iter_bucket: rows.rows.bucket(),
            iter_stride: rows.rows.stride(),
        }
    }
}

impl Dump {
    fn new(path: &Path, summary: &Summary, counts_slots: bool) -> Dump {
        let dumps = summary.rows.dumps();
        Dump {
            path: path.display().to_string(),
            num_experts: summary.num_experts,
            experts_per_token: summary.experts_per_token,
            num_ranks: summary.num_ranks,
            num_files: summary.num_files,
            missing_ranks: summary.missing_ranks.clone(),
            counts: if counts_slots { IdKind::Slot } else { IdKind::Expert },
            rows: DumpRows::new(&dumps[0]),
            dumps: dumps.iter().filter(|_| dumps.len() > 1).map(DumpRows::new).collect(),
        }
    }
}

#[derive(Serialize)]
struct PlacementEntry {
    path: String,
    num_experts: usize,
    num_slots: usize,
    num_ranks: usize,
    num_duplicates: usize,
    hash: String,
}

impl PlacementEntry {
    fn new(path: &Path, placement: &Placement) -> PlacementEntry {
        let shape = placement.shape();
        PlacementEntry {
            path: path.display().to_string(),
            num_experts: shape.num_experts(),
            num_slots: shape.num_slots(),
            num_ranks: shape.num_ranks(),
            num_duplicates: placement.duplicates().len(),
            hash: format!("{:016x}", placement.hash()),
        }
    }
}

#[derive(Serialize)]
struct Iteration {
    iteration: u64,
    #[serde(flatten)]
    imbalance: Named<super::IterationImbalance>,
}

#[derive(Serialize)]
struct PerExpert<'a> {
    #[serde(flatten)]
    balances: Named<Ordered<Balance>>,
    average: Named<AverageBalance>,
    tokens: Ordered<&'a [u64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<Ordered<&'a [u32]>>,
    hottest: Vec<HotExpert<'a>>,
}

#[derive(Serialize)]
struct HotExpert<'a> {
    layer: u32,
    expert: usize,
    tokens: u64,
    /// Of its layer's tokens.
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct SecondDump<'a> {
    dump: Dump,
    layers: Ordered<&'a LayerPrediction>,
    average: super::AveragePrediction,
}
