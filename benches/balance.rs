//! The balancedness of each policy's placements: mean / max of the rank loads with the even split, averaged over layers.
//!
//! `cargo bench --bench balance`. EPLB_EXTRA_DATA, a folder with more `dumps`, adds recordings of DeepSeek-V3.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use eplb::placement::{Placement, Shape};
use eplb::report::{average, score};
use eplb::solve::{Loads, Objective, Policy, SolveConfig, solve};
use eplb::stats::{Dump, LoadOptions};

const LAYERS: u64 = 58;

/// Zipf-distributed loads, `1 / n^exponent`, shuffled in each layer as in `benches/solve.rs`.
fn zipf(num_layers: u64, num_experts: u32, exponent: f64) -> Vec<f64> {
    let of_layer = |layer: u64| {
        let mut loads: Vec<f64> =
            (1..=num_experts).map(|rank| (1e6 / f64::from(rank).powf(exponent)).round()).collect();
        let mut state = layer;
        for i in (1..loads.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            loads.swap(i, (state >> 33) as usize % (i + 1));
        }
        loads
    };
    (0..num_layers).flat_map(of_layer).collect()
}

/// Reads the loads of a dump, `[layers][samples][experts]`.
fn dump_loads(dump: &Path, start: u64, stop: u64, num_samples: usize) -> Vec<f64> {
    let options = LoadOptions { iter_start: Some(start), iter_stop: Some(stop), ..LoadOptions::default() };
    let stats = Dump::open(dump, &options).unwrap().read(&mut |_, _| Ok(())).unwrap();
    stats.samples(num_samples).unwrap()
}

struct Case<'a> {
    name: &'a str,
    num_experts: usize,
    num_slots: usize,
    num_ranks: usize,
}

impl Case<'_> {
    fn place(&self, policy: Policy, loads: &[f64], num_samples: usize) -> Placement {
        let shape = Shape::new(self.num_experts, self.num_slots, self.num_ranks).unwrap();
        let layers: Vec<u32> = (0..(loads.len() / num_samples / self.num_experts) as u32).collect();
        let loads = Loads::new(loads, &layers, num_samples, self.num_experts).unwrap();
        solve(&SolveConfig { policy, ..SolveConfig::default() }, shape, &loads, 1).unwrap()
    }

    fn balancedness(&self, placement: &Placement, loads: &[f64], num_samples: usize) -> f64 {
        let layers = loads.chunks_exact(num_samples * self.num_experts);
        average(placement.iter().zip(layers).map(|((layer, _), loads)| {
            score(placement, layer, loads, num_samples, self.num_experts).unwrap().balance().balancedness
        }))
        .unwrap()
    }

    fn row(&self, loads: &[f64]) {
        print!("| {} {}/{}", self.name, self.num_slots, self.num_ranks);
        for policy in [Policy::DeepseekGlobal, Policy::Trtllm, Policy::Search] {
            let placement = self.place(policy, loads, 1);
            let duplicates = placement.duplicates().len();
            print!(" | {:.5} | {duplicates}", self.balancedness(&placement, loads, 1));
        }
        let mut times = [0.0; 31].map(|_: f64| {
            let start = Instant::now();
            black_box(self.place(Policy::Search, loads, 1));
            start.elapsed().as_secs_f64()
        });
        times.sort_unstable_by(f64::total_cmp);
        println!(" | {:.2} ms |", times[times.len() / 2] * 1e3);
    }
}

/// Balancedness and off-node share for several prices, with 8 groups on 4 nodes of 8 ranks.
fn off_node_prices(loads: &[f64]) {
    println!("\n| policy | price | balancedness | off-node share | time, one thread |");
    println!("|---|---|---|---|---|");
    let case = Case { name: "dsv3-prefill", num_experts: 256, num_slots: 288, num_ranks: 32 };
    let rank_to_node: Vec<i32> = (0..32).map(|rank| rank / 8).collect();
    let layers: Vec<u32> = (0..58).collect();
    let search = [f64::INFINITY, 3.0, 2.5, 2.0, 1.5, 1.2, 1.0, 0.5, 0.1, 0.0];
    let hierarchical = (Policy::DeepseekHierarchical, 0.0);
    for (policy, price) in [hierarchical].into_iter().chain(search.map(|price| (Policy::Search, price))) {
        let config = SolveConfig {
            policy,
            num_groups: 8,
            num_nodes: 4,
            off_node_price: price,
            ..SolveConfig::default()
        };
        let checked = Loads::new(loads, &layers, 1, 256).unwrap();
        let start = Instant::now();
        let placement = solve(&config, Shape::new(256, 288, 32).unwrap(), &checked, 1).unwrap();
        let time = start.elapsed();
        let shares = layers.iter().zip(loads.chunks_exact(256)).map(|(&layer, loads)| {
            score(&placement, layer, loads, 1, 256).unwrap().off_node_share(8, &rank_to_node).unwrap()
        });
        let (balancedness, share) = (case.balancedness(&placement, loads, 1), average(shares).unwrap());
        println!(
            "| {policy} | {price} | {balancedness:.5} | {share:.4} | {:.0} ms |",
            time.as_secs_f64() * 1e3
        );
    }
}

