//! The library against dumps and results under `data/`, which another program computed.
//!
//! `EPLB_EXTRA_DATA` may name a further directory of the same layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use eplb::generate::{GenerateConfig, generate};
use eplb::placement::{Expected, Placement};
use eplb::report::{Balance, score};
use eplb::solve::{Objective, Policy, SolveConfig};
use eplb::stats::{Dump, LoadOptions, RankFile, Stats};

const TRTLLM: SolveConfig = SolveConfig {
    policy: Policy::Trtllm,
    num_groups: 1,
    num_nodes: 1,
    rank_to_node: None,
    off_node_price: 0.0,
    sample_weights: None,
    quantile: None,
    rank_num_slots: None,
    pinned_experts: None,
    objective: Objective::EvenSplit,
    drift: 0.0,
    effort: 0,
};

fn data_dirs() -> Vec<PathBuf> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    [Some(shipped), env::var_os("EPLB_EXTRA_DATA").map(PathBuf::from)].into_iter().flatten().collect()
}

/// Returns the files of `data/expected` that end in `suffix`, each with its dump and its case.
fn expected_files(suffix: &str) -> Vec<(PathBuf, PathBuf, String)> {
    let mut files = Vec::new();
    for dir in data_dirs() {
        for entry in fs::read_dir(dir.join("expected")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if let Some(case) = name.strip_suffix(suffix) {
                let dump = dir.join("dumps").join(case.split('.').next().unwrap());
                files.push((path.clone(), dump, case.to_owned()));
            }
        }
    }
    assert!(files.len() >= 6, "{files:?}");
    files
}

/// `<dump>.ep<R>.slots<S>[.iters<A>-<B>]`
fn parse_case(case: &str) -> (Option<usize>, Option<usize>, Option<(u64, u64)>) {
    let part =
        |prefix: &str| case.split('.').find_map(|part| part.strip_prefix(prefix).map(ToOwned::to_owned));
    let iters = part("iters").map(|range| {
        let (start, stop) = range.split_once('-').unwrap();
        (start.parse().unwrap(), stop.parse().unwrap())
    });
    (part("ep").map(|n| n.parse().unwrap()), part("slots").map(|n| n.parse().unwrap()), iters)
}

#[test]
fn policy_trtllm_writes_the_expected_configuration_files_to_the_byte() {
    let out = tempfile::tempdir().unwrap();
    let output_path = &out.path().join("config.yaml");
    for (expected, dump, case) in expected_files(".yaml") {
        let (num_ranks, num_slots, iters) = parse_case(&case);
        for threads in [1, 2, 8] {
            let config = GenerateConfig {
                reserve_slots: 0,
                pin_experts: &[],
                pin_homes: false,
                solve_threads: 0,
                paths: &[dump.to_owned()],
                path_weights: None,
                output_path,
                options: LoadOptions {
                    iter_start: iters.map(|(start, _)| start),
                    iter_stop: iters.map(|(_, stop)| stop),
                    threads,
                    ..Default::default()
                },
                num_ranks,
                num_slots,
                layer_updates_per_iter: 0,
                solve: TRTLLM,
                num_samples: 1,
            };
            let generated = generate(&config, &mut |_, _, _| Ok(())).unwrap();
            assert!(
                fs::read(output_path).unwrap() == fs::read(&expected).unwrap(),
                "{case}, {threads} threads"
            );

            let loaded = Placement::load(output_path, Expected { num_ranks, ..Default::default() }).unwrap();
            assert_eq!(loaded.hash(), generated.placement.hash(), "{case}");
        }
    }
}

fn load(dump: &Path) -> Stats {
    let dump = Dump::open(dump, &LoadOptions::default()).unwrap();
    dump.read(&mut |_, _| Ok(())).unwrap()
}

/// Returns the balance of each layer over the iterations of `stats`.
fn balances(stats: &Stats, balance: impl Fn(u32, &[f64]) -> Balance) -> BTreeMap<u32, Balance> {
    let layer = |&layer: &u32| {
        let counts = stats.layer_counts(layer).unwrap();
        let loads: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        (layer, balance(layer, &loads))
    };
    stats.summary().layers.iter().map(layer).collect()
}

