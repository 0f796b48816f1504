use super::super::lanes::ALL_VECTORS;
use super::super::random::Random;
use super::*;
use crate::placement::held_slots;

/// Random loads and a start: each expert a slot, then random spares without duplicates.
fn instance(random: &mut Random, shape: Shape, num_samples: usize) -> (Vec<Vec<f64>>, Vec<u32>) {
    let load =
        |random: &mut Random| (1.0 + random.below(100) as f64) * if random.below(8) == 0 { 6.0 } else { 1.0 };
    let samples =
        (0..num_samples).map(|_| (0..shape.num_experts()).map(|_| load(random)).collect()).collect();
    loop {
        let mut slots: Vec<u32> = (0..shape.num_experts() as u32).collect();
        while slots.len() < shape.num_slots() {
            slots.push(random.below(shape.num_experts()) as u32);
        }
        random.shuffle(&mut slots);
        if slots.chunks_exact(shape.slots_per_rank()).all(|rank| num_duplicates(rank) == 0) {
            return (samples, slots);
        }
    }
}

fn num_duplicates(rank: &[u32]) -> usize {
    (1..rank.len()).filter(|&slot| rank[slot] != NO_EXPERT && rank[..slot].contains(&rank[slot])).count()
}

/// The sum over samples of the norm with exponent p of load / mean. At infinity it is the maximum.
fn norm(shape: Shape, samples: &[Vec<f64>], slots: &[u32], p: f64) -> f64 {
    let count = |expert: u32| slots.iter().filter(|&&held| held == expert).count() as f64;
    let of_sample = |loads: &Vec<f64>| {
        let mean = loads.iter().sum::<f64>() / shape.num_ranks() as f64;
        let ranks = slots.chunks_exact(shape.slots_per_rank()).map(|rank| {
            held_slots(rank).map(|(_, expert)| loads[expert as usize] / count(expert)).sum::<f64>() / mean
        });
        match p.is_infinite() {
            true => ranks.fold(0.0, f64::max),
            false => ranks.map(|load| load.powf(p)).sum::<f64>().powf(1.0 / p),
        }
    };
    samples.iter().map(of_sample).sum::<f64>() / samples.len() as f64
}

/// The slots of each rank that hold an expert which the rank did not hold at the start.
fn num_changed(shape: Shape, start: &[u32], slots: &[u32]) -> Vec<usize> {
    let width = shape.slots_per_rank();
    let of_rank =
        |(start, slots): (&[u32], &[u32])| slots.iter().filter(|expert| !start.contains(expert)).count();
    start.chunks_exact(width).zip(slots.chunks_exact(width)).map(of_rank).collect()
}

fn improvement<'a>(shape: Shape, samples: &'a [&'a [f64]], weights: &'a [f64]) -> Improvement<'a> {
    Improvement {
        shape,
        rank_num_slots: None,
        active: None,
        samples,
        sample_weights: weights,
        pinned_experts: None,
        limits: ChangeLimits::NONE,
        price: ChangePrice::default(),
    }
}

fn after(start: &[u32], steps: &[Step]) -> Vec<u32> {
    let mut slots = start.to_vec();
    for step in steps {
        step.changes.iter().for_each(|&(slot, expert)| slots[slot as usize] = expert);
    }
    slots
}

/// Returns which ranks have at least half of the most loaded rank's part of the cost with exponent 8.
fn hot_ranks(shape: Shape, samples: &[Vec<f64>], slots: &[u32]) -> Vec<bool> {
    let mut costs = vec![0.0; shape.num_ranks()];
    for loads in samples {
        let count = |expert: u32| slots.iter().filter(|&&held| held == expert).count() as f64;
        let ranks = slots.chunks_exact(shape.slots_per_rank());
        let load = |rank: &[u32]| held_slots(rank).map(|(_, e)| loads[e as usize] / count(e)).sum::<f64>();
        let powers: Vec<f64> = ranks.map(|rank| load(rank).powi(8)).collect();
        let scale = norm(shape, std::slice::from_ref(loads), slots, 8.0) / powers.iter().sum::<f64>();
        costs.iter_mut().zip(powers).for_each(|(cost, power)| *cost += power * scale);
    }
    let most = costs.iter().copied().fold(0.0, f64::max);
    // A rank on the border is hot or not by rounding.
    costs.iter().map(|&cost| cost >= 0.501 * most).collect()
}

#[test]
fn first_step_is_the_best_that_takes_load_off_a_hot_rank() {
    // Wide ranks fill more than half of a vector.
    assert!(check_first_steps(Shape::new(7, 12, 4).unwrap(), 300) >= 5);
    check_first_steps(Shape::new(24, 36, 3).unwrap(), 200);
}

