//! Reads complete, foreign, incomplete and damaged dumps. The safetensors crate writes the files as TensorRT-LLM does. Each test
//! then changes one thing.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::path::Path;

use eplb::stats::{Counts, Dump, IdKind, IterationRange, LoadOptions, MetaInfo, RankDump, Rows, Stats};
use eplb::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

const EXPERTS: usize = 4;

/// The count of a cell, different for any two cells.
fn count(rank: u32, iteration: u64, layer: u32, expert: usize) -> i64 {
    i64::from(rank) * 100_000 + iteration as i64 * 1000 + i64::from(layer) * 10 + expert as i64
}

/// Writes one rank's file of tensors with name, dtype and counts.
fn write_tensors(path: &Path, tensors: &[(String, Dtype, Vec<i64>)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, counts)| match dtype {
            Dtype::I64 => counts.iter().flat_map(|count| count.to_le_bytes()).collect(),
            Dtype::I32 => counts.iter().flat_map(|&count| (count as i32).to_le_bytes()).collect(),
            _ => counts.iter().flat_map(|&count| (count as f32).to_le_bytes()).collect(),
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, counts), bytes)| {
        (name.as_str(), TensorView::new(*dtype, vec![counts.len()], bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn rank_path(dir: &TempDir, rank: u32) -> std::path::PathBuf {
    dir.path().join(format!("rank{rank}.safetensors"))
}

fn write_meta(dir: &TempDir) {
    let meta = format!("{{\"num_experts\": {EXPERTS}, \"num_experts_per_token\": 2}}");
    fs::write(dir.path().join("meta_info.json"), meta).unwrap();
}

fn write_rank(dir: &TempDir, rank: u32, layers: &[u32], iterations: std::ops::Range<u64>) {
    let mut tensors = Vec::new();
    for iteration in iterations {
        for &layer in layers {
            let counts = (0..EXPERTS).map(|expert| count(rank, iteration, layer, expert)).collect();
            let dtype = if layer % 2 == 0 { Dtype::I32 } else { Dtype::I64 };
            tensors.push((format!("{iteration}_{layer}"), dtype, counts));
        }
    }
    write_tensors(&rank_path(dir, rank), &tensors);
}

/// A foreign dump: 3 ranks, layers 3 (I64), 4 (I32) and 10 (I32), iterations 7 to 11.
fn foreign() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_meta(&dir);
    for rank in 0..3 {
        write_rank(&dir, rank, &[3, 4, 10], 7..12);
    }
    dir
}

/// A dump that eplb wrote: 2 ranks, layers 1 and 2, iterations 5 and 6. `edit` changes each rank's part.
fn own_dump(edit: impl Fn(&mut RankDump)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for rank in 0..2 {
        let layers = [1, 2, 3];
        let counts: Vec<u64> = (0..3 * 3 * EXPERTS as u64).collect();
        let mut dump = RankDump {
            rank,
            num_ranks: 2,
            file: None,
            rows: Rows::default(),
            num_experts: EXPERTS,
            experts_per_token: 2,
            id_kind: IdKind::Expert,
            iterations: IterationRange { start: 5, stop: 7 },
            held: IterationRange { start: 0, stop: 0 },
            layers: &layers[..2],
            counts: Counts::U64(&[]),
            run_id: Some("run \"7\"".into()),
        };
        edit(&mut dump);
        if dump.held.is_empty() {
            dump.held = dump.iterations;
        }
        dump.counts = Counts::U64(&counts[..dump.held.len() as usize * dump.layers.len() * EXPERTS]);
        dump.write(dir.path()).unwrap();
    }
    dir
}

fn load_with(dir: &TempDir, options: LoadOptions) -> Result<Stats> {
    Dump::open(dir.path(), &options)?.read(&mut |_, _| Ok(()))
}

fn load(dir: &TempDir) -> Result<Stats> {
    load_with(dir, LoadOptions::default())
}

/// The error's message, without the directory's path.
fn message(dir: &TempDir, result: Result<Stats>) -> String {
    let error = result.map(|stats| stats.summary().clone()).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.path().display()), "").replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn reader_sums_over_ranks_for_any_iterations_and_threads() {
    let dir = foreign();
    for threads in [1, 2, 8] {
        for (iter_start, iter_stop) in [(None, None), (Some(8), Some(10)), (None, Some(8)), (Some(11), None)]
        {
            let options = LoadOptions { iter_start, iter_stop, threads, ..Default::default() };
            let stats = load_with(&dir, options).unwrap();
            let range = iter_start.unwrap_or(7)..iter_stop.unwrap_or(12);
            assert_eq!(stats.summary().layers, [3, 4, 10]);
            assert_eq!(stats.summary().num_ranks, 3);
            for layer in [3, 4, 10] {
                let sum = |i, expert| (0..3).map(|rank| count(rank, i, layer, expert) as u64).sum::<u64>();
                let expected: Vec<u64> =
                    range.clone().flat_map(|i| (0..EXPERTS).map(move |expert| sum(i, expert))).collect();
                assert_eq!(stats.layer_counts(layer).unwrap(), expected);
                let totals: Vec<u64> =
                    (0..EXPERTS).map(|expert| range.clone().map(|i| sum(i, expert)).sum()).collect();
                assert_eq!(stats.layer_totals(layer).unwrap(), totals);
            }
        }
    }
}

#[test]
fn reader_sums_many_files_in_several_pieces_and_orders() {
    // 12 iterations x (16 KiB for layer 4 + 32 KiB for layer 3) in each of 40 files. Ranks 36 and 37 have both layers in 64 bits,
    // so their tensors are in another order.
    const EXPERTS: usize = 4096;
    let dir = tempfile::tempdir().unwrap();
    let meta = format!("{{\"num_experts\": {EXPERTS}, \"num_experts_per_token\": 2}}");
    fs::write(dir.path().join("meta_info.json"), meta).unwrap();
    for rank in 0..40 {
        let names = (7..19).flat_map(|iteration| [3, 4].map(|layer| (iteration, layer)));
        let tensors: Vec<_> = names
            .map(|(iteration, layer)| {
                let is_short = layer == 4 && !(36..38).contains(&rank);
                let counts = (0..EXPERTS).map(|expert| count(rank, iteration, layer, expert)).collect();
                (format!("{iteration}_{layer}"), if is_short { Dtype::I32 } else { Dtype::I64 }, counts)
            })
            .collect();
        write_tensors(&rank_path(&dir, rank), &tensors);
    }
    for threads in [1, 3] {
        for (iter_start, iter_stop) in [(None, None), (Some(9), Some(17))] {
            let options = LoadOptions { iter_start, iter_stop, threads, ..Default::default() };
            let stats = load_with(&dir, options).unwrap();
            let range = iter_start.unwrap_or(7)..iter_stop.unwrap_or(19);
            for layer in [3, 4] {
                let sum = |i, expert| (0..40).map(|rank| count(rank, i, layer, expert) as u64).sum::<u64>();
                let expected: Vec<u64> =
                    range.clone().flat_map(|i| (0..EXPERTS).map(move |expert| sum(i, expert))).collect();
                assert!(stats.layer_counts(layer).unwrap() == expected, "layer {layer}, {range:?}");
            }
        }
    }
}

#[test]
fn reader_skips_raw_ids_and_other_files() {
    let dir = foreign();
    for name in [
        "rank0_raw.safetensors",
        "cooccurrence_rank0.safetensors",
        ".rank1.safetensors.node7.4242-81.0.partial",
        "notes",
    ] {
        fs::write(dir.path().join(name), "not a tensor").unwrap();
    }
    assert_eq!(load(&dir).unwrap().summary().num_ranks, 3);
}

#[test]
fn reader_accepts_different_layers_in_pipeline_stages() {
    let dir = tempfile::tempdir().unwrap();
    write_meta(&dir);
    for (rank, layers) in [(0, [3, 4]), (1, [3, 4]), (2, [5, 6]), (3, [5, 6])] {
        write_rank(&dir, rank, &layers, 0..2);
    }
    let stats = load(&dir).unwrap();
    assert_eq!(stats.summary().layers, [3, 4, 5, 6]);
    let ranks_2_and_3 = (count(2, 0, 5, 0) + count(3, 0, 5, 0)) as u64;
    assert_eq!(stats.layer_counts(5).unwrap()[0], ranks_2_and_3);
}

#[test]
fn reader_names_missing_files_iterations_and_layers() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: no rank<R>.safetensors in this directory; give the directory to which EXPERT_STATISTIC_PATH was set"
    );

    let dir = foreign();
    fs::remove_file(dir.path().join("meta_info.json")).unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "meta_info.json: missing beside the rank files; rank 0 writes it, copy it here"
    );

    let dir = foreign();
    fs::remove_file(rank_path(&dir, 1)).unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: 1 of 3 ranks have no file (rank 1); copy them here, or allow missing ranks"
    );
    let stats = load_with(&dir, LoadOptions { allow_missing_ranks: true, ..Default::default() }).unwrap();
    assert_eq!((stats.summary().num_ranks, &stats.summary().missing_ranks[..]), (3, &[1][..]));
    assert_eq!(stats.layer_counts(3).unwrap()[0], (count(0, 7, 3, 0) + count(2, 7, 3, 0)) as u64);

    let dir = foreign();
    write_rank(&dir, 1, &[3, 4, 10], 7..11);
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: rank1.safetensors: iteration 11 is missing, it has 7..11 of 7..12; choose iterations that all ranks have: \
         7..11 (iter_start 7, iter_stop 11)"
    );
    assert!(load_with(&dir, LoadOptions { iter_stop: Some(11), ..Default::default() }).is_ok());
    write_rank(&dir, 0, &[3, 4, 10], 8..12);
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: rank0.safetensors: iteration 7 is missing, it has 8..12 of 7..12; choose iterations that all ranks have: \
         8..11 (iter_start 8, iter_stop 11)"
    );
    let common = LoadOptions { iter_start: Some(8), iter_stop: Some(11), ..Default::default() };
    assert!(load_with(&dir, common).is_ok());
    write_rank(&dir, 0, &[3, 4, 10], 11..12);
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: rank0.safetensors: iteration 7 is missing, it has 11..12 of 7..12; no iteration is in the files of all \
         ranks, record again"
    );

    let dir = foreign();
    write_rank(&dir, 2, &[3, 10], 7..12);
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: layer 4 is missing from rank2.safetensors, which has other layers of the same pipeline stage"
    );
    write_rank(&dir, 2, &[3, 4, 5, 10], 7..12);
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: layer 5 is missing from rank0.safetensors, which has other layers of the same pipeline stage"
    );
}

