//! Pinned slots: the search keeps them in every phase, and balances what is free.

use eplb::placement::{NO_EXPERT, Placement, Shape};
use eplb::solve::{Loads, Objective, Policy, SolveConfig, solve};

const FREE: u32 = NO_EXPERT;

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

struct Instance {
    shape: Shape,
    rank_num_slots: Vec<u32>,
    /// `[samples][experts]`
    loads: Vec<f64>,
    num_samples: usize,
    pinned: Vec<u32>,
}

impl Instance {
    fn random(random: &mut Random, equal_ranks: bool) -> Self {
        let (num_ranks, width) = (2 + random.below(6), 2 + random.below(6));
        let mut rank_num_slots: Vec<u32> = (0..num_ranks)
            .map(|_| if equal_ranks { width } else { 1 + random.below(width) } as u32)
            .collect();
        rank_num_slots[random.below(num_ranks)] = width as u32;
        let all = rank_num_slots.iter().sum::<u32>() as usize;
        let num_experts = 1 + random.below(all);
        let num_samples = 1 + random.below(2) * random.below(4);
        let loads =
            (0..num_samples * num_experts).map(|_| (random.below(30) * random.below(30)) as f64).collect();
        let shape = Shape::new(num_experts, num_ranks * width, num_ranks).unwrap();
        let mut instance =
            Instance { shape, rank_num_slots, loads, num_samples, pinned: vec![FREE; shape.num_slots()] };
        // Pins at random slots, as long as the other experts keep room.
        for _ in 0..random.below(all + 1) {
            let (slot, expert) = (random.below(shape.num_slots()), random.below(num_experts) as u32);
            if slot % width < instance.rank_num_slots[slot / width] as usize {
                let before = std::mem::replace(&mut instance.pinned[slot], expert);
                if !instance.is_feasible() {
                    instance.pinned[slot] = before;
                }
            }
        }
        instance
    }

    fn is_feasible(&self) -> bool {
        let pinned = self.pinned.iter().filter(|&&expert| expert != FREE).count();
        let without =
            (0..self.shape.num_experts() as u32).filter(|expert| !self.pinned.contains(expert)).count();
        self.rank_num_slots.iter().sum::<u32>() as usize - pinned >= without
    }

    fn placed(&self, config: SolveConfig) -> eplb::Result<Placement> {
        let config = SolveConfig {
            rank_num_slots: Some(&self.rank_num_slots),
            pinned_experts: Some(&self.pinned),
            effort: 30,
            ..config
        };
        let loads = Loads::new(&self.loads, &[7], self.num_samples, self.shape.num_experts()).unwrap();
        solve(&config, self.shape, &loads, 1)
    }

    /// Returns the slots of the placement, after the check that each pinned slot holds its expert.
    fn kept(&self, config: SolveConfig) -> Vec<u32> {
        let placement = self.placed(config).unwrap();
        let slots = placement.layer_experts(7).unwrap();
        for (slot, &expert) in self.pinned.iter().enumerate().filter(|&(_, &expert)| expert != FREE) {
            assert_eq!(slots[slot], expert, "slot {slot} of {:?}", self.pinned);
        }
        slots.to_vec()
    }

    /// Returns the mean over samples of the most loaded rank's load over the mean.
    fn cost(&self, slots: &[u32]) -> f64 {
        let mut counts = vec![0.0; self.shape.num_experts()];
        slots.iter().filter(|&&expert| expert != FREE).for_each(|&expert| counts[expert as usize] += 1.0);
        let of_sample = |loads: &[f64]| {
            let of_rank = |rank: &[u32]| -> f64 {
                let held = rank.iter().filter(|&&expert| expert != FREE);
                held.map(|&expert| loads[expert as usize] / counts[expert as usize]).sum()
            };
            let sum: f64 = loads.iter().sum();
            let max = slots.chunks_exact(self.shape.slots_per_rank()).map(of_rank).fold(0.0, f64::max);
            if sum > 0.0 { max / sum * self.shape.num_ranks() as f64 } else { 0.0 }
        };
        self.loads.chunks_exact(self.shape.num_experts()).map(of_sample).sum::<f64>()
            / self.num_samples as f64
    }