/// Compares the first steps of random cases with all steps. Returns how many are exchanges.
fn check_first_steps(shape: Shape, num_cases: usize) -> usize {
    let (num_experts, num_slots, width) = (shape.num_experts(), shape.num_slots(), shape.slots_per_rank());
    let mut random = Random::new(1);
    let mut exchanges = 0;
    for case in 0..num_cases {
        let num_samples = 1 + case % 3;
        let (mut samples, mut start) = instance(&mut random, shape, num_samples);
        if case % 4 == 3 {
            // Slots amid ranks are empty, and rank 0 is hot except in the last sample, where it is nearly idle.
            for slot in (width * 3 / 4..num_slots).step_by(width) {
                if start.iter().filter(|&&held| held == start[slot]).count() > 1 {
                    start[slot] = NO_EXPERT;
                }
            }
            for (_, expert) in held_slots(&start[..width]) {
                samples.iter_mut().for_each(|loads| loads[expert as usize] *= 3.0);
                samples[num_samples - 1][expert as usize] = 1e-6;
            }
        }
        let references: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
        let weights = vec![1.0 / num_samples as f64; num_samples];
        let improved =
            improvement(shape, &references, &weights).run(&mut Workspace::default(), &start, &|_| true);
        let smooth = |slots: &[u32]| norm(shape, &samples, slots, 8.0);
        // One sample: the logarithm of the sum of powers orders as its norm. Several: the gain of each sample's sum
        // of powers, as a part of it, times its norm.
        let gain = |slots: &[u32]| {
            let of_sample = |sample: &Vec<f64>| {
                let one = std::slice::from_ref(sample);
                let (before, now) = (norm(shape, one, &start, 8.0), norm(shape, one, slots, 8.0));
                before * (1.0 - (now / before).powi(8))
            };
            samples.iter().map(of_sample).sum::<f64>()
        };
        let is_valid = |slots: &[u32]| {
            (0..num_experts as u32).all(|expert| slots.contains(&expert))
                && slots.chunks_exact(width).all(|rank| num_duplicates(rank) == 0)
        };
        let hot = hot_ranks(shape, &samples, &start);
        let is_on_hot = |expert: u32| (0..num_slots).any(|slot| start[slot] == expert && hot[slot / width]);
        let mut best = 0.0;
        for slot in 0..num_slots {
            for to in (0..num_experts as u32).filter(|&to| hot[slot / width] || is_on_hot(to)) {
                let mut slots = start.clone();
                slots[slot] = to;
                // Where another rank holds both experts, the descent counts less than the gain.
                let holds_both = |rank: &[u32]| rank.contains(&to) && rank.contains(&start[slot]);
                if is_valid(&slots) && !start.chunks_exact(width).any(holds_both) {
                    best = f64::max(best, gain(&slots));
                }
            }
            let has_expert = |slot: usize| start[slot] != NO_EXPERT;
            for other in 0..num_slots {
                let ranks = [slot / width, other / width];
                if ranks[0] == ranks[1]
                    || !ranks.iter().any(|&rank| hot[rank])
                    || !has_expert(slot)
                    || !has_expert(other)
                {
                    continue;
                }
                let mut slots = start.clone();
                slots.swap(slot, other);
                if is_valid(&slots) {
                    best = f64::max(best, gain(&slots) / 2.0);
                }
            }
        }
        let Some(step) = improved.steps.first() else { continue };
        let slots = after(&start, std::slice::from_ref(step));
        exchanges += usize::from(step.num_changed == 2);
        let found = gain(&slots) / step.num_changed as f64;
        assert!(found >= best * 0.999, "{case}: {found} of {best}, {start:?}");
        assert!(smooth(&slots) < smooth(&start));
    }
    exchanges
}

