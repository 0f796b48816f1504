//! How a rebalancer observes and plans.

use super::limits::Gates;
use crate::error::{Error, Result};
use crate::placement::{Placement, replica_counts};
use crate::solve::Objective;

/// How to observe and plan. [`RebalancerConfig::new`] has the defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct RebalancerConfig {
    /// Windows that each phase keeps.
    pub num_windows: usize,
    /// Observations after which a window counts half.
    pub half_life: u64,
    /// Phases, such as prefill and decode, each with its own windows.
    pub num_phases: usize,
    /// The node of each rank, `[num_ranks]`. `None`: all are on one.
    pub rank_to_node: Option<Vec<i32>>,
    /// Slots that keep their experts, `[num_slots]`. `None`: no slot.
    pub pinned_slots: Option<Vec<bool>>,
    /// Most replicas of an expert, `None`: no limit.
    pub max_replicas: Option<u32>,
    /// What plans lower. [`Objective::EvenSplit`] is supported.
    pub objective: Objective,
    /// When to plan.
    pub gates: Gates,
    /// Threads that plan layers, 0: one a core, at most 8. Plans do not depend on it.
    pub num_threads: usize,
}

impl RebalancerConfig {
    /// The longest half-life, with which few windows count nearly alike.
    pub const MAX_HALF_LIFE: u64 = 1024;

    /// The defaults of a model that chooses so many experts for each token.
    pub fn new(num_experts: usize, experts_per_token: usize) -> Self {
        RebalancerConfig {
            num_windows: 8,
            half_life: 6,
            num_phases: 1,
            rank_to_node: None,
            pinned_slots: None,
            max_replicas: None,
            objective: Objective::EvenSplit,
            gates: Gates::of_model(num_experts, experts_per_token),
            num_threads: 0,
        }
    }
}

impl RebalancerConfig {
    pub(super) fn check(&self, placement: &Placement) -> Result<()> {
        let shape = placement.shape();
        self.gates.check()?;
        if self.objective != Objective::EvenSplit {
            return Err(Error::InvalidArgument(format!(
                "plans with few moves do not support objective {}; use {}, or solve by {0} and plan the moves to the result with \
                 eplb_plan_create()",
                self.objective,
                Objective::EvenSplit
            )));
        }
        let sizes = [
            ("num_windows", self.num_windows as u64),
            ("half_life", self.half_life),
            ("num_phases", self.num_phases as u64),
        ];
        const MOST: u64 = RebalancerConfig::MAX_HALF_LIFE;
        if let Some((name, value)) = sizes.into_iter().find(|&(_, value)| value == 0 || value > MOST) {
            return Err(Error::InvalidArgument(format!("{name} is {value}; 1 to {MOST} expected")));
        }
        let lengths = [
            ("rank_to_node", self.rank_to_node.as_ref().map(Vec::len), shape.num_ranks()),
            ("pinned_slots", self.pinned_slots.as_ref().map(Vec::len), shape.num_slots()),
        ];
        for (name, length, expected) in lengths {
            if length.is_some_and(|length| length != expected) {
                return Err(Error::InvalidArgument(format!(
                    "{name} has {} values; {expected} expected",
                    length.unwrap_or(0)
                )));
            }
        }
        let Some(most) = self.max_replicas else { return Ok(()) };
        for (layer, slots) in placement.iter() {
            let counts = replica_counts(shape, slots);
            if let Some(expert) = counts.iter().position(|&count| count > most) {
                return Err(Error::InvalidPlacement(format!(
                    "layer {layer}, expert {expert} has {} replicas, max_replicas is {most}",
                    counts[expert]
                )));
            }
        }
        Ok(())
    }
}
