//! Routing on the host, with the same slots as the kernels.

use super::batch::Batch;
use super::config::{DispatchConfig, check};
use super::least_loaded::LeastLoaded;
use super::nearest::Nearest;
use super::round_robin::RoundRobin;
use super::routing::Routing;
use super::rule::BLOCK_IDS;
use super::rule_tables::RuleTables;
use super::tables::LayerTables;
use super::token_hash::TokenHash;
use crate::device::{Id, IdType, Place};
use crate::error::Result;
use crate::placement::{Placement, Shape};
use crate::stats::{BatchCount, IdKinds};

/// A layer's tables as the host routes by them, and its working memory.
#[derive(Debug)]
pub(super) struct HostRouter {
    shape: Shape,
    /// The slot of invalid ids and padding. The rules give them slot num_slots.
    invalid_slot: i32,
    /// The slots of the experts that follow the placement's.
    shared_slots: Vec<i32>,
    tables: LayerTables,
    rule: HostRule,
}

#[derive(Debug)]
enum HostRule {
    RoundRobin(RoundRobin),
    TokenHash(TokenHash),
    Nearest(Nearest),
    LeastLoaded(Box<LeastLoaded>),
}

impl HostRouter {
    /// Routes by the tables of a layer.
    pub fn new(shape: Shape, tables: LayerTables, rule: RuleTables, config: &DispatchConfig) -> Self {
        let rule = match rule {
            RuleTables::RoundRobin => {
                HostRule::RoundRobin(RoundRobin::new(shape, &tables, config.block_offset()))
            }
            RuleTables::TokenHash => HostRule::TokenHash(TokenHash::new(shape, &tables)),
            RuleTables::Nearest(shares) => {
                HostRule::Nearest(Nearest::new(shape, &tables, shares, config.block_offset()))
            }
            RuleTables::LeastLoaded(plan) => {
                HostRule::LeastLoaded(Box::new(LeastLoaded::new(shape, &tables, *plan, config.rank)))
            }
        };
        HostRouter {
            shape,
            invalid_slot: config.invalid_slot(shape),
            shared_slots: config.shared_slots.to_vec(),
            tables,
            rule,
        }
    }

    /// Routes a batch, and counts its slots with `slot_count`. `rank_counts`, for
    /// [`Rule::LeastLoaded`](super::Rule::LeastLoaded), returns the counts of all ranks, each below 2^31, by index in
    /// `[num_ranks][num_experts]`.
    ///
    /// # Safety
    /// Ids, slots and the window of counts are in host memory, which nobody else uses.
    pub unsafe fn run(
        &mut self,
        routing: &Routing,
        rank_counts: Option<impl Fn(usize) -> u64>,
        slot_count: Option<&BatchCount>,
    ) {
        if routing.num_ids() == 0 {
            return;
        }
        // SAFETY: the caller's promise, in all of these.
        unsafe {
            if !routing.is_plain() || !self.shared_slots.is_empty() {
                self.run_general(routing, rank_counts, slot_count);
                return;
            }
            // Slots do not tell ids of -1 from those out of range, and routing in place overwrites the ids.
            let none = slot_count.map(|_| routing.count_none());
            self.run_plain(routing, rank_counts);
            if let (Some(count), Some(none)) = (slot_count, none) {
                count.run_on_slots(none);
            }
        }
    }

    /// # Safety
    /// As for [`HostRouter::run`]. There are ids, of the slots' type and without gaps.
    unsafe fn run_plain(&mut self, routing: &Routing, rank_counts: Option<impl Fn(usize) -> u64>) {
        let choices = routing.experts_per_token() as usize;
        match routing.ids().kind() {
            IdType::Int32 => {
                // SAFETY: the caller's promise, and the ids are of this type.
                let (valid, padding) = unsafe { routing.batch_on_host::<i32>() };
                self.route(valid, padding, choices, rank_counts);
            }
            IdType::Int64 => {
                // SAFETY: as above.
                let (valid, padding) = unsafe { routing.batch_on_host::<i64>() };
                self.route(valid, padding, choices, rank_counts);
            }
        }
    }

