//! Merges dumps of one recording, such as those before and after a restart, into one.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::choose_rows::counted;
use super::dump_set::agree;
use super::merge_rows::{Conflict, Overlap, Piece, Segment, segments};
use super::stages::{file_name, numbers_in_stages};
use super::{
    Counts, Dump, FileNumber, IdKind, IterationRange, LoadOptions, MetaInfo, RankDump, RankFile, RowRange,
    RunId, Summary,
};
use crate::error::{Error, Result, try_zeroed};

/// What becomes of iterations that no dump has, or not all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gaps {
    /// They are an error.
    #[default]
    Refuse,
    /// They are left out of all ranks, and later iterations are numbered down.
    Close,
}

/// The input, output and options of [`merge`].
#[derive(Debug, Clone, Copy)]
pub struct MergeConfig<'a> {
    /// The directories of the dumps.
    pub paths: &'a [PathBuf],
    /// The directory to write, without a dump. It is created if missing.
    pub output_path: &'a Path,
    /// What becomes of iterations that several dumps have.
    pub overlap: Overlap,
    /// What becomes of iterations that no dump has, or not all ranks.
    pub gaps: Gaps,
    /// What the dumps count, where they do not say it.
    pub counts: Option<IdKind>,
    /// Experts that each token chooses, where the dumps do not say it.
    pub experts_per_token: Option<usize>,
    /// Threads that read. 0: one a core, at most 8.
    pub threads: usize,
}

/// The result of [`merge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Files of the dump. One if the ranks of the dumps differ: it has the sums over ranks.
    pub num_files: usize,
    /// The ranks of each dump, in words, if they differ.
    pub differing_ranks: Option<Vec<String>>,
    /// Experts of a layer, or slots.
    pub num_experts: usize,
    /// What was counted.
    pub id_kind: IdKind,
    /// The layers' numbers.
    pub layers: Vec<u32>,
    /// The rows.
    pub rows: RowRange,
    /// The iterations that the dumps were to have, if the first or last of them are in no dump. `None` where they are numbered
    /// anew, by [`Overlap::Append`] or [`Gaps::Close`].
    pub declared: Option<IterationRange>,
    /// The number of rows left out, by [`Gaps::Close`].
    pub left_out: u64,
}

/// Merges dumps into one that is complete, and writes it. `progress` has the bytes read so far and those of all dumps.
///
/// Each rank's file has the counts of that rank, unless ranks differ between dumps: then one file has the sums over ranks. A dump
/// that was cut short is read as far as it goes. Parts of a row add up. A row has the same iterations on every rank.
///
/// Fails with [`Error::InvalidArgument`] if the dumps are not of one model, or their rows differ, and with
/// [`Error::IncompleteDump`] for iterations that several dumps or none have, unless the config says what becomes of them.
pub fn merge(config: &MergeConfig<'_>, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Merged> {
    if config.output_path.join(MetaInfo::FILE_NAME).exists() {
        let message = "it already has a dump; choose another directory, or remove it";
        let exists = io::Error::new(io::ErrorKind::AlreadyExists, message);
        return Err(Error::write(config.output_path, exists));
    }
    let inputs = Inputs::open(config)?;
    let segments = inputs.segments(config)?;
    let complete = || segments.iter().filter(|segment| segment.is_complete());
    let num_rows: u64 = complete().map(|segment| segment.rows.end - segment.rows.start).sum();
    let (Some(first), Some(last)) = (complete().next(), complete().next_back()) else {
        return Err(Error::IncompleteDump(
            "no row is in the files of all ranks, so nothing is left to merge".into(),
        ));
    };
    let rows = inputs.merged_rows(first.rows.start, last.rows.end, num_rows);
    let total = inputs.dumps.iter().map(Dump::num_bytes).sum::<u64>();
    let mut done = 0;
    // File 0 comes with the meta file, so it is the last one: until then, the directory is no dump.
    for part in (0..inputs.num_parts).rev() {
        let counts = inputs.counts(part, &segments, num_rows, &mut |bytes| {
            done += bytes;
            progress(done.min(total), total)
        })?;
        inputs.write(config.output_path, part, rows, &counts)?;
    }
    progress(total, total)?;
    let summary = inputs.dumps[0].summary();
    let all: u64 = segments.iter().map(|segment| segment.rows.end - segment.rows.start).sum();
    Ok(Merged {
        num_files: inputs.num_parts,
        differing_ranks: inputs
            .summed
            .then(|| inputs.dumps.iter().map(|dump| dump.summary().ranks_text()).collect()),
        num_experts: summary.num_experts,
        id_kind: inputs.id_kind,
        layers: summary.layers.clone(),
        rows,
        declared: inputs
            .declared(config.overlap)
            .filter(|&declared| all == num_rows && lacks(rows, declared)),
        left_out: all - num_rows,
    })
}

