//! Token hash: a replica by a hash of the token's index.

use super::kernel::{Call, Kernels};
use super::rule::GOLDEN_RATIO;
use super::tables::LayerTables;
use crate::device::{Id, Kernel};
use crate::error::Result;
use crate::placement::Shape;

/// The rule's kernels, in kernels/token_hash.cuh.
const KERNELS: Kernels =
    Kernels { int32: Kernel::TokenHashI32, int64: Kernel::TokenHashI64, general: Kernel::TokenHashGeneral };

/// Threads of a block: `EPLB_HASH_THREADS` of the kernels.
const THREADS: u32 = 128;

/// Launches the rule's kernel, by which a thread takes as many ids as fit one load.
pub(super) fn launch(mut call: Call<'_>) -> Result<()> {
    call.place_tables();
    call.place_bins();
    let per_block = u64::from(THREADS) * call.ids_at_once() as u64;
    call.launch(KERNELS, call.num_ids().div_ceil(per_block), THREADS)
}

/// The rule on the host.
#[derive(Debug)]
pub(super) struct TokenHash {
    /// Of each expert, and at last of the invalid slot.
    replicas: Vec<Replicas>,
    /// The table of slots, and at last the invalid slot.
    slots: Vec<u32>,
}

/// The replicas of an expert.
#[derive(Debug, Clone, Copy)]
struct Replicas {
    /// 2^64 / count, rounded up: the remainder of a division without the division (Lemire, Kaser and Kurz, "Faster
    /// remainder by direct computation", 2019). 0 where the count is 1.
    reciprocal: u64,
    start: u32,
    count: u32,
}

impl TokenHash {
    /// Routes by the tables of a layer.
    pub fn new(shape: Shape, tables: &LayerTables) -> Self {
        let of_expert = |(&start, &count): (&u32, &u32)| Replicas {
            reciprocal: (u64::MAX / u64::from(count)).wrapping_add(1),
            start,
            count,
        };
        let invalid_slot = shape.num_slots() as u32;
        let invalid = Replicas { reciprocal: 0, start: invalid_slot, count: 1 };
        let replicas = tables.replica_start.iter().zip(&tables.replica_count).map(of_expert);
        let slots = tables.replica_slots.iter().copied().chain([invalid_slot]).collect();
        TokenHash { replicas: replicas.chain([invalid]).collect(), slots }
    }

    /// Replaces a part of a batch's ids by their slots, from index `first` of `[tokens][experts_per_token]` on.
    pub fn route_part(&self, mut ids: &mut [i32], first: usize, experts_per_token: usize) {
        let num_experts = self.replicas.len() - 1;
        let (mut token, mut before) = (first / experts_per_token, first % experts_per_token);
        while !ids.is_empty() {
            let (of_token, rest) = {
                let mine = ids.len().min(experts_per_token - before);
                std::mem::take(&mut ids).split_at_mut(mine)
            };
            let hash = (token as u32).wrapping_mul(GOLDEN_RATIO);
            of_token.iter_mut().for_each(|id| *id = self.slot(id.bin(num_experts), hash) as i32);
            (ids, token, before) = (rest, token + 1, 0);
        }
    }

    /// The slot of an expert for a token's hash.
    #[inline(always)]
    fn slot(&self, expert: usize, hash: u32) -> u32 {
        let Replicas { reciprocal, start, count } = self.replicas[expert];
        let fraction = reciprocal.wrapping_mul(u64::from(hash));
        let replica = ((u128::from(fraction) * u128::from(count)) >> 64) as u32;
        self.slots[(start + replica) as usize]
    }

    /// Replaces ids by their slots.
    // On its own, its loop keeps everything in registers.
    #[inline(never)]
    pub fn route<I: Id>(&self, ids: &mut [I], experts_per_token: usize) {
        let num_experts = self.replicas.len() - 1;
        let mut hash = 0u32;
        for token in ids.chunks_exact_mut(experts_per_token) {
            for id in token {
                *id = I::of_slot(self.slot(id.bin(num_experts), hash));
            }
            hash = hash.wrapping_add(GOLDEN_RATIO);
        }
    }
}
