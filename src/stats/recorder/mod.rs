//! Step 1: counting which experts the router chose, on the device, and dumping the counts.
//!
//! A window of `[iterations][layers][experts]` lies on the device. Beginning an iteration writes, in the order of the host's
//! stream, which row of the window is counted into, or that none is; counting kernels read that and so may be captured in a
//! CUDA graph once and for all iterations. When the range has passed, a thread copies the window back and writes it.

mod config;
mod info;
mod window;
mod writer;

pub use config::{MemoryRequired, RecorderConfig};
pub use info::{Dumps, Info, State};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::config::Run;
use self::window::{Layout, Window};
use self::writer::{Progress, Writer};
use super::{Counted, IterationRange};
use crate::device::{Access, Capture, Count, Device, Ids, Memory, OFF, Staging, Stream, Totals};
use crate::error::{Error, Result};

/// Counts the routed experts of one rank. Any thread may call; calls take turns.
#[derive(Debug)]
pub struct Recorder {
    /// None where nothing is to be counted.
    active: Option<Active>,
    /// The process that created it.
    process: u32,
}

#[derive(Debug)]
struct Active {
    layout: Layout,
    window: Arc<Window>,
    counting: Mutex<Counting>,
    totals: Mutex<LastTotals>,
    writer: Writer,
}

/// Each layer's totals as they were last seen, and host memory to see them anew.
#[derive(Debug)]
struct LastTotals {
    seen: Vec<Totals>,
    staging: Staging,
}

/// Where the host's calls have got to.
#[derive(Debug)]
struct Counting {
    /// Each layer's number and its index in the window, by number.
    layers: Vec<(u32, usize)>,
    /// What was registered for each layer of the window.
    buffers: Vec<Option<Buffer>>,
    /// The iteration begun last.
    iteration: Option<u64>,
    /// Iterations counted, from the first to the last.
    held: Option<IterationRange>,
    /// Iterations among `held` that never began.
    skipped: u64,
    /// The row that is being counted into once all calls so far have taken effect, or [`OFF`].
    row: u32,
    /// Why the counts are wrong.
    lost: Option<Error>,
    /// Why the dump could not even be started.
    not_started: Option<Error>,
}

/// The fixed place of a layer's ids.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    ids: Ids,
    max_tokens: u32,
}

impl Recorder {
    /// Takes all that will be needed: memory, the rank's file, a thread. `workspace` is the host's memory to use instead of
    /// memory of our own, on the device and as large as [`RecorderConfig::memory_required`] says.
    pub fn create(config: &RecorderConfig, workspace: Option<Memory>) -> Result<Self> {
        let process = std::process::id();
        let Some(iterations) = config.iterations else { return Ok(Recorder { active: None, process }) };
        let run = config.run(iterations)?;
        let layout = Layout::of(config, iterations)?;
        let device = Device::open(config.place)?;
        let window = Arc::new(Window::create(&device, layout, workspace)?);
        let seen = vec![Totals::default(); config.layers.len()];
        let totals = Mutex::new(LastTotals { seen, staging: window.totals_staging()? });
        let writer = Writer::start(run, window.clone())?;
        let mut layers: Vec<(u32, usize)> =
            config.layers.iter().enumerate().map(|(index, &layer)| (layer, index)).collect();
        layers.sort_unstable();
        let buffers = vec![None; layers.len()];
        let counting = Counting {
            layers,
            buffers,
            iteration: None,
            held: None,
            skipped: 0,
            row: OFF,
            lost: None,
            not_started: None,
        };
        let active = Some(Active { layout, window, counting: Mutex::new(counting), totals, writer });
        Ok(Recorder { active, process })
    }

    /// Names the place of a layer's ids for [`Recorder::count`].
    pub fn register_buffer(&self, layer: u32, ids: Ids, max_tokens: u32, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut counting = active.lock();
        let index = counting.index_of(layer)?;
        let device = active.window.device();
        device.check_stream(stream)?;
        device.check_address(ids.address(), "expert_ids", Access::Read)?;
        if ids.num_valid() != 0 {
            device.check_address(ids.num_valid(), "num_valid", Access::Read)?;
        }
        counting.buffers[index] = Some(Buffer { ids, max_tokens });
        Ok(())
    }

