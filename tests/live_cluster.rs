//! A simulated cluster that rebalances while it serves. Each rank has a rebalancer and a dispatch, and slots hold expert ids as
//! weights. Transfers of a round run in any order, ranks and layers at their own pace, and a forward pass runs between all steps.

use std::collections::{BTreeSet, VecDeque};

use eplb::device::{IdType, Ids, Place, Stream};
use eplb::dispatch::{Dispatch, DispatchConfig, Routing, Rule};
use eplb::error::Error;
use eplb::live::{
    Buffering, Gates, LayerPlan, Limits, Plan, Rebalancer, RebalancerConfig, Transfer, TransferKind,
};
use eplb::placement::{NO_EXPERT, Placement, Shape};

/// A plain generator of random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((word ^ (word >> 31)) % below as u64) as usize
    }
}

const LAYERS: [u32; 2] = [3, 5];
const MAX_REPLICAS: u32 = 3;

struct Cluster {
    shape: Shape,
    /// One of each rank.
    dispatches: Vec<Dispatch>,
    rebalancers: Vec<Rebalancer>,
    /// The expert whose weights each slot holds, spare slots included: `[layers][slots + ranks]`.
    weights: Vec<Vec<u32>>,
    /// What arrived for each slot and is not in it yet.
    staging: Vec<Vec<u32>>,
    /// Ranks that answer.
    alive: Vec<bool>,
    /// Whether a layer's slots are being overwritten in place.
    stands_still: Vec<bool>,
}

/// A step of the cluster, of a layer by its index.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A transfer between two ranks, or within one.
    Record(Transfer),
    /// All ranks upload the next tables.
    Stage,
    /// All ranks put the staged tables in force, and with the last ones what has arrived.
    Commit { is_last: bool },
}

fn index_of(layer: u32) -> usize {
    LAYERS.iter().position(|&other| other == layer).unwrap()
}

impl Cluster {
    fn new(shape: Shape, rule: Rule, layers: &[Vec<u32>]) -> Self {
        let placement = Placement::with_empty_slots(shape, None, &LAYERS, &layers.concat()).unwrap();
        let dispatch = |rank: usize| {
            let config = DispatchConfig {
                rule,
                rank,
                experts_per_token: 2,
                layers: None,
                rank_to_node: None,
                offset_by_rank: false,
                max_replicas: shape.num_slots().min(MAX_REPLICAS as usize),
                place: Place::Host,
                invalid_slot: 0,
                shared_slots: &[],
                live: true,
            };
            Dispatch::create(&placement, &config, None).unwrap()
        };
        let rebalancer = |_| {
            let config = RebalancerConfig {
                gates: Gates::OFF,
                num_threads: 1,
                max_replicas: Some(MAX_REPLICAS),
                ..RebalancerConfig::new(shape.num_experts(), 2)
            };
            Rebalancer::new(config, placement.clone()).unwrap()
        };
        let num_ranks = shape.num_ranks();
        let with_spares = |slots: &Vec<u32>| {
            let mut slots = slots.clone();
            slots.resize(shape.num_slots() + num_ranks, NO_EXPERT);
            slots
        };
        Cluster {
            shape,
            dispatches: (0..num_ranks).map(dispatch).collect(),
            rebalancers: (0..num_ranks).map(rebalancer).collect(),
            weights: layers.iter().map(with_spares).collect(),
            staging: vec![vec![NO_EXPERT; shape.num_slots() + num_ranks]; LAYERS.len()],
            alive: vec![true; num_ranks],
            stands_still: vec![false; LAYERS.len()],
        }
    }

    /// Every rank that answers observes the counts and plans. All have the same plan.
    fn plan(&mut self, counts: &[i64], limits: &Limits) -> Vec<Plan> {
        let alive = self.alive.clone();
        let plan = |(rank, rebalancer): (usize, &mut Rebalancer)| {
            let counted = alive[rank].then(|| rebalancer.observe(counts, 1, 100, Some(0)));
            counted.map(|counted| counted.and_then(|()| rebalancer.plan(limits)).unwrap())
        };
        let plans: Vec<Plan> = self.rebalancers.iter_mut().enumerate().filter_map(plan).collect();
        let max = |word: usize| plans.iter().map(|plan| plan.agreement_words()[word]).max().unwrap();
        assert_eq!(max(0), !max(1), "all ranks have the same plan");
        plans
    }

