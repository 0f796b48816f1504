//! `eplb generate`: generates a configuration file from a dump.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use comfy_table::{Table, TableComponent, presets};
use eplb::generate::{GenerateConfig, Generated, Phase, generate};
use eplb::placement::Placement;
use eplb::report::DEFAULT_NUM_SAMPLES;
use eplb::solve::{DEFAULT_DRIFT, DEFAULT_EFFORT, Objective, Policy, SolveConfig};
use eplb::stats::Summary;
use eplb::{Error, Result};

use crate::dump_args::{DumpArgs, reading_bar};
use crate::output::{four_digits, is_stdout, output_path, right, rows_note};
use crate::plan_args::{one_or_more, policies};

/// Generate a configuration file from a dump (step 2)
///
/// Reads the counts of all ranks, computes a placement and writes it to the configuration file. Prints the imbalance ratio of
/// each layer before and after.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation \\
      --ep_size 8 --num_slots 72 --output_path moe_load_balancer.yaml

DeepSeek's hierarchical policy, for a model with 8 groups of experts on 4 nodes of 8 ranks:
  eplb generate --expert_statistic_path data/dumps/dsr1-extreme --policy deepseek-hierarchical \\
      --num_groups 8 --num_nodes 4 --ep_size 32 --num_slots 288 \\
      --output_path moe_load_balancer.yaml

One slot of each rank left to a fused shared expert, and expert 5 on every rank:
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 --num_slots 88 \\
      --reserve_slots 1 --pin_experts 5 --output_path placement.eplb.yaml

For an engine that routes by rule least-loaded, eplb's default:
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation --objective best-split \\
      --ep_size 8 --num_slots 72 --output_path moe_load_balancer.yaml

A placement that suits two workloads, one of which counts twice:
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation \\
      --expert_statistic_path data/dumps/dsv2lite-law --dump_weights 2,1 \\
      --ep_size 8 --num_slots 72 --output_path moe_load_balancer.yaml

Several recorders of a process, or several ranges, make several dumps: PATH/draft, PATH/300-400.

Flags also work with hyphens: --ep-size, --num-slots.")]
pub struct Args {
    #[command(flatten)]
    dump: DumpArgs,

    /// File to write: moe_load_balancer.yaml for TensorRT-LLM, or *.eplb.yaml, eplb's own, which also holds empty slots. An
    /// existing file is replaced in one step; - is standard output, with nothing else on it
    #[arg(long = "output_path", alias = "output-path", value_name = "FILE")]
    output_path: PathBuf,

    /// Ranks of expert parallelism to place the experts on [default: that of the dump]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Slots of all ranks together, in each layer; a multiple of the ranks. Spare slots, beyond one for each expert, hold
    /// replicas of hot experts [default: the number of experts]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS")]
    num_slots: Option<usize>,

    /// Slots of each rank, such as 9,9,8,8, for ranks with different memory. Slots are numbered as if every rank had as many as
    /// the largest; those that a rank lacks are its last, and empty. Needs an output *.eplb.yaml. For search
    #[arg(long = "rank_num_slots", alias = "rank-num-slots", value_name = "SLOTS", value_delimiter = ',')]
    rank_num_slots: Option<Vec<u32>>,

    /// Slots at the end of each rank that stay empty, for a fused shared expert of the engine. --num_slots includes them, and
    /// nothing is routed to them. Needs an output *.eplb.yaml
    #[arg(long = "reserve_slots", alias = "reserve-slots", value_name = "SLOTS", default_value_t = 0)]
    reserve_slots: usize,

    /// Experts of which every rank holds a replica, such as 0,7: the first slots of each rank. For search
    #[arg(long = "pin_experts", alias = "pin-experts", value_name = "EXPERTS", value_delimiter = ',')]
    pin_experts: Vec<u32>,

    /// Keep one slot of each expert on its home rank, where the experts in order are; only spare slots then change. For search
    #[arg(long = "pin_homes", alias = "pin-homes")]
    pin_homes: bool,

