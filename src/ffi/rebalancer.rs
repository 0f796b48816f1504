//! The rebalancer: observes counts and plans with few moves.

use super::boundary::{
    Growing, array, borrowed, borrowed_mut, boundary, config, destroy, growing_out,
    num_samples as checked_samples, number, optional_array, optional_config, optional_of_ranks, out,
};
use super::placement::eplb_placement;
use super::plan::{buffering, eplb_buffering, eplb_plan, is_active, keep_reason};
use super::solve::{eplb_objective, objective};
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::live::{Gates, KeepReason, Limits, Rebalancer, RebalancerConfig};
use crate::placement::Placement;

/// The phase of windows that pass time and do not count: warm-up, dummy and capture steps.
pub const EPLB_PHASE_NOT_COUNTED: i32 = -1;

/// Observes counts and plans. Holds the placement in force. Host only. Ranks whose calls are equal have equal
/// plans, on any number of threads and any CPU.
pub struct eplb_rebalancer(pub(super) Rebalancer);

/// How to observe and when to plan. Each gate's default can hold a plan back; a negative number turns it
/// off.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_rebalancer_config {
    /// Set by EPLB_REBALANCER_CONFIG_INIT.
    pub struct_size: usize,
    /// Experts that the router chooses for each token. Required.
    pub experts_per_token: u32,
    /// Windows that each phase keeps; 0: 8. They are not cleared by an update.
    pub num_windows: u32,
    /// Observations after which a window counts half; 0: 6.
    pub half_life: u32,
    /// Phases, such as prefill and decode, each with windows of its own; 0: 1.
    pub num_phases: u32,
    /// Most replicas of an expert, as in eplb_dispatch_config; 0: no limit.
    pub max_replicas: u32,
    /// Threads that plan layers; 0: one a core, at most 8. Plans do not depend on it.
    pub num_threads: u32,
    /// EPLB_OBJECTIVE_EVEN_SPLIT.
    pub objective: eplb_objective,
    /// 0.
    pub reserved: u32,
    /// The node of each rank: [num_ranks]. NULL: all ranks are on one node.
    pub rank_to_node: *const i32,
    /// 1 for slots that keep their experts in every layer: [num_slots]. NULL: none.
    pub pinned_slots: *const u8,
    /// Tokens that all windows must have together; 0: 100 * num_experts / experts_per_token.
    pub min_tokens: i64,
    /// Observations from the end of a plan to the next plan; 0: 1.
    pub cooldown: i64,
    /// Plans start where the balancedness (mean / max) is below this; 0: .95.
    pub trigger: f64,
    /// Plans go on until the balancedness has reached this; 0: .98, or trigger if that is more.
    pub release: f64,
    /// What a layer must gain, in max / mean; 0: .005.
    pub min_gain: f64,
    /// What a layer must gain, as a share of its max / mean - 1; 0: .05.
    pub min_relative_gain: f64,
    /// By how many standard deviations a layer's gain must exceed what sampling noise gains; 0: 3.
    pub noise: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers and pointers.
unsafe impl Growing for eplb_rebalancer_config {}

/// What a plan may cost. A limit of 0 is none. No plan exceeds a limit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_plan_limits {
    /// Set by EPLB_PLAN_LIMITS_INIT.
    pub struct_size: usize,
    /// Slots of a layer that receive an expert. An exchange of two slots is two moves.
    pub max_layer_moves: u32,
    /// Slots of all layers that receive an expert.
    pub max_moves: u32,
    /// Slots of a rank that receive an expert, over all layers.
    pub max_rank_moves: u32,
    /// Transfers from a rank to another one, over all layers.
    pub max_pair_moves: u32,
    /// Layers that change; 0: layer_updates_per_iter of the placement, where 0 is no limit.
    pub max_layers: u32,
    /// How slots are buffered.
    pub buffering: eplb_buffering,
    /// Load of the most loaded rank that a move within a node must save, in counts.
    pub node_price: f64,
    /// As node_price, between nodes.
    pub remote_price: f64,
    /// For how many samples as large as those observed the plan is made; prices are divided by it; 0: 1.
    pub horizon: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers.
unsafe impl Growing for eplb_plan_limits {}

