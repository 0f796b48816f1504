//! Statistics: the counts of a dump or of arrays.

use std::ffi::{c_char, c_void};

use super::boundary::{
    Growing, array, borrowed, boundary, config, copy_out, destroy, growing_out, layer_numbers, number,
    optional_config, or_default, out, path,
};
use super::device::{eplb_dtype, id_type};
use super::recorder_config::{EPLB_ID_KIND_EXPERT, EPLB_ID_KIND_SLOT, eplb_id_kind, id_kind};
use super::status::eplb_status;
use crate::device::IdType;
use crate::error::{Error, Result};
use crate::exchange::Load;
use crate::stats::{ArraysConfig, CountArray, Dump, IdKind, IterationRange, LoadOptions, Stats};

/// The counts of a dump or of arrays, summed over ranks. Immutable.
pub struct eplb_stats(pub(super) Load);

impl eplb_stats {
    fn layer_samples(&self, layer: u32, num_samples: usize, num_experts: usize) -> Result<Vec<f64>> {
        match &self.0 {
            Load::Counts(stats) => stats.layer_samples(layer, num_samples, num_experts),
            Load::Fractions(loads) => loads.layer_samples(layer, num_samples, num_experts),
        }
    }
}

/// What to read of a dump. Zero is the default of every field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_stats_options {
    /// Set by EPLB_STATS_OPTIONS_INIT.
    pub struct_size: usize,
    /// First iteration to read; 0: the dump's first.
    pub iter_start: i64,
    /// One past the last iteration to read; 0: to the dump's end.
    pub iter_stop: i64,
    /// Nonzero: accept a dump that lacks the files of some ranks.
    pub allow_missing_ranks: u32,
    /// Threads that read; 0: one a core, at most 8. Results do not depend on it.
    pub num_threads: u32,
    /// Files rank<R> of all pipeline stages, to detect missing ones; 0: as in the dump. TensorRT-LLM's dumps do
    /// not say it: with 0, the loss of their highest ranks goes undetected.
    pub expected_ranks: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_stats_options {}

/// What arrays of counts describe.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_stats_config {
    /// Set by EPLB_STATS_CONFIG_INIT.
    pub struct_size: usize,
    /// Experts of a layer; for EPLB_ID_KIND_SLOT, slots of all ranks.
    pub num_experts: u32,
    /// Experts per token; 0: unknown.
    pub experts_per_token: u32,
    /// Ranks whose counts were summed; 0: 1.
    pub num_ranks: u32,
    /// What the counts are of.
    pub id_kind: eplb_id_kind,
    /// Layer numbers in the order of the counts: [num_layers].
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// First iteration.
    pub iter_start: i64,
    /// Iterations of the counts.
    pub num_iterations: u32,
    /// The type of a count.
    pub dtype: eplb_dtype,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_stats_config {}

/// The contents of statistics. Arrays live as long as the handle.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_stats_info {
    /// Set by EPLB_STATS_INFO_INIT.
    pub struct_size: usize,
    /// Experts of a layer; of slot ids, slots of all ranks together.
    pub num_experts: u32,
    /// Experts per token; 0 if the source does not say it.
    pub experts_per_token: u32,
    /// Ranks of expert parallelism, including missing ones; 0 if pipeline stages have different numbers.
    pub num_ranks: u32,
    /// What the ids name; EPLB_ID_KIND_EXPERT also for a dump that does not say it.
    pub id_kind: eplb_id_kind,
    /// First iteration.
    pub iter_start: i64,
    /// One past the last iteration.
    pub iter_stop: i64,
    /// Layer numbers, ascending: [num_layers].
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// Numbers R of the missing files, ascending: [num_missing_ranks].
    pub missing_ranks: *const i32,
    /// 0 unless allow_missing_ranks was set.
    pub num_missing_ranks: usize,
    /// Counted iterations that each row of counts adds up; the last row may have fewer.
    pub iter_bucket: u64,
    /// Distance of two counted iterations.
    pub iter_stride: u64,
    /// Rows, each of the iterations from iter_start + row * iter_bucket * iter_stride on.
    pub num_rows: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_stats_info {}

impl eplb_stats_options {
    /// The options as the library takes them.
    pub(super) fn load_options(&self) -> Result<LoadOptions> {
        Ok(LoadOptions {
            iter_start: Some(number(self.iter_start, "iter_start")?).filter(|&start| start != 0),
            iter_stop: Some(number(self.iter_stop, "iter_stop")?).filter(|&stop| stop != 0),
            expected_ranks: Some(self.expected_ranks).filter(|&ranks| ranks != 0),
            allow_missing_ranks: self.allow_missing_ranks != 0,
            counts: None,
            threads: self.num_threads as usize,
        })
    }
}

/// Loads the dump in a directory, meta_info.json and one rank<R>.safetensors a rank, summed over ranks.
///
/// \param path     the directory
/// \param options  NULL for the defaults
/// \param stats    receives the handle
/// \return EPLB_STATUS_INVALID_DUMP; EPLB_STATUS_INCOMPLETE_DUMP; EPLB_STATUS_READ_FAILED;
///         EPLB_STATUS_INVALID_ARGUMENT also for iterations that the dump lacks
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_load(
    path: *const c_char,
    options: *const eplb_stats_options,
    stats: *mut *mut eplb_stats,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (directory, options, stats) = unsafe {
            (
                self::path(path, "path")?,
                optional_config::<eplb_stats_options>(options, "options")?,
                out(stats, "stats")?,
            )
        };
        let dump = Dump::open(directory, &options.load_options()?)?;
        stats.give(eplb_stats(Load::Counts(dump.read(&mut |_, _| Ok(()))?)));
        Ok(())
    })
}

