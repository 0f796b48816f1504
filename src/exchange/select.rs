//! Parts and sums of counts, for formats that take less than a dump has.

use std::borrow::Cow;

use crate::error::{Error, Result, try_zeroed};
use crate::stats::{RowRange, RowRanges, Stats, Summary};

/// Returns the counts of `layers` alone; `None`: all. Fails with [`Error::InvalidArgument`] for a layer that is not there.
pub fn counts_of_layers<'a>(stats: &'a Stats, layers: Option<&[u32]>) -> Result<Cow<'a, Stats>> {
    let Some(layers) = layers else { return Ok(Cow::Borrowed(stats)) };
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    layers.dedup();
    if layers.is_empty() {
        return Err(Error::InvalidArgument("no layer is given".into()));
    }
    if layers == stats.summary().layers {
        return Ok(Cow::Borrowed(stats));
    }
    let mut counts = Vec::new();
    for &layer in &layers {
        let of_layer = stats.layer_counts(layer)?;
        counts
            .try_reserve(of_layer.len())
            .map_err(|_| Error::out_of_memory(of_layer.len() * 8, "the counts"))?;
        counts.extend_from_slice(of_layer);
    }
    Ok(Cow::Owned(Stats::from_counts(Summary { layers, ..stats.summary().clone() }, counts)))
}

/// Returns the counts summed over the iterations: one row of all of them.
///
/// Fails with [`Error::InvalidDump`] if a sum overflows.
pub fn sum_iterations(stats: &Stats) -> Result<Stats> {
    let summary = stats.summary();
    let all = one_row(&summary.rows)?;
    let num_experts = summary.num_experts;
    let mut counts: Vec<u64> = try_zeroed(summary.layers.len().checked_mul(num_experts), "the counts")?;
    for (sums, &layer) in counts.chunks_exact_mut(num_experts).zip(&summary.layers) {
        sums.copy_from_slice(&stats.layer_totals(layer)?);
    }
    Ok(Stats::from_counts(Summary { rows: all, ..summary.clone() }, counts))
}

/// The row that all rows add up to.
pub(super) fn one_row(rows: &RowRanges) -> Result<RowRanges> {
    let &[all @ RowRange { iterations, rows }] = rows.dumps() else {
        return Err(Error::InvalidArgument(
            "iterations of several dumps have no sum: convert each dump".into(),
        ));
    };
    Ok(RowRange::declared(iterations, all.num_counted(), rows.stride())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{IdKind, IterationRange, Rows};

    /// Counts of layers 3 and 5, 2 experts, and the three rows of iterations 10, 12 | 14, 16 | 18.
    fn stats() -> Stats {
        let iterations = IterationRange { start: 10, stop: 20 };
        let summary = Summary {
            num_experts: 2,
            experts_per_token: 1,
            num_ranks: 1,
            num_files: 1,
            stage_ranks: vec![1],
            missing_ranks: Vec::new(),
            id_kind: Some(IdKind::Expert),
            layers: vec![3, 5],
            rows: RowRange { iterations, rows: Rows::new(2, 2).unwrap() }.into(),
        };
        Stats::from_counts(summary, vec![1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, u64::MAX >> 2])
    }

    #[test]
    fn layers_are_selected_by_number() {
        let all = stats();
        let last = counts_of_layers(&all, Some(&[5])).unwrap();
        assert_eq!(last.summary().layers, [5]);
        assert_eq!(last.layer_counts(5).unwrap(), all.layer_counts(5).unwrap());
        assert!(
            matches!(counts_of_layers(&all, Some(&[5, 3])).unwrap(), Cow::Borrowed(same) if *same == all)
        );
        assert!(matches!(counts_of_layers(&all, None).unwrap(), Cow::Borrowed(_)));
        let message = counts_of_layers(&all, Some(&[4])).unwrap_err().to_string();
        assert!(message.starts_with("layer 4 is not in this dump of 2 layers from 3 to 5"), "{message}");
        assert!(counts_of_layers(&all, Some(&[])).is_err());
    }

    #[test]
    fn the_sum_is_one_row_of_all_counted_iterations() {
        let sum = sum_iterations(&stats()).unwrap();
        assert_eq!(sum.layer_counts(3).unwrap(), [9, 12]);
        let rows = sum.summary().rows.first();
        assert_eq!(
            (rows.len(), rows.num_counted(), rows.iterations),
            (1, 5, stats().summary().rows.first().iterations)
        );
    }
}
