//! A rolling recorder: counts every iteration into a ring on the device, without a dump, and gives the counts since the last
//! snapshot.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::active::LastTotals;
use super::added::CountsAt;
use super::config::Run;
use super::count::{OFF, Totals};
use super::info::{Info, State};
use super::layers::Layers;
use super::ring::SnapshotAt;
use super::window::{Layout, MemoryRequired, Window};
use super::{RecorderConfig, Source};
use crate::device::{Access, Capture, Device, Ids, Memory, Stream};
use crate::error::{Error, Result};

/// The ring and its window.
#[derive(Debug)]
pub(super) struct Rolling {
    run: Run,
    layout: Layout,
    window: Window,
    rows: u32,
    calls: Mutex<RollingCalls>,
    totals: Mutex<LastTotals>,
}

/// What the caller's calls have changed so far.
#[derive(Debug)]
pub(super) struct RollingCalls {
    layers: Layers,
    /// The iteration begun last.
    iteration: Option<u64>,
    /// Iterations that were added into the first sample of a snapshot, since the ring had no row for them.
    pub merged: u64,
    paused: bool,
    /// Why the counts are wrong.
    pub lost: Option<Error>,
    /// The oldest row since the last snapshot.
    first: u32,
    /// Rows of iterations that have begun since then.
    kept: u32,
    /// The row of the current iteration, or [`OFF`].
    row: u32,
    /// The row to count into once all calls so far have taken effect, or [`OFF`].
    word: u32,
    /// Whether the current iteration began while paused, and has no row yet.
    is_without_row: bool,
}

impl Rolling {
    /// Acquires the ring.
    pub fn create(config: &RecorderConfig, device: &Device, workspace: Option<Memory>) -> Result<Self> {
        let (run, layout) = (config.checked_run()?, Layout::of_ring(config)?);
        let window = Window::create(device, layout, workspace)?;
        let totals = LastTotals {
            last: vec![Totals::default(); config.layers.len()],
            staging: window.totals_staging()?,
        };
        let calls = RollingCalls {
            layers: Layers::new(config.layers),
            iteration: None,
            merged: 0,
            paused: false,
            lost: None,
            first: 0,
            kept: 0,
            row: OFF,
            word: OFF,
            is_without_row: false,
        };
        let rows = layout.rows() as u32 - 1;
        Ok(Rolling { run, layout, window, rows, calls: Mutex::new(calls), totals: Mutex::new(totals) })
    }

