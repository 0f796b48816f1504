//! Evens out loads along the edges of a plan, a step at once.

use std::arch::x86_64::*;

use super::vector::{LANES, Vector, ZERO, load, store};
use crate::dispatch::least_loaded::plan::SplitPlan;

/// The units of the experts on several ranks, and how they are moved.
#[derive(Debug)]
pub struct Sweeps {
    num_sweeps: u32,
    num_experts: usize,
    /// The units of each expert by rank, then those after each step, of the experts of its edges. At last zeros.
    units: Vec<Vector>,
    steps: Vec<Step>,
    /// Where the steps of the first sweep find units, those of the other sweeps, and each expert at last.
    first: Reads,
    next: Reads,
    end: Reads,
}

/// Edges that share no rank.
#[derive(Debug)]
struct Step {
    /// The rank at the other end of each rank's edge. A rank without an edge has itself.
    others: Vector,
    /// 1 at the second rank of each edge.
    is_second: Vector,
    /// All bits of the ranks whose edge is of the same expert as in the step before.
    kept: Vector,
}

impl Sweeps {
    /// Prepares for the batches of a layer.
    pub fn new(plan: &SplitPlan) -> Self {
        let [first, next, end] = Reads::of(plan);
        Sweeps {
            num_sweeps: plan.sweeps,
            num_experts: plan.num_split,
            units: vec![ZERO; plan.num_split + plan.steps.starts.len()],
            steps: steps_of(plan),
            first,
            next,
            end,
        }
    }

    /// The units of each expert by rank.
    pub fn units(&self) -> &[Vector] {
        &self.units[..self.num_experts]
    }

    /// The same, to be written before a batch is [run](Sweeps::run).
    pub fn units_mut(&mut self) -> &mut [Vector] {
        &mut self.units[..self.num_experts]
    }

    /// Evens out the loads along the edges, step by step.
    #[target_feature(enable = "avx2")]
    pub fn run(&mut self, loads: __m256i, mix: u32) {
        let Self { num_sweeps, num_experts, units, steps, first, next, end } = self;
        let units = units.as_mut_ptr();
        // A copy, which stays in a register.
        let mut loads = loads;
        for sweep in 0..*num_sweeps {
            let turn = _mm256_set1_epi32((mix + sweep) as i32);
            let mut last = _mm256_setzero_si256();
            let mut steps = steps.iter().zip(*num_experts..);
            let reads = if sweep == 0 { &*first } else { &*next };
            let take_next = |read| {
                let Some((step, to)) = steps.next() else { return };
                (loads, last) = take(step, read, loads, last, turn);
                // SAFETY: there are units of each step.
                store(unsafe { &mut *units.add(to) }, last);
            };
            // SAFETY: they are those of the same plan.
            unsafe { reads.for_each(units, take_next) };
        }
        let mut places = 0..*num_experts;
        let write_next = |read| {
            let Some(place) = places.next() else { return };
            // SAFETY: there are units of each expert.
            store(unsafe { &mut *units.add(place) }, read);
        };
        // SAFETY: as above.
        unsafe { end.for_each(units, write_next) };
    }
}

/// Moves units along the edges of a step. `read` are the units of its experts, without those that are kept in `last`. Returns the
/// loads and the units after it.
#[inline]
#[target_feature(enable = "avx2")]
fn take(step: &Step, read: __m256i, loads: __m256i, last: __m256i, turn: __m256i) -> (__m256i, __m256i) {
    let units = _mm256_or_si256(read, _mm256_and_si256(last, load(&step.kept)));
    let others = load(&step.others);
    let other_units = _mm256_permutevar8x32_epi32(units, others);
    let difference = _mm256_sub_epi32(loads, _mm256_permutevar8x32_epi32(loads, others));
    // Half of an odd difference is rounded up at one rank of an edge, and down at the other. A sum is as odd as an exclusive or,
    // and the compiler does not swap them. So what is known last comes last.
    let turn = _mm256_add_epi32(turn, load(&step.is_second));
    let is_up = _mm256_xor_si256(_mm256_add_epi32(turn, units), other_units);
    let up = _mm256_and_si256(_mm256_and_si256(difference, _mm256_set1_epi32(1)), is_up);
    let half = _mm256_add_epi32(_mm256_srai_epi32::<1>(difference), up);
    let least = _mm256_sub_epi32(_mm256_setzero_si256(), other_units);
    let moved = _mm256_max_epi32(least, _mm256_min_epi32(units, half));
    (_mm256_sub_epi32(loads, moved), _mm256_sub_epi32(units, moved))
}

/// Where units are read: some lanes of some vectors at a time. Each step writes a vector of its own, so no read waits for units
/// that it does not need.
#[derive(Debug, Default)]
struct Reads {
    runs: Vec<Run>,
    /// All bits of the lanes of a vector.
    masks: Vec<Vector>,
    /// The bytes before each vector.
    bytes: Vec<u32>,
}

/// Reads of as many vectors each.
#[derive(Debug)]
struct Run {
    num_vectors: usize,
    num_reads: usize,
}

