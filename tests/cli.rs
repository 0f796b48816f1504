//! The `eplb` command: output, messages, exit codes, and files that are never incomplete.
#![cfg(feature = "cli")]

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, sleep};
use std::time::Instant;

use eplb::placement::{Expected, Placement};
use tempfile::TempDir;

fn eplb(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.split_whitespace()).output().unwrap()
}

/// Runs a command that fails. Returns its one line of error without "error: ", and the exit code.
fn failure(args: &str) -> (String, i32) {
    let output = eplb(args);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let line = stderr.strip_prefix("error: ").and_then(|line| line.strip_suffix('\n')).unwrap();
    assert!(!line.contains('\n'), "{line}");
    (line.to_owned(), output.status.code().unwrap())
}

fn dump(name: &str) -> String {
    format!("data/dumps/{name}")
}

fn copy_dump(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dump(name))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

#[test]
fn generate_accepts_underscores_and_hyphens_and_writes_the_expected_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let expected = |name: &str| fs::read(Path::new("data/expected").join(name)).unwrap();
    for (from, to) in [("_", "_"), ("_", "-")] {
        let flags =
            "--expert_statistic_path FROM --output_path TO --ep_size 8 --num_slots 80 --iter_start 110 \
                     --iter_stop 120 --policy trtllm"
                .replace(from, to);
        let paths = |text: String| {
            text.replace("FROM", &dump("dsv2lite-translation")).replace("TO", out.to_str().unwrap())
        };
        let output = eplb(&paths(format!("generate {flags}")));
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(&out).unwrap() == expected("dsv2lite-translation.ep8.slots80.iters110-120.yaml"));
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn generate_has_the_defaults_of_the_reference_script_except_the_policy() {
    // 8 rank files, 64 experts, all iterations.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let from = dump("dsv2lite-translation");
    let output = eplb(&format!(
        "generate --policy trtllm --expert_statistic_path {from} --output_path {}",
        out.display()
    ));
    assert!(output.status.success(), "{output:?}");
    let expected = fs::read("data/expected/dsv2lite-translation.ep8.slots64.yaml").unwrap();
    assert!(fs::read(&out).unwrap() == expected);
}

#[test]
fn generate_prints_each_layer_and_the_average() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let args = format!(
        "generate --policy trtllm --expert_statistic_path {} --output_path {} --ep_size 8 --num_slots 72",
        dump("dsv2lite-translation"),
        out.display()
    );
    let text = String::from_utf8(eplb(&args).stdout).unwrap();
    // Layer 26 from the two load reports under data/expected: 0.72816 measured, 0.15894 projected.
    let row = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    assert_eq!(row("26 ").split_whitespace().collect::<Vec<_>>()[..3], ["26", "0.7282", "0.1589"]);
    assert_eq!(row("average").split_whitespace().count(), 4);
    assert!(text.contains("9 duplicates: slots that repeat an expert of their rank"), "{text}");
    assert_eq!(String::from_utf8(eplb(&format!("{args} --quiet")).stdout).unwrap(), "");
}

#[test]
fn generate_defaults_to_the_search_with_samples_and_no_duplicates() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let args = format!(
        "generate --expert_statistic_path {} --output_path {} --ep_size 8 --num_slots 72",
        dump("dsv2lite-translation"),
        out.display()
    );
    let after = |flags: &str| -> f64 {
        let text = String::from_utf8(eplb(&format!("{args} {flags}")).stdout).unwrap();
        let average = text.lines().find(|line| line.starts_with(" average")).unwrap();
        assert_eq!(text.contains("duplicates: "), flags.contains("trtllm"), "{text}");
        average.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    let (search, sum, greedy) = (after(""), after("--num_samples 1"), after("--policy trtllm"));
    assert!(search < 0.6 * greedy && sum < greedy, "{search} {sum} {greedy}");
    // The file does not depend on the number of threads.
    let first = fs::read(&out).unwrap();
    for threads in [1, 2, 8] {
        let output = eplb(&format!("{args} --policy trtllm --threads {threads}"));
        assert!(output.status.success());
        assert!(fs::read(&out).unwrap() == first);
    }
    let with = |threads: usize| {
        assert!(eplb(&format!("{args} --threads {threads}")).status.success());
        fs::read(&out).unwrap()
    };
    assert!(with(1) == with(8));
}

