//! `exec`: one more process in a running container.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilitiesBuilder, Process, User};
use rustix::thread::sched_setaffinity;

use super::build::{keeps_groups, send_pidfd, set_oom_score};
use super::console::Receiver;
use super::foreground::{Signals, wait};
use super::start::await_program;
use super::{Container, Context};
use crate::bundle::{Bundle, load_process};
use crate::cgroup::Entrance;
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::init;
use crate::init::plan::{Plan, ProcessPlan};
use crate::process::message::Message;
use crate::process::namespaces::{Kind, Namespaces};
use crate::process::spawn::{Spawned, spawn};

/// What the caller of `exec` wants.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// A file with the process as JSON; without it the process is the container's, changed by what follows.
    pub process: Option<PathBuf>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Another working directory.
    pub cwd: Option<PathBuf>,
    /// More variables.
    pub env: Vec<String>,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// More groups.
    pub additional_gids: Vec<u32>,
    /// More capabilities.
    pub caps: Vec<String>,
    /// Set no_new_privs.
    pub no_new_privileges: bool,
    /// With a terminal.
    pub tty: bool,
    /// Return when the program runs.
    pub detach: bool,
    /// Where to write the process's pid.
    pub pid_file: Option<PathBuf>,
    /// Where to send the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Where to send a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors from 3 up that the program gets.
    pub preserve_fds: u32,
    /// Another `process.selinuxLabel`.
    pub process_label: Option<String>,
    /// Another `process.apparmorProfile`.
    pub apparmor: Option<String>,
    /// Existing cgroups below the container's: `[CONTROLLER[,CONTROLLER]:]PATH`.
    pub cgroup: Vec<String>,
    /// Also in a paused container, where the process waits for `resume`.
    pub ignore_paused: bool,
}

/// Runs a process in container `id`. Returns its exit code, or 0 when it is left running (`detach`).
pub fn exec(context: &Context, id: &ContainerId, options: &ExecOptions) -> Result<i32> {
    let container = context.load(id)?;
    match container.status(context)? {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => {
            let error = container.wrong_state("exec in", "cannot exec in a paused container");
            return Err(error.advise("resume it, or wait for that with --ignore-paused"));
        }
        Status::Stopped => return Err(container.wrong_state("exec in", "cannot exec in a container that is not running")),
        Status::Creating => return Err(container.wrong_state("exec in", "it is still being created")),
    }
    let process = describe(context, &container, options)?;
    let (mut process, warnings) = ProcessPlan::new(&process)?;
    process.keep_groups = keeps_groups(&container.record.annotations);
    warnings.into_iter().for_each(|warning| context.warn(warning));
    let receiver = Receiver::new(process.terminal, options.console_socket.as_deref(), !options.detach)?;
    let signals = if options.detach { None } else { Some(Signals::hold()?) };
    let pidfd = container
        .pidfd(context)?
        .ok_or_else(|| container.wrong_state("exec in", "cannot exec in a container that is not running"))?;
    let plan = plan(context, &container, process, pidfd, options)?;

    // Before it joins: from then on processes of the container can see it (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|cause| Error::sys("making the runtime undumpable", cause))?;
    let mut spawned = start_process(context, &container, &plan)?;
    let console = converse(context, &spawned, receiver, id)?;
    if let Some(path) = &options.pidfd_socket {
        send_pidfd(path, &spawned, "setns")?;
    }
    if let Some(path) = &options.pid_file {
        super::write_pid_file(path, spawned.pid)?;
    }
    spawned.channel.send(&Message::Start, None)?;
    await_program(&spawned.channel, &container.record, spawned.pid, Status::Running)?;
    context.release_exe();
    spawned.keep();
    match signals {
        Some(signals) => wait(spawned.pidfd.as_fd(), &signals, console),
        None => Ok(0),
    }
}

fn plan(context: &Context, container: &Container, process: ProcessPlan, pidfd: OwnedFd, options: &ExecOptions) -> Result<Plan> {
    // Its time namespace is the one its children have anyway; a process joins it by itself only when it is the container's own.
    let namespaces = container.record.namespaces | Kind::MOUNT.flag();
    let what = format!("the namespaces of container {}", container.dir.id());
    let entrance = match &container.record.cgroup {
        Some(cgroup) if options.cgroup.is_empty() => Some(cgroup.entrance()?),
        Some(cgroup) => Some(cgroup.below(&options.cgroup)?.entrance()?),
        None if options.cgroup.is_empty() => None,
        None => return Err(container.wrong_state("exec in", "--cgroup: the container has no cgroup")),
    };
    Ok(Plan {
        process,
        namespaces: Namespaces::of_process(pidfd, namespaces, what),
        proc: context.proc.clone(),
        entrance,
        seccomp: if container.record.seccomp { Some(container.dir.load_filter()?) } else { None },
        sendmsg_notifies: container.record.seccomp_listener.as_ref().is_some_and(|listener| listener.sendmsg_notifies),
        domain: container.record.domain.clone(),
        keyring: container.record.keyring.as_deref().and_then(|name| CString::new(name).ok()),
        preserve_fds: options.preserve_fds,
        trace: context.is_traced(),
    })
}

