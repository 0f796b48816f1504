//! Opens a dump directory: finds its files and checks that they are complete and of one run.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{IterationRange, MetaInfo, RankFile, Stats, Summary, sum};
use crate::error::{Error, Result, shortened};
use crate::threads;

/// Options of [`Dump::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The first iteration to read. `None`: the dump's first.
    pub iter_start: Option<u64>,
    /// The iteration after the last one to read. `None`: the dump's end.
    pub iter_stop: Option<u64>,
    /// Ranks of the run. A dump with fewer or more is refused. `None` takes the dump's number. TensorRT-LLM's dumps have none, so
    /// the loss of their highest ranks is not detected.
    pub expected_ranks: Option<usize>,
    /// Accept a dump without the files of some ranks: [`Summary::missing_ranks`].
    pub allow_missing_ranks: bool,
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
        let paths = rank_paths(directory)?;
        let meta = read_meta(directory)?;
        let threads = threads::resolve(options.threads);
        let ranks: Vec<u32> = paths.keys().copied().collect();
        let paths: Vec<PathBuf> = paths.into_values().collect();

        let declared_ranks = meta.eplb.as_ref().map(|info| info.num_ranks);
        let num_ranks = match (options.expected_ranks, declared_ranks) {
            (Some(expected), Some(declared)) if expected != declared => {
                let message =
                    format!("{expected} ranks expected, num_ranks in {} is {declared}", MetaInfo::FILE_NAME);
                return Err(Error::InvalidDump(message).in_file(directory));
            }
            (Some(n), _) | (None, Some(n)) => n,
            (None, None) => ranks[ranks.len() - 1] as usize + 1,
        };
        let missing_ranks = missing(directory, &ranks, num_ranks, options.allow_missing_ranks)?;
        let files =
            threads::map(paths.len(), threads, |i| RankFile::open(&paths[i], Some(meta.num_experts)))?;
        for (file, &rank) in files.iter().zip(&ranks) {
            check_run(file, rank, &meta, &files[0]).map_err(|e| e.in_file(&file.path))?;
        }
        let iterations = choose_iterations(&files, &meta, options).map_err(|e| e.in_file(directory))?;
        let layers =
            check_layers(&files, &meta, !missing_ranks.is_empty()).map_err(|e| e.in_file(directory))?;
        if !missing_ranks.is_empty() {
            log::warn!(
                "{}: {} of {num_ranks} ranks have no file and are left out: {missing_ranks:?}",
                directory.display(),
                missing_ranks.len()
            );
        }
        let summary = Summary {
            experts_per_token: meta.num_experts_per_token,
            num_experts: meta.num_experts,
            num_ranks,
            missing_ranks,
            id_kind: meta.eplb.as_ref().map(|info| info.id_kind).unwrap_or_default(),
            layers,
            iterations,
        };
        Ok(Dump { summary, files, threads })
    }

    /// The sizes of the dump.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Reads the counts and sums them over ranks.
    ///
    /// `progress` is called on this thread with the bytes read so far and in all. An error from it stops the reading and is
    /// returned. Files are read in bounded pieces, never mapped. Truncating a mapped file would kill the process by SIGBUS.
    pub fn read(self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Stats> {
        let Summary { layers, iterations, .. } = &self.summary;
        let counts = sum::sum(&self.files, layers, *iterations, self.threads, progress)?;
        Ok(Stats { summary: self.summary, counts })
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
        return Err(Error::IncompleteDump(format!(
            "{}: no rank<R>.safetensors in this directory; give the directory to which EXPERT_STATISTIC_PATH was set",
            directory.display()
        )));
    }
    Ok(paths)
}

fn read_meta(directory: &Path) -> Result<MetaInfo> {
    match MetaInfo::read(directory) {
        Err(Error::Read { path, source }) if source.kind() == ErrorKind::NotFound => {
            Err(Error::IncompleteDump(format!(
                "{}: missing beside the rank files; rank 0 writes it, copy it here",
                path.display()
            )))
        }
        other => other,
    }
}

fn missing(directory: &Path, ranks: &[u32], num_ranks: usize, allowed: bool) -> Result<Vec<u32>> {
    if let Some(rank) = ranks.iter().find(|&&rank| rank as usize >= num_ranks) {
        let message = format!("rank {rank} has a file, but the run had {num_ranks} ranks");
        return Err(Error::InvalidDump(message).in_file(directory));
    }
    // A stray file rank4000000000.safetensors must not cost four billion steps.
    let num_missing = num_ranks - ranks.len();
    let absent = (0..=u32::MAX).take(num_ranks).filter(|rank| ranks.binary_search(rank).is_err());
    if num_missing > 0 && (!allowed || num_missing > ranks.len().max(1 << 16)) {
        let first: Vec<u32> = absent.take(8).collect();
        return Err(Error::IncompleteDump(format!(
            "{}: {num_missing} of {num_ranks} ranks have no file (rank {}{}); copy them here, or allow missing ranks",
            directory.display(),
            first.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
            if num_missing > first.len() { ", ..." } else { "" }
        )));
    }
    Ok(if num_missing > 0 { absent.collect() } else { Vec::new() })
}

