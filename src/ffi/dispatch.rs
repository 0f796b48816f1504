//! Dispatch: the tables of a placement, and routing by them, step 3.

use std::ffi::c_void;

use super::boundary::{
    Growing, array, borrowed, boundary, config, copy_out, destroy, growing_out, layer_numbers, number, out,
};
use super::device::{CUstream_st, EPLB_DEVICE_HOST, id_type, ids, place, stream};
use super::placement::eplb_placement;
use super::recorder::eplb_recorder;
use super::status::eplb_status;
use crate::device::{IdType, Memory};
use crate::dispatch::{Dispatch, DispatchConfig, RankCounts, Routing, Rule};
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::report::{Routed, expected_load, routed_load};

/// Turns the router's expert ids into slot ids, on a device and in the order of the engine's streams.
///
/// All memory is taken at create and stays where it is until destroy, so that CUDA graphs may hold on to it: for each layer
/// int32 replica_count[E], replica_start[E] and slot_ids[S], a dense map if asked for, and what the rule needs beside them,
/// which for EPLB_ROUTE_LEAST_LOADED on a CUDA device is some 64 x E x 4 bytes.
///
/// Any thread may call. On the host, calls for one layer take turns. On a CUDA device, work of EPLB_ROUTE_LEAST_LOADED for one
/// layer uses that layer's workspace, so each must be ordered after the one before, by a stream or an event; where two batches
/// are in one layer at once, each has a dispatch of its own. Work that is not ordered so still gives only slots that hold the
/// expert, but not those of the rule.
pub struct eplb_dispatch(pub(super) Dispatch);

/// Which of an expert's slots serves a token. E experts, S slots, R ranks of S/R slots, K ids a token; the ids of a call,
/// [num_tokens][K], are numbered row by row: number i is of token i / K. The replicas of an expert are its slots in ascending
/// order, replica 0 to count - 1. Whatever the rule: an id outside [0, E), and every id of a token at or after num_valid, gives
/// slot S, which no rank owns; and an expert with one slot gets that slot.
///
/// A rule is rank-invariant if every rank computes the same slots from the same ids. Engines that route all tokens on every
/// rank, without an all-to-all, need one that is.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_route {
    /// EPLB_ROUTE_LEAST_LOADED: it is the one that makes the ranks most even of those that need no communication.
    Default = 0,
    /// TensorRT-LLM's: replica (k + i / 1024 + offset) mod count, where k is how many ids with a lower number in the same block
    /// of 1024 ids (the same i / 1024, rounded down) name the same expert, and offset is the rank if offset_by_rank is set,
    /// otherwise 0. Rank-invariant without the offset.
    RoundRobin = 1,
    /// vLLM's: for the token in row t, replica ((t x 2654435769) mod 2^32) mod count. Rank-invariant.
    TokenHash = 2,
    /// Own rank first, then own node, then the rest, by shares that are fixed at create. If every rank had as many tokens of the
    /// expert, these shares would have each replica serve 5/4 of its fair share at most; subject to that, as many tokens as can be
    /// stay on their rank, and of the others as many as can be on their node. Each rank has 4 x count x 2^20 units of the expert,
    /// and a replica takes 5 x R x 2^20 at most. First each rank deals its units to its own replicas, as many as they can
    /// take; then the ranks of each node, in ascending order of the nodes that have replicas, what they have left to the replicas of
    /// the node, as many as these can take; then all ranks the rest to all replicas. Units are dealt as EPLB_ROUTE_LEAST_LOADED pours
    /// tokens, onto the units that the replicas have by then, and what is left goes one each to those that were reached, in
    /// ascending order. Of what a replica got in a step, this rank's part is its units over those of all ranks that wanted to
    /// deal them, rounded down; where a node could take d of the w units of its ranks, a rank that had u is left with
    /// u x (w - d) / w, rounded down. With t[j] the units of this rank on replicas 0 to j over those on all, times 2^32 and rounded
    /// down, k as for EPLB_ROUTE_ROUND_ROBIN, and p = ((k + i / 1024 + rank) x 2654435769) mod 2^32, it is the first replica with
    /// p < t[j], or the last: a sequence that keeps the shares closely for any number of tokens. Not rank-invariant.
    Nearest = 3,
    /// This rank deals its own batch so that the ranks it sends to get equally much, as far as can be; where
    /// eplb_dispatch_register_rank_counts() names all ranks' counts, the totals of all of them. The tokens T[e] of each expert
    /// are counted, those of experts with one slot are put on its rank, and then the others are dealt one expert after the
    /// other, by the number of ranks that hold them, fewest first, and then by id. An expert's tokens are poured like water over the
    /// g ranks that hold it: with h the greatest height for which the sum of max(0, h - load) over these ranks is at most T[e], each
    /// rank below h gets h - load, and what is left goes one token each to ranks with load <= h, starting with the one at place
    /// T[e] mod g of these g in ascending order, and round. When all are dealt, each in turn is taken back and dealt again, until
    /// nothing changes or three more times. The tokens of an expert in ascending number go to its ranks in ascending order, as many
    /// as they got; of c replicas on one rank with quota q, the first j get q x j / c, rounded up. With the counts of all ranks,
    /// T[e] is their sum, and the ranks' tokens are numbered one rank after the other; a token beyond what the rank counted goes to
    /// replica k mod count, k being its number among the expert's tokens on this rank. Counts are clamped to [0, 2^31).
    /// Rank-invariant without the counts of all ranks.
    LeastLoaded = 4,
}

