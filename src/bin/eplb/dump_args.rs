//! The flags that select dumps and their iterations, shared by all commands that read dumps.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use eplb::stats::{Dump, DumpSet, IdKind, LoadOptions, Stats, dump_names};
use eplb::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(clap::Args)]
pub struct DumpArgs {
    /// Directory of the dump: meta_info.json, and rank<R>.safetensors of each rank. Several dumps of one model, such as of two
    /// workloads, are read as one: repeat the flag. They need the same experts and layers
    #[arg(
        long = "expert_statistic_path",
        alias = "expert-statistic-path",
        value_name = "DIR",
        required = true
    )]
    pub paths: Vec<PathBuf>,

    /// What the counts of each dump are multiplied by, such as 1,2: one number above 0 for each --expert_statistic_path. A dump
    /// with twice the tokens has twice the influence; weights even that out [default: all 1]
    #[arg(long = "dump_weights", alias = "dump-weights", value_name = "WEIGHTS", value_delimiter = ',')]
    pub dump_weights: Option<Vec<f64>>,

    /// What the dump counts, where it does not say it: TensorRT-LLM counts slots while a placement is in force, else experts
    /// [default: as the dump says, else experts]
    #[arg(long, value_name = "IDS", value_parser = id_kinds())]
    pub counts: Option<IdKind>,

    /// First iteration to use, of each dump. The start of a row if rows have several [default: the first of the dump]
    #[arg(long = "iter_start", alias = "iter-start", value_name = "ITER")]
    iter_start: Option<u64>,

    /// Iteration after the last one to use, of each dump [default: the end of the dump]
    #[arg(long = "iter_stop", alias = "iter-stop", value_name = "ITER")]
    iter_stop: Option<u64>,

    /// Rank files of the dump, those of all pipeline stages; a missing one is an error [default: the number in the dump; a
    /// dump of TensorRT-LLM has none, so a missing file of its highest ranks is not detected]
    #[arg(long = "expected_ranks", alias = "expected-ranks", value_name = "RANKS")]
    expected_ranks: Option<usize>,

    /// Accept a dump without the files of some ranks; their counts are taken as 0
    #[arg(long = "allow_missing_ranks", alias = "allow-missing-ranks")]
    allow_missing_ranks: bool,

    /// Number of threads; it does not change the result [default: one a core, at most 8]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
}

impl DumpArgs {
    /// How to read each dump.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            iter_start: self.iter_start,
            iter_stop: self.iter_stop,
            expected_ranks: self.expected_ranks,
            allow_missing_ranks: self.allow_missing_ranks,
            counts: self.counts,
            threads: self.threads,
        }
    }

    /// Reads the dumps.
    pub fn read(&self) -> Result<Stats> {
        let dumps = DumpSet::open(&self.paths, self.dump_weights.as_deref(), &self.options())?;
        with_bar(|progress| dumps.read(progress))
    }

    /// The dumps' paths, and their weights, for messages.
    pub fn name(&self) -> String {
        dump_names(&self.paths, self.dump_weights.as_deref())
    }

    /// Adds the dumps' paths to an error about the dumps as a whole.
    pub fn with_path(&self, error: Error) -> Error {
        match error {
            Error::InvalidDump(_) => error.in_file(Path::new(&self.name())),
            other => other,
        }
    }

    /// Reads all iterations of a second dump, which counts `counts` where it does not say it.
    pub fn read_second(&self, directory: &Path, counts: Option<IdKind>) -> Result<Stats> {
        let Self { allow_missing_ranks, threads, .. } = *self;
        read(directory, &LoadOptions { allow_missing_ranks, counts, threads, ..Default::default() })
    }
}

/// A progress bar on standard error, drawn only on a terminal.
pub fn reading_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Reads a dump, and shows a progress bar.
pub fn read(directory: &Path, options: &LoadOptions) -> Result<Stats> {
    read_counts(Dump::open(directory, options)?)
}

/// Reads the counts of a dump, and shows a progress bar.
pub fn read_counts(dump: Dump) -> Result<Stats> {
    with_bar(|progress| dump.read(progress))
}

/// Calls `read` with the progress of a bar.
pub fn with_bar<T>(read: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<()>) -> Result<T>) -> Result<T> {
    let bar = reading_bar();
    let result = read(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        Ok(())
    });
    bar.finish_and_clear();
    result
}

/// Parses what a dump counts.
pub fn id_kinds() -> impl TypedValueParser<Value = IdKind> {
    let kinds = [IdKind::Expert, IdKind::Slot];
    PossibleValuesParser::new(kinds.map(IdKind::name))
        .map(move |name| kinds.into_iter().find(|kind| kind.name() == name).unwrap_or_default())
}
