//! The step with the best gain per changed slot.

use super::changes::{Changes, Prices, Replacement};
use super::costs::LayerCosts;
use super::{ChangeLimits, LEAST_STEP_GAIN};
use crate::placement::NO_EXPERT;
use crate::solve::search::lanes::{Kernel, Vector, dot};

/// Which steps are allowed and what they cost.
pub(super) struct Rules<'r> {
    pub limits: ChangeLimits,
    /// `[slots]`, or empty.
    pub is_pinned: &'r [bool],
    /// Since the start, for the limits.
    pub since_start: &'r Changes,
    /// Since the start of the round.
    pub changes: &'r Changes,
    pub prices: &'r Prices,
    /// Ranks and experts that they may not receive.
    pub refused: &'r [(usize, u32)],
}

impl Rules<'_> {
    fn is_pinned(&self, slot: usize) -> bool {
        self.is_pinned.get(slot).is_some_and(|&is_pinned| is_pinned)
    }

    /// Returns whether a rank may change at all. Where the limit of the layer is reached, only ranks with
    /// changed slots may.
    fn may_change(&self, rank: usize) -> bool {
        self.since_start.total() < self.limits.of_layer || self.since_start.of_rank(rank) > 0
    }

    /// Returns whether replacements of different ranks keep the limits.
    fn allow(&self, replacements: &[Replacement]) -> bool {
        let mut added = 0;
        for &replacement in replacements {
            let of_rank = self.since_start.added(replacement);
            added += of_rank;
            if of_rank > 0 && self.since_start.of_rank(replacement.rank) >= self.limits.of_rank
                || self.refused.contains(&(replacement.rank, replacement.taken))
            {
                return false;
            }
        }
        added <= 0 || self.since_start.total().saturating_add(added as usize) <= self.limits.of_layer
    }

    /// Returns the number of changed slots that replacements add, at least 1, and their price.
    fn cost_of(&self, replacements: &[Replacement]) -> (f32, f32) {
        let added: isize = replacements.iter().map(|&replacement| self.changes.added(replacement)).sum();
        let price: f64 =
            replacements.iter().map(|&replacement| self.prices.added(self.changes, replacement)).sum();
        (added.max(1) as f32, price as f32)
    }
}

/// A step.
#[derive(Debug, Clone, Copy)]
pub(super) enum FoundStep {
    Replace(Replacement),
    Exchange([Replacement; 2]),
}

impl FoundStep {
    pub fn replacements(&self) -> &[Replacement] {
        match self {
            FoundStep::Replace(replacement) => std::slice::from_ref(replacement),
            FoundStep::Exchange(replacements) => replacements,
        }
    }
}

/// Finds the step with the best gain per changed slot.
pub(super) struct BestStep<'s, 'a> {
    pub costs: &'s LayerCosts<'a>,
    pub rules: &'s Rules<'s>,
    /// An expert without a replica, which gets one at any cost. `None`: all steps that gain.
    pub restored: Option<u32>,
}

impl Kernel for BestStep<'_, '_> {
    type Output = Option<FoundStep>;

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> Self::Output {
        let BestStep { costs, rules, restored } = self;
        let exponent = (1 << SQUARINGS) as f32;
        let mut best = Best { score: LEAST_STEP_GAIN * exponent, step: None };
        if restored.is_some() {
            best.score = f32::NEG_INFINITY;
        }
        find_replacement::<V, SQUARINGS>(costs, rules, restored, exponent, &mut best);
        if restored.is_none() {
            find_exchange::<V, SQUARINGS>(costs, rules, exponent, &mut best);
        }
        best.step
    }
}

struct Best {
    /// The gain per changed slot.
    score: f32,
    step: Option<FoundStep>,
}

