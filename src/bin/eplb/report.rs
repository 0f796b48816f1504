//! `eplb report`: reports the balance of a dump, with a placement as well, or of a prediction and a measurement.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use comfy_table::{Cell, Table};
use eplb::placement::{ConfigFile, Placement};
use eplb::report::{
    AverageBalance, Balance, Balancedness, Document, LayerReport, LoadReport, PredictionReport, Recording,
    Views, placement_for_dump,
};
use eplb::stats::{IdKind, Stats, Summary};
use eplb::{Error, Result};

use crate::dump_args::{DumpArgs, id_kinds};
use crate::output::{
    self, OutputFormat, create_file, csv_line, csv_number, four_digits, imbalance, left, percent, right,
    rows_note, signed, takes_stdout, tokens, write_file,
};
use crate::plan_args::one_or_more;
use crate::{chart, page};

/// Report the balance of a dump, measured and projected onto a placement
///
/// Prints mean, standard deviation and imbalance ratio, (max - mean) / mean, of the ranks' tokens. They are computed per
/// iteration and averaged, as in TensorRT-LLM's report_load_statistics.py, and the balancedness as SGLang and vLLM define it. A
/// configuration file adds the projection: each expert's tokens split evenly over its replicas. A second dump shows that
/// placement on other load.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --config data/expected/dsv2lite-translation.ep8.slots72.yaml \\
      --html report.html --svg report.svg

The prediction from one recording, compared with another:
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --config data/expected/dsv2lite-translation.ep8.slots72.yaml \\
      --against data/dumps/dsv2lite-law

Each expert, as comma-separated values:
  eplb report --expert_statistic_path data/dumps/dsr1-extreme --per_expert --csv")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// Configuration file with the placement to project
    #[arg(long, alias = "projection_eplb_config_path", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Ranks of the configuration file; without one, ranks to place the experts on in order, at most one for each expert [default:
    /// the number in the file, or in the dump]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Layers of the model including dense ones, for SGLang's balancedness, which counts those without experts as even [default:
    /// up to the dump's last layer]
    #[arg(long = "num_layers", alias = "num-layers", value_name = "LAYERS", value_parser = one_or_more())]
    num_layers: Option<usize>,

    /// Directory of a second dump, on whose load the placement is compared with the first. If it counts slots, it was recorded with
    /// the configuration file in use. All of its iterations are used
    #[arg(long, value_name = "DIR", requires = "config")]
    against: Option<PathBuf>,

    /// As --counts, for the dump of --against. Required if that dump does not say what it counts, and the configuration file has as
    /// many slots as experts
    #[arg(long = "against_counts", alias = "against-counts", value_name = "IDS", value_parser = id_kinds(),
        requires = "against")]
    against_counts: Option<IdKind>,

    /// Report on experts and slots instead of ranks; with --json, in addition to ranks
    #[arg(long = "per_expert", alias = "per-expert")]
    per_expert: bool,

    #[command(flatten)]
    format: OutputFormat,

    /// Write a self-contained HTML page with charts; - for standard output, with nothing else on it
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write an SVG chart of each layer's imbalance; - for standard output, with nothing else on it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    let files = [("--html", args.html.as_deref()), ("--svg", args.svg.as_deref())];
    let takes_stdout = takes_stdout(&files, &args.format)?;
    let (html, svg) = (create_file(args.html.as_deref())?, create_file(args.svg.as_deref())?);
    let name = args.dump.name();
    let directory = Path::new(&name);
    let stats = args.dump.read()?;
    let placement = match &args.config {
        Some(path) => Some(load(path, args.ep_size, &stats)?),
        None => None,
    };
    let recording = Recording::new(&stats, placement.as_ref()).map_err(|e| e.in_file(directory))?;
    let report = LoadReport::new(&recording, args.ep_size, args.dump.threads)?;
    if recording.is_ambiguous() {
        log::warn!(
            "{}: it does not say whether it counts experts or slots, and the placement has as many of both; it is read as \
             counts of experts: pass --counts experts, or --counts slots if it was recorded with this placement in use",
            directory.display()
        );
    }
    let second =
        args.against.as_deref().map(|path| args.dump.read_second(path, args.against_counts)).transpose()?;
    let against = match (&args.against, &second) {
        (Some(path), Some(second)) => {
            let second = Recording::new(second, placement.as_ref()).map_err(|e| e.in_file(path))?;
            if second.is_ambiguous() {
                return Err(Error::InvalidArgument(format!(
                    "{}: it does not say whether it counts experts or slots, and the placement has as many of both: pass \
                     --against_counts slots if it was recorded with this placement in use, as TensorRT-LLM counts; else \
                     --against_counts experts",
                    path.display()
                )));
            }
            Some(PredictionReport::new(&recording, &second)?)
        }
        _ => None,
    };
    let document = Document {
        report: &report,
        dump: directory,
        num_layers: args.num_layers,
        placement: args.config.as_deref().zip(placement.as_ref()),
        against: args.against.as_deref().zip(against.as_ref()),
    };
    write_file(html, || page::html(&document))?;
    write_file(svg, || chart::layers(&report))?;
    if takes_stdout {
        return Ok(String::new());
    }

    if args.format.json {
        return Ok(document.to_json(args.per_expert)? + "\n");
    }
    match (&against, args.format.csv) {
        (Some(against), true) => Ok(prediction_csv(against)),
        (None, true) => Ok(csv(args, &report)),
        (_, false) => Ok(describe(args, &document)),
    }
}

