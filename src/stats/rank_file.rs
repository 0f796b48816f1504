//! The header of a rank's file: a safetensors file with one tensor of counts for each iteration and layer.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. A little-endian u64 gives the length of a JSON
//! header; the tensors' bytes follow it without gaps.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{IdKind, IterationRange, RowRange, RunId};
use crate::error::{Error, Result, shortened};
use crate::placement::MAX_COUNT;

/// The limit of a header by the safetensors format.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header of a rank's file, checked against the file's size. No count has been read.
#[derive(Debug)]
pub struct RankFile {
    /// The file.
    pub path: PathBuf,
    /// Experts (or slots) of each tensor. 0 if the file has no tensor and the meta file does not say it.
    pub num_experts: usize,
    /// RowRange. Each layer has all of them. There are none in a file without layers.
    pub rows: RowRange,
    /// Layers, ascending. A rank without experts has none.
    pub layers: Vec<u32>,
    /// The metadata, in files of eplb.
    pub run: Option<RunInfo>,
    /// In the file's order, one after the other from `data_start` on.
    pub(super) tensors: Arc<[Tensor]>,
    pub(super) data_start: u64,
    /// The file's version when its header was read.
    pub(super) version: FileVersion,
}

/// The metadata of a rank file of eplb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// The number of the file, `rank<R>`.
    pub rank: u32,
    /// The rank that counted, of `num_ranks`.
    pub ep_rank: u32,
    /// Ranks of its group.
    pub num_ranks: usize,
    /// Files of the dump.
    pub num_files: usize,
    /// Layers that this rank counted.
    pub layers: Vec<u32>,
    /// The range of iterations, in rows. A complete file has all of them.
    pub rows: RowRange,
    /// The iterations of the range that were counted, if the file says it. Its first and last row may be partial.
    pub counted: Option<IterationRange>,
    /// The run's name, if it has one: see [`RunInfo::run_id`].
    run_id: Option<String>,
    /// The launcher whose numbers the name has. `None`: the name was chosen.
    run_id_source: Option<String>,
    /// When the file was written, in UTC as RFC 3339 has it. `None`: an earlier version of eplb wrote it.
    pub written_at: Option<String>,
    /// What the counted ids name.
    pub id_kind: IdKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor {
    pub iteration: u64,
    pub layer: u32,
    pub dtype: Dtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    I64,
    I32,
}

impl Dtype {
    pub fn size(self) -> usize {
        match self {
            Dtype::I64 => 8,
            Dtype::I32 => 4,
        }
    }
}

/// Two equal versions mean that a file was not changed in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileVersion {
    device: u64,
    inode: u64,
    pub len: u64,
    modified: (i64, i64),
}

impl FileVersion {
    pub fn of(metadata: &Metadata) -> Self {
        FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl RankFile {
    pub(super) fn tensor_bytes(&self, tensor: &Tensor) -> usize {
        self.num_experts * tensor.dtype.size()
    }
}

/// Opens a regular file. Opening a pipe would wait for a writer.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(|e| Error::read(path, e))?;
    if !metadata.is_file() {
        return Err(Error::InvalidDump("it is not a regular file".into()).in_file(path));
    }
    File::open(path).map_err(|e| Error::read(path, e))
}

/// The checked contents of a header.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub num_experts: usize,
    pub rows: RowRange,
    pub layers: Vec<u32>,
    pub run: Option<RunInfo>,
    pub tensors: Arc<[Tensor]>,
}