    /// The simple way: pinned slots first. Each spare slot goes to the expert with the largest load per replica, and
    /// each other replica, heaviest first, to the least loaded rank that has room and lacks the expert.
    fn baseline(&self) -> Vec<u32> {
        let (num_experts, width) = (self.shape.num_experts(), self.shape.slots_per_rank());
        let mut sums = vec![0.0; num_experts];
        for loads in self.loads.chunks_exact(num_experts) {
            let all: f64 = loads.iter().sum();
            sums.iter_mut()
                .zip(loads)
                .for_each(|(sum, load)| *sum += if all > 0.0 { load / all } else { 0.0 });
        }
        let pins = |expert: usize| self.pinned.iter().filter(|&&pinned| pinned == expert as u32).count();
        let mut counts: Vec<usize> = (0..num_experts).map(|expert| pins(expert).max(1)).collect();
        let all = self.rank_num_slots.iter().sum::<u32>() as usize;
        while counts.iter().sum::<usize>() < all {
            let load = |&expert: &usize| sums[expert] / counts[expert] as f64;
            // Ties go to fewer replicas, then to the lower expert.
            let order = |a: &usize, b: &usize| {
                load(a).total_cmp(&load(b)).then(counts[*b].cmp(&counts[*a])).then(b.cmp(a))
            };
            let few =
                (0..num_experts).filter(|&expert| counts[expert] < self.shape.num_ranks()).max_by(order);
            let heaviest = few.or_else(|| (0..num_experts).max_by(order)).unwrap();
            counts[heaviest] += 1;
        }
        let mut slots = self.pinned.clone();
        let mut order: Vec<usize> = (0..num_experts).collect();
        let load = |expert: usize| sums[expert] / counts[expert] as f64;
        order.sort_by(|&a, &b| load(b).total_cmp(&load(a)));
        for expert in order {
            for _ in pins(expert)..counts[expert] {
                let free = |rank: usize| {
                    (rank * width..rank * width + self.rank_num_slots[rank] as usize)
                        .find(|&slot| slots[slot] == FREE)
                };
                let carried = |rank: &usize| -> f64 {
                    let held = slots[rank * width..][..width].iter().filter(|&&held| held != FREE);
                    held.map(|&held| load(held as usize)).sum()
                };
                let has = |rank: usize| slots[rank * width..][..width].contains(&(expert as u32));
                let rank = (0..self.shape.num_ranks())
                    .filter(|&rank| free(rank).is_some())
                    .min_by(|a, b| has(*a).cmp(&has(*b)).then(carried(a).total_cmp(&carried(b))));
                let slot = free(rank.unwrap()).unwrap();
                slots[slot] = expert as u32;
            }
        }
        slots
    }
}

#[test]
fn pins_hold_and_balance_is_not_worse_than_pinning_first() {
    for equal_ranks in [true, false] {
        let mut random = Random(1);
        let (mut costs, mut baselines) = (0.0, 0.0);
        for _ in 0..if cfg!(debug_assertions) { 250 } else { 1000 } {
            let instance = Instance::random(&mut random, equal_ranks);
            let cost = instance.cost(&instance.kept(SolveConfig::default()));
            let baseline = instance.cost(&instance.baseline());
            assert!(cost <= baseline * (1.0 + 1e-9), "{cost} {baseline} {:?}", instance.pinned);
            (costs, baselines) = (costs + cost, baselines + baseline);
        }
        assert!(costs < 0.97 * baselines, "{costs} {baselines}");
    }
}

#[test]
fn pins_hold_with_every_option_of_the_search() {
    let mut random = Random(2);
    for _ in 0..40 {
        let instance = Instance::random(&mut random, true);
        let search = SolveConfig::default();
        let nodes: Vec<i32> = (0..instance.shape.num_ranks()).map(|rank| rank as i32 % 2).collect();
        instance.kept(SolveConfig { quantile: Some(0.9), ..search });
        for price in [0.01, 1.0, 50.0] {
            let kept =
                instance.kept(SolveConfig { rank_to_node: Some(&nodes), off_node_price: price, ..search });
            assert_eq!(kept.len(), instance.shape.num_slots());
        }
        let best_split = instance.kept(SolveConfig { objective: Objective::BestSplit, ..search });
        // The even split may get worse by 1 %, no more.
        let limit = instance.cost(&instance.kept(search)) * 1.01;
        assert!(instance.cost(&best_split) <= limit * (1.0 + 1e-9));
    }
}