/// Loads the placement of a configuration file, for the model of `stats`.
fn load(path: &Path, ep_size: Option<usize>, stats: &Stats) -> Result<Placement> {
    let config = ConfigFile::read(path)?;
    placement_for_dump(&config, stats.summary(), ep_size).map_err(|e| e.in_file(path))
}

/// A column of the table: the name of a view, and how to select it.
type Column = (&'static str, fn(&Views) -> Option<Balance>);

const MEASURED: Column = ("measured", |views| views.measured);
const BEFORE: Column = ("before", |views| views.before);
const AFTER: Column = ("after", |views| views.projected);

/// The views that differ from each other, without those that are unknown.
fn columns(report: &LoadReport) -> Vec<Column> {
    let columns: &[Column] = match (report.shape.is_some(), report.counts_slots) {
        (true, true) => &[BEFORE, AFTER, MEASURED],
        (true, false) => &[BEFORE, AFTER],
        (false, _) if report.is_rearranged => &[BEFORE],
        (false, _) => &[MEASURED],
    };
    let is_known = |(_, view): &&Column| report.layers.iter().all(|layer| view(&layer.ranks).is_some());
    columns.iter().filter(is_known).copied().collect()
}

/// The view of a column in values of another kind.
fn view<T>((name, _): Column, views: &Views<T>) -> Option<&T> {
    match name {
        "before" => views.before.as_ref(),
        "after" => views.projected.as_ref(),
        _ => views.measured.as_ref(),
    }
}

fn describe(args: &Args, document: &Document<'_>) -> String {
    let report = document.report;
    let mut text = dump_line(document.dump, &report.summary, report.counts_slots);
    if let Some((path, placement)) = document.placement {
        let shape = placement.shape();
        let _ = writeln!(
            text,
            "{}: {} slots on {} ranks, {} each",
            path.display(),
            shape.num_slots(),
            shape.num_ranks(),
            shape.slots_per_rank()
        );
    }
    if let Some((path, prediction)) = document.against {
        text += &dump_line(path, &prediction.summary, prediction.counts_slots);
        let _ = writeln!(text, "\n{}\n{}", prediction_sentence(prediction), prediction_table(prediction));
        return text;
    }
    let _ = writeln!(text, "\n{}\n", balance_sentence(report));
    for note in report.notes() {
        let _ = writeln!(text, "Note: {note}\n");
    }
    let columns = columns(report);
    if columns.is_empty() {
        return text;
    }
    let what = match (args.per_expert, report.shape.is_some() || report.counts_slots) {
        (false, _) => "the ranks' tokens",
        (true, false) => "the experts' tokens",
        (true, true) => "the experts' and slots' tokens",
    };
    let _ = writeln!(
        text,
        "Figures of {what}, averaged over {}: imbalance is (max - mean) / mean,\n0 is even; mean/max is 1 if even\n",
        report.summary.rows.unit()
    );
    let views: fn(&LayerReport) -> Views =
        if args.per_expert { |layer| layer.experts } else { |layer| layer.ranks };
    let _ = writeln!(text, "{}", layers_table(args, report, views, &columns));
    if !args.per_expert {
        text += &definitions(report, document.num_layers(), &columns);
    }
    text
}

/// The average balance by the definition of each system.
fn definitions(report: &LoadReport, num_layers: usize, columns: &[Column]) -> String {
    let balancedness = report.balancedness(num_layers);
    let others = num_layers - report.summary.layers.iter().filter(|&&l| (l as usize) < num_layers).count();
    type Figure = fn(&Balancedness) -> Option<f64>;
    let rows: [(&str, &str, Figure); 4] = [
        ("eplb", "mean/max, averaged over layers", |b| b.eplb),
        ("SGLang", "the same, over all of the model", |b| b.sglang),
        ("vLLM", "sum of means / sum of maxima", |b| b.vllm),
        ("TensorRT-LLM", "imbalance ratio; 0 is even", |b| b.tensorrt_llm_imbalance_ratio),
    ];
    let mut header = vec![left("balancedness"), left("")];
    header.extend(columns.iter().map(|(name, _)| right(name)));
    let mut table = output::table(header);
    for (system, rule, figure) in rows {
        let figures =
            columns.iter().map(|&column| right(four_digits(view(column, &balancedness).and_then(figure))));
        table.add_row([left(system), left(rule)].into_iter().chain(figures).collect::<Vec<Cell>>());
    }
    format!(
        "\nThe same load by the definition of each system. They weigh layers differently, so compare\n\
         figures of one definition only. SGLang: {num_layers} layers, of which {others} without experts count as\n\
         even (--num_layers)\n\n{table}\n"
    )
}

fn dump_line(path: &Path, summary: &Summary, counts_slots: bool) -> String {
    format!(
        "{}: {} {}, {} layers, iterations {}, {}\n{}",
        path.display(),
        summary.num_experts,
        if counts_slots { "slots" } else { "experts" },
        summary.layers.len(),
        summary.rows,
        summary.ranks_text(),
        rows_note(&summary.rows)
    )
}

/// The balance as a sentence.
fn balance_sentence(report: &LoadReport) -> String {
    let average = report.averages(|layer| layer.ranks);
    let of = |view: Option<AverageBalance>| view.and_then(|average| average.imbalance_ratio);
    let (before, after, speedup) = (of(average.before), of(average.projected), report.speedup());
    match (before, after, speedup) {
        _ if report.idle.layers.len() == report.layers.len() => {
            "No layer has load, so there is no balance to report".to_owned()
        }
        (Some(before), Some(after), Some(speedup)) => format!(
            "The hottest rank has {} more load than the mean without balancing, {} with this placement:\n\
             the experts' work is done {speedup:.2} times as fast",
            percent(before),
            percent(after)
        ),
        (Some(before), _, _) => {
            let order = match report.is_rearranged {
                true => format!(" with the experts in order on {} ranks", report.num_ranks),
                false => String::new(),
            };
            format!("The hottest rank has {} more load than the mean{order}", percent(before))
        }
        (None, _, _) => format!("The load of each of {} ranks depends on the placement", report.num_ranks),
    }
}

fn layers_table(
    args: &Args,
    report: &LoadReport,
    of: fn(&LayerReport) -> Views,
    columns: &[Column],
) -> Table {
    let mut header = vec![right("layer"), right("mean")];
    let titled = |title: &str, name: &str| {
        right(if columns.len() == 1 { title.to_owned() } else { format!("{title}\n{name}") })
    };
    // Three views with a deviation each would not fit into 80 characters.
    let deviations = columns.len() < 3;
    for (name, _) in columns {
        header.extend(deviations.then(|| titled("std", name)));
        header.push(titled("imbalance", name));
    }
    let figures = |std: Option<f64>, ratio: Option<f64>| {
        let std = || right(std.map_or("-".to_owned(), tokens));
        deviations.then(std).into_iter().chain([imbalance(ratio)])
    };
    let last = columns.last().map_or("", |(name, _)| name);
    let worst = if args.per_expert { "hottest" } else { "worst" };
    header.extend([titled("mean/max", last), titled(worst, last)]);
    let mut table = output::table(header);
    for layer in &report.layers {
        let views = of(layer);
        let balances: Vec<Balance> = columns.iter().filter_map(|(_, view)| view(&views)).collect();
        let ([first, ..], Some(last)) = (&balances[..], balances.last()) else { continue };
        let start = [right(layer.layer), right(tokens(first.mean))];
        let view_cells = balances.iter().flat_map(|b| figures(b.std, b.imbalance_ratio));
        let end = [right(four_digits(last.balancedness)), right(last.worst_rank)];
        table.add_row(start.into_iter().chain(view_cells).chain(end).collect::<Vec<Cell>>());
    }
    let averages = report.averages(of);
    let averages: Vec<&AverageBalance> = columns.iter().filter_map(|&c| view(c, &averages)).collect();
    if let ([first, ..], Some(last)) = (&averages[..], averages.last()) {
        let start = [right("average"), right(tokens(first.mean))];
        let view_cells = averages.iter().flat_map(|b| figures(b.std, b.imbalance_ratio));
        let end = [right(four_digits(last.balancedness)), right("")];
        table.add_row(start.into_iter().chain(view_cells).chain(end).collect::<Vec<Cell>>());
    }
    table
}

/// The views that exist and differ, each with its name in JSON.
fn named<'a, T>(report: &LoadReport, views: &'a Views<T>) -> impl Iterator<Item = (&'static str, &'a T)> {
    let before = views.before.as_ref().filter(|_| report.is_rearranged);
    let views = [
        ("measured", views.measured.as_ref()),
        ("unbalanced", before),
        ("projected", views.projected.as_ref()),
    ];
    views.into_iter().filter_map(|(name, view)| Some((name, view?)))
}

