//! Arrays of ids in a device's memory.

use crate::error::{Error, Result};

/// The type of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdType {
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
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

/// An array of the ids of tokens, in memory of the caller, and how many of the tokens are valid.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    address: u64,
    kind: IdType,
    /// Ids from one row to the next. 0: as many as a row has.
    row_stride: u32,
    /// The address of an int32, or 0 where all tokens are valid.
    num_valid: u64,
}

impl Ids {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory of its device, aligned, with as many ids as the work
    /// reads, and `num_valid` is 0 or the address of an aligned int32. Nobody writes to either meanwhile.
    pub unsafe fn at(address: u64, kind: IdType, num_valid: u64) -> Self {
        Ids { address, kind, row_stride: 0, num_valid }
    }

    /// The same ids with rows that are `row_stride` ids apart. 0: without gaps.
    pub fn with_row_stride(self, row_stride: u32) -> Self {
        Ids { row_stride, ..self }
    }

    /// These ids with as many valid tokens as `other`.
    pub(crate) fn with_valid_of(self, other: &Ids) -> Self {
        Ids { num_valid: other.num_valid, ..self }
    }

    /// Ids from one row of `columns` to the next.
    pub(crate) fn stride(&self, columns: u32) -> u32 {
        if self.row_stride == 0 { columns } else { self.row_stride }
    }

    /// Checks that a row of `columns` fits the stride. `name` is for errors.
    #[inline]
    pub(crate) fn check_stride(&self, columns: u32, name: &str) -> Result<()> {
        let row_stride = self.row_stride;
        if row_stride == 0 || row_stride >= columns {
            return Ok(());
        }
        Err(Error::invalid_argument(move || {
            format!(
                "{name}->row_stride is {row_stride}; at least experts_per_token, {columns}, or 0 expected"
            )
        }))
    }

    /// Whether the ids of `rows` rows of `columns` are one behind the other.
    pub(crate) fn are_dense(&self, rows: u32, columns: u32) -> bool {
        rows <= 1 || self.stride(columns) == columns
    }

    /// The bytes from the first id of `rows` rows of `columns` to the last.
    pub(crate) fn extent(&self, rows: u32, columns: u32) -> u64 {
        let ids = u64::from(rows.saturating_sub(1)) * u64::from(self.stride(columns)) + u64::from(columns);
        if rows == 0 { 0 } else { ids * self.kind.size() as u64 }
    }

    /// The address of the ids.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The type of the ids.
    pub fn kind(&self) -> IdType {
        self.kind
    }

    /// The address of the number of valid tokens, or 0.
    pub fn num_valid(&self) -> u64 {
        self.num_valid
    }

    /// How many of `num_tokens` tokens are valid.
    ///
    /// # Safety
    /// The number of valid tokens is in host memory.
    pub(crate) unsafe fn valid_tokens_on_host(&self, num_tokens: u32) -> u32 {
        match self.num_valid {
            0 => num_tokens,
            // SAFETY: the address of an int32 by the promise of this value's maker, on the host by the caller's.
            address => (unsafe { *(address as *const i32) }.max(0) as u32).min(num_tokens),
        }
    }

    /// The first `num_ids` ids.
    ///
    /// # Safety
    /// The ids are in host memory, of type `I`, and at least as many.
    pub(crate) unsafe fn slice_on_host<I: Id>(&self, num_ids: usize) -> &[I] {
        match num_ids {
            0 => &[],
            // SAFETY: the caller's promise.
            _ => unsafe { std::slice::from_raw_parts(self.address as *const I, num_ids) },
        }
    }
}

/// Arrays of any type and stride, part by part.
impl Ids {
    /// Copies ids from index `first` of rows of `columns` on. Ids that need more than 32 bits become another id out of range.
    ///
    /// # Safety
    /// The ids are in host memory, and at least as many.
    pub(crate) unsafe fn copy_to(&self, columns: u32, first: usize, to: &mut [i32]) {
        let places = places(first, columns, self.stride(columns));
        // SAFETY: the caller's promise for each place.
        unsafe {
            match self.kind {
                IdType::Int32 => to.iter_mut().zip(places).for_each(|(to, at)| *to = self.read::<i32>(at)),
                IdType::Int64 => {
                    let narrow = |id: i64| i32::try_from(id).unwrap_or(i32::MIN);
                    to.iter_mut().zip(places).for_each(|(to, at)| *to = narrow(self.read(at)));
                }
            }
        }
    }

    /// Writes slots, from index `first` of rows of `columns` on.
    ///
    /// # Safety
    /// The array is in host memory, has as many ids, and nobody else uses it.
    pub(crate) unsafe fn copy_from(&self, columns: u32, first: usize, from: &[i32]) {
        let places = places(first, columns, self.stride(columns));
        // SAFETY: the caller's promise for each place.
        unsafe {
            match self.kind {
                IdType::Int32 => from.iter().zip(places).for_each(|(&slot, at)| self.write(at, slot)),
                IdType::Int64 => {
                    from.iter().zip(places).for_each(|(&slot, at)| self.write(at, i64::from(slot)))
                }
            }
        }
    }

    /// # Safety
    /// The array is in host memory, of type `I`, and longer than `at`.
    unsafe fn read<I: Id>(&self, at: usize) -> I {
        // SAFETY: the caller's promise.
        unsafe { *(self.address as *const I).add(at) }
    }

    /// # Safety
    /// As for [`Ids::read`], and nobody else uses the array.
    unsafe fn write<I: Id>(&self, at: usize, id: I) {
        // SAFETY: the caller's promise.
        unsafe { *(self.address as *mut I).add(at) = id }
    }
}

/// Where ids are, from index `first` of rows of `columns` on, with `stride` ids from one row to the next.
fn places(first: usize, columns: u32, stride: u32) -> impl Iterator<Item = usize> {
    let (columns, stride) = (columns as usize, stride as usize);
    let (mut start, mut column) = (first / columns * stride, first % columns);
    std::iter::repeat_with(move || {
        let place = start + column;
        column += 1;
        if column == columns {
            (start, column) = (start + stride, 0);
        }
        place
    })
}

/// An expert id or a slot id.
pub(crate) trait Id: Copy + Default + PartialEq + 'static {
    /// The id, or `num_experts` where it is out of range.
    fn bin(self, num_experts: usize) -> usize;

    /// Whether the id is -1, which names nothing on purpose.
    fn is_none(self) -> bool;

    /// Converts a slot to an id.
    fn of_slot(slot: u32) -> Self;

    /// Converts the slot of ids without an expert, which may be negative.
    fn of_invalid_slot(slot: i32) -> Self;
}

impl Id for i32 {
    #[inline(always)]
    fn bin(self, num_experts: usize) -> usize {
        (self as u32 as usize).min(num_experts)
    }

    #[inline(always)]
    fn is_none(self) -> bool {
        self == -1
    }

    #[inline(always)]
    fn of_slot(slot: u32) -> i32 {
        slot as i32
    }

    fn of_invalid_slot(slot: i32) -> i32 {
        slot
    }
}

impl Id for i64 {
    #[inline(always)]
    fn bin(self, num_experts: usize) -> usize {
        (self as u64).min(num_experts as u64) as usize
    }

    #[inline(always)]
    fn is_none(self) -> bool {
        self == -1
    }

    #[inline(always)]
    fn of_slot(slot: u32) -> i64 {
        i64::from(slot)
    }

    fn of_invalid_slot(slot: i32) -> i64 {
        i64::from(slot)
    }
}
