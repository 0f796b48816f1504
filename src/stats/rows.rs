//! The rows of a recording: which iterations of a range are counted, and which of those are added up.

use super::IterationRange;
use crate::error::{Error, Result};

/// Of a range, every `stride`-th iteration is counted, and a row is the sum of `bucket` of those. The last row may have fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    bucket: u64,
    stride: u64,
}

impl Default for Rows {
    fn default() -> Self {
        Rows::ITERATIONS
    }
}

impl Rows {
    /// Each iteration is a row.
    pub const ITERATIONS: Rows = Rows { bucket: 1, stride: 1 };

    /// The rows of `bucket` iterations each, of every `stride`-th iteration. Fails where either is 0 or a row is too long.
    pub fn new(bucket: u64, stride: u64) -> Result<Self> {
        let refuse = |what: &str| {
            Err(Error::InvalidArgument(format!("iter_bucket is {bucket} and iter_stride {stride}; {what}")))
        };
        match bucket.checked_mul(stride) {
            Some(0) => refuse("at least 1 expected of each"),
            Some(step) if step <= i64::MAX as u64 => Ok(Rows { bucket, stride }),
            _ => refuse("their product must be below 2^63"),
        }
    }

    /// Iterations that a row adds up.
    pub fn bucket(&self) -> u64 {
        self.bucket
    }

    /// Of so many iterations one is counted.
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// Whether each iteration is a row, as in TensorRT-LLM's dumps.
    pub fn are_iterations(&self) -> bool {
        *self == Rows::ITERATIONS
    }

    /// The rows of `range`.
    pub fn count(&self, range: IterationRange) -> u64 {
        range.len().div_ceil(self.stride).div_ceil(self.bucket)
    }

    /// The row of an iteration of `range`. `None` for iterations that are not counted.
    pub fn row_of(&self, range: IterationRange, iteration: u64) -> Option<u64> {
        let counted = range.contains(iteration) && (iteration - range.start).is_multiple_of(self.stride);
        counted.then(|| (iteration - range.start) / self.stride / self.bucket)
    }

    /// The first of the rows that the iterations `held` of `range` are in, and their number.
    pub fn rows_of(&self, range: IterationRange, held: IterationRange) -> (u64, u64) {
        let to_start = IterationRange { start: range.start, stop: held.start };
        // The row of held.start is complete before it where the quotient is whole.
        let first = to_start.len().div_ceil(self.stride) / self.bucket;
        (first, self.count(IterationRange { start: range.start, stop: held.stop }) - first)
    }

    /// How many iterations of `held`, which are of `range`, are counted. 0 where `held` is empty.
    pub fn iterations_in(&self, range: IterationRange, held: IterationRange) -> u64 {
        let counted = |stop| IterationRange { start: range.start, stop }.len().div_ceil(self.stride);
        counted(held.stop).saturating_sub(counted(held.start))
    }

    /// The first iteration of a row of `range`, which names the row in a dump.
    pub fn key(&self, range: IterationRange, row: u64) -> u64 {
        range.start + row * self.bucket * self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, stop: u64) -> IterationRange {
        IterationRange { start, stop }
    }

    #[test]
    fn rows_are_rounded_up_at_both_steps() {
        // 100 to 124 by 3: 100, 103, ..., 124 are 9 iterations, which are 3 rows of up to 4: 100, 112, 124.
        let (rows, all) = (Rows::new(4, 3).unwrap(), range(100, 125));
        assert_eq!(rows.count(all), 3);
        let keys: Vec<u64> = (0..3).map(|row| rows.key(all, row)).collect();
        assert_eq!(keys, [100, 112, 124]);
        let of: Vec<_> = (99..126).map(|i| rows.row_of(all, i)).collect();
        for (index, row) in of.iter().enumerate() {
            let iteration = index as u64 + 99;
            let expected = match iteration {
                100 | 103 | 106 | 109 => Some(0),
                112 | 115 | 118 | 121 => Some(1),
                124 => Some(2),
                _ => None,
            };
            assert_eq!(*row, expected, "iteration {iteration}");
        }
        assert_eq!(Rows::default().count(all), 25);
        assert_eq!(Rows::new(1, 25).unwrap().count(all), 1);
        assert_eq!(Rows::new(1, 24).unwrap().count(all), 2);
    }

    #[test]
    fn rows_of_a_part_are_those_that_it_touches() {
        let (rows, all) = (Rows::new(4, 3).unwrap(), range(100, 125));
        for start in (100..125).step_by(3) {
            for last in (start..125).step_by(3) {
                let held = range(start, last + 1);
                let (first, count) = rows.rows_of(all, held);
                assert_eq!(Some(first), rows.row_of(all, start), "{held}");
                assert_eq!(Some(first + count - 1), rows.row_of(all, last), "{held}");
                assert_eq!(rows.iterations_in(all, held), (last - start) / 3 + 1, "{held}");
            }
        }
        assert_eq!(rows.rows_of(all, all), (0, 3));
        assert_eq!(Rows::default().rows_of(all, range(103, 110)), (3, 7));
    }

    #[test]
    fn rows_take_the_largest_numbers() {
        let all = range(0, i64::MAX as u64);
        assert_eq!(
            Rows::new(u64::from(u32::MAX), u64::from(u32::MAX)).unwrap_err().to_string(),
            "iter_bucket is 4294967295 and iter_stride 4294967295; their product must be below 2^63"
        );
        let rows = Rows::new(1 << 31, 1 << 31).unwrap();
        assert_eq!(rows.count(all), 2);
        assert_eq!(rows.key(all, 1), 1 << 62);
        assert_eq!(rows.row_of(all, (1 << 62) + (1 << 31)), Some(1));
        assert!(Rows::new(0, 1).is_err() && Rows::new(1, 0).is_err());
    }
}
