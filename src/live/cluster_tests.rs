//! A simulated cluster: slots hold expert ids as weights. Ranks do the transfers of a plan, each at its own pace, while a
//! forward pass looks for every expert.

use super::*;
use crate::placement::NO_EXPERT;

/// A plain generator of random numbers (SplitMix64).
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((word ^ (word >> 31)) % below as u64) as usize
    }
}

pub(super) fn random_shape(random: &mut Random) -> Shape {
    let num_ranks = 1 + random.below(6);
    let width = 1 + random.below(5);
    let num_experts = 1 + random.below(num_ranks * width);
    Shape::new(num_experts, num_ranks * width, num_ranks).unwrap()
}

/// The experts of a layer at random: each has a slot, some slots are empty, and inactive ranks hold nothing. `None` if the
/// active ranks have too few slots.
pub(super) fn random_slots(shape: Shape, active: &[bool], random: &mut Random) -> Option<Vec<u32>> {
    let mut free: Vec<usize> = (0..shape.num_slots()).filter(|&slot| active[shape.rank_of(slot)]).collect();
    let mut slots = vec![NO_EXPERT; shape.num_slots()];
    for expert in 0..shape.num_experts() as u32 {
        if free.is_empty() {
            return None;
        }
        slots[free.swap_remove(random.below(free.len()))] = expert;
    }
    for slot in free {
        if random.below(8) > 0 {
            slots[slot] = random.below(shape.num_experts()) as u32;
        }
    }
    Some(slots)
}

/// The weights in the slots and in the spare or staging slots of a layer.
struct Cluster<'a> {
    shape: Shape,
    plan: &'a LayerPlan,
    /// The expert whose weights each slot holds, spare slots included.
    weights: Vec<u32>,
    /// What arrived for each slot and is not in it yet.
    staged: Vec<u32>,
    /// Reads that each slot has yet to serve before it may be overwritten.
    readers: Vec<usize>,
    /// The table in force.
    table: Vec<u32>,
}

impl<'a> Cluster<'a> {
    fn new(shape: Shape, plan: &'a LayerPlan, from: &[u32]) -> Self {
        let slots = shape.num_slots() + shape.num_ranks();
        let mut weights = from.to_vec();
        weights.resize(slots, NO_EXPERT);
        let readers = (0..slots as u32).map(|slot| plan.num_readers(slot)).collect();
        Cluster { shape, plan, weights, staged: vec![NO_EXPERT; slots], readers, table: from.to_vec() }
    }

    /// One transfer. Fails where it reads a slot that no longer holds the expert.
    fn run(&mut self, transfer: &Transfer) {
        let (staging, dst) = (self.plan.buffering() == Buffering::Staged, transfer.dst_slot as usize);
        if let Some(src) = transfer.src_slot.map(|src| src as usize) {
            let of_received =
                self.plan.from.get(src) != Some(&transfer.expert) && src < self.shape.num_slots();
            let held = if staging && of_received { self.staged[src] } else { self.weights[src] };
            assert_eq!(held, transfer.expert, "{transfer:?} reads a slot without its expert");
            self.readers[src] -= 1;
        }
        match staging {
            true => self.staged[dst] = transfer.expert,
            false => {
                // A received expert may have readers left; the old one may not.
                let is_old = self.plan.from.get(dst) == Some(&self.weights[dst]);
                let old_readers = self.plan.transfers().iter().filter(|other| {
                    other.src_slot == Some(transfer.dst_slot) && other.expert == self.weights[dst]
                });
                if is_old && self.weights[dst] != NO_EXPERT && self.plan.buffering() == Buffering::InPlace {
                    let all = self.plan.num_readers(transfer.dst_slot);
                    let done = all - self.readers[dst];
                    assert!(done >= old_readers.count(), "{transfer:?} overwrites a slot that is read later");
                }
                self.weights[dst] = transfer.expert;
            }
        }
    }

    /// Puts the table of a commit in force, with what is staged.
    fn commit(&mut self, commit: usize) {
        if commit + 1 == self.plan.num_commits() {
            for slot in 0..self.shape.num_slots() {
                if self.staged[slot] != NO_EXPERT {
                    self.weights[slot] = std::mem::replace(&mut self.staged[slot], NO_EXPERT);
                }
            }
        }
        self.table = self.plan.update(commit).to.to_vec();
    }

    /// A forward pass: the slots of the table hold what it says, and each expert has one on an active rank, but for those that
    /// no rank held at the start.
    fn forward(&self, active: &[bool], lost: &[u32]) {
        let mut found = vec![false; self.shape.num_experts()];
        for (slot, expert) in held_slots(&self.table) {
            if active[self.shape.rank_of(slot)] {
                assert_eq!(self.weights[slot], expert, "slot {slot} does not hold what the table says");
                found[expert as usize] = true;
            }
        }
        let missing = |&expert: &u32| !found[expert as usize] && !lost.contains(&expert);
        assert_eq!((0..self.shape.num_experts() as u32).find(missing), None);
    }
}

