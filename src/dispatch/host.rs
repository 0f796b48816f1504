//! Routing on the host: the same slots as the kernels give, one id after the other.

use super::level::{Levelling, Share};
use super::nearest::Finder;
use super::tables::LayerTables;
use crate::device::{Id, Job, ROUTE_BLOCK, Rule, histogram};
use crate::placement::Shape;

const GOLDEN_RATIO: u32 = 2_654_435_769;

/// Ids of a batch for which slots are laid out one by one: in a larger one, runs of tokens that go to one slot are long enough
/// for their ends to be predicted.
const SMALL_BATCH: usize = 4096;

/// A layer's tables as the host goes through them, and what it notes meanwhile.
#[derive(Debug)]
pub(super) struct HostLayer {
    shape: Shape,
    rank: usize,
    /// Added to a block's index.
    offset: u32,
    tables: LayerTables,
    by_rule: ByRule,
}

#[derive(Debug)]
enum ByRule {
    RoundRobin(RoundRobin),
    TokenHash(TokenHash),
    Nearest(Nearest),
    LeastLoaded(Box<LeastLoaded>),
}

/// Whose turn it is.
#[derive(Debug)]
struct RoundRobin {
    replicated: Vec<u32>,
    /// The slot after each in its expert's turn, `[num_slots + 1]`; the invalid slot follows itself.
    after: Vec<u32>,
    /// The next slot of each expert, and at last the invalid slot.
    next: Vec<u32>,
    /// The slots with which the block began, of the replicated experts.
    first: Vec<u32>,
}

/// A row of the tables.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// 2^64 / count, rounded up: the remainder of a division without the division (Lemire, Kaser and Kurz, "Faster
    /// remainder by direct computation", 2019). 0 where the count is 1.
    reciprocal: u64,
    start: u32,
    count: u32,
}

#[derive(Debug)]
struct TokenHash {
    /// Of each expert, and at last of the invalid slot.
    rows: Vec<Row>,
    /// The table of slots, and at last the invalid slot.
    slots: Vec<u32>,
}

#[derive(Debug)]
struct Nearest {
    finder: Finder,
    /// The point of each expert's next token, and at last one for the invalid slot.
    points: Vec<u32>,
}

#[derive(Debug)]
struct LeastLoaded {
    levelling: Levelling,
    /// The experts with one slot, by rank.
    alone: Vec<Vec<u32>>,
    /// The tokens of each expert; of those with several slots, later how many are told of or beyond that and dealt.
    counts: Vec<u32>,
    totals: Vec<u64>,
    quotas: Vec<u64>,
    rank_loads: Vec<u64>,
    /// What is dealt to the replicas of each expert that has several, from its start in the table of slots on.
    runs: Vec<Run>,
    /// Its runs that are yet to come.
    next: Vec<std::ops::Range<u32>>,
    /// The run of each expert's next token, and at last of the invalid slot.
    dealing: Vec<Run>,
    small: SmallBatch,
}

/// The slots of a small batch, token after token.
#[derive(Debug)]
struct SmallBatch {
    /// At `e` that of expert e if it has one slot, then the invalid slot, and from there on those of the other experts' tokens.
    slots: Vec<u32>,
    /// Where the slot of each expert's next token is, and at last of the invalid slot.
    next: Vec<u32>,
    /// How far that goes with each token: 0 for experts with one slot and for the invalid slot, else 1.
    steps: Vec<u32>,
}

/// Slots that are written at once, some of them beyond the end.
const WRITTEN_AT_ONCE: usize = 8;

