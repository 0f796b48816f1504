//! Where the search starts: how many slots each expert gets, and a first placement in which no rank holds an expert twice.

use super::state::State;
use crate::placement::NO_EXPERT;
use crate::solve::tournament::{OUT, Tournament, number, numbered};

/// A finite, non-negative number by its bits, which order as the numbers do, once a zero has no sign.
fn key(load: f64) -> u64 {
    (load + 0.0).to_bits()
}

/// How many slots each expert gets: each spare slot goes to the expert with the largest load per replica, of equal ones to the
/// one with fewer, then to the lower. While another can, no expert gets more slots than there are ranks.
pub(super) fn counts(loads: &[f64], num_slots: usize, num_ranks: usize) -> Vec<u32> {
    let mut counts = vec![1u32; loads.len()];
    let mut spare = num_slots - loads.len();
    let mut most = num_ranks as u32;
    // Its low half is the expert.
    let order = |expert: usize, count: u32, most: u32| match count < most {
        true => {
            numbered(!key(loads[expert] / f64::from(count)), 0) | u128::from(count) << 32 | expert as u128
        }
        false => OUT,
    };
    while spare > 0 {
        let keys = counts.iter().enumerate().map(|(expert, &count)| order(expert, count, most));
        let mut heaviest = Tournament::new(keys, OUT);
        while spare > 0 && heaviest.next() != OUT {
            spare -= 1;
            let expert = heaviest.next() as u32 as usize;
            counts[expert] += 1;
            heaviest.set(expert, order(expert, counts[expert], most));
        }
        // All experts are on all ranks.
        most = u32::MAX;
    }
    counts
}

/// As [`counts`], but no more slots than it takes to have all replicas at most `most` go to experts whose replicas would stay
/// above half of that: two such replicas cannot share a rank, so there is no use in more of them. `None` where the slots are too
/// few or none may have the last ones, or where an expert would have to be on a rank twice.
pub(super) fn counts_below(loads: &[f64], num_slots: usize, num_ranks: usize, most: f64) -> Option<Vec<u32>> {
    let needed = |&load: &f64| (load / most).ceil().max(1.0);
    if loads.iter().map(needed).sum::<f64>() > num_slots as f64
        || loads.iter().any(|load| needed(load) > num_ranks as f64)
    {
        return None;
    }
    let mut counts: Vec<u32> = loads.iter().map(|load| needed(load) as u32).collect();
    let order = |expert: usize, count: u32| match loads[expert] / f64::from(count) {
        light if light <= most / 2.0 && count < num_ranks as u32 => numbered(!key(light), expert),
        _ => OUT,
    };
    let keys = counts.iter().enumerate().map(|(expert, &count)| order(expert, count));
    let mut heaviest = Tournament::new(keys, OUT);
    for _ in counts.iter().sum::<u32>() as usize..num_slots {
        if heaviest.next() == OUT {
            return None;
        }
        let expert = number(heaviest.next());
        counts[expert] += 1;
        heaviest.set(expert, order(expert, counts[expert]));
    }
    Some(counts)
}

/// Fills the slots: experts by the weight of a replica, heaviest first, each on as many of the least loaded ranks as it has
/// replicas. `weights` are those of all samples together.
pub(super) fn pack(state: &mut State, weights: &[f64]) {
    // Heaviest first: by the complement of each weight.
    let mut experts: Vec<u128> =
        weights.iter().enumerate().map(|(expert, &weight)| numbered(!key(weight), expert)).collect();
    experts.sort_unstable();
    let num_ranks = state.num_ranks();
    let mut totals = vec![0.0; num_ranks];
    let mut free: Vec<usize> = (0..num_ranks).map(|rank| state.slots_of(rank).start).collect();
    let mut lightest = Tournament::new((0..num_ranks).map(|rank| numbered(0, rank)), OUT);
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for expert in experts.into_iter().map(number) {
        for _ in 0..state.count(expert as u32) {
            if lightest.next() == OUT {
                left.push(expert as u32);
                continue;
            }
            let rank = number(lightest.next());
            state.fill(free[rank], expert as u32);
            free[rank] += 1;
            totals[rank] += weights[expert];
            lightest.set(rank, OUT);
            if free[rank] < state.slots_of(rank).end {
                taken.push(rank);
            }
        }
        taken.drain(..).for_each(|rank| lightest.set(rank, numbered(key(totals[rank]), rank)));
    }
    // Ranks with room hold these already.
    for expert in left {
        let rank = (0..num_ranks)
            .find(|&rank| free[rank] < state.slots_of(rank).end)
            .expect("as many slots as replicas");
        let slot = free[rank];
        free[rank] += 1;
        match partner(state, weights, rank, expert) {
            Some(other) => {
                state.fill(slot, state.expert(other));
                state.fill(other, expert);
            }
            None => state.fill(slot, expert),
        }
    }
}

/// A slot that may take `expert` in exchange for what it holds, which goes to `rank`; of all, the one with the most similar
/// weight.
fn partner(state: &State, weights: &[f64], rank: usize, expert: u32) -> Option<usize> {
    if !state.holds(rank, expert) {
        return None;
    }
    let mut best = (f64::INFINITY, None);
    for other in (0..state.num_ranks()).filter(|&other| other != rank && !state.holds(other, expert)) {
        for slot in state.slots_of(other) {
            let held = state.expert(slot);
            if held == NO_EXPERT || state.holds(rank, held) {
                continue;
            }
            let difference = (weights[held as usize] - weights[expert as usize]).abs();
            if difference < best.0 {
                best = (difference, Some(slot));
            }
        }
    }
    best.1
}
