//! `kill`: a signal to a container.

use std::os::fd::AsFd;

use super::Context;
use crate::client::Status;
use crate::error::{Error, Result};
use crate::id::ContainerId;

/// Sends signal number `signal` to init, or with `all` to every process in the container's cgroup.
pub fn kill(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    let container = context.load(id)?;
    let failed = |cause: std::io::Error| Error::sys(format!("sending signal {signal} to container {id}"), cause);
    if all && let Some(cgroup) = &container.record.cgroup {
        for pid in cgroup.pids()? {
            match towline_sys::kill(pid.as_raw_nonzero().get(), signal) {
                Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => {}
                sent => sent.map_err(failed)?,
            }
        }
        return Ok(());
    }
    let not_running = || container.wrong_state("sending a signal to", "container not running");
    if container.status(context)? == Status::Stopped {
        return Err(not_running());
    }
    let pidfd = container.pidfd(context)?.ok_or_else(not_running)?;
    towline_sys::pidfd_send_signal(pidfd.as_fd(), signal).map_err(failed)
}