/// How a placement is served. Initialise with EPLB_DISPATCH_CONFIG_INIT. Zero is a field's default where it has one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_dispatch_config {
    /// sizeof(eplb_dispatch_config)
    pub struct_size: usize,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group, as a check against the placement. Must be given.
    pub num_ranks: u32,
    /// Experts that each token chooses (the router's top-k). Must be given.
    pub experts_per_token: u32,
    /// Width of the dense map, not below the largest number of slots that an expert has, nor above num_slots; 0: no dense map. Fixed by the engine, a
    /// later placement fits kernels compiled for it.
    pub max_replicas: u32,
    /// The layers that this rank routes, by the model's numbers: int32 [num_layers]; each must be in the placement. NULL: all.
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// The node of each rank, in any numbering: int32 [num_ranks], for EPLB_ROUTE_NEAREST. NULL: all ranks are on one node.
    pub rank_to_node: *const i32,
    /// Where ids, slots and tables are: EPLB_DEVICE_HOST, which is the default of _INIT; EPLB_DEVICE_CURRENT; or the ordinal of a
    /// CUDA device, of which 0 is one.
    pub device: i32,
    /// An eplb_route.
    pub rule: i32,
    /// Not 0: EPLB_ROUTE_ROUND_ROBIN adds the rank, as TensorRT-LLM does on request, so that ranks do not all begin with the
    /// same replica.
    pub offset_by_rank: u32,
    /// Slots of all ranks together, as a check against the placement; 0: not checked.
    pub num_slots: u32,
    /// Memory of the device to use instead of the library's own, aligned to 16 bytes, at least as large as
    /// eplb_dispatch_memory_required() says; yours, and used until the dispatch is destroyed. Creating the dispatch writes it, in
    /// the order of no stream of yours: what was to be done with it must have been done. A later placement of the same shape
    /// has its tables at the same addresses in it. May be NULL.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`.
    pub workspace_bytes: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_dispatch_config {}

/// A layer's tables, for the engine's own kernels. Initialise with EPLB_DISPATCH_TABLES_INIT. The arrays are memory of the
/// dispatch's device, belong to the handle, never move or change, and live as long as it does.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_dispatch_tables {
    /// sizeof(eplb_dispatch_tables)
    pub struct_size: usize,
    /// Slots of each expert: int32 [num_experts].
    pub replica_count: *const i32,
    /// Where an expert's slots begin in slot_ids: int32 [num_experts].
    pub replica_start: *const i32,
    /// The slots of expert 0, ascending, then those of expert 1, and so on: int32 [num_slots].
    pub slot_ids: *const i32,
    /// The slots of each expert, padded with -1: int32 [num_experts][max_replicas]. NULL where max_replicas is 0.
    pub expert_slots: *const i32,
    /// Experts.
    pub num_experts: u32,
    /// Slots of all ranks together; as a slot id, the one that no rank owns.
    pub num_slots: u32,
    /// Width of expert_slots; 0: there is none.
    pub max_replicas: u32,
    /// Slots of a rank: rank r owns slots r x slots_per_rank and those after.
    pub slots_per_rank: u32,
    /// Bytes of the tables that the handle holds on its device, for all layers: eplb_dispatch_memory_required().
    pub memory_bytes: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_dispatch_tables {}

