//! Everything that ends below the shim, which is the reaper of its pod: one thread takes every exit status, and hands it to whom it belongs.
//!
//! Three kinds of processes end here: those that somebody waits for ([`Reaper`] as [`Children`] of the runtime's client, and log drivers), those of
//! containers, which are watched, and orphans of containers without a pid namespace of their own, which nobody misses.
//!
//! A process of a container has a pid that the shim learns only when the runtime has made it, when it may have ended already. So whatever
//! ends while a [`Window`] is open is kept until the window closes, and [`Reaper::watch`] looks there first. Nothing is waited for under
//! the lock, and watchers are called without it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{WaitOptions, wait};
use towline_runtime::client::{Children, Ended};

use crate::{STACK, log};

/// How long a process that somebody waits for may take: a checkpoint of a large container takes minutes. The runtime has deadlines of its own.
const PATIENCE: Duration = Duration::from_secs(1800);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 and the signal that killed it.
    pub code: u32,
    /// When it was noticed.
    pub at: SystemTime,
}

impl Exit {
    fn of(status: ExitStatus) -> Self {
        // A status that wait(2) gave is one of the two.
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
        Self { code: code as u32, at: SystemTime::now() }
    }
}

type Watcher = Box<dyn FnOnce(Exit) + Send>;

/// Who takes every exit status.
#[derive(Default)]
pub struct Reaper {
    table: Mutex<Table>,
    ended: Condvar,
}

#[derive(Default)]
struct Table {
    watchers: HashMap<i32, Watcher>,
    /// What ended and was not watched, by the number of its end.
    unclaimed: HashMap<i32, (u64, ExitStatus)>,
    /// Open windows, by the number of ends at their opening.
    windows: BTreeMap<u64, usize>,
    ends: u64,
}

impl Table {
    /// Keeps only what an open window may ask for.
    fn prune(&mut self) {
        let oldest = self.windows.keys().next().copied().unwrap_or(u64::MAX);
        self.unclaimed.retain(|_, (number, _)| *number >= oldest);
    }

    /// The end of a process that was made while `window` was open; an older one is that of another process with the same pid.
    fn unclaimed(&mut self, window: &Window<'_>, pid: i32) -> Option<ExitStatus> {
        self.unclaimed.get(&pid).filter(|(number, _)| *number >= window.since)?;
        self.unclaimed.remove(&pid).map(|(_, status)| status)
    }
}

/// While it is there, what ends is kept.
#[derive(Debug)]
pub struct Window<'a> {
    reaper: &'a Reaper,
    since: u64,
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        if let Some(count) = table.windows.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                table.windows.remove(&self.since);
            }
        }
        table.prune();
    }
}

impl Reaper {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread. The process must have one thread now, so that the signal reaches no other.
    ///
    /// # Errors
    /// The signal cannot be blocked, or there is no thread.
    pub fn start() -> io::Result<Arc<Self>> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let reaper = Arc::new(Self::default());
        let own = Arc::clone(&reaper);
        let reap = move || {
            loop {
                own.take_all();
                if let Err(error) = signals.wait() {
                    log::error(format_args!("waiting for ends of processes: {error}"));
                }
            }
        };
        std::thread::Builder::new().stack_size(STACK).spawn(reap)?;
        Ok(reaper)
    }

    fn take_all(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.take(pid.as_raw_nonzero().get(), ExitStatus::from_raw(status.as_raw())),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return log::error(format_args!("taking the end of a process: {error}")),
            }
        }
    }

    fn take(&self, pid: i32, status: ExitStatus) {
        let mut table = self.table();
        table.ends += 1;
        match table.watchers.remove(&pid) {
            Some(watcher) => {
                drop(table);
                watcher(Exit::of(status));
            }
            None if !table.windows.is_empty() => {
                let number = table.ends;
                table.unclaimed.insert(pid, (number, status));
                self.ended.notify_all();
            }
            None => {}
        }
    }

    /// From now on ends are kept. To be opened before what ends is made.
    pub fn window(&self) -> Window<'_> {
        let mut table = self.table();
        // The next end has a number greater than those before.
        let since = table.ends + 1;
        *table.windows.entry(since).or_default() += 1;
        Window { reaper: self, since }
    }

    /// Has `watcher` called when the child `pid` ends, which may be now. The window was open when the process was made.
    pub fn watch(&self, window: &Window<'_>, pid: i32, watcher: impl FnOnce(Exit) + Send + 'static) {
        let mut table = self.table();
        match table.unclaimed(window, pid) {
            Some(status) => {
                drop(table);
                watcher(Exit::of(status));
            }
            None => {
                table.watchers.insert(pid, Box::new(watcher));
            }
        }
    }

    fn claim(&self, window: &Window<'_>, pid: i32) -> io::Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        let mut table = self.table();
        loop {
            if let Some(status) = table.unclaimed(window, pid) {
                return Ok(status);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::ETIMEDOUT.into());
            }
            table = self.ended.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").field("watched", &self.table().watchers.len()).finish()
    }
}

impl Children for Reaper {
    fn run(&self, command: &mut Command, talk: &mut dyn FnMut(&mut Child) -> io::Result<()>) -> io::Result<Ended> {
        let window = self.window();
        let mut child = command.spawn()?;
        let talked = talk(&mut child);
        // Whatever it reads ends here.
        drop(child.stdin.take());
        let status = self.claim(&window, child.id() as i32)?;
        Ok(Ended { status, talked })
    }
}
