//! How far the groups of tokens move in each sweep: Chebyshev's steps for a layer's placement.

use super::plan::SplitPlan;

/// The most sweeps of a batch: `EPLB_SPLIT_SWEEPS` of the kernels.
pub const SWEEPS: usize = 6;

/// Fixed-point bits of [`step_sizes()`] and [`MOMENTUM`]: `EPLB_SPLIT_FRACTION` of the kernels.
pub const FRACTION: u32 = 24;

/// The share of the last change that a sweep repeats. The kernels have the same.
pub const MOMENTUM: [i32; SWEEPS] = [0, 8_440_711, 5_638_815, 4_831_865, 4_610_127, 4_549_992];

/// The step sizes where the largest eigenvalue is 1.
const STEPS: [u64; SWEEPS] = [30_504_029, 45_850_777, 40_756_421, 39_289_238, 38_886_078, 38_776_741];

/// Multiplications by the matrix.
const POWERS: usize = 16;

/// Bits of the vector's largest value.
const BITS: u32 = 24;

/// The step sizes of the sweeps. They are the same on every machine, since they are computed with whole numbers.
pub fn step_sizes(plan: &SplitPlan, num_ranks: usize) -> [i32; SWEEPS] {
    let eigenvalue = largest_eigenvalue(plan, num_ranks);
    // Iteration approaches the eigenvalue from below.
    let bound = eigenvalue + eigenvalue / 32;
    STEPS.map(|step| ((step << 16) / bound) as i32)
}

/// The largest eigenvalue of the matrix by which a sweep changes the ranks' loads, times 2^16. It is at least 1.
fn largest_eigenvalue(plan: &SplitPlan, num_ranks: usize) -> u64 {
    let start = |rank: u32| i64::from((rank + 1).wrapping_mul(2_654_435_769) >> 8) - (1 << 23);
    let mut vector: Vec<i64> = (0..num_ranks as u32).map(start).collect();
    let mut product = vec![0; num_ranks];
    for power in 0..POWERS {
        multiply(plan, &vector, &mut product);
        if power + 1 < POWERS {
            let largest = product.iter().map(|value: &i64| value.unsigned_abs()).max().unwrap_or(0);
            let bits = u64::BITS - largest.leading_zeros();
            let scaled = |value: i64| match bits.checked_sub(BITS) {
                Some(more) => value >> more,
                None => value << (BITS - bits),
            };
            vector.iter_mut().zip(&product).for_each(|(value, &new)| *value = scaled(new));
        }
    }
    let dot =
        |a: &[i64], b: &[i64]| a.iter().zip(b).map(|(&a, &b)| i128::from(a) * i128::from(b)).sum::<i128>();
    let (along, length) = (dot(&vector, &product), dot(&vector, &vector));
    let one = 1 << 16;
    if length == 0 { one } else { ((along << 16) / length).max(i128::from(one)) as u64 }
}

/// Each expert takes the mean of its ranks' values away from them.
fn multiply(plan: &SplitPlan, vector: &[i64], product: &mut [i64]) {
    product.fill(0);
    for place in 0..plan.num_split() {
        let holders = plan.holders_of(place);
        let sum: i64 = holders.iter().map(|holder| vector[holder.rank as usize]).sum();
        let mean = sum.div_euclid(holders.len() as i64);
        for holder in holders {
            let rank = holder.rank as usize;
            product[rank] += vector[rank] - mean;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tables::LayerTables;
    use crate::placement::Shape;

    fn eigenvalue(slot_experts: &[u32], num_ranks: usize) -> f64 {
        let num_experts = *slot_experts.iter().max().unwrap() as usize + 1;
        let shape = Shape::new(num_experts, slot_experts.len(), num_ranks).unwrap();
        let plan = SplitPlan::new(shape, &LayerTables::new(shape, slot_experts));
        largest_eigenvalue(&plan, num_ranks) as f64 / 65_536.0
    }

    #[test]
    fn largest_eigenvalue_is_that_of_the_matrix() {
        // One expert on two ranks: [[1/2, -1/2], [-1/2, 1/2]] has 0 and 1.
        assert!((eigenvalue(&[0, 1, 0, 2], 2) - 1.0).abs() < 1e-3);
        // Two on the same two ranks: twice that.
        assert!((eigenvalue(&[0, 1, 0, 1], 2) - 2.0).abs() < 1e-3);
        // Three ranks, an expert on each pair: 3/2 times the identity, less the mean.
        assert!((eigenvalue(&[0, 1, 1, 2, 2, 0], 3) - 1.5).abs() < 1e-3);
        // None is on several ranks.
        assert_eq!(eigenvalue(&[0, 1], 2), 1.0);
    }

    #[test]
    fn steps_are_chebyshevs_for_eigenvalues_from_a_tenth_of_the_largest() {
        // The interval [1/10, 1] has centre 11/20 and radius 9/20.
        let (centre, radius) = (0.55, 0.45);
        let mut ratio = radius / centre;
        let close = |fixed: f64, value: f64| assert!((fixed / f64::from(1 << FRACTION) - value).abs() < 1e-7);
        close(STEPS[0] as f64, 1.0 / centre);
        close(f64::from(MOMENTUM[0]), 0.0);
        for sweep in 1..SWEEPS {
            let next = 1.0 / (2.0 * centre / radius - ratio);
            close(STEPS[sweep] as f64, 2.0 * next / radius);
            close(f64::from(MOMENTUM[sweep]), next * ratio);
            ratio = next;
        }
    }
}
