//! What a placement is worth to a router that splits an expert's tokens by need: the best split, exactly.

use std::ops::Range;

use crate::placement::{Shape, expert_ranks};

/// How often each expert's load is poured anew before what is left is moved along paths. Any number gives the same result.
const SWEEPS: usize = 4;

/// Of the level: what is no excess but rounding.
const ROUNDING: f64 = 1e-12;

/// The smallest possible load of the most loaded rank where each expert's load may be split over its replicas in any
/// fractions. `loads` are those of one sample, `[experts]`, and `slot_experts` the expert of each slot of `shape`.
///
/// A level is what no rank should exceed. It begins at the mean. Load moves from ranks above it to ranks below it, along paths
/// of experts with replicas on both of two ranks, until there is no path. Then the ranks that those above it reach hold only
/// load that has no replica elsewhere, so one of them carries the mean of these ranks however the load is split, and that is
/// the next level. At the end no rank is above a level that some split must reach: it is the optimum, to 1e-9 of it.
pub fn best_split(loads: &[f64], slot_experts: &[u32], shape: Shape) -> f64 {
    let mut split = Split::new(shape.num_ranks());
    split.place(&expert_ranks(shape, slot_experts));
    split.level(loads, f64::INFINITY)
}

/// Finds best splits: of one placement after the other, and for each of any loads.
#[derive(Debug, Clone)]
pub(super) struct Split {
    rank_loads: Vec<f64>,
    /// Experts that are on one rank, and which.
    fixed: Vec<(u32, u32)>,
    /// The others.
    experts: Vec<Replicated>,
    shares: Vec<Share>,
    /// Which shares each rank has.
    rank_shares: Vec<Vec<u32>>,
    /// How the last search came to each rank.
    steps: Vec<Option<Step>>,
    /// The ranks that the last search reached, in its order.
    reached: Vec<u32>,
    confined: Vec<u32>,
}

/// An expert that is on several ranks.
#[derive(Debug, Clone)]
struct Replicated {
    id: u32,
    load: f64,
    /// Among [`Split::shares`].
    shares: Range<usize>,
}

/// An expert's load on one rank, whatever the number of its slots there.
#[derive(Debug, Clone, Copy)]
struct Share {
    rank: u32,
    /// Among [`Split::experts`].
    expert: u32,
    load: f64,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The rank is above the level.
    Begin,
    /// From one share of an expert to another, by their numbers.
    Move { from: u32, to: u32 },
}

enum Search {
    /// No rank is above the level.
    Even,
    /// This rank is below the level, and a rank above it reaches it.
    Path { to: usize },
    /// The ranks that those above the level reach have nowhere to give load to.
    Confined { mean: f64 },
}

impl Split {
    pub fn new(num_ranks: usize) -> Split {
        Split {
            rank_loads: vec![0.0; num_ranks],
            fixed: Vec::new(),
            experts: Vec::new(),
            shares: Vec::new(),
            rank_shares: vec![Vec::new(); num_ranks],
            steps: vec![None; num_ranks],
            reached: Vec::with_capacity(num_ranks),
            confined: Vec::with_capacity(num_ranks),
        }
    }

    /// Takes a placement: the ranks of each expert, each rank once.
    pub fn place(&mut self, ranks_of: &[Vec<u32>]) {
        self.fixed.clear();
        self.experts.clear();
        self.shares.clear();
        self.rank_shares.iter_mut().for_each(Vec::clear);
        for (id, ranks) in (0..).zip(ranks_of) {
            if let [rank] = ranks[..] {
                self.fixed.push((id, rank));
                continue;
            }
            let (first, expert) = (self.shares.len(), self.experts.len() as u32);
            for &rank in ranks {
                self.rank_shares[rank as usize].push(self.shares.len() as u32);
                self.shares.push(Share { rank, expert, load: 0.0 });
            }
            self.experts.push(Replicated { id, load: 0.0, shares: first..self.shares.len() });
        }
    }

    /// The load of the most loaded rank in the best split of `loads`; or some lower bound of it that is at least `enough`.
    pub fn level(&mut self, loads: &[f64], enough: f64) -> f64 {
        self.confined.clear();
        self.rank_loads.fill(0.0);
        for &(expert, rank) in &self.fixed {
            self.rank_loads[rank as usize] += loads[expert as usize];
        }
        self.shares.iter_mut().for_each(|share| share.load = 0.0);
        self.experts.iter_mut().for_each(|expert| expert.load = loads[expert.id as usize]);
        for _ in 0..SWEEPS {
            (0..self.experts.len()).for_each(|expert| self.pour(expert));
        }
        let mut level = loads.iter().sum::<f64>() / self.rank_loads.len() as f64;
        loop {
            match self.search(level) {
                Search::Even => return level,
                Search::Path { to } => self.shift(to, level),
                Search::Confined { mean } if mean <= level * (1.0 + ROUNDING) => return level,
                Search::Confined { mean } => {
                    level = mean;
                    self.confined.clone_from(&self.reached);
                    if level >= enough {
                        return level;
                    }
                }
            }
        }
    }

    /// The ranks that the level is the mean of, since what they carry has no replica elsewhere; none where it is the mean of all.
    pub fn confined(&self) -> &[u32] {
        &self.confined
    }

    /// Splits an expert's load anew as water: it raises the lowest of its ranks to one height.
    fn pour(&mut self, expert: usize) {
        let Replicated { load, shares: range, .. } = self.experts[expert].clone();
        let (shares, rank_loads) = (&mut self.shares[range], &mut self.rank_loads);
        for share in &mut *shares {
            rank_loads[share.rank as usize] -= share.load;
        }
        let mut height = f64::INFINITY;
        loop {
            let below = shares.iter().map(|share| rank_loads[share.rank as usize]).filter(|&l| l < height);
            let (count, sum) = below.fold((0.0, load), |(count, sum), load| (count + 1.0, sum + load));
            let lower = sum / count;
            if count == 0.0 || lower >= height {
                break;
            }
            height = lower;
        }
        for share in shares {
            let rank_load = &mut rank_loads[share.rank as usize];
            share.load = (height - *rank_load).max(0.0);
            *rank_load += share.load;
        }
    }

