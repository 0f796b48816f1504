//! Solving: loads to placement.

use super::boundary::{
    Growing, array, boundary, choice, config, copy_out, layer_numbers, number, optional_array,
    optional_config, optional_of_ranks, or_default, out,
};
use super::placement::{eplb_placement, eplb_placement_config};
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::placement::{Shape, suggest_num_slots};
use crate::solve::{
    DEFAULT_DRIFT, DEFAULT_EFFORT, DeepseekArrays, Loads, Objective, Policy, SolveConfig, solve,
};

/// A policy: how replicas and slots are assigned.
pub type eplb_policy = i32;

/// The best policy, in this version EPLB_POLICY_SEARCH. Name a policy to keep results across versions.
pub const EPLB_POLICY_DEFAULT: eplb_policy = 0;
/// TensorRT-LLM's greedy, bit for bit. Each spare slot goes to the expert with the largest load per
/// replica, ties to the higher expert. Each replica, heaviest first, goes to the least loaded rank with a
/// free slot, ties to the lower rank. Samples are summed. It may place an expert twice on a rank.
pub const EPLB_POLICY_TRTLLM: eplb_policy = 1;
/// DeepSeek's eplb.py with one group and one node, in float32, with ties to the lower expert, replica and
/// rank. Samples are summed. It may place an expert twice on a rank.
pub const EPLB_POLICY_DEEPSEEK_GLOBAL: eplb_policy = 2;
/// DeepSeek's eplb.py in two stages, for models with group-limited routing: whole groups are packed onto
/// nodes, then each node places its experts on its own ranks. Groups must split evenly over nodes, experts
/// over groups, ranks over nodes.
pub const EPLB_POLICY_DEEPSEEK_HIERARCHICAL: eplb_policy = 3;
/// Searches replica counts and slots together, until the lower bound is nearly reached, nothing improves,
/// or the effort is spent. It minimises the mean over samples of the most loaded rank's load over the mean
/// load. Without other objectives, nodes, unequal ranks or pinned slots the result is never above
/// EPLB_POLICY_TRTLLM and EPLB_POLICY_DEEPSEEK_GLOBAL.
pub const EPLB_POLICY_SEARCH: eplb_policy = 4;

/// What EPLB_POLICY_SEARCH minimises, by how the engine splits an expert's tokens over its replicas.
pub type eplb_objective = i32;

/// The most loaded rank under an even split, for EPLB_RULE_ROUND_ROBIN and EPLB_RULE_TOKEN_HASH.
pub const EPLB_OBJECTIVE_EVEN_SPLIT: eplb_objective = 0;
/// The most loaded rank under the best split, for EPLB_RULE_LEAST_LOADED, with loads that drift from the
/// planned ones. The even split stays within 1 % of EPLB_OBJECTIVE_EVEN_SPLIT. Takes some hundred times as
/// long. Not with an off_node_price.
pub const EPLB_OBJECTIVE_BEST_SPLIT: eplb_objective = 1;

/// How to solve. Zero is the default of every field. Every field is checked, but only EPLB_POLICY_SEARCH
/// uses all; the other policies use policy, num_threads, num_groups and num_nodes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_solve_options {
    /// Set by EPLB_SOLVE_OPTIONS_INIT.
    pub struct_size: usize,
    /// The policy.
    pub policy: eplb_policy,
    /// The objective.
    pub objective: eplb_objective,
    /// Threads, which solve layers in parallel; 0: one a core, at most 8. Results do not depend on it.
    pub num_threads: u32,
    /// Groups of consecutive experts, of equal size; 0: 1.
    pub num_groups: u32,
    /// Nodes of consecutive ranks, of equal size; 0: 1.
    pub num_nodes: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The node of each rank, in place of num_nodes: [num_ranks], nodes of any size. Any int32 names a node;
    /// of equal choices the node with the lower number comes first. May be NULL.
    pub rank_to_node: *const i32,
    /// Price of load off its group's home node: the objective adds this times the off-node share. 0: nodes do
    /// not matter; infinity: every replica stays on its home node, as in eplb.py.
    pub off_node_price: f64,
    /// The weight of each sample: [num_samples], finite, not negative, not all 0. NULL: equal.
    pub sample_weights: *const f64,
    /// Minimise this quantile over samples instead of the mean: above 0, at most 1 (.5 median, 1 worst); 0:
    /// the mean.
    pub quantile: f64,
    /// For EPLB_OBJECTIVE_BEST_SPLIT: the standard deviation of the logarithm of an expert's load around the
    /// planned one, at most 2; 0: 0.2; negative: none.
    pub drift: f64,
    /// Moves to try for each slot, and as many again far above the lower bound; 0: 200. Not time, so that
    /// results repeat.
    pub effort: usize,
    /// The expert that each slot holds in the result, -1 in free slots: [num_pinned_layers][num_slots]. Only
    /// for EPLB_POLICY_SEARCH, which then may end above the greedy policies. NULL: none.
    pub pinned_experts: *const i32,
    /// Rows of pinned_experts: 1 for all layers, or num_layers.
    pub num_pinned_layers: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers and pointers.
