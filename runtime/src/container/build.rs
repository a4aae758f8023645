//! Building a container up to the point where its init waits for the word to run the program. What `create` and `run` share.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::process::Pid;

use super::Context;
use super::console::Receiver;
use super::listener::Listener;
use super::prepare::{label_mounts, linux, plan_container};
use super::socket;
use crate::bundle::Bundle;
use crate::cgroup::systemd::Planned;
use crate::cgroup::{CgroupManager, Entrance};
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::hooks;
use crate::id::ContainerId;
use crate::init;
use crate::init::netdev::Target;
use crate::init::plan::{ContainerPlan, Plan, ProcessPlan};
use crate::init::schedule::Domain;
use crate::process::mappings;
use crate::process::message::Message;
use crate::process::namespaces::{Kind, Namespaces};
use crate::process::spawn::{Spawned, reap, spawn};
use crate::process::wait::{Deadline, STEP};
use crate::procfs::{ProcFs, start_time};
use crate::resctrl::Group;
use crate::seccomp;
use crate::state::{ContainerDir, Record};

/// What the caller of `create` or `run` wants.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Where to write init's pid.
    pub pid_file: Option<PathBuf>,
    /// Where to send the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Where to send a pidfd of init.
    pub pidfd_socket: Option<PathBuf>,
    /// chroot instead of pivot_root.
    pub no_pivot: bool,
    /// Leave the container in the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors from 3 up that the program gets.
    pub preserve_fds: u32,
    /// As many before those, which the program finds as sd_listen_fds(3) says.
    pub listen_fds: u32,
    /// The caller stays and takes the terminal itself.
    pub foreground: bool,
}

/// Who says when the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// A later `start`.
    Later,
    /// The caller, over the channel it has.
    Caller,
}

/// A container whose init waits. Dropped before [`Built::keep`], nothing of it is left.
pub struct Built<'a> {
    context: &'a Context,
    /// Its directory.
    pub dir: ContainerDir,
    /// Its first process; `None` only while dropping.
    pub init: Option<Spawned>,
    /// What is recorded.
    pub record: Record,
    /// The configuration.
    pub bundle: Bundle,
    /// The terminal's master, when the caller did not name a console socket.
    pub console: Option<OwnedFd>,
    /// The systemd scope that init is to be put in.
    scope: Option<Planned>,
    kept: bool,
}

impl Built<'_> {
    /// From now on the container outlives this value.
    pub fn keep(&mut self) {
        self.kept = true;
        if let Some(init) = &mut self.init {
            init.keep();
        }
    }

    /// See [`Context::hold_exe`].
    pub(super) fn release_exe(&self) {
        self.context.release_exe();
    }

    /// Init, which is there until the value is dropped.
    pub fn init(&self) -> &Spawned {
        self.init.as_ref().expect("init is taken only by drop")
    }
}

impl Drop for Built<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Kills and reaps; with it goes its pid namespace.
        drop(self.init.take());
        undo(self.context, self.dir.id(), &self.record);
    }
}

/// Removes what a failed create made. The failure itself is what the caller reports, so these can only be warnings.
pub(super) fn undo(context: &Context, id: &ContainerId, record: &Record) {
    if let Some(Err(error)) = record.resctrl.as_ref().map(Group::remove) {
        context.warn(error.one_line());
    }
    if let Some(cgroup) = &record.cgroup
        && let Err(error) = cgroup.clear()
    {
        context.warn(error.one_line());
    }
    if let Err(error) = context.root.remove(id) {
        context.warn(error.one_line());
    }
}

