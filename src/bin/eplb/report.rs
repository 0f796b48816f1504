//! `eplb report`: how balanced a dump is, how a placement would balance it, and how it did.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use comfy_table::{Cell, Table};
use eplb::Result;
use eplb::placement::{ConfigFile, Placement};
use eplb::report::{
    Against, AverageBalance, Balance, Document, LayerReport, LoadReport, Recording, Views, placement_of,
};
use eplb::stats::{Stats, Summary};

use crate::dump_args::DumpArgs;
use crate::output::{
    self, Form, begin, csv_line, exact, finish, four_digits, imbalance, percent, right, signed, tokens,
};
use crate::{chart, page};

/// Report how balanced a dump is, how a placement would balance it, and how it did
///
/// Mean, standard deviation and imbalance ratio, (max - mean) / mean, of the ranks' tokens, taken per iteration and averaged, as
/// in TensorRT-LLM's report_load_statistics.py. With a configuration file, the same figures projected: an expert's tokens
/// split evenly over its replicas. With a second dump, recorded with that file in force, the prediction and the measurement.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (files that ship with eplb):
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --config data/expected/dsv2lite-translation.ep8.slots72.yaml \\
      --html report.html --svg report.svg

The prediction from one recording, compared with another:
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --config data/expected/dsv2lite-translation.ep8.slots72.yaml \\
      --against data/dumps/dsv2lite-law

Single experts, as comma-separated values:
  eplb report --expert_statistic_path data/dumps/dsr1-extreme --per_expert --csv")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// Configuration file to project
    #[arg(long, alias = "projection_eplb_config_path", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Ranks of the configuration file, or to arrange the experts on in order [default: what the file says, or as dumped]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// A second dump, recorded with the configuration file in force: of slots, or of experts. All of its iterations are used
    #[arg(long, value_name = "DIR", requires = "config")]
    against: Option<PathBuf>,

    /// Report on single experts and slots instead of ranks; with --json, in addition
    #[arg(long = "per_expert", alias = "per-expert")]
    per_expert: bool,

    #[command(flatten)]
    form: Form,

    /// Write a page with pictures: one file that needs nothing else, to look at in a browser, print or send
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write a picture of each layer's imbalance, for a slide
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Reports, and returns what to print.
pub fn run(args: &Args) -> Result<String> {
    let (html, svg) = (begin(args.html.as_deref())?, begin(args.svg.as_deref())?);
    let directory = &args.dump.expert_statistic_path;
    let stats = args.dump.read()?;
    let placement = match &args.config {
        Some(path) => Some(load(path, args.ep_size, &stats)?),
        None => None,
    };
    let recording = Recording::new(&stats, placement.as_ref()).map_err(|e| e.in_file(directory))?;
    let report = LoadReport::new(&recording, args.ep_size, args.dump.threads)?;
    let second = args.against.as_deref().map(|path| args.dump.read_second(path)).transpose()?;
    let against = match (&args.against, &second) {
        (Some(path), Some(second)) => {
            let second = Recording::new(second, placement.as_ref()).map_err(|e| e.in_file(path))?;
            Some(Against::new(&recording, &second)?)
        }
        _ => None,
    };
    let document = Document {
        report: &report,
        dump: directory,
        placement: args.config.as_deref().zip(placement.as_ref()),
        against: args.against.as_deref().zip(against.as_ref()),
    };
    finish(html, || page::html(&document))?;
    finish(svg, || chart::layers(&report))?;

    if args.form.json {
        return Ok(document.to_json(args.per_expert)? + "\n");
    }
    match (&against, args.form.csv) {
        (Some(against), true) => Ok(against_csv(against)),
        (None, true) => Ok(csv(args, &report)),
        (_, false) => Ok(describe(args, &document)),
    }
}

/// The placement of the file, for the model of `stats`.
fn load(path: &Path, ep_size: Option<usize>, stats: &Stats) -> Result<Placement> {
    let config = ConfigFile::read(path)?;
    placement_of(&config, stats.summary(), ep_size).map_err(|e| e.in_file(path))
}

/// A view with its name, as the table shows it.
type Column = (&'static str, fn(&Views) -> Option<Balance>);

const MEASURED: Column = ("measured", |views| Some(views.measured));
const BEFORE: Column = ("before", |views| Some(*views.before()));
const AFTER: Column = ("after", |views| views.projected);

/// The views that say something of their own.
fn columns(report: &LoadReport) -> &'static [Column] {
    match (report.shape.is_some(), report.counts_slots) {
        (true, true) => &[BEFORE, AFTER, MEASURED],
        (true, false) => &[BEFORE, AFTER],
        (false, _) if report.layers.iter().any(|layer| layer.ranks.unbalanced.is_some()) => &[BEFORE],
        (false, _) => &[MEASURED],
    }
}

