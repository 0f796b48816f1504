//! The configuration of a recorder.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;

use super::boundary::{
    Growing, array, boundary, choice, config, growing_out, layer_numbers, num_shared, number, text,
};
use super::device::place;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::stats::{AddedCounts, FileNumber, IdKind, IterationRange, RecorderConfig, Rows};

/// What ids name.
pub type eplb_id_kind = i32;

/// Experts, as the router chose them.
pub const EPLB_ID_KIND_EXPERT: eplb_id_kind = 0;
/// Slots: a placement was in force.
pub const EPLB_ID_KIND_SLOT: eplb_id_kind = 1;

/// Flag of added_counts: counters that only grow, from 0. One below its last value was restarted. int32 is
/// read as unsigned.
pub const EPLB_ADDED_COUNTS_CUMULATIVE: u32 = 1;
/// Flag of added_counts: tokens that slots of this rank received, as DeepEP counts. Right in sums over
/// ranks only.
pub const EPLB_ADDED_COUNTS_BY_LOCAL_SLOT: u32 = 2;

/// What to count, and where.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_recorder_config {
    /// Set by EPLB_RECORDER_CONFIG_INIT.
    pub struct_size: usize,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group.
    pub num_ranks: u32,
    /// Experts of a layer; for EPLB_ID_KIND_SLOT, slots of all ranks.
    pub num_experts: u32,
    /// Ids per token (the router's top-k), those of shared experts included.
    pub experts_per_token: u32,
    /// Layers that this rank counts, by the model's numbers: [num_layers].
    pub layer_ids: *const i32,
    /// Length of layer_ids. 0: none, as in a pipeline stage without experts.
    pub num_layers: usize,
    /// Directory of the dump, shared by all ranks; created if missing. NULL: ./expert_statistic. Each rank
    /// writes rank<R>.safetensors, rank 0 also meta_info.json, in TensorRT-LLM's format. The first counted
    /// iteration renames those of the last run to NAME.previous: a rank that dies then lends no old counts.
    pub path: *const c_char,
    /// First iteration to count.
    pub iter_start: i64,
    /// One past the last iteration to count; 0: the recorder is off.
    pub iter_stop: i64,
    /// EPLB_DEVICE_HOST, EPLB_DEVICE_CURRENT, or the ordinal of a CUDA device.
    pub device: i32,
    /// What the ids name.
    pub id_kind: eplb_id_kind,
    /// Most tokens of a layer in an iteration. It selects the width of counts, and is no limit: 64 bits if
    /// this times experts_per_token times iter_bucket exceeds 2^32 - 1, otherwise 32, also for 0. An overflow
    /// is detected, and the dump refused.
    pub max_tokens_per_iteration: u64,
    /// Identifies the run, equal on all ranks; a reader refuses a mix of runs. NULL: EXPERT_STATISTIC_RUN_ID,
    /// or else the numbers of SLURM or PMIx; a mix of those is a warning.
    pub run_id: *const c_char,
    /// Device memory to use instead of the library's own: 16-byte aligned, at least
    /// eplb_recorder_memory_required() bytes, valid until the recorder is destroyed. Creation clears it
    /// outside of any stream. May be NULL.
    pub workspace: *mut c_void,
    /// Bytes of `workspace`.
    pub workspace_bytes: usize,
    /// Names the model, or the shape of some of its layers: one recorder each. The dump goes to path/name. One
    /// directory's name, but no range such as 100-200. NULL: none.
    pub name: *const c_char,
    /// With num_files, R of the file's name in place of rank: ranks of pipeline stages, which all start at 0,
    /// pass their rank of the world. The one with 0 writes the meta file.
    pub file_rank: u32,
    /// Files of the dump; 0: num_ranks.
    pub num_files: u32,
    /// Iterations that a row of counts adds up, for long ranges: less memory, smaller files. The last row may
    /// have fewer. TensorRT-LLM's reader refuses such a dump. 0: 1.
    pub iter_bucket: u32,
    /// Counts every iter_stride-th iteration of the range, from iter_start on, and no other. TensorRT-LLM's
    /// reader refuses such a dump. 0: 1.
    pub iter_stride: u32,
    /// Fused shared experts: the ids from num_experts on, which are not counted. The dump has
    /// experts_per_token without them. Slots of shared experts are told apart by
    /// eplb_dispatch_route_and_count() only.
    pub num_shared_experts: u32,
    /// Flags EPLB_ADDED_COUNTS_..., for eplb_recorder_add_counts().
    pub added_counts: u32,
    /// Iterations, of any number, that are kept apart for eplb_recorder_snapshot() of eplb_live.h: with a range
    /// or, iter_stop being 0, without. EPLB_ID_KIND_EXPERT only. 0: no snapshots.
    pub rolling_iterations: u64,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_recorder_config {}

/// Sets iterations and path from the environment, as TensorRT-LLM does. EXPERT_STATISTIC_ITER_RANGE=100-200
/// counts iterations 100 to 199; if unset, iter_start and iter_stop become 0, whatever they were: the
/// recorder is off. EXPERT_STATISTIC_PATH is the path; if unset or empty, the path is unchanged. Several
/// recorders share them if each has a name.
///
/// \param config  receives the fields. Its path then points into the environment, which must not change
///                before eplb_recorder_create()
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a range such as 100-50 or abc, or an empty one
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_recorder_config_from_env(config: *mut eplb_recorder_config) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for the config.
        let (given, result) = unsafe { (self::config(config, "config")?, growing_out(config, "config")?) };
        // SAFETY: the caller's promise that the environment does not change meanwhile.
        let (path, range) = unsafe {
            let path = variable(c"EXPERT_STATISTIC_PATH").filter(|path| **path != 0);
            path.map(|path| text(path, "EXPERT_STATISTIC_PATH")).transpose()?;
            (path, iteration_range()?)
        };
        result.set(eplb_recorder_config {
            iter_start: number(range.start, "iter_start")?,
            iter_stop: number(range.stop, "iter_stop")?,
            path: path.unwrap_or(given.path),
            ..given
        });
        Ok(())
    })
}

