//! `delete`: nothing of a container is left.

use std::os::fd::AsFd;
use std::time::Duration;

use super::{Container, Context};
use crate::bundle::Bundle;
use crate::cgroup::CgroupManager;
use crate::client::Status;
use crate::error::{Outcome, Result};
use crate::hooks;
use crate::id::ContainerId;
use crate::process::wait::Deadline;
use crate::state::{ContainerDir, Record};

/// How long a killed init may take to go. The kernel tears its namespaces down first.
const DEATH: Duration = Duration::from_secs(30);

/// Deletes a container. One that runs only with `force`; one that was created and never started is killed, as runc does. With
/// `force` an absent one is no error, and whatever an interrupted create left is cleared away.
pub fn delete(context: &Context, id: &ContainerId, force: bool) -> Result<()> {
    let dir = match context.root.find(id) {
        Err(error) if force && error.outcome() == Outcome::NotFound => return Ok(()),
        dir => dir?,
    };
    let Some(record) = dir.load()? else {
        if force {
            clear_unrecorded_cgroups(context, &dir);
            return context.root.remove(id);
        }
        return context.load(id).map(drop);
    };
    let container = Container { dir, record };
    match container.status(context)? {
        Status::Stopped => {}
        Status::Created => kill_init(context, &container)?,
        _ if force => kill_init(context, &container)?,
        status => {
            let why = format!("cannot delete container {id} that is not stopped: {}", status.as_str());
            return Err(container.wrong_state("deleting", &why));
        }
    }
    destroy(context, &container.dir, &container.record)
}

/// A create that was killed between making the cgroups and recording them left them empty. They follow from the configuration, so
/// making them once more finds them. What fails here must not keep the rest from being cleared away.
fn clear_unrecorded_cgroups(context: &Context, dir: &ContainerDir) {
    let Ok(json) = dir.load_config() else { return };
    let cleared = Bundle::parse("/".into(), json).and_then(|bundle| {
        let path = bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
        // A scope of systemd is recorded before it is made.
        if path.as_deref().is_some_and(crate::cgroup::names_unit) {
            return Ok(());
        }
        CgroupManager::create(path.as_deref(), dir.id().as_str(), None)?.remove()
    });
    if let Err(error) = cleared {
        context.warn(error.one_line());
    }
}

fn kill_init(context: &Context, container: &Container) -> Result<()> {
    let Some(pidfd) = container.pidfd(context)? else { return Ok(()) };
    match towline_sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        sent => sent.map_err(|cause| crate::error::Error::sys(format!("killing container {}", container.dir.id()), cause))?,
    }
    if let Some(cgroup) = &container.record.cgroup
        && cgroup.is_frozen()?
    {
        // A frozen process does not die before it is thawed.
        cgroup.kill_all()?;
    }
    Deadline::after(DEATH).wait(&[pidfd.as_fd()], &format!("the end of container {}", container.dir.id())).map(drop)
}

/// Removes everything of a container whose init is gone.
pub(super) fn destroy(context: &Context, dir: &ContainerDir, record: &Record) -> Result<()> {
    if let Some(cgroup) = &record.cgroup {
        cgroup.clear()?;
    }
    let poststop = poststop(context, dir, record);
    context.root.remove(dir.id())?;
    let Some(poststop) = poststop else { return Ok(()) };
    let state = super::hook_state(record, Status::Stopped, 0)?;
    for error in hooks::run_all("poststop", &poststop, &state) {
        // The spec wants it logged and nothing else done.
        context.warn(error.one_line());
    }
    Ok(())
}

/// The poststop hooks. A configuration that cannot be read any more must not keep the container from being deleted.
fn poststop(context: &Context, dir: &ContainerDir, record: &Record) -> Option<Vec<oci_spec::runtime::Hook>> {
    let json = match dir.load_config() {
        Ok(json) => json,
        Err(error) => {
            context.warn(error.one_line());
            return None;
        }
    };
    // Most configurations have no hooks: do not parse them for that.
    if !json.windows(10).any(|window| window == b"\"poststop\"") {
        return None;
    }
    match Bundle::parse(record.bundle.clone(), json) {
        Ok(bundle) => bundle.spec.hooks().as_ref().and_then(|hooks| hooks.poststop().clone()),
        Err(error) => {
            context.warn(error.one_line());
            None
        }
    }
}
