//! Least loaded: counts the batch, splits each expert's tokens so that the ranks' loads become even, and assigns slots.

mod batch_counts;
mod edges;
mod kernel;
mod plan;
mod small_batch;
mod splitter;

pub(super) use kernel::{SplitArguments, SplitParts, launch};
pub(crate) use plan::SplitPlan;
pub(crate) use splitter::Splitter;

use std::ops::Range;

use self::batch_counts::BatchCounts;
use self::plan::RankTokens;
use self::small_batch::SmallBatch;
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
    /// Whether the slots of the batch are laid out in `small`.
    is_small: bool,
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
            is_small: false,
        }
    }

    /// Replaces ids by their slots. `rank_counts` returns the counts of all ranks by index in `[num_ranks][num_experts]`.
    pub fn route<I: Id>(
        &mut self,
        ids: &mut [I],
        tables: &LayerTables,
        rank_counts: Option<&impl Fn(usize) -> u64>,
    ) {
        if rank_counts.is_none() {
            self.begin_count();
            self.count(ids);
        }
        self.plan(ids.len(), tables, rank_counts);
        self.assign(ids, tables);
    }

    /// Begins a batch. Its parts are [counted](LeastLoaded::count), it is [planned](LeastLoaded::plan), and its parts are
    /// [assigned](LeastLoaded::assign) in the same order.
    pub fn begin_count(&mut self) {
        self.counts.clear();
    }

    /// Counts a part of a batch.
    pub fn count<I: Id>(&mut self, ids: &[I]) {
        self.counts.add(ids);
    }

    /// Plans the slots of a batch of `num_ids` valid ids. They were counted, or there are counts of all ranks.
    pub fn plan(
        &mut self,
        num_ids: usize,
        tables: &LayerTables,
        rank_counts: Option<&impl Fn(usize) -> u64>,
    ) {
        self.is_small = rank_counts.is_none() && num_ids <= small_batch::MAX_IDS;
        match rank_counts {
            None => self.split_own(num_ids, tables),
            Some(count) => self.split_all(count),
        }
        if !self.is_small {
            self.plan_runs(tables, rank_counts.is_none());
        }
    }

    /// Replaces the next ids of a batch by their slots.
    pub fn assign<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables) {
        if self.is_small {
            self.small.route(ids);
        } else {
            self.route_by_runs(ids, tables);
        }
    }

    /// Splits the batch's tokens, of `num_ids` ids, and lays out a small one.
    fn split_own(&mut self, num_ids: usize, tables: &LayerTables) {
        let Self { plan, splitter, counts, places, tokens, small, is_small, .. } = self;
        counts.end();
        match counts.seen() {
            // To find the experts with several slots takes as long as to split twice as many.
            Some(seen) if num_ids < plan.holders.len() / 2 => {
                splitter.split_seen(plan, counts, seen, places);
                if *is_small {
                    small.lay_out(plan, tables, places, splitter.units());
                }
            }
            _ => {
                splitter.split_all(plan, counts);
                if *is_small {
                    small.lay_out_all(plan, tables, splitter.units(), num_ids);
                } else {
                    places.clear();
                    places.extend(0..plan.experts.len() as u32);
                }
            }
        }
        if !*is_small {
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
    fn route_by_runs<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables) {
        // Borrowed one by one, they stay in registers in the loop.
        let Self { beyond, runs, next, current, .. } = self;
        let num_experts = current.len() - 1;
        for id in ids {
            let expert = id.bin(num_experts);
            let run = &mut current[expert];
            *id = I::of_slot(run.slot);
            // The run of an expert with one slot is longer than a batch.
            run.left -= 1;
            if run.left == 0 {
                *run = next_run(expert, next, runs, beyond, tables);
            }
        }
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
