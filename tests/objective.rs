//! What the search is told to make small, the mean over samples, a quantile of them, or the best split of loads that drift; and
//! how small it is, by the computation of benches/balance.rs.

use std::path::Path;

use eplb::placement::{Placement, Shape};
use eplb::report::{average, score};
use eplb::solve::{Loads, Objective, Policy, SolveConfig, best_split, solve};
use eplb::stats::{Dump, LoadOptions};

fn placed(config: &SolveConfig, shape: Shape, loads: &[f64], num_samples: usize) -> Placement {
    placed_on(2, config, shape, loads, num_samples)
}

fn placed_on(
    threads: usize,
    config: &SolveConfig,
    shape: Shape,
    loads: &[f64],
    num_samples: usize,
) -> Placement {
    let row = num_samples * shape.num_experts();
    let layers: Vec<u32> = (0..(loads.len() / row) as u32).collect();
    let loads = Loads::new(loads, &layers, num_samples, shape.num_experts()).unwrap();
    solve(config, shape, &loads, threads).unwrap()
}

fn recorded(dump: &Path, start: u64, stop: u64, num_samples: usize) -> Vec<f64> {
    let options = LoadOptions { iter_start: Some(start), iter_stop: Some(stop), ..LoadOptions::default() };
    Dump::open(dump, &options).unwrap().read(&mut |_, _| Ok(())).unwrap().samples(num_samples).unwrap()
}

/// Over layers and samples, the mean over the most loaded rank's load: of the even split, and of the best.
fn balancedness(placement: &Placement, loads: &[f64], num_samples: usize) -> (f64, f64) {
    let (shape, row) = (placement.shape(), placement.shape().num_experts());
    let layers = || placement.iter().zip(loads.chunks_exact(num_samples * row));
    let even = layers().map(|((layer, _), loads)| {
        score(placement, layer, loads, num_samples, row).unwrap().balance().balancedness
    });
    let best = layers().flat_map(|((_, slots), loads)| {
        loads.chunks_exact(row).map(move |loads| {
            Some(loads.iter().sum::<f64>() / shape.num_ranks() as f64 / best_split(loads, slots, shape))
        })
    });
    (average(even).unwrap(), average(best).unwrap())
}

/// 58 layers of 256 experts whose loads fall off like `1 / rank^exponent`, shuffled as in `benches/balance.rs`.
fn zipf(exponent: f64) -> Vec<f64> {
    let of_layer = |layer: u64| {
        let mut loads: Vec<f64> =
            (1..=256).map(|rank| (1e6 / f64::from(rank).powf(exponent)).round()).collect();
        let mut state = layer;
        for i in (1..loads.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            loads.swap(i, (state >> 33) as usize % (i + 1));
        }
        loads
    };
    (0..58).flat_map(of_layer).collect()
}

/// That the search leaves 256 experts at least so level, and none twice on a rank.
fn check_level(name: &str, loads: &[f64], num_slots: usize, num_ranks: usize, least: f64) {
    let shape = Shape::new(256, num_slots, num_ranks).unwrap();
    let placement = placed(&SolveConfig::default(), shape, loads, 1);
    let (level, _) = balancedness(&placement, loads, 1);
    println!("{name} {num_slots}/{num_ranks}: {level:.5}");
    assert!(level >= least, "{name} {num_slots}/{num_ranks}: {level}");
    assert_eq!(placement.duplicates(), [], "{name} {num_slots}/{num_ranks}");
}

#[test]
fn generated_loads_are_level_to_two_ten_thousandths_and_no_expert_is_twice_on_a_rank() {
    for (exponent, num_slots, num_ranks) in [(0.6, 288, 32), (1.0, 288, 32), (1.0, 288, 36)] {
        check_level(&format!("zipf {exponent}"), &zipf(exponent), num_slots, num_ranks, 0.9998);
    }
}

/// With EPLB_EXTRA_DATA, a folder with more `dumps`.
#[test]
fn recordings_of_deepseek_v3_are_level_to_two_ten_thousandths_and_no_expert_is_twice_on_a_rank() {
    let Some(folder) = std::env::var_os("EPLB_EXTRA_DATA") else { return };
    for (name, num_ranks, least) in
        [("dsv3-decode", 32, 0.9998), ("dsv3-prefill", 32, 0.9998), ("dsv3-decode", 72, 0.9978)]
    {
        let loads = recorded(&Path::new(&folder).join("dumps").join(name), 0, 1, 1);
        check_level(name, &loads, 288, num_ranks, least);
    }
}

#[test]
fn iterations_that_were_not_planned_on_are_more_level_than_by_trtllm() {
    for (name, num_slots, num_ranks) in [("dsv2lite-translation", 72, 8), ("dsv2lite-law", 80, 16)] {
        let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps").join(name);
        let shape = Shape::new(64, num_slots, num_ranks).unwrap();
        let (planned, later) = (recorded(&dump, 100, 115, 15), recorded(&dump, 115, 131, 16));
        let of = |policy| {
            let config = SolveConfig { policy, ..SolveConfig::default() };
            balancedness(&placed(&config, shape, &planned, 15), &later, 16).0
        };
        let (search, trtllm) = (of(Policy::Search), of(Policy::Trtllm));
        println!("{name}: {search:.4} {trtllm:.4}");
        assert!(search > trtllm, "{name}: {search} {trtllm}");
    }
}

