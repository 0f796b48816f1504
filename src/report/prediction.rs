//! Compares the prediction from one recording with a second recording, and splits the difference into parts.

use serde::Serialize;

use super::balance::average;
use super::{Balance, Recording, Score};
use crate::error::{Error, Result};
use crate::stats::Summary;

/// The imbalance predicted from one recording, compared with a second recording.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictionReport {
    /// The second recording.
    pub summary: Summary,
    /// Whether the second recording counts slots. Then the load of each rank is measured, else it is projected.
    pub counts_slots: bool,
    /// The layers that both have, ascending.
    pub layers: Vec<LayerPrediction>,
}

/// One layer of both recordings. All ratios are [`Balance::imbalance_ratio`] of the ranks.
///
/// `predicted + drift + iterations + dispatch` equals `measured`, apart from rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerPrediction {
    /// The layer's number.
    #[serde(skip)]
    pub layer: u32,
    /// The placement with the load of the first recording, split evenly over replicas.
    pub predicted: Option<f64>,
    /// The placement with the load of the second recording, split evenly over replicas.
    pub projected: Option<f64>,
    /// The ranks' load as measured in the second recording. `None` if it counts experts.
    pub measured: Option<f64>,
    /// The part due to other hot experts: the difference with the iterations of each recording added up.
    pub drift: Option<f64>,
    /// The part due to single iterations, which differ from their sum. Those with fewer tokens differ more.
    pub iterations: Option<f64>,
    /// The part due to routing that did not split tokens evenly over replicas. `None` if experts were counted.
    pub dispatch: Option<f64>,
    /// The share of the tokens that chose other experts than in the first recording, 0 to 1.
    pub load_shift: Option<f64>,
    /// The mean number of tokens in an iteration of the first and of the second recording.
    pub tokens: [f64; 2],
}

/// The mean of each field of [`LayerPrediction`] over the layers with load in both recordings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each is the mean of the field of LayerPrediction")]
pub struct AveragePrediction {
    pub predicted: Option<f64>,
    pub projected: Option<f64>,
    pub measured: Option<f64>,
    pub drift: Option<f64>,
    pub iterations: Option<f64>,
    pub dispatch: Option<f64>,
    pub load_shift: Option<f64>,
    /// Over all layers if none has load in both recordings.
    pub tokens: [f64; 2],
    /// The number of layers that the means are over.
    pub num_layers: usize,
}

impl PredictionReport {
    /// Compares `second`, recorded with the placement in use, with the prediction from `first`.
    ///
    /// Fails if the two have different placements or none, or no layer in common.
    pub fn new(first: &Recording<'_>, second: &Recording<'_>) -> Result<PredictionReport> {
        let Some(placement) = second.placement().filter(|_| first.placement() == second.placement()) else {
            return Err(Error::InvalidArgument(
                "both recordings need the same placement for a prediction".into(),
            ));
        };
        let shape = placement.shape();
        let common = first.summary().layers.iter().filter(|layer| second.summary().layers.contains(layer));
        let mut layers = Vec::new();
        for &layer in common {
            let slot_experts = placement.layer_experts(layer)?;
            let projected = |loads: &[f64]| Score::new(shape, layer, slot_experts, loads).balance();
            let loads = [first.loads(layer)?, second.loads(layer)?];
            let sums = loads.each_ref().map(|loads| sum_rows(loads.experts(), shape.num_experts()));
            let [first_balance, second_balance] = loads.each_ref().map(|loads| projected(loads.experts()));
            let sum_ratios = sums.each_ref().map(|sum| projected(sum).imbalance_ratio);
            let (predicted, projected) = (first_balance.imbalance_ratio, second_balance.imbalance_ratio);
            let measured = match second.counts_slots() {
                true => {
                    Balance::from_rank_loads(second.measured(&loads[1], shape.num_ranks()).iter())
                        .imbalance_ratio
                }
                false => None,
            };
            let drift = difference(sum_ratios[1], sum_ratios[0]);
            layers.push(LayerPrediction {
                layer,
                predicted,
                projected,
                measured,
                drift,
                iterations: difference(difference(projected, predicted), drift),
                dispatch: difference(measured, projected),
                load_shift: load_shift(&sums),
                tokens: [first_balance, second_balance]
                    .map(|balance| balance.mean * shape.num_ranks() as f64),
            });
        }
        if layers.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "the dumps have no layer in common: one has {:?}, the other {:?}",
                first.summary().layers,
                second.summary().layers
            )));
        }
        Ok(PredictionReport {
            summary: second.summary().clone(),
            counts_slots: second.counts_slots(),
            layers,
        })
    }

    /// The means over the layers in which all parts are known, so that the parts add up.
    pub fn averages(&self) -> AveragePrediction {
        let known = self.layers.iter().filter(|layer| layer.iterations.is_some());
        let known: Vec<_> = known.filter(|layer| !self.counts_slots || layer.dispatch.is_some()).collect();
        let all: Vec<_> = self.layers.iter().collect();
        let with_tokens = if known.is_empty() { &all } else { &known };
        let mean = |of: fn(&LayerPrediction) -> Option<f64>| average(known.iter().map(|layer| of(layer)));
        AveragePrediction {
            predicted: mean(|layer| layer.predicted),
            projected: mean(|layer| layer.projected),
            measured: mean(|layer| layer.measured),
            drift: mean(|layer| layer.drift),
            iterations: mean(|layer| layer.iterations),
            dispatch: mean(|layer| layer.dispatch),
            load_shift: mean(|layer| layer.load_shift),
            tokens: [0, 1].map(|recording| {
                with_tokens.iter().map(|layer| layer.tokens[recording]).sum::<f64>()
                    / with_tokens.len() as f64
            }),
            num_layers: known.len(),
        }
    }
}

