//! Ranks with unequal numbers of slots: how the search places them, and which calls reject them.

use eplb::placement::{NO_EXPERT, Placement, Shape};
use eplb::report::score;
use eplb::solve::{Loads, Objective, Policy, SolveConfig, best_split, lower_bound_of_unequal_ranks, solve};

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

struct Instance {
    loads: Vec<f64>,
    rank_num_slots: Vec<u32>,
}

impl Instance {
    /// A rank has at most `most` slots, and not all ranks have equal numbers.
    fn random(random: &mut Random, most_ranks: usize, most: usize) -> Self {
        loop {
            let num_ranks = 2 + random.below(most_ranks - 1);
            let rank_num_slots: Vec<u32> = (0..num_ranks).map(|_| 1 + random.below(most) as u32).collect();
            let all: u32 = rank_num_slots.iter().sum();
            let num_experts = 1 + random.below(all as usize);
            if rank_num_slots.iter().any(|&slots| slots != rank_num_slots[0]) {
                let loads = (0..num_experts).map(|_| (random.below(40) * random.below(40)) as f64).collect();
                return Instance { loads, rank_num_slots };
            }
        }
    }

    fn shape(&self) -> Shape {
        let most = *self.rank_num_slots.iter().max().unwrap() as usize;
        Shape::new(self.loads.len(), most * self.rank_num_slots.len(), self.rank_num_slots.len()).unwrap()
    }

    fn placed(&self, config: SolveConfig) -> eplb::Result<Placement> {
        let config = SolveConfig { rank_num_slots: Some(&self.rank_num_slots), ..config };
        let loads = Loads::new(&self.loads, &[7], 1, self.loads.len()).unwrap();
        solve(&config, self.shape(), &loads, 1)
    }

    /// Returns the experts of each rank.
    fn held(&self, placement: &Placement) -> Vec<Vec<u32>> {
        (0..self.rank_num_slots.len()).map(|rank| placement.rank_experts(7, rank).unwrap().to_vec()).collect()
    }

    fn most_loaded(&self, held: &[Vec<u32>]) -> f64 {
        let count = |expert: u32| held.iter().flatten().filter(|&&other| other == expert).count();
        let replica_load = |&expert: &u32| self.loads[expert as usize] / count(expert) as f64;
        held.iter().map(|rank| rank.iter().map(replica_load).sum()).fold(0.0, f64::max)
    }

    /// Returns the lowest maximum rank load of all placements, by trying each.
    fn optimum(&self) -> f64 {
        let mut held: Vec<Vec<u32>> = vec![Vec::new(); self.rank_num_slots.len()];
        let mut best = f64::INFINITY;
        self.fill(&mut held, 0, &mut best);
        best
    }

