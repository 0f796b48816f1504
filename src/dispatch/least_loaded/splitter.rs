//! Splits the tokens of experts on several ranks: evenly, then by sweeps over the edges. docs/routing.md defines each step.

use std::ops::Range;

use super::batch_counts::{BatchCounts, sum_of_products};
use super::edges::Edge;
use super::lanes::{Avx2, Fours};
use super::plan::{Location, Ring, SPARE, SplitPlan, mix_of};

/// The most bits of all tokens that are split one by one: `EPLB_SPLIT_BITS` of the kernels.
const BITS: u32 = 31;

/// Splits the tokens of a batch, and keeps the quotas. It allocates when it is created.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// Tokens are split in units of 2^down.
    down: u32,
    /// The units of each rank, then those of each holder, and [`SPARE`] ones. Those of experts that were not split are stale.
    cells: Vec<i32>,
    num_ranks: usize,
    /// The places of experts with tokens, and maybe the number of places.
    places: Bits,
    /// The edges of these experts.
    active: Bits,
    edges: Vec<Edge>,
    /// The units of each expert with several slots, by place.
    totals: Vec<u32>,
    fours: Option<Fours>,
    avx2: Option<Avx2>,
}

impl Splitter {
    /// Prepares for the batches of a layer.
    pub fn new(plan: &SplitPlan, num_ranks: usize) -> Self {
        let num_edges = plan.steps.edges.len();
        Splitter {
            down: 0,
            cells: vec![0; num_ranks + plan.holders.len() + SPARE],
            num_ranks,
            places: Bits::new(plan.experts.len() + 1),
            active: Bits::new(num_edges),
            edges: Vec::with_capacity(num_edges),
            totals: vec![0; plan.experts.len()],
            fours: Fours::new(plan),
            avx2: Avx2::new(),
        }
    }

    /// As on a processor without AVX2.
    #[cfg(test)]
    pub fn without_avx2(self) -> Self {
        Splitter { fours: None, avx2: None, ..self }
    }

    /// Splits the tokens of one rank, fewer than 2^31, of all experts with several slots.
    #[inline(always)]
    pub fn split_all(&mut self, plan: &SplitPlan, batch: &BatchCounts) {
        let counts = batch.counts();
        self.down = 0;
        assert!(plan.num_experts() <= counts.len());
        // SAFETY: experts are those of the plan.
        let count = |&expert: &u32| unsafe { *counts.get_unchecked(expert as usize) };
        match batch.seen() {
            Some(seen) => self.begin_seen(plan, counts, seen),
            None => self.begin_all(plan, |expert| count(&expert)),
        }
        let (totals, experts) = (self.totals.as_chunks_mut::<4>(), plan.experts.as_chunks::<4>());
        for (totals, experts) in totals.0.iter_mut().zip(experts.0) {
            *totals = experts.each_ref().map(count);
        }
        totals.1.iter_mut().zip(experts.1).for_each(|(total, expert)| *total = count(expert));
        self.split_and_sweep(plan, mix_of(batch.sum()), plan.sweeps);
    }

    /// The units of each expert with several slots, by place, if all were split.
    pub fn totals(&self) -> &[u32] {
        &self.totals
    }

    /// Splits the units of all experts by place, after those of experts on one rank were added to the loads.
    fn split_and_sweep(&mut self, plan: &SplitPlan, mix: u32, sweeps: u32) {
        let Self { cells, num_ranks, totals, .. } = self;
        let (loads, units) = cells.split_at_mut(*num_ranks);
        match self.avx2 {
            Some(avx2) => {
                avx2.split_rings(plan, totals, mix, units);
                avx2.run(|| split_others(plan, totals, units, mix));
            }
            None => {
                for ((&ring, &total), &start) in plan.rings.iter().zip(&*totals).zip(&plan.holder_start) {
                    split_ring(ring, total, mix, &mut units[start as usize..]);
                }
                split_others(plan, totals, units, mix);
            }
        }
        if !self.fours.as_ref().is_some_and(Fours::are_sums) {
            add_loads(plan, 0..plan.holder_start[plan.num_split] as usize, units, loads);
        }
        match &self.fours {
            Some(fours) => fours.sweep(cells, mix, sweeps),
            None => sweep(plan, &plan.steps.edges, cells, mix, sweeps),
        }
    }