/// The state of a rebalancer. Arrays live as long as the handle, and change with its commits.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_rebalancer_info {
    /// Set by EPLB_REBALANCER_INFO_INIT.
    pub struct_size: usize,
    /// Layer numbers, ascending: [num_layers].
    pub layer_ids: *const i32,
    /// The generation of each layer: 1, and one more with each commit: [num_layers].
    pub generations: *const u64,
    /// Length of layer_ids and generations.
    pub num_layers: usize,
    /// Observations, those that do not count included.
    pub num_observations: u64,
    /// Windows with counts.
    pub num_windows: u64,
    /// Tokens of these windows.
    pub num_tokens: u64,
    /// Layers that the plan in flight has yet to commit; 0 without a plan.
    pub num_layers_in_flight: u64,
    /// Ranks that are active.
    pub num_active_ranks: u64,
    /// Experts of all layers that no active rank holds. The next plan loads them.
    pub num_lost_experts: u64,
    /// Plans that change layers.
    pub num_plans: u64,
    /// Plans that keep the placement, by eplb_keep_reason.
    pub num_kept: [u64; 16],
    /// Commits of layers.
    pub num_commits: u64,
    /// Slots that received an expert by them.
    pub num_moves: u64,
    /// Balancedness of the windows in the placement in force; 0 without counts.
    pub balance: f64,
    /// What the last plan promised; 0 before the first.
    pub balance_promised: f64,
    /// Balancedness of the last window in the placement in force; 0 before the first.
    pub balance_measured: f64,
}

// SAFETY: `repr(C)`, `struct_size` first, numbers and pointers.
unsafe impl Growing for eplb_rebalancer_info {}

/// Creates a rebalancer for the placement in force. Slots that are empty in it stay empty.
///
/// \param config      the configuration
/// \param placement   the placement; may be destroyed afterwards
/// \param rebalancer  receives the handle
/// \return EPLB_STATUS_INVALID_PLACEMENT if an expert has more than max_replicas;
///         EPLB_STATUS_INVALID_ARGUMENT also for EPLB_OBJECTIVE_BEST_SPLIT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_create(
    config: *const eplb_rebalancer_config,
    placement: *const eplb_placement,
    rebalancer: *mut *mut eplb_rebalancer,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (config, placement, rebalancer) = unsafe {
            let config = self::config(config, "config")?;
            (config, &borrowed(placement, "placement")?.0, out(rebalancer, "rebalancer")?)
        };
        // SAFETY: the caller's promises of [num_ranks] and [num_slots].
        let config = unsafe { config.of(placement) }?;
        rebalancer.give(eplb_rebalancer(Rebalancer::new(config, placement.clone())?));
        Ok(())
    })
}

impl eplb_rebalancer_config {
    /// # Safety
    /// rank_to_node and pinned_slots are NULL or of num_ranks and num_slots values.
    unsafe fn of(&self, placement: &Placement) -> Result<RebalancerConfig> {
        let shape = placement.shape();
        if self.experts_per_token == 0 {
            return Err(Error::InvalidArgument("config->experts_per_token is 0; set it".into()));
        }
        if self.reserved != 0 {
            return Err(Error::InvalidArgument("config->reserved is not 0".into()));
        }
        // SAFETY: the caller's promises.
        let (nodes, pinned) = unsafe {
            (
                optional_array(self.rank_to_node, shape.num_ranks(), "config->rank_to_node")?,
                optional_array(self.pinned_slots, shape.num_slots(), "config->pinned_slots")?,
            )
        };
        let defaults = RebalancerConfig::new(shape.num_experts(), self.experts_per_token as usize);
        let (gates, off) = (defaults.gates, Gates::OFF);
        let trigger = gate(self.trigger, gates.trigger, off.trigger);
        let or = |value: u32, default: usize| if value == 0 { default } else { value as usize };
        Ok(RebalancerConfig {
            num_windows: or(self.num_windows, defaults.num_windows),
            half_life: or(self.half_life, defaults.half_life as usize) as u64,
            num_phases: or(self.num_phases, defaults.num_phases),
            rank_to_node: nodes.map(<[i32]>::to_vec),
            pinned_slots: pinned.map(is_active),
            max_replicas: (self.max_replicas != 0).then_some(self.max_replicas),
            num_threads: self.num_threads as usize,
            objective: objective(self.objective, "config->objective")?,
            gates: Gates {
                trigger,
                release: gate(self.release, gates.release.max(trigger), off.release),
                cooldown: whole_gate(self.cooldown, gates.cooldown),
                min_tokens: whole_gate(self.min_tokens, gates.min_tokens),
                min_gain: gate(self.min_gain, gates.min_gain, off.min_gain),
                min_relative_gain: gate(
                    self.min_relative_gain,
                    gates.min_relative_gain,
                    off.min_relative_gain,
                ),
                noise: gate(self.noise, gates.noise, off.noise),
            },
        })
    }
}

