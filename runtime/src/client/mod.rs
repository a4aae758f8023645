//! Drives the `towline-oci` binary from other crates.
//!
//! The runtime must clone single-threaded, so whoever has threads starts it as a process. Each call is one process: it gets a JSON
//! log of its own below the scratch directory, and a failure comes back as this crate's [`Error`], read from the log's last line
//! at level error.

mod call;
mod checkpoint;
mod children;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Outcome, Result};

pub use checkpoint::{Images, Save};
pub use children::{Children, Direct, Ended};

/// A `towline-oci` binary and the state directory it is used with.
#[derive(Clone, Debug)]
pub struct Runtime {
    binary: PathBuf,
    root: Option<PathBuf>,
    scratch: PathBuf,
    systemd_cgroup: bool,
    children: Arc<dyn Children>,
}

/// The three standard streams of a container's process. [`Stdio3::default`] inherits the caller's.
#[derive(Debug, Default)]
pub struct Stdio3 {
    /// Standard input; `None` inherits.
    pub stdin: Option<OwnedFd>,
    /// Standard output; `None` inherits.
    pub stdout: Option<OwnedFd>,
    /// Standard error; `None` inherits.
    pub stderr: Option<OwnedFd>,
}

/// What `create`, `run` and `exec` share.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// Where the runtime writes the process's pid, in decimal.
    pub pid_file: Option<&'a Path>,
    /// A listening unix socket that receives the pty master (SCM_RIGHTS) when the process has a terminal.
    pub console_socket: Option<&'a Path>,
    /// Standard streams of the process.
    pub stdio: Stdio3,
    /// `create` and `run`: move the root over instead of pivoting into it.
    pub no_pivot: bool,
    /// `create` and `run`: keep the caller's session keyring.
    pub no_new_keyring: bool,
}

/// What `towline-oci state` prints (runtime-spec, "State", with runc's additions).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The runtime-spec version this state follows.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Pid of the container's first process on the host; 0 once it is gone.
    pub pid: i32,
    /// creating, created, running, paused or stopped.
    pub status: Status,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    #[serde(default)]
    pub rootfs: PathBuf,
    /// When the container was created (RFC 3339).
    #[serde(default)]
    pub created: String,
    /// Annotations of config.json.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Name of the user who made the container.
    #[serde(default)]
    pub owner: String,
}

/// The status of a container (runtime-spec, "State"; paused is runc's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not finished.
    Creating,
    /// Waits for `start`.
    Created,
    /// The user's program runs.
    Running,
    /// Frozen in its cgroup.
    Paused,
    /// The first process is gone; waits for `delete`.
    Stopped,
}

impl Status {
    /// The status as the runtime prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// One line of the runtime's JSON log. The first three are what podman and containerd read; the rest is ours.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogLine {
    /// `error`, `warning`, `info` or `debug`.
    pub level: String,
    /// What was tried, the causes, and the advice, on one line.
    pub msg: String,
    /// RFC 3339.
    pub time: String,
    /// The kind of failure, at level error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Runtime {
    /// `binary` is a `towline-oci`; `scratch` is a directory for short-lived log files, made when it is absent.
    pub fn new(binary: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        let children = Arc::new(Direct);
        Self { binary: binary.into(), root: None, scratch: scratch.into(), systemd_cgroup: false, children }
    }

    /// Uses `root` as the state directory instead of the runtime's default.
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Lets systemd manage the cgroups of the containers.
    pub fn with_systemd_cgroup(mut self, systemd: bool) -> Self {
        self.systemd_cgroup = systemd;
        self
    }

    /// Has its processes waited for by `children`: for a caller that reaps whatever ends below it.
    pub fn with_children(mut self, children: Arc<dyn Children>) -> Self {
        self.children = children;
        self
    }

    /// Creates container `id` from `bundle`; its first process waits for [`Runtime::start`].
    pub fn create(&self, id: &str, bundle: &Path, options: Options<'_>) -> Result<()> {
        let mut call = self.call("create", id)?;
        call.command.arg("--bundle").arg(bundle);
        call.options(options).arg(id).finish()
    }

    /// Starts a created container's program.
    pub fn start(&self, id: &str) -> Result<()> {
        self.call("start", id)?.quiet().arg(id).finish()
    }

    /// Sends `signal` (a name with or without SIG, or a number) to the first process, or with `all` to every process.
    pub fn kill(&self, id: &str, signal: &str, all: bool) -> Result<()> {
        let mut call = self.call("kill", id)?.quiet();
        if all {
            call.command.arg("--all");
        }
        call.arg(id).arg(signal).finish()
    }

