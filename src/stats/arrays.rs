//! Statistics of arrays: the counts of an engine that writes no dump.

use super::{IdKind, IterationRange, Stats, Summary};
use crate::error::{Error, Result, try_zeroed};
use crate::placement::MAX_COUNT;

/// Counts of either width, `[iterations][layers][experts]`.
#[derive(Debug, Clone, Copy)]
pub enum CountArray<'a> {
    /// 32-bit counts.
    I32(&'a [i32]),
    /// 64-bit counts.
    I64(&'a [i64]),
}

/// What arrays of counts describe.
#[derive(Debug, Clone, Copy)]
pub struct ArraysConfig<'a> {
    /// Experts of a layer, or slots where those were counted.
    pub num_experts: usize,
    /// Experts that each token chooses. 0: unknown.
    pub experts_per_token: usize,
    /// Ranks whose counts were summed.
    pub num_ranks: usize,
    /// What the counts are of.
    pub id_kind: IdKind,
    /// The layers' numbers, in the order of the arrays.
    pub layers: &'a [u32],
    /// The iterations of the arrays.
    pub iterations: IterationRange,
}

impl ArraysConfig<'_> {
    /// The number of counts.
    pub fn num_counts(&self) -> Option<usize> {
        usize::try_from(self.iterations.len())
            .ok()
            .and_then(|n| n.checked_mul(self.layers.len()))
            .and_then(|n| n.checked_mul(self.num_experts))
    }

    /// Checks the sizes, and returns each layer's number and its index in the arrays, by number.
    pub fn check(&self) -> Result<Vec<(u32, usize)>> {
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        let &ArraysConfig { num_experts, experts_per_token, num_ranks, .. } = self;
        if !(1..=MAX_COUNT).contains(&num_experts) {
            return refuse(format!("num_experts is {num_experts}; 1 to {MAX_COUNT} expected"));
        }
        if experts_per_token > num_experts {
            return refuse(format!(
                "experts_per_token is {experts_per_token}, num_experts {num_experts}; at most {num_experts} \
                 expected, or 0 if unknown"
            ));
        }
        if !(1..=MAX_COUNT).contains(&num_ranks) {
            return refuse(format!("num_ranks is {num_ranks}; 1 to {MAX_COUNT} expected"));
        }
        if self.iterations.is_empty() {
            return refuse("num_iterations is 0; at least 1 expected".to_owned());
        }
        if self.layers.is_empty() {
            return refuse("there is no layer; at least one expected".to_owned());
        }
        let mut layers: Vec<(u32, usize)> =
            self.layers.iter().enumerate().map(|(index, &layer)| (layer, index)).collect();
        layers.sort_unstable();
        match layers.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(twice) => refuse(format!("layer {} is listed twice", twice[0].0)),
            None => Ok(layers),
        }
    }
}

impl Stats {
    /// Takes arrays of counts, which are already summed over ranks. Fails where a count is negative, or where an expert's sum over
    /// the iterations is 2^63 or more.
    pub fn create(config: &ArraysConfig, counts: CountArray) -> Result<Stats> {
        let layers = config.check()?;
        let len = match counts {
            CountArray::I32(counts) => counts.len(),
            CountArray::I64(counts) => counts.len(),
        };
        if config.num_counts() != Some(len) {
            return Err(Error::InvalidArgument(format!(
                "{len} counts for iterations {}, {} layers and {} experts",
                config.iterations,
                layers.len(),
                config.num_experts
            )));
        }
        let counts = match counts {
            CountArray::I32(counts) => by_layer(config, &layers, counts, i64::from)?,
            CountArray::I64(counts) => by_layer(config, &layers, counts, |count| count)?,
        };
        let summary = Summary {
            num_experts: config.num_experts,
            experts_per_token: config.experts_per_token,
            num_ranks: config.num_ranks,
            num_files: config.num_ranks,
            stage_ranks: vec![config.num_ranks],
            missing_ranks: Vec::new(),
            id_kind: Some(config.id_kind),
            layers: layers.into_iter().map(|(layer, _)| layer).collect(),
            rows: config.iterations.into(),
        };
        Ok(Stats::from_counts(summary, counts))
    }
}

/// The counts in the order of [`Stats`]: `[layers][iterations][experts]`, layers ascending.
fn by_layer<T: Copy>(
    config: &ArraysConfig,
    layers: &[(u32, usize)],
    counts: &[T],
    decode: impl Fn(T) -> i64,
) -> Result<Vec<u64>> {
    let &ArraysConfig { num_experts, iterations, .. } = config;
    let mut ordered = try_zeroed(Some(counts.len()), "the counts")?;
    let mut sums = vec![0u64; num_experts];
    let mut rows = ordered.chunks_exact_mut(num_experts);
    for &(layer, index) in layers {
        sums.fill(0);
        for (iteration, row) in counts.chunks_exact(num_experts * layers.len()).enumerate() {
            let from = &row[index * num_experts..][..num_experts];
            let to = rows.next().unwrap_or_default();
            for (expert, ((&count, to), sum)) in from.iter().zip(to).zip(&mut sums).enumerate() {
                let count = decode(count);
                let refuse = |what: String| {
                    let iteration = iterations.start + iteration as u64;
                    let place = format!("layer {layer}, iteration {iteration}, expert {expert}");
                    Err(Error::InvalidArgument(format!("{place}: {what}")))
                };
                if count < 0 {
                    return refuse(format!("the count is {count}; counts are not negative"));
                }
                *to = count as u64;
                // Both terms are below 2^63.
                *sum += *to;
                if *sum > i64::MAX as u64 {
                    return refuse(
                        "the sum of the iterations so far is 2^63 or more; pass fewer iterations".to_owned(),
                    );
                }
            }
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: ArraysConfig = ArraysConfig {
        num_experts: 2,
        experts_per_token: 1,
        num_ranks: 4,
        id_kind: IdKind::Expert,
        layers: &[7, 3],
        iterations: IterationRange { start: 10, stop: 12 },
    };

    #[test]
    fn create_sorts_layers_and_keeps_their_counts() {
        let stats = Stats::create(&CONFIG, CountArray::I32(&[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        assert_eq!(stats.summary().layers, [3, 7]);
        assert_eq!(stats.layer_counts(7).unwrap(), [1, 2, 5, 6]);
        assert_eq!(stats.layer_counts(3).unwrap(), [3, 4, 7, 8]);
        let wide = Stats::create(&CONFIG, CountArray::I64(&[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        assert_eq!(stats, wide);
    }

    #[test]
    fn create_names_the_count_that_does_not_fit() {
        let message = |counts: CountArray| Stats::create(&CONFIG, counts).unwrap_err().to_string();
        assert_eq!(
            message(CountArray::I32(&[1, 2, 3, 4, 5, 6, 7, -8])),
            "layer 3, iteration 11, expert 1: the count is -8; counts are not negative"
        );
        let most = i64::MAX;
        assert_eq!(
            message(CountArray::I64(&[most, 2, most, 4, 1, 6, 0, 8])),
            "layer 7, iteration 11, expert 0: the sum of the iterations so far is 2^63 or more; pass fewer iterations"
        );
        assert!(Stats::create(&CONFIG, CountArray::I64(&[most, 2, most, 4, 0, 6, 0, 8])).is_ok());
        assert_eq!(
            message(CountArray::I32(&[1; 7])),
            "7 counts for iterations 10..12, 2 layers and 2 experts"
        );
    }
}
