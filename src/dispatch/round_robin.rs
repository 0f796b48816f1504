//! Round robin: an expert's replicas in turn within each block of ids.

use super::batch::Batch;
use super::kernel::{Call, Kernels};
use super::rule::BLOCK_IDS;
use super::tables::LayerTables;
use crate::device::{Id, Kernel};
use crate::error::Result;
use crate::placement::Shape;

/// The rule's kernels, in kernels/round_robin.cuh.
const KERNELS: Kernels = Kernels {
    int32: Kernel::RoundRobinI32,
    int64: Kernel::RoundRobinI64,
    general: Kernel::RoundRobinGeneral,
};

/// Launches the rule's kernel.
pub(super) fn launch(call: Call<'_>) -> Result<()> {
    call.launch_by_block(KERNELS)
}

/// The rule on the host.
#[derive(Debug)]
pub(super) struct RoundRobin {
    replicated: Vec<u32>,
    /// The slots of the replicated experts that begin a batch.
    begins: Vec<u32>,
    /// The slot after each in its expert's turn, `[num_slots + 1]`. The invalid slot follows itself.
    after: Vec<u32>,
    /// The next slot of each expert, and at last the invalid slot.
    next: Vec<u32>,
    /// The same of the next block.
    first: Vec<u32>,
}

impl RoundRobin {
    /// Routes by the tables of a layer. `offset` is added to a block's index.
    pub fn new(shape: Shape, tables: &LayerTables, offset: u32) -> Self {
        let mut after: Vec<u32> = (0..=shape.num_slots() as u32).collect();
        for expert in 0..shape.num_experts() {
            let slots = tables.slots_of(expert);
            for (replica, &slot) in slots.iter().enumerate() {
                after[slot as usize] = slots[(replica + 1) % slots.len()];
            }
        }
        let replicated: Vec<u32> = tables.replicated().map(|expert| expert as u32).collect();
        let begin = |&expert: &u32| {
            let slots = tables.slots_of(expert as usize);
            slots[offset as usize % slots.len()]
        };
        let begins: Vec<u32> = replicated.iter().map(begin).collect();
        let next = tables.first_slots(shape);
        RoundRobin { replicated, first: begins.clone(), begins, after, next }
    }

    /// Writes the slots of a batch.
    pub fn route<I: Id>(&mut self, batch: &mut Batch<I>) {
        self.begin();
        for block in batch.parts(BLOCK_IDS) {
            self.route_block(block);
        }
    }

    /// Begins a batch, of blocks by [`RoundRobin::route_block`].
    pub fn begin(&mut self) {
        self.first.copy_from_slice(&self.begins);
    }

    /// Writes the slots of the next block.
    // On its own, its loop keeps everything in registers.
    #[inline(never)]
    pub fn route_block<I: Id>(&mut self, mut block: Batch<I>) {
        let Self { replicated, after, next, first, .. } = self;
        for (first, &expert) in first.iter_mut().zip(&*replicated) {
            next[expert as usize] = *first;
            *first = after[*first as usize];
        }
        // As slices, they stay in registers. A vector would be read anew after each id, whose store might have changed it.
        let (next, after) = (&mut next[..], &after[..]);
        let num_experts = next.len() - 1;
        block.route(|id| {
            let next = &mut next[id.bin(num_experts)];
            std::mem::replace(next, after[*next as usize])
        });
    }
}
