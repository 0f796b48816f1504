//! The best exchange of each two ranks. Its score is kept until one of them changes, and then says whether to compare them again.

use super::changes::Replacement;
use super::costs::LayerCosts;
use super::rules::{Best, FoundStep, Rules};
use crate::placement::NO_EXPERT;
use crate::solve::search::lanes::{LANES, Lanes, Vector};

/// By how much a change of one of two ranks is taken to raise the score of their best exchange.
const MOST_RISE: f32 = 1.25;

/// The best exchanges of pairs of ranks.
#[derive(Default)]
pub(super) struct Exchanges {
    /// The ranks, rounded up to whole vectors.
    lanes: usize,
    /// The score of the best exchange, its gain per changed slot: `[ranks][lanes]`, symmetric.
    scores: Vec<f32>,
    /// When it was computed, likewise.
    computed: Vec<u32>,
    /// The cell that the first rank gives, `[ranks][lanes]`.
    given: Vec<u32>,
    /// The time from which scores are of the present exponent.
    since: u32,
    /// How many steps were refused, and how many slots may change, where the scores were computed.
    rules: (usize, usize),
    /// The scores of one rank's exchanges, `[lanes]`. At first a bound.
    of_rank: Vec<f32>,
    /// What a rank adds at most to the gains of its exchanges, as it has to pay for slots or is paid back, and
    /// one over the number of slots that change at least: `[lanes]`.
    credits: Vec<f32>,
    shares: Vec<f32>,
    /// For the slots of the two ranks, `[2][cells]`: what an exchange pays for them, infinite if they may not move,
    /// and how many changes it undoes.
    prices: [Vec<f32>; 2],
    undone: [Vec<f32>; 2],
}

impl Exchanges {
    /// Takes another layer, whose clock has not been seen.
    pub fn start(&mut self, costs: &LayerCosts) {
        let (lanes, num_ranks, row) = (costs.rank_lanes, costs.num_ranks, costs.row);
        if self.lanes != lanes || self.computed.len() != num_ranks * lanes {
            self.lanes = lanes;
            self.computed = vec![0; num_ranks * lanes];
            self.scores = vec![0.0; num_ranks * lanes];
            self.given = vec![0; num_ranks * lanes];
        }
        self.rules = (0, 2);
        for numbers in [&mut self.of_rank, &mut self.credits, &mut self.shares] {
            numbers.clear();
            numbers.resize(lanes, 0.0);
        }
        self.prices.iter_mut().chain(&mut self.undone).for_each(|numbers| numbers.resize(row, 0.0));
    }

    /// Starts another exponent: old scores are those from now on.
    pub fn restart(&mut self, costs: &LayerCosts) {
        self.since = costs.clock;
    }

