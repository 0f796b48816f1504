//! The counting rule: the ids of a batch add to a layer's cells, by a kernel of kernels/count.cuh or on the host.

use super::histogram::{Cell, histogram, number_of_none};
use crate::device::{Cuda, Device, Grid, Id, IdType, Ids, Kernel, Memory, Number, Part, Stream};
use crate::error::Result;

/// The value of the window's row word while nothing is counted: `EPLB_COUNT_OFF` of the kernels.
pub(super) const OFF: u32 = u32::MAX;

/// Threads of a block: `EPLB_COUNT_THREADS` of the kernels.
const THREADS: u32 = 512;

/// The most blocks of a launch. They fill any device, and each block adds an atomic operation for each bin.
const MAX_BLOCKS: u64 = 256;

/// Bins of ids without a cell: `EPLB_OTHER_BINS` of the kernels.
pub(crate) const OTHER_BINS: usize = 3;

/// Ids that the host takes at a time where they are not one behind the other.
const CHUNK: usize = 1024;

/// Bins that fit the shared memory of every device without opting in.
const MAX_BINS: u32 = 48 * 1024 / 4;

/// The type of a cell of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CellType {
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
}

impl CellType {
    /// Bytes of a cell.
    pub fn size(self) -> usize {
        match self {
            CellType::U32 => 4,
            CellType::U64 => 8,
        }
    }
}

/// The ids of a layer that were passed for counting.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ids of valid tokens, of any kind.
    pub ids: u64,
    /// Ids of valid tokens that name no expert, without those of -1.
    pub out_of_range: u64,
    /// Ids of the tokens after the valid ones.
    pub padding: u64,
    /// Ids of -1 of valid tokens.
    pub none: u64,
    /// Ids of shared experts of valid tokens.
    pub shared: u64,
}

impl Totals {
    /// Ids that were counted. Read while kernels run, the totals of the same ids may be a little apart.
    pub fn counted(&self) -> u64 {
        self.ids.saturating_sub(self.not_counted())
    }

    /// Ids of valid tokens that were not counted.
    pub fn not_counted(&self) -> u64 {
        self.out_of_range + self.none + self.shared
    }

    /// Ids of padding: of the tokens after the valid ones, and of -1.
    pub fn all_padding(&self) -> u64 {
        self.padding + self.none
    }
}

// SAFETY: integers without padding.
unsafe impl Number for Totals {}

/// `eplb_count_arguments` of kernels/count.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    expert_ids: u64,
    num_valid: u64,
    row: u64,
    cells: u64,
    row_stride: u64,
    totals: u64,
    num_tokens: u32,
    experts_per_token: u32,
    num_experts: u32,
    has_bins: u32,
    ids_stride: u32,
    ids_are_64_bits: u32,
    cells_are_64_bits: u32,
    num_shared: u32,
}

const _: () = assert!(size_of::<Arguments>() == 80 && size_of::<Totals>() == 40, "see kernels/count.cuh");

/// Where a layer's counts are in the window's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerCells {
    /// The word with the row to count into, or [`OFF`].
    pub row: Part,
    /// From this layer's cells in row 0 to the end of its cells in the last row.
    pub cells: Part,
    /// The type of the cells.
    pub cell_type: CellType,
    /// Cells from one row to the next.
    pub row_stride: usize,
    /// This layer's [`Totals`].
    pub totals: Part,
    /// Experts of the layer.
    pub num_experts: u32,
    /// Shared experts, whose ids follow.
    pub num_shared: u32,
}

/// Which ids name what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdKinds {
    /// Experts with cells.
    pub num_experts: usize,
    /// Shared experts, whose ids follow.
    pub num_shared: usize,
}

impl Totals {
    /// Adds an id that names no expert with a cell.
    fn add_other(&mut self, id: i32, kinds: IdKinds) {
        let shared = id.wrapping_sub(kinds.num_experts as i32) as u32 as usize;
        let total = match id {
            -1 => &mut self.none,
            _ if shared < kinds.num_shared => &mut self.shared,
            _ => &mut self.out_of_range,
        };
        *total += 1;
    }
}

/// The count of one batch of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchCount {
    ids: Ids,
    cell_type: CellType,
    /// Cells from the layer's first on, in all rows.
    num_cells: usize,
    arguments: Arguments,
}

/// What a kernel needs to count in the same pass as its own work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CountTarget {
    /// The address of the row word.
    pub row: u64,
    /// The address of the layer's cells in row 0.
    pub cells: u64,
    /// Cells from one row to the next.
    pub row_stride: u64,
    /// The address of the layer's totals.
    pub totals: u64,
    /// Cells of a row of the layer.
    pub num_cells: u32,
    /// The type of the cells.
    pub cell_type: CellType,
}

