//! Numbers of several samples, slots or ranks side by side, and kernels over them in the widest vectors that the processor has.
//!
//! A kernel is compiled once for each kind of processor, from the same operations in the same order. None of
//! them is fused or reordered, so every processor returns the same bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Numbers in one vector.
pub(super) const LANES: usize = 16;

/// A number for each of up to 16 samples, slots or ranks.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Lanes(pub [f32; LANES]);

impl Lanes {
    pub const ZERO: Lanes = Lanes([0.0; LANES]);
}

/// 16 numbers in registers. Every kind computes the same bits.
pub(super) trait Vector: Copy {
    fn load(lanes: &Lanes) -> Self;
    fn store(self, lanes: &mut Lanes);
    fn splat(number: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// Adds lane i and i + 8, then i + 4, i + 2 and i + 1.
    fn sum(self) -> f32;
    /// Returns the largest number.
    fn most(self) -> f32;
    /// One bit for each lane with a number above `bound`, the first lane's lowest.
    fn above(self, bound: f32) -> u16;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Loads 16 numbers.
    #[inline(always)]
    fn of(numbers: &[f32]) -> Self {
        let mut lanes = Lanes::ZERO;
        lanes.0.copy_from_slice(numbers);
        Self::load(&lanes)
    }

    /// Returns the power 2^SQUARINGS of each lane.
    #[inline(always)]
    fn power<const SQUARINGS: usize>(self) -> Self {
        let mut power = self;
        for _ in 0..SQUARINGS {
            power = power.mul(power);
        }
        power
    }
}

/// Returns the dot product.
#[inline(always)]
pub(super) fn dot<V: Vector>(one: &[Lanes], other: &[Lanes]) -> f32 {
    let mut sum = V::zero();
    for (one, other) in one.iter().zip(other) {
        sum = sum.add(V::load(one).mul(V::load(other)));
    }
    sum.sum()
}

/// Returns the largest number of whole vectors.
#[inline(always)]
pub(super) fn most_of<V: Vector>(numbers: &[f32]) -> f32 {
    // Four chains of comparisons at once.
    let (fours, rest) = numbers.as_chunks::<{ 4 * LANES }>();
    let mut most = [V::splat(f32::NEG_INFINITY); 4];
    for four in fours {
        for (most, block) in most.iter_mut().zip(four.as_chunks().0) {
            *most = most.max(V::load(&Lanes(*block)));
        }
    }
    let [one, two, three, four] = most;
    let most = one.max(two).max(three.max(four));
    rest.as_chunks().0.iter().fold(most, |most, block| most.max(V::load(&Lanes(*block)))).most()
}

/// Registers where the compiler chooses them.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[derive(Clone, Copy)]
struct Array([f32; LANES]);

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Array {
    #[inline(always)]
    fn with(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        Array(std::array::from_fn(|lane| operation(self.0[lane], other.0[lane])))
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
impl Vector for Array {
    #[inline(always)]
    fn load(lanes: &Lanes) -> Self {
        Array(lanes.0)
    }

    #[inline(always)]
    fn store(self, lanes: &mut Lanes) {
        lanes.0 = self.0;
    }

    #[inline(always)]
    fn splat(number: f32) -> Self {
        Array([number; LANES])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.with(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut sums = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
            }
            half /= 2;
        }
        sums[0]
    }

    #[inline(always)]
    fn most(self) -> f32 {
        self.0.into_iter().reduce(|a, b| if a > b { a } else { b }).unwrap_or(f32::NEG_INFINITY)
    }

    #[inline(always)]
    fn above(self, bound: f32) -> u16 {
        self.0.iter().rev().fold(0, |bits, &number| bits << 1 | u16::from(number > bound))
    }
}

/// Implements [`Vector`] with registers of one width.
#[cfg(target_arch = "x86_64")]
macro_rules! registers {
    (@operations $count:literal; $($name:ident $intrinsic:ident),*) => {
        $(
            #[inline(always)]
            fn $name(mut self, other: Self) -> Self {
                for part in 0..$count {
                    // SAFETY: as above.
                    self.0[part] = unsafe { $intrinsic(self.0[part], other.0[part]) };
                }
                self
            }
        )*
    };
    ($name:ident, $register:ty, $count:literal, $splat:ident, $add:ident, $sub:ident, $mul:ident, $min:ident, $max:ident,
     $sum:expr, $most:expr, $above:expr) => {
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name([$register; $count]);

        // SAFETY (all blocks): `Vectors::run` uses these registers only where the processor has them. They
        // have the size of `Lanes`, and all bits are valid.
        impl Vector for $name {
            #[inline(always)]
            fn load(lanes: &Lanes) -> Self {
                // SAFETY: as above.
                unsafe { std::mem::transmute::<Lanes, Self>(*lanes) }
            }

            #[inline(always)]
            fn store(self, lanes: &mut Lanes) {
                // SAFETY: as above.
                *lanes = unsafe { std::mem::transmute::<Self, Lanes>(self) }
            }

            #[inline(always)]
            fn splat(number: f32) -> Self {
                // SAFETY: as above.
                $name([unsafe { $splat(number) }; $count])
            }

            registers!(@operations $count; add $add, sub $sub, mul $mul, min $min, max $max);

            #[inline(always)]
            fn sum(self) -> f32 {
                // SAFETY: as above.
                unsafe { $sum(self.0) }
            }

            #[inline(always)]
            fn most(self) -> f32 {
                // SAFETY: as above.
                unsafe { $most(self.0) }
            }

            #[inline(always)]
            fn above(self, bound: f32) -> u16 {
                // SAFETY: as above.
                let bits = |register: $register| unsafe { $above(register, $splat(bound)) };
                self.0.into_iter().rev().fold(0, |above, register| {
                    // A single register has all lanes.
                    above.unbounded_shl((LANES / $count) as u32) | bits(register)
                })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
registers!(
    Sse,
    __m128,
    4,
    _mm_set1_ps,
    _mm_add_ps,
    _mm_sub_ps,
    _mm_mul_ps,
    _mm_min_ps,
    _mm_max_ps,
    |[a, b, c, d]: [__m128; 4]| { sum_of_four(_mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d))) },
    |[a, b, c, d]: [__m128; 4]| { most_of_four(_mm_max_ps(_mm_max_ps(a, c), _mm_max_ps(b, d))) },
    |numbers, bound| _mm_movemask_ps(_mm_cmpgt_ps(numbers, bound)) as u16
);

#[cfg(target_arch = "x86_64")]
registers!(
    Avx2,
    __m256,
    2,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_min_ps,
    _mm256_max_ps,
    |[a, b]: [__m256; 2]| sum_of_eight(_mm256_add_ps(a, b)),
    |[a, b]: [__m256; 2]| most_of_eight(_mm256_max_ps(a, b)),
    |numbers, bound| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(numbers, bound)) as u16
);

#[cfg(target_arch = "x86_64")]
registers!(
    Avx512,
    __m512,
    1,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_min_ps,
    _mm512_max_ps,
    |[a]: [__m512; 1]| sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(a), high_half(a))),
    |[a]: [__m512; 1]| most_of_eight(_mm256_max_ps(_mm512_castps512_ps256(a), high_half(a))),
    |numbers, bound| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(numbers, bound)
);

/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn high_half(numbers: __m512) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(numbers))) }
}

