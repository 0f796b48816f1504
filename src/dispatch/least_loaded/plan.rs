//! The experts with several slots of a layer, by the ranks that hold them.

use std::cmp::Reverse;
use std::ops::Range;

use super::edges::{Edge, Steps};
use crate::dispatch::tables::{Holder, LayerTables};
use crate::placement::Shape;

/// Sweeps over the edges for one rank's tokens. Those of all ranks have twice as many.
const SWEEPS: u32 = 4;
const SWEEPS_OF_MANY_EDGES: u32 = 2;

/// Edges from which on a sweep has many.
const MANY_EDGES: usize = 64;

/// The experts with several slots: first those on most ranks, at last those on one. On as many ranks, by ascending id.
#[derive(Debug, Default)]
pub(crate) struct SplitPlan {
    /// The experts, by place.
    pub experts: Vec<u32>,
    /// Where the holders of each expert begin. The last entry is the number of holders.
    pub holder_start: Vec<u32>,
    /// The holders, of each expert by ascending rank.
    pub holders: Vec<Holder>,
    /// Experts on two ranks or more. They have the first places.
    pub num_split: usize,
    /// Which of their ranks even out their loads, step by step.
    pub steps: Steps,
    /// The edges of each expert, as indexes in the steps' edges. Those of an expert begin where its holders do.
    pub edges: Vec<u32>,
    /// Sweeps over all steps, for one rank's tokens.
    pub sweeps: u32,
    /// Where each expert is.
    pub locations: Vec<Location>,
    /// The experts on one rank, by rank.
    pub residents: Vec<u32>,
    /// Where the residents of each rank begin. The last entry is their number.
    pub resident_start: Vec<u32>,
}

/// Where an expert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The rank of an expert that is on one, otherwise the number of ranks.
    pub rank: u32,
    /// The place of an expert with several slots, otherwise the number of places.
    pub place: u32,
}

impl SplitPlan {
    /// The plan of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut experts: Vec<(u32, Vec<Holder>)> =
            tables.replicated().map(|expert| (expert as u32, tables.holders(shape, expert))).collect();
        experts.sort_by_key(|(expert, holders)| (Reverse(holders.len()), *expert));
        let num_places = experts.len() as u32;
        let location = |expert: usize| Location {
            rank: shape.rank_of(tables.slots_of(expert)[0] as usize) as u32,
            place: num_places,
        };
        let mut plan = SplitPlan {
            holder_start: vec![0],
            num_split: experts.iter().filter(|(_, holders)| holders.len() > 1).count(),
            locations: (0..shape.num_experts()).map(location).collect(),
            ..SplitPlan::default()
        };
        for (place, (expert, holders)) in (0..).zip(experts) {
            let location = &mut plan.locations[expert as usize];
            location.place = place;
            if holders.len() > 1 {
                location.rank = shape.num_ranks() as u32;
            }
            plan.experts.push(expert);
            plan.holders.extend(holders);
            plan.holder_start.push(plan.holders.len() as u32);
        }
        let num_ranks = shape.num_ranks();
        plan.set_residents(num_ranks);
        let rings = (0..plan.num_split).flat_map(|place| plan.ring(place, num_ranks));
        plan.steps = Steps::new(rings, num_ranks);
        plan.sweeps = if plan.steps.edges.len() < MANY_EDGES { SWEEPS } else { SWEEPS_OF_MANY_EDGES };
        // An edge is at the first of its holders that is not yet taken by the edge before: x for (x, x + 1).
        plan.edges = vec![0; plan.holders.len()];
        for (index, edge) in (0..).zip(&plan.steps.edges) {
            plan.edges[edge.units[0] as usize - num_ranks] = index;
        }
        plan
    }

    fn set_residents(&mut self, num_ranks: usize) {
        let rank_of = |expert: &u32| self.locations[*expert as usize].rank;
        let mut residents: Vec<u32> = (0..self.locations.len() as u32).collect();
        residents.sort_by_key(rank_of);
        let start = |rank| residents.partition_point(|expert| rank_of(expert) < rank) as u32;
        self.resident_start = (0..=num_ranks as u32).map(start).collect();
        residents.truncate(self.resident_start[num_ranks] as usize);
        self.residents = residents;
    }

    /// Each holder of the expert at a place with the next, and where there are more than two, the last with the first.
    fn ring(&self, place: usize, num_ranks: usize) -> impl Iterator<Item = Edge> {
        let range = self.range_of(place);
        let (first, count) = (range.start, range.len());
        (0..if count > 2 { count } else { 1 }).map(move |x| {
            let holders = [x, (x + 1) % count].map(|x| first + x);
            Edge {
                units: holders.map(|holder| (num_ranks + holder) as u32),
                loads: holders.map(|holder| self.holders[holder].rank),
            }
        })
    }

    /// The edges of the expert at a place, as indexes in the steps' edges.
    #[inline(always)]
    pub fn edges_of(&self, place: usize) -> &[u32] {
        let range = self.range_of(place);
        let len = match range.len() {
            1 => 0,
            2 => 1,
            len => len,
        };
        &self.edges[range][..len]
    }

    /// The indexes of the holders of the expert at a place.
    #[inline(always)]
    pub fn range_of(&self, place: usize) -> Range<usize> {
        self.holder_start[place] as usize..self.holder_start[place + 1] as usize
    }

    /// Calls `run` with each replica of the expert at a place, and how many tokens of one rank the replica serves. The replica is
    /// an index in the table of slots, ascending. `quotas` are those of the expert's holders.
    #[inline(always)]
    pub fn runs(
        &self,
        place: usize,
        quotas: impl Iterator<Item = u64>,
        RankTokens { before, own }: RankTokens,
        mut run: impl FnMut(u32, u32),
    ) {
        let (mut served, mut end) = (0, 0);
        for (&Holder { first, size, .. }, quota) in self.holders[self.range_of(place)].iter().zip(quotas) {
            for replica in 1..=size {
                let up_to = match size {
                    1 => served + quota,
                    _ => served + (quota * u64::from(replica)).div_ceil(u64::from(size)),
                };
                let begin = end;
                end = up_to.saturating_sub(before).min(own) as u32;
                run(first + replica - 1, end - begin);
            }
            served += quota;
        }
    }
}

