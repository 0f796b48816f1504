//! A placement of one layer during the search: the expert of each slot, and the load of each rank in each
//! sample.

use std::sync::Arc;

use super::home_node::HomeNodes;
use super::measure::Measure;
use crate::placement::{NO_EXPERT, Shape, held_slots};
use crate::solve::pinned::Pins;

/// Loads are scaled: a rank's mean load in a sample is the sample's weight. These weights sum up to 1. So the
/// weighted mean of max / mean over samples is the sum of the maximum rank loads.
#[derive(Debug, Clone)]
pub(super) struct State {
    width: usize,
    /// `[ranks]`, if some lack slots.
    rank_num_slots: Option<Arc<[u32]>>,
    num_ranks: usize,
    num_samples: usize,
    measure: Arc<Measure>,
    /// `[experts][samples]`
    loads: Vec<f64>,
    /// The mean rank load, `[samples]`.
    means: Vec<f64>,
    counts: Vec<u32>,
    /// The load of one replica, `[experts][samples]`.
    replica_loads: Vec<f64>,
    /// The expert of each slot, [`NO_EXPERT`] in those that a rank lacks. Slots of a rank are sorted by load
    /// in the first sample.
    slots: Vec<u32>,
    /// The load of each slot in the first sample.
    slot_loads: Vec<f64>,
    /// `[ranks][samples]`
    rank_loads: Vec<f64>,
    /// The ranks by ascending load in the first sample.
    order: Vec<u32>,
    home_nodes: Option<Arc<HomeNodes>>,
    /// The off-node cost of each rank. Empty if nodes do not matter.
    off_node_cost: Vec<f64>,
    duplicates_allowed: bool,
    pins: Option<Arc<Pins>>,
}

impl State {
    /// Creates a state with empty slots. `loads` is `[experts][samples]`.
    pub fn new(
        loads: Vec<f64>,
        measure: Arc<Measure>,
        counts: Vec<u32>,
        shape: Shape,
        rank_num_slots: Option<&[u32]>,
        pins: Option<Arc<Pins>>,
    ) -> Self {
        let (num_slots, num_ranks) = (shape.num_slots(), shape.num_ranks());
        let num_samples = loads.len() / counts.len();
        let num_experts = counts.len() as u32;
        let mean = |sample| loads[sample..].iter().step_by(num_samples).sum::<f64>() / num_ranks as f64;
        let mut state = State {
            width: shape.slots_per_rank(),
            rank_num_slots: rank_num_slots.map(Arc::from),
            num_ranks,
            num_samples,
            measure,
            means: (0..num_samples).map(mean).collect(),
            replica_loads: loads.clone(),
            loads,
            counts,
            slots: vec![NO_EXPERT; num_slots],
            slot_loads: vec![0.0; num_slots],
            rank_loads: vec![0.0; num_ranks * num_samples],
            order: (0..num_ranks as u32).collect(),
            home_nodes: None,
            off_node_cost: Vec::new(),
            duplicates_allowed: num_slots / num_ranks > num_experts as usize,
            pins,
        };
        (0..num_experts).for_each(|expert| state.update_replica_loads(expert));
        state
    }

    /// Adds the off-node cost, from the next [`State::update_all`] on.
    pub fn with_home_nodes(self, home_nodes: Arc<HomeNodes>) -> Self {
        State { off_node_cost: vec![0.0; self.num_ranks], home_nodes: Some(home_nodes), ..self }
    }

    pub fn has_home_nodes(&self) -> bool {
        self.home_nodes.is_some()
    }

    /// Returns whether a rank is on the home node of an expert, or nodes do not matter.
    pub fn is_on_home_node(&self, expert: u32, rank: usize) -> bool {
        self.home_nodes.as_ref().is_none_or(|home_nodes| home_nodes.is_on_home_node(expert, rank))
    }

    /// Returns whether two ranks are on one node, or nodes do not matter.
    pub fn are_on_one_node(&self, one: usize, other: usize) -> bool {
        self.home_nodes.as_ref().is_none_or(|home_nodes| home_nodes.of_rank[one] == home_nodes.of_rank[other])
    }

