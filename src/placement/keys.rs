//! The keys of TensorRT-LLM's configuration file. Numbers are read as its class reads them: see [`super::whole`].

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};

use super::whole::{OrNull, Whole};
use super::yaml::{AssignmentsSeed, EP_SIZE, UPDATES, repeated_key, unknown_key, updates};
use crate::error::shortened;

pub const ASSIGNMENTS: &str = "initial_global_assignments";
pub const NUM_SLOTS: &str = "num_slots";
const MODE: &str = "mode";

/// A number of slots or ranks under `key`, or null.
fn size(key: &'static str) -> OrNull<&'static str> {
    OrNull(Whole { what: key, range: 0..=i64::MAX })
}

/// Since 1.4, TensorRT-LLM tells this class from `MoePerLayerDynamicLoadBalancerConfig` by a key `mode`. Its names are not
/// documented; those of the other class say what it is.
fn check_mode(mode: Option<String>) -> std::result::Result<(), String> {
    let Some(mode) = mode else { return Ok(()) };
    let name = mode.to_lowercase().replace(['-', ' '], "_");
    match name.contains("per_layer") || name.contains("perlayer") || name.contains("dynamic") {
        true => Err(format!(
            "{MODE} is \"{}\", which is another kind of load balancer: it moves experts while it runs and has no placement; \
             expected a file of MoeLoadBalancerConfig",
            shortened(&mode)
        )),
        false => Ok(()),
    }
}

/// The values of all keys.
#[derive(Default)]
pub struct Values {
    /// The expert of each slot by layer.
    pub assignments: Option<BTreeMap<u32, Vec<u32>>>,
    pub layer_updates_per_iter: u32,
    pub num_slots: Option<usize>,
    pub ep_size: Option<usize>,
}

/// The map of all keys.
pub struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a configuration file with {ASSIGNMENTS} and {NUM_SLOTS}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Values, A::Error> {
        let mut values = Values::default();
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                ASSIGNMENTS => {
                    values.assignments =
                        map.next_value_seed(AssignmentsSeed { key: ASSIGNMENTS, empty_slots: false })?;
                }
                UPDATES => values.layer_updates_per_iter = map.next_value_seed(updates())? as u32,
                NUM_SLOTS => {
                    values.num_slots = map.next_value_seed(size(NUM_SLOTS))?.map(|size| size as usize)
                }
                EP_SIZE => values.ep_size = map.next_value_seed(size(EP_SIZE))?.map(|size| size as usize),
                MODE => check_mode(map.next_value()?).map_err(de::Error::custom)?,
                unknown => {
                    let known = [ASSIGNMENTS, UPDATES, NUM_SLOTS, EP_SIZE, MODE];
                    return Err(de::Error::custom(unknown_key(&shortened(unknown), &known)));
                }
            }
            if seen.contains(&key) {
                return Err(de::Error::custom(repeated_key(&key)));
            }
            seen.push(key);
        }
        if seen.is_empty() {
            return Err(de::Error::custom("the file is empty"));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Result;
    use crate::placement::{ConfigFile, Expected, Placement};

    const FILE: &str = "initial_global_assignments:\n  3: [0, 1, 2, 2]\n  10: [2, 0, 1, 0]\n\
                        layer_updates_per_iter: 1\nnum_slots: 4\n";

    fn read(text: &str) -> Result<Placement> {
        let expected = Expected { num_ranks: Some(2), ..Default::default() };
        ConfigFile::parse(text)?.placement(expected)
    }

    #[test]
    fn all_that_the_configuration_class_loads_is_read_alike() {
        let plain = read(FILE).unwrap();
        for text in [
            // Layer numbers in single and double quotes.
            FILE.replace("3:", "'3':").replace("10:", "\"10\":"),
            // JSON with spaces, as json.dump writes it, and without.
            "{\"initial_global_assignments\": {\"3\": [0, 1, 2, 2], \"10\": [2, 0, 1, 0]}, \
             \"layer_updates_per_iter\": 1, \"num_slots\": 4}"
                .into(),
            "{\"initial_global_assignments\":{\"3\":[0,1,2,2],\"10\":[2,0,1,0]},\
             \"layer_updates_per_iter\":1,\"num_slots\":4}"
                .into(),
            // A byte order mark.
            format!("\u{feff}{FILE}"),
            // Floats and strings for each number.
            FILE.replace("num_slots: 4", "num_slots: 4.0").replace("iter: 1", "iter: \"1\""),
            FILE.replace("3:", "3.0:").replace("[0, 1, 2, 2]", "[0.0, \"1\", '2.0', +2]"),
            // Anchors of lists and of numbers, a tag, and block style.
            FILE.replace("2, 2]", "&two 2, *two]").replace("num_slots: 4", "num_slots: !!int \"4\""),
            FILE.replace(" [2, 0, 1, 0]", "\n  - 2\n  - 0\n  - 1\n  - 0"),
            // A mode of this kind, or none.
            format!("{FILE}mode: static\n"),
            format!("mode: null\n{FILE}"),
        ] {
            assert_eq!(read(&text).unwrap_or_else(|error| panic!("{text}: {error}")), plain, "{text}");
        }
    }

    #[test]
    fn numbers_that_are_not_whole_or_out_of_range_are_refused() {
        for (was, is, message) in [
            ("num_slots: 4", "num_slots: 4.5", "floating point `4.5`, expected num_slots"),
            ("num_slots: 4", "num_slots: \"4.5\"", "string \"4.5\", expected num_slots"),
            ("num_slots: 4", "num_slots: 1e30", "expected num_slots"),
            ("num_slots: 4", "num_slots: .nan", "expected num_slots"),
            ("num_slots: 4", "num_slots: true", "boolean `true`, expected num_slots"),
            // Octal without the quotes, decimal with them.
            ("num_slots: 4", "num_slots: 04", "string \"04\", expected num_slots"),
            ("num_slots: 4", "num_slots: 99999999999999999999", "expected num_slots"),
            ("iter: 1", "iter: -1", "integer `-1`, expected layer_updates_per_iter"),
            ("iter: 1", "iter: 4294967296", "integer `4294967296`, expected layer_updates_per_iter"),
            ("iter: 1", "iter: null", "expected layer_updates_per_iter"),
            ("2, 2]", "2, \"-2\"]", "string \"-2\", expected the expert of layer 3, slot 3"),
            ("2, 2]", "2, 2147483648]", "integer `2147483648`, expected the expert of layer 3, slot 3"),
            ("2, 2]", "2, null]", "expected the expert of layer 3, slot 3"),
            ("  3:", "  3.5:", "floating point `3.5`, expected the number of a layer"),
            ("  3:", "  -3:", "integer `-3`, expected the number of a layer"),
            ("  3:", "  '10':", "layer 10 is given twice in initial_global_assignments"),
            ("  3:", "  10.0:", "layer 10 is given twice in initial_global_assignments"),
        ] {
            assert!(FILE.contains(was));
            let found = read(&FILE.replacen(was, is, 1)).unwrap_err().to_string();
            assert!(found.contains(message), "{was} -> {is}: {found}");
        }
    }

    #[test]
    fn a_mode_of_another_kind_and_a_switched_off_balancer_are_named() {
        for mode in ["per_layer_dynamic", "per-layer", "PerLayerDynamic", "dynamic"] {
            let found = read(&format!("{FILE}mode: {mode}\n")).unwrap_err().to_string();
            assert!(
                found.starts_with(&format!("mode is \"{mode}\", which is another kind of load balancer")),
                "{found}"
            );
        }
        for zero in ["0", "0.0", "'0'"] {
            let found = read(&FILE.replace("num_slots: 4", &format!("num_slots: {zero}"))).unwrap_err();
            assert!(
                found
                    .to_string()
                    .starts_with("num_slots is 0, with which TensorRT-LLM switches its load balancer off"),
                "{found}"
            );
        }
    }
}