#[test]
fn generate_errors_name_the_cause_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let empty = tempfile::tempdir().unwrap();
    let cut = copy_dump("dsv2lite-law");
    let half = cut.path().join("rank3.safetensors");
    let len = fs::metadata(&half).unwrap().len() / 2;
    OpenOptions::new().write(true).open(&half).unwrap().set_len(len).unwrap();

    let generate = |from: &str, flags: &str| {
        failure(&format!("generate --expert_statistic_path {from} --output_path {} {flags}", out.display()))
    };
    let extreme = dump("dsr1-extreme");
    assert_eq!(
        generate(&extreme, "--ep_size 36 --num_slots 290"),
        (
            "290 slots cannot be split evenly over 36 ranks; for 256 experts the nearest valid numbers of slots are \
             288 and 324"
                .into(),
            2
        )
    );
    assert_eq!(
        generate(&extreme, "--ep_size 8 --num_slots 100"),
        ("100 slots cannot hold 256 experts; for 8 ranks the nearest valid number of slots is 256".into(), 2)
    );
    assert_eq!(generate(&extreme, "--ep_size 0"), ("0 ranks: there must be 1 to 1048576".into(), 2));
    assert_eq!(
        generate(empty.path().to_str().unwrap(), ""),
        (
            format!(
                "{}: no rank<R>.safetensors in this directory; give the directory to which EXPERT_STATISTIC_PATH was set",
                empty.path().display()
            ),
            3
        )
    );
    assert_eq!(
        generate(cut.path().to_str().unwrap(), ""),
        (
            format!(
                "{}: its tensors take 412672 bytes, but only {} follow the header: it is truncated, copy it again",
                half.display(),
                len - 8 - 54904
            ),
            3
        )
    );
    assert!(!out.exists());
}

#[test]
fn generate_deepseek_hierarchical_keeps_groups_on_one_node() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let args = format!(
        "generate --expert_statistic_path {} --output_path {} --ep_size 32 --num_slots 288 --num_groups 8",
        dump("dsr1-extreme"),
        out.display()
    );
    let (message, code) = failure(&format!("{args} --policy deepseek-hierarchical --num-nodes 3"));
    assert_eq!(
        (&message[..], code),
        (
            "8 groups cannot be split evenly over 3 nodes; policy deepseek-hierarchical needs an even split, deepseek-global \
             does not",
            2
        )
    );
    assert!(!out.exists());

    let mut groups_per_node = Vec::new();
    for policy in ["deepseek-hierarchical", "deepseek-global"] {
        let output = eplb(&format!("{args} --policy {policy} --num-nodes 4"));
        assert!(output.status.success(), "{output:?}");
        let expected = Expected { num_ranks: Some(32), ..Default::default() };
        let placement = Placement::load(&out, expected).unwrap();
        let groups =
            |experts: &[u32]| experts.iter().map(|expert| expert / 32).collect::<BTreeSet<_>>().len();
        // 288 slots on 4 nodes are 72 a node; 256 experts in 8 groups are 32 a group.
        let most = placement.iter().flat_map(|(_, experts)| experts.chunks_exact(72).map(groups)).max();
        groups_per_node.push(most.unwrap());
    }
    assert_eq!(groups_per_node, [2, 8]);
}