fn describe(args: &Args, document: &Document<'_>) -> String {
    let report = document.report;
    let mut text = about_dump(document.dump, &report.summary, report.counts_slots);
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
    if let Some((path, against)) = document.against {
        text += &about_dump(path, &against.summary, against.measured);
        let _ = writeln!(text, "\n{}\n{}", verdict_against(against), against_table(against));
        return text;
    }
    let _ = writeln!(text, "\n{}\n", verdict(report));
    let what = match (args.per_expert, report.shape.is_some() || report.counts_slots) {
        (false, _) => "the ranks' tokens",
        (true, false) => "the experts' tokens",
        (true, true) => "the experts' and slots' tokens",
    };
    let _ = writeln!(
        text,
        "Of {what}, per iteration and averaged: imbalance is (max - mean) / mean,\n0 is even; mean / max is 1 where it is even\n"
    );
    let of: fn(&LayerReport) -> Views =
        if args.per_expert { |layer| layer.experts } else { |layer| layer.ranks };
    let _ = writeln!(text, "{}", layers_table(args, report, of));
    text
}

fn about_dump(path: &Path, summary: &Summary, counts_slots: bool) -> String {
    format!(
        "{}: {} {}, {} layers, iterations {}, {} ranks\n",
        path.display(),
        summary.num_experts,
        if counts_slots { "slots" } else { "experts" },
        summary.layers.len(),
        summary.iterations,
        summary.num_ranks
    )
}

/// The answer as a sentence.
fn verdict(report: &LoadReport) -> String {
    let average = report.averages(|layer| layer.ranks);
    let Some(before) = average.before().imbalance_ratio else {
        return "No layer has load in every iteration, so there is nothing to be said of balance".to_owned();
    };
    let after = average.projected.and_then(|average| average.imbalance_ratio).zip(report.speedup());
    match after {
        Some((after, speedup)) => format!(
            "The hottest rank carries {} more than the mean without balancing, {} with this placement:\n\
             the experts' work is done {speedup:.2} times as fast",
            percent(before),
            percent(after)
        ),
        None => {
            let arranged = match report.layers.iter().any(|layer| layer.ranks.unbalanced.is_some()) {
                true => format!(" with the experts in order on {} ranks", report.num_ranks),
                false => String::new(),
            };
            format!("The hottest rank carries {} more than the mean{arranged}", percent(before))
        }
    }
}

fn layers_table(args: &Args, report: &LoadReport, of: fn(&LayerReport) -> Views) -> Table {
    let columns = columns(report);
    let mut header = vec![right("layer"), right("mean")];
    let titled = |title: &str, name: &str| {
        right(if columns.len() == 1 { title.to_owned() } else { format!("{title}\n{name}") })
    };
    // Three views with a deviation each would not fit a terminal.
    let deviations = columns.len() < 3;
    for (name, _) in columns {
        header.extend(deviations.then(|| titled("std", name)));
        header.push(titled("imbalance", name));
    }
    let figures = |std: f64, ratio: Option<f64>| {
        deviations.then(|| right(tokens(std))).into_iter().chain([imbalance(ratio)])
    };
    let &(last, view) = columns.last().unwrap_or(&MEASURED);
    let worst = if args.per_expert { "hottest" } else { "worst" };
    header.extend([titled("mean/max", last), titled(worst, last)]);
    let mut table = output::table(header);
    for layer in &report.layers {
        let views = of(layer);
        let balances = columns.iter().filter_map(|(_, view)| view(&views));
        let first = [right(layer.layer), right(tokens(views.measured.mean))];
        let of_views = balances.flat_map(|b| figures(b.std, b.imbalance_ratio));
        let last = view(&views).unwrap_or(views.measured);
        let end = [right(four_digits(last.balancedness)), right(last.worst_rank)];
        table.add_row(first.into_iter().chain(of_views).chain(end).collect::<Vec<Cell>>());
    }
    let average = report.averages(of);
    let averages: Vec<AverageBalance> = columns
        .iter()
        .map(|&(name, _)| match name {
            "before" => *average.before(),
            "after" => average.projected.unwrap_or(average.measured),
            _ => average.measured,
        })
        .collect();
    let first = [right("average"), right(tokens(average.measured.mean))];
    let of_views = averages.iter().flat_map(|b| figures(b.std, b.imbalance_ratio));
    let end = averages.last().map(|b| right(four_digits(b.balancedness)));
    table.add_row(first.into_iter().chain(of_views).chain(end).chain([right("")]).collect::<Vec<Cell>>());
    table
}

