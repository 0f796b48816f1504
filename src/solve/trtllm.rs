//! TensorRT-LLM's policy, bit for bit: the replication and placement of its `moeLoadBalancer`. Quotients and
//! totals are float64. Ties are broken as documented below.

use super::tournament::{OUT, Tournament, load_bits, number, numbered};
use crate::error::Result;
use crate::placement::Shape;

/// Returns the expert of each slot of a layer whose experts carry `loads`.
pub(super) fn place(loads: &[f32], shape: Shape) -> Result<Vec<u32>> {
    Ok(pack(loads, &replica_counts(loads, shape.num_slots()), shape))
}

/// Returns the number of slots of each expert.
///
/// Each spare slot goes to the expert with the largest load per replica, ties to the higher expert. If all
/// loads are zero, slots are spread evenly, lower experts first.
fn replica_counts(loads: &[f32], num_slots: usize) -> Vec<u32> {
    let num_experts = loads.len();
    if loads.iter().all(|&load| load == 0.0) {
        let (each, more) = (num_slots / num_experts, num_slots % num_experts);
        return (0..num_experts).map(|expert| (each + usize::from(expert < more)) as u32).collect();
    }
    let mut counts = vec![1; num_experts];
    let key = |expert: usize, count| !numbered(quotient(loads[expert], count), expert);
    let mut heaviest = Tournament::new((0..num_experts).map(|expert| key(expert, 1)), OUT);
    for _ in num_experts..num_slots {
        let expert = number(!heaviest.next());
        counts[expert] += 1;
        heaviest.set(expert, key(expert, counts[expert]));
    }
    counts
}

/// Returns the expert of each slot.
///
/// Replicas are taken by load descending, ties by expert ascending. Each goes to the next free slot of the
/// rank with the smallest total that has one, ties to the lower rank.
fn pack(loads: &[f32], counts: &[u32], shape: Shape) -> Vec<u32> {
    // Heaviest first: by the complement of each load.
    let mut experts: Vec<u128> = loads
        .iter()
        .zip(counts)
        .enumerate()
        .map(|(expert, (&load, &count))| numbered(!quotient(load, count), expert))
        .collect();
    experts.sort_unstable();

    let width = shape.slots_per_rank();
    let mut slots = vec![0; shape.num_slots()];
    let mut totals = vec![0.0; shape.num_ranks()];
    let mut free: Vec<usize> = (0..shape.num_ranks()).map(|rank| rank * width).collect();
    let mut lightest = Tournament::new((0..shape.num_ranks()).map(|rank| numbered(0, rank)), OUT);
    for key in experts {
        let (expert, load) = (number(key), f64::from_bits(!load_bits(key)));
        for _ in 0..counts[expert] {
            let rank = number(lightest.next());
            slots[free[rank]] = expert as u32;
            free[rank] += 1;
            totals[rank] += load;
            let full = free[rank] == (rank + 1) * width;
            lightest.set(rank, if full { OUT } else { numbered(totals[rank].to_bits(), rank) });
        }
    }
    slots
}

/// Returns a replica's load as the bits of a float64. The bits of numbers that are not negative order as the
/// numbers do.
fn quotient(load: f32, count: u32) -> u64 {
    (f64::from(load) / f64::from(count)).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(num_experts: usize, num_slots: usize, num_ranks: usize) -> Shape {
        Shape::new(num_experts, num_slots, num_ranks).unwrap()
    }

    #[test]
    fn place_matches_the_case_worked_out_by_hand() {
        // 9 slots: 10 2 8 | one each; then 15 -> 7.5, 10 -> 5, 8 is largest -> 4, 7.5 is largest -> 5: [2,1,1,3,2].
        // By load: 0 0 1 3 3 3 (5 each), 4 4 (4 each), 2 (2). 0 0 1 to ranks 0 1 2, 3 3 3 the same, 4 4 to the
        // first two of three equal totals, 2 to the slot that is left.
        let loads = [10.0, 5.0, 2.0, 15.0, 8.0];
        assert_eq!(replica_counts(&loads, 9), [2, 1, 1, 3, 2]);
        assert_eq!(place(&loads, shape(5, 9, 3)).unwrap(), [0, 3, 4, 0, 3, 4, 1, 3, 2]);
    }

    #[test]
    fn place_without_load_spreads_slots_evenly_lower_experts_first() {
        assert_eq!(replica_counts(&[0.0; 4], 6), [2, 2, 1, 1]);
        // All totals stay 0, so rank 0 is filled before rank 1.
        assert_eq!(place(&[0.0; 4], shape(4, 6, 2)).unwrap(), [0, 0, 1, 1, 2, 3]);
    }

    #[test]
    fn a_single_hot_expert_gets_the_spare_slot() {
        assert_eq!(replica_counts(&[0.0, 10.0, 0.0], 4), [1, 2, 1]);
    }

    #[test]
    fn ties_give_the_spare_slot_to_the_higher_expert_and_the_first_rank_to_the_lower() {
        assert_eq!(replica_counts(&[3.0, 3.0, 3.0], 4), [1, 1, 2]);
        // By load: 0 (3), 1 (3), 2 2 (1.5): 0 to rank 0, 1 to rank 1, then ranks 0 and 1.
        assert_eq!(place(&[3.0, 3.0, 3.0], shape(3, 4, 2)).unwrap(), [0, 2, 1, 2]);
    }

    #[test]
    fn as_many_slots_as_experts_give_one_each() {
        assert_eq!(replica_counts(&[9.0, 0.0, 1.0], 3), [1, 1, 1]);
        assert_eq!(replica_counts(&[0.0, 0.0, 0.0], 3), [1, 1, 1]);
    }
}
