//! `eplb merge`: merges dumps of one recording into one.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use eplb::Result;
use eplb::stats::{Gaps, IdKind, MergeConfig, Merged, Overlap, dump_names, merge};

use crate::dump_args::{id_kinds, with_bar};
use crate::output::layer_list;

/// Merge dumps of one recording, such as those before and after a restart, into one complete dump
///
/// Each rank's file gets the counts of that rank from all dumps, exactly. If ranks differ between the dumps, one file gets the
/// sums over ranks. A dump that was cut short is read as far as each rank got, and the parts of a row that a restart split add
/// up. The dumps need the same experts, layers, and iterations in a row.
///
/// To plan for several workloads do not merge their dumps: generate, report, sweep and compare take --expert_statistic_path more
/// than once.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb merge data/dumps/dsv2lite-translation data/dumps/dsv2lite-law --counts experts \\
      --overlap append --output_path one_after_the_other
  eplb merge data/dumps/dsv2lite-translation data/dumps/dsv2lite-law --counts experts \\
      --overlap add --output_path side_by_side

What to pass when:
  no flag           the engine was restarted at iteration 250 of 0-1000 and recorded on into another folder
  --overlap last    it went back to a checkpoint, so both runs have iterations 200 to 249; the second one's count
  --overlap append  each run counts its iterations from 0
  --overlap add     two engines ran side by side
  --gaps close      some ranks stopped before others, and what not all have is to be left out

A recorder that starts again in the same folder keeps its rank's last file as rank<R>.safetensors.previous. Move
those, and meta_info.json.previous, into a folder of their own under the names without .previous.

Flags also work with hyphens: --output-path.")]
pub struct Args {
    /// Directories of the dumps
    #[arg(value_name = "DUMP", required = true, num_args = 1..)]
    dumps: Vec<PathBuf>,

    /// Directory of the merged dump, without one. It is created if missing
    #[arg(long = "output_path", alias = "output-path", value_name = "DIR")]
    output_path: PathBuf,

    /// What becomes of iterations that several dumps have
    #[arg(long, default_value = "refuse", value_parser = overlaps())]
    overlap: Overlap,

    /// What becomes of iterations that no dump has, or not all ranks
    #[arg(long, default_value = "refuse", value_parser = gaps())]
    gaps: Gaps,

    /// What the dumps count, where they do not say it: required for those of TensorRT-LLM, which count slots while a placement is
    /// in force, else experts
    #[arg(long, value_name = "IDS", value_parser = id_kinds())]
    counts: Option<IdKind>,

    /// Experts that the router chooses for each token. Required if the dumps do not say it
    #[arg(long = "experts_per_token", alias = "experts-per-token", value_name = "EXPERTS")]
    experts_per_token: Option<usize>,

    /// Number of threads; it does not change the result [default: one a core, at most 8]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

fn overlaps() -> impl TypedValueParser<Value = Overlap> {
    let values = [
        PossibleValue::new("refuse").help("an error that names them"),
        PossibleValue::new("first").help("the dump that is listed first counts"),
        PossibleValue::new("last").help("the dump that is listed last counts"),
        PossibleValue::new("add").help("their counts add up, as those of two engines that ran side by side"),
        PossibleValue::new("append")
            .help("each dump is numbered on from the end of the one before it, whatever its own numbers"),
    ];
    PossibleValuesParser::new(values).map(|name| match &*name {
        "first" => Overlap::First,
        "last" => Overlap::Last,
        "add" => Overlap::Add,
        "append" => Overlap::Append,
        _ => Overlap::Refuse,
    })
}

fn gaps() -> impl TypedValueParser<Value = Gaps> {
    let values = [
        PossibleValue::new("refuse").help("an error that names them"),
        PossibleValue::new("close")
            .help("they are left out of all ranks, and later iterations are numbered down"),
    ];
    PossibleValuesParser::new(values).map(|name| if name == "close" { Gaps::Close } else { Gaps::Refuse })
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let config = MergeConfig {
        paths: &args.dumps,
        output_path: &args.output_path,
        overlap: args.overlap,
        gaps: args.gaps,
        counts: args.counts,
        experts_per_token: args.experts_per_token,
        threads: args.threads,
    };
    let merged = with_bar(|progress| merge(&config, progress))?;
    Ok(describe(args, &merged))
}

fn describe(args: &Args, merged: &Merged) -> String {
    let Merged { num_files, num_experts, id_kind, layers, rows, left_out, .. } = merged;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {num_experts} {}, layers {}, iterations {rows}",
        dump_names(&args.dumps, None),
        id_kind.name(),
        layer_list(layers)
    );
    if *left_out > 0 {
        let _ = writeln!(text, "left out: {left_out} {}, which not all ranks have", rows.unit());
    }
    if let Some(declared) = merged.declared {
        let _ = writeln!(
            text,
            "The dumps were to have iterations {declared}: some at the ends are in none of them"
        );
    }
    if let Some(ranks) = &merged.differing_ranks {
        let _ = writeln!(
            text,
            "The dumps have {}: one file has the sums over ranks, so pass --ep_size to other commands",
            ranks.join(" and ")
        );
    }
    let files = if *num_files == 1 { "1 rank file".to_owned() } else { format!("{num_files} rank files") };
    let _ = writeln!(text, "wrote {} ({files})", args.output_path.display());
    text
}
