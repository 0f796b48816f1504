//! `eplb generate`: a dump becomes a configuration file.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use comfy_table::{Table, TableComponent, presets};
use eplb::generate::{GenerateConfig, Generated, Phase, generate};
use eplb::report::DEFAULT_NUM_SAMPLES;
use eplb::solve::{DEFAULT_DRIFT, DEFAULT_EFFORT, Objective, Policy, SolveConfig};
use eplb::stats::LoadOptions;
use eplb::{Error, Result};

use crate::dump_args::reading_bar;
use crate::output::{four_digits, right};
use crate::plan_args::{one_or_more, policies};

/// Turn a statistic dump into a configuration file (step 2)
///
/// Reads the counts that every rank dumped, decides how many slots each expert gets and on which ranks, writes the
/// configuration file, and prints how uneven the ranks are before and after.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (recordings that ship with eplb):
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation \\
      --ep_size 8 --num_slots 72 --output_path moe_load_balancer.yaml

DeepSeek's rule for a model with 8 groups of experts, on 4 nodes of 8 ranks:
  eplb generate --expert_statistic_path data/dumps/dsr1-extreme --policy deepseek-hierarchical \\
      --num_groups 8 --num_nodes 4 --ep_size 32 --num_slots 288 \\
      --output_path moe_load_balancer.yaml

For an engine that routes to the least loaded replica:
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation --objective best-split \\
      --ep_size 8 --num_slots 72 --output_path moe_load_balancer.yaml

Flags may be written with hyphens too: --ep-size, --num-slots.")]
pub struct Args {
    /// Directory of the dump: meta_info.json and one rank<R>.safetensors a rank
    #[arg(long = "expert_statistic_path", alias = "expert-statistic-path", value_name = "DIR")]
    expert_statistic_path: PathBuf,

    /// Configuration file to write; an existing one is replaced in one step
    #[arg(long = "output_path", alias = "output-path", value_name = "FILE")]
    output_path: PathBuf,

    /// Ranks to place the experts on [default: the number of rank files]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Slots of all ranks together, a multiple of the ranks; those beyond the experts hold copies of hot experts
    /// [default: the number of experts]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS")]
    num_slots: Option<usize>,

    /// First iteration to use [default: the dump's first]
    #[arg(long = "iter_start", alias = "iter-start", value_name = "ITER")]
    iter_start: Option<u64>,

    /// First iteration not to use any more [default: the dump's end]
    #[arg(long = "iter_stop", alias = "iter-stop", value_name = "ITER")]
    iter_stop: Option<u64>,

    /// Layers that an engine with an online balancer moves an iteration, written to the file as it is
    #[arg(
        long = "layer_updates_per_iter",
        alias = "layer-updates-per-iter",
        value_name = "LAYERS",
        default_value_t = 0
    )]
    layer_updates_per_iter: u32,

    /// Rule for placing experts
    #[arg(long, default_value = Policy::default().name(), value_parser = policies())]
    policy: Policy,

    /// Groups of experts from which the model's router chooses a few for each token (n_group in DeepSeek's model
    /// configurations). deepseek-hierarchical keeps each group on one node, and so does search at a price; otherwise ignored
    #[arg(long = "num_groups", alias = "num-groups", value_name = "GROUPS", default_value_t = 1)]
    num_groups: usize,

    /// Nodes that the ranks are on, equally many consecutive ranks on each. deepseek-hierarchical gives each node
    /// equally many groups, and search goes by them at a price; otherwise ignored
    #[arg(long = "num_nodes", alias = "num-nodes", value_name = "NODES", default_value_t = 1)]
    num_nodes: usize,

    /// The node of each rank, any int32, such as 0,0,0,1: in place of num_nodes, for nodes of any size. For search
    #[arg(
        long = "rank_to_node",
        alias = "rank-to-node",
        value_name = "NODES",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    rank_to_node: Option<Vec<i32>>,

    /// The price of load that is not on the home node of its group, for search. It minimises the most loaded rank's load over the
    /// mean, plus this times the share of the load off its node. 0: nodes do not matter; inf: no load leaves its node
    #[arg(long = "off_node_price", alias = "off-node-price", value_name = "PRICE", default_value_t = 0.0)]
    off_node_price: f64,

    /// Samples for the search to level each of, so that the plan holds for each and not only for their sum: the iterations in
    /// as many groups that follow each other
    #[arg(long = "num_samples", alias = "num-samples", value_name = "SAMPLES", default_value_t = DEFAULT_NUM_SAMPLES,
        value_parser = one_or_more())]
    num_samples: usize,

    /// The weight of each sample, such as 1,1,2: one number for each of num_samples, and as many as there are iterations
    /// where there are fewer. For search
    #[arg(long = "sample_weights", alias = "sample-weights", value_name = "WEIGHTS", value_delimiter = ',')]
    sample_weights: Option<Vec<f64>>,

    /// A quantile of the samples in place of their mean: what this part of all weight does not exceed. .5 for the median,
    /// 1 for the worst sample. For search
    #[arg(long, value_name = "PART")]
    quantile: Option<f64>,

    /// How the engine splits an expert's tokens over its replicas: even-split, or best-split for engines that route to the
    /// least loaded. For search
    #[arg(long, default_value = Objective::default().name(), value_parser = objectives())]
    objective: Objective,

    /// How far loads may drift from the dump's, for best-split: the standard deviation of an expert's load's natural logarithm
    #[arg(long, value_name = "DEVIATION", default_value_t = DEFAULT_DRIFT)]
    drift: f64,

    /// Exchanges that the search tries for each slot before it ends, about
    #[arg(long, value_name = "EXCHANGES", default_value_t = DEFAULT_EFFORT, value_parser = one_or_more())]
    effort: usize,

    /// Ranks that the run had, so that a loss of any file is noticed [default: what the dump says, which in
    /// TensorRT-LLM's is no more than the highest rank]
    #[arg(long = "expected_ranks", alias = "expected-ranks", value_name = "RANKS")]
    expected_ranks: Option<usize>,

    /// Take a dump from which the files of some ranks are missing
    #[arg(long = "allow_missing_ranks", alias = "allow-missing-ranks")]
    allow_missing_ranks: bool,

    /// Threads to use [default: one a core, at most 8]; the result is the same with any number
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,

    /// Do not print the table
    #[arg(short, long)]
    quiet: bool,
}

