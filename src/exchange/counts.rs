//! Reads and writes counts of other systems as [`Stats`], and reads fractions as [`Loads`].

use std::io::{self, ErrorKind};
use std::path::Path;

use super::array::{Array, Values, place};
use super::loads::{Loads, write_loads};
use super::recording::{self, Recording, Records, Ring};
use super::torch::TorchFile;
use super::{
    CountsFormat, Model, bytes_of, counts_of_layers, json, npy, sglang, sum_iterations, without_mark,
};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result, try_zeroed};
use crate::stats::{Counts, Dump, IdKind, IterationRange, LoadOptions, MetaInfo, RankDump, Stats, Summary};

/// What a file holds: counts, or loads where some numbers are fractions.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Whole numbers.
    Counts(Stats),
    /// Numbers with fractions, such as averages.
    Fractions(Loads),
}

impl Load {
    /// The sizes.
    pub fn summary(&self) -> &Summary {
        match self {
            Load::Counts(stats) => stats.summary(),
            Load::Fractions(loads) => loads.summary(),
        }
    }

    /// The counts. Fails for loads with an [`Error::InvalidDump`] that names a fraction.
    pub fn counts(&self) -> Result<&Stats> {
        match self {
            Load::Counts(stats) => Ok(stats),
            Load::Fractions(loads) => Err(loads.not_counts()),
        }
    }

    /// The sums over the iterations: one row of all of them. Those of loads are rounded to doubles.
    ///
    /// Fails with [`Error::InvalidDump`] if a sum of counts overflows.
    pub fn sum_iterations(&self) -> Result<Load> {
        match self {
            Load::Counts(stats) => Ok(Load::Counts(sum_iterations(stats)?)),
            Load::Fractions(loads) => Ok(Load::Fractions(loads.sum_steps()?)),
        }
    }

    /// Writes a file as [`write_counts`] or [`write_loads`].
    pub fn write(&self, path: &Path, format: CountsFormat, model: &Model) -> Result<()> {
        match self {
            Load::Counts(stats) => write_counts(stats, path, format, model),
            Load::Fractions(loads) => write_loads(loads, path, format, model),
        }
    }
}

/// Counts or loads, and the parts of the file that were left out.
#[derive(Debug, Clone, PartialEq)]
pub struct CountsRead {
    /// The numbers. Steps of other systems become iterations from 0 on, of one rank.
    pub load: Load,
    /// Rows of zeros, which were left out as dense layers, by layer.
    pub dense_layers: Vec<u32>,
    /// Layers of a dump that are not among those of the model, which were left out.
    pub left_out: Vec<u32>,
    /// Steps of zeros, which were left out as the unused part of the buffer of SGLang's recorder.
    pub empty_steps: usize,
    /// The step of the file that became the first iteration, where SGLang's recorder continued in its buffer after another dump.
    /// `None`: steps have the order of the file.
    pub first_step: Option<usize>,
}

/// Reads the counts of a file, of a dump directory, or of a directory with one file of SGLang's recorder a rank.
///
/// Fails with [`Error::InvalidDump`], which names the place, with [`Error::Read`], and for a dump as [`Dump::open`].
pub fn read_counts(path: &Path, format: CountsFormat, model: &Model) -> Result<CountsRead> {
    if format == CountsFormat::Dump {
        let all = Dump::open(path, &LoadOptions::default())?.read(&mut |_, _| Ok(()))?;
        check_model(model, all.summary()).map_err(|e| e.in_file(path))?;
        let stats = counts_of_layers(&all, model.layers).map_err(|e| e.in_file(path))?.into_owned();
        let is_left_out = |layer: &u32| !stats.summary().layers.contains(layer);
        let left_out = all.summary().layers.iter().copied().filter(is_left_out).collect();
        let load = Load::Counts(stats);
        return Ok(CountsRead { load, dense_layers: Vec::new(), left_out, empty_steps: 0, first_step: None });
    }
    if format == CountsFormat::SglangPt && path.is_dir() {
        let Recording { array, .. } = records_of(path, model)?;
        return counts_from_array(&array, Steps::All, model).map_err(|e| e.in_file(path));
    }
    counts_from_bytes(&bytes_of(path)?, format, model).map_err(|e| e.in_file(path))
}

/// Reads counts from the bytes of a file. Fails for [`CountsFormat::Dump`], which is a directory.
pub fn counts_from_bytes(bytes: &[u8], format: CountsFormat, model: &Model) -> Result<CountsRead> {
    let bytes = without_mark(bytes);
    let all = |array| (array, Steps::All);
    let read = match format {
        CountsFormat::Dump => return Err(Error::InvalidArgument("a dump is a directory, not a file".into())),
        CountsFormat::SglangCount => {
            sglang::read(bytes, sglang::LOGICAL_COUNT).map(|array| (array, Steps::NotEmpty))
        }
        CountsFormat::SglangPt => {
            recording::read_counts(bytes, model.num_experts).map(|Recording { array, is_buffer }| {
                (array, if is_buffer { Steps::Buffer } else { Steps::All })
            })
        }
        CountsFormat::Lmdeploy => json::read_lists(bytes, false).map(all),
        CountsFormat::Npy => npy::read(bytes, false).map(all),
    };
    let (array, steps) = read.map_err(Error::InvalidDump)?;
    counts_from_array(&array, steps, model)
}

/// Which steps of an array to take.
#[derive(Clone, Copy)]
enum Steps {
    /// All of them: those without counts are idle iterations.
    All,
    /// Those with counts.
    NotEmpty,
    /// Those with counts, in the order of [`Ring`].
    Buffer,
}