/// Finds the best expert for a slot.
///
/// A replacement has three parts: what the other replicas of the slot's expert take over, what those of the new
/// expert give up, and the slot's rank. Only the last depends on both, and gains at most what the removal of the
/// slot's expert gains. Where another rank holds both experts, the sum is less than the gain.
#[inline(always)]
fn find_replacement<V: Vector, const SQUARINGS: usize>(
    costs: &LayerCosts<'_>,
    rules: &Rules<'_>,
    restored: Option<u32>,
    exponent: f32,
    best: &mut Best,
) {
    // What a slot can gain by the expert that it gives, at most.
    let mut slots: Vec<(usize, usize, f32)> = Vec::with_capacity(costs.slots().len());
    let mut most_of_slots = f32::NEG_INFINITY;
    for (rank, range) in costs.ranges.iter().enumerate() {
        if !rules.may_change(rank) {
            continue;
        }
        for slot in range.clone() {
            let out = costs.slots()[slot];
            let mut most = 0.0;
            if out != NO_EXPERT {
                if costs.counts[out as usize] < 2 {
                    continue;
                }
                most = costs.removed[slot] - costs.others_lose(slot, out);
                if !rules.prices.are_zero() && rules.changes.is_received(rank, out) {
                    most += exponent * rules.prices.of(rank, out) as f32;
                }
            }
            if rules.is_pinned(slot) {
                continue;
            }
            most_of_slots = most_of_slots.max(most);
            slots.push((rank, slot, most));
        }
    }
    let may_grow = |expert: &u32| match restored {
        Some(restored) => *expert == restored,
        None => {
            let count = costs.counts[*expert as usize];
            count > 0 && (count as usize) < rules.limits.max_replicas
        }
    };
    let mut wanted: Vec<(f32, u32)> = (0..costs.counts.len() as u32)
        .filter(may_grow)
        .map(|expert| (costs.gained[expert as usize], expert))
        .filter(|(gained, _)| gained + most_of_slots > best.score)
        .collect();
    // The expert that gains most gives a good step, which rejects most of the others.
    let by_gain = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if let Some(&most) = wanted.iter().min_by(|a, b| by_gain(a, b)) {
        try_slots::<V, SQUARINGS>(costs, rules, exponent, &slots, &[most], best);
        wanted.retain(|other| other.1 != most.1 && other.0 + most_of_slots > best.score);
        wanted.sort_unstable_by(by_gain);
        try_slots::<V, SQUARINGS>(costs, rules, exponent, &slots, &wanted, best);
    }
}

/// Tries experts, by descending gain, in slots of ranks, which gain at most the given number.
#[inline(always)]
fn try_slots<V: Vector, const SQUARINGS: usize>(
    costs: &LayerCosts<'_>,
    rules: &Rules<'_>,
    exponent: f32,
    slots: &[(usize, usize, f32)],
    wanted: &[(f32, u32)],
    best: &mut Best,
) {
    for &(rank, slot, most) in slots {
        let out = costs.slots()[slot];
        let is_refunded = !rules.prices.are_zero() && rules.changes.is_received(rank, out);
        let refunded = if is_refunded { exponent * rules.prices.of(rank, out) as f32 } else { 0.0 };
        for &(gained, taken) in wanted {
            if gained + most <= best.score {
                break;
            }
            let replacement = Replacement { rank, out, taken };
            let part = V::splat(1.0 / (costs.counts[taken as usize] + 1) as f32);
            let mut cost = V::zero();
            let mut others_lose = 0.0;
            if out == NO_EXPERT {
                for block in 0..costs.blocks_of(0).len() {
                    let load = V::load(&costs.rank_loads[costs.blocks_of(rank)][block]);
                    let added = V::load(&costs.loads[costs.blocks_of(taken as usize)][block]).mul(part);
                    cost = cost.add(load.add(added).power::<SQUARINGS>());
                }
            } else {
                others_lose = costs.others_lose(slot, out);
                let out_part = V::splat(1.0 / costs.counts[out as usize] as f32);
                for block in 0..costs.blocks_of(0).len() {
                    let load = V::load(&costs.rank_loads[costs.blocks_of(rank)][block]);
                    let given = V::load(&costs.loads[costs.blocks_of(out as usize)][block]).mul(out_part);
                    let added = V::load(&costs.loads[costs.blocks_of(taken as usize)][block]).mul(part);
                    cost = cost.add(load.sub(given).add(added).power::<SQUARINGS>());
                }
            }
            let gain = gained - others_lose + costs.costs[rank] - cost.sum();
            if gain + refunded <= best.score
                || costs.experts(rank).contains(&taken)
                || !rules.allow(&[replacement])
            {
                continue;
            }
            let (_, price) = rules.cost_of(&[replacement]);
            let score = gain - exponent * price;
            if score > best.score {
                *best = Best { score, step: Some(FoundStep::Replace(replacement)) };
            }
        }
    }
}

