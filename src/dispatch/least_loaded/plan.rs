//! Splits the tokens of experts with several slots over the ranks that hold them, by water-filling.

use crate::dispatch::tables::{Holder, LayerTables};
use crate::dispatch::water_filling::Height;
use crate::placement::Shape;

/// The most sweeps over all replicated experts: `EPLB_SPLIT_SWEEPS` of the kernels.
pub const SWEEPS: usize = 4;

/// The most ranks that are the lanes of a warp: `EPLB_SPLIT_LANES` of the kernels.
pub const LANES: usize = 32;

/// In place of a holder where there is none: `EPLB_NO_HOLDER` of the kernels.
const NO_HOLDER: u32 = u32::MAX;

/// The experts with several slots, in the order of splitting: by ascending number of holders, then by id. Experts that share no
/// rank do not affect each other. They are reordered so that one step splits them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SplitPlan {
    /// The experts, step by step.
    pub experts: Vec<u32>,
    /// Where the holders of each expert begin. The last entry is the number of holders.
    pub holder_start: Vec<u32>,
    /// The holders, of each expert by ascending rank.
    pub holders: Vec<Holder>,
    /// Where the holders of each step begin. The last entry is the number of holders. Those of one step are on different ranks.
    pub step_start: Vec<u32>,
}

impl SplitPlan {
    /// The plan of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut experts: Vec<(u32, Vec<Holder>)> =
            tables.replicated().map(|expert| (expert as u32, tables.holders(shape, expert))).collect();
        experts.sort_by_key(|(expert, holders)| (holders.len(), *expert));
        // The first step after those of all earlier experts that share a rank.
        let mut free_from = vec![0; shape.num_ranks()];
        let steps = experts.iter().map(|(_, holders)| {
            let ranks = || holders.iter().map(|holder| holder.rank as usize);
            let step: u32 = ranks().map(|rank| free_from[rank]).max().unwrap_or(0);
            ranks().for_each(|rank| free_from[rank] = step + 1);
            step
        });
        let mut experts: Vec<_> = steps.collect::<Vec<_>>().into_iter().zip(experts).collect();
        experts.sort_by_key(|(step, _)| *step);

        let mut plan = SplitPlan { holder_start: vec![0], ..SplitPlan::default() };
        for (step, (expert, holders)) in experts {
            if step as usize == plan.step_start.len() {
                plan.step_start.push(plan.holders.len() as u32);
            }
            plan.experts.push(expert);
            plan.holders.extend(holders);
            plan.holder_start.push(plan.holders.len() as u32);
        }
        plan.step_start.push(plan.holders.len() as u32);
        plan
    }

    /// The plan for a warp whose lanes are the ranks. Empty where there are more than [`LANES`] ranks.
    pub fn lanes(&self, num_ranks: usize) -> Lanes {
        if num_ranks > LANES {
            return Lanes::default();
        }
        let num_steps = self.step_start.len() - 1;
        let mut lanes = Lanes { rank_holders: vec![NO_HOLDER; num_steps * num_ranks], ..Lanes::default() };
        for place in 0..self.experts.len() {
            let holders = &self.holders[self.holders_at(place)];
            let ranks = holders.iter().fold(0, |ranks, holder| ranks | 1 << holder.rank);
            lanes.holder_ranks.extend(holders.iter().map(|_| ranks));
        }
        for (step, ends) in self.step_start.windows(2).enumerate() {
            for holder in ends[0]..ends[1] {
                let rank = self.holders[holder as usize].rank as usize;
                lanes.rank_holders[step * num_ranks + rank] = holder;
            }
        }
        lanes
    }

    /// The holders of the expert at `place` in the order.
    fn holders_at(&self, place: usize) -> std::ops::Range<usize> {
        self.holder_start[place] as usize..self.holder_start[place + 1] as usize
    }

    /// Splits `totals`, the tokens of each expert. `quotas` receives the tokens of each holder, `rank_loads` those of each rank.
    pub fn split(
        &self,
        shape: Shape,
        tables: &LayerTables,
        totals: &[u64],
        quotas: &mut [u64],
        rank_loads: &mut [u64],
    ) {
        rank_loads.fill(0);
        quotas.fill(0);
        for (expert, &total) in totals.iter().enumerate() {
            if tables.replica_count[expert] == 1 {
                rank_loads[shape.rank_of(tables.slots_of(expert)[0] as usize)] += total;
            }
        }
        self.split_replicated(totals, quotas, rank_loads);
    }

    /// Splits the tokens of the experts with several slots. `rank_loads` contains those of the others, `quotas` zeros.
    pub fn split_replicated(&self, totals: &[u64], quotas: &mut [u64], rank_loads: &mut [u64]) {
        for _ in 0..SWEEPS {
            let mut changed = false;
            for (place, &expert) in self.experts.iter().enumerate() {
                let range = self.holders_at(place);
                let (holders, quotas) = (&self.holders[range.clone()], &mut quotas[range]);
                changed |= resplit(holders, totals[expert as usize], quotas, rank_loads);
            }
            if !changed {
                break;
            }
        }
    }

    /// Calls `run` with each replica of the expert at `place` in the order, and how many tokens of one rank the replica serves.
    /// The replica is an index in the table of slots, ascending.
    pub fn runs(
        &self,
        place: usize,
        quotas: &[u64],
        RankTokens { before, own }: RankTokens,
        mut run: impl FnMut(u32, u32),
    ) {
        let range = self.holders_at(place);
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

/// The plan as the lanes of a warp look it up.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    /// All ranks that hold the expert of each holder, one bit for each rank.
    pub holder_ranks: Vec<u32>,
    /// The holder on each rank in each step, `[steps][ranks]`, or [`NO_HOLDER`].
    pub rank_holders: Vec<u32>,
}

