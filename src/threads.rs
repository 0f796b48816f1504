//! Threads owned by the library. A call starts a few threads and joins them before it returns. No pool is used, neither the
//! caller's nor a global one. Results never depend on the number of threads.

use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::{Error, Result};

/// The most threads by default. More gain little, and would surprise the caller.
const MAX_DEFAULT_THREADS: usize = 8;

/// The most threads. More are a mistake in a number.
const MAX_THREADS: usize = 256;

/// The number of threads to use where `requested` are requested. 0 requests the default.
pub fn resolve(requested: usize) -> usize {
    match requested {
        0 => thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_DEFAULT_THREADS)),
        n => n.min(MAX_THREADS),
    }
}

/// Calls `start`, which starts a thread that outlives the call, with all signals blocked for the thread. Signal handlers of the
/// process run on the caller's threads.
pub fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the calls write both sets before they are read, and the mask is this thread's.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let started = start();
    if blocked {
        // SAFETY: the mask that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    started
}

/// Computes `work(0)` to `work(count - 1)` on up to `threads` threads, the calling thread included. Returns the results by index,
/// or the error of the lowest index that failed.
pub fn map<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let tasks = Tasks::new(count);
    tasks.run_on(threads, &work, &work);
    tasks.into_results()
}

/// As [`map`]. The calling thread also calls `watch`: after each of its own calls of `work`, and once all work is done. When
/// `watch` fails, no more work is started, and its error is returned.
pub fn map_watched<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
    mut watch: impl FnMut() -> Result<()>,
) -> Result<Vec<T>> {
    let tasks = Tasks::new(count);
    let mut watched = Ok(());
    tasks.run_on(threads, &work, |index| {
        let result = work(index)?;
        watched = watch();
        // The result of a call that is stopped is not used.
        if watched.is_err() { Err(Error::Cancelled) } else { Ok(result) }
    });
    watched?;
    let results = tasks.into_results()?;
    watch()?;
    Ok(results)
}

/// Waits until the threads have ended. Leaving a scope only waits for their work, and the caller may unload the library or end
/// right after.
fn join(started: Vec<thread::ScopedJoinHandle<'_, ()>>) {
    for thread in started {
        // Panics in the work became its result.
        let _ = thread.join();
    }
}

/// Indices that threads take in order until one fails, and the results.
struct Tasks<T> {
    count: usize,
    next: AtomicUsize,
    failed: AtomicBool,
    results: Mutex<Vec<(usize, Result<T>)>>,
}

impl<T> Tasks<T> {
    fn new(count: usize) -> Self {
        let results = Mutex::new(Vec::with_capacity(count));
        Tasks { count, next: AtomicUsize::new(0), failed: AtomicBool::new(false), results }
    }

    /// Runs all tasks: `work` on started threads, and `own` on the calling one. If a thread cannot be started, the others do its
    /// tasks.
    fn run_on(
        &self,
        threads: usize,
        work: &(impl Fn(usize) -> Result<T> + Sync),
        own: impl FnMut(usize) -> Result<T>,
    ) where
        T: Send,
    {
        thread::scope(|scope| {
            let spawn = |_| thread::Builder::new().name("eplb".into()).spawn_scoped(scope, || self.run(work));
            let started: Vec<_> = (1..threads.min(self.count)).map_while(|index| spawn(index).ok()).collect();
            self.run(own);
            join(started);
        });
    }

    fn run(&self, mut work: impl FnMut(usize) -> Result<T>) {
        while !self.failed.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                break;
            }
            let result =
                catch_unwind(AssertUnwindSafe(|| work(index))).unwrap_or_else(|p| Err(Error::of_panic(&*p)));
            self.failed.fetch_or(result.is_err(), Ordering::Relaxed);
            self.results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    }

    /// All results in order, or the error of the lowest index that failed. Every index below it was started before, so the error
    /// is always the same.
    fn into_results(self) -> Result<Vec<T>> {
        let mut results = self.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_unstable_by_key(|&(index, _)| index);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_returns_results_in_order_for_any_number_of_threads() {
        for threads in [1, 2, 8, 100] {
            let squares = map(50, threads, |i| Ok(i * i)).unwrap();
            assert_eq!(squares, (0..50).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn map_returns_the_error_of_the_lowest_index() {
        for threads in [1, 2, 8] {
            let error = map(50, threads, |i| match i {
                20 | 30 => Err(Error::System(i.to_string())),
                _ => Ok(()),
            });
            assert_eq!(error.unwrap_err().to_string(), "20");
        }
    }

    #[test]
    fn map_returns_a_panic_as_an_error_with_its_text() {
        for threads in [1, 4] {
            let panicked = map(10, threads, |i| if i == 3 { panic!("slot {i} on fire") } else { Ok(i) });
            assert!(matches!(panicked, Err(Error::Internal(text)) if text == "slot 3 on fire"));
        }
    }

    #[test]
    fn map_watched_watches_on_the_calling_thread_until_all_is_done() {
        for threads in [1, 3] {
            let (done, caller, mut seen) = (AtomicUsize::new(0), thread::current().id(), Vec::new());
            let work = |_| Ok(done.fetch_add(1, Ordering::Relaxed));
            map_watched(10, threads, work, || {
                assert_eq!(thread::current().id(), caller);
                seen.push(done.load(Ordering::Relaxed));
                Ok(())
            })
            .unwrap();
            assert!(seen.is_sorted() && seen.ends_with(&[10]), "{seen:?}");
            assert!(threads > 1 || seen == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10], "{seen:?}");
        }
    }

    #[test]
    fn map_watched_stops_on_the_error_of_watch() {
        for threads in [1, 2] {
            let started = AtomicUsize::new(0);
            let work = |_| Ok(started.fetch_add(1, Ordering::Relaxed));
            let stopped = map_watched(1000, threads, work, || Err(Error::InvalidArgument("enough".into())));
            assert_eq!(stopped.unwrap_err().to_string(), "enough");
            assert!(threads > 1 || started.into_inner() == 1);
        }
    }

    #[test]
    fn map_watched_returns_the_error_of_the_lowest_index() {
        for threads in [1, 4] {
            let work = |i: usize| if i >= 20 { Err(Error::System(i.to_string())) } else { Ok(()) };
            assert_eq!(map_watched(50, threads, work, || Ok(())).unwrap_err().to_string(), "20");
        }
    }
}
