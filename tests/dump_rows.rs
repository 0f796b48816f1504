//! Reads dumps whose rows have several iterations. The tests write the files themselves.

use eplb::Result;
use eplb::report::{LoadReport, Planner, Recording};
use eplb::solve::{Policy, SolveConfig};
use eplb::stats::{Dump, LoadOptions, Stats};
use tempfile::TempDir;
use written::{EXPERTS, WrittenDump, count};

mod written;

fn load_with(dir: &TempDir, iter_start: Option<u64>, iter_stop: Option<u64>) -> Result<Stats> {
    let options = LoadOptions { iter_start, iter_stop, ..Default::default() };
    Dump::open(dir.path(), &options)?.read(&mut |_, _| Ok(()))
}

/// The error's message, without the directory's path.
fn message(dir: &TempDir, result: Result<Stats>) -> String {
    let error = result.map(|stats| stats.summary().clone()).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.path().display()), "").replace(&dir.path().display().to_string(), "DIR")
}

/// Ranges 100 to 449 in rows of 100: the last one has 50 iterations. 2 ranks, layers 3 and 4.
fn in_rows() -> WrittenDump {
    WrittenDump::new(2, &[3, 4], &[100, 200, 300, 400], 100, 450).with("iter_bucket", 100)
}

fn written(dump: &WrittenDump) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    dump.write(dir.path());
    dir
}

/// The sum of two ranks' counts in a row.
fn row(key: u64, layer: u32) -> Vec<u64> {
    (0..EXPERTS).map(|expert| count(0, key, layer, expert) + count(1, key, layer, expert)).collect()
}

#[test]
fn rows_are_read_with_a_partial_last_one() {
    let dir = written(&in_rows());
    let stats = load_with(&dir, None, None).unwrap();
    let rows = stats.summary().rows.first();
    assert_eq!((rows.len(), rows.rows.bucket(), rows.rows.stride(), rows.num_counted()), (4, 100, 1, 350));
    assert_eq!(rows.to_string(), "100..450 in rows of 100");
    for layer in [3, 4] {
        let expected = [100, 200, 300, 400].map(|key| row(key, layer)).concat();
        assert_eq!(stats.layer_counts(layer).unwrap(), expected);
    }
    // Two samples are rows 100 and 200, and 300 and 400.
    let samples = stats.layer_samples(3, 2, EXPERTS).unwrap();
    assert_eq!(samples[0], (row(100, 3)[0] + row(200, 3)[0]) as f64);
    assert_eq!(samples[EXPERTS], (row(300, 3)[0] + row(400, 3)[0]) as f64);
    assert_eq!(
        stats.layer_samples(3, 5, EXPERTS).unwrap_err().to_string(),
        "num_samples is 5; 1 to 4, the number of rows of iterations 100..450 in rows of 100, expected"
    );
}

#[test]
fn iterations_can_be_chosen_by_whole_rows() {
    let dir = written(&in_rows());
    let middle = load_with(&dir, Some(200), Some(400)).unwrap();
    assert_eq!(middle.layer_counts(4).unwrap(), [row(200, 4), row(300, 4)].concat());
    let end = load_with(&dir, Some(300), None).unwrap();
    assert_eq!(
        (end.summary().rows.len(), end.summary().rows.to_string()),
        (2, "300..450 in rows of 100".into())
    );
    assert_eq!(end.layer_counts(3).unwrap(), [row(300, 3), row(400, 3)].concat());
    assert_eq!(
        message(&dir, load_with(&dir, Some(250), None)),
        "DIR: iter_start 250 is within a row, the dump has 100..450 in rows of 100; the nearest rows begin at 200 and 300"
    );
    assert_eq!(
        message(&dir, load_with(&dir, None, Some(449))),
        "DIR: iter_stop 449 is within a row, the dump has 100..450 in rows of 100; the nearest rows begin at 400 and 450"
    );
}

