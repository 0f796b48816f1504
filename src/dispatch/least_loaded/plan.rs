//! The experts with several slots of a layer, by the ranks that hold them.

use std::ops::Range;

use super::step_size::{SWEEPS, step_sizes};
use crate::dispatch::tables::{Holder, LayerTables};
use crate::placement::Shape;

/// The experts with several slots: those on three ranks or more, then those on two, then those on one. Each kind is by ascending
/// id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SplitPlan {
    /// The experts, by place.
    pub experts: Vec<u32>,
    /// Where the holders of each expert begin. The last entry is the number of holders.
    pub holder_start: Vec<u32>,
    /// The holders, of each expert by ascending rank.
    pub holders: Vec<Holder>,
    /// Experts on three ranks or more.
    pub num_wide: usize,
    /// Experts on two ranks or more.
    num_split: usize,
    /// The step size of each sweep.
    pub step_sizes: [i32; SWEEPS],
    /// Of each expert its place, or [`ONE_SLOT`] and its rank.
    places: Vec<u32>,
}

/// The bit of experts with one slot in [`SplitPlan::places`].
const ONE_SLOT: u32 = 1 << 31;

/// Where an expert's tokens go.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// To the only slot, which is on this rank.
    Rank(usize),
    /// To the holders of the expert at this place.
    Split(usize),
}

impl SplitPlan {
    /// The plan of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut experts: Vec<(u32, Vec<Holder>)> =
            tables.replicated().map(|expert| (expert as u32, tables.holders(shape, expert))).collect();
        experts.sort_by_key(|(expert, holders)| (3usize.saturating_sub(holders.len()), *expert));
        let on = |ranks: usize| experts.iter().filter(|(_, holders)| holders.len() >= ranks).count();
        let rank_of = |expert: usize| shape.rank_of(tables.slots_of(expert)[0] as usize) as u32;
        let mut plan = SplitPlan {
            holder_start: vec![0],
            num_wide: on(3),
            num_split: on(2),
            places: (0..shape.num_experts()).map(|expert| ONE_SLOT | rank_of(expert)).collect(),
            ..SplitPlan::default()
        };
        for (place, (expert, holders)) in (0..).zip(experts) {
            plan.places[expert as usize] = place;
            plan.experts.push(expert);
            plan.holders.extend(holders);
            plan.holder_start.push(plan.holders.len() as u32);
        }
        plan.step_sizes = step_sizes(&plan, shape.num_ranks());
        plan
    }

    /// Where an expert's tokens go.
    #[inline(always)]
    pub fn place_of(&self, expert: usize) -> Place {
        match self.places[expert] {
            place if place < ONE_SLOT => Place::Split(place as usize),
            rank => Place::Rank((rank ^ ONE_SLOT) as usize),
        }
    }

    /// Experts on two ranks or more. They have the first places.
    pub fn num_split(&self) -> usize {
        self.num_split
    }

    /// The holders of the expert at a place.
    pub fn holders_of(&self, place: usize) -> &[Holder] {
        &self.holders[self.range_of(place)]
    }

    /// The indexes of the holders of the expert at a place.
    #[inline(always)]
    pub fn range_of(&self, place: usize) -> Range<usize> {
        self.holder_start[place] as usize..self.holder_start[place + 1] as usize
    }

    /// Calls `run` with each replica of the expert at a place, and how many tokens of one rank the replica serves. The replica is
    /// an index in the table of slots, ascending. `quotas` are those of all holders.
    #[inline(always)]
    pub fn runs(
        &self,
        place: usize,
        quotas: &[u64],
        RankTokens { before, own }: RankTokens,
        mut run: impl FnMut(u32, u32),
    ) {
        let range = self.range_of(place);
        let (mut served, mut end) = (0, 0);
        for (&Holder { first, size, .. }, &quota) in self.holders[range.clone()].iter().zip(&quotas[range]) {
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
#[derive(Debug, Clone, Copy)]
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
        assert_eq!((&plan.experts[..], plan.num_wide, plan.num_split()), (&[3, 1, 0][..], 1, 2));
        assert!(matches!(plan.place_of(0), Place::Split(2)));
        assert!(matches!(plan.place_of(2), Place::Rank(1)));
        assert!(matches!(plan.place_of(4), Place::Rank(2)));
    }

    #[test]
    fn runs_divide_a_quota_among_replicas_on_one_rank() {
        // Slots 0 1 2 | 3 4 5 hold experts 0 0 0 | 0 1 2.
        let shape = Shape::new(3, 6, 2).unwrap();
        let plan = SplitPlan::new(shape, &LayerTables::new(shape, &[0, 0, 0, 0, 1, 2]));
        let runs = |before, own| {
            let mut runs = Vec::new();
            plan.runs(0, &[7, 3], RankTokens { before, own }, |replica, tokens| runs.push((replica, tokens)));
            runs
        };
        // Up to 7/3, 14/3 and 7, rounded up.
        assert_eq!(runs(0, 10), [(0, 3), (1, 2), (2, 2), (3, 3)]);
        // Tokens 4 to 8 of these.
        assert_eq!(runs(4, 5), [(0, 0), (1, 1), (2, 2), (3, 2)]);
    }
}
