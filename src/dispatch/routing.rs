//! The arguments of a routing call.

use super::batch::Batch;
use crate::device::{Id, IdType, Ids};
use crate::error::{Error, Result};
use crate::stats::BatchCount;

/// The ids of a batch and where their slots go, in memory of the caller.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    ids: Ids,
    slots: Ids,
    num_tokens: u32,
    experts_per_token: u32,
}

impl Routing {
    /// Routes `num_tokens` tokens of `experts_per_token` ids to as many slot ids.
    ///
    /// # Safety
    /// As for [`Ids::at`]. Whenever work that was given this value runs, `slots` is memory of its device that nobody else uses.
    #[inline(always)]
    pub unsafe fn at(ids: Ids, slots: Ids, num_tokens: u32, experts_per_token: u32) -> Result<Self> {
        let refuse = |what: &'static str| Err(Error::invalid_argument(move || what.to_owned()));
        let num_ids = u64::from(num_tokens) * u64::from(experts_per_token);
        if i32::try_from(num_ids).is_err() {
            return Err(Error::invalid_argument(move || {
                format!(
                    "{num_tokens} tokens of {experts_per_token} ids are more than the {} ids of a call: route them in parts",
                    i32::MAX
                )
            }));
        }
        for (name, array) in [("expert_ids", &ids), ("slot_ids", &slots)] {
            array.check_stride(experts_per_token, name)?;
        }
        if slots.address() == 0 && num_ids != 0 {
            return refuse("slot_ids->data is NULL");
        }
        let bytes = slots.kind().size();
        if !slots.address().is_multiple_of(bytes as u64) {
            return Err(Error::invalid_argument(move || {
                format!("slot_ids is not aligned to its {bytes} bytes")
            }));
        }
        let [of_ids, of_slots] = [&ids, &slots].map(|array| array.extent(num_tokens, experts_per_token));
        let end = |start: u64, bytes: u64| start.saturating_add(bytes);
        let apart =
            end(ids.address(), of_ids) <= slots.address() || end(slots.address(), of_slots) <= ids.address();
        if slots.address() != ids.address() && !apart {
            return refuse("slot_ids overlaps expert_ids: pass the same array, or separate ones");
        }
        let stride = |array: &Ids| array.stride(experts_per_token);
        if !apart && (slots.kind(), stride(&slots)) != (ids.kind(), stride(&ids)) {
            return refuse(
                "slot_ids is expert_ids with another dtype or row_stride: pass equal ones, or separate arrays",
            );
        }
        Ok(Routing { ids, slots: slots.with_valid_of(&ids), num_tokens, experts_per_token })
    }

    /// Whether ids and slots are of one type, and without gaps between rows.
    pub(super) fn is_plain(&self) -> bool {
        let is_dense = |array: &Ids| array.are_dense(self.num_tokens, self.experts_per_token);
        self.ids.kind() == self.slots.kind() && is_dense(&self.ids) && is_dense(&self.slots)
    }

    /// The ids of valid tokens.
    ///
    /// # Safety
    /// The number of valid tokens is in host memory.
    pub(super) unsafe fn valid_ids_on_host(&self) -> usize {
        // SAFETY: the caller's promise.
        let tokens = unsafe { self.ids.valid_tokens_on_host(self.num_tokens) };
        tokens as usize * self.experts_per_token as usize
    }

    /// The expert ids.
    pub(super) fn ids(&self) -> &Ids {
        &self.ids
    }

    /// The slot ids, valid after routing.
    pub(super) fn slots(&self) -> &Ids {
        &self.slots
    }

    /// The number of tokens, padding included.
    pub(super) fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// The ids of a token.
    pub(super) fn experts_per_token(&self) -> u32 {
        self.experts_per_token
    }

    /// The ids of all tokens, padding included.
    pub(super) fn num_ids(&self) -> usize {
        self.num_tokens as usize * self.experts_per_token as usize
    }

    /// How many ids of the valid tokens are -1.
    ///
    /// # Safety
    /// The ids are in host memory.
    pub(super) unsafe fn count_none(&self) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { BatchCount::count_none(&self.ids, self.num_tokens, self.experts_per_token) }
    }

    /// The ids and slots of valid tokens, and those of padding.
    ///
    /// # Safety
    /// There are ids, and [`Routing::is_plain`]. They are of type `I` and, as their slots, in host memory that nobody else uses
    /// while `'a` lasts.
    pub(super) unsafe fn batch_on_host<'a, I: Id>(&self) -> (Batch<'a, I>, Batch<'a, I>) {
        let (ids, slots) = (self.ids.address() as *const I, self.slots.address() as *mut I);
        // SAFETY: as many ids and slots, the same or apart, by the promise of this value's maker.
        unsafe { Batch::at(ids, slots, self.num_ids()).split_at(self.valid_ids_on_host()) }
    }
}

/// The counts of all ranks for a layer, `[num_ranks][num_experts]`, in memory of the caller.
#[derive(Debug, Clone, Copy)]
pub struct RankCounts {
    address: u64,
    kind: IdType,
}

impl RankCounts {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory of its device, aligned, with as many counts.
    pub unsafe fn at(address: u64, kind: IdType) -> Self {
        RankCounts { address, kind }
    }

    /// The address of the counts.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The type of the counts.
    pub(super) fn kind(&self) -> IdType {
        self.kind
    }

    /// The count at an index, clamped to [0, 2^31).
    ///
    /// # Safety
    /// The counts are in host memory, and more than `index`.
    pub(super) unsafe fn get_on_host(&self, index: usize) -> u64 {
        // SAFETY: the caller's promise.
        let count = unsafe {
            match self.kind {
                IdType::Int32 => i64::from(*(self.address as *const i32).add(index)),
                IdType::Int64 => *(self.address as *const i64).add(index),
            }
        };
        count.clamp(0, i64::from(i32::MAX)) as u64
    }
}
