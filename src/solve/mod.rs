//! Loads to placement: which expert each slot should hold.
//!
//! A policy is a rule for one layer: the loads of its experts in, the expert of each slot out. Layers are independent
//! and solved in parallel; results do not depend on the number of threads.

mod bound;
mod deepseek;
mod loads;
mod search;
mod split;
mod tournament;
mod trtllm;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use bound::{lower_bound, lower_bound_of_uneven};
pub use deepseek::DeepseekArrays;
pub use loads::Loads;
pub use split::best_split;

use self::deepseek::Hierarchy;
pub(crate) use self::search::Nodes;
use self::search::{Measure, Priced, Search};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::{Placement, Shape, check_slots_per_rank};
use crate::threads;

/// The effort of the search unless told otherwise: where more gains little on the shapes of today's models.
pub const DEFAULT_EFFORT: usize = 200;

/// The drift of loads unless told otherwise: of those that were tried, the best for DeepSeek-V3 planned on prompts of 1,024
/// tokens and measured on prompts of 4,096, between which the logarithms of its experts' loads differ by .3.
pub const DEFAULT_DRIFT: f64 = 0.2;

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
    /// Counts and ranks chosen together: exchanges of slots and changes of counts from a first placement on, and from others where
    /// that does not end near [`lower_bound`], until no placement can be better by more than one or two ten-thousandths, nothing
    /// helps, or the effort is spent. Of several samples, the mean over them of the most loaded rank's load over the mean. In that,
    /// unless another objective, nodes or unequal ranks are asked for, never above the greedies. An expert is twice on a rank only
    /// where the search finds nothing as good otherwise.
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

/// How an engine splits an expert's tokens over its replicas, and so what [`Policy::Search`] has to make small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Objective {
    /// Evenly, as round robin and hashes do: the most loaded rank's load over the mean.
    #[default]
    EvenSplit,
    /// By need, as routing to the least loaded replica does: the same in the best split ([`best_split`]), where loads have drifted
    /// from the planned ones by [`SolveConfig::drift`]. The even split of the planned loads stays within a hundredth of what
    /// the other objective finds.
    BestSplit,
}

impl Objective {
    /// All objectives.
    pub const ALL: [Objective; 2] = [Objective::EvenSplit, Objective::BestSplit];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Objective::EvenSplit => "even-split",
            Objective::BestSplit => "best-split",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Objective::ALL.into_iter().find(|objective| objective.name() == name).ok_or_else(|| {
            let names = Objective::ALL.map(Objective::name).join(", ");
            Error::InvalidArgument(format!("unknown objective \"{name}\"; there is {names}"))
        })
    }
}

/// How to place experts. The results depend on this, the shape and the loads, and on nothing else.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolveConfig<'a> {
    /// The rule.
    pub policy: Policy,
    /// Groups of consecutive experts, equally many in each: those that the model's router chooses a few of. For
    /// [`Policy::DeepseekHierarchical`], and for [`Policy::Search`] where load off its node has a price.
    pub num_groups: usize,
    /// Nodes of consecutive ranks, equally many in each. As `num_groups`.
    pub num_nodes: usize,
    /// In place of `num_nodes`, for [`Policy::Search`]: the node of each rank, any int32, `[num_ranks]`.
    pub rank_to_node: Option<&'a [i32]>,
    /// For [`Policy::Search`]: what load on another node than its group's home costs. At 0 nodes are no matter. Otherwise each
    /// group has a home node in each layer, and what is to be small is the most loaded rank's load over the mean, plus this
    /// times the share of all load that is not at home. Infinity keeps every replica at home: DeepSeek's hard rule.
    pub off_node_price: f64,
    /// For [`Policy::Search`]: what each sample counts for, `[num_samples]`, finite, not negative and not all zero; only ratios
    /// matter. `None` for the same.
    pub sample_weights: Option<&'a [f64]>,
    /// For [`Policy::Search`]: in place of the mean over samples, what samples of at least this part of all weight do not exceed:
    /// above 0, at most 1. At .5 it is the median, at 1 the worst sample.
    pub quantile: Option<f64>,
    /// For [`Policy::Search`]: how tokens are split at run time.
    pub objective: Objective,
    /// For [`Objective::BestSplit`]: how far an expert's load may drift from the planned one, as the standard deviation of its
    /// natural logarithm; from 0, the planned loads alone, to 2.
    pub drift: f64,
    /// For [`Policy::Search`]: the slots of each rank, `[num_ranks]`, the largest as many as the shape's; see
    /// [`Placement::uneven`]. `None` for as many on each.
    pub slots_per_rank: Option<&'a [u32]>,
    /// How many exchanges, about, [`Policy::Search`] looks at for each slot before it is content with what it has, and again as many
    /// where that is far from [`lower_bound`]. Not time, so that results repeat.
    pub effort: usize,
}