/// # Safety
/// The processor has AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_of_eight(numbers: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { sum_of_four(_mm_add_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps::<1>(numbers))) }
}

/// # Safety
/// The processor has SSE, as every x86-64 processor does.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_of_four(numbers: __m128) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let two = _mm_add_ps(numbers, _mm_movehl_ps(numbers, numbers));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// # Safety
/// The processor has AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn most_of_eight(numbers: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { most_of_four(_mm_max_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps::<1>(numbers))) }
}

/// # Safety
/// The processor has SSE, as every x86-64 processor does.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn most_of_four(numbers: __m128) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let two = _mm_max_ps(numbers, _mm_movehl_ps(numbers, numbers));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// A computation over lanes with the exponent 2^SQUARINGS. `run` and all that it calls in a loop must be
/// `#[inline(always)]`.
pub(super) trait Kernel {
    type Output;
    fn run<V: Vector, const SQUARINGS: usize>(self) -> Self::Output;
}

/// What the processor can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Vectors {
    #[default]
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The names of the kinds that this processor has, for EPLB_TEST_VECTORS.
#[cfg(test)]
pub(crate) fn names_of_vectors() -> Vec<String> {
    ALL_VECTORS.iter().filter(|vectors| vectors.is_present()).map(|vectors| format!("{vectors:?}")).collect()
}