#[test]
fn generate_off_node_price_reduces_off_node_load() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let args = format!(
        "generate --expert_statistic_path {} --output_path {} --ep_size 8 --num_slots 72 --num_groups 8",
        dump("dsv2lite-translation"),
        out.display()
    );
    let (message, code) = failure(&format!("{args} --rank_to_node 3,3,1 --off_node_price 1"));
    assert_eq!((&message[..], code), ("rank_to_node has 3 values, there are 8 ranks", 2));
    assert!(!out.exists());

    // Ranks 0, 1, 6 and 7 are on node -3, the others on node 1; 64 experts in 8 groups are 8 a group.
    let whole_groups_and_share = |price: &str| {
        let output = eplb(&format!("{args} --rank_to_node -3,-3,1,1,1,1,-3,-3 --off-node-price {price}"));
        assert!(output.status.success(), "{output:?}");
        let expected = Expected { num_ranks: Some(8), ..Default::default() };
        let placement = Placement::load(&out, expected).unwrap();
        let whole_groups = placement.iter().map(|(_, experts)| {
            let nodes_of = |group: u32| {
                let slots = (0..72).filter(|&slot| experts[slot] / 8 == group);
                slots.map(|slot| (2..6).contains(&(slot / 9))).collect::<BTreeSet<_>>().len()
            };
            (0..8).filter(|&group| nodes_of(group) == 1).count()
        });
        let text = String::from_utf8(output.stdout).unwrap();
        let share = text.lines().find_map(|line| line.strip_prefix("off-node share: "));
        let share = share.map(|share| share[..6].parse::<f64>().unwrap());
        (whole_groups.sum::<usize>() / 26, share)
    };
    assert_eq!(whole_groups_and_share("inf"), (8, Some(0.0)));
    let (whole, share) = whole_groups_and_share("1");
    assert!(whole >= 6 && share.is_some_and(|share| share > 0.0 && share < 0.01), "{whole} {share:?}");
    let (whole, share) = whole_groups_and_share("0");
    assert!(whole <= 1 && share.is_none(), "{whole} {share:?}");
}

#[test]
fn generate_rejects_a_wrong_number_of_weights_before_it_reads_counts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    // A count of -1 at the end of a file: reading the counts fails.
    let bad = copy_dump("dsv2lite-translation");
    let file = bad.path().join("rank3.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let len = bytes.len();
    bytes[len - 8..].fill(0xff);
    fs::write(&file, bytes).unwrap();
    let error = |flags: &str| {
        failure(&format!(
            "generate --expert_statistic_path {} --output_path {} --ep_size 8 --num_slots 72 {flags}",
            bad.path().display(),
            out.display()
        ))
    };
    assert_eq!(error("--num_samples 3 --sample_weights 1,1,2").1, 3);
    for (flags, message) in [
        (
            "--sample_weights 1,1,2",
            "3 sample weights for 16 samples: num_samples is 16; pass as many weights, or set num_samples to 3",
        ),
        (
            "--num_samples 2 --sample_weights 1,1,2",
            "3 sample weights for 2 samples: num_samples is 2; pass as many weights, or set num_samples to 3",
        ),
        (
            "--iter_start 110 --iter_stop 114 --sample_weights 1,1,2",
            "3 sample weights for 4 samples: num_samples is 16, but the dump has only 4 iterations (110..114), each a \
             sample; pass 4 weights",
        ),
        (
            "--num_samples 3 --sample_weights 1,1,-2",
            "the weight of sample 2 is -2; it must be finite and not negative",
        ),
    ] {
        assert_eq!(error(flags), (message.into(), 2));
    }
    assert!(!out.exists());
    let accepted = eplb(&format!(
        "generate --expert_statistic_path {} --output_path {} --iter_start 110 --iter_stop 113 --sample_weights 1,1,2",
        dump("dsv2lite-translation"),
        out.display()
    ));
    assert!(accepted.status.success(), "{accepted:?}");
}

