//! The `eplb` command: parses arguments, calls the library and prints results.

mod chart;
mod compare;
mod convert;
mod dump_args;
mod generate;
mod incomplete;
mod inspect;
mod merge;
mod output;
mod page;
mod plan_args;
mod replay;
mod replay_args;
mod replay_chart;
mod replay_text;
mod report;
mod sweep;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use eplb::Error;

/// Balances the experts of a mixture-of-experts model over the ranks of expert parallelism.
///
/// Step 1: an engine counts which experts its router chooses, and dumps the counts. Step 2: `eplb generate` turns the dump
/// into a configuration file with the expert of each slot. Step 3: the engine loads that file and routes by it.
#[derive(Parser)]
#[command(
    name = "eplb",
    version,
    after_help = "\
Examples (with files of eplb's repository):
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation
  eplb generate --expert_statistic_path data/dumps/dsv2lite-translation \\
      --ep_size 8 --num_slots 72 --output_path moe_load_balancer.yaml
  eplb report --expert_statistic_path data/dumps/dsv2lite-translation --ep_size 8 \\
      --config moe_load_balancer.yaml --html report.html

Exit codes:
  0  done
  1  out of memory, or a bug in eplb
  2  usage: a flag is invalid, or does not match the dump
  3  input: a file is missing, damaged or incomplete
  4  output: the result could not be written; an existing file is unchanged"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Inspect(inspect::Args),
    Report(report::Args),
    Compare(compare::Args),
    Sweep(sweep::Args),
    Replay(replay::Args),
    Convert(convert::Args),
    Merge(merge::Args),
    /// Write the manual pages, for `make install`
    #[command(hide = true)]
    Man {
        /// Directory for eplb.1 and a page for each command
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    // Fails only if a logger was set before, which cannot be this early.
    let _ = log::set_logger(&WarningLogger).map(|()| log::set_max_level(log::LevelFilter::Warn));
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Man { directory } => write_manual(&directory),
    };
    match result.map(print) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}: {error}", red("error"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Writes the manual pages, generated from the help.
fn write_manual(directory: &Path) -> eplb::Result<String> {
    match clap_mangen::generate_to(Cli::command(), directory) {
        Ok(()) => Ok(String::new()),
        Err(source) => Err(Error::Write { path: directory.to_owned(), source: source.into() }),
    }
}

/// Maps an error to an exit code, so that scripts can distinguish a wrong flag from a damaged dump.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::InvalidArgument(_) | Error::InvalidShape(_) => 2,
        Error::Read { .. }
        | Error::InvalidDump(_)
        | Error::IncompleteDump(_)
        | Error::InvalidLoads(_)
        | Error::InvalidPlacement(_) => 3,
        Error::Write { .. } => 4,
        _ => 1,
    }
}

/// Prints a command's result. A closed pipe (`| head`) is no error.
fn print(text: String) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("{}: cannot write to standard output: {e}", red("error"));
            ExitCode::from(4)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn red(text: &str) -> String {
    if io::stderr().is_terminal() { format!("\x1b[1;31m{text}\x1b[0m") } else { text.to_owned() }
}

/// Prints the library's warnings.
struct WarningLogger;

impl log::Log for WarningLogger {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            eprintln!("warning: {}", record.args());
        }
    }

    fn flush(&self) {}
}