#[test]
fn steps_keep_every_limit_and_end_where_nothing_helps() {
    let shape = Shape::new(9, 16, 4).unwrap();
    let mut random = Random::new(2);
    let mut most_changed = 0;
    for case in 0..400 {
        let num_samples = 1 + case % 2 * 17;
        let (samples, mut start) = instance(&mut random, shape, num_samples);
        let references: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
        let weights = vec![1.0 / num_samples as f64; num_samples];
        let mut pinned = vec![NO_EXPERT; 16];
        pinned[5] = start[5];
        let limits = match case % 4 {
            0 => ChangeLimits::NONE,
            1 => ChangeLimits { of_layer: random.below(6), ..ChangeLimits::NONE },
            2 => ChangeLimits { of_rank: random.below(2), ..ChangeLimits::NONE },
            _ => ChangeLimits { of_layer: 5, of_rank: 2, max_replicas: 3 },
        };
        if case % 5 == 0 {
            // A spare slot is empty.
            let slot =
                (0..16).find(|&slot| start.iter().filter(|&&held| held == start[slot]).count() > 1).unwrap();
            (start[slot], pinned) = (NO_EXPERT, vec![NO_EXPERT; 16]);
        }
        let mut of = improvement(shape, &references, &weights);
        (of.limits, of.pinned_experts) = (limits, Some(&pinned[..]));
        let improved = of.run(&mut Workspace::default(), &start, &|_| true);
        assert!((improved.cost - norm(shape, &samples, &start, f64::INFINITY)).abs() < 1e-9);
        for num_steps in 1..=improved.steps.len() {
            let slots = after(&start, &improved.steps[..num_steps]);
            let step = &improved.steps[num_steps - 1];
            let changed = num_changed(shape, &start, &slots);
            assert!((step.cost - norm(shape, &samples, &slots, f64::INFINITY)).abs() < 1e-9);
            assert_eq!(step.num_changed, changed.iter().sum::<usize>());
            assert!(step.num_changed <= limits.of_layer && changed.iter().all(|&n| n <= limits.of_rank));
            for expert in 0..9 {
                let count = |slots: &[u32]| slots.iter().filter(|&&held| held == expert).count();
                assert!(count(&slots) >= 1 && count(&slots) <= limits.max_replicas.max(count(&start)));
            }
            assert!(slots.chunks_exact(4).all(|rank| num_duplicates(rank) == 0));
            assert!(pinned[5] == NO_EXPERT || slots[5] == start[5]);
            for (slot, &expert) in start.iter().enumerate() {
                let rank = &slots[slot / 4 * 4..][..4];
                assert!(expert == NO_EXPERT || !rank.contains(&expert) || slots[slot] == expert);
            }
        }
        let cost = improved.steps.last().map_or(improved.cost, |step| step.cost);
        assert!(cost <= improved.cost);
        most_changed = most_changed.max(improved.steps.last().map_or(0, |step| step.num_changed));
        if case % 4 == 0 {
            let again = of.run(&mut Workspace::default(), &after(&start, &improved.steps), &|_| true);
            assert_eq!(again.steps, [], "{case}");
        }
    }
    assert!(most_changed >= 8, "{most_changed}");
}

#[test]
fn experts_of_inactive_ranks_are_restored_and_refused_steps_are_not_taken() {
    let shape = Shape::new(4, 6, 3).unwrap();
    let (loads, weights) = ([4.0, 3.0, 2.0, 1.0], [1.0]);
    let samples: [&[f64]; 1] = [&loads];
    // Rank 2 alone holds expert 3.
    let start = [0, 1, 0, 2, 1, 3];
    let mut of = improvement(shape, &samples, &weights);
    of.active = Some(&[true, true, false]);
    let improved = of.run(&mut Workspace::default(), &start, &|_| true);
    let slots = after(&[0, 1, 0, 2, NO_EXPERT, NO_EXPERT], &improved.steps);
    // Two ranks of four slots: 4 + 1 and 3 + 2 are even.
    assert_eq!(improved.steps.last().unwrap().cost, 1.0);
    assert_eq!(of.cost(&mut Workspace::default(), &slots), 1.0);
    assert_eq!(slots[4..], [NO_EXPERT; 2]);
    // Rank 0 may not receive expert 3.
    let improved = of.run(&mut Workspace::default(), &start, &|slots| !slots[..2].contains(&3));
    let slots = after(&[0, 1, 0, 2, NO_EXPERT, NO_EXPERT], &improved.steps);
    assert!(slots[2..4].contains(&3) && !slots[..2].contains(&3), "{slots:?}");
}

#[test]
fn price_of_a_changed_slot_must_be_gained() {
    let shape = Shape::new(4, 4, 2).unwrap();
    let (loads, weights) = ([4.0, 3.0, 2.0, 1.0], [1.0]);
    let samples: [&[f64]; 1] = [&loads];
    // 7 and 3, mean 5. One exchange makes them 5 and 5, or 6 and 4. It gains .4 for two changed slots, of which
    // the smooth cost with exponent 8 counts .15.
    let steps = |price: f64| {
        let mut of = improvement(shape, &samples, &weights);
        of.price = ChangePrice { same_node: price, other: price, rank_to_node: None };
        of.run(&mut Workspace::default(), &[0, 1, 2, 3], &|_| true).steps.len()
    };
    assert_eq!((steps(0.0), steps(0.05), steps(0.25)), (1, 1, 0));
}