    /// Returns the off-node cost of `load` of an expert on a rank, of all samples together.
    pub fn load_off_node_cost(&self, expert: u32, rank: usize, load: f64) -> f64 {
        match &self.home_nodes {
            Some(home_nodes) if !home_nodes.is_on_home_node(expert, rank) => home_nodes.price * load,
            _ => 0.0,
        }
    }

    /// Returns the off-node cost of a replica on a rank.
    pub fn replica_off_node_cost(&self, expert: u32, rank: usize) -> f64 {
        match self.is_on_home_node(expert, rank) {
            true => 0.0,
            false => self.load_off_node_cost(expert, rank, self.replica_loads(expert).iter().sum()),
        }
    }

    /// Returns the off-node cost of all replicas.
    pub fn off_node_cost(&self) -> f64 {
        self.off_node_cost.iter().sum()
    }

    fn update_replica_loads(&mut self, expert: u32) {
        let (range, count) = (self.samples(expert as usize), f64::from(self.counts[expert as usize]));
        for (replica_load, load) in self.replica_loads[range.clone()].iter_mut().zip(&self.loads[range]) {
            *replica_load = load / count;
        }
    }

    fn samples(&self, index: usize) -> std::ops::Range<usize> {
        index * self.num_samples..(index + 1) * self.num_samples
    }

