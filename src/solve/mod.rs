//! Loads to placement: which expert each slot should hold.
//!
//! A policy is a rule for one layer: the loads of its experts in, the expert of each slot out. Layers are independent
//! and solved in parallel; results do not depend on the number of threads.

mod bound;
mod loads;
mod search;
mod split;
mod trtllm;

use std::fmt;
use std::str::FromStr;

pub use bound::lower_bound;
pub use loads::Loads;
pub use split::best_split;

use crate::error::{Error, Result, try_zeroed};
use crate::placement::{Placement, Shape};
use crate::threads;

/// What the search looks at for each slot and sample unless told otherwise.
const EFFORT: usize = 200;

/// A rule for placing experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// TensorRT-LLM's greedy, bit for bit: replicas go one by one to the expert with the largest load per replica,
    /// then each replica, heaviest first, to the rank with the smallest load that has a free slot. Samples are added up.
    #[default]
    Trtllm,
    /// Counts and ranks chosen together, from the better of greedy starts on, until no placement can be better by more than
    /// a ten-thousandth or the effort is spent. Never above the greedies, and an expert twice on a rank only where a greedy
    /// that does so could not be reached otherwise. With several samples, the mean over them of the most loaded rank's load
    /// over the mean.
    Search,
}

impl Policy {
    /// All policies.
    pub const ALL: [Policy; 2] = [Policy::Trtllm, Policy::Search];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Trtllm => "trtllm",
            Policy::Search => "search",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Policy::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Policy::ALL.into_iter().map(Policy::name).collect();
            Error::InvalidArgument(format!("unknown policy \"{name}\"; there is {}", names.join(", ")))
        })
    }
}

/// Places the experts of every layer of `loads`.
///
/// `threads` 0 means one a core, at most 8.
pub fn solve(policy: Policy, shape: Shape, loads: &Loads<'_>, threads: usize) -> Result<Placement> {
    if loads.num_experts() != shape.num_experts() {
        return Err(Error::InvalidArgument(format!(
            "loads of {} experts for a shape of {}",
            loads.num_experts(),
            shape.num_experts()
        )));
    }
    let num_slots = shape.num_slots();
    let mut slot_experts = try_zeroed(loads.layers().len().checked_mul(num_slots), "the placement")?;
    let rows = threads::map(loads.layers().len(), threads::resolve(threads), |layer| match policy {
        Policy::Trtllm => trtllm::place(&loads.layer_sums_f32(layer)?, shape),
        Policy::Search => {
            let samples: Vec<&[f64]> = loads.layer(layer).collect();
            let weights = vec![1.0 / samples.len() as f64; samples.len()];
            let greedy = trtllm::place(&loads.layer_sums_f32(layer)?, shape)?;
            Ok(search::Search { shape, samples: &samples, weights: &weights, effort: EFFORT }
                .place(&[greedy]))
        }
    })?;
    for (slots, row) in slot_experts.chunks_exact_mut(num_slots).zip(rows) {
        slots.copy_from_slice(&row);
    }
    Placement::new(shape, loads.layers(), &slot_experts)
}
