//! Counts: how many ids chose each expert, by layer and iteration. The recorder that counts, and dump directories.

mod arrays;
mod choose_rows;
mod clock;
mod dump;
mod dump_set;
mod merge;
mod merge_rows;
mod meta;
mod open;
mod previous;
mod rank_file;
mod recorder;
mod row_range;
mod row_ranges;
mod rows;
mod run_id;
mod stages;
mod subfolders;
mod sum;
mod write;

pub use arrays::{ArraysConfig, CountArray};
pub use dump::{Dump, LoadOptions};
pub use dump_set::{DumpSet, dump_names};
pub use merge::{Gaps, MergeConfig, Merged, merge};
pub use merge_rows::Overlap;
pub use meta::{DumpInfo, MetaInfo};
pub use previous::is_previous_rank_file;
pub use rank_file::{RankFile, RunInfo};
pub use recorder::{
    AddedCounts, CountsAt, Dumps, Info, MemoryRequired, Recorder, RecorderConfig, SnapshotAt, State, Totals,
};
pub(crate) use recorder::{BatchCount, CellType, Flips, IdKinds, OTHER_BINS, Source, histogram};
pub use row_range::RowRange;
pub use row_ranges::RowRanges;
pub use rows::Rows;
pub use run_id::RunId;
pub use subfolders::{dumps_below, list_dumps};
pub use write::{Counts, FileNumber, RankDump};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, shortened};

/// What ids name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdKind {
    /// Experts, as the router chose them.
    #[default]
    #[serde(rename = "experts")]
    Expert,
    /// Slots, to which a placement routed.
    #[serde(rename = "slots")]
    Slot,
}

impl IdKind {
    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            IdKind::Expert => "experts",
            IdKind::Slot => "slots",
        }
    }
}

/// Iterations `start <= i < stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IterationRange {
    /// The first iteration.
    pub start: u64,
    /// The one after the last.
    pub stop: u64,
}

impl IterationRange {
    /// The number of iterations.
    pub fn len(&self) -> u64 {
        self.stop.saturating_sub(self.start)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `iteration` is one of them.
    pub fn contains(&self, iteration: u64) -> bool {
        (self.start..self.stop).contains(&iteration)
    }
}

impl FromStr for IterationRange {
    type Err = Error;

    /// `100-200` means 100 to 199, as in TensorRT-LLM's `EXPERT_STATISTIC_ITER_RANGE`. Each number is one that Python's `int()`
    /// reads, in ASCII digits: also `100 - 200`, `+100-200`, `0100-200` and `1_00-2_00`.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let text = shortened(text);
            Err(Error::InvalidArgument(format!("\"{text}\" is not a range of iterations: {why}")))
        };
        let Some((Some(start), Some(stop))) =
            text.split_once('-').map(|(start, stop)| (python_int(start), python_int(stop)))
        else {
            return refuse("START-STOP expected, such as 100-200 for iterations 100 to 199");
        };
        match (start.max(stop) <= i64::MAX as u64, start < stop) {
            (false, _) => refuse("it goes beyond 64 bits"),
            (true, false) => refuse("it has no iterations; START must be less than STOP"),
            (true, true) => Ok(IterationRange { start, stop }),
        }
    }
}

/// Reads a number as Python's `int()` does, but without a minus and in ASCII digits: white space around it, a plus, leading zeros,
/// and single underscores between digits. A number of more than 64 bits is `u64::MAX`.
fn python_int(text: &str) -> Option<u64> {
    let text = text.trim();
    let groups = text.strip_prefix('+').unwrap_or(text).split('_');
    let mut value = 0u64;
    for group in groups {
        if group.is_empty() {
            return None;
        }
        for digit in group.chars() {
            value = value.saturating_mul(10).saturating_add(digit.to_digit(10)?.into());
        }
    }
    Some(value)
}

impl fmt::Display for IterationRange {
    /// `100..131` means 100 to 130.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.stop)
    }
}

/// The sizes of a dump, or of several that are read as one, from the headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Experts of a layer. Slots where [`Summary::id_kind`] is [`IdKind::Slot`], or where it is `None` and slots were counted.
    pub num_experts: usize,
    /// Experts that each token chooses (the router's top-k). 0 where a file of another system lacks it.
    pub experts_per_token: usize,
    /// Ranks of expert parallelism (the EP size), missing ones included. 0 if pipeline stages, or dumps, have different numbers:
    /// see [`Summary::ep_size`].
    pub num_ranks: usize,
    /// Files of the complete dump: one for each rank of each pipeline stage. Of several dumps, the largest number.
    pub num_files: usize,
    /// Ranks of each pipeline stage, in the order of their layers. Where dumps differ, those of each dump.
    pub stage_ranks: Vec<usize>,
    /// Numbers of the missing files, `rank<R>`. Empty unless [`LoadOptions::allow_missing_ranks`] was set.
    pub missing_ranks: Vec<u32>,
    /// What the counted ids name. `None` where the dump does not say it, as TensorRT-LLM's.
    pub id_kind: Option<IdKind>,
    /// The layers' numbers, ascending.
    pub layers: Vec<u32>,
    /// The requested iterations of each dump, and the rows in which they were dumped.
    pub rows: RowRanges,
}