impl BatchCount {
    /// Counts `num_tokens` tokens of `experts_per_token` ids each into `memory`.
    pub(super) fn new(
        ids: &Ids,
        num_tokens: u32,
        experts_per_token: u32,
        memory: &Memory,
        layer: &LayerCells,
    ) -> Self {
        let arguments = Arguments {
            expert_ids: ids.address(),
            num_valid: ids.num_valid(),
            row: memory.at(layer.row),
            cells: memory.at(layer.cells),
            row_stride: layer.row_stride as u64,
            totals: memory.at(layer.totals),
            num_tokens,
            experts_per_token,
            num_experts: layer.num_experts,
            has_bins: u32::from(layer.num_experts + OTHER_BINS as u32 <= MAX_BINS),
            ids_stride: ids.stride(experts_per_token),
            ids_are_64_bits: u32::from(ids.kind() == IdType::Int64),
            cells_are_64_bits: u32::from(layer.cell_type == CellType::U64),
            num_shared: layer.num_shared,
        };
        let num_cells = layer.cells.bytes / layer.cell_type.size();
        BatchCount { ids: *ids, cell_type: layer.cell_type, num_cells, arguments }
    }

    /// Where the counts go, for a kernel that counts in the same pass.
    pub fn target(&self) -> CountTarget {
        let Arguments { row, cells, row_stride, totals, num_experts, .. } = self.arguments;
        CountTarget { row, cells, row_stride, totals, num_cells: num_experts, cell_type: self.cell_type }
    }

    /// Hot: counts on `device`, which has the window, in the order of `stream`.
    pub fn run(&self, device: &Device, stream: Stream) -> Result<()> {
        match device {
            // SAFETY: ids and window are on the host, by the promises of their makers. The recorder's lock keeps calls apart.
            Device::Host => unsafe { self.run_on_host(None) },
            Device::Cuda(cuda) => self.launch(cuda, stream)?,
        }
        Ok(())
    }

    fn launch(&self, cuda: &Cuda, stream: Stream) -> Result<()> {
        let Arguments { num_tokens, experts_per_token, num_experts, has_bins, num_shared, .. } =
            self.arguments;
        let num_ids = u64::from(num_tokens) * u64::from(experts_per_token);
        // A thread takes as many ids as fit one load.
        let per_block = u64::from(THREADS) * (16 / self.ids.kind().size()) as u64;
        let is_plain = num_shared == 0 && self.ids.are_dense(num_tokens, experts_per_token);
        let kernel = match (self.ids.kind(), self.cell_type) {
            _ if !is_plain => Kernel::CountGeneral,
            (IdType::Int32, CellType::U32) => Kernel::CountI32U32,
            (IdType::Int64, CellType::U32) => Kernel::CountI64U32,
            (IdType::Int32, CellType::U64) => Kernel::CountI32U64,
            (IdType::Int64, CellType::U64) => Kernel::CountI64U64,
        };
        let grid = Grid {
            blocks: num_ids.div_ceil(per_block).clamp(1, MAX_BLOCKS) as u32,
            threads: THREADS,
            shared_bytes: has_bins * (num_experts + OTHER_BINS as u32) * 4,
        };
        // SAFETY: the kernel takes these arguments. Ids and window are on the device, by the promises of their makers.
        unsafe { cuda.launch(kernel, grid, &self.arguments, stream) }
    }

