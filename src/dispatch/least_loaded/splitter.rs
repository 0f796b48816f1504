//! Splits the tokens of experts on several ranks: evenly, then by sweeps over the edges. docs/routing.md defines each step.

use super::edges::Edge;
use super::plan::{Location, SplitPlan};
use crate::dispatch::rule::GOLDEN_RATIO;

/// The most bits of all tokens that are split one by one: `EPLB_SPLIT_BITS` of the kernels.
const BITS: u32 = 31;

/// Splits the tokens of a batch, and keeps the quotas. It allocates when it is created.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// Tokens are split in units of 2^down.
    down: u32,
    /// The units of each rank, then those of each holder. The latter are stale for experts without tokens.
    cells: Vec<i32>,
    num_ranks: usize,
    /// A sum that differs from batch to batch: [`mix_of()`].
    sum: u32,
    /// The places of experts with tokens, and maybe the number of places.
    places: Bits,
    /// The edges of these experts.
    active: Bits,
    edges: Vec<Edge>,
}

impl Splitter {
    /// Prepares for the batches of a layer.
    pub fn new(plan: &SplitPlan, num_ranks: usize) -> Self {
        let num_edges = plan.steps.edges.len();
        Splitter {
            down: 0,
            cells: vec![0; num_ranks + plan.holders.len()],
            num_ranks,
            sum: 0,
            places: Bits::new(plan.experts.len() + 1),
            active: Bits::new(num_edges),
            edges: Vec::with_capacity(num_edges),
        }
    }

    /// Begins a batch of `total` tokens, below 2^63. Those of each expert are [added](Splitter::add), then all are
    /// [split](Splitter::split).
    #[inline(always)]
    pub fn begin(&mut self, total: u64) {
        self.down = (u64::BITS - total.leading_zeros()).saturating_sub(BITS);
        self.cells[..self.num_ranks].fill(0);
        self.sum = 0;
    }

    /// Adds an expert's tokens, fewer than 2^31 if the batch has fewer.
    #[inline(always)]
    pub fn add(&mut self, plan: &SplitPlan, expert: usize, total: u64) {
        let Location { rank, place } = plan.locations[expert];
        // For an expert on several ranks, it is the cell of a holder, which is written later.
        self.cells[rank as usize] += (total >> self.down) as i32;
        self.sum = self.sum.wrapping_add((expert as u32).wrapping_mul(total as u32));
        self.places.add(place);
    }

    /// Splits the tokens that were added. `total` returns those of an expert. `with` is called with each place of an expert with
    /// tokens, ascending. `is_own` tells that the tokens are those of one rank.
    #[inline(always)]
    pub fn split(
        &mut self,
        plan: &SplitPlan,
        is_own: bool,
        total: impl Fn(usize) -> u64,
        mut with: impl FnMut(usize, u64),
    ) {
        let mix = mix_of(self.sum);
        let Self { down, cells, num_ranks, places, active, edges, .. } = self;
        let (loads, units) = cells.split_at_mut(*num_ranks);
        places.take(|place| {
            if let Some(&expert) = plan.experts.get(place) {
                let total = total(expert as usize);
                with(place, total);
                split_evenly(plan, place, (total >> *down) as u32, mix, units, loads);
                plan.edges_of(place).iter().for_each(|&edge| active.add(edge));
            }
        });
        edges.clear();
        active.take(|edge| edges.push(plan.steps.edges[edge]));
        sweep(edges, cells, mix, if is_own { plan.sweeps } else { 2 * plan.sweeps });
    }

    /// Splits the tokens of one rank, fewer than 2^31, without adding them first. `counts` are those of all experts.
    pub fn split_counts(&mut self, plan: &SplitPlan, counts: &[u32]) {
        let Self { down, cells, num_ranks, .. } = self;
        let (loads, units) = cells.split_at_mut(*num_ranks);
        *down = 0;
        let products = (0..).zip(counts).map(|(expert, &count): (u32, _)| expert.wrapping_mul(count));
        let mix = mix_of(products.fold(0, u32::wrapping_add));
        for (load, ends) in loads.iter_mut().zip(plan.resident_start.windows(2)) {
            let residents = &plan.residents[ends[0] as usize..ends[1] as usize];
            *load = residents.iter().map(|&expert| counts[expert as usize] as i32).sum();
        }
        for (place, &expert) in plan.experts.iter().enumerate() {
            split_evenly(plan, place, counts[expert as usize], mix, units, loads);
        }
        sweep(&plan.steps.edges, cells, mix, plan.sweeps);
    }

