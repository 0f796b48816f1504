//! Rows of counts, each of one or several iterations.

use std::fmt;

use super::IterationRange;
use crate::error::{Error, Result};

/// A range of iterations in rows. Of the range, every `stride`-th iteration was counted, from the first on. A row is the sum of
/// `bucket` of these; the last row may have fewer. A row's key is its first iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The range.
    pub iterations: IterationRange,
    /// Counted iterations of a row.
    pub bucket: u64,
    /// The distance of two counted iterations.
    pub stride: u64,
}

impl From<IterationRange> for Rows {
    /// A row for each iteration.
    fn from(iterations: IterationRange) -> Rows {
        Rows { iterations, bucket: 1, stride: 1 }
    }
}

impl Rows {
    /// Fails if `bucket` or `stride` is 0, or if they are too large for 63 bits.
    pub fn new(iterations: IterationRange, bucket: u64, stride: u64) -> Result<Rows> {
        let fits = bucket.checked_mul(stride).is_some_and(|step| step <= i64::MAX as u64);
        if bucket == 0 || stride == 0 || !fits {
            return Err(Error::InvalidDump(format!(
                "iter_bucket is {bucket} and iter_stride {stride}; both must be at least 1, and their product below 2^63"
            )));
        }
        Ok(Rows { iterations, bucket, stride })
    }

    /// Whether each row is one iteration, and none is left out.
    pub fn are_iterations(&self) -> bool {
        self.step() == 1
    }

    /// Iterations from the start of a row to that of the next.
    pub fn step(&self) -> u64 {
        self.bucket.saturating_mul(self.stride).max(1)
    }

    /// The number of rows.
    pub fn len(&self) -> u64 {
        self.iterations.len().div_ceil(self.step())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.iterations.is_empty()
    }

    /// The first iteration of a row.
    pub fn first_iteration(&self, row: u64) -> u64 {
        self.iterations.start.saturating_add(row.saturating_mul(self.step()))
    }

    /// The number of iterations that were counted.
    pub fn num_counted(&self) -> u64 {
        self.iterations.len().div_ceil(self.stride.max(1))
    }

    /// The row that starts at `iteration`.
    pub fn starting_at(&self, iteration: u64) -> Option<u64> {
        let offset = iteration.checked_sub(self.iterations.start)?;
        let starts = self.iterations.contains(iteration) && offset.is_multiple_of(self.step());
        starts.then(|| offset / self.step())
    }

    /// The start of the row nearest to `iteration`.
    pub fn nearest_start(&self, iteration: u64) -> u64 {
        let offset = iteration.saturating_sub(self.iterations.start);
        let (below, rest) = (offset / self.step(), offset % self.step());
        let row = if rest > self.step() / 2 { below + 1 } else { below };
        self.first_iteration(row.min(self.len().saturating_sub(1)))
    }

    /// The rows from `start` on, up to `stop`. `None`: all.
    ///
    /// Fails with [`Error::InvalidArgument`] outside of the range, and within a row.
    pub fn select(&self, start: Option<u64>, stop: Option<u64>) -> Result<Rows> {
        let whole = self.iterations;
        let chosen = IterationRange { start: start.unwrap_or(whole.start), stop: stop.unwrap_or(whole.stop) };
        if chosen.is_empty() || chosen.start < whole.start || chosen.stop > whole.stop {
            return Err(Error::InvalidArgument(format!(
                "iterations {chosen} requested (stop excluded), the dump has {self}"
            )));
        }
        for (name, iteration) in [("iter_start", chosen.start), ("iter_stop", chosen.stop)] {
            if iteration != whole.stop && self.starting_at(iteration).is_none() {
                let below = iteration - (iteration - whole.start) % self.step();
                let above = below.saturating_add(self.step()).min(whole.stop);
                return Err(Error::InvalidArgument(format!(
                    "{name} {iteration} is within a row, the dump has {self}; the nearest rows begin at {below} and {above}"
                )));
            }
        }
        Ok(Rows { iterations: chosen, ..*self })
    }

