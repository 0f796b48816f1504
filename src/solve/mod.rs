//! Loads to placement: which expert each slot should hold.
//!
//! A policy takes the loads of one layer's experts and returns the expert of each slot. Layers are
//! independent and solved in parallel. Results do not depend on the number of threads.

mod bound;
mod deepseek;
mod loads;
mod pinned;
mod search;
mod split;
mod tournament;
mod trtllm;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use bound::{lower_bound, lower_bound_of_unequal_ranks};
pub use deepseek::DeepseekArrays;
pub use loads::Loads;
pub use pinned::pinned_slots;
pub use split::best_split;

use self::deepseek::Hierarchy;
use self::pinned::Pins;
#[cfg(test)]
pub(crate) use self::search::names_of_vectors;
pub(crate) use self::search::{ChangeLimits, ChangePrice, Improvement, Nodes, Step, Workspace};
use self::search::{Measure, PricedNodes, Search};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::{NO_EXPERT, Placement, Shape, check_rank_num_slots};
use crate::threads;

/// The default effort of the search. On the shapes of today's models, more effort gains little.
pub const DEFAULT_EFFORT: usize = 200;

/// The default drift of loads. It was the best of those tried for DeepSeek-V3, planned on prompts of 1,024
/// tokens and measured on prompts of 4,096. The logarithms of its experts' loads differ by .3 between the
/// two.
pub const DEFAULT_DRIFT: f64 = 0.2;

/// How a placement is computed from loads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// TensorRT-LLM's greedy, bit for bit. Each spare slot goes to the expert with the largest load per
    /// replica. Then each replica, heaviest first, goes to the least loaded rank with a free slot. Samples
    /// are added up.
    Trtllm,
    /// DeepSeek's greedy over all ranks, as its `eplb.py` with one group and one node. Replicas and ranks are
    /// chosen as by [`Policy::Trtllm`], but in float32 and with ties to the lower expert. Samples are added
    /// up.
    DeepseekGlobal,
    /// DeepSeek's greedy for models whose router keeps a few groups of experts. Whole groups are packed onto
    /// nodes. Each node places its experts on its own ranks.
    DeepseekHierarchical,
    /// Chooses replica counts and ranks together, by exchanges of slots and replica count changes. It stops
    /// near [`lower_bound`], when no step helps, or when the effort is spent. Far from the bound it restarts.
    ///
    /// It minimises the most loaded rank's load over the mean, averaged over samples. Without another
    /// objective, nodes, unequal ranks or pinned slots, the result is never above the greedies. A rank holds an expert
    /// twice only if the search finds no equal placement without the duplicate.
    #[default]
    Search,
}

impl Policy {
    /// All policies.
    pub const ALL: [Policy; 4] =
        [Policy::Trtllm, Policy::DeepseekGlobal, Policy::DeepseekHierarchical, Policy::Search];

    /// Returns the choice of DeepSeek's `rebalance_experts()`: hierarchical if the groups split evenly over
    /// the nodes, else global.
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
            Error::InvalidArgument(format!(
                "unknown policy \"{name}\"; the policies are {}",
                names.join(", ")
            ))
        })
    }
}

/// What [`Policy::Search`] minimises, by how the engine splits an expert's tokens over its replicas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Objective {
    /// The most loaded rank's load over the mean by even split, for round robin and hashes.
    #[default]
    EvenSplit,
    /// The same by best split ([`best_split`]), for routing to the least loaded replica. Loads drift from the
    /// planned ones by [`SolveConfig::drift`]. The even split of the planned loads stays within 1 % of
    /// [`Objective::EvenSplit`].
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
            Error::InvalidArgument(format!("unknown objective \"{name}\"; the objectives are {names}"))
        })
    }
}

