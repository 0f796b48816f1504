//! Balancedness as other systems define it, from the same loads.

use serde::Serialize;

use super::balance::{Peak, RatioMean};

/// SGLang adds this to the mean and the maximum of the ranks' loads.
const SGLANG_EPSILON: f64 = 1e-5;

/// The balance of the ranks by the definition of each system, over the iterations with load.
///
/// The systems weigh layers differently, so one load has several figures. Only compare figures of the same definition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Balancedness {
    /// eplb: mean / max of each iteration, averaged over iterations and then over layers, those without load left out. 1 is even.
    pub eplb: Option<f64>,
    /// SGLang 0.5.23, `sglang:eplb_balancedness`: (mean + 1e-5) / (max + 1e-5), averaged over all layers of the model. Layers
    /// without load count as 1, dense ones too. 1 is even.
    pub sglang: Option<f64>,
    /// vLLM 0.33.0, `balancedness` in its log: the sum over layers of the means, over the sum of the maxima. 1 is even.
    pub vllm: Option<f64>,
    /// TensorRT-LLM's `report_load_statistics.py`: (max - mean) / mean, averaged as by eplb. 0 is even.
    pub tensorrt_llm_imbalance_ratio: Option<f64>,
}

impl Balancedness {
    /// `layers` has the number of each layer with experts, and its peaks by iteration. `num_layers` is the number of layers of the
    /// model. SGLang has no figures of layers beyond them, such as those for multi-token prediction.
    pub(super) fn new(layers: &[(u32, &[Peak])], num_layers: usize) -> Balancedness {
        let num_iterations = layers.first().map_or(0, |(_, peaks)| peaks.len());
        let (mut sglang, mut vllm) = (RatioMean::default(), RatioMean::default());
        for iteration in 0..num_iterations {
            let peaks = || layers.iter().map(|(layer, peaks)| (*layer, peaks[iteration]));
            let sum = |of: fn(Peak) -> f64| peaks().map(|(_, peak)| of(peak)).sum::<f64>();
            let max = sum(|peak| peak.max);
            if max == 0.0 {
                continue;
            }
            vllm.add(Some(sum(|peak| peak.mean) / max));
            let counted = || peaks().filter(|&(layer, _)| (layer as usize) < num_layers);
            let ratio = |peak: Peak| (peak.mean + SGLANG_EPSILON) / (peak.max + SGLANG_EPSILON);
            let ratios: f64 = counted().map(|(_, peak)| ratio(peak)).sum();
            let num_dense = num_layers - counted().count();
            sglang.add(Some((ratios + num_dense as f64) / num_layers as f64));
        }
        Balancedness {
            eplb: average(layers, Peak::balancedness),
            sglang: sglang.get(),
            vllm: vllm.get(),
            tensorrt_llm_imbalance_ratio: average(layers, Peak::imbalance_ratio),
        }
    }
}

/// The mean over the layers with load of the mean over the iterations with load.
fn average(layers: &[(u32, &[Peak])], ratio: fn(&Peak) -> Option<f64>) -> Option<f64> {
    let mut mean = RatioMean::default();
    for (_, peaks) in layers {
        mean.add(super::average(peaks.iter().map(ratio)));
    }
    mean.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Up to the effect of SGLang's epsilon.
    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-5)
    }

    #[test]
    fn vllm_and_sglang_weigh_layers_differently() {
        // Logged by vLLM 0.33.0 for these loads: avg_tokens=17.50, max_tokens=55, balancedness=0.3182. SGLang's formula gives 0.75
        // for them, and the mean over the layers with tokens is 0.625.
        let layers = [[5.0, 5.0], [12.5, 50.0], [0.0, 0.0]].map(|[mean, max]| [Peak { mean, max }]);
        let layers: Vec<(u32, &[Peak])> = (0..).zip(layers.iter().map(|peaks| &peaks[..])).collect();
        let found = Balancedness::new(&layers, 3);
        assert!(close(found.vllm, 17.5 / 55.0) && close(found.sglang, 0.75), "{found:?}");
        assert!(close(found.eplb, 0.625), "{found:?}");
        // 0 and 37.5 / 12.5.
        assert!(close(found.tensorrt_llm_imbalance_ratio, 1.5), "{found:?}");
    }

    #[test]
    fn sglang_counts_dense_layers_as_even_and_no_layer_of_multi_token_prediction() {
        // 23 layers at 0.5 in a model of 52 layers: (11.5 + 29) / 52.
        let peaks = [Peak { mean: 1.0, max: 2.0 }];
        let layers: Vec<(u32, &[Peak])> = (0..23).map(|layer| (layer, &peaks[..])).collect();
        assert!(close(Balancedness::new(&layers, 52).sglang, 40.5 / 52.0));
        assert!(close(Balancedness::new(&layers, 20).sglang, 0.5));
    }

    #[test]
    fn iterations_without_load_are_left_out() {
        let idle = Peak { mean: 0.0, max: 0.0 };
        let peaks = [idle, Peak { mean: 1.0, max: 2.0 }, idle];
        let found = Balancedness::new(&[(0, &peaks)], 1);
        assert!(close(found.eplb, 0.5) && close(found.vllm, 0.5) && close(found.sglang, 0.5), "{found:?}");
        let none = Balancedness::new(&[(0, &[idle])], 1);
        assert_eq!((none.eplb, none.vllm, none.sglang), (None, None, None));
    }
}
