//! `meta_info.json` of a dump.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rank_file::open_regular;
use super::{IdKind, IterationRange, RowRange};
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
    /// Files of the dump. `None`: one of each rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_files: Option<usize>,
    /// Iterations that each row adds up. `None`: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iter_bucket: Option<u64>,
    /// Of so many iterations one is counted. `None`: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iter_stride: Option<u64>,
    /// The first iteration counted.
    pub iter_start: u64,
    /// The one after the last.
    pub iter_stop: u64,
    /// Layers that rank 0 counted.
    pub layers: Vec<u32>,
    /// What the counted ids name.
    #[serde(rename = "counts")]
    pub id_kind: IdKind,
    /// When it was written, in UTC as RFC 3339 has it. `None`: an earlier version of eplb wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<String>,
}

impl DumpInfo {
    /// The iterations of the complete dump, in rows.
    pub fn rows(&self) -> Result<RowRange> {
        let iterations = IterationRange { start: self.iter_start, stop: self.iter_stop };
        RowRange::declared(iterations, self.iter_bucket.unwrap_or(1), self.iter_stride.unwrap_or(1))
    }

    /// The number of files of the complete dump.
    pub fn files(&self) -> usize {
        self.num_files.unwrap_or(self.num_ranks)
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
        if let Some(info) = &meta.eplb
            && (info.rows()?.is_empty() || info.num_ranks == 0 || info.files() == 0)
        {
            return Err(Error::InvalidDump(
                "eplb.num_ranks or num_files is 0, or iter_start is not less than iter_stop".into(),
            ));
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
        assert_eq!(
            (info.files(), info.rows().unwrap().len(), info.rows().unwrap().to_string()),
            (2, 4, "5..9".to_owned())
        );
        let text = OWN.replace(r#""layers""#, r#""num_files": 6, "iter_bucket": 3, "layers""#);
        let meta = MetaInfo::parse(text.as_bytes()).unwrap();
        let info = meta.eplb.clone().unwrap();
        assert_eq!((info.files(), info.rows().unwrap().len()), (6, 2));
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
            (r#""num_files": 0"#, "eplb.num_ranks or num_files is 0"),
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
