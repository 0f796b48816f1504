//! The `eplb` command on dumps in rows, of pipeline stages, and in subfolders.
#![cfg(feature = "cli")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use eplb::stats::{Counts, IdKind, IterationRange, RankDump, Rows};
use tempfile::TempDir;
use written::{WrittenDump, foreign};

mod written;

fn eplb(dir: &TempDir, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(dir.path()).args(args.split_whitespace()).output().unwrap()
}

fn success(dir: &TempDir, args: &str) -> String {
    let output = eplb(dir, args);
    assert!(output.status.success(), "{args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn warnings(dir: &TempDir, args: &str) -> String {
    let output = eplb(dir, args);
    assert!(output.status.success(), "{args}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn failure(dir: &TempDir, args: &str) -> (String, i32) {
    let output = eplb(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    (stderr.lines().last().unwrap_or_default().to_owned(), output.status.code().unwrap())
}

#[test]
fn a_process_with_few_descriptors_reads_many_files() {
    let dir = tempfile::tempdir().unwrap();
    WrittenDump::new(40, &[3, 4], &[100, 101, 102], 100, 103).write(&dir.path().join("dump"));
    let run = |limit: &str, output: &str| {
        let generate =
            "generate --expert_statistic_path dump --ep_size 2 --num_slots 6 --threads 2 --output_path";
        let shell = format!("ulimit -n {limit} && exec {} {generate} {output}", env!("CARGO_BIN_EXE_eplb"));
        let output = Command::new("sh").current_dir(dir.path()).args(["-c", &shell]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    // The three standard streams, the locked output, and room for the files of two threads.
    run("10", "few.yaml");
    run("1024", "many.yaml");
    let read = |name| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("few.yaml"), read("many.yaml"));
}

/// 2 ranks, layers 3 and 4, iterations 100 to 449 in rows of 100.
fn in_rows(path: &Path) {
    WrittenDump::new(2, &[3, 4], &[100, 200, 300, 400], 100, 450).with("iter_bucket", 100).write(path);
}

#[test]
fn commands_read_rows_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    in_rows(&dir.path().join("dump"));
    let inspected = success(&dir, "inspect dump");
    assert!(inspected.contains("  iterations         350 (100..450)\n"), "{inspected}");
    assert!(inspected.contains("  rows               4 rows of 100 iterations\n"), "{inspected}");
    assert!(success(&dir, "inspect dump/rank1.safetensors").contains("4 rows of 100 iterations"));

    let note = "It has 4 rows of 100 iterations; figures of single iterations are those of single rows\n";
    let head = "dump: 4 experts, 2 layers, iterations 100..450 in rows of 100";
    for command in ["report", "compare --ep_size 2 --num_slots 6 trtllm", "sweep"] {
        let text = success(&dir, &format!("{command} --expert_statistic_path dump"));
        assert!(text.starts_with(head) && text.contains(note), "{command}: {text}");
    }
    let generated = success(
        &dir,
        "generate --expert_statistic_path dump --num_slots 6 --output_path out.yaml --iter_start 200",
    );
    assert!(
        generated.starts_with("dump: 4 experts, 2 layers, iterations 200..450 in rows of 100, 2 ranks\n")
    );
    assert!(generated.contains("It has 3 rows of 100 iterations"), "{generated}");
    assert!(dir.path().join("out.yaml").exists());
    let report: serde_json::Value =
        serde_json::from_str(&success(&dir, "report --json --expert_statistic_path dump")).unwrap();
    assert_eq!(report["dump"]["iter_bucket"], 100);
    assert_eq!(report["dump"]["iter_stride"], 1);
    assert_eq!(report["iterations"].as_array().unwrap().len(), 4);
    assert_eq!(report["iterations"][3]["iteration"], 400);

    assert_eq!(
        failure(&dir, "report --expert_statistic_path dump --iter_start 150"),
        (
            "error: dump: iter_start 150 is within a row, the dump has 100..450 in rows of 100; the nearest rows begin at \
             100 and 200"
                .to_owned(),
            2
        )
    );
    let converted = success(&dir, "convert dump counts.npy --to npy");
    assert!(
        converted.starts_with("dump (dump): 4 rows of 100 iterations of layers 2 (3 to 4)"),
        "{converted}"
    );
    success(&dir, "convert dump other --to dump");
    assert!(success(&dir, "inspect other").contains("4 rows of 100 iterations"));
    // A page of the report opens without the dump, and has its rows.
    success(&dir, "report --expert_statistic_path dump --html page.html");
    assert!(fs::read_to_string(dir.path().join("page.html")).unwrap().contains("\"iter_bucket\":100"));
}

#[test]
fn commands_ask_for_the_ep_size_of_unequal_stages() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("dump")).unwrap();
    fs::write(dir.path().join("dump/meta_info.json"), "null").unwrap();
    for (file, layers) in [(0, &[][..]), (1, &[3]), (2, &[4]), (3, &[4])] {
        foreign(file, layers, &[0, 1]).write(&dir.path().join("dump"));
    }
    let unknown = "the dump's pipeline stages have 1, 2 ranks, so the EP size is unknown: give it (--ep_size, num_ranks)";
    for command in ["report", "compare --num_slots 6 trtllm", "sweep", "generate --output_path out.yaml"] {
        let (error, code) = failure(&dir, &format!("{command} --expert_statistic_path dump"));
        assert!(error.ends_with(unknown) && code == 2, "{command}: {error}");
        success(&dir, &format!("{command} --expert_statistic_path dump --ep_size 2"));
    }
    let inspected = success(&dir, "inspect dump");
    for line in [
        "  ranks              pipeline stages of 1, 2 ranks\n",
        "  rank files         4\n",
        "  experts            4, unknown number a token\n",
    ] {
        assert!(inspected.contains(line), "{inspected}");
    }
    assert!(success(&dir, "inspect dump/rank0.safetensors").contains("none: the rank has no experts"));
}

#[test]
fn commands_list_the_dumps_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    in_rows(&dir.path().join("run/draft"));
    in_rows(&dir.path().join("run/500-600"));
    let list = (
        "error: run has no meta_info.json; dumps are in run/500-600, run/draft: pass one of them".to_owned(),
        3,
    );
    for command in [
        "report --expert_statistic_path run",
        "compare --expert_statistic_path run trtllm",
        "sweep --expert_statistic_path run",
        "generate --expert_statistic_path run --output_path out.yaml",
        "convert run counts.npy --to npy",
        "inspect run",
    ] {
        assert_eq!(failure(&dir, command), list, "{command}");
    }
    success(&dir, "generate --expert_statistic_path run/draft --output_path out.yaml --ep_size 2");
    // A directory that is a dump itself.
    in_rows(&dir.path().join("run"));
    let inspected = success(&dir, "inspect run");
    assert!(inspected.contains("  other dumps        run/500-600, run/draft\n"), "{inspected}");
    success(&dir, "report --expert_statistic_path run");
}

