//! `eplb sweep`: the imbalance with more slots or other ranks.

use std::fmt::Write;
use std::path::PathBuf;

use comfy_table::Table;
use eplb::report::{Fewest, Point, fewest_slots, sweep, usual_num_ranks};
use eplb::solve::Policy;
use eplb::stats::{Stats, Summary};
use eplb::{Error, Result};
use serde::Serialize;

use crate::chart;
use crate::dump_args::DumpArgs;
use crate::output::{
    Form, begin, bytes, csv_line, exact, finish, imbalance, left, parse_bytes, percent, right, table,
};
use crate::plan_args::{PlanArgs, policies};

/// Widest bar of the curve, in characters.
const BAR: f64 = 16.0;

/// Project the imbalance with more slots or other ranks, and find how many slots a target needs
///
/// For each number of ranks and slots, the experts are placed by the dump, and its imbalance ratio is projected: what the
/// hottest rank carries above the mean, per iteration and averaged over iterations and layers.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (recordings that ship with eplb):
  eplb sweep --expert_statistic_path data/dumps/dsv2lite-translation --num_slots 64,80,96 \\
      --svg sweep.svg

How many slots keep the hottest rank within 10 % of the mean, and what they cost at 16.5 MiB an expert:
  eplb sweep --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 4,8 \\
      --policy trtllm --target 10% --bytes_per_slot 16.5MiB")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// Numbers of ranks, separated by commas [default: as dumped; of a dump of one rank, 8, 16 and 32]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS,...", value_delimiter = ',')]
    ep_sizes: Vec<usize>,

    /// Numbers of slots, separated by commas [default: 0, 1, 2, 3, 4, 6, 8, ... more on each rank, up to twice the experts]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS,...", value_delimiter = ',')]
    nums_slots: Vec<usize>,

    /// Find the fewest slots whose imbalance is at most this, such as 5%, instead
    #[arg(long, value_name = "PERCENT", value_parser = parse_target, conflicts_with = "nums_slots")]
    target: Option<f64>,

    /// Most slots to try for the target [default: twice the experts]
    #[arg(long = "most_slots", alias = "most-slots", value_name = "SLOTS", requires = "target")]
    most_slots: Option<usize>,

    /// Size of one expert's weights in one layer, such as 42MiB, to print what the extra slots take
    #[arg(long = "bytes_per_slot", alias = "bytes-per-slot", value_name = "SIZE", value_parser = parse_bytes)]
    bytes_per_slot: Option<u64>,

    /// Rule for placing experts
    #[arg(long, default_value = Policy::default().name(), value_parser = policies())]
    policy: Policy,

    #[command(flatten)]
    plan: PlanArgs,

    #[command(flatten)]
    form: Form,

    /// Write the curve as a picture, for a slide
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    svg: Option<PathBuf>,
}

/// `5%`, `5 %` or `0.05`.
fn parse_target(text: &str) -> std::result::Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim_end(), 0.01),
        None => (text.trim(), 1.0),
    };
    match number.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number * unit),
        _ => Err("an imbalance expected, such as 5% or 0.05".to_owned()),
    }
}

/// Sweeps, and returns what to print.
pub fn run(args: &Args) -> Result<String> {
    let svg = begin(args.svg.as_deref())?;
    let stats = args.dump.read()?;
    let planner = args.plan.planner(args.policy, args.dump.threads);
    let ep_sizes = match &args.ep_sizes[..] {
        [] => usual_num_ranks(stats.summary()),
        given => given.to_vec(),
    };
    if let Some(target) = args.target {
        let fewest = |&ranks: &usize| fewest_slots(&stats, ranks, target, args.most_slots, &planner);
        let fewest = ep_sizes.iter().map(fewest).collect::<Result<Vec<_>>>();
        let fewest = fewest.map_err(|e| args.dump.named(e))?;
        return match (args.form.json, args.form.csv) {
            (true, _) => json(&fewest),
            (_, true) => Ok(csv(args, stats.summary(), fewest.iter().filter_map(|fewest| fewest.found))),
            _ => Ok(answers(args, &stats, target, &fewest)),
        };
    }
    let points = sweep(&stats, &ep_sizes, &args.nums_slots, &planner).map_err(|e| args.dump.named(e))?;
    finish(svg, || chart::curves(&points))?;
    match (args.form.json, args.form.csv) {
        (true, _) => json(&points),
        (_, true) => Ok(csv(args, stats.summary(), points.into_iter())),
        _ => Ok(describe(args, stats.summary(), &points)),
    }
}

