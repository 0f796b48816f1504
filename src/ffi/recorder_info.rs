//! The progress of a recorder.

use std::ffi::c_char;

use super::boundary::{Growing, borrowed, boundary, copy_out, growing_out, number};
use super::recorder::eplb_recorder;
use super::status::{EPLB_STATUS_OK, eplb_status, status_of};
use crate::error::Result;
use crate::stats::{Info, State};

/// The state of a recorder.
pub type eplb_recorder_state = i32;

/// There are no iterations to count. Calls check their structs, but not layers, and do nothing.
pub const EPLB_RECORDER_STATE_OFF: eplb_recorder_state = 0;
/// No iteration of the range has begun.
pub const EPLB_RECORDER_STATE_WAITING: eplb_recorder_state = 1;
/// An iteration of the range has begun.
pub const EPLB_RECORDER_STATE_COUNTING: eplb_recorder_state = 2;
/// The dump is being written.
pub const EPLB_RECORDER_STATE_DUMPING: eplb_recorder_state = 3;
/// The dump is complete and synced to disk.
pub const EPLB_RECORDER_STATE_DUMPED: eplb_recorder_state = 4;
/// The dump failed, and the counts are kept: eplb_recorder_flush() retries the write. If the copy from the
/// device failed to start, eplb_recorder_dump() and the next eplb_recorder_begin_iteration() retry it.
pub const EPLB_RECORDER_STATE_FAILED: eplb_recorder_state = 5;
/// A driver call failed while counting: the counts are wrong and are never dumped. eplb_recorder_reset()
/// restarts.
pub const EPLB_RECORDER_STATE_LOST: eplb_recorder_state = 6;
/// The range passed before an iteration to count began. Counting succeeds and counts nothing.
pub const EPLB_RECORDER_STATE_MISSED: eplb_recorder_state = 7;

/// The progress of a recorder.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_recorder_info {
    /// Set by EPLB_RECORDER_INFO_INIT.
    pub struct_size: usize,
    /// The state.
    pub state: eplb_recorder_state,
    /// In states FAILED and LOST the cause. EPLB_STATUS_CUDA in others if the device could not be read: the
    /// sums below are then those of an earlier call. Otherwise EPLB_STATUS_OK.
    pub error_status: eplb_status,
    /// The iteration begun last; -1: none, or off.
    pub iteration: i64,
    /// Start of the range, of the config or of eplb_recorder_rearm(); 0 if off.
    pub iter_start: i64,
    /// Stop of the range; 0 if off.
    pub iter_stop: i64,
    /// First iteration counted; iter_start if none was.
    pub counted_start: i64,
    /// One past the last iteration counted; counted_start if none was.
    pub counted_stop: i64,
    /// Ids counted, over all layers.
    pub ids_counted: u64,
    /// Ids of valid tokens that are out of range, not counted: see eplb_expert_ids.
    pub ids_out_of_range: u64,
    /// Ids of tokens at or after num_valid, not read, and ids of -1.
    pub ids_padding: u64,
    /// Device memory held.
    pub workspace_bytes: usize,
    /// Host memory held for the copy from the device.
    pub host_bytes: usize,
    /// The message of error_status, truncated to fit.
    pub error_message: [c_char; 512],
    /// Iterations to count from counted_start to counted_stop that never began: zeros in the dump.
    pub iterations_skipped: u64,
    /// Dumps written since creation; eplb_recorder_reset() does not clear it.
    pub dumps_written: u64,
    /// Failed attempts to dump since creation.
    pub dumps_failed: u64,
    /// Layers of the config; 0 if off.
    pub num_layers: u32,
    /// Layers with a buffer from eplb_recorder_register_buffer().
    pub num_registered_layers: u32,
    /// 1 while paused by eplb_recorder_set_paused(), otherwise 0.
    pub paused: u32,
    /// Rows of counts in memory, the most that a range of eplb_recorder_rearm() may have; 0 if off.
    pub max_rows: u32,
    /// Iterations beyond rolling_iterations of a snapshot, added into its first sample, since creation.
    pub iterations_merged: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_recorder_info {}