unsafe impl Growing for eplb_solve_options {}

/// An objective by its number.
pub(super) fn objective(number: eplb_objective, name: &str) -> Result<Objective> {
    choice!(number, name, {
        EPLB_OBJECTIVE_EVEN_SPLIT => Objective::EvenSplit,
        EPLB_OBJECTIVE_BEST_SPLIT => Objective::BestSplit,
    })
}

impl eplb_solve_options {
    /// The options as the library takes them, without the pinned slots: see [`Self::pinned_experts`].
    ///
    /// # Safety
    /// rank_to_node is NULL or of `num_ranks` values, sample_weights NULL or of `num_samples`.
    pub(super) unsafe fn solve_config<'a>(
        &self,
        num_ranks: u32,
        num_samples: usize,
    ) -> Result<SolveConfig<'a>> {
        if self.reserved != 0 {
            return Err(Error::InvalidArgument(format!(
                "options->reserved is {}; it must be 0",
                self.reserved
            )));
        }
        // SAFETY: the caller's promises.
        let (rank_to_node, sample_weights) = unsafe {
            (
                optional_of_ranks(self.rank_to_node, num_ranks, "options->rank_to_node")?,
                optional_array(self.sample_weights, num_samples, "options->sample_weights")?,
            )
        };
        Ok(SolveConfig {
            policy: choice!(self.policy, "options->policy", {
                EPLB_POLICY_DEFAULT => Policy::default(),
                EPLB_POLICY_TRTLLM => Policy::Trtllm,
                EPLB_POLICY_DEEPSEEK_GLOBAL => Policy::DeepseekGlobal,
                EPLB_POLICY_DEEPSEEK_HIERARCHICAL => Policy::DeepseekHierarchical,
                EPLB_POLICY_SEARCH => Policy::Search,
            })?,
            objective: objective(self.objective, "options->objective")?,
            num_groups: self.num_groups(),
            num_nodes: or_default(self.num_nodes).unwrap_or(1),
            rank_to_node,
            off_node_price: self.off_node_price,
            sample_weights,
            quantile: (self.quantile != 0.0).then_some(self.quantile),
            drift: match self.drift {
                0.0 => DEFAULT_DRIFT,
                none if none < 0.0 => 0.0,
                drift => drift,
            },
            effort: if self.effort == 0 { DEFAULT_EFFORT } else { self.effort },
            ..SolveConfig::default()
        })
    }

    /// The pinned slots, which are not read unless their rows are for 1 layer or for each of `num_layers`.
    ///
    /// # Safety
    /// pinned_experts is NULL or [num_pinned_layers][`num_slots`] where num_pinned_layers is 1 or `num_layers`.
    pub(super) unsafe fn pinned_experts<'a>(
        &self,
        num_slots: usize,
        num_layers: usize,
    ) -> Result<Option<&'a [u32]>> {
        let refuse = |what: String| Err(Error::InvalidArgument(format!("options->{what}")));
        let rows = self.num_pinned_layers;
        match (self.pinned_experts.is_null(), rows) {
            (true, 0) => return Ok(None),
            (true, _) => return refuse(format!("pinned_experts is NULL, but num_pinned_layers is {rows}")),
            (false, 0) => {
                return refuse("num_pinned_layers is 0; set it to 1 for all layers, or to num_layers".into());
            }
            (false, _) if rows != 1 && rows != num_layers => {
                return refuse(format!(
                    "num_pinned_layers is {rows}; 1 or {num_layers}, the number of layers, expected"
                ));
            }
            (false, _) => {}
        }
        let num_pinned = rows.saturating_mul(num_slots);
        // SAFETY: the caller's promise. A negative expert becomes one that does not exist, or a free slot.
        unsafe { optional_array(self.pinned_experts.cast(), num_pinned, "options->pinned_experts") }
    }

    /// Groups of experts.
    pub(super) fn num_groups(&self) -> usize {
        or_default(self.num_groups).unwrap_or(1)
    }

    /// The node of each rank of `shape`; `None` if neither rank_to_node nor num_nodes is set.
    ///
    /// # Safety
    /// rank_to_node is NULL or of as many values as the shape has ranks.
    pub(super) unsafe fn nodes(&self, shape: Shape) -> Result<Option<Vec<i32>>> {
        let num_ranks = shape.num_ranks();
        // SAFETY: the caller's promise.
        if let Some(nodes) = unsafe { optional_array(self.rank_to_node, num_ranks, "options->rank_to_node") }?
        {
            return Ok(Some(nodes.to_vec()));
        }
        let Some(num_nodes) = or_default(self.num_nodes) else { return Ok(None) };
        if !num_ranks.is_multiple_of(num_nodes) {
            return Err(Error::InvalidShape(format!(
                "{num_ranks} ranks cannot be split evenly over {num_nodes} nodes; set options->rank_to_node"
            )));
        }
        Ok(Some((0..num_ranks).map(|rank| (rank / (num_ranks / num_nodes)) as i32).collect()))
    }
}

