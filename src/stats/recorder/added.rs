//! Counts of the caller's own kernels: they add to a layer's cells, by the kernel of kernels/add_counts.cuh or on the host.

use super::count::{CellType, LayerCells, OFF, Totals};
use crate::device::{Cuda, Device, Grid, IdType, Kernel, Memory, Part, Stream};
use crate::error::{Error, Result};
use crate::stats::IdKind;

/// Threads of a block: `EPLB_COUNT_THREADS` of the kernels.
const THREADS: u32 = 512;

/// The most blocks of a launch.
const MAX_BLOCKS: u32 = 64;

/// What the counts of [`Recorder::add_counts`](super::Recorder::add_counts) are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddedCounts {
    /// Counters that only grow, instead of what was counted since the last call.
    pub cumulative: bool,
    /// One of each slot of this rank, instead of one of each expert.
    pub by_local_slot: bool,
}

impl AddedCounts {
    /// Checks that a recorder of `num_experts` experts, or slots, can take them.
    pub(super) fn check(self, id_kind: IdKind, num_experts: usize, num_ranks: usize) -> Result<()> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        if !self.by_local_slot {
            return Ok(());
        }
        if id_kind != IdKind::Slot {
            return refuse(
                "EPLB_ADDED_COUNTS_BY_LOCAL_SLOT needs id_kind EPLB_ID_KIND_SLOT, id_kind is EPLB_ID_KIND_EXPERT: \
                 counts of this rank's slots do not say which expert; count slots, or add counts by expert"
                    .to_owned(),
            );
        }
        if !num_experts.is_multiple_of(num_ranks) {
            return refuse(format!(
                "EPLB_ADDED_COUNTS_BY_LOCAL_SLOT needs equally many slots on each rank; num_experts is \
                 {num_experts}, num_ranks {num_ranks}"
            ));
        }
        Ok(())
    }
}

/// An array of counts in memory of the caller.
#[derive(Debug, Clone, Copy)]
pub struct CountsAt {
    address: u64,
    kind: IdType,
}

impl CountsAt {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory of its device, aligned, with as many counts as the work
    /// reads. Nobody writes to it meanwhile.
    pub unsafe fn at(address: u64, kind: IdType) -> Self {
        CountsAt { address, kind }
    }
}

/// `eplb_add_counts_arguments` of kernels/add_counts.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    counts: u64,
    last: u64,
    row: u64,
    cells: u64,
    row_stride: u64,
    totals: u64,
    num_counts: u32,
    has_wide_counts: u32,
    has_wide_cells: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Arguments>() == 64, "see kernels/add_counts.cuh");

/// One addition to a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addition(Arguments);

impl Addition {
    /// Adds to the cells from the `first`th on. `last` is where the counters' last values are, `None` where the counts are
    /// differences already.
    pub fn new(
        counts: &CountsAt,
        memory: &Memory,
        layer: &LayerCells,
        (first, num_counts): (usize, usize),
        last: Option<Part>,
    ) -> Self {
        Addition(Arguments {
            counts: counts.address,
            last: last.map_or(0, |last| memory.at(last)),
            row: memory.at(layer.row),
            cells: memory.at(layer.cells) + (first * layer.cell_type.size()) as u64,
            row_stride: layer.row_stride as u64,
            totals: memory.at(layer.totals),
            num_counts: num_counts as u32,
            has_wide_counts: u32::from(counts.kind == IdType::Int64),
            has_wide_cells: u32::from(layer.cell_type == CellType::U64),
            reserved: 0,
        })
    }

    /// Hot: adds on `device`, which has the window, in the order of `stream`.
    pub fn run(&self, device: &Device, stream: Stream) -> Result<()> {
        match device {
            // SAFETY: counts and window are on the host, by the promises of their makers. The recorder's lock keeps calls apart.
            Device::Host => unsafe { self.run_on_host() },
            Device::Cuda(cuda) => self.launch(cuda, stream)?,
        }
        Ok(())
    }