/// Loads so uneven that each of the hottest experts needs several ranks.
fn heavy_tails() {
    println!("\n| experts, slots/ranks, zipf, the mean of 6 layers | trtllm | search |\n|---|---|---|");
    for (num_experts, num_slots, num_ranks, exponent) in
        [(57, 87, 29, 1.74), (103, 120, 15, 1.7), (128, 160, 32, 1.3), (512, 576, 64, 1.3)]
    {
        let loads = zipf(6, num_experts, exponent);
        let case = Case { name: "zipf", num_experts: num_experts as usize, num_slots, num_ranks };
        let balancedness = |policy| case.balancedness(&case.place(policy, &loads, 1), &loads, 1);
        println!(
            "| {num_experts}, {num_slots}/{num_ranks}, {exponent} | {:.4} | {:.4} |",
            balancedness(Policy::Trtllm),
            balancedness(Policy::Search)
        );
    }
}

/// 16 samples of each layer, each with its own popularity: a load times Gamma(8, 1/8) for each expert.
fn differing_samples(loads: &[f64]) -> Vec<f64> {
    let mut state = 5u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 + 0.5) / f64::from(1u32 << 31)
    };
    let mut gamma = || (0..8).map(|_| -unit().ln()).sum::<f64>() / 8.0;
    let mut sample =
        |layer: &[f64]| -> Vec<f64> { layer.iter().map(|load| (load * gamma()).round()).collect() };
    loads.chunks_exact(256).flat_map(|layer| [layer; 16]).flat_map(&mut sample).collect()
}

/// Many ranks of many samples are hot.
fn samples(name: &str, loads: &[f64]) {
    println!("\n| 16 samples, {name}, slots/ranks | effort | search | time, one thread |\n|---|---|---|---|");
    let loads = differing_samples(loads);
    let layers: Vec<u32> = (0..58).collect();
    let checked = Loads::new(&loads, &layers, 16, 256).unwrap();
    for num_ranks in [32, 72] {
        let case = Case { name, num_experts: 256, num_slots: 288, num_ranks };
        for effort in [200, 800] {
            let config = SolveConfig { effort, ..SolveConfig::default() };
            let shape = Shape::new(256, 288, num_ranks).unwrap();
            let start = Instant::now();
            let placement = solve(&config, shape, &checked, 1).unwrap();
            let time = start.elapsed();
            println!(
                "| 288/{num_ranks} | {effort} | {:.4} | {:.0} ms |",
                case.balancedness(&placement, &loads, 16),
                time.as_secs_f64() * 1e3
            );
        }
    }
}

/// Many small groups on 4 nodes, with all load on home nodes.
fn groups() {
    println!("\n| groups, zipf 1.0, 288/32 | deepseek-hierarchical | search, price inf |\n|---|---|---|");
    let loads = zipf(6, 256, 1.0);
    let layers: Vec<u32> = (0..6).collect();
    let checked = Loads::new(&loads, &layers, 1, 256).unwrap();
    let shape = Shape::new(256, 288, 32).unwrap();
    let case = Case { name: "zipf", num_experts: 256, num_slots: 288, num_ranks: 32 };
    for num_groups in [8, 16, 32, 64, 128] {
        let [hierarchical, search] = [Policy::DeepseekHierarchical, Policy::Search].map(|policy| {
            let config = SolveConfig {
                policy,
                num_groups,
                num_nodes: 4,
                off_node_price: f64::INFINITY,
                ..SolveConfig::default()
            };
            case.balancedness(&solve(&config, shape, &checked, 1).unwrap(), &loads, 1)
        });
        println!("| {num_groups} | {hierarchical:.4} | {search:.4} |");
    }
}

