//! Lays out the slots of a small batch by token. Its runs are short, so their ends would be mispredicted.

use super::lanes::Avx2;
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
    slots: Slots,
    /// Of each expert, and at last of the invalid slot.
    next: Vec<Next>,
    /// The slot of each holder with one replica, otherwise [`SEVERAL`].
    holder_slots: Vec<u32>,
    /// The places of experts with [`SEVERAL`] slots on a rank.
    several: Vec<u32>,
    /// Whether every expert's tokens were laid out.
    are_all: bool,
    /// How many more ids may be routed.
    num_left: usize,
    avx2: Option<Avx2>,
}

/// Slots of tokens, with room for what is written beyond the last.
const TOKENS: usize = MAX_IDS + WRITTEN_AT_ONCE;

/// In place of the slot of a holder with several.
const SEVERAL: u32 = u32::MAX;

/// The slots of tokens, and others behind them.
#[derive(Debug)]
struct Slots {
    slots: Vec<u32>,
    /// The first of them.
    start: usize,
}

impl Slots {
    fn new(others: &[u32]) -> Self {
        // The first of tokens is at the start of a page: a store to two pages takes long.
        const PAGE: usize = 4096;
        // With room for twice as many tokens: see `SmallBatch::route_part`.
        let len = usize::max(TOKENS + others.len(), 2 * MAX_IDS);
        let mut slots = vec![0; PAGE / size_of::<u32>() + len];
        let start = slots.as_ptr().align_offset(PAGE).min(PAGE / size_of::<u32>());
        slots[start + TOKENS..][..others.len()].copy_from_slice(others);
        Slots { slots, start }
    }

    fn get(&self) -> &[u32] {
        &self.slots[self.start..]
    }

