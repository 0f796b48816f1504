//! What a recorder counts, and where it writes the dump.

use std::path::{Path, PathBuf};

use crate::device::Place;
use crate::error::{Error, Result};
use crate::stats::{Counts, FileNumber, IdKind, IterationRange, RankDump};

/// What a recorder counts, and where.
#[derive(Debug, Clone, Copy)]
pub struct RecorderConfig<'a> {
    /// The dump's directory; created if missing.
    pub path: Option<&'a Path>,
    /// Iterations to count; `None` counts nothing.
    pub iterations: Option<IterationRange>,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group.
    pub num_ranks: usize,
    /// The rank's file of the dump. `None`: that of `rank`, one of `num_ranks`.
    pub file: Option<FileNumber>,
    /// Experts of a layer, or slots where those are counted.
    pub num_experts: usize,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// Layers of this rank, by the model's numbers.
    pub layers: &'a [u32],
    /// What the ids name.
    pub id_kind: IdKind,
    /// The device of the ids.
    pub place: Place,
    /// The most tokens of a layer in an iteration. 0: 32 bits hold any count.
    pub max_tokens_per_iteration: u64,
    /// A name of the run, if given.
    pub run_id: Option<&'a str>,
}

/// The run, as the dump describes it.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub directory: PathBuf,
    pub iterations: IterationRange,
    pub rank: u32,
    pub num_ranks: usize,
    pub file: Option<FileNumber>,
    pub num_experts: usize,
    pub experts_per_token: usize,
    pub layers: Vec<u32>,
    pub id_kind: IdKind,
    pub run_id: Option<String>,
}

impl Run {
    /// The rank in the file's name, for messages.
    pub fn file_rank(&self) -> u32 {
        self.file.map_or(self.rank, |file| file.rank)
    }

    /// The dump of `held` without its counts.
    pub fn dump(&self, held: IterationRange) -> RankDump<'_> {
        RankDump {
            rank: self.rank,
            num_ranks: self.num_ranks,
            file: self.file,
            num_experts: self.num_experts,
            experts_per_token: self.experts_per_token,
            id_kind: self.id_kind,
            iterations: self.iterations,
            held,
            layers: &self.layers,
            counts: Counts::U32(&[]),
            run_id: self.run_id.as_deref(),
        }
    }
}

impl RecorderConfig<'_> {
    pub(super) fn run(&self, iterations: IterationRange) -> Result<Run> {
        let Some(path) = self.path else {
            return Err(Error::InvalidArgument(format!(
                "iterations {iterations} will be counted, but path is not set: set the directory of the dump \
                 (EXPERT_STATISTIC_PATH in the environment)"
            )));
        };
        let run = Run {
            // The process may change its working directory before the dump.
            directory: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            iterations,
            rank: self.rank,
            num_ranks: self.num_ranks,
            file: self.file,
            num_experts: self.num_experts,
            experts_per_token: self.experts_per_token,
            layers: self.layers.to_vec(),
            id_kind: self.id_kind,
            run_id: self.run_id.map(str::to_owned),
        };
        run.dump(iterations).check_run()?;
        Ok(run)
    }
}
