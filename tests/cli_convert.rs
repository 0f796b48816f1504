//! `eplb convert`: output, messages, exit codes, and files that are complete or unchanged.
#![cfg(feature = "cli")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn eplb(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.split_whitespace()).output().unwrap()
}

fn stdout_of(args: &str) -> String {
    let output = eplb(args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn failure(args: &str) -> (String, i32) {
    let output = eplb(args);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args}");
    (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
}

const YAML: &str = "data/expected/dsv2lite-translation.ep8.slots72.yaml";

#[test]
fn convert_turns_a_recording_of_sglang_into_a_dump() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let dump = path("dump");
    let convert = format!("convert tests/exchange/recorder.pt --to dump {dump} --experts_per_token 2");
    assert_eq!(
        stdout_of(&convert),
        format!(
            "tests/exchange/recorder.pt (sglang-pt): 2 iterations of layers 3 (1 to 3), 8 experts\n\
             dense layers, without counts: 1 (0 to 0)\n\
             skipped: 1 empty steps\n\
             wrote {dump} (dump)\n"
        )
    );
    let yaml = path("config.yaml");
    stdout_of(&format!("generate --expert_statistic_path {dump} --ep_size 2 --output_path {yaml}"));
    // Back to SGLang, whose format has a row for the dense layer too.
    let map = path("map.json");
    stdout_of(&format!("convert {yaml} --ep_size 2 --to sglang-map {map}"));
    let text = fs::read_to_string(&map).unwrap();
    assert!(text.starts_with("{\"physical_to_logical_map\": [[0, 1, 2, 3, 4, 5, 6, 7], ["), "{text}");

    let (message, code) = failure(&convert);
    assert!(
        message.ends_with("dump: it already has a dump; choose another directory, or remove it\n"),
        "{message}"
    );
    assert_eq!(code, 4);
}

#[test]
fn convert_reads_what_sglang_records_in_other_modes_and_orders() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("counts.json").display().to_string();
    let convert =
        |input: &str| stdout_of(&format!("convert tests/exchange/{input} --to sglang-count {json}"));
    assert_eq!(
        convert("rotated.pt"),
        format!(
            "tests/exchange/rotated.pt (sglang-pt): 3 iterations of layers 3 (1 to 3), 8 experts\n\
             dense layers, without counts: 1 (0 to 0)\n\
             put in order: the recording begins at step 4 of the file\n\
             skipped: 3 empty steps\n\
             wrote {json} (sglang-count)\n"
        )
    );
    assert_eq!(
        convert("per_token"),
        format!(
            "tests/exchange/per_token (sglang-pt): 2 iterations of layers 3 (1 to 3), 8 experts\n\
             dense layers, without counts: 1 (0 to 0)\n\
             wrote {json} (sglang-count)\n"
        )
    );
}

#[test]
fn convert_keeps_fractions_and_refuses_a_dump_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let json = path("loads.json");
    assert_eq!(
        stdout_of(&format!("convert tests/exchange/averages.pt --to lmdeploy {json} --num_layers 5")),
        format!(
            "tests/exchange/averages.pt (sglang-pt): 1 iterations of layers 3 (1 to 3), 8 experts\n\
             dense layers, without counts: 1 (0 to 0)\n\
             loads: some are fractions, which a dump of counts cannot hold\n\
             wrote {json} (lmdeploy)\n"
        )
    );
    // make.py: a quarter of 100 + 2 (10 layer + expert).
    let text = fs::read_to_string(&json).unwrap();
    assert!(text.contains("[35.0, 35.5, 36.0, 36.5, 37.0, 37.5, 38.0, 38.5]"), "{text}");
    let dump = path("dump");
    assert_eq!(
        failure(&format!("convert {json} --from lmdeploy --to dump {dump} --experts_per_token 2")),
        (
            format!(
                "error: {json}: layer 1, step 0, expert 1: 30.5 is a fraction, so the file has loads and not counts; solve \
                 from them, or write them as sglang-count, lmdeploy or npy\n"
            ),
            3
        )
    );
    assert!(!Path::new(&dump).exists());
}