    /// Tokens of every rank that answers, on every layer that runs, find a slot with the weights of their expert. Only layers of
    /// `routes_to_dead` send tokens to a dead rank, and these are lost.
    fn forward(&self, routes_to_dead: [bool; 2]) {
        let num_experts = self.shape.num_experts();
        for (rank, dispatch) in self.dispatches.iter().enumerate().filter(|&(rank, _)| self.alive[rank]) {
            for (index, &layer) in LAYERS.iter().enumerate().filter(|&(index, _)| !self.stands_still[index]) {
                let ids: Vec<i32> =
                    (0..4 * num_experts).map(|token| ((token + rank) % num_experts) as i32).collect();
                let mut slots = ids.clone();
                // SAFETY: the ids live until the call returns.
                let routing = unsafe {
                    let place = Ids::at(slots.as_mut_ptr() as u64, IdType::Int32, 0);
                    Routing::at(place, place, (slots.len() / 2) as u32, 2).unwrap()
                };
                dispatch.route(layer, &routing, Stream::DEFAULT).unwrap();
                for (&expert, &slot) in ids.iter().zip(&slots) {
                    if self.is_dead(slot as usize) {
                        assert!(
                            routes_to_dead[index],
                            "layer {layer}: expert {expert} goes to dead slot {slot}"
                        );
                    } else {
                        let held = self.weights[index][slot as usize];
                        assert_eq!(held, expert as u32, "layer {layer}, slot {slot}");
                    }
                }
            }
        }
    }

    fn run(&mut self, plans: &[Plan], index: usize, step: Step) {
        let (plan, layer) = (&plans[0], LAYERS[index]);
        match step {
            Step::Record(transfer) => self.transfer(plan.layer(layer).unwrap(), index, &transfer),
            Step::Stage => {
                for dispatch in &self.dispatches {
                    plan.apply(layer, |update| dispatch.stage_layer(update, Stream::DEFAULT)).unwrap();
                }
            }
            Step::Commit { is_last } => {
                if is_last {
                    for (weight, staged) in self.weights[index].iter_mut().zip(&mut self.staging[index]) {
                        if *staged != NO_EXPERT {
                            *weight = std::mem::replace(staged, NO_EXPERT);
                        }
                    }
                    self.stands_still[index] = false;
                }
                for dispatch in &self.dispatches {
                    dispatch.commit_layer(layer, Stream::DEFAULT).unwrap();
                }
                let living = self.rebalancers.iter_mut().zip(&self.alive).filter(|&(_, &alive)| alive);
                for ((rebalancer, _), plan) in living.zip(plans) {
                    rebalancer.commit_layer(plan, layer).unwrap();
                }
            }
        }
    }

    fn transfer(&mut self, plan: &LayerPlan, index: usize, transfer: &Transfer) {
        let dst = transfer.dst_slot as usize;
        let num_slots = self.shape.num_slots();
        if let Some(src) = transfer.src_slot.map(|slot| slot as usize) {
            let source = transfer.src_rank(self.shape).unwrap();
            assert!(self.alive[source], "{transfer:?} reads from a dead rank");
            let in_force = plan.update(0).from.get(src).copied();
            let has_arrived = plan.buffering() == Buffering::Staged && in_force != Some(transfer.expert);
            let held = if has_arrived { self.staging[index][src] } else { self.weights[index][src] };
            assert_eq!(held, transfer.expert, "{transfer:?} reads a slot without its expert");
        } else {
            assert_eq!(transfer.kind, TransferKind::Host);
        }
        match plan.buffering() {
            Buffering::Staged => self.staging[index][dst] = transfer.expert,
            Buffering::InPlace => {
                self.stands_still[index] = true;
                self.weights[index][dst] = transfer.expert;
            }
            Buffering::Drain => {
                assert!(dst < num_slots, "{transfer:?}: draining takes no spare slot");
                self.weights[index][dst] = transfer.expert;
            }
        }
    }

