//! What the search may do next: exchanges between the most loaded rank and another, and slots that change their expert.

use super::state::State;
use crate::placement::held_slots;

/// Less than this is no improvement but rounding.
const LEAST_GAIN: f64 = 1e-10;

/// With this much of its excess over the mean taken from the most loaded rank, no better partner is looked for.
const GOOD_ENOUGH: f64 = 0.5;

/// Slots to exchange, of one rank with slots of another: one pair, or two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    pairs: [(usize, usize); 2],
    len: usize,
}

impl Exchange {
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.pairs[..self.len]
    }

    fn one(pair: (usize, usize)) -> Self {
        Exchange { pairs: [pair; 2], len: 1 }
    }
}

/// Whether exchanging leaves no expert twice on either rank that was not there twice before, or may.
fn is_clean(state: &State, pairs: &[(usize, usize)]) -> bool {
    pairs.iter().all(|&(one, other)| {
        state.may_take(state.rank_of(other), state.expert(one))
            && state.may_take(state.rank_of(one), state.expert(other))
    })
}

/// Of one sample: the exchange of one slot of the most loaded rank, with one of its node, that leaves it and its partner least
/// loaded.
///
/// Slots lie by weight, so that for each slot of the one rank the two that would level both best are side by side.
pub(super) fn exchange(state: &State, looked_at: &mut usize) -> Option<Exchange> {
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
        *looked_at += 2 * state.width();
        let half = (load - other_load) / 2.0;
        let (first, theirs) = (state.slots_of(rank).start, state.slot_weights(rank));
        let mut next = 0;
        for (mine, &moved) in state.slots_of(hottest).zip(state.slot_weights(hottest)) {
            while next < theirs.len() && theirs[next] < moved - half {
                next += 1;
            }
            if next > 0 {
                let reached = other_load + (moved - theirs[next - 1]);
                best.offer(state, reached, || Exchange::one((mine, first + next - 1)));
            }
            if next < theirs.len() {
                let reached = load - (moved - theirs[next]);
                best.offer(state, reached, || Exchange::one((mine, first + next)));
            }
        }
    }
    best.exchange
}

/// As [`exchange`], of two slots at once: many more differences to choose from. Ranks of many slots have enough without.
pub(super) fn exchange_of_two(state: &State, looked_at: &mut usize) -> Option<Exchange> {
    const MOST_SLOTS: usize = 64;
    if state.width() > MOST_SLOTS {
        return None;
    }
    let hottest = *state.order().last()? as usize;
    let load = state.rank_loads(hottest)[0];
    let mut mine: Vec<(f64, (usize, usize))> = pairs_of(state, hottest).collect();
    mine.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut best = Best::new(load, state);
    for &rank in state.order() {
        let (rank, other_load) = (rank as usize, state.rank_loads(rank as usize)[0]);
        if best.is_out_of_reach(load, other_load) || best.is_good_enough() || rank == hottest {
            break;
        }
        if !state.are_on_one_node(rank, hottest) {
            continue;
        }
        *looked_at += state.width() * state.width();
        let half = (load - other_load) / 2.0;
        for (other, (c, d)) in pairs_of(state, rank) {
            let next = mine.partition_point(|&(sum, _)| sum < other + half);
            for &(sum, (a, b)) in &mine[next.saturating_sub(1)..mine.len().min(next + 1)] {
                let moved = sum - other;
                let reached = (load - moved).max(other_load + moved);
                best.offer(state, reached, || Exchange { pairs: [(a, c), (b, d)], len: 2 });
            }
        }
    }
    best.exchange
}

/// Each two slots of a rank, and what they weigh.
fn pairs_of(state: &State, rank: usize) -> impl Iterator<Item = (f64, (usize, usize))> {
    let (first, weights) = (state.slots_of(rank).start, state.slot_weights(rank));
    let with_lower = move |a: usize| (0..a).map(move |b| (weights[a] + weights[b], (first + a, first + b)));
    (0..weights.len()).flat_map(with_lower)
}

/// The best exchange so far.
struct Best {
    /// What it leaves on the more loaded of its two ranks; without one, less than what is there.
    load: f64,
    enough: f64,
    exchange: Option<Exchange>,
}

