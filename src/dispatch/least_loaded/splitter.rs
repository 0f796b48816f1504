//! Splits the tokens of experts on several ranks: sweeps over all of them, rounding, and rounds of repair. docs/routing.md
//! defines each step.

use super::plan::{Place, SplitPlan};
use super::step_size::{FRACTION, MOMENTUM, SWEEPS};
use crate::dispatch::tables::Holder;

/// Bits of all tokens in fixed point: `EPLB_SPLIT_BITS` of the kernels.
const BITS: u32 = 28;

/// The most rounds of repair: `EPLB_SPLIT_ROUNDS` of the kernels.
const ROUNDS: u32 = 8;

/// Fewer tokens of one rank are a small batch, with [`SMALL_SWEEPS`] and [`SMALL_ROUNDS`].
const SMALL: u64 = 1024;
const SMALL_SWEEPS: usize = 2;
const SMALL_ROUNDS: u32 = 4;

/// Sweeps for one rank's tokens.
const OWN_SWEEPS: usize = 3;

/// Splits the tokens of a batch, and keeps the quotas. It allocates when it is created.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// The tokens that are split: [`Splitter::begin`].
    scale: Scale,
    /// Of each rank: the tokens of experts on one rank, all tokens, those after the sweep, and the largest key of a proposal.
    base: Vec<i32>,
    loads: Vec<i32>,
    next: Vec<i32>,
    largest: Vec<u32>,
    /// The experts of the batch on two ranks, and on more.
    pairs: Vec<Pair>,
    wide: Vec<Wide>,
    /// The holders of the latter.
    groups: Vec<Group>,
    proposals: Vec<Proposal>,
    /// Of each holder. Those of experts without tokens are stale.
    quotas: Vec<u64>,
}

/// How tokens become fixed-point numbers. One of the two is 0.
#[derive(Debug, Clone, Copy, Default)]
struct Scale {
    total: u64,
    up: u32,
    down: u32,
}

impl Scale {
    fn of(total: u64) -> Self {
        let bits = u64::BITS - total.leading_zeros();
        Scale { total, up: BITS.saturating_sub(bits), down: bits.saturating_sub(BITS) }
    }

    #[inline(always)]
    fn fixed(self, tokens: u64) -> i32 {
        ((tokens << self.up) >> self.down) as i32
    }
}

/// An expert on two ranks. The second one's tokens are the others.
#[derive(Debug, Clone, Copy)]
struct Pair {
    ranks: [u32; 2],
    tokens: i32,
    first: i32,
    change: i32,
    expert: u32,
    start: u32,
    total: u64,
}

/// An expert on more ranks, by the range of its groups.
#[derive(Debug, Clone, Copy)]
struct Wide {
    begin: u32,
    end: u32,
    tokens: i32,
    expert: u32,
    start: u32,
    total: u64,
}

/// An expert's tokens on one rank.
#[derive(Debug, Clone, Copy)]
struct Group {
    rank: u32,
    tokens: i32,
    change: i32,
}

/// Tokens that an expert would move.
#[derive(Debug, Clone, Copy)]
struct Proposal {
    key: u32,
    from: u32,
    to: u32,
    amount: i32,
    /// The index of the pair, or of the group that gives.
    giver: u32,
    /// The group that takes, or the change of a pair's first holder: [`PAIR_GIVES`] or [`PAIR_TAKES`].
    taker: u32,
}

const PAIR_GIVES: u32 = u32::MAX;
const PAIR_TAKES: u32 = u32::MAX - 1;

impl Splitter {
    /// Prepares for the batches of a layer.
    pub fn new(plan: &SplitPlan, num_ranks: usize) -> Self {
        let (num_split, num_wide) = (plan.num_split(), plan.num_wide);
        Splitter {
            scale: Scale::default(),
            base: vec![0; num_ranks],
            loads: vec![0; num_ranks],
            next: vec![0; num_ranks],
            largest: vec![0; num_ranks],
            pairs: Vec::with_capacity(num_split - num_wide),
            wide: Vec::with_capacity(num_wide),
            groups: Vec::with_capacity(plan.holder_start[num_wide] as usize),
            proposals: Vec::with_capacity(num_split),
            quotas: vec![0; plan.holders.len()],
        }
    }

