//! The steps of the smooth: the best exchange of two ranks, and the best replica count changes.

use super::lanes::{Kernel, Lanes, Vector, dot};
use super::smooth::Smooth;
use crate::placement::NO_EXPERT;

/// Finds the best exchange between two ranks.
///
/// The cost is convex. So the gain by the gradient is at least the gain, and rejects most pairs.
pub(super) struct BestExchange<'d, 'a> {
    pub smooth: &'d Smooth<'a>,
    pub ranks: [usize; 2],
    pub base: f32,
    pub least_gain: f32,
    /// Exchanges to evaluate at most, or a few more.
    pub left: usize,
}

pub(super) struct FoundExchange {
    pub slots: Option<(usize, usize)>,
    pub evaluated: usize,
}

/// The most slots of a rank whose gains are computed at once.
const CHUNK: usize = 32;

impl Kernel for BestExchange<'_, '_> {
    type Output = FoundExchange;

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> FoundExchange {
        let BestExchange { smooth, ranks: [one, other], base, least_gain, left } = self;
        let blocks = smooth.blocks;
        let loads_of = |index: usize| index * blocks..(index + 1) * blocks;
        let (one_loads, other_loads) =
            (&smooth.rank_loads[loads_of(one)], &smooth.rank_loads[loads_of(other)]);
        let mut found = FoundExchange { slots: None, evaluated: 1 };
        // If all samples were even on both ranks, no exchange would gain more.
        let mut even = V::zero();
        for (one, other) in one_loads.iter().zip(other_loads) {
            let mean = V::load(one).add(V::load(other)).mul(V::splat(0.5));
            even = even.add(mean.power::<SQUARINGS>());
        }
        let on_one_node = smooth.start.are_on_one_node(one, other);
        if on_one_node && base - 2.0 * even.sum() <= least_gain {
            return found;
        }
        // The off-node cost that a move from one rank to another adds.
        let off_node = |expert: u32, from: usize, to: usize| match on_one_node {
            true => 0.0,
            false => smooth.replica_off_node(expert, to) - smooth.replica_off_node(expert, from),
        };
        let gradients = (&smooth.gradients[loads_of(one)], &smooth.gradients[loads_of(other)]);
        let mut best = least_gain;
        let has_pins = smooth.start.has_pins();
        let (slots, other_slots) = (smooth.start.slots_of(one), smooth.start.slots_of(other));
        let mut first = other_slots.start;
        while first < other_slots.end && found.evaluated < left {
            let chunk = first..other_slots.end.min(first + CHUNK);
            let mut lost = [0.0; CHUNK];
            found.evaluated += (slots.len() + chunk.len()) / 4;
            for (lost, slot) in lost.iter_mut().zip(chunk.clone()) {
                let expert = smooth.slots[slot];
                *lost = gain_by_gradient::<V>(gradients, smooth.replica_loads_of(expert))
                    + off_node(expert, other, one);
            }
            for slot in slots.clone() {
                let expert = smooth.slots[slot];
                let load = smooth.replica_loads_of(expert);
                let off_node_cost = off_node(expert, one, other);
                let most = gain_by_gradient::<V>(gradients, load) - off_node_cost;
                if smooth.holds(other, expert) || has_pins && !smooth.may_give(slot) {
                    continue;
                }
                for (other_slot, &lost) in chunk.clone().zip(&lost) {
                    if most - lost <= best {
                        continue;
                    }
                    found.evaluated += 1;
                    let other_expert = smooth.slots[other_slot];
                    let other_load = smooth.replica_loads_of(other_expert);
                    let mut cost = V::zero();
                    for block in 0..blocks {
                        let moved = V::load(&load[block]).sub(V::load(&other_load[block]));
                        let one = V::load(&one_loads[block]).sub(moved).power::<SQUARINGS>();
                        let other = V::load(&other_loads[block]).add(moved).power::<SQUARINGS>();
                        cost = cost.add(one.add(other));
                    }
                    let gain = base - cost.sum() - off_node_cost - off_node(other_expert, other, one);
                    if gain > best
                        && !smooth.holds(one, other_expert)
                        && (!has_pins || smooth.may_give(other_slot))
                    {
                        (best, found.slots) = (gain, Some((slot, other_slot)));
                    }
                }
            }
            first = chunk.end;
        }
        found
    }
}

/// Returns what the first of two ranks gains, and the second loses, if a load moves, to first order.
#[inline(always)]
fn gain_by_gradient<V: Vector>(gradients: (&[Lanes], &[Lanes]), load: &[Lanes]) -> f32 {
    dot::<V>(gradients.0, load) - dot::<V>(gradients.1, load)
}

/// A slot that takes another expert.
pub(super) struct Change {
    pub gain: f32,
    pub slot: usize,
    pub to: u32,
}

/// Finds the best expert for each slot, where the gain is above `least_gain`.
///
/// A change has three parts: what the other replicas of the slot's expert take over, what those of the new
/// expert give up, and the slot's rank. Only the last depends on both.
pub(super) struct ReplicaCountChanges<'d, 'a> {
    pub smooth: &'d Smooth<'a>,
    pub least_gain: f32,
    pub left: usize,
}

