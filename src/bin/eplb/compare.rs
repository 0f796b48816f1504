//! `eplb compare`: compares placements and policies on one dump.

use std::fmt::Write;

use eplb::report::{Candidate, DumpScore, compare};
use eplb::solve::Policy;
use eplb::stats::Summary;
use eplb::{Error, Result};
use serde::Serialize;

use crate::dump_args::DumpArgs;
use crate::output::{
    OutputFormat, bytes, csv_line, csv_number, four_digits, idle_note, imbalance, left, parse_bytes, percent,
    right, rows_note, table,
};
use crate::plan_args::PlanArgs;

/// Compare placements and policies on one dump
///
/// Prints for each: the imbalance ratio of the ranks with the even split and with the best split of each expert's tokens over
/// its replicas; the worst layer; the gap to the lower bound; duplicates; and the experts to move from the first placement.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb compare --expert_statistic_path data/dumps/dsv2lite-translation --num_slots 72 \\
      in-order trtllm search

The benefit of a new placement on new load, and the weights to move for it, at 16.5 MiB an expert:
  eplb compare --expert_statistic_path data/dumps/dsv2lite-law --bytes_per_slot 16.5MiB \\
      data/expected/dsv2lite-translation.ep8.slots72.yaml trtllm")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// Placements to compare: a configuration file; the name of a policy, to compute a placement from this dump; or in-order, for
    /// no balancing
    #[arg(value_name = "FILE|POLICY", required = true, num_args = 1..)]
    candidates: Vec<String>,

    /// Ranks of the placements [default: the number in the files, or in the dump]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Slots of all ranks together, for policies and in-order [default: as in the first file, or one an expert]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS")]
    num_slots: Option<usize>,

    /// Size of one expert's weights in one layer, such as 42MiB. Prints the bytes to move
    #[arg(long = "bytes_per_slot", alias = "bytes-per-slot", value_name = "SIZE", value_parser = parse_bytes)]
    bytes_per_slot: Option<u64>,

    #[command(flatten)]
    plan: PlanArgs,

    #[command(flatten)]
    format: OutputFormat,
}

#[derive(Serialize)]
struct Row {
    name: String,
    num_slots: usize,
    num_ranks: usize,
    hash: String,
    /// From the first placement; `None` if the numbers of ranks differ.
    moved_slots: Option<usize>,
    moved_bytes: Option<u64>,
    #[serde(flatten)]
    score: DumpScore,
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let stats = args.dump.read()?;
    let candidates =
        args.candidates.iter().map(|name| Candidate::from_name(name)).collect::<Result<Vec<_>>>()?;
    let planner = args.plan.planner(Policy::default(), args.dump.threads);
    let compared = compare(&stats, &candidates, args.ep_size, args.num_slots, &planner)
        .map_err(|e| args.dump.with_path(e))?;
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
    match (args.format.json, args.format.csv) {
        (true, _) => {
            let json = serde_json::to_string(&rows).map_err(|e| Error::Internal(e.to_string()))?;
            Ok(json + "\n")
        }
        (_, true) => Ok(csv(&rows)),
        _ => Ok(describe(args, stats.summary(), &idle_note(&stats)?, &rows)),
    }
}

fn describe(args: &Args, summary: &Summary, idle_note: &str, rows: &[Row]) -> String {
    let mut text = format!(
        "{}: {} experts, {} layers, iterations {}\n{}{idle_note}\n",
        args.dump.name(),
        summary.num_experts,
        summary.layers.len(),
        summary.rows,
        rows_note(&summary.rows)
    );
    let label = |index: usize| ((b'A' + (index % 26) as u8) as char).to_string();
    for (index, row) in rows.iter().enumerate() {
        let Row { name, num_slots, num_ranks, .. } = row;
        let _ = writeln!(text, "{}  {name}: {num_slots} slots on {num_ranks} ranks", label(index));
    }
    text += "\n\
        even        imbalance ratio, (max - mean) / mean of the ranks' tokens, with the even split\n\
        best split  the same with the best split over replicas\n\
        gap         (max - lower bound) / lower bound with the even split; 0 is optimal\n\
        duplicates  slots that repeat an expert of their rank\n\
        moved       experts that a rank holds and does not hold in A\n\n";
    let mut table =
        table(["", "even", "best split", "worst layer", "", "gap", "duplicates", "moved"].map(right));
    for (index, row) in rows.iter().enumerate() {
        let score = &row.score;
        let moved = match (row.moved_slots, row.moved_bytes) {
            (None, _) => "-".to_owned(),
            (Some(slots), None) => slots.to_string(),
            (Some(slots), Some(size)) => format!("{slots}, {}", bytes(size as f64)),
        };
        table.add_row([
            left(label(index)),
            imbalance(score.imbalance_ratio),
            imbalance(score.best_split_imbalance_ratio),
            imbalance(score.worst_imbalance_ratio),
            left(score.worst_layer.map_or(String::new(), |layer| format!("in {layer}"))),
            right(four_digits(score.gap)),
            right(score.num_duplicates),
            right(moved),
        ]);
    }
    let _ = writeln!(text, "{table}");
    let best = rows.iter().enumerate().filter_map(|(i, row)| Some((i, row.score.imbalance_ratio?)));
    let best = best.reduce(|best, row| if row.1 < best.1 { row } else { best });
    if let (Some((index, ratio)), true) = (best, rows.len() > 1) {
        let name = &rows[index].name;
        let _ = writeln!(
            text,
            "\nBest balance: {}, {name}; its hottest rank has {} more load than the mean",
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
        let score = &row.score;
        text += &csv_line([
            row.name.clone(),
            row.num_slots.to_string(),
            row.num_ranks.to_string(),
            csv_number(score.imbalance_ratio),
            csv_number(score.best_split_imbalance_ratio),
            score.worst_layer.map_or(String::new(), |layer| layer.to_string()),
            csv_number(score.worst_imbalance_ratio),
            csv_number(score.gap),
            score.num_duplicates.to_string(),
            row.moved_slots.map_or(String::new(), |slots| slots.to_string()),
            row.moved_bytes.map_or(String::new(), |bytes| bytes.to_string()),
        ]);
    }
    text
}
