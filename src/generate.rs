//! Step 2 as a whole: a dump directory becomes a configuration file.

use std::path::Path;

use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};
use crate::report::{Balance, Certificate, average, best_split_imbalance_ratio, off_node_share};
use crate::solve::{Loads, Objective, Policy, SolveConfig, sample_weights, solve};
use crate::stats::{Counted, Dump, IterationRange, LoadOptions, Summary};

/// Samples that iterations are grouped into unless told otherwise: enough for a hot expert of some of them to be seen.
pub const DEFAULT_NUM_SAMPLES: usize = 16;

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
    /// How to place the experts.
    pub solve: SolveConfig<'a>,
    /// Samples for [`Policy::Search`] to level each of: groups of iterations that follow each other, as even as can be, or
    /// fewer where there are fewer iterations. The other rules go by the sum.
    pub num_samples: usize,
}

/// What [`generate`] is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the dump; counted in bytes.
    Read,
    /// Placing experts; counted in layers.
    Solve,
    /// Writing the configuration file; counted in files.
    Write,
}

/// What [`generate`] made.
#[derive(Debug, Clone)]
pub struct Generated {
    /// What the dump held.
    pub summary: Summary,
    /// The placement written.
    pub placement: Placement,
    /// Each layer of the dump before and after, in the order of [`Summary::layers`].
    pub layers: Vec<LayerChange>,
}

impl Generated {
    /// The imbalance ratio without a load balancer, averaged over layers.
    pub fn imbalance_before(&self) -> Option<f64> {
        average(self.layers.iter().map(|layer| layer.before.imbalance_ratio))
    }

    /// The imbalance ratio with the placement, averaged over layers.
    pub fn imbalance_after(&self) -> Option<f64> {
        average(self.layers.iter().map(|layer| layer.after.imbalance_ratio))
    }

    /// The imbalance ratio with the placement and the best split, averaged over layers.
    pub fn best_split_imbalance_after(&self) -> Option<f64> {
        average(self.layers.iter().map(|layer| layer.best_split_imbalance_ratio))
    }

    /// The share of the load that is off its group's home node, averaged over layers.
    pub fn off_node_share(&self) -> Option<f64> {
        average(self.layers.iter().map(|layer| layer.off_node_share))
    }

    /// The gap to the bound, averaged over layers.
    pub fn gap(&self) -> Option<f64> {
        average(self.layers.iter().map(|layer| layer.certificate.gap))
    }
}

/// What a placement does for a layer, over the iterations it was made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerChange {
    /// The layer's number.
    pub layer: u32,
    /// On as many ranks without a load balancer.
    pub before: Balance,
    /// With the placement, each expert's tokens split evenly over its replicas.
    pub after: Balance,
    /// [`Balance::imbalance_ratio`] with the placement where each iteration's tokens are split in the best fractions, which is what
    /// was planned for. `None` where the even split was, or an iteration has no load at all.
    pub best_split_imbalance_ratio: Option<f64>,
    /// How far the placement with the even split is from the best possible for the loads that it was planned for: the samples that
    /// iterations were grouped into, each counting the same whatever weights or quantile they were planned with.
    pub certificate: Certificate,
    /// The share of the load that the placement leaves off its group's home node, of the same samples: see
    /// [`off_node_share`]. `None` where nodes are no matter, or a sample has no load at all.
    pub off_node_share: Option<f64>,
}

