//! Layers and iterations without load, which ratios leave out.

use serde::Serialize;

use crate::error::Result;
use crate::stats::Stats;

/// Where a dump has no load. Ratios are averaged over the rest; means and deviations are over all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Idle {
    /// Layers without any load.
    pub layers: Vec<u32>,
    /// Iterations (rows of the dump) without load in any layer.
    pub iterations: usize,
    /// Iterations without load in single layers that have load in others, counted for each layer.
    pub layer_iterations: usize,
}

impl Idle {
    /// Finds the layers and iterations of `stats` without load.
    pub fn of(stats: &Stats) -> Result<Idle> {
        let summary = stats.summary();
        let num_rows = summary.rows.len() as usize;
        let (mut layers, mut idle, mut row_is_idle) = (Vec::new(), 0, vec![true; num_rows]);
        for &layer in &summary.layers {
            let loads = stats.layer_rows(layer)?;
            let mut idle_rows = 0;
            for (is_idle, loads) in row_is_idle.iter_mut().zip(loads.chunks_exact(summary.num_experts)) {
                let has_load = loads.iter().any(|&load| load > 0.0);
                *is_idle &= !has_load;
                idle_rows += usize::from(!has_load);
            }
            match idle_rows == num_rows {
                true => layers.push(layer),
                false => idle += idle_rows,
            }
        }
        let iterations = row_is_idle.into_iter().filter(|&is_idle| is_idle).count();
        let layer_iterations = idle - iterations * (summary.layers.len() - layers.len());
        Ok(Idle { layers, iterations, layer_iterations })
    }

    /// A line on what ratios leave out. `None` if they leave out nothing, or if no layer has load.
    pub fn note(&self, num_layers: usize) -> Option<String> {
        let number = |count: usize, what: &str| {
            let plural = if count == 1 { "" } else { "s" };
            (count > 0).then(|| format!("{count} {what}{plural}"))
        };
        let parts = [
            (!self.layers.is_empty()).then(|| format!("{} of {num_layers} layers", self.layers.len())),
            number(self.iterations, "iteration"),
            number(self.layer_iterations, "more of single layer"),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty() && self.layers.len() < num_layers).then(|| {
            format!("without load: {}; ratios leave them out, mean and std include them", parts.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{ArraysConfig, CountArray, IdKind, IterationRange};

    fn idle(counts: &[i64]) -> Idle {
        let config = ArraysConfig {
            num_experts: 2,
            experts_per_token: 1,
            num_ranks: 2,
            id_kind: IdKind::Expert,
            layers: &[3, 4],
            iterations: IterationRange { start: 0, stop: counts.len() as u64 / 4 },
        };
        Idle::of(&Stats::create(&config, CountArray::I64(counts)).unwrap()).unwrap()
    }

    #[test]
    fn idle_layers_and_iterations_are_counted_once() {
        // Of four iterations, the second is idle in both layers, the third in layer 3, the last in layer 4.
        let mixed = idle(&[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]);
        assert_eq!(mixed, Idle { layers: vec![], iterations: 1, layer_iterations: 2 });
        assert_eq!(
            mixed.note(2).unwrap(),
            "without load: 1 iteration, 2 more of single layers; ratios leave them out, mean and std include them"
        );
        // Layer 4 has no load at all, and layer 3 none in the second iteration.
        let layer = idle(&[1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(layer, Idle { layers: vec![4], iterations: 1, layer_iterations: 0 });
        assert!(layer.note(2).unwrap().starts_with("without load: 1 of 2 layers, 1 iteration; ratios"));
        let none = idle(&[0; 8]);
        assert_eq!(none, Idle { layers: vec![3, 4], iterations: 2, layer_iterations: 0 });
        assert_eq!((none.note(2), idle(&[1; 8]).note(2)), (None, None));
    }
}
