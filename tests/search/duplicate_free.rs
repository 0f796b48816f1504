//! A second search, by simulated annealing, for placements without duplicates. It shows whether one exists.

use crate::instance::{Instance, Random};

const STEPS: usize = 20_000;

/// Returns the cost of a placement without duplicates of at most `max_cost`, if it finds one. Ranks have no
/// more slots than there are experts.
pub fn cost_at_most(instance: &Instance, max_cost: f64) -> Option<f64> {
    let (mut random, mut slots) = (Random(0), start(instance));
    assert_eq!(instance.duplicates(&slots), 0);
    let mut cost = instance.cost(&slots);
    for step in 0..STEPS {
        if cost <= max_cost {
            return Some(cost);
        }
        let before = slots.clone();
        if !change(instance, &mut slots, &mut random) {
            continue;
        }
        // Accepts a cost that is worse by a random, shrinking part of the excess.
        let allowed =
            (cost - max_cost) * random.below(1000) as f64 / 1000.0 * (1.0 - step as f64 / STEPS as f64);
        let changed = instance.cost(&slots);
        match changed <= cost + allowed {
            true => cost = changed,
            false => slots = before,
        }
    }
    None
}

/// Gives each spare slot to the heaviest replica, at most one replica per rank. Assigns replicas to ranks in
/// turn.
fn start(instance: &Instance) -> Vec<u32> {
    let (num_experts, num_ranks) = (instance.shape.num_experts(), instance.shape.num_ranks());
    let mut loads = vec![0.0; num_experts];
    for sample in instance.samples() {
        let sum = sample.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        loads.iter_mut().zip(sample).for_each(|(load, of_sample)| *load += of_sample / sum);
    }
    let mut counts = vec![1; num_experts];
    for _ in num_experts..instance.shape.num_slots() {
        let replica_load = |expert: usize| loads[expert] / f64::from(counts[expert]);
        let expert = (0..num_experts)
            .filter(|&expert| (counts[expert] as usize) < num_ranks)
            .max_by(|&a, &b| replica_load(a).total_cmp(&replica_load(b)))
            .expect("ranks have no more slots than there are experts");
        counts[expert] += 1;
    }
    let replicas = (0u32..).zip(&counts).flat_map(|(expert, &count)| (0..count).map(move |_| expert));
    let (mut slots, width) = (vec![0; instance.shape.num_slots()], instance.shape.slots_per_rank());
    for (turn, expert) in replicas.enumerate() {
        slots[turn % num_ranks * width + turn / num_ranks] = expert;
    }
    slots
}

/// Exchanges two slots or changes the expert of one. Returns whether the placement stays valid and without
/// duplicates.
fn change(instance: &Instance, slots: &mut [u32], random: &mut Random) -> bool {
    let rank_of = |slot: usize| instance.shape.rank_of(slot);
    let width = instance.shape.slots_per_rank();
    let (one, other) = (random.below(slots.len()), random.below(slots.len()));
    let holds = |slots: &[u32], rank: usize, expert| slots[rank * width..][..width].contains(&expert);
    let (expert, other_expert) = (slots[one], slots[other]);
    if holds(slots, rank_of(one), other_expert) {
        return false;
    }
    if random.below(2) == 0 {
        let is_last = slots.iter().filter(|&&held| held == expert).count() == 1;
        if !is_last {
            slots[one] = other_expert;
        }
        return !is_last;
    }
    let adds_no_duplicate = !holds(slots, rank_of(other), expert);
    if adds_no_duplicate {
        slots.swap(one, other);
    }
    adds_no_duplicate
}