/// Sums the records of the files in a directory, one a rank.
fn records_of(directory: &Path, model: &Model) -> Result<Recording> {
    let files = recording::files_of(directory).map_err(|source| Error::read(directory, source))?;
    let mut records = Records::new(model.num_experts);
    for path in files {
        let bytes = bytes_of(&path)?;
        let added = TorchFile::open(&bytes).and_then(|file| records.add(&file));
        added.map_err(|what| Error::InvalidDump(what).in_file(&path))?;
    }
    records.finish().map_err(|what| Error::InvalidDump(what).in_file(directory))
}

fn counts_from_array(array: &Array, taken: Steps, model: &Model) -> Result<CountsRead> {
    let ([steps, num_rows, num_experts], values) = array.steps().map_err(Error::InvalidDump)?;
    let sizes = Sizes { steps, num_rows, num_experts };
    let read = match values {
        Values::Whole(values) => sizes.arrange(values, taken, model).map(|(arranged, values)| {
            let stats = Stats::from_counts(arranged.summary(num_experts, model), values);
            arranged.read(Load::Counts(stats))
        }),
        Values::Real(values) => sizes.arrange(values, taken, model).map(|(arranged, values)| {
            let loads = Loads::new(arranged.summary(num_experts, model), values);
            arranged.read(Load::Fractions(loads))
        }),
    };
    let read = read.map_err(Error::InvalidDump)?;
    check_model(model, read.load.summary())?;
    Ok(read)
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

/// The sizes of an array whose rows are layers.
#[derive(Clone, Copy)]
struct Sizes {
    steps: usize,
    num_rows: usize,
    num_experts: usize,
}

/// Which steps and rows of an array were kept.
struct Arranged {
    layers: Vec<u32>,
    num_steps: usize,
    dense_layers: Vec<u32>,
    empty_steps: usize,
    first_step: Option<usize>,
}

impl Sizes {
    /// Chooses steps and layers, and orders the values as `[layers][steps][experts]`.
    fn arrange<T: Copy + Default + PartialEq>(
        self,
        values: &[T],
        taken: Steps,
        model: &Model,
    ) -> std::result::Result<(Arranged, Vec<T>), String> {
        let Sizes { steps, num_rows, num_experts } = self;
        let row_of =
            |step: usize, row: usize| &values[(step * num_rows + row) * num_experts..][..num_experts];
        let is_empty = |step: usize, row: usize| row_of(step, row).iter().all(|value| *value == T::default());
        let has_counts =
            || (0..steps).map(|step| (0..num_rows).any(|row| !is_empty(step, row))).collect::<Vec<_>>();
        let Ring { steps: kept, start: first_step } = match taken {
            Steps::All => Ring { steps: (0..steps).collect(), start: None },
            Steps::NotEmpty => Ring::without_order(&has_counts()),
            Steps::Buffer => Ring::new(&has_counts()),
        };
        if kept.is_empty() {
            return Err("every step has only zeros".into());
        }
        let is_dense = |row: usize| kept.iter().all(|&step| is_empty(step, row));

        let mut rows = model.layers_of_rows(num_rows)?;
        let mut dense_layers = Vec::new();
        match model.layers {
            Some(_) => {
                let other = (0..num_rows)
                    .find(|&row| !rows.iter().any(|&(_, picked)| picked == row) && !is_dense(row));
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
        let mut arranged = Vec::new();
        arranged.try_reserve_exact(size).map_err(|_| "out of memory".to_owned())?;
        for &(_, row) in &rows {
            kept.iter().for_each(|&step| arranged.extend_from_slice(row_of(step, row)));
        }
        let layers = rows.iter().map(|&(layer, _)| layer).collect();
        let (num_steps, empty_steps) = (kept.len(), steps - kept.len());
        Ok((Arranged { layers, num_steps, dense_layers, empty_steps, first_step }, arranged))
    }
}

impl Arranged {
    fn summary(&self, num_experts: usize, model: &Model) -> Summary {
        Summary {
            num_experts,
            experts_per_token: model.experts_per_token.unwrap_or(0),
            num_ranks: 1,
            num_files: 1,
            stage_ranks: vec![1],
            missing_ranks: Vec::new(),
            id_kind: Some(IdKind::Expert),
            layers: self.layers.clone(),
            rows: IterationRange { start: 0, stop: self.num_steps as u64 }.into(),
        }
    }

    fn read(self, load: Load) -> CountsRead {
        let Arranged { dense_layers, empty_steps, first_step, .. } = self;
        CountsRead { load, dense_layers, left_out: Vec::new(), empty_steps, first_step }
    }
}

/// Writes `stats` to a file, which is replaced in one step, or for [`CountsFormat::Dump`] to a directory without a dump.
///
/// SGLang's and LMDeploy's formats get a row for each of [`Model::num_layers`], with zeros for dense layers. LMDeploy's has the
/// sums over the iterations. An array has two axes if there is one iteration, else three. Where a dump's rows have several iterations, a step of SGLang's format and of an array is such a
/// row. [`CountsFormat::SglangPt`] is an [`Error::InvalidArgument`].
pub fn write_counts(stats: &Stats, path: &Path, format: CountsFormat, model: &Model) -> Result<()> {
    let stats = &*counts_of_layers(stats, model.layers)?;
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
        CountsFormat::SglangPt => Err(format.read_only()),
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
            // The planners of vLLM and SGLang take [layers][experts] alone.
            let shape = [steps, rows.len(), num_experts];
            let shape = if steps == 1 { &shape[1..] } else { &shape };
            AtomicFile::create(path)?
                .replace(|out| npy::write(out, shape, &mut cells(&rows, steps, num_experts)))
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
                "a dump needs experts_per_token, and the counts have none: set it in the options \
                 (--experts_per_token), or in eplb_stats_config"
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
