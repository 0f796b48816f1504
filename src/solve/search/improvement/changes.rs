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
#[derive(Debug, Clone)]
pub(super) struct Changes {
    /// `[ranks]`
    received: Vec<Vec<u32>>,
    lost: Vec<Vec<u32>>,
    total: usize,
}

impl Changes {
    pub fn new(num_ranks: usize) -> Self {
        Changes { received: vec![Vec::new(); num_ranks], lost: vec![Vec::new(); num_ranks], total: 0 }
    }

    /// The number of changed slots.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The number of changed slots of a rank.
    pub fn of_rank(&self, rank: usize) -> usize {
        self.received[rank].len()
    }

    pub fn is_lost(&self, rank: usize, expert: u32) -> bool {
        self.lost[rank].contains(&expert)
    }

    pub fn is_received(&self, rank: usize, expert: u32) -> bool {
        self.received[rank].contains(&expert)
    }

    /// Returns by how much a replacement raises the number of changed slots: -1 to 1.
    pub fn added(&self, Replacement { rank, out, taken }: Replacement) -> isize {
        isize::from(!self.lost[rank].contains(&taken)) - isize::from(self.is_received(rank, out))
    }

    pub fn add(&mut self, replacement: Replacement) {
        let Replacement { rank, out, taken } = replacement;
        self.total = self.total.saturating_add_signed(self.added(replacement));
        let remove = |experts: &mut Vec<u32>, expert: u32| {
            experts
                .iter()
                .position(|&other| other == expert)
                .map(|place| experts.swap_remove(place))
                .is_some()
        };
        if !remove(&mut self.lost[rank], taken) {
            self.received[rank].push(taken);
        }
        if out != NO_EXPERT && !remove(&mut self.received[rank], out) {
            self.lost[rank].push(out);
        }
    }

    /// Returns the price of all changed slots.
    pub fn price(&self, prices: &Prices) -> f64 {
        if prices.are_zero {
            return 0.0;
        }
        (0..self.received.len()).map(|rank| self.price_of_rank(prices, rank)).sum()
    }

    /// Returns the price of a rank's changed slots.
    pub fn price_of_rank(&self, prices: &Prices, rank: usize) -> f64 {
        self.received[rank].iter().map(|&expert| prices.of(rank, expert)).sum()
    }
}

/// Slots where each expert that stays on a rank keeps the slot of the start.
#[derive(Debug, Clone)]
pub(super) struct Arrangement {
    width: usize,
    start: Vec<u32>,
    slots: Vec<u32>,
}

impl Arrangement {
    pub fn new(width: usize, start: Vec<u32>) -> Self {
        Arrangement { width, slots: start.clone(), start }
    }

    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Returns to the start.
    pub fn restart(&mut self) {
        self.slots.copy_from_slice(&self.start);
    }

    /// Gives `taken` to a rank in place of `out`, or in an empty slot. Returns the changed slots with their experts.
    pub fn replace(&mut self, replacement: Replacement) -> impl Iterator<Item = (u32, u32)> {
        let Replacement { rank, out, taken } = replacement;
        let slots = rank * self.width..(rank + 1) * self.width;
        let slot = slots.clone().find(|&slot| self.slots[slot] == out).expect("the rank gives what it holds");
        let is_home = |&slot: &usize| self.start[slot] == taken && self.slots[slot] != taken;
        let home = slots.clone().find(is_home).unwrap_or(slot);
        let moved = std::mem::replace(&mut self.slots[home], taken);
        if home != slot {
            self.slots[slot] = moved;
        }
        [Some((home as u32, taken)), (home != slot).then_some((slot as u32, moved))].into_iter().flatten()
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
        let paid = if changes.lost[rank].contains(&taken) { 0.0 } else { self.of(rank, taken) };
        paid - if changes.is_received(rank, out) { self.of(rank, out) } else { 0.0 }
    }
}
