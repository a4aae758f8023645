//! Opening FIFOs so that nobody's coming and going hurts anybody: a FIFO has an end for whoever is to live with it, and one that is
//! only held.
//!
//! What is opened is the object that was looked at first, by its descriptor: a path may change in between.

use std::fs::{DirBuilder, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use towline_runtime::{Error, Outcome, Result};

/// What is at a path.
#[derive(Debug)]
pub(super) enum Found {
    /// An `O_PATH` descriptor of a FIFO.
    Fifo(OwnedFd),
    /// A regular file, open for appending.
    File(OwnedFd),
}

/// Looks at `path` without waiting for anybody and without an effect on what is there.
pub(super) fn find(path: &Path) -> Result<Found> {
    let failed = |cause| Error::io("opening", path, cause);
    let found = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = fstat(&found).map_err(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Ok(Found::Fifo(found)),
        FileType::RegularFile => reopen(found.as_fd(), OFlags::WRONLY | OFlags::APPEND).map(Found::File).map_err(failed),
        kind => {
            let tried = format!("opening {}", path.display());
            Err(Error::new(Outcome::BadInput, tried).because(format!("it is a {kind:?}, neither a FIFO nor a file")))
        }
    }
}

/// Another open file of the object behind `fd`.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty())
}

/// An end for the process that writes, and the reading end that the shim holds: whatever readers come and go, a write meets one.
pub(super) struct Outward {
    /// For reading, too, if it is to be the process's own: then the process is its own reader and outlives a shim that was killed.
    pub(super) writer: OwnedFd,
    pub(super) held: OwnedFd,
}

/// Opens a FIFO for output. `shared`: the writing end becomes the standard stream of a container's process.
pub(super) fn outward(fifo: &OwnedFd, path: &Path, shared: bool) -> Result<Outward> {
    let failed = |cause| Error::io("opening the FIFO", path, cause);
    let held = reopen(fifo.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
    let flags = if shared { OFlags::RDWR } else { OFlags::WRONLY | OFlags::NONBLOCK };
    Ok(Outward { writer: reopen(fifo.as_fd(), flags).map_err(failed)?, held })
}

/// An end for whoever reads, and the writing end that is held until containerd says that there is no more.
pub(super) struct Inward {
    pub(super) reader: OwnedFd,
    pub(super) held: OwnedFd,
}

/// Opens a FIFO for input. `blocking`: the reading end becomes the standard input of a process.
pub(super) fn inward(fifo: &OwnedFd, path: &Path, blocking: bool) -> Result<Inward> {
    let failed = |cause| Error::io("opening the FIFO", path, cause);
    // Opening one end waits for the other one; this one waits for nobody.
    let both = reopen(fifo.as_fd(), OFlags::RDWR).map_err(failed)?;
    let nonblock = if blocking { OFlags::empty() } else { OFlags::NONBLOCK };
    let reader = reopen(fifo.as_fd(), OFlags::RDONLY | nonblock).map_err(failed)?;
    let held = reopen(fifo.as_fd(), OFlags::WRONLY | OFlags::NONBLOCK).map_err(failed)?;
    drop(both);
    Ok(Inward { reader, held })
}

/// A log file: made with the directories above it, appended to.
pub(super) fn log_file(path: &Path) -> Result<OwnedFd> {
    if let Some(dir) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made.map_err(|cause| Error::io("making the directory", dir, cause))?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
    Ok(file.map_err(|cause| Error::io("opening the log file", path, cause))?.into())
}

/// `/dev/null`.
pub(super) fn null() -> Result<OwnedFd> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|cause| Error::io("opening", "/dev/null", cause))
}
