//! Least loaded: counts the batch, splits each expert's tokens so that the ranks' loads become even, and assigns slots.

mod batch_counts;
mod edges;
mod kernel;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_lanes.rs")]
mod lanes;
mod plan;
mod small_batch;
mod splitter;

pub(super) use kernel::{SplitArguments, SplitParts, launch};
pub(crate) use plan::SplitPlan;
pub(crate) use splitter::Splitter;

use std::ops::Range;

use self::batch_counts::BatchCounts;
use self::lanes::Lanes;
use self::plan::RankTokens;
use self::small_batch::SmallBatch;
use super::batch::Batch;
use super::tables::LayerTables;
use crate::device::Id;
use crate::placement::Shape;

/// The rule on the host.
#[derive(Debug)]
pub(super) struct LeastLoaded {
    shape: Shape,
    rank: usize,
    plan: SplitPlan,
    splitter: Splitter,
    counts: BatchCounts,
    /// The tokens of each expert on all ranks.
    totals: Vec<u64>,
    /// The places of the batch's experts with several slots.
    places: Vec<u32>,
    /// How many tokens of this rank these have.
    tokens: Vec<RankTokens>,
    /// Of each expert the number of the next token without a run.
    beyond: Vec<u32>,
    /// The runs of each expert with several slots, from its start in the table of slots on.
    runs: Vec<Run>,
    /// The runs of each expert that have not begun.
    next: Vec<Range<u32>>,
    /// The run of each expert's next token, and at last of the invalid slot.
    current: Vec<Run>,
    small: SmallBatch,
    /// Routes small batches, where the layer and the processor allow it.
    lanes: Option<Lanes>,
    way: Way,
    /// The ids of the batch that were counted.
    num_counted: usize,
}

/// How a batch is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By lanes alone.
    Lanes,
    /// Its slots are laid out, in lanes where there are some.
    Small,
    Runs,
}

/// Consecutive tokens of an expert that go to one slot.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    slot: u32,
    /// The tokens left.
    left: u32,
}

impl LeastLoaded {
    /// Routes by the plan of a layer, as `rank` does.
    pub fn new(shape: Shape, tables: &LayerTables, plan: SplitPlan, rank: usize) -> Self {
        let (num_experts, num_slots) = (shape.num_experts(), shape.num_slots());
        let small = SmallBatch::new(shape, tables, &plan);
        let lanes = Lanes::new(shape, tables, &plan);
        let endless = |slot| Run { slot, left: u32::MAX };
        LeastLoaded {
            shape,
            rank,
            splitter: Splitter::new(&plan, shape.num_ranks()),
            counts: BatchCounts::new(num_experts),
            totals: vec![0; num_experts],
            places: Vec::with_capacity(plan.experts.len()),
            tokens: Vec::with_capacity(plan.experts.len()),
            plan,
            beyond: vec![0; num_experts],
            runs: vec![Run::default(); num_slots],
            next: vec![0..0; num_experts],
            current: tables.first_slots(shape).into_iter().map(endless).collect(),
            small,
            lanes,
            way: Way::Runs,
            num_counted: 0,
        }
    }

    /// Writes the slots of a batch. `rank_counts` returns the counts of all ranks by index in `[num_ranks][num_experts]`.
    pub fn route<I: Id>(
        &mut self,
        batch: &mut Batch<I>,
        tables: &LayerTables,
        rank_counts: Option<&impl Fn(usize) -> u64>,
    ) {
        self.begin(batch.len(), rank_counts.is_none());
        if rank_counts.is_none() {
            self.count(batch.ids());
        }
        self.plan(batch.len(), tables, rank_counts);
        self.assign(batch, tables);
    }