/// Creates statistics from arrays instead of a dump, as of an engine with counters of its own. Every call on
/// statistics takes them.
///
/// \param config  copied with all that it points to
/// \param counts  host memory, summed over ranks: [num_iterations][num_layers][num_experts]. Copied. Counts of
///                one rank alone describe that rank's tokens
/// \param stats   receives the handle
/// \return EPLB_STATUS_INVALID_ARGUMENT also for a negative count, or an expert's sum over the iterations of
///         2^63 or more, with layer, iteration and expert; EPLB_STATUS_OUT_OF_MEMORY
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_create(
    config: *const eplb_stats_config,
    counts: *const c_void,
    stats: *mut *mut eplb_stats,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, stats) = unsafe { (self::config(config, "config")?, out(stats, "stats")?) };
        // SAFETY: the caller's promises for the counts and what the config points to.
        stats.give(eplb_stats(Load::Counts(unsafe { of_arrays(&config, counts) }?)));
        Ok(())
    })
}

/// # Safety
/// The config's pointer is NULL or of the length beside it, and `counts` has as many counts as the config says.
unsafe fn of_arrays(config: &eplb_stats_config, counts: *const c_void) -> Result<Stats> {
    // SAFETY: the caller's promise.
    let layer_ids = unsafe { array(config.layer_ids, Some(config.num_layers), "config->layer_ids") }?;
    let kind = id_type(counts, config.dtype, ("counts", "config->dtype"))?;
    let start: u64 = number(config.iter_start, "iter_start")?;
    let stop = start + u64::from(config.num_iterations);
    if stop > i64::MAX as u64 {
        return Err(Error::InvalidArgument(format!(
            "iter_start is {start}, num_iterations {}: the last iteration is beyond 2^63",
            config.num_iterations
        )));
    }
    let arrays = ArraysConfig {
        num_experts: config.num_experts as usize,
        experts_per_token: config.experts_per_token as usize,
        num_ranks: or_default(config.num_ranks).unwrap_or(1),
        id_kind: id_kind(config.id_kind)?,
        layers: &layer_numbers(layer_ids)?,
        iterations: IterationRange { start, stop },
    };
    arrays.check()?;
    let len = arrays.num_counts();
    // SAFETY: the caller's promise.
    let counts = unsafe {
        match kind {
            IdType::Int32 => CountArray::I32(array(counts.cast(), len, "counts")?),
            IdType::Int64 => CountArray::I64(array(counts.cast(), len, "counts")?),
        }
    };
    Stats::create(&arrays, counts)
}

/// Returns the sizes of the counts.
///
/// \param stats  the counts
/// \param info   receives the sizes
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_get_info(
    stats: *const eplb_stats,
    info: *mut eplb_stats_info,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (stats, info) = unsafe { (borrowed(stats, "stats")?, growing_out(info, "info")?) };
        let summary = stats.0.summary();
        let rows = summary.rows.first();
        info.set(eplb_stats_info {
            struct_size: 0,
            num_experts: number(summary.num_experts, "num_experts")?,
            experts_per_token: number(summary.experts_per_token, "experts_per_token")?,
            num_ranks: number(summary.num_ranks, "num_ranks")?,
            id_kind: match summary.id_kind {
                Some(IdKind::Expert) | None => EPLB_ID_KIND_EXPERT,
                Some(IdKind::Slot) => EPLB_ID_KIND_SLOT,
            },
            iter_start: number(rows.iterations.start, "iter_start")?,
            iter_stop: number(rows.iterations.stop, "iter_stop")?,
            layer_ids: summary.layers.as_ptr().cast(),
            num_layers: summary.layers.len(),
            missing_ranks: summary.missing_ranks.as_ptr().cast(),
            num_missing_ranks: summary.missing_ranks.len(),
            iter_bucket: rows.rows.bucket(),
            iter_stride: rows.rows.stride(),
            num_rows: number(rows.len(), "num_rows")?,
        });
        Ok(())
    })
}

/// Copies the loads of one layer for eplb_solve(): the number of ids of each expert.
///
/// \param stats        the counts
/// \param layer        the layer's number
/// \param num_samples  1: the sum of all iterations; num_rows: each row, mostly an iteration; a number
///                     between: consecutive rows, split as evenly as possible and summed
/// \param num_experts  that of the dump, as a check
/// \param loads        receives [num_samples][num_experts]
/// \return EPLB_STATUS_INVALID_DUMP if a sum exceeds 2^53, where a double is no longer exact
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_layer_loads(
    stats: *const eplb_stats,
    layer: i32,
    num_samples: usize,
    num_experts: usize,
    loads: *mut f64,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let stats = unsafe { borrowed(stats, "stats") }?;
        let values = stats.layer_samples(number(layer, "layer")?, num_samples, num_experts)?;
        // SAFETY: the caller's promise of [num_samples][num_experts], which is how many values there are.
        unsafe { copy_out(&values, loads, "loads") }
    })
}

/// Destroys counts and the arrays that they returned.
///
/// \param stats  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_destroy(stats: *mut eplb_stats) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(stats) }
}
