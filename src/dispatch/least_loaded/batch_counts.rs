//! Counts a batch. A small one is not slower for a model of many experts.

use crate::device::Id;
use crate::stats::histogram;

/// The tokens of each expert, and which experts have some.
#[derive(Debug)]
pub struct BatchCounts {
    /// Of each expert, and at last of invalid ids.
    counts: Vec<u32>,
    /// First the experts with tokens, and maybe the bin of invalid ids. Not kept where `is_dense`.
    seen: Vec<u32>,
    num_seen: usize,
    is_dense: bool,
    /// The sum of the ids, which is that of each expert times its tokens. Known after [`BatchCounts::end`].
    sum: u32,
    /// Whether it was summed while the ids were counted.
    is_summed: bool,
}

/// Ids that are counted between two checks of the space in [`BatchCounts::seen`].
const WINDOW: usize = 16;

impl BatchCounts {
    /// No counts of any expert.
    pub fn new(num_experts: usize) -> Self {
        BatchCounts {
            counts: vec![0; num_experts + 1],
            // The last entries are written and never kept.
            seen: vec![0; num_experts + 1 + WINDOW],
            num_seen: 0,
            is_dense: false,
            sum: 0,
            is_summed: true,
        }
    }

    /// Clears the counts.
    pub fn clear(&mut self) {
        if self.is_dense {
            self.counts.fill(0);
        } else {
            self.seen[..self.num_seen].iter().for_each(|&expert| self.counts[expert as usize] = 0);
        }
        *self.invalid() = 0;
        (self.num_seen, self.is_dense) = (0, false);
        (self.sum, self.is_summed) = (0, true);
    }

    /// Counts ids.
    pub fn add<I: Id>(&mut self, ids: &[I]) {
        let num_experts = self.counts.len() - 1;
        if ids.len() >= num_experts {
            // To look at all experts takes no longer than to count the ids.
            self.is_dense = true;
            let counts = &mut self.counts[..num_experts];
            if ids.len() < 4 * num_experts {
                self.sum = self.sum.wrapping_add(count_one_by_one(ids, counts));
            } else {
                histogram(ids, counts);
                self.is_summed = false;
            }
            return;
        }
        let (counts, mut num_seen, mut sum) = (&mut self.counts[..], self.num_seen, self.sum);
        for ids in ids.chunks(WINDOW - 1) {
            let window: &mut [u32; WINDOW] = self.seen[num_seen..]
                .first_chunk_mut()
                .expect("there are as many entries after the last expert's");
            let mut new = 0;
            for id in ids {
                let expert = id.bin(num_experts);
                let count = &mut counts[expert];
                // Without a branch, which would be mispredicted.
                window[new % WINDOW] = expert as u32;
                new += usize::from(*count == 0);
                *count += 1;
                sum = sum.wrapping_add(expert as u32);
            }
            num_seen += new;
        }
        (self.num_seen, self.sum) = (num_seen, sum);
    }

    /// Ends counting, until the counts are cleared.
    pub fn end(&mut self) {
        let invalid = *self.invalid();
        if !self.is_summed {
            self.sum = sum_of_products(self.counts().iter().copied());
        } else if invalid > 0 {
            self.sum = self.sum.wrapping_sub((self.counts.len() as u32 - 1).wrapping_mul(invalid));
        }
        if invalid > 0 && !self.is_dense {
            self.forget_invalid();
        }
    }

    #[cold]
    fn forget_invalid(&mut self) {
        let invalid = self.counts.len() as u32 - 1;
        let seen = &mut self.seen[..self.num_seen];
        if let Some(at) = seen.iter().position(|&expert| expert == invalid) {
            seen.swap(at, self.num_seen - 1);
            self.num_seen -= 1;
        }
    }

    /// The sum of each expert times its tokens, mod 2^32, after [`BatchCounts::end`].
    pub fn sum(&self) -> u32 {
        self.sum
    }

    fn invalid(&mut self) -> &mut u32 {
        self.counts.last_mut().expect("there is a bin of invalid ids")
    }

    /// The tokens of each expert.
    pub fn counts(&self) -> &[u32] {
        &self.counts[..self.counts.len() - 1]
    }

    /// The experts with tokens, after [`BatchCounts::end`]. None where any may have some.
    pub fn seen(&self) -> Option<&[u32]> {
        (!self.is_dense).then(|| &self.seen[..self.num_seen])
    }
}

/// Counts ids, and returns their sum.
// On its own, its loop keeps everything in registers.
#[inline(never)]
fn count_one_by_one<I: Id>(ids: &[I], counts: &mut [u32]) -> u32 {
    let mut sum = 0u32;
    let mut add = |id: &I| {
        let expert = id.bin(usize::MAX);
        if let Some(count) = counts.get_mut(expert) {
            *count += 1;
            sum = sum.wrapping_add(expert as u32);
        }
    };
    let (four, rest) = ids.as_chunks::<4>();
    four.iter().for_each(|ids| ids.iter().for_each(&mut add));
    rest.iter().for_each(add);
    sum
}

/// The sum of each expert times its tokens, mod 2^32.
pub fn sum_of_products(tokens: impl Iterator<Item = u32>) -> u32 {
    (0u32..).zip(tokens).fold(0, |sum, (expert, tokens)| sum.wrapping_add(expert.wrapping_mul(tokens)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_of_the_batch_in_any_number_of_parts() {
        let mut counts = BatchCounts::new(6);
        let sums = |counts: &BatchCounts| (counts.sum(), sum_of_products(counts.counts().iter().copied()));
        let counted = |counts: &BatchCounts| {
            let of = |expert: usize| (expert, counts.counts()[expert]);
            let mut all: Vec<(usize, u32)> = match counts.seen() {
                Some(seen) => seen.iter().map(|&expert| of(expert as usize)).collect(),
                None => (0..6).map(of).collect(),
            };
            all.retain(|&(_, tokens)| tokens > 0);
            all.sort_unstable();
            all
        };
        for many in [1, 4, 20] {
            counts.clear();
            counts.add(&[2, 0, -1, 2]);
            counts.add(&[1, 2, 6, 7].repeat(many));
            counts.end();
            // Expert 0 once, expert 2 twice more than expert 1.
            let ones = many as u32;
            assert_eq!(counted(&counts), [(0, 1), (1, ones), (2, ones + 2)]);
            assert_eq!(sums(&counts), (3 * ones + 4, 3 * ones + 4));
        }
        counts.clear();
        assert_eq!(counted(&counts), []);
    }
}
