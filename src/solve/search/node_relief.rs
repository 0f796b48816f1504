//! Relief of nodes with too much load: other nodes take replicas from them, with as little load off its home
//! node as possible.
//!
//! Exchanges between single ranks cannot do it. All ranks of a node are about equally loaded, and none gains
//! before all do. So this step treats nodes as a whole, and exchanges even out their ranks later.

use super::home_node::HomeNodes;
use super::state::State;

/// The cost of excess load on a node, relative to load off its home node. Above 1, so that moving load away
/// pays.
const EXCESS: f64 = 4.0;

/// No step makes a replica heavier than this part of a rank's maximum: the rank has other slots.
const HEAVIEST: f64 = 0.8;

/// A smaller gain is no improvement.
const LEAST_GAIN: f64 = 1e-5;

/// A step is still good if it gains this part of what it would have gained before other steps.
const STILL_GOOD: f64 = 0.5;

/// Steps of one round.
const STEPS_PER_ROUND: usize = 32;

/// A step of a slot that lowers the cost: an exchange with another slot, or another expert.
#[derive(Debug, Clone, Copy)]
enum Step {
    Exchange(usize),
    ReplicaCountChange(u32),
}

/// Lowers the load of nodes beyond `max_loads` per rank in each sample, and the load off its home node.
/// Evaluates about `left` steps.
pub(super) fn relieve_nodes(state: &mut State, home_nodes: &HomeNodes, max_loads: &[f64], mut left: usize) {
    // Each step gains much, so this limit is never reached.
    for _ in 0..2 * state.num_slots() {
        if left == 0 {
            return;
        }
        let relief = NodeRelief::new(state, home_nodes, max_loads);
        left = left.saturating_sub(relief.steps());
        let mut steps = relief.best_of_each_slot();
        steps.truncate(STEPS_PER_ROUND);
        if steps.is_empty() {
            return;
        }
        // A step sorts the slots of its ranks anew, so experts name them.
        let steps: Vec<(f64, NamedStep)> =
            steps.iter().map(|&(change, slot, step)| (change, NamedStep::new(state, slot, step))).collect();
        for (change, step) in steps {
            let Some((slot, step)) = step.slots(state) else { continue };
            if NodeRelief::new(state, home_nodes, max_loads).change_of(slot, step) > STILL_GOOD * change {
                continue;
            }
            match step {
                Step::Exchange(other) => state.swap(&[(slot, other)]),
                Step::ReplicaCountChange(to) => state.set_expert(slot, to),
            }
        }
    }
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

struct NodeRelief<'a> {
    state: &'a State,
    home_nodes: &'a HomeNodes,
    /// The limit on the load of a rank, `[samples]`.
    max_loads: &'a [f64],
    num_nodes: usize,
    /// The load of each node above its limit, negative below it, `[nodes][samples]`.
    over: Vec<f64>,
    /// Whether a node is above its limit in some sample.
    is_over: Vec<bool>,
    /// Replicas on each node, `[experts][nodes]`.
    counts: Vec<u32>,
}

impl<'a> NodeRelief<'a> {
    fn new(state: &'a State, home_nodes: &'a HomeNodes, max_loads: &'a [f64]) -> Self {
        let num_nodes = home_nodes.of_rank.iter().max().map_or(0, |&node| node as usize + 1);
        let samples = state.num_samples();
        let mut over = vec![0.0; num_nodes * samples];
        let mut counts = vec![0; num_nodes * state.num_experts()];
        for rank in 0..state.num_ranks() {
            let node = home_nodes.of_rank[rank] as usize;
            for sample in 0..samples {
                over[node * samples + sample] += state.rank_loads(rank)[sample] - max_loads[sample];
            }
            state.slots_of(rank).for_each(|slot| counts[state.expert(slot) as usize * num_nodes + node] += 1);
        }
        let is_over = |over: &[f64]| over.iter().any(|&over| over > LEAST_GAIN);
        let is_over = over.chunks_exact(samples).map(is_over).collect();
        NodeRelief { state, home_nodes, max_loads, num_nodes, over, is_over, counts }
    }

    /// Returns the largest number of steps that [`NodeRelief::best_of_each_slot`] evaluates.
    fn steps(&self) -> usize {
        let per_slot = self.state.num_slots() + self.state.num_experts() * self.num_nodes;
        self.state.num_slots() * per_slot * self.state.num_samples()
    }

    fn node_of(&self, slot: usize) -> usize {
        self.home_nodes.of_rank[self.state.rank_of(slot)] as usize
    }

    fn is_on_home_node(&self, expert: u32, node: usize) -> bool {
        self.home_nodes.of_expert[expert as usize] as usize == node
    }

    fn excess(&self, node: usize, sample: usize, more: f64) -> f64 {
        (self.over[node * self.state.num_samples() + sample] + more).max(0.0)
    }

    /// Returns the best step of each slot, the best first, with its change of the cost.
    fn best_of_each_slot(&self) -> Vec<(f64, usize, Step)> {
        let best_of = |slot| self.best_of(slot).map(|(change, step)| (change, slot, step));
        let mut steps: Vec<_> = (0..self.state.num_slots()).filter_map(best_of).collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        steps
    }