    /// Begins an iteration: work that streams get after `stream` counts into it, or into none if it is out of range. After
    /// the last iteration of the range, starts the dump.
    pub fn begin_iteration(&self, iteration: u64, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut counting = active.lock();
        let begun = active.begin(&mut counting, iteration, stream);
        // The ids to come would be counted into the iteration before, or not at all.
        if let Err(error @ Error::Cuda { .. }) = &begun
            && (counting.row != OFF || active.writer.run().iterations.contains(iteration))
        {
            counting.lost = Some(error.clone());
        }
        begun
    }

    /// Hot: counts `num_tokens` tokens of a layer's registered buffer.
    pub fn count(&self, layer: u32, num_tokens: u32, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut counting = active.lock();
        let index = counting.index_of(layer)?;
        let Some(buffer) = counting.buffers[index] else {
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
        active.count(&mut counting, index, &buffer.ids, num_tokens, stream)
    }

    /// Hot: counts `num_tokens` tokens of any buffer.
    pub fn count_ids(&self, layer: u32, ids: &Ids, num_tokens: u32, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut counting = active.lock();
        let index = counting.index_of(layer)?;
        active.count(&mut counting, index, ids, num_tokens, stream)
    }

    /// Hot: has `launch` count `num_tokens` tokens of any buffer, or launch what else it does where there is nothing to count.
    /// `device` and the sizes are those of the caller, which are checked.
    pub(crate) fn count_with(
        &self,
        layer: u32,
        (ids, num_tokens): (&Ids, u32),
        (device, num_experts, experts_per_token): (&Device, usize, usize),
        stream: Stream,
        launch: impl FnOnce(Option<&Count>) -> Result<()>,
    ) -> Result<()> {
        let Some(active) = &self.active else { return launch(None) };
        let mut counting = active.lock();
        let index = counting.index_of(layer)?;
        active.check_source(device, num_experts, experts_per_token)?;
        active.count_by(&mut counting, (num_tokens, stream), |counts| {
            launch(counts.then(|| active.window.counting(index, ids, num_tokens)).as_ref())
        })
    }

    /// Whether slots are counted, not experts.
    pub(crate) fn counts_slots(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.writer.run().counted == Counted::Slots)
    }

    /// Ends counting before the range has passed, and starts the dump of what was counted so far.
    pub fn dump(&self, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut counting = active.lock();
        active.check_not_capturing(stream, "eplb_recorder_dump")?;
        counting.check()?;
        if counting.held.is_none() {
            return Err(Error::InvalidArgument(format!(
                "there is nothing to dump: no iteration of {} has begun",
                active.writer.run().iterations
            )));
        }
        active.stop(&mut counting, stream)
    }

