//! The expected loads of the experts of each layer, checked.

use crate::error::{Error, Result};

/// Loads, `[layers][samples][experts]`: finite and not negative.
///
/// A sample is one situation to balance: an iteration, or a recording of one workload. The unit is the
/// caller's, usually tokens; only ratios matter.
#[derive(Debug, Clone, Copy)]
pub struct Loads<'a> {
    values: &'a [f64],
    layers: &'a [u32],
    num_samples: usize,
    num_experts: usize,
}

impl<'a> Loads<'a> {
    /// Checks the loads. Fails with [`Error::InvalidLoads`] naming layer, sample and expert.
    pub fn new(values: &'a [f64], layers: &'a [u32], num_samples: usize, num_experts: usize) -> Result<Self> {
        let layer_len = num_samples.checked_mul(num_experts);
        let wanted = layer_len.and_then(|len| len.checked_mul(layers.len())).filter(|&n| n > 0);
        if wanted != Some(values.len()) {
            return Err(Error::InvalidArgument(format!(
                "{} loads for {} layers, {num_samples} samples and {num_experts} experts; each must be at least 1",
                values.len(),
                layers.len()
            )));
        }
        let loads = Loads { values, layers, num_samples, num_experts };
        match values.iter().position(|load| !(load.is_finite() && *load >= 0.0)) {
            None => Ok(loads),
            Some(index) => {
                let (sample, expert) = (index / num_experts, index % num_experts);
                Err(loads.invalid(
                    sample / num_samples,
                    sample % num_samples,
                    expert,
                    "must be finite and not negative",
                ))
            }
        }
    }

    /// Experts of each layer.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Samples of each layer.
    pub fn num_samples(&self) -> usize {
        self.num_samples
    }

    /// The layers' numbers, in the order of the loads.
    pub fn layers(&self) -> &'a [u32] {
        self.layers
    }

    /// Iterates over the samples of the layer at `index`, each `[experts]`.
    pub fn layer(&self, index: usize) -> impl Iterator<Item = &'a [f64]> + use<'a> {
        let layer_len = self.num_samples * self.num_experts;
        self.values[index * layer_len..][..layer_len].chunks_exact(self.num_experts)
    }

    /// Adds up the samples of a layer as TensorRT-LLM does: a sum in float64, rounded to float32.
    pub(super) fn layer_sums_f32(&self, index: usize) -> Result<Vec<f32>> {
        let mut sums = vec![0.0; self.num_experts];
        for sample in self.layer(index) {
            sums.iter_mut().zip(sample).for_each(|(sum, load)| *sum += load);
        }
        let sums: Vec<f32> = sums.into_iter().map(|sum: f64| sum as f32).collect();
        match sums.iter().position(|sum| sum.is_infinite()) {
            None => Ok(sums),
            Some(expert) => {
                let largest =
                    self.layer(index).enumerate().max_by(|a, b| a.1[expert].total_cmp(&b.1[expert]));
                let sample = largest.map_or(0, |(sample, _)| sample);
                Err(self.invalid(
                    index,
                    sample,
                    expert,
                    "makes a sum too large for float32; scale the loads down",
                ))
            }
        }
    }

    #[cold]
    fn invalid(&self, index: usize, sample: usize, expert: usize, why: &str) -> Error {
        let load = self.values[(index * self.num_samples + sample) * self.num_experts + expert];
        let layer = self.layers[index];
        Error::InvalidLoads(format!("layer {layer}, sample {sample}, expert {expert}: load {load:e} {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_layer_sample_and_expert_of_an_invalid_load() {
        for bad in [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY] {
            let mut values = [1.0; 12];
            values[9] = bad; // [layer index 1][sample 1][expert 0]
            let error = Loads::new(&values, &[3, 7], 2, 3).unwrap_err();
            let expected =
                format!("layer 7, sample 1, expert 0: load {bad:e} must be finite and not negative");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn new_rejects_sizes_that_do_not_match_or_overflow() {
        assert!(Loads::new(&[1.0; 6], &[0], 2, 3).is_ok());
        assert!(Loads::new(&[1.0; 5], &[0], 2, 3).is_err());
        assert!(Loads::new(&[], &[], 2, 3).is_err());
        assert!(Loads::new(&[1.0], &[0], usize::MAX, 3).is_err());
    }

    #[test]
    fn layer_sums_reject_a_sum_beyond_float32() {
        let loads = Loads::new(&[1.0, 1.0, 1e300, 1.0], &[4], 2, 2).unwrap();
        assert_eq!(
            loads.layer_sums_f32(0).unwrap_err().to_string(),
            "layer 4, sample 1, expert 0: load 1e300 makes a sum too large for float32; scale the loads down"
        );
    }
}
