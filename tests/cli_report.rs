//! `eplb report`, `compare` and `sweep`: output, messages and exit codes.
#![cfg(feature = "cli")]

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

fn eplb(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.split_whitespace()).output().unwrap()
}

fn stdout_of(args: &str) -> String {
    let output = eplb(args);
    assert!(output.status.success(), "{args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn failure(args: &str) -> (String, i32) {
    let output = eplb(args);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args}");
    (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
}

const TRANSLATION: &str = "report --expert_statistic_path data/dumps/dsv2lite-translation";
const CONFIG: &str = "--ep_size 8 --config data/expected/dsv2lite-translation.ep8.slots72.yaml";

fn row<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
    line.split_whitespace().collect()
}

#[test]
fn report_table_fits_80_columns_and_has_an_average_row() {
    let measured = stdout_of(TRANSLATION);
    // Layer 26 of data/expected/dsv2lite-translation.report.json: 192, 69.59 and 0.72816.
    assert_eq!(row(&measured, "26")[..4], ["26", "192.0", "69.6", "0.7282"]);
    let both = stdout_of(&format!("{TRANSLATION} {CONFIG}"));
    // And of dsv2lite-translation.ep8.slots72.report.json: 20.46 and 0.15894.
    assert_eq!(row(&both, "26")[..6], ["26", "192.0", "69.6", "0.7282", "20.5", "0.1589"]);
    assert_eq!(row(&both, "average").len(), 7);
    let against = stdout_of(&format!("{TRANSLATION} {CONFIG} --against data/dumps/dsv2lite-law"));
    for text in [measured, both, against] {
        assert!(!text.contains('\u{1b}'), "colours without a terminal: {text}");
        let widest = text.lines().filter(|line| line.starts_with(' ')).map(|line| line.chars().count()).max();
        assert!(widest.unwrap() <= 80, "{text}");
    }
}

#[test]
fn report_json_and_csv_have_full_precision() {
    let json: Value = serde_json::from_str(&stdout_of(&format!("{TRANSLATION} {CONFIG} --json"))).unwrap();
    let expected = fs::read_to_string("data/expected/dsv2lite-translation.ep8.slots72.report.json").unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let csv = stdout_of(&format!("{TRANSLATION} {CONFIG} --csv"));
    let csv_row = |layer: &str| csv.lines().find(|l| l.starts_with(&format!("{layer},projected,"))).unwrap();
    for (layer, expected) in expected["projected"].as_object().unwrap() {
        let fields: Vec<&str> = csv_row(layer).split(',').collect();
        for (name, place) in [("mean", 2), ("std", 3), ("imbalance_ratio", 5)] {
            let expected = expected[name].as_f64().unwrap();
            let found = json["projected"][layer][name].as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected, "{layer}, {name}: {found} {expected}");
            // Without feature float_roundtrip, serde_json may read another last bit.
            let csv: f64 = fields[place].parse().unwrap();
            assert!((csv - found).abs() <= 1e-15 * found, "{layer}, {name}: {csv} {found}");
        }
    }
    assert_eq!(json["average"]["measured"]["mean"], 192.0);
    assert!(json.get("per_expert").is_none());
}

#[test]
fn report_per_expert_has_each_expert() {
    // TensorRT-LLM's --per_expert: 32 tokens x 8 ranks x 6 choices over 64 experts are 24 each, over 72 slots 21.33.
    let json = stdout_of(&format!("{TRANSLATION} {CONFIG} --json --per_expert"));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["per_expert"]["measured"]["1"]["mean"], 24.0);
    let projected = json["per_expert"]["projected"]["1"]["mean"].as_f64().unwrap();
    assert!((projected - 1536.0 / 72.0).abs() < 1e-9, "{projected}");
    let tokens = json["per_expert"]["tokens"]["1"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 8 * 31 * 32 * 6);
    let replicas = json["per_expert"]["replicas"]["1"].as_array().unwrap();
    assert_eq!(replicas.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 72);
    assert_eq!(row(&stdout_of(&format!("{TRANSLATION} --per_expert")), "1")[1], "24.0");
}

#[test]
fn report_of_a_dump_without_load_has_no_ratios() {
    let args = "report --expert_statistic_path data/dumps/dsr1-all-zero --ep_size 8 --config \
                data/expected/dsr1-all-zero.ep8.slots320.yaml";
    let text = stdout_of(args);
    assert!(text.contains("there is no balance to report"), "{text}");
    assert_eq!(row(&text, "average"), ["average", "0.0", "0.0", "-", "0.0", "-", "-"]);
    let json: Value = serde_json::from_str(&stdout_of(&format!("{args} --json"))).unwrap();
    assert_eq!(json["projected"]["3"]["imbalance_ratio"], Value::Null);
    assert_eq!(json["average"]["projected"]["imbalance_ratio"], Value::Null);
}

