//! Evaluation: how evenly a placement loads the ranks.

use super::boundary::{
    Growing, array, borrowed, boundary, choice, config, copy_out, growing_out, number, optional_config,
    optional_of_ranks,
};
use super::device::{EPLB_DEVICE_HOST, EPLB_DTYPE_INT32, EPLB_DTYPE_INT64, eplb_expert_ids};
use super::dispatch::{eplb_dispatch_config, with_config};
use super::placement::eplb_placement;
use super::solve::eplb_solve_options;
use super::status::eplb_status;
use crate::dispatch::DispatchConfig;
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::report::{RoutingOptions, expected_load, routed_load, score};

/// How evenly a placement loads the ranks in one layer, in the unit of the loads. Figures are computed for
/// each sample and averaged: ratios over samples with load, else NaN; loads over all samples.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_placement_evaluation {
    /// Set by EPLB_PLACEMENT_EVALUATION_INIT.
    pub struct_size: usize,
    /// Mean load of a rank.
    pub mean_load: f64,
    /// Load of the most loaded rank, an expert's load split evenly over its replicas.
    pub max_load: f64,
    /// (max - mean) / mean: 0 is even.
    pub imbalance_ratio: f64,
    /// mean / max: 1 is even.
    pub balancedness: f64,
    /// The rank with the largest load over all samples.
    pub worst_rank: u32,
    /// Most slots of any expert.
    pub max_replicas: u32,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: u64,
    /// A bound on max_load over all placements of this shape: none is below it. Not every bound is reached.
    pub lower_bound: f64,
    /// (max - lower bound) / lower bound: 0 proves that no placement is better.
    pub gap: f64,
    /// Load of the most loaded rank if each expert's load is split over its replicas in the best fractions.
    /// EPLB_RULE_LEAST_LOADED comes close to it.
    pub best_split_max_load: f64,
    /// mean / max of the best split.
    pub best_split_balancedness: f64,
    /// Share of the load on another node than its group's home node, the node with most of the group's load
    /// over all samples (the lowest of equals). NaN unless the options name nodes.
    pub off_node_share: f64,
    /// Samples without load, which ratios leave out.
    pub num_idle_samples: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers only.
unsafe impl Growing for eplb_placement_evaluation {}

/// Computes how evenly a placement loads the ranks in one layer, and how far that is from the best
/// possible.
///
/// \param placement    the placement
/// \param layer        the layer's number
/// \param loads        [num_samples][num_experts], finite and not negative, in any unit
/// \param num_samples  at least 1
/// \param num_experts  that of the placement, as a check
/// \param options      num_groups and num_nodes or rank_to_node, for off_node_share; NULL: without it
/// \param evaluation   receives the figures
/// \return EPLB_STATUS_INVALID_LOADS; EPLB_STATUS_INVALID_SHAPE if experts do not split evenly into groups,
///         or ranks into nodes
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_evaluate(
    placement: *const eplb_placement,
    layer: i32,
    loads: *const f64,
    num_samples: usize,
    num_experts: usize,
    options: *const eplb_solve_options,
    evaluation: *mut eplb_placement_evaluation,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, loads, options, evaluation) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                array(loads, num_samples.checked_mul(num_experts), "loads")?,
                optional_config(options, "options")?,
                growing_out(evaluation, "evaluation")?,
            )
        };
        let layer = number(layer, "layer")?;
        // SAFETY: the caller's promise of [num_ranks].
        let nodes = unsafe { options.nodes(placement.shape()) }?;
        let score = score(placement, layer, loads, num_samples, num_experts)?;
        let (balance, bound, best) = (score.balance(), score.bound_gap(), score.best_split());
        let share = match nodes {
            Some(nodes) => score.off_node_share(options.num_groups(), &nodes)?,
            None => None,
        };
        evaluation.set(eplb_placement_evaluation {
            struct_size: 0,
            mean_load: balance.mean,
            max_load: balance.max,
            imbalance_ratio: balance.imbalance_ratio.unwrap_or(f64::NAN),
            balancedness: balance.balancedness.unwrap_or(f64::NAN),
            worst_rank: number(balance.worst_rank, "worst_rank")?,
            max_replicas: score.max_replicas(),
            num_duplicates: score.num_duplicates() as u64,
            lower_bound: bound.lower_bound,
            gap: bound.gap.unwrap_or(f64::NAN),
            best_split_max_load: best.max,
            best_split_balancedness: best.balancedness.unwrap_or(f64::NAN),
            off_node_share: share.unwrap_or(f64::NAN),
            num_idle_samples: balance.idle_samples as u64,
        });
        Ok(())
    })
}

