//! Plans with few moves: balancedness after one large drift and while loads drift, and times beside a fresh search.
//!
//! `cargo bench --bench live`. EPLB_EXTRA_DATA, a folder with more `dumps`, adds the large drift of DeepSeek-V3.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use eplb::live::{Gates, LayerPlan, Limits, Plan, Rebalancer, RebalancerConfig};
use eplb::placement::{Placement, Shape};
use eplb::report::{average, score};
use eplb::solve::{Loads, SolveConfig, solve};
use eplb::stats::{Dump, LoadOptions};

/// Reads the loads of a dump, `[layers][samples][experts]`.
fn dump_loads(dump: &Path, start: u64, stop: u64, num_samples: usize) -> Vec<f64> {
    let options = LoadOptions { iter_start: Some(start), iter_stop: Some(stop), ..LoadOptions::default() };
    let stats = Dump::open(dump, &options).unwrap().read(&mut |_, _| Ok(())).unwrap();
    stats.samples(num_samples).unwrap()
}

fn search(shape: Shape, loads: &[f64], num_samples: usize) -> Placement {
    let num_layers = loads.len() / num_samples / shape.num_experts();
    let layers: Vec<u32> = (0..num_layers as u32).collect();
    let loads = Loads::new(loads, &layers, num_samples, shape.num_experts()).unwrap();
    solve(&SolveConfig::default(), shape, &loads, 1).unwrap()
}

fn balancedness(placement: &Placement, loads: &[f64]) -> f64 {
    let num_experts = placement.shape().num_experts();
    average(placement.iter().zip(loads.chunks_exact(num_experts)).map(|((layer, _), loads)| {
        score(placement, layer, loads, 1, num_experts).unwrap().balance().balancedness
    }))
    .unwrap()
}

/// A rebalancer whose windows count alike, with one thread and these gates.
fn rebalancer(placement: Placement, num_windows: usize, gates: Gates) -> Rebalancer {
    let defaults = RebalancerConfig::new(placement.shape().num_experts(), 8);
    let config = RebalancerConfig { num_windows, half_life: 1024, num_threads: 1, gates, ..defaults };
    Rebalancer::new(config, placement).unwrap()
}

/// Loads `[layers][samples][experts]` as counts `[samples][layers][experts]`.
fn counts(loads: &[f64], num_samples: usize, num_experts: usize) -> Vec<i64> {
    let row = num_samples * num_experts;
    let of_sample = |sample: usize| {
        let rows = loads.chunks_exact(row).map(move |layer| &layer[sample * num_experts..][..num_experts]);
        rows.flatten().map(|&load| load as i64)
    };
    (0..num_samples).flat_map(of_sample).collect()
}

fn limited(max_layer_moves: Option<u32>) -> Limits {
    Limits { max_layer_moves, horizon: 1.0, ..Limits::default() }
}

fn commit(rebalancer: &mut Rebalancer, plan: &Plan) {
    for layer in plan.layers() {
        rebalancer.commit_layer(plan, layer.layer()).unwrap();
    }
}

/// The placement by search of prompts of 1,024 tokens under the loads of prompts of 4,096 tokens.
fn large_drift(dumps: &Path) {
    let shape = Shape::new(256, 288, 32).unwrap();
    let of = |iteration: u64| dump_loads(&dumps.join("dsv3-prefill"), iteration, iteration + 1, 1);
    let (planned, measured) = (of(0), of(1));
    let placement = search(shape, &planned, 1);
    println!("\n| moves a layer | balancedness | moves a layer and plan |\n|---|---|---|");
    println!("| 0 | {:.4} | 0 |", balancedness(&placement, &measured));
    for limit in [Some(1), Some(2), Some(4), Some(8), Some(12), Some(16), Some(24), Some(32), Some(48), None]
    {
        let mut rebalancer = rebalancer(placement.clone(), 8, Gates::OFF);
        rebalancer.observe(&counts(&measured, 1, 256), 1, 1, Some(0)).unwrap();
        let plan = rebalancer.plan(&limited(limit)).unwrap();
        commit(&mut rebalancer, &plan);
        let after = balancedness(&rebalancer.placement().unwrap(), &measured);
        let moves = plan.num_moves() as f64 / placement.layers().len() as f64;
        println!("| {} | {after:.4} | {moves:.1} |", limit.map_or("any".into(), |limit| limit.to_string()));
    }
}

