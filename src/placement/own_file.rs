//! eplb's own file of a placement, `*.eplb.yaml`: what TensorRT-LLM's configuration file cannot hold.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::whole::Whole;
use super::yaml::{AssignmentsSeed, EP_SIZE, UPDATES, repeated_key, the_document, unknown_key, updates};
use super::{MAX_COUNT, NO_EXPERT, Placement, Shape};
use crate::error::{Error, Result, shortened};

const SUFFIX: &str = ".eplb.yaml";

/// The key that tells the file from TensorRT-LLM's. Its value is the version of the format.
const VERSION_KEY: &str = "eplb_placement";
const VERSION: u64 = 1;

const SLOTS_PER_RANK: &str = "slots_per_rank";
const NUM_EXPERTS: &str = "num_experts";
const HASH: &str = "hash";
const LAYERS: &str = "layers";
const KEYS: [&str; 7] = [VERSION_KEY, EP_SIZE, SLOTS_PER_RANK, NUM_EXPERTS, HASH, UPDATES, LAYERS];

/// Returns whether the file of this name is eplb's own.
pub(crate) fn is_own_name(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()))
}

/// Returns whether a line of the text begins with [`VERSION_KEY`].
pub(super) fn is_own_text(text: &str) -> bool {
    let start = |line: &str| line.trim_start_matches([' ', '{', '"', '\'']).starts_with(VERSION_KEY);
    text.lines().any(start)
}

/// The content of a file.
pub(super) struct OwnFile {
    pub shape: Shape,
    pub rank_num_slots: Vec<u32>,
    /// The expert of each slot by layer, [`NO_EXPERT`] in empty ones.
    pub layers: BTreeMap<u32, Vec<u32>>,
    pub layer_updates_per_iter: u32,
}

/// Parses a file's text. The sizes were checked before.
pub(super) fn parse(text: &str) -> Result<OwnFile> {
    let found = the_document(text, FileVisitor)?;
    let has_slots_per_rank = found.slots_per_rank.is_some();
    let (Some(ep_size), Some(slots_per_rank), Some(num_experts), Some(layers)) =
        (found.ep_size, found.slots_per_rank, found.num_experts, found.layers)
    else {
        let has = [
            (EP_SIZE, found.ep_size.is_some()),
            (SLOTS_PER_RANK, has_slots_per_rank),
            (NUM_EXPERTS, found.num_experts.is_some()),
        ];
        let missing = has.into_iter().find(|&(_, has)| !has).map_or(LAYERS, |(key, _)| key);
        return refuse(format!("the key \"{missing}\" is missing: the file is not complete"));
    };
    let Some((&first, row)) = layers.first_key_value() else {
        return refuse(format!("{LAYERS} lists no layer"));
    };
    let num_slots = row.len();
    let rank_num_slots = match slots_per_rank {
        SlotsPerRank::Equal(each) => {
            if (each as usize).checked_mul(ep_size) != Some(num_slots) {
                return refuse(format!(
                    "layer {first} lists {num_slots} slots, expected {SLOTS_PER_RANK} {each} times {EP_SIZE} {ep_size}"
                ));
            }
            vec![each; ep_size]
        }
        SlotsPerRank::OfRanks(slots) => slots,
    };
    let shape = Shape::new(num_experts, num_slots, ep_size)?;
    let layer_updates_per_iter = found.layer_updates_per_iter;
    let file = OwnFile { shape, rank_num_slots, layers, layer_updates_per_iter };
    file.check_hash(found.hash.as_deref())?;
    Ok(file)
}

impl OwnFile {
    /// Fails if the layers make no placement, or one with another hash than is `written`.
    fn check_hash(&self, written: Option<&str>) -> Result<()> {
        for (layer, experts) in &self.layers {
            if experts.len() != self.shape.num_slots() {
                return refuse(format!(
                    "layer {layer} lists {} slots, the first layer {}",
                    experts.len(),
                    self.shape.num_slots()
                ));
            }
        }
        let numbers: Vec<u32> = self.layers.keys().copied().collect();
        let slot_experts: Vec<u32> = self.layers.values().flatten().copied().collect();
        let ranks = Some(&self.rank_num_slots[..]);
        let hash = Placement::with_empty_slots(self.shape, ranks, &numbers, &slot_experts)?.hash();
        let Some(written) = written else { return Ok(()) };
        match written.len() == 16 && u64::from_str_radix(written, 16) == Ok(hash) {
            true => Ok(()),
            false => refuse(format!(
                "{HASH} is {}, the placement's is {hash:016x}: the file was edited or truncated; write it again, or \
                 remove the line {HASH} to use it as it is",
                shortened(written)
            )),
        }
    }
}

