//! The scan of node relief: the best step of each slot.
//!
//! Bounds on the change of the cost reject most steps. They take sums over samples: the excess of the sums is at
//! most the sum of the samples' excesses. For one sample the bound of an exchange is its change.

use super::relief_steps::{LEAST_GAIN, NodeRelief, Step};

pub(super) struct Scan<'a> {
    relief: &'a NodeRelief<'a>,
    /// The load of a replica of each expert, `[experts]`. All loads here are sums over samples.
    loads: Vec<f64>,
    nodes: Vec<Node>,
}

struct Node {
    is_over: bool,
    /// The load above the limit, and its positive part in each sample.
    over: f64,
    excess: f64,
    /// The slots whose expert is on its home node, and the others, by ascending load.
    on_home_node: Vec<(f64, usize)>,
    off_node: Vec<(f64, usize)>,
    /// The experts that its slots may take.
    offered: Vec<Offered>,
}

/// An expert that a slot of a node may take.
struct Offered {
    expert: u32,
    /// The load that the node takes.
    load: f64,
    /// The change of the cost beyond the node's own excess.
    bound: f64,
}

impl<'a> Scan<'a> {
    pub fn new(relief: &'a NodeRelief<'a>) -> Self {
        let state = &relief.state;
        let experts = 0..state.num_experts() as u32;
        let loads: Vec<f64> =
            experts.clone().map(|expert| state.replica_loads(expert).iter().sum()).collect();
        let node = |node: usize| Node {
            is_over: relief.is_over(node),
            over: relief.over(node).iter().sum(),
            excess: relief.over(node).iter().map(|over| over.max(0.0)).sum(),
            on_home_node: Vec::new(),
            off_node: Vec::new(),
            offered: Vec::new(),
        };
        let mut scan = Scan { relief, loads, nodes: (0..relief.num_nodes).map(node).collect() };
        (0..state.num_slots()).for_each(|slot| scan.add_slot(slot));
        experts.for_each(|expert| scan.add_offered(expert));
        for node in &mut scan.nodes {
            for slots in [&mut node.on_home_node, &mut node.off_node] {
                slots.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            }
        }
        scan
    }

    fn add_slot(&mut self, slot: usize) {
        let (node, expert) = (self.relief.node_of(slot), self.relief.state.expert(slot));
        let slots = match self.relief.is_on_home_node(expert, node) {
            true => &mut self.nodes[node].on_home_node,
            false => &mut self.nodes[node].off_node,
        };
        slots.push((self.loads[expert as usize], slot));
    }

    /// Offers an expert to its home node, and to all nodes if that has too much load.
    fn add_offered(&mut self, expert: u32) {
        let relief = self.relief;
        let count = f64::from(relief.state.count(expert));
        let (counts, loads) = (relief.counts(expert), relief.state.replica_loads(expert));
        let home = relief.home_nodes.of_expert[expert as usize] as usize;
        let load = self.loads[expert as usize];
        let (after, lighter) = (load * (count / (count + 1.0)), load / (count + 1.0));
        let mut relieved = vec![0.0; relief.num_nodes];
        for node in (0..relief.num_nodes).filter(|&node| counts[node] > 0) {
            for (over, load) in relief.over(node).iter().zip(loads) {
                let lighter = f64::from(counts[node]) * load / (count + 1.0);
                relieved[node] += (over - lighter).max(0.0) - over.max(0.0);
            }
        }
        let all_relieved: f64 = relieved.iter().sum();
        let off_node = -lighter * f64::from(counts.iter().sum::<u32>() - counts[home]);
        let to = if self.nodes[home].is_over { 0..relief.num_nodes } else { home..home + 1 };
        for node in to {
            let off_node = off_node + if node == home { 0.0 } else { after };
            self.nodes[node].offered.push(Offered {
                expert,
                load: after - lighter * f64::from(counts[node]),
                bound: relief.excess_cost * (all_relieved - relieved[node]) + off_node,
            });
        }
    }

    /// Returns the best step of each slot, the best first, with its change of the cost.
    pub fn best_of_each_slot(&self) -> Vec<(f64, usize, Step)> {
        let best_of = |slot| self.best_of(slot).map(|(change, step)| (change, slot, step));
        let mut steps: Vec<_> = (0..self.relief.state.num_slots()).filter_map(best_of).collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        steps
    }

    fn best_of(&self, slot: usize) -> Option<(f64, Step)> {
        let relief = self.relief;
        let (node, expert) = (relief.node_of(slot), relief.state.expert(slot));
        if !relief.state.may_give(&[slot]) {
            return None;
        }
        let mut best = (-LEAST_GAIN, None);
        if self.nodes[node].is_over || !relief.is_on_home_node(expert, node) {
            self.offer_exchanges(slot, &mut best);
        }
        if relief.state.may_change(slot) && !relief.leaves_too_heavy(slot) {
            self.offer_replica_count_changes(slot, &mut best);
        }
        best.1.map(|step| (best.0, step))
    }

