//! TensorRT-LLM's rule, bit for bit: the replication and placement of its `moeLoadBalancer`, whose quotients and
//! totals are float64 and whose ties are broken as noted below.

use super::tournament::{OUT, Tournament, number, numbered, weight};
use crate::error::Result;
use crate::placement::Shape;

/// The expert of each slot of a layer whose experts carry `loads`.
pub(super) fn place(loads: &[f32], shape: Shape) -> Result<Vec<u32>> {
    Ok(pack(loads, &replicas(loads, shape.num_slots()), shape))
}

/// How many slots each expert gets.
///
/// Each spare slot goes to the expert with the largest load per replica, ties to the higher expert. Where there is no
/// load at all the slots are spread evenly, lower experts first.
fn replicas(loads: &[f32], num_slots: usize) -> Vec<u32> {
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

/// Which slot each replica gets.
///
/// Replicas go by load descending, ties by expert ascending, each to the rank with the smallest total that has a free
/// slot, ties to the lower rank, into that rank's next free slot.
fn pack(loads: &[f32], counts: &[u32], shape: Shape) -> Vec<u32> {
    // Heaviest first: by the complement of each weight.
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
        let (expert, weight) = (number(key), f64::from_bits(!weight(key)));
        for _ in 0..counts[expert] {
            let rank = number(lightest.next());
            slots[free[rank]] = expert as u32;
            free[rank] += 1;
            totals[rank] += weight;
            let full = free[rank] == (rank + 1) * width;
            lightest.set(rank, if full { OUT } else { numbered(totals[rank].to_bits(), rank) });
        }
    }
    slots
}

/// A replica's load, float64 by its bits: those of numbers that are not negative order as the numbers do.
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
    fn five_experts_on_three_ranks_as_worked_by_hand() {
        // 9 slots: 10 2 8 | one each; then 15 -> 7.5, 10 -> 5, 8 is largest -> 4, 7.5 is largest -> 5: [2,1,1,3,2].
        // By load: 0 0 1 3 3 3 (5 each), 4 4 (4 each), 2 (2). 0 0 1 to ranks 0 1 2, 3 3 3 the same, 4 4 to the
        // first two of three equal totals, 2 to the slot that is left.
        let loads = [10.0, 5.0, 2.0, 15.0, 8.0];
        assert_eq!(replicas(&loads, 9), [2, 1, 1, 3, 2]);
        assert_eq!(place(&loads, shape(5, 9, 3)).unwrap(), [0, 3, 4, 0, 3, 4, 1, 3, 2]);
    }

    #[test]
    fn no_load_spreads_the_slots_evenly_lower_experts_first() {
        assert_eq!(replicas(&[0.0; 4], 6), [2, 2, 1, 1]);
        // All totals stay 0, so rank 0 is filled before rank 1.
        assert_eq!(place(&[0.0; 4], shape(4, 6, 2)).unwrap(), [0, 0, 1, 1, 2, 3]);
    }

    #[test]
    fn a_single_hot_expert_takes_the_spare_slot() {
        assert_eq!(replicas(&[0.0, 10.0, 0.0], 4), [1, 2, 1]);
    }

    #[test]
    fn equal_loads_give_the_spare_slot_to_the_higher_expert_and_the_first_rank_to_the_lower() {
        assert_eq!(replicas(&[3.0, 3.0, 3.0], 4), [1, 1, 2]);
        // By load: 0 (3), 1 (3), 2 2 (1.5): 0 to rank 0, 1 to rank 1, then ranks 0 and 1.
        assert_eq!(place(&[3.0, 3.0, 3.0], shape(3, 4, 2)).unwrap(), [0, 2, 1, 2]);
    }

    #[test]
    fn as_many_slots_as_experts_means_one_each() {
        assert_eq!(replicas(&[9.0, 0.0, 1.0], 3), [1, 1, 1]);
        assert_eq!(replicas(&[0.0, 0.0, 0.0], 3), [1, 1, 1]);
    }
}
