//! A container with its processes under one lock, and how their ends are told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics::TASK_EXIT_EVENT_TOPIC;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use towline_runtime::client::Runtime;

use super::process::{Phase, Process, Waiter};
use crate::events::{Events, timestamp};
use crate::metrics::Cgroups;
use crate::reaper::{Exit, Reaper, Window};
use crate::rpc::Failure;
use crate::rpc::status::Answer;
use crate::stdio::{READ, Streams};
use crate::{STACK, log, rootfs};

/// How long the first process's end is held back for those of the others, which have been killed by then.
const OTHERS: Duration = Duration::from_secs(10);

/// How long the end of a further process is held back for whoever reads its output, which a process that it left behind may keep open.
const EXEC_READ: Duration = Duration::from_secs(2);

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The runtime with its options.
    pub runtime: Runtime,
    /// Whether it has a pid namespace of its own: then the kernel kills its processes when the first one ends.
    pub private_pids: bool,
    /// Its root file system, if it was mounted here.
    pub rootfs: Option<PathBuf>,
    /// Options for its streams and its runtime.
    pub options: containerd_shim_protos::shim::oci::Options,
    /// The checkpoint that it starts from; empty is none.
    pub checkpoint: String,
    /// When it was asked for.
    pub created: SystemTime,
    events: Arc<Events>,
    state: Mutex<State>,
    changed: Condvar,
}

/// What changes.
pub struct State {
    /// The first process.
    pub init: Process,
    /// The others, by their exec id.
    pub execs: BTreeMap<String, Process>,
    /// The cgroups of the first process, from when it was made.
    pub cgroups: Option<Cgroups>,
    /// Whether the root file system is being unmounted.
    pub unmounting: bool,
}

impl State {
    /// A process by its exec id; the first one has none.
    pub fn process(&mut self, container: &str, exec: &str) -> Answer<&mut Process> {
        match exec {
            "" => Ok(&mut self.init),
            _ => {
                let missing = || Failure::not_found(format!("there is no process {exec} in container {container}"));
                self.execs.get_mut(exec).ok_or_else(missing)
            }
        }
    }
}

/// What a container is made of.
pub(super) struct Parts {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) runtime: Runtime,
    pub(super) private_pids: bool,
    pub(super) rootfs: Option<PathBuf>,
    pub(super) options: containerd_shim_protos::shim::oci::Options,
    pub(super) checkpoint: String,
    pub(super) init: Process,
    pub(super) events: Arc<Events>,
}

