//! The policy `search` against exhaustive enumeration, against the greedies, and on recorded loads.

use std::path::Path;

use eplb::placement::{Placement, Shape};
use eplb::solve::{Loads, Policy, SolveConfig, lower_bound, solve};
use eplb::stats::{Dump, LoadOptions};

/// Numbers that repeat: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Loads of one kind or another.
    fn loads(&mut self, num_experts: usize) -> Vec<f64> {
        let kind = self.below(7);
        let hot = self.below(num_experts);
        let exponent = 0.3 + self.below(15) as f64 / 10.0;
        (0..num_experts)
            .map(|expert| match kind {
                0 => self.below(1000) as f64,
                1 => (1e6 / (1.0 + self.below(num_experts) as f64).powf(exponent)).round(),
                2 => f64::from(u8::from(expert == hot)) * 100.0,
                3 => 0.0,
                4 => 7.0,
                5 => self.below(3) as f64,
                // Just too heavy for two a rank.
                _ => 50.0 + self.below(3) as f64,
            })
            .collect()
    }
}

fn rank_loads(shape: Shape, slots: &[u32], loads: &[f64]) -> Vec<f64> {
    let mut counts = vec![0.0; loads.len()];
    slots.iter().for_each(|&expert| counts[expert as usize] += 1.0);
    let load_of = |&expert: &u32| loads[expert as usize] / counts[expert as usize];
    slots.chunks_exact(shape.slots_per_rank()).map(|rank| rank.iter().map(load_of).sum()).collect()
}

fn most(shape: Shape, slots: &[u32], loads: &[f64]) -> f64 {
    rank_loads(shape, slots, loads).into_iter().fold(0.0, f64::max)
}

fn duplicates(shape: Shape, slots: &[u32]) -> usize {
    let repeated = |rank: &[u32]| (1..rank.len()).filter(|&slot| rank[..slot].contains(&rank[slot])).count();
    slots.chunks_exact(shape.slots_per_rank()).map(repeated).sum()
}

fn placed(policy: Policy, shape: Shape, loads: &[f64]) -> Vec<u32> {
    let placement = solve(
        &SolveConfig { policy, ..SolveConfig::default() },
        shape,
        &Loads::new(loads, &[0], 1, loads.len()).unwrap(),
        1,
    )
    .unwrap();
    placement.layer_experts(0).unwrap().to_vec()
}

