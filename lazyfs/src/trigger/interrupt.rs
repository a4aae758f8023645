//! Who may be interrupted: only a caller that is being killed.
//!
//! A process that gets any signal while it waits for the trigger makes the kernel send INTERRUPT. Answering EINTR then would be
//! wrong for signals with a handler: overlayfs does not pass EINTR on but tries the next data layer, and the program would find an
//! existing file missing. Not answering would be wrong for SIGKILL: the process could not die before the fetch ends. The kernel sends
//! INTERRUPT once per request, so a caller that was merely signalled has to be watched until its request is answered: SIGKILL may
//! still come.

use std::time::Duration;

/// How often callers that were signalled are looked at.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Bit of SIGKILL in the signal masks of `/proc/PID/status`.
const SIGKILL: u64 = 1 << 8;

/// Whether thread `pid` is being killed. Where that cannot be known it is not: a wrong "yes" would hide an existing file.
///
/// The file shows both the thread's own pending signals and those of its thread group. When another thread ends the whole process
/// (exit_group, execve, a fatal signal), SIGKILL is made pending for each thread.
pub(super) fn is_killed(pid: u32) -> bool {
    if pid == 0 {
        return false; // Not visible from this pid namespace.
    }
    match std::fs::read(format!("/proc/{pid}/status")) {
        Ok(status) => kill_pending(&status),
        // A thread that waits for an answer has an entry, unless /proc is not that of this pid namespace.
        Err(_) => false,
    }
}

fn kill_pending(status: &[u8]) -> bool {
    status.split(|&byte| byte == b'\n').any(|line| {
        let mask = line.strip_prefix(b"SigPnd:").or_else(|| line.strip_prefix(b"ShdPnd:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(str::from_utf8(mask).ok()?.trim(), 16).ok());
        mask.is_some_and(|mask| mask & SIGKILL != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pending_sigkill_counts() {
        let cases: &[(&str, bool)] = &[
            ("", false),
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n", false),
            ("SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true),
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", true),
            ("SigPnd:\t0000000000002000\nShdPnd:\tfffffffffffffeff\n", false), // everything but SIGKILL
            ("Name:\tSigPnd:\t0000000000000100\nSigBlk:\tffffffffffffffff\n", false),
            ("SigPnd:\tzzz\nShdPnd:\n", false),
        ];
        for (status, killed) in cases {
            assert_eq!(kill_pending(status.as_bytes()), *killed, "{status}");
        }
    }

    #[test]
    fn a_living_thread_is_not_killed() {
        assert!(!is_killed(std::process::id()));
        assert!(!is_killed(0));
    }
}
