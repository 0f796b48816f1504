//! Routing on a CUDA device: the arguments of the kernels, their shared memory, and their launch.

use super::layout::TableParts;
use super::least_loaded::{self, SplitArguments};
use super::routing::{RankCounts, Routing};
use super::rule::{BLOCK_IDS, Rule};
use super::{DispatchConfig, nearest, round_robin, token_hash};
use crate::device::{Cuda, Grid, IdType, Kernel, Memory, Part, Stream};
use crate::error::Result;
use crate::placement::Shape;
use crate::stats::{BatchCount, CellType, OTHER_BINS};

/// Threads of a block by the rules that use the position of an id: `EPLB_ROUTE_THREADS` of the kernels.
const THREADS: u32 = 512;

/// `EPLB_NO_ROOM` of the kernels.
const NO_ROOM: u32 = u32::MAX;

/// Shared memory that every device has without opting in, less the kernels' static shared memory.
const SHARED_BYTES: usize = 48 * 1024 - 4 * BLOCK_IDS - 256;

/// `eplb_route_arguments` of kernels/route_arguments.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments {
    expert_ids: u64,
    slot_ids: u64,
    num_valid: u64,
    tables: u64,
    num_tokens: u32,
    experts_per_token: u32,
    pub num_experts: u32,
    invalid_slot: i32,
    start_at: u32,
    slots_at: u32,
    pub table_words: u32,
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
    pub num_slots: u32,
    pub split: SplitArguments,
    layout: LayoutArguments,
}

/// `eplb_layout_arguments` of kernels/route_arguments.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct LayoutArguments {
    shared_slots: u64,
    num_shared: u32,
    ids_stride: u32,
    slots_stride: u32,
    ids_are_64_bits: u32,
    slots_are_64_bits: u32,
    num_counted: u32,
}

const _: () = assert!(
    size_of::<SplitArguments>() == 112 && size_of::<Arguments>() == 272,
    "see kernels/route_arguments.cuh"
);

/// Words from the start of one part of a memory to the start of another.
pub(super) fn words_between(from: Part, to: Part) -> u32 {
    ((to.start - from.start) / 4) as u32
}

/// Words from the start of one part to the end of another, rounded up to what is copied at once.
fn words_through(from: Part, to: Part) -> u32 {
    (words_between(from, to) + (to.bytes / 4) as u32).next_multiple_of(4)
}

/// A layer's tables on a CUDA device, and the rule that routes by them.
#[derive(Debug)]
pub(super) struct KernelRouter {
    cuda: Cuda,
    rule: Rule,
    /// The arguments that are the same in each call.
    arguments: Arguments,
    /// Words of all tables. `arguments.table_words` are those of every launch but the one that computes quotas.
    all_table_words: u32,
}

impl KernelRouter {
    /// Routes by the tables of a layer in `memory`. `shared` has the slots of the shared experts.
    pub fn new(
        cuda: &Cuda,
        shape: Shape,
        config: &DispatchConfig,
        memory: &Memory,
        (parts, shared): (&TableParts, Part),
    ) -> Self {
        let first = parts.replica_count;
        let last = parts.shares.unwrap_or(parts.replica_slots);
        let split = parts.split.as_ref();
        let arguments = Arguments {
            expert_ids: 0,
            slot_ids: 0,
            num_valid: 0,
            tables: memory.at(first),
            num_tokens: 0,
            experts_per_token: 0,
            num_experts: shape.num_experts() as u32,
            invalid_slot: config.invalid_slot(shape),
            start_at: words_between(first, parts.replica_start),
            slots_at: words_between(first, parts.replica_slots),
            table_words: words_through(first, last),
            shared_tables_at: NO_ROOM,
            shares_at: words_between(first, last),
            offset: config.block_offset(),
            shared_rows_at: NO_ROOM,
            shared_bins_at: NO_ROOM,
            row: 0,
            cells: 0,
            row_stride: 0,
            totals: 0,
            num_cells: 0,
            cells_are_64_bits: 0,
            counts_slots: 0,
            num_slots: shape.num_slots() as u32,
            split: split.map_or_else(SplitArguments::default, |split| {
                SplitArguments::new(split, first, shape, config.rank, memory)
            }),
            layout: LayoutArguments {
                shared_slots: memory.at(shared),
                num_shared: config.shared_slots.len() as u32,
                ..LayoutArguments::default()
            },
        };
        let all_table_words = words_through(first, split.map_or(last, |split| split.sizes));
        KernelRouter { cuda: cuda.clone(), rule: config.rule, arguments, all_table_words }
    }