/// The value of an environment variable; `None` if it is unset.
///
/// # Safety
/// The environment does not change while the string is used.
unsafe fn variable(name: &CStr) -> Option<*const c_char> {
    // SAFETY: the caller's promise.
    let value = unsafe { libc::getenv(name.as_ptr()) }.cast_const();
    (!value.is_null()).then_some(value)
}

/// The range in the environment, or an empty one.
///
/// # Safety
/// As for [`variable`].
unsafe fn iteration_range() -> Result<IterationRange> {
    const NAME: &str = "EXPERT_STATISTIC_ITER_RANGE";
    // SAFETY: the caller's promise.
    let Some(value) = (unsafe { variable(c"EXPERT_STATISTIC_ITER_RANGE") }) else {
        return Ok(IterationRange { start: 0, stop: 0 });
    };
    // SAFETY: the value is a string, by the caller's promise.
    let bytes = unsafe { CStr::from_ptr(value) }.to_bytes();
    if bytes.trim_ascii().is_empty() {
        return Err(Error::InvalidArgument(format!(
            "{NAME} is set and empty: unset it to count nothing, or give START-STOP, such as 100-200 for iterations 100 to 199"
        )));
    }
    // SAFETY: as above.
    unsafe { text(value, NAME) }?.parse().map_err(|e| Error::InvalidArgument(format!("{NAME}: {e}")))
}

/// Calls `use_it` with the config.
///
/// # Safety
/// The config's pointers are NULL or of the lengths beside them.
pub(super) unsafe fn with_config<T>(
    config: &eplb_recorder_config,
    use_it: impl FnOnce(&RecorderConfig) -> Result<T>,
) -> Result<T> {
    // SAFETY: the caller's promise.
    let (layers, path, run_id, name) = unsafe {
        let given = |string: *const c_char| (!string.is_null()).then_some(string);
        (
            array(config.layer_ids, Some(config.num_layers), "config->layer_ids")?,
            given(config.path).map(|path| text(path, "config->path")).transpose()?,
            given(config.run_id).map(|run_id| text(run_id, "config->run_id")).transpose()?,
            given(config.name).map(|name| text(name, "config->name")).transpose()?,
        )
    };
    if config.num_files == 0 && config.file_rank != 0 {
        return Err(Error::InvalidArgument(format!(
            "config->file_rank is {} and num_files 0; set num_files to the number of files of the dump",
            config.file_rank
        )));
    }
    use_it(&RecorderConfig {
        path: path.map(Path::new),
        name,
        iterations: iterations(config)?,
        rows: Rows::new(config.iter_bucket.max(1).into(), config.iter_stride.max(1).into())?,
        rank: config.rank,
        num_ranks: config.num_ranks as usize,
        file: (config.num_files != 0)
            .then_some(FileNumber { rank: config.file_rank, num_files: config.num_files as usize }),
        num_experts: config.num_experts as usize,
        experts_per_token: config.experts_per_token as usize,
        layers: &layer_numbers(layers)?,
        id_kind: id_kind(config.id_kind)?,
        place: place(config.device)?,
        max_tokens_per_iteration: config.max_tokens_per_iteration,
        run_id,
        added_counts: added_counts(config)?,
        num_shared: num_shared(config.num_shared_experts)?,
        rolling: config.rolling_iterations,
    })
}

fn added_counts(config: &eplb_recorder_config) -> Result<AddedCounts> {
    let flags = config.added_counts;
    let unknown = flags & !(EPLB_ADDED_COUNTS_CUMULATIVE | EPLB_ADDED_COUNTS_BY_LOCAL_SLOT);
    if unknown != 0 {
        return Err(Error::InvalidArgument(format!(
            "added_counts has the unknown flags {unknown:#x}; expected EPLB_ADDED_COUNTS_CUMULATIVE ({:#x}), \
             EPLB_ADDED_COUNTS_BY_LOCAL_SLOT ({:#x}), both, or 0",
            EPLB_ADDED_COUNTS_CUMULATIVE, EPLB_ADDED_COUNTS_BY_LOCAL_SLOT
        )));
    }
    Ok(AddedCounts {
        cumulative: flags & EPLB_ADDED_COUNTS_CUMULATIVE != 0,
        by_local_slot: flags & EPLB_ADDED_COUNTS_BY_LOCAL_SLOT != 0,
    })
}

fn iterations(config: &eplb_recorder_config) -> Result<Option<IterationRange>> {
    let (start, stop) = (number(config.iter_start, "iter_start")?, number(config.iter_stop, "iter_stop")?);
    match (start, stop) {
        (0, 0) => Ok(None),
        (start, stop) if start < stop => Ok(Some(IterationRange { start, stop })),
        (start, stop) => Err(Error::InvalidArgument(format!(
            "iter_start is {start} and iter_stop {stop}; iter_start must be the lower one, or both 0 to count nothing"
        ))),
    }
}

/// What ids name, as the library stores it.
pub(super) fn id_kind(kind: eplb_id_kind) -> Result<IdKind> {
    choice!(kind, "id_kind", {
        EPLB_ID_KIND_EXPERT => IdKind::Expert,
        EPLB_ID_KIND_SLOT => IdKind::Slot,
    })
}
