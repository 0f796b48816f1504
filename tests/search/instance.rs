//! Instances to place, the cost of a placement, and random instances.

use std::fmt;

use eplb::placement::{Placement, Shape};
use eplb::solve::{Loads, Policy, SolveConfig, lower_bound, solve};

/// The order of summation may change a sum by this part.
pub const ROUNDING: f64 = 1e-12;

/// One layer to place.
pub struct Instance {
    pub shape: Shape,
    /// `[samples][experts]`
    pub samples: Vec<f64>,
}

impl Instance {
    pub fn new(num_experts: usize, num_slots: usize, num_ranks: usize, samples: Vec<f64>) -> Self {
        assert_eq!(samples.len() % num_experts, 0);
        Instance { shape: Shape::new(num_experts, num_slots, num_ranks).unwrap(), samples }
    }

    pub fn samples(&self) -> impl Iterator<Item = &[f64]> {
        self.samples.chunks_exact(self.shape.num_experts())
    }

    /// Returns the expert of each slot, and checks that the placement is valid.
    pub fn place(&self, policy: Policy) -> Vec<u32> {
        let num_samples = self.samples().count();
        let loads = Loads::new(&self.samples, &[0], num_samples, self.shape.num_experts()).unwrap();
        let placement =
            solve(&SolveConfig { policy, ..SolveConfig::default() }, self.shape, &loads, 1).unwrap();
        let slots = placement.layer_experts(0).unwrap().to_vec();
        Placement::new(self.shape, &[0], &slots).unwrap();
        slots
    }

    /// Returns what the search minimises: max / mean over ranks, averaged over samples. A sample without load
    /// counts as 0.
    pub fn cost(&self, slots: &[u32]) -> f64 {
        self.mean_over_means(|loads| {
            let mut counts = vec![0.0; loads.len()];
            slots.iter().for_each(|&expert| counts[expert as usize] += 1.0);
            let load_of = |&expert: &u32| loads[expert as usize] / counts[expert as usize];
            let of_rank = |rank: &[u32]| rank.iter().map(load_of).sum();
            slots.chunks_exact(self.shape.slots_per_rank()).map(of_rank).fold(0.0, f64::max)
        })
    }

    /// Returns the lower bound of the cost.
    pub fn bound(&self) -> f64 {
        self.mean_over_means(|loads| lower_bound(loads, self.shape))
    }

    /// Returns the lower cost of the two greedies.
    pub fn greedy(&self) -> f64 {
        [Policy::Trtllm, Policy::DeepseekGlobal]
            .map(|policy| self.cost(&self.place(policy)))
            .into_iter()
            .fold(f64::INFINITY, f64::min)
    }

    fn mean_over_means(&self, max: impl Fn(&[f64]) -> f64) -> f64 {
        let of_sample = |loads: &[f64]| {
            let mean = loads.iter().sum::<f64>() / self.shape.num_ranks() as f64;
            if mean > 0.0 { max(loads) / mean } else { 0.0 }
        };
        self.samples().map(of_sample).sum::<f64>() / self.samples().count() as f64
    }

    /// Returns the number of slots that repeat an expert of their rank. Does not count those that are needed
    /// because a rank has more slots than there are experts.
    pub fn duplicates(&self, slots: &[u32]) -> usize {
        let width = self.shape.slots_per_rank();
        let repeated = |rank: &[u32]| (1..width).filter(|&slot| rank[..slot].contains(&rank[slot])).count();
        let all: usize = slots.chunks_exact(width).map(repeated).sum();
        all - self.shape.num_ranks() * width.saturating_sub(self.shape.num_experts())
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (experts, ranks, width) =
            (self.shape.num_experts(), self.shape.num_ranks(), self.shape.slots_per_rank());
        write!(f, "{experts} experts on {ranks} ranks x {width} slots, ")?;
        f.debug_list().entries(self.samples()).finish()
    }
}

/// SplitMix64, for repeatable numbers.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Returns an instance with up to 64 experts, 32 ranks and 12 slots a rank. Small ones are as frequent as
    /// large ones.
    pub fn instance(&mut self, num_samples: usize) -> Instance {
        let up_to = |random: &mut Random, limits: [usize; 3]| {
            let limit = limits[random.below(3)];
            1 + random.below(limit)
        };
        let num_ranks = up_to(self, [4, 12, 32]);
        let num_slots = num_ranks * up_to(self, [2, 5, 12]);
        let num_experts = up_to(self, [8, 64, 64]).min(num_slots);
        let samples = (0..num_samples).flat_map(|_| self.loads(num_experts, num_ranks)).collect();
        Instance::new(num_experts, num_slots, num_ranks, samples)
    }

    /// Returns the loads of one sample, of a random kind, in random order.
    pub fn loads(&mut self, num_experts: usize, num_ranks: usize) -> Vec<f64> {
        let mut loads: Vec<f64> = match self.below(10) {
            0 => (0..num_experts).map(|_| self.below(1000) as f64).collect(),
            1 => (0..num_experts).map(|_| self.below(3) as f64).collect(),
            2 => vec![7.0; num_experts],
            3 => vec![0.0; num_experts],
            // A single hot expert; the others have load 1 or none.
            4 => {
                let other = self.below(2) as f64;
                (0..num_experts).map(|expert| if expert == 0 { 100.0 } else { other }).collect()
            }
            5 | 6 => {
                let exponent = 0.3 + self.below(15) as f64 / 10.0;
                (1..=num_experts).map(|rank| (1e6 / (rank as f64).powf(exponent)).round()).collect()
            }
            // Each is heavier than all lighter ones together.
            7 => (0..num_experts).map(|expert| 0.5f64.powi(expert as i32)).collect(),
            // No two fit on a rank: each is just above half of the mean rank load.
            8 => (0..num_experts).map(|_| 50.0 + self.below(3) as f64).collect(),
            // Graham's worst case of the heaviest-first greedy, 4/3 of the optimum: 2m - 1, 2m - 1, ..., m +
            // 1, m + 1, m, m, m.
            _ => {
                let of_graham = |job: usize| match job {
                    job if job < 2 * num_ranks => (2 * num_ranks - 1 - job / 2) as f64,
                    job if job == 2 * num_ranks => num_ranks as f64,
                    _ => 0.0,
                };
                (0..num_experts).map(of_graham).collect()
            }
        };
        (1..num_experts).for_each(|expert| loads.swap(expert, self.below(expert + 1)));
        loads
    }
}