/// What a dispatch serves, and how. Initialise with EPLB_DISPATCH_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_dispatch_info {
    /// sizeof(eplb_dispatch_info)
    pub struct_size: usize,
    /// eplb_placement_hash() of the placement that it was created from: ranks that differ send tokens to experts that are not
    /// there.
    pub placement_hash: u64,
    /// Bytes of the tables on the device, for all layers: eplb_dispatch_memory_required().
    pub memory_bytes: u64,
    /// The rule of routing: an eplb_route, and never EPLB_ROUTE_DEFAULT.
    pub rule: i32,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group.
    pub num_ranks: u32,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// Slots of one rank.
    pub slots_per_rank: u32,
    /// Experts that each token chooses.
    pub experts_per_token: u32,
    /// Width of the dense map; 0: there is none.
    pub max_replicas: u32,
    /// Layers that are routed.
    pub num_layers: u32,
    /// Layers for which eplb_dispatch_register_rank_counts() has named the counts of all ranks.
    pub num_layers_with_rank_counts: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_dispatch_info {}

/// The memory of its tables that a dispatch takes on its device, before it is created: as much for every placement with as many
/// experts, slots, ranks and layers. On a CUDA device it takes no more. On EPLB_DEVICE_HOST the library keeps what it routes by
/// beside the tables, in memory of its own: some two to twelve times as much.
///
/// \param placement        that of eplb_dispatch_create()
/// \param config           that of eplb_dispatch_create(); the workspace is not looked at
/// \param workspace_bytes  receives the bytes
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT or EPLB_STATUS_OUT_OF_MEMORY for what no dispatch could be created with
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

/// Makes the tables of a placement on a device. The primary context of a device given by its ordinal is retained until
/// eplb_dispatch_destroy().
///
/// \param placement  the placement, which may be destroyed afterwards
/// \param config     from EPLB_DISPATCH_CONFIG_INIT; what it points to is copied, but for the workspace
/// \param dispatch   receives the handle, which goes back by eplb_dispatch_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also where the placement is for other ranks, or lacks a layer, which is
///         named; EPLB_STATUS_OUT_OF_MEMORY; EPLB_STATUS_NO_DRIVER; EPLB_STATUS_CUDA
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

/// Lends a layer's tables to the engine's own kernels.
///
/// \param dispatch  the dispatch
/// \param layer     the layer's number
/// \param tables    from EPLB_DISPATCH_TABLES_INIT; receives addresses on the dispatch's device, and sizes
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer
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
            max_replicas: number(dispatch.max_replicas(), "max_replicas")?,
            slots_per_rank: number(shape.slots_per_rank(), "slots_per_rank")?,
            memory_bytes: number(dispatch.memory_bytes(), "memory_bytes")?,
        });
        Ok(())
    })
}

/// Tells what a dispatch serves, and how. Looks at nothing on the device. How many tokens were routed it cannot tell: no call
/// counts them but eplb_dispatch_route_and_count(), for its recorder.
///
/// \param dispatch  the dispatch
/// \param info      from EPLB_DISPATCH_INFO_INIT; receives the numbers
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT
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
            memory_bytes: number(dispatch.memory_bytes(), "memory_bytes")?,
            rule: match dispatch.rule() {
                Rule::RoundRobin => eplb_route::RoundRobin,
                Rule::TokenHash => eplb_route::TokenHash,
                Rule::Nearest => eplb_route::Nearest,
                Rule::LeastLoaded => eplb_route::LeastLoaded,
            } as i32,
            rank: number(dispatch.rank(), "rank")?,
            num_ranks: number(shape.num_ranks(), "num_ranks")?,
            num_experts: number(shape.num_experts(), "num_experts")?,
            num_slots: number(shape.num_slots(), "num_slots")?,
            slots_per_rank: number(shape.slots_per_rank(), "slots_per_rank")?,
            experts_per_token: number(dispatch.experts_per_token(), "experts_per_token")?,
            max_replicas: number(dispatch.max_replicas(), "max_replicas")?,
            num_layers: number(dispatch.num_layers(), "num_layers")?,
            num_layers_with_rank_counts: number(dispatch.num_layers_with_rank_counts(), "num_layers")?,
        });
        Ok(())
    })
}

