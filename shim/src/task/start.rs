//! Start: of a container's first process, and of an exec.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskStart};
use containerd_shim_protos::topics::{TASK_EXEC_STARTED_EVENT_TOPIC, TASK_START_EVENT_TOPIC};
use towline_runtime::client::{self, Images};

use super::Tasks;
use super::container::{Container, answer, pidfd};
use super::process::Phase;
use crate::log;
use crate::rpc::status::{Answer, Failure};
use crate::stdio::{Owner, Prepared, Role};

impl Tasks {
    pub(super) fn start(&self, request: &StartRequest) -> Answer<StartResponse> {
        let container = self.container(&request.id)?;
        let (exec, from) = (request.exec_id.as_str(), if request.exec_id.is_empty() { Phase::Created } else { Phase::Added });
        {
            let mut state = container.state();
            let process = state.process(&container.id, exec)?;
            if process.phase != from || process.deleting {
                let name = process.phase.name();
                return Err(Failure::precondition(format!("starting {}/{exec}: it is {name}", container.id)));
            }
            process.phase = Phase::Starting;
        }
        let started = match exec {
            "" => self.start_init(&container),
            _ => self.start_exec(&container, exec),
        };
        if started.is_err() {
            if let Ok(process) = container.state().process(&container.id, exec) {
                process.phase = from;
            }
            container.notify();
        }
        if exec.is_empty() {
            // It may have ended meanwhile.
            let mut state = container.state();
            let heard = state.init.streams.as_ref().is_some_and(|streams| streams.is_heard());
            if heard && state.init.early.is_some() {
                drop(state);
                container.end_others();
            } else {
                let (exit, waiters) = (state.init.early, container.tell_init(&mut state));
                drop(state);
                container.notify();
                if let Some(exit) = exit {
                    answer(waiters, exit);
                }
            }
            container.unmount_early();
        }
        let mut response = StartResponse::new();
        response.pid = started?.unsigned_abs();
        Ok(response)
    }

    fn start_init(&self, container: &Arc<Container>) -> Answer<i32> {
        let mut event = TaskStart::new();
        event.container_id.clone_from(&container.id);
        let pid = match container.checkpoint.is_empty() {
            true => {
                container
                    .runtime
                    .start(&container.id)
                    .map_err(|error| Failure::from(error).during("OCI runtime start failed"))?;
                container.state().init.pid
            }
            false => {
                let window = self.environment.reaper.window();
                let pid = self.restore(container)?;
                container.watch(&self.environment.reaper, &window, "", pid);
                pid
            }
        };
        event.pid = pid.unsigned_abs();
        let mut state = container.state();
        state.init.phase = Phase::Running;
        container.events().publish(TASK_START_EVENT_TOPIC, &event);
        Ok(pid)
    }

    fn restore(&self, container: &Arc<Container>) -> Answer<i32> {
        let work = container.options.criu_work_path.clone();
        let images = Images {
            path: Path::new(&container.checkpoint),
            work: (!work.is_empty()).then(|| Path::new(&work)),
            tcp_established: true,
            external_unix_sockets: true,
            shell_job: container.state().init.names.terminal,
            file_locks: true,
            cgroups_mode: "",
        };
        self.bring_up(container, |options| {
            let restored = container.runtime.restore(&container.id, &container.bundle, &images, options);
            restored.map_err(|error| Failure::of_runtime("restore", error))
        })
    }

    fn start_exec(&self, container: &Arc<Container>, exec: &str) -> Answer<i32> {
        let (spec, description) = {
            let mut state = container.state();
            let process = state.process(&container.id, exec)?;
            (process.spec.clone(), process.description.clone())
        };
        let number = self.number();
        let (file, pid_file) = (container.file(&format!("exec-{number}.json")), container.file(&format!("exec-{number}.pid")));
        std::fs::write(&file, &description).map_err(|cause| towline_runtime::Error::io("writing", &file, cause))?;
        let owner = Owner { namespace: &self.environment.namespace, id: &container.id };
        let window = self.environment.reaper.window();
        let made = Prepared::open(&spec, Role::Exec, owner, &self.console()).map_err(Failure::from).and_then(|mut prepared| {
            prepared.give(container.options.io_uid, container.options.io_gid)?;
            let (stdio, console_socket) = (prepared.ends(), prepared.console());
            let options = client::Options { pid_file: Some(&pid_file), console_socket, stdio, ..client::Options::default() };
            let made = container.runtime.exec_detached(&container.id, &file, options);
            made.map(|()| prepared).map_err(|error| Failure::of_runtime("exec", error))
        });
        if let Err(error) = std::fs::remove_file(&file) {
            log::warn(format_args!("removing {}: {error}", file.display()));
        }
        let prepared = made?;
        let pid = container.read_pid(&pid_file);
        if let Err(error) = std::fs::remove_file(&pid_file) {
            log::warn(format_args!("removing {}: {error}", pid_file.display()));
        }
        let pid = pid?;
        let streams = Arc::new(prepared.start()?);
        let descriptor = pidfd(pid)?;
        {
            let mut state = container.state();
            let process = state.process(&container.id, exec)?;
            process.pid = pid;
            process.pidfd = descriptor;
            process.streams = Some(streams);
            process.phase = Phase::Running;
            let mut event = TaskExecStarted::new();
            event.container_id.clone_from(&container.id);
            exec.clone_into(&mut event.exec_id);
            event.pid = pid.unsigned_abs();
            container.events().publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
        container.watch(&self.environment.reaper, &window, exec, pid);
        Ok(pid)
    }
}
