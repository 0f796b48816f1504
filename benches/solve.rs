//! Times of the policies on the shape of DeepSeek-V3 (58 layers x 256 experts), of the search on larger shapes, and of the lower
//! bound and best split of one layer.
//! `cargo bench --bench solve`

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use eplb::placement::Shape;
use eplb::solve::{Loads, Policy, SolveConfig, best_split, lower_bound, solve};

const LAYERS: u32 = 58;
const EXPERTS: usize = 256;

/// Zipf-distributed loads, `1 / n^exponent`, shuffled in each layer.
///
/// The shuffle is Fisher-Yates with a linear congruential generator, seeded with the layer's number.
fn zipf(num_layers: u32, num_experts: usize, exponent: f64) -> Vec<f64> {
    (0..num_layers)
        .flat_map(|layer| {
            let mut loads: Vec<f64> =
                (1..=num_experts).map(|rank| (1e6 / (rank as f64).powf(exponent)).round()).collect();
            let mut state = u64::from(layer);
            for i in (1..num_experts).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                loads.swap(i, (state >> 33) as usize % (i + 1));
            }
            loads
        })
        .collect()
}

/// All policies. The hierarchical one has DeepSeek-V3's 8 groups, and a number of nodes that divides the ranks.
fn policies(c: &mut Criterion) {
    let layers: Vec<u32> = (3..3 + LAYERS).collect();
    for policy in Policy::ALL {
        for (name, exponent) in [("zipf 0.6", 0.6), ("zipf 1.0", 1.0), ("equal", 0.0)] {
            let values = zipf(LAYERS, EXPERTS, exponent);
            let loads = Loads::new(&values, &layers, 1, EXPERTS).unwrap();
            for (slots, ranks, num_nodes) in [(288, 32, 4), (288, 72, 8), (320, 8, 1)] {
                let config = SolveConfig { policy, num_groups: 8, num_nodes, ..SolveConfig::default() };
                let shape = Shape::new(EXPERTS, slots, ranks).unwrap();
                c.bench_function(&format!("{policy}/{name}/{slots} slots on {ranks} ranks/1 thread"), |b| {
                    b.iter(|| solve(&config, shape, black_box(&loads), 1).unwrap());
                });
            }
        }
    }
}

/// The search on 100 layers with four slots an expert and two experts a rank, on two threads.
fn large_shapes(c: &mut Criterion) {
    let mut group = c.benchmark_group("growth");
    group.sample_size(10);
    let layers: Vec<u32> = (0..100).collect();
    for (name, exponent) in [("zipf 0.6", 0.6), ("zipf 1.0", 1.0), ("equal", 0.0)] {
        for experts in [256, 512, 1024, 2048] {
            let values = zipf(100, experts, exponent);
            let loads = Loads::new(&values, &layers, 1, experts).unwrap();
            let shape = Shape::new(experts, 4 * experts, experts / 2).unwrap();
            let config = SolveConfig::default();
            group.bench_function(format!("search/{name}/{experts} experts/2 threads"), |b| {
                b.iter(|| solve(&config, shape, black_box(&loads), 2).unwrap());
            });
        }
    }
    group.finish();
}

fn bound_and_best_split(c: &mut Criterion) {
    for (name, exponent) in [("zipf 0.6", 0.6), ("zipf 1.0", 1.0), ("equal", 0.0)] {
        let values = &zipf(1, EXPERTS, exponent);
        let loads = Loads::new(values, &[3], 1, EXPERTS).unwrap();
        for (slots, ranks) in [(288, 32), (288, 72), (320, 8)] {
            let shape = Shape::new(EXPERTS, slots, ranks).unwrap();
            let case = format!("{name}/{slots} slots on {ranks} ranks/1 layer");
            c.bench_function(&format!("lower bound/{case}"), |b| {
                b.iter(|| lower_bound(black_box(values), shape));
            });
            let greedy = SolveConfig { policy: Policy::Trtllm, ..SolveConfig::default() };
            let placement = solve(&greedy, shape, &loads, 1).unwrap();
            let experts = placement.layer_experts(3).unwrap();
            c.bench_function(&format!("best split/{case}"), |b| {
                b.iter(|| best_split(black_box(values), experts, shape));
            });
        }
    }
}

criterion_group!(benches, policies, large_shapes, bound_and_best_split);
criterion_main!(benches);
