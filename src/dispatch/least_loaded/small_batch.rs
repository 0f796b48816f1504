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
    /// Where the tokens of each holder of an expert on three ranks or more begin.
    begins: Vec<u32>,
    /// Those of these holders that have several replicas.
    several: Vec<u32>,
    /// All other experts with several slots, by place, and which of them have tokens.
    others: Vec<Other>,
    used: Vec<u32>,
}

/// Slots of tokens, with room for what is written beyond the last.
const TOKENS: usize = MAX_IDS + WRITTEN_AT_ONCE;

/// In place of the slot of a holder with several.
const SEVERAL: u32 = u32::MAX;

/// An expert with several slots on one or two ranks.
#[derive(Debug)]
struct Other {
    expert: u32,
    /// The slots of its holders, or [`SEVERAL`].
    slots: [u32; 2],
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
    pub fn new(shape: Shape, tables: &LayerTables, plan: &SplitPlan) -> Self {
        let mut slots = vec![0; TOKENS];
        slots.extend(tables.first_slots(shape));
        let steps = tables.replica_count.iter().map(|&count| u32::from(count > 1)).chain([0]);
        let slot_of = |holder: &Holder| match holder.size {
            1 => tables.replica_slots[holder.first as usize],
            _ => SEVERAL,
        };
        let num_ring_holders = plan.holder_start[plan.rings.len()] as usize;
        let several = (0..num_ring_holders as u32).filter(|&holder| plan.holders[holder as usize].size > 1);
        let other = |place: usize| {
            let mut slots = [SEVERAL; 2];
            slots
                .iter_mut()
                .zip(&plan.holders[plan.range_of(place)])
                .for_each(|(slot, holder)| *slot = slot_of(holder));
            Other { expert: plan.experts[place], slots }
        };
        SmallBatch {
            slots,
            next: (TOKENS as u32..).zip(steps).map(|(index, step)| Next { index, step }).collect(),
            holder_slots: plan.holders.iter().map(slot_of).collect(),
            begins: vec![0; num_ring_holders],
            several: several.collect(),
            used: vec![0; plan.experts.len() - plan.rings.len()],
            others: (plan.rings.len()..plan.experts.len()).map(other).collect(),
        }
    }

    /// Lays out the tokens of all experts with several slots, by the quotas of all holders. The batch has `num_ids` ids. `totals`
    /// are the experts' tokens by place, where they are known.
    pub fn lay_out_all(
        &mut self,
        plan: &SplitPlan,
        tables: &LayerTables,
        quotas: &[i32],
        num_ids: usize,
        totals: Option<&[u32]>,
    ) {
        let (used, mut num_used) = (&mut self.used[..], 0);
        match totals {
            None => {
                (0..).zip(&mut *used).for_each(|(number, used)| *used = number);
                num_used = used.len();
            }
            // Without a branch, which would be mispredicted.
            Some(totals) => (0..).zip(&totals[plan.rings.len()..]).for_each(|(number, &total)| {
                used[num_used] = number;
                num_used += usize::from(total > 0);
            }),
        }
        // A store takes time whether or not its slots are read, and a quota beyond what is written at once is mispredicted.
        if num_ids <= 4 * plan.num_ranks() {
            self.lay_out_by::<4>(plan, tables, quotas, num_used);
        } else if num_ids <= 2 * quotas.len() {
            self.lay_out_by::<8>(plan, tables, quotas, num_used);
        } else {
            self.lay_out_by::<WRITTEN_AT_ONCE>(plan, tables, quotas, num_used);
        }
        let Self { slots, next, begins, several, .. } = self;
        for &holder in &*several {
            let (begin, holder) = (begins[holder as usize], holder as usize);
            lay_out_replicas(tokens_of(slots), begin, &plan.holders[holder], tables, quotas[holder] as u32);
        }
        for ((&expert, &first), _) in plan.experts.iter().zip(&plan.holder_start).zip(&plan.rings) {
            next[expert as usize].index = begins[first as usize];
        }
    }

