//! Opens a dump directory: finds its files and checks that they are complete and of one run.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::choose_rows::{all_rows, choose_rows};
use super::run_id;
use super::stages::{self, file_name};
use super::{
    DumpInfo, IdKind, MetaInfo, RankFile, RowRange, RunId, RunInfo, Stats, Summary, dumps_below, list_dumps,
    previous, sum,
};
use crate::error::{Error, Result};
use crate::threads;

/// Options of [`Dump::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The first iteration to read. `None`: the dump's first.
    pub iter_start: Option<u64>,
    /// The iteration after the last one to read. `None`: the dump's end.
    pub iter_stop: Option<u64>,
    /// Files `rank<R>` of the dump: the ranks of all pipeline stages. A dump with fewer or more is refused. `None` takes the
    /// dump's number. TensorRT-LLM's dumps have none, so the loss of their highest ranks is not detected.
    pub expected_ranks: Option<usize>,
    /// Accept a dump without some of these files: [`Summary::missing_ranks`].
    pub allow_missing_ranks: bool,
    /// What a dump counts that does not say it. Fails where the dump says the other.
    pub counts: Option<IdKind>,
    /// Threads that read. 0: one a core, at most 8.
    pub threads: usize,
}

/// A dump whose headers have been read and checked. Its counts have not been read.
#[derive(Debug)]
pub struct Dump {
    summary: Summary,
    files: Vec<RankFile>,
    threads: usize,
}

impl Dump {
    /// Reads the headers of the dump in `directory`.
    ///
    /// Fails with [`Error::InvalidDump`] or [`Error::IncompleteDump`], which name file, iteration and layer.
    pub fn open(directory: &Path, options: &LoadOptions) -> Result<Dump> {
        Dump::open_with(directory, options, |files, whole| {
            choose_rows(files, whole, options.iter_start, options.iter_stop)
        })
    }

    /// As [`Dump::open`], of files that may have different parts of the range. The rows are those of the whole range.
    pub(super) fn open_in_parts(directory: &Path, options: &LoadOptions) -> Result<Dump> {
        Dump::open_with(directory, options, |files, whole| Ok(whole.unwrap_or_else(|| all_rows(files))))
    }

    fn open_with(
        directory: &Path,
        options: &LoadOptions,
        choose: impl FnOnce(&[RankFile], Option<RowRange>) -> Result<RowRange>,
    ) -> Result<Dump> {
        let paths = rank_paths(directory)?;
        let meta = read_meta(directory)?;
        let threads = threads::resolve(options.threads);
        let ranks: Vec<u32> = paths.keys().copied().collect();
        let paths: Vec<PathBuf> = paths.into_values().collect();

        let declared = meta.as_ref().and_then(|meta| meta.eplb.as_ref());
        let num_files = match (options.expected_ranks, declared.map(|info| info.files())) {
            (Some(expected), Some(declared)) if expected != declared => {
                let name = if declared_stages(&meta) { "num_files" } else { "num_ranks" };
                let message =
                    format!("{expected} ranks expected, {name} in {} is {declared}", MetaInfo::FILE_NAME);
                return Err(Error::InvalidDump(message).in_file(directory));
            }
            (Some(n), _) | (None, Some(n)) => n,
            (None, None) => ranks[ranks.len() - 1] as usize + 1,
        };
        let missing_ranks = missing(directory, &ranks, num_files, options.allow_missing_ranks)?;
        let num_experts = meta.as_ref().map(|meta| meta.num_experts);
        let files = RankFile::open_all(&paths, num_experts, threads)?;
        let whole = declared.map(|info| info.rows()).transpose()?;
        check_runs(directory, &files, &ranks, declared.zip(whole))?;
        let num_experts = match num_experts {
            Some(num_experts) => num_experts,
            None => experts_of_tensors(&files).map_err(|e| e.in_file(directory))?,
        };
        let layers = stages::check_layers(&files, declared, !missing_ranks.is_empty())
            .map_err(|e| e.in_file(directory))?;
        let rows = choose(&files, whole).map_err(|e| e.in_file(directory))?;
        if !missing_ranks.is_empty() {
            log::warn!(
                "{}: {} of {num_files} ranks have no file and are left out: {missing_ranks:?}{}",
                directory.display(),
                missing_ranks.len(),
                previous::of_missing_ranks(directory, &ranks, num_files)
            );
        }
        let stage_ranks = stages::stage_ranks(&files, num_files, missing_ranks.len());
        let summary = Summary {
            experts_per_token: meta.as_ref().map_or(0, |meta| meta.num_experts_per_token),
            num_experts,
            num_ranks: stages::common_size(&stage_ranks),
            num_files,
            stage_ranks,
            missing_ranks,
            id_kind: what_is_counted(declared, options.counts).map_err(|e| e.in_file(directory))?,
            layers,
            rows: rows.into(),
        };
        Ok(Dump { summary, files, threads })
    }