#[test]
fn several_dumps_are_named_with_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let cell = |name: &str, keys: &[u64], start| {
        WrittenDump::new(2, &[3, 4], keys, start, start + keys.len() as u64).write(&dir.path().join(name));
    };
    cell("a", &[5, 6], 5);
    cell("b", &[100, 101, 102], 100);
    let both = "--expert_statistic_path a --expert_statistic_path b";
    let head = "a and b: 4 experts, 2 layers, iterations 5..7 and 100..103";
    for command in ["report", "compare in-order trtllm", "sweep --num_slots 4,6"] {
        let text = success(&dir, &format!("{command} {both}"));
        assert!(text.starts_with(head), "{command}: {text}");
    }
    let generated = success(&dir, &format!("generate {both} --dump-weights 1,2.5 --output_path out.yaml"));
    let head = "a (weight 1) and b (weight 2.5): 4 experts, 2 layers, iterations 5..7 and 100..103, 2 ranks\nsearch:";
    assert!(generated.starts_with(head), "{generated}");
    let report: serde_json::Value =
        serde_json::from_str(&success(&dir, &format!("report --json {both} --dump_weights 2,1"))).unwrap();
    let iterations = report["iterations"].as_array().unwrap();
    let numbers: Vec<u64> = iterations.iter().map(|i| i["iteration"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [5, 6, 100, 101, 102]);
    assert_eq!(report["dump"]["path"], "a (weight 2) and b (weight 1)");
    let starts: Vec<_> =
        report["dump"]["dumps"].as_array().unwrap().iter().map(|dump| &dump["iter_start"]).collect();
    assert_eq!((&report["dump"]["iter_start"], starts), (&5.into(), vec![&5.into(), &100.into()]));

    let (message, code) = failure(&dir, &format!("sweep {both} --dump_weights 1"));
    assert_eq!((message.as_str(), code), ("error: 1 dump weights for 2 dumps; one for each expected", 2));
    let generate =
        format!("generate {both} --dump_weights 1,2 --sample_weights 1,1,1,1,1 --output_path no.yaml");
    assert!(
        failure(&dir, &generate).0.contains("sample_weights and the weights of dumps exclude each other")
    );
    let weights = format!("generate {both} --sample_weights 1,1 --output_path no.yaml");
    assert!(failure(&dir, &weights).0.contains("2 sample weights for 5 samples of 2 dumps"));
    assert!(!dir.path().join("no.yaml").exists());
}