/// Placements planned on prompts of 1,024 tokens and measured on prompts of 4,096, with the even split and the best split.
fn later_loads(planned: &[f64], measured: &[f64]) {
    println!(
        "\n| planned by | planned, even split | best split | measured, even split | best split | duplicates | time, one thread |"
    );
    println!("|---|---|---|---|---|---|---|");
    let case = Case { name: "dsv3-prefill", num_experts: 256, num_slots: 288, num_ranks: 32 };
    let layers: Vec<u32> = (0..58).collect();
    let search = SolveConfig::default();
    let best_split = |drift| SolveConfig { objective: Objective::BestSplit, drift, ..search };
    let mut rows: Vec<(String, SolveConfig)> = [Policy::Trtllm, Policy::DeepseekGlobal, Policy::Search]
        .map(|policy| (policy.to_string(), SolveConfig { policy, ..search }))
        .into();
    rows.extend(
        [0.0, 0.1, 0.2, 0.3, 0.4]
            .map(|drift| (format!("search, best split, drift {drift}"), best_split(drift))),
    );
    for (name, config) in rows {
        let checked = Loads::new(planned, &layers, 1, 256).unwrap();
        let start = Instant::now();
        let placement = solve(&config, Shape::new(256, 288, 32).unwrap(), &checked, 1).unwrap();
        let time = start.elapsed();
        let best = |loads: &[f64]| {
            average(placement.iter().zip(loads.chunks_exact(256)).map(|((layer, _), loads)| {
                score(&placement, layer, loads, 1, 256).unwrap().best_split().balancedness
            }))
            .unwrap()
        };
        println!(
            "| {name} | {:.4} | {:.4} | {:.4} | {:.4} | {} | {:.0} ms |",
            case.balancedness(&placement, planned, 1),
            best(planned),
            case.balancedness(&placement, measured, 1),
            best(measured),
            placement.duplicates().len(),
            time.as_secs_f64() * 1e3
        );
    }
}

fn main() {
    println!(
        "| loads, slots/ranks | deepseek-global | duplicates | trtllm | duplicates | search | duplicates | its time, one thread |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, exponent, num_slots, num_ranks) in [
        ("zipf 0.6", 0.6, 288, 32),
        ("zipf 1.0", 1.0, 288, 32),
        ("zipf 1.0", 1.0, 288, 36),
        ("zipf 1.0", 1.0, 320, 8),
    ] {
        Case { name, num_experts: 256, num_slots, num_ranks }.row(&zipf(LAYERS, 256, exponent));
    }
    let extra = std::env::var_os("EPLB_EXTRA_DATA").map(|folder| Path::new(&folder).join("dumps"));
    if let Some(dumps) = &extra {
        for (name, num_slots, num_ranks) in
            [("dsv3-decode", 288, 32), ("dsv3-decode", 288, 72), ("dsv3-prefill", 288, 32)]
        {
            let loads = dump_loads(&dumps.join(name), 0, 1, 1);
            Case { name, num_experts: 256, num_slots, num_ranks }.row(&loads);
        }
    }
    for exponent in [0.6, 1.0] {
        let loads = zipf(LAYERS, 8, exponent);
        Case { name: "zipf, 8 experts", num_experts: 8, num_slots: 10, num_ranks: 2 }.row(&loads);
    }
    match &extra {
        Some(dumps) => samples("dsv3-decode", &dump_loads(&dumps.join("dsv3-decode"), 0, 1, 1)),
        None => samples("zipf 0.6", &zipf(LAYERS, 256, 0.6)),
    }
    heavy_tails();
    groups();
    if let Some(dumps) = &extra {
        let loads = dump_loads(&dumps.join("dsv3-prefill"), 0, 1, 1);
        off_node_prices(&loads);
        later_loads(&loads, &dump_loads(&dumps.join("dsv3-prefill"), 1, 2, 1));
    }

    println!(
        "\n| planned on iterations 100-114, measured on each of 115-130 | trtllm | search, the sum | search, each of 15 |"
    );
    println!("|---|---|---|---|");
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps");
    for (name, num_slots, num_ranks) in [("dsv2lite-translation", 72, 8), ("dsv2lite-law", 80, 16)] {
        let case = Case { name, num_experts: 64, num_slots, num_ranks };
        let planned = |samples| dump_loads(&dumps.join(name), 100, 115, samples);
        let measured = dump_loads(&dumps.join(name), 115, 131, 16);
        print!("| {name} {num_slots}/{num_ranks}");
        for (policy, samples) in [(Policy::Trtllm, 1), (Policy::Search, 1), (Policy::Search, 15)] {
            let placement = case.place(policy, &planned(samples), samples);
            print!(" | {:.4}", case.balancedness(&placement, &measured, 16));
        }
        println!(" |");
    }
}