#[test]
fn report_pictures_are_complete_files_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (html, svg) = (path("report.html"), path("report.svg"));
    stdout_of(&format!("{TRANSLATION} {CONFIG} --html {} --svg {}", html.display(), svg.display()));
    assert!(fs::read_to_string(&html).unwrap().ends_with("</html>\n"));
    let svg = fs::read_to_string(&svg).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains("after, 16.1 % on average") && svg.ends_with("</svg>\n")
    );
    // An unreadable dump leaves no file. An unwritable path fails before the dump is read.
    let broken = path("broken.html");
    assert_eq!(failure(&format!("report --expert_statistic_path data --html {}", broken.display())).1, 3);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let (message, code) = failure(&format!("{TRANSLATION} --html /no/such/place/report.html"));
    assert!(message.contains("there is no directory /no/such/place"), "{message}");
    assert_eq!(code, 4);
}

#[test]
fn report_rejects_a_placement_or_dump_of_another_model() {
    let config = "--config data/expected/dsv2lite-translation.ep8.slots72.yaml";
    let extreme = "report --expert_statistic_path data/dumps/dsr1-extreme --ep_size 8";
    let (message, code) = failure(&format!("{extreme} {config}"));
    assert!(message.contains("slots72.yaml: 72 slots cannot hold 256 experts"), "{message}");
    assert_eq!(code, 2);
    let (message, code) = failure(&format!("{TRANSLATION} {CONFIG} --against data/dumps/dsr1-extreme"));
    assert_eq!(
        message,
        "error: data/dumps/dsr1-extreme: it counts 256 ids, and the placement has 64 experts in 72 slots: it is of another \
         model\n"
    );
    assert_eq!(code, 3);
    let (message, code) = failure(&format!("{TRANSLATION} --ep_size 0"));
    assert_eq!((&message[..], code), ("error: 0 ranks: there must be at least 1\n", 2));
    assert_eq!(failure(&format!("{TRANSLATION} --against data/dumps/dsv2lite-law")).1, 2);
}

#[test]
fn generate_for_the_best_split_prints_the_best_split() {
    let dump = "--expert_statistic_path data/dumps/dsv2lite-translation";
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    // The output of `generate`, and that of `compare` for its file.
    let generated = |flags: &str| {
        let generate =
            format!("generate {dump} --ep_size 8 --num_slots 72 {flags} --output_path {}", out.display());
        let compare = format!("compare {dump} {} --json", out.display());
        (stdout_of(&generate), serde_json::from_str::<Value>(&stdout_of(&compare)).unwrap())
    };
    let figure = |rows: &Value, name: &str| rows[0][name].as_f64().unwrap();
    let (text, compared) = generated("--objective best-split");
    assert!(text.lines().any(|line| {
        line.split_whitespace().eq("layer before after best split gap worst rank after".split(' '))
    }));
    let best_split = figure(&compared, "best_split_imbalance_ratio");
    for (column, value) in
        [(2, figure(&compared, "imbalance_ratio")), (3, best_split), (4, figure(&compared, "gap"))]
    {
        assert_eq!(row(&text, "average")[column], format!("{value:.4}"), "{text}");
    }
    let (even_text, even) = generated("");
    assert!(!even_text.contains("best split") && !even_text.contains("without weights"), "{even_text}");
    assert_eq!(row(&even_text, "average").len(), 4);
    // The objective reduces it.
    assert!(best_split < 0.9 * figure(&even, "best_split_imbalance_ratio"), "{best_split} {even}");
    assert!(generated("--quantile 0.5").0.contains("samples, without weights: no placement"));
}

/// The mean over layers of the projected imbalance ratios in a file under data/expected.
fn expected_average(name: &str) -> f64 {
    let report: Value = serde_json::from_str(&fs::read_to_string(name).unwrap()).unwrap();
    let layers = report["projected"].as_object().unwrap();
    layers.values().map(|layer| layer["imbalance_ratio"].as_f64().unwrap()).sum::<f64>() / layers.len() as f64
}

