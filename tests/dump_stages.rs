//! Reads dumps of pipeline stages, of ranks without layers, and of several recorders. The tests write the files themselves.

use std::fs;

use eplb::generate::{GenerateConfig, generate};
use eplb::report::{LoadReport, Recording};
use eplb::solve::SolveConfig;
use eplb::stats::{Dump, LoadOptions, Stats};
use eplb::{Error, Result};
use tempfile::TempDir;
use written::{EXPERTS, WrittenDump, count, foreign};

mod written;

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

/// The number of ranks that `generate` places on by default, or its error.
fn default_ranks(dir: &TempDir, num_ranks: Option<usize>) -> std::result::Result<usize, String> {
    let out = dir.path().join("config.yaml");
    let config = GenerateConfig {
        paths: &[dir.path().to_owned()],
        path_weights: None,
        output_path: &out,
        options: LoadOptions::default(),
        num_ranks,
        reserve_slots: 0,
        pin_experts: &[],
        pin_homes: false,
        num_slots: None,
        layer_updates_per_iter: 0,
        solve_threads: 1,
        solve: SolveConfig::default(),
        num_samples: 2,
    };
    let result = generate(&config, &mut |_, _, _| Ok(()));
    let directory = dir.path().display().to_string();
    result
        .map(|generated| generated.placement.shape().num_ranks())
        .map_err(|e| e.to_string().replace(&directory, "DIR"))
}

/// Two stages of 2 EP ranks: files 0 and 1 with layers 1 and 2, files 2 and 3 with layers 3 and 4. Iterations 5 and 6.
fn two_stages() -> WrittenDump {
    let mut dump = WrittenDump::new(4, &[1, 2], &[5, 6], 5, 7).with("num_ranks", 2).with("num_files", 4);
    for file in &mut dump.files {
        file.set("ep_rank", &(file.file % 2).to_string());
        if file.file >= 2 {
            file.set_layers(&[3, 4]);
        }
    }
    dump
}

fn written(dump: &WrittenDump) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    dump.write(dir.path());
    dir
}

/// A dump of TensorRT-LLM: the files with their layers, in iterations 0 and 1.
fn trtllm(layers: &[&[u32]], meta: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("meta_info.json"), meta).unwrap();
    for (file, layers) in (0..).zip(layers) {
        foreign(file, layers, &[0, 1]).write(dir.path());
    }
    dir
}

const META: &str = r#"{"num_experts": 4, "num_experts_per_token": 2}"#;

#[test]
fn ep_size_is_the_declared_number_of_ranks() {
    let dir = written(&two_stages());
    let stats = load(&dir).unwrap();
    let summary = stats.summary();
    assert_eq!((summary.num_ranks, summary.num_files), (2, 4));
    assert_eq!((&summary.stage_ranks[..], &summary.layers[..]), (&[2, 2][..], &[1, 2, 3, 4][..]));
    assert_eq!(summary.ranks_text(), "2 pipeline stages of 2 ranks");
    // Layer 3 is the sum of files 2 and 3.
    assert_eq!(stats.layer_counts(3).unwrap()[0], count(2, 5, 3, 0) + count(3, 5, 3, 0));
    assert_eq!(default_ranks(&dir, None), Ok(2));
    let report = LoadReport::new(&Recording::new(&stats, None).unwrap(), None, 1).unwrap();
    assert_eq!(report.num_ranks, 2);
    // Rank 1 of the stage has experts 2 and 3.
    let tokens =
        |iteration| (2..4).map(|e| count(2, iteration, 3, e) + count(3, iteration, 3, e)).sum::<u64>();
    assert_eq!(
        report.layers[2].rank_tokens.measured.as_ref().unwrap()[1],
        (tokens(5) + tokens(6)) as f64 / 2.0
    );
}

#[test]
fn missing_files_are_found_by_the_number_of_files() {
    let dir = written(&two_stages());
    fs::remove_file(dir.path().join("rank3.safetensors")).unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: 1 of 4 ranks have no file (rank 3); copy them here, or allow missing ranks"
    );
    let stats = load_with(&dir, LoadOptions { allow_missing_ranks: true, ..Default::default() }).unwrap();
    assert_eq!((stats.summary().num_ranks, &stats.summary().missing_ranks[..]), (2, &[3][..]));
    let expecting = |ranks| LoadOptions { expected_ranks: Some(ranks), ..Default::default() };
    assert_eq!(
        message(&dir, load_with(&dir, expecting(2))),
        "DIR: 2 ranks expected, num_files in meta_info.json is 4"
    );
    assert!(message(&dir, load_with(&dir, expecting(4))).starts_with("DIR: 1 of 4 ranks have no file"));
}

#[test]
fn files_must_agree_on_the_number_of_files() {
    let mut dump = two_stages();
    dump.files[3].set("num_files", "8");
    let dir = written(&dump);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank3.safetensors: it has counts of experts in iterations 5..7 on 2 ranks in 8 files, meta_info.json lists experts in \
         iterations 5..7 on 2 ranks in 4 files: the files are of different runs"
    );
    let mut dump = two_stages();
    dump.files[3].set("ep_rank", "2");
    let dir = written(&dump);
    assert_eq!(
        message(&dir, load(&dir)),
        "rank3.safetensors: the ep_rank in its __metadata__ is 2, num_ranks 2"
    );
}

