//! Reads and writes counts of other systems as [`Stats`].

use std::io::{self, ErrorKind};
use std::path::Path;

use super::array::{Array, place};
use super::{CountsFormat, Model, bytes_of, json, npy, sglang, torch};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result, try_zeroed};
use crate::stats::{Counts, Dump, IdKind, IterationRange, LoadOptions, MetaInfo, RankDump, Stats, Summary};

/// Counts, and the parts of the file that were left out.
#[derive(Debug, Clone, PartialEq)]
pub struct CountsRead {
    /// The counts. Steps of other systems become iterations from 0 on, of one rank.
    pub stats: Stats,
    /// Rows of zeros, which were left out as dense layers, by layer.
    pub dense_layers: Vec<u32>,
    /// Steps of zeros, which were left out as the unused part of the buffer of SGLang's recorder.
    pub empty_steps: usize,
}

/// Reads the counts of a file, or of a dump directory.
///
/// Fails with [`Error::InvalidDump`], which names the place, with [`Error::Read`], and for a dump as [`Dump::open`].
pub fn read_counts(path: &Path, format: CountsFormat, model: &Model) -> Result<CountsRead> {
    if format == CountsFormat::Dump {
        if model.layers.is_some() {
            return Err(Error::InvalidArgument("a dump contains its layers: do not set them".into()));
        }
        let stats = Dump::open(path, &LoadOptions::default())?.read(&mut |_, _| Ok(()))?;
        check_model(model, stats.summary()).map_err(|e| e.in_file(path))?;
        return Ok(CountsRead { stats, dense_layers: Vec::new(), empty_steps: 0 });
    }
    counts_from_bytes(&bytes_of(path)?, format, model).map_err(|e| e.in_file(path))
}

/// Reads counts from the bytes of a file. Fails for [`CountsFormat::Dump`], which is a directory.
pub fn counts_from_bytes(bytes: &[u8], format: CountsFormat, model: &Model) -> Result<CountsRead> {
    let array = match format {
        CountsFormat::Dump => return Err(Error::InvalidArgument("a dump is a directory, not a file".into())),
        CountsFormat::SglangCount => sglang::read(bytes, sglang::LOGICAL_COUNT),
        CountsFormat::SglangPt => torch::read(bytes, sglang::LOGICAL_COUNT),
        CountsFormat::Lmdeploy => json::read_lists(bytes, false),
        CountsFormat::Npy => npy::read(bytes, false),
    };
    let steps_may_be_empty = matches!(format, CountsFormat::SglangCount | CountsFormat::SglangPt);
    array.and_then(|array| counts_of(&array, steps_may_be_empty, model)).map_err(Error::InvalidDump).and_then(
        |read| {
            check_model(model, read.stats.summary())?;
            Ok(read)
        },
    )
}

/// Checks counts against the known sizes of the model.
fn check_model(model: &Model, summary: &Summary) -> Result<()> {
    let Summary { num_experts, experts_per_token, .. } = *summary;
    let refuse = |what: String| Err(Error::InvalidDump(what));
    if let Some(expected) = model.num_experts.filter(|&expected| expected != num_experts) {
        return refuse(format!("it has {num_experts} experts, {expected} expected"));
    }
    match model.experts_per_token {
        Some(expected) if !(1..=num_experts).contains(&expected) => {
            refuse(format!("experts_per_token is {expected}; 1 to the {num_experts} experts expected"))
        }
        Some(expected) if expected != experts_per_token => {
            refuse(format!("experts_per_token is {experts_per_token}, {expected} expected"))
        }
        _ => Ok(()),
    }
}