/// Names the place where all ranks' counts of a layer are whenever that layer is routed, for EPLB_ROUTE_LEAST_LOADED to level the
/// totals of all ranks: an engine that has gathered them, to size its all-to-all for one, has them anyway. All ranks must have
/// the same counts. CUDA graphs that were captured before keep what they were captured with.
///
/// \param dispatch     the dispatch
/// \param layer        the layer's number
/// \param rank_counts  device memory, [num_ranks][num_experts], `dtype`: ids of valid tokens by rank and expert; yours, and must
///                     live while it is used. NULL: none any more
/// \param dtype        an eplb_dtype
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer, another rule, and memory that the device
///         cannot read; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_register_rank_counts(
    dispatch: *mut eplb_dispatch,
    layer: i32,
    rank_counts: *const c_void,
    dtype: i32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let dispatch = &unsafe { borrowed(dispatch, "dispatch") }?.0;
        let kind = id_type(rank_counts, dtype, "rank_counts")?;
        // SAFETY: the caller's promise for the counts.
        let counts = (!rank_counts.is_null()).then(|| unsafe { RankCounts::at(rank_counts as u64, kind) });
        dispatch.register_rank_counts(number(layer, "layer")?, counts)
    })
}

/// Routes tokens of one layer to slots. Hot: may be captured by a CUDA graph, which then routes the same buffers at each replay;
/// how many tokens are valid is read anew each time.
///
/// \param dispatch    the dispatch
/// \param layer       the layer's number
/// \param expert_ids  device memory, [num_tokens][experts_per_token], `dtype`
/// \param dtype       an eplb_dtype, of both arrays
/// \param num_tokens  tokens in the buffer, padding included; at most 2^31 - 1 ids
/// \param num_valid   device memory, int32: how many of the tokens are valid; the others get slot num_slots; NULL: all
/// \param slot_ids    device memory, same shape and type; may be expert_ids, but not overlap it otherwise. Memory that the device
///                    cannot reach is not noticed here: the kernel would fault
/// \param stream      ordered after the router's work
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_route(
    dispatch: *const eplb_dispatch,
    layer: i32,
    expert_ids: *const c_void,
    dtype: i32,
    num_tokens: u32,
    num_valid: *const i32,
    slot_ids: *mut c_void,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, routing, stream) = unsafe {
            let dispatch = &borrowed(dispatch, "dispatch")?.0;
            let ids = ids(expert_ids, dtype, num_tokens, num_valid)?;
            let routing = Routing::at(ids, slot_ids as u64, num_tokens, dispatch.experts_per_token() as u32)?;
            (dispatch, routing, self::stream(stream))
        };
        dispatch.route(number(layer, "layer")?, &routing, stream)
    })
}

