//! Step 1: counts which experts the router chose, on the device, and dumps the counts.
//!
//! The window of counts, `[iterations][layers][experts]`, is on the device. Beginning an iteration writes the row to count into,
//! or none, in the order of the caller's stream. Counting kernels read that word, so a CUDA graph captures them once for all
//! iterations. When the range has passed, a thread copies the window back and writes the dump.
//!
//! A rolling recorder has a second window, a ring of iterations, which snapshots read. Either window may be absent.

mod active;
mod added;
mod config;
mod count;
mod flips;
mod histogram;
mod info;
mod layers;
mod ring;
mod rolling;
mod window;
mod writer;

pub use added::{AddedCounts, CountsAt};
pub use config::RecorderConfig;
pub use count::Totals;
pub(crate) use count::{BatchCount, CellType, IdKinds, OTHER_BINS};
pub(crate) use flips::Flips;
pub(crate) use histogram::histogram;
pub use info::{Dumps, Info, State};
pub use ring::SnapshotAt;
pub use window::MemoryRequired;

use std::sync::PoisonError;
use std::time::Duration;

use self::active::{Active, LastTotals};
use self::config::Run;
use self::count::OFF;
use self::rolling::Rolling;
use self::writer::Progress;
use super::{IdKind, IterationRange};
use crate::device::{Device, Ids, Memory, Stream};
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
    /// Changes of its tables, if they can change.
    pub flips: Option<&'a Flips>,
}

/// Counts the routed experts of one rank. Any thread may call; calls take turns.
#[derive(Debug)]
pub struct Recorder {
    /// `None` where there are no iterations to count.
    active: Option<Active>,
    /// `None` where no iterations are kept for snapshots.
    rolling: Option<Rolling>,
    /// The process that created the recorder.
    process: u32,
}

impl Recorder {
    /// Acquires all that later calls need: memory, the rank's file, a thread. `workspace` is caller-provided memory of the
    /// device, at least as large as [`RecorderConfig::memory_required`] returns. Without it, the library allocates.
    pub fn create(config: &RecorderConfig, workspace: Option<Memory>) -> Result<Self> {
        let process = std::process::id();
        if config.iterations.is_none() && config.rolling == 0 {
            return Ok(Recorder { active: None, rolling: None, process });
        }
        let required = config.memory_required()?;
        let (for_window, for_ring) = match (config.iterations, workspace) {
            (None, workspace) => (None, workspace),
            (_, Some(both)) if config.rolling != 0 => {
                both.check_size(required.workspace_bytes)?;
                let window = RecorderConfig { rolling: 0, ..*config }.memory_required()?;
                let (first, rest) = both.split_at(window.ring_start());
                (Some(first), Some(rest))
            }
            (_, workspace) => (workspace, None),
        };
        let device = Device::open(config.place)?;
        let active = config.iterations.map(|range| Active::create(config, range, &device, for_window));
        let active = active.transpose()?;
        let rolling = (config.rolling != 0).then(|| Rolling::create(config, &device, for_ring));
        Ok(Recorder { active, rolling: rolling.transpose()?, process })
    }

    /// Registers the buffer of a layer's ids for [`Recorder::count`].
    pub fn register_buffer(&self, layer: u32, ids: Ids, max_tokens: u32, stream: Stream) -> Result<()> {
        if let Some(rolling) = &self.rolling {
            rolling.register(layer, (ids, max_tokens), stream)?;
        }
        let Some(active) = &self.active else { return Ok(()) };
        active.lock().layers.register(layer, (ids, max_tokens), active.window.device(), stream)
    }

    /// Begins an iteration. Work ordered after `stream` counts into it, or into none if it is out of range. After the last
    /// iteration of the range, starts the dump.
    pub fn begin_iteration(&self, iteration: u64, stream: Stream) -> Result<()> {
        if let Some(rolling) = &self.rolling {
            rolling.begin(iteration, stream)?;
        }
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
        if let Some(rolling) = &self.rolling {
            rolling.count(layer, None, num_tokens, stream)?;
        }
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let (index, ids) = calls.layers.registered(layer, num_tokens)?;
        active.count(&mut calls, index, &ids, num_tokens, stream)
    }