    fn is_dead(&self, slot: usize) -> bool {
        !self.alive[self.shape.rank_of(slot)]
    }

    /// Checks that slots hold what the placement in force says, on every rank, and that tables are of as many commits.
    fn check(&self) {
        let first = self.alive.iter().position(|&alive| alive).unwrap();
        let placement = self.rebalancers[first].placement().unwrap();
        let generations = self.rebalancers[first].generations();
        for (index, (layer, slots)) in placement.iter().enumerate() {
            for (slot, &expert) in slots.iter().enumerate() {
                if expert != NO_EXPERT && !self.is_dead(slot) {
                    assert_eq!(self.weights[index][slot], expert, "layer {layer}, slot {slot}");
                }
            }
            for dispatch in &self.dispatches {
                assert_eq!(dispatch.generation(layer).unwrap(), generations[index]);
            }
        }
        for rebalancer in self.rebalancers.iter().zip(&self.alive).filter(|&(_, &alive)| alive) {
            assert_eq!(rebalancer.0.placement().unwrap(), placement);
        }
    }
}

/// The transfers of a layer in an order that rounds allow: each rank goes through its own rounds, a transfer between two ranks
/// needs both, and local copies of a rank follow its other transfers of the round, in order.
fn interleaved(shape: Shape, plan: &LayerPlan, random: &mut Random) -> Vec<Step> {
    let mut pending: Vec<Transfer> = plan.transfers().to_vec();
    let touches = |transfer: &Transfer, rank: usize| {
        transfer.dst_rank(shape) == rank || transfer.src_rank(shape) == Some(rank)
    };
    let turn = |transfer: &Transfer| (transfer.round, transfer.kind == TransferKind::Local);
    let mut steps = Vec::new();
    while !pending.is_empty() {
        let is_next = |&index: &usize| {
            let transfer = &pending[index];
            let ranks = [Some(transfer.dst_rank(shape)), transfer.src_rank(shape)];
            ranks.into_iter().flatten().all(|rank| {
                pending.iter().enumerate().all(|(other_index, other)| {
                    let in_order = turn(other).1 && other_index < index;
                    let is_before = turn(other) < turn(transfer) || turn(other) == turn(transfer) && in_order;
                    !touches(other, rank) || !is_before
                })
            })
        };
        let next: Vec<usize> = (0..pending.len()).filter(is_next).collect();
        steps.push(Step::Record(pending.remove(next[random.below(next.len())])));
    }
    steps
}

/// The steps of a layer. One that drains changes its tables before its transfers, too.
fn steps_of(shape: Shape, plan: &LayerPlan, random: &mut Random) -> Vec<Step> {
    let mut steps = interleaved(shape, plan, random);
    if plan.num_commits() == 2 {
        steps.splice(0..0, [Step::Stage, Step::Commit { is_last: false }]);
        steps.push(Step::Stage);
    } else {
        steps.insert(random.below(steps.len() + 1), Step::Stage);
    }
    steps.push(Step::Commit { is_last: true });
    steps
}

/// All steps of a plan, with the index of their layer: each layer at its own pace.
fn schedule(shape: Shape, plan: &Plan, random: &mut Random) -> Vec<(usize, Step)> {
    let mut layers: Vec<(usize, VecDeque<Step>)> = plan
        .layers()
        .iter()
        .map(|layer| (index_of(layer.layer()), steps_of(shape, layer, random).into()))
        .collect();
    let mut steps = Vec::new();
    while !layers.is_empty() {
        let at = random.below(layers.len());
        match layers[at].1.pop_front() {
            Some(step) => steps.push((layers[at].0, step)),
            None => drop(layers.remove(at)),
        }
    }
    steps
}

