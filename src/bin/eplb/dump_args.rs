//! The flags that name a dump and what to take of it, the same for every command that reads one.

use std::path::{Path, PathBuf};

use eplb::stats::{Dump, LoadOptions, Stats};
use eplb::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(clap::Args)]
pub struct DumpArgs {
    /// Directory of the dump: meta_info.json and one rank<R>.safetensors a rank
    #[arg(long = "expert_statistic_path", alias = "expert-statistic-path", value_name = "DIR")]
    pub expert_statistic_path: PathBuf,

    /// First iteration to use [default: the dump's first]
    #[arg(long = "iter_start", alias = "iter-start", value_name = "ITER")]
    iter_start: Option<u64>,

    /// First iteration not to use any more [default: the dump's end]
    #[arg(long = "iter_stop", alias = "iter-stop", value_name = "ITER")]
    iter_stop: Option<u64>,

    /// Ranks that the run had, so that a loss of any file is noticed [default: what the dump says, which in
    /// TensorRT-LLM's is no more than the highest rank]
    #[arg(long = "expected_ranks", alias = "expected-ranks", value_name = "RANKS")]
    expected_ranks: Option<usize>,

    /// Take a dump from which the files of some ranks are missing
    #[arg(long = "allow_missing_ranks", alias = "allow-missing-ranks")]
    allow_missing_ranks: bool,

    /// Threads to use [default: one a core, at most 8]; the result is the same with any number
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

    /// An error about the dump as a whole, which does not name it yet.
    pub fn named(&self, error: Error) -> Error {
        match error {
            Error::InvalidDump(_) => error.in_file(&self.expert_statistic_path),
            other => other,
        }
    }

    /// Reads a second dump, all of its iterations.
    pub fn read_second(&self, directory: &Path) -> Result<Stats> {
        let Self { allow_missing_ranks, threads, .. } = *self;
        read(directory, &LoadOptions { allow_missing_ranks, threads, ..Default::default() })
    }
}

/// A bar on standard error, drawn only on a terminal.
pub fn reading_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Reads a dump behind a bar.
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