impl SmallBatch {
    fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut slots = first_slots(shape, tables);
        slots.resize(slots.len() + SMALL_BATCH + WRITTEN_AT_ONCE, 0);
        let steps = tables.replica_count.iter().map(|&count| u32::from(count > 1)).chain([0]).collect();
        SmallBatch { slots, next: (0..=shape.num_experts() as u32).collect(), steps }
    }

    /// Lays out the tokens of the experts with several slots by the quotas of their groups.
    fn lay_out(&mut self, levelling: &Levelling, tables: &LayerTables, totals: &[u64], quotas: &[u64]) {
        let mut end = self.next.len();
        for (place, &expert) in levelling.experts.iter().enumerate() {
            self.next[expert as usize] = end as u32;
            let share = Share { before: 0, own: totals[expert as usize] };
            levelling.runs(place, quotas, share, |replica, tokens| {
                let (slot, start) = (tables.replica_slots[replica as usize], end);
                end += tokens as usize;
                for chunk in self.slots[start..end + WRITTEN_AT_ONCE].chunks_exact_mut(WRITTEN_AT_ONCE) {
                    chunk.fill(slot);
                }
            });
        }
    }

    fn route<I: Id>(&mut self, ids: &mut [I]) {
        let Self { slots, next, steps } = self;
        let num_experts = next.len() - 1;
        for id in ids {
            let expert = id.bin(num_experts);
            let place = &mut next[expert];
            *id = I::of_slot(slots[*place as usize]);
            *place += steps[expert];
        }
    }
}

/// Tokens of an expert that go to one slot.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    slot: u32,
    /// How many more there are.
    left: u32,
}

impl HostLayer {
    pub fn new(
        shape: Shape,
        rule: Rule,
        (rank, offset): (usize, u32),
        tables: &LayerTables,
        shares: Option<&[u32]>,
        levelling: Option<&Levelling>,
    ) -> Self {
        let (num_experts, num_slots) = (shape.num_experts(), shape.num_slots());
        let replicated = || tables.replicated().map(|expert| expert as u32).collect();
        let by_rule = match rule {
            Rule::RoundRobin => {
                let mut after: Vec<u32> = (0..=num_slots as u32).collect();
                for expert in 0..num_experts {
                    let slots = tables.slots_of(expert);
                    for (place, &slot) in slots.iter().enumerate() {
                        after[slot as usize] = slots[(place + 1) % slots.len()];
                    }
                }
                let replicated: Vec<u32> = replicated();
                let next = first_slots(shape, tables);
                ByRule::RoundRobin(RoundRobin { first: vec![0; replicated.len()], replicated, after, next })
            }
            Rule::TokenHash => {
                let row = |(&start, &count): (&u32, &u32)| Row {
                    reciprocal: (u64::MAX / u64::from(count)).wrapping_add(1),
                    start,
                    count,
                };
                let invalid = Row { reciprocal: 0, start: num_slots as u32, count: 1 };
                let rows = tables.replica_start.iter().zip(&tables.replica_count).map(row);
                let slots = tables.replica_slots.iter().copied().chain([num_slots as u32]).collect();
                ByRule::TokenHash(TokenHash { rows: rows.chain([invalid]).collect(), slots })
            }
            Rule::Nearest => ByRule::Nearest(Nearest {
                finder: Finder::new(shape, tables, shares.unwrap_or_default()),
                points: vec![0; num_experts + 1],
            }),
            Rule::LeastLoaded => {
                let levelling = levelling.cloned().unwrap_or_default();
                let mut alone = vec![Vec::new(); shape.num_ranks()];
                for expert in 0..num_experts {
                    if let &[slot] = tables.slots_of(expert) {
                        alone[shape.rank_of(slot as usize)].push(expert as u32);
                    }
                }
                ByRule::LeastLoaded(Box::new(LeastLoaded {
                    quotas: vec![0; levelling.groups.len()],
                    levelling,
                    alone,
                    counts: vec![0; num_experts],
                    totals: vec![0; num_experts],
                    rank_loads: vec![0; shape.num_ranks()],
                    runs: vec![Run::default(); num_slots],
                    next: vec![0..0; num_experts],
                    dealing: first_slots(shape, tables)
                        .into_iter()
                        .map(|slot| Run { slot, left: u32::MAX })
                        .collect(),
                    small: SmallBatch::new(shape, tables),
                }))
            }
        };
        HostLayer { shape, rank, offset, tables: tables.clone(), by_rule }
    }
}

