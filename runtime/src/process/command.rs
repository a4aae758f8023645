//! Programs of the host that the runtime runs for itself: each has a deadline, and what it prints is taken while it runs.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::wait::Deadline;
use crate::error::{Error, Result};

/// The most that is kept of what a program prints, in bytes; the rest is thrown away.
const MAX_OUTPUT: usize = 16 << 20;

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Runs `command` with nothing on its standard input, and kills it when it takes longer than `limit`. `what` names it in errors.
pub fn output(command: &mut Command, limit: Duration, what: &str) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|cause| Error::sys(format!("running {what}"), cause))?;
    match collect(&mut child, Deadline::after(limit), what) {
        Ok((stdout, stderr)) => {
            let status = child.wait().map_err(|cause| Error::sys(format!("waiting for {what}"), cause))?;
            Ok(Output { status, stdout, stderr })
        }
        Err(error) => {
            child.kill().map_err(|cause| Error::sys(format!("killing {what}"), cause))?;
            Err(error)
        }
    }
}

/// Reads until the program itself has ended: its children may hold its streams open for longer.
fn collect(child: &mut Child, deadline: Deadline, what: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let failed = |cause: std::io::Error| Error::sys(format!("reading what {what} prints"), cause);
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(|cause| failed(cause.into()))?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let mut fds = vec![pidfd.as_fd()];
        fds.extend(out.as_ref().map(AsFd::as_fd));
        fds.extend(err.as_ref().map(AsFd::as_fd));
        let ended = deadline.wait(&fds, &format!("the end of {what}"))?.contains(&0);
        let more = [read_some(&mut out, &mut stdout).map_err(failed)?, read_some(&mut err, &mut stderr).map_err(failed)?];
        if ended && more == [false; 2] {
            return Ok((stdout, stderr));
        }
    }
}

/// Takes what is there without waiting; false when nothing is. The stream is given up at its end.
fn read_some<T: Read + AsFd>(stream: &mut Option<T>, kept: &mut Vec<u8>) -> std::io::Result<bool> {
    let Some(open) = stream else { return Ok(false) };
    if !is_readable(open.as_fd()) {
        return Ok(false);
    }
    let mut buffer = [0; 8192];
    let count = open.read(&mut buffer)?;
    kept.extend_from_slice(&buffer[..count.min(MAX_OUTPUT.saturating_sub(kept.len()))]);
    if count == 0 {
        *stream = None;
    }
    Ok(count > 0)
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    Deadline::after(Duration::ZERO).wait(&[fd], "a stream").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Outcome;

    fn shell(script: &str, limit: Duration) -> Result<Output> {
        output(Command::new("/bin/sh").args(["-c", script]), limit, "a script")
    }

    #[test]
    fn more_than_a_pipe_holds_is_taken() {
        let done = shell("head -c 300000 /dev/zero; echo why >&2; exit 3", Duration::from_secs(60)).unwrap();
        assert_eq!((done.status.code(), done.stdout.len(), &done.stderr[..]), (Some(3), 300_000, &b"why\n"[..]));
    }

    #[test]
    fn a_child_that_keeps_the_streams_open_is_not_waited_for() {
        let done = shell("sleep 60 & echo $!", Duration::from_secs(30)).unwrap();
        let pid: i32 = String::from_utf8_lossy(&done.stdout).trim().parse().unwrap();
        towline_sys::kill(pid, libc::SIGKILL).unwrap();
    }

    #[test]
    fn who_takes_too_long_is_killed_and_named() {
        let error = shell("exec sleep 60", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Timeout);
        assert!(error.one_line().starts_with("waiting for the end of a script"), "{error:?}");
    }
}
