//! Exec: describes a further process, which is started later.

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task::TaskExecAdded;
use containerd_shim_protos::topics::TASK_EXEC_ADDED_EVENT_TOPIC;
use containerd_shim_protos::types::empty::Empty;

use super::Tasks;
use super::create::check_id;
use super::process::{Names, Phase, Process};
use crate::rpc::status::{Answer, Code, Failure};
use crate::stdio::Spec;

impl Tasks {
    pub(super) fn exec(&self, request: &ExecProcessRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        check_id(&request.exec_id)?;
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let spec = Spec::new(&names.stdin, &names.stdout, &names.stderr, names.terminal)?;
        let mut process = Process::new(names, spec, Phase::Added);
        process.description = describe(request)?;
        let mut state = container.state();
        if matches!(state.init.phase, Phase::Creating | Phase::Stopped) {
            let name = state.init.phase.name();
            return Err(Failure::precondition(format!("adding a process to container {}: it is {name}", container.id)));
        }
        if state.execs.contains_key(&request.exec_id) {
            let message = format!("there is a process {} in container {}", request.exec_id, container.id);
            return Err(Failure::new(Code::ALREADY_EXISTS, message));
        }
        state.execs.insert(request.exec_id.clone(), process);
        let mut event = TaskExecAdded::new();
        event.container_id.clone_from(&container.id);
        event.exec_id.clone_from(&request.exec_id);
        container.events().publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(Empty::new())
    }
}

/// The runtime-spec's `process`: as containerd sends it, but whether there is a terminal is said by the request.
fn describe(request: &ExecProcessRequest) -> Answer<Vec<u8>> {
    let spec = request.spec.as_ref().ok_or_else(|| Failure::invalid("the request has no process to run"))?;
    let bad = |error: serde_json::Error| Failure::invalid(format!("reading the process to run: {error}"));
    let mut process: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&spec.value).map_err(bad)?;
    process.insert("terminal".into(), request.terminal.into());
    serde_json::to_vec(&process).map_err(bad)
}
