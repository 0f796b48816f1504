//! The configuration file `moe_load_balancer.yaml`, in the format of TensorRT-LLM's offline EP load balancer. What
//! it cannot hold is in eplb's own file: see [`super::own_file`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::keys::{ASSIGNMENTS, Keys, NUM_SLOTS, Values};
use super::own_file::{self, OwnFile};
use super::planned_for::PlannedFor;
use super::yaml::{EP_SIZE, MAX_SLOTS_OF_ALL_LAYERS, UPDATES, the_document, too_many_slots};
use super::{NO_EXPERT, Placement, Shape, hash_of, held_slots, replica_counts};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};

/// Published models stay well below this limit: 100 layers of 8,192 slots take 5 MB. A YAML parser needs about 70
/// times a file's size in memory.
const MAX_FILE_BYTES: u64 = 8 << 20;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// The content of a configuration file, before the model is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// The expert of each slot by layer, [`NO_EXPERT`] in empty ones. `None` means the experts in order.
    pub assignments: Option<BTreeMap<u32, Vec<u32>>>,
    /// Layers that an online balancer moves in an iteration. 0 in a file for offline balancing.
    pub layer_updates_per_iter: u32,
    /// Slots of all ranks together; `None` means one per expert.
    pub num_slots: Option<usize>,
    /// Ranks: the key `ep_size`, which only some versions write, or else those of `planned_for`.
    pub ep_size: Option<usize>,
    /// The last line of a file that eplb planned by another policy than `trtllm`.
    pub planned_for: Option<PlannedFor>,
    /// What only eplb's own file has. `None`: the file is TensorRT-LLM's.
    pub own: Option<OwnFields>,
}

/// The fields that only eplb's own file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFields {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Slots of each rank: see [`Placement::with_rank_num_slots`].
    pub rank_num_slots: Vec<u32>,
}

impl From<OwnFile> for ConfigFile {
    fn from(file: OwnFile) -> Self {
        ConfigFile {
            num_slots: Some(file.shape.num_slots()),
            ep_size: Some(file.shape.num_ranks()),
            own: Some(OwnFields {
                num_experts: file.shape.num_experts(),
                rank_num_slots: file.rank_num_slots,
            }),
            assignments: Some(file.layers),
            layer_updates_per_iter: file.layer_updates_per_iter,
            planned_for: None,
        }
    }
}

/// What the caller knows of the model. A `None` is taken from the file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    /// Experts of a layer. `None`: the highest expert of the file, plus 1.
    pub num_experts: Option<usize>,
    /// Ranks (the EP size). Most files lack it.
    pub num_ranks: Option<usize>,
    /// Required layers. Other layers of the file are kept.
    pub layers: Option<&'a [u32]>,
    /// Slots of all ranks together, as a check.
    pub num_slots: Option<usize>,
    /// How to fill those of `layers` that the file lacks.
    pub missing_layers: MissingLayers,
}

/// How to fill a layer that the model has and the file lacks, such as one for multi-token prediction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MissingLayers {
    /// Refuse the file.
    #[default]
    Refuse,
    /// Copy the experts of the file's last layer.
    CopyLast,
    /// Place the experts in order, as if the file had no assignments. Slots that its last layer leaves empty stay empty.
    Sequential,
}

