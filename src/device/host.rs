//! Host memory as a device.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// As CUDA aligns what it allocates, or more than any number needs.
const ALIGNMENT: usize = 64;

/// Memory of our own, filled with zeros.
#[derive(Debug)]
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: memory belongs to no thread; whoever reads or writes through its address has promises of his own.
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
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Fills `count` words.
///
/// # Safety
/// Aligned words of memory that nobody else uses meanwhile.
pub unsafe fn fill(address: u64, count: usize, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u32, count) }.fill(value);
}

/// Copies bytes out.
///
/// # Safety
/// `to.len()` bytes of memory that nobody writes to meanwhile.
pub unsafe fn read(address: u64, to: &mut [u8]) {
    // SAFETY: the caller's promise; `to` is other memory, since it is borrowed exclusively.
    unsafe { to.as_mut_ptr().copy_from_nonoverlapping(address as *const u8, to.len()) }
}

/// Copies words in.
///
/// # Safety
/// As many aligned words of memory that nobody else uses meanwhile.
pub unsafe fn write(address: u64, words: &[u32]) {
    // SAFETY: the caller's promise; `words` is other memory, since nobody else uses that.
    unsafe { (address as *mut u32).copy_from_nonoverlapping(words.as_ptr(), words.len()) }
}
