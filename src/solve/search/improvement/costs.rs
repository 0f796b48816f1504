//! The exact cost and the smooth cost of a placement, with what each slot and expert would gain.

use super::Improvement;
use super::changes::Replacement;
use crate::placement::{NO_EXPERT, held_slots};
use crate::solve::search::lanes::{Kernel, LANES, Lanes, Vector, Vectors};

/// The exact loads of a layer, scaled so that the mean load of an active rank is the sample's weight.
pub(super) struct ExactLoads {
    num_samples: usize,
    /// `[experts][samples]`
    loads: Vec<f64>,
    /// The cost where all ranks are even: the weight of samples with load.
    even: f64,
}

impl ExactLoads {
    pub fn new(improvement: &Improvement<'_>) -> Self {
        let Improvement { shape, samples, sample_weights, active, .. } = *improvement;
        let (num_samples, num_experts) = (samples.len(), shape.num_experts());
        let is_active = |rank: &usize| active.is_none_or(|active| active[*rank]);
        let num_active = (0..shape.num_ranks()).filter(is_active).count() as f64;
        let mut exact = ExactLoads { num_samples, loads: vec![0.0; num_experts * num_samples], even: 0.0 };
        for (sample, (loads, weight)) in samples.iter().zip(sample_weights).enumerate() {
            let mean = loads.iter().sum::<f64>() / num_active;
            if mean == 0.0 || *weight == 0.0 {
                continue;
            }
            exact.even += weight;
            for (scaled, load) in exact.loads[sample..].iter_mut().step_by(num_samples).zip(*loads) {
                // Divides first: the factor would be infinite for a tiny mean.
                *scaled = load / mean * weight;
            }
        }
        exact
    }

    pub fn even(&self) -> f64 {
        self.even
    }

    /// Returns the load of a replica of each expert, `[experts][samples]`.
    pub fn replica_loads(&self, counts: &[u32]) -> Vec<f64> {
        let mut loads = self.loads.clone();
        for (loads, &count) in loads.chunks_exact_mut(self.num_samples).zip(counts) {
            self.set_replica_load(loads, count);
        }
        loads
    }

    fn set_replica_load(&self, loads: &mut [f64], count: u32) {
        let part = 1.0 / f64::from(count.max(1));
        loads.iter_mut().for_each(|load| *load *= part);
    }

    /// Computes the load of a rank, `[samples]`.
    pub fn sum_rank(&self, experts: &[u32], replica_loads: &[f64], sums: &mut [f64]) {
        if let [sum] = sums {
            *sum = 0.0;
            for &expert in experts.iter().filter(|&&expert| expert != NO_EXPERT) {
                *sum += replica_loads[expert as usize];
            }
            return;
        }
        sums.fill(0.0);
        for &expert in experts.iter().filter(|&&expert| expert != NO_EXPERT) {
            let loads = &replica_loads[expert as usize * self.num_samples..][..self.num_samples];
            sums.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load);
        }
    }

    /// Returns the cost of rank loads, `[ranks][samples]`.
    pub fn cost(&self, rank_loads: &[f64]) -> f64 {
        (0..self.num_samples).map(|sample| self.max(rank_loads, sample)).sum()
    }

    fn max(&self, rank_loads: &[f64], sample: usize) -> f64 {
        rank_loads[sample..].iter().step_by(self.num_samples).copied().fold(0.0, f64::max)
    }
}

/// Ends the list of an expert's replicas.
const END: u32 = u32::MAX;

