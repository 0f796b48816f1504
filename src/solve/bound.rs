//! The lower bound: a load that the most loaded rank has at least, in any placement.

use std::collections::BinaryHeap;

use crate::placement::Shape;

/// Returns a lower bound on the load of the most loaded rank, over every placement of `shape`. An expert's
/// load is split evenly over its replicas. `loads` are those of one sample, `[experts]`, finite and not
/// negative.
///
/// A check refutes a maximum T if it proves that no placement keeps every rank at or below T. The bound is
/// the mean if no check refutes it, else the number next to a refuted one. The checks:
///
/// - **Mean.** The ranks carry all load together, so one of them carries at least the mean.
/// - **Replicas.** No replica may carry more than T, so an expert of load l needs ceil(l / T) replicas. All
///   needs must fit in the slots. The slots that remain are spare: any expert may get them.
/// - **Shared ranks.** Other replicas share the ranks of an expert. Its replicas are on q ranks. These carry
///   l and at least the lightest replicas in their other slots, and at most q T together. So the expert needs
///   as many replicas as the smallest q for which that holds. Such needs take spare slots, which makes the
///   lightest replicas heavier, so the check is repeated.
/// - **Heavy replicas.** Let j + 1 replicas heavier than w, with the lightest replicas in the rank's other
///   slots, exceed T. Then a rank holds at most j replicas heavier than w.
///
/// Spare slots change which replicas are light and heavy. No check assumes which experts get them:
///
/// - **Light replicas.** Let an expert need n replicas and have c. Then k of its replicas carry what k n / c
///   of them would carry without its spares. That is at most c - n fewer. So any k slots carry at least the k
///   minus spares lightest replicas without spares.
/// - **Heavy replicas.** An expert's n replicas stay heavier than w unless spares raise their number to l /
///   w. So a spare makes at most n / (l / w - n) replicas light.
///
/// The rounding of sums may raise the bound by some 1e-15 of it. Not every instance reaches the bound: the
/// loads may not fit together.
pub fn lower_bound(loads: &[f64], shape: Shape) -> f64 {
    let total: f64 = loads.iter().sum();
    if total == 0.0 || total.is_infinite() {
        return 0.0; // No load, or sums that say nothing.
    }
    let experts = Experts::new(loads, shape);
    let mut replicas = Vec::new();
    let mut refuted = total / shape.num_ranks() as f64;
    if refuted == 0.0 {
        return 0.0; // Too little to be divided.
    }
    if !experts.refute(refuted, &mut replicas) {
        return refuted;
    }
    // No rank carries more than `total`.
    let mut possible = (2.0 * refuted).min(total);
    while possible < total && experts.refute(possible, &mut replicas) {
        (refuted, possible) = (possible, (2.0 * possible).min(total));
    }
    loop {
        let middle = refuted + (possible - refuted) / 2.0;
        if middle <= refuted || middle >= possible {
            return possible;
        }
        *(if experts.refute(middle, &mut replicas) { &mut refuted } else { &mut possible }) = middle;
    }
}

/// Returns a lower bound like [`lower_bound`] for ranks with unequal numbers of slots, `num_slots` of all
/// ranks together.
///
/// It is the larger of the mean and the heaviest replica, where each spare slot goes to the expert with the
/// heaviest replica.
pub fn lower_bound_of_unequal_ranks(loads: &[f64], num_slots: usize, num_ranks: usize) -> f64 {
    // No load is negative. Adding zero removes the sign of -0, so that the bits order as the loads do.
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
    /// `lightest[k]`: the sum of the k lightest loads.
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

    /// Returns whether the checks refute `max_load`, which is at least the mean. `replicas` is reused memory.
    fn refute(&self, max_load: f64, replicas: &mut Vec<usize>) -> bool {
        match ReplicaNeeds::new(self, max_load, replicas) {
            None => true,
            Some(mut needs) => !needs.raise_for_shared_ranks() || needs.has_too_many_heavy_replicas(),
        }
    }
}

