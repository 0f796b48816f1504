//! Changes of the tables of a dispatch, which a recorder of slots watches: its counts are of one table only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Dispatches of one recorder, without an allocation in a hot call.
const DISPATCHES: usize = 8;

/// How often the tables of a dispatch have changed. Clones are of the same dispatch, and may outlive it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flips(Arc<AtomicU64>);

impl Flips {
    /// Notes a change.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn number(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// The dispatches whose slots a recorder counts, and how often their tables had changed when its range began.
#[derive(Debug)]
pub(super) struct Watched(Vec<(Flips, u64)>);

impl Watched {
    pub fn none() -> Self {
        Watched(Vec::with_capacity(DISPATCHES))
    }

    /// Watches a dispatch from now on. A captured graph may route by it at any later time.
    pub fn add(&mut self, flips: &Flips) {
        if !self.0.iter().any(|(watched, _)| Arc::ptr_eq(&watched.0, &flips.0)) {
            self.0.push((flips.clone(), flips.number()));
        }
    }

    /// Begins a range.
    pub fn begin(&mut self) {
        self.0.iter_mut().for_each(|(flips, number)| *number = flips.number());
    }

    /// Whether a table has changed since the range began.
    pub fn have_changed(&self) -> bool {
        self.0.iter().any(|(flips, number)| flips.number() != *number)
    }
}