#[test]
fn reader_rejects_iterations_that_the_dump_lacks() {
    let dir = foreign();
    for (start, stop, requested) in [(6, 9, "6..9"), (7, 13, "7..13"), (9, 9, "9..9"), (10, 8, "10..8")] {
        let options = LoadOptions { iter_start: Some(start), iter_stop: Some(stop), ..Default::default() };
        assert_eq!(
            message(&dir, load_with(&dir, options)),
            format!("DIR: iterations {requested} requested (stop excluded), the dump has 7..12")
        );
    }
}

#[test]
fn reader_names_damaged_files_and_the_damage() {
    let dir = foreign();
    fs::write(dir.path().join("rank01.safetensors"), "").unwrap();
    assert!(message(&dir, load(&dir)).starts_with("rank1.safetensors: rank 1 has two files, "));
    fs::remove_file(rank_path(&dir, 1)).unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "rank01.safetensors: it has 0 bytes, too few for a safetensors file: it is truncated, copy it again"
    );

    for name in ["rank.safetensors", "rankx.safetensors", "rank-1.safetensors", "rank99999999999.safetensors"]
    {
        let dir = foreign();
        fs::write(dir.path().join(name), "").unwrap();
        let expected = "invalid file name, rank<R>.safetensors expected with R the rank";
        assert_eq!(message(&dir, load(&dir)), format!("{name}: {expected}"));
    }

    let dir = foreign();
    let len = fs::metadata(rank_path(&dir, 2)).unwrap().len();
    let cut = |len| OpenOptions::new().write(true).open(rank_path(&dir, 2)).unwrap().set_len(len).unwrap();
    cut(len - 1);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank2.safetensors: its tensors take 320 bytes, but only 319 follow the header: it is truncated, copy it again"
    );
    cut(100);
    let error = message(&dir, load(&dir));
    assert!(error.starts_with("rank2.safetensors: its header has "), "{error}");
    assert!(error.ends_with("bytes, but only 92 follow: it is truncated, copy it again"), "{error}");
    cut(5);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank2.safetensors: it has 5 bytes, too few for a safetensors file: it is truncated, copy it again"
    );

    let dir = foreign();
    fs::write(rank_path(&dir, 0), "this is no safetensors file at all").unwrap();
    let error = message(&dir, load(&dir));
    assert!(error.starts_with("rank0.safetensors: not a safetensors file: its header would have"), "{error}");

    let dir = foreign();
    let zeros = vec![0; EXPERTS];
    write_tensors(&rank_path(&dir, 0), &[("7_3".into(), Dtype::F32, zeros.clone())]);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank0.safetensors: tensor \"7_3\" has dtype F32, I64 or I32 expected"
    );
    write_tensors(&rank_path(&dir, 0), &[("7_3".into(), Dtype::I64, vec![0; EXPERTS - 1])]);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank0.safetensors: tensor \"7_3\" has 3 values, 4 experts expected"
    );

    fs::write(dir.path().join("meta_info.json"), "{\"num_experts\": 4,").unwrap();
    let error = message(&dir, load(&dir));
    assert!(error.starts_with("meta_info.json: bad JSON: EOF while parsing"), "{error}");
}

