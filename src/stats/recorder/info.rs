//! The state of a recorder.

use super::count::Totals;
use super::window::MemoryRequired;
use crate::error::{Error, Result, try_zeroed};
use crate::stats::{IterationRange, Rows};

/// What a recorder is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has no iterations to count, and every call does nothing.
    Off,
    /// No iteration of the range has begun.
    Waiting,
    /// Some have.
    Counting,
    /// The dump is being written.
    Dumping,
    /// The dump was written.
    Dumped,
    /// The dump could not be written. [`Recorder::flush`](super::Recorder::flush) retries it.
    Failed,
    /// A failed call has left the counts wrong. [`Recorder::reset`](super::Recorder::reset) sets them to zero.
    Lost,
    /// The range had passed before any iteration of it began: nothing is counted.
    Missed,
}

/// Attempts at a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dumps {
    /// Dumps that were written.
    pub written: u64,
    /// Dumps that could not be started or written.
    pub failed: u64,
}

/// A snapshot of a recorder's state.
#[derive(Debug, Clone)]
pub struct Info {
    /// What the recorder is doing.
    pub state: State,
    /// Iterations to count.
    pub range: IterationRange,
    /// Which of them a row of counts has.
    pub rows: Rows,
    /// The iteration begun last.
    pub iteration: Option<u64>,
    /// Iterations since creation that a rolling recorder had no row for: they were added into the first sample.
    pub merged: u64,
    /// Iterations counted so far, from the first to the last.
    pub held: IterationRange,
    /// Iterations of `held` that never began, and count as empty.
    pub skipped: u64,
    /// Whether counting is paused.
    pub paused: bool,
    /// The rows of counts that the recorder has memory for.
    pub max_rows: usize,
    /// Attempts at a dump since the recorder was created.
    pub dumps: Dumps,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// The layers' numbers, in the order of the config.
    pub layers: Vec<u32>,
    /// The totals of each layer, in the same order.
    pub totals: Vec<Totals>,
    /// Layers with a registered buffer.
    pub registered_layers: usize,
    /// The memory that the recorder holds.
    pub memory: MemoryRequired,
    /// Why the dump failed, the counts are wrong, or the totals are not up to date.
    pub error: Option<Error>,
}

impl Info {
    /// Iterations that began and were counted.
    pub fn iterations(&self) -> u64 {
        self.rows.iterations_in(self.range, self.held) - self.skipped
    }

    /// Valid tokens counted of each layer, in the order of the layers: those whose ids are not all -1, if no token has only some
    /// ids of -1.
    pub fn tokens(&self) -> impl Iterator<Item = u64> {
        let of = |totals: &Totals| {
            let chosen = totals.ids.saturating_sub(totals.none + totals.shared);
            chosen.div_ceil(self.experts_per_token as u64)
        };
        self.totals.iter().map(of)
    }

    /// Valid tokens counted of each of the recorder's `num_layers` layers. Empty where `num_layers` is 0.
    pub fn layer_tokens(&self, num_layers: usize) -> Result<Vec<u64>> {
        if self.state == State::Off {
            return try_zeroed(Some(num_layers), "the layers' tokens");
        }
        match num_layers {
            0 => Ok(Vec::new()),
            n if n == self.totals.len() => Ok(self.tokens().collect()),
            n => Err(Error::InvalidArgument(format!(
                "num_layers is {n}, the recorder has {}",
                self.totals.len()
            ))),
        }
    }

    /// The totals of all layers.
    pub fn sum(&self) -> Totals {
        self.totals.iter().fold(Totals::default(), |sum, layer| Totals {
            ids: sum.ids + layer.ids,
            out_of_range: sum.out_of_range + layer.out_of_range,
            padding: sum.padding + layer.padding,
            none: sum.none + layer.none,
            shared: sum.shared + layer.shared,
        })
    }

    pub(super) fn off() -> Self {
        Info {
            state: State::Off,
            range: IterationRange { start: 0, stop: 0 },
            rows: Rows::default(),
            iteration: None,
            merged: 0,
            held: IterationRange { start: 0, stop: 0 },
            skipped: 0,
            paused: false,
            max_rows: 0,
            dumps: Dumps::default(),
            experts_per_token: 1,
            layers: Vec::new(),
            totals: Vec::new(),
            registered_layers: 0,
            memory: MemoryRequired::default(),
            error: None,
        }
    }
}
