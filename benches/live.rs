//! Plans with few moves: balancedness after one large drift and while loads drift, and times beside a fresh search.
//!
//! `cargo bench --bench live`. EPLB_EXTRA_DATA, a folder with more `dumps`, adds the large drift of DeepSeek-V3.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use eplb::live::{Gates, KeepReason, LayerPlan, Limits, Plan, PlanOptions, Rebalancer, RebalancerConfig};
use eplb::placement::{Placement, Shape};
use eplb::report::{average, score};
use eplb::solve::{Loads, Policy, SolveConfig, solve};
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

/// The placement by `trtllm` of the sum of samples.
fn trtllm(shape: Shape, loads: &[f64], num_samples: usize) -> Placement {
    let num_experts = shape.num_experts();
    let sum = |layer: &[f64]| -> Vec<f64> {
        let of_expert = |expert: usize| layer[expert..].iter().step_by(num_experts).sum();
        (0..num_experts).map(of_expert).collect()
    };
    let sums: Vec<f64> = loads.chunks_exact(num_samples * num_experts).flat_map(sum).collect();
    let layers: Vec<u32> = (0..(sums.len() / num_experts) as u32).collect();
    let loads = Loads::new(&sums, &layers, 1, num_experts).unwrap();
    solve(&SolveConfig { policy: Policy::Trtllm, ..SolveConfig::default() }, shape, &loads, 1).unwrap()
}

fn balancedness(placement: &Placement, loads: &[f64]) -> f64 {
    let num_experts = placement.shape().num_experts();
    average(placement.iter().zip(loads.chunks_exact(num_experts)).map(|((layer, _), loads)| {
        score(placement, layer, loads, 1, num_experts).unwrap().balance().balancedness
    }))
    .unwrap()
}

/// A rebalancer of 8 windows with these gates, on one thread. `None` for the half-life is the default.
fn rebalancer(placement: Placement, half_life: Option<u64>, gates: Gates) -> Rebalancer {
    let defaults = RebalancerConfig::new(placement.shape().num_experts(), 8);
    let half_life = half_life.unwrap_or(defaults.half_life);
    let config = RebalancerConfig { num_windows: 8, half_life, num_threads: 1, gates, ..defaults };
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
        let mut rebalancer = rebalancer(placement.clone(), None, Gates::OFF);
        rebalancer.observe(&counts(&measured, 1, 256), 1, 1, Some(0)).unwrap();
        let plan = rebalancer.plan(&limited(limit)).unwrap();
        commit(&mut rebalancer, &plan);
        let after = balancedness(&rebalancer.placement().unwrap(), &measured);
        let moves = plan.num_moves() as f64 / placement.layers().len() as f64;
        println!("| {} | {after:.4} | {moves:.1} |", limit.map_or("any".into(), |limit| limit.to_string()));
    }
}

