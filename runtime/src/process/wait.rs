//! Waiting: always on descriptors, always with a deadline, always naming what is waited for.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, Outcome, Result};

/// How long the runtime waits for one step of a new process. Generous: a root file system that arrives over a network may block
/// any path lookup.
pub const STEP: Duration = Duration::from_secs(300);

/// Longer is not asked of the clock: its sums must not overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A point in time and what should have happened until then.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    limit: Duration,
}

impl Deadline {
    /// `limit` from now.
    pub fn after(limit: Duration) -> Self {
        let limit = limit.min(LONGEST);
        Self { end: Instant::now() + limit, limit }
    }

    /// What is left, never negative.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Waits until one of `fds` is readable (or hung up) and says which, by index. `what` completes "waiting for ...".
    pub fn wait(&self, fds: &[BorrowedFd<'_>], what: &str) -> Result<Vec<usize>> {
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        loop {
            let left = Timespec::try_from(self.left()).map_err(|cause| failed(what).because(cause))?;
            match poll(&mut polled, Some(&left)) {
                Ok(0) => return Err(self.passed(what)),
                Ok(_) => {
                    return Ok((0..polled.len()).filter(|index| !polled[*index].revents().is_empty()).collect());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(Error::sys(format!("waiting for {what}"), cause)),
            }
        }
    }
}

impl Deadline {
    /// Waits until `fd` takes more (or its other side is gone, which the next write tells). `what` completes "waiting for ...".
    pub fn wait_writable(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        loop {
            let left = Timespec::try_from(self.left()).map_err(|cause| failed(what).because(cause))?;
            match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&left)) {
                Ok(0) => return Err(self.passed(what)),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(Error::sys(format!("waiting for {what}"), cause)),
            }
        }
    }

    fn passed(&self, what: &str) -> Error {
        Error::new(Outcome::Timeout, format!("waiting for {what}")).because(format!("nothing happened for {:?}", self.limit))
    }
}

fn failed(what: &str) -> Error {
    Error::new(Outcome::Io, format!("waiting for {what}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_deadline_that_passes_says_what_was_awaited() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let error = Deadline::after(Duration::from_millis(10)).wait(&[reader.as_fd()], "the end of time").unwrap_err();
        assert_eq!(error.outcome(), Outcome::Timeout);
        assert!(error.one_line().starts_with("waiting for the end of time"));
    }

    #[test]
    fn a_full_pipe_is_awaited_with_a_deadline() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
        let error = Deadline::after(Duration::from_millis(10)).wait_writable(writer.as_fd(), "a reader").unwrap_err();
        assert_eq!(error.outcome(), Outcome::Timeout);
        // Whoever waits for a reader that is gone has to learn it.
        drop(reader);
        Deadline::after(STEP).wait_writable(writer.as_fd(), "a reader").unwrap();
    }

    #[test]
    fn the_ready_descriptor_is_named() {
        let (quiet, _keep) = rustix::pipe::pipe().unwrap();
        let (loud, writer) = rustix::pipe::pipe().unwrap();
        drop(writer);
        let ready = Deadline::after(STEP).wait(&[quiet.as_fd(), loud.as_fd()], "a hang-up").unwrap();
        assert_eq!(ready, [1]);
    }
}
