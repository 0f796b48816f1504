//! What a recorder tells of itself.

use super::config::MemoryRequired;
use crate::device::Totals;
use crate::error::{Error, Result, try_zeroed};
use crate::stats::IterationRange;

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
    /// The dump is there.
    Dumped,
    /// The dump could not be written; [`Recorder::flush`](super::Recorder::flush) tries again.
    Failed,
    /// A failed call has left the counts wrong; [`Recorder::reset`](super::Recorder::reset) starts anew.
    Lost,
    /// The range had passed before any iteration of it began: nothing is counted.
    Missed,
}

/// How often a dump was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dumps {
    /// It was written, whole.
    pub written: u64,
    /// It could not be written, or not even started.
    pub failed: u64,
}

/// How far a recorder is: a copy that nothing changes any more.
#[derive(Debug, Clone)]
pub struct Info {
    /// What it is doing.
    pub state: State,
    /// Iterations that it is there to count.
    pub range: IterationRange,
    /// The iteration begun last.
    pub iteration: Option<u64>,
    /// Iterations counted so far, from the first to the last.
    pub held: IterationRange,
    /// Iterations among `held` that never began, and count as empty.
    pub skipped: u64,
    /// Tries at a dump since the recorder was created.
    pub dumps: Dumps,
    /// Experts that each token chooses.
    pub experts_per_token: usize,
    /// The layers' numbers, in the order of the config.
    pub layers: Vec<u32>,
    /// What each layer's kernels were given, in the same order.
    pub totals: Vec<Totals>,
    /// Layers with a registered buffer.
    pub registered_layers: usize,
    /// What it holds.
    pub memory: MemoryRequired,
    /// Why the dump or the counts are not there, or the totals are those of an earlier look.
    pub error: Option<Error>,
}

impl Info {
    /// Iterations that began and were counted.
    pub fn iterations(&self) -> u64 {
        self.held.len() - self.skipped
    }

    /// Valid tokens of each layer that was counted, in the order of the layers.
    pub fn tokens(&self) -> impl Iterator<Item = u64> {
        self.totals.iter().map(|totals| totals.ids / self.experts_per_token as u64)
    }

    /// Valid tokens counted of each layer: of the recorder's `num_layers`, or of none where 0 are asked for.
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
        })
    }

    pub(super) fn off() -> Self {
        Info {
            state: State::Off,
            range: IterationRange { start: 0, stop: 0 },
            iteration: None,
            held: IterationRange { start: 0, stop: 0 },
            skipped: 0,
            dumps: Dumps::default(),
            experts_per_token: 1,
            layers: Vec::new(),
            totals: Vec::new(),
            registered_layers: 0,
            memory: MemoryRequired { workspace_bytes: 0, host_bytes: 0 },
            error: None,
        }
    }
}
