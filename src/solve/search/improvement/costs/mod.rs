//! The exact cost and the smooth cost of a placement, with what each slot and expert would gain.

mod givers;
mod ranks;

use self::givers::{Gains, Givers};
use self::ranks::UpdateRanks;
use super::Improvement;
use super::changes::Replacement;
use super::exact::ExactLoads;
use crate::placement::NO_EXPERT;
use crate::solve::search::lanes::{Kernel, LANES, Vectors};

/// Ends the list of an expert's replicas.
const END: u32 = u32::MAX;

/// A placement with its smooth costs.
///
/// As in the search, loads are scaled so that the smooth costs of a sample sum up to its weight times the norm of
/// its rank loads. So a gain divided by p is about the gain in the exact cost.
///
/// Numbers of slots lie in rows of whole vectors, one row for each rank. A place in a row is a cell. Lanes are
/// slots, ranks or experts; samples follow each other. So sums over samples have one order on every processor.
#[derive(Default)]
pub(super) struct LayerCosts {
    pub exact: ExactLoads,
    vectors: Vectors,
    squarings: u32,
    pub num_samples: usize,
    pub num_ranks: usize,
    width: usize,
    /// The cells of a rank.
    pub row: usize,
    /// Ranks and experts, each rounded up to whole vectors.
    pub rank_lanes: usize,
    pub expert_lanes: usize,
    /// The slots that each rank may use.
    pub num_slots: Vec<usize>,
    /// The rank of each vector of cells.
    rank_of_vectors: Vec<usize>,
    /// `[ranks][cells]`: the expert of each cell.
    pub experts: Vec<u32>,
    pub counts: Vec<u32>,
    /// The cells of each expert's replicas, as lists: `[experts]`, `[ranks][cells]`.
    first: Vec<u32>,
    next: Vec<u32>,
    /// `[experts][samples]` and `[ranks][samples]`
    exact_replica_loads: Vec<f64>,
    exact_rank_loads: Vec<f64>,
    /// `[samples][experts]`
    pub loads: Vec<f32>,
    /// One over the number of replicas of each cell's expert, over one more, and over one fewer or 0: `[ranks][cells]`.
    /// The last is 1 in empty cells. Where it is above 0, the cell may take another expert.
    part: Vec<f32>,
    pub thin: Vec<f32>,
    pub thick: Vec<f32>,
    /// The load of each cell's replica, and with one more replica, infinite where there is none:
    /// `[samples][ranks][cells]`.
    pub replica_loads: Vec<f32>,
    pub more_loads: Vec<f32>,
    pub givers: Givers,
    /// `[samples][ranks]`
    pub rank_loads: Vec<f32>,
    /// `[ranks]`
    pub costs: Vec<f32>,
    /// The number of updates so far, and that of the last one of each rank.
    pub clock: u32,
    pub versions: Vec<u32>,
    /// What the rank of each cell would gain without the replica, `[ranks][cells]`.
    pub removed: Vec<f32>,
    /// The load of the rank without it, which is read with one sample only, and the cost of the rank.
    without: Vec<f32>,
    rank_costs: Vec<f32>,
    /// What the rank would gain if the expert had a replica more elsewhere, and lose if it had one fewer.
    pub thinner: Vec<f32>,
    pub thicker: Vec<f32>,
    /// The sum of `thinner` over all replicas of a cell's expert, `[ranks][cells]`.
    pub gained: Vec<f32>,
    changed_ranks: Vec<usize>,
}

/// Sets the length, with the same number everywhere.
fn refill<T: Copy>(numbers: &mut Vec<T>, length: usize, number: T) {
    numbers.clear();
    numbers.resize(length, number);
}

