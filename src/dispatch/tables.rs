//! The dispatch tables of one layer, in TensorRT-LLM's format.

use crate::placement::{Shape, held_slots};

/// Which slots serve each expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerTables {
    /// Slots of each expert, `[num_experts]`.
    pub replica_count: Vec<u32>,
    /// The sum of the counts before each, `[num_experts]`.
    pub replica_start: Vec<u32>,
    /// The slots of each expert, ascending, from its start on, `[num_slots]`. Zeros follow where ranks have fewer slots.
    pub replica_slots: Vec<u32>,
}

impl LayerTables {
    /// The tables of a layer whose slots hold `slot_experts`.
    pub fn new(shape: Shape, slot_experts: &[u32]) -> Self {
        let mut replica_count = vec![0; shape.num_experts()];
        held_slots(slot_experts).for_each(|(_, expert)| replica_count[expert as usize] += 1);
        let mut sum = 0;
        let before = |&count: &u32| {
            sum += count;
            sum - count
        };
        let replica_start: Vec<u32> = replica_count.iter().map(before).collect();
        let mut next = replica_start.clone();
        let mut replica_slots = vec![0; slot_experts.len()];
        for (slot, expert) in held_slots(slot_experts) {
            let place = &mut next[expert as usize];
            replica_slots[*place as usize] = slot as u32;
            *place += 1;
        }
        LayerTables { replica_count, replica_start, replica_slots }
    }

    /// The slots of an expert, ascending.
    pub fn slots_of(&self, expert: usize) -> &[u32] {
        &self.replica_slots[self.replica_start[expert] as usize..][..self.replica_count[expert] as usize]
    }

    /// The first slot of each expert, and last the invalid slot.
    pub fn first_slots(&self, shape: Shape) -> Vec<u32> {
        let first = |expert| self.slots_of(expert)[0];
        (0..shape.num_experts()).map(first).chain([shape.num_slots() as u32]).collect()
    }

    /// The experts with several slots.
    pub fn replicated(&self) -> impl Iterator<Item = usize> {
        (0..self.replica_count.len()).filter(|&expert| self.replica_count[expert] > 1)
    }

    /// The ranks that hold an expert, ascending.
    pub fn holders(&self, shape: Shape, expert: usize) -> Vec<Holder> {
        let mut holders: Vec<Holder> = Vec::new();
        for (replica, &slot) in (self.replica_start[expert]..).zip(self.slots_of(expert)) {
            let rank = shape.rank_of(slot as usize) as u32;
            match holders.last_mut() {
                Some(holder) if holder.rank == rank => holder.size += 1,
                _ => holders.push(Holder { rank, first: replica, size: 1 }),
            }
        }
        holders
    }

    /// Writes the slots of each expert padded with -1, `[num_experts][max_replicas]`.
    pub fn fill_dense(&self, dense: &mut [u32], max_replicas: usize) {
        dense.fill(u32::MAX);
        for (expert, row) in dense.chunks_exact_mut(max_replicas).enumerate() {
            let slots = self.slots_of(expert);
            row[..slots.len()].copy_from_slice(slots);
        }
    }
}

/// A rank that holds an expert, with its replicas there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The rank.
    pub rank: u32,
    /// The first of the replicas, as an index in the table of slots.
    pub first: u32,
    /// The number of replicas.
    pub size: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_list_the_slots_of_each_expert() {
        // Slots 0 1 2 | 3 4 5 hold experts 0 1 2 | 3 0 1.
        let tables = LayerTables::new(Shape::new(4, 6, 2).unwrap(), &[0, 1, 2, 3, 0, 1]);
        assert_eq!(tables.replica_count, [2, 2, 1, 1]);
        assert_eq!(tables.replica_start, [0, 2, 4, 5]);
        assert_eq!(tables.replica_slots, [0, 4, 1, 5, 2, 3]);
        let mut dense = [0; 12];
        tables.fill_dense(&mut dense, 3);
        assert_eq!(dense.map(|slot| slot as i32), [0, 4, -1, 1, 5, -1, 2, -1, -1, 3, -1, -1]);
    }

    #[test]
    fn entries_of_empty_slots_are_the_last_and_zero() {
        let empty = crate::placement::NO_EXPERT;
        // Slots 0 1 2 | 3 4 5 hold experts 1 - 0 | - 1 2.
        let tables = LayerTables::new(Shape::new(3, 6, 2).unwrap(), &[1, empty, 0, empty, 1, 2]);
        assert_eq!(tables.replica_start, [0, 1, 3]);
        assert_eq!(tables.replica_slots, [2, 0, 4, 5, 0, 0]);
    }
}