    /// Routes ids and slots of any type and stride, and shared experts, block by block.
    ///
    /// # Safety
    /// As for [`HostRouter::run`].
    // Inlined, its arrays would be on the stack of every call.
    #[inline(never)]
    unsafe fn run_general(
        &mut self,
        routing: &Routing,
        rank_counts: Option<impl Fn(usize) -> u64>,
        slot_count: Option<&BatchCount>,
    ) {
        let (columns, num_experts) = (routing.experts_per_token(), self.shape.num_experts());
        let kinds = IdKinds { num_experts, num_shared: self.shared_slots.len() };
        let (mut ids, mut slots) = ([0i32; BLOCK_IDS], [0i32; BLOCK_IDS]);
        let block = |start: usize, end: usize| {
            (start..end).step_by(BLOCK_IDS).map(move |s| s..end.min(s + BLOCK_IDS))
        };
        // SAFETY: the caller's promise, in all of these.
        unsafe {
            let valid = routing.valid_ids_on_host();
            if let HostRule::LeastLoaded(rule) = &mut self.rule {
                rule.begin(valid, rank_counts.is_none());
                if rank_counts.is_none() {
                    for part in block(0, valid) {
                        let ids = &mut ids[..part.len()];
                        routing.ids().copy_to(columns, part.start, ids);
                        rule.count(ids);
                    }
                }
                rule.plan(valid, &self.tables, rank_counts.as_ref());
            } else if let HostRule::RoundRobin(rule) = &mut self.rule {
                rule.begin();
            }
            for (turn, part) in block(0, valid).enumerate() {
                let (ids, slots) = (&mut ids[..part.len()], &mut slots[..part.len()]);
                routing.ids().copy_to(columns, part.start, ids);
                slots.copy_from_slice(ids);
                match &mut self.rule {
                    HostRule::RoundRobin(rule) => rule.route_block(Batch::in_place(slots)),
                    HostRule::TokenHash(rule) => rule.route_part(slots, part.start, columns as usize),
                    HostRule::Nearest(rule) => rule.route_block(slots, turn as u32, &self.tables),
                    HostRule::LeastLoaded(rule) => rule.assign(&mut Batch::in_place(slots), &self.tables),
                }
                self.find_slots_without_expert(ids, slots);
                routing.slots().copy_from(columns, part.start, slots);
                if let Some(count) = slot_count {
                    count.add_slots_on_host(ids, slots, kinds);
                }
            }
            slots.fill(self.invalid_slot);
            for part in block(valid, routing.num_ids()) {
                routing.slots().copy_from(columns, part.start, &slots[..part.len()]);
            }
            if let Some(count) = slot_count {
                count.add_padding_on_host((routing.num_ids() - valid) as u64);
            }
        }
    }

    /// Replaces slot num_slots, which the rules give to ids that name no expert of theirs.
    fn find_slots_without_expert(&self, ids: &[i32], slots: &mut [i32]) {
        let (num_experts, num_slots) = (self.shape.num_experts() as i32, self.shape.num_slots() as i32);
        for (slot, &id) in slots.iter_mut().zip(ids).filter(|(slot, _)| **slot == num_slots) {
            let shared = id.wrapping_sub(num_experts) as u32 as usize;
            *slot = *self.shared_slots.get(shared).unwrap_or(&self.invalid_slot);
        }
    }

    /// Writes the slots of valid tokens, and those of padding.
    fn route<I: Id>(
        &mut self,
        mut valid: Batch<I>,
        mut padding: Batch<I>,
        experts_per_token: usize,
        rank_counts: Option<impl Fn(usize) -> u64>,
    ) {
        let batch = &mut valid;
        match &mut self.rule {
            HostRule::RoundRobin(rule) => rule.route(batch),
            HostRule::TokenHash(rule) => rule.route(batch.copied(), experts_per_token),
            HostRule::Nearest(rule) => rule.route(batch.copied(), &self.tables),
            HostRule::LeastLoaded(rule) => rule.route(batch, &self.tables, rank_counts.as_ref()),
        }
        let (num_slots, invalid) = (self.shape.num_slots(), I::of_invalid_slot(self.invalid_slot));
        if self.invalid_slot != num_slots as i32 {
            let given = I::of_slot(num_slots as u32);
            valid.slots().iter_mut().for_each(|slot| *slot = if *slot == given { invalid } else { *slot });
        }
        padding.fill(invalid);
    }
}

/// Replaces the ids of one batch for each rank by slots, as that rank would. `batches` is `[num_ranks]` of
/// `[tokens][experts_per_token]`. The config's rank and place are ignored. With `rank_counts`, `[num_ranks][num_experts]`,
/// [`Rule::LeastLoaded`](super::Rule::LeastLoaded) evens out the totals of all ranks.
pub(crate) fn route_batches<I: Id>(
    placement: &Placement,
    layer: u32,
    config: &DispatchConfig,
    batches: &mut [&mut [I]],
    rank_counts: Option<&[u64]>,
) -> Result<()> {
    let shape = placement.shape();
    let only = [layer];
    // Shared experts are served beside the placement, and add no load.
    let of_rank =
        |rank| DispatchConfig { rank, layers: Some(&only), place: Place::Host, invalid_slot: 0, ..*config };
    check(placement, &DispatchConfig { invalid_slot: config.invalid_slot, ..of_rank(0) })?;
    let tables = LayerTables::new(shape, placement.layer_experts(layer)?);
    for (rank, ids) in batches.iter_mut().enumerate().filter(|(_, ids)| !ids.is_empty()) {
        let config = of_rank(rank);
        let rule = RuleTables::new(shape, &tables, &config);
        let mut router = HostRouter::new(shape, tables.clone(), rule, &config);
        let rank_counts = rank_counts.map(|counts| |index: usize| counts[index]);
        let none = Batch::in_place(&mut []);
        router.route(Batch::in_place(ids), none, config.experts_per_token, rank_counts);
    }
    Ok(())
}