#[test]
fn unequal_stages_need_the_ep_size() {
    // 1 rank for layers 1 and 2, and 3 ranks for layers 3 and 4.
    let mut dump = two_stages();
    for file in &mut dump.files {
        let (layers, ranks, ep_rank) =
            if file.file == 0 { ([1, 2], 1, 0) } else { ([3, 4], 3, file.file - 1) };
        file.set_layers(&layers);
        file.set("num_ranks", &ranks.to_string());
        file.set("ep_rank", &ep_rank.to_string());
    }
    dump.info.insert("num_ranks".into(), 1.into());
    let unequal = "DIR: the dump's pipeline stages have 1, 3 ranks, so the EP size is unknown: give it (--ep_size, num_ranks)";
    let foreign = trtllm(&[&[1, 2], &[3, 4], &[3, 4], &[3, 4]], META);
    for dir in [written(&dump), foreign] {
        let stats = load(&dir).unwrap();
        assert_eq!((stats.summary().num_ranks, &stats.summary().stage_ranks[..]), (0, &[1, 3][..]));
        assert_eq!(default_ranks(&dir, None), Err(unequal.to_owned()));
        assert_eq!(default_ranks(&dir, Some(2)), Ok(2));
        let recording = Recording::new(&stats, None).unwrap();
        assert!(matches!(LoadReport::new(&recording, None, 1), Err(Error::InvalidArgument(_))));
        assert_eq!(LoadReport::new(&recording, Some(2), 1).unwrap().num_ranks, 2);
    }
}

#[test]
fn ep_size_of_a_foreign_dump_is_the_ranks_of_a_layer() {
    let dir = trtllm(&[&[1, 2], &[1, 2], &[3], &[3]], META);
    let stats = load(&dir).unwrap();
    assert_eq!((stats.summary().num_ranks, stats.summary().num_files), (2, 4));
    assert_eq!(default_ranks(&dir, None), Ok(2));

    // A missing file may be of any stage: 3 files of 4 in 2 stages are 2 each.
    fs::remove_file(dir.path().join("rank1.safetensors")).unwrap();
    assert!(message(&dir, load(&dir)).starts_with("DIR: 1 of 4 ranks have no file (rank 1)"));
    let allowed = LoadOptions { allow_missing_ranks: true, ..Default::default() };
    assert_eq!(load_with(&dir, allowed).unwrap().summary().num_ranks, 2);

    // One stage, as before: all files.
    let dir = trtllm(&[&[1], &[1], &[1]], META);
    assert_eq!(load(&dir).unwrap().summary().num_ranks, 3);
}

#[test]
fn ranks_without_layers_are_valid() {
    let mut dump = WrittenDump::new(4, &[1, 2], &[5, 6], 5, 7).with("num_ranks", 2).with("num_files", 4);
    for file in &mut dump.files {
        file.set("ep_rank", &(file.file % 2).to_string());
        // The first stage has only dense layers.
        if file.file < 2 {
            file.set_layers(&[]);
            file.keys.clear();
        }
    }
    dump.info.insert("layers".into(), Vec::<u32>::new().into());
    let dir = written(&dump);
    let stats = load(&dir).unwrap();
    assert_eq!((&stats.summary().layers[..], stats.summary().num_ranks), (&[1, 2][..], 2));
    assert_eq!(stats.layer_counts(1).unwrap()[1], count(2, 5, 1, 1) + count(3, 5, 1, 1));
    assert_eq!(default_ranks(&dir, None), Ok(2));

    // A rank that lists layers must have them.
    dump.files[0].set("layers", "1,2");
    let dir = written(&dump);
    assert_eq!(message(&dir, load(&dir)), "rank0.safetensors: layer 1 is missing");
}

#[test]
fn rank_zero_without_layers_leaves_a_null_meta_file() {
    let dir = trtllm(&[&[], &[], &[7], &[7]], "null\n");
    let stats = load(&dir).unwrap();
    let summary = stats.summary();
    assert_eq!((summary.num_experts, summary.experts_per_token), (EXPERTS, 0));
    assert_eq!((summary.num_ranks, summary.num_files, &summary.layers[..]), (2, 4, &[7][..]));
    assert_eq!(stats.layer_counts(7).unwrap()[3], count(2, 0, 7, 3) + count(3, 0, 7, 3));

    // Without the meta file, the tensors must agree among themselves.
    let path = dir.path().join("rank3.safetensors");
    let header = r#"{"0_7":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"1_7":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat())
        .unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR: the tensors of rank3.safetensors have 1 values, those of rank2.safetensors 4: the files are of different runs"
    );
}

#[test]
fn a_dump_without_any_layer_is_refused() {
    let none = "DIR: no rank has a layer with experts, so there are no counts; dump the ranks that have some";
    for meta in ["null", META] {
        let dir = trtllm(&[&[], &[]], meta);
        assert_eq!(message(&dir, load(&dir)), none);
    }
    let mut dump = WrittenDump::new(2, &[], &[], 5, 7);
    dump.files.iter_mut().for_each(|file| file.set_layers(&[]));
    let dir = written(&dump);
    assert_eq!(message(&dir, load(&dir)), none);
}

#[test]
fn a_directory_of_dumps_lists_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["draft", "draft/300-400", "100-200", "logs"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
        if name != "logs" {
            two_stages().write(&dir.path().join(name));
        }
    }
    assert_eq!(
        message(&dir, load(&dir)),
        "DIR has no meta_info.json; dumps are in 100-200, draft, draft/300-400: pass one of them"
    );
    // Its own rank files, without the meta file.
    two_stages().write(dir.path());
    assert_eq!(load(&dir).unwrap().summary().num_files, 4);
    fs::remove_file(dir.path().join("meta_info.json")).unwrap();
    assert_eq!(
        message(&dir, load(&dir)),
        "meta_info.json: missing beside the rank files; rank 0 writes it, copy it here; other dumps are in 100-200, draft, \
         draft/300-400"
    );
    // A symbolic link to the parent does not loop, and many dumps are not all listed.
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    for i in 0..10 {
        two_stages().write(&dir.path().join(format!("more{i}")));
    }
    assert!(message(&dir, load(&dir)).ends_with(" more"));
}
