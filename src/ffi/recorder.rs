//! The recorder: counting routed experts, step 1.

use std::ffi::c_void;
use std::time::Duration;

use super::boundary::{borrowed, boundary, config, destroy, number, out};
use super::device::{CUstream_st, eplb_dtype, eplb_expert_ids, id_type, ids, stream};
use super::recorder_config::{eplb_recorder_config, with_config};
use super::status::eplb_status;
use crate::device::Memory;
use crate::error::{Error, Result};
use crate::stats::{CountsAt, IterationRange, Recorder};

/// Counts which experts the router chose, in stream order, and dumps the counts. One kernel serves every
/// iteration, counting or not: which row of the counts is written is read on the device, so that a captured
/// CUDA graph stays valid.
pub struct eplb_recorder(pub(super) Recorder, Option<usize>);

impl eplb_recorder {
    fn experts_per_token(&self) -> Option<usize> {
        self.1
    }
}

/// Returns the memory that a recorder takes at creation. It takes no more later.
///
/// \param config           as for eplb_recorder_create(); path may be NULL, and workspace is ignored
/// \param workspace_bytes  receives the device memory: rows (iterations / iter_stride / iter_bucket) x layers
///                         x experts x 4 or 8 bytes, and a little more
/// \param host_bytes       receives the host memory, page-locked on a CUDA device
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_memory_required(
    config: *const eplb_recorder_config,
    workspace_bytes: *mut usize,
    host_bytes: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, workspace, host) = unsafe {
            (
                self::config(config, "config")?,
                out(workspace_bytes, "workspace_bytes")?,
                out(host_bytes, "host_bytes")?,
            )
        };
        // SAFETY: the caller's promise for what the config points to.
        let required = unsafe { with_config(&config, |config| config.memory_required()) }?;
        workspace.set(required.workspace_bytes);
        host.set(required.host_bytes);
        Ok(())
    })
}

/// Creates a recorder. It takes all memory, loads the kernels, claims the rank's file in the dump
/// directory, and starts a thread that sleeps until the dump. The primary context of a device ordinal is
/// retained until eplb_recorder_destroy().
///
/// \param config    copied with all that it points to, except the workspace
/// \param recorder  receives the handle
/// \return EPLB_STATUS_WRITE_FAILED if the directory is not writable or another live recorder has this rank's
///         file, dumped or not; EPLB_STATUS_NO_DRIVER; EPLB_STATUS_CUDA; EPLB_STATUS_SYSTEM
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_create(
    config: *const eplb_recorder_config,
    recorder: *mut *mut eplb_recorder,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, recorder) = unsafe { (self::config(config, "config")?, out(recorder, "recorder")?) };
        let workspace = (!config.workspace.is_null())
            // SAFETY: the caller's promise for the workspace.
            .then(|| unsafe { Memory::caller_provided(config.workspace as u64, config.workspace_bytes) });
        // SAFETY: the caller's promise for what the config points to.
        let created = unsafe { with_config(&config, |config| Recorder::create(config, workspace)) }?;
        // A recorder that is off may have been given no sizes.
        let experts_per_token = (config.iter_stop != 0 || config.rolling_iterations != 0)
            .then_some(config.experts_per_token as usize);
        recorder.give(eplb_recorder(created, experts_per_token));
        Ok(())
    })
}

/// Registers the buffer that a layer's router writes its ids to, for eplb_recorder_count(). A second call
/// replaces the buffer; CUDA graphs that were captured before keep the first one.
///
/// \param recorder    the recorder; not concurrent with other calls
/// \param layer       the layer's number
/// \param expert_ids  must live as long as it is counted; readable by the device
/// \param max_tokens  rows of the buffer
/// \param num_valid   device int32: valid tokens, clamped to the num_tokens of eplb_recorder_count(), read
///                    whenever the kernel runs; must live as long as expert_ids. NULL: all
/// \param stream      a stream on which the layer will be counted, to check that it is of the recorder's
///                    device
/// \return EPLB_STATUS_INVALID_ARGUMENT also for memory that the device cannot read; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_register_buffer(
    recorder: *mut eplb_recorder,
    layer: i32,
    expert_ids: *const eplb_expert_ids,
    max_tokens: u32,
    num_valid: *const i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, ids, stream) = unsafe {
            let recorder = borrowed(recorder, "recorder")?;
            let ids = ids(expert_ids, max_tokens, num_valid, recorder.experts_per_token())?;
            (&recorder.0, ids, self::stream(stream))
        };
        recorder.register_buffer(number(layer, "layer")?, ids, max_tokens, stream)
    })
}

