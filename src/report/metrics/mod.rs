//! The state of recorders, placements, dispatches and rebalancers as text for Prometheus.

mod exposition;

use std::fmt::Display;

use self::exposition::{Exposition, Kind, caller_labels, label};
use crate::dispatch::{Dispatch, Rule};
use crate::error::{Error, Result, shortened};
use crate::live::{KeepReason, Rebalancer};
use crate::placement::{Placement, duplicates_in, replica_counts};
use crate::stats::{Info, State};

/// Labels that eplb sets itself, and the caller must not.
const RESERVED_LABELS: [&str; 6] = ["hash", "layer", "reason", "result", "rule", "state"];

/// Metrics of any number of objects. Each is a snapshot of the moment when the object was added.
///
/// Add all objects of a process to one `Metrics`, since the format requires the samples of a metric to be consecutive. Labels
/// distinguish the objects.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    exposition: Exposition,
    /// The kind and the formatted labels of each object.
    objects: Vec<(&'static str, String)>,
    without_layers: bool,
}

impl Metrics {
    /// Sets whether objects that are added from here on have series by layer, as by default. Without them, each such metric has
    /// one series: the sum over layers, and the largest value of `eplb_placement_max_replicas` and of
    /// `eplb_rebalancer_generation`. `eplb_rebalancer_layer_balance` is left out.
    pub fn set_layer_series(&mut self, layer_series: bool) {
        self.without_layers = !layer_series;
    }

    /// Adds the metrics of a recorder.
    ///
    /// `labels` are the caller's, such as `("rank", "3")`. A name has letters, digits and underscores, and a value is not empty.
    /// Fails if another recorder has the same labels.
    pub fn add_recorder(&mut self, info: &Info, labels: &[(&str, &str)]) -> Result<()> {
        let mut object = self.object("recorder", labels)?;
        object.gauge(
            "eplb_recorder_state",
            "1 for the current state, 0 for the others.",
            labelled("state", STATES.map(|(state, name)| (name, u8::from(state == info.state)))),
        );
        object.gauge(
            "eplb_recorder_error",
            "1 if the dump failed, counts were lost, or the device could not be read; otherwise 0.",
            single(u8::from(info.error.is_some())),
        );
        object.gauge(
            "eplb_recorder_iteration",
            "The last iteration that began; -1 before the first.",
            single(info.iteration.map_or(-1, i128::from)),
        );
        object.gauge("eplb_recorder_iter_start", "First iteration to count.", single(info.range.start));
        object.gauge(
            "eplb_recorder_iter_stop",
            "Iteration after the last one to count.",
            single(info.range.stop),
        );
        object.gauge(
            "eplb_recorder_iter_bucket",
            "Counted iterations that a row of the dump adds up.",
            single(info.rows.bucket()),
        );
        object.gauge(
            "eplb_recorder_iter_stride",
            "Of so many iterations one is counted.",
            single(info.rows.stride()),
        );
        object.counter(
            "eplb_recorder_iterations_total",
            "Iterations that began and were counted.",
            single(info.iterations()),
        );
        object.counter(
            "eplb_recorder_skipped_iterations_total",
            "Iterations between counted ones that never began, and are empty in the dump.",
            single(info.skipped),
        );
        let layers = || info.layers.iter().zip(&info.totals);
        object.counter(
            "eplb_recorder_tokens_total",
            "Valid tokens that were counted.",
            object.by_layer(info.layers.iter().zip(info.tokens()), u64::saturating_add),
        );
        object.counter(
            "eplb_recorder_out_of_range_ids_total",
            "Ids of valid tokens that name no expert, except -1, and were not counted.",
            object
                .by_layer(layers().map(|(layer, totals)| (layer, totals.out_of_range)), u64::saturating_add),
        );
        object.counter(
            "eplb_recorder_padding_ids_total",
            "Ids of the tokens after the valid ones, and ids of -1, which are ignored.",
            object
                .by_layer(layers().map(|(layer, totals)| (layer, totals.all_padding())), u64::saturating_add),
        );
        object.counter(
            "eplb_recorder_dumps_total",
            "Attempts to write a dump.",
            labelled("result", [("written", info.dumps.written), ("failed", info.dumps.failed)]),
        );
        object.gauge("eplb_recorder_layers", "Layers to count.", single(info.layers.len()));
        object.gauge(
            "eplb_recorder_registered_layers",
            "Layers with a registered buffer.",
            single(info.registered_layers),
        );
        object.gauge(
            "eplb_recorder_workspace_bytes",
            "Memory held on the device, in bytes.",
            single(info.memory.workspace_bytes),
        );
        object.gauge(
            "eplb_recorder_host_bytes",
            "Host memory held for the copy back, in bytes.",
            single(info.memory.host_bytes),
        );
        Ok(())
    }