/// Converts an array whose rows are layers.
fn counts_of(
    array: &Array,
    steps_may_be_empty: bool,
    model: &Model,
) -> std::result::Result<CountsRead, String> {
    let ([steps, num_rows, num_experts], values) = array.steps()?;
    let step_size = num_rows * num_experts;
    let has_counts = |step: &usize| values[step * step_size..][..step_size].iter().any(|&count| count != 0);
    let kept: Vec<usize> = (0..steps).filter(|step| !steps_may_be_empty || has_counts(step)).collect();
    if kept.is_empty() {
        return Err("every step has only zeros".into());
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
                return Err(format!("row {} has counts, but its layer was not given", place(&[row])));
            }
        }
        None => {
            let (dense, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|&(_, row)| is_dense(row));
            dense_layers = dense.into_iter().map(|(layer, _)| layer).collect();
            rows = others;
        }
    }
    if rows.is_empty() {
        return Err("all counts are zero; give the layers' numbers to read them nevertheless".into());
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
        num_files: 1,
        stage_ranks: vec![1],
        missing_ranks: Vec::new(),
        id_kind: Some(IdKind::Expert),
        layers: rows.iter().map(|&(layer, _)| layer).collect(),
        rows: IterationRange { start: 0, stop: kept.len() as u64 }.into(),
    };
    Ok(CountsRead {
        stats: Stats::from_counts(summary, counts),
        dense_layers,
        empty_steps: steps - kept.len(),
    })
}

/// Writes `stats` to a file, which is replaced in one step, or for [`CountsFormat::Dump`] to a directory without a dump.
///
/// SGLang's and LMDeploy's formats get a row for each of [`Model::num_layers`], with zeros for dense layers. LMDeploy's has the
/// sums over the iterations. Where a dump's rows have several iterations, a step of SGLang's format and of an array is such a
/// row. [`CountsFormat::SglangPt`] is an [`Error::InvalidArgument`].
pub fn write_counts(stats: &Stats, path: &Path, format: CountsFormat, model: &Model) -> Result<()> {
    let summary = stats.summary();
    let (num_experts, steps) = (summary.num_experts, summary.rows.len() as usize);
    if format == CountsFormat::Dump {
        return write_dump(stats, path, model.experts_per_token);
    }
    if summary.id_kind == Some(IdKind::Slot) {
        let message = "it counts slots; only a dump can, other formats count experts";
        return Err(Error::InvalidDump(message.into()));
    }
    match format {
        CountsFormat::Dump => Ok(()),
        CountsFormat::SglangPt => Err(Error::InvalidArgument(format!(
            "{} is read only; SGLang also reads {}",
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

/// Reorders rows of `[steps][experts]` to `[steps][rows][experts]`, with zeros for missing rows.
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

/// Writes a dump of one rank. `experts_per_token` is for counts that have none.
fn write_dump(stats: &Stats, directory: &Path, experts_per_token: Option<usize>) -> Result<()> {
    let summary = stats.summary();
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    let experts_per_token = match (summary.experts_per_token, experts_per_token) {
        (0, None) => {
            return refuse(
                "a dump needs experts_per_token, and the counts have none: set it in the options, or in \
                 eplb_stats_config"
                    .into(),
            );
        }
        (0, Some(given)) => given,
        (known, Some(given)) if known != given => {
            return refuse(format!("the counts have experts_per_token {known}, the options {given}"));
        }
        (known, _) => known,
    };
    // Only one file of a dump of several ranks would be replaced.
    if directory.join(MetaInfo::FILE_NAME).exists() {
        let exists = io::Error::new(
            ErrorKind::AlreadyExists,
            "it already has a dump; choose another directory, or remove it",
        );
        return Err(Error::write(directory, exists));
    }
    let steps = summary.rows.len() as usize;
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
        file: None,
        rows: summary.rows.first().rows,
        num_experts: summary.num_experts,
        experts_per_token,
        id_kind: summary.id_kind.unwrap_or_default(),
        iterations: summary.rows.first().iterations,
        held: summary.rows.first().iterations,
        layers: &summary.layers,
        counts: Counts::U64(&counts),
        run_id: None,
    };
    dump.write(directory)
}
