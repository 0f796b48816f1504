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
const LEAST_GAIN: f64 = 1e-9;

/// A step that lowers the cost.
#[derive(Debug, Clone, Copy)]
enum Step {
    Exchange(usize, usize),
    ReplicaCountChange { slot: usize, to: u32 },
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
        let Some(step) = relief.best() else { return };
        match step {
            Step::Exchange(one, other) => state.swap(&[(one, other)]),
            Step::ReplicaCountChange { slot, to } => state.set_expert(slot, to),
        }
    }
}

struct NodeRelief<'a> {
    state: &'a State,
    home_nodes: &'a HomeNodes,
    /// The limit on the load of a rank, `[samples]`.
    max_loads: &'a [f64],
    num_nodes: usize,
    /// The limit on the load of each node and its load, `[nodes][samples]`.
    room: Vec<f64>,
    loads: Vec<f64>,
    /// Replicas on each node, `[experts][nodes]`.
    counts: Vec<u32>,
}

impl<'a> NodeRelief<'a> {
    fn new(state: &'a State, home_nodes: &'a HomeNodes, max_loads: &'a [f64]) -> Self {
        let num_nodes = home_nodes.of_rank.iter().max().map_or(0, |&node| node as usize + 1);
        let samples = state.num_samples();
        let (mut room, mut loads) = (vec![0.0; num_nodes * samples], vec![0.0; num_nodes * samples]);
        let mut counts = vec![0; num_nodes * state.num_experts()];
        for rank in 0..state.num_ranks() {
            let node = home_nodes.of_rank[rank] as usize;
            for sample in 0..samples {
                room[node * samples + sample] += max_loads[sample];
                loads[node * samples + sample] += state.rank_loads(rank)[sample];
            }
            state.slots_of(rank).for_each(|slot| counts[state.expert(slot) as usize * num_nodes + node] += 1);
        }
        NodeRelief { state, home_nodes, max_loads, num_nodes, room, loads, counts }
    }

    /// Returns the largest number of steps that one call of [`NodeRelief::best`] evaluates.
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
        let at = node * self.state.num_samples() + sample;
        (self.loads[at] + more - self.room[at]).max(0.0)
    }

    /// Returns the step that lowers the cost most.
    fn best(&self) -> Option<Step> {
        let mut best = (-LEAST_GAIN, None);
        let samples = self.state.num_samples();
        let is_over: Vec<bool> = (0..self.num_nodes)
            .map(|node| (0..samples).any(|sample| self.excess(node, sample, 0.0) > LEAST_GAIN))
            .collect();
        for slot in 0..self.state.num_slots() {
            let (node, expert) = (self.node_of(slot), self.state.expert(slot));
            if is_over[node] || !self.is_on_home_node(expert, node) {
                self.offer_exchanges(slot, &mut best);
            }
            if self.state.may_change(slot) {
                self.offer_replica_count_changes(slot, &is_over, &mut best);
            }
        }
        best.1
    }

    fn offer_exchanges(&self, slot: usize, best: &mut (f64, Option<Step>)) {
        let (state, node, expert) = (self.state, self.node_of(slot), self.state.expert(slot));
        let rank = state.rank_of(slot);
        for other in (0..state.num_ranks()).filter(|&other| self.home_nodes.of_rank[other] as usize != node) {
            let to = self.home_nodes.of_rank[other] as usize;
            if state.holds(other, expert) || !state.may_give(&[slot]) {
                continue;
            }
            for other_slot in state.slots_of(other) {
                let other_expert = state.expert(other_slot);
                let mut change = 0.0;
                for (sample, (load, other_load)) in
                    state.replica_loads(expert).iter().zip(state.replica_loads(other_expert)).enumerate()
                {
                    let by = load - other_load;
                    let excess = self.excess(node, sample, -by) + self.excess(to, sample, by)
                        - self.excess(node, sample, 0.0)
                        - self.excess(to, sample, 0.0);
                    let is_off_node = |expert, node| f64::from(u8::from(!self.is_on_home_node(expert, node)));
                    change += EXCESS * excess
                        + load * (is_off_node(expert, to) - is_off_node(expert, node))
                        + other_load * (is_off_node(other_expert, node) - is_off_node(other_expert, to));
                }
                if change < best.0 && !state.holds(rank, other_expert) && state.may_give(&[other_slot]) {
                    *best = (change, Some(Step::Exchange(slot, other_slot)));
                }
            }
        }
    }

    /// Considers experts whose home node has too much load or is the node of the slot.
    fn offer_replica_count_changes(&self, slot: usize, is_over: &[bool], best: &mut (f64, Option<Step>)) {
        let (state, node, from) = (self.state, self.node_of(slot), self.state.expert(slot));
        let rank = state.rank_of(slot);
        let replicas_left = f64::from(state.count(from) - 1);
        if state
            .load(from)
            .iter()
            .zip(self.max_loads)
            .any(|(load, max)| load / replicas_left > HEAVIEST * max)
        {
            return;
        }
        let of_use = |to: u32| {
            let home = self.home_nodes.of_expert[to as usize] as usize;
            is_over[home] || (home == node && !self.is_on_home_node(from, node))
        };
        for to in (0..state.num_experts() as u32).filter(|&to| to != from && of_use(to)) {
            let mut change = 0.0;
            for sample in 0..state.num_samples() {
                let fewer = state.load(from)[sample] / f64::from(state.count(from) - 1);
                let more = state.load(to)[sample] / f64::from(state.count(to) + 1);
                for other in 0..self.num_nodes {
                    let here = f64::from(u8::from(other == node));
                    let count =
                        |expert: u32| f64::from(self.counts[expert as usize * self.num_nodes + other]);
                    let given =
                        (count(from) - here) * fewer - count(from) * state.replica_loads(from)[sample];
                    let taken = (count(to) + here) * more - count(to) * state.replica_loads(to)[sample];
                    let excess = self.excess(other, sample, given + taken) - self.excess(other, sample, 0.0);
                    change += EXCESS * excess;
                    change += if self.is_on_home_node(from, other) { 0.0 } else { given };
                    change += if self.is_on_home_node(to, other) { 0.0 } else { taken };
                }
            }
            if change < best.0 && !state.holds(rank, to) {
                *best = (change, Some(Step::ReplicaCountChange { slot, to }));
            }
        }
    }
}
