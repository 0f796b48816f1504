//! Sources: which slot each changed slot is copied from.

use super::transfer::TransferKind;
use super::{Buffering, Fabric};
use crate::placement::{NO_EXPERT, held_slots};

/// A slot that changes, and the slot that its new expert comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    pub expert: u32,
    pub src: Option<usize>,
    pub dst: usize,
    pub kind: TransferKind,
    /// The source is a slot that receives the expert in the same layer.
    pub of_received: bool,
}

/// The transfers that the layer may have from a rank to another one.
pub(super) type PairsLeft<'a> = Option<&'a dyn Fn(usize, usize) -> usize>;

/// Returns a copy for each slot of `to` that receives an expert, by slot. `None` if `pairs_left` leaves no source.
///
/// Sources are on the same rank, else on the same node, else anywhere. Among these the rank that sends least is taken, then the
/// slot that is read least. While a layer drains, its overwritten slots cannot be read.
pub(super) fn copies(
    fabric: &Fabric,
    buffering: Buffering,
    from: &[u32],
    to: &[u32],
    pairs_left: PairsLeft,
    memory: &mut Memory,
) -> Option<Vec<Copy>> {
    let (shape, width) = (fabric.shape, fabric.shape.slots_per_rank());
    let mut changed: Vec<(usize, u32)> = Vec::with_capacity(16);
    for rank in 0..shape.num_ranks() {
        let (first, slots) = (rank * width, rank * width..(rank + 1) * width);
        if from[slots.clone()] != to[slots.clone()] {
            let received = held_slots(&to[slots]).map(|(place, expert)| (first + place, expert));
            changed.extend(received.filter(|&(slot, expert)| from[slot] != expert));
        }
    }
    if changed.is_empty() {
        return Some(Vec::new());
    }
    let Memory { holders, sent, read } = memory;
    holders.set(fabric, buffering, from, to, &changed);
    for (numbers, length) in [(&mut *sent, shape.num_ranks()), (&mut *read, shape.num_slots())] {
        numbers.clear();
        numbers.resize(length, 0u32);
    }
    let mut copies: Vec<Copy> = Vec::with_capacity(changed.len());
    for &(dst, expert) in &changed {
        let rank = dst / width;
        let received = copies.iter().rev().take_while(|copy| copy.dst / width == rank);
        let held_here = holders.of(expert).any(|slot| slot / width == rank);
        if let Some(first) = received.filter(|copy| copy.expert == expert && !held_here).last() {
            let src = Some(first.dst);
            copies.push(Copy { expert, src, dst, kind: TransferKind::Local, of_received: true });
            continue;
        }
        if holders.of(expert).next().is_none() {
            copies.push(Copy { expert, src: None, dst, kind: TransferKind::Host, of_received: false });
            continue;
        }
        let pair = |copy: &Copy| (copy.src.map(|src| src / width), copy.dst / width);
        let allowed = |&slot: &usize| {
            let source = slot / width;
            let used = || copies.iter().filter(|copy| pair(copy) == (Some(source), rank)).count();
            source == rank || pairs_left.is_none_or(|left| used() < left(source, rank))
        };
        let is_overwritten = |slot: usize| buffering == Buffering::InPlace && to[slot] != from[slot];
        let src = holders.of(expert).filter(allowed).min_by_key(|&slot| {
            let source = slot / width;
            (fabric.kind(source, rank), is_overwritten(slot), sent[source], read[slot], slot)
        })?;
        let (source, kind) = (src / width, fabric.kind(src / width, rank));
        read[src] += 1;
        if kind != TransferKind::Local {
            sent[source] += 1;
        }
        copies.push(Copy { expert, src: Some(src), dst, kind, of_received: false });
    }
    Some(copies)
}

/// Memory for the copies of one layer after the other. No result depends on what was in it.
#[derive(Default)]
pub(super) struct Memory {
    holders: Holders,
    /// How often each rank sends and each slot is read: `[ranks]`, `[slots]`.
    sent: Vec<u32>,
    read: Vec<u32>,
}

/// The slots that may be read of each expert that a slot receives, as lists by rising slot.
#[derive(Default)]
struct Holders {
    /// `[experts]`: the first slot, [`NONE`], or [`NOT_RECEIVED`].
    first: Vec<u32>,
    /// `[slots]`, of slots that are in a list.
    next: Vec<u32>,
}

const NONE: u32 = u32::MAX;
const NOT_RECEIVED: u32 = u32::MAX - 1;

impl Holders {
    fn set(
        &mut self,
        fabric: &Fabric,
        buffering: Buffering,
        from: &[u32],
        to: &[u32],
        changed: &[(usize, u32)],
    ) {
        self.first.clear();
        self.first.resize(fabric.shape.num_experts(), NOT_RECEIVED);
        self.next.resize(from.len(), NONE);
        changed.iter().for_each(|&(_, expert)| self.first[expert as usize] = NONE);
        for (slot, &expert) in from.iter().enumerate().rev() {
            // An empty slot has no expert.
            let Some(first) = self.first.get_mut(expert as usize).filter(|first| **first != NOT_RECEIVED)
            else {
                continue;
            };
            let is_readable = buffering != Buffering::Drain || to[slot] == expert || to[slot] == NO_EXPERT;
            if is_readable && fabric.is_active(fabric.shape.rank_of(slot)) {
                self.next[slot] = std::mem::replace(first, slot as u32);
            }
        }
    }

    fn of(&self, expert: u32) -> impl Iterator<Item = usize> {
        let some = |slot: u32| (slot < NOT_RECEIVED).then_some(slot as usize);
        std::iter::successors(some(self.first[expert as usize]), move |&slot| some(self.next[slot]))
    }
}
