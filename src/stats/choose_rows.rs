//! Chooses the rows to read of a dump. All files must have them.

use super::stages::file_name;
use super::{IterationRange, RankFile, RowRange};
use crate::error::{Error, Result};

/// The rows from `start` on, up to `stop`, or all. Fails where a file lacks one. `whole` are those of the meta file.
pub(super) fn choose_rows(
    files: &[RankFile],
    whole: Option<RowRange>,
    start: Option<u64>,
    stop: Option<u64>,
) -> Result<RowRange> {
    let files: Vec<&RankFile> = files.iter().filter(|file| !file.layers.is_empty()).collect();
    let whole = whole.unwrap_or_else(|| {
        let ranges = || files.iter().map(|file| file.rows.iterations);
        let start = ranges().map(|range| range.start).min().unwrap_or(0);
        IterationRange { start, stop: ranges().map(|range| range.stop).max().unwrap_or(0) }.into()
    });
    let rows = whole.select(start, stop)?;
    let chosen = rows.iterations;
    for file in &files {
        let found = file.rows.iterations;
        if chosen.start < found.start || chosen.stop > found.stop {
            let absent = if chosen.start < found.start { chosen.start } else { found.stop };
            let what = if rows.are_iterations() { "" } else { "the row of " };
            return Err(Error::IncompleteDump(format!(
                "{}: {what}iteration {absent} is missing, it has {found} of {chosen}; {}",
                file_name(file),
                way_out(&files)
            )));
        }
    }
    Ok(rows)
}

/// Names the iterations that all files have.
fn way_out(files: &[&RankFile]) -> String {
    let ranges = || files.iter().map(|file| file.rows.iterations);
    let start = ranges().map(|range| range.start).max().unwrap_or(0);
    let common = IterationRange { start, stop: ranges().map(|range| range.stop).min().unwrap_or(0) };
    if common.is_empty() {
        return "no iteration is in the files of all ranks, record again".to_owned();
    }
    let IterationRange { start, stop } = common;
    format!("choose iterations that all ranks have: {common} (iter_start {start}, iter_stop {stop})")
}
