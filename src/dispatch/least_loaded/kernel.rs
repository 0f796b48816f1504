//! Least loaded on a CUDA device: its tables and workspace, its arguments and its launches.

use super::edges::Edge;
use super::plan::SplitPlan;
use crate::device::{Kernel, Memory, Part};
use crate::dispatch::image::Image;
use crate::dispatch::kernel::{Call, Kernels, words_between};
use crate::dispatch::layout::Space;
use crate::dispatch::rule::BLOCK_IDS;
use crate::error::Result;
use crate::placement::Shape;

/// The rule's kernels, in kernels/least_loaded.cuh.
const KERNELS: Kernels = Kernels {
    int32: Kernel::LeastLoadedI32,
    int64: Kernel::LeastLoadedI64,
    general: Kernel::LeastLoadedGeneral,
};

/// The most blocks that count a batch: `EPLB_SPLIT_BLOCKS` of the kernels.
const MAX_BLOCKS: usize = 64;

/// Words of an edge.
const EDGE: usize = 4;

/// Edges that a warp takes at once: the most of a row.
const ROW: usize = 32;

/// Words of the table of sizes: the numbers of holders, rows and sweeps.
const SIZES: usize = 3;

/// Where the rule's tables of a layer are, one behind the other, and its workspace. They depend on the shape alone.
#[derive(Debug, Clone, Copy)]
pub struct SplitParts {
    /// The first of the tables.
    edges: Part,
    row_start: Part,
    holder_rank: Part,
    holder_first: Part,
    holder_size: Part,
    holder_place: Part,
    experts: Part,
    holder_start: Part,
    /// The last of the tables.
    pub sizes: Part,
    memory: Part,
    ends: Part,
    block_counts: Part,
    blocks_done: Part,
}

impl SplitParts {
    /// Space for the tables of any placement of a shape.
    pub fn of(shape: Shape, space: &mut Space) -> Result<Self> {
        let (num_experts, num_slots) = (shape.num_experts(), shape.num_slots());
        // All slots of a replicated expert but one are spare.
        let spare = num_slots - num_experts;
        let (experts, holders) = (spare.min(num_experts), num_slots.min(spare * 2));
        // An expert on two ranks has one edge, and one on more has as many as ranks.
        let edges = spare + spare / 2;
        Ok(SplitParts {
            edges: space.words(edges, EDGE)?,
            row_start: space.words(edges + 1, 1)?,
            holder_rank: space.words(holders, 1)?,
            holder_first: space.words(holders, 1)?,
            holder_size: space.words(holders, 1)?,
            holder_place: space.words(holders, 1)?,
            experts: space.words(experts, 1)?,
            holder_start: space.words(experts + 1, 1)?,
            sizes: space.words(SIZES, 1)?,
            memory: space.words(memory_words(num_experts, shape.num_ranks(), holders), 1)?,
            ends: space.words(num_slots, 1)?,
            block_counts: space.words(num_experts, MAX_BLOCKS)?,
            blocks_done: space.words(1, 1)?,
        })
    }

    /// Writes the tables of a plan.
    pub fn write(&self, plan: &SplitPlan, image: &mut Image) {
        // The kernel adds bytes.
        let words = |edge: &Edge| [edge.units, edge.loads].concat().into_iter().map(|index| index * 4);
        let edges: Vec<u32> = plan.steps.edges.iter().flat_map(words).collect();
        let places = |ends: (u32, &[u32])| std::iter::repeat_n(ends.0, (ends.1[1] - ends.1[0]) as usize);
        let holder_place: Vec<u32> = (0..).zip(plan.holder_start.windows(2)).flat_map(places).collect();
        let row_start = row_starts(plan);
        let sizes = [plan.holders.len() as u32, row_start.len() as u32 - 1, plan.sweeps];
        image.write(self.edges, edges.into_iter());
        image.write(self.row_start, row_start.into_iter());
        image.write(self.holder_rank, plan.holders.iter().map(|holder| holder.rank));
        image.write(self.holder_first, plan.holders.iter().map(|holder| holder.first));
        image.write(self.holder_size, plan.holders.iter().map(|holder| holder.size));
        image.write(self.holder_place, holder_place.into_iter());
        image.write(self.experts, plan.experts.iter().copied());
        image.write(self.holder_start, plan.holder_start.iter().copied());
        image.write(self.sizes, sizes.into_iter());
    }
}

