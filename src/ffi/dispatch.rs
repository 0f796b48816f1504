//! Dispatch: the tables of a placement, and routing by them, step 3.

use std::ffi::c_void;

use super::boundary::{
    Growing, array, borrowed, boundary, choice, config, destroy, growing_out, layer_numbers, num_shared,
    number, optional_of_ranks, out,
};
use super::device::{
    CUstream_st, eplb_dtype, eplb_expert_ids, eplb_slot_ids, id_type, ids, place, slot_ids, stream,
};
use super::placement::eplb_placement;
use super::recorder::eplb_recorder;
use super::status::eplb_status;
use crate::device::Memory;
use crate::dispatch::{Dispatch, DispatchConfig, RankCounts, Routing, Rule};
use crate::error::{Error, Result};
use crate::placement::Placement;

/// A routing rule: which of an expert's slots serves an id. docs/routing.md defines each rule exactly. A
/// rule is rank-invariant if every rank computes the same slots from the same ids; an engine that routes
/// all tokens on every rank, without an all-to-all, needs one.
pub type eplb_rule = i32;

/// EPLB_RULE_LEAST_LOADED.
pub const EPLB_RULE_DEFAULT: eplb_rule = 0;
/// TensorRT-LLM's: the ids of an expert take its replicas in turn, within each block of 1,024 ids.
/// Rank-invariant unless offset_by_rank is set.
pub const EPLB_RULE_ROUND_ROBIN: eplb_rule = 1;
/// vLLM's: a hash of the token's row selects the replica. Rank-invariant.
pub const EPLB_RULE_TOKEN_HASH: eplb_rule = 2;
/// A replica on the own rank first, then one on the own node, then any. The shares are fixed at creation,
/// such that no replica gets more than 5/4 of its even share if all ranks have as many tokens of the
/// expert.
pub const EPLB_RULE_NEAREST: eplb_rule = 3;
/// Splits this rank's batch so that it adds equal load to the ranks, as far as the placement allows. With
/// the counts of eplb_dispatch_register_rank_counts() the ranks' totals become equal. Rank-invariant
/// without them.
pub const EPLB_RULE_LEAST_LOADED: eplb_rule = 4;

/// Routes expert ids to slot ids, in stream order. All device memory is taken at creation and stays in
/// place, so that CUDA graphs may refer to it.
///
/// On the host any number of threads may route. On a CUDA device, calls with EPLB_RULE_LEAST_LOADED for one
/// layer share that layer's workspace: order each after the one before, by a stream or an event, or create
/// one dispatch for each micro-batch. Unordered calls still produce slots that hold the expert, but not
/// those of the rule.
pub struct eplb_dispatch(pub(super) Dispatch);

/// How to serve a placement.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_dispatch_config {
    /// Set by EPLB_DISPATCH_CONFIG_INIT.
    pub struct_size: usize,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group, which must be the placement's. Required.
    pub num_ranks: u32,
    /// Ids per token (the router's top-k), those of shared experts included. Required.
    pub experts_per_token: u32,
    /// Slots of all ranks together, which must be the placement's; 0: not checked.
    pub num_slots: u32,
    /// Layers that this rank routes, each in the placement: [num_layers]. NULL: all.
    pub layer_ids: *const i32,
    /// Length of layer_ids. 0 with layer_ids: none, as in a pipeline stage without experts.
    pub num_layers: usize,
    /// EPLB_DEVICE_HOST, EPLB_DEVICE_CURRENT, or the ordinal of a CUDA device.
    pub device: i32,
    /// The routing rule.
    pub rule: eplb_rule,
    /// Nonzero: EPLB_RULE_ROUND_ROBIN starts at another replica on each rank, as TensorRT-LLM does on
    /// request. Ignored by other rules.
    pub offset_by_rank: u32,
    /// Width of the dense map expert_slots, at least max_replicas of eplb_placement_info; 0: no dense map. A
    /// fixed width lets a later placement serve kernels that were compiled for it.
    pub max_replicas: u32,
    /// The node of each rank, any numbers: [num_ranks]. Ignored by rules other than EPLB_RULE_NEAREST. NULL:
    /// all ranks share a node.
    pub rank_to_node: *const i32,
    /// Device memory to use instead of the library's own: 16-byte aligned, at least
    /// eplb_dispatch_memory_required() bytes, valid until the dispatch is destroyed. Creation writes it
    /// outside of any stream. A later placement of the same shape has its tables at the same addresses. May
    /// be NULL.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`.
    pub workspace_bytes: usize,
    /// The slot that padding and ids out of range get: a negative one, as DeepEP's -1, or one from num_slots
    /// on; 0: num_slots.
    pub invalid_slot: i32,
    /// Length of shared_slot_ids.
    pub num_shared_experts: u32,
    /// Where this rank finds the fused shared experts: id num_experts + j gets shared_slot_ids[j], by every
    /// rule, and is not counted: [num_shared_experts]. Slots that hold no expert in any layer of this rank,
    /// or from num_slots on, and not invalid_slot. Several may be equal.
    pub shared_slot_ids: *const i32,
    /// Nonzero: the tables may change, by the calls of eplb_live.h. Takes a shadow of all tables on the device,
    /// and the page-locked memory of eplb_dispatch_host_memory_required().
    pub live: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_dispatch_config {}

