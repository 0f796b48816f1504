//! What the search minimises: the mean over samples, a quantile, or the best split of drifted loads.
//! Thresholds are results of benches/balance.rs.

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
    let layer_len = num_samples * shape.num_experts();
    let layers: Vec<u32> = (0..(loads.len() / layer_len) as u32).collect();
    let loads = Loads::new(loads, &layers, num_samples, shape.num_experts()).unwrap();
    solve(config, shape, &loads, threads).unwrap()
}

fn recorded(dump: &Path, start: u64, stop: u64, num_samples: usize) -> Vec<f64> {
    let options = LoadOptions { iter_start: Some(start), iter_stop: Some(stop), ..LoadOptions::default() };
    Dump::open(dump, &options).unwrap().read(&mut |_, _| Ok(())).unwrap().samples(num_samples).unwrap()
}

/// Returns the balancedness by even split and by best split, averaged over layers and samples.
fn balancedness(placement: &Placement, loads: &[f64], num_samples: usize) -> (f64, f64) {
    let (shape, num_experts) = (placement.shape(), placement.shape().num_experts());
    let layers = || placement.iter().zip(loads.chunks_exact(num_samples * num_experts));
    let even = layers().map(|((layer, _), loads)| {
        score(placement, layer, loads, num_samples, num_experts).unwrap().balance().balancedness
    });
    let best = layers().flat_map(|((_, slots), loads)| {
        loads.chunks_exact(num_experts).map(move |loads| {
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

/// Checks the balancedness of `search` on 256 experts, and that no rank holds an expert twice.
fn check_balancedness(name: &str, loads: &[f64], num_slots: usize, num_ranks: usize, least: f64) {
    let shape = Shape::new(256, num_slots, num_ranks).unwrap();
    let placement = placed(&SolveConfig::default(), shape, loads, 1);
    let (balancedness, _) = balancedness(&placement, loads, 1);
    println!("{name} {num_slots}/{num_ranks}: {balancedness:.5}");
    assert!(balancedness >= least, "{name} {num_slots}/{num_ranks}: {balancedness}");
    assert_eq!(placement.duplicates(), [], "{name} {num_slots}/{num_ranks}");
}

#[test]
fn search_balances_zipf_loads_without_duplicates() {
    for (exponent, num_slots, num_ranks) in [(0.6, 288, 32), (1.0, 288, 32), (1.0, 288, 36)] {
        check_balancedness(&format!("zipf {exponent}"), &zipf(exponent), num_slots, num_ranks, 0.9998);
    }
}

/// Needs EPLB_EXTRA_DATA, a directory with more `dumps`.
#[test]
fn search_balances_recordings_of_deepseek_v3_without_duplicates() {
    let Some(folder) = std::env::var_os("EPLB_EXTRA_DATA") else { return };
    for (name, num_ranks, least) in
        [("dsv3-decode", 32, 0.9998), ("dsv3-prefill", 32, 0.9998), ("dsv3-decode", 72, 0.9978)]
    {
        let loads = recorded(&Path::new(&folder).join("dumps").join(name), 0, 1, 1);
        check_balancedness(name, &loads, 288, num_ranks, least);
    }
}

#[test]
fn search_balances_later_iterations_better_than_trtllm() {
    for (name, num_slots, num_ranks, least) in
        [("dsv2lite-translation", 72, 8, 0.912), ("dsv2lite-law", 80, 16, 0.83)]
    {
        let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps").join(name);
        let shape = Shape::new(64, num_slots, num_ranks).unwrap();
        let (planned, later) = (recorded(&dump, 100, 115, 15), recorded(&dump, 115, 131, 16));
        let of = |policy| {
            let config = SolveConfig { policy, ..SolveConfig::default() };
            balancedness(&placed(&config, shape, &planned, 15), &later, 16).0
        };
        let (search, trtllm) = (of(Policy::Search), of(Policy::Trtllm));
        println!("{name}: {search:.4} {trtllm:.4}");
        assert!(search > trtllm && search >= least, "{name}: {search} {trtllm}");
    }
}

/// Each sample has its own popularity, so that many ranks of many samples are hot.
#[test]
fn search_evens_out_samples_that_differ() {
    let mut state = 1u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 31)
    };
    let zipf = zipf(0.6);
    let of_sample = |layer: &[f64]| -> Vec<f64> {
        // About the factors of windows of a recording: between 0.4 and 2.
        layer.iter().map(|load| load * (0.4 + 1.6 * unit() * unit())).collect()
    };
    let loads: Vec<f64> =
        zipf.chunks_exact(256).take(4).flat_map(|layer| [layer; 16]).flat_map(of_sample).collect();
    for (num_ranks, least) in [(32, 0.895), (72, 0.768)] {
        let shape = Shape::new(256, 288, num_ranks).unwrap();
        let placement = placed(&SolveConfig::default(), shape, &loads, 16);
        let found = balancedness(&placement, &loads, 16).0;
        println!("{num_ranks} ranks: {found:.4}");
        assert!(found >= least, "{num_ranks} ranks: {found}");
        assert_eq!(placement.duplicates(), []);
    }
}

#[test]
fn placements_do_not_depend_on_the_number_of_threads() {
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps/dsv2lite-law");
    let (shape, loads) = (Shape::new(64, 72, 8).unwrap(), recorded(&dump, 100, 131, 3));
    let search = SolveConfig::default();
    for config in [
        SolveConfig { objective: Objective::BestSplit, ..search },
        SolveConfig { quantile: Some(0.7), ..search },
        SolveConfig { rank_num_slots: Some(&[9, 8, 9, 9, 8, 7, 9, 9]), ..search },
    ] {
        assert_eq!(
            placed_on(1, &config, shape, &loads, 3),
            placed_on(3, &config, shape, &loads, 3),
            "{config:?}"
        );
    }
}

#[test]
fn search_minimises_the_quantile_over_samples() {
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
            // With n samples of equal weight, ceil(q n) of them do not exceed the quantile q.
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
fn check_rejects_invalid_quantile_drift_and_price() {
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
        "objective best-split does not support off_node_price; set off_node_price to 0 or use objective even-split"
    );
}

#[test]
fn best_split_objective_balances_later_iterations_better() {
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
        let (best_split_even, best_split_best) =
            of(&SolveConfig { objective: Objective::BestSplit, ..search });
        assert!(best_split_best > best + 0.008, "{name}: {best_split_best} {best}");
        // 1 % of max / mean, and some rounding from averages of its inverse.
        assert!(best_split_even > even * 0.985, "{name}: {best_split_even} {even}");
    }
}

/// Needs EPLB_EXTRA_DATA, a directory with more `dumps`. Plans on prompts of 1,024 tokens and measures on
/// prompts of 4,096.
#[test]
fn recorded_prefill_of_longer_prompts_reaches_the_documented_balance() {
    let Some(folder) = std::env::var_os("EPLB_EXTRA_DATA") else { return };
    let dump = Path::new(&folder).join("dumps/dsv3-prefill");
    let (planned, later) = (recorded(&dump, 0, 1, 1), recorded(&dump, 1, 2, 1));
    let shape = Shape::new(256, 288, 32).unwrap();
    let of = |config: &SolveConfig| balancedness(&placed(config, shape, &planned, 1), &later, 1);
    let search = SolveConfig::default();
    let greedy = of(&SolveConfig { policy: Policy::Trtllm, ..search });
    let best_split = of(&SolveConfig { objective: Objective::BestSplit, ..search });
    assert!((greedy.1 - 0.9053).abs() < 1e-4, "{greedy:?}");
    assert!(of(&search).0 >= greedy.0 && best_split.0 >= greedy.0, "{best_split:?} {greedy:?}");
    assert!(best_split.1 >= 0.95, "{best_split:?}");
}