    /// Layers that an engine with an online balancer updates in each iteration. Only written to the file
    #[arg(
        long = "layer_updates_per_iter",
        alias = "layer-updates-per-iter",
        value_name = "LAYERS",
        default_value_t = 0
    )]
    layer_updates_per_iter: u32,

    /// Policy that computes the placement
    #[arg(long, default_value = Policy::default().name(), value_parser = policies())]
    policy: Policy,

    /// Groups of experts in the model's router (n_group of DeepSeek's model configuration). Used by deepseek-hierarchical,
    /// which keeps each group on one node, and by search with --off_node_price
    #[arg(long = "num_groups", alias = "num-groups", value_name = "GROUPS", default_value_t = 1)]
    num_groups: usize,

    /// Nodes of the ranks, each with equally many consecutive ranks. Used by deepseek-hierarchical, which places equally
    /// many groups on each node, and by search with --off_node_price
    #[arg(long = "num_nodes", alias = "num-nodes", value_name = "NODES", default_value_t = 1)]
    num_nodes: usize,

    /// The node of each rank, such as 0,0,0,1: any int32, for nodes of any size. Replaces --num_nodes. For search
    #[arg(
        long = "rank_to_node",
        alias = "rank-to-node",
        value_name = "NODES",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    rank_to_node: Option<Vec<i32>>,

    /// Price of load off its home node. Search minimises max / mean of the ranks' loads, plus this price times the off-node
    /// share. 0: ignore nodes; inf: keep all load on its home node. For search
    #[arg(long = "off_node_price", alias = "off-node-price", value_name = "PRICE", default_value_t = 0.0)]
    off_node_price: f64,

    /// Samples of each dump that the search balances: groups of consecutive rows, mostly iterations; at most one for each row.
    /// With several, the placement suits each sample and not only their sum. For search
    #[arg(long = "num_samples", alias = "num-samples", value_name = "SAMPLES", default_value_t = DEFAULT_NUM_SAMPLES,
        value_parser = one_or_more())]
    num_samples: usize,

    /// Weight of each sample, such as 1,1,2; only ratios matter. One number for each of --num_samples, or for each row if there
    /// are fewer; those of the first dump first [default: a dump's samples share its load equally]. For search
    #[arg(long = "sample_weights", alias = "sample-weights", value_name = "WEIGHTS", value_delimiter = ',')]
    sample_weights: Option<Vec<f64>>,

    /// Minimise a quantile over the samples instead of the mean: a number above 0, up to 1. 0.5: the median; 1: the worst
    /// sample. For search
    #[arg(long, value_name = "QUANTILE")]
    quantile: Option<f64>,

    /// How the engine splits an expert's tokens over its replicas: even-split, or best-split for routing rule least-loaded.
    /// For search
    #[arg(long, default_value = Objective::default().name(), value_parser = objectives())]
    objective: Objective,

    /// Expected drift of the loads from the dump's: the standard deviation of the natural logarithm of an expert's load. For
    /// --objective best-split
    #[arg(long, value_name = "DEVIATION", default_value_t = DEFAULT_DRIFT)]
    drift: f64,

    /// Exchanges that the search evaluates for each slot, about. More effort takes longer and may balance better. For search
    #[arg(long, value_name = "EXCHANGES", default_value_t = DEFAULT_EFFORT, value_parser = one_or_more())]
    effort: usize,

    /// Print nothing to standard output
    #[arg(short, long)]
    quiet: bool,
}

fn objectives() -> impl TypedValueParser<Value = Objective> {
    PossibleValuesParser::new(Objective::ALL.map(Objective::name)).try_map(|name| name.parse::<Objective>())
}

/// Fails if a flag would have no effect with the policy.
fn check_policy_flags(args: &Args) -> Result<()> {
    let search_flags = [
        ("rank_to_node", args.rank_to_node.is_some()),
        ("off_node_price", args.off_node_price != 0.0),
        ("sample_weights", args.sample_weights.is_some()),
        ("quantile", args.quantile.is_some()),
        ("objective", args.objective != Objective::default()),
        ("pin_experts", !args.pin_experts.is_empty()),
        ("pin_homes", args.pin_homes),
    ];
    let ignored = search_flags.into_iter().find(|&(_, is_set)| is_set && args.policy != Policy::Search);
    ignored.map_or(Ok(()), |(flag, _)| {
        Err(Error::InvalidArgument(format!(
            "--{flag} needs policy {}, but the policy is {}; remove the flag or change the policy",
            Policy::Search,
            args.policy
        )))
    })
}