    /// Looks from the ranks above `level`, fewest moves first, for one below it.
    fn search(&mut self, level: f64) -> Search {
        let slack = level * ROUNDING;
        self.steps.fill(None);
        self.reached.clear();
        for (rank, &load) in self.rank_loads.iter().enumerate() {
            if load > level + slack {
                self.steps[rank] = Some(Step::Begin);
                self.reached.push(rank as u32);
            }
        }
        let mut next = 0;
        while let Some(&rank) = self.reached.get(next) {
            next += 1;
            for &from in &self.rank_shares[rank as usize] {
                let Share { expert, load, .. } = self.shares[from as usize];
                if load <= 0.0 {
                    continue;
                }
                for to in self.experts[expert as usize].shares.clone() {
                    let other = self.shares[to].rank as usize;
                    if self.steps[other].is_none() {
                        self.steps[other] = Some(Step::Move { from, to: to as u32 });
                        self.reached.push(other as u32);
                        if self.rank_loads[other] < level - slack {
                            return Search::Path { to: other };
                        }
                    }
                }
            }
        }
        if self.reached.is_empty() {
            return Search::Even;
        }
        let load: f64 = self.reached.iter().map(|&rank| self.rank_loads[rank as usize]).sum();
        Search::Confined { mean: load / self.reached.len() as f64 }
    }

    /// Moves as much as the path that the search found lets through, from its rank above `level` to the rank `to` below it.
    fn shift(&mut self, to: usize, level: f64) {
        let (mut amount, mut rank) = (level - self.rank_loads[to], to);
        while let Some(Step::Move { from, .. }) = self.steps[rank] {
            let share = self.shares[from as usize];
            (amount, rank) = (amount.min(share.load), share.rank as usize);
        }
        amount = amount.min(self.rank_loads[rank] - level);
        self.rank_loads[rank] -= amount;
        self.rank_loads[to] += amount;
        rank = to;
        while let Some(Step::Move { from, to }) = self.steps[rank] {
            self.shares[to as usize].load += amount;
            self.shares[from as usize].load -= amount;
            rank = self.shares[from as usize].rank as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_goes_where_a_replica_is_and_no_further() {
        let shape = Shape::new(3, 6, 3).unwrap();
        // Ranks hold 0 1 | 1 2 | 2 2. Expert 0 (9) has to stay on rank 0, 1 (1) all goes to rank 1, and 2 (6) makes ranks 1
        // and 2 level at 3.5.
        assert_eq!(best_split(&[9.0, 1.0, 6.0], &[0, 1, 1, 2, 2, 2], shape), 9.0);
        // Rank 0 takes 3 of expert 1 and rank 1 the other 6, and rank 2 all 6 of expert 2.
        assert_eq!(best_split(&[3.0, 9.0, 6.0], &[0, 1, 1, 2, 2, 2], shape), 6.0);
        assert_eq!(best_split(&[0.0; 3], &[0, 1, 1, 2, 2, 2], shape), 0.0);
    }

    /// The dual of the linear program: what only the ranks of a set can serve is on these ranks, so one of them has at least
    /// its share of it, and for some set that is all.
    fn by_sets_of_ranks(loads: &[f64], slot_experts: &[u32], shape: Shape) -> f64 {
        let mut ranks_of = vec![0usize; loads.len()];
        for (slot, &expert) in slot_experts.iter().enumerate() {
            ranks_of[expert as usize] |= 1 << shape.rank_of(slot);
        }
        let shares = (1usize..1 << shape.num_ranks()).map(|set| {
            let confined = loads.iter().zip(&ranks_of).filter(|&(_, ranks)| ranks & !set == 0);
            confined.map(|(load, _)| load).sum::<f64>() / f64::from(set.count_ones())
        });
        shares.fold(0.0, f64::max)
    }

    #[test]
    fn it_is_what_the_sets_of_ranks_allow_on_any_placement() {
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut above_the_mean = 0;
        for case in 0..3000 {
            let (num_experts, num_ranks) = (1 + random(24), 1 + random(9));
            let num_slots = (num_experts + random(num_experts + 4)).next_multiple_of(num_ranks);
            let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
            let mut slot_experts: Vec<u32> = (0..num_slots)
                .map(|slot| if slot < num_experts { slot } else { random(num_experts) } as u32)
                .collect();
            (1..num_slots).for_each(|slot| slot_experts.swap(slot, random(slot + 1)));
            let loads: Vec<f64> = (0..num_experts)
                .map(|expert| match case % 4 {
                    0 => random(4) as f64,
                    1 => random(1 << 30) as f64 / 1e9,
                    2 => 1000.0 / (1 + expert) as f64,
                    _ => random(100) as f64 * random(100) as f64,
                })
                .collect();
            let (found, expected) =
                (best_split(&loads, &slot_experts, shape), by_sets_of_ranks(&loads, &slot_experts, shape));
            assert!(
                (found - expected).abs() <= 1e-9 * expected,
                "{found} {expected}: {loads:?} {slot_experts:?}"
            );
            let mean = loads.iter().sum::<f64>() / num_ranks as f64;
            above_the_mean += u32::from(expected > mean * (1.0 + 1e-9));
        }
        assert!((1000..2900).contains(&above_the_mean), "{above_the_mean}");
    }
}