    /// Waits for a dump that was started, and tries one again that failed; `None` waits as long as it takes.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        {
            let counting = active.lock();
            counting.check()?;
            if let Some(error) = &counting.not_started {
                return Err(error.clone());
            }
        }
        active.writer.flush(timeout)
    }

    /// Forgets all counts, in the order of `stream`, and begins anew with any iteration.
    pub fn reset(&self, stream: Stream) -> Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mut counting = active.lock();
        active.check_not_capturing(stream, "eplb_recorder_reset")?;
        active.writer.reset()?;
        let cleared = active.window.set_row(OFF, stream).and_then(|()| active.window.clear(stream));
        // Until they are cleared, the counts are neither the old nor the new ones.
        counting.lost = cleared.as_ref().err().cloned();
        counting.iteration = None;
        counting.held = None;
        counting.skipped = 0;
        counting.row = OFF;
        counting.not_started = None;
        cleared
    }

    /// How far the recorder is. Looks at each layer's totals on the device, waiting for no stream of the host's.
    pub fn info(&self) -> Result<Info> {
        let Some(active) = &self.active else { return Ok(Info::off()) };
        let mut totals = active.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let counting = active.lock();
        let Run { iterations: range, layers, experts_per_token, .. } = active.writer.run();
        let (progress, dumps) = active.writer.progress_and_dumps();
        let (state, error) = match (&counting.lost, &counting.not_started, progress) {
            (Some(error), ..) => (State::Lost, Some(error.clone())),
            (None, Some(error), _) => (State::Failed, Some(error.clone())),
            (None, None, Progress::Failed { error, .. }) => (State::Failed, Some(error)),
            (None, None, Progress::Started) => (State::Dumping, None),
            (None, None, Progress::Written) => (State::Dumped, None),
            (None, None, Progress::None) if counting.held.is_some() => (State::Counting, None),
            (None, None, Progress::None) if counting.iteration >= Some(range.stop) => (State::Missed, None),
            (None, None, Progress::None) => (State::Waiting, None),
        };
        let held = counting.held.unwrap_or(IterationRange { start: range.start, stop: range.start });
        let (iteration, skipped) = (counting.iteration, counting.skipped);
        let registered_layers = counting.buffers.iter().flatten().count();
        // Hot calls need not wait for the device; only on the host would they write what is read here.
        let quiet = active.window.device().is_host().then_some(counting);
        let LastTotals { seen, staging } = &mut *totals;
        let looked = active.window.totals(staging).map(|now| seen.copy_from_slice(now));
        drop(quiet);
        Ok(Info {
            state,
            range: *range,
            iteration,
            held,
            skipped,
            dumps,
            experts_per_token: *experts_per_token,
            layers: layers.clone(),
            totals: seen.clone(),
            registered_layers,
            memory: active.memory(),
            // A device that is lost is no reason to keep back what is known of it.
            error: error.or(looked.err()),
        })
    }
}

