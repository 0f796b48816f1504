//! The thread that writes a recorder's dump, so that the caller's threads do not wait for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::config::{Run, Target};
use super::info::Dumps;
use super::window::Window;
use crate::atomic_file::{AtomicFile, HeldFile};
use crate::device::{Fence, Staging, Stream};
use crate::error::{Error, Result};
use crate::stats::{IterationRange, RankDump, previous};
use crate::threads;

/// The state of the dump.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// No dump was requested.
    None,
    /// The dump was requested or is being written.
    Started,
    /// The dump was written and synced.
    Written,
    /// The dump could not be written. The counts are kept for a retry.
    Failed {
        /// Why.
        error: Error,
        /// Whether a flush has returned the error.
        reported: bool,
    },
}

/// The state that the thread shares.
#[derive(Debug)]
struct Work {
    run: Run,
    window: Arc<Window>,
    /// Recorded after all counting, in the order of the caller's streams.
    fence: Fence,
    order: Mutex<Order>,
    changed: Condvar,
}

#[derive(Debug)]
struct Order {
    progress: Progress,
    dumps: Dumps,
    /// The range, and where its dump goes.
    target: Target,
    /// Whether the range has begun, and its files of the run before are to be set aside.
    begun: bool,
    /// Iterations to write.
    held: IterationRange,
    /// Whether the thread should end.
    ended: bool,
    /// The rank's file, created early so that no other process takes the name.
    claim: Option<AtomicFile>,
    /// The dump's file, held so that no other recorder replaces it while this one lives.
    written: Option<HeldFile>,
    /// The file of the first range, once another one is armed.
    first: Option<HeldFile>,
}

/// The thread. Drop ends it.
#[derive(Debug)]
pub(super) struct Writer {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Acquires all that a dump needs: the file, memory for a copy of the window, the thread.
    pub fn start(run: Run, iterations: IterationRange, window: Arc<Window>) -> Result<Self> {
        let target = run.first(iterations);
        let claim = run.claim(&target, None)?;
        let fence = window.device().fence()?;
        let staging = window.staging()?;
        let order = Order {
            progress: Progress::None,
            dumps: Dumps::default(),
            target,
            begun: false,
            held: iterations,
            ended: false,
            claim: Some(claim),
            written: None,
            first: None,
        };
        let work = Arc::new(Work { run, window, fence, order: Mutex::new(order), changed: Condvar::new() });
        let thread = threads::without_signals(|| {
            let work = work.clone();
            thread::Builder::new()
                .name("eplb-dump".into())
                .stack_size(1 << 19)
                .spawn(move || work.serve(staging))
        });
        let thread = thread.map_err(|e| Error::System(format!("cannot start the thread that dumps: {e}")))?;
        Ok(Writer { work, thread: Some(thread) })
    }

    pub fn run(&self) -> &Run {
        &self.work.run
    }

    pub fn progress(&self) -> Progress {
        self.work.lock().progress.clone()
    }

    /// Progress and attempts at the same moment.
    pub fn progress_and_dumps(&self) -> (Progress, Dumps) {
        let order = self.work.lock();
        (order.progress.clone(), order.dumps)
    }

    /// Lets the thread set the files of the run before aside, since the range begins. Neither waits nor allocates.
    pub fn range_begins(&self) {
        self.work.lock().begun = true;
        self.work.changed.notify_all();
    }

    /// Starts the dump of `held`, after the work that `stream` has been given so far.
    pub fn dump(&self, held: IterationRange, stream: Stream) -> Result<()> {
        let recorded = self.work.window.device().record(&self.work.fence, stream);
        let mut order = self.work.lock();
        if let Err(error) = recorded {
            order.dumps.failed += 1;
            return Err(error);
        }
        order.held = held;
        order.progress = Progress::Started;
        self.work.changed.notify_all();
        Ok(())
    }

