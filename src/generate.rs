//! Step 2 as a whole: turns a dump directory into a configuration file.

use std::path::Path;

use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};
pub use crate::report::DEFAULT_NUM_SAMPLES;
use crate::report::{DumpScore, Figures, Planner, refuse_slots};
use crate::solve::{Objective, Policy, SolveConfig, sample_weights};
use crate::stats::{Dump, LoadOptions, Summary};

/// What to generate. Each `None` has the default of TensorRT-LLM's script.
#[derive(Debug, Clone, Copy)]
pub struct GenerateConfig<'a> {
    /// The dump directory.
    pub expert_statistic_path: &'a Path,
    /// The configuration file to write.
    pub output_path: &'a Path,
    /// Which iterations to use, missing ranks, threads.
    pub options: LoadOptions,
    /// Ranks to place for (the EP size); `None` for as many as dumped.
    pub num_ranks: Option<usize>,
    /// Slots of all ranks together; `None` for one an expert.
    pub num_slots: Option<usize>,
    /// Written to the file; see [`Placement::with_layer_updates_per_iter`].
    pub layer_updates_per_iter: u32,
    /// Threads that solve; 0: one a core, at most 8.
    pub solve_threads: usize,
    /// How to place the experts.
    pub solve: SolveConfig<'a>,
    /// Samples to plan for: see [`Planner`].
    pub num_samples: usize,
}

/// The phase of [`generate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the dump; counted in bytes.
    Read,
    /// Placing experts; counted in layers.
    Solve,
    /// Writing the configuration file; counted in files.
    Write,
}

/// The result of [`generate`].
#[derive(Debug, Clone)]
pub struct Generated {
    /// The sizes of the dump.
    pub summary: Summary,
    /// The placement written.
    pub placement: Placement,
    /// Its score. Gaps and shares of nodes are those of the loads that it was planned for, whatever the samples' weights or
    /// the quantile; best splits are scored where they were planned for.
    pub score: DumpScore,
}

impl Generated {
    /// The imbalance ratio without a load balancer, averaged over layers.
    pub fn imbalance_before(&self) -> Option<f64> {
        self.score.unbalanced_imbalance_ratio
    }

    /// The imbalance ratio with the placement, averaged over layers.
    pub fn imbalance_after(&self) -> Option<f64> {
        self.score.imbalance_ratio
    }

    /// The share of the load that is off its group's home node, averaged over layers.
    pub fn off_node_share(&self) -> Option<f64> {
        self.score.off_node_share
    }
}

/// Reads the dump, places its experts and writes the configuration file, whole or not at all.
///
/// Calls `progress` on this thread with the phase, the amount done and the total. An error of it stops the work and is
/// returned.
pub fn generate(
    config: &GenerateConfig<'_>,
    progress: &mut dyn FnMut(Phase, u64, u64) -> Result<()>,
) -> Result<Generated> {
    let dump = Dump::open(config.expert_statistic_path, &config.options)?;
    let Summary { num_experts, num_ranks, iterations, .. } = *dump.summary();
    let num_ranks = config.num_ranks.unwrap_or(num_ranks);
    let shape = Shape::new(num_experts, config.num_slots.unwrap_or(num_experts), num_ranks)?;
    config.solve.check(shape)?;
    if config.solve.slots_per_rank.is_some() {
        let message = "a configuration file has one number of slots for all ranks; without slots_per_rank each has as many";
        return Err(Error::InvalidArgument(message.into()));
    }
    let SolveConfig { policy, objective, .. } = config.solve;
    let planner =
        Planner { solve: config.solve, num_samples: config.num_samples, threads: config.solve_threads };
    sample_weights(&config.solve, planner.num_samples(iterations)?)?;
    let output = AtomicFile::create(config.output_path)?;
    refuse_slots(dump.summary()).map_err(|e| e.in_file(config.expert_statistic_path))?;

    let stats = dump.read(&mut |done, total| progress(Phase::Read, done, total))?;
    let num_layers = stats.summary().layers.len() as u64;
    progress(Phase::Solve, 0, num_layers)?;
    let figures = Figures {
        best_split: policy == Policy::Search && objective == Objective::BestSplit,
        gap: true,
        nodes: config.solve.priced_nodes(shape),
    };
    let (placement, score) = planner.place_and_score(&stats, shape, &figures)?;
    let placement = placement.with_layer_updates_per_iter(config.layer_updates_per_iter);
    progress(Phase::Solve, num_layers, num_layers)?;

    progress(Phase::Write, 0, 1)?;
    placement.save_to(output)?;
    let generated = Generated { summary: stats.summary().clone(), placement, score };
    log::info!(
        "{}: {} slots on {num_ranks} ranks for {num_layers} layers by policy {policy}",
        config.output_path.display(),
        shape.num_slots(),
    );
    // The file is there: too late to cancel.
    let _ = progress(Phase::Write, 1, 1);
    Ok(generated)
}
