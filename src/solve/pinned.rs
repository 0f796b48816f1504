//! Pinned slots: slots that hold a given expert in the result. What moves in the search is an expert from a rank
//! to a rank. So a pin is a number of slots of an expert that a rank keeps, and at the end each goes to its slot.

use crate::error::{Error, Result};
use crate::placement::{NO_EXPERT, Shape, held_slots};

/// The slots of a layer that ranks keep.
#[derive(Debug)]
pub(super) struct Pins {
    width: usize,
    /// The expert of each pinned slot, [`NO_EXPERT`] in free ones.
    slots: Vec<u32>,
    /// The number of pinned slots of each expert.
    counts: Vec<u32>,
}

impl Pins {
    /// `slots` was checked by [`check`].
    pub fn new(shape: Shape, slots: &[u32]) -> Self {
        let counts = crate::placement::replica_counts(shape, slots);
        Pins { width: shape.slots_per_rank(), slots: slots.to_vec(), counts }
    }

    /// The number of pinned slots of each expert.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The experts that a rank keeps, one item a slot.
    pub fn of_rank(&self, rank: usize) -> impl Iterator<Item = u32> {
        held_slots(&self.slots[rank * self.width..][..self.width]).map(|(_, expert)| expert)
    }

    /// Returns whether `rank`, which has `slots`, may give up `num_given` slots of an expert.
    pub fn may_give(&self, rank: usize, slots: &[u32], expert: u32, num_given: usize) -> bool {
        if self.counts[expert as usize] == 0 {
            return true;
        }
        let kept = self.of_rank(rank).filter(|&pinned| pinned == expert).count();
        kept == 0 || slots.iter().filter(|&&held| held == expert).count() >= kept + num_given
    }

    /// Moves the experts of each rank so that each pinned slot holds its own.
    pub fn arrange(&self, slots: &mut [u32]) {
        for (rank, pinned) in slots.chunks_exact_mut(self.width).zip(self.slots.chunks_exact(self.width)) {
            for (slot, expert) in held_slots(pinned) {
                if rank[slot] != expert {
                    let is_other = |&other: &usize| rank[other] == expert && pinned[other] != expert;
                    let other = (0..rank.len()).find(is_other).expect("a rank keeps its pinned experts");
                    rank.swap(slot, other);
                }
            }
        }
    }
}

/// Fails unless `pinned` is rows of the shape's slots, and each row leaves a free slot to each expert that it does
/// not pin.
pub(super) fn check(pinned: &[u32], shape: Shape, rank_num_slots: Option<&[u32]>) -> Result<()> {
    let (num_slots, num_experts) = (shape.num_slots(), shape.num_experts());
    let refuse = |what: String| Err(Error::InvalidArgument(format!("pinned_experts{what}")));
    if pinned.is_empty() || !pinned.len().is_multiple_of(num_slots) {
        return refuse(format!(
            " has {} values, expected {num_slots} for all layers or for each",
            pinned.len()
        ));
    }
    for (row, slots) in pinned.chunks_exact(num_slots).enumerate() {
        for (slot, expert) in held_slots(slots) {
            let rank = shape.rank_of(slot);
            let held = rank_num_slots.map_or(shape.slots_per_rank(), |slots| slots[rank] as usize);
            if expert as usize >= num_experts {
                return refuse(format!(
                    "[{row}][{slot}] is {}; experts are 0 to {}, and -1 leaves the slot free",
                    expert as i32,
                    num_experts - 1
                ));
            }
            if slot % shape.slots_per_rank() >= held {
                return refuse(format!(
                    "[{row}][{slot}] is {expert}, but the slot is empty: rank {rank} has {held} slots"
                ));
            }
        }
        let counts = crate::placement::replica_counts(shape, slots);
        let all: usize = rank_num_slots.map_or(num_slots, |slots| slots.iter().map(|&n| n as usize).sum());
        let (pinned, without) = (held_slots(slots).count(), counts.iter().filter(|&&n| n == 0).count());
        if all - pinned < without {
            return refuse(format!(
                "[{row}] leaves {} of {all} slots free, too few for the {without} experts that it does not pin; pin \
                 fewer slots or add slots",
                all - pinned
            ));
        }
    }
    Ok(())
}