impl Index {
    pub fn parse(header: &[u8], data_len: u64, num_experts: Option<usize>) -> Result<Self> {
        let header: Header = serde_json::from_slice(header)
            .map_err(|e| Error::InvalidDump(format!("bad JSON in the header: {e}")))?;
        let run = header.metadata.as_ref().map(RunInfo::parse).transpose()?.flatten();

        let mut entries = header.tensors;
        entries.sort_by_key(|(_, entry)| entry.data_offsets);
        let first = entries.first().map_or(0, |(_, first)| first.shape.first as usize);
        let num_experts = num_experts.unwrap_or(first);
        if num_experts > MAX_COUNT {
            return Err(Error::InvalidDump(format!(
                "its tensors have {num_experts} values, at most {MAX_COUNT} supported"
            )));
        }

        let mut tensors = Vec::with_capacity(entries.len());
        let mut expected_start = 0;
        for (name, entry) in &entries {
            tensors.push(entry.tensor(name, num_experts, expected_start)?);
            expected_start = entry.data_offsets[1];
        }
        if expected_start > data_len {
            return Err(Error::InvalidDump(format!(
                "its tensors take {expected_start} bytes, but only {data_len} follow the header: it is truncated, copy it again"
            )));
        }
        if expected_start < data_len {
            return Err(Error::InvalidDump(format!(
                "{} bytes follow its last tensor",
                data_len - expected_start
            )));
        }
        let (rows, layers) = check_complete(&tensors, run.as_ref().map(|run| run.rows))?;
        Ok(Index { num_experts, rows, layers, run, tensors: tensors.into() })
    }
}

/// The rows and layers of a file, and checks that every layer has every row once. `declared` are the rows of its metadata. Without
/// them each row is an iteration.
fn check_complete(tensors: &[Tensor], declared: Option<RowRange>) -> Result<(RowRange, Vec<u32>)> {
    let grid = declared.filter(|rows| !rows.are_iterations());
    if let Some(grid) = grid {
        check_keys(tensors, grid)?;
    }
    let mut cells: Vec<(u32, u64)> = tensors.iter().map(|t| (t.layer, t.iteration)).collect();
    cells.sort_unstable();
    if let Some(pair) = cells.windows(2).find(|pair| pair[0] == pair[1]) {
        let (layer, iteration) = pair[0];
        return Err(Error::InvalidDump(format!("iteration {iteration} of layer {layer} appears twice")));
    }
    let mut layers: Vec<u32> = cells.iter().map(|&(layer, _)| layer).collect();
    layers.dedup();
    let iterations = || cells.iter().map(|&(_, iteration)| iteration);
    let (Some(start), Some(last)) = (iterations().min(), iterations().max()) else {
        let start = declared.map_or(0, |rows| rows.iterations.start);
        return Ok((IterationRange { start, stop: start }.into(), layers));
    };
    let rows = match grid {
        None => IterationRange { start, stop: last + 1 }.into(),
        Some(grid) => {
            let stop = last.saturating_add(grid.step()).min(grid.iterations.stop);
            RowRange { iterations: IterationRange { start, stop }, ..grid }
        }
    };
    let expected =
        layers.iter().flat_map(|&layer| (0..rows.len()).map(move |row| (layer, rows.first_iteration(row))));
    let mut found = cells.iter();
    for (layer, iteration) in expected {
        if found.next() != Some(&(layer, iteration)) {
            let what = if rows.are_iterations() { "" } else { "the row of " };
            return Err(Error::IncompleteDump(format!(
                "{what}iteration {iteration} of layer {layer} is missing (the file has iterations {rows})"
            )));
        }
    }
    Ok((rows, layers))
}

/// Checks that each tensor is named by the first iteration of a row.
fn check_keys(tensors: &[Tensor], grid: RowRange) -> Result<()> {
    match tensors.iter().find(|tensor| grid.starting_at(tensor.iteration).is_none()) {
        None => Ok(()),
        Some(&Tensor { iteration, layer, .. }) => Err(Error::InvalidDump(format!(
            "tensor \"{iteration}_{layer}\" is not named by the start of a row of iterations {grid}; the nearest is \"{}_{layer}\"",
            grid.nearest_start(iteration)
        ))),
    }
}

