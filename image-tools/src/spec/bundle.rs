//! `config.json` of a container (runtime-spec, "Configuration").

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources, LinuxSeccomp,
    Mount, Process, Root, Spec, User as SpecUser,
};
use towline_lazyfs::error::{Error, Outcome, Result};

use super::settings::{CPU_PERIOD, Limits, Network, Seccomp, Settings};
use super::user::User;
use super::volume::Volume;
use super::{capabilities, env, etc, process::Plan, seccomp};

/// The version of the runtime-spec that is written: what is used here is in all 1.0 runtimes.
const SPEC_VERSION: &str = "1.0.2";

/// Everything that a bundle is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The container.
    pub id: &'a str,
    /// What runs.
    pub plan: &'a Plan,
    /// As whom.
    pub user: &'a User,
    /// In which surroundings.
    pub settings: &'a Settings,
    /// Where its root is mounted.
    pub rootfs: &'a Path,
    /// Where its files for `/etc` are.
    pub etc: &'a Path,
    /// Its host name.
    pub hostname: &'a str,
    /// Where its network namespace is kept, if it is made before the container.
    pub network_namespace: Option<&'a Path>,
    /// The bounding set of this process as bits.
    pub available_capabilities: u64,
}

/// The bundle's configuration.
pub fn config(parts: &Parts<'_>) -> Spec {
    let settings = parts.settings;
    let capabilities = capabilities::set(&settings.cap_add, &settings.cap_drop, parts.available_capabilities);
    let filter = match &settings.seccomp {
        Seccomp::Default => Some(seccomp::default_filter(&capabilities)),
        Seccomp::Unconfined => None,
        Seccomp::Profile(filter) => Some(filter.as_ref().clone()),
    };
    let mut root = Root::default();
    root.set_path(parts.rootfs.to_owned()).set_readonly(Some(settings.read_only));
    let mut spec = Spec::default();
    spec.set_version(SPEC_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(Some(parts.hostname.to_owned()))
        .set_process(Some(process(parts, &capabilities)))
        .set_mounts(Some(mounts(parts)))
        .set_linux(Some(linux(parts, filter)));
    spec
}

fn process(parts: &Parts<'_>, capabilities: &[&str]) -> Process {
    let mut environment = parts.plan.env.clone();
    // A runtime that found no HOME would read the image's /etc/passwd, and fetch it.
    env::default(&mut environment, "HOME", &parts.user.home);
    env::default(&mut environment, "HOSTNAME", parts.hostname);
    let mut granted = LinuxCapabilities::default();
    let typed = capabilities::typed(capabilities);
    granted
        .set_bounding(Some(typed.clone()))
        .set_effective(Some(typed.clone()))
        .set_permitted(Some(typed))
        .set_inheritable(None)
        .set_ambient(None);
    let mut process = Process::default();
    process
        .set_args(Some(parts.plan.args.clone()))
        .set_env(Some(environment))
        .set_cwd(PathBuf::from(&parts.plan.cwd))
        .set_user(spec_user(parts.user))
        .set_terminal(Some(parts.settings.tty))
        .set_capabilities(Some(granted))
        .set_rlimits(None)
        .set_no_new_privileges(Some(parts.settings.no_new_privileges));
    process
}

/// A user as the runtime-spec has it.
pub fn spec_user(user: &User) -> SpecUser {
    let mut spec = SpecUser::default();
    spec.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()).filter(|groups| !groups.is_empty()));
    spec
}

fn mounts(parts: &Parts<'_>) -> Vec<Mount> {
    let special: [(&str, &str, &[&str]); 7] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    let source = |kind: &str| PathBuf::from(if kind == "tmpfs" { "tmpfs" } else { kind });
    let mut mounts: Vec<Mount> =
        special.iter().map(|(to, kind, options)| mount(Path::new(to), kind, source(kind), options.iter().copied())).collect();
    let access = |read_only| if read_only { "ro" } else { "rw" };
    for name in etc::FILES {
        let to = Path::new("/etc").join(name);
        // A volume over one of these files is what the user wants there.
        if !parts.settings.volumes.iter().any(|volume| volume.destination == to) {
            let options = ["bind", "rprivate", access(parts.settings.read_only)];
            mounts.push(mount(&to, "bind", parts.etc.join(name), options));
        }
    }
    let mut volumes: Vec<&Volume> = parts.settings.volumes.iter().collect();
    // A volume inside another is mounted after it, in whatever order they were given.
    volumes.sort_by_key(|volume| volume.destination.components().count());
    for volume in volumes {
        mounts.push(mount(&volume.destination, "bind", volume.source.clone(), ["rbind", "rprivate", access(volume.read_only)]));
    }
    mounts
}

fn mount<'a>(destination: &Path, kind: &str, source: PathBuf, options: impl IntoIterator<Item = &'a str>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source))
        .set_options(Some(options.into_iter().map(str::to_owned).collect()));
    mount
}

