//! The counting kernel: what it is given, as kernels/count.cuh has it, and the same on the host.

use super::{Memory, Part, cuda};

/// What the window's row says while nothing is counted.
pub(crate) const OFF: u32 = u32::MAX;

/// Threads of a block, as in the kernel.
const THREADS: u32 = 512;

/// Blocks of a launch at most: enough for any device, and each costs an atomic a bin.
const MAX_BLOCKS: u64 = 256;

/// Bins that shared memory has room for on every device without asking; one is for ids that are out of range.
const MAX_BINS: u32 = 48 * 1024 / 4;

/// The type of expert ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdType {
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
}

/// The type of what is counted into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CellType {
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
}

impl IdType {
    /// Bytes of an id.
    pub fn size(self) -> usize {
        match self {
            IdType::Int32 => 4,
            IdType::Int64 => 8,
        }
    }
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

/// Expert ids of tokens in memory of the host's, and how many of the tokens are valid.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    address: u64,
    kind: IdType,
    /// The address of an int32, or 0 where all tokens are valid.
    num_valid: u64,
}

impl Ids {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory of the device's, aligned, of as many ids as are
    /// counted, and `num_valid` 0 or the address of an aligned int32; nobody writes to either meanwhile.
    pub unsafe fn at(address: u64, kind: IdType, num_valid: u64) -> Self {
        Ids { address, kind, num_valid }
    }

    /// As many ids of the same type in another place.
    pub(super) fn elsewhere(&self, address: u64) -> Self {
        Ids { address, ..*self }
    }

    /// Where the ids are.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What the ids are.
    pub fn kind(&self) -> IdType {
        self.kind
    }

    /// Where the number of valid tokens is, or 0.
    pub fn num_valid(&self) -> u64 {
        self.num_valid
    }
}

/// What became of the ids of a layer while it was counted.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ids of valid tokens: counted, or out of range.
    pub ids: u64,
    /// Ids of valid tokens that name no expert.
    pub out_of_range: u64,
    /// Ids of the tokens after the valid ones.
    pub padding: u64,
}

/// `eplb_count_arguments` of kernels/count.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments {
    pub expert_ids: u64,
    pub num_valid: u64,
    pub row: u64,
    pub cells: u64,
    pub row_stride: u64,
    pub totals: u64,
    pub num_tokens: u32,
    pub experts_per_token: u32,
    pub num_experts: u32,
    pub has_bins: u32,
}

const _: () = assert!(size_of::<Arguments>() == 64 && size_of::<Totals>() == 24, "see kernels/count.cuh");

/// One layer's counting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    ids: IdType,
    pub(super) cells: CellType,
    num_cells: usize,
    pub(super) arguments: Arguments,
}

/// Where in a device's memory a layer's counts go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The word that says which row is counted into, or [`OFF`].
    pub row: Part,
    /// From this layer's cells in row 0 to the end of those in the last row.
    pub cells: Part,
    /// What they are.
    pub cell_type: CellType,
    /// Cells from one row to the next.
    pub row_stride: usize,
    /// This layer's [`Totals`].
    pub totals: Part,
    /// Experts of the layer.
    pub num_experts: u32,
}

impl Count {
    /// Counts `num_tokens` tokens of `experts_per_token` ids each into `memory`.
    pub fn new(ids: &Ids, num_tokens: u32, experts_per_token: u32, memory: &Memory, target: &Target) -> Self {
        let arguments = Arguments {
            expert_ids: ids.address,
            num_valid: ids.num_valid,
            row: memory.at(target.row),
            cells: memory.at(target.cells),
            row_stride: target.row_stride as u64,
            totals: memory.at(target.totals),
            num_tokens,
            experts_per_token,
            num_experts: target.num_experts,
            has_bins: u32::from(target.num_experts < MAX_BINS),
        };
        let num_cells = target.cells.bytes / target.cell_type.size();
        Count { ids: ids.kind, cells: target.cell_type, num_cells, arguments }
    }

