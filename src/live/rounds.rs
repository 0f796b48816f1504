//! Rounds of transfers: in each, a rank sends to at most one rank and receives from at most one.
//!
//! Senders and receivers are the two sides of a bipartite multigraph with an edge for each transfer. Its edges have a colouring
//! with as many colours as the busiest rank has transfers (D. Koenig, 1916). A round is a colour.

/// Returns the round of each pair (sender, receiver), and the number of rounds: the most that a rank sends or receives.
pub(super) fn rounds(num_ranks: usize, pairs: &[(usize, usize)]) -> (Vec<u32>, u32) {
    // Sent, then received.
    let mut of_rank = vec![0usize; 2 * num_ranks];
    for &(from, to) in pairs {
        of_rank[from] += 1;
        of_rank[num_ranks + to] += 1;
    }
    let num_rounds = of_rank.into_iter().max().unwrap_or(0);
    let mut colouring = Colouring {
        num_ranks,
        num_rounds,
        pairs,
        round: vec![0; pairs.len()],
        at: vec![NONE; 2 * num_ranks * num_rounds],
    };
    (0..pairs.len()).for_each(|pair| colouring.add(pair));
    (colouring.round, num_rounds as u32)
}

const NONE: u32 = u32::MAX;

struct Colouring<'a> {
    num_ranks: usize,
    num_rounds: usize,
    pairs: &'a [(usize, usize)],
    /// The round of each pair, once it has one.
    round: Vec<u32>,
    /// The pair of each rank in each round, or `NONE`: `[senders, receivers][ranks][rounds]`.
    at: Vec<u32>,
}

impl Colouring<'_> {
    /// Gives a pair a round. If no round is free on both sides, two rounds are swapped along the path of pairs from the receiver.
    fn add(&mut self, pair: usize) {
        let (from, to) = self.pairs[pair];
        let (free_from, free_to) = (self.free(0, from), self.free(1, to));
        self.swap_along_path(to, free_from, free_to);
        self.set(pair, free_from);
    }

    fn index(&self, side: usize, rank: usize, round: usize) -> usize {
        (side * self.num_ranks + rank) * self.num_rounds + round
    }

    /// The first round in which a rank does nothing on this side.
    fn free(&self, side: usize, rank: usize) -> usize {
        let row = &self.at[self.index(side, rank, 0)..][..self.num_rounds];
        row.iter().position(|&pair| pair == NONE).expect("a rank has no more pairs than there are rounds")
    }

    /// Makes round `a` free at the receiver `rank`, whose round `b` is free. The path cannot reach a sender at which `a` is free,
    /// since it enters senders in round `a`.
    fn swap_along_path(&mut self, rank: usize, a: usize, b: usize) {
        let (mut side, mut rank, mut round) = (1, rank, a);
        let mut path = Vec::new();
        loop {
            let pair = self.at[self.index(side, rank, round)];
            if pair == NONE {
                break;
            }
            let pair = pair as usize;
            path.push(pair);
            side = 1 - side;
            rank = if side == 0 { self.pairs[pair].0 } else { self.pairs[pair].1 };
            round = if round == a { b } else { a };
        }
        for &pair in &path {
            let (from, to) = self.pairs[pair];
            let round = self.round[pair] as usize;
            let places = [self.index(0, from, round), self.index(1, to, round)];
            places.into_iter().for_each(|place| self.at[place] = NONE);
        }
        for pair in path {
            self.set(pair, if self.round[pair] as usize == a { b } else { a });
        }
    }

    fn set(&mut self, pair: usize, round: usize) {
        let (from, to) = self.pairs[pair];
        self.round[pair] = round as u32;
        let places = [self.index(0, from, round), self.index(1, to, round)];
        places.into_iter().for_each(|place| self.at[place] = pair as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain generator of numbers below `below` (SplitMix64).
    fn random(state: &mut u64, below: usize) -> usize {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((word ^ (word >> 31)) % below as u64) as usize
    }

    #[test]
    fn rounds_are_as_many_as_the_busiest_rank_has_transfers() {
        let mut state = 1;
        for _ in 0..2000 {
            let num_ranks = 2 + random(&mut state, 9);
            let count = random(&mut state, 60);
            let pairs: Vec<(usize, usize)> =
                (0..count).map(|_| (random(&mut state, num_ranks), random(&mut state, num_ranks))).collect();
            let (rounds, num_rounds) = rounds(num_ranks, &pairs);
            let of = |rank: usize, side: fn(&(usize, usize)) -> usize| {
                let mut of: Vec<u32> =
                    pairs.iter().zip(&rounds).filter(|(p, _)| side(p) == rank).map(|(_, &r)| r).collect();
                of.sort_unstable();
                of
            };
            let mut busiest = 0;
            for rank in 0..num_ranks {
                for side in [|p: &(usize, usize)| p.0, |p: &(usize, usize)| p.1] {
                    let of = of(rank, side);
                    busiest = busiest.max(of.len());
                    assert!(
                        of.windows(2).all(|pair| pair[0] < pair[1]),
                        "rank {rank} has two in a round: {of:?}"
                    );
                    assert!(of.iter().all(|&round| round < num_rounds));
                }
            }
            assert_eq!(num_rounds as usize, busiest);
        }
    }
}
