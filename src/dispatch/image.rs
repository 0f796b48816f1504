//! The words of a dispatch's memory, before they are copied to the device.

use super::layout::LayerParts;
use super::layout::TableParts;
use super::rule_tables::RuleTables;
use super::tables::LayerTables;
use crate::device::Part;
use crate::error::{Result, try_zeroed};

/// The words of a dispatch's memory.
pub(super) struct Image {
    words: Vec<u32>,
}

impl Image {
    /// `bytes` of zeros.
    pub fn new(bytes: usize) -> Result<Self> {
        Ok(Image { words: try_zeroed(Some(bytes / 4), super::TABLES)? })
    }

    /// All words.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Writes the tables of a layer. Returns the parts that they take.
    pub fn write_layer(&mut self, parts: &LayerParts, tables: &LayerTables, rule: &RuleTables) -> TableParts {
        let LayerParts { tables: space, dense, max_replicas } = parts;
        if let Some(dense) = dense {
            tables.fill_dense(self.part(*dense), *max_replicas);
        }
        let shares = match (space.shares, rule) {
            (Some(part), RuleTables::Nearest(shares)) => Some(self.write(part, shares.iter().copied())),
            _ => None,
        };
        if let (Some(parts), RuleTables::LeastLoaded(plan)) = (&space.split, rule) {
            parts.write(plan, self);
        }
        TableParts {
            replica_count: self.write(space.replica_count, tables.replica_count.iter().copied()),
            replica_start: self.write(space.replica_start, tables.replica_start.iter().copied()),
            replica_slots: self.write(space.replica_slots, tables.replica_slots.iter().copied()),
            shares,
            split: space.split,
        }
    }

    /// Writes a table to the start of a part. Returns what it takes of the part.
    pub fn write(&mut self, part: Part, table: impl ExactSizeIterator<Item = u32>) -> Part {
        let written = Part { start: part.start, bytes: table.len() * 4 };
        assert!(written.bytes <= part.bytes, "{written:?} of {part:?}");
        self.part(written).iter_mut().zip(table).for_each(|(word, value)| *word = value);
        written
    }

    fn part(&mut self, part: Part) -> &mut [u32] {
        &mut self.words[part.start / 4..][..part.bytes / 4]
    }
}
