//! The search where nodes matter: each group of experts has a home node, and load off it has a price or is not allowed.

use std::sync::Arc;

use super::homes::{Homes, Nodes};
use super::measure::Measure;
use super::state::State;
use super::{LEAST_SLOTS, Search, TOLERANCE, Unit, easing};
use crate::error::Result;
use crate::placement::{Shape, held_slots};
use crate::solve::deepseek::{self, Hierarchy};
use crate::solve::{lower_bound, trtllm};

/// How many times the effort goes to homes and to steps that ease nodes, which are looked at all together.
const LOOKS_AT_HOMES: usize = 16;
const LOOKS_AT_STEPS: usize = 1024;

/// Nodes, and what all load outside its home would cost, in units of the mean rank load.
#[derive(Clone, Copy)]
pub(in crate::solve) struct Priced<'a> {
    pub nodes: &'a Nodes,
    /// Above 0; infinite where nothing may leave its home.
    pub price: f64,
}

/// The maximum rank load at which a sample costs least, and that cost.
struct Least {
    most: f64,
    cost: f64,
}

impl Search<'_> {
    /// As [`Search::place`] on `nodes`, where an expert's load outside the home of its group has a price; `others` are for the
    /// search to which nodes are no matter. Fails where nothing may leave its home and the groups do not fit.
    pub fn place_on(&self, Priced { nodes, price }: Priced<'_>, others: &[Vec<u32>]) -> Result<Vec<u32>> {
        let units = self.units();
        let loads = self.scaled(&units);
        let hard = price.is_infinite();
        if hard {
            nodes.check_fit(self.shape)?;
        }
        let group = loads.len() / nodes.num_groups;
        let of_groups: Vec<f64> = loads.chunks_exact(group).map(|group| group.iter().sum()).collect();
        let all_homes = nodes.homes(self.shape, &of_groups, hard, self.looks(LOOKS_AT_HOMES));
        // With what they cost.
        let mut found: Vec<(f64, Vec<u32>)> = Vec::new();
        let priced = Priced { nodes, price };
        for homes in &all_homes {
            let start = match nodes.fit(self.shape) {
                true => self.place_at_home(nodes, homes, hard)?,
                false => self.place(others),
            };
            found.push(match hard {
                true => (self.cost(&loads, &start), start),
                false => self.ease(&units, &loads, priced, start, &self.priced_homes(priced, homes)),
            });
        }
        // What none may be worse than.
        let mut floors = Vec::new();
        if nodes.are_regular()
            && let Ok(hierarchy) = Hierarchy::new(self.shape, nodes.num_groups, nodes.num_ranks.len())
        {
            floors.push(deepseek::slot_experts(&self.sums(), hierarchy));
        }
        if !hard {
            floors.push(self.place(others));
        }
        for slots in floors {
            let cost = match hard {
                true => self.cost(&loads, &slots),
                false => {
                    let homes = self.priced_homes(priced, &self.homes_of(nodes, &loads, &slots));
                    self.state_at(&loads, &slots, homes).cost()
                }
            };
            found.push((cost, slots));
        }
        Ok(found.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are homes").1)
    }

    /// What comes of a placement on `nodes` whose groups have these homes, and its cost.
    fn ease(
        &self,
        units: &[Unit],
        loads: &[f64],
        priced: Priced<'_>,
        start: Vec<u32>,
        homes: &Arc<Homes>,
    ) -> (f64, Vec<u32>) {
        let mut state = self.state_at(loads, &start, homes.clone());
        let least = self.least_costs(units, priced, homes);
        let bound = match **self.measure {
            Measure::Mean => least.iter().map(|least| least.cost).sum(),
            // What is off its node is paid for in the mean of all samples, whichever the measure.
            Measure::Quantile { .. } => self.bound(units),
        };
        let most: Vec<f64> = least.iter().map(|least| least.most).collect();
        let to_beat = state.cost();
        easing::ease(&mut state, homes, &most, self.looks(LOOKS_AT_STEPS));
        self.improve(&mut state, bound * (1.0 + TOLERANCE));
        if state.cost() < to_beat { (state.cost(), state.slots().to_vec()) } else { (to_beat, start) }
    }

    fn state_at(&self, loads: &[f64], slots: &[u32], homes: Arc<Homes>) -> State {
        let mut state = self.state(loads.to_vec(), slots).with_homes(homes);
        state.settle();
        state
    }

    fn priced_homes(&self, Priced { nodes, price }: Priced<'_>, of_groups: &[u32]) -> Arc<Homes> {
        let size = self.shape.num_experts() / nodes.num_groups;
        Arc::new(Homes {
            of_expert: (0..self.shape.num_experts()).map(|expert| of_groups[expert / size]).collect(),
            of_rank: nodes.of_rank.clone(),
            price: price / self.shape.num_ranks() as f64,
        })
    }

    /// The node that carries most of each group.
    fn homes_of(&self, nodes: &Nodes, loads: &[f64], slots: &[u32]) -> Vec<u32> {
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
        let most = |of_nodes: &[f64]| {
            let node = (0..num_nodes).rev().max_by(|&a, &b| of_nodes[a].total_cmp(&of_nodes[b]));
            node.map_or(0, |node| node as u32)
        };
        carried.chunks_exact(num_nodes).map(most).collect()
    }

    /// What may be looked at where nodes matter: `times` as much as the effort.
    fn looks(&self, times: usize) -> usize {
        self.effort.saturating_mul(self.shape.num_slots().max(LEAST_SLOTS)).saturating_mul(times)
    }

    /// The samples of each expert added up, as greedies have them.
    fn sums(&self) -> Vec<f32> {
        let sum = |expert: usize| self.samples.iter().map(|loads| loads[expert]).sum::<f64>() as f32;
        (0..self.shape.num_experts()).map(sum).collect()
    }

    /// Each node by itself, with the experts that are at home there. Unless it is to stay so, heavy replicas are not worth what
    /// they level: nodes are eased by replicas that can go elsewhere.
    fn place_at_home(&self, nodes: &Nodes, homes: &[u32], to_stay: bool) -> Result<Vec<u32>> {
        let (width, size) = (self.shape.slots_per_rank(), self.shape.num_experts() / nodes.num_groups);
        let mut slots = vec![0; self.shape.num_slots()];
        for (node, &num_ranks) in nodes.num_ranks.iter().enumerate() {
            let is_home = |&expert: &u32| homes[expert as usize / size] as usize == node;
            let experts: Vec<u32> = (0..self.shape.num_experts() as u32).filter(is_home).collect();
            let shape = Shape::new(experts.len(), num_ranks * width, num_ranks)?;
            let of_sample =
                |loads: &&[f64]| experts.iter().map(|&expert| loads[expert as usize]).collect::<Vec<f64>>();
            let samples: Vec<Vec<f64>> = self.samples.iter().map(of_sample).collect();
            let samples: Vec<&[f64]> = samples.iter().map(|loads| &loads[..]).collect();
            // So that a load weighs as much as it does among all.
            let weight = |((all, part), weight): ((&&[f64], &&[f64]), &f64)| {
                let mean = |loads: &[f64], ranks: usize| loads.iter().sum::<f64>() / ranks as f64;
                let all = mean(all, self.shape.num_ranks());
                if all > 0.0 { weight * (mean(part, num_ranks) / all) } else { 0.0 }
            };
            let weights: Vec<f64> = self.samples.iter().zip(&samples).zip(self.weights).map(weight).collect();
            let search = Search {
                shape,
                slots_per_rank: None,
                samples: &samples,
                weights: &weights,
                measure: self.measure,
                effort: self.effort,
            };
            let sums = search.sums();
            let greedies =
                [trtllm::place(&sums, shape)?, deepseek::slot_experts(&sums, Hierarchy::global(shape))];
            let placed = match to_stay {
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

    /// Of each sample, what no placement costs less than with these homes: at a maximum of T, what a node's experts carry beyond T on each of
    /// its ranks is elsewhere. Of all T, since that is convex, the best is where a node is just full, or at the bound.
    fn least_costs(&self, units: &[Unit], Priced { nodes, price }: Priced<'_>, homes: &Homes) -> Vec<Least> {
        let num_ranks = self.shape.num_ranks() as f64;
        let of_sample = |(loads, unit): (&&[f64], &Unit)| {
            let mut of_nodes = vec![0.0; nodes.num_ranks.len()];
            for (load, &home) in loads.iter().zip(&homes.of_expert) {
                of_nodes[home as usize] += unit.scale(*load);
            }
            let bound = unit.scale(lower_bound(loads, self.shape));
            let full = of_nodes.iter().zip(&nodes.num_ranks).map(|(load, &ranks)| load / ranks as f64);
            let at = |most: f64| {
                let away = of_nodes.iter().zip(&nodes.num_ranks);
                let away: f64 = away.map(|(load, &ranks)| (load - most * ranks as f64).max(0.0)).sum();
                Least { most, cost: most + price * away / num_ranks }
            };
            let candidates = full.filter(|&most| most > bound).chain([bound]).map(at);
            candidates.min_by(|a, b| a.cost.total_cmp(&b.cost)).expect("there is the bound")
        };
        self.samples.iter().zip(units).map(of_sample).collect()
    }
}
