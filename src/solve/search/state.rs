//! A placement of one layer while it is searched: what each slot holds and what each rank carries, in each sample.

use std::sync::Arc;

use super::homes::Homes;
use super::measure::Measure;
use crate::placement::{NO_EXPERT, Shape, held_slots};

/// Loads are scaled so that a rank's mean load in a sample is the sample's weight, and these sum up to 1: the mean of the
/// samples' ratios of the most loaded rank's load to the mean is the sum of their most loaded ranks' loads.
#[derive(Debug, Clone)]
pub(super) struct State {
    width: usize,
    /// `[ranks]`, where some lack slots.
    slots_per_rank: Option<Arc<[u32]>>,
    num_ranks: usize,
    num_samples: usize,
    measure: Arc<Measure>,
    /// `[experts][samples]`
    loads: Vec<f64>,
    /// Of a rank, `[samples]`.
    means: Vec<f64>,
    counts: Vec<u32>,
    /// Of one replica, `[experts][samples]`.
    weights: Vec<f64>,
    /// The expert of each slot, [`NO_EXPERT`] of those that a rank lacks; of each rank by ascending weight in the first sample.
    slots: Vec<u32>,
    /// What each slot holds weighs in the first sample.
    slot_weights: Vec<f64>,
    /// `[ranks][samples]`
    rank_loads: Vec<f64>,
    /// The ranks by ascending load in the first sample.
    order: Vec<u32>,
    homes: Option<Arc<Homes>>,
    /// What each rank's replicas that are not at home cost; empty where nodes are no matter.
    tolls: Vec<f64>,
    duplicates_allowed: bool,
}

impl State {
    /// Nothing is in the slots yet. `loads` is `[experts][samples]`.
    pub fn new(
        loads: Vec<f64>,
        measure: Arc<Measure>,
        counts: Vec<u32>,
        shape: Shape,
        slots_per_rank: Option<&[u32]>,
    ) -> Self {
        let (num_slots, num_ranks) = (shape.num_slots(), shape.num_ranks());
        let num_samples = loads.len() / counts.len();
        let num_experts = counts.len() as u32;
        let mean = |sample| loads[sample..].iter().step_by(num_samples).sum::<f64>() / num_ranks as f64;
        let mut state = State {
            width: shape.slots_per_rank(),
            slots_per_rank: slots_per_rank.map(Arc::from),
            num_ranks,
            num_samples,
            measure,
            means: (0..num_samples).map(mean).collect(),
            weights: loads.clone(),
            loads,
            counts,
            slots: vec![NO_EXPERT; num_slots],
            slot_weights: vec![0.0; num_slots],
            rank_loads: vec![0.0; num_ranks * num_samples],
            order: (0..num_ranks as u32).collect(),
            homes: None,
            tolls: Vec::new(),
            duplicates_allowed: num_slots / num_ranks > num_experts as usize,
        };
        (0..num_experts).for_each(|expert| state.weigh(expert));
        state
    }

    /// Has load outside its home cost something, from the next [`State::settle`] on.
    pub fn with_homes(self, homes: Arc<Homes>) -> Self {
        State { tolls: vec![0.0; self.num_ranks], homes: Some(homes), ..self }
    }

    pub fn has_homes(&self) -> bool {
        self.homes.is_some()
    }

    /// Whether an expert's node is that of a rank, or nodes are no matter.
    pub fn is_home(&self, expert: u32, rank: usize) -> bool {
        self.homes.as_ref().is_none_or(|homes| homes.is_home(expert, rank))
    }

    /// Whether an exchange between two ranks leaves all load on its node.
    pub fn are_on_one_node(&self, one: usize, other: usize) -> bool {
        self.homes.as_ref().is_none_or(|homes| homes.of_rank[one] == homes.of_rank[other])
    }

    /// What `load` of all samples together, of an expert, costs on a rank.
    pub fn toll(&self, expert: u32, rank: usize, load: f64) -> f64 {
        match &self.homes {
            Some(homes) if !homes.is_home(expert, rank) => homes.price * load,
            _ => 0.0,
        }
    }

    /// What a replica of an expert costs on a rank.
    pub fn toll_of_replica(&self, expert: u32, rank: usize) -> f64 {
        match self.is_home(expert, rank) {
            true => 0.0,
            false => self.toll(expert, rank, self.weights(expert).iter().sum()),
        }
    }

    /// What all replicas that are not at home cost.
    pub fn tolls(&self) -> f64 {
        self.tolls.iter().sum()
    }

    fn weigh(&mut self, expert: u32) {
        let (range, count) = (self.samples(expert as usize), f64::from(self.counts[expert as usize]));
        for (weight, load) in self.weights[range.clone()].iter_mut().zip(&self.loads[range]) {
            *weight = load / count;
        }
    }

    fn samples(&self, row: usize) -> std::ops::Range<usize> {
        row * self.num_samples..(row + 1) * self.num_samples
    }

    /// What is to be small of several samples.
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

    /// What an expert carries in each sample.
    pub fn load(&self, expert: u32) -> &[f64] {
        &self.loads[self.samples(expert as usize)]
    }

    /// What a replica of an expert weighs in each sample.
    pub fn weights(&self, expert: u32) -> &[f64] {
        &self.weights[self.samples(expert as usize)]
    }

    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    pub fn expert(&self, slot: usize) -> u32 {
        self.slots[slot]
    }

