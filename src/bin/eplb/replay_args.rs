//! The flags of `eplb replay`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use eplb::Result;
use eplb::dispatch::Rule;
use eplb::live::{Gates, Limits};
use eplb::placement::Shape;
use eplb::report::{ReplayConfig, ReplayGrid, default_grid};
use eplb::solve::Policy;
use eplb::stats::Summary;

use crate::dump_args::DumpArgs;
use crate::output::{OutputFormat, parse_bytes};
use crate::plan_args::policies;

/// Replay a recording: what live rebalancing would bring, beside placements that never change or are made anew
///
/// Runs the planner of eplb_live.h over the iterations of one or more dumps, one dump after the other. The first --window
/// iterations give the first placement. All later iterations are measured in the placement that is in force then: mean / max of
/// the ranks' tokens (1 is even), averaged over layers and iterations. Side by side: the first placement throughout (never), a
/// fresh one every N iterations by trtllm and by search, live plans with few moves (live), and a fresh one by search from the
/// very iterations that follow (oracle), which nobody can have.
#[derive(clap::Args)]
#[command(after_help = "\
Examples (with files of eplb's repository):
  eplb replay --expert_statistic_path data/dumps/dsv2lite-translation \\
      --expert_statistic_path data/dumps/dsv2lite-law --ep_size 8 --num_slots 72 \\
      --every 4 --window 8 --max_moves 4 --bytes_per_slot 16.5MiB --html replay.html

Which window, how often, how many moves?
  eplb replay --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --num_slots 72 --sweep --every 4,8 --window 8 --max_moves 1,4

With the gates of a cautious engine, which keep the placement unless a plan is worth it:
  eplb replay --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --num_slots 72 --max_moves 4 --trigger 0.9 --min_gain 0.02 --cooldown 8")]
pub struct Args {
    #[command(flatten)]
    pub dump: DumpArgs,

    /// Ranks [default: the dump's]
    #[arg(long = "ep_size", alias = "ep-size", value_name = "RANKS")]
    ep_size: Option<usize>,

    /// Slots of all ranks together [default: one an expert]
    #[arg(long = "num_slots", alias = "num-slots", value_name = "SLOTS")]
    num_slots: Option<usize>,

    /// Iterations (rows of the dump) from a plan to the next one [default: 4]
    #[arg(long, value_name = "ITERS,...", value_delimiter = ',')]
    pub every: Vec<usize>,

    /// Iterations that a plan is made from, each a sample [default: 8]
    #[arg(long, value_name = "ITERS,...", value_delimiter = ',')]
    pub window: Vec<usize>,

    /// Most slots of a layer that receive an expert by one live plan; any for no limit [default: any]
    #[arg(long = "max_moves", alias = "max-moves", value_name = "MOVES,...", value_delimiter = ',', value_parser = parse_moves)]
    pub max_moves: Vec<Moves>,

    /// Replay live plans with each combination of --every, --window and --max_moves, on the same iterations. Those that are not
    /// given are half, once and twice the default, and 1, 2, 4, 8 and any moves
    #[arg(long, conflicts_with_all = ["html", "svg"])]
    pub sweep: bool,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    gates: GateArgs,

    /// Policy of the first placement, from which live plans start
    #[arg(long, default_value = Policy::Search.name(), value_parser = policies())]
    policy: Policy,

    /// Rule that routes tokens to replicas, in what is measured. Dumps have the sums of all ranks, so least_loaded knows all
    /// ranks' counts, and for nearest each rank chose equally many tokens
    #[arg(long, default_value = "round_robin", value_parser = rules())]
    route: Rule,

    /// Do not measure with the best split, which takes time
    #[arg(long = "no_best_split", alias = "no-best-split")]
    no_best_split: bool,

    /// Size of one expert's weights in one layer, such as 42MiB. Prints the bytes to move
    #[arg(long = "bytes_per_slot", alias = "bytes-per-slot", value_name = "SIZE", value_parser = parse_bytes)]
    pub bytes_per_slot: Option<u64>,

    #[command(flatten)]
    pub format: OutputFormat,

    /// Write a self-contained HTML page with the balance over time; - for standard output, with nothing else on it
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write an SVG chart of the balance and the moves over time; - for standard output, with nothing else on it
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

#[derive(clap::Args)]
struct LimitArgs {
    /// Most slots of all layers that receive an expert by one live plan
    #[arg(long = "max_plan_moves", alias = "max-plan-moves", value_name = "MOVES")]
    max_plan_moves: Option<u32>,

    /// Most slots of one rank that receive an expert by one live plan, over all layers
    #[arg(long = "max_rank_moves", alias = "max-rank-moves", value_name = "MOVES")]
    max_rank_moves: Option<u32>,

    /// Most transfers from one rank to another by one live plan, over all layers
    #[arg(long = "max_pair_moves", alias = "max-pair-moves", value_name = "MOVES")]
    max_pair_moves: Option<u32>,

    /// Most layers that change by one live plan
    #[arg(long = "max_layers", alias = "max-layers", value_name = "LAYERS")]
    max_layers: Option<u32>,

    /// Tokens of the hottest rank that a move must save until the next plan
    #[arg(long = "move_price", alias = "move-price", value_name = "TOKENS", default_value_t = 0.0)]
    move_price: f64,

    /// The same for a move between nodes of --rank_to_node [default: --move_price]
    #[arg(long = "remote_price", alias = "remote-price", value_name = "TOKENS", requires = "rank_to_node")]
    remote_price: Option<f64>,

    /// The node of each rank, such as 0,0,1,1
    #[arg(
        long = "rank_to_node",
        alias = "rank-to-node",
        value_name = "NODES",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    rank_to_node: Option<Vec<i32>>,

    /// Most replicas of an expert in live plans
    #[arg(long = "max_replicas", alias = "max-replicas", value_name = "REPLICAS")]
    max_replicas: Option<u32>,
}

/// All gates are off unless given.
#[derive(clap::Args)]
struct GateArgs {
    /// Plan only where the balancedness of the window is below this, such as 0.95
    #[arg(long, value_name = "BALANCEDNESS")]
    trigger: Option<f64>,

    /// Go on planning until it has reached this [default: --trigger]
    #[arg(long, value_name = "BALANCEDNESS")]
    release: Option<f64>,

    /// Iterations between a plan and the next one
    #[arg(long, value_name = "ITERS", default_value_t = 0)]
    cooldown: u64,

    /// Tokens that the window must have
    #[arg(long = "min_tokens", alias = "min-tokens", value_name = "TOKENS", default_value_t = 0)]
    min_tokens: u64,

    /// What a layer must gain in max / mean of the ranks
    #[arg(long = "min_gain", alias = "min-gain", value_name = "GAIN", default_value_t = 0.0)]
    min_gain: f64,

    /// What a layer must gain, as a share of its imbalance
    #[arg(
        long = "min_relative_gain",
        alias = "min-relative-gain",
        value_name = "SHARE",
        default_value_t = 0.0
    )]
    min_relative_gain: f64,

    /// Standard deviations by which a gain must exceed what sampling noise gains
    #[arg(long, value_name = "DEVIATIONS")]
    noise: Option<f64>,

    /// Iterations after which one counts half in a live plan [default: 3/4 of the window]
    #[arg(long = "half_life", alias = "half-life", value_name = "ITERS")]
    half_life: Option<u64>,
}

