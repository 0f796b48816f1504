//! Dispatch tables that change under a running engine.

use super::boundary::{borrowed, boundary, config, number, optional_of_ranks, out};
use super::device::{CUstream_st, stream};
use super::dispatch::{eplb_dispatch, eplb_dispatch_config, with_config};
use super::placement::eplb_placement;
use super::plan::eplb_plan;
use super::status::eplb_status;
use crate::dispatch::Dispatch;
use crate::error::Error;

/// Returns the page-locked host memory that a dispatch with `live` takes at creation. It is the library's own
/// also where the engine provides the workspace. eplb_dispatch_memory_required() returns the device memory,
/// the shadow included.
///
/// \param placement   as for eplb_dispatch_create()
/// \param config      as for eplb_dispatch_create(); workspace is ignored
/// \param host_bytes  receives the bytes; 0 without `live` and on EPLB_DEVICE_HOST
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_host_memory_required(
    placement: *const eplb_placement,
    config: *const eplb_dispatch_config,
    host_bytes: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (placement, config, host) = unsafe {
            (
                &borrowed(placement, "placement")?.0,
                self::config(config, "config")?,
                out(host_bytes, "host_bytes")?,
            )
        };
        // SAFETY: the caller's promises for what the config points to.
        let bytes =
            unsafe { with_config(placement, &config, |c| Dispatch::host_memory_required(placement, c)) }?;
        host.set(bytes);
        Ok(())
    })
}

/// Computes the tables of a layer after a plan's next commit, and copies them to its shadow in stream order,
/// beside routing. eplb_dispatch_commit_layer() puts them in force.
///
/// \param dispatch  a dispatch with `live` set. May run beside routing, and beside calls of other layers
/// \param plan      the plan. Not needed any more on return
/// \param layer     one of layer_ids of eplb_plan_info
/// \param stream    any stream; not being captured
/// \return EPLB_STATUS_STALE if the dispatch has other slots than the plan was made against;
///         EPLB_STATUS_NO_REPLICA; EPLB_STATUS_NOT_READY if the device has not read what was staged before;
///         EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA. All leave the tables as they are
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_stage_layer(
    dispatch: *const eplb_dispatch,
    plan: *const eplb_plan,
    layer: i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, plan, stream) = unsafe {
            let dispatch = &borrowed(dispatch, "dispatch")?.0;
            (dispatch, &borrowed(plan, "plan")?.0, self::stream(stream))
        };
        plan.apply(number(layer, "layer")?, |update| dispatch.stage_layer(update, stream))
    })
}

/// Stages and commits a layer in one call.
///
/// \param dispatch  as for eplb_dispatch_stage_layer()
/// \param plan      as for eplb_dispatch_stage_layer()
/// \param layer     as for eplb_dispatch_stage_layer()
/// \param stream    as for eplb_dispatch_commit_layer()
/// \return as eplb_dispatch_stage_layer()
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_update_layer(
    dispatch: *const eplb_dispatch,
    plan: *const eplb_plan,
    layer: i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, plan, stream) = unsafe {
            let dispatch = &borrowed(dispatch, "dispatch")?.0;
            (dispatch, &borrowed(plan, "plan")?.0, self::stream(stream))
        };
        plan.apply(number(layer, "layer")?, |update| dispatch.update_layer(update, stream))
    })
}

/// Puts the staged tables of a layer in force: one kernel in stream order, at the same addresses, without an
/// allocation, a wait or a copy call. CUDA graphs that were captured before route by the tables that are in
/// force when they are replayed. On EPLB_DEVICE_HOST it takes turns with routing of the layer.
///
/// \param dispatch  the dispatch. May run beside routing, and beside calls of other layers
/// \param layer     the layer's number
/// \param stream    ordered after the stream of eplb_dispatch_stage_layer() and after the routing before, and
///                  before the routing to come, by a stream or an event; not being captured
/// \return EPLB_STATUS_INVALID_ARGUMENT also if nothing is staged; EPLB_STATUS_STALE if the layer has changed
///         since; EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA. All leave the tables as they are
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_commit_layer(
    dispatch: *const eplb_dispatch,
    layer: i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, stream) = unsafe { (&borrowed(dispatch, "dispatch")?.0, self::stream(stream)) };
        dispatch.commit_layer(number(layer, "layer")?, stream)
    })
}

/// Returns the generation of a layer: 1 after creation, and one more with each commit or update.
///
/// \param dispatch    the dispatch
/// \param layer       the layer's number
/// \param generation  receives the generation
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_get_generation(
    dispatch: *const eplb_dispatch,
    layer: i32,
    generation: *mut u64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, generation) =
            unsafe { (&borrowed(dispatch, "dispatch")?.0, out(generation, "generation")?) };
        generation.set(dispatch.generation(number(layer, "layer")?)?);
        Ok(())
    })
}

/// Routes around dead ranks at once, in all layers: slots of ranks that are not active become empty, by one
/// kernel in stream order. Generations stay. Plans and staged tables that use these slots become stale. A rank
/// becomes active again by a committed plan that fills its slots; a mask that adds ranks is refused.
///
/// \param dispatch   the dispatch; not concurrent with commits and updates
/// \param active     [num_ranks], 0 for a dead rank
/// \param num_ranks  the ranks of the dispatch
/// \param stream     as for eplb_dispatch_commit_layer()
/// \return EPLB_STATUS_NO_REPLICA if an expert would have no slot, or a shared one none of shared_slot_ids;
///         EPLB_STATUS_NOT_READY as eplb_dispatch_stage_layer(); EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA. All
///         leave all tables as they are
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_dispatch_set_active_ranks(
    dispatch: *const eplb_dispatch,
    active: *const u8,
    num_ranks: u32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (dispatch, active, stream) = unsafe {
            let active = optional_of_ranks(active, num_ranks, "active")?;
            (&borrowed(dispatch, "dispatch")?.0, active, self::stream(stream))
        };
        let active = active.ok_or_else(|| Error::InvalidArgument("active is NULL".to_owned()))?;
        let active: Vec<bool> = active.iter().map(|&rank| rank != 0).collect();
        dispatch.set_active_ranks(&active, stream)
    })
}
