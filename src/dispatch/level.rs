//! Levelling: the tokens of experts with several slots are dealt to the ranks that hold them as levels water.

use super::tables::LayerTables;
use crate::device::{LEVEL_LANES, LEVEL_SWEEPS, NO_GROUP};
use crate::placement::Shape;

/// The replicas of an expert on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// The rank.
    pub rank: u32,
    /// The first of them in the table of slots.
    pub first: u32,
    /// How many there are.
    pub size: u32,
}

/// The experts with several slots in an order in which their tokens can be dealt: by ascending number of groups, so that those
/// with the least choice come first, and then by id, but that experts which share no rank, and so do not see each other's
/// tokens, trade places to be dealt at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Levelling {
    /// Step by step.
    pub experts: Vec<u32>,
    /// Where the groups of each begin, and at last the number of all.
    pub group_start: Vec<u32>,
    /// The groups, of each expert by ascending rank.
    pub groups: Vec<Group>,
    /// Where the groups of each step begin, and at last the number of all; those of one step are on different ranks.
    pub step_start: Vec<u32>,
}

impl Levelling {
    /// The order and the groups of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut experts: Vec<(u32, Vec<Group>)> =
            tables.replicated().map(|expert| (expert as u32, groups_of(shape, tables, expert))).collect();
        experts.sort_by_key(|(expert, groups)| (groups.len(), *expert));
        // As early as the experts before allow that share a rank.
        let mut free_from = vec![0; shape.num_ranks()];
        let steps = experts.iter().map(|(_, groups)| {
            let ranks = || groups.iter().map(|group| group.rank as usize);
            let step: u32 = ranks().map(|rank| free_from[rank]).max().unwrap_or(0);
            ranks().for_each(|rank| free_from[rank] = step + 1);
            step
        });
        let mut experts: Vec<_> = steps.collect::<Vec<_>>().into_iter().zip(experts).collect();
        experts.sort_by_key(|(step, _)| *step);

        let mut levelling = Levelling { group_start: vec![0], ..Levelling::default() };
        for (step, (expert, groups)) in experts {
            if step as usize == levelling.step_start.len() {
                levelling.step_start.push(levelling.groups.len() as u32);
            }
            levelling.experts.push(expert);
            levelling.groups.extend(groups);
            levelling.group_start.push(levelling.groups.len() as u32);
        }
        levelling.step_start.push(levelling.groups.len() as u32);
        levelling
    }

    /// Where a lane of a warp can have a rank for itself; nothing where there are more ranks.
    pub fn lanes(&self, num_ranks: usize) -> Lanes {
        if num_ranks > LEVEL_LANES {
            return Lanes::default();
        }
        let num_steps = self.step_start.len() - 1;
        let mut lanes = Lanes { rank_groups: vec![NO_GROUP; num_steps * num_ranks], ..Lanes::default() };
        for place in 0..self.experts.len() {
            let groups = &self.groups[self.groups_at(place)];
            let ranks = groups.iter().fold(0, |ranks, group| ranks | 1 << group.rank);
            lanes.group_ranks.extend(groups.iter().map(|_| ranks));
        }
        for (step, ends) in self.step_start.windows(2).enumerate() {
            for group in ends[0]..ends[1] {
                let rank = self.groups[group as usize].rank as usize;
                lanes.rank_groups[step * num_ranks + rank] = group;
            }
        }
        lanes
    }

    fn groups_at(&self, place: usize) -> std::ops::Range<usize> {
        self.group_start[place] as usize..self.group_start[place + 1] as usize
    }

    /// Deals `totals`, the tokens of each expert, to the groups: `quotas` receives those of each, and `rank_loads` those of
    /// each rank.
    pub fn deal(
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
        self.level(totals, quotas, rank_loads);
    }

    /// Deals the tokens of the experts with several slots: `rank_loads` holds those of the others, and `quotas` zeros.
    pub fn level(&self, totals: &[u64], quotas: &mut [u64], rank_loads: &mut [u64]) {
        for _ in 0..LEVEL_SWEEPS {
            let mut changed = false;
            for (place, &expert) in self.experts.iter().enumerate() {
                let range = self.groups_at(place);
                let (groups, quotas) = (&self.groups[range.clone()], &mut quotas[range]);
                changed |= redeal(groups, totals[expert as usize], quotas, rank_loads);
            }
            if !changed {
                break;
            }
        }
    }

    /// Of the expert at `place` in the order, tells `run` the tokens of each replica that are of one rank: the replica by its
    /// place in the table of slots, ascending.
    pub fn runs(
        &self,
        place: usize,
        quotas: &[u64],
        Share { before, own }: Share,
        mut run: impl FnMut(u32, u32),
    ) {
        let range = self.groups_at(place);
        let (mut dealt, mut end) = (0, 0);
        for (&Group { first, size, .. }, &quota) in self.groups[range.clone()].iter().zip(&quotas[range]) {
            for replica in 1..=size {
                let up_to = match size {
                    1 => dealt + quota,
                    _ => dealt + (quota * u64::from(replica)).div_ceil(u64::from(size)),
                };
                let begin = end;
                end = up_to.saturating_sub(before).min(own) as u32;
                run(first + replica - 1, end - begin);
            }
            dealt += quota;
        }
    }
}