/// How to place experts. The result depends only on this, the shape and the loads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolveConfig<'a> {
    /// The policy.
    pub policy: Policy,
    /// Groups of consecutive experts, of equal size. For [`Policy::DeepseekHierarchical`], and for
    /// [`Policy::Search`] with an `off_node_price`.
    pub num_groups: usize,
    /// Nodes of consecutive ranks, of equal size. For the same policies as `num_groups`.
    pub num_nodes: usize,
    /// For [`Policy::Search`], in place of `num_nodes`: the node of each rank, any int32, `[num_ranks]`.
    pub rank_to_node: Option<&'a [i32]>,
    /// For [`Policy::Search`]: the price of load off its group's home node.
    ///
    /// Each group has a home node in each layer. The search minimises the most loaded rank's load over the
    /// mean, plus this price times the off-node share. At 0 nodes do not matter. Infinity keeps every replica
    /// on its home node, as DeepSeek's hierarchical policy does.
    pub off_node_price: f64,
    /// For [`Policy::Search`]: the weight of each sample, `[num_samples]`, finite, not negative and not all
    /// zero. `None`: equal weights.
    pub sample_weights: Option<&'a [f64]>,
    /// For [`Policy::Search`]: minimises this quantile over samples instead of the mean: above 0, at most 1.
    /// .5 is the median, 1 the worst sample.
    pub quantile: Option<f64>,
    /// For [`Policy::Search`]: what to minimise.
    pub objective: Objective,
    /// For [`Objective::BestSplit`]: the standard deviation of the natural logarithm of an expert's load
    /// around the planned one, 0 to 2. Below 0.02 counts as 0.02.
    pub drift: f64,
    /// The number of slots of each rank, `[num_ranks]`. See [`Placement::with_rank_num_slots`]. `None`: equal
    /// numbers. Only [`Policy::Search`] takes numbers that differ.
    pub rank_num_slots: Option<&'a [u32]>,
    /// For [`Policy::Search`]: the expert that each slot holds in the result, [`NO_EXPERT`] in free slots:
    /// `[num_slots]` for all layers, or `[num_layers][num_slots]`. See [`pinned_slots`].
    pub pinned_experts: Option<&'a [u32]>,
    /// For [`Policy::Search`]: about how many exchanges to evaluate for each slot, and as many again far
    /// above [`lower_bound`]. Not a time, so that results repeat.
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
            rank_num_slots: None,
            pinned_experts: None,
            objective: Objective::default(),
            drift: DEFAULT_DRIFT,
            effort: DEFAULT_EFFORT,
        }
    }
}

impl SolveConfig<'_> {
    /// Returns the nodes if off-node load matters to the policy.
    pub(crate) fn priced_nodes(&self, shape: Shape) -> Option<Nodes> {
        let is_priced = match self.policy {
            Policy::Search => self.off_node_price > 0.0,
            policy => policy == Policy::DeepseekHierarchical,
        };
        let given = self.rank_to_node.filter(|_| self.policy == Policy::Search);
        is_priced.then(|| Nodes::new(shape, self.num_groups, self.num_nodes, given).ok())?
    }

    /// Makes the checks of [`solve`] that need no loads.
    pub fn check(&self, shape: Shape) -> Result<()> {
        CheckedPolicy::new(self, shape).map(drop)
    }

    /// The shape to solve: without the slot numbers that every rank lacks.
    fn solved_shape(&self, shape: Shape) -> Result<Shape> {
        let most = self.rank_num_slots.and_then(|slots| slots.iter().max()).map(|&most| most as usize);
        match most.filter(|&most| most < shape.slots_per_rank()) {
            None => Ok(shape),
            Some(most) => Shape::new(shape.num_experts(), most * shape.num_ranks(), shape.num_ranks()),
        }
    }

    /// Fails unless pinned slots are for all layers or for each of `num_layers`.
    pub(crate) fn check_pinned_layers(&self, shape: Shape, num_layers: usize) -> Result<()> {
        let Some(pinned) = self.pinned_experts else { return Ok(()) };
        match pinned.len() / shape.num_slots() {
            1 => Ok(()),
            rows if rows == num_layers => Ok(()),
            rows => Err(Error::InvalidArgument(format!(
                "pinned_experts has rows for {rows} layers; 1 for all layers or {num_layers} expected"
            ))),
        }
    }

    /// Returns the number of slots of each rank if they differ.
    fn unequal_rank_num_slots(&self, shape: Shape) -> Option<&[u32]> {
        let differ = |slots: &&[u32]| slots.iter().any(|&slots| slots as usize != shape.slots_per_rank());
        self.rank_num_slots.filter(differ)
    }
}

/// A policy with its parameters, checked.
enum CheckedPolicy {
    Trtllm,
    Deepseek(Hierarchy),
    Search,
    SearchBestSplit { drift: f64 },
    SearchOnNodes(Nodes),
}

