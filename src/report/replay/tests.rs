use std::path::Path;

use super::*;
use crate::placement::Placement;
use crate::solve::{Loads, SolveConfig, best_split, solve};
use crate::stats::{DumpSet, LoadOptions};

fn recordings(names: &[&str]) -> Stats {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps");
    let paths: Vec<_> = names.iter().map(|name| dumps.join(name)).collect();
    DumpSet::open(&paths, None, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap()
}

fn config(max_moves: Option<u32>) -> ReplayConfig<'static> {
    let defaults = ReplayConfig::new(Shape::new(64, 72, 8).unwrap());
    let limits = Limits { max_layer_moves: max_moves, ..defaults.limits };
    ReplayConfig { limits, best_split: false, threads: 1, ..defaults }
}

fn replay_all(stats: &Stats, config: &ReplayConfig<'_>, strategies: &[Strategy]) -> Vec<Replayed> {
    replay(stats, config, strategies, &mut |_, _| Ok(())).unwrap()
}

/// mean / max of the ranks, from the definition.
fn balancedness(placement: &Placement, layer: u32, loads: &[f64]) -> f64 {
    let shape = placement.shape();
    let slots = placement.layer_experts(layer).unwrap();
    let mut ranks = vec![0.0; shape.num_ranks()];
    for (slot, &expert) in slots.iter().enumerate() {
        let replicas = slots.iter().filter(|&&other| other == expert).count();
        ranks[slot / shape.slots_per_rank()] += loads[expert as usize] / replicas as f64;
    }
    ranks.iter().sum::<f64>() / ranks.len() as f64 / ranks.iter().copied().fold(0.0, f64::max)
}

#[test]
fn a_placement_that_never_changes_has_the_balance_of_its_definition() {
    let stats = recordings(&["dsv2lite-translation"]);
    let config = ReplayConfig { best_split: true, ..config(None) };
    let [never] = &replay_all(&stats, &config, &[Strategy::Never])[..] else { panic!() };
    // The first 8 iterations as samples, by the public solver.
    let layers = &stats.summary().layers;
    let rows: Vec<Vec<f64>> = layers.iter().map(|&layer| stats.layer_rows(layer).unwrap()).collect();
    let window: Vec<f64> = rows.iter().flat_map(|layer| &layer[..8 * 64]).copied().collect();
    let loads = Loads::new(&window, layers, 8, 64).unwrap();
    let first = solve(&SolveConfig::default(), config.shape, &loads, 1).unwrap();
    let num_rows = rows[0].len() / 64;
    assert_eq!(never.iterations.len(), num_rows - 8);
    let (mut sum, mut best) = (0.0, 0.0);
    for row in 8..num_rows {
        let of = |index: usize| {
            let loads = &rows[index][row * 64..][..64];
            let max = best_split(loads, first.layer_experts(layers[index]).unwrap(), config.shape);
            (balancedness(&first, layers[index], loads), loads.iter().sum::<f64>() / 8.0 / max)
        };
        let of_layers: Vec<(f64, f64)> = (0..layers.len()).map(of).collect();
        let mean = of_layers.iter().map(|of| of.0).sum::<f64>() / layers.len() as f64;
        assert!((never.iterations[row - 8].unwrap() - mean).abs() < 1e-12, "row {row}");
        sum += mean;
        best += of_layers.iter().map(|of| of.1).sum::<f64>() / layers.len() as f64;
    }
    let measured = (num_rows - 8) as f64;
    assert!((never.balancedness.unwrap() - sum / measured).abs() < 1e-12);
    assert!((never.best_split_balancedness.unwrap() - best / measured).abs() < 1e-9);
    assert_eq!((never.num_plans, never.num_moves, never.moves_per_layer), (0, 0, 0.0));
}

#[test]
fn live_plans_keep_their_limit_and_lie_between_never_and_the_oracle() {
    let stats = recordings(&["dsv2lite-translation", "dsv2lite-law"]);
    let mut last = 0.0;
    for limit in [2, 8] {
        let all = replay_all(&stats, &config(Some(limit)), &Strategy::ALL);
        let of = |name: &str| all.iter().find(|of| of.strategy.name() == name).unwrap();
        let (never, live, oracle) = (of("never"), of("live"), of("oracle"));
        assert!(live.max_moves_per_layer <= limit as usize && live.max_moves_per_layer > 0);
        assert!(live.plans.iter().all(|plan| plan.max_layer_moves <= limit as usize));
        assert!(live.moves_per_layer <= limit as f64 && live.moves_per_layer > 0.0);
        assert!(live.moves_per_layer * 5.0 < of("trtllm").moves_per_layer);
        let of = |replayed: &Replayed| replayed.balancedness.unwrap();
        assert!(of(never) < of(live) && of(live) < of(oracle), "{} {}", of(never), of(live));
        assert!(of(live) > last);
        last = of(live);
        // The rows after the first window, in steps of 4, but for the first.
        let rows = stats.summary().rows.len() as usize;
        let expected: Vec<usize> = (8..rows).step_by(4).skip(1).collect();
        assert_eq!(live.plans.iter().map(|plan| plan.index).collect::<Vec<_>>(), expected);
        assert_eq!(live.num_moves, live.plans.iter().map(|plan| plan.num_moves).sum::<usize>());
    }
}

