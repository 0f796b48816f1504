//! Solving: loads to placement.

use super::boundary::{
    Growing, array, boundary, config, copy_out, layer_numbers, number, optional_array, optional_of_ranks,
    or_default, out,
};
use super::placement::eplb_placement;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::placement::{Shape, suggest_num_slots};
use crate::solve::{
    DEFAULT_DRIFT, DEFAULT_EFFORT, DeepseekArrays, Loads, Objective, Policy, SolveConfig, solve,
};

/// A rule for placing experts.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_policy {
    /// The best that the library has: today EPLB_POLICY_SEARCH. Name a policy where results must not change with a
    /// later library.
    Default = 0,
    /// TensorRT-LLM's greedy, bit for bit. Each spare slot goes to the expert with the largest load per replica, ties to
    /// the higher expert; then each replica, heaviest first, ties by expert, to the least loaded rank that has a free
    /// slot, ties to the lower rank. Samples are added up and rounded to float32. It may put an expert twice on a rank.
    Trtllm = 1,
    /// DeepSeek's greedy over all ranks, as its eplb.py with one group and one node. Each spare slot goes to the expert
    /// with the largest load per replica; then each replica, heaviest first, to the least loaded rank that has a free
    /// slot; with as many slots as ranks, each in the order of its creation. All ties go to the lower expert, replica and
    /// rank. Samples are added up and rounded to float32, in which the rest is computed. It may put an expert twice on a
    /// rank.
    DeepseekGlobal = 2,
    /// The same in two stages, for models that route each token to a few groups of experts: whole groups go to nodes,
    /// heaviest first, each to the least loaded node that has room for it; then each node places its experts on its own
    /// ranks. num_groups and num_nodes say how many there are. The groups must split evenly over the nodes, and so must
    /// the experts over the groups and the ranks over the nodes. A group's load is the float32 sum of its experts, one
    /// after the other.
    DeepseekHierarchical = 3,
    /// Replica counts and ranks chosen together: exchanges of slots and changes of counts from a first placement on, and from
    /// others where that does not end near the lower bound that no placement is below, until none can be better by more than
    /// one or two ten-thousandths, nothing helps, or the effort is spent. Of several samples it levels each: the mean over samples of the most
    /// loaded rank's load over the mean rank load. In that, unless another objective, nodes or unequal ranks are asked for, it
    /// is never above EPLB_POLICY_TRTLLM and EPLB_POLICY_DEEPSEEK_GLOBAL. An expert is twice on a rank only where the search finds
    /// nothing as good otherwise.
    Search = 4,
}

/// How an engine splits an expert's tokens over its replicas at run time, and so what EPLB_POLICY_SEARCH has to make small.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_objective {
    /// Evenly, as EPLB_ROUTE_ROUND_ROBIN and EPLB_ROUTE_TOKEN_HASH do: the most loaded rank's load over the mean rank load.
    EvenSplit = 0,
    /// By need, as EPLB_ROUTE_LEAST_LOADED does, the default of routing: the same in the best possible split, where loads have
    /// drifted from the planned ones.
    /// Replicas then link ranks such that load can flow to wherever it turns out too small. The even split of the planned
    /// loads stays within a hundredth of what EPLB_OBJECTIVE_EVEN_SPLIT finds, for times when the engine has to fall back to
    /// it. Takes some hundreds of times as long, 20 to 40 ms for a layer of 256 experts, which is why it is not the default. Not with
    /// an off_node_price.
    BestSplit = 1,
}

const DEFAULT: i32 = eplb_policy::Default as i32;

/// The node of each rank, `None` for NULL.
///
/// # Safety
/// `rank_to_node` is NULL or points to `num_ranks` nodes.
pub(super) unsafe fn rank_nodes(
    rank_to_node: *const i32,
    num_ranks: u32,
    name: &str,
) -> Result<Option<Vec<i32>>> {
    // SAFETY: the caller's promise.
    Ok(unsafe { optional_of_ranks(rank_to_node, num_ranks, name) }?.map(<[i32]>::to_vec))
}

/// What the search is told, as it came in from C.
pub(super) struct Wanted {
    pub effort: usize,
    pub off_node_price: f64,
    pub quantile: f64,
    pub drift: f64,
    pub objective: i32,
    pub reserved: u32,
}