impl Container {
    /// A container whose first process is being created.
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            id: parts.id,
            bundle: parts.bundle,
            runtime: parts.runtime,
            private_pids: parts.private_pids,
            rootfs: parts.rootfs,
            options: parts.options,
            checkpoint: parts.checkpoint,
            created: SystemTime::now(),
            events: parts.events,
            state: Mutex::new(State { init: parts.init, execs: BTreeMap::new(), cgroups: None, unmounting: false }),
            changed: Condvar::new(),
        }
    }

    /// The lock; see the module's head.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where events go.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// A file of the bundle.
    pub fn file(&self, name: &str) -> PathBuf {
        self.bundle.join(name)
    }

    /// Has the end of a process told when it comes, which may be now. `window` was open when it was made.
    pub fn watch(self: &Arc<Self>, reaper: &Reaper, window: &Window<'_>, exec: &str, pid: i32) {
        let (container, exec) = (Arc::clone(self), exec.to_owned());
        reaper.watch(window, pid, move |exit| container.ended(&exec, exit));
    }

    fn ended(self: &Arc<Self>, exec: &str, exit: Exit) {
        let mut state = self.state();
        let waiters = match exec {
            "" => {
                state.init.early = Some(exit);
                let others = state.execs.values().any(|process| process.phase.is_alive());
                let streams = state.init.streams.clone();
                if let Some(streams) = &streams
                    && let Err(error) = streams.exited()
                {
                    log::error(format_args!("container {}: {}", self.id, error.one_line()));
                }
                if others || !self.private_pids || streams.is_some_and(|streams| streams.is_heard()) {
                    drop(state);
                    return self.end_others();
                }
                self.tell_init(&mut state)
            }
            _ => {
                let streams = state.execs.get(exec).and_then(|process| process.streams.clone());
                if let Some(streams) = streams.filter(|streams| streams.is_heard()) {
                    drop(state);
                    return self.end_read(exec, exit, streams);
                }
                self.tell_exec(&mut state, exec, exit)
            }
        };
        drop(state);
        self.changed.notify_all();
        answer(waiters, exit);
        if exec.is_empty() {
            self.unmount_early();
        }
    }

    fn tell_exec(&self, state: &mut State, exec: &str, exit: Exit) -> Vec<Waiter> {
        state.execs.get_mut(exec).map(|process| self.tell(exec, process, exit)).unwrap_or_default()
    }

    /// Tells of the end of a further process once its output is read: clients close their ends of the FIFOs when they hear of it.
    fn end_read(self: &Arc<Self>, exec: &str, exit: Exit, streams: Arc<Streams>) {
        let (own, name) = (Arc::clone(self), exec.to_owned());
        let work = move || {
            // What is not read by then waits for its delete.
            streams.wait_read(EXEC_READ);
            let waiters = own.tell_exec(&mut own.state(), &name, exit);
            own.changed.notify_all();
            answer(waiters, exit);
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(work) {
            log::error(format_args!("container {}: telling of the end of process {exec}: {error}", self.id));
        }
    }

    /// Takes the root file system away while containerd is still on its way to the deletion: that may wait for the disk. Nobody but the
    /// container's processes sees this mount.
    pub(super) fn unmount_early(self: &Arc<Self>) {
        let Some(target) = self.rootfs.clone() else { return };
        {
            let mut state = self.state();
            if state.init.phase != Phase::Stopped || state.unmounting {
                return;
            }
            state.unmounting = true;
        }
        let own = Arc::clone(self);
        let work = move || {
            // What fails here is tried again, and told, when the container is deleted.
            if let Err(error) = rootfs::unmount_all(&target) {
                log::warn(format_args!("container {}: {}", own.id, error.one_line()));
            }
            own.state().unmounting = false;
            own.changed.notify_all();
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(work) {
            log::warn(format_args!("container {}: there is no thread for unmounting: {error}", self.id));
            self.state().unmounting = false;
        }
    }

    /// Tells of the end of the first process, once its start has been told of.
    pub fn tell_init(&self, state: &mut State) -> Vec<Waiter> {
        match (state.init.phase, state.init.early) {
            (Phase::Starting | Phase::Creating | Phase::Stopped, _) | (_, None) => vec![],
            (_, Some(exit)) => self.tell("", &mut state.init, exit),
        }
    }

    fn tell(&self, exec: &str, process: &mut Process, exit: Exit) -> Vec<Waiter> {
        process.phase = Phase::Stopped;
        process.exit = Some(exit);
        process.pidfd = None;
        if let Some(streams) = &process.streams
            && let Err(error) = streams.exited()
        {
            log::error(format_args!("container {}: {}", self.id, error.one_line()));
        }
        let mut event = TaskExit::new();
        event.container_id.clone_from(&self.id);
        event.id = if exec.is_empty() { self.id.clone() } else { exec.to_owned() };
        event.pid = process.pid.unsigned_abs();
        event.exit_status = exit.code;
        event.exited_at = MessageField::some(timestamp(exit.at));
        self.events.publish(TASK_EXIT_EVENT_TOPIC, &event);
        std::mem::take(&mut process.waiters)
    }

    /// The first process has ended, and others may live: without a pid namespace of their own the kernel leaves them. Ends them, and tells
    /// of their ends first; and lets whoever reads the output read it.
    pub fn end_others(self: &Arc<Self>) {
        let own = Arc::clone(self);
        let work = move || {
            if !own.private_pids
                && let Err(error) = own.runtime.kill(&own.id, "KILL", true)
            {
                // With nobody left to kill this fails, too.
                log::warn(format_args!("killing what is left: {}", error.one_line()));
            }
            own.wait_for_others();
            let streams = own.state().init.streams.clone();
            if streams.is_some_and(|streams| !streams.wait_read(READ)) {
                log::warn(format_args!("container {} has ended, and its output is not read", own.id));
            }
            let mut state = own.state();
            let exit = state.init.early;
            let waiters = own.tell_init(&mut state);
            drop(state);
            own.changed.notify_all();
            if let Some(exit) = exit {
                answer(waiters, exit);
            }
            own.unmount_early();
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(work) {
            log::error(format_args!("container {}: telling of its end: {error}", self.id));
        }
    }

    fn wait_for_others(&self) {
        let alive = |state: &mut State| state.execs.values().any(|process| process.phase.is_alive());
        if !self.wait_while(OTHERS, alive) {
            log::warn(format_args!("container {} has ended, and processes of it have not", self.id));
        }
    }

    /// Waits as long as something is so. Whether it ceased to be in time.
    pub fn wait_while(&self, limit: Duration, mut so: impl FnMut(&mut State) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.state();
        while so(&mut state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A change that somebody may wait for.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// The pid that the runtime wrote to `file`.
    pub fn read_pid(&self, file: &Path) -> Answer<i32> {
        let failed = |why: String| Failure::new(crate::rpc::Code::INTERNAL, format!("reading {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
        pid.ok_or_else(|| failed(format!("{text:.20?} is no pid")))
    }
}

/// A process's descriptor; `None` if it has been reaped already.
pub fn pidfd(pid: i32) -> Answer<Option<Arc<std::os::fd::OwnedFd>>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(Arc::new(fd))),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(cause) => Err(towline_runtime::Error::sys(format!("opening process {}", pid.as_raw_nonzero()), cause).into()),
    }
}

/// Tells everybody who waited.
pub fn answer(waiters: Vec<Waiter>, exit: Exit) {
    waiters.into_iter().for_each(|waiter| waiter(exit));
}