impl Default for SolveConfig<'_> {
    fn default() -> Self {
        SolveConfig {
            policy: Policy::default(),
            num_groups: 1,
            num_nodes: 1,
            rank_to_node: None,
            off_node_price: 0.0,
            sample_weights: None,
            quantile: None,
            slots_per_rank: None,
            objective: Objective::default(),
            drift: DEFAULT_DRIFT,
            effort: DEFAULT_EFFORT,
        }
    }
}

impl SolveConfig<'_> {
    /// The nodes, where load off its home node matters to the policy.
    pub(crate) fn priced_nodes(&self, shape: Shape) -> Option<Nodes> {
        let matter = match self.policy {
            Policy::Search => self.off_node_price > 0.0,
            policy => policy == Policy::DeepseekHierarchical,
        };
        let given = self.rank_to_node.filter(|_| self.policy == Policy::Search);
        matter.then(|| Nodes::new(shape, self.num_groups, self.num_nodes, given).ok())?
    }

    /// Fails as [`solve`] would for the shape alone, before there are loads.
    pub fn check(&self, shape: Shape) -> Result<()> {
        Rule::new(self, shape).map(drop)
    }

    /// The slots of each rank where they differ.
    fn uneven(&self, shape: Shape) -> Option<&[u32]> {
        let differ = |slots: &&[u32]| slots.iter().any(|&slots| slots as usize != shape.slots_per_rank());
        self.slots_per_rank.filter(differ)
    }
}

/// A policy with what it needs to know of the model and the machines, checked.
enum Rule {
    Trtllm,
    Deepseek(Hierarchy),
    Search,
    SearchLinks { drift: f64 },
    SearchOnNodes(Nodes),
}

impl Rule {
    fn new(config: &SolveConfig<'_>, shape: Shape) -> Result<Self> {
        let SolveConfig {
            policy, num_groups, num_nodes, rank_to_node, off_node_price, objective, drift, ..
        } = *config;
        if off_node_price.is_nan() || off_node_price < 0.0 {
            let message = format!("off_node_price is {off_node_price}; it must not be negative");
            return Err(Error::InvalidArgument(message));
        }
        if !(0.0..=2.0).contains(&drift) {
            return Err(Error::InvalidArgument(format!("drift is {drift}; 0 to 2 expected")));
        }
        if let Some(quantile) = config.quantile.filter(|&quantile| !(quantile > 0.0 && quantile <= 1.0)) {
            let message = format!("quantile is {quantile}; above 0 and at most 1 expected");
            return Err(Error::InvalidArgument(message));
        }
        if let Some(slots_per_rank) = config.slots_per_rank {
            check_slots_per_rank(shape, slots_per_rank)?;
            if config.uneven(shape).is_some() && (policy != Policy::Search || off_node_price > 0.0) {
                let what = if policy == Policy::Search {
                    "an off_node_price".to_owned()
                } else {
                    format!("policy {policy}")
                };
                let message = format!(
                    "{what} takes as many slots on each rank; slots_per_rank is for search without one"
                );
                return Err(Error::InvalidArgument(message));
            }
        }
        Ok(match policy {
            Policy::Trtllm => Rule::Trtllm,
            Policy::DeepseekGlobal => Rule::Deepseek(Hierarchy::global(shape)),
            Policy::DeepseekHierarchical => Rule::Deepseek(Hierarchy::new(shape, num_groups, num_nodes)?),
            Policy::Search if off_node_price == 0.0 => match objective {
                Objective::EvenSplit => Rule::Search,
                Objective::BestSplit => Rule::SearchLinks { drift },
            },
            Policy::Search if objective == Objective::BestSplit => {
                return Err(Error::InvalidArgument(format!(
                    "objective {objective} knows no nodes; set off_node_price to 0, or plan for the even split"
                )));
            }
            Policy::Search => {
                let nodes = Nodes::new(shape, num_groups, num_nodes, rank_to_node)?;
                if off_node_price.is_infinite() {
                    nodes.check_fit(shape)?;
                }
                Rule::SearchOnNodes(nodes)
            }
        })
    }
}

