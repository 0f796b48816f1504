//! The lower bound and the best split of placements, against each other and against a second implementation.

use std::path::Path;

use eplb::placement::{Placement, Shape};
use eplb::report::{Balance, BestSplit, BoundGap, score};
use eplb::solve::{Loads, Policy, SolveConfig, best_split, solve};
use eplb::stats::{Dump, LoadOptions};
use proptest::prelude::*;

type Figures = (Balance, BoundGap, BestSplit);

/// Scores the greedy's placement of one layer with the loads that it was made from.
fn greedy(loads: &[f64], num_slots: usize, num_ranks: usize) -> Figures {
    let placement = placed(loads, Shape::new(loads.len(), num_slots, num_ranks).unwrap());
    let score = score(&placement, 0, loads, 1, loads.len()).unwrap();
    (score.balance(), score.bound_gap(), score.best_split())
}

fn placed(loads: &[f64], shape: Shape) -> Placement {
    let loads = Loads::new(loads, &[0], 1, loads.len()).unwrap();
    let greedy = SolveConfig { policy: Policy::Trtllm, ..SolveConfig::default() };
    solve(&greedy, shape, &loads, 1).unwrap()
}

/// Returns whether mean <= bound <= max and mean <= best split <= max, apart from rounding.
fn in_order((balance, bound, best): &Figures) -> bool {
    let not_above = |a: f64, b: f64| a <= b * (1.0 + 1e-12);
    [bound.lower_bound, best.max]
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

/// Returns whether all load can flow from the experts to their ranks with at most `capacity` per rank. Uses
/// augmenting paths from one expert after the other, shortest first.
fn can_flow(loads: &[f64], slots: &[u32], width: usize, capacity: f64) -> bool {
    let num_ranks = slots.len() / width;
    let mut ranks_of = vec![Vec::new(); loads.len()];
    slots.iter().enumerate().for_each(|(slot, &expert)| ranks_of[expert as usize].push(slot / width));
    let (mut flow, mut room) = (vec![vec![0.0; num_ranks]; loads.len()], vec![capacity; num_ranks]);
    for source in 0..loads.len() {
        let mut left = loads[source];
        while left > 0.0 {
            // For each reached rank: the expert that may send more to it, and the rank from which this expert
            // takes it.
            let mut reached: Vec<Option<(usize, Option<usize>)>> = vec![None; num_ranks];
            ranks_of[source].iter().for_each(|&rank| reached[rank] = Some((source, None)));
            let mut queue = ranks_of[source].clone();
            let mut next = 0;
            let end = loop {
                let Some(&rank) = queue.get(next) else { return false };
                if room[rank] > 0.0 {
                    break rank;
                }
                next += 1;
                let held = slots[rank * width..][..width].iter().map(|&expert| expert as usize);
                for expert in held.filter(|&expert| flow[expert][rank] > 0.0) {
                    for &other in &ranks_of[expert] {
                        if reached[other].is_none() {
                            reached[other] = Some((expert, Some(rank)));
                            queue.push(other);
                        }
                    }
                }
            };
            let (mut path, mut to) = (Vec::new(), Some(end));
            while let Some((rank, (expert, from))) = to.and_then(|rank| Some((rank, reached[rank]?))) {
                path.push((expert, from, rank));
                to = from;
            }
            let taken = path.iter().filter_map(|&(expert, from, _)| Some(flow[expert][from?]));
            let amount = taken.fold(left.min(room[end]), f64::min);
            for (expert, from, to) in path {
                flow[expert][to] += amount;
                from.into_iter().for_each(|from| flow[expert][from] -= amount);
            }
            left -= amount;
            room[end] -= amount;
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn lower_bound_and_best_split_are_between_mean_and_max_of_the_greedy((loads, num_slots, num_ranks) in case()) {
        let figures = greedy(&loads, num_slots, num_ranks);
        prop_assert!(in_order(&figures), "{figures:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() })]

    #[test]
    fn best_split_is_the_smallest_capacity_that_lets_all_load_flow((loads, num_slots, num_ranks) in case()) {
        let shape = Shape::new(loads.len(), num_slots, num_ranks).unwrap();
        let placement = placed(&loads, shape);
        let slots = placement.layer_experts(0).unwrap();
        let best = best_split(&loads, slots, shape);
        let can_flow = |capacity| can_flow(&loads, slots, shape.slots_per_rank(), capacity);
        prop_assert!(can_flow(best * (1.0 + 1e-9)), "too small: {best}");
        prop_assert!(best == 0.0 || !can_flow(best * (1.0 - 1e-9)), "too large: {best}");
    }
}

#[test]
fn lower_bound_is_never_above_the_greedy_on_recorded_layers() {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/dumps");
    let mut gaps = Vec::new();
    for name in ["dsv2lite-law", "dsv2lite-translation", "dsr1-extreme", "dsr1-all-zero"] {
        let stats =
            Dump::open(&dumps.join(name), &LoadOptions::default()).unwrap().read(&mut |_, _| Ok(())).unwrap();
        let (num_experts, loads) = (stats.summary().num_experts, stats.samples(1).unwrap());
        for (spares, num_ranks) in [(0, 8), (8, 8), (16, 16), (32, 32), (0, 64)] {
            for layer in loads.chunks_exact(num_experts) {
                let figures = greedy(layer, num_experts + spares, num_ranks);
                assert!(in_order(&figures), "{name} on {num_ranks} ranks: {figures:?}");
                gaps.extend(figures.1.gap);
            }
        }
    }
    // 26 layers of two dumps and 58 of the third on five shapes; the fourth has no load.
    assert_eq!(gaps.len(), 5 * (26 + 26 + 58));
}