#[test]
fn the_number_of_threads_changes_no_placement() {
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps/dsv2lite-law");
    let (shape, loads) = (Shape::new(64, 72, 8).unwrap(), recorded(&dump, 100, 131, 3));
    let search = SolveConfig::default();
    for config in [
        SolveConfig { objective: Objective::BestSplit, ..search },
        SolveConfig { quantile: Some(0.7), ..search },
        SolveConfig { slots_per_rank: Some(&[9, 8, 9, 9, 8, 7, 9, 9]), ..search },
    ] {
        assert_eq!(
            placed_on(1, &config, shape, &loads, 3),
            placed_on(3, &config, shape, &loads, 3),
            "{config:?}"
        );
    }
}

#[test]
fn a_quantile_of_samples_is_as_small_as_any_placement_makes_it() {
    // Four experts on two ranks of two slots can be paired in three ways.
    let pairings = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]];
    let shape = Shape::new(4, 4, 2).unwrap();
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 50 + 1
    };
    let mut differ_from_the_mean = 0;
    for case in 0..400 {
        let num_samples = 1 + case % 7;
        let loads: Vec<f64> = (0..4 * num_samples).map(|_| random() as f64).collect();
        let ratios = |slots: &[u32]| -> Vec<f64> {
            let of_sample = |loads: &[f64]| {
                let rank = |held: &[u32]| held.iter().map(|&expert| loads[expert as usize]).sum::<f64>();
                let (one, other) = (rank(&slots[..2]), rank(&slots[2..]));
                one.max(other) / ((one + other) / 2.0)
            };
            loads.chunks_exact(4).map(of_sample).collect()
        };
        for quantile in [0.2, 0.5, 0.8, 1.0] {
            // Of n samples of equal weight, q n of them, rounded up, do not exceed it.
            let of = |slots: &[u32]| {
                let mut ratios = ratios(slots);
                ratios.sort_by(f64::total_cmp);
                ratios[((quantile * num_samples as f64 - 1e-9).ceil() as usize).max(1) - 1]
            };
            let config = SolveConfig { quantile: Some(quantile), ..SolveConfig::default() };
            let found = of(placed(&config, shape, &loads, num_samples).layer_experts(0).unwrap());
            let best = pairings.iter().map(|slots| of(slots)).fold(f64::INFINITY, f64::min);
            assert!(found <= best * 1.0002, "{quantile} of {num_samples}: {found} {best} {loads:?}");
            let mean = placed(&SolveConfig::default(), shape, &loads, num_samples);
            differ_from_the_mean += u32::from(of(mean.layer_experts(0).unwrap()) > best * 1.001);
        }
    }
    assert!(differ_from_the_mean > 50, "{differ_from_the_mean}");
}

#[test]
fn what_is_no_quantile_no_drift_or_no_weight_is_refused() {
    let shape = Shape::new(4, 4, 2).unwrap();
    let refused = |config: SolveConfig| config.check(shape).unwrap_err().to_string();
    let search = SolveConfig::default();
    for quantile in [0.0, -1.0, 1.5, f64::NAN] {
        let message = refused(SolveConfig { quantile: Some(quantile), ..search });
        assert_eq!(message, format!("quantile is {quantile}; above 0 and at most 1 expected"));
    }
    for drift in [-0.1, 2.5, f64::NAN] {
        let message = refused(SolveConfig { drift, ..search });
        assert_eq!(message, format!("drift is {drift}; 0 to 2 expected"));
    }
    let priced = SolveConfig { objective: Objective::BestSplit, off_node_price: 1.0, ..search };
    assert_eq!(
        refused(priced),
        "objective best-split knows no nodes; set off_node_price to 0, or plan for the even split"
    );
}

#[test]
fn replicas_placed_for_the_best_split_serve_later_iterations_better() {
    for (name, num_slots, num_ranks) in [("dsv2lite-translation", 72, 8), ("dsv2lite-law", 80, 16)] {
        let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps").join(name);
        let shape = Shape::new(64, num_slots, num_ranks).unwrap();
        let (planned, later) = (recorded(&dump, 100, 115, 5), recorded(&dump, 115, 131, 16));
        let of = |config: &SolveConfig| {
            let placement = placed(config, shape, &planned, 5);
            assert_eq!(placement.duplicates(), [], "{name}");
            (balancedness(&placement, &planned, 5).0, balancedness(&placement, &later, 16).1)
        };
        let search = SolveConfig::default();
        let (even, best) = of(&search);
        let (linked_even, linked_best) = of(&SolveConfig { objective: Objective::BestSplit, ..search });
        assert!(linked_best > best + 0.01, "{name}: {linked_best} {best}");
        // A hundredth of what is to be small, the mean of the ratios' inverses.
        assert!(linked_even > even * 0.985, "{name}: {linked_even} {even}");
    }
}

/// With EPLB_EXTRA_DATA, a folder with more `dumps`: planned on prompts of 1,024 tokens, measured on prompts of 4,096.
#[test]
fn the_recorded_prefill_of_longer_prompts_keeps_what_was_reached() {
    let Some(folder) = std::env::var_os("EPLB_EXTRA_DATA") else { return };
    let dump = Path::new(&folder).join("dumps/dsv3-prefill");
    let (planned, later) = (recorded(&dump, 0, 1, 1), recorded(&dump, 1, 2, 1));
    let shape = Shape::new(256, 288, 32).unwrap();
    let of = |config: &SolveConfig| balancedness(&placed(config, shape, &planned, 1), &later, 1);
    let search = SolveConfig::default();
    let greedy = of(&SolveConfig { policy: Policy::Trtllm, ..search });
    let linked = of(&SolveConfig { objective: Objective::BestSplit, ..search });
    assert!((greedy.1 - 0.9053).abs() < 1e-4, "{greedy:?}");
    assert!(of(&search).0 >= greedy.0 && linked.0 >= greedy.0, "{linked:?} {greedy:?}");
    assert!(linked.1 >= 0.95, "{linked:?}");
}
