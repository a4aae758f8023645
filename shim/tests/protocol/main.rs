//! The shim's binary, spoken to as newer versions of containerd than Debian has do: a client of our own with the published protobufs.
//!
//! Needs root and `towline-oci` beside the shim (cargo build --bins).

#![allow(clippy::print_stdout, reason = "tests talk to the person who runs them")]

mod checkpoint;
mod killed;
mod options;
mod pod;

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::types::empty::Empty;
use towline_shim::rpc::Code;

use pod::{Dialect, Pod};

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";
const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

fn create(pod: &Pod) -> CreateTaskRequest {
    let mut request = CreateTaskRequest::new();
    request.id = pod.id();
    request.bundle = pod.bundle().display().to_string();
    request.stdout = format!("file://{}", pod.output().display());
    request
}

fn exec(pod: &Pod, name: &str, script: &str) -> ExecProcessRequest {
    let mut request = ExecProcessRequest::new();
    request.id = pod.id();
    request.exec_id = name.into();
    request.stdout = format!("file://{}", pod.output().display());
    let process = serde_json::json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
    request.spec = MessageField::some(Any { type_url, value: process.to_string().into_bytes(), ..Any::default() });
    request
}

macro_rules! request {
    ($kind:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut request = $kind::new();
        $(request.$field = $value.into();)*
        request
    }};
}

/// A task through its life, in each way that a containerd starts shims.
#[test]
fn each_containerd_gets_its_tasks() {
    for (dialect, service) in [(Dialect::Flags, V2), (Dialect::Json, V3), (Dialect::Bootstrap, V3)] {
        let Some(pod) = Pod::start("each_containerd_gets_its_tasks", dialect, "read line; echo first; exit 3") else { return };
        let mut client = pod.client();
        let id = pod.id();
        let created: CreateTaskResponse = client.call(service, "Create", &create(&pod)).unwrap();
        let state: StateResponse = client.call(service, "State", &request!(StateRequest { id: id.as_str() })).unwrap();
        assert_eq!((state.pid, state.exit_status), (created.pid, 0));
        let started: StartResponse = client.call(service, "Start", &request!(StartRequest { id: id.as_str() })).unwrap();
        assert_eq!(started.pid, created.pid);
        // The program reads from /dev/null, so it has ended, or does now.
        let waited: WaitResponse = client.call(service, "Wait", &request!(WaitRequest { id: id.as_str() })).unwrap();
        assert_eq!(waited.exit_status, 3);
        let deleted: DeleteResponse = client.call(service, "Delete", &request!(DeleteRequest { id: id.as_str() })).unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (created.pid, 3));
        assert_eq!(pod.text(), "first\n");
        client.call::<Empty>(service, "Shutdown", &request!(ShutdownRequest { id: id.as_str() })).unwrap();
        pod.assert_left();
        assert_eq!(pod.topics(), ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    }
}

#[test]
fn further_processes_are_told_of_before_the_first_one_ends() {
    let test = "further_processes_are_told_of_before_the_first_one_ends";
    let Some(pod) = Pod::start(test, Dialect::Bootstrap, "while :; do sleep 1; done") else { return };
    let mut client = pod.client();
    let id = pod.id();
    let _: CreateTaskResponse = client.call(V3, "Create", &create(&pod)).unwrap();
    let _: StartResponse = client.call(V3, "Start", &request!(StartRequest { id: id.as_str() })).unwrap();
    for name in ["e1", "e2"] {
        let _: Empty = client.call(V3, "Exec", &exec(&pod, name, "echo $0; sleep 1000")).unwrap();
        let request = request!(StartRequest { id: id.as_str(), exec_id: name });
        let _: StartResponse = client.call(V3, "Start", &request).unwrap();
    }
    let _: Empty = client.call(V3, "Kill", &request!(KillRequest { id: id.as_str(), signal: 9u32 })).unwrap();
    let waited: WaitResponse = client.call(V3, "Wait", &request!(WaitRequest { id: id.as_str() })).unwrap();
    assert_eq!(waited.exit_status, 137);
    for name in ["e1", "e2", ""] {
        let request = request!(DeleteRequest { id: id.as_str(), exec_id: name });
        assert_eq!(client.call::<DeleteResponse>(V3, "Delete", &request).unwrap().exit_status, 137);
    }
    let _: Empty = client.call(V3, "Shutdown", &request!(ShutdownRequest { id: id.as_str() })).unwrap();
    pod.assert_left();
    let exits: Vec<String> = pod.exits();
    assert_eq!(exits.last(), Some(&id), "{exits:?}");
    assert_eq!(exits.len(), 3, "{exits:?}");
}