impl ConfigFile {
    /// Reads a file and makes the checks that do not need the model. A file that was edited after eplb planned it is a warning.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = Vec::new();
        let file = File::open(path).map_err(|e| Error::read(path, e))?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|e| Error::read(path, e))?;
        let refuse = |message: &str| Err(Error::InvalidPlacement(message.to_owned()).in_file(path));
        if text.len() as u64 > MAX_FILE_BYTES {
            return refuse(&format!(
                "the file has more than {MAX_FILE_BYTES} bytes; a configuration file is smaller"
            ));
        }
        let Ok(text) = str::from_utf8(&text) else { return refuse("the file is not UTF-8 text") };
        let config = Self::parse(text).map_err(|e| e.in_file(path))?;
        if let Some(warning) = config.warning() {
            log::warn!("{}: {warning}", path.display());
        }
        Ok(config)
    }

    /// Parses the text of TensorRT-LLM's file or of eplb's own. Unknown and repeated keys are errors.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        if own_file::is_own_text(text) {
            return own_file::parse(text).map(ConfigFile::from);
        }
        let Values { assignments, layer_updates_per_iter, num_slots, ep_size } = the_document(text, Keys)?;
        if num_slots == Some(0) {
            let message = format!(
                "{NUM_SLOTS} is 0, with which TensorRT-LLM switches its load balancer off: there is no placement; write the \
                 number of slots of all ranks, at least one for each expert"
            );
            return Err(Error::InvalidPlacement(message));
        }
        let planned_for = PlannedFor::find(text)?;
        if let (Some(planned_for), Some(ep_size)) = (&planned_for, ep_size) {
            planned_for.check_num_ranks(ep_size)?;
        }
        let ep_size = ep_size.or(planned_for.map(|planned_for| planned_for.ep_size));
        Ok(ConfigFile { assignments, layer_updates_per_iter, num_slots, ep_size, planned_for, own: None })
    }

    /// What is odd about a file that is read nevertheless.
    fn warning(&self) -> Option<String> {
        let num_experts = self.num_experts()?;
        let Some(num_slots) = self.num_slots else {
            return Some(format!(
                "{NUM_SLOTS} is not given: read as one slot for each expert; TensorRT-LLM refuses such a file"
            ));
        };
        let planned_for = self.planned_for?;
        let layers = self.assignments.iter().flatten().map(|(&layer, experts)| (layer, &experts[..]));
        let hash = hash_of(num_experts, num_slots, planned_for.ep_size, layers);
        (hash != planned_for.hash).then(|| {
            format!(
                "its last line is \"{planned_for}\", but its placement has the hash {hash:016x}: the file was edited \
                 after it was planned; generate it again, or remove the line"
            )
        })
    }

    /// The number of experts that the file has: in TensorRT-LLM's the highest expert, plus 1.
    pub fn num_experts(&self) -> Option<usize> {
        let slots = || self.assignments.iter().flat_map(BTreeMap::values);
        let highest = || slots().flat_map(|experts| held_slots(experts)).map(|(_, expert)| expert).max();
        match &self.own {
            Some(own) => Some(own.num_experts),
            None => highest().map(|expert| expert as usize + 1),
        }
    }

    /// Builds the placement of a model from this file.
    ///
    /// Fails with [`Error::InvalidPlacement`] naming layer and slot, or with [`Error::InvalidShape`].
    pub fn placement(&self, expected: Expected<'_>) -> Result<Placement> {
        let num_ranks = match (expected.num_ranks, self.ep_size) {
            (Some(wanted), Some(written)) if wanted != written => {
                self.planned_for.map_or(Ok(()), |planned_for| planned_for.check_num_ranks(wanted))?;
                return Err(Error::InvalidPlacement(format!(
                    "{EP_SIZE} is {written}, {wanted} ranks expected"
                )));
            }
            (Some(n), _) | (None, Some(n)) => n,
            (None, None) => {
                return Err(Error::InvalidArgument(
                    "the file has no ep_size; set num_ranks (--ep_size)".into(),
                ));
            }
        };
        if self.assignments.as_ref().is_some_and(BTreeMap::is_empty) {
            return Err(Error::InvalidPlacement(format!("{ASSIGNMENTS} lists no layer")));
        }
        if let (Some(own), Some(wanted)) = (&self.own, expected.num_experts)
            && own.num_experts != wanted
        {
            let message = format!("num_experts is {}, {wanted} experts expected", own.num_experts);
            return Err(Error::InvalidPlacement(message));
        }
        let num_experts = expected.num_experts.or_else(|| self.num_experts()).ok_or_else(|| {
            Error::InvalidArgument(format!("the file has no {ASSIGNMENTS}: give the number of experts"))
        })?;
        let shape =
            Shape::new(num_experts, self.num_slots.unwrap_or(num_experts), num_ranks).map_err(|error| {
                match expected.num_ranks {
                    Some(_) => error,
                    None => Error::InvalidPlacement(format!("{EP_SIZE} is {num_ranks}: {error}")),
                }
            })?;
        if let Some(wanted) = expected.num_slots.filter(|&wanted| wanted != shape.num_slots()) {
            let has = if self.own.is_some() { "a layer has" } else { "num_slots is" };
            let unit = if self.own.is_some() { " slots" } else { "" };
            return Err(Error::InvalidPlacement(format!(
                "{has} {}{unit}, {wanted} slots expected",
                shape.num_slots()
            )));
        }
        let placement = match &self.assignments {
            Some(assignments) => self.assigned(shape, assignments, expected)?,
            None => {
                let layers = expected.layers.ok_or_else(|| {
                    Error::InvalidArgument(format!("the file has no {ASSIGNMENTS}: give the layers"))
                })?;
                if shape.num_slots().saturating_mul(layers.len()) > MAX_SLOTS_OF_ALL_LAYERS {
                    return Err(Error::InvalidPlacement(too_many_slots()));
                }
                Placement::new(shape, layers, &experts_in_order(shape).repeat(layers.len()))?
            }
        };
        let is_as_planned = self.planned_for.is_some_and(|planned_for| planned_for.hash == placement.hash());
        Ok(placement.with_layer_updates_per_iter(self.layer_updates_per_iter).with_planned(is_as_planned))
    }

    fn assigned(
        &self,
        shape: Shape,
        assignments: &BTreeMap<u32, Vec<u32>>,
        expected: Expected<'_>,
    ) -> Result<Placement> {
        for (layer, experts) in assignments {
            if experts.len() != shape.num_slots() {
                return Err(Error::InvalidPlacement(format!(
                    "layer {layer} lists {} slots, {NUM_SLOTS} is {}",
                    experts.len(),
                    shape.num_slots()
                )));
            }
        }
        let last = assignments.last_key_value().map(|(_, experts)| &experts[..]).unwrap_or_default();
        let needed = expected.layers.unwrap_or_default();
        let missing: Vec<u32> =
            needed.iter().copied().filter(|layer| !assignments.contains_key(layer)).collect();
        let fill = match (missing.first(), expected.missing_layers) {
            (Some(layer), MissingLayers::Refuse) => {
                let place = if self.own.is_some() { "the file" } else { ASSIGNMENTS };
                return Err(Error::InvalidPlacement(format!("layer {layer} is missing from {place}")));
            }
            (Some(layer), MissingLayers::Sequential) => {
                let fill = experts_in_order_of(shape, last);
                if let Some(expert) = replica_counts(shape, &fill).iter().position(|&slots| slots == 0) {
                    return Err(Error::InvalidPlacement(format!(
                        "layer {layer} is not in the file, and the experts in order do not fit its slots: expert \
                         {expert} gets none; use EPLB_MISSING_LAYERS_COPY_LAST"
                    )));
                }
                fill
            }
            _ => last.to_vec(),
        };
        if (assignments.len() + missing.len()).saturating_mul(shape.num_slots()) > MAX_SLOTS_OF_ALL_LAYERS {
            return Err(Error::InvalidPlacement(too_many_slots()));
        }
        let layers: Vec<u32> = assignments.keys().copied().chain(missing.iter().copied()).collect();
        let filled = missing.iter().flat_map(|_| &fill);
        let slot_experts: Vec<u32> = assignments.values().flatten().chain(filled).copied().collect();
        match &self.own {
            Some(own) => {
                Placement::with_empty_slots(shape, Some(&own.rank_num_slots), &layers, &slot_experts)
            }
            None => Placement::new(shape, &layers, &slot_experts),
        }
    }
}

