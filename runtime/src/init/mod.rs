//! What the container's first process, and a process that joins a container, do before they become the user's program.
//!
//! Each is a list of steps of one signature, run in order; the first that fails is reported to the runtime, which undoes
//! everything. The order is the design: descriptors of the host are taken before any image is touched; all mounts are made
//! while the host's tree is still there; privileges go last.
//!
//! ```text
//! create:  prepare -> mounts -> [runtime's hooks] -> pivot -> settings -> check program -> Ready
//!          ... Recorded, then `start` connects (or the runtime itself says Start) ...
//!          startContainer hooks -> privileges -> execve
//! exec:    prepare -> check program -> Ready ... Start -> privileges -> execve
//! ```

mod console;
mod launch;
mod loopback;
pub mod netdev;
pub mod plan;
pub mod schedule;
mod settings;
mod start;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::hooks;
use crate::process::message::{Channel, Message};
use crate::process::namespaces::Kind;
use crate::process::wait::{Deadline, STEP};
use crate::rootfs::mounts::MountPlan;
use crate::rootfs::resolve::{Kind as DirectoryOrFile, Root};
use crate::rootfs::{devices, mask, open_null};
use plan::{ContainerPlan, Plan};

/// The process's own state while it goes through the steps.
pub struct Init<'a> {
    plan: &'a Plan,
    container: Option<&'a mut ContainerPlan>,
    /// To the runtime that made us; replaced by the one that starts us.
    channel: Channel,
    /// The host's verified /dev/null.
    null: Option<OwnedFd>,
    /// The container's root, until the pivot.
    root: Option<Root>,
    /// We are in our cgroups.
    in_cgroup: bool,
    /// Where the program was found.
    program: PathBuf,
    /// How long each step took, if somebody wants to know.
    steps: Vec<(&'static str, Duration)>,
}

/// One step. Its name is what an error says was being done.
type Step = (&'static str, fn(&mut Init<'_>) -> Result<()>);

const CREATE: &[Step] = &[
    ("entering the cgroups", settings::enter_cgroups),
    ("becoming root of the user namespace", settings::become_mapped_root),
    ("making the ipc namespace", settings::ipc_namespace),
    ("starting a session", settings::new_session),
    ("opening the host's /dev/null", take_null),
    ("setting time offsets", settings::time_namespace),
    ("hiding from the container", settings::hide),
    ("setting host and domain name", settings::names),
    ("bringing the loopback interface up", loopback::up),
    ("configuring network devices", netdev::configure),
    ("entering the cgroup namespace", settings::cgroup_namespace),
    ("isolating the mount namespace", isolate_mounts),
    ("attaching the root file system", attach_root),
    ("making the mounts", make_mounts),
    ("making the devices", make_devices),
    ("making the console", console::in_new_root),
    ("waiting for the cgroup", settings::in_cgroup),
    ("waiting for the runtime's hooks", runtime_hooks),
    ("running createContainer hooks", create_container_hooks),
    ("making mounts read-only and masking paths", mask_paths),
    ("entering the root file system", enter_root),
    ("reopening /dev/null", own_null),
    ("setting sysctls", settings::sysctls),
    ("joining a session keyring", settings::keyring),
    ("setting rlimits", settings::rlimits),
    ("setting scheduling attributes", schedule::apply),
    ("entering the working directory", launch::enter_cwd),
    ("finding the program", launch::find_program),
    ("reporting to the runtime", report_ready),
    ("waiting for start", start::wait),
    ("running startContainer hooks", start_container_hooks),
    ("giving up privileges", launch::drop_privileges),
];

const EXEC: &[Step] = &[
    ("entering the cgroups", settings::enter_cgroups),
    ("becoming root of the user namespace", settings::become_joined_root),
    ("starting a session", settings::new_session),
    ("making the console", console::in_joined_root),
    ("joining the session keyring", settings::keyring),
    ("setting rlimits", settings::rlimits),
    ("setting scheduling attributes", schedule::apply),
    ("entering the working directory", launch::enter_cwd),
    ("finding the program", launch::find_program),
    ("reporting to the runtime", report_ready),
    ("waiting for start", start::wait),
    ("giving up privileges", launch::drop_privileges),
];