impl LayerCosts {
    /// Takes the loads of another improvement, in the same memory. Nothing from before changes a result.
    pub fn start(&mut self, improvement: &Improvement<'_>, vectors: Vectors) {
        self.exact.start(improvement);
        let shape = improvement.shape;
        let (num_samples, num_experts) = (self.exact.num_samples, shape.num_experts());
        (self.vectors, self.squarings) = (vectors, 0);
        let num_slots = (0..shape.num_ranks()).map(|rank| improvement.slots_of(rank).len());
        // Another layer of the same shape uses the same cells, and computes each before it is read. Those beyond a rank's slots
        // keep what is set here.
        let is_same = (self.num_samples, self.counts.len()) == (num_samples, num_experts)
            && self.width == shape.slots_per_rank()
            && self.num_slots.iter().copied().eq(num_slots.clone());
        if is_same {
            return;
        }
        self.num_slots.clear();
        self.num_slots.extend(num_slots);
        (self.num_samples, self.num_ranks) = (num_samples, shape.num_ranks());
        self.width = shape.slots_per_rank();
        self.row = self.width.next_multiple_of(LANES);
        self.rank_lanes = self.num_ranks.next_multiple_of(LANES);
        self.expert_lanes = num_experts.next_multiple_of(LANES);
        let (num_ranks, num_cells) = (self.num_ranks, self.num_ranks * self.row);
        refill(&mut self.experts, num_cells, NO_EXPERT);
        refill(&mut self.counts, num_experts, 0);
        refill(&mut self.replica_loads, num_samples * num_cells, 0.0);
        refill(&mut self.more_loads, num_samples * num_cells, f32::INFINITY);
        refill(&mut self.gained, num_cells, f32::NEG_INFINITY);
        let num_vectors = num_cells / LANES;
        self.rank_of_vectors.clear();
        self.rank_of_vectors.extend((0..num_vectors).map(|vector| vector * LANES / self.row));
        // What follows is computed before it is read.
        self.first.resize(num_experts, END);
        self.next.resize(num_cells, END);
        self.exact_rank_loads.resize(num_ranks * num_samples, 0.0);
        for numbers in [&mut self.part, &mut self.thin, &mut self.thick] {
            numbers.resize(num_cells, 0.0);
        }
        self.loads.resize(num_samples * self.expert_lanes, 0.0);
        refill(&mut self.rank_loads, num_samples * self.rank_lanes, 0.0);
        refill(&mut self.costs, self.rank_lanes, 0.0);
        let LayerCosts { removed, without, rank_costs, thinner, thicker, .. } = self;
        for numbers in [removed, without, rank_costs, thinner, thicker] {
            numbers.resize(num_cells, 0.0);
        }
        // The clock runs on, so what was computed before is old.
        self.versions.resize(num_ranks, 0);
    }

    /// Sets the slots. [`LayerCosts::rescale`] must follow.
    pub fn restart(&mut self, slots: &[u32]) {
        self.counts.fill(0);
        self.first.fill(END);
        // Most experts have one replica.
        self.part.fill(1.0);
        self.thin.fill(0.5);
        self.thick.fill(0.0);
        for rank in 0..self.num_ranks {
            let (first, num_slots) = (rank * self.row, self.num_slots[rank]);
            let held = &slots[rank * self.width..][..num_slots];
            self.experts[first..][..num_slots].copy_from_slice(held);
            let next = &mut self.next[first..][..num_slots];
            for (place, (next, &expert)) in next.iter_mut().zip(held).enumerate() {
                let cell = first + place;
                if let Some(first) = self.first.get_mut(expert as usize) {
                    self.counts[expert as usize] += 1;
                    *next = std::mem::replace(first, cell as u32);
                } else {
                    self.thick[cell] = 1.0;
                }
            }
        }
        self.exact_replica_loads.clone_from(&self.exact.loads);
        for expert in 0..self.counts.len() {
            if self.counts[expert] > 1 {
                self.set_exact(expert);
                let parts = self.parts(expert);
                let mut next = self.first[expert];
                while next != END {
                    self.set_parts(next as usize, parts);
                    next = self.next[next as usize];
                }
            }
        }
        self.givers.restart(self.counts.len(), &self.thick, self.row, &self.num_slots);
        (0..self.num_ranks).for_each(|rank| self.sum_exactly(rank));
    }

    /// Takes over the number of an expert's replicas.
    fn set_count(&mut self, expert: usize) {
        let parts = self.parts(expert);
        let mut next = self.first[expert];
        while next != END {
            self.set_cell(next as usize, parts);
            next = self.next[next as usize];
        }
    }

    /// One over the number of an expert's replicas, over one more, and over one fewer or 0.
    fn parts(&self, expert: usize) -> [f32; 3] {
        let count = self.counts[expert] as f32;
        let over_fewer = if count > 1.0 { 1.0 / (count - 1.0) } else { 0.0 };
        [1.0 / count, 1.0 / (count + 1.0), over_fewer]
    }

