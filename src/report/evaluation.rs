//! A placement held against the loads of one layer, and against the best that any placement could do with them.

use super::{Balance, even_split, replica_counts};
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape, duplicates_in, held_slots};
use crate::solve::{Loads, best_split, lower_bound, lower_bound_of_uneven};

/// A placement held against the loads of one layer. Figures are taken per sample and then averaged over the samples, as
/// those of [`Balance`] are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// How even the ranks are.
    pub balance: Balance,
    /// The largest number of slots that an expert has.
    pub max_replicas: u32,
    /// Slots that repeat an expert of their own rank.
    pub num_duplicates: usize,
    /// How far from the best possible that is.
    pub certificate: Certificate,
    /// The load of the most loaded rank if each expert's were split over its replicas in the best fractions: see
    /// [`best_split`].
    pub best_split_max: f64,
    /// `mean / max` of the best split. `None` where a sample has no load at all.
    pub best_split_balancedness: Option<f64>,
}

/// How far a placement is from the best that any could be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Certificate {
    /// What the most loaded rank carries at least, whatever the placement: see [`lower_bound`].
    pub lower_bound: f64,
    /// `(max - lower bound) / lower bound`: 0 is as good as any placement. `None` where a sample has no load at all.
    pub gap: Option<f64>,
}

impl Certificate {
    /// Of `slot_experts`, an expert's load split evenly over its replicas. Each sample is `[experts]`.
    pub fn new<'a>(
        shape: Shape,
        slot_experts: &[u32],
        samples: impl Iterator<Item = &'a [f64]>,
    ) -> Certificate {
        let replicas = replica_counts(shape, slot_experts);
        let num_slots = held_slots(slot_experts).count();
        let (mut num_samples, mut lower_bound, mut gap) = (0.0, 0.0, 0.0);
        for loads in samples {
            let bound = match num_slots == shape.num_slots() {
                true => self::lower_bound(loads, shape),
                false => lower_bound_of_uneven(loads, num_slots, shape.num_ranks()),
            };
            let max = even_split(shape, slot_experts, &replicas, loads).fold(0.0, f64::max);
            lower_bound += bound;
            // A maximum that reaches the bound may be below it by the rounding of sums.
            gap += if max > 0.0 { (max - bound).max(0.0) / bound } else { f64::NAN };
            num_samples += 1.0;
        }
        Certificate {
            lower_bound: lower_bound / num_samples,
            gap: Some(gap / num_samples).filter(|gap| gap.is_finite()),
        }
    }
}

/// Holds a layer of `placement` against its loads, `[num_samples][num_experts]`.
pub fn evaluate(
    placement: &Placement,
    layer: u32,
    loads: &[f64],
    num_samples: usize,
    num_experts: usize,
) -> Result<Evaluation> {
    let (shape, experts) = (placement.shape(), placement.layer_experts(layer)?);
    if num_experts != shape.num_experts() {
        let held = shape.num_experts();
        return Err(Error::InvalidArgument(format!(
            "num_experts is {num_experts}, the placement has {held}"
        )));
    }
    let layers = [layer];
    let loads = Loads::new(loads, &layers, num_samples, num_experts)?;
    let (mut best_max, mut balancedness) = (0.0, 0.0);
    for sample in loads.layer(0) {
        let max = best_split(sample, experts, shape);
        best_max += max;
        balancedness += sample.iter().sum::<f64>() / shape.num_ranks() as f64 / max;
    }
    Ok(Evaluation {
        balance: Balance::projected(shape, experts, loads.layer(0)),
        max_replicas: replica_counts(shape, experts).into_iter().max().unwrap_or(0),
        num_duplicates: duplicates_in(shape, layer, experts).len(),
        certificate: Certificate::new(shape, experts, loads.layer(0)),
        best_split_max: best_max / num_samples as f64,
        best_split_balancedness: Some(balancedness / num_samples as f64).filter(|ratio| ratio.is_finite()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(loads: &[f64], num_samples: usize) -> Evaluation {
        // Ranks hold 0 1 | 0 2.
        let placement = Placement::new(Shape::new(3, 4, 2).unwrap(), &[5], &[0, 1, 0, 2]).unwrap();
        evaluate(&placement, 5, loads, num_samples, 3).unwrap()
    }

    #[test]
    fn the_gap_and_the_best_split_are_averaged_over_samples() {
        // 6 4 1: the ranks carry 3 + 4 and 3 + 1. Below 6, expert 0 would need both its slots, and of 3, 3 and 4 two would
        // share a rank. The best split gives 1.5 of expert 0 to rank 0: 5.5.
        let one = of(&[6.0, 4.0, 1.0], 1);
        assert_eq!(one.certificate, Certificate { lower_bound: 6.0, gap: Some(1.0 / 6.0) });
        assert_eq!((one.best_split_max, one.best_split_balancedness), (5.5, Some(1.0)));
        // 2 6 0: 1 + 6 and 1 + 0. The best split gives all of expert 0 to rank 1: 6 and 2. No placement is below 3 + 2, but the
        // bound is the mean.
        let other = of(&[2.0, 6.0, 0.0], 1);
        assert_eq!(other.certificate, Certificate { lower_bound: 4.0, gap: Some(3.0 / 4.0) });
        assert_eq!((other.best_split_max, other.best_split_balancedness), (6.0, Some(4.0 / 6.0)));
        let both = of(&[6.0, 4.0, 1.0, 2.0, 6.0, 0.0], 2);
        let gap = (1.0 / 6.0 + 3.0 / 4.0) / 2.0;
        assert_eq!(both.certificate, Certificate { lower_bound: 5.0, gap: Some(gap) });
        assert_eq!(
            (both.best_split_max, both.best_split_balancedness),
            (5.75, Some((1.0 + 4.0 / 6.0) / 2.0))
        );
    }

    #[test]
    fn a_sample_without_load_leaves_the_layer_without_ratios() {
        let both = of(&[6.0, 4.0, 1.0, 0.0, 0.0, 0.0], 2);
        assert_eq!(both.certificate, Certificate { lower_bound: 6.0 / 2.0, gap: None });
        assert_eq!((both.best_split_max, both.best_split_balancedness), (5.5 / 2.0, None));
    }
}
