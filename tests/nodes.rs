//! The policy `search` with a price of off-node load.

use std::env;
use std::path::Path;

use eplb::placement::{Placement, Shape};
use eplb::report::{average, score};
use eplb::solve::{Loads, Policy, SolveConfig, solve};
use eplb::stats::{Dump, LoadOptions};

/// Returns the loads of a recording's first iteration, `[layers][experts]`, and the number of experts.
fn recorded(dump: &Path) -> (Vec<f64>, usize) {
    let options = LoadOptions::default();
    let start = Dump::open(dump, &options).unwrap().summary().rows.first().iterations.start;
    let options = LoadOptions { iter_start: Some(start), iter_stop: Some(start + 1), ..options };
    let stats = Dump::open(dump, &options).unwrap().read(&mut |_, _| Ok(())).unwrap();
    (stats.samples(1).unwrap(), stats.summary().num_experts)
}

fn placed(config: &SolveConfig, shape: Shape, loads: &[f64], threads: usize) -> Placement {
    let layers: Vec<u32> = (0..(loads.len() / shape.num_experts()) as u32).collect();
    let loads = Loads::new(loads, &layers, 1, shape.num_experts()).unwrap();
    solve(config, shape, &loads, threads).unwrap()
}

/// Balancedness and off-node share, means over layers.
fn figures(placement: &Placement, loads: &[f64], num_groups: usize, nodes: &[i32]) -> (f64, f64) {
    let layers = placement.iter().zip(loads.chunks_exact(placement.shape().num_experts()));
    let scores: Vec<_> =
        layers.map(|((layer, _), loads)| score(placement, layer, loads, 1, loads.len()).unwrap()).collect();
    let balancedness = scores.iter().map(|score| score.balance().balancedness);
    let share = scores.iter().map(|score| score.off_node_share(num_groups, nodes).unwrap());
    (average(balancedness).unwrap(), average(share).unwrap())
}

#[test]
fn price_trades_off_node_share_for_balance() {
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps/dsr1-extreme");
    let (loads, num_experts) = recorded(&dump);
    let loads = &loads[..6 * num_experts];
    let shape = Shape::new(num_experts, 288, 32).unwrap();
    let nodes: Vec<i32> = (0..32).map(|rank| rank / 8).collect();
    let at = |price| {
        let config =
            SolveConfig { num_groups: 8, num_nodes: 4, off_node_price: price, ..SolveConfig::default() };
        let placement = placed(&config, shape, loads, 1);
        assert_eq!(placed(&config, shape, loads, 3), placement, "depends on the number of threads");
        figures(&placement, loads, 8, &nodes)
    };
    let (hard, soft, free) = (at(f64::INFINITY), at(1.0), at(0.0));
    let hierarchical = SolveConfig {
        policy: Policy::DeepseekHierarchical,
        num_groups: 8,
        num_nodes: 4,
        ..SolveConfig::default()
    };
    let deepseek = figures(&placed(&hierarchical, shape, loads, 1), loads, 8, &nodes);
    assert!(hard.1 < 1e-12 && hard.0 >= deepseek.0, "{hard:?} {deepseek:?}");
    assert!(soft.0 > hard.0 && soft.1 < free.1, "{hard:?} {soft:?} {free:?}");
}