/// The least number of replicas of each expert for a maximum of `max_load`.
struct ReplicaNeeds<'a> {
    experts: &'a Experts,
    max_load: f64,
    /// The needs of the heaviest experts. All others need one replica.
    replicas: &'a mut Vec<usize>,
    /// Slots beyond the needs.
    spares: usize,
    /// The load of the lightest replica of the experts in `replicas`.
    lightest_hot: f64,
    /// The number of other experts that are lighter than `lightest_hot`.
    num_lighter: usize,
}

impl<'a> ReplicaNeeds<'a> {
    /// Returns the needs by the check of replicas, or `None` if they exceed the slots.
    fn new(experts: &'a Experts, max_load: f64, replicas: &'a mut Vec<usize>) -> Option<Self> {
        let Experts { shape, loads, .. } = experts;
        replicas.clear();
        let mut spares = shape.num_slots() - shape.num_experts();
        for load in loads.iter().take_while(|&&load| load > max_load) {
            let count = (load / max_load).ceil() as usize;
            spares = spares.checked_sub(count - 1)?;
            replicas.push(count);
        }
        let mut needs =
            ReplicaNeeds { experts, max_load, replicas, spares, lightest_hot: f64::INFINITY, num_lighter: 0 };
        let replica_loads = loads.iter().zip(&*needs.replicas).map(|(load, &count)| load / count as f64);
        needs.lightest_hot = replica_loads.fold(f64::INFINITY, f64::min);
        needs.count_lighter();
        Some(needs)
    }

    fn count_lighter(&mut self) {
        let others = &self.experts.loads[self.replicas.len()..];
        self.num_lighter = others.len() - others.partition_point(|&load| load >= self.lightest_hot);
    }

    /// Returns a load that any `num_slots` slots carry at least.
    fn lightest(&self, num_slots: usize) -> f64 {
        let replicas = num_slots.saturating_sub(self.spares);
        let of_others = replicas.min(self.num_lighter);
        let others_load = self.experts.lightest[of_others];
        if replicas == of_others {
            others_load
        } else {
            others_load + (replicas - of_others) as f64 * self.lightest_hot
        }
    }

    fn count(&self, expert: usize) -> usize {
        self.replicas.get(expert).copied().unwrap_or(1)
    }

    /// Raises the needs by the check of shared ranks. Returns false if they exceed the slots.
    fn raise_for_shared_ranks(&mut self) -> bool {
        loop {
            let before = self.spares;
            for expert in 0..self.experts.loads.len() {
                let (count, needed) = (self.count(expert), self.ranks_needed(expert));
                if needed <= count {
                    match expert < self.replicas.len() {
                        true => continue,
                        false => break, // The experts after it are lighter, and need one as well.
                    }
                }
                match self.spares.checked_sub(needed - count) {
                    None => return false,
                    Some(spares) => self.spares = spares,
                }
                match self.replicas.get_mut(expert) {
                    Some(count) => *count = needed,
                    None => self.replicas.push(needed),
                }
                self.lightest_hot = self.lightest_hot.min(self.experts.loads[expert] / needed as f64);
                self.count_lighter();
            }
            if self.spares == before {
                return true;
            }
        }
    }

    /// Returns the least number of ranks that can hold `expert` and the lightest replicas in their other
    /// slots. If its present need is enough ranks, returns that.
    fn ranks_needed(&self, expert: usize) -> usize {
        let Experts { shape, loads, .. } = self.experts;
        let (load, count) = (loads[expert], self.count(expert));
        let fit = |ranks: usize| {
            // A spare replica of the expert leaves one slot fewer to fill and one spare fewer. So the present
            // need serves here.
            let others = (ranks * shape.slots_per_rank()).saturating_sub(count);
            load + self.lightest(others) <= ranks as f64 * self.max_load
        };
        if fit(count.min(shape.num_ranks())) {
            return count;
        }
        let least = (load / self.max_load).ceil().max(1.0) as usize;
        // All ranks together hold everything. More replicas than the spares allow fail in the caller.
        let most = shape.num_ranks().min(count + self.spares + 1).max(least);
        (least..most).find(|&ranks| fit(ranks)).unwrap_or(most)
    }

