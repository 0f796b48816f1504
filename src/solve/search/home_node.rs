//! Home nodes: the node of each group of experts, and the cost of a replica elsewhere.

use crate::error::{Error, Result};
use crate::placement::Shape;

/// Starts of the assignment of groups to nodes, all but the first random.
const RESTARTS: u64 = 64;

/// Groups of experts and nodes of ranks, checked.
#[derive(Debug, Clone)]
pub(crate) struct Nodes {
    /// Groups of consecutive experts, of equal size.
    pub num_groups: usize,
    /// The node of each rank: 0 and up, without gaps.
    pub of_rank: Vec<u32>,
    /// The number of ranks of each node.
    pub num_ranks: Vec<usize>,
}

impl Nodes {
    /// `rank_to_node` names nodes by any int32. Without it there are `num_nodes` nodes of consecutive ranks,
    /// of equal size.
    pub fn new(
        shape: Shape,
        num_groups: usize,
        num_nodes: usize,
        rank_to_node: Option<&[i32]>,
    ) -> Result<Self> {
        let num_ranks = shape.num_ranks();
        if num_groups == 0 || !shape.num_experts().is_multiple_of(num_groups) {
            let num_experts = shape.num_experts();
            let message = format!("{num_experts} experts cannot be split evenly over {num_groups} groups");
            return Err(Error::InvalidShape(message));
        }
        let of_rank: Vec<u32> = match rank_to_node {
            Some(nodes) if nodes.len() != num_ranks => {
                let message = format!("rank_to_node has {} values, there are {num_ranks} ranks", nodes.len());
                return Err(Error::InvalidArgument(message));
            }
            Some(nodes) => {
                let mut ids = nodes.to_vec();
                ids.sort_unstable();
                ids.dedup();
                nodes.iter().map(|id| ids.partition_point(|other| other < id) as u32).collect()
            }
            None if num_nodes == 0 || !num_ranks.is_multiple_of(num_nodes) => {
                return Err(Error::InvalidShape(format!(
                    "{num_ranks} ranks cannot be split evenly over {num_nodes} nodes; set rank_to_node"
                )));
            }
            None => (0..num_ranks).map(|rank| (rank * num_nodes / num_ranks) as u32).collect(),
        };
        let mut num_node_ranks = vec![0; of_rank.iter().max().map_or(0, |&last| last as usize + 1)];
        of_rank.iter().for_each(|&node| num_node_ranks[node as usize] += 1);
        Ok(Nodes { num_groups, of_rank, num_ranks: num_node_ranks })
    }

    /// Returns the number of whole groups that fit into the slots of each node.
    fn room(&self, shape: Shape) -> Vec<usize> {
        let group_size = shape.num_experts() / self.num_groups;
        self.num_ranks.iter().map(|&ranks| ranks * shape.slots_per_rank() / group_size).collect()
    }

    /// Returns whether each group fits on one node as a whole, and each node gets at least one.
    pub fn fit(&self, shape: Shape) -> bool {
        let room = self.room(shape);
        room.iter().sum::<usize>() >= self.num_groups && room.len() <= self.num_groups && !room.contains(&0)
    }

    /// Fails unless [`Nodes::fit`].
    pub fn check_fit(&self, shape: Shape) -> Result<()> {
        match self.fit(shape) {
            true => Ok(()),
            false => Err(Error::InvalidShape(format!(
                "the slots of {} nodes cannot hold {} whole groups of {} experts, at least one on each node",
                self.num_ranks.len(),
                self.num_groups,
                shape.num_experts() / self.num_groups
            ))),
        }
    }

    /// Returns whether nodes have equally many, consecutive ranks, as DeepSeek's hierarchical policy needs.
    pub fn are_regular(&self) -> bool {
        self.num_ranks.iter().all(|&ranks| ranks == self.num_ranks[0]) && self.of_rank.is_sorted()
    }

    /// Returns candidate home nodes of each group. They minimise load above the nodes' equal parts: of the
    /// hottest node if `hard`, else of all nodes together.
    ///
    /// `loads` is `[groups]`. One candidate uses all room for groups on a node. The other limits a node to an
    /// equal part of the groups, which leaves spare slots on all nodes. If the groups do not fit, only the
    /// loads count. Evaluates about `left` assignments.
    pub fn home_nodes(&self, shape: Shape, loads: &[f64], hard: bool, left: usize) -> Vec<Vec<u32>> {
        if !self.fit(shape) {
            return vec![self.assign_groups(
                &vec![self.num_groups; self.num_ranks.len()],
                0,
                loads,
                hard,
                left,
            )];
        }
        let room = self.room(shape);
        let equal_part = |(&ranks, &room): (&usize, &usize)| {
            room.min((self.num_groups * ranks).div_ceil(self.of_rank.len()))
        };
        let equal_parts: Vec<usize> = self.num_ranks.iter().zip(&room).map(equal_part).collect();
        let mut home_nodes = vec![self.assign_groups(&room, 1, loads, hard, left)];
        if equal_parts != room && equal_parts.iter().sum::<usize>() >= self.num_groups {
            home_nodes.push(self.assign_groups(&equal_parts, 1, loads, hard, left));
        }
        home_nodes
    }