/// Returns the progress of a recorder. It may run beside counting and eplb_recorder_begin_iteration(), as
/// in a thread that exports metrics. On a CUDA device it reads sums on a stream of its own: they lack what
/// counting streams have not done yet. eplb_tools.h turns them into Prometheus' format.
///
/// \param recorder      the recorder
/// \param info          receives the numbers
/// \param layer_tokens  receives the valid tokens of each layer, in the order of layer_ids: [num_layers].
///                      Their ids without padding and shared experts, over those of a token, rounded up. NULL
///                      with num_layers 0: not wanted
/// \param num_layers    that of the config, or 0
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_get_info(
    recorder: *const eplb_recorder,
    info: *mut eplb_recorder_info,
    layer_tokens: *mut u64,
    num_layers: usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, info) = unsafe { (&borrowed(recorder, "recorder")?.0, growing_out(info, "info")?) };
        let found = recorder.info()?;
        let tokens = found.layer_tokens(num_layers)?;
        let found = info_of(&found)?;
        // SAFETY: the caller's promise of [num_layers], the length of `tokens`.
        unsafe { copy_out(&tokens, layer_tokens, "layer_tokens") }?;
        info.set(found);
        Ok(())
    })
}

fn info_of(found: &Info) -> Result<eplb_recorder_info> {
    let totals = found.sum();
    let message = found.error.as_ref().map(ToString::to_string).unwrap_or_default();
    Ok(eplb_recorder_info {
        struct_size: 0,
        state: match found.state {
            State::Off => EPLB_RECORDER_STATE_OFF,
            State::Waiting => EPLB_RECORDER_STATE_WAITING,
            State::Counting => EPLB_RECORDER_STATE_COUNTING,
            State::Dumping => EPLB_RECORDER_STATE_DUMPING,
            State::Dumped => EPLB_RECORDER_STATE_DUMPED,
            State::Failed => EPLB_RECORDER_STATE_FAILED,
            State::Lost => EPLB_RECORDER_STATE_LOST,
            State::Missed => EPLB_RECORDER_STATE_MISSED,
        },
        error_status: found.error.as_ref().map_or(EPLB_STATUS_OK, status_of),
        iteration: found.iteration.map_or(Ok(-1), |iteration| number(iteration, "iteration"))?,
        iter_start: number(found.range.start, "iter_start")?,
        iter_stop: number(found.range.stop, "iter_stop")?,
        counted_start: number(found.held.start, "counted_start")?,
        counted_stop: number(found.held.stop, "counted_stop")?,
        ids_counted: totals.counted(),
        ids_out_of_range: totals.out_of_range,
        ids_padding: totals.all_padding(),
        workspace_bytes: found.memory.workspace_bytes,
        host_bytes: found.memory.host_bytes,
        error_message: c_text(&message),
        iterations_skipped: found.skipped,
        dumps_written: found.dumps.written,
        dumps_failed: found.dumps.failed,
        num_layers: number(found.layers.len(), "num_layers")?,
        num_registered_layers: number(found.registered_layers, "num_registered_layers")?,
        paused: found.paused.into(),
        max_rows: number(found.max_rows, "max_rows")?,
        iterations_merged: found.merged,
    })
}

/// As much of `text` as fits with a NUL behind it, cut between characters.
fn c_text<const LEN: usize>(text: &str) -> [c_char; LEN] {
    let mut chars = [0; LEN];
    let fits = text.char_indices().map(|(start, c)| start + c.len_utf8()).take_while(|&end| end < LEN).last();
    for (to, from) in chars.iter_mut().zip(text.as_bytes()[..fits.unwrap_or(0)].iter()) {
        *to = *from as c_char;
    }
    chars
}
