//! The plan of one layer: its tables and transfers.

use super::in_place::{in_place, transfer};
use super::rounds::rounds;
use super::sources::{Copy, Memory, PairsLeft, copies};
use super::transfer::{Transfer, TransferKind};
use super::{Buffering, Fabric};
use crate::error::{Error, Result};
use crate::placement::{LayerUpdate, NO_EXPERT, held_slots};

/// How even a layer is: mean / max of the ranks' loads, averaged over samples. All are 0 where the plan saw no loads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PlannedBalance {
    /// In the placement in force.
    pub before: f64,
    /// In the planned one.
    pub after: f64,
    /// No placement is more even.
    pub bound: f64,
}

/// What a plan changes in one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPlan {
    pub(super) layer: u32,
    pub(super) generation: u64,
    pub(super) from: Vec<u32>,
    /// The experts of the slots after each commit. The last one is what the plan is for.
    pub(super) tables: Vec<Vec<u32>>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) num_moves: usize,
    pub(super) num_rounds: u32,
    pub(super) staging_slots: u32,
    pub(super) buffering: Buffering,
    pub(super) balance: PlannedBalance,
}

impl LayerPlan {
    /// The plan from `from` to `to`, whose experts keep their slots already. `None` if `pairs_left` leaves no source.
    pub(super) fn new(
        fabric: &Fabric,
        buffering: Buffering,
        (layer, generation): (u32, u64),
        (from, to): (&[u32], Vec<u32>),
        pairs_left: PairsLeft,
        memory: &mut Memory,
    ) -> Option<Self> {
        let buffering = match buffering {
            Buffering::Drain if !can_drain(fabric, from, &to) => Buffering::Staged,
            other => other,
        };
        let copies = copies(fabric, buffering, from, &to, pairs_left, memory)?;
        let (transfers, num_rounds) = match buffering {
            Buffering::InPlace => in_place(fabric, layer, &copies),
            Buffering::Staged | Buffering::Drain => in_rounds(fabric, layer, &copies),
        };
        let staging_slots = match buffering {
            Buffering::Staged => most_of_a_rank(fabric, &copies),
            Buffering::InPlace => u32::from(transfers.len() > copies.len()),
            Buffering::Drain => 0,
        };
        let mut tables = Vec::with_capacity(1);
        if buffering == Buffering::Drain {
            let drained = drained(from, &to);
            if drained != from && drained != to {
                tables.push(drained);
            }
        }
        tables.push(to);
        Some(LayerPlan {
            layer,
            generation,
            from: from.to_vec(),
            tables,
            transfers,
            num_moves: copies.len(),
            num_rounds,
            staging_slots,
            buffering,
            balance: PlannedBalance::default(),
        })
    }

    /// The layer's number.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// The experts of the slots when the layer is done, `[num_slots]`.
    pub fn slot_experts(&self) -> &[u32] {
        &self.tables[self.tables.len() - 1]
    }

    /// The transfers of all ranks, by round.
    pub fn transfers(&self) -> &[Transfer] {
        &self.transfers
    }

    /// Slots that receive an expert.
    pub fn num_moves(&self) -> usize {
        self.num_moves
    }

    /// Rounds of transfers.
    pub fn num_rounds(&self) -> u32 {
        self.num_rounds
    }

    /// Staging slots that the busiest rank needs.
    pub fn staging_slots(&self) -> u32 {
        self.staging_slots
    }

    /// How slots are buffered: [`Buffering::Staged`] also where the layer cannot drain.
    pub fn buffering(&self) -> Buffering {
        self.buffering
    }

    /// How often the layer is staged and committed: 2 where it drains first.
    pub fn num_commits(&self) -> usize {
        self.tables.len()
    }

    /// The experts of the slots after a commit, `[num_slots]`.
    pub fn experts_after(&self, commit: u32) -> Result<&[u32]> {
        self.tables.get(commit as usize).map(Vec::as_slice).ok_or_else(|| {
            let (layer, commits) = (self.layer, self.tables.len());
            Error::InvalidArgument(format!("commit {commit} of layer {layer}, which has {commits} commits"))
        })
    }

    /// The generation that the plan was made against, 0 where none is known.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The balance of the layer.
    pub fn balance(&self) -> PlannedBalance {
        self.balance
    }

    /// The number of transfers that read a slot.
    pub fn num_readers(&self, slot: u32) -> usize {
        self.transfers.iter().filter(|transfer| transfer.src_slot == Some(slot)).count()
    }

    /// The change of one commit of [`LayerPlan::num_commits`].
    pub fn update(&self, commit: usize) -> LayerUpdate<'_> {
        let from = if commit == 0 { &self.from } else { &self.tables[commit - 1] };
        // Dispatches of one rebalancer may have been created at different times, so they compare slots alone.
        LayerUpdate { layer: self.layer, generation: 0, from, to: &self.tables[commit] }
    }
}

/// The slots while they are overwritten: what changes is empty.
fn drained(from: &[u32], to: &[u32]) -> Vec<u32> {
    from.iter().zip(to).map(|(&from, &to)| if from == to { from } else { NO_EXPERT }).collect()
}

/// Whether each expert has a replica on an active rank that stays.
fn can_drain(fabric: &Fabric, from: &[u32], to: &[u32]) -> bool {
    let mut remains = vec![false; fabric.shape.num_experts()];
    for (slot, expert) in held_slots(&drained(from, to)) {
        remains[expert as usize] |= fabric.is_active(fabric.shape.rank_of(slot));
    }
    remains.iter().all(|&remains| remains)
}

/// Transfers in as few rounds as there can be. Local copies of a round follow its other transfers.
fn in_rounds(fabric: &Fabric, layer: u32, copies: &[Copy]) -> (Vec<Transfer>, u32) {
    let shape = fabric.shape;
    let is_sent = |copy: &&Copy| matches!(copy.kind, TransferKind::Node | TransferKind::Remote);
    let pair = |copy: &Copy| copy.src.map(|src| (shape.rank_of(src), shape.rank_of(copy.dst)));
    let pairs: Vec<(usize, usize)> = copies.iter().filter(is_sent).filter_map(pair).collect();
    let (of_sent, num_rounds) = rounds(shape.num_ranks(), &pairs);
    let mut of_sent = of_sent.into_iter();
    let mut transfers: Vec<Transfer> = Vec::with_capacity(copies.len());
    for copy in copies {
        let round = match copy.src {
            // The source is an earlier copy's slot, which has a transfer by now. They are in the order of slots until the end.
            Some(src) if copy.of_received => transfers
                .binary_search_by_key(&(src as u32), |transfer| transfer.dst_slot)
                .map_or(0, |first| transfers[first].round),
            _ if is_sent(&copy) => of_sent.next().unwrap_or_default(),
            _ => 0,
        };
        transfers.push(transfer(layer, round, copy));
    }
    transfers
        .sort_by_key(|transfer| (transfer.round, transfer.kind == TransferKind::Local, transfer.dst_slot));
    (transfers, num_rounds.max(u32::from(!copies.is_empty())))
}

/// The most slots of one rank that receive an expert. Copies are in the order of slots.
fn most_of_a_rank(fabric: &Fabric, copies: &[Copy]) -> u32 {
    let rank = |copy: &Copy| fabric.shape.rank_of(copy.dst);
    let of_ranks = copies.chunk_by(|one, next| rank(one) == rank(next));
    of_ranks.map(|copies| copies.len() as u32).max().unwrap_or(0)
}