/// A layer's tables, for the engine's own kernels: device memory that never moves and lives as long as the
/// handle. A commit changes the contents.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_dispatch_tables {
    /// Set by EPLB_DISPATCH_TABLES_INIT.
    pub struct_size: usize,
    /// Slots of each expert: [num_experts].
    pub replica_count: *const i32,
    /// Index of an expert's first slot in slot_ids: [num_experts].
    pub replica_start: *const i32,
    /// The slots of expert 0, ascending, then those of expert 1, and so on: [num_slots]. With empty slots the
    /// last ones are 0.
    pub slot_ids: *const i32,
    /// The slots of each expert, padded with -1: [num_experts][max_replicas]. NULL without a dense map.
    pub expert_slots: *const i32,
    /// Experts.
    pub num_experts: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// num_slots / num_ranks.
    pub slots_per_rank: u32,
    /// Width of expert_slots; 0 without a dense map.
    pub max_replicas: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_dispatch_tables {}

/// What a dispatch serves.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_dispatch_info {
    /// Set by EPLB_DISPATCH_INFO_INIT.
    pub struct_size: usize,
    /// eplb_placement_hash() of the placement at creation, whatever was committed since. It must be equal on
    /// all ranks: otherwise they send tokens to slots that hold other experts.
    pub placement_hash: u64,
    /// Device memory held.
    pub workspace_bytes: usize,
    /// The routing rule, never EPLB_RULE_DEFAULT.
    pub rule: eplb_rule,
    /// This rank.
    pub rank: u32,
    /// Ranks of the group.
    pub num_ranks: u32,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// num_slots / num_ranks.
    pub slots_per_rank: u32,
    /// Experts per token.
    pub experts_per_token: u32,
    /// Width of the dense map; 0: none.
    pub max_replicas: u32,
    /// Layers that are routed.
    pub num_layers: u32,
    /// Layers with counts from eplb_dispatch_register_rank_counts().
    pub num_layers_with_rank_counts: u32,
    /// The slot that padding and ids out of range get, never 0.
    pub invalid_slot: i32,
    /// Fused shared experts.
    pub num_shared_experts: u32,
    /// Page-locked host memory held, for changes of the tables.
    pub host_bytes: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_dispatch_info {}

/// Returns the device memory that a dispatch takes: equal for all placements with the same numbers of
/// experts, slots, ranks and layers. On EPLB_DEVICE_HOST the library takes 2 to 12 times as much beside it.
///
/// \param placement        as for eplb_dispatch_create()
/// \param config           as for eplb_dispatch_create(); workspace is ignored
/// \param workspace_bytes  receives the bytes
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_memory_required(
    placement: *const eplb_placement,
    config: *const eplb_dispatch_config,
    workspace_bytes: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, config, workspace) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                self::config(config, "config")?,
                out(workspace_bytes, "workspace_bytes")?,
            )
        };
        // SAFETY: the caller's promises for what the config points to.
        let bytes = unsafe { with_config(placement, &config, |c| Dispatch::memory_required(placement, c)) }?;
        workspace.set(bytes);
        Ok(())
    })
}

