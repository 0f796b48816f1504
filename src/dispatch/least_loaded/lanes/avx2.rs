//! Loops over the holders of many experts, for processors with AVX2.

use std::arch::x86_64::*;

use super::vector::LANES;
use crate::dispatch::least_loaded::plan::{SPARE, SplitPlan};

const _: () = assert!(LANES <= SPARE);

/// A processor with AVX2.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The processor, if it has AVX2.
    pub fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }

    /// Runs what the compiler may turn into AVX2.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        #[inline(never)]
        #[target_feature(enable = "avx2")]
        fn run<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        // SAFETY: the processor has it.
        unsafe { run(work) }
    }

    /// Gives all holders of each expert on three ranks or more as many units, or some one more. `totals` are those of experts by
    /// place. Up to seven units after those of an expert are overwritten.
    pub fn split_rings(self, plan: &SplitPlan, totals: &[u32], mix: u32, units: &mut [i32]) {
        // SAFETY: as above.
        unsafe { split_rings(plan, totals, mix, units) }
    }
}

#[target_feature(enable = "avx2")]
fn split_rings(plan: &SplitPlan, totals: &[u32], mix: u32, units: &mut [i32]) {
    assert!(plan.holders.len() + LANES - 1 <= units.len());
    let one_by_one = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let eight = _mm256_set1_epi32(LANES as i32);
    for ((&ring, &total), &start) in plan.rings.iter().zip(totals).zip(&plan.holder_start) {
        let ((each, rest), (_, first)) = (ring.divide(total), ring.divide(mix));
        let [each, rest, first, count] =
            [each, rest, first, ring.count].map(|number| _mm256_set1_epi32(number as i32));
        let mut numbers = _mm256_sub_epi32(one_by_one, first);
        for x in (0..ring.count as usize).step_by(LANES) {
            // Counted from the first on. Below 0 is more than any number without a sign.
            let from_first = _mm256_min_epu32(numbers, _mm256_add_epi32(numbers, count));
            let split = _mm256_sub_epi32(each, _mm256_cmpgt_epi32(rest, from_first));
            // SAFETY: one of its holders is there, and as many units as after the last holder.
            unsafe { _mm256_storeu_si256(units.as_mut_ptr().add(start as usize + x).cast(), split) };
            numbers = _mm256_add_epi32(numbers, eight);
        }
    }
}
