//! Output of the commands: tables, numbers, CSV and files.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::path::Path;

use comfy_table::{Cell, CellAlignment, Color, Table, TableComponent, presets};
use eplb::atomic_file::AtomicFile;
use eplb::report::Idle;
use eplb::stats::{RowRanges, Stats};
use eplb::{Error, Result};

/// The format of standard output.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct OutputFormat {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Print comma-separated values instead of a table
    #[arg(long)]
    pub csv: bool,
}

/// Returns a table with a header. Eight columns of numbers fit into 80 characters.
pub fn table(header: impl IntoIterator<Item = Cell>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─')
        .set_header(header.into_iter().collect::<Vec<_>>());
    table.column_iter_mut().for_each(|column| {
        column.set_padding((1, 0));
    });
    // Colours on a terminal only; redirected, the width does not depend on the terminal.
    if use_colours() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn use_colours() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line on rows of several iterations, for which figures of an iteration are those of a row. Empty for other dumps.
pub fn rows_note(rows: &RowRanges) -> String {
    match rows.are_iterations() {
        true => String::new(),
        false => format!(
            "It has {} {}; figures of single iterations are those of single rows\n",
            rows.len(),
            rows.unit()
        ),
    }
}

/// A line on what ratios leave out. Empty if they leave out nothing.
pub fn idle_note(stats: &Stats) -> Result<String> {
    let note = Idle::of(stats)?.note(stats.summary().layers.len());
    Ok(note.map_or(String::new(), |note| format!("Note: {note}\n")))
}

/// Formats consecutive layers as `26 (1 to 26)`, others as a list.
pub fn layer_list(layers: &[u32]) -> String {
    match (layers.first(), layers.last()) {
        (Some(first), Some(last)) if (last - first) as usize + 1 == layers.len() => {
            format!("{} ({first} to {last})", layers.len())
        }
        _ => format!("{} {layers:?}", layers.len()),
    }
}

pub fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

pub fn left(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Left)
}

/// An imbalance ratio: green below 0.05, yellow below 0.2, else red.
pub fn imbalance(ratio: Option<f64>) -> Cell {
    let cell = right(four_digits(ratio));
    match ratio {
        None => cell,
        Some(ratio) if ratio < 0.05 => cell.fg(Color::Green),
        Some(ratio) if ratio < 0.2 => cell.fg(Color::Yellow),
        Some(_) => cell.fg(Color::Red),
    }
}

/// Formats a ratio with four digits, and `None` as `-`.
pub fn four_digits(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.4}"))
}

/// Formats a part of a difference with its sign: `+0.0123`.
pub fn signed(part: Option<f64>) -> String {
    part.map_or("-".to_owned(), |part| format!("{part:+.4}"))
}

/// Formats a ratio as a percentage: `0.12 %`, `4.7 %`, `320 %`.
pub fn percent(ratio: f64) -> String {
    let percent = 100.0 * ratio;
    let digits = if percent == 0.0 {
        0
    } else if percent.abs() < 1.0 {
        2
    } else {
        usize::from(percent.abs() < 100.0)
    };
    format!("{percent:.digits$} %")
}

/// Formats a number of tokens: one digit below 10,000, else none.
pub fn tokens(count: f64) -> String {
    format!("{count:.*}", usize::from(count < 10_000.0))
}

/// Formats a number of bytes: `12.3 MiB`.
pub fn bytes(count: f64) -> String {
    let mut unit = (count, "bytes");
    for name in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if unit.0 >= 1024.0 {
            unit = (unit.0 / 1024.0, name);
        }
    }
    let digits = usize::from(unit.1 != "bytes" && unit.0 < 100.0);
    format!("{:.digits$} {}", unit.0, unit.1)
}

/// Parses `44040192`, `42MiB`, `44 MB` or `42M`. A unit of one letter is binary.
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<f64>(), text[digits..].trim());
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(format!("unknown unit \"{unit}\"; valid are KiB, MiB, GiB, KB, MB and GB")),
    };
    match number.map(|number| number * unit) {
        Ok(bytes) if bytes >= 1.0 && bytes < 2f64.powi(53) => Ok(bytes.round() as u64),
        _ => Err("expected a number of bytes, such as 44040192 or 42MiB".to_owned()),
    }
}

/// Formats a line of comma-separated values, and quotes those that need it.
pub fn csv_line<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let quoted = |value: T| {
        let text = value.to_string();
        match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        }
    };
    let mut line = values.into_iter().map(quoted).collect::<Vec<_>>().join(",");
    line.push('\n');
    line
}

/// Formats a number for CSV in full precision, and `None` as an empty value.
pub fn csv_number(number: Option<f64>) -> String {
    number.map_or(String::new(), |number| number.to_string())
}

/// Whether an output file is standard output: `-`, or one of its names. Nothing else is printed then.
pub fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

/// The path of an output file for the library, to which `-` is the name of a file.
pub fn output_path(path: &Path) -> &Path {
    if is_stdout(path) { Path::new("/dev/stdout") } else { path }
}

/// Whether one of some output files, each with its flag, is standard output. Fails where there is more than one output to it.
pub fn takes_stdout(files: &[(&str, Option<&Path>)], format: &OutputFormat) -> Result<bool> {
    let to_files = files.iter().filter(|(_, path)| path.is_some_and(is_stdout)).map(|&(flag, _)| flag);
    let formats = [("--json", format.json), ("--csv", format.csv)];
    let printed = formats.into_iter().filter(|&(_, is_set)| is_set).map(|(flag, _)| flag);
    let flags: Vec<&str> = to_files.clone().chain(printed).collect();
    match (to_files.count(), &flags[..]) {
        (0, _) => Ok(false),
        (_, [first, second, ..]) => Err(Error::InvalidArgument(format!(
            "{first} - and {second} both go to standard output; write one of them to a file"
        ))),
        _ => Ok(true),
    }
}

/// Creates the output file at `path`, if any. Called before the work, so that an invalid path fails at once.
pub fn create_file(path: Option<&Path>) -> Result<Option<AtomicFile>> {
    path.map(|path| AtomicFile::create(output_path(path))).transpose()
}

/// Writes `text` to the file, if any, and replaces an existing file in one step.
pub fn write_file(file: Option<AtomicFile>, text: impl FnOnce() -> Result<String>) -> Result<()> {
    match file {
        None => Ok(()),
        Some(file) => {
            let text = text()?;
            file.replace(|file| file.write_all(text.as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_parsed_and_formatted_with_units() {
        assert_eq!(parse_bytes("44040192"), Ok(44_040_192));
        assert_eq!(parse_bytes("42MiB"), Ok(42 << 20));
        assert_eq!(parse_bytes("1.5 gb"), Ok(1_500_000_000));
        for wrong in ["", "MiB", "0", "-1", "1e9", "12 parsec", "99999999999 GiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            [512.0, 2048.0, 44_040_192.0, 1.5e12].map(bytes),
            ["512 bytes", "2.0 KiB", "42.0 MiB", "1.4 TiB"]
        );
    }

    #[test]
    fn percent_has_two_or_three_significant_digits() {
        assert_eq!([0.0, 0.00123, 0.0456, 3.2].map(percent), ["0 %", "0.12 %", "4.6 %", "320 %"]);
    }

    #[test]
    fn csv_line_quotes_commas_and_quotes() {
        assert_eq!(csv_line(["a,b", "c \"d\"", "e"]), "\"a,b\",\"c \"\"d\"\"\",e\n");
    }
}