/// Builds container `id`.
pub fn build<'a>(context: &'a Context, id: &ContainerId, options: &BuildOptions, starter: Starter) -> Result<Built<'a>> {
    let mut bundle = Bundle::load(&options.bundle)?;
    bundle.warnings.drain(..).for_each(|warning| context.warn(warning));
    let process = bundle.spec.process().as_ref().ok_or_else(|| {
        Error::new(Outcome::BadInput, "checking process").because("it is missing, and without it there is nothing to run")
    })?;
    let (mut process, warnings) = ProcessPlan::new(process)?;
    warnings.into_iter().for_each(|warning| context.warn(warning));
    let receiver = Receiver::new(process.terminal, options.console_socket.as_deref(), options.foreground)?;
    let namespaces = Namespaces::from_config(linux(&bundle.spec).namespaces().as_deref().unwrap_or_default())?;
    context.step("read config.json");
    let seccomp = compile_seccomp(context, &bundle.spec)?;
    context.step("have the seccomp filter");
    let keyring = if options.no_new_keyring { None } else { CString::new(format!("_ses.{id}")).ok() };
    let annotations = annotations(&bundle.spec);
    process.keep_groups = keeps_groups(&annotations);
    process.announce_sockets(options.listen_fds);
    let listener = listener(&bundle.spec, seccomp.as_ref(), &annotations)?;
    let mut plan = Plan {
        process,
        namespaces,
        proc: context.proc.clone(),
        entrance: None,
        seccomp,
        sendmsg_notifies: listener.as_ref().is_some_and(|listener| listener.sendmsg_notifies),
        domain: Domain::new(linux(&bundle.spec))?,
        keyring,
        preserve_fds: options.preserve_fds.saturating_add(options.listen_fds),
        trace: context.is_traced(),
    };
    let record = Record { annotations, seccomp_listener: listener, ..new_record(id, &bundle, &plan) };
    let mut container = plan_container(&bundle, options, &plan, record.to_state(Status::Creating))?;
    label_mounts(&bundle.spec, &record.annotations, &mut container.mounts)?.into_iter().for_each(|warning| context.warn(warning));

    let dir = context.root.create(id)?;
    let mut built = Built { context, dir, init: None, record, bundle, console: None, scope: None, kept: false };
    built.dir.save_config(&built.bundle.json)?;
    if let Some(filter) = &plan.seccomp {
        built.dir.save_filter(filter)?;
    }
    (built.record.cgroup, built.scope) = make_cgroup(context, &built.bundle.spec, id, &built.record.annotations)?;
    if let Some(config) = linux(&built.bundle.spec).intel_rdt() {
        built.record.resctrl = Some(Group::create(config, id.as_str())?);
    }
    built.dir.save(&built.record)?;
    context.step("made state and cgroups");
    if starter == Starter::Later {
        container.start_socket = Some(built.dir.listen_start()?);
        container.exe = context.exe.take();
    }
    let own_cgroup_view = plan.namespaces.makes(Kind::CGROUP);
    container.cgroup_mount = built.record.cgroup.as_ref().map(|cgroup| cgroup.mount_parts(own_cgroup_view));
    // A scope has no cgroup to enter before there is a process for it.
    let cgroup = built.record.cgroup.as_ref().filter(|_| built.scope.is_none());
    plan.entrance = cgroup.map(CgroupManager::entrance).transpose()?;
    start_init(&mut built, &plan, &mut container).map_err(|error| last_words(&mut built, error))?;
    context.step(&format!("made init, process {}", built.init().pid));
    built.console = converse(&mut built, receiver)?;
    finish(&mut built, options)?;
    context.step("recorded the container");
    Ok(built)
}

pub(super) fn compile_seccomp(context: &Context, spec: &Spec) -> Result<Option<seccomp::Filter>> {
    let Some(profile) = linux(spec).seccomp() else { return Ok(None) };
    match &context.filters {
        Some(cache) => cache.filter(profile, |error| context.warn(error.one_line())),
        None => seccomp::compile(profile),
    }
    .map(Some)
}

/// Who answers for a filter's notifications, if it has any.
fn listener(spec: &Spec, filter: Option<&seccomp::Filter>, annotations: &BTreeMap<String, String>) -> Result<Option<Listener>> {
    match linux(spec).seccomp() {
        Some(profile) if filter.is_some_and(seccomp::Filter::wants_listener) => Listener::new(profile, annotations).map(Some),
        _ => Ok(None),
    }
}

