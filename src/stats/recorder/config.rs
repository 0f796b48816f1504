//! What a recorder counts, and where it writes the dump.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::Source;
use super::added::AddedCounts;
use crate::atomic_file::{AtomicFile, HeldFile};
use crate::device::{Device, Place};
use crate::error::{Error, Result, shortened};
use crate::stats::clock::Clock;
use crate::stats::run_id::OwnedRunId;
use crate::stats::write::check_directory;
use crate::stats::{Counts, FileNumber, IdKind, IterationRange, MetaInfo, RankDump, Rows};

/// The dump's directory without a path, as in TensorRT-LLM.
const DEFAULT_PATH: &str = "expert_statistic";

/// The longest name, in bytes. File systems take 255.
const MAX_NAME: usize = 200;

/// What a recorder counts, and where.
#[derive(Debug, Clone, Copy)]
pub struct RecorderConfig<'a> {
    /// The dump's directory; created if missing. `None`: TensorRT-LLM's default, `expert_statistic` in the working directory.
    pub path: Option<&'a Path>,
    /// Names the model or shape: the dump goes to this directory in `path`.
    pub name: Option<&'a str>,
    /// Iterations to count; `None` counts nothing.
    pub iterations: Option<IterationRange>,
    /// Which iterations a row of counts has.
    pub rows: Rows,
    /// This rank of the expert-parallel group.
    pub rank: u32,
    /// Ranks of the group.
    pub num_ranks: usize,
    /// The rank's file of the dump. `None`: that of `rank`, one of `num_ranks`.
    pub file: Option<FileNumber>,
    /// Experts of a layer, or slots where those are counted.
    pub num_experts: usize,
    /// Ids of a token, those of shared experts included.
    pub experts_per_token: usize,
    /// Layers of this rank, by the model's numbers.
    pub layers: &'a [u32],
    /// What the ids name.
    pub id_kind: IdKind,
    /// The device of the ids.
    pub place: Place,
    /// The most tokens of a layer in an iteration. 0: 32 bits hold any count.
    pub max_tokens_per_iteration: u64,
    /// A name of the run. `None`: that of the environment, if it has one.
    pub run_id: Option<&'a str>,
    /// Fused shared experts, whose ids follow those of the experts. They are not counted.
    pub num_shared: usize,
    /// What the counts of [`Recorder::add_counts`](super::Recorder::add_counts) are.
    pub added_counts: AddedCounts,
    /// Iterations that are kept for [`Recorder::snapshot`](super::Recorder::snapshot), whatever the range. 0: none.
    pub rolling: u64,
}

/// A range to count, and where its dump goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub iterations: IterationRange,
    pub directory: PathBuf,
}

/// The run, as the dump describes it.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// The directory of the first range. Those of later ranges are in it.
    pub directory: PathBuf,
    pub rows: Rows,
    pub rank: u32,
    pub num_ranks: usize,
    pub file: Option<FileNumber>,
    pub num_experts: usize,
    /// Without the shared ones.
    pub experts_per_token: usize,
    pub num_shared: usize,
    pub layers: Vec<u32>,
    pub id_kind: IdKind,
    pub run_id: Option<OwnedRunId>,
    pub clock: Clock,
}

impl Run {
    /// The first range.
    pub fn first(&self, iterations: IterationRange) -> Target {
        Target { iterations, directory: self.directory.clone() }
    }

    /// A later range, with a directory of its own.
    pub fn later(&self, iterations: IterationRange) -> Target {
        let directory = self.directory.join(range_name(iterations));
        Target { iterations, directory }
    }

    /// The rank in the file's name, for messages.
    pub fn file_rank(&self) -> u32 {
        self.file.map_or(self.rank, |file| file.rank)
    }

    /// Begins to write the rank's file. Fails where another recorder holds it.
    pub fn claim(&self, target: &Target, own: Option<&HeldFile>) -> Result<AtomicFile> {
        let dump = self.dump(target.iterations, target.iterations);
        dump.claim(&target.directory, own).map_err(|error| match error {
            Error::Write { path, source } if source.kind() == ErrorKind::ResourceBusy => {
                let message = format!(
                    "{source}: give recorders of one path a name each, and ranks of pipeline stages a file_rank each"
                );
                Error::write(&path, io::Error::new(ErrorKind::ResourceBusy, message))
            }
            other => other,
        })
    }

    /// The dump of `held` of a range without its counts.
    pub fn dump(&self, iterations: IterationRange, held: IterationRange) -> RankDump<'_> {
        RankDump {
            rank: self.rank,
            num_ranks: self.num_ranks,
            file: self.file,
            num_experts: self.num_experts,
            experts_per_token: self.experts_per_token,
            id_kind: self.id_kind,
            iterations,
            held,
            rows: self.rows,
            layers: &self.layers,
            counts: Counts::U32(&[]),
            run_id: self.run_id.as_ref().map(OwnedRunId::borrow),
        }
    }
}

