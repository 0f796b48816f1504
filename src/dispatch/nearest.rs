//! Shares of the nearest rule: how much of a rank's tokens each replica serves, fixed when the tables are made.

use super::level::{Water, groups_of};
use super::tables::LayerTables;
use crate::placement::Shape;

/// Parts of a rank's tokens of an expert, for each of its replicas. Enough that rounding is no matter.
const FINENESS: u64 = 1 << 20;

/// The replica at a point in [0, 2^32) is the first whose share ends beyond it, or the last: `[num_slots]`, the shares of each
/// expert in the order of its slots.
///
/// Were all ranks to have as many tokens of an expert, every replica would serve 5/4 of its fair share at most. Subject to
/// that as many as possible stay on `rank`, and of the others on its node; what is to be dealt at each step levels the
/// replicas' totals.
pub(crate) fn shares(shape: Shape, tables: &LayerTables, rank: usize, rank_to_node: &[u32]) -> Vec<u32> {
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

/// Finds slots by the shares without walking these: where a walk ends, no processor foresees.
#[derive(Debug)]
pub(crate) struct Finder {
    shares: Vec<u32>,
    /// Of each expert, and at last of the invalid slot.
    rows: Vec<Row>,
    buckets: Vec<Bucket>,
}

/// An expert's buckets, which divide its points evenly.
#[derive(Debug, Clone, Copy)]
struct Row {
    start: u32,
    /// Each has 2^shift points.
    shift: u32,
}

/// Points that follow each other, and mostly all go to one slot or two.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Where those up to `last` go.
    slot: u32,
    last: u32,
    /// Where the others go, or [`SEVERAL`].
    after: u32,
}

/// In place of a slot where there are several.
const SEVERAL: u32 = u32::MAX;

/// Buckets for each replica, or up to twice as many: where shares are alike, no two end in one.
const BUCKETS: usize = 4;

impl Finder {
    /// Of a layer's shares.
    pub fn new(shape: Shape, tables: &LayerTables, shares: &[u32]) -> Self {
        let (mut rows, mut buckets) = (Vec::new(), Vec::new());
        for expert in 0..shape.num_experts() {
            let count = match tables.slots_of(expert).len() {
                1 => 1,
                replicas => (BUCKETS * replicas).next_power_of_two(),
            };
            let shift = 32 - count.ilog2();
            rows.push(Row { start: buckets.len() as u32, shift });
            let points = (0..count as u64).map(|bucket| (bucket << shift, ((bucket + 1) << shift) - 1));
            buckets.extend(
                points.map(|(first, last)| bucket(tables, shares, expert, first as u32, last as u32)),
            );
        }
        let invalid = shape.num_slots() as u32;
        rows.push(Row { start: buckets.len() as u32, shift: 32 });
        buckets.push(Bucket { slot: invalid, last: u32::MAX, after: invalid });
        Finder { shares: shares.to_vec(), rows, buckets }
    }

    /// The slot of an expert at a point, and the invalid slot for one that is not there.
    #[inline(always)]
    pub fn slot(&self, tables: &LayerTables, expert: usize, point: u32) -> u32 {
        let Row { start, shift } = self.rows[expert];
        let bucket = u64::from(start) + (u64::from(point) >> shift);
        let Bucket { slot, last, after } = self.buckets[bucket as usize];
        match if point > last { after } else { slot } {
            SEVERAL => tables.replica_slots[place_of(tables, &self.shares, expert, point)],
            slot => slot,
        }
    }
}

fn bucket(tables: &LayerTables, shares: &[u32], expert: usize, first: u32, last: u32) -> Bucket {
    let place_of = |point| place_of(tables, shares, expert, point);
    let (place, last_place) = (place_of(first), place_of(last));
    let [slot, last_slot] = [place, last_place].map(|place| tables.replica_slots[place]);
    if place == last_place {
        return Bucket { slot, last, after: slot };
    }
    let after = if place_of(shares[place]) == last_place { last_slot } else { SEVERAL };
    Bucket { slot, last: shares[place] - 1, after }
}

/// The place in the table of slots of an expert's replica at a point.
fn place_of(tables: &LayerTables, shares: &[u32], expert: usize, point: u32) -> usize {
    let (start, count) = (tables.replica_start[expert] as usize, tables.replica_count[expert] as usize);
    start + shares[start..][..count - 1].partition_point(|&end| end <= point)
}