    /// Deletes a container; with `force` it is killed first, and an absent one is no error.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        let mut call = self.call("delete", id)?.quiet();
        if force {
            call.command.arg("--force");
        }
        call.arg(id).finish()
    }

    /// The container's state, or [`Outcome::NotFound`].
    pub fn state(&self, id: &str) -> Result<State> {
        let text = self.call("state", id)?.arg(id).text()?;
        serde_json::from_slice(&text)
            .map_err(|cause| Error::new(Outcome::BadInput, format!("reading the state of container {id}")).because(cause))
    }

    /// Pids of the container's processes.
    pub fn pids(&self, id: &str) -> Result<Vec<i32>> {
        let text = self.call("ps", id)?.arg("--format").arg("json").arg(id).text()?;
        serde_json::from_slice(&text)
            .map_err(|cause| Error::new(Outcome::BadInput, format!("reading the pids of container {id}")).because(cause))
    }

    /// Freezes the container's processes.
    pub fn pause(&self, id: &str) -> Result<()> {
        self.call("pause", id)?.quiet().arg(id).finish()
    }

    /// Lets a paused container go on.
    pub fn resume(&self, id: &str) -> Result<()> {
        self.call("resume", id)?.quiet().arg(id).finish()
    }

    /// Changes limits: `resources` is JSON as in config.json's `linux.resources`.
    pub fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        self.call("update", id)?.quiet().arg("--resources").arg("-").arg(id).finish_with(resources)
    }

    /// What a container uses: `data` of runc's `events --stats`.
    pub fn stats(&self, id: &str) -> Result<serde_json::Value> {
        let text = self.call("events", id)?.arg("--stats").arg(id).text()?;
        let bad = || Error::new(Outcome::BadInput, format!("reading the statistics of container {id}"));
        let mut event: serde_json::Value = serde_json::from_slice(&text).map_err(|cause| bad().because(cause))?;
        match event.get_mut("data") {
            Some(data) => Ok(data.take()),
            None => Err(bad().because("there are none in it")),
        }
    }

    /// What ps(1) with these options says of a container's processes.
    pub fn ps(&self, id: &str, options: &[String]) -> Result<String> {
        let call = options.iter().fold(self.call("ps", id)?.arg(id), |call, option| call.arg(option));
        Ok(String::from_utf8_lossy(&call.text()?).into_owned())
    }

    /// Creates and starts container `id` in one process and waits for its end. The status is the container's own (a signal n is
    /// exit code 128+n); an error means that the container never ran its program.
    pub fn run(&self, id: &str, bundle: &Path, options: Options<'_>) -> Result<ExitStatus> {
        let mut call = self.call("run", id)?;
        call.command.arg("--bundle").arg(bundle);
        call.options(options).arg(id).wait()
    }

    /// Runs the process described by the JSON file `process` in container `id` and waits for its end.
    pub fn exec(&self, id: &str, process: &Path, options: Options<'_>) -> Result<ExitStatus> {
        let mut call = self.call("exec", id)?;
        call.command.arg("--process").arg(process);
        call.options(options).arg(id).wait()
    }

    /// Like [`Runtime::exec`], but returns once the process runs; it is left to the nearest subreaper.
    pub fn exec_detached(&self, id: &str, process: &Path, options: Options<'_>) -> Result<()> {
        let mut call = self.call("exec", id)?;
        call.command.arg("--detach").arg("--process").arg(process);
        call.options(options).arg(id).finish()
    }
}

/// The exit code a user of a container CLI expects for a failure of the runtime: 127 and 126 as a shell has them, else 125.
pub fn exit_code(error: &Error) -> i32 {
    match error.outcome() {
        Outcome::CommandNotFound => 127,
        Outcome::CommandNotExecutable => 126,
        _ => 125,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::call::last_error;
    use super::*;

    #[test]
    fn the_last_error_line_wins() {
        let log = concat!(
            "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"t\"}\n",
            "{\"level\":\"error\",\"msg\":\"second\",\"time\":\"t\",\"outcome\":\"command-not-found\"}\n",
            "{\"level\":\"warning\",\"msg\":\"third\",\"time\":\"t\"}\nnot json\n",
        );
        let line = last_error(log).unwrap();
        assert_eq!(line.msg, "second");
        assert_eq!(line.outcome, Some(Outcome::CommandNotFound));
        assert!(last_error("{\"level\":\"info\",\"msg\":\"x\",\"time\":\"t\"}").is_none());
    }

    #[test]
    fn a_binary_that_fails_without_a_message_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let error = Runtime::new("/bin/false", scratch.path()).start("c1").unwrap_err();
        assert!(error.one_line().contains("start of container c1"), "{error:?}");
        let error = Runtime::new("/does/not/exist", scratch.path()).start("c1").unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotFound);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
