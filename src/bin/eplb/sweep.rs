//! `eplb sweep`: projects the imbalance for several numbers of ranks and slots.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use comfy_table::Table;
use eplb::report::{FewestSlots, SweepPoint, default_num_ranks, fewest_slots, sweep};
use eplb::solve::Policy;
use eplb::stats::{Stats, Summary};
use eplb::{Error, Result};
use serde::Serialize;

use crate::chart;
use crate::dump_args::DumpArgs;
use crate::output::{
    OutputFormat, bytes, create_file, csv_line, csv_number, idle_note, imbalance, left, parse_bytes, percent,
    right, rows_note, table, takes_stdout, write_file,
};
use crate::plan_args::{PlanArgs, policies};

/// Widest bar of the curve, in characters.
const BAR: f64 = 16.0;

/// Project the imbalance for several numbers of ranks and slots, or find the fewest slots for a target
///
/// Computes a placement from the dump for each number of ranks and slots, and projects the imbalance ratio on the same dump:
/// (max - mean) / mean of the ranks' tokens, averaged over iterations and layers.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb sweep --expert_statistic_path data/dumps/dsv2lite-translation --num_slots 64,80,96 \\
      --svg sweep.svg

The fewest slots with the hottest rank within 10 % of the mean, and their memory at 16.5 MiB an expert:
  eplb sweep --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 4,8 \\
      --policy trtllm --target 10% --bytes_per_slot 16.5MiB")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// Numbers of ranks, separated by commas [default: the dump's; for a dump of one rank, 8,16,32]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS,...", value_delimiter = ',')]
    ep_sizes: Vec<usize>,

    /// Numbers of slots of all ranks together, separated by commas [default: 0, 1, 2, 3, 4, 6, 8, ... spare slots a rank, up
    /// to twice the number of experts]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS,...", value_delimiter = ',')]
    slot_counts: Vec<usize>,

    /// Find the fewest slots with at most this imbalance ratio instead, such as 5% or 0.05. A number of 1 or more is per cent
    #[arg(long, value_name = "PERCENT", value_parser = parse_target, conflicts_with = "slot_counts")]
    target: Option<f64>,

    /// Largest number of slots to try for --target [default: twice the number of experts]
    #[arg(long = "most_slots", alias = "most-slots", value_name = "SLOTS", requires = "target")]
    most_slots: Option<usize>,

    /// Size of one expert's weights in one layer, such as 42MiB. Prints the memory of the spare slots
    #[arg(long = "bytes_per_slot", alias = "bytes-per-slot", value_name = "SIZE", value_parser = parse_bytes)]
    bytes_per_slot: Option<u64>,

    /// Policy that computes the placements
    #[arg(long, default_value = Policy::default().name(), value_parser = policies())]
    policy: Policy,

    #[command(flatten)]
    plan: PlanArgs,

    #[command(flatten)]
    format: OutputFormat,

    /// Write the curves as an SVG chart; - for standard output, with nothing else on it
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    svg: Option<PathBuf>,
}

/// Parses `5%`, `5 %`, `5` or `0.05`. Without a unit, a number below 1 is a ratio, and any other is per cent.
fn parse_target(text: &str) -> std::result::Result<f64, String> {
    let (number, is_percent) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim_end(), true),
        None => (text.trim(), false),
    };
    match number.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => {
            Ok(if is_percent || number >= 1.0 { number / 100.0 } else { number })
        }
        _ => Err("expected an imbalance ratio, such as 5% or 0.05".to_owned()),
    }
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let takes_stdout = takes_stdout(&[("--svg", args.svg.as_deref())], &args.format)?;
    let svg = create_file(args.svg.as_deref())?;
    let stats = args.dump.read()?;
    let planner = args.plan.planner(args.policy, args.dump.threads);
    let ep_sizes = match &args.ep_sizes[..] {
        [] => default_num_ranks(stats.summary()).map_err(|e| e.in_file(Path::new(&args.dump.name())))?,
        given => given.to_vec(),
    };
    if let Some(target) = args.target {
        let fewest = |&ranks: &usize| fewest_slots(&stats, ranks, target, args.most_slots, &planner);
        let fewest = ep_sizes.iter().map(fewest).collect::<Result<Vec<_>>>();
        let fewest = fewest.map_err(|e| args.dump.with_path(e))?;
        return match (args.format.json, args.format.csv) {
            (true, _) => json(&fewest),
            (_, true) => Ok(csv(args, stats.summary(), fewest.iter().filter_map(|fewest| fewest.found))),
            _ => Ok(idle_note(&stats)? + &describe_targets(args, &stats, target, &fewest)),
        };
    }
    let points = sweep(&stats, &ep_sizes, &args.slot_counts, &planner).map_err(|e| args.dump.with_path(e))?;
    write_file(svg, || chart::curves(&points))?;
    if takes_stdout {
        return Ok(String::new());
    }
    match (args.format.json, args.format.csv) {
        (true, _) => json(&points),
        (_, true) => Ok(csv(args, stats.summary(), points.into_iter())),
        _ => Ok(describe(args, stats.summary(), &idle_note(&stats)?, &points)),
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))? + "\n")
}