/// Runs in the clone. Returns only with an error, which belongs to whoever waits on the channel at that time.
pub fn run(plan: &Plan, container: Option<&mut ContainerPlan>, channel: Channel) -> Result<()> {
    // Modes of what we make are meant as they are written; the program's own umask is set last.
    rustix::process::umask(rustix::fs::Mode::empty());
    die_with_runtime(true)?;
    let steps = if container.is_some() { CREATE } else { EXEC };
    let in_cgroup = plan.entrance.is_some();
    let (program, times) = (PathBuf::new(), Vec::new());
    let mut init = Init { plan, container, channel, null: None, root: None, in_cgroup, program, steps: times };
    for (name, step) in steps {
        let began = plan.trace.then(Instant::now);
        if let Err(error) = step(&mut init) {
            init.fail(&error.during(*name));
        }
        init.steps.extend(began.map(|began| (*name, began.elapsed())));
    }
    let error = launch::execute(&init);
    init.fail(&error)
}

/// Until it is ready, a process that was just made ends with the runtime: a killed `create` must not leave one
/// that waits for hooks or for a slow file system. Changing the user clears this, so it is said again after that.
fn die_with_runtime(with: bool) -> Result<()> {
    rustix::process::set_parent_process_death_signal(with.then_some(rustix::process::Signal::KILL))
        .map_err(|cause| Error::sys("setting the signal for the runtime's end", cause))
}

impl Init<'_> {
    /// Tells whoever listens and ends: 127 and 126 are what a shell would leave with.
    fn fail(&self, error: &Error) -> ! {
        // If nobody listens any more the exit code is all that can be said.
        drop(self.channel.send(&Message::Failed(error.outcome(), error.one_line()), None));
        towline_sys::exit_now(match error.outcome() {
            Outcome::CommandNotFound => 127,
            Outcome::CommandNotExecutable => 126,
            _ => 1,
        })
    }

    fn container(&mut self) -> &mut ContainerPlan {
        self.container.as_deref_mut().expect("this step is only in the list of create")
    }
}

fn take_null(init: &mut Init<'_>) -> Result<()> {
    if !init.container().masked.is_empty() {
        init.null = Some(open_null()?);
    }
    Ok(())
}

fn isolate_mounts(init: &mut Init<'_>) -> Result<()> {
    init.container().rootfs.as_ref().map_or(Ok(()), |rootfs| rootfs.isolate())
}

fn attach_root(init: &mut Init<'_>) -> Result<()> {
    if let Some(rootfs) = &mut init.container().rootfs {
        init.root = Some(rootfs.attach()?);
    }
    Ok(())
}

fn make_mounts(init: &mut Init<'_>) -> Result<()> {
    let Some(root) = init.root.take() else { return Ok(()) };
    let cgroup = init.container().cgroup_mount.take();
    for mut mount in std::mem::take(&mut init.container().mounts) {
        if mount.is_cgroup() {
            settings::in_cgroup(init)?;
        }
        mount.mount(&root, cgroup.as_ref())?;
        if mount.is_unfinished() {
            init.container().mounts.push(mount);
        }
    }
    init.root = Some(root);
    Ok(())
}

fn make_devices(init: &mut Init<'_>) -> Result<()> {
    let Some(root) = init.root.take() else { return Ok(()) };
    let container = init.container();
    if let Some(list) = &container.devices {
        let mut parent = devices::Parent::default();
        list.iter().try_for_each(|device| device.make(&root, &mut parent, container.bind_devices))?;
        devices::make_links(&root)?;
    }
    init.root = Some(root);
    Ok(())
}

