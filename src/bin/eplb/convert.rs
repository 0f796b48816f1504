//! `eplb convert`: converts counts and placements between the file formats of several systems.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use eplb::exchange::{
    CountsFormat, Format, Load, Model, PlacementFormat, detect, read_counts, read_placement, write_counts,
    write_loads, write_placement,
};
use eplb::placement::Placement;
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

SGLang's recorder writes one file a rank in its modes per_pass and per_token. Put them in a directory of
their own:
  eplb convert recording --to sglang-count logical_count.json

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

    /// Layers with experts, by the model's numbers, such as 3-60 or 1-26,28, both ends included. They are the rows of the
    /// input; if it has more rows, those of these numbers [default: row i is layer i, and a row of counts that are all zero is a
    /// dense layer]
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
            "counts: a NumPy array, [layers][experts] or [iterations][layers][experts]"
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
        ..Model::default()
    };
    let from = args.from.map_or_else(|| detect(&args.input), Ok).map_err(|error| match error {
        Error::InvalidArgument(message) => Error::InvalidArgument(format!("{message}; pass --from FORMAT")),
        other => other,
    })?;
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

fn counts(args: &Args, from: CountsFormat, to: CountsFormat, model: &Model) -> Result<String> {
    let read = read_counts(&args.input, from, model)?;
    let output = output_path(&args.output);
    match &read.load {
        Load::Counts(stats) => write_counts(stats, output, to, model)?,
        Load::Fractions(loads) => {
            write_loads(loads, output, to, model).map_err(|error| error.in_file(&args.input))?;
        }
    }
    let summary = read.load.summary();
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
    if let Some(step) = read.first_step {
        let _ = writeln!(text, "put in order: the recording begins at step {step} of the file");
    }
    if let Load::Fractions(_) = read.load {
        let _ = writeln!(text, "loads: some are fractions, which a dump of counts cannot hold");
    }
    if read.empty_steps > 0 {
        let _ = writeln!(text, "skipped: {} empty steps", read.empty_steps);
    }
    let _ = writeln!(text, "wrote {} ({})", args.output.display(), to.name());
    Ok(text)
}

fn placement(args: &Args, from: PlacementFormat, to: PlacementFormat, model: &Model) -> Result<String> {
    let placement = read_placement(&args.input, from, model)?;
    write_placement(&placement, output_path(&args.output), to, model)?;
    Ok(describe(args, from, to, &placement))
}

fn describe(args: &Args, from: PlacementFormat, to: PlacementFormat, placement: &Placement) -> String {
    let shape = placement.shape();
    let empty = match placement.num_empty_slots() {
        0 => String::new(),
        num_empty => format!("empty slots: {num_empty} over all layers, -1 in the file\n"),
    };
    format!(
        "{} ({}): layers {}, {} experts in {} slots on {} ranks, placement hash {:016x}\n{empty}wrote {} ({})\n",
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
