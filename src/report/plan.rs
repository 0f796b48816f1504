//! Computes a placement from a dump, with or without its score.

use super::DumpScore;
use super::score::{LayerScore, ScoreOptions};
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};
use crate::solve::{Loads, Policy, SolveConfig, Solver};
use crate::stats::{IdKind, LayerLoads, RowRanges, Stats, Summary};
use crate::threads;

/// The default number of samples: enough that experts which are hot in only some iterations are seen.
pub const DEFAULT_NUM_SAMPLES: usize = 16;

/// How to compute a placement from a dump.
#[derive(Debug, Clone, Copy)]
pub struct Planner<'a> {
    /// The policy and its options.
    pub solve: SolveConfig<'a>,
    /// Number of samples of each dump that [`Policy::Search`] balances: groups of consecutive rows, as equal in size as possible.
    /// At most one for each row, which is an iteration unless the dump's rows have several. The other policies use the sum of all iterations.
    pub num_samples: usize,
    /// Number of threads; 0: one a core, at most 8.
    pub threads: usize,
}

impl Planner<'_> {
    /// Computes the placement that `generate` would write.
    ///
    /// Fails as [`solve`](crate::solve::solve) does, and if the dump counts slots.
    pub fn place(&self, stats: &Stats, shape: Shape) -> Result<Placement> {
        Ok(self.each_layer(stats, shape, |_, _, _| ())?.0)
    }

    /// Computes the placement, and its score on the same loads.
    pub(crate) fn place_and_score(
        &self,
        stats: &Stats,
        shape: Shape,
        options: &ScoreOptions,
    ) -> Result<(Placement, DumpScore)> {
        let score = |layer, slot_experts: &[u32], loads: &LayerLoads| {
            LayerScore::new(shape, layer, slot_experts, loads, options)
        };
        let (placement, layers) = self.each_layer(stats, shape, score)?;
        Ok((placement, DumpScore::new(layers)))
    }

    /// Places each layer, then calls `then` with the layer's number, the expert of each slot and the loads.
    fn each_layer<T: Send>(
        &self,
        stats: &Stats,
        shape: Shape,
        then: impl Fn(u32, &[u32], &LayerLoads) -> T + Sync,
    ) -> Result<(Placement, Vec<T>)> {
        let Summary { num_experts, ref layers, ref rows, .. } = *stats.summary();
        require_expert_counts(stats.summary())?;
        let num_samples = self.num_samples(rows)?;
        if num_experts != shape.num_experts() {
            let message = format!("loads of {num_experts} experts for a shape of {}", shape.num_experts());
            return Err(Error::InvalidArgument(message));
        }
        let dump_weights = self.dump_weights(stats);
        let solve = SolveConfig {
            sample_weights: dump_weights.as_deref().or(self.solve.sample_weights),
            ..self.solve
        };
        let solver = Solver::new(&solve, shape, num_samples, layers.len())?;
        let layers_placed = threads::map(layers.len(), threads::resolve(self.threads), |index| {
            let (layer, number) = (layers[index], &layers[index..=index]);
            let loads = stats.layer_loads(layer, self.samples_of_each())?;
            let slot_experts =
                solver.place(&Loads::new(&loads.samples, number, num_samples, num_experts)?, 0, index)?;
            let result = then(layer, &slot_experts, &loads);
            Ok((slot_experts, result))
        })?;
        let (rows, results): (Vec<_>, Vec<_>) = layers_placed.into_iter().unzip();
        Ok((solver.placement(layers, &rows)?, results))
    }

    /// The number of samples to plan for, of each dump at most one a row.
    fn samples_of_each(&self) -> usize {
        if self.solve.policy == Policy::Search { self.num_samples.max(1) } else { 1 }
    }

    /// The weight of each sample where several dumps are planned for: all samples of a dump have equal parts of its load.
    fn dump_weights(&self, stats: &Stats) -> Option<Vec<f64>> {
        let loads = stats.dump_loads();
        if loads.len() == 1 || self.solve.sample_weights.is_some() || loads.iter().all(|&load| load == 0.0) {
            return None;
        }
        let of_dump = |(load, num_samples)| std::iter::repeat_n(load / num_samples as f64, num_samples);
        Some(
            loads
                .into_iter()
                .zip(stats.summary().rows.num_samples(self.samples_of_each()))
                .flat_map(of_dump)
                .collect(),
        )
    }

    /// The number of samples to plan for. Fails if there are sample weights and their number differs.
    pub(crate) fn num_samples(&self, rows: &RowRanges) -> Result<usize> {
        if self.solve.policy != Policy::Search {
            return Ok(rows.dumps().len());
        }
        let num_dumps = rows.dumps().len();
        let (requested, available) = (self.num_samples.max(1), rows.len() as usize);
        let num_samples = rows.num_samples(requested).sum();
        match self.solve.sample_weights.map(<[f64]>::len).filter(|&given| given != num_samples) {
            None => Ok(num_samples),
            Some(given) if num_dumps > 1 => Err(Error::InvalidArgument(format!(
                "{given} sample weights for {num_samples} samples of {num_dumps} dumps: num_samples is {requested} of each \
                 dump, at most one a row ({rows}); pass {num_samples} weights, those of the first dump first"
            ))),
            Some(given) if requested > available => Err(Error::InvalidArgument(format!(
                "{given} sample weights for {available} samples: num_samples is {requested}, but the dump has only \
                 {available} {} ({rows}), each a sample; pass {available} weights",
                if rows.are_iterations() { "iterations" } else { "rows" }
            ))),
            Some(given) => Err(Error::InvalidArgument(format!(
                "{given} sample weights for {num_samples} samples: num_samples is {num_samples}; pass as many weights, or \
                 set num_samples to {given}"
            ))),
        }
    }
}

/// Fails if the dump counts slots: these do not show the load of experts.
pub(crate) fn require_expert_counts(summary: &Summary) -> Result<()> {
    match summary.id_kind {
        Some(IdKind::Expert) | None => Ok(()),
        Some(IdKind::Slot) => {
            Err(Error::InvalidDump(
                "it counts slots, not experts, and a placement needs the load of experts; record again and count the router's \
                 expert ids (in TensorRT-LLM: without a load balancer configuration)"
                    .into(),
            ))
        }
    }
}