/// Begins an iteration: what is counted after this call in stream order belongs to it. Call it once an
/// iteration, before the iteration's work is launched. Order every counting stream after it and before the
/// next one; on EPLB_DEVICE_HOST, the counting threads. It writes 4 bytes in stream order if anything
/// changes.
///
/// The first iteration at or after iter_stop starts the dump; a run that ends before it calls
/// eplb_recorder_dump(). The counts are copied once `stream` has reached this point, and a thread of the
/// recorder writes them; `stream` waits for neither. A failure is reported by eplb_recorder_flush() and
/// eplb_recorder_get_info(), not here.
///
/// \param recorder   the recorder
/// \param iteration  the engine's iteration number, not below the last one. Numbers skipped between two
///                   iterations are dumped as zeros; those before the first and after the last one are
///                   missing
/// \param stream     the engine's main stream, not being captured
/// \return EPLB_STATUS_CAPTURING or EPLB_STATUS_INVALID_ARGUMENT, and the last iteration continues;
///         EPLB_STATUS_CUDA, after which the state may be LOST
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_begin_iteration(
    recorder: *mut eplb_recorder,
    iteration: i64,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.begin_iteration(number(iteration, "iteration")?, stream)
    })
}

/// Counts the ids in a layer's registered buffer. Hot. Outside the range and after a dump it counts
/// nothing. A captured graph counts the same buffer and number of tokens at each replay, and reads
/// num_valid anew.
///
/// \param recorder    the recorder
/// \param layer       the layer's number
/// \param num_tokens  tokens in the buffer including padding, at most max_tokens
/// \param stream      ordered after the router's work
/// \return EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_count(
    recorder: *const eplb_recorder,
    layer: i32,
    num_tokens: u32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.count(number(layer, "layer")?, num_tokens, stream)
    })
}

/// Counts the ids in any buffer. Hot. Outside the range and after a dump it counts nothing. Several calls
/// for a layer in one iteration add up, as in chunked prefill or multi-token prediction. A captured graph
/// reads the same buffer at each replay.
///
/// \param recorder    the recorder
/// \param layer       the layer's number
/// \param expert_ids  must live until the kernel has run. Unreadable memory is not detected here: the
///                    kernel faults
/// \param num_tokens  tokens in the buffer including padding
/// \param num_valid   device int32: valid tokens, clamped to [0, num_tokens]; NULL: all
/// \param stream      ordered after the router's work
/// \return EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_count_ids(
    recorder: *const eplb_recorder,
    layer: i32,
    expert_ids: *const eplb_expert_ids,
    num_tokens: u32,
    num_valid: *const i32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, ids, stream) = unsafe {
            let recorder = borrowed(recorder, "recorder")?;
            let ids = ids(expert_ids, num_tokens, num_valid, recorder.experts_per_token())?;
            (&recorder.0, ids, self::stream(stream))
        };
        recorder.count_ids(number(layer, "layer")?, &ids, num_tokens, stream)
    })
}

/// Adds counts of the engine's own kernels. Hot. Calls add up, also with counted ids. A negative count is not
/// added, and adds 1 to ids_out_of_range.
///
/// Cumulative: one array a layer, in every iteration, in order. Outside the range only the values are taken.
/// eplb_recorder_reset() keeps them. Counters by local slot need EPLB_ID_KIND_SLOT.
///
/// \param recorder  the recorder
/// \param layer     the layer's number
/// \param counts    on the recorder's device: ids of this rank's tokens by expert, [num_experts]; by local
///                  slot [num_experts / num_ranks]
/// \param dtype     the type of a count
/// \param stream    ordered after the engine's counting
/// \return EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_add_counts(
    recorder: *const eplb_recorder,
    layer: i32,
    counts: *const c_void,
    dtype: eplb_dtype,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, counts, stream) =
            unsafe { (&borrowed(recorder, "recorder")?.0, counts_at(counts, dtype)?, self::stream(stream)) };
        recorder.add_counts(number(layer, "layer")?, &counts, stream)
    })
}

/// Starts the dump of what was counted so far, the current iteration included, for a run that ends before
/// iteration iter_stop begins. Readers refuse it until iter_start and iter_stop of eplb_stats_options
/// choose iterations that it has. Returns at once. Does nothing after an earlier dump, but retries one
/// that failed to start. At shutdown call this, eplb_recorder_flush() and eplb_recorder_destroy().
///
/// \param recorder  the recorder
/// \param stream    ordered after all counting, not being captured
/// \return EPLB_STATUS_INVALID_ARGUMENT also in states WAITING and MISSED: nothing was counted, which is
///         harmless at shutdown; EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_dump(
    recorder: *mut eplb_recorder,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.dump(stream)
    })
}

