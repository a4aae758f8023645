//! One call of the binary: its arguments, its log, and what its end means.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Children, Ended, LogLine, Options, Runtime};
use crate::error::{Error, Outcome, Result};

impl Runtime {
    pub(super) fn call(&self, verb: &str, id: &str) -> Result<Call> {
        let log = LogFile::new(&self.scratch, verb)?;
        let mut command = Command::new(&self.binary);
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg("--log").arg(&log.0).args(["--log-format", "json"]).arg(verb);
        Ok(Call { command, log, what: format!("{verb} of container {id}"), children: Arc::clone(&self.children) })
    }
}

/// One invocation.
pub(super) struct Call {
    pub(super) command: Command,
    log: LogFile,
    what: String,
    children: Arc<dyn Children>,
}

impl Call {
    pub(super) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(super) fn quiet(mut self) -> Self {
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self
    }

    pub(super) fn options(mut self, options: Options<'_>) -> Self {
        if let Some(path) = options.pid_file {
            self.command.arg("--pid-file").arg(path);
        }
        if let Some(path) = options.console_socket {
            self.command.arg("--console-socket").arg(path);
        }
        if options.no_pivot {
            self.command.arg("--no-pivot");
        }
        if options.no_new_keyring {
            self.command.arg("--no-new-keyring");
        }
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::inherit, Stdio::from);
        self.command.stdin(stdio(options.stdio.stdin)).stdout(stdio(options.stdio.stdout)).stderr(stdio(options.stdio.stderr));
        self
    }

    /// Runs the process, with `talk` for its standard streams.
    fn run(&mut self, talk: &mut dyn FnMut(&mut Child) -> io::Result<()>) -> Result<Ended> {
        self.children
            .run(&mut self.command, talk)
            .map_err(|cause| Error::io("running", self.command.get_program(), cause).during(self.what.clone()))
    }

    /// Feeds the process `input` and judges how it ended.
    pub(super) fn finish_with(mut self, input: &[u8]) -> Result<()> {
        self.command.stdin(Stdio::piped());
        let ended = self.run(&mut |child| child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input)))?;
        self.verdict(ended.status)?;
        ended.talked.map_err(|cause| Error::sys(format!("writing to {}", self.what), cause))
    }

    /// What the process prints.
    pub(super) fn text(mut self) -> Result<Vec<u8>> {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut text = vec![];
        let ended = self.run(&mut |child| {
            let stdout = child.stdout.take();
            stdout.map_or(Ok(()), |mut stdout| stdout.read_to_end(&mut text).map(drop))
        })?;
        self.verdict(ended.status)?;
        ended.talked.map_err(|cause| Error::sys(format!("reading from {}", self.what), cause))?;
        Ok(text)
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let ended = self.run(&mut |_| Ok(()))?;
        self.verdict(ended.status)
    }

    pub(super) fn wait(mut self) -> Result<ExitStatus> {
        let status = self.run(&mut |_| Ok(()))?.status;
        match self.log.last_error()? {
            Some(line) if !status.success() => Err(self.failure(line)),
            _ => Ok(status),
        }
    }

    fn verdict(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        if let Some(line) = self.log.last_error()? {
            return Err(self.failure(line));
        }
        let how = match status.signal() {
            Some(signal) => format!("the runtime was killed by signal {signal}"),
            None => format!("the runtime left with exit code {} and no message", status.code().unwrap_or(-1)),
        };
        Err(Error::new(Outcome::Io, self.what.clone()).because(how))
    }

    fn failure(&self, line: LogLine) -> Error {
        Error::new(line.outcome.unwrap_or(Outcome::Io), self.what.clone()).because(line.msg)
    }
}

/// A log file of its own name, removed with the value.
struct LogFile(PathBuf);

static NEXT_LOG: AtomicU64 = AtomicU64::new(0);

impl LogFile {
    fn new(scratch: &Path, verb: &str) -> Result<Self> {
        fs::create_dir_all(scratch).map_err(|cause| Error::io("creating", scratch, cause))?;
        let number = NEXT_LOG.fetch_add(1, Ordering::Relaxed);
        Ok(Self(scratch.join(format!("oci-{}-{number}-{verb}.log", std::process::id()))))
    }

    fn last_error(&self) -> Result<Option<LogLine>> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(last_error(&text)),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::io("reading", &self.0, cause)),
        }
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_file(&self.0) {
            // The runtime makes the file with its first line, so most calls leave none; a file that stays is only litter.
            debug_assert!(cause.kind() == ErrorKind::NotFound, "removing {}: {cause}", self.0.display());
        }
    }
}

/// The last line at level error.
pub(super) fn last_error(log: &str) -> Option<LogLine> {
    log.lines().rev().filter_map(|line| serde_json::from_str::<LogLine>(line).ok()).find(|line| line.level == "error")
}