/// The groups as the lanes of a warp look them up.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    /// By group, the ranks of its expert's groups, a bit each.
    pub group_ranks: Vec<u32>,
    /// The group that each rank has in each step, `[steps][ranks]`, or [`NO_GROUP`].
    pub rank_groups: Vec<u32>,
}

/// A rank's part of an expert's tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Those of the ranks before.
    pub before: u64,
    /// Those of the rank, below 2^31.
    pub own: u64,
}

/// The replicas of an expert by rank.
pub(crate) fn groups_of(shape: Shape, tables: &LayerTables, expert: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (place, &slot) in (tables.replica_start[expert]..).zip(tables.slots_of(expert)) {
        let rank = shape.rank_of(slot as usize) as u32;
        match groups.last_mut() {
            Some(group) if group.rank == rank => group.size += 1,
            _ => groups.push(Group { rank, first: place, size: 1 }),
        }
    }
    groups
}

/// Deals an expert's tokens anew, after taking back what its groups had. Returns whether that changed anything.
fn redeal(groups: &[Group], tokens: u64, quotas: &mut [u64], rank_loads: &mut [u64]) -> bool {
    match (groups, quotas) {
        ([one, other], [quota, other_quota]) => {
            let loads =
                [rank_loads[one.rank as usize] - *quota, rank_loads[other.rank as usize] - *other_quota];
            let dealt = level_two(tokens, loads);
            let changed = dealt != [*quota, *other_quota];
            [*quota, *other_quota] = dealt;
            rank_loads[one.rank as usize] = loads[0] + dealt[0];
            rank_loads[other.rank as usize] = loads[1] + dealt[1];
            changed
        }
        (groups, quotas) => redeal_many(groups, tokens, quotas, rank_loads),
    }
}

/// What groups on two ranks get, as by [`Water`] but without a branch or a division.
fn level_two(tokens: u64, loads: [u64; 2]) -> [u64; 2] {
    let [one, other] = loads;
    // Half of what the lower one does not need to reach the higher one is for either.
    let both = tokens.saturating_sub(one.abs_diff(other));
    let lower = tokens - both;
    let mut dealt = [both / 2; 2];
    dealt[usize::from(other < one)] += lower;
    dealt[(tokens % 2) as usize] += both % 2;
    dealt
}

/// As [`redeal`], for any number of groups.
fn redeal_many(groups: &[Group], tokens: u64, quotas: &mut [u64], rank_loads: &mut [u64]) -> bool {
    let count = groups.len() as u64;
    let (mut sum, mut top) = (tokens, 0);
    for (group, quota) in groups.iter().zip(&*quotas) {
        let load = &mut rank_loads[group.rank as usize];
        *load -= quota;
        sum += *load;
        top = top.max(*load);
    }
    // Mostly the water covers all of them.
    let water = match sum / count {
        height if height >= top => Water { height, one_more: sum % count },
        _ => Water::poured(tokens, groups.len(), |g| rank_loads[groups[g].rank as usize]),
    };
    let mut changed = false;
    let mut extra = water.one_more;
    let turn = (tokens % count) as usize;
    for g in (turn..groups.len()).chain(0..turn) {
        let load = &mut rank_loads[groups[g].rank as usize];
        let quota = match water.height.checked_sub(*load) {
            None => 0,
            Some(raised) => {
                let one = u64::from(extra > 0);
                extra -= one;
                raised + one
            }
        };
        changed |= quota != quotas[g];
        quotas[g] = quota;
        *load += quota;
    }
    changed
}

/// How high water stands that was poured over columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Water {
    /// What lower columns are raised to.
    pub height: u64,
    /// How many of them get one more.
    pub one_more: u64,
}

