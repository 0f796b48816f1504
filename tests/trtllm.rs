//! Policy `trtllm` against a second, literal implementation of the specification.

use eplb::placement::{Placement, Shape};
use eplb::solve::{Loads, Objective, Policy, SolveConfig, solve};
use proptest::prelude::*;

const TRTLLM: SolveConfig = SolveConfig {
    policy: Policy::Trtllm,
    num_groups: 1,
    num_nodes: 1,
    rank_to_node: None,
    off_node_price: 0.0,
    sample_weights: None,
    quantile: None,
    rank_num_slots: None,
    pinned_experts: None,
    objective: Objective::EvenSplit,
    drift: 0.0,
    effort: 0,
};

/// Per layer: load is float32, all arithmetic in float64.
fn as_specified(loads: &[f64], num_slots: usize, num_ranks: usize) -> Vec<u32> {
    let load: Vec<f64> = loads.iter().map(|&load| f64::from(load as f32)).collect();
    let num_experts = load.len();

    // 1. Replicas. All loads zero: S/E each, the first S%E experts one more. Otherwise one each, then S-E times one more
    //    to the expert whose load/count is largest, ties to the higher expert id.
    let mut count = vec![1usize; num_experts];
    if load.iter().all(|&load| load == 0.0) {
        for (expert, count) in count.iter_mut().enumerate() {
            *count = num_slots / num_experts + usize::from(expert < num_slots % num_experts);
        }
    } else {
        for _ in num_experts..num_slots {
            let mut hottest = 0;
            for expert in 0..num_experts {
                if load[expert] / count[expert] as f64 >= load[hottest] / count[hottest] as f64 {
                    hottest = expert;
                }
            }
            count[hottest] += 1;
        }
    }

    // 2. Placement. All replicas sorted by load/count descending, ties by expert id ascending; each goes to the rank with
    //    the smallest (total, rank id) among ranks with a free slot, into that rank's next free slot.
    let mut replicas: Vec<(usize, f64)> = (0..num_experts)
        .flat_map(|expert| vec![(expert, load[expert] / count[expert] as f64); count[expert]])
        .collect();
    replicas.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    let width = num_slots / num_ranks;
    let (mut ranks, mut totals) = (vec![Vec::new(); num_ranks], vec![0.0; num_ranks]);
    for (expert, load) in replicas {
        let mut chosen = None;
        for rank in 0..num_ranks {
            if ranks[rank].len() < width && chosen.is_none_or(|best: usize| totals[rank] < totals[best]) {
                chosen = Some(rank);
            }
        }
        let rank = chosen.unwrap();
        ranks[rank].push(expert as u32);
        totals[rank] += load;
    }
    ranks.concat()
}

/// Loads with many ties, wide ranges, zeros and fractions.
fn load() -> impl Strategy<Value = f64> {
    prop_oneof![
        3 => (0u32..4).prop_map(f64::from),
        3 => (0u32..1_000_000).prop_map(f64::from),
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => 0.0..1e30f64,
        1 => (1u64..1 << 40).prop_map(|n| 1.0 / n as f64),
    ]
}

fn case() -> impl Strategy<Value = (Vec<f64>, usize, usize, usize)> {
    (1usize..=72, 1usize..=40, 1usize..=3).prop_flat_map(|(num_experts, num_ranks, num_layers)| {
        let least = num_experts.div_ceil(num_ranks);
        (least..least + 6, proptest::collection::vec(load(), num_layers * num_experts))
            .prop_map(move |(width, loads)| (loads, num_experts, width * num_ranks, num_ranks))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn policy_matches_the_specification_on_any_shape((loads, num_experts, num_slots, num_ranks) in case()) {
        let layers: Vec<u32> = (0..(loads.len() / num_experts) as u32).collect();
        let checked = Loads::new(&loads, &layers, 1, num_experts).unwrap();
        let expected: Vec<u32> =
            loads.chunks(num_experts).flat_map(|layer| as_specified(layer, num_slots, num_ranks)).collect();
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let expected = Placement::new(shape, &layers, &expected).unwrap();
        for threads in [1, 2, 8] {
            prop_assert_eq!(&solve(&TRTLLM, shape, &checked, threads).unwrap(), &expected);
        }
    }
}

#[test]
fn policy_matches_the_specification_for_published_models_on_1_to_72_ranks() {
    // The numbers of experts of published models. Loads fall off like 1 / rank (zipf), shuffled by a
    // multiplication that is coprime to each number.
    for num_experts in [16usize, 32, 60, 64, 72, 128, 160, 256, 384, 512] {
        for num_ranks in 1..=72 {
            let loads: Vec<f64> =
                (0..num_experts).map(|e| (1e6 / (1.0 + (e * 7 % num_experts) as f64)).floor()).collect();
            let num_slots = (num_experts + num_ranks).next_multiple_of(num_ranks);
            let layers = [3];
            let checked = Loads::new(&loads, &layers, 1, num_experts).unwrap();
            let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
            let placement = solve(&TRTLLM, shape, &checked, 1).unwrap();
            let expected = as_specified(&loads, num_slots, num_ranks);
            assert_eq!(
                placement.layer_experts(3).unwrap(),
                expected,
                "{num_experts} experts, {num_ranks} ranks"
            );
        }
    }
}

#[test]
fn policy_adds_up_samples() {
    // Expert 0 or 2 is hottest in each sample alone, expert 1 in the sum: it gets the spare slot.
    let loads = [5.0, 4.0, 0.0, 0.0, 4.0, 5.0];
    let layers = [0];
    let checked = Loads::new(&loads, &layers, 2, 3).unwrap();
    let placement = solve(&TRTLLM, Shape::new(3, 4, 2).unwrap(), &checked, 1).unwrap();
    assert_eq!(placement.layer_experts(0).unwrap().iter().filter(|&&expert| expert == 1).count(), 2);
}
