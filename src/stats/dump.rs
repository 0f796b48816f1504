//! A dump directory as a whole: which files it has and whether they belong together.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{IterationRange, MetaInfo, RankFile, Stats, Summary, sum};
use crate::error::{Error, Result, shortened};
use crate::threads;

/// What to read of a dump, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The first iteration; `None` for the dump's first.
    pub iter_start: Option<u64>,
    /// The one after the last; `None` for the dump's end.
    pub iter_stop: Option<u64>,
    /// Ranks that the run had; a dump of fewer or more is refused. `None` takes what the dump says: TensorRT-LLM's says
    /// nothing, so that a loss of its highest ranks goes unnoticed.
    pub expected_ranks: Option<usize>,
    /// Take a dump in which ranks' files are missing; [`Summary::missing_ranks`] lists them.
    pub allow_missing_ranks: bool,
    /// Threads that read; 0 for one a core, at most 8.
    pub threads: usize,
}

/// A dump whose files have been looked through and fit together; no count has been read yet.
#[derive(Debug)]
pub struct Dump {
    summary: Summary,
    files: Vec<RankFile>,
    threads: usize,
}

impl Dump {
    /// Reads the headers of the dump in `directory`.
    ///
    /// Every kind of damage that they show is an [`Error::InvalidDump`] or [`Error::IncompleteDump`] naming file,
    /// iteration and layer.
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
                    format!("{expected} ranks expected, {} says num_ranks: {declared}", MetaInfo::FILE_NAME);
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
                "{}: {} of {num_ranks} ranks are missing and left out: {missing_ranks:?}",
                directory.display(),
                missing_ranks.len()
            );
        }
        let summary = Summary {
            experts_per_token: meta.num_experts_per_token,
            num_experts: meta.num_experts,
            num_ranks,
            missing_ranks,
            counted: meta.eplb.as_ref().map(|info| info.counts).unwrap_or_default(),
            layers,
            iterations,
        };
        Ok(Dump { summary, files, threads })
    }

    /// What the dump holds.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Reads the counts and sums them over ranks.
    ///
    /// `progress` is called on this thread with the bytes read so far and in all; its error stops the reading and is
    /// returned. Files are read in bounded pieces, never mapped: one that is cut off meanwhile is an error, where a
    /// mapped one would kill the process with SIGBUS.
    pub fn read(self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Stats> {
        let Summary { layers, iterations, .. } = &self.summary;
        let counts = sum::sum(&self.files, layers, *iterations, self.threads, progress)?;
        Ok(Stats { summary: self.summary, counts })
    }
}

