//! `eplb report`, as a user meets it.
#![cfg(feature = "cli")]

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

fn eplb(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.split_whitespace()).output().unwrap()
}

fn says(args: &str) -> String {
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
fn the_table_fits_a_terminal_and_has_an_average_row() {
    let measured = says(TRANSLATION);
    // Layer 26 of data/expected/dsv2lite-translation.report.json: 192, 69.59 and 0.72816.
    assert_eq!(row(&measured, "26")[..4], ["26", "192.0", "69.6", "0.7282"]);
    let both = says(&format!("{TRANSLATION} {CONFIG}"));
    // And of dsv2lite-translation.ep8.slots72.report.json: 20.46 and 0.15894.
    assert_eq!(row(&both, "26")[..6], ["26", "192.0", "69.6", "0.7282", "20.5", "0.1589"]);
    assert_eq!(row(&both, "average").len(), 7);
    let against = says(&format!("{TRANSLATION} {CONFIG} --against data/dumps/dsv2lite-law"));
    for text in [measured, both, against] {
        assert!(!text.contains('\u{1b}'), "colour without a terminal: {text}");
        let widest = text.lines().filter(|line| line.starts_with(' ')).map(|line| line.chars().count()).max();
        assert!(widest.unwrap() <= 80 + 4, "{text}");
    }
}

#[test]
fn json_and_csv_have_the_numbers_in_full() {
    let json: Value = serde_json::from_str(&says(&format!("{TRANSLATION} {CONFIG} --json"))).unwrap();
    let expected = fs::read_to_string("data/expected/dsv2lite-translation.ep8.slots72.report.json").unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let csv = says(&format!("{TRANSLATION} {CONFIG} --csv"));
    let csv_row = |layer: &str| csv.lines().find(|l| l.starts_with(&format!("{layer},projected,"))).unwrap();
    for (layer, expected) in expected["projected"].as_object().unwrap() {
        let fields: Vec<&str> = csv_row(layer).split(',').collect();
        for (name, place) in [("mean", 2), ("std", 3), ("imbalance_ratio", 5)] {
            let expected = expected[name].as_f64().unwrap();
            let found = json["projected"][layer][name].as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected, "{layer}, {name}: {found} {expected}");
            // serde_json reads the last bit of a number only with a feature of its own.
            let csv: f64 = fields[place].parse().unwrap();
            assert!((csv - found).abs() <= 1e-15 * found, "{layer}, {name}: {csv} {found}");
        }
    }
    assert_eq!(json["average"]["measured"]["mean"], 192.0);
    assert!(json.get("per_expert").is_none());
}

#[test]
fn experts_are_reported_one_by_one() {
    // TensorRT-LLM's --per_expert: 32 tokens x 8 ranks x 6 choices over 64 experts are 24 each, over 72 slots 21.33.
    let json = says(&format!("{TRANSLATION} {CONFIG} --json --per_expert"));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["per_expert"]["measured"]["1"]["mean"], 24.0);
    let projected = json["per_expert"]["projected"]["1"]["mean"].as_f64().unwrap();
    assert!((projected - 1536.0 / 72.0).abs() < 1e-9, "{projected}");
    let tokens = json["per_expert"]["tokens"]["1"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 8 * 31 * 32 * 6);
    let replicas = json["per_expert"]["replicas"]["1"].as_array().unwrap();
    assert_eq!(replicas.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 72);
    assert_eq!(row(&says(&format!("{TRANSLATION} --per_expert")), "1")[1], "24.0");
}

#[test]
fn a_dump_without_load_has_no_ratios() {
    let args = "report --expert_statistic_path data/dumps/dsr1-all-zero --ep_size 8 --config \
                data/expected/dsr1-all-zero.ep8.slots320.yaml";
    let text = says(args);
    assert!(text.contains("nothing to be said of balance"), "{text}");
    assert_eq!(row(&text, "average"), ["average", "0.0", "0.0", "-", "0.0", "-", "-"]);
    let json: Value = serde_json::from_str(&says(&format!("{args} --json"))).unwrap();
    assert_eq!(json["projected"]["3"]["imbalance_ratio"], Value::Null);
    assert_eq!(json["average"]["projected"]["imbalance_ratio"], Value::Null);
}

#[test]
fn pictures_are_whole_files_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (html, svg) = (path("report.html"), path("report.svg"));
    says(&format!("{TRANSLATION} {CONFIG} --html {} --svg {}", html.display(), svg.display()));
    assert!(fs::read_to_string(&html).unwrap().ends_with("</html>\n"));
    let svg = fs::read_to_string(&svg).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains("after, 16.1 % on average") && svg.ends_with("</svg>\n")
    );
    // Nothing is left where the dump cannot be read, and nothing is read where the file cannot be written.
    let broken = path("broken.html");
    assert_eq!(failure(&format!("report --expert_statistic_path data --html {}", broken.display())).1, 3);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let (message, code) = failure(&format!("{TRANSLATION} --html /no/such/place/report.html"));
    assert!(message.contains("there is no directory /no/such/place"), "{message}");
    assert_eq!(code, 4);
}

#[test]
fn what_does_not_fit_is_named() {
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
    let (message, code) = failure(&format!("{TRANSLATION} --ep_size 65"));
    assert_eq!((&message[..], code), ("error: 65 ranks: there must be 1 to the 64 experts\n", 2));
    assert_eq!(failure(&format!("{TRANSLATION} --against data/dumps/dsv2lite-law")).1, 2);
}
