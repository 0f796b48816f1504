//! What of several samples is to be made small.

/// What of the samples' figures is to be small.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::solve) enum Measure {
    /// The mean over samples, each counting for its weight.
    Mean,
    /// What samples of at least this part of all weight do not exceed.
    Quantile {
        /// Above 0, at most 1: the worst sample.
        quantile: f64,
        /// `[samples]`
        weights: Vec<f64>,
    },
}

impl Measure {
    /// Of what each sample's most loaded rank carries, `[samples]`, where a rank's mean load is the sample's weight. A sample
    /// without load says nothing.
    pub fn of(&self, most: impl Iterator<Item = f64>) -> f64 {
        let Measure::Quantile { quantile, weights } = self else { return most.sum() };
        let of_samples = most.zip(weights).filter(|&(most, &weight)| most > 0.0 && weight > 0.0);
        let mut ratios: Vec<(f64, f64)> = of_samples.map(|(most, &weight)| (most / weight, weight)).collect();
        ratios.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        // Nine tenths of ten samples are nine, however their weights add up.
        let mut wanted = quantile * ratios.iter().map(|(_, weight)| weight).sum::<f64>() * (1.0 - 1e-12);
        let reached = ratios.iter().find(|(_, weight)| {
            wanted -= weight;
            wanted <= 0.0
        });
        reached.or(ratios.last()).map_or(0.0, |&(ratio, _)| ratio)
    }

    /// What one sample's figure, now `most`, has to reach for what is to be small to reach `limit`, where it is `measured` now;
    /// infinite where that is not so simple.
    pub fn room(&self, most: f64, measured: f64, limit: f64) -> f64 {
        match self {
            Measure::Mean => most + (limit - measured),
            Measure::Quantile { .. } => f64::INFINITY,
        }
    }

    /// The same where each sample has become so many.
    pub fn of_copies(&self, copies: usize) -> Measure {
        match self {
            Measure::Mean => Measure::Mean,
            Measure::Quantile { quantile, weights } => Measure::Quantile {
                quantile: *quantile,
                weights: weights.iter().flat_map(|weight| vec![weight / copies as f64; copies]).collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_what_so_much_of_the_weight_does_not_exceed() {
        let quantile = |quantile, weights: &[f64], ratios: &[f64]| {
            let most = ratios.iter().zip(weights).map(|(ratio, weight)| ratio * weight);
            Measure::Quantile { quantile, weights: weights.to_vec() }.of(most)
        };
        let ten: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        for (part, expected) in
            [(0.01, 1.0), (0.1, 1.0), (0.11, 2.0), (0.5, 5.0), (0.9, 9.0), (0.91, 10.0), (1.0, 10.0)]
        {
            assert!((quantile(part, &[0.1; 10], &ten) - expected).abs() < 1e-9, "{part}");
        }
        // The heavy one alone is most of the weight.
        assert_eq!(quantile(0.5, &[0.5, 0.25, 0.25], &[2.0, 4.0, 8.0]), 2.0);
        assert_eq!(quantile(0.6, &[0.5, 0.25, 0.25], &[2.0, 4.0, 8.0]), 4.0);
        // Neither a sample without load nor one without weight is a sample.
        assert_eq!(quantile(0.5, &[0.5, 0.5, 0.0], &[0.0, 4.0, 0.0]), 4.0);
        assert_eq!(quantile(1.0, &[1.0], &[0.0]), 0.0);
    }
}
