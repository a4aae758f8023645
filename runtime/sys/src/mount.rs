//! mount_setattr(2), which rustix does not have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and `raw` outlives the call, with its true size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
