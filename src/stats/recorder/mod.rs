//! Step 1: counts which experts the router chose, on the device, and dumps the counts.
//!
//! The window of counts, `[iterations][layers][experts]`, is on the device. Beginning an iteration writes the row to count into,
//! or none, in the order of the caller's stream. Counting kernels read that word, so a CUDA graph captures them once for all
//! iterations. When the range has passed, a thread copies the window back and writes the dump.

mod active;
mod added;
mod config;
mod count;
mod histogram;
mod info;
mod window;
mod writer;

pub use added::{AddedCounts, CountsAt};
pub use config::RecorderConfig;
pub use count::Totals;
pub(crate) use count::{BatchCount, CellType, IdKinds, OTHER_BINS};
pub(crate) use histogram::histogram;
pub use info::{Dumps, Info, State};
pub use window::MemoryRequired;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::active::{Active, Buffer, CallState, LastTotals};
use self::config::Run;
use self::count::OFF;
use self::window::{Layout, Window};
use self::writer::{Progress, Writer};
use super::{IdKind, IterationRange};
use crate::device::{Access, Device, Ids, Memory, Stream};
use crate::error::{Error, Result};

/// The dispatch whose ids are counted, for checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Its device.
    pub device: &'a Device,
    /// Its experts, or its slots where these are counted.
    pub num_experts: usize,
    /// Its ids of a token.
    pub experts_per_token: usize,
    /// Its shared experts.
    pub num_shared: usize,
}

/// Counts the routed experts of one rank. Any thread may call; calls take turns.
#[derive(Debug)]
pub struct Recorder {
    /// `None` where there are no iterations to count.
    active: Option<Active>,
    /// The process that created the recorder.
    process: u32,
}

impl Recorder {
    /// Acquires all that later calls need: memory, the rank's file, a thread. `workspace` is caller-provided memory of the
    /// device, at least as large as [`RecorderConfig::memory_required`] returns. Without it, the library allocates.
    pub fn create(config: &RecorderConfig, workspace: Option<Memory>) -> Result<Self> {
        let process = std::process::id();
        let Some(iterations) = config.iterations else { return Ok(Recorder { active: None, process }) };
        let run = config.run(iterations)?;
        let layout = Layout::of(config, iterations)?;
        let device = Device::open(config.place)?;
        let window = Arc::new(Window::create(&device, layout, workspace)?);
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
        let mut layers: Vec<(u32, usize)> =
            config.layers.iter().enumerate().map(|(index, &layer)| (layer, index)).collect();
        layers.sort_unstable();
        let buffers = vec![None; layers.len()];
        let calls = CallState {
            layers,
            buffers,
            range: iterations,
            iteration: None,
            held: None,
            skipped: 0,
            row: OFF,
            paused: false,
            word: OFF,
            lost: None,
            not_started: None,
        };
        let active = Some(Active { layout, window, calls: Mutex::new(calls), totals, writer });
        Ok(Recorder { active, process })
    }

    /// Registers the buffer of a layer's ids for [`Recorder::count`].
    pub fn register_buffer(&self, layer: u32, ids: Ids, max_tokens: u32, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let index = calls.index_of(layer)?;
        let device = active.window.device();
        device.check_stream(stream)?;
        device.check_address(ids.address(), "expert_ids", Access::Read)?;
        if ids.num_valid() != 0 {
            device.check_address(ids.num_valid(), "num_valid", Access::Read)?;
        }
        calls.buffers[index] = Some(Buffer { ids, max_tokens });
        Ok(())
    }

    /// Begins an iteration. Work ordered after `stream` counts into it, or into none if it is out of range. After the last
    /// iteration of the range, starts the dump.
    pub fn begin_iteration(&self, iteration: u64, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let begun = active.begin(&mut calls, iteration, stream);
        // The next ids would count into the iteration before, or into none.
        if let Err(error @ Error::Cuda { .. }) = &begun
            && (calls.row != OFF || active.counts(&calls, iteration))
        {
            calls.lost = Some(error.clone());
        }
        begun
    }

    /// Hot: counts `num_tokens` tokens of a layer's registered buffer.
    pub fn count(&self, layer: u32, num_tokens: u32, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let index = calls.index_of(layer)?;
        let Some(buffer) = calls.buffers[index] else {
            return Err(Error::InvalidArgument(format!(
                "layer {layer} has no registered buffer: eplb_recorder_register_buffer() names one, and \
                 eplb_recorder_count_ids() takes any"
            )));
        };
        if num_tokens > buffer.max_tokens {
            return Err(Error::InvalidArgument(format!(
                "layer {layer}: {num_tokens} tokens, its buffer was registered with {}",
                buffer.max_tokens
            )));
        }
        active.count(&mut calls, index, &buffer.ids, num_tokens, stream)
    }

    /// Hot: counts `num_tokens` tokens of any buffer.
    pub fn count_ids(&self, layer: u32, ids: &Ids, num_tokens: u32, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let index = calls.index_of(layer)?;
        active.count(&mut calls, index, ids, num_tokens, stream)
    }

    /// Hot: adds counts that the caller's own kernels made to a layer. [`RecorderConfig::added_counts`] says what they are.
    pub fn add_counts(&self, layer: u32, counts: &CountsAt, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let index = calls.index_of(layer)?;
        active.add(&mut calls, index, counts, stream)
    }

