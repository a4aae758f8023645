//! `restore`: a container from the images of `checkpoint`.
//!
//! The images carry no authority: namespaces, cgroup, limits and mounts are those of the bundle, and criu fits the processes in.
//!
//! ```text
//! runtime: private mount namespace, the bundle's root on itself (criu wants a mount point), missing mount points
//!   |--- criu swrk, put into the container's cgroup ---> restores the processes below that
//!   |<-- setup-namespaces: prestart and createRuntime hooks
//!   |<-- orphan-pts-master: the terminal's master
//!   |<-- post-restore: recorded; from here on it is a container like any other
//! ```

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use towline_sys::MountAttr;

use super::Context;
use super::build::{annotations, compile_seccomp, make_cgroup, owner, undo};
use super::checkpoint::{CriuOptions, DESCRIPTORS, Directories, NULL, external_mounts, external_name, joined};
use super::console::Receiver;
use super::delete::destroy;
use super::foreground::{Signals, wait};
use super::prepare::linux;
use crate::bundle::Bundle;
use crate::cgroup::systemd::Planned;
use crate::client::Status;
use crate::criu::rpc::{Kind as Request, Options};
use crate::criu::session::{Notification, Session, explain};
use crate::error::{Error, Outcome, Result};
use crate::hooks;
use crate::id::ContainerId;
use crate::init::schedule::Domain;
use crate::process::namespaces::{Kind, Namespaces};
use crate::procfs::start_time;
use crate::rootfs::resolve::{Kind as Target, Root};
use crate::rootfs::{copy_host_path, open_dir};
use crate::state::{ContainerDir, Record};

const LOG: &str = "restore.log";

/// What the caller of `restore` wants.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// The part that `checkpoint` has too.
    pub criu: CriuOptions,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Where to write the first process's pid.
    pub pid_file: Option<PathBuf>,
    /// Where to send the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Return when it runs.
    pub detach: bool,
    /// `TYPE:NAME` of an AppArmor profile or SELinux label in place of the saved one.
    pub lsm_profile: Option<String>,
    /// SELinux context of mounts in place of the saved one.
    pub lsm_mount_context: Option<String>,
}

/// A container that is being restored. Dropped before it is kept, nothing of it is left.
struct Restored<'a> {
    context: &'a Context,
    dir: ContainerDir,
    record: Record,
    bundle: Bundle,
    pidfd: Option<OwnedFd>,
    scope: Option<Planned>,
    kept: bool,
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        if !self.kept {
            undo(self.context, self.dir.id(), &self.record);
        }
    }
}

/// Restores container `id`. Returns the exit code of its first process, or 0 when it is left running (`detach`).
pub fn restore(context: &Context, id: &ContainerId, options: &RestoreOptions) -> Result<i32> {
    crate::criu::find()?;
    let tried = || format!("restoring container {id}");
    let bundle = Bundle::load(&options.bundle)?;
    bundle.warnings.iter().for_each(|warning| context.warn(warning));
    let terminal = bundle.spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false));
    let mut receiver = Receiver::new(terminal, options.console_socket.as_deref(), !options.detach)?;
    let signals = if options.detach { None } else { Some(Signals::hold()?) };
    private_mounts(&bundle)?;
    // Opened from here on: criu mounts below its directories, which the kernel allows only in its own mount namespace.
    let dirs = Directories::open(&options.criu)?;
    let streams = saved_streams(dirs.images.as_fd())?;

    let mut restored = begin(context, id, bundle)?;
    let (mut request, inherited) = request(&restored, options, &dirs, streams)?;
    let borrowed: Vec<BorrowedFd<'_>> = inherited.iter().map(AsFd::as_fd).collect();
    let mut session = Session::start(true, &borrowed)?;
    let scope = restored.scope.take();
    if let Some(cgroup) = &mut restored.record.cgroup {
        // What criu restores is put below the cgroups that it is in itself.
        match scope {
            Some(scope) => scope.start(cgroup, session.pid())?,
            None => cgroup.join(session.pid())?,
        }
        request.cgroup_roots = cgroups_of(context, session.pid())?;
    }
    session
        .talk(Request::Restore, Some(&request), &mut |event| notified(&mut restored, event, &mut receiver))
        .and_then(|_| session.end())
        .map_err(|error| explain(error, &dirs.log(LOG)).during(tried()))?;
    let pidfd =
        restored.pidfd.take().ok_or_else(|| Error::new(Outcome::Io, tried()).because("criu reported success and no process"))?;
    if let Some(path) = &options.pid_file {
        super::write_pid_file(path, restored.record.init_process_pid)?;
    }
    restored.kept = true;
    let Some(signals) = signals else { return Ok(0) };
    let code = wait(pidfd.as_fd(), &signals, receiver.kept())?;
    destroy(context, &restored.dir, &restored.record)?;
    Ok(code)
}

