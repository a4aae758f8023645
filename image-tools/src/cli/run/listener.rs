//! Listens to the daemon for as long as an image arrives, also after the container has ended.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Result};

use super::{Shared, lock};
use crate::engine::Engine;
use crate::relay::process::Signals;
use crate::timeline::step::Step;

/// How long the daemon may say nothing before it is no longer waited for: long enough for it to try a broken registry again several times.
const SILENCE: Duration = Duration::from_secs(120);

/// A thread that moves the timeline on with what the daemon says.
pub struct Listener {
    thread: JoinHandle<()>,
    /// Hangs up when the thread ends.
    ended: OwnedFd,
    /// When the daemon said something last.
    heard: Arc<Mutex<Instant>>,
}

/// Why waiting for the rest of an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// All of it is local, or the daemon has gone.
    ToTheEnd,
    /// The user has seen enough.
    Interrupted(Signal),
    /// The daemon has said nothing for so long.
    InVain(Duration),
}

impl Listener {
    /// Listens until everything is local and the daemon has left; `None` where no daemon runs.
    pub fn start(engine: &Engine, image: Digest, timeline: &Shared) -> Result<Option<Self>> {
        let Some(mut daemon) = Client::connect(&engine.paths)? else { return Ok(None) };
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (ended, alive) = pipe.map_err(|e| Error::io("creating", "a pipe", e))?;
        let timeline = Arc::clone(timeline);
        let heard = Arc::new(Mutex::new(Instant::now()));
        let told = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            let _alive = alive;
            let mut note = |event| {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                lock(&timeline).event(event);
            };
            let watched = daemon.watch(image, &mut note).and_then(|()| daemon.wait_gone(&mut note));
            let last = match watched {
                Ok(()) => Step::DaemonGone,
                Err(e) => Step::Warning { text: e.one_line() },
            };
            lock(&timeline).step(last);
        });
        Ok(Some(Self { thread, ended, heard }))
    }

    /// Waits for its end. The image goes on arriving in any case.
    pub fn wait(self, signals: &Signals) -> Result<Waited> {
        loop {
            let silent = self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            let Some(left) = SILENCE.checked_sub(silent) else { return Ok(Waited::InVain(SILENCE)) };
            let deadline = Timespec { tv_sec: left.as_secs().cast_signed() + 1, tv_nsec: 0 };
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&deadline)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("waiting for", "towlined", e)),
            }
            if !fds[0].revents().is_empty() {
                break;
            }
            while let Some(signal) = signals.next()? {
                if [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal) {
                    return Ok(Waited::Interrupted(signal));
                }
            }
        }
        if self.thread.join().is_err() {
            crate::cli::warn("watching the pull failed");
        }
        Ok(Waited::ToTheEnd)
    }
}
