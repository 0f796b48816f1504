//! What changed since a start: which rank received and lost which experts, and what that costs.

use super::Improvement;
use crate::placement::{NO_EXPERT, held_slots};

/// A rank gives one expert, or fills an empty slot where `out` is [`NO_EXPERT`], and takes another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replacement {
    pub rank: usize,
    pub out: u32,
    pub taken: u32,
}

/// The experts that ranks received and lost. An expert that returns is neither.
#[derive(Debug, Default)]
pub(super) struct Changes {
    width: usize,
    received: Rows,
    lost: Rows,
    total: usize,
}

impl Changes {
    pub fn new(num_ranks: usize, width: usize) -> Self {
        Changes { width, received: Rows::new(num_ranks, width), lost: Rows::new(num_ranks, width), total: 0 }
    }

    /// Starts again without changes.
    pub fn restart(&mut self, num_ranks: usize, width: usize) {
        if (self.received.lengths.len(), self.width) != (num_ranks, width) {
            *self = Changes::new(num_ranks, width);
        }
        self.received.lengths.fill(0);
        self.lost.lengths.fill(0);
        self.total = 0;
    }

    /// The number of changed slots.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The number of changed slots of a rank.
    #[inline(always)]
    pub fn of_rank(&self, rank: usize) -> usize {
        self.received.lengths[rank] as usize
    }

    /// Sets the numbers of ranks: one for those without changed slots, and one for others.
    #[inline(always)]
    pub fn mark(&self, numbers: &mut [f32], unchanged: f32, changed: f32) {
        for (number, &length) in numbers.iter_mut().zip(&self.received.lengths) {
            *number = if length > 0 { changed } else { unchanged };
        }
    }

    /// As [`Changes::mark`], where ranks without changed slots keep their numbers.
    #[inline(always)]
    pub fn mark_more(&self, numbers: &mut [f32], changed: f32) {
        for (number, &length) in numbers.iter_mut().zip(&self.received.lengths) {
            *number = if length > 0 { changed } else { *number };
        }
    }

    pub fn is_lost(&self, rank: usize, expert: u32) -> bool {
        self.lost.of(rank, self.width).contains(&expert)
    }

    pub fn is_received(&self, rank: usize, expert: u32) -> bool {
        self.received.of(rank, self.width).contains(&expert)
    }

    /// Returns by how much a replacement raises the number of changed slots: -1 to 1.
    pub fn added(&self, Replacement { rank, out, taken }: Replacement) -> isize {
        isize::from(!self.is_lost(rank, taken)) - isize::from(self.is_received(rank, out))
    }

    pub fn add(&mut self, replacement: Replacement) {
        let Replacement { rank, out, taken } = replacement;
        self.total = self.total.saturating_add_signed(self.added(replacement));
        if !self.lost.remove(rank, self.width, taken) {
            self.received.push(rank, self.width, taken);
        }
        if out != NO_EXPERT && !self.received.remove(rank, self.width, out) {
            self.lost.push(rank, self.width, out);
        }
    }

    /// Returns the price of all changed slots.
    pub fn price(&self, prices: &Prices) -> f64 {
        if prices.are_zero {
            return 0.0;
        }
        (0..self.received.lengths.len()).map(|rank| self.price_of_rank(prices, rank)).sum()
    }

    /// Returns the price of a rank's changed slots.
    pub fn price_of_rank(&self, prices: &Prices, rank: usize) -> f64 {
        self.received.of(rank, self.width).iter().map(|&expert| prices.of(rank, expert)).sum()
    }
}

/// Up to as many experts of each rank as it has slots.
#[derive(Debug, Default)]
struct Rows {
    /// `[ranks][slots of a rank]`. The first ones are used.
    experts: Vec<u32>,
    lengths: Vec<u32>,
}

impl Rows {
    fn new(num_ranks: usize, width: usize) -> Self {
        // A replacement may add an expert before it removes one.
        Rows { experts: vec![0; num_ranks * (width + 1)], lengths: vec![0; num_ranks] }
    }

    #[inline(always)]
    fn of(&self, rank: usize, width: usize) -> &[u32] {
        &self.experts[rank * (width + 1)..][..self.lengths[rank] as usize]
    }

    fn push(&mut self, rank: usize, width: usize, expert: u32) {
        self.experts[rank * (width + 1) + self.lengths[rank] as usize] = expert;
        self.lengths[rank] += 1;
    }

    fn remove(&mut self, rank: usize, width: usize, expert: u32) -> bool {
        let Some(place) = self.of(rank, width).iter().position(|&other| other == expert) else {
            return false;
        };
        let first = rank * (width + 1);
        self.lengths[rank] -= 1;
        self.experts[first + place] = self.experts[first + self.lengths[rank] as usize];
        true
    }
}