#[test]
fn reader_rejects_negative_counts_and_overflows() {
    let tensor = |counts: [i64; EXPERTS]| vec![("7_3".to_owned(), Dtype::I64, counts.to_vec())];
    let dir_of_two = |first: [i64; EXPERTS], second: [i64; EXPERTS]| {
        let dir = tempfile::tempdir().unwrap();
        write_meta(&dir);
        write_tensors(&rank_path(&dir, 0), &tensor(first));
        write_tensors(&rank_path(&dir, 1), &tensor(second));
        dir
    };
    let dir = dir_of_two([1, 2, 3, 4], [1, 2, -3, 4]);
    assert_eq!(message(&dir, load(&dir)), "rank1.safetensors: tensor \"7_3\" has the count -3 for expert 2");
    let dir = dir_of_two([i64::MAX, 0, 0, 0], [1, 0, 0, 0]);
    assert!(message(&dir, load(&dir)) == "DIR: iteration 7 of layer 3: the sum over ranks overflows 63 bits");
    let dir = dir_of_two([i64::MAX - 1, 0, 0, 0], [1, 0, 0, 0]);
    assert_eq!(load(&dir).unwrap().layer_counts(3).unwrap()[0], i64::MAX as u64);

    let dir = tempfile::tempdir().unwrap();
    write_meta(&dir);
    let tensors: Vec<_> = (0..3).map(|i| (format!("{i}_3"), Dtype::I64, vec![0, i64::MAX, 0, 0])).collect();
    write_tensors(&rank_path(&dir, 0), &tensors);
    assert_eq!(
        load(&dir).unwrap().layer_totals(3).unwrap_err().to_string(),
        "layer 3, expert 1: the sum over iterations 0..3 overflows 64 bits; choose fewer iterations"
    );
}

