//! The bound and the best split against placements: no placement is below the one, and none splits better than the other.

use std::path::Path;

use eplb::placement::Shape;
use eplb::report::{Evaluation, evaluate};
use eplb::solve::{Loads, Policy, SolveConfig, solve};
use eplb::stats::{Dump, LoadOptions};
use proptest::prelude::*;

/// What the greedy's placement of one layer comes to, held against the loads it was made from.
fn greedy(loads: &[f64], num_slots: usize, num_ranks: usize) -> Evaluation {
    let shape = Shape::new(loads.len(), num_slots, num_ranks).unwrap();
    let checked = Loads::new(loads, &[0], 1, loads.len()).unwrap();
    let greedy = SolveConfig { policy: Policy::Trtllm, ..SolveConfig::default() };
    let placement = solve(&greedy, shape, &checked, 1).unwrap();
    evaluate(&placement, 0, loads, 1, loads.len()).unwrap()
}

/// mean <= bound <= max, and mean <= best split <= max, but for rounding.
fn in_order(Evaluation { balance, certificate, best_split_max, .. }: &Evaluation) -> bool {
    let not_above = |a: f64, b: f64| a <= b * (1.0 + 1e-12);
    [certificate.lower_bound, *best_split_max]
        .into_iter()
        .all(|figure| not_above(balance.mean, figure) && not_above(figure, balance.max))
}

fn load() -> impl Strategy<Value = f64> {
    prop_oneof![
        3 => (0u32..4).prop_map(f64::from),
        3 => (0u32..1_000_000).prop_map(f64::from),
        1 => Just(0.0),
        2 => (1u32..1000).prop_map(|rank| (1e6 / f64::from(rank)).round()),
        1 => 0.0..1e30f64,
    ]
}

fn case() -> impl Strategy<Value = (Vec<f64>, usize, usize)> {
    (1usize..=72, 1usize..=40).prop_flat_map(|(num_experts, num_ranks)| {
        let least = num_experts.div_ceil(num_ranks);
        (proptest::collection::vec(load(), num_experts), least..least + 4)
            .prop_map(move |(loads, width)| (loads, width * num_ranks, num_ranks))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_greedy_placement_is_below_the_bound_or_splits_better((loads, num_slots, num_ranks) in case()) {
        let evaluation = greedy(&loads, num_slots, num_ranks);
        prop_assert!(in_order(&evaluation), "{evaluation:?}");
    }
}

#[test]
fn no_greedy_placement_of_a_recorded_layer_is_below_the_bound() {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps");
    let mut gaps = Vec::new();
    for name in ["dsv2lite-law", "dsv2lite-translation", "dsr1-extreme", "dsr1-all-zero"] {
        let stats =
            Dump::open(&dumps.join(name), &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
        let (num_experts, loads) = (stats.summary().num_experts, stats.samples(1).unwrap());
        for (spares, num_ranks) in [(0, 8), (8, 8), (16, 16), (32, 32), (0, 64)] {
            for layer in loads.chunks_exact(num_experts) {
                let evaluation = greedy(layer, num_experts + spares, num_ranks);
                assert!(in_order(&evaluation), "{name} on {num_ranks} ranks: {evaluation:?}");
                gaps.extend(evaluation.certificate.gap);
            }
        }
    }
    // 26 layers of two dumps and 58 of the third on five shapes; the fourth has no load.
    assert_eq!(gaps.len(), 5 * (26 + 26 + 58));
}