/// The tokens that one rank has of an expert.
#[derive(Debug, Clone, Copy)]
pub struct RankTokens {
    /// The tokens of the ranks before.
    pub before: u64,
    /// The tokens of the rank, below 2^31.
    pub own: u64,
}

/// Splits an expert's tokens again, without its previous quotas. Returns whether a quota changed.
fn resplit(holders: &[Holder], tokens: u64, quotas: &mut [u64], rank_loads: &mut [u64]) -> bool {
    match (holders, quotas) {
        ([one, other], [quota, other_quota]) => {
            let loads =
                [rank_loads[one.rank as usize] - *quota, rank_loads[other.rank as usize] - *other_quota];
            let split = split_two(tokens, loads);
            let changed = split != [*quota, *other_quota];
            [*quota, *other_quota] = split;
            rank_loads[one.rank as usize] = loads[0] + split[0];
            rank_loads[other.rank as usize] = loads[1] + split[1];
            changed
        }
        (holders, quotas) => resplit_many(holders, tokens, quotas, rank_loads),
    }
}

/// The quotas of two holders, as by [`Height`] but without a branch or a division.
fn split_two(tokens: u64, loads: [u64; 2]) -> [u64; 2] {
    let [one, other] = loads;
    // Each gets half of what the lower one does not need to reach the higher one.
    let both = tokens.saturating_sub(one.abs_diff(other));
    let lower = tokens - both;
    let mut split = [both / 2; 2];
    split[usize::from(other < one)] += lower;
    split[(tokens % 2) as usize] += both % 2;
    split
}

