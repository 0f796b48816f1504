//! The rebalancer on random and on drifting loads.

use super::cluster_tests::{Random, random_shape, random_slots};
use super::*;
use crate::placement::NO_EXPERT;
use crate::solve::{Loads, SolveConfig, solve};

/// The expert in each slot of the first `layers` layers, from which a rebalancer with few gates starts.
fn rebalancer(shape: Shape, layers: &[Vec<u32>], gates: Gates) -> Rebalancer {
    let ids: Vec<u32> = (0..layers.len() as u32).map(|layer| layer + 3).collect();
    let placement = Placement::with_empty_slots(shape, None, &ids, &layers.concat()).unwrap();
    let config = RebalancerConfig { gates, num_threads: 1, ..RebalancerConfig::new(shape.num_experts(), 2) };
    Rebalancer::new(config, placement).unwrap()
}

fn unlimited() -> Limits {
    Limits { horizon: 1.0, ..Limits::default() }
}

fn commit_all(rebalancer: &mut Rebalancer, plan: &Plan) {
    for layer in plan.layers() {
        for _ in 0..layer.num_commits() {
            rebalancer.commit_layer(plan, layer.layer()).unwrap();
        }
    }
}

/// Loads with a long tail: expert i of a permutation has about 1000 / (i + 1).
fn skewed_counts(num_experts: usize, random: &mut Random) -> Vec<i64> {
    (0..num_experts).map(|_| 200_000 / (1 + random.below(num_experts) as i64)).collect()
}

fn in_order(shape: Shape) -> Vec<u32> {
    (0..shape.num_slots()).map(|slot| (slot % shape.num_experts()) as u32).collect()
}

/// At most 4 ranks of 3 slots.
fn small_shape(random: &mut Random) -> Shape {
    let (num_ranks, width) = (2 + random.below(3), 1 + random.below(3));
    Shape::new(1 + random.below(num_ranks * width), num_ranks * width, num_ranks).unwrap()
}

#[test]
fn no_plan_exceeds_a_limit() {
    let mut random = Random(3);
    let (mut moved, mut cases) = (0, 0);
    while cases < 100_000 {
        let shape = small_shape(&mut random);
        let all = vec![true; shape.num_ranks()];
        let layers: Option<Vec<Vec<u32>>> =
            (0..1 + random.below(3)).map(|_| random_slots(shape, &all, &mut random)).collect();
        let Some(layers) = layers else { continue };
        let mut rebalancer = rebalancer(shape, &layers, Gates::OFF);
        let num_counts = layers.len() * shape.num_experts();
        for _ in 0..4 {
            cases += 1;
            let counts: Vec<i64> = (0..num_counts).map(|_| random.below(100) as i64).collect();
            rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
            let mut limit = |of: usize| (random.below(3) > 0).then(|| 1 + random.below(of) as u32);
            let limits = Limits {
                max_layer_moves: limit(4),
                max_moves: limit(8),
                max_rank_moves: limit(3),
                max_pair_moves: limit(2),
                max_layers: limit(3),
                ..unlimited()
            };
            let plan = rebalancer.plan(&limits).unwrap();
            check_limits(shape, &plan, &limits);
            moved += usize::from(plan.keep_reason().is_none());
            commit_all(&mut rebalancer, &plan);
        }
    }
    assert!(moved > 30_000, "{moved} plans move something");
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
        received[to] += 1;
        if let Some(from) = transfer.src_rank(shape).filter(|&from| from != to) {
            pairs[from * shape.num_ranks() + to] += 1;
        }
    }
    assert!(received.into_iter().all(|moves| moves <= most(limits.max_rank_moves)));
    assert!(pairs.into_iter().all(|moves| moves <= most(limits.max_pair_moves)));
}

