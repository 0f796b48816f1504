//! Load reports against figures that another program computed.

use std::path::{Path, PathBuf};
use std::{env, fs};

use eplb::placement::{Expected, Placement};
use eplb::report::{Balance, LayerReport, LoadReport, Recording};
use eplb::stats::{Counted, Counts, Dump, IterationRange, LoadOptions, RankDump, Stats};
use serde_json::Value;

fn load(dump: &Path) -> Stats {
    Dump::open(dump, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap()
}

fn data_dirs() -> Vec<PathBuf> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    [Some(shipped), env::var_os("EPLB_EXTRA_DATA").map(PathBuf::from)].into_iter().flatten().collect()
}

/// Relative to the value itself, however small it is.
fn assert_close(found: Option<f64>, expected: &Value, what: &str) {
    match (found, expected.as_f64()) {
        (Some(found), Some(expected)) => {
            assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{what}: {found} {expected}");
        }
        (found, expected) => assert_eq!(found, expected, "{what}"),
    }
}

fn assert_layers(what: &str, expected: &Value, report: &LoadReport, of: fn(&LayerReport) -> Option<Balance>) {
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), report.layers.len(), "{what}");
    for layer in &report.layers {
        let (number, balance) = (layer.layer.to_string(), of(layer).unwrap());
        let expected = &expected[&number];
        let what = |figure: &str| format!("{what}: layer {number}, {figure}");
        assert_close(Some(balance.mean), &expected["mean"], &what("mean"));
        assert_close(Some(balance.std), &expected["std"], &what("std"));
        assert_close(balance.imbalance_ratio, &expected["imbalance_ratio"], &what("imbalance ratio"));
    }
}

#[test]
fn mean_deviation_and_imbalance_are_those_of_every_expected_report() {
    let (mut measured, mut projected) = (0, 0);
    for data in data_dirs() {
        for entry in fs::read_dir(data.join("expected")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let Some(case) = name.strip_suffix(".report.json") else { continue };
            let mut parts = case.split('.');
            let stats = load(&data.join("dumps").join(parts.next().unwrap()));
            let num_ranks = parts.find_map(|part| part.strip_prefix("ep")).map(|n| n.parse().unwrap());
            let config = path.with_file_name(format!("{case}.yaml"));
            let placement = num_ranks
                .map(|_| Placement::load(&config, Expected { num_ranks, ..Default::default() }).unwrap());
            let recording = Recording::new(&stats, placement.as_ref()).unwrap();
            let report = LoadReport::new(&recording, None, 2).unwrap();
            let expected: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            for (view, layers) in expected.as_object().unwrap() {
                match &view[..] {
                    "measured" => {
                        assert_layers(&name, layers, &report, |layer| Some(layer.ranks.measured));
                        measured += 1;
                    }
                    "projected" => {
                        assert_layers(&name, layers, &report, |layer| layer.ranks.projected);
                        projected += 1;
                    }
                    other => panic!("{other}"),
                }
            }
        }
    }
    assert!(measured >= 2 && projected >= 6, "{measured} {projected}");
}

/// A dump of one rank as the recorder writes it, read back. `[iterations][layers][ids]`, layers from 3 on.
fn recorded(counted: Counted, num_ids: usize, num_layers: u32, counts: &[u64]) -> Stats {
    let dir = tempfile::tempdir().unwrap();
    let stop = (counts.len() / num_ids / num_layers as usize) as u64;
    let layers: Vec<u32> = (3..3 + num_layers).collect();
    let iterations = IterationRange { start: 0, stop };
    RankDump {
        rank: 0,
        num_ranks: 1,
        num_experts: num_ids,
        experts_per_token: 1,
        counted,
        iterations,
        held: iterations,
        layers: &layers,
        counts: Counts::U64(counts),
        run_id: None,
    }
    .write(dir.path())
    .unwrap();
    load(dir.path())
}

#[test]
fn ranks_are_reduced_before_layers() {
    // needs.md: two layers of 100 and 200 are 0.75 each; summed over layers first they would be, too, but over ranks first 1.
    let stats = recorded(Counted::Experts, 2, 2, &[100, 200, 200, 100]);
    let report = LoadReport::new(&Recording::new(&stats, None).unwrap(), Some(2), 1).unwrap();
    let average = report.averages(|layer| layer.ranks);
    assert_eq!(average.before().balancedness, Some(0.75));
    assert_eq!(average.before().imbalance_ratio, Some(1.0 / 3.0));
    // As dumped it is one rank, which is always even, and of which there is no deviation.
    assert_eq!((average.measured.imbalance_ratio, average.measured.std), (Some(0.0), 0.0));
}

#[test]
fn slots_that_were_counted_are_measured_as_they_lie_and_projected_as_experts() {
    // Ranks hold 0 1 | 0 2, and got 5 + 2 and 1 + 4: experts 6 2 4, which an even split puts as 3 + 2 and 3 + 4, and in order,
    // one or two experts on a rank, are 6 and 2 + 4.
    let stats = recorded(Counted::Slots, 4, 1, &[5, 2, 1, 4]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        file.path(),
        "initial_global_assignments:\n  3: [0, 1, 0, 2]\nlayer_updates_per_iter: 0\nnum_slots: 4\n",
    )
    .unwrap();
    let placement =
        Placement::load(file.path(), Expected { num_ranks: Some(2), ..Default::default() }).unwrap();
    let report = LoadReport::new(&Recording::new(&stats, Some(&placement)).unwrap(), None, 1).unwrap();
    let layer = &report.layers[0];
    assert_eq!(layer.rank_tokens.measured, [7.0, 5.0]);
    assert_eq!(layer.rank_tokens.projected, Some(vec![5.0, 7.0]));
    assert_eq!(layer.rank_tokens.unbalanced, Some(vec![6.0, 6.0]));
    assert_eq!((&layer.tokens[..], &layer.replicas[..]), (&[6, 2, 4][..], &[2, 1, 1][..]));
    assert_eq!(layer.expert_ranks, [vec![0, 1], vec![0], vec![1]]);
    // Slots 5 2 1 4 of mean 3; experts 6 2 4 of mean 4; slots 3 2 3 4 of mean 3.
    assert_eq!(layer.experts.measured.imbalance_ratio, Some(2.0 / 3.0));
    assert_eq!(layer.experts.before().imbalance_ratio, Some(0.5));
    assert_eq!(layer.experts.projected.unwrap().imbalance_ratio, Some(1.0 / 3.0));
}
