//! JSON for SGLang's `--init-expert-location`: an object with `logical_count` or `physical_to_logical_map`.
//!
//! Rules: `compute_initial_expert_location_metadata` of python/sglang/srt/eplb/expert_location.py, and the keys that the recorder
//! of python/sglang/srt/eplb/expert_distribution.py dumps. Both arrays have a row for every layer of the model
//! (`num_hidden_layers`). The recorder counts nothing for dense layers.

use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::array::Array;
use super::json::{ListsSeed, bad};
use crate::error::shortened;

pub const LOGICAL_COUNT: &str = "logical_count";
pub const PHYSICAL_TO_LOGICAL_MAP: &str = "physical_to_logical_map";
pub const RECORDS: &str = "records";

/// Reads the array under `key`. A file with the key of other contents is refused. Others are ignored, as the recorder writes some
/// beside the counts, and SGLang ignores them too.
pub fn read(text: &[u8], key: &'static str) -> Result<Array, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let (array, others) = json.deserialize_map(KeyVisitor { key }).map_err(bad)?;
    json.end().map_err(bad)?;
    array.ok_or_else(|| match others.is_empty() {
        true => format!("it has no \"{key}\""),
        false => format!("it has no \"{key}\"; its keys are {}", shortened(&others.join(", "))),
    })
}

/// Returns whether a key says what a file holds.
pub fn is_contents(key: &str) -> bool {
    [LOGICAL_COUNT, PHYSICAL_TO_LOGICAL_MAP, RECORDS].contains(&key)
}

/// The error for the key of other contents than the wanted one.
pub fn other_contents(key: &str, wanted: &str) -> String {
    let contents = if key == PHYSICAL_TO_LOGICAL_MAP { "a placement" } else { "counts" };
    format!("it has \"{key}\", so it holds {contents}; \"{wanted}\" expected")
}

/// The error for a file with the keys of two kinds of contents. SGLang refuses it too.
pub fn two_contents(first: &str, second: &str) -> String {
    format!("it has \"{first}\" and \"{second}\": save one of them in a file of its own")
}

struct KeyVisitor {
    key: &'static str,
}

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = (Option<Array>, Vec<String>);

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with {}", self.key)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut array, mut others) = (None, Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == self.key {
                let lists = ListsSeed { minus_one: self.key == PHYSICAL_TO_LOGICAL_MAP };
                if array.replace(map.next_value_seed(lists)?).is_some() {
                    return Err(de::Error::custom(format!("\"{key}\" appears twice")));
                }
            } else if is_contents(&key) {
                return Err(de::Error::custom(other_contents(&key, self.key)));
            } else {
                map.next_value::<IgnoredAny>()?;
                others.push(key);
            }
        }
        Ok((array, others))
    }
}
