//! The container's root file system: how it is put together and entered.
//!
//! Everything is done on descriptors (SECURITY.md's rows 1-7 are the reason): the root is a copy of the bundle's rootfs mount, kept
//! as one descriptor; mount points are resolved and made beneath it by the kernel (`resolve.rs`); mounts are made detached, get
//! their attributes, and are then attached to such a descriptor (`tree.rs`). No path into the image is ever used twice.
//!
//! ```text
//! isolate     nothing we mount reaches the host any more
//! attach      the copy of the rootfs goes on top of "/" of the new namespace: no directory of the host is needed, and
//!             the process's own root stays the host's until pivot
//! mount_all   the mounts of config.json, in order        (mounts.rs, options.rs, copyup.rs)
//! devices     device nodes and links                     (devices.rs)
//! mask        masked and read-only paths                 (mask.rs)
//! pivot       pivot_root(".", "."), and the host's tree is gone
//! ```

pub mod copyup;
pub mod devices;
pub mod idmap;
pub mod mask;
pub mod mounts;
pub mod options;
pub mod procfs_targets;
pub mod resolve;
pub mod tree;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use towline_sys::{MountAttr, mount_setattr};

use crate::error::{Error, Outcome, Result};
use resolve::Root;
use tree::Detached;

/// What the new mount namespace's root is made from.
#[derive(Debug)]
pub struct RootfsPlan {
    /// The bundle's rootfs on the host, absolute.
    pub path: PathBuf,
    /// A copy of it, where the new process would not be allowed to make one (user namespaces).
    pub copy: Option<Detached>,
    /// `root.readonly`.
    pub readonly: bool,
    /// `linux.rootfsPropagation` as the kernel's flag and whether it is recursive.
    pub propagation: Option<(u64, bool)>,
    /// Enter the root by chroot only (`--no-pivot`): for hosts that run from an initramfs.
    pub no_pivot: bool,
}

impl RootfsPlan {
    fn is_shared(&self) -> bool {
        matches!(self.propagation, Some((libc::MS_SHARED, _)))
    }

    /// Cuts the new mount namespace off from the host's.
    pub fn isolate(&self) -> Result<()> {
        let host = open_dir("/")?;
        let set = |recursive, propagation| {
            mount_setattr(host.as_fd(), recursive, MountAttr { propagation, ..MountAttr::default() })
                .map_err(|cause| Error::sys("setting the propagation of / in the new mount namespace", cause))
        };
        if self.is_shared() {
            // What is mounted in the container is meant to reach the host, but our copy of the root, on top of "/", is not.
            return set(false, libc::MS_PRIVATE);
        }
        let private = matches!(self.propagation, Some((libc::MS_PRIVATE | libc::MS_UNBINDABLE, _)));
        set(true, if private { libc::MS_PRIVATE } else { libc::MS_SLAVE })
    }

    /// Puts the root on top of "/".
    pub fn attach(&mut self) -> Result<Root> {
        let what = format!("root file system {}", self.path.display());
        let copy = match self.copy.take() {
            Some(copy) => copy,
            None => copy_host_path(&self.path, true)?,
        };
        let root = copy.attach(open_dir("/")?.as_fd(), &what)?;
        Ok(Root::new(root))
    }

    /// Makes `root` the root directory and lets go of the host's tree.
    pub fn pivot(&self, root: &Root) -> Result<()> {
        let failed = |step: &str, cause: rustix::io::Errno| {
            Error::sys(format!("{step} for root file system {}", self.path.display()), cause)
        };
        let host = open_dir("/")?;
        rustix::process::fchdir(root).map_err(|cause| failed("entering the directory", cause))?;
        if self.no_pivot {
            rustix::process::chroot(".").map_err(|cause| failed("chroot", cause))?;
        } else {
            rustix::process::pivot_root(".", ".")
                .map_err(|cause| failed("pivot_root", cause).advise("if the host runs from an initramfs, use --no-pivot"))?;
            if self.is_shared() {
                let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
                mount_setattr(host.as_fd(), true, private)
                    .map_err(|cause| Error::sys("making the host's mounts private before they are let go", cause))?;
            }
            // The host's tree now lies on top of "."; after this no path leads to it.
            rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(|cause| failed("unmounting the host's tree", cause))?;
        }
        rustix::process::chdir("/").map_err(|cause| failed("chdir to /", cause))
    }

    /// The last changes of the root mount itself: its propagation as configured, and read-only.
    pub fn finish(&self, root: &Root) -> Result<()> {
        if let Some((propagation, recursive)) = self.propagation {
            mount_setattr(root.as_fd(), recursive, MountAttr { propagation, ..MountAttr::default() })
                .map_err(|cause| Error::sys("setting linux.rootfsPropagation on the root", cause))?;
        }
        if self.readonly {
            mount_setattr(root.as_fd(), false, MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })
                .map_err(|cause| Error::sys("making the root file system read-only", cause))?;
        }
        Ok(())
    }
}

/// `/dev/null` of the host, proven to be it: what masked files are covered with (CVE-2025-31133).
pub fn open_null() -> Result<OwnedFd> {
    let failed = || Error::new(Outcome::Io, "opening the host's /dev/null");
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| failed().because(std::io::Error::from(cause)))?;
    if is_null(&null) { Ok(null) } else { Err(failed().because("it is not character device 1:3")) }
}

/// Whether an open file is the device /dev/null. A descriptor that is closed is none.
pub fn is_null(file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
            && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3)
    })
}

/// A detached copy of the mount at a path of the host.
pub fn copy_host_path(path: &Path, recursive: bool) -> Result<Detached> {
    let failed = |cause: rustix::io::Errno| Error::io("copying the mount at", path, cause);
    Detached::copy_at(rustix::fs::CWD, path, recursive).map_err(failed)
}

/// A directory of the host.
pub fn open_dir(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| Error::io("opening", path, cause))
}
