//! Ranks with unequal numbers of slots: what the solver makes of them, and who refuses them.

use eplb::placement::{NO_EXPERT, Placement, Shape};
use eplb::report::score;
use eplb::solve::{Loads, Objective, Policy, SolveConfig, best_split, lower_bound_of_uneven, solve};

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

struct Instance {
    loads: Vec<f64>,
    slots_per_rank: Vec<u32>,
}

impl Instance {
    /// No more than `most` slots of a rank, and some rank with fewer than another.
    fn random(random: &mut Random, most_ranks: usize, most: usize) -> Self {
        loop {
            let num_ranks = 2 + random.below(most_ranks - 1);
            let slots_per_rank: Vec<u32> = (0..num_ranks).map(|_| 1 + random.below(most) as u32).collect();
            let all: u32 = slots_per_rank.iter().sum();
            let num_experts = 1 + random.below(all as usize);
            if slots_per_rank.iter().any(|&slots| slots != slots_per_rank[0]) {
                let loads = (0..num_experts).map(|_| (random.below(40) * random.below(40)) as f64).collect();
                return Instance { loads, slots_per_rank };
            }
        }
    }

    fn shape(&self) -> Shape {
        let most = *self.slots_per_rank.iter().max().unwrap() as usize;
        Shape::new(self.loads.len(), most * self.slots_per_rank.len(), self.slots_per_rank.len()).unwrap()
    }

    fn placed(&self, config: SolveConfig) -> eplb::Result<Placement> {
        let config = SolveConfig { slots_per_rank: Some(&self.slots_per_rank), ..config };
        let loads = Loads::new(&self.loads, &[7], 1, self.loads.len()).unwrap();
        solve(&config, self.shape(), &loads, 1)
    }

    /// What each rank holds.
    fn held(&self, placement: &Placement) -> Vec<Vec<u32>> {
        (0..self.slots_per_rank.len()).map(|rank| placement.rank_experts(7, rank).unwrap().to_vec()).collect()
    }

    fn most_loaded(&self, held: &[Vec<u32>]) -> f64 {
        let count = |expert: u32| held.iter().flatten().filter(|&&other| other == expert).count();
        let weight = |&expert: &u32| self.loads[expert as usize] / count(expert) as f64;
        held.iter().map(|rank| rank.iter().map(weight).sum()).fold(0.0, f64::max)
    }

    /// The least of all placements, by trying each.
    fn optimum(&self) -> f64 {
        let mut held: Vec<Vec<u32>> = vec![Vec::new(); self.slots_per_rank.len()];
        let mut best = f64::INFINITY;
        self.fill(&mut held, 0, &mut best);
        best
    }

    /// Fills what `rank` has left, in ascending order, since the order within a rank is no matter.
    fn fill(&self, held: &mut Vec<Vec<u32>>, rank: usize, best: &mut f64) {
        if rank == held.len() {
            let has_slot = |expert: u32| held.iter().flatten().any(|&other| other == expert);
            if (0..self.loads.len() as u32).all(has_slot) {
                *best = best.min(self.most_loaded(held));
            }
        } else if held[rank].len() == self.slots_per_rank[rank] as usize {
            self.fill(held, rank + 1, best);
        } else {
            for expert in held[rank].last().copied().unwrap_or(0)..self.loads.len() as u32 {
                held[rank].push(expert);
                self.fill(held, rank, best);
                held[rank].pop();
            }
        }
    }
}

#[test]
fn as_many_slots_on_each_rank_are_as_if_not_given() {
    let loads = [881.0, 86.0, 165.0];
    let checked = Loads::new(&loads, &[0], 1, 3).unwrap();
    let shape = Shape::new(3, 8, 4).unwrap();
    for policy in Policy::ALL {
        for off_node_price in [0.0, 1.0] {
            let without = SolveConfig { policy, off_node_price, ..SolveConfig::default() };
            let with = SolveConfig { slots_per_rank: Some(&[2; 4]), ..without };
            assert_eq!(
                solve(&with, shape, &checked, 1).unwrap(),
                solve(&without, shape, &checked, 1).unwrap(),
                "{policy}"
            );
        }
    }
}

#[test]
fn small_ones_reach_the_optimum_and_none_is_below_the_bound() {
    let (mut random, mut reached, mut all) = (Random(3), 0, 0);
    while all < 400 {
        let instance = Instance::random(&mut random, 3, 3);
        if instance.loads.len() > 5 || instance.slots_per_rank.iter().sum::<u32>() > 7 {
            continue;
        }
        let found = instance.most_loaded(&instance.held(&instance.placed(SolveConfig::default()).unwrap()));
        let best = instance.optimum();
        let num_slots = instance.slots_per_rank.iter().sum::<u32>() as usize;
        let bound = lower_bound_of_uneven(&instance.loads, num_slots, instance.slots_per_rank.len());
        assert!(bound <= best * (1.0 + 1e-12) && best <= found * (1.0 + 1e-12), "{bound} {best} {found}");
        (reached, all) = (reached + i32::from(found <= best * 1.0002), all + 1);
    }
    println!("{reached} of {all}");
    assert!(reached * 100 >= all * 95, "{reached} of {all} reach the optimum");
}

