//! Plans: which experts move between which slots.

use std::ffi::c_char;

use super::boundary::{
    Growing, borrowed, boundary, choice, copy_out, destroy, growing_out, number, optional_config,
    optional_of_ranks, out,
};
use super::placement::eplb_placement;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::live::{Buffering, DISAGREE, KeepReason, LayerPlan, Plan, PlanOptions, Transfer, TransferKind};
use crate::placement::Shape;

/// Where experts go that arrive before the table of their layer changes.
pub type eplb_buffering = i32;

/// Into staging slots of the engine, copied to the slots with the commit, on the forward pass's stream.
pub const EPLB_BUFFERING_STAGED: eplb_buffering = 0;
/// Into the slots, each after its last read; a circle of slots takes one spare slot. The layer must not run
/// from its first transfer to its commit, and its transfers must not be abandoned.
pub const EPLB_BUFFERING_IN_PLACE: eplb_buffering = 1;
/// Into slots that a first commit has emptied, while the layer runs; a second commit uses them. Layers in
/// which an expert would have no replica meanwhile are staged.
pub const EPLB_BUFFERING_DRAIN: eplb_buffering = 2;

/// What a plan is for.
pub type eplb_decision = i32;

/// Nothing moves; eplb_plan_info has the reason.
pub const EPLB_DECISION_KEEP: eplb_decision = 0;
/// Layers change.
pub const EPLB_DECISION_MOVE: eplb_decision = 1;

/// Why a plan moves nothing.
pub type eplb_keep_reason = i32;

/// It moves something.
pub const EPLB_KEEP_REASON_NONE: eplb_keep_reason = 0;
/// Both placements are the same.
pub const EPLB_KEEP_REASON_SAME: eplb_keep_reason = 1;
/// A plan of the rebalancer is in flight: commit its layers or abort it.
pub const EPLB_KEEP_REASON_IN_FLIGHT: eplb_keep_reason = 2;
/// No window with counts was observed.
pub const EPLB_KEEP_REASON_NO_COUNTS: eplb_keep_reason = 3;
/// Fewer than min_tokens were observed.
pub const EPLB_KEEP_REASON_FEW_TOKENS: eplb_keep_reason = 4;
/// The last plan ended less than cooldown windows ago.
pub const EPLB_KEEP_REASON_COOLDOWN: eplb_keep_reason = 5;
/// The placement is as even as trigger and release require.
pub const EPLB_KEEP_REASON_BALANCED: eplb_keep_reason = 6;
/// What a plan would gain is no more than sampling noise.
pub const EPLB_KEEP_REASON_NOISE: eplb_keep_reason = 7;
/// What a plan would gain is below min_gain or min_relative_gain.
pub const EPLB_KEEP_REASON_SMALL_GAIN: eplb_keep_reason = 8;
/// No move within the limits gains more than its price.
pub const EPLB_KEEP_REASON_NO_MOVE: eplb_keep_reason = 9;

/// How a transfer reaches its slot.
pub type eplb_transfer_kind = i32;

/// From another slot of the same rank, after the other transfers of its round.
pub const EPLB_TRANSFER_KIND_LOCAL: eplb_transfer_kind = 0;
/// From another rank of the same node.
pub const EPLB_TRANSFER_KIND_NODE: eplb_transfer_kind = 1;
/// From a rank of another node.
pub const EPLB_TRANSFER_KIND_REMOTE: eplb_transfer_kind = 2;
/// No active rank holds the expert: the engine loads it as at its start.
pub const EPLB_TRANSFER_KIND_HOST: eplb_transfer_kind = 3;

/// What a rank whose call failed contributes in place of both agreement words.
pub const EPLB_PLAN_DISAGREE: u64 = 0x7FFF_FFFF_FFFF_FFFF;

const _: () = assert!(EPLB_PLAN_DISAGREE == DISAGREE);

/// The moves from one placement to another, layer by layer. Immutable.
pub struct eplb_plan(pub(super) Plan);

