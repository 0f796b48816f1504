//! Lays out the slots of a small batch by token. Its runs are short, so their ends would be mispredicted.

use super::plan::SplitPlan;
use crate::device::Id;
use crate::dispatch::tables::{Holder, LayerTables};
use crate::placement::Shape;

/// The most ids of a small batch. In a larger one, most ends of runs are predicted.
pub const MAX_IDS: usize = 4096;

/// Slots that are written at once, possibly beyond the end of a run.
const WRITTEN_AT_ONCE: usize = 16;

/// The slots of a small batch.
#[derive(Debug)]
pub struct SmallBatch {
    /// The slot of each expert with one slot, at the expert's id. Then the invalid slot, and the slots of the other tokens.
    slots: Vec<u32>,
    /// Of each expert, and at last of the invalid slot.
    next: Vec<Next>,
}

/// Where the slot of an expert's next token is.
#[derive(Debug, Clone, Copy)]
struct Next {
    index: u32,
    /// By how much a token advances the index: 0 for experts with one slot and the invalid slot, else 1.
    step: u32,
}

impl SmallBatch {
    /// Prepares for the batches of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let mut slots = tables.first_slots(shape);
        slots.resize(slots.len() + MAX_IDS + WRITTEN_AT_ONCE, 0);
        let steps = tables.replica_count.iter().map(|&count| u32::from(count > 1)).chain([0]);
        SmallBatch { slots, next: (0..).zip(steps).map(|(index, step)| Next { index, step }).collect() }
    }

    /// Lays out the tokens of the batch's experts with several slots, by the quotas of all holders.
    pub fn lay_out(&mut self, plan: &SplitPlan, tables: &LayerTables, places: &[u32], quotas: &[i32]) {
        let Self { slots, next } = self;
        let mut end = next.len();
        for &place in places {
            let place = place as usize;
            next[plan.experts[place] as usize].index = end as u32;
            let range = plan.range_of(place);
            for (&Holder { first, size, .. }, &quota) in
                plan.holders[range.clone()].iter().zip(&quotas[range])
            {
                let mut fill = |replica: u32, tokens: usize| {
                    let (slot, start) = (tables.replica_slots[replica as usize], end);
                    end += tokens;
                    slots[start..][..WRITTEN_AT_ONCE].copy_from_slice(&[slot; WRITTEN_AT_ONCE]);
                    if tokens > WRITTEN_AT_ONCE {
                        slots[start + WRITTEN_AT_ONCE..end].fill(slot);
                    }
                };
                if size == 1 {
                    fill(first, quota as usize);
                    continue;
                }
                let (quota, size) = (quota as usize, size as usize);
                for replica in 0..size {
                    let up_to = |replicas: usize| (quota * replicas).div_ceil(size);
                    fill(first + replica as u32, up_to(replica + 1) - up_to(replica));
                }
            }
        }
    }

    /// Replaces ids by their slots.
    // Inlined, the loop would take two more instructions an id.
    #[inline(never)]
    pub fn route<I: Id>(&mut self, ids: &mut [I]) {
        let Self { slots, next } = self;
        let (slots, next) = (&slots[..], &mut next[..]);
        let Some((invalid, next)) = next.split_last_mut() else { return };
        for id in ids {
            // The check of the id is that of the index.
            let Next { index, step } = next.get_mut(id.bin(usize::MAX)).unwrap_or(invalid);
            *id = I::of_slot(slots[*index as usize]);
            *index += *step;
        }
    }
}