fn csv(args: &Args, report: &LoadReport) -> String {
    let worst = if args.per_expert { "hottest" } else { "worst_rank" };
    let mut text =
        csv_line(["layer", "view", "mean", "std", "max", "imbalance_ratio", "balancedness", worst]);
    let of = |layer: &LayerReport| if args.per_expert { layer.experts } else { layer.ranks };
    for layer in &report.layers {
        for (name, b) in named(report, &of(layer)) {
            let ratios = [b.imbalance_ratio, b.balancedness].map(csv_number);
            let figures = [Some(b.mean), b.std, Some(b.max)].map(csv_number);
            let row = [layer.layer.to_string(), name.to_owned()].into_iter().chain(figures).chain(ratios);
            text += &csv_line(row.chain([b.worst_rank.to_string()]));
        }
    }
    for (name, b) in named(report, &report.averages(of)) {
        let ratios = [b.imbalance_ratio, b.balancedness].map(csv_number);
        let figures = [Some(b.mean), b.std, Some(b.max)].map(csv_number);
        let row = ["average".to_owned(), name.to_owned()].into_iter().chain(figures).chain(ratios);
        text += &csv_line(row.chain([String::new()]));
    }
    text
}

/// The comparison as a sentence, and the meaning of the columns.
fn prediction_sentence(prediction: &PredictionReport) -> String {
    let average = prediction.averages();
    let observed = if prediction.counts_slots { average.measured } else { average.projected };
    let sentence = match average.predicted.zip(observed) {
        Some((predicted, observed)) => {
            let parts = [
                ("drift of the load", average.drift),
                ("iterations", average.iterations),
                ("dispatch", average.dispatch),
            ];
            let largest = parts.into_iter().filter_map(|(name, part)| Some((name, part?)));
            let largest = largest.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
            // Smaller parts are printed as 0.
            let largest = largest.filter(|(_, part)| part.abs() >= 0.00005);
            let largest = largest
                .map_or(String::new(), |(name, part)| format!(", mainly {name} ({})", signed(Some(part))));
            let second = match prediction.counts_slots {
                true => "as the second dump measured it",
                false => "on that of the second dump",
            };
            format!(
                "With this placement, the hottest rank has {} more load than the mean on the load of the first\n\
                 dump, and {} {second}:\na difference of {}{largest}",
                percent(predicted),
                percent(observed),
                signed(Some(observed - predicted)),
            )
        }
        None => "No layer has load in both dumps, so there is nothing to compare".to_owned(),
    };
    let dispatch = match prediction.counts_slots {
        true => "dispatch    routing did not split evenly over replicas",
        false => {
            "dispatch    unknown: the second dump counts experts, so it does not show this placement in\n\
             \x20           use. \"after\" assumes it and the even split; count slots to measure"
        }
    };
    format!(
        "{sentence}\n\n\
         Imbalance ratio of the ranks, and the parts of its change:\n\
         predicted   with the load of the first dump, whether or not the placement was planned for it\n\
         drift       other experts are hot, with the iterations of each dump added up\n\
         iterations  single iterations differ from their sum; the first dump's have {} tokens a layer, the second's {}\n\
         {dispatch}\n\
         shift       the share of the tokens that chose other experts\n{}",
        tokens(average.tokens[0]),
        tokens(average.tokens[1]),
        match prediction.layers.len() - average.num_layers {
            0 => String::new(),
            idle => format!("average     without {idle} layers that have no load in one of the dumps\n"),
        },
    )
}

