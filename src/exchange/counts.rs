//! Counts of other systems as [`Stats`], and back.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::array::{Array, place};
use super::{CountsFormat, Model, bytes_of, json, npy, sglang, torch};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result, try_zeroed};
use crate::stats::{Counted, Counts, Dump, IterationRange, LoadOptions, MetaInfo, RankDump, Stats, Summary};

/// Counts, and what of the file they are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountsRead {
    /// The counts. Steps of other systems are iterations from 0 on, of one rank.
    pub stats: Stats,
    /// Rows without any count that were taken for dense layers and left out, by layer.
    pub dense_layers: Vec<u32>,
    /// Steps of SGLang's recorder without any count, which its buffer had not come to, and which were left out.
    pub empty_steps: usize,
}

/// Reads the counts of a file, or of a dump directory.
///
/// Fails with [`Error::InvalidDump`] naming the place, with [`Error::Read`], and for a dump as [`Dump::open`] does.
pub fn read_counts(path: &Path, format: CountsFormat, model: &Model) -> Result<CountsRead> {
    if format == CountsFormat::Dump {
        if model.layers.is_some() {
            return Err(Error::InvalidArgument("a dump says its layers itself: do not give them".into()));
        }
        let stats = Dump::open(path, &LoadOptions::default())?.read(&mut |_, _| Ok(()))?;
        check_model(model, stats.summary()).map_err(|e| e.in_file(path))?;
        return Ok(CountsRead { stats, dense_layers: Vec::new(), empty_steps: 0 });
    }
    counts_from_bytes(&bytes_of(path)?, format, model).map_err(|e| e.in_file(path))
}

/// Reads the counts of a file whose bytes are at hand; a dump is none.
pub fn counts_from_bytes(bytes: &[u8], format: CountsFormat, model: &Model) -> Result<CountsRead> {
    let array = match format {
        CountsFormat::Dump => return Err(Error::InvalidArgument("a dump is a directory, not a file".into())),
        CountsFormat::SglangCount => sglang::read(bytes, sglang::LOGICAL_COUNT),
        CountsFormat::SglangPt => torch::read(bytes, sglang::LOGICAL_COUNT),
        CountsFormat::Lmdeploy => json::read_lists(bytes),
        CountsFormat::Npy => npy::read(bytes),
    };
    let steps_may_be_empty = matches!(format, CountsFormat::SglangCount | CountsFormat::SglangPt);
    array.and_then(|array| counts_of(&array, steps_may_be_empty, model)).map_err(Error::InvalidDump).and_then(
        |read| {
            check_model(model, read.stats.summary())?;
            Ok(read)
        },
    )
}

/// Whether counts are those of the model, as far as it is known.
fn check_model(model: &Model, summary: &Summary) -> Result<()> {
    let (held, chosen) = (summary.num_experts, summary.experts_per_token);
    let refuse = |what: String| Err(Error::InvalidDump(what));
    if let Some(expected) = model.num_experts.filter(|&expected| expected != held) {
        return refuse(format!("it has {held} experts, {expected} expected"));
    }
    match model.experts_per_token {
        Some(expected) if !(1..=held).contains(&expected) => refuse(format!(
            "{expected} experts a token, and {held} experts: a token chooses 1 to all of them"
        )),
        Some(expected) if expected != chosen => {
            refuse(format!("it says {chosen} experts a token, {expected} expected"))
        }
        _ => Ok(()),
    }
}

/// The counts of an array whose rows are layers.
fn counts_of(
    array: &Array,
    steps_may_be_empty: bool,
    model: &Model,
) -> std::result::Result<CountsRead, String> {
    let ([steps, num_rows, num_experts], values) = array.steps()?;
    let step_size = num_rows * num_experts;
    let counted = |step: &usize| values[step * step_size..][..step_size].iter().any(|&count| count != 0);
    let kept: Vec<usize> = (0..steps).filter(|step| !steps_may_be_empty || counted(step)).collect();
    if kept.is_empty() {
        return Err("nothing was counted in any step".into());
    }
    let row_of = |step: usize, row: usize| &values[step * step_size + row * num_experts..][..num_experts];
    let is_dense = |row: usize| kept.iter().all(|&step| row_of(step, row).iter().all(|&count| count == 0));

    let mut rows = model.layers_of_rows(num_rows)?;
    let mut dense_layers = Vec::new();
    match model.layers {
        Some(_) => {
            let other =
                (0..num_rows).find(|&row| !rows.iter().any(|&(_, picked)| picked == row) && !is_dense(row));
            if let Some(row) = other {
                return Err(format!("row {} has counts, and it is none of the layers given", place(&[row])));
            }
        }
        None => {
            let (dense, counted): (Vec<_>, Vec<_>) = rows.into_iter().partition(|&(_, row)| is_dense(row));
            dense_layers = dense.into_iter().map(|(layer, _)| layer).collect();
            rows = counted;
        }
    }
    if rows.is_empty() {
        return Err("every row is all zero; give the numbers of the layers to take it all the same".into());
    }
    let size = rows.len() * kept.len() * num_experts;
    let mut counts: Vec<u64> = try_zeroed(Some(size), "the counts").map_err(|e| e.to_string())?;
    let cells = rows.iter().flat_map(|&(_, row)| kept.iter().map(move |&step| (step, row)));
    for (cell, (step, row)) in counts.chunks_exact_mut(num_experts).zip(cells) {
        cell.copy_from_slice(row_of(step, row));
    }
    let summary = Summary {
        num_experts,
        experts_per_token: model.experts_per_token.unwrap_or(0),
        num_ranks: 1,
        missing_ranks: Vec::new(),
        counted: Counted::Experts,
        layers: rows.iter().map(|&(layer, _)| layer).collect(),
        iterations: IterationRange { start: 0, stop: kept.len() as u64 },
    };
    Ok(CountsRead {
        stats: Stats::from_counts(summary, counts),
        dense_layers,
        empty_steps: steps - kept.len(),
    })
}