/// Runs the command and returns its output.
pub fn run(args: &Args) -> Result<String> {
    check_policy_flags(args)?;
    let config = GenerateConfig {
        paths: &args.dump.paths,
        path_weights: args.dump.dump_weights.as_deref(),
        output_path: output_path(&args.output_path),
        solve_threads: args.dump.threads,
        options: args.dump.options(),
        num_ranks: args.ep_size,
        num_slots: args.num_slots,
        reserve_slots: args.reserve_slots,
        pin_experts: &args.pin_experts,
        pin_homes: args.pin_homes,
        layer_updates_per_iter: args.layer_updates_per_iter,
        solve: SolveConfig {
            policy: args.policy,
            num_groups: args.num_groups,
            num_nodes: args.num_nodes,
            effort: args.effort,
            rank_to_node: args.rank_to_node.as_deref(),
            off_node_price: args.off_node_price,
            sample_weights: args.sample_weights.as_deref(),
            quantile: args.quantile,
            objective: args.objective,
            drift: args.drift,
            rank_num_slots: args.rank_num_slots.as_deref(),
            pinned_experts: None,
        },
        num_samples: args.num_samples,
    };
    let bar = reading_bar();
    let generated = generate(&config, &mut |phase, done, total| {
        if phase == Phase::Read {
            bar.set_length(total);
            bar.set_position(done);
        }
        Ok(())
    });
    bar.finish_and_clear();
    let generated = generated?;
    Ok(if args.quiet || is_stdout(&args.output_path) { String::new() } else { describe(args, &generated) })
}

fn slots_of_ranks(placement: &Placement) -> String {
    let (slots, width) = (placement.rank_num_slots(), placement.shape().slots_per_rank());
    match slots.iter().all(|&of_rank| of_rank == slots[0]) {
        true if slots[0] as usize == width => format!("{width} each"),
        true => format!("{width} each, the last {} empty", width - slots[0] as usize),
        false => format!("{} to {width} each", slots.iter().min().unwrap_or(&0)),
    }
}

fn describe(args: &Args, generated: &Generated) -> String {
    let Generated { summary, placement, .. } = generated;
    let shape = placement.shape();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} experts, {} layers, iterations {}, {}\n{}{}: {} slots on {} ranks, {}\n\n\
         Imbalance ratio, (max - mean) / mean of the ranks' tokens: 0 is even\n{}\
         Gap, (max - lower bound) / lower bound with the even split, averaged over the\n\
         samples{}: no placement is below the lower bound, so 0 is optimal",
        args.dump.name(),
        summary.num_experts,
        summary.layers.len(),
        summary.rows,
        summary.ranks_text(),
        rows_note(&summary.rows).to_owned() + counts_note(summary),
        args.policy,
        shape.num_slots(),
        shape.num_ranks(),
        slots_of_ranks(placement),
        match args.objective {
            Objective::BestSplit => {
                "After: with the even split of an expert's tokens over its replicas. Best split:\n\
                 with the split that has the lowest max, the objective\n"
            }
            _ => "",
        },
        match (&args.sample_weights, args.quantile) {
            (None, None) => "",
            _ => ", without weights",
        },
    );
    let _ = writeln!(text, "{}\n", table(generated, args.objective == Objective::BestSplit));
    if let Some(share) = generated.off_node_share() {
        let _ = writeln!(text, "off-node share: {share:.4} of the load is not on its group's home node");
    }
    let duplicates = placement.duplicates();
    if !duplicates.is_empty() {
        let _ = writeln!(
            text,
            "{} duplicates: slots that repeat an expert of their rank, as policy {} places them",
            duplicates.len(),
            args.policy
        );
    }
    let _ = writeln!(text, "wrote {} (placement hash {:016x})", args.output_path.display(), placement.hash());
    text
}

/// Says that the counts may be of slots, where nothing in the dump tells. No placement can be computed from those.
fn counts_note(summary: &Summary) -> &'static str {
    match summary.id_kind {
        Some(_) => "",
        None => {
            "It does not say whether it counts experts or slots; experts are assumed. With a placement in force\n\
             TensorRT-LLM counts slots: see --counts\n"
        }
    }
}

/// The table of layers. `with_best_split` adds the column of the best split.
fn table(generated: &Generated, with_best_split: bool) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─');
    let row = |[layer, before, after, best_split, gap, worst_rank]: [String; 6]| {
        let best_split = with_best_split.then_some(best_split);
        let cells = [layer, before, after].into_iter().chain(best_split).chain([gap, worst_rank]);
        cells.map(right).collect::<Vec<_>>()
    };
    table.set_header(row(
        ["layer", "before", "after", "best split", "gap", "worst rank after"].map(str::to_owned)
    ));
    let score = &generated.score;
    for layer in &score.layers {
        table.add_row(row([
            layer.layer.to_string(),
            four_digits(layer.unbalanced.imbalance_ratio),
            four_digits(layer.balance.imbalance_ratio),
            four_digits(layer.best_split_imbalance_ratio),
            four_digits(layer.gap),
            layer.balance.worst_rank.to_string(),
        ]));
    }
    table.add_row(row([
        "average".to_owned(),
        four_digits(score.unbalanced_imbalance_ratio),
        four_digits(score.imbalance_ratio),
        four_digits(score.best_split_imbalance_ratio),
        four_digits(score.gap),
        String::new(),
    ]));
    table
}
