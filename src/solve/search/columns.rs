//! Exchanges of the most loaded rank with all others at once, for one sample and ranks of few slots. Each lane is a
//! rank.

use super::lanes::{Kernel, LANES, Lanes, Vector, Vectors};
use super::moves::{Exchange, LEAST_GAIN, is_allowed};
use super::state::State;

/// The most slots of a rank. Wider ranks have too many pairs of slots.
const MOST_SLOTS: usize = 5;

/// A step counts as so many evaluated exchanges, and two for each rank.
const STEP_EFFORT: usize = 64;

/// Sums of a few 32-bit numbers may be wrong by this part.
const ROUNDING: f64 = 1e-6;

/// The loads of the slots and pairs of slots of all ranks.
pub(super) struct Columns {
    vectors: Vectors,
    /// The slots of each column: one, or two that differ.
    slots: Vec<[usize; 2]>,
    /// Slots of the widest rank. So many columns have one slot.
    width: usize,
    /// The pairs that a rank gives. With four slots on each, the exchange of the other pairs leaves the same loads.
    num_pairs: usize,
    rank_loads: Vec<Lanes>,
    /// `[blocks of ranks][columns]`. Infinite where a rank lacks slots.
    loads: Vec<Lanes>,
    /// The larger load of both ranks after the best exchange of the most loaded rank with each.
    reached: Vec<Lanes>,
    /// The columns of the two ranks of an exchange.
    given: Vec<f64>,
    given_lanes: Vec<f32>,
    taken: Vec<f64>,
    /// The last partner of each rank.
    partners: Vec<usize>,
}

impl Columns {
    /// Returns whether there is one sample, the ranks have few slots, and nodes do not matter.
    pub fn fit(state: &State) -> bool {
        state.num_samples() == 1 && state.width() <= MOST_SLOTS && !state.has_home_nodes()
    }

    pub fn new(state: &State) -> Columns {
        let (width, blocks) = (state.width(), state.num_ranks().div_ceil(LANES));
        let pairs = (0..width).flat_map(|a| (a + 1..width).map(move |b| [a, b]));
        let slots: Vec<[usize; 2]> = (0..width).map(|slot| [slot; 2]).chain(pairs).collect();
        let are_halves = width == 4 && (0..state.num_ranks()).all(|rank| state.slots_of(rank).len() == width);
        let none = Lanes([f32::INFINITY; LANES]);
        let mut columns = Columns {
            vectors: Vectors::detect(),
            width,
            num_pairs: if are_halves { width - 1 } else { slots.len() - width },
            rank_loads: vec![Lanes::ZERO; blocks],
            loads: vec![none; blocks * slots.len()],
            reached: vec![none; blocks],
            given: Vec::new(),
            given_lanes: Vec::new(),
            taken: Vec::new(),
            partners: vec![usize::MAX; state.num_ranks()],
            slots,
        };
        (0..state.num_ranks()).for_each(|rank| columns.update(state, rank));
        columns
    }

    /// Makes the best exchange of the most loaded rank again and again. Up to `most_fruitless` in a row may fail to
    /// lower the maximum. Stops at `target`, or when the effort `left` is spent. Keeps the best slots.
    pub fn improve(&mut self, state: &mut State, target: f64, left: &mut usize, most_fruitless: usize) {
        let (mut load, mut hottest) = most(state.all_rank_loads());
        let (mut best, mut kept, mut fruitless) = (load, Vec::new(), 0);
        while *left > 0 && best > target {
            *left = left.saturating_sub(STEP_EFFORT + 2 * state.num_ranks());
            let better = best * (1.0 - LEAST_GAIN);
            let limit = if fruitless < most_fruitless { f64::INFINITY } else { better };
            let Some((reached, exchange)) = self.best_exchange(state, hottest, limit) else { break };
            if load <= best && reached >= better {
                kept.clear();
                kept.extend_from_slice(state.slots());
            }
            self.swap(state, &exchange);
            (load, hottest) = most(state.all_rank_loads());
            (best, fruitless) = if load < better { (load, 0) } else { (best, fruitless + 1) };
        }
        match load > best {
            true => state.replace(&kept),
            false => state.sort_ranks(),
        }
    }

    fn swap(&mut self, state: &mut State, exchange: &Exchange) {
        let (one, other) = exchange.pairs()[0];
        let (one, other) = (state.rank_of(one), state.rank_of(other));
        state.swap_unordered(exchange.pairs());
        self.update(state, one);
        self.update(state, other);
        (self.partners[one], self.partners[other]) = (other, one);
    }

