//! A buffer for large reads, at the start of a page of memory.

use std::io::{self, ErrorKind, Read};
use std::ops::{Deref, DerefMut};

use crate::error::{Result, try_zeroed};

/// Bytes of a page on most machines. On others the buffer is still aligned to this.
const PAGE: usize = 4096;

/// Bytes that begin at a page. Some processors copy a file's pages to such memory three times as fast as to memory that begins
/// 16 bytes after a page. Large allocations of `malloc`, and so of `Vec`, begin there.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    /// `start` bytes to the page, then the buffer. It never grows, so that it stays where it is.
    bytes: Vec<u8>,
    start: usize,
}

impl PageBuffer {
    /// Allocates `len` zeros. `what` names their purpose in the error.
    pub fn new(len: usize, what: &'static str) -> Result<Self> {
        let mut bytes = try_zeroed::<u8>(len.checked_add(PAGE - 1), what)?;
        let start = bytes.as_ptr().align_offset(PAGE).min(PAGE - 1);
        bytes.truncate(start + len);
        Ok(PageBuffer { bytes, start })
    }

    /// Fills the buffer from `source`. If `source` ends before, the buffer becomes as short.
    pub fn fill(&mut self, source: &mut impl Read) -> io::Result<()> {
        let mut filled = 0;
        while filled < self.len() {
            match source.read(&mut self[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.bytes.truncate(self.start + filled);
        Ok(())
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn new_returns_zeros_that_begin_at_a_page() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let buffer = PageBuffer::new(len, "a test").unwrap();
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % PAGE), (len, 0));
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn fill_reads_to_the_end_of_the_buffer_or_the_source() {
        for (len, expected) in [(3, &b"123"[..]), (5, b"12345"), (9, b"12345"), (0, b"")] {
            let mut buffer = PageBuffer::new(len, "a test").unwrap();
            // A source that returns its bytes in two parts.
            buffer.fill(&mut b"12".chain(&b"345"[..])).unwrap();
            assert_eq!((&*buffer, buffer.as_ptr() as usize % PAGE), (expected, 0));
        }
    }

    #[test]
    fn new_fails_where_memory_is_short() {
        for len in [usize::MAX, isize::MAX as usize] {
            assert!(matches!(PageBuffer::new(len, "a test"), Err(Error::OutOfMemory { .. })));
        }
    }
}
