//! The best split: the lowest maximum rank load of a placement if tokens may be split over replicas in any
//! fractions.

use std::ops::Range;

use crate::placement::{Shape, expert_ranks};

/// Passes of water-filling over all experts before load moves along paths. The result does not depend on it.
const SWEEPS: usize = 4;

/// An excess below this part of the limit is rounding.
const ROUNDING: f64 = 1e-12;

/// Returns the smallest possible load of the most loaded rank if each expert's load may be split over its
/// replicas in any fractions. `loads` are those of one sample, `[experts]`. `slot_experts` is the expert of
/// each slot of `shape`.
///
/// The algorithm raises a limit on the rank load, which starts at the mean. Load moves from ranks above the
/// limit to ranks below it. It moves along paths of experts that have replicas on both of two ranks. When no
/// path is left, take the ranks above the limit and all ranks that they reach. These ranks hold only load
/// that has no replica elsewhere. However the load is split, one of them carries at least their mean, and
/// that is the next limit. At the end no rank is above a limit that every split reaches: the optimum, to 1e-9
/// of it.
pub fn best_split(loads: &[f64], slot_experts: &[u32], shape: Shape) -> f64 {
    let mut split = Split::new(shape.num_ranks());
    split.place(&expert_ranks(shape, slot_experts));
    split.max_load(loads)
}

/// Finds best splits of a placement.
#[derive(Debug, Clone)]
struct Split {
    rank_loads: Vec<f64>,
    /// Experts that are on one rank: expert and rank.
    fixed: Vec<(u32, u32)>,
    /// Experts that are on several ranks.
    experts: Vec<Replicated>,
    portions: Vec<Portion>,
    /// The indices in `portions` of each rank.
    rank_portions: Vec<Vec<u32>>,
    /// How the last path find_path reached each rank.
    steps: Vec<Option<Step>>,
    /// The ranks that the last path find_path reached, in order.
    reached: Vec<u32>,
}

/// An expert that is on several ranks.
#[derive(Debug, Clone)]
struct Replicated {
    id: u32,
    load: f64,
    /// Its range in [`Split::portions`].
    portions: Range<usize>,
}

/// An expert's load on one rank, in however many slots.
#[derive(Debug, Clone, Copy)]
struct Portion {
    rank: u32,
    /// Its index in [`Split::experts`].
    expert: u32,
    load: f64,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The rank is above the limit.
    Begin,
    /// Moves load from one portion of an expert to another, by their indices.
    Move { from: u32, to: u32 },
}

enum PathSearch {
    /// No rank is above the limit.
    Even,
    /// A rank above the limit reaches rank `to`, which is below it.
    Path { to: usize },
    /// The ranks above the limit, and all that they reach, can move no load elsewhere. `mean` is their mean
    /// load.
    Confined { mean: f64 },
}

impl Split {
    fn new(num_ranks: usize) -> Split {
        Split {
            rank_loads: vec![0.0; num_ranks],
            fixed: Vec::new(),
            experts: Vec::new(),
            portions: Vec::new(),
            rank_portions: vec![Vec::new(); num_ranks],
            steps: vec![None; num_ranks],
            reached: Vec::with_capacity(num_ranks),
        }
    }

    /// Sets the placement: the ranks of each expert, each rank once.
    fn place(&mut self, ranks_of: &[Vec<u32>]) {
        self.fixed.clear();
        self.experts.clear();
        self.portions.clear();
        self.rank_portions.iter_mut().for_each(Vec::clear);
        for (id, ranks) in (0..).zip(ranks_of) {
            if let [rank] = ranks[..] {
                self.fixed.push((id, rank));
                continue;
            }
            let (first, expert) = (self.portions.len(), self.experts.len() as u32);
            for &rank in ranks {
                self.rank_portions[rank as usize].push(self.portions.len() as u32);
                self.portions.push(Portion { rank, expert, load: 0.0 });
            }
            self.experts.push(Replicated { id, load: 0.0, portions: first..self.portions.len() });
        }
    }

    /// Returns the load of the most loaded rank in the best split of `loads`.
    fn max_load(&mut self, loads: &[f64]) -> f64 {
        self.rank_loads.fill(0.0);
        for &(expert, rank) in &self.fixed {
            self.rank_loads[rank as usize] += loads[expert as usize];
        }
        self.portions.iter_mut().for_each(|portion| portion.load = 0.0);
        self.experts.iter_mut().for_each(|expert| expert.load = loads[expert.id as usize]);
        for _ in 0..SWEEPS {
            (0..self.experts.len()).for_each(|expert| self.water_fill(expert));
        }
        let mut limit = loads.iter().sum::<f64>() / self.rank_loads.len() as f64;
        loop {
            match self.find_path(limit) {
                PathSearch::Even => return limit,
                PathSearch::Path { to } => self.shift(to, limit),
                PathSearch::Confined { mean } if mean <= limit * (1.0 + ROUNDING) => return limit,
                PathSearch::Confined { mean } => limit = mean,
            }
        }
    }

