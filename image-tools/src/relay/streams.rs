//! The threads that carry bytes between a process and its user.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use towline_lazyfs::error::{Error, Result};
use towline_runtime::client::Stdio3;

use super::console;
use crate::container::log::Stream;

/// Sees all output on its way.
pub type Tap = Arc<dyn Fn(Stream, &[u8]) + Send + Sync>;

/// Bytes that are carried at once: what a pipe holds.
const PIECE: usize = 64 * 1024;

/// When the process has ended, all that it wrote can be read at once. A pipe that stays open and silent for this long is held by a
/// process elsewhere that we do not wait for.
const SILENCE: Duration = Duration::from_millis(300);

/// And a pipe never holds more than this (pipe(7), `pipe-max-size`): what comes after it was written by somebody else.
const LEFT_IN_PIPE: usize = 1 << 20;

/// How often a terminal that nobody has open is looked at again.
const TERMINAL_CLOSED: Duration = Duration::from_millis(50);

/// The user's end: absent for a detached container.
#[derive(Debug, Default)]
pub struct User {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output; gets all output of a terminal.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// Our end of the process's streams.
#[derive(Debug)]
pub enum Ours {
    /// Pipes; no standard input is `/dev/null` on the other end.
    Pipes {
        /// To its standard input.
        stdin: Option<OwnedFd>,
        /// From its standard output.
        stdout: OwnedFd,
        /// From its standard error.
        stderr: OwnedFd,
    },
    /// The master side of its terminal.
    Terminal(OwnedFd),
}

/// Pipes for a process: the ends for the runtime, and ours.
pub fn pipes(with_stdin: bool) -> Result<(Stdio3, Ours)> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("creating", "a pipe", e));
    let (stdin, feed) = match with_stdin {
        true => pipe().map(|(theirs, ours)| (theirs, Some(ours)))?,
        false => (null()?, None),
    };
    let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
    let theirs = Stdio3 { stdin: Some(stdin), stdout: Some(out), stderr: Some(err) };
    Ok((theirs, Ours::Pipes { stdin: feed, stdout, stderr }))
}

/// Streams that lead nowhere: for the runtime while it makes a process with a terminal, or one that nobody listens to.
pub fn nowhere() -> Result<Stdio3> {
    Ok(Stdio3 { stdin: Some(null()?), stdout: Some(null()?), stderr: Some(null()?) })
}

fn null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|e| Error::io("opening", "/dev/null", e))
}

/// Threads that carry bytes.
#[derive(Debug)]
pub struct Streams {
    ended: Arc<OwnedFd>,
    out: Vec<JoinHandle<()>>,
    resize: Option<(OwnedFd, OwnedFd)>,
    /// Where input for the process goes that its user does not give.
    input: Option<OwnedFd>,
}

impl Streams {
    /// Starts to carry.
    pub fn carry(ours: Ours, user: User, tap: &Tap) -> Result<Self> {
        let failed = |e| Error::io("creating", "an eventfd", e);
        let ended = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(failed)?);
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::io("duplicating", "a descriptor", e));
        let mut streams = Self { ended, out: Vec::new(), resize: None, input: None };
        match ours {
            Ours::Pipes { stdin, stdout, stderr } => {
                match (user.stdin, stdin) {
                    (Some(from), Some(to)) => carry_in(from, to, false),
                    (_, left) => streams.input = left,
                }
                streams.carry_out(stdout, user.stdout, Stream::Stdout, tap);
                streams.carry_out(stderr, user.stderr, Stream::Stderr, tap);
            }
            Ours::Terminal(master) => {
                if let Some(out) = &user.stdout {
                    streams.resize = Some((clone(out)?, clone(&master)?));
                }
                if let Some(from) = user.stdin {
                    carry_in(from, clone(&master)?, true);
                }
                streams.input = Some(clone(&master)?);
                streams.carry_out(master, user.stdout, Stream::Stdout, tap);
            }
        }
        streams.resize();
        Ok(streams)
    }

    /// Gives the process's terminal the size of the user's.
    pub fn resize(&self) {
        if let Some((user, terminal)) = &self.resize {
            console::copy_size(user.as_fd(), terminal.as_fd());
        }
    }

    /// Where input can be written that comes from elsewhere: what the process reads stays open until this is dropped.
    pub fn take_input(&mut self) -> Option<OwnedFd> {
        self.input.take()
    }

    /// After the process's end: carries what is left of its output.
    pub fn finish(self) -> Result<()> {
        rustix::io::write(&*self.ended, &1u64.to_ne_bytes()).map_err(|e| Error::io("writing to", "an eventfd", e))?;
        for thread in self.out {
            thread.join().map_err(|_| {
                Error::new(towline_lazyfs::error::Outcome::Io, "carrying the container's output").because("the thread panicked")
            })?;
        }
        Ok(())
    }

    fn carry_out(&mut self, from: OwnedFd, to: Option<OwnedFd>, stream: Stream, tap: &Tap) {
        let (ended, tap) = (Arc::clone(&self.ended), Arc::clone(tap));
        self.out.push(std::thread::spawn(move || {
            carry_out(File::from(from), to.map(File::from), &ended, |piece| tap(stream, piece))
        }));
    }
}