#[test]
fn reader_rejects_a_file_that_changes_while_it_is_read() {
    // 2 files of 64 MB: after the first pieces have been reported, most of each is still unread.
    let dir = tempfile::tempdir().unwrap();
    let (num_experts, layers) = (1 << 16, [0, 1, 2, 3]);
    let counts = vec![1; 32 * layers.len() * num_experts];
    for rank in 0..2 {
        let iterations = IterationRange { start: 0, stop: 32 };
        let dump = RankDump {
            rank,
            num_ranks: 2,
            file: None,
            rows: Rows::default(),
            num_experts,
            experts_per_token: 2,
            id_kind: IdKind::Expert,
            iterations,
            held: iterations,
            layers: &layers,
            counts: Counts::U64(&counts),
            run_id: None,
        };
        dump.write(dir.path()).unwrap();
    }
    let read_while = |disturb: &dyn Fn()| {
        let dump = Dump::open(dir.path(), &LoadOptions { threads: 2, ..Default::default() }).unwrap();
        let mut disturbed = false;
        dump.read(&mut |_, _| {
            if !std::mem::replace(&mut disturbed, true) {
                disturb();
            }
            Ok(())
        })
    };
    assert!(read_while(&|| ()).is_ok());
    let expected =
        "rank1.safetensors: it changed or was truncated while it was read; read it again after the run";
    let file = || OpenOptions::new().write(true).open(rank_path(&dir, 1)).unwrap();

    // The same size with other counts.
    use std::os::unix::fs::FileExt;
    let len = file().metadata().unwrap().len();
    assert_eq!(message(&dir, read_while(&|| file().write_all_at(&[7], len - 8).unwrap())), expected);
    assert_eq!(message(&dir, read_while(&|| file().set_len(1 << 20).unwrap())), expected);
}