    /// Those of tokens, as many as the compiler knows.
    fn of_tokens(&mut self) -> &mut [u32; TOKENS] {
        self.slots[self.start..].first_chunk_mut().expect("the first slots are those of tokens")
    }
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
        let steps = tables.replica_count.iter().map(|&count| u32::from(count > 1)).chain([0]);
        let slot_of = |holder: &Holder| match holder.size {
            1 => tables.replica_slots[holder.first as usize],
            _ => SEVERAL,
        };
        assert_eq!(
            plan.experts.len(),
            tables.replicated().count(),
            "all experts with several slots are laid out"
        );
        let has_several = |&place: &u32| {
            let holders = &plan.holders[plan.range_of(place as usize)];
            holders.iter().any(|holder| holder.size > 1)
        };
        SmallBatch {
            slots: Slots::new(&tables.first_slots(shape)),
            next: (TOKENS as u32..).zip(steps).map(|(index, step)| Next { index, step }).collect(),
            holder_slots: plan.holders.iter().map(slot_of).collect(),
            several: (0..plan.experts.len() as u32).filter(has_several).collect(),
            are_all: false,
            num_left: 0,
            avx2: Avx2::new(),
        }
    }

    /// Lays out the tokens of all experts with several slots, by the quotas of all holders. `totals` are the experts' tokens by
    /// place. The batch has `num_ids` ids.
    ///
    /// # Safety
    /// No quota is negative. Those of an expert add up to its tokens, and these to at most [`MAX_IDS`].
    pub unsafe fn lay_out_all(
        &mut self,
        plan: &SplitPlan,
        tables: &LayerTables,
        quotas: &[i32],
        totals: &[u32],
        num_ids: usize,
    ) {
        (self.are_all, self.num_left) = (true, MAX_IDS);
        // SAFETY: the caller's promise.
        unsafe {
            match self.avx2 {
                Some(avx2) => avx2.run(|| self.lay_out_by::<true>(plan, quotas, totals, num_ids)),
                None => self.lay_out_by::<false>(plan, quotas, totals, num_ids),
            }
        }
        let Self { slots, next, several, .. } = self;
        for &place in &*several {
            let (place, slots) = (place as usize, slots.of_tokens());
            let mut end = next[plan.experts[place] as usize].index;
            for holder in plan.range_of(place) {
                end = lay_out_replicas(slots, end, &plan.holders[holder], tables, quotas[holder] as u32);
            }
        }
    }

    /// As on a processor without AVX2.
    #[cfg(test)]
    pub fn without_avx2(self) -> Self {
        SmallBatch { avx2: None, ..self }
    }

    /// # Safety
    /// As for [`SmallBatch::lay_out_all`].
    #[inline(always)]
    unsafe fn lay_out_by<const AVX2: bool>(
        &mut self,
        plan: &SplitPlan,
        quotas: &[i32],
        totals: &[u32],
        num_ids: usize,
    ) {
        let Self { slots, next, holder_slots, .. } = self;
        let tokens = slots.of_tokens();
        let [first_pair, end] =
            [plan.rings.len(), plan.num_split].map(|place| plan.holder_start[place] as usize);
        let is_short = num_ids <= 2 * quotas.len();
        // SAFETY: the caller's promise. Each of the experts has a next one.
        unsafe {
            // A store takes time whether or not its slots are read, and a quota beyond what is written at once is mispredicted.
            if !is_short {
                lay_out_holders::<WRITTEN_AT_ONCE>(tokens, holder_slots, &quotas[..end]);
            } else if AVX2 {
                let end_of_rings = lay_out_holders::<8>(tokens, holder_slots, &quotas[..first_pair]);
                let (slots, quotas) = (&holder_slots[first_pair..end], &quotas[first_pair..end]);
                lay_out_pairs(tokens, end_of_rings, slots.as_chunks().0, quotas.as_chunks().0);
            } else if num_ids > 4 * plan.num_ranks() {
                lay_out_holders::<8>(tokens, holder_slots, &quotas[..end]);
            } else {
                lay_out_holders::<4>(tokens, holder_slots, &quotas[..end]);
            }
            begin_all(next, &plan.experts, totals);
        }
    }

    /// Lays out the tokens of the experts at some places.
    ///
    /// # Safety
    /// The quotas of their holders are not negative, and add up to at most [`MAX_IDS`].
    pub unsafe fn lay_out(&mut self, plan: &SplitPlan, tables: &LayerTables, places: &[u32], quotas: &[i32]) {
        (self.are_all, self.num_left) = (false, MAX_IDS);
        let Self { slots, next, holder_slots, .. } = self;
        let (tokens, mut end) = (slots.of_tokens(), 0);
        for &place in places {
            let place = place as usize;
            next[plan.experts[place] as usize].index = end;
            for holder in plan.range_of(place) {
                let (slot, quota) = (holder_slots[holder], quotas[holder] as u32);
                // SAFETY: the caller's promise.
                end = unsafe { lay_out_holder(tokens, end, plan, tables, holder, slot, quota) };
            }
        }
    }

    /// Writes the next slots of a batch: of ids that were laid out.
    pub fn route<I: Id>(&mut self, part: &mut Batch<I>) {
        self.num_left = self.num_left.checked_sub(part.len()).expect("a small batch has no more ids");
        match self.are_all {
            true => self.route_part::<I, true>(part),
            false => self.route_part::<I, false>(part),
        }
    }

    /// With `ARE_ALL`, all experts were laid out.
    ///
    /// The ids are read again. Where another thread changes them meanwhile, against the rules, slots are wrong, but memory is not.
    // Inlined, the loop would take two more instructions an id.
    #[inline(never)]
    fn route_part<I: Id, const ARE_ALL: bool>(&mut self, part: &mut Batch<I>) {
        let Self { slots, next, .. } = self;
        let (slots, next) = (slots.get(), &mut next[..]);
        let num_experts = next.len() - 1;
        assert!(slots.len() >= 2 * MAX_IDS);
        part.route_by_four(|id| {
            // SAFETY: at most the last one.
            let Next { index, step } = unsafe { next.get_unchecked_mut(id.bin(num_experts)) };
            let slot = match ARE_ALL {
                // SAFETY: tokens began at `MAX_IDS` at most, and since then, as many ids were routed at most. Other indexes do
                // not change.
                true => unsafe { *slots.get_unchecked(*index as usize) },
                false => slots[*index as usize],
            };
            *index += *step;
            slot
        });
    }
}

