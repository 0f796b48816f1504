//! Generating: the whole of step 2.

use std::ffi::{c_char, c_void};

use super::boundary::{Growing, boundary, config, growing_out, number, or_default, path};
use super::solve::{Wanted, rank_nodes, solve_config};
use super::stats::eplb_stats_options;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::generate::{DEFAULT_NUM_SAMPLES, GenerateConfig, Generated, Phase, generate};

/// What eplb_generate() is doing.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_phase {
    /// Reading the dump; counted in bytes.
    Read = 0,
    /// Placing experts; counted in layers.
    Solve = 1,
    /// Writing the configuration file; counted in files.
    Write = 2,
}

/// Hears how far eplb_generate() is, on the thread that called it. Must not throw.
///
/// \param user_data  that of the config
/// \param phase      what is being done
/// \param done       how much of the phase is done, in its unit
/// \param total      how much there is to do, in the same unit
/// \return 0 to go on; anything else cancels, which leaves an existing configuration file as it is
pub type eplb_progress_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, phase: eplb_phase, done: u64, total: u64) -> i32>;

/// What to generate. Initialise with EPLB_GENERATE_CONFIG_INIT; zero is a field's default where it has one. Defaults are
/// those of TensorRT-LLM's script.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_generate_config {
    /// sizeof(eplb_generate_config)
    pub struct_size: usize,
    /// Directory of the dump, UTF-8. Must be given.
    pub expert_statistic_path: *const c_char,
    /// Configuration file to write, UTF-8. Must be given. An existing file is replaced in one step.
    pub output_path: *const c_char,
    /// Ranks to place the experts on (the EP size); 0: as many as dumped.
    pub num_ranks: u32,
    /// Slots of all ranks together, a multiple of the ranks and not below the experts; 0: one an expert.
    pub num_slots: u32,
    /// First iteration to use; 0: from the start of the dump.
    pub iter_start: i64,
    /// First iteration not to use any more; 0: to the end of the dump.
    pub iter_stop: i64,
    /// An eplb_policy.
    pub policy: i32,
    /// Layers that an engine with an online balancer moves an iteration; written to the file as it is.
    pub layer_updates_per_iter: u32,
    /// Not 0: take a dump in which the files of some ranks are missing.
    pub allow_missing_ranks: u32,
    /// Threads to use; 0: one a core, at most 8. Results do not depend on it.
    pub num_threads: u32,
    /// Ranks that the run had, so that a loss of any is noticed; 0: what the dump says. TensorRT-LLM's dumps do not say
    /// it: of theirs, a loss of the highest ranks goes unnoticed with 0.
    pub expected_ranks: usize,
    /// Hears how far the work is; may be NULL.
    pub progress: eplb_progress_callback,
    /// Handed to each call of `progress`.
    pub user_data: *mut c_void,
    /// As eplb_solve_config has it: groups of experts; 0: one.
    pub num_groups: u32,
    /// As eplb_solve_config has it: nodes; 0: one.
    pub num_nodes: u32,
    /// As eplb_solve_config has it: the search's effort; 0: the default.
    pub effort: usize,
    /// Samples for EPLB_POLICY_SEARCH to level each of: groups of iterations that follow each other, as even as can be; 0: 16;
    /// fewer where there are fewer iterations. The other policies go by the sum.
    pub num_samples: usize,
    /// As eplb_solve_config has it: the node of each rank, int32 [num_ranks], which then must be given; NULL: as num_nodes says.
    pub rank_to_node: *const i32,
    /// As eplb_solve_config has it: what load off its node costs; 0: nothing.
    pub off_node_price: f64,
    /// As eplb_solve_config has it: a quantile of the samples; 0: their mean.
    pub quantile: f64,
    /// As eplb_solve_config has it: how far loads may drift, for EPLB_OBJECTIVE_BEST_SPLIT; 0: .2, negative: not at all.
    pub drift: f64,
    /// As eplb_solve_config has it: an eplb_objective.
    pub objective: i32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers, pointers and a nullable function pointer.
unsafe impl Growing for eplb_generate_config {}

/// What eplb_generate() made. Initialise with EPLB_GENERATE_REPORT_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_generate_report {
    /// sizeof(eplb_generate_report)
    pub struct_size: usize,
    /// Ranks placed for.
    pub num_ranks: u32,
    /// Slots of all ranks together.
    pub num_slots: u32,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Layers placed.
    pub num_layers: u32,
    /// First iteration used.
    pub iter_start: i64,
    /// The one after the last.
    pub iter_stop: i64,
    /// Ranks of the dump whose file is missing.
    pub num_missing_ranks: u32,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: u32,
    /// (max - mean) / mean of the ranks' tokens without a load balancer: taken per layer and iteration, averaged over
    /// iterations, then over layers. NaN where no layer has tokens in every iteration.
    pub imbalance_before: f64,
    /// The same with the placement, an expert's tokens split evenly over its replicas.
    pub imbalance_after: f64,
    /// eplb_placement_hash() of the placement.
    pub hash: u64,
    /// As eplb_placement_off_node_share() has it, averaged over layers. NaN where nodes are no matter to the policy.
    pub off_node_share: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers only.
