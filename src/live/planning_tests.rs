//! What plans gain and cost: limits, equal loads, sampling noise, more moves.

use super::cluster_tests::{Random, random_shape, random_slots};
use super::rebalancer_tests::{commit_all, in_order, rebalancer, skewed_counts, unlimited};
use super::*;
use crate::placement::replica_counts;
use crate::solve::{Loads, SolveConfig, names_of_vectors, solve};

/// At most 4 ranks of 3 slots.
fn small_shape(random: &mut Random) -> Shape {
    let (num_ranks, width) = (2 + random.below(3), 1 + random.below(3));
    Shape::new(1 + random.below(num_ranks * width), num_ranks * width, num_ranks).unwrap()
}

/// Random cases of [`no_plan_exceeds_a_limit`]: those of EPLB_LIVE_CASES, 100,000 for the full test.
fn num_cases() -> usize {
    std::env::var("EPLB_LIVE_CASES")
        .map_or(10_000, |cases| cases.parse().expect("EPLB_LIVE_CASES is a number"))
}

/// Limits of which case % 7 chooses: each alone, all together, or some of them.
fn random_limits(case: usize, random: &mut Random) -> Limits {
    let mut limit = |index: usize, of: usize| {
        let is_set = match case % 7 {
            5 => true,
            6 => random.below(2) > 0,
            alone => alone == index,
        };
        is_set.then(|| 1 + random.below(of) as u32)
    };
    Limits {
        max_layer_moves: limit(0, 4),
        max_moves: limit(1, 8),
        max_rank_moves: limit(2, 3),
        max_pair_moves: limit(3, 2),
        max_layers: limit(4, 3),
        buffering: [Buffering::Staged, Buffering::InPlace, Buffering::Drain][random.below(3)],
        ..unlimited()
    }
}

#[test]
fn no_plan_exceeds_a_limit() {
    let (mut random, wanted) = (Random(3), num_cases());
    let (mut moved, mut cases) = ([0; 7], 0);
    while cases < wanted {
        let shape = small_shape(&mut random);
        let all = vec![true; shape.num_ranks()];
        let layers: Option<Vec<Vec<u32>>> =
            (0..1 + random.below(3)).map(|_| random_slots(shape, &all, &mut random)).collect();
        let Some(layers) = layers else { continue };
        let counts = layers.iter().flat_map(|slots| replica_counts(shape, slots));
        let max_replicas = counts.max().map(|most| most + random.below(2) as u32);
        let ids: Vec<u32> = (0..layers.len() as u32).collect();
        let placement = Placement::with_empty_slots(shape, None, &ids, &layers.concat()).unwrap();
        let config = RebalancerConfig {
            gates: Gates::OFF,
            num_threads: 1,
            max_replicas,
            ..RebalancerConfig::new(shape.num_experts(), 2)
        };
        let mut rebalancer = Rebalancer::new(config, placement).unwrap();
        let num_counts = layers.len() * shape.num_experts();
        for _ in 0..4 {
            let counts: Vec<i64> = (0..num_counts).map(|_| random.below(100) as i64).collect();
            rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
            let limits = random_limits(cases, &mut random);
            let plan = rebalancer.plan(&limits).unwrap();
            check_limits(shape, &plan, &limits);
            for layer in plan.layers() {
                let counts = replica_counts(shape, layer.slot_experts());
                assert!(counts.iter().all(|&count| count > 0 && Some(count) <= max_replicas), "{counts:?}");
            }
            moved[cases % 7] += usize::from(plan.keep_reason().is_none());
            cases += 1;
            commit_all(&mut rebalancer, &plan);
        }
    }
    assert!(moved.iter().all(|&moved| moved > wanted / 40), "{moved:?} of {wanted} plans move something");
}

fn check_limits(shape: Shape, plan: &Plan, limits: &Limits) {
    let most = |limit: Option<u32>| limit.map_or(usize::MAX, |limit| limit as usize);
    assert!(plan.num_moves() <= most(limits.max_moves));
    assert!(plan.layers().len() <= most(limits.max_layers));
    assert!(plan.layers().iter().all(|layer| layer.num_moves() <= most(limits.max_layer_moves)));
    let mut received = vec![0; shape.num_ranks()];
    let mut pairs = vec![0; shape.num_ranks() * shape.num_ranks()];
    for transfer in plan.layers().iter().flat_map(LayerPlan::transfers) {
        let to = transfer.dst_rank(shape);
        received[to] += usize::from((transfer.dst_slot as usize) < shape.num_slots());
        if let Some(from) = transfer.src_rank(shape).filter(|&from| from != to) {
            pairs[from * shape.num_ranks() + to] += 1;
        }
    }
    assert!(received.into_iter().all(|moves| moves <= most(limits.max_rank_moves)));
    assert!(pairs.into_iter().all(|moves| moves <= most(limits.max_pair_moves)));
}

