//! A range of iterations in rows, as dumps have it.

use std::fmt;

use super::{IterationRange, Rows};
use crate::error::{Error, Result};

/// A range of iterations, and its rows. A row's key is its first iteration. The last row may have fewer iterations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    /// The range.
    pub iterations: IterationRange,
    /// Its rows.
    pub rows: Rows,
}

impl From<IterationRange> for RowRange {
    /// A row for each iteration.
    fn from(iterations: IterationRange) -> RowRange {
        RowRange { iterations, rows: Rows::ITERATIONS }
    }
}

impl RowRange {
    /// The rows that a file declares. Fails if `bucket` or `stride` is 0, or if they are too large for 63 bits.
    pub fn declared(iterations: IterationRange, bucket: u64, stride: u64) -> Result<RowRange> {
        let fits = bucket.checked_mul(stride).is_some_and(|step| step <= i64::MAX as u64);
        match Rows::new(bucket, stride) {
            Ok(rows) if fits => Ok(RowRange { iterations, rows }),
            _ => Err(Error::InvalidDump(format!(
                "iter_bucket is {bucket} and iter_stride {stride}; both must be at least 1, and their product below 2^63"
            ))),
        }
    }

    /// Whether each row is one iteration, and none is left out.
    pub fn are_iterations(&self) -> bool {
        self.rows.are_iterations()
    }

    /// Iterations from the start of a row to that of the next.
    pub fn step(&self) -> u64 {
        self.rows.bucket().saturating_mul(self.rows.stride())
    }

    /// The number of rows.
    pub fn len(&self) -> u64 {
        self.rows.count(self.iterations)
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
        self.rows.iterations_in(self.iterations, self.iterations)
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
    pub fn select(&self, start: Option<u64>, stop: Option<u64>) -> Result<RowRange> {
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
        Ok(RowRange { iterations: chosen, ..*self })
    }

    /// The range with its ends rounded up to counted iterations, or to the end. Two ranges with the same counted iterations are
    /// then equal.
    pub fn counted(&self, range: IterationRange) -> IterationRange {
        let up = |iteration: u64| {
            let offset = iteration.saturating_sub(self.iterations.start);
            let steps = offset.div_ceil(self.rows.stride());
            let counted = self.iterations.start.saturating_add(steps.saturating_mul(self.rows.stride()));
            counted.min(self.iterations.stop)
        };
        IterationRange { start: up(range.start), stop: up(range.stop) }
    }

    /// The rows of which `range` has all counted iterations.
    pub fn complete_in(&self, range: IterationRange) -> IterationRange {
        let counted = self.counted(range);
        let row = |iteration: u64| iteration.saturating_sub(self.iterations.start);
        let start = self.first_iteration(row(counted.start).div_ceil(self.step()));
        let stop = if counted.stop == self.iterations.stop {
            counted.stop
        } else {
            self.first_iteration(row(counted.stop) / self.step())
        };
        IterationRange { start: start.min(self.iterations.stop), stop }
    }

    /// The row that iteration `iteration` is in.
    pub fn row_with(&self, iteration: u64) -> IterationRange {
        let start = self.first_iteration(iteration.saturating_sub(self.iterations.start) / self.step());
        IterationRange { start, stop: start.saturating_add(self.step()).min(self.iterations.stop) }
    }

    /// What a row is: `iterations`, or `rows of 100 iterations`.
    pub fn unit(&self) -> String {
        match (self.rows.bucket(), self.rows.stride()) {
            (1, 1) => "iterations".to_owned(),
            (bucket, 1) => format!("rows of {bucket} iterations"),
            (1, stride) => format!("iterations, one in {stride}"),
            (bucket, stride) => format!("rows of {bucket} iterations, one in {stride}"),
        }
    }
}

impl fmt::Display for RowRange {
    /// `100..131`, or `100..10100 in rows of 100`; with a stride of 10 `100..10100, one in 10`, or both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.iterations)?;
        if self.rows.stride() != 1 {
            write!(f, ", one in {}", self.rows.stride())?;
        }
        if self.rows.bucket() != 1 {
            write!(f, " in rows of {}", self.rows.bucket())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(start: u64, stop: u64, bucket: u64, stride: u64) -> RowRange {
        RowRange::declared(IterationRange { start, stop }, bucket, stride).unwrap()
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
    fn complete_rows_have_all_their_counted_iterations() {
        // Counted: 100, 110, ..., 190. Rows: 100 110 120, 130 140 150, 160 170 180, 190.
        let rows = rows(100, 199, 3, 10);
        let range = |start, stop| IterationRange { start, stop };
        for (held, counted, complete) in [
            (range(100, 199), range(100, 199), range(100, 199)),
            (range(101, 191), range(110, 199), range(130, 199)),
            (range(121, 181), range(130, 190), range(130, 190)),
            (range(122, 180), range(130, 180), range(130, 160)),
            (range(131, 150), range(140, 150), range(160, 130)),
            (range(195, 199), range(199, 199), range(199, 199)),
        ] {
            assert_eq!((rows.counted(held), rows.complete_in(held)), (counted, complete), "{held}");
        }
        assert_eq!(
            [100, 150, 190].map(|i| rows.row_with(i)),
            [range(100, 130), range(130, 160), range(190, 199)]
        );
    }

    #[test]
    fn declared_refuses_zero_and_overflow() {
        let range = IterationRange { start: 0, stop: u64::MAX };
        for (bucket, stride) in [(0, 1), (1, 0), (1 << 62, 2), (u64::MAX, u64::MAX)] {
            assert_eq!(
                RowRange::declared(range, bucket, stride).unwrap_err().to_string(),
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
