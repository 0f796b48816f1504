//! Reads the files of SGLang's recorder, and `.pt` files for its `--init-expert-location`.
//!
//! Rules: `_StatAccumulator`, `_DetailAccumulator` and `_CircularBuffer` of python/sglang/srt/eplb/expert_distribution.py, and
//! `compute_initial_expert_location_metadata` of expert_location.py. The modes `stat` and `stat_approx` write one file with
//! `logical_count` `[buffer][layers][experts]`. The modes `per_pass` and `per_token` write one file a rank, with a list of
//! `records`, which count slots, and `last_physical_to_logical_map` `[layers][slots]`.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::{Path, PathBuf};

use super::array::{Array, MINUS_ONE, Values, place};
use super::pickle::Item;
use super::sglang::{self, LOGICAL_COUNT, PHYSICAL_TO_LOGICAL_MAP, RECORDS};
use super::torch::{Entries, TorchFile};
use crate::error::try_zeroed;
use crate::placement::MAX_COUNT;

const COUNT: &str = "global_physical_count";
const LAST_MAP: &str = "last_physical_to_logical_map";

/// The steps of a file of SGLang's recorder.
pub struct Recording {
    /// `[steps][layers][experts]`
    pub array: Array,
    /// Whether the steps are the whole buffer, in which some may be unused: see [`Ring`].
    pub is_buffer: bool,
}

/// Reads `logical_count`, or sums `records` to experts.
pub fn read_counts(bytes: &[u8], num_experts: Option<usize>) -> Result<Recording, String> {
    let file = TorchFile::open(bytes)?;
    let root = file.root()?;
    check_keys(root, LOGICAL_COUNT)?;
    if root.find(RECORDS)?.is_some() {
        let mut records = Records::new(num_experts);
        records.add(&file)?;
        return records.finish();
    }
    let array = file.array(root.get(LOGICAL_COUNT)?, LOGICAL_COUNT, false)?;
    Ok(Recording { array, is_buffer: true })
}

/// Reads `physical_to_logical_map`, with -1 as [`MINUS_ONE`].
pub fn read_map(bytes: &[u8]) -> Result<Array, String> {
    let file = TorchFile::open(bytes)?;
    let root = file.root()?;
    check_keys(root, PHYSICAL_TO_LOGICAL_MAP)?;
    file.array(root.get(PHYSICAL_TO_LOGICAL_MAP)?, PHYSICAL_TO_LOGICAL_MAP, true)
}

/// Returns whether a file holds a placement. Fails where it could be both.
pub fn is_map(bytes: &[u8]) -> Result<bool, String> {
    let file = TorchFile::open(bytes)?;
    let root = file.root()?;
    let is_map = root.find(PHYSICAL_TO_LOGICAL_MAP)?.is_some();
    check_keys(root, if is_map { PHYSICAL_TO_LOGICAL_MAP } else { LOGICAL_COUNT })?;
    Ok(is_map)
}

/// Refuses a file with the key of other contents. SGLang ignores keys that it does not know.
fn check_keys(root: Entries, wanted: &str) -> Result<(), String> {
    let mut keys: Vec<&str> = root.keys().filter(|&key| sglang::is_contents(key)).collect();
    keys.sort_unstable();
    match keys[..] {
        [key] if key == wanted || key == RECORDS && wanted == LOGICAL_COUNT => Ok(()),
        [key] => Err(sglang::other_contents(key, wanted)),
        [first, second, ..] => Err(sglang::two_contents(first, second)),
        [] => Ok(()),
    }
}

