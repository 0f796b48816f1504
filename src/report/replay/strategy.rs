//! The strategies, and what each does between iterations.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::ReplayConfig;
use super::series::Series;
use crate::error::Result;
use crate::live::{LayerPlan, Limits, Plan, PlanOptions, Rebalancer, RebalancerConfig};
use crate::placement::Placement;
use crate::solve::{Loads, Policy, SolveConfig, solve};

/// Where placements come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The placement of the first window, throughout.
    Never,
    /// A fresh placement by a policy each time, from the last window. So is the first one.
    Fresh(Policy),
    /// The first placement, and live plans.
    Live,
    /// A fresh placement by [`Policy::Search`] each time, from the very iterations that follow.
    Oracle,
}

impl Strategy {
    /// Those that `eplb replay` puts side by side.
    pub const ALL: [Strategy; 5] = [
        Strategy::Never,
        Strategy::Fresh(Policy::Trtllm),
        Strategy::Fresh(Policy::Search),
        Strategy::Live,
        Strategy::Oracle,
    ];

    /// `never`, the policy's name, `live` or `oracle`.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Never => "never",
            Strategy::Fresh(policy) => policy.name(),
            Strategy::Live => "live",
            Strategy::Oracle => "oracle",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One plan of a replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplayedPlan {
    /// The index of the first iteration that it is in force for, of all of the dumps.
    pub index: usize,
    /// The number of that iteration in its dump.
    pub iteration: u64,
    /// Why it keeps the placement, by [`KeepReason::name`](crate::live::KeepReason::name). `None` if it moves experts.
    pub kept: Option<&'static str>,
    /// What it does, or why it keeps the placement.
    pub message: String,
    /// Slots that receive an expert, of all layers.
    pub num_moves: usize,
    /// The most of one layer.
    pub max_layer_moves: usize,
    /// Layers that change.
    pub num_layers: usize,
    /// Rounds of transfers, if one layer follows the other.
    pub num_rounds: u32,
    /// The balancedness that a live plan promises for its window, with the even split. `None` for other plans.
    pub promised: Option<f64>,
}

/// Runs one strategy.
pub(super) struct Runner<'a> {
    series: &'a Series,
    config: &'a ReplayConfig<'a>,
    strategy: Strategy,
    /// The placement in force.
    placement: Placement,
    /// Of [`Strategy::Live`].
    rebalancer: Option<Rebalancer>,
    plans: Vec<ReplayedPlan>,
}

impl<'a> Runner<'a> {
    /// Places the first window, which ends before the row `from`.
    pub fn new(
        series: &'a Series,
        config: &'a ReplayConfig<'a>,
        strategy: Strategy,
        from: usize,
    ) -> Result<Self> {
        let window = from - config.window..from;
        let next = from..series.num_rows().min(from + config.every);
        let placement = match strategy {
            Strategy::Never | Strategy::Live => fresh(series, config, config.first, window.clone())?,
            Strategy::Fresh(policy) => fresh(series, config, policy, window.clone())?,
            Strategy::Oracle => fresh(series, config, Policy::Search, next)?,
        };
        let rebalancer = match strategy {
            Strategy::Live => Some(Rebalancer::new(rebalancer_config(config), placement.clone())?),
            _ => None,
        };
        let mut runner = Runner { series, config, strategy, placement, rebalancer, plans: Vec::new() };
        runner.observe(window)?;
        Ok(runner)
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    pub fn into_plans(self) -> Vec<ReplayedPlan> {
        self.plans
    }

    /// Sees the loads of rows.
    pub fn observe(&mut self, rows: Range<usize>) -> Result<()> {
        let Some(rebalancer) = &mut self.rebalancer else { return Ok(()) };
        for row in rows {
            let (counts, tokens) = self.series.counts(row);
            rebalancer.observe(&counts, 1, tokens, Some(0))?;
        }
        Ok(())
    }

    /// Plans before the rows `next`.
    pub fn plan(&mut self, next: Range<usize>) -> Result<()> {
        let (series, config) = (self.series, self.config);
        let window = next.start - config.window..next.start;
        let index = next.start;
        let to = match self.strategy {
            Strategy::Never => return Ok(()),
            Strategy::Live => return self.plan_live(index),
            Strategy::Fresh(policy) => fresh(series, config, policy, window)?,
            Strategy::Oracle => fresh(series, config, Policy::Search, next)?,
        };
        let options = PlanOptions { rank_to_node: config.rank_to_node, ..PlanOptions::default() };
        let plan = Plan::between(&self.placement, &to, options)?;
        self.note(index, &plan, None);
        self.placement = to;
        Ok(())
    }

    fn plan_live(&mut self, index: usize) -> Result<()> {
        let Some(rebalancer) = &mut self.rebalancer else { return Ok(()) };
        let plan = rebalancer.plan(&self.config.limits)?;
        for layer in plan.layers() {
            for _ in 0..layer.num_commits() {
                rebalancer.commit_layer(&plan, layer.layer())?;
            }
        }
        self.placement = rebalancer.placement()?;
        self.note(index, &plan, Some(plan.balance().after));
        Ok(())
    }

    fn note(&mut self, index: usize, plan: &Plan, promised: Option<f64>) {
        let layers = plan.layers();
        self.plans.push(ReplayedPlan {
            index,
            iteration: self.series.iteration(index),
            kept: plan.keep_reason().map(|reason| reason.name()),
            message: plan.message().to_string_lossy().into_owned(),
            num_moves: plan.num_moves(),
            max_layer_moves: layers.iter().map(LayerPlan::num_moves).max().unwrap_or(0),
            num_layers: layers.len(),
            num_rounds: layers.iter().map(LayerPlan::num_rounds).sum(),
            promised,
        });
    }
}

fn rebalancer_config(config: &ReplayConfig<'_>) -> RebalancerConfig {
    RebalancerConfig {
        num_windows: config.window,
        half_life: config
            .half_life
            .unwrap_or((config.window as u64 * 3 / 4).clamp(1, RebalancerConfig::MAX_HALF_LIFE)),
        rank_to_node: config.rank_to_node.map(<[i32]>::to_vec),
        max_replicas: config.max_replicas,
        gates: config.gates,
        num_threads: config.threads,
        ..RebalancerConfig::new(config.shape.num_experts(), 1)
    }
}

/// The placement of a policy for rows, each a sample.
fn fresh(
    series: &Series,
    config: &ReplayConfig<'_>,
    policy: Policy,
    rows: Range<usize>,
) -> Result<Placement> {
    let (loads, num_samples) = series.samples(rows);
    let loads = Loads::new(&loads, series.layers(), num_samples, config.shape.num_experts())?;
    solve(&SolveConfig { policy, ..SolveConfig::default() }, config.shape, &loads, config.threads)
}

/// Whether `limits` bound the moves of a layer.
pub(super) fn with_max_moves(limits: Limits, max_layer_moves: Option<u32>) -> Limits {
    Limits { max_layer_moves, ..limits }
}
