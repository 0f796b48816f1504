//! How good a placement can be at best: a maximum rank load that none is below.

use std::collections::BinaryHeap;

use crate::placement::Shape;

/// A lower bound on the load of the most loaded rank, over every placement of `shape` that splits an expert's load evenly
/// over its replicas. `loads` are those of one sample, `[experts]`, finite and not negative.
///
/// It is the mean, or, where one of these refutes the mean, the number next to one that is refuted as a maximum T:
///
/// - **The mean.** The ranks carry all load together, so one of them carries at least its share.
/// - **Replicas.** No replica may be heavier than T, so an expert of load l needs l / T of them, rounded up, and all needs
///   must fit in the slots. The slots that they leave are the spares, which may go to any experts.
/// - **Company.** The other slots of an expert's ranks are not empty: q ranks with all its replicas carry l and what the
///   lightest replicas in their other slots carry, at most q T together. So the expert needs as many replicas as the smallest q
///   for which that holds. That takes spares, which makes the lightest replicas heavier, so it is looked at again.
/// - **Crowding.** If j + 1 replicas heavier than w, with the lightest in the rank's other slots, exceed T, then a rank holds at
///   most j such replicas, and all ranks at most j each.
///
/// Spares change what is light and what is heavy, and none of this assumes where they go. **Light**: let an expert need n
/// replicas and have c. Then k of its replicas carry as much as k n / c would without its spares, which is at most c - n fewer.
/// So any k slots carry at least what, without spares, the lightest replicas would, as many as k minus the spares. **Heavy**: an
/// expert's n replicas stay heavier than w unless spares bring it to l / w, so a spare makes at most n / (l / w - n) light.
///
/// The bound holds but for the rounding of sums, some 1e-15 of it. It need not be reached: the loads may not fit together.
pub fn lower_bound(loads: &[f64], shape: Shape) -> f64 {
    let total: f64 = loads.iter().sum();
    if total == 0.0 || total.is_infinite() {
        return 0.0; // No load, or sums that say nothing.
    }
    let experts = Experts::new(loads, shape);
    let mut counts = Vec::new();
    let mut refuted = total / shape.num_ranks() as f64;
    if refuted == 0.0 {
        return 0.0; // Too little to be divided.
    }
    if !experts.refute(refuted, &mut counts) {
        return refuted;
    }
    // No rank carries more than `total`.
    let mut possible = (2.0 * refuted).min(total);
    while possible < total && experts.refute(possible, &mut counts) {
        (refuted, possible) = (possible, (2.0 * possible).min(total));
    }
    loop {
        let middle = refuted + (possible - refuted) / 2.0;
        if middle <= refuted || middle >= possible {
            return possible;
        }
        *(if experts.refute(middle, &mut counts) { &mut refuted } else { &mut possible }) = middle;
    }
}

/// As [`lower_bound`] where ranks have unequal numbers of slots, `num_slots` of all together: the mean, or the heaviest replica
/// once each spare slot has gone to the expert with the heaviest, which leaves it as light as can be.
pub fn lower_bound_of_uneven(loads: &[f64], num_slots: usize, num_ranks: usize) -> f64 {
    // Loads are not negative, so their bits order as they do once a zero has no sign.
    let replica =
        |expert: usize, count: u32| ((loads[expert] / f64::from(count) + 0.0).to_bits(), expert, count);
    let mut heaviest: BinaryHeap<_> = (0..loads.len()).map(|expert| replica(expert, 1)).collect();
    for _ in loads.len()..num_slots {
        if let Some(mut top) = heaviest.peek_mut() {
            *top = replica(top.1, top.2 + 1);
        }
    }
    let mean = loads.iter().sum::<f64>() / num_ranks as f64;
    heaviest.peek().map_or(0.0, |top| f64::from_bits(top.0)).max(mean)
}

/// The experts of a layer, heaviest first.
struct Experts {
    shape: Shape,
    loads: Vec<f64>,
    /// `lightest[k]`: what the k lightest carry together.
    lightest: Vec<f64>,
}

impl Experts {
    fn new(loads: &[f64], shape: Shape) -> Experts {
        let mut loads = loads.to_vec();
        loads.sort_unstable_by(|a, b| b.total_cmp(a));
        let mut lightest = vec![0.0; loads.len() + 1];
        for (k, load) in loads.iter().rev().enumerate() {
            lightest[k + 1] = lightest[k] + load;
        }
        Experts { shape, loads, lightest }
    }

    /// Whether no placement keeps every rank at or below `target`, which is at least the mean. `counts` is only memory.
    fn refute(&self, target: f64, counts: &mut Vec<usize>) -> bool {
        match Needs::new(self, target, counts) {
            None => true,
            Some(mut needs) => !needs.bear_company() || needs.crowd(),
        }
    }
}