/// A placement with its smooth costs.
///
/// As in the search, loads are scaled so that the smooth costs of a sample sum up to its weight times the norm of
/// its rank loads. So a gain divided by p is about the gain in the exact cost.
///
/// Numbers of slots lie in rows of whole vectors, one row for each rank. A place in a row is a cell. Lanes are
/// slots, ranks or experts; samples follow each other. So sums over samples have one order on every processor.
pub(super) struct LayerCosts<'a> {
    exact: &'a ExactLoads,
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
    /// `[ranks][cells]`: the expert of each cell.
    pub experts: Vec<u32>,
    pub counts: Vec<u32>,
    /// The cells of each expert's replicas, as lists: `[experts]`, `[ranks][cells]`.
    first: Vec<u32>,
    next: Vec<u32>,
    /// One bit for each expert that a rank holds, `[ranks][words]`.
    held: Vec<u64>,
    /// `[experts][samples]` and `[ranks][samples]`
    exact_replica_loads: Vec<f64>,
    exact_rank_loads: Vec<f64>,
    /// `[samples][experts]`
    loads: Vec<f32>,
    /// The load of a replica of each expert, and with one more replica, `[samples][experts]`. One over the number of
    /// replicas with one more, and with one fewer or 0: `[experts]`.
    of_replica: Vec<f32>,
    pub of_more_replicas: Vec<f32>,
    thin: Vec<f32>,
    thick: Vec<f32>,
    /// The load of each cell's replica, `[samples][ranks][cells]`.
    pub replica_loads: Vec<f32>,
    /// `[samples][ranks]`
    pub rank_loads: Vec<f32>,
    /// `[ranks]`
    pub costs: Vec<f32>,
    /// The number of updates so far, and that of the last one of each rank.
    pub clock: u32,
    pub versions: Vec<u32>,
    /// What the rank of each cell would gain without the replica, `[ranks][cells]`.
    removed: Vec<f32>,
    /// What the rank would gain if the expert had a replica more elsewhere, and lose if it had one fewer.
    thinner: Vec<f32>,
    thicker: Vec<f32>,
    /// The sum of `thinner` over all replicas of an expert, `[experts]`.
    pub gained: Vec<f32>,
    /// What the ranks of an expert's other replicas lose without that of the cell, infinite where it is the only
    /// one: `[ranks][cells]`. A difference of sums would be rounding where the cell's own part is large.
    pub others_lose: Vec<f32>,
    /// What a cell gains at most by the expert that it gives, `[ranks][cells]`, and the most of each rank.
    pub given: Vec<f32>,
    pub most_given: Vec<f32>,
}

impl<'a> LayerCosts<'a> {
    /// Without slots: [`LayerCosts::restart`] must follow.
    pub fn new(improvement: &Improvement<'_>, exact: &'a ExactLoads, vectors: Vectors) -> Self {
        let shape = improvement.shape;
        let (num_samples, num_experts, num_ranks) =
            (exact.num_samples, shape.num_experts(), shape.num_ranks());
        let row = shape.slots_per_rank().next_multiple_of(LANES);
        let (rank_lanes, expert_lanes) =
            (num_ranks.next_multiple_of(LANES), num_experts.next_multiple_of(LANES));
        let num_cells = num_ranks * row;
        LayerCosts {
            exact,
            vectors,
            squarings: 0,
            num_samples,
            num_ranks,
            width: shape.slots_per_rank(),
            row,
            rank_lanes,
            expert_lanes,
            num_slots: (0..num_ranks).map(|rank| improvement.slots_of(rank).len()).collect(),
            experts: vec![NO_EXPERT; num_cells],
            counts: vec![0; num_experts],
            first: vec![END; num_experts],
            next: vec![END; num_cells],
            held: vec![0; num_ranks * num_experts.div_ceil(64)],
            exact_replica_loads: Vec::new(),
            exact_rank_loads: vec![0.0; num_ranks * num_samples],
            loads: vec![0.0; num_samples * expert_lanes],
            of_replica: vec![0.0; num_samples * expert_lanes],
            of_more_replicas: vec![0.0; num_samples * expert_lanes],
            thin: vec![0.0; num_experts],
            thick: vec![0.0; num_experts],
            replica_loads: vec![0.0; num_samples * num_cells],
            rank_loads: vec![0.0; num_samples * rank_lanes],
            costs: vec![0.0; rank_lanes],
            clock: 0,
            versions: vec![0; num_ranks],
            removed: vec![0.0; num_cells],
            thinner: vec![0.0; num_cells],
            thicker: vec![0.0; num_cells],
            gained: vec![f32::NEG_INFINITY; expert_lanes],
            others_lose: vec![f32::INFINITY; num_cells],
            given: vec![f32::NEG_INFINITY; num_cells],
            most_given: vec![f32::NEG_INFINITY; num_ranks],
        }
    }