    /// Returns whether there are more heavy replicas than the ranks can hold.
    fn has_too_many_heavy_replicas(&self) -> bool {
        let Experts { shape, loads, .. } = self.experts;
        let (hot, others) = loads.split_at(self.replicas.len());
        let width = shape.slots_per_rank();
        (1..width).any(|most| {
            let heavy_above = (self.max_load - self.lightest(width - most - 1)) / (most + 1) as f64;
            let heavy_hot =
                || hot.iter().zip(&*self.replicas).filter(|&(load, &n)| *load > heavy_above * n as f64);
            let heavy = others.partition_point(|&load| load > heavy_above)
                + heavy_hot().map(|(_, &n)| n).sum::<usize>();
            let Some(too_many) = heavy.checked_sub(most * shape.num_ranks()).filter(|&n| n > 0) else {
                return false;
            };
            // The most replicas that one spare slot makes light. At least 1, for an expert that needs only
            // one replica.
            let lightened =
                heavy_hot().map(|(load, &n)| n as f64 / ((load / heavy_above).ceil() - n as f64).max(1.0));
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
    fn each_check_gives_the_bound_worked_out_by_hand() {
        // The mean, which 4 + 1 and 3 + 2 reach.
        assert_eq!(bound(&[4.0, 3.0, 2.0, 1.0], 4, 2), 5.0);
        // Replicas: two spares make 30 into three of 10; the mean is 34 / 6.
        assert_eq!(bound(&[30.0, 2.0, 2.0, 0.0], 6, 6), 10.0);
        // Shared ranks: 9 shares its rank with at least 2; the mean is 15 / 2.
        assert_eq!(bound(&[9.0, 2.0, 2.0, 2.0], 4, 2), 11.0);
        // Heavy replicas: two of the three experts of 5 share a rank; the mean is 8.
        assert_eq!(bound(&[5.0, 5.0, 5.0, 1.0], 4, 2), 10.0);
        assert_eq!(bound(&[0.0; 3], 4, 2), 0.0);
    }

    /// The smallest maximum rank load of all placements. It tries every vector of replica counts and every
    /// way to fill the ranks one by one. Each rank starts with the first expert that has replicas left.
    struct Exhaustive<'a> {
        loads: &'a [f64],
        width: usize,
        counts: Vec<usize>,
        replica_loads: Vec<f64>,
        least: f64,
    }

    impl Exhaustive<'_> {
        fn optimum(loads: &[f64], num_slots: usize, num_ranks: usize) -> f64 {
            let width = num_slots / num_ranks;
            let (counts, replica_loads) = (vec![1; loads.len()], loads.to_vec());
            let mut search = Exhaustive { loads, width, counts, replica_loads, least: f64::INFINITY };
            search.count(0, num_slots - loads.len());
            search.least
        }

        fn count(&mut self, expert: usize, spares: usize) {
            let last = expert + 1 == self.loads.len();
            for more in if last { spares } else { 0 }..=spares {
                self.counts[expert] = 1 + more;
                self.replica_loads[expert] = self.loads[expert] / (1 + more) as f64;
                match last {
                    false => self.count(expert + 1, spares - more),
                    true => self.fill(0, 0, 0.0, 0.0),
                }
            }
        }

        /// Fills the remaining slots. The current rank has `held` replicas of experts up to `from`, which
        /// carry `load`.
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
                self.fill(held + 1, expert, load + self.replica_loads[expert], max);
                self.counts[expert] += 1;
            }
        }
    }

    #[test]
    fn lower_bound_is_never_above_the_optimum_of_small_shapes() {
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
                // Ties and zeros, whole numbers, fractions, one hot expert, a power law.
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
        let part_reached = f64::from(reached) / f64::from(cases);
        assert!((0.75..1.0).contains(&part_reached), "{reached} of {cases}");
    }
}
