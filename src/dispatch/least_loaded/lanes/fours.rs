//! Evens out loads along the edges of many ranks, four edges of a step at once.

use std::arch::x86_64::*;

use crate::dispatch::least_loaded::edges::Edge;
use crate::dispatch::least_loaded::plan::{SPARE, SplitPlan};

/// The edges of a layer with many in each step.
#[derive(Debug)]
pub struct Fours {
    steps: Vec<Step>,
    fours: Vec<Four>,
    /// The edges from an expert's last holder to its first.
    others: Vec<Edge>,
    num_cells: usize,
}

/// How many of [`Fours::fours`] and of [`Fours::others`] a step has.
#[derive(Debug)]
struct Step {
    num_fours: usize,
    num_others: usize,
}

/// Four edges from a holder to the next. Some may be of spare cells.
#[derive(Debug)]
struct Four {
    /// The cells of the first holders.
    units: [u32; 4],
    /// The cells of the loads of both ranks.
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
        // Four of the spare cells: two units and two loads.
        let spare = plan.num_cells() as u32 + 4;
        let mut found =
            Fours { steps: vec![], fours: vec![], others: vec![], num_cells: plan.num_cells() + SPARE };
        for ends in starts.windows(2) {
            let (num_fours, num_others) = (found.fours.len(), found.others.len());
            // Of the last four edges.
            let mut taken = 4;
            for edge in &plan.steps.edges[ends[0] as usize..ends[1] as usize] {
                if edge.units[0] + 1 != edge.units[1] {
                    found.others.push(*edge);
                    continue;
                }
                if taken == 4 {
                    found.fours.push(Four { units: [spare; 4], loads: [[spare + 2; 4], [spare + 3; 4]] });
                    taken = 0;
                }
                if let Some(four) = found.fours.last_mut() {
                    four.units[taken] = edge.units[0];
                    (four.loads[0][taken], four.loads[1][taken]) = (edge.loads[0], edge.loads[1]);
                }
                taken += 1;
            }
            found.steps.push(Step {
                num_fours: found.fours.len() - num_fours,
                num_others: found.others.len() - num_others,
            });
        }
        Some(found)
    }

    /// Evens out the loads of all ranks, step by step. `cells` are the loads, the units and [`SPARE`] ones.
    pub fn sweep(&self, cells: &mut [i32], mix: u32, sweeps: u32) {
        assert!(self.num_cells <= cells.len());
        for turn in mix as i32..(mix + sweeps) as i32 {
            // SAFETY: there are fours only where the processor has AVX2. There are cells at all of their indexes.
            unsafe { self.sweep_once(cells.as_mut_ptr(), turn) };
        }
    }

    /// # Safety
    /// There are [`Fours::num_cells`] cells. Nobody else uses them.
    #[target_feature(enable = "avx2")]
    unsafe fn sweep_once(&self, cells: *mut i32, turn: i32) {
        let turns = _mm_set1_epi32(turn);
        let (mut fours, mut others) = (&self.fours[..], &self.others[..]);
        for step in &self.steps {
            let (of_step, others_of_step);
            (of_step, fours) = fours.split_at(step.num_fours);
            (others_of_step, others) = others.split_at(step.num_others);
            // SAFETY: the caller's promise.
            unsafe {
                of_step.iter().for_each(|four| four.even_out(cells, turns));
                others_of_step.iter().for_each(|edge| edge.even_out(cells, turn));
            }
        }
    }
}

