//! The flags of how to place experts that every command with policies has.

use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use eplb::report::{DEFAULT_NUM_SAMPLES, Planner};
use eplb::solve::{Policy, SolveConfig};

#[derive(clap::Args)]
pub struct PlanArgs {
    /// Groups of experts of the model's router, for deepseek-hierarchical
    #[arg(long = "num_groups", alias = "num-groups", value_name = "GROUPS", default_value_t = 1)]
    num_groups: usize,

    /// Nodes that the ranks are on, for deepseek-hierarchical
    #[arg(long = "num_nodes", alias = "num-nodes", value_name = "NODES", default_value_t = 1)]
    num_nodes: usize,

    /// Samples for the search to level each of, and to take gaps of: the iterations in as many groups
    #[arg(long = "num_samples", alias = "num-samples", value_name = "SAMPLES", default_value_t = DEFAULT_NUM_SAMPLES,
        value_parser = one_or_more())]
    num_samples: usize,
}

impl PlanArgs {
    pub fn planner(&self, policy: Policy, threads: usize) -> Planner<'static> {
        let (num_groups, num_nodes) = (self.num_groups, self.num_nodes);
        let solve = SolveConfig { policy, num_groups, num_nodes, ..SolveConfig::default() };
        Planner { solve, num_samples: self.num_samples, threads }
    }
}

/// A count that must not be 0.
pub fn one_or_more() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// The policies by name, each with a line of help.
pub fn policies() -> impl TypedValueParser<Value = Policy> {
    let help = |policy| match policy {
        Policy::Trtllm => "TensorRT-LLM's, bit for bit",
        Policy::DeepseekGlobal => "that of DeepSeek's eplb.py, over all ranks",
        Policy::DeepseekHierarchical => {
            "the same in two stages: whole groups of experts to nodes, then each node's experts to its ranks; needs \
             --num_groups and --num_nodes"
        }
        Policy::Search => {
            "replica counts and ranks chosen together: closer to level than any greedy, and no expert twice on a rank \
             where that costs nothing"
        }
        _ => "",
    };
    let values = Policy::ALL.map(|policy| PossibleValue::new(policy.name()).help(help(policy)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Policy>())
}
