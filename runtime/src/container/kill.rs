//! `kill`: a signal to a container.

use std::os::fd::AsFd;

use super::{Container, Context};
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::process::namespaces::Kind;

/// Sends signal number `signal` to init, or with `all` to every process in the container's cgroup.
pub fn kill(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    let container = context.load(id)?;
    // Without a pid namespace of its own the rest of a container outlives its first process: KILL means all of it (as in runc 1.2).
    let all = all
        || (signal == libc::SIGKILL
            && container.record.cgroup.is_some()
            && container.record.is_alive(&context.proc)
            && !is_first_of_its_namespace(context, container.record.init_process_pid));
    if !all {
        return kill_init(context, &container, signal);
    }
    match &container.record.cgroup {
        // Frozen while it happens: nothing forks away from the signal.
        Some(cgroup) if signal == libc::SIGKILL => cgroup.kill_once(),
        Some(cgroup) => {
            cgroup.pids()?.into_iter().try_for_each(|pid| match towline_sys::kill(pid.as_raw_nonzero().get(), signal) {
                Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                sent => sent.map_err(|cause| failed(&container, signal, cause)),
            })
        }
        // The end of init is the end of everything in its pid namespace.
        None if signal == libc::SIGKILL && container.record.namespaces & Kind::PID.flag() != 0 => {
            kill_init(context, &container, signal)
        }
        None => Err(Error::new(Outcome::Unsupported, format!("sending signal {signal} to all processes of container {id}"))
            .because("it has no cgroup of its own, so they are not known")
            .advise("send it to the container's init, without --all")),
    }
}

fn kill_init(context: &Context, container: &Container, signal: i32) -> Result<()> {
    let not_running = || container.wrong_state("sending a signal to", "container not running");
    let status = container.status(context)?;
    if status == Status::Stopped {
        return Err(not_running());
    }
    let pidfd = container.pidfd(context)?.ok_or_else(not_running)?;
    towline_sys::pidfd_send_signal(pidfd.as_fd(), signal).map_err(|cause| failed(container, signal, cause))?;
    match &container.record.cgroup {
        // A process in a frozen v1 cgroup does not die before it is thawed.
        Some(cgroup) if signal == libc::SIGKILL && status == Status::Paused => cgroup.thaw(),
        _ => Ok(()),
    }
}

fn failed(container: &Container, signal: i32, cause: std::io::Error) -> Error {
    Error::sys(format!("sending signal {signal} to container {}", container.dir.id()), cause)
}

/// True if process `pid` is number 1 of its pid namespace. Of a process that is gone nobody knows, and nothing depends on it.
fn is_first_of_its_namespace(context: &Context, pid: i32) -> bool {
    let status = context.proc.read(&format!("{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_none_or(|numbers| numbers.split_whitespace().next_back() == Some("1"))
}
