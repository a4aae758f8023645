//! Staying with a container's process: signals go to it, a terminal is relayed, and its end is ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use super::terminal::Relay;
use crate::error::{Error, Result};
use crate::process::spawn::reap;

/// Signals that are ours: the kernel tells us about our own children and terminal, and Go programs preempt with URG.
const OWN: [libc::c_int; 3] = [libc::SIGCHLD, libc::SIGWINCH, libc::SIGURG];

/// Signals to us, held back from before the process exists, so that none is lost.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks every signal that can be and turns it into something to poll.
    pub fn hold() -> Result<Self> {
        let failed = |cause: nix::Error| Error::sys("holding signals back", std::io::Error::from(cause));
        let mut all = SigSet::all();
        // Faults of our own have to be felt.
        for fault in
            [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGTRAP, Signal::SIGSYS]
        {
            all.remove(fault);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(failed)?;
        SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self).map_err(failed)
    }
}

/// Waits for the end of the process behind `pidfd`, a child of ours, and returns its exit code (128+n for signal n).
pub fn wait(pidfd: BorrowedFd<'_>, signals: &Signals, terminal: Option<OwnedFd>) -> Result<i32> {
    let mut relay = terminal.map(Relay::new).transpose()?;
    loop {
        // No deadline: a program runs as long as it runs.
        let mut fds =
            vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN), PollFd::from_borrowed_fd(signals.0.as_fd(), PollFlags::IN)];
        if let Some(relay) = &relay {
            fds.extend(relay.polled());
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(Error::sys("waiting for the container's process", cause)),
        }
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        if let Some(relay) = &mut relay {
            relay.pump()?;
        }
        if ended {
            if let Some(relay) = &mut relay {
                relay.finish()?;
            }
            return Ok(reap(pidfd)?.unwrap_or(1));
        }
        forward(pidfd, signals, relay.as_ref())?;
    }
}

fn forward(pidfd: BorrowedFd<'_>, signals: &Signals, relay: Option<&Relay>) -> Result<()> {
    let failed = |cause: std::io::Error| Error::sys("passing a signal on", cause);
    while let Some(info) = signals.0.read_signal().map_err(|cause| failed(cause.into()))? {
        let number = info.ssi_signo as i32;
        if number == libc::SIGWINCH
            && let Some(relay) = relay
        {
            relay.copy_size()?;
        }
        if OWN.contains(&number) {
            continue;
        }
        match towline_sys::pidfd_send_signal(pidfd, number) {
            // It ended meanwhile: the next round sees that.
            Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => {}
            sent => sent.map_err(failed)?,
        }
    }
    Ok(())
}
