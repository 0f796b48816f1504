//! Which expert each slot holds: the placement, its checks and its file.

mod config_file;
mod keys;
mod layer_update;
mod own_file;
mod planned_for;
mod shape;
mod whole;
mod yaml;

pub(crate) use config_file::experts_in_order;
pub use config_file::{ConfigFile, Expected, MissingLayers, OwnFields};
pub use layer_update::LayerUpdate;
pub(crate) use own_file::is_own_name;
pub use planned_for::PlannedFor;
pub use shape::{MAX_COUNT, Shape, suggest_num_slots};

use crate::error::{Error, Result};

/// The content of an empty slot: see [`Placement::with_empty_slots`]. As a signed number, -1.
pub const NO_EXPERT: u32 = u32::MAX;

/// The expert of every slot of every layer. Each slot holds an existing expert or is empty, and each expert has
/// a slot.
///
/// Layers are the model's own numbers, ascending. An expert may have several slots, even on one rank (see
/// [`Placement::duplicates`]). A placement never changes, so threads may share it. Two are equal if they place the same,
/// [planned](Placement::is_planned) or not.
#[derive(Debug, Clone, Eq)]
pub struct Placement {
    shape: Shape,
    /// `[ranks]`, each at most [`Shape::slots_per_rank`].
    rank_num_slots: Vec<u32>,
    layers: Vec<u32>,
    /// `[layers][slots]`
    slot_experts: Vec<u32>,
    layer_updates_per_iter: u32,
    planned: bool,
}

impl PartialEq for Placement {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape
            && self.rank_num_slots == other.rank_num_slots
            && self.layers == other.layers
            && self.slot_experts == other.slot_experts
            && self.layer_updates_per_iter == other.layer_updates_per_iter
    }
}

/// A slot that repeats an expert of its own rank. One of the two is wasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicate {
    /// The layer's number.
    pub layer: u32,
    /// The rank that owns both slots.
    pub rank: usize,
    /// The later slot.
    pub slot: usize,
    /// The first slot of this rank with the same expert.
    pub first_slot: usize,
    /// The expert.
    pub expert: u32,
}

impl Placement {
    /// Creates a placement from `slot_experts`, `[layers][num_slots]`, in the order of `layers`.
    ///
    /// Fails with [`Error::InvalidPlacement`] naming layer, rank and slot.
    pub fn new(shape: Shape, layers: &[u32], slot_experts: &[u32]) -> Result<Self> {
        Placement::checked(shape, &equal_rank_num_slots(shape), layers, slot_experts, false)
    }

    /// Creates a placement whose ranks have `rank_num_slots` slots, `[num_ranks]`, at most the shape's slots
    /// per rank.
    ///
    /// Slots are numbered as if every rank had the shape's. The last slot numbers of a smaller rank are empty.
    pub fn with_rank_num_slots(
        shape: Shape,
        rank_num_slots: &[u32],
        layers: &[u32],
        slot_experts: &[u32],
    ) -> Result<Self> {
        Placement::checked(shape, rank_num_slots, layers, slot_experts, false)
    }

    /// Creates a placement in which any slot may be empty: it holds [`NO_EXPERT`]. Nothing is routed to it, so
    /// an engine may use its number otherwise, such as for a fused shared expert. Layers may differ in it.
    ///
    /// `rank_num_slots` is as in [`Placement::with_rank_num_slots`]; `None`: all ranks have the shape's.
    pub fn with_empty_slots(
        shape: Shape,
        rank_num_slots: Option<&[u32]>,
        layers: &[u32],
        slot_experts: &[u32],
    ) -> Result<Self> {
        let equal = equal_rank_num_slots(shape);
        Placement::checked(shape, rank_num_slots.unwrap_or(&equal), layers, slot_experts, true)
    }