    /// Adds the metrics of a placement. `labels` as for [`Metrics::add_recorder`].
    pub fn add_placement(&mut self, placement: &Placement, labels: &[(&str, &str)]) -> Result<()> {
        let mut object = self.object("placement", labels)?;
        let shape = placement.shape();
        object.gauge(
            "eplb_placement_info",
            "1, labelled with the placement's hash.",
            labelled("hash", [(hex(placement.hash()), 1)]),
        );
        object.gauge("eplb_placement_experts", "Experts of a layer.", single(shape.num_experts()));
        object.gauge(
            "eplb_placement_ranks",
            "Ranks of the expert-parallel group.",
            single(shape.num_ranks()),
        );
        object.gauge("eplb_placement_slots", "Slots of all ranks together.", single(shape.num_slots()));
        object.gauge("eplb_placement_slots_per_rank", "Slots of one rank.", single(shape.slots_per_rank()));
        object.gauge("eplb_placement_layers", "Layers.", single(placement.layers().len()));
        object.gauge(
            "eplb_placement_layer_updates_per_iter",
            "Layers that an engine with an online balancer updates in an iteration.",
            single(placement.layer_updates_per_iter()),
        );
        let max_replicas = |experts| replica_counts(shape, experts).into_iter().max().unwrap_or(0);
        object.gauge(
            "eplb_placement_max_replicas",
            "The largest replica count of an expert.",
            object.by_layer(
                placement.iter().map(|(layer, experts)| (layer, max_replicas(experts))),
                std::cmp::max,
            ),
        );
        let duplicates = |layer, experts| duplicates_in(shape, layer, experts).len();
        object.gauge(
            "eplb_placement_duplicates",
            "Slots that repeat an expert of their rank.",
            object.by_layer(
                placement.iter().map(|(layer, experts)| (layer, duplicates(layer, experts))),
                usize::saturating_add,
            ),
        );
        Ok(())
    }

    /// Adds the metrics of a dispatch. `labels` as for [`Metrics::add_recorder`].
    pub fn add_dispatch(&mut self, dispatch: &Dispatch, labels: &[(&str, &str)]) -> Result<()> {
        let mut object = self.object("dispatch", labels)?;
        let shape = dispatch.shape();
        let rule = match dispatch.rule() {
            Rule::RoundRobin => "round-robin",
            Rule::TokenHash => "token-hash",
            Rule::Nearest => "nearest",
            Rule::LeastLoaded => "least-loaded",
        };
        let (hash, rule) = (label("hash", hex(dispatch.placement_hash())), label("rule", rule));
        object.gauge(
            "eplb_dispatch_info",
            "1, labelled with the hash of the placement in use and the routing rule.",
            [(format!("{hash},{rule}"), 1)],
        );
        object.gauge("eplb_dispatch_experts", "Experts of a layer.", single(shape.num_experts()));
        object.gauge("eplb_dispatch_ranks", "Ranks of the expert-parallel group.", single(shape.num_ranks()));
        object.gauge("eplb_dispatch_slots", "Slots of all ranks together.", single(shape.num_slots()));
        object.gauge("eplb_dispatch_slots_per_rank", "Slots of one rank.", single(shape.slots_per_rank()));
        object.gauge(
            "eplb_dispatch_experts_per_token",
            "Experts that the router chooses for each token.",
            single(dispatch.experts_per_token()),
        );
        object.gauge("eplb_dispatch_layers", "Layers to route.", single(dispatch.num_layers()));
        object.gauge(
            "eplb_dispatch_layers_with_rank_counts",
            "Layers that are routed by the counts of all ranks.",
            single(dispatch.num_layers_with_rank_counts()),
        );
        object.gauge(
            "eplb_dispatch_max_replicas",
            "Width of the dense map; 0 without one.",
            single(dispatch.max_replicas()),
        );
        object.gauge(
            "eplb_dispatch_workspace_bytes",
            "Memory of the tables on the device, in bytes.",
            single(dispatch.workspace_bytes()),
        );
        Ok(())
    }