/// A number of moves, or none for no limit.
pub type Moves = Option<u32>;

fn parse_moves(text: &str) -> std::result::Result<Moves, String> {
    match text.trim() {
        "any" => Ok(None),
        number => number.parse().map(Some).map_err(|_| "expected a number of moves, or any".to_owned()),
    }
}

fn rules() -> impl TypedValueParser<Value = Rule> {
    let rules = [
        ("round_robin", "evenly over an expert's replicas", Rule::RoundRobin),
        ("token_hash", "evenly, by a hash of the token", Rule::TokenHash),
        ("nearest", "to replicas of the own rank and node first", Rule::Nearest),
        ("least_loaded", "so that the ranks' loads are most even", Rule::LeastLoaded),
    ];
    PossibleValuesParser::new(rules.map(|(name, help, _)| PossibleValue::new(name).help(help)))
        .map(move |name| rules.iter().find(|rule| rule.0 == name).map_or(Rule::RoundRobin, |rule| rule.2))
}

const EVERY: usize = 4;
const WINDOW: usize = 8;

impl Args {
    /// The configuration with the first value of each list.
    pub fn config(&self, summary: &Summary) -> Result<ReplayConfig<'_>> {
        let num_ranks = self.ep_size.map_or_else(|| summary.ep_size(), Ok)?;
        let num_slots = self.num_slots.unwrap_or(summary.num_experts);
        let shape = Shape::new(summary.num_experts, num_slots, num_ranks)?;
        let every = self.every.first().copied().unwrap_or(EVERY);
        let limits = Limits {
            max_layer_moves: self.max_moves.first().copied().flatten(),
            max_moves: self.limits.max_plan_moves,
            max_rank_moves: self.limits.max_rank_moves,
            max_pair_moves: self.limits.max_pair_moves,
            max_layers: self.limits.max_layers,
            node_price: self.limits.move_price,
            remote_price: self.limits.remote_price.unwrap_or(self.limits.move_price),
            horizon: every as f64,
            ..Limits::default()
        };
        Ok(ReplayConfig {
            every,
            window: self.window.first().copied().unwrap_or(WINDOW),
            first: self.policy,
            limits,
            gates: self.gates.gates(),
            half_life: self.gates.half_life,
            max_replicas: self.limits.max_replicas,
            rank_to_node: self.limits.rank_to_node.as_deref(),
            rule: self.route,
            best_split: !self.no_best_split,
            threads: self.dump.threads,
            ..ReplayConfig::new(shape)
        })
    }

    pub fn grid(&self, config: &ReplayConfig<'_>, num_iterations: usize) -> ReplayGrid {
        let default = default_grid(config.every, config.window, num_iterations);
        let or = |given: &Vec<usize>, default| if given.is_empty() { default } else { given.clone() };
        ReplayGrid {
            every: or(&self.every, default.every),
            windows: or(&self.window, default.windows),
            max_moves: match self.max_moves.is_empty() {
                true => default.max_moves,
                false => self.max_moves.clone(),
            },
        }
    }
}

impl GateArgs {
    fn gates(&self) -> Gates {
        let trigger = self.trigger.unwrap_or(Gates::OFF.trigger);
        Gates {
            trigger,
            release: self.release.unwrap_or(trigger),
            cooldown: self.cooldown,
            min_tokens: self.min_tokens,
            min_gain: self.min_gain,
            min_relative_gain: self.min_relative_gain,
            noise: self.noise.unwrap_or(Gates::OFF.noise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_a_number_or_any() {
        assert_eq!((parse_moves("4"), parse_moves("any")), (Ok(Some(4)), Ok(None)));
        assert!(parse_moves("-1").is_err() && parse_moves("").is_err());
    }
}
