//! Balance on batches that are drawn from recorded loads of DeepSeek-V3, whose experts each rank likes more or less.

use std::path::Path;

use eplb::dispatch::Rule;
use eplb::placement::{Placement, Shape};
use eplb::report::{RoutingOptions, expected_load};
use eplb::solve::{Loads, Policy, SolveConfig, solve};
use eplb::stats::{Dump, LoadOptions};

use crate::water_filling;

const EXPERTS: usize = 256;
const SEED: u64 = 1;
/// Batches of each layer.
const DRAWS: usize = 4;
/// The shape of the gamma distribution that a rank multiplies an expert's popularity by.
const SPREAD: f64 = 2.0;

/// Slots, ranks and ids a rank.
const CASES: [(usize, usize, usize); 18] = [
    (288, 32, 512),
    (288, 32, 2048),
    (288, 72, 1024),
    (320, 8, 1024),
    (320, 64, 1024),
    (640, 320, 512),
    (288, 32, 8),
    (288, 32, 16),
    (288, 32, 32),
    (288, 32, 64),
    (320, 8, 8),
    (320, 8, 16),
    (320, 8, 32),
    (320, 8, 64),
    (320, 64, 8),
    (320, 64, 16),
    (320, 64, 32),
    (320, 64, 64),
];

/// Prints the balance of each case by the loads of a dump.
pub fn print(dump: &Path) {
    let stats = Dump::open(dump, &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
    let loads = stats.samples(1).unwrap();
    let layers: Vec<u32> = (0..(loads.len() / EXPERTS) as u32).collect();
    println!(
        "\nDrawn from {}, seed {SEED}, {DRAWS} batches for each of {} layers:\n",
        dump.display(),
        layers.len()
    );
    println!(
        "| slots / ranks, ids a rank | even | water-filling | least loaded | difference \
        | all counts: water-filling | least loaded | difference |\n|---|---|---|---|---|---|---|---|"
    );
    for (num_slots, num_ranks, ids) in CASES {
        let shape = Shape::new(EXPERTS, num_slots, num_ranks).unwrap();
        let config = SolveConfig { policy: Policy::Trtllm, ..SolveConfig::default() };
        let placement = solve(&config, shape, &Loads::new(&loads, &layers, 1, EXPERTS).unwrap(), 1).unwrap();
        let mut random = Random(SEED);
        let mut sums = [0.0; 5];
        for (layer, loads) in layers.iter().zip(loads.chunks_exact(EXPERTS)) {
            for _ in 0..DRAWS {
                let counts = draw(&mut random, loads, num_ranks, ids);
                let found = balances(&placement, *layer, &counts);
                sums.iter_mut().zip(found).for_each(|(sum, balance)| *sum += balance);
            }
        }
        let [even, filled, own, filled_all, all] = sums.map(|sum| sum / (layers.len() * DRAWS) as f64);
        println!(
            "| {num_slots} / {num_ranks}, {ids} | {even:.4} | {filled:.4} | {own:.4} | {:+.4} | {filled_all:.4} | {all:.4} | {:+.4} |",
            own - filled,
            all - filled_all
        );
    }
}

/// Mean / max of the ranks' loads by the even split, and by water-filling and least loaded with own counts and with all.
fn balances(placement: &Placement, layer: u32, counts: &[u64]) -> [f64; 5] {
    let shape = placement.shape();
    let mut ranks = vec![vec![]; EXPERTS];
    for (slot, &expert) in placement.layer_experts(layer).unwrap().iter().enumerate() {
        let ranks: &mut Vec<usize> = &mut ranks[expert as usize];
        if ranks.last() != Some(&shape.rank_of(slot)) {
            ranks.push(shape.rank_of(slot));
        }
    }
    let mut totals = vec![0; EXPERTS];
    let mut filled = vec![0; shape.num_ranks()];
    for own in counts.chunks_exact(EXPERTS) {
        totals.iter_mut().zip(own).for_each(|(total, count)| *total += count);
        let loads = water_filling::rank_loads(shape, &ranks, own);
        filled.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load);
    }
    let filled_all = water_filling::rank_loads(shape, &ranks, &totals);
    let by = |rule, with_rank_counts| {
        let options = RoutingOptions { rule, rank_to_node: None, with_rank_counts };
        balancedness(expected_load(placement, layer, options, counts).unwrap())
    };
    let of_whole = |loads: Vec<u64>| balancedness(loads.into_iter().map(|load| load as f64).collect());
    [
        by(Rule::RoundRobin, false),
        of_whole(filled),
        by(Rule::LeastLoaded, false),
        of_whole(filled_all),
        by(Rule::LeastLoaded, true),
    ]
}

fn balancedness(loads: Vec<f64>) -> f64 {
    loads.iter().sum::<f64>() / loads.len() as f64 / loads.into_iter().fold(0.0, f64::max)
}

/// Counts of each rank, `[ranks][experts]`.
fn draw(random: &mut Random, loads: &[f64], num_ranks: usize, ids: usize) -> Vec<u64> {
    let mut counts = vec![0; num_ranks * EXPERTS];
    for counts in counts.chunks_exact_mut(EXPERTS) {
        let mut sum = 0.0;
        let ends: Vec<f64> = loads
            .iter()
            .map(|load| {
                sum += load * random.gamma(SPREAD);
                sum
            })
            .collect();
        for _ in 0..ids {
            let point = random.uniform() * sum;
            counts[ends.partition_point(|&end| end <= point).min(EXPERTS - 1)] += 1;
        }
    }
    counts
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// A number in [0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// By Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// By Marsaglia and Tsang, for a shape of 1 or more.
    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}
