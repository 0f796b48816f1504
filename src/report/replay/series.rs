//! The loads of all iterations, one dump after the other.

use std::ops::Range;

use super::require_expert_counts;
use crate::error::{Error, Result};
use crate::placement::Shape;
use crate::stats::{RowRanges, Stats};

/// The loads of each layer in each iteration.
pub(super) struct Series {
    rows: RowRanges,
    num_experts: usize,
    layers: Vec<u32>,
    /// Experts that a token chooses, at least 1.
    experts_per_token: usize,
    /// `[layers][rows][experts]`: whole numbers.
    loads: Vec<Vec<f64>>,
}

impl Series {
    pub fn new(stats: &Stats, shape: Shape) -> Result<Self> {
        let summary = stats.summary();
        require_expert_counts(summary)?;
        if summary.num_experts != shape.num_experts() {
            return Err(Error::InvalidArgument(format!(
                "loads of {} experts for a shape of {}",
                summary.num_experts,
                shape.num_experts()
            )));
        }
        let loads =
            summary.layers.iter().map(|&layer| stats.layer_rows(layer)).collect::<Result<Vec<_>>>()?;
        let fraction = |row: &[f64]| row.iter().any(|load| load.fract() != 0.0);
        if loads.iter().any(|layer| fraction(layer)) {
            return Err(Error::InvalidArgument(
                "the dumps have weights, and a replay needs their counts: leave the weights out".into(),
            ));
        }
        Ok(Series {
            rows: summary.rows.clone(),
            num_experts: summary.num_experts,
            layers: summary.layers.clone(),
            experts_per_token: summary.experts_per_token.max(1),
            loads,
        })
    }

    pub fn num_rows(&self) -> usize {
        self.rows.len() as usize
    }

    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// The number of the iteration of a row, by its dump.
    pub fn iteration(&self, row: usize) -> u64 {
        self.rows.first_iteration(row as u64)
    }

    /// The loads of the layer at `index`, `[rows][experts]`.
    pub fn layer(&self, index: usize, rows: Range<usize>) -> &[f64] {
        &self.loads[index][rows.start * self.num_experts..rows.end * self.num_experts]
    }

    /// The loads of all layers, `[layers][rows][experts]`. Without rows that have no load, unless none has.
    pub fn samples(&self, rows: Range<usize>) -> (Vec<f64>, usize) {
        let has_load = |&row: &usize| {
            (0..self.layers.len()).any(|layer| self.layer(layer, row..row + 1).iter().any(|&load| load > 0.0))
        };
        let mut loaded: Vec<usize> = rows.clone().filter(has_load).collect();
        if loaded.is_empty() {
            loaded = rows.collect();
        }
        let of_layer = |layer: usize| loaded.iter().flat_map(move |&row| self.layer(layer, row..row + 1));
        let loads = (0..self.layers.len()).flat_map(of_layer).copied().collect();
        (loads, loaded.len())
    }

    /// The counts of one row, `[layers][experts]`, and its tokens.
    pub fn counts(&self, row: usize) -> (Vec<i64>, u64) {
        let of_layer = |layer: usize| self.layer(layer, row..row + 1).iter().map(|&load| load as i64);
        let counts: Vec<i64> = (0..self.layers.len()).flat_map(of_layer).collect();
        let of_layers = counts.chunks_exact(self.num_experts).map(|layer| layer.iter().sum::<i64>());
        let tokens = of_layers.max().unwrap_or(0) as u64 / self.experts_per_token as u64;
        (counts, tokens)
    }
}