    /// Sets what depends on the expert of a cell, from [`LayerCosts::parts`] of the expert.
    fn set_cell(&mut self, cell: usize, [part, thin, thick]: [f32; 3]) {
        if (self.thick[cell] > 0.0) != (thick > 0.0) {
            self.givers.toggle(cell);
        }
        self.set_parts(cell, [part, thin, thick]);
        let (expert, num_cells) = (self.experts[cell] as usize, self.experts.len());
        for sample in 0..self.num_samples {
            let load = self.loads[sample * self.expert_lanes + expert];
            self.replica_loads[sample * num_cells + cell] = load * part;
            self.more_loads[sample * num_cells + cell] = load * thin;
        }
    }

    fn set_parts(&mut self, cell: usize, [part, thin, thick]: [f32; 3]) {
        (self.part[cell], self.thin[cell], self.thick[cell]) = (part, thin, thick);
    }

    /// Counts the replica of a cell.
    fn link(&mut self, cell: usize) {
        let expert = self.experts[cell] as usize;
        self.counts[expert] += 1;
        self.next[cell] = std::mem::replace(&mut self.first[expert], cell as u32);
    }

    /// Takes back [`LayerCosts::link`].
    fn unlink(&mut self, cell: usize) {
        let expert = self.experts[cell];
        self.counts[expert as usize] -= 1;
        let before = self.replicas(expert).find(|&other| self.next[other] == cell as u32);
        match before {
            Some(other) => self.next[other] = self.next[cell],
            None => self.first[expert as usize] = self.next[cell],
        }
    }

    #[inline(always)]
    pub fn holds(&self, rank: usize, expert: u32) -> bool {
        // Compares all cells, which vectors do at once.
        self.experts[rank * self.row..][..self.row]
            .iter()
            .fold(false, |holds, &held| holds | (held == expert))
    }

    /// The cells of the slots that a rank may use.
    #[inline(always)]
    pub fn cells_of(&self, rank: usize) -> std::ops::Range<usize> {
        rank * self.row..rank * self.row + self.num_slots[rank]
    }

    /// The rank of a cell.
    #[inline(always)]
    pub fn rank_of(&self, cell: usize) -> usize {
        self.rank_of_vectors[cell / LANES]
    }

    /// The slot of a cell.
    pub fn slot_of(&self, cell: usize) -> usize {
        cell / self.row * self.width + cell % self.row
    }

    /// The exact cost.
    pub fn exact_cost(&self) -> f64 {
        self.exact.cost(&self.exact_rank_loads)
    }

    pub fn exponent(&self) -> f32 {
        (1 << self.squarings) as f32
    }