impl Summary {
    /// [`Summary::num_ranks`]. Fails if pipeline stages have different numbers of ranks.
    pub fn ep_size(&self) -> Result<usize> {
        match self.num_ranks {
            0 => Err(Error::InvalidArgument(format!(
                "{} have {} ranks, so the EP size is unknown: give it (--ep_size, num_ranks)",
                if self.rows.dumps().len() > 1 { "the dumps" } else { "the dump's pipeline stages" },
                self.stage_list()
            ))),
            num_ranks => Ok(num_ranks),
        }
    }

    /// The ranks in words, such as `8 ranks` or `2 pipeline stages of 4 ranks`.
    pub fn ranks_text(&self) -> String {
        match (self.stage_ranks.len(), self.num_ranks) {
            (..=1, num_ranks) => format!("{num_ranks} ranks"),
            (_, 0) if self.rows.dumps().len() > 1 => format!("{} ranks", self.stage_list()),
            (_, 0) => format!("pipeline stages of {} ranks", self.stage_list()),
            (num_stages, num_ranks) => format!("{num_stages} pipeline stages of {num_ranks} ranks"),
        }
    }

    fn stage_list(&self) -> String {
        let ranks: Vec<String> = self.stage_ranks.iter().map(usize::to_string).collect();
        ranks.join(", ")
    }
}

/// The counts of a dump by layer, row and expert, summed over ranks. Of several dumps, those of each, with its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    summary: Summary,
    /// At least one.
    dumps: Vec<DumpCounts>,
}

/// The counts of one dump, and what loads multiply them by.
#[derive(Debug, Clone, PartialEq)]
struct DumpCounts {
    rows: RowRange,
    weight: f64,
    /// `[layers][rows][experts]`, each below 2^63.
    counts: Vec<u64>,
}

/// The loads of one layer, decoded once.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerLoads {
    /// `[rows][experts]`
    pub rows: Vec<f64>,
    /// The samples, each the sum of consecutive rows of a dump: `[samples][experts]`.
    pub samples: Vec<f64>,
}

impl Stats {
    /// Takes the `counts` of one dump in the order `[layers][rows][experts]`, with the sizes of `summary`.
    pub(crate) fn from_counts(summary: Summary, counts: Vec<u64>) -> Self {
        Stats::of_dumps(summary, vec![(counts, 1.0)])
    }

    /// As [`Stats::from_counts`], with the counts and weight of each dump in the order of [`Summary::rows`].
    fn of_dumps(summary: Summary, counts: Vec<(Vec<u64>, f64)>) -> Self {
        let row_len = summary.layers.len() * summary.num_experts;
        debug_assert_eq!(counts.len(), summary.rows.dumps().len());
        let dumps = summary.rows.dumps().iter().zip(counts).map(|(&rows, (counts, weight))| {
            debug_assert_eq!(counts.len() as u64, rows.len() * row_len as u64);
            DumpCounts { rows, weight, counts }
        });
        Stats { dumps: dumps.collect(), summary }
    }

    /// The sizes of the counts.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The counts of `layer`, `[rows][experts]`. Fails for several dumps, whose counts have weights.
    pub fn layer_counts(&self, layer: u32) -> Result<&[u64]> {
        match &self.dumps[..] {
            [dump] => Ok(self.counts_of(dump, self.layer_index(layer)?)),
            dumps => Err(Error::InvalidArgument(format!(
                "the counts are of {} dumps; only loads add up the counts of several",
                dumps.len()
            ))),
        }
    }

    /// The counts of `layer` summed over the rows, `[experts]`. Fails for several dumps.
    pub fn layer_totals(&self, layer: u32) -> Result<Vec<u64>> {
        self.layer_counts(layer)?;
        self.layer_sums(&self.dumps[0], layer, 1)
    }

    fn layer_index(&self, layer: u32) -> Result<usize> {
        let layers = &self.summary.layers;
        layers.binary_search(&layer).map_err(|_| {
            let (first, last) = (layers[0], layers[layers.len() - 1]);
            let message = format!(
                "layer {layer} is not in this dump of {} layers from {first} to {last}",
                layers.len()
            );
            Error::InvalidArgument(message)
        })
    }