/// The files of a recording in a directory: one a rank. Empty where it has none.
pub fn files_of(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pt") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The records of the modes `per_pass` and `per_token`, summed over ranks and slots.
pub struct Records {
    num_experts: Option<usize>,
    /// Slots, layers and experts, those of the first file.
    shape: Option<[usize; 3]>,
    ranks: BTreeSet<i64>,
    /// The counts of each forward pass, `[layers][experts]`, and how many ranks recorded it.
    passes: BTreeMap<i64, (Vec<u64>, usize)>,
}

impl Records {
    /// Starts without files. `None`: the experts are those of the map.
    pub fn new(num_experts: Option<usize>) -> Self {
        Records { num_experts, shape: None, ranks: BTreeSet::new(), passes: BTreeMap::new() }
    }

    /// Adds the file of one rank.
    pub fn add(&mut self, file: &TorchFile) -> Result<(), String> {
        let root = file.root()?;
        if root.find(LOGICAL_COUNT)?.is_some() {
            return Err(
                "it is of the mode stat, so it has the counts of all ranks: read the file by itself".into()
            );
        }
        let records =
            file.sequence(root.get(RECORDS)?).ok_or_else(|| format!("\"{RECORDS}\" is not a list"))?;
        let map = file.array(root.get(LAST_MAP)?, LAST_MAP, true)?;
        let ([num_layers, num_slots], map) = map.rows().map_err(|what| format!("{LAST_MAP}: {what}"))?;
        let num_experts = self.experts_of(map, num_slots)?;
        let shape = [num_slots, num_layers, num_experts];
        let first = *self.shape.get_or_insert(shape);
        if first != shape {
            let [slots, layers, experts] = first;
            return Err(format!(
                "its {num_slots} slots of {num_layers} layers hold {num_experts} experts; other files have {slots}, {layers} and \
                 {experts}"
            ));
        }
        let mut rank = None;
        let (mut recorded, mut passes) = (BTreeSet::new(), BTreeSet::new());
        for (index, &record) in records.iter().enumerate() {
            let at = |what: String| format!("{RECORDS}[{index}]: {what}");
            let record = file.entries(record).ok_or_else(|| at("it is not a dictionary".into()))?;
            let integer = |key: &str| match record.get(key)? {
                Item::Int(value) => Ok(value),
                _ => Err(format!("\"{key}\" is not an integer")),
            };
            let (pass, of_rank) = (integer("forward_pass_id").map_err(at)?, integer("rank").map_err(at)?);
            let rank = *rank.get_or_insert(of_rank);
            if rank != of_rank {
                return Err(at(format!("it is of rank {of_rank}, others in the file of rank {rank}")));
            }
            // Two batches that overlap are two records of a pass, by other gatherers.
            let gatherer = record.find("gatherer_key").map_err(at)?.and_then(|key| file.text(key));
            if !recorded.insert((pass, gatherer)) {
                return Err(at(format!("forward pass {pass} is there twice")));
            }
            let counts = record.get(COUNT).and_then(|counts| file.array(counts, COUNT, false)).map_err(at)?;
            let ([layers, slots], counts) = counts.rows().map_err(|what| at(format!("{COUNT}: {what}")))?;
            if [layers, slots] != [num_layers, num_slots] {
                return Err(at(format!(
                    "{COUNT} has {layers} layers and {slots} slots, {LAST_MAP} {num_layers} and {num_slots}"
                )));
            }
            self.add_pass(pass, passes.insert(pass), counts, map, shape).map_err(at)?;
        }
        let rank = rank.ok_or_else(|| {
            format!("its \"{RECORDS}\" are empty: no forward pass was between start and dump")
        })?;
        if !self.ranks.insert(rank) {
            return Err(format!(
                "it is of rank {rank}, as another file: keep one recording, with one file a rank, in a directory"
            ));
        }
        Ok(())
    }

    /// Adds the counts of one rank's pass, by slot, to those of their experts.
    fn add_pass(
        &mut self,
        pass: i64,
        first_of_rank: bool,
        counts: &[u64],
        map: &[u64],
        [num_slots, num_layers, num_experts]: [usize; 3],
    ) -> Result<(), String> {
        let (experts, num_ranks) = match self.passes.entry(pass) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let none = try_zeroed(num_layers.checked_mul(num_experts), "the counts");
                entry.insert((none.map_err(|error| error.to_string())?, 0))
            }
        };
        *num_ranks += usize::from(first_of_rank);
        for (at, (&count, &expert)) in counts.iter().zip(map).enumerate() {
            let (layer, slot) = (at / num_slots, at % num_slots);
            if count == 0 {
                continue;
            }
            if expert == MINUS_ONE {
                let slot = place(&[layer, slot]);
                return Err(format!("{COUNT}{slot} is {count}, but {LAST_MAP}{slot} is -1, no expert"));
            }
            let sum = &mut experts[layer * num_experts + expert as usize];
            *sum = sum.checked_add(count).filter(|&sum| i64::try_from(sum).is_ok()).ok_or_else(|| {
                format!("layer {layer}, expert {expert}: the sum over slots and ranks exceeds 2^63")
            })?;
        }
        Ok(())
    }

    /// The experts of a map, each checked.
    fn experts_of(&self, map: &[u64], num_slots: usize) -> Result<usize, String> {
        let ids = || map.iter().copied().enumerate().filter(|&(_, id)| id != MINUS_ONE);
        let highest = ids().map(|(_, id)| id).max().ok_or_else(|| format!("{LAST_MAP} has no expert"))?;
        let most = self.num_experts.unwrap_or(MAX_COUNT) as u64;
        match ids().find(|&(_, id)| id >= most) {
            Some((at, id)) => {
                let at = place(&[at / num_slots, at % num_slots]);
                Err(format!("{LAST_MAP}{at} is {id}: there are {most} experts"))
            }
            None => Ok(self.num_experts.unwrap_or(highest as usize + 1)),
        }
    }

    /// Returns the counts, a step for each forward pass in the order of their numbers.
    pub fn finish(self) -> Result<Recording, String> {
        let Some([_, num_layers, num_experts]) = self.shape else { return Err("it has no files".into()) };
        // Ranks are numbered from 0, and a single file is read as that rank's own counts.
        let missing = match (self.ranks.len(), self.ranks.last()) {
            (2.., Some(&last)) => (0..=last).find(|rank| !self.ranks.contains(rank)),
            _ => None,
        };
        if let Some(rank) = missing {
            return Err(format!("the file of rank {rank} is missing: copy it into the directory"));
        }
        let partial = self.passes.iter().filter(|(_, (_, ranks))| *ranks != self.ranks.len());
        if let Some((pass, (_, ranks))) = partial.clone().next() {
            log::warn!(
                "{} forward passes were recorded by only some of the {} ranks, first {pass} by {ranks}: their counts are too low",
                partial.count(),
                self.ranks.len()
            );
        }
        let shape = vec![self.passes.len(), num_layers, num_experts];
        let mut counts = Vec::new();
        counts.try_reserve_exact(shape.iter().product()).map_err(|_| "out of memory".to_owned())?;
        self.passes.into_values().for_each(|(pass, _)| counts.extend(pass));
        let array = Array::new(shape, Values::Whole(counts))?;
        Ok(Recording { array, is_buffer: false })
    }
}

