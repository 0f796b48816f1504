//! A tournament tree: the smallest of many keys, where one key changes at a time.

/// Keys by contestant number. Returns the smallest key at once.
///
/// A change costs one comparison for each level of the tree, all without branches. That is faster than a
/// binary heap, whose branches depend on the loads.
#[derive(Debug)]
pub(super) struct Tournament<K> {
    /// The root is at 1, the children of `i` at `2 i` and `2 i + 1`, contestant `i` at `first + i`.
    keys: Vec<K>,
    first: usize,
}

impl<K: Copy + Ord> Tournament<K> {
    /// Creates a tree of contestants 0 and up with these keys. `out` is above all of them.
    pub fn new(contestants: impl ExactSizeIterator<Item = K>, out: K) -> Self {
        let first = contestants.len().next_power_of_two();
        let mut keys = vec![out; first];
        keys.extend(contestants);
        keys.resize(2 * first, out);
        for i in (1..first).rev() {
            keys[i] = keys[2 * i].min(keys[2 * i + 1]);
        }
        Tournament { keys, first }
    }

    /// The smallest key.
    pub fn next(&self) -> K {
        self.keys[1]
    }

    /// Changes the key of a contestant.
    pub fn set(&mut self, contestant: usize, key: K) {
        let mut at = self.first + contestant;
        let mut smallest = key;
        self.keys[at] = key;
        while at > 1 {
            smallest = smallest.min(self.keys[at ^ 1]);
            at /= 2;
            self.keys[at] = smallest;
        }
    }
}

/// A key above all keys of [`numbered`].
pub(super) const OUT: u128 = u128::MAX;

/// Returns a key that orders by the bits of a load, then by number. The bits of loads that are not negative
/// order as the loads do.
pub(super) fn numbered(load_bits: u64, number: usize) -> u128 {
    u128::from(load_bits) << 64 | number as u128
}

/// The number in a key of [`numbered`].
pub(super) fn number(key: u128) -> usize {
    key as u64 as usize
}

/// The bits of the load in a key of [`numbered`].
pub(super) fn load_bits(key: u128) -> u64 {
    (key >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_returns_the_smallest_key_after_every_change() {
        for num_contestants in 1..20u32 {
            // Keys repeat in their high bits and have the contestant in the low bits.
            let mut keys: Vec<u32> = (0..num_contestants).map(|i| ((i * 7 % 5) << 8) | i).collect();
            let mut tournament = Tournament::new(keys.iter().copied(), u32::MAX);
            for round in 0..100 {
                let smallest = keys.iter().min().unwrap();
                assert_eq!(tournament.next(), *smallest);
                let i = (smallest & 0xff) as usize;
                let step = if round % 11 == 10 { 1000 } else { round % 4 };
                keys[i] += step << 8;
                tournament.set(i, keys[i]);
            }
        }
    }
}
