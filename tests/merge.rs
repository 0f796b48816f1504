//! Merges dumps of one recording. The tests write the files themselves, and read the result as any other dump.

use std::fs;
use std::path::{Path, PathBuf};

use eplb::Result;
use eplb::stats::{
    Counts, Dump, Gaps, IdKind, IterationRange, LoadOptions, MergeConfig, Merged, Overlap, RankDump, Rows,
    Stats, merge,
};
use tempfile::TempDir;
use written::{EXPERTS, foreign};

mod written;

/// The count of an iteration, different for any two cells.
fn count(run: u64, rank: u32, iteration: u64, layer: u32, expert: usize) -> u64 {
    run * 1_000_000_000
        + u64::from(rank) * 100_000_000
        + iteration * 1000
        + u64::from(layer) * 10
        + expert as u64
}

/// Writes rank `rank` of a run of 2 ranks that counts `range` in rows of `bucket`, every `stride`-th, and holds `held`.
struct Recorded {
    run: u64,
    range: (u64, u64),
    held: (u64, u64),
    bucket: u64,
    stride: u64,
    num_ranks: usize,
}

impl Recorded {
    fn new(run: u64, range: (u64, u64), held: (u64, u64)) -> Recorded {
        Recorded { run, range, held, bucket: 1, stride: 1, num_ranks: 2 }
    }

    fn write_rank(&self, directory: &Path, rank: u32, held: (u64, u64)) {
        let rows = Rows::new(self.bucket, self.stride).unwrap();
        let iterations = IterationRange { start: self.range.0, stop: self.range.1 };
        let held = IterationRange { start: held.0, stop: held.1 };
        let (first, num_rows) = rows.rows_of(iterations, held);
        let mut counts = vec![0; num_rows as usize * 2 * EXPERTS];
        for iteration in held.start..held.stop {
            let Some(row) = rows.row_of(iterations, iteration) else { continue };
            for (index, cell) in
                counts[(row - first) as usize * 2 * EXPERTS..][..2 * EXPERTS].iter_mut().enumerate()
            {
                *cell += count(self.run, rank, iteration, [3, 4][index / EXPERTS], index % EXPERTS);
            }
        }
        let dump = RankDump {
            rank,
            num_ranks: self.num_ranks,
            file: None,
            num_experts: EXPERTS,
            experts_per_token: 2,
            id_kind: IdKind::Expert,
            iterations,
            held,
            rows,
            layers: &[3, 4],
            counts: Counts::U64(&counts),
            run_id: Some("a run".into()),
        };
        dump.write(directory).unwrap();
    }

    fn write(&self, directory: &Path) {
        (0..self.num_ranks as u32).for_each(|rank| self.write_rank(directory, rank, self.held));
    }
}

struct Case {
    dir: TempDir,
    overlap: Overlap,
    gaps: Gaps,
}

impl Case {
    fn new(dumps: &[Recorded]) -> Case {
        let dir = tempfile::tempdir().unwrap();
        for (name, dump) in ["a", "b", "c"].iter().zip(dumps) {
            dump.write(&dir.path().join(name));
        }
        Case { dir, overlap: Overlap::Refuse, gaps: Gaps::Refuse }
    }

