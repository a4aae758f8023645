//! Masked and read-only paths (`linux.maskedPaths`, `linux.readonlyPaths`).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use towline_sys::MountAttr;

use super::options::{Attr, MountOptions};
use super::resolve::Root;
use super::tree::Detached;
use crate::error::{Error, Result};

/// What paths are covered with.
#[derive(Debug)]
pub struct Covers {
    null: OwnedFd,
    /// An empty read-only tmpfs, mounted on the first masked directory; the others get copies of that mount.
    empty: Option<OwnedFd>,
}

impl Covers {
    /// `null` is the host's verified /dev/null.
    pub fn new(null: OwnedFd) -> Self {
        Self { null, empty: None }
    }

    fn directory(&self, what: &str) -> Result<Detached> {
        if let Some(mounted) = &self.empty {
            return Detached::copy_of(mounted.as_fd(), false, what);
        }
        let options = MountOptions {
            attr: Attr { set: libc::MOUNT_ATTR_RDONLY, clear: 0 },
            data: vec![("nr_blocks".into(), Some("1".into())), ("nr_inodes".into(), Some("1".into()))],
            ..MountOptions::default()
        };
        Detached::new_filesystem("tmpfs", "tmpfs", &options, what)
    }
}

/// Covers `path`: a directory with an empty read-only tmpfs, anything else with /dev/null. A path that the container does not have
/// needs no cover.
pub fn mask(root: &Root, path: &Path, covers: &mut Covers) -> Result<()> {
    let what = format!("mask of {}", path.display());
    let target = match root.open(path, OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(cause) => return Err(Error::sys(format!("opening {} to mask it", path.display()), cause)),
    };
    let stat = rustix::fs::fstat(&target).map_err(|cause| Error::sys(format!("looking at {}", path.display()), cause))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        covers.empty = Some(covers.directory(&what)?.attach(target.as_fd(), &what)?);
        return Ok(());
    }
    Detached::copy_of(covers.null.as_fd(), false, &what)?.attach(target.as_fd(), &what).map(drop)
}

/// Makes `path` and what is mounted beneath it read-only, by a bind mount of it on itself.
pub fn make_readonly(root: &Root, path: &Path) -> Result<()> {
    let what = format!("read-only path {}", path.display());
    let target = match root.open(path, OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(cause) => return Err(Error::sys(format!("opening {} to make it read-only", path.display()), cause)),
    };
    let copy = Detached::copy_of(target.as_fd(), true, &what)?;
    copy.set(true, MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() }, &what)?;
    copy.attach(target.as_fd(), &what).map(drop)
}