/// How many replicas each expert needs at least for a maximum of `target`.
struct Needs<'a> {
    experts: &'a Experts,
    target: f64,
    /// Of the heaviest experts; all others need one.
    counts: &'a mut Vec<usize>,
    /// Slots beyond the needs.
    spares: usize,
    /// The lightest replica of the experts of `counts`.
    lightest_hot: f64,
    /// How many of the others are lighter than that.
    num_lighter: usize,
}

impl<'a> Needs<'a> {
    /// What the experts need whatever their company is, `None` where that is more than there is.
    fn new(experts: &'a Experts, target: f64, counts: &'a mut Vec<usize>) -> Option<Self> {
        let Experts { shape, loads, .. } = experts;
        counts.clear();
        let mut spares = shape.num_slots() - shape.num_experts();
        for load in loads.iter().take_while(|&&load| load > target) {
            let count = (load / target).ceil() as usize;
            spares = spares.checked_sub(count - 1)?;
            counts.push(count);
        }
        let mut needs =
            Needs { experts, target, counts, spares, lightest_hot: f64::INFINITY, num_lighter: 0 };
        let weights = loads.iter().zip(&*needs.counts).map(|(load, &count)| load / count as f64);
        needs.lightest_hot = weights.fold(f64::INFINITY, f64::min);
        needs.count_lighter();
        Some(needs)
    }

    fn count_lighter(&mut self) {
        let others = &self.experts.loads[self.counts.len()..];
        self.num_lighter = others.len() - others.partition_point(|&load| load >= self.lightest_hot);
    }

    /// What any `num_slots` slots carry at least.
    fn lightest(&self, num_slots: usize) -> f64 {
        let replicas = num_slots.saturating_sub(self.spares);
        let of_others = replicas.min(self.num_lighter);
        let others = self.experts.lightest[of_others];
        if replicas == of_others {
            others
        } else {
            others + (replicas - of_others) as f64 * self.lightest_hot
        }
    }

    fn count(&self, expert: usize) -> usize {
        self.counts.get(expert).copied().unwrap_or(1)
    }

    /// Raises the needs to what the company on their ranks asks for; false where that is more than there is.
    fn bear_company(&mut self) -> bool {
        loop {
            let before = self.spares;
            for expert in 0..self.experts.loads.len() {
                let (count, needed) = (self.count(expert), self.ranks_needed(expert));
                if needed <= count {
                    match expert < self.counts.len() {
                        true => continue,
                        false => break, // The experts after it are lighter, and need one as well.
                    }
                }
                match self.spares.checked_sub(needed - count) {
                    None => return false,
                    Some(spares) => self.spares = spares,
                }
                match self.counts.get_mut(expert) {
                    Some(count) => *count = needed,
                    None => self.counts.push(needed),
                }
                self.lightest_hot = self.lightest_hot.min(self.experts.loads[expert] / needed as f64);
                self.count_lighter();
            }
            if self.spares == before {
                return true;
            }
        }
    }

    /// On how many ranks `expert` has to be: on no more than it needs replicas, where that many can hold it and what fills
    /// their other slots.
    fn ranks_needed(&self, expert: usize) -> usize {
        let Experts { shape, loads, .. } = self.experts;
        let (load, count) = (loads[expert], self.count(expert));
        let fit = |ranks: usize| {
            // With a spare for the expert there is one slot less to fill and one spare less to fill it, so `count` will do.
            let others = (ranks * shape.slots_per_rank()).saturating_sub(count);
            load + self.lightest(others) <= ranks as f64 * self.target
        };
        if fit(count.min(shape.num_ranks())) {
            return count;
        }
        let least = (load / self.target).ceil().max(1.0) as usize;
        // All ranks can hold all there is, and more replicas than the spares allow are too many anyway.
        let most = shape.num_ranks().min(count + self.spares + 1).max(least);
        (least..most).find(|&ranks| fit(ranks)).unwrap_or(most)
    }

