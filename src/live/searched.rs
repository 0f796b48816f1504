//! Layers whose search found nothing to move, so that the same loads need no second one.

use super::limits::Limits;

/// Weights of samples that differ by less are the same: windows of equal loads add up to one sample.
const TOLERANCE: f64 = 1e-12;

/// A search of a layer that moved nothing. It holds for the slots in force and the active ranks only.
#[derive(Debug, Clone)]
pub(super) struct Searched {
    limits: Limits,
    /// The hash and the weight of each sample.
    samples: Vec<(u64, f64)>,
    /// The lowest cost that it found.
    pub lowest_cost: f64,
}

impl Searched {
    pub fn new(limits: &Limits, samples: Vec<(u64, f64)>, lowest_cost: f64) -> Self {
        Searched { limits: *limits, samples, lowest_cost }
    }

    /// Whether another search would be the same.
    pub fn is_of(&self, limits: &Limits, samples: &[(u64, f64)]) -> bool {
        let is_same = |(one, other): (&(u64, f64), &(u64, f64))| {
            one.0 == other.0 && (one.1 - other.1).abs() < TOLERANCE
        };
        self.limits == *limits
            && self.samples.len() == samples.len()
            && self.samples.iter().zip(samples).all(is_same)
    }
}