/// Returns pinned slots for all layers. The first slots of each rank hold `experts`. With `homes`, the next ones hold
/// the other experts whose home rank it is: rank e * R / E for expert e, in order.
pub fn pinned_slots(
    shape: Shape,
    rank_num_slots: Option<&[u32]>,
    experts: &[u32],
    homes: bool,
) -> Result<Vec<u32>> {
    let (num_experts, num_ranks, width) = (shape.num_experts(), shape.num_ranks(), shape.slots_per_rank());
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    for (index, &expert) in experts.iter().enumerate() {
        if expert as usize >= num_experts {
            return refuse(format!(
                "pinned expert {expert} does not exist; experts are 0 to {}",
                num_experts - 1
            ));
        }
        if experts[..index].contains(&expert) {
            return refuse(format!("expert {expert} is pinned twice"));
        }
    }
    let mut slots = vec![NO_EXPERT; shape.num_slots()];
    for rank in 0..num_ranks {
        let at_home = (0..num_experts)
            .filter(|&expert| homes && expert * num_ranks / num_experts == rank)
            .map(|expert| expert as u32)
            .filter(|expert| !experts.contains(expert));
        let pinned: Vec<u32> = experts.iter().copied().chain(at_home).collect();
        let held = rank_num_slots.map_or(width, |slots| slots[rank] as usize);
        if pinned.len() > held {
            return refuse(format!(
                "rank {rank} has {held} slots and {} pinned experts; pin fewer or add slots",
                pinned.len()
            ));
        }
        slots[rank * width..][..pinned.len()].copy_from_slice(&pinned);
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: u32 = NO_EXPERT;

    #[test]
    fn arrange_puts_each_pinned_expert_into_its_slot() {
        let pins = Pins::new(Shape::new(4, 8, 2).unwrap(), &[FREE, 1, 1, FREE, 3, FREE, FREE, 0]);
        let mut slots = vec![1, 2, 0, 1, 0, 3, 2, 3];
        pins.arrange(&mut slots);
        assert_eq!(slots[1..3], [1, 1]);
        assert_eq!((slots[4], slots[7]), (3, 0));
        slots[..4].sort_unstable();
        slots[4..].sort_unstable();
        assert_eq!(slots, [0, 1, 1, 2, 0, 2, 3, 3]);
    }

    #[test]
    fn check_names_the_slot_and_the_way_out() {
        let shape = Shape::new(4, 6, 2).unwrap();
        let message = |pinned: &[u32], ranks: Option<&[u32]>| {
            check(pinned, shape, ranks).map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(message(&[FREE; 6], None), "");
        assert_eq!(message(&[FREE; 12], None), "");
        assert_eq!(
            message(&[FREE; 7], None),
            "pinned_experts has 7 values, expected 6 for all layers or for each"
        );
        assert_eq!(
            message(&[FREE, 4, FREE, FREE, FREE, FREE], None),
            "pinned_experts[0][1] is 4; experts are 0 to 3, and -1 leaves the slot free"
        );
        assert_eq!(
            message(&[FREE, FREE, 0, FREE, FREE, FREE], Some(&[2, 3])),
            "pinned_experts[0][2] is 0, but the slot is empty: rank 0 has 2 slots"
        );
        assert_eq!(
            message(&[0, 0, 1, 0, FREE, FREE], Some(&[3, 2])),
            "pinned_experts[0] leaves 1 of 5 slots free, too few for the 2 experts that it does not pin; pin fewer \
             slots or add slots"
        );
    }

    #[test]
    fn pinned_slots_are_the_first_of_each_rank_then_the_homes() {
        let shape = Shape::new(4, 8, 2).unwrap();
        assert_eq!(
            pinned_slots(shape, None, &[3], false).unwrap(),
            [3, FREE, FREE, FREE, 3, FREE, FREE, FREE]
        );
        assert_eq!(pinned_slots(shape, None, &[], true).unwrap(), [0, 1, FREE, FREE, 2, 3, FREE, FREE]);
        assert_eq!(pinned_slots(shape, None, &[3], true).unwrap(), [3, 0, 1, FREE, 3, 2, FREE, FREE]);
        let message =
            |ranks, experts: &[u32]| pinned_slots(shape, ranks, experts, true).unwrap_err().to_string();
        assert_eq!(
            message(Some(&[3, 2]), &[0]),
            "rank 1 has 2 slots and 3 pinned experts; pin fewer or add slots"
        );
        assert_eq!(message(None, &[4]), "pinned expert 4 does not exist; experts are 0 to 3");
        assert_eq!(message(None, &[2, 2]), "expert 2 is pinned twice");
    }
}
