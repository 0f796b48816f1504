//! Routes small batches to at most 8 ranks, with a lane of a register for each rank. So loads do not go through memory from edge
//! to edge, and no branch depends on a count.

mod avx2;
mod fours;
mod sweeps;
mod vector;

use std::arch::x86_64::*;

pub use self::avx2::Avx2;
pub use self::fours::Fours;
use self::sweeps::Sweeps;
use self::vector::{Flattened, LANES, Vector, ZERO, load, store};
use super::plan::{SplitPlan, mix_of};
use crate::device::Id;
use crate::dispatch::batch::Batch;
use crate::dispatch::tables::LayerTables;
use crate::placement::Shape;

/// The tables of a layer, and the batch.
#[derive(Debug)]
pub struct Lanes {
    /// For each expert, then for invalid ids: the index of its count among the numbers of `counts`.
    places: Vec<u32>,
    /// Minus the tokens that have no slot yet: first of the experts on several ranks, and of invalid ids. From `residents` on,
    /// of the experts on one rank, in the lane of their rank.
    counts: Vec<Vector>,
    residents: usize,
    /// The sum of each expert times its tokens, mod 2^32.
    sum: u32,
    /// The experts on several ranks.
    experts: Vec<Expert>,
    sweeps: Sweeps,
    /// For each of the experts: minus the tokens of the holders after each holder. The last vector is zero, for all others.
    after: Vec<Vector>,
    /// Of each expert, and at last of invalid ids.
    finds: Vec<Find>,
    /// The slots of the experts on several ranks, [`LANES`] each, and then of each other.
    slots: Vec<u32>,
}

/// Where the slots of an expert are found.
#[derive(Debug, Clone, Copy)]
struct Find {
    /// The bytes before its numbers in [`Lanes::after`].
    after: u32,
    /// Its first slot in [`Lanes::slots`].
    slot: u32,
}

/// An expert on several ranks.
#[derive(Debug)]
struct Expert {
    /// The number of each rank among those of the expert, or [`NOT_HELD`].
    numbers: Vector,
    /// All bits of its ranks.
    held: Vector,
    /// In each lane the number of its ranks, and 2^16 / this number, rounded up.
    num_ranks: Vector,
    inverse: Vector,
    /// The rank of each holder, and then one that does not hold it.
    ranks: Vector,
}

/// The most experts. A batch clears and adds up the counts of all.
const MAX_EXPERTS: usize = 1024;

/// More than any number of tokens.
const NOT_HELD: i32 = 1 << 30;

impl Lanes {
    /// The most ids of a batch. In a larger one, most ends of runs are predicted.
    pub const MAX_IDS: usize = 192;

    /// Prepares for the batches of a layer. `None` if there are too many ranks or experts, or a rank has several replicas of an
    /// expert, or the processor has no such registers.
    pub fn new(shape: Shape, tables: &LayerTables, plan: &SplitPlan) -> Option<Self> {
        let is_present = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt");
        let is_single = plan.holders.iter().all(|holder| holder.size == 1);
        let is_too_large = shape.num_ranks() > LANES || shape.num_experts() > MAX_EXPERTS;
        if !is_present || is_too_large || !is_single {
            return None;
        }
        let num_split = plan.num_split as u32;
        let mut slots = vec![0; plan.num_split * LANES];
        let residents = (plan.num_split + 1).div_ceil(LANES);
        let mut of_rank = [0; LANES];
        let (mut places, mut finds) = (Vec::new(), Vec::new());
        let after = |row: u32| row * size_of::<Vector>() as u32;
        for expert in 0..shape.num_experts() {
            let (location, own) = (plan.locations[expert], tables.slots_of(expert));
            if location.place < num_split {
                let slot = location.place * LANES as u32;
                slots[slot as usize..][..own.len()].copy_from_slice(own);
                places.push(location.place);
                finds.push(Find { after: after(location.place), slot });
            } else {
                let row = &mut of_rank[location.rank as usize];
                let count = (residents + *row) * LANES + location.rank as usize;
                *row += 1;
                places.push(count as u32);
                finds.push(Find { after: after(num_split), slot: slots.len() as u32 });
                slots.extend(own);
            }
        }
        places.push(num_split);
        finds.push(Find { after: after(num_split), slot: slots.len() as u32 });
        // Further ones are not read if the ids are those that were counted.
        slots.extend([shape.num_slots() as u32; LANES + 1]);
        Some(Lanes {
            places,
            finds,
            counts: vec![ZERO; residents + of_rank.into_iter().max().unwrap_or(0)],
            residents,
            sum: 0,
            experts: (0..plan.num_split).map(|place| expert_at(plan, place)).collect(),
            sweeps: Sweeps::new(plan),
            after: vec![ZERO; plan.num_split + 1],
            slots,
        })
    }

