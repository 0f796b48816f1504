//! The balancedness of iterations in a placement.

use std::ops::Range;

use super::ReplayConfig;
use super::series::Series;
use crate::dispatch::Rule;
use crate::error::Result;
use crate::placement::Placement;
use crate::report::balance::{Peak, average};
use crate::report::score::Score;
use crate::report::{RoutingOptions, expected_load};
use crate::threads;

/// The balancedness of iterations: the mean over the layers with load.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// By the rule.
    pub even: Vec<Option<f64>>,
    /// By the best split.
    pub best_split: Vec<Option<f64>>,
}

impl Measured {
    pub fn balancedness(&self) -> Option<f64> {
        average(self.even.iter().copied())
    }

    pub fn best_split_balancedness(&self) -> Option<f64> {
        average(self.best_split.iter().copied())
    }

    /// Measures rows in a placement.
    pub fn add(
        &mut self,
        series: &Series,
        config: &ReplayConfig<'_>,
        placement: &Placement,
        rows: Range<usize>,
    ) -> Result<()> {
        let layers = series.layers();
        let of_layers = threads::map(layers.len(), threads::resolve(config.threads), |index| {
            let experts = placement.layer_experts(layers[index])?;
            let of_row = |row: usize| {
                let loads = series.layer(index, row..row + 1);
                let score = Score::new(config.shape, layers[index], experts, loads);
                let by_rule = match config.rule {
                    Rule::RoundRobin | Rule::TokenHash => score.balance().balancedness,
                    _ => routed(config, placement, layers[index], loads)?,
                };
                let best = config.best_split.then(|| score.best_split().balancedness).flatten();
                Ok((by_rule, best))
            };
            rows.clone().map(of_row).collect::<Result<Vec<_>>>()
        })?;
        for row in 0..rows.len() {
            self.even.push(average(of_layers.iter().map(|layer| layer[row].0)));
            if config.best_split {
                self.best_split.push(average(of_layers.iter().map(|layer| layer[row].1)));
            }
        }
        Ok(())
    }
}

/// The balancedness by a rule that does not split evenly.
fn routed(
    config: &ReplayConfig<'_>,
    placement: &Placement,
    layer: u32,
    loads: &[f64],
) -> Result<Option<f64>> {
    let (num_ranks, num_experts) = (config.shape.num_ranks(), config.shape.num_experts());
    let options = RoutingOptions {
        rule: config.rule,
        rank_to_node: config.rank_to_node,
        with_rank_counts: config.rule == Rule::LeastLoaded,
    };
    // Each rank chose equally many tokens; the first ranks one more where they do not divide.
    let of_rank = |rank: usize| {
        loads.iter().map(move |&load| {
            let (tokens, ranks) = (load as u64, num_ranks as u64);
            tokens / ranks + u64::from((rank as u64) < tokens % ranks)
        })
    };
    let counts: Vec<u64> = (0..num_ranks).flat_map(of_rank).collect();
    debug_assert_eq!(counts.len(), num_ranks * num_experts);
    Ok(Peak::new(&expected_load(placement, layer, options, &counts)?).balancedness())
}
