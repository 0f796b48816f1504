//! `eplb report`, `compare` and `sweep`: figures of small loads, worked out by hand.
#![cfg(feature = "cli")]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

fn eplb(dir: &TempDir, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eplb"));
    command.current_dir(dir.path()).args(args.split_whitespace()).output().unwrap()
}

/// Standard output and standard error.
fn success(dir: &TempDir, args: &str) -> (String, String) {
    let output = eplb(dir, args);
    assert!(output.status.success(), "{args}: {output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn json(dir: &TempDir, args: &str) -> Value {
    serde_json::from_str(&success(dir, &format!("{args} --json")).0).unwrap()
}

fn failure(dir: &TempDir, args: &str) -> (String, i32) {
    let output = eplb(dir, args);
    (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
}

/// Writes a dump as TensorRT-LLM does, of `num_ranks` ranks that share the counts of rank 0. `layers` has the counts of each layer,
/// `[iterations][ids]`.
fn dump(dir: &TempDir, name: &str, num_ranks: usize, layers: &[(u32, &[&[i64]])]) {
    let directory = dir.path().join(name);
    fs::create_dir(&directory).unwrap();
    let num_ids = layers[0].1[0].len();
    let meta = format!("{{\"num_experts\": {num_ids}, \"num_experts_per_token\": 1}}");
    fs::write(directory.join("meta_info.json"), meta).unwrap();
    for rank in 0..num_ranks {
        let mut tensors = BTreeMap::new();
        for (layer, rows) in layers {
            for (iteration, counts) in rows.iter().enumerate() {
                let of_rank = |count: &i64| if rank == 0 { *count } else { 0 };
                let bytes: Vec<u8> = counts.iter().flat_map(|count| of_rank(count).to_le_bytes()).collect();
                tensors.insert(format!("{iteration}_{layer}"), bytes);
            }
        }
        let views = tensors
            .iter()
            .map(|(name, bytes)| (name, TensorView::new(Dtype::I64, vec![num_ids], bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &directory.join(format!("rank{rank}.safetensors")))
            .unwrap();
    }
}

fn config(dir: &TempDir, name: &str, experts: &str) {
    let num_slots = experts.split(',').count();
    let text = format!(
        "initial_global_assignments:\n  3: [{experts}]\nlayer_updates_per_iter: 0\nnum_slots: {num_slots}\n"
    );
    fs::write(dir.path().join(name), text).unwrap();
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap_or(f64::NAN);
    assert!((found - expected).abs() < 1e-12, "{found} {expected}");
}

#[test]
fn idle_iterations_and_layers_are_left_out_of_ratios_and_told() {
    let dir = tempfile::tempdir().unwrap();
    // Two ranks have 4 and 2, nothing, 2 and 2: imbalance 1 / 3 and 0. Layer 4 has no load.
    let rows: [&[i64]; 3] = [&[3, 1, 1, 1], &[0; 4], &[1, 1, 2, 0]];
    let idle: [&[i64]; 3] = [&[0; 4]; 3];
    dump(&dir, "dump", 1, &[(3, &rows), (4, &idle)]);
    let report = json(&dir, "report --expert_statistic_path dump --ep_size 2");
    assert_eq!(report["idle"], serde_json::json!({"layers": [4], "iterations": 1, "layer_iterations": 0}));
    let layer = &report["unbalanced"]["3"];
    close(&layer["imbalance_ratio"], 1.0 / 6.0);
    // Means 3, 0 and 2, deviations 2 / sqrt(2), 0 and 0.
    close(&layer["mean"], 5.0 / 3.0);
    close(&layer["std"], 2f64.sqrt() / 3.0);
    assert_eq!(layer["idle_iterations"], 1);
    assert_eq!(report["unbalanced"]["4"]["imbalance_ratio"], Value::Null);
    let average = &report["average"]["unbalanced"];
    close(&average["imbalance_ratio"], 1.0 / 6.0);
    close(&average["mean"], 5.0 / 6.0);

    let note =
        "Note: without load: 1 of 2 layers, 1 iteration; ratios leave them out, mean and std include them\n";
    for command in [
        "report --ep_size 2",
        "compare --ep_size 2 in-order",
        "sweep --ep_size 2",
        "sweep --ep_size 2 --target 30",
    ] {
        let text = success(&dir, &format!("{command} --expert_statistic_path dump")).0;
        assert!(text.contains(note), "{command}: {text}");
    }
    close(
        &json(&dir, "compare --expert_statistic_path dump --ep_size 2 in-order")[0]["imbalance_ratio"],
        1.0 / 6.0,
    );
    let (text, warning) = success(
        &dir,
        "generate --expert_statistic_path dump --ep_size 2 --policy trtllm --output_path out.yaml",
    );
    assert!(text.contains(" average   0.1667"), "{text}");
    assert!(warning.starts_with("warning: dump: no load in 1 of 2 layers, 4; "), "{warning}");
}

#[test]
fn dumps_of_as_many_slots_as_experts_need_a_word() {
    let dir = tempfile::tempdir().unwrap();
    config(&dir, "config.yaml", "0, 2, 1, 3");
    // With experts 0 2 | 1 3, the ranks have 7 and 5: the same, counted as experts and as slots.
    dump(&dir, "experts", 1, &[(3, &[&[6, 4, 1, 1]])]);
    dump(&dir, "slots", 1, &[(3, &[&[6, 1, 4, 1]])]);
    let against = "report --expert_statistic_path experts --config config.yaml --ep_size 2 --against slots";
    let (message, code) = failure(&dir, &format!("{against} --counts experts"));
    assert!(
        message.starts_with("error: slots: it does not say whether it counts experts or slots"),
        "{message}"
    );
    assert!(message.contains("--against_counts slots if it was recorded with this placement in use"));
    assert_eq!(code, 2);
    let as_slots =
        &json(&dir, &format!("{against} --counts experts --against_counts slots"))["against"]["average"];
    for (name, expected) in [
        ("predicted", 1.0 / 6.0),
        ("measured", 1.0 / 6.0),
        ("drift", 0.0),
        ("dispatch", 0.0),
        ("load_shift", 0.0),
    ] {
        close(&as_slots[name], expected);
    }
    let text = success(&dir, &format!("{against} --against_counts slots")).0;
    assert!(
        text.contains(
            "16.7 % more load than the mean on the load of the first\ndump, and 16.7 % as the second"
        )
    );
    // Read as experts, expert 2 has the 4 tokens and shares the rank of expert 0: 10 and 2.
    let as_experts = &json(&dir, &format!("{against} --against_counts experts"))["against"]["average"];
    close(&as_experts["projected"], 4.0 / 6.0);
    assert_eq!(as_experts["measured"], Value::Null);

    let report = "report --ep_size 2 --config config.yaml --expert_statistic_path";
    let (_, warning) = success(&dir, &format!("{report} experts"));
    assert!(
        warning.starts_with("warning: experts: it does not say whether it counts experts or slots"),
        "{warning}"
    );
    let assumed = json(&dir, &format!("{report} experts"));
    assert!(assumed["notes"][0].as_str().unwrap().ends_with("it is read as counts of experts"), "{assumed}");
    let (_, warning) = success(&dir, &format!("{report} experts --counts experts"));
    assert_eq!(warning, "");
    let measured = json(&dir, &format!("{report} slots --counts slots"));
    close(&measured["average"]["measured"]["imbalance_ratio"], 1.0 / 6.0);
    close(&measured["average"]["unbalanced"]["imbalance_ratio"], 4.0 / 6.0);
    // With the experts in order, both readings have the same figures.
    config(&dir, "in-order.yaml", "0, 1, 2, 3");
    let in_order =
        "report --ep_size 2 --config in-order.yaml --expert_statistic_path experts --against slots";
    assert_eq!(success(&dir, in_order).1, "");
}

#[test]
fn more_ranks_than_experts_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let layers: [(u32, &[&[i64]]); 1] = [(3, &[&[6, 4, 1, 1]])];
    dump(&dir, "one", 1, &layers);
    dump(&dir, "six", 6, &layers);
    config(&dir, "config.yaml", "0, 0, 0, 1, 2, 3");
    let note = "6 ranks cannot hold 4 experts in order, one slot each, so there is no load without a placement; pass a \
                configuration file for 6 ranks";
    let alone = json(&dir, "report --expert_statistic_path one --ep_size 6");
    assert_eq!((&alone["unbalanced"], &alone["average"]["unbalanced"]), (&Value::Null, &Value::Null));
    assert_eq!(alone["notes"][0], note);
    close(&alone["average"]["measured"]["mean"], 12.0);
    let text = success(&dir, "report --expert_statistic_path one --ep_size 6 --html a.html --svg a.svg").0;
    assert!(
        text.contains("The load of each of 6 ranks depends on the placement\n") && text.contains(note),
        "{text}"
    );
    assert_eq!(success(&dir, "report --expert_statistic_path one --ep_size 6 --csv").0.lines().count(), 3);
    // Which experts the ranks of the dump had is unknown.
    let measured = json(&dir, "report --expert_statistic_path six");
    assert_eq!((&measured["measured"], &measured["unbalanced"]), (&Value::Null, &Value::Null));
    assert_eq!(measured["notes"].as_array().unwrap().len(), 2);

    // In order, the six slots hold 0 0 1 2 2 3: 3 3 4 0.5 0.5 1 tokens. In the file, 2 2 2 4 1 1. The mean is 2.
    for name in ["one", "six"] {
        let report =
            json(&dir, &format!("report --expert_statistic_path {name} --ep_size 6 --config config.yaml"));
        close(&report["average"]["unbalanced"]["imbalance_ratio"], 1.0);
        close(&report["average"]["projected"]["imbalance_ratio"], 1.0);
        assert_eq!(report["rank_tokens"]["unbalanced"]["3"].to_string(), "[3.0,3.0,4.0,0.5,0.5,1.0]");
    }
    let sweep = json(&dir, "sweep --expert_statistic_path one --ep_size 6 --policy trtllm");
    assert_eq!(sweep[0]["num_slots"], 6);
    let target = "sweep --expert_statistic_path one --ep_size 6 --policy trtllm --target 100% --json";
    assert!(success(&dir, target).0.contains("\"num_slots\":6"));
}

#[test]
fn means_are_over_the_ranks_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    dump(&dir, "dump", 4, &[(3, &[&[6, 4, 1, 1]])]);
    let mean = |args: &str| {
        let text = success(&dir, &format!("report --expert_statistic_path dump {args}")).0;
        let line = text.lines().find(|line| line.starts_with(" average")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!([mean(""), mean("--ep_size 2"), mean("--ep_size 1")], ["3.0", "6.0", "12.0"]);
}

#[test]
fn balancedness_is_reported_by_each_definition() {
    let dir = tempfile::tempdir().unwrap();
    // Two ranks have 30 and 10, 1 and 1: mean / max is 2 / 3 and 1.
    dump(&dir, "dump", 2, &[(1, &[&[20, 10, 10, 0]]), (2, &[&[1, 0, 0, 1]])]);
    let of = |args: &str| {
        json(&dir, &format!("report --expert_statistic_path dump {args}"))["balancedness"].clone()
    };
    let found = of("");
    assert_eq!(found["num_layers"], 3);
    let near = |found: &Value, expected: f64| {
        assert!((found.as_f64().unwrap() - expected).abs() < 1e-5, "{found} {expected}");
    };
    let measured = &found["measured"];
    near(&measured["eplb"], (2.0 / 3.0 + 1.0) / 2.0);
    near(&measured["sglang"], (2.0 / 3.0 + 1.0 + 1.0) / 3.0);
    near(&measured["vllm"], 21.0 / 31.0);
    near(&measured["tensorrt_llm_imbalance_ratio"], 0.25);
    near(&of("--num_layers 5")["measured"]["sglang"], (2.0 / 3.0 + 4.0) / 5.0);
    // Layer 2 is one of multi-token prediction.
    near(&of("--num_layers 2")["measured"]["sglang"], (2.0 / 3.0 + 1.0) / 2.0);
    let text = success(&dir, "report --expert_statistic_path dump").0;
    assert!(text.contains("SGLang: 3 layers, of which 1 without experts count as\neven"), "{text}");
    let row = |name: &str| text.lines().find(|line| line.starts_with(&format!(" {name} "))).unwrap();
    assert!(row("eplb").ends_with(" 0.8333") && row("vLLM").ends_with(" 0.6774"), "{text}");
}

#[test]
fn compare_leaves_the_slots_empty_that_the_first_file_does() {
    let dir = tempfile::tempdir().unwrap();
    dump(&dir, "dump", 2, &[(3, &[&[9, 4, 2, 1]])]);
    let generate = "generate --expert_statistic_path dump --num_slots 8 --reserve_slots 1 --policy trtllm";
    success(&dir, &format!("{generate} --output_path a.eplb.yaml"));
    let rows = json(&dir, "compare --expert_statistic_path dump --ep_size 2 a.eplb.yaml trtllm in-order");
    assert_eq!((&rows[1]["hash"], &rows[1]["moved_slots"]), (&rows[0]["hash"], &Value::from(0)));
    // In order, 0 1 2 and 2 3 0: 4.5 + 4 + 1 and 1 + 1 + 4.5 tokens, mean 8.
    close(&rows[2]["imbalance_ratio"], 1.5 / 8.0);
    // With another number of slots, all are used.
    let rows =
        json(&dir, "compare --expert_statistic_path dump --ep_size 2 --num_slots 6 a.eplb.yaml trtllm");
    assert_eq!((&rows[0]["num_slots"], &rows[1]["num_slots"]), (&Value::from(8), &Value::from(6)));
}
