//! The root of a container on a machine whose kernel cannot mount an image's tree: a process serves the tree by FUSE, and an overlay
//! is mounted over it.
//!
//! ```text
//! monitor: start the process --plan--> it mounts the tree --ready--> overlay over it, tree detached
//!          container ends: overlay unmounted --> nothing has the tree mounted any more --> the process ends
//! ```
//!
//! There is one such process a container, and it lives exactly as long as somebody uses the container's root, whoever else is killed:
//! not the daemon, from which it gets content through the FUSE trigger ([`towline_lazyfs::treefs::layers`]), nor the monitor. It is no thread of
//! the monitor, since a process that waits for a file system of its own cannot be killed. Where it is killed itself, programs get
//! ENOTCONN for whatever the kernel has not kept.

pub mod process;

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use towline_lazyfs::daemon::protocol::Failure;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::rootfs::plan::RootPlan;
use towline_lazyfs::rootfs::{mount, served};
use towline_lazyfs::store::create_private_dir;

use crate::monitor::protocol::send_line;

/// How long the process may take to end when nothing is mounted any more.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A process that serves the tree of a container's root.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Mounts the root of `plan` at `rootfs`; the tree is mounted at `dir` meanwhile. When it fails, nothing stays behind.
    pub fn mount(plan: &RootPlan, dir: &Path, rootfs: &Path) -> Result<Self> {
        let tried = || format!("mounting a root file system at {}", rootfs.display());
        let writable = plan.writable.as_ref().ok_or_else(|| {
            Error::new(Outcome::Unsupported, tried()).because("a root without a writable layer is served otherwise")
        })?;
        create_private_dir(dir)?;
        let server = Self::start(plan, dir).map_err(|e| e.during(tried()))?;
        let mounted = served::mount(dir, writable, rootfs).map_err(|e| e.during(tried()));
        // The overlay has its own hold on it. Without one this ends the process.
        let detached = mount::unmount(dir);
        mounted.and(detached)?;
        std::fs::remove_dir(dir).map_err(|e| Error::io("removing", dir, e))?;
        Ok(server)
    }

    fn start(plan: &RootPlan, dir: &Path) -> Result<Self> {
        let failed = |e| Error::io("starting", "the process that serves the image's tree", e);
        // This very program, even when its file was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("towline").arg("serve").arg(dir).current_dir("/");
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().map_err(failed)?;
        let mut stdin = child.stdin.take().expect("it is piped");
        // One that cannot read it says why, or ends, which is seen below.
        send_line(&mut stdin, plan).unwrap_or_default();
        drop(stdin);
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        match serde_json::from_str::<Option<Failure>>(&line) {
            Ok(None) => Ok(Self { child }),
            Ok(Some(failure)) => {
                child.wait().map_err(failed)?;
                Err(failure.into())
            }
            Err(_) => {
                let status = child.wait().map_err(failed)?;
                let error = Error::new(Outcome::Unavailable, "starting the process that serves the image's tree");
                Err(error.because(format!("it ended with {status} before it served")))
            }
        }
    }

    /// What it has to say, a line for each failure; ends with it.
    pub fn take_messages(&mut self) -> Option<BufReader<ChildStderr>> {
        self.child.stderr.take().map(BufReader::new)
    }

    /// Waits for its end, after the root was unmounted.
    pub fn finish(mut self) -> Result<()> {
        let pid = self.child.id();
        let tried = || format!("waiting for process {pid}, which served the image's tree");
        let begin = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => return Ok(()),
                Ok(None) if begin.elapsed() < END_DEADLINE => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) => {
                    return Err(Error::new(Outcome::Busy, tried())
                        .because(format!("something has used the root for another {END_DEADLINE:?}"))
                        .advise("it ends with whatever uses it"));
                }
                Err(e) => return Err(Error::io("waiting for process", pid.to_string(), e)),
            }
        }
    }
}
