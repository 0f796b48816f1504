//! What commands print and write: tables, CSV, and files that are whole or not there.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::path::Path;

use comfy_table::{Cell, CellAlignment, Color, Table, TableComponent, presets};
use eplb::Result;
use eplb::atomic_file::AtomicFile;

/// The form of what goes to standard output.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Form {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Print comma-separated values
    #[arg(long)]
    pub csv: bool,
}

/// A table with its header. Eight columns of figures fit into 80 characters.
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
    // Redirected, it is as wide as its contents; on a terminal colours say more than numbers.
    if coloured() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn coloured() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

pub fn left(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Left)
}

/// An imbalance ratio: green where it costs next to nothing, red where it costs much.
pub fn imbalance(ratio: Option<f64>) -> Cell {
    let cell = right(four_digits(ratio));
    match ratio {
        None => cell,
        Some(ratio) if ratio < 0.05 => cell.fg(Color::Green),
        Some(ratio) if ratio < 0.2 => cell.fg(Color::Yellow),
        Some(_) => cell.fg(Color::Red),
    }
}

/// `-` where there is no such ratio.
pub fn four_digits(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.4}"))
}

/// `+0.0123`: a part of a difference.
pub fn signed(part: Option<f64>) -> String {
    part.map_or("-".to_owned(), |part| format!("{part:+.4}"))
}

/// 4.7 %, with as many digits as matter.
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

/// Tokens: as whole as they are large.
pub fn tokens(count: f64) -> String {
    format!("{count:.*}", usize::from(count < 10_000.0))
}

/// 12.3 MiB, say.
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

/// Reads `44040192`, `42MiB`, `44 MB` or `42M`, where M is MiB.
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
        _ => return Err(format!("unknown unit \"{unit}\"; there is KiB, MiB, GiB, KB, MB and GB")),
    };
    match number.map(|number| number * unit) {
        Ok(bytes) if bytes >= 1.0 && bytes < 2f64.powi(53) => Ok(bytes.round() as u64),
        _ => Err("a number of bytes expected, such as 44040192 or 42MiB".to_owned()),
    }
}

/// A line of comma-separated values.
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

/// A number of a CSV file, exact; empty where there is none.
pub fn exact(number: Option<f64>) -> String {
    number.map_or(String::new(), |number| number.to_string())
}

/// A file to write, if one was asked for: begun before the work, so that a path that cannot be written costs nobody time.
pub fn begin(path: Option<&Path>) -> Result<Option<AtomicFile>> {
    path.map(AtomicFile::create).transpose()
}

/// Writes what was begun.
pub fn finish(file: Option<AtomicFile>, text: impl FnOnce() -> Result<String>) -> Result<()> {
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
    fn sizes_are_read_and_written_as_people_do() {
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
    fn percentages_have_the_digits_that_matter() {
        assert_eq!([0.0, 0.00123, 0.0456, 3.2].map(percent), ["0 %", "0.12 %", "4.6 %", "320 %"]);
    }

    #[test]
    fn names_with_commas_stay_one_value() {
        assert_eq!(csv_line(["a,b", "c \"d\"", "e"]), "\"a,b\",\"c \"\"d\"\"\",e\n");
    }
}