/// Options of eplb_plan_create().
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_plan_options {
    /// Set by EPLB_PLAN_OPTIONS_INIT.
    pub struct_size: usize,
    /// The node of each rank: [num_ranks]. NULL: all ranks are on one node.
    pub rank_to_node: *const i32,
    /// 0 for a rank that cannot send and holds nothing in the new placement: [num_ranks]. NULL: none.
    pub active: *const u8,
    /// Length of rank_to_node and active.
    pub num_ranks: u32,
    /// How slots are buffered.
    pub buffering: eplb_buffering,
}

// SAFETY: `repr(C)`, `struct_size` first, integers and pointers.
unsafe impl Growing for eplb_plan_options {}

/// A plan as a whole. Arrays live as long as the handle.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_plan_info {
    /// Set by EPLB_PLAN_INFO_INIT.
    pub struct_size: usize,
    /// Whether layers change.
    pub decision: eplb_decision,
    /// Why not.
    pub reason: eplb_keep_reason,
    /// A sentence for logs.
    pub message: *const c_char,
    /// A hash of the placement in force, the counts, the limits, the decision and the transfers, and its
    /// complement. Reduce both over all ranks by maximum, as signed or unsigned words: all ranks have the same
    /// plan if the first is the complement of the second. A KEEP has words too.
    pub agreement: [u64; 2],
    /// The layers that change: [num_layers]. The first gain most a move, so a plan that ends early is the best
    /// of its length.
    pub layer_ids: *const i32,
    /// Length of layer_ids.
    pub num_layers: usize,
    /// Slots that receive an expert.
    pub num_moves: u64,
    /// The most staging slots that a rank needs for one layer. Layers staged together need their sum.
    pub staging_slots: u32,
    /// The most rounds of a layer.
    pub num_rounds: u32,
    /// Balancedness of the observed loads in the placement in force, over layers and samples; 0 for
    /// eplb_plan_create().
    pub balance_before: f64,
    /// In the planned placement.
    pub balance_after: f64,
    /// No placement is more even.
    pub balance_bound: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers and pointers.
unsafe impl Growing for eplb_plan_info {}

/// What a plan changes in a layer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_planned_layer {
    /// Set by EPLB_PLANNED_LAYER_INIT.
    pub struct_size: usize,
    /// The generation that the plan was made against; 0 for eplb_plan_create().
    pub generation: u64,
    /// Slots that receive an expert.
    pub num_moves: u32,
    /// Rounds of transfers.
    pub num_rounds: u32,
    /// Staging slots that the busiest rank needs; in place: 1 if a rank needs its spare slot.
    pub staging_slots: u32,
    /// How often the layer is staged and committed: 2 if it drains first.
    pub num_commits: u32,
    /// How slots are buffered.
    pub buffering: eplb_buffering,
    /// 0.
    pub reserved: u32,
    /// As in eplb_plan_info, of this layer.
    pub balance_before: f64,
    /// As in eplb_plan_info, of this layer.
    pub balance_after: f64,
    /// As in eplb_plan_info, of this layer.
    pub balance_bound: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers.
unsafe impl Growing for eplb_planned_layer {}

/// One expert goes from a slot to a slot: every tensor of it (weights, scales, biases, derived layouts).
/// Slots are counted over all ranks; num_slots + r is the spare slot of rank r.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_transfer {
    /// The layer's number.
    pub layer: i32,
    /// The round, from 0.
    pub round: u32,
    /// The expert.
    pub expert: i32,
    /// The rank that sends; -1 for EPLB_TRANSFER_KIND_HOST.
    pub src_rank: i32,
    /// The slot to read, or -1. If it receives this expert itself, read what arrived.
    pub src_slot: i32,
    /// The rank that receives.
    pub dst_rank: i32,
    /// The slot that receives.
    pub dst_slot: i32,
    /// How it gets there.
    pub kind: eplb_transfer_kind,
}