#[test]
fn every_nth_iteration_makes_a_row_of_its_own_or_a_part_of_one() {
    // Iterations 7, 12, 17, ... 42: of the range 7 to 43 one in 5.
    let keys: Vec<u64> = (7..44).step_by(5).collect();
    let dir = written(&WrittenDump::new(2, &[3], &keys, 7, 44).with("iter_stride", 5));
    let stats = load_with(&dir, None, None).unwrap();
    assert_eq!((stats.summary().rows.len(), stats.summary().rows.first().num_counted()), (8, 8));
    assert_eq!(stats.layer_counts(3).unwrap()[7 * EXPERTS..], row(42, 3));

    // The same iterations, 3 a row: 7 12 17, 22 27 32, 37 42.
    let dump = WrittenDump::new(2, &[3], &[7, 22, 37], 7, 44).with("iter_stride", 5).with("iter_bucket", 3);
    let dir = written(&dump);
    let stats = load_with(&dir, Some(22), None).unwrap();
    assert_eq!(stats.summary().rows.to_string(), "22..44, one in 5 in rows of 3");
    assert_eq!(stats.layer_counts(3).unwrap(), [row(22, 3), row(37, 3)].concat());
}

#[test]
fn all_files_must_have_the_rows_of_the_meta_file() {
    let mut dump = in_rows();
    dump.files[1].set("iter_bucket", "50");
    // The keys are a row's start for both.
    dump.files[1].keys = (100..450).step_by(50).collect();
    let dir = written(&dump);
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "rank1.safetensors: it has counts of experts in iterations 100..450 in rows of 50 on 2 ranks, meta_info.json lists \
         experts in iterations 100..450 in rows of 100 on 2 ranks: the files are of different runs"
    );
    let mut dump = in_rows();
    dump.info.remove("iter_bucket");
    let dir = written(&dump);
    assert!(message(&dir, load_with(&dir, None, None)).ends_with(
        "meta_info.json lists experts in iterations 100..450 on 2 ranks: the files are of different runs"
    ));
}

#[test]
fn a_misnamed_or_missing_row_is_named() {
    let mut dump = in_rows();
    dump.files[1].keys = vec![100, 200, 301, 400];
    let dir = written(&dump);
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "rank1.safetensors: tensor \"301_3\" is not named by the start of a row of iterations 100..450 in rows of 100; the \
         nearest is \"300_3\""
    );
    dump.files[1].keys = vec![100, 200, 400];
    dump.write(dir.path());
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "rank1.safetensors: the row of iteration 300 of layer 3 is missing (the file has iterations 100..450 in rows of 100)"
    );
    dump.files[1].keys = vec![100, 200, 300];
    dump.write(dir.path());
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "DIR: rank1.safetensors: the row of iteration 400 is missing, it has 100..400 of 100..450; choose rows that all \
         ranks have in full: 100..400 (iter_start 100, iter_stop 400)"
    );
    assert!(load_with(&dir, None, Some(400)).is_ok());
}

#[test]
fn hostile_rows_are_refused_without_work() {
    for (key, value, part) in [
        ("iter_bucket", 0, "both must be at least 1"),
        ("iter_stride", 0, "both must be at least 1"),
        ("iter_bucket", u64::MAX, "their product below 2^63"),
    ] {
        let dir = written(&in_rows().with(key, value));
        assert!(message(&dir, load_with(&dir, None, None)).contains(part), "{key} {value}");
    }
    // One row of nearly 2^63 iterations, in a range as long.
    let stop = i64::MAX as u64;
    let dir = written(&WrittenDump::new(2, &[3], &[0], 0, stop).with("iter_bucket", stop));
    let stats = load_with(&dir, None, None).unwrap();
    assert_eq!((stats.summary().rows.len(), stats.layer_counts(3).unwrap()), (1, &row(0, 3)[..]));
    // 2^62 rows, of which the file has two that are far apart.
    let dir = written(&WrittenDump::new(2, &[3], &[0, stop - 1], 0, stop).with("iter_bucket", 2));
    assert!(
        message(&dir, load_with(&dir, None, None)).contains("the row of iteration 2 of layer 3 is missing")
    );
}

#[test]
fn report_measures_each_row_as_an_iteration() {
    let dir = written(&in_rows());
    let stats = load_with(&dir, None, None).unwrap();
    let report = LoadReport::new(&Recording::new(&stats, None).unwrap(), None, 1).unwrap();
    let names: Vec<u64> = report.iterations.iter().map(|row| row.iteration).collect();
    assert_eq!(names, [100, 200, 300, 400]);
    // Rank 0 has experts 0 and 1, and the mean is over the four rows.
    let rank_0 = |key| row(key, 3)[0] + row(key, 3)[1];
    let mean = [100, 200, 300, 400].map(rank_0).iter().sum::<u64>() as f64 / 4.0;
    assert_eq!(report.layers[0].rank_tokens.measured.as_ref().unwrap()[0], mean);
}