impl Reads {
    /// Those of the steps of the first sweep, of the other sweeps, and of each expert at last.
    fn of(plan: &SplitPlan) -> [Reads; 3] {
        let num_ranks = plan.num_ranks() as u32;
        // The last step so far of each holder, in the sweep before and in this one.
        let mut before = vec![None; plan.holders.len()];
        let mut reads = [Reads::default(), Reads::default(), Reads::default()];
        for of_sweep in &mut reads[..2] {
            let mut now = vec![None; plan.holders.len()];
            for (step, ends) in plan.steps.starts.windows(2).enumerate() {
                let mut vectors = [None; LANES];
                for edge in &plan.steps.edges[ends[0] as usize..ends[1] as usize] {
                    for (unit, rank) in edge.units.into_iter().zip(edge.loads) {
                        let holder = (unit - num_ranks) as usize;
                        let place = plan.holder_start.partition_point(|&start| start as usize <= holder) - 1;
                        vectors[rank as usize] = match now[holder] {
                            Some(last) if last + 1 == step => None,
                            Some(last) => Some(plan.num_split + last),
                            None => Some(before[holder].map_or(place, |last| plan.num_split + last)),
                        };
                        now[holder] = Some(step);
                    }
                }
                of_sweep.push(plan, vectors);
            }
            before = now;
        }
        for place in 0..plan.num_split {
            let mut vectors = [None; LANES];
            for holder in plan.range_of(place) {
                let rank = plan.holder_ranks[holder] as usize;
                vectors[rank] = before[holder].map(|last| plan.num_split + last);
            }
            reads[2].push(plan, vectors);
        }
        reads
    }

    /// Reads each lane from a vector, or nothing.
    fn push(&mut self, plan: &SplitPlan, vectors: [Option<usize>; LANES]) {
        let mut parts: Vec<(usize, Vector)> = Vec::new();
        for (lane, vector) in vectors.into_iter().enumerate() {
            let Some(vector) = vector else { continue };
            let index = parts.iter().position(|part| part.0 == vector).unwrap_or_else(|| {
                parts.push((vector, ZERO));
                parts.len() - 1
            });
            parts[index].1.0[lane] = -1;
        }
        let num_vectors = match parts.len() {
            0..=1 => 1,
            2..=4 => 4,
            _ => LANES,
        };
        parts.resize(num_vectors, (plan.num_split + plan.steps.starts.len() - 1, ZERO));
        for (vector, mask) in parts {
            self.masks.push(mask);
            self.bytes.push((vector * size_of::<Vector>()) as u32);
        }
        match self.runs.last_mut() {
            Some(run) if run.num_vectors == num_vectors => run.num_reads += 1,
            _ => self.runs.push(Run { num_vectors, num_reads: 1 }),
        }
    }

    /// Calls `with` with the units of each read, one after the other.
    ///
    /// # Safety
    /// `units` are those of the plan's [`Sweeps`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn for_each(&self, units: *const Vector, mut with: impl FnMut(__m256i)) {
        let (mut masks, mut bytes) = (&self.masks[..], &self.bytes[..]);
        for run in &self.runs {
            let num = run.num_vectors * run.num_reads;
            let (of_run, bytes_of_run);
            (of_run, masks) = masks.split_at(num);
            (bytes_of_run, bytes) = bytes.split_at(num);
            // SAFETY: the caller's promise.
            unsafe {
                match run.num_vectors {
                    1 => read_each::<1>(units, of_run, bytes_of_run, &mut with),
                    4 => read_each::<4>(units, of_run, bytes_of_run, &mut with),
                    _ => read_each::<LANES>(units, of_run, bytes_of_run, &mut with),
                }
            }
        }
    }
}

/// The same, of `NUM` vectors each.
///
/// # Safety
/// There is a vector after as many `bytes` of `units`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn read_each<const NUM: usize>(
    units: *const Vector,
    masks: &[Vector],
    bytes: &[u32],
    with: &mut impl FnMut(__m256i),
) {
    for (masks, bytes) in masks.as_chunks::<NUM>().0.iter().zip(bytes.as_chunks::<NUM>().0) {
        let mut read = _mm256_setzero_si256();
        for (mask, &bytes) in masks.iter().zip(bytes) {
            // SAFETY: the caller's promise.
            let part = load(unsafe { &*units.byte_add(bytes as usize) });
            read = _mm256_or_si256(read, _mm256_and_si256(part, load(mask)));
        }
        with(read);
    }
}

/// The steps of a plan.
fn steps_of(plan: &SplitPlan) -> Vec<Step> {
    let mut last = [None; LANES];
    let step_of = |ends: &[u32]| {
        let mut step =
            Step { others: Vector(std::array::from_fn(|rank| rank as i32)), is_second: ZERO, kept: ZERO };
        let mut holders = [None; LANES];
        for edge in &plan.steps.edges[ends[0] as usize..ends[1] as usize] {
            let [one, other] = edge.loads.map(|rank| rank as usize);
            (step.others.0[one], step.others.0[other]) = (other as i32, one as i32);
            step.is_second.0[other] = 1;
            (holders[one], holders[other]) = (Some(edge.units[0]), Some(edge.units[1]));
        }
        for (rank, kept) in step.kept.0.iter_mut().enumerate() {
            *kept = -i32::from(holders[rank].is_some() && holders[rank] == last[rank]);
        }
        last = holders;
        step
    };
    plan.steps.starts.windows(2).map(step_of).collect()
}