    /// Splits the tokens of the experts in `seen` only, those of the batch. Their places are written to `places`, ascending.
    #[inline(always)]
    pub fn split_seen(&mut self, plan: &SplitPlan, batch: &BatchCounts, seen: &[u32], places: &mut Vec<u32>) {
        let (counts, mix) = (batch.counts(), mix_of(batch.sum()));
        self.down = 0;
        self.begin_seen(plan, counts, seen);
        seen.iter().for_each(|&expert| self.places.add(plan.locations[expert as usize].place));
        places.clear();
        let Self { cells, num_ranks, places: set, active, edges, .. } = self;
        let (loads, units) = cells.split_at_mut(*num_ranks);
        set.take(|place| {
            if let Some(&expert) = plan.experts.get(place) {
                places.push(place as u32);
                split_evenly(plan, place, counts[expert as usize], mix, units, loads);
                plan.edges_of(place).iter().for_each(|&edge| active.add(edge));
            }
        });
        edges.clear();
        active.take(|edge| edges.push(plan.steps.edges[edge]));
        sweep(plan, edges, cells, mix, plan.sweeps);
    }

    /// Adds the tokens of the experts on one rank to its load. `count` returns those of an expert.
    #[inline(always)]
    fn begin_all(&mut self, plan: &SplitPlan, count: impl Fn(u32) -> u32) {
        let loads = &mut self.cells[..self.num_ranks];
        loads.fill(0);
        assert!(plan.num_ranks() <= loads.len());
        for &(expert, rank) in &plan.residents {
            // SAFETY: a rank is one of the plan.
            unsafe { *loads.get_unchecked_mut(rank as usize) += count(expert) as i32 };
        }
    }

    /// Adds the tokens of the experts in `seen` that are on one rank to its load.
    #[inline(always)]
    fn begin_seen(&mut self, plan: &SplitPlan, counts: &[u32], seen: &[u32]) {
        // For an expert on several ranks, it is the cell after the ranks', which is written later.
        let (loads, locations) = (&mut self.cells[..=self.num_ranks], &plan.locations[..counts.len()]);
        loads.fill(0);
        for &expert in seen {
            loads[locations[expert as usize].rank as usize] += counts[expert as usize] as i32;
        }
    }

    /// Splits `totals`, the tokens of each expert, fewer than 2^63 in all. `is_own` tells that they are those of one rank.
    pub fn split_totals(&mut self, plan: &SplitPlan, totals: &[u64], is_own: bool) {
        let total: u64 = totals.iter().sum();
        let down = (u64::BITS - total.leading_zeros()).saturating_sub(BITS);
        self.down = down;
        self.begin_all(plan, |expert| (totals[expert as usize] >> down) as u32);
        for (total, &expert) in self.totals.iter_mut().zip(&plan.experts) {
            *total = (totals[expert as usize] >> down) as u32;
        }
        let mix = mix_of(sum_of_products(totals.iter().map(|&total| total as u32)));
        self.split_and_sweep(plan, mix, if is_own { plan.sweeps } else { 2 * plan.sweeps });
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
        &self.cells[self.num_ranks..self.cells.len() - SPARE]
    }