#[test]
fn what_a_foreign_dump_counts_can_be_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("meta_info.json"), r#"{"num_experts": 4, "num_experts_per_token": 2}"#)
        .unwrap();
    (0..2).for_each(|rank| foreign(rank, &[3], &[0, 1]).write(dir.path()));
    let generate = "generate --expert_statistic_path . --output_path out.yaml";
    let note = "It does not say whether it counts experts or slots; experts are assumed.";
    assert!(success(&dir, generate).contains(note));
    assert!(!success(&dir, &format!("{generate} --counts experts")).contains(note));
    let (message, code) = failure(&dir, &format!("{generate} --counts slots"));
    assert!(
        message.starts_with("error: .: it counts slots, not experts, and a placement needs the load"),
        "{message}"
    );
    assert_eq!(code, 3);
    // A dump of eplb says it.
    let own = tempfile::tempdir().unwrap();
    in_rows(&own.path().join("dump"));
    let generate = "generate --expert_statistic_path dump --output_path out.yaml";
    assert!(!success(&own, generate).contains(note));
    let (message, code) = failure(&own, &format!("{generate} --counts slots"));
    assert!(message.contains("dump: it counts experts, as its meta_info.json says, not slots"), "{message}");
    assert_eq!(code, 2);
}

#[test]
fn generate_warns_of_a_placement_on_one_rank() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("meta_info.json"), r#"{"num_experts": 4, "num_experts_per_token": 2}"#)
        .unwrap();
    foreign(0, &[3], &[0, 1]).write(dir.path());
    let generate = "generate --expert_statistic_path . --counts experts --output_path out.yaml";
    let warning = "warning: .: it has the counts of one rank, so the placement is for one";
    assert!(warnings(&dir, generate).starts_with(warning));
    for num_ranks in [1, 2] {
        assert_eq!(warnings(&dir, &format!("{generate} --ep_size {num_ranks}")), "");
    }
}

#[test]
fn generate_warns_of_layers_without_load() {
    let dir = tempfile::tempdir().unwrap();
    let generate = |layers: &[u32], counts: &[u64]| {
        let iterations = IterationRange { start: 0, stop: 1 };
        let dump = RankDump {
            rank: 0,
            num_ranks: 1,
            file: None,
            num_experts: 2,
            experts_per_token: 1,
            id_kind: IdKind::Expert,
            iterations,
            held: iterations,
            rows: Rows::default(),
            layers,
            counts: Counts::U64(counts),
            run_id: None,
        };
        dump.write(&dir.path().join("dump")).unwrap();
        let output =
            eplb(&dir, "generate --quiet --expert_statistic_path dump --output_path out.yaml --ep_size 2");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let way_out = "any placement is as good there. If these layers did run, record again\n";
    assert_eq!(
        generate(&[3, 4, 5], &[0, 0, 1, 0, 0, 0]),
        format!("warning: dump: no load in 2 of 3 layers, 3, 5; {way_out}")
    );
    assert_eq!(generate(&[3], &[0, 0]), format!("warning: dump: no layer has any load; {way_out}"));
    assert_eq!(generate(&[3], &[0, 1]), "");
}

#[test]
fn merge_writes_a_dump_that_the_other_commands_read() {
    let dir = tempfile::tempdir().unwrap();
    let part = |name: &str, keys: &[u64]| {
        WrittenDump::new(2, &[3, 4], keys, keys[0], keys[0] + keys.len() as u64)
            .write(&dir.path().join(name));
    };
    part("a", &[5, 6]);
    part("b", &[6, 7, 8]);
    let (message, code) = failure(&dir, "merge a b --output_path whole");
    assert!(
        message.starts_with("error: a and b both have iterations 6..7 in rank0.safetensors: say which"),
        "{message}"
    );
    assert_eq!(code, 3);
    assert_eq!(
        success(&dir, "merge a b --output-path whole --overlap last"),
        "a and b: 4 experts, layers 2 (3 to 4), iterations 5..9\nwrote whole (2 rank files)\n"
    );
    let text = success(&dir, "report --expert_statistic_path whole");
    assert!(text.starts_with("whole: 4 experts, 2 layers, iterations 5..9, 2 ranks\n"), "{text}");
    let (message, code) = failure(&dir, "merge a b --output_path whole --overlap last");
    assert!(message.contains("it already has a dump"), "{message}");
    assert_eq!(code, 4);
}

#[test]
fn inspect_describes_an_incomplete_dump() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump");
    let mut dump = WrittenDump::new(3, &[3, 4], &[5, 6], 5, 7);
    dump.files[1].keys = vec![5];
    dump.write(&path);
    fs::remove_file(path.join("rank2.safetensors")).unwrap();
    let output = eplb(&dir, "inspect dump");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "dump: statistic dump, incomplete\n\
         \x20 meta_info.json         4 experts, 2 a token, iterations 5..7, 3 rank files\n\
         \x20 rank0.safetensors      layers 2 (3 to 4), iterations 5..7\n\
         \x20 rank1.safetensors      layers 2 (3 to 4), iterations 5..6\n\
         \x20 missing                1 of 3 rank files: rank 2\n"
    );
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stderr).unwrap().contains("rank1.safetensors: iteration 6 is missing"));
    // Only a file is missing: the others are described as a dump.
    WrittenDump::new(3, &[3, 4], &[5, 6], 5, 7).write(&path);
    fs::remove_file(path.join("rank2.safetensors")).unwrap();
    let inspected = success(&dir, "inspect dump");
    assert!(inspected.contains("  complete           no, 1 of 3 rank files are missing\n"), "{inspected}");
    // Without the meta file.
    fs::remove_file(path.join("meta_info.json")).unwrap();
    let output = String::from_utf8(eplb(&dir, "inspect dump").stdout).unwrap();
    assert!(output.contains("  meta_info.json         cannot read dump/meta_info.json"), "{output}");
}