impl Run {
    /// Checks that the ids of a dispatch can be counted on `device`.
    pub fn check_source(&self, device: &Device, source: &Source<'_>) -> Result<()> {
        let Source { device: of_dispatch, num_experts, experts_per_token, num_shared, .. } = *source;
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        if !device.is(of_dispatch) {
            return refuse("the recorder is on another device or CUDA context than the dispatch".into());
        }
        if self.num_shared != num_shared {
            return refuse(format!(
                "the recorder has num_shared_experts {}, the dispatch {num_shared}: they must be equal",
                self.num_shared
            ));
        }
        let columns = self.experts_per_token + self.num_shared;
        if (self.num_experts, columns) != (num_experts, experts_per_token) {
            return refuse(format!(
                "the recorder counts {} {} and {columns} ids a token, the dispatch has {num_experts} and \
                 {experts_per_token}; its num_experts, id_kind and experts_per_token must match",
                self.num_experts,
                self.id_kind.name()
            ));
        }
        Ok(())
    }
}

impl RecorderConfig<'_> {
    /// Checks all but the path and the range.
    pub(super) fn checked_run(&self) -> Result<Run> {
        let any = IterationRange { start: 0, stop: 1 };
        RecorderConfig { path: Some(Path::new("")), ..*self }.run(self.iterations.unwrap_or(any))
    }

    pub(super) fn run(&self, iterations: IterationRange) -> Result<Run> {
        let path = self.path.unwrap_or(Path::new(DEFAULT_PATH));
        check_directory(path)?;
        // The process may change its working directory before the dump.
        let mut directory = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if let Some(name) = self.name {
            check_name(name)?;
            directory.push(name);
        }
        if self.num_shared != 0 && self.experts_per_token <= self.num_shared {
            return Err(Error::InvalidArgument(format!(
                "experts_per_token is {}, and with {} shared experts at least {} is expected: it includes their ids",
                self.experts_per_token,
                self.num_shared,
                self.num_shared + 1
            )));
        }
        if self.path.is_none() {
            log::info!(
                "path and EXPERT_STATISTIC_PATH are not set: the dump goes to {}",
                directory.display()
            );
        }
        let run = Run {
            directory,
            rows: self.rows,
            rank: self.rank,
            num_ranks: self.num_ranks,
            file: self.file,
            num_experts: self.num_experts,
            experts_per_token: self.experts_per_token - self.num_shared,
            num_shared: self.num_shared,
            layers: self.layers.to_vec(),
            id_kind: self.id_kind,
            run_id: OwnedRunId::choose(self.run_id)?,
            clock: Clock::from_env(),
        };
        run.dump(iterations, iterations).check_run()?;
        self.added_counts.check(self.id_kind, self.num_experts, self.num_ranks)?;
        if self.rolling != 0 && self.id_kind == IdKind::Slot {
            return Err(Error::InvalidArgument(
                "rolling_iterations needs id_kind EPLB_ID_KIND_EXPERT: slots change their experts while a model is balanced live"
                    .to_owned(),
            ));
        }
        Ok(run)
    }
}

/// The directory of a later range, in that of the first.
fn range_name(iterations: IterationRange) -> String {
    format!("{}-{}", iterations.start, iterations.stop)
}

/// Checks that a name is one visible directory, and not one that a later range of another recorder takes.
fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "is empty; NULL for none".to_owned()
    } else if name.len() > MAX_NAME {
        format!("has {} bytes, at most {MAX_NAME} expected", name.len())
    } else if name.contains('/') {
        "has a slash; it names one directory in the path".to_owned()
    } else if name.starts_with('.') {
        "begins with a dot".to_owned()
    } else if name == MetaInfo::FILE_NAME || name.ends_with(".safetensors") {
        "is a file's name in a dump".to_owned()
    } else if name.contains(char::is_control) {
        "has a control character".to_owned()
    } else if name.parse::<IterationRange>().is_ok_and(|range| name == range_name(range)) {
        "is a range of iterations, which eplb_recorder_rearm() uses as a directory".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::InvalidArgument(format!("name {:?} {why}", shortened(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_name_takes_directories_and_refuses_paths() {
        for name in ["draft", "E256-K8", "1-2-3", "5-", "1_0-2_0", "a.b", "模型", &"x".repeat(MAX_NAME)] {
            check_name(name).unwrap();
        }
        for (name, why) in [
            ("", "name \"\" is empty; NULL for none"),
            ("a/b", "name \"a/b\" has a slash; it names one directory in the path"),
            ("..", "name \"..\" begins with a dot"),
            (".rank0", "name \".rank0\" begins with a dot"),
            ("meta_info.json", "name \"meta_info.json\" is a file's name in a dump"),
            ("rank0.safetensors", "name \"rank0.safetensors\" is a file's name in a dump"),
            ("a\nb", "name \"a\\nb\" has a control character"),
            (
                "100-200",
                "name \"100-200\" is a range of iterations, which eplb_recorder_rearm() uses as a directory",
            ),
        ] {
            assert_eq!(check_name(name).unwrap_err().to_string(), why);
        }
        let long = check_name(&"x".repeat(MAX_NAME + 1)).unwrap_err().to_string();
        assert!(long.ends_with("has 201 bytes, at most 200 expected"), "{long}");
    }
}
