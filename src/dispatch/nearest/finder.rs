//! Finds an expert's slot at a point of its shares.

use crate::dispatch::tables::LayerTables;
use crate::placement::Shape;

/// Finds slots by the shares, without a loop over them whose end would be mispredicted.
#[derive(Debug)]
pub struct Finder {
    shares: Vec<u32>,
    /// Of each expert, and at last of the invalid slot.
    ranges: Vec<BucketRange>,
    buckets: Vec<Bucket>,
}

/// The buckets of an expert, which divide the points evenly.
#[derive(Debug, Clone, Copy)]
struct BucketRange {
    start: u32,
    /// A bucket has 2^shift points.
    shift: u32,
}

/// Consecutive points, in most buckets of one slot or two.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// The slot of the points up to `last`.
    slot: u32,
    last: u32,
    /// The slot of the other points, or [`SEVERAL`].
    after: u32,
}

/// In place of a slot where the points go to several.
const SEVERAL: u32 = u32::MAX;

/// Buckets for each replica, or up to twice as many. Where shares are similar, no two end in one bucket.
const BUCKETS: usize = 4;

impl Finder {
    /// Finds by the shares of a layer.
    pub fn new(shape: Shape, tables: &LayerTables, shares: Vec<u32>) -> Self {
        let (mut ranges, mut buckets) = (Vec::new(), Vec::new());
        for expert in 0..shape.num_experts() {
            let count = match tables.slots_of(expert).len() {
                1 => 1,
                replicas => (BUCKETS * replicas).next_power_of_two(),
            };
            let shift = 32 - count.ilog2();
            ranges.push(BucketRange { start: buckets.len() as u32, shift });
            let points = (0..count as u64).map(|bucket| (bucket << shift, ((bucket + 1) << shift) - 1));
            buckets.extend(
                points.map(|(first, last)| bucket(tables, &shares, expert, first as u32, last as u32)),
            );
        }
        let invalid = shape.num_slots() as u32;
        ranges.push(BucketRange { start: buckets.len() as u32, shift: 32 });
        buckets.push(Bucket { slot: invalid, last: u32::MAX, after: invalid });
        Finder { shares, ranges, buckets }
    }

    /// The slot of an expert at a point. The invalid slot for the expert after the last.
    #[inline(always)]
    pub fn slot(&self, tables: &LayerTables, expert: usize, point: u32) -> u32 {
        let BucketRange { start, shift } = self.ranges[expert];
        let bucket = u64::from(start) + (u64::from(point) >> shift);
        let Bucket { slot, last, after } = self.buckets[bucket as usize];
        match if point > last { after } else { slot } {
            SEVERAL => tables.replica_slots[replica_at(tables, &self.shares, expert, point)],
            slot => slot,
        }
    }
}

/// The bucket of an expert's points from `first` to `last`.
fn bucket(tables: &LayerTables, shares: &[u32], expert: usize, first: u32, last: u32) -> Bucket {
    let replica_at = |point| replica_at(tables, shares, expert, point);
    let (replica, last_replica) = (replica_at(first), replica_at(last));
    let [slot, last_slot] = [replica, last_replica].map(|replica| tables.replica_slots[replica]);
    if replica == last_replica {
        return Bucket { slot, last, after: slot };
    }
    let after = if replica_at(shares[replica]) == last_replica { last_slot } else { SEVERAL };
    Bucket { slot, last: shares[replica] - 1, after }
}

/// The replica of an expert at a point, as an index in the table of slots.
fn replica_at(tables: &LayerTables, shares: &[u32], expert: usize, point: u32) -> usize {
    let (start, count) = (tables.replica_start[expert] as usize, tables.replica_count[expert] as usize);
    start + shares[start..][..count - 1].partition_point(|&end| end <= point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finder_returns_the_slots_of_a_walk_over_the_shares() {
        // Expert 0 on eight slots with shares of one point and of none, some in one bucket; expert 1 on three; expert 2 on one.
        let experts = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2];
        let shape = Shape::new(3, experts.len(), 4).unwrap();
        let tables = LayerTables::new(shape, &experts);
        let end = u32::MAX;
        let shares = [0, 1, 5, 5, 1 << 27, (1 << 27) + 1, 1 << 31, end, 1 << 30, end, end, end];
        let finder = Finder::new(shape, &tables, shares.to_vec());
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
