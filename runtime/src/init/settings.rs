//! Steps that set up the process and its namespaces, short of the file system.

use rustix::process::Rlimit;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Init, in_user_namespace};
use crate::cgroup::Entrance;
use crate::error::{Error, Outcome, Result};
use crate::process::message::Message;
use crate::process::namespaces::Kind;

/// In a new user namespace nobody is anybody before the mappings are written; then become its root.
pub fn become_mapped_root(init: &mut Init<'_>) -> Result<()> {
    if init.plan.namespaces.makes(Kind::USER) {
        init.channel.expect(&Message::Mapped, "the user namespace's mappings")?;
    }
    become_joined_root(init)
}

/// After joining a user namespace the ids are still those of outside.
pub fn become_joined_root(init: &mut Init<'_>) -> Result<()> {
    if !in_user_namespace(init.plan) {
        return Ok(());
    }
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    let dropped = if init.plan.process.keep_groups { Ok(()) } else { set_thread_groups(&[]) };
    match dropped {
        // Without privileges over the groups (setgroups "deny") the caller's stay; they map to nobody.
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(cause) => return Err(Error::sys("dropping additional groups", cause)),
    }
    set_thread_res_gid(gid, gid, gid).map_err(|cause| Error::sys("setgid to the namespace's root", cause))?;
    set_thread_res_uid(uid, uid, uid).map_err(|cause| Error::sys("setuid to the namespace's root", cause))?;
    super::die_with_runtime(true)
}

/// A session of its own: signals of the caller's terminal do not reach the container.
pub fn new_session(_init: &mut Init<'_>) -> Result<()> {
    rustix::process::setsid().map(drop).map_err(|cause| Error::sys("setsid", cause))
}

/// Makes the ipc namespace where that has to wait for the user namespace's root.
pub fn ipc_namespace(init: &mut Init<'_>) -> Result<()> {
    if init.plan.namespaces.late_ipc() { unshare(Kind::IPC) } else { Ok(()) }
}

/// Makes the time namespace; the program enters it with execve.
pub fn time_namespace(init: &mut Init<'_>) -> Result<()> {
    if !init.plan.namespaces.makes(Kind::TIME) {
        return Ok(());
    }
    unshare(Kind::TIME)?;
    let Some(lines) = init.container().time_offsets.clone() else { return Ok(()) };
    let namespaces = &init.plan.namespaces;
    let watched = namespaces.joins(Kind::USER) && namespaces.joins(Kind::PID);
    if in_user_namespace(init.plan) && !watched {
        // Becoming the namespace's root has made the files of /proc/self the host's root's. `hide` comes next, and until then no
        // process with rights over this one can see it.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
            .map_err(|cause| Error::sys("making init dumpable to set its time offsets", cause))?;
    }
    init.plan.proc.write("self/timens_offsets", &lines)
}

/// Makes the cgroup namespace, whose root is the cgroup we are in.
pub fn cgroup_namespace(init: &mut Init<'_>) -> Result<()> {
    if !init.plan.namespaces.makes(Kind::CGROUP) {
        return Ok(());
    }
    in_cgroup(init)?;
    unshare(Kind::CGROUP)
}

/// Before anything else, so that all that is done counts against the container's limits.
pub fn enter_cgroups(init: &mut Init<'_>) -> Result<()> {
    init.plan.entrance.as_ref().map_or(Ok(()), Entrance::enter)
}

/// Where the runtime moves us, waits until it has. That takes a grace period of the kernel (more than a millisecond), so this is
/// asked for as late as it is needed, and mounts are made meanwhile.
pub fn in_cgroup(init: &mut Init<'_>) -> Result<()> {
    if !init.in_cgroup {
        init.channel.expect(&Message::InCgroup, "the cgroup")?;
        init.in_cgroup = true;
    }
    Ok(())
}

fn unshare(kind: Kind) -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(kind.flag() as i32))
        .map_err(|cause| Error::sys(format!("making a {} namespace", kind.proc_name()), std::io::Error::from(cause)))
}

/// `hostname` and `domainname`.
pub fn names(init: &mut Init<'_>) -> Result<()> {
    let container = init.container();
    if let Some(name) = &container.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(|cause| Error::sys(format!("setting hostname {name:?}"), cause))?;
    }
    if let Some(name) = &container.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|cause| Error::sys(format!("setting domainname {name:?}"), cause))?;
    }
    Ok(())
}

/// `linux.sysctl`, through the verified procfs.
pub fn sysctls(init: &mut Init<'_>) -> Result<()> {
    let proc = &init.plan.proc;
    let set = |(path, value): &(String, String)| {
        proc.write(path, value).map_err(|error| match proc.open_file("sys/kernel/ostype", rustix::fs::OFlags::RDONLY) {
            Ok(_) => error,
            // Hidden (ProcSubset=pid), or something is mounted there (ProtectKernelTunables=): neither is ours to go around.
            Err(_) => error.advise(
                "the host's /proc/sys is locked down, and linux.sysctl needs it: where the runtime is started from \
                                    a service, see its ProcSubset= and ProtectKernelTunables=",
            ),
        })
    };
    init.container.iter().flat_map(|container| &container.sysctl).try_for_each(set)
}

/// A session keyring of the container's own, so that keys of the caller are out of reach.
pub fn keyring(init: &mut Init<'_>) -> Result<()> {
    let Some(name) = &init.plan.keyring else { return Ok(()) };
    match towline_sys::join_session_keyring(name) {
        // A kernel without keyrings has nothing to protect.
        Err(cause) if cause.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.map_err(|cause| Error::sys("making a session keyring", cause).advise("--no-new-keyring goes without")),
    }
}

/// From here on no process of the container may look into this one, whose descriptors still reach the host (CVE-2016-9962).
/// `exec` does this before it joins; here it has to wait for the files of /proc/self that it closes off.
pub fn hide(_init: &mut Init<'_>) -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|cause| Error::sys("making init undumpable", cause))
}

/// `process.rlimits`.
pub fn rlimits(init: &mut Init<'_>) -> Result<()> {
    for (name, resource, wanted) in &init.plan.process.rlimits {
        let show = |limit: &Rlimit| {
            let number = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
            format!("soft {}, hard {}", number(limit.current), number(limit.maximum))
        };
        rustix::process::setrlimit(*resource, *wanted).map_err(|cause| {
            let now = rustix::process::getrlimit(*resource);
            let error = Error::sys(format!("setting {name} to {}", show(wanted)), cause);
            if error.outcome() != Outcome::Denied {
                return error;
            }
            error.advise(format!(
                "the hard limit here is {}, and raising it needs CAP_SYS_RESOURCE, which the runtime does not have: \
                 ask for at most that (podman: --ulimit host)",
                now.maximum.map_or_else(|| "unlimited".to_owned(), |value| value.to_string())
            ))
        })?;
    }
    Ok(())
}