#[test]
fn progress_callback_stops_the_reader() {
    let dir = foreign();
    for threads in [1, 2] {
        let dump = Dump::open(dir.path(), &LoadOptions { threads, ..Default::default() }).unwrap();
        let stopped = dump.read(&mut |_, _| Err(Error::Cancelled));
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }
}

#[test]
fn progress_ends_at_the_bytes_of_the_requested_iterations() {
    // 3 ranks x 2 iterations x (4 x 8 bytes for layer 3, 4 x 4 bytes for layers 4 and 10).
    let dir = foreign();
    let options = LoadOptions { iter_start: Some(8), iter_stop: Some(10), ..Default::default() };
    let mut last = (0, 0);
    let dump = Dump::open(dir.path(), &options).unwrap();
    dump.read(&mut |done, total| {
        assert!(done > last.0 && done <= total);
        last = (done, total);
        Ok(())
    })
    .unwrap();
    assert_eq!(last, (384, 384));
}

#[test]
fn written_dump_is_read_back_and_by_the_safetensors_crate() {
    let dir = own_dump(|_| ());
    let stats = load(&dir).unwrap();
    let summary = stats.summary();
    assert_eq!(
        (summary.num_ranks, &summary.layers[..], summary.rows.to_string()),
        (2, &[1, 2][..], "5..7".into())
    );
    // Both ranks counted 0, 1, 2, ... in the order [iterations][layers][experts].
    assert_eq!(stats.layer_counts(2).unwrap(), [8, 10, 12, 14, 24, 26, 28, 30]);

    let bytes = fs::read(rank_path(&dir, 1)).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata: &HashMap<String, String> = header.metadata().as_ref().unwrap();
    let written_at = &metadata["written_at"];
    assert_eq!(written_at.len(), "2026-11-29T01:35:58Z".len());
    let entries = [
        ("rank", "1"),
        ("num_ranks", "2"),
        ("layers", "1,2"),
        ("iter_start", "5"),
        ("iter_stop", "7"),
        ("counts", "experts"),
        ("run_id", "run \"7\""),
        ("written_at", written_at),
    ];
    assert_eq!(*metadata, entries.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("6_2").unwrap();
    let counts: Vec<u8> = [12u64, 13, 14, 15].iter().flat_map(|count| count.to_le_bytes()).collect();
    assert_eq!((tensor.dtype(), tensor.shape(), tensor.data()), (Dtype::I64, &[4][..], &counts[..]));

    let mut meta: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("meta_info.json")).unwrap()).unwrap();
    let written_at = meta["eplb"].as_object_mut().unwrap().remove("written_at").unwrap();
    assert_eq!(written_at.as_str().unwrap().len(), "2026-11-29T01:35:58Z".len());
    assert_eq!(
        meta,
        serde_json::json!({
            "num_experts": 4, "num_experts_per_token": 2,
            "eplb": {"version": env!("CARGO_PKG_VERSION"), "num_ranks": 2, "iter_start": 5, "iter_stop": 7,
                     "layers": [1, 2], "counts": "experts"}
        })
    );
}

#[test]
fn reader_rejects_an_incomplete_dump() {
    let dir = own_dump(|_| ());
    fs::remove_file(rank_path(&dir, 1)).unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: 1 of 2 ranks have no file (rank 1); copy them here, or allow missing ranks"
    );

    // The meta file lists iterations and layers that the files lack.
    let dir = own_dump(|_| ());
    let meta = dir.path().join("meta_info.json");
    let edit =
        |was: &str, is: &str| fs::write(&meta, fs::read_to_string(&meta).unwrap().replace(was, is)).unwrap();
    edit("\"layers\":[1,2]", "\"layers\":[1,2,9]");
    assert_eq!(message(&dir, load(&dir)), "DIR: no rank has layer 9, which meta_info.json lists");
    edit("\"iter_stop\":7", "\"iter_stop\":8");
    assert_eq!(
        message(&dir, load(&dir)),
        "rank0.safetensors: it has counts of experts in iterations 5..7 on 2 ranks, meta_info.json lists experts in \
         iterations 5..8 on 2 ranks: the files are of different runs"
    );

    // The metadata lists a layer that the file lacks.
    let edit_rank = |dir: &TempDir, was: &[u8], is: &[u8]| {
        let mut bytes = fs::read(rank_path(dir, 1)).unwrap();
        let at = bytes.windows(was.len()).position(|window| window == was).unwrap();
        bytes[at..at + was.len()].copy_from_slice(is);
        fs::write(rank_path(dir, 1), bytes).unwrap();
    };
    let dir = own_dump(|_| ());
    edit_rank(&dir, b"\"layers\":\"1,2\"", b"\"layers\":\"1,3\"");
    assert_eq!(message(&dir, load(&dir)), "rank1.safetensors: layer 3 is missing");
    let dir = own_dump(|_| ());
    edit_rank(&dir, b"\"rank\":\"1\"", b"\"rank\":\"0\"");
    assert_eq!(message(&dir, load(&dir)), "rank1.safetensors: the rank in its __metadata__ is 0");
}

