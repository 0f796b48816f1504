//! The routing kernels: what they are given, as kernels/route.cuh has it, and the ids that the host routes itself.

use super::count::{CellType, Count, Id, IdType, Ids, valid_tokens};
use super::{Memory, Part, cuda};
use crate::error::{Error, Result};

/// Threads of a block, as in the kernels: by position, and by token hash.
const THREADS: u32 = 512;
const HASH_THREADS: u32 = 128;

/// Ids of a block, of which the round robin's definition speaks.
pub(crate) const ROUTE_BLOCK: usize = 1024;

/// Blocks that count and deal a batch by least load at most.
pub(crate) const LEVEL_BLOCKS: usize = 64;

/// How often least loaded goes over all replicated experts at most.
pub(crate) const LEVEL_SWEEPS: usize = 4;

/// So many ranks can be a warp's lanes, for which there are tables of their own.
pub(crate) const LEVEL_LANES: usize = 32;

/// `EPLB_NO_GROUP` of the kernels.
pub(crate) const NO_GROUP: u32 = u32::MAX;

/// `EPLB_NO_ROOM` of the kernels.
const NO_ROOM: u32 = u32::MAX;

/// Shared memory that every device has without asking, less what the kernels take anyway.
const SHARED_BYTES: usize = 48 * 1024 - 4 * ROUTE_BLOCK - 256;

/// Which replica of an expert serves a token; see `eplb_route` in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// TensorRT-LLM's: an expert's replicas in turn within each block of 1024 ids.
    RoundRobin,
    /// vLLM's: by a hash of the token's row.
    TokenHash,
    /// Own rank first, then own node, each replica with its fair share.
    Nearest,
    /// So that the totals of the ranks become as level as they can.
    LeastLoaded,
}

/// Ids to be routed, in memory of the host's, and where their slots go.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    ids: Ids,
    slots: u64,
    num_tokens: u32,
    experts_per_token: u32,
}

impl Routing {
    /// `num_tokens` tokens of `experts_per_token` ids; `slots` is the address of as many of the ids' type.
    ///
    /// # Safety
    /// As for [`Ids::at`]; whenever work that was given this value runs, `slots` is memory of the device's that nobody else uses.
    pub unsafe fn at(ids: Ids, slots: u64, num_tokens: u32, experts_per_token: u32) -> Result<Self> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        let num_ids = u64::from(num_tokens) * u64::from(experts_per_token);
        if i32::try_from(num_ids).is_err() {
            return refuse(format!(
                "{num_tokens} tokens of {experts_per_token} ids are more than the {} ids of a call: route them in parts",
                i32::MAX
            ));
        }
        if slots == 0 && num_ids != 0 {
            return refuse("slot_ids is NULL".to_owned());
        }
        if !slots.is_multiple_of(ids.kind().size() as u64) {
            return refuse(format!("slot_ids is not aligned to its {} bytes", ids.kind().size()));
        }
        let bytes = num_ids * ids.kind().size() as u64;
        if slots != ids.address() && slots.abs_diff(ids.address()) < bytes {
            return refuse("slot_ids overlaps expert_ids: they may be the same array, or two".to_owned());
        }
        Ok(Routing { ids, slots, num_tokens, experts_per_token })
    }

    /// The ids.
    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    /// The slots, to be counted in place of the ids once they are there.
    pub(crate) fn slots(&self) -> Ids {
        self.ids.elsewhere(self.slots)
    }

    /// How many tokens there are, padding included.
    pub(crate) fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Hands the ids, copied to where the slots go, to `job`, which turns them into slots.
    ///
    /// # Safety
    /// The addresses are of host memory.
    pub(crate) unsafe fn on_host(&self, job: impl Job) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.ids.kind() {
                IdType::Int32 => self.run::<i32>(job),
                IdType::Int64 => self.run::<i64>(job),
            }
        }
    }

    /// # Safety
    /// As for [`Routing::on_host`], and the ids are of this type.
    unsafe fn run<I: Id>(&self, job: impl Job) {
        let choices = self.experts_per_token as usize;
        let num_ids = self.num_tokens as usize * choices;
        if num_ids == 0 {
            return;
        }
        // SAFETY: as many ids and slots by the promise of this value's maker, the same or apart.
        let (slots, valid) = unsafe {
            if self.slots != self.ids.address() {
                (self.slots as *mut I).copy_from_nonoverlapping(self.ids.address() as *const I, num_ids);
            }
            let slots = std::slice::from_raw_parts_mut(self.slots as *mut I, num_ids);
            (slots, valid_tokens(self.ids.num_valid(), self.num_tokens))
        };
        job.run(slots, valid as usize * choices, choices);
    }
}