#[test]
fn search_plans_for_at_most_one_sample_a_row() {
    let dir = written(&in_rows());
    let stats = load_with(&dir, None, None).unwrap();
    let shape = eplb::placement::Shape::new(EXPERTS, 6, 2).unwrap();
    let place = |weights: &[f64]| {
        let solve =
            SolveConfig { policy: Policy::Search, sample_weights: Some(weights), ..Default::default() };
        Planner { solve, num_samples: 16, threads: 1 }.place(&stats, shape)
    };
    assert!(place(&[1.0; 4]).is_ok());
    assert_eq!(
        place(&[1.0; 16]).unwrap_err().to_string(),
        "16 sample weights for 4 samples: num_samples is 16, but the dump has only 4 rows (100..450 in rows of 100), each a \
         sample; pass 4 weights"
    );
}

#[test]
fn conversion_keeps_the_sums() {
    use eplb::exchange::{CountsFormat, Model, read_counts, write_counts};
    let dir = written(&in_rows());
    let stats = load_with(&dir, None, None).unwrap();
    let out = dir.path().join("counts.json");
    write_counts(&stats, &out, CountsFormat::SglangCount, &Model::default()).unwrap();
    let read = read_counts(&out, CountsFormat::SglangCount, &Model::default()).unwrap();
    let read = read.load.counts().unwrap();
    assert_eq!(read.summary().rows.len(), 4);
    assert_eq!(read.layer_totals(4).unwrap(), stats.layer_totals(4).unwrap());
    // A dump of a dump has one file, and the same rows.
    let copy = dir.path().join("copy");
    write_counts(&stats, &copy, CountsFormat::Dump, &Model::default()).unwrap();
    let again = Dump::open(&copy, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
    assert_eq!((again.summary().rows.first(), again.summary().num_files), (stats.summary().rows.first(), 1));
    assert_eq!(again.layer_counts(3).unwrap(), stats.layer_counts(3).unwrap());
}

/// As the recorder writes it: rows 4, 10 and 16 of 2 iterations, one in 3 counted, in files 2 and 3 of a stage of 2 ranks.
#[test]
fn written_rows_and_stages_are_read() {
    use eplb::stats::{Counts, FileNumber, IdKind, IterationRange, RankDump, Rows};
    let dir = tempfile::tempdir().unwrap();
    let iterations = IterationRange { start: 4, stop: 17 };
    for file in 0..4 {
        let layers: &[u32] = if file < 2 { &[] } else { &[7] };
        let counts: Vec<u64> = if file < 2 { Vec::new() } else { (0..3 * EXPERTS as u64).collect() };
        let dump = RankDump {
            rank: file % 2,
            num_ranks: 2,
            file: Some(FileNumber { rank: file, num_files: 4 }),
            num_experts: EXPERTS,
            experts_per_token: 2,
            id_kind: IdKind::Expert,
            iterations,
            held: iterations,
            rows: Rows::new(2, 3).unwrap(),
            layers,
            counts: Counts::U64(&counts),
            run_id: Some("run".into()),
        };
        dump.write(dir.path()).unwrap();
    }
    let stats = load_with(&dir, None, None).unwrap();
    let summary = stats.summary();
    assert_eq!((summary.num_ranks, summary.num_files, summary.rows.len()), (2, 4, 3));
    let twice: Vec<u64> = (0..3 * EXPERTS as u64).map(|count| 2 * count).collect();
    assert_eq!(stats.layer_counts(7).unwrap(), twice);
    std::fs::remove_file(dir.path().join("rank0.safetensors")).unwrap();
    assert!(
        message(&dir, load_with(&dir, None, None)).starts_with("DIR: 1 of 4 ranks have no file (rank 0)")
    );
}

/// Iterations 0 to 11 in rows of 4, of which each rank counted a part.
fn counted(parts: &[(u64, u64)]) -> TempDir {
    use eplb::stats::{Counts, IdKind, IterationRange, RankDump, Rows};
    let dir = tempfile::tempdir().unwrap();
    let (iterations, rows) = (IterationRange { start: 0, stop: 12 }, Rows::new(4, 1).unwrap());
    for (rank, &(start, stop)) in (0..).zip(parts) {
        let held = IterationRange { start, stop };
        let (_, num_rows) = rows.rows_of(iterations, held);
        let dump = RankDump {
            rank,
            num_ranks: parts.len(),
            file: None,
            num_experts: EXPERTS,
            experts_per_token: 2,
            id_kind: IdKind::Expert,
            iterations,
            held,
            rows,
            layers: &[3],
            counts: Counts::U64(&vec![7; num_rows as usize * EXPERTS]),
            run_id: None,
        };
        dump.write(dir.path()).unwrap();
    }
    dir
}

#[test]
fn rows_with_other_iterations_on_another_rank_are_refused() {
    for (parts, expected) in [
        (
            [(0, 12), (2, 12)],
            "rank1.safetensors: the row of iteration 0 has iterations 2..4, that of rank0.safetensors has \
             0..4; choose rows that all ranks have in full: 4..12 (iter_start 4, iter_stop 12)",
        ),
        (
            [(0, 12), (0, 11)],
            "rank1.safetensors: the row of iteration 8 has iterations 8..11, that of rank0.safetensors has \
             8..12; choose rows that all ranks have in full: 0..8 (iter_start 0, iter_stop 8)",
        ),
        (
            [(3, 9), (2, 9)],
            "rank1.safetensors: the row of iteration 0 has iterations 2..4, that of rank0.safetensors has \
             3..4; choose rows that all ranks have in full: 4..8 (iter_start 4, iter_stop 8)",
        ),
        (
            [(0, 9), (5, 12)],
            "rank1.safetensors: the row of iteration 0 is missing, it has 4..12 of 0..12; no row is in full in the files \
             of all ranks, record again",
        ),
    ] {
        let dir = counted(&parts);
        assert_eq!(message(&dir, load_with(&dir, None, None)), format!("DIR: {expected}"), "{parts:?}");
    }
    // The way out of the second one, and the rows beside the first one's.
    assert!(load_with(&counted(&[(0, 12), (0, 11)]), Some(0), Some(8)).is_ok());
    let dir = counted(&[(0, 12), (2, 11)]);
    assert_eq!(load_with(&dir, Some(4), Some(8)).unwrap().layer_counts(3).unwrap(), [14; EXPERTS]);
    assert!(message(&dir, load_with(&dir, Some(4), None)).contains("the row of iteration 8 has iterations"));
}

#[test]
fn rows_with_the_same_part_on_all_ranks_are_read() {
    let dir = counted(&[(2, 7), (2, 7)]);
    assert_eq!(load_with(&dir, Some(0), Some(8)).unwrap().layer_counts(3).unwrap(), [14; 2 * EXPERTS]);
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "DIR: rank0.safetensors: the row of iteration 8 is missing, it has 0..8 of 0..12; choose rows that all ranks have in \
         part: 0..8 (iter_start 0, iter_stop 8)"
    );
}

