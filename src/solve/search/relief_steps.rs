//! The steps of node relief, and what each changes.

use super::home_node::HomeNodes;
use super::state::State;

/// No step makes a replica heavier than this part of a rank's maximum: the rank has other slots.
const HEAVIEST: f64 = 0.8;

/// A smaller gain is no improvement.
pub(super) const LEAST_GAIN: f64 = 1e-5;

/// A step of a slot that lowers the cost: an exchange with another slot, or another expert.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Exchange(usize),
    ReplicaCountChange(u32),
}

/// A placement during the relief.
pub(super) struct NodeRelief<'a> {
    pub state: &'a mut State,
    pub home_nodes: &'a HomeNodes,
    /// The limit on the load of a rank, `[samples]`.
    max_loads: &'a [f64],
    /// The cost of excess load, relative to load off its home node.
    pub excess_cost: f64,
    pub num_nodes: usize,
    /// The load of each node above its limit, negative below it, `[nodes][samples]`.
    over: Vec<f64>,
    /// Replicas on each node, `[experts][nodes]`.
    counts: Vec<u32>,
}

impl<'a> NodeRelief<'a> {
    pub fn new(
        state: &'a mut State,
        home_nodes: &'a HomeNodes,
        max_loads: &'a [f64],
        excess_cost: f64,
    ) -> Self {
        let num_nodes = home_nodes.of_rank.iter().max().map_or(0, |&node| node as usize + 1);
        let mut counts = vec![0; num_nodes * state.num_experts()];
        for rank in 0..state.num_ranks() {
            let node = home_nodes.of_rank[rank] as usize;
            state.slots_of(rank).for_each(|slot| counts[state.expert(slot) as usize * num_nodes + node] += 1);
        }
        let over = vec![0.0; num_nodes * state.num_samples()];
        let mut relief = NodeRelief { state, home_nodes, max_loads, excess_cost, num_nodes, over, counts };
        relief.sum_nodes();
        relief
    }

    fn sum_nodes(&mut self) {
        self.over.fill(0.0);
        for (rank, &node) in self.home_nodes.of_rank.iter().enumerate() {
            let over = &mut self.over[node as usize * self.max_loads.len()..][..self.max_loads.len()];
            let loads = self.state.rank_loads(rank).iter().zip(self.max_loads);
            over.iter_mut().zip(loads).for_each(|(over, (load, max))| *over += load - max);
        }
    }

    /// Replicas of an expert on each node.
    pub fn counts(&self, expert: u32) -> &[u32] {
        &self.counts[expert as usize * self.num_nodes..][..self.num_nodes]
    }

    pub fn take(&mut self, slot: usize, step: Step) {
        let (node, expert) = (self.node_of(slot), self.state.expert(slot));
        let mut moved = |expert: u32, from: Option<usize>, to: Option<usize>| {
            let counts = &mut self.counts[expert as usize * self.num_nodes..];
            from.into_iter().for_each(|node| counts[node] -= 1);
            to.into_iter().for_each(|node| counts[node] += 1);
        };
        match step {
            Step::Exchange(other_slot) => {
                let to = self.home_nodes.of_rank[self.state.rank_of(other_slot)] as usize;
                moved(expert, Some(node), Some(to));
                moved(self.state.expert(other_slot), Some(to), Some(node));
                self.state.swap(&[(slot, other_slot)]);
            }
            Step::ReplicaCountChange(to) => {
                moved(expert, Some(node), None);
                moved(to, None, Some(node));
                self.state.set_expert(slot, to);
            }
        }
        self.sum_nodes();
    }

    /// Returns the number of steps from which a scan chooses, at most.
    pub fn steps(&self) -> usize {
        let per_slot = self.state.num_slots() + self.state.num_experts() * self.num_nodes;
        self.state.num_slots() * per_slot * self.state.num_samples()
    }