/// Creates a dispatch: copies the tables of a placement to a device. The primary context of a device
/// ordinal is retained until eplb_dispatch_destroy().
///
/// \param placement  may be destroyed afterwards
/// \param config     copied with all that it points to, except the workspace
/// \param dispatch   receives the handle
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a placement of other ranks or without a layer;
///         EPLB_STATUS_NO_DRIVER; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_create(
    placement: *const eplb_placement,
    config: *const eplb_dispatch_config,
    dispatch: *mut *mut eplb_dispatch,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, config, dispatch) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                self::config(config, "config")?,
                out(dispatch, "dispatch")?,
            )
        };
        let workspace = (!config.workspace.is_null())
            // SAFETY: the caller's promise for the workspace.
            .then(|| unsafe { Memory::caller_provided(config.workspace as u64, config.workspace_bytes) });
        // SAFETY: the caller's promises for what the config points to.
        let created =
            unsafe { with_config(placement, &config, |c| Dispatch::create(placement, c, workspace)) }?;
        dispatch.give(eplb_dispatch(created));
        Ok(())
    })
}

/// Returns a layer's tables.
///
/// \param dispatch  the dispatch
/// \param layer     the layer's number
/// \param tables    receives device addresses and sizes
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_get_tables(
    dispatch: *const eplb_dispatch,
    layer: i32,
    tables: *mut eplb_dispatch_tables,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, tables) =
            unsafe { (&borrowed(dispatch, "dispatch")?.0, growing_out(tables, "tables")?) };
        let (found, shape) = (dispatch.tables(number(layer, "layer")?)?, dispatch.shape());
        tables.set(eplb_dispatch_tables {
            struct_size: 0,
            replica_count: found.replica_count as *const i32,
            replica_start: found.replica_start as *const i32,
            slot_ids: found.slot_ids as *const i32,
            expert_slots: found.dense as *const i32,
            num_experts: number(shape.num_experts(), "num_experts")?,
            num_slots: number(shape.num_slots(), "num_slots")?,
            slots_per_rank: number(shape.slots_per_rank(), "slots_per_rank")?,
            max_replicas: number(dispatch.max_replicas(), "max_replicas")?,
        });
        Ok(())
    })
}

/// Returns what a dispatch serves. It reads nothing from the device.
///
/// \param dispatch  the dispatch
/// \param info      receives the numbers
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_get_info(
    dispatch: *const eplb_dispatch,
    info: *mut eplb_dispatch_info,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, info) = unsafe { (&borrowed(dispatch, "dispatch")?.0, growing_out(info, "info")?) };
        let shape = dispatch.shape();
        info.set(eplb_dispatch_info {
            struct_size: 0,
            placement_hash: dispatch.placement_hash(),
            workspace_bytes: dispatch.workspace_bytes(),
            rule: match dispatch.rule() {
                Rule::RoundRobin => EPLB_RULE_ROUND_ROBIN,
                Rule::TokenHash => EPLB_RULE_TOKEN_HASH,
                Rule::Nearest => EPLB_RULE_NEAREST,
                Rule::LeastLoaded => EPLB_RULE_LEAST_LOADED,
            },
            rank: number(dispatch.rank(), "rank")?,
            num_ranks: number(shape.num_ranks(), "num_ranks")?,
            num_experts: number(shape.num_experts(), "num_experts")?,
            num_slots: number(shape.num_slots(), "num_slots")?,
            slots_per_rank: number(shape.slots_per_rank(), "slots_per_rank")?,
            experts_per_token: number(dispatch.experts_per_token(), "experts_per_token")?,
            max_replicas: number(dispatch.max_replicas(), "max_replicas")?,
            num_layers: number(dispatch.num_layers(), "num_layers")?,
            num_layers_with_rank_counts: number(dispatch.num_layers_with_rank_counts(), "num_layers")?,
            invalid_slot: dispatch.invalid_slot(),
            num_shared_experts: number(dispatch.num_shared(), "num_shared_experts")?,
            host_bytes: dispatch.host_bytes(),
        });
        Ok(())
    })
}