    /// Returns the best step of a slot, with its change of the cost.
    fn best_of(&self, slot: usize) -> Option<(f64, Step)> {
        let (node, expert) = (self.node_of(slot), self.state.expert(slot));
        if !self.state.may_give(&[slot]) {
            return None;
        }
        let mut best = (-LEAST_GAIN, None);
        if self.is_over[node] || !self.is_on_home_node(expert, node) {
            self.offer_exchanges(slot, &mut best);
        }
        if self.state.may_change(slot) {
            self.offer_replica_count_changes(slot, &mut best);
        }
        best.1.map(|step| (best.0, step))
    }

    fn change_of(&self, slot: usize, step: Step) -> f64 {
        match step {
            Step::Exchange(other) => self.change_of_exchange(slot, other),
            Step::ReplicaCountChange(_) if self.leaves_too_heavy(slot) => f64::INFINITY,
            Step::ReplicaCountChange(to) => self.change_of_replica_counts(slot, to),
        }
    }

    fn offer_exchanges(&self, slot: usize, best: &mut (f64, Option<Step>)) {
        let (state, node, expert) = (self.state, self.node_of(slot), self.state.expert(slot));
        let rank = state.rank_of(slot);
        for other in (0..state.num_ranks()).filter(|&other| self.home_nodes.of_rank[other] as usize != node) {
            if state.holds(other, expert) {
                continue;
            }
            for other_slot in state.slots_of(other) {
                let change = self.change_of_exchange(slot, other_slot);
                if change < best.0
                    && !state.holds(rank, state.expert(other_slot))
                    && state.may_give(&[other_slot])
                {
                    *best = (change, Some(Step::Exchange(other_slot)));
                }
            }
        }
    }

    fn change_of_exchange(&self, slot: usize, other_slot: usize) -> f64 {
        let (state, node, to) = (self.state, self.node_of(slot), self.node_of(other_slot));
        let (expert, other_expert) = (state.expert(slot), state.expert(other_slot));
        let is_off_node = |expert, node| f64::from(u8::from(!self.is_on_home_node(expert, node)));
        let moved = is_off_node(expert, to) - is_off_node(expert, node);
        let other_moved = is_off_node(other_expert, node) - is_off_node(other_expert, to);
        let samples = state.num_samples();
        let over = |node: usize| &self.over[node * samples..][..samples];
        let nodes = over(node).iter().zip(over(to));
        let loads = state.replica_loads(expert).iter().zip(state.replica_loads(other_expert));
        let mut change = 0.0;
        for ((over, over_to), (load, other_load)) in nodes.zip(loads) {
            let by = load - other_load;
            let excess = (over - by).max(0.0) + (over_to + by).max(0.0) - over.max(0.0) - over_to.max(0.0);
            change += EXCESS * excess + load * moved + other_load * other_moved;
        }
        change
    }

    /// Returns whether the other replicas of a slot's expert would be too heavy without it.
    fn leaves_too_heavy(&self, slot: usize) -> bool {
        let from = self.state.expert(slot);
        let replicas_left = f64::from(self.state.count(from) - 1);
        let mut loads = self.state.load(from).iter().zip(self.max_loads);
        loads.any(|(load, max)| load / replicas_left > HEAVIEST * max)
    }

    /// Considers experts whose home node has too much load or is the node of the slot.
    fn offer_replica_count_changes(&self, slot: usize, best: &mut (f64, Option<Step>)) {
        let (state, node, from) = (self.state, self.node_of(slot), self.state.expert(slot));
        if self.leaves_too_heavy(slot) {
            return;
        }
        let rank = state.rank_of(slot);
        let of_use = |to: u32| {
            let home = self.home_nodes.of_expert[to as usize] as usize;
            self.is_over[home] || (home == node && !self.is_on_home_node(from, node))
        };
        for to in (0..state.num_experts() as u32).filter(|&to| to != from && of_use(to)) {
            let change = self.change_of_replica_counts(slot, to);
            if change < best.0 && !state.holds(rank, to) {
                *best = (change, Some(Step::ReplicaCountChange(to)));
            }
        }
    }

    fn change_of_replica_counts(&self, slot: usize, to: u32) -> f64 {
        let (state, node, from) = (self.state, self.node_of(slot), self.state.expert(slot));
        let mut change = 0.0;
        for sample in 0..state.num_samples() {
            let fewer = state.load(from)[sample] / f64::from(state.count(from) - 1);
            let more = state.load(to)[sample] / f64::from(state.count(to) + 1);
            for other in 0..self.num_nodes {
                let here = f64::from(u8::from(other == node));
                let count = |expert: u32| f64::from(self.counts[expert as usize * self.num_nodes + other]);
                let given = (count(from) - here) * fewer - count(from) * state.replica_loads(from)[sample];
                let taken = (count(to) + here) * more - count(to) * state.replica_loads(to)[sample];
                let excess = self.excess(other, sample, given + taken) - self.excess(other, sample, 0.0);
                change += EXCESS * excess;
                change += if self.is_on_home_node(from, other) { 0.0 } else { given };
                change += if self.is_on_home_node(to, other) { 0.0 } else { taken };
            }
        }
        change
    }
}
