//! Step 2: generates a configuration file from a dump, or from several.

use std::path::{Path, PathBuf};

use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape, is_own_name};
pub use crate::report::DEFAULT_NUM_SAMPLES;
use crate::report::{DumpScore, Planner, ScoreOptions, require_expert_counts};
use crate::solve::{Objective, Policy, SolveConfig, pinned_slots, sample_weights};
use crate::stats::{DumpSet, LoadOptions, Stats, Summary, dump_names};

/// The input, output and options of [`generate`]. The defaults of `None` are those of TensorRT-LLM's script.
#[derive(Debug, Clone, Copy)]
pub struct GenerateConfig<'a> {
    /// The directories of the dumps, at least one. The placement suits all of them.
    pub paths: &'a [PathBuf],
    /// What the counts of each dump are multiplied by, above 0. `None`: 1.
    pub path_weights: Option<&'a [f64]>,
    /// The file to write: eplb's own if its name ends in `.eplb.yaml`, else TensorRT-LLM's configuration file.
    pub output_path: &'a Path,
    /// How to read each dump.
    pub options: LoadOptions,
    /// Ranks of the placement (the EP size). `None`: the dump's, which fails if its pipeline stages differ.
    pub num_ranks: Option<usize>,
    /// Slots of all ranks together, empty ones included. `None`: `num_ranks` times the largest of
    /// [`SolveConfig::rank_num_slots`], or one an expert and those of `reserve_slots`.
    pub num_slots: Option<usize>,
    /// Slots at the end of each rank that stay empty, such as one for a fused shared expert.
    pub reserve_slots: usize,
    /// Experts of which each rank holds a replica, and whether every expert keeps a slot on its home rank: see
    /// [`pinned_slots`]. They replace [`SolveConfig::pinned_experts`].
    pub pin_experts: &'a [u32],
    /// As `pin_experts`.
    pub pin_homes: bool,
    /// Written to the file; see [`Placement::with_layer_updates_per_iter`].
    pub layer_updates_per_iter: u32,
    /// Threads that compute the placement; 0: one a core, at most 8.
    pub solve_threads: usize,
    /// The policy and its options.
    pub solve: SolveConfig<'a>,
    /// Number of samples to plan for: see [`Planner`].
    pub num_samples: usize,
}

impl GenerateConfig<'_> {
    /// Opens the dumps. Fails as [`DumpSet::open`] does.
    pub(crate) fn open(&self) -> Result<DumpSet> {
        if self.path_weights.is_some() && self.solve.sample_weights.is_some() {
            return Err(Error::InvalidArgument(
                "sample_weights and the weights of dumps exclude each other: multiply the weights of a dump's samples".into(),
            ));
        }
        DumpSet::open(self.paths, self.path_weights, &self.options)
    }

    /// Adds the dumps' names to an error about the dumps as a whole.
    fn with_paths(&self, error: Error) -> Error {
        error.in_file(Path::new(&dump_names(self.paths, None)))
    }

    fn num_slots(&self, num_experts: usize, num_ranks: usize) -> usize {
        let most = self.solve.rank_num_slots.and_then(|slots| slots.iter().max()).map(|&most| most as usize);
        let reserved = self.reserve_slots.saturating_mul(num_ranks);
        let default = match most {
            Some(most) => most.saturating_mul(num_ranks),
            None => num_experts.saturating_add(reserved),
        };
        self.num_slots.unwrap_or(default)
    }

    /// Returns the slots that `reserve_slots` leaves to each rank.
    fn reserved(&self, shape: Shape) -> Result<Option<Vec<u32>>> {
        let (reserve, width) = (self.reserve_slots, shape.slots_per_rank());
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        match reserve {
            0 => Ok(None),
            _ if self.solve.rank_num_slots.is_some() => refuse(
                "reserve_slots and rank_num_slots exclude each other; lower rank_num_slots instead".into(),
            ),
            _ if reserve >= width => {
                refuse(format!("reserve_slots is {reserve}, but each rank has only {width} slots; add slots"))
            }
            _ => Ok(Some(vec![(width - reserve) as u32; shape.num_ranks()])),
        }
    }
}