/// Returns TensorRT-LLM's placement for a file without assignments: slot `i` of rank `r` holds `(r * E / R +
/// i) % E`.
pub(crate) fn experts_in_order(shape: Shape) -> Vec<u32> {
    experts_in_order_of(shape, &vec![0; shape.num_slots()])
}

/// The same with empty slots where `like` has them. They are not counted by `i`.
fn experts_in_order_of(shape: Shape, like: &[u32]) -> Vec<u32> {
    let (num_experts, width) = (shape.num_experts(), shape.slots_per_rank());
    let mut experts = vec![NO_EXPERT; shape.num_slots()];
    for (rank, (row, like)) in experts.chunks_exact_mut(width).zip(like.chunks_exact(width)).enumerate() {
        for (i, (slot, _)) in held_slots(like).enumerate() {
            row[slot] = ((rank * num_experts / shape.num_ranks() + i) % num_experts) as u32;
        }
    }
    experts
}

impl Placement {
    /// Reads TensorRT-LLM's configuration file or eplb's own file. See [`ConfigFile::placement`].
    pub fn load(path: &Path, expected: Expected<'_>) -> Result<Self> {
        ConfigFile::read(path)?.placement(expected).map_err(|e| e.in_file(path))
    }

    /// Writes the file: eplb's own if the name ends in `.eplb.yaml`, else TensorRT-LLM's. Replaces an existing
    /// file atomically: if the process dies, the old file or the new one exists, complete. Fails as
    /// [`Placement::to_yaml`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let yaml = self.text_for(path)?;
        AtomicFile::create(path)?.replace(|file| file.write_all(yaml.as_bytes()))
    }

    /// Writes as [`Placement::save`] does, to a file that was created before.
    pub(crate) fn save_to(&self, file: AtomicFile) -> Result<()> {
        let yaml = self.text_for(file.path())?;
        file.replace(|file| file.write_all(yaml.as_bytes()))
    }

    fn text_for(&self, path: &Path) -> Result<String> {
        match own_file::is_own_name(path) {
            true => Ok(self.to_eplb_yaml()),
            false => self.to_yaml().map_err(|error| error.in_file(path)),
        }
    }

    /// Returns the text of the configuration file, with the bytes that PyYAML writes for TensorRT-LLM. A placement that
    /// eplb planned by another policy than `trtllm` gets a last line with the number of ranks and the hash, as a comment.
    ///
    /// Fails with [`Error::InvalidPlacement`] if a slot is empty.
    pub fn to_yaml(&self) -> Result<String> {
        self.check_no_empty_slot(FILE_NAME)?;
        let mut yaml = format!("{ASSIGNMENTS}:\n");
        for (layer, experts) in self.iter() {
            let mut separator = "[";
            let _ = write!(yaml, "  {layer}: ");
            for expert in experts {
                let _ = write!(yaml, "{separator}{expert}");
                separator = ", ";
            }
            yaml.push_str("]\n");
        }
        let _ = write!(
            yaml,
            "{UPDATES}: {}\n{NUM_SLOTS}: {}\n",
            self.layer_updates_per_iter(),
            self.shape().num_slots()
        );
        if self.is_planned() {
            let _ = writeln!(yaml, "{}", PlannedFor::of(self));
        }
        Ok(yaml)
    }
}