    /// The tokens of each holder. Those of experts without tokens are stale.
    pub fn quotas(&self) -> &[u64] {
        &self.quotas
    }

    /// Begins a batch of `total` tokens, below 2^63. Those of each expert are [added](Splitter::add), then they are
    /// [split](Splitter::split).
    #[inline(always)]
    pub fn begin(&mut self, total: u64) {
        self.scale = Scale::of(total);
        self.base.fill(0);
        self.pairs.clear();
        self.wide.clear();
        self.groups.clear();
    }

    /// Adds an expert's tokens, at least one. Returns its place, if it has several slots.
    #[inline(always)]
    pub fn add(&mut self, plan: &SplitPlan, expert: usize, total: u64) -> Option<usize> {
        let tokens = self.scale.fixed(total);
        let place = match plan.place_of(expert) {
            Place::Rank(rank) => {
                self.base[rank] += tokens;
                return None;
            }
            Place::Split(place) => place,
        };
        let range = plan.range_of(place);
        let (start, expert) = (range.start as u32, expert as u32);
        match &plan.holders[range] {
            [one] => {
                self.base[one.rank as usize] += tokens;
                self.quotas[start as usize] = total;
            }
            [one, other] => {
                let ranks = [one.rank, other.rank];
                self.pairs.push(Pair { ranks, tokens, first: tokens / 2, change: 0, expert, start, total });
            }
            holders => {
                let begin = self.groups.len() as u32;
                let each = tokens / holders.len() as i32;
                let group = |holder: &Holder| Group { rank: holder.rank, tokens: each, change: 0 };
                self.groups.extend(holders.iter().map(group));
                if let Some(last) = self.groups.last_mut() {
                    last.tokens = tokens - each * (holders.len() as i32 - 1);
                }
                let end = self.groups.len() as u32;
                self.wide.push(Wide { begin, end, tokens, expert, start, total });
            }
        }
        Some(place)
    }

    /// Splits `totals`, the tokens of each expert. `is_own` tells that they are those of one rank.
    pub fn split_totals(&mut self, plan: &SplitPlan, totals: &[u64], is_own: bool) {
        self.begin(totals.iter().sum());
        for (expert, &total) in totals.iter().enumerate().filter(|(_, total)| **total > 0) {
            self.add(plan, expert, total);
        }
        self.split(plan, is_own);
    }

    /// Calls `with` with a rank and its tokens of an expert, for each expert and rank. `totals` were split.
    pub fn for_each_load(&self, plan: &SplitPlan, totals: &[u64], mut with: impl FnMut(usize, u64)) {
        for (expert, &total) in totals.iter().enumerate().filter(|(_, total)| **total > 0) {
            match plan.place_of(expert) {
                Place::Rank(rank) => with(rank, total),
                Place::Split(place) => {
                    let quotas = &self.quotas[plan.range_of(place)];
                    plan.holders_of(place).iter().zip(quotas).for_each(|(h, &quota)| with(h.rank as usize, quota));
                }
            }
        }
    }

    /// Computes the quotas. `is_own` tells that the tokens are those of one rank.
    pub fn split(&mut self, plan: &SplitPlan, is_own: bool) {
        if self.pairs.is_empty() && self.wide.is_empty() {
            return;
        }
        let is_small = is_own && self.scale.total < SMALL;
        let sweeps = match is_own {
            true if is_small => SMALL_SWEEPS,
            true => OWN_SWEEPS,
            false => SWEEPS,
        };
        self.sum_loads();
        for (&step, momentum) in plan.step_sizes.iter().zip(MOMENTUM).take(sweeps) {
            self.sweep(i64::from(step), i64::from(momentum));
        }
        self.round();
        self.repair(if is_small { SMALL_ROUNDS } else { ROUNDS });
        self.write_quotas();
    }

