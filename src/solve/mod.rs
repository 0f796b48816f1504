//! Loads to placement: which expert each slot should hold.
//!
//! A policy is a rule for one layer: the loads of its experts in, the expert of each slot out. Layers are independent
//! and solved in parallel; results do not depend on the number of threads.

mod bound;
mod deepseek;
mod loads;
mod search;
mod split;
mod trtllm;

use std::fmt;
use std::str::FromStr;

pub use bound::lower_bound;
pub use deepseek::DeepseekArrays;
pub use loads::Loads;
pub use split::best_split;

use self::deepseek::Hierarchy;
use self::search::Search;
use crate::error::{Error, Result, try_zeroed};
use crate::placement::{Placement, Shape};
use crate::threads;

/// The effort of the search unless told otherwise: where more gains little on the shapes of today's models.
pub const DEFAULT_EFFORT: usize = 200;

/// A rule for placing experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// TensorRT-LLM's greedy, bit for bit: replicas go one by one to the expert with the largest load per replica,
    /// then each replica, heaviest first, to the rank with the smallest load that has a free slot. Samples are added up.
    Trtllm,
    /// DeepSeek's greedy over all ranks, as its `eplb.py` with one group and one node: replicas go one by one to the expert
    /// with the largest load per replica, then each replica, heaviest first, to the rank with the smallest load that has a
    /// free slot. In float32, and ties to the lower expert. Samples are added up.
    DeepseekGlobal,
    /// The same for models whose tokens are limited to a few expert groups: whole groups are packed onto nodes, and each
    /// node places its experts on its own ranks.
    DeepseekHierarchical,
    /// Counts and ranks chosen together: exchanges of slots and changes of counts from a first placement on, until no placement can be better by more than
    /// one or two ten-thousandths or the effort is spent. Never above the greedies, and an expert twice on a rank only where
    /// the search finds nothing as good as the greedies otherwise. With several samples, the mean over them of the most loaded rank's load
    /// over the mean.
    #[default]
    Search,
}

impl Policy {
    /// All policies.
    pub const ALL: [Policy; 4] =
        [Policy::Trtllm, Policy::DeepseekGlobal, Policy::DeepseekHierarchical, Policy::Search];

    /// The choice of DeepSeek's `rebalance_experts()`: hierarchical where nodes get equally many groups, else global.
    pub fn of_deepseek(num_groups: usize, num_nodes: usize) -> Self {
        match num_groups.is_multiple_of(num_nodes) {
            true => Policy::DeepseekHierarchical,
            false => Policy::DeepseekGlobal,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Trtllm => "trtllm",
            Policy::DeepseekGlobal => "deepseek-global",
            Policy::DeepseekHierarchical => "deepseek-hierarchical",
            Policy::Search => "search",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Policy::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Policy::ALL.into_iter().map(Policy::name).collect();
            Error::InvalidArgument(format!("unknown policy \"{name}\"; there is {}", names.join(", ")))
        })
    }
}

/// How to place experts. The results depend on this, the shape and the loads, and on nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SolveConfig {
    /// The rule.
    pub policy: Policy,
    /// Groups of consecutive experts, equally many in each: those that the model's router chooses a few of. Only for
    /// [`Policy::DeepseekHierarchical`].
    pub num_groups: usize,
    /// Nodes of consecutive ranks, equally many in each. Only for [`Policy::DeepseekHierarchical`].
    pub num_nodes: usize,
    /// How many exchanges, about, [`Policy::Search`] looks at for each slot before it is content with what it has. Not
    /// time, so that results repeat.
    pub effort: usize,
}

impl Default for SolveConfig {
    fn default() -> Self {
        SolveConfig { policy: Policy::default(), num_groups: 1, num_nodes: 1, effort: DEFAULT_EFFORT }
    }
}

impl SolveConfig {
    /// Fails as [`solve`] would for the shape alone, before there are loads.
    pub fn check(&self, shape: Shape) -> Result<()> {
        Rule::new(self, shape).map(drop)
    }
}

/// A policy with what it needs to know of the model and the machines, checked.
enum Rule {
    Trtllm,
    Deepseek(Hierarchy),
    Search,
}

impl Rule {
    fn new(config: &SolveConfig, shape: Shape) -> Result<Self> {
        let SolveConfig { policy, num_groups, num_nodes, .. } = *config;
        Ok(match policy {
            Policy::Trtllm => Rule::Trtllm,
            Policy::DeepseekGlobal => Rule::Deepseek(Hierarchy::global(shape)),
            Policy::DeepseekHierarchical => Rule::Deepseek(Hierarchy::new(shape, num_groups, num_nodes)?),
            Policy::Search => Rule::Search,
        })
    }
}

/// Places the experts of every layer of `loads`.
///
/// `threads` 0 means one a core, at most 8. Fails with [`Error::InvalidShape`] where the policy needs groups, nodes or
/// ranks that can be split evenly and they cannot.
pub fn solve(config: &SolveConfig, shape: Shape, loads: &Loads<'_>, threads: usize) -> Result<Placement> {
    check_experts(shape, loads)?;
    let rule = Rule::new(config, shape)?;
    let num_slots = shape.num_slots();
    let mut slot_experts = try_zeroed(loads.layers().len().checked_mul(num_slots), "the placement")?;
    let rows = threads::map(loads.layers().len(), threads::resolve(threads), |layer| match rule {
        Rule::Trtllm => trtllm::place(&loads.layer_sums_f32(layer)?, shape),
        Rule::Deepseek(hierarchy) => Ok(deepseek::slot_experts(&loads.layer_sums_f32(layer)?, hierarchy)),
        Rule::Search => {
            let sums = loads.layer_sums_f32(layer)?;
            let greedies =
                [trtllm::place(&sums, shape)?, deepseek::slot_experts(&sums, Hierarchy::global(shape))];
            let samples: Vec<&[f64]> = loads.layer(layer).collect();
            let weights = vec![1.0 / samples.len() as f64; samples.len()];
            Ok(Search { shape, samples: &samples, weights: &weights, effort: config.effort }.place(&greedies))
        }
    })?;
    for (slots, row) in slot_experts.chunks_exact_mut(num_slots).zip(rows) {
        slots.copy_from_slice(&row);
    }
    Placement::new(shape, loads.layers(), &slot_experts)
}

fn check_experts(shape: Shape, loads: &Loads<'_>) -> Result<()> {
    if loads.num_experts() == shape.num_experts() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "loads of {} experts for a shape of {}",
        loads.num_experts(),
        shape.num_experts()
    )))
}
