//! Processes that are remembered across time: a pid alone may mean another process later.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use towline_lazyfs::error::{Error, Result};

/// A process: its pid and when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the host's pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (proc(5), `/proc/PID/stat`, field 22).
    pub started: u64,
}

impl Process {
    /// The process with this pid now; `None` where there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (started, state) = parse_stat(&stat)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, started })
    }

    /// This process.
    pub fn this() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// A descriptor of the process; `None` where it has ended.
    pub fn open(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // What was opened is what was remembered only if the start time is still the same now.
            Ok(fd) => Ok(self.is_alive().then_some(fd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(e) => Err(Error::io("opening process", self.pid.to_string(), e)),
        }
    }
}

/// Start time and state letter of a line of `/proc/PID/stat`. The command name may contain spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(u64, char)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3.
    let started = fields.nth(18)?.parse().ok()?;
    Some((started, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_pid_is_another_process() {
        let this = Process::this().unwrap();
        assert!(this.is_alive());
        let other = Process { started: this.started + 1, ..this };
        assert!(!other.is_alive());
        assert!(other.open().unwrap().is_none());
        assert!(this.open().unwrap().is_some());
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        rustix::process::waitid(
            rustix::process::WaitId::Pid(Pid::from_raw(pid).unwrap()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(Process::of(pid), None);
        child.wait().unwrap();
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 777 1000 2 3";
        assert_eq!(parse_stat(stat), Some((777, 'S')));
        for bad in ["", "12", "12 (a)", "12 (a) S 1"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }
}
