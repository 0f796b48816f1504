//! What loads may become: scenarios that differ from the planned loads as later ones do.

use super::random::Random;

/// A standard normal distribution in sixteen equally likely values, each with its opposite: the quantiles at (i + 1/2) / 16.
const NORMAL: [f64; 8] =
    [0.078_412, 0.237_202, 0.402_250, 0.579_132, 0.776_422, 1.009_990, 1.318_011, 1.862_732];

/// Scenarios of a layer at the least; where there are more samples, one of each.
const LEAST_SCENARIOS: usize = 2 * NORMAL.len();

/// How many scenarios each of `num_samples` samples becomes.
pub(super) fn copies(num_samples: usize) -> usize {
    LEAST_SCENARIOS.div_ceil(num_samples)
}

/// Scenarios of `loads`, `[experts][samples]`: `[samples x copies][experts]`, a sample's side by side, each of them a part of its
/// weight. In each an expert's load is the sample's times a factor whose logarithm is distributed normally with a standard
/// deviation of `drift`, independent of other experts'; over sixteen scenarios an expert has each factor once. A scenario's sum
/// is its sample's.
pub(super) fn scenarios(loads: &[f64], num_samples: usize, drift: f64, random: &mut Random) -> Vec<Vec<f64>> {
    let (num_experts, copies) = (loads.len() / num_samples, copies(num_samples));
    let mut factors: Vec<f64> = NORMAL.iter().flat_map(|z| [exp(drift * z), exp(-drift * z)]).collect();
    let mut scenarios = vec![Vec::with_capacity(num_experts); num_samples * copies];
    for of_samples in loads.chunks_exact(num_samples) {
        for (block, scenarios) in scenarios.chunks_mut(factors.len()).enumerate() {
            random.shuffle(&mut factors);
            for (index, (scenario, factor)) in scenarios.iter_mut().zip(&factors).enumerate() {
                scenario.push(of_samples[(block * factors.len() + index) / copies] * factor);
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

/// To a millionth or so, by arithmetic that is the same on every machine, which the mathematics library is not.
fn exp(x: f64) -> f64 {
    const HALVINGS: u32 = 20;
    (0..HALVINGS).fold(1.0 + x / f64::from(1 << HALVINGS), |power, _| power * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_sixteen_scenarios_an_expert_has_each_factor_once() {
        let scenarios = scenarios(&[1.0; 8], 1, 0.5, &mut Random::new(1));
        assert_eq!(scenarios.len(), 16);
        for other in 1..8 {
            // What all experts of a scenario share, its scale, is not in their ratio, whose logarithms are 0 in sum and of
            // a variance of .25 twice, once for each expert; of no more than four times .25 were they opposites each time.
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
    fn many_samples_are_a_scenario_each_and_without_drift_they_are_the_samples() {
        let loads: Vec<f64> = (0..3 * 20).map(|load| f64::from(load % 7)).collect(); // [3 experts][20 samples]
        assert_eq!(copies(20), 1);
        let scenarios = scenarios(&loads, 20, 0.0, &mut Random::new(1));
        for (sample, scenario) in scenarios.iter().enumerate() {
            for (expert, load) in scenario.iter().enumerate() {
                assert!((load - loads[expert * 20 + sample]).abs() < 1e-12);
            }
        }
    }
}
