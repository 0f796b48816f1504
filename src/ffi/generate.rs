//! Generating: step 2 as a whole.

use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};

use super::boundary::{
    Growing, array, boundary, config, growing_out, number, optional_array, optional_config,
    optional_of_ranks, or_default, path,
};
use super::solve::eplb_solve_options;
use super::stats::eplb_stats_options;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::generate::{DEFAULT_NUM_SAMPLES, GenerateConfig, Generated, Phase, generate_from};
use crate::placement::MAX_COUNT;
use crate::solve::SolveConfig;

/// The phases of eplb_generate().
pub type eplb_phase = i32;

/// Reading the dump, in bytes.
pub const EPLB_PHASE_READ: eplb_phase = 0;
/// Solving, in layers.
pub const EPLB_PHASE_SOLVE: eplb_phase = 1;
/// Writing the configuration file, in files.
pub const EPLB_PHASE_WRITE: eplb_phase = 2;

/// Receives the progress of eplb_generate(), on the thread that called it. Must not throw.
///
/// \param user_data  that of the config
/// \param phase      an eplb_phase
/// \param done       work done of the phase, in its unit
/// \param total      work of the phase
/// \return 0 to continue; nonzero cancels, and an existing configuration file is unchanged
pub type eplb_progress_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, phase: eplb_phase, done: u64, total: u64) -> i32>;

/// What to generate. Defaults are those of TensorRT-LLM's script.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_generate_config {
    /// Set by EPLB_GENERATE_CONFIG_INIT.
    pub struct_size: usize,
    /// Directory of the dump. Required, unless `paths` are given.
    pub expert_statistic_path: *const c_char,
    /// File to write, replaced atomically: TensorRT-LLM's, or eplb's own if named *.eplb.yaml. A pipe, a
    /// device or /dev/fd/N is written and stays. Required.
    pub output_path: *const c_char,
    /// Ranks (the EP size); 0: as in the dump. Required with rank_to_node, and where pipeline stages differ.
    pub num_ranks: u32,
    /// Slots of all ranks together: a multiple of num_ranks, at least the experts; 0: one an expert, or
    /// num_ranks times the largest of rank_num_slots. Required with pinned_experts.
    pub num_slots: u32,
    /// Samples for EPLB_POLICY_SEARCH: consecutive rows of a dump, split as evenly as possible; 0: 16, or one
    /// a row if there are fewer. Each of several dumps has as many. Required with sample_weights.
    pub num_samples: usize,
    /// Receives the progress. May be NULL.
    pub progress: eplb_progress_callback,
    /// Passed to `progress`.
    pub user_data: *mut c_void,
    /// Layers that an engine with an online balancer updates per iteration; only written to the file.
    pub layer_updates_per_iter: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Slots of each rank: [num_ranks], as in eplb_placement_config; the output is then a *.eplb.yaml, unless
    /// no slot is empty. NULL: num_slots / num_ranks.
    pub rank_num_slots: *const i32,
    /// Directories of several dumps of one model, instead of expert_statistic_path: [num_paths].
    pub paths: *const *const c_char,
    /// What the counts of each dump are multiplied by, above 0: [num_paths]. NULL: 1.
    pub path_weights: *const f64,
    /// Length of paths.
    pub num_paths: usize,
}

// SAFETY: `repr(C)`, `struct_size` first, integers, pointers and a nullable function pointer.
unsafe impl Growing for eplb_generate_config {}

/// What eplb_generate() wrote.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_generate_report {
    /// Set by EPLB_GENERATE_REPORT_INIT.
    pub struct_size: usize,
    /// Ranks.
    pub num_ranks: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Layers.
    pub num_layers: u32,
    /// First iteration used, of the first dump.
    pub iter_start: i64,
    /// One past the last iteration used, of the first dump.
    pub iter_stop: i64,
    /// Ranks whose file is missing from the dump.
    pub num_missing_ranks: u32,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: u32,
    /// Imbalance ratio (max - mean) / mean without a load balancer, averaged over iterations with
    /// tokens, then over layers with tokens. NaN if there are none.
    pub imbalance_before: f64,
    /// The same with the placement, under an even split.
    pub imbalance_after: f64,
    /// eplb_placement_hash() of the placement.
    pub hash: u64,
    /// As in eplb_placement_evaluation, averaged over layers. NaN if the policy ignores nodes.
    pub off_node_share: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers only.