#[test]
fn reader_rejects_files_of_different_runs() {
    let mixed = |edit: fn(&mut RankDump)| {
        let dir = own_dump(|dump| {
            if dump.rank == 1 {
                edit(dump);
            }
        });
        message(&dir, load(&dir))
    };
    assert_eq!(
        mixed(|dump| dump.run_id = Some("8".into())),
        "rank1.safetensors: its run_id is \"8\", that of rank0.safetensors is \"run \"7\"\": the files are of different runs"
    );
    assert!(mixed(|dump| dump.run_id = None).contains("its run_id is none"));
    assert!(mixed(|dump| dump.num_ranks = 3).ends_with("the files are of different runs"));
    assert!(mixed(|dump| dump.iterations.stop = 8).ends_with("the files are of different runs"));
    assert!(mixed(|dump| dump.id_kind = IdKind::Slot).ends_with("the files are of different runs"));

    let dir = own_dump(|_| ());
    write_rank(&dir, 1, &[1, 2], 5..7);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank1.safetensors: not written by eplb and meta_info.json is: the files are of different runs"
    );
    let dir = own_dump(|_| ());
    write_meta(&dir);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank0.safetensors: written by eplb and meta_info.json is not: the files are of different runs"
    );
}

#[test]
fn reader_rejects_a_rank_beyond_num_ranks() {
    let dir = own_dump(|dump| dump.num_ranks = 1 + dump.rank as usize);
    let error = message(&dir, load(&dir));
    assert_eq!(error, "DIR: rank 1 has a file, but the run had 1 ranks");

    // A stray file name must not cost four billion steps, or that much memory.
    let dir = foreign();
    fs::copy(rank_path(&dir, 0), dir.path().join("rank4294967295.safetensors")).unwrap();
    let error =
        message(&dir, load_with(&dir, LoadOptions { allow_missing_ranks: true, ..Default::default() }));
    assert!(error.starts_with("DIR: 4294967292 of 4294967296 ranks have no file (rank 3, 4, 5"), "{error}");
}

#[test]
fn meta_file_stores_the_id_kind() {
    let dir = own_dump(|dump| dump.id_kind = IdKind::Slot);
    assert_eq!(MetaInfo::read(dir.path()).unwrap().unwrap().eplb.unwrap().id_kind, IdKind::Slot);
    assert_eq!(load(&dir).unwrap().summary().id_kind, Some(IdKind::Slot));
    // TensorRT-LLM's meta file does not say what was counted.
    assert_eq!(load(&foreign()).unwrap().summary().id_kind, None);
}