    /// What the slots of a rank weigh in the first sample, ascending.
    pub fn slot_weights(&self, rank: usize) -> &[f64] {
        &self.slot_weights[self.slots_of(rank)]
    }

    pub fn slots_of(&self, rank: usize) -> std::ops::Range<usize> {
        let width = self.slots_per_rank.as_ref().map_or(self.width, |slots| slots[rank] as usize);
        rank * self.width..rank * self.width + width
    }

    pub fn rank_of(&self, slot: usize) -> usize {
        slot / self.width
    }

    pub fn holds(&self, rank: usize, expert: u32) -> bool {
        self.slots[self.slots_of(rank)].contains(&expert)
    }

    /// Whether exchanges and recounts may give an expert to a rank that holds it. They may from the start where ranks have more
    /// slots than there are experts.
    pub fn allow_duplicates(&mut self, allowed: bool) {
        self.duplicates_allowed = allowed || self.width > self.num_experts();
    }

    /// Whether an exchange or a recount may give an expert to a rank.
    pub fn may_take(&self, rank: usize, expert: u32) -> bool {
        self.duplicates_allowed || !self.holds(rank, expert)
    }

    /// What a rank carries in each sample.
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

    /// Puts an expert into a slot whose rank is not to be asked before [`State::settle`].
    pub fn fill(&mut self, slot: usize, expert: u32) {
        self.slots[slot] = expert;
    }

    /// Adds up what the slots hold.
    pub fn settle(&mut self) {
        self.rank_loads.fill(0.0);
        for rank in 0..self.num_ranks {
            let (range, weights, samples) = (self.slots_of(rank), &self.weights, self.num_samples);
            let weight = |expert: u32| weights[expert as usize * samples];
            self.slots[range].sort_by(|&a, &b| weight(a).total_cmp(&weight(b)));
            self.add_up(rank);
        }
        self.sort_ranks();
    }

    fn sort_ranks(&mut self) {
        let Self { rank_loads, order, num_samples, .. } = self;
        let load_of = |rank: u32| rank_loads[rank as usize * *num_samples];
        order.sort_unstable_by(|&a, &b| load_of(a).total_cmp(&load_of(b)).then(a.cmp(&b)));
    }

    fn add_up(&mut self, rank: usize) {
        let (range, slots) = (self.samples(rank), self.slots_of(rank));
        let loads = &mut self.rank_loads[range];
        loads.fill(0.0);
        for slot in slots {
            let held = self.slots[slot] as usize * self.num_samples;
            let weights = &self.weights[held..held + self.num_samples];
            self.slot_weights[slot] = weights[0];
            loads.iter_mut().zip(weights).for_each(|(load, weight)| *load += weight);
        }
        if self.homes.is_some() {
            self.tolls[rank] =
                self.slots_of(rank).map(|slot| self.toll_of_replica(self.slots[slot], rank)).sum();
        }
    }

    /// Of a rank that is added up.
    fn sort_slots(&mut self, rank: usize) {
        let range = self.slots_of(rank);
        let (slots, weights) = (&mut self.slots[range.clone()], &mut self.slot_weights[range]);
        // Almost sorted mostly.
        for end in 1..slots.len() {
            let mut place = end;
            while place > 0 && weights[place - 1] > weights[place] {
                slots.swap(place - 1, place);
                weights.swap(place - 1, place);
                place -= 1;
            }
        }
    }

    /// What a rank holds changed.
    fn resettle(&mut self, rank: usize) {
        self.add_up(rank);
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

    /// Exchanges what slots of two ranks hold.
    pub fn swap(&mut self, pairs: &[(usize, usize)]) {
        for &(one, other) in pairs {
            self.slots.swap(one, other);
        }
        let (one, other) = pairs[0];
        self.resettle(self.rank_of(one));
        self.resettle(self.rank_of(other));
    }

    /// Gives a slot to another expert.
    pub fn recount(&mut self, slot: usize, to: u32) {
        let from = std::mem::replace(&mut self.slots[slot], to);
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
        self.weigh(from);
        self.weigh(to);
        for rank in 0..self.num_ranks {
            if rank == self.rank_of(slot) || self.holds(rank, from) || self.holds(rank, to) {
                self.add_up(rank);
                self.sort_slots(rank);
            }
        }
        self.sort_ranks();
    }

    /// What is to be small of the samples' most loaded ranks' loads, and what is not at home.
    pub fn cost(&self) -> f64 {
        self.unevenness() + self.tolls()
    }

    fn unevenness(&self) -> f64 {
        if let (1, Some(&hottest)) = (self.num_samples, self.order.last()) {
            return self.rank_loads[hottest as usize];
        }
        self.measure.of((0..self.num_samples).map(|sample| self.most(sample)))
    }

    fn most(&self, sample: usize) -> f64 {
        self.rank_loads[sample..].iter().step_by(self.num_samples).copied().fold(0.0, f64::max)
    }

    /// Slots that repeat an expert of their rank.
    pub fn duplicates(&self) -> impl Iterator<Item = usize> {
        held_slots(&self.slots).map(|(slot, _)| slot).filter(|&slot| {
            let first = self.rank_of(slot) * self.width;
            self.slots[first..slot].contains(&self.slots[slot])
        })
    }
}