/// Takes the id and makes the cgroups.
fn begin<'a>(context: &'a Context, id: &ContainerId, bundle: Bundle) -> Result<Restored<'a>> {
    let spec = &bundle.spec;
    if linux(spec).intel_rdt().is_some() {
        return Err(
            Error::new(Outcome::Unsupported, "checking linux.intelRdt").because("restore does not put processes into groups")
        );
    }
    // The processes bring their own filters; this one is for exec.
    let filter = compile_seccomp(context, spec)?;
    let flags = Namespaces::from_config(linux(spec).namespaces().as_deref().unwrap_or_default())?.flags();
    let record = Record {
        version: Record::VERSION,
        id: id.to_string(),
        oci_version: spec.version().clone(),
        init_process_pid: 0,
        init_process_start: 0,
        created: crate::time::now_rfc3339(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        annotations: annotations(spec),
        owner: owner(),
        namespaces: flags,
        cgroup: None,
        resctrl: None,
        seccomp: filter.is_some(),
        seccomp_listener: None,
        domain: Domain::new(linux(spec))?,
        keyring: None,
    };
    let dir = context.root.create(id)?;
    let mut restored = Restored { context, dir, record, bundle, pidfd: None, scope: None, kept: false };
    restored.dir.save_config(&restored.bundle.json)?;
    if let Some(filter) = &filter {
        restored.dir.save_filter(filter)?;
    }
    (restored.record.cgroup, restored.scope) = make_cgroup(context, &restored.bundle.spec, id, &restored.record.annotations)?;
    restored.dir.save(&restored.record)?;
    Ok(restored)
}

fn request(
    restored: &Restored<'_>,
    options: &RestoreOptions,
    dirs: &Directories,
    streams: Vec<String>,
) -> Result<(Options, Vec<OwnedFd>)> {
    let spec = &restored.bundle.spec;
    let mut request = dirs.request(&options.criu, spec, LOG);
    request.root = restored.bundle.rootfs.display().to_string();
    request.evasive_devices = true;
    request.rst_sibling = true;
    request.lsm_profile = options.lsm_profile.clone();
    request.lsm_mount_context = options.lsm_mount_context.clone();
    request.external_mounts = external_mounts(spec, restored.record.cgroup.as_ref())?;
    for (_, source) in &mut request.external_mounts {
        // Sources of bind mounts are relative to the bundle.
        *source = restored.bundle.dir.join(&*source).display().to_string();
    }
    request.external_mounts.push((NULL.to_owned(), NULL.to_owned()));
    // A pipe was the caller's end of something: now it is this caller's.
    request.inherit_fds = (0..).zip(streams).filter(|(_, name)| name.starts_with("pipe:")).map(|(fd, name)| (name, fd)).collect();
    let mut inherited = Vec::new();
    for (kind, path) in joined(spec) {
        if let Some(name) = external_name(kind) {
            let file = File::open(&path).map_err(|cause| Error::io("opening namespace", &path, cause))?;
            request.inherit_fds.push((name.to_owned(), file.as_raw_fd()));
            inherited.push(OwnedFd::from(file));
        } else if kind == oci_spec::runtime::LinuxNamespaceType::Cgroup {
            return Err(Error::new(Outcome::Unsupported, "checking linux.namespaces")
                .because("criu cannot restore into a cgroup namespace that exists"));
        } else {
            request.join_namespaces.push((kind.to_string(), path.display().to_string()));
        }
    }
    Ok((request, inherited))
}

fn saved_streams(images: BorrowedFd<'_>) -> Result<Vec<String>> {
    use rustix::fs::{Mode, OFlags, openat};
    let tried = || format!("reading {DESCRIPTORS} beside the images");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(images, DESCRIPTORS, flags, Mode::empty())
        .map_err(|cause| Error::sys(tried(), cause).advise("is --image-path the directory that checkpoint was given?"))?;
    let names: Vec<String> =
        serde_json::from_reader(File::from(file)).map_err(|cause| Error::new(Outcome::BadInput, tried()).because(cause))?;
    Ok(names.into_iter().take(3).collect())
}