/// The tokens that one rank has of an expert.
#[derive(Debug, Clone, Copy, Default)]
pub struct RankTokens {
    /// The tokens of the ranks before.
    pub before: u64,
    /// The tokens of the rank, below 2^31.
    pub own: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_ordered_by_their_ranks() {
        // Slots 0 1 2 | 3 4 5 | 6 7 8 hold experts 0 0 3 | 1 2 3 | 1 3 4.
        let shape = Shape::new(5, 9, 3).unwrap();
        let plan = SplitPlan::new(shape, &LayerTables::new(shape, &[0, 0, 3, 1, 2, 3, 1, 3, 4]));
        assert_eq!((&plan.experts[..], plan.num_split), (&[3, 1, 0][..], 2));
        let locations = [(0, 2), (3, 1), (1, 3), (3, 0), (2, 3)];
        assert_eq!(plan.locations, locations.map(|(rank, place)| Location { rank, place }));
        assert_eq!((&plan.residents[..], &plan.resident_start[..]), (&[0, 2, 4][..], &[0, 1, 2, 3][..]));
        // Expert 3 has the holders 0, 1 and 2, expert 1 the holders 3 and 4 on ranks 1 and 2.
        let edges: Vec<[u32; 2]> = plan.steps.edges.iter().map(|edge| edge.units).collect();
        assert_eq!(edges, [[0, 1], [1, 2], [2, 0], [3, 4]].map(|holders| holders.map(|holder| 3 + holder)));
        assert_eq!(plan.steps.starts, [0, 1, 2, 3, 4]);
        assert_eq!((plan.edges_of(0), plan.edges_of(1)), (&[0, 1, 2][..], &[3][..]));
        assert!(plan.edges_of(2).is_empty());
    }

    #[test]
    fn runs_divide_a_quota_among_replicas_on_one_rank() {
        // Slots 0 1 2 | 3 4 5 hold experts 0 0 0 | 0 1 2.
        let shape = Shape::new(3, 6, 2).unwrap();
        let plan = SplitPlan::new(shape, &LayerTables::new(shape, &[0, 0, 0, 0, 1, 2]));
        let runs = |before, own| {
            let mut runs = Vec::new();
            let quotas = [7, 3].into_iter();
            plan.runs(0, quotas, RankTokens { before, own }, |replica, tokens| runs.push((replica, tokens)));
            runs
        };
        // Up to 7/3, 14/3 and 7, rounded up.
        assert_eq!(runs(0, 10), [(0, 3), (1, 2), (2, 2), (3, 3)]);
        // Tokens 4 to 8 of these.
        assert_eq!(runs(4, 5), [(0, 0), (1, 1), (2, 2), (3, 2)]);
    }
}
