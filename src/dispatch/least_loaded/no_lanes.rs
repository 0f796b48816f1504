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

/// As above.
#[derive(Debug, Clone, Copy)]
pub enum Avx2 {}

impl Avx2 {
    pub fn new() -> Option<Self> {
        None
    }

    pub fn run<T>(self, _: impl FnOnce() -> T) -> T {
        match self {}
    }

    pub fn split_rings(self, _: &SplitPlan, _: &[u32], _: u32, _: &mut [i32]) {
        match self {}
    }
}

impl Fours {
    pub fn new(_: &SplitPlan) -> Option<Self> {
        None
    }

    pub fn are_sums(&self) -> bool {
        match *self {}
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

    pub fn write_units(&self, _: &mut [i32], _: &mut [u32]) {
        match *self {}
    }

    pub fn plan(&mut self) {
        match *self {}
    }

    pub fn assign<I: Id>(&mut self, _: &mut Batch<I>) {
        match *self {}
    }
}