    fn update(&mut self, state: &State, rank: usize) {
        let (block, lane) = (rank / LANES, rank % LANES);
        self.rank_loads[block].0[lane] = state.rank_loads(rank)[0] as f32;
        let loads = state.slot_loads(rank);
        for (column, &[a, b]) in self.loads[block * self.slots.len()..].iter_mut().zip(&self.slots) {
            if b < loads.len() {
                column.0[lane] = (if a == b { loads[a] } else { loads[a] + loads[b] }) as f32;
            }
        }
    }

    /// Returns the exchange of one or two slots of a rank that minimises the larger load of both ranks, if that is
    /// below `limit`, and that load. The two ranks are not each other's last partners.
    fn best_exchange(&mut self, state: &State, rank: usize, limit: f64) -> Option<(f64, Exchange)> {
        let load = state.rank_loads(rank)[0];
        copy_columns(&self.slots, state.slot_loads(rank), f64::NEG_INFINITY, &mut self.given);
        self.given_lanes.clear();
        self.given_lanes.extend(self.given.iter().map(|&load| load as f32));
        let vectors = self.vectors;
        // The kernel has no powers.
        vectors.run(3, Reached { load: load as f32, columns: self });
        self.reached[rank / LANES].0[rank % LANES] = f32::INFINITY;
        let (mut limit, mut best) = (limit, None);
        loop {
            let (reached, other) = least(&self.reached);
            let (reached, rounding) = (f64::from(reached), ROUNDING * load);
            if reached - rounding >= limit || reached == f64::INFINITY {
                return best;
            }
            self.reached[other / LANES].0[other % LANES] = f32::INFINITY;
            if self.partners[rank] == other && self.partners[other] == rank {
                continue;
            }
            copy_columns(&self.slots, state.slot_loads(other), f64::INFINITY, &mut self.taken);
            // Mostly the best exchange is allowed, so that few others are considered.
            let found = self.best_between(state, rank, other, limit.min(reached + rounding));
            if let Some(found) = found.or_else(|| self.best_between(state, rank, other, limit)) {
                (limit, best) = (found.0, Some(found));
            }
        }
    }

    /// Returns the best exchange between two ranks that keeps both below `limit`.
    fn best_between(&self, state: &State, rank: usize, other: usize, limit: f64) -> Option<(f64, Exchange)> {
        let (load, other_load) = (state.rank_loads(rank)[0], state.rank_loads(other)[0]);
        let (first, other_first) = (state.slots_of(rank).start, state.slots_of(other).start);
        let mut best = (limit, None);
        for columns in [0..self.width, self.width..self.slots.len()] {
            let slots = &self.slots[columns.clone()];
            for (given, &[a, b]) in self.given[columns.clone()].iter().zip(slots) {
                for (taken, &[c, d]) in self.taken[columns.clone()].iter().zip(slots) {
                    let moved = given - taken;
                    let reached = (load - moved).max(other_load + moved);
                    if reached < best.0 {
                        let pairs = [(first + a, other_first + c), (first + b, other_first + d)];
                        let exchange = Exchange::new(pairs, if a == b { 1 } else { 2 });
                        if is_allowed(state, &exchange) {
                            best = (reached, Some(exchange));
                        }
                    }
                }
            }
        }
        best.1.map(|exchange| (best.0, exchange))
    }
}

/// Copies the loads of a rank's slots and pairs of slots, and `none` where it lacks slots.
fn copy_columns(slots: &[[usize; 2]], loads: &[f64], none: f64, columns: &mut Vec<f64>) {
    columns.clear();
    columns.extend(slots.iter().map(|&[a, b]| match loads.get(b) {
        Some(load) => {
            if a == b {
                *load
            } else {
                loads[a] + load
            }
        }
        None => none,
    }));
}

/// Returns the largest load, and its first place.
fn most(loads: &[f64]) -> (f64, usize) {
    let mut lanes = [0.0; 8];
    let (chunks, rest) = loads.as_chunks::<8>();
    for chunk in chunks {
        for (most, &load) in lanes.iter_mut().zip(chunk) {
            *most = if load > *most { load } else { *most };
        }
    }
    let most = lanes.iter().chain(rest).copied().fold(0.0, f64::max);
    (most, loads.iter().position(|&load| load == most).unwrap_or(0))
}