/// What the host does with ids of either type.
pub(crate) trait Job {
    /// Turns ids, of which `valid` are of valid tokens, into slots.
    fn run<I: Id>(self, ids: &mut [I], valid: usize, experts_per_token: usize);
}

/// All ranks' counts of a layer, `[num_ranks][num_experts]`, in memory of the host's.
#[derive(Debug, Clone, Copy)]
pub struct RankCounts {
    address: u64,
    kind: IdType,
}

impl RankCounts {
    /// # Safety
    /// Whenever work that was given this value runs, `address` is memory of the device's, aligned, of as many counts.
    pub unsafe fn at(address: u64, kind: IdType) -> Self {
        RankCounts { address, kind }
    }

    /// Where they are.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The count at an index, clamped to what an int32 can say.
    ///
    /// # Safety
    /// The address is of host memory, and of more counts than `index`.
    pub(crate) unsafe fn get(&self, index: usize) -> u64 {
        // SAFETY: the caller's promise.
        let count = unsafe {
            match self.kind {
                IdType::Int32 => i64::from(*(self.address as *const i32).add(index)),
                IdType::Int64 => *(self.address as *const i64).add(index),
            }
        };
        count.clamp(0, i64::from(i32::MAX)) as u64
    }
}

/// A layer's tables in a device's memory, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tables {
    pub replica_count: Part,
    pub replica_start: Part,
    pub replica_slots: Part,
    /// Of [`Rule::Nearest`].
    pub shares: Option<Part>,
    /// Of [`Rule::LeastLoaded`].
    pub level: Option<LevelTables>,
}

/// What [`Rule::LeastLoaded`] needs of a layer beside the tables: what stays, one part behind the other, and its workspace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LevelTables {
    pub group_rank: Part,
    pub group_place: Part,
    pub group_first: Part,
    pub group_size: Part,
    pub experts: Part,
    pub group_start: Part,
    pub step_start: Part,
    /// Nothing where there are more ranks than [`LEVEL_LANES`], and so is the next.
    pub group_ranks: Part,
    pub rank_groups: Part,
    pub memory: Part,
    pub ends: Part,
    pub block_counts: Part,
    pub blocks_done: Part,
}

/// `eplb_level_arguments` of kernels/route.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct LevelArguments {
    memory: u64,
    ends: u64,
    block_counts: u64,
    blocks_done: u64,
    rank_counts: u64,
    rank_counts_are_64_bits: u32,
    num_replicated: u32,
    num_groups: u32,
    num_steps: u32,
    num_ranks: u32,
    slots_per_rank: u32,
    rank: u32,
    ids_per_block: u32,
    phase: u32,
    group_rank_at: u32,
    group_place_at: u32,
    group_first_at: u32,
    group_size_at: u32,
    experts_at: u32,
    group_start_at: u32,
    step_start_at: u32,
    group_ranks_at: u32,
    rank_groups_at: u32,
    shared_memory_at: u32,
    shared_counts_at: u32,
}

/// `eplb_route_arguments` of kernels/route.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    expert_ids: u64,
    slot_ids: u64,
    num_valid: u64,
    tables: u64,
    num_tokens: u32,
    experts_per_token: u32,
    num_experts: u32,
    num_slots: u32,
    start_at: u32,
    slots_at: u32,
    table_words: u32,
    shared_tables_at: u32,
    shares_at: u32,
    offset: u32,
    shared_rows_at: u32,
    shared_bins_at: u32,
    row: u64,
    cells: u64,
    row_stride: u64,
    totals: u64,
    num_cells: u32,
    cells_are_64_bits: u32,
    counts_slots: u32,
    unused: u32,
    level: LevelArguments,
}

const _: () =
    assert!(size_of::<LevelArguments>() == 120 && size_of::<Arguments>() == 248, "see kernels/route.cuh");

/// Words from the beginning of one part of a memory to that of another.
fn words_between(from: Part, to: Part) -> u32 {
    ((to.start - from.start) / 4) as u32
}

/// Words from the beginning of one part to the end of another, rounded up to what is copied at once.
fn words_through(from: Part, to: Part) -> u32 {
    (words_between(from, to) + (to.bytes / 4) as u32).next_multiple_of(4)
}

