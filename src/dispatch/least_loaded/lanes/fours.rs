//! Evens out loads along the edges of many ranks, four edges of a step at once.

use std::arch::x86_64::*;

use crate::dispatch::least_loaded::edges::Edge;
use crate::dispatch::least_loaded::plan::{SPARE, SplitPlan};

/// The edges of a layer with many in each step.
#[derive(Debug)]
pub struct Fours {
    steps: Vec<Step>,
    /// Those from a holder to the next.
    fours: Vec<Four>,
    /// Those from an expert's last holder to its first.
    apart: Vec<Four>,
    num_cells: usize,
    /// Whether no rank has more than two cells. See [`cells_beside`].
    are_sums: bool,
}

/// How many of [`Fours::fours`] and of [`Fours::apart`] a step has.
#[derive(Debug)]
struct Step {
    num_fours: usize,
    num_apart: usize,
}

/// Four edges of a step. Some may be of spare cells.
#[derive(Debug)]
struct Four {
    /// The cells of both holders.
    units: [[u32; 4]; 2],
    /// The cells of the loads of both ranks. Where loads are sums, the cells beside those of the holders.
    loads: [[u32; 4]; 2],
}

/// The fewest edges a step, on average. With fewer, most of four would be spare.
const LEAST: usize = 16;

impl Fours {
    /// Prepares for the batches of a layer. `None` if its steps have few edges, or the processor lacks AVX2.
    pub fn new(plan: &SplitPlan) -> Option<Self> {
        let starts = &plan.steps.starts;
        if plan.steps.edges.len() < LEAST * (starts.len() - 1).max(1) || !is_x86_feature_detected!("avx2") {
            return None;
        }
        let beside = cells_beside(plan);
        let with_beside = |edge: &Edge| match &beside {
            Some(beside) => Edge { loads: edge.units.map(|cell| beside[cell as usize]), ..*edge },
            None => *edge,
        };
        let mut found = Fours {
            steps: vec![],
            fours: vec![],
            apart: vec![],
            num_cells: plan.num_cells() + SPARE,
            are_sums: beside.is_some(),
        };
        for ends in starts.windows(2) {
            let edges = plan.steps.edges[ends[0] as usize..ends[1] as usize].iter().map(with_beside);
            let (near, apart): (Vec<Edge>, Vec<Edge>) =
                edges.partition(|edge| edge.units[0] + 1 == edge.units[1]);
            found.steps.push(Step { num_fours: near.len().div_ceil(4), num_apart: apart.len().div_ceil(4) });
            found.fours.extend(near.chunks(4).map(|edges| Four::of(edges, plan)));
            found.apart.extend(apart.chunks(4).map(|edges| Four::of(edges, plan)));
        }
        Some(found)
    }

    /// Whether [`Fours::sweep`] needs the loads only of experts on one rank, and leaves them.
    pub fn are_sums(&self) -> bool {
        self.are_sums
    }

    /// Evens out the loads of all ranks, step by step. `cells` are the loads, the units and [`SPARE`] ones.
    pub fn sweep(&self, cells: &mut [i32], mix: u32, sweeps: u32) {
        assert!(self.num_cells <= cells.len());
        for turn in mix as i32..(mix + sweeps) as i32 {
            // SAFETY: there are fours only where the processor has AVX2. There are cells at all of their indexes.
            unsafe {
                match self.are_sums {
                    true => self.sweep_once::<true>(cells.as_mut_ptr(), turn),
                    false => self.sweep_once::<false>(cells.as_mut_ptr(), turn),
                }
            }
        }
    }

    /// # Safety
    /// There are [`Fours::num_cells`] cells. Nobody else uses them.
    #[target_feature(enable = "avx2")]
    unsafe fn sweep_once<const SUMS: bool>(&self, cells: *mut i32, turn: i32) {
        let turns = _mm_set1_epi32(turn);
        let (mut fours, mut apart) = (&self.fours[..], &self.apart[..]);
        for step in &self.steps {
            let (of_step, apart_of_step);
            (of_step, fours) = fours.split_at(step.num_fours);
            (apart_of_step, apart) = apart.split_at(step.num_apart);
            // SAFETY: the caller's promise.
            unsafe {
                of_step.iter().for_each(|four| four.even_out::<SUMS, true>(cells, turns));
                apart_of_step.iter().for_each(|four| four.even_out::<SUMS, false>(cells, turns));
            }
        }
    }
}

