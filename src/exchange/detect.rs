//! Detects the format of a file.

use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{
    CountsFormat, Format, PlacementFormat, bytes_of, json, npy, recording, sglang, torch, without_mark,
};
use crate::error::{Error, Result, shortened};
use crate::stats::MetaInfo;

/// Detects the format from the contents. Refuses a bare array, which can hold counts or a placement, with
/// [`Error::InvalidArgument`], and contents of no format with [`Error::InvalidDump`].
pub fn detect(path: &Path) -> Result<Format> {
    if path.is_dir() {
        // The recorder of SGLang writes one file a rank in two of its modes.
        let is_dump = path.join(MetaInfo::FILE_NAME).exists();
        let files = recording::files_of(path).map_err(|source| Error::read(path, source))?;
        return Ok(Format::Counts(match is_dump || files.is_empty() {
            true => CountsFormat::Dump,
            false => CountsFormat::SglangPt,
        }));
    }
    let file = bytes_of(path)?;
    let bytes = without_mark(&file);
    of_bytes(bytes).map_err(|message| match is_array(bytes) {
        true => Error::InvalidArgument(message).in_file(path),
        false => Error::InvalidDump(message).in_file(path),
    })
}

/// Whether the contents are valid so far, and only the format is unknown.
fn is_array(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"[") || npy::dimensions(bytes).is_ok()
}

fn of_bytes(bytes: &[u8]) -> std::result::Result<Format, String> {
    let start = bytes.trim_ascii_start();
    let bare = |counts: CountsFormat, placement: PlacementFormat| {
        let (counts, placement) = (counts.name(), placement.name());
        Err(format!(
            "an array can hold counts or a placement: give its format, {counts} for counts or {placement} for a placement"
        ))
    };
    if bytes.starts_with(npy::MAGIC) {
        return match npy::dimensions(bytes)? {
            3 => Ok(Format::Counts(CountsFormat::Npy)),
            _ => bare(CountsFormat::Npy, PlacementFormat::Phy2logNpy),
        };
    }
    if torch::is_torch(bytes) {
        return Ok(match recording::is_map(bytes)? {
            true => Format::Placement(PlacementFormat::SglangMap),
            false => Format::Counts(CountsFormat::SglangPt),
        });
    }
    match start.first() {
        Some(b'[') => bare(CountsFormat::Lmdeploy, PlacementFormat::Phy2logJson),
        Some(b'{') => of_object(start),
        // The reader of configuration files reports errors in other text.
        Some(_) if str::from_utf8(bytes).is_ok() => Ok(Format::Placement(PlacementFormat::Config)),
        _ => Err("unknown format: not a .npy, .pt, JSON or configuration file".into()),
    }
}

fn of_object(text: &[u8]) -> std::result::Result<Format, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let keys = json.deserialize_map(Keys).map_err(json::bad)?;
    let of_key = |key: &String| match key.as_str() {
        sglang::LOGICAL_COUNT => Some(Format::Counts(CountsFormat::SglangCount)),
        sglang::PHYSICAL_TO_LOGICAL_MAP => Some(Format::Placement(PlacementFormat::SglangMap)),
        "moe_layer_count" | "layer_list" => Some(Format::Placement(PlacementFormat::ExpertMap)),
        // JSON is YAML.
        "initial_global_assignments" | "num_slots" | "eplb_placement" => {
            Some(Format::Placement(PlacementFormat::Config))
        }
        _ => None,
    };
    let mut contents: Vec<&str> =
        keys.iter().map(|key| &key[..]).filter(|key| sglang::is_contents(key)).collect();
    contents.sort_unstable();
    if let [first, second, ..] = contents[..] {
        return Err(sglang::two_contents(first, second));
    }
    keys.iter().find_map(of_key).ok_or_else(|| {
        let keys = shortened(&keys.join(", "));
        format!("unknown format: an object with the keys {keys}")
    })
}

/// The keys of an object.
struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vec<String>, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry()? {
            keys.push(key);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_is_detected_by_first_bytes_or_keys() {
        let of = |bytes: &[u8]| of_bytes(bytes).map(Format::name);
        assert_eq!(of(b"{\"rank\": 0, \"logical_count\": [[[1]]]}"), Ok("sglang-count"));
        assert_eq!(of(b"\n{\"physical_to_logical_map\": [[0]]}"), Ok("sglang-map"));
        assert_eq!(of(b"{\"moe_layer_count\": 1}"), Ok("vllm-ascend"));
        assert_eq!(of(b"{\"num_slots\": 8}"), Ok("config"));
        assert_eq!(of(b"num_slots: 8\n"), Ok("config"));
        assert!(of(b"PK\x03\x04").unwrap_err().contains("truncated"));
        assert_eq!(
            of(b"{\"logical_count\": [[1]], \"physical_to_logical_map\": [[0]]}"),
            Err("it has \"logical_count\" and \"physical_to_logical_map\": save one of them in a file of its own".into())
        );
        let array = |counts: &str, placement: &str| {
            format!(
                "an array can hold counts or a placement: give its format, {counts} for counts or {placement} for a placement"
            )
        };
        assert_eq!(of(b"[[1, 2]]"), Err(array("lmdeploy", "phy2log-json")));
        let npy = |shape: &[usize]| {
            let mut bytes = Vec::new();
            npy::write(&mut bytes, shape, &mut (0..2)).unwrap();
            of(&bytes)
        };
        assert_eq!(npy(&[1, 1, 2]), Ok("npy"));
        assert_eq!(npy(&[1, 2]), Err(array("npy", "phy2log-npy")));
        assert_eq!(of(b"{\"a\": 1}"), Err("unknown format: an object with the keys a".into()));
        assert!(of(b"\xff\xfe").unwrap_err().starts_with("unknown format"));
        assert!(of(b"\x80\x02}").unwrap_err().contains("before PyTorch 1.6"));
    }
}