/// Finds the best exchange of two ranks.
///
/// The cost is convex. So the gain by the gradient is at least the gain, and two ranks gain at most what even
/// loads would gain.
#[inline(always)]
fn find_exchange<V: Vector, const SQUARINGS: usize>(
    costs: &LayerCosts<'_>,
    rules: &Rules<'_>,
    exponent: f32,
    best: &mut Best,
) {
    let num_ranks = costs.ranges.len();
    let most_removed =
        |rank: usize| costs.removed[costs.ranges[rank].clone()].iter().copied().fold(0.0, f32::max);
    let ranks = (0..num_ranks).filter(|&rank| rules.may_change(rank));
    let mut order: Vec<(f32, usize)> = ranks.map(|rank| (most_removed(rank), rank)).collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    // Where ranks received nothing yet, an exchange changes two slots, and nothing is refunded.
    let mut lost: Vec<f32> = Vec::new();
    for (place, &(most_removed, one)) in order.iter().enumerate() {
        for &(other_most_removed, other) in &order[place + 1..] {
            let num_changed = rules.changes.of_rank(one) + rules.changes.of_rank(other);
            let least_added = if num_changed == 0 { 2.0 } else { 1.0 };
            let refund = match rules.prices.are_zero() {
                true => 0.0,
                false => exponent * rules.changes.price(rules.prices) as f32,
            };
            let needed = best.score * least_added - refund;
            if most_removed + other_most_removed <= needed {
                if num_changed == 0 && rules.changes.total() == 0 {
                    break;
                }
                continue;
            }
            let base = costs.costs[one] + costs.costs[other];
            let (one_loads, other_loads) =
                (&costs.rank_loads[costs.blocks_of(one)], &costs.rank_loads[costs.blocks_of(other)]);
            let mut even = V::zero();
            for (one, other) in one_loads.iter().zip(other_loads) {
                let mean = V::load(one).add(V::load(other)).mul(V::splat(0.5));
                even = even.add(mean.power::<SQUARINGS>());
            }
            if base - 2.0 * even.sum() <= needed {
                continue;
            }
            let gradients =
                (&costs.gradients[costs.blocks_of(one)], &costs.gradients[costs.blocks_of(other)]);
            let by_gradient = |expert: u32| {
                let load = &costs.loads[costs.blocks_of(expert as usize)];
                (dot::<V>(gradients.0, load) - dot::<V>(gradients.1, load))
                    / costs.counts[expert as usize] as f32
            };
            lost.clear();
            for slot in costs.ranges[other].clone() {
                let expert = costs.slots()[slot];
                let is_movable = expert != NO_EXPERT && !rules.is_pinned(slot);
                lost.push(if is_movable { by_gradient(expert) } else { f32::INFINITY });
            }
            for slot in costs.ranges[one].clone() {
                let out = costs.slots()[slot];
                if out == NO_EXPERT
                    || rules.is_pinned(slot)
                    || costs.removed[slot] + other_most_removed <= needed
                    || costs.experts(other).contains(&out)
                {
                    continue;
                }
                let most = by_gradient(out);
                let out_part = V::splat(1.0 / costs.counts[out as usize] as f32);
                for (other_slot, lost) in costs.ranges[other].clone().zip(&lost) {
                    if most - lost <= best.score * least_added - refund {
                        continue;
                    }
                    let taken = costs.slots()[other_slot];
                    let replacements = [
                        Replacement { rank: one, out, taken },
                        Replacement { rank: other, out: taken, taken: out },
                    ];
                    let taken_part = V::splat(1.0 / costs.counts[taken as usize] as f32);
                    let mut cost = V::zero();
                    for block in 0..one_loads.len() {
                        let given = V::load(&costs.loads[costs.blocks_of(out as usize)][block]).mul(out_part);
                        let added =
                            V::load(&costs.loads[costs.blocks_of(taken as usize)][block]).mul(taken_part);
                        let moved = given.sub(added);
                        let one = V::load(&one_loads[block]).sub(moved).power::<SQUARINGS>();
                        let other = V::load(&other_loads[block]).add(moved).power::<SQUARINGS>();
                        cost = cost.add(one.add(other));
                    }
                    let gain = base - cost.sum();
                    if gain <= best.score * least_added - refund
                        || costs.experts(one).contains(&taken)
                        || !rules.allow(&replacements)
                    {
                        continue;
                    }
                    let (added, price) = rules.cost_of(&replacements);
                    let score = (gain - exponent * price) / added;
                    if score > best.score {
                        *best = Best { score, step: Some(FoundStep::Exchange(replacements)) };
                    }
                }
            }
        }
    }
}
