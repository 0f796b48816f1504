//! The measure over several samples that the search minimises.

/// A function of the samples' maximum rank loads.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::solve) enum Measure {
    /// The weighted mean over samples.
    Mean,
    /// The least value that samples of at least this part of all weight do not exceed.
    Quantile {
        /// Above 0, at most 1. At 1 it is the worst sample.
        quantile: f64,
        /// `[samples]`
        sample_weights: Vec<f64>,
    },
}

impl Measure {
    /// Returns the measure of the maximum rank loads, `[samples]`, scaled so that a rank's mean load is the
    /// sample's weight. Ignores samples without load.
    pub fn of(&self, max_loads: impl Iterator<Item = f64>) -> f64 {
        let Measure::Quantile { quantile, sample_weights } = self else { return max_loads.sum() };
        let of_samples = max_loads.zip(sample_weights).filter(|&(max, &weight)| max > 0.0 && weight > 0.0);
        let mut ratios: Vec<(f64, f64)> = of_samples.map(|(max, &weight)| (max / weight, weight)).collect();
        ratios.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        // Nine tenths of ten equal weights are nine samples, despite rounding.
        let mut wanted = quantile * ratios.iter().map(|(_, weight)| weight).sum::<f64>() * (1.0 - 1e-12);
        let reached = ratios.iter().find(|(_, weight)| {
            wanted -= weight;
            wanted <= 0.0
        });
        reached.or(ratios.last()).map_or(0.0, |&(ratio, _)| ratio)
    }

    /// Returns the measure for `copies` scenarios of each sample.
    pub fn repeated(&self, copies: usize) -> Measure {
        match self {
            Measure::Mean => Measure::Mean,
            Measure::Quantile { quantile, sample_weights } => Measure::Quantile {
                quantile: *quantile,
                sample_weights: sample_weights
                    .iter()
                    .flat_map(|weight| vec![weight / copies as f64; copies])
                    .collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_not_exceeded_by_that_part_of_all_weight() {
        let quantile = |quantile, weights: &[f64], ratios: &[f64]| {
            let max_loads = ratios.iter().zip(weights).map(|(ratio, weight)| ratio * weight);
            Measure::Quantile { quantile, sample_weights: weights.to_vec() }.of(max_loads)
        };
        let ten: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        for (part, expected) in
            [(0.01, 1.0), (0.1, 1.0), (0.11, 2.0), (0.5, 5.0), (0.9, 9.0), (0.91, 10.0), (1.0, 10.0)]
        {
            assert!((quantile(part, &[0.1; 10], &ten) - expected).abs() < 1e-9, "{part}");
        }
        // The heavy sample alone has half of all weight.
        assert_eq!(quantile(0.5, &[0.5, 0.25, 0.25], &[2.0, 4.0, 8.0]), 2.0);
        assert_eq!(quantile(0.6, &[0.5, 0.25, 0.25], &[2.0, 4.0, 8.0]), 4.0);
        // Samples without load or without weight do not count.
        assert_eq!(quantile(0.5, &[0.5, 0.5, 0.0], &[0.0, 4.0, 0.0]), 4.0);
        assert_eq!(quantile(1.0, &[1.0], &[0.0]), 0.0);
    }
}
