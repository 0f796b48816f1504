//! `eplb inspect`: checks and describes a dump, a rank's file or a configuration file.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::path::{Path, PathBuf};

use eplb::placement::{ConfigFile, Expected, replica_counts};
use eplb::stats::{
    Dump, LoadOptions, RankFile, RowRange, RunInfo, dumps_below, is_previous_rank_file, list_dumps,
};
use eplb::{Error, Result};

use crate::output::layer_list;
use crate::{dump_args, incomplete};

/// Check and describe a dump, a rank's file or a configuration file
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb inspect data/dumps/dsv2lite-translation
  eplb inspect data/dumps/dsv2lite-translation/rank3.safetensors
  eplb inspect data/expected/dsv2lite-translation.ep8.slots72.yaml --ep_size 8")]
pub struct Args {
    /// Directory of a dump, a rank<R>.safetensors, or a configuration file
    #[arg(value_name = "DUMP|CONFIG")]
    path: PathBuf,

    /// Ranks of the configuration file, for the checks that depend on it [default: the number in the file, if any]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Experts of a layer, to check a configuration file [default: the highest expert in the file, plus 1]
    #[arg(long = "num_experts", alias = "num-experts", value_name = "EXPERTS")]
    num_experts: Option<usize>,
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let mut text = String::new();
    if args.path.is_dir() {
        dump(&args.path, &mut text).inspect_err(|error| {
            if let Error::IncompleteDump(_) = error {
                crate::print(incomplete::describe(&args.path));
            }
        })?;
    } else if is_previous_rank_file(&args.path)
        || args.path.extension().is_some_and(|extension| extension == "safetensors")
    {
        rank_file(&args.path, &mut text)?;
    } else {
        config_file(args, &mut text)?;
    }
    Ok(text)
}

fn line(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "  {name:<18} {value}");
}

fn dump(path: &Path, text: &mut String) -> Result<()> {
    let dump = Dump::open(path, &LoadOptions { allow_missing_ranks: true, ..Default::default() })?;
    let runs: Vec<RunInfo> = dump.files().iter().filter_map(|file| file.run.clone()).collect();
    let stats = dump_args::read_counts(dump)?;
    let summary = stats.summary();
    let _ = writeln!(text, "{}: statistic dump", path.display());
    match &summary.stage_ranks[..] {
        [_] => line(text, "ranks", summary.num_ranks),
        _ => line(text, "ranks", summary.ranks_text()),
    }
    if summary.num_files != summary.num_ranks {
        line(text, "rank files", summary.num_files);
    }
    if !summary.missing_ranks.is_empty() {
        line(text, "missing ranks", format!("{:?}", summary.missing_ranks));
        let (missing, files) = (summary.missing_ranks.len(), summary.num_files);
        line(text, "complete", format!("no, {missing} of {files} rank files are missing"));
    }
    line(
        text,
        summary.id_kind.unwrap_or_default().name(),
        match summary.experts_per_token {
            0 => format!("{}, unknown number a token", summary.num_experts),
            chosen => format!("{}, {chosen} a token", summary.num_experts),
        },
    );
    line(text, "layers", layer_list(&summary.layers));
    iterations(&summary.rows.first(), text);
    let totals =
        summary.layers.iter().map(|&layer| Ok(stats.layer_totals(layer)?.into_iter().map(u128::from).sum()));
    let totals = totals.collect::<Result<Vec<u128>>>()?;
    let ids = totals.iter().copied().max().unwrap_or(0);
    match summary.experts_per_token {
        0 => line(text, "ids a layer", ids),
        chosen => line(text, "tokens a layer", ids / chosen as u128),
    }
    match totals.iter().filter(|&&total| total == 0).count() {
        0 => {}
        empty => line(text, "layers not counted", empty),
    }
    written_at(&runs, text);
    let ids: BTreeSet<String> = runs.iter().filter_map(|run| Some(run.run_id()?.to_string())).collect();
    if !ids.is_empty() {
        line(text, "run", Vec::from_iter(ids).join(", "));
    }
    let others = dumps_below(path);
    if !others.is_empty() {
        line(text, "other dumps", list_dumps(&others));
    }
    Ok(())
}

/// The number of iterations that were counted and their range, and the rows if these have several.
fn iterations(rows: &RowRange, text: &mut String) {
    line(text, "iterations", format!("{} ({})", rows.num_counted(), rows.iterations));
    if !rows.are_iterations() {
        line(text, "rows", format!("{} {}", rows.len(), rows.unit()));
    }
}