/// A layer at random: each expert once, then replicas, at most one of an expert on a rank, and some empty slots.
fn random_layer(shape: Shape, random: &mut Random) -> Vec<u32> {
    let mut free: Vec<usize> = (0..shape.num_slots()).collect();
    let mut slots = vec![NO_EXPERT; shape.num_slots()];
    for expert in 0..shape.num_experts() as u32 {
        slots[free.swap_remove(random.below(free.len()))] = expert;
    }
    for slot in free {
        let expert = random.below(shape.num_experts()) as u32;
        let count = slots.iter().filter(|&&held| held == expert).count();
        if count < MAX_REPLICAS as usize && random.below(8) > 0 {
            slots[slot] = expert;
        }
    }
    slots
}

fn random_counts(shape: Shape, random: &mut Random) -> Vec<i64> {
    (0..LAYERS.len() * shape.num_experts()).map(|_| 100_000 / (1 + random.below(20) as i64)).collect()
}

/// The same cluster each time, of 2 to 5 ranks with 1 to 4 slots.
fn cluster(seed: u64) -> (Cluster, Random) {
    let mut random = Random(seed);
    let (num_ranks, width) = (2 + random.below(4), 1 + random.below(4));
    let num_experts = 2 + random.below(num_ranks * width - 1);
    let shape = Shape::new(num_experts, num_ranks * width, num_ranks).unwrap();
    let rule = [Rule::RoundRobin, Rule::TokenHash, Rule::Nearest, Rule::LeastLoaded][random.below(4)];
    let layers: Vec<Vec<u32>> = LAYERS.iter().map(|_| random_layer(shape, &mut random)).collect();
    (Cluster::new(shape, rule, &layers), random)
}

fn limits(buffering: Buffering) -> Limits {
    Limits { buffering, horizon: 1.0, ..Limits::default() }
}

/// Runs the first `stop` steps of a plan, with a forward pass after each, and aborts it. Returns the number of its steps.
fn run_until(cluster: &mut Cluster, plans: &[Plan], random: &mut Random, stop: usize) -> usize {
    let before: Vec<Vec<u32>> =
        cluster.rebalancers[0].placement().unwrap().iter().map(|(_, slots)| slots.to_vec()).collect();
    let steps = schedule(cluster.shape, &plans[0], random);
    for (place, &(index, step)) in steps.iter().enumerate() {
        // A layer whose slots are overwritten in place has to be finished.
        if place < stop || cluster.stands_still[index] {
            cluster.run(plans, index, step);
            cluster.forward([false; 2]);
        }
    }
    for (rebalancer, plan) in cluster.rebalancers.iter_mut().zip(plans) {
        rebalancer.abort(Some(plan)).unwrap();
    }
    cluster.staging.iter_mut().for_each(|staging| staging.fill(NO_EXPERT));
    let after = cluster.rebalancers[0].placement().unwrap();
    for (index, (layer, slots)) in after.iter().enumerate() {
        let planned = plans[0].layer(layer).ok();
        let is_planned = |plan: &LayerPlan| (0..plan.num_commits()).any(|n| plan.update(n).to == slots);
        assert!(slots == before[index] || planned.is_some_and(is_planned), "layer {layer} is in between");
    }
    cluster.check();
    steps.len()
}

#[test]
fn cluster_serves_every_expert_and_ends_in_the_planned_slots() {
    let mut moved = 0;
    for seed in 0..200 {
        let (mut cluster, mut random) = cluster(seed);
        for round in 0..4 {
            let counts = random_counts(cluster.shape, &mut random);
            let buffering =
                [Buffering::Staged, Buffering::InPlace, Buffering::Drain][(seed as usize + round) % 3];
            let plans = cluster.plan(&counts, &limits(buffering));
            moved += plans[0].num_moves();
            run_until(&mut cluster, &plans, &mut random, usize::MAX);
            let after = cluster.rebalancers[0].placement().unwrap();
            for layer in plans[0].layers() {
                assert_eq!(after.layer_experts(layer.layer()).unwrap(), layer.slot_experts());
            }
            assert_eq!(cluster.rebalancers[0].info().layers_in_flight, 0);
        }
    }
    assert!(moved > 2000, "{moved} moves");
}