impl Four {
    /// Evens out the loads along four edges, as [`Edge::even_out`] does along one.
    ///
    /// # Safety
    /// As for [`Edge::even_out`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn even_out(&self, cells: *mut i32, turns: __m128i) {
        let cell = |index: u32| {
            // SAFETY: the caller's promise.
            unsafe { cells.add(index as usize) }
        };
        // SAFETY: as above. The second holder's units follow the first one's.
        let two = |[one, other]: [u32; 2]| unsafe {
            _mm_castsi128_ps(_mm_unpacklo_epi64(
                _mm_loadl_epi64(cell(one).cast()),
                _mm_loadl_epi64(cell(other).cast()),
            ))
        };
        // SAFETY: as above.
        let loads_of = |indexes: [u32; 4]| unsafe {
            let [a, b, c, d] = indexes.map(|index| *cell(index));
            _mm_setr_epi32(a, b, c, d)
        };
        let [a, b, c, d] = self.units;
        let (low, high) = (two([a, b]), two([c, d]));
        let units = _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(low, high));
        let both = _mm_add_epi32(units, _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(low, high)));
        let (loads, other_loads) = (loads_of(self.loads[0]), loads_of(self.loads[1]));

        let difference = _mm_sub_epi32(loads, other_loads);
        let is_up = _mm_and_si128(_mm_add_epi32(both, turns), _mm_set1_epi32(1));
        let half = _mm_add_epi32(_mm_srai_epi32::<1>(difference), _mm_and_si128(difference, is_up));
        let left = _mm_max_epi32(_mm_sub_epi32(units, half), _mm_setzero_si128());
        let left = _mm_min_epi32(left, both);
        let moved = _mm_sub_epi32(units, left);

        let other_left = _mm_sub_epi32(both, left);
        let (low, high) = (_mm_unpacklo_epi32(left, other_left), _mm_unpackhi_epi32(left, other_left));
        let store_loads = |indexes: [u32; 4], loads: __m128i| {
            let loads = [
                _mm_extract_epi32::<0>(loads),
                _mm_extract_epi32::<1>(loads),
                _mm_extract_epi32::<2>(loads),
                _mm_extract_epi32::<3>(loads),
            ];
            // SAFETY: as above.
            indexes.into_iter().zip(loads).for_each(|(index, load)| unsafe { *cell(index) = load });
        };
        // SAFETY: as above.
        unsafe {
            // Cells are aligned to 4 bytes only, which this store allows.
            _mm_storel_epi64(cell(a).cast(), low);
            _mm_storel_epi64(cell(b).cast(), _mm_unpackhi_epi64(low, low));
            _mm_storel_epi64(cell(c).cast(), high);
            _mm_storel_epi64(cell(d).cast(), _mm_unpackhi_epi64(high, high));
        }
        store_loads(self.loads[0], _mm_sub_epi32(loads, moved));
        store_loads(self.loads[1], _mm_add_epi32(other_loads, moved));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tables::LayerTables;
    use crate::placement::Shape;
    use proptest::prelude::*;

    /// A layer of two slots a rank, whose first experts have most replicas, and numbers for all cells.
    fn a_case() -> impl Strategy<Value = (usize, Vec<u32>, Vec<i32>, u32)> {
        (150usize..250).prop_flat_map(|num_ranks| {
            let num_experts = num_ranks;
            let others = prop::collection::vec((0..num_experts as u32, 0..4u32), num_ranks);
            let slots = others.prop_map(move |others| {
                let spread = |(expert, times): (u32, u32)| expert >> (3 * times);
                (0..num_experts as u32).chain(others.into_iter().map(spread)).collect::<Vec<u32>>()
            });
            // A load gets at most the tokens of all cells, fewer than 2^31.
            let most = i32::MAX / (3 * num_ranks + SPARE) as i32;
            let cell = prop_oneof![2 => Just(0), 6 => 0..5, 1 => 0..5000, 1 => 0..most];
            let cells = prop::collection::vec(cell, 3 * num_ranks + SPARE);
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
            let mut expected = found.clone();
            fours.sweep(&mut found, mix, 2);
            for turn in mix as i32..mix as i32 + 2 {
                // SAFETY: there are as many cells.
                plan.steps.edges.iter().for_each(|edge| unsafe { edge.even_out(expected.as_mut_ptr(), turn) });
            }
            prop_assert_eq!(&found[..plan.num_cells()], &expected[..plan.num_cells()]);
        }
    }
}