fn json(of: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(of).map_err(|e| Error::Internal(e.to_string()))? + "\n")
}

/// Bytes of the extra slots of all layers, of one rank.
fn extra_bytes(args: &Args, summary: &Summary, point: &Point) -> Option<f64> {
    let num_layers = summary.layers.len();
    args.bytes_per_slot.map(|bytes| point.extra_bytes_per_rank(num_layers, bytes))
}

fn describe(args: &Args, summary: &Summary, points: &[Point]) -> String {
    let mut text = format!(
        "{}: {} experts, {} layers, iterations {}; placed by {}\n\n\
         Imbalance ratio, (max - mean) / mean of the ranks' tokens, as projected on the same iterations\n\n",
        args.dump.expert_statistic_path.display(),
        summary.num_experts,
        summary.layers.len(),
        summary.iterations,
        args.policy
    );
    let _ = writeln!(text, "{}", points_table(args, summary, points));
    text
}

fn points_table(args: &Args, summary: &Summary, points: &[Point]) -> Table {
    let memory = if args.bytes_per_slot.is_some() { "extra a rank" } else { "extra" };
    let mut table = table(["ranks", "slots", "a rank", memory, "imbalance", "worst", "layer", ""].map(right));
    let most = points.iter().filter_map(|point| point.imbalance_ratio).fold(0.0, f64::max);
    for point in points {
        let bar = point.imbalance_ratio.map_or(String::new(), |ratio| bar(ratio / most));
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

/// A bar of eighths of characters.
fn bar(share: f64) -> String {
    let eighths = (BAR * 8.0 * if share.is_finite() { share } else { 0.0 }).round() as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + rest
}

fn answers(args: &Args, stats: &Stats, target: f64, fewest: &[Fewest]) -> String {
    let mut text = String::new();
    let num_experts = stats.summary().num_experts;
    for Fewest { num_ranks, found, best, most_slots } in fewest {
        let memory = |point: &Point| match extra_bytes(args, stats.summary(), point) {
            Some(extra) => format!(", {} a rank", bytes(extra)),
            None => String::new(),
        };
        let carried = |point: &Point| point.imbalance_ratio.map_or("-".to_owned(), percent);
        let _ = match found {
            Some(point) => writeln!(
                text,
                "{num_ranks} ranks need {} slots for {}: {} a rank, {} more than the {num_experts} experts{}; the hottest \
                 rank carries {} more than the mean",
                point.num_slots,
                percent(target),
                point.num_slots / num_ranks,
                point.extra_slots,
                memory(point),
                carried(point),
            ),
            None => writeln!(
                text,
                "{num_ranks} ranks do not come to {} with up to {most_slots} slots: the best is {} slots with {}. What is \
                 left differs from iteration to iteration; look at `eplb compare` for what a router's best split makes of it",
                percent(target),
                best.num_slots,
                carried(best),
            ),
        };
    }
    text
}

fn csv(args: &Args, summary: &Summary, points: impl Iterator<Item = Point>) -> String {
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
            exact(point.imbalance_ratio),
            exact(point.worst_imbalance_ratio),
            point.worst_layer.map_or(String::new(), |layer| layer.to_string()),
            exact(extra_bytes(args, summary, &point)),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_percentages_or_ratios() {
        assert_eq!(parse_target("5%"), Ok(0.05));
        assert_eq!(parse_target("2.5 %"), Ok(0.025));
        assert_eq!(parse_target("0.05"), Ok(0.05));
        for wrong in ["", "%", "five", "-1%", "inf"] {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bars_are_as_long_as_they_say() {
        assert_eq!(bar(1.0).chars().count(), 16);
        // 16 x 8 / 64 is 2 eighths.
        assert_eq!(bar(1.0 / 64.0), "▎");
        assert_eq!(bar(f64::NAN), "");
    }
}
