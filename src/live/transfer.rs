//! A transfer: one expert's weights from one slot to another.

use crate::placement::Shape;

/// How a transfer reaches its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransferKind {
    /// From another slot of the same rank, which may be one that received the expert in the same plan.
    Local,
    /// From another rank of the same node.
    Node,
    /// From a rank of another node.
    Remote,
    /// No rank holds the expert: the engine loads it as at its start.
    Host,
}

impl TransferKind {
    /// Every kind, by its number.
    pub const ALL: [TransferKind; 4] =
        [TransferKind::Local, TransferKind::Node, TransferKind::Remote, TransferKind::Host];
}

/// One expert's weights go from a slot to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// The layer's number.
    pub layer: u32,
    /// The round, from 0.
    pub round: u32,
    /// The expert.
    pub expert: u32,
    /// The slot to read, `None` for [`TransferKind::Host`]. [`Shape::num_slots`] plus a rank is the rank's spare slot.
    pub src_slot: Option<u32>,
    /// The slot to write, or a spare slot.
    pub dst_slot: u32,
    /// The kind.
    pub kind: TransferKind,
}

impl Transfer {
    /// The rank that sends.
    pub fn src_rank(&self, shape: Shape) -> Option<usize> {
        self.src_slot.map(|slot| rank_of(shape, slot))
    }

    /// The rank that receives.
    pub fn dst_rank(&self, shape: Shape) -> usize {
        rank_of(shape, self.dst_slot)
    }
}

/// The number of the spare slot of a rank.
pub(super) fn spare_slot(shape: Shape, rank: usize) -> u32 {
    (shape.num_slots() + rank) as u32
}

/// The rank of a slot or spare slot.
pub(super) fn rank_of(shape: Shape, slot: u32) -> usize {
    let slot = slot as usize;
    slot.checked_sub(shape.num_slots()).unwrap_or_else(|| shape.rank_of(slot))
}