    /// What a row is: `iterations`, or `rows of 100 iterations`.
    pub fn unit(&self) -> String {
        match (self.bucket, self.stride) {
            (1, 1) => "iterations".to_owned(),
            (bucket, 1) => format!("rows of {bucket} iterations"),
            (1, stride) => format!("iterations, one in {stride}"),
            (bucket, stride) => format!("rows of {bucket} iterations, one in {stride}"),
        }
    }
}

impl fmt::Display for Rows {
    /// `100..131`, or `100..10100 in rows of 100`; with a stride of 10 `100..10100, one in 10`, or both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.iterations)?;
        if self.stride != 1 {
            write!(f, ", one in {}", self.stride)?;
        }
        if self.bucket != 1 {
            write!(f, " in rows of {}", self.bucket)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(start: u64, stop: u64, bucket: u64, stride: u64) -> Rows {
        Rows::new(IterationRange { start, stop }, bucket, stride).unwrap()
    }

    #[test]
    fn last_row_may_be_partial() {
        // Counted: 100, 110, ..., 190, and of these 3 a row: 100, 130, 160 and 190 alone.
        let rows = rows(100, 199, 3, 10);
        assert_eq!((rows.step(), rows.len(), rows.num_counted()), (30, 4, 10));
        let starts: Vec<u64> = (0..rows.len()).map(|row| rows.first_iteration(row)).collect();
        assert_eq!(starts, [100, 130, 160, 190]);
        assert_eq!(
            [99, 100, 110, 190, 220].map(|i| rows.starting_at(i)),
            [None, Some(0), None, Some(3), None]
        );
        assert_eq!([0, 114, 116, 190, 500].map(|i| rows.nearest_start(i)), [100, 100, 130, 190, 190]);
        assert_eq!(rows.to_string(), "100..199, one in 10 in rows of 3");
    }

    #[test]
    fn select_takes_whole_rows() {
        let rows = rows(100, 450, 100, 1);
        assert_eq!(rows.select(None, None).unwrap(), rows);
        let chosen = rows.select(Some(200), None).unwrap();
        assert_eq!((chosen.len(), chosen.to_string()), (3, "200..450 in rows of 100".to_owned()));
        assert_eq!(rows.select(None, Some(300)).unwrap().len(), 2);
        let error = |start, stop| rows.select(start, stop).unwrap_err().to_string();
        assert_eq!(
            error(Some(150), None),
            "iter_start 150 is within a row, the dump has 100..450 in rows of 100; the nearest rows begin at 100 and 200"
        );
        assert_eq!(
            error(None, Some(420)),
            "iter_stop 420 is within a row, the dump has 100..450 in rows of 100; the nearest rows begin at 400 and 450"
        );
        assert_eq!(
            error(Some(0), None),
            "iterations 0..450 requested (stop excluded), the dump has 100..450 in rows of 100"
        );
        assert!(rows.select(Some(300), Some(300)).is_err() && rows.select(None, Some(451)).is_err());
    }

    #[test]
    fn new_refuses_zero_and_overflow() {
        let range = IterationRange { start: 0, stop: u64::MAX };
        for (bucket, stride) in [(0, 1), (1, 0), (1 << 62, 2), (u64::MAX, u64::MAX)] {
            assert_eq!(
                Rows::new(range, bucket, stride).unwrap_err().to_string(),
                format!(
                    "iter_bucket is {bucket} and iter_stride {stride}; both must be at least 1, and their product below 2^63"
                )
            );
        }
        let huge = rows(u64::MAX - 1, u64::MAX, i64::MAX as u64, 1);
        assert_eq!(
            (huge.len(), huge.first_iteration(5), huge.nearest_start(u64::MAX)),
            (1, u64::MAX, u64::MAX - 1)
        );
    }
}
