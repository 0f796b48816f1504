//! `eplb convert`: converts counts and placements between the file formats of several systems.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use eplb::exchange::{
    CountsFormat, Format, Load, Model, PlacementFormat, PlacementRead, detect, read_counts, read_placement,
    write_placement,
};
use eplb::{Error, Result};

use crate::output::{is_stdout, layer_list, output_path};

/// Convert counts or a placement from one system's format into another's
///
/// Counts are converted to counts, or with fractions to loads, placements to placements; `eplb generate` computes a placement from counts. Flags supply
/// what a format lacks. An existing output file is replaced in one step. A dump needs a new directory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb convert data/dumps/dsv2lite-translation --to sglang-count logical_count.json
  eplb convert logical_count.json --to dump from_sglang --experts_per_token 6
  eplb convert data/expected/dsv2lite-translation.ep8.slots64.yaml --ep_size 8 \\
      --to vllm-ascend expert_map.json
  eplb convert expert_map.json --layers 1-26 --to phy2log-npy phy2log.npy
  eplb convert phy2log.npy --from phy2log-npy --layers 1-26 --ep_size 8 --to sglang-map map.json

SGLang's recorder writes one file a rank in its modes per_pass and per_token. INPUT is then a directory
with these files only.

docs/exchange.md describes each format and its source.
Flags also work with hyphens: --ep-size.")]
pub struct Args {
    /// File to read, or the directory of a dump, or of a recording of SGLang with a file a rank
    input: PathBuf,

    /// File to write, or the new directory of a dump; - is standard output, with nothing else on it
    output: PathBuf,

    /// Format of the input [default: detected from the file, which is not possible for a plain array]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    from: Option<Format>,

    /// Format of the output
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    to: Format,

    /// Layers to convert, by the model's numbers, such as 3-60 or 1-26,28, both ends included. Others are left out, such as one
    /// for multi-token prediction. For an input without layer numbers: its rows in this order, or if it has more, the rows of
    /// these numbers [default: all; row i is layer i, and a row of counts that are all zero is a dense layer]
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    layers: Option<Layers>,

    /// Layers of the model including dense ones, for the formats of SGLang and LMDeploy, which have a row for each
    /// [default: up to the last layer with experts]
    #[arg(long = "num_layers", alias = "num-layers", value_name = "LAYERS")]
    num_layers: Option<usize>,

    /// Ranks of a placement. Required unless the input has their number, as expert maps do
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Experts of a layer, to check the input [default: the number in the file]
    #[arg(long = "num_experts", alias = "num-experts", value_name = "EXPERTS")]
    num_experts: Option<usize>,

    /// Experts that the router chooses for each token. Required to convert other counts to a dump
    #[arg(long = "experts_per_token", alias = "experts-per-token", value_name = "EXPERTS")]
    experts_per_token: Option<usize>,

    /// Write counts summed over all iterations
    #[arg(long)]
    sum: bool,

    /// Write an expert map with an expert twice on the first device, which MindIE serves and vllm-ascend does not
    #[arg(long)]
    force: bool,
}

fn formats() -> impl TypedValueParser<Value = Format> {
    let help = |format| match format {
        Format::Counts(CountsFormat::Dump) => "counts: a dump directory, eplb's own and TensorRT-LLM's",
        Format::Counts(CountsFormat::SglangCount) => "counts: SGLang's logical_count in JSON",
        Format::Counts(CountsFormat::SglangPt) => {
            "counts: the .pt files of SGLang's recorder, one or a directory; input only"
        }
        Format::Counts(CountsFormat::Lmdeploy) => "counts: LMDeploy's [layers][experts] in JSON",
        Format::Counts(CountsFormat::Npy) => {
            "counts: a NumPy array, [layers][experts], or [iterations][layers][experts] of several"
        }
        Format::Placement(PlacementFormat::Config) => {
            "placement: the configuration file, eplb's own and TensorRT-LLM's"
        }
        Format::Placement(PlacementFormat::SglangMap) => {
            "placement: SGLang's physical_to_logical_map in JSON, as input also in a .pt"
        }
        Format::Placement(PlacementFormat::ExpertMap) => {
            "placement: the expert map of vllm-ascend and MindIE"
        }
        Format::Placement(PlacementFormat::Phy2logNpy) => "placement: DeepSeek's phy2log as a NumPy array",
        Format::Placement(PlacementFormat::Phy2logJson) => "placement: DeepSeek's phy2log in JSON",
    };
    let values = Format::all().map(|format| PossibleValue::new(format.name()).help(help(format)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Format>())
}

/// A list of layers in one argument: clap takes a `Vec` for several arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layers(Vec<u32>);

/// Parses `3-60` or `1-26,28`, both ends included.
fn layers(text: &str) -> std::result::Result<Layers, String> {
    // More than any model has, so that a typing error does not fill the memory.
    const MAX_LAYERS: usize = 1 << 16;
    let mut layers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| digits.trim().parse::<u16>();
        let (Ok(first), Ok(last)) = (number(first), number(last)) else {
            return Err("expected numbers of layers, such as 3-60 or 1-26,28".into());
        };
        if first > last {
            return Err(format!("{part}: the end is below the start"));
        }
        layers.extend(u32::from(first)..=u32::from(last));
        if layers.len() > MAX_LAYERS {
            return Err(format!("more than {MAX_LAYERS} layers"));
        }
    }
    Ok(Layers(layers))
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let model = Model {
        layers: args.layers.as_ref().map(|layers| &layers.0[..]),
        num_layers: args.num_layers,
        num_experts: args.num_experts,
        num_ranks: args.ep_size,
        experts_per_token: args.experts_per_token,
        allow_lossy: args.force,
        ..Model::default()
    };
    let from = args.from.map_or_else(|| detect(&args.input), Ok).map_err(|error| match error {
        Error::InvalidArgument(message) => Error::InvalidArgument(format!("{message}; pass --from FORMAT")),
        other => other,
    })?;
    check_flags(args, from)?;
    let text = match (from, args.to) {
        (Format::Counts(from), Format::Counts(to)) => counts(args, from, to, &model),
        (Format::Placement(from), Format::Placement(to)) => placement(args, from, to, &model),
        (Format::Counts(_), _) => Err(Error::InvalidArgument(format!(
            "{} has counts ({from}), but {} is a format of placements; eplb generate computes a placement from a dump",
            args.input.display(),
            args.to
        ))),
        (Format::Placement(_), _) => Err(Error::InvalidArgument(format!(
            "{} has a placement ({from}), but {} is a format of counts",
            args.input.display(),
            args.to
        ))),
    }?;
    Ok(if is_stdout(&args.output) { String::new() } else { text })
}

