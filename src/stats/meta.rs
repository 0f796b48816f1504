//! `meta_info.json` of a dump.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rank_file::open_regular;
use super::{IdKind, IterationRange, Rows};
use crate::error::{Error, Result, shortened};
use crate::placement::MAX_COUNT;

/// The limit of a meta file, which has a few numbers and a list of layers.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The contents of a meta file: TensorRT-LLM's two numbers, and eplb's additions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaInfo {
    /// Experts of a layer, or slots where slots were counted.
    pub num_experts: usize,
    /// Experts that each token chooses.
    pub num_experts_per_token: usize,
    /// Only in dumps of eplb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eplb: Option<DumpInfo>,
}

/// What a complete dump contains, to detect an incomplete one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpInfo {
    /// The version of eplb that wrote it.
    pub version: String,
    /// Ranks of the expert-parallel group.
    pub num_ranks: usize,
    /// Files of the dump, one a rank of each pipeline stage. 0 and absent: `num_ranks`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub num_files: usize,
    /// The first iteration counted.
    pub iter_start: u64,
    /// The one after the last.
    pub iter_stop: u64,
    /// Counted iterations of a row; see [`Rows`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub iter_bucket: u64,
    /// The distance of two counted iterations; see [`Rows`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub iter_stride: u64,
    /// Layers that rank 0 counted.
    pub layers: Vec<u32>,
    /// What the counted ids name.
    #[serde(rename = "counts")]
    pub id_kind: IdKind,
}

fn one() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(number: &u64) -> bool {
    *number == 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl DumpInfo {
    /// The iterations of the complete dump, in rows.
    pub fn rows(&self) -> Rows {
        let iterations = IterationRange { start: self.iter_start, stop: self.iter_stop };
        Rows { iterations, bucket: self.iter_bucket, stride: self.iter_stride }
    }

    /// The number of files of the complete dump.
    pub fn files(&self) -> usize {
        if self.num_files == 0 { self.num_ranks } else { self.num_files }
    }
}

impl MetaInfo {
    /// The file's name in a dump directory.
    pub const FILE_NAME: &'static str = "meta_info.json";

    /// Reads the meta file of the dump in `directory`. Returns `None` for `null`, which TensorRT-LLM's rank 0 writes if it has no
    /// layer with experts.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(Self::FILE_NAME);
        let mut text = Vec::new();
        let file = open_regular(&path)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|e| Error::read(&path, e))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::InvalidDump(format!("more than {MAX_FILE_BYTES} bytes")).in_file(&path));
        }
        match text.trim_ascii() {
            b"null" => Ok(None),
            text => Self::parse(text).map(Some).map_err(|e| e.in_file(&path)),
        }
    }

    /// Parses the text of a meta file. Ignores keys of other programs.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let meta: MetaInfo = serde_json::from_slice(text)
            .map_err(|e| Error::InvalidDump(shortened(&format!("bad JSON: {e}"))))?;
        let (experts, chosen) = (meta.num_experts, meta.num_experts_per_token);
        if experts > MAX_COUNT {
            return Err(Error::InvalidDump(format!(
                "num_experts is {experts}, at most {MAX_COUNT} supported"
            )));
        }
        if experts == 0 || chosen == 0 || chosen > experts {
            return Err(Error::InvalidDump(format!(
                "num_experts is {experts} and num_experts_per_token {chosen}; a token chooses 1 to num_experts experts"
            )));
        }
        if let Some(info) = &meta.eplb {
            let rows = info.rows();
            if rows.is_empty() || info.num_ranks == 0 {
                return Err(Error::InvalidDump(
                    "eplb.num_ranks is 0, or iter_start is not less than iter_stop".into(),
                ));
            }
            Rows::new(rows.iterations, rows.bucket, rows.stride)?;
        }
        Ok(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        MetaInfo::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn parse_accepts_unknown_keys() {
        let meta = MetaInfo::parse(br#"{"num_experts": 64, "num_experts_per_token": 6, "model": {"a": []}}"#);
        assert_eq!(meta.unwrap(), MetaInfo { num_experts: 64, num_experts_per_token: 6, eplb: None });
    }

    const OWN: &str = r#"{"num_experts": 4, "num_experts_per_token": 2, "eplb": {"version": "0.1.0", "num_ranks": 2,
        "iter_start": 5, "iter_stop": 9, "layers": [], "counts": "experts"}}"#;

    #[test]
    fn parse_takes_absent_keys_for_one_file_a_rank_and_one_row_an_iteration() {
        let info = MetaInfo::parse(OWN.as_bytes()).unwrap().eplb.unwrap();
        assert_eq!((info.files(), info.rows().len(), info.rows().to_string()), (2, 4, "5..9".to_owned()));
        let text =
            OWN.replace(r#""layers""#, r#""num_files": 6, "iter_bucket": 3, "iter_stride": 1, "layers""#);
        let meta = MetaInfo::parse(text.as_bytes()).unwrap();
        let info = meta.eplb.clone().unwrap();
        assert_eq!((info.files(), info.rows().len()), (6, 2));
        // Written only where they are not the default.
        let written = serde_json::to_string(&meta).unwrap();
        assert!(written.contains(r#""num_files":6"#) && written.contains(r#""iter_bucket":3"#), "{written}");
        assert!(!written.contains("iter_stride"), "{written}");
    }

    #[test]
    fn parse_refuses_rows_that_no_dump_has() {
        for (wrong, part) in [
            (r#""iter_bucket": 0"#, "iter_bucket is 0 and iter_stride 1; both must be at least 1"),
            (r#""iter_stride": 0"#, "iter_bucket is 1 and iter_stride 0; both must be at least 1"),
            (
                r#""iter_bucket": 4611686018427387904, "iter_stride": 2"#,
                "iter_bucket is 4611686018427387904 and iter_stride 2",
            ),
            (r#""iter_bucket": -1"#, "invalid value: integer `-1`, expected u64"),
            (r#""iter_bucket": "100""#, "invalid type: string \"100\", expected u64"),
            (r#""iter_stride": 1e30"#, "expected u64"),
            (r#""num_files": -2"#, "invalid value: integer `-2`, expected usize"),
        ] {
            let found = message(&OWN.replace(r#""layers""#, &format!("{wrong}, \"layers\"")));
            assert!(found.contains(part), "{wrong}: {found}");
        }
    }

    #[test]
    fn parse_names_the_invalid_key() {
        assert_eq!(
            message(r#"{"num_experts": 64}"#),
            "bad JSON: missing field `num_experts_per_token` at line 1 column 19"
        );
        assert!(message(r#"{"num_experts": -64, "num_experts_per_token": 6}"#).contains("integer `-64`"));
        assert!(message(r#"{"num_experts": 64, "num_experts_per_"#).contains("EOF while parsing"));
        assert_eq!(
            message(r#"{"num_experts": 4, "num_experts_per_token": 6}"#),
            "num_experts is 4 and num_experts_per_token 6; a token chooses 1 to num_experts experts"
        );
    }
}
