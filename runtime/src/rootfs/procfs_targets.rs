//! What may be mounted over inside the container's `/proc`.
//!
//! A mount over an arbitrary file of procfs fakes what other programs (and other runtimes) read or write there
//! (CVE-2019-16884). Programs like lxcfs legitimately replace a few read-only files.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::{Error, Outcome, Result};
use crate::procfs::PROC_SUPER_MAGIC;

const ALLOWED: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/fs/binfmt_misc",
];

/// Refuses `target` (found at `destination`) when it lies inside a procfs and is not on the list.
pub fn check_target(target: BorrowedFd<'_>, destination: &Path) -> Result<()> {
    let failed = || format!("checking mount point {}", destination.display());
    let magic = rustix::fs::fstatfs(target).map_err(|cause| Error::sys(failed(), cause))?.f_type;
    if magic == PROC_SUPER_MAGIC
        && destination != Path::new("/proc")
        && !ALLOWED.iter().any(|known| destination == Path::new(known))
    {
        return Err(Error::new(Outcome::BadInput, failed()).because("nothing may be mounted on this part of procfs"));
    }
    Ok(())
}