/// The files `rank<R>.safetensors` of a directory by rank. Raw ids and anything else beside them are skipped.
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
            let message = "the name does not parse, rank<R>.safetensors expected with R the rank";
            return Err(Error::InvalidDump(message.into()).in_file(&path));
        };
        if let Some(first) = paths.insert(rank, path.clone()) {
            let message = format!("rank {rank} is there twice, {} is the other file", first.display());
            return Err(Error::InvalidDump(message).in_file(&path));
        }
    }
    if paths.is_empty() {
        return Err(Error::IncompleteDump(format!(
            "{}: no rank<R>.safetensors here; give the directory that EXPERT_STATISTIC_PATH named when counting",
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
    // Names are only names: a stray rank4000000000.safetensors must not cost four billion steps.
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

/// Whether a file is of the run that the meta file and the first rank file are of, and holds what it says it does.
fn check_run(file: &RankFile, rank: u32, meta: &MetaInfo, first: &RankFile) -> Result<()> {
    let mixed = |what: String| Err(Error::InvalidDump(format!("{what}: the files are of different runs")));
    let (run, info) = match (&file.run, &meta.eplb) {
        (None, None) => return Ok(()),
        (Some(run), Some(info)) => (run, info),
        (Some(_), None) => return mixed(format!("written by eplb and {} is not", MetaInfo::FILE_NAME)),
        (None, Some(_)) => return mixed(format!("not written by eplb and {} is", MetaInfo::FILE_NAME)),
    };
    if run.rank != rank {
        return Err(Error::InvalidDump(format!("it says that it is of rank {}", run.rank)));
    }
    if let Some(first_run) = first.run.as_ref().filter(|first_run| first_run.run_id != run.run_id) {
        let name = |id: &Option<String>| {
            id.as_ref().map_or("none".to_owned(), |id| format!("\"{}\"", shortened(id)))
        };
        let (ours, theirs) = (name(&run.run_id), name(&first_run.run_id));
        return mixed(format!("its run_id is {ours}, that of {} {theirs}", file_name(first)));
    }
    if run.num_ranks != info.num_ranks || run.iterations != info.iterations() || run.counted != info.counts {
        return mixed(format!(
            "it counted {:?} of iterations {} on {} ranks, {} says {:?} of iterations {} on {}",
            run.counted,
            run.iterations,
            run.num_ranks,
            MetaInfo::FILE_NAME,
            info.counts,
            info.iterations(),
            info.num_ranks
        ));
    }
    if let Some(layer) = run.layers.iter().find(|layer| file.layers.binary_search(layer).is_err()) {
        return Err(Error::IncompleteDump(format!("layer {layer} is missing")));
    }
    if let Some(layer) = file.layers.iter().find(|layer| run.layers.binary_search(layer).is_err()) {
        return Err(Error::InvalidDump(format!(
            "it holds layer {layer}, which its __metadata__ does not list"
        )));
    }
    if file.iterations.start < run.iterations.start || file.iterations.stop > run.iterations.stop {
        return Err(Error::InvalidDump(format!(
            "it holds iterations {}, its __metadata__ says {}",
            file.iterations, run.iterations
        )));
    }
    Ok(())
}

/// The iterations to sum: the requested ones, or all. Every file must have them.
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
            "iterations {chosen} asked for (stop excluded), the dump has {whole}"
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

/// All layers of the dump. Ranks of a pipeline stage hold the same layers, ranks of different stages none in common;
/// anything between means that a rank has lost some.
fn check_layers(files: &[RankFile], meta: &MetaInfo, ranks_missing: bool) -> Result<Vec<u32>> {
    let mut holder: BTreeMap<u32, &RankFile> = BTreeMap::new();
    let mut stages: Vec<&RankFile> = Vec::new();
    for file in files {
        if stages.iter().any(|stage| stage.layers == file.layers) {
            continue;
        }
        stages.push(file);
        for &layer in &file.layers {
            let first = *holder.entry(layer).or_insert(file);
            // Our own files say which layers they should have, and have been held to it.
            if !std::ptr::eq(first, file) && file.run.is_none() {
                return Err(lost_layer(first, file));
            }
        }
    }
    let declared = meta.eplb.iter().flat_map(|info| &info.layers);
    if let Some(layer) = declared.filter(|_| !ranks_missing).find(|layer| !holder.contains_key(layer)) {
        return Err(Error::IncompleteDump(format!(
            "no rank has layer {layer}, which {} lists",
            MetaInfo::FILE_NAME
        )));
    }
    Ok(holder.into_keys().collect())
}

/// Two files that have some layers in common and not all.
fn lost_layer(first: &RankFile, second: &RankFile) -> Error {
    let lost_by = |one: &RankFile, other: &RankFile| {
        other.layers.iter().copied().find(|layer| one.layers.binary_search(layer).is_err())
    };
    let (loser, layer) = match lost_by(first, second) {
        Some(layer) => (first, Some(layer)),
        None => (second, lost_by(second, first)),
    };
    Error::IncompleteDump(format!(
        "layer {} is missing from {}, which has other layers of the same pipeline stage",
        layer.unwrap_or_default(),
        file_name(loser)
    ))
}

fn file_name(file: &RankFile) -> std::path::Display<'_> {
    Path::new(file.path.file_name().unwrap_or_default()).display()
}