fn csv(args: &Args, report: &LoadReport) -> String {
    let worst = if args.per_expert { "hottest" } else { "worst_rank" };
    let mut text =
        csv_line(["layer", "view", "mean", "std", "max", "imbalance_ratio", "balancedness", worst]);
    let of = |layer: &LayerReport| if args.per_expert { layer.experts } else { layer.ranks };
    for layer in &report.layers {
        for (name, b) in of(layer).named() {
            let ratios = [b.imbalance_ratio, b.balancedness].map(exact);
            let figures = [b.mean, b.std, b.max].map(|figure| figure.to_string());
            let row = [layer.layer.to_string(), name.to_owned()].into_iter().chain(figures).chain(ratios);
            text += &csv_line(row.chain([b.worst_rank.to_string()]));
        }
    }
    for (name, b) in report.averages(of).named() {
        let ratios = [b.imbalance_ratio, b.balancedness].map(exact);
        let figures = [b.mean, b.std, b.max].map(|figure| figure.to_string());
        let row = ["average".to_owned(), name.to_owned()].into_iter().chain(figures).chain(ratios);
        text += &csv_line(row.chain([String::new()]));
    }
    text
}

/// What came of the prediction as a sentence, and what the columns are.
fn verdict_against(against: &Against) -> String {
    let average = against.averages();
    let came = if against.measured { average.measured } else { average.projected };
    let sentence = match average.predicted.zip(came) {
        Some((predicted, came)) => {
            let parts = [
                ("drift of the load", average.drift),
                ("iterations", average.iterations),
                ("dispatch", average.dispatch),
            ];
            let most = parts.into_iter().filter_map(|(name, part)| Some((name, part?)));
            let most = most.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
            let most = most
                .map_or(String::new(), |(name, part)| format!(", mainly {name} ({})", signed(Some(part))));
            format!(
                "The hottest rank was predicted to carry {} more than the mean, and {} {}:\na difference of {}{most}",
                percent(predicted),
                if against.measured { "carried" } else { "by the second dump's load would carry" },
                percent(came),
                signed(Some(came - predicted)),
            )
        }
        None => "No layer has load in every iteration of both dumps, so there is nothing to be compared"
            .to_owned(),
    };
    let dispatch = match against.measured {
        true => "dispatch    what the router did beyond an even split over replicas",
        false => {
            "dispatch    unknown: the second dump counts experts, so it does not say which replica served;\n\
             \x20           \"after\" splits them evenly. Count slots to know"
        }
    };
    format!(
        "{sentence}\n\n\
         Imbalance ratio of the ranks, and what adds up to its change:\n\
         drift       other experts are hot, with the iterations of each dump added up\n\
         iterations  they differ more from each other, or less; the first dump's have {} tokens a layer, the second's {}\n\
         {dispatch}\n\
         shift       of the load, the share that chose other experts\n",
        tokens(average.tokens[0]),
        tokens(average.tokens[1]),
    )
}

fn against_table(against: &Against) -> Table {
    let came = if against.measured { "measured" } else { "after" };
    let mut table = output::table(
        ["layer", "predicted", came, "change", "drift", "iterations", "dispatch", "shift"].map(right),
    );
    let average = against.averages();
    let rows = against.layers.iter().map(|l| {
        let came = if against.measured { l.measured } else { l.projected };
        (l.layer.to_string(), l.predicted, came, [l.drift, l.iterations, l.dispatch], l.load_shift)
    });
    let came = if against.measured { average.measured } else { average.projected };
    let parts = [average.drift, average.iterations, average.dispatch];
    let last = ("average".to_owned(), average.predicted, came, parts, average.load_shift);
    for (name, predicted, came, parts, shift) in rows.chain([last]) {
        let change = predicted.zip(came).map(|(predicted, came)| came - predicted);
        let [drift, iterations, dispatch] = parts.map(|part| right(signed(part)));
        let shift = right(four_digits(shift));
        let change = right(signed(change));
        table.add_row([
            right(name),
            imbalance(predicted),
            imbalance(came),
            change,
            drift,
            iterations,
            dispatch,
            shift,
        ]);
    }
    table
}

fn against_csv(against: &Against) -> String {
    let header = ["predicted", "projected", "measured", "drift", "iterations", "dispatch", "load_shift"];
    let mut text = csv_line(["layer"].into_iter().chain(header));
    let a = against.averages();
    let rows = against.layers.iter().map(|l| {
        let parts = [l.predicted, l.projected, l.measured, l.drift, l.iterations, l.dispatch, l.load_shift];
        (l.layer.to_string(), parts)
    });
    let last = [a.predicted, a.projected, a.measured, a.drift, a.iterations, a.dispatch, a.load_shift];
    for (name, parts) in rows.chain([("average".to_owned(), last)]) {
        text += &csv_line([name].into_iter().chain(parts.map(exact)));
    }
    text
}
