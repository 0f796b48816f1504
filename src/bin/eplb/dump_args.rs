//! The flags that select a dump and its iterations, shared by all commands that read a dump.

use std::path::{Path, PathBuf};

use eplb::stats::{Dump, LoadOptions, Stats};
use eplb::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(clap::Args)]
pub struct DumpArgs {
    /// Directory of the dump: meta_info.json, and rank<R>.safetensors of each rank
    #[arg(long = "expert_statistic_path", alias = "expert-statistic-path", value_name = "DIR")]
    pub expert_statistic_path: PathBuf,

    /// First iteration to use, the start of a row if the dump's rows have several [default: the first of the dump]
    #[arg(long = "iter_start", alias = "iter-start", value_name = "ITER")]
    iter_start: Option<u64>,

    /// Iteration after the last one to use [default: the end of the dump]
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
    /// Reads the dump.
    pub fn read(&self) -> Result<Stats> {
        let options = LoadOptions {
            iter_start: self.iter_start,
            iter_stop: self.iter_stop,
            expected_ranks: self.expected_ranks,
            allow_missing_ranks: self.allow_missing_ranks,
            threads: self.threads,
        };
        read(&self.expert_statistic_path, &options)
    }

    /// Adds the dump's path to an error about the dump as a whole.
    pub fn with_path(&self, error: Error) -> Error {
        match error {
            Error::InvalidDump(_) => error.in_file(&self.expert_statistic_path),
            other => other,
        }
    }

    /// Reads all iterations of a second dump.
    pub fn read_second(&self, directory: &Path) -> Result<Stats> {
        let Self { allow_missing_ranks, threads, .. } = *self;
        read(directory, &LoadOptions { allow_missing_ranks, threads, ..Default::default() })
    }
}

/// A progress bar on standard error, drawn only on a terminal.
pub fn reading_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Reads a dump, and shows a progress bar.
pub fn read(directory: &Path, options: &LoadOptions) -> Result<Stats> {
    let bar = reading_bar();
    let stats = Dump::open(directory, options)?.read(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        Ok(())
    });
    bar.finish_and_clear();
    stats
}
