//! Mounts as descriptors: made detached, given their attributes, and only then attached to a descriptor beneath the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use towline_sys::{MountAttr, mount_setattr};

use super::options::MountOptions;
use crate::error::{Error, Result};

/// A mount that is attached nowhere yet.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// A new file system of `kind`. `what` names it in errors.
    pub fn new_filesystem(kind: &str, source: &str, options: &MountOptions, what: &str) -> Result<Self> {
        let failed = |step: &str, cause: rustix::io::Errno| Error::sys(format!("{step} for {what}"), cause);
        let context =
            fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|cause| failed("opening a file system context", cause))?;
        fsconfig_set_string(&context, "source", source).map_err(|cause| failed("setting the source", cause))?;
        for flag in &options.superblock {
            fsconfig_set_flag(&context, *flag).map_err(|cause| failed(&format!("setting option {flag}"), cause))?;
        }
        for (key, value) in &options.data {
            match value {
                Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
                None => fsconfig_set_flag(&context, key.as_str()),
            }
            .map_err(|cause| failed(&format!("setting option {key}"), cause))?;
        }
        fsconfig_create(&context).map_err(|cause| failed("creating the file system", cause))?;
        let attributes = MountAttrFlags::from_bits_retain(options.attr.set as u32);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Self).map_err(|cause| failed("making the mount", cause))
    }

    /// A copy of the mount that `fd` lies on, with `fd`'s file or directory as its root; with `recursive` also all beneath.
    pub fn copy_of(fd: BorrowedFd<'_>, recursive: bool, what: &str) -> Result<Self> {
        Self::copy_at(fd, "", recursive).map_err(|cause| Error::sys(format!("copying mount {what}"), cause))
    }

    /// [`Detached::copy_of`] for a path on the host.
    pub fn copy_at(dir: BorrowedFd<'_>, path: &str, recursive: bool) -> rustix::io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        open_tree(dir, path, flags).map(Self)
    }

    /// Changes attributes or propagation.
    pub fn set(&self, recursive: bool, attr: MountAttr, what: &str) -> Result<()> {
        mount_setattr(self.0.as_fd(), recursive, attr).map_err(|cause| Error::sys(format!("setting attributes of {what}"), cause))
    }

    /// The mount as a plain descriptor; it is gone when the last one closes.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Attaches the mount to `target` and returns a descriptor of its root.
    pub fn attach(self, target: BorrowedFd<'_>, what: &str) -> Result<OwnedFd> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.0.as_fd(), "", target, "", flags).map_err(|cause| Error::sys(format!("attaching {what}"), cause))?;
        Ok(self.0)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
