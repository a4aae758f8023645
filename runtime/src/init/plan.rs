//! What init has to do, worked out by the runtime before the clone, so that bad input is refused while nothing exists yet.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Hook, LinuxTimeOffset, PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit};

use crate::capabilities::{Available, Capabilities};
use crate::cgroup::{CgroupMount, Entrance};
use crate::error::{Error, Outcome, Result};
use crate::process::namespaces::{Kind, Namespaces};
use crate::procfs::ProcFs;
use crate::rootfs::RootfsPlan;
use crate::rootfs::devices::Device;
use crate::rootfs::mounts::MountPlan;
use crate::seccomp::Filter;

use super::netdev::Device as NetDevice;
use super::schedule::{Domain, Schedule};

/// Everything a new process needs, for `create` and for `exec`.
#[derive(Debug)]
pub struct Plan {
    /// The program and its attributes.
    pub process: ProcessPlan,
    /// Namespaces to make and to join.
    pub namespaces: Namespaces,
    /// The runtime's verified /proc.
    pub proc: ProcFs,
    /// The process goes into its cgroups through this, first of all; without it the runtime moves it, and says so to init.
    pub entrance: Option<Entrance>,
    /// Compiled before the clone: init only loads it.
    pub seccomp: Option<Filter>,
    /// The filter notifies of sendmsg(2): its listener's descriptor has to travel by another call.
    pub sendmsg_notifies: bool,
    /// `linux.personality` and `linux.memoryPolicy`.
    pub domain: Option<Domain>,
    /// Name of the session keyring, unless the container keeps the caller's.
    pub keyring: Option<CString>,
    /// Descriptors from 3 up that the program gets.
    pub preserve_fds: u32,
    /// Somebody reads how long the steps take (`--debug`).
    pub trace: bool,
}

/// What only a container's first process does.
#[derive(Debug)]
pub struct ContainerPlan {
    /// `None`: the mount namespace is a joined one, and its root stays as it is.
    pub rootfs: Option<RootfsPlan>,
    /// Mounts in order.
    pub mounts: Vec<MountPlan>,
    /// What the mount of type cgroup consists of.
    pub cgroup_mount: Option<CgroupMount>,
    /// Device nodes; `None` when the caller mounts a /dev of its own.
    pub devices: Option<Vec<Device>>,
    /// True where device nodes must be bind mounts.
    pub bind_devices: bool,
    /// `linux.maskedPaths`.
    pub masked: Vec<PathBuf>,
    /// `linux.readonlyPaths`.
    pub readonly: Vec<PathBuf>,
    /// `linux.netDevices`.
    pub net_devices: Vec<NetDevice>,
    /// Files below /proc/sys and their values.
    pub sysctl: Vec<(String, String)>,
    /// Lines for /proc/self/timens_offsets.
    pub time_offsets: Option<String>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `domainname`.
    pub domainname: Option<String>,
    /// How long the hooks that the runtime has to run before the pivot may take; `None` when it has none.
    pub runtime_hooks: Option<Duration>,
    /// `hooks.createContainer`.
    pub create_container: Vec<Hook>,
    /// `hooks.startContainer`.
    pub start_container: Vec<Hook>,
    /// The container's state as JSON, for the hooks that init runs; the pid is filled in by init.
    pub state: crate::client::State,
    /// Where `start` will connect; `None` when the runtime that made us says when to start.
    pub start_socket: Option<OwnedFd>,
    /// What [`crate::exe::protect`] left open, for init to let go of while it waits for `start`.
    pub exe: Option<OwnedFd>,
}

/// A checked `process` object.
#[derive(Debug)]
pub struct ProcessPlan {
    /// The program and its arguments; never empty.
    pub args: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
    /// Absolute.
    pub cwd: PathBuf,
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// Additional groups.
    pub groups: Vec<u32>,
    /// The process keeps the additional groups of the runtime's caller.
    pub keep_groups: bool,
    /// File mode creation mask.
    pub umask: u32,
    /// Resolved sets.
    pub capabilities: Capabilities,
    /// Limits in the order given.
    pub rlimits: Vec<(String, Resource, Rlimit)>,
    /// `noNewPrivileges`.
    pub no_new_privileges: bool,
    /// `apparmorProfile`.
    pub apparmor_profile: Option<String>,
    /// `selinuxLabel`.
    pub selinux_label: Option<String>,
    /// `oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// True if it gets a pseudo terminal.
    pub terminal: bool,
    /// Rows and columns of the terminal.
    pub console_size: Option<(u16, u16)>,
    /// How it is scheduled.
    pub schedule: Schedule,
}