    /// Begins a batch of `num_ids` ids of valid tokens, by its own counts or those of all ranks. Its parts are
    /// [counted](LeastLoaded::count), unless there are counts of all ranks, it is [planned](LeastLoaded::plan), and its parts are
    /// [assigned](LeastLoaded::assign) in the same order.
    pub fn begin(&mut self, num_ids: usize, is_own: bool) {
        self.way = match num_ids {
            _ if !is_own => Way::Runs,
            ..=Lanes::MAX_IDS if self.lanes.is_some() => Way::Lanes,
            ..=small_batch::MAX_IDS => Way::Small,
            _ => Way::Runs,
        };
        self.num_counted = 0;
        match &mut self.lanes {
            Some(lanes) if self.way != Way::Runs => lanes.begin(),
            _ => self.counts.clear(),
        }
    }

    /// Counts a part of a batch.
    pub fn count<I: Id>(&mut self, ids: &[I]) {
        self.num_counted += ids.len();
        match &mut self.lanes {
            Some(lanes) if self.way != Way::Runs => lanes.count(ids),
            _ => self.counts.add(ids),
        }
    }

    /// Plans the slots of a batch of `num_ids` ids of valid tokens.
    pub fn plan(
        &mut self,
        num_ids: usize,
        tables: &LayerTables,
        rank_counts: Option<&impl Fn(usize) -> u64>,
    ) {
        assert!(
            self.way == Way::Runs || self.num_counted <= small_batch::MAX_IDS,
            "more ids than the batch has"
        );
        match (&mut self.lanes, rank_counts) {
            (Some(lanes), _) if self.way != Way::Runs => {
                lanes.split();
                if self.way == Way::Lanes {
                    lanes.plan();
                } else {
                    let (units, totals) = self.splitter.of_caller();
                    lanes.write_units(units, totals);
                    let (units, totals) = (self.splitter.units(), self.splitter.totals());
                    // SAFETY: the units are of the counted ids, which are as few.
                    unsafe { self.small.lay_out_all(&self.plan, tables, units, totals, num_ids) };
                }
            }
            (_, None) => self.split_own(num_ids, tables),
            (_, Some(count)) => self.split_all(count),
        }
        if self.way == Way::Runs {
            self.plan_runs(tables, rank_counts.is_none());
        }
    }

    /// Writes the next slots of a batch.
    pub fn assign<I: Id>(&mut self, part: &mut Batch<I>, tables: &LayerTables) {
        match (&mut self.lanes, self.way) {
            (Some(lanes), Way::Lanes) => lanes.assign(part),
            (_, Way::Small) => self.small.route(part),
            _ => self.route_by_runs(part, tables),
        }
    }

    /// Splits the batch's tokens, of `num_ids` ids, and lays out a small one.
    fn split_own(&mut self, num_ids: usize, tables: &LayerTables) {
        let Self { plan, splitter, counts, places, tokens, small, way, .. } = self;
        let is_small = *way == Way::Small;
        counts.end();
        match counts.seen() {
            // To find the batch's experts and edges takes as long as to split many times as many.
            Some(seen) if num_ids < plan.holders.len() / 16 => {
                splitter.split_seen(plan, counts, seen, places);
                if is_small {
                    // SAFETY: the units are of the counted ids, which are as few.
                    unsafe { small.lay_out(plan, tables, places, splitter.units()) };
                }
            }
            _ => {
                splitter.split_all(plan, counts);
                if is_small {
                    // SAFETY: as above.
                    unsafe { small.lay_out_all(plan, tables, splitter.units(), splitter.totals(), num_ids) };
                } else {
                    places.clear();
                    places.extend(0..plan.experts.len() as u32);
                }
            }
        }
        if !is_small {
            let own = |&place: &u32| u64::from(counts.counts()[plan.experts[place as usize] as usize]);
            tokens.clear();
            tokens.extend(places.iter().map(|place| RankTokens { before: 0, own: own(place) }));
        }
    }

    /// Splits the tokens of all ranks.
    fn split_all(&mut self, count: &impl Fn(usize) -> u64) {
        let Self { shape, rank, plan, splitter, totals, places, tokens, .. } = self;
        let sum = |ranks, expert| sum_of_ranks(count, *shape, ranks, expert);
        for (expert, total) in totals.iter_mut().enumerate() {
            *total = sum(0..shape.num_ranks(), expert);
        }
        splitter.split_totals(plan, totals, false);
        places.clear();
        tokens.clear();
        for (place, &expert) in (0..).zip(&plan.experts) {
            let (before, own) = (sum(0..*rank, expert as usize), sum(*rank..*rank + 1, expert as usize));
            places.push(place);
            tokens.push(RankTokens { before, own });
        }
    }