    pub fn node_of(&self, slot: usize) -> usize {
        self.home_nodes.of_rank[self.state.rank_of(slot)] as usize
    }

    pub fn is_on_home_node(&self, expert: u32, node: usize) -> bool {
        self.home_nodes.of_expert[expert as usize] as usize == node
    }

    /// The load of a node above its limit, `[samples]`.
    pub fn over(&self, node: usize) -> &[f64] {
        &self.over[node * self.max_loads.len()..][..self.max_loads.len()]
    }

    /// Returns whether a node is above its limit in some sample.
    pub fn is_over(&self, node: usize) -> bool {
        self.over(node).iter().any(|&over| over > LEAST_GAIN)
    }

    pub fn change_of(&self, slot: usize, step: Step) -> f64 {
        match step {
            Step::Exchange(other) => self.change_of_exchange(slot, other),
            Step::ReplicaCountChange(_) if self.leaves_too_heavy(slot) => f64::INFINITY,
            Step::ReplicaCountChange(to) => self.change_of_replica_counts(slot, to),
        }
    }

    pub fn change_of_exchange(&self, slot: usize, other_slot: usize) -> f64 {
        let (state, node, to) = (&self.state, self.node_of(slot), self.node_of(other_slot));
        let (expert, other_expert) = (state.expert(slot), state.expert(other_slot));
        let (moved, other_moved) = (self.moved(expert, node, to), self.moved(other_expert, to, node));
        let nodes = self.over(node).iter().zip(self.over(to));
        let loads = state.replica_loads(expert).iter().zip(state.replica_loads(other_expert));
        let mut change = 0.0;
        for ((over, over_to), (load, other_load)) in nodes.zip(loads) {
            let by = load - other_load;
            let excess = (over - by).max(0.0) + (over_to + by).max(0.0) - over.max(0.0) - over_to.max(0.0);
            change += self.excess_cost * excess + load * moved + other_load * other_moved;
        }
        change
    }

    /// Returns the part of a replica's load that is off its home node after a move, minus that before it.
    pub fn moved(&self, expert: u32, from: usize, to: usize) -> f64 {
        let is_off_node = |node| f64::from(u8::from(!self.is_on_home_node(expert, node)));
        is_off_node(to) - is_off_node(from)
    }

    /// Returns whether the other replicas of a slot's expert would be too heavy without it.
    pub fn leaves_too_heavy(&self, slot: usize) -> bool {
        let from = self.state.expert(slot);
        let replicas_left = f64::from(self.state.count(from) - 1);
        let mut loads = self.state.load(from).iter().zip(self.max_loads);
        loads.any(|(load, max)| load / replicas_left > HEAVIEST * max)
    }

    pub fn change_of_replica_counts(&self, slot: usize, to: u32) -> f64 {
        let (state, node, from) = (&self.state, self.node_of(slot), self.state.expert(slot));
        let (from_counts, to_counts) = (self.counts(from), self.counts(to));
        let mut change = 0.0;
        for sample in 0..state.num_samples() {
            let fewer = state.load(from)[sample] / f64::from(state.count(from) - 1);
            let more = state.load(to)[sample] / f64::from(state.count(to) + 1);
            let (from_load, to_load) = (state.replica_loads(from)[sample], state.replica_loads(to)[sample]);
            for other in 0..self.num_nodes {
                let here = f64::from(u8::from(other == node));
                let (of_from, of_to) = (f64::from(from_counts[other]), f64::from(to_counts[other]));
                let given = (of_from - here) * fewer - of_from * from_load;
                let taken = (of_to + here) * more - of_to * to_load;
                let over = self.over(other)[sample];
                change += self.excess_cost * ((over + given + taken).max(0.0) - over.max(0.0));
                change += if self.is_on_home_node(from, other) { 0.0 } else { given };
                change += if self.is_on_home_node(to, other) { 0.0 } else { taken };
            }
        }
        change
    }
}
