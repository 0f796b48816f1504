//! Reads several dumps as one. The tests write the files themselves.

use std::path::{Path, PathBuf};

use eplb::Result;
use eplb::placement::Shape;
use eplb::report::{LoadReport, Planner, Recording};
use eplb::solve::{Policy, SolveConfig};
use eplb::stats::{Counts, DumpSet, IdKind, IterationRange, LoadOptions, RankDump, Rows, Stats};
use tempfile::TempDir;
use written::{EXPERTS, WrittenDump, count, foreign};

mod written;

fn read(paths: &[PathBuf], weights: Option<&[f64]>, options: &LoadOptions) -> Result<Stats> {
    DumpSet::open(paths, weights, options)?.read(&mut |_, _| Ok(()))
}

/// The error's message, without the directory's path.
fn message(dir: &TempDir, paths: &[PathBuf], weights: Option<&[f64]>, options: &LoadOptions) -> String {
    let error = read(paths, weights, options).map(|stats| stats.summary().clone()).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.path().display()), "")
}

/// Dump `a` of 2 ranks with iterations 5 to 7, and dump `b` of 4 with 100 to 499 in rows of 200. Layers 1 and 2.
fn two_dumps() -> (TempDir, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    WrittenDump::new(2, &[1, 2], &[5, 6, 7], 5, 8).write(&paths[0]);
    WrittenDump::new(4, &[1, 2], &[100, 300], 100, 500).with("iter_bucket", 200).write(&paths[1]);
    (dir, paths)
}

fn sum(ranks: u32, key: u64, layer: u32) -> Vec<f64> {
    (0..EXPERTS)
        .map(|expert| (0..ranks).map(|rank| count(rank, key, layer, expert)).sum::<u64>() as f64)
        .collect()
}

#[test]
fn rows_follow_each_other_and_weights_multiply_counts() {
    let (_dir, paths) = two_dumps();
    let stats = read(&paths, Some(&[1.0, 0.5]), &LoadOptions::default()).unwrap();
    let rows = &stats.summary().rows;
    assert_eq!(
        (rows.len(), rows.to_string(), rows.unit()),
        (5, "5..8 and 100..500 in rows of 200".into(), "rows".into())
    );
    assert_eq!((0..6).map(|row| rows.first_iteration(row)).collect::<Vec<_>>(), [5, 6, 7, 100, 300, 500]);
    let half = |loads: Vec<f64>| loads.into_iter().map(|load| load / 2.0);
    let mut expected: Vec<f64> = [5, 6, 7].into_iter().flat_map(|key| sum(2, key, 2)).collect();
    expected.extend([100, 300].into_iter().flat_map(|key| half(sum(4, key, 2))));
    assert_eq!(stats.layer_rows(2).unwrap(), expected);
    // No sample is of two dumps: 5 | 6 7 | 100 | 300.
    let loads = stats.layer_loads(2, 2).unwrap();
    assert_eq!(loads.rows, expected);
    let two: Vec<f64> = sum(2, 6, 2).iter().zip(sum(2, 7, 2)).map(|(a, b)| a + b).collect();
    assert_eq!(loads.samples, [&expected[..4], &two, &expected[12..]].concat());
    // Their ranks differ, so there is no default.
    assert_eq!(stats.summary().num_ranks, 0);
    assert_eq!(
        stats.summary().ep_size().unwrap_err().to_string(),
        "the dumps have 2, 4 ranks, so the EP size is unknown: give it (--ep_size, num_ranks)"
    );
    let report = LoadReport::new(&Recording::new(&stats, None).unwrap(), Some(2), 1).unwrap();
    assert_eq!(report.iterations.iter().map(|i| i.iteration).collect::<Vec<_>>(), [5, 6, 7, 100, 300]);
    assert!(stats.layer_counts(1).unwrap_err().to_string().starts_with("the counts are of 2 dumps"));
}

