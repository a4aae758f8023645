//! What is read ahead of programs in large files, where the kernel's own readahead is off.
//!
//! Around a page fault the kernel reads 128 KiB. In an image that is still arriving that is a demand for what nobody has asked for. So the
//! kernel asks for single pages, and what follows them and is here comes with the answer: it is written into the kernel's cache
//! (FUSE_NOTIFY_STORE) before whoever waits goes on, a little where programs jump and more while they read on.
//!
//! The kernel writes a page only while no read of it is under way, and a push waits for that. Nothing waits in a circle:
//!
//! - a push is only of what is behind the read that it comes with,
//! - fewer push at a time ([`MOST_AT_ONCE`]) than there are threads that answer; who is one too many does not push,
//! - in a file of which a read waits for a fetch nothing is pushed meanwhile.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::{INodeNo, Notifier};
use rustix::io::Errno;

/// How many push at a time.
pub(super) const MOST_AT_ONCE: usize = 2;
/// What comes with a read that does not go on where the last one ended, bytes.
const LEAST: u64 = 64 << 10;
/// What comes with a read of a program that reads on and on.
const MOST: u64 = 1 << 20;

/// Pushes to one mount.
#[derive(Debug)]
pub(super) struct Pusher {
    notifier: Notifier,
    at_once: AtomicUsize,
    is_refused: AtomicBool,
    /// Reads of a file that wait for a fetch.
    waiting: Mutex<HashMap<u64, usize>>,
}

impl Pusher {
    pub(super) fn new(notifier: Notifier) -> Self {
        Self { notifier, at_once: AtomicUsize::new(0), is_refused: AtomicBool::new(false), waiting: Mutex::default() }
    }

    /// Gives the kernel bytes of a file from `offset` on, which is a multiple of its pages.
    pub(super) fn push(&self, ino: INodeNo, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() || self.is_refused.load(Ordering::Relaxed) || self.waiting().contains_key(&ino.0) {
            return;
        }
        if self.at_once.fetch_add(1, Ordering::Relaxed) < MOST_AT_ONCE
            && let Err(e) = self.notifier.store(ino, offset, bytes)
        {
            self.failed(&e);
        }
        self.at_once.fetch_sub(1, Ordering::Relaxed);
    }

    /// A read of the file waits for a fetch, until [`Self::has_waited`].
    pub(super) fn waits(&self, ino: INodeNo) {
        *self.waiting().entry(ino.0).or_default() += 1;
    }

    pub(super) fn has_waited(&self, ino: INodeNo) {
        let mut waiting = self.waiting();
        match waiting.get_mut(&ino.0) {
            Some(reads) if *reads > 1 => *reads -= 1,
            _ => drop(waiting.remove(&ino.0)),
        }
    }

    fn failed(&self, error: &io::Error) {
        // Too little memory says nothing of the next one, and where nothing is mounted any more nobody reads.
        let passes = [Errno::NOMEM, Errno::INTR, Errno::NODEV, Errno::NOTCONN]
            .iter()
            .any(|e| error.raw_os_error() == Some(e.raw_os_error()));
        if passes {
            tracing::debug!("pushing a part of a file: {error}");
        } else if !self.is_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!("large files are read page by page, since the kernel does not take what follows: {error}");
        }
    }

    /// Guards a map that every change leaves whole.
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an open file was read, and how much comes with the next read.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next: u64,
    window: u64,
}

impl Reads {
    /// A read of this range: how many bytes behind it are worth having, too.
    pub(super) fn read(&mut self, range: &Range<u64>) -> u64 {
        self.window = if range.start == self.next { (2 * self.window).clamp(LEAST, MOST) } else { LEAST };
        self.window
    }

    /// Up to here there is nothing to be read again.
    pub(super) fn has_until(&mut self, end: u64) {
        self.next = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_comes_with_each_read_that_goes_on() {
        let mut reads = Reads::default();
        let mut at = 0;
        for expected in [64, 128, 256, 512, 1024, 1024] {
            assert_eq!(reads.read(&(at..at + 4096)), expected << 10, "at {at}");
            at += 4096 + (expected << 10);
            reads.has_until(at);
        }
        assert_eq!(reads.read(&(4096..8192)), LEAST, "a jump");
        reads.has_until(8192 + LEAST);
        assert_eq!(reads.read(&(8192 + LEAST..8192 + LEAST + 1)), 2 * LEAST);
    }
}
