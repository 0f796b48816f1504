//! The words by which ranks find out whether they have the same plan.

/// What a rank without a plan contributes in place of both words. No plan has it, and it agrees with none, whether words are
/// compared with or without a sign.
pub const DISAGREE: u64 = i64::MAX as u64;

/// A hash over 64-bit words, equal on every machine. A change of one bit changes the result: each step is one to one, in the
/// word and in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash(u64);

impl Hash {
    pub fn new() -> Self {
        Hash(0x9E37_79B9_7F4A_7C15)
    }

    pub fn add(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(23) ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.0 = mixed ^ (mixed >> 32);
    }

    pub fn add_all(&mut self, words: impl IntoIterator<Item = u64>) {
        words.into_iter().for_each(|word| self.add(word));
    }

    /// The sequence of 32-bit values, two a word, with its length.
    pub fn add_values(&mut self, values: &[u32]) {
        self.add(values.len() as u64);
        for pair in values.chunks(2) {
            self.add(u64::from(pair[0]) << 32 | u64::from(pair.get(1).copied().unwrap_or(0)));
        }
    }

    /// The hash of a sequence of values.
    pub fn of_values(values: &[u32]) -> u64 {
        let mut hash = Hash::new();
        hash.add_values(values);
        hash.0
    }

    /// The hash, which is neither [`DISAGREE`] nor its complement.
    pub fn word(self) -> u64 {
        match self.0 {
            DISAGREE => 1,
            word if word == !DISAGREE => 2,
            word => word,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_words_agree_only_if_all_ranks_have_the_same() {
        let of = |values: &[u32]| {
            let mut hash = Hash::new();
            hash.add_values(values);
            hash.word()
        };
        let words = [of(&[1, 2]), of(&[1, 3]), of(&[1, 2])];
        let agree = |words: &[[u64; 2]]| {
            let max = |place: usize| words.iter().map(|pair| pair[place]).max().unwrap();
            let signed = |place: usize| words.iter().map(|pair| pair[place] as i64).max().unwrap();
            assert_eq!(max(0) == !max(1), signed(0) == !signed(1), "{words:?}");
            max(0) == !max(1)
        };
        assert!(agree(&[[words[0], !words[0]], [words[2], !words[2]]]));
        assert!(!agree(&[[words[0], !words[0]], [words[1], !words[1]]]));
        for word in [words[0], words[1], 0, 1, u64::MAX, u64::MAX >> 2] {
            assert!(!agree(&[[word, !word], [DISAGREE, DISAGREE]]));
        }
    }

    #[test]
    fn length_and_order_are_part_of_the_hash() {
        let of = |values: &[u32]| {
            let mut hash = Hash::new();
            hash.add_values(values);
            hash.word()
        };
        let all = [of(&[]), of(&[0]), of(&[0, 0]), of(&[0, 1]), of(&[1, 0])];
        for (index, word) in all.iter().enumerate() {
            assert!(!all[..index].contains(word));
        }
    }
}