fn gate(value: f64, default: f64, off: f64) -> f64 {
    match value {
        0.0 => default,
        negative if negative < 0.0 => off,
        value => value,
    }
}

fn whole_gate(value: i64, default: u64) -> u64 {
    if value == 0 { default } else { value.max(0) as u64 }
}

/// Observes a window: what eplb_recorder_snapshot() counted, added up over all ranks. Call it on every rank
/// with the same counts, before eplb_rebalancer_plan(). A window without counts passes time.
///
/// \param rebalancer   the rebalancer
/// \param counts       host memory, [num_samples][num_layers][num_experts]; not read if not counted
/// \param num_samples  1 to 2^20; each is balanced for itself
/// \param num_tokens   tokens of all ranks in the window
/// \param phase        0 to num_phases - 1, or EPLB_PHASE_NOT_COUNTED
/// \return EPLB_STATUS_INVALID_LOADS for a negative count, or a layer with more than 2^53: nothing changes
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_observe(
    rebalancer: *mut eplb_rebalancer,
    counts: *const i64,
    num_samples: u32,
    num_tokens: u64,
    phase: i32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promise for the handle.
        let rebalancer = unsafe { &mut borrowed_mut(rebalancer, "rebalancer")?.0 };
        let phase: Option<usize> = match phase {
            EPLB_PHASE_NOT_COUNTED => None,
            phase => Some(number(phase, "phase")?),
        };
        let num_samples = checked_samples(num_samples)? as usize;
        let rows = rebalancer.layers().len().checked_mul(num_samples);
        let length = rows.and_then(|rows| rows.checked_mul(rebalancer.shape().num_experts()));
        // SAFETY: the caller's promise of [num_samples][num_layers][num_experts].
        let counts = phase.map_or(Ok(&[][..]), |_| unsafe { array(counts, length, "counts") })?;
        rebalancer.observe(counts, num_samples, num_tokens, phase)
    })
}

/// Plans the moves that gain most, or keeps the placement and says why. The plan is in flight until each of
/// its layers is committed, or it is aborted; meanwhile other plans keep the placement.
///
/// Then all ranks compare the agreement words of eplb_plan_info. If they differ, all abort, and call
/// eplb_rebalancer_reset() with rank 0's placement.
///
/// \param rebalancer  the rebalancer; may be on a thread of its own, beside recorder and routing
/// \param limits      NULL: none
/// \param plan        receives the handle, also of a plan that keeps the placement
/// \return a status; a rank that fails contributes EPLB_PLAN_DISAGREE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_plan(
    rebalancer: *mut eplb_rebalancer,
    limits: *const eplb_plan_limits,
    plan: *mut *mut eplb_plan,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, limits, plan) = unsafe {
            let rebalancer = &mut borrowed_mut(rebalancer, "rebalancer")?.0;
            (rebalancer, optional_config(limits, "limits")?, out(plan, "plan")?)
        };
        plan.give(eplb_plan(rebalancer.plan(&limits.limits()?)?));
        Ok(())
    })
}

impl eplb_plan_limits {
    fn limits(&self) -> Result<Limits> {
        let limit = |limit: u32| (limit != 0).then_some(limit);
        Ok(Limits {
            max_layer_moves: limit(self.max_layer_moves),
            max_moves: limit(self.max_moves),
            max_rank_moves: limit(self.max_rank_moves),
            max_pair_moves: limit(self.max_pair_moves),
            max_layers: limit(self.max_layers),
            node_price: self.node_price,
            remote_price: self.remote_price,
            horizon: if self.horizon == 0.0 { 1.0 } else { self.horizon },
            buffering: buffering(self.buffering, "limits->buffering")?,
        })
    }
}

/// Notes that the next commit of a layer is in force, after eplb_dispatch_commit_layer() of each dispatch;
/// twice for a layer with two commits. The last commit ends the plan.
///
/// \param rebalancer  the rebalancer
/// \param plan        its plan in flight
/// \param layer       one of layer_ids of eplb_plan_info
/// \return EPLB_STATUS_STALE if the plan has ended or the layer has changed: nothing changes
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_commit_layer(
    rebalancer: *mut eplb_rebalancer,
    plan: *const eplb_plan,
    layer: i32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, plan) =
            unsafe { (&mut borrowed_mut(rebalancer, "rebalancer")?.0, &borrowed(plan, "plan")?.0) };
        rebalancer.commit_layer(plan, number(layer, "layer")?)
    })
}

