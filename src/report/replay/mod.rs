//! Replays a recording: the balance that a placement which never changes, fresh placements, or live plans would have had.

mod measure;
mod series;
mod strategy;
mod sweep;

use serde::Serialize;

use self::measure::Measured;
use self::series::Series;
use self::strategy::Runner;
use super::require_expert_counts;
use crate::dispatch::Rule;
use crate::error::{Error, Result};
use crate::live::{Gates, Limits};
use crate::placement::Shape;
use crate::solve::Policy;
use crate::stats::Stats;

pub use strategy::{ReplayedPlan, Strategy};
pub use sweep::{ReplayGrid, ReplayPoint, default_grid, sweep_replay};

/// How to replay. Iterations are the rows of the dumps, one dump after the other.
#[derive(Debug, Clone, Copy)]
pub struct ReplayConfig<'a> {
    /// Experts, slots and ranks.
    pub shape: Shape,
    /// Iterations from a plan to the next one.
    pub every: usize,
    /// Iterations that a plan is made from, each a sample of its own. The first ones are not measured.
    pub window: usize,
    /// Computes the placement of [`Strategy::Never`], with which [`Strategy::Live`] begins, from the first window.
    pub first: Policy,
    /// Limits of a live plan.
    pub limits: Limits,
    /// When a live plan is made.
    pub gates: Gates,
    /// Iterations after which one counts half in live plans. `None`: three quarters of the window.
    pub half_life: Option<u64>,
    /// Most replicas of an expert in live plans. `None`: no limit.
    pub max_replicas: Option<u32>,
    /// The node of each rank, `[num_ranks]`, for the prices of live plans and [`Rule::Nearest`]. `None`: one node has all ranks.
    pub rank_to_node: Option<&'a [i32]>,
    /// The routing rule that balancedness is measured with. A dump has the sums of all ranks, so [`Rule::LeastLoaded`] knows the
    /// counts of all ranks, and for [`Rule::Nearest`] each rank chose equally many tokens of each expert.
    pub rule: Rule,
    /// Whether to measure with the best split, too.
    pub best_split: bool,
    /// Number of threads, 0: one a core, at most 8. Results do not depend on it.
    pub threads: usize,
}

impl ReplayConfig<'_> {
    /// The defaults: a plan every 4 iterations from the last 8, without limits and gates, and an even split.
    pub fn new(shape: Shape) -> Self {
        ReplayConfig {
            shape,
            every: 4,
            window: 8,
            first: Policy::Search,
            limits: Limits { horizon: 4.0, ..Limits::default() },
            gates: Gates::OFF,
            half_life: None,
            max_replicas: None,
            rank_to_node: None,
            rule: Rule::RoundRobin,
            best_split: true,
            threads: 0,
        }
    }
}

/// What a strategy would have brought.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replayed {
    /// The strategy.
    #[serde(skip)]
    pub strategy: Strategy,
    /// `mean / max` of the ranks' loads: the mean over the layers with load of an iteration, then over the measured iterations.
    /// `None` if none has load.
    pub balancedness: Option<f64>,
    /// The same with the best split of each expert's tokens over its replicas. `None` if not requested.
    pub best_split_balancedness: Option<f64>,
    /// Slots of a layer that receive an expert by a plan: the mean over all layers, and over the plans that were not kept. 0 if
    /// all were.
    pub moves_per_layer: f64,
    /// The most of one layer by one plan.
    pub max_moves_per_layer: usize,
    /// Slots that receive an expert, of all layers and plans.
    pub num_moves: usize,
    /// Plans, those that keep the placement included.
    pub num_plans: usize,
    /// Plans that keep the placement.
    pub num_kept: usize,
    /// Each plan.
    pub plans: Vec<ReplayedPlan>,
    /// The balancedness of each measured iteration. `None` where it has no load.
    pub iterations: Vec<Option<f64>>,
    /// The same with the best split. Empty if not requested.
    pub best_split_iterations: Vec<Option<f64>>,
}

/// Replays the dumps of `stats` by each strategy. `progress` gets the iterations that are done and those of all strategies. An
/// error that it returns ends the replay.
///
/// The first `window` iterations give the first placement, which is in force from their end. All iterations after them are
/// measured, each in the placement in force.
///
/// Fails with [`Error::InvalidArgument`] if the dumps have no iteration after the first window, and if they have weights or count
/// slots.
pub fn replay(
    stats: &Stats,
    config: &ReplayConfig<'_>,
    strategies: &[Strategy],
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<Replayed>> {
    let series = Series::new(stats, config.shape)?;
    check_iterations(&series, config, config.window)?;
    let num_measured = (series.num_rows() - config.window) as u64;
    let total = num_measured * strategies.len() as u64;
    let mut done = 0;
    let mut replayed = Vec::with_capacity(strategies.len());
    for &strategy in strategies {
        replayed.push(run(&series, config, strategy, config.window, &mut |rows| {
            done += rows as u64;
            progress(done, total)
        })?);
    }
    Ok(replayed)
}

/// Replays one strategy, and measures from the iteration at index `from` on.
fn run(
    series: &Series,
    config: &ReplayConfig<'_>,
    strategy: Strategy,
    from: usize,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Replayed> {
    let mut runner = Runner::new(series, config, strategy, from)?;
    let mut measured = Measured::default();
    for start in (from..series.num_rows()).step_by(config.every) {
        let rows = start..series.num_rows().min(start + config.every);
        if start > from {
            runner.plan(rows.clone())?;
        }
        measured.add(series, config, runner.placement(), rows.clone())?;
        runner.observe(rows.clone())?;
        progress(rows.len())?;
    }
    let plans = runner.into_plans();
    let moving = plans.iter().filter(|plan| plan.kept.is_none());
    let num_moves = moving.clone().map(|plan| plan.num_moves).sum();
    let num_moving = moving.clone().count();
    Ok(Replayed {
        strategy,
        balancedness: measured.balancedness(),
        best_split_balancedness: measured.best_split_balancedness(),
        moves_per_layer: num_moves as f64 / (num_moving.max(1) * series.layers().len()) as f64,
        max_moves_per_layer: moving.map(|plan| plan.max_layer_moves).max().unwrap_or(0),
        num_moves,
        num_plans: plans.len(),
        num_kept: plans.len() - num_moving,
        plans,
        iterations: measured.even,
        best_split_iterations: measured.best_split,
    })
}

/// Checks the intervals, and that iterations are left after the first `from`.
fn check_iterations(series: &Series, config: &ReplayConfig<'_>, from: usize) -> Result<()> {
    for (name, value) in [("every", config.every), ("window", config.window)] {
        if value == 0 {
            return Err(Error::InvalidArgument(format!("{name} is 0; at least one iteration expected")));
        }
    }
    if from >= series.num_rows() {
        return Err(Error::InvalidArgument(format!(
            "the window is {from} iterations, and the dumps have {}: none is left to measure; choose a shorter window or a \
             longer dump",
            series.num_rows()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
