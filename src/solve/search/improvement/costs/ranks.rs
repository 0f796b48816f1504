//! The loads and costs of ranks.

use super::LayerCosts;
use crate::solve::search::lanes::{Kernel, LANES, Lanes, Vector};

/// Computes the loads and costs of ranks, and what each of their slots would gain or lose.
pub(super) struct UpdateRanks<'c> {
    pub costs: &'c mut LayerCosts,
    pub ranks: &'c [usize],
}

impl Kernel for UpdateRanks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector, const SQUARINGS: usize>(self) {
        let UpdateRanks { costs, ranks } = self;
        let (row, num_cells) = (costs.row, costs.experts.len());
        let power = |load: f32| (0..SQUARINGS).fold(load, |power, _| power * power);
        for &rank in ranks {
            let mut cost = 0.0;
            for sample in 0..costs.num_samples {
                let replica_loads = &costs.replica_loads[sample * num_cells + rank * row..][..row];
                let mut sums = V::zero();
                for block in replica_loads.as_chunks().0 {
                    sums = sums.add(V::load(&Lanes(*block)));
                }
                let load = sums.sum();
                costs.rank_loads[sample * costs.rank_lanes + rank] = load;
                cost += power(load);
            }
            costs.costs[rank] = cost;
            for block in 0..costs.num_slots[rank].div_ceil(LANES) {
                let [mut removed, mut thinner, mut thicker, mut without] = [V::zero(); 4];
                let at = rank * row + block * LANES..rank * row + (block + 1) * LANES;
                let (thin, thick) = (V::of(&costs.thin[at.clone()]), V::of(&costs.thick[at.clone()]));
                for sample in 0..costs.num_samples {
                    let rank_load = V::splat(costs.rank_loads[sample * costs.rank_lanes + rank]);
                    let load = V::of(&costs.replica_loads[sample * num_cells..][at.clone()]);
                    without = rank_load.sub(load);
                    removed = removed.add(without.power::<SQUARINGS>());
                    thinner = thinner.add(rank_load.sub(load.mul(thin)).power::<SQUARINGS>());
                    thicker = thicker.add(rank_load.add(load.mul(thick)).power::<SQUARINGS>());
                }
                let cost = V::splat(cost);
                let store = |numbers: &mut [f32], of_block: V| {
                    let mut lanes = Lanes::ZERO;
                    of_block.store(&mut lanes);
                    numbers[at.clone()].copy_from_slice(&lanes.0);
                };
                store(&mut costs.removed, cost.sub(removed));
                store(&mut costs.without, without);
                store(&mut costs.rank_costs, cost);
                // That of experts with several replicas follows.
                store(&mut costs.gained, cost.sub(thinner));
                store(&mut costs.thinner, cost.sub(thinner));
                store(&mut costs.thicker, thicker.sub(cost));
            }
        }
    }
}
