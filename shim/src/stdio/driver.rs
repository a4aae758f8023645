//! Log drivers: programs that read both output streams of a container (containerd's `binary://`).
//!
//! A driver gets the container's id and namespace in its environment (and nothing else there), the streams as descriptors 3 and 4,
//! and closes descriptor 5 when it is ready. It ends when both streams have ended; if it does not, it is told to, and then made to.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use towline_runtime::process::wait::Deadline;
use towline_runtime::{Error, Outcome, Result};

/// How long a driver may take to be ready: it may have to connect to something.
const READY: Duration = Duration::from_secs(30);
/// How long a driver has after SIGTERM, and after SIGKILL.
const TERM: Duration = Duration::from_secs(2);

/// Who the streams belong to, for the driver.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's id.
    pub id: &'a str,
}

/// A running driver.
#[derive(Debug)]
pub(super) struct Driver {
    program: PathBuf,
    pidfd: OwnedFd,
    /// Held, so that a container whose driver died waits, as for any slow reader, and gets no SIGPIPE.
    _readers: [OwnedFd; 2],
}

/// Ends for the container: standard output and error.
pub(super) type Writers = [OwnedFd; 2];

impl Driver {
    /// Starts `program` and waits until it is ready.
    pub(super) fn start(program: &Path, arguments: &[String], owner: Owner<'_>) -> Result<(Self, Writers)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|cause| Error::sys("making a pipe for a log driver", cause));
        let ((out, out_writer), (err, err_writer), (ready, ready_writer)) = (pipe()?, pipe()?, pipe()?);
        let pid = spawn(program, arguments, owner, [&out, &err, &ready_writer])
            .map_err(|cause| Error::io("starting the log driver", program, cause))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|cause| Error::io("finding the process of the log driver", program, cause))?;
        drop(ready_writer);
        let driver = Self { program: program.to_owned(), pidfd, _readers: [out, err] };
        let what = format!("the log driver {} to be ready", program.display());
        if let Err(error) = Deadline::after(READY).wait(&[ready.as_fd()], &what) {
            driver.end(Duration::ZERO)?;
            return Err(error.advise("a log driver closes its descriptor 5 when it is ready"));
        }
        if is_ending(pid) {
            driver.end(TERM)?;
            return Err(Error::new(Outcome::Io, format!("starting the log driver {}", program.display()))
                .because("it has ended instead of reading the container's output"));
        }
        Ok((driver, [out_writer, err_writer]))
    }

    /// Waits until the driver has ended; after `wait` it is killed. False if it had to be.
    pub(super) fn end(&self, wait: Duration) -> Result<bool> {
        if self.ended_within(wait)? {
            return Ok(true);
        }
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
            match pidfd_send_signal(&self.pidfd, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(cause) => return Err(Error::io("ending the log driver", &self.program, cause)),
            }
            if self.ended_within(TERM)? {
                return Ok(false);
            }
        }
        Err(Error::new(Outcome::Timeout, format!("ending the log driver {}", self.program.display()))
            .because("it is there after SIGKILL"))
    }

    fn ended_within(&self, wait: Duration) -> Result<bool> {
        let what = format!("the log driver {} to end", self.program.display());
        match Deadline::after(wait).wait(&[self.pidfd.as_fd()], &what) {
            Ok(_) => {}
            Err(error) if error.outcome() == Outcome::Timeout => return Ok(false),
            Err(error) => return Err(error),
        }
        // Whoever reaps all children of the shim may have been faster.
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(_) | Err(Errno::CHILD) => Ok(true),
            Err(cause) => Err(Error::io("reaping the log driver", &self.program, cause)),
        }
    }
}

/// Whether a process has begun to exit: that closes its descriptors before anybody is told of its end. Flags are field 9 of
/// /proc/PID/stat (proc_pid_stat(5)).
fn is_ending(pid: Pid) -> bool {
    const PF_EXITING: u64 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { return true };
    // The name before may have anything in it.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// posix_spawn(3), since the standard library's Command passes on three descriptors only.
fn spawn(program: &Path, arguments: &[String], owner: Owner<'_>, fds: [&OwnedFd; 3]) -> std::io::Result<Pid> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(std::io::Error::from);
    let path = text(program.as_os_str().as_bytes())?;
    let mut args = vec![path.clone()];
    for argument in arguments {
        args.push(text(argument.as_bytes())?);
    }
    let env = [
        text(format!("CONTAINER_ID={}", owner.id).as_bytes())?,
        text(format!("CONTAINER_NAMESPACE={}", owner.namespace).as_bytes())?,
    ];
    let mut actions = PosixSpawnFileActions::init()?;
    let null = super::fifo::null().map_err(std::io::Error::other)?;
    // Numbers that none of the places below is, so that no step overwrites what a later one copies.
    let mut kept = Vec::new();
    for (place, fd) in [&null, &null, &null].into_iter().chain(fds).enumerate() {
        let copy = fcntl_dupfd_cloexec(fd, 10)?;
        let place = RawFd::try_from(place).map_err(std::io::Error::other)?;
        actions.add_dup2(copy.as_raw_fd(), place)?;
        kept.push(copy);
    }
    let mut attr = PosixSpawnAttr::init()?;
    // Its own process group: a signal for the shim's is not meant for the log.
    let (defaults, group) = (PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF, PosixSpawnFlags::POSIX_SPAWN_SETPGROUP);
    attr.set_flags(defaults | group | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    attr.set_pgroup(nix::unistd::Pid::from_raw(0))?;
    attr.set_sigmask(&SigSet::empty())?;
    let mut ignored = SigSet::empty();
    ignored.add(Signal::SIGPIPE);
    attr.set_sigdefault(&ignored)?;
    let pid = posix_spawn(path.as_c_str(), &actions, &attr, &args, &env)?;
    Pid::from_raw(pid.as_raw()).ok_or_else(|| std::io::Error::other("the pid of the new process is 0"))
}
