//! The files of `eplb generate`, also with reserved, uneven and pinned slots, and what the other commands make of them.
#![cfg(feature = "cli")]

use std::path::Path;
use std::process::{Command, Output};

use eplb::placement::{Expected, NO_EXPERT, Placement};

const DUMP: &str = "data/dumps/dsv2lite-translation";

fn eplb(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.split_whitespace()).output().unwrap()
}

fn succeeds(args: &str) -> String {
    let output = eplb(args);
    assert!(output.status.success(), "{args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(args: &str) -> String {
    let output = eplb(args);
    assert!(!output.status.success(), "{args}");
    String::from_utf8(output.stderr).unwrap()
}

fn generate(out: &Path, flags: &str) -> String {
    format!(
        "generate --expert_statistic_path {DUMP} --output_path {} --ep_size 8 --effort 5 {flags}",
        out.display()
    )
}

#[test]
fn reserved_and_pinned_slots_reach_the_file_and_other_commands_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("placement.eplb.yaml");
    let text = succeeds(&generate(&out, "--num_slots 88 --reserve_slots 1 --pin_experts 5,0"));
    assert!(text.contains("88 slots on 8 ranks, 11 each, the last 1 empty\n"), "{text}");
    let placement = Placement::load(&out, Expected::default()).unwrap();
    assert_eq!(placement.rank_num_slots(), [10; 8]);
    for (layer, experts) in placement.iter() {
        for (rank, held) in experts.chunks_exact(11).enumerate() {
            assert_eq!((held[0], held[1], held[10]), (5, 0, NO_EXPERT), "layer {layer}, rank {rank}");
        }
    }
    let inspected = succeeds(&format!("inspect {}", out.display()));
    for line in ["8, 10 slots each", "208 over all layers", &format!("{:016x}", placement.hash())] {
        assert!(inspected.contains(line), "{line}: {inspected}");
    }
    succeeds(&format!("report --expert_statistic_path {DUMP} --config {}", out.display()));
    succeeds(&format!("compare --expert_statistic_path {DUMP} in-order {}", out.display()));
    let numpy = dir.path().join("phy2log.npy");
    let text = succeeds(&format!("convert {} {} --to phy2log-npy", out.display(), numpy.display()));
    assert!(text.contains("empty slots: 208 over all layers, -1 in the file\n"), "{text}");
    let message =
        fails(&format!("convert {} {}/map.json --to sglang-map", out.display(), dir.path().display()));
    assert!(message.contains("slot 10 is empty: sglang-map cannot hold empty slots; save the placement as"));
    // An edit is noticed by every command.
    let edited = std::fs::read_to_string(&out).unwrap().replacen("[5, 0, ", "[0, 5, ", 1);
    std::fs::write(&out, edited).unwrap();
    let message = fails(&format!("inspect {}", out.display()));
    assert!(message.contains("the file was edited or truncated"), "{message}");
}

#[test]
fn ranks_may_differ_and_homes_may_stay() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("placement.eplb.yaml");
    let text = succeeds(&generate(&out, "--rank_num_slots 11,11,10,10,10,10,10,9 --pin_homes"));
    assert!(text.contains("88 slots on 8 ranks, 9 to 11 each\n"), "{text}");
    let placement = Placement::load(&out, Expected::default()).unwrap();
    assert_eq!(placement.rank_num_slots(), [11, 11, 10, 10, 10, 10, 10, 9]);
    for (_, experts) in placement.iter() {
        for (rank, held) in experts.chunks_exact(11).enumerate() {
            let homes: Vec<u32> = (0..8).map(|i| rank as u32 * 8 + i).collect();
            assert_eq!(held[..8], homes);
        }
    }
}

#[test]
fn refusals_name_the_flag_or_the_rank_and_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (out, own) = (dir.path().join("config.yaml"), dir.path().join("config.eplb.yaml"));
    for (out, flags, expected) in [
        (&out, "--num_slots 72 --reserve_slots 1", "cannot hold empty slots; name the output *.eplb.yaml"),
        (&out, "--rank_num_slots 9,9,9,9,9,9,9,8", "rank 7 has fewer slots than are numbered"),
        (&own, "--rank_num_slots 9,9", "rank_num_slots has 2 values, there are 8 ranks"),
        (&own, "--num_slots 72 --reserve_slots 9", "reserve_slots is 9, but each rank has only 9 slots"),
        (
            &own,
            "--num_slots 72 --reserve_slots 2",
            "the ranks have 56 slots together, too few for 64 experts",
        ),
        (&own, "--num_slots 72 --reserve_slots 1 --rank_num_slots 9,9,9,9,9,9,9,9", "exclude each other"),
        (&own, "--num_slots 72 --pin_experts 64", "pinned expert 64 does not exist; experts are 0 to 63"),
        (&own, "--num_slots 72 --pin_experts 3,4 --pin_homes", "rank 1 has 9 slots and 10 pinned experts"),
        (&own, "--num_slots 72 --pin_experts 3,4", "leaves 56 of 72 slots free, too few for the 62 experts"),
        (&own, "--num_slots 72 --policy trtllm --pin_homes", "--pin_homes needs policy search"),
        (&own, "--num_slots 72 --policy trtllm --pin_experts 3", "--pin_experts needs policy search"),
        (
            &own,
            "--policy trtllm --rank_num_slots 9,9,9,9,9,9,9,8",
            "unequal rank_num_slots need policy search",
        ),
    ] {
        let message = fails(&generate(out, flags));
        assert!(message.contains(expected), "{flags}: {message}");
        assert!(!out.exists(), "{flags}");
    }
}

#[test]
fn planned_files_say_for_how_many_ranks_and_other_commands_check_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let path = out.display();
    succeeds(&generate(&out, "--policy trtllm"));
    assert!(!std::fs::read_to_string(&out).unwrap().contains('#'));
    for policy in ["search", "deepseek-global"] {
        succeeds(&generate(&out, &format!("--policy {policy}")));
        let text = std::fs::read_to_string(&out).unwrap();
        let hash = Placement::load(&out, Expected::default()).unwrap().hash();
        assert_eq!(text.lines().last().unwrap(), format!("# eplb: ep_size 8, hash {hash:016x}"));
    }
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(succeeds(&format!("inspect {path}")).contains("8, 8 slots each"));
    for command in [
        format!("inspect {path}"),
        format!("report --expert_statistic_path {DUMP} --config {path}"),
        format!("compare --expert_statistic_path {DUMP} {path}"),
        format!("convert {path} {path}.npy --to phy2log-npy"),
    ] {
        let message = fails(&format!("{command} --ep_size 4"));
        let expected = "the file was planned for 8 ranks, 4 ranks expected, which it does not balance; generate it for 4 \
                        ranks, or remove its line \"# eplb: ep_size 8, hash ";
        assert!(message.contains(expected) && message.contains("config.yaml"), "{command}: {message}");
    }
    // An edited file is a warning.
    let (start, row) = text.split_once("  1: [").unwrap();
    let (first, rest) = row.split_once(", ").unwrap();
    let (second, rest) = rest.split_once(", ").unwrap();
    std::fs::write(&out, format!("{start}  1: [{second}, {first}, {rest}")).unwrap();
    let warned = String::from_utf8(eplb(&format!("inspect {path}")).stderr).unwrap();
    assert!(warned.contains("config.yaml: its last line is \"# eplb: ep_size 8, hash "), "{warned}");
    std::fs::write(&out, &text).unwrap();
    assert_eq!(String::from_utf8(eplb(&format!("inspect {path}")).stderr).unwrap(), "");
}
