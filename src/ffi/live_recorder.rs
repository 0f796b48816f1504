//! Counts for live rebalancing: snapshots of a rolling recorder.

use super::boundary::{borrowed, boundary, num_samples as checked_samples};
use super::device::{CUstream_st, stream};
use super::recorder::eplb_recorder;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::stats::SnapshotAt;

/// Writes what a recorder with rolling_iterations counted since the last snapshot, and clears it, by one
/// kernel in stream order. The engine adds the counts of all ranks on the same stream.
///
/// The iterations begun since go into the samples in even consecutive groups: of n iterations in m samples,
/// sample s has those from s * n / m to (s + 1) * n / m, rounded down. Of fewer iterations than samples, each
/// has a sample, and the last samples are zeros. Iterations beyond the ring are added into sample 0, and
/// iterations_merged of eplb_recorder_info counts them. Iterations that were paused throughout do not count.
///
/// \param recorder     the recorder; not concurrent with other calls
/// \param counts       receives int64 [num_samples][num_layers][num_experts], layers as in layer_ids: memory
///                     of the recorder's device, or page-locked host memory
/// \param num_samples  1 to 2^20
/// \param stream       ordered after all counting so far and before the counting to come, not being captured
/// \return EPLB_STATUS_INVALID_ARGUMENT also without rolling_iterations; EPLB_STATUS_CAPTURING;
///         EPLB_STATUS_CUDA. All leave the counts as they are
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_snapshot(
    recorder: *mut eplb_recorder,
    counts: *mut i64,
    num_samples: u32,
    stream: *mut CUstream_st,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (recorder, counts, stream) =
            unsafe { (&borrowed(recorder, "recorder")?.0, snapshot_at(counts)?, self::stream(stream)) };
        recorder.snapshot(&counts, checked_samples(num_samples)?, stream)
    })
}

/// Where a snapshot goes.
///
/// # Safety
/// As for [`SnapshotAt::at`].
unsafe fn snapshot_at(counts: *mut i64) -> Result<SnapshotAt> {
    if counts.is_null() || !counts.is_aligned() {
        let why = if counts.is_null() { "NULL" } else { "not aligned to its 8 bytes" };
        return Err(Error::InvalidArgument(format!("counts is {why}")));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { SnapshotAt::at(counts as u64) })
}