/// Writes the slots of all tokens of holders, and returns their end.
///
/// # Safety
/// No quota is negative, and they add up to at most [`MAX_IDS`].
// One loop over all holders, since the ends of those over an expert's would be mispredicted.
#[inline(always)]
unsafe fn lay_out_holders<const AT_ONCE: usize>(
    tokens: &mut [u32; TOKENS],
    slots: &[u32],
    quotas: &[i32],
) -> usize {
    let mut end = 0;
    let (fours, rest) = quotas.as_chunks::<4>();
    for (slots, quotas) in slots.as_chunks::<4>().0.iter().zip(fours) {
        for (slot, quota) in slots.iter().zip(quotas) {
            // SAFETY: the caller's promise.
            end = unsafe { lay_out_slot::<AT_ONCE>(tokens, end, slot, quota) };
        }
    }
    for (slot, quota) in slots[quotas.len() - rest.len()..].iter().zip(rest) {
        // SAFETY: as above.
        end = unsafe { lay_out_slot::<AT_ONCE>(tokens, end, slot, quota) };
    }
    end
}

/// Writes the slots of all tokens of pairs of holders, from `end` on, with one store where two would take longer.
///
/// # Safety
/// As for [`lay_out_holders`], with those before.
#[inline(always)]
unsafe fn lay_out_pairs(tokens: &mut [u32; TOKENS], mut end: usize, pairs: &[[u32; 2]], quotas: &[[i32; 2]]) {
    const AT_ONCE: usize = 8;
    for (slots, quotas) in pairs.iter().zip(quotas) {
        let (quota, [slot, other]) = (quotas[0], *slots);
        let found: [u32; AT_ONCE] =
            std::array::from_fn(|token| if (token as i32) < quota { slot } else { other });
        // SAFETY: the caller's promise.
        unsafe { tokens.get_unchecked_mut(end..end + AT_ONCE) }.copy_from_slice(&found);
        let total = (quotas[0] + quotas[1]) as usize;
        if total > AT_ONCE {
            fill(tokens, end, &slots[0], &quotas[0]);
            fill(tokens, end + quotas[0] as usize, &slots[1], &quotas[1]);
        }
        end += total;
    }
}

/// Begins with the first token of each expert. `totals` are those of each.
///
/// # Safety
/// There is a next one of each expert.
#[inline(always)]
unsafe fn begin_all(next: &mut [Next], experts: &[u32], totals: &[u32]) {
    let mut end = 0;
    let mut begin = |(&expert, &total): (&u32, &u32)| {
        // SAFETY: the caller's promise.
        unsafe { next.get_unchecked_mut(expert as usize) }.index = end;
        end += total;
    };
    let (experts, totals) = (experts.as_chunks::<4>(), totals.as_chunks::<4>());
    for (experts, totals) in experts.0.iter().zip(totals.0) {
        experts.iter().zip(totals).for_each(&mut begin);
    }
    experts.1.iter().zip(totals.1).for_each(begin);
}

/// Writes the slots of a holder's tokens from `begin` on, and returns their end.
///
/// # Safety
/// `begin` is at most [`MAX_IDS`].
#[inline(always)]
unsafe fn lay_out_holder(
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
    // SAFETY: the caller's promise.
    unsafe { lay_out_slot::<8>(slots, begin as usize, &slot, &(quota as i32)) as u32 }
}

/// Writes the slot of a holder with one replica `quota` times from `begin` on, and returns the end.
///
/// # Safety
/// `begin` is at most [`MAX_IDS`].
#[inline(always)]
unsafe fn lay_out_slot<const AT_ONCE: usize>(
    slots: &mut [u32; TOKENS],
    begin: usize,
    slot: &u32,
    quota: &i32,
) -> usize {
    // SAFETY: there are as many slots after the caller's most.
    unsafe { slots.get_unchecked_mut(begin..begin + AT_ONCE) }.copy_from_slice(&[*slot; AT_ONCE]);
    if *quota as usize > AT_ONCE {
        fill(slots, begin, slot, quota);
    }
    begin + *quota as usize
}

/// Writes a slot `tokens` times. On its own, it leaves more registers to the loop over holders.
#[cold]
#[inline(never)]
fn fill(slots: &mut [u32; TOKENS], start: usize, slot: &u32, tokens: &i32) {
    slots[start..start + *tokens as usize].fill(*slot);
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
