//! Exchanges and replica count changes of one sample, within an effort.

use super::LEAST_SLOTS;
use super::columns::Columns;
use super::moves::{
    DuplicateRemoval, LEAST_GAIN, duplicate_removal, exchange, exchange_of_samples, exchange_two,
    replica_count_changes,
};
use super::random::Random;
use super::state::State;
use crate::placement::NO_EXPERT;

/// Exchanges in a row that may fail to lower the cost.
const FRUITLESS: usize = 4;

/// Replica count changes to try, cheapest first.
const REPLICA_COUNT_CHANGES: usize = 6;

/// Slots that take another expert before the cost must be lower.
const REPLICA_COUNT_CHANGE_DEPTH: usize = 2;

/// Random changes of each perturbation.
const CHANGES_PER_PERTURBATION: usize = 4;

/// The remaining effort, and the cost at which to stop.
pub(super) struct Effort {
    pub target: f64,
    /// Where large placements have no more cost, replica count changes are not worth their time.
    pub near: f64,
    pub left: usize,
}

impl Effort {
    pub fn is_over(&self, state: &State) -> bool {
        self.left == 0 || state.cost() <= self.target
    }

    fn spend<T>(&mut self, evaluate: impl FnOnce(&mut usize) -> T) -> T {
        let mut evaluated = 0;
        let found = evaluate(&mut evaluated);
        self.left = self.left.saturating_sub(evaluated);
        found
    }

    /// Exchanges slots and changes replica counts while that helps.
    pub fn improve(&mut self, state: &mut State) {
        self.exchange_slots(state, FRUITLESS);
        while !self.is_near(state) && self.change_replica_counts(state, REPLICA_COUNT_CHANGE_DEPTH) {}
    }

    /// Returns whether replica count changes are not worth their time.
    fn is_near(&self, state: &State) -> bool {
        Columns::fit(state) && state.num_slots() > LEAST_SLOTS && state.cost() <= self.near
    }

    /// Exchanges slots of one sample while that helps. With few slots on each rank, up to `most_fruitless` exchanges
    /// in a row may not help.
    fn exchange_slots(&mut self, state: &mut State, most_fruitless: usize) {
        if Columns::fit(state) && !self.is_over(state) {
            return Columns::new(state).improve(state, self.target, &mut self.left, most_fruitless);
        }
        while !self.is_over(state) {
            let found = self.spend(|evaluated| {
                let of_one = |evaluated: &mut usize| {
                    exchange(state, evaluated).or_else(|| exchange_two(state, evaluated))
                };
                match state.has_home_nodes() || state.has_pins() {
                    false => of_one(evaluated),
                    true => of_one(evaluated).or_else(|| exchange_of_samples(state, evaluated)),
                }
            });
            let Some(found) = found else { return };
            state.swap(found.pairs());
        }
    }

    /// Gives up to `depth` slots another expert, one after the other, until the cost is lower. Returns
    /// whether it is.
    fn change_replica_counts(&mut self, state: &mut State, depth: usize) -> bool {
        if self.is_over(state) {
            return false;
        }
        let (to_beat, left) = (state.cost() * (1.0 - LEAST_GAIN), self.left);
        let mut tried: Vec<State> = Vec::new();
        for change in
            self.spend(|evaluated| replica_count_changes(state, REPLICA_COUNT_CHANGES, left, evaluated))
        {
            let mut changed = state.clone();
            changed.set_expert(change.slot, change.to);
            self.exchange_slots(&mut changed, 0);
            if changed.cost() < to_beat {
                *state = changed;
                return true;
            }
            tried.push(changed);
        }
        if depth > 1 {
            for mut changed in tried {
                // Further changes may raise the cost, but the result must be below the start.
                while changed.cost() >= to_beat {
                    if !self.change_replica_counts(&mut changed, depth - 1) {
                        break;
                    }
                }
                if changed.cost() < to_beat {
                    *state = changed;
                    return true;
                }
            }
        }
        false
    }

    /// Removes duplicates while each step keeps the cost at or below `max_cost`.
    pub fn remove_duplicates(&mut self, state: &mut State, max_cost: f64) {
        if state.num_ranks() == 1 {
            return;
        }
        let mut duplicates: Vec<usize> = state.duplicates().collect();
        while let Some(slot) = duplicates.pop()
            && self.left > 0
        {
            match self.spend(|evaluated| duplicate_removal(state, slot, max_cost, evaluated)) {
                None => continue,
                Some(DuplicateRemoval::ReplicaCountChange(change)) => {
                    state.set_expert(change.slot, change.to)
                }
                Some(DuplicateRemoval::Exchange(exchange)) => state.swap(exchange.pairs()),
            }
            // The slots of a rank are sorted by load, so indices may have changed.
            let left = duplicates.len();
            duplicates = self.spend(|evaluated| {
                *evaluated += state.num_slots() * state.width();
                state.duplicates().collect()
            });
            duplicates.truncate(left);
        }
    }
}

/// Changes a placement at random: exchanges slots, or gives a slot another expert. Adds no duplicate that is
/// not allowed.
pub(super) fn perturb(state: &mut State, random: &mut Random) {
    for _ in 0..CHANGES_PER_PERTURBATION {
        let (slot, other) = (random.below(state.num_slots()), random.below(state.num_slots()));
        let (expert, other_expert) = (state.expert(slot), state.expert(other));
        if expert == NO_EXPERT
            || other_expert == NO_EXPERT
            || !state.may_take(state.rank_of(slot), other_expert)
        {
            continue;
        }
        if !state.may_give(&[slot]) {
            continue;
        }
        if random.below(2) == 0 && state.count(expert) > 1 {
            state.set_expert(slot, other_expert);
        } else if state.rank_of(slot) != state.rank_of(other)
            && state.may_take(state.rank_of(other), expert)
            && state.may_give(&[other])
        {
            state.swap(&[(slot, other)]);
        }
    }
}