/// Bytes of the spare slots of one rank in all layers.
fn extra_bytes(args: &Args, summary: &Summary, point: &SweepPoint) -> Option<f64> {
    let num_layers = summary.layers.len();
    args.bytes_per_slot.map(|bytes| point.extra_bytes_per_rank(num_layers, bytes))
}

fn describe(args: &Args, summary: &Summary, idle_note: &str, points: &[SweepPoint]) -> String {
    let mut text = format!(
        "{}: {} experts, {} layers, iterations {}; policy {}\n{}{idle_note}\n\
         Imbalance ratio, (max - mean) / mean of the ranks' tokens, projected on the same iterations\n\n",
        args.dump.name(),
        summary.num_experts,
        summary.layers.len(),
        summary.rows,
        args.policy,
        rows_note(&summary.rows)
    );
    let _ = writeln!(text, "{}", points_table(args, summary, points));
    text
}

fn points_table(args: &Args, summary: &Summary, points: &[SweepPoint]) -> Table {
    let memory = if args.bytes_per_slot.is_some() { "spare a rank" } else { "spare" };
    let mut table = table(["ranks", "slots", "a rank", memory, "imbalance", "worst", "layer", ""].map(right));
    let max_ratio = points.iter().filter_map(|point| point.imbalance_ratio).fold(0.0, f64::max);
    for point in points {
        let bar = point.imbalance_ratio.map_or(String::new(), |ratio| bar(ratio / max_ratio));
        let share = percent(point.extra_slots as f64 / summary.num_experts as f64);
        table.add_row([
            right(point.num_ranks),
            right(point.num_slots),
            right(point.num_slots / point.num_ranks),
            right(extra_bytes(args, summary, point).map_or(share, bytes)),
            imbalance(point.imbalance_ratio),
            imbalance(point.worst_imbalance_ratio),
            right(point.worst_layer.map_or("-".to_owned(), |layer| layer.to_string())),
            left(bar),
        ]);
    }
    table
}

/// Draws a bar in steps of an eighth of a character.
fn bar(share: f64) -> String {
    let eighths = (BAR * 8.0 * if share.is_finite() { share } else { 0.0 }).round() as usize;
    let partial = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + partial
}

fn describe_targets(args: &Args, stats: &Stats, target: f64, fewest: &[FewestSlots]) -> String {
    let mut text = String::new();
    let num_experts = stats.summary().num_experts;
    for FewestSlots { num_ranks, found, best, most_slots } in fewest {
        let memory = |point: &SweepPoint| match extra_bytes(args, stats.summary(), point) {
            Some(extra) => format!(", {} a rank", bytes(extra)),
            None => String::new(),
        };
        let imbalance = |point: &SweepPoint| point.imbalance_ratio.map_or("-".to_owned(), percent);
        let _ = match found {
            Some(point) => writeln!(
                text,
                "{num_ranks} ranks need {} slots for {}: {} a rank, {} more than the {num_experts} experts{}; the hottest \
                 rank has {} more load than the mean",
                point.num_slots,
                percent(target),
                point.num_slots / num_ranks,
                point.extra_slots,
                memory(point),
                imbalance(point),
            ),
            None => writeln!(
                text,
                "{num_ranks} ranks do not reach {} with up to {most_slots} slots: the best is {} slots with {}. The remaining \
                 imbalance differs between iterations; `eplb compare` shows how much of it the best split removes",
                percent(target),
                best.num_slots,
                imbalance(best),
            ),
        };
    }
    text
}

fn csv(args: &Args, summary: &Summary, points: impl Iterator<Item = SweepPoint>) -> String {
    let mut text = csv_line([
        "num_ranks",
        "num_slots",
        "extra_slots",
        "imbalance_ratio",
        "worst_imbalance_ratio",
        "worst_layer",
        "extra_bytes_per_rank",
    ]);
    for point in points {
        text += &csv_line([
            point.num_ranks.to_string(),
            point.num_slots.to_string(),
            point.extra_slots.to_string(),
            csv_number(point.imbalance_ratio),
            csv_number(point.worst_imbalance_ratio),
            point.worst_layer.map_or(String::new(), |layer| layer.to_string()),
            csv_number(extra_bytes(args, summary, &point)),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_target_accepts_percentages_and_ratios() {
        assert_eq!(parse_target("5%"), Ok(0.05));
        assert_eq!(parse_target("2.5 %"), Ok(0.025));
        assert_eq!(parse_target("0.05"), Ok(0.05));
        assert_eq!(parse_target("5"), Ok(0.05));
        let parsed = ["0.99", "1", "1%", "100%", "0"].map(|text| parse_target(text).unwrap());
        assert_eq!(parsed, [0.99, 0.01, 0.01, 1.0, 0.0]);
        for wrong in ["", "%", "five", "-1%", "inf"] {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bar_length_is_proportional_to_the_share() {
        assert_eq!(bar(1.0).chars().count(), 16);
        // 16 x 8 / 64 = 2 eighths.
        assert_eq!(bar(1.0 / 64.0), "▎");
        assert_eq!(bar(f64::NAN), "");
    }
}