#[test]
fn search_takes_nodes_of_any_size_named_by_any_int32() {
    // 4 groups of 4 experts; nodes of 1, 3 and 4 ranks with 4 slots each.
    let shape = Shape::new(16, 32, 8).unwrap();
    let nodes = [i32::MAX, -5, -5, -5, i32::MIN, i32::MIN, i32::MIN, i32::MIN];
    let loads: Vec<f64> = (0..16).map(|expert| f64::from(10 + (expert * 7) % 5)).collect();
    let config = SolveConfig {
        num_groups: 4,
        rank_to_node: Some(&nodes),
        off_node_price: f64::INFINITY,
        ..SolveConfig::default()
    };
    let hard = figures(&placed(&config, shape, &loads, 1), &loads, 4, &nodes);
    assert!(hard.1 < 1e-12, "{hard:?}");
    // Other names in the same order mean the same nodes.
    let renamed = SolveConfig { rank_to_node: Some(&[9, 5, 5, 5, 2, 2, 2, 2]), ..config };
    assert_eq!(placed(&renamed, shape, &loads, 1), placed(&config, shape, &loads, 1));
    let soft = SolveConfig { off_node_price: 0.5, ..config };
    let soft = figures(&placed(&soft, shape, &loads, 1), &loads, 4, &nodes);
    // Nodes of 1, 3 and 4 of 8 ranks: no whole groups fit evenly on them without off-node load.
    assert!(soft.0 >= hard.0, "{soft:?} {hard:?}");
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Loads that fall off like `1 / rank^exponent`, in random order.
fn zipf(num_experts: usize, exponent: f64, mut below: impl FnMut(u64) -> u64) -> Vec<f64> {
    let mut loads: Vec<f64> =
        (1..=num_experts).map(|rank| (1e6 / (rank as f64).powf(exponent)).round()).collect();
    (1..num_experts).rev().for_each(|i| loads.swap(i, below(i as u64 + 1) as usize));
    loads
}

/// Returns what the search minimises: max / mean, plus the price times the off-node share.
fn cost(placement: &Placement, loads: &[f64], num_groups: usize, nodes: &[i32], price: f64) -> f64 {
    let (balancedness, share) = figures(placement, loads, num_groups, nodes);
    1.0 / balancedness + if price.is_finite() { price * share } else { 0.0 }
}

#[test]
fn cost_is_never_above_the_hierarchical_policy_or_search_without_nodes() {
    let mut random = Random(1);
    let mut below = |limit| random.below(limit);
    for case in 0..300 {
        let num_nodes = 1 + below(4) as usize;
        let (groups_per_node, group_size) = (1 + below(6) as usize, 1 + below(8) as usize);
        let (num_groups, num_ranks) = (num_nodes * groups_per_node, num_nodes * (1 + below(4) as usize));
        let num_experts = num_groups * group_size;
        let width = num_experts.div_ceil(num_ranks) + below(3) as usize;
        let Ok(shape) = Shape::new(num_experts, width * num_ranks, num_ranks) else { continue };
        let exponent = 0.3 + below(15) as f64 / 10.0;
        let loads = zipf(num_experts, exponent, &mut below);
        let nodes: Vec<i32> = (0..num_ranks).map(|rank| (rank * num_nodes / num_ranks) as i32).collect();
        let config = SolveConfig { num_groups, num_nodes, ..SolveConfig::default() };
        let hierarchical = SolveConfig { policy: Policy::DeepseekHierarchical, ..config };
        let hierarchical = placed(&hierarchical, shape, &loads, 1);
        let free = placed(&config, shape, &loads, 1);
        for price in [f64::INFINITY, 2.0, 1.0, 0.1, 0.01] {
            let placement = placed(&SolveConfig { off_node_price: price, ..config }, shape, &loads, 1);
            let cost = |placement: &Placement| cost(placement, &loads, num_groups, &nodes, price);
            let found = cost(&placement);
            let limit = match price.is_infinite() {
                true => cost(&hierarchical),
                false => cost(&hierarchical).min(cost(&free)),
            };
            assert!(
                found <= limit * (1.0 + 1e-9),
                "case {case}, price {price}: {found}, {limit} without: {num_experts} experts in {num_groups} groups, \
                 {width} slots on each of {num_ranks} ranks of {num_nodes} nodes, {loads:?}"
            );
            if price.is_infinite() {
                assert!(figures(&placement, &loads, num_groups, &nodes).1 < 1e-12, "case {case}");
            }
        }
    }
}

#[test]
fn many_groups_leave_spare_slots_on_every_node() {
    let mut random = Random(1);
    let loads = zipf(256, 1.0, |limit| random.below(limit));
    let shape = Shape::new(256, 288, 32).unwrap();
    let nodes: Vec<i32> = (0..32).map(|rank| rank / 8).collect();
    for num_groups in [32, 64, 128, 256] {
        let hard =
            SolveConfig { num_groups, num_nodes: 4, off_node_price: f64::INFINITY, ..SolveConfig::default() };
        let (balancedness, share) = figures(&placed(&hard, shape, &loads, 1), &loads, num_groups, &nodes);
        assert!(
            share < 1e-12 && balancedness >= if num_groups == 32 { 0.95 } else { 0.99 },
            "{num_groups}: {balancedness}"
        );
        // DeepSeek's policy reaches .77.
        let hierarchical = SolveConfig { policy: Policy::DeepseekHierarchical, ..hard };
        let deepseek = figures(&placed(&hierarchical, shape, &loads, 1), &loads, num_groups, &nodes).0;
        assert!(deepseek < 0.8, "{deepseek}");
    }
}

#[test]
fn solve_rejects_groups_that_do_not_fit_on_their_home_nodes() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let loads = [1.0; 8];
    let refused = |config: SolveConfig| {
        let loads = Loads::new(&loads, &[0], 1, 8).unwrap();
        solve(&config, shape, &loads, 1).unwrap_err().to_string()
    };
    let hard =
        SolveConfig { num_groups: 2, num_nodes: 4, off_node_price: f64::INFINITY, ..SolveConfig::default() };
    assert_eq!(
        refused(hard),
        "the slots of 4 nodes cannot hold 2 whole groups of 4 experts, at least one on each node"
    );
    assert_eq!(
        refused(SolveConfig { num_groups: 3, ..hard }),
        "8 experts cannot be split evenly over 3 groups"
    );
    assert_eq!(
        refused(SolveConfig { rank_to_node: Some(&[0, 1]), ..hard }),
        "rank_to_node has 2 values, there are 4 ranks"
    );
    assert_eq!(
        refused(SolveConfig { off_node_price: -1.0, ..hard }),
        "off_node_price is -1; it must not be negative"
    );
    // A finite price allows off-node load.
    let soft = SolveConfig { off_node_price: 1.0, ..hard };
    assert_eq!(placed(&soft, shape, &loads, 1).duplicates(), []);
}

#[test]
fn recorded_prefill_reaches_the_documented_balance() {
    let Some(extra) = env::var_os("EPLB_EXTRA_DATA") else { return };
    let (loads, num_experts) = recorded(&Path::new(&extra).join("dumps/dsv3-prefill"));
    let shape = Shape::new(num_experts, 288, 32).unwrap();
    let nodes: Vec<i32> = (0..32).map(|rank| rank / 8).collect();
    let at = |price| {
        let config =
            SolveConfig { num_groups: 8, num_nodes: 4, off_node_price: price, ..SolveConfig::default() };
        figures(&placed(&config, shape, &loads, 0), &loads, 8, &nodes)
    };
    // No placement with every replica on its home node exceeds .8740.
    let hard = at(f64::INFINITY);
    assert!(hard.0 >= 0.8738 && hard.0 <= 0.8740 && hard.1 < 1e-12, "{hard:?}");
    let soft = at(0.5);
    assert!(soft.0 >= 0.9996 && soft.1 <= 0.0475, "{soft:?}");
}