impl RunInfo {
    /// The run's name, if it has one.
    pub fn run_id(&self) -> Option<RunId<'_>> {
        let name = self.run_id.as_deref()?;
        Some(RunId { name, launcher: self.run_id_source.as_deref() })
    }

    /// Parses `__metadata__`. Returns `None` for that of another program.
    pub(super) fn parse(metadata: &BTreeMap<String, String>) -> Result<Option<Self>> {
        if !metadata.contains_key("num_ranks") {
            return Ok(None);
        }
        let text = |key: &str| {
            metadata
                .get(key)
                .ok_or_else(|| Error::InvalidDump(format!("its __metadata__ has no \"{key}\"; dump again")))
        };
        let bad = |key: &str, value: &str| {
            Error::InvalidDump(format!("its __metadata__ has an invalid {key}: \"{}\"", shortened(value)))
        };
        let number =
            |key: &str| text(key).and_then(|value| value.parse::<u64>().map_err(|_| bad(key, value)));

        let id_kind = match text("counts")?.as_str() {
            "experts" => IdKind::Expert,
            "slots" => IdKind::Slot,
            other => return Err(bad("counts", other)),
        };
        // Absent in most files: the number of files is that of ranks, and each row is an iteration.
        let or = |key: &str, default: u64| if metadata.contains_key(key) { number(key) } else { Ok(default) };
        let rank = u32::try_from(number("rank")?).map_err(|_| bad("rank", &metadata["rank"]))?;
        let num_ranks = number("num_ranks")?;
        let ep_rank = or("ep_rank", rank.into())?;
        let mut layers = match text("layers")?.as_str() {
            "" => Vec::new(),
            list => list
                .split(',')
                .map(|layer| layer.parse().map_err(|_| bad("layers", list)))
                .collect::<Result<Vec<u32>>>()?,
        };
        layers.sort_unstable();
        let iterations = IterationRange { start: number("iter_start")?, stop: number("iter_stop")? };
        let has_counted = ["counted_start", "counted_stop"].iter().any(|key| metadata.contains_key(*key));
        let counted = match has_counted {
            true => Some(IterationRange { start: number("counted_start")?, stop: number("counted_stop")? }),
            false => None,
        };
        if let Some(counted) = counted
            && (counted.is_empty() || counted.start < iterations.start || counted.stop > iterations.stop)
        {
            return Err(Error::InvalidDump(format!(
                "its __metadata__ is invalid: counted_start and counted_stop are {counted}; a range of at least one \
                 iteration within {iterations} (iter_start..iter_stop) expected"
            )));
        }
        Ok(Some(RunInfo {
            rank,
            ep_rank: u32::try_from(ep_rank).map_err(|_| bad("ep_rank", &ep_rank.to_string()))?,
            num_ranks: num_ranks as usize,
            num_files: or("num_files", num_ranks)? as usize,
            layers,
            rows: RowRange::declared(iterations, or("iter_bucket", 1)?, or("iter_stride", 1)?)
                .map_err(|e| Error::InvalidDump(format!("its __metadata__ is invalid: {e}")))?,
            counted,
            run_id: metadata.get("run_id").cloned(),
            run_id_source: metadata.get("run_id_source").cloned(),
            written_at: metadata.get("written_at").cloned(),
            id_kind,
        }))
    }
}

struct Header<'a> {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(Cow<'a, str>, Entry<'a>)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: TensorShape,
    data_offsets: [u64; 2],
}

/// The length and first size of a shape. A shape of any length takes the same memory.
#[derive(Default)]
struct TensorShape {
    dimensions: usize,
    first: u64,
}

impl<'de> Deserialize<'de> for TensorShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = TensorShape;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<TensorShape, A::Error> {
        let mut shape = TensorShape::default();
        while let Some(size) = seq.next_element::<u64>()? {
            if shape.dimensions == 0 {
                shape.first = size;
            }
            shape.dimensions += 1;
        }
        Ok(shape)
    }
}