#[test]
fn replays_are_the_same_for_any_number_of_threads() {
    let stats = recordings(&["dsv2lite-translation"]);
    let of = |threads| replay_all(&stats, &ReplayConfig { threads, ..config(Some(4)) }, &Strategy::ALL);
    assert_eq!(of(1), of(3));
}

#[test]
fn gates_keep_plans_and_say_why() {
    let stats = recordings(&["dsv2lite-translation"]);
    let gates = Gates { trigger: 0.1, release: 0.1, ..Gates::OFF };
    let [live, never] =
        &replay_all(&stats, &ReplayConfig { gates, ..config(None) }, &[Strategy::Live, Strategy::Never])[..]
    else {
        panic!()
    };
    assert!(live.num_plans > 0 && live.num_kept == live.num_plans);
    assert!(
        live.plans
            .iter()
            .all(|plan| plan.kept == Some("balanced") && plan.message.contains("trigger is 0.1"))
    );
    assert_eq!(live.iterations, never.iterations);
}

#[test]
fn a_sweep_measures_all_points_on_the_same_iterations() {
    let stats = recordings(&["dsv2lite-translation"]);
    let grid = ReplayGrid { every: vec![4, 8], windows: vec![4, 8], max_moves: vec![Some(4), None] };
    let mut last = (0, 0);
    let points = sweep_replay(&stats, &config(None), &grid, &mut |done, total| {
        assert!(done > last.0);
        last = (done, total);
        Ok(())
    })
    .unwrap();
    assert_eq!((points.len(), last.0), (8, last.1));
    let point = points.iter().find(|point| (point.every, point.window, point.max_moves) == (4, 8, Some(4)));
    let [live] = &replay_all(&stats, &config(Some(4)), &[Strategy::Live])[..] else { panic!() };
    assert_eq!(point.unwrap().balancedness, live.balancedness);
    assert_eq!(point.unwrap().moves_per_layer, live.moves_per_layer);
}

#[test]
fn a_default_grid_is_around_the_values() {
    let grid = default_grid(4, 8, 100);
    assert_eq!((grid.every, grid.windows), (vec![2, 4, 8], vec![4, 8, 16]));
    assert_eq!(default_grid(1, 8, 20).windows, [4, 8]);
    assert_eq!(default_grid(1, 8, 20).every, [1, 2]);
}

#[test]
fn replays_without_iterations_to_measure_are_refused() {
    let stats = recordings(&["dsv2lite-translation"]);
    let error = |config: &ReplayConfig<'_>| {
        replay(&stats, config, &Strategy::ALL, &mut |_, _| Ok(())).unwrap_err().to_string()
    };
    let rows = stats.summary().rows.len() as usize;
    assert_eq!(
        error(&ReplayConfig { window: rows, ..config(None) }),
        format!(
            "the window is {rows} iterations, and the dumps have {rows}: none is left to measure; choose a shorter window or \
             a longer dump"
        )
    );
    assert_eq!(
        error(&ReplayConfig { every: 0, ..config(None) }),
        "every is 0; at least one iteration expected"
    );
    assert_eq!(
        error(&ReplayConfig { window: 0, ..config(None) }),
        "window is 0; at least one iteration expected"
    );
    let other = Shape::new(32, 40, 8).unwrap();
    assert_eq!(
        error(&ReplayConfig { shape: other, ..config(None) }),
        "loads of 64 experts for a shape of 32"
    );
    let stopped = replay(&stats, &config(None), &Strategy::ALL, &mut |_, _| Err(Error::Cancelled));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn routing_rules_change_the_measure() {
    let stats = recordings(&["dsv2lite-translation"]);
    let of = |rule| {
        let config = ReplayConfig { rule, window: 16, every: 8, best_split: true, ..config(None) };
        let [never] = &replay_all(&stats, &config, &[Strategy::Never])[..] else { panic!() };
        (never.balancedness.unwrap(), never.best_split_balancedness.unwrap())
    };
    let (even, best) = of(Rule::RoundRobin);
    assert_eq!(of(Rule::TokenHash), (even, best));
    let (least_loaded, same_best) = of(Rule::LeastLoaded);
    assert_eq!(best, same_best);
    assert!(even < least_loaded && least_loaded <= best + 1e-9, "{even} {least_loaded} {best}");
}
