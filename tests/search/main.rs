//! The policy `search`: cases worked out by hand, all small instances, random ones, and recorded loads.

mod duplicate_free;
mod exhaustive;
mod instance;
mod properties;

use std::path::Path;

use eplb::placement::Shape;
use eplb::solve::{Loads, Policy, SolveConfig, lower_bound, solve};
use eplb::stats::{Dump, LoadOptions};

use self::instance::Instance;

#[test]
fn search_is_below_the_greedies_by_choosing_counts_and_ranks_together() {
    // From vllm-ascend #3042: the greedy's maximum is 232, the best known 196.67; the mean is 181.25.
    let instance = Instance::new(8, 16, 8, vec![600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]);
    let slots = instance.place(Policy::Search);
    assert!(instance.cost(&slots) * 181.25 <= 196.67, "{}", instance.cost(&slots) * 181.25);
    assert_eq!(instance.duplicates(&slots), 0);
}

/// Hot experts need several ranks each. With the greedy's replica counts, two of their replicas on a rank are
/// too much, but some must share one.
#[test]
fn restarts_reach_the_bound_of_heavy_tails() {
    for (num_experts, num_slots, num_ranks, exponent, most) in [
        (57, 87, 29, 1.74, 1.02),
        (103, 120, 15, 1.7, 1.001),
        (256, 320, 64, 1.2, 1.001),
        (128, 160, 32, 1.3, 1.01),
        (512, 576, 64, 1.3, 1.001),
    ] {
        let loads = (1..=num_experts).map(|rank| (1e6 / (rank as f64).powf(exponent)).round()).collect();
        let instance = Instance::new(num_experts, num_slots, num_ranks, loads);
        let slots = instance.place(Policy::Search);
        assert!(instance.cost(&slots) <= most * instance.bound(), "{}: {instance}", instance.cost(&slots));
        assert_eq!(instance.duplicates(&slots), 0, "{instance}");
        assert!(instance.greedy() > 1.04 * instance.bound(), "{}: {instance}", instance.greedy());
    }
}

#[test]
fn search_keeps_a_duplicate_only_if_it_lowers_the_cost() {
    // 60 | 40 1, of a mean of 50.5: with the spare slot for expert 0 on its own rank. Without a duplicate: 30 40 | 30 1.
    let instance = Instance::new(3, 4, 2, vec![60.0, 40.0, 1.0]);
    assert_eq!(instance.cost(&instance.place(Policy::Search)), 60.0 / 50.5);
    // 2 | 1 1 has no duplicate. 1 1 | 1 1 would be as even.
    let instance = Instance::new(3, 4, 2, vec![2.0, 1.0, 1.0]);
    let slots = instance.place(Policy::Search);
    assert_eq!((instance.cost(&slots), instance.duplicates(&slots)), (1.0, 0));
}

#[test]
fn search_without_load_spreads_slots_evenly_without_duplicates() {
    for (num_experts, num_slots, num_ranks) in [(256, 288, 32), (64, 80, 16), (8, 16, 8), (5, 12, 4)] {
        let instance = Instance::new(num_experts, num_slots, num_ranks, vec![0.0; num_experts]);
        let slots = instance.place(Policy::Search);
        assert_eq!(instance.duplicates(&slots), 0, "{instance}");
        let counts =
            (0..num_experts as u32).map(|expert| slots.iter().filter(|&&slot| slot == expert).count());
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(most - least <= 1, "{least} to {most} slots: {instance}");
    }
}

#[test]
fn search_of_recorded_loads_has_no_duplicates_and_ignores_the_number_of_threads() {
    for (name, num_slots, num_ranks) in [
        ("dsv2lite-translation", 72, 8),
        ("dsv2lite-law", 80, 16),
        ("dsr1-extreme", 288, 32),
        ("dsr1-all-zero", 288, 32),
    ] {
        let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps").join(name);
        let options = LoadOptions::default();
        let stats = Dump::open(&dump, &options).unwrap().read(&mut |_, _| Ok(())).unwrap();
        let (num_experts, layers) = (stats.summary().num_experts, &stats.summary().layers);
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        for num_samples in [1, 4.min(stats.summary().rows.len() as usize)] {
            let samples = stats.samples(num_samples).unwrap();
            let loads = Loads::new(&samples, layers, num_samples, num_experts).unwrap();
            let config = SolveConfig { policy: Policy::Search, ..SolveConfig::default() };
            let placement = solve(&config, shape, &loads, 1).unwrap();
            assert_eq!(placement.duplicates(), [], "{name}");
            for threads in [2, 8] {
                assert_eq!(solve(&config, shape, &loads, threads).unwrap(), placement, "{name}");
            }
            if num_samples == 1 && name.starts_with("dsv2lite") {
                for ((_, slots), loads) in placement.iter().zip(samples.chunks_exact(num_experts)) {
                    let instance = Instance { shape, samples: loads.to_vec() };
                    assert!(instance.cost(slots) <= 1.02 * instance.bound(), "{name}");
                }
            }
        }
    }
}

#[test]
fn search_ends_on_extreme_loads_and_large_shapes() {
    let tiny = f64::from_bits(1);
    for loads in [vec![tiny, 0.0], vec![tiny, tiny], vec![-0.0, 0.0], vec![3e38, 1.0]] {
        let instance = Instance::new(2, 4, 2, loads);
        instance.place(Policy::Search);
        assert!(lower_bound(&instance.samples, instance.shape).is_finite());
    }
    // Pairs of the slots of a rank would be 2^29, and slots that repeat an expert 19,000. The numbers of placements on many ranks
    // are beyond any double.
    for (num_experts, num_slots, num_ranks) in [
        (32768, 32768, 2),
        (1000, 20000, 1),
        (16, 4096, 4),
        (256, 320, 320),
        (256, 342, 171),
        (2048, 8192, 1024),
    ] {
        let loads = (0..num_experts).map(|expert| (expert % 5) as f64).collect();
        Instance::new(num_experts, num_slots, num_ranks, loads).place(Policy::Search);
    }
}
