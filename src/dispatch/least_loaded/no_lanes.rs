//! In place of lanes, on processors that have none.

use super::plan::SplitPlan;
use crate::device::Id;
use crate::dispatch::batch::Batch;
use crate::dispatch::tables::LayerTables;
use crate::placement::Shape;

/// There are none.
#[derive(Debug)]
pub enum Lanes {}

/// As above.
#[derive(Debug)]
pub enum Fours {}

impl Fours {
    pub fn new(_: &SplitPlan) -> Option<Self> {
        None
    }

    pub fn sweep(&self, _: &mut [i32], _: u32, _: u32) {
        match *self {}
    }
}

impl Lanes {
    pub const MAX_IDS: usize = 0;

    pub fn new(_: Shape, _: &LayerTables, _: &SplitPlan) -> Option<Self> {
        None
    }

    pub fn begin(&mut self) {
        match *self {}
    }

    pub fn count<I: Id>(&mut self, _: &[I]) {
        match *self {}
    }

    pub fn split(&mut self) {
        match *self {}
    }

    pub fn write_units(&self, _: &mut [i32]) {
        match *self {}
    }

    pub fn plan(&mut self) {
        match *self {}
    }

    pub fn assign<I: Id>(&mut self, _: &mut Batch<I>) {
        match *self {}
    }
}
