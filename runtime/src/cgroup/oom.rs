//! Being told when the container runs out of memory.
//!
//! v1: an eventfd, registered in `cgroup.event_control`; the kernel signals it for each OOM, and once more when the cgroup is
//! removed. v2: `memory.events` becomes ready for POLLPRI when it changes, and counts the processes killed.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::host::Version;
use super::process::vanished;
use super::{CgroupManager, file};
use crate::error::{Error, Result};

/// A descriptor to poll for [`OomWatch::flags`]; [`OomWatch::take`] says whether it was an OOM.
#[derive(Debug)]
pub struct OomWatch(Kind);

#[derive(Debug)]
enum Kind {
    V1 { eventfd: OwnedFd, dir: PathBuf },
    V2 { events: File, path: PathBuf, killed: u64 },
}

impl CgroupManager {
    /// From now on. `None`: the container is in no cgroup of the memory controller.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let place = self.places.iter().find(|place| place.has("memory"));
        place.map(|place| OomWatch::new(place.version, &place.dir)).transpose()
    }
}

impl OomWatch {
    /// Watches, from now on, the cgroup `dir` of a hierarchy that has the memory controller.
    pub fn new(version: Version, dir: &Path) -> Result<Self> {
        match version {
            Version::V1 => {
                let control = dir.join("memory.oom_control");
                let control = File::open(&control).map_err(|cause| Error::io("opening", &control, cause))?;
                let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                    .map_err(|cause| Error::sys("making an eventfd", cause))?;
                let line = format!("{} {}", eventfd.as_raw_fd(), control.as_raw_fd());
                file::write(dir, "cgroup.event_control", &line)?;
                Ok(Self(Kind::V1 { eventfd, dir: dir.to_owned() }))
            }
            Version::V2 => {
                let path = dir.join("memory.events");
                let events = File::open(&path).map_err(|cause| Error::io("opening", &path, cause))?;
                let mut watch = Self(Kind::V2 { events, path, killed: 0 });
                watch.take()?;
                Ok(watch)
            }
        }
    }

    /// What to poll for.
    pub fn flags(&self) -> PollFlags {
        match self.0 {
            Kind::V1 { .. } => PollFlags::IN,
            Kind::V2 { .. } => PollFlags::PRI,
        }
    }

    /// Whether there was an OOM since the last call. False also when the cgroup is gone.
    pub fn take(&mut self) -> Result<bool> {
        match &mut self.0 {
            Kind::V1 { eventfd, dir } => {
                let mut count = [0u8; 8];
                match rustix::io::read(&*eventfd, &mut count) {
                    // Removing the cgroup signals, too.
                    Ok(_) => Ok(dir.join("cgroup.event_control").exists()),
                    Err(rustix::io::Errno::AGAIN) => Ok(false),
                    Err(cause) => Err(Error::io("reading the OOM eventfd of", dir, cause)),
                }
            }
            Kind::V2 { events, path, killed } => {
                let mut text = [0u8; 4096];
                let length = match events.read_at(&mut text, 0) {
                    Ok(length) => length,
                    Err(cause) if vanished(&cause) => return Ok(false),
                    Err(cause) => return Err(Error::io("reading", &*path, cause)),
                };
                let text = String::from_utf8_lossy(&text[..length]);
                let now = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0);
                let more = now > *killed;
                *killed = now;
                Ok(more)
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::V1 { eventfd, .. } => eventfd.as_fd(),
            Kind::V2 { events, .. } => events.as_fd(),
        }
    }
}
