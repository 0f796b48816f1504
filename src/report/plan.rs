//! Planning: a dump becomes a placement, with or without its score.

use super::DumpScore;
use super::score::{Figures, LayerScore};
use crate::error::{Error, Result};
use crate::placement::{Placement, Shape};
use crate::solve::{Loads, Policy, SolveConfig, Solver};
use crate::stats::{Counted, IterationRange, LayerLoads, Stats, Summary};
use crate::threads;

/// The number of samples that iterations are grouped into by default: enough that the hot experts of some iterations show.
pub const DEFAULT_NUM_SAMPLES: usize = 16;

/// How to place experts by a dump, and on how many threads.
#[derive(Debug, Clone, Copy)]
pub struct Planner<'a> {
    /// The rule.
    pub solve: SolveConfig<'a>,
    /// Samples for [`Policy::Search`] to level each of: groups of consecutive iterations, as even as possible, or fewer where
    /// there are fewer iterations. The other policies place by the sum.
    pub num_samples: usize,
    /// 0 for one a core, at most 8.
    pub threads: usize,
}

impl Planner<'_> {
    /// The placement that `generate` would write. Fails as [`solve`](crate::solve::solve), and where slots were counted.
    pub fn place(&self, stats: &Stats, shape: Shape) -> Result<Placement> {
        Ok(self.each_layer(stats, shape, |_, _, _| ())?.0)
    }

    /// The placement, and its score by the loads that it was placed by.
    pub(crate) fn place_and_score(
        &self,
        stats: &Stats,
        shape: Shape,
        figures: &Figures,
    ) -> Result<(Placement, DumpScore)> {
        let score = |layer, slot_experts: &[u32], loads: &LayerLoads| {
            LayerScore::new(shape, layer, slot_experts, loads, figures)
        };
        let (placement, layers) = self.each_layer(stats, shape, score)?;
        Ok((placement, DumpScore::new(layers)))
    }

    /// Places layer by layer, and hands each with its number, the expert of each slot and its loads to `then`.
    fn each_layer<T: Send>(
        &self,
        stats: &Stats,
        shape: Shape,
        then: impl Fn(u32, &[u32], &LayerLoads) -> T + Sync,
    ) -> Result<(Placement, Vec<T>)> {
        let Summary { num_experts, ref layers, iterations, .. } = *stats.summary();
        refuse_slots(stats.summary())?;
        let num_samples = self.num_samples(iterations)?;
        if num_experts != shape.num_experts() {
            let message = format!("loads of {num_experts} experts for a shape of {}", shape.num_experts());
            return Err(Error::InvalidArgument(message));
        }
        let solver = Solver::new(&self.solve, shape, num_samples)?;
        let placed = threads::map(layers.len(), threads::resolve(self.threads), |index| {
            let (layer, number) = (layers[index], &layers[index..=index]);
            let loads = stats.layer_loads(layer, num_samples)?;
            let slot_experts =
                solver.place(&Loads::new(&loads.samples, number, num_samples, num_experts)?, 0)?;
            let result = then(layer, &slot_experts, &loads);
            Ok((slot_experts, result))
        })?;
        let (rows, results): (Vec<_>, Vec<_>) = placed.into_iter().unzip();
        Ok((solver.placement(layers, &rows)?, results))
    }

    /// Samples that the policy gets. Where there are weights, there must be as many.
    pub(crate) fn num_samples(&self, iterations: IterationRange) -> Result<usize> {
        if self.solve.policy != Policy::Search {
            return Ok(1);
        }
        let (wanted, there_are) = (self.num_samples.max(1), iterations.len() as usize);
        let num_samples = wanted.min(there_are);
        match self.solve.sample_weights.map(<[f64]>::len).filter(|&given| given != num_samples) {
            None => Ok(num_samples),
            Some(given) if wanted > there_are => Err(Error::InvalidArgument(format!(
                "{given} sample weights for {there_are} samples: num_samples is {wanted}, but the dump has no more than \
                 {there_are} iterations ({iterations}), each of which is a sample; give {there_are} weights"
            ))),
            Some(given) => Err(Error::InvalidArgument(format!(
                "{given} sample weights for {num_samples} samples: num_samples is {num_samples}; give as many weights, or \
                 set num_samples to {given}"
            ))),
        }
    }
}

/// Experts cannot be placed by counts of slots.
pub(crate) fn refuse_slots(summary: &Summary) -> Result<()> {
    match summary.counted {
        Counted::Experts => Ok(()),
        Counted::Slots => Err(Error::InvalidDump(
            "it counts slots, not experts; count with the placement off, or with experts counted".into(),
        )),
    }
}