    /// Runs a kernel with the present exponent.
    pub fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.vectors.run(self.squarings, kernel)
    }

    fn sum_exactly(&mut self, rank: usize) {
        let sums = &mut self.exact_rank_loads[rank * self.num_samples..][..self.num_samples];
        let experts = &self.experts[rank * self.row..][..self.num_slots[rank]];
        self.exact.sum_rank(experts, &self.exact_replica_loads, sums);
    }

    /// Computes the exact load of an expert's replicas.
    fn set_exact(&mut self, expert: usize) {
        let samples = expert * self.num_samples..(expert + 1) * self.num_samples;
        let part = 1.0 / f64::from(self.counts[expert].max(1));
        let loads = self.exact_replica_loads[samples.clone()].iter_mut();
        loads.zip(&self.exact.loads[samples]).for_each(|(replica, load)| *replica = load * part);
    }

    /// Scales all loads for the exponent 2^squarings and the present slots.
    pub fn rescale(&mut self, squarings: u32) {
        self.squarings = squarings;
        let power = |x: f64| (0..squarings).fold(x, |power, _| power * power);
        let root = |x: f64| (0..squarings).fold(x, |root, _| root.sqrt());
        for sample in 0..self.num_samples {
            let max = self.exact.max(&self.exact_rank_loads, sample);
            // The norm is max * root(sum).
            let loads = self.exact_rank_loads[sample..].iter().step_by(self.num_samples);
            let sum: f64 = loads.map(|load| power(load / max)).sum();
            let scale = if max > 0.0 { root(max * root(sum) / sum) / max } else { 0.0 };
            let scaled = self.loads[sample * self.expert_lanes..].iter_mut();
            let of_experts = self.exact.loads[sample..].iter();
            match self.num_samples {
                1 => scaled.zip(of_experts).for_each(|(scaled, load)| *scaled = (load * scale) as f32),
                step => {
                    let of_experts = of_experts.step_by(step);
                    scaled.zip(of_experts).for_each(|(scaled, load)| *scaled = (load * scale) as f32);
                }
            }
        }
        let (num_cells, lanes) = (self.experts.len(), self.expert_lanes);
        for (sample, loads) in self.loads.chunks_exact(lanes).enumerate() {
            let replica_loads = &mut self.replica_loads[sample * num_cells..][..num_cells];
            let more_loads = &mut self.more_loads[sample * num_cells..][..num_cells];
            for (rank, &num_slots) in self.num_slots.iter().enumerate() {
                let at = rank * self.row..rank * self.row + num_slots;
                let parts = self.part[at.clone()].iter().zip(&self.thin[at.clone()]);
                let of_cells = replica_loads[at.clone()].iter_mut().zip(&mut more_loads[at.clone()]);
                for ((&expert, (part, thin)), (of_replica, more)) in
                    self.experts[at].iter().zip(parts).zip(of_cells)
                {
                    // Empty cells have no expert.
                    (*of_replica, *more) = match loads.get(expert as usize) {
                        Some(load) => (load * part, load * thin),
                        None => (0.0, f32::INFINITY),
                    };
                }
            }
        }
        self.changed_ranks.clear();
        self.changed_ranks.extend(0..self.num_ranks);
        self.update();
    }

    /// Gives ranks an expert each in place of another, or of [`NO_EXPERT`] in an empty slot. Before another step,
    /// [`LayerCosts::follow`] must be called.
    pub fn replace(&mut self, replacements: &[Replacement]) {
        let mut ranks = std::mem::take(&mut self.changed_ranks);
        ranks.clear();
        for &Replacement { rank, out, taken } in replacements {
            let cell = self.cells_of(rank).find(|&cell| self.experts[cell] == out);
            let cell = cell.expect("the rank gives what it holds");
            if out != NO_EXPERT {
                self.unlink(cell);
            }
            self.experts[cell] = taken;
            self.link(cell);
            ranks.push(rank);
        }
        // An exchange changes no replica count, and so no other rank.
        if replacements.len() > 1 {
            for &Replacement { rank, taken, .. } in replacements {
                let cell = self.cells_of(rank).find(|&cell| self.experts[cell] == taken);
                self.set_cell(cell.expect("the rank has taken it"), self.parts(taken as usize));
            }
        } else if let &[Replacement { out, taken, .. }] = replacements {
            for expert in [out, taken].into_iter().filter(|&expert| expert != NO_EXPERT) {
                self.set_exact(expert as usize);
                self.set_count(expert as usize);
                ranks.extend(self.replicas(expert).map(|cell| self.rank_of(cell)));
            }
        }
        ranks.sort_unstable();
        ranks.dedup();
        ranks.iter().for_each(|&rank| self.sum_exactly(rank));
        self.changed_ranks = ranks;
    }

    /// Computes the smooth costs after replacements.
    pub fn follow(&mut self) {
        self.update();
    }

    /// The cells of an expert's replicas.
    #[inline(always)]
    fn replicas(&self, expert: u32) -> impl Iterator<Item = usize> {
        let some = |cell: u32| (cell != END).then_some(cell as usize);
        std::iter::successors(some(self.first[expert as usize]), move |&cell| some(self.next[cell]))
    }

    /// Computes all that depends on the loads of the changed ranks.
    fn update(&mut self) {
        let (vectors, squarings) = (self.vectors, self.squarings);
        let ranks = std::mem::take(&mut self.changed_ranks);
        vectors.run(squarings, UpdateRanks { costs: self, ranks: &ranks });
        self.clock += 1;
        ranks.iter().for_each(|&rank| self.versions[rank] = self.clock);
        self.changed_ranks = ranks;
        let LayerCosts { givers, experts, removed, without, rank_costs, thinner, thicker, gained, .. } = self;
        givers.update(Gains { experts, removed, without, rank_costs, thinner, thicker, gained });
    }
}
