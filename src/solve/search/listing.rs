//! Lists all placements of a tiny shape, where that is cheaper than to search.

use super::measure::Measure;
use crate::placement::{NO_EXPERT, Shape};
use crate::solve::pinned::Pins;

/// A placement must cost this part less to replace another.
const LEAST_GAIN: f64 = 1e-13;

/// What to list: all ways to fill the ranks' slots.
pub(super) struct Listing<'a> {
    pub shape: Shape,
    /// `[ranks]`, if some lack slots.
    pub rank_num_slots: Option<&'a [u32]>,
    pub pins: Option<&'a Pins>,
    pub measure: &'a Measure,
    /// `[experts][samples]`, scaled as in [`super::state::State`].
    pub loads: &'a [f64],
}

/// The state of a listing. It tries every vector of replica counts, and fills the ranks one by one, each in
/// ascending order of experts.
struct Lister<'a> {
    listing: &'a Listing<'a>,
    num_samples: usize,
    allow_duplicates: bool,
    /// Whether ranks are alike, so that their order does not matter.
    are_alike: bool,
    replica_loads: Vec<f64>,
    /// Replicas of each expert that are neither pinned nor placed yet.
    left: Vec<u32>,
    /// The loads of the present rank and the maximum of the full ranks, `[ranks + 1][samples]`.
    carried: Vec<f64>,
    max: Vec<f64>,
    slots: Vec<u32>,
    best: (f64, Option<Vec<u32>>),
}

impl Listing<'_> {
    /// Returns whether there are at most about `most` placements.
    pub fn is_short(&self, most: usize) -> bool {
        let (num_experts, num_ranks) = (self.shape.num_experts(), self.shape.num_ranks());
        let widths = || (0..num_ranks).map(|rank| self.width(rank));
        let num_slots: usize = widths().sum();
        let (mut placements, mut most) = (1.0, most as f64);
        // The ways to give the spare slots to experts, and to split all slots over the ranks.
        let mut times = |numerator: usize, denominator: usize| {
            placements *= numerator as f64 / denominator as f64;
        };
        (1..=num_slots - num_experts).for_each(|n| times(num_experts - 1 + n, n));
        let mut placed = 0;
        for width in widths() {
            (1..=width).for_each(|n| times(placed + n, n));
            placed += width;
        }
        if self.are_alike() {
            most *= (1..=num_ranks).map(|n| n as f64).product::<f64>();
        }
        placements <= most
    }

    /// Returns the cheapest placement that costs less than `to_beat`, or no more if it is without duplicates
    /// and those are not allowed.
    pub fn cheapest(&self, to_beat: f64, allow_duplicates: bool) -> Option<Vec<u32>> {
        let (num_experts, num_ranks) = (self.shape.num_experts(), self.shape.num_ranks());
        let num_samples = self.loads.len() / num_experts;
        let mut lister = Lister {
            listing: self,
            num_samples,
            allow_duplicates,
            are_alike: self.are_alike(),
            replica_loads: self.loads.to_vec(),
            left: vec![0; num_experts],
            carried: vec![0.0; num_samples],
            max: vec![0.0; num_samples],
            slots: vec![NO_EXPERT; self.shape.num_slots()],
            best: (to_beat * (1.0 + if allow_duplicates { -LEAST_GAIN } else { LEAST_GAIN }), None),
        };
        let least: u32 = (0..num_experts).map(|expert| self.least_count(expert)).sum();
        let num_slots: usize = (0..num_ranks).map(|rank| self.width(rank)).sum();
        lister.count(0, num_slots as u32 - least);
        lister.best.1
    }

    fn width(&self, rank: usize) -> usize {
        self.rank_num_slots.map_or(self.shape.slots_per_rank(), |slots| slots[rank] as usize)
    }

    fn are_alike(&self) -> bool {
        self.rank_num_slots.is_none() && self.pins.is_none()
    }

    fn least_count(&self, expert: usize) -> u32 {
        self.pins.map_or(1, |pins| pins.counts()[expert].max(1))
    }
}

impl Lister<'_> {
    /// Tries every way to give `spares` to the experts from `expert` on.
    fn count(&mut self, expert: usize, spares: u32) {
        if expert == self.left.len() {
            return self.start_rank(0);
        }
        let (last, least) = (expert + 1 == self.left.len(), self.listing.least_count(expert));
        for more in if last { spares } else { 0 }..=spares {
            let count = least + more;
            if !self.allow_duplicates && count as usize > self.listing.shape.num_ranks() {
                return;
            }
            let range = expert * self.num_samples..(expert + 1) * self.num_samples;
            for (replica_load, load) in
                self.replica_loads[range.clone()].iter_mut().zip(&self.listing.loads[range])
            {
                *replica_load = load / f64::from(count);
            }
            self.left[expert] = count - self.listing.pins.map_or(0, |pins| pins.counts()[expert]);
            self.count(expert + 1, spares - more);
        }
    }

    /// Starts a rank with its pinned experts.
    fn start_rank(&mut self, rank: usize) {
        if rank == self.listing.shape.num_ranks() {
            let cost = self.listing.measure.of(self.max.iter().copied());
            if cost < self.best.0 {
                self.best = (cost * (1.0 - LEAST_GAIN), Some(self.slots.clone()));
            }
            return;
        }
        let pinned: Vec<u32> = self.listing.pins.map(|pins| pins.of_rank(rank).collect()).unwrap_or_default();
        let carried = std::mem::replace(&mut self.carried, vec![0.0; self.num_samples]);
        for (held, &expert) in pinned.iter().enumerate() {
            self.put(rank, held, expert);
        }
        self.fill(rank, &pinned, pinned.len(), 0);
        self.carried = carried;
    }

    /// Puts an expert into a slot of the present rank.
    fn put(&mut self, rank: usize, held: usize, expert: u32) {
        self.slots[rank * self.listing.shape.slots_per_rank() + held] = expert;
        let replica_loads = &self.replica_loads[expert as usize * self.num_samples..];
        self.carried.iter_mut().zip(replica_loads).for_each(|(sum, load)| *sum += load);
    }

    /// Fills the slots of a rank after the first `held`, with experts from `from` on.
    fn fill(&mut self, rank: usize, pinned: &[u32], held: usize, from: u32) {
        let lower = self.max.iter().zip(&self.carried).map(|(max, carried)| max.max(*carried));
        if self.listing.measure.of(lower) >= self.best.0 {
            return;
        }
        if held == self.listing.width(rank) {
            let max = self.max.clone();
            self.max.iter_mut().zip(&self.carried).for_each(|(max, carried)| *max = max.max(*carried));
            self.start_rank(rank + 1);
            self.max = max;
            return;
        }
        for expert in from..self.left.len() as u32 {
            if self.left[expert as usize] == 0 || !self.allow_duplicates && pinned.contains(&expert) {
                continue;
            }
            let carried = self.carried.clone();
            self.put(rank, held, expert);
            self.left[expert as usize] -= 1;
            self.fill(rank, pinned, held + 1, expert + u32::from(!self.allow_duplicates));
            self.left[expert as usize] += 1;
            self.carried = carried;
            if held == 0 && self.are_alike {
                return;
            }
        }
    }
}