fn prediction_table(prediction: &PredictionReport) -> Table {
    let observed = if prediction.counts_slots { "measured" } else { "after" };
    let mut table = output::table(
        ["layer", "predicted", observed, "change", "drift", "iterations", "dispatch", "shift"].map(right),
    );
    let average = prediction.averages();
    let rows = prediction.layers.iter().map(|l| {
        let observed = if prediction.counts_slots { l.measured } else { l.projected };
        (l.layer.to_string(), l.predicted, observed, [l.drift, l.iterations, l.dispatch], l.load_shift)
    });
    let observed = if prediction.counts_slots { average.measured } else { average.projected };
    let parts = [average.drift, average.iterations, average.dispatch];
    let last = ("average".to_owned(), average.predicted, observed, parts, average.load_shift);
    for (name, predicted, observed, parts, shift) in rows.chain([last]) {
        let change = predicted.zip(observed).map(|(predicted, observed)| observed - predicted);
        let [drift, iterations, dispatch] = parts.map(|part| right(signed(part)));
        let shift = right(four_digits(shift));
        let change = right(signed(change));
        table.add_row([
            right(name),
            imbalance(predicted),
            imbalance(observed),
            change,
            drift,
            iterations,
            dispatch,
            shift,
        ]);
    }
    table
}

fn prediction_csv(prediction: &PredictionReport) -> String {
    let header = ["predicted", "projected", "measured", "drift", "iterations", "dispatch", "load_shift"];
    let mut text = csv_line(["layer"].into_iter().chain(header));
    let a = prediction.averages();
    let rows = prediction.layers.iter().map(|l| {
        let parts = [l.predicted, l.projected, l.measured, l.drift, l.iterations, l.dispatch, l.load_shift];
        (l.layer.to_string(), parts)
    });
    let last = [a.predicted, a.projected, a.measured, a.drift, a.iterations, a.dispatch, a.load_shift];
    for (name, parts) in rows.chain([("average".to_owned(), last)]) {
        text += &csv_line([name].into_iter().chain(parts.map(csv_number)));
    }
    text
}