/// The transfers in a random order that rounds allow: each rank goes through its own rounds, a transfer between two ranks needs
/// both, and local copies of a rank follow its other transfers of the round.
fn interleaved(shape: Shape, plan: &LayerPlan, random: &mut Random) -> Vec<Transfer> {
    let mut pending: Vec<Transfer> = plan.transfers().to_vec();
    let mut order = Vec::new();
    let touches = |transfer: &Transfer, rank: usize| {
        transfer.dst_rank(shape) == rank || transfer.src_rank(shape) == Some(rank)
    };
    let stage = |transfer: &Transfer| (transfer.round, transfer.kind == TransferKind::Local);
    while !pending.is_empty() {
        let is_next = |index: &usize| {
            let transfer = &pending[*index];
            let ranks = [Some(transfer.dst_rank(shape)), transfer.src_rank(shape)];
            ranks.into_iter().flatten().all(|rank| {
                pending.iter().enumerate().all(|(other_index, other)| {
                    let is_local = stage(other).1 && stage(transfer).1;
                    let is_before = stage(other) < stage(transfer)
                        || stage(other) == stage(transfer) && is_local && other_index < *index;
                    !touches(other, rank) || !is_before
                })
            })
        };
        let next: Vec<usize> = (0..pending.len()).filter(is_next).collect();
        order.push(pending.remove(next[random.below(next.len())]));
    }
    order
}

fn check(shape: Shape, plan: &LayerPlan, from: &[u32], to: &[u32], active: &[bool], random: &mut Random) {
    let live = |slots: &[u32], expert: u32| {
        held_slots(slots).any(|(slot, held)| held == expert && active[shape.rank_of(slot)])
    };
    let lost: Vec<u32> = (0..shape.num_experts() as u32).filter(|&expert| !live(from, expert)).collect();
    let mut cluster = Cluster::new(shape, plan, from);
    let serves = plan.buffering() != Buffering::InPlace;
    cluster.forward(active, &lost);
    if plan.num_commits() == 2 {
        cluster.commit(0);
        cluster.forward(active, &lost);
    }
    for transfer in interleaved(shape, plan, random) {
        cluster.run(&transfer);
        if serves {
            cluster.forward(active, &lost);
        }
    }
    cluster.commit(plan.num_commits() - 1);
    cluster.forward(active, &[]);
    assert_eq!(cluster.table, plan.slot_experts());
    assert!(cluster.readers.iter().all(|&readers| readers == 0));
    let sorted = |slots: &[u32]| -> Vec<Vec<u32>> {
        let rank = |rank: &[u32]| {
            let mut rank = rank.to_vec();
            rank.sort_unstable();
            rank
        };
        slots.chunks(shape.slots_per_rank()).map(rank).collect()
    };
    assert_eq!(sorted(&cluster.table), sorted(to));
    check_counts(shape, plan, from);
}

/// Checks the numbers that a plan of a layer has against its transfers and tables.
fn check_counts(shape: Shape, plan: &LayerPlan, from: &[u32]) {
    let to = plan.slot_experts();
    let changed: Vec<usize> =
        held_slots(to).filter(|&(slot, expert)| from[slot] != expert).map(|(slot, _)| slot).collect();
    assert_eq!(plan.num_moves(), changed.len());
    let is_peer = |t: &&Transfer| matches!(t.kind, TransferKind::Node | TransferKind::Remote);
    let mut busiest = 0;
    for rank in 0..shape.num_ranks() {
        let sent = plan.transfers().iter().filter(is_peer).filter(|t| t.src_rank(shape) == Some(rank));
        let received = plan.transfers().iter().filter(is_peer).filter(|t| t.dst_rank(shape) == rank);
        for mut rounds in
            [sent.map(|t| t.round).collect::<Vec<_>>(), received.map(|t| t.round).collect::<Vec<_>>()]
        {
            busiest = busiest.max(rounds.len() as u32);
            rounds.sort_unstable();
            assert!(rounds.windows(2).all(|pair| pair[0] < pair[1]), "rank {rank} has two in a round");
        }
        let staged = changed.iter().filter(|&&slot| shape.rank_of(slot) == rank).count() as u32;
        assert!(plan.buffering() != Buffering::Staged || staged <= plan.staging_slots());
    }
    if plan.buffering() != Buffering::InPlace {
        assert_eq!(plan.num_rounds(), busiest.max(u32::from(!changed.is_empty())));
    }
}

#[test]
fn a_cluster_ends_in_the_planned_slots_and_serves_every_expert_on_the_way() {
    let mut random = Random(7);
    let (mut spare, mut drained, mut host) = (0, 0, 0);
    for case in 0..20_000 {
        let shape = random_shape(&mut random);
        let all = vec![true; shape.num_ranks()];
        let active: Vec<bool> = all.iter().map(|_| case % 3 > 0 || random.below(4) > 0).collect();
        let nodes: Vec<i32> = all.iter().map(|_| random.below(2) as i32).collect();
        let Some(from) = random_slots(shape, &all, &mut random) else { continue };
        let Some(to) = random_slots(shape, &active, &mut random) else { continue };
        let buffering = [Buffering::Staged, Buffering::InPlace, Buffering::Drain][case % 3];
        let place = |slots: &[u32]| Placement::with_empty_slots(shape, None, &[5], slots).unwrap();
        let options = PlanOptions { buffering, rank_to_node: Some(&nodes), active: Some(&active) };
        let plan = Plan::between(&place(&from), &place(&to), options).unwrap();
        for layer in plan.layers() {
            check(shape, layer, &from, &to, &active, &mut random);
            spare += usize::from(buffering == Buffering::InPlace && layer.staging_slots() > 0);
            drained += usize::from(layer.num_commits() == 2);
            host += layer.transfers().iter().filter(|t| t.kind == TransferKind::Host).count();
        }
    }
    assert!(spare > 100 && drained > 100 && host > 100, "{spare} {drained} {host}");
}