    /// Hot: routes a batch in the order of `stream`. `count` is counted in the same pass, as experts or as slots.
    pub fn route(
        &self,
        routing: &Routing,
        rank_counts: Option<&RankCounts>,
        count: Option<(&BatchCount, bool)>,
        stream: Stream,
    ) -> Result<()> {
        if routing.num_ids() == 0 {
            return Ok(());
        }
        let mut arguments = self.arguments;
        arguments.expert_ids = routing.ids().address();
        arguments.slot_ids = routing.slots().address();
        arguments.num_valid = routing.ids().num_valid();
        arguments.num_tokens = routing.num_tokens();
        arguments.experts_per_token = routing.experts_per_token();
        if let Some(counts) = rank_counts {
            arguments.split.rank_counts = counts.address();
            arguments.split.rank_counts_are_64_bits = u32::from(counts.kind() == IdType::Int64);
        }
        if let Some((count, counts_slots)) = count {
            let target = count.target();
            arguments.row = target.row;
            arguments.cells = target.cells;
            arguments.row_stride = target.row_stride;
            arguments.totals = target.totals;
            arguments.num_cells = target.num_cells;
            arguments.cells_are_64_bits = u32::from(target.cell_type == CellType::U64);
            arguments.counts_slots = u32::from(counts_slots);
        }
        let layout = &mut arguments.layout;
        let is_plain = routing.is_plain() && layout.num_shared == 0;
        if !is_plain {
            layout.ids_stride = routing.ids().stride(arguments.experts_per_token);
            layout.slots_stride = routing.slots().stride(arguments.experts_per_token);
            layout.ids_are_64_bits = u32::from(routing.ids().kind() == IdType::Int64);
            layout.slots_are_64_bits = u32::from(routing.slots().kind() == IdType::Int64);
        }
        let plain_type = is_plain.then_some(routing.ids().kind());
        let call = Call { router: self, plain_type, arguments, shared_words: 0, stream };
        match self.rule {
            Rule::RoundRobin => round_robin::launch(call),
            Rule::TokenHash => token_hash::launch(call),
            Rule::Nearest => nearest::launch(call),
            Rule::LeastLoaded => least_loaded::launch(call),
        }
    }
}

/// A rule's kernels, by the layout of ids and slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    /// For 32-bit ids without gaps, and slots like them.
    pub int32: Kernel,
    /// For such 64-bit ids.
    pub int64: Kernel,
    /// For any type and stride, and shared experts.
    pub general: Kernel,
}

/// One call of a rule's kernels. Parts are placed in shared memory first, most useful part first.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    router: &'a KernelRouter,
    /// The type of ids and slots. `None`: they need the general kernel.
    plain_type: Option<IdType>,
    /// The arguments of the next launch.
    pub arguments: Arguments,
    shared_words: usize,
    stream: Stream,
}

impl Call<'_> {
    /// The ids of all tokens, padding included.
    pub fn num_ids(&self) -> u64 {
        u64::from(self.arguments.num_tokens) * u64::from(self.arguments.experts_per_token)
    }

    /// Ids that a thread takes at once: as many as fit one load.
    pub fn ids_at_once(&self) -> usize {
        16 / self.plain_type.unwrap_or(IdType::Int32).size()
    }

    /// Whether ids and slots need the general kernel.
    pub fn is_general(&self) -> bool {
        self.plain_type.is_none()
    }

    /// Words of the tables that every rule has.
    pub fn common_table_words(&self) -> u32 {
        self.router.arguments.table_words
    }

    /// Places `words` words in shared memory. Returns the first of them, or [`NO_ROOM`].
    pub fn place(&mut self, words: usize) -> u32 {
        let end = self.shared_words + words.next_multiple_of(4);
        if end * 4 > SHARED_BYTES {
            return NO_ROOM;
        }
        std::mem::replace(&mut self.shared_words, end) as u32
    }

    /// Places one byte for each expert and warp. The kernels find the positions of ids with them.
    pub fn place_rows(&mut self) {
        let bytes = self.arguments.num_experts as usize * (THREADS as usize / 32);
        self.arguments.shared_rows_at = self.place(bytes / 4);
    }

    /// Places a copy of all tables, or of the common ones where not all fit.
    pub fn place_tables(&mut self) {
        let all = self.router.all_table_words;
        self.arguments.shared_tables_at = self.place(all as usize);
        if self.arguments.shared_tables_at == NO_ROOM {
            self.arguments.shared_tables_at = self.place(self.arguments.table_words as usize);
        } else {
            self.arguments.table_words = all;
        }
    }

    /// Places the bins for counting.
    pub fn place_bins(&mut self) {
        if self.arguments.row != 0 {
            self.arguments.shared_bins_at = self.place(self.arguments.num_cells as usize + OTHER_BINS);
        }
    }

    /// Launches one of the kernels with the arguments as they are.
    pub fn launch(&self, kernels: Kernels, blocks: u64, threads: u32) -> Result<()> {
        let kernel = match self.plain_type {
            Some(IdType::Int32) => kernels.int32,
            Some(IdType::Int64) => kernels.int64,
            None => kernels.general,
        };
        let grid = Grid { blocks: blocks as u32, threads, shared_bytes: self.shared_words as u32 * 4 };
        // SAFETY: the routing kernels take these arguments. Ids, slots, counts and tables are on the device, by the promises of
        // their makers.
        unsafe { self.router.cuda.launch(kernel, grid, &self.arguments, self.stream) }
    }

    /// Launches one block of a kernel for ids without gaps, and with none of them, after `num_counted` blocks have counted.
    pub fn launch_without_ids(&self, kernels: Kernels, num_counted: u64) -> Result<()> {
        let mut call = Call { plain_type: Some(IdType::Int32), ..*self };
        call.arguments.num_tokens = 0;
        call.arguments.layout.num_counted = num_counted as u32;
        call.launch_with_positions(kernels, 1)
    }

    /// Launches a kernel that uses the position of an id in its block of [`BLOCK_IDS`] ids.
    pub fn launch_by_block(mut self, kernels: Kernels) -> Result<()> {
        self.place_rows();
        self.place_tables();
        self.place_bins();
        self.launch_with_positions(kernels, self.num_ids().div_ceil(BLOCK_IDS as u64))
    }

    /// Launches `blocks` blocks of a kernel that finds the positions of ids.
    pub fn launch_with_positions(&self, kernels: Kernels, blocks: u64) -> Result<()> {
        self.launch(kernels, blocks, THREADS)
    }
}
