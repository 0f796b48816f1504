//! Several dumps of one model, read as one.

use std::path::{Path, PathBuf};

use super::{Dump, LoadOptions, RowRanges, Stats, Summary, stages};
use crate::error::{Error, Result};

/// Dumps of one model whose headers have been read and checked. Their rows follow each other, and the counts of each are
/// multiplied by its weight.
#[derive(Debug)]
pub struct DumpSet {
    summary: Summary,
    dumps: Vec<Dump>,
    weights: Vec<f64>,
}

impl DumpSet {
    /// Reads the headers of the dumps in `directories`. `options` apply to each. `weights` has one number above 0 for each dump;
    /// `None`: 1.
    ///
    /// Fails as [`Dump::open`] does. Fails with [`Error::InvalidArgument`] if the dumps differ in experts, layers, top-k or what
    /// they count.
    pub fn open(
        directories: &[impl AsRef<Path>],
        weights: Option<&[f64]>,
        options: &LoadOptions,
    ) -> Result<DumpSet> {
        let weights = check_weights(directories.len(), weights)?;
        let dumps: Vec<Dump> = directories
            .iter()
            .map(|directory| Dump::open(directory.as_ref(), options))
            .collect::<Result<_>>()?;
        let paths: Vec<&Path> = directories.iter().map(AsRef::as_ref).collect();
        Ok(DumpSet { summary: summary_of(&paths, &dumps)?, dumps, weights })
    }

    /// The sizes of all dumps together.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Reads the counts, as [`Dump::read`] does. `progress` has the bytes of all dumps.
    pub fn read(self, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Stats> {
        let total: u64 = self.dumps.iter().map(Dump::num_bytes).sum();
        let mut before = 0;
        let mut counts = Vec::with_capacity(self.dumps.len());
        for (dump, &weight) in self.dumps.into_iter().zip(&self.weights) {
            let num_bytes = dump.num_bytes();
            counts.push((dump.read_counts(&mut |done, _| progress(before + done, total))?, weight));
            before += num_bytes;
        }
        Ok(Stats::of_dumps(self.summary, counts))
    }
}

/// The name of some dumps with their weights, for messages: `a and b`, or `a (weight 1), b (weight 2) and c (weight 1)`.
pub fn dump_names(paths: &[PathBuf], weights: Option<&[f64]>) -> String {
    let names: Vec<String> = paths
        .iter()
        .enumerate()
        .map(|(index, path)| match weights.and_then(|weights| weights.get(index)) {
            Some(weight) if paths.len() > 1 || *weight != 1.0 => {
                format!("{} (weight {weight})", path.display())
            }
            _ => path.display().to_string(),
        })
        .collect();
    match &names[..] {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

fn check_weights(num_dumps: usize, weights: Option<&[f64]>) -> Result<Vec<f64>> {
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    if num_dumps == 0 {
        return refuse("no dump is given; at least one expected".into());
    }
    let Some(weights) = weights else { return Ok(vec![1.0; num_dumps]) };
    if weights.len() != num_dumps {
        return refuse(format!(
            "{} dump weights for {num_dumps} dumps; one for each expected",
            weights.len()
        ));
    }
    match weights.iter().position(|weight| !(weight.is_finite() && *weight > 0.0)) {
        None => Ok(weights.to_vec()),
        Some(dump) => refuse(format!(
            "the weight of dump {dump} is {}; a finite number above 0 expected (leave out a dump that should not count)",
            weights[dump]
        )),
    }
}

/// The sizes of all dumps together. Fails where they are not of one model.
fn summary_of(paths: &[&Path], dumps: &[Dump]) -> Result<Summary> {
    let mut summary = dumps[0].summary().clone();
    let mut ranges = vec![summary.rows.first()];
    for (path, dump) in paths.iter().zip(dumps).skip(1) {
        let other = dump.summary();
        agree((paths[0], &summary), (path, other))?;
        ranges.push(other.rows.first());
        summary.experts_per_token = summary.experts_per_token.max(other.experts_per_token);
        summary.id_kind = summary.id_kind.filter(|_| other.id_kind.is_some());
        summary.missing_ranks.extend(&other.missing_ranks);
        summary.num_files = summary.num_files.max(other.num_files);
        if other.stage_ranks != summary.stage_ranks {
            summary.stage_ranks.extend(&other.stage_ranks);
        }
    }
    summary.missing_ranks.sort_unstable();
    summary.missing_ranks.dedup();
    if dumps.len() > 1 {
        summary.num_ranks = stages::common_size(&summary.stage_ranks);
    }
    summary.rows = RowRanges::of_dumps(ranges);
    Ok(summary)
}

/// Fails where two dumps cannot be of the same model.
pub(super) fn agree(
    (path, summary): (&Path, &Summary),
    (other_path, other): (&Path, &Summary),
) -> Result<()> {
    let differ = |what: String, other_what: String| {
        Err(Error::InvalidArgument(format!(
            "{} has {other_what}, {} {what}: dumps that are read together must be of one model",
            other_path.display(),
            path.display()
        )))
    };
    let ids = |summary: &Summary| match summary.id_kind {
        Some(kind) => format!("{} {}", summary.num_experts, kind.name()),
        None => format!("{} experts, or slots: it does not say which", summary.num_experts),
    };
    let counted = |summary: &Summary| (summary.num_experts, summary.id_kind.unwrap_or_default());
    if counted(summary) != counted(other) {
        return differ(ids(summary), ids(other));
    }
    let (chosen, other_chosen) = (summary.experts_per_token, other.experts_per_token);
    if chosen != other_chosen && chosen != 0 && other_chosen != 0 {
        return differ(format!("{chosen}"), format!("{other_chosen} experts a token"));
    }
    let lacks = |one: &Summary, other: &Summary| {
        other.layers.iter().copied().find(|layer| one.layers.binary_search(layer).is_err())
    };
    if let Some(layer) = lacks(summary, other) {
        return differ("has not".into(), format!("layer {layer}"));
    }
    if let Some(layer) = lacks(other, summary) {
        return differ("has it".into(), format!("no layer {layer}"));
    }
    Ok(())
}
