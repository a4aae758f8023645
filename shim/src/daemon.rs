//! The shim itself: what the process that `start` leaves behind does.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::Shutdown;
use towline_runtime::{Error, Result};

use crate::events::Events;
use crate::launch::Launch;
use crate::log;
use crate::oom::Watcher;
use crate::options::Search;
use crate::reaper::Reaper;
use crate::rpc::server::{self, Service};
use crate::task::{Environment, Tasks};

/// How long the last events may take; containerd waits for none of them.
const FLUSH: Duration = Duration::from_secs(10);

/// Leaves the caller's session, streams and signals, and becomes the one to whom orphans come. The process has one thread.
///
/// # Errors
/// One of these could not be done.
pub fn detach(bundle: &Path) -> Result<()> {
    let failed = |what: &str, cause: io::Error| Error::sys(format!("detaching the shim: {what}"), cause);
    rustix::process::setsid().map_err(|cause| failed("a session of its own", cause.into()))?;
    let null =
        open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|cause| failed("/dev/null", cause.into()))?;
    rustix::stdio::dup2_stdin(&null).map_err(|cause| failed("standard input", cause.into()))?;
    rustix::stdio::dup2_stdout(&null).map_err(|cause| failed("standard output", cause.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|cause| failed("standard error", cause.into()))?;
    if let Some(fifo) = open_log(&bundle.join("log"))? {
        log::write_to(fifo);
    }
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).map_err(|cause| failed("taking orphans", cause.into()))?;
    // Whoever stops containerd's service must not end containers.
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(|cause| failed("blocking signals", cause.into()))
}

/// containerd's FIFO for messages, if it made one; open for both ways, so that nobody is waited for, and it outlives a containerd.
fn open_log(path: &Path) -> Result<Option<OwnedFd>> {
    match open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(cause) => Err(Error::io("opening", path, cause)),
    }
}

/// Serves until containerd wants the shim to go.
///
/// # Errors
/// It cannot start, or not go on.
pub fn serve(listener: UnixListener, socket: PathBuf, launch: &Launch, search: Search) -> Result<()> {
    let failed = |what: &str, cause: io::Error| Error::sys(format!("running the shim: {what}"), cause);
    let reaper = Reaper::start().map_err(|cause| failed("the reaper", cause))?;
    let events = Events::start(&launch.namespace, launch.events.clone()).map_err(|cause| failed("events", cause))?;
    let told = Arc::clone(&events);
    let oom = Watcher::start(move |id| {
        let mut event = TaskOOM::new();
        id.clone_into(&mut event.container_id);
        told.publish(TASK_OOM_EVENT_TOPIC, &event);
    })?;
    let environment = Environment {
        namespace: launch.namespace.clone(),
        sockets: launch.sockets.clone(),
        search,
        events: Arc::clone(&events),
        oom,
        reaper,
    };
    let listener = Arc::new(listener);
    let tasks = Tasks::new(environment, stop(Arc::clone(&listener), socket));
    let service: Arc<dyn Service> = Arc::new(tasks);
    server::serve(&listener, &service).map_err(|cause| failed("taking connections", cause))?;
    if !events.flush(FLUSH) {
        log::error(format_args!("the last events did not reach containerd"));
    }
    Ok(())
}

/// Takes the socket away, so that no further container of the pod comes, and lets `serve` return.
fn stop(listener: Arc<UnixListener>, socket: PathBuf) -> impl Fn() + Send + Sync {
    move || {
        if let Err(error) = fs::remove_file(&socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn(format_args!("removing {}: {error}", socket.display()));
        }
        if let Err(error) = rustix::net::shutdown(listener.as_fd(), Shutdown::Both) {
            log::error(format_args!("closing {}: {error}", socket.display()));
        }
    }
}
