//! Delete: of a process that has ended (or never started), and with the first one of the container. And Shutdown, after the last.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};
use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics::TASK_DELETE_EVENT_TOPIC;
use towline_runtime::Outcome;

use super::Tasks;
use super::container::Container;
use super::process::Phase;
use crate::events::timestamp;
use crate::record::Record;
use crate::rpc::status::{Answer, Failure};
use crate::stdio::{DRAIN, Streams};
use crate::{log, rootfs};

/// How long a process that was killed may take to end: it may have much memory, or a slow disk.
const END: Duration = Duration::from_secs(30);

impl Tasks {
    pub(super) fn delete(&self, request: &DeleteRequest) -> Answer<DeleteResponse> {
        let container = self.container(&request.id)?;
        let exec = request.exec_id.as_str();
        let streams = claim(&container, exec)?;
        let deleted = match exec {
            "" => self.remove_container(&container, streams.as_deref()),
            _ => finish(&container, streams.as_deref()),
        };
        let mut state = container.state();
        let process = state.process(&container.id, exec)?;
        process.deleting = false;
        deleted?;
        let mut response = DeleteResponse::new();
        response.pid = process.pid.unsigned_abs();
        if let Some(exit) = process.exit {
            response.exit_status = exit.code;
            response.exited_at = MessageField::some(timestamp(exit.at));
        }
        if exec.is_empty() {
            let mut event = TaskDelete::new();
            event.container_id.clone_from(&container.id);
            event.pid = response.pid;
            event.exit_status = response.exit_status;
            event.exited_at = response.exited_at.clone();
            container.events().publish(TASK_DELETE_EVENT_TOPIC, &event);
            drop(state);
            self.containers().remove(&container.id);
        } else {
            state.execs.remove(exec);
        }
        Ok(response)
    }

    fn remove_container(&self, container: &Arc<Container>, streams: Option<&Streams>) -> Answer<()> {
        let never_ran = container.state().init.phase == Phase::Created;
        if never_ran {
            // It goes with the container; its end is told first.
            container.runtime.delete(&container.id, true)?;
            let pid = container.state().init.pid;
            if pid != 0 && !container.wait_while(END, |state| state.init.exit.is_none()) {
                return Err(Failure::precondition(format!("container {} does not end", container.id)));
            }
        }
        finish(container, streams)?;
        if !never_ran {
            match container.runtime.delete(&container.id, false) {
                Err(error) if error.outcome() != Outcome::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        if let Some(target) = &container.rootfs {
            if !container.wait_while(END, |state| state.unmounting) {
                return Err(Failure::precondition(format!("unmounting the root file system of {} takes too long", container.id)));
            }
            rootfs::unmount_all(target)?;
        }
        Ok(Record::remove(&container.bundle)?)
    }
}

/// Takes the process for its deletion.
fn claim(container: &Container, exec: &str) -> Answer<Option<Arc<Streams>>> {
    let mut state = container.state();
    let process = state.process(&container.id, exec)?;
    if process.deleting {
        return Err(Failure::precondition(format!("deleting {}/{exec}: somebody does already", container.id)));
    }
    if !matches!(process.phase, Phase::Added | Phase::Created | Phase::Stopped) {
        let name = process.phase.name();
        return Err(Failure::precondition(format!("deleting {}/{exec}: it is {name}", container.id)));
    }
    process.deleting = true;
    Ok(process.streams.clone())
}

/// Waits until everything that was written has gone where it goes.
fn finish(container: &Container, streams: Option<&Streams>) -> Answer<()> {
    let Some(streams) = streams else { return Ok(()) };
    let ended = streams.finish(DRAIN)?;
    if ended.lost > 0 || ended.error.is_some() {
        log::error(format_args!("container {}: output was lost: {ended:?}", container.id));
    }
    Ok(())
}
