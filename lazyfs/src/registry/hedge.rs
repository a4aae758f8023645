//! How many requests are sent to a second host because the first is late: a slow mirror must not double the traffic of everybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Requests that two hosts are asked for at the same time, at most.
const AT_A_TIME: usize = 4;

/// Counts them.
#[derive(Clone, Debug, Default)]
pub(super) struct Hedges(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    running: AtomicUsize,
    total: AtomicU64,
}

/// The right to ask one more host, until this is dropped.
#[derive(Debug)]
pub(super) struct Hedge(Arc<Counts>);

impl Hedges {
    /// `None`: there are enough.
    pub fn begin(&self) -> Option<Hedge> {
        let more = |running| (running < AT_A_TIME).then_some(running + 1);
        self.0.running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.0.total.fetch_add(1, Ordering::Relaxed);
        Some(Hedge(Arc::clone(&self.0)))
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }
}

impl Drop for Hedge {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}
