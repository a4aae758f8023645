//! Relaying between the caller's terminal and the master of the container's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::{Error, Result};

/// What may wait in the direction of the container before we stop reading our stdin.
const PENDING_LIMIT: usize = 64 * 1024;

/// The relay; dropping it restores the caller's terminal.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    saved: Option<Termios>,
    pending: Vec<u8>,
    stdin_open: bool,
    master_open: bool,
}

impl Relay {
    /// Puts the caller's terminal, if stdin is one, into raw mode.
    pub fn new(master: OwnedFd) -> Result<Self> {
        let failed = |cause: Errno| Error::sys("preparing the terminal", cause);
        let flags = fcntl_getfl(&master).map_err(failed)?;
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).map_err(failed)?;
        let mut relay = Self { master, saved: None, pending: Vec::new(), stdin_open: true, master_open: true };
        if isatty(stdin()) {
            relay.copy_size()?;
            let saved = tcgetattr(stdin()).map_err(failed)?;
            let mut raw = saved.clone();
            raw.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &raw).map_err(failed)?;
            relay.saved = Some(saved);
        }
        Ok(relay)
    }

    /// Gives the container's terminal the size of the caller's.
    pub fn copy_size(&self) -> Result<()> {
        if !isatty(stdin()) {
            return Ok(());
        }
        let failed = |cause: Errno| Error::sys("copying the terminal's size", cause);
        tcsetwinsize(&self.master, tcgetwinsize(stdin()).map_err(failed)?).map_err(failed)
    }

    /// What to poll.
    pub fn polled(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        if self.master_open {
            let out = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(self.master.as_fd(), PollFlags::IN | out));
        }
        if self.wants_stdin() {
            fds.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
        fds
    }

    fn wants_stdin(&self) -> bool {
        self.stdin_open && self.master_open && self.pending.len() < PENDING_LIMIT
    }

    /// Moves what can be moved without waiting.
    pub fn pump(&mut self) -> Result<()> {
        if self.wants_stdin() && readable(stdin()) {
            let mut buffer = [0; 8192];
            match rustix::io::read(stdin(), &mut buffer) {
                Ok(0) | Err(Errno::IO) => self.stdin_open = false,
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(cause) => return Err(Error::sys("reading standard input", cause)),
            }
        }
        if !self.pending.is_empty() && self.master_open {
            match rustix::io::write(&self.master, &self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::IO) => self.master_open = false,
                Err(cause) => return Err(Error::sys("writing to the container's terminal", cause)),
            }
        }
        self.read_master().map(drop)
    }

    /// Passes on what the program wrote before it ended.
    pub fn finish(&mut self) -> Result<()> {
        while self.read_master()? {}
        Ok(())
    }

    /// True if there was something.
    fn read_master(&mut self) -> Result<bool> {
        if !self.master_open {
            return Ok(false);
        }
        let mut buffer = [0; 8192];
        match rustix::io::read(&self.master, &mut buffer) {
            // EIO: the last process that had the terminal is gone.
            Ok(0) | Err(Errno::IO) => {
                self.master_open = false;
                Ok(false)
            }
            Ok(count) => write_all(stdout(), &buffer[..count]).map(|()| true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(cause) => Err(Error::sys("reading the container's terminal", cause)),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // If the terminal is gone there is nothing to restore.
            tcsetattr(stdin(), OptionalActions::Now, saved).ok();
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)), Ok(1..))
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // No deadline: whoever reads our output may take as long as it likes, as in any pipeline.
                poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None)
                    .map_err(|cause| Error::sys("waiting for standard output", cause))?;
            }
            Err(cause) => return Err(Error::sys("writing standard output", cause)),
        }
    }
    Ok(())
}
