//! JSON for SGLang's `--init-expert-location`: an object with `logical_count` or `physical_to_logical_map`.
//!
//! Rules: `compute_initial_expert_location_metadata` of python/sglang/srt/eplb/expert_location.py, and the keys that the recorder
//! of python/sglang/srt/eplb/expert_distribution.py dumps. Both arrays have a row for every layer of the model
//! (`num_hidden_layers`). The recorder counts nothing for dense layers.

use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::array::Array;
use super::json::{Lists, bad};
use crate::error::shortened;

pub const LOGICAL_COUNT: &str = "logical_count";
pub const PHYSICAL_TO_LOGICAL_MAP: &str = "physical_to_logical_map";

/// Keys that the recorder writes beside the counts.
pub const IGNORED: [&str; 2] = ["rank", "average_utilization_rate_over_window"];

/// Reads the array under `key`. A file with the other key is refused.
pub fn read(text: &[u8], key: &'static str) -> Result<Array, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let array = json.deserialize_map(KeyVisitor { key }).map_err(bad)?;
    json.end().map_err(bad)?;
    array.ok_or_else(|| format!("it has no \"{key}\""))
}

/// The error for another key than the wanted one.
pub fn unknown(key: &str, wanted: &str) -> String {
    match key {
        LOGICAL_COUNT => format!("it has \"{key}\", so it holds counts; \"{wanted}\" expected"),
        PHYSICAL_TO_LOGICAL_MAP => {
            format!("it has \"{key}\", so it holds a placement; \"{wanted}\" expected")
        }
        "records" => format!(
            "it has \"records\", so it was recorded in the mode per_pass or per_token; \"{wanted}\" of the mode stat expected"
        ),
        _ => format!("unknown key \"{}\"; \"{wanted}\" expected", shortened(key)),
    }
}

struct KeyVisitor {
    key: &'static str,
}

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Option<Array>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with {}", self.key)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Array>, A::Error> {
        let mut array = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.key {
                if array
                    .replace(map.next_value_seed(Lists { minus_one: self.key == PHYSICAL_TO_LOGICAL_MAP })?)
                    .is_some()
                {
                    return Err(de::Error::custom(format!("\"{key}\" appears twice")));
                }
            } else if IGNORED.contains(&key.as_str()) {
                map.next_value::<IgnoredAny>()?;
            } else {
                return Err(de::Error::custom(unknown(&key, self.key)));
            }
        }
        Ok(array)
    }
}