#[test]
fn the_same_load_moves_nothing_after_a_plan_without_limits() {
    let mut random = Random(5);
    let mut moved = 0;
    for _ in 0..300 {
        let shape = random_shape(&mut random);
        let layers = vec![in_order(shape); 2];
        let mut rebalancer = rebalancer(shape, &layers, Gates::OFF);
        let counts: Vec<i64> = (0..2).flat_map(|_| skewed_counts(shape.num_experts(), &mut random)).collect();
        rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
        let plan = rebalancer.plan(&unlimited()).unwrap();
        moved += plan.num_moves();
        commit_all(&mut rebalancer, &plan);
        rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
        assert_eq!(rebalancer.plan(&unlimited()).unwrap().num_moves(), 0);
    }
    assert!(moved > 300, "{moved}");
}

/// A placement by search for `loads` of one layer.
fn solved(shape: Shape, loads: &[f64]) -> Vec<u32> {
    let loads = Loads::new(loads, &[0], 1, shape.num_experts()).unwrap();
    solve(&SolveConfig::default(), shape, &loads, 1).unwrap().layer_experts(0).unwrap().to_vec()
}

#[test]
fn windows_of_sampling_noise_move_nothing() {
    let (shape, mut random) = (Shape::new(64, 72, 8).unwrap(), Random(11));
    let truth: Vec<i64> = skewed_counts(64, &mut random);
    let slots = solved(shape, &truth.iter().map(|&count| count as f64).collect::<Vec<_>>());
    let sum: i64 = truth.iter().sum();
    // The gates that look at balance alone are off, so that only the noise holds plans back.
    let gates = Gates { noise: 3.0, ..Gates::OFF };
    let mut rebalancer = rebalancer(shape, &[slots], gates);
    let mut uneven = 0;
    for _ in 0..1000 {
        // 4,000 choices of experts by their loads.
        let mut counts = vec![0; 64];
        for _ in 0..4000 {
            let mut at = random.below(sum as usize) as i64;
            let expert = truth.iter().position(|&count| {
                at -= count;
                at < 0
            });
            counts[expert.unwrap()] += 1;
        }
        rebalancer.observe(&counts, 1, 2000, Some(0)).unwrap();
        let plan = rebalancer.plan(&unlimited()).unwrap();
        assert_eq!(plan.num_moves(), 0, "{:?}", plan.message());
        uneven += usize::from(plan.keep_reason() == Some(KeepReason::Noise));
    }
    assert!(uneven > 900, "noise was the reason {uneven} times");
}

#[test]
fn the_gain_grows_with_moves_up_to_that_of_a_fresh_solve() {
    let (shape, mut random) = (Shape::new(64, 72, 8).unwrap(), Random(17));
    for _ in 0..20 {
        let counts = skewed_counts(64, &mut random);
        let loads: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let fabric = Fabric { shape, nodes: None, active: None };
        let fresh = layer_loads::balance(&fabric, &solved(shape, &loads), &loads);
        let mut last = 0.0;
        for limit in [Some(1), Some(2), Some(4), Some(8), Some(16), Some(32), None] {
            let mut rebalancer = rebalancer(shape, &[in_order(shape)], Gates::OFF);
            rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
            let plan = rebalancer.plan(&Limits { max_layer_moves: limit, ..unlimited() }).unwrap();
            let after = plan.balance().after;
            assert!(after >= last && after <= plan.balance().bound + 1e-9, "{limit:?}: {after} after {last}");
            last = after;
        }
        assert!(last >= fresh - 1e-3, "{last}, a fresh solve has {fresh}");
    }
}