impl Entry<'_> {
    /// Checks the tensor named `name`, which must start where the one before it ends.
    fn tensor(&self, name: &str, num_experts: usize, expected_start: u64) -> Result<Tensor> {
        let damaged = |what: String| Error::InvalidDump(format!("tensor \"{}\" {what}", shortened(name)));
        let (iteration, layer) =
            parse_name(name).ok_or_else(|| damaged("is not named <iteration>_<layer>".to_owned()))?;
        let dtype = match &*self.dtype {
            "I64" => Dtype::I64,
            "I32" => Dtype::I32,
            other => return Err(damaged(format!("has dtype {}, I64 or I32 expected", shortened(other)))),
        };
        match self.shape {
            TensorShape { dimensions: 1, first } if first == num_experts as u64 && first > 0 => {}
            TensorShape { dimensions: 1, first } => {
                return Err(damaged(format!("has {first} values, {num_experts} experts expected")));
            }
            TensorShape { dimensions, .. } => {
                return Err(damaged(format!(
                    "has {dimensions} dimensions, 1 of {num_experts} experts expected"
                )));
            }
        }
        let [start, stop] = self.data_offsets;
        if start != expected_start {
            return Err(damaged(format!(
                "starts at byte {start}, the one before it ends at {expected_start}"
            )));
        }
        let bytes = (num_experts as u64).saturating_mul(dtype.size() as u64);
        if stop.checked_sub(start) != Some(bytes) {
            return Err(damaged(format!("is at bytes {start}..{stop}, {bytes} bytes expected")));
        }
        Ok(Tensor { iteration, layer, dtype })
    }
}

/// Parses `<iteration>_<layer>`, both plain decimals. The layer must fit the C interface's int32.
fn parse_name(name: &str) -> Option<(u64, u32)> {
    let (iteration, layer) = name.split_once('_')?;
    let plain = |digits: &str| {
        !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'))
    };
    if !plain(iteration) || !plain(layer) {
        return None;
    }
    let iteration = iteration.parse::<i64>().ok().filter(|&i| i < i64::MAX)?;
    let layer = layer.parse::<i32>().ok()?;
    Some((iteration as u64, layer as u32))
}

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Keeps repeated names, which a map would drop.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map from tensor name to tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut header = Header { metadata: None, tensors: Vec::new() };
        while let Some(name) = map.next_key::<Name<'de>>()? {
            match &*name.0 {
                "__metadata__" if header.metadata.is_some() => {
                    return Err(de::Error::custom("__metadata__ appears twice"));
                }
                "__metadata__" => header.metadata = Some(map.next_value()?),
                _ => header.tensors.push((name.0, map.next_value()?)),
            }
        }
        Ok(header)
    }
}

