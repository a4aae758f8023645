//! Making the process: one clone3, or two with a process in between where a user namespace is involved in joining, or the runtime
//! could not come back from a pid namespace.
//!
//! ```text
//! usual        runtime --clone3(new namespaces)--> process, which joins the others itself
//!              (to join a pid namespace the runtime enters it for the moment of the clone)
//! intermediate runtime --clone3()--> in-between: joins everything, then clone3(new namespaces | CLONE_PARENT) --> process
//!              the in-between reports the pid and ends; the process is the runtime's own child
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use towline_sys::{Forked, exit_now, fork};

use super::message::{Channel, Message};
use super::namespaces::{Kind, Namespaces, OwnPid};
use super::wait::{Deadline, STEP};
use crate::error::{Error, Outcome, Result};

/// A process that was just made. Dropped before [`Spawned::keep`] it is killed and reaped, so that a failure leaves nothing.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid on the host.
    pub pid: i32,
    /// The runtime's end of the conversation.
    pub channel: Channel,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    kept: bool,
}

impl Spawned {
    fn new(pid: i32, pidfd: OwnedFd, channel: Channel) -> Self {
        Self { pid, channel, pidfd, kept: false }
    }

    /// From now on the process outlives this value.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if !self.kept {
            // Both fail only when the process is gone and reaped already, which is what is wanted.
            pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
            reap(self.pidfd.as_fd()).ok();
        }
    }
}

/// Makes a process in `namespaces`, and on v2 directly in `cgroup`. `child` runs in it, with its end of the conversation, and
/// never returns.
pub fn spawn(
    namespaces: &Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(Channel) -> Result<()>,
) -> Result<Spawned> {
    let (ours, theirs) = Channel::pair()?;
    let own_pid = if namespaces.joins(Kind::PID) { Some(OwnPid::open()?) } else { None };
    // Root of a user namespace may enter what it has made, but not come back: asked before it is too late.
    let one_way = own_pid.as_ref().is_some_and(|own| own.restore().is_err());
    if namespaces.needs_intermediate() || one_way {
        return spawn_through_intermediate(namespaces, cgroup, child, ours, theirs);
    }
    namespaces.enter_pid()?;
    let forked = clone(namespaces.clone_flags(), cgroup);
    if let Ok(Forked::Child) = forked {
        drop(ours);
        run_child(theirs, |channel| namespaces.enter_others().map(|()| channel), child);
    }
    if let Some(own) = own_pid {
        own.restore()?;
    }
    match forked? {
        Forked::Parent { pid, pidfd } => Ok(Spawned::new(pid, pidfd, ours)),
        Forked::Child => unreachable!("the child does not come back from run_child"),
    }
}

fn spawn_through_intermediate(
    namespaces: &Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(Channel) -> Result<()>,
    ours: Channel,
    theirs: Channel,
) -> Result<Spawned> {
    // Not over the process's own channel: it may speak before its pid is told.
    let (pid_ours, pid_theirs) = Channel::pair()?;
    let between = match clone(0, None)? {
        Forked::Child => {
            drop((ours, pid_ours));
            run_child(theirs, |channel| join_and_clone(namespaces, cgroup, channel, pid_theirs), child);
        }
        Forked::Parent { pid, pidfd } => Spawned::new(pid, pidfd, ours.duplicate()?),
    };
    drop((theirs, pid_theirs));
    let what = "the pid of the container's process";
    let pid = match pid_ours.receive(what)? {
        Some((Message::Pid(pid), _)) => pid,
        Some((other, _)) => return Err(Error::new(Outcome::Io, format!("waiting for {what}")).because(format!("got {other:?}"))),
        // Why it has failed is on the channel that both have.
        None => match ours.receive(what)? {
            Some((Message::Failed(outcome, text), _)) => return Err(Error::new(outcome, "joining namespaces").because(text)),
            other => return Err(Error::new(Outcome::Io, format!("waiting for {what}")).because(format!("got {other:?}"))),
        },
    };
    // The process is our child (CLONE_PARENT) and not reaped by anybody else, so the pid cannot have been given away.
    let pid_type = rustix::process::Pid::from_raw(pid).expect("decode lets only positive pids through");
    let pidfd = pidfd_open(pid_type, PidfdFlags::empty()).map_err(|cause| Error::sys("opening the container's pidfd", cause))?;
    let spawned = Spawned::new(pid, pidfd, ours);
    Deadline::after(STEP).wait(&[between.pidfd.as_fd()], "the end of the process that joined the namespaces")?;
    drop(between);
    Ok(spawned)
}

/// In the process in between: joins, clones its sibling, reports it and ends. Returns only in the sibling.
fn join_and_clone(
    namespaces: &Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    channel: Channel,
    for_pid: Channel,
) -> Result<Channel> {
    namespaces.enter_others()?;
    namespaces.enter_pid()?;
    match clone(namespaces.clone_flags() | libc::CLONE_PARENT as u64, cgroup)? {
        Forked::Child => Ok(channel),
        Forked::Parent { pid, .. } => {
            for_pid.send(&Message::Pid(pid), None)?;
            exit_now(0)
        }
    }
}

/// The whole life of a child: reports a failure, and never returns.
fn run_child(theirs: Channel, enter: impl FnOnce(Channel) -> Result<Channel>, child: impl FnOnce(Channel) -> Result<()>) -> ! {
    let report = theirs.duplicate();
    let result = enter(theirs).and_then(child);
    if let (Err(error), Ok(report)) = (result, report) {
        // If the runtime is gone there is nobody left to tell.
        drop(report.send(&Message::Failed(error.outcome(), error.one_line()), None));
    }
    exit_now(1)
}

fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    fork(flags, cgroup).map_err(|cause| Error::sys("cloning the container's process", cause))
}

/// How long a process that ends, or was killed, may take to be gone. The kernel tears its namespaces down first.
const DEATH: Duration = Duration::from_secs(30);

/// Reaps a child that ends or was killed; the status if it was still there to be reaped.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let what = "the end of the container's process";
    let look = || {
        rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG))
            .map_err(|cause| Error::sys(format!("waiting for {what}"), cause))
    };
    let mut status = look()?;
    let deadline = Deadline::after(DEATH);
    while status.is_none() && deadline.left() > Duration::ZERO {
        deadline.wait(&[pidfd], what)?;
        status = look()?;
        if status.is_none() {
            // It is traced (strace, a debugger), and the tracer has not looked yet.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    }))
}