#[test]
fn failures_have_the_codes_that_containerd_branches_on() {
    let test = "failures_have_the_codes_that_containerd_branches_on";
    let Some(pod) = Pod::start(test, Dialect::Bootstrap, "while :; do sleep 1; done") else { return };
    let mut client = pod.client();
    let id = pod.id();
    let _: CreateTaskResponse = client.call(V3, "Create", &create(&pod)).unwrap();
    let _: StartResponse = client.call(V3, "Start", &request!(StartRequest { id: id.as_str() })).unwrap();
    let refused = |failure: Result<Empty, _>| match failure {
        Err(towline_shim::rpc::client::CallError::Refused(failure)) => failure.code,
        other => panic!("{other:?}"),
    };
    let mut bad_id = create(&pod);
    bad_id.id = "../x".into();
    assert_eq!(refused(client.call(V3, "Create", &bad_id)), Code::INVALID_ARGUMENT);
    assert_eq!(refused(client.call(V3, "Create", &create(&pod))), Code::ALREADY_EXISTS);
    assert_eq!(refused(client.call(V3, "Start", &request!(StartRequest { id: id.as_str() }))), Code::FAILED_PRECONDITION);
    assert_eq!(refused(client.call(V3, "Delete", &request!(DeleteRequest { id: id.as_str() }))), Code::FAILED_PRECONDITION);
    assert_eq!(refused(client.call(V3, "State", &request!(StateRequest { id: "other" }))), Code::NOT_FOUND);
    let no_exec = request!(StateRequest { id: id.as_str(), exec_id: "e" });
    assert_eq!(refused(client.call(V3, "State", &no_exec)), Code::NOT_FOUND);
    assert_eq!(refused(client.call(V3, "Resume", &request!(StateRequest { id: id.as_str() }))), Code::FAILED_PRECONDITION);
    let kill = request!(KillRequest { id: id.as_str(), signal: 4000u32 });
    assert_eq!(refused(client.call(V3, "Kill", &kill)), Code::INVALID_ARGUMENT);
    assert_eq!(refused(client.call(V3, "Fly", &Empty::new())), Code::UNIMPLEMENTED);
    assert_eq!(refused(client.call("containerd.task.v9.Task", "State", &Empty::new())), Code::UNIMPLEMENTED);
    // A shim with containers stays.
    let _: Empty = client.call(V3, "Shutdown", &request!(ShutdownRequest { id: id.as_str() })).unwrap();
    let _: Empty = client.call(V3, "Kill", &request!(KillRequest { id: id.as_str(), signal: 9u32 })).unwrap();
    let _: WaitResponse = client.call(V3, "Wait", &request!(WaitRequest { id: id.as_str() })).unwrap();
    assert_eq!(refused(client.call(V3, "Kill", &request!(KillRequest { id: id.as_str(), signal: 9u32 }))), Code::NOT_FOUND);
    let _: DeleteResponse = client.call(V3, "Delete", &request!(DeleteRequest { id: id.as_str() })).unwrap();
    assert_eq!(refused(client.call(V3, "Delete", &request!(DeleteRequest { id: id.as_str() }))), Code::NOT_FOUND);
    let _: Empty = client.call(V3, "Shutdown", &request!(ShutdownRequest { id: id.as_str() })).unwrap();
    pod.assert_left();
}

#[test]
fn a_sandbox_lives_through_its_verbs() {
    let test = "a_sandbox_lives_through_its_verbs";
    let script = "trap 'exit 4' TERM; while :; do sleep 0.1; done";
    let Some(pod) = Pod::start(test, Dialect::Bootstrap, script) else { return };
    let mut client = pod.client();
    let id = pod.id();
    let create = request!(CreateSandboxRequest { sandbox_id: id.as_str(), bundle_path: pod.bundle().display().to_string() });
    let _: CreateSandboxResponse = client.call(SANDBOX, "CreateSandbox", &create).unwrap();
    let started: StartSandboxResponse =
        client.call(SANDBOX, "StartSandbox", &request!(StartSandboxRequest { sandbox_id: id.as_str() })).unwrap();
    let status = request!(SandboxStatusRequest { sandbox_id: id.as_str(), verbose: true });
    let seen: SandboxStatusResponse = client.call(SANDBOX, "SandboxStatus", &status).unwrap();
    assert_eq!((seen.state.as_str(), seen.pid), ("SANDBOX_READY", started.pid));
    let _: PingResponse = client.call(SANDBOX, "PingSandbox", &request!(PingRequest { sandbox_id: id.as_str() })).unwrap();
    let platform: PlatformResponse =
        client.call(SANDBOX, "Platform", &request!(PlatformRequest { sandbox_id: id.as_str() })).unwrap();
    assert_eq!(platform.platform.os, "linux");
    let metrics: SandboxMetricsResponse =
        client.call(SANDBOX, "SandboxMetrics", &request!(SandboxMetricsRequest { sandbox_id: id.as_str() })).unwrap();
    assert!(metrics.metrics.data.type_url.starts_with("io.containerd.cgroups."), "{metrics:?}");
    let stop = request!(StopSandboxRequest { sandbox_id: id.as_str(), timeout_secs: 60u32 });
    let _: StopSandboxResponse = client.call(SANDBOX, "StopSandbox", &stop).unwrap();
    let waited: WaitSandboxResponse =
        client.call(SANDBOX, "WaitSandbox", &request!(WaitSandboxRequest { sandbox_id: id.as_str() })).unwrap();
    assert_eq!(waited.exit_status, 4);
    let seen: SandboxStatusResponse = client.call(SANDBOX, "SandboxStatus", &status).unwrap();
    assert_eq!(seen.state, "SANDBOX_NOTREADY");
    let _: ShutdownSandboxResponse =
        client.call(SANDBOX, "ShutdownSandbox", &request!(ShutdownSandboxRequest { sandbox_id: id.as_str() })).unwrap();
    pod.assert_left();
}