/// Reads the dump, places its experts and writes the configuration file, whole or not at all.
///
/// `progress` is called on this thread with the phase, what is done of it and what there is to do; its error stops the
/// work and is returned.
pub fn generate(
    config: &GenerateConfig<'_>,
    progress: &mut dyn FnMut(Phase, u64, u64) -> Result<()>,
) -> Result<Generated> {
    let dump = Dump::open(config.expert_statistic_path, &config.options)?;
    let Summary { num_experts, num_ranks, counted, iterations, .. } = *dump.summary();
    let num_ranks = config.num_ranks.unwrap_or(num_ranks);
    let shape = Shape::new(num_experts, config.num_slots.unwrap_or(num_experts), num_ranks)?;
    config.solve.check(shape)?;
    if config.solve.slots_per_rank.is_some() {
        let message = "a configuration file has one number of slots for all ranks; without slots_per_rank each has as many";
        return Err(Error::InvalidArgument(message.into()));
    }
    let num_samples = num_samples(config, iterations)?;
    sample_weights(&config.solve, num_samples)?;
    let output = AtomicFile::create(config.output_path)?;
    if counted == Counted::Slots {
        let message = "it counts slots, not experts; count with the placement off, or with experts counted";
        return Err(Error::InvalidDump(message.into()).in_file(config.expert_statistic_path));
    }

    let stats = dump.read(&mut |done, total| progress(Phase::Read, done, total))?;
    let layers = &stats.summary().layers;
    let num_layers = layers.len() as u64;
    progress(Phase::Solve, 0, num_layers)?;
    let loads = stats.samples(num_samples)?;
    let loads = Loads::new(&loads, layers, num_samples, num_experts)?;
    let placement = solve(&config.solve, shape, &loads, config.options.threads)?
        .with_layer_updates_per_iter(config.layer_updates_per_iter);
    let nodes = config.solve.off_nodes(shape);
    let by_best_split =
        config.solve.policy == Policy::Search && config.solve.objective == Objective::BestSplit;
    let mut changes = Vec::with_capacity(layers.len());
    for (index, (layer, slot_experts)) in placement.iter().enumerate() {
        let samples = stats.layer_samples(layer, stats.summary().iterations.len() as usize, num_experts)?;
        let iterations = samples.chunks_exact(num_experts);
        let before = Balance::unbalanced(num_ranks, iterations.clone());
        let after = Balance::projected(shape, slot_experts, iterations.clone());
        let best_split = by_best_split.then(|| best_split_imbalance_ratio(shape, slot_experts, iterations));
        let certificate = Certificate::new(shape, slot_experts, loads.layer(index));
        let away = match &nodes {
            Some(nodes) => {
                let planned: Vec<f64> = loads.layer(index).flatten().copied().collect();
                let planned = (&planned[..], num_samples, num_experts);
                off_node_share(&placement, layer, planned, config.solve.num_groups, nodes)?
            }
            None => None,
        };
        changes.push(LayerChange {
            layer,
            before,
            after,
            best_split_imbalance_ratio: best_split.flatten(),
            certificate,
            off_node_share: away,
        });
    }
    progress(Phase::Solve, num_layers, num_layers)?;

    progress(Phase::Write, 0, 1)?;
    placement.save_to(output)?;
    let summary = stats.summary().clone();
    let generated = Generated { summary, placement, layers: changes };
    log::info!(
        "{}: {} slots on {num_ranks} ranks for {num_layers} layers by policy {}",
        config.output_path.display(),
        shape.num_slots(),
        config.solve.policy
    );
    // The file is there: too late to cancel.
    let _ = progress(Phase::Write, 1, 1);
    Ok(generated)
}

/// Samples that the policy gets, as many as there are weights where it is told any.
fn num_samples(config: &GenerateConfig<'_>, iterations: IterationRange) -> Result<usize> {
    if config.solve.policy != Policy::Search {
        return Ok(1);
    }
    let (wanted, there_are) = (config.num_samples.max(1), iterations.len() as usize);
    let num_samples = wanted.min(there_are);
    match config.solve.sample_weights.map(<[f64]>::len).filter(|&given| given != num_samples) {
        None => Ok(num_samples),
        Some(given) if wanted > there_are => Err(Error::InvalidArgument(format!(
            "{given} sample weights for {there_are} samples: num_samples is {wanted}, but the dump has no more than \
             {there_are} iterations ({iterations}), each of which is a sample; give {there_are} weights"
        ))),
        Some(given) => Err(Error::InvalidArgument(format!(
            "{given} sample weights for {num_samples} samples: num_samples is {num_samples}; give as many weights, or set \
             num_samples to {given}"
        ))),
    }
}
