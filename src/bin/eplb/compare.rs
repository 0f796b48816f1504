//! `eplb compare`: placements and policies side by side on one dump.

use std::fmt::Write;

use eplb::report::{Candidate, DumpScore, compare};
use eplb::solve::Policy;
use eplb::stats::Summary;
use eplb::{Error, Result};
use serde::Serialize;

use crate::dump_args::DumpArgs;
use crate::output::{
    Form, bytes, csv_line, exact, four_digits, imbalance, left, parse_bytes, percent, right, table,
};
use crate::plan_args::PlanArgs;

/// Compare placements or policies on one dump, and what it takes to change from the first to each
///
/// Of each: the imbalance ratio of the ranks if an expert's tokens are split evenly over its replicas, and if they are split in
/// the best way a router can; the worst layer; slots that repeat an expert of their own rank; the gap to the best that any
/// placement could do; and the slots that have to be filled with an expert which their rank does not hold in the first.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (files that ship with eplb):
  eplb compare --expert_statistic_path data/dumps/dsv2lite-translation --num_slots 72 \\
      in-order trtllm search

What a new placement is worth on new load, and the weights to be moved for it, 16.5 MiB an expert:
  eplb compare --expert_statistic_path data/dumps/dsv2lite-law --bytes_per_slot 16.5MiB \\
      data/expected/dsv2lite-translation.ep8.slots72.yaml trtllm")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// Configuration files; names of policies, which place the experts of this dump; or in-order, no balancing at all
    #[arg(value_name = "FILE|POLICY", required = true, num_args = 1..)]
    candidates: Vec<String>,

    /// Ranks [default: what the files say, or as dumped]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Slots of the policies' placements [default: those of the first file, or one an expert]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS")]
    num_slots: Option<usize>,

    /// Size of one expert's weights in one layer, such as 42MiB, to print how much is moved
    #[arg(long = "bytes_per_slot", alias = "bytes-per-slot", value_name = "SIZE", value_parser = parse_bytes)]
    bytes_per_slot: Option<u64>,

    #[command(flatten)]
    plan: PlanArgs,

    #[command(flatten)]
    form: Form,
}

#[derive(Serialize)]
struct Row {
    name: String,
    num_slots: usize,
    num_ranks: usize,
    hash: String,
    /// From the first; `None` where they are not for the same ranks.
    moved_slots: Option<usize>,
    moved_bytes: Option<u64>,
    #[serde(flatten)]
    score: DumpScore,
}

/// Compares, and returns what to print.
pub fn run(args: &Args) -> Result<String> {
    let stats = args.dump.read()?;
    let candidates =
        args.candidates.iter().map(|name| Candidate::of_name(name)).collect::<Result<Vec<_>>>()?;
    let planner = args.plan.planner(Policy::default(), args.dump.threads);
    let compared = compare(&stats, &candidates, args.ep_size, args.num_slots, &planner)
        .map_err(|e| args.dump.named(e))?;
    let rows = args.candidates.iter().zip(compared).map(|(name, compared)| Row {
        name: name.clone(),
        num_slots: compared.placement.shape().num_slots(),
        num_ranks: compared.placement.shape().num_ranks(),
        hash: format!("{:016x}", compared.placement.hash()),
        moved_slots: compared.moved_slots,
        moved_bytes: compared
            .moved_slots
            .zip(args.bytes_per_slot)
            .map(|(slots, bytes)| (slots as u64).saturating_mul(bytes)),
        score: compared.score,
    });
    let rows: Vec<Row> = rows.collect();
    match (args.form.json, args.form.csv) {
        (true, _) => {
            let json = serde_json::to_string(&rows).map_err(|e| Error::Internal(e.to_string()))?;
            Ok(json + "\n")
        }
        (_, true) => Ok(csv(&rows)),
        _ => Ok(describe(args, stats.summary(), &rows)),
    }
}

fn describe(args: &Args, summary: &Summary, rows: &[Row]) -> String {
    let mut text = format!(
        "{}: {} experts, {} layers, iterations {}\n\n",
        args.dump.expert_statistic_path.display(),
        summary.num_experts,
        summary.layers.len(),
        summary.iterations
    );
    let label = |index: usize| ((b'A' + (index % 26) as u8) as char).to_string();
    for (index, row) in rows.iter().enumerate() {
        let Row { name, num_slots, num_ranks, .. } = row;
        let _ = writeln!(text, "{}  {name}: {num_slots} slots on {num_ranks} ranks", label(index));
    }
    text += "\n\
        even        imbalance ratio, (max - mean) / mean of the ranks' tokens, split evenly over replicas\n\
        best split  the same, split as well as a router can\n\
        gap         (max - bound) / bound of what is planned for: no placement is below the bound\n\
        twice       slots that repeat an expert of their own rank\n\
        moved       experts that a rank holds and does not in A\n\n";
    let mut table = table(["", "even", "best split", "worst layer", "", "gap", "twice", "moved"].map(right));
    for (index, row) in rows.iter().enumerate() {
        let of = &row.score;
        let moved = match (row.moved_slots, row.moved_bytes) {
            (None, _) => "-".to_owned(),
            (Some(slots), None) => slots.to_string(),
            (Some(slots), Some(size)) => format!("{slots}, {}", bytes(size as f64)),
        };
        table.add_row([
            left(label(index)),
            imbalance(of.imbalance_ratio),
            imbalance(of.best_split_imbalance_ratio),
            imbalance(of.worst_imbalance_ratio),
            left(of.worst_layer.map_or(String::new(), |layer| format!("in {layer}"))),
            right(four_digits(of.gap)),
            right(of.num_duplicates),
            right(moved),
        ]);
    }
    let _ = writeln!(text, "{table}");
    let evenest = rows.iter().enumerate().filter_map(|(i, row)| Some((i, row.score.imbalance_ratio?)));
    let evenest = evenest.reduce(|best, row| if row.1 < best.1 { row } else { best });
    if let (Some((index, ratio)), true) = (evenest, rows.len() > 1) {
        let name = &rows[index].name;
        let _ = writeln!(
            text,
            "\nThe evenest is {}, {name}: its hottest rank carries {} more than the mean",
            label(index),
            percent(ratio)
        );
    }
    text
}

fn csv(rows: &[Row]) -> String {
    let mut text = csv_line([
        "name",
        "num_slots",
        "num_ranks",
        "imbalance_ratio",
        "best_split_imbalance_ratio",
        "worst_layer",
        "worst_imbalance_ratio",
        "gap",
        "num_duplicates",
        "moved_slots",
        "moved_bytes",
    ]);
    for row in rows {
        let of = &row.score;
        text += &csv_line([
            row.name.clone(),
            row.num_slots.to_string(),
            row.num_ranks.to_string(),
            exact(of.imbalance_ratio),
            exact(of.best_split_imbalance_ratio),
            of.worst_layer.map_or(String::new(), |layer| layer.to_string()),
            exact(of.worst_imbalance_ratio),
            exact(of.gap),
            of.num_duplicates.to_string(),
            row.moved_slots.map_or(String::new(), |slots| slots.to_string()),
            row.moved_bytes.map_or(String::new(), |bytes| bytes.to_string()),
        ]);
    }
    text
}