/// The name of the format in messages.
const FILE_NAME: &str = "TensorRT-LLM's configuration file";

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "initial_global_assignments:\n  3: [0, 1, 2, 2]\n  10: [2, 0, 1, 0]\n\
                        layer_updates_per_iter: 0\nnum_slots: 4\n";

    fn placement(text: &str, expected: Expected) -> Result<Placement> {
        ConfigFile::parse(text)?.placement(expected)
    }

    fn on_two_ranks(text: &str) -> String {
        placement(text, Expected { num_ranks: Some(2), ..Default::default() }).unwrap_err().to_string()
    }

    #[test]
    fn to_yaml_reproduces_the_parsed_file_to_the_byte() {
        let expected =
            Expected { num_ranks: Some(2), num_experts: Some(3), layers: Some(&[10]), ..Default::default() };
        let read = placement(FILE, expected).unwrap();
        assert_eq!(read.layers(), [3, 10]);
        assert_eq!(read.rank_experts(10, 0).unwrap(), [2, 0]);
        assert_eq!(read.to_yaml().unwrap(), FILE);
        let updating = FILE.replace("iter: 0", "iter: 2");
        assert_eq!(placement(&updating, expected).unwrap().to_yaml().unwrap(), updating);
    }

    #[test]
    fn ep_size_is_read_and_never_written() {
        let with_ep_size = format!("ep_size: 2\n{FILE}");
        assert_eq!(placement(&with_ep_size, Expected::default()).unwrap().to_yaml().unwrap(), FILE);
        for ranks in ["0", "3", "99999999999"] {
            let wrong = format!("ep_size: {ranks}\n{FILE}");
            let error = placement(&wrong, Expected::default()).unwrap_err();
            assert!(matches!(error, Error::InvalidPlacement(_)), "{error}");
            assert!(error.to_string().starts_with(&format!("ep_size is {ranks}: ")), "{error}");
        }
        let four = Expected { num_ranks: Some(4), ..Default::default() };
        assert_eq!(placement(&with_ep_size, four).unwrap_err().to_string(), "ep_size is 2, 4 ranks expected");
        assert_eq!(
            placement(FILE, Expected::default()).unwrap_err().to_string(),
            "the file has no ep_size; set num_ranks (--ep_size)"
        );
    }

    #[test]
    fn null_num_slots_means_one_per_expert_and_missing_assignments_mean_in_order() {
        let null = "initial_global_assignments:\n  0: [1, 0]\nnum_slots: null\n";
        let expected = Expected { num_ranks: Some(2), ..Default::default() };
        assert_eq!(placement(null, expected).unwrap().shape().num_slots(), 2);

        // 5 experts, 3 ranks, 9 slots: ranks start at expert 0, floor(5/3) = 1 and floor(10/3) = 3.
        let expected = Expected {
            num_ranks: Some(3),
            num_experts: Some(5),
            layers: Some(&[4, 8]),
            ..Default::default()
        };
        let spread = placement("num_slots: 9\n", expected).unwrap();
        assert_eq!(spread.layers(), [4, 8]);
        assert_eq!(spread.layer_experts(8).unwrap(), [0, 1, 2, 1, 2, 3, 3, 4, 0]);
        assert_eq!(
            on_two_ranks("num_slots: 9\n"),
            "the file has no initial_global_assignments: give the number of experts"
        );
    }

    #[test]
    fn parse_rejects_unknown_and_repeated_keys() {
        assert_eq!(
            on_two_ranks(&FILE.replace("num_slots", "num_slot")),
            "unknown key \"num_slot\"; did you mean \"num_slots\"?"
        );
        let message = on_two_ranks(&format!("{FILE}colour: red\n"));
        assert!(
            message.starts_with("unknown key \"colour\"; the keys are initial_global_assignments,"),
            "{message}"
        );
        assert!(
            on_two_ranks(&format!("{FILE}num_slots: 4\n"))
                .starts_with("the key \"num_slots\" is given twice")
        );
    }

    #[test]
    fn errors_name_layer_and_slot() {
        for (was, is, message) in [
            ("[0, 1, 2, 2]", "[0, 1, 2]", "layer 3 lists 3 slots, num_slots is 4"),
            ("[0, 1, 2, 2]", "[0, 1, 0, 1]", "layer 3: expert 2 has no slot; every expert needs one"),
            ("num_slots: 4", "num_slots: 5", "5 slots cannot be split evenly over 2 ranks"),
            (
                "[2, 0, 1, 0]",
                "[2, 0, x, 0]",
                "invalid type: string \"x\", expected the expert of layer 10, slot 2 at line 3",
            ),
            (
                "[2, 0, 1, 0]",
                "[2, 0, -1, 0]",
                "integer `-1`, expected the expert of layer 10, slot 2 at line 3",
            ),
            (
                "[2, 0, 1, 0]",
                "[2, 0, 1.5, 0]",
                "floating point `1.5`, expected the expert of layer 10, slot 2 at line 3",
            ),
            ("[2, 0, 1, 0]", "7", "invalid type: integer `7`, expected the list of experts of layer 10"),
            ("  10:", "  3:", "layer 3 is given twice in initial_global_assignments"),
            ("  10:", "  ten:", "invalid type: string \"ten\""),
        ] {
            let found = on_two_ranks(&FILE.replace(was, is));
            assert!(found.contains(message), "{found}");
        }
        let expected = Expected {
            num_ranks: Some(2),
            num_experts: Some(3),
            layers: Some(&[3, 4]),
            ..Default::default()
        };
        assert_eq!(
            placement(FILE, expected).unwrap_err().to_string(),
            "layer 4 is missing from initial_global_assignments"
        );
        let two_experts = Expected { num_ranks: Some(2), num_experts: Some(2), ..Default::default() };
        assert_eq!(
            placement(FILE, two_experts).unwrap_err().to_string(),
            "layer 3, rank 1, slot 2: expert 2 does not exist; experts are 0 to 1"
        );
    }

    #[test]
    fn parse_rejects_text_that_is_no_configuration_file() {
        assert_eq!(on_two_ranks(""), "the file is empty");
        assert!(on_two_ranks("- 1\n- 2\n").contains("expected a configuration file with"));
        assert!(on_two_ranks("num_slots: 4\n}").contains("line 2"));
        assert_eq!(
            on_two_ranks("num_slots: 1\n---\nnum_slots: 2\n"),
            "more than one YAML document in the file"
        );
        assert!(on_two_ranks("num_slots: &a [*a, *a]\n").contains("invalid type"));
    }

    #[test]
    fn missing_layers_are_filled_as_the_caller_chose() {
        let with = |missing_layers| {
            let layers = Some(&[11, 3, 10, 61][..]);
            let expected = Expected { num_ranks: Some(2), layers, missing_layers, ..Default::default() };
            placement(FILE, expected)
        };
        assert_eq!(
            with(MissingLayers::Refuse).unwrap_err().to_string(),
            "layer 11 is missing from initial_global_assignments"
        );
        let copied = with(MissingLayers::CopyLast).unwrap();
        assert_eq!(copied.layers(), [3, 10, 11, 61]);
        assert_eq!(copied.layer_experts(61).unwrap(), [2, 0, 1, 0]);
        // Three experts on two ranks of two slots: rank 0 begins with 0, rank 1 with 3 / 2 = 1.
        let sequential = with(MissingLayers::Sequential).unwrap();
        assert_eq!(sequential.layer_experts(11).unwrap(), [0, 1, 1, 2]);
        assert_eq!(sequential.layer_experts(10).unwrap(), [2, 0, 1, 0]);
    }

    #[test]
    fn placement_rejects_another_number_of_slots_than_expected() {
        let expected = Expected { num_ranks: Some(2), num_slots: Some(6), ..Default::default() };
        assert_eq!(placement(FILE, expected).unwrap_err().to_string(), "num_slots is 4, 6 slots expected");
    }
}