unsafe impl Growing for eplb_generate_report {}

/// Generates a configuration file from a dump: reads it, solves, and saves the placement.
///
/// \param config         what to generate
/// \param stats_options  which iterations and ranks to read; NULL for all
/// \param solve_options  NULL for the defaults
/// \param report         receives the figures; may be NULL
/// \return EPLB_STATUS_OK if the file is complete and synced to disk. Otherwise an existing file is
///         unchanged: the failures of eplb_stats_load() and eplb_solve(), EPLB_STATUS_WRITE_FAILED,
///         EPLB_STATUS_CANCELLED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_generate(
    config: *const eplb_generate_config,
    stats_options: *const eplb_stats_options,
    solve_options: *const eplb_solve_options,
    report: *mut eplb_generate_report,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, stats_options, solve_options, report) = unsafe {
            (
                self::config(config, "config")?,
                optional_config::<eplb_stats_options>(stats_options, "stats_options")?,
                optional_config(solve_options, "solve_options")?,
                (!report.is_null()).then(|| growing_out(report, "report")).transpose()?,
            )
        };
        // SAFETY: as above, for what the structs point to.
        let (paths, path_weights) = unsafe { dump_paths(&config) }?;
        // SAFETY: as above.
        let generating = unsafe { generate_config(&config, &stats_options, &solve_options) }?;
        let generating = GenerateConfig { paths: &paths, path_weights, ..generating };
        let dumps = generating.open()?;
        // SAFETY: as above. Only the dump has the number of layers.
        let pinned_experts =
            unsafe { solve_options.pinned_experts(config.num_slots as usize, dumps.summary().layers.len()) }?;
        let solve = SolveConfig { pinned_experts, ..generating.solve };
        let generating = GenerateConfig { solve, ..generating };
        let generated = generate_from(dumps, &generating, &mut |phase, done, total| {
            progress(&config, phase, done, total)
        })?;
        if let Some(report) = report {
            report.set(report_of(&generated)?);
        }
        Ok(())
    })
}

/// # Safety
/// What the structs point to is as their documentation requires.
unsafe fn generate_config<'a>(
    config: &eplb_generate_config,
    stats_options: &eplb_stats_options,
    solve_options: &eplb_solve_options,
) -> Result<GenerateConfig<'a>> {
    let refuse = |what: &str| Err(Error::InvalidArgument(what.to_owned()));
    if config.reserved != 0 {
        return refuse("config->reserved is not 0");
    }
    if !solve_options.sample_weights.is_null() && config.num_samples == 0 {
        return refuse("solve_options->sample_weights has num_samples values; set config->num_samples too");
    }
    if !solve_options.rank_to_node.is_null() && config.num_ranks == 0 {
        return refuse("solve_options->rank_to_node has num_ranks values; set config->num_ranks too");
    }
    if !config.rank_num_slots.is_null() && config.num_ranks == 0 {
        return refuse("config->rank_num_slots has num_ranks values; set config->num_ranks too");
    }
    if !solve_options.pinned_experts.is_null() && config.num_slots == 0 {
        return refuse("solve_options->pinned_experts has num_slots columns; set config->num_slots too");
    }
    // SAFETY: the caller's promises.
    unsafe {
        let solve = solve_options.solve_config(config.num_ranks, config.num_samples)?;
        let rank_num_slots =
            optional_of_ranks(config.rank_num_slots.cast(), config.num_ranks, "config->rank_num_slots")?;
        Ok(GenerateConfig {
            paths: &[],
            path_weights: None,
            output_path: path(config.output_path, "config->output_path")?,
            options: stats_options.load_options()?,
            num_ranks: or_default(config.num_ranks),
            num_slots: or_default(config.num_slots),
            layer_updates_per_iter: config.layer_updates_per_iter,
            solve_threads: solve_options.num_threads as usize,
            reserve_slots: 0,
            pin_experts: &[],
            pin_homes: false,
            solve: SolveConfig { rank_num_slots, ..solve },
            num_samples: if config.num_samples == 0 { DEFAULT_NUM_SAMPLES } else { config.num_samples },
        })
    }
}