fn carry_out(mut from: File, mut to: Option<File>, ended: &OwnedFd, tap: impl Fn(&[u8])) {
    let mut buffer = vec![0; PIECE];
    let mut left = None;
    loop {
        if left.is_none() {
            match wait_for(&from, Some(ended), None) {
                Ready::Ended => {
                    left = Some(LEFT_IN_PIPE);
                    continue;
                }
                Ready::Readable => {}
                Ready::Silent => return,
            }
        } else if wait_for(&from, None, Some(SILENCE)) == Ready::Silent || left == Some(0) {
            return;
        }
        let n = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // A terminal whose last user has closed it; another one may open it again while the process lives.
            Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) && left.is_none() => {
                if wait_for(ended, None, Some(TERMINAL_CLOSED)) == Ready::Readable {
                    left = Some(LEFT_IN_PIPE);
                }
                continue;
            }
            Err(_) => return,
        };
        left = left.map(|left| left.saturating_sub(n));
        tap(&buffer[..n]);
        if let Some(user) = &mut to
            && user.write_all(&buffer[..n]).is_err()
        {
            // Nobody reads any more. The process learns it the usual way: its next write fails (and SIGPIPE ends most programs).
            return;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Ready {
    Readable,
    Ended,
    Silent,
}

/// Waits until there is something to read, or, where there is not, until the process has ended or the time is over.
fn wait_for(from: impl AsFd, ended: Option<&OwnedFd>, timeout: Option<Duration>) -> Ready {
    let timeout = timeout.map(|time| Timespec::try_from(time).expect("the timeouts here are short"));
    let mut fds = vec![PollFd::new(&from, PollFlags::IN)];
    fds.extend(ended.map(|ended| PollFd::new(ended, PollFlags::IN)));
    loop {
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => continue,
            Ok(0) | Err(_) => return Ready::Silent,
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ready::Readable,
            Ok(_) if fds.get(1).is_some_and(|ended| !ended.revents().is_empty()) => return Ready::Ended,
            // Hung up or in error: reading says which.
            Ok(_) => return Ready::Readable,
        }
    }
}

/// Starts the thread that carries the user's input. It is never joined: it may sit in a read for ever.
fn carry_in(from: OwnedFd, to: OwnedFd, terminal: bool) {
    std::thread::spawn(move || {
        let (mut from, mut to) = (File::from(from), File::from(to));
        let mut buffer = vec![0; PIECE];
        loop {
            match from.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(n) if n > 0 => {
                    if to.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
                Ok(_) | Err(_) => {
                    // The end of the input: a closed pipe says it by itself, a terminal by the end-of-file character (^D).
                    if terminal {
                        to.write_all(&[4]).unwrap_or_default();
                    }
                    return;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    fn collect() -> (Tap, Arc<Mutex<Vec<u8>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&seen);
        (Arc::new(move |_, piece: &[u8]| copy.lock().unwrap().extend_from_slice(piece)), seen)
    }

    #[test]
    fn everything_that_was_written_before_the_end_arrives() {
        let (theirs, ours) = pipes(false).unwrap();
        let (tap, seen) = collect();
        let streams = Streams::carry(ours, User::default(), &tap).unwrap();
        let mut out = File::from(theirs.stdout.unwrap());
        let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        out.write_all(&data).unwrap();
        drop((out, theirs.stderr));
        streams.finish().unwrap();
        assert!(*seen.lock().unwrap() == data);
    }

    #[test]
    fn a_pipe_that_somebody_holds_open_does_not_keep_us() {
        let (theirs, ours) = pipes(false).unwrap();
        let (tap, seen) = collect();
        let streams = Streams::carry(ours, User::default(), &tap).unwrap();
        let mut out = File::from(theirs.stdout.unwrap());
        out.write_all(b"last words").unwrap();
        let begin = Instant::now();
        streams.finish().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(*seen.lock().unwrap(), b"last words");
        drop((out, theirs.stderr));
    }

    #[test]
    fn input_reaches_the_process_and_ends_with_the_users() {
        let (theirs, ours) = pipes(true).unwrap();
        let (tap, _) = collect();
        let (from, to) = rustix::pipe::pipe().unwrap();
        let streams = Streams::carry(ours, User { stdin: Some(from), ..User::default() }, &tap).unwrap();
        File::from(to).write_all(b"question").unwrap();
        let mut heard = String::new();
        File::from(theirs.stdin.unwrap()).read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "question");
        drop((theirs.stdout, theirs.stderr));
        streams.finish().unwrap();
    }

    #[test]
    fn a_user_who_stops_reading_is_told_to_the_process() {
        let (theirs, ours) = pipes(false).unwrap();
        let (tap, _) = collect();
        let (from, to) = rustix::pipe::pipe().unwrap();
        drop(from);
        let streams = Streams::carry(ours, User { stdout: Some(to), ..User::default() }, &tap).unwrap();
        let mut out = File::from(theirs.stdout.unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while out.write_all(b"anybody?").is_ok() {
            assert!(Instant::now() < deadline, "writing never failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop((out, theirs.stderr));
        streams.finish().unwrap();
    }
}