    fn sum_loads(&mut self) {
        let Self { base, loads, pairs, groups, .. } = self;
        loads.copy_from_slice(base);
        for pair in &*pairs {
            loads[pair.ranks[0] as usize] += pair.first;
            loads[pair.ranks[1] as usize] += pair.tokens - pair.first;
        }
        groups.iter().for_each(|group| loads[group.rank as usize] += group.tokens);
    }

    /// Moves the tokens of all experts at once.
    fn sweep(&mut self, step: i64, momentum: i64) {
        let Self { base, loads, next, pairs, wide, groups, .. } = self;
        next.copy_from_slice(base);
        let moved = |apart: i32, change: i32| {
            ((step * i64::from(apart)) >> FRACTION) as i32 + ((momentum * i64::from(change)) >> FRACTION) as i32
        };
        for pair in pairs {
            let [one, other] = pair.ranks.map(|rank| rank as usize);
            let mean = (loads[one] >> 1) + (loads[other] >> 1);
            let first = pair.first + moved(mean - loads[one], pair.change);
            let first = first.min(pair.tokens).max(0);
            pair.change = first - pair.first;
            pair.first = first;
            next[one] += first;
            next[other] += pair.tokens - first;
        }
        for expert in &*wide {
            let groups = &mut groups[expert.begin as usize..expert.end as usize];
            let reciprocal = (1 << 32) / groups.len() as u64;
            let share = |load: i32| ((load as u64 * reciprocal) >> 32) as i32;
            let mean: i32 = groups.iter().map(|group| share(loads[group.rank as usize])).sum();
            let (mut excess, mut positive) = (-expert.tokens, 0);
            for group in &mut *groups {
                let before = group.tokens;
                group.tokens = (before + moved(mean - loads[group.rank as usize], group.change)).max(0);
                group.change = before;
                excess += group.tokens;
                positive += i32::from(group.tokens > 0);
            }
            if excess > 0 {
                let cut = excess / positive;
                excess = -expert.tokens;
                for group in &mut *groups {
                    group.tokens = (group.tokens - cut).max(0);
                    excess += group.tokens;
                }
            }
            for group in groups.iter_mut().rev() {
                let cut = excess.min(group.tokens);
                excess -= cut;
                group.tokens -= cut;
                group.change = group.tokens - group.change;
                next[group.rank as usize] += group.tokens;
            }
        }
        std::mem::swap(loads, next);
    }

    /// Rounds to whole tokens. From here on, all is in tokens, or in fixed point where that is coarser.
    fn round(&mut self) {
        let Self { scale, base, loads, pairs, wide, groups, .. } = self;
        let up = scale.up;
        let half = (1 << up) >> 1;
        // Rounds halves down instead of up.
        let below = (1 << up) - 1 - half;
        loads.iter_mut().zip(&*base).for_each(|(load, &tokens)| *load = tokens >> up);
        for pair in pairs {
            let tokens = pair.tokens >> up;
            // If the number of tokens is odd, the second holder's are rounded first.
            let first = (pair.first + if tokens % 2 == 0 { half } else { below }) >> up;
            pair.first = first;
            pair.tokens = tokens;
            loads[pair.ranks[0] as usize] += first;
            loads[pair.ranks[1] as usize] += tokens - first;
        }
        for expert in &*wide {
            let groups = &mut groups[expert.begin as usize..expert.end as usize];
            let turn = (expert.tokens >> up) as usize % groups.len();
            let (mut sum, mut end) = (0, 0);
            let (last, first) = groups.split_at_mut(turn);
            for group in first.iter_mut().chain(last) {
                sum += group.tokens;
                let begin = std::mem::replace(&mut end, (sum + half) >> up);
                group.tokens = end - begin;
                loads[group.rank as usize] += group.tokens;
            }
        }
    }