/// Returns the least number, and its first lane.
fn least(numbers: &[Lanes]) -> (f32, usize) {
    let mut lanes = numbers[0].0;
    for block in &numbers[1..] {
        for (least, &number) in lanes.iter_mut().zip(&block.0) {
            *least = if number < *least { number } else { *least };
        }
    }
    let least = lanes.into_iter().fold(f32::INFINITY, f32::min);
    let place = numbers.iter().flat_map(|block| &block.0).position(|&number| number == least);
    (least, place.unwrap_or(0))
}

/// Computes what exchanges with each rank reach.
struct Reached<'a> {
    load: f32,
    columns: &'a mut Columns,
}

impl Kernel for Reached<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) {
        let Columns { slots, width, num_pairs, rank_loads, loads, reached, given_lanes, .. } = self.columns;
        let (load, half) = (V::splat(self.load), V::splat(0.5));
        let (given_slots, given_pairs) = given_lanes.split_at(*width);
        let given_pairs = &given_pairs[..*num_pairs];
        for block in 0..reached.len() {
            let other_load = V::load(&rank_loads[block]);
            let wanted = load.sub(other_load).mul(half);
            let (taken_slots, taken_pairs) = loads[block * slots.len()..][..slots.len()].split_at(*width);
            let mut least = V::splat(f32::INFINITY);
            for (given, taken) in [(given_slots, taken_slots), (given_pairs, taken_pairs)] {
                for taken in taken {
                    let wanted = wanted.add(V::load(taken));
                    for &given in given {
                        let missing = V::splat(given).sub(wanted);
                        least = least.min(missing.max(V::zero().sub(missing)));
                    }
                }
            }
            load.add(other_load).mul(half).add(least).store(&mut reached[block]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::lanes::ALL_VECTORS;
    use super::super::measure::Measure;
    use super::*;
    use crate::placement::{NO_EXPERT, Shape, held_slots};
    use crate::solve::pinned::Pins;

    /// Places experts of loads 1 / 1, 1 / 2 and so on in order, the first ones twice.
    fn placed(num_experts: usize, num_slots: usize, num_ranks: usize) -> State {
        let loads: Vec<f64> = (1..=num_experts).map(|n| 1.0 / n as f64).collect();
        let mut counts = vec![1; num_experts];
        counts[..num_slots - num_experts].fill(2);
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let mut state = State::new(loads, Arc::new(Measure::Mean), counts, shape, None, None);
        (0..num_slots).for_each(|slot| state.place(slot, (slot % num_experts) as u32));
        state.update_all();
        state
    }

    #[test]
    fn best_exchange_lowers_both_ranks_most() {
        for (num_experts, num_slots, num_ranks) in [(100, 120, 30), (50, 66, 22), (30, 40, 20), (90, 100, 20)]
        {
            let state = placed(num_experts, num_slots, num_ranks);
            let hottest = *state.order().last().unwrap() as usize;
            let mut columns = Columns::new(&state);
            let (reached, exchange) = columns.best_exchange(&state, hottest, f64::INFINITY).unwrap();
            copy_columns(&columns.slots, state.slot_loads(hottest), f64::NEG_INFINITY, &mut columns.given);
            let mut least = f64::INFINITY;
            for other in (0..num_ranks).filter(|&other| other != hottest) {
                copy_columns(&columns.slots, state.slot_loads(other), f64::INFINITY, &mut columns.taken);
                let found = columns.best_between(&state, hottest, other, f64::INFINITY);
                least = found.map_or(least, |(reached, _)| reached.min(least));
            }
            assert_eq!(reached, least);
            let (one, other) = exchange.pairs()[0];
            let mut after = state.clone();
            after.swap(exchange.pairs());
            let both = [state.rank_of(one), state.rank_of(other)].map(|rank| after.rank_loads(rank)[0]);
            assert!((both[0].max(both[1]) - reached).abs() < 1e-12);
        }
    }

    /// The least that the larger load of the two ranks of an exchange can be: every rank's pairs of slots are tried.
    /// A rank takes no expert that it holds, and gives no expert of `pinned`.
    fn least_of_all_exchanges(state: &State, hottest: usize, pinned: &[Vec<u32>]) -> f64 {
        let experts = |rank: usize| state.slots()[state.slots_of(rank)].to_vec();
        let sets = |rank: usize| {
            let held = experts(rank);
            let pairs = (0..held.len()).flat_map(|a| (a..held.len()).map(move |b| (a, b)));
            let free = |expert: &u32| !pinned[rank].contains(expert);
            let set = |(a, b): (usize, usize)| if a == b { vec![held[a]] } else { vec![held[a], held[b]] };
            pairs.map(set).filter(|set| set.iter().all(free)).collect::<Vec<_>>()
        };
        let load = |set: &[u32]| set.iter().map(|&expert| state.replica_loads(expert)[0]).sum::<f64>();
        let all = load(&experts(hottest));
        let mut least = f64::INFINITY;
        for other in (0..state.num_ranks()).filter(|&other| other != hottest) {
            let (held, other_held) = (experts(hottest), experts(other));
            let other_all = load(&other_held);
            for given in sets(hottest).iter().filter(|set| set.iter().all(|one| !other_held.contains(one))) {
                let is_taken =
                    |set: &&Vec<u32>| set.len() == given.len() && set.iter().all(|one| !held.contains(one));
                for taken in sets(other).iter().filter(is_taken) {
                    let moved = load(given) - load(taken);
                    least = least.min((all - moved).max(other_all + moved));
                }
            }
        }
        least
    }

    #[test]
    fn best_exchange_is_the_best_of_all_with_unequal_ranks_and_pins() {
        let shapes = [(6, 5), (17, 4), (33, 3), (40, 5), (9, 1)];
        for ((num_ranks, width), seed) in
            shapes.into_iter().flat_map(|shape| (1..=20u64).map(move |seed| (shape, seed)))
        {
            let mut random = seed * 7_919;
            let mut next = |below: usize| {
                random = (random * 16_807) % 2_147_483_647;
                random as usize % below
            };
            let rank_num_slots: Vec<u32> = (0..num_ranks)
                .map(|rank| if rank % 3 == 0 { 1 + next(width) } else { width } as u32)
                .collect();
            let num_slots: u32 = rank_num_slots.iter().sum();
            let num_experts = num_slots as usize - num_ranks / 3;
            let shape = Shape::new(num_experts, num_ranks * width, num_ranks).unwrap();
            let loads: Vec<f64> = (0..num_experts).map(|_| (1 + next(1_000)) as f64).collect();
            let mut counts = vec![1; num_experts];
            counts[..num_slots as usize - num_experts].fill(2);
            let mut slots = vec![NO_EXPERT; num_ranks * width];
            let mut pins = slots.clone();
            let mut expert = 0;
            for (rank, &held) in rank_num_slots.iter().enumerate() {
                for slot in rank * width..rank * width + held as usize {
                    slots[slot] = (expert % num_experts) as u32;
                    expert += 1;
                    if next(4) == 0 {
                        pins[slot] = slots[slot];
                    }
                }
            }
            let pinned: Vec<Vec<u32>> =
                pins.chunks_exact(width).map(|pins| held_slots(pins).map(|(_, pin)| pin).collect()).collect();
            let pins = Arc::new(Pins::new(shape, &pins));
            let mean = Arc::new(Measure::Mean);
            let mut state = State::new(loads, mean, counts, shape, Some(&rank_num_slots), Some(pins));
            slots.iter().enumerate().for_each(|(slot, &expert)| state.place(slot, expert));
            state.update_all();
            for vectors in ALL_VECTORS.iter().copied().filter(|vectors| vectors.is_present()) {
                let mut columns = Columns { vectors, ..Columns::new(&state) };
                for &hottest in state.order().iter().rev().take(3) {
                    let expected = least_of_all_exchanges(&state, hottest as usize, &pinned);
                    let found = columns.best_exchange(&state, hottest as usize, f64::INFINITY);
                    let reached = found.map_or(f64::INFINITY, |(reached, _)| reached);
                    assert!(
                        reached == expected || (reached - expected).abs() < 1e-9 * expected,
                        "{num_ranks} ranks of {width} slots, seed {seed}, rank {hottest}: {reached}, not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn improve_returns_the_same_slots_with_every_kind_of_vector() {
        for (num_experts, num_slots, num_ranks) in [(100, 120, 30), (50, 66, 22), (30, 40, 20), (90, 100, 20)]
        {
            let improved = |vectors: Vectors| {
                let mut state = placed(num_experts, num_slots, num_ranks);
                let mut columns = Columns { vectors, ..Columns::new(&state) };
                columns.improve(&mut state, 0.0, &mut 100_000, 4);
                state.slots().to_vec()
            };
            let expected = improved(Vectors::Baseline);
            assert_ne!(expected, placed(num_experts, num_slots, num_ranks).slots());
            for &vectors in ALL_VECTORS.iter().filter(|vectors| vectors.is_present()) {
                assert_eq!(improved(vectors), expected, "{vectors:?}");
            }
        }
    }
}
