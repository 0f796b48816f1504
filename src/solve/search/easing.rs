//! Nodes that carry more than they should give replicas to others: which, so that little load leaves its home.
//!
//! Single exchanges between ranks do not get there: all ranks of a node are about as loaded, and none gains before all do. So
//! nodes are looked at as a whole here, and their ranks are levelled afterwards.

use super::homes::Homes;
use super::state::State;

/// What excess on a node costs, where load that is not at home costs 1: above 1, so that it pays to send it away.
const EXCESS: f64 = 4.0;

/// No step makes a replica heavier than this part of what a rank should carry: its rank has other slots.
const HEAVIEST: f64 = 0.8;

/// Less than this is no improvement worth its while.
const LEAST_GAIN: f64 = 1e-9;

/// A step that lessens what is to be small.
#[derive(Debug, Clone, Copy)]
enum Step {
    Exchange(usize, usize),
    Recount { slot: usize, to: u32 },
}

/// Lessens what nodes carry beyond `most`, a rank, in each sample, and what is not at home. Looks at `left` steps, about.
pub(super) fn ease(state: &mut State, homes: &Homes, most: &[f64], mut left: usize) {
    // Each step lessens it by much; no more than these are ever taken.
    for _ in 0..2 * state.num_slots() {
        if left == 0 {
            return;
        }
        let easing = Easing::new(state, homes, most);
        left = left.saturating_sub(easing.steps());
        let Some(step) = easing.best() else { return };
        match step {
            Step::Exchange(one, other) => state.swap(&[(one, other)]),
            Step::Recount { slot, to } => state.recount(slot, to),
        }
    }
}

struct Easing<'a> {
    state: &'a State,
    homes: &'a Homes,
    /// What a rank should carry at most, `[samples]`.
    most: &'a [f64],
    num_nodes: usize,
    /// What a node may carry and does, `[nodes][samples]`.
    room: Vec<f64>,
    loads: Vec<f64>,
    /// Replicas on each node, `[experts][nodes]`.
    counts: Vec<u32>,
}

impl<'a> Easing<'a> {
    fn new(state: &'a State, homes: &'a Homes, most: &'a [f64]) -> Self {
        let num_nodes = homes.of_rank.iter().max().map_or(0, |&node| node as usize + 1);
        let samples = state.num_samples();
        let (mut room, mut loads) = (vec![0.0; num_nodes * samples], vec![0.0; num_nodes * samples]);
        let mut counts = vec![0; num_nodes * state.num_experts()];
        for rank in 0..state.num_ranks() {
            let node = homes.of_rank[rank] as usize;
            for sample in 0..samples {
                room[node * samples + sample] += most[sample];
                loads[node * samples + sample] += state.rank_loads(rank)[sample];
            }
            state.slots_of(rank).for_each(|slot| counts[state.expert(slot) as usize * num_nodes + node] += 1);
        }
        Easing { state, homes, most, num_nodes, room, loads, counts }
    }

    /// The steps that one look may see at most.
    fn steps(&self) -> usize {
        let per_slot = self.state.num_slots() + self.state.num_experts() * self.num_nodes;
        self.state.num_slots() * per_slot * self.state.num_samples()
    }

    fn node_of(&self, slot: usize) -> usize {
        self.homes.of_rank[self.state.rank_of(slot)] as usize
    }

    fn is_home(&self, expert: u32, node: usize) -> bool {
        self.homes.of_expert[expert as usize] as usize == node
    }

    fn excess(&self, node: usize, sample: usize, more: f64) -> f64 {
        let at = node * self.state.num_samples() + sample;
        (self.loads[at] + more - self.room[at]).max(0.0)
    }

    /// The step that lessens most.
    fn best(&self) -> Option<Step> {
        let mut best = (-LEAST_GAIN, None);
        let samples = self.state.num_samples();
        let over: Vec<bool> = (0..self.num_nodes)
            .map(|node| (0..samples).any(|sample| self.excess(node, sample, 0.0) > LEAST_GAIN))
            .collect();
        for slot in 0..self.state.num_slots() {
            let (node, expert) = (self.node_of(slot), self.state.expert(slot));
            if over[node] || !self.is_home(expert, node) {
                self.offer_exchanges(slot, &mut best);
            }
            if self.state.count(expert) > 1 {
                self.offer_recounts(slot, &over, &mut best);
            }
        }
        best.1
    }

    fn offer_exchanges(&self, slot: usize, best: &mut (f64, Option<Step>)) {
        let (state, node, expert) = (self.state, self.node_of(slot), self.state.expert(slot));
        let rank = state.rank_of(slot);
        for other in (0..state.num_ranks()).filter(|&other| self.homes.of_rank[other] as usize != node) {
            let to = self.homes.of_rank[other] as usize;
            if state.holds(other, expert) {
                continue;
            }
            for theirs in state.slots_of(other) {
                let back = state.expert(theirs);
                let mut change = 0.0;
                for (sample, (mine, its)) in state.weights(expert).iter().zip(state.weights(back)).enumerate()
                {
                    let by = mine - its;
                    let excess = self.excess(node, sample, -by) + self.excess(to, sample, by)
                        - self.excess(node, sample, 0.0)
                        - self.excess(to, sample, 0.0);
                    let away = |expert, node| f64::from(u8::from(!self.is_home(expert, node)));
                    change += EXCESS * excess
                        + mine * (away(expert, to) - away(expert, node))
                        + its * (away(back, node) - away(back, to));
                }
                if change < best.0 && !state.holds(rank, back) {
                    *best = (change, Some(Step::Exchange(slot, theirs)));
                }
            }
        }
    }

    /// To experts that are at home on a node with too much, or here.
    fn offer_recounts(&self, slot: usize, over: &[bool], best: &mut (f64, Option<Step>)) {
        let (state, node, from) = (self.state, self.node_of(slot), self.state.expert(slot));
        let rank = state.rank_of(slot);
        let lighter = f64::from(state.count(from) - 1);
        if state.load(from).iter().zip(self.most).any(|(load, most)| load / lighter > HEAVIEST * most) {
            return;
        }
        let of_use = |to: u32| {
            let home = self.homes.of_expert[to as usize] as usize;
            over[home] || (home == node && !self.is_home(from, node))
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
                    let given = (count(from) - here) * fewer - count(from) * state.weights(from)[sample];
                    let taken = (count(to) + here) * more - count(to) * state.weights(to)[sample];
                    let excess = self.excess(other, sample, given + taken) - self.excess(other, sample, 0.0);
                    change += EXCESS * excess;
                    change += if self.is_home(from, other) { 0.0 } else { given };
                    change += if self.is_home(to, other) { 0.0 } else { taken };
                }
            }
            if change < best.0 && !state.holds(rank, to) {
                *best = (change, Some(Step::Recount { slot, to }));
            }
        }
    }
}