impl ProcessPlan {
    /// Checks `process`. The second value are warnings.
    pub fn new(process: &Process) -> Result<(Self, Vec<String>)> {
        let bad = |field: &str, why: &str| Error::new(Outcome::BadInput, format!("checking {field}")).because(why.to_owned());
        let strings = |field: &str, list: &[String]| {
            list.iter()
                .map(|text| CString::new(text.as_str()).map_err(|_| bad(field, "it contains a NUL byte")))
                .collect::<Result<Vec<_>>>()
        };
        let args = strings("process.args", process.args().as_deref().unwrap_or_default())?;
        if args.is_empty() {
            return Err(bad("process.args", "it is empty"));
        }
        if !process.cwd().is_absolute() {
            return Err(bad("process.cwd", &format!("{} is not absolute", process.cwd().display())));
        }
        let capabilities = process.capabilities().as_ref();
        let (capabilities, warnings) = Capabilities::resolve(capabilities, &Available::detect(capabilities)?);
        let user = process.user();
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let plan = Self {
            args,
            env: strings("process.env", process.env().as_deref().unwrap_or_default())?,
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            keep_groups: false,
            umask: user.umask().unwrap_or(0o022),
            capabilities,
            rlimits: rlimits(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            apparmor_profile: set(process.apparmor_profile()),
            selinux_label: set(process.selinux_label()),
            oom_score_adj: process.oom_score_adj(),
            terminal: process.terminal().unwrap_or(false),
            console_size: console_size(process)?,
            schedule: Schedule::new(process)?,
        };
        Ok((plan, warnings))
    }
}

impl ProcessPlan {
    /// Tells the program, which has pid 1 in its namespace, that its first `count` descriptors from 3 up are sockets to listen on.
    pub fn announce_sockets(&mut self, count: u32) {
        if count > 0 {
            let variable = |name: &str, value: u32| CString::new(format!("{name}={value}")).expect("no NUL in it");
            self.env.extend([variable("LISTEN_FDS", count), variable("LISTEN_PID", 1)]);
        }
    }
}

fn console_size(process: &Process) -> Result<Option<(u16, u16)>> {
    let Some(size) = process.console_size() else { return Ok(None) };
    let short = |value: u64| {
        u16::try_from(value).map_err(|_| {
            Error::new(Outcome::BadInput, "checking process.consoleSize").because(format!("{value} is above {}", u16::MAX))
        })
    };
    Ok(Some((short(size.height())?, short(size.width())?)))
}

fn rlimits(process: &Process) -> Result<Vec<(String, Resource, Rlimit)>> {
    let mut seen: Vec<(String, Resource, Rlimit)> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let bad = |why: String| Err(Error::new(Outcome::BadInput, format!("checking process.rlimits {name}")).because(why));
        if seen.iter().any(|(known, ..)| *known == name) {
            return bad("it is there twice".into());
        }
        if limit.soft() > limit.hard() {
            return bad(format!("the soft limit {} is above the hard limit {}", limit.soft(), limit.hard()));
        }
        let value = |limit: u64| (limit != u64::MAX).then_some(limit);
        let rlimit = Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) };
        seen.push((name, resource(limit.typ()), rlimit));
    }
    Ok(seen)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Checks `linux.sysctl` against the namespaces the container owns: everything else would change the host.
pub fn sysctls(sysctl: Option<&HashMap<String, String>>, namespaces: &Namespaces) -> Result<Vec<(String, String)>> {
    let mut checked = Vec::new();
    for (key, value) in sysctl.into_iter().flatten() {
        let bad = |why: String| Err(Error::new(Outcome::BadInput, format!("checking linux.sysctl {key:?}")).because(why));
        // Either separator is in use (sysctl.d(5)): the first that occurs is the separator, the other one part of a name.
        let dots = key.find(['.', '/']).is_none_or(|at| key.as_bytes()[at] == b'.');
        let path: String = if dots {
            key.chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect()
        } else {
            key.clone()
        };
        let parts: Vec<&str> = path.split('/').collect();
        if parts.iter().any(|part| part.is_empty() || *part == ".." || *part == ".") {
            return bad("it is not the name of a sysctl".into());
        }
        let needs = match parts[0] {
            "net" => Kind::NET,
            "fs" if parts.get(1) == Some(&"mqueue") => Kind::IPC,
            "kernel" if parts.len() == 2 && is_ipc_sysctl(parts[1]) => Kind::IPC,
            "kernel" if parts.len() == 2 && ["hostname", "domainname"].contains(&parts[1]) => Kind::UTS,
            _ => return bad("it is not bound to a namespace, so it would change the host".into()),
        };
        if !namespaces.separate(needs)? {
            return bad(format!("the container has no {} namespace of its own, so it would change the host", needs.proc_name()));
        }
        checked.push((format!("sys/{path}"), value.clone()));
    }
    checked.sort();
    Ok(checked)
}

fn is_ipc_sysctl(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "auto_msgmni",
        "msg_next_id",
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "sem_next_id",
        "shm_next_id",
        "shm_rmid_forced",
        "shmall",
        "shmmax",
        "shmmni",
    ];
    NAMES.contains(&name)
}

/// `linux.timeOffsets` as the lines the kernel takes.
pub fn time_offsets(offsets: Option<&HashMap<String, LinuxTimeOffset>>, namespaces: &Namespaces) -> Result<Option<String>> {
    let Some(offsets) = offsets.filter(|offsets| !offsets.is_empty()) else { return Ok(None) };
    let bad = |why: &str| Err(Error::new(Outcome::BadInput, "checking linux.timeOffsets").because(why.to_owned()));
    if !namespaces.makes(Kind::TIME) {
        return bad("they need a new time namespace");
    }
    let mut lines = String::new();
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            return bad(&format!("there is no clock {clock:?}"));
        }
        lines.push_str(&format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
    }
    Ok(Some(lines))
}