    /// Moves whole tokens between two ranks of an expert, of many experts at once, in up to `rounds` rounds.
    fn repair(&mut self, rounds: u32) {
        let num_ranks = self.loads.len() as u64;
        let most = (self.scale.total >> self.scale.down).div_ceil(num_ranks) as i32;
        self.largest.fill(0);
        for round in 1..=rounds {
            self.propose(round, most);
            if self.proposals.is_empty() {
                return;
            }
            let Self { loads, largest, pairs, groups, proposals, .. } = self;
            for &Proposal { key, from, to, amount, giver, taker } in &*proposals {
                if largest[from as usize] != key || largest[to as usize] != key {
                    continue;
                }
                loads[from as usize] -= amount;
                loads[to as usize] += amount;
                match taker {
                    PAIR_GIVES => pairs[giver as usize].first -= amount,
                    PAIR_TAKES => pairs[giver as usize].first += amount,
                    taker => {
                        groups[giver as usize].tokens -= amount;
                        groups[taker as usize].tokens += amount;
                    }
                }
            }
        }
    }

    fn propose(&mut self, round: u32, most: i32) {
        let Self { loads, largest, pairs, wide, groups, proposals, .. } = self;
        let factor = 2_654_435_769u32.wrapping_mul(2 * round - 1);
        proposals.clear();
        let mut propose = |expert: u32, [from, to]: [u32; 2], tokens: i32, [giver, taker]: [u32; 2]| {
            let load = loads[from as usize];
            let apart = load - loads[to as usize];
            if apart >= 2 || (apart == 1 && load > most) {
                let key = round << 28 | apart.min(255) as u32 * (1 << 20) | expert.wrapping_mul(factor) & 0xf_ffff;
                for rank in [from, to] {
                    let largest = &mut largest[rank as usize];
                    *largest = key.max(*largest);
                }
                let amount = (apart / 2).max(1).min(tokens);
                proposals.push(Proposal { key, from, to, amount, giver, taker });
            }
        };
        for (index, pair) in (0..).zip(&*pairs) {
            let [one, other] = pair.ranks;
            let (first, second) = (pair.first, pair.tokens - pair.first);
            // A pair without tokens, which coarse fixed point allows, moves none.
            let (a, b) = (loads[one as usize], loads[other as usize]);
            if a > b && first > 0 {
                propose(pair.expert, [one, other], first, [index, PAIR_GIVES]);
            } else if b > a && second > 0 {
                propose(pair.expert, [other, one], second, [index, PAIR_TAKES]);
            }
        }
        for expert in &*wide {
            let (mut from, mut highest) = (expert.begin, -1);
            let (mut to, mut lowest) = (expert.begin, i32::MAX);
            for index in expert.begin..expert.end {
                let group = groups[index as usize];
                let load = loads[group.rank as usize];
                if load > highest && group.tokens > 0 {
                    (from, highest) = (index, load);
                }
                if load < lowest {
                    (to, lowest) = (index, load);
                }
            }
            if highest > lowest {
                let [giver, taker] = [from, to].map(|index| groups[index as usize]);
                propose(expert.expert, [giver.rank, taker.rank], giver.tokens, [from, to]);
            }
        }
    }

    fn write_quotas(&mut self) {
        let Self { scale, pairs, wide, groups, quotas, .. } = self;
        let tokens = |fixed: i32| (fixed as u64) << scale.down;
        for pair in &*pairs {
            let first = tokens(pair.first);
            let start = pair.start as usize;
            (quotas[start], quotas[start + 1]) = (first, pair.total - first);
        }
        for expert in &*wide {
            let groups = &groups[expert.begin as usize..expert.end as usize];
            let quotas = &mut quotas[expert.start as usize..][..groups.len()];
            let mut rest = expert.total;
            for (quota, group) in quotas.iter_mut().zip(groups) {
                *quota = tokens(group.tokens);
                rest -= *quota;
            }
            if let Some(last) = quotas.last_mut() {
                *last += rest;
            }
        }
    }
}
