//! Which layers a plan changes, and how far: what gains most a move first, within the limits over all layers.

use super::candidates::{Candidate, Candidates};
use super::keep_slots::keep_slots;
use super::layer_plan::LayerPlan;
use super::limits::Limits;
use super::sources::{Memory, PairsLeft};
use super::{Buffering, Fabric};
use crate::placement::held_slots;

/// A layer with what it may become.
pub(super) struct Choice<'a> {
    pub layer: u32,
    pub generation: u64,
    pub slots: &'a [u32],
    /// Whether a slot keeps what it holds, `[slots]`.
    pub is_fixed: &'a [bool],
    pub candidates: Candidates,
}

/// A layer that changes.
pub(super) struct Selected {
    /// Of the layer.
    pub index: usize,
    pub plan: LayerPlan,
    /// Of the candidate.
    pub cost: f64,
}

/// Returns the layers that change, by falling gain a move.
pub(super) fn select(fabric: &Fabric, limits: &Limits, choices: &[Choice]) -> Vec<Selected> {
    let mut chosen: Vec<Option<usize>> = match limits.are_shared() {
        false => choices.iter().map(|choice| choice.candidates.list.len().checked_sub(1)).collect(),
        true => Vec::new(),
    };
    let mut planned: Vec<Option<LayerPlan>> = choices.iter().map(|_| None).collect();
    if limits.are_shared() {
        let mut shared = Shared::new(fabric, limits, choices);
        while shared.take_best() {}
        (chosen, planned) = (shared.taken, shared.plans);
    }
    let (mut plans, mut memory) = (Vec::new(), Memory::default());
    for (index, (choice, taken)) in choices.iter().zip(chosen).enumerate() {
        let Some(taken) = taken else { continue };
        let plan = planned[index].take();
        let plan = plan.or_else(|| {
            choice.plan(fabric, limits.buffering, choice.slots_of(fabric, taken), None, &mut memory)
        });
        let selected = |plan| Selected { index, plan, cost: choice.candidate(taken).cost };
        plans.extend(plan.map(|plan| (choice.rate(None, taken), selected(plan))));
    }
    plans.sort_by(|(one, at), (other, after)| other.total_cmp(one).then(at.index.cmp(&after.index)));
    plans.into_iter().map(|(_, selected)| selected).collect()
}

impl Choice<'_> {
    fn candidate(&self, index: usize) -> &Candidate {
        &self.candidates.list[index]
    }

    /// What a candidate gains a move over the one before. Experts without a replica come first.
    fn rate(&self, before: Option<usize>, after: usize) -> f64 {
        let start = (self.candidates.num_lost, self.candidates.cost, 0);
        let of = |candidate: &Candidate| (candidate.num_lost, candidate.cost, candidate.num_moves);
        let (lost, cost, moves) = before.map_or(start, |before| of(self.candidate(before)));
        let (lost_after, cost_after, moves_after) = of(self.candidate(after));
        match lost_after < lost || moves_after == moves {
            true => f64::INFINITY,
            false => (cost - cost_after) / (moves_after as f64 - moves as f64),
        }
    }

    /// The slots of a candidate, where each expert that stays on a rank keeps its slot.
    fn slots_of(&self, fabric: &Fabric, index: usize) -> Vec<u32> {
        keep_slots(fabric.shape, self.slots, self.candidates.slots(index, self.slots), |slot| {
            self.is_fixed[slot]
        })
    }

    fn plan(
        &self,
        fabric: &Fabric,
        buffering: Buffering,
        to: Vec<u32>,
        pairs_left: PairsLeft,
        memory: &mut Memory,
    ) -> Option<LayerPlan> {
        let of_layer = (self.layer, self.generation);
        LayerPlan::new(fabric, buffering, of_layer, (self.slots, to), pairs_left, memory)
    }

    /// The slots of each rank that receive an expert.
    fn received(&self, fabric: &Fabric, to: &[u32]) -> Vec<usize> {
        let mut received = vec![0; fabric.shape.num_ranks()];
        for (slot, _) in held_slots(to).filter(|&(slot, expert)| self.slots[slot] != expert) {
            received[fabric.shape.rank_of(slot)] += 1;
        }
        received
    }
}