/// Clones init and puts it into its user namespace and cgroup.
fn start_init(built: &mut Built<'_>, plan: &Plan, container: &mut ContainerPlan) -> Result<()> {
    let clone_into = plan.entrance.as_ref().and_then(Entrance::clone_into);
    let context = built.context;
    let spawned = spawn(&plan.namespaces, clone_into, |channel| {
        context.release_exe();
        init::run(plan, Some(container), channel)
    })?;
    // The copies made for init are init's now.
    container.start_socket = None;
    container.exe = None;
    let pid = spawned.pid;
    let spawned = built.init.insert(spawned);
    if plan.namespaces.makes(Kind::USER) {
        let linux = linux(&built.bundle.spec);
        let map = |list: &Option<Vec<_>>| list.clone().unwrap_or_default();
        mappings::write(&plan.proc, pid, &map(linux.uid_mappings()), &map(linux.gid_mappings()))?;
        spawned.channel.send(&Message::Mapped, None)?;
    }
    if !container.net_devices.is_empty() {
        let joined = plan.namespaces.joins(Kind::NET).then(|| plan.namespaces.joined(Kind::NET)).transpose()?;
        let target = joined.map_or(Target::Pid(pid), Target::Namespace);
        container.net_devices.iter().try_for_each(|device| device.give(&target))?;
        spawned.channel.send(&Message::DevicesMoved, None)?;
    }
    if let Some(group) = &built.record.resctrl {
        group.join(pid)?;
    }
    if plan.entrance.is_none() {
        let init = Pid::from_raw(pid).expect("a child has a positive pid");
        if let (Some(cgroup), Some(scope)) = (built.record.cgroup.as_mut(), built.scope.take()) {
            scope.start(cgroup, init)?;
            cgroup.take_warnings().into_iter().for_each(|warning| built.context.warn(warning));
        }
        spawned.channel.send(&Message::InCgroup, None)?;
    }
    set_oom_score(built.context, &plan.proc, pid, plan.process.oom_score_adj)
}

/// Init may fail while we still prepare it; then a write to it or to its cgroup fails too, and what it said is the better error.
fn last_words(built: &mut Built<'_>, error: Error) -> Error {
    const PATIENCE: Duration = Duration::from_millis(200);
    let Some(init) = &built.init else { return error };
    loop {
        match init.channel.receive_until(Deadline::after(PATIENCE), "init's last words") {
            Ok(Some((Message::Failed(outcome, text), _))) => {
                return Error::new(outcome, format!("creating container {}", built.dir.id())).because(text);
            }
            Ok(Some(_)) => {}
            Ok(None) => return init_died(built),
            Err(_) => return error,
        }
    }
}

/// `process.oomScoreAdj`. Lowering it is the privilege of CAP_SYS_RESOURCE: without that the process keeps the runtime's.
pub(super) fn set_oom_score(context: &Context, proc: &ProcFs, pid: i32, score: Option<i32>) -> Result<()> {
    let Some(score) = score else { return Ok(()) };
    let file = format!("{pid}/oom_score_adj");
    match proc.try_write(&file, &score.to_string()) {
        Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
            let now = proc.read(&file).unwrap_or_default();
            if now.trim().parse() != Ok(score) {
                context.warn(format!(
                    "process.oomScoreAdj {score} is lower than the runtime's own ({}), and lowering it needs CAP_SYS_RESOURCE, \
                     which the runtime does not have: the process keeps the runtime's value",
                    now.trim()
                ));
            }
            Ok(())
        }
        written => written.map_err(|cause| Error::sys(format!("setting process.oomScoreAdj to {score}"), cause)),
    }
}

/// Answers init until it is ready. Returns the terminal's master if nobody else got it.
fn converse(built: &mut Built<'_>, mut receiver: Receiver) -> Result<Option<OwnedFd>> {
    let init = built.init.as_ref().expect("start_init made it");
    // Init runs these, each with a timeout of its own.
    let hooks = built.bundle.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_deref()).unwrap_or_default();
    let step = STEP.saturating_add(hooks::longest(hooks));
    loop {
        match init.channel.receive_until(Deadline::after(step), "the container's init")? {
            Some((Message::Ready, _)) => return Ok(receiver.kept()),
            Some((Message::Console, Some(master))) => receiver.take(master)?,
            Some((Message::Warning(text), _)) => built.context.warn(text),
            Some((Message::Trace(text), _)) => built.context.step(&format!("init is ready: {text}")),
            Some((Message::MountsDone, _)) => {
                run_early_hooks(built, init.pid)?;
                init.channel.send(&Message::HooksDone, None)?;
            }
            Some((Message::Failed(outcome, text), _)) => {
                return Err(Error::new(outcome, format!("creating container {}", built.dir.id())).because(text));
            }
            Some((other, _)) => {
                return Err(Error::new(Outcome::Io, "waiting for the container's init").because(format!("it sent {other:?}")));
            }
            None => return Err(init_died(built)),
        }
    }
}

fn init_died(built: &mut Built<'_>) -> Error {
    let status = built.init.as_ref().and_then(|init| reap(init.pidfd.as_fd()).ok().flatten());
    let error = Error::new(Outcome::Io, format!("creating container {}", built.dir.id()));
    match status {
        Some(137) => error.because("init was killed").advise("is the memory limit too small to start in?"),
        Some(code) => error.because(format!("init ended with exit code {code} and said nothing")),
        None => error.because("init ended and said nothing"),
    }
}