/// Solves: decides which expert each slot holds, so that the ranks carry equal load.
///
/// \param config       the shape
/// \param options      NULL for the defaults
/// \param layer_ids    layer numbers, each once: [num_layers]
/// \param num_layers   at least 1
/// \param loads        [num_layers][num_samples][num_experts], finite and not negative, in any unit
/// \param num_samples  at least 1. A sample is one situation to balance: some iterations, or a workload
/// \param placement    receives the handle
/// \return EPLB_STATUS_INVALID_SHAPE with the nearest valid numbers of slots; EPLB_STATUS_INVALID_LOADS
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_solve(
    config: *const eplb_placement_config,
    options: *const eplb_solve_options,
    layer_ids: *const i32,
    num_layers: usize,
    loads: *const f64,
    num_samples: usize,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, options, layer_ids, placement) = unsafe {
            (
                self::config(config, "config")?,
                optional_config(options, "options")?,
                array(layer_ids, Some(num_layers), "layer_ids")?,
                out(placement, "placement")?,
            )
        };
        let num_experts = config.num_experts as usize;
        let num_loads = num_layers.checked_mul(num_samples).and_then(|rows| rows.checked_mul(num_experts));
        config.allow_empty_slots()?;
        // SAFETY: the caller's promises of [num_ranks], of the options' arrays and of the loads.
        let (slots, solving, pinned_experts, loads) = unsafe {
            let slots = config.rank_num_slots()?;
            (
                slots,
                options.solve_config(config.num_ranks, num_samples)?,
                options.pinned_experts(config.num_slots_or_0(slots), num_layers)?,
                array(loads, num_loads, "loads")?,
            )
        };
        let solving = SolveConfig { rank_num_slots: slots, pinned_experts, ..solving };
        let (layers, shape) = (layer_numbers(layer_ids)?, config.shape(slots)?);
        let loads = Loads::new(loads, &layers, num_samples, num_experts)?;
        let solved = solve(&solving, shape, &loads, options.num_threads as usize)?;
        placement.give(eplb_placement(solved.with_layer_updates_per_iter(config.layer_updates_per_iter)));
        Ok(())
    })
}

