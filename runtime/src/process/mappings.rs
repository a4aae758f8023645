//! Mappings of a new user namespace, written by the runtime.

use std::process::Command;
use std::time::Duration;

use oci_spec::runtime::LinuxIdMapping;

use crate::error::{Error, Outcome, Result};
use crate::process::command::output;
use crate::procfs::ProcFs;

/// The kernel's limit of lines in a map (UID_GID_MAP_MAX_EXTENTS).
const MAX_LINES: usize = 340;

/// How long newuidmap and newgidmap may take: they may have to ask a directory service for the user's ids.
const HELPER: Duration = Duration::from_secs(60);

/// Writes the maps of process `pid`. Without privileges over the ids, the setuid helpers of shadow (newuidmap, newgidmap) do it.
pub fn write(proc: &ProcFs, pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    for (field, map) in [("linux.uidMappings", uids), ("linux.gidMappings", gids)] {
        if map.is_empty() || map.len() > MAX_LINES {
            return Err(Error::new(Outcome::BadInput, format!("checking {field}"))
                .because(format!("a new user namespace needs 1 to {MAX_LINES} entries, and there are {}", map.len())));
        }
    }
    if !rustix::process::geteuid().is_root() && gids.len() == 1 && gids[0].size() == 1 {
        // An unprivileged process may map its own group only after giving up setgroups.
        proc.write(&format!("{pid}/setgroups"), "deny")?;
    }
    write_one(proc, pid, "uid_map", "newuidmap", uids)?;
    write_one(proc, pid, "gid_map", "newgidmap", gids)
}

fn write_one(proc: &ProcFs, pid: i32, file: &str, helper: &str, map: &[LinuxIdMapping]) -> Result<()> {
    let lines: String = map.iter().map(|line| format!("{} {} {}\n", line.container_id(), line.host_id(), line.size())).collect();
    match proc.try_write(&format!("{pid}/{file}"), &lines) {
        Ok(()) => Ok(()),
        Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => {
            run_helper(helper, pid, map)
        }
        Err(cause) => Err(Error::sys(format!("writing {file} {lines:?} of the container"), cause)),
    }
}

fn run_helper(helper: &str, pid: i32, map: &[LinuxIdMapping]) -> Result<()> {
    let mut command = Command::new(helper);
    command.arg(pid.to_string());
    for line in map {
        command.args([line.container_id(), line.host_id(), line.size()].map(|number| number.to_string()));
    }
    let output = output(&mut command, HELPER, helper).map_err(|error| match error.outcome() {
        Outcome::NotFound => error.advise("install it (Debian: package uidmap) for user namespaces without root"),
        _ => error,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(Outcome::Denied, format!("running {helper}"))
        .because(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        .advise("are these ids the user's own in /etc/subuid and /etc/subgid?"))
}