/// Plans from counts of `num_samples`, commits, and plans again from the same counts. Returns the moves of the first plan.
fn moves_before_the_same_load(
    shape: Shape,
    num_layers: usize,
    num_samples: usize,
    limits: &Limits,
    random: &mut Random,
) -> usize {
    let mut rebalancer = rebalancer(shape, &vec![in_order(shape); num_layers], Gates::OFF);
    let rows = num_layers * num_samples;
    let counts: Vec<i64> = (0..rows).flat_map(|_| skewed_counts(shape.num_experts(), random)).collect();
    rebalancer.observe(&counts, num_samples, 100, Some(0)).unwrap();
    let plan = rebalancer.plan(limits).unwrap();
    commit_all(&mut rebalancer, &plan);
    for _ in 0..3 {
        rebalancer.observe(&counts, num_samples, 100, Some(0)).unwrap();
        let again = rebalancer.plan(limits).unwrap();
        assert_eq!(again.num_moves(), 0, "{shape:?}, {num_samples} samples, {limits:?}");
    }
    plan.num_moves()
}

#[test]
fn the_same_load_moves_nothing_after_a_plan_that_met_no_limit() {
    let mut random = Random(5);
    // Limits that are above what the plans take.
    let wide = Limits { max_layer_moves: Some(1000), max_moves: Some(1 << 20), ..unlimited() };
    let mut moved = [0, 0];
    for case in 0..200 {
        let shape = random_shape(&mut random);
        let limits = [unlimited(), wide][case % 2];
        moved[case % 2] += moves_before_the_same_load(shape, 2, 1 + case % 3, &limits, &mut random);
    }
    assert!(moved.iter().all(|&moved| moved > 100), "{moved:?}");
    let shape = Shape::new(64, 72, 8).unwrap();
    for (num_samples, limits) in [(1, unlimited()), (8, unlimited()), (1, wide), (8, wide)] {
        let moved = moves_before_the_same_load(shape, 2, num_samples, &limits, &mut random);
        assert!(moved > 20, "{moved}");
    }
}

/// A placement by search for the samples of one layer.
fn solved(shape: Shape, loads: &[f64]) -> Vec<u32> {
    let num_samples = loads.len() / shape.num_experts();
    let loads = Loads::new(loads, &[0], num_samples, shape.num_experts()).unwrap();
    solve(&SolveConfig::default(), shape, &loads, 1).unwrap().layer_experts(0).unwrap().to_vec()
}

/// Windows of choices by one distribution, from the placement by search for it: how many plans are kept by each reason.
fn kept_under_noise(gates: Gates, num_samples: usize, choices: usize) -> [u64; KeepReason::ALL.len()] {
    let (shape, mut random) = (Shape::new(64, 72, 8).unwrap(), Random(11));
    let truth: Vec<i64> = skewed_counts(64, &mut random);
    let slots = solved(shape, &truth.iter().map(|&count| count as f64).collect::<Vec<_>>());
    let up_to: Vec<usize> = truth
        .iter()
        .scan(0, |sum, &count| {
            *sum += count as usize;
            Some(*sum)
        })
        .collect();
    let mut rebalancer = rebalancer(shape, &[slots], gates);
    for _ in 0..1000 {
        let mut counts = vec![0; 64 * num_samples];
        for sample in counts.chunks_exact_mut(64) {
            for _ in 0..choices {
                let at = random.below(up_to[63]);
                sample[up_to.partition_point(|&sum| sum <= at)] += 1;
            }
        }
        let num_tokens = (num_samples * choices / 2) as u64;
        rebalancer.observe(&counts, num_samples, num_tokens, Some(0)).unwrap();
        let plan = rebalancer.plan(&unlimited()).unwrap();
        assert_eq!(plan.num_moves(), 0, "{:?}", plan.message());
    }
    rebalancer.info().num_kept
}

#[test]
fn windows_of_sampling_noise_move_nothing() {
    // The gates that look at balance alone are off, so that only the noise holds plans back.
    let of_noise = Gates { noise: 3.0, ..Gates::OFF };
    for (num_samples, choices) in [(1, 4000), (4, 1000)] {
        assert!(kept_under_noise(of_noise, num_samples, choices)[KeepReason::Noise as usize] > 900);
    }
    let defaults = Gates::of_model(64, 2);
    // Few counts are uneven, and many are even.
    let few = kept_under_noise(defaults, 2, 1000);
    assert!(few[KeepReason::Noise as usize] > 900 && few[KeepReason::FewTokens as usize] > 0, "{few:?}");
    let many = kept_under_noise(defaults, 1, 40_000);
    assert_eq!(many[KeepReason::Balanced as usize], 1000, "{many:?}");
}