fn runtime_hooks(init: &mut Init<'_>) -> Result<()> {
    let Some(longest) = init.container().runtime_hooks else { return Ok(()) };
    init.channel.send(&Message::MountsDone, None)?;
    init.channel.expect_until(&Message::HooksDone, Deadline::after(STEP.saturating_add(longest)), "the runtime's hooks")
}

fn create_container_hooks(init: &mut Init<'_>) -> Result<()> {
    let container = init.container();
    if container.create_container.is_empty() {
        return Ok(());
    }
    let state = state(container)?;
    hooks::run("createContainer", &container.create_container, &state)
}

fn start_container_hooks(init: &mut Init<'_>) -> Result<()> {
    let container = init.container();
    if container.start_container.is_empty() {
        return Ok(());
    }
    // runtime.md, lifecycle: these hooks come after `start`, when create has long finished.
    container.state.status = Status::Created;
    let state = state(container)?;
    hooks::run("startContainer", &container.start_container, &state)
}

/// The container's state as the hooks get it. Init knows its pid only as the container sees it.
fn state(container: &mut ContainerPlan) -> Result<String> {
    container.state.pid = rustix::process::getpid().as_raw_nonzero().get();
    serde_json::to_string(&container.state).map_err(|cause| Error::new(Outcome::Io, "writing the state for hooks").because(cause))
}

fn mask_paths(init: &mut Init<'_>) -> Result<()> {
    let Some(root) = init.root.take() else { return Ok(()) };
    std::mem::take(&mut init.container().mounts).into_iter().try_for_each(MountPlan::finish)?;
    let covers = init.null.take().map(mask::Covers::new);
    let container = init.container();
    if let Some(mut covers) = covers {
        container.masked.iter().try_for_each(|path| mask::mask(&root, path, &mut covers))?;
    }
    container.readonly.iter().try_for_each(|path| mask::make_readonly(&root, path))?;
    init.root = Some(root);
    Ok(())
}

fn enter_root(init: &mut Init<'_>) -> Result<()> {
    let Some(root) = init.root.take() else { return Ok(()) };
    let rootfs = init.container().rootfs.as_ref().expect("there is a root only with its plan");
    rootfs.pivot(&root)?;
    // As runc does. Where this fails (a read-only file system, a magic link), entering the directory says why.
    drop(root.ensure(&init.plan.process.cwd, DirectoryOrFile::Directory));
    init.container().rootfs.as_ref().expect("as above").finish(&root)
}

/// A standard stream that is the host's /dev/null becomes the container's: it would be the only file of the host that the program
/// has, and criu cannot save it. As in runc. Where the container has another /dev/null, it stays.
fn own_null(init: &mut Init<'_>) -> Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
    let joined = init.container().rootfs.is_none();
    let streams = [(stdin(), 0), (stdout(), 1), (stderr(), 2)];
    let is_null: Vec<i32> = streams.into_iter().filter(|(fd, _)| crate::rootfs::is_null(fd)).map(|(_, number)| number).collect();
    if joined || is_null.is_empty() {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(null) = open("/dev/null", flags, Mode::empty()) else { return Ok(()) };
    if !crate::rootfs::is_null(&null) {
        return Ok(());
    }
    for number in is_null {
        let done = match number {
            0 => dup2_stdin(&null),
            1 => dup2_stdout(&null),
            _ => dup2_stderr(&null),
        };
        done.map_err(|cause| Error::sys("reopening /dev/null in the container", cause))?;
    }
    Ok(())
}

fn report_ready(init: &mut Init<'_>) -> Result<()> {
    // From here on nothing but the channel is waited for, and that ends with the runtime too.
    die_with_runtime(false)?;
    if init.plan.trace {
        let steps = init.steps.iter().map(|(name, time)| format!("{name} {} us", time.as_micros()));
        init.channel.send(&Message::Trace(steps.collect::<Vec<_>>().join(", ")), None)?;
    }
    init.channel.send(&Message::Ready, None)
}

/// True if the process lives in a user namespace that is not the runtime's.
fn in_user_namespace(plan: &Plan) -> bool {
    plan.namespaces.contains(Kind::USER)
}
