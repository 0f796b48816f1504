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
        }
    }

    /// Clears the counts.
    pub fn clear(&mut self) {
        if self.is_dense {
            self.counts.fill(0);
        } else {
            self.seen[..self.num_seen].iter().for_each(|&expert| self.counts[expert as usize] = 0);
        }
        self.num_seen = 0;
        self.is_dense = false;
    }

    /// Counts ids.
    pub fn add<I: Id>(&mut self, ids: &[I]) {
        let num_experts = self.counts.len() - 1;
        if ids.len() >= num_experts {
            // To look at all experts takes no longer than to count the ids.
            self.is_dense = true;
            histogram(ids, &mut self.counts[..num_experts]);
            return;
        }
        let (counts, mut num_seen) = (&mut self.counts[..], self.num_seen);
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
            }
            num_seen += new;
        }
        self.num_seen = num_seen;
    }

    /// The tokens of an expert.
    #[inline(always)]
    pub fn of(&self, expert: usize) -> u32 {
        self.counts[expert]
    }

    /// The tokens of all experts, where there may be some of any.
    pub fn dense(&self) -> Option<&[u32]> {
        self.is_dense.then(|| &self.counts[..self.counts.len() - 1])
    }

    /// Calls `with` for each expert with tokens, if they are not [dense](BatchCounts::dense).
    #[inline(always)]
    pub fn for_each_seen(&self, mut with: impl FnMut(usize, u32)) {
        let num_experts = self.counts.len() - 1;
        let seen = self.seen[..self.num_seen].iter().map(|&expert| expert as usize);
        seen.filter(|&expert| expert < num_experts).for_each(|expert| with(expert, self.counts[expert]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_of_the_batch_in_any_number_of_parts() {
        let mut counts = BatchCounts::new(6);
        let counted = |counts: &BatchCounts| {
            let mut all = Vec::new();
            match counts.dense() {
                Some(counts) => all.extend(counts.iter().copied().enumerate()),
                None => counts.for_each_seen(|expert, tokens| all.push((expert, tokens))),
            }
            all.retain(|&(_, tokens)| tokens > 0);
            all.sort_unstable();
            all
        };
        for many in [1, 20] {
            counts.clear();
            counts.add(&[2, 0, -1, 2]);
            counts.add(&[1, 2, 6, 7].repeat(many));
            // Expert 0 once, expert 2 twice more than expert 1.
            let ones = many as u32;
            assert_eq!(counted(&counts), [(0, 1), (1, ones), (2, ones + 2)]);
        }
        counts.clear();
        assert_eq!(counted(&counts), []);
    }
}