    /// Hot: calls `launch` with the count of `num_tokens` tokens of any buffer, to run in the same pass as other work. Passes
    /// `None` where nothing is counted. Checks that the recorder fits the dispatch.
    pub(crate) fn count_fused(
        &self,
        layer: u32,
        (ids, num_tokens): (&Ids, u32),
        source: &Source<'_>,
        stream: Stream,
        launch: impl FnOnce(Option<&BatchCount>) -> Result<()>,
    ) -> Result<()> {
        let Some(active) = &self.active else { return launch(None) };
        let mut calls = active.lock();
        let index = calls.index_of(layer)?;
        active.check_source(source)?;
        active.launch_if_counting(&mut calls, (num_tokens, stream), |counts| {
            launch(counts.then(|| active.window.batch_count(index, ids, num_tokens)).as_ref())
        })
    }

    /// Whether the recorder counts slots, not experts.
    pub(crate) fn counts_slots(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.writer.run().id_kind == IdKind::Slot)
    }

    /// Fails in a process made by fork(), which has neither the thread that dumps nor the right to the file.
    fn check_process(&self) -> Result<()> {
        match self.process == std::process::id() {
            true => Ok(()),
            false => Err(Error::InvalidArgument(format!(
                "the recorder belongs to process {}, of which this one is a fork: create a recorder in this process",
                self.process
            ))),
        }
    }

    /// Stops counting before the range has passed, and starts the dump of the counts so far.
    pub fn dump(&self, stream: Stream) -> Result<()> {
        self.check_process()?;
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        active.check_not_capturing(stream, "eplb_recorder_dump")?;
        calls.check()?;
        if calls.held.is_none() {
            return Err(Error::InvalidArgument(format!(
                "there is nothing to dump: {}",
                active.none_began(calls.range)
            )));
        }
        active.stop(&mut calls, stream)
    }

    /// Waits for a started dump, without limit for `None`. Retries a dump that failed.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<()> {
        self.check_process()?;
        let Some(active) = &self.active else { return Ok(()) };
        {
            let calls = active.lock();
            calls.check()?;
            if let Some(error) = &calls.not_started {
                return Err(error.clone());
            }
        }
        active.writer.flush(timeout)
    }

    /// Counts nothing while paused, in the order of `stream`. Iterations go on.
    pub fn set_paused(&self, paused: bool, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let set = active.set_paused(&mut calls, paused, stream);
        // The next ids would count, or not count, where they should not.
        if let Err(error @ Error::Cuda { .. }) = &set
            && calls.row != OFF
        {
            calls.lost = Some(error.clone());
        }
        set
    }

    /// Sets all counts to zero, in the order of `stream`. Any iteration may begin next.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        self.check_process()?;
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        active.check_not_capturing(stream, "eplb_recorder_reset")?;
        active.writer.reset()?;
        calls.iteration = None;
        active.clear(&mut calls, stream)
    }

    /// Counts another range after a dump, or in place of a range of which nothing was counted. Clears in the order of `stream`.
    pub fn rearm(&self, iterations: IterationRange, stream: Stream) -> Result<()> {
        self.check_process()?;
        let Some(active) = &self.active else {
            return Err(Error::InvalidArgument(
                "the recorder is off and has no memory to count into: create it with a range".into(),
            ));
        };
        active.rearm(&mut active.lock(), iterations, stream)
    }

    /// The recorder's state. Reads each layer's totals from the device, and waits for no stream of the caller.
    pub fn info(&self) -> Result<Info> {
        let Some(active) = &self.active else { return Ok(Info::off()) };
        let mut totals = active.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = active.lock();
        let range = calls.range;
        let Run { rows, layers, experts_per_token, .. } = active.writer.run();
        let (progress, dumps) = active.writer.progress_and_dumps();
        let (state, error) = match (&calls.lost, &calls.not_started, progress) {
            (Some(error), ..) => (State::Lost, Some(error.clone())),
            (None, Some(error), _) => (State::Failed, Some(error.clone())),
            (None, None, Progress::Failed { error, .. }) => (State::Failed, Some(error)),
            (None, None, Progress::Started) => (State::Dumping, None),
            (None, None, Progress::Written) => (State::Dumped, None),
            (None, None, Progress::None) if calls.held.is_some() => (State::Counting, None),
            (None, None, Progress::None) if calls.iteration >= Some(range.stop) => (State::Missed, None),
            (None, None, Progress::None) => (State::Waiting, None),
        };
        let held = calls.held.unwrap_or(IterationRange { start: range.start, stop: range.start });
        let (iteration, skipped, paused) = (calls.iteration, calls.skipped, calls.paused);
        let registered_layers = calls.buffers.iter().flatten().count();
        // On a CUDA device, hot calls need not wait for the copy. On the host they would write what it reads.
        let locked = active.window.device().is_host().then_some(calls);
        let LastTotals { last, staging } = &mut *totals;
        let read = active.window.totals(staging).map(|now| last.copy_from_slice(now));
        drop(locked);
        Ok(Info {
            state,
            range,
            rows: *rows,
            iteration,
            held,
            skipped,
            paused,
            max_rows: active.layout.rows(),
            dumps,
            experts_per_token: *experts_per_token,
            layers: layers.clone(),
            totals: last.clone(),
            registered_layers,
            memory: active.memory(),
            // The rest is valid without the device.
            error: error.or(read.err()),
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // After fork(), thread, dump, file and device are the parent's.
        if self.process != std::process::id() {
            std::mem::forget(self.active.take());
        }
    }
}