fn objectives() -> impl TypedValueParser<Value = Objective> {
    PossibleValuesParser::new(Objective::ALL.map(Objective::name)).try_map(|name| name.parse::<Objective>())
}

/// Fails where a flag would have no effect with the policy.
fn refuse_unheeded(args: &Args) -> Result<()> {
    let for_search = [
        ("rank_to_node", args.rank_to_node.is_some()),
        ("off_node_price", args.off_node_price != 0.0),
        ("sample_weights", args.sample_weights.is_some()),
        ("quantile", args.quantile.is_some()),
        ("objective", args.objective != Objective::default()),
    ];
    let given = for_search.into_iter().find(|&(_, given)| given && args.policy != Policy::Search);
    given.map_or(Ok(()), |(flag, _)| {
        Err(Error::InvalidArgument(format!(
            "--{flag} is for policy {}; policy {} would ignore it, so leave one of the two out",
            Policy::Search,
            args.policy
        )))
    })
}

/// Generates, and returns what to print.
pub fn run(args: &Args) -> Result<String> {
    refuse_unheeded(args)?;
    let config = GenerateConfig {
        expert_statistic_path: &args.expert_statistic_path,
        output_path: &args.output_path,
        solve_threads: args.threads,
        options: LoadOptions {
            iter_start: args.iter_start,
            iter_stop: args.iter_stop,
            expected_ranks: args.expected_ranks,
            allow_missing_ranks: args.allow_missing_ranks,
            threads: args.threads,
        },
        num_ranks: args.ep_size,
        num_slots: args.num_slots,
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
            slots_per_rank: None,
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
    Ok(if args.quiet { String::new() } else { describe(args, &generated) })
}

fn describe(args: &Args, generated: &Generated) -> String {
    let Generated { summary, placement, .. } = generated;
    let shape = placement.shape();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} experts, {} layers, iterations {}, {} ranks\n{}: {} slots on {} ranks, {} each\n\n\
         Imbalance ratio, (max - mean) / mean of the ranks' tokens: 0 is even\n{}\
         Gap, (max - bound) / bound of the even split, the mean over the samples planned\n\
         for{}: no placement is below the bound, so 0 is as good as any",
        args.expert_statistic_path.display(),
        summary.num_experts,
        summary.layers.len(),
        summary.iterations,
        summary.num_ranks,
        args.policy,
        shape.num_slots(),
        shape.num_ranks(),
        shape.slots_per_rank(),
        match args.objective {
            Objective::BestSplit => {
                "After: an expert's tokens are split evenly over its replicas. Best split: in the\n\
                 best fractions, which is what was planned for\n"
            }
            _ => "",
        },
        match (&args.sample_weights, args.quantile) {
            (None, None) => "",
            _ => ", all alike",
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
            "{} slots repeat an expert of their own rank, which is how {} places them",
            duplicates.len(),
            args.policy
        );
    }
    let _ = writeln!(text, "wrote {} (placement hash {:016x})", args.output_path.display(), placement.hash());
    text
}

/// With a column of the best split where it is what was planned for.
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
