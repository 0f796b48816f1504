//! The steps of the search: exchanges between the most loaded rank and another, and replica count changes.

use super::state::State;
use crate::placement::held_slots;

/// A smaller gain is rounding.
pub(super) const LEAST_GAIN: f64 = 1e-10;

/// If an exchange takes this part of the excess over the mean from the most loaded rank, no better partner is
/// sought.
const GOOD_ENOUGH: f64 = 0.5;

/// Slots of one rank to exchange with slots of another: one pair or two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    pairs: [(usize, usize); 2],
    len: usize,
}

impl Exchange {
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.pairs[..self.len]
    }

    pub fn new(pairs: [(usize, usize); 2], len: usize) -> Self {
        Exchange { pairs, len }
    }

    fn one(pair: (usize, usize)) -> Self {
        Exchange { pairs: [pair; 2], len: 1 }
    }
}

/// Returns whether the exchange adds no duplicate to either rank, or duplicates are allowed, and takes no pinned
/// slot.
pub(super) fn is_allowed(state: &State, exchange: &Exchange) -> bool {
    let takes = |&(one, other): &(usize, usize)| {
        state.may_take(state.rank_of(other), state.expert(one))
            && state.may_take(state.rank_of(one), state.expert(other))
    };
    exchange.pairs().iter().all(takes) && gives(state, exchange)
}

fn gives(state: &State, exchange: &Exchange) -> bool {
    let [(a, c), (b, d)] = exchange.pairs;
    state.may_give(&[a, b][..exchange.len]) && state.may_give(&[c, d][..exchange.len])
}

/// For one sample: returns the exchange of one slot of the most loaded rank that minimises the larger load of
/// both ranks. The partner is on the same node.
///
/// Slots are sorted by load. So the two best partners of each slot are adjacent.
pub(super) fn exchange(state: &State, evaluated: &mut usize) -> Option<Exchange> {
    let hottest = *state.order().last()? as usize;
    let load = state.rank_loads(hottest)[0];
    let mut best = Best::new(load, state);
    for &rank in state.order() {
        let (rank, other_load) = (rank as usize, state.rank_loads(rank as usize)[0]);
        if best.is_out_of_reach(load, other_load) || best.is_good_enough() || rank == hottest {
            break;
        }
        if !state.are_on_one_node(rank, hottest) {
            continue;
        }
        *evaluated += 2 * state.width();
        let half = (load - other_load) / 2.0;
        let (first, other_loads) = (state.slots_of(rank).start, state.slot_loads(rank));
        let mut next = 0;
        for (slot, &moved) in state.slots_of(hottest).zip(state.slot_loads(hottest)) {
            while next < other_loads.len() && other_loads[next] < moved - half {
                next += 1;
            }
            if next > 0 {
                let reached = other_load + (moved - other_loads[next - 1]);
                best.offer(state, reached, || Exchange::one((slot, first + next - 1)));
            }
            if next < other_loads.len() {
                let reached = load - (moved - other_loads[next]);
                best.offer(state, reached, || Exchange::one((slot, first + next)));
            }
        }
    }
    best.exchange
}

/// Like [`exchange`] with two slots at once, which gives many more differences of load. Ranks with many slots
/// do not need it.
pub(super) fn exchange_two(state: &State, evaluated: &mut usize) -> Option<Exchange> {
    const MOST_SLOTS: usize = 64;
    if state.width() > MOST_SLOTS {
        return None;
    }
    let hottest = *state.order().last()? as usize;
    let load = state.rank_loads(hottest)[0];
    let mut hot_pairs: Vec<(f64, (usize, usize))> = pairs_of(state, hottest).collect();
    hot_pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut best = Best::new(load, state);
    for &rank in state.order() {
        let (rank, other_load) = (rank as usize, state.rank_loads(rank as usize)[0]);
        if best.is_out_of_reach(load, other_load) || best.is_good_enough() || rank == hottest {
            break;
        }
        if !state.are_on_one_node(rank, hottest) {
            continue;
        }
        *evaluated += state.width() * state.width();
        let half = (load - other_load) / 2.0;
        for (other, (c, d)) in pairs_of(state, rank) {
            let next = hot_pairs.partition_point(|&(sum, _)| sum < other + half);
            for &(sum, (a, b)) in &hot_pairs[next.saturating_sub(1)..hot_pairs.len().min(next + 1)] {
                let moved = sum - other;
                let reached = (load - moved).max(other_load + moved);
                best.offer(state, reached, || Exchange::new([(a, c), (b, d)], 2));
            }
        }
    }
    best.exchange
}

