//! The flags of policies, shared by `compare` and `sweep`.

use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use eplb::report::{DEFAULT_NUM_SAMPLES, Planner};
use eplb::solve::{Policy, SolveConfig};

#[derive(clap::Args)]
pub struct PlanArgs {
    /// Groups of experts in the model's router, for policy deepseek-hierarchical
    #[arg(long = "num_groups", alias = "num-groups", value_name = "GROUPS", default_value_t = 1)]
    num_groups: usize,

    /// Nodes of the ranks, for policy deepseek-hierarchical
    #[arg(long = "num_nodes", alias = "num-nodes", value_name = "NODES", default_value_t = 1)]
    num_nodes: usize,

    /// Samples that the iterations are grouped into. Policy search balances each sample, and gaps are computed over samples
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

/// Parses a number of at least 1.
pub fn one_or_more() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Parses the name of a policy. Each has a line of help.
pub fn policies() -> impl TypedValueParser<Value = Policy> {
    let help = |policy| match policy {
        Policy::Trtllm => "the greedy policy of TensorRT-LLM, with bit-exact results",
        Policy::DeepseekGlobal => "the global policy of DeepSeek's eplb.py, over all ranks",
        Policy::DeepseekHierarchical => {
            "the hierarchical policy of DeepSeek's eplb.py: places groups of experts on nodes, then each node's experts on \
             its ranks; needs --num_groups and --num_nodes"
        }
        Policy::Search => {
            "improves replica counts and ranks together, step by step: better balance than the greedy policies, and no \
             duplicates that do not improve it"
        }
        _ => "",
    };
    let values = Policy::ALL.map(|policy| PossibleValue::new(policy.name()).help(help(policy)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Policy>())
}
