//! Lays out the slots of a small batch by token. Its runs are short, so their ends would be mispredicted.

use super::plan::SplitPlan;
use crate::device::Id;
use crate::dispatch::batch::Batch;
use crate::dispatch::tables::{Holder, LayerTables};
use crate::placement::Shape;

/// The most ids of a small batch. In a larger one, most ends of runs are predicted.
pub const MAX_IDS: usize = 4096;

/// The most slots that are written at once, possibly beyond the end of a run.
const WRITTEN_AT_ONCE: usize = 16;

/// The slots of a small batch.
#[derive(Debug)]
pub struct SmallBatch {
    /// First [`TOKENS`] slots of the tokens of experts with several slots. Then the slot of each expert with one slot, and at last
    /// the invalid slot.
    slots: Vec<u32>,
    /// Of each expert, and at last of the invalid slot.
    next: Vec<Next>,
    /// The slot of each holder with one replica, otherwise [`SEVERAL`].
    holder_slots: Vec<u32>,
    /// Where the tokens of each holder begin.
    begins: Vec<u32>,
}

/// Slots of tokens, with room for what is written beyond the last.
const TOKENS: usize = MAX_IDS + WRITTEN_AT_ONCE;

/// In place of the slot of a holder with several.
const SEVERAL: u32 = u32::MAX;

/// Where the slot of an expert's next token is.
#[derive(Debug, Clone, Copy)]
struct Next {
    index: u32,
    /// By how much a token advances the index: 0 for experts with one slot and the invalid slot, else 1.
    step: u32,
}

impl SmallBatch {
    /// Prepares for the batches of a layer.
    pub fn new(shape: Shape, tables: &LayerTables, plan: &SplitPlan) -> Self {
        let mut slots = vec![0; TOKENS];
        slots.extend(tables.first_slots(shape));
        let steps = tables.replica_count.iter().map(|&count| u32::from(count > 1)).chain([0]);
        let slot_of = |holder: &Holder| match holder.size {
            1 => tables.replica_slots[holder.first as usize],
            _ => SEVERAL,
        };
        SmallBatch {
            slots,
            next: (TOKENS as u32..).zip(steps).map(|(index, step)| Next { index, step }).collect(),
            holder_slots: plan.holders.iter().map(slot_of).collect(),
            begins: vec![0; plan.holders.len()],
        }
    }

    /// Lays out the tokens of all experts with several slots, by the quotas of all holders. The batch has `num_ids` ids.
    pub fn lay_out_all(&mut self, plan: &SplitPlan, tables: &LayerTables, quotas: &[i32], num_ids: usize) {
        // A store takes time whether or not its slots are read, and a quota beyond what is written at once is mispredicted.
        if num_ids <= 4 * plan.num_ranks() {
            self.lay_out_by::<4>(plan, tables, quotas);
        } else if num_ids <= 2 * quotas.len() {
            self.lay_out_by::<8>(plan, tables, quotas);
        } else {
            self.lay_out_by::<WRITTEN_AT_ONCE>(plan, tables, quotas);
        }
    }

    fn lay_out_by<const AT_ONCE: usize>(&mut self, plan: &SplitPlan, tables: &LayerTables, quotas: &[i32]) {
        let Self { slots, next, holder_slots, begins } = self;
        let (tokens, mut end) = (tokens_of(slots), 0);
        // One loop over all holders, since the ends of those over an expert's would be mispredicted.
        for (holder, ((&slot, &quota), begin)) in
            holder_slots.iter().zip(quotas).zip(&mut *begins).enumerate()
        {
            *begin = end;
            end = lay_out_holder::<AT_ONCE>(tokens, end, plan, tables, holder, slot, quota as u32);
        }
        for (&expert, &first) in plan.experts.iter().zip(&plan.holder_start) {
            next[expert as usize].index = begins[first as usize];
        }
    }

    /// Lays out the tokens of the experts at some places.
    pub fn lay_out(&mut self, plan: &SplitPlan, tables: &LayerTables, places: &[u32], quotas: &[i32]) {
        let Self { slots, next, holder_slots, .. } = self;
        let (tokens, mut end) = (tokens_of(slots), 0);
        for &place in places {
            let place = place as usize;
            next[plan.experts[place] as usize].index = end;
            for holder in plan.range_of(place) {
                let (slot, quota) = (holder_slots[holder], quotas[holder] as u32);
                end = lay_out_holder::<8>(tokens, end, plan, tables, holder, slot, quota);
            }
        }
    }

    /// Writes the next slots of a batch.
    // Inlined, the loop would take two more instructions an id.
    #[inline(never)]
    pub fn route<I: Id>(&mut self, part: &mut Batch<I>) {
        let Self { slots, next, .. } = self;
        let (slots, next) = (&slots[..], &mut next[..]);
        let Some((invalid, next)) = next.split_last_mut() else { return };
        part.route_by_four(|id| {
            // The check of the id is that of the index.
            let Next { index, step } = next.get_mut(id.bin(usize::MAX)).unwrap_or(invalid);
            let slot = slots[*index as usize];
            *index += *step;
            slot
        });
    }
}

/// The slots of tokens, of as many as the compiler knows.
fn tokens_of(slots: &mut [u32]) -> &mut [u32; TOKENS] {
    slots.first_chunk_mut().expect("the first slots are those of tokens")
}

/// Writes the slots of a holder's tokens from `begin` on, and returns their end.
#[inline(always)]
fn lay_out_holder<const AT_ONCE: usize>(
    slots: &mut [u32; TOKENS],
    begin: u32,
    plan: &SplitPlan,
    tables: &LayerTables,
    holder: usize,
    slot: u32,
    quota: u32,
) -> u32 {
    if slot == SEVERAL {
        return lay_out_replicas(slots, begin, &plan.holders[holder], tables, quota);
    }
    let (start, tokens) = (begin as usize, quota as usize);
    slots[start..start + AT_ONCE].copy_from_slice(&[slot; AT_ONCE]);
    if tokens > AT_ONCE {
        slots[start + AT_ONCE..start + tokens].fill(slot);
    }
    begin + quota
}

/// The same for a holder with several replicas.
#[cold]
fn lay_out_replicas(
    slots: &mut [u32; TOKENS],
    begin: u32,
    holder: &Holder,
    tables: &LayerTables,
    quota: u32,
) -> u32 {
    let Holder { first, size, .. } = *holder;
    let mut start = begin as usize;
    for replica in 0..size {
        let up_to = (u64::from(quota) * u64::from(replica + 1)).div_ceil(u64::from(size));
        let end = begin as usize + up_to as usize;
        slots[start..end].fill(tables.replica_slots[(first + replica) as usize]);
        start = end;
    }
    begin + quota
}