/// How to solve, as it came in from C.
pub(super) fn solve_config(
    policy: i32,
    (num_groups, num_nodes): (u32, u32),
    wanted: &Wanted,
) -> Result<SolveConfig<'static>> {
    const EVEN_SPLIT: i32 = eplb_objective::EvenSplit as i32;
    const BEST_SPLIT: i32 = eplb_objective::BestSplit as i32;
    const TRTLLM: i32 = eplb_policy::Trtllm as i32;
    const GLOBAL: i32 = eplb_policy::DeepseekGlobal as i32;
    const HIERARCHICAL: i32 = eplb_policy::DeepseekHierarchical as i32;
    const SEARCH: i32 = eplb_policy::Search as i32;
    let policy = match policy {
        DEFAULT => Policy::default(),
        TRTLLM => Policy::Trtllm,
        GLOBAL => Policy::DeepseekGlobal,
        HIERARCHICAL => Policy::DeepseekHierarchical,
        SEARCH => Policy::Search,
        unknown => {
            return Err(Error::InvalidArgument(format!(
                "policy is {unknown}; EPLB_POLICY_DEFAULT is {DEFAULT}, EPLB_POLICY_TRTLLM {TRTLLM}, \
                 EPLB_POLICY_DEEPSEEK_GLOBAL {GLOBAL}, EPLB_POLICY_DEEPSEEK_HIERARCHICAL {HIERARCHICAL} and \
                  EPLB_POLICY_SEARCH {SEARCH}"
            )));
        }
    };
    let objective = match wanted.objective {
        EVEN_SPLIT => Objective::EvenSplit,
        BEST_SPLIT => Objective::BestSplit,
        unknown => {
            return Err(Error::InvalidArgument(format!(
                "objective is {unknown}; EPLB_OBJECTIVE_EVEN_SPLIT is {EVEN_SPLIT} and EPLB_OBJECTIVE_BEST_SPLIT {BEST_SPLIT}"
            )));
        }
    };
    if wanted.reserved != 0 {
        return Err(Error::InvalidArgument(format!("reserved is {}; it must be 0", wanted.reserved)));
    }
    let count = |count| or_default(count).unwrap_or(1);
    Ok(SolveConfig {
        policy,
        num_groups: count(num_groups),
        num_nodes: count(num_nodes),
        effort: if wanted.effort == 0 { DEFAULT_EFFORT } else { wanted.effort },
        off_node_price: wanted.off_node_price,
        quantile: (wanted.quantile != 0.0).then_some(wanted.quantile),
        objective,
        drift: match wanted.drift {
            0.0 => DEFAULT_DRIFT,
            none if none < 0.0 => 0.0,
            drift => drift,
        },
        ..SolveConfig::default()
    })
}

/// How to solve. Initialise with EPLB_SOLVE_CONFIG_INIT; zero is a field's default where it has one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_solve_config {
    /// sizeof(eplb_solve_config)
    pub struct_size: usize,
    /// An eplb_policy.
    pub policy: i32,
    /// Ranks of the expert-parallel group. Must be given.
    pub num_ranks: u32,
    /// Slots of all ranks together, a multiple of the ranks and not below the experts; 0: one an expert.
    pub num_slots: u32,
    /// Threads that solve, layers in parallel; 0: one a core, at most 8. Results do not depend on it.
    pub num_threads: u32,
    /// Groups of experts, of consecutive experts and equally large; 0: one. For EPLB_POLICY_DEEPSEEK_HIERARCHICAL, and for
    /// EPLB_POLICY_SEARCH with an off_node_price; otherwise ignored.
    pub num_groups: u32,
    /// Nodes, of consecutive ranks and equally large; 0: one. As num_groups.
    pub num_nodes: u32,
    /// How many exchanges, about, EPLB_POLICY_SEARCH looks at for each slot before it is content with what it has, and again as
    /// many where that is far above the lower bound; 0: 200, beyond which there is mostly little to gain. Not time, so that
    /// results repeat.
    pub effort: usize,
    /// In place of num_nodes, for EPLB_POLICY_SEARCH: the node of each rank, int32 [num_ranks], any ids, nodes of any size;
    /// NULL: as num_nodes says.
    pub rank_to_node: *const i32,
    /// For EPLB_POLICY_SEARCH: what load on another node than its group's home costs; not negative. 0: nodes are no matter.
    /// Otherwise each group of experts has a home node in each layer, and what is to be small is the most loaded rank's load
    /// over the mean rank load, plus this times the share of all load that is not at home. Infinity keeps every replica at
    /// home, DeepSeek's hard rule. See eplb_placement_off_node_share().
    pub off_node_price: f64,
    /// For EPLB_POLICY_SEARCH: what each sample counts for, double [num_samples], finite, not negative and not all zero; only
    /// ratios matter. NULL: the same.
    pub sample_weights: *const f64,
    /// For EPLB_POLICY_SEARCH: in place of the mean over samples, what samples of at least this part of all weight do not
    /// exceed: above 0, at most 1, such as .5 for the median or 1 for the worst sample. 0: the mean.
    pub quantile: f64,
    /// For EPLB_OBJECTIVE_BEST_SPLIT: how far an expert's load may drift from the planned one, as the standard deviation of its
    /// natural logarithm, at most 2. 0: .2; negative: not at all, plan for these loads alone.
    pub drift: f64,
    /// For EPLB_POLICY_SEARCH: an eplb_objective, by how the engine splits tokens at run time.
    pub objective: i32,
    /// Must be 0.
    pub reserved: u32,
    /// For EPLB_POLICY_SEARCH: the slots of each rank, int32 [num_ranks], at least 1; NULL: num_slots / num_ranks each.
    /// num_slots is then 0 or the largest of them times num_ranks, since slots are numbered as if all ranks had as many as
    /// the one with the most: those that a rank lacks are its last and hold -1. Dispatch serves such a placement; a
    /// configuration file cannot hold it. Not with an off_node_price.
    pub slots_per_rank: *const i32,
}