/// Writes `stats` in a format: a file, replaced in one step, or for [`CountsFormat::Dump`] a directory without a dump.
///
/// SGLang's and LMDeploy's formats get a row for each of [`Model::num_layers`], zeros for the dense ones; LMDeploy's the sum over
/// the iterations. [`CountsFormat::SglangPt`] is an [`Error::InvalidArgument`].
pub fn write_counts(stats: &Stats, path: &Path, format: CountsFormat, model: &Model) -> Result<()> {
    let summary = stats.summary();
    let (num_experts, steps) = (summary.num_experts, summary.iterations.len() as usize);
    if format == CountsFormat::Dump {
        return write_dump(stats, path);
    }
    if summary.counted == Counted::Slots {
        let message = "it counts slots, of a placement that was in force; the other formats are of experts";
        return Err(Error::InvalidDump(message.into()));
    }
    match format {
        CountsFormat::Dump => Ok(()),
        CountsFormat::SglangPt => Err(Error::InvalidArgument(format!(
            "{} is only read; SGLang takes {} as well",
            format.name(),
            CountsFormat::SglangCount.name()
        ))),
        CountsFormat::SglangCount => {
            let num_rows = model.num_rows(&summary.layers)?;
            let rows: Vec<_> = (0..num_rows as u32).map(|layer| stats.layer_counts(layer).ok()).collect();
            AtomicFile::create(path)?.replace(|out| {
                write!(out, "{{\"{}\": ", sglang::LOGICAL_COUNT)?;
                json::write_lists(
                    out,
                    &[steps, num_rows, num_experts],
                    &mut cells(&rows, steps, num_experts),
                )?;
                writeln!(out, "}}")
            })
        }
        CountsFormat::Lmdeploy => {
            let num_rows = model.num_rows(&summary.layers)?;
            let totals =
                summary.layers.iter().map(|&layer| stats.layer_totals(layer)).collect::<Result<Vec<_>>>()?;
            let of_layer = |layer| Some(&totals[summary.layers.binary_search(&layer).ok()?][..]);
            let rows: Vec<_> = (0..num_rows as u32).map(of_layer).collect();
            AtomicFile::create(path)?.replace(|out| {
                json::write_lists(out, &[num_rows, num_experts], &mut cells(&rows, 1, num_experts))?;
                writeln!(out)
            })
        }
        CountsFormat::Npy => {
            let rows: Vec<_> = summary.layers.iter().map(|&layer| stats.layer_counts(layer).ok()).collect();
            let shape = [steps, summary.layers.len(), num_experts];
            AtomicFile::create(path)?
                .replace(|out| npy::write(out, &shape, &mut cells(&rows, steps, num_experts)))
        }
    }
}

/// The values of rows `[steps][experts]` as `[steps][rows][experts]`, zeros where a row has none.
fn cells<'a>(
    rows: &'a [Option<&'a [u64]>],
    steps: usize,
    num_experts: usize,
) -> impl Iterator<Item = u64> + 'a {
    (0..steps).flat_map(move |step| {
        rows.iter().flat_map(move |row| {
            (0..num_experts).map(move |expert| row.map_or(0, |row| row[step * num_experts + expert]))
        })
    })
}

/// A dump of one rank.
fn write_dump(stats: &Stats, directory: &Path) -> Result<()> {
    let summary = stats.summary();
    if summary.experts_per_token == 0 {
        return Err(Error::InvalidArgument(
            "a dump says how many experts each token chooses, and the file does not: give experts_per_token"
                .into(),
        ));
    }
    // A dump of several ranks would become a mixture.
    if directory.join(MetaInfo::FILE_NAME).exists() {
        let there = io::Error::new(
            ErrorKind::AlreadyExists,
            "there is a dump already; name another directory, or remove it",
        );
        return Err(Error::write(directory, there));
    }
    let steps = summary.iterations.len() as usize;
    let mut counts = try_zeroed(Some(steps * summary.layers.len() * summary.num_experts), "the counts")?;
    for (index, &layer) in summary.layers.iter().enumerate() {
        let of_layer = stats.layer_counts(layer)?.chunks_exact(summary.num_experts);
        for (step, row) in of_layer.enumerate() {
            let at = (step * summary.layers.len() + index) * summary.num_experts;
            counts[at..][..row.len()].copy_from_slice(row);
        }
    }
    let dump = RankDump {
        rank: 0,
        num_ranks: 1,
        num_experts: summary.num_experts,
        experts_per_token: summary.experts_per_token,
        counted: summary.counted,
        iterations: summary.iterations,
        held: summary.iterations,
        layers: &summary.layers,
        counts: Counts::U64(&counts),
        run_id: None,
    };
    dump.write(directory)
}