/// Translation, then law: a plan every 4 iterations from the last 8, and each later iteration measured in the placement in force.
fn drifting() {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps");
    let shape = Shape::new(64, 72, 8).unwrap();
    let iterations: Vec<Vec<f64>> = ["dsv2lite-translation", "dsv2lite-law"]
        .iter()
        .flat_map(|name| {
            let dump = dumps.join(name);
            let stats = Dump::open(&dump, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
            let num_rows = stats.layer_rows(stats.summary().layers[0]).unwrap().len() / 64;
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
    // Returns the mean balancedness, and the moves a layer and plan. `plan` takes the placement in force.
    let measure = |plan: &mut dyn FnMut(usize, &Placement) -> (Placement, usize)| {
        let (mut placement, mut sum, mut moves, mut plans) = (first.clone(), 0.0, 0, 0);
        for (index, loads) in iterations.iter().enumerate().skip(8) {
            if index % 4 == 0 {
                let (next, moved) = plan(index, &placement);
                (placement, moves, plans) = (next, moves + moved, plans + 1);
            }
            sum += balancedness(&placement, loads);
        }
        (sum / (iterations.len() - 8) as f64, moves as f64 / f64::from(plans) / num_layers as f64)
    };
    let anew = |to: Placement, from: &Placement| {
        let moves = Plan::between(from, &to, PlanOptions::default()).unwrap().num_moves();
        (to, moves)
    };
    println!("\n{} iterations of {num_layers} layers", iterations.len());
    println!("| plan | balancedness | moves a layer and plan |\n|---|---|---|");
    let row = |name: &str, (mean, moves): (f64, f64)| println!("| {name} | {mean:.4} | {moves:.1} |");
    row("none", measure(&mut |_, placement| (placement.clone(), 0)));
    row("`trtllm` of the sum", measure(&mut |index, from| anew(trtllm(shape, &window(index), 8), from)));
    row("`search` of 8 samples", measure(&mut |index, from| anew(search(shape, &window(index), 8), from)));
    let half_lives = [
        ("half-life 4", Some(4)),
        ("half-life 6", None),
        ("half-life 8", Some(8)),
        ("equal weights", Some(1024)),
    ];
    for (name, half_life) in half_lives {
        for limit in [Some(1), Some(2), Some(4), Some(8), None] {
            let mut rebalancer = rebalancer(first.clone(), half_life, Gates::OFF);
            let mut observed = 0;
            let measured = measure(&mut |index, _| {
                for loads in &iterations[observed..index] {
                    rebalancer.observe(&counts(loads, 1, 64), 1, 1, Some(0)).unwrap();
                }
                observed = index;
                let plan = rebalancer.plan(&limited(limit)).unwrap();
                commit(&mut rebalancer, &plan);
                (rebalancer.placement().unwrap(), plan.num_moves())
            });
            let limit = limit.map_or("any moves".into(), |limit: u32| format!("at most {limit} moves"));
            row(&format!("{limit}, {name}"), measured);
        }
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

/// The time of a plan that keeps the placement, for a reason.
fn time_of_keep(rebalancer: &mut Rebalancer, limits: &Limits, reason: KeepReason) -> f64 {
    let start = Instant::now();
    let plan = rebalancer.plan(limits).unwrap();
    let time = start.elapsed().as_secs_f64();
    assert_eq!(plan.keep_reason(), Some(reason));
    time
}

/// Times of a plan beside those of a search from scratch of the same samples, on one thread, and of plans that keep the placement:
/// by the trigger, since sampling noise would gain as much, and since the same loads moved nothing before.
fn times() {
    let shape = Shape::new(256, 288, 32).unwrap();
    println!("\n| samples | search | plan, 8 moves a layer | ratio | balanced | noise | the same loads |");
    println!("|---|---|---|---|---|---|---|");
    for num_samples in [1, 8] {
        let placement = search(shape, &drifted(num_samples, 1), num_samples);
        let loads = drifted(num_samples, 2);
        let observed = counts(&loads, num_samples, 256);
        let planned = counts(&drifted(num_samples, 1), num_samples, 256);
        let mut times: [Vec<f64>; 5] = Default::default();
        // Prices above all gains: the layers are searched once.
        let dear = Limits { node_price: 1e9, ..limited(Some(8)) };
        for _ in 0..15 {
            let start = Instant::now();
            black_box(search(shape, &loads, num_samples));
            times[0].push(start.elapsed().as_secs_f64());
            let mut moving = rebalancer(placement.clone(), None, Gates::OFF);
            moving.observe(&observed, num_samples, 1, Some(0)).unwrap();
            let start = Instant::now();
            let plan = moving.plan(&limited(Some(8))).unwrap();
            times[1].push(start.elapsed().as_secs_f64());
            assert!(plan.layers().iter().map(LayerPlan::num_moves).all(|moves| moves <= 8));

            let mut even = rebalancer(placement.clone(), None, Gates { trigger: 0.1, ..Gates::OFF });
            even.observe(&observed, num_samples, 1, Some(0)).unwrap();
            times[2].push(time_of_keep(&mut even, &limited(Some(8)), KeepReason::Balanced));
            let mut noisy = rebalancer(placement.clone(), None, Gates { noise: 1e6, ..Gates::OFF });
            noisy.observe(&planned, num_samples, 1, Some(0)).unwrap();
            times[3].push(time_of_keep(&mut noisy, &limited(Some(8)), KeepReason::Noise));
            let mut same = rebalancer(placement.clone(), None, Gates::OFF);
            for _ in 0..2 {
                same.observe(&observed, num_samples, 1, Some(0)).unwrap();
                let time = time_of_keep(&mut same, &dear, KeepReason::NoMove);
                times[4].push(time);
            }
            // The first one of the two searches.
            let searched = times[4].len() - 2;
            times[4].swap_remove(searched);
        }
        let [of_search, of_plan, balanced, noise, same] = times.map(|mut times| {
            times.sort_unstable_by(f64::total_cmp);
            times[times.len() / 2] * 1e3
        });
        println!(
            "| {num_samples} | {of_search:.1} ms | {of_plan:.1} ms | {:.3} | {balanced:.3} ms | {noise:.3} ms | {same:.3} ms |",
            of_plan / of_search
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
