//! Lists all placements of a tiny shape, where that is cheaper than to search.

use super::measure::Measure;
use crate::placement::{NO_EXPERT, Shape};
use crate::solve::pinned::Pins;

/// A placement must cost this part less to replace another.
const LEAST_GAIN: f64 = 1e-13;

/// The listing takes too many steps.
#[derive(Debug)]
pub(super) struct TooLong;

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
    /// The loads of the present rank after each slot, `[slots + ranks + 1][samples]`, and the maximum of the
    /// ranks before each, `[ranks + 1][samples]`.
    carried: Vec<f64>,
    max: Vec<f64>,
    /// The slots that may still be filled.
    steps: usize,
    slots: Vec<u32>,
    best: (f64, Option<Vec<u32>>),
}

impl Listing<'_> {
    /// Returns whether there are at most about `most` placements.
    pub fn is_short(&self, most: usize) -> bool {
        let (num_experts, num_ranks) = (self.shape.num_experts(), self.shape.num_ranks());
        let num_slots: usize = (0..num_ranks).map(|rank| self.width(rank)).sum();
        // Both count ways as `start + 1` to `start + more` over 1 to `more`.
        let ways =
            |start: usize, more: usize| (1..=more).map(|n| (start + n) as f64 / n as f64).product::<f64>();
        // The ways to give the spare slots to experts, and to split all slots over the ranks.
        let (mut placements, mut placed) = (ways(num_experts - 1, num_slots - num_experts), 0);
        for rank in 0..num_ranks {
            let width = self.width(rank);
            placements *= ways(placed, width);
            if self.are_alike() {
                placements /= (rank + 1) as f64;
            }
            placed += width;
            // It only grows. Left to grow, it would be infinite, and so not comparable, for a large shape.
            if placements > most as f64 {
                return false;
            }
        }
        true
    }

    /// Returns the cheapest placement that costs less than `to_beat`, or no more where duplicates are not
    /// allowed. Fails if that fills slots more than `steps` times.
    pub fn cheapest(
        &self,
        to_beat: f64,
        allow_duplicates: bool,
        steps: usize,
    ) -> Result<Option<Vec<u32>>, TooLong> {
        let (num_experts, num_ranks) = (self.shape.num_experts(), self.shape.num_ranks());
        let num_samples = self.loads.len() / num_experts;
        let mut lister = Lister {
            listing: self,
            num_samples,
            allow_duplicates,
            are_alike: self.are_alike(),
            replica_loads: self.loads.to_vec(),
            left: vec![0; num_experts],
            carried: vec![0.0; (self.shape.num_slots() + num_ranks + 1) * num_samples],
            max: vec![0.0; (num_ranks + 1) * num_samples],
            steps,
            slots: vec![NO_EXPERT; self.shape.num_slots()],
            best: (to_beat * (1.0 + if allow_duplicates { -LEAST_GAIN } else { LEAST_GAIN }), None),
        };
        let least: u32 = (0..num_experts).map(|expert| self.least_count(expert)).sum();
        let num_slots: usize = (0..num_ranks).map(|rank| self.width(rank)).sum();
        lister.count(0, num_slots as u32 - least)?;
        Ok(lister.best.1)
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
    fn count(&mut self, expert: usize, spares: u32) -> Result<(), TooLong> {
        if expert == self.left.len() {
            return self.start_rank(0, 0);
        }
        let (last, least) = (expert + 1 == self.left.len(), self.listing.least_count(expert));
        for more in if last { spares } else { 0 }..=spares {
            let count = least + more;
            if !self.allow_duplicates && count as usize > self.listing.shape.num_ranks() {
                break;
            }
            let range = expert * self.num_samples..(expert + 1) * self.num_samples;
            for (replica_load, load) in
                self.replica_loads[range.clone()].iter_mut().zip(&self.listing.loads[range])
            {
                *replica_load = load / f64::from(count);
            }
            self.left[expert] = count - self.listing.pins.map_or(0, |pins| pins.counts()[expert]);
            self.count(expert + 1, spares - more)?;
        }
        Ok(())
    }

    /// Starts a rank with its pinned experts. Its loads are at `level` of `carried`.
    fn start_rank(&mut self, rank: usize, mut level: usize) -> Result<(), TooLong> {
        let samples = self.num_samples;
        if rank == self.listing.shape.num_ranks() {
            let cost = self.listing.measure.of(self.max[rank * samples..][..samples].iter().copied());
            if cost < self.best.0 {
                self.best = (cost * (1.0 - LEAST_GAIN), Some(self.slots.clone()));
            }
            return Ok(());
        }
        self.carried[level * samples..][..samples].fill(0.0);
        let mut held = 0;
        if let Some(pins) = self.listing.pins {
            for expert in pins.of_rank(rank) {
                level = self.put(rank, held, expert, level)?;
                held += 1;
            }
        }
        self.fill(rank, held, 0, level)
    }

    /// Puts an expert into a slot of a rank. Returns the level of its loads then.
    fn put(&mut self, rank: usize, held: usize, expert: u32, level: usize) -> Result<usize, TooLong> {
        self.steps = self.steps.checked_sub(1).ok_or(TooLong)?;
        self.slots[rank * self.listing.shape.slots_per_rank() + held] = expert;
        let (before, after) = self.carried.split_at_mut((level + 1) * self.num_samples);
        let replica_loads = &self.replica_loads[expert as usize * self.num_samples..];
        let loads = before[level * self.num_samples..].iter().zip(replica_loads);
        after.iter_mut().zip(loads).for_each(|(after, (before, load))| *after = before + load);
        Ok(level + 1)
    }

    /// Fills the slots of a rank after the first `held`, with experts from `from` on.
    fn fill(&mut self, rank: usize, held: usize, from: u32, level: usize) -> Result<(), TooLong> {
        let samples = self.num_samples;
        let carried = &self.carried[level * samples..][..samples];
        let (max, next) = self.max.split_at_mut((rank + 1) * samples);
        for (next, (max, carried)) in next.iter_mut().zip(max[rank * samples..].iter().zip(carried)) {
            *next = max.max(*carried);
        }
        if self.listing.measure.of(next[..samples].iter().copied()) >= self.best.0 {
            return Ok(());
        }
        if held == self.listing.width(rank) {
            return self.start_rank(rank + 1, level + 1);
        }
        for expert in from..self.left.len() as u32 {
            let is_pinned =
                || self.listing.pins.is_some_and(|pins| pins.of_rank(rank).any(|pinned| pinned == expert));
            if self.left[expert as usize] == 0 || !self.allow_duplicates && is_pinned() {
                continue;
            }
            let level = self.put(rank, held, expert, level)?;
            self.left[expert as usize] -= 1;
            self.fill(rank, held + 1, expert + u32::from(!self.allow_duplicates), level)?;
            self.left[expert as usize] += 1;
            if held == 0 && self.are_alike {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_short(num_experts: usize, num_slots: usize, num_ranks: usize) -> bool {
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let measure = Measure::Mean;
        let (loads, pins) = (&vec![1.0; num_experts][..], None);
        Listing { shape, rank_num_slots: None, pins, measure: &measure, loads }.is_short(100_000)
    }

    #[test]
    fn only_tiny_shapes_are_listed() {
        // 5 ways to give 1 spare slot to 5 experts, and 6! / (3! 3!) / 2 = 10 to split 6 slots.
        assert!(is_short(5, 6, 2) && is_short(8, 10, 2) && is_short(2048, 2048, 1));
        // Numbers of placements far beyond any double.
        for (num_experts, num_slots, num_ranks) in
            [(256, 288, 32), (256, 320, 320), (342, 342, 171), (2048, 8192, 1024), (2048, 65_536, 1)]
        {
            assert!(!is_short(num_experts, num_slots, num_ranks), "{num_experts} {num_slots} {num_ranks}");
        }
    }
}
