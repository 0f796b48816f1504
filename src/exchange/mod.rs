//! Reads and writes files of other systems: counts as [`Stats`], or as [`Loads`] where they have fractions, and placements as
//! [`Placement`].
//!
//! `docs/exchange.md` lists the formats and the source of each rule. Readers refuse unknown contents and name their place. Their
//! memory is at most a small multiple of the file's size.

mod array;
mod counts;
mod detect;
mod element;
mod expert_map;
mod json;
mod lists;
mod loads;
mod npy;
mod pickle;
mod placements;
mod recording;
mod select;
mod sglang;
mod torch;
mod zip;

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;

pub use counts::{CountsRead, Load, counts_from_bytes, read_counts, write_counts};
pub use detect::detect;
pub use loads::{Loads, write_loads};
pub use placements::{PlacementRead, placement_from_bytes, read_placement, write_placement};
pub use select::{counts_of_layers, sum_iterations};

use crate::error::{Error, Result};
use crate::page_buffer::PageBuffer;
#[cfg(doc)]
use crate::{placement::Placement, stats::Stats};

/// The largest file to read. A thousand steps of the largest models take less.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// A format of counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountsFormat {
    /// A dump directory, eplb's own or TensorRT-LLM's.
    Dump,
    /// SGLang's `{"logical_count": [steps][layers][experts]}`, or without steps, for `--init-expert-location`.
    SglangCount,
    /// The same as a PyTorch file, as SGLang's recorder writes it in its modes `stat` and `stat_approx`. Or a file of its modes
    /// `per_pass` and `per_token`, or a directory with one of each rank. Read only.
    SglangPt,
    /// LMDeploy's `[layers][experts]` in JSON, for `LMDEPLOY_EPLB_EXPERTS_STATISTIC_FILE`.
    Lmdeploy,
    /// A NumPy array, `[layers][experts]` or `[iterations][layers][experts]`.
    Npy,
}

/// A format of placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementFormat {
    /// The configuration file, eplb's own and TensorRT-LLM's.
    Config,
    /// SGLang's `{"physical_to_logical_map": [layers][slots]}`, for `--init-expert-location`. Read from JSON or a PyTorch file,
    /// written as JSON.
    SglangMap,
    /// The expert map of vllm-ascend and MindIE.
    ExpertMap,
    /// DeepSeek's `phy2log` as a NumPy array, `[layers][slots]`.
    Phy2logNpy,
    /// DeepSeek's `phy2log` as JSON.
    Phy2logJson,
}

/// A format of counts or of placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// How many ids chose each expert.
    Counts(CountsFormat),
    /// Which expert each slot holds.
    Placement(PlacementFormat),
}

impl CountsFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Dump, Self::SglangCount, Self::SglangPt, Self::Lmdeploy, Self::Npy];

    /// The name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::SglangCount => "sglang-count",
            Self::SglangPt => "sglang-pt",
            Self::Lmdeploy => "lmdeploy",
            Self::Npy => "npy",
        }
    }

    /// The error for writing a format that is only read.
    fn read_only(self) -> Error {
        let written = Self::SglangCount.name();
        Error::InvalidArgument(format!("{} is read only; SGLang also reads {written}", self.name()))
    }
}

impl PlacementFormat {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Config, Self::SglangMap, Self::ExpertMap, Self::Phy2logNpy, Self::Phy2logJson];

    /// The name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::SglangMap => "sglang-map",
            Self::ExpertMap => "vllm-ascend",
            Self::Phy2logNpy => "phy2log-npy",
            Self::Phy2logJson => "phy2log-json",
        }
    }
}

impl Format {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Format> {
        let counts = CountsFormat::ALL.into_iter().map(Format::Counts);
        counts.chain(PlacementFormat::ALL.into_iter().map(Format::Placement))
    }

    /// Returns the format of counts. Fails for one of placements.
    pub fn of_counts(self) -> Result<CountsFormat> {
        match self {
            Format::Counts(format) => Ok(format),
            Format::Placement(_) => Err(Error::InvalidArgument(format!(
                "{self} is a format of placements, a format of counts expected"
            ))),
        }
    }

    /// Returns the format of placements. Fails for one of counts.
    pub fn of_placement(self) -> Result<PlacementFormat> {
        match self {
            Format::Placement(format) => Ok(format),
            Format::Counts(_) => Err(Error::InvalidArgument(format!(
                "{self} is a format of counts, a format of placements expected"
            ))),
        }
    }

    /// The name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::Counts(format) => format.name(),
            Format::Placement(format) => format.name(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Format::all().find(|format| format.name() == name).ok_or_else(|| {
            let names: Vec<_> = Format::all().map(Format::name).collect();
            Error::InvalidArgument(format!("unknown format \"{name}\"; the formats are {}", names.join(", ")))
        })
    }
}

