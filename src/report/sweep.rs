//! What if there were more slots, or other ranks: what each number is projected to bring.

use serde::Serialize;

use super::candidate::refuse_slots;
use super::{Balance, Planner, average};
use crate::error::{Error, Result};
use crate::placement::{MAX_COUNT, Shape, suggest_num_slots};
use crate::stats::Stats;

/// A number of ranks and of slots, and what the dump is projected to make of it.
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
        refuse_slots(stats)?;
        let placement = planner.place(stats, shape)?;
        let num_iterations = stats.summary().iterations.len() as usize;
        let mut ratios = Vec::new();
        for (layer, experts) in placement.iter() {
            let loads = stats.layer_samples(layer, num_iterations, shape.num_experts())?;
            let iterations = loads.chunks_exact(shape.num_experts());
            ratios.push((layer, Balance::projected(shape, experts, iterations).imbalance_ratio));
        }
        let known = ratios.iter().filter_map(|&(layer, ratio)| Some((layer, ratio?)));
        let worst = known.reduce(|worst, layer| if layer.1 > worst.1 { layer } else { worst });
        Ok(Point {
            num_ranks: shape.num_ranks(),
            num_slots: shape.num_slots(),
            extra_slots: shape.num_slots() - shape.num_experts(),
            imbalance_ratio: average(ratios.iter().map(|&(_, ratio)| ratio)),
            worst_imbalance_ratio: worst.map(|(_, ratio)| ratio),
            worst_layer: worst.map(|(layer, _)| layer),
        })
    }
}

/// Extra slots a rank that are worth a look, the most of them twice as many slots as experts.
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

/// What was found of a target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fewest {
    /// Ranks.
    pub num_ranks: usize,
    /// The fewest slots whose imbalance ratio is at most the target; `None` where all up to `most_slots` are above it.
    pub found: Option<Point>,
    /// The point with the smallest imbalance ratio of those looked at.
    pub best: Point,
    /// The most slots that were to be looked at.
    pub most_slots: usize,
}

/// Looks for the fewest slots on `num_ranks` ranks that bring the average imbalance ratio to `target` or below, one slot a rank
/// more at a time, up to `most_slots`.
pub fn fewest_slots(
    stats: &Stats,
    num_ranks: usize,
    target: f64,
    most_slots: usize,
    planner: &Planner<'_>,
) -> Result<Fewest> {
    let num_experts = stats.summary().num_experts;
    let least = least_num_slots(num_experts, num_ranks)?;
    let most_slots = most_slots.clamp(least, MAX_COUNT);
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
    fn usual_numbers_of_slots_begin_with_the_least_and_end_at_twice_the_experts() {
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