    fn launch(&self, cuda: &Cuda, stream: Stream) -> Result<()> {
        let blocks = self.0.num_counts.div_ceil(THREADS).clamp(1, MAX_BLOCKS);
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: the kernel takes these arguments. Counts and window are on the device, by the promises of their makers.
        unsafe { cuda.launch(Kernel::AddCounts, grid, &self.0, stream) }
    }

    /// # Safety
    /// Counts and window are in host memory, and nobody else uses the window meanwhile.
    unsafe fn run_on_host(&self) {
        let Arguments { counts, last, row, cells, row_stride, totals, num_counts, .. } = self.0;
        // SAFETY: the address of a word, by the caller's promise.
        let row = unsafe { *(row as *const u32) };
        if row == OFF && last == 0 {
            return;
        }
        let mut added = Totals::default();
        for index in 0..num_counts as usize {
            // SAFETY: there are as many counts, of this type, by the caller's promise.
            let count = unsafe {
                match (self.0.has_wide_counts != 0, last != 0) {
                    (true, _) => *(counts as *const i64).add(index),
                    (false, false) => i64::from(*(counts as *const i32).add(index)),
                    (false, true) => i64::from(*(counts as *const u32).add(index)),
                }
            };
            let more = match last {
                0 => count,
                // SAFETY: there are as many last values, by the caller's promise.
                last => since_last(count, unsafe { &mut *(last as *mut i64).add(index) }),
            };
            if row == OFF || more == 0 {
                continue;
            }
            if more < 0 {
                added.ids += 1;
                added.out_of_range += 1;
                continue;
            }
            added.ids = added.ids.wrapping_add(more as u64);
            let cell = (u64::from(row) * row_stride) as usize + index;
            // SAFETY: the cell is one of the layer's, by the caller's promise. Overflows wrap, and the totals reveal them.
            unsafe {
                if self.0.has_wide_cells != 0 {
                    let cell = (cells as *mut u64).add(cell);
                    *cell = (*cell).wrapping_add(more as u64);
                } else {
                    let cell = (cells as *mut u32).add(cell);
                    *cell = (*cell).wrapping_add(more as u32);
                }
            }
        }
        if row != OFF {
            // SAFETY: the address of a `Totals`, by the caller's promise.
            let totals = unsafe { &mut *(totals as *mut Totals) };
            totals.ids = totals.ids.wrapping_add(added.ids);
            totals.out_of_range += added.out_of_range;
        }
    }
}

/// What a counter counted since its last value, which it becomes. A counter below its last value was restarted. A negative
/// counter is not taken, and returned.
fn since_last(counter: i64, last: &mut i64) -> i64 {
    if counter < 0 {
        return counter;
    }
    let before = std::mem::replace(last, counter);
    if counter < before { counter } else { counter - before }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_last_returns_the_difference_or_the_restarted_counter() {
        let mut last = 0;
        let differences = [5, 5, 9, 2, -3, 4, i64::MAX].map(|counter| since_last(counter, &mut last));
        assert_eq!(differences, [5, 0, 4, 2, -3, 2, i64::MAX - 4]);
        assert_eq!(last, i64::MAX);
    }

    #[test]
    fn check_names_the_kind_of_ids_and_uneven_ranks() {
        let slots = AddedCounts { cumulative: true, by_local_slot: true };
        assert!(slots.check(IdKind::Slot, 12, 4).is_ok());
        assert!(AddedCounts { by_local_slot: false, ..slots }.check(IdKind::Expert, 13, 4).is_ok());
        let message = |kind, slots_of_all| slots.check(kind, slots_of_all, 4).unwrap_err().to_string();
        assert!(message(IdKind::Expert, 12).starts_with("EPLB_ADDED_COUNTS_BY_LOCAL_SLOT needs id_kind"));
        assert!(message(IdKind::Slot, 13).ends_with("num_experts is 13, num_ranks 4"));
    }
}
