//! `list` and `ps`: what is there.

use super::Context;
use crate::client::State;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;

/// The states of all containers. One that is being created or deleted meanwhile is left out.
pub fn list(context: &Context) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for id in context.root.ids()? {
        match context.state(&id) {
            Ok(state) => states.push(state),
            Err(error) if matches!(error.outcome(), Outcome::NotFound | Outcome::WrongState) => {}
            Err(error) => context.warn(error.one_line()),
        }
    }
    Ok(states)
}

/// The pids (on the host) of a container's processes, sorted.
pub fn pids(context: &Context, id: &ContainerId) -> Result<Vec<i32>> {
    let container = context.load(id)?;
    let Some(cgroup) = &container.record.cgroup else {
        return Err(Error::new(Outcome::Unsupported, format!("listing the processes of container {id}"))
            .because("it has no cgroup of its own"));
    };
    let mut pids: Vec<i32> = cgroup.pids()?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    pids.sort_unstable();
    Ok(pids)
}