#[test]
fn a_plan_cut_anywhere_leaves_each_layer_old_or_new_and_the_next_plan_legal() {
    let mut random = Random(23);
    let (mut cut, mut drained) = (0, 0);
    for case in 0..1000 {
        let shape = random_shape(&mut random);
        let mut rebalancer = rebalancer(shape, &vec![in_order(shape); 3], Gates::OFF);
        for _ in 0..4 {
            let counts: Vec<i64> =
                (0..3).flat_map(|_| skewed_counts(shape.num_experts(), &mut random)).collect();
            rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
            let buffering = [Buffering::Staged, Buffering::InPlace, Buffering::Drain][case % 3];
            let plan = rebalancer.plan(&Limits { buffering, ..unlimited() }).unwrap();
            let before = rebalancer.placement().unwrap();
            let commits: Vec<u32> =
                plan.layers().iter().flat_map(|layer| vec![layer.layer(); layer.num_commits()]).collect();
            let done = random.below(commits.len() + 1);
            commits[..done].iter().for_each(|&layer| rebalancer.commit_layer(&plan, layer).unwrap());
            if done < commits.len() {
                assert_eq!(rebalancer.plan(&unlimited()).unwrap().keep_reason(), Some(KeepReason::InFlight));
                rebalancer.abort(&plan).unwrap();
                cut += 1;
            }
            let after = rebalancer.placement().unwrap();
            for layer in plan.layers() {
                let slots = after.layer_experts(layer.layer()).unwrap();
                let is_old = slots == before.layer_experts(layer.layer()).unwrap();
                let tables: Vec<&[u32]> = (0..layer.num_commits()).map(|c| layer.update(c).to).collect();
                assert!(is_old || tables.contains(&slots));
                drained += usize::from(tables.len() == 2 && slots == tables[0]);
                let stale = rebalancer.commit_layer(&plan, layer.layer()).unwrap_err();
                assert!(matches!(stale, crate::Error::Stale(_)));
            }
            assert_eq!(rebalancer.placement().unwrap(), after);
        }
    }
    assert!(cut > 500 && drained > 20, "{cut} {drained}");
}

#[test]
fn ranks_agree_only_if_they_have_seen_the_same() {
    let (shape, mut random) = (Shape::new(16, 24, 4).unwrap(), Random(29));
    let counts: Vec<i64> = (0..4).flat_map(|_| skewed_counts(16, &mut random)).collect();
    let words = |counts: &[i64], limits: &Limits| {
        let mut rebalancer = rebalancer(shape, &vec![in_order(shape); 4], Gates::OFF);
        rebalancer.observe(counts, 1, 100, Some(0)).unwrap();
        rebalancer.plan(limits).unwrap().agreement_words()
    };
    let own = words(&counts, &unlimited());
    assert_eq!(own[0], !own[1]);
    for index in 0..counts.len() {
        let mut flipped = counts.clone();
        flipped[index] ^= 1;
        assert_ne!(words(&flipped, &unlimited()), own, "count {index}");
    }
    assert_ne!(words(&counts, &Limits { max_layers: Some(4), ..unlimited() }), own);
}

#[test]
fn plans_do_not_depend_on_the_number_of_threads() {
    let (shape, mut random) = (Shape::new(32, 40, 8).unwrap(), Random(31));
    let counts: Vec<i64> = (0..12).flat_map(|_| skewed_counts(32, &mut random)).collect();
    let ids: Vec<u32> = (0..12).collect();
    let placement = Placement::new(shape, &ids, &in_order(shape).repeat(12)).unwrap();
    let plan = |num_threads: usize| {
        let gates = Gates::OFF;
        let config = RebalancerConfig { gates, num_threads, ..RebalancerConfig::new(32, 2) };
        let mut rebalancer = Rebalancer::new(config, placement.clone()).unwrap();
        rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
        rebalancer.plan(&Limits { max_moves: Some(40), max_pair_moves: Some(2), ..unlimited() }).unwrap()
    };
    let one = plan(1);
    assert!(one.num_moves() > 20);
    for num_threads in [2, 7, 64] {
        let other = plan(num_threads);
        assert_eq!((one.layers(), one.agreement_words()), (other.layers(), other.agreement_words()));
    }
}

#[test]
fn a_plan_that_ends_early_is_made_of_the_best_layers() {
    let (shape, mut random) = (Shape::new(32, 40, 8).unwrap(), Random(37));
    let counts: Vec<i64> = (0..6).flat_map(|_| skewed_counts(32, &mut random)).collect();
    let mut rebalancer = rebalancer(shape, &vec![in_order(shape); 6], Gates::OFF);
    rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
    let plan = rebalancer.plan(&unlimited()).unwrap();
    let rates: Vec<f64> = plan
        .layers()
        .iter()
        .map(|layer| (1.0 / layer.balance().before - 1.0 / layer.balance().after) / layer.num_moves() as f64)
        .collect();
    assert!(rates.len() == 6 && rates.is_sorted_by(|one, other| one >= other), "{rates:?}");
}

