//! Statistics of the ranks' loads.

use serde::Serialize;

/// How evenly the ranks of one layer are loaded, over one or more samples (iterations).
///
/// Each figure is computed per sample and then averaged over the samples, as in TensorRT-LLM's load report. So a layer whose
/// hottest rank differs between iterations is uneven. Ratios are averaged over the samples with load, all else over all samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Balance {
    /// Mean load of a rank.
    pub mean: f64,
    /// Sample standard deviation of the ranks' loads (divisor ranks - 1); 0 for a single rank.
    pub std: Option<f64>,
    /// Load of the hottest rank.
    pub max: f64,
    /// The rank with the largest load over all samples.
    pub worst_rank: usize,
    /// `(max - mean) / mean`: 0 is even. `None` if no sample has load.
    pub imbalance_ratio: Option<f64>,
    /// `mean / max`: 1 is even. `None` if no sample has load.
    pub balancedness: Option<f64>,
    /// Samples without load, which the ratios leave out.
    #[serde(rename = "idle_iterations")]
    pub idle_samples: usize,
}

/// The mean and the maximum of the ranks' loads in one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Peak {
    pub mean: f64,
    pub max: f64,
}

impl Peak {
    pub fn new(ranks: &[f64]) -> Peak {
        Peak {
            mean: ranks.iter().sum::<f64>() / ranks.len() as f64,
            max: ranks.iter().copied().fold(0.0, f64::max),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.max == 0.0
    }

    /// `None` without load.
    pub fn imbalance_ratio(&self) -> Option<f64> {
        (!self.is_idle()).then(|| (self.max - self.mean) / self.mean)
    }

    /// `None` without load.
    pub fn balancedness(&self) -> Option<f64> {
        (!self.is_idle()).then(|| self.mean / self.max)
    }
}

/// The mean of a ratio over the samples or layers that have one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RatioMean {
    sum: f64,
    count: usize,
}

impl RatioMean {
    pub fn add(&mut self, ratio: Option<f64>) {
        if let Some(ratio) = ratio {
            self.sum += ratio;
            self.count += 1;
        }
    }

    /// `None` if none has a ratio, or if the loads were too large for one.
    pub fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64).filter(|ratio| ratio.is_finite())
    }
}

impl Balance {
    /// Computes the balance from the ranks' loads, one item a sample.
    pub(super) fn from_rank_loads(samples: impl Iterator<Item: AsRef<[f64]>>) -> Balance {
        let (mut num_samples, mut idle_samples, mut totals) = (0.0, 0, Vec::new());
        let (mut mean, mut std, mut max) = (0.0, 0.0, 0.0);
        let (mut imbalance, mut balancedness) = (RatioMean::default(), RatioMean::default());
        for ranks in samples {
            let ranks = ranks.as_ref();
            let peak = Peak::new(ranks);
            mean += peak.mean;
            max += peak.max;
            let squares: f64 = ranks.iter().map(|load| (load - peak.mean).powi(2)).sum();
            std += (squares / (ranks.len() as f64 - 1.0)).sqrt();
            imbalance.add(peak.imbalance_ratio());
            balancedness.add(peak.balancedness());
            num_samples += 1.0;
            idle_samples += usize::from(peak.is_idle());
            totals.resize(ranks.len(), 0.0);
            totals.iter_mut().zip(ranks).for_each(|(total, load)| *total += load);
        }
        let hotter = |worst: usize, rank: usize| if totals[rank] > totals[worst] { rank } else { worst };
        Balance {
            mean: mean / num_samples,
            std: (totals.len() > 1).then(|| std / num_samples),
            max: max / num_samples,
            worst_rank: (1..totals.len()).fold(0, hotter),
            imbalance_ratio: imbalance.get(),
            balancedness: balancedness.get(),
            idle_samples,
        }
    }

    /// The balance without a load balancer: experts in order on `num_ranks` ranks, at most as many as experts. Each sample is
    /// `[experts]`.
    pub fn unbalanced<'a>(num_ranks: usize, samples: impl Iterator<Item = &'a [f64]>) -> Balance {
        Balance::from_rank_loads(samples.map(|loads| in_order_rank_loads(num_ranks, loads)))
    }
}

