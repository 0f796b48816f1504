//! The experts with several slots of a layer, by the ranks that hold them.

use std::cmp::Reverse;
use std::ops::Range;

use super::edges::{Edge, Steps};
use crate::dispatch::rule::GOLDEN_RATIO;
use crate::dispatch::tables::{Holder, LayerTables};
use crate::placement::Shape;

/// The experts with several slots: first those on most ranks, at last those on one. On as many ranks, by ascending id.
#[derive(Debug, Default)]
pub(crate) struct SplitPlan {
    /// The experts, by place.
    pub experts: Vec<u32>,
    /// Where the holders of each expert begin. The last entry is the number of holders.
    pub holder_start: Vec<u32>,
    /// The holders, of each expert by ascending rank.
    pub holders: Vec<Holder>,
    /// The rank of each holder.
    pub holder_ranks: Vec<u32>,
    /// The experts on three ranks or more, which have the first places.
    pub rings: Vec<Ring>,
    /// Experts on two ranks or more. They have the first places.
    pub num_split: usize,
    /// Which of their ranks even out their loads, step by step.
    pub steps: Steps,
    /// The edges of each expert, as indexes in the steps' edges. Those of an expert begin where its holders do.
    pub edges: Vec<u32>,
    /// Sweeps over all steps, for one rank's tokens.
    pub sweeps: u32,
    /// Where each expert is, and at last nowhere.
    pub locations: Vec<Location>,
    /// The experts on one rank, and their ranks: first one of each rank, then another one of each, and so on.
    pub residents: Vec<(u32, u32)>,
}

/// Cells after those of a plan, whose numbers mean nothing: up to three for the units of an expert, up to seven for units that are
/// written eight at once, and the last four for edges that are none. One of these at a time uses them.
pub const SPARE: usize = 8;

/// Where an expert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The rank of an expert that is on one, otherwise the number of ranks.
    pub rank: u32,
    /// The place of an expert with several slots, otherwise the number of places.
    pub place: u32,
}

/// The ranks of an expert, and how to divide by their number.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// The number of ranks.
    pub count: u32,
    /// 2^64 / count, rounded up.
    inverse: u64,
}

impl Ring {
    fn of(count: u32) -> Self {
        Ring { count, inverse: u64::MAX / u64::from(count) + 1 }
    }