/// Places the experts of every layer of `loads`.
///
/// `threads` 0 means one a core, at most 8. Fails with [`Error::InvalidShape`] where the policy needs groups, nodes or
/// ranks that can be split evenly and they cannot.
pub fn solve(config: &SolveConfig<'_>, shape: Shape, loads: &Loads<'_>, threads: usize) -> Result<Placement> {
    check_experts(shape, loads)?;
    let solver = Solver::new(config, shape, loads.num_samples())?;
    let rows =
        threads::map(loads.layers().len(), threads::resolve(threads), |layer| solver.place(loads, layer))?;
    solver.placement(loads.layers(), &rows)
}

/// A checked [`SolveConfig`] with what all layers share.
pub(crate) struct Solver<'a> {
    config: &'a SolveConfig<'a>,
    shape: Shape,
    rule: Rule,
    /// Of the samples, with the sum 1.
    weights: Vec<f64>,
    measure: Arc<Measure>,
}

impl<'a> Solver<'a> {
    pub fn new(config: &'a SolveConfig<'a>, shape: Shape, num_samples: usize) -> Result<Self> {
        let rule = Rule::new(config, shape)?;
        let weights = sample_weights(config, num_samples)?;
        let measure = Arc::new(match config.quantile {
            Some(quantile) => Measure::Quantile { quantile, weights: weights.clone() },
            None => Measure::Mean,
        });
        Ok(Solver { config, shape, rule, weights, measure })
    }

    /// The expert of each slot for the layer at index `layer` of `loads`.
    // Once in the library, and not in each caller: the search is large.
    #[inline(never)]
    pub fn place(&self, loads: &Loads<'_>, layer: usize) -> Result<Vec<u32>> {
        let Solver { config, shape, .. } = *self;
        let sums = loads.layer_sums_f32(layer)?;
        let samples: Vec<&[f64]> = loads.layer(layer).collect();
        let search = Search {
            shape,
            slots_per_rank: config.uneven(shape),
            samples: &samples,
            weights: &self.weights,
            measure: &self.measure,
            effort: config.effort,
        };
        let greedies = || match config.uneven(shape) {
            None => Ok(vec![
                trtllm::place(&sums, shape)?,
                deepseek::slot_experts(&sums, Hierarchy::global(shape)),
            ]),
            // The greedies take ranks of equal size only.
            Some(_) => Ok::<_, Error>(Vec::new()),
        };
        match &self.rule {
            Rule::Trtllm => trtllm::place(&sums, shape),
            Rule::Deepseek(hierarchy) => Ok(deepseek::slot_experts(&sums, *hierarchy)),
            Rule::Search => Ok(search.place(&greedies()?)),
            Rule::SearchLinks { drift } => Ok(search.place_linked(&greedies()?, *drift)),
            Rule::SearchOnNodes(nodes) => {
                search.place_on(Priced { nodes, price: config.off_node_price }, &greedies()?)
            }
        }
    }

    /// The placement of `layers` whose slots [`Solver::place`] returned.
    pub fn placement(&self, layers: &[u32], rows: &[Vec<u32>]) -> Result<Placement> {
        let Solver { config, shape, .. } = *self;
        let num_slots = shape.num_slots();
        let mut slot_experts = try_zeroed(layers.len().checked_mul(num_slots), "the placement")?;
        for (slots, row) in slot_experts.chunks_exact_mut(num_slots).zip(rows) {
            slots.copy_from_slice(row);
        }
        match config.uneven(shape) {
            None => Placement::new(shape, layers, &slot_experts),
            Some(slots_per_rank) => Placement::uneven(shape, slots_per_rank, layers, &slot_experts),
        }
    }
}

/// The weight of each sample, with the sum 1. Only the search has several samples.
pub(crate) fn sample_weights(config: &SolveConfig<'_>, num_samples: usize) -> Result<Vec<f64>> {
    let given = config.sample_weights.filter(|_| config.policy == Policy::Search);
    let Some(given) = given else { return Ok(vec![1.0 / num_samples as f64; num_samples]) };
    if given.len() != num_samples {
        let message = format!("{} sample weights for {num_samples} samples", given.len());
        return Err(Error::InvalidArgument(message));
    }
    if let Some(sample) = given.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
        let message =
            format!("the weight of sample {sample} is {}; it must be finite and not negative", given[sample]);
        return Err(Error::InvalidArgument(message));
    }
    let most = given.iter().copied().fold(0.0, f64::max);
    if most == 0.0 {
        return Err(Error::InvalidArgument("all sample weights are 0".into()));
    }
    // First by the largest, so that no sum overflows.
    let sum: f64 = given.iter().map(|weight| weight / most).sum();
    Ok(given.iter().map(|weight| weight / most / sum).collect())
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
