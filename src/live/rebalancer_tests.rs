//! The rebalancer's calls: gates, commits, refusals, ranks that die.

use super::cluster_tests::{Random, random_shape, random_slots};
use super::*;
use crate::placement::NO_EXPERT;
use crate::solve::Objective;

/// The expert in each slot of the first `layers` layers, from which a rebalancer with few gates starts.
pub(super) fn rebalancer(shape: Shape, layers: &[Vec<u32>], gates: Gates) -> Rebalancer {
    let ids: Vec<u32> = (0..layers.len() as u32).map(|layer| layer + 3).collect();
    let placement = Placement::with_empty_slots(shape, None, &ids, &layers.concat()).unwrap();
    let config = RebalancerConfig { gates, num_threads: 1, ..RebalancerConfig::new(shape.num_experts(), 2) };
    Rebalancer::new(config, placement).unwrap()
}

pub(super) fn unlimited() -> Limits {
    Limits { horizon: 1.0, ..Limits::default() }
}

pub(super) fn commit_all(rebalancer: &mut Rebalancer, plan: &Plan) {
    for layer in plan.layers() {
        for _ in 0..layer.num_commits() {
            rebalancer.commit_layer(plan, layer.layer()).unwrap();
        }
    }
}

/// Loads with a long tail: 200,000 by a random number up to that of experts.
pub(super) fn skewed_counts(num_experts: usize, random: &mut Random) -> Vec<i64> {
    (0..num_experts).map(|_| 200_000 / (1 + random.below(num_experts) as i64)).collect()
}

pub(super) fn in_order(shape: Shape) -> Vec<u32> {
    (0..shape.num_slots()).map(|slot| (slot % shape.num_experts()) as u32).collect()
}