    /// Whether there are more heavy replicas than the ranks can hold.
    fn crowd(&self) -> bool {
        let Experts { shape, loads, .. } = self.experts;
        let (hot, others) = loads.split_at(self.counts.len());
        let width = shape.slots_per_rank();
        (1..width).any(|most| {
            let weight = (self.target - self.lightest(width - most - 1)) / (most + 1) as f64;
            let heavy_hot = || hot.iter().zip(&*self.counts).filter(|&(load, &n)| *load > weight * n as f64);
            let heavy =
                others.partition_point(|&load| load > weight) + heavy_hot().map(|(_, &n)| n).sum::<usize>();
            let Some(too_many) = heavy.checked_sub(most * shape.num_ranks()).filter(|&n| n > 0) else {
                return false;
            };
            // How many replicas a spare makes light: at most one of an expert that needs only one.
            let lightened =
                heavy_hot().map(|(load, &n)| n as f64 / ((load / weight).ceil() - n as f64).max(1.0));
            self.spares as f64 * lightened.fold(1.0, f64::max) < too_many as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(loads: &[f64], num_slots: usize, num_ranks: usize) -> f64 {
        lower_bound(loads, Shape::new(loads.len(), num_slots, num_ranks).unwrap())
    }

    #[test]
    fn each_part_as_worked_by_hand() {
        // The mean, which 4 + 1 and 3 + 2 reach.
        assert_eq!(bound(&[4.0, 3.0, 2.0, 1.0], 4, 2), 5.0);
        // Replicas: two spares make 30 into three of 10; the mean is 34 / 6.
        assert_eq!(bound(&[30.0, 2.0, 2.0, 0.0], 6, 6), 10.0);
        // Company: 9 shares its rank with 2 at least; the mean is 15 / 2.
        assert_eq!(bound(&[9.0, 2.0, 2.0, 2.0], 4, 2), 11.0);
        // Crowding: of three experts of 5 two share a rank; the mean is 8.
        assert_eq!(bound(&[5.0, 5.0, 5.0, 1.0], 4, 2), 10.0);
        assert_eq!(bound(&[0.0; 3], 4, 2), 0.0);
    }

    /// The smallest maximum rank load of all placements: every vector of replica counts, every way to fill the ranks one by
    /// one, where each rank begins with the first expert that is left.
    struct Exhaustive<'a> {
        loads: &'a [f64],
        width: usize,
        counts: Vec<usize>,
        weights: Vec<f64>,
        least: f64,
    }

    impl Exhaustive<'_> {
        fn optimum(loads: &[f64], num_slots: usize, num_ranks: usize) -> f64 {
            let width = num_slots / num_ranks;
            let (counts, weights) = (vec![1; loads.len()], loads.to_vec());
            let mut search = Exhaustive { loads, width, counts, weights, least: f64::INFINITY };
            search.count(0, num_slots - loads.len());
            search.least
        }

        fn count(&mut self, expert: usize, spares: usize) {
            let last = expert + 1 == self.loads.len();
            for more in if last { spares } else { 0 }..=spares {
                self.counts[expert] = 1 + more;
                self.weights[expert] = self.loads[expert] / (1 + more) as f64;
                match last {
                    false => self.count(expert + 1, spares - more),
                    true => self.fill(0, 0, 0.0, 0.0),
                }
            }
        }

        /// The rest of the slots, where the current rank has `held` replicas, of experts up to `from`, that carry `load`.
        fn fill(&mut self, held: usize, from: usize, load: f64, max: f64) {
            if held == self.width {
                return self.fill(0, 0, 0.0, max.max(load));
            }
            let left = |&expert: &usize| self.counts[expert] > 0;
            let mut choices: Vec<usize> = (from..self.loads.len()).filter(left).collect();
            if held == 0 {
                if choices.is_empty() {
                    self.least = self.least.min(max);
                }
                choices.truncate(1);
            }
            for expert in choices {
                self.counts[expert] -= 1;
                self.fill(held + 1, expert, load + self.weights[expert], max);
                self.counts[expert] += 1;
            }
        }
    }

    #[test]
    fn never_above_the_optimum_of_small_shapes_and_mostly_equal_to_it() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut cases, mut reached) = (0, 0);
        for (num_experts, num_ranks, width) in
            (1..=5).flat_map(|e| (2..=4).flat_map(move |r| (1..=4).map(move |w| (e, r, w))))
        {
            let num_slots = num_ranks * width;
            if num_slots < num_experts || num_slots > 8 {
                continue;
            }
            for case in 0..100 {
                // Ties and zeros, whole numbers, fractions, one hot expert, a falling row.
                let loads: Vec<f64> = (0..num_experts)
                    .map(|expert| match (case % 5, expert) {
                        (0, _) => random(4) as f64,
                        (1, _) => random(100) as f64,
                        (2, _) => random(1 << 30) as f64 / 1e9,
                        (3, 0) => 100.0,
                        (3, _) => random(10) as f64,
                        _ => 100.0 / ((expert + 1) as f64).powf(random(200) as f64 / 100.0),
                    })
                    .collect();
                let optimum = Exhaustive::optimum(&loads, num_slots, num_ranks);
                let bound = bound(&loads, num_slots, num_ranks);
                assert!(
                    bound <= optimum * (1.0 + 1e-14),
                    "{loads:?} on {num_ranks} x {width}: {bound} > {optimum}"
                );
                cases += 1;
                reached += u32::from(bound >= optimum * (1.0 - 1e-9));
            }
        }
        let share = f64::from(reached) / f64::from(cases);
        assert!((0.75..1.0).contains(&share), "{reached} of {cases}");
    }
}