    fn lay_out_by<const AT_ONCE: usize>(
        &mut self,
        plan: &SplitPlan,
        tables: &LayerTables,
        quotas: &[i32],
        num_used: usize,
    ) {
        let Self { slots, next, holder_slots, begins, others, used, .. } = self;
        let tokens = tokens_of(slots);
        let (ring_quotas, other_quotas) = quotas.split_at(begins.len());
        let end = lay_out_rings::<AT_ONCE>(tokens, holder_slots, ring_quotas, begins);
        let lay_out_replicas = |tokens: &mut [u32; TOKENS], end, number: u32| {
            let holders = plan.range_of(plan.rings.len() + number as usize);
            lay_out_holders(tokens, end, &plan.holders[holders.clone()], tables, &quotas[holders])
        };
        let quotas = other_quotas.as_chunks().0;
        lay_out_others::<AT_ONCE>(tokens, end, next, (others, &used[..num_used]), quotas, &lay_out_replicas);
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
                end = lay_out_holder(tokens, end, plan, tables, holder, slot, quota);
            }
        }
    }

    /// Writes the next slots of a batch.
    // Inlined, the loop would take two more instructions an id.
    #[inline(never)]
    pub fn route<I: Id>(&mut self, part: &mut Batch<I>) {
        let Self { slots, next, .. } = self;
        let (slots, next) = (&slots[..], &mut next[..]);
        let num_experts = next.len() - 1;
        part.route_by_four(|id| {
            // SAFETY: at most the last one.
            let Next { index, step } = unsafe { next.get_unchecked_mut(id.bin(num_experts)) };
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

/// Writes the slots of all tokens of experts on three ranks or more, and where those of each holder begin. Returns their end.
// One loop over all holders, since the ends of those over an expert's would be mispredicted. On its own, it keeps everything in
// registers.
#[inline(never)]
fn lay_out_rings<const AT_ONCE: usize>(
    tokens: &mut [u32; TOKENS],
    slots: &[u32],
    quotas: &[i32],
    begins: &mut [u32],
) -> u32 {
    let mut end = 0;
    for ((&slot, &quota), begin) in slots.iter().zip(quotas).zip(begins) {
        *begin = end;
        end = lay_out_slot::<AT_ONCE>(tokens, end, slot, quota as u32);
    }
    end
}

/// Writes the slots of all tokens of the other experts with tokens, from `end` on. `quotas` are those of pairs of holders, which
/// come first. `lay_out_replicas` does it for an expert with several replicas on a rank.
// As above.
#[inline(never)]
fn lay_out_others<const AT_ONCE: usize>(
    tokens: &mut [u32; TOKENS],
    mut end: u32,
    next: &mut [Next],
    (others, used): (&[Other], &[u32]),
    quotas: &[[i32; 2]],
    lay_out_replicas: &dyn Fn(&mut [u32; TOKENS], u32, u32) -> u32,
) {
    for &number in used {
        let Other { expert, slots } = &others[number as usize];
        next[*expert as usize].index = end;
        match quotas.get(number as usize) {
            Some(&[quota, other]) if !slots.contains(&SEVERAL) => {
                end = lay_out_slot::<AT_ONCE>(tokens, end, slots[0], quota as u32);
                end = lay_out_slot::<AT_ONCE>(tokens, end, slots[1], other as u32);
            }
            _ => end = lay_out_replicas(tokens, end, number),
        }
    }
}

/// Writes the slots of a holder's tokens from `begin` on, and returns their end.
#[inline(always)]
fn lay_out_holder(
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
    lay_out_slot::<8>(slots, begin, slot, quota)
}

/// Writes the slot of a holder with one replica `quota` times from `begin` on, and returns the end.
#[inline(always)]
fn lay_out_slot<const AT_ONCE: usize>(slots: &mut [u32; TOKENS], begin: u32, slot: u32, quota: u32) -> u32 {
    let start = begin as usize;
    slots[start..start + AT_ONCE].copy_from_slice(&[slot; AT_ONCE]);
    if quota as usize > AT_ONCE {
        fill(slots, start, quota as usize, slot);
    }
    begin + quota
}

/// Writes a slot `tokens` times. On its own, it leaves more registers to the loop over holders.
#[cold]
#[inline(never)]
fn fill(slots: &mut [u32; TOKENS], start: usize, tokens: usize, slot: u32) {
    slots[start..start + tokens].fill(slot);
}

/// Writes the slots of several holders' tokens from `begin` on, and returns their end.
#[cold]
#[inline(never)]
fn lay_out_holders(
    slots: &mut [u32; TOKENS],
    begin: u32,
    holders: &[Holder],
    tables: &LayerTables,
    quotas: &[i32],
) -> u32 {
    holders
        .iter()
        .zip(quotas)
        .fold(begin, |end, (holder, &quota)| lay_out_replicas(slots, end, holder, tables, quota as u32))
}

/// Writes the slots of a holder with several replicas from `begin` on, and returns their end.
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