/// Checks that a file is of the same run as the meta file and the first rank file, and has what its metadata lists.
fn check_run(file: &RankFile, rank: u32, meta: &MetaInfo, first: &RankFile) -> Result<()> {
    let mixed = |what: String| Err(Error::InvalidDump(format!("{what}: the files are of different runs")));
    let (run, info) = match (&file.run, &meta.eplb) {
        (None, None) => return Ok(()),
        (Some(run), Some(info)) => (run, info),
        (Some(_), None) => return mixed(format!("written by eplb and {} is not", MetaInfo::FILE_NAME)),
        (None, Some(_)) => return mixed(format!("not written by eplb and {} is", MetaInfo::FILE_NAME)),
    };
    if run.rank != rank {
        return Err(Error::InvalidDump(format!("the rank in its __metadata__ is {}", run.rank)));
    }
    if let Some(first_run) = first.run.as_ref().filter(|first_run| first_run.run_id != run.run_id) {
        let name = |id: &Option<String>| {
            id.as_ref().map_or("none".to_owned(), |id| format!("\"{}\"", shortened(id)))
        };
        let (run_id, first_run_id) = (name(&run.run_id), name(&first_run.run_id));
        return mixed(format!("its run_id is {run_id}, that of {} is {first_run_id}", file_name(first)));
    }
    if run.num_ranks != info.num_ranks || run.iterations != info.iterations() || run.id_kind != info.id_kind {
        return mixed(format!(
            "it has counts of {} in iterations {} on {} ranks, {} lists {} in iterations {} on {} ranks",
            run.id_kind.name(),
            run.iterations,
            run.num_ranks,
            MetaInfo::FILE_NAME,
            info.id_kind.name(),
            info.iterations(),
            info.num_ranks
        ));
    }
    if let Some(layer) = run.layers.iter().find(|layer| file.layers.binary_search(layer).is_err()) {
        return Err(Error::IncompleteDump(format!("layer {layer} is missing")));
    }
    if let Some(layer) = file.layers.iter().find(|layer| run.layers.binary_search(layer).is_err()) {
        return Err(Error::InvalidDump(format!(
            "it has layer {layer}, which its __metadata__ does not list"
        )));
    }
    if file.iterations.start < run.iterations.start || file.iterations.stop > run.iterations.stop {
        return Err(Error::InvalidDump(format!(
            "it has iterations {}, its __metadata__ has {}",
            file.iterations, run.iterations
        )));
    }
    Ok(())
}

/// The requested iterations, or all. Fails where a file lacks one.
fn choose_iterations(files: &[RankFile], meta: &MetaInfo, options: &LoadOptions) -> Result<IterationRange> {
    let whole = match &meta.eplb {
        Some(info) => info.iterations(),
        None => IterationRange {
            start: files.iter().map(|file| file.iterations.start).min().unwrap_or(0),
            stop: files.iter().map(|file| file.iterations.stop).max().unwrap_or(0),
        },
    };
    let chosen = IterationRange {
        start: options.iter_start.unwrap_or(whole.start),
        stop: options.iter_stop.unwrap_or(whole.stop),
    };
    if chosen.is_empty() || chosen.start < whole.start || chosen.stop > whole.stop {
        return Err(Error::InvalidArgument(format!(
            "iterations {chosen} requested (stop excluded), the dump has {whole}"
        )));
    }
    for file in files {
        let found = file.iterations;
        if chosen.start < found.start || chosen.stop > found.stop {
            let absent = if chosen.start < found.start { chosen.start } else { found.stop };
            return Err(Error::IncompleteDump(format!(
                "{}: iteration {absent} is missing, it has {found} of {chosen}; choose iterations that all ranks have",
                file_name(file)
            )));
        }
    }
    Ok(chosen)
}

/// All layers of the dump. Ranks of one pipeline stage have the same layers, ranks of different stages have none in common.
/// Anything else means that layers are missing from a file.
fn check_layers(files: &[RankFile], meta: &MetaInfo, ranks_missing: bool) -> Result<Vec<u32>> {
    let mut first_with: BTreeMap<u32, &RankFile> = BTreeMap::new();
    let mut stages: Vec<&RankFile> = Vec::new();
    for file in files {
        if stages.iter().any(|stage| stage.layers == file.layers) {
            continue;
        }
        stages.push(file);
        for &layer in &file.layers {
            let first = *first_with.entry(layer).or_insert(file);
            // eplb's files list their layers, which check_run() has checked.
            if !std::ptr::eq(first, file) && file.run.is_none() {
                return Err(missing_layer(first, file));
            }
        }
    }
    let declared = meta.eplb.iter().flat_map(|info| &info.layers);
    if let Some(layer) = declared.filter(|_| !ranks_missing).find(|layer| !first_with.contains_key(layer)) {
        return Err(Error::IncompleteDump(format!(
            "no rank has layer {layer}, which {} lists",
            MetaInfo::FILE_NAME
        )));
    }
    Ok(first_with.into_keys().collect())
}

/// The error for two files that have some layers in common, but not all.
fn missing_layer(first: &RankFile, second: &RankFile) -> Error {
    let missing_from = |one: &RankFile, other: &RankFile| {
        other.layers.iter().copied().find(|layer| one.layers.binary_search(layer).is_err())
    };
    let (incomplete, layer) = match missing_from(first, second) {
        Some(layer) => (first, Some(layer)),
        None => (second, missing_from(second, first)),
    };
    Error::IncompleteDump(format!(
        "layer {} is missing from {}, which has other layers of the same pipeline stage",
        layer.unwrap_or_default(),
        file_name(incomplete)
    ))
}

fn file_name(file: &RankFile) -> std::path::Display<'_> {
    Path::new(file.path.file_name().unwrap_or_default()).display()
}
