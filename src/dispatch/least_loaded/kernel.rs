//! Least loaded on a CUDA device: its tables and workspace, its arguments and its launches.

use super::plan::{LANES, SWEEPS, SplitPlan};
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

/// Where the rule's tables of a layer are, one behind the other, and its workspace.
#[derive(Debug, Clone, Copy)]
pub struct SplitParts {
    holder_rank: Part,
    holder_place: Part,
    holder_first: Part,
    holder_size: Part,
    experts: Part,
    holder_start: Part,
    step_start: Part,
    /// Empty where there are more than [`LANES`] ranks, as the next part.
    holder_ranks: Part,
    /// The last of the tables.
    pub rank_holders: Part,
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
        let lanes = if shape.num_ranks() <= LANES { shape.num_ranks() } else { 0 };
        Ok(SplitParts {
            holder_rank: space.words(holders, 1)?,
            holder_place: space.words(holders, 1)?,
            holder_first: space.words(holders, 1)?,
            holder_size: space.words(holders, 1)?,
            experts: space.words(experts, 1)?,
            holder_start: space.words(experts + 1, 1)?,
            step_start: space.words(experts + 1, 1)?,
            holder_ranks: space.words(holders, lanes.min(1))?,
            rank_holders: space.words(experts, lanes)?,
            memory: space.words(memory_words(num_experts, shape.num_ranks(), holders), 1)?,
            ends: space.words(num_slots, 1)?,
            block_counts: space.words(num_experts, MAX_BLOCKS)?,
            blocks_done: space.words(1, 1)?,
        })
    }

    /// Writes the tables of a plan. Returns the parts that they take.
    pub fn write(self, plan: &SplitPlan, num_ranks: usize, image: &mut Image) -> Self {
        let SplitPlan { experts, holder_start, holders, step_start } = plan;
        let places: Vec<u32> = (0..)
            .zip(holder_start.windows(2))
            .flat_map(|(place, ends)| (ends[0]..ends[1]).map(move |_| place))
            .collect();
        let lanes = plan.lanes(num_ranks);
        SplitParts {
            holder_rank: image.write(self.holder_rank, holders.iter().map(|holder| holder.rank)),
            holder_place: image.write(self.holder_place, places.into_iter()),
            holder_first: image.write(self.holder_first, holders.iter().map(|holder| holder.first)),
            holder_size: image.write(self.holder_size, holders.iter().map(|holder| holder.size)),
            experts: image.write(self.experts, experts.iter().copied()),
            holder_start: image.write(self.holder_start, holder_start.iter().copied()),
            step_start: image.write(self.step_start, step_start.iter().copied()),
            holder_ranks: image.write(self.holder_ranks, lanes.holder_ranks.into_iter()),
            rank_holders: image.write(self.rank_holders, lanes.rank_holders.into_iter()),
            ..self
        }
    }
}

/// Words of `split_memory` in kernels/split.cuh, without the tables.
fn memory_words(experts: usize, ranks: usize, holders: usize) -> usize {
    2 * (ranks + 3 * holders + experts) + holders + SWEEPS + 1
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
    num_replicated: u32,
    num_holders: u32,
    num_steps: u32,
    num_ranks: u32,
    slots_per_rank: u32,
    rank: u32,
    ids_per_block: u32,
    phase: u32,
    holder_rank_at: u32,
    holder_place_at: u32,
    holder_first_at: u32,
    holder_size_at: u32,
    experts_at: u32,
    holder_start_at: u32,
    step_start_at: u32,
    holder_ranks_at: u32,
    rank_holders_at: u32,
    shared_memory_at: u32,
    shared_counts_at: u32,
}

impl SplitArguments {
    /// The arguments that are the same in each call. `first` is the first part of all tables.
    pub fn new(parts: &SplitParts, first: Part, shape: Shape, rank: usize, memory: &Memory) -> Self {
        let at = |part| words_between(first, part);
        let words = |part: Part| (part.bytes / 4) as u32;
        SplitArguments {
            memory: memory.at(parts.memory),
            ends: memory.at(parts.ends),
            block_counts: memory.at(parts.block_counts),
            blocks_done: memory.at(parts.blocks_done),
            num_replicated: words(parts.experts),
            num_holders: words(parts.holder_rank),
            num_steps: words(parts.step_start) - 1,
            num_ranks: shape.num_ranks() as u32,
            slots_per_rank: (shape.num_slots() / shape.num_ranks()) as u32,
            rank: rank as u32,
            holder_rank_at: at(parts.holder_rank),
            holder_place_at: at(parts.holder_place),
            holder_first_at: at(parts.holder_first),
            holder_size_at: at(parts.holder_size),
            experts_at: at(parts.experts),
            holder_start_at: at(parts.holder_start),
            step_start_at: at(parts.step_start),
            holder_ranks_at: at(parts.holder_ranks),
            rank_holders_at: at(parts.rank_holders),
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