    /// Waits for a started dump, for `timeout` at most if given. Returns a failure once. The next call retries the dump.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut order = self.work.lock();
        if let Progress::Failed { reported: true, .. } = order.progress {
            order.progress = Progress::Started;
            self.work.changed.notify_all();
        }
        loop {
            match &mut order.progress {
                Progress::None | Progress::Written => return Ok(()),
                Progress::Failed { error, reported } => {
                    *reported = true;
                    return Err(error.clone());
                }
                Progress::Started => {}
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let changed = &self.work.changed;
            order = match left {
                Some(Duration::ZERO) => {
                    let directory = order.target.directory.display();
                    return Err(Error::NotReady(format!("the dump to {directory} is still being written")));
                }
                Some(left) => changed.wait_timeout(order, left).unwrap_or_else(PoisonError::into_inner).0,
                None => changed.wait(order).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Forgets the dump and creates the rank's file again. Fails while the dump is being written.
    pub fn reset(&self) -> Result<()> {
        let mut order = self.work.lock();
        order.check_not_started()?;
        if order.claim.is_none() {
            order.claim = Some(self.work.run.claim(&order.target, order.written.as_ref())?);
            order.written = None;
        }
        order.progress = Progress::None;
        Ok(())
    }

    /// Creates the rank's file for another range. Fails while a dump is being written, and where counts await their dump.
    pub fn rearm(&self, target: Target) -> Result<()> {
        let mut order = self.work.lock();
        order.check_not_started()?;
        if let Progress::Failed { error, .. } = &order.progress {
            return Err(Error::InvalidArgument(format!(
                "the dump of iterations {} failed, and the counts are kept: eplb_recorder_flush() retries it, and \
                 eplb_recorder_reset() drops them ({error})",
                order.target.iterations
            )));
        }
        if order.target.directory != target.directory || order.claim.is_none() {
            order.claim = Some(self.work.run.claim(&target, order.written.as_ref())?);
            // A later range has a directory of its own, so only the first file could be another recorder's too.
            order.first = order.first.take().or(order.written.take());
            order.written = None;
        }
        order.target = target;
        // Only a range that was reset at once may still be marked. No dump of it will follow.
        order.begun = false;
        order.progress = Progress::None;
        Ok(())
    }
}

impl Drop for Writer {
    /// Waits for a started dump.
    fn drop(&mut self) {
        self.work.lock().ended = true;
        self.work.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::warn!("the thread that dumps rank {} panicked", self.work.run.file_rank());
        }
        if let Progress::Failed { error, .. } = self.progress() {
            log::warn!(
                "the counts of rank {} are lost, their dump failed: {error}",
                self.work.run.file_rank()
            );
        }
    }
}

impl Order {
    fn check_not_started(&self) -> Result<()> {
        match self.progress {
            Progress::Started => {
                Err(Error::NotReady("the dump is being written: eplb_recorder_flush() waits for it".into()))
            }
            _ => Ok(()),
        }
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on the thread until the writer is dropped.
    fn serve(&self, mut staging: Staging) {
        loop {
            let mut order = self.lock();
            // Before the dump, whose files these would be.
            if std::mem::take(&mut order.begun) {
                let target = order.target.clone();
                drop(order);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.set_previous_aside(&target))) {
                    log::warn!("{}", Error::of_panic(&*panic));
                }
                continue;
            }
            if !matches!(order.progress, Progress::Started) {
                if order.ended {
                    return;
                }
                drop(self.changed.wait(order));
                continue;
            }
            let (target, held, claim) = (order.target.clone(), order.held, order.claim.take());
            drop(order);
            let written = catch_unwind(AssertUnwindSafe(|| self.write(&target, held, claim, &mut staging)))
                .unwrap_or_else(|panic| Err(Error::of_panic(&*panic)));
            let mut order = self.lock();
            match written {
                Ok(file) => {
                    order.dumps.written += 1;
                    order.written = Some(file);
                    order.progress = Progress::Written;
                }
                Err(error) => {
                    order.dumps.failed += 1;
                    order.progress = Progress::Failed { error, reported: false };
                }
            }
            drop(order);
            self.changed.notify_all();
        }
    }

    /// Renames the rank's files of the run before. The dump replaces what could not be renamed.
    fn set_previous_aside(&self, target: &Target) {
        let Target { iterations, directory } = target;
        for path in self.run.dump(*iterations, *iterations).paths_in(directory) {
            match previous::set_aside(&path) {
                Ok(None) => {}
                Ok(Some(previous)) => {
                    log::info!(
                        "{}: of the run before, renamed to {}, which keeps one run only",
                        path.display(),
                        previous.display()
                    );
                }
                Err(e) => log::warn!(
                    "{}: could not be renamed to {}: {e}; remove it, or its counts are taken for those of this run if this \
                     process ends before its dump",
                    path.display(),
                    previous::previous_of(&path).display()
                ),
            }
        }
    }

    fn write(
        &self,
        target: &Target,
        held: IterationRange,
        claim: Option<AtomicFile>,
        staging: &mut Staging,
    ) -> Result<HeldFile> {
        let Target { iterations, directory } = target;
        let Run { rows, layers, .. } = &self.run;
        let rank = self.run.file_rank();
        // After a failure the file is created again, and its directory if missing.
        let claim = match claim {
            Some(claim) => claim,
            None => self.run.claim(target, None)?,
        };
        let (first, count) = rows.rows_of(*iterations, held);
        let counts = self.window.copy_back(&self.fence, (first as usize, count as usize), layers, staging)?;
        let dump = RankDump { counts, ..self.run.dump(*iterations, held) };
        let file = dump.write_claimed(claim, directory, self.run.clock)?;
        let complete = rows.iterations_in(*iterations, held) == rows.iterations_in(*iterations, *iterations);
        let level = if complete { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "{}: rank {rank} dumped iterations {held} of {iterations}", directory.display());
        Ok(file)
    }
}
