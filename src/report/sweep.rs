//! Shapes side by side: what more slots or other ranks are projected to bring.

use serde::Serialize;

use super::Planner;
use super::score::Figures;
use crate::error::{Error, Result};
use crate::placement::{MAX_COUNT, Shape, suggest_num_slots};
use crate::stats::{Stats, Summary};

/// A number of ranks and of slots, and the projected imbalance of the dump on it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Ranks.
    pub num_ranks: usize,
    /// Slots of all ranks together.
    pub num_slots: usize,
    /// Slots beyond one an expert, in a layer.
    pub extra_slots: usize,
    /// The imbalance ratio, averaged over iterations and then over layers. `None` where no layer has load.
    pub imbalance_ratio: Option<f64>,
    /// That of the worst layer.
    pub worst_imbalance_ratio: Option<f64>,
    /// The layer that has it.
    pub worst_layer: Option<u32>,
}

impl Point {
    /// Places the experts of the dump for `shape`, and projects the dump on it.
    pub fn new(stats: &Stats, shape: Shape, planner: &Planner<'_>) -> Result<Point> {
        let (_, score) = planner.place_and_score(stats, shape, &Figures::default())?;
        Ok(Point {
            num_ranks: shape.num_ranks(),
            num_slots: shape.num_slots(),
            extra_slots: shape.num_slots() - shape.num_experts(),
            imbalance_ratio: score.imbalance_ratio,
            worst_imbalance_ratio: score.worst_imbalance_ratio,
            worst_layer: score.worst_layer,
        })
    }

    /// The bytes of the extra slots of one rank in `num_layers` layers.
    pub fn extra_bytes_per_rank(&self, num_layers: usize, bytes_per_slot: u64) -> f64 {
        self.extra_slots as f64 / self.num_ranks as f64 * num_layers as f64 * bytes_per_slot as f64
    }
}

/// A [`Point`] for each of `nums_ranks` with each of `nums_slots`; where those are empty, with [`usual_num_slots`].
///
/// All shapes are checked before the first is placed.
pub fn sweep(
    stats: &Stats,
    nums_ranks: &[usize],
    nums_slots: &[usize],
    planner: &Planner<'_>,
) -> Result<Vec<Point>> {
    let num_experts = stats.summary().num_experts;
    let mut shapes = Vec::new();
    for &num_ranks in nums_ranks {
        let nums_slots = match nums_slots {
            [] => usual_num_slots(num_experts, num_ranks)?,
            given => given.to_vec(),
        };
        for num_slots in nums_slots {
            shapes.push(Shape::new(num_experts, num_slots, num_ranks)?);
        }
    }
    shapes.into_iter().map(|shape| Point::new(stats, shape, planner)).collect()
}

/// Numbers of ranks to try for a dump: its own. A dump of one rank, which needs no balance, was recorded for more: 8, 16 and
/// 32, where there are experts for them.
pub fn usual_num_ranks(summary: &Summary) -> Vec<usize> {
    match summary.num_ranks {
        1 => [8, 16, 32].into_iter().filter(|&ranks| ranks <= summary.num_experts).collect(),
        num_ranks => vec![num_ranks],
    }
}

/// Numbers of slots to try: 0, 1, 2, 3, 4, 6, 8, ... extra ones on each rank, up to twice as many slots as experts.
pub fn usual_num_slots(num_experts: usize, num_ranks: usize) -> Result<Vec<usize>> {
    let least = least_num_slots(num_experts, num_ranks)?;
    let steps = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
    let slots = steps.map(|extra| least + extra * num_ranks);
    Ok(slots.into_iter().filter(|&slots| slots == least || slots <= 2 * num_experts).collect())
}

fn least_num_slots(num_experts: usize, num_ranks: usize) -> Result<usize> {
    suggest_num_slots(num_experts, num_ranks, num_experts).1.filter(|_| num_ranks <= num_experts).ok_or_else(
        || Error::InvalidShape(format!("{num_ranks} ranks: there must be 1 to the {num_experts} experts")),
    )
}

/// The result of [`fewest_slots`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fewest {
    /// Ranks.
    pub num_ranks: usize,
    /// The fewest slots whose imbalance ratio is at most the target; `None` where all up to `most_slots` are above it.
    pub found: Option<Point>,
    /// The point with the smallest imbalance ratio of those tried.
    pub best: Point,
    /// The most slots that were to be tried.
    pub most_slots: usize,
}

/// Finds the fewest slots on `num_ranks` ranks that bring the average imbalance ratio to `target` or below: one more on each
/// rank at a time, up to `most_slots`, by default twice as many slots as experts.
pub fn fewest_slots(
    stats: &Stats,
    num_ranks: usize,
    target: f64,
    most_slots: Option<usize>,
    planner: &Planner<'_>,
) -> Result<Fewest> {
    let num_experts = stats.summary().num_experts;
    let least = least_num_slots(num_experts, num_ranks)?;
    let most_slots = most_slots.unwrap_or(2 * num_experts).clamp(least, MAX_COUNT);
    let mut best: Option<Point> = None;
    for num_slots in (least..=most_slots).step_by(num_ranks) {
        let point = Point::new(stats, Shape::new(num_experts, num_slots, num_ranks)?, planner)?;
        let Some(ratio) = point.imbalance_ratio else {
            return Err(Error::InvalidDump(
                "no layer has load in every iteration, so no number of slots is better than another".into(),
            ));
        };
        if best.and_then(|best| best.imbalance_ratio).is_none_or(|best| ratio < best) {
            best = Some(point);
        }
        if ratio <= target {
            return Ok(Fewest { num_ranks, found: Some(point), best: point, most_slots });
        }
    }
    match best {
        Some(best) => Ok(Fewest { num_ranks, found: None, best, most_slots }),
        None => Err(Error::Internal("no number of slots to look at".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_num_slots_begins_with_the_least_and_ends_at_twice_the_experts() {
        assert_eq!(usual_num_slots(64, 8).unwrap(), [64, 72, 80, 88, 96, 112, 128]);
        // 256 experts on 36 ranks: 288 are the least.
        assert_eq!(usual_num_slots(256, 36).unwrap(), [288, 324, 360, 396, 432, 504]);
        assert_eq!(usual_num_slots(4, 4).unwrap(), [4, 8]);
        assert_eq!(
            usual_num_slots(4, 5).unwrap_err().to_string(),
            "5 ranks: there must be 1 to the 4 experts"
        );
    }
}
