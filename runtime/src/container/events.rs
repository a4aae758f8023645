//! `events`: what a container uses, and when it runs out of memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::{Container, Context};
use crate::cgroup::{CgroupManager, OomWatch, Stats, interfaces};
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::process::namespaces::Kind;
use crate::process::wait::Deadline;

/// How long a container may take to end after its statistics cannot be read any more.
const ENDING: Duration = Duration::from_secs(5);

/// One line of `events`, in runc's shape.
#[derive(Debug, Serialize)]
pub struct Event {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The container's id.
    pub id: String,
    /// For `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<Stats>>,
}

/// What container `id` uses now.
pub fn stats(context: &Context, id: &ContainerId) -> Result<Event> {
    let container = running(context, id)?;
    measure(context, &container)
}

/// Calls `sink` with the statistics every `interval` and with each OOM, until the container ends.
pub fn follow(context: &Context, id: &ContainerId, interval: Duration, mut sink: impl FnMut(&Event) -> Result<()>) -> Result<()> {
    let container = running(context, id)?;
    let Some(pidfd) = container.pidfd(context)? else { return Ok(()) };
    let mut oom = cgroup(&container)?.watch_oom()?;
    if oom.is_none() {
        context.warn(format!("container {id} is in no cgroup of the memory controller: running out of memory is not reported"));
    }
    let mut next = Instant::now() + interval;
    loop {
        let ready = wait(pidfd.as_fd(), oom.as_ref(), next)?;
        // Also at the end: the kernel may have killed init for the memory.
        if (ready.oom || ready.ended) && oom.as_mut().map_or(Ok(false), OomWatch::take)? {
            sink(&Event { kind: "oom", id: id.to_string(), data: None })?;
        }
        if ready.ended {
            return Ok(());
        }
        if Instant::now() >= next {
            match measure(context, &container) {
                Ok(event) => sink(&event)?,
                // An init that is about to end has no network and soon no cgroup any more: that is the end, not a failure.
                Err(error) => match Deadline::after(ENDING).wait(&[pidfd.as_fd()], "the end of the container") {
                    Ok(_) => {}
                    Err(_) => return Err(error),
                },
            }
            next = Instant::now() + interval;
        }
    }
}

struct Ready {
    ended: bool,
    oom: bool,
}

/// Until something happens, or `next`.
fn wait(pidfd: BorrowedFd<'_>, oom: Option<&OomWatch>, next: Instant) -> Result<Ready> {
    let tried = "waiting for the next event of the container";
    let mut polled = vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    polled.extend(oom.map(|oom| PollFd::from_borrowed_fd(oom.as_fd(), oom.flags())));
    let left = Timespec::try_from(next.saturating_duration_since(Instant::now()))
        .map_err(|cause| Error::new(Outcome::BadInput, tried).because(cause))?;
    match poll(&mut polled, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {
            let ready = |index: usize| polled.get(index).is_some_and(|polled| !polled.revents().is_empty());
            Ok(Ready { ended: ready(0), oom: ready(1) })
        }
        Err(cause) => Err(Error::sys(tried, cause)),
    }
}

fn running(context: &Context, id: &ContainerId) -> Result<Container> {
    let container = context.load(id)?;
    match container.status(context)? {
        Status::Created | Status::Running | Status::Paused => {}
        Status::Creating | Status::Stopped => {
            return Err(container.wrong_state("watching", &format!("container with id {id} is not running")));
        }
    }
    cgroup(&container)?;
    Ok(container)
}

fn cgroup(container: &Container) -> Result<&CgroupManager> {
    container.record.cgroup.as_ref().ok_or_else(|| {
        Error::new(Outcome::Unsupported, format!("watching container {}", container.dir.id()))
            .because("it has no cgroup of its own")
    })
}

fn measure(context: &Context, container: &Container) -> Result<Event> {
    let mut stats = cgroup(container)?.stats()?;
    if container.record.namespaces & Kind::NET.flag() != 0 {
        let file = format!("{}/net/dev", container.record.init_process_pid);
        let text = context.proc.read(&file).map_err(|cause| Error::io("reading", format!("/proc/{file}"), cause))?;
        stats.network_interfaces = interfaces(&text);
    }
    Ok(Event { kind: "stats", id: container.dir.id().to_string(), data: Some(Box::new(stats)) })
}