/// Iterates over the pairs of slots of a rank, each with the sum of its loads.
fn pairs_of(state: &State, rank: usize) -> impl Iterator<Item = (f64, (usize, usize))> {
    let (first, loads) = (state.slots_of(rank).start, state.slot_loads(rank));
    let with_lower = move |a: usize| (0..a).map(move |b| (loads[a] + loads[b], (first + a, first + b)));
    (0..loads.len()).flat_map(with_lower)
}

/// The best exchange so far.
struct Best {
    /// The load of the more loaded of the two ranks after the exchange. At first slightly below the present
    /// load.
    load: f64,
    good_enough: f64,
    exchange: Option<Exchange>,
}

impl Best {
    fn new(load: f64, state: &State) -> Self {
        let mean = state.mean(0);
        Best {
            load: load - LEAST_GAIN * mean,
            good_enough: mean + (1.0 - GOOD_ENOUGH) * (load - mean),
            exchange: None,
        }
    }

    fn is_good_enough(&self) -> bool {
        self.load <= self.good_enough
    }

    /// Returns whether no exchange between ranks of these loads is better: one of them keeps at least half of
    /// both loads.
    fn is_out_of_reach(&self, load: f64, other_load: f64) -> bool {
        (load + other_load) / 2.0 >= self.load
    }

    #[inline(always)]
    fn offer(&mut self, state: &State, load: f64, exchange: impl FnOnce() -> Exchange) {
        if load < self.load {
            let exchange = exchange();
            if is_allowed(state, &exchange) {
                (self.load, self.exchange) = (load, Some(exchange));
            }
        }
    }
}