/// Returns whether iterations that are counted in a `declared` range are not among the `rows`.
fn lacks(rows: RowRange, declared: IterationRange) -> bool {
    let whole = RowRange { iterations: declared, rows: rows.rows };
    // Between counted iterations, ranges may end anywhere.
    whole.len() != rows.len() || rows.rows.stride() == 1 && declared != rows.iterations
}

/// The dumps to merge. A part is what one file of the output is made from: a file of each dump, or all of them.
struct Inputs<'a> {
    paths: &'a [PathBuf],
    dumps: Vec<Dump>,
    /// Added to a dump's row for the row of all dumps.
    offsets: Vec<i128>,
    id_kind: IdKind,
    experts_per_token: usize,
    num_parts: usize,
    /// Whether ranks differ, so that a part is all files of a dump.
    summed: bool,
}

impl<'a> Inputs<'a> {
    fn open(config: &MergeConfig<'a>) -> Result<Inputs<'a>> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        let paths = config.paths;
        let options = LoadOptions { counts: config.counts, threads: config.threads, ..Default::default() };
        let open = |path: &PathBuf| Dump::open_in_parts(path, &options);
        let dumps = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        let Some(first) = dumps.first() else {
            return refuse("no dump is given; at least one expected".into());
        };
        for (path, dump) in paths.iter().zip(&dumps) {
            agree((&paths[0], first.summary()), (path, dump.summary()))?;
            let (rows, other) = (first.rows(), dump.rows());
            if rows.rows != other.rows {
                return refuse(format!(
                    "{} has {}, {} {}: rows of different lengths cannot be merged; read the dumps together instead, \
                     --expert_statistic_path once for each",
                    path.display(),
                    other.unit(),
                    paths[0].display(),
                    rows.unit()
                ));
            }
            if dump.summary().id_kind.is_none() {
                return refuse(format!(
                    "{}: it does not say whether it counts experts or slots, which the merged dump must: pass --counts",
                    path.display()
                ));
            }
        }
        let known = dumps.iter().map(|dump| dump.summary().experts_per_token).max().unwrap_or(0);
        let experts_per_token = match (known, config.experts_per_token) {
            (0, None) => {
                return refuse(format!(
                    "{}: it does not say how many experts a token chooses, which the merged dump must: pass \
                     --experts_per_token",
                    paths[0].display()
                ));
            }
            (0, Some(given)) => given,
            (known, Some(given)) if known != given => {
                return refuse(format!("experts_per_token is {given}, the dumps have {known}"));
            }
            (known, _) => known,
        };
        let summed = dumps.iter().any(|dump| !same_ranks(first, dump));
        let num_parts = if summed { 1 } else { first.files().len() };
        let id_kind = first.summary().id_kind.unwrap_or_default();
        let mut inputs =
            Inputs { paths, offsets: Vec::new(), id_kind, experts_per_token, num_parts, summed, dumps };
        inputs.offsets = inputs.offsets(config.overlap)?;
        Ok(inputs)
    }

    /// The iterations that the dumps were to have.
    fn declared(&self, overlap: Overlap) -> Option<IterationRange> {
        let ranges = self.dumps.iter().map(|dump| dump.rows().iterations);
        let whole =
            ranges.reduce(|a, b| IterationRange { start: a.start.min(b.start), stop: a.stop.max(b.stop) });
        whole.filter(|_| overlap != Overlap::Append)
    }

    /// The files of a part.
    fn files(&self, dump: usize, part: usize) -> Range<usize> {
        if self.summed { 0..self.dumps[dump].files().len() } else { part..part + 1 }
    }