/// As eplb_dispatch_route(), and counts in the same pass what the recorder counts: the experts that the tokens chose, or, where
/// its config says EPLB_COUNTED_SLOTS, the slots they are sent to. Hot, as both are by themselves.
///
/// \param dispatch    the dispatch
/// \param recorder    on the same device, with the same experts_per_token, and of as many experts, or slots, as the placement
/// \param layer       the layer's number, in both
/// \param expert_ids  as for eplb_dispatch_route()
/// \param dtype       as for eplb_dispatch_route()
/// \param num_tokens  as for eplb_dispatch_route()
/// \param num_valid   as for eplb_dispatch_route(); padding is not counted
/// \param slot_ids    as for eplb_dispatch_route()
/// \param stream      ordered after the router's work and after eplb_recorder_begin_iteration()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for a recorder that does not fit, and nothing is routed;
///         EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_route_and_count(
    dispatch: *const eplb_dispatch,
    recorder: *mut eplb_recorder,
    layer: i32,
    expert_ids: *const c_void,
    dtype: i32,
    num_tokens: u32,
    num_valid: *const i32,
    slot_ids: *mut c_void,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, recorder, routing, stream) = unsafe {
            let dispatch = &borrowed(dispatch, "dispatch")?.0;
            let ids = ids(expert_ids, dtype, num_tokens, num_valid)?;
            let routing = Routing::at(ids, slot_ids as u64, num_tokens, dispatch.experts_per_token() as u32)?;
            (dispatch, &borrowed(recorder, "recorder")?.0, routing, self::stream(stream))
        };
        dispatch.route_and_count(recorder, number(layer, "layer")?, &routing, stream)
    })
}

/// Tells what each rank would carry in a layer by a rule of routing: the number to hold against what is measured, for one rank's
/// batch or for all. Of EPLB_ROUTE_LEAST_LOADED it is exact for one batch a rank; of the other rules it is the share that each
/// replica has in the long run. Of recorded ids eplb_dispatch_routed_load() tells it exactly, whatever the rule.
///
/// \param placement         the placement
/// \param config            as for eplb_dispatch_create(); rule, num_ranks and rank_to_node are looked at
/// \param layer             the layer's number
/// \param rank_counts       int64 [num_ranks][num_experts]: how often the tokens of each rank chose each expert
/// \param with_rank_counts  not 0: EPLB_ROUTE_LEAST_LOADED knows the counts of all ranks
/// \param rank_loads        receives the tokens that each rank gets: [num_ranks]
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer, and for a count below 0 or from 2^31 on, whose
///         rank and expert are named
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_expected_load(
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
        check_sizes(placement, &config)?;
        let shape = placement.shape();
        // SAFETY: the caller's promises for the counts and for what the config points to. A negative count becomes a large one.
        let (counts, nodes) = unsafe {
            let counts = shape.num_ranks().checked_mul(shape.num_experts());
            (array(rank_counts.cast::<u64>(), counts, "rank_counts")?, nodes(&config)?)
        };
        let routed = Routed {
            rule: rule(config.rule)?,
            rank_to_node: nodes.as_deref(),
            with_rank_counts: with_rank_counts != 0,
        };
        let loads = expected_load(placement, number(layer, "layer")?, routed, counts)?;
        // SAFETY: the caller's promise of [num_ranks].
        unsafe { copy_out(&loads, rank_loads, "rank_loads") }
    })
}

/// Tells what each rank gets of recorded ids in a layer: one batch of each rank, routed one by one as its dispatch would. Ids
/// outside [0, num_experts) go to no rank.
///
/// \param placement         the placement
/// \param config            as for eplb_dispatch_create(); rank, device, layer_ids and the workspace are not looked at
/// \param layer             the layer's number
/// \param expert_ids        host memory, `dtype`: the tokens of rank 0, [rank_tokens[0]][experts_per_token], then those of rank 1,
///                          and so on
/// \param dtype             an eplb_dtype
/// \param rank_tokens       uint32 [num_ranks]: the tokens of each rank's batch, of at most 2^31 - 1 ids
/// \param with_rank_counts  not 0: EPLB_ROUTE_LEAST_LOADED knows the counts of all ranks
/// \param rank_loads        receives the tokens that each rank gets: [num_ranks]
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer; EPLB_STATUS_OUT_OF_MEMORY
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_routed_load(
    placement: *const eplb_placement,
    config: *const eplb_dispatch_config,
    layer: i32,
    expert_ids: *const c_void,
    dtype: i32,
    rank_tokens: *const u32,
    with_rank_counts: i32,
    rank_loads: *mut f64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, config) =
            unsafe { (&borrowed(placement, "placement")?.0, self::config(config, "config")?) };
        check_sizes(placement, &config)?;
        let (layer, kind) = (number(layer, "layer")?, id_type(expert_ids, dtype, "expert_ids")?);
        // SAFETY: the caller's promises for the arrays and for what the config points to.
        let loads = unsafe {
            let rank_tokens = array(rank_tokens, Some(config.num_ranks as usize), "rank_tokens")?;
            let count = num_ids(rank_tokens, config.experts_per_token);
            let of_any_rank =
                eplb_dispatch_config { rank: 0, device: EPLB_DEVICE_HOST, num_layers: 0, ..config };
            let all = with_rank_counts != 0;
            with_config(placement, &of_any_rank, |config| match kind {
                IdType::Int32 => {
                    let ids = array(expert_ids.cast::<i32>(), count, "expert_ids")?;
                    routed_load(placement, layer, config, all, (ids, rank_tokens))
                }
                IdType::Int64 => {
                    let ids = array(expert_ids.cast::<i64>(), count, "expert_ids")?;
                    routed_load(placement, layer, config, all, (ids, rank_tokens))
                }
            })
        }?;
        // SAFETY: the caller's promise of [num_ranks].
        unsafe { copy_out(&loads, rank_loads, "rank_loads") }
    })
}

