//! The tables of `eplb replay`, and its comma-separated values.

use std::fmt::Write;

use eplb::Result;
use eplb::report::{ReplayConfig, ReplayPoint, Replayed, Strategy};
use eplb::solve::Policy;
use eplb::stats::Stats;
use serde_json::{Map, Value};

use crate::output::{
    bytes, csv_line, csv_number, four_digits, idle_note, left, percent, right, rows_note, table,
};
use crate::replay_args::{Args, Moves};

/// Characters of a curve in the table.
const CURVE: usize = 24;

/// The bytes of so many moves, with --bytes_per_slot.
pub fn moved_bytes(args: &Args, num_moves: usize) -> Option<u64> {
    args.bytes_per_slot.map(|bytes| bytes.saturating_mul(num_moves as u64))
}

/// The number of live plans that were kept, by reason.
pub fn kept(replayed: &[Replayed]) -> Map<String, Value> {
    let mut counts: Map<String, Value> = Map::new();
    let live = replayed.iter().filter(|of| of.strategy == Strategy::Live);
    for reason in live.flat_map(|of| &of.plans).filter_map(|plan| plan.kept) {
        let count = counts.get(reason).and_then(Value::as_u64).unwrap_or(0);
        counts.insert(reason.to_owned(), (count + 1).into());
    }
    counts
}

pub fn head(args: &Args, stats: &Stats, config: &ReplayConfig<'_>) -> Result<String> {
    let summary = stats.summary();
    Ok(format!(
        "{}: {} experts in {} slots on {} ranks, {} layers, {} {}\n{}{}\n",
        args.dump.name(),
        summary.num_experts,
        config.shape.num_slots(),
        config.shape.num_ranks(),
        summary.layers.len(),
        summary.rows.len(),
        if summary.rows.are_iterations() { "iterations" } else { "rows" },
        rows_note(&summary.rows),
        idle_note(stats)?,
    ))
}

pub fn describe(args: &Args, stats: &Stats, config: &ReplayConfig<'_>, replayed: &[Replayed]) -> String {
    let (every, window) = (config.every, config.window);
    let limit = match config.limits.max_layer_moves {
        Some(limit) => format!("at most {limit} moves a layer"),
        None => "any number of moves".to_owned(),
    };
    let mut text = format!(
        "A plan every {every} iterations from the last {window}; live plans have {limit}.\n\
         balance     mean / max of the ranks' tokens, 1 is even; the mean over layers and over the {} iterations after the window\n\
         best split  the same with the best split of each expert's tokens over its replicas\n\
         moves       slots of a layer that receive an expert, mean and most, in the plans that move something\n\n",
        replayed.first().map_or(0, |of| of.iterations.len())
    );
    let mut header = vec![
        left(""),
        right("balance"),
        right("best split"),
        right("moves"),
        right("most"),
        right("plans"),
        right("kept"),
    ];
    if args.bytes_per_slot.is_some() {
        header.push(right("a plan"));
    }
    header.push(left("balance over time"));
    let mut table = table(header);
    let known = || replayed.iter().flat_map(|of| of.iterations.iter().flatten());
    let range = (known().copied().fold(1.0, f64::min), known().copied().fold(0.0, f64::max));
    for of in replayed {
        let has_plans = of.num_plans > 0;
        let or_dash = |text: String| right(if has_plans { text } else { "-".to_owned() });
        let mut row = vec![
            left(of.strategy),
            right(four_digits(of.balancedness)),
            right(four_digits(of.best_split_balancedness)),
            or_dash(format!("{:.1}", of.moves_per_layer)),
            or_dash(of.max_moves_per_layer.to_string()),
            or_dash(of.num_plans.to_string()),
            or_dash(of.num_kept.to_string()),
        ];
        if let Some(size) = args.bytes_per_slot {
            let moves = of.moves_per_layer * stats.summary().layers.len() as f64;
            row.push(or_dash(bytes(moves * size as f64)));
        }
        row.push(left(curve(&of.iterations, range)));
        table.add_row(row);
    }
    let _ = writeln!(text, "{table}");
    let _ = writeln!(text, "\n{}", verdict(replayed));
    for (reason, count) in kept(replayed) {
        let _ = writeln!(text, "Live plans kept the placement {count} times: {reason}");
    }
    text
}

/// One sentence on live plans beside the others.
fn verdict(replayed: &[Replayed]) -> String {
    let of = |strategy: Strategy| replayed.iter().find(|of| of.strategy == strategy);
    let balance = |strategy: Strategy| of(strategy).and_then(|of| of.balancedness);
    let search = Strategy::Fresh(Policy::Search);
    let (Some(never), Some(live), Some(fresh), Some(oracle)) =
        (balance(Strategy::Never), balance(Strategy::Live), balance(search), balance(Strategy::Oracle))
    else {
        return "No iteration after the window has load, so there is nothing to balance.".to_owned();
    };
    let moves = |strategy: Strategy| of(strategy).map_or(0, |of| of.num_moves);
    let share = moves(Strategy::Live) as f64 / moves(search).max(1) as f64;
    format!(
        "Live plans have a balance of {live:.4}, no plans {never:.4}; planning anew by search gives {fresh:.4}, and knowing the\n\
         next iterations {oracle:.4}. Live plans move {} as many experts as planning anew.",
        percent(share)
    )
}