    /// The counts of the layer at `index` in one dump, `[rows][experts]`.
    fn counts_of<'a>(&self, dump: &'a DumpCounts, index: usize) -> &'a [u64] {
        let row = dump.counts.len() / self.summary.layers.len();
        &dump.counts[index * row..][..row]
    }

    /// Sums the counts of `layer` in a dump over each of `num_samples` samples of nearly equal length:
    /// `[num_samples][experts]`.
    fn layer_sums(&self, dump: &DumpCounts, layer: u32, num_samples: usize) -> Result<Vec<u64>> {
        let (num_experts, counts) =
            (self.summary.num_experts, self.counts_of(dump, self.layer_index(layer)?));
        let num_rows = counts.len() / num_experts;
        let mut sums = vec![0u64; num_samples * num_experts];
        for (row, counts) in counts.chunks_exact(num_experts).enumerate() {
            // Sample s ends before row (s + 1) x rows / num_samples, rounded down.
            let sample = ((row + 1) * num_samples - 1) / num_rows;
            for (expert, (sum, count)) in sums[sample * num_experts..].iter_mut().zip(counts).enumerate() {
                *sum = sum.checked_add(*count).ok_or_else(|| {
                    Error::InvalidDump(format!(
                        "layer {layer}, expert {expert}: the sum over iterations {} overflows 64 bits; choose fewer iterations",
                        dump.rows
                    ))
                })?;
            }
        }
        Ok(sums)
    }

    /// Loads of `layer` for the solver, `[num_samples][num_experts]`. A sample is the sum of consecutive rows, and samples
    /// have nearly equal lengths. Of several dumps, each has `num_samples`. Fails where `num_experts` is not the dump's.
    pub fn layer_samples(&self, layer: u32, num_samples: usize, num_experts: usize) -> Result<Vec<f64>> {
        if num_experts != self.summary.num_experts {
            let expected = self.summary.num_experts;
            return Err(Error::InvalidArgument(format!(
                "num_experts is {num_experts}, the dump has {expected}"
            )));
        }
        for rows in self.summary.rows.dumps() {
            if num_samples == 0 || num_samples as u64 > rows.len() {
                let what = if rows.are_iterations() { "iterations" } else { "rows of iterations" };
                return Err(Error::InvalidArgument(format!(
                    "num_samples is {num_samples}; 1 to {}, the number of {what} {rows}, expected",
                    rows.len()
                )));
            }
        }
        self.samples_of(layer, num_samples)
    }

    /// As [`Stats::layer_samples`], with at most one sample for each row of a dump.
    fn samples_of(&self, layer: u32, num_samples: usize) -> Result<Vec<f64>> {
        let mut loads = Vec::new();
        for (dump, num_samples) in self.dumps.iter().zip(self.summary.rows.num_samples(num_samples)) {
            loads.extend(self.loads_of(dump, layer, &self.layer_sums(dump, layer, num_samples)?)?);
        }
        Ok(loads)
    }

    /// The loads of `layer` in each row of each dump, `[rows][experts]`.
    pub fn layer_rows(&self, layer: u32) -> Result<Vec<f64>> {
        let index = self.layer_index(layer)?;
        let mut loads = Vec::new();
        for dump in &self.dumps {
            loads.extend(self.loads_of(dump, layer, self.counts_of(dump, index))?);
        }
        Ok(loads)
    }

    /// The loads of `layer` by row and by sample. Each dump has `num_samples` samples, at most one a row.
    pub fn layer_loads(&self, layer: u32, num_samples: usize) -> Result<LayerLoads> {
        Ok(LayerLoads { rows: self.layer_rows(layer)?, samples: self.samples_of(layer, num_samples)? })
    }

    /// Loads of all layers, `[layers][num_samples][experts]`: see [`Stats::layer_samples`].
    pub fn samples(&self, num_samples: usize) -> Result<Vec<f64>> {
        let mut loads = Vec::new();
        for &layer in &self.summary.layers {
            loads.extend(self.layer_samples(layer, num_samples, self.summary.num_experts)?);
        }
        Ok(loads)
    }

    /// The layers in which no dump has a count.
    pub(crate) fn layers_without_load(&self) -> Vec<u32> {
        let is_idle =
            |index| self.dumps.iter().all(|dump| self.counts_of(dump, index).iter().all(|&count| count == 0));
        let layers = self.summary.layers.iter().enumerate();
        layers.filter(|&(index, _)| is_idle(index)).map(|(_, &layer)| layer).collect()
    }

    /// The load of each dump in all layers together, as multiplied by its weight.
    pub(crate) fn dump_loads(&self) -> Vec<f64> {
        let total = |dump: &DumpCounts| dump.counts.iter().map(|&count| u128::from(count)).sum::<u128>();
        self.dumps.iter().map(|dump| total(dump) as f64 * dump.weight).collect()
    }

    /// Converts counts to loads. Fails beyond 2^53, where doubles are inexact.
    fn loads_of(&self, dump: &DumpCounts, layer: u32, counts: &[u64]) -> Result<Vec<f64>> {
        const MAX: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
        if let Some(index) = counts
            .iter()
            .position(|&count| count > 1 << f64::MANTISSA_DIGITS || count as f64 * dump.weight > MAX)
        {
            return Err(Error::InvalidDump(format!(
                "layer {layer}, expert {}: {}{} tokens are more than 2^53, so the load would be inexact; choose fewer iterations{}",
                index % self.summary.num_experts,
                counts[index],
                if dump.weight == 1.0 { String::new() } else { format!(" times the weight {}", dump.weight) },
                if dump.weight == 1.0 { "" } else { " or smaller weights" },
            )));
        }
        Ok(counts.iter().map(|&count| count as f64 * dump.weight).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_loads_returns_rows_and_samples() {
        let summary = Summary {
            num_experts: 2,
            experts_per_token: 1,
            num_ranks: 1,
            num_files: 1,
            stage_ranks: vec![1],
            missing_ranks: Vec::new(),
            id_kind: Some(IdKind::Expert),
            layers: vec![3, 4],
            rows: IterationRange { start: 10, stop: 15 }.into(),
        };
        let stats = Stats::from_counts(summary, (0..20).collect());
        // Of 5 iterations, the first sample has 2, the second 3.
        let loads = stats.layer_loads(4, 2).unwrap();
        assert_eq!(loads.rows, [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0]);
        assert_eq!(loads.samples, [22.0, 24.0, 48.0, 51.0]);
        assert_eq!(loads.samples, stats.layer_samples(4, 2, 2).unwrap());
        let all = stats.layer_loads(3, 5).unwrap();
        assert_eq!(all.samples, all.rows);
        // At most one sample a row.
        assert_eq!(stats.layer_loads(3, 6).unwrap(), all);
        assert!(stats.layer_samples(3, 6, 2).is_err() && stats.layer_loads(5, 1).is_err());
    }

    #[test]
    fn iteration_range_is_read_as_python_does() {
        let (start, stop) = (100, 200);
        // What `start, stop = text.strip().split("-"); int(start), int(stop)` reads.
        for text in [
            "100-200",
            " 100-200\n",
            "100 - 200",
            "\t100\u{a0}-\u{2003}200\r\n",
            "+100-200",
            "100-+200",
            "+100 - +200",
            "1_00-2_0_0",
            "0100-00200",
            "+0_1_0_0-200",
        ] {
            assert_eq!(text.parse::<IterationRange>().unwrap(), IterationRange { start, stop }, "{text}");
        }
        assert_eq!("0-1".parse::<IterationRange>().unwrap(), IterationRange { start: 0, stop: 1 });
        let largest = IterationRange { start: 0, stop: i64::MAX as u64 };
        assert_eq!("0-9_223_372_036_854_775_807".parse::<IterationRange>().unwrap(), largest);
    }

    #[test]
    fn iteration_range_requires_two_numbers_in_order() {
        let (form, order) = (
            "START-STOP expected, such as 100-200 for iterations 100 to 199",
            "it has no iterations; START must be less than STOP",
        );
        for (text, why) in [
            ("100-50", order),
            ("200 - 1_00", order),
            ("7-7", order),
            ("", form),
            (" ", form),
            ("-", form),
            ("7", form),
            ("abc", form),
            ("-5", form),
            ("5-", form),
            ("1-2-3", form),
            ("100--200", form),
            ("_100-200", form),
            ("100_-200", form),
            ("1__00-200", form),
            ("+_100-200", form),
            ("++100-200", form),
            ("+ 100-200", form),
            ("1 00-200", form),
            ("+-200", form),
            ("1.0-2.0", form),
            ("1e2-2e2", form),
            ("0x10-0x20", form),
            ("100\u{2013}200", form),
            // Python reads these digits.
            ("\u{ff11}00-200", form),
            ("0-9223372036854775808", "it goes beyond 64 bits"),
            ("99999999999999999999-1", "it goes beyond 64 bits"),
            ("0-18446744073709551616", "it goes beyond 64 bits"),
        ] {
            let error = text.parse::<IterationRange>().unwrap_err().to_string();
            assert_eq!(error, format!("\"{text}\" is not a range of iterations: {why}"));
        }
    }
}