// Two ranks of two slots and three experts: each of the 256 rows of pins.
#[test]
fn each_row_of_pins_on_a_tiny_shape_holds_or_is_refused() {
    let shape = Shape::new(3, 4, 2).unwrap();
    let (mut held, mut refused) = (0, 0);
    for row in 0..4usize.pow(4) {
        let pinned: Vec<u32> = (0..4u32)
            .map(|slot| match row / 4usize.pow(slot) % 4 {
                3 => FREE,
                expert => expert as u32,
            })
            .collect();
        for loads in [vec![1.0, 2.0, 3.0], vec![9.0, 1.0, 1.0], vec![0.0; 3]] {
            let (rank_num_slots, pinned) = (vec![2, 2], pinned.clone());
            let instance = Instance { shape, rank_num_slots, loads, num_samples: 1, pinned };
            if instance.is_feasible() {
                held += 1;
                let slots = instance.kept(SolveConfig::default());
                // The best of all placements that keep the pins.
                let best = (0..81)
                    .map(|code| (0..4).map(|slot| code / 3u32.pow(slot) % 3).collect::<Vec<u32>>())
                    .filter(|slots| (0..3).all(|expert| slots.contains(&expert)))
                    .filter(|slots| slots.iter().zip(&instance.pinned).all(|(a, b)| *b == FREE || a == b))
                    .map(|slots| instance.cost(&slots))
                    .fold(f64::INFINITY, f64::min);
                assert!(instance.cost(&slots) <= best * (1.0 + 2e-3), "{slots:?} {:?}", instance.pinned);
            } else {
                refused += 1;
                let message = instance.placed(SolveConfig::default()).unwrap_err().to_string();
                assert!(message.starts_with("pinned_experts[0] leaves "), "{message}");
            }
        }
    }
    // 4^4 rows. Refused are three slots with one expert, 4 * 3, and four slots with at most two, 3 + 3 * (2^4 - 2).
    assert_eq!((held, refused), (3 * (256 - 57), 3 * 57));
}

#[test]
fn layers_may_be_pinned_differently() {
    let shape = Shape::new(4, 8, 2).unwrap();
    let loads = [8.0, 4.0, 2.0, 1.0, 1.0, 2.0, 4.0, 8.0];
    let loads = Loads::new(&loads, &[3, 5], 1, 4).unwrap();
    let pinned = [FREE, 3, FREE, FREE, FREE, FREE, FREE, 3, 0, FREE, FREE, FREE, 0, FREE, FREE, FREE];
    let config = SolveConfig { pinned_experts: Some(&pinned), ..SolveConfig::default() };
    let placement = solve(&config, shape, &loads, 1).unwrap();
    let (first, second) = (placement.layer_experts(3).unwrap(), placement.layer_experts(5).unwrap());
    assert_eq!((first[1], first[7], second[0], second[4]), (3, 3, 0, 0));
    let three = [FREE; 24];
    let config = SolveConfig { pinned_experts: Some(&three), ..config };
    assert_eq!(
        solve(&config, shape, &loads, 1).unwrap_err().to_string(),
        "pinned_experts has rows for 3 layers; 1 for all layers or 2 expected"
    );
    for policy in [Policy::Trtllm, Policy::DeepseekGlobal, Policy::DeepseekHierarchical] {
        assert_eq!(
            SolveConfig { policy, ..config }.check(shape).unwrap_err().to_string(),
            format!("policy {policy} takes no pinned slots; remove pinned_experts or use policy search")
        );
    }
    let hard = SolveConfig { off_node_price: f64::INFINITY, ..config };
    assert_eq!(
        hard.check(shape).unwrap_err().to_string(),
        "pinned slots need a finite off_node_price: a pinned expert may be off its home node"
    );
}

#[test]
fn reserved_slots_change_nothing_else_for_any_policy() {
    let mut random = Random(3);
    let loads: Vec<f64> = (0..2 * 16).map(|_| random.below(1000) as f64).collect();
    let loads = Loads::new(&loads, &[3, 5], 1, 16).unwrap();
    let (narrow, wide) = (Shape::new(16, 24, 4).unwrap(), Shape::new(16, 32, 4).unwrap());
    for policy in Policy::ALL {
        let config = SolveConfig { policy, num_groups: 4, num_nodes: 2, ..SolveConfig::default() };
        let plain = solve(&config, narrow, &loads, 1).unwrap();
        let config = SolveConfig { rank_num_slots: Some(&[6; 4]), ..config };
        let reserved = solve(&config, wide, &loads, 1).unwrap();
        assert_eq!((reserved.shape(), reserved.num_empty_slots()), (wide, 2 * 4 * 2));
        for layer in [3, 5] {
            for rank in 0..4 {
                assert_eq!(
                    reserved.rank_experts(layer, rank).unwrap(),
                    plain.rank_experts(layer, rank).unwrap(),
                    "{policy}"
                );
            }
        }
    }
}