/// Solves by DeepSeek's rules and returns the three arrays of eplb.py's rebalance_experts(weight,
/// num_replicas, num_groups, num_nodes, num_gpus), here loads, num_slots, num_groups, num_nodes and
/// num_ranks.
///
/// \param config        the shape
/// \param options       a DeepSeek policy, or EPLB_POLICY_DEFAULT for eplb.py's choice: hierarchical if the
///                      groups split evenly over the nodes, otherwise global. NULL for the defaults
/// \param loads         [num_layers][num_experts], finite and not negative, in any unit
/// \param num_layers    at least 1; errors name layers by index
/// \param max_replicas  length of a row of log2phy; num_slots - num_experts + 1 is enough
/// \param phy2log       receives the expert of each slot: [num_layers][num_slots]
/// \param log2phy       receives the slots of each expert, in order of replica, padded with -1:
///                      [num_layers][num_experts][max_replicas]
/// \param logcnt        receives the replicas of each expert: [num_layers][num_experts]
/// \return as eplb_solve(); EPLB_STATUS_INVALID_ARGUMENT also if max_replicas is too small. Nothing is
///         written then
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_deepseek_rebalance(
    config: *const eplb_placement_config,
    options: *const eplb_solve_options,
    loads: *const f64,
    num_layers: usize,
    max_replicas: usize,
    phy2log: *mut i32,
    log2phy: *mut i32,
    logcnt: *mut i32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, options) = unsafe {
            out(phy2log, "phy2log")?;
            out(log2phy, "log2phy")?;
            out(logcnt, "logcnt")?;
            (self::config(config, "config")?, optional_config(options, "options")?)
        };
        let num_experts = config.num_experts as usize;
        config.allow_empty_slots()?;
        // SAFETY: the caller's promises of [num_ranks], of the options' arrays, of 1 sample, and of the loads.
        let (slots, solving, pinned_experts, loads) = unsafe {
            let slots = config.rank_num_slots()?;
            (
                slots,
                options.solve_config(config.num_ranks, 1)?,
                options.pinned_experts(config.num_slots_or_0(slots), num_layers)?,
                array(loads, num_layers.checked_mul(num_experts), "loads")?,
            )
        };
        let policy = match options.policy {
            EPLB_POLICY_DEFAULT => Policy::of_deepseek(solving.num_groups, solving.num_nodes),
            _ => solving.policy,
        };
        let solving = SolveConfig { policy, rank_num_slots: slots, pinned_experts, ..solving };
        let layers: Vec<u32> = (0..number(num_layers, "num_layers")?).collect();
        let shape = config.shape(slots)?;
        let loads = Loads::new(loads, &layers, 1, num_experts)?;
        let arrays = DeepseekArrays::solve(&solving, shape, &loads, options.num_threads as usize)?;
        let expert_slots = arrays.log2phy(max_replicas)?;
        // SAFETY: the caller's promises for each pointer.
        unsafe {
            copy_out(&arrays.phy2log(), phy2log, "phy2log")?;
            copy_out(&expert_slots, log2phy, "log2phy")?;
            copy_out(&arrays.logcnt(), logcnt, "logcnt")
        }
    })
}

/// Returns the valid numbers of slots nearest to a given one: multiples of num_ranks, at least num_experts.
///
/// \param num_experts  experts of a layer
/// \param num_ranks    ranks of the expert-parallel group
/// \param num_slots    the given number, of all ranks together
/// \param below        receives the largest valid number not above num_slots; 0: none
/// \param above        receives the smallest valid number not below num_slots; 0: none up to the limit,
///                     1,048,576
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_suggest_num_slots(
    num_experts: u32,
    num_ranks: u32,
    num_slots: u32,
    below: *mut u32,
    above: *mut u32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (to_below, to_above) = unsafe { (out(below, "below")?, out(above, "above")?) };
        if num_experts == 0 || num_ranks == 0 {
            return Err(Error::InvalidArgument(format!("{num_experts} experts on {num_ranks} ranks")));
        }
        let (below, above) = suggest_num_slots(num_experts as usize, num_ranks as usize, num_slots as usize);
        to_below.set(below.unwrap_or(0) as u32);
        to_above.set(above.unwrap_or(0) as u32);
        Ok(())
    })
}
