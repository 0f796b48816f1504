//! Where the tables of a dispatch lie in its memory: in the same places for every placement of a shape, so that a later
//! placement in the same workspace keeps their addresses.

use super::DispatchConfig;
use crate::device::{LEVEL_BLOCKS, LEVEL_LANES, LevelTables, Part, Place, Rule, Tables, level_memory_words};
use crate::error::{Error, Result};
use crate::placement::Shape;

/// What begins here may be read in vectors.
const ALIGNMENT: usize = 64;

/// Room for the tables of all layers, one layer after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    shape: Shape,
    has_shares: bool,
    has_level: bool,
    max_replicas: usize,
    /// Bytes from a layer to the next.
    stride: usize,
    bytes: usize,
}

/// Room for the tables of a layer; those of a placement may need less.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerRoom {
    pub tables: Tables,
    pub dense: Option<Part>,
}

impl Layout {
    pub fn of(shape: Shape, config: &DispatchConfig, num_layers: usize) -> Result<Self> {
        let mut layout = Layout {
            shape,
            has_shares: config.rule == Rule::Nearest,
            has_level: config.rule == Rule::LeastLoaded && config.place != Place::Host,
            max_replicas: config.max_replicas,
            stride: 0,
            bytes: 0,
        };
        let mut rooms = Rooms { end: 0 };
        layout.layer_from(&mut rooms)?;
        layout.stride = rooms.end;
        layout.bytes = rooms
            .end
            .checked_mul(num_layers)
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or_else(too_large)?;
        Ok(layout)
    }

    /// Bytes of the workspace.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The room of the layer with this index.
    pub fn layer(&self, index: usize) -> Result<LayerRoom> {
        self.layer_from(&mut Rooms { end: index * self.stride })
    }

    fn layer_from(&self, rooms: &mut Rooms) -> Result<LayerRoom> {
        let (num_experts, num_slots) = (self.shape.num_experts(), self.shape.num_slots());
        let tables = Tables {
            replica_count: rooms.words(num_experts, 1)?,
            replica_start: rooms.words(num_experts, 1)?,
            replica_slots: rooms.words(num_slots, 1)?,
            shares: self.has_shares.then(|| rooms.words(num_slots, 1)).transpose()?,
            level: self.has_level.then(|| rooms.level(self.shape)).transpose()?,
        };
        let dense = match self.max_replicas {
            0 => None,
            width => Some(rooms.words(num_experts, width)?),
        };
        Ok(LayerRoom { tables, dense })
    }
}

/// Gives room after room.
struct Rooms {
    end: usize,
}

impl Rooms {
    /// Room for `count` times as many words.
    fn words(&mut self, count: usize, words: usize) -> Result<Part> {
        let bytes = count.checked_mul(words).and_then(|words| words.checked_mul(4)).ok_or_else(too_large)?;
        let end = bytes.checked_next_multiple_of(ALIGNMENT).and_then(|room| room.checked_add(self.end));
        let start = std::mem::replace(&mut self.end, end.ok_or_else(too_large)?);
        Ok(Part { start, bytes })
    }

    fn level(&mut self, shape: Shape) -> Result<LevelTables> {
        let (num_experts, num_slots) = (shape.num_experts(), shape.num_slots());
        // Of the slots of a replicated expert all but one are spare.
        let spare = num_slots - num_experts;
        let (experts, groups) = (spare.min(num_experts), num_slots.min(spare * 2));
        let lanes = if shape.num_ranks() <= LEVEL_LANES { shape.num_ranks() } else { 0 };
        Ok(LevelTables {
            group_rank: self.words(groups, 1)?,
            group_place: self.words(groups, 1)?,
            group_first: self.words(groups, 1)?,
            group_size: self.words(groups, 1)?,
            experts: self.words(experts, 1)?,
            group_start: self.words(experts + 1, 1)?,
            step_start: self.words(experts + 1, 1)?,
            group_ranks: self.words(groups, lanes.min(1))?,
            rank_groups: self.words(experts, lanes)?,
            memory: self.words(level_memory_words(num_experts, shape.num_ranks(), groups), 1)?,
            ends: self.words(num_slots, 1)?,
            block_counts: self.words(num_experts, LEVEL_BLOCKS)?,
            blocks_done: self.words(1, 1)?,
        })
    }
}

fn too_large() -> Error {
    Error::out_of_memory(usize::MAX, super::TABLES)
}