/// The dumps' directories, and their weights.
///
/// # Safety
/// What the config points to is as its documentation requires.
unsafe fn dump_paths<'a>(config: &eplb_generate_config) -> Result<(Vec<PathBuf>, Option<&'a [f64]>)> {
    let refuse = |what: &str| Err(Error::InvalidArgument(what.to_owned()));
    if config.num_paths == 0 {
        if !config.paths.is_null() || !config.path_weights.is_null() {
            return refuse("config->paths or path_weights is set, but num_paths is 0");
        }
        // SAFETY: the caller's promise.
        let path = unsafe { path(config.expert_statistic_path, "config->expert_statistic_path") }?;
        return Ok((vec![path.to_owned()], None));
    }
    if !config.expert_statistic_path.is_null() {
        return refuse("config->expert_statistic_path and config->paths exclude each other; add it to paths");
    }
    if config.num_paths > MAX_COUNT {
        return refuse(&format!("config->num_paths is {}; at most {MAX_COUNT} expected", config.num_paths));
    }
    // SAFETY: the caller's promises, here and of each path.
    let (paths, weights) = unsafe {
        (
            array(config.paths, Some(config.num_paths), "config->paths")?,
            optional_array(config.path_weights, config.num_paths, "config->path_weights")?,
        )
    };
    // SAFETY: as above.
    let path = |&directory: &*const c_char| unsafe { path(directory, "config->paths") }.map(Path::to_owned);
    Ok((paths.iter().map(path).collect::<Result<_>>()?, weights))
}

/// Calls the progress callback. Its refusal is an error.
fn progress(config: &eplb_generate_config, phase: Phase, done: u64, total: u64) -> Result<()> {
    let phase = match phase {
        Phase::Read => EPLB_PHASE_READ,
        Phase::Solve => EPLB_PHASE_SOLVE,
        Phase::Write => EPLB_PHASE_WRITE,
    };
    // SAFETY: set by the caller together with its user data.
    match config.progress.map_or(0, |callback| unsafe { callback(config.user_data, phase, done, total) }) {
        0 => Ok(()),
        _ => Err(Error::Cancelled),
    }
}

fn report_of(generated: &Generated) -> Result<eplb_generate_report> {
    let Generated { summary, placement, score } = generated;
    let (shape, rows) = (placement.shape(), summary.rows.first());
    Ok(eplb_generate_report {
        struct_size: 0,
        num_ranks: number(shape.num_ranks(), "num_ranks")?,
        num_slots: number(shape.num_slots(), "num_slots")?,
        num_experts: number(shape.num_experts(), "num_experts")?,
        num_layers: number(score.layers.len(), "num_layers")?,
        iter_start: number(rows.iterations.start, "iter_start")?,
        iter_stop: number(rows.iterations.stop, "iter_stop")?,
        num_missing_ranks: number(summary.missing_ranks.len(), "num_missing_ranks")?,
        num_duplicates: number(score.num_duplicates, "num_duplicates")?,
        imbalance_before: generated.imbalance_before().unwrap_or(f64::NAN),
        imbalance_after: generated.imbalance_after().unwrap_or(f64::NAN),
        hash: placement.hash(),
        off_node_share: generated.off_node_share().unwrap_or(f64::NAN),
    })
}
