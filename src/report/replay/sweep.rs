//! Live plans of several windows, intervals and limits, on the same iterations.

use serde::Serialize;

use super::series::Series;
use super::strategy::{Strategy, with_max_moves};
use super::{ReplayConfig, check_iterations, run};
use crate::error::Result;
use crate::stats::Stats;

/// What to combine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayGrid {
    /// Values of [`ReplayConfig::every`].
    pub every: Vec<usize>,
    /// Values of [`ReplayConfig::window`].
    pub windows: Vec<usize>,
    /// Most moves of a layer. `None`: no limit.
    pub max_moves: Vec<Option<u32>>,
}

/// Live plans of one combination.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReplayPoint {
    /// Iterations from a plan to the next one.
    pub every: usize,
    /// Iterations that a plan is made from.
    pub window: usize,
    /// Most moves of a layer. `None`: no limit.
    pub max_moves: Option<u32>,
    /// As [`Replayed::balancedness`](super::Replayed::balancedness).
    pub balancedness: Option<f64>,
    /// As [`Replayed::moves_per_layer`](super::Replayed::moves_per_layer).
    pub moves_per_layer: f64,
    /// Moves of all layers, over the measured iterations.
    pub moves_per_iteration: f64,
}

/// A grid around some values: half and twice as often, half and twice the window as far as the iterations allow, and 1, 2, 4, 8
/// and any number of moves.
pub fn default_grid(every: usize, window: usize, num_iterations: usize) -> ReplayGrid {
    let around = |value: usize| {
        let mut values = vec![(value / 2).max(1), value, value.saturating_mul(2)];
        values.dedup();
        values
    };
    let windows = around(window).into_iter().filter(|&other| other <= window || other <= num_iterations / 2);
    ReplayGrid {
        every: around(every),
        windows: windows.collect(),
        max_moves: vec![Some(1), Some(2), Some(4), Some(8), None],
    }
}

/// Replays live plans of each combination. All are measured on the iterations after the longest window, and without the best split.
/// `progress` is as for [`replay`](super::replay).
pub fn sweep_replay(
    stats: &Stats,
    config: &ReplayConfig<'_>,
    grid: &ReplayGrid,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<ReplayPoint>> {
    let series = Series::new(stats, config.shape)?;
    let from = grid.windows.iter().copied().max().unwrap_or(0);
    let mut points = Vec::new();
    for &window in &grid.windows {
        for &every in &grid.every {
            points.extend(grid.max_moves.iter().map(|&max_moves| (every, window, max_moves)));
        }
    }
    let of = |(every, window, max_moves): (usize, usize, Option<u32>)| ReplayConfig {
        every,
        window,
        limits: with_max_moves(config.limits, max_moves),
        best_split: false,
        ..*config
    };
    for &point in &points {
        check_iterations(&series, &of(point), from)?;
    }
    let num_measured = series.num_rows() - from;
    let total = (num_measured * points.len()) as u64;
    let mut done = 0;
    let replay = |point: (usize, usize, Option<u32>)| {
        let (every, window, max_moves) = point;
        let live = run(&series, &of(point), Strategy::Live, from, &mut |rows| {
            done += rows as u64;
            progress(done, total)
        })?;
        Ok(ReplayPoint {
            every,
            window,
            max_moves,
            balancedness: live.balancedness,
            moves_per_layer: live.moves_per_layer,
            moves_per_iteration: live.num_moves as f64 / num_measured as f64,
        })
    };
    points.into_iter().map(replay).collect()
}