#[test]
fn iterations_that_the_stride_skips_make_no_row_partial() {
    // Counted: 0, 5, 10, 15 in rows of 2. The ranks stopped at different iterations after 10.
    let mut dump = WrittenDump::new(2, &[3], &[0, 10], 0, 20).with("iter_stride", 5).with("iter_bucket", 2);
    for (file, stop) in dump.files.iter_mut().zip(["16", "20"]) {
        file.set("counted_start", "0");
        file.set("counted_stop", stop);
    }
    assert!(load_with(&written(&dump), None, None).is_ok());
    dump.files[1].set("counted_stop", "15");
    let dir = written(&dump);
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "DIR: rank1.safetensors: the row of iteration 10 has iterations 10..15, that of rank0.safetensors has \
         10..20; choose rows that all ranks have in full: 0..10 (iter_start 0, iter_stop 10)"
    );
}

#[test]
fn the_counted_iterations_must_be_those_of_the_rows() {
    let mut dump = in_rows();
    dump.files[1].set("counted_start", "200");
    dump.files[1].set("counted_stop", "450");
    let dir = written(&dump);
    assert_eq!(
        message(&dir, load_with(&dir, None, None)),
        "rank1.safetensors: it has iterations 100..450 in rows of 100, but by its __metadata__ 200..450 of 100..450 in rows \
         of 100 were counted"
    );
}
