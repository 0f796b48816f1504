//! Solving: loads to placement.

use super::boundary::{Growing, array, boundary, config, layer_numbers, or_default, out};
use super::placement::eplb_placement;
use super::status::eplb_status;
use crate::error::{Error, Result};
use crate::placement::{Shape, suggest_num_slots};
use crate::solve::{Loads, Policy, SolveConfig, solve};

/// A rule for placing experts.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum eplb_policy {
    /// The best that the library has: today EPLB_POLICY_TRTLLM. Name a policy where results must not change with a
    /// later library.
    Default = 0,
    /// TensorRT-LLM's greedy, bit for bit. Each spare slot goes to the expert with the largest load per replica, ties to
    /// the higher expert; then each replica, heaviest first, ties by expert, to the least loaded rank that has a free
    /// slot, ties to the lower rank. Samples are added up and rounded to float32. It may put an expert twice on a rank.
    Trtllm = 1,
    /// Replica counts and ranks chosen together: exchanges of slots and changes of counts from a first placement on, until no
    /// placement can be better by more than a ten-thousandth or the effort is spent. Never above EPLB_POLICY_TRTLLM, and an
    /// expert twice on a rank only where that could not be reached otherwise. Of several samples it levels each: the mean over
    /// samples of the most loaded rank's load over the mean.
    Search = 4,
}

/// A policy that came in from C.
pub(super) fn policy(number: i32) -> Result<Policy> {
    const DEFAULT: i32 = eplb_policy::Default as i32;
    const TRTLLM: i32 = eplb_policy::Trtllm as i32;
    const SEARCH: i32 = eplb_policy::Search as i32;
    match number {
        DEFAULT => Ok(Policy::default()),
        TRTLLM => Ok(Policy::Trtllm),
        SEARCH => Ok(Policy::Search),
        unknown => Err(Error::InvalidArgument(format!(
            "policy is {unknown}; EPLB_POLICY_DEFAULT is {DEFAULT} and EPLB_POLICY_TRTLLM {TRTLLM}"
        ))),
    }
}

/// How to solve. Initialise with EPLB_SOLVE_CONFIG_INIT; zero is a field's default where it has one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct eplb_solve_config {
    /// sizeof(eplb_solve_config)
    pub struct_size: usize,
    /// An eplb_policy.
    pub policy: i32,
    /// Ranks of the expert-parallel group. Must be given.
    pub num_ranks: u32,
    /// Slots of all ranks together, a multiple of the ranks and not below the experts; 0: one an expert.
    pub num_slots: u32,
    /// Threads that solve, layers in parallel; 0: one a core, at most 8. Results do not depend on it.
    pub num_threads: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, integers only.
unsafe impl Growing for eplb_solve_config {}

/// Decides which expert each slot holds, so that the ranks carry equal load.
///
/// \param config       from EPLB_SOLVE_CONFIG_INIT, with the ranks filled in
/// \param loads        [num_layers][num_samples][num_experts], finite and not negative, in any unit
/// \param layer_ids    int32 [num_layers], the model's own layer numbers, each once
/// \param num_layers   at least 1
/// \param num_samples  at least 1. A sample is one situation that the placement should be good for: an iteration, or a
///                     workload
/// \param num_experts  experts of each layer
/// \param placement    receives the handle, which goes back by eplb_placement_destroy()
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_SHAPE with the nearest valid numbers of slots in the message;
///         EPLB_STATUS_INVALID_LOADS naming layer, sample and expert; EPLB_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_solve(
    config: *const eplb_solve_config,
    loads: *const f64,
    layer_ids: *const i32,
    num_layers: usize,
    num_samples: usize,
    num_experts: usize,
    placement: *mut *mut eplb_placement,
) -> eplb_status {
    boundary(|| {
        let num_loads = num_layers.checked_mul(num_samples).and_then(|rows| rows.checked_mul(num_experts));
        // SAFETY: the caller's promises for each pointer.
        let (config, loads, layer_ids, placement) = unsafe {
            (
                self::config(config, "config")?,
                array(loads, num_loads, "loads")?,
                array(layer_ids, Some(num_layers), "layer_ids")?,
                out(placement, "placement")?,
            )
        };
        let (policy, layers) = (policy(config.policy)?, layer_numbers(layer_ids)?);
        let num_slots = or_default(config.num_slots).unwrap_or(num_experts);
        let shape = Shape::new(num_experts, num_slots, config.num_ranks as usize)?;
        let loads = Loads::new(loads, &layers, num_samples, num_experts)?;
        placement.give(eplb_placement(solve(
            &SolveConfig { policy, ..Default::default() },
            shape,
            &loads,
            config.num_threads as usize,
        )?));
        Ok(())
    })
}

/// Finds the valid numbers of slots nearest to a wanted one: multiples of the ranks that are not below the experts.
///
/// \param num_experts  experts of a layer
/// \param num_ranks    ranks of the expert-parallel group
/// \param num_slots    the wanted number, of all ranks together
/// \param below        receives the largest valid number that is not above num_slots, 0 where there is none
/// \param above        receives the smallest valid number that is not below num_slots, 0 where there is none within the
///                     library's limit of 1,048,576; equal to below where num_slots is valid itself
/// \return EPLB_STATUS_OK; EPLB_STATUS_INVALID_ARGUMENT for no experts or no ranks
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_suggest_num_slots(
    num_experts: u32,
    num_ranks: u32,
    num_slots: u32,
    below: *mut u32,
    above: *mut u32,
) -> eplb_status {
    boundary(|| {
        // SAFETY: the caller's promises for each pointer.
        let (to_below, to_above) = unsafe { (out(below, "below")?, out(above, "above")?) };
        if num_experts == 0 || num_ranks == 0 {
            return Err(Error::InvalidArgument(format!("{num_experts} experts on {num_ranks} ranks")));
        }
        let (below, above) = suggest_num_slots(num_experts as usize, num_ranks as usize, num_slots as usize);
        to_below.set(below.unwrap_or(0) as u32);
        to_above.set(above.unwrap_or(0) as u32);
        Ok(())
    })
}