    /// Finds the best exchange of one of the `hot` ranks.
    ///
    /// With `by_old_scores`, ranks that have changed are compared again only where their last score, raised by [`MOST_RISE`],
    /// would be the best. Few scores rise by more.
    #[inline(always)]
    pub fn find<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        hot: &[usize],
        by_old_scores: bool,
        best: &mut Best,
    ) {
        let rules_now = (rules.refused.len(), rules.left().min(2));
        if self.rules != rules_now {
            self.rules = rules_now;
            self.computed.fill(0);
        }
        rules.changes.mark(&mut self.shares, 0.5, 1.0);
        rules.since_start.mark_more(&mut self.shares, 1.0);
        if !rules.prices.are_zero() {
            let exponent = (1 << SQUARINGS) as f32;
            let unchanged = -exponent * rules.prices.least() as f32;
            for (rank, credit) in self.credits[..costs.num_ranks].iter_mut().enumerate() {
                let is_changed = rules.is_changed(rank);
                *credit = if is_changed { exponent * rules.refund_of_rank(rank) } else { unchanged };
            }
        }
        let mut found = None;
        for &one in hot {
            self.bound_rank::<V, SQUARINGS>(costs, one);
            if by_old_scores {
                self.bound_by_old_scores(costs, one);
            }
            loop {
                let (other, score) = largest::<V>(&self.of_rank);
                if score <= best.score {
                    break;
                }
                let (pair, reverse) = (one * self.lanes + other, other * self.lanes + one);
                if !self.is_computed(costs, one, other) {
                    let BestOfPair { score, cells, .. } =
                        self.best_of_pair::<V, SQUARINGS>(costs, rules, [one, other]);
                    (self.scores[pair], self.scores[reverse]) = (score, score);
                    (self.computed[pair], self.computed[reverse]) = (costs.clock, costs.clock);
                    (self.given[pair], self.given[reverse]) = (cells[0] as u32, cells[1] as u32);
                }
                // The score takes the place of its bound, and is the best if it stays in front.
                if self.scores[pair] >= score {
                    let given = [pair, reverse].map(|pair| costs.experts[self.given[pair] as usize]);
                    (best.score, found) = (self.scores[pair], Some(exchange([one, other], given)));
                    break;
                }
                self.of_rank[other] = self.scores[pair];
            }
        }
        best.step = found.map(FoundStep::Exchange).or(best.step);
    }

    #[inline(always)]
    fn is_computed(&self, costs: &LayerCosts, one: usize, other: usize) -> bool {
        let computed = self.computed[one * self.lanes + other];
        computed >= costs.versions[one] && computed >= costs.versions[other]
    }

    /// Bounds the scores of the exchanges of a rank.
    ///
    /// The cost is convex. So two ranks gain at most what even loads would gain.
    #[inline(always)]
    fn bound_rank<V: Vector, const SQUARINGS: usize>(&mut self, costs: &LayerCosts, rank: usize) {
        let lanes = self.lanes;
        let credit = V::splat(self.credits[rank] + costs.costs[rank]);
        let share = V::splat(self.shares[rank]);
        for block in 0..lanes / LANES {
            let at = block * LANES..(block + 1) * LANES;
            let mut even = V::zero();
            for sample in 0..costs.num_samples {
                let loads = &costs.rank_loads[sample * lanes..][..lanes];
                let sum = V::of(&loads[at.clone()]).add(V::splat(loads[rank]));
                even = even.add(sum.mul(V::splat(0.5)).power::<SQUARINGS>());
            }
            let of_others = V::of(&costs.costs[at.clone()]).add(V::of(&self.credits[at.clone()]));
            let gain = credit.add(of_others).sub(even.add(even)).max(V::zero());
            let mut scores = Lanes::ZERO;
            gain.mul(share.max(V::of(&self.shares[at.clone()]))).store(&mut scores);
            self.of_rank[at].copy_from_slice(&scores.0);
        }
        self.of_rank[costs.num_ranks..].fill(0.0);
        self.of_rank[rank] = 0.0;
    }

    /// Replaces the bounds of a rank's exchanges by their last scores, or by estimates of [`MOST_RISE`] times those where a rank
    /// has changed since.
    #[inline(always)]
    fn bound_by_old_scores(&mut self, costs: &LayerCosts, rank: usize) {
        let row = rank * self.lanes..rank * self.lanes + costs.num_ranks;
        let (of_rank, since) = (costs.versions[rank], self.since);
        let scores = self.scores[row.clone()].iter().zip(&self.computed[row]);
        let bounds = self.of_rank[..costs.num_ranks].iter_mut().zip(&costs.versions);
        // Without branches, so that vectors do it.
        for ((bound, &of_other), (&score, &computed)) in bounds.zip(scores) {
            let is_new = computed >= of_rank.max(of_other);
            let likely = if is_new { score } else { score * MOST_RISE };
            let likely = if computed >= since { likely } else { f32::INFINITY };
            *bound = if likely < *bound { likely } else { *bound };
        }
    }

    /// Prepares the slots of one of two ranks, to move to the other.
    // Once in the program, since it has few vectors.
    #[inline(never)]
    fn prepare(&mut self, costs: &LayerCosts, rules: &Rules<'_>, [from, to]: [usize; 2], side: usize) {
        let exponent = costs.exponent();
        let (prices, undone) = (&mut self.prices[side], &mut self.undone[side]);
        prices.fill(f32::INFINITY);
        undone.fill(0.0);
        let has_changed = [from, to].map(|rank| rules.changes.of_rank(rank) > 0);
        let has_rules = !rules.is_pinned.is_empty() || !rules.refused.is_empty();
        for (place, cell) in costs.cells_of(from).enumerate() {
            let expert = costs.experts[cell];
            if expert == NO_EXPERT
                || costs.holds(to, expert)
                || has_rules && (rules.is_pinned(costs, cell) || rules.refuses(to, expert))
            {
                continue;
            }
            prices[place] = 0.0;
            if has_changed[0] && rules.changes.is_received(from, expert) {
                undone[place] += 1.0;
            }
            if has_changed[1] && rules.changes.is_lost(to, expert) {
                undone[place] += 1.0;
            }
            if !rules.prices.are_zero() {
                let moved = Replacement { rank: to, out: NO_EXPERT, taken: expert };
                let paid = rules.prices.added(rules.changes, moved) as f32;
                prices[place] = exponent * (paid - rules.refund(from, expert));
            }
        }
    }

    /// Returns the best exchange of two ranks.
    #[inline(always)]
    fn best_of_pair<V: Vector, const SQUARINGS: usize>(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        [one, other]: [usize; 2],
    ) -> BestOfPair {
        self.prepare(costs, rules, [one, other], 0);
        self.prepare(costs, rules, [other, one], 1);
        let (row, num_cells, base) = (costs.row, costs.experts.len(), costs.costs[one] + costs.costs[other]);
        let mut best = BestOfPair {
            score: 0.0,
            cells: [0; 2],
            ranks: [one, other],
            has_limit: rules.left() < 2 || !rules.may_receive(one) || !rules.may_receive(other),
        };
        for (place, cell) in costs.cells_of(one).enumerate() {
            let price = self.prices[0][place];
            if price == f32::INFINITY {
                continue;
            }
            // One over the number of changed slots, at least 1.
            let rest = V::splat(2.0 - self.undone[0][place]);
            for block in 0..row / LANES {
                let at = block * LANES..(block + 1) * LANES;
                let mut cost = V::of(&self.prices[1][at.clone()]).sub(V::splat(base - price));
                for sample in 0..costs.num_samples {
                    let replica_loads = &costs.replica_loads[sample * num_cells..][..num_cells];
                    let rank_loads = &costs.rank_loads[sample * self.lanes..][..self.lanes];
                    let load = replica_loads[cell];
                    let moved = V::of(&replica_loads[other * row..][at.clone()]);
                    let of_one = V::splat(rank_loads[one] - load).add(moved);
                    let of_other = V::splat(rank_loads[other] + load).sub(moved);
                    cost = cost.add(of_one.power::<SQUARINGS>().add(of_other.power::<SQUARINGS>()));
                }
                let changed = rest.sub(V::of(&self.undone[1][at.clone()])).max(V::splat(1.0));
                // 1 or 2 slots change: 1.5 less half of them is one over them.
                let share = V::splat(1.5).sub(changed.mul(V::splat(0.5)));
                let scores = V::zero().sub(cost).mul(share);
                let above = scores.above(best.score);
                if above != 0 {
                    let mut lanes = Lanes::ZERO;
                    scores.store(&mut lanes);
                    best.take(costs, rules, [cell, other * row + at.start], &lanes, above);
                }
            }
        }
        best
    }
}