    /// The sizes of the dump.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Its files, by rank.
    pub fn files(&self) -> &[RankFile] {
        &self.files
    }

    /// Reads the counts and sums them over ranks.
    ///
    /// `progress` is called on this thread with the bytes read so far and in all. An error from it stops the reading and is
    /// returned. Files are read in bounded pieces, never mapped. Truncating a mapped file would kill the process by SIGBUS.
    pub fn read(self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Stats> {
        let counts = self.read_counts(progress)?;
        Ok(Stats::from_counts(self.summary, counts))
    }

    /// As [`Dump::read`]. Returns the counts, `[layers][rows][experts]`.
    pub(super) fn read_counts(&self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Vec<u64>> {
        let Summary { layers, rows, .. } = &self.summary;
        self.read_files(0..self.files.len(), layers, rows.first(), progress)
    }

    /// The chosen rows.
    pub(super) fn rows(&self) -> RowRange {
        self.summary.rows.first()
    }

    /// The counts of some files in some rows, `[layers][rows][experts]`.
    pub(super) fn read_files(
        &self,
        files: Range<usize>,
        layers: &[u32],
        rows: RowRange,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Vec<u64>> {
        sum::sum(&self.files[files], self.summary.num_experts, layers, rows, self.threads, progress)
    }

    /// The bytes that [`Dump::read`] reads.
    pub(super) fn num_bytes(&self) -> u64 {
        let rows = self.summary.rows.first();
        let bytes_of = |file: &RankFile| -> u64 {
            let wanted = file.tensors.iter().filter(|tensor| rows.starting_at(tensor.iteration).is_some());
            wanted.map(|tensor| file.tensor_bytes(tensor) as u64).sum()
        };
        self.files.iter().map(bytes_of).sum()
    }
}

/// What the dump counts: as it says, or as the caller does. Fails where they differ.
fn what_is_counted(declared: Option<&DumpInfo>, given: Option<IdKind>) -> Result<Option<IdKind>> {
    match (declared.map(|info| info.id_kind), given) {
        (Some(declared), Some(given)) if declared != given => Err(Error::InvalidArgument(format!(
            "it counts {}, as its {} says, not {}; leave out what the dump says itself",
            declared.name(),
            MetaInfo::FILE_NAME,
            given.name()
        ))),
        (declared, given) => Ok(declared.or(given)),
    }
}

/// The files `rank<R>.safetensors` of a directory, by rank. Skips files of raw ids and all others.
fn rank_paths(directory: &Path) -> Result<BTreeMap<u32, PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(|e| Error::read(directory, e))? {
        names.push(entry.map_err(|e| Error::read(directory, e))?.file_name());
    }
    names.sort();
    let mut paths = BTreeMap::new();
    for name in &names {
        let Some(digits) = name
            .to_str()
            .and_then(|name| name.strip_prefix("rank")?.strip_suffix(".safetensors"))
            .filter(|id| !id.ends_with("_raw"))
        else {
            continue;
        };
        let path = directory.join(name);
        let rank = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok()).flatten();
        let Some(rank) = rank else {
            let message = "invalid file name, rank<R>.safetensors expected with R the rank";
            return Err(Error::InvalidDump(message.into()).in_file(&path));
        };
        if let Some(first) = paths.insert(rank, path.clone()) {
            let message = format!("rank {rank} has two files, the other one is {}", first.display());
            return Err(Error::InvalidDump(message).in_file(&path));
        }
    }
    if paths.is_empty() {
        let below = dumps_below(directory);
        let has_meta = directory.join(MetaInfo::FILE_NAME).exists();
        let previous = previous::of_missing_ranks(directory, &[], usize::MAX);
        return Err(Error::IncompleteDump(match (&below[..], has_meta) {
            ([_, ..], false) => format!(
                "{} has no {}; dumps are in {}: pass one of them{previous}",
                directory.display(),
                MetaInfo::FILE_NAME,
                list_dumps(&below)
            ),
            _ => format!(
                "{}: no rank<R>.safetensors in this directory; give the directory to which EXPERT_STATISTIC_PATH was set{previous}",
                directory.display()
            ),
        }));
    }
    Ok(paths)
}

/// Reads the meta file. Returns `None` for TensorRT-LLM's `null`.
fn read_meta(directory: &Path) -> Result<Option<MetaInfo>> {
    let path = directory.join(MetaInfo::FILE_NAME);
    match MetaInfo::read(directory) {
        Err(Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let below = match &dumps_below(directory)[..] {
                [] => String::new(),
                below => format!("; other dumps are in {}", list_dumps(below)),
            };
            Err(Error::IncompleteDump(format!(
                "{}: missing beside the rank files; rank 0 writes it, copy it here{below}{}",
                path.display(),
                previous::of_missing_file(&path)
            )))
        }
        Ok(None) => {
            log::warn!(
                "{}: null, as TensorRT-LLM's rank 0 writes it without layers; the experts per token are unknown",
                path.display()
            );
            Ok(None)
        }
        other => other,
    }
}

/// Whether the meta file has a number of files that differs from that of the ranks.
fn declared_stages(meta: &Option<MetaInfo>) -> bool {
    meta.as_ref().and_then(|meta| meta.eplb.as_ref()).is_some_and(|info| info.files() != info.num_ranks)
}

/// The number of experts where the meta file does not say it. Fails where two files differ.
fn experts_of_tensors(files: &[RankFile]) -> Result<usize> {
    let mut with_layers = files.iter().filter(|file| !file.layers.is_empty());
    let Some(first) = with_layers.next() else { return Ok(0) };
    match with_layers.find(|file| file.num_experts != first.num_experts) {
        None => Ok(first.num_experts),
        Some(other) => Err(Error::InvalidDump(format!(
            "the tensors of {} have {} values, those of {} {}: the files are of different runs",
            file_name(other),
            other.num_experts,
            file_name(first),
            first.num_experts
        ))),
    }
}

fn missing(directory: &Path, ranks: &[u32], num_files: usize, allowed: bool) -> Result<Vec<u32>> {
    if let Some(rank) = ranks.iter().find(|&&rank| rank as usize >= num_files) {
        let message = format!("rank {rank} has a file, but the run had {num_files} ranks");
        return Err(Error::InvalidDump(message).in_file(directory));
    }
    // A stray file rank4000000000.safetensors must not cost four billion steps.
    let num_missing = num_files - ranks.len();
    let absent = (0..=u32::MAX).take(num_files).filter(|rank| ranks.binary_search(rank).is_err());
    if num_missing > 0 && (!allowed || num_missing > ranks.len().max(1 << 16)) {
        let first: Vec<u32> = absent.take(8).collect();
        return Err(Error::IncompleteDump(format!(
            "{}: {num_missing} of {num_files} ranks have no file (rank {}{}); copy them here, or allow missing ranks{}",
            directory.display(),
            first.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
            if num_missing > first.len() { ", ..." } else { "" },
            previous::of_missing_ranks(directory, ranks, num_files)
        )));
    }
    Ok(if num_missing > 0 { absent.collect() } else { Vec::new() })
}

/// Checks that the files are of one run, and that eplb wrote either all of them and the meta file, or none.
fn check_runs(
    directory: &Path,
    files: &[RankFile],
    ranks: &[u32],
    declared: Option<(&DumpInfo, RowRange)>,
) -> Result<()> {
    let Some(declared) = declared else {
        return match files.iter().find(|file| file.run.is_some()) {
            None => Ok(()),
            Some(file) => mixed(format!("written by eplb and {} is not", MetaInfo::FILE_NAME))
                .map_err(|e| e.in_file(&file.path)),
        };
    };
    for (file, &rank) in files.iter().zip(ranks) {
        check_run(file, rank, declared).map_err(|e| e.in_file(&file.path))?;
    }
    let ids: Vec<(&Path, Option<RunId>)> =
        files.iter().map(|file| (&*file.path, file.run.as_ref().and_then(RunInfo::run_id))).collect();
    run_id::check(directory, &ids)
}

fn mixed(what: String) -> Result<()> {
    Err(Error::InvalidDump(format!("{what}: the files are of different runs")))
}

/// Checks that a file is of the same run as the meta file, and has what its metadata lists.
fn check_run(file: &RankFile, rank: u32, (info, rows): (&DumpInfo, RowRange)) -> Result<()> {
    let Some(run) = &file.run else {
        return mixed(format!("not written by eplb and {} is", MetaInfo::FILE_NAME));
    };
    if run.rank != rank {
        return Err(Error::InvalidDump(format!("the rank in its __metadata__ is {}", run.rank)));
    }
    // Pipeline stages may have different numbers of ranks. Then the number of files is another one, and the same for all.
    let has_stages = info.files() != info.num_ranks || run.num_files != run.num_ranks;
    let same_ranks = run.num_files == info.files() && (run.num_ranks == info.num_ranks || has_stages);
    if run.rows != rows || run.id_kind != info.id_kind || !same_ranks {
        let contents = |id_kind: IdKind, rows: RowRange, num_ranks: usize, num_files: usize| {
            let files = if num_files == num_ranks { String::new() } else { format!(" in {num_files} files") };
            format!("{} in iterations {rows} on {num_ranks} ranks{files}", id_kind.name())
        };
        return mixed(format!(
            "it has counts of {}, {} lists {}",
            contents(run.id_kind, run.rows, run.num_ranks, run.num_files),
            MetaInfo::FILE_NAME,
            contents(info.id_kind, rows, info.num_ranks, info.files())
        ));
    }
    if run.ep_rank as usize >= run.num_ranks {
        return Err(Error::InvalidDump(format!(
            "the ep_rank in its __metadata__ is {}, num_ranks {}",
            run.ep_rank, run.num_ranks
        )));
    }
    if let Some(layer) = run.layers.iter().find(|layer| file.layers.binary_search(layer).is_err()) {
        return Err(Error::IncompleteDump(format!("layer {layer} is missing")));
    }
    if let Some(layer) = file.layers.iter().find(|layer| run.layers.binary_search(layer).is_err()) {
        return Err(Error::InvalidDump(format!(
            "it has layer {layer}, which its __metadata__ does not list"
        )));
    }
    let (found, listed) = (file.rows.iterations, run.rows.iterations);
    if !found.is_empty() && (found.start < listed.start || found.stop > listed.stop) {
        return Err(Error::InvalidDump(format!(
            "it has iterations {}, its __metadata__ has {}",
            file.rows, run.rows
        )));
    }
    if let Some(counted) = run.counted.filter(|_| !found.is_empty()) {
        let (first, len) = run.rows.rows.rows_of(listed, counted);
        if (run.rows.first_iteration(first), len) != (found.start, file.rows.len()) {
            return Err(Error::InvalidDump(format!(
                "it has iterations {}, but by its __metadata__ {counted} of {} were counted",
                file.rows, run.rows
            )));
        }
    }
    Ok(())
}
