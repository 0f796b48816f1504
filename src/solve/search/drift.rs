//! Scenarios of drifted loads, which stand for the loads after the planning.

use super::random::Random;

/// A standard normal distribution as sixteen equally likely values, with their opposites: the quantiles at (i
/// + 1/2) / 16.
const NORMAL: [f64; 8] =
    [0.078_412, 0.237_202, 0.402_250, 0.579_132, 0.776_422, 1.009_990, 1.318_011, 1.862_732];

/// The least number of scenarios of a layer. With more samples, each sample has one.
const LEAST_SCENARIOS: usize = 2 * NORMAL.len();

/// Returns the number of scenarios of each of `num_samples` samples.
pub(super) fn scenarios_per_sample(num_samples: usize) -> usize {
    LEAST_SCENARIOS.div_ceil(num_samples)
}

/// Returns the scenarios of `loads`, `[experts][samples]`, as `[samples x copies][experts]`. The copies of a
/// sample are adjacent, and each has an equal part of its weight.
///
/// An expert's load is the sample's times a factor. The factor's logarithm has a normal distribution with the
/// standard deviation `drift`, independent of other experts. Over sixteen scenarios, an expert gets each
/// factor once. The sum of a scenario is that of its sample.
pub(super) fn scenarios(loads: &[f64], num_samples: usize, drift: f64, random: &mut Random) -> Vec<Vec<f64>> {
    let (num_experts, copies) = (loads.len() / num_samples, scenarios_per_sample(num_samples));
    let mut factors: Vec<f64> = NORMAL.iter().flat_map(|z| [exp(drift * z), exp(-drift * z)]).collect();
    let mut scenarios = vec![Vec::with_capacity(num_experts); num_samples * copies];
    for expert_loads in loads.chunks_exact(num_samples) {
        for (block, scenarios) in scenarios.chunks_mut(factors.len()).enumerate() {
            random.shuffle(&mut factors);
            for (index, (scenario, factor)) in scenarios.iter_mut().zip(&factors).enumerate() {
                scenario.push(expert_loads[(block * factors.len() + index) / copies] * factor);
            }
        }
    }
    for (index, scenario) in scenarios.iter_mut().enumerate() {
        let wanted: f64 = loads[index / copies..].iter().step_by(num_samples).sum::<f64>() / copies as f64;
        let sum: f64 = scenario.iter().sum();
        if sum > 0.0 {
            scenario.iter_mut().for_each(|load| *load = *load / sum * wanted);
        }
    }
    scenarios
}

/// Returns e^x to about a millionth. The arithmetic is the same on every machine, unlike that of the
/// mathematics library.
fn exp(x: f64) -> f64 {
    const HALVINGS: u32 = 20;
    (0..HALVINGS).fold(1.0 + x / f64::from(1 << HALVINGS), |power, _| power * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_give_an_expert_each_factor_once_in_sixteen() {
        let scenarios = scenarios(&[1.0; 8], 1, 0.5, &mut Random::new(1));
        assert_eq!(scenarios.len(), 16);
        for other in 1..8 {
            // The ratio of two experts cancels the scale of the scenario. Its logarithms sum up to 0. Their
            // variance is about .5, the sum of two variances of .25, and at most 1, if the two factors are
            // opposites each time.
            let logs: Vec<f64> = scenarios.iter().map(|loads| (loads[other] / loads[0]).ln()).collect();
            let variance = logs.iter().map(|log| log * log).sum::<f64>() / 16.0;
            assert!(logs.iter().sum::<f64>().abs() < 1e-6, "{logs:?}");
            assert!((0.1..1.0).contains(&variance), "{variance}");
        }
        for scenario in &scenarios {
            assert!((scenario.iter().sum::<f64>() - 8.0 / 16.0).abs() < 1e-12);
        }
    }

    #[test]
    fn scenarios_without_drift_are_the_samples() {
        let loads: Vec<f64> = (0..3 * 20).map(|load| f64::from(load % 7)).collect(); // [3 experts][20 samples]
        assert_eq!(scenarios_per_sample(20), 1);
        let scenarios = scenarios(&loads, 20, 0.0, &mut Random::new(1));
        for (sample, scenario) in scenarios.iter().enumerate() {
            for (expert, load) in scenario.iter().enumerate() {
                assert!((load - loads[expert * 20 + sample]).abs() < 1e-12);
            }
        }
    }
}