impl Four {
    /// Up to four edges.
    fn of(edges: &[Edge], plan: &SplitPlan) -> Self {
        let first = plan.num_cells() as u32 + 4;
        let spare = Edge { units: [first, first + 1], loads: [first + 2, first + 3] };
        let edge = |index: usize| *edges.get(index).unwrap_or(&spare);
        let cells = |cell: fn(Edge) -> u32| std::array::from_fn(|index| cell(edge(index)));
        Four {
            units: [cells(|edge| edge.units[0]), cells(|edge| edge.units[1])],
            loads: [cells(|edge| edge.loads[0]), cells(|edge| edge.loads[1])],
        }
    }

    /// Evens out the loads along four edges, as [`Edge::even_out`] does along one. With `SUMS`, the load of a rank is the sum of a
    /// holder's cell and the one beside. With `NEAR`, the second holders' cells follow the first ones'.
    ///
    /// # Safety
    /// As for [`Edge::even_out`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn even_out<const SUMS: bool, const NEAR: bool>(&self, cells: *mut i32, turns: __m128i) {
        let cell = |index: u32| {
            // SAFETY: the caller's promise.
            unsafe { cells.add(index as usize) }
        };
        // Two cells each, aligned to 4 bytes only.
        let two = |indexes: [u32; 2]| {
            // SAFETY: as above. There is a cell after each.
            let [one, other] = indexes.map(|index| unsafe { cell(index).cast::<f64>().read_unaligned() });
            _mm_castpd_ps(_mm_set_pd(other, one))
        };
        let load = |indexes: [u32; 4]| {
            // SAFETY: as above.
            let [a, b, c, d] = indexes.map(|index| unsafe { *cell(index) });
            _mm_setr_epi32(a, b, c, d)
        };
        let [a, b, c, d] = self.units[0];
        let (units, both) = if NEAR {
            let (low, high) = (two([a, b]), two([c, d]));
            let units = _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(low, high));
            (units, _mm_hadd_epi32(_mm_castps_si128(low), _mm_castps_si128(high)))
        } else {
            let units = load(self.units[0]);
            (units, _mm_add_epi32(units, load(self.units[1])))
        };
        let (loads, other_loads) = (load(self.loads[0]), load(self.loads[1]));

        // What the first rank keeps of both is half of both, its own load apart, and by how much more else the other rank has.
        let most = if SUMS { both } else { _mm_add_epi32(units, units) };
        let twice = _mm_add_epi32(most, _mm_sub_epi32(other_loads, loads));
        let is_up = _mm_andnot_si128(_mm_add_epi32(both, turns), _mm_set1_epi32(1));
        let left = _mm_add_epi32(_mm_srai_epi32::<1>(twice), _mm_and_si128(twice, is_up));
        let left = _mm_min_epi32(_mm_max_epi32(left, _mm_setzero_si128()), both);
        let other_left = _mm_sub_epi32(both, left);

        let store_two = |[one, other]: [u32; 2], units: __m128i| {
            let units = _mm_castsi128_pd(units);
            // SAFETY: as above.
            unsafe {
                cell(one).cast::<f64>().write_unaligned(_mm_cvtsd_f64(units));
                cell(other).cast::<f64>().write_unaligned(_mm_cvtsd_f64(_mm_unpackhi_pd(units, units)));
            }
        };
        let store = |indexes: [u32; 4], numbers: __m128i| {
            let numbers = [
                _mm_extract_epi32::<0>(numbers),
                _mm_extract_epi32::<1>(numbers),
                _mm_extract_epi32::<2>(numbers),
                _mm_extract_epi32::<3>(numbers),
            ];
            // SAFETY: as above.
            indexes.into_iter().zip(numbers).for_each(|(index, number)| unsafe { *cell(index) = number });
        };
        if NEAR {
            store_two([a, b], _mm_unpacklo_epi32(left, other_left));
            store_two([c, d], _mm_unpackhi_epi32(left, other_left));
        } else {
            store(self.units[0], left);
            store(self.units[1], other_left);
        }
        if !SUMS {
            let moved = _mm_sub_epi32(units, left);
            store(self.loads[0], _mm_sub_epi32(loads, moved));
            store(self.loads[1], _mm_add_epi32(other_loads, moved));
        }
    }
}

