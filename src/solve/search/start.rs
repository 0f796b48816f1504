//! The start of the search: replica counts, and a first placement without duplicates.

use super::state::State;
use crate::placement::NO_EXPERT;
use crate::solve::pinned::Pins;
use crate::solve::tournament::{OUT, Tournament, number, numbered};

/// Returns the bits of a number that is finite and not negative. Adding zero removes the sign of -0, so that
/// the bits order as the numbers do.
fn key(load: f64) -> u64 {
    (load + 0.0).to_bits()
}

/// Returns the replica counts. Each spare slot goes to the expert with the largest load per replica. Ties go
/// to the expert with fewer replicas, then to the lower one. No expert gets more slots than there are ranks
/// while another can take them. `least` is what an expert gets at least; missing values are 1.
pub(super) fn replica_counts(loads: &[f64], num_slots: usize, num_ranks: usize, least: &[u32]) -> Vec<u32> {
    let mut counts = vec![1u32; loads.len()];
    counts.iter_mut().zip(least).for_each(|(count, &least)| *count = least.max(1));
    let mut spare = num_slots - counts.iter().sum::<u32>() as usize;
    let mut max_count = num_ranks as u32;
    // The low half is the expert.
    let order = |expert: usize, count: u32, max: u32| match count < max {
        true => {
            numbered(!key(loads[expert] / f64::from(count)), 0) | u128::from(count) << 32 | expert as u128
        }
        false => OUT,
    };
    while spare > 0 {
        let keys = counts.iter().enumerate().map(|(expert, &count)| order(expert, count, max_count));
        let mut heaviest = Tournament::new(keys, OUT);
        while spare > 0 && heaviest.next() != OUT {
            spare -= 1;
            let expert = heaviest.next() as u32 as usize;
            counts[expert] += 1;
            heaviest.set(expert, order(expert, counts[expert], max_count));
        }
        // All experts are on all ranks.
        max_count = u32::MAX;
    }
    counts
}

/// Returns the least replica counts with no replica above `max`, and gives the remaining slots to light
/// experts only. Two replicas above half of `max` cannot share a rank, so more of them do not help.
///
/// `None` if there are too few slots, if no expert can take the last slots, or if an expert needs more
/// replicas than ranks. `least` is as in [`replica_counts`].
pub(super) fn replica_counts_below(
    loads: &[f64],
    num_slots: usize,
    num_ranks: usize,
    max: f64,
    least: &[u32],
) -> Option<Vec<u32>> {
    let needed = |&load: &f64| (load / max).ceil().max(1.0);
    if loads.iter().map(needed).sum::<f64>() > num_slots as f64
        || loads.iter().any(|load| needed(load) > num_ranks as f64)
    {
        return None;
    }
    let mut counts: Vec<u32> = loads.iter().map(|load| needed(load) as u32).collect();
    counts.iter_mut().zip(least).for_each(|(count, &least)| *count = least.max(*count));
    if counts.iter().sum::<u32>() as usize > num_slots {
        return None;
    }
    let order = |expert: usize, count: u32| match loads[expert] / f64::from(count) {
        light if light <= max / 2.0 && count < num_ranks as u32 => numbered(!key(light), expert),
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

/// Fills the slots. Experts are taken by the load of a replica, heaviest first. Each goes to as many of the
/// least loaded ranks as it has replicas. `replica_loads` are sums over samples.
pub(super) fn pack(state: &mut State, replica_loads: &[f64]) {
    // Heaviest first: by the complement of each load.
    let mut experts: Vec<u128> =
        replica_loads.iter().enumerate().map(|(expert, &load)| numbered(!key(load), expert)).collect();
    experts.sort_unstable();
    let num_ranks = state.num_ranks();
    let mut totals = vec![0.0; num_ranks];
    let mut free: Vec<usize> = (0..num_ranks).map(|rank| state.slots_of(rank).start).collect();
    let mut lightest = Tournament::new((0..num_ranks).map(|rank| numbered(0, rank)), OUT);
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for expert in experts.into_iter().map(number) {
        for replicas_left in (0..state.count(expert as u32)).rev() {
            if lightest.next() == OUT {
                left.push(expert as u32);
                continue;
            }
            let rank = number(lightest.next());
            state.place(free[rank], expert as u32);
            free[rank] += 1;
            totals[rank] += replica_loads[expert];
            let has_room = free[rank] < state.slots_of(rank).end;
            if has_room && replicas_left == 0 {
                lightest.set(rank, numbered(key(totals[rank]), rank));
                continue;
            }
            lightest.set(rank, OUT);
            if has_room {
                taken.push(rank);
            }
        }
        taken.drain(..).for_each(|rank| lightest.set(rank, numbered(key(totals[rank]), rank)));
    }
    // The ranks with free slots hold these experts already.
    for expert in left {
        let rank = (0..num_ranks)
            .find(|&rank| free[rank] < state.slots_of(rank).end)
            .expect("as many slots as replicas");
        let slot = free[rank];
        free[rank] += 1;
        match exchange_partner(state, replica_loads, rank, expert) {
            Some(other) => {
                state.place(slot, state.expert(other));
                state.place(other, expert);
            }
            None => state.place(slot, expert),
        }
    }
}

/// Fills the slots where some are pinned: first those, then the others as [`pack`] takes them, each to the least
/// loaded rank that does not hold the expert, or if all do, that has a free slot.
pub(super) fn pack_with_pins(state: &mut State, replica_loads: &[f64], pins: &Pins) {
    let num_ranks = state.num_ranks();
    let mut totals = vec![0.0; num_ranks];
    let mut free: Vec<usize> = (0..num_ranks).map(|rank| state.slots_of(rank).start).collect();
    let mut put = |state: &mut State, totals: &mut [f64], rank: usize, expert: u32| {
        state.place(free[rank], expert);
        free[rank] += 1;
        totals[rank] += replica_loads[expert as usize];
        free[rank] == state.slots_of(rank).end
    };
    let mut is_full = vec![false; num_ranks];
    for (rank, is_full) in is_full.iter_mut().enumerate() {
        for expert in pins.of_rank(rank) {
            *is_full = put(state, &mut totals, rank, expert);
        }
    }
    let mut experts: Vec<u32> = (0..replica_loads.len() as u32).collect();
    experts.sort_by(|&a, &b| replica_loads[b as usize].total_cmp(&replica_loads[a as usize]));
    for expert in experts {
        for _ in pins.counts()[expert as usize]..state.count(expert) {
            let with_room = || (0..num_ranks).filter(|&rank| !is_full[rank]);
            let least = |a: &usize, b: &usize| totals[*a].total_cmp(&totals[*b]);
            let without = with_room().filter(|&rank| !state.holds(rank, expert)).min_by(least);
            let rank = without.or_else(|| with_room().min_by(least)).expect("as many slots as replicas");
            is_full[rank] = put(state, &mut totals, rank, expert);
        }
    }
}

/// Returns the slot with the most similar load that may take `expert`, in exchange for its own expert, which
/// goes to `rank`.
fn exchange_partner(state: &State, replica_loads: &[f64], rank: usize, expert: u32) -> Option<usize> {
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
            let difference = (replica_loads[held as usize] - replica_loads[expert as usize]).abs();
            if difference < best.0 {
                best = (difference, Some(slot));
            }
        }
    }
    best.1
}