#[test]
fn writer_rejects_a_dump_that_the_reader_would_reject() {
    let dir = tempfile::tempdir().unwrap();
    let dump = RankDump {
        rank: 0,
        num_ranks: 1,
        file: None,
        rows: Rows::default(),
        num_experts: 2,
        experts_per_token: 1,
        id_kind: IdKind::Expert,
        iterations: IterationRange { start: 0, stop: 1 },
        held: IterationRange { start: 0, stop: 1 },
        layers: &[3],
        counts: Counts::U32(&[1, 2]),
        run_id: None,
    };
    let refused = |dump: RankDump| dump.write(dir.path()).unwrap_err().to_string();
    for (dump, message) in [
        (
            RankDump { counts: Counts::U32(&[1]), ..dump },
            "1 counts for iterations 0..1, 1 layers and 2 experts",
        ),
        (
            RankDump { counts: Counts::U64(&[1, 1 << 63]), ..dump },
            "count 9223372036854775808 does not fit int64",
        ),
        (RankDump { num_ranks: 0, ..dump }, "num_ranks is 0; at least 1 expected"),
        (RankDump { rank: 1, ..dump }, "rank is 1, num_ranks 1; 0 to 0 expected"),
        (RankDump { experts_per_token: 0, ..dump }, "experts_per_token is 0, num_experts 2; 1 to 2 expected"),
        (RankDump { experts_per_token: 3, ..dump }, "experts_per_token is 3, num_experts 2; 1 to 2 expected"),
        (RankDump { num_experts: 1 << 21, ..dump }, "num_experts is 2097152; 1 to 1048576 expected"),
        (RankDump { layers: &[3, 3], counts: Counts::U32(&[0; 4]), ..dump }, "layer 3 is listed twice"),
        (RankDump { layers: &[u32::MAX], ..dump }, "layer 4294967295 does not fit int32"),
        (
            RankDump { iterations: IterationRange { start: u64::MAX - 1, stop: u64::MAX }, ..dump },
            "iterations 18446744073709551614..18446744073709551615: at least one expected, and none above int64",
        ),
    ] {
        assert_eq!(refused(dump), message);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    dump.write(dir.path()).unwrap();
    assert!(load(&dir).is_ok());
}

#[test]
fn writer_reports_a_directory_that_cannot_be_created() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let iterations = IterationRange { start: 0, stop: 1 };
    let dump = RankDump {
        rank: 0,
        num_ranks: 1,
        file: None,
        rows: Rows::default(),
        num_experts: 2,
        experts_per_token: 1,
        id_kind: IdKind::Expert,
        iterations,
        held: iterations,
        layers: &[3],
        counts: Counts::U32(&[1, 2]),
        run_id: None,
    };
    let directory = file.join("dump");
    assert_eq!(
        dump.write(&directory).unwrap_err().to_string(),
        format!(
            "cannot write {}: the directory could not be created: Not a directory (os error 20); create it or choose \
             another",
            directory.display()
        )
    );
}

#[test]
fn reader_rejects_another_number_of_ranks_than_expected() {
    let expecting = |ranks| LoadOptions { expected_ranks: Some(ranks), ..Default::default() };
    let dir = foreign();
    assert!(load_with(&dir, expecting(3)).is_ok());
    assert_eq!(
        message(&dir, load_with(&dir, expecting(4))),
        "DIR: 1 of 4 ranks have no file (rank 3); copy them here, or allow missing ranks"
    );
    assert_eq!(
        message(&dir, load_with(&dir, expecting(2))),
        "DIR: rank 2 has a file, but the run had 2 ranks"
    );
    let dir = own_dump(|_| ());
    assert_eq!(
        message(&dir, load_with(&dir, expecting(4))),
        "DIR: 4 ranks expected, num_ranks in meta_info.json is 2"
    );
}

#[test]
fn reader_names_the_file_of_a_negative_count_with_any_number_of_threads() {
    // Rank 2's last count is negative. The other files may be read after it.
    let dir = foreign();
    let mut bytes = fs::read(rank_path(&dir, 2)).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let last = bytes.len() - 4;
    assert!(data < last);
    bytes[last..].copy_from_slice(&(-5i32).to_le_bytes());
    fs::write(rank_path(&dir, 2), bytes).unwrap();
    for threads in [1, 2, 3] {
        for _ in 0..50 {
            let error = message(&dir, load_with(&dir, LoadOptions { threads, ..Default::default() }));
            assert!(
                error.starts_with("rank2.safetensors: tensor ") && error.contains("has the count -5"),
                "{error}"
            );
        }
    }
}

#[test]
fn reader_rejects_a_pipe_in_place_of_a_file() {
    for name in ["rank1.safetensors", "meta_info.json"] {
        let dir = foreign();
        let path = dir.path().join(name);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert_eq!(message(&dir, load(&dir)), format!("{name}: it is not a regular file"));
    }
}

#[test]
fn samples_reject_counts_that_a_double_cannot_represent() {
    let dir = tempfile::tempdir().unwrap();
    write_meta(&dir);
    write_tensors(&rank_path(&dir, 0), &[("0_3".into(), Dtype::I64, vec![1 << 53, 0, 0, 0])]);
    assert_eq!(load(&dir).unwrap().samples(1).unwrap()[0], 9_007_199_254_740_992.0);
    write_tensors(&rank_path(&dir, 0), &[("0_3".into(), Dtype::I64, vec![0, (1 << 53) + 1, 0, 0])]);
    assert_eq!(
        load(&dir).unwrap().samples(1).unwrap_err().to_string(),
        "layer 3, expert 1: 9007199254740993 tokens are more than 2^53, so the load would be inexact; choose fewer iterations"
    );
}