/// Registers the buffer that holds all ranks' counts whenever a layer is routed, for
/// EPLB_RULE_LEAST_LOADED: an engine that gathers them to size its all-to-all has them already. All ranks
/// must pass equal counts. CUDA graphs that were captured before are unchanged.
///
/// \param dispatch     the dispatch; not concurrent with other calls
/// \param layer        the layer's number
/// \param rank_counts  device memory: how many ids of each rank's valid tokens name each expert,
///                     [num_ranks][num_experts]; must live while it is used. NULL: none
/// \param dtype        the type of a count
/// \return EPLB_STATUS_INVALID_ARGUMENT also for another rule, for 2^32 counts or more, and for memory that
///         the device cannot read; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_register_rank_counts(
    dispatch: *mut eplb_dispatch,
    layer: i32,
    rank_counts: *const c_void,
    dtype: eplb_dtype,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let dispatch = &unsafe { borrowed(dispatch, "dispatch") }?.0;
        let kind = id_type(rank_counts, dtype, ("rank_counts", "dtype"))?;
        // SAFETY: the caller's promise for the counts.
        let counts = (!rank_counts.is_null()).then(|| unsafe { RankCounts::at(rank_counts as u64, kind) });
        dispatch.register_rank_counts(number(layer, "layer")?, counts)
    })
}

/// Routes the tokens of a layer to slots. Hot. Padding and ids out of range get invalid_slot. A captured
/// graph routes the same buffers at each replay, and reads num_valid anew.
///
/// \param dispatch    the dispatch
/// \param layer       the layer's number
/// \param expert_ids  the router's choice
/// \param num_tokens  tokens including padding; at most 2^31 - 1 ids
/// \param num_valid   device int32: valid tokens, clamped to [0, num_tokens]; NULL: all
/// \param slot_ids    receives the slots. Unreachable memory is not detected here: the kernel faults
/// \param stream      ordered after the router's work
/// \return EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_route(
    dispatch: *const eplb_dispatch,
    layer: i32,
    expert_ids: *const eplb_expert_ids,
    num_tokens: u32,
    num_valid: *const i32,
    slot_ids: *const eplb_slot_ids,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, routing, stream) = unsafe {
            let dispatch = &borrowed(dispatch, "dispatch")?.0;
            let routing = routing(dispatch, expert_ids, num_tokens, num_valid, slot_ids)?;
            (dispatch, routing, self::stream(stream))
        };
        dispatch.route(number(layer, "layer")?, &routing, stream)
    })
}

/// Routes as eplb_dispatch_route(), and counts in the same pass as eplb_recorder_count_ids(). Hot. A
/// recorder of EPLB_ID_KIND_SLOT counts the slots instead of the experts.
///
/// \param dispatch    the dispatch
/// \param recorder    of the same device, experts_per_token, num_shared_experts, and number of experts (or
///                    slots); required, but may be off
/// \param layer       the layer's number in both
/// \param expert_ids  the router's choice
/// \param num_tokens  tokens including padding; at most 2^31 - 1 ids
/// \param num_valid   device int32: valid tokens, clamped to [0, num_tokens]; NULL: all
/// \param slot_ids    receives the slots
/// \param stream      ordered after the router's work and eplb_recorder_begin_iteration()
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a recorder that does not match, and nothing is routed;
///         EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_route_and_count(
    dispatch: *const eplb_dispatch,
    recorder: *const eplb_recorder,
    layer: i32,
    expert_ids: *const eplb_expert_ids,
    num_tokens: u32,
    num_valid: *const i32,
    slot_ids: *const eplb_slot_ids,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, recorder, routing, stream) = unsafe {
            let dispatch = &borrowed(dispatch, "dispatch")?.0;
            let routing = routing(dispatch, expert_ids, num_tokens, num_valid, slot_ids)?;
            (dispatch, &borrowed(recorder, "recorder")?.0, routing, self::stream(stream))
        };
        dispatch.route_and_count(recorder, number(layer, "layer")?, &routing, stream)
    })
}