#[test]
fn compare_scores_files_policies_and_in_order() {
    let yaml = "data/expected/dsv2lite-translation.ep8.slots72.yaml";
    let dump = "--expert_statistic_path data/dumps/dsv2lite-translation";
    let compare = format!("compare {dump} --bytes_per_slot 1000 {yaml} in-order trtllm deepseek-global");
    let rows: Value = serde_json::from_str(&stdout_of(&format!("{compare} --json"))).unwrap();
    let figure = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    // The file is the placement of trtllm for this dump and number of slots, so nothing moves between the two.
    for row in [0, 2] {
        let expected = expected_average("data/expected/dsv2lite-translation.ep8.slots72.report.json");
        assert!((figure(row, "imbalance_ratio") - expected).abs() < 1e-9);
        assert_eq!((figure(row, "moved_slots"), figure(row, "num_duplicates")), (0.0, 9.0));
    }
    assert_eq!(rows[0]["hash"], rows[2]["hash"]);
    // In order, slot i of rank r holds expert (8 r + i) mod 64, with 9 slots a rank.
    assert_eq!((figure(1, "num_slots"), figure(1, "num_duplicates")), (72.0, 0.0));
    for row in 0..4 {
        assert_eq!(figure(row, "moved_bytes"), 1000.0 * figure(row, "moved_slots"));
        let best = figure(row, "best_split_imbalance_ratio");
        assert!(0.0 <= best && best < figure(row, "imbalance_ratio"), "{best}");
        assert!(figure(row, "gap") >= 0.0);
    }
    // The gap in generate's table.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("config.yaml");
    let generated =
        stdout_of(&format!("generate {dump} --policy trtllm --num_slots 72 --output_path {}", out.display()));
    let gap = |rows: &str| -> f64 {
        let rows: Value = serde_json::from_str(rows).unwrap();
        rows[0]["gap"].as_f64().unwrap()
    };
    let one_sample = gap(&stdout_of(&format!("compare {dump} {yaml} --num_samples 1 --json")));
    assert_eq!(row(&generated, "average")[3], format!("{one_sample:.4}"));

    let text = stdout_of(&compare);
    assert_eq!(row(&text, "C").join(" "), "C trtllm: 72 slots on 8 ranks");
    assert!(
        text.lines().filter(|line| line.starts_with(' ')).all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert_eq!(stdout_of(&format!("{compare} --csv")).lines().count(), 5);

    let (message, code) = failure(&format!("compare {dump} serach"));
    assert_eq!(
        message,
        "error: serach: no such file, and unknown policy \"serach\"; the policies are trtllm, deepseek-global, \
         deepseek-hierarchical, search, and in-order\n"
    );
    assert_eq!(code, 2);
}

#[test]
fn sweep_projects_each_shape_and_finds_the_fewest_slots() {
    let sweep = "sweep --expert_statistic_path data/dumps/dsv2lite-translation --policy trtllm";
    let json = |args: &str| -> Value {
        serde_json::from_str(&stdout_of(&format!("{sweep} {args} --json"))).unwrap()
    };
    let points = json("");
    let slots: Vec<u64> =
        points.as_array().unwrap().iter().map(|p| p["num_slots"].as_u64().unwrap()).collect();
    assert_eq!(slots, [64, 72, 80, 88, 96, 112, 128]);
    let ratio = |point: &Value| point["imbalance_ratio"].as_f64().unwrap();
    for (index, slots) in [(0, 64), (1, 72)] {
        let name = format!("data/expected/dsv2lite-translation.ep8.slots{slots}.report.json");
        assert!((ratio(&points[index]) - expected_average(&name)).abs() < 1e-9);
    }
    // The target is the imbalance of 80 slots.
    let target = ratio(&points[2]);
    let fewest = json(&format!("--target {target}"));
    let found = fewest[0]["found"]["num_slots"].as_u64().unwrap();
    let first = points.as_array().unwrap().iter().find(|point| ratio(point) <= target).unwrap();
    assert_eq!(Some(found), first["num_slots"].as_u64());
    let text = stdout_of(&format!("{sweep} --target {}% --bytes_per_slot 1MiB", 100.0 * target + 1e-6));
    // 26 layers: 26 MiB for each spare slot of a rank.
    let spare = (found - 64) / 8;
    assert!(text.contains(&format!("8 ranks need {found} slots for ")), "{text}");
    assert!(text.contains(&format!("{} MiB a rank", format_args!("{:.1}", 26.0 * spare as f64))), "{text}");

    assert_eq!(json("--target 0.001% --most_slots 72")[0]["found"], Value::Null);
    let text = stdout_of(&format!("{sweep} --target 0.001% --most_slots 72"));
    assert!(text.contains("8 ranks do not reach 0.00 % with up to 72 slots: the best is 72 slots"), "{text}");
    let (message, code) = failure(&format!("{sweep} --num_slots 70"));
    assert!(message.contains("70 slots cannot be split evenly over 8 ranks"), "{message}");
    assert_eq!(code, 2);
    let (message, code) =
        failure("sweep --expert_statistic_path data/dumps/dsr1-all-zero --target 5% --policy trtllm");
    assert!(message.contains("dsr1-all-zero: no layer has load, so no number"), "{message}");
    assert_eq!(code, 3);
}