/// Plans the moves between two placements. Experts that stay on a rank keep their slots, so the planned slots
/// may be those of `to` in another order within a rank: see eplb_plan_layer_experts().
///
/// \param from     the placement in force
/// \param to       the wanted one
/// \param options  NULL for the defaults
/// \param plan     receives the handle
/// \return EPLB_STATUS_INVALID_SHAPE for other experts, slots, ranks, slots of each rank or layers: another
///         scale needs a new dispatch. EPLB_STATUS_INVALID_PLACEMENT if `to` uses an inactive rank
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_create(
    from: *const eplb_placement,
    to: *const eplb_placement,
    options: *const eplb_plan_options,
    plan: *mut *mut eplb_plan,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (from, to, options, plan) = unsafe {
            let (from, to) = (borrowed(from, "from")?, borrowed(to, "to")?);
            (&from.0, &to.0, optional_config(options, "options")?, out(plan, "plan")?)
        };
        // SAFETY: the caller's promise of [num_ranks].
        let (rank_to_node, active) = unsafe { options.of_ranks(from.shape()) }?;
        let active: Option<Vec<bool>> = active.map(is_active);
        let buffering = buffering(options.buffering, "options->buffering")?;
        let made =
            Plan::between(from, to, PlanOptions { buffering, rank_to_node, active: active.as_deref() })?;
        plan.give(eplb_plan(made));
        Ok(())
    })
}

/// The nodes of the ranks and their activity, where they are given.
type OfRanks<'a> = (Option<&'a [i32]>, Option<&'a [u8]>);

impl eplb_plan_options {
    /// The nodes and the activity of the ranks.
    ///
    /// # Safety
    /// Both arrays are NULL or of num_ranks values.
    unsafe fn of_ranks<'a>(&self, shape: Shape) -> Result<OfRanks<'a>> {
        // SAFETY: the caller's promises.
        let (nodes, active) = unsafe {
            (
                optional_of_ranks(self.rank_to_node, self.num_ranks, "options->rank_to_node")?,
                optional_of_ranks(self.active, self.num_ranks, "options->active")?,
            )
        };
        let is_given = nodes.is_some() || active.is_some();
        if is_given && self.num_ranks as usize != shape.num_ranks() {
            return Err(Error::InvalidArgument(format!(
                "options->num_ranks is {}, the placements have {} ranks",
                self.num_ranks,
                shape.num_ranks()
            )));
        }
        Ok((nodes, active))
    }
}

/// The ranks that are active.
pub(super) fn is_active(active: &[u8]) -> Vec<bool> {
    active.iter().map(|&rank| rank != 0).collect()
}

/// A buffering by its number.
pub(super) fn buffering(number: eplb_buffering, name: &str) -> Result<Buffering> {
    choice!(number, name, {
        EPLB_BUFFERING_STAGED => Buffering::Staged,
        EPLB_BUFFERING_IN_PLACE => Buffering::InPlace,
        EPLB_BUFFERING_DRAIN => Buffering::Drain,
    })
}

/// Returns the decision of a plan, its words and its sizes.
///
/// \param plan  the plan
/// \param info  receives them
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_get_info(
    plan: *const eplb_plan,
    info: *mut eplb_plan_info,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (plan, info) = unsafe { (&borrowed(plan, "plan")?.0, growing_out(info, "info")?) };
        let (reason, balance) = (plan.keep_reason(), plan.balance());
        info.set(eplb_plan_info {
            struct_size: 0,
            decision: if reason.is_some() { EPLB_DECISION_KEEP } else { EPLB_DECISION_MOVE },
            reason: reason.map_or(EPLB_KEEP_REASON_NONE, keep_reason),
            message: plan.message().as_ptr(),
            agreement: plan.agreement_words(),
            layer_ids: plan.layer_ids().as_ptr().cast(),
            num_layers: plan.layers().len(),
            num_moves: plan.num_moves() as u64,
            staging_slots: plan.layers().iter().map(LayerPlan::staging_slots).max().unwrap_or(0),
            num_rounds: plan.layers().iter().map(LayerPlan::num_rounds).max().unwrap_or(0),
            balance_before: balance.before,
            balance_after: balance.after,
            balance_bound: balance.bound,
        });
        Ok(())
    })
}