/// Destroys a dispatch and its tables. Work that uses them must have finished on the device, and graphs
/// must not be replayed any more. In a process made by fork() it releases nothing of the parent.
///
/// \param dispatch  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_destroy(dispatch: *mut eplb_dispatch) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(dispatch) }
}

/// The ids and slots of one call.
///
/// # Safety
/// The structs are NULL or live, and what they point to is as the header requires.
#[inline(always)]
unsafe fn routing(
    dispatch: &Dispatch,
    expert_ids: *const eplb_expert_ids,
    num_tokens: u32,
    num_valid: *const i32,
    slot_ids: *const eplb_slot_ids,
) -> Result<Routing> {
    let experts_per_token = dispatch.experts_per_token();
    // SAFETY: the caller's promises.
    unsafe {
        let ids = ids(expert_ids, num_tokens, num_valid, Some(experts_per_token))?;
        let slots = self::slot_ids(slot_ids)?;
        Routing::at(ids, slots, num_tokens, experts_per_token as u32)
    }
}

/// Calls `f` with the config, whose sizes are checked against the placement's.
///
/// # Safety
/// The config's pointers are NULL or of the lengths beside them.
pub(super) unsafe fn with_config<T>(
    placement: &Placement,
    config: &eplb_dispatch_config,
    f: impl FnOnce(&DispatchConfig) -> Result<T>,
) -> Result<T> {
    check_sizes(placement, config)?;
    // SAFETY: the caller's promises.
    let (layers, nodes, shared_slots) = unsafe {
        (
            array(config.layer_ids, Some(config.num_layers), "config->layer_ids")?,
            optional_of_ranks(config.rank_to_node, config.num_ranks, "config->rank_to_node")?,
            array(
                config.shared_slot_ids,
                Some(num_shared(config.num_shared_experts)?),
                "config->shared_slot_ids",
            )?,
        )
    };
    let all = config.layer_ids.is_null() && config.num_layers == 0;
    let layers = (!all).then(|| layer_numbers(layers)).transpose()?;
    f(&DispatchConfig {
        rule: choice!(config.rule, "config->rule", {
            EPLB_RULE_DEFAULT => Rule::LeastLoaded,
            EPLB_RULE_ROUND_ROBIN => Rule::RoundRobin,
            EPLB_RULE_TOKEN_HASH => Rule::TokenHash,
            EPLB_RULE_NEAREST => Rule::Nearest,
            EPLB_RULE_LEAST_LOADED => Rule::LeastLoaded,
        })?,
        rank: config.rank as usize,
        experts_per_token: config.experts_per_token as usize,
        layers: layers.as_deref(),
        rank_to_node: nodes,
        offset_by_rank: config.offset_by_rank != 0,
        max_replicas: config.max_replicas as usize,
        place: place(config.device)?,
        invalid_slot: config.invalid_slot,
        shared_slots,
        live: config.live != 0,
    })
}

/// Checks that the engine and the placement have the same sizes.
fn check_sizes(placement: &Placement, config: &eplb_dispatch_config) -> Result<()> {
    let (num_ranks, num_slots) = (placement.shape().num_ranks(), placement.shape().num_slots());
    if config.num_ranks as usize != num_ranks {
        return Err(Error::InvalidArgument(format!(
            "config->num_ranks is {}, the placement has {num_ranks} ranks",
            config.num_ranks
        )));
    }
    if config.num_slots != 0 && config.num_slots as usize != num_slots {
        return Err(Error::InvalidArgument(format!(
            "config->num_slots is {}, the placement has {num_slots} slots",
            config.num_slots
        )));
    }
    Ok(())
}
