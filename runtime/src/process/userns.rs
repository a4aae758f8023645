//! A user namespace that is only a mapping: what an idmapped mount is given.

use std::os::fd::OwnedFd;

use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{Mode, OFlags};

use super::mappings;
use super::namespaces::Namespaces;
use super::spawn::spawn;
use crate::error::{Error, Result};
use crate::procfs::ProcFs;

/// Makes a user namespace with these mappings. The process that it takes to make one is gone again on return.
pub fn with_mappings(proc: &ProcFs, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let holder = spawn(&Namespaces::new_user(), None, |channel| {
        // Until the runtime kills it, or is gone itself.
        channel.receive("the end of the runtime's need for this process").map(drop)
    })?;
    mappings::write(proc, holder.pid, uids, gids)?;
    let path = format!("/proc/{}/ns/user", holder.pid);
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|cause| Error::io("opening", path, cause))
}
