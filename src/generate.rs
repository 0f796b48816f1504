//! Step 2: generates a configuration file from a dump.

use std::path::Path;

use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};
pub use crate::report::DEFAULT_NUM_SAMPLES;
use crate::report::{DumpScore, Planner, ScoreOptions, require_expert_counts};
use crate::solve::{Objective, Policy, SolveConfig, sample_weights};
use crate::stats::{Dump, LoadOptions, Summary};

/// The input, output and options of [`generate`]. The defaults of `None` are those of TensorRT-LLM's script.
#[derive(Debug, Clone, Copy)]
pub struct GenerateConfig<'a> {
    /// The dump directory.
    pub expert_statistic_path: &'a Path,
    /// The configuration file to write.
    pub output_path: &'a Path,
    /// How to read the dump.
    pub options: LoadOptions,
    /// Ranks of the placement (the EP size). `None`: the dump's, which fails if its pipeline stages differ.
    pub num_ranks: Option<usize>,
    /// Slots of all ranks together. `None`: one an expert.
    pub num_slots: Option<usize>,
    /// Written to the file; see [`Placement::with_layer_updates_per_iter`].
    pub layer_updates_per_iter: u32,
    /// Threads that compute the placement; 0: one a core, at most 8.
    pub solve_threads: usize,
    /// The policy and its options.
    pub solve: SolveConfig<'a>,
    /// Number of samples to plan for: see [`Planner`].
    pub num_samples: usize,
}

/// A phase of [`generate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reads the dump. The unit of progress is a byte.
    Read,
    /// Computes the placement. The unit of progress is a layer.
    Solve,
    /// Writes the configuration file. The unit of progress is a file.
    Write,
}

/// The result of [`generate`].
#[derive(Debug, Clone)]
pub struct Generated {
    /// The dump's sizes.
    pub summary: Summary,
    /// The placement written.
    pub placement: Placement,
    /// Its score on the dump. The gap and the off-node share are over the samples planned for, without their weights or the
    /// quantile. Best splits are included with [`Objective::BestSplit`].
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

    /// The off-node share, averaged over layers.
    pub fn off_node_share(&self) -> Option<f64> {
        self.score.off_node_share
    }
}

/// Reads the dump, computes a placement and writes the configuration file in one step.
///
/// Calls `progress` on this thread with the phase, the amount done and the total. If it returns an error, `generate` stops and
/// returns that error.
pub fn generate(
    config: &GenerateConfig<'_>,
    progress: &mut dyn FnMut(Phase, u64, u64) -> Result<()>,
) -> Result<Generated> {
    let dump = Dump::open(config.expert_statistic_path, &config.options)?;
    let Summary { num_experts, rows, .. } = *dump.summary();
    let num_ranks = config.num_ranks.map_or_else(|| dump.summary().ep_size(), Ok);
    let num_ranks = num_ranks.map_err(|e| e.in_file(config.expert_statistic_path))?;
    let shape = Shape::new(num_experts, config.num_slots.unwrap_or(num_experts), num_ranks)?;
    config.solve.check(shape)?;
    if config.solve.rank_num_slots.is_some() {
        let message =
            "a configuration file needs equal numbers of slots on all ranks; leave rank_num_slots unset";
        return Err(Error::InvalidArgument(message.into()));
    }
    let SolveConfig { policy, objective, .. } = config.solve;
    let planner =
        Planner { solve: config.solve, num_samples: config.num_samples, threads: config.solve_threads };
    sample_weights(&config.solve, planner.num_samples(rows)?)?;
    let output = AtomicFile::create(config.output_path)?;
    require_expert_counts(dump.summary()).map_err(|e| e.in_file(config.expert_statistic_path))?;

    let stats = dump.read(&mut |done, total| progress(Phase::Read, done, total))?;
    let num_layers = stats.summary().layers.len() as u64;
    progress(Phase::Solve, 0, num_layers)?;
    let options = ScoreOptions {
        best_split: policy == Policy::Search && objective == Objective::BestSplit,
        gap: true,
        nodes: config.solve.priced_nodes(shape),
    };
    let (placement, score) = planner.place_and_score(&stats, shape, &options)?;
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
    // The file is written, so it is too late to cancel.
    let _ = progress(Phase::Write, 1, 1);
    Ok(generated)
}