#[test]
fn generate_rejects_flags_that_the_policy_ignores() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    for (flag, value) in [
        ("sample_weights", "1"),
        ("quantile", "0.5"),
        ("objective", "best-split"),
        ("off_node_price", "1"),
        ("rank_to_node", "0,0,0,0,1,1,1,1"),
    ] {
        for policy in ["trtllm", "deepseek-global", "deepseek-hierarchical"] {
            let (message, code) = failure(&format!(
                "generate --expert_statistic_path {} --output_path {} --policy {policy} --{flag} {value}",
                dump("dsv2lite-translation"),
                out.display()
            ));
            let expected = format!(
                "--{flag} needs policy search, but the policy is {policy}; remove the flag or change the policy"
            );
            assert_eq!((message, code), (expected, 2));
        }
    }
    assert!(!out.exists());
}

#[test]
fn output_errors_exit_with_4_before_the_dump_is_read() {
    let from = dump("dsr1-extreme");
    let (message, code) =
        failure(&format!("generate --expert_statistic_path {from} --output_path /no/such/place/config.yaml"));
    assert_eq!(
        (&message[..], code),
        ("cannot write /no/such/place/config.yaml: there is no directory /no/such/place; create it first", 4)
    );
    let (message, code) = failure(&format!("generate --expert_statistic_path {from} --output_path data"));
    assert_eq!((&message[..], code), ("cannot write data: it is a directory; name a file in it", 4));
}

#[test]
fn usage_errors_exit_with_2() {
    for args in ["generate", "frobnicate", "generate --ep_size x", "generate --policy magic"] {
        assert_eq!(eplb(args).status.code(), Some(2), "{args}");
    }
}

#[test]
fn missing_ranks_are_an_error_or_if_allowed_a_warning() {
    let partial = copy_dump("dsv2lite-law");
    fs::remove_file(partial.path().join("rank5.safetensors")).unwrap();
    let out = partial.path().join("config.yaml");
    let args = format!(
        "generate --expert_statistic_path {} --output_path {}",
        partial.path().display(),
        out.display()
    );
    let (message, code) = failure(&args);
    assert!(message.contains("1 of 8 ranks have no file (rank 5)"), "{message}");
    assert_eq!(code, 3);

    let output = eplb(&format!("{args} --allow_missing_ranks"));
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.starts_with("warning: ") && warning.contains("1 of 8 ranks have no file"), "{warning}");
    // The EP size is that of the run, not the number of files found.
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("64 slots on 8 ranks"), "{text}");
}

#[test]
fn examples_of_the_help_succeed() {
    let help = |args: &str| String::from_utf8(eplb(&format!("{args} --help")).stdout).unwrap();
    let main = help("");
    let commands = main.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let commands = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let commands: Vec<&str> = commands.filter(|command| !["", "help"].contains(command)).collect();
    // An example may read the output of an earlier one in the same help.
    let run_examples = |command: &str| {
        let dir = tempfile::tempdir().unwrap();
        symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("data"), dir.path().join("data")).unwrap();
        let help = help(command).replace("\\\n", " ");
        let mut num_examples = 0;
        for example in help.lines().filter_map(|line| line.strip_prefix("  eplb ")) {
            let mut program = Command::new(env!("CARGO_BIN_EXE_eplb"));
            let output = program.current_dir(&dir).args(example.split_whitespace()).output().unwrap();
            assert!(output.status.success(), "{example}: {output:?}");
            assert!(output.stderr.is_empty(), "{example}: {output:?}");
            num_examples += 1;
        }
        assert!(num_examples > 0, "{command} has no example");
    };
    thread::scope(|scope| {
        commands.into_iter().chain([""]).for_each(|command| {
            scope.spawn(move || run_examples(command));
        });
    });
}

#[test]
fn readme_shows_the_cmake_lines_that_ci_builds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let shown = readme.split_once("```cmake\n").unwrap().1.split_once("```").unwrap().0;
    let tested = fs::read_to_string(root.join("examples/cmake_project/CMakeLists.txt")).unwrap();
    assert_eq!(shown.lines().count(), 5);
    assert!(tested.starts_with(shown), "scripts/check_install.sh builds {tested}");
}