    /// Adds the metrics of a rebalancer. `labels` as for [`Metrics::add_recorder`].
    pub fn add_rebalancer(&mut self, rebalancer: &Rebalancer, labels: &[(&str, &str)]) -> Result<()> {
        let mut object = self.object("rebalancer", labels)?;
        let info = rebalancer.info();
        object.gauge(
            "eplb_rebalancer_balance",
            "Mean / max of rank loads: the observed windows in the placement in force. 0 without counts.",
            single(info.balance),
        );
        object.gauge(
            "eplb_rebalancer_balance_promised",
            "What the last plan promised. 0 before the first.",
            single(info.balance_promised),
        );
        object.gauge(
            "eplb_rebalancer_balance_measured",
            "The last window in the placement in force. 0 before the first.",
            single(info.balance_measured),
        );
        let balance = |index: usize| rebalancer.layer_balance(index);
        let layers = || rebalancer.layers().iter().enumerate();
        let layer_balances = layers().map(|(index, layer)| (layer, balance(index)));
        if object.layer_series {
            object.gauge(
                "eplb_rebalancer_layer_balance",
                "As eplb_rebalancer_balance, of a layer.",
                labelled("layer", layer_balances),
            );
        }
        object.gauge(
            "eplb_rebalancer_generation",
            "1, and one more with each commit of the layer.",
            object
                .by_layer(rebalancer.layers().iter().zip(rebalancer.generations().iter().copied()), u64::max),
        );
        let kept = KeepReason::ALL.map(|reason| (reason.name(), info.num_kept[reason as usize]));
        object.counter(
            "eplb_rebalancer_plans_total",
            "Plans by the reason why they keep the placement; none for those that change layers.",
            labelled("reason", [("none", info.num_plans)].into_iter().chain(kept)),
        );
        object.counter("eplb_rebalancer_commits_total", "Commits of layers.", single(info.num_commits));
        object.counter(
            "eplb_rebalancer_moves_total",
            "Slots that received an expert by commits.",
            single(info.num_moves),
        );
        object.counter("eplb_rebalancer_observations_total", "Observations.", single(info.observations));
        object.gauge("eplb_rebalancer_windows", "Windows with counts.", single(info.num_windows));
        object.gauge("eplb_rebalancer_window_tokens", "Tokens of these windows.", single(info.num_tokens));
        object.gauge(
            "eplb_rebalancer_layers_in_flight",
            "Layers that the plan in flight has yet to commit.",
            single(info.layers_in_flight),
        );
        object.gauge("eplb_rebalancer_active_ranks", "Active ranks.", single(info.num_active_ranks));
        object.gauge(
            "eplb_rebalancer_lost_experts",
            "Experts of all layers that no active rank holds.",
            single(info.num_lost_experts),
        );
        Ok(())
    }

    /// Formats the metrics. Each line ends with a line feed. The media type is `text/plain; version=0.0.4`.
    pub fn text(&self) -> String {
        self.exposition.text()
    }

    fn object(&mut self, kind: &'static str, labels: &[(&str, &str)]) -> Result<Object<'_>> {
        let labels = caller_labels(labels, &RESERVED_LABELS)?;
        if self.objects.iter().any(|(other, same)| (*other, same) == (kind, &labels)) {
            return Err(Error::InvalidArgument(format!(
                "a {kind} with the labels {{{}}} was already added; pass different labels, such as the rank",
                shortened(&labels)
            )));
        }
        self.objects.push((kind, labels.clone()));
        Ok(Object { exposition: &mut self.exposition, labels, layer_series: !self.without_layers })
    }
}

/// Adds samples with the labels of one object.
struct Object<'a> {
    exposition: &'a mut Exposition,
    labels: String,
    layer_series: bool,
}

impl Object<'_> {
    /// A sample for each layer, or one of all layers together.
    fn by_layer<L: Display, V>(
        &self,
        samples: impl Iterator<Item = (L, V)>,
        together: impl Fn(V, V) -> V,
    ) -> Vec<(String, V)> {
        match self.layer_series {
            true => labelled("layer", samples).collect(),
            false => {
                let all = samples.map(|(_, sample)| sample).reduce(together);
                all.map(|all| (String::new(), all)).into_iter().collect()
            }
        }
    }

    fn gauge<V: Display>(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        self.exposition.add((Kind::Gauge, name, help), &self.labels, samples);
    }

    fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (String, u64)>,
    ) {
        self.exposition.add((Kind::Counter, name, help), &self.labels, samples);
    }
}

/// A single sample without a label.
fn single<V>(value: V) -> [(String, V); 1] {
    [(String::new(), value)]
}

/// A sample for each value of a label.
fn labelled<L: Display, V>(
    name: &'static str,
    samples: impl IntoIterator<Item = (L, V)>,
) -> impl Iterator<Item = (String, V)> {
    samples.into_iter().map(move |(value, sample)| (label(name, value), sample))
}