#[test]
fn convert_preserves_the_placement_hash() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (map, array, yaml) = (path("map.json"), path("array.npy"), path("config.yaml"));
    let hash = |text: &str| text.split_once("placement hash ").unwrap().1[..16].to_owned();
    let first = hash(&stdout_of(&format!("convert {YAML} --ep_size 8 --to sglang-map {map}")));
    let layers = "--layers 1-26 --ep-size 8";
    assert_eq!(hash(&stdout_of(&format!("convert {map} {layers} --to phy2log-npy {array}"))), first);
    let last = stdout_of(&format!("convert {array} --from phy2log-npy {layers} --to config {yaml}"));
    assert_eq!(hash(&last), first);
    assert_eq!(fs::read(yaml).unwrap(), fs::read(YAML).unwrap());
}

#[test]
fn convert_warns_of_slots_that_vllm_ascend_does_not_serve() {
    let dir = tempfile::tempdir().unwrap();
    let output = eplb(&format!(
        "convert {YAML} --ep_size 8 --to vllm-ascend {}",
        dir.path().join("map.json").display()
    ));
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(
        warning.starts_with("warning: ") && warning.contains("MindIE serves that, vllm-ascend does not"),
        "{warning}"
    );
}

#[test]
fn convert_errors_leave_the_output_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("input"), dir.path().join("output"));
    fs::write(&output, "existing").unwrap();
    let convert = |bytes: &[u8], flags: &str| {
        fs::write(&input, bytes).unwrap();
        let (message, code) = failure(&format!("convert {} {} {flags}", input.display(), output.display()));
        assert_eq!(fs::read(&output).unwrap(), b"existing");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        (message.replace(&input.display().to_string(), "input"), code)
    };
    let error = |message: &str, code: i32| (format!("error: {message}\n"), code);
    assert_eq!(
        convert(b"[[1, 2]]", "--to npy"),
        error(
            "input: an array can hold counts or a placement: give its format, lmdeploy for counts or phy2log-json for a \
             placement; pass --from FORMAT",
            2
        )
    );
    assert_eq!(
        convert(b"[[1, 2]]", "--from lmdeploy --to config"),
        error(
            "input has counts (lmdeploy), but config is a format of placements; eplb generate computes a placement from a dump",
            2
        )
    );
    assert_eq!(
        convert(b"num_slots: 4", "--to npy"),
        error("input has a placement (config), but npy is a format of counts", 2)
    );
    assert_eq!(
        convert(b"[[1, -2]]", "--from lmdeploy --to npy"),
        error("input: bad JSON: [0][1] is -2, a number from 0 to below 2^63 expected at line 1 column 7", 3)
    );
    assert_eq!(
        convert(b"[[1, 2]]", "--from lmdeploy --to sglang-pt"),
        error("sglang-pt is read only; SGLang also reads sglang-count", 2)
    );
    let (message, code) = convert(b"[[1, 2]]", "--from lmdeploy --to numpy");
    assert!(message.starts_with("error: invalid value 'numpy' for '--to <FORMAT>'"), "{message}");
    assert_eq!(code, 2);
    let (message, code) =
        failure(&format!("convert {YAML} --ep_size 8 --to phy2log-json /no/such/place/map.json"));
    assert!(message.contains("there is no directory /no/such/place"), "{message}");
    assert_eq!(code, 4);
    assert!(!Path::new("/no").exists());
}

#[test]
fn convert_exits_with_3_for_damaged_input() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("input"), dir.path().join("output"));
    let mut npy = b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'sha".to_vec();
    for bytes in [
        b"\xff\xfe\x00\x01".to_vec(),
        std::mem::take(&mut npy),
        b"{\"logical_count\": [[1,".to_vec(),
        b"{\"a\": 1}".to_vec(),
        Vec::new(),
    ] {
        fs::write(&input, &bytes).unwrap();
        let (message, code) = failure(&format!("convert {} --to npy {}", input.display(), output.display()));
        assert!(message.starts_with(&format!("error: {}: ", input.display())), "{message}");
        assert_eq!(code, 3, "{message}");
    }
}