    /// Assigns groups to nodes that have `room` for groups and get `least` groups each.
    fn assign_groups(
        &self,
        room: &[usize],
        least: usize,
        loads: &[f64],
        hard: bool,
        mut left: usize,
    ) -> Vec<u32> {
        let mean = loads.iter().sum::<f64>() / self.of_rank.len() as f64;
        let cost = |carried: &[f64]| -> f64 {
            let nodes = carried.iter().zip(&self.num_ranks);
            match hard {
                true => nodes.map(|(load, &ranks)| load / ranks as f64).fold(0.0, f64::max),
                false => nodes.map(|(load, &ranks)| (load - ranks as f64 * mean).max(0.0)).sum(),
            }
        };
        let mut heaviest: Vec<usize> = (0..loads.len()).collect();
        heaviest.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]));
        let mut best: Option<(f64, Vec<u32>)> = None;
        for start in 0..RESTARTS {
            if start > 0 && left == 0 {
                break;
            }
            let mut order = heaviest.clone();
            if start > 0 {
                shuffle(&mut order, start);
            }
            let mut assignment = GroupAssignment::new(self, room, loads, &order);
            assignment.improve(least, &cost, &mut left);
            let found = cost(&assignment.carried);
            if best.as_ref().is_none_or(|(least, _)| found < least * (1.0 - 1e-12)) {
                best = Some((found, assignment.of_group));
            }
        }
        best.expect("at least one start").1
    }
}

/// Fisher-Yates, with the generator of Numerical Recipes.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for i in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
}

/// An assignment of groups to nodes during its improvement.
struct GroupAssignment<'a> {
    loads: &'a [f64],
    of_group: Vec<u32>,
    carried: Vec<f64>,
    /// Groups that still fit on each node.
    room: Vec<usize>,
    /// Groups on each node.
    held: Vec<usize>,
}

impl<'a> GroupAssignment<'a> {
    /// Assigns groups in `order`, each to the node with room and the least load per rank.
    fn new(nodes: &Nodes, room: &[usize], loads: &'a [f64], order: &[usize]) -> Self {
        let num_nodes = nodes.num_ranks.len();
        let (of_group, carried) = (vec![0; loads.len()], vec![0.0; num_nodes]);
        let mut assigned =
            GroupAssignment { loads, of_group, carried, room: room.to_vec(), held: vec![0; num_nodes] };
        for &group in order {
            let per_rank = |&node: &usize| assigned.carried[node] / nodes.num_ranks[node] as f64;
            let free = (0..num_nodes).filter(|&node| assigned.room[node] > 0);
            let node = free
                .min_by(|a, b| {
                    per_rank(a).total_cmp(&per_rank(b)).then(assigned.held[*a].cmp(&assigned.held[*b]))
                })
                .expect("the nodes have room for all groups");
            assigned.of_group[group] = node as u32;
            assigned.carried[node] += loads[group];
            assigned.room[node] -= 1;
            assigned.held[node] += 1;
        }
        assigned
    }

    /// Moves a group or exchanges two while that lowers the cost. Each node keeps `least_held` groups. Stops
    /// after `left` evaluations.
    fn improve(&mut self, least_held: usize, cost: &impl Fn(&[f64]) -> f64, left: &mut usize) {
        let mut least = cost(&self.carried);
        while *left > 0 {
            let mut best = None;
            let mut carried = self.carried.clone();
            for (group, &load) in self.loads.iter().enumerate() {
                let from = self.of_group[group] as usize;
                for to in (0..self.room.len()).filter(|&to| to != from) {
                    let others =
                        (group + 1..self.loads.len()).filter(|&other| self.of_group[other] as usize == to);
                    let moved = (self.room[to] > 0 && self.held[from] > least_held).then_some(None);
                    for other in moved.into_iter().chain(others.map(Some)) {
                        let by = load - other.map_or(0.0, |other| self.loads[other]);
                        (carried[from], carried[to]) = (self.carried[from] - by, self.carried[to] + by);
                        *left = left.saturating_sub(1);
                        let found = cost(&carried);
                        if found < least * (1.0 - 1e-12) {
                            (least, best) = (found, Some((group, to, other)));
                        }
                    }
                    (carried[from], carried[to]) = (self.carried[from], self.carried[to]);
                }
            }
            let Some((group, to, other)) = best else { return };
            let from = self.of_group[group] as usize;
            self.of_group[group] = to as u32;
            match other {
                Some(other) => self.of_group[other] = from as u32,
                None => {
                    (self.room[from], self.room[to]) = (self.room[from] + 1, self.room[to] - 1);
                    (self.held[from], self.held[to]) = (self.held[from] - 1, self.held[to] + 1);
                }
            }
            let by = self.loads[group] - other.map_or(0.0, |other| self.loads[other]);
            (self.carried[from], self.carried[to]) = (self.carried[from] - by, self.carried[to] + by);
        }
    }
}

/// The home node of each expert, and the price of load elsewhere.
#[derive(Debug)]
pub(super) struct HomeNodes {
    pub of_expert: Vec<u32>,
    pub of_rank: Vec<u32>,
    /// The cost of all load if it were off its home node, over the sum of all ranks' mean loads.
    pub price: f64,
}

impl HomeNodes {
    pub fn is_on_home_node(&self, expert: u32, rank: usize) -> bool {
        self.of_expert[expert as usize] == self.of_rank[rank]
    }
}
