//! Arrays of ids in a device's memory.

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
    /// The address of an int32, or 0 where all tokens are valid.
    num_valid: u64,
}

impl Ids {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory of its device, aligned, with as many ids as the work
    /// reads, and `num_valid` is 0 or the address of an aligned int32. Nobody writes to either meanwhile.
    pub unsafe fn at(address: u64, kind: IdType, num_valid: u64) -> Self {
        Ids { address, kind, num_valid }
    }

    /// The same number of ids of the same type at another address.
    pub(crate) fn with_address(&self, address: u64) -> Self {
        Ids { address, ..*self }
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

/// An expert id or a slot id.
pub(crate) trait Id: Copy + Default + 'static {
    /// The id, or `num_experts` where it is out of range.
    fn bin(self, num_experts: usize) -> usize;

    /// Whether the id is -1, which names nothing on purpose.
    fn is_none(self) -> bool;

    /// Converts a slot to an id.
    fn of_slot(slot: u32) -> Self;
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
}
