//! Small instances, for which every placement can be tried.

use eplb::solve::Policy;

use crate::instance::{Instance, ROUNDING, Random};

const MOST_SAMPLES: usize = 3;

/// One number for each sample.
type PerSample = [f64; MOST_SAMPLES];

/// The lowest cost of all placements. It tries every vector of replica counts and every way to fill the ranks
/// one by one. Each rank starts with the first expert that has replicas left, since ranks are alike.
struct Exhaustive {
    width: usize,
    /// Whether a rank may hold an expert allow_duplicates.
    allow_duplicates: bool,
    /// Scaled so that the cost is a sum of loads.
    loads: Vec<PerSample>,
    replica_loads: Vec<PerSample>,
    /// Replicas of each expert that are not placed yet.
    left: Vec<usize>,
    least: f64,
}

impl Exhaustive {
    /// Returns the lowest cost. Infinite if duplicates are needed and not allowed.
    fn least_cost(instance: &Instance, allow_duplicates: bool) -> f64 {
        let (num_experts, num_ranks) = (instance.shape.num_experts(), instance.shape.num_ranks() as f64);
        let mut loads = vec![[0.0; MOST_SAMPLES]; num_experts];
        for (sample, of_sample) in instance.samples().enumerate() {
            let unit = of_sample.iter().sum::<f64>() / num_ranks * instance.samples().count() as f64;
            let scaled = of_sample.iter().map(|load| if unit > 0.0 { load / unit } else { 0.0 });
            loads.iter_mut().zip(scaled).for_each(|(load, scaled)| load[sample] = scaled);
        }
        let mut all = Exhaustive {
            width: instance.shape.slots_per_rank(),
            allow_duplicates,
            replica_loads: loads.clone(),
            loads,
            left: vec![0; num_experts],
            least: f64::INFINITY,
        };
        all.count(0, instance.shape.num_slots() - num_experts);
        all.least
    }

    /// Tries every way to give `spares` to the experts from `expert` on.
    fn count(&mut self, expert: usize, spares: usize) {
        let last = expert + 1 == self.loads.len();
        for more in if last { spares } else { 0 }..=spares {
            self.left[expert] = 1 + more;
            self.replica_loads[expert] = self.loads[expert].map(|load| load / (1 + more) as f64);
            match last {
                false => self.count(expert + 1, spares - more),
                true => self.fill(0, 0, [0.0; MOST_SAMPLES], [0.0; MOST_SAMPLES]),
            }
        }
    }

    /// Tries every way to fill the remaining slots. The current rank has `held` replicas, carries `carried`,
    /// and may take experts from `from` on. `max` is the maximum load of the full ranks.
    fn fill(&mut self, held: usize, from: usize, carried: PerSample, max: PerSample) {
        let max_now: PerSample = std::array::from_fn(|sample| max[sample].max(carried[sample]));
        let cost: f64 = max_now.iter().sum();
        if cost >= self.least {
            return;
        }
        if held == self.width {
            return self.fill(0, 0, [0.0; MOST_SAMPLES], max_now);
        }
        for expert in from..self.left.len() {
            if self.left[expert] == 0 {
                continue;
            }
            self.left[expert] -= 1;
            let replica_load = self.replica_loads[expert];
            let carried = std::array::from_fn(|sample| carried[sample] + replica_load[sample]);
            self.fill(held + 1, expert + usize::from(!self.allow_duplicates), carried, max);
            self.left[expert] += 1;
            if held == 0 {
                return;
            }
        }
        if held == 0 {
            self.least = cost;
        }
    }
}

/// Returns instances of every shape with up to 6 experts and 9 slots on 2 or 3 ranks.
fn small_instances(random: &mut Random, per_shape: usize, num_samples: usize) -> Vec<Instance> {
    let mut instances = Vec::new();
    for num_ranks in [2, 3] {
        for width in 1..=9 / num_ranks {
            for num_experts in 1..=6.min(num_ranks * width) {
                instances.extend((0..per_shape).map(|_| {
                    let samples =
                        (0..num_samples).flat_map(|_| random.loads(num_experts, num_ranks)).collect();
                    Instance::new(num_experts, num_ranks * width, num_ranks, samples)
                }));
            }
        }
    }
    instances
}

/// Compares the search with the optimum, which it must reach. The optimum allows no duplicates if it is then
/// not above the greedies.
fn check_optimum(instances: &[Instance]) {
    let (mut reached, mut needless) = (0, 0);
    for instance in instances {
        let (least, least_without) =
            (Exhaustive::least_cost(instance, true), Exhaustive::least_cost(instance, false));
        let (greedy, slots) = (instance.greedy(), instance.place(Policy::Search));
        let (found, duplicates) = (instance.cost(&slots), instance.duplicates(&slots));
        let not_above = |a: f64, b: f64| a <= b * (1.0 + ROUNDING);
        assert!(
            not_above(instance.bound(), least),
            "{instance}: bound {}, optimum {least}",
            instance.bound()
        );
        assert!(not_above(least, found), "{instance}: {found}, optimum {least}");
        assert!(not_above(found, greedy), "{instance}: {found}, greedy {greedy}");
        let without = not_above(least_without, greedy);
        let is_reached = not_above(found, if without { least_without } else { least });
        reached += usize::from(is_reached);
        needless += usize::from(without && duplicates > 0);
        if !is_reached || without && duplicates > 0 {
            println!(
                "{instance}: {found} with {duplicates} duplicates; {least} at least, {least_without} without, greedy {greedy}"
            );
        }
    }
    println!("{reached} of {}, {needless} with needless duplicates", instances.len());
    assert_eq!((reached, needless), (instances.len(), 0), "of {}", instances.len());
}

#[test]
fn search_reaches_the_optimum_of_small_instances_of_one_sample() {
    check_optimum(&small_instances(&mut Random(1), 200, 1));
}

#[test]
fn search_reaches_the_optimum_of_small_instances_of_several_samples() {
    for num_samples in [2, MOST_SAMPLES] {
        check_optimum(&small_instances(&mut Random(2), 100, num_samples));
    }
}
