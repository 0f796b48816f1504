//! Load reports, compared with the figures of another program.

use std::path::{Path, PathBuf};
use std::{env, fs};

use eplb::placement::{Expected, Placement};
use eplb::report::{Balance, LayerReport, LoadReport, Recording};
use eplb::stats::{Counts, Dump, IdKind, IterationRange, LoadOptions, RankDump, Rows, Stats};
use serde_json::Value;

fn load(dump: &Path) -> Stats {
    Dump::open(dump, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap()
}

fn data_dirs() -> Vec<PathBuf> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    [Some(shipped), env::var_os("EPLB_EXTRA_DATA").map(PathBuf::from)].into_iter().flatten().collect()
}

/// Compares with a tolerance relative to the value.
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
        assert_close(balance.std, &expected["std"], &what("std"));
        assert_close(balance.imbalance_ratio, &expected["imbalance_ratio"], &what("imbalance ratio"));
    }
}

#[test]
fn report_matches_every_expected_report() {
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
                        assert_layers(&name, layers, &report, |layer| layer.ranks.measured);
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

/// Writes a dump of one rank and reads it. `counts` is `[iterations][layers][ids]`; the first layer is 3.
fn record(id_kind: IdKind, num_ids: usize, num_layers: u32, counts: &[u64]) -> Stats {
    let dir = tempfile::tempdir().unwrap();
    let stop = (counts.len() / num_ids / num_layers as usize) as u64;
    let layers: Vec<u32> = (3..3 + num_layers).collect();
    let iterations = IterationRange { start: 0, stop };
    RankDump {
        file: None,
        rows: Rows::default(),
        rank: 0,
        num_ranks: 1,
        num_experts: num_ids,
        experts_per_token: 1,
        id_kind,
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
fn report_averages_over_layers_after_reducing_ranks() {
    // Two layers with loads 100 and 200: 150 / 200 each. Summed over layers first, it would be 1.
    let stats = record(IdKind::Expert, 2, 2, &[100, 200, 200, 100]);
    let report = LoadReport::new(&Recording::new(&stats, None).unwrap(), Some(2), 1).unwrap();
    let average = report.averages(|layer| layer.ranks);
    let before = average.before.unwrap();
    assert_eq!(before.balancedness, Some(0.75));
    assert_eq!(before.imbalance_ratio, Some(1.0 / 3.0));
    // The dump has one rank, which is even and has no deviation.
    let measured = average.measured.unwrap();
    assert_eq!((measured.imbalance_ratio, measured.std), (Some(0.0), None));
}

#[test]
fn report_measures_counted_slots_and_projects_their_experts() {
    // Ranks hold experts 0 1 | 0 2, and served 5 + 2 and 1 + 4 tokens. Expert loads are 6 2 4: the even split gives 3 + 2 and
    // 3 + 4. In order, with one and two experts a rank, it is 6 and 2 + 4.
    let stats = record(IdKind::Slot, 4, 1, &[5, 2, 1, 4]);
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
    assert_eq!(layer.rank_tokens.measured, Some(vec![7.0, 5.0]));
    assert_eq!(layer.rank_tokens.projected, Some(vec![5.0, 7.0]));
    assert_eq!(layer.rank_tokens.before, Some(vec![6.0, 6.0]));
    assert_eq!((&layer.tokens[..], &layer.replicas[..]), (&[6, 2, 4][..], &[2, 1, 1][..]));
    assert_eq!(layer.expert_ranks, [vec![0, 1], vec![0], vec![1]]);
    // Measured slots 5 2 1 4, mean 3. Experts 6 2 4, mean 4. Projected slots 3 2 3 4, mean 3.
    assert_eq!(layer.experts.measured.unwrap().imbalance_ratio, Some(2.0 / 3.0));
    assert_eq!(layer.experts.before.unwrap().imbalance_ratio, Some(0.5));
    assert_eq!(layer.experts.projected.unwrap().imbalance_ratio, Some(1.0 / 3.0));
}