/// The number of a reason.
pub(super) fn keep_reason(reason: KeepReason) -> eplb_keep_reason {
    match reason {
        KeepReason::Same => EPLB_KEEP_REASON_SAME,
        KeepReason::InFlight => EPLB_KEEP_REASON_IN_FLIGHT,
        KeepReason::NoCounts => EPLB_KEEP_REASON_NO_COUNTS,
        KeepReason::FewTokens => EPLB_KEEP_REASON_FEW_TOKENS,
        KeepReason::Cooldown => EPLB_KEEP_REASON_COOLDOWN,
        KeepReason::Balanced => EPLB_KEEP_REASON_BALANCED,
        KeepReason::Noise => EPLB_KEEP_REASON_NOISE,
        KeepReason::SmallGain => EPLB_KEEP_REASON_SMALL_GAIN,
        KeepReason::NoMove => EPLB_KEEP_REASON_NO_MOVE,
    }
}

/// Returns the word of a reason, such as "few_tokens", as metrics have it.
///
/// \param reason  any number
/// \return a static string; "none" for EPLB_KEEP_REASON_NONE, "unknown" for a number without a name
#[unsafe(no_mangle)]
pub extern "C" fn eplb_keep_reason_string(reason: eplb_keep_reason) -> *const c_char {
    let word = match reason {
        EPLB_KEEP_REASON_NONE => c"none",
        EPLB_KEEP_REASON_SAME => c"same",
        EPLB_KEEP_REASON_IN_FLIGHT => c"in_flight",
        EPLB_KEEP_REASON_NO_COUNTS => c"no_counts",
        EPLB_KEEP_REASON_FEW_TOKENS => c"few_tokens",
        EPLB_KEEP_REASON_COOLDOWN => c"cooldown",
        EPLB_KEEP_REASON_BALANCED => c"balanced",
        EPLB_KEEP_REASON_NOISE => c"noise",
        EPLB_KEEP_REASON_SMALL_GAIN => c"small_gain",
        EPLB_KEEP_REASON_NO_MOVE => c"no_move",
        _ => c"unknown",
    };
    word.as_ptr()
}

/// Returns what a plan changes in a layer.
///
/// \param plan   the plan
/// \param layer  one of layer_ids of eplb_plan_info
/// \param info   receives it
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_layer_info(
    plan: *const eplb_plan,
    layer: i32,
    info: *mut eplb_planned_layer,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (plan, info) = unsafe { (&borrowed(plan, "plan")?.0, growing_out(info, "info")?) };
        let plan = plan.layer(number(layer, "layer")?)?;
        let balance = plan.balance();
        info.set(eplb_planned_layer {
            struct_size: 0,
            generation: plan.generation(),
            num_moves: number(plan.num_moves(), "num_moves")?,
            num_rounds: plan.num_rounds(),
            staging_slots: plan.staging_slots(),
            num_commits: number(plan.num_commits(), "num_commits")?,
            buffering: match plan.buffering() {
                Buffering::Staged => EPLB_BUFFERING_STAGED,
                Buffering::InPlace => EPLB_BUFFERING_IN_PLACE,
                Buffering::Drain => EPLB_BUFFERING_DRAIN,
            },
            reserved: 0,
            balance_before: balance.before,
            balance_after: balance.after,
            balance_bound: balance.bound,
        });
        Ok(())
    })
}

/// Returns the expert of each slot of a layer after a commit of the plan.
///
/// \param plan       the plan
/// \param layer      one of layer_ids of eplb_plan_info
/// \param commit     0 to num_commits - 1 of the layer; the last one has the planned slots
/// \param experts    receives [num_slots], which lives as long as the handle; -1 in empty slots
/// \param num_slots  receives the length; may be NULL
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_layer_experts(
    plan: *const eplb_plan,
    layer: i32,
    commit: u32,
    experts: *mut *const i32,
    num_slots: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let plan = unsafe { borrowed(plan, "plan") }?;
        let held = plan.0.layer(number(layer, "layer")?)?.experts_after(commit)?;
        // SAFETY: the caller's promises for the results.
        unsafe { super::placement::set_array(held, experts, num_slots) }
    })
}

