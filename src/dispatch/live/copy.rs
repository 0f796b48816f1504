//! A layer's tables on their way to a CUDA device, by the kernel of kernels/copy_tables.cuh.

use crate::device::{Cuda, Device, Grid, Kernel, Memory, Part, Staging, Stream};
use crate::error::{Error, Result};

/// Threads of the only block: `EPLB_COPY_THREADS` of the kernels.
const THREADS: u32 = 1024;

/// `eplb_copy_arguments` of kernels/copy_tables.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    to: u64,
    from: u64,
    done: u64,
    number: u32,
    num_vectors: u32,
}

const _: () = assert!(size_of::<Arguments>() == 32, "see kernels/copy_tables.cuh");

/// What a copy releases. Each has a word in page-locked memory, with the number of the last copy that is done.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// To the shadow.
    Upload,
    /// To the tables that route.
    Commit,
}

/// The page-locked memory and the shadow of a layer.
#[derive(Debug)]
pub(super) struct CopyBuffers {
    cuda: Cuda,
    /// The tables, then a word for each [`Step`].
    pinned: Staging,
    /// Addresses on the device.
    tables: u64,
    shadow: u64,
    bytes: usize,
    /// The number of the last copy of each [`Step`].
    numbers: [u32; 2],
}

impl CopyBuffers {
    /// Allocates for tables of `memory` that have a shadow there.
    pub fn allocate(cuda: &Cuda, memory: &Memory, tables: Part, shadow: Part) -> Result<Self> {
        let bytes = tables.bytes;
        let pinned = Device::Cuda(cuda.clone()).staging(bytes + 8, "a copy of the tables")?;
        let (tables, shadow) = (memory.at(tables), memory.at(shadow));
        Ok(CopyBuffers { cuda: cuda.clone(), pinned, tables, shadow, bytes, numbers: [0; 2] })
    }

    /// Fails until the device has done all copies.
    pub fn check_read(&self, layer: u32) -> Result<()> {
        let done = [Step::Upload, Step::Commit].map(|step| self.pinned.word(self.word_of(step)));
        match done == self.numbers {
            true => Ok(()),
            false => Err(Error::NotReady(format!(
                "layer {layer}: the device has not copied the tables of the last call yet; call again once its stream has"
            ))),
        }
    }

    /// Copies tables to the shadow, in the order of `stream`.
    pub fn upload(&mut self, words: &[u32], stream: Stream) -> Result<()> {
        self.pinned.write(0, words);
        self.copy(self.shadow, self.pinned.address(), Step::Upload, stream)
    }

    /// Copies the shadow to the tables that route, in the order of `stream`.
    pub fn commit(&mut self, stream: Stream) -> Result<()> {
        self.copy(self.tables, self.shadow, Step::Commit, stream)
    }

    /// Copies tables to those that route, in the order of `stream`.
    pub fn update(&mut self, words: &[u32], stream: Stream) -> Result<()> {
        self.pinned.write(0, words);
        self.copy(self.tables, self.pinned.address(), Step::Commit, stream)
    }

    fn copy(&mut self, to: u64, from: u64, step: Step, stream: Stream) -> Result<()> {
        let number = self.numbers[step as usize].wrapping_add(1);
        let arguments = Arguments {
            to,
            from,
            done: self.pinned.address() + self.word_of(step) as u64,
            number,
            num_vectors: (self.bytes / 16) as u32,
        };
        let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments, which are memory of the device and of this value. A dispatch is destroyed
        // when the device has done its work.
        unsafe { self.cuda.launch(Kernel::CopyTables, grid, &arguments, stream) }?;
        self.numbers[step as usize] = number;
        Ok(())
    }

    fn word_of(&self, step: Step) -> usize {
        self.bytes + step as usize * 4
    }
}
