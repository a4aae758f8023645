//! `delete`: nothing of a container is left.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Container, Context, pidfd_of};
use crate::bundle::Bundle;
use crate::cgroup::CgroupManager;
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
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
    let record = match dir.load() {
        Ok(Some(record)) => record,
        Ok(None) if !force => return context.load(id).map(drop),
        Ok(None) => {
            clear_unrecorded(context, &dir, None);
            return context.root.remove(id);
        }
        Err(error) if !force => {
            return Err(error.advise("`delete --force` ends what it can still find of the container and removes its state"));
        }
        Err(error) => {
            context.warn(format!("{}; deleting what can still be found", error.one_line()));
            let salvaged = dir.salvage();
            if let Some(pidfd) = pidfd_of(context, salvaged.init.0, salvaged.init.1)? {
                kill(&pidfd, salvaged.cgroup.as_ref(), id)?;
            }
            clear_unrecorded(context, &dir, Some(salvaged.cgroup));
            return context.root.remove(id);
        }
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

/// Removes the cgroups of a container without a usable record: they follow from the configuration. A create that was killed before
/// it could record them left them empty, and they may be somebody else's, so nothing is killed in them; `damaged` says that there
/// was a record, and what it still tells. What fails here must not keep the rest from being cleared away.
fn clear_unrecorded(context: &Context, dir: &ContainerDir, damaged: Option<Option<CgroupManager>>) {
    let from_config = || {
        let bundle = Bundle::parse("/".into(), dir.load_config()?)?;
        let path = bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
        // A scope of systemd is recorded before it is made.
        if path.as_deref().is_some_and(crate::cgroup::names_unit) {
            return Err(Error::new(Outcome::NotFound, format!("finding the scope of container {}", dir.id()))
                .because("its record is damaged")
                .advise("`systemctl stop` ends it"));
        }
        CgroupManager::find(path.as_deref(), dir.id().as_str())
    };
    let was_recorded = damaged.is_some();
    let found = match damaged.flatten() {
        Some(cgroup) => Ok(cgroup),
        // Without a configuration either, the default place is all that can be tried.
        None if was_recorded => from_config().or_else(|_| CgroupManager::find(None, dir.id().as_str())),
        None => from_config(),
    };
    let cleared = found.and_then(|cgroup| {
        if was_recorded {
            cgroup.kill_all()?;
        }
        cgroup.remove()
    });
    match cleared {
        // Killed before it kept the configuration, which comes before the cgroups.
        Err(error) if error.outcome() == Outcome::NotFound && !was_recorded => {}
        Err(error) => context.warn(error.one_line()),
        Ok(()) => {}
    }
}

fn kill_init(context: &Context, container: &Container) -> Result<()> {
    let Some(pidfd) = container.pidfd(context)? else { return Ok(()) };
    kill(&pidfd, container.record.cgroup.as_ref(), container.dir.id())
}

/// Kills init and waits for its end.
pub(super) fn kill(pidfd: &OwnedFd, cgroup: Option<&CgroupManager>, id: &ContainerId) -> Result<()> {
    match towline_sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        sent => sent.map_err(|cause| Error::sys(format!("killing container {id}"), cause))?,
    }
    if let Some(cgroup) = cgroup
        && cgroup.is_frozen()?
    {
        // A frozen process does not die before it is thawed.
        cgroup.kill_all()?;
    }
    Deadline::after(DEATH).wait(&[pidfd.as_fd()], &format!("the end of container {id}")).map(drop)
}

/// Removes everything of a container whose init is gone.
pub(super) fn destroy(context: &Context, dir: &ContainerDir, record: &Record) -> Result<()> {
    if let Some(cgroup) = &record.cgroup {
        cgroup.clear()?;
    }
    if let Some(group) = &record.resctrl {
        group.remove()?;
    }
    context.step("removed the cgroups");
    let poststop = poststop(context, dir, record);
    context.root.remove(dir.id())?;
    context.step("removed the state");
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