impl LevelArguments {
    /// The tables of every rule begin at `first`.
    fn new(level: &LevelTables, first: Part, sizes: Sizes, memory: &Memory) -> Self {
        let at = |part| words_between(first, part);
        let words = |part: Part| (part.bytes / 4) as u32;
        LevelArguments {
            memory: memory.at(level.memory),
            ends: memory.at(level.ends),
            block_counts: memory.at(level.block_counts),
            blocks_done: memory.at(level.blocks_done),
            num_replicated: words(level.experts),
            num_groups: words(level.group_rank),
            num_steps: words(level.step_start) - 1,
            num_ranks: sizes.num_ranks,
            slots_per_rank: sizes.num_slots / sizes.num_ranks,
            rank: sizes.rank,
            group_rank_at: at(level.group_rank),
            group_place_at: at(level.group_place),
            group_first_at: at(level.group_first),
            group_size_at: at(level.group_size),
            experts_at: at(level.experts),
            group_start_at: at(level.group_start),
            step_start_at: at(level.step_start),
            group_ranks_at: at(level.group_ranks),
            rank_groups_at: at(level.rank_groups),
            ..LevelArguments::default()
        }
    }

    /// Words of `level_memory` in kernels/level.cuh but for its tables.
    fn memory_words(&self, num_experts: u32) -> usize {
        level_memory_words(num_experts as usize, self.num_ranks as usize, self.num_groups as usize)
    }
}

/// Words that dealing takes: `level_memory` of kernels/level.cuh.
pub(crate) fn level_memory_words(experts: usize, ranks: usize, groups: usize) -> usize {
    2 * (ranks + 3 * groups + experts) + groups + LEVEL_SWEEPS + 1
}

/// One layer's routing on a CUDA device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    rule: Rule,
    kind: IdType,
    arguments: Arguments,
    /// Words of all tables; but for planning by [`Rule::LeastLoaded`] those of `arguments` are enough.
    all_table_words: u32,
}

/// The shared memory of a launch.
#[derive(Debug)]
struct Shared {
    words: usize,
}

impl Shared {
    /// Where a part of as many words begins, or [`NO_ROOM`].
    fn take(&mut self, words: usize) -> u32 {
        let end = self.words + words.next_multiple_of(4);
        if end * 4 > SHARED_BYTES {
            return NO_ROOM;
        }
        std::mem::replace(&mut self.words, end) as u32
    }

    fn bytes(&self) -> u32 {
        self.words as u32 * 4
    }
}

/// The sizes of a placement and the place of a rank in it, as the kernels need them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub num_experts: u32,
    pub num_slots: u32,
    pub num_ranks: u32,
    pub rank: u32,
    /// Added to a block's index.
    pub offset: u32,
}

impl Route {
    /// Routes by the tables in `memory`.
    pub fn new(rule: Rule, routing: &Routing, sizes: Sizes, memory: &Memory, tables: &Tables) -> Self {
        let at = |part| words_between(tables.replica_count, part);
        let last = tables.shares.unwrap_or(tables.replica_slots);
        let level = tables.level.as_ref();
        let very_last = level.map_or(last, |level| level.rank_groups);
        let level = level.map(|level| LevelArguments::new(level, tables.replica_count, sizes, memory));
        let arguments = Arguments {
            expert_ids: routing.ids.address(),
            slot_ids: routing.slots,
            num_valid: routing.ids.num_valid(),
            tables: memory.at(tables.replica_count),
            num_tokens: routing.num_tokens,
            experts_per_token: routing.experts_per_token,
            num_experts: sizes.num_experts,
            num_slots: sizes.num_slots,
            start_at: at(tables.replica_start),
            slots_at: at(tables.replica_slots),
            table_words: words_through(tables.replica_count, last),
            shared_tables_at: NO_ROOM,
            shares_at: at(last),
            offset: sizes.offset,
            shared_rows_at: NO_ROOM,
            shared_bins_at: NO_ROOM,
            row: 0,
            cells: 0,
            row_stride: 0,
            totals: 0,
            num_cells: 0,
            cells_are_64_bits: 0,
            counts_slots: 0,
            unused: 0,
            level: level.unwrap_or_default(),
        };
        let all_table_words = words_through(tables.replica_count, very_last);
        Route { rule, kind: routing.ids.kind(), arguments, all_table_words }
    }

    /// Levels the totals of all ranks.
    pub fn with_rank_counts(mut self, counts: &RankCounts) -> Self {
        self.arguments.level.rank_counts = counts.address;
        self.arguments.level.rank_counts_are_64_bits = u32::from(counts.kind == IdType::Int64);
        self
    }

