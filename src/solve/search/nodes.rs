//! The search with nodes: each group of experts has a home node, and load off it has a price or is forbidden.

use std::sync::Arc;

use super::home_node::{HomeNodes, Nodes};
use super::measure::Measure;
use super::state::State;
use super::{LEAST_SLOTS, SampleScale, Search, TOLERANCE, node_relief};
use crate::error::Result;
use crate::placement::{Shape, held_slots};
use crate::solve::deepseek::{self, Hierarchy};
use crate::solve::{lower_bound, trtllm};

/// Multiples of the effort: for the assignment of home nodes, and for the steps of node relief.
const HOME_NODE_EFFORT: usize = 16;
const RELIEF_EFFORT: usize = 1024;

/// Nodes, and the cost of all load if it were off its home node, over the mean rank load.
#[derive(Clone, Copy)]
pub(in crate::solve) struct PricedNodes<'a> {
    pub nodes: &'a Nodes,
    /// Above 0. Infinite: no replica may leave its home node.
    pub price: f64,
}

/// The lowest cost of a sample, and its maximum rank load.
struct LeastCost {
    max_load: f64,
    cost: f64,
}

impl Search<'_> {
    /// Returns the expert of each slot where load off its home node has a price. `others` are placements to
    /// start from for the search without nodes. Fails if no replica may leave its home node and the groups do
    /// not fit.
    pub fn place_on(
        &self,
        PricedNodes { nodes, price }: PricedNodes<'_>,
        others: &[Vec<u32>],
    ) -> Result<Vec<u32>> {
        let scales = self.scales();
        let loads = self.scaled(&scales);
        let hard = price.is_infinite();
        if hard {
            nodes.check_fit(self.shape)?;
        }
        let group_len = loads.len() / nodes.num_groups;
        let group_loads: Vec<f64> = loads.chunks_exact(group_len).map(|group| group.iter().sum()).collect();
        let all_home_nodes =
            nodes.home_nodes(self.shape, &group_loads, hard, self.scaled_effort(HOME_NODE_EFFORT));
        let without_nodes = if hard { None } else { Some(self.place(others)) };
        // Placements with their cost.
        let mut found: Vec<(f64, Vec<u32>)> = Vec::new();
        let priced = PricedNodes { nodes, price };
        for home_nodes in &all_home_nodes {
            // Pins may be off their home nodes, so the start is one without nodes.
            let start = match &without_nodes {
                Some(slots) if self.pins.is_some() || !nodes.fit(self.shape) => slots.clone(),
                _ => self.place_on_home_nodes(nodes, home_nodes, hard)?,
            };
            found.push(match hard {
                true => (self.cost(&loads, &start), start),
                false => self.relieve_and_improve(
                    &scales,
                    &loads,
                    priced,
                    start,
                    &self.priced_home_nodes(priced, home_nodes),
                ),
            });
        }
        // Placements that the result must not exceed.
        let mut references = Vec::new();
        if nodes.are_regular()
            && self.pins.is_none()
            && let Ok(hierarchy) = Hierarchy::new(self.shape, nodes.num_groups, nodes.num_ranks.len())
        {
            references.push(deepseek::slot_experts(&self.sums(), hierarchy));
        }
        references.extend(without_nodes);
        for slots in references {
            let cost = match hard {
                true => self.cost(&loads, &slots),
                false => {
                    let home_nodes =
                        self.priced_home_nodes(priced, &self.home_nodes_of(nodes, &loads, &slots));
                    self.state_at(&loads, &slots, home_nodes).cost()
                }
            };
            found.push((cost, slots));
        }
        Ok(found.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("at least one placement").1)
    }

    /// Relieves nodes and improves a placement for these home nodes. Returns the cost and the slots.
    fn relieve_and_improve(
        &self,
        scales: &[SampleScale],
        loads: &[f64],
        priced: PricedNodes<'_>,
        start: Vec<u32>,
        home_nodes: &Arc<HomeNodes>,
    ) -> (f64, Vec<u32>) {
        let from = self.state_at(loads, &start, home_nodes.clone());
        let least = self.least_costs(scales, priced, home_nodes);
        let bound = match **self.measure {
            Measure::Mean => least.iter().map(|least| least.cost).sum(),
            // The off-node cost is a mean over samples for every measure.
            Measure::Quantile { .. } => self.bound(scales),
        };
        let max_loads: Vec<f64> = least.iter().map(|least| least.max_load).collect();
        let effort = self.scaled_effort(RELIEF_EFFORT);
        let mut best = (from.cost(), start);
        for excess_costs in node_relief::excess_costs(&from) {
            let mut state = from.clone();
            node_relief::relieve_nodes(&mut state, home_nodes, &max_loads, excess_costs, effort);
            self.improve(&mut state, bound * (1.0 + TOLERANCE));
            if state.cost() < best.0 {
                best = (state.cost(), state.slots().to_vec());
            }
        }
        best
    }

    fn state_at(&self, loads: &[f64], slots: &[u32], home_nodes: Arc<HomeNodes>) -> State {
        let mut state = self.state(loads.to_vec(), slots).with_home_nodes(home_nodes);
        state.update_all();
        state
    }

    fn priced_home_nodes(
        &self,
        PricedNodes { nodes, price }: PricedNodes<'_>,
        of_groups: &[u32],
    ) -> Arc<HomeNodes> {
        let size = self.shape.num_experts() / nodes.num_groups;
        Arc::new(HomeNodes {
            of_expert: (0..self.shape.num_experts()).map(|expert| of_groups[expert / size]).collect(),
            of_rank: nodes.of_rank.clone(),
            price: price / self.shape.num_ranks() as f64,
        })
    }

    /// Returns the node that carries most of each group.
    fn home_nodes_of(&self, nodes: &Nodes, loads: &[f64], slots: &[u32]) -> Vec<u32> {
        let (num_nodes, num_samples) = (nodes.num_ranks.len(), self.samples.len());
        let size = self.shape.num_experts() / nodes.num_groups;
        let counts = self.counts(slots);
        let mut carried = vec![0.0; nodes.num_groups * num_nodes];
        for (slot, expert) in held_slots(slots) {
            let expert = expert as usize;
            let load: f64 = loads[expert * num_samples..][..num_samples].iter().sum();
            let node = nodes.of_rank[self.shape.rank_of(slot)] as usize;
            carried[expert / size * num_nodes + node] += load / f64::from(counts[expert]);
        }
        let heaviest = |of_nodes: &[f64]| {
            let node = (0..num_nodes).rev().max_by(|&a, &b| of_nodes[a].total_cmp(&of_nodes[b]));
            node.map_or(0, |node| node as u32)
        };
        carried.chunks_exact(num_nodes).map(heaviest).collect()
    }

    /// Returns `times` the effort.
    fn scaled_effort(&self, times: usize) -> usize {
        self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS)).saturating_mul(times)
    }

    /// Adds up the samples of each expert in the precision of the greedies.
    fn sums(&self) -> Vec<f32> {
        let sum = |expert: usize| self.samples.iter().map(|loads| loads[expert]).sum::<f64>() as f32;
        (0..self.shape.num_experts()).map(sum).collect()
    }

    /// Places each node's own experts on its ranks. Without `hard`, keeps replicas light instead of evening
    /// out fully: node relief moves them to other nodes.
    fn place_on_home_nodes(&self, nodes: &Nodes, home_nodes: &[u32], hard: bool) -> Result<Vec<u32>> {
        let (width, size) = (self.shape.slots_per_rank(), self.shape.num_experts() / nodes.num_groups);
        let mut slots = vec![0; self.shape.num_slots()];
        for (node, &num_ranks) in nodes.num_ranks.iter().enumerate() {
            let is_on_home_node = |&expert: &u32| home_nodes[expert as usize / size] as usize == node;
            let experts: Vec<u32> = (0..self.shape.num_experts() as u32).filter(is_on_home_node).collect();
            let shape = Shape::new(experts.len(), num_ranks * width, num_ranks)?;
            let of_sample =
                |loads: &&[f64]| experts.iter().map(|&expert| loads[expert as usize]).collect::<Vec<f64>>();
            let samples: Vec<Vec<f64>> = self.samples.iter().map(of_sample).collect();
            let samples: Vec<&[f64]> = samples.iter().map(|loads| &loads[..]).collect();
            // Keeps the relative weight of a load among all loads.
            let weight = |((all, part), weight): ((&&[f64], &&[f64]), &f64)| {
                let mean = |loads: &[f64], ranks: usize| loads.iter().sum::<f64>() / ranks as f64;
                let all = mean(all, self.shape.num_ranks());
                if all > 0.0 { weight * (mean(part, num_ranks) / all) } else { 0.0 }
            };
            let sample_weights: Vec<f64> =
                self.samples.iter().zip(&samples).zip(self.sample_weights).map(weight).collect();
            let search = Search {
                shape,
                rank_num_slots: None,
                pins: None,
                samples: &samples,
                sample_weights: &sample_weights,
                measure: self.measure,
                effort: self.effort,
            };
            let sums = search.sums();
            let greedies =
                [trtllm::place(&sums, shape)?, deepseek::slot_experts(&sums, Hierarchy::global(shape))];
            let placed = match hard {
                true => search.place(&greedies),
                false => search.descend(&greedies).best.slots().to_vec(),
            };
            let mut placed = placed.into_iter();
            for rank in (0..self.shape.num_ranks()).filter(|&rank| nodes.of_rank[rank] as usize == node) {
                let held = placed.by_ref().take(width).map(|index| experts[index as usize]);
                slots[rank * width..][..width].iter_mut().zip(held).for_each(|(slot, expert)| *slot = expert);
            }
        }
        Ok(slots)
    }

    /// Returns the lowest possible cost of each sample for these home nodes. At a maximum of T, load of a
    /// node beyond T per rank must be elsewhere. The cost is convex in T. So its minimum is where a node is
    /// just full, or at the lower bound.
    fn least_costs(
        &self,
        scales: &[SampleScale],
        PricedNodes { nodes, price }: PricedNodes<'_>,
        home_nodes: &HomeNodes,
    ) -> Vec<LeastCost> {
        let num_ranks = self.shape.num_ranks() as f64;
        let of_sample = |(loads, scale): (&&[f64], &SampleScale)| {
            let mut of_nodes = vec![0.0; nodes.num_ranks.len()];
            for (load, &home) in loads.iter().zip(&home_nodes.of_expert) {
                of_nodes[home as usize] += scale.scale(*load);
            }
            let bound = scale.scale(lower_bound(loads, self.shape));
            let full = of_nodes.iter().zip(&nodes.num_ranks).map(|(load, &ranks)| load / ranks as f64);
            let at = |max_load: f64| {
                let off_node = of_nodes.iter().zip(&nodes.num_ranks);
                let off_node: f64 =
                    off_node.map(|(load, &ranks)| (load - max_load * ranks as f64).max(0.0)).sum();
                LeastCost { max_load, cost: max_load + price * off_node / num_ranks }
            };
            let candidates = full.filter(|&max| max > bound).chain([bound]).map(at);
            candidates.min_by(|a, b| a.cost.total_cmp(&b.cost)).expect("the bound is a candidate")
        };
        self.samples.iter().zip(scales).map(of_sample).collect()
    }
}