/// Every kind of this architecture.
#[cfg(test)]
pub(super) const ALL_VECTORS: &[Vectors] = &[
    Vectors::Baseline,
    #[cfg(target_arch = "x86_64")]
    Vectors::Avx2,
    #[cfg(target_arch = "x86_64")]
    Vectors::Avx512,
];

impl Vectors {
    /// Returns the widest kind of this processor.
    pub fn detect() -> Vectors {
        #[cfg(test)]
        if let Some(vectors) = Vectors::of_test() {
            return vectors;
        }
        #[cfg(target_arch = "x86_64")]
        for vectors in [Vectors::Avx512, Vectors::Avx2] {
            if vectors.is_present() {
                return vectors;
            }
        }
        Vectors::Baseline
    }

    /// Returns the kind that EPLB_TEST_VECTORS names, for tests that compare processes.
    #[cfg(test)]
    fn of_test() -> Option<Vectors> {
        let name = std::env::var("EPLB_TEST_VECTORS").ok()?;
        let named = |vectors: &&Vectors| format!("{vectors:?}") == name;
        let vectors = ALL_VECTORS.iter().find(named).copied().expect("EPLB_TEST_VECTORS names a kind");
        assert!(vectors.is_present(), "this processor has no {name}");
        Some(vectors)
    }

    /// Returns whether this processor has the kind.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub fn is_present(self) -> bool {
        match self {
            Vectors::Baseline => true,
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => is_x86_feature_detected!("avx512f"),
        }
    }

    /// Runs a kernel with the exponent 2^squarings: 8, 16 or 64.
    #[inline]
    pub fn run<K: Kernel>(self, squarings: u32, kernel: K) -> K::Output {
        match self {
            #[cfg(not(target_arch = "x86_64"))]
            Vectors::Baseline => with_exponent::<K, Array>(squarings, kernel),
            #[cfg(target_arch = "x86_64")]
            Vectors::Baseline => with_exponent::<K, Sse>(squarings, kernel),
            // SAFETY: `detect` found that the processor has these instructions.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { with_avx2(squarings, kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { with_avx512(squarings, kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<K: Kernel>(squarings: u32, kernel: K) -> K::Output {
    with_exponent::<K, Avx2>(squarings, kernel)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512<K: Kernel>(squarings: u32, kernel: K) -> K::Output {
    with_exponent::<K, Avx512>(squarings, kernel)
}

#[inline(always)]
fn with_exponent<K: Kernel, V: Vector>(squarings: u32, kernel: K) -> K::Output {
    match squarings {
        3 => kernel.run::<V, 3>(),
        4 => kernel.run::<V, 4>(),
        _ => kernel.run::<V, 6>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of powers, sensitive to the order of its operations.
    struct Chain<'a>(&'a [Lanes]);

    impl Kernel for Chain<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<V: Vector, const SQUARINGS: usize>(self) -> Vec<u32> {
            let mut sum = V::zero();
            let mut bits = Vec::new();
            for pair in self.0.windows(2) {
                let (one, other) = (V::load(&pair[0]), V::load(&pair[1]));
                sum = sum
                    .mul(V::splat(0.7))
                    .add(one.sub(other).mul(one).power::<SQUARINGS>())
                    .max(one.min(other));
                let mut stored = Lanes::ZERO;
                sum.store(&mut stored);
                bits.extend(stored.0.map(f32::to_bits));
                bits.push(sum.sum().to_bits());
                bits.push(sum.above(stored.0[3]).into());
                bits.push(dot::<V>(pair, &self.0[..2]).to_bits());
            }
            bits
        }
    }

    #[test]
    fn every_kind_of_vector_computes_the_same_bits() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 * 2.0
        };
        let lanes: Vec<Lanes> = (0..200).map(|_| Lanes(std::array::from_fn(|_| random()))).collect();
        for squarings in [3, 4, 6] {
            let expected = with_exponent::<_, Array>(squarings, Chain(&lanes));
            assert!(expected.iter().any(|&bits| f32::from_bits(bits).is_normal()));
            assert_eq!(Vectors::Baseline.run(squarings, Chain(&lanes)), expected);
            #[cfg(target_arch = "x86_64")]
            for kind in [Vectors::Avx2, Vectors::Avx512] {
                if kind.is_present() {
                    assert_eq!(kind.run(squarings, Chain(&lanes)), expected, "{kind:?}");
                }
            }
        }
    }
}
