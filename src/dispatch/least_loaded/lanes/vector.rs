//! A number for each lane of a register.

use std::arch::x86_64::*;

/// The lanes of a register.
pub const LANES: usize = 8;

/// A number for each rank, or for each holder of an expert.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub struct Vector(pub [i32; LANES]);

/// Zeros.
pub const ZERO: Vector = Vector([0; LANES]);

/// The numbers of vectors, one after the other.
pub trait Flattened {
    fn as_flattened(&self) -> &[i32];
    fn as_flattened_mut(&mut self) -> &mut [i32];
}

impl Flattened for [Vector] {
    fn as_flattened(&self) -> &[i32] {
        // SAFETY: a vector is of as many numbers, without gaps.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * LANES) }
    }

    fn as_flattened_mut(&mut self) -> &mut [i32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() * LANES) }
    }
}

/// The numbers in a register.
#[inline]
#[target_feature(enable = "avx2")]
pub fn load(vector: &Vector) -> __m256i {
    // SAFETY: as many bytes, aligned.
    unsafe { _mm256_load_si256(std::ptr::from_ref(vector).cast()) }
}

/// Stores the numbers of a register.
#[inline]
#[target_feature(enable = "avx2")]
pub fn store(vector: &mut Vector, numbers: __m256i) {
    // SAFETY: as above.
    unsafe { _mm256_store_si256(std::ptr::from_mut(vector).cast(), numbers) }
}