/// The best exchange of two ranks.
struct BestOfPair {
    /// 0 if none gains.
    score: f32,
    /// What each rank gives.
    cells: [usize; 2],
    ranks: [usize; 2],
    /// Whether limits may refuse an exchange.
    has_limit: bool,
}

impl BestOfPair {
    /// Takes the best of the lanes that have a bit in `above`. The second cell is that of the first lane.
    // Few vectors come here.
    #[inline(never)]
    fn take(
        &mut self,
        costs: &LayerCosts,
        rules: &Rules<'_>,
        [out, first]: [usize; 2],
        scores: &Lanes,
        mut above: u16,
    ) {
        while above != 0 {
            let lane = above.trailing_zeros() as usize;
            above &= above - 1;
            let cells = [out, first + lane];
            let given = cells.map(|cell| costs.experts[cell]);
            if scores.0[lane] > self.score && (!self.has_limit || rules.allow(&exchange(self.ranks, given))) {
                (self.score, self.cells) = (scores.0[lane], cells);
            }
        }
    }
}

/// Two ranks give an expert each to the other.
fn exchange([one, other]: [usize; 2], [out, taken]: [u32; 2]) -> [Replacement; 2] {
    [Replacement { rank: one, out, taken }, Replacement { rank: other, out: taken, taken: out }]
}

/// Returns the first place with the largest number.
#[inline(always)]
fn largest<V: Vector>(numbers: &[f32]) -> (usize, f32) {
    let mut most = V::of(&numbers[..LANES]);
    for block in numbers.chunks_exact(LANES).skip(1) {
        most = most.max(V::of(block));
    }
    let most = most.most();
    (numbers.iter().position(|&number| number == most).unwrap_or(0), most)
}