impl Active {
    fn lock(&self) -> MutexGuard<'_, Counting> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MemoryRequired {
        MemoryRequired {
            workspace_bytes: self.layout.workspace_bytes(),
            host_bytes: self.layout.host_bytes(),
        }
    }

    fn check_not_capturing(&self, stream: Stream, call: &str) -> Result<()> {
        let why = match self.window.device().capture(stream)? {
            Capture::None => return Ok(()),
            Capture::Active => {
                "the stream is being captured by a CUDA graph, which would do the same at each replay"
            }
            Capture::Elsewhere => {
                "a CUDA graph is being captured, and meanwhile the default stream must not be used"
            }
        };
        Err(Error::Capturing(format!("{why}: call {call}() before or after")))
    }

    fn begin(&self, counting: &mut Counting, iteration: u64, stream: Stream) -> Result<()> {
        self.check_not_capturing(stream, "eplb_recorder_begin_iteration")?;
        counting.check()?;
        if let Some(last) = counting.iteration.filter(|&last| iteration < last) {
            return Err(Error::InvalidArgument(format!(
                "iteration {iteration} after iteration {last}: iterations go up; eplb_recorder_reset() starts anew"
            )));
        }
        let run = self.writer.run();
        // What was dumped is over, even in the middle of the range.
        let over = !matches!(self.writer.progress(), Progress::None) || counting.not_started.is_some();
        if run.iterations.contains(iteration) && !over {
            self.count_into(counting, iteration, stream)?;
        } else if iteration >= run.iterations.stop && counting.held.is_some() {
            self.stop(counting, stream)?;
        } else if iteration >= run.iterations.stop && counting.iteration < Some(run.iterations.stop) {
            log::warn!(
                "rank {}: iteration {iteration} is after the range {}, of which none was begun: nothing is counted",
                run.rank,
                run.iterations
            );
        }
        counting.iteration = Some(iteration);
        Ok(())
    }

    /// Counts into `iteration`, which is in the range, from here on in the order of `stream`.
    fn count_into(&self, counting: &mut Counting, iteration: u64, stream: Stream) -> Result<()> {
        let range = self.writer.run().iterations;
        let skipped = counting.held.map_or(0, |held| iteration.saturating_sub(held.stop));
        if skipped > 0 {
            log::warn!(
                "rank {}: iterations {}..{iteration} never began and count as empty",
                self.writer.run().rank,
                iteration - skipped
            );
        }
        let row = (iteration - range.start) as u32;
        if row != counting.row {
            self.window.set_row(row, stream)?;
            counting.row = row;
        }
        let start = counting.held.map_or(iteration, |held| held.start);
        counting.held = Some(IterationRange { start, stop: iteration + 1 });
        counting.skipped += skipped;
        Ok(())
    }

    /// Stops counting and starts the dump, unless that was done already.
    fn stop(&self, counting: &mut Counting, stream: Stream) -> Result<()> {
        if counting.row != OFF {
            self.window.set_row(OFF, stream)?;
            counting.row = OFF;
        }
        let (Progress::None, Some(held)) = (self.writer.progress(), counting.held) else { return Ok(()) };
        let started = self.writer.dump(held, stream).map_err(|error| match error {
            Error::Cuda { call, code, name } => {
                let call = format!("the dump was not started, eplb_recorder_dump() tries again: {call}");
                Error::Cuda { call, code, name }
            }
            other => other,
        });
        counting.not_started = started.as_ref().err().cloned();
        started
    }

    fn count(
        &self,
        counting: &mut Counting,
        layer: usize,
        ids: &Ids,
        num_tokens: u32,
        stream: Stream,
    ) -> Result<()> {
        self.count_by(counting, (num_tokens, stream), |counts| match counts {
            true => self.window.device().count(&self.window.counting(layer, ids, num_tokens), stream),
            false => Ok(()),
        })
    }

    /// Has `launch` count, or told that there is nothing to count.
    fn count_by(
        &self,
        counting: &mut Counting,
        (num_tokens, stream): (u32, Stream),
        launch: impl FnOnce(bool) -> Result<()>,
    ) -> Result<()> {
        // A graph may be replayed when something is counted; anything else would only find that nothing is.
        let device = self.window.device();
        if num_tokens == 0 || (counting.row == OFF && device.capture(stream)? != Capture::Active) {
            return launch(false);
        }
        let launched = launch(true);
        // In a capture, even a spoilt one, nothing would have been counted now.
        if let Err(error) = &launched
            && counting.row != OFF
            && !matches!(device.capture(stream), Ok(Capture::Active))
        {
            counting.lost = Some(error.clone());
        }
        launched
    }

    fn check_source(&self, device: &Device, num_experts: usize, experts_per_token: usize) -> Result<()> {
        let run = self.writer.run();
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        if !self.window.device().is(device) {
            return refuse("the recorder is on another device or CUDA context than the dispatch".into());
        }
        if (run.num_experts, run.experts_per_token) != (num_experts, experts_per_token) {
            let counted = match run.counted {
                Counted::Experts => "experts",
                Counted::Slots => "slots",
            };
            return refuse(format!(
                "the recorder counts {} {counted} and {} ids a token, the dispatch has {num_experts} and {experts_per_token}",
                run.num_experts, run.experts_per_token
            ));
        }
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // In a copy that fork() made, thread, dump, file and device are the parent's.
        if self.process != std::process::id() {
            std::mem::forget(self.active.take());
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let counting = self.counting.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Some(held), Progress::None) = (counting.held, self.writer.progress()) {
            log::warn!(
                "rank {}: iterations {held} were counted and never dumped: eplb_recorder_dump() would have",
                self.writer.run().rank
            );
        }
    }
}

impl Counting {
    fn index_of(&self, layer: u32) -> Result<usize> {
        match self.layers.binary_search_by_key(&layer, |&(number, _)| number) {
            Ok(place) => Ok(self.layers[place].1),
            Err(_) => {
                let numbers: Vec<u32> = self.layers.iter().map(|&(number, _)| number).collect();
                Err(Error::InvalidArgument(format!(
                    "layer {layer} is not one of the {} that the recorder was created with, from {} to {}",
                    numbers.len(),
                    numbers[0],
                    numbers[numbers.len() - 1]
                )))
            }
        }
    }

    /// Whether the counts are what the host meant them to be.
    fn check(&self) -> Result<()> {
        self.lost.as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }
}