unsafe impl Growing for eplb_generate_report {}

/// Reads a dump, places its experts and writes the configuration file: step 2 as a whole.
///
/// \param config  from EPLB_GENERATE_CONFIG_INIT, with both paths filled in
/// \param report  from EPLB_GENERATE_REPORT_INIT; may be NULL
/// \return EPLB_STATUS_OK, and the file is there, whole and synced to disk; otherwise a file of that name is as it was:
///         what eplb_stats_load() and eplb_solve() return, EPLB_STATUS_WRITE_FAILED or EPLB_STATUS_CANCELLED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_generate(
    config: *const eplb_generate_config,
    report: *mut eplb_generate_report,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for the config, for the strings that it points to, and for the report.
        let (config, report) = unsafe {
            let report = (!report.is_null()).then(|| growing_out(report, "report")).transpose()?;
            (self::config(config, "config")?, report)
        };
        // SAFETY: as above.
        let nodes = unsafe { rank_nodes(config.rank_to_node, config.num_ranks, "config->rank_to_node") }?;
        // SAFETY: as above.
        let mut generating = unsafe { generate_config(&config) }?;
        generating.solve.rank_to_node = nodes.as_deref();
        let generated = generate(&generating, &mut |phase, done, total| tell(&config, phase, done, total))?;
        if let Some(report) = report {
            report.set(report_of(&generated)?);
        }
        Ok(())
    })
}

/// # Safety
/// The paths of `config` are NULL or strings that end in NUL.
unsafe fn generate_config<'a>(config: &eplb_generate_config) -> Result<GenerateConfig<'a>> {
    // SAFETY: the caller's promise.
    let (expert_statistic_path, output_path) = unsafe {
        let from = path(config.expert_statistic_path, "config->expert_statistic_path")?;
        (from, path(config.output_path, "config->output_path")?)
    };
    let options = eplb_stats_options {
        struct_size: size_of::<eplb_stats_options>(),
        iter_start: config.iter_start,
        iter_stop: config.iter_stop,
        allow_missing_ranks: config.allow_missing_ranks,
        num_threads: config.num_threads,
        expected_ranks: config.expected_ranks,
    };
    Ok(GenerateConfig {
        expert_statistic_path,
        output_path,
        options: options.checked()?,
        num_ranks: or_default(config.num_ranks),
        num_slots: or_default(config.num_slots),
        layer_updates_per_iter: config.layer_updates_per_iter,
        solve: solve_config(
            config.policy,
            (config.num_groups, config.num_nodes),
            &Wanted {
                effort: config.effort,
                off_node_price: config.off_node_price,
                quantile: config.quantile,
                drift: config.drift,
                objective: config.objective,
                reserved: config.reserved,
            },
        )?,
        num_samples: if config.num_samples == 0 { DEFAULT_NUM_SAMPLES } else { config.num_samples },
    })
}

fn tell(config: &eplb_generate_config, phase: Phase, done: u64, total: u64) -> Result<()> {
    let phase = match phase {
        Phase::Read => eplb_phase::Read,
        Phase::Solve => eplb_phase::Solve,
        Phase::Write => eplb_phase::Write,
    };
    // SAFETY: set by the host together with its user data.
    match config.progress.map_or(0, |callback| unsafe { callback(config.user_data, phase, done, total) }) {
        0 => Ok(()),
        _ => Err(Error::Cancelled),
    }
}

fn report_of(generated: &Generated) -> Result<eplb_generate_report> {
    let Generated { summary, placement, score } = generated;
    let shape = placement.shape();
    Ok(eplb_generate_report {
        struct_size: 0,
        num_ranks: number(shape.num_ranks(), "num_ranks")?,
        num_slots: number(shape.num_slots(), "num_slots")?,
        num_experts: number(shape.num_experts(), "num_experts")?,
        num_layers: number(score.layers.len(), "num_layers")?,
        iter_start: number(summary.iterations.start, "iter_start")?,
        iter_stop: number(summary.iterations.stop, "iter_stop")?,
        num_missing_ranks: number(summary.missing_ranks.len(), "num_missing_ranks")?,
        num_duplicates: number(score.num_duplicates, "num_duplicates")?,
        imbalance_before: generated.imbalance_before().unwrap_or(f64::NAN),
        imbalance_after: generated.imbalance_after().unwrap_or(f64::NAN),
        hash: placement.hash(),
        off_node_share: generated.off_node_share().unwrap_or(f64::NAN),
    })
}
