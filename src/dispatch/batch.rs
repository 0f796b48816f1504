//! A batch on the host.

use std::marker::PhantomData;
use std::slice;

use crate::device::Id;

/// Ids of a batch, and where as many slots go: to the same memory, or apart from it.
#[derive(Debug)]
pub(super) struct Batch<'a, I> {
    ids: *const I,
    slots: *mut I,
    len: usize,
    _memory: PhantomData<&'a mut [I]>,
}

impl<'a, I: Id> Batch<'a, I> {
    /// # Safety
    /// There are `len` ids at `ids` and room for as many slots at `slots`, aligned. Both are the same or apart. Nobody else writes
    /// to the ids or uses the slots while `'a` lasts.
    pub unsafe fn at(ids: *const I, slots: *mut I, len: usize) -> Self {
        Batch { ids, slots, len, _memory: PhantomData }
    }

    /// A batch whose slots replace its ids.
    pub fn in_place(ids: &'a mut [I]) -> Self {
        let (slots, len) = (ids.as_mut_ptr(), ids.len());
        Batch { ids: slots, slots, len, _memory: PhantomData }
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The ids, until slots are written.
    pub fn ids(&self) -> &[I] {
        // SAFETY: as many ids. Only calls that borrow this value mutably write slots.
        unsafe { slice::from_raw_parts(self.ids, self.len) }
    }

    /// The slots, once all were written.
    pub fn slots(&mut self) -> &mut [I] {
        // SAFETY: as many slots, which nobody else uses.
        unsafe { slice::from_raw_parts_mut(self.slots, self.len) }
    }

    /// Copies the ids to where their slots go, unless they are there, for a rule that replaces them there.
    pub fn copied(&mut self) -> &mut [I] {
        if !std::ptr::eq(self.ids, self.slots) {
            // SAFETY: as many ids and slots, which are apart if they are not the same.
            unsafe { self.slots.copy_from_nonoverlapping(self.ids, self.len) };
        }
        self.slots()
    }

    /// The first ids, and the others.
    pub fn split_at(self, first: usize) -> (Self, Self) {
        // SAFETY: both are apart, and this value is gone.
        unsafe { (self.part(0, first), self.part(first, self.len)) }
    }

    /// Parts of `len` ids, the last one of up to as many.
    pub fn parts(&mut self, len: usize) -> impl Iterator<Item = Batch<'_, I>> {
        // SAFETY: parts are apart, and this value is borrowed while there are any.
        (0..self.len).step_by(len).map(move |first| unsafe { self.part(first, self.len.min(first + len)) })
    }

    /// # Safety
    /// Parts that are used at the same time are apart, and this value is not used meanwhile.
    unsafe fn part(&self, first: usize, end: usize) -> Batch<'a, I> {
        assert!(first <= end && end <= self.len);
        // SAFETY: there are as many ids and slots.
        let (ids, slots) = unsafe { (self.ids.add(first), self.slots.add(first)) };
        Batch { ids, slots, len: end - first, _memory: PhantomData }
    }

    /// Writes the same slot for all ids.
    pub fn fill(&mut self, slot: I) {
        // SAFETY: room for as many slots, which need not have been written before.
        (0..self.len).for_each(|index| unsafe { self.slots.add(index).write(slot) });
    }

    /// Writes the slot of each id, one after the other.
    #[inline(always)]
    pub fn route(&mut self, mut slot: impl FnMut(I) -> u32) {
        for index in 0..self.len {
            self.route_one(index, &mut slot);
        }
    }

    /// As [`Batch::route`], four ids in a row.
    #[inline(always)]
    pub fn route_by_four(&mut self, mut slot: impl FnMut(I) -> u32) {
        let in_fours = self.len / 4 * 4;
        for first in (0..in_fours).step_by(4) {
            (first..first + 4).for_each(|index| self.route_one(index, &mut slot));
        }
        for index in in_fours..self.len {
            self.route_one(index, &mut slot);
        }
    }

    #[inline(always)]
    fn route_one(&mut self, index: usize, slot: &mut impl FnMut(I) -> u32) {
        debug_assert!(index < self.len);
        // SAFETY: more ids and slots than `index`, by both callers.
        unsafe { *self.slots.add(index) = I::of_slot(slot(*self.ids.add(index))) };
    }
}