fn refuse<T>(what: String) -> Result<T> {
    Err(Error::InvalidPlacement(what))
}

impl Placement {
    /// Returns the text of eplb's own file, which holds any placement.
    pub fn to_eplb_yaml(&self) -> String {
        let shape: Shape = self.shape();
        let mut yaml = format!("{VERSION_KEY}: {VERSION}\n{EP_SIZE}: {}\n", shape.num_ranks());
        let slots = self.rank_num_slots();
        let _ = match slots.iter().all(|&slots| slots as usize == shape.slots_per_rank()) {
            true => writeln!(yaml, "{SLOTS_PER_RANK}: {}", shape.slots_per_rank()),
            // A list of integers is the same in YAML.
            false => writeln!(yaml, "{SLOTS_PER_RANK}: {slots:?}"),
        };
        let _ = writeln!(yaml, "{NUM_EXPERTS}: {}\n{HASH}: \"{:016x}\"", shape.num_experts(), self.hash());
        if self.layer_updates_per_iter() != 0 {
            let _ = writeln!(yaml, "{UPDATES}: {}", self.layer_updates_per_iter());
        }
        let _ = writeln!(yaml, "{LAYERS}:");
        for (layer, experts) in self.iter() {
            let _ = write!(yaml, "  {layer}: ");
            for (slot, &expert) in experts.iter().enumerate() {
                let separator = if slot == 0 { "[" } else { ", " };
                let _ = match expert {
                    NO_EXPERT => write!(yaml, "{separator}-1"),
                    _ => write!(yaml, "{separator}{expert}"),
                };
            }
            yaml.push_str("]\n");
        }
        yaml
    }
}

/// The content of a file as it is read.
#[derive(Default)]
struct Found {
    ep_size: Option<usize>,
    slots_per_rank: Option<SlotsPerRank>,
    num_experts: Option<usize>,
    hash: Option<String>,
    layer_updates_per_iter: u32,
    layers: Option<BTreeMap<u32, Vec<u32>>>,
}

enum SlotsPerRank {
    Equal(u32),
    OfRanks(Vec<u32>),
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a placement with {}", KEYS.join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Found, A::Error> {
        let (mut found, mut seen) = (Found::default(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                VERSION_KEY => {
                    let version: u64 = map.next_value()?;
                    if version != VERSION {
                        return Err(de::Error::custom(format!(
                            "{VERSION_KEY} is {version}, this version of eplb reads {VERSION}: read the file with a \
                             newer one"
                        )));
                    }
                }
                EP_SIZE => found.ep_size = Some(map.next_value_seed(count(EP_SIZE))? as usize),
                SLOTS_PER_RANK => found.slots_per_rank = Some(map.next_value_seed(SlotsPerRankSeed)?),
                NUM_EXPERTS => found.num_experts = Some(map.next_value_seed(count(NUM_EXPERTS))? as usize),
                HASH => found.hash = Some(map.next_value()?),
                UPDATES => found.layer_updates_per_iter = map.next_value_seed(updates())? as u32,
                LAYERS => {
                    found.layers = map.next_value_seed(AssignmentsSeed { key: LAYERS, empty_slots: true })?
                }
                unknown => return Err(de::Error::custom(unknown_key(&shortened(unknown), &KEYS))),
            }
            if seen.contains(&key) {
                return Err(de::Error::custom(repeated_key(&key)));
            }
            seen.push(key);
        }
        match seen.iter().any(|key| key == VERSION_KEY) {
            true => Ok(found),
            false => Err(de::Error::custom(format!("the key \"{VERSION_KEY}\" is missing"))),
        }
    }
}

/// A number from 1 to [`MAX_COUNT`], of the key.
fn count(key: &str) -> Whole<String> {
    Whole { what: format!("{key}, a number from 1 to {MAX_COUNT}"), range: 1..=MAX_COUNT as i64 }
}

/// A number of slots, or a list of them.
struct SlotsPerRankSeed;