/// Fails if the placement will have empty slots and the file cannot hold them.
fn check_output(path: &Path, shape: Shape, rank_num_slots: Option<&[u32]>) -> Result<()> {
    let lacks = |slots: &[u32]| slots.iter().position(|&slots| (slots as usize) < shape.slots_per_rank());
    match rank_num_slots.and_then(lacks) {
        Some(rank) if !is_own_name(path) => Err(Error::InvalidArgument(format!(
            "rank {rank} has fewer slots than are numbered, so its last ones are empty: TensorRT-LLM's configuration \
             file cannot hold empty slots; name the output *.eplb.yaml"
        ))
        .in_file(path)),
        _ => Ok(()),
    }
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
    /// The sizes of the dumps.
    pub summary: Summary,
    /// The placement written.
    pub placement: Placement,
    /// Its score on the dumps, each without its weight. The gap and the off-node share are over the samples planned for, without their weights or the
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

/// Reads the dumps, computes a placement and writes the configuration file in one step.
///
/// Calls `progress` on this thread with the phase, the amount done and the total. If it returns an error, `generate` stops and
/// returns that error.
pub fn generate(
    config: &GenerateConfig<'_>,
    progress: &mut dyn FnMut(Phase, u64, u64) -> Result<()>,
) -> Result<Generated> {
    generate_from(config.open()?, config, progress)
}

/// As [`generate`], with the dumps opened by the caller, who thereby knows their layers.
pub(crate) fn generate_from(
    dumps: DumpSet,
    config: &GenerateConfig<'_>,
    progress: &mut dyn FnMut(Phase, u64, u64) -> Result<()>,
) -> Result<Generated> {
    let Summary { num_experts, ref rows, .. } = *dumps.summary();
    let num_ranks = config.num_ranks.map_or_else(|| dumps.summary().ep_size(), Ok);
    let num_ranks = num_ranks.map_err(|e| config.with_paths(e))?;
    let shape = Shape::new(num_experts, config.num_slots(num_experts, num_ranks), num_ranks)?;
    let reserved = config.reserved(shape)?;
    let rank_num_slots = reserved.as_deref().or(config.solve.rank_num_slots);
    let pinned = match config.pin_homes || !config.pin_experts.is_empty() {
        true => Some(pinned_slots(shape, rank_num_slots, config.pin_experts, config.pin_homes)?),
        false => None,
    };
    let pinned_experts = pinned.as_deref().or(config.solve.pinned_experts);
    let solve = SolveConfig { rank_num_slots, pinned_experts, ..config.solve };
    solve.check(shape)?;
    solve.check_pinned_layers(shape, dumps.summary().layers.len())?;
    check_output(config.output_path, shape, rank_num_slots)?;
    let SolveConfig { policy, objective, .. } = solve;
    let planner = Planner { solve, num_samples: config.num_samples, threads: config.solve_threads };
    sample_weights(&solve, planner.num_samples(rows)?)?;
    let output = AtomicFile::create(config.output_path)?;
    require_expert_counts(dumps.summary()).map_err(|e| config.with_paths(e))?;

    let stats = dumps.read(&mut |done, total| progress(Phase::Read, done, total))?;
    let num_layers = stats.summary().layers.len() as u64;
    progress(Phase::Solve, 0, num_layers)?;
    let options = ScoreOptions {
        best_split: policy == Policy::Search && objective == Objective::BestSplit,
        gap: true,
        nodes: solve.priced_nodes(shape),
    };
    note_unnamed_counts(config, &stats);
    warn_of_one_rank(config, num_ranks);
    warn_of_layers_without_load(config, &stats);
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

/// Warns of layers without any load: the placement of such a layer says nothing about its experts.
fn warn_of_layers_without_load(config: &GenerateConfig<'_>, stats: &Stats) {
    let layers = &stats.summary().layers;
    let idle = stats.layers_without_load();
    if idle.is_empty() {
        return;
    }
    let which = match idle.len() == layers.len() {
        true => "no layer has any load".to_owned(),
        false => format!("no load in {} of {} layers, {}", idle.len(), layers.len(), list_layers(&idle)),
    };
    log::warn!(
        "{}: {which}; any placement is as good there. If these layers did run, record again",
        dump_names(config.paths, None)
    );
}

/// Says that the counts may be of slots, where nothing in a dump tells. No placement can be computed from those.
fn note_unnamed_counts(config: &GenerateConfig<'_>, stats: &Stats) {
    if stats.summary().id_kind.is_none() {
        log::info!(
            "{}: read as counts of experts, since nothing says what is counted. With a placement in force TensorRT-LLM counts \
             slots, and no placement can be computed from those",
            dump_names(config.paths, None)
        );
    }
}

/// Warns of a placement on one rank that nobody asked for: there is nothing to balance.
fn warn_of_one_rank(config: &GenerateConfig<'_>, num_ranks: usize) {
    if config.num_ranks.is_none() && num_ranks == 1 {
        log::warn!(
            "{}: it has the counts of one rank, so the placement is for one, with nothing to balance; to place the experts \
             on more, pass the number of ranks (--ep_size, num_ranks)",
            dump_names(config.paths, None)
        );
    }
}

/// Formats the first of some layers as a list.
fn list_layers(layers: &[u32]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = layers.iter().take(SHOWN).map(u32::to_string).collect();
    shown.join(", ") + if layers.len() > SHOWN { ", ..." } else { "" }
}
