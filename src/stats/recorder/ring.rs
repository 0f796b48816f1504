//! The rows of a rolling recorder: a ring, and a row that adds up iterations that the ring holds no more. Read and cleared by the
//! kernel of kernels/snapshot.cuh or on the host.

use crate::device::{Device, Grid, Kernel, Stream};
use crate::error::Result;

/// Threads of a block: `EPLB_SNAPSHOT_THREADS` of the kernels.
const THREADS: u32 = 256;

/// The most blocks of a launch.
const MAX_BLOCKS: u64 = 1024;

/// Where the counts of a snapshot go, in memory of the caller.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotAt(u64);

impl SnapshotAt {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory that its device can reach, aligned to 8 bytes, with an
    /// int64 for each expert, layer and sample, which nobody else uses.
    pub unsafe fn at(address: u64) -> Self {
        SnapshotAt(address)
    }

    pub(super) fn address(&self) -> u64 {
        self.0
    }
}

/// `eplb_snapshot_arguments` of kernels/snapshot.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments {
    /// The address of the cells, of 64 bits each.
    pub cells: u64,
    /// Where the counts go. 0: row `first` is added to the last one instead.
    pub counts: u64,
    /// Cells of a row.
    pub num_cells: u64,
    /// Rows of the ring. Another one follows.
    pub ring_rows: u32,
    /// The oldest of the rows in use.
    pub first: u32,
    /// The rows in use.
    pub num_rows: u32,
    /// Samples of the counts.
    pub num_samples: u32,
}

const _: () = assert!(size_of::<Arguments>() == 40, "see kernels/snapshot.cuh");

impl Arguments {
    /// Reads and clears on `device`, in the order of `stream`.
    ///
    /// # Safety
    /// Cells and counts are memory that the device can reach when the work runs, and as large.
    pub unsafe fn run(&self, device: &Device, stream: Stream) -> Result<()> {
        match device {
            // SAFETY: the caller's promise.
            Device::Host => unsafe { self.run_on_host() },
            Device::Cuda(cuda) => {
                let blocks = self.num_cells.div_ceil(u64::from(THREADS)).clamp(1, MAX_BLOCKS) as u32;
                let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
                // SAFETY: the kernel takes these arguments, and the caller's promise.
                unsafe { cuda.launch(Kernel::Snapshot, grid, self, stream) }?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Arguments::run`], on the host.
    unsafe fn run_on_host(&self) {
        let Arguments { num_cells, ring_rows, first, num_rows, num_samples, .. } = *self;
        let num_cells = num_cells as usize;
        // SAFETY: as many cells, by the caller's promise.
        let cells = unsafe {
            std::slice::from_raw_parts_mut(self.cells as *mut u64, (ring_rows as usize + 1) * num_cells)
        };
        let (ring, last) = cells.split_at_mut(ring_rows as usize * num_cells);
        if self.counts == 0 {
            let row = ring[first as usize * num_cells..].iter_mut();
            last.iter_mut().zip(row).for_each(|(sum, cell)| *sum += std::mem::take(cell));
            return;
        }
        let groups = u64::from(num_samples.min(num_rows));
        let mut row = 0;
        for sample in 0..u64::from(num_samples) {
            // SAFETY: as many counts, by the caller's promise.
            let counts = unsafe {
                let first = (self.counts as *mut u64).add(sample as usize * num_cells);
                std::slice::from_raw_parts_mut(first, num_cells)
            };
            counts.fill(0);
            if sample == 0 {
                counts.iter_mut().zip(&mut *last).for_each(|(sum, cell)| *sum += std::mem::take(cell));
            }
            let end = if sample < groups { (sample + 1) * u64::from(num_rows) / groups } else { row };
            for row in std::mem::replace(&mut row, end)..end {
                let at = (u64::from(first) + row) % u64::from(ring_rows);
                let row = ring[at as usize * num_cells..].iter_mut();
                counts.iter_mut().zip(row).for_each(|(sum, cell)| *sum += std::mem::take(cell));
            }
        }
    }
}