/// Refuses flags that would do nothing.
fn check_flags(args: &Args, from: Format) -> Result<()> {
    let has_all_rows = |format| {
        matches!(
            format,
            Format::Counts(CountsFormat::SglangCount | CountsFormat::Lmdeploy)
                | Format::Placement(PlacementFormat::SglangMap)
        )
    };
    let is_counts = matches!(from, Format::Counts(_));
    for (is_idle, flag, what) in [
        (
            args.num_layers.is_some() && !has_all_rows(args.to),
            "--num_layers",
            "writes SGLang's and LMDeploy's formats",
        ),
        (args.ep_size.is_some() && is_counts, "--ep_size", "converts placements"),
        (args.experts_per_token.is_some() && !is_counts, "--experts_per_token", "converts counts"),
        (args.sum && !is_counts, "--sum", "converts counts"),
        (
            args.force && args.to != Format::Placement(PlacementFormat::ExpertMap),
            "--force",
            "writes expert maps (vllm-ascend)",
        ),
    ] {
        if is_idle {
            let message =
                format!("{flag} has no effect from {from} to {}: it is for a command that {what}", args.to);
            return Err(Error::InvalidArgument(message));
        }
    }
    Ok(())
}

/// The line that names the layers of the input that are not in the output.
fn left_out(layers: &[u32]) -> String {
    match layers {
        [] => String::new(),
        _ => format!("left out, not in --layers: {}\n", layer_list(layers)),
    }
}

fn counts(args: &Args, from: CountsFormat, to: CountsFormat, model: &Model) -> Result<String> {
    let read = read_counts(&args.input, from, model)?;
    let load = if args.sum { read.load.sum_iterations()? } else { read.load };
    load.write(output_path(&args.output), to, model).map_err(|error| match error {
        Error::InvalidDump(_) => error.in_file(&args.input),
        other => other,
    })?;
    let summary = load.summary();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} ({}): {} {} of layers {}, {} experts",
        args.input.display(),
        from.name(),
        summary.rows.len(),
        summary.rows.unit(),
        layer_list(&summary.layers),
        summary.num_experts
    );
    if !read.dense_layers.is_empty() {
        let _ = writeln!(text, "dense layers, without counts: {}", layer_list(&read.dense_layers));
    }
    text.push_str(&left_out(&read.left_out));
    if let Some(step) = read.first_step {
        let _ = writeln!(text, "put in order: the recording begins at step {step} of the file");
    }
    if let Load::Fractions(_) = load {
        let _ = writeln!(text, "loads: some are fractions, which a dump of counts cannot hold");
    }
    if read.empty_steps > 0 {
        let _ = writeln!(text, "skipped: {} empty steps", read.empty_steps);
    }
    let _ = writeln!(text, "wrote {} ({})", args.output.display(), to.name());
    Ok(text)
}

fn placement(args: &Args, from: PlacementFormat, to: PlacementFormat, model: &Model) -> Result<String> {
    let read = read_placement(&args.input, from, model)?;
    write_placement(&read.placement, output_path(&args.output), to, model)?;
    Ok(describe(args, from, to, &read))
}

fn describe(args: &Args, from: PlacementFormat, to: PlacementFormat, read: &PlacementRead) -> String {
    let PlacementRead { placement, left_out: others } = read;
    let left_out = left_out(others);
    let shape = placement.shape();
    let empty = match placement.num_empty_slots() {
        0 => String::new(),
        num_empty => format!("empty slots: {num_empty} over all layers, -1 in the file\n"),
    };
    format!(
        "{} ({}): layers {}, {} experts in {} slots on {} ranks, placement hash {:016x}\n{left_out}{empty}wrote {} ({})\n",
        args.input.display(),
        from.name(),
        layer_list(placement.layers()),
        shape.num_experts(),
        shape.num_slots(),
        shape.num_ranks(),
        placement.hash(),
        args.output.display(),
        to.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_parses_numbers_and_inclusive_ranges() {
        assert_eq!(layers("3-5"), Ok(Layers(vec![3, 4, 5])));
        assert_eq!(layers("1-2,5, 7"), Ok(Layers(vec![1, 2, 5, 7])));
        assert_eq!(layers("5-3"), Err("5-3: the end is below the start".into()));
        for wrong in ["", "a", "3-", "-3", "3..5", "70000"] {
            assert_eq!(
                layers(wrong),
                Err("expected numbers of layers, such as 3-60 or 1-26,28".into()),
                "{wrong}"
            );
        }
        assert!(layers("0-65535,0").is_err());
    }
}