    /// The measure over samples.
    pub fn measure(&self) -> &Measure {
        &self.measure
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    pub fn num_samples(&self) -> usize {
        self.num_samples
    }

    pub fn num_experts(&self) -> usize {
        self.counts.len()
    }

    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    pub fn count(&self, expert: u32) -> u32 {
        self.counts[expert as usize]
    }

    /// The load of an expert, `[samples]`.
    pub fn load(&self, expert: u32) -> &[f64] {
        &self.loads[self.samples(expert as usize)]
    }

    /// The load of a replica of an expert, `[samples]`.
    pub fn replica_loads(&self, expert: u32) -> &[f64] {
        &self.replica_loads[self.samples(expert as usize)]
    }

    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    pub fn expert(&self, slot: usize) -> u32 {
        self.slots[slot]
    }

    /// The loads of a rank's slots in the first sample, ascending.
    pub fn slot_loads(&self, rank: usize) -> &[f64] {
        &self.slot_loads[self.slots_of(rank)]
    }

    pub fn slots_of(&self, rank: usize) -> std::ops::Range<usize> {
        let width = self.rank_num_slots.as_ref().map_or(self.width, |slots| slots[rank] as usize);
        rank * self.width..rank * self.width + width
    }

    pub fn rank_of(&self, slot: usize) -> usize {
        slot / self.width
    }

    pub fn holds(&self, rank: usize, expert: u32) -> bool {
        self.slots[self.slots_of(rank)].contains(&expert)
    }

    /// Sets whether steps may add duplicates. They always may if ranks have more slots than there are
    /// experts.
    pub fn allow_duplicates(&mut self, allowed: bool) {
        self.duplicates_allowed = allowed || self.width > self.num_experts();
    }

    /// Returns whether a step may give an expert to a rank.
    pub fn may_take(&self, rank: usize, expert: u32) -> bool {
        self.duplicates_allowed || !self.holds(rank, expert)
    }

    pub fn has_pins(&self) -> bool {
        self.pins.is_some()
    }

    /// Returns whether a step may take the experts out of these slots of one rank, all of them.
    pub fn may_give(&self, slots: &[usize]) -> bool {
        let Some(pins) = &self.pins else { return true };
        slots.iter().all(|&slot| {
            let (rank, expert) = (self.rank_of(slot), self.expert(slot));
            let num_given = slots.iter().filter(|&&other| self.expert(other) == expert).count();
            pins.may_give(rank, &self.slots[self.slots_of(rank)], expert, num_given)
        })
    }

    /// Returns whether a step may give the slot another expert.
    pub fn may_change(&self, slot: usize) -> bool {
        self.count(self.expert(slot)) > 1 && self.may_give(&[slot])
    }

    /// The load of a rank, `[samples]`.
    pub fn rank_loads(&self, rank: usize) -> &[f64] {
        &self.rank_loads[self.samples(rank)]
    }

    /// `[ranks][samples]`
    pub fn all_rank_loads(&self) -> &[f64] {
        &self.rank_loads
    }

    /// The mean rank load of a sample.
    pub fn mean(&self, sample: usize) -> f64 {
        self.means[sample]
    }

    /// The ranks by ascending load in the first sample.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Puts an expert into a slot. The rank is invalid until [`State::update_all`].
    pub fn place(&mut self, slot: usize, expert: u32) {
        self.slots[slot] = expert;
    }

    /// Recomputes the loads of all ranks and sorts slots and ranks.
    pub fn update_all(&mut self) {
        self.rank_loads.fill(0.0);
        for rank in 0..self.num_ranks {
            let (range, replica_loads, samples) =
                (self.slots_of(rank), &self.replica_loads, self.num_samples);
            let load = |expert: u32| replica_loads[expert as usize * samples];
            self.slots[range].sort_by(|&a, &b| load(a).total_cmp(&load(b)));
            self.sum_rank(rank);
        }
        self.sort_ranks();
    }

    /// Replaces all slots.
    pub fn replace(&mut self, slots: &[u32]) {
        self.counts.fill(0);
        held_slots(slots).for_each(|(_, expert)| self.counts[expert as usize] += 1);
        self.slots.copy_from_slice(slots);
        (0..self.counts.len() as u32).for_each(|expert| self.update_replica_loads(expert));
        self.update_all();
    }

    /// Sorts the ranks by load.
    pub fn sort_ranks(&mut self) {
        let Self { rank_loads, order, num_samples, .. } = self;
        let load_of = |rank: u32| rank_loads[rank as usize * *num_samples];
        order.sort_unstable_by(|&a, &b| load_of(a).total_cmp(&load_of(b)).then(a.cmp(&b)));
    }

    fn sum_rank(&mut self, rank: usize) {
        let (range, slots) = (self.samples(rank), self.slots_of(rank));
        let loads = &mut self.rank_loads[range];
        loads.fill(0.0);
        for (&expert, slot_load) in self.slots[slots.clone()].iter().zip(&mut self.slot_loads[slots]) {
            let first = expert as usize * self.num_samples;
            *slot_load = self.replica_loads[first];
            if let [load] = loads {
                *load += *slot_load;
                continue;
            }
            let replica_loads = &self.replica_loads[first..first + self.num_samples];
            loads.iter_mut().zip(replica_loads).for_each(|(load, replica_load)| *load += replica_load);
        }
        if self.home_nodes.is_some() {
            self.off_node_cost[rank] =
                self.slots_of(rank).map(|slot| self.replica_off_node_cost(self.slots[slot], rank)).sum();
        }
    }

    /// Sorts the slots of a rank whose loads are up to date.
    fn sort_slots(&mut self, rank: usize) {
        let range = self.slots_of(rank);
        let (slots, loads) = (&mut self.slots[range.clone()], &mut self.slot_loads[range]);
        // Insertion sort: the slots are mostly sorted already.
        for end in 1..slots.len() {
            let mut place = end;
            while place > 0 && loads[place - 1] > loads[place] {
                slots.swap(place - 1, place);
                loads.swap(place - 1, place);
                place -= 1;
            }
        }
    }

    /// Recomputes a rank after a change of its slots.
    fn update_rank(&mut self, rank: usize) {
        self.sum_rank(rank);
        self.sort_slots(rank);
        let Self { rank_loads, order, num_samples, .. } = self;
        let load_of = |rank: u32| rank_loads[rank as usize * *num_samples];
        let load = load_of(rank as u32);
        let mut place =
            order.iter().position(|&other| other == rank as u32).expect("every rank is in the order");
        while place > 0 && load_of(order[place - 1]) > load {
            order.swap(place - 1, place);
            place -= 1;
        }
        while place + 1 < order.len() && load_of(order[place + 1]) < load {
            order.swap(place, place + 1);
            place += 1;
        }
    }

    /// Exchanges the experts of slots of two ranks.
    pub fn swap(&mut self, pairs: &[(usize, usize)]) {
        for rank in self.swap_slots(pairs) {
            self.update_rank(rank);
        }
    }

    /// Like [`State::swap`]. The order is invalid until [`State::sort_ranks`].
    pub fn swap_unordered(&mut self, pairs: &[(usize, usize)]) {
        for rank in self.swap_slots(pairs) {
            self.sum_rank(rank);
            self.sort_slots(rank);
        }
    }

    /// Returns the two ranks.
    fn swap_slots(&mut self, pairs: &[(usize, usize)]) -> [usize; 2] {
        for &(one, other) in pairs {
            self.slots.swap(one, other);
        }
        let (one, other) = pairs[0];
        [self.rank_of(one), self.rank_of(other)]
    }

    /// Gives a slot another expert.
    pub fn set_expert(&mut self, slot: usize, to: u32) {
        let from = std::mem::replace(&mut self.slots[slot], to);
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
        self.update_replica_loads(from);
        self.update_replica_loads(to);
        for rank in 0..self.num_ranks {
            if rank == self.rank_of(slot) || self.holds(rank, from) || self.holds(rank, to) {
                self.sum_rank(rank);
                self.sort_slots(rank);
            }
        }
        self.sort_ranks();
    }

    /// Returns the rank loads of other slots for the same loads, `[ranks][samples]`.
    pub fn rank_loads_of(&self, slots: &[u32], counts: &[u32]) -> Vec<f64> {
        let mut rank_loads = vec![0.0; self.num_ranks * self.num_samples];
        for (rank, loads) in rank_loads.chunks_exact_mut(self.num_samples).enumerate() {
            for &expert in &slots[self.slots_of(rank)] {
                let part = 1.0 / f64::from(counts[expert as usize]);
                loads.iter_mut().zip(self.load(expert)).for_each(|(sum, load)| *sum += load * part);
            }
        }
        rank_loads
    }

    /// Returns the cost of off-node load: see [`HomeNodes::price`].
    pub fn off_node_price(&self) -> f64 {
        self.home_nodes.as_ref().map_or(0.0, |home_nodes| home_nodes.price)
    }

    /// Returns the cost of other slots for the same loads.
    pub fn cost_of(&self, slots: &[u32], counts: &[u32]) -> f64 {
        let rank_loads = self.rank_loads_of(slots, counts);
        let max = |sample| rank_loads[sample..].iter().step_by(self.num_samples).copied().fold(0.0, f64::max);
        self.measure.of((0..self.num_samples).map(max))
    }

    /// Returns whether a rank that has `slots` may give up one of an expert.
    pub fn may_give_of(&self, rank: usize, slots: &[u32], expert: u32) -> bool {
        self.pins.as_ref().is_none_or(|pins| pins.may_give(rank, slots, expert, 1))
    }

    /// Returns what the search minimises: the measure of the maximum rank loads, plus the off-node cost.
    pub fn cost(&self) -> f64 {
        self.load_cost() + self.off_node_cost()
    }

    fn load_cost(&self) -> f64 {
        if let (1, Some(&hottest)) = (self.num_samples, self.order.last()) {
            return self.rank_loads[hottest as usize];
        }
        self.measure.of((0..self.num_samples).map(|sample| self.max_load(sample)))
    }

    fn max_load(&self, sample: usize) -> f64 {
        self.rank_loads[sample..].iter().step_by(self.num_samples).copied().fold(0.0, f64::max)
    }

    /// Iterates over slots that repeat an expert of their rank.
    pub fn duplicates(&self) -> impl Iterator<Item = usize> {
        held_slots(&self.slots).map(|(slot, _)| slot).filter(|&slot| {
            let first = self.rank_of(slot) * self.width;
            self.slots[first..slot].contains(&self.slots[slot])
        })
    }
}