/// The order of the steps of the buffer of the recorder's mode `stat`.
pub struct Ring {
    /// The steps with counts, in the order in which they were counted as far as the file says.
    pub steps: Vec<usize>,
    /// The step that came first, if it is not the first one of the file.
    pub start: Option<usize>,
}

impl Ring {
    /// Orders the steps by which of them have counts.
    ///
    /// A dump does not rewind the buffer, so a later dump of a process begins anywhere and continues at the file's first step. One
    /// gap without counts, with counts before and behind it, is the part that was not written: the steps behind it came first.
    pub fn new(has_counts: &[bool]) -> Self {
        let all = has_counts.len();
        let used = |step: &usize| has_counts[*step];
        let ends_of_gaps: Vec<usize> = (1..all).filter(|&step| used(&step) && !used(&(step - 1))).collect();
        let start = match (has_counts, &ends_of_gaps[..]) {
            (&[true, .., true], &[end]) => Some(end),
            (&[true, .., true], &[_, _, ..]) => {
                log::warn!(
                    "{} gaps without counts between the steps, which keep the order of the file: if this is not the \
                     first dump of the process, they may begin at another step",
                    ends_of_gaps.len()
                );
                None
            }
            _ => None,
        };
        let first = start.unwrap_or(0);
        Ring { steps: (first..all).chain(0..first).filter(used).collect(), start }
    }

    /// The steps with counts in the order of the file.
    pub fn without_order(has_counts: &[bool]) -> Self {
        Ring { steps: (0..has_counts.len()).filter(|&step| has_counts[step]).collect(), start: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(steps: &str) -> (Vec<usize>, Option<usize>) {
        let has_counts: Vec<bool> = steps.chars().map(|step| step == 'x').collect();
        let Ring { steps, start } = Ring::new(&has_counts);
        (steps, start)
    }

    #[test]
    fn ring_begins_behind_its_only_gap() {
        assert_eq!(ring("xxxx...xxx"), (vec![7, 8, 9, 0, 1, 2, 3], Some(7)));
        assert_eq!(ring("x.x"), (vec![2, 0], Some(2)));
    }

    #[test]
    fn ring_keeps_the_order_of_a_file_that_does_not_say_another() {
        assert_eq!(ring("xxx..."), (vec![0, 1, 2], None));
        assert_eq!(ring("..xx.."), (vec![2, 3], None));
        assert_eq!(ring("..xx"), (vec![2, 3], None));
        assert_eq!(ring("xxx"), (vec![0, 1, 2], None));
        assert_eq!(ring("x.x.x"), (vec![0, 2, 4], None));
        assert_eq!(ring("x.x.."), (vec![0, 2], None));
        assert_eq!(ring("..."), (vec![], None));
        assert_eq!(ring("x"), (vec![0], None));
    }
}
