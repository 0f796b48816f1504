//! A prediction compared with a later recording, and the parts of the difference.

use serde::Serialize;

use super::balance::average;
use super::{Balance, Recording, Score};
use crate::error::{Error, Result};
use crate::stats::Summary;

/// A placement as predicted from one recording, compared with another recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Against {
    /// The second recording.
    pub summary: Summary,
    /// Whether it counts slots, so that the load of each rank is measured and not projected.
    pub measured: bool,
    /// The layers that both have, ascending.
    pub layers: Vec<LayerAgainst>,
}

/// One layer of both recordings. Ratios are the imbalance ratios of the ranks, [`Balance::imbalance_ratio`].
///
/// `predicted + drift + iterations + dispatch` is what was measured, exactly but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerAgainst {
    /// The layer's number.
    #[serde(skip)]
    pub layer: u32,
    /// The placement with the load of the first recording, split evenly over replicas.
    pub predicted: Option<f64>,
    /// The placement with the load of the second recording, split evenly over replicas.
    pub projected: Option<f64>,
    /// The load of the ranks in the second recording. `None` where experts were counted.
    pub measured: Option<f64>,
    /// The part of the difference between the sums of the iterations of each recording: other experts are hot now.
    pub drift: Option<f64>,
    /// The further part that shows iteration by iteration. Iterations of fewer tokens vary more from their sum.
    pub iterations: Option<f64>,
    /// The rest: the router did not split the experts' tokens evenly over their replicas. `None` where experts were counted.
    pub dispatch: Option<f64>,
    /// The share of the tokens that would have to choose another expert for both loads to be alike: 0 to 1.
    pub load_shift: Option<f64>,
    /// The tokens of the ranks in an iteration of the first and the second recording, the mean.
    pub tokens: [f64; 2],
}

/// The mean over layers of each figure of [`LayerAgainst`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each is that of LayerAgainst")]
pub struct AverageAgainst {
    pub predicted: Option<f64>,
    pub projected: Option<f64>,
    pub measured: Option<f64>,
    pub drift: Option<f64>,
    pub iterations: Option<f64>,
    pub dispatch: Option<f64>,
    pub load_shift: Option<f64>,
    pub tokens: [f64; 2],
}

impl Against {
    /// Compares `second`, recorded with the placement in force, with the prediction from `first`. Both have the same placement.
    pub fn new(first: &Recording<'_>, second: &Recording<'_>) -> Result<Against> {
        let Some(placement) = second.placement().filter(|_| first.placement() == second.placement()) else {
            return Err(Error::InvalidArgument("a prediction needs a placement, the same for both".into()));
        };
        let shape = placement.shape();
        let both = first.summary().layers.iter().filter(|layer| second.summary().layers.contains(layer));
        let mut layers = Vec::new();
        for &layer in both {
            let slot_experts = placement.layer_experts(layer)?;
            let projected = |loads: &[f64]| Score::new(shape, layer, slot_experts, loads).balance();
            let loads = [first.loads(layer)?, second.loads(layer)?];
            let sums = loads.each_ref().map(|loads| sum_of(loads.experts(), shape.num_experts()));
            let [of_first, of_second] = loads.each_ref().map(|loads| projected(loads.experts()));
            let of_sums = sums.each_ref().map(|sum| projected(sum).imbalance_ratio);
            let (predicted, projected) = (of_first.imbalance_ratio, of_second.imbalance_ratio);
            let measured = match second.counts_slots() {
                true => Balance::of_ranks(second.measured(&loads[1]).iter()).imbalance_ratio,
                false => None,
            };
            let drift = difference(of_sums[1], of_sums[0]);
            layers.push(LayerAgainst {
                layer,
                predicted,
                projected,
                measured,
                drift,
                iterations: difference(difference(projected, predicted), drift),
                dispatch: difference(measured, projected),
                load_shift: load_shift(&sums),
                tokens: [of_first, of_second].map(|balance| balance.mean * shape.num_ranks() as f64),
            });
        }
        if layers.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "the dumps have no layer in common: one has {:?}, the other {:?}",
                first.summary().layers,
                second.summary().layers
            )));
        }
        Ok(Against { summary: second.summary().clone(), measured: second.counts_slots(), layers })
    }

    /// The mean over the layers without an unknown figure, so that the parts add up.
    pub fn averages(&self) -> AverageAgainst {
        let known = self.layers.iter().filter(|layer| layer.iterations.is_some());
        let known: Vec<_> = known.filter(|layer| !self.measured || layer.dispatch.is_some()).collect();
        let mean = |of: fn(&LayerAgainst) -> Option<f64>| average(known.iter().map(|layer| of(layer)));
        AverageAgainst {
            predicted: mean(|layer| layer.predicted),
            projected: mean(|layer| layer.projected),
            measured: mean(|layer| layer.measured),
            drift: mean(|layer| layer.drift),
            iterations: mean(|layer| layer.iterations),
            dispatch: mean(|layer| layer.dispatch),
            load_shift: mean(|layer| layer.load_shift),
            tokens: [0, 1].map(|of| {
                self.layers.iter().map(|layer| layer.tokens[of]).sum::<f64>() / self.layers.len() as f64
            }),
        }
    }
}

fn difference(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? - b?)
}

