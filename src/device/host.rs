//! Host memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// The size of a cache line, and enough for any number.
const ALIGNMENT: usize = 64;

/// Memory owned by the library, filled with zeros.
#[derive(Debug)]
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: memory belongs to no thread. Reads and writes through its address have promises of their own.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    pub fn allocate(bytes: usize, what: &'static str) -> Result<Self> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT)
            .map_err(|_| Error::out_of_memory(bytes, what))?;
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or_else(|| Error::out_of_memory(bytes, what))?;
        Ok(Block { start, layout })
    }

    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no longer used.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Fills `count` words.
///
/// # Safety
/// `count` aligned words are at `address`, and nobody else uses them meanwhile.
pub unsafe fn fill(address: u64, count: usize, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u32, count) }.fill(value);
}

/// Copies bytes from `address`.
///
/// # Safety
/// `to.len()` bytes are at `address`, and nobody writes to them meanwhile.
pub unsafe fn read(address: u64, to: &mut [u8]) {
    // SAFETY: the caller's promise. `to` is other memory, since it is borrowed exclusively.
    unsafe { to.as_mut_ptr().copy_from_nonoverlapping(address as *const u8, to.len()) }
}

/// Copies words to `address`.
///
/// # Safety
/// As many aligned words are at `address`, and nobody else uses them meanwhile.
pub unsafe fn write(address: u64, words: &[u32]) {
    // SAFETY: the caller's promise. `words` is other memory, since nobody else uses that at `address`.
    unsafe { (address as *mut u32).copy_from_nonoverlapping(words.as_ptr(), words.len()) }
}
