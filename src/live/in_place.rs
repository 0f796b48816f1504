//! The order of transfers that write slots in place: a slot is overwritten after its last read.
//!
//! Each slot has at most one source, so slots that wait for each other form circles that share no slot. A circle is cut by a copy
//! of one of its slots to the spare slot of its rank. All circles that were cut end by themselves, so the spare slots are free
//! when nothing else can go on.

use super::Fabric;
use super::sources::Copy;
use super::transfer::{Transfer, TransferKind, spare_slot};

/// Returns the transfers of a layer by round, and the number of rounds. In a round a rank sends and receives once at most, and
/// its local copies follow, in order.
pub(super) fn in_place(fabric: &Fabric, layer: u32, copies: &[Copy]) -> (Vec<Transfer>, u32) {
    let num_ranks = fabric.shape.num_ranks();
    let slots = fabric.shape.num_slots() + num_ranks;
    let mut order = Order {
        fabric,
        layer,
        pending: copies.to_vec(),
        readers: vec![0; slots],
        is_pending: vec![false; slots],
        transfers: Vec::with_capacity(copies.len()),
    };
    for copy in copies {
        order.is_pending[copy.dst] = true;
        if let (Some(src), false) = (copy.src, copy.of_received) {
            order.readers[src] += 1;
        }
    }
    let mut round = 0;
    while !order.pending.is_empty() {
        let before = order.pending.len();
        order.send(round);
        order.copy_locally(round);
        if order.pending.len() == before {
            order.cut_a_circle(round);
        }
        round += 1;
    }
    (order.transfers, round)
}

struct Order<'a> {
    fabric: &'a Fabric<'a>,
    layer: u32,
    /// By the slot that they write.
    pending: Vec<Copy>,
    /// Pending reads of each slot's old expert, spare slots included.
    readers: Vec<u32>,
    /// Whether a slot has not received its new expert.
    is_pending: Vec<bool>,
    transfers: Vec<Transfer>,
}

impl Order<'_> {
    fn is_ready(&self, copy: &Copy) -> bool {
        let has_source = copy.src.is_none_or(|src| !copy.of_received || !self.is_pending[src]);
        self.readers[copy.dst] == 0 && has_source
    }

    /// Does what can go on between ranks, with one sender and one receiver a rank.
    fn send(&mut self, round: u32) {
        let num_ranks = self.fabric.shape.num_ranks();
        let (mut sends, mut receives) = (vec![false; num_ranks], vec![false; num_ranks]);
        let mut taken = Vec::new();
        for (index, copy) in self.pending.iter().enumerate() {
            let to = self.fabric.shape.rank_of(copy.dst);
            if copy.kind == TransferKind::Local || !self.is_ready(copy) {
                continue;
            }
            if let Some(src) = copy.src {
                let from = self.rank_of(src);
                if sends[from] || receives[to] {
                    continue;
                }
                (sends[from], receives[to]) = (true, true);
            }
            taken.push(index);
        }
        let done: Vec<Copy> = taken.iter().rev().map(|&index| self.pending.remove(index)).collect();
        done.iter().rev().for_each(|copy| self.add(copy, round));
    }

    /// Does the local copies that can go on, each at once.
    fn copy_locally(&mut self, round: u32) {
        let is_next = |order: &Self| {
            let is_local = |copy: &Copy| copy.kind == TransferKind::Local && order.is_ready(copy);
            order.pending.iter().position(is_local)
        };
        while let Some(index) = is_next(self) {
            let copy = self.pending.remove(index);
            self.add(&copy, round);
        }
    }

    fn rank_of(&self, slot: usize) -> usize {
        super::transfer::rank_of(self.fabric.shape, slot as u32)
    }

    fn add(&mut self, copy: &Copy, round: u32) {
        self.is_pending[copy.dst] = false;
        if let (Some(src), false) = (copy.src, copy.of_received) {
            self.readers[src] -= 1;
        }
        self.transfers.push(transfer(self.layer, round, copy));
    }

    /// Copies a slot of a circle to the spare slot of its rank, from which its readers read then.
    fn cut_a_circle(&mut self, round: u32) {
        let waits_for = |slot: usize| {
            let reads = |copy: &&Copy| copy.src == Some(slot) && !copy.of_received;
            self.pending.iter().find(reads).map(|copy| copy.dst)
        };
        let is_blocked = |copy: &&Copy| self.readers[copy.dst] > 0;
        let blocked =
            self.pending.iter().find(is_blocked).expect("only slots that wait for each other are left");
        let (mut slot, mut seen) = (blocked.dst, vec![false; self.readers.len()]);
        while !std::mem::replace(&mut seen[slot], true) {
            slot = waits_for(slot).expect("a slot of a circle waits for another one");
        }
        let spare = spare_slot(self.fabric.shape, self.rank_of(slot));
        let readers = self.pending.iter_mut().filter(|copy| copy.src == Some(slot) && !copy.of_received);
        let mut expert = 0;
        for copy in readers {
            copy.src = Some(spare as usize);
            expert = copy.expert;
        }
        self.readers[spare as usize] = std::mem::take(&mut self.readers[slot]);
        let (src_slot, kind) = (Some(slot as u32), TransferKind::Local);
        let copy = Transfer { layer: self.layer, round, expert, src_slot, dst_slot: spare, kind };
        self.transfers.push(copy);
    }
}

pub(super) fn transfer(layer: u32, round: u32, copy: &Copy) -> Transfer {
    let src_slot = copy.src.map(|slot| slot as u32);
    Transfer { layer, round, expert: copy.expert, src_slot, dst_slot: copy.dst as u32, kind: copy.kind }
}
