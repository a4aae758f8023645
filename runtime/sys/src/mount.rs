//! mount_setattr(2), which rustix does not have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::check;

/// What [`mount_setattr`] changes; the bits are the kernel's `MOUNT_ATTR_*` (<linux/mount.h>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
}

/// Changes the mount that `mount` (an O_PATH or mount descriptor of its root) refers to, or its whole tree.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> io::Result<()> {
    let raw = libc::mount_attr { attr_set: attr.set, attr_clr: attr.clear, propagation: attr.propagation, userns_fd: 0 };
    call(mount, recursive, &raw)
}

/// Gives a detached mount (or its whole tree) the mapping of a user namespace (MOUNT_ATTR_IDMAP).
pub fn mount_idmap(mount: BorrowedFd<'_>, recursive: bool, userns: impl AsFd) -> io::Result<()> {
    // A descriptor is never negative.
    let userns_fd = userns.as_fd().as_raw_fd() as u64;
    let raw = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    call(mount, recursive, &raw)
}

fn call(mount: BorrowedFd<'_>, recursive: bool, raw: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and `raw` is a live struct of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(raw),
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