/// Translation, then law: a plan every 4 iterations from the last 8, and each iteration measured in the placement in force.
fn drifting() {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps");
    let shape = Shape::new(64, 72, 8).unwrap();
    let iterations: Vec<Vec<f64>> = ["dsv2lite-translation", "dsv2lite-law"]
        .iter()
        .flat_map(|name| {
            let dump = dumps.join(name);
            let stats = Dump::open(&dump, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
            let num_rows = stats.layer_rows(stats.layers()[0]).unwrap().len() / 64;
            let all = stats.samples(num_rows).unwrap();
            (0..num_rows)
                .map(|row| {
                    let layers = all.chunks_exact(num_rows * 64);
                    layers.flat_map(|layer| &layer[row * 64..][..64]).copied().collect()
                })
                .collect::<Vec<Vec<f64>>>()
        })
        .collect();
    let num_layers = iterations[0].len() / 64;
    // [layers][8][experts]
    let window = |stop: usize| -> Vec<f64> {
        let of_layer = |layer: usize| {
            iterations[stop - 8..stop].iter().flat_map(move |loads| &loads[layer * 64..][..64]).copied()
        };
        (0..num_layers).flat_map(of_layer).collect()
    };
    let first = search(shape, &window(8), 8);
    println!("\n{} iterations of {num_layers} layers", iterations.len());
    println!("| most moves a layer | balancedness | moves a layer and plan |\n|---|---|---|");
    for limit in [Some(0), Some(1), Some(2), Some(4), Some(8), None] {
        let mut rebalancer = rebalancer(first.clone(), 8, Gates::OFF);
        let (mut sum, mut moves, mut plans) = (0.0, 0, 0);
        for (index, loads) in iterations.iter().enumerate() {
            if index >= 8 && index % 4 == 0 && limit != Some(0) {
                let plan = rebalancer.plan(&limited(limit)).unwrap();
                commit(&mut rebalancer, &plan);
                moves += plan.num_moves();
                plans += 1;
            }
            if index >= 8 {
                sum += balancedness(&rebalancer.placement().unwrap(), loads);
            }
            rebalancer.observe(&counts(loads, 1, 64), 1, 1, Some(0)).unwrap();
        }
        let mean = sum / (iterations.len() - 8) as f64;
        let moves = moves as f64 / f64::from(plans.max(1)) / num_layers as f64;
        println!(
            "| {} | {mean:.4} | {moves:.1} |",
            limit.map_or("any".into(), |limit: u32| limit.to_string())
        );
    }
}

/// Zipf-distributed loads of 58 layers, each expert's changed by a factor of 1/2 to 2 in each sample: [layers][samples][experts].
fn drifted(num_samples: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 31)
    };
    let mut loads = Vec::new();
    for layer in 0..58 {
        for _ in 0..num_samples {
            let of_expert = |expert: usize| 1e6 / ((expert * 37 + layer * 11) % 256 + 1) as f64;
            loads.extend(
                (0..256).map(|expert| (of_expert(expert).powf(0.6) * (0.5 + 1.5 * random())).round()),
            );
        }
    }
    loads
}

fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..9).map(|_| run()).collect();
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Times of a plan beside those of a search from scratch of the same samples, on one thread.
fn times() {
    let shape = Shape::new(256, 288, 32).unwrap();
    println!("\n| samples | search | plan, 8 moves a layer | ratio | nothing to do |\n|---|---|---|---|---|");
    for num_samples in [1, 8] {
        let placement = search(shape, &drifted(num_samples, 1), num_samples);
        let loads = drifted(num_samples, 2);
        let observed = counts(&loads, num_samples, 256);
        let (mut of_search, mut of_nothing) = (Vec::new(), Vec::new());
        let of_plan = median(|| {
            let start = Instant::now();
            black_box(search(shape, &loads, num_samples));
            of_search.push(start.elapsed().as_secs_f64());
            let mut moving = rebalancer(placement.clone(), 8, Gates::OFF);
            moving.observe(&observed, num_samples as usize, 1, Some(0)).unwrap();
            let start = Instant::now();
            let plan = moving.plan(&limited(Some(8))).unwrap();
            let time = start.elapsed().as_secs_f64();
            assert!(plan.layers().iter().map(LayerPlan::num_moves).all(|moves| moves <= 8));
            let mut still = rebalancer(placement.clone(), 8, Gates { trigger: 0.1, ..Gates::OFF });
            still.observe(&observed, num_samples as usize, 1, Some(0)).unwrap();
            let start = Instant::now();
            assert_eq!(still.plan(&limited(Some(8))).unwrap().num_moves(), 0);
            of_nothing.push(start.elapsed().as_secs_f64());
            time
        });
        let middle = |times: &mut Vec<f64>| {
            times.sort_unstable_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let (of_search, of_nothing) = (middle(&mut of_search), middle(&mut of_nothing));
        println!(
            "| {num_samples} | {:.1} ms | {:.1} ms | {:.2} | {:.3} ms |",
            of_search * 1e3,
            of_plan * 1e3,
            of_plan / of_search,
            of_nothing * 1e3
        );
    }
}

fn main() {
    if let Some(folder) = std::env::var_os("EPLB_EXTRA_DATA") {
        large_drift(&Path::new(&folder).join("dumps"));
    }
    drifting();
    times();
}
