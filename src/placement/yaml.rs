//! What both files of a placement share as YAML: the limits, the assignments, and errors of keys.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::NO_EXPERT;
use super::whole::Whole;
use crate::error::{Error, Result, shortened};

/// Published models stay well below this limit. Aliases (`*a`) expand a small file.
pub const MAX_SLOTS_OF_ALL_LAYERS: usize = 4 << 20;

/// The assignments nest two deep. A YAML parser's time grows out of all proportion with deeper nesting.
const MAX_NESTING: usize = 4;

pub const UPDATES: &str = "layer_updates_per_iter";
pub const EP_SIZE: &str = "ep_size";

/// Parses the only document of a text that is not nested too deeply.
pub fn the_document<'a, V: Visitor<'a>>(text: &'a str, visitor: V) -> Result<V::Value> {
    let invalid = |e: serde_yaml::Error| Error::InvalidPlacement(shortened(&e.to_string()));
    if nesting(text) > MAX_NESTING {
        return Err(Error::InvalidPlacement("lists are nested too deeply for a configuration file".into()));
    }
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let document = documents.next().ok_or_else(|| Error::InvalidPlacement("the file is empty".into()))?;
    let config = document.deserialize_map(visitor).map_err(invalid)?;
    match documents.next() {
        None => Ok(config),
        Some(_) => Err(Error::InvalidPlacement("more than one YAML document in the file".into())),
    }
}

/// Returns how deep brackets and braces nest. Those in comments and strings count too: telling them apart
/// would take the parser that this check protects.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The value of [`UPDATES`].
pub fn updates() -> Whole<&'static str> {
    Whole { what: "layer_updates_per_iter, a number from 0 on", range: 0..=u32::MAX.into() }
}

pub fn too_many_slots() -> String {
    format!("more than {MAX_SLOTS_OF_ALL_LAYERS} slots in all layers")
}

/// The error for a key that is given twice.
pub fn repeated_key(key: &str) -> String {
    format!("the key \"{key}\" is given twice")
}

/// The error for a key that is none of `known`.
pub fn unknown_key(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(key, known));
    match nearest.filter(|nearest| strsim::normalized_damerau_levenshtein(key, nearest) > 0.5) {
        Some(nearest) => format!("unknown key \"{key}\"; did you mean \"{nearest}\"?"),
        None => format!("unknown key \"{key}\"; the keys are {}", known.join(", ")),
    }
}

/// `{layer: [expert, ...], ...}` or null, under `key`.
pub struct AssignmentsSeed {
    pub key: &'static str,
    /// Whether -1 is an empty slot.
    pub empty_slots: bool,
}

impl<'de> DeserializeSeed<'de> for AssignmentsSeed {
    type Value = Option<BTreeMap<u32, Vec<u32>>>;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for AssignmentsSeed {
    type Value = Option<BTreeMap<u32, Vec<u32>>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a map from layer to list of experts")
    }

    fn visit_none<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut assignments = BTreeMap::new();
        let mut room = MAX_SLOTS_OF_ALL_LAYERS;
        let number = || Whole { what: "the number of a layer", range: 0..=u32::MAX.into() };
        while let Some(layer) = map.next_key_seed(number())? {
            let layer = layer as u32;
            let experts = map.next_value_seed(LayerSeed { layer, room, empty_slots: self.empty_slots })?;
            room -= experts.len();
            if assignments.insert(layer, experts).is_some() {
                return Err(de::Error::custom(format!("layer {layer} is given twice in {}", self.key)));
            }
        }
        Ok(Some(assignments))
    }
}

/// The list of one layer, of at most `room` slots. Errors name the layer and the slot.
struct LayerSeed {
    layer: u32,
    room: usize,
    empty_slots: bool,
}

impl<'de> DeserializeSeed<'de> for LayerSeed {
    type Value = Vec<u32>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Vec<u32>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for LayerSeed {
    type Value = Vec<u32>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the list of experts of layer {}", self.layer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Vec<u32>, A::Error> {
        let (lowest, or_empty) = if self.empty_slots { (-1, ", or -1") } else { (0, "") };
        let mut experts = Vec::new();
        while let Some(expert) = seq.next_element_seed(Whole {
            what: format_args!("the expert of layer {}, slot {}{or_empty}", self.layer, experts.len()),
            range: lowest..=i32::MAX.into(),
        })? {
            if experts.len() == self.room {
                return Err(de::Error::custom(too_many_slots()));
            }
            // -1 becomes NO_EXPERT.
            const { assert!(NO_EXPERT == -1i64 as u32) };
            experts.push(expert as u32);
        }
        Ok(experts)
    }
}
