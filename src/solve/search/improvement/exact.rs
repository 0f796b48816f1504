//! The exact loads of a layer.

use super::Improvement;
use crate::placement::NO_EXPERT;

/// The exact loads of a layer, scaled so that the mean load of an active rank is the sample's weight.
#[derive(Default)]
pub(super) struct ExactLoads {
    pub num_samples: usize,
    /// `[experts][samples]`
    pub loads: Vec<f64>,
    /// The cost where all ranks are even: the weight of samples with load.
    even: f64,
}

impl ExactLoads {
    /// Takes the samples of an improvement.
    pub fn start(&mut self, improvement: &Improvement<'_>) {
        let Improvement { shape, samples, sample_weights, active, .. } = *improvement;
        let num_samples = samples.len();
        let is_active = |rank: &usize| active.is_none_or(|active| active[*rank]);
        let num_active = (0..shape.num_ranks()).filter(is_active).count() as f64;
        (self.num_samples, self.even) = (num_samples, 0.0);
        self.loads.clear();
        self.loads.resize(shape.num_experts() * num_samples, 0.0);
        for (sample, (loads, weight)) in samples.iter().zip(sample_weights).enumerate() {
            let mean = loads.iter().sum::<f64>() / num_active;
            if mean == 0.0 || *weight == 0.0 {
                continue;
            }
            self.even += weight;
            // Divides first: the factor would be infinite for a tiny mean.
            let scale = |load: f64| load / mean * weight;
            match num_samples {
                1 => self.loads.iter_mut().zip(*loads).for_each(|(scaled, &load)| *scaled = scale(load)),
                _ => {
                    for (scaled, &load) in self.loads[sample..].iter_mut().step_by(num_samples).zip(*loads) {
                        *scaled = scale(load);
                    }
                }
            }
        }
    }

    pub fn even(&self) -> f64 {
        self.even
    }

    /// Computes the load of a rank, `[samples]`.
    #[inline]
    pub fn sum_rank(&self, experts: &[u32], replica_loads: &[f64], sums: &mut [f64]) {
        if let [sum] = sums {
            // Empty slots hold no expert.
            let load = |&expert: &u32| replica_loads.get(expert as usize).copied().unwrap_or(0.0);
            *sum = experts.iter().map(load).fold(0.0, |sum, load| sum + load);
            return;
        }
        sums.fill(0.0);
        for &expert in experts.iter().filter(|&&expert| expert != NO_EXPERT) {
            let loads = &replica_loads[expert as usize * self.num_samples..][..self.num_samples];
            sums.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load);
        }
    }

    /// Returns the cost of rank loads, `[ranks][samples]`.
    pub fn cost(&self, rank_loads: &[f64]) -> f64 {
        (0..self.num_samples).map(|sample| self.max(rank_loads, sample)).sum()
    }

    pub fn max(&self, rank_loads: &[f64], sample: usize) -> f64 {
        let larger = |most: f64, &load: &f64| if load > most { load } else { most };
        match self.num_samples {
            1 => {
                // Eight at once: a single chain of comparisons would wait for each.
                let (blocks, rest) = rank_loads.as_chunks::<8>();
                let mut most = [0.0; 8];
                for block in blocks {
                    most.iter_mut().zip(block).for_each(|(most, load)| *most = larger(*most, load));
                }
                rest.iter().chain(&most).fold(0.0, larger)
            }
            _ => rank_loads[sample..].iter().step_by(self.num_samples).fold(0.0, larger),
        }
    }
}