    /// The units of each holder with the spare cells, and those of each expert by place, for a caller that splits itself.
    pub fn of_caller(&mut self) -> (&mut [i32], &mut [u32]) {
        (&mut self.cells[self.num_ranks..], &mut self.totals)
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

/// Gives the holders of each expert on one or two ranks as many units, or one of them one more.
#[inline(always)]
fn split_others(plan: &SplitPlan, totals: &[u32], units: &mut [i32], mix: u32) {
    let (of_pairs, of_ones) = totals[plan.rings.len()..].split_at(plan.num_split - plan.rings.len());
    let first_pair = plan.holder_start[plan.rings.len()] as usize;
    let (pair_units, one_units) = units[first_pair..].split_at_mut(2 * of_pairs.len());
    for (&total, units) in of_pairs.iter().zip(pair_units.as_chunks_mut().0) {
        *units = split_pair(total, mix);
    }
    for (&total, units) in of_ones.iter().zip(one_units) {
        *units = total as i32;
    }
}

/// Adds the units of a plan's holders to the loads of their ranks.
#[inline(always)]
fn add_loads(plan: &SplitPlan, holders: Range<usize>, units: &[i32], loads: &mut [i32]) {
    assert!(plan.num_ranks() <= loads.len());
    let ranks = &plan.holder_ranks[holders];
    let mut add = |(&units, &rank): (&i32, &u32)| {
        // SAFETY: a holder's rank is one of the plan, and each has a load.
        unsafe { *loads.get_unchecked_mut(rank as usize) += units };
    };
    let (units, ranks) = (units[..ranks.len()].as_chunks::<4>(), ranks.as_chunks::<4>());
    units.0.iter().zip(ranks.0).for_each(|(units, ranks)| units.iter().zip(ranks).for_each(&mut add));
    units.1.iter().zip(ranks.1).for_each(add);
}

/// Gives the holders of the expert at a place as many units each, or some one more. Adds them to the loads.
#[inline(always)]
fn split_evenly(plan: &SplitPlan, place: usize, total: u32, mix: u32, units: &mut [i32], loads: &mut [i32]) {
    let range = plan.range_of(place);
    let units = &mut units[range.start..];
    match range.len() {
        // Its rank has its tokens already.
        1 => {
            units[0] = total as i32;
            return;
        }
        2 => units[..2].copy_from_slice(&split_pair(total, mix)),
        _ => split_ring(plan.rings[place], total, mix, units),
    }
    add_loads(plan, range, units, loads);
}

#[inline(always)]
fn split_pair(total: u32, mix: u32) -> [i32; 2] {
    let other = (total + (mix & 1)) / 2;
    [(total - other) as i32, other as i32]
}

/// Writes the units of an expert, and up to three more numbers, which belong to later experts or nobody.
#[inline(always)]
fn split_ring(ring: Ring, total: u32, mix: u32, units: &mut [i32]) {
    let ((each, rest), (_, first)) = (ring.divide(total), ring.divide(mix));
    let [each, rest, first, count] = [each, rest, first, ring.count].map(|number| number as i32);
    // Counted from the first on, below 0 up to it.
    let mut numbers = [0, 1, 2, 3].map(|x| x - first);
    for four in units[..(ring.count as usize).next_multiple_of(4)].as_chunks_mut::<4>().0 {
        *four = numbers.map(|number| each + i32::from(number + (count & (number >> 31)) < rest));
        numbers = numbers.map(|number| number + 4);
    }
}

/// Evens out the ranks' loads along edges of the plan.
// On its own, its loop keeps everything in registers.
#[inline(never)]
fn sweep(plan: &SplitPlan, edges: &[Edge], cells: &mut [i32], mix: u32, sweeps: u32) {
    assert!(plan.num_cells() <= cells.len());
    let cells = cells.as_mut_ptr();
    for turn in mix as i32..(mix + sweeps) as i32 {
        for edge in edges {
            // SAFETY: a plan's edges are of its ranks and holders, and there are as many cells.
            unsafe { edge.even_out(cells, turn) };
        }
    }
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

    /// Counts `totals` of each expert in parts of some ids.
    fn batch_of(totals: &[u64], part: usize) -> BatchCounts {
        let ids: Vec<i64> =
            (0..).zip(totals).flat_map(|(id, &count)| std::iter::repeat_n(id, count as usize)).collect();
        let mut batch = BatchCounts::new(totals.len());
        ids.chunks(part).for_each(|ids| batch.add(ids));
        batch.end();
        batch
    }

    proptest! {
        #[test]
        fn a_batch_is_split_alike_however_it_was_counted((slots, num_experts, num_ranks, totals, _) in a_case()) {
            let totals: Vec<u64> = totals.iter().map(|total| total % 100).collect();
            let plan = plan_of(&slots, num_experts, num_ranks);
            let mut splitters = [(); 4].map(|()| Splitter::new(&plan, num_ranks));
            splitters[0].split_totals(&plan, &totals, true);
            // A part of as many ids as experts makes the counts dense.
            let (seen, dense) = (batch_of(&totals, (num_experts - 1).max(1)), batch_of(&totals, 10_000));
            splitters[1].split_all(&plan, &seen);
            splitters[2].split_all(&plan, &dense);
            let mut places = vec![];
            if let Some(experts) = seen.seen() {
                splitters[3].split_seen(&plan, &seen, experts, &mut places);
            }
            let used = |place: usize| totals[plan.experts[place] as usize] > 0;
            for place in (0..plan.experts.len()).filter(|&place| used(place)) {
                let units = |splitter: &Splitter| splitter.units()[plan.range_of(place)].to_vec();
                prop_assert_eq!(units(&splitters[1]), units(&splitters[0]));
                prop_assert_eq!(units(&splitters[2]), units(&splitters[0]));
                if seen.seen().is_some() {
                    prop_assert!(places.contains(&(place as u32)));
                    prop_assert_eq!(units(&splitters[3]), units(&splitters[0]));
                }
            }
        }

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