#[test]
fn a_single_dump_is_read_as_before() {
    let (_dir, [a, _]) = two_dumps();
    let set = read(std::slice::from_ref(&a), None, &LoadOptions::default()).unwrap();
    let alone =
        eplb::stats::Dump::open(&a, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
    assert_eq!(set, alone);
}

#[test]
fn progress_counts_the_bytes_of_all_dumps() {
    let (_dir, paths) = two_dumps();
    let mut calls = Vec::new();
    let set = DumpSet::open(&paths, None, &LoadOptions::default()).unwrap();
    set.read(&mut |done, total| {
        calls.push((done, total));
        Ok(())
    })
    .unwrap();
    // 2 ranks x 3 rows and 4 ranks x 2 rows, of 2 layers of 4 int64.
    let total = (2 * 3 + 4 * 2) * 2 * 4 * 8;
    assert!(calls.is_sorted() && calls.iter().all(|call| call.1 == total), "{calls:?}");
    assert_eq!(calls.last(), Some(&(total, total)));
}

#[test]
fn iteration_ranges_apply_to_each_dump() {
    let (dir, [a, _]) = two_dumps();
    let c = dir.path().join("c");
    WrittenDump::new(2, &[1, 2], &[6, 7, 8, 9], 6, 10).write(&c);
    let options =
        |start, stop| LoadOptions { iter_start: Some(start), iter_stop: Some(stop), ..Default::default() };
    let stats = read(&[a.clone(), c.clone()], None, &options(6, 8)).unwrap();
    assert_eq!(stats.layer_rows(1).unwrap(), [sum(2, 6, 1), sum(2, 7, 1)].concat().repeat(2));
    assert_eq!(
        message(&dir, &[a, c], None, &options(5, 8)),
        "c: iterations 5..8 requested (stop excluded), the dump has 6..10"
    );
}

#[test]
fn dumps_of_different_models_are_refused_by_name() {
    let (dir, [a, _]) = two_dumps();
    let other = |name: &str, dump: WrittenDump| {
        let path = dir.path().join(name);
        dump.write(&path);
        path
    };
    let error = |path: &Path| message(&dir, &[a.clone(), path.to_owned()], None, &LoadOptions::default());
    let reason = ": dumps that are read together must be of one model";
    let more = other("more", WrittenDump::new(2, &[1, 2, 9], &[5], 5, 6));
    assert_eq!(error(&more), format!("more has layer 9, a has not{reason}"));
    let fewer = other("fewer", WrittenDump::new(2, &[2], &[5], 5, 6));
    assert_eq!(error(&fewer), format!("fewer has no layer 1, a has it{reason}"));

    // A dump of slots, one of other experts, and one that does not say what it counts.
    let mut slots = WrittenDump::new(2, &[1, 2], &[5], 5, 6);
    slots.info.insert("counts".into(), "slots".into());
    slots.files.iter_mut().for_each(|file| file.set("counts", "slots"));
    let slots = other("slots", slots);
    assert_eq!(error(&slots), format!("slots has 4 slots, a 4 experts{reason}"));
    let six = dir.path().join("six");
    let iterations = IterationRange { start: 0, stop: 1 };
    RankDump {
        rank: 0,
        num_ranks: 1,
        file: None,
        num_experts: 6,
        experts_per_token: 3,
        id_kind: IdKind::Expert,
        iterations,
        held: iterations,
        rows: Rows::default(),
        layers: &[1, 2],
        counts: Counts::U64(&[1; 12]),
        run_id: None,
    }
    .write(&six)
    .unwrap();
    assert_eq!(error(&six), format!("six has 6 experts, a 4 experts{reason}"));
    let trtllm = dir.path().join("trtllm");
    std::fs::create_dir(&trtllm).unwrap();
    std::fs::write(trtllm.join("meta_info.json"), r#"{"num_experts": 4, "num_experts_per_token": 2}"#)
        .unwrap();
    foreign(0, &[1, 2], &[5]).write(&trtllm);
    let stats = read(&[a.clone(), trtllm.clone()], None, &LoadOptions::default()).unwrap();
    assert_eq!(stats.summary().id_kind, None);
    assert_eq!(
        message(&dir, &[slots, trtllm.clone()], None, &LoadOptions::default()),
        format!("trtllm has 4 experts, or slots: it does not say which, slots 4 slots{reason}")
    );
    std::fs::write(trtllm.join("meta_info.json"), r#"{"num_experts": 4, "num_experts_per_token": 3}"#)
        .unwrap();
    assert_eq!(error(&trtllm), format!("trtllm has 3 experts a token, a 2{reason}"));

    // The caller can say it, but not against the dump.
    let counts = |kind| LoadOptions { counts: Some(kind), ..Default::default() };
    let stats = read(&[trtllm], None, &counts(IdKind::Slot)).unwrap();
    assert_eq!(stats.summary().id_kind, Some(IdKind::Slot));
    assert_eq!(
        message(&dir, &[a], None, &counts(IdKind::Slot)),
        "a: it counts experts, as its meta_info.json says, not slots; leave out what the dump says itself"
    );
}

#[test]
fn weights_must_be_positive_and_one_a_dump() {
    let (dir, paths) = two_dumps();
    let error = |weights: &[f64]| message(&dir, &paths, Some(weights), &LoadOptions::default());
    assert_eq!(error(&[1.0]), "1 dump weights for 2 dumps; one for each expected");
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(
            error(&[1.0, wrong])
                .starts_with(&format!("the weight of dump 1 is {wrong}; a finite number above 0"))
        );
    }
    assert_eq!(message(&dir, &[], None, &LoadOptions::default()), "no dump is given; at least one expected");
    // Loads stay exact, as without weights.
    let stats = read(&paths, Some(&[1.0, 1e12]), &LoadOptions::default()).unwrap();
    let error = stats.layer_rows(1).unwrap_err().to_string();
    assert!(error.contains("times the weight 1000000000000 tokens are more than 2^53"), "{error}");
}

/// The experts of layer 1 on 2 ranks, planned for two dumps of one iteration whose hot experts differ.
fn placed(policy: Policy, loads: [[u64; 4]; 2], weights: [f64; 2]) -> Vec<u32> {
    let dir = tempfile::tempdir().unwrap();
    let iterations = IterationRange { start: 0, stop: 1 };
    let paths = [0, 1].map(|index| dir.path().join(index.to_string()));
    for (path, counts) in paths.iter().zip(loads) {
        let dump = RankDump {
            rank: 0,
            num_ranks: 1,
            file: None,
            num_experts: 4,
            experts_per_token: 1,
            id_kind: IdKind::Expert,
            iterations,
            held: iterations,
            rows: Rows::default(),
            layers: &[1],
            counts: Counts::U64(&counts),
            run_id: None,
        };
        dump.write(path).unwrap();
    }
    let stats = read(&paths, Some(&weights), &LoadOptions::default()).unwrap();
    let solve = SolveConfig { policy, ..SolveConfig::default() };
    let planner = Planner { solve, num_samples: 16, threads: 1 };
    let placement = planner.place(&stats, Shape::new(4, 4, 2).unwrap()).unwrap();
    let mut experts = placement.layer_experts(1).unwrap().to_vec();
    experts.chunks_exact_mut(2).for_each(<[u32]>::sort_unstable);
    experts
}

#[test]
fn the_heavier_dump_decides_with_every_policy() {
    // In the first dump experts 0 and 1 are hot and must be apart, in the second 0 and 2.
    let loads = [[10, 10, 0, 0], [10, 0, 10, 0]];
    for policy in [Policy::Trtllm, Policy::DeepseekGlobal, Policy::Search] {
        for (weights, together) in [([3.0, 1.0], 2), ([1.0, 3.0], 1)] {
            let experts = placed(policy, loads, weights);
            let rank = experts.chunks_exact(2).find(|rank| rank.contains(&0)).unwrap();
            // Expert 0 is not with the other hot one of the heavier dump.
            let other_hot = 3 - together;
            assert!(!rank.contains(&other_hot), "{policy} {weights:?}: {experts:?}");
        }
    }
}