/// The first slot of each expert, and at last the invalid slot.
fn first_slots(shape: Shape, tables: &LayerTables) -> Vec<u32> {
    (0..shape.num_experts())
        .map(|expert| tables.slots_of(expert)[0])
        .chain([shape.num_slots() as u32])
        .collect()
}

/// Routes a batch.
pub(super) struct HostJob<'a, Counts> {
    pub layer: &'a mut HostLayer,
    /// Of [`Rule::LeastLoaded`]: the counts of all ranks, each below 2^31, by their place in `[num_ranks][num_experts]`.
    pub rank_counts: Option<Counts>,
}

impl<Counts: Fn(usize) -> u64> Job for HostJob<'_, Counts> {
    fn run<I: Id>(self, ids: &mut [I], valid: usize, experts_per_token: usize) {
        let HostLayer { shape, rank, offset, tables, by_rule } = self.layer;
        let invalid = I::of_slot(shape.num_slots() as u32);
        let (ids, padding) = ids.split_at_mut(valid);
        padding.fill(invalid);
        match by_rule {
            ByRule::RoundRobin(turns) => turns.route(ids, tables, *offset),
            ByRule::TokenHash(hash) => hash.route(ids, experts_per_token),
            ByRule::Nearest(nearest) => nearest.route(ids, tables, *offset),
            ByRule::LeastLoaded(least) => {
                least.level(ids, *shape, self.rank_counts.as_ref());
                match &self.rank_counts {
                    None if ids.len() <= SMALL_BATCH => least.route_small(ids, tables),
                    rank_counts => least.route(ids, *shape, tables, *rank, rank_counts.as_ref()),
                }
            }
        }
    }
}

impl RoundRobin {
    fn route<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables, offset: u32) {
        let Self { replicated, after, next, first } = self;
        for (first, &expert) in first.iter_mut().zip(&*replicated) {
            let slots = tables.slots_of(expert as usize);
            *first = slots[offset as usize % slots.len()];
        }
        let num_experts = next.len() - 1;
        for block in ids.chunks_mut(ROUTE_BLOCK) {
            for (first, &expert) in first.iter_mut().zip(&*replicated) {
                next[expert as usize] = *first;
                *first = after[*first as usize];
            }
            for id in block {
                let next = &mut next[id.bin(num_experts)];
                *id = I::of_slot(*next);
                *next = after[*next as usize];
            }
        }
    }
}

impl TokenHash {
    fn route<I: Id>(&self, ids: &mut [I], experts_per_token: usize) {
        let num_experts = self.rows.len() - 1;
        let mut hash = 0u32;
        for token in ids.chunks_exact_mut(experts_per_token) {
            for id in token {
                let Row { reciprocal, start, count } = self.rows[id.bin(num_experts)];
                let fraction = reciprocal.wrapping_mul(u64::from(hash));
                let replica = ((u128::from(fraction) * u128::from(count)) >> 64) as u32;
                *id = I::of_slot(self.slots[(start + replica) as usize]);
            }
            hash = hash.wrapping_add(GOLDEN_RATIO);
        }
    }
}

impl Nearest {
    fn route<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables, offset: u32) {
        let Self { finder, points } = self;
        let num_experts = points.len() - 1;
        for (block, ids) in (offset..).zip(ids.chunks_mut(ROUTE_BLOCK)) {
            points.fill(block.wrapping_mul(GOLDEN_RATIO));
            for id in ids {
                let expert = id.bin(num_experts);
                let point = points[expert];
                points[expert] = point.wrapping_add(GOLDEN_RATIO);
                *id = I::of_slot(finder.slot(tables, expert, point));
            }
        }
    }
}