    /// Counts in the same pass what `count` would, experts or slots.
    pub fn with_count(mut self, count: &Count, counts_slots: bool) -> Self {
        let counted = &count.arguments;
        let arguments = &mut self.arguments;
        arguments.row = counted.row;
        arguments.cells = counted.cells;
        arguments.row_stride = counted.row_stride;
        arguments.totals = counted.totals;
        arguments.num_cells = counted.num_experts;
        arguments.cells_are_64_bits = u32::from(count.cells == CellType::U64);
        arguments.counts_slots = u32::from(counts_slots);
        self
    }

    /// Hands each launch of a kernel to `launch`, in order.
    pub(super) fn launches(&self, launch: impl Fn(&cuda::Launch<'_>) -> Result<()>) -> Result<()> {
        let mut arguments = self.arguments;
        let num_ids = u64::from(arguments.num_tokens) * u64::from(arguments.experts_per_token);
        if num_ids == 0 {
            return Ok(());
        }
        let shared = self.share(&mut arguments);
        let threads = if self.rule == Rule::TokenHash { HASH_THREADS } else { THREADS };

        let block = ROUTE_BLOCK as u64;
        let per_block = match self.rule {
            Rule::RoundRobin | Rule::Nearest => block,
            Rule::TokenHash => u64::from(threads) * (16 / self.kind.size()) as u64,
            // For twice a block's ids one block takes less time than another launch.
            Rule::LeastLoaded if num_ids <= 2 * block => 2 * block,
            Rule::LeastLoaded => num_ids.div_ceil(LEVEL_BLOCKS as u64).next_multiple_of(block),
        };
        arguments.level.ids_per_block = per_block as u32;
        let blocks = num_ids.div_ceil(per_block) as u32;
        let phases = if self.rule == Rule::LeastLoaded && blocks > 1 { 2 } else { 1 };
        for phase in 0..phases {
            arguments.level.phase = phase;
            if phase == 1 {
                arguments.table_words = self.arguments.table_words;
            }
            launch(&cuda::Launch {
                kernel: self.kernel(),
                blocks,
                threads,
                shared_bytes: shared.bytes(),
                arguments: (&raw const arguments).cast(),
                _lent: std::marker::PhantomData,
            })?;
        }
        Ok(())
    }

    /// Gives shared memory to what fits, what gains most by it first.
    fn share(&self, arguments: &mut Arguments) -> Shared {
        let mut shared = Shared { words: 0 };
        let num_experts = arguments.num_experts as usize;
        if self.rule != Rule::TokenHash {
            // A byte an expert for each warp.
            arguments.shared_rows_at = shared.take(num_experts * (THREADS as usize / 32) / 4);
        }
        arguments.shared_tables_at = shared.take(self.all_table_words as usize);
        if arguments.shared_tables_at == NO_ROOM {
            arguments.shared_tables_at = shared.take(arguments.table_words as usize);
        } else {
            arguments.table_words = self.all_table_words;
        }
        if arguments.row != 0 {
            arguments.shared_bins_at = shared.take(arguments.num_cells as usize + 1);
        }
        if self.rule == Rule::LeastLoaded {
            let words = num_experts.next_multiple_of(4) + (arguments.num_slots as usize).next_multiple_of(4);
            let memory = arguments.level.memory_words(arguments.num_experts);
            let level = &mut arguments.level;
            level.shared_counts_at = shared.take(words);
            level.shared_memory_at = shared.take(memory);
        }
        shared
    }

    fn kernel(&self) -> cuda::Kernel {
        match (self.rule, self.kind) {
            (Rule::RoundRobin, IdType::Int32) => cuda::Kernel::RoundRobinI32,
            (Rule::RoundRobin, IdType::Int64) => cuda::Kernel::RoundRobinI64,
            (Rule::TokenHash, IdType::Int32) => cuda::Kernel::TokenHashI32,
            (Rule::TokenHash, IdType::Int64) => cuda::Kernel::TokenHashI64,
            (Rule::Nearest, IdType::Int32) => cuda::Kernel::NearestI32,
            (Rule::Nearest, IdType::Int64) => cuda::Kernel::NearestI64,
            (Rule::LeastLoaded, IdType::Int32) => cuda::Kernel::LeastLoadedI32,
            (Rule::LeastLoaded, IdType::Int64) => cuda::Kernel::LeastLoadedI64,
        }
    }
}
