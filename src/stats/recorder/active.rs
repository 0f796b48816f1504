//! A recorder that has iterations to count.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::RecorderConfig;
use super::added::CountsAt;
use super::count::{OFF, Totals};
use super::flips::Watched;
use super::layers::Layers;
use super::window::MemoryRequired;
use super::window::{Layout, Window};
use super::writer::{Progress, Writer};
use crate::device::{Capture, Device, Ids, Memory, Staging, Stream};
use crate::error::{Error, Result};
use crate::stats::IterationRange;

/// The window, its writer, and the state of the caller's calls.
#[derive(Debug)]
pub(super) struct Active {
    pub layout: Layout,
    pub window: Arc<Window>,
    pub calls: Mutex<CallState>,
    pub totals: Mutex<LastTotals>,
    pub writer: Writer,
}

/// Each layer's totals as last read, and host memory to read them.
#[derive(Debug)]
pub(super) struct LastTotals {
    pub last: Vec<Totals>,
    pub staging: Staging,
}

/// What the caller's calls have changed so far.
#[derive(Debug)]
pub(super) struct CallState {
    pub layers: Layers,
    /// The range to count.
    pub range: IterationRange,
    /// The iteration begun last.
    pub iteration: Option<u64>,
    /// Iterations counted, from the first to the last.
    pub held: Option<IterationRange>,
    /// Iterations among `held` that never began.
    pub skipped: u64,
    /// The row of the current iteration, or [`OFF`].
    pub row: u32,
    /// Whether counting is paused, whatever the row.
    pub paused: bool,
    /// The row to count into once all calls so far have taken effect, or [`OFF`].
    pub word: u32,
    /// Why the counts are wrong.
    pub lost: Option<Error>,
    /// Why the dump could not be started.
    pub not_started: Option<Error>,
    /// The dispatches whose slots are counted.
    pub watched: Watched,
}

impl Active {
    /// Acquires the window, the rank's file and a thread.
    pub fn create(
        config: &RecorderConfig,
        iterations: IterationRange,
        device: &Device,
        workspace: Option<Memory>,
    ) -> Result<Self> {
        let run = config.run(iterations)?;
        let layout = Layout::of(config, iterations)?;
        let window = Arc::new(Window::create(device, layout, workspace)?);
        let last = vec![Totals::default(); config.layers.len()];
        let totals = Mutex::new(LastTotals { last, staging: window.totals_staging()? });
        if !run.rows.are_iterations() {
            log::warn!(
                "{}: each row of the dump adds up iter_bucket {} iterations, iter_stride {} apart: eplb reads it, and \
                 TensorRT-LLM's reader refuses it",
                run.directory.display(),
                run.rows.bucket(),
                run.rows.stride()
            );
        }
        let writer = Writer::start(run, iterations, window.clone())?;
        let calls = CallState {
            layers: Layers::new(config.layers),
            range: iterations,
            iteration: None,
            held: None,
            skipped: 0,
            row: OFF,
            paused: false,
            word: OFF,
            lost: None,
            not_started: None,
            watched: Watched::none(),
        };
        Ok(Active { layout, window, calls: Mutex::new(calls), totals, writer })
    }