#[test]
fn the_gain_grows_with_moves_up_to_that_of_a_fresh_solve() {
    let (shape, mut random) = (Shape::new(64, 72, 8).unwrap(), Random(17));
    for case in 0..16 {
        let num_samples = 1 + case % 2 * 3;
        let counts: Vec<i64> = (0..num_samples).flat_map(|_| skewed_counts(64, &mut random)).collect();
        let loads: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let fabric = Fabric { shape, nodes: None, active: None };
        let slots = solved(shape, &loads);
        let balances =
            loads.chunks_exact(64).map(|loads| layer_loads::Measure::new(&fabric, 72, &slots, loads).balance);
        let fresh = balances.sum::<f64>() / num_samples as f64;
        let mut last = 0.0;
        for limit in [Some(1), Some(2), Some(4), Some(8), Some(16), Some(32), None] {
            let mut rebalancer = rebalancer(shape, &[in_order(shape)], Gates::OFF);
            rebalancer.observe(&counts, num_samples, 100, Some(0)).unwrap();
            let plan = rebalancer.plan(&Limits { max_layer_moves: limit, ..unlimited() }).unwrap();
            let after = plan.balance().after;
            assert!(after >= last && after <= plan.balance().bound + 1e-9, "{limit:?}: {after} after {last}");
            last = after;
        }
        assert!(last >= fresh - 1e-3, "{last}, a fresh solve has {fresh}");
    }
}

/// The test that the child processes run again.
const OF_PROCESSES: &str =
    "live::planning_tests::plans_are_the_same_in_every_process_with_any_threads_and_instructions";

/// All bytes of plans of three layers, with and without limits, samples and shared limits.
fn all_plans(num_threads: usize) -> String {
    let (shape, mut random) = (Shape::new(40, 60, 20).unwrap(), Random(53));
    let slots: Vec<u32> =
        (0..3).flat_map(|_| random_slots(shape, &[true; 20], &mut random).unwrap()).collect();
    let layers: Vec<u32> = (0..3).collect();
    let placement = Placement::with_empty_slots(shape, None, &layers, &slots).unwrap();
    let mut all = String::new();
    for num_samples in [1, 3] {
        for limits in [
            Limits { max_layer_moves: Some(6), ..unlimited() },
            Limits { max_moves: Some(10), max_rank_moves: Some(2), max_pair_moves: Some(2), ..unlimited() },
            Limits { node_price: 10.0, remote_price: 20.0, buffering: Buffering::Drain, ..unlimited() },
            unlimited(),
        ] {
            let config = RebalancerConfig {
                gates: Gates::OFF,
                num_threads,
                rank_to_node: Some((0..20).map(|rank| rank / 8).collect()),
                ..RebalancerConfig::new(40, 2)
            };
            let mut rebalancer = Rebalancer::new(config, placement.clone()).unwrap();
            for _ in 0..2 {
                let counts: Vec<i64> =
                    (0..3 * num_samples).flat_map(|_| skewed_counts(40, &mut random)).collect();
                rebalancer.observe(&counts, num_samples, 100, Some(0)).unwrap();
            }
            let plan = rebalancer.plan(&limits).unwrap();
            assert!(plan.num_moves() > 0);
            all += &format!("{:?} {:?} {:?}|", plan.agreement_words(), plan.balance(), plan.layers());
        }
    }
    all
}

#[test]
fn plans_are_the_same_in_every_process_with_any_threads_and_instructions() {
    // A child prints a hash of its plans, which the parent compares with its own.
    let hash = |plans: &str| {
        let mut hash = agreement::Hash::new();
        hash.add_values(&plans.bytes().map(u32::from).collect::<Vec<_>>());
        format!("plans {:016x}", hash.word())
    };
    if let Ok(threads) = std::env::var("EPLB_TEST_THREADS") {
        println!("{}", hash(&all_plans(threads.parse().unwrap())));
        return;
    }
    let expected = hash(&all_plans(1));
    for (vectors, threads) in
        names_of_vectors().into_iter().flat_map(|vectors| [(vectors.clone(), "1"), (vectors, "64")])
    {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([OF_PROCESSES, "--exact", "--nocapture"])
            .env("EPLB_TEST_VECTORS", &vectors)
            .env("EPLB_TEST_THREADS", threads)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && printed.contains(&expected), "{vectors}, {threads}: {printed}");
    }
}

#[test]
fn a_search_that_moved_nothing_is_repeated_when_anything_changes() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let mut rebalancer = rebalancer(shape, &[in_order(shape)], Gates::OFF);
    let hot = [90, 90, 1, 1, 1, 1, 1, 1];
    let mut moves = |counts: &[i64], limits: Limits| {
        rebalancer.observe(counts, 1, 100, Some(0)).unwrap();
        let plan = rebalancer.plan(&limits).unwrap();
        rebalancer.abort(None).unwrap();
        plan.num_moves()
    };
    let dear = Limits { node_price: 1000.0, ..unlimited() };
    // The same load, and again: then other limits, another load, and the first load.
    assert_eq!([moves(&hot, dear), moves(&hot, dear)], [0, 0]);
    assert_eq!([moves(&hot, unlimited()), moves(&hot, dear)], [2, 0]);
    let even = [10; 8];
    for _ in 0..40 {
        assert_eq!(moves(&even, dear), 0);
    }
    // Old windows weigh 2^-10 and less.
    assert_eq!(moves(&even, unlimited()), 0);
    assert_eq!((0..8).map(|_| moves(&hot, unlimited())).collect::<Vec<_>>(), [2; 8]);
}