#[test]
fn inspect_describes_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump");
    let mut dump = WrittenDump::new(3, &[3], &[5], 5, 6);
    let lines = |text: &str| -> Vec<String> {
        let all = text.lines().filter(|line| line.starts_with("  written at ") || line.starts_with("  run "));
        all.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    // A file of an earlier version has neither.
    dump.write(&path);
    assert!(lines(&success(&dir, "inspect dump")).is_empty());
    assert_eq!(lines(&success(&dir, "inspect dump/rank1.safetensors")), ["run -"]);

    for (file, second) in [(0, 58), (1, 59), (2, 58)] {
        dump.files[file].set("written_at", &format!("2026-11-29T01:35:{second}Z"));
        dump.files[file].set("run_id", "7.0");
        dump.files[file].set("run_id_source", "slurm");
    }
    dump.write(&path);
    let times = "written at 2026-11-29T01:35:58Z to 2026-11-29T01:35:59Z";
    assert_eq!(lines(&success(&dir, "inspect dump")), [times, "run 7.0 (from slurm)"]);
    let one = ["written at 2026-11-29T01:35:59Z", "run 7.0 (from slurm)"];
    assert_eq!(lines(&success(&dir, "inspect dump/rank1.safetensors")), one);

    // The launcher's numbers differ: a warning.
    dump.files[2].set("run_id", "7.1");
    dump.write(&path);
    let output = eplb(&dir, "inspect dump");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("dump: the run_id of rank2.safetensors is \"7.1\" (from slurm), that of"),
        "{told}"
    );
    let both = [times, "run 7.0 (from slurm), 7.1 (from slurm)"];
    assert_eq!(lines(&String::from_utf8(output.stdout).unwrap()), both);

    // The file of the run before, of a rank that did not finish.
    fs::rename(path.join("rank2.safetensors"), path.join("rank2.safetensors.previous")).unwrap();
    let output = eplb(&dir, "inspect dump");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("[2]; rank 2 has begun to count and has not dumped, rank2.safetensors.previous is of"),
        "{told}"
    );
    assert!(output.status.success());
    let previous = success(&dir, "inspect dump/rank2.safetensors.previous");
    assert_eq!(lines(&previous), ["written at 2026-11-29T01:35:58Z", "run 7.1 (from slurm)"]);
    let (refused, _) = failure(&dir, "report --expert_statistic_path dump");
    assert!(refused.contains("rank2.safetensors.previous is of the run before"), "{refused}");
}