    /// The iterations that all files of a part have, as positions from the first row of its dump on. `None` without layers.
    fn held(&self, dump: usize, part: usize) -> Option<Range<u64>> {
        let whole = self.dumps[dump].rows();
        let files =
            self.dumps[dump].files()[self.files(dump, part)].iter().filter(|file| !file.layers.is_empty());
        let range = files
            .map(|file| whole.counted(counted(file, whole)))
            .reduce(|a, b| IterationRange { start: a.start.max(b.start), stop: a.stop.min(b.stop) })?;
        let position = |iteration: u64| (iteration - whole.iterations.start).div_ceil(whole.rows.stride());
        Some(position(range.start)..position(range.stop)).filter(|positions| !positions.is_empty())
    }

    /// The offset of each dump's rows. Fails where rows do not meet.
    fn offsets(&self, overlap: Overlap) -> Result<Vec<i128>> {
        let start = |dump: &Dump| dump.rows().iterations.start;
        if overlap == Overlap::Append {
            let bucket = self.dumps[0].rows().rows.bucket();
            let mut next = 0i128;
            let of_dump = |dump| {
                let held = || (0..self.num_parts).filter_map(|part| self.held(dump, part));
                let first = held().map(|held| held.start / bucket).min().unwrap_or(0);
                let last = held().map(|held| held.end.div_ceil(bucket)).max().unwrap_or(first);
                // The first dump keeps its numbers.
                let offset = if dump == 0 { 0 } else { next - i128::from(first) };
                next = offset + i128::from(last);
                offset
            };
            return Ok((0..self.dumps.len()).map(of_dump).collect());
        }
        let origin = self.dumps.iter().map(start).min().unwrap_or(0);
        let step = self.dumps[0].rows().step();
        let offset = |(path, dump): (&PathBuf, &Dump)| {
            let distance = start(dump) - origin;
            if !distance.is_multiple_of(step) {
                return Err(Error::InvalidArgument(format!(
                    "{} has {} from iteration {} on, others from {origin}: their rows do not meet; number them on \
                     from each other (overlap append), or read the dumps together, --expert_statistic_path once for each",
                    path.display(),
                    dump.rows().unit(),
                    start(dump)
                )));
            }
            Ok(i128::from(distance / step))
        };
        self.paths.iter().zip(&self.dumps).map(offset).collect()
    }

    /// The first iteration of row 0 of all dumps.
    fn origin(&self) -> i128 {
        let rows = self.dumps[0].rows();
        i128::from(rows.iterations.start) - self.offsets[0] * i128::from(rows.step())
    }

    /// The iteration at a position.
    fn iteration(&self, position: u64) -> i128 {
        self.origin() + i128::from(position) * i128::from(self.dumps[0].rows().rows.stride())
    }

    fn segments(&self, config: &MergeConfig<'_>) -> Result<Vec<Segment>> {
        let bucket = self.dumps[0].rows().rows.bucket();
        let piece = |dump: usize, part| {
            let held = self.held(dump, part)?;
            let shift = self.offsets[dump] * i128::from(bucket);
            let shifted = |position: u64| u64::try_from(i128::from(position) + shift).unwrap_or(u64::MAX);
            Some(Piece { dump, positions: shifted(held.start)..shifted(held.end) })
        };
        let pieces_of = |part| (0..self.dumps.len()).filter_map(|dump| piece(dump, part)).collect();
        let parts: Vec<usize> = (0..self.num_parts).filter(|&part| !self.layers(part).is_empty()).collect();
        let pieces: Vec<Vec<Piece>> = parts.iter().map(|&part| pieces_of(part)).collect();
        let found = segments(&pieces, bucket, config.overlap)
            .map_err(|conflict| self.overlapping(config.overlap, &parts, &conflict))?;
        let gap = found.iter().find(|segment| !segment.is_complete() && config.gaps == Gaps::Refuse);
        match gap {
            Some(gap) => Err(self.missing(&parts, gap)),
            None => Ok(found.into_iter().map(|segment| self.of_all_parts(&parts, segment)).collect()),
        }
    }