fn difference(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? - b?)
}

/// Adds up the rows of `[rows][experts]`.
fn sum_rows(loads: &[f64], num_experts: usize) -> Vec<f64> {
    let mut sum = vec![0.0; num_experts];
    for row in loads.chunks_exact(num_experts) {
        sum.iter_mut().zip(row).for_each(|(sum, load)| *sum += load);
    }
    sum
}

/// Half the sum of the absolute differences of the experts' shares of the load.
fn load_shift([first, second]: &[Vec<f64>; 2]) -> Option<f64> {
    let totals = [first, second].map(|sum| sum.iter().sum::<f64>());
    let distance = first.iter().zip(second).map(|(a, b)| (a / totals[0] - b / totals[1]).abs());
    Some(distance.sum::<f64>() / 2.0).filter(|shift| shift.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Placement, Shape};
    use crate::stats::{Counts, IdKind, IterationRange, LoadOptions, RankDump, Rows, Stats};

    fn record(id_kind: IdKind, num_ids: usize, counts: &[u64]) -> Stats {
        let dir = tempfile::tempdir().unwrap();
        let iterations = IterationRange { start: 5, stop: 5 + (counts.len() / num_ids) as u64 };
        let dump = RankDump {
            rank: 0,
            num_ranks: 1,
            file: None,
            rows: Rows::default(),
            num_experts: num_ids,
            experts_per_token: 1,
            id_kind,
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

    /// Rank 0 holds experts 0 and 1, rank 1 holds 0 and 2.
    fn placement() -> Placement {
        Placement::new(Shape::new(3, 4, 2).unwrap(), &[3], &[0, 1, 0, 2]).unwrap()
    }

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-12)
    }

    #[test]
    fn drift_iterations_and_dispatch_add_up_to_the_difference() {
        let placement = placement();
        // Rank loads 4 + 2 and 4 + 2: even.
        let first = record(IdKind::Expert, 3, &[8, 2, 2]);
        // Rank loads 10 and 2 in the first iteration, 4 and 4 in the second. Expert loads 6 4 2 and 4 2 2, with an even split
        // 7 and 5, and 4 and 4. The sum of the iterations, 10 6 4, gives 11 and 9.
        let second = record(IdKind::Slot, 4, &[6, 4, 0, 2, 2, 2, 2, 2]);
        let recordings = [&first, &second].map(|stats| Recording::new(stats, Some(&placement)).unwrap());
        let report = PredictionReport::new(&recordings[0], &recordings[1]).unwrap();
        let layer = report.layers[0];
        assert!(report.counts_slots);
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
        assert!(close(report.averages().measured, 1.0 / 3.0));
    }

    #[test]
    fn iterations_without_load_are_left_out() {
        let placement = placement();
        // Rank loads 6 and 6, and none.
        let first = record(IdKind::Expert, 3, &[8, 2, 2, 0, 0, 0]);
        let second = record(IdKind::Expert, 3, &[0, 0, 0, 6, 4, 2]);
        let idle = record(IdKind::Expert, 3, &[0, 0, 0]);
        let of = |first, second| {
            let recordings = [first, second].map(|stats| Recording::new(stats, Some(&placement)).unwrap());
            PredictionReport::new(&recordings[0], &recordings[1]).unwrap().averages()
        };
        // 7 and 5 in the iteration with load.
        let average = of(&first, &second);
        assert!(close(average.predicted, 0.0) && close(average.projected, 1.0 / 6.0));
        assert_eq!((average.tokens, average.num_layers), ([6.0, 6.0], 1));
        let average = of(&first, &idle);
        assert_eq!((average.predicted, average.num_layers), (None, 0));
    }

    #[test]
    fn dispatch_is_unknown_if_experts_were_counted() {
        let placement = placement();
        let first = record(IdKind::Expert, 3, &[8, 2, 2]);
        let second = record(IdKind::Expert, 3, &[6, 4, 2]);
        let recordings = [&first, &second].map(|stats| Recording::new(stats, Some(&placement)).unwrap());
        let report = PredictionReport::new(&recordings[0], &recordings[1]).unwrap();
        let layer = report.layers[0];
        assert_eq!((report.counts_slots, layer.measured, layer.dispatch), (false, None, None));
        assert!(close(layer.projected, 1.0 / 6.0) && close(layer.drift, 1.0 / 6.0));
        assert!(close(report.averages().projected, 1.0 / 6.0));
    }

    #[test]
    fn recording_infers_slots_from_their_number_and_rejects_other_ids() {
        let placement = placement();
        // As TensorRT-LLM dumps: marked as experts, although these are slots.
        let slots = record(IdKind::Expert, 4, &[6, 4, 0, 2]);
        let recording = Recording::new(&slots, Some(&placement)).unwrap();
        assert!(recording.counts_slots());
        assert_eq!(recording.loads(3).unwrap().experts(), [6.0, 4.0, 2.0]);
        let error = |stats: &Stats| Recording::new(stats, Some(&placement)).unwrap_err().to_string();
        assert_eq!(
            error(&record(IdKind::Slot, 6, &[1; 6])),
            "it counts 6 slots, the placement has 4: it was recorded with another placement"
        );
        assert_eq!(
            error(&record(IdKind::Expert, 8, &[1; 8])),
            "it counts 8 ids, and the placement has 3 experts in 4 slots: it is of another model"
        );
    }
}