fn assert_report(path: &Path, kind: &str, found: &BTreeMap<u32, Balance>) {
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let layers = report[kind].as_object().unwrap();
    assert_eq!(layers.len(), found.len(), "{}", path.display());
    for (layer, expected) in layers {
        let balance = &found[&layer.parse().unwrap()];
        // A ratio is exact to 1e-16 of max / mean, which is larger than the ratio itself.
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
        assert!(close(balance.mean, expected["mean"].as_f64().unwrap()), "{}: layer {layer}", path.display());
        match (balance.imbalance_ratio, expected["imbalance_ratio"].as_f64()) {
            (Some(a), Some(b)) => assert!(close(a, b), "{}: layer {layer}: {a} {b}", path.display()),
            (a, b) => assert_eq!(a, b, "{}: layer {layer}", path.display()),
        }
    }
}

#[test]
fn balances_match_the_expected_load_reports() {
    for (path, dump, case) in expected_files(".report.json") {
        let stats = load(&dump);
        let (num_experts, num_iterations) =
            (stats.summary().num_experts, stats.summary().rows.len() as usize);
        let (num_ranks, num_slots, _) = parse_case(&case);
        if num_slots.is_some() {
            let config = path.to_str().unwrap().replace(".report.json", ".yaml");
            let placement = Placement::load(Path::new(&config), Expected { num_ranks, ..Default::default() });
            let placement = placement.unwrap();
            let found = balances(&stats, |layer, loads| {
                score(&placement, layer, loads, num_iterations, num_experts).unwrap().balance()
            });
            assert_report(&path, "projected", &found);
        } else {
            let found = balances(&stats, |_, loads| {
                Balance::unbalanced(stats.summary().num_ranks, loads.chunks_exact(num_experts))
            });
            assert_report(&path, "measured", &found);
        }
    }
}

#[test]
fn counts_match_another_reader_of_safetensors() {
    for name in ["dsv2lite-translation", "dsr1-extreme"] {
        let directory = data_dirs()[0].join("dumps").join(name);
        let stats = load(&directory);
        let summary = stats.summary();
        let mut sums: BTreeMap<(u32, u64), Vec<u64>> = BTreeMap::new();
        for rank in 0..summary.num_ranks {
            let bytes = fs::read(directory.join(format!("rank{rank}.safetensors"))).unwrap();
            for (name, tensor) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let (iteration, layer) = name.split_once('_').unwrap();
                let sum = sums.entry((layer.parse().unwrap(), iteration.parse().unwrap())).or_default();
                sum.resize(summary.num_experts, 0);
                for (sum, count) in sum.iter_mut().zip(tensor.data().chunks_exact(8)) {
                    *sum += u64::from_le_bytes(count.try_into().unwrap());
                }
            }
        }
        let found = summary.layers.iter().flat_map(|&layer| stats.layer_counts(layer).unwrap()).copied();
        assert!(found.eq(sums.into_values().flatten()), "{name}");
    }
}

#[test]
fn recorded_tokens_chose_six_experts_each() {
    // data/README.md: 8 ranks x 31 iterations x 32 tokens, top-6, in each layer.
    let stats = load(&data_dirs()[0].join("dumps/dsv2lite-law"));
    assert_eq!(stats.summary().experts_per_token, 6);
    for &layer in &stats.summary().layers {
        assert_eq!(stats.layer_totals(layer).unwrap().iter().sum::<u64>(), 8 * 31 * 32 * 6);
    }
}

#[test]
fn rank_file_reports_its_experts_layers_and_iterations() {
    let path = data_dirs()[0].join("dumps/dsv2lite-law/rank3.safetensors");
    let file = RankFile::open(&path, None).unwrap();
    assert_eq!((file.num_experts, file.layers.len(), file.rows.to_string()), (64, 26, "100..131".into()));
}