impl eplb_solve_config {
    fn wanted(&self) -> Wanted {
        Wanted {
            effort: self.effort,
            off_node_price: self.off_node_price,
            quantile: self.quantile,
            drift: self.drift,
            objective: self.objective,
            reserved: self.reserved,
        }
    }
}

// SAFETY: `repr(C)`, `struct_size` first, numbers and pointers.
unsafe impl Growing for eplb_solve_config {}

/// Decides which expert each slot holds, so that the ranks carry equal load.
///
/// \param config       from EPLB_SOLVE_CONFIG_INIT, with the ranks filled in
/// \param loads        [num_layers][num_samples][num_experts], finite and not negative, in any unit
/// \param layer_ids    int32 [num_layers], the model's own layer numbers, each once
/// \param num_layers   at least 1
/// \param num_samples  at least 1. A sample is one situation that the placement should be good for: an iteration, or a
///                     workload
/// \param num_experts  experts of each layer
/// \param placement    receives the handle, which goes back by eplb_placement_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE with the nearest valid numbers of slots in the message, or with what
///         does not split evenly over groups or nodes; EPLB_STATUS_INVALID_LOADS naming layer, sample and expert;
///         EPLB_STATUS_INVALID_ARGUMENT, also for weights or a price that are none
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_solve(
    config: *const eplb_solve_config,
    loads: *const f64,
    layer_ids: *const i32,
    num_layers: usize,
    num_samples: usize,
    num_experts: usize,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        let num_loads = num_layers.checked_mul(num_samples).and_then(|rows| rows.checked_mul(num_experts));
        // SAFETY: the caller's promises for each pointer.
        let (config, loads, layer_ids, placement) = unsafe {
            (
                self::config(config, "config")?,
                array(loads, num_loads, "loads")?,
                array(layer_ids, Some(num_layers), "layer_ids")?,
                out(placement, "placement")?,
            )
        };
        // SAFETY: the caller's promises of [num_ranks] and [num_samples].
        let (nodes, weights, slots) = unsafe {
            (
                rank_nodes(config.rank_to_node, config.num_ranks, "config->rank_to_node")?,
                optional_array(config.sample_weights, num_samples, "config->sample_weights")?,
                rank_slots(config.slots_per_rank, config.num_ranks)?,
            )
        };
        let counts = (config.num_groups, config.num_nodes);
        let solving = SolveConfig {
            rank_to_node: nodes.as_deref(),
            sample_weights: weights,
            slots_per_rank: slots,
            ..solve_config(config.policy, counts, &config.wanted())?
        };
        let layers = layer_numbers(layer_ids)?;
        let shape = padded_shape((num_experts, config.num_slots, config.num_ranks), slots)?;
        let loads = Loads::new(loads, &layers, num_samples, num_experts)?;
        placement.give(eplb_placement(solve(&solving, shape, &loads, config.num_threads as usize)?));
        Ok(())
    })
}