impl Kernel for ReplicaCountChanges<'_, '_> {
    type Output = (Vec<Change>, usize);

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) -> Self::Output {
        let ReplicaCountChanges { smooth, least_gain, left } = self;
        let (blocks, num_experts) = (smooth.blocks, smooth.counts.len());
        let mut evaluated = 0;
        let mut gained = vec![0.0; num_experts];
        let mut lost = vec![0.0; num_experts];
        let mut lost_at = vec![0.0; smooth.slots.len()];
        let num_ranks = smooth.costs.len();
        for rank in 0..num_ranks {
            for slot in smooth.start.slots_of(rank) {
                let expert = smooth.slots[slot];
                let count = smooth.counts[expert as usize] as f32;
                gained[expert as usize] += smooth.costs[rank]
                    - smooth.cost_with::<V, SQUARINGS>(rank, expert, 1.0 / (count + 1.0) - 1.0 / count);
                evaluated += 1;
                if count > 1.0 {
                    lost_at[slot] =
                        smooth.cost_with::<V, SQUARINGS>(rank, expert, 1.0 / (count - 1.0) - 1.0 / count)
                            - smooth.costs[rank];
                    lost[expert as usize] += lost_at[slot];
                    evaluated += 1;
                }
            }
        }
        let off_node = OffNodeChanges::new(smooth);
        // At first as if the new replica were on the home node, which costs least.
        (0..num_experts as u32).for_each(|to| gained[to as usize] -= off_node.of_more(to, true));
        let mut wanted: Vec<u32> = (0..num_experts as u32).collect();
        wanted.sort_by(|&a, &b| gained[b as usize].total_cmp(&gained[a as usize]).then(a.cmp(&b)));
        let mut changes = Vec::new();
        let mut without = vec![Lanes::ZERO; blocks];
        for rank in 0..num_ranks {
            for slot in smooth.start.slots_of(rank) {
                let from = smooth.slots[slot];
                if smooth.counts[from as usize] < 2 || !smooth.may_give(slot) {
                    continue;
                }
                let mut cost = V::zero();
                for (block, without) in without.iter_mut().enumerate() {
                    let load = V::load(&smooth.rank_loads[rank * blocks + block])
                        .sub(V::load(&smooth.replica_loads_of(from)[block]));
                    cost = cost.add(load.power::<SQUARINGS>());
                    load.store(without);
                }
                let others_lose = lost[from as usize] - lost_at[slot] + off_node.of_fewer(from, rank);
                let most = smooth.costs[rank] - cost.sum() - others_lose;
                let mut best = Change { gain: least_gain, slot, to: NO_EXPERT };
                for &to in &wanted {
                    if gained[to as usize] + most <= best.gain || evaluated >= left {
                        break;
                    }
                    if to == from || smooth.holds(rank, to) {
                        continue;
                    }
                    evaluated += 1;
                    let part = 1.0 / (smooth.counts[to as usize] + 1) as f32;
                    let mut cost = V::zero();
                    for (block, without) in without.iter().enumerate() {
                        let load = V::load(&smooth.loads[to as usize * blocks + block]);
                        let with = V::load(without).add(load.mul(V::splat(part)));
                        cost = cost.add(with.power::<SQUARINGS>());
                    }
                    let gain = gained[to as usize] - others_lose + smooth.costs[rank]
                        - cost.sum()
                        - off_node.of_more_beyond_home(to, rank);
                    if gain > best.gain {
                        best = Change { gain, slot, to };
                    }
                }
                if best.to != NO_EXPERT {
                    changes.push(best);
                }
            }
        }
        (changes, evaluated)
    }
}

/// The changes of the off-node cost as experts get more or fewer replicas.
struct OffNodeChanges<'d, 'a> {
    smooth: &'d Smooth<'a>,
    /// Replicas off the home node, `[experts]`. Empty if nodes do not matter.
    counts: Vec<u32>,
}

impl<'d, 'a> OffNodeChanges<'d, 'a> {
    fn new(smooth: &'d Smooth<'a>) -> Self {
        let mut counts = Vec::new();
        if !smooth.off_node.is_empty() {
            counts = vec![0; smooth.counts.len()];
            for rank in 0..smooth.costs.len() {
                for &expert in &smooth.slots[smooth.start.slots_of(rank)] {
                    counts[expert as usize] += u32::from(!smooth.start.is_on_home_node(expert, rank));
                }
            }
        }
        OffNodeChanges { smooth, counts }
    }

    /// Returns the off-node cost of an expert with `count` replicas, `off` of them off the home node.
    fn cost(&self, expert: u32, off: u32, count: u32) -> f32 {
        self.smooth.off_node[expert as usize] * off as f32 / count as f32
    }

    /// Returns what one replica fewer adds, that on `rank`.
    fn of_fewer(&self, expert: u32, rank: usize) -> f32 {
        let Some(&off) = self.counts.get(expert as usize) else { return 0.0 };
        let count = self.smooth.counts[expert as usize];
        let removed = u32::from(!self.smooth.start.is_on_home_node(expert, rank));
        self.cost(expert, off - removed, count - 1) - self.cost(expert, off, count)
    }

    /// Returns what one more replica adds, on the home node or off it.
    fn of_more(&self, expert: u32, is_on_home_node: bool) -> f32 {
        let Some(&off) = self.counts.get(expert as usize) else { return 0.0 };
        let count = self.smooth.counts[expert as usize];
        self.cost(expert, off + u32::from(!is_on_home_node), count + 1) - self.cost(expert, off, count)
    }

    /// Returns how much more that is on `rank` than on the home node.
    fn of_more_beyond_home(&self, expert: u32, rank: usize) -> f32 {
        match self.counts.is_empty() || self.smooth.start.is_on_home_node(expert, rank) {
            true => 0.0,
            false => self.of_more(expert, false) - self.of_more(expert, true),
        }
    }
}