#[test]
fn a_plan_cut_anywhere_leaves_each_layer_old_or_new_and_the_next_plan_legal() {
    let mut random = Random(23);
    let (mut cut, mut drained) = (0, 0);
    for case in 0..300 {
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
                rebalancer.abort(Some(&plan)).unwrap();
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
    assert!(cut > 150 && drained > 6, "{cut} {drained}");
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

/// A plan of twelve layers with three limits.
fn plan_with_threads(num_threads: usize) -> Plan {
    let (shape, mut random) = (Shape::new(32, 40, 8).unwrap(), Random(31));
    let counts: Vec<i64> = (0..12).flat_map(|_| skewed_counts(32, &mut random)).collect();
    let ids: Vec<u32> = (0..12).collect();
    let placement = Placement::new(shape, &ids, &in_order(shape).repeat(12)).unwrap();
    let config = RebalancerConfig { gates: Gates::OFF, num_threads, ..RebalancerConfig::new(32, 2) };
    let mut rebalancer = Rebalancer::new(config, placement).unwrap();
    rebalancer.observe(&counts, 1, 100, Some(0)).unwrap();
    rebalancer.plan(&Limits { max_moves: Some(40), max_pair_moves: Some(2), ..unlimited() }).unwrap()
}

#[test]
fn plans_do_not_depend_on_the_number_of_threads() {
    let one = plan_with_threads(1);
    assert!(one.num_moves() > 20);
    for num_threads in [2, 3, 7, 16, 64] {
        let other = plan_with_threads(num_threads);
        assert_eq!((one.layers(), one.agreement_words()), (other.layers(), other.agreement_words()));
    }
}

#[test]
fn plans_are_the_same_in_every_process() {
    let plan = plan_with_threads(2);
    let own = format!("plan {:?} {:?}", plan.agreement_words(), plan.layers());
    const PRINTS: &str = "EPLB_TEST_PRINTS_ITS_PLAN";
    if std::env::var_os(PRINTS).is_some() {
        println!("{own}");
        return;
    }
    for _ in 0..2 {
        let name = "live::rebalancer_tests::plans_are_the_same_in_every_process";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args([name, "--exact", "--nocapture"]).env(PRINTS, "1").output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(printed.contains(&own), "{printed} instead of {own}");
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
    assert!(both[0].abort(Some(&plans[1])).is_err());
    both[0].commit_layer(&plans[0], 3).unwrap();
}

#[test]
fn each_refusal_names_its_reason_and_changes_nothing() {
    let shape = Shape::new(8, 8, 4).unwrap();
    let hot = [90, 90, 1, 1, 1, 1, 1, 1];
    let mut both = [0, 1].map(|_| rebalancer(shape, &[in_order(shape)], Gates::OFF));
    let plans = both.each_mut().map(|rebalancer| {
        rebalancer.observe(&hot, 1, 100, Some(0)).unwrap();
        rebalancer.plan(&unlimited()).unwrap()
    });
    let [rebalancer, _] = &mut both;
    let state = |rebalancer: &Rebalancer| (rebalancer.info(), rebalancer.placement().unwrap());
    let before = state(rebalancer);
    let mut refused = |call: &dyn Fn(&mut Rebalancer) -> crate::error::Result<()>| {
        let message = call(rebalancer).unwrap_err().to_string();
        assert_eq!(state(rebalancer), before, "{message}");
        message
    };
    assert_eq!(refused(&|r| r.commit_layer(&plans[1], 3)), "the plan is not of this rebalancer");
    assert_eq!(refused(&|r| r.abort(Some(&plans[1]))), "the plan is not of this rebalancer");
    assert!(refused(&|r| r.commit_layer(&plans[0], 4)).starts_with("the plan does not change layer 4"));
    let observe = |counts: &[i64], samples, phase| {
        let counts = counts.to_vec();
        move |r: &mut Rebalancer| r.observe(&counts, samples, 1, Some(phase))
    };
    let overflow = [i64::MAX, i64::MAX, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        refused(&observe(&overflow, 1, 0)),
        "sample 0, layer 3, expert 0: the counts of the layer exceed 2^53; is 9223372036854775807 uninitialised?"
    );
    assert_eq!(
        refused(&observe(&[0, 0, 0, -5, 0, 0, 0, 0], 1, 0)),
        "sample 0, layer 3, expert 3: the count -5 is negative"
    );
    assert_eq!(refused(&observe(&hot, 1, 7)), "phase 7, of 1 phases; set num_phases of the configuration");
    assert_eq!(refused(&observe(&hot, 2, 0)), "8 counts of 2 samples; each sample has 8");
    let mask = |active: [bool; 4]| move |r: &mut Rebalancer| r.set_active_ranks(&active);
    assert_eq!(
        refused(&mask([true, true, true, false])),
        "layer 3: the active ranks have 6 slots for 8 experts"
    );
    let plan = rebalancer.plan(&unlimited()).unwrap();
    assert_eq!(
        (plan.keep_reason(), plan.message().to_str().unwrap()),
        (Some(KeepReason::InFlight), "a plan is in flight, with 1 layers to commit; commit them or abort it")
    );
    rebalancer.abort(Some(&plans[0])).unwrap();
    let stale = rebalancer.commit_layer(&plans[0], 3).unwrap_err();
    assert_eq!(
        stale.to_string(),
        "layer 3: the plan has ended: it was committed, aborted, or the active ranks changed; plan again"
    );
    // A window without counts passes time.
    rebalancer.reset(Placement::new(shape, &[3], &in_order(shape)).unwrap()).unwrap();
    rebalancer.observe(&[0; 8], 1, 0, Some(0)).unwrap();
    let plan = rebalancer.plan(&unlimited()).unwrap();
    assert_eq!(plan.message().to_str().unwrap(), "no window with counts was observed");
}

#[test]
fn plans_by_best_split_are_refused() {
    let placement = Placement::new(Shape::new(4, 4, 2).unwrap(), &[0], &[0, 1, 2, 3]).unwrap();
    let config = RebalancerConfig { objective: Objective::BestSplit, ..RebalancerConfig::new(4, 1) };
    let message = Rebalancer::new(config, placement).unwrap_err().to_string();
    assert!(message.starts_with("plans with few moves do not support objective best-split"), "{message}");
}

#[test]
fn dead_ranks_lose_their_slots_and_lost_experts_are_loaded() {
    let shape = Shape::new(4, 6, 3).unwrap();
    let slots = vec![0, 1, 2, 3, 0, 1];
    let mut rebalancer = rebalancer(shape, std::slice::from_ref(&slots), Gates::of_model(4, 1));
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

    // A placement of while a rank was dead does not leave its slots empty for good.
    let dead = Placement::with_empty_slots(shape, None, &[3], &[0, 1, 2, 3, none, none]).unwrap();
    rebalancer.reset(dead).unwrap();
    rebalancer.observe(&[500, 500, 100, 100], 1, 1200, Some(0)).unwrap();
    let plan = rebalancer.plan(&unlimited()).unwrap();
    assert_eq!(held_slots(&plan.layers()[0].slot_experts()[4..]).count(), 2);
    drop(plan);
    assert_eq!(rebalancer.plan(&unlimited()).unwrap().keep_reason(), Some(KeepReason::InFlight));
    rebalancer.abort(None).unwrap();
    assert_eq!(rebalancer.info().layers_in_flight, 0);

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
fn lost_experts_are_loaded_by_one_plan_after_the_other_whatever_the_gates() {
    let shape = Shape::new(4, 6, 3).unwrap();
    let mut rebalancer = rebalancer(shape, &[vec![0, 1, 2, 3, 0, 1]], Gates::of_model(4, 1));
    rebalancer.set_active_ranks(&[true, false, true]).unwrap();
    let one = Limits { max_layer_moves: Some(1), ..unlimited() };
    for num_lost in [2, 1] {
        assert_eq!(rebalancer.info().num_lost_experts, num_lost);
        let plan = rebalancer.plan(&one).unwrap();
        assert_eq!(plan.num_moves(), 1, "{:?}", plan.message());
        commit_all(&mut rebalancer, &plan);
    }
    assert_eq!(rebalancer.info().num_lost_experts, 0);
    assert_eq!(rebalancer.plan(&one).unwrap().keep_reason(), Some(KeepReason::NoCounts));
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