/// As [`resplit`], for any number of holders.
fn resplit_many(holders: &[Holder], tokens: u64, quotas: &mut [u64], rank_loads: &mut [u64]) -> bool {
    let count = holders.len() as u64;
    let (mut sum, mut top) = (tokens, 0);
    for (holder, quota) in holders.iter().zip(&*quotas) {
        let load = &mut rank_loads[holder.rank as usize];
        *load -= quota;
        sum += *load;
        top = top.max(*load);
    }
    // In most cases the height is above all of them.
    let filled = match sum / count {
        height if height >= top => Height { height, rest: sum % count },
        _ => Height::of(tokens, holders.len(), |g| rank_loads[holders[g].rank as usize]),
    };
    let mut changed = false;
    let mut rest = filled.rest;
    let turn = (tokens % count) as usize;
    for g in (turn..holders.len()).chain(0..turn) {
        let load = &mut rank_loads[holders[g].rank as usize];
        let quota = match filled.height.checked_sub(*load) {
            None => 0,
            Some(raised) => {
                let one = u64::from(rest > 0);
                rest -= one;
                raised + one
            }
        };
        changed |= quota != quotas[g];
        quotas[g] = quota;
        *load += quota;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_evens_out_the_loads_of_experts_with_one_slot() {
        // Slots 0 1 | 2 3 hold experts 0 1 | 2 1: expert 1 is on both ranks.
        let shape = Shape::new(3, 4, 2).unwrap();
        let tables = LayerTables::new(shape, &[0, 1, 2, 1]);
        let plan = SplitPlan::new(shape, &tables);
        assert_eq!(plan.experts, [1]);
        let (mut quotas, mut loads) = (vec![0; 2], vec![0; 2]);
        // Rank 0 has 7 of expert 0 and rank 1 has 2 of expert 2: 6 of expert 1 make 8 and 7, or 7 and 8; 15 in all, one more
        // to the holder at 6 % 2.
        plan.split(shape, &tables, &[7, 6, 2], &mut quotas, &mut loads);
        assert_eq!((&quotas[..], &loads[..]), (&[1, 5][..], &[8, 7][..]));
        // Expert 1's replicas are at 1 and 2 of the table.
        assert_eq!(runs(&plan, &quotas, RankTokens { before: 0, own: 6 }), [(1, 1), (2, 5)]);
        // The same tokens come from three ranks, 0, 4 and 2: the second has tokens 0 to 3, the third the last two.
        assert_eq!(runs(&plan, &quotas, RankTokens { before: 0, own: 4 }), [(1, 1), (2, 3)]);
        assert_eq!(runs(&plan, &quotas, RankTokens { before: 4, own: 2 }), [(1, 0), (2, 2)]);
    }

    #[test]
    fn runs_divide_a_quota_among_replicas_on_one_rank() {
        // Slots 0 1 2 | 3 4 5 hold experts 0 0 0 | 0 1 2.
        let shape = Shape::new(3, 6, 2).unwrap();
        let tables = LayerTables::new(shape, &[0, 0, 0, 0, 1, 2]);
        let plan = SplitPlan::new(shape, &tables);
        let (mut quotas, mut loads) = (vec![0; 2], vec![0; 2]);
        plan.split(shape, &tables, &[10, 2, 1], &mut quotas, &mut loads);
        // 13 over both, and the odd one to holder 10 % 2 = 0.
        assert_eq!((&quotas[..], &loads[..]), (&[7, 3][..], &[7, 6][..]));
        // Up to 7/3, 14/3 and 7, rounded up.
        assert_eq!(runs(&plan, &quotas, RankTokens { before: 0, own: 10 }), [(0, 3), (1, 2), (2, 2), (3, 3)]);
    }

    #[test]
    fn resplit_is_water_filling_for_any_number_of_holders_and_loads() {
        // All loads from 0 to 4, all amounts from 0 to 12, on two and on three ranks.
        for ranks in [2, 3] {
            let holders: Vec<Holder> = (0..ranks).map(|rank| Holder { rank, first: rank, size: 1 }).collect();
            for case in 0..5u64.pow(ranks) * 13 {
                let (tokens, mut loads) = (case % 13, vec![0; ranks as usize]);
                (0..).zip(&mut loads).for_each(|(rank, load)| *load = case / 13 / 5u64.pow(rank) % 5);
                let filled = Height::of(tokens, holders.len(), |g| loads[g]);
                let mut rest = filled.rest;
                let mut expected = vec![0; holders.len()];
                for g in (0..holders.len()).map(|g| (g + tokens as usize) % holders.len()) {
                    if loads[g] <= filled.height {
                        let one = rest.min(1);
                        rest -= one;
                        expected[g] = filled.height - loads[g] + one;
                    }
                }
                let (before, mut quotas) = (loads.clone(), vec![0; holders.len()]);
                assert_eq!(resplit(&holders, tokens, &mut quotas, &mut loads), tokens > 0);
                assert_eq!(quotas, expected, "{tokens} over {before:?}");
                assert!(!resplit(&holders, tokens, &mut quotas, &mut loads));
                assert!((0..holders.len()).all(|g| loads[g] == before[g] + expected[g]));
            }
        }
    }

    /// The runs of the first expert.
    fn runs(plan: &SplitPlan, quotas: &[u64], tokens: RankTokens) -> Vec<(u32, u32)> {
        let mut runs = Vec::new();
        plan.runs(0, quotas, tokens, |replica, tokens| runs.push((replica, tokens)));
        runs
    }
}
