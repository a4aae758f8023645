//! The verbs of the runtime, each in its own file.
//!
//! ```text
//!            create                start               the program ends
//! (nothing) --------> created ---------------> running ----------------> stopped
//!    ^     failed: all is undone   | kill        | pause/resume: paused      |
//!    |                             v             |                           |
//!    +---------------------- delete <------------+-- delete --force ---------+
//! ```
//! The status is never stored: it follows from the state directory (is there a record, a start socket), from init (is it alive,
//! by pid and start time) and from its cgroup (is it frozen).

pub mod build;
pub mod checkpoint;
mod console;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod foreground;
pub mod kill;
pub mod list;
pub mod listener;
pub mod pause;
mod prepare;
pub mod restore;
pub mod run;
mod socket;
pub mod spec;
pub mod start;
pub mod terminal;
pub mod update;

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::systemd::Systemd;
use crate::client::{State, Status};
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::procfs::{ProcFs, start_time};
use crate::seccomp::Cache;
use crate::state::{ContainerDir, Record, StateRoot};

/// What every verb works with.
#[derive(Debug)]
pub struct Context {
    /// The state directory.
    pub root: StateRoot,
    /// The verified /proc.
    pub proc: ProcFs,
    /// False: containers get no cgroup (`--cgroup-manager disabled`).
    pub cgroups: bool,
    /// The systemd that makes the cgroups of new containers (`--systemd-cgroup`); without it the runtime does.
    pub systemd: Option<Systemd>,
    /// True: what needs real root may be missing.
    pub rootless: bool,
    /// Compiled seccomp filters; `None`: every profile is compiled anew.
    pub filters: Option<Cache>,
    exe: RefCell<Option<OwnedFd>>,
    warnings: RefCell<Vec<String>>,
    trace: Option<Trace>,
}

/// Who gets to know each step (`--debug`).
struct Trace(Box<dyn Fn(&str)>);

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trace")
    }
}

impl Context {
    /// Opens the state directory `root` and /proc.
    pub fn open(root: &Path, cgroups: bool, rootless: bool) -> Result<Self> {
        Ok(Self {
            root: StateRoot::open(root)?,
            proc: ProcFs::open()?,
            cgroups,
            systemd: None,
            rootless,
            filters: None,
            exe: RefCell::default(),
            warnings: RefCell::default(),
            trace: None,
        })
    }

    /// Takes what [`crate::exe::protect`] left open.
    pub fn hold_exe(&self, exe: Option<OwnedFd>) {
        self.exe.replace(exe);
    }

    /// Lets go of that. The last of the processes that have it waits for the kernel: to be called by the one with time to spare.
    fn release_exe(&self) {
        drop(self.exe.take());
    }

    /// From now on `trace` gets every step when it is done.
    pub fn trace(&mut self, trace: impl Fn(&str) + 'static) {
        self.trace = Some(Trace(Box::new(trace)));
    }

    fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Tells that a step is done.
    fn step(&self, text: &str) {
        if let Some(trace) = &self.trace {
            (trace.0)(text);
        }
    }

    /// Keeps something the user should know for [`Context::take_warnings`].
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.borrow_mut().push(text.into());
    }

    /// The warnings so far.
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// A container that create has finished with.
    pub fn load(&self, id: &ContainerId) -> Result<Container> {
        let dir = self.root.find(id)?;
        let record = dir.load()?.ok_or_else(|| {
            Error::new(Outcome::WrongState, format!("finding container {id}"))
                .because("it is still being created, or creating it was interrupted")
                .advise("`delete --force` clears it away")
        })?;
        Ok(Container { dir, record })
    }

    /// The state of a container.
    pub fn state(&self, id: &ContainerId) -> Result<State> {
        let container = self.load(id)?;
        let status = container.status(self)?;
        Ok(container.record.to_state(status))
    }
}

/// A known container.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub dir: ContainerDir,
    /// What is recorded.
    pub record: Record,
}

impl Container {
    /// Its status now.
    pub fn status(&self, context: &Context) -> Result<Status> {
        if self.record.init_process_pid == 0 {
            return Ok(Status::Creating);
        }
        if !self.record.is_alive(&context.proc) {
            return Ok(Status::Stopped);
        }
        let frozen = self.record.cgroup.as_ref().map_or(Ok(false), |cgroup| cgroup.is_frozen())?;
        if frozen {
            return Ok(Status::Paused);
        }
        Ok(if self.dir.waits_for_start()? { Status::Created } else { Status::Running })
    }

    /// A pidfd of init; `None` when init is gone.
    pub fn pidfd(&self, context: &Context) -> Result<Option<OwnedFd>> {
        pidfd_of(context, self.record.init_process_pid, self.record.init_process_start)
    }

    fn wrong_state(&self, tried: &str, why: &str) -> Error {
        Error::new(Outcome::WrongState, format!("{tried} container {}", self.dir.id())).because(why.to_owned())
    }
}

/// A pidfd of the process `pid` that began at `start`; `None` when it is gone.
fn pidfd_of(context: &Context, pid: i32, start: u64) -> Result<Option<OwnedFd>> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(cause) => return Err(Error::sys(format!("opening a pidfd of init {pid}"), cause)),
    };
    // Asked after the pidfd is there: if the start time still fits, the pidfd is of init and not of a later process.
    Ok((start_time(&context.proc, pid) == Some(start)).then_some(pidfd))
}

/// The state a hook gets, with the pid the host knows init by.
fn hook_state(record: &Record, status: Status, pid: i32) -> Result<String> {
    let state = State { pid, ..record.to_state(status) };
    serde_json::to_string(&state).map_err(|cause| Error::new(Outcome::Io, "writing the state for hooks").because(cause))
}

/// Writes `pid` to `path`, whole or not at all: callers watch for the file to appear. It has no name before it is complete, so
/// that a killed runtime leaves none behind.
fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let failed = |cause: Errno| Error::io("writing pid file", path, cause);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(parent, flags, mode) {
        Ok(file) => file,
        // The file system has no unnamed files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => return write_pid_file_beside(path, pid),
        Err(cause) => return Err(failed(cause)),
    };
    rustix::io::write(&file, pid.to_string().as_bytes()).map_err(failed)?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    loop {
        match linkat(CWD, &name, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(()),
            // The caller's from an earlier container.
            Err(Errno::EXIST) => match rustix::fs::unlink(path) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(cause) => return Err(failed(cause)),
            },
            Err(cause) => return Err(failed(cause)),
        }
    }
}

/// The same through a file beside it.
fn write_pid_file_beside(path: &Path, pid: i32) -> Result<()> {
    let failed = |cause: std::io::Error| Error::io("writing pid file", path, cause);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or_else(|| failed(std::io::ErrorKind::IsADirectory.into()))?);
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary).map_err(failed)?;
    file.write_all(pid.to_string().as_bytes()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}