    fn checked(
        shape: Shape,
        rank_num_slots: &[u32],
        layers: &[u32],
        slot_experts: &[u32],
        allow_empty_slots: bool,
    ) -> Result<Self> {
        check_rank_num_slots(shape, rank_num_slots)?;
        let num_slots = shape.num_slots();
        if layers.is_empty() {
            return Err(Error::InvalidPlacement("a placement needs at least one layer".into()));
        }
        if layers.len().checked_mul(num_slots) != Some(slot_experts.len()) {
            return Err(Error::InvalidPlacement(format!(
                "{} slots for {} layers of {num_slots} slots",
                slot_experts.len(),
                layers.len()
            )));
        }
        let mut by_layer: Vec<_> = layers.iter().copied().zip(slot_experts.chunks_exact(num_slots)).collect();
        by_layer.sort_by_key(|&(layer, _)| layer);
        if let Some(pair) = by_layer.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::InvalidPlacement(format!("layer {} is given twice", pair[0].0)));
        }
        for &(layer, experts) in &by_layer {
            if i32::try_from(layer).is_err() {
                return Err(Error::InvalidPlacement(format!("layer {layer} is beyond {}", i32::MAX)));
            }
            check_layer(shape, rank_num_slots, layer, experts, allow_empty_slots)?;
        }
        Ok(Placement {
            shape,
            rank_num_slots: rank_num_slots.to_vec(),
            layers: by_layer.iter().map(|&(layer, _)| layer).collect(),
            slot_experts: by_layer.iter().flat_map(|&(_, experts)| experts).copied().collect(),
            layer_updates_per_iter: 0,
            planned: false,
        })
    }

    /// Sets `layer_updates_per_iter`: the layers that an engine with an online balancer moves in an
    /// iteration. The configuration file stores it; this library does not use it.
    pub fn with_layer_updates_per_iter(self, layer_updates_per_iter: u32) -> Self {
        Placement { layer_updates_per_iter, ..self }
    }

    /// See [`Placement::with_layer_updates_per_iter`].
    pub fn layer_updates_per_iter(&self) -> u32 {
        self.layer_updates_per_iter
    }

    /// Sets [`Placement::is_planned`].
    pub(crate) fn with_planned(self, planned: bool) -> Self {
        Placement { planned, ..self }
    }

    /// Whether eplb planned this placement by another policy than `trtllm`, or read it from a file that says so. Then its
    /// configuration file has a last line with the number of ranks and the hash, as a comment.
    pub fn is_planned(&self) -> bool {
        self.planned
    }

    /// Returns the placement of these of its layers. Fails with [`Error::InvalidArgument`] for another layer.
    pub(crate) fn with_layers(&self, layers: &[u32]) -> Result<Self> {
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        layers.dedup();
        let rows = layers.iter().map(|&layer| self.layer_experts(layer)).collect::<Result<Vec<_>>>()?;
        if rows.is_empty() {
            return Err(Error::InvalidArgument("no layer is given".into()));
        }
        let slot_experts = rows.concat();
        let planned = self.planned && layers == self.layers;
        let rank_num_slots = self.rank_num_slots.clone();
        Ok(Placement { rank_num_slots, layers, slot_experts, planned, ..*self })
    }

    /// Experts, slots and ranks.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Slots of each rank, `[num_ranks]`.
    pub fn rank_num_slots(&self) -> &[u32] {
        &self.rank_num_slots
    }

    /// The number of empty slots over all layers, those that a rank lacks included.
    pub fn num_empty_slots(&self) -> usize {
        self.slot_experts.iter().filter(|&&expert| expert == NO_EXPERT).count()
    }

    /// Fails if a slot is empty, which `what` cannot hold.
    pub(crate) fn check_no_empty_slot(&self, what: &str) -> Result<()> {
        let Some(index) = self.slot_experts.iter().position(|&expert| expert == NO_EXPERT) else {
            return Ok(());
        };
        let (layer, slot) = (index / self.shape.num_slots(), index % self.shape.num_slots());
        Err(Error::InvalidPlacement(format!(
            "layer {}, rank {}, slot {slot} is empty: {what} cannot hold empty slots; save the placement as \
             *.eplb.yaml",
            self.layers[layer],
            self.shape.rank_of(slot)
        )))
    }

    /// The layers' numbers, ascending.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// Iterates over layers: the number and the experts of the slots, [`NO_EXPERT`] in empty ones.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u32])> + Clone {
        self.layers.iter().copied().zip(self.slot_experts.chunks_exact(self.shape.num_slots()))
    }

    /// Returns the expert of each slot of `layer`, [`NO_EXPERT`] in empty ones.
    pub fn layer_experts(&self, layer: u32) -> Result<&[u32]> {
        let index = self.layers.binary_search(&layer).map_err(|_| {
            let (first, last) = (self.layers[0], self.layers[self.layers.len() - 1]);
            Error::InvalidArgument(format!(
                "layer {layer} is not in this placement of {} layers from {first} to {last}",
                self.layers.len()
            ))
        })?;
        let num_slots = self.shape.num_slots();
        Ok(&self.slot_experts[index * num_slots..][..num_slots])
    }

    /// Returns the expert of each slot that `rank` has in `layer`, [`NO_EXPERT`] in empty ones.
    pub fn rank_experts(&self, layer: u32, rank: usize) -> Result<&[u32]> {
        let (num_ranks, width) = (self.shape.num_ranks(), self.shape.slots_per_rank());
        if rank >= num_ranks {
            return Err(Error::InvalidArgument(format!("rank {rank} is not one of {num_ranks} ranks")));
        }
        Ok(&self.layer_experts(layer)?[rank * width..][..self.rank_num_slots[rank] as usize])
    }

    /// Returns the experts whose weights `rank` loads for `layer`, ascending, each once.
    pub fn distinct_experts(&self, layer: u32, rank: usize) -> Result<Vec<u32>> {
        let mut experts: Vec<u32> =
            held_slots(self.rank_experts(layer, rank)?).map(|(_, expert)| expert).collect();
        experts.sort_unstable();
        experts.dedup();
        Ok(experts)
    }

    /// Returns every slot that repeats an expert of its own rank, by layer and slot.
    pub fn duplicates(&self) -> Vec<Duplicate> {
        self.iter().flat_map(|(layer, experts)| duplicates_in(self.shape, layer, experts)).collect()
    }

    /// Returns a fingerprint that is equal on every rank and machine for equal experts, ranks, slots, layers
    /// and assignments.
    ///
    /// It is FNV-1a (64 bits) over little-endian 32-bit words. The words are the numbers of experts, slots,
    /// ranks and layers, then each layer's number and the experts of its slots, -1 in empty ones.
    pub fn hash(&self) -> u64 {
        let Placement { shape, .. } = *self;
        hash_of(shape.num_experts(), shape.num_slots(), shape.num_ranks(), self.iter())
    }
}

