//! Counting ids on the host.

use crate::device::Id;

/// A cell of the window. Overflows wrap, as on a CUDA device. The totals reveal them.
pub(crate) trait Cell: Copy {
    /// Adds to the cell.
    fn add(&mut self, more: u32);
}

impl Cell for u32 {
    #[inline(always)]
    fn add(&mut self, more: u32) {
        *self = self.wrapping_add(more);
    }
}

impl Cell for u64 {
    #[inline(always)]
    fn add(&mut self, more: u32) {
        *self += u64::from(more);
    }
}

/// Histograms counted side by side. With one, an id would wait for the store of an equal id before it.
const LANES: usize = 4;

/// Adds the ids to the cells. Returns how many ids have no cell.
pub(crate) fn histogram<I: Id, C: Cell>(ids: &[I], cells: &mut [C]) -> u64 {
    match cells.len() {
        num_experts if ids.len() < LANES * num_experts => add_one_by_one(ids, cells),
        // To clear the bins of a small batch takes longer than to count it.
        0..=511 => add_in_bins::<I, C, 512>(ids, cells),
        512..=1023 => add_in_bins::<I, C, 1024>(ids, cells),
        _ => add_one_by_one(ids, cells),
    }
}

#[inline(never)]
fn add_one_by_one<I: Id, C: Cell>(ids: &[I], cells: &mut [C]) -> u64 {
    let (num_experts, mut out_of_range) = (cells.len(), 0);
    for id in ids {
        match cells.get_mut(id.bin(num_experts)) {
            Some(cell) => cell.add(1),
            None => out_of_range += 1,
        }
    }
    out_of_range
}

/// Counts in bins on the stack, `BINS` of them a lane. There are fewer cells, and `BINS` is a power of two.
// Apart, so that a small batch does not reserve the bins' stack.
#[inline(never)]
fn add_in_bins<I: Id, C: Cell, const BINS: usize>(ids: &[I], cells: &mut [C]) -> u64 {
    let (num_experts, mut out_of_range) = (cells.len(), 0);
    // Bins have 32 bits.
    for ids in ids.chunks(1 << 30) {
        let mut bins = [[0u32; BINS]; LANES];
        let (four, rest) = ids.as_chunks::<LANES>();
        for ids in four {
            for (bins, id) in bins.iter_mut().zip(ids) {
                bins[id.bin(num_experts) & (BINS - 1)] += 1;
            }
        }
        for id in rest {
            bins[0][id.bin(num_experts)] += 1;
        }
        let sum = |bin: usize| bins.iter().map(|lane| lane[bin]).sum::<u32>();
        for (expert, cell) in cells.iter_mut().enumerate() {
            cell.add(sum(expert));
        }
        out_of_range += u64::from(sum(num_experts));
    }
    out_of_range
}

/// How many ids are -1.
pub(crate) fn number_of_none<I: Id>(ids: &[I]) -> u64 {
    ids.iter().map(|id| u64::from(id.is_none())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(ids: &[i64], num_experts: usize) -> (Vec<u64>, u64) {
        let mut counts = vec![0; num_experts];
        let mut out_of_range = 0;
        for &id in ids {
            if (0..num_experts as i64).contains(&id) {
                counts[id as usize] += 1;
            } else {
                out_of_range += 1;
            }
        }
        (counts, out_of_range)
    }

    #[test]
    fn histogram_counts_any_number_of_ids_and_experts() {
        let mut seed = 7u64;
        for num_experts in [0, 1, 2, 64, 256, 257, 511, 512, 1023, 1024, 5000] {
            for len in [0, 1, 3, 100, 4095, 70_001] {
                let ids: Vec<i64> = (0..len)
                    .map(|_| {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        (seed >> 33) as i64 % (num_experts as i64 + 9) - 4
                    })
                    .collect();
                let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                let (expected, expected_out) = naive(&ids, num_experts);
                let mut wide_cells = vec![1u64; num_experts];
                assert_eq!(histogram(&ids, &mut wide_cells), expected_out);
                assert!(wide_cells.iter().zip(&expected).all(|(cell, count)| *cell == count + 1));
                let mut cells = vec![u32::MAX; num_experts];
                assert_eq!(histogram(&narrow, &mut cells), expected_out);
                assert!(
                    cells.iter().zip(&expected).all(|(cell, count)| *cell == (*count as u32).wrapping_sub(1))
                );
            }
        }
    }

    #[test]
    fn histogram_reports_extreme_ids_as_out_of_range() {
        let mut cells = [0u32; 4];
        assert_eq!(histogram(&[i64::MIN, i64::MAX, 1 << 32, -1, 4, (1 << 32) + 1], &mut cells), 6);
        assert_eq!(histogram(&[i32::MIN, i32::MAX, -1, 4, 3], &mut cells), 4);
        assert_eq!(cells, [0, 0, 0, 1]);
    }

    #[test]
    fn only_minus_one_is_none() {
        assert_eq!(number_of_none(&[i64::MIN, -1, (1 << 32) - 1, 0, -2, -1]), 2);
        assert_eq!(number_of_none(&[i32::MIN, -1, i32::MAX, 0, -2]), 1);
        assert_eq!(number_of_none::<i32>(&[]), 0);
    }
}