/// Returns the transfers of a layer in which a rank takes part, in the same order on every rank: by round,
/// local ones last. So the sends and receives of two ranks pair up without tags. In a round a rank sends to
/// one rank at most and receives from one at most. There are as many rounds as the busiest rank has
/// transfers, in place as many as the order of reads and writes takes.
///
/// \param plan           the plan
/// \param layer          one of layer_ids of eplb_plan_info
/// \param rank           0 to num_ranks - 1; -1: all transfers
/// \param transfers      receives the first `capacity`; may be NULL if capacity is 0
/// \param capacity       length of transfers
/// \param num_transfers  receives their number, which may exceed capacity
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_transfers(
    plan: *const eplb_plan,
    layer: i32,
    rank: i32,
    transfers: *mut eplb_transfer,
    capacity: usize,
    num_transfers: *mut usize,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (plan, num_transfers) =
            unsafe { (&borrowed(plan, "plan")?.0, out(num_transfers, "num_transfers")?) };
        let of_rank = plan.transfers_of(number(layer, "layer")?, rank)?;
        let listed: Vec<eplb_transfer> =
            of_rank.iter().take(capacity).map(|transfer| in_c(plan.shape(), transfer)).collect();
        // SAFETY: the caller's promise of room for `capacity` transfers.
        unsafe { copy_out(&listed, transfers, "transfers") }?;
        num_transfers.set(of_rank.len());
        Ok(())
    })
}

fn in_c(shape: Shape, transfer: &Transfer) -> eplb_transfer {
    eplb_transfer {
        layer: transfer.layer as i32,
        round: transfer.round,
        expert: transfer.expert as i32,
        src_rank: transfer.src_rank(shape).map_or(-1, |rank| rank as i32),
        src_slot: transfer.src_slot.map_or(-1, |slot| slot as i32),
        dst_rank: transfer.dst_rank(shape) as i32,
        dst_slot: transfer.dst_slot as i32,
        kind: match transfer.kind {
            TransferKind::Local => EPLB_TRANSFER_KIND_LOCAL,
            TransferKind::Node => EPLB_TRANSFER_KIND_NODE,
            TransferKind::Remote => EPLB_TRANSFER_KIND_REMOTE,
            TransferKind::Host => EPLB_TRANSFER_KIND_HOST,
        },
    }
}

/// Returns how many transfers of a layer read a slot. Where peers read it one-sided, its rank may
/// overwrite it after so many reads.
///
/// \param plan         the plan
/// \param layer        one of layer_ids of eplb_plan_info
/// \param slot         a slot or spare slot
/// \param num_readers  receives the number
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_num_readers(
    plan: *const eplb_plan,
    layer: i32,
    slot: u32,
    num_readers: *mut u32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (plan, num_readers) = unsafe { (&borrowed(plan, "plan")?.0, out(num_readers, "num_readers")?) };
        let readers = plan.layer(number(layer, "layer")?)?.num_readers(slot);
        num_readers.set(number(readers, "num_readers")?);
        Ok(())
    })
}

/// Frees a plan. One in flight stays in flight: see eplb_rebalancer_abort().
///
/// \param plan  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_plan_destroy(plan: *mut eplb_plan) {
    // SAFETY: the caller's promise.
    unsafe { destroy(plan) }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn reasons_have_the_words_of_metrics() {
        let word = |reason| {
            // SAFETY: a static string.
            unsafe { CStr::from_ptr(eplb_keep_reason_string(reason)) }.to_str().unwrap()
        };
        for reason in KeepReason::ALL {
            assert_eq!(word(keep_reason(reason)), reason.name());
        }
        assert_eq!((word(EPLB_KEEP_REASON_NONE), word(10), word(-1)), ("none", "unknown", "unknown"));
    }
}