    fn offer_exchanges(&self, slot: usize, best: &mut (f64, Option<Step>)) {
        let relief = self.relief;
        let (node, expert) = (relief.node_of(slot), relief.state.expert(slot));
        let (here, load) = (&self.nodes[node], self.loads[expert as usize]);
        for (to, there) in self.nodes.iter().enumerate().filter(|&(to, _)| to != node) {
            let base =
                load * relief.moved(expert, node, to) - relief.excess_cost * (here.excess + there.excess);
            // Here, an expert that is off its home node there may be off it or on it.
            for (slots, moved) in
                [(&there.on_home_node, 1.0), (&there.off_node, 0.0), (&there.off_node, -1.0)]
            {
                let bound = |other_load: f64| {
                    let by = load - other_load;
                    let excess = (here.over - by).max(0.0) + (there.over + by).max(0.0);
                    base + relief.excess_cost * excess + other_load * moved
                };
                // The bound is convex and least at this load.
                let (one, other) = (load - here.over, load + there.over);
                let least = if moved < 0.0 { one.max(other) } else { one.min(other) };
                if bound(least.max(0.0)) >= best.0 {
                    continue;
                }
                let (below, above) = slots.split_at(slots.partition_point(|&(load, _)| load < least));
                let mut offer = |slots: &mut dyn Iterator<Item = &(f64, usize)>| {
                    for &(other_load, other_slot) in slots {
                        if bound(other_load) >= best.0 {
                            break;
                        }
                        self.offer_exchange(slot, other_slot, best);
                    }
                };
                offer(&mut below.iter().rev());
                offer(&mut above.iter());
            }
        }
    }

    fn offer_exchange(&self, slot: usize, other_slot: usize, best: &mut (f64, Option<Step>)) {
        let state = &self.relief.state;
        let change = self.relief.change_of_exchange(slot, other_slot);
        if change < best.0
            && !state.holds(state.rank_of(other_slot), state.expert(slot))
            && !state.holds(state.rank_of(slot), state.expert(other_slot))
            && state.may_give(&[other_slot])
        {
            *best = (change, Some(Step::Exchange(other_slot)));
        }
    }

    fn offer_replica_count_changes(&self, slot: usize, best: &mut (f64, Option<Step>)) {
        let relief = self.relief;
        let (state, node, from) = (&relief.state, relief.node_of(slot), relief.state.expert(slot));
        let (here, counts) = (&self.nodes[node], relief.counts(from));
        let (load, count) = (self.loads[from as usize], f64::from(state.count(from)));
        let after = load * (count / (count - 1.0));
        let home = relief.home_nodes.of_expert[from as usize] as usize;
        let is_on_home_node = node == home;
        let off_node = f64::from(counts.iter().sum::<u32>() - counts[home]) * (after - load)
            - if is_on_home_node { 0.0 } else { after };
        let given = f64::from(counts[node] - 1) * after - f64::from(counts[node]) * load;
        let base = off_node - relief.excess_cost * here.excess;
        let others: Vec<usize> =
            (0..self.nodes.len()).filter(|&other| other != node && counts[other] > 0).collect();
        let of_use = |to: u32| {
            to != from
                && (!is_on_home_node || self.nodes[relief.home_nodes.of_expert[to as usize] as usize].is_over)
        };
        for &Offered { expert: to, load, bound } in &here.offered {
            // As if the nodes of the other replicas had room for what they take over.
            let bound = bound + base + relief.excess_cost * (here.over + given + load).max(0.0);
            if bound >= best.0 || !of_use(to) {
                continue;
            }
            if bound + relief.excess_cost * self.taken_over(from, to, &others) >= best.0 {
                continue;
            }
            let change = relief.change_of_replica_counts(slot, to);
            if change < best.0 && !state.holds(state.rank_of(slot), to) {
                *best = (change, Some(Step::ReplicaCountChange(to)));
            }
        }
    }

    /// Returns the excess that nodes get as an expert gets one replica fewer on another node, and another one
    /// more.
    fn taken_over(&self, fewer: u32, more: u32, nodes: &[usize]) -> f64 {
        let (relief, state) = (self.relief, &self.relief.state);
        let counts = (relief.counts(fewer), relief.counts(more));
        let left = f64::from(state.count(fewer) - 1);
        let of_node = |&node: &usize| -> f64 {
            let (heavier, lighter) = (
                f64::from(counts.0[node]) / left,
                f64::from(counts.1[node]) / f64::from(state.count(more) + 1),
            );
            let loads = state.replica_loads(fewer).iter().zip(state.replica_loads(more));
            let of_sample = |(over, (fewer, more)): (&f64, (&f64, &f64))| {
                let over = over - lighter * more;
                (over + heavier * fewer).max(0.0) - over.max(0.0)
            };
            relief.over(node).iter().zip(loads).map(of_sample).sum()
        };
        nodes.iter().map(of_node).sum()
    }
}
