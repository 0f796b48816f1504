//! Water-filling, expert after expert: the rule that least loaded is compared with.

use eplb::placement::Shape;

/// The most sweeps over all experts.
const SWEEPS: usize = 4;

/// The load of each rank if the tokens of each expert on several ranks, fewest ranks first, raise the lowest of them to a common
/// height. `ranks` are those of each expert, and `totals` its tokens.
pub fn rank_loads(shape: Shape, ranks: &[Vec<usize>], totals: &[u64]) -> Vec<u64> {
    let mut loads = vec![0; shape.num_ranks()];
    for (ranks, total) in ranks.iter().zip(totals).filter(|(ranks, _)| ranks.len() == 1) {
        loads[ranks[0]] += total;
    }
    let mut order: Vec<usize> = (0..ranks.len()).filter(|&expert| ranks[expert].len() > 1).collect();
    order.sort_by_key(|&expert| (ranks[expert].len(), expert));
    let mut quotas: Vec<Vec<u64>> = order.iter().map(|&expert| vec![0; ranks[expert].len()]).collect();
    for _ in 0..SWEEPS {
        let mut changed = false;
        for (quotas, &expert) in quotas.iter_mut().zip(&order) {
            let ranks = &ranks[expert];
            ranks.iter().zip(&*quotas).for_each(|(&rank, quota)| loads[rank] -= quota);
            let levels: Vec<u64> = ranks.iter().map(|&rank| loads[rank]).collect();
            let filled = fill(totals[expert], &levels);
            changed |= *quotas != filled;
            *quotas = filled;
            ranks.iter().zip(&*quotas).for_each(|(&rank, quota)| loads[rank] += quota);
        }
        if !changed {
            break;
        }
    }
    loads
}

/// What each column gets of an amount.
fn fill(amount: u64, levels: &[u64]) -> Vec<u64> {
    let mut sorted = levels.to_vec();
    sorted.sort_unstable();
    let (mut sum, mut height) = (amount, 0);
    for (count, &level) in (1..).zip(&sorted) {
        sum += level;
        height = sum / count;
        if sorted.get(count as usize).is_none_or(|&next| height < next) {
            break;
        }
    }
    let mut filled: Vec<u64> = levels.iter().map(|level| height.saturating_sub(*level)).collect();
    let mut rest = amount - filled.iter().sum::<u64>();
    let first = (amount % levels.len() as u64) as usize;
    for column in (first..levels.len()).chain(0..first).filter(|&column| levels[column] <= height) {
        let one = rest.min(1);
        filled[column] += one;
        rest -= one;
    }
    filled
}
