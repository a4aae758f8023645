//! A process of a container, as its container's lock keeps it.
//!
//! ```text
//! Added -> Starting -> Running -> Stopped        an exec
//! Creating -> Created -> Starting -> Running <-> Paused -> Stopped        the first process
//! ```
//!
//! A process may end in any of these but the first of each row. An end that is noticed while the runtime starts it is kept
//! (`early`) until the start has been told of, so that events are in order.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use containerd_shim_protos::types::task::Status;

use crate::reaper::Exit;
use crate::stdio::{Spec, Streams};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An exec that was described.
    Added,
    /// The runtime makes the container.
    Creating,
    /// It waits for its start.
    Created,
    /// The runtime starts it.
    Starting,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Stopped,
}

impl Phase {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "not started",
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }

    /// As containerd is told.
    pub fn status(self) -> Status {
        match self {
            Self::Added | Self::Creating | Self::Created | Self::Starting => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Paused => Status::PAUSED,
            Self::Stopped => Status::STOPPED,
        }
    }

    /// Whether there is, or is about to be, a process.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused)
    }
}

/// What containerd named for the streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// Who wants to know of the end.
pub type Waiter = Box<dyn FnOnce(Exit) + Send>;

/// A process.
pub struct Process {
    /// What containerd named for its streams.
    pub names: Names,
    /// The same, checked.
    pub spec: Spec,
    /// Where it is in its life.
    pub phase: Phase,
    /// 0 as long as there is none.
    pub pid: i32,
    /// To signal it, whatever became of the pid.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// Its end.
    pub exit: Option<Exit>,
    /// Its end, of which nobody was told yet.
    pub early: Option<Exit>,
    /// Who is to be told.
    pub waiters: Vec<Waiter>,
    /// Its streams, once it is made.
    pub streams: Option<Arc<Streams>>,
    /// Whether somebody deletes it.
    pub deleting: bool,
    /// An exec's description: the JSON of the runtime-spec's `process`.
    pub description: Vec<u8>,
}

impl Process {
    /// A process that does not exist yet.
    pub fn new(names: Names, spec: Spec, phase: Phase) -> Self {
        Self {
            names,
            spec,
            phase,
            pid: 0,
            pidfd: None,
            exit: None,
            early: None,
            waiters: vec![],
            streams: None,
            deleting: false,
            description: vec![],
        }
    }
}
