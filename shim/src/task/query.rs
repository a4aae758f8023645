//! What containerd is told about processes.

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, PidsRequest, PidsResponse, ProcessInfo, StateRequest, StateResponse, StatsRequest,
    StatsResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;

use super::Tasks;
use crate::events::timestamp;
use crate::reaper::Exit;
use crate::rpc::Failure;
use crate::rpc::server::Reply;
use crate::rpc::status::{Answer, Code};

fn waited(exit: Exit) -> WaitResponse {
    let mut response = WaitResponse::new();
    response.exit_status = exit.code;
    response.exited_at = MessageField::some(timestamp(exit.at));
    response
}

impl Tasks {
    pub(super) fn state(&self, request: &StateRequest) -> Answer<StateResponse> {
        let container = self.container(&request.id)?;
        let mut state = container.state();
        let process = state.process(&container.id, &request.exec_id)?;
        let mut response = StateResponse::new();
        response.id.clone_from(&container.id);
        response.exec_id.clone_from(&request.exec_id);
        response.bundle = container.bundle.display().to_string();
        response.pid = process.pid.unsigned_abs();
        response.status = EnumOrUnknown::new(process.phase.status());
        response.stdin.clone_from(&process.names.stdin);
        response.stdout.clone_from(&process.names.stdout);
        response.stderr.clone_from(&process.names.stderr);
        response.terminal = process.names.terminal;
        if let Some(exit) = process.exit {
            response.exit_status = exit.code;
            response.exited_at = MessageField::some(timestamp(exit.at));
        }
        Ok(response)
    }

    /// Answers when the process has ended.
    pub(super) fn wait(&self, request: &WaitRequest, reply: Reply) {
        let container = match self.container(&request.id) {
            Ok(container) => container,
            Err(failure) => return reply.send::<WaitResponse>(Err(failure)),
        };
        let mut state = container.state();
        let exit = match state.process(&container.id, &request.exec_id) {
            Ok(process) => match process.exit {
                Some(exit) => Ok(exit),
                None => return process.waiters.push(Box::new(move |exit| reply.send(Ok(waited(exit))))),
            },
            Err(failure) => Err(failure),
        };
        drop(state);
        reply.send(exit.map(waited));
    }

    pub(super) fn pids(&self, request: &PidsRequest) -> Answer<PidsResponse> {
        let container = self.container(&request.id)?;
        let pids = container.runtime.pids(&container.id)?;
        let execs: Vec<(i32, String)> =
            container.state().execs.iter().map(|(exec, process)| (process.pid, exec.clone())).collect();
        let mut response = PidsResponse::new();
        for pid in pids {
            let mut info = ProcessInfo::new();
            info.pid = pid.unsigned_abs();
            if let Some((_, exec)) = execs.iter().find(|(of, _)| *of == pid) {
                let mut details = ProcessDetails::new();
                details.exec_id.clone_from(exec);
                let value = details.write_to_bytes().map_err(|error| Failure::new(Code::INTERNAL, error.to_string()))?;
                info.info =
                    MessageField::some(Any { type_url: "containerd.runc.v1.ProcessDetails".into(), value, ..Any::default() });
            }
            response.processes.push(info);
        }
        Ok(response)
    }

    pub(super) fn stats(&self, request: &StatsRequest) -> Answer<StatsResponse> {
        let container = self.container(&request.id)?;
        let cgroups = container.state().cgroups.clone();
        let missing = || Failure::precondition(format!("container {} has no process, and so no cgroups", container.id));
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(cgroups.ok_or_else(missing)?.metrics()?);
        Ok(response)
    }

    pub(super) fn connect(&self, request: &ConnectRequest) -> Answer<ConnectResponse> {
        let container = self.container(&request.id)?;
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = container.state().init.pid.unsigned_abs();
        env!("CARGO_PKG_VERSION").clone_into(&mut response.version);
        Ok(response)
    }
}
