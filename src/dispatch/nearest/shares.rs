//! The shares of the nearest rule: how much of a rank's tokens each replica serves, fixed at create.

use crate::dispatch::tables::LayerTables;
use crate::dispatch::water_filling::Height;
use crate::placement::Shape;

/// The scale of the units, fine enough for rounding not to matter.
const UNITS: u64 = 1 << 20;

/// The ends of the shares of `rank`, `[num_slots]`, of each expert in the order of its slots. The replica at a point in [0, 2^32)
/// is the first whose share ends beyond it, or the last.
///
/// If all ranks had equally many tokens of an expert, every replica would serve at most 5/4 of its fair share. Within this limit
/// as many tokens as possible stay on `rank`, and as many others as possible on its node. Each step is a water-filling of the
/// replicas' totals.
pub fn shares(shape: Shape, tables: &LayerTables, rank: usize, rank_to_node: &[i32]) -> Vec<u32> {
    let mut ends = vec![u32::MAX; shape.num_slots()];
    for expert in tables.replicated() {
        let parts = parts(shape, tables, expert, rank, rank_to_node);
        let all: u128 = parts.iter().sum();
        let mut sum = 0;
        for (part, end) in parts.iter().zip(&mut ends[tables.replica_start[expert] as usize..]) {
            sum += part;
            *end = u32::try_from((sum << 32) / all).unwrap_or(u32::MAX);
        }
    }
    ends
}

/// How much of an expert's tokens on `rank` each replica serves, in proportion.
pub fn parts(
    shape: Shape,
    tables: &LayerTables,
    expert: usize,
    rank: usize,
    rank_to_node: &[i32],
) -> Vec<u128> {
    let slots = tables.slots_of(expert);
    let (count, num_ranks) = (slots.len() as u64, shape.num_ranks() as u64);
    // A replica's fair share is num_ranks x tokens / count, and its capacity is 5/4 of that.
    let (tokens, capacity) = (4 * count * UNITS, 5 * num_ranks * UNITS);
    let mut filling = Filling { totals: vec![0; slots.len()], parts: vec![0; slots.len()] };
    let first_slot = tables.replica_start[expert];
    let mut left: Vec<u64> = vec![tokens; shape.num_ranks()];
    for holder in tables.holders(shape, expert) {
        let replicas: Vec<usize> =
            (holder.first..holder.first + holder.size).map(|r| (r - first_slot) as usize).collect();
        let own = tokens.min(capacity * u64::from(holder.size));
        left[holder.rank as usize] -= own;
        filling.fill(&replicas, own, if holder.rank as usize == rank { (1, 1) } else { (0, 1) });
    }
    let node_of = |replica: usize| rank_to_node[shape.rank_of(slots[replica] as usize)];
    let mut nodes: Vec<i32> = (0..slots.len()).map(node_of).collect();
    nodes.dedup();
    nodes.sort_unstable();
    nodes.dedup();
    let mut remaining: u64 = left.iter().sum();
    let mut mine = left[rank];
    for node in nodes {
        let replicas: Vec<usize> = (0..slots.len()).filter(|&replica| node_of(replica) == node).collect();
        let wanted: u64 = (0..left.len()).filter(|&r| rank_to_node[r] == node).map(|r| left[r]).sum();
        let room: u64 = replicas.iter().map(|&replica| capacity - filling.totals[replica]).sum();
        let placed = wanted.min(room);
        if wanted == 0 {
            continue;
        }
        remaining -= placed;
        let is_mine = rank_to_node[rank] == node;
        filling.fill(&replicas, placed, if is_mine { (left[rank], wanted) } else { (0, 1) });
        if is_mine {
            mine = (u128::from(mine) * u128::from(wanted - placed) / u128::from(wanted)) as u64;
        }
    }
    if remaining > 0 {
        let replicas: Vec<usize> = (0..slots.len()).collect();
        filling.fill(&replicas, remaining, (mine, remaining));
    }
    filling.parts
}

/// The units on each replica.
struct Filling {
    /// Of all ranks.
    totals: Vec<u64>,
    /// Of the rank whose shares are computed.
    parts: Vec<u128>,
}

impl Filling {
    /// Fills these replicas with `amount` units. The rank has `mine` in `of` of them.
    fn fill(&mut self, replicas: &[usize], amount: u64, (mine, of): (u64, u64)) {
        let filled = Height::of(amount, replicas.len(), |r| self.totals[replicas[r]]);
        let mut rest = filled.rest;
        for &replica in replicas {
            if let Some(raised) = filled.height.checked_sub(self.totals[replica]) {
                let one = u64::from(rest > 0);
                rest -= one;
                self.totals[replica] += raised + one;
                self.parts[replica] += u128::from(raised + one) * u128::from(mine) / u128::from(of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of each rank, in tokens of a rank.
    fn all_parts(slot_experts: &[u32], num_ranks: usize, rank_to_node: &[i32]) -> Vec<Vec<f64>> {
        let num_experts = *slot_experts.iter().max().unwrap() as usize + 1;
        let shape = Shape::new(num_experts, slot_experts.len(), num_ranks).unwrap();
        let tables = LayerTables::new(shape, slot_experts);
        let of_rank = |rank| {
            let parts = parts(shape, &tables, 0, rank, rank_to_node);
            let all: u128 = parts.iter().sum();
            parts.iter().map(|&part| part as f64 / all as f64).collect()
        };
        (0..num_ranks).map(of_rank).collect()
    }

    fn close(found: &[Vec<f64>], expected: &[&[f64]]) {
        for (found, expected) in found.iter().zip(expected) {
            for (a, b) in found.iter().zip(*expected) {
                assert!((a - b).abs() < 1e-5, "{found:?} instead of {expected:?}");
            }
        }
    }

    #[test]
    fn parts_keep_tokens_on_ranks_with_a_replica() {
        // Expert 0 on ranks 0 and 1 of 4, one node: ranks 2 and 3 split evenly.
        let found = all_parts(&[0, 1, 0, 2, 3, 4, 5, 6], 4, &[0; 4]);
        close(&found, &[&[1.0, 0.0], &[0.0, 1.0], &[0.5, 0.5], &[0.5, 0.5]]);
    }

    #[test]
    fn parts_keep_tokens_on_a_node_up_to_its_capacity() {
        // Expert 0 on ranks 0, 1 (node 1) and 2 (node 2) of 4: fair is 4/3, and 5/3 at most. Rank 3 stays on its node with
        // 2/3, which fills the replica on rank 2, and sends a sixth to each of the others.
        let found = all_parts(&[0, 1, 0, 2, 0, 4, 3, 5], 4, &[1, 1, 2, 2]);
        let (two_thirds, sixth) = (2.0 / 3.0, 1.0 / 6.0);
        close(&found, &[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[0.0, 0.0, 1.0], &[sixth, sixth, two_thirds]]);
    }

    #[test]
    fn parts_send_tokens_beyond_a_ranks_capacity_to_others() {
        // Expert 0 four times on rank 0 and once on rank 1: a replica's fair share is 2/5, and a half at most.
        let found = all_parts(&[0, 0, 0, 0, 0, 1, 2, 3], 2, &[0, 0]);
        // Rank 1 keeps a half. The other half is split over the replicas with 1/4 each.
        close(&found, &[&[0.25, 0.25, 0.25, 0.25, 0.0], &[0.125, 0.125, 0.125, 0.125, 0.5]]);
    }
}
