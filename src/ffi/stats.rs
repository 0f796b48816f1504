//! Statistics: what was counted.

use std::ffi::c_char;

use super::boundary::{
    Growing, borrowed, boundary, copy_out, destroy, growing_out, number, optional_config, out, path,
};
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::stats::{Counted, Dump, LoadOptions, Stats};

/// The counts of a dump, summed over ranks. Immutable: any number of threads may use it at once.
pub struct eplb_stats(pub(super) Stats);

/// What to read of a dump. Initialise with EPLB_STATS_OPTIONS_INIT; zero is every field's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_stats_options {
    /// sizeof(eplb_stats_options)
    pub struct_size: usize,
    /// First iteration to use; 0: from the start of the dump.
    pub iter_start: i64,
    /// First iteration not to use any more; 0: to the end of the dump.
    pub iter_stop: i64,
    /// Not 0: take a dump in which the files of some ranks are missing. eplb_stats_info lists them.
    pub allow_missing_ranks: u32,
    /// Threads that read; 0: one a core, at most 8. Results do not depend on it.
    pub num_threads: u32,
    /// Ranks that the run had, so that a loss of any is noticed; 0: what the dump says. TensorRT-LLM's dumps do not say
    /// it: of theirs, a loss of the highest ranks goes unnoticed with 0.
    pub expected_ranks: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_stats_options {}

/// What the ids of a dump are.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_counted {
    /// Experts, as the router chose them.
    Experts = 0,
    /// Slots: a placement was in force while counting.
    Slots = 1,
}

/// What came in from C.
pub(super) fn counted(number: i32) -> Result<Counted> {
    const EXPERTS: i32 = eplb_counted::Experts as i32;
    const SLOTS: i32 = eplb_counted::Slots as i32;
    match number {
        EXPERTS => Ok(Counted::Experts),
        SLOTS => Ok(Counted::Slots),
        unknown => Err(Error::InvalidArgument(format!("counted is {unknown}, which is no eplb_counted"))),
    }
}

/// What a dump holds. Initialise with EPLB_STATS_INFO_INIT. Arrays belong to the handle and live as long as it does.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_stats_info {
    /// sizeof(eplb_stats_info)
    pub struct_size: usize,
    /// Experts of a layer, or slots where `counted` says so.
    pub num_experts: u32,
    /// Experts that each token chooses; 0 where a file of another system did not say it.
    pub experts_per_token: u32,
    /// Ranks of the run that dumped, the missing ones included.
    pub num_ranks: u32,
    /// Whether experts or slots were counted: an eplb_counted.
    pub counted: i32,
    /// First iteration of the counts.
    pub iter_start: i64,
    /// The one after the last.
    pub iter_stop: i64,
    /// The layers' numbers, ascending: int32 [num_layers].
    pub layer_ids: *const i32,
    /// Layers that were counted.
    pub num_layers: usize,
    /// Ranks whose file is missing, ascending: int32 [num_missing_ranks].
    pub missing_ranks: *const i32,
    /// Always 0 unless allow_missing_ranks was set.
    pub num_missing_ranks: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers only.
unsafe impl Growing for eplb_stats_info {}

impl eplb_stats_options {
    /// Zero is the default of each, and no iteration is negative.
    pub(super) fn checked(&self) -> Result<LoadOptions> {
        Ok(LoadOptions {
            iter_start: Some(number(self.iter_start, "iter_start")?).filter(|&start| start != 0),
            iter_stop: Some(number(self.iter_stop, "iter_stop")?).filter(|&stop| stop != 0),
            expected_ranks: Some(self.expected_ranks).filter(|&ranks| ranks != 0),
            allow_missing_ranks: self.allow_missing_ranks != 0,
            threads: self.num_threads as usize,
        })
    }
}

/// Reads the dump in a directory: meta_info.json and one rank<R>.safetensors a rank, summed over ranks.
///
/// \param path     the directory, UTF-8
/// \param options  may be NULL: all iterations, all ranks present
/// \param stats    receives the handle, which goes back by eplb_stats_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_DUMP or EPLB_STATUS_INCOMPLETE_DUMP with a message naming file,
///         iteration and layer; EPLB_STATUS_READ_FAILED; EPLB_STATUS_INVALID_ARGUMENT, also for iterations that the dump
///         does not have
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
        let dump = Dump::open(directory, &options.checked()?)?;
        stats.give(eplb_stats(dump.read(&mut |_, _| Ok(()))?));
        Ok(())
    })
}

/// Tells what the dump held.
///
/// \param stats  the counts
/// \param info   from EPLB_STATS_INFO_INIT; receives the sizes, and arrays that live as long as the handle
/// \return EPLB_STATUS_OK or EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_get_info(
    stats: *const eplb_stats,
    info: *mut eplb_stats_info,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (stats, info) = unsafe { (borrowed(stats, "stats")?, growing_out(info, "info")?) };
        let summary = stats.0.summary();
        info.set(eplb_stats_info {
            struct_size: 0,
            num_experts: number(summary.num_experts, "num_experts")?,
            experts_per_token: number(summary.experts_per_token, "experts_per_token")?,
            num_ranks: number(summary.num_ranks, "num_ranks")?,
            counted: match summary.counted {
                Counted::Experts => eplb_counted::Experts,
                Counted::Slots => eplb_counted::Slots,
            } as i32,
            iter_start: number(summary.iterations.start, "iter_start")?,
            iter_stop: number(summary.iterations.stop, "iter_stop")?,
            layer_ids: summary.layers.as_ptr().cast(),
            num_layers: summary.layers.len(),
            missing_ranks: summary.missing_ranks.as_ptr().cast(),
            num_missing_ranks: summary.missing_ranks.len(),
        });
        Ok(())
    })
}

/// Copies the loads of one layer, in the form that eplb_solve() takes: (token, choice) pairs by expert.
///
/// \param stats        the counts
/// \param layer        the layer's number
/// \param num_samples  1: summed over the iterations; iter_stop - iter_start: one row an iteration; between: as many groups of
///                     iterations that follow each other, as even as can be, each summed up
/// \param num_experts  that of the dump, as a check
/// \param loads        receives [num_samples][num_experts]
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT, also for an unknown layer; EPLB_STATUS_INVALID_DUMP where a sum is
///         larger than a double can say exactly
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
        let stats = &unsafe { borrowed(stats, "stats") }?.0;
        let values = stats.layer_samples(number(layer, "layer")?, num_samples, num_experts)?;
        // SAFETY: the caller's promise of [num_samples][num_experts], which is how many values there are.
        unsafe { copy_out(&values, loads, "loads") }
    })
}

/// Gives the handle back.
///
/// \param stats  not to be used again, nor what it lent; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_stats_destroy(stats: *mut eplb_stats) {
    // SAFETY: the caller's promise that the handle is live and not used again.
    unsafe { destroy(stats) }
}
