//! Any placements, masks, counts and limits: transfers end in the planned slots and read no slot that has lost its expert, and a
//! rebalancer's plans keep their limits.
#![no_main]

use eplb::error::Error;
use eplb::live::{
    Buffering, Gates, LayerPlan, Limits, Plan, PlanOptions, Rebalancer, RebalancerConfig, TransferKind,
};
use eplb::placement::{NO_EXPERT, Placement, Shape};
use libfuzzer_sys::fuzz_target;

/// Each expert in a slot of an active rank, then what `bytes` say. `None` if there are too few slots.
fn slots_of(shape: Shape, active: &[bool], bytes: &[u8]) -> Option<Vec<u32>> {
    let byte = |index: usize| bytes.get(index).copied().map_or(0, usize::from);
    let mut free: Vec<usize> = (0..shape.num_slots()).filter(|&slot| active[shape.rank_of(slot)]).collect();
    let mut slots = vec![NO_EXPERT; shape.num_slots()];
    for expert in 0..shape.num_experts() {
        if free.is_empty() {
            return None;
        }
        slots[free.swap_remove(byte(expert) % free.len())] = expert as u32;
    }
    for slot in free {
        let expert = byte(shape.num_experts() + slot);
        slots[slot] = if expert == 255 { NO_EXPERT } else { (expert % shape.num_experts()) as u32 };
    }
    Some(slots)
}

/// Does the transfers of a layer round by round on slots whose weights are expert ids.
fn transfer_all(shape: Shape, plan: &LayerPlan) {
    let from = plan.update(0).from;
    let mut weights = from.to_vec();
    weights.resize(shape.num_slots() + shape.num_ranks(), NO_EXPERT);
    let mut staging = vec![NO_EXPERT; weights.len()];
    let is_staged = plan.buffering() == Buffering::Staged;
    for round in 0..plan.num_rounds() {
        let of_round = || plan.transfers().iter().filter(move |transfer| transfer.round == round);
        let (mut sends, mut receives) = (vec![0; shape.num_ranks()], vec![0; shape.num_ranks()]);
        for transfer in of_round() {
            let (src, dst) = (transfer.src_slot.map(|slot| slot as usize), transfer.dst_slot as usize);
            if let Some(src) = src {
                let has_arrived = is_staged && from.get(src) != Some(&transfer.expert);
                let held = if has_arrived { staging[src] } else { weights[src] };
                assert_eq!(held, transfer.expert, "{transfer:?}");
                if transfer.kind != TransferKind::Local {
                    sends[transfer.src_rank(shape).unwrap()] += 1;
                    receives[transfer.dst_rank(shape)] += 1;
                }
            }
            if is_staged { staging[dst] = transfer.expert } else { weights[dst] = transfer.expert }
        }
        assert!(sends.into_iter().chain(receives).all(|number| number <= 1), "round {round}");
    }
    assert!(plan.transfers().iter().all(|transfer| transfer.round < plan.num_rounds()));
    for (weight, staged) in weights.iter_mut().zip(staging) {
        *weight = if staged == NO_EXPERT { *weight } else { staged };
    }
    for (slot, &expert) in plan.slot_experts().iter().enumerate() {
        assert!(expert == NO_EXPERT || weights[slot] == expert, "slot {slot}");
    }
}

fn check_limits(shape: Shape, plan: &Plan, limits: &Limits) {
    let keeps = |number: usize, limit: Option<u32>| limit.is_none_or(|limit| number <= limit as usize);
    assert!(keeps(plan.num_moves(), limits.max_moves) && keeps(plan.layers().len(), limits.max_layers));
    let mut received = vec![0; shape.num_ranks()];
    let mut pairs = vec![0; shape.num_ranks() * shape.num_ranks()];
    for layer in plan.layers() {
        assert!(keeps(layer.num_moves(), limits.max_layer_moves));
        for transfer in layer.transfers() {
            let dst = transfer.dst_rank(shape);
            received[dst] += usize::from((transfer.dst_slot as usize) < shape.num_slots());
            if let Some(src) = transfer.src_rank(shape).filter(|&src| src != dst) {
                pairs[src * shape.num_ranks() + dst] += 1;
            }
        }
    }
    assert!(received.into_iter().all(|number| keeps(number, limits.max_rank_moves)));
    assert!(pairs.into_iter().all(|number| keeps(number, limits.max_pair_moves)));
}

type Input = (u8, u8, u8, u8, u8, Vec<u8>, Vec<u8>, Vec<(u8, i32, [u8; 5])>);

fuzz_target!(|input: Input| {
    let (experts, ranks, width, mask, nodes, first, second, calls) = input;
    let (num_ranks, width) = (usize::from(ranks % 6) + 1, usize::from(width % 4) + 1);
    let num_experts = usize::from(experts) % (num_ranks * width) + 1;
    let shape = Shape::new(num_experts, num_ranks * width, num_ranks).unwrap();
    let buffering = [Buffering::Staged, Buffering::InPlace, Buffering::Drain][usize::from(experts / 64) % 3];
    let active: Vec<bool> = (0..num_ranks).map(|rank| mask >> rank & 1 == 0).collect();
    let nodes: Vec<i32> = (0..num_ranks).map(|rank| i32::from(nodes >> rank & 1)).collect();

    let Some(from) = slots_of(shape, &vec![true; num_ranks], &first) else { return };
    let place = |slots: &[u32]| Placement::with_empty_slots(shape, None, &[5], slots).unwrap();
    if let Some(to) = slots_of(shape, &active, &second) {
        let options = PlanOptions { buffering, rank_to_node: Some(&nodes), active: Some(&active) };
        let plan = Plan::between(&place(&from), &place(&to), options).unwrap();
        plan.layers().iter().for_each(|layer| transfer_all(shape, layer));
    }

    let config = RebalancerConfig {
        gates: Gates::OFF,
        num_windows: 2,
        num_threads: 1,
        rank_to_node: Some(nodes),
        ..RebalancerConfig::new(num_experts, 1)
    };
    let mut rebalancer = Rebalancer::new(config, place(&from)).unwrap();
    for (call, seed, numbers) in calls.into_iter().take(16) {
        let counts: Vec<i64> =
            (0..num_experts as i64).map(|expert| (i64::from(seed) * (expert + 1)) % 1000).collect();
        match rebalancer.observe(&counts, 1, 1000, Some(0)) {
            Ok(()) => {}
            Err(Error::InvalidLoads(_)) => assert!(counts.iter().any(|&count| count < 0)),
            Err(error) => panic!("{error}"),
        }
        let limit = |index: usize| (numbers[index] % 4 > 0).then_some(u32::from(numbers[index] % 8));
        let limits = Limits {
            max_layer_moves: limit(0),
            max_moves: limit(1),
            max_rank_moves: limit(2),
            max_pair_moves: limit(3),
            max_layers: limit(4),
            horizon: 1.0,
            buffering,
            ..Limits::default()
        };
        let plan = rebalancer.plan(&limits).unwrap();
        check_limits(shape, &plan, &limits);
        for layer in plan.layers() {
            transfer_all(shape, layer);
            let commits = usize::from(call % 4).min(layer.num_commits());
            (0..commits).for_each(|_| rebalancer.commit_layer(&plan, layer.layer()).unwrap());
        }
        rebalancer.abort(Some(&plan)).unwrap();
        if call / 4 % 4 == 0 {
            let mask: Vec<bool> = (0..num_ranks).map(|rank| numbers[0] >> rank & 1 == 0).collect();
            assert!(matches!(rebalancer.set_active_ranks(&mask), Ok(()) | Err(Error::NoReplica(_))));
        }
    }
});