    /// Splits an expert's load anew by water-filling: raises the lowest of its ranks to one height.
    fn water_fill(&mut self, expert: usize) {
        let Replicated { load, portions: range, .. } = self.experts[expert].clone();
        let (portions, rank_loads) = (&mut self.portions[range], &mut self.rank_loads);
        for portion in &mut *portions {
            rank_loads[portion.rank as usize] -= portion.load;
        }
        let mut height = f64::INFINITY;
        loop {
            let below =
                portions.iter().map(|portion| rank_loads[portion.rank as usize]).filter(|&l| l < height);
            let (count, sum) = below.fold((0.0, load), |(count, sum), load| (count + 1.0, sum + load));
            let lower = sum / count;
            if count == 0.0 || lower >= height {
                break;
            }
            height = lower;
        }
        for portion in portions {
            let rank_load = &mut rank_loads[portion.rank as usize];
            portion.load = (height - *rank_load).max(0.0);
            *rank_load += portion.load;
        }
    }

    /// Searches breadth-first from the ranks above `limit` for one below it.
    fn find_path(&mut self, limit: f64) -> PathSearch {
        let slack = limit * ROUNDING;
        self.steps.fill(None);
        self.reached.clear();
        for (rank, &load) in self.rank_loads.iter().enumerate() {
            if load > limit + slack {
                self.steps[rank] = Some(Step::Begin);
                self.reached.push(rank as u32);
            }
        }
        let mut next = 0;
        while let Some(&rank) = self.reached.get(next) {
            next += 1;
            for &from in &self.rank_portions[rank as usize] {
                let Portion { expert, load, .. } = self.portions[from as usize];
                if load <= 0.0 {
                    continue;
                }
                for to in self.experts[expert as usize].portions.clone() {
                    let other = self.portions[to].rank as usize;
                    if self.steps[other].is_none() {
                        self.steps[other] = Some(Step::Move { from, to: to as u32 });
                        self.reached.push(other as u32);
                        if self.rank_loads[other] < limit - slack {
                            return PathSearch::Path { to: other };
                        }
                    }
                }
            }
        }
        if self.reached.is_empty() {
            return PathSearch::Even;
        }
        let load: f64 = self.reached.iter().map(|&rank| self.rank_loads[rank as usize]).sum();
        PathSearch::Confined { mean: load / self.reached.len() as f64 }
    }

    /// Moves load along the path that was found, from its rank above `limit` to the rank `to` below it.
    fn shift(&mut self, to: usize, limit: f64) {
        let (mut amount, mut rank) = (limit - self.rank_loads[to], to);
        while let Some(Step::Move { from, .. }) = self.steps[rank] {
            let portion = self.portions[from as usize];
            (amount, rank) = (amount.min(portion.load), portion.rank as usize);
        }
        amount = amount.min(self.rank_loads[rank] - limit);
        self.rank_loads[rank] -= amount;
        self.rank_loads[to] += amount;
        rank = to;
        while let Some(Step::Move { from, to }) = self.steps[rank] {
            self.portions[to as usize].load += amount;
            self.portions[from as usize].load -= amount;
            rank = self.portions[from as usize].rank as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_split_moves_load_only_between_ranks_with_a_replica() {
        let shape = Shape::new(3, 6, 3).unwrap();
        // Ranks hold 0 1 | 1 2 | 2 2. Expert 0 (9) stays on rank 0, all of expert 1 (1) goes to rank 1, and
        // expert 2 (6) evens out ranks 1 and 2 at 3.5.
        assert_eq!(best_split(&[9.0, 1.0, 6.0], &[0, 1, 1, 2, 2, 2], shape), 9.0);
        // Rank 0 takes 3 of expert 1 and rank 1 the other 6, and rank 2 all 6 of expert 2.
        assert_eq!(best_split(&[3.0, 9.0, 6.0], &[0, 1, 1, 2, 2, 2], shape), 6.0);
        assert_eq!(best_split(&[0.0; 3], &[0, 1, 1, 2, 2, 2], shape), 0.0);
    }

    /// The dual of the linear program. Load that only a set of ranks can serve stays on these ranks, so one
    /// of them has at least the mean of it. Some set reaches the optimum.
    fn bound_of_the_sets_of_ranks(loads: &[f64], slot_experts: &[u32], shape: Shape) -> f64 {
        let mut ranks_of = vec![0usize; loads.len()];
        for (slot, &expert) in slot_experts.iter().enumerate() {
            ranks_of[expert as usize] |= 1 << shape.rank_of(slot);
        }
        let means = (1usize..1 << shape.num_ranks()).map(|set| {
            let confined = loads.iter().zip(&ranks_of).filter(|&(_, ranks)| ranks & !set == 0);
            confined.map(|(load, _)| load).sum::<f64>() / f64::from(set.count_ones())
        });
        means.fold(0.0, f64::max)
    }

    #[test]
    fn best_split_equals_the_bound_of_the_sets_of_ranks() {
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
            let (found, expected) = (
                best_split(&loads, &slot_experts, shape),
                bound_of_the_sets_of_ranks(&loads, &slot_experts, shape),
            );
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