/// Limits that layers share.
struct Shared<'a> {
    fabric: &'a Fabric<'a>,
    limits: &'a Limits,
    choices: &'a [Choice<'a>],
    taken: Vec<Option<usize>>,
    plans: Vec<Option<LayerPlan>>,
    /// Candidates from here on do not fit.
    end: Vec<usize>,
    num_layers: usize,
    num_moves: usize,
    /// `[ranks]`
    received: Vec<usize>,
    /// Of each layer, or empty.
    received_of: Vec<Vec<usize>>,
    /// `[ranks][ranks]`, empty without a limit of pairs.
    pairs: Vec<usize>,
    memory: Memory,
}

impl<'a> Shared<'a> {
    fn new(fabric: &'a Fabric<'a>, limits: &'a Limits, choices: &'a [Choice<'a>]) -> Self {
        let num_ranks = fabric.shape.num_ranks();
        let num_pairs = if limits.max_pair_moves.is_some() { num_ranks * num_ranks } else { 0 };
        Shared {
            fabric,
            limits,
            choices,
            taken: vec![None; choices.len()],
            plans: choices.iter().map(|_| None).collect(),
            end: choices.iter().map(|choice| choice.candidates.list.len()).collect(),
            num_layers: 0,
            num_moves: 0,
            received: vec![0; num_ranks],
            received_of: vec![Vec::new(); choices.len()],
            pairs: vec![0; num_pairs],
            memory: Memory::default(),
        }
    }

    /// Takes the candidate that gains most a move, or finds that it does not fit. Returns whether there was one.
    fn take_best(&mut self) -> bool {
        let mut best: Option<(f64, usize, usize)> = None;
        for (index, choice) in self.choices.iter().enumerate() {
            let before = self.taken[index];
            for after in before.map_or(0, |before| before + 1)..self.end[index] {
                let rate = choice.rate(before, after);
                if best.is_none_or(|(most, ..)| rate > most) {
                    best = Some((rate, index, after));
                }
            }
        }
        let Some((_, index, after)) = best else { return false };
        if !self.take(index, after) {
            self.end[index] = after;
        }
        true
    }

    fn take(&mut self, index: usize, after: usize) -> bool {
        let (choice, before) = (&self.choices[index], self.taken[index]);
        let fits = |number: usize, limit: Option<u32>| limit.is_none_or(|limit| number <= limit as usize);
        let moves_before = before.map_or(0, |before| choice.candidate(before).num_moves);
        let num_moves = self.num_moves - moves_before + choice.candidate(after).num_moves;
        let num_layers = self.num_layers + usize::from(before.is_none());
        if !fits(num_moves, self.limits.max_moves) || !fits(num_layers, self.limits.max_layers) {
            return false;
        }
        let to = choice.slots_of(self.fabric, after);
        let new = choice.received(self.fabric, &to);
        let old = |rank: usize| self.received_of[index].get(rank).copied().unwrap_or(0);
        let received: Vec<usize> =
            (0..new.len()).map(|rank| self.received[rank] - old(rank) + new[rank]).collect();
        if !received.iter().all(|&received| fits(received, self.limits.max_rank_moves)) {
            return false;
        }
        if let Some(limit) = self.limits.max_pair_moves {
            let mut pairs = self.pairs.clone();
            if let Some(plan) = &self.plans[index] {
                self.pairs_of(plan).for_each(|pair| pairs[pair] -= 1);
            }
            let num_ranks = self.fabric.shape.num_ranks();
            let left = |from: usize, to: usize| (limit as usize).saturating_sub(pairs[from * num_ranks + to]);
            let (buffering, memory) = (self.limits.buffering, &mut self.memory);
            let Some(plan) = choice.plan(self.fabric, buffering, to, Some(&left), memory) else {
                return false;
            };
            self.pairs_of(&plan).for_each(|pair| pairs[pair] += 1);
            (self.pairs, self.plans[index]) = (pairs, Some(plan));
        }
        (self.num_moves, self.num_layers, self.received) = (num_moves, num_layers, received);
        self.received_of[index] = new;
        self.taken[index] = Some(after);
        true
    }

    /// The pair of ranks of each transfer between ranks.
    fn pairs_of(&self, plan: &LayerPlan) -> impl Iterator<Item = usize> {
        let shape = self.fabric.shape;
        let pair = move |(from, to): (usize, usize)| from * shape.num_ranks() + to;
        let ranks: Vec<(usize, usize)> = plan
            .transfers()
            .iter()
            .filter_map(|transfer| Some((transfer.src_rank(shape)?, transfer.dst_rank(shape))))
            .filter(|(from, to)| from != to)
            .collect();
        ranks.into_iter().map(pair)
    }
}