/// A string that borrows from the header unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a header for 2 experts and `data_len` bytes of data.
    fn message(header: &str, data_len: u64) -> String {
        match Index::parse(header.as_bytes(), data_len, Some(2)) {
            Ok(_) => "accepted".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    fn tensor(name: &str, start: u64, stop: u64) -> String {
        format!(r#""{name}":{{"dtype":"I64","shape":[2],"data_offsets":[{start},{stop}]}}"#)
    }

    #[test]
    fn parse_reports_each_kind_of_damage() {
        let good = format!("{{{},{}}}", tensor("100_3", 0, 16), tensor("101_3", 16, 32));
        assert_eq!(message(&good, 32), "accepted");
        for (was, is, expected) in [
            ("I64", "F32", "tensor \"100_3\" has dtype F32, I64 or I32 expected"),
            ("[2]", "[3]", "tensor \"100_3\" has 3 values, 2 experts expected"),
            ("[2]", "[1,2]", "tensor \"100_3\" has 2 dimensions, 1 of 2 experts expected"),
            ("[2]", "[]", "tensor \"100_3\" has 0 dimensions, 1 of 2 experts expected"),
            ("[0,16]", "[0,15]", "tensor \"100_3\" is at bytes 0..15, 16 bytes expected"),
            ("[16,32]", "[8,24]", "tensor \"101_3\" starts at byte 8, the one before it ends at 16"),
            ("[16,32]", "[24,40]", "tensor \"101_3\" starts at byte 24, the one before it ends at 16"),
            ("[16,32]", "[16,0]", "tensor \"101_3\" is at bytes 16..0, 16 bytes expected"),
            ("101_3", "100_3", "iteration 100 of layer 3 appears twice"),
            ("101_3", "102_3", "iteration 101 of layer 3 is missing (the file has iterations 100..103)"),
            ("101_3", "101_4", "iteration 101 of layer 3 is missing (the file has iterations 100..102)"),
            ("101_3", "101-3", "tensor \"101-3\" is not named <iteration>_<layer>"),
            ("101_3", "101_-3", "tensor \"101_-3\" is not named <iteration>_<layer>"),
            ("101_3", "0101_3", "tensor \"0101_3\" is not named <iteration>_<layer>"),
            ("101_3", "101_3_0", "tensor \"101_3_0\" is not named <iteration>_<layer>"),
            ("101_3", "101_4294967296", "tensor \"101_4294967296\" is not named <iteration>_<layer>"),
            (
                "101_3",
                "9223372036854775807_3",
                "tensor \"9223372036854775807_3\" is not named <iteration>_<layer>",
            ),
        ] {
            assert_eq!(message(&good.replacen(was, is, 1), 32), expected);
        }
        assert_eq!(
            message(&good, 31),
            "its tensors take 32 bytes, but only 31 follow the header: it is truncated, copy it again"
        );
        assert_eq!(message(&good, 40), "8 bytes follow its last tensor");
        assert_eq!(message("{}", 0), "accepted");
        assert_eq!(message("{}", 8), "8 bytes follow its last tensor");
        assert!(message(&good[..40], 32).starts_with("bad JSON in the header: EOF"));
        assert!(message(r#"{"0_0":{"dtype":"I64"}}"#, 0).contains("missing field `shape`"));
        assert!(message(r#"{"0_0":{"dtype":"I64","shape":[2],"data_offsets":[0,-1]}}"#, 0).contains("`-1`"));
    }

    #[test]
    fn parse_ignores_foreign_metadata_and_requires_all_own_keys() {
        let tensor = tensor("5_1", 0, 16);
        let with = |metadata: &str| message(&format!("{{\"__metadata__\":{metadata},{tensor}}}"), 16);
        assert_eq!(with(r#"{"format":"pt"}"#), "accepted");
        let own = r#"{"rank":"0","num_ranks":"2","layers":"1","iter_start":"5","iter_stop":"6","counts":"experts"}"#;
        assert_eq!(with(own), "accepted");
        assert_eq!(
            with(&own.replace("\"5\"", "\"five\"")),
            "its __metadata__ has an invalid iter_start: \"five\""
        );
        assert_eq!(
            with(&own.replace("\"1\"", "\"1,,2\"")),
            "its __metadata__ has an invalid layers: \"1,,2\""
        );
        assert!(with(&format!("{own},\"__metadata__\":{own}")).contains("__metadata__ appears twice"));
        assert_eq!(with(r#"{"num_ranks":"2"}"#), "its __metadata__ has no \"counts\"; dump again");
    }

    #[test]
    fn parse_refuses_rows_and_ranks_that_no_file_has() {
        let with = |more: &str| {
            let own = r#""rank":"0","num_ranks":"2","layers":"1","iter_start":"5","iter_stop":"6","counts":"experts""#;
            message(&format!("{{\"__metadata__\":{{{own},{more}}},{}}}", tensor("5_1", 0, 16)), 16)
        };
        assert_eq!(
            with(r#""iter_bucket":"100","iter_stride":"7","num_files":"3","ep_rank":"1""#),
            "accepted"
        );
        assert_eq!(with(r#""iter_bucket":"9223372036854775807""#), "accepted");
        for (more, expected) in [
            (
                r#""iter_bucket":"0""#,
                "is invalid: iter_bucket is 0 and iter_stride 1; both must be at least 1",
            ),
            (
                r#""iter_stride":"0""#,
                "is invalid: iter_bucket is 1 and iter_stride 0; both must be at least 1",
            ),
            (r#""iter_bucket":"-1""#, "has an invalid iter_bucket: \"-1\""),
            (r#""iter_bucket":"many""#, "has an invalid iter_bucket: \"many\""),
            (r#""iter_stride":"99999999999999999999""#, "has an invalid iter_stride: \"9999"),
            (
                r#""iter_bucket":"18446744073709551615","iter_stride":"2""#,
                "is invalid: iter_bucket is 18446744073709551615",
            ),
            (r#""iter_bucket":"4294967296","iter_stride":"2147483648""#, "and their product below 2^63"),
            (r#""counted_start":"five","counted_stop":"6""#, "has an invalid counted_start: \"five\""),
            (r#""counted_start":"5","counted_stop":"-6""#, "has an invalid counted_stop: \"-6\""),
            (r#""counted_start":"5""#, "has no \"counted_stop\""),
            (
                r#""counted_start":"4","counted_stop":"6""#,
                "is invalid: counted_start and counted_stop are 4..6; a range of at least one iteration within 5..6",
            ),
            (r#""counted_start":"5","counted_stop":"7""#, "counted_stop are 5..7; a range of"),
            (r#""counted_start":"6","counted_stop":"6""#, "counted_stop are 6..6; a range of"),
            (r#""counted_start":"6","counted_stop":"5""#, "counted_stop are 6..5; a range of"),
            (r#""num_files":"-2""#, "has an invalid num_files: \"-2\""),
            (r#""ep_rank":"4294967296""#, "has an invalid ep_rank: \"4294967296\""),
        ] {
            let found = with(more);
            assert!(found.starts_with("its __metadata__ ") && found.contains(expected), "{more}: {found}");
        }
    }

    #[test]
    fn parse_requires_the_key_and_presence_of_each_row() {
        // RowRange of 2 counted iterations, one in 3: 4, 10 and 16, the last one with iteration 16 alone.
        let own = r#""rank":"0","num_ranks":"2","layers":"1","iter_start":"4","iter_stop":"17","counts":"experts","iter_bucket":"2","iter_stride":"3""#;
        let with = |names: &[&str]| {
            let tensors: Vec<String> = names
                .iter()
                .enumerate()
                .map(|(i, name)| tensor(name, i as u64 * 16, i as u64 * 16 + 16))
                .collect();
            let header = format!("{{\"__metadata__\":{{{own}}},{}}}", tensors.join(","));
            let index = Index::parse(header.as_bytes(), names.len() as u64 * 16, Some(2));
            index.map_or_else(|e| e.to_string(), |index| index.rows.to_string())
        };
        assert_eq!(with(&["4_1", "10_1", "16_1"]), "4..17, one in 3 in rows of 2");
        assert_eq!(with(&["10_1", "4_1"]), "4..16, one in 3 in rows of 2");
        let misnamed = |name: &str, nearest: &str| {
            assert_eq!(
                with(&["4_1", name]),
                format!(
                    "tensor \"{name}\" is not named by the start of a row of iterations 4..17, one in 3 in rows of 2; \
                     the nearest is \"{nearest}\""
                )
            );
        };
        for (name, nearest) in [("7_1", "4_1"), ("8_1", "10_1"), ("0_1", "4_1"), ("22_1", "16_1")] {
            misnamed(name, nearest);
        }
        assert_eq!(
            with(&["4_1", "16_1"]),
            "the row of iteration 10 of layer 1 is missing (the file has iterations 4..17, one in 3 in rows of 2)"
        );
        assert_eq!(with(&["4_1", "4_1"]), "iteration 4 of layer 1 appears twice");
    }
}