#[test]
fn inspect_describes_dumps_and_configuration_files() {
    let inspect = |args: &str| {
        let output = eplb(&format!("inspect {args}"));
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let law = inspect("data/dumps/dsv2lite-law");
    assert_eq!(law[0], "data/dumps/dsv2lite-law: statistic dump");
    assert_eq!(
        law[1..],
        [
            "ranks 8",
            "experts 64, 6 a token",
            "layers 26 (1 to 26)",
            "iterations 31 (100..131)",
            // data/README.md: 8 ranks x 31 iterations x 32 tokens.
            "tokens a layer 7936",
        ]
    );
    assert!(inspect("data/dumps/dsr1-all-zero").contains(&"layers not counted 58".to_owned()));

    let config = inspect("data/expected/dsv2lite-translation.ep8.slots72.yaml --ep_size 8");
    for line in ["slots 72", "experts 64", "replicas 1 to 3 an expert", "ranks 8, 9 slots each"] {
        assert!(config.contains(&line.to_owned()), "{line}: {config:?}");
    }
    assert!(
        inspect("data/expected/dsv2lite-translation.ep8.slots72.yaml")[6]
            .starts_with("ranks not in the file")
    );

    let (message, code) = failure("inspect Cargo.toml");
    assert!(message.starts_with("Cargo.toml: "), "{message}");
    assert_eq!(code, 3);
    assert_eq!(failure("inspect no-such-file").1, 3);
}

#[test]
fn closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_eplb"))
        .args(["inspect", "data/dumps/dsv2lite-law"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn generate_killed_at_any_moment_leaves_the_old_or_the_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let out: PathBuf = dir.path().join("config.yaml");
    let from = dump("dsr1-extreme");
    let flags = |slots: u32| {
        let out = out.display();
        format!(
            "generate --quiet --expert_statistic_path {from} --output_path {out} --ep_size 8 --num_slots {slots}"
        )
    };
    let contents: Vec<Vec<u8>> = [264, 512]
        .map(|slots| {
            assert!(eplb(&flags(slots)).status.success());
            fs::read(&out).unwrap()
        })
        .into();
    // Half of the kills are at a random moment of a run, the others while the file is written.
    let start = Instant::now();
    assert!(eplb(&flags(512)).status.success());
    let duration = start.elapsed();
    let partial_files = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "partial"))
    };
    let half_written =
        || partial_files().any(|partial| fs::metadata(partial).is_ok_and(|partial| partial.len() > 0));
    let (mut killed, mut killed_writing, mut seen) = (0, 0, [0, 0]);
    let mut state = 1u64;
    for run in 0.. {
        if killed >= 100 && killed_writing >= 20 && seen.iter().all(|&times| times >= 10) {
            break;
        }
        assert!(run < 3000, "{killed} killed, {killed_writing} of them writing, {seen:?} seen");
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = duration.mul_f64((state >> 33) as f64 / (1u64 << 31) as f64 * 2.0);
        partial_files().for_each(|partial| fs::remove_file(partial).unwrap());
        let mut child = Command::new(env!("CARGO_BIN_EXE_eplb"))
            .args(flags([264, 512][run % 2]).split_whitespace())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .spawn()
            .unwrap();
        if run % 4 < 2 {
            sleep(delay);
        } else {
            while !half_written() && child.try_wait().unwrap().is_none() {}
        }
        child.kill().unwrap();
        let died = child.wait().unwrap().code().is_none();
        killed += i32::from(died);
        killed_writing += i32::from(died && half_written());
        let left = fs::read(&out).unwrap();
        let which = contents.iter().position(|content| *content == left);
        seen[which.expect("the file is neither the old nor the new one")] += 1;
    }

    // The partial file of a killed process does not stop the next one, which removes it.
    assert!(eplb(&flags(264)).status.success());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
