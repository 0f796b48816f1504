//! Nearest: own rank first, then own node, by fixed shares.

mod finder;
mod shares;

pub(crate) use shares::parts;
pub(super) use shares::shares;

use self::finder::Finder;
use super::kernel::{Call, Kernels};
use super::rule::{BLOCK_IDS, GOLDEN_RATIO};
use super::tables::LayerTables;
use crate::device::{Id, Kernel};
use crate::error::Result;
use crate::placement::Shape;

/// The rule's kernels, in kernels/nearest.cuh.
const KERNELS: Kernels =
    Kernels { int32: Kernel::NearestI32, int64: Kernel::NearestI64, general: Kernel::NearestGeneral };

/// Launches the rule's kernel.
pub(super) fn launch(call: Call<'_>) -> Result<()> {
    call.launch_by_block(KERNELS)
}

/// The rule on the host.
#[derive(Debug)]
pub(super) struct Nearest {
    /// Added to a block's index.
    offset: u32,
    finder: Finder,
    /// The point of each expert's next token.
    points: Vec<u32>,
}

impl Nearest {
    /// Routes by the [`shares()`] of a layer.
    pub fn new(shape: Shape, tables: &LayerTables, shares: Vec<u32>, offset: u32) -> Self {
        let points = vec![0; shape.num_experts()];
        Nearest { offset, finder: Finder::new(shape, tables, shares), points }
    }

    /// Replaces ids by their slots.
    pub fn route<I: Id>(&mut self, ids: &mut [I], tables: &LayerTables) {
        for (block, ids) in (0..).zip(ids.chunks_mut(BLOCK_IDS)) {
            self.route_block(ids, block, tables);
        }
    }

    /// Replaces the ids of a block by their slots.
    #[inline(always)]
    pub fn route_block<I: Id>(&mut self, ids: &mut [I], block: u32, tables: &LayerTables) {
        let Self { offset, finder, points } = self;
        points.fill((*offset + block).wrapping_mul(GOLDEN_RATIO));
        finder.route(ids, points, GOLDEN_RATIO, tables);
    }
}