impl CheckedPolicy {
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
        if let Some(rank_num_slots) = config.rank_num_slots {
            check_rank_num_slots(shape, rank_num_slots)?;
            if config.unequal_rank_num_slots(config.solved_shape(shape)?).is_some()
                && (policy != Policy::Search || off_node_price > 0.0)
            {
                let what = if policy == Policy::Search {
                    "off_node_price".to_owned()
                } else {
                    format!("policy {policy}")
                };
                let message = format!(
                    "{what} needs equal numbers of slots on all ranks; unequal rank_num_slots need \
                     policy search and off_node_price 0"
                );
                return Err(Error::InvalidArgument(message));
            }
        }
        if let Some(pinned) = config.pinned_experts {
            if policy != Policy::Search {
                return Err(Error::InvalidArgument(format!(
                    "policy {policy} takes no pinned slots; remove pinned_experts or use policy search"
                )));
            }
            if off_node_price.is_infinite() {
                let message =
                    "pinned slots need a finite off_node_price: a pinned expert may be off its home node";
                return Err(Error::InvalidArgument(message.into()));
            }
            pinned::check(pinned, shape, config.rank_num_slots)?;
        }
        let shape = config.solved_shape(shape)?;
        Ok(match policy {
            Policy::Trtllm => CheckedPolicy::Trtllm,
            Policy::DeepseekGlobal => CheckedPolicy::Deepseek(Hierarchy::global(shape)),
            Policy::DeepseekHierarchical => {
                CheckedPolicy::Deepseek(Hierarchy::new(shape, num_groups, num_nodes)?)
            }
            Policy::Search if off_node_price == 0.0 => match objective {
                Objective::EvenSplit => CheckedPolicy::Search,
                Objective::BestSplit => CheckedPolicy::SearchBestSplit { drift },
            },
            Policy::Search if objective == Objective::BestSplit => {
                return Err(Error::InvalidArgument(format!(
                    "objective {objective} does not support off_node_price; set off_node_price to 0 or \
                     use objective even-split"
                )));
            }
            Policy::Search => {
                let nodes = Nodes::new(shape, num_groups, num_nodes, rank_to_node)?;
                if off_node_price.is_infinite() {
                    nodes.check_fit(shape)?;
                }
                CheckedPolicy::SearchOnNodes(nodes)
            }
        })
    }
}

/// Places the experts of every layer of `loads`.
///
/// `threads` 0 means one per core, at most 8. Fails with [`Error::InvalidShape`] if the policy needs groups,
/// nodes or ranks that split evenly and they do not.
pub fn solve(config: &SolveConfig<'_>, shape: Shape, loads: &Loads<'_>, threads: usize) -> Result<Placement> {
    check_experts(shape, loads)?;
    let num_layers = loads.layers().len();
    let solver = Solver::new(config, shape, loads.num_samples(), num_layers)?;
    let layer_slots =
        threads::map(num_layers, threads::resolve(threads), |layer| solver.place(loads, layer, layer))?;
    solver.placement(loads.layers(), &layer_slots)
}

/// A checked [`SolveConfig`], shared by all layers.
pub(crate) struct Solver<'a> {
    config: &'a SolveConfig<'a>,
    shape: Shape,
    /// Without the slot numbers that every rank lacks.
    solved_shape: Shape,
    /// For all layers, or of each layer.
    pins: Vec<Arc<Pins>>,
    policy: CheckedPolicy,
    /// The weight of each sample. Their sum is 1.
    sample_weights: Vec<f64>,
    measure: Arc<Measure>,
}

impl<'a> Solver<'a> {
    pub fn new(
        config: &'a SolveConfig<'a>,
        shape: Shape,
        num_samples: usize,
        num_layers: usize,
    ) -> Result<Self> {
        let policy = CheckedPolicy::new(config, shape)?;
        let solved_shape = config.solved_shape(shape)?;
        config.check_pinned_layers(shape, num_layers)?;
        let (width, solved_width) = (shape.slots_per_rank(), solved_shape.slots_per_rank());
        let pins_of = |row: &[u32]| {
            let ranks = row.chunks_exact(width).flat_map(|rank| &rank[..solved_width]);
            Arc::new(Pins::new(solved_shape, &ranks.copied().collect::<Vec<u32>>()))
        };
        let has_pin = |pinned: &&[u32]| pinned.iter().any(|&expert| expert != NO_EXPERT);
        let pinned = config.pinned_experts.filter(has_pin).unwrap_or_default();
        let pins = pinned.chunks_exact(shape.num_slots()).map(pins_of).collect();
        let sample_weights = sample_weights(config, num_samples)?;
        let measure = Arc::new(match config.quantile {
            Some(quantile) => Measure::Quantile { quantile, sample_weights: sample_weights.clone() },
            None => Measure::Mean,
        });
        Ok(Solver { config, shape, solved_shape, pins, policy, sample_weights, measure })
    }

