//! The edges of a placement: which pairs of ranks even out their loads with an expert's tokens, and in which step.

use std::hint::select_unpredictable;

/// Two ranks that hold an expert, by indexes in the loads of all ranks and the units of all holders behind them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Edge {
    /// The expert's units on both ranks.
    pub units: [u32; 2],
    /// The loads of the ranks, which have their numbers.
    pub loads: [u32; 2],
}

impl Edge {
    /// Evens out the loads of both ranks. `turn` is that of the sweep, with `mix`.
    ///
    /// # Safety
    /// There are cells at all indexes of this edge. Nobody else uses them.
    #[inline(always)]
    pub unsafe fn even_out(&self, cells: *mut i32, turn: i32) {
        let [one, other, load, other_load] = [self.units[0], self.units[1], self.loads[0], self.loads[1]]
            // SAFETY: the caller's promise.
            .map(|index| unsafe { cells.add(index as usize) });
        // SAFETY: as above.
        unsafe {
            let (units, other_units) = (*one, *other);
            let difference = *load - *other_load;
            // Half of an odd difference is rounded up or down, from edge to edge and from sweep to sweep.
            let half = (difference >> 1) + (difference & (units ^ other_units ^ turn) & 1);
            // Branches would be mispredicted.
            let most = select_unpredictable(half < units, half, units);
            let moved = select_unpredictable(most > -other_units, most, -other_units);
            *one = units - moved;
            *other = other_units + moved;
            *load -= moved;
            *other_load += moved;
        }
    }
}

/// Edges in steps. Those of one step share no rank, so their order does not matter.
#[derive(Debug, Default)]
pub struct Steps {
    /// The edges, step by step.
    pub edges: Vec<Edge>,
    /// Where the edges of each step begin. The last entry is the number of edges.
    pub starts: Vec<u32>,
}

impl Steps {
    /// Gives each edge the first step in which neither of its ranks has one.
    pub fn new(edges: impl Iterator<Item = Edge>, num_ranks: usize) -> Self {
        let mut busy = vec![Busy::default(); num_ranks];
        let mut placed: Vec<(u32, Edge)> = edges
            .map(|edge| {
                let [one, other] = edge.loads.map(|rank| rank as usize);
                let step = first_free(&busy[one], &busy[other]);
                busy[one].add(step);
                busy[other].add(step);
                (step, edge)
            })
            .collect();
        placed.sort_by_key(|&(step, _)| step);
        let num_steps = placed.last().map_or(0, |&(step, _)| step + 1);
        let start = |step| placed.partition_point(|&(other, _)| other < step) as u32;
        let starts = (0..=num_steps).map(start).collect();
        Steps { edges: placed.into_iter().map(|(_, edge)| edge).collect(), starts }
    }
}

/// The steps in which a rank has an edge.
#[derive(Debug, Clone, Default)]
struct Busy {
    /// All steps below.
    below: u32,
    /// Further steps, ascending.
    others: Vec<u32>,
}

impl Busy {
    fn add(&mut self, step: u32) {
        if step > self.below {
            let index = self.others.partition_point(|&other| other < step);
            self.others.insert(index, step);
            return;
        }
        self.below += 1;
        let end = (self.below..).zip(&self.others).take_while(|&(below, &other)| below == other).count();
        self.below += end as u32;
        self.others.drain(..end);
    }
}

/// The first step in which neither rank has an edge.
fn first_free(one: &Busy, other: &Busy) -> u32 {
    let from = one.below.max(other.below);
    let later = |busy: &Busy| busy.others.partition_point(|&step| step < from);
    let (mut a, mut b) = (&one.others[later(one)..], &other.others[later(other)..]);
    let mut step = from;
    loop {
        let taken = [&mut a, &mut b].map(|steps| match **steps {
            [first, ref rest @ ..] if first == step => {
                *steps = rest;
                true
            }
            _ => false,
        });
        if taken == [false, false] {
            return step;
        }
        step += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(ranks: &[[u32; 2]]) -> Vec<Vec<[u32; 2]>> {
        let edges = ranks.iter().map(|&ranks| Edge { units: [0; 2], loads: ranks });
        let steps = Steps::new(edges, 8);
        let of_step = |ends: &[u32]| &steps.edges[ends[0] as usize..ends[1] as usize];
        steps.starts.windows(2).map(|ends| of_step(ends).iter().map(|edge| edge.loads).collect()).collect()
    }

    #[test]
    fn each_edge_is_in_the_first_step_without_its_ranks() {
        // The third edge meets the first two, and the fourth is free again in the first step. The fifth meets ranks 0 and 4.
        assert_eq!(
            steps(&[[0, 1], [2, 3], [1, 2], [4, 5], [0, 4]]),
            [vec![[0, 1], [2, 3], [4, 5]], vec![[1, 2], [0, 4]]]
        );
        // Rank 0 is busy in steps 0 and 1, rank 1 in steps 0 and 2. So the last edge is in step 3.
        assert_eq!(
            steps(&[[0, 2], [1, 3], [0, 3], [1, 2], [0, 1]]),
            [vec![[0, 2], [1, 3]], vec![[0, 3], [1, 2]], vec![[0, 1]]]
        );
        assert_eq!(steps(&[]), Vec::<Vec<[u32; 2]>>::new());
    }

    #[test]
    fn no_rank_has_two_edges_in_a_step_and_no_edge_could_be_earlier() {
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let ranks: Vec<[u32; 2]> = (0..100)
            .map(|_| {
                let one = next(8);
                [one as u32, ((one + 1 + next(7)) % 8) as u32]
            })
            .collect();
        let found = steps(&ranks);
        assert_eq!(found.iter().map(Vec::len).sum::<usize>(), 100);
        for (index, step) in found.iter().enumerate() {
            let mut seen: Vec<u32> = step.concat();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 2 * step.len(), "step {index}");
            for [one, other] in step {
                for earlier in &found[..index] {
                    assert!(earlier.iter().flatten().any(|rank| rank == one || rank == other));
                }
            }
        }
    }
}
