//! `eplb replay`: a load worked out by hand, the recordings that ship, and every output.
#![cfg(feature = "cli")]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs the program in the repository's root; `DIR` in the arguments is `dir`.
fn eplb(dir: &TempDir, args: &str) -> Output {
    let args = args.replace("DIR", &dir.path().display().to_string());
    Command::new(env!("CARGO_BIN_EXE_eplb")).args(args.split_whitespace()).output().unwrap()
}

fn success(dir: &TempDir, args: &str) -> String {
    let output = eplb(dir, args);
    assert!(output.status.success(), "{args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(dir: &TempDir, args: &str) -> Value {
    serde_json::from_str(&success(dir, &format!("{args} --json"))).unwrap()
}

fn failure(dir: &TempDir, args: &str) -> (String, i32) {
    let output = eplb(dir, args);
    (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
}

/// Writes a dump of one rank with one layer, `[iterations][experts]`.
fn dump(dir: &TempDir, rows: &[[i64; 4]]) {
    let directory = dir.path().join("dump");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("meta_info.json"), r#"{"num_experts": 4, "num_experts_per_token": 1}"#).unwrap();
    let bytes = |row: &[i64; 4]| row.iter().flat_map(|count| count.to_le_bytes()).collect::<Vec<u8>>();
    let rows: BTreeMap<String, Vec<u8>> =
        rows.iter().enumerate().map(|(iteration, row)| (format!("{iteration}_3"), bytes(row))).collect();
    let views = rows.iter().map(|(name, bytes)| (name, TensorView::new(Dtype::I64, vec![4], bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &directory.join("rank0.safetensors")).unwrap();
}

/// Two iterations whose only even placement is 0 3 | 1 2, then six whose only one is 0 1 | 2 3.
fn shift(dir: &TempDir) {
    let (before, after) = ([40, 30, 20, 10], [40, 10, 20, 30]);
    dump(dir, &[before, before, after, after, after, after, after, after]);
}

const SHIFT: &str = "replay --expert_statistic_path DIR/dump --ep_size 2 --num_slots 4 --every 2 --window 2";

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap_or(f64::NAN);
    assert!((found - expected).abs() < 1e-12, "{found} {expected}");
}

#[test]
fn a_shift_of_load_is_followed_after_one_plan() {
    let dir = tempfile::tempdir().unwrap();
    shift(&dir);
    let replay = json(&dir, &format!("{SHIFT} --bytes_per_slot 1KiB"));
    // In 0 3 | 1 2 the ranks have 70 and 30 tokens after the shift, mean 50.
    let old = 50.0 / 70.0;
    close(&replay["never"]["balancedness"], old);
    close(&replay["oracle"]["balancedness"], 1.0);
    for name in ["live", "search", "trtllm"] {
        close(&replay[name]["balancedness"], (2.0 * old + 4.0) / 6.0);
    }
    // One exchange of experts 1 and 3.
    let live = &replay["live"];
    close(&live["moves_per_layer"], 2.0);
    assert_eq!((&live["max_moves_per_layer"], &live["num_moves"]), (&json!(2), &json!(2)));
    assert_eq!(
        (&live["num_plans"], &live["num_kept"], &live["moved_bytes"]),
        (&json!(2), &json!(1), &json!(2048))
    );
    assert_eq!(replay["kept"], json!({"balanced": 1}));
    let plans: Vec<_> =
        live["plans"].as_array().unwrap().iter().map(|plan| (&plan["index"], &plan["kept"])).collect();
    assert_eq!(plans, [(&json!(4), &Value::Null), (&json!(6), &json!("balanced"))]);
    assert_eq!(replay["iterations"], json!([2, 3, 4, 5, 6, 7]));
    let curve: Vec<f64> =
        live["iterations"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    assert_eq!(curve, [old, old, 1.0, 1.0, 1.0, 1.0]);
    // An exchange is two moves.
    let limited = json(&dir, &format!("{SHIFT} --max_moves 1"));
    assert_eq!(limited["live"]["iterations"], limited["never"]["iterations"]);
    assert_eq!(limited["kept"], json!({"no_move": 2}));
    // The exchange takes 20 tokens off the hottest rank in each of two iterations, so each of two moves may cost 20.
    let kept = |price: &str| json(&dir, &format!("{SHIFT} --move_price {price}"))["live"]["num_kept"].clone();
    assert_eq!((kept("5"), kept("21")), (json!(1), json!(2)));
}

const LONG: &str = "replay --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 --num_slots 72 --every 6 --max_moves 2 \
                    --no_best_split";

#[test]
fn every_output_has_the_figures_of_the_json() {
    let dir = tempfile::tempdir().unwrap();
    let replay = json(&dir, &format!("{LONG} --html DIR/a.html --svg DIR/a.svg"));
    let page = fs::read_to_string(dir.path().join("a.html")).unwrap();
    let data = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap().1;
    let embedded: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert_eq!(embedded, replay);
    assert!(page.contains("<title>eplb replay</title>") && !page.contains("@@"));
    let svg = fs::read_to_string(dir.path().join("a.svg")).unwrap();
    assert!(
        svg.starts_with("<svg")
            && svg.contains("dsv2lite-translation")
            && svg.contains("moves of live plans")
    );

    let (csv, text) = (success(&dir, &format!("{LONG} --csv")), success(&dir, LONG));
    let names = ["never", "trtllm", "search", "live", "oracle"];
    assert_eq!(csv.lines().count(), 1 + names.len());
    for (name, line) in names.iter().zip(csv.lines().skip(1)) {
        let of = &replay[name];
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields[0], *name);
        assert_eq!(fields[1], of["balancedness"].to_string());
        assert_eq!(fields[5], of["num_moves"].to_string());
        let row: Vec<&str> = text
            .lines()
            .find(|line| line.starts_with(&format!(" {name} ")))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(row[1], format!("{:.4}", of["balancedness"].as_f64().unwrap()), "{text}");
        assert_eq!(row[3] == "-", of["num_plans"] == 0);
    }
    assert_eq!(replay["live"]["best_split_balancedness"], Value::Null);
    assert_eq!(success(&dir, &format!("{LONG} --svg -")), svg);
}

#[test]
fn a_sweep_has_a_row_for_each_combination() {
    let dir = tempfile::tempdir().unwrap();
    shift(&dir);
    let sweep = "replay --expert_statistic_path DIR/dump --ep_size 2 --num_slots 4 --sweep --window 2 --every 1,2 --max_moves 1,any";
    let points = json(&dir, sweep);
    let of = |every: u64, moves: Value| {
        let is = |point: &&Value| point["every"] == every && point["max_moves"] == moves;
        points.as_array().unwrap().iter().find(is).unwrap()["balancedness"].clone()
    };
    let old = 50.0 / 70.0;
    close(&of(2, Value::Null), (2.0 * old + 4.0) / 6.0);
    close(&of(2, json!(1)), old);
    // After one iteration the window holds one of each load.
    assert!(of(1, Value::Null).as_f64() >= of(2, Value::Null).as_f64());
    assert_eq!(success(&dir, &format!("{sweep} --csv")).lines().count(), 5);
    let text = success(&dir, sweep);
    assert!(text.contains("Best balance: ") && text.lines().any(|line| line.ends_with('*')), "{text}");
    // Defaults around 4 and 8 iterations: a window of 16 is too long, and one of 8 leaves nothing.
    let (message, code) =
        failure(&dir, "replay --expert_statistic_path DIR/dump --ep_size 2 --num_slots 4 --sweep");
    assert!(message.contains("the window is 8 iterations, and the dumps have 8"), "{message}");
    assert_eq!(code, 2);
}

#[test]
fn wrong_flags_are_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    shift(&dir);
    let refused = |args: &str, expected: &str, code: i32| {
        let (message, found) = failure(&dir, args);
        assert!(message.contains(expected), "{args}: {message}");
        assert_eq!(found, code, "{args}");
    };
    refused(&format!("{SHIFT} --max_moves 1,2"), "--max_moves has several values: add --sweep", 2);
    refused(
        &format!("{SHIFT} --dump_weights 2"),
        "--dump_weights: a replay takes the dumps one after the other",
        2,
    );
    refused(&format!("{SHIFT} --max_moves few"), "expected a number of moves, or any", 2);
    refused(&format!("{SHIFT} --trigger 1.5"), "trigger is 1.5; a balancedness from 0 to 1 expected", 2);
    refused(&format!("{SHIFT} --remote_price 3"), "--rank_to_node", 2);
    refused(&format!("{SHIFT} --counts slots"), "it counts slots, not experts", 3);
    refused(&format!("{SHIFT} --html - --svg -"), "both go to standard output", 2);
    let shared = "replay --expert_statistic_path DIR/dump --ep_size 2 --num_slots 4 --every 2";
    refused(
        &format!("{shared} --window 8"),
        "none is left to measure; choose a shorter window or a longer dump",
        2,
    );
    refused(&format!("{shared} --window 0"), "window is 0; at least one iteration expected", 2);
    refused("replay --expert_statistic_path DIR/dump --ep_size 2 --num_slots 3 --window 2", "3 slots", 2);
}