/// [`Placement::hash`] of so many experts, slots and ranks, and of the slots of each layer.
fn hash_of<'a>(
    num_experts: usize,
    num_slots: usize,
    num_ranks: usize,
    layers: impl Iterator<Item = (u32, &'a [u32])> + Clone,
) -> u64 {
    let sizes = [num_experts, num_slots, num_ranks, layers.clone().count()];
    let assignments =
        layers.flat_map(|(layer, experts)| std::iter::once(layer).chain(experts.iter().copied()));
    let bytes = sizes.into_iter().map(|n| n as u32).chain(assignments).flat_map(u32::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Returns every slot of a layer that repeats an expert of its own rank.
pub(crate) fn duplicates_in(shape: Shape, layer: u32, experts: &[u32]) -> Vec<Duplicate> {
    let mut duplicates = Vec::new();
    // For each expert: the last rank found to hold it, and its first slot there.
    let mut held = vec![(usize::MAX, 0); shape.num_experts()];
    for (slot, expert) in held_slots(experts) {
        let rank = shape.rank_of(slot);
        match held[expert as usize] {
            (holder, first_slot) if holder == rank => {
                duplicates.push(Duplicate { layer, rank, slot, first_slot, expert });
            }
            _ => held[expert as usize] = (rank, slot),
        }
    }
    duplicates
}

/// Iterates over the slots that hold an expert, each with its expert.
pub(crate) fn held_slots(slot_experts: &[u32]) -> impl Iterator<Item = (usize, u32)> + Clone {
    slot_experts.iter().copied().enumerate().filter(|&(_, expert)| expert != NO_EXPERT)
}

/// Returns the number of slots of each expert of a layer, `[num_experts]`.
pub fn replica_counts(shape: Shape, slot_experts: &[u32]) -> Vec<u32> {
    let mut counts = vec![0; shape.num_experts()];
    held_slots(slot_experts).for_each(|(_, expert)| counts[expert as usize] += 1);
    counts
}

/// Returns the ranks that hold each expert of a layer, ascending and each once.
pub(crate) fn expert_ranks(shape: Shape, slot_experts: &[u32]) -> Vec<Vec<u32>> {
    let mut ranks_of = vec![Vec::new(); shape.num_experts()];
    for (slot, expert) in held_slots(slot_experts) {
        let (rank, ranks) = (shape.rank_of(slot) as u32, &mut ranks_of[expert as usize]);
        if ranks.last() != Some(&rank) {
            ranks.push(rank);
        }
    }
    ranks_of
}

/// Fails unless each rank has a slot, none has more than the shape's slots per rank, and all slots can hold all
/// experts.
pub(crate) fn check_rank_num_slots(shape: Shape, rank_num_slots: &[u32]) -> Result<()> {
    let (max, num_ranks) = (shape.slots_per_rank() as u32, shape.num_ranks());
    let refuse = |what: String| Err(Error::InvalidShape(what));
    if rank_num_slots.len() != num_ranks {
        return refuse(format!(
            "rank_num_slots has {} values, there are {num_ranks} ranks",
            rank_num_slots.len()
        ));
    }
    if let Some(rank) = rank_num_slots.iter().position(|&slots| slots == 0 || slots > max) {
        return refuse(format!("rank {rank} has {} slots, 1 to {max} expected", rank_num_slots[rank] as i32));
    }
    let all: u64 = rank_num_slots.iter().map(|&slots| u64::from(slots)).sum();
    match all < shape.num_experts() as u64 {
        true => refuse(format!(
            "the ranks have {all} slots together, too few for {} experts",
            shape.num_experts()
        )),
        false => Ok(()),
    }
}

fn equal_rank_num_slots(shape: Shape) -> Vec<u32> {
    vec![shape.slots_per_rank() as u32; shape.num_ranks()]
}

fn check_layer(
    shape: Shape,
    rank_num_slots: &[u32],
    layer: u32,
    experts: &[u32],
    allow_empty_slots: bool,
) -> Result<()> {
    let num_experts = shape.num_experts();
    let mut has_slot = vec![false; num_experts];
    for (slot, &expert) in experts.iter().enumerate() {
        let rank = shape.rank_of(slot);
        if slot % shape.slots_per_rank() >= rank_num_slots[rank] as usize {
            if expert != NO_EXPERT {
                return Err(Error::InvalidPlacement(format!(
                    "layer {layer}, rank {rank}, slot {slot}: expert {} is in a slot beyond the {} slots of \
                     the rank; -1 expected",
                    expert as i32, rank_num_slots[rank]
                )));
            }
            continue;
        }
        match has_slot.get_mut(expert as usize) {
            Some(seen) => *seen = true,
            None if expert == NO_EXPERT && allow_empty_slots => {}
            None if expert == NO_EXPERT => {
                return Err(Error::InvalidPlacement(format!(
                    "layer {layer}, rank {rank}, slot {slot} is empty (-1); set allow_empty_slots, or give it one \
                     of the experts 0 to {}",
                    num_experts - 1
                )));
            }
            None => {
                // Signed, as C callers and files write it.
                let expert = expert as i32;
                return Err(Error::InvalidPlacement(format!(
                    "layer {layer}, rank {rank}, slot {slot}: expert {expert} does not exist; experts are 0 to {}",
                    num_experts - 1
                )));
            }
        }
    }
    let mut missing = (0..num_experts).filter(|&expert| !has_slot[expert]);
    match (missing.next(), missing.count()) {
        (None, _) => Ok(()),
        (Some(expert), 0) => Err(Error::InvalidPlacement(format!(
            "layer {layer}: expert {expert} has no slot; every expert needs one"
        ))),
        (Some(expert), more) => Err(Error::InvalidPlacement(format!(
            "layer {layer}: expert {expert} and {more} more have no slot; every expert needs one"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(num_experts: usize, num_slots: usize, num_ranks: usize) -> Shape {
        Shape::new(num_experts, num_slots, num_ranks).unwrap()
    }

    fn message(layers: &[u32], slot_experts: &[u32]) -> String {
        Placement::new(shape(4, 6, 2), layers, slot_experts).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_layer_rank_and_slot() {
        assert_eq!(
            message(&[3], &[0, 1, 2, 3, 4, 0]),
            "layer 3, rank 1, slot 4: expert 4 does not exist; experts are 0 to 3"
        );
        assert_eq!(
            message(&[3], &[0, 1, 2, 0, 1, 2]),
            "layer 3: expert 3 has no slot; every expert needs one"
        );
        assert_eq!(
            message(&[3], &[0, 0, 2, 0, 0, 2]),
            "layer 3: expert 1 and 1 more have no slot; every expert needs one"
        );
        assert_eq!(message(&[3], &[0, 1, 2, 3, 0]), "5 slots for 1 layers of 6 slots");
        assert_eq!(message(&[3, 3], &[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 0, 1]), "layer 3 is given twice");
        assert_eq!(message(&[], &[]), "a placement needs at least one layer");
    }

    #[test]
    fn ranks_own_consecutive_slots_and_layers_are_sorted() {
        let placement =
            Placement::new(shape(4, 6, 2), &[7, 3], &[0, 1, 2, 3, 0, 1, 3, 3, 2, 1, 0, 0]).unwrap();
        assert_eq!(placement.layers(), [3, 7]);
        assert_eq!(placement.layer_experts(3).unwrap(), [3, 3, 2, 1, 0, 0]);
        assert_eq!(placement.rank_experts(7, 1).unwrap(), [3, 0, 1]);
        assert_eq!(
            placement.layer_experts(5).unwrap_err().to_string(),
            "layer 5 is not in this placement of 2 layers from 3 to 7"
        );
        assert_eq!(placement.rank_experts(7, 2).unwrap_err().to_string(), "rank 2 is not one of 2 ranks");
    }

    #[test]
    fn duplicates_are_replicas_on_the_same_rank() {
        let placement =
            Placement::new(shape(4, 6, 2), &[3, 7], &[0, 1, 2, 3, 0, 1, 3, 3, 3, 2, 1, 0]).unwrap();
        let duplicate = |slot| Duplicate { layer: 7, rank: 0, slot, first_slot: 0, expert: 3 };
        assert_eq!(placement.duplicates(), [duplicate(1), duplicate(2)]);
    }

    #[test]
    fn empty_slots_are_allowed_by_choice_and_hold_nothing() {
        let none = NO_EXPERT;
        let rows = [0, none, 1, 2, 3, none, none, 3, 2, 1, 0, none];
        let refused = Placement::new(shape(4, 6, 2), &[3, 7], &rows).unwrap_err().to_string();
        assert_eq!(
            refused,
            "layer 3, rank 0, slot 1 is empty (-1); set allow_empty_slots, or give it one of the experts 0 to 3"
        );
        let placement = Placement::with_empty_slots(shape(4, 6, 2), None, &[3, 7], &rows).unwrap();
        assert_eq!(placement.rank_experts(3, 0).unwrap(), [0, none, 1]);
        assert_eq!(placement.distinct_experts(3, 0).unwrap(), [0, 1]);
        assert_eq!(placement.distinct_experts(7, 0).unwrap(), [2, 3]);
        assert_eq!((placement.num_empty_slots(), placement.duplicates()), (4, vec![]));
        assert_eq!(
            placement.check_no_empty_slot("a toy").unwrap_err().to_string(),
            "layer 3, rank 0, slot 1 is empty: a toy cannot hold empty slots; save the placement as *.eplb.yaml"
        );
        let one_expert_less = [0, none, 1, 2, none, none];
        assert_eq!(
            Placement::with_empty_slots(shape(4, 6, 2), None, &[3], &one_expert_less)
                .unwrap_err()
                .to_string(),
            "layer 3: expert 3 has no slot; every expert needs one"
        );
        let foreign = [0, none, 1, 2, 3, 4];
        assert_eq!(
            Placement::with_empty_slots(shape(4, 6, 2), None, &[3], &foreign).unwrap_err().to_string(),
            "layer 3, rank 1, slot 5: expert 4 does not exist; experts are 0 to 3"
        );
        // Ranks may have fewer slots than are numbered. The last slot of both is empty here.
        let ranks = Placement::with_rank_num_slots(shape(4, 6, 2), &[2, 2], &[3], &[0, 1, none, 2, 3, none]);
        assert_eq!(ranks.unwrap().rank_experts(3, 1).unwrap(), [2, 3]);
    }

    #[test]
    fn hash_is_fnv_1a_of_the_documented_words() {
        // Python: h = 0xcbf29ce484222325
        //         for b in struct.pack("<7I", 2, 2, 1, 1, 5, 0, 1): h = ((h ^ b) * 0x100000001b3) % 2**64
        let placement = Placement::new(shape(2, 2, 1), &[5], &[0, 1]).unwrap();
        assert_eq!(placement.hash(), 0xba86_ebeb_946c_e781);
        assert_ne!(placement.hash(), Placement::new(shape(2, 2, 2), &[5], &[0, 1]).unwrap().hash());
        assert_eq!(placement.hash(), placement.clone().with_layer_updates_per_iter(4).hash());
    }
}
