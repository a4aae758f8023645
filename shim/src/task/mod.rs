//! The tasks of a pod: containers and their processes, and what containerd asks of them.
//!
//! | module | owns |
//! |---|---|
//! | [`service`] | the Task API, versions 2 and 3: which request is what |
//! | [`container`] | a container with its processes under one lock, and how their ends are told |
//! | [`process`] | the states of a process |
//! | `create`, `start`, `exec`, `delete` | what makes and ends processes |
//! | `sandbox` | the Sandbox API |
//! | `control`, `query` | everything else that changes them or tells of them |
//!
//! # Locks
//!
//! The table of containers, and in each container its state; the table first, if both. Under neither is a child process, a stream or a socket
//! waited for: who works on a process says so in its phase, and gives the lock back. Events are published under the lock of the
//! container, which only puts them into a queue, and so they are in the order of what they tell.

pub mod container;
mod control;
mod create;
mod delete;
mod exec;
pub mod process;
mod query;
mod sandbox;
pub mod service;
mod start;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::events::Events;
use crate::oom::Watcher;
use crate::options::Search;
use crate::reaper::Reaper;
use crate::rpc::Failure;
use crate::rpc::status::Answer;
use container::Container;

pub(crate) use create::PID_FILE as INIT_PID_FILE;

/// The annotations in a bundle's config.json.
///
/// # Errors
/// It cannot be read.
pub fn bundle_annotations(bundle: &Path) -> towline_runtime::Result<BTreeMap<String, String>> {
    create::Config::read(bundle).map(|config| config.annotations)
}

/// What a shim is made of.
#[derive(Debug)]
pub struct Environment {
    /// containerd's namespace.
    pub namespace: String,
    /// Where the shim's socket is, and those of consoles go.
    pub sockets: PathBuf,
    /// Where the runtime is looked for.
    pub search: Search,
    /// Events go there.
    pub events: Arc<Events>,
    /// Who is told of containers that run out of memory.
    pub oom: Watcher,
    /// Ends come from there.
    pub reaper: Arc<Reaper>,
}

/// The tasks of a pod.
pub struct Tasks {
    environment: Environment,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    next: AtomicU64,
    stop: Box<dyn Fn() + Send + Sync>,
}

impl Tasks {
    /// No tasks yet. `stop` is called when containerd wants the shim to go; it returns at once.
    pub fn new(environment: Environment, stop: impl Fn() + Send + Sync + 'static) -> Self {
        Self { environment, containers: Mutex::default(), next: AtomicU64::new(0), stop: Box::new(stop) }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Answer<Arc<Container>> {
        self.containers().get(id).cloned().ok_or_else(|| Failure::not_found(format!("there is no container {id} in this shim")))
    }

    /// A number for a file or socket, of this shim alone.
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Where a console socket may be: paths of sockets are short, so not in the bundle.
    fn console(&self) -> PathBuf {
        self.environment.sockets.join(format!("towline-{}-{}", std::process::id(), self.number()))
    }
}