/// The reason for which a rebalancer with these gates keeps an uneven placement.
fn kept(gates: Gates, num_tokens: u64) -> Option<KeepReason> {
    let shape = Shape::new(8, 8, 4).unwrap();
    let mut rebalancer = rebalancer(shape, &[in_order(shape)], gates);
    // Ranks have 200,000, 20,000, 20,000 and 20,000 of 260,000: mean / max is .325.
    let counts = [100_000, 100_000, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000];
    rebalancer.observe(&counts, 1, num_tokens, Some(0)).unwrap();
    rebalancer.plan(&unlimited()).unwrap().keep_reason()
}

#[test]
fn each_gate_holds_a_plan_back() {
    assert_eq!(kept(Gates::OFF, 1), None);
    assert_eq!(kept(Gates::of_model(8, 2), 400), None);
    // The default is 100 * 8 / 2 tokens.
    assert_eq!(kept(Gates::of_model(8, 2), 399), Some(KeepReason::FewTokens));
    assert_eq!(kept(Gates { trigger: 0.32, ..Gates::OFF }, 1), Some(KeepReason::Balanced));
    // The most that can be gained in max / mean is 1 / .325 - 1 = 2.08.
    assert_eq!(kept(Gates { min_gain: 2.2, ..Gates::OFF }, 1), Some(KeepReason::SmallGain));
    assert_eq!(kept(Gates { noise: 1e6, ..Gates::OFF }, 1), Some(KeepReason::Noise));
}

#[test]
fn a_plan_waits_for_counts_and_for_its_cooldown() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let gates = Gates { cooldown: 2, ..Gates::OFF };
    let mut rebalancer = rebalancer(shape, &[in_order(shape)], gates);
    let reason = |rebalancer: &mut Rebalancer| {
        let plan = rebalancer.plan(&unlimited()).unwrap();
        commit_all(rebalancer, &plan);
        plan.keep_reason()
    };
    assert_eq!(reason(&mut rebalancer), Some(KeepReason::NoCounts));
    rebalancer.observe(&[0; 8], 1, 0, Some(0)).unwrap();
    assert_eq!(reason(&mut rebalancer), Some(KeepReason::NoCounts));
    rebalancer.observe(&[90, 90, 1, 1, 1, 1, 1, 1], 1, 100, Some(0)).unwrap();
    assert_eq!(reason(&mut rebalancer), None);
    for counts in [[1, 1, 90, 1, 1, 90, 1, 1]; 2] {
        rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
        let expected = (rebalancer.info().observations == 3).then_some(KeepReason::Cooldown);
        assert_eq!(reason(&mut rebalancer).filter(|&reason| reason == KeepReason::Cooldown), expected);
    }
    let info = rebalancer.info();
    assert_eq!((info.num_kept[KeepReason::NoCounts as usize], info.num_windows), (2, 3));
    assert!(info.num_plans >= 1 && info.num_moves >= 2 && info.balance_measured > 0.0);
}

#[test]
fn warm_up_steps_pass_time_and_do_not_count() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let mut rebalancer = rebalancer(shape, &[in_order(shape)], Gates::OFF);
    rebalancer.observe(&[], 1, 100, None).unwrap();
    let info = rebalancer.info();
    assert_eq!((info.observations, info.num_windows, info.num_tokens), (1, 0, 0));
}

#[test]
fn plans_of_another_rebalancer_are_refused() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let mut both = [0, 1].map(|_| rebalancer(shape, &[in_order(shape)], Gates::OFF));
    let plans = both.each_mut().map(|rebalancer| {
        rebalancer.observe(&[90, 90, 1, 1, 1, 1, 1, 1], 1, 100, Some(0)).unwrap();
        rebalancer.plan(&unlimited()).unwrap()
    });
    let refused = both[0].commit_layer(&plans[1], 3).unwrap_err();
    assert_eq!(refused.to_string(), "the plan is not of this rebalancer");
    assert!(both[0].abort(&plans[1]).is_err());
    both[0].commit_layer(&plans[0], 3).unwrap();
}