    /// Counts the slots of ids. `none` of the ids were -1, which their slots do not tell from ids out of range.
    ///
    /// # Safety
    /// Slots and window are in host memory, and nobody else uses the window meanwhile.
    pub unsafe fn run_on_slots(&self, none: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.run_on_host(Some(none)) }
    }

    /// How many ids of the valid tokens are -1.
    ///
    /// # Safety
    /// The ids are in host memory.
    pub unsafe fn count_none(ids: &Ids, num_tokens: u32, experts_per_token: u32) -> u64 {
        // SAFETY: the caller's promise.
        unsafe {
            let num_ids = ids.valid_tokens_on_host(num_tokens) as usize * experts_per_token as usize;
            match ids.kind() {
                IdType::Int32 => number_of_none(ids.slice_on_host::<i32>(num_ids)),
                IdType::Int64 => number_of_none(ids.slice_on_host::<i64>(num_ids)),
            }
        }
    }

    /// # Safety
    /// Ids and window are in host memory, and nobody else uses the window meanwhile.
    unsafe fn run_on_host(&self, none: Option<u64>) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.ids.kind(), self.cell_type) {
                (IdType::Int32, CellType::U32) => self.add_to_cells::<i32, u32>(none),
                (IdType::Int64, CellType::U32) => self.add_to_cells::<i64, u32>(none),
                (IdType::Int32, CellType::U64) => self.add_to_cells::<i32, u64>(none),
                (IdType::Int64, CellType::U64) => self.add_to_cells::<i64, u64>(none),
            }
        }
    }

    /// # Safety
    /// As for [`BatchCount::run_on_host`], with the types of ids and cells.
    unsafe fn add_to_cells<I: Id, C: Cell>(&self, none: Option<u64>) {
        let Arguments { num_tokens, experts_per_token: columns, num_shared, .. } = self.arguments;
        // SAFETY: the caller's promise.
        let Some((cells, totals)) = (unsafe { self.cells_on_host::<C>() }) else { return };
        // SAFETY: as above.
        let tokens = unsafe { self.ids.valid_tokens_on_host(num_tokens) };
        let num_ids = tokens as usize * columns as usize;
        totals.ids += num_ids as u64;
        totals.padding += u64::from(num_tokens - tokens) * u64::from(columns);
        if num_shared == 0 && self.ids.are_dense(tokens, columns) {
            // SAFETY: as many ids, one behind the other, by the caller's promise.
            let ids = unsafe { self.ids.slice_on_host::<I>(num_ids) };
            let others = histogram(ids, cells);
            let none = none.unwrap_or_else(|| if others == 0 { 0 } else { number_of_none(ids) });
            totals.out_of_range += others - none;
            totals.none += none;
            return;
        }
        // SAFETY: as many ids, by the caller's promise.
        unsafe { self.add_general(num_ids, cells, totals) };
    }

    /// Counts ids of any type and stride, and skips those of shared experts.
    ///
    /// # Safety
    /// There are `num_ids` ids, in host memory.
    // Inlined, its array would be on the stack of every call.
    #[inline(never)]
    unsafe fn add_general<C: Cell>(&self, num_ids: usize, cells: &mut [C], totals: &mut Totals) {
        let Arguments { experts_per_token: columns, num_experts, num_shared, .. } = self.arguments;
        let kinds = IdKinds { num_experts: num_experts as usize, num_shared: num_shared as usize };
        let mut ids = [0; CHUNK];
        for first in (0..num_ids).step_by(CHUNK) {
            let ids = &mut ids[..CHUNK.min(num_ids - first)];
            // SAFETY: as many ids, by the caller's promise.
            unsafe { self.ids.copy_to(columns, first, ids) };
            if histogram(ids, cells) != 0 {
                let others = ids.iter().filter(|id| id.bin(kinds.num_experts) == kinds.num_experts);
                others.for_each(|&id| totals.add_other(id, kinds));
            }
        }
    }

    /// The layer's cells in the row to count into, and its totals. `None` while nothing is counted.
    ///
    /// # Safety
    /// As for [`BatchCount::run_on_host`], with the type of cells.
    // Mutable, since the window is only an address here.
    #[allow(clippy::mut_from_ref)]
    unsafe fn cells_on_host<C: Cell>(&self) -> Option<(&mut [C], &mut Totals)> {
        let Arguments { row, cells, row_stride, totals, num_experts, .. } = self.arguments;
        // SAFETY: the addresses of a word, of cells and of a `Totals`, by the caller's promise.
        unsafe {
            let row = *(row as *const u32);
            if row == OFF {
                return None;
            }
            let first = (u64::from(row) * row_stride) as usize;
            let cells = std::slice::from_raw_parts_mut(cells as *mut C, self.num_cells);
            Some((&mut cells[first..][..num_experts as usize], &mut *(totals as *mut Totals)))
        }
    }

    /// Counts the slots of some ids of valid tokens. The slots of ids that name no expert do not count.
    ///
    /// # Safety
    /// The window is in host memory, and nobody else uses it meanwhile.
    pub unsafe fn add_slots_on_host(&self, ids: &[i32], slots: &[i32], kinds: IdKinds) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.cell_type {
                CellType::U32 => self.add_slots::<u32>(ids, slots, kinds),
                CellType::U64 => self.add_slots::<u64>(ids, slots, kinds),
            }
        }
    }

    /// # Safety
    /// As for [`BatchCount::add_slots_on_host`], with the type of cells.
    unsafe fn add_slots<C: Cell>(&self, ids: &[i32], slots: &[i32], kinds: IdKinds) {
        // SAFETY: the caller's promise.
        let Some((cells, totals)) = (unsafe { self.cells_on_host::<C>() }) else { return };
        totals.ids += ids.len() as u64;
        for (&id, &slot) in ids.iter().zip(slots) {
            match id.bin(kinds.num_experts) < kinds.num_experts {
                true => cells[slot as usize].add(1),
                false => totals.add_other(id, kinds),
            }
        }
    }

    /// Counts ids of the tokens after the valid ones.
    ///
    /// # Safety
    /// The window is in host memory, and nobody else uses it meanwhile.
    pub unsafe fn add_padding_on_host(&self, num_ids: u64) {
        // SAFETY: the caller's promise.
        let totals = unsafe {
            match self.cell_type {
                CellType::U32 => self.cells_on_host::<u32>().map(|(_, totals)| totals),
                CellType::U64 => self.cells_on_host::<u64>().map(|(_, totals)| totals),
            }
        };
        if let Some(totals) = totals {
            totals.padding += num_ids;
        }
    }
}