/// The load of each rank with the experts in order.
pub(super) fn in_order_rank_loads(num_ranks: usize, loads: &[f64]) -> Vec<f64> {
    let first_of = |rank: usize| rank * loads.len() / num_ranks;
    (0..num_ranks).map(|rank| loads[first_of(rank)..first_of(rank + 1)].iter().sum()).collect()
}

/// The mean of a ratio over the layers that have one. `None` if no layer has one.
pub fn average(ratios: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut mean = RatioMean::default();
    ratios.for_each(|ratio| mean.add(ratio));
    mean.get()
}

/// The layer with the largest ratio, and the ratio. Of equal ones the first; `None` if no layer has one.
pub(super) fn worst_layer(ratios: impl Iterator<Item = (u32, Option<f64>)>) -> Option<(u32, f64)> {
    let known = ratios.filter_map(|(layer, ratio)| Some((layer, ratio?)));
    known.reduce(|worst, layer| if layer.1 > worst.1 { layer } else { worst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_averages_over_layers_after_reducing_ranks() {
        // Loads [[100, 200], [100, 200]]: 150 / 200 = 0.75. Computed over layers instead of ranks, it would be 1.
        let layers = [[100.0, 200.0], [100.0, 200.0]];
        let balances = layers.map(|layer| Balance::unbalanced(2, [&layer[..]].into_iter()));
        assert_eq!(average(balances.iter().map(|balance| balance.balancedness)), Some(0.75));
        assert_eq!(balances[0].imbalance_ratio, Some(50.0 / 150.0));
        assert_eq!((balances[0].mean, balances[0].max, balances[0].worst_rank), (150.0, 200.0, 1));
        // Two ranks, each 50 from the mean: the square root of 5000 / 1.
        assert_eq!(balances[0].std, Some(5000f64.sqrt()));
    }

    #[test]
    fn balance_detects_a_hot_rank_that_changes_between_samples() {
        let samples: [&[f64]; 2] = [&[3.0, 1.0], &[1.0, 3.0]];
        assert_eq!(Balance::unbalanced(2, samples.into_iter()).imbalance_ratio, Some(0.5));
    }

    #[test]
    fn ratios_leave_out_samples_without_load() {
        // Ranks 1 and 3, mean 2: 0.5 and 2 / 3, in the one sample with load. Mean and maximum are over both.
        let samples: [&[f64]; 2] = [&[0.0, 0.0], &[1.0, 3.0]];
        let balance = Balance::unbalanced(2, samples.into_iter());
        assert_eq!((balance.mean, balance.max, balance.idle_samples), (1.0, 1.5, 1));
        assert_eq!(balance.std, Some(2f64.sqrt() / 2.0));
        assert_eq!((balance.imbalance_ratio, balance.balancedness), (Some(0.5), Some(2.0 / 3.0)));
        let idle = Balance::unbalanced(2, samples[..1].iter().copied());
        assert_eq!((idle.imbalance_ratio, idle.balancedness, idle.idle_samples), (None, None, 1));
        // The sum of the loads overflows, so there is no mean.
        let huge = Balance::unbalanced(2, [&[f64::MAX, f64::MAX][..]].into_iter());
        assert_eq!((huge.imbalance_ratio, huge.idle_samples), (None, 0));
    }

    #[test]
    fn average_and_worst_layer_skip_layers_without_a_ratio() {
        assert_eq!(average([None, Some(1.0), Some(2.0)].into_iter()), Some(1.5));
        assert_eq!(average([None].into_iter()), None);
        let worst = |ratios: &[Option<f64>]| worst_layer((3..).zip(ratios.iter().copied()));
        assert_eq!(worst(&[None, Some(1.0), Some(2.0), Some(2.0)]), Some((5, 2.0)));
        assert_eq!(worst(&[None]), None);
    }
}
