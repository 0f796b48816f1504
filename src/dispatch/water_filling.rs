//! Water-filling: whole units raise the lowest columns to a common height.

/// The height to which units raise columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Height {
    /// The height of the columns that are raised.
    pub height: u64,
    /// How many columns at or below the height get one more unit.
    pub rest: u64,
}

impl Height {
    /// Fills `amount` units over `count` columns, at least one.
    pub fn of(amount: u64, count: usize, column: impl Fn(usize) -> u64) -> Height {
        // A column above the height of all takes no part. Without it the height falls, and more columns may be above it.
        let mut height = u64::MAX;
        loop {
            let reached = || (0..count).map(&column).filter(|&level| level <= height);
            let (columns, sum) = reached().fold((0, amount), |(n, sum), level| (n + 1, sum + level));
            let lower = sum / columns;
            if lower == height || reached().all(|level| level <= lower) {
                return Height { height: lower, rest: sum % columns };
            }
            height = lower;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn height_raises_the_lowest_columns_first() {
        let filled = |amount, columns: &[u64]| {
            let Height { height, rest } = Height::of(amount, columns.len(), |c| columns[c]);
            (height, rest)
        };
        assert_eq!(filled(0, &[5, 3, 9]), (3, 0));
        assert_eq!(filled(1, &[5, 3, 9]), (4, 0));
        // 2 raise the 3 to 5. Of the other 3, the two get one each and one is left.
        assert_eq!(filled(5, &[5, 3, 9]), (6, 1));
        // 6 + 4 raise them to 9. 5 more make 10, and two columns get one more.
        assert_eq!(filled(15, &[5, 3, 9]), (10, 2));
        assert_eq!(filled(7, &[2]), (9, 0));
    }
}