/// prestart and createRuntime: in the runtime's namespaces, when the container's exist and before the pivot.
fn run_early_hooks(built: &Built<'_>, pid: i32) -> Result<()> {
    let Some(hooks) = built.bundle.spec.hooks() else { return Ok(()) };
    let state = super::hook_state(&built.record, Status::Creating, pid)?;
    let prestart = hooks.prestart();
    hooks::run("prestart", prestart.as_deref().unwrap_or_default(), &state)?;
    hooks::run("createRuntime", hooks.create_runtime().as_deref().unwrap_or_default(), &state)
}

/// Records the container and writes the pid file.
fn finish(built: &mut Built<'_>, options: &BuildOptions) -> Result<()> {
    let pid = built.init().pid;
    built.record.init_process_pid = pid;
    built.record.init_process_start = start_time(&built.context.proc, pid).ok_or_else(|| init_died(built))?;
    built.dir.save(&built.record)?;
    let annotated = built.record.annotations.get(PIDFD_RECEIVER).map(PathBuf::from);
    if let Some(path) = options.pidfd_socket.clone().or(annotated) {
        send_pidfd(&path, built.init(), "standard")?;
    }
    options.pid_file.as_deref().map_or(Ok(()), |path| super::write_pid_file(path, pid))
}

/// crun's annotation for what `--pidfd-socket` is in runc.
const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";

/// `--pidfd-socket`: gives the caller a pidfd of the process. `text` goes along, as with runc: "standard", and "setns" of exec.
pub(super) fn send_pidfd(path: &Path, process: &Spawned, text: &str) -> Result<()> {
    const WHAT: &str = "pidfd socket";
    socket::hand_over(&socket::open(path, WHAT)?, text.as_bytes(), process.pidfd.as_fd(), WHAT)
}

fn new_record(id: &ContainerId, bundle: &Bundle, plan: &Plan) -> Record {
    Record {
        version: Record::VERSION,
        id: id.to_string(),
        oci_version: bundle.spec.version().clone(),
        init_process_pid: 0,
        init_process_start: 0,
        created: crate::time::now_rfc3339(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        annotations: BTreeMap::new(),
        owner: owner(),
        namespaces: plan.namespaces.flags(),
        cgroup: None,
        resctrl: None,
        seccomp: plan.seccomp.is_some(),
        seccomp_listener: None,
        domain: plan.domain.clone(),
        keyring: plan.keyring.as_ref().map(|name| name.to_string_lossy().into_owned()),
    }
}

/// crun's annotation for shared directories of groups that the container does not map.
pub(super) fn keeps_groups(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get("run.oci.keep_original_groups").is_some_and(|value| value == "1" || value == "true")
}

pub(super) fn annotations(spec: &Spec) -> BTreeMap<String, String> {
    spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub(super) fn owner() -> String {
    let uid = rustix::process::getuid();
    if uid.is_root() { "root".to_owned() } else { uid.as_raw().to_string() }
}

/// The container's cgroups; those of a systemd scope are there when the scope is started with init in it.
pub(super) fn make_cgroup(
    context: &Context,
    spec: &Spec,
    id: &ContainerId,
    annotations: &BTreeMap<String, String>,
) -> Result<(Option<CgroupManager>, Option<Planned>)> {
    if !context.cgroups {
        return Ok((None, None));
    }
    let linux = linux(spec);
    let (path, resources) = (linux.cgroups_path().as_deref(), linux.resources().as_ref());
    if let Some(systemd) = &context.systemd {
        return CgroupManager::plan_unit(systemd, path, id.as_str(), resources, annotations)
            .map(|(cgroup, scope)| (Some(cgroup), Some(scope)));
    }
    match CgroupManager::create(path, id.as_str(), resources) {
        Ok(mut cgroup) => {
            cgroup.take_warnings().into_iter().for_each(|warning| context.warn(warning));
            Ok((Some(cgroup), None))
        }
        // A limit that the configuration asks for and nobody sets is no limit: only without one it goes on.
        Err(error)
            if context.rootless
                && error.outcome() == Outcome::Denied
                && !linux.resources().as_ref().is_some_and(CgroupManager::asks_for_limits) =>
        {
            // Nobody misses a cgroup that nobody has asked for.
            if path.is_some() {
                context.warn(format!("the container runs without a cgroup: {}", error.one_line()));
            }
            Ok((None, None))
        }
        Err(error) => Err(error),
    }
}
