//! Slots keep their place: an expert that stays on a rank keeps its slot there.

use crate::placement::{NO_EXPERT, Shape};

/// Rearranges `to`, the experts that each rank is to hold, so that what a rank holds in `from` and in `to` keeps its slot. Slots
/// of `fixed` come first. What a rank has to receive goes into the other slots in the order of `to`.
pub(super) fn keep_slots(
    shape: Shape,
    from: &[u32],
    to: Vec<u32>,
    fixed: impl Fn(usize) -> bool,
) -> Vec<u32> {
    let width = shape.slots_per_rank();
    // Usually all that stays is in its slot.
    let is_in_place = |rank: usize| {
        let slots = rank * width..(rank + 1) * width;
        let held = &from[slots.clone()];
        let mut of_rank = slots.clone();
        held == &to[slots]
            || of_rank.all(|slot| from[slot] == to[slot] || !fixed(slot) && !held.contains(&to[slot]))
    };
    let moved: Vec<usize> = (0..shape.num_ranks()).filter(|&rank| !is_in_place(rank)).collect();
    if moved.is_empty() {
        return to;
    }
    let mut kept = to.clone();
    // How often the rank holds each expert in `to` beyond the slots that are filled; the last entry is for empty slots.
    let mut left = vec![0u32; shape.num_experts() + 1];
    let index = |expert: u32| (expert as usize).min(shape.num_experts());
    for rank in moved {
        let slots = rank * width..(rank + 1) * width;
        kept[slots.clone()].fill(NO_EXPERT);
        slots.clone().for_each(|slot| left[index(to[slot])] += 1);
        let mut take = |expert: u32| {
            let left = &mut left[index(expert)];
            let taken = *left > 0;
            *left -= u32::from(taken);
            taken
        };
        let mut free: Vec<usize> = slots.clone().collect();
        let order: [&dyn Fn(usize) -> bool; 3] = [&fixed, &|slot| from[slot] == to[slot], &|_| true];
        for is_next in order {
            free.retain(|&slot| {
                let stays = is_next(slot) && take(from[slot]);
                if stays {
                    kept[slot] = from[slot];
                }
                !stays
            });
        }
        let received = slots.map(|slot| to[slot]).filter(|&expert| take(expert));
        free.iter().zip(received).for_each(|(&slot, expert)| kept[slot] = expert);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: u32 = NO_EXPERT;

    #[test]
    fn experts_that_stay_on_a_rank_keep_their_slots() {
        let shape = Shape::new(5, 8, 2).unwrap();
        let from = [0, 1, 2, 3, 4, 0, 1, 2];
        // Rank 0 keeps 3 and 1 and receives 4 and 4; rank 1 keeps all, in another order.
        let to = [3, 4, 1, 4, 2, 1, 0, 4];
        assert_eq!(keep_slots(shape, &from, to.to_vec(), |_| false), [4, 1, 4, 3, 4, 0, 1, 2]);
    }

    #[test]
    fn fixed_slots_stay_before_others() {
        let shape = Shape::new(3, 4, 1).unwrap();
        // Two slots of expert 0, of which the second is to stay.
        let kept = keep_slots(shape, &[0, 0, 1, 2], vec![0, 1, 2, 2], |slot| slot == 1);
        assert_eq!(kept, [2, 0, 1, 2]);
    }

    #[test]
    fn empty_slots_keep_their_place_too() {
        let shape = Shape::new(2, 4, 1).unwrap();
        assert_eq!(keep_slots(shape, &[NONE, 0, 1, NONE], vec![1, 1, 0, NONE], |_| false), [1, 0, 1, NONE]);
    }
}
