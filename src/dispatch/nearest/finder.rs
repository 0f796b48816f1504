//! Finds an expert's slot at a point of its shares.

use crate::device::Id;
use crate::dispatch::tables::LayerTables;
use crate::placement::Shape;

/// Finds slots by the shares, without a loop over them whose end would be mispredicted.
#[derive(Debug)]
pub struct Finder {
    shares: Vec<u32>,
    /// Of each expert.
    ranges: Vec<BucketRange>,
    buckets: Vec<Bucket>,
    invalid_slot: u32,
}

/// The buckets of an expert, which divide the points evenly.
#[derive(Debug, Clone, Copy)]
struct BucketRange {
    start: u32,
    /// The number of buckets, a power of two.
    count: u32,
}

/// Consecutive points, in most buckets of one slot or two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct Bucket {
    /// The slot of the points up to `last`, and that of the others or [`SEVERAL`].
    slots: [u32; 2],
    last: u32,
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
            ranges.push(BucketRange { start: buckets.len() as u32, count: count as u32 });
            let points = (0..count as u64).map(|bucket| (bucket << shift, ((bucket + 1) << shift) - 1));
            buckets.extend(
                points.map(|(first, last)| bucket(tables, &shares, expert, first as u32, last as u32)),
            );
        }
        Finder { shares, ranges, buckets, invalid_slot: shape.num_slots() as u32 }
    }

    /// Replaces ids by the slots of their experts at `points`, one of each expert. An expert's point advances by `step` with each
    /// id.
    // On its own, its loop keeps everything in registers.
    #[inline(never)]
    pub fn route<I: Id>(&self, ids: &mut [I], points: &mut [u32], step: u32, tables: &LayerTables) {
        // As slices of one length, they are checked once.
        let ranges = &self.ranges[..points.len()];
        let buckets = &self.buckets[..];
        let mut route = |id: &mut I| {
            let expert = id.bin(usize::MAX);
            if expert >= points.len() {
                *id = I::of_slot(self.invalid_slot);
                return;
            }
            let point = points[expert];
            points[expert] = point.wrapping_add(step);
            let BucketRange { start, count } = ranges[expert];
            // A multiplication takes less than a shift by a variable.
            let bucket = start + ((u64::from(point) * u64::from(count)) >> 32) as u32;
            // SAFETY: less than `count` is added, and an expert has as many buckets.
            let Bucket { slots, last } = unsafe { buckets.get_unchecked(bucket as usize) };
            let slot = match slots[usize::from(point > *last)] {
                SEVERAL => tables.replica_slots[replica_at(tables, &self.shares, expert, point)],
                slot => slot,
            };
            *id = I::of_slot(slot);
        };
        let (four, rest) = ids.as_chunks_mut::<4>();
        four.iter_mut().for_each(|ids| ids.iter_mut().for_each(&mut route));
        rest.iter_mut().for_each(route);
    }
}

/// The bucket of an expert's points from `first` to `last`.
fn bucket(tables: &LayerTables, shares: &[u32], expert: usize, first: u32, last: u32) -> Bucket {
    let replica_at = |point| replica_at(tables, shares, expert, point);
    let (replica, last_replica) = (replica_at(first), replica_at(last));
    let [slot, last_slot] = [replica, last_replica].map(|replica| tables.replica_slots[replica]);
    if replica == last_replica {
        return Bucket { slots: [slot; 2], last };
    }
    let after = if replica_at(shares[replica]) == last_replica { last_slot } else { SEVERAL };
    Bucket { slots: [slot, after], last: shares[replica] - 1 }
}

/// The replica of an expert at a point, as an index in the table of slots.
#[cold]
fn replica_at(tables: &LayerTables, shares: &[u32], expert: usize, point: u32) -> usize {
    let (start, count) = (tables.replica_start[expert] as usize, tables.replica_count[expert] as usize);
    start + shares[start..][..count - 1].partition_point(|&end| end <= point)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slot of an id at a point, which is that of all experts.
    fn slot(finder: &Finder, tables: &LayerTables, id: i32, point: u32) -> i32 {
        let (mut ids, mut points) = ([id], [point; 3]);
        finder.route(&mut ids, &mut points, 5, tables);
        let advanced = |expert: usize| points[expert] == point.wrapping_add(5);
        assert!((0..3).all(|expert| advanced(expert) == (expert as i32 == id)));
        ids[0]
    }

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
                assert_eq!(
                    slot(&finder, &tables, expert, point),
                    walked as i32,
                    "expert {expert}, {point:#x}"
                );
            }
            assert_eq!(slot(&finder, &tables, 3, point), 12);
            assert_eq!(slot(&finder, &tables, -1, point), 12);
        }
    }
}
