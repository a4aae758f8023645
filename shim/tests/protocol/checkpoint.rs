//! A task is saved by criu and brought back. Where criu cannot work with the kernel this runs in the test machine (integration/tests/testbed).

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, Status, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::types::empty::Empty;

use crate::pod::{Dialect, Pod};
use crate::{V3, create};

/// Why criu does not work here, if it does not.
fn criu_is_missing() -> Option<String> {
    match Command::new("criu").arg("check").output() {
        Err(error) => Some(error.to_string()),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("criu check fails").to_owned()),
    }
}

/// The number that the container has counted to.
fn counted(pod: &Pod) -> u64 {
    let text = fs::read_to_string(pod.bundle().join("rootfs/n")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn wait_beyond(pod: &Pod, number: u64) {
    let end = Instant::now() + Duration::from_secs(120);
    while counted(pod) <= number {
        assert!(Instant::now() < end, "it counts no further than {}", counted(pod));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_task_is_saved_and_brought_back() {
    const TEST: &str = "checkpoint::a_task_is_saved_and_brought_back";
    if let Some(why) = criu_is_missing() {
        println!("SKIP {TEST}: criu does not work here: {why}");
        return;
    }
    let script = "n=0; while :; do n=$((n+1)); echo $n > /n; sleep 0.05; done";
    let Some(pod) = Pod::start(TEST, Dialect::Bootstrap, script) else { return };
    let (mut client, id) = (pod.client(), pod.id());
    // A file of the host is nothing that criu can save.
    let mut request = create(&pod);
    request.stdout = String::new();
    let _: CreateTaskResponse = client.call(V3, "Create", &request).unwrap();
    let mut start = StartRequest::new();
    start.id.clone_from(&id);
    let _: StartResponse = client.call(V3, "Start", &start).unwrap();
    wait_beyond(&pod, 10);

    let saved = pod.bundle().join("saved");
    let mut options = CheckpointOptions::new();
    options.exit = true;
    let value = options.write_to_bytes().unwrap();
    let mut save = CheckpointTaskRequest::new();
    (save.id, save.path) = (id.clone(), saved.display().to_string());
    save.options =
        MessageField::some(Any { type_url: "containerd.runc.v1.CheckpointOptions".to_owned(), value, ..Any::default() });
    let _: Empty = client.call(V3, "Checkpoint", &save).unwrap();
    assert!(fs::read_dir(&saved).unwrap().count() > 0);
    let (mut wait, mut delete) = (WaitRequest::new(), DeleteRequest::new());
    (wait.id, delete.id) = (id.clone(), id.clone());
    let _: WaitResponse = client.call(V3, "Wait", &wait).unwrap();
    let _: DeleteResponse = client.call(V3, "Delete", &delete).unwrap();
    let stopped = counted(&pod);

    request.checkpoint = saved.display().to_string();
    let _: CreateTaskResponse = client.call(V3, "Create", &request).unwrap();
    let started: StartResponse = client.call(V3, "Start", &start).unwrap();
    let mut ask = StateRequest::new();
    ask.id.clone_from(&id);
    let state: StateResponse = client.call(V3, "State", &ask).unwrap();
    assert_eq!((state.status.enum_value(), state.pid), (Ok(Status::RUNNING), started.pid));
    // From there on, and not from the beginning.
    wait_beyond(&pod, stopped + 10);

    let mut kill = KillRequest::new();
    (kill.id, kill.signal) = (id.clone(), 9);
    let _: Empty = client.call(V3, "Kill", &kill).unwrap();
    let waited: WaitResponse = client.call(V3, "Wait", &wait).unwrap();
    assert_eq!(waited.exit_status, 137);
    let _: DeleteResponse = client.call(V3, "Delete", &delete).unwrap();
    let mut shutdown = ShutdownRequest::new();
    shutdown.id = id;
    let _: Empty = client.call(V3, "Shutdown", &shutdown).unwrap();
    pod.assert_left();
    // The process ends while it is saved: which of both is told first is open.
    let (saved, others): (Vec<_>, Vec<_>) = pod.topics().into_iter().partition(|topic| topic == "/tasks/checkpointed");
    let life = ["create", "start", "exit", "delete"].map(|topic| format!("/tasks/{topic}"));
    assert_eq!((saved.len(), others), (1, [life.clone(), life].concat()));
}