/// Draws a curve of [`CURVE`] characters, from the lowest to the highest value of `range`.
fn curve(values: &[Option<f64>], (low, high): (f64, f64)) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let width = values.len().min(CURVE);
    let of_column = |column: usize| {
        let part = &values[column * values.len() / width..(column + 1) * values.len() / width];
        let known: Vec<f64> = part.iter().flatten().copied().collect();
        if known.is_empty() {
            return ' ';
        }
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let level = (mean - low) / (high - low).max(1e-9) * (LEVELS.len() - 1) as f64;
        LEVELS[(level.round() as usize).min(LEVELS.len() - 1)]
    };
    (0..width).map(of_column).collect()
}

pub fn csv(args: &Args, replayed: &[Replayed]) -> String {
    let mut text = csv_line([
        "strategy",
        "balancedness",
        "best_split_balancedness",
        "moves_per_layer",
        "max_moves_per_layer",
        "num_moves",
        "moved_bytes",
        "num_plans",
        "num_kept",
    ]);
    for of in replayed {
        text += &csv_line([
            of.strategy.name().to_owned(),
            csv_number(of.balancedness),
            csv_number(of.best_split_balancedness),
            of.moves_per_layer.to_string(),
            of.max_moves_per_layer.to_string(),
            of.num_moves.to_string(),
            moved_bytes(args, of.num_moves).map_or(String::new(), |bytes| bytes.to_string()),
            of.num_plans.to_string(),
            of.num_kept.to_string(),
        ]);
    }
    text
}

fn moves_text(max_moves: Moves) -> String {
    max_moves.map_or("any".to_owned(), |moves| moves.to_string())
}

pub fn sweep_csv(points: &[ReplayPoint]) -> String {
    let mut text =
        csv_line(["every", "window", "max_moves", "balancedness", "moves_per_layer", "moves_per_iteration"]);
    for point in points {
        text += &csv_line([
            point.every.to_string(),
            point.window.to_string(),
            point.max_moves.map_or(String::new(), |moves| moves.to_string()),
            csv_number(point.balancedness),
            point.moves_per_layer.to_string(),
            point.moves_per_iteration.to_string(),
        ]);
    }
    text
}

pub fn describe_sweep(args: &Args, points: &[ReplayPoint]) -> String {
    let mut text = "\
        balance  mean / max of the ranks' tokens, 1 is even; the mean over layers and iterations after the longest window\n\
        moves    slots of a layer that receive an expert by a plan that moves something\n\
        an iteration  moves of all layers, over all iterations\n\n"
        .to_owned();
    let mut header = vec![
        right("every"),
        right("window"),
        right("most"),
        right("balance"),
        right("moves"),
        right("an iteration"),
    ];
    if args.bytes_per_slot.is_some() {
        header.push(right("bytes"));
    }
    header.push(left(""));
    let mut table = table(header);
    let is_better = |point: &ReplayPoint, than: &ReplayPoint| {
        point.balancedness >= than.balancedness && point.moves_per_iteration < than.moves_per_iteration
            || point.balancedness > than.balancedness && point.moves_per_iteration <= than.moves_per_iteration
    };
    for point in points {
        let mut row = vec![
            right(point.every),
            right(point.window),
            right(moves_text(point.max_moves)),
            right(four_digits(point.balancedness)),
            right(format!("{:.1}", point.moves_per_layer)),
            right(format!("{:.1}", point.moves_per_iteration)),
        ];
        if let Some(size) = args.bytes_per_slot {
            row.push(right(bytes(point.moves_per_iteration * size as f64)));
        }
        let beaten = points.iter().any(|other| is_better(other, point));
        row.push(left(if beaten { "" } else { "*" }));
        table.add_row(row);
    }
    let _ = writeln!(text, "{table}");
    let _ = writeln!(text, "\n* no other row has better balance with as few moves");
    let best = points.iter().filter(|point| point.balancedness.is_some());
    let best = best.reduce(|best, point| if point.balancedness > best.balancedness { point } else { best });
    if let Some(best) = best {
        let _ = writeln!(
            text,
            "Best balance: {} by a plan every {} iterations from the last {}, {} moves a layer at most",
            four_digits(best.balancedness),
            best.every,
            best.window,
            moves_text(best.max_moves)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_go_from_the_lowest_to_the_highest_value() {
        assert_eq!(curve(&[Some(0.5), Some(0.75), Some(1.0), None], (0.5, 1.0)), "▁▅█ ");
        assert_eq!(curve(&vec![Some(0.9); 100], (0.5, 0.9)), "█".repeat(CURVE));
        assert_eq!(curve(&[], (0.0, 1.0)), "");
        assert_eq!(curve(&[Some(0.9)], (0.9, 0.9)), "▁");
    }
}