/// Where the rows begin, and at last the number of edges. A step of more edges than a row's has several.
fn row_starts(plan: &SplitPlan) -> Vec<u32> {
    let steps = plan.steps.starts.windows(2);
    steps.flat_map(|ends| (ends[0]..ends[1]).step_by(ROW)).chain([plan.steps.edges.len() as u32]).collect()
}

/// Words of `split_memory` in kernels/split.cuh, without the tables.
fn memory_words(experts: usize, ranks: usize, holders: usize) -> usize {
    5 * experts + 4 + ranks + holders
}

/// `eplb_split_arguments` of kernels/route_arguments.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SplitArguments {
    memory: u64,
    ends: u64,
    block_counts: u64,
    blocks_done: u64,
    /// The address of the counts of all ranks, or 0.
    pub rank_counts: u64,
    /// 1 for int64, 0 for int32.
    pub rank_counts_are_64_bits: u32,
    num_holders: u32,
    num_ranks: u32,
    slots_per_rank: u32,
    rank: u32,
    ids_per_block: u32,
    phase: u32,
    edges_at: u32,
    row_start_at: u32,
    holder_rank_at: u32,
    holder_first_at: u32,
    holder_size_at: u32,
    holder_place_at: u32,
    experts_at: u32,
    holder_start_at: u32,
    sizes_at: u32,
    shared_memory_at: u32,
    shared_counts_at: u32,
}

impl SplitArguments {
    /// The arguments that are the same in each call. `first` is the first part of all tables.
    pub fn new(parts: &SplitParts, first: Part, shape: Shape, rank: usize, memory: &Memory) -> Self {
        let at = |part| words_between(first, part);
        SplitArguments {
            memory: memory.at(parts.memory),
            ends: memory.at(parts.ends),
            block_counts: memory.at(parts.block_counts),
            blocks_done: memory.at(parts.blocks_done),
            num_holders: (parts.holder_rank.bytes / 4) as u32,
            num_ranks: shape.num_ranks() as u32,
            slots_per_rank: (shape.num_slots() / shape.num_ranks()) as u32,
            rank: rank as u32,
            edges_at: at(parts.edges),
            row_start_at: at(parts.row_start),
            holder_rank_at: at(parts.holder_rank),
            holder_first_at: at(parts.holder_first),
            holder_size_at: at(parts.holder_size),
            holder_place_at: at(parts.holder_place),
            experts_at: at(parts.experts),
            holder_start_at: at(parts.holder_start),
            sizes_at: at(parts.sizes),
            ..SplitArguments::default()
        }
    }
}

/// Launches the rule's kernel: once where one block does all, otherwise once to compute quotas and once to assign slots. The
/// general kernel computes no quotas, so another is launched in between.
pub fn launch(mut call: Call<'_>) -> Result<()> {
    call.place_rows();
    call.place_tables();
    call.place_bins();
    let (num_experts, num_slots) = (call.arguments.num_experts as usize, call.arguments.num_slots as usize);
    let split = call.arguments.split;
    let memory = memory_words(num_experts, split.num_ranks as usize, split.num_holders as usize);
    call.arguments.split.shared_counts_at =
        call.place(num_experts.next_multiple_of(4) + num_slots.next_multiple_of(4));
    call.arguments.split.shared_memory_at = call.place(memory);

    let (num_ids, block) = (call.num_ids(), BLOCK_IDS as u64);
    // One block takes less time for twice a block's ids than a second launch.
    let per_block = match num_ids <= 2 * block {
        true => 2 * block,
        false => num_ids.div_ceil(MAX_BLOCKS as u64).next_multiple_of(block),
    };
    call.arguments.split.ids_per_block = per_block as u32;
    let blocks = num_ids.div_ceil(per_block);
    call.launch_with_positions(KERNELS, blocks)?;
    if call.is_general() {
        call.arguments.split.phase = 2;
        call.launch_without_ids(KERNELS, blocks)?;
    }
    if blocks > 1 || call.is_general() {
        call.arguments.split.phase = 1;
        call.arguments.table_words = call.common_table_words();
        call.launch_with_positions(KERNELS, blocks)?;
    }
    Ok(())
}