    /// Begins a batch.
    pub fn begin(&mut self) {
        self.counts.fill(ZERO);
        self.sum = 0;
    }

    /// Counts a part of a batch.
    // On its own, its loop keeps everything in registers.
    #[inline(never)]
    pub fn count<I: Id>(&mut self, ids: &[I]) {
        let (places, counts) = (&self.places[..], self.counts.as_flattened_mut());
        let (invalid, mut sum) = (places.len() - 1, self.sum);
        let mut add = |id: &I| {
            let expert = id.bin(invalid);
            // SAFETY: there is a place for each expert and for invalid ids, and a count at each place.
            unsafe { *counts.get_unchecked_mut(*places.get_unchecked(expert) as usize) -= 1 };
            sum = sum.wrapping_add(expert as u32);
        };
        let (four, rest) = ids.as_chunks::<4>();
        four.iter().for_each(|ids| ids.iter().for_each(&mut add));
        rest.iter().for_each(add);
        self.sum = sum;
    }

    /// Splits the tokens of a batch.
    pub fn split(&mut self) {
        let num_experts = self.places.len() - 1;
        let num_invalid = self.counts.as_flattened()[self.places[num_experts] as usize].unsigned_abs();
        let mix = mix_of(self.sum.wrapping_sub(num_invalid.wrapping_mul(num_experts as u32)));
        // SAFETY: there are lanes only where the processor has AVX2.
        unsafe {
            let loads = self.split_evenly(mix);
            self.sweeps.run(loads, mix);
        }
    }

    /// Writes the units of each holder, and up to 7 numbers behind the last, and those of each expert on several ranks.
    pub fn write_units(&self, units: &mut [i32], totals: &mut [u32]) {
        let counts = self.counts.as_flattened();
        totals
            .iter_mut()
            .zip(&counts[..self.experts.len()])
            .for_each(|(total, &count)| *total = -count as u32);
        // SAFETY: as above.
        unsafe { self.write_by_holder(units) }
    }

    /// Prepares for [`Lanes::assign`].
    pub fn plan(&mut self) {
        // SAFETY: as above.
        unsafe { self.sum_up() }
    }

    /// Writes the next slots of a batch.
    pub fn assign<I: Id>(&mut self, part: &mut Batch<I>) {
        // SAFETY: there are lanes only where the processor has these.
        unsafe { self.find_slots(part) }
    }

    /// Gives all ranks of each expert as many tokens, or some one more. Returns the ranks' loads.
    #[target_feature(enable = "avx2")]
    fn split_evenly(&mut self, mix: u32) -> __m256i {
        let mut loads = _mm256_setzero_si256();
        let firsts: [i32; LANES + 1] = std::array::from_fn(|ranks| (mix % ranks.max(1) as u32) as i32);
        let counts = self.counts.as_flattened();
        for ((expert, units), &tokens) in self.experts.iter().zip(self.sweeps.units_mut()).zip(counts) {
            let (tokens, inverse) = (_mm256_set1_epi32(-tokens), load(&expert.inverse));
            let num_ranks = load(&expert.num_ranks);
            let first = _mm256_set1_epi32(firsts[expert.num_ranks.0[0] as usize]);
            // Both are below 2^16, and the error of the inverse times the tokens is below 2^16 / num_ranks.
            let each = _mm256_mulhi_epu16(tokens, inverse);
            let rest = _mm256_sub_epi32(tokens, _mm256_mullo_epi16(each, num_ranks));
            // Counted from the first on. Below 0 is more than any number without a sign.
            let number = _mm256_sub_epi32(load(&expert.numbers), first);
            let number = _mm256_min_epu32(number, _mm256_add_epi32(number, num_ranks));
            let of_ranks = _mm256_sub_epi32(each, _mm256_cmpgt_epi32(rest, number));
            let of_ranks = _mm256_and_si256(of_ranks, load(&expert.held));
            loads = _mm256_add_epi32(loads, of_ranks);
            store(units, of_ranks);
        }
        // At last, since what was stored number by number is not read as a vector until it is in the cache.
        for counts in &self.counts[self.residents..] {
            loads = _mm256_sub_epi32(loads, load(counts));
        }
        loads
    }