/// When the files were written: the first one, and the last one if that differs.
fn written_at(runs: &[RunInfo], text: &mut String) {
    let times = || runs.iter().filter_map(|run| run.written_at.as_deref());
    match (times().min(), times().max()) {
        (Some(first), Some(last)) if first != last => line(text, "written at", format!("{first} to {last}")),
        (Some(time), _) => line(text, "written at", time),
        (None, _) => {}
    }
}

fn rank_file(path: &Path, text: &mut String) -> Result<()> {
    let file = RankFile::open(path, None)?;
    let _ = writeln!(text, "{}: one rank's file of a statistic dump", path.display());
    if file.layers.is_empty() {
        line(text, "layers", "none: the rank has no experts");
    } else {
        line(text, "experts", file.num_experts);
        line(text, "layers", layer_list(&file.layers));
        iterations(&file.rows, text);
    }
    match &file.run {
        None => line(text, "written by", "a program other than eplb"),
        Some(run) => {
            line(text, "written by", "eplb");
            line(text, "rank", format!("{} of {}", run.ep_rank, run.num_ranks));
            if run.num_files != run.num_ranks {
                line(text, "file", format!("{} of {}", run.rank, run.num_files));
            }
            if let Some(counted) = run.counted.filter(|counted| *counted != run.rows.iterations) {
                line(text, "counted", format!("{counted} of {}", run.rows.iterations));
            }
            written_at(std::slice::from_ref(run), text);
            line(text, "run", run.run_id().map_or("-".to_owned(), |id| id.to_string()));
        }
    }
    Ok(())
}

fn config_file(args: &Args, text: &mut String) -> Result<()> {
    let path = &args.path;
    let config = ConfigFile::read(path)?;
    let kind = if config.own.is_some() { "placement of eplb" } else { "load balancer configuration" };
    let _ = writeln!(text, "{}: {kind}", path.display());
    match config.num_slots {
        Some(slots) => line(text, "slots", slots),
        None => line(text, "slots", "one an expert"),
    }
    line(text, "layer updates", format!("{} an iteration", config.layer_updates_per_iter));
    let Some(assignments) = &config.assignments else {
        line(text, "assignments", "none: experts are placed in order");
        return Ok(());
    };
    let layers: Vec<u32> = assignments.keys().copied().collect();
    line(text, "layers", layer_list(&layers));

    // Without the EP size, check the file as if one rank held all slots.
    let num_ranks = args.ep_size.or(config.ep_size);
    let expected =
        Expected { num_experts: args.num_experts, num_ranks: num_ranks.or(Some(1)), ..Default::default() };
    let placement = config.placement(expected).map_err(|e| e.in_file(path))?;
    let shape = placement.shape();
    line(text, "experts", shape.num_experts());
    let max_replicas =
        placement.iter().flat_map(|(_, experts)| replica_counts(shape, experts)).max().unwrap_or(0);
    line(text, "replicas", format!("1 to {max_replicas} an expert"));
    let Some(num_ranks) = num_ranks else {
        line(text, "ranks", "not in the file; pass --ep_size for all checks");
        return Ok(());
    };
    let slots = placement.rank_num_slots();
    line(
        text,
        "ranks",
        match slots.iter().all(|&of_rank| of_rank == slots[0]) {
            true => format!("{num_ranks}, {} slots each", slots[0]),
            false => format!("{num_ranks}, with {slots:?} slots"),
        },
    );
    if placement.num_empty_slots() > 0 {
        line(text, "empty slots", format!("{} over all layers", placement.num_empty_slots()));
    }
    line(text, "hash", format!("{:016x}", placement.hash()));
    let duplicates = placement.duplicates();
    line(text, "duplicates", format!("{} slots repeat an expert of their rank", duplicates.len()));
    for duplicate in duplicates.iter().take(5) {
        let _ = writeln!(
            text,
            "    layer {}, rank {}: slot {} repeats expert {} of slot {}",
            duplicate.layer, duplicate.rank, duplicate.slot, duplicate.expert, duplicate.first_slot
        );
    }
    if duplicates.len() > 5 {
        let _ = writeln!(text, "    ... and {} more", duplicates.len() - 5);
    }
    Ok(())
}