    /// The quotas of the expert at a place, which has `total` tokens: those of its holders.
    #[inline(always)]
    pub fn quotas(&self, plan: &SplitPlan, place: usize, total: u64) -> impl Iterator<Item = u64> {
        let units = &self.units()[plan.range_of(place)];
        let (down, last) = (self.down, units.len() - 1);
        let mut left = total;
        units.iter().enumerate().map(move |(x, &units)| {
            // The last one has the rest, which is less than a unit, as well.
            let quota = if x < last { (units as u64) << down } else { left };
            left -= quota;
            quota
        })
    }

    /// The units of each holder, which are tokens where a batch has fewer than 2^31.
    pub fn units(&self) -> &[i32] {
        &self.cells[self.num_ranks..]
    }

    /// Splits `totals`, the tokens of each expert. `is_own` tells that they are those of one rank.
    pub fn split_totals(&mut self, plan: &SplitPlan, totals: &[u64], is_own: bool) {
        self.begin(totals.iter().sum());
        for (expert, &total) in totals.iter().enumerate().filter(|(_, total)| **total > 0) {
            self.add(plan, expert, total);
        }
        self.split(plan, is_own, |expert| totals[expert], |_, _| ());
    }

    /// Calls `with` with a rank and its tokens of an expert, for each expert and rank. `totals` were split.
    pub fn for_each_load(&self, plan: &SplitPlan, totals: &[u64], mut with: impl FnMut(usize, u64)) {
        for (expert, &total) in totals.iter().enumerate().filter(|(_, total)| **total > 0) {
            let Location { rank, place } = plan.locations[expert];
            if place as usize == plan.experts.len() {
                with(rank as usize, total);
                continue;
            }
            let holders = &plan.holders[plan.range_of(place as usize)];
            let quotas = self.quotas(plan, place as usize, total);
            holders.iter().zip(quotas).for_each(|(holder, quota)| with(holder.rank as usize, quota));
        }
    }
}

/// Which holders get the odd units, by the sum of each expert times its tokens. So batches that are alike, those of several ranks,
/// do not give theirs to the same ranks.
fn mix_of(sum: u32) -> u32 {
    sum.wrapping_mul(GOLDEN_RATIO) >> 16
}

/// Gives all holders of the expert at a place as many units, or some one more.
#[inline(always)]
fn split_evenly(plan: &SplitPlan, place: usize, total: u32, mix: u32, all: &mut [i32], loads: &mut [i32]) {
    let range = plan.range_of(place);
    match (&mut all[range.clone()], &plan.holders[range]) {
        // Its rank has its tokens already.
        ([one], _) => *one = total as i32,
        ([one, other], [first, second]) => {
            *other = ((total + (mix & 1)) / 2) as i32;
            *one = total as i32 - *other;
            loads[first.rank as usize] += *one;
            loads[second.rank as usize] += *other;
        }
        (all, holders) => {
            let count = holders.len() as u32;
            let (each, rest, first) = (total / count, total % count, mix % count);
            for (x, (units, holder)) in (0..).zip(all.iter_mut().zip(holders)) {
                // Counted from the first on.
                let number = if x < first { x + count - first } else { x - first };
                *units = (each + u32::from(number < rest)) as i32;
                loads[holder.rank as usize] += *units;
            }
        }
    }
}

/// Evens out the ranks' loads along edges.
// On its own, its loop keeps everything in registers.
#[inline(never)]
fn sweep(edges: &[Edge], cells: &mut [i32], mix: u32, sweeps: u32) {
    for turn in mix as i32..(mix + sweeps) as i32 {
        for &Edge { units: [one, other], loads: [rank, other_rank] } in edges {
            let [one, other, rank, other_rank] = [one, other, rank, other_rank].map(|index| index as usize);
            let (units, other_units) = (cells[one], cells[other]);
            let (load, other_load) = (cells[rank], cells[other_rank]);
            let apart = load - other_load;
            // Half of an odd difference is rounded up or down, from edge to edge and from sweep to sweep.
            let up = apart & (units ^ other_units ^ turn) & 1;
            // At most the units of one, and at least minus those of the other.
            let moved = units + negative((apart >> 1) + up - units);
            let moved = moved - negative(moved + other_units);
            cells[one] = units - moved;
            cells[other] = other_units + moved;
            cells[rank] = load - moved;
            cells[other_rank] = other_load + moved;
        }
    }
}

