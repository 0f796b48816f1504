//! What was observed: a ring of windows for each phase. Counts are by expert, so they stay valid when slots change.

use std::collections::VecDeque;

use super::agreement::Hash;
use super::layer_loads::{Measure, Sample};
use crate::error::{Error, Result};

/// The largest sum of the counts of a layer in a window. Up to it, counts are exact as f64.
const MOST_COUNTS: i64 = 1 << 53;

/// 2^(-1 / 2^k) for k = 1 to 16, as parts of 2^32.
const ROOTS: [u64; 16] = [
    3_037_000_499,
    3_611_622_602,
    3_938_502_375,
    4_112_874_773,
    4_202_935_003,
    4_248_701_964,
    4_271_771_996,
    4_283_353_945,
    4_289_156_690,
    4_292_061_009,
    4_293_513_906,
    4_294_240_539,
    4_294_603_902,
    4_294_785_595,
    4_294_876_444,
    4_294_921_870,
];

/// 2^(-age / half_life) as parts of 2^32, in integers, so that every machine has the same.
fn decay(age: u64, half_life: u64) -> u64 {
    let (halvings, rest) = (age / half_life, age % half_life);
    if halvings >= 32 {
        return 0;
    }
    // The binary digits of rest / half_life.
    let (mut weight, mut rest) = (1u64 << 32, u128::from(rest));
    for root in ROOTS {
        rest *= 2;
        if rest >= u128::from(half_life) {
            rest -= u128::from(half_life);
            weight = (weight * root) >> 32;
        }
    }
    weight >> halvings
}

/// One observation.
#[derive(Debug, Clone)]
struct Window {
    /// Its number, in the order of all observations.
    number: u64,
    num_tokens: u64,
    num_samples: usize,
    /// `[layers][samples][experts]`: whole numbers. Samples without counts are left out.
    loads: Vec<f64>,
    /// A hash of each row of `loads`, `[layers][samples]`.
    hashes: Vec<u64>,
    /// In the placement in force, `[layers]`.
    measures: Vec<Measure>,
    hash: u64,
}

impl Window {
    fn layer(&self, layer: usize, num_experts: usize) -> &[f64] {
        &self.loads[layer * self.num_samples * num_experts..][..self.num_samples * num_experts]
    }

    /// The mean over layers of mean / max.
    fn balance(&self) -> f64 {
        self.measures.iter().map(|measure| measure.balance).sum::<f64>() / self.measures.len() as f64
    }
}

/// The windows of all phases.
#[derive(Debug, Clone)]
pub(super) struct History {
    num_layers: usize,
    num_experts: usize,
    num_windows: usize,
    half_life: u64,
    phases: Vec<VecDeque<Window>>,
    /// The number of observations, those that do not count included.
    now: u64,
}