fn linux(parts: &Parts<'_>, filter: Option<LinuxSeccomp>) -> Linux {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network as Net, Pid, Uts};
    let own_network = parts.settings.network != Network::Host;
    let namespaces = [Pid, Mount, Ipc, Uts, Cgroup].into_iter().chain(own_network.then_some(Net));
    let namespaces = namespaces.map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        if kind == Net {
            namespace.set_path(parts.network_namespace.map(Path::to_owned));
        }
        namespace
    });
    let owned = |paths: &[&str]| Some(paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.collect()))
        .set_cgroups_path(Some(Path::new("/towline").join(parts.id)))
        .set_resources(Some(resources(parts.settings.limits)))
        .set_seccomp(filter)
        .set_devices(None)
        .set_masked_paths(owned(&[
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/sys/devices/virtual/powercap",
            "/sys/firmware",
        ]))
        .set_readonly_paths(owned(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]));
    linux
}

fn resources(limits: Limits) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    if let Some(bytes) = limits.memory {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(bytes));
        resources.set_memory(Some(memory));
    }
    if let Some(quota) = limits.cpu_quota {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(quota)).set_period(Some(CPU_PERIOD));
        resources.set_cpu(Some(cpu));
    }
    if let Some(count) = limits.pids {
        let mut pids = LinuxPids::default();
        pids.set_limit(count);
        resources.set_pids(Some(pids));
    }
    resources
}

/// The process of an `exec`: the container's own, with what the user changes.
pub fn exec_process(bundle: &Path, plan: &Plan, user: &User, tty: bool) -> Result<Process> {
    let path = bundle.join("config.json");
    let refuse = |why: String| Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(why);
    let spec = Spec::load(&path).map_err(|e| refuse(e.to_string()))?;
    let mut process = spec.process().clone().ok_or_else(|| refuse("it has no process".into()))?;
    process
        .set_args(Some(plan.args.clone()))
        .set_env(Some(plan.env.clone()))
        .set_cwd(PathBuf::from(&plan.cwd))
        .set_user(spec_user(user))
        .set_terminal(Some(tty));
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(settings: &Settings) -> Spec {
        let plan = Plan {
            args: vec!["sh".into()],
            env: vec!["A=1".into()],
            cwd: "/w".into(),
            user: "u".into(),
            stop_signal: "SIGTERM".into(),
        };
        let user = User { uid: 5, gid: 6, groups: vec![7], home: "/home/u".into() };
        config(&Parts {
            id: "abc",
            plan: &plan,
            user: &user,
            settings,
            rootfs: Path::new("/r"),
            etc: Path::new("/e"),
            hostname: "h",
            network_namespace: None,
            available_capabilities: 0,
        })
    }

    fn namespaces(spec: &Spec) -> Vec<LinuxNamespaceType> {
        spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap().iter().map(LinuxNamespace::typ).collect()
    }

    #[test]
    fn a_plain_container() {
        let spec = build(&Settings::default());
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap()[..], ["A=1", "HOME=/home/u", "HOSTNAME=h"]);
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[7][..]));
        let granted = process.capabilities().as_ref().unwrap();
        assert_eq!(granted.bounding().as_ref().unwrap().len(), 14);
        assert_eq!((granted.inheritable(), granted.ambient()), (&None, &None));
        assert_eq!(namespaces(&spec).len(), 6);
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/towline/abc")));
        assert!(linux.seccomp().is_some());
        // It has to be what a runtime reads.
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn settings_reach_the_configuration() {
        let volume = |to: &str, read_only| Volume { source: "/s".into(), destination: to.into(), read_only };
        let settings = Settings {
            network: Network::Host,
            read_only: true,
            tty: true,
            no_new_privileges: true,
            seccomp: Seccomp::Unconfined,
            volumes: vec![volume("/v/inner", true), volume("/v", false), volume("/etc/hosts", false)],
            limits: Limits { memory: Some(1 << 20), cpu_quota: Some(50_000), pids: Some(9) },
            ..Settings::default()
        };
        let spec = build(&settings);
        assert!(!namespaces(&spec).contains(&LinuxNamespaceType::Network));
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.terminal(), process.no_new_privileges()), (Some(true), Some(true)));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        let mounts = spec.mounts().as_ref().unwrap();
        let at = |to: &str| mounts.iter().position(|mount| mount.destination() == Path::new(to)).unwrap();
        assert!(at("/v") < at("/v/inner"));
        assert!(mounts[at("/v/inner")].options().as_ref().unwrap().iter().any(|option| option == "ro"));
        assert_eq!(mounts[at("/etc/hosts")].source().as_deref(), Some(Path::new("/s")));
        assert_eq!(mounts.iter().filter(|mount| mount.destination() == Path::new("/etc/hosts")).count(), 1);
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        let resources = linux.resources().as_ref().unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(50_000));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 9);
    }
}