    #[target_feature(enable = "avx2")]
    fn write_by_holder(&self, units: &mut [i32]) {
        let mut first = 0;
        for (expert, by_rank) in self.experts.iter().zip(self.sweeps.units()) {
            let to = &mut units[first..first + LANES];
            let by_holder = _mm256_permutevar8x32_epi32(load(by_rank), load(&expert.ranks));
            // SAFETY: both have as many bytes.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), by_holder) };
            first += expert.num_ranks.0[0] as usize;
        }
    }

    /// Sums up the units after each holder.
    #[target_feature(enable = "avx2")]
    fn sum_up(&mut self) {
        let counts = self.counts.as_flattened();
        let (last_of_four, second_four) =
            (_mm256_set1_epi32(3), _mm256_set_epi32(-1, -1, -1, -1, 0, 0, 0, 0));
        for (((expert, units), after), &tokens) in
            self.experts.iter().zip(self.sweeps.units()).zip(&mut self.after).zip(counts)
        {
            let units = _mm256_permutevar8x32_epi32(load(units), load(&expert.ranks));
            let sums = _mm256_add_epi32(units, _mm256_slli_si256::<4>(units));
            let sums = _mm256_add_epi32(sums, _mm256_slli_si256::<8>(sums));
            let of_four = _mm256_and_si256(_mm256_permutevar8x32_epi32(sums, last_of_four), second_four);
            let sums = _mm256_add_epi32(sums, of_four);
            store(after, _mm256_add_epi32(sums, _mm256_set1_epi32(tokens)));
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,popcnt")]
    fn find_slots<I: Id>(&mut self, part: &mut Batch<I>) {
        let Self { places, counts, after, finds, slots, .. } = self;
        let (places, counts, slots) = (&places[..], counts.as_flattened_mut(), &slots[..]);
        let (finds, after) = (&finds[..], after.as_ptr());
        let invalid = places.len() - 1;
        part.route_by_four(|id| {
            let expert = id.bin(invalid);
            // SAFETY: as where they are counted.
            let left = unsafe { counts.get_unchecked_mut(*places.get_unchecked(expert) as usize) };
            *left += 1;
            // SAFETY: each place has one.
            let Find { after: bytes, slot } = *unsafe { finds.get_unchecked(expert) };
            // SAFETY: there are as many bytes and one vector more.
            let after = load(unsafe { &*after.byte_add(bytes as usize) });
            // A holder serves none of the last tokens, those after its own.
            let is_before = _mm256_cmpgt_epi32(_mm256_set1_epi32(*left), after);
            let holder = _mm256_movemask_ps(_mm256_castsi256_ps(is_before)).count_ones();
            // SAFETY: at least 8 slots follow each first one.
            unsafe { *slots.get_unchecked((slot + holder) as usize) }
        });
    }
}

/// The expert at a place.
fn expert_at(plan: &SplitPlan, place: usize) -> Expert {
    let of_expert = &plan.holder_ranks[plan.range_of(place)];
    let num_ranks = of_expert.len() as i32;
    let mut expert = Expert {
        numbers: Vector([NOT_HELD; LANES]),
        held: ZERO,
        num_ranks: Vector([num_ranks; LANES]),
        inverse: Vector([(1 << 16) / num_ranks + i32::from((1 << 16) % num_ranks > 0); LANES]),
        ranks: ZERO,
    };
    for (number, &rank) in of_expert.iter().enumerate() {
        expert.numbers.0[rank as usize] = number as i32;
        expert.held.0[rank as usize] = -1;
        expert.ranks.0[number] = rank as i32;
    }
    if let Some(other) = expert.held.0.iter().position(|&held| held == 0) {
        expert.ranks.0[of_expert.len()..].fill(other as i32);
    }
    expert
}
