//! `pause` and `resume`: the cgroup's freezer.

use super::{Container, Context};
use crate::cgroup::CgroupManager;
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;

/// Freezes every process of a running container.
pub fn pause(context: &Context, id: &ContainerId) -> Result<()> {
    let container = context.load(id)?;
    match container.status(context)? {
        Status::Running | Status::Created => cgroup(&container, "pausing")?.freeze(),
        status => Err(container.wrong_state("pausing", &format!("container not running: {}", status.as_str()))),
    }
}

/// Lets a paused container go on.
pub fn resume(context: &Context, id: &ContainerId) -> Result<()> {
    let container = context.load(id)?;
    let cgroup = cgroup(&container, "resuming")?;
    if !cgroup.is_frozen()? {
        return Err(container.wrong_state("resuming", "container not paused"));
    }
    cgroup.thaw()
}

fn cgroup<'a>(container: &'a Container, tried: &str) -> Result<&'a CgroupManager> {
    container.record.cgroup.as_ref().ok_or_else(|| {
        Error::new(Outcome::Unsupported, format!("{tried} container {}", container.dir.id()))
            .because("it has no cgroup of its own")
    })
}
