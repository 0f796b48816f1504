//! Pipeline stages: which layers the files of a dump have, and how many ranks serve a layer.

use std::collections::BTreeMap;
use std::path::Path;

use super::{DumpInfo, MetaInfo, RankFile};
use crate::error::{Error, Result};

/// All layers of the dump. Ranks of one pipeline stage have the same layers, ranks of different stages have none in common.
/// Anything else means that layers are missing from a file. A rank without layers is of no stage.
pub(super) fn check_layers(
    files: &[RankFile],
    declared: Option<&DumpInfo>,
    ranks_missing: bool,
) -> Result<Vec<u32>> {
    let mut first_with: BTreeMap<u32, &RankFile> = BTreeMap::new();
    let mut stages: Vec<&RankFile> = Vec::new();
    for file in files.iter().filter(|file| !file.layers.is_empty()) {
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
    let declared = declared.iter().flat_map(|info| &info.layers);
    if let Some(layer) = declared.filter(|_| !ranks_missing).find(|layer| !first_with.contains_key(layer)) {
        return Err(Error::IncompleteDump(format!(
            "no rank has layer {layer}, which {} lists",
            MetaInfo::FILE_NAME
        )));
    }
    if first_with.is_empty() {
        return Err(Error::InvalidDump(
            "no rank has a layer with experts, so there are no counts; dump the ranks that have some".into(),
        ));
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

/// The ranks of each stage, in the order of their layers. eplb's files declare them. In TensorRT-LLM's dumps, they are the files
/// with the layers of the stage.
///
/// Missing files may be of any stage. Where all stages fit an equal part of the complete dump, each has that part.
pub(super) fn stage_ranks(files: &[RankFile], num_files: usize, num_missing: usize) -> Vec<usize> {
    // The files of each stage, by its layers and the declared number of ranks.
    let mut stages: BTreeMap<(&[u32], Option<usize>), usize> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.layers.is_empty()) {
        let declared = file.run.as_ref().map(|run| run.num_ranks);
        *stages.entry((&file.layers, declared)).or_default() += 1;
    }
    let num_without_layers = files.iter().filter(|file| file.layers.is_empty()).count();
    let num_stages = stages.len();
    let part = (num_files - num_without_layers) / num_stages.max(1);
    let even = part * num_stages + num_without_layers == num_files;
    stages
        .into_iter()
        .map(|((_, declared), found)| match declared {
            Some(num_ranks) => num_ranks,
            None if num_missing > 0 && even && found <= part => part,
            None => found,
        })
        .collect()
}

/// The rank of the file at `index` in its stage, and the ranks of the stage, where the files do not say it: those with the same
/// layers, in the order of their files. A rank without layers is one of all.
pub(super) fn numbers_in_stages(files: &[RankFile], index: usize) -> (u32, usize) {
    let layers = &files[index].layers;
    if layers.is_empty() {
        return (index as u32, files.len());
    }
    let of_stage = |files: &[RankFile]| files.iter().filter(|file| file.layers == *layers).count();
    (of_stage(&files[..index]) as u32, of_stage(files))
}

/// The ranks of every stage. 0 if stages differ.
pub(super) fn common_size(stage_ranks: &[usize]) -> usize {
    match stage_ranks {
        [first, rest @ ..] if rest.iter().all(|ranks| ranks == first) => *first,
        _ => 0,
    }
}

/// The name of a file without its directory.
pub(super) fn file_name(file: &RankFile) -> std::path::Display<'_> {
    Path::new(file.path.file_name().unwrap_or_default()).display()
}
