//! Where the search starts: how many slots each expert gets, and a first placement in which no rank holds an expert twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::state::State;
use crate::placement::NO_EXPERT;

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
    while spare > 0 {
        let mut heaviest: BinaryHeap<(u64, Reverse<(u32, u32)>)> = (0..)
            .zip(loads.iter().zip(&counts))
            .filter(|&(_, (_, &count))| count < most)
            .map(|(expert, (&load, &count))| (key(load / f64::from(count)), Reverse((count, expert))))
            .collect();
        while spare > 0
            && let Some(top) = heaviest.peek_mut()
        {
            spare -= 1;
            let Reverse((_, expert)) = top.1;
            let count = &mut counts[expert as usize];
            *count += 1;
            let next = (key(loads[expert as usize] / f64::from(*count)), Reverse((*count, expert)));
            if *count < most {
                let mut top = top;
                *top = next;
            } else {
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        // All experts are on all ranks.
        most = u32::MAX;
    }
    counts
}

/// Fills the slots: experts by the weight of a replica, heaviest first, each on as many of the least loaded ranks as it has
/// replicas. `weights` are those of all samples together.
pub(super) fn pack(state: &mut State, weights: &[f64]) {
    let mut experts: Vec<(Reverse<u64>, u32)> =
        weights.iter().zip(0..).map(|(&weight, expert)| (Reverse(key(weight)), expert)).collect();
    experts.sort_unstable();
    let num_ranks = state.num_ranks();
    let mut totals = vec![0.0; num_ranks];
    let mut free: Vec<usize> = (0..num_ranks).map(|rank| state.slots_of(rank).start).collect();
    let mut lightest: BinaryHeap<Reverse<(u64, u32)>> =
        (0..num_ranks as u32).map(|rank| Reverse((0, rank))).collect();
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for (_, expert) in experts {
        for _ in 0..state.count(expert) {
            let Some(Reverse((_, rank))) = lightest.pop() else {
                left.push(expert);
                continue;
            };
            let slot = &mut free[rank as usize];
            state.fill(*slot, expert);
            *slot += 1;
            totals[rank as usize] += weights[expert as usize];
            if *slot < state.slots_of(rank as usize).end {
                taken.push(rank);
            }
        }
        lightest.extend(taken.drain(..).map(|rank| Reverse((key(totals[rank as usize]), rank))));
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
