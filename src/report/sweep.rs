//! Projects the imbalance for several numbers of ranks and slots.

use serde::Serialize;

use super::Planner;
use super::score::ScoreOptions;
use crate::error::{Error, Result};
use crate::placement::{MAX_COUNT, Shape, suggest_num_slots};
use crate::stats::{Stats, Summary};

/// The projected imbalance of a dump for one number of ranks and slots.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SweepPoint {
    /// Ranks.
    pub num_ranks: usize,
    /// Slots of all ranks together.
    pub num_slots: usize,
    /// Spare slots of a layer: slots beyond one an expert.
    pub extra_slots: usize,
    /// The imbalance ratio, averaged over iterations and then over layers. `None` if no layer has load.
    pub imbalance_ratio: Option<f64>,
    /// The imbalance ratio of the worst layer.
    pub worst_imbalance_ratio: Option<f64>,
    /// The worst layer.
    pub worst_layer: Option<u32>,
}

impl SweepPoint {
    /// Computes a placement of `shape` for the dump, and projects the dump onto it.
    pub fn new(stats: &Stats, shape: Shape, planner: &Planner<'_>) -> Result<SweepPoint> {
        let (_, score) = planner.place_and_score(stats, shape, &ScoreOptions::default())?;
        Ok(SweepPoint {
            num_ranks: shape.num_ranks(),
            num_slots: shape.num_slots(),
            extra_slots: shape.num_slots() - shape.num_experts(),
            imbalance_ratio: score.imbalance_ratio,
            worst_imbalance_ratio: score.worst_imbalance_ratio,
            worst_layer: score.worst_layer,
        })
    }

    /// The bytes that the spare slots of one rank take in `num_layers` layers.
    pub fn extra_bytes_per_rank(&self, num_layers: usize, bytes_per_slot: u64) -> f64 {
        self.extra_slots as f64 / self.num_ranks as f64 * num_layers as f64 * bytes_per_slot as f64
    }
}

/// Computes a [`SweepPoint`] for each of `rank_counts` with each of `slot_counts`, or with [`default_num_slots`] if that is
/// empty.
///
/// Checks all shapes before it computes the first placement.
pub fn sweep(
    stats: &Stats,
    rank_counts: &[usize],
    slot_counts: &[usize],
    planner: &Planner<'_>,
) -> Result<Vec<SweepPoint>> {
    let num_experts = stats.summary().num_experts;
    let mut shapes = Vec::new();
    for &num_ranks in rank_counts {
        let slot_counts = match slot_counts {
            [] => default_num_slots(num_experts, num_ranks)?,
            given => given.to_vec(),
        };
        for num_slots in slot_counts {
            shapes.push(Shape::new(num_experts, num_slots, num_ranks)?);
        }
    }
    shapes.into_iter().map(|shape| SweepPoint::new(stats, shape, planner)).collect()
}

/// The numbers of ranks that a sweep tries by default: the dump's. For a dump of one rank, 8, 16 and 32, up to the number of
/// experts. Fails as [`Summary::ep_size`] does.
pub fn default_num_ranks(summary: &Summary) -> Result<Vec<usize>> {
    Ok(match summary.ep_size()? {
        1 => [8, 16, 32].into_iter().filter(|&ranks| ranks <= summary.num_experts).collect(),
        num_ranks => vec![num_ranks],
    })
}

/// The numbers of slots that a sweep tries by default: 0, 1, 2, 3, 4, 6, 8, ... spare slots a rank, up to twice the number of
/// experts.
pub fn default_num_slots(num_experts: usize, num_ranks: usize) -> Result<Vec<usize>> {
    let min_slots = min_num_slots(num_experts, num_ranks)?;
    let steps = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
    let slots = steps.map(|extra| min_slots + extra * num_ranks);
    Ok(slots.into_iter().filter(|&slots| slots == min_slots || slots <= 2 * num_experts).collect())
}

fn min_num_slots(num_experts: usize, num_ranks: usize) -> Result<usize> {
    suggest_num_slots(num_experts, num_ranks, num_experts)
        .1
        .ok_or_else(|| Error::InvalidShape(format!("{num_ranks} ranks: there must be 1 to {MAX_COUNT}")))
}

/// The result of [`fewest_slots`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FewestSlots {
    /// Ranks.
    pub num_ranks: usize,
    /// The point with the fewest slots that reaches the target. `None` if no number up to `most_slots` does.
    pub found: Option<SweepPoint>,
    /// The point with the smallest imbalance ratio.
    pub best: SweepPoint,
    /// The largest number of slots to try.
    pub most_slots: usize,
}

/// Finds the fewest slots on `num_ranks` ranks with an average imbalance ratio of at most `target`.
///
/// Tries one more slot a rank at a time, up to `most_slots`. `None`: up to twice the number of experts.
pub fn fewest_slots(
    stats: &Stats,
    num_ranks: usize,
    target: f64,
    most_slots: Option<usize>,
    planner: &Planner<'_>,
) -> Result<FewestSlots> {
    let num_experts = stats.summary().num_experts;
    let min_slots = min_num_slots(num_experts, num_ranks)?;
    let most_slots = most_slots.unwrap_or(2 * num_experts).clamp(min_slots, MAX_COUNT);
    let mut best: Option<SweepPoint> = None;
    for num_slots in (min_slots..=most_slots).step_by(num_ranks) {
        let point = SweepPoint::new(stats, Shape::new(num_experts, num_slots, num_ranks)?, planner)?;
        let Some(ratio) = point.imbalance_ratio else {
            return Err(Error::InvalidDump(
                "no layer has load, so no number of slots is better than another".into(),
            ));
        };
        if best.and_then(|best| best.imbalance_ratio).is_none_or(|best| ratio < best) {
            best = Some(point);
        }
        if ratio <= target {
            return Ok(FewestSlots { num_ranks, found: Some(point), best: point, most_slots });
        }
    }
    match best {
        Some(best) => Ok(FewestSlots { num_ranks, found: None, best, most_slots }),
        None => Err(Error::Internal("no number of slots to try".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_num_slots_starts_at_the_minimum_and_ends_at_twice_the_experts() {
        assert_eq!(default_num_slots(64, 8).unwrap(), [64, 72, 80, 88, 96, 112, 128]);
        // 256 experts on 36 ranks need at least 288 slots.
        assert_eq!(default_num_slots(256, 36).unwrap(), [288, 324, 360, 396, 432, 504]);
        assert_eq!(default_num_slots(4, 4).unwrap(), [4, 8]);
        // More ranks than experts need a slot each.
        assert_eq!(default_num_slots(256, 320).unwrap(), [320]);
        assert_eq!(
            default_num_slots(4, 0).unwrap_err().to_string(),
            format!("0 ranks: there must be 1 to {MAX_COUNT}")
        );
    }
}