/// What files lack: sizes of the model, and what the caller accepts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Model<'a> {
    /// The numbers of the layers with experts; others are neither read nor written. If a file has no layer numbers and as many
    /// rows, they name its rows in order. If it has more, row `i` is layer `i`, and the other rows are dense layers. `None`: row
    /// `i` is layer `i`, and in counts, rows of zeros are dense layers.
    pub layers: Option<&'a [u32]>,
    /// Layers of the model, dense ones included, for formats with a row for each. `None`: those up to the last one with experts.
    pub num_layers: Option<usize>,
    /// Experts of a layer, to check counts. In placements, `None` means the highest expert in the file plus 1.
    pub num_experts: Option<usize>,
    /// Ranks of placements. Only expert maps and some configuration files contain it.
    pub num_ranks: Option<usize>,
    /// Slots of all ranks together, to check placements.
    pub num_slots: Option<usize>,
    /// Experts that each token chooses. Required to write a dump of counts that lack it.
    pub experts_per_token: Option<usize>,
    /// Whether to write a placement that one of the format's readers serves wrongly.
    pub allow_lossy: bool,
}

impl Model<'_> {
    /// The layers of a file, ascending, each with its row.
    fn layers_of_rows(&self, num_rows: usize) -> std::result::Result<Vec<(u32, usize)>, String> {
        let Some(layers) = self.layers else {
            return Ok((0..num_rows).map(|row| (row as u32, row)).collect());
        };
        let mut rows: Vec<(u32, usize)> = if layers.len() == num_rows {
            layers.iter().copied().zip(0..).collect()
        } else {
            layers.iter().map(|&layer| (layer, layer as usize)).collect()
        };
        rows.sort_unstable();
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("layer {} is given twice", pair[0].0));
        }
        match rows.last() {
            None => Err("no layer is given".to_owned()),
            Some(&(layer, row)) if row >= num_rows => Err(format!(
                "it has {num_rows} rows, expected one for each of {} layers, or more than {layer}",
                rows.len()
            )),
            Some(_) => Ok(rows),
        }
    }

    /// The number of rows in a format that has one for each layer of the model.
    fn num_rows(&self, layers: &[u32]) -> Result<usize> {
        let needed = layers.last().map_or(0, |&last| last as usize + 1);
        let num_rows = self.num_layers.unwrap_or(needed);
        // The rows of dense layers are generated, so a large layer number must not fill the disk.
        const MOST: usize = 1 << 16;
        if num_rows < needed || num_rows > MOST {
            return Err(Error::InvalidArgument(format!(
                "num_layers is {num_rows}; {needed}, for layer {}, to {MOST} expected; to leave layers out, give those to write",
                needed.saturating_sub(1)
            )));
        }
        Ok(num_rows)
    }
}

/// Reads a regular file.
fn bytes_of(path: &Path) -> Result<PageBuffer> {
    let read = |source| Error::read(path, source);
    let refuse = |what: String| Err(Error::InvalidArgument(what).in_file(path));
    let metadata = std::fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        return refuse("it is not a regular file".into());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return refuse(format!("it has more than {MAX_FILE_BYTES} bytes, the limit for these formats"));
    }
    let mut bytes = PageBuffer::new(metadata.len() as usize, "a file")?;
    bytes.fill(&mut File::open(path).map_err(read)?).map_err(read)?;
    Ok(bytes)
}

/// The bytes of a file without a byte order mark, which some editors write before text.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_name_rows_or_select_rows_by_number() {
        let rows =
            |layers: Option<&[u32]>, num_rows| Model { layers, ..Model::default() }.layers_of_rows(num_rows);
        assert_eq!(rows(None, 2).unwrap(), [(0, 0), (1, 1)]);
        assert_eq!(rows(Some(&[3, 4]), 2).unwrap(), [(3, 0), (4, 1)]);
        assert_eq!(rows(Some(&[4, 3]), 2).unwrap(), [(3, 1), (4, 0)]);
        assert_eq!(rows(Some(&[3, 4]), 5).unwrap(), [(3, 3), (4, 4)]);
        assert_eq!(
            rows(Some(&[3, 4]), 4).unwrap_err(),
            "it has 4 rows, expected one for each of 2 layers, or more than 4"
        );
        assert_eq!(rows(Some(&[3, 3]), 2).unwrap_err(), "layer 3 is given twice");
        assert_eq!(rows(Some(&[]), 2).unwrap_err(), "no layer is given");
    }

    #[test]
    fn format_names_parse_to_their_formats() {
        for format in Format::all() {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
        }
        let message = "numpy".parse::<Format>().unwrap_err().to_string();
        assert!(
            message.starts_with("unknown format \"numpy\"; the formats are dump, sglang-count, "),
            "{message}"
        );
    }
}