#[test]
fn cluster_that_stops_at_any_step_plans_on_from_there() {
    let mut stops = 0;
    for seed in 1000..1030 {
        let buffering = [Buffering::Staged, Buffering::InPlace, Buffering::Drain][seed as usize % 3];
        let mut stop = 0;
        loop {
            let (mut cluster, mut random) = cluster(seed);
            let counts = random_counts(cluster.shape, &mut random);
            let plans = cluster.plan(&counts, &limits(buffering));
            let num_steps = run_until(&mut cluster, &plans, &mut random, stop);
            let generations = cluster.rebalancers[0].generations().to_vec();
            for (rebalancer, plan) in cluster.rebalancers.iter_mut().zip(&plans) {
                for &layer in plan.layer_ids() {
                    assert!(matches!(rebalancer.commit_layer(plan, layer), Err(Error::Stale(_))));
                }
            }
            assert_eq!(cluster.rebalancers[0].generations(), generations);
            // The next plan is legal, and is carried out.
            let counts = random_counts(cluster.shape, &mut random);
            let plans = cluster.plan(&counts, &limits(buffering));
            run_until(&mut cluster, &plans, &mut random, usize::MAX);
            stops += 1;
            if stop >= num_steps {
                break;
            }
            stop += 1;
        }
    }
    assert!(stops > 300, "{stops} stops");
}

#[test]
fn cluster_serves_on_without_dead_ranks() {
    let (mut routed_around, mut loaded, mut impossible) = (0, 0, 0);
    for seed in 2000..2200 {
        let (mut cluster, mut random) = cluster(seed);
        let (shape, num_ranks) = (cluster.shape, cluster.shape.num_ranks());
        let dead = random.below(num_ranks);
        let active: Vec<bool> = (0..num_ranks).map(|rank| rank != dead).collect();
        let before = cluster.rebalancers[0].placement().unwrap();
        cluster.alive[dead] = false;
        let is_lost = |slots: &[u32], expert: u32| {
            !slots.iter().enumerate().any(|(slot, &held)| held == expert && shape.rank_of(slot) != dead)
        };
        let lost_of =
            |slots| (0..shape.num_experts() as u32).filter(|&expert| is_lost(slots, expert)).count();
        let num_lost: usize = before.iter().map(|(_, slots)| lost_of(slots)).sum();
        let survivors = (0..num_ranks).filter(|&rank| rank != dead);
        let results: Vec<bool> =
            survivors.map(|rank| cluster.rebalancers[rank].set_active_ranks(&active).is_ok()).collect();
        assert!(results.iter().all(|&result| result == results[0]));
        let around: Vec<_> = cluster
            .dispatches
            .iter()
            .map(|dispatch| dispatch.set_active_ranks(&active, Stream::DEFAULT))
            .collect();
        for result in around {
            match num_lost {
                0 => result.unwrap(),
                _ => assert!(matches!(result, Err(Error::NoReplica(_)))),
            }
        }
        if !results[0] {
            impossible += 1;
            assert!(num_lost > 0);
            continue;
        }
        let mut routes_to_dead = [num_lost > 0; 2];
        cluster.forward(routes_to_dead);
        // Lost experts are loaded whatever the limits of balance are.
        let counts = random_counts(shape, &mut random);
        let plans = cluster.plan(&counts, &limits(Buffering::Staged));
        for (index, step) in schedule(shape, &plans[0], &mut random) {
            cluster.run(&plans, index, step);
            routes_to_dead[index] &= !matches!(step, Step::Commit { .. });
            cluster.forward(routes_to_dead);
        }
        for (_, slots) in cluster.rebalancers[(dead + 1) % num_ranks].placement().unwrap().iter() {
            assert_eq!(lost_of(slots), 0);
        }
        let all = plans[0].layers().iter().flat_map(LayerPlan::transfers);
        let host = all.filter(|transfer| transfer.kind == TransferKind::Host);
        let host: BTreeSet<(u32, u32)> = host.map(|transfer| (transfer.layer, transfer.expert)).collect();
        assert_eq!(host.len(), num_lost);
        cluster.forward([false; 2]);
        routed_around += usize::from(num_lost == 0);
        loaded += usize::from(num_lost > 0);
    }
    assert!(routed_around > 10 && loaded > 10 && impossible > 10, "{routed_around} {loaded} {impossible}");
}
