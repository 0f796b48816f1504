//! How many experts, slots and ranks there are, and whether they fit together.

use crate::error::{Error, Result};

/// The most experts or slots of a layer, or ranks, that any call takes. A number above it is a mistake (a negative
/// one made unsigned, say), and refusing it keeps every table within reach of memory.
pub const MAX_COUNT: usize = 1 << 20;

/// The sizes of one layer of an expert-parallel model: every rank holds `num_slots / num_ranks` slots, every slot
/// one expert, every expert at least one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    num_experts: usize,
    num_slots: usize,
    num_ranks: usize,
}

impl Shape {
    /// Checks the sizes, one error a cause; where the number of slots is wrong it names the nearest right ones.
    pub fn new(num_experts: usize, num_slots: usize, num_ranks: usize) -> Result<Self> {
        for (count, of) in [(num_experts, "experts"), (num_slots, "slots"), (num_ranks, "ranks")] {
            if count == 0 || count > MAX_COUNT {
                let range = format!("there must be 1 to {MAX_COUNT}");
                return Err(Error::InvalidShape(format!("{count} {of}: {range}")));
            }
        }
        let nearest = || match suggest_num_slots(num_experts, num_ranks, num_slots) {
            (Some(below), Some(above)) => {
                format!("the nearest valid numbers of slots are {below} and {above}")
            }
            (Some(only), None) | (None, Some(only)) => format!("the nearest valid number of slots is {only}"),
            (None, None) => "no number of slots is valid".to_owned(),
        };
        if num_slots < num_experts {
            return Err(Error::InvalidShape(format!(
                "{num_slots} slots cannot hold {num_experts} experts; for {num_ranks} ranks {}",
                nearest()
            )));
        }
        if !num_slots.is_multiple_of(num_ranks) {
            return Err(Error::InvalidShape(format!(
                "{num_slots} slots cannot be split evenly over {num_ranks} ranks; for {num_experts} experts {}",
                nearest()
            )));
        }
        Ok(Shape { num_experts, num_slots, num_ranks })
    }

    /// Experts of the layer.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Slots of all ranks together.
    pub fn num_slots(&self) -> usize {
        self.num_slots
    }

    /// Ranks of the expert-parallel group.
    pub fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// Slots of one rank; rank `r` owns slots `r * slots_per_rank .. (r + 1) * slots_per_rank`.
    pub fn slots_per_rank(&self) -> usize {
        self.num_slots / self.num_ranks
    }

    /// The rank that owns `slot`.
    pub fn rank_of(&self, slot: usize) -> usize {
        slot / self.slots_per_rank()
    }
}

/// The valid numbers of slots (multiples of the ranks, not below the experts) nearest to `num_slots`: the largest
/// not above it and the smallest not below it, each `None` where there is none.
pub fn suggest_num_slots(
    num_experts: usize,
    num_ranks: usize,
    num_slots: usize,
) -> (Option<usize>, Option<usize>) {
    if num_ranks == 0 || num_experts == 0 {
        return (None, None);
    }
    let below = num_slots.min(MAX_COUNT) / num_ranks * num_ranks;
    let above = num_slots.max(num_experts).checked_next_multiple_of(num_ranks);
    ((below >= num_experts).then_some(below), above.filter(|&n| n <= MAX_COUNT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(num_experts: usize, num_slots: usize, num_ranks: usize) -> String {
        Shape::new(num_experts, num_slots, num_ranks).unwrap_err().to_string()
    }

    #[test]
    fn each_cause_has_its_own_error_with_the_nearest_slot_counts() {
        // needs.md: 290 slots on 36 ranks names 288 and 324; 256 experts on 3 ranks gives 258.
        assert_eq!(
            message(256, 290, 36),
            "290 slots cannot be split evenly over 36 ranks; for 256 experts the nearest valid numbers of slots \
             are 288 and 324"
        );
        assert_eq!(
            message(256, 256, 3),
            "256 slots cannot be split evenly over 3 ranks; for 256 experts the nearest valid number of slots is 258"
        );
        assert_eq!(
            message(256, 100, 8),
            "100 slots cannot hold 256 experts; for 8 ranks the nearest valid number of slots is 256"
        );
        assert_eq!(message(256, 256, 0), "0 ranks: there must be 1 to 1048576");
        assert_eq!(message(0, 256, 8), "0 experts: there must be 1 to 1048576");
        assert_eq!(message(8, usize::MAX, 8), format!("{} slots: there must be 1 to 1048576", usize::MAX));
    }

    #[test]
    fn suggestions_agree_with_trying_every_count() {
        for (experts, ranks) in [(1, 1), (5, 3), (8, 2), (16, 7), (9, 20)] {
            for slots in 0..60 {
                let valid = |n: &usize| Shape::new(experts, *n, ranks).is_ok();
                let expected = ((1..=slots).rev().find(valid), (slots..100).find(valid));
                assert_eq!(suggest_num_slots(experts, ranks, slots), expected, "{experts} {ranks} {slots}");
            }
        }
        assert_eq!(suggest_num_slots(256, 8, usize::MAX), (Some(MAX_COUNT), None));
    }
}