/// Gives the handle back, and its tables. Work that uses them must have ended on the device, and graphs with it must not be
/// replayed any more. In a process that fork() made it leaves everything to the parent.
///
/// \param dispatch  not to be used again; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_destroy(dispatch: *mut eplb_dispatch) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(dispatch) }
}

/// Has `f` use the config, whose sizes are checked against the placement's.
///
/// # Safety
/// The config's pointers are NULL or of the lengths beside them.
unsafe fn with_config<T>(
    placement: &Placement,
    config: &eplb_dispatch_config,
    f: impl FnOnce(&DispatchConfig) -> Result<T>,
) -> Result<T> {
    check_sizes(placement, config)?;
    // SAFETY: the caller's promises.
    let (layers, nodes) =
        unsafe { (array(config.layer_ids, Some(config.num_layers), "config->layer_ids")?, nodes(config)?) };
    let layers = (config.num_layers != 0).then(|| layer_numbers(layers)).transpose()?;
    f(&DispatchConfig {
        rule: rule(config.rule)?,
        rank: config.rank as usize,
        experts_per_token: config.experts_per_token as usize,
        layers: layers.as_deref(),
        rank_to_node: nodes.as_deref(),
        offset_by_rank: config.offset_by_rank != 0,
        max_replicas: config.max_replicas as usize,
        place: place(config.device)?,
    })
}

/// Ids of all ranks' batches, if that is a number.
fn num_ids(rank_tokens: &[u32], experts_per_token: u32) -> Option<usize> {
    let tokens: u64 = rank_tokens.iter().map(|&tokens| u64::from(tokens)).sum();
    usize::try_from(tokens.checked_mul(u64::from(experts_per_token))?).ok()
}

/// Whether the engine and the placement are of one size.
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

/// # Safety
/// The config's rank_to_node is NULL or of its ranks.
unsafe fn nodes(config: &eplb_dispatch_config) -> Result<Option<Vec<u32>>> {
    if config.rank_to_node.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let nodes =
        unsafe { array(config.rank_to_node, Some(config.num_ranks as usize), "config->rank_to_node") }?;
    nodes.iter().map(|&node| number(node, "a node of rank_to_node")).collect::<Result<_>>().map(Some)
}

fn rule(rule: i32) -> Result<Rule> {
    const DEFAULT: i32 = eplb_route::Default as i32;
    const ROUND_ROBIN: i32 = eplb_route::RoundRobin as i32;
    const TOKEN_HASH: i32 = eplb_route::TokenHash as i32;
    const NEAREST: i32 = eplb_route::Nearest as i32;
    const LEAST_LOADED: i32 = eplb_route::LeastLoaded as i32;
    match rule {
        ROUND_ROBIN => Ok(Rule::RoundRobin),
        TOKEN_HASH => Ok(Rule::TokenHash),
        NEAREST => Ok(Rule::Nearest),
        DEFAULT | LEAST_LOADED => Ok(Rule::LeastLoaded),
        unknown => Err(Error::InvalidArgument(format!("rule is {unknown}, which is no eplb_route"))),
    }
}