    fn plan_runs(&mut self, tables: &LayerTables, cover_all: bool) {
        self.current.iter_mut().for_each(|run| run.left = u32::MAX);
        for index in 0..self.places.len() {
            let (place, tokens) = (self.places[index], self.tokens[index]);
            self.write_runs(place as usize, tables, tokens, cover_all);
        }
    }

    // On its own, its loop keeps everything in registers.
    #[inline(never)]
    fn route_by_runs<I: Id>(&mut self, part: &mut Batch<I>, tables: &LayerTables) {
        // Borrowed one by one, they stay in registers in the loop.
        let Self { beyond, runs, next, current, .. } = self;
        let num_experts = current.len() - 1;
        part.route(|id| {
            let expert = id.bin(num_experts);
            let run = &mut current[expert];
            let slot = run.slot;
            // The run of an expert with one slot is longer than a batch.
            run.left -= 1;
            if run.left == 0 {
                *run = next_run(expert, next, runs, beyond, tables);
            }
            slot
        });
    }

    /// Writes the runs of the expert at a place. Where they cover all tokens, none comes after them.
    fn write_runs(&mut self, place: usize, tables: &LayerTables, tokens: RankTokens, cover_all: bool) {
        let Self { plan, splitter, totals, beyond, runs, next, current, .. } = self;
        let expert = plan.experts[place] as usize;
        let start = tables.replica_start[expert];
        let mut end = start;
        // Quotas of experts without tokens are stale.
        if tokens.own > 0 {
            let total = if cover_all { tokens.own } else { totals[expert] };
            plan.runs(place, splitter.quotas(plan, place, total), tokens, |replica, left| {
                // The next run replaces an empty one.
                runs[end as usize] = Run { slot: tables.replica_slots[replica as usize], left };
                end += u32::from(left > 0);
            });
        }
        if cover_all {
            // An endless last run saves a mispredicted branch.
            end = end.max(start + 1);
            runs[end as usize - 1].left = u32::MAX;
        }
        next[expert] = start..end;
        beyond[expert] = tokens.own as u32;
        current[expert] = next_run(expert, next, runs, beyond, tables);
    }
}

/// Begins the next run of `expert`.
#[cold]
fn next_run(
    expert: usize,
    next: &mut [Range<u32>],
    runs: &[Run],
    beyond: &mut [u32],
    tables: &LayerTables,
) -> Run {
    match next[expert].next() {
        Some(run) => runs[run as usize],
        // A token beyond those that the counts of all ranks name.
        None => {
            let slots = tables.slots_of(expert);
            let number = beyond[expert];
            beyond[expert] = number.wrapping_add(1);
            Run { slot: slots[number as usize % slots.len()], left: 1 }
        }
    }
}