    /// Sets the slots. [`LayerCosts::rescale`] must follow.
    pub fn restart(&mut self, slots: &[u32]) {
        self.counts.fill(0);
        self.first.fill(END);
        self.held.fill(0);
        let words = self.counts.len().div_ceil(64);
        for rank in 0..self.num_ranks {
            let first = rank * self.row;
            let held = &slots[rank * self.width..][..self.num_slots[rank]];
            for (cell, &expert) in (first..).zip(held) {
                self.experts[cell] = expert;
                if expert != NO_EXPERT {
                    self.link(cell);
                    self.held[rank * words + expert as usize / 64] |= 1 << (expert % 64);
                }
            }
        }
        self.exact_replica_loads = self.exact.replica_loads(&self.counts);
        (0..self.num_ranks).for_each(|rank| self.sum_exactly(rank));
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

    fn collect_held(&mut self, rank: usize) {
        let words = self.counts.len().div_ceil(64);
        let held = &mut self.held[rank * words..][..words];
        held.fill(0);
        for (_, expert) in held_slots(&self.experts[rank * self.row..][..self.row]) {
            held[expert as usize / 64] |= 1 << (expert % 64);
        }
    }

    /// Iterates over the experts that some of `ranks` hold, in order.
    pub fn experts_of(&self, ranks: &[usize]) -> impl Iterator<Item = u32> {
        let words = self.counts.len().div_ceil(64);
        (0..words).flat_map(move |word| {
            let mut held = ranks.iter().map(|rank| self.held[rank * words + word]).fold(0, |a, b| a | b);
            std::iter::from_fn(move || {
                let bit = (held != 0).then(|| held.trailing_zeros())?;
                held &= held - 1;
                Some(word as u32 * 64 + bit)
            })
        })
    }

    #[inline(always)]
    pub fn holds(&self, rank: usize, expert: u32) -> bool {
        let words = self.counts.len().div_ceil(64);
        self.held[rank * words + expert as usize / 64] >> (expert % 64) & 1 == 1
    }

    /// The cells of the slots that a rank may use.
    #[inline(always)]
    pub fn cells_of(&self, rank: usize) -> std::ops::Range<usize> {
        rank * self.row..rank * self.row + self.num_slots[rank]
    }

    /// The slot of a cell.
    pub fn slot_of(&self, cell: usize) -> usize {
        cell / self.row * self.width + cell % self.row
    }

    /// The exact cost.
    pub fn exact_cost(&self) -> f64 {
        self.exact.cost(&self.exact_rank_loads)
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

    /// Computes the loads of an expert's replicas after a change of their number.
    fn update_replicas(&mut self, expert: usize) {
        let (samples, count) =
            (expert * self.num_samples..(expert + 1) * self.num_samples, self.counts[expert]);
        let loads = &mut self.exact_replica_loads[samples.clone()];
        loads.copy_from_slice(&self.exact.loads[samples]);
        self.exact.set_replica_load(loads, count);
        self.scale_replicas(expert);
    }

    fn scale_replicas(&mut self, expert: usize) {
        let count = self.counts[expert] as f32;
        self.thin[expert] = 1.0 / (count + 1.0);
        self.thick[expert] = if count > 1.0 { 1.0 / (count - 1.0) } else { 0.0 };
        let part = if count > 1.0 { 1.0 / count } else { 1.0 };
        for sample in 0..self.num_samples {
            let at = sample * self.expert_lanes + expert;
            self.of_replica[at] = self.loads[at] * part;
            self.of_more_replicas[at] = self.loads[at] * self.thin[expert];
        }
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
            let of_experts = self.exact.loads[sample..].iter().step_by(self.num_samples);
            for (scaled, load) in self.loads[sample * self.expert_lanes..].iter_mut().zip(of_experts) {
                *scaled = (load * scale) as f32;
            }
        }
        (0..self.counts.len()).for_each(|expert| self.scale_replicas(expert));
        let all: Vec<usize> = (0..self.num_ranks).collect();
        self.update(&all);
    }

    /// Gives ranks an expert each in place of another, or of [`NO_EXPERT`] in an empty slot.
    pub fn replace(&mut self, replacements: &[Replacement]) {
        let mut ranks: Vec<usize> = Vec::new();
        for &Replacement { rank, out, taken } in replacements {
            let cell = self.cells_of(rank).find(|&cell| self.experts[cell] == out);
            let cell = cell.expect("the rank gives what it holds");
            if out != NO_EXPERT {
                self.unlink(cell);
            }
            self.experts[cell] = taken;
            self.link(cell);
            self.collect_held(rank);
            ranks.push(rank);
        }
        // An exchange changes no replica count, and so no other rank.
        if let &[Replacement { out, taken, .. }] = replacements {
            for expert in [out, taken].into_iter().filter(|&expert| expert != NO_EXPERT) {
                self.update_replicas(expert as usize);
                ranks.extend(self.replicas(expert).map(|cell| cell / self.row));
            }
        }
        ranks.sort_unstable();
        ranks.dedup();
        ranks.iter().for_each(|&rank| self.sum_exactly(rank));
        self.update(&ranks);
    }

    /// The cells of an expert's replicas.
    #[inline(always)]
    fn replicas(&self, expert: u32) -> impl Iterator<Item = usize> {
        let some = |cell: u32| (cell != END).then_some(cell as usize);
        std::iter::successors(some(self.first[expert as usize]), move |&cell| some(self.next[cell]))
    }

    /// Computes all that depends on the loads of ranks.
    fn update(&mut self, ranks: &[usize]) {
        let (vectors, squarings) = (self.vectors, self.squarings);
        vectors.run(squarings, UpdateRanks { costs: self, ranks });
        self.clock += 1;
        for &rank in ranks {
            self.versions[rank] = self.clock;
            for cell in self.cells_of(rank) {
                self.update_given(cell);
            }
        }
    }

    /// Computes what the replicas of a cell's expert gain and lose by another number of replicas.
    fn update_given(&mut self, cell: usize) {
        let expert = self.experts[cell];
        if expert == NO_EXPERT {
            (self.others_lose[cell], self.given[cell]) = (0.0, 0.0);
            self.update_most_given(cell / self.row);
        } else if self.counts[expert as usize] == 1 {
            self.gained[expert as usize] = self.thinner[cell];
            if self.given[cell] != f32::NEG_INFINITY {
                self.set_given(cell, f32::INFINITY);
            }
        } else {
            let replicas = || self.replicas(expert);
            self.gained[expert as usize] = replicas().map(|cell| self.thinner[cell]).sum();
            let mut next = self.first[expert as usize];
            while next != END {
                let one = next as usize;
                let others = self.replicas(expert).filter(|&other| other != one);
                self.set_given(one, others.map(|other| self.thicker[other]).sum());
                next = self.next[one];
            }
        }
    }

    fn set_given(&mut self, cell: usize, others_lose: f32) {
        self.others_lose[cell] = others_lose;
        let was = std::mem::replace(&mut self.given[cell], self.removed[cell] - others_lose);
        let (given, most) = (self.given[cell], &mut self.most_given[cell / self.row]);
        if given >= *most {
            *most = given;
        } else if was >= *most {
            self.update_most_given(cell / self.row);
        }
    }

    fn update_most_given(&mut self, rank: usize) {
        self.most_given[rank] =
            self.given[self.cells_of(rank)].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
}

/// Computes the loads and costs of ranks, and what each of their slots would gain or lose.
struct UpdateRanks<'c, 'a> {
    costs: &'c mut LayerCosts<'a>,
    ranks: &'c [usize],
}

impl Kernel for UpdateRanks<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) {
        let UpdateRanks { costs, ranks } = self;
        let (row, num_cells) = (costs.row, costs.experts.len());
        let power = |load: f32| (0..SQUARINGS).fold(load, |power, _| power * power);
        for &rank in ranks {
            let mut cost = 0.0;
            for sample in 0..costs.num_samples {
                let loads = &costs.of_replica[sample * costs.expert_lanes..][..costs.expert_lanes];
                let replica_loads = &mut costs.replica_loads[sample * num_cells + rank * row..][..row];
                let experts = &costs.experts[rank * row..][..costs.num_slots[rank]];
                for (replica_load, &expert) in replica_loads.iter_mut().zip(experts) {
                    *replica_load = if expert == NO_EXPERT { 0.0 } else { loads[expert as usize] };
                }
                let mut sums = V::zero();
                for block in replica_loads.as_chunks().0 {
                    sums = sums.add(V::load(&Lanes(*block)));
                }
                let load = sums.sum();
                costs.rank_loads[sample * costs.rank_lanes + rank] = load;
                cost += power(load);
            }
            costs.costs[rank] = cost;
            for block in 0..costs.num_slots[rank].div_ceil(LANES) {
                let (mut removed, mut thinner, mut thicker) = (V::zero(), V::zero(), V::zero());
                let (mut thin, mut thick) = (Lanes::ZERO, Lanes::ZERO);
                let experts = &costs.experts[rank * row..][..costs.num_slots[rank]][block * LANES..];
                for ((thin, thick), &expert) in thin.0.iter_mut().zip(&mut thick.0).zip(experts) {
                    if expert != NO_EXPERT {
                        (*thin, *thick) = (costs.thin[expert as usize], costs.thick[expert as usize]);
                    }
                }
                let (thin, thick) = (V::load(&thin), V::load(&thick));
                for sample in 0..costs.num_samples {
                    let rank_load = V::splat(costs.rank_loads[sample * costs.rank_lanes + rank]);
                    let cells = &costs.replica_loads[sample * num_cells + rank * row..][..row];
                    let load = V::load(&Lanes(cells.as_chunks().0[block]));
                    removed = removed.add(rank_load.sub(load).power::<SQUARINGS>());
                    thinner = thinner.add(rank_load.sub(load.mul(thin)).power::<SQUARINGS>());
                    thicker = thicker.add(rank_load.add(load.mul(thick)).power::<SQUARINGS>());
                }
                let cost = V::splat(cost);
                let store = |numbers: &mut [f32], of_block: V| {
                    let mut lanes = Lanes::ZERO;
                    of_block.store(&mut lanes);
                    numbers[rank * row..][..row].as_chunks_mut().0[block] = lanes.0;
                };
                store(&mut costs.removed, cost.sub(removed));
                store(&mut costs.thinner, cost.sub(thinner));
                store(&mut costs.thicker, thicker.sub(cost));
            }
        }
    }
}
