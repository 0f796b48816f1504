//! The threads of an engine: one plans and changes tables, beside others that count and route.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use eplb::device::{IdType, Ids, Place, Stream};
use eplb::dispatch::{Dispatch, DispatchConfig, Routing, Rule};
use eplb::live::{Gates, Limits, Rebalancer, RebalancerConfig};
use eplb::placement::{Placement, Shape};
use eplb::stats::{AddedCounts, IdKind, IterationRange, Recorder, RecorderConfig, Rows, SnapshotAt};

const NUM_EXPERTS: usize = 8;
const NUM_TOKENS: usize = 64;

/// Flips of each rule: those of EPLB_LIVE_FLIPS.
fn num_flips() -> usize {
    std::env::var("EPLB_LIVE_FLIPS").map_or(500, |flips| flips.parse().expect("EPLB_LIVE_FLIPS is a number"))
}

fn dispatch(placement: &Placement, rule: Rule) -> Dispatch {
    let config = DispatchConfig {
        rule,
        rank: 0,
        experts_per_token: 1,
        layers: None,
        rank_to_node: None,
        offset_by_rank: false,
        max_replicas: 4,
        place: Place::Host,
        invalid_slot: 0,
        shared_slots: &[],
        live: true,
    };
    Dispatch::create(placement, &config, None).unwrap()
}

fn recorder(layers: &[u32]) -> Recorder {
    let config = RecorderConfig {
        path: None,
        name: None,
        iterations: None::<IterationRange>,
        rows: Rows::ITERATIONS,
        rank: 0,
        num_ranks: 4,
        file: None,
        num_experts: NUM_EXPERTS,
        experts_per_token: 1,
        layers,
        id_kind: IdKind::Expert,
        place: Place::Host,
        max_tokens_per_iteration: 0,
        run_id: None,
        num_shared: 0,
        added_counts: AddedCounts { cumulative: false, by_local_slot: false },
        rolling: 4,
    };
    Recorder::create(&config, None).unwrap()
}

/// Ids of tokens. Half of them choose one expert.
fn ids(hot: usize) -> Vec<i32> {
    (0..NUM_TOKENS).map(|token| if token % 2 == 0 { hot } else { token / 2 % NUM_EXPERTS } as i32).collect()
}

/// Routes a layer. Slots of an expert are those of no other one, so the result is checked against all placements by its owner.
fn route(dispatch: &Dispatch, layer: u32, ids: &[i32]) -> Vec<i32> {
    let mut slots = ids.to_vec();
    // SAFETY: the ids live until the call returns.
    let routing = unsafe {
        let place = Ids::at(slots.as_mut_ptr() as u64, IdType::Int32, 0);
        Routing::at(place, place, NUM_TOKENS as u32, 1).unwrap()
    };
    dispatch.route(layer, &routing, Stream::DEFAULT).unwrap();
    slots
}

#[test]
fn plans_and_flips_run_beside_counting_and_routing() {
    let (shape, layers): (Shape, [u32; 2]) = (Shape::new(NUM_EXPERTS, 12, 4).unwrap(), [3, 5]);
    let slots: Vec<u32> = (0..2).flat_map(|_| (0..12).map(|slot| slot % NUM_EXPERTS as u32)).collect();
    for rule in [Rule::RoundRobin, Rule::TokenHash, Rule::Nearest, Rule::LeastLoaded] {
        let placement = Placement::new(shape, &layers, &slots).unwrap();
        let (dispatch, recorder) = (dispatch(&placement, rule), recorder(&layers));
        let config = RebalancerConfig {
            gates: Gates::OFF,
            num_windows: 1,
            num_threads: 2,
            ..RebalancerConfig::new(NUM_EXPERTS, 1)
        };
        let mut rebalancer = Rebalancer::new(config, placement).unwrap();
        let (ends, flips) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (send, windows) = mpsc::sync_channel::<Vec<i64>>(1);
        std::thread::scope(|scope| {
            // The forward pass: counts, routes, and sends what was counted.
            scope.spawn(|| {
                let send = send;
                for iteration in 0.. {
                    recorder.begin_iteration(iteration, Stream::DEFAULT).unwrap();
                    let ids = ids(iteration as usize / 4 % NUM_EXPERTS);
                    for layer in layers {
                        // SAFETY: the ids live until the call returns.
                        let place = unsafe { Ids::at(ids.as_ptr() as u64, IdType::Int32, 0) };
                        recorder.count_ids(layer, &place, NUM_TOKENS as u32, Stream::DEFAULT).unwrap();
                        let routed = route(&dispatch, layer, &ids);
                        assert!(routed.iter().all(|slot| (0..12).contains(slot)));
                    }
                    if iteration % 4 == 3 {
                        let mut counts = vec![0i64; layers.len() * NUM_EXPERTS];
                        // SAFETY: the counts live until the call returns.
                        let place = unsafe { SnapshotAt::at(counts.as_mut_ptr() as u64) };
                        recorder.snapshot(&place, 1, Stream::DEFAULT).unwrap();
                        if send.send(counts).is_err() {
                            break;
                        }
                    }
                }
            });
            // A micro-batch of the same dispatch.
            scope.spawn(|| {
                let ids = ids(1);
                while !ends.load(Ordering::Acquire) {
                    let routed = route(&dispatch, 5, &ids);
                    // The owner of each slot is one expert: no call sees two tables.
                    let mut owners = [None; 12];
                    for (&slot, &expert) in routed.iter().zip(&ids) {
                        let owner = owners[slot as usize].get_or_insert(expert);
                        assert_eq!(*owner, expert, "{rule:?}: slot {slot} of two experts");
                    }
                }
            });
            // The planner.
            while flips.load(Ordering::Relaxed) < num_flips() {
                rebalancer.observe(&windows.recv().unwrap(), 1, NUM_TOKENS as u64, Some(0)).unwrap();
                let limits = Limits { max_layer_moves: Some(4), horizon: 1.0, ..Limits::default() };
                let plan = rebalancer.plan(&limits).unwrap();
                for layer in plan.layers() {
                    dispatch.stage_layer(&layer.update(0), Stream::DEFAULT).unwrap();
                    dispatch.commit_layer(layer.layer(), Stream::DEFAULT).unwrap();
                    rebalancer.commit_layer(&plan, layer.layer()).unwrap();
                    flips.fetch_add(1, Ordering::Relaxed);
                }
            }
            ends.store(true, Ordering::Release);
            drop(windows);
        });
        assert_eq!(rebalancer.info().num_commits as usize, flips.into_inner());
        for layer in layers {
            assert_eq!(
                dispatch.generation(layer).unwrap(),
                rebalancer.generations()[usize::from(layer == 5)],
                "{rule:?}"
            );
        }
    }
}