    /// Returns the expert of each slot for the layer at index `layer` of `loads`, and `layer_of_all` of all
    /// layers.
    // The search is large: compile it once, not into each caller.
    #[inline(never)]
    pub fn place(&self, loads: &Loads<'_>, layer: usize, layer_of_all: usize) -> Result<Vec<u32>> {
        let pins = self.pins.get(if self.pins.len() == 1 { 0 } else { layer_of_all });
        let mut solved = self.place_solved(loads, layer, pins)?;
        if let Some(pins) = pins {
            pins.arrange(&mut solved);
        }
        if self.solved_shape == self.shape {
            return Ok(solved);
        }
        let mut slots = vec![NO_EXPERT; self.shape.num_slots()];
        let width = self.solved_shape.slots_per_rank();
        for (to, from) in slots.chunks_exact_mut(self.shape.slots_per_rank()).zip(solved.chunks_exact(width))
        {
            to[..width].copy_from_slice(from);
        }
        Ok(slots)
    }

    fn place_solved(&self, loads: &Loads<'_>, layer: usize, pins: Option<&Arc<Pins>>) -> Result<Vec<u32>> {
        let Solver { config, solved_shape: shape, .. } = *self;
        let sums = loads.layer_sums_f32(layer)?;
        let samples: Vec<&[f64]> = loads.layer(layer).collect();
        let search = Search {
            shape,
            rank_num_slots: config.unequal_rank_num_slots(shape),
            samples: &samples,
            sample_weights: &self.sample_weights,
            measure: &self.measure,
            pins,
            effort: config.effort,
        };
        let is_plain = config.unequal_rank_num_slots(shape).is_none() && pins.is_none();
        let greedies = || match is_plain {
            true => Ok(vec![
                trtllm::place(&sums, shape)?,
                deepseek::slot_experts(&sums, Hierarchy::global(shape)),
            ]),
            // The greedies need equal numbers of slots on all ranks, and pin nothing.
            false => Ok::<_, Error>(Vec::new()),
        };
        match &self.policy {
            CheckedPolicy::Trtllm => trtllm::place(&sums, shape),
            CheckedPolicy::Deepseek(hierarchy) => Ok(deepseek::slot_experts(&sums, *hierarchy)),
            CheckedPolicy::Search => Ok(search.place(&greedies()?)),
            CheckedPolicy::SearchBestSplit { drift } => Ok(search.place_for_best_split(&greedies()?, *drift)),
            CheckedPolicy::SearchOnNodes(nodes) => {
                search.place_on(PricedNodes { nodes, price: config.off_node_price }, &greedies()?)
            }
        }
    }

    /// Returns the placement of `layers` from the slots that [`Solver::place`] returned.
    pub fn placement(&self, layers: &[u32], layer_slots: &[Vec<u32>]) -> Result<Placement> {
        let Solver { config, shape, .. } = *self;
        let num_slots = shape.num_slots();
        let mut slot_experts = try_zeroed(layers.len().checked_mul(num_slots), "the placement")?;
        for (slots, solved) in slot_experts.chunks_exact_mut(num_slots).zip(layer_slots) {
            slots.copy_from_slice(solved);
        }
        let placement = match config.unequal_rank_num_slots(shape) {
            None => Placement::new(shape, layers, &slot_experts),
            Some(rank_num_slots) => {
                Placement::with_rank_num_slots(shape, rank_num_slots, layers, &slot_experts)
            }
        }?;
        // Files of TensorRT-LLM's own policy have the bytes of TensorRT-LLM's own script.
        Ok(placement.with_planned(config.policy != Policy::Trtllm))
    }
}

/// Returns the weight of each sample, scaled to the sum 1. Only the search uses several samples.
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
    let max = given.iter().copied().fold(0.0, f64::max);
    if max == 0.0 {
        return Err(Error::InvalidArgument("all sample weights are 0".into()));
    }
    // Dividing by the largest first keeps the sum finite.
    let sum: f64 = given.iter().map(|weight| weight / max).sum();
    Ok(given.iter().map(|weight| weight / max / sum).collect())
}

fn check_experts(shape: Shape, loads: &Loads<'_>) -> Result<()> {
    if loads.num_experts() == shape.num_experts() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "the loads have {} experts, the shape has {}",
        loads.num_experts(),
        shape.num_experts()
    )))
}