impl History {
    pub fn new(
        num_layers: usize,
        num_experts: usize,
        num_windows: usize,
        half_life: u64,
        phases: usize,
    ) -> Self {
        let phases = vec![VecDeque::new(); phases];
        History { num_layers, num_experts, num_windows, half_life, phases, now: 0 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.now = 0;
        self.phases.iter_mut().for_each(VecDeque::clear);
    }

    /// The number of observations.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Windows with counts.
    pub fn num_windows(&self) -> usize {
        self.phases.iter().map(VecDeque::len).sum()
    }

    /// The tokens of all windows.
    pub fn num_tokens(&self) -> u64 {
        self.windows().fold(0, |sum, window| sum.saturating_add(window.num_tokens))
    }

    /// Passes time without counts.
    pub fn skip(&mut self) {
        self.now += 1;
    }

    /// Adds a window of `counts`, `[num_samples][layers][experts]`. One without counts only passes time.
    pub fn observe(
        &mut self,
        counts: &[i64],
        num_samples: usize,
        num_tokens: u64,
        phase: usize,
        layer_ids: &[u32],
        measure_of: impl Fn(usize, &[f64]) -> Measure,
    ) -> Result<()> {
        let (layers, experts) = (self.num_layers, self.num_experts);
        for (index, row) in counts.chunks_exact(experts).enumerate() {
            check(row).map_err(|(expert, what)| {
                let (sample, layer) = (index / layers, layer_ids[index % layers]);
                Error::InvalidLoads(format!("sample {sample}, layer {layer}, expert {expert}: {what}"))
            })?;
        }
        let number = self.now;
        self.now += 1;
        let has_counts = |sample: &usize| {
            counts[sample * layers * experts..][..layers * experts].iter().any(|&count| count > 0)
        };
        let samples: Vec<usize> = (0..num_samples).filter(has_counts).collect();
        if samples.is_empty() {
            return Ok(());
        }
        let of_row = |row: &[i64]| {
            let mut hash = Hash::new();
            hash.add_all(row.iter().map(|&count| count as u64));
            hash.word()
        };
        let mut hash = Hash::new();
        hash.add_all([number, num_tokens, phase as u64, num_samples as u64]);
        hash.add_all(samples.iter().map(|&sample| sample as u64));
        let (mut loads, mut hashes) = (Vec::with_capacity(samples.len() * layers * experts), Vec::new());
        for layer in 0..layers {
            for sample in &samples {
                let row = &counts[(sample * layers + layer) * experts..][..experts];
                loads.extend(row.iter().map(|&count| count as f64));
                hashes.push(of_row(row));
            }
        }
        hash.add_all(hashes.iter().copied());
        let (num_samples, hash) = (samples.len(), hash.word());
        let mut window =
            Window { number, num_tokens, num_samples, loads, hashes, measures: Vec::new(), hash };
        window.measures = (0..layers).map(|layer| measure_of(layer, window.layer(layer, experts))).collect();
        let ring = &mut self.phases[phase];
        if ring.len() == self.num_windows {
            ring.pop_front();
        }
        ring.push_back(window);
        Ok(())
    }

    /// Measures a layer again, whose slots have changed.
    pub fn measure(&mut self, layer: usize, measure_of: impl Fn(&[f64]) -> Measure) {
        let experts = self.num_experts;
        for window in self.phases.iter_mut().flatten() {
            window.measures[layer] = measure_of(window.layer(layer, experts));
        }
    }

    fn windows(&self) -> impl Iterator<Item = &Window> {
        self.phases.iter().flatten()
    }

    /// The windows that have a weight, and their weights.
    fn weighed(&self) -> impl Iterator<Item = (&Window, u64)> {
        let weigh = |window| (window, self.weight(window));
        self.windows().map(weigh).filter(|&(_, weight)| weight > 0)
    }

    fn weight(&self, window: &Window) -> u64 {
        decay(self.now - 1 - window.number, self.half_life)
    }

    /// The windows with their weights, which sum up to 1.
    pub fn weighted(&self) -> Weighted<'_> {
        let sum: u64 = self.weighed().map(|(_, weight)| weight).sum();
        let windows = self.weighed().map(|(window, weight)| (window, weight as f64 / sum as f64)).collect();
        Weighted { windows, num_experts: self.num_experts }
    }

    /// The weighted mean over windows of the layers' balancedness; 0 without counts.
    pub fn balance(&self) -> f64 {
        self.mean(Window::balance)
    }

    /// As [`History::balance`], of one layer.
    pub fn layer_balance(&self, layer: usize) -> f64 {
        self.mean(|window| window.measures[layer].balance)
    }

    fn mean(&self, of: impl Fn(&Window) -> f64) -> f64 {
        let (mut sum, mut weights) = (0.0, 0.0);
        for (window, weight) in self.weighed() {
            sum += of(window) * weight as f64;
            weights += weight as f64;
        }
        if weights > 0.0 { sum / weights } else { 0.0 }
    }

    /// The balancedness of the last window in the placement in force; 0 before the first.
    pub fn last_balance(&self) -> f64 {
        self.windows().max_by_key(|window| window.number).map_or(0.0, Window::balance)
    }

    /// Adds all that a plan depends on.
    pub fn add_to(&self, hash: &mut Hash) {
        hash.add_all([self.now, self.half_life, self.num_windows as u64]);
        hash.add_all(self.windows().map(|window| window.hash));
    }
}

/// The windows that have a weight, oldest first in each phase, with their parts of all weights.
pub(super) struct Weighted<'a> {
    windows: Vec<(&'a Window, f64)>,
    num_experts: usize,
}