/// Waits until a dump that was started is on disk. A failure is returned once; the next call retries, since
/// the counts are kept until a dump succeeds. Returns EPLB_STATUS_OK also if no dump was started: see
/// dumps_written of eplb_recorder_info.
///
/// \param recorder    the recorder
/// \param timeout_ms  milliseconds to wait; 0: do not wait; negative: no limit
/// \return EPLB_STATUS_NOT_READY after the timeout; EPLB_STATUS_WRITE_FAILED and other failures of the
///         dump; EPLB_STATUS_INVALID_DUMP if counts overflowed, or changed while they were copied
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_flush(recorder: *const eplb_recorder, timeout_ms: i64) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let recorder = &unsafe { borrowed(recorder, "recorder") }?.0;
        recorder.flush(u64::try_from(timeout_ms).ok().map(Duration::from_millis))
    })
}

/// Pauses or resumes counting in stream order, as around dummy forwards and warm-up: captured graphs obey it.
/// Iterations may begin meanwhile as usual; those that were paused throughout have zeros in the dump. Resuming
/// counts into the current iteration. It has an effect in each state, and reset and re-arm keep it.
///
/// \param recorder  the recorder
/// \param paused    nonzero: count nothing
/// \param stream    ordered after the counting so far and before the counting to come, not being captured
/// \return EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA: as before, and in a counted iteration state LOST
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_set_paused(
    recorder: *mut eplb_recorder,
    paused: u32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.set_paused(paused != 0, stream)
    })
}

/// Clears all counts and restarts, after a warm-up or a dump. Any iteration may begin next.
///
/// \param recorder  the recorder; not concurrent with other calls
/// \param stream    ordered after all counting so far and before all counting to come, not being captured
/// \return EPLB_STATUS_NOT_READY while a dump is being written; EPLB_STATUS_CAPTURING; EPLB_STATUS_CUDA;
///         EPLB_STATUS_WRITE_FAILED if the rank's file cannot be claimed again
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_reset(
    recorder: *mut eplb_recorder,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        recorder.reset(stream)
    })
}

/// Arms another range after a dump, or if nothing was counted, and clears all counts. Its dump goes to
/// path[/name]/START-STOP; only that of the first range goes to path[/name]. Captured graphs and
/// registered buffers stay valid. eplb_recorder_reset() keeps the range. For ranges back to back, call
/// eplb_recorder_dump(), eplb_recorder_flush() and this before the next iteration begins.
///
/// \param recorder    the recorder; not concurrent with other calls
/// \param iter_start  first iteration to count, after the one begun last
/// \param iter_stop   one past the last; the range has at most max_rows of eplb_recorder_info
/// \param stream      as for eplb_recorder_reset()
/// \return EPLB_STATUS_INVALID_ARGUMENT also if counts were not dumped, and for a recorder that is off;
///         EPLB_STATUS_NOT_READY while a dump is being written; EPLB_STATUS_WRITE_FAILED if the rank's file
///         cannot be claimed; EPLB_STATUS_CAPTURING. All leave the recorder unchanged. EPLB_STATUS_CUDA: also
///         state LOST, and the range may be armed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_rearm(
    recorder: *mut eplb_recorder,
    iter_start: i64,
    iter_stop: i64,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, stream) = unsafe { (&borrowed(recorder, "recorder")?.0, self::stream(stream)) };
        let (start, stop) = (number(iter_start, "iter_start")?, number(iter_stop, "iter_stop")?);
        recorder.rearm(IterationRange { start, stop }, stream)
    })
}

/// Destroys a recorder, after waiting without a limit for a dump that was started. Counts without a dump
/// are lost, with a warning in the log. Counting must have finished on the device, and graphs with counts
/// must not be replayed any more. In a process made by fork() it releases nothing of the parent.
///
/// \param recorder  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_destroy(recorder: *mut eplb_recorder) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(recorder) }
}

/// Counts of the caller.
///
/// # Safety
/// As for [`CountsAt::at`].
unsafe fn counts_at(counts: *const c_void, dtype: eplb_dtype) -> Result<CountsAt> {
    let kind = id_type(counts, dtype, ("counts", "dtype"))?;
    if counts.is_null() {
        return Err(Error::InvalidArgument("counts is NULL".to_owned()));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CountsAt::at(counts as u64, kind) })
}