    pub fn lock(&self) -> MutexGuard<'_, CallState> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory(&self) -> MemoryRequired {
        MemoryRequired {
            workspace_bytes: self.layout.workspace_bytes(),
            host_bytes: self.layout.host_bytes(),
        }
    }

    pub fn check_not_capturing(&self, stream: Stream, call: &str) -> Result<()> {
        self.window.device().check_not_capturing(stream, call)
    }

    pub fn begin(&self, calls: &mut CallState, iteration: u64, stream: Stream) -> Result<()> {
        self.check_not_capturing(stream, "eplb_recorder_begin_iteration")?;
        calls.check()?;
        if let Some(last) = calls.iteration.filter(|&last| iteration < last) {
            return Err(Error::InvalidArgument(format!(
                "iteration {iteration} after iteration {last}: iterations go up; eplb_recorder_reset() restarts"
            )));
        }
        self.drop_flipped(calls, stream)?;
        let run = self.writer.run();
        // After a dump, nothing is counted, even in the middle of the range.
        let over = !matches!(self.writer.progress(), Progress::None) || calls.not_started.is_some();
        let range = calls.range;
        if range.contains(iteration) && !over {
            match run.rows.row_of(range, iteration) {
                Some(row) => self.count_into(calls, iteration, row as u32, stream)?,
                None => self.set_row(calls, OFF, stream)?,
            }
        } else if iteration >= range.stop && calls.held.is_some() {
            self.stop(calls, stream)?;
        } else if iteration >= range.stop && calls.iteration < Some(range.stop) {
            log::warn!(
                "rank {}: iteration {iteration} is after the range, and {}: nothing is counted",
                run.file_rank(),
                self.none_began(range)
            );
        }
        calls.iteration = Some(iteration);
        Ok(())
    }

    /// Where tables have changed since a range of slots began, starts the dump of the rows before: a slot's counts are of one
    /// expert only. The row of the change is dropped. Where it is the first one, the range begins again.
    pub fn drop_flipped(&self, calls: &mut CallState, stream: Stream) -> Result<()> {
        let (Some(held), Progress::None, None) = (calls.held, self.writer.progress(), &calls.not_started)
        else {
            return Ok(());
        };
        if !calls.watched.have_changed() {
            return Ok(());
        }
        let run = self.writer.run();
        let row = run.rows.row_of(calls.range, held.stop - 1);
        let stop = row.map_or(held.start, |row| run.rows.key(calls.range, row));
        log::warn!(
            "rank {}: the tables that route changed before iteration {} ended: slots of iterations {stop} to {} are not dumped, \
             since their counts are of two tables",
            run.file_rank(),
            held.stop,
            calls.range.stop - 1
        );
        if stop <= held.start {
            return self.clear(calls, stream);
        }
        calls.held = Some(IterationRange { stop, ..held });
        self.stop(calls, stream)
    }

    /// That no iteration of a range began which would be counted.
    pub fn none_began(&self, range: IterationRange) -> String {
        match self.writer.run().rows.stride() {
            1 => format!("no iteration of {range} has begun"),
            stride => {
                let (first, second) = (range.start, range.start.saturating_add(stride));
                format!(
                    "none of iterations {first}, {second}, ... of {range}, of which one in {stride} counts, has begun"
                )
            }
        }
    }

    /// Counts into `row`, which `iteration` of the range is in, in the order of `stream`.
    fn count_into(&self, calls: &mut CallState, iteration: u64, row: u32, stream: Stream) -> Result<()> {
        let (range, rows) = (calls.range, self.writer.run().rows);
        let between = calls.held.map(|held| IterationRange { start: held.stop, stop: iteration });
        let skipped = between.map_or(0, |between| rows.iterations_in(range, between));
        if let (1.., Some(between)) = (skipped, between) {
            log::warn!(
                "rank {}: {skipped} of the iterations {between} never began and count as empty",
                self.writer.run().file_rank()
            );
        }
        self.set_row(calls, row, stream)?;
        if calls.held.is_none() {
            self.writer.range_begins();
            calls.watched.begin();
        }
        let start = calls.held.map_or(iteration, |held| held.start);
        calls.held = Some(IterationRange { start, stop: iteration + 1 });
        calls.skipped += skipped;
        Ok(())
    }

    /// Counts into `row`, or into none, in the order of `stream`.
    fn set_row(&self, calls: &mut CallState, row: u32, stream: Stream) -> Result<()> {
        self.write_word(calls, if calls.paused { OFF } else { row }, stream)?;
        calls.row = row;
        Ok(())
    }

    fn write_word(&self, calls: &mut CallState, word: u32, stream: Stream) -> Result<()> {
        if word != calls.word {
            self.window.set_row(word, stream)?;
            calls.word = word;
        }
        Ok(())
    }

    /// Counts nothing while paused, in the order of `stream`.
    pub fn set_paused(&self, calls: &mut CallState, paused: bool, stream: Stream) -> Result<()> {
        self.check_not_capturing(stream, "eplb_recorder_set_paused")?;
        self.write_word(calls, if paused { OFF } else { calls.row }, stream)?;
        calls.paused = paused;
        Ok(())
    }

    /// Arms another range, and clears all counts in the order of `stream`.
    pub fn rearm(&self, calls: &mut CallState, range: IterationRange, stream: Stream) -> Result<()> {
        self.check_not_capturing(stream, "eplb_recorder_rearm")?;
        calls.check()?;
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        let run = self.writer.run();
        let (rows, max_rows) = (run.rows.count(range), self.layout.rows());
        if rows > max_rows as u64 {
            return refuse(format!(
                "iterations {range} are {rows} rows of counts, and the recorder has {max_rows}; create it with a longer range, \
                 or with a larger iter_bucket or iter_stride"
            ));
        }
        run.dump(range, range).check_run()?;
        if let Some(last) = calls.iteration.filter(|&last| range.start <= last) {
            return refuse(format!(
                "iteration {last} has begun, so the range {range} would lack iterations; it must start after {last}, or call \
                 eplb_recorder_reset() first, after which any iteration may begin"
            ));
        }
        if let (Some(held), Progress::None) = (calls.held, self.writer.progress()) {
            return refuse(format!(
                "the counts of iterations {held} were not dumped: eplb_recorder_dump() dumps them, and eplb_recorder_reset() \
                 drops them"
            ));
        }
        self.writer.rearm(run.later(range))?;
        calls.range = range;
        self.clear(calls, stream)
    }

    /// Clears all counts, in the order of `stream`. Any iteration may be counted next.
    pub fn clear(&self, calls: &mut CallState, stream: Stream) -> Result<()> {
        let cleared = self.window.set_row(OFF, stream).and_then(|()| self.window.clear(stream));
        // A failed clear leaves some of the old counts.
        calls.lost = cleared.as_ref().err().cloned();
        calls.held = None;
        calls.skipped = 0;
        calls.row = OFF;
        calls.word = OFF;
        calls.not_started = None;
        cleared
    }

    /// Stops counting and starts the dump, unless a dump was started before.
    pub fn stop(&self, calls: &mut CallState, stream: Stream) -> Result<()> {
        self.set_row(calls, OFF, stream)?;
        let (Progress::None, Some(held)) = (self.writer.progress(), calls.held) else { return Ok(()) };
        let started = self.writer.dump(held, stream).map_err(|error| match error {
            Error::Cuda { call, code, name } => {
                let call = format!("the dump was not started, eplb_recorder_dump() tries again: {call}");
                Error::Cuda { call, code, name }
            }
            other => other,
        });
        calls.not_started = started.as_ref().err().cloned();
        started
    }

    pub fn count(
        &self,
        calls: &mut CallState,
        layer: usize,
        ids: &Ids,
        num_tokens: u32,
        stream: Stream,
    ) -> Result<()> {
        self.launch_if_counting(calls, (num_tokens, stream), |counts| match counts {
            true => self.window.batch_count(layer, ids, num_tokens).run(self.window.device(), stream),
            false => Ok(()),
        })
    }

    /// Calls `launch` with whether there is something to count.
    pub fn launch_if_counting(
        &self,
        calls: &mut CallState,
        (num_tokens, stream): (u32, Stream),
        launch: impl FnOnce(bool) -> Result<()>,
    ) -> Result<()> {
        // A captured graph may be replayed while a row is counted into. Any other work would count nothing.
        let device = self.window.device();
        if num_tokens == 0 || (calls.word == OFF && device.capture(stream)? != Capture::Active) {
            return launch(false);
        }
        let launched = launch(true);
        // A capture, even an invalidated one, counts nothing now.
        if let Err(error) = &launched
            && calls.word != OFF
            && !matches!(device.capture(stream), Ok(Capture::Active))
        {
            calls.lost = Some(error.clone());
        }
        launched
    }

    /// Adds counts of the caller's kernels. Counters that only grow take a new last value even where nothing is counted.
    pub fn add(&self, calls: &mut CallState, layer: usize, counts: &CountsAt, stream: Stream) -> Result<()> {
        let (device, keeps_last) = (self.window.device(), self.layout.keeps_last_counts());
        if calls.word == OFF && !keeps_last && device.capture(stream)? != Capture::Active {
            return Ok(());
        }
        let launched = self.window.addition(layer, counts).run(device, stream);
        // A last value that was missed makes the next difference too large.
        if let Err(error) = &launched
            && (calls.word != OFF || keeps_last)
            && !matches!(device.capture(stream), Ok(Capture::Active))
        {
            calls.lost = Some(error.clone());
        }
        launched
    }

    /// Whether an iteration is counted.
    pub fn counts(&self, calls: &CallState, iteration: u64) -> bool {
        self.writer.run().rows.row_of(calls.range, iteration).is_some()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let calls = self.calls.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Some(held), Progress::None) = (calls.held, self.writer.progress()) {
            log::warn!(
                "rank {}: the counts of iterations {held} are lost: call eplb_recorder_dump() before the recorder is destroyed",
                self.writer.run().file_rank()
            );
        }
    }
}

impl CallState {
    /// Fails where a failed call has left the counts wrong.
    pub fn check(&self) -> Result<()> {
        self.lost.as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }
}
