//! The Sandbox API: a pod whose first process is that of the sandbox's own bundle, as containerd 2.x made it of the sandbox's specification.
//!
//! The sandbox is a container like others, of the sandbox's id and without streams, so everything that is true of them is true of it: its
//! end is told by events, `delete` cleans up after it, and it can be asked for by the Task API.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, KillRequest, StartRequest, StatsRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::types::empty::Empty;

use super::Tasks;
use super::container::Container;
use super::process::Phase;
use super::service::decode;
use crate::events::timestamp;
use crate::reaper::Exit;
use crate::rpc::server::Reply;
use crate::rpc::status::{Answer, Code, Failure};

/// The name of the service.
pub const NAME: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// How long a sandbox has after SIGTERM when the request does not say, and how long after SIGKILL.
const STOP: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30));

/// What containerd knows states by.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

impl Tasks {
    pub(super) fn call_sandbox(&self, method: &str, payload: &[u8], reply: Reply) {
        match method {
            "CreateSandbox" => reply.send(decode(payload).and_then(|request| self.create_sandbox(request))),
            "StartSandbox" => reply.send(decode(payload).and_then(|request| self.start_sandbox(&request))),
            "Platform" => reply.send(decode(payload).map(|_: PlatformRequest| platform())),
            "StopSandbox" => reply.send(decode(payload).and_then(|request| self.stop_sandbox(&request))),
            "WaitSandbox" => match decode(payload) {
                Ok(request) => self.wait_sandbox(&request, reply),
                Err(failure) => reply.send::<WaitSandboxResponse>(Err(failure)),
            },
            "SandboxStatus" => reply.send(decode(payload).and_then(|request| self.sandbox_status(&request))),
            "PingSandbox" => reply.send(
                decode(payload).and_then(|request: PingRequest| self.container(&request.sandbox_id).map(|_| PingResponse::new())),
            ),
            "ShutdownSandbox" => self.shut_sandbox_down(payload, reply),
            "SandboxMetrics" => reply.send(decode(payload).and_then(|request| self.sandbox_metrics(&request))),
            _ => reply.send::<Empty>(Err(Failure::new(Code::UNIMPLEMENTED, format!("{NAME} has no method {method:.100}")))),
        }
    }

    fn create_sandbox(&self, request: CreateSandboxRequest) -> Answer<CreateSandboxResponse> {
        let mut create = CreateTaskRequest::new();
        create.id = request.sandbox_id;
        create.bundle = request.bundle_path;
        create.rootfs = request.rootfs;
        create.options = request.options;
        self.create(&create).map(|_| CreateSandboxResponse::new())
    }

    fn start_sandbox(&self, request: &StartSandboxRequest) -> Answer<StartSandboxResponse> {
        let mut start = StartRequest::new();
        start.id.clone_from(&request.sandbox_id);
        let mut response = StartSandboxResponse::new();
        response.pid = self.start(&start)?.pid;
        response.created_at = MessageField::some(timestamp(SystemTime::now()));
        Ok(response)
    }

    fn stop_sandbox(&self, request: &StopSandboxRequest) -> Answer<StopSandboxResponse> {
        let container = self.container(&request.sandbox_id)?;
        let gentle = match request.timeout_secs {
            0 => STOP.0,
            seconds => Duration::from_secs(seconds.into()),
        };
        for (signal, wait) in [(libc::SIGTERM, gentle), (libc::SIGKILL, STOP.1)] {
            if self.signal_sandbox(&container, signal)? || container.wait_while(wait, |state| state.init.exit.is_none()) {
                return Ok(StopSandboxResponse::new());
            }
        }
        Err(Failure::new(Code::DEADLINE_EXCEEDED, format!("sandbox {} does not end", container.id)))
    }

    /// Sends a signal. Whether there is nobody for it any more.
    fn signal_sandbox(&self, container: &Container, signal: i32) -> Answer<bool> {
        let mut kill = KillRequest::new();
        kill.id.clone_from(&container.id);
        kill.signal = signal.unsigned_abs();
        match self.kill(&kill) {
            Err(failure) if failure.code == Code::NOT_FOUND => Ok(true),
            other => other.map(|_| false),
        }
    }

    fn wait_sandbox(&self, request: &WaitSandboxRequest, reply: Reply) {
        let answer = |exit: Exit| {
            let mut response = WaitSandboxResponse::new();
            response.exit_status = exit.code;
            response.exited_at = MessageField::some(timestamp(exit.at));
            response
        };
        let container = match self.container(&request.sandbox_id) {
            Ok(container) => container,
            Err(failure) => return reply.send::<WaitSandboxResponse>(Err(failure)),
        };
        let mut state = container.state();
        match state.init.exit {
            None => state.init.waiters.push(Box::new(move |exit| reply.send(Ok(answer(exit))))),
            Some(exit) => {
                drop(state);
                reply.send(Ok(answer(exit)));
            }
        }
    }

    fn sandbox_status(&self, request: &SandboxStatusRequest) -> Answer<SandboxStatusResponse> {
        let container = self.container(&request.sandbox_id)?;
        let state = container.state();
        let mut response = SandboxStatusResponse::new();
        response.sandbox_id.clone_from(&container.id);
        response.pid = state.init.pid.unsigned_abs();
        response.state = if matches!(state.init.phase, Phase::Running | Phase::Paused) { READY } else { NOT_READY }.to_owned();
        response.created_at = MessageField::some(timestamp(container.created));
        if let Some(exit) = state.init.exit {
            response.exited_at = MessageField::some(timestamp(exit.at));
        }
        if request.verbose {
            response.info.insert("bundle".into(), container.bundle.display().to_string());
            response.info.insert("phase".into(), state.init.phase.name().into());
        }
        Ok(response)
    }

    fn sandbox_metrics(&self, request: &SandboxMetricsRequest) -> Answer<SandboxMetricsResponse> {
        let mut stats = StatsRequest::new();
        stats.id.clone_from(&request.sandbox_id);
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id.clone_from(&request.sandbox_id);
        metric.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metric.data = self.stats(&stats)?.stats;
        Ok(response)
    }

    /// Ends the sandbox and with it the shim, unless containers of the pod are still here.
    fn shut_sandbox_down(&self, payload: &[u8], reply: Reply) {
        let done = decode(payload).and_then(|request: ShutdownSandboxRequest| self.remove_sandbox(&request.sandbox_id));
        let over = done.is_ok();
        reply.send(done.map(|()| ShutdownSandboxResponse::new()));
        if over {
            (self.stop)();
        }
    }

    fn remove_sandbox(&self, id: &str) -> Answer<()> {
        let others = self.containers().keys().any(|other| other != id);
        if others {
            return Err(Failure::precondition(format!("shutting sandbox {id} down: it has containers")));
        }
        let Ok(container) = self.container(id) else { return Ok(()) };
        if container.state().init.phase.is_alive() {
            self.signal_sandbox(&container, libc::SIGKILL)?;
            if !container.wait_while(STOP.1, |state| state.init.exit.is_none()) {
                return Err(Failure::new(Code::DEADLINE_EXCEEDED, format!("sandbox {id} does not end")));
            }
        }
        let mut delete = DeleteRequest::new();
        id.clone_into(&mut delete.id);
        self.delete(&delete).map(drop)
    }
}

fn platform() -> PlatformResponse {
    let mut response = PlatformResponse::new();
    let platform = response.platform.mut_or_insert_default();
    platform.os = "linux".into();
    // Go's names.
    platform.architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned();
    response
}
