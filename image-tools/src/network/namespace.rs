//! A network namespace that is kept by a mount, as `ip netns` has it.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::UnmountFlags;
use towline_lazyfs::error::{Error, Outcome, Result};

use super::link;

/// What statfs(2) says of a file that stands for a namespace (NSFS_MAGIC).
const NSFS: i64 = 0x6e73_6673;

/// Makes a namespace with its loopback up, and keeps it at `path`.
pub fn make(path: &Path) -> Result<()> {
    std::fs::File::create(path).map_err(|e| Error::io("creating", path, e))?;
    let kept = path.to_owned();
    // A thread of its own is in the new namespace, and ends: this process stays where it is. It clones nothing.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::io("making", "a network namespace", std::io::Error::from(e)))?;
        link::up_loopback()?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &kept)
            .map_err(|e| Error::io("mounting a network namespace at", &kept, e))
    });
    thread.join().map_err(|_| Error::new(Outcome::Io, "making a network namespace").because("the thread panicked"))?
}

/// Whether there is one at `path`.
pub fn is_there(path: &Path) -> Result<bool> {
    match rustix::fs::statfs(path) {
        Ok(found) => Ok(found.f_type == NSFS),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(Error::io("looking at", path, e)),
    }
}

/// Lets go of the one at `path`, where there is one.
pub fn remove(path: &Path) -> Result<()> {
    if is_there(path)? {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(path, flags).map_err(|e| Error::io("unmounting", path, e))?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => Ok(()),
    }
}
