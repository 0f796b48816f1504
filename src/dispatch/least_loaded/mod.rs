//! Least loaded: counts the batch, splits each expert's tokens so that the ranks' loads become even, and assigns slots.

mod kernel;
mod plan;
mod small_batch;

pub(super) use kernel::{SplitArguments, SplitParts, launch};
pub(crate) use plan::SplitPlan;

use std::ops::Range;

use self::plan::RankTokens;
use self::small_batch::SmallBatch;
use super::tables::LayerTables;
use crate::device::Id;
use crate::placement::Shape;
use crate::stats::histogram;

/// The rule on the host.
#[derive(Debug)]
pub(super) struct LeastLoaded {
    shape: Shape,
    rank: usize,
    plan: SplitPlan,
    /// The experts with one slot, by rank.
    single: Vec<Vec<u32>>,
    /// The tokens of each expert. Of those with several slots, later the number of the next token without a run.
    counts: Vec<u32>,
    totals: Vec<u64>,
    quotas: Vec<u64>,
    rank_loads: Vec<u64>,
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
        let mut single = vec![Vec::new(); shape.num_ranks()];
        for expert in 0..num_experts {
            if let &[slot] = tables.slots_of(expert) {
                single[shape.rank_of(slot as usize)].push(expert as u32);
            }
        }
        let endless = |slot| Run { slot, left: u32::MAX };
        LeastLoaded {
            shape,
            rank,
            quotas: vec![0; plan.holders.len()],
            plan,
            single,
            counts: vec![0; num_experts],
            totals: vec![0; num_experts],
            rank_loads: vec![0; shape.num_ranks()],
            runs: vec![Run::default(); num_slots],
            next: vec![0..0; num_experts],
            current: tables.first_slots(shape).into_iter().map(endless).collect(),
            small: SmallBatch::new(shape, tables),
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
        self.begin_count();
        self.count(ids);
        self.plan(ids.len(), tables, rank_counts);
        self.assign(ids, tables);
    }

    /// Begins a batch. Its parts are [counted](LeastLoaded::count), it is [planned](LeastLoaded::plan), and its parts are
    /// [assigned](LeastLoaded::assign) in the same order.
    pub fn begin_count(&mut self) {
        self.counts.fill(0);
    }

    /// Counts a part of a batch.
    pub fn count<I: Id>(&mut self, ids: &[I]) {
        histogram(ids, &mut self.counts);
    }

    /// Plans the slots of a batch of `num_ids` valid ids, which were counted.
    pub fn plan(
        &mut self,
        num_ids: usize,
        tables: &LayerTables,
        rank_counts: Option<&impl Fn(usize) -> u64>,
    ) {
        self.compute_quotas(rank_counts);
        self.is_small = rank_counts.is_none() && num_ids <= small_batch::MAX_IDS;
        if self.is_small {
            let Self { plan, totals, quotas, small, .. } = self;
            small.lay_out(plan, tables, totals, quotas);
        } else {
            self.plan_runs(tables, rank_counts);
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

    /// Computes quotas of the batch's tokens, or of those of all ranks.
    fn compute_quotas(&mut self, rank_counts: Option<&impl Fn(usize) -> u64>) {
        let Self { shape, plan, single, counts, totals, quotas, rank_loads, .. } = self;
        match rank_counts {
            None => totals.iter_mut().zip(&*counts).for_each(|(total, &count)| *total = u64::from(count)),
            Some(count) => {
                for (expert, total) in totals.iter_mut().enumerate() {
                    *total = sum_of_ranks(count, *shape, 0..shape.num_ranks(), expert);
                }
            }
        }
        for (load, experts) in rank_loads.iter_mut().zip(&*single) {
            *load = experts.iter().map(|&expert| totals[expert as usize]).sum();
        }
        quotas.fill(0);
        plan.split_replicated(totals, quotas, rank_loads);
    }

    fn plan_runs(&mut self, tables: &LayerTables, rank_counts: Option<&impl Fn(usize) -> u64>) {
        self.current.iter_mut().for_each(|run| run.left = u32::MAX);
        for place in 0..self.plan.experts.len() {
            let expert = self.plan.experts[place] as usize;
            let tokens = match rank_counts {
                None => RankTokens { before: 0, own: self.totals[expert] },
                Some(count) => RankTokens {
                    before: sum_of_ranks(count, self.shape, 0..self.rank, expert),
                    own: sum_of_ranks(count, self.shape, self.rank..self.rank + 1, expert),
                },
            };
            self.write_runs(place, tables, tokens, rank_counts.is_none());
        }
    }

    // On its own, its loop keeps everything in registers.
    #[inline(never)]
    fn route_by_runs<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables) {
        // Borrowed one by one, they stay in registers in the loop.
        let Self { counts, runs, next, current, .. } = self;
        let num_experts = current.len() - 1;
        for id in ids {
            let expert = id.bin(num_experts);
            let run = &mut current[expert];
            *id = I::of_slot(run.slot);
            // The run of an expert with one slot is longer than a batch.
            run.left -= 1;
            if run.left == 0 {
                *run = next_run(expert, next, runs, counts, tables);
            }
        }
    }

    /// Writes the runs of the expert at `place` of the plan. Where they cover all tokens, none comes after them.
    fn write_runs(&mut self, place: usize, tables: &LayerTables, tokens: RankTokens, cover_all: bool) {
        let Self { plan, counts, quotas, runs, next, current, .. } = self;
        let expert = plan.experts[place] as usize;
        let start = tables.replica_start[expert];
        let mut end = start;
        plan.runs(place, quotas, tokens, |replica, left| {
            // The next run replaces an empty one.
            runs[end as usize] = Run { slot: tables.replica_slots[replica as usize], left };
            end += u32::from(left > 0);
        });
        if cover_all {
            // An endless last run saves a mispredicted branch.
            end = end.max(start + 1);
            runs[end as usize - 1].left = u32::MAX;
        }
        next[expert] = start..end;
        counts[expert] = tokens.own as u32;
        current[expert] = next_run(expert, next, runs, counts, tables);
    }
}

/// Begins the next run of `expert`.
#[cold]
fn next_run(
    expert: usize,
    next: &mut [Range<u32>],
    runs: &[Run],
    counts: &mut [u32],
    tables: &LayerTables,
) -> Run {
    match next[expert].next() {
        Some(run) => runs[run as usize],
        // A token beyond those that the counts of all ranks name.
        None => {
            let slots = tables.slots_of(expert);
            let number = counts[expert];
            counts[expert] = number.wrapping_add(1);
            Run { slot: slots[number as usize % slots.len()], left: 1 }
        }
    }
}

/// The tokens of an expert on some ranks, by the counts of all ranks.
fn sum_of_ranks(rank_count: &impl Fn(usize) -> u64, shape: Shape, ranks: Range<usize>, expert: usize) -> u64 {
    ranks.map(|rank| rank_count(rank * shape.num_experts() + expert)).sum()
}
