//! How a new process comes into the container's cgroups without waiting.
//!
//! Moving another process (`cgroup.procs`) takes a lock that every fork and exit holds for reading, and taking it waits for a grace
//! period of the kernel: 3 to 20 ms. Two ways do without (kernel/cgroup/cgroup.c, cgroup_procs_write_start and
//! cgroup_css_set_fork):
//!
//! - v2: the process is cloned into its cgroup (CLONE_INTO_CGROUP), also on a hybrid host;
//! - v1: a thread that writes 0 to `tasks` moves itself and nothing else (since 5.5; before, it waits as well). The process has
//!   one thread then, so that is the whole process. The files are opened by the runtime, whose rights count.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::host::Version;
use super::{CgroupManager, file};
use crate::error::{Error, Result};

/// The open way into the cgroups of one container.
#[derive(Debug)]
pub struct Entrance {
    unified: Option<OwnedFd>,
    tasks: Vec<(PathBuf, File)>,
}

impl CgroupManager {
    /// Opens the container's cgroups for one new process.
    pub fn entrance(&self) -> Result<Entrance> {
        let mut entrance = Entrance { unified: None, tasks: Vec::with_capacity(self.places.len()) };
        for place in &self.places {
            match place.version {
                Version::V1 => {
                    let path = place.dir.join("tasks");
                    let file = OpenOptions::new().write(true).open(&path).map_err(|cause| Error::io("opening", &path, cause))?;
                    entrance.tasks.push((place.dir.clone(), file));
                }
                Version::V2 => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let dir = rustix::fs::open(&place.dir, flags, Mode::empty())
                        .map_err(|cause| Error::io("opening", &place.dir, cause))?;
                    entrance.unified = Some(dir);
                }
            }
        }
        Ok(entrance)
    }

    /// What to clone into when the kernel refuses the container's own v2 cgroup because the container hands controllers to cgroups
    /// below it (a systemd in it does): the one its init is in. `init` is init's `/proc/<pid>/cgroup`.
    pub fn unified_of_init(&self, init: &str) -> Result<Option<OwnedFd>> {
        let Some(place) = self.places.iter().find(|place| place.version == Version::V2) else { return Ok(None) };
        let path = init.lines().find_map(|line| line.strip_prefix("0::/"));
        let Some(dir) = path.map(|path| place.mountpoint.join(path)).filter(|dir| dir.starts_with(&place.dir)) else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&dir, flags, Mode::empty()).map(Some).map_err(|cause| Error::io("opening", &dir, cause))
    }
}

impl Entrance {
    /// What the process is to be cloned into.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling process, which has one thread, into the v1 cgroups.
    pub fn enter(&self) -> Result<()> {
        self.tasks.iter().try_for_each(|(dir, tasks)| {
            let mut tasks: &File = tasks;
            tasks.write_all(b"0").map_err(|cause| file::refused(dir, "tasks", "0", cause))
        })
    }
}