/// Solves by DeepSeek's rules and gives the three arrays of its rebalance_experts(), for code written for eplb.py. A
/// program that is not can call eplb_solve() with the same policies.
///
/// In place of `weight, num_replicas, num_groups, num_nodes, num_gpus` there are loads and the config's num_slots,
/// num_groups, num_nodes and num_ranks. Its policy is EPLB_POLICY_DEEPSEEK_GLOBAL, EPLB_POLICY_DEEPSEEK_HIERARCHICAL or
/// EPLB_POLICY_DEFAULT, which here is eplb.py's own choice: hierarchical where the groups split evenly over the nodes,
/// global where they do not.
///
/// \param config        from EPLB_SOLVE_CONFIG_INIT, with the ranks filled in
/// \param loads         [num_layers][num_experts], finite and not negative, in any unit
/// \param num_layers    at least 1; errors name layers by their index
/// \param num_experts   experts of each layer
/// \param max_replicas  room for the slots of each expert in log2phy; num_slots - num_experts + 1 is always enough
/// \param phy2log       int32 [num_layers][num_slots], receives the expert of each slot
/// \param log2phy       int32 [num_layers][num_experts][max_replicas], receives the slots of each expert in the order in
///                      which its replicas were created, padded with -1
/// \param logcnt        int32 [num_layers][num_experts], receives the number of replicas of each expert
/// \return as eplb_solve(); EPLB_STATUS_INVALID_ARGUMENT also where an expert has more than max_replicas, with the number
///         that is enough in the message, and for another policy. Nothing is written then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_deepseek_rebalance(
    config: *const eplb_solve_config,
    loads: *const f64,
    num_layers: usize,
    num_experts: usize,
    max_replicas: usize,
    phy2log: *mut i32,
    log2phy: *mut i32,
    logcnt: *mut i32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, loads) = unsafe {
            out(phy2log, "phy2log")?;
            out(log2phy, "log2phy")?;
            out(logcnt, "logcnt")?;
            (self::config(config, "config")?, array(loads, num_layers.checked_mul(num_experts), "loads")?)
        };
        // SAFETY: the caller's promise of [num_ranks].
        let slots = unsafe { rank_slots(config.slots_per_rank, config.num_ranks) }?;
        let shape = padded_shape((num_experts, config.num_slots, config.num_ranks), slots)?;
        let layers: Vec<u32> = (0..number(num_layers, "num_layers")?).collect();
        let loads = Loads::new(loads, &layers, 1, num_experts)?;
        let solving = SolveConfig { slots_per_rank: slots, ..deepseek_config(&config)? };
        let arrays = DeepseekArrays::solve(&solving, shape, &loads, config.num_threads as usize)?;
        let of_experts = arrays.log2phy(max_replicas)?;
        // SAFETY: the caller's promises for each pointer.
        unsafe {
            copy_out(&arrays.phy2log(), phy2log, "phy2log")?;
            copy_out(&of_experts, log2phy, "log2phy")?;
            copy_out(&arrays.logcnt(), logcnt, "logcnt")
        }
    })
}

/// As [`solve_config`], where the default is the choice of DeepSeek's rebalance_experts().
fn deepseek_config(config: &eplb_solve_config) -> Result<SolveConfig<'static>> {
    let counts = (config.num_groups, config.num_nodes);
    let given = solve_config(config.policy, counts, &config.wanted())?;
    let policy = match config.policy {
        DEFAULT => Policy::of_deepseek(given.num_groups, given.num_nodes),
        _ => given.policy,
    };
    Ok(SolveConfig { policy, ..given })
}

/// The slots of each rank, `None` for NULL.
///
/// # Safety
/// `slots_per_rank` is NULL or points to `num_ranks` numbers, which live as long as the result.
pub(super) unsafe fn rank_slots<'a>(slots_per_rank: *const i32, num_ranks: u32) -> Result<Option<&'a [u32]>> {
    // SAFETY: the caller's promise. A negative number becomes one that is too large.
    unsafe { optional_of_ranks(slots_per_rank.cast(), num_ranks, "config->slots_per_rank") }
}

/// Experts, slots (0 for the default) and ranks, where ranks may have `slots` of their own.
pub(super) fn padded_shape(
    (num_experts, num_slots, num_ranks): (usize, u32, u32),
    slots: Option<&[u32]>,
) -> Result<Shape> {
    let num_ranks = num_ranks as usize;
    let most = slots.and_then(|slots| slots.iter().max()).map(|&most| most as usize);
    let default = most.map_or(num_experts, |most| most.saturating_mul(num_ranks));
    Shape::new(num_experts, or_default(num_slots).unwrap_or(default), num_ranks)
}

/// Finds the valid numbers of slots nearest to a wanted one: multiples of the ranks that are not below the experts.
///
/// \param num_experts  experts of a layer
/// \param num_ranks    ranks of the expert-parallel group
/// \param num_slots    the wanted number, of all ranks together
/// \param below        receives the largest valid number that is not above num_slots, 0 where there is none
/// \param above        receives the smallest valid number that is not below num_slots, 0 where there is none within the
///                     library's limit of 1,048,576; equal to below where num_slots is valid itself
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT for no experts or no ranks
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
