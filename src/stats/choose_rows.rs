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
    let whole = whole.unwrap_or_else(|| all_rows(files));
    let files: Vec<&RankFile> = files.iter().filter(|file| !file.layers.is_empty()).collect();
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
                way_out(&files, whole)
            )));
        }
    }
    check_partial_rows(&files, whole, rows)?;
    Ok(rows)
}

/// All rows of files without a meta file that says them.
pub(super) fn all_rows(files: &[RankFile]) -> RowRange {
    let ranges = || files.iter().filter(|file| !file.layers.is_empty()).map(|file| file.rows.iterations);
    let start = ranges().map(|range| range.start).min().unwrap_or(0);
    IterationRange { start, stop: ranges().map(|range| range.stop).max().unwrap_or(0) }.into()
}

/// Fails where a chosen row has other iterations in one file than in another. Warns where all files have the same part of a row.
fn check_partial_rows(files: &[&RankFile], whole: RowRange, rows: RowRange) -> Result<()> {
    let chosen = rows.iterations;
    let counted = |file: &RankFile| {
        let IterationRange { start, stop } = counted(file, whole);
        whole.counted(IterationRange { start: start.max(chosen.start), stop: stop.min(chosen.stop) })
    };
    let within = |range: IterationRange, row: IterationRange| IterationRange {
        start: range.start.clamp(row.start, row.stop),
        stop: range.stop.clamp(row.start, row.stop),
    };
    let Some((first, others)) = files.split_first() else { return Ok(()) };
    let expected = counted(first);
    if let Some(file) = others.iter().find(|file| counted(file) != expected) {
        let found = counted(file);
        let differing = if found.start != expected.start {
            found.start.min(expected.start)
        } else {
            found.stop.max(expected.stop) - 1
        };
        let row = whole.row_with(differing);
        return Err(Error::IncompleteDump(format!(
            "{}: the row of iteration {} has iterations {}, that of {} has {}; {}",
            file_name(file),
            row.start,
            within(found, row),
            file_name(first),
            within(expected, row),
            way_out(files, whole)
        )));
    }
    let last = whole.row_with(chosen.stop - 1);
    let mut partial = Vec::new();
    if expected.start > chosen.start {
        partial.push(whole.row_with(chosen.start));
    }
    if expected.stop < chosen.stop && !partial.contains(&last) {
        partial.push(last);
    }
    let directory = first.path.parent().unwrap_or(&first.path);
    for row in partial {
        log::warn!(
            "{}: the row of iteration {} has {} of its {} iterations on every rank",
            directory.display(),
            row.start,
            whole.rows.iterations_in(whole.iterations, within(expected, row)),
            whole.rows.iterations_in(whole.iterations, row)
        );
    }
    Ok(())
}

/// The iterations that a file has. Without its metadata, all of its rows.
pub(super) fn counted(file: &RankFile, whole: RowRange) -> IterationRange {
    let found = file.rows.iterations;
    let counted = file.run.as_ref().and_then(|run| run.counted).unwrap_or(whole.iterations);
    IterationRange { start: found.start.max(counted.start), stop: found.stop.min(counted.stop) }
}

/// Names the rows that all files have in full. Without any, those of which all files have the same part.
fn way_out(files: &[&RankFile], whole: RowRange) -> String {
    let ranges = || files.iter().map(|file| whole.complete_in(counted(file, whole)));
    let start = ranges().map(|range| range.start).max().unwrap_or(0);
    let mut common = IterationRange { start, stop: ranges().map(|range| range.stop).min().unwrap_or(0) };
    let (what, mut how) = if whole.are_iterations() { ("iteration", "") } else { ("row", " in full") };
    let part = |file: &RankFile| whole.counted(counted(file, whole));
    if common.is_empty() && files.iter().all(|file| part(file) == part(files[0])) {
        (common, how) = (files[0].rows.iterations, " in part");
    }
    if common.is_empty() {
        return format!("no {what} is{how} in the files of all ranks, record again");
    }
    let IterationRange { start, stop } = common;
    format!("choose {what}s that all ranks have{how}: {common} (iter_start {start}, iter_stop {stop})")
}