    /// Hot: counts `num_tokens` tokens of any buffer.
    pub fn count_ids(&self, layer: u32, ids: &Ids, num_tokens: u32, stream: Stream) -> Result<()> {
        if let Some(rolling) = &self.rolling {
            rolling.count(layer, Some(ids), num_tokens, stream)?;
        }
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let index = calls.layers.index_of(layer)?;
        active.count(&mut calls, index, ids, num_tokens, stream)
    }

    /// Hot: adds counts that the caller's own kernels made to a layer. [`RecorderConfig::added_counts`] says what they are.
    pub fn add_counts(&self, layer: u32, counts: &CountsAt, stream: Stream) -> Result<()> {
        if let Some(rolling) = &self.rolling {
            rolling.add(layer, counts, stream)?;
        }
        let Some(active) = &self.active else { return Ok(()) };
        let mut calls = active.lock();
        let index = calls.layers.index_of(layer)?;
        active.add(&mut calls, index, counts, stream)
    }

    /// Writes what was counted since the last snapshot to `counts`, `[num_samples][layers][experts]`, in the order of `stream`.
    /// The iterations go into the samples in even consecutive groups, the first ones that the ring no longer holds into sample 0.
    pub fn snapshot(&self, counts: &SnapshotAt, num_samples: u32, stream: Stream) -> Result<()> {
        self.check_process()?;
        match &self.rolling {
            Some(rolling) => rolling.snapshot(counts, num_samples, stream),
            None => Err(Error::InvalidArgument(
                "the recorder keeps no iterations for snapshots: create it with rolling_iterations".into(),
            )),
        }
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
        if let Some(rolling) = &self.rolling {
            if let Some(active) = &self.active {
                // Both count experts. One count fits the pass, and routing in place overwrites the ids.
                let mut calls = active.lock();
                let index = calls.layers.index_of(layer)?;
                active.writer.run().check_source(active.window.device(), source)?;
                active.count(&mut calls, index, ids, num_tokens, stream)?;
            }
            return rolling.count_fused(layer, (ids, num_tokens), source, stream, launch);
        }
        let Some(active) = &self.active else { return launch(None) };
        let mut calls = active.lock();
        let index = calls.layers.index_of(layer)?;
        active.writer.run().check_source(active.window.device(), source)?;
        if let (IdKind::Slot, Some(flips)) = (active.writer.run().id_kind, source.flips) {
            calls.watched.add(flips);
        }
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
        active.drop_flipped(&mut calls, stream)?;
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
        if let Some(rolling) = &self.rolling {
            rolling.set_paused(paused, stream)?;
        }
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
        if let Some(active) = &self.active {
            let mut calls = active.lock();
            active.check_not_capturing(stream, "eplb_recorder_reset")?;
            active.writer.reset()?;
            calls.iteration = None;
            active.clear(&mut calls, stream)?;
        }
        self.rolling.as_ref().map_or(Ok(()), |rolling| rolling.reset(stream))
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
        let Some(active) = &self.active else {
            return self.rolling.as_ref().map_or_else(|| Ok(Info::off()), Rolling::info);
        };
        let rolling = self.rolling.as_ref().map(|rolling| (rolling.memory(), rolling.lock()));
        let (ring, merged, lost) = match rolling {
            Some((memory, calls)) => (Some(memory), calls.merged, calls.lost.clone()),
            None => (None, 0, None),
        };
        let mut totals = active.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = active.lock();
        let range = calls.range;
        let Run { rows, layers, experts_per_token, .. } = active.writer.run();
        let (progress, dumps) = active.writer.progress_and_dumps();
        let (state, error) = match (calls.lost.as_ref().or(lost.as_ref()), &calls.not_started, progress) {
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
        let registered_layers = calls.layers.num_registered();
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
            merged,
            held,
            skipped,
            paused,
            max_rows: active.layout.rows(),
            dumps,
            experts_per_token: *experts_per_token,
            layers: layers.clone(),
            totals: last.clone(),
            registered_layers,
            memory: ring.map_or(active.memory(), |ring| active.memory().followed_by(ring)),
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
            std::mem::forget(self.rolling.take());
        }
    }
}
