//! Memory of a device, and host memory that copies from a device can reach.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{cuda, host};
use crate::error::{Error, Result};

/// The alignment of a caller-provided workspace: that of malloc, and enough for any number.
const WORKSPACE_ALIGNMENT: u64 = 16;

/// Bytes of a [`Memory`]. Start and length are multiples of 4.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// The offset of the first byte.
    pub start: usize,
    /// The number of bytes.
    pub bytes: usize,
}

/// Memory of a device, owned by the library or caller-provided.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    bytes: usize,
    owner: Option<Owner>,
}

#[derive(Debug)]
enum Owner {
    Host(#[expect(dead_code, reason = "held for its drop")] host::Block),
    Cuda(#[expect(dead_code, reason = "held for its drop")] cuda::Block),
}

impl Memory {
    pub(super) fn of_host(block: host::Block) -> Self {
        Memory { address: block.address(), bytes: block.len(), owner: Some(Owner::Host(block)) }
    }

    pub(super) fn of_cuda(block: cuda::Block, bytes: usize) -> Self {
        Memory { address: block.address(), bytes, owner: Some(Owner::Cuda(block)) }
    }

    /// Memory that stays the caller's.
    ///
    /// # Safety
    /// The device has `bytes` bytes at `address`, which nobody else uses while this value lives.
    pub unsafe fn caller_provided(address: u64, bytes: usize) -> Self {
        Memory { address, bytes, owner: None }
    }

    /// Checks that a workspace has `bytes` bytes and is aligned.
    pub(crate) fn check_size(&self, bytes: usize) -> Result<()> {
        let Memory { address, bytes: len, .. } = *self;
        if len >= bytes && address.is_multiple_of(WORKSPACE_ALIGNMENT) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "the workspace has {len} bytes at {address:#x}; {bytes} are required, aligned to {WORKSPACE_ALIGNMENT}"
        )))
    }

    /// Splits caller-provided memory into its first `at` bytes and the rest.
    pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
        assert!(self.owner.is_none() && at <= self.bytes, "{at} of {} bytes", self.bytes);
        let part = |address, bytes| Memory { address, bytes, owner: None };
        (part(self.address, at), part(self.address + at as u64, self.bytes - at))
    }

    /// Forgets the memory without freeing it. After fork() the memory is the parent's.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.owner.take());
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// The device address of a part.
    pub(crate) fn at(&self, part: Part) -> u64 {
        let end = part.start.checked_add(part.bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes)
                && part.start.is_multiple_of(4)
                && part.bytes.is_multiple_of(4),
            "{part:?} of {} bytes",
            self.bytes
        );
        self.address + part.start as u64
    }

    pub(super) fn fill_on_host(&self, part: Part, value: u32) {
        // SAFETY: the part is within this memory, which is on the host.
        unsafe { host::fill(self.at(part), part.bytes / 4, value) }
    }

    pub(super) fn write_on_host(&self, part: Part, words: &[u32]) {
        // SAFETY: the part is within this memory, which is on the host, and as long as the words.
        unsafe { host::write(self.at(part), words) }
    }

    pub(super) fn read_on_host(&self, part: Part, to: &mut [u8]) {
        // SAFETY: the part is within this memory, which is on the host.
        unsafe { host::read(self.at(part), &mut to[..part.bytes]) }
    }
}

/// Host memory that copies from a device can reach.
#[derive(Debug)]
pub(crate) enum Staging {
    /// For the host.
    Host(host::Block),
    /// For a CUDA device.
    Cuda(cuda::Pinned),
}

impl Staging {
    fn start(&self) -> (*mut u8, usize) {
        match self {
            Staging::Host(block) => (block.address() as *mut u8, block.len()),
            Staging::Cuda(pinned) => (pinned.start(), pinned.len()),
        }
    }

    /// The address, which kernels can read and write too.
    pub fn address(&self) -> u64 {
        self.start().0 as u64
    }

    /// Writes words, from byte `start` on.
    ///
    /// # Safety
    /// Neither a kernel nor another thread uses these bytes meanwhile.
    pub unsafe fn write(&self, start: usize, words: &[u32]) {
        let (base, len) = self.start();
        let end = start.checked_add(size_of_val(words));
        assert!(start.is_multiple_of(4) && end.is_some_and(|end| end <= len), "byte {start} on, of {len}");
        // SAFETY: within memory of this value, aligned, and nobody else's, by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), base.add(start).cast(), words.len()) }
    }

    /// The word at byte `start`, which a kernel may write meanwhile. What the kernel did before is done.
    pub fn word(&self, start: usize) -> u32 {
        let (base, len) = self.start();
        assert!(start.is_multiple_of(4) && start + 4 <= len, "a word at byte {start} of {len}");
        // SAFETY: an aligned word of this value, which is written by kernels only.
        unsafe { AtomicU32::from_ptr(base.add(start).cast()) }.load(Ordering::Acquire)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, len) = self.start();
        // SAFETY: memory of this value, which was filled with zeros when it was allocated.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// `count` numbers that were copied here, from byte `start` on.
    pub fn numbers<T: Number>(&self, start: usize, count: usize) -> &[T] {
        let (base, len) = self.start();
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(start));
        assert!(end.is_some_and(|end| end <= len) && start.is_multiple_of(align_of::<T>()));
        // SAFETY: within memory of this value; aligned, since its start is aligned to 64 bytes; any bits are a number.
        unsafe { std::slice::from_raw_parts(base.add(start).cast(), count) }
    }
}

/// A type that bytes of a device can be read as.
///
/// # Safety
/// Any bits are a value, and the alignment is at most 64 bytes.
pub(crate) unsafe trait Number: Copy {}

// SAFETY: an integer.
unsafe impl Number for u32 {}
// SAFETY: an integer.
unsafe impl Number for u64 {}
