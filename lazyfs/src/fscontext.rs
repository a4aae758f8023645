//! The new mount API (fsopen, fsconfig, fsmount, move_mount; Linux 5.2) with the kernel's own words on what it refuses.
//!
//! A file system context keeps a log that says why a parameter or the mount was refused; the errno alone ("Invalid argument") seldom
//! does. [`Refused`] carries both and becomes the cause of an [`Error`].

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use crate::error::{Error, Outcome, Result};

/// A step that the kernel refused, and what it wrote about it.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Why, as a number.
    pub errno: Errno,
    step: String,
    log: Vec<String>,
}

impl Refused {
    /// Replaces `from` by `to` in all of it: for layers that were named by descriptor.
    pub fn rename(&mut self, from: &str, to: &str) {
        for line in self.log.iter_mut().chain([&mut self.step]) {
            *line = line.replace(from, to);
        }
    }

    /// Whether the kernel wrote this.
    pub fn says(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }

    /// The error for a mount of `what`, with the outcome that the errno tells.
    pub fn into_error(self, what: String) -> Error {
        let error = match self.errno {
            Errno::PERM => Error::new(Outcome::Denied, what).advise("run as root (CAP_SYS_ADMIN is needed to mount)"),
            Errno::NODEV | Errno::NOSYS => Error::new(Outcome::Unsupported, what)
                .advise("this kernel lacks that file system or its module is not loaded; 6.12 or later is needed"),
            Errno::BUSY => Error::new(Outcome::Busy, what),
            Errno::NOENT => Error::new(Outcome::NotFound, what),
            _ => Error::new(Outcome::Io, what),
        };
        error.because(self)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.errno)?;
        if !self.log.is_empty() {
            write!(f, " (kernel: {})", self.log.join("; "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// A file system that is being configured.
#[derive(Debug)]
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    /// Starts to configure a file system of this type.
    pub fn open(kind: &str) -> Result<Self, Refused> {
        match rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self(fd)),
            Err(errno) => Err(Refused { errno, step: format!("fsopen of `{kind}`"), log: Vec::new() }),
        }
    }

    /// Sets a flag.
    pub fn flag(&self, key: &str) -> Result<(), Refused> {
        rustix::mount::fsconfig_set_flag(self.0.as_fd(), key).map_err(|e| self.refused(e, key))
    }

    /// Sets a text, at most 255 bytes long. No character of it is special.
    pub fn string(&self, key: &str, value: &str) -> Result<(), Refused> {
        rustix::mount::fsconfig_set_string(self.0.as_fd(), key, value).map_err(|e| self.refused(e, &format!("{key}={value}")))
    }

    /// Sets an open file.
    pub fn fd(&self, key: &str, value: impl AsFd) -> Result<(), Refused> {
        rustix::mount::fsconfig_set_fd(self.0.as_fd(), key, value).map_err(|e| self.refused(e, key))
    }

    /// Creates the file system and returns its mount, which is attached nowhere yet.
    pub fn create(self, attributes: MountAttrFlags) -> Result<OwnedFd, Refused> {
        rustix::mount::fsconfig_create(self.0.as_fd()).map_err(|e| self.refused(e, "create"))?;
        rustix::mount::fsmount(self.0.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| self.refused(e, "fsmount"))
    }

    fn refused(&self, errno: Errno, step: &str) -> Refused {
        let mut log = Vec::new();
        let mut message = [0; 1024];
        // One message a read, ENODATA after the last; 16 is what the kernel keeps at most (8 as of 6.18).
        while log.len() < 16
            && let Ok(n @ 1..) = rustix::io::read(&self.0, &mut message)
        {
            let text = String::from_utf8_lossy(&message[..n]);
            // "e overlay: text": severity, then the message.
            log.push(text.trim_end().trim_start_matches("e ").to_owned());
        }
        Refused { errno, step: step.to_owned(), log }
    }
}

/// Attaches a detached mount at `target`.
pub(crate) fn attach(mount: &OwnedFd, target: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| Error::io("attaching a mount at", target, e))
}

/// Detaches the uppermost mount at `target`; what still uses it keeps it alive. Says whether there was one.
pub(crate) fn detach(target: &Path) -> Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => Err(Error::io("unmounting", target, e)),
    }
}

/// Whether something is mounted right there. Not stat: that may be answered from the kernel's cache, or by a dead file system.
pub(crate) fn is_mount_point(dir: &Path) -> Result<bool> {
    let stat =
        rustix::fs::statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE).map_err(|e| Error::io("looking at", dir, e))?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