    fn with(self, overlap: Overlap, gaps: Gaps) -> Case {
        Case { overlap, gaps, ..self }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    fn merge(&self) -> Result<Merged> {
        let paths = ["a", "b", "c"].map(|name| self.dir.path().join(name));
        let paths: Vec<PathBuf> = paths.into_iter().filter(|path| path.exists()).collect();
        let config = MergeConfig {
            paths: &paths,
            output_path: &self.output(),
            overlap: self.overlap,
            gaps: self.gaps,
            counts: None,
            experts_per_token: None,
            threads: 2,
        };
        merge(&config, &mut |_, _| Ok(()))
    }

    /// The merged dump.
    fn merged(&self) -> Stats {
        self.merge().unwrap();
        let dump = Dump::open(&self.output(), &LoadOptions::default()).unwrap();
        dump.read(&mut |_, _| Ok(())).unwrap()
    }

    fn error(&self) -> String {
        let error = self.merge().unwrap_err().to_string();
        error.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

/// Checks the iterations of a merged dump and their counts: `runs` has the runs and the iteration in them of each row.
fn check(stats: &Stats, iterations: &str, rows: &[Vec<(u64, u64)>]) {
    assert_eq!(stats.summary().rows.to_string(), iterations);
    for layer in [3, 4] {
        let expected = rows.iter().flat_map(|row| {
            (0..EXPERTS).map(move |expert| {
                row.iter()
                    .flat_map(|&(run, iteration)| {
                        [0, 1].map(|rank| count(run, rank, iteration, layer, expert))
                    })
                    .sum::<u64>()
            })
        });
        assert_eq!(stats.layer_counts(layer).unwrap(), expected.collect::<Vec<_>>(), "layer {layer}");
    }
}

#[test]
fn dumps_of_one_range_cut_by_a_restart_become_complete() {
    // The same environment before and after: both declare 0..10, and neither has all of it.
    let case = Case::new(&[Recorded::new(0, (0, 10), (0, 4)), Recorded::new(0, (0, 10), (4, 10))]);
    let rows: Vec<_> = (0..10).map(|iteration| vec![(0, iteration)]).collect();
    let stats = case.merged();
    check(&stats, "0..10", &rows);
    assert_eq!((stats.summary().num_ranks, stats.summary().id_kind), (2, Some(IdKind::Expert)));
    // Each rank's file has the counts of that rank.
    let only = |rank: u32| {
        let other = case.output().join(format!("rank{}.safetensors", 1 - rank));
        fs::rename(&other, case.dir.path().join("aside")).unwrap();
        let options = LoadOptions { allow_missing_ranks: true, ..Default::default() };
        let read = Dump::open(&case.output(), &options).unwrap().read(&mut |_, _| Ok(())).unwrap();
        fs::rename(case.dir.path().join("aside"), other).unwrap();
        read.layer_counts(4).unwrap()[7 * EXPERTS + 2]
    };
    assert_eq!([only(0), only(1)], [count(0, 0, 7, 4, 2), count(0, 1, 7, 4, 2)]);
    // Merged once more, nothing is overwritten.
    assert!(case.error().contains("it already has a dump; choose another directory"));
}

#[test]
fn missing_ends_of_the_declared_range_are_told() {
    // Rows of 3, one in 2 counted: 0, 2, 4 | 6, 8, 10 | 12, 14, 16 | 18.
    let of = |range, held| Recorded { bucket: 3, stride: 2, ..Recorded::new(0, range, held) };
    let declared = |runs: &[Recorded]| {
        let declared = Case::new(runs).merge().unwrap().declared;
        declared.map(|range| (range.start, range.stop))
    };
    assert_eq!(
        declared(&[Recorded::new(0, (0, 10), (0, 4)), Recorded::new(0, (0, 10), (4, 9))]),
        Some((0, 10))
    );
    assert_eq!(declared(&[Recorded::new(0, (2, 6), (3, 6)), Recorded::new(0, (6, 9), (6, 9))]), Some((2, 9)));
    assert_eq!(declared(&[Recorded::new(0, (0, 5), (0, 5)), Recorded::new(0, (5, 9), (5, 9))]), None);
    assert_eq!(declared(&[of((0, 20), (0, 6)), of((0, 20), (6, 18))]), Some((0, 20)));
    // 19 is not counted.
    assert_eq!(declared(&[of((0, 20), (0, 6)), of((0, 20), (6, 19))]), None);
}

#[test]
fn rows_that_a_restart_split_add_up() {
    // Counted: 100, 110, ..., 190 in rows of 3. The first run stopped after 120 and 130, within the row of 130.
    let recorded = |held| Recorded { bucket: 3, stride: 10, ..Recorded::new(0, (100, 195), held) };
    let case = Case::new(&[recorded((100, 131)), recorded((131, 195))]);
    let row = |iterations: &[u64]| iterations.iter().map(|&iteration| (0, iteration)).collect::<Vec<_>>();
    check(
        &case.merged(),
        "100..191, one in 10 in rows of 3",
        &[row(&[100, 110, 120]), row(&[130, 140, 150]), row(&[160, 170, 180]), row(&[190])],
    );
}

#[test]
fn overlaps_are_refused_until_it_is_said_what_becomes_of_them() {
    let dumps = || [Recorded::new(0, (0, 6), (0, 6)), Recorded::new(1, (4, 9), (4, 9))];
    assert_eq!(
        Case::new(&dumps()).error(),
        "a and b both have iterations 4..6 in rank0.safetensors: say which dump counts (overlap first or last), add them up \
         (add), or number the second on from the end of the first (append)"
    );
    // A part of a row cannot be taken out of it, and neither dump has the row of 4..8 as a whole.
    let part = |run, held| Recorded { bucket: 4, ..Recorded::new(run, (0, 12), held) };
    let case = Case::new(&[part(0, (0, 6)), part(1, (5, 12))]).with(Overlap::Last, Gaps::Refuse);
    assert_eq!(
        case.error(),
        "a and b both have iterations 5..6 in rank0.safetensors: they are a part of a row of several iterations, which cannot \
         be taken out of it; add them up (overlap add), or number the second on from the end of the first (append)"
    );
    let rows = |of: fn(u64) -> Vec<(u64, u64)>| (0..9).map(of).collect::<Vec<_>>();
    let first = rows(|i| vec![(u64::from(i >= 6), i)]);
    let last = rows(|i| vec![(u64::from(i >= 4), i)]);
    let add = rows(|i| match i {
        0..4 => vec![(0, i)],
        4..6 => vec![(0, i), (1, i)],
        _ => vec![(1, i)],
    });
    for (overlap, expected) in [(Overlap::First, first), (Overlap::Last, last), (Overlap::Add, add)] {
        check(&Case::new(&dumps()).with(overlap, Gaps::Refuse).merged(), "0..9", &expected);
    }
    // 0..6, then 4..9 as 6..11.
    let append: Vec<_> = (0..6).map(|i| vec![(0, i)]).chain((4..9).map(|i| vec![(1, i)])).collect();
    check(&Case::new(&dumps()).with(Overlap::Append, Gaps::Refuse).merged(), "0..11", &append);
}

#[test]
fn append_numbers_a_run_that_begins_anywhere() {
    // Listed in the order of time, not of their numbers.
    let case = Case::new(&[Recorded::new(0, (50, 53), (50, 53)), Recorded::new(1, (0, 2), (0, 2))]);
    let rows = [(0, 50), (0, 51), (0, 52), (1, 0), (1, 1)].map(|cell| vec![cell]);
    check(&case.with(Overlap::Append, Gaps::Refuse).merged(), "50..55", &rows);
    let case = Case::new(&[Recorded::new(0, (0, 2), (0, 2)), Recorded::new(1, (50, 53), (51, 53))]);
    let rows = [(0, 0), (0, 1), (1, 51), (1, 52)].map(|cell| vec![cell]);
    check(&case.with(Overlap::Append, Gaps::Refuse).merged(), "0..4", &rows);
}

#[test]
fn gaps_are_refused_or_closed_on_all_ranks() {
    let dumps = || [Recorded::new(0, (0, 3), (0, 3)), Recorded::new(0, (5, 7), (5, 7))];
    assert_eq!(
        Case::new(&dumps()).error(),
        "no dump has all of iterations 3..5: add the dump that has them, or leave them out (gaps close), which numbers later \
         iterations down"
    );
    let case = Case::new(&dumps()).with(Overlap::Refuse, Gaps::Close);
    check(&case.merged(), "0..5", &[0, 1, 2, 5, 6].map(|i| vec![(0, i)]));

    // Rank 1 of the first run stopped an iteration before rank 0.
    let ragged = || {
        let case = Case::new(&[Recorded::new(0, (0, 9), (0, 4)), Recorded::new(0, (0, 9), (4, 9))]);
        Recorded::new(0, (0, 9), (0, 4)).write_rank(&case.dir.path().join("a"), 1, (0, 3));
        case
    };
    assert!(
        ragged()
            .error()
            .starts_with("no dump has in rank1.safetensors, as others have, all of iterations 3..4: "),
        "{}",
        ragged().error()
    );
    let case = ragged().with(Overlap::Refuse, Gaps::Close);
    assert_eq!(case.merge().unwrap().left_out, 1);
    fs::remove_dir_all(case.output()).unwrap();
    check(&case.merged(), "0..8", &[0, 1, 2, 4, 5, 6, 7, 8].map(|i| vec![(0, i)]));
}

#[test]
fn dumps_of_other_ranks_are_summed_into_one_file() {
    // Elastic: 2 ranks, then 4. Those of the second run are ranks 0 and 1 twice over in these counts.
    let four = Recorded { num_ranks: 4, ..Recorded::new(1, (3, 5), (3, 5)) };
    let case = Case::new(&[Recorded::new(0, (0, 3), (0, 3)), four]);
    let merged = case.merge().unwrap();
    assert_eq!(
        (merged.num_files, merged.differing_ranks),
        (1, Some(vec!["2 ranks".into(), "4 ranks".into()]))
    );
    let dump = Dump::open(&case.output(), &LoadOptions::default()).unwrap();
    let stats = dump.read(&mut |_, _| Ok(())).unwrap();
    assert_eq!((stats.summary().num_ranks, stats.summary().rows.to_string()), (1, "0..5".into()));
    let of = |run, ranks, iteration| (0..ranks).map(|rank| count(run, rank, iteration, 3, 1)).sum::<u64>();
    let counts = stats.layer_counts(3).unwrap();
    assert_eq!([counts[2 * EXPERTS + 1], counts[4 * EXPERTS + 1]], [of(0, 2, 2), of(1, 4, 4)]);
}

#[test]
fn rows_must_be_alike_and_meet() {
    let rows_of =
        |bucket, start| Recorded { bucket, ..Recorded::new(0, (start, start + 40), (start, start + 40)) };
    assert_eq!(
        Case::new(&[rows_of(10, 0), rows_of(20, 40)]).error(),
        "b has rows of 20 iterations, a rows of 10 iterations: rows of different lengths cannot be merged; read the dumps \
         together instead, --expert_statistic_path once for each"
    );
    assert!(Case::new(&[rows_of(10, 0), rows_of(10, 45)]).error().starts_with(
        "b has rows of 10 iterations from iteration 45 on, others from 0: their rows do not meet; number them on"
    ));
    let case = Case::new(&[rows_of(10, 0), rows_of(10, 45)]).with(Overlap::Append, Gaps::Refuse);
    assert_eq!(case.merged().summary().rows.to_string(), "0..80 in rows of 10");
}

#[test]
fn dumps_of_tensorrt_llm_need_to_say_what_they_count() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    for (path, keys) in paths.iter().zip([&[0, 1][..], &[2, 3]]) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("meta_info.json"), "null").unwrap();
        // Rank 0 has no layers, as of a pipeline's dense stage; ranks 1 and 2 are a stage, rank 3 another.
        let layers: [&[u32]; 4] = [&[], &[5], &[5], &[6]];
        (0..).zip(layers).for_each(|(file, layers)| foreign(file, layers, keys).write(path));
    }
    let output_path = &dir.path().join("merged");
    let config = MergeConfig {
        paths: &paths,
        output_path,
        overlap: Overlap::Refuse,
        gaps: Gaps::Refuse,
        counts: None,
        experts_per_token: None,
        threads: 1,
    };
    let error = |config: &MergeConfig| merge(config, &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(
        error(&config).contains("a: it does not say whether it counts experts or slots"),
        "{}",
        error(&config)
    );
    let config = MergeConfig { counts: Some(IdKind::Slot), ..config };
    assert!(
        error(&config).contains("a: it does not say how many experts a token chooses"),
        "{}",
        error(&config)
    );
    let config = MergeConfig { experts_per_token: Some(2), ..config };
    merge(&config, &mut |_, _| Ok(())).unwrap();
    let stats = Dump::open(output_path, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
    let summary = stats.summary();
    assert_eq!(
        (summary.id_kind, &summary.stage_ranks[..], summary.num_files),
        (Some(IdKind::Slot), &[2, 1][..], 4)
    );
    assert_eq!(summary.rows.to_string(), "0..4");
    let sum = |key| written::count(1, key, 5, 3) + written::count(2, key, 5, 3);
    assert_eq!([3, 7, 11, 15].map(|at| stats.layer_counts(5).unwrap()[at]), [0, 1, 2, 3].map(sum));
}

#[test]
fn progress_can_stop_a_merge_and_leaves_no_dump() {
    let case = Case::new(&[Recorded::new(0, (0, 3), (0, 3)), Recorded::new(0, (3, 5), (3, 5))]);
    let paths = ["a", "b"].map(|name| case.dir.path().join(name));
    let config = MergeConfig {
        paths: &paths,
        output_path: &case.output(),
        overlap: Overlap::Refuse,
        gaps: Gaps::Refuse,
        counts: None,
        experts_per_token: None,
        threads: 1,
    };
    let mut calls = Vec::new();
    merge(&config, &mut |done, total| {
        calls.push((done, total));
        Ok(())
    })
    .unwrap();
    // 5 rows of 2 ranks and 2 layers.
    let total = (5 * 2 * 2 * EXPERTS * 8) as u64;
    assert!(calls.is_sorted() && calls.last() == Some(&(total, total)), "{calls:?}");
    fs::remove_dir_all(case.output()).unwrap();
    let stopped =
        merge(&config, &mut |done, _| if done * 2 > total { Err(eplb::Error::Cancelled) } else { Ok(()) });
    assert!(matches!(stopped, Err(eplb::Error::Cancelled)));
    assert!(!case.output().join("meta_info.json").exists());
}