/// The slots that a step changes, with their new experts: at most four.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct SlotChanges {
    changes: [(u32, u32); 4],
    length: usize,
}

impl SlotChanges {
    pub(super) fn push(&mut self, slot: usize, expert: u32) {
        self.changes[self.length] = (slot as u32, expert);
        self.length += 1;
    }
}

impl std::ops::Deref for SlotChanges {
    type Target = [(u32, u32)];

    fn deref(&self) -> &[(u32, u32)] {
        &self.changes[..self.length]
    }
}

/// Slots where each expert that stays on a rank keeps the slot of the start.
#[derive(Debug, Default)]
pub(super) struct Arrangement {
    width: usize,
    start: Vec<u32>,
    slots: Vec<u32>,
}

impl Arrangement {
    /// Starts with other slots, without those that `empty` empties.
    pub fn start(&mut self, width: usize, start: &[u32], empty: impl FnOnce(&mut [u32])) {
        self.width = width;
        self.start.clear();
        self.start.extend_from_slice(start);
        empty(&mut self.start);
        self.slots.clone_from(&self.start);
    }

    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Returns to the start.
    pub fn restart(&mut self) {
        self.slots.copy_from_slice(&self.start);
    }

    /// Gives `taken` to a rank in place of `out`, or in an empty slot. Adds the changed slots with their experts.
    pub fn replace(&mut self, replacement: Replacement, changes: &mut SlotChanges) {
        let Replacement { rank, out, taken } = replacement;
        let first = rank * self.width;
        let (start, slots) = (&self.start[first..][..self.width], &mut self.slots[first..][..self.width]);
        let slot = slots.iter().position(|&held| held == out).expect("the rank gives what it holds");
        let is_home = |place: &usize| start[*place] == taken && slots[*place] != taken;
        let home = (0..start.len()).find(is_home).unwrap_or(slot);
        let moved = std::mem::replace(&mut slots[home], taken);
        changes.push(first + home, taken);
        if home != slot {
            slots[slot] = moved;
            changes.push(first + slot, moved);
        }
    }
}

/// The price of each expert on each rank.
pub(super) struct Prices {
    same_node: f64,
    other: f64,
    are_zero: bool,
    /// The index of each rank's node.
    nodes: Vec<usize>,
    num_experts: usize,
    /// Whether the start holds an expert on a node, `[nodes][experts]`.
    is_held: Vec<bool>,
}

impl Prices {
    /// Nothing has a price.
    pub const NONE: Prices = Prices {
        same_node: 0.0,
        other: 0.0,
        are_zero: true,
        nodes: Vec::new(),
        num_experts: 0,
        is_held: Vec::new(),
    };

    /// The prices of an improvement from `start`.
    pub fn new(improvement: &Improvement<'_>, start: &[u32]) -> Self {
        let (price, num_experts) = (&improvement.price, improvement.shape.num_experts());
        let mut prices = Prices {
            same_node: price.same_node,
            other: price.other,
            are_zero: price.same_node == 0.0 && price.other == 0.0,
            nodes: Vec::new(),
            num_experts,
            is_held: Vec::new(),
        };
        if prices.are_zero {
            return prices;
        }
        let mut names: Vec<i32> = Vec::new();
        for rank in 0..improvement.shape.num_ranks() {
            let name = price.rank_to_node.map_or(0, |nodes| nodes[rank]);
            let node = names.iter().position(|&other| other == name).unwrap_or(names.len());
            if node == names.len() {
                names.push(name);
                prices.is_held.resize(names.len() * num_experts, false);
            }
            prices.nodes.push(node);
            for (_, expert) in held_slots(&start[improvement.slots_of(rank)]) {
                prices.is_held[node * num_experts + expert as usize] = true;
            }
        }
        prices
    }

    /// The lowest price of a changed slot.
    pub fn least(&self) -> f64 {
        self.same_node.min(self.other)
    }

    pub fn are_zero(&self) -> bool {
        self.are_zero
    }

    pub fn of(&self, rank: usize, expert: u32) -> f64 {
        match self.are_zero {
            true => 0.0,
            false if self.is_held[self.nodes[rank] * self.num_experts + expert as usize] => self.same_node,
            false => self.other,
        }
    }

    /// Returns by how much a replacement raises the price of all changed slots.
    pub fn added(&self, changes: &Changes, Replacement { rank, out, taken }: Replacement) -> f64 {
        if self.are_zero {
            return 0.0;
        }
        let paid = if changes.is_lost(rank, taken) { 0.0 } else { self.of(rank, taken) };
        paid - if changes.is_received(rank, out) { self.of(rank, out) } else { 0.0 }
    }
}