    /// How the kernel is launched.
    pub(super) fn launch(&self) -> cuda::Launch<'_> {
        let Arguments { num_tokens, experts_per_token, num_experts, has_bins, .. } = self.arguments;
        let num_ids = u64::from(num_tokens) * u64::from(experts_per_token);
        // As many ids a thread as fit one load.
        let per_block = u64::from(THREADS) * (16 / self.ids.size()) as u64;
        cuda::Launch {
            kernel: match (self.ids, self.cells) {
                (IdType::Int32, CellType::U32) => cuda::Kernel::CountI32U32,
                (IdType::Int64, CellType::U32) => cuda::Kernel::CountI64U32,
                (IdType::Int32, CellType::U64) => cuda::Kernel::CountI32U64,
                (IdType::Int64, CellType::U64) => cuda::Kernel::CountI64U64,
            },
            blocks: num_ids.div_ceil(per_block).clamp(1, MAX_BLOCKS) as u32,
            threads: THREADS,
            shared_bytes: has_bins * (num_experts + 1) * 4,
            arguments: (&raw const self.arguments).cast(),
            _lent: std::marker::PhantomData,
        }
    }

    /// What the kernel does, on host memory.
    ///
    /// # Safety
    /// The addresses are of host memory, as the makers of its parts promised, and nobody else uses the cells meanwhile.
    pub(super) unsafe fn run_on_host(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.ids, self.cells) {
                (IdType::Int32, CellType::U32) => self.arguments.run::<i32, u32>(self.num_cells),
                (IdType::Int64, CellType::U32) => self.arguments.run::<i64, u32>(self.num_cells),
                (IdType::Int32, CellType::U64) => self.arguments.run::<i32, u64>(self.num_cells),
                (IdType::Int64, CellType::U64) => self.arguments.run::<i64, u64>(self.num_cells),
            }
        }
    }
}

impl Arguments {
    /// # Safety
    /// As for [`Count::run_on_host`].
    unsafe fn run<I: Id, C: Cell>(&self, num_cells: usize) {
        // SAFETY: an address of a word, by the caller's promise.
        let row = unsafe { *(self.row as *const u32) };
        if row == OFF {
            return;
        }
        // SAFETY: the caller's promise.
        let tokens = unsafe { valid_tokens(self.num_valid, self.num_tokens) };
        let num_ids = tokens as usize * self.experts_per_token as usize;
        let first = (u64::from(row) * self.row_stride) as usize;
        // SAFETY: as many ids and cells by the caller's promise.
        let (ids, cells) = unsafe {
            let cells = std::slice::from_raw_parts_mut(self.cells as *mut C, num_cells);
            let ids = match num_ids {
                0 => &[],
                _ => std::slice::from_raw_parts(self.expert_ids as *const I, num_ids),
            };
            (ids, &mut cells[first..][..self.num_experts as usize])
        };
        let out_of_range = histogram(ids, cells);
        let padding = u64::from(self.num_tokens - tokens) * u64::from(self.experts_per_token);
        for (index, more) in [num_ids as u64, out_of_range, padding].into_iter().enumerate() {
            // SAFETY: the three words of a `Totals`, by the caller's promise.
            unsafe { *(self.totals as *mut u64).add(index) += more };
        }
    }
}

/// How many of `num_tokens` tokens are valid.
///
/// # Safety
/// `num_valid` is 0 or the address of an int32 on the host.
pub(super) unsafe fn valid_tokens(num_valid: u64, num_tokens: u32) -> u32 {
    match num_valid {
        0 => num_tokens,
        // SAFETY: the caller's promise.
        address => (unsafe { *(address as *const i32) }.max(0) as u32).min(num_tokens),
    }
}

/// An expert id.
pub(crate) trait Id: Copy + Default + 'static {
    /// The id, or `num_experts` where it is out of range.
    fn bin(self, num_experts: usize) -> usize;

    /// A slot in the type of the ids.
    fn of_slot(slot: u32) -> Self;
}

impl Id for i32 {
    #[inline(always)]
    fn bin(self, num_experts: usize) -> usize {
        (self as u32 as usize).min(num_experts)
    }

    #[inline(always)]
    fn of_slot(slot: u32) -> i32 {
        slot as i32
    }
}