/// All ways to fill a rank: ascending experts.
fn fillings(num_experts: u32, width: usize) -> Vec<Vec<u32>> {
    let mut all = vec![vec![]];
    for _ in 0..width {
        let longer = |filling: &Vec<u32>| {
            let from = filling.last().copied().unwrap_or(0);
            let filling = filling.clone();
            (from..num_experts).map(move |expert| [&filling[..], &[expert]].concat()).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// The least that the most loaded rank can carry, by trying everything: at all, and where no rank holds an expert twice.
fn best(shape: Shape, loads: &[f64]) -> (f64, f64) {
    let fillings = fillings(loads.len() as u32, shape.slots_per_rank());
    let mut best = (f64::INFINITY, f64::INFINITY);
    let mut chosen = vec![0; shape.num_ranks()];
    loop {
        let slots: Vec<u32> =
            chosen.iter().flat_map(|&filling: &usize| &fillings[filling]).copied().collect();
        if (0..loads.len() as u32).all(|expert| slots.contains(&expert)) {
            let load = most(shape, &slots, loads);
            best.0 = load.min(best.0);
            if duplicates(shape, &slots) == 0 {
                best.1 = load.min(best.1);
            }
        }
        // The next one in which the ranks' fillings ascend: ranks are alike.
        let Some(rank) = (0..chosen.len()).rfind(|&rank| chosen[rank] + 1 < fillings.len()) else {
            return best;
        };
        let next = chosen[rank] + 1;
        chosen[rank..].fill(next);
    }
}

#[test]
fn small_instances_reach_the_optimum() {
    let mut random = Random(1);
    let (mut reached, mut all) = (0, 0);
    for (num_experts, num_slots, num_ranks) in [
        (2, 4, 2),
        (3, 4, 2),
        (3, 6, 3),
        (3, 6, 2),
        (4, 6, 2),
        (4, 6, 3),
        (5, 6, 2),
        (5, 6, 3),
        (4, 8, 2),
        (6, 8, 2),
        (6, 6, 3),
        (5, 9, 3),
        (6, 9, 3),
    ] {
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        for _ in 0..if num_slots == 9 { 12 } else { 60 } {
            let loads = random.loads(num_experts);
            let (optimum, without_duplicates) = best(shape, &loads);
            let greedies = Policy::ALL
                .into_iter()
                .filter(|&policy| ![Policy::Search, Policy::DeepseekHierarchical].contains(&policy));
            let greedy = greedies
                .map(|policy| most(shape, &placed(policy, shape, &loads), &loads))
                .fold(f64::INFINITY, f64::min);
            let slots = placed(Policy::Search, shape, &loads);
            let (found, twice) = (most(shape, &slots, &loads), duplicates(shape, &slots));
            assert!(found >= optimum - 1e-9 * optimum, "{loads:?} on {shape:?}: {found} below {optimum}");
            assert!(found <= greedy * (1.0 + 1e-12), "{loads:?} on {shape:?}: {found} above {greedy}");
            // A duplicate is for what cannot be had without one.
            let wanted =
                if without_duplicates <= greedy * (1.0 + 1e-12) { without_duplicates } else { optimum };
            let is_there = found <= wanted * (1.0 + 1e-9) && (twice == 0 || without_duplicates > greedy);
            all += 1;
            reached += usize::from(is_there);
            if !is_there {
                println!(
                    "{loads:?} on {shape:?}: {found} with {twice} duplicates; {without_duplicates} without, {optimum} with, greedy {greedy}"
                );
            }
        }
    }
    println!("{reached} of {all}");
    assert!(reached * 100 >= all * 99, "{reached} of {all}");
}

#[test]
fn a_joint_choice_of_counts_and_ranks_beats_the_greedy() {
    // needs.md: greedy 232, best known 196.67.
    let loads = [600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0];
    let shape = Shape::new(8, 16, 8).unwrap();
    let slots = placed(Policy::Search, shape, &loads);
    assert!(most(shape, &slots, &loads) <= 196.67, "{}", most(shape, &slots, &loads));
    assert_eq!(duplicates(shape, &slots), 0);
}

#[test]
fn a_duplicate_where_it_pays_and_only_there() {
    // 60 | 40 1: with the spare slot for expert 0 on its own rank. Without a duplicate: 30 40 | 30 1.
    let shape = Shape::new(3, 4, 2).unwrap();
    assert_eq!(most(shape, &placed(Policy::Search, shape, &[60.0, 40.0, 1.0]), &[60.0, 40.0, 1.0]), 60.0);
    // 2 | 1 1: without one, 1 1 | 1 1 is level.
    let slots = placed(Policy::Search, shape, &[2.0, 1.0, 1.0]);
    assert_eq!((most(shape, &slots, &[2.0, 1.0, 1.0]), duplicates(shape, &slots)), (2.0, 0));
}

#[test]
fn no_load_spreads_the_slots_evenly_without_duplicates() {
    for (num_experts, num_slots, num_ranks) in [(256, 288, 32), (64, 80, 16), (8, 16, 8), (5, 12, 4)] {
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let slots = placed(Policy::Search, shape, &vec![0.0; num_experts]);
        assert_eq!(duplicates(shape, &slots), 0, "{shape:?}");
        let counts =
            (0..num_experts as u32).map(|expert| slots.iter().filter(|&&slot| slot == expert).count());
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(most - least <= 1, "{shape:?}: {least} to {most} slots");
    }
}

#[test]
fn random_shapes_are_never_above_the_greedies() {
    let mut random = Random(2);
    for case in 0..10_000 {
        let num_ranks = 1 + random.below(12);
        let width = 1 + random.below(6);
        let num_slots = num_ranks * width;
        let num_experts = 1 + random.below(num_slots);
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let loads = random.loads(num_experts);
        let slots = placed(Policy::Search, shape, &loads);
        Placement::new(shape, &[0], &slots).unwrap();
        let found = most(shape, &slots, &loads);
        for policy in Policy::ALL
            .into_iter()
            .filter(|&policy| ![Policy::Search, Policy::DeepseekHierarchical].contains(&policy))
        {
            let greedy = placed(policy, shape, &loads);
            let of_greedy = most(shape, &greedy, &loads);
            assert!(
                found <= of_greedy * (1.0 + 1e-12),
                "case {case}: {found}, {policy} {of_greedy}: {loads:?} on {shape:?}"
            );
        }
    }
}

/// The mean over samples of the most loaded rank's load over the mean, of samples that have load.
fn unevenness(shape: Shape, slots: &[u32], samples: &[f64], num_experts: usize) -> f64 {
    samples
        .chunks_exact(num_experts)
        .map(|loads| (most(shape, slots, loads), loads.iter().sum::<f64>() / shape.num_ranks() as f64))
        .filter(|&(_, mean)| mean > 0.0)
        .map(|(most, mean)| most / mean)
        .sum()
}

#[test]
fn several_samples_are_never_less_level_than_by_the_greedies() {
    let mut random = Random(3);
    for case in 0..3000 {
        let (num_ranks, width, num_samples) = (1 + random.below(8), 1 + random.below(5), 2 + random.below(4));
        let num_experts = 1 + random.below(num_ranks * width);
        let shape = Shape::new(num_experts, num_ranks * width, num_ranks).unwrap();
        let samples: Vec<f64> = (0..num_samples).flat_map(|_| random.loads(num_experts)).collect();
        let placed = |policy| {
            let config = SolveConfig { policy, ..SolveConfig::default() };
            let loads = Loads::new(&samples, &[0], num_samples, num_experts).unwrap();
            solve(&config, shape, &loads, 1).unwrap().layer_experts(0).unwrap().to_vec()
        };
        let found = unevenness(shape, &placed(Policy::Search), &samples, num_experts);
        for policy in [Policy::Trtllm, Policy::DeepseekGlobal] {
            let greedy = unevenness(shape, &placed(policy), &samples, num_experts);
            assert!(found <= greedy * (1.0 + 1e-9), "case {case}: {found}, {policy} {greedy} on {shape:?}");
        }
    }
}

#[test]
fn recorded_loads_have_no_duplicates_and_come_near_the_bound_whatever_the_number_of_threads() {
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
        for num_samples in [1, 4.min(stats.summary().iterations.len() as usize)] {
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
                    let bound = lower_bound(loads, shape);
                    assert!(most(shape, slots, loads) <= 1.02 * bound, "{name}");
                }
            }
        }
    }
}

#[test]
fn loads_at_the_edge_of_numbers_and_wide_ranks_end_soon() {
    let tiny = f64::from_bits(1);
    for loads in [vec![tiny, 0.0], vec![tiny, tiny], vec![-0.0, 0.0], vec![3e38, 1.0]] {
        let shape = Shape::new(2, 4, 2).unwrap();
        let placement = placed(Policy::Search, shape, &loads);
        Placement::new(shape, &[0], &placement).unwrap();
        assert!(lower_bound(&loads, shape).is_finite());
    }
    // Pairs of the slots of a rank would be 2^29, and slots that repeat an expert 19,000.
    for (num_experts, num_slots, num_ranks) in [(32768, 32768, 2), (1000, 20000, 1), (16, 4096, 4)] {
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let loads: Vec<f64> = (0..num_experts).map(|expert| (expert % 5) as f64).collect();
        Placement::new(shape, &[0], &placed(Policy::Search, shape, &loads)).unwrap();
    }
}
