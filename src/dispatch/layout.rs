//! Where the tables of a dispatch are in its memory. All placements of a shape have the same layout, so a later placement in the
//! same workspace keeps the addresses. A layer's tables are one behind the other, so one copy replaces them.

use super::least_loaded::SplitParts;
use super::{DispatchConfig, Rule};
use crate::device::{Part, Place};
use crate::error::{Error, Result};
use crate::placement::Shape;

/// Enough for vector loads.
const ALIGNMENT: usize = 64;

/// Where a layer's tables are in a device's memory, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableParts {
    /// `[num_experts]`
    pub replica_count: Part,
    /// `[num_experts]`
    pub replica_start: Part,
    /// `[num_slots]`
    pub replica_slots: Part,
    /// `[num_slots]`, for [`Rule::Nearest`](super::Rule::Nearest).
    pub shares: Option<Part>,
    /// For [`Rule::LeastLoaded`](super::Rule::LeastLoaded) on a CUDA device.
    pub split: Option<SplitParts>,
}

/// Space for the tables of all layers, one layer after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    shape: Shape,
    has_shares: bool,
    has_split: bool,
    max_replicas: usize,
    /// Bytes from a layer to the next.
    stride: usize,
    /// The slots of the shared experts, after the layers.
    shared: Part,
    /// The shadows of all layers' tables, one behind the other. Empty where tables do not change.
    shadows: Part,
    bytes: usize,
}

/// Space for the tables of a layer. Those of a placement may need less.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerParts {
    /// The tables for routing.
    pub tables: TableParts,
    /// The dense map, if any.
    pub dense: Option<Part>,
    /// The width of the dense map.
    pub max_replicas: usize,
}

impl LayerParts {
    /// All tables, which depend on the placement. The rule's working memory follows.
    pub fn all_tables(&self) -> Part {
        let TableParts { replica_count, replica_slots, shares, split, .. } = &self.tables;
        let last = split.map(|split| split.sizes).or(*shares).unwrap_or(*replica_slots);
        let start = self.dense.unwrap_or(*replica_count).start;
        Part { start, bytes: (last.start + last.bytes).next_multiple_of(ALIGNMENT) - start }
    }
}

impl Layout {
    /// The layout for `num_layers` layers of a shape.
    pub fn of(shape: Shape, config: &DispatchConfig, num_layers: usize) -> Result<Self> {
        let mut layout = Layout {
            shape,
            has_shares: config.rule == Rule::Nearest,
            has_split: config.rule == Rule::LeastLoaded && config.place != Place::Host,
            max_replicas: config.max_replicas,
            stride: 0,
            shared: Part { start: 0, bytes: 0 },
            shadows: Part { start: 0, bytes: 0 },
            bytes: 0,
        };
        let mut space = Space { end: 0 };
        let first = layout.layer_from(&mut space)?;
        layout.stride = space.end;
        space.end = space.end.checked_mul(num_layers).ok_or_else(too_large)?;
        layout.shared = space.words(config.shared_slots.len(), 1)?;
        if config.live && config.place != Place::Host {
            layout.shadows = space.words(first.all_tables().bytes / 4, num_layers)?;
        }
        layout.bytes = space.end;
        if layout.bytes > isize::MAX as usize {
            return Err(too_large());
        }
        Ok(layout)
    }

    /// The slots of the shared experts.
    pub fn shared(&self) -> Part {
        self.shared
    }

    /// The bytes that are written at create: all but the shadows.
    pub fn written(&self) -> Part {
        let bytes = if self.shadows.bytes == 0 { self.bytes } else { self.shadows.start };
        Part { start: 0, bytes }
    }

    /// The shadow of the tables of the layer with this index.
    pub fn shadow(&self, index: usize) -> Result<Part> {
        let bytes = self.layer(0)?.all_tables().bytes;
        Ok(Part { start: self.shadows.start + index * bytes, bytes })
    }

    /// Bytes from a layer to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of the workspace.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The parts of the layer with this index.
    pub fn layer(&self, index: usize) -> Result<LayerParts> {
        self.layer_from(&mut Space { end: index * self.stride })
    }

    fn layer_from(&self, space: &mut Space) -> Result<LayerParts> {
        let (num_experts, num_slots) = (self.shape.num_experts(), self.shape.num_slots());
        let dense = match self.max_replicas {
            0 => None,
            width => Some(space.words(num_experts, width)?),
        };
        let tables = TableParts {
            replica_count: space.words(num_experts, 1)?,
            replica_start: space.words(num_experts, 1)?,
            replica_slots: space.words(num_slots, 1)?,
            shares: self.has_shares.then(|| space.words(num_slots, 1)).transpose()?,
            split: self.has_split.then(|| SplitParts::of(self.shape, space)).transpose()?,
        };
        Ok(LayerParts { tables, dense, max_replicas: self.max_replicas })
    }
}

/// Memory that is laid out part by part.
pub(super) struct Space {
    end: usize,
}

impl Space {
    /// The next part, of `count` times `words` words.
    pub fn words(&mut self, count: usize, words: usize) -> Result<Part> {
        let bytes = count.checked_mul(words).and_then(|words| words.checked_mul(4)).ok_or_else(too_large)?;
        let end = bytes.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| bytes.checked_add(self.end));
        let start = std::mem::replace(&mut self.end, end.ok_or_else(too_large)?);
        Ok(Part { start, bytes })
    }
}

fn too_large() -> Error {
    Error::out_of_memory(usize::MAX, super::TABLES)
}