#[test]
fn figures_are_those_of_the_slots_that_there_are() {
    let mut random = Random(5);
    for case in 0..200 {
        let instance = Instance::random(&mut random, 8, 6);
        let objective = Objective::ALL[case % 2];
        let placement = instance.placed(SolveConfig { objective, ..SolveConfig::default() }).unwrap();
        let (held, shape) = (instance.held(&placement), placement.shape());
        assert_eq!(placement.slots_per_rank(), instance.slots_per_rank);
        assert!(held.iter().zip(&instance.slots_per_rank).all(|(rank, &slots)| rank.len() == slots as usize));
        let slots = placement.layer_experts(7).unwrap();
        let lacking = slots.iter().filter(|&&expert| expert == NO_EXPERT).count();
        assert_eq!(slots.len() - lacking, held.iter().map(Vec::len).sum::<usize>());
        let score = score(&placement, 7, &instance.loads, 1, instance.loads.len()).unwrap();
        let (balance, best) = (score.balance(), score.best_split());
        let most = instance.most_loaded(&held);
        assert!((balance.max - most).abs() <= 1e-9 * most, "{} {most}", balance.max);
        assert!(score.bound_gap().lower_bound <= most * (1.0 + 1e-12));
        assert!(best.max <= most * (1.0 + 1e-9));
        assert_eq!(best.max, best_split(&instance.loads, slots, shape));
        let twice =
            |rank: &Vec<u32>| (1..rank.len()).filter(|&slot| rank[..slot].contains(&rank[slot])).count();
        assert_eq!(placement.duplicates().len(), held.iter().map(twice).sum::<usize>());
        let again = Placement::uneven(shape, &instance.slots_per_rank, &[7], slots).unwrap();
        assert_eq!((again.hash(), &again), (placement.hash(), &placement));
    }
}

#[test]
fn what_does_not_fit_or_cannot_be_written_is_refused_by_rank() {
    let instance = Instance { loads: vec![4.0, 3.0, 2.0, 1.0], slots_per_rank: vec![2, 1, 3] };
    let placement = instance.placed(SolveConfig::default()).unwrap();
    assert_eq!(
        placement.to_yaml().unwrap_err().to_string(),
        "rank 0 has 2 slots and others 3: a configuration file has one number of slots for all ranks; give each rank as many"
    );
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("uneven.yaml");
    let error = placement.save(&folder).unwrap_err().to_string();
    assert!(error.contains("uneven.yaml: rank 0 has 2 slots") && !folder.exists(), "{error}");
    let refused = |config: SolveConfig| instance.placed(config).unwrap_err().to_string();
    let search = SolveConfig::default();
    for policy in [Policy::Trtllm, Policy::DeepseekGlobal] {
        assert_eq!(
            refused(SolveConfig { policy, ..search }),
            format!(
                "policy {policy} takes as many slots on each rank; slots_per_rank is for search without one"
            )
        );
    }
    assert!(refused(SolveConfig { off_node_price: 1.0, ..search }).starts_with("an off_node_price takes"));
    let shape = instance.shape();
    let message = |slots: &[u32]| {
        SolveConfig { slots_per_rank: Some(slots), ..search }.check(shape).unwrap_err().to_string()
    };
    assert_eq!(message(&[3, 3]), "2 numbers of slots for 3 ranks");
    assert_eq!(message(&[3, 0, 3]), "rank 1 has 0 slots, 1 to 3 expected");
    assert_eq!(message(&[3, 4, 3]), "rank 1 has 4 slots, 1 to 3 expected");
    assert_eq!(message(&[2, 2, 2]), "no rank has 3 slots, the most that any should have");
    let shape = Shape::new(6, 9, 3).unwrap();
    let few = SolveConfig { slots_per_rank: Some(&[3, 1, 1]), ..search }.check(shape).unwrap_err();
    assert_eq!(few.to_string(), "5 slots of all ranks cannot hold 6 experts");
    let none = NO_EXPERT;
    let placed = |slots: &[u32]| {
        let shape = Shape::new(4, 9, 3).unwrap();
        Placement::uneven(shape, &[2, 1, 3], &[7], slots).unwrap_err().to_string()
    };
    assert_eq!(
        placed(&[0, 1, 2, 2, none, none, 3, 0, 1]),
        "layer 7, rank 0, slot 2: expert 2 is in a slot that the rank, of 2 slots, lacks; -1 expected"
    );
    assert_eq!(
        placed(&[0, none, none, 2, none, none, 3, 0, 1]),
        "layer 7, rank 0, slot 1: expert -1 does not exist; experts are 0 to 3"
    );
}