impl Id for i64 {
    #[inline(always)]
    fn bin(self, num_experts: usize) -> usize {
        (self as u64).min(num_experts as u64) as usize
    }

    #[inline(always)]
    fn of_slot(slot: u32) -> i64 {
        i64::from(slot)
    }
}

/// What is counted into. Overflows wrap, as on a device; the totals tell.
pub(crate) trait Cell: Copy {
    fn add(&mut self, more: u32);
}

impl Cell for u32 {
    #[inline(always)]
    fn add(&mut self, more: u32) {
        *self = self.wrapping_add(more);
    }
}

impl Cell for u64 {
    #[inline(always)]
    fn add(&mut self, more: u32) {
        *self += u64::from(more);
    }
}

/// Experts up to which a batch is counted in bins on the stack.
const MAX_STACK_EXPERTS: usize = 1023;

/// Histograms counted side by side: the same expert again soon would wait for its bin to be stored.
const LANES: usize = 4;

/// Adds the ids to the cells and returns how many have none.
pub(crate) fn histogram<I: Id, C: Cell>(ids: &[I], cells: &mut [C]) -> u64 {
    let num_experts = cells.len();
    if num_experts > MAX_STACK_EXPERTS || ids.len() < LANES * num_experts {
        let mut out_of_range = 0;
        for id in ids {
            match cells.get_mut(id.bin(num_experts)) {
                Some(cell) => cell.add(1),
                None => out_of_range += 1,
            }
        }
        return out_of_range;
    }
    let mut out_of_range = 0;
    // Bins have 32 bits.
    for ids in ids.chunks(1 << 30) {
        let mut bins = [[0u32; MAX_STACK_EXPERTS + 1]; LANES];
        let (four, rest) = ids.as_chunks::<LANES>();
        for ids in four {
            for (bins, id) in bins.iter_mut().zip(ids) {
                bins[id.bin(num_experts) & MAX_STACK_EXPERTS] += 1;
            }
        }
        for id in rest {
            bins[0][id.bin(num_experts)] += 1;
        }
        let sum = |bin: usize| bins.iter().map(|lane| lane[bin]).sum::<u32>();
        for (expert, cell) in cells.iter_mut().enumerate() {
            cell.add(sum(expert));
        }
        out_of_range += u64::from(sum(num_experts));
    }
    out_of_range
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(ids: &[i64], num_experts: usize) -> (Vec<u64>, u64) {
        let mut counts = vec![0; num_experts];
        let mut out_of_range = 0;
        for &id in ids {
            if (0..num_experts as i64).contains(&id) {
                counts[id as usize] += 1;
            } else {
                out_of_range += 1;
            }
        }
        (counts, out_of_range)
    }

    #[test]
    fn any_number_of_ids_and_experts_is_counted() {
        let mut seed = 7u64;
        for num_experts in [1, 2, 64, 256, 257, 1023, 1024, 5000] {
            for len in [0, 1, 3, 100, 4095, 70_001] {
                let ids: Vec<i64> = (0..len)
                    .map(|_| {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        (seed >> 33) as i64 % (num_experts as i64 + 9) - 4
                    })
                    .collect();
                let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                let (expected, expected_out) = naive(&ids, num_experts);
                let mut wide_cells = vec![1u64; num_experts];
                assert_eq!(histogram(&ids, &mut wide_cells), expected_out);
                assert!(wide_cells.iter().zip(&expected).all(|(cell, count)| *cell == count + 1));
                let mut cells = vec![u32::MAX; num_experts];
                assert_eq!(histogram(&narrow, &mut cells), expected_out);
                assert!(
                    cells.iter().zip(&expected).all(|(cell, count)| *cell == (*count as u32).wrapping_sub(1))
                );
            }
        }
    }

    #[test]
    fn the_largest_and_smallest_ids_are_out_of_range() {
        let mut cells = [0u32; 4];
        assert_eq!(histogram(&[i64::MIN, i64::MAX, 1 << 32, -1, 4, (1 << 32) + 1], &mut cells), 6);
        assert_eq!(histogram(&[i32::MIN, i32::MAX, -1, 4, 3], &mut cells), 4);
        assert_eq!(cells, [0, 0, 0, 1]);
    }
}
