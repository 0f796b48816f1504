//! Lays out the slots of a small batch by token. Its runs are short, so their ends would be mispredicted.

use super::plan::{RankTokens, SplitPlan};
use crate::device::Id;
use crate::dispatch::tables::LayerTables;
use crate::placement::Shape;

/// The most ids of a small batch. In a larger one, most ends of runs are predicted.
pub const MAX_IDS: usize = 4096;

/// Slots that are written at once, possibly beyond the end of a run.
const WRITTEN_AT_ONCE: usize = 8;

/// The slots of a small batch.
#[derive(Debug)]
pub struct SmallBatch {
    /// The slot of each expert with one slot, at the expert's id. Then the invalid slot, and the slots of the other tokens.
    slots: Vec<u32>,
    /// Where the slot of each expert's next token is, and at last of the invalid slot.
    next: Vec<u32>,
    /// By how much each token advances `next`: 0 for experts with one slot and the invalid slot, else 1.
    steps: Vec<u32>,
}

impl SmallBatch {
    /// Prepares for the batches of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut slots = tables.first_slots(shape);
        slots.resize(slots.len() + MAX_IDS + WRITTEN_AT_ONCE, 0);
        let steps = tables.replica_count.iter().map(|&count| u32::from(count > 1)).chain([0]).collect();
        SmallBatch { slots, next: (0..=shape.num_experts() as u32).collect(), steps }
    }

    /// Lays out the tokens of the experts with several slots, by the quotas of their holders.
    pub fn lay_out(&mut self, plan: &SplitPlan, tables: &LayerTables, totals: &[u64], quotas: &[u64]) {
        let mut end = self.next.len();
        for (place, &expert) in plan.experts.iter().enumerate() {
            self.next[expert as usize] = end as u32;
            let tokens = RankTokens { before: 0, own: totals[expert as usize] };
            plan.runs(place, quotas, tokens, |replica, tokens| {
                let (slot, start) = (tables.replica_slots[replica as usize], end);
                end += tokens as usize;
                for chunk in self.slots[start..end + WRITTEN_AT_ONCE].chunks_exact_mut(WRITTEN_AT_ONCE) {
                    chunk.fill(slot);
                }
            });
        }
    }

    /// Replaces ids by their slots.
    // Inlined, the loop would take two more instructions an id.
    #[inline(never)]
    pub fn route<I: Id>(&mut self, ids: &mut [I]) {
        let Self { slots, next, steps } = self;
        let num_experts = next.len() - 1;
        for id in ids {
            let expert = id.bin(num_experts);
            let index = &mut next[expert];
            *id = I::of_slot(slots[*index as usize]);
            *index += steps[expert];
        }
    }
}
