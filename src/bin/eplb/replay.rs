//! `eplb replay`: what live rebalancing would have brought on a recording.

use std::path::PathBuf;

use eplb::report::{ReplayConfig, Replayed, Strategy, replay, sweep_replay};
use eplb::stats::Stats;
use eplb::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::output::{create_file, takes_stdout, write_file};
pub use crate::replay_args::Args;
use crate::replay_text::{csv, describe, describe_sweep, head, kept, moved_bytes, sweep_csv};
use crate::{page, replay_chart};

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let files = [("--html", args.html.as_deref()), ("--svg", args.svg.as_deref())];
    let takes_stdout = takes_stdout(&files, &args.format)?;
    let (html, svg) = (create_file(args.html.as_deref())?, create_file(args.svg.as_deref())?);
    let lists = [
        ("--every", args.every.len()),
        ("--window", args.window.len()),
        ("--max_moves", args.max_moves.len()),
    ];
    if let (false, Some((flag, _))) = (args.sweep, lists.into_iter().find(|&(_, given)| given > 1)) {
        return Err(Error::InvalidArgument(format!("{flag} has several values: add --sweep to replay each")));
    }
    if args.dump.dump_weights.is_some() {
        return Err(Error::InvalidArgument(
            "--dump_weights: a replay takes the dumps one after the other, so they have no weights; leave it out".into(),
        ));
    }
    let stats = args.dump.read()?;
    let config = args.config(stats.summary())?;
    if args.sweep {
        let grid = args.grid(&config, stats.summary().rows.len() as usize);
        let points = with_bar(|progress| sweep_replay(&stats, &config, &grid, progress))
            .map_err(|e| args.dump.with_path(e))?;
        return match (args.format.json, args.format.csv) {
            (true, _) => Ok(Value::from(points.iter().map(|point| json!(point)).collect::<Vec<_>>())
                .to_string()
                + "\n"),
            (_, true) => Ok(sweep_csv(&points)),
            _ => Ok(head(args, &stats, &config)? + &describe_sweep(args, &points)),
        };
    }
    let replayed = with_bar(|progress| replay(&stats, &config, &Strategy::ALL, progress))
        .map_err(|e| args.dump.with_path(e))?;
    let json = document(args, &stats, &config, &replayed);
    write_file(html, || page::replay(&json))?;
    write_file(svg, || replay_chart::draw(&replayed, &recordings(args, &stats), config.window))?;
    match (takes_stdout, args.format.json, args.format.csv) {
        (true, ..) => Ok(String::new()),
        (_, true, _) => Ok(json.to_string() + "\n"),
        (_, _, true) => Ok(csv(args, &replayed)),
        _ => Ok(head(args, &stats, &config)? + &describe(args, &stats, &config, &replayed)),
    }
}

/// Calls `work` with the progress of a bar on standard error, drawn only on a terminal.
fn with_bar<T>(work: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<()>) -> Result<T>) -> Result<T> {
    let style = ProgressStyle::with_template("replaying {bar:40} {pos}/{len} iterations {eta}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let result = work(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        Ok(())
    });
    bar.finish_and_clear();
    result
}

/// The name of each recording, and the index of its first iteration.
fn recordings(args: &Args, stats: &Stats) -> Vec<(String, usize)> {
    let mut start = 0;
    let of_dump = |(path, rows): (&PathBuf, &eplb::stats::RowRange)| {
        let first = start;
        start += rows.len() as usize;
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        (name, first)
    };
    args.dump.paths.iter().zip(stats.summary().rows.dumps()).map(of_dump).collect()
}

fn document(args: &Args, stats: &Stats, config: &ReplayConfig<'_>, replayed: &[Replayed]) -> Value {
    let summary = stats.summary();
    let recordings = recordings(args, stats);
    let mut document = json!({
        "eplb": env!("CARGO_PKG_VERSION"),
        "recordings": recordings.iter().zip(&args.dump.paths).map(|((name, first), path)| json!({
            "name": name, "path": path.display().to_string(), "first_index": first
        })).collect::<Vec<_>>(),
        "num_experts": summary.num_experts,
        "num_slots": config.shape.num_slots(),
        "num_ranks": config.shape.num_ranks(),
        "layers": summary.layers,
        "every": config.every,
        "window": config.window,
        "max_moves": config.limits.max_layer_moves,
        "policy": config.first.name(),
        "bytes_per_slot": args.bytes_per_slot,
        "iterations": (config.window as u64..summary.rows.len()).map(|row| summary.rows.first_iteration(row)).collect::<Vec<_>>(),
    });
    if let Value::Object(map) = &mut document {
        for of in replayed {
            let mut value = json!(of);
            if let (Value::Object(value), Some(bytes)) = (&mut value, moved_bytes(args, of.num_moves)) {
                value.insert("moved_bytes".into(), bytes.into());
            }
            map.insert(of.strategy.name().to_owned(), value);
        }
        map.insert("kept".into(), Value::Object(kept(replayed)));
    }
    document
}