fn start_process(context: &Context, container: &Container, plan: &Plan) -> Result<Spawned> {
    let clone_into = plan.entrance.as_ref().and_then(Entrance::clone_into);
    if let Some(cpus) = &plan.process.schedule.initial_cpus {
        // The process inherits it. The runtime itself has nothing to do but wait from here on.
        sched_setaffinity(None, cpus).map_err(|cause| Error::sys("setting process.execCPUAffinity.initial", cause))?;
    }
    let start = |dir| {
        spawn(&plan.namespaces, dir, |channel| {
            context.release_exe();
            init::run(plan, None, channel)
        })
    };
    let spawned = match (start(clone_into), &container.record.cgroup) {
        (Err(error), Some(cgroup)) if error.outcome() == Outcome::Busy && clone_into.is_some() => {
            let file = format!("{}/cgroup", container.record.init_process_pid);
            let of_init = plan.proc.read(&file).map_err(|cause| Error::io("reading", format!("/proc/{file}"), cause))?;
            let Some(dir) = cgroup.unified_of_init(&of_init)? else { return Err(error) };
            start(Some(dir.as_fd()))?
        }
        (spawned, _) => spawned?,
    };
    if let Some(group) = &container.record.resctrl {
        group.join(spawned.pid)?;
    }
    set_oom_score(context, &plan.proc, spawned.pid, plan.process.oom_score_adj)?;
    Ok(spawned)
}

fn converse(context: &Context, spawned: &Spawned, mut receiver: Receiver, id: &ContainerId) -> Result<Option<OwnedFd>> {
    let tried = || format!("exec in container {id}");
    loop {
        match spawned.channel.receive("the process in the container")? {
            Some((Message::Ready, _)) => return Ok(receiver.kept()),
            Some((Message::Console, Some(master))) => receiver.take(master)?,
            Some((Message::Warning(text), _)) => context.warn(text),
            Some((Message::Trace(text), _)) => context.step(&format!("the process is ready: {text}")),
            Some((Message::Failed(outcome, text), _)) => return Err(Error::new(outcome, tried()).because(text)),
            Some((other, _)) => return Err(Error::new(Outcome::Io, tried()).because(format!("it sent {other:?}"))),
            None => return Err(Error::new(Outcome::Io, tried()).because("the process ended and said nothing")),
        }
    }
}

/// The process to run: from the file, or the container's own with the caller's changes.
fn describe(context: &Context, container: &Container, options: &ExecOptions) -> Result<Process> {
    if let Some(path) = &options.process {
        let (process, warnings) = load_process(path)?;
        warnings.into_iter().for_each(|warning| context.warn(warning));
        return Ok(process);
    }
    let bundle = Bundle::parse(container.record.bundle.clone(), container.dir.load_config()?)?;
    let mut process = bundle.spec.process().clone().ok_or_else(|| {
        Error::new(Outcome::BadInput, "finding the container's process").because("config.json has none; use --process")
    })?;
    process.set_args(Some(options.args.clone()));
    process.set_terminal(Some(options.tty));
    process.set_console_size(None);
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(user) = &options.user {
        let (uid, gid) = parse_user(user)?;
        let mut changed = User::default();
        changed.set_uid(uid);
        changed.set_gid(gid.unwrap_or(0));
        process.set_user(changed);
    }
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    groups.extend(&options.additional_gids);
    process.user_mut().set_additional_gids(Some(groups));
    if options.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(label) = &options.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    add_capabilities(&mut process, &options.caps)?;
    Ok(process)
}

/// `UID[:GID]`, decimal numbers below 2^32-1 and nothing else: names, signs, leading zeros and empty parts are refused
/// (CVE-2026-30892).
pub fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str, name: &str| {
        let canonical = part == "0" || !part.starts_with('0');
        let value = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u32>().ok()).flatten();
        // The largest number is -1, which setuid takes for "leave it as it is".
        value.filter(|value| canonical && *value != u32::MAX).ok_or_else(|| {
            Error::new(Outcome::BadInput, format!("reading --user {text:?}"))
                .because(format!("its {name} must be a decimal number from 0 to {}", u32::MAX - 1))
        })
    };
    match text.split_once(':') {
        None => Ok((number(text, "uid")?, None)),
        Some((uid, gid)) => Ok((number(uid, "uid")?, Some(number(gid, "gid")?))),
    }
}

/// `--cap`: bounding, effective and permitted; never inheritable or ambient (CVE-2022-29162).
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut more = Capabilities::new();
    for name in names {
        let capability: Capability = serde_json::from_value(name.as_str().into())
            .map_err(|_| Error::new(Outcome::BadInput, format!("reading --cap {name:?}")).because("no such capability"))?;
        more.insert(capability);
    }
    let old = process.capabilities().clone();
    let with = |set: Option<Capabilities>| {
        let mut set = set.unwrap_or_default();
        set.extend(more.iter().copied());
        set
    };
    let of =
        |pick: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<Capabilities>| old.as_ref().and_then(|old| pick(old).clone());
    let built = LinuxCapabilitiesBuilder::default()
        .bounding(with(of(|old| old.bounding())))
        .effective(with(of(|old| old.effective())))
        .permitted(with(of(|old| old.permitted())))
        .inheritable(of(|old| old.inheritable()).unwrap_or_default())
        .ambient(of(|old| old.ambient()).unwrap_or_default())
        .build()
        .map_err(|cause| Error::new(Outcome::BadInput, "adding --cap").because(cause))?;
    process.set_capabilities(Some(built));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("0").unwrap(), (0, None));
        assert_eq!(parse_user("1000:50").unwrap(), (1000, Some(50)));
        assert_eq!(parse_user("4294967294:0").unwrap(), (4_294_967_294, Some(0)));
        for bad in
            ["", ":", "1:", ":1", "01", "1:00", "4294967295", "4294967296", "-1", "+1", "root", "1:root", "1 ", "1:2:3", "0x1"]
        {
            assert!(parse_user(bad).is_err(), "{bad:?}");
        }
    }
}
