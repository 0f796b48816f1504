//! Relief of nodes with too much load: other nodes take replicas from them, with as little load off its home
//! node as possible.
//!
//! Exchanges between single ranks cannot do it. All ranks of a node are about equally loaded, and none gains
//! before all do. So this step treats nodes as a whole, and exchanges even out their ranks later.

use super::home_node::HomeNodes;
use super::relief_scan::Scan;
use super::relief_steps::{NodeRelief, Step};
use super::state::State;

/// The costs of excess load on a node, relative to load off its home node, one after the other. Above 1, so that
/// moving load away pays. At the first, few steps move more than the excess.
const EXCESS_COSTS: &[f64] = &[1.05, 4.0];

/// The costs for another try where load is off its home node at the start: the first may return it to nodes with
/// too much load.
const OTHER_EXCESS_COSTS: &[f64] = &[4.0];

/// Returns the costs of excess load of each try.
pub(super) fn excess_costs(start: &State) -> &'static [&'static [f64]] {
    if start.off_node_cost() == 0.0 { &[EXCESS_COSTS] } else { &[EXCESS_COSTS, OTHER_EXCESS_COSTS] }
}

/// A step is still good if it gains this part of what it would have gained before other steps.
const STILL_GOOD: f64 = 0.5;

/// Steps of one round.
const STEPS_PER_ROUND: usize = 32;

/// Lowers the load of nodes beyond `max_loads` per rank in each sample, and the load off its home node.
/// Evaluates about `effort` steps for each of the costs, at least those of one scan.
pub(super) fn relieve_nodes(
    state: &mut State,
    home_nodes: &HomeNodes,
    max_loads: &[f64],
    excess_costs: &[f64],
    effort: usize,
) {
    let num_slots = state.num_slots();
    for &excess_cost in excess_costs {
        let mut relief = NodeRelief::new(state, home_nodes, max_loads, excess_cost);
        let mut left = effort;
        // Each step gains much, so this limit is never reached.
        for _ in 0..2 * num_slots {
            if left == 0 || !take_steps(&mut relief) {
                break;
            }
            left = left.saturating_sub(relief.steps());
        }
    }
}

/// Takes the best steps of a scan. Returns whether there are any.
fn take_steps(relief: &mut NodeRelief<'_>) -> bool {
    let mut steps = Scan::new(relief).best_of_each_slot();
    steps.truncate(STEPS_PER_ROUND);
    // A step sorts the slots of its ranks anew, so experts name them.
    let steps: Vec<(f64, NamedStep)> = steps
        .iter()
        .map(|&(change, slot, step)| (change, NamedStep::new(relief.state, slot, step)))
        .collect();
    for (change, step) in &steps {
        let Some((slot, step)) = step.slots(relief.state) else { continue };
        if relief.change_of(slot, step) <= STILL_GOOD * change {
            relief.take(slot, step);
        }
    }
    !steps.is_empty()
}

/// A step by ranks and experts: what the rank gives, and what it takes, from another rank in an exchange.
struct NamedStep {
    rank: usize,
    given: u32,
    other: Option<usize>,
    taken: u32,
}

impl NamedStep {
    fn new(state: &State, slot: usize, step: Step) -> Self {
        let (other, taken) = match step {
            Step::Exchange(other) => (Some(state.rank_of(other)), state.expert(other)),
            Step::ReplicaCountChange(to) => (None, to),
        };
        NamedStep { rank: state.rank_of(slot), given: state.expert(slot), other, taken }
    }

    /// Returns the slot and the step if it is still allowed.
    fn slots(&self, state: &State) -> Option<(usize, Step)> {
        let slot_of = |rank: usize, expert: u32| {
            state.slots_of(rank).find(|&slot| state.expert(slot) == expert && state.may_give(&[slot]))
        };
        let slot = slot_of(self.rank, self.given).filter(|_| !state.holds(self.rank, self.taken))?;
        match self.other {
            None => state.may_change(slot).then_some((slot, Step::ReplicaCountChange(self.taken))),
            Some(other) if state.holds(other, self.given) => None,
            Some(other) => Some((slot, Step::Exchange(slot_of(other, self.taken)?))),
        }
    }
}