#[test]
fn dead_ranks_lose_their_slots_and_lost_experts_are_loaded() {
    let shape = Shape::new(4, 6, 3).unwrap();
    let slots = vec![0, 1, 2, 3, 0, 1];
    let mut rebalancer = rebalancer(shape, &[slots.clone()], Gates::of_model(4, 1));
    // Rank 2 repeats experts of rank 0.
    rebalancer.set_active_ranks(&[true, true, false]).unwrap();
    let none = NO_EXPERT;
    assert_eq!(rebalancer.placement().unwrap().layer_experts(3).unwrap(), [0, 1, 2, 3, none, none]);
    // It returns, and gets experts by a plan.
    rebalancer.set_active_ranks(&[true; 3]).unwrap();
    rebalancer.observe(&[500, 500, 100, 100], 1, 1200, Some(0)).unwrap();
    let plan = rebalancer.plan(&unlimited()).unwrap();
    let to = plan.layers()[0].slot_experts();
    assert!(held_slots(&to[4..]).count() == 2, "{to:?}");
    commit_all(&mut rebalancer, &plan);

    // Without rank 1, experts 2 and 3 are lost if the last plan left them there alone.
    rebalancer.reset(Placement::new(shape, &[3], &slots).unwrap()).unwrap();
    rebalancer.set_active_ranks(&[true, false, true]).unwrap();
    assert_eq!(rebalancer.info().num_lost_experts, 2);
    assert_eq!(rebalancer.placement().unwrap().layer_experts(3).unwrap(), slots);
    let plan = rebalancer.plan(&unlimited()).unwrap();
    let host: Vec<u32> = plan.layers()[0]
        .transfers()
        .iter()
        .filter(|transfer| transfer.kind == TransferKind::Host)
        .map(|transfer| transfer.expert)
        .collect();
    assert_eq!((host.len(), plan.num_moves()), (2, 2), "{:?}", plan.layers()[0].transfers());
    commit_all(&mut rebalancer, &plan);
    assert_eq!(rebalancer.info().num_lost_experts, 0);

    let refused = rebalancer.set_active_ranks(&[true, false, false]).unwrap_err();
    assert_eq!(refused.to_string(), "layer 3: the active ranks have 2 slots for 4 experts");
    assert!(matches!(refused, crate::Error::NoReplica(_)));
}

#[test]
fn pinned_and_empty_slots_stay() {
    let mut random = Random(41);
    for _ in 0..300 {
        let shape = random_shape(&mut random);
        let Some(slots) = random_slots(shape, &vec![true; shape.num_ranks()], &mut random) else { continue };
        let pinned: Vec<bool> = slots.iter().map(|_| random.below(3) == 0).collect();
        let placement = Placement::with_empty_slots(shape, None, &[0], &slots).unwrap();
        let config = RebalancerConfig {
            gates: Gates::OFF,
            pinned_slots: Some(pinned.clone()),
            ..RebalancerConfig::new(shape.num_experts(), 1)
        };
        let mut rebalancer = Rebalancer::new(config, placement).unwrap();
        rebalancer.observe(&skewed_counts(shape.num_experts(), &mut random), 1, 100, Some(0)).unwrap();
        let plan = rebalancer.plan(&unlimited()).unwrap();
        for layer in plan.layers() {
            for (slot, (&before, &after)) in slots.iter().zip(layer.slot_experts()).enumerate() {
                assert!(before == after || !pinned[slot] && before != NO_EXPERT);
            }
        }
    }
}

#[test]
fn a_price_holds_back_moves_that_save_less() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let moves = |node_price: f64, horizon: f64| {
        let mut rebalancer = rebalancer(shape, &[in_order(shape)], Gates::OFF);
        rebalancer.observe(&[90, 90, 1, 1, 1, 1, 1, 1], 1, 100, Some(0)).unwrap();
        rebalancer.plan(&Limits { node_price, horizon, ..unlimited() }).unwrap().num_moves()
    };
    // An exchange saves 89 counts of the most loaded rank, in two moves.
    assert_eq!((moves(0.0, 1.0), moves(1000.0, 1.0), moves(1000.0, 1000.0)), (2, 0, 2));
}