    pub fn lock(&self) -> MutexGuard<'_, RollingCalls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory(&self) -> MemoryRequired {
        self.layout.ring_memory()
    }

    /// Registers the buffer of a layer's ids.
    pub fn register(&self, layer: u32, buffer: (Ids, u32), stream: Stream) -> Result<()> {
        self.lock().layers.register(layer, buffer, self.window.device(), stream)
    }

    /// Begins an iteration, in the next row of the ring.
    pub fn begin(&self, iteration: u64, stream: Stream) -> Result<()> {
        let mut calls = self.lock();
        let calls = &mut *calls;
        self.window.device().check_not_capturing(stream, "eplb_recorder_begin_iteration")?;
        calls.check()?;
        if let Some(last) = calls.iteration.filter(|&last| iteration < last) {
            return Err(Error::InvalidArgument(format!(
                "iteration {iteration} after iteration {last}: iterations go up; eplb_recorder_reset() restarts"
            )));
        }
        if calls.iteration == Some(iteration) {
            return Ok(());
        }
        calls.iteration = Some(iteration);
        calls.is_without_row = calls.paused;
        let begun = if calls.paused { Ok(()) } else { self.next_row(calls, stream) };
        calls.lose(begun)
    }

    /// Counts nothing while paused, in the order of `stream`. An iteration that is paused throughout has no row.
    pub fn set_paused(&self, paused: bool, stream: Stream) -> Result<()> {
        let mut calls = self.lock();
        let calls = &mut *calls;
        self.window.device().check_not_capturing(stream, "eplb_recorder_set_paused")?;
        let set = match paused {
            true => self.write_word(calls, OFF, stream),
            false if calls.is_without_row => self.next_row(calls, stream),
            false => self.write_word(calls, calls.row, stream),
        };
        if set.is_ok() {
            calls.paused = paused;
            calls.is_without_row &= paused;
        }
        calls.lose(set)
    }

    /// Counts into the next row. Without one, adds the oldest row to those that the ring holds no more.
    fn next_row(&self, calls: &mut RollingCalls, stream: Stream) -> Result<()> {
        let row = match calls.kept {
            // The row may have counts since the snapshot, which stay.
            0 => calls.first,
            kept if kept < self.rows => (calls.first + kept) % self.rows,
            _ => {
                self.window.merge_oldest(calls.first, stream)?;
                calls.merged += 1;
                let oldest = calls.first;
                calls.first = (oldest + 1) % self.rows;
                calls.kept -= 1;
                oldest
            }
        };
        self.write_word(calls, row, stream)?;
        calls.kept += 1;
        calls.row = row;
        Ok(())
    }

    fn write_word(&self, calls: &mut RollingCalls, word: u32, stream: Stream) -> Result<()> {
        if word != calls.word {
            self.window.set_row(word, stream)?;
            calls.word = word;
        }
        Ok(())
    }

    /// Writes what was counted since the last snapshot to `counts`, and clears it, in the order of `stream`.
    pub fn snapshot(&self, counts: &SnapshotAt, num_samples: u32, stream: Stream) -> Result<()> {
        let mut calls = self.lock();
        let calls = &mut *calls;
        let device = self.window.device();
        device.check_not_capturing(stream, "eplb_recorder_snapshot")?;
        calls.check()?;
        if num_samples == 0 {
            return Err(Error::InvalidArgument("num_samples is 0, at least 1 expected".into()));
        }
        device.check_address(counts.address(), "counts", Access::Write)?;
        // Counts after the last snapshot are in the row that was current then.
        let rows = if calls.row == OFF { 0 } else { calls.kept.max(1) };
        self.window.read_ring(counts, (calls.first, rows), num_samples, stream)?;
        calls.first = if calls.row == OFF { 0 } else { calls.row };
        calls.kept = 0;
        Ok(())
    }

    /// Counts `num_tokens` tokens of the registered buffer, or of `ids`.
    pub fn count(&self, layer: u32, ids: Option<&Ids>, num_tokens: u32, stream: Stream) -> Result<()> {
        let mut calls = self.lock();
        let (index, ids) = match ids {
            Some(ids) => (calls.layers.index_of(layer)?, *ids),
            None => calls.layers.registered(layer, num_tokens)?,
        };
        let device = self.window.device();
        if num_tokens == 0 || !calls.may_count(device, stream)? {
            return Ok(());
        }
        let counted = self.window.batch_count(index, &ids, num_tokens).run(device, stream);
        calls.lose_unless_captured(counted, device, stream)
    }

    /// As [`Recorder::count_fused`](super::Recorder::count_fused).
    pub fn count_fused(
        &self,
        layer: u32,
        (ids, num_tokens): (&Ids, u32),
        source: &Source<'_>,
        stream: Stream,
        launch: impl FnOnce(Option<&super::BatchCount>) -> Result<()>,
    ) -> Result<()> {
        let mut calls = self.lock();
        let index = calls.layers.index_of(layer)?;
        let device = self.window.device();
        self.run.check_source(device, source)?;
        if num_tokens == 0 || !calls.may_count(device, stream)? {
            return launch(None);
        }
        let launched = launch(Some(&self.window.batch_count(index, ids, num_tokens)));
        calls.lose_unless_captured(launched, device, stream)
    }

    /// Adds counts of the caller's kernels.
    pub fn add(&self, layer: u32, counts: &CountsAt, stream: Stream) -> Result<()> {
        let mut calls = self.lock();
        let index = calls.layers.index_of(layer)?;
        let device = self.window.device();
        if !self.layout.keeps_last_counts() && !calls.may_count(device, stream)? {
            return Ok(());
        }
        let added = self.window.addition(index, counts).run(device, stream);
        calls.lose_unless_captured(added, device, stream)
    }

    /// The state of a recorder without a range. Reads each layer's totals as [`Recorder::info`](super::Recorder::info) does.
    pub fn info(&self) -> Result<Info> {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = self.lock();
        let state = match (&calls.lost, calls.iteration) {
            (Some(_), _) => State::Lost,
            (None, None) => State::Waiting,
            (None, Some(_)) => State::Counting,
        };
        let known = Info {
            state,
            iteration: calls.iteration,
            merged: calls.merged,
            paused: calls.paused,
            experts_per_token: self.run.experts_per_token,
            layers: self.run.layers.clone(),
            registered_layers: calls.layers.num_registered(),
            memory: self.memory(),
            error: calls.lost.clone(),
            ..Info::off()
        };
        let locked = self.window.device().is_host().then_some(calls);
        let LastTotals { last, staging } = &mut *totals;
        let read = self.window.totals(staging).map(|now| last.copy_from_slice(now));
        drop(locked);
        Ok(Info { totals: last.clone(), error: known.error.clone().or(read.err()), ..known })
    }

    /// Sets all counts to zero, in the order of `stream`.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        let mut calls = self.lock();
        let calls = &mut *calls;
        self.window.device().check_not_capturing(stream, "eplb_recorder_reset")?;
        let cleared = self.window.set_row(OFF, stream).and_then(|()| self.window.clear(stream));
        (calls.iteration, calls.is_without_row) = (None, false);
        (calls.first, calls.kept, calls.merged) = (0, 0, 0);
        (calls.row, calls.word) = (OFF, OFF);
        calls.lost = cleared.as_ref().err().cloned();
        cleared
    }
}

impl RollingCalls {
    /// Fails where a failed call has left the counts wrong.
    fn check(&self) -> Result<()> {
        self.lost.as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Whether a launch may count: a captured one may be replayed at any time.
    fn may_count(&self, device: &Device, stream: Stream) -> Result<bool> {
        Ok(self.word != OFF || device.capture(stream)? == Capture::Active)
    }

    /// Notes a failed call of the driver, after which counts are wrong.
    fn lose(&mut self, result: Result<()>) -> Result<()> {
        if let Err(error @ Error::Cuda { .. }) = &result {
            self.lost = Some(error.clone());
        }
        result
    }

    /// As [`RollingCalls::lose`]. A capture, even an invalidated one, counts nothing now.
    fn lose_unless_captured(&mut self, result: Result<()>, device: &Device, stream: Stream) -> Result<()> {
        if result.is_err() && matches!(device.capture(stream), Ok(Capture::Active)) {
            return result;
        }
        self.lose(result)
    }
}