/// Ends a plan early, on all ranks after the same commits. Each layer is as it was or as planned, and the
/// next plan starts from that. A plan that has ended is ignored.
///
/// \param rebalancer  the rebalancer
/// \param plan        a plan of it; NULL: that in flight, also if its handle is destroyed
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_abort(
    rebalancer: *mut eplb_rebalancer,
    plan: *const eplb_plan,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, plan) = unsafe {
            let plan = (!plan.is_null()).then(|| borrowed(plan, "plan")).transpose()?;
            (&mut borrowed_mut(rebalancer, "rebalancer")?.0, plan.map(|plan| &plan.0))
        };
        rebalancer.abort(plan)
    })
}

/// Returns the placement in force: to save it, to evaluate it, and to load weights again.
///
/// \param rebalancer  the rebalancer
/// \param placement   receives the handle
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_placement(
    rebalancer: *const eplb_rebalancer,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, placement) =
            unsafe { (&borrowed(rebalancer, "rebalancer")?.0, out(placement, "placement")?) };
        placement.give(eplb_placement(rebalancer.placement()?));
        Ok(())
    })
}

/// Sets which ranks are active, on every rank alike. If each expert has a replica on one, slots of other
/// ranks become empty, as by eplb_dispatch_set_active_ranks(). Otherwise slots stay, and the next plan loads
/// the lost experts, whatever the gates are. A rank that returns gets experts by plans. The plan in flight
/// ends.
///
/// \param rebalancer  the rebalancer
/// \param active      [num_ranks], 0 for a dead rank
/// \param num_ranks   the ranks of the placement
/// \return EPLB_STATUS_NO_REPLICA if the active ranks have too few slots for all experts: nothing changes
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_set_active_ranks(
    rebalancer: *mut eplb_rebalancer,
    active: *const u8,
    num_ranks: u32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, active) = unsafe {
            let rebalancer = &mut borrowed_mut(rebalancer, "rebalancer")?.0;
            (rebalancer, optional_of_ranks(active, num_ranks, "active")?)
        };
        let active = active.ok_or_else(|| Error::InvalidArgument("active is NULL".to_owned()))?;
        rebalancer.set_active_ranks(&is_active(active))
    })
}

/// Returns the state of a rebalancer, for logs and metrics.
///
/// \param rebalancer  the rebalancer
/// \param info        receives the state
/// \return a status
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_get_info(
    rebalancer: *const eplb_rebalancer,
    info: *mut eplb_rebalancer_info,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, info) =
            unsafe { (&borrowed(rebalancer, "rebalancer")?.0, growing_out(info, "info")?) };
        let state = rebalancer.info();
        let mut num_kept = [0; 16];
        for reason in KeepReason::ALL {
            num_kept[keep_reason(reason) as usize] = state.num_kept[reason as usize];
        }
        info.set(eplb_rebalancer_info {
            struct_size: 0,
            layer_ids: rebalancer.layers().as_ptr().cast(),
            generations: rebalancer.generations().as_ptr(),
            num_layers: rebalancer.layers().len(),
            num_observations: state.observations,
            num_windows: state.num_windows as u64,
            num_tokens: state.num_tokens,
            num_layers_in_flight: state.layers_in_flight as u64,
            num_active_ranks: state.num_active_ranks as u64,
            num_lost_experts: state.num_lost_experts as u64,
            num_plans: state.num_plans,
            num_kept,
            num_commits: state.num_commits,
            num_moves: state.num_moves,
            balance: state.balance,
            balance_promised: state.balance_promised,
            balance_measured: state.balance_measured,
        });
        Ok(())
    })
}

/// Starts again from a placement that all ranks share. Forgets all windows, and every rank is active. Plans
/// from before are stale. Slots that were not empty at creation may be filled. Bring dispatches to it by
/// eplb_plan_create() from what they serve.
///
/// \param rebalancer  the rebalancer
/// \param placement   of the same experts, slots, ranks and layers
/// \return EPLB_STATUS_INVALID_SHAPE for others
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_reset(
    rebalancer: *mut eplb_rebalancer,
    placement: *const eplb_placement,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (rebalancer, placement) =
            unsafe { (&mut borrowed_mut(rebalancer, "rebalancer")?.0, &borrowed(placement, "placement")?.0) };
        rebalancer.reset(placement.clone())
    })
}

/// Frees a rebalancer. Its plans stay valid.
///
/// \param rebalancer  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_rebalancer_destroy(rebalancer: *mut eplb_rebalancer) {
    // SAFETY: the caller's promise.
    unsafe { destroy(rebalancer) }
}
