//! Listens to the daemon for as long as an image arrives, also after the container has ended.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Result};

use super::{Shared, lock};
use crate::engine::Engine;
use crate::relay::process::Signals;
use crate::timeline::step::Step;

/// A thread that moves the timeline on with what the daemon says.
pub struct Listener {
    thread: JoinHandle<()>,
    /// Hangs up when the thread ends.
    ended: OwnedFd,
}

impl Listener {
    /// Listens until everything is local and the daemon has left; `None` where no daemon runs.
    pub fn start(engine: &Engine, image: Digest, timeline: &Shared) -> Result<Option<Self>> {
        let Some(mut daemon) = Client::connect(&engine.paths)? else { return Ok(None) };
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (ended, alive) = pipe.map_err(|e| Error::io("creating", "a pipe", e))?;
        let timeline = Arc::clone(timeline);
        let thread = std::thread::spawn(move || {
            let _alive = alive;
            let mut note = |event| lock(&timeline).event(event);
            let watched = daemon.watch(image, &mut note).and_then(|()| daemon.wait_gone(&mut note));
            let last = match watched {
                Ok(()) => Step::DaemonGone,
                Err(e) => Step::Warning { text: e.one_line() },
            };
            lock(&timeline).step(last);
        });
        Ok(Some(Self { thread, ended }))
    }

    /// Waits for its end, or for the user to have seen enough: the signal that said so. The image goes on arriving in any case.
    pub fn wait(self, signals: &Signals) -> Result<Option<Signal>> {
        loop {
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("waiting for", "towlined", e)),
            }
            if !fds[0].revents().is_empty() {
                break;
            }
            while let Some(signal) = signals.next()? {
                if [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal) {
                    return Ok(Some(signal));
                }
            }
        }
        if self.thread.join().is_err() {
            crate::cli::warn("watching the pull failed");
        }
        Ok(None)
    }
}
