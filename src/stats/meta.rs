//! `meta_info.json` of a dump.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rank_file::open_regular;
use super::{IdKind, IterationRange};
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
    /// The first iteration counted.
    pub iter_start: u64,
    /// The one after the last.
    pub iter_stop: u64,
    /// Layers that rank 0 counted.
    pub layers: Vec<u32>,
    /// What the counted ids name.
    #[serde(rename = "counts")]
    pub id_kind: IdKind,
}

impl DumpInfo {
    /// The iterations of the complete dump.
    pub fn iterations(&self) -> IterationRange {
        IterationRange { start: self.iter_start, stop: self.iter_stop }
    }
}

impl MetaInfo {
    /// The file's name in a dump directory.
    pub const FILE_NAME: &'static str = "meta_info.json";

    /// Reads the meta file of the dump in `directory`.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(Self::FILE_NAME);
        let mut text = Vec::new();
        let file = open_regular(&path)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|e| Error::read(&path, e))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::InvalidDump(format!("more than {MAX_FILE_BYTES} bytes")).in_file(&path));
        }
        Self::parse(&text).map_err(|e| e.in_file(&path))
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
        if meta.eplb.as_ref().is_some_and(|info| info.iterations().is_empty() || info.num_ranks == 0) {
            return Err(Error::InvalidDump(
                "eplb.num_ranks is 0, or iter_start is not less than iter_stop".into(),
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