/// The rows of `[iterations][experts]` added up.
fn sum_of(loads: &[f64], num_experts: usize) -> Vec<f64> {
    let mut sum = vec![0.0; num_experts];
    for row in loads.chunks_exact(num_experts) {
        sum.iter_mut().zip(row).for_each(|(sum, load)| *sum += load);
    }
    sum
}

/// Half the distance of the experts' shares.
fn load_shift([first, second]: &[Vec<f64>; 2]) -> Option<f64> {
    let totals = [first, second].map(|sum| sum.iter().sum::<f64>());
    let distance = first.iter().zip(second).map(|(a, b)| (a / totals[0] - b / totals[1]).abs());
    Some(distance.sum::<f64>() / 2.0).filter(|shift| shift.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Placement, Shape};
    use crate::stats::{Counted, Counts, IterationRange, LoadOptions, RankDump, Stats};

    fn recorded(counted: Counted, num_ids: usize, counts: &[u64]) -> Stats {
        let dir = tempfile::tempdir().unwrap();
        let iterations = IterationRange { start: 5, stop: 5 + (counts.len() / num_ids) as u64 };
        let dump = RankDump {
            rank: 0,
            num_ranks: 1,
            num_experts: num_ids,
            experts_per_token: 1,
            counted,
            iterations,
            held: iterations,
            layers: &[3],
            counts: Counts::U64(counts),
            run_id: None,
        };
        dump.write(dir.path()).unwrap();
        crate::stats::Dump::open(dir.path(), &LoadOptions::default())
            .unwrap()
            .read(&mut |_, _| Ok(()))
            .unwrap()
    }

    /// Ranks hold 0 1 | 0 2.
    fn placement() -> Placement {
        Placement::new(Shape::new(3, 4, 2).unwrap(), &[3], &[0, 1, 0, 2]).unwrap()
    }

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-12)
    }

    #[test]
    fn drift_iterations_and_dispatch_add_up_to_the_difference() {
        let placement = placement();
        // Ranks carry 4 + 2 and 4 + 2: level.
        let first = recorded(Counted::Experts, 3, &[8, 2, 2]);
        // Slots 0 1 | 2 3. Iteration by iteration the ranks got 10 and 2, and 4 and 4. Experts: 6 4 2 and 4 2 2, which an even
        // split puts as 7 and 5, and 4 and 4; their sum 10 6 4 as 11 and 9.
        let second = recorded(Counted::Slots, 4, &[6, 4, 0, 2, 2, 2, 2, 2]);
        let recordings = [&first, &second].map(|stats| Recording::new(stats, Some(&placement)).unwrap());
        let against = Against::new(&recordings[0], &recordings[1]).unwrap();
        let layer = against.layers[0];
        assert!(against.measured);
        assert!(close(layer.predicted, 0.0));
        // (7 - 6) / 6 and 0; (10 - 6) / 6 and 0.
        assert!(close(layer.projected, 1.0 / 12.0));
        assert!(close(layer.measured, 1.0 / 3.0));
        assert!(close(layer.drift, 0.1));
        assert!(close(layer.iterations, 1.0 / 12.0 - 0.1));
        assert!(close(layer.dispatch, 1.0 / 3.0 - 1.0 / 12.0));
        // Shares 8 2 2 of 12 and 10 6 4 of 20: 40 10 10 and 30 18 12 of 60, so 10 of 60 moved.
        assert!(close(layer.load_shift, 1.0 / 6.0));
        assert_eq!(layer.tokens, [12.0, 10.0]);
        assert!(close(against.averages().measured, 1.0 / 3.0));
    }

    #[test]
    fn dispatch_part_is_unknown_where_experts_were_counted() {
        let placement = placement();
        let first = recorded(Counted::Experts, 3, &[8, 2, 2]);
        let second = recorded(Counted::Experts, 3, &[6, 4, 2]);
        let recordings = [&first, &second].map(|stats| Recording::new(stats, Some(&placement)).unwrap());
        let against = Against::new(&recordings[0], &recordings[1]).unwrap();
        let layer = against.layers[0];
        assert_eq!((against.measured, layer.measured, layer.dispatch), (false, None, None));
        assert!(close(layer.projected, 1.0 / 6.0) && close(layer.drift, 1.0 / 6.0));
        assert!(close(against.averages().projected, 1.0 / 6.0));
    }

    #[test]
    fn recording_recognises_slots_by_their_number_and_refuses_other_ids() {
        let placement = placement();
        // As TensorRT-LLM dumps: nothing says that these are slots.
        let slots = recorded(Counted::Experts, 4, &[6, 4, 0, 2]);
        let recording = Recording::new(&slots, Some(&placement)).unwrap();
        assert!(recording.counts_slots());
        assert_eq!(recording.loads(3).unwrap().experts(), [6.0, 4.0, 2.0]);
        let refused = |stats: &Stats| Recording::new(stats, Some(&placement)).unwrap_err().to_string();
        assert_eq!(
            refused(&recorded(Counted::Slots, 6, &[1; 6])),
            "it counts 6 slots, the placement has 4: it was recorded with another placement"
        );
        assert_eq!(
            refused(&recorded(Counted::Experts, 8, &[1; 8])),
            "it counts 8 ids, and the placement has 3 experts in 4 slots: it is of another model"
        );
    }
}