    /// The quotient and the remainder by the number of ranks, at least 2, as Lemire, Kaser and Kurz prove for 32 bits.
    #[inline(always)]
    pub fn divide(self, number: u32) -> (u32, u32) {
        let quotient = ((u128::from(self.inverse) * u128::from(number)) >> 64) as u32;
        (quotient, number - quotient * self.count)
    }
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
        let nowhere = Location { rank: shape.num_ranks() as u32, place: num_places };
        let mut plan = SplitPlan {
            holder_start: vec![0],
            num_split: experts.iter().filter(|(_, holders)| holders.len() > 1).count(),
            locations: (0..shape.num_experts()).map(location).chain([nowhere]).collect(),
            ..SplitPlan::default()
        };
        for (place, (expert, holders)) in (0..).zip(experts) {
            let location = &mut plan.locations[expert as usize];
            location.place = place;
            if holders.len() > 1 {
                location.rank = shape.num_ranks() as u32;
            }
            if holders.len() > 2 {
                plan.rings.push(Ring::of(holders.len() as u32));
            }
            plan.experts.push(expert);
            plan.holder_ranks.extend(holders.iter().map(|holder| holder.rank));
            plan.holders.extend(holders);
            plan.holder_start.push(plan.holders.len() as u32);
        }
        let num_ranks = shape.num_ranks();
        plan.set_residents(num_ranks);
        let rings = (0..plan.num_split).flat_map(|place| plan.ring(place, num_ranks));
        plan.steps = Steps::new(rings, num_ranks);
        plan.sweeps = plan.num_sweeps();
        // An edge is at the first of its holders that is not yet taken by the edge before: x for (x, x + 1).
        plan.edges = vec![0; plan.holders.len()];
        for (index, edge) in (0..).zip(&plan.steps.edges) {
            plan.edges[edge.units[0] as usize - num_ranks] = index;
        }
        plan
    }

    fn set_residents(&mut self, num_ranks: usize) {
        let mut of_rank = vec![vec![]; num_ranks];
        for (expert, location) in (0u32..).zip(&self.locations) {
            if let Some(of_rank) = of_rank.get_mut(location.rank as usize) {
                of_rank.push(expert);
            }
        }
        let most = of_rank.iter().map(Vec::len).max().unwrap_or(0);
        for number in 0..most {
            let residents = (0u32..).zip(&of_rank);
            self.residents
                .extend(residents.filter_map(|(rank, experts)| Some((*experts.get(number)?, rank))));
        }
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

    /// The sweeps for one rank's tokens: fewer with many edges, and if no rank has edges of two experts. With the counts of all ranks,
    /// twice as many.
    fn num_sweeps(&self) -> u32 {
        let mut taken = vec![false; self.num_ranks()];
        let of_split = &self.holder_ranks[..self.holder_start[self.num_split] as usize];
        let meet = of_split.iter().any(|&rank| std::mem::replace(&mut taken[rank as usize], true));
        match self.steps.edges.len() {
            256.. => 1,
            64.. => 2,
            _ if meet => 4,
            _ => 2,
        }
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

    /// The cells that the edges name: the ranks' and the holders'.
    pub fn num_cells(&self) -> usize {
        self.num_ranks() + self.holders.len()
    }

    /// The experts of the layer.
    #[inline(always)]
    pub fn num_experts(&self) -> usize {
        self.locations.len().saturating_sub(1)
    }

    /// The ranks of the layer.
    #[inline(always)]
    pub fn num_ranks(&self) -> usize {
        self.locations.last().map_or(0, |nowhere| nowhere.rank as usize)
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

/// Which holders get the odd units, by the sum of each expert times its tokens. So batches that are alike, those of several ranks,
/// do not give theirs to the same ranks.
pub fn mix_of(sum: u32) -> u32 {
    sum.wrapping_mul(GOLDEN_RATIO) >> 16
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
        let locations = [(0, 2), (3, 1), (1, 3), (3, 0), (2, 3), (3, 3)];
        assert_eq!(plan.locations, locations.map(|(rank, place)| Location { rank, place }));
        assert_eq!(plan.num_cells(), 3 + 6);
        assert_eq!(plan.residents, [(0, 0), (2, 1), (4, 2)]);
        // Expert 3 has the holders 0, 1 and 2, expert 1 the holders 3 and 4 on ranks 1 and 2.
        let edges: Vec<[u32; 2]> = plan.steps.edges.iter().map(|edge| edge.units).collect();
        assert_eq!(edges, [[0, 1], [1, 2], [2, 0], [3, 4]].map(|holders| holders.map(|holder| 3 + holder)));
        assert_eq!(plan.steps.starts, [0, 1, 2, 3, 4]);
        assert_eq!((plan.edges_of(0), plan.edges_of(1)), (&[0, 1, 2][..], &[3][..]));
        assert!(plan.edges_of(2).is_empty());
    }

    #[test]
    fn sweeps_are_fewer_with_many_edges_and_where_rings_share_no_rank() {
        // The slots of each rank.
        let sweeps = |ranks: &[&[u32]]| {
            let slots = ranks.concat();
            let num_experts = slots.iter().max().unwrap() + 1;
            let shape = Shape::new(num_experts as usize, slots.len(), ranks.len()).unwrap();
            SplitPlan::new(shape, &LayerTables::new(shape, &slots)).sweeps
        };
        assert_eq!(sweeps(&[&[0, 1, 2], &[0, 1, 3]]), 4);
        assert_eq!(sweeps(&[&[0, 2, 2], &[0, 3, 3], &[1, 4, 5], &[1, 6, 7]]), 2);
        // Each rank holds these experts: as many rings as experts, of as many edges as ranks.
        let (few, some, many) = ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(sweeps(&[&few[..]; 21]), 4);
        assert_eq!(sweeps(&[&some[..]; 16]), 2);
        assert_eq!(sweeps(&[&some[..]; 63]), 2);
        assert_eq!(sweeps(&[&many[..]; 32]), 1);
        // A ring of 255 edges and one of 256.
        assert_eq!(sweeps(&[&[0][..]; 255]), 2);
        assert_eq!(sweeps(&[&[0][..]; 256]), 1);
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