impl Best {
    fn new(load: f64, state: &State) -> Self {
        let mean = state.mean(0);
        Best {
            load: load - LEAST_GAIN * mean,
            enough: mean + (1.0 - GOOD_ENOUGH) * (load - mean),
            exchange: None,
        }
    }

    fn is_good_enough(&self) -> bool {
        self.load <= self.enough
    }

    /// Whether no exchange between ranks of these loads is better: one of them keeps half of both at least.
    fn is_out_of_reach(&self, load: f64, other_load: f64) -> bool {
        (load + other_load) / 2.0 >= self.load
    }

    #[inline(always)]
    fn offer(&mut self, state: &State, load: f64, exchange: impl FnOnce() -> Exchange) {
        if load < self.load {
            let exchange = exchange();
            if is_clean(state, exchange.pairs()) {
                (self.load, self.exchange) = (load, Some(exchange));
            }
        }
    }
}

/// Of several samples, or with nodes: the exchange of one slot of a rank that is the most loaded in some sample that lowers the
/// cost most; where there is none, of one slot that is not at home.
pub(super) fn exchange_for_all(state: &State, looked_at: &mut usize) -> Option<Exchange> {
    let tops: Vec<Top> = (0..state.num_samples()).map(|sample| Top::of(state, sample)).collect();
    let cost = state.measure().of(tops.iter().map(|top| top.loads[0]));
    // Ranks by what the samples would gain were they empty.
    let mut gains = vec![0.0; state.num_ranks()];
    tops.iter().for_each(|top| gains[top.ranks[0]] += top.loads[0] - top.loads[1]);
    let mut hot: Vec<usize> = tops.iter().map(|top| top.ranks[0]).collect();
    hot.sort_unstable_by(|&a, &b| gains[b].total_cmp(&gains[a]).then(a.cmp(&b)));
    hot.dedup();
    for rank in hot {
        let found = exchange_of_rank(state, &tops, cost, rank, |_| true, looked_at);
        if found.is_some() {
            return found;
        }
    }
    if state.tolls() > 0.0 {
        for rank in 0..state.num_ranks() {
            let away = |slot| !state.is_home(state.expert(slot), rank);
            let found = exchange_of_rank(state, &tops, cost, rank, away, looked_at);
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

/// The exchange of one `wanted` slot of a rank that lowers the cost most.
fn exchange_of_rank(
    state: &State,
    tops: &[Top],
    cost: f64,
    rank: usize,
    wanted: impl Fn(usize) -> bool,
    looked_at: &mut usize,
) -> Option<Exchange> {
    let mut best = (cost - LEAST_GAIN * cost, None);
    let tolls = state.has_homes();
    let wanted: Vec<usize> = state.slots_of(rank).filter(|&slot| wanted(slot)).collect();
    for other in (0..state.num_ranks()).filter(|&other| other != rank && !wanted.is_empty()) {
        // What both would have to be below for this pair to be of use.
        let without: Vec<f64> = tops.iter().map(|top| top.without(rank, other)).collect();
        if !tolls && state.measure().of(without.iter().copied()) >= best.0 {
            continue;
        }
        let (loads, other_loads) = (state.rank_loads(rank), state.rank_loads(other));
        for &mine in &wanted {
            *looked_at += state.width();
            let moved = state.weights(state.expert(mine));
            for theirs in state.slots_of(other) {
                let back = state.weights(state.expert(theirs));
                let mut reached = state.measure().of(without.iter().enumerate().map(|(sample, without)| {
                    let difference = moved[sample] - back[sample];
                    let both = (loads[sample] - difference).max(other_loads[sample] + difference);
                    both.max(*without)
                }));
                if tolls {
                    reached += toll_of_exchange(state, mine, theirs);
                }
                if reached < best.0 && is_clean(state, &[(mine, theirs)]) {
                    best = (reached, Some(Exchange::one((mine, theirs))));
                }
            }
        }
    }
    best.1
}

/// How much more than before is to be paid for what is not at home once two slots have exchanged their experts.
fn toll_of_exchange(state: &State, one: usize, other: usize) -> f64 {
    let (a, b) = (state.rank_of(one), state.rank_of(other));
    if state.are_on_one_node(a, b) {
        return 0.0;
    }
    let change = |expert, from, to| state.toll_of_replica(expert, to) - state.toll_of_replica(expert, from);
    change(state.expert(one), a, b) + change(state.expert(other), b, a)
}

/// The most loaded ranks of a sample.
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

    /// The load of the most loaded rank but for these two.
    fn without(&self, one: usize, other: usize) -> f64 {
        let place = (0..3).find(|&place| self.ranks[place] != one && self.ranks[place] != other);
        place.map_or(0.0, |place| self.loads[place])
    }
}

/// A slot that changes its expert, and the cost with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recount {
    pub slot: usize,
    pub to: u32,
    pub cost: f64,
}

/// Slots that may change their expert: those of the least loaded ranks to one that a most loaded rank holds, and those of the
/// most loaded ranks to any. The `most` that cost least, cheapest first; the cost may be above the present one, since
/// exchanges come after it. Looks no further once it has looked at `left`.
pub(super) fn recounts(state: &State, most: usize, left: usize, looked_at: &mut usize) -> Vec<Recount> {
    const COLD_RANKS: usize = 16;
    let holders = Holders::of(state);
    let mut hot: Vec<usize> =
        (0..state.num_samples()).map(|sample| Top::of(state, sample).ranks[0]).collect();
    hot.sort_unstable();
    hot.dedup();
    let mut wanted: Vec<u32> =
        hot.iter().flat_map(|&rank| state.slots_of(rank)).map(|slot| state.expert(slot)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut cheapest = Cheapest { most, found: Vec::new() };
    let cold = state.order().iter().map(|&rank| rank as usize).filter(|rank| !hot.contains(rank));
    for rank in cold.take(COLD_RANKS) {
        for slot in state.slots_of(rank).filter(|&slot| state.count(state.expert(slot)) > 1) {
            let from = state.expert(slot);
            for &to in wanted.iter().filter(|&&to| to != from && state.may_take(rank, to)) {
                if *looked_at >= left {
                    return cheapest.found;
                }
                *looked_at += state.num_ranks();
                cheapest.offer(Recount { slot, to, cost: holders.cost_of(state, slot, to) });
            }
        }
    }
    for &rank in &hot {
        for slot in state.slots_of(rank).filter(|&slot| state.count(state.expert(slot)) > 1) {
            let from = state.expert(slot);
            for to in (0..state.num_experts() as u32).filter(|&to| to != from && state.may_take(rank, to)) {
                if *looked_at >= left {
                    return cheapest.found;
                }
                *looked_at += state.num_ranks();
                cheapest.offer(Recount { slot, to, cost: holders.cost_of(state, slot, to) });
            }
        }
    }
    if state.tolls() > 0.0 {
        let away = |&slot: &usize| {
            state.count(state.expert(slot)) > 1 && !state.is_home(state.expert(slot), state.rank_of(slot))
        };
        for slot in (0..state.num_slots()).filter(away) {
            let rank = state.rank_of(slot);
            let from = state.expert(slot);
            let at_home = |&to: &u32| to != from && state.is_home(to, rank) && state.may_take(rank, to);
            for to in (0..state.num_experts() as u32).filter(at_home) {
                if *looked_at >= left {
                    return cheapest.found;
                }
                *looked_at += state.num_ranks();
                cheapest.offer(Recount { slot, to, cost: holders.cost_of(state, slot, to) });
            }
        }
    }
    cheapest.found
}

/// The recounts that cost least, cheapest first and of equal ones the one that came first.
struct Cheapest {
    most: usize,
    found: Vec<Recount>,
}

impl Cheapest {
    fn offer(&mut self, recount: Recount) {
        let place = self.found.partition_point(|other| other.cost <= recount.cost);
        if place < self.most {
            self.found.insert(place, recount);
            self.found.truncate(self.most);
        }
    }
}

/// The ranks that hold each expert, once for each slot.
struct Holders(Vec<Vec<usize>>);

impl Holders {
    fn of(state: &State) -> Self {
        let mut holders = vec![Vec::new(); state.num_experts()];
        for (slot, expert) in held_slots(state.slots()) {
            holders[expert as usize].push(state.rank_of(slot));
        }
        Holders(holders)
    }

    /// The cost once a slot has changed its expert.
    fn cost_of(&self, state: &State, slot: usize, to: u32) -> f64 {
        let from = state.expert(slot);
        let (fewer, more) = (f64::from(state.count(from) - 1), f64::from(state.count(to) + 1));
        let mut loads = state.all_rank_loads().to_vec();
        let samples = state.num_samples();
        for sample in 0..samples {
            let mut change = |rank: usize, by: f64| loads[rank * samples + sample] += by;
            let (was, is) = (state.weights(from)[sample], state.load(from)[sample] / fewer);
            self.0[from as usize].iter().for_each(|&rank| change(rank, is - was));
            change(state.rank_of(slot), -is);
            let (was, is) = (state.weights(to)[sample], state.load(to)[sample] / more);
            self.0[to as usize].iter().for_each(|&rank| change(rank, is - was));
            change(state.rank_of(slot), is);
        }
        let most = |sample| loads[sample..].iter().step_by(samples).copied().fold(0.0, f64::max);
        let unevenness = state.measure().of((0..samples).map(most));
        if state.has_homes() { unevenness + self.tolls_of(state, slot, to) } else { unevenness }
    }

    /// What is to be paid for what is not at home once a slot has changed its expert.
    fn tolls_of(&self, state: &State, slot: usize, to: u32) -> f64 {
        let (from, rank) = (state.expert(slot), state.rank_of(slot));
        let of = |expert: u32, replicas: &mut dyn Iterator<Item = usize>, count: u32| -> f64 {
            let load = state.load(expert).iter().sum::<f64>() / f64::from(count);
            replicas.map(|rank| state.toll(expert, rank, load)).sum()
        };
        let before =
            |expert: u32| of(expert, &mut self.0[expert as usize].iter().copied(), state.count(expert));
        let mut held = self.0[from as usize].clone();
        if let Some(place) = held.iter().position(|&other| other == rank) {
            held.swap_remove(place);
        }
        let of_from = of(from, &mut held.into_iter(), state.count(from) - 1);
        let mut with = self.0[to as usize].iter().copied().chain([rank]);
        let of_to = of(to, &mut with, state.count(to) + 1);
        state.tolls() - before(from) - before(to) + of_from + of_to
    }
}

/// What rids a slot of an expert that its rank holds twice.
#[derive(Debug, Clone, Copy)]
pub(super) enum Riddance {
    Recount(Recount),
    Exchange(Exchange),
}

/// The cheapest way to rid `slot` of an expert that its rank holds twice for no more than `most`.
pub(super) fn riddance(state: &State, slot: usize, most: f64, looked_at: &mut usize) -> Option<Riddance> {
    *looked_at += state.num_slots();
    let (rank, holders) = (state.rank_of(slot), Holders::of(state));
    let mut cheapest = Cheapest { most: 1, found: Vec::new() };
    for to in (0..state.num_experts() as u32).filter(|&to| !state.holds(rank, to)) {
        *looked_at += state.num_ranks();
        cheapest.offer(Recount { slot, to, cost: holders.cost_of(state, slot, to) });
    }
    if let Some(&recount) = cheapest.found.first().filter(|recount| recount.cost <= most) {
        return Some(Riddance::Recount(recount));
    }
    let tops: Vec<Top> = (0..state.num_samples()).map(|sample| Top::of(state, sample)).collect();
    let mut best = (most, None);
    for other in (0..state.num_ranks()).filter(|&other| other != rank) {
        *looked_at += state.width();
        let rids = |&theirs: &usize| {
            !state.holds(other, state.expert(slot)) && !state.holds(rank, state.expert(theirs))
        };
        for theirs in state.slots_of(other).filter(rids) {
            let (moved, back) = (state.weights(state.expert(slot)), state.weights(state.expert(theirs)));
            let reached = state.measure().of((0..state.num_samples()).map(|sample| {
                let difference = moved[sample] - back[sample];
                let (mine, its) = (state.rank_loads(rank)[sample], state.rank_loads(other)[sample]);
                (mine - difference).max(its + difference).max(tops[sample].without(rank, other))
            }));
            let reached = reached + state.tolls() + toll_of_exchange(state, slot, theirs);
            if reached <= best.0 {
                best = (reached, Some(Riddance::Exchange(Exchange::one((slot, theirs)))));
            }
        }
    }
    best.1
}