/// The number if it is negative, otherwise 0. Comparisons would become branches, which are mispredicted.
#[inline(always)]
fn negative(number: i32) -> i32 {
    number & (number >> 31)
}

/// A set of numbers.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// No numbers, of those below `end`.
    fn new(end: usize) -> Self {
        Bits { words: vec![0; end.div_ceil(64)] }
    }

    #[inline(always)]
    fn add(&mut self, number: u32) {
        self.words[number as usize / 64] |= 1 << (number % 64);
    }

    /// Calls `with` with each number, ascending, and removes all.
    #[inline(always)]
    fn take(&mut self, mut with: impl FnMut(usize)) {
        for (word, bits) in self.words.iter_mut().enumerate() {
            let mut bits = std::mem::take(bits);
            while bits != 0 {
                with(word * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tables::LayerTables;
    use crate::placement::{NO_EXPERT, Shape};
    use proptest::prelude::*;

    /// A layer's plan, and the experts of its slots.
    fn plan_of(slot_experts: &[u32], num_experts: usize, num_ranks: usize) -> SplitPlan {
        let shape = Shape::new(num_experts, slot_experts.len(), num_ranks).unwrap();
        SplitPlan::new(shape, &LayerTables::new(shape, slot_experts))
    }

    /// The quotas of each expert by rank, and the load of each rank.
    fn split(
        plan: &SplitPlan,
        num_ranks: usize,
        totals: &[u64],
        is_own: bool,
    ) -> (Vec<Vec<(usize, u64)>>, Vec<u64>) {
        let mut splitter = Splitter::new(plan, num_ranks);
        splitter.split_totals(plan, totals, is_own);
        let (mut quotas, mut loads) = (vec![], vec![0; num_ranks]);
        for expert in 0..totals.len() {
            let mut only = vec![0; totals.len()];
            only[expert] = totals[expert];
            let mut of_expert = vec![];
            splitter.for_each_load(plan, &only, |rank, quota| of_expert.push((rank, quota)));
            of_expert.iter().for_each(|&(rank, quota)| loads[rank] += quota);
            quotas.push(of_expert);
        }
        (quotas, loads)
    }

    #[test]
    fn split_evens_out_the_loads_of_experts_with_one_slot() {
        // Slots 0 1 | 2 3 hold experts 0 1 | 2 1: expert 1 is on both ranks.
        let plan = plan_of(&[0, 1, 2, 1], 3, 2);
        // Rank 0 has 7 of expert 0 and rank 1 has 2 of expert 2. With 3 and 3 of expert 1 the loads are 10 and 5. The sum is
        // 6 + 2 x 2 = 10, and mix is 10 x 2654435769 mod 2^32 / 2^16 = 11818, even. So half of 5 is rounded down in sweep 0: the
        // quotas are 1 and 5 and the loads 8 and 7. Each further sweep moves the odd token: sweep 1 to 0 and 6, sweep 2 back,
        // sweep 3 again.
        let (quotas, loads) = split(&plan, 2, &[7, 6, 2], true);
        assert_eq!((&quotas[1][..], &loads[..]), (&[(0, 0), (1, 6)][..], &[7, 8][..]));
    }

    #[test]
    fn split_counts_is_split_of_all_experts() {
        // Expert 0 is on all three ranks, expert 1 on two, expert 2 twice on one, expert 3 once.
        let plan = plan_of(&[0, 1, 2, 0, 1, 3, 0, 4, 4], 5, 3);
        for counts in [[9, 4, 2, 7, 0], [0, 0, 0, 1, 5], [100, 1, 1, 1, 1], [2, 1, 0, 50, 3]] {
            let (mut dense, mut sparse) = (Splitter::new(&plan, 3), Splitter::new(&plan, 3));
            dense.split_counts(&plan, &counts);
            sparse.split_totals(&plan, &counts.map(u64::from), true);
            for (place, &expert) in plan.experts.iter().enumerate() {
                let total = u64::from(counts[expert as usize]);
                if total > 0 {
                    let quotas =
                        |splitter: &Splitter| -> Vec<u64> { splitter.quotas(&plan, place, total).collect() };
                    assert_eq!(quotas(&dense), quotas(&sparse), "expert {expert} of {counts:?}");
                }
            }
        }
    }

    #[test]
    fn the_largest_counts_of_many_ranks_do_not_overflow() {
        // 2^16 ranks with 2^31 - 1 tokens each are 2^47 - 2^16 in all, here of one expert on both ranks and of one on each.
        let plan = plan_of(&[0, 1, 0, 2], 3, 2);
        let most = ((1u64 << 31) - 1) << 16;
        for totals in [[most, 0, 0], [1, most - 1, 0], [most / 2, most / 2, 0], [most / 3, 0, most / 3 + 5]] {
            let (quotas, loads) = split(&plan, 2, &totals, false);
            assert_eq!(quotas[0].iter().map(|&(_, quota)| quota).sum::<u64>(), totals[0]);
            assert_eq!(loads.iter().sum::<u64>(), totals.iter().sum::<u64>());
            // Units of 2^16 tokens: at most two of them apart, if expert 0 has enough.
            if totals[0] >= most / 2 {
                assert!(loads[0].abs_diff(loads[1]) <= 2 << 16, "{loads:?}");
            }
        }
    }

    fn a_case() -> impl Strategy<Value = (Vec<u32>, usize, usize, Vec<u64>, bool)> {
        let sizes = (1usize..40, 1usize..90, 0usize..3);
        sizes.prop_flat_map(|(num_ranks, num_experts, spare)| {
            let num_slots = (num_experts.div_ceil(num_ranks) + spare) * num_ranks;
            let others = prop::collection::vec(0..num_experts as u32 + 2, num_slots - num_experts);
            let slots = others.prop_map(move |others| {
                let empty = |expert| if expert < num_experts as u32 { expert } else { NO_EXPERT };
                (0..num_experts as u32).chain(others.into_iter().map(empty)).collect::<Vec<u32>>()
            });
            let count = prop_oneof![2 => Just(0u64), 6 => 0u64..20, 2 => 0u64..5000, 1 => 0u64..1 << 40];
            let totals = prop::collection::vec(count, num_experts);
            (slots.prop_shuffle(), Just(num_experts), Just(num_ranks), totals, any::<bool>())
        })
    }

    proptest! {
        #[test]
        fn quotas_are_of_the_experts_ranks_and_add_up((slots, num_experts, num_ranks, totals, is_own) in a_case()) {
            let plan = plan_of(&slots, num_experts, num_ranks);
            let (quotas, loads) = split(&plan, num_ranks, &totals, is_own);
            let rank_of = |slot: usize| slot / (slots.len() / num_ranks);
            let mut even = vec![0; num_ranks];
            for (expert, quotas) in quotas.iter().enumerate() {
                let mut ranks: Vec<usize> =
                    (0..slots.len()).filter(|&slot| slots[slot] == expert as u32).map(rank_of).collect();
                ranks.dedup();
                let total = totals[expert];
                // Rounded up, since any of them may have the odd tokens.
                ranks.iter().for_each(|&rank| even[rank] += total.div_ceil(ranks.len() as u64));
                if total > 0 {
                    prop_assert_eq!(quotas.iter().map(|&(rank, _)| rank).collect::<Vec<_>>(), ranks);
                    // Each is at most the total, so none was below 0.
                    prop_assert!(quotas.iter().all(|&(_, quota)| quota <= total));
                }
                prop_assert_eq!(quotas.iter().map(|&(_, quota)| quota).sum::<u64>(), total);
            }
            // Where units are tokens, no edge raises the highest load.
            if totals.iter().sum::<u64>() < 1 << 31 {
                prop_assert!(loads.iter().max() <= even.iter().max(), "{:?} instead of {:?}", loads, even);
            }
        }
    }
}
