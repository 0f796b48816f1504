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
fn convert_refuses_maps_that_vllm_ascend_serves_wrongly() {
    let dir = tempfile::tempdir().unwrap();
    let (npy, map) = (dir.path().join("phy2log.npy"), dir.path().join("map.json"));
    let list = dir.path().join("phy2log.json");
    let convert = |rows: &str, flags: &str| {
        fs::write(&list, rows).unwrap();
        let from = format!("--from phy2log-json --ep_size 4 {flags}");
        stdout_of(&format!("convert {} {} {from} --to phy2log-npy", list.display(), npy.display()));
        let from = format!("convert {} {} --from phy2log-npy --ep_size 4", npy.display(), map.display());
        let output = eplb(&format!("{from} --to vllm-ascend {flags}"));
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), from)
    };
    // Device 0 holds expert 0 twice.
    let on_first = "[[0, 0, 1, 2, 3, 4, 5, 6, 1, 7, 2, 3]]";
    let (code, message, from) = convert(on_first, "--layers 5");
    let expected = "map.json: layer 5, device 0: slot 1 repeats expert 0 of slot 0; vllm-ascend counts";
    assert!(
        code == Some(3) && message.contains(expected) && message.contains("policy search"),
        "{code:?} {message}"
    );
    assert!(!map.exists());
    let output = eplb(&format!("{from} --to vllm-ascend --layers 5 --force"));
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.starts_with("warning: ") && warning.contains(expected), "{warning}");
    assert!(fs::read_to_string(&map).unwrap().contains("[0, 0, 1]"));
    // Devices 1 and 3 hold one twice.
    let (code, warning, _) = convert("[[0, 1, 2, 3, 3, 4, 5, 6, 1, 7, 2, 7]]", "");
    assert_eq!(code, Some(0), "{warning}");
    assert!(
        warning.contains(
            "map.json: 2 slots over all layers repeat an expert of their device, the first at layer 0, device 1: slot 4 repeats \
             expert 3 of slot 3; MindIE serves them, vllm-ascend sends no tokens to one of two"
        ),
        "{warning}"
    );
}

#[test]
fn convert_leaves_out_layers_and_refuses_flags_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (list, yaml, map) = (path("phy2log.json"), path("config.yaml"), path("map.json"));
    // Layers 1 to 3, of which 3 is one for multi-token prediction.
    fs::write(&list, "[[0, 1], [1, 0], [0, 1]]").unwrap();
    stdout_of(&format!("convert {list} {yaml} --from phy2log-json --layers 1-3 --ep_size 2 --to config"));
    let sglang = format!("convert {yaml} {map} --ep_size 2 --to sglang-map --num_layers 3");
    let (message, _) = failure(&sglang);
    assert!(
        message.contains(
            "num_layers is 3; 4, for layer 3, to 65536 expected; to leave layers out, give those to write"
        ),
        "{message}"
    );
    let text = stdout_of(&format!("{sglang} --layers 1-2"));
    assert!(
        text.contains("layers 2 (1 to 2), 2 experts")
            && text.contains("\nleft out, not in --layers: 1 (3 to 3)\n"),
        "{text}"
    );
    assert_eq!(
        fs::read_to_string(&map).unwrap(),
        "{\"physical_to_logical_map\": [[0, 1], [0, 1], [1, 0]]}\n"
    );
    let dump = "data/dumps/dsv2lite-translation";
    let text = stdout_of(&format!("convert {dump} {} --to npy --layers 1-13 --sum", path("counts.npy")));
    assert!(
        text.contains("1 rows of") && text.contains("\nleft out, not in --layers: 13 (14 to 26)\n"),
        "{text}"
    );
    // 13 layers of 64 experts, int64.
    assert_eq!(fs::metadata(path("counts.npy")).unwrap().len(), 128 + 13 * 64 * 8);
    for (input, flags, flag) in [
        (dump, "--to npy --num_layers 27", "--num_layers"),
        (dump, "--to npy --ep_size 8", "--ep_size"),
        (dump, "--to npy --force", "--force"),
        (YAML, "--to phy2log-npy --ep_size 8 --num_layers 27", "--num_layers"),
        (YAML, "--to phy2log-npy --ep_size 8 --sum", "--sum"),
        (YAML, "--to phy2log-npy --ep_size 8 --experts_per_token 6", "--experts_per_token"),
        (YAML, "--to sglang-map --ep_size 8 --force", "--force"),
    ] {
        let (message, code) = failure(&format!("convert {input} {} {flags}", path("none")));
        assert!(message.starts_with(&format!("error: {flag} has no effect from ")), "{message}");
        assert_eq!(code, 2);
    }
    let (message, _) = failure(&format!("convert {dump} {} --to npy --layers 1-60", path("none")));
    assert!(message.contains("layer 27 is not in this dump of 26 layers from 1 to 26"), "{message}");
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
