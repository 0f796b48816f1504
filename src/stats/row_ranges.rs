//! The rows of one or of several dumps.

use std::fmt;

use super::{IterationRange, RowRange};

/// The rows of one or more dumps, one dump's after the other's. Dumps may have the same iterations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRanges(Vec<RowRange>);

impl From<RowRange> for RowRanges {
    fn from(rows: RowRange) -> RowRanges {
        RowRanges(vec![rows])
    }
}

impl From<IterationRange> for RowRanges {
    /// A row for each iteration of one dump.
    fn from(iterations: IterationRange) -> RowRanges {
        RowRange::from(iterations).into()
    }
}

impl RowRanges {
    /// The rows of dumps, at least one, in their order.
    pub(crate) fn of_dumps(ranges: Vec<RowRange>) -> RowRanges {
        debug_assert!(!ranges.is_empty());
        RowRanges(ranges)
    }

    /// The rows of each dump, at least one.
    pub fn dumps(&self) -> &[RowRange] {
        &self.0
    }

    /// The rows of the first dump, which is mostly the only one.
    pub fn first(&self) -> RowRange {
        self.0[0]
    }

    /// The number of rows of all dumps.
    pub fn len(&self) -> u64 {
        self.0.iter().map(RowRange::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row is one iteration, and none is left out.
    pub fn are_iterations(&self) -> bool {
        self.0.iter().all(RowRange::are_iterations)
    }

    /// The first iteration of a row, by the numbers of its dump.
    pub fn first_iteration(&self, row: u64) -> u64 {
        let mut row = row;
        for range in &self.0 {
            if row < range.len() {
                return range.first_iteration(row);
            }
            row -= range.len();
        }
        self.0[self.0.len() - 1].iterations.stop
    }

    /// Samples of each dump: `of_each` of a dump, at most one a row.
    pub fn num_samples(&self, of_each: usize) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().map(move |range| (of_each.max(1) as u64).min(range.len()) as usize)
    }

    /// What a row is, as [`RowRange::unit`]. `rows` if dumps differ.
    pub fn unit(&self) -> String {
        match self.0.iter().all(|range| range.rows == self.0[0].rows) {
            true => self.0[0].unit(),
            false => "rows".to_owned(),
        }
    }
}

impl fmt::Display for RowRanges {
    /// As [`RowRange`], with `and` between dumps.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { " and " })?;
        }
        Ok(())
    }
}
