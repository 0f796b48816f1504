//! A second search, simulated annealing, among placements in which no rank holds an expert twice: to show that there is one.

use crate::instance::{Instance, Random};

const STEPS: usize = 20_000;

/// The cost of a placement without duplicates that is not above `most`, if one is found. Ranks have no more slots than there are
/// experts.
pub fn not_above(instance: &Instance, most: f64) -> Option<f64> {
    let (mut random, mut slots) = (Random(0), start(instance));
    assert_eq!(instance.duplicates(&slots), 0);
    let mut cost = instance.cost(&slots);
    for step in 0..STEPS {
        if cost <= most {
            return Some(cost);
        }
        let before = slots.clone();
        if !change(instance, &mut slots, &mut random) {
            continue;
        }
        // Worse by a part of what is still too much, less and less.
        let allowed = (cost - most) * random.below(1000) as f64 / 1000.0 * (1.0 - step as f64 / STEPS as f64);
        let changed = instance.cost(&slots);
        match changed <= cost + allowed {
            true => cost = changed,
            false => slots = before,
        }
    }
    None
}

/// Spares to the heaviest replica, no expert more often than there are ranks, dealt out to the ranks in turn.
fn start(instance: &Instance) -> Vec<u32> {
    let (num_experts, num_ranks) = (instance.shape.num_experts(), instance.shape.num_ranks());
    let mut loads = vec![0.0; num_experts];
    for sample in instance.samples() {
        let sum = sample.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        loads.iter_mut().zip(sample).for_each(|(load, of_sample)| *load += of_sample / sum);
    }
    let mut counts = vec![1; num_experts];
    for _ in num_experts..instance.shape.num_slots() {
        let weight = |expert: usize| loads[expert] / f64::from(counts[expert]);
        let expert = (0..num_experts)
            .filter(|&expert| (counts[expert] as usize) < num_ranks)
            .max_by(|&a, &b| weight(a).total_cmp(&weight(b)))
            .expect("ranks have no more slots than there are experts");
        counts[expert] += 1;
    }
    let dealt = (0u32..).zip(&counts).flat_map(|(expert, &count)| (0..count).map(move |_| expert));
    let (mut slots, width) = (vec![0; instance.shape.num_slots()], instance.shape.slots_per_rank());
    for (turn, expert) in dealt.enumerate() {
        slots[turn % num_ranks * width + turn / num_ranks] = expert;
    }
    slots
}

/// Exchanges two slots or gives one to another expert; whether that leaves the placement valid and without duplicates.
fn change(instance: &Instance, slots: &mut [u32], random: &mut Random) -> bool {
    let rank_of = |slot: usize| instance.shape.rank_of(slot);
    let width = instance.shape.slots_per_rank();
    let (one, other) = (random.below(slots.len()), random.below(slots.len()));
    let holds = |slots: &[u32], rank: usize, expert| slots[rank * width..][..width].contains(&expert);
    let (moved, back) = (slots[one], slots[other]);
    if holds(slots, rank_of(one), back) {
        return false;
    }
    if random.below(2) == 0 {
        let is_last = slots.iter().filter(|&&expert| expert == moved).count() == 1;
        if !is_last {
            slots[one] = back;
        }
        return !is_last;
    }
    let is_clean = !holds(slots, rank_of(other), moved);
    if is_clean {
        slots.swap(one, other);
    }
    is_clean
}