/// criu wants the root to be a mount point, and mount points to exist. All of it happens in a mount namespace of this process, so
/// that nothing is left on the host whatever happens.
fn private_mounts(bundle: &Bundle) -> Result<()> {
    let failed = |cause: nix::Error| Error::sys("making a mount namespace to restore from", std::io::Error::from(cause));
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(failed)?;
    let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    towline_sys::mount_setattr(open_dir("/")?.as_fd(), true, slave)
        .map_err(|cause| Error::sys("cutting the mounts to restore from off the host's", cause))?;
    let path = bundle.rootfs.display().to_string();
    let root = copy_host_path(&bundle.rootfs, true)?.attach(open_dir(&path)?.as_fd(), "the root file system on itself")?;
    let root = Root::new(root);
    let mounts: Vec<_> = bundle.spec.mounts().iter().flatten().collect();
    for mount in &mounts {
        let destination = mount.destination();
        // What lies on another mount comes back with it.
        if mounts.iter().any(|other| other.destination() != destination && destination.starts_with(other.destination())) {
            continue;
        }
        let source = mount.source().as_ref().map(|source| bundle.dir.join(source));
        let is_file = mount.typ().as_deref() == Some("bind") && source.is_some_and(|source| source.exists() && !source.is_dir());
        root.ensure(destination, if is_file { Target::File } else { Target::Directory })?;
    }
    Ok(())
}

/// Lines of `/proc/<pid>/cgroup` as criu names them: one for each controller.
fn cgroups_of(context: &Context, pid: Pid) -> Result<Vec<(String, String)>> {
    let path = format!("{}/cgroup", pid.as_raw_nonzero());
    let text = context.proc.read(&path).map_err(|cause| Error::sys(format!("reading /proc/{path}"), cause))?;
    Ok(text.lines().flat_map(cgroup_line).collect())
}

fn cgroup_line(line: &str) -> Vec<(String, String)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    controllers.split(',').map(|controller| (controller.to_owned(), path.to_owned())).collect()
}

fn notified(restored: &mut Restored<'_>, event: Notification<'_>, receiver: &mut Receiver) -> Result<()> {
    restored.context.step(&format!("criu: {}", event.name));
    match event.name {
        "setup-namespaces" => run_hooks(restored, event.pid.unwrap_or(0)),
        "orphan-pts-master" => match event.fd {
            Some(master) => receiver.take(master),
            None => Err(Error::new(Outcome::Io, "restoring the terminal").because("criu sent none")),
        },
        "post-restore" => record(restored, event.pid),
        _ => Ok(()),
    }
}

fn run_hooks(restored: &Restored<'_>, pid: i32) -> Result<()> {
    let Some(hooks) = restored.bundle.spec.hooks() else { return Ok(()) };
    let state = super::hook_state(&restored.record, Status::Creating, pid)?;
    hooks::run("prestart", hooks.prestart().as_deref().unwrap_or_default(), &state)?;
    hooks::run("createRuntime", hooks.create_runtime().as_deref().unwrap_or_default(), &state)
}

fn record(restored: &mut Restored<'_>, pid: Option<i32>) -> Result<()> {
    let tried = "recording the restored container";
    let pid = pid.ok_or_else(|| Error::new(Outcome::Io, tried).because("criu named no process"))?;
    let raw = Pid::from_raw(pid).ok_or_else(|| Error::new(Outcome::Io, tried).because("criu named no process"))?;
    restored.pidfd = Some(pidfd_open(raw, PidfdFlags::empty()).map_err(|cause| Error::sys(tried, cause))?);
    restored.record.init_process_pid = pid;
    restored.record.init_process_start = start_time(&restored.context.proc, pid)
        .ok_or_else(|| Error::new(Outcome::Io, tried).because(format!("process {pid} is gone")))?;
    // criu puts what it restores into a time namespace, for their clocks to go on.
    let has_time = restored.context.proc.read_link(&format!("{pid}/ns/time"));
    let own_time = restored.context.proc.read_link("self/ns/time");
    if has_time.is_ok() && has_time != own_time {
        restored.record.namespaces |= Kind::TIME.flag();
    }
    restored.dir.save(&restored.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_pid_cgroup_is_one_root_for_each_controller() {
        let pairs = |line| cgroup_line(line).into_iter().map(|(name, path)| format!("{name}={path}")).collect::<Vec<_>>();
        assert_eq!(pairs("4:cpu,cpuacct:/a:b"), ["cpu=/a:b", "cpuacct=/a:b"]);
        assert_eq!(pairs("1:name=systemd:/x"), ["name=systemd=/x"]);
        assert_eq!(pairs("0::/c"), ["=/c"]);
        assert!(pairs("nothing").is_empty());
    }
}
