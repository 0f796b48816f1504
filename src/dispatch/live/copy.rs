//! The tables of layers on their way to a CUDA device, by the kernel of kernels/copy_tables.cuh.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::device::{Cuda, Device, Grid, Kernel, Memory, Staging, Stream};
use crate::dispatch::layout::Layout;
use crate::error::{Error, Result};

/// Threads of a block: `EPLB_COPY_THREADS` of the kernels.
const THREADS: u32 = 1024;

/// Bytes behind a layer's tables in page-locked memory: a word for each [`Step`], and the rest of a line.
const DONE_BYTES: usize = 64;

/// `eplb_copy_arguments` of kernels/copy_tables.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    to: u64,
    from: u64,
    done: u64,
    number: u32,
    num_vectors: u32,
    to_stride: u32,
    from_stride: u32,
}

const _: () = assert!(size_of::<Arguments>() == 40, "see kernels/copy_tables.cuh");

/// What a copy releases. Each has a word in page-locked memory, with the number of the last copy that is done.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// To the shadow.
    Upload,
    /// To the tables that route.
    Commit,
}

/// Page-locked memory for the tables of all layers.
#[derive(Debug)]
pub(super) struct Pinned {
    cuda: Cuda,
    /// Of each layer the tables and, behind them, a word for each [`Step`].
    memory: Staging,
    /// Copies so far.
    copies: AtomicU32,
}

/// The copies of a layer's tables.
#[derive(Debug)]
pub(super) struct LayerCopies {
    pinned: Arc<Pinned>,
    /// The first byte of the layer in page-locked memory.
    start: usize,
    /// Bytes of the tables.
    bytes: usize,
    /// Addresses on the device.
    tables: u64,
    shadow: u64,
    /// The number of the last copy of each [`Step`].
    numbers: [u32; 2],
    /// Bytes from the tables of a layer to those of the next, on the device.
    stride: usize,
}

/// Bytes of page-locked memory for `num_layers` layers.
pub(super) fn pinned_bytes(layout: &Layout, num_layers: usize) -> Result<usize> {
    let layer = layout.layer(0)?.all_tables().bytes + DONE_BYTES;
    layer
        .checked_mul(num_layers)
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| Error::out_of_memory(usize::MAX, super::COPIES))
}

/// Allocates for the tables of `num_layers` layers, which have shadows in `memory`.
pub(super) fn allocate(
    cuda: &Cuda,
    memory: &Memory,
    layout: &Layout,
    num_layers: usize,
) -> Result<Vec<LayerCopies>> {
    let bytes = pinned_bytes(layout, num_layers)?;
    let staging = Device::Cuda(cuda.clone()).staging(bytes, super::COPIES)?;
    let pinned = Arc::new(Pinned { cuda: cuda.clone(), memory: staging, copies: AtomicU32::new(0) });
    let layer = |index: usize| {
        let tables = layout.layer(index)?.all_tables();
        Ok(LayerCopies {
            pinned: pinned.clone(),
            start: index * (tables.bytes + DONE_BYTES),
            bytes: tables.bytes,
            tables: memory.at(tables),
            shadow: memory.at(layout.shadow(index)?),
            numbers: [0; 2],
            stride: layout.stride(),
        })
    };
    (0..num_layers).map(layer).collect()
}

/// Copies the tables of all layers to those that route, by one kernel in the order of `stream`. `layers` are as [`allocate`]
/// returned them.
pub(super) fn update_all<'a>(
    layers: &mut [&mut LayerCopies],
    words: impl Iterator<Item = &'a [u32]>,
    stream: Stream,
) -> Result<()> {
    layers.iter_mut().zip(words).for_each(|(layer, words)| layer.write(words));
    let Some(first) = layers.first() else { return Ok(()) };
    let number = first.launch(first.tables, first.address(), Step::Commit, layers.len() as u32, stream)?;
    layers.iter_mut().for_each(|layer| layer.numbers[Step::Commit as usize] = number);
    Ok(())
}

impl LayerCopies {
    /// Fails until the device has done all copies.
    pub fn check_read(&self, layer: u32) -> Result<()> {
        let done = [Step::Upload, Step::Commit].map(|step| self.pinned.memory.word(self.word_of(step)));
        match done == self.numbers {
            true => Ok(()),
            false => Err(Error::NotReady(format!(
                "layer {layer}: the device has not copied the tables of the last call yet; call again once its stream has"
            ))),
        }
    }

    /// Copies tables to the shadow, in the order of `stream`.
    pub fn upload(&mut self, words: &[u32], stream: Stream) -> Result<()> {
        self.write(words);
        self.copy(self.shadow, self.address(), Step::Upload, stream)
    }

    /// Copies the shadow to the tables that route, in the order of `stream`.
    pub fn commit(&mut self, stream: Stream) -> Result<()> {
        self.copy(self.tables, self.shadow, Step::Commit, stream)
    }

    /// Copies tables to those that route, in the order of `stream`.
    pub fn update(&mut self, words: &[u32], stream: Stream) -> Result<()> {
        self.write(words);
        self.copy(self.tables, self.address(), Step::Commit, stream)
    }

    fn copy(&mut self, to: u64, from: u64, step: Step, stream: Stream) -> Result<()> {
        self.numbers[step as usize] = self.launch(to, from, step, 1, stream)?;
        Ok(())
    }

    /// Launches the copy of this layer and of those that follow. Returns its number.
    fn launch(&self, to: u64, from: u64, step: Step, num_layers: u32, stream: Stream) -> Result<u32> {
        let number = self.pinned.copies.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let arguments = Arguments {
            to,
            from,
            done: self.pinned.memory.address() + self.word_of(step) as u64,
            number,
            num_vectors: (self.bytes / 16) as u32,
            to_stride: (self.stride / 16) as u32,
            from_stride: ((self.bytes + DONE_BYTES) / 16) as u32,
        };
        let grid = Grid { blocks: num_layers, threads: THREADS, shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments, which are memory of the device and of these values. A dispatch is destroyed
        // when the device has done its work.
        unsafe { self.pinned.cuda.launch(Kernel::CopyTables, grid, &arguments, stream) }?;
        Ok(number)
    }

    /// Writes tables to page-locked memory. No copy reads them: [`LayerCopies::check_read`].
    fn write(&mut self, words: &[u32]) {
        assert_eq!(size_of_val(words), self.bytes);
        // SAFETY: these bytes are of this layer only, whose value is borrowed for writing, and the device has read them.
        unsafe { self.pinned.memory.write(self.start, words) };
    }

    /// The address of the page-locked tables.
    fn address(&self) -> u64 {
        self.pinned.memory.address() + self.start as u64
    }

    fn word_of(&self, step: Step) -> usize {
        self.start + self.bytes + step as usize * 4
    }
}