/// For several samples, or with nodes: returns the exchange of one slot that lowers the cost most. The slot
/// is on a rank that is the most loaded in some sample. If there is none, the slot is off its home node.
pub(super) fn exchange_of_samples(state: &State, evaluated: &mut usize) -> Option<Exchange> {
    let tops: Vec<Top> = (0..state.num_samples()).map(|sample| Top::of(state, sample)).collect();
    let cost = state.measure().of(tops.iter().map(|top| top.loads[0]));
    // Ranks by the sum of gains of the samples if the rank were empty.
    let mut gains = vec![0.0; state.num_ranks()];
    tops.iter().for_each(|top| gains[top.ranks[0]] += top.loads[0] - top.loads[1]);
    let mut hot: Vec<usize> = tops.iter().map(|top| top.ranks[0]).collect();
    hot.sort_unstable_by(|&a, &b| gains[b].total_cmp(&gains[a]).then(a.cmp(&b)));
    hot.dedup();
    for rank in hot {
        let found = exchange_of_rank(state, &tops, cost, rank, |_| true, evaluated);
        if found.is_some() {
            return found;
        }
    }
    if state.off_node_cost() > 0.0 {
        for rank in 0..state.num_ranks() {
            let is_off_node = |slot| !state.is_on_home_node(state.expert(slot), rank);
            let found = exchange_of_rank(state, &tops, cost, rank, is_off_node, evaluated);
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

/// Returns the exchange of one `wanted` slot of a rank that lowers the cost most.
fn exchange_of_rank(
    state: &State,
    tops: &[Top],
    cost: f64,
    rank: usize,
    wanted: impl Fn(usize) -> bool,
    evaluated: &mut usize,
) -> Option<Exchange> {
    let mut best = (cost - LEAST_GAIN * cost, None);
    let has_home_nodes = state.has_home_nodes();
    let wanted: Vec<usize> = state.slots_of(rank).filter(|&slot| wanted(slot)).collect();
    for other in (0..state.num_ranks()).filter(|&other| other != rank && !wanted.is_empty()) {
        // The other ranks bound the cost. The pair can help only if this bound is lower.
        let without: Vec<f64> = tops.iter().map(|top| top.without(rank, other)).collect();
        if !has_home_nodes && state.measure().of(without.iter().copied()) >= best.0 {
            continue;
        }
        let (loads, other_loads) = (state.rank_loads(rank), state.rank_loads(other));
        for &slot in &wanted {
            *evaluated += state.width();
            let load = state.replica_loads(state.expert(slot));
            for other_slot in state.slots_of(other) {
                let other_load = state.replica_loads(state.expert(other_slot));
                let mut reached = state.measure().of(without.iter().enumerate().map(|(sample, without)| {
                    let difference = load[sample] - other_load[sample];
                    let both = (loads[sample] - difference).max(other_loads[sample] + difference);
                    both.max(*without)
                }));
                if has_home_nodes {
                    reached += off_node_cost_of_exchange(state, slot, other_slot);
                }
                let exchange = Exchange::one((slot, other_slot));
                if reached < best.0 && is_allowed(state, &exchange) {
                    best = (reached, Some(exchange));
                }
            }
        }
    }
    best.1
}

/// Returns the change of the off-node cost if two slots exchange their experts.
fn off_node_cost_of_exchange(state: &State, one: usize, other: usize) -> f64 {
    let (a, b) = (state.rank_of(one), state.rank_of(other));
    if state.are_on_one_node(a, b) {
        return 0.0;
    }
    let change = |expert, from, to| {
        state.replica_off_node_cost(expert, to) - state.replica_off_node_cost(expert, from)
    };
    change(state.expert(one), a, b) + change(state.expert(other), b, a)
}

/// The three most loaded ranks of a sample.
struct Top {
    ranks: [usize; 3],
    loads: [f64; 3],
}

impl Top {
    fn of(state: &State, sample: usize) -> Self {
        let mut top = Top { ranks: [usize::MAX; 3], loads: [0.0; 3] };
        for rank in 0..state.num_ranks() {
            let load = state.rank_loads(rank)[sample];
            let Some(place) = (0..3).find(|&place| top.ranks[place] == usize::MAX || load > top.loads[place])
            else {
                continue;
            };
            top.ranks[place..].rotate_right(1);
            top.loads[place..].rotate_right(1);
            (top.ranks[place], top.loads[place]) = (rank, load);
        }
        top
    }

    /// Returns the load of the most loaded rank other than these two.
    fn without(&self, one: usize, other: usize) -> f64 {
        let place = (0..3).find(|&place| self.ranks[place] != one && self.ranks[place] != other);
        place.map_or(0.0, |place| self.loads[place])
    }
}

/// A slot that takes another expert, and the cost after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplicaCountChange {
    pub slot: usize,
    pub to: u32,
    pub cost: f64,
}

/// Returns the cheapest replica count changes, at most `max_changes`, cheapest first. The cost may be above
/// the present one, since exchanges follow.
///
/// Slots of the least loaded ranks may take an expert of a most loaded rank. Slots of the most loaded ranks
/// may take any expert. Stops after `left` evaluations.
pub(super) fn replica_count_changes(
    state: &State,
    max_changes: usize,
    left: usize,
    evaluated: &mut usize,
) -> Vec<ReplicaCountChange> {
    const COLD_RANKS: usize = 16;
    let mut replica_ranks = ReplicaRanks::of(state);
    let mut hot: Vec<usize> =
        (0..state.num_samples()).map(|sample| Top::of(state, sample).ranks[0]).collect();
    hot.sort_unstable();
    hot.dedup();
    let mut wanted: Vec<u32> =
        hot.iter().flat_map(|&rank| state.slots_of(rank)).map(|slot| state.expert(slot)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut cheapest = Cheapest { max_len: max_changes, found: Vec::new() };
    let cold = state.order().iter().map(|&rank| rank as usize).filter(|rank| !hot.contains(rank));
    for rank in cold.take(COLD_RANKS) {
        for slot in state.slots_of(rank).filter(|&slot| state.may_change(slot)) {
            let from = state.expert(slot);
            for &to in wanted.iter().filter(|&&to| to != from && state.may_take(rank, to)) {
                if *evaluated >= left {
                    return cheapest.found;
                }
                *evaluated += state.num_ranks();
                cheapest.offer(ReplicaCountChange { slot, to, cost: replica_ranks.cost_of(state, slot, to) });
            }
        }
    }
    for &rank in &hot {
        for slot in state.slots_of(rank).filter(|&slot| state.may_change(slot)) {
            let from = state.expert(slot);
            for to in (0..state.num_experts() as u32).filter(|&to| to != from && state.may_take(rank, to)) {
                if *evaluated >= left {
                    return cheapest.found;
                }
                *evaluated += state.num_ranks();
                cheapest.offer(ReplicaCountChange { slot, to, cost: replica_ranks.cost_of(state, slot, to) });
            }
        }
    }
    if state.off_node_cost() > 0.0 {
        let is_off_node = |&slot: &usize| {
            state.may_change(slot) && !state.is_on_home_node(state.expert(slot), state.rank_of(slot))
        };
        for slot in (0..state.num_slots()).filter(is_off_node) {
            let rank = state.rank_of(slot);
            let from = state.expert(slot);
            let on_home_node =
                |&to: &u32| to != from && state.is_on_home_node(to, rank) && state.may_take(rank, to);
            for to in (0..state.num_experts() as u32).filter(on_home_node) {
                if *evaluated >= left {
                    return cheapest.found;
                }
                *evaluated += state.num_ranks();
                cheapest.offer(ReplicaCountChange { slot, to, cost: replica_ranks.cost_of(state, slot, to) });
            }
        }
    }
    cheapest.found
}

/// The cheapest replica count changes in order of cost, ties in order of arrival.
struct Cheapest {
    max_len: usize,
    found: Vec<ReplicaCountChange>,
}

impl Cheapest {
    fn offer(&mut self, change: ReplicaCountChange) {
        let place = self.found.partition_point(|other| other.cost <= change.cost);
        if place < self.max_len {
            self.found.insert(place, change);
            self.found.truncate(self.max_len);
        }
    }
}

/// The ranks that hold each expert, and the loads of all ranks.
struct ReplicaRanks {
    /// One entry for each replica, `[experts]`.
    of: Vec<Vec<usize>>,
    loads: Vec<f64>,
}

impl ReplicaRanks {
    fn of(state: &State) -> Self {
        let mut of = vec![Vec::new(); state.num_experts()];
        for (slot, expert) in held_slots(state.slots()) {
            of[expert as usize].push(state.rank_of(slot));
        }
        ReplicaRanks { of, loads: state.all_rank_loads().to_vec() }
    }

    /// Returns the cost after a slot has taken another expert.
    fn cost_of(&mut self, state: &State, slot: usize, to: u32) -> f64 {
        let from = state.expert(slot);
        let (fewer, more) = (f64::from(state.count(from) - 1), f64::from(state.count(to) + 1));
        let ReplicaRanks { of, loads } = self;
        let samples = state.num_samples();
        for sample in 0..samples {
            let mut add = |rank: usize, by: f64| loads[rank * samples + sample] += by;
            let (was, is) = (state.replica_loads(from)[sample], state.load(from)[sample] / fewer);
            of[from as usize].iter().for_each(|&rank| add(rank, is - was));
            add(state.rank_of(slot), -is);
            let (was, is) = (state.replica_loads(to)[sample], state.load(to)[sample] / more);
            of[to as usize].iter().for_each(|&rank| add(rank, is - was));
            add(state.rank_of(slot), is);
        }
        let changed =
            || of[from as usize].iter().chain(&of[to as usize]).copied().chain([state.rank_of(slot)]);
        let before = state.all_rank_loads();
        let cost = match samples {
            1 => {
                let unchanged = state.order().iter().rev().map(|&rank| rank as usize);
                let unchanged = unchanged.map(|rank| (loads[rank], before[rank])).find(|(is, was)| is == was);
                changed().map(|rank| loads[rank]).fold(unchanged.map_or(0.0, |(load, _)| load), f64::max)
            }
            _ => {
                let max = |sample| loads[sample..].iter().step_by(samples).copied().fold(0.0, f64::max);
                state.measure().of((0..samples).map(max))
            }
        };
        for rank in changed() {
            let of_rank = rank * samples..(rank + 1) * samples;
            loads[of_rank.clone()].copy_from_slice(&before[of_rank]);
        }
        if state.has_home_nodes() { cost + self.off_node_cost_after(state, slot, to) } else { cost }
    }

    /// Returns the off-node cost after a slot has taken another expert.
    fn off_node_cost_after(&self, state: &State, slot: usize, to: u32) -> f64 {
        let (from, rank) = (state.expert(slot), state.rank_of(slot));
        let of = |expert: u32, replicas: &mut dyn Iterator<Item = usize>, count: u32| -> f64 {
            let load = state.load(expert).iter().sum::<f64>() / f64::from(count);
            replicas.map(|rank| state.load_off_node_cost(expert, rank, load)).sum()
        };
        let before =
            |expert: u32| of(expert, &mut self.of[expert as usize].iter().copied(), state.count(expert));
        let mut held = self.of[from as usize].clone();
        if let Some(place) = held.iter().position(|&other| other == rank) {
            held.swap_remove(place);
        }
        let of_from = of(from, &mut held.into_iter(), state.count(from) - 1);
        let mut with = self.of[to as usize].iter().copied().chain([rank]);
        let of_to = of(to, &mut with, state.count(to) + 1);
        state.off_node_cost() - before(from) - before(to) + of_from + of_to
    }
}

/// A step that removes a duplicate.
#[derive(Debug, Clone, Copy)]
pub(super) enum DuplicateRemoval {
    ReplicaCountChange(ReplicaCountChange),
    Exchange(Exchange),
}

/// Returns the cheapest step that removes the duplicate in `slot` with a cost of at most `max_cost`.
pub(super) fn duplicate_removal(
    state: &State,
    slot: usize,
    max_cost: f64,
    evaluated: &mut usize,
) -> Option<DuplicateRemoval> {
    if !state.may_give(&[slot]) {
        return None;
    }
    *evaluated += state.num_slots();
    let (rank, mut replica_ranks) = (state.rank_of(slot), ReplicaRanks::of(state));
    let mut cheapest = Cheapest { max_len: 1, found: Vec::new() };
    for to in (0..state.num_experts() as u32).filter(|&to| !state.holds(rank, to)) {
        *evaluated += state.num_ranks();
        cheapest.offer(ReplicaCountChange { slot, to, cost: replica_ranks.cost_of(state, slot, to) });
    }
    if let Some(&change) = cheapest.found.first().filter(|change| change.cost <= max_cost) {
        return Some(DuplicateRemoval::ReplicaCountChange(change));
    }
    let tops: Vec<Top> = (0..state.num_samples()).map(|sample| Top::of(state, sample)).collect();
    let mut best = (max_cost, None);
    for other in (0..state.num_ranks()).filter(|&other| other != rank) {
        *evaluated += state.width();
        let removes = |&other_slot: &usize| {
            !state.holds(other, state.expert(slot))
                && !state.holds(rank, state.expert(other_slot))
                && state.may_give(&[other_slot])
        };
        for other_slot in state.slots_of(other).filter(removes) {
            let (load, other_load) =
                (state.replica_loads(state.expert(slot)), state.replica_loads(state.expert(other_slot)));
            let reached = state.measure().of((0..state.num_samples()).map(|sample| {
                let difference = load[sample] - other_load[sample];
                let (this_rank, other_rank) =
                    (state.rank_loads(rank)[sample], state.rank_loads(other)[sample]);
                (this_rank - difference).max(other_rank + difference).max(tops[sample].without(rank, other))
            }));
            let reached =
                reached + state.off_node_cost() + off_node_cost_of_exchange(state, slot, other_slot);
            if reached <= best.0 {
                best = (reached, Some(DuplicateRemoval::Exchange(Exchange::one((slot, other_slot)))));
            }
        }
    }
    best.1
}