    /// Fills the free slots of `rank` in ascending order. The order within a rank does not matter.
    fn fill(&self, held: &mut Vec<Vec<u32>>, rank: usize, best: &mut f64) {
        if rank == held.len() {
            let has_slot = |expert: u32| held.iter().flatten().any(|&other| other == expert);
            if (0..self.loads.len() as u32).all(has_slot) {
                *best = best.min(self.most_loaded(held));
            }
        } else if held[rank].len() == self.rank_num_slots[rank] as usize {
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
fn equal_rank_num_slots_change_nothing() {
    let loads = [881.0, 86.0, 165.0];
    let checked = Loads::new(&loads, &[0], 1, 3).unwrap();
    let shape = Shape::new(3, 8, 4).unwrap();
    for policy in Policy::ALL {
        for off_node_price in [0.0, 1.0] {
            let without = SolveConfig { policy, off_node_price, ..SolveConfig::default() };
            let with = SolveConfig { rank_num_slots: Some(&[2; 4]), ..without };
            assert_eq!(
                solve(&with, shape, &checked, 1).unwrap(),
                solve(&without, shape, &checked, 1).unwrap(),
                "{policy}"
            );
        }
    }
}

#[test]
fn search_reaches_the_optimum_of_small_instances() {
    let (mut random, mut reached, mut all) = (Random(3), 0, 0);
    while all < 400 {
        let instance = Instance::random(&mut random, 3, 3);
        if instance.loads.len() > 5 || instance.rank_num_slots.iter().sum::<u32>() > 7 {
            continue;
        }
        let found = instance.most_loaded(&instance.held(&instance.placed(SolveConfig::default()).unwrap()));
        let best = instance.optimum();
        let num_slots = instance.rank_num_slots.iter().sum::<u32>() as usize;
        let bound = lower_bound_of_unequal_ranks(&instance.loads, num_slots, instance.rank_num_slots.len());
        assert!(bound <= best * (1.0 + 1e-12) && best <= found * (1.0 + 1e-12), "{bound} {best} {found}");
        (reached, all) = (reached + i32::from(found <= best * 1.0002), all + 1);
    }
    println!("{reached} of {all}");
    assert!(reached * 100 >= all * 95, "{reached} of {all} reach the optimum");
}

#[test]
fn scores_count_only_existing_slots() {
    let mut random = Random(5);
    for case in 0..200 {
        let instance = Instance::random(&mut random, 8, 6);
        let objective = Objective::ALL[case % 2];
        let placement = instance.placed(SolveConfig { objective, ..SolveConfig::default() }).unwrap();
        let (held, shape) = (instance.held(&placement), placement.shape());
        assert_eq!(placement.rank_num_slots(), instance.rank_num_slots);
        assert!(held.iter().zip(&instance.rank_num_slots).all(|(rank, &slots)| rank.len() == slots as usize));
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
        let repeated =
            |rank: &Vec<u32>| (1..rank.len()).filter(|&slot| rank[..slot].contains(&rank[slot])).count();
        assert_eq!(placement.duplicates().len(), held.iter().map(repeated).sum::<usize>());
        let again = Placement::with_rank_num_slots(shape, &instance.rank_num_slots, &[7], slots).unwrap();
        assert_eq!((again.hash(), &again), (placement.hash(), &placement));
    }
}

#[test]
fn unequal_ranks_are_rejected_where_unsupported() {
    let instance = Instance { loads: vec![4.0, 3.0, 2.0, 1.0], rank_num_slots: vec![2, 1, 3] };
    let placement = instance.placed(SolveConfig::default()).unwrap();
    assert_eq!(
        placement.to_yaml().unwrap_err().to_string(),
        "layer 7, rank 0, slot 2 is empty: TensorRT-LLM's configuration file cannot hold empty slots; save the \
         placement as *.eplb.yaml"
    );
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("uneven.yaml");
    let error = placement.save(&path).unwrap_err().to_string();
    assert!(error.contains("uneven.yaml: layer 7, rank 0, slot 2 is empty") && !path.exists(), "{error}");
    let refused = |config: SolveConfig| instance.placed(config).unwrap_err().to_string();
    let search = SolveConfig::default();
    for policy in [Policy::Trtllm, Policy::DeepseekGlobal] {
        assert_eq!(
            refused(SolveConfig { policy, ..search }),
            format!(
                "policy {policy} needs equal numbers of slots on all ranks; unequal rank_num_slots need \
                 policy search and off_node_price 0"
            )
        );
    }
    assert!(refused(SolveConfig { off_node_price: 1.0, ..search }).starts_with("off_node_price needs"));
    let shape = instance.shape();
    let message = |slots: &[u32]| {
        SolveConfig { rank_num_slots: Some(slots), ..search }.check(shape).unwrap_err().to_string()
    };
    assert_eq!(message(&[3, 3]), "rank_num_slots has 2 values, there are 3 ranks");
    assert_eq!(message(&[3, 0, 3]), "rank 1 has 0 slots, 1 to 3 expected");
    assert_eq!(message(&[3, 4, 3]), "rank 1 has 4 slots, 1 to 3 expected");
    let shape = Shape::new(6, 9, 3).unwrap();
    let few = SolveConfig { rank_num_slots: Some(&[3, 1, 1]), ..search }.check(shape).unwrap_err();
    assert_eq!(few.to_string(), "the ranks have 5 slots together, too few for 6 experts");
    let none = NO_EXPERT;
    let placed = |slots: &[u32]| {
        let shape = Shape::new(4, 9, 3).unwrap();
        Placement::with_rank_num_slots(shape, &[2, 1, 3], &[7], slots).unwrap_err().to_string()
    };
    assert_eq!(
        placed(&[0, 1, 2, 2, none, none, 3, 0, 1]),
        "layer 7, rank 0, slot 2: expert 2 is in a slot beyond the 2 slots of the rank; -1 expected"
    );
    assert_eq!(
        placed(&[0, none, none, 2, none, none, 3, 0, 1]),
        "layer 7, rank 0, slot 1 is empty (-1); set allow_empty_slots, or give it one of the experts 0 to 3"
    );
}