/// For the cell of each holder, the other one of its rank: of the rank's other holder, or of the experts that it alone holds. Their
/// sum is its load. `None` where a rank has more than two.
fn cells_beside(plan: &SplitPlan) -> Option<Vec<u32>> {
    let num_ranks = plan.num_ranks();
    let mut beside = vec![u32::MAX; num_ranks + plan.holders.len()];
    // The first holder of each rank.
    let mut first = vec![None; num_ranks];
    let mut is_shared: Vec<bool> = vec![false; num_ranks];
    plan.residents.iter().for_each(|&(_, rank)| is_shared[rank as usize] = true);
    let num_split = plan.holder_start[plan.num_split] as usize;
    for (cell, &rank) in (num_ranks..).zip(&plan.holder_ranks[..num_split]) {
        match first[rank as usize].replace(cell) {
            None => beside[cell] = rank,
            Some(other) if !is_shared[rank as usize] => {
                (beside[cell], beside[other]) = (other as u32, cell as u32);
                is_shared[rank as usize] = true;
            }
            Some(_) => return None,
        }
    }
    Some(beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tables::LayerTables;
    use crate::placement::Shape;
    use proptest::prelude::*;

    /// A layer of two or three slots a rank, whose first experts have most replicas, and numbers for all cells.
    fn a_case() -> impl Strategy<Value = (usize, Vec<u32>, Vec<i32>, u32)> {
        (150usize..250, 2usize..4).prop_flat_map(|(num_ranks, slots_per_rank)| {
            let num_experts = num_ranks;
            let others =
                prop::collection::vec((0..num_experts as u32, 0..4u32), num_ranks * (slots_per_rank - 1));
            let slots = others.prop_map(move |others| {
                let spread = |(expert, times): (u32, u32)| expert >> (3 * times);
                (0..num_experts as u32).chain(others.into_iter().map(spread)).collect::<Vec<u32>>()
            });
            // A load gets at most the tokens of all cells, fewer than 2^31.
            let num_cells = (slots_per_rank + 1) * num_ranks + SPARE;
            let most = i32::MAX / num_cells as i32;
            let cell = prop_oneof![2 => Just(0), 6 => 0..5, 1 => 0..5000, 1 => 0..most];
            let cells = prop::collection::vec(cell, num_cells);
            (Just(num_ranks), slots.prop_shuffle(), cells, any::<u16>().prop_map(u32::from))
        })
    }

    proptest! {
        #[test]
        fn four_edges_are_evened_out_as_one_by_one((num_ranks, slots, cells, mix) in a_case()) {
            let shape = Shape::new(num_ranks, slots.len(), num_ranks).unwrap();
            let plan = SplitPlan::new(shape, &LayerTables::new(shape, &slots));
            prop_assume!(plan.steps.edges.len() >= LEAST * (plan.steps.starts.len() - 1));
            let Some(fours) = Fours::new(&plan) else { return Ok(()) };
            let mut found = cells[..plan.num_cells() + SPARE].to_vec();
            // The loads are of all cells of each rank.
            found[..num_ranks].fill(0);
            plan.residents.iter().for_each(|&(expert, rank)| found[rank as usize] += cells[expert as usize]);
            let with_units = |cells: &[i32]| {
                let mut cells = cells.to_vec();
                let num_split = plan.holder_start[plan.num_split] as usize;
                for (cell, &rank) in (num_ranks..).zip(&plan.holder_ranks[..num_split]) {
                    cells[rank as usize] += cells[cell];
                }
                cells
            };
            let mut expected = with_units(&found);
            if !fours.are_sums() {
                found.clone_from(&expected);
            }
            fours.sweep(&mut found, mix, 2);
            for turn in mix as i32..mix as i32 + 2 {
                // SAFETY: there are as many cells.
                plan.steps.edges.iter().for_each(|edge| unsafe { edge.even_out(expected.as_mut_ptr(), turn) });
            }
            if fours.are_sums() {
                found = with_units(&found);
            }
            prop_assert_eq!(&found[..plan.num_cells()], &expected[..plan.num_cells()]);
        }
    }
}