impl Water {
    /// Pours `amount` over `count` columns, one at least.
    pub fn poured(amount: u64, count: usize, column: impl Fn(usize) -> u64) -> Water {
        // What stands out of the water of all takes no part; without it the water stands lower, and more may stand out.
        let mut height = u64::MAX;
        loop {
            let reached = || (0..count).map(&column).filter(|&load| load <= height);
            let (columns, sum) = reached().fold((0, amount), |(n, sum), load| (n + 1, sum + load));
            let lower = sum / columns;
            if lower == height || reached().all(|load| load <= lower) {
                return Water { height: lower, one_more: sum % columns };
            }
            height = lower;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn water_levels_what_it_reaches() {
        let poured = |amount, columns: &[u64]| {
            let water = Water::poured(amount, columns.len(), |c| columns[c]);
            (water.height, water.one_more)
        };
        assert_eq!(poured(0, &[5, 3, 9]), (3, 0));
        assert_eq!(poured(1, &[5, 3, 9]), (4, 0));
        // 2 raise the 3 to 5, and of the other 3 the two get one each and one is left.
        assert_eq!(poured(5, &[5, 3, 9]), (6, 1));
        // 6 + 4 raise them to 9, and 5 more make 10 and two times one more.
        assert_eq!(poured(15, &[5, 3, 9]), (10, 2));
        assert_eq!(poured(7, &[2]), (9, 0));
    }

    #[test]
    fn experts_with_one_slot_come_first_and_later_ones_level_what_is_there() {
        // Slots 0 1 | 2 3 hold experts 0 1 | 2 1: expert 1 is on both ranks.
        let shape = Shape::new(3, 4, 2).unwrap();
        let tables = LayerTables::new(shape, &[0, 1, 2, 1]);
        let levelling = Levelling::new(shape, &tables);
        assert_eq!(levelling.experts, [1]);
        let (mut quotas, mut loads) = (vec![0; 2], vec![0; 2]);
        // Rank 0 has 7 of expert 0 and rank 1 has 2 of expert 2: 6 of expert 1 make 8 and 7, or 7 and 8; 15 in all, one more
        // to the group at 6 % 2.
        levelling.deal(shape, &tables, &[7, 6, 2], &mut quotas, &mut loads);
        assert_eq!((&quotas[..], &loads[..]), (&[1, 5][..], &[8, 7][..]));
        // Expert 1's replicas stand at 1 and 2 of the table.
        assert_eq!(runs(&levelling, &quotas, Share { before: 0, own: 6 }), [(1, 1), (2, 5)]);
        // The same tokens are of three ranks, 0, 4 and 2: the second has those from 0 to 3, the third the last two.
        assert_eq!(runs(&levelling, &quotas, Share { before: 0, own: 4 }), [(1, 1), (2, 3)]);
        assert_eq!(runs(&levelling, &quotas, Share { before: 4, own: 2 }), [(1, 0), (2, 2)]);
    }

    #[test]
    fn replicas_on_one_rank_share_its_quota() {
        // Slots 0 1 2 | 3 4 5 hold experts 0 0 0 | 0 1 2.
        let shape = Shape::new(3, 6, 2).unwrap();
        let tables = LayerTables::new(shape, &[0, 0, 0, 0, 1, 2]);
        let levelling = Levelling::new(shape, &tables);
        let (mut quotas, mut loads) = (vec![0; 2], vec![0; 2]);
        levelling.deal(shape, &tables, &[10, 2, 1], &mut quotas, &mut loads);
        // 13 over both; the odd one to group 10 % 2 = 0.
        assert_eq!((&quotas[..], &loads[..]), (&[7, 3][..], &[7, 6][..]));
        // Up to 7/3, 14/3 and 7, rounded up.
        assert_eq!(runs(&levelling, &quotas, Share { before: 0, own: 10 }), [(0, 3), (1, 2), (2, 2), (3, 3)]);
    }

    #[test]
    fn dealing_is_water_whatever_the_number_of_groups_and_the_loads() {
        // All loads from 0 to 4, all amounts from 0 to 12, on two and on three ranks.
        for ranks in [2, 3] {
            let groups: Vec<Group> = (0..ranks).map(|rank| Group { rank, first: rank, size: 1 }).collect();
            for case in 0..5u64.pow(ranks) * 13 {
                let (tokens, mut loads) = (case % 13, vec![0; ranks as usize]);
                (0..).zip(&mut loads).for_each(|(rank, load)| *load = case / 13 / 5u64.pow(rank) % 5);
                let water = Water::poured(tokens, groups.len(), |g| loads[g]);
                let mut extra = water.one_more;
                let mut expected = vec![0; groups.len()];
                for g in (0..groups.len()).map(|g| (g + tokens as usize) % groups.len()) {
                    if loads[g] <= water.height {
                        let one = extra.min(1);
                        extra -= one;
                        expected[g] = water.height - loads[g] + one;
                    }
                }
                let (before, mut quotas) = (loads.clone(), vec![0; groups.len()]);
                assert_eq!(redeal(&groups, tokens, &mut quotas, &mut loads), tokens > 0);
                assert_eq!(quotas, expected, "{tokens} over {before:?}");
                assert!(!redeal(&groups, tokens, &mut quotas, &mut loads));
                assert!((0..groups.len()).all(|g| loads[g] == before[g] + expected[g]));
            }
        }
    }

    /// Those of the first expert.
    fn runs(levelling: &Levelling, quotas: &[u64], share: Share) -> Vec<(u32, u32)> {
        let mut runs = Vec::new();
        levelling.runs(0, quotas, share, |replica, tokens| runs.push((replica, tokens)));
        runs
    }
}
