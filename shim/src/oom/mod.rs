//! Noticing that a container ran out of memory: one thread for all containers of the shim.
//!
//! The kernel's ways to tell are in `towline_runtime::cgroup::OomWatch`. A watch ends with its cgroup; nobody has to take it back.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use towline_runtime::cgroup::{OomWatch, Version};
use towline_runtime::{Error, Result};

/// Tells of containers that ran out of memory, from when they are added.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Handed over to the thread at its next turn.
    new: Mutex<Inbox>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Inbox {
    watches: Vec<Watch>,
    closed: bool,
}

#[derive(Debug)]
struct Watch {
    id: String,
    dir: PathBuf,
    oom: OomWatch,
}

impl Watcher {
    /// Starts the thread, which calls `tell` with the id of a container for each time that it ran out of memory.
    pub fn start(tell: impl FnMut(&str) + Send + 'static) -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|cause| Error::sys("making an eventfd for OOM events", cause))?;
        let shared = Arc::new(Shared { new: Mutex::default(), wake });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("oom".into()).stack_size(crate::STACK);
        thread
            .spawn(move || {
                if let Err(cause) = watch(&theirs, tell) {
                    crate::log::error(format_args!("no more OOM events: {}", cause.one_line()));
                }
            })
            .map_err(|cause| Error::sys("starting a thread for OOM events", cause))?;
        Ok(Self { shared })
    }

    /// Watches container `id` by its cgroup of the memory controller (`metrics::Cgroups::memory`).
    pub fn add(&self, id: &str, version: Version, dir: &Path) -> Result<()> {
        let watch = Watch { id: id.to_owned(), dir: dir.to_owned(), oom: OomWatch::new(version, dir)? };
        self.shared.change(|inbox| inbox.watches.push(watch))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Err(error) = self.shared.change(|inbox| inbox.closed = true) {
            crate::log::warn(format_args!("{}", error.one_line()));
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Inbox)) -> Result<()> {
        change(&mut self.new.lock().unwrap_or_else(PoisonError::into_inner));
        match rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(cause) => Err(Error::sys("waking the thread for OOM events", cause)),
        }
    }
}

fn watch(shared: &Shared, mut tell: impl FnMut(&str)) -> Result<()> {
    let failed = |cause| Error::sys("waiting for OOM events", cause);
    let mut watches: Vec<Watch> = Vec::new();
    loop {
        let mut polled = vec![PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN)];
        polled.extend(watches.iter().map(|watch| PollFd::from_borrowed_fd(watch.oom.as_fd(), watch.oom.flags())));
        // No deadline: containers may never run out of memory. `wake` ends the wait.
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(cause) => return Err(failed(cause)),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        if ready.next() == Some(true) {
            rustix::io::read(&shared.wake, &mut [0; 8]).map_err(failed)?;
        }
        watches.retain_mut(|watch| !ready.next().unwrap_or(false) || watch.turn(&mut tell));
        let mut inbox = shared.new.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            return Ok(());
        }
        watches.append(&mut inbox.watches);
    }
}

impl Watch {
    /// Whether to go on.
    fn turn(&mut self, tell: &mut impl FnMut(&str)) -> bool {
        match self.oom.take() {
            Ok(true) => tell(&self.id),
            Ok(false) => {}
            Err(error) => {
                crate::log::warn(format_args!("no more OOM events of {}: {}", self.id, error.one_line()));
                return false;
            }
        }
        // A descriptor of a cgroup that is gone is ready for ever.
        self.dir.exists()
    }
}

#[cfg(test)]
mod tests;