    /// A segment with the sources of every part. Those without layers have none.
    fn of_all_parts(&self, parts: &[usize], segment: Segment) -> Segment {
        if parts.len() == self.num_parts {
            return segment;
        }
        // What has no counts comes from no dump in particular.
        let complete = segment.is_complete();
        let mut sources = vec![if complete { vec![0] } else { Vec::new() }; self.num_parts];
        for (&part, of_part) in parts.iter().zip(segment.sources) {
            sources[part] = of_part;
        }
        Segment { rows: segment.rows, sources }
    }

    #[cold]
    fn overlapping(&self, overlap: Overlap, parts: &[usize], conflict: &Conflict) -> Error {
        let Conflict { rank, dumps: [one, other], positions } = conflict;
        let way_out = match overlap {
            Overlap::First | Overlap::Last => {
                "they are a part of a row of several iterations, which cannot be taken out of it; add them up (overlap add), or \
                 number the second on from the end of the first (append)"
            }
            _ => {
                "say which dump counts (overlap first or last), add them up (add), or number the second on from the end of \
                 the first (append)"
            }
        };
        Error::IncompleteDump(format!(
            "{} and {} both have iterations {}..{}{}: {way_out}",
            self.paths[*one].display(),
            self.paths[*other].display(),
            self.iteration(positions.start),
            self.iteration(positions.end - 1) + 1,
            self.in_file(parts[*rank])
        ))
    }

    #[cold]
    fn missing(&self, parts: &[usize], gap: &Segment) -> Error {
        let bucket = self.dumps[0].rows().rows.bucket();
        let without: Vec<usize> = parts
            .iter()
            .zip(&gap.sources)
            .filter(|(_, sources)| sources.is_empty())
            .map(|(&part, _)| part)
            .collect();
        let who = match without.len() == parts.len() {
            true => "no dump has".to_owned(),
            false => format!("no dump has{}, as others have,", self.in_file(without[0])),
        };
        Error::IncompleteDump(format!(
            "{who} all of iterations {}..{}: add the dump that has them, or leave them out (gaps close), which numbers later \
             iterations down",
            self.iteration(gap.rows.start * bucket),
            self.iteration(gap.rows.end * bucket - 1) + 1,
        ))
    }

    /// ` in rank3.safetensors`, if files are merged one by one.
    fn in_file(&self, part: usize) -> String {
        match self.summed {
            true => String::new(),
            false => format!(" in {}", file_name(&self.dumps[0].files()[part])),
        }
    }

    /// The rows of the output: `num_rows` rows that begin with the row `first`, and end with the one before `end`.
    fn merged_rows(&self, first: u64, end: u64, num_rows: u64) -> RowRange {
        let whole = self.dumps[0].rows();
        let (bucket, stride) = (whole.rows.bucket(), whole.rows.stride());
        let pieces = (0..self.dumps.len()).flat_map(|dump| (0..self.num_parts).map(move |part| (dump, part)));
        let last = pieces.filter_map(|(dump, part)| {
            Some(i128::from(self.held(dump, part)?.end) + self.offsets[dump] * i128::from(bucket))
        });
        let last = last.max().unwrap_or(0).min(i128::from(end) * i128::from(bucket));
        // Positions in the last row, which may have fewer.
        let in_last = (last - i128::from(end - 1) * i128::from(bucket)) as u64;
        let start = self.iteration(first * bucket) as u64;
        let stop = start + (num_rows - 1) * whole.step() + (in_last - 1) * stride + 1;
        RowRange { iterations: IterationRange { start, stop }, rows: whole.rows }
    }

    /// The layers of a part.
    fn layers(&self, part: usize) -> &[u32] {
        match self.summed {
            true => &self.dumps[0].summary().layers,
            false => &self.dumps[0].files()[part].layers,
        }
    }

