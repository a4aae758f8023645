//! The end of a process that was made by the runtime and left to us as its reaper, and the signals that are passed on to it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use towline_lazyfs::error::{Error, Outcome, Result};

/// Signals that are passed on to a container.
const PASSED_ON: [NixSignal; 10] = [
    NixSignal::SIGHUP,
    NixSignal::SIGINT,
    NixSignal::SIGQUIT,
    NixSignal::SIGTERM,
    NixSignal::SIGUSR1,
    NixSignal::SIGUSR2,
    NixSignal::SIGALRM,
    NixSignal::SIGCONT,
    NixSignal::SIGTSTP,
    NixSignal::SIGWINCH,
];

/// How many requests to end (SIGINT, SIGTERM) a process gets before it is killed: as first process of its pid namespace it ignores
/// those that it has no handler for.
const PATIENCE: usize = 3;

/// The signals that are passed on, taken from their usual course for this thread and those it makes from now on.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes the signals. To be called while there is one thread. With `stops` also those of job control.
    pub fn take(stops: bool) -> Result<Self> {
        let wanted = |signal: &NixSignal| stops || !matches!(signal, NixSignal::SIGTSTP | NixSignal::SIGCONT);
        let set: SigSet = PASSED_ON.into_iter().filter(wanted).collect();
        let failed = |e: nix::errno::Errno| Error::io("taking", "signals", std::io::Error::from(e));
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self).map_err(failed)
    }

    /// The next signal that has arrived.
    pub fn next(&self) -> Result<Option<Signal>> {
        match self.0.read_signal() {
            Ok(Some(info)) => Ok(i32::try_from(info.ssi_signo).ok().and_then(Signal::from_named_raw)),
            Ok(None) => Ok(None),
            Err(e) => Err(Error::io("reading", "signals", std::io::Error::from(e))),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process that has been left to us.
#[derive(Debug)]
pub struct Ward {
    /// Its pid.
    pub pid: i32,
    fd: OwnedFd,
}

impl Ward {
    /// The process whose pid the runtime wrote into a file.
    pub fn from_pid_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(|| {
            Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(format!("{text:?} is no pid"))
        })?;
        // Nobody but us reaps it, so the pid is still its own even if it has ended.
        let fd =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| Error::io("opening process", text.trim(), e))?;
        Ok(Self { pid: pid.as_raw_nonzero().get(), fd })
    }

    /// Waits for its end, for as long as it lives, and passes signals on; `on_resize` is called when the user's terminal has
    /// another size. The result is its exit code, 128 + n where signal n killed it.
    pub fn wait(&self, signals: &Signals, mut on_resize: impl FnMut()) -> Result<u8> {
        let mut asked_to_end = 0;
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("waiting for process", self.pid.to_string(), e)),
            }
            if !fds[0].revents().is_empty() {
                return self.reap();
            }
            while let Some(signal) = signals.next()? {
                if signal == Signal::WINCH {
                    on_resize();
                    continue;
                }
                asked_to_end += usize::from(signal == Signal::INT || signal == Signal::TERM);
                let signal = if asked_to_end >= PATIENCE { Signal::KILL } else { signal };
                match rustix::process::pidfd_send_signal(&self.fd, signal) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(e) => return Err(Error::io("sending a signal to process", self.pid.to_string(), e)),
                }
            }
        }
    }

    fn reap(&self) -> Result<u8> {
        let waited = rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED);
        let status = waited.map_err(|e| Error::io("waiting for process", self.pid.to_string(), e))?;
        let status = status.ok_or_else(|| {
            Error::new(Outcome::Io, format!("waiting for process {}", self.pid)).because("it has ended without a status")
        })?;
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code & 0xff,
            (None, signal) => 128 + signal.unwrap_or(0),
        };
        Ok(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::zombie_processes, reason = "the ward reaps it")]
    fn ward(script: &str) -> Ward {
        let child = std::process::Command::new("sh").arg("-c").arg(script).spawn().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\n", child.id())).unwrap();
        Ward::from_pid_file(file.path()).unwrap()
    }

    #[test]
    fn exit_codes() {
        let cases = [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)];
        // A process inherits which signals its parent has taken; a runtime undoes that, a shell does not.
        let wards = cases.map(|(script, _)| ward(script));
        let signals = Signals::take(false).unwrap();
        for (ward, (script, code)) in wards.iter().zip(cases) {
            assert_eq!(ward.wait(&signals, || {}).unwrap(), code, "{script}");
        }
    }

    #[test]
    fn what_is_no_pid_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "x", "0", "99999999999"] {
            std::fs::write(file.path(), text).unwrap();
            assert!(Ward::from_pid_file(file.path()).is_err(), "{text}");
        }
    }
}
