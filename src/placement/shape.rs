//! The numbers of experts, slots and ranks, and whether they fit together.

use crate::error::{Error, Result};

/// The largest number of experts, slots or ranks that any call takes. A larger number is a mistake, such as a
/// negative one made unsigned. Refusing it keeps every table within memory.
pub const MAX_COUNT: usize = 1 << 20;

/// The sizes of one layer of an expert-parallel model. Every rank holds `num_slots / num_ranks` slots, every
/// slot one expert, and every expert at least one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    num_experts: usize,
    num_slots: usize,
    num_ranks: usize,
}

impl Shape {
    /// Checks the sizes. Each cause has its own error; a wrong number of slots is reported with the nearest
    /// valid ones.
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

    /// Slots of one rank. Rank `r` owns slots `r * slots_per_rank .. (r + 1) * slots_per_rank`.
    pub fn slots_per_rank(&self) -> usize {
        self.num_slots / self.num_ranks
    }

    /// The rank that owns `slot`.
    pub fn rank_of(&self, slot: usize) -> usize {
        slot / self.slots_per_rank()
    }
}

/// Returns the valid numbers of slots nearest to `num_slots`: multiples of the ranks, not below the experts.
///
/// The first is the largest not above it, the second the smallest not below it. `None`: there is none.
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
    fn new_rejects_bad_sizes_and_names_the_nearest_valid_slots() {
        // Slots valid for 36 ranks are multiples of 36: 288 and 324. For 3 ranks, the first multiple of 3
        // above 256 is 258.
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
    fn suggest_num_slots_agrees_with_trying_every_number() {
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