/// Formats a hash for a label. A sample's value has only 53 bits.
fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

const STATES: [(State, &str); 8] = [
    (State::Off, "off"),
    (State::Waiting, "waiting"),
    (State::Counting, "counting"),
    (State::Dumping, "dumping"),
    (State::Dumped, "dumped"),
    (State::Failed, "failed"),
    (State::Lost, "lost"),
    (State::Missed, "missed"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Place;
    use crate::dispatch::DispatchConfig;
    use crate::live::RebalancerConfig;
    use crate::placement::Shape;
    use crate::stats::{Dumps, IterationRange, MemoryRequired, Rows, Totals};

    const CONFIG: DispatchConfig = DispatchConfig {
        rule: Rule::LeastLoaded,
        rank: 0,
        experts_per_token: 1,
        layers: None,
        rank_to_node: None,
        offset_by_rank: false,
        max_replicas: 0,
        place: Place::Host,
        invalid_slot: 0,
        shared_slots: &[],
        live: false,
    };

    fn info() -> Info {
        let totals =
            |ids, out_of_range, padding, none| Totals { ids, out_of_range, padding, none, shared: 0 };
        Info {
            state: State::Counting,
            range: IterationRange { start: 100, stop: 200 },
            rows: Rows::new(5, 2).unwrap(),
            iteration: Some(119),
            merged: 0,
            held: IterationRange { start: 110, stop: 120 },
            skipped: 4,
            paused: false,
            max_rows: 100,
            dumps: Dumps { written: 1, failed: 2 },
            experts_per_token: 8,
            layers: vec![7, 3],
            totals: vec![totals(80, 1, 24, 5), totals(u64::MAX, 0, 0, 0)],
            registered_layers: 1,
            memory: MemoryRequired { workspace_bytes: 5000, host_bytes: 6000 },
            error: None,
        }
    }

    /// The lines of samples, without comments and without the prefix of the names.
    fn samples(metrics: &Metrics, prefix: &str) -> Vec<String> {
        let text = metrics.text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.strip_prefix(prefix).unwrap().to_owned()).collect()
    }

    #[test]
    fn recorder_metrics_match_its_info() {
        let mut metrics = Metrics::default();
        metrics.add_recorder(&info(), &[]).unwrap();
        let expected = [
            "state{state=\"off\"} 0",
            "state{state=\"waiting\"} 0",
            "state{state=\"counting\"} 1",
            "state{state=\"dumping\"} 0",
            "state{state=\"dumped\"} 0",
            "state{state=\"failed\"} 0",
            "state{state=\"lost\"} 0",
            "state{state=\"missed\"} 0",
            "error 0",
            "iteration 119",
            "iter_start 100",
            "iter_stop 200",
            "iter_bucket 5",
            "iter_stride 2",
            // 110, 112, ... 118, 4 of them skipped.
            "iterations_total 1",
            "skipped_iterations_total 4",
            // 8 ids a token: 75 / 8 and (2^64 - 1) / 8, rounded up.
            "tokens_total{layer=\"7\"} 10",
            "tokens_total{layer=\"3\"} 2305843009213693952",
            "out_of_range_ids_total{layer=\"7\"} 1",
            "out_of_range_ids_total{layer=\"3\"} 0",
            "padding_ids_total{layer=\"7\"} 29",
            "padding_ids_total{layer=\"3\"} 0",
            "dumps_total{result=\"written\"} 1",
            "dumps_total{result=\"failed\"} 2",
            "layers 2",
            "registered_layers 1",
            "workspace_bytes 5000",
            "host_bytes 6000",
        ];
        assert_eq!(samples(&metrics, "eplb_recorder_"), expected);
    }

    #[test]
    fn recorder_metrics_report_off_and_failed() {
        let failed = Info {
            state: State::Failed,
            iteration: None,
            error: Some(Error::NotReady("the disk is full".into())),
            ..info()
        };
        let off = Info { state: State::Off, layers: vec![], totals: vec![], ..info() };
        let mut metrics = Metrics::default();
        metrics.add_recorder(&failed, &[("rank", "0")]).unwrap();
        metrics.add_recorder(&off, &[("rank", "1")]).unwrap();
        let text = metrics.text();
        for line in [
            "eplb_recorder_state{rank=\"0\",state=\"failed\"} 1\n",
            "eplb_recorder_state{rank=\"0\",state=\"off\"} 0\n",
            "eplb_recorder_state{rank=\"1\",state=\"failed\"} 0\n",
            "eplb_recorder_state{rank=\"1\",state=\"off\"} 1\n",
            "eplb_recorder_error{rank=\"0\"} 1\neplb_recorder_error{rank=\"1\"} 0\n",
            "eplb_recorder_iteration{rank=\"0\"} -1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn placement_metrics_have_sizes_replicas_and_duplicates() {
        // 4 experts on 2 ranks x 3 slots. In layer 3 expert 3 has 2 slots of rank 0, expert 0 has 2 of rank 1.
        let shape = Shape::new(4, 6, 2).unwrap();
        let placement = Placement::new(shape, &[7, 3], &[0, 1, 2, 3, 0, 0, 3, 3, 2, 1, 0, 0]).unwrap();
        let placement = placement.with_layer_updates_per_iter(5);
        let mut metrics = Metrics::default();
        metrics.add_placement(&placement, &[]).unwrap();
        let expected = [
            &*format!("info{{hash=\"{:016x}\"}} 1", placement.hash()),
            "experts 4",
            "ranks 2",
            "slots 6",
            "slots_per_rank 3",
            "layers 2",
            "layer_updates_per_iter 5",
            "max_replicas{layer=\"3\"} 2",
            "max_replicas{layer=\"7\"} 3",
            "duplicates{layer=\"3\"} 2",
            "duplicates{layer=\"7\"} 1",
        ];
        assert_eq!(samples(&metrics, "eplb_placement_"), expected);
    }

    #[test]
    fn dispatch_metrics_have_sizes_placement_and_rule() {
        let shape = Shape::new(4, 6, 2).unwrap();
        let placement = Placement::new(shape, &[3, 7], &[0, 1, 2, 3, 0, 1, 3, 3, 2, 1, 0, 0]).unwrap();
        let config =
            DispatchConfig { rank: 1, experts_per_token: 2, layers: Some(&[7]), max_replicas: 3, ..CONFIG };
        let dispatch = Dispatch::create(&placement, &config, None).unwrap();
        let mut metrics = Metrics::default();
        metrics.add_dispatch(&dispatch, &[]).unwrap();
        let expected = [
            &*format!("info{{hash=\"{:016x}\",rule=\"least-loaded\"}} 1", placement.hash()),
            "experts 4",
            "ranks 2",
            "slots 6",
            "slots_per_rank 3",
            "experts_per_token 2",
            "layers 1",
            "layers_with_rank_counts 0",
            "max_replicas 3",
            // 4 arrays of 4, 4, 6 and 4 x 3 numbers of 4 bytes, each aligned to 64 bytes.
            "workspace_bytes 256",
        ];
        assert_eq!(samples(&metrics, "eplb_dispatch_"), expected);
    }

    #[test]
    fn metrics_md_lists_every_metric_with_its_type() {
        let mut metrics = Metrics::default();
        let placement = Placement::new(Shape::new(1, 1, 1).unwrap(), &[0], &[0]).unwrap();
        metrics.add_recorder(&info(), &[]).unwrap();
        metrics.add_placement(&placement, &[]).unwrap();
        metrics.add_dispatch(&Dispatch::create(&placement, &CONFIG, None).unwrap(), &[]).unwrap();
        let rebalancer = Rebalancer::new(RebalancerConfig::new(1, 1), placement).unwrap();
        metrics.add_rebalancer(&rebalancer, &[]).unwrap();
        let text = metrics.text();
        let exported = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let documented: Vec<_> = rows.map(|(name, rest)| (name, rest.split(' ').next().unwrap())).collect();
        assert_eq!(exported.collect::<Vec<_>>(), documented);
    }

    #[test]
    fn metrics_reject_equal_labels_of_two_objects_of_a_kind() {
        let mut metrics = Metrics::default();
        metrics.add_recorder(&info(), &[("rank", "0"), ("model", "r1")]).unwrap();
        metrics.add_recorder(&info(), &[("rank", "1"), ("model", "r1")]).unwrap();
        let before = metrics.text();
        let error = metrics.add_recorder(&info(), &[("model", "r1"), ("rank", "0")]).unwrap_err().to_string();
        assert_eq!(
            error,
            "a recorder with the labels {model=\"r1\",rank=\"0\"} was already added; pass different labels, such as the rank"
        );
        assert!(metrics.add_recorder(&info(), &[("state", "x")]).is_err());
        assert_eq!(metrics.text(), before, "a rejected object changes nothing");
        let placement = Placement::new(Shape::new(1, 1, 1).unwrap(), &[0], &[0]).unwrap();
        metrics.add_placement(&placement, &[("rank", "0"), ("model", "r1")]).unwrap();
        assert_eq!(Metrics::default().text(), "");
    }
}