#[test]
fn steps_are_the_same_on_every_processor_and_thread() {
    let shape = Shape::new(40, 60, 20).unwrap();
    let mut random = Random::new(3);
    for num_samples in [1, 8, 17] {
        let (samples, start) = instance(&mut random, shape, num_samples);
        let references: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
        let weights = vec![1.0 / num_samples as f64; num_samples];
        for of_layer in [5, usize::MAX] {
            let mut of = improvement(shape, &references, &weights);
            of.limits.of_layer = of_layer;
            let expected = of.run_with(Vectors::Baseline, &mut Workspace::default(), &start, &|_| true);
            assert!(expected.steps.len() >= 2);
            for &vectors in ALL_VECTORS.iter().filter(|vectors| vectors.is_present()) {
                std::thread::scope(|scope| {
                    let run = || of.run_with(vectors, &mut Workspace::default(), &start, &|_| true);
                    let runs = [scope.spawn(run), scope.spawn(run)];
                    for run in runs {
                        assert_eq!(run.join().unwrap(), expected, "{vectors:?}");
                    }
                });
            }
        }
    }
}

#[test]
fn a_workspace_that_was_used_changes_nothing() {
    let mut random = Random::new(5);
    let mut used = Workspace::default();
    let shapes = [(20, 32, 4), (20, 32, 4), (40, 60, 20), (20, 32, 8)];
    for case in 0..40 {
        let (num_experts, num_slots, num_ranks) = shapes[case / 2 % 4];
        let shape = Shape::new(num_experts, num_slots, num_ranks).unwrap();
        let num_samples = [1, 1, 8, 3][case % 4];
        let (samples, start) = instance(&mut random, shape, num_samples);
        let references: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
        let weights = vec![1.0 / num_samples as f64; num_samples];
        let mut of = improvement(shape, &references, &weights);
        // Every fourth pair leaves slots of each rank empty that others use.
        let held = vec![shape.slots_per_rank() as u32 - 1; num_ranks];
        let has_all = (0..num_experts as u32).all(|expert| {
            start.chunks_exact(shape.slots_per_rank()).any(|rank| rank[..rank.len() - 1].contains(&expert))
        });
        of.rank_num_slots = (case % 8 == 3 && has_all).then_some(&held[..]);
        let run = |workspace: &mut Workspace| of.run(workspace, &start, &|_| true);
        assert_eq!(run(&mut used), run(&mut Workspace::default()), "{case}");
    }
}

#[test]
fn more_changes_gain_more() {
    let mut random = Random::new(4);
    for (shape, num_samples) in [(Shape::new(64, 72, 8).unwrap(), 4), (Shape::new(96, 128, 32).unwrap(), 1)] {
        let (samples, start) = instance(&mut random, shape, num_samples);
        let references: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
        let weights = vec![1.0 / num_samples as f64; num_samples];
        let cost = |of_layer: usize| {
            let mut of = improvement(shape, &references, &weights);
            of.limits.of_layer = of_layer;
            let improved = of.run(&mut Workspace::default(), &start, &|_| true);
            let steps = improved.steps.last();
            assert!(steps.map_or(0, |step| step.num_changed) <= of_layer);
            steps.map_or(improved.cost, |step| step.cost)
        };
        let costs = [0, 1, 2, 4, 8, 16, usize::MAX].map(cost);
        assert!(costs.windows(2).all(|pair| pair[1] < pair[0]), "{costs:?}");
        // Half of what can be gained needs few changes.
        assert!(costs[4] < (costs[0] + costs[6]) / 2.0, "{costs:?}");
    }
}

#[test]
fn no_change_is_allowed_by_a_limit_of_zero() {
    let shape = Shape::new(4, 4, 2).unwrap();
    let (loads, weights) = ([4.0, 3.0, 2.0, 1.0], [1.0]);
    let samples: [&[f64]; 1] = [&loads];
    let none = ChangeLimits::NONE;
    for limits in [ChangeLimits { of_layer: 0, ..none }, ChangeLimits { of_rank: 0, ..none }] {
        let improved = Improvement { limits, ..improvement(shape, &samples, &weights) };
        // 7 of a mean of 5.
        assert_eq!(
            improved.run(&mut Workspace::default(), &[0, 1, 2, 3], &|_| true),
            Improved { cost: 1.4, steps: Vec::new() }
        );
    }
}