impl LeastLoaded {
    /// Counts the batch, and deals its tokens, or those of all ranks, to the groups.
    fn level<I: Id>(&mut self, ids: &[I], shape: Shape, rank_counts: Option<&impl Fn(usize) -> u64>) {
        let Self { levelling, alone, counts, totals, quotas, rank_loads, .. } = self;
        counts.fill(0);
        histogram(ids, counts);
        let sum = |expert: usize| sum_of(rank_counts, shape, 0..shape.num_ranks(), expert);
        match rank_counts {
            None => totals.iter_mut().zip(&*counts).for_each(|(total, &count)| *total = u64::from(count)),
            Some(_) => {
                for (expert, total) in totals.iter_mut().enumerate() {
                    *total = sum(expert);
                }
            }
        }
        for (load, alone) in rank_loads.iter_mut().zip(&*alone) {
            *load = alone.iter().map(|&expert| totals[expert as usize]).sum();
        }
        quotas.fill(0);
        levelling.level(totals, quotas, rank_loads);
    }

    fn route_small<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables) {
        let Self { levelling, totals, quotas, small, .. } = self;
        small.lay_out(levelling, tables, totals, quotas);
        small.route(ids);
    }

    fn route<I: Id>(
        &mut self,
        ids: &mut [I],
        shape: Shape,
        tables: &LayerTables,
        rank: usize,
        rank_counts: Option<&impl Fn(usize) -> u64>,
    ) {
        let sum = |ranks, expert| sum_of(rank_counts, shape, ranks, expert);
        self.dealing.iter_mut().for_each(|run| run.left = u32::MAX);
        for place in 0..self.levelling.experts.len() {
            let expert = self.levelling.experts[place] as usize;
            let share = match rank_counts {
                None => Share { before: 0, own: self.totals[expert] },
                Some(_) => Share { before: sum(0..rank, expert), own: sum(rank..rank + 1, expert) },
            };
            self.put_runs(place, tables, share, rank_counts.is_none());
        }
        let num_experts = self.dealing.len() - 1;
        for id in ids {
            let expert = id.bin(num_experts);
            let run = &mut self.dealing[expert];
            *id = I::of_slot(run.slot);
            // With one slot, there are more left than a batch has.
            run.left -= 1;
            if run.left == 0 {
                self.begin_run(expert, tables);
            }
        }
    }

    /// The runs of the expert at `place` of the levelling. Where they are `all`, no token comes after them.
    fn put_runs(&mut self, place: usize, tables: &LayerTables, share: Share, all: bool) {
        let Self { levelling, counts, quotas, runs, next, .. } = self;
        let expert = levelling.experts[place] as usize;
        let start = tables.replica_start[expert];
        let mut end = start;
        levelling.runs(place, quotas, share, |replica, left| {
            // The next one takes the place of one that is empty.
            runs[end as usize] = Run { slot: tables.replica_slots[replica as usize], left };
            end += u32::from(left > 0);
        });
        if all {
            // Its end need not be noticed, which costs a mispredicted branch.
            end = end.max(start + 1);
            runs[end as usize - 1].left = u32::MAX;
        }
        next[expert] = start..end;
        counts[expert] = share.own as u32;
        self.begin_run(expert, tables);
    }

    fn begin_run(&mut self, expert: usize, tables: &LayerTables) {
        self.dealing[expert] = match self.next[expert].next() {
            Some(run) => self.runs[run as usize],
            // A token that the counts of all ranks do not tell of.
            None => {
                let slots = tables.slots_of(expert);
                let number = self.counts[expert];
                self.counts[expert] = number.wrapping_add(1);
                Run { slot: slots[number as usize % slots.len()], left: 1 }
            }
        };
    }
}

/// The tokens of an expert that some ranks have, by all ranks' counts.
fn sum_of(
    rank_counts: Option<&impl Fn(usize) -> u64>,
    shape: Shape,
    ranks: std::ops::Range<usize>,
    expert: usize,
) -> u64 {
    rank_counts.map_or(0, |count| ranks.map(|rank| count(rank * shape.num_experts() + expert)).sum())
}