/// The tokens of an expert on some ranks, by the counts of all ranks.
fn sum_of_ranks(rank_count: &impl Fn(usize) -> u64, shape: Shape, ranks: Range<usize>, expert: usize) -> u64 {
    ranks.map(|rank| rank_count(rank * shape.num_experts() + expert)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::NO_EXPERT;
    use proptest::prelude::*;

    /// A layer on some ranks, some of whose slots are empty, and batches with invalid ids.
    fn a_case(
        num_ranks: Range<usize>,
        num_experts: Range<usize>,
        spare: usize,
    ) -> impl Strategy<Value = (Vec<u32>, usize, usize, Vec<Vec<i32>>)> {
        (num_ranks, num_experts, 0..spare).prop_flat_map(|(num_ranks, num_experts, spare)| {
            let num_slots = (num_experts.div_ceil(num_ranks) + spare) * num_ranks;
            let popular = (num_experts as u32).div_ceil(4);
            let others = prop::collection::vec(0..popular + 1, num_slots - num_experts);
            let slots = others.prop_map(move |others| {
                let empty = |expert| if expert < popular { expert } else { NO_EXPERT };
                (0..num_experts as u32).chain(others.into_iter().map(empty)).collect::<Vec<u32>>()
            });
            let id = prop_oneof![3 => 0..popular as i32, 3 => 0..num_experts as i32, 1 => -2..num_experts as i32 + 2];
            let len = prop_oneof![Just(0usize), 1usize..30, 200usize..300, 500usize..5000];
            let ids = len.prop_flat_map(move |len| prop::collection::vec(id.clone(), len));
            (slots.prop_shuffle(), Just(num_experts), Just(num_ranks), prop::collection::vec(ids, 1..4))
        })
    }

    proptest! {
        #[test]
        fn slots_are_the_same_without_lanes((slots, num_experts, num_ranks, batches) in a_case(1..10, 1..60, 6)) {
            let shape = Shape::new(num_experts, slots.len(), num_ranks).unwrap();
            let tables = LayerTables::new(shape, &slots);
            let rule = || LeastLoaded::new(shape, &tables, SplitPlan::new(shape, &tables), 0);
            let (mut rule, mut other) = (rule(), LeastLoaded { lanes: None, ..rule() });
            for ids in batches {
                let (mut found, mut expected) = (ids.clone(), ids);
                rule.route(&mut Batch::in_place(&mut found), &tables, None::<&fn(usize) -> u64>);
                other.route(&mut Batch::in_place(&mut expected), &tables, None::<&fn(usize) -> u64>);
                prop_assert_eq!(found, expected);
            }
        }

        /// Another thread may have changed the ids since they were counted, against the rules.
        #[test]
        fn other_ids_than_were_counted_get_a_slot_or_none(
            (slots, num_experts, num_ranks, batches) in prop_oneof![a_case(1..10, 1..60, 6), a_case(100..300, 100..300, 4)],
            seed in any::<u64>(),
        ) {
            let shape = Shape::new(num_experts, slots.len(), num_ranks).unwrap();
            let tables = LayerTables::new(shape, &slots);
            let rule = || LeastLoaded::new(shape, &tables, SplitPlan::new(shape, &tables), 0);
            let (rule, other) = (rule(), LeastLoaded { lanes: None, ..rule() });
            for mut rule in [rule, other] {
                let mut state = seed;
                // Also after others: what they left must not add up.
                for mut ids in batches.iter().cycle().take(9).cloned() {
                    rule.begin(ids.len(), true);
                    rule.count(&ids);
                    rule.plan(ids.len(), &tables, None::<&fn(usize) -> u64>);
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    // All the same, or some out of range.
                    let same = (state >> 33) as i32 % (num_experts as i32 + 2);
                    ids.iter_mut().step_by(1 + state as usize % 3).for_each(|id| *id = same);
                    let routed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        rule.assign(&mut Batch::in_place(&mut ids), &tables);
                    }));
                    // An error is as good: the C interface makes one of a panic.
                    let is_slot = |slot: &i32| (-1..=slots.len() as i32).contains(slot);
                    prop_assert!(routed.is_err() || ids.iter().all(is_slot), "{ids:?}");
                }
            }
        }

        #[test]
        fn slots_on_many_ranks_are_the_same_without_avx2(
            (slots, num_experts, num_ranks, batches) in a_case(100..300, 100..300, 4),
        ) {
            let shape = Shape::new(num_experts, slots.len(), num_ranks).unwrap();
            let tables = LayerTables::new(shape, &slots);
            let rule = || LeastLoaded::new(shape, &tables, SplitPlan::new(shape, &tables), 0);
            let (mut rule, other) = (rule(), rule());
            let (splitter, small) = (other.splitter.without_avx2(), other.small.without_avx2());
            let mut other = LeastLoaded { splitter, small, ..other };
            for ids in batches {
                let (mut found, mut expected) = (ids.clone(), ids);
                rule.route(&mut Batch::in_place(&mut found), &tables, None::<&fn(usize) -> u64>);
                other.route(&mut Batch::in_place(&mut expected), &tables, None::<&fn(usize) -> u64>);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