impl<'de> DeserializeSeed<'de> for SlotsPerRankSeed {
    type Value = SlotsPerRank;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<SlotsPerRank, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SlotsPerRankSeed {
    type Value = SlotsPerRank;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{SLOTS_PER_RANK}, a number from 1 to {MAX_COUNT} or one of each rank")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> std::result::Result<SlotsPerRank, E> {
        count(SLOTS_PER_RANK).visit_u64(number).map(|number| SlotsPerRank::Equal(number as u32))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<SlotsPerRank, A::Error> {
        let mut slots = Vec::new();
        while let Some(number) = seq.next_element_seed(count(SLOTS_PER_RANK))? {
            if slots.len() == MAX_COUNT {
                return Err(de::Error::custom(format!("{SLOTS_PER_RANK} lists more than {MAX_COUNT} ranks")));
            }
            slots.push(number as u32);
        }
        Ok(SlotsPerRank::OfRanks(slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{ConfigFile, Expected, MissingLayers};

    const FILE: &str = "eplb_placement: 1\nep_size: 2\nslots_per_rank: [3, 2]\nnum_experts: 4\n\
                        hash: \"@\"\nlayers:\n  3: [0, -1, 1, 2, 3, -1]\n  10: [3, 2, 1, 0, -1, -1]\n";

    fn a_placement() -> Placement {
        let shape = Shape::new(4, 6, 2).unwrap();
        let none = NO_EXPERT;
        let rows = [0, none, 1, 2, 3, none, 3, 2, 1, 0, none, none];
        Placement::with_empty_slots(shape, Some(&[3, 2]), &[3, 10], &rows).unwrap()
    }

    fn file() -> String {
        FILE.replace('@', &format!("{:016x}", a_placement().hash()))
    }

    fn read(text: &str, expected: Expected) -> Result<Placement> {
        ConfigFile::parse(text)?.placement(expected)
    }

    fn refused(was: &str, is: &str) -> String {
        let text = file();
        assert!(text.contains(was), "{was}");
        read(&text.replacen(was, is, 1), Expected::default()).unwrap_err().to_string()
    }

    #[test]
    fn text_reads_back_as_the_same_placement() {
        assert_eq!(a_placement().to_eplb_yaml(), file());
        assert_eq!(read(&file(), Expected::default()).unwrap(), a_placement());
        let updating = a_placement().with_layer_updates_per_iter(3);
        assert!(updating.to_eplb_yaml().contains("\nlayer_updates_per_iter: 3\nlayers:\n"));
        assert_eq!(read(&updating.to_eplb_yaml(), Expected::default()).unwrap(), updating);
        // One number for ranks of equal size, also if both have an empty slot within.
        let shape = Shape::new(2, 4, 2).unwrap();
        let equal = Placement::with_empty_slots(shape, None, &[1], &[0, NO_EXPERT, NO_EXPERT, 1]).unwrap();
        assert!(equal.to_eplb_yaml().contains("\nslots_per_rank: 2\n"));
        assert_eq!(read(&equal.to_eplb_yaml(), Expected::default()).unwrap(), equal);
        // Ranks of equal size that have fewer slots than are numbered.
        let narrow = Placement::with_rank_num_slots(shape, &[1, 1], &[1], &[0, NO_EXPERT, 1, NO_EXPERT]);
        let narrow = narrow.unwrap();
        assert!(narrow.to_eplb_yaml().contains("\nslots_per_rank: [1, 1]\n"));
        assert_eq!(read(&narrow.to_eplb_yaml(), Expected::default()).unwrap(), narrow);
        // Any style of YAML.
        let flow =
            "{\"eplb_placement\": 1, ep_size: 1, slots_per_rank: 2, num_experts: 2, layers: {0: [1, 0]}}";
        assert_eq!(read(flow, Expected::default()).unwrap().layer_experts(0).unwrap(), [1, 0]);
    }

    #[test]
    fn edited_and_truncated_files_are_named_as_such() {
        let hash = format!("{:016x}", a_placement().hash());
        let edited = refused("3: [0, -1, 1,", "3: [1, -1, 0,");
        assert!(
            edited.starts_with(&format!("hash is {hash}, the placement's is "))
                && edited.ends_with("write it again, or remove the line hash to use it as it is"),
            "{edited}"
        );
        let cut = file();
        let cut = &cut[..cut.find("  10:").unwrap()];
        let message = read(cut, Expected::default()).unwrap_err().to_string();
        assert!(message.contains("the file was edited or truncated"), "{message}");
        let message = refused(&hash, "12");
        assert!(message.starts_with("hash is 12, the placement's is "), "{message}");
        let unhashed = file().replace(&format!("hash: \"{hash}\"\n"), "").replace("[0, -1, 1,", "[1, -1, 0,");
        assert_eq!(read(&unhashed, Expected::default()).unwrap().rank_experts(3, 0).unwrap()[0], 1);
    }

    #[test]
    fn errors_name_key_layer_rank_and_slot() {
        for (was, is, message) in [
            (
                "eplb_placement: 1",
                "eplb_placement: 2",
                "eplb_placement is 2, this version of eplb reads 1: read the file with a newer one",
            ),
            ("num_experts: 4", "num_expert: 4", "unknown key \"num_expert\"; did you mean \"num_experts\"?"),
            ("num_experts: 4", "num_slots: 6", "unknown key \"num_slots\"; did you mean"),
            ("ep_size: 2\n", "", "the key \"ep_size\" is missing: the file is not complete"),
            ("slots_per_rank: [3, 2]\n", "", "the key \"slots_per_rank\" is missing"),
            ("ep_size: 2\n", "ep_size: 2\nep_size: 2\n", "the key \"ep_size\" is given twice"),
            ("ep_size: 2", "ep_size: 4", "6 slots cannot be split evenly over 4 ranks"),
            ("ep_size: 2", "ep_size: 0", "integer `0`, expected ep_size, a number from 1 to 1048576"),
            ("[3, 2]", "[3, 2, 2]", "rank_num_slots has 3 values, there are 2 ranks"),
            ("[3, 2]", "[3, 4]", "rank 1 has 4 slots, 1 to 3 expected"),
            ("[3, 2]", "2", "layer 3 lists 6 slots, expected slots_per_rank 2 times ep_size 2"),
            ("[3, 2]", "[3, -1]", "integer `-1`, expected slots_per_rank, a number from 1 to 1048576"),
            (
                "[3, 2]",
                "x",
                "string \"x\", expected slots_per_rank, a number from 1 to 1048576 or one of each",
            ),
            (
                "3, -1]",
                "3, 0]",
                "layer 3, rank 1, slot 5: expert 0 is in a slot beyond the 2 slots of the rank",
            ),
            ("3: [0, -1,", "3: [0, -2,", "integer `-2`, expected the expert of layer 3, slot 1, or -1"),
            (
                "3: [0, -1,",
                "3: [0, 4,",
                "layer 3, rank 0, slot 1: expert 4 does not exist; experts are 0 to 3",
            ),
            ("2, 3, -1]", "2, -1, -1]", "layer 3: expert 3 has no slot; every expert needs one"),
            (" 10: [3, 2, 1,", " 10: [3, 2,", "layer 10 lists 5 slots"),
            ("  10:", "  3:", "layer 3 is given twice in layers"),
        ] {
            let found = refused(was, is);
            assert!(found.contains(message), "{was} -> {is}: {found}");
        }
        let none = "eplb_placement: 1\nep_size: 2\nslots_per_rank: 1\nnum_experts: 1\nlayers: {}\n";
        assert_eq!(read(none, Expected::default()).unwrap_err().to_string(), "layers lists no layer");
        let nested = "eplb_placement: 1\nslots_per_rank: [[[[[1]]]]]\n";
        assert!(read(nested, Expected::default()).unwrap_err().to_string().contains("nested too deeply"));
    }

    #[test]
    fn what_the_caller_knows_is_checked_and_missing_layers_are_filled() {
        let with = |expected| read(&file(), expected).map_err(|error| error.to_string());
        let expected = Expected::default();
        assert_eq!(
            with(Expected { num_experts: Some(8), ..expected }).unwrap_err(),
            "num_experts is 4, 8 experts expected"
        );
        assert_eq!(
            with(Expected { num_ranks: Some(4), ..expected }).unwrap_err(),
            "ep_size is 2, 4 ranks expected"
        );
        assert_eq!(
            with(Expected { num_slots: Some(8), ..expected }).unwrap_err(),
            "a layer has 6 slots, 8 slots expected"
        );
        let layers = Some(&[3, 4][..]);
        assert_eq!(with(Expected { layers, ..expected }).unwrap_err(), "layer 4 is missing from the file");
        let filled = |missing_layers| with(Expected { layers, missing_layers, ..expected }).unwrap();
        assert_eq!(
            filled(MissingLayers::CopyLast).layer_experts(4).unwrap(),
            a_placement().layer_experts(10).unwrap()
        );
        // Empty slots as in the last layer. Rank 0 begins with expert 0, rank 1 with 4 / 2 = 2.
        let none = NO_EXPERT;
        let text = "eplb_placement: 1\nep_size: 2\nslots_per_rank: 3\nnum_experts: 4\nlayers:\n  3: [3, 2, -1, 1, -1, 0]\n";
        let sequential = Expected { layers, missing_layers: MissingLayers::Sequential, ..expected };
        assert_eq!(read(text, sequential).unwrap().layer_experts(4).unwrap(), [0, 1, none, 2, none, 3]);
        assert_eq!(
            with(sequential).unwrap_err(),
            "layer 4 is not in the file, and the experts in order do not fit its slots: expert 3 gets none; use \
             EPLB_MISSING_LAYERS_COPY_LAST"
        );
    }
}