impl<'a> Weighted<'a> {
    /// The samples of a layer. Equal ones are one, so that a load that stays gives the same as before.
    pub fn samples(&self, layer: usize) -> Vec<Sample<'a>> {
        let mut samples: Vec<Sample> = Vec::new();
        for &(window, weight) in &self.windows {
            let weight = weight / window.num_samples as f64;
            let rows = window.layer(layer, self.num_experts).chunks_exact(self.num_experts);
            let hashes = &window.hashes[layer * window.num_samples..];
            for (loads, &hash) in rows.zip(hashes) {
                match samples.iter().position(|other| other.hash == hash && other.loads == loads) {
                    Some(same) => samples[same].weight += weight,
                    None => samples.push(Sample { loads, weight, hash }),
                }
            }
        }
        samples
    }

    /// The hash and the weight of each of the samples.
    pub fn hashes(&self, layer: usize) -> Vec<(u64, f64)> {
        let mut hashes: Vec<(u64, f64)> = Vec::new();
        for &(window, weight) in &self.windows {
            let weight = weight / window.num_samples as f64;
            for &hash in &window.hashes[layer * window.num_samples..][..window.num_samples] {
                match hashes.iter_mut().find(|(other, _)| *other == hash) {
                    Some((_, sum)) => *sum += weight,
                    None => hashes.push((hash, weight)),
                }
            }
        }
        hashes
    }

    /// Whether a layer has one sample, with load. The mean of its max / mean is then one over that of its mean / max.
    pub fn is_one_sample(&self, layer: usize) -> bool {
        match self.windows[..] {
            [(window, _)] if window.num_samples == 1 => {
                window.layer(layer, self.num_experts).iter().any(|&load| load > 0.0)
            }
            _ => false,
        }
    }

    /// How even a layer is in the placement in force. `None` without windows.
    pub fn measure(&self, layer: usize) -> Option<Measure> {
        let mut measure = Measure::default();
        for &(window, weight) in &self.windows {
            measure.add(weight, &window.measures[layer]);
        }
        (!self.windows.is_empty()).then_some(measure)
    }
}

/// Returns the first expert whose count is wrong, and why.
fn check(row: &[i64]) -> std::result::Result<(), (usize, String)> {
    let mut sum = 0i64;
    for (expert, &count) in row.iter().enumerate() {
        if count < 0 {
            return Err((expert, format!("the count {count} is negative")));
        }
        sum = sum.saturating_add(count);
        if sum > MOST_COUNTS {
            return Err((expert, format!("the counts of the layer exceed 2^53; is {count} uninitialised?")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_halve_with_each_half_life() {
        let of = |age, half_life| decay(age, half_life) as f64 / f64::from(u32::MAX);
        for (age, half_life) in [(0, 1), (1, 1), (1, 2), (3, 4), (5, 4), (7, 3), (100, 7)] {
            // By the definition, on the host's own exp2.
            let expected = (-(age as f64) / half_life as f64).exp2();
            assert!((of(age, half_life) - expected).abs() < 2e-5 * expected, "{age} {half_life}");
        }
        assert_eq!(decay(1000, 1), 0);
    }

    fn history() -> History {
        History::new(1, 2, 2, 1, 2)
    }

    #[test]
    fn a_ring_forgets_its_oldest_window_and_no_other_phases() {
        let mut history = history();
        for (counts, phase) in [([1, 0], 0), ([2, 0], 1), ([3, 0], 0), ([4, 0], 0)] {
            history.observe(&counts, 1, 10, phase, &[0], |_, _| Measure::default()).unwrap();
        }
        let loads: Vec<f64> = history.weighted().samples(0).iter().map(|sample| sample.loads[0]).collect();
        assert_eq!((loads, history.num_tokens()), (vec![3.0, 4.0, 2.0], 30));
        // Ages 1, 0 and 2: 1/2, 1 and 1/4 of 7/4.
        let weights: Vec<f64> = history.weighted().samples(0).iter().map(|sample| sample.weight).collect();
        for (weight, expected) in weights.iter().zip([2.0 / 7.0, 4.0 / 7.0, 1.0 / 7.0]) {
            assert!((weight - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn samples_without_counts_are_left_out() {
        let mut history = history();
        history.observe(&[0, 5, 0, 0], 2, 10, 0, &[0], |_, _| Measure::default()).unwrap();
        assert_eq!(history.weighted().samples(0).len(), 1);
        history.observe(&[0, 0], 1, 10, 0, &[0], |_, _| Measure::default()).unwrap();
        assert_eq!((history.num_windows(), history.now()), (1, 2));
    }

    #[test]
    fn wrong_counts_are_named_and_change_nothing() {
        let mut history = history();
        let mut refused = |counts: [i64; 4]| {
            let error =
                history.observe(&counts, 2, 1, 0, &[7], |_, _| Measure::default()).unwrap_err().to_string();
            assert_eq!(history.now(), 0);
            error
        };
        assert_eq!(refused([1, 2, 3, -4]), "sample 1, layer 7, expert 1: the count -4 is negative");
        assert_eq!(
            refused([1 << 53, 1, 0, 0]),
            "sample 0, layer 7, expert 1: the counts of the layer exceed 2^53; is 1 uninitialised?"
        );
    }
}