/// How much of what `rank` has of an expert each of its replicas serves, in no unit.
pub(crate) fn parts(
    shape: Shape,
    tables: &LayerTables,
    expert: usize,
    rank: usize,
    rank_to_node: &[u32],
) -> Vec<u128> {
    let slots = tables.slots_of(expert);
    let (count, num_ranks) = (slots.len() as u64, shape.num_ranks() as u64);
    // A rank has 4 count, a replica serves 5 ranks at most: 5/4 of num_ranks x 4 count / count.
    let (tokens, capacity) = (4 * count * FINENESS, 5 * num_ranks * FINENESS);
    let mut step = Steps { totals: vec![0; slots.len()], parts: vec![0; slots.len()] };
    let first_slot = tables.replica_start[expert];
    let mut left: Vec<u64> = vec![tokens; shape.num_ranks()];
    let groups = groups_of(shape, tables, expert);
    for group in &groups {
        let replicas: Vec<usize> =
            (group.first..group.first + group.size).map(|r| (r - first_slot) as usize).collect();
        let own = tokens.min(capacity * u64::from(group.size));
        left[group.rank as usize] -= own;
        step.deal(&replicas, own, if group.rank as usize == rank { (1, 1) } else { (0, 1) });
    }
    let node_of = |replica: usize| rank_to_node[shape.rank_of(slots[replica] as usize)];
    let mut nodes: Vec<u32> = (0..slots.len()).map(node_of).collect();
    nodes.dedup();
    nodes.sort_unstable();
    nodes.dedup();
    let mut remaining: u64 = left.iter().sum();
    let mut mine = left[rank];
    for node in nodes {
        let replicas: Vec<usize> = (0..slots.len()).filter(|&replica| node_of(replica) == node).collect();
        let wanted: u64 = (0..left.len()).filter(|&r| rank_to_node[r] == node).map(|r| left[r]).sum();
        let room: u64 = replicas.iter().map(|&replica| capacity - step.totals[replica]).sum();
        let dealt = wanted.min(room);
        if wanted == 0 {
            continue;
        }
        remaining -= dealt;
        let is_mine = rank_to_node[rank] == node;
        step.deal(&replicas, dealt, if is_mine { (left[rank], wanted) } else { (0, 1) });
        if is_mine {
            mine = (u128::from(mine) * u128::from(wanted - dealt) / u128::from(wanted)) as u64;
        }
    }
    if remaining > 0 {
        let replicas: Vec<usize> = (0..slots.len()).collect();
        step.deal(&replicas, remaining, (mine, remaining));
    }
    step.parts
}

struct Steps {
    /// What each replica serves for all ranks.
    totals: Vec<u64>,
    /// And for the one.
    parts: Vec<u128>,
}

impl Steps {
    /// Deals `amount` to these replicas, of which a fraction is the rank's.
    fn deal(&mut self, replicas: &[usize], amount: u64, (mine, of): (u64, u64)) {
        let water = Water::poured(amount, replicas.len(), |r| self.totals[replicas[r]]);
        let mut extra = water.one_more;
        for &replica in replicas {
            if let Some(raised) = water.height.checked_sub(self.totals[replica]) {
                let one = u64::from(extra > 0);
                extra -= one;
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
    fn all_parts(slot_experts: &[u32], num_ranks: usize, rank_to_node: &[u32]) -> Vec<Vec<f64>> {
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
    fn a_rank_with_a_replica_keeps_its_tokens_and_the_others_level_the_rest() {
        // Expert 0 on ranks 0 and 1 of 4, one node: ranks 2 and 3 split evenly.
        let found = all_parts(&[0, 1, 0, 2, 3, 4, 5, 6], 4, &[0; 4]);
        close(&found, &[&[1.0, 0.0], &[0.0, 1.0], &[0.5, 0.5], &[0.5, 0.5]]);
    }

    #[test]
    fn a_node_keeps_what_its_replicas_have_room_for() {
        // Expert 0 on ranks 0, 1 (node 1) and 2 (node 2) of 4: fair is 4/3, and 5/3 at most. Rank 3 stays on its node with
        // 2/3, which fills the replica on rank 2, and sends a sixth to each of the others.
        let found = all_parts(&[0, 1, 0, 2, 0, 4, 3, 5], 4, &[1, 1, 2, 2]);
        let (two_thirds, sixth) = (2.0 / 3.0, 1.0 / 6.0);
        close(&found, &[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[0.0, 0.0, 1.0], &[sixth, sixth, two_thirds]]);
    }

    #[test]
    fn more_replicas_than_ranks_leave_a_rank_that_has_too_few() {
        // Expert 0 four times on rank 0 and once on rank 1: a replica's fair share is 2/5, and a half at most.
        let found = all_parts(&[0, 0, 0, 0, 0, 1, 2, 3], 2, &[0, 0]);
        // Rank 1 keeps a half, the other half goes to where 1/4 each lies.
        close(&found, &[&[0.25, 0.25, 0.25, 0.25, 0.0], &[0.125, 0.125, 0.125, 0.125, 0.5]]);
    }

    #[test]
    fn the_finder_finds_what_a_walk_over_the_shares_finds() {
        // Expert 0 on eight slots with shares of one point and of none, some in one bucket; expert 1 on three; expert 2 on one.
        let experts = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2];
        let shape = Shape::new(3, experts.len(), 4).unwrap();
        let tables = LayerTables::new(shape, &experts);
        let end = u32::MAX;
        let shares = [0, 1, 5, 5, 1 << 27, (1 << 27) + 1, 1 << 31, end, 1 << 30, end, end, end];
        let finder = Finder::new(shape, &tables, &shares);
        let near = |share: u32| (0..4).map(move |more| share.wrapping_add(more).wrapping_sub(2));
        let spread = (0..5000u32).map(|n| n.wrapping_mul(2_654_435_769));
        for point in shares.into_iter().flat_map(near).chain(spread) {
            for (expert, slots) in [(0, 0..8), (1, 8..11), (2, 11..12)] {
                let last = slots.end - 1;
                let walked = slots.into_iter().find(|&slot| point < shares[slot]).unwrap_or(last);
                assert_eq!(finder.slot(&tables, expert, point), walked as u32, "expert {expert}, {point:#x}");
            }
            assert_eq!(finder.slot(&tables, 3, point), 12);
        }
    }
}