/// Computes the load of each rank under a routing rule from counts. It is exact for EPLB_RULE_LEAST_LOADED
/// with one batch a rank; for the other rules it is the long-run share of each replica.
///
/// \param placement         the placement
/// \param config            num_ranks, rule and rank_to_node are used
/// \param layer             the layer's number
/// \param rank_counts       ids by rank and expert, below 2^31: int64 [num_ranks][num_experts]
/// \param with_rank_counts  nonzero: EPLB_RULE_LEAST_LOADED has the counts of all ranks
/// \param rank_loads        receives the ids that each rank gets: [num_ranks]
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_expected_load(
    placement: *const eplb_placement,
    config: *const eplb_dispatch_config,
    layer: i32,
    rank_counts: *const i64,
    with_rank_counts: i32,
    rank_loads: *mut f64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, config) =
            unsafe { (&borrowed(placement, "placement")?.0, self::config(config, "config")?) };
        let layer = number(layer, "layer")?;
        let (num_ranks, num_experts) = (placement.shape().num_ranks(), placement.shape().num_experts());
        // SAFETY: the caller's promises for the counts and for what the config points to. A negative count becomes a large one.
        let loads = unsafe {
            let counts = array(rank_counts.cast::<u64>(), num_ranks.checked_mul(num_experts), "rank_counts")?;
            with_any_rank(placement, &config, |config| {
                let routed = RoutingOptions {
                    rule: config.rule,
                    rank_to_node: config.rank_to_node,
                    with_rank_counts: with_rank_counts != 0,
                };
                expected_load(placement, layer, routed, counts)
            })
        }?;
        // SAFETY: the caller's promise of [num_ranks].
        unsafe { copy_out(&loads, rank_loads, "rank_loads") }
    })
}

/// Computes the load of each rank from recorded ids, by routing one batch of each rank as its dispatch
/// would. Ids outside [0, num_experts) add no load.
///
/// \param placement         the placement
/// \param config            as for eplb_dispatch_create(); rank, device, layer_ids and workspace are
///                          ignored
/// \param layer             the layer's number
/// \param expert_ids        in host memory: the tokens of rank 0, [rank_tokens[0]][experts_per_token], then
///                          those of rank 1, and so on, without gaps
/// \param rank_tokens       tokens of each rank, at most 2^31 - 1 ids: [num_ranks]
/// \param with_rank_counts  nonzero: EPLB_RULE_LEAST_LOADED has the counts of all ranks
/// \param rank_loads        receives the ids that each rank gets: [num_ranks]
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_placement_routed_load(
    placement: *const eplb_placement,
    config: *const eplb_dispatch_config,
    layer: i32,
    expert_ids: *const eplb_expert_ids,
    rank_tokens: *const u32,
    with_rank_counts: i32,
    rank_loads: *mut f64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, config, expert_ids) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                self::config(config, "config")?,
                borrowed(expert_ids, "expert_ids")?,
            )
        };
        let (layer, all) = (number(layer, "layer")?, with_rank_counts != 0);
        if ![0, config.experts_per_token].contains(&expert_ids.row_stride) {
            return Err(Error::InvalidArgument(format!(
                "expert_ids->row_stride is {}; recorded ids have no gaps: 0 or experts_per_token, {}, expected",
                expert_ids.row_stride, config.experts_per_token
            )));
        }
        // SAFETY: the caller's promises for the arrays and for what the config points to.
        let loads = unsafe {
            let rank_tokens = optional_of_ranks(rank_tokens, config.num_ranks, "rank_tokens")?
                .ok_or_else(|| Error::InvalidArgument("rank_tokens is NULL".to_owned()))?;
            let count = num_ids(rank_tokens, config.experts_per_token);
            with_any_rank(placement, &config, |config| {
                choice!(expert_ids.dtype, "expert_ids->dtype", {
                    EPLB_DTYPE_INT32 => {
                        let ids = array(expert_ids.data.cast::<i32>(), count, "expert_ids->data")?;
                        routed_load(placement, layer, config, all, (ids, rank_tokens))
                    },
                    EPLB_DTYPE_INT64 => {
                        let ids = array(expert_ids.data.cast::<i64>(), count, "expert_ids->data")?;
                        routed_load(placement, layer, config, all, (ids, rank_tokens))
                    },
                })?
            })
        }?;
        // SAFETY: the caller's promise of [num_ranks].
        unsafe { copy_out(&loads, rank_loads, "rank_loads") }
    })
}

/// Calls `f` with the config of a dispatch that stands for all ranks.
///
/// # Safety
/// As for [`with_config`].
unsafe fn with_any_rank<T>(
    placement: &Placement,
    config: &eplb_dispatch_config,
    f: impl FnOnce(&DispatchConfig) -> Result<T>,
) -> Result<T> {
    let any_rank = eplb_dispatch_config { rank: 0, device: EPLB_DEVICE_HOST, num_layers: 0, ..*config };
    // SAFETY: the caller's promise.
    unsafe { with_config(placement, &any_rank, f) }
}

/// Ids of all ranks' batches, unless they overflow.
fn num_ids(rank_tokens: &[u32], experts_per_token: u32) -> Option<usize> {
    let tokens: u64 = rank_tokens.iter().map(|&tokens| u64::from(tokens)).sum();
    usize::try_from(tokens.checked_mul(u64::from(experts_per_token))?).ok()
}