    /// The counts of a part, `[rows][layers][experts]`.
    fn counts(
        &self,
        part: usize,
        segments: &[Segment],
        num_rows: u64,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Vec<u64>> {
        let (layers, num_experts) = (self.layers(part), self.dumps[0].summary().num_experts);
        let row_len = layers.len() * num_experts;
        let len = usize::try_from(num_rows).ok().and_then(|rows| rows.checked_mul(row_len));
        let mut merged = try_zeroed::<u64>(len, "the counts of a merged file")?;
        if layers.is_empty() {
            return Ok(merged);
        }
        let mut rest = &mut merged[..];
        for segment in segments.iter().filter(|segment| segment.is_complete()) {
            let num_rows = (segment.rows.end - segment.rows.start) as usize;
            let rows = rest
                .split_off_mut(..num_rows * row_len)
                .ok_or_else(|| Error::Internal("merged rows".into()))?;
            for &dump in &segment.sources[part] {
                let whole = self.dumps[dump].rows();
                let own_row = |row: u64| (i128::from(row) - self.offsets[dump]) as u64;
                let start = whole.first_iteration(own_row(segment.rows.start));
                let stop = whole.first_iteration(own_row(segment.rows.end)).min(whole.iterations.stop);
                let own = RowRange { iterations: IterationRange { start, stop }, ..whole };
                let mut before = 0;
                let counts =
                    self.dumps[dump].read_files(self.files(dump, part), layers, own, &mut |done, _| {
                        let more = done - before;
                        before = done;
                        progress(more)
                    })?;
                add(rows, &counts, (num_rows, layers.len(), num_experts)).map_err(|(row, layer)| {
                    let iteration = whole.first_iteration(own_row(segment.rows.start + row as u64));
                    Error::InvalidDump(format!(
                        "iteration {iteration} of layer {}: the sum over the dumps overflows 63 bits",
                        layers[layer]
                    ))
                    .in_file(&self.paths[dump])
                })?;
            }
        }
        Ok(merged)
    }

    fn write(&self, directory: &Path, part: usize, rows: RowRange, counts: &[u64]) -> Result<()> {
        let first = &self.dumps[0];
        let Summary { num_experts, num_files, .. } = *first.summary();
        let run_id = run_of(first).filter(|&id| self.dumps.iter().all(|dump| run_of(dump) == Some(id)));
        let (rank, num_ranks) = match self.summed {
            true => (0, 1),
            false => match &first.files()[part].run {
                Some(run) => (run.ep_rank, run.num_ranks),
                None => numbers_in_stages(first.files(), part),
            },
        };
        let file = (!self.summed).then_some(FileNumber { rank: part as u32, num_files });
        let dump = RankDump {
            rank,
            num_ranks,
            file,
            num_experts,
            experts_per_token: self.experts_per_token,
            id_kind: self.id_kind,
            iterations: rows.iterations,
            held: rows.iterations,
            rows: rows.rows,
            layers: self.layers(part),
            counts: Counts::U64(counts),
            run_id,
        };
        dump.write(directory)
    }
}

/// The name of the run that a dump is of.
fn run_of(dump: &Dump) -> Option<RunId<'_>> {
    dump.files()[0].run.as_ref()?.run_id()
}

/// Whether two dumps have the same files: the same layers, and the same ranks where both say them.
fn same_ranks(first: &Dump, second: &Dump) -> bool {
    let same = |(first, second): (&RankFile, &RankFile)| {
        let ranks = |file: &RankFile| file.run.as_ref().map(|run| (run.ep_rank, run.num_ranks));
        first.layers == second.layers
            && ranks(first).zip(ranks(second)).is_none_or(|(first, second)| first == second)
    };
    first.files().len() == second.files().len() && first.files().iter().zip(second.files()).all(same)
}

/// Adds counts `[layers][rows][experts]` to `merged`, `[rows][layers][experts]`. Fails with the row and the layer's index of a sum
/// of 2^63 or more.
fn add(
    merged: &mut [u64],
    counts: &[u64],
    (num_rows, num_layers, num_experts): (usize, usize, usize),
) -> std::result::Result<(), (usize, usize)> {
    for (index, counts) in counts.chunks_exact(num_experts).enumerate() {
        let (layer, row) = (index / num_rows, index % num_rows);
        let cell = &mut merged[(row * num_layers + layer) * num_experts..][..num_experts];
        for (sum, &count) in cell.iter_mut().zip(counts) {
            *sum = sum.checked_add(count).filter(|&sum| sum <= i64::MAX as u64).ok_or((row, layer))?;
        }
    }
    Ok(())
}
