//! Counts a batch. A small one is not slower for a model of many experts.

use crate::device::Id;
use crate::stats::histogram;

/// The tokens of each expert, and which experts have some.
#[derive(Debug)]
pub struct BatchCounts {
    /// Of each expert, and at last of invalid ids.
    counts: Vec<u32>,
    /// The experts with tokens, and maybe the bin of invalid ids. Not kept where `is_dense`.
    seen: Vec<u32>,
    is_dense: bool,
}

/// Parts of more ids for each expert are counted without keeping which experts are seen.
const IDS_PER_EXPERT: usize = 4;

impl BatchCounts {
    /// No counts of any expert.
    pub fn new(num_experts: usize) -> Self {
        BatchCounts {
            counts: vec![0; num_experts + 1],
            seen: Vec::with_capacity(num_experts + 1),
            is_dense: false,
        }
    }

    /// Clears the counts.
    pub fn clear(&mut self) {
        if self.is_dense {
            self.counts.fill(0);
        } else {
            self.seen.iter().for_each(|&expert| self.counts[expert as usize] = 0);
        }
        self.seen.clear();
        self.is_dense = false;
    }

    /// Counts ids.
    pub fn add<I: Id>(&mut self, ids: &[I]) {
        let num_experts = self.counts.len() - 1;
        if ids.len() >= IDS_PER_EXPERT * num_experts {
            self.is_dense = true;
            histogram(ids, &mut self.counts[..num_experts]);
            return;
        }
        let Self { counts, seen, .. } = self;
        for id in ids {
            let expert = id.bin(num_experts);
            let count = &mut counts[expert];
            if *count == 0 {
                seen.push(expert as u32);
            }
            *count += 1;
        }
    }

    /// The tokens of all experts.
    pub fn total(&self) -> u64 {
        let mut total = 0;
        self.for_each(|_, tokens| total += u64::from(tokens));
        total
    }

    /// Calls `with` for each expert with tokens.
    #[inline(always)]
    pub fn for_each(&self, mut with: impl FnMut(usize, u32)) {
        let num_experts = self.counts.len() - 1;
        if self.is_dense {
            let all = self.counts[..num_experts].iter().enumerate();
            all.filter(|(_, count)| **count > 0).for_each(|(expert, &count)| with(expert, count));
        } else {
            let seen = self.seen.iter().map(|&expert| expert as usize);
            seen.filter(|&expert| expert < num_experts).for_each(|expert| with(expert, self.counts[expert]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_of_the_batch_in_any_number_of_parts() {
        let mut counts = BatchCounts::new(3);
        let counted = |counts: &BatchCounts| {
            let mut all = Vec::new();
            counts.for_each(|expert, tokens| all.push((expert, tokens)));
            all.sort_unstable();
            (all, counts.total())
        };
        for many in [1, 20] {
            counts.clear();
            counts.add(&[2, 0, -1, 2]);
            counts.add(&[1, 2, 3, 4].repeat(many));
            // Expert 0 once, expert 2 twice more than expert 1.
            let ones = many as u32;
            assert_eq!(counted(&counts), (vec![(0, 1), (1, ones), (2, ones + 2)], 2 * many as u64 + 3));
        }
        counts.clear();
        assert_eq!(counted(&counts), (vec![], 0));
    }
}
