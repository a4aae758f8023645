//! Each kind of container: its start, what is said of it after a boot, its next start.
//!
//! All of them run the same script. In its first life it reads a little of its image, in the next one all, and says whether what it had
//! written is there.

use std::fs;

use towline_integration::cri::messages::*;
use towline_integration::process::wait_until;

use super::machine::{Machine, PATIENCE};
use super::truth::Truth;

const SCRIPT: &str = "if [ -e /root/kept ]; then echo kept $(cat /root/kept); find / -xdev -type f -exec probe sum {} +; echo second life; \
                      else probe sum /data/dir/1 /bin/probe; echo well > /root/kept; echo first life; fi; \
                      trap 'exit 7' TERM; while :; do sleep 0.1; done";

/// What a container has printed in its second life: everything is read, and right, and what it wrote is there.
#[track_caller]
pub fn assert_second_life(who: &str, log: &str, truth: &Truth) {
    assert!(log.contains("kept well"), "{who} has lost what it wrote: {log}");
    let read = log.split_once("kept well").expect("just seen").1;
    let (right, wrong) = truth.compare(read);
    assert!(right == truth.len() && wrong.is_empty(), "{who}: {right} of {}: {wrong:?}", truth.len());
}

/// The log of a container of `ctr`.
fn log_file(machine: &Machine, id: &str) -> (std::path::PathBuf, String) {
    let path = machine.path("out").join(format!("{id}.log"));
    let uri = format!("file://{}", path.display());
    (path, uri)
}

#[track_caller]
fn wait_for(what: &str, needle: &str, mut log: impl FnMut() -> String) {
    wait_until(&format!("{what} to say {needle:?}"), PATIENCE, || log().contains(needle));
}

/// `ctr run -d`, until it has said something.
pub fn ctr_run(machine: &Machine, id: &str, image: &str) {
    let (path, uri) = log_file(machine, id);
    let fixed = ["run", "--detach", "--snapshotter", "towline", "--runtime", "io.containerd.towline.v2", "--log-uri", &uri];
    machine.ctr(&[&fixed[..], &[image, id, "/bin/sh", "-c", SCRIPT]].concat());
    wait_for(id, "first life", || fs::read_to_string(&path).unwrap_or_default());
}

/// A task for a container that is there, until it has read everything; what it said.
pub fn ctr_start(machine: &Machine, id: &str) -> String {
    let (path, uri) = log_file(machine, id);
    machine.ctr(&["task", "start", "--detach", "--log-uri", &uri, id]);
    wait_for(id, "second life", || fs::read_to_string(&path).unwrap_or_default());
    fs::read_to_string(&path).expect("read a log")
}

/// The status of a task; empty where there is none.
pub fn ctr_status(machine: &Machine, id: &str) -> String {
    let list = machine.ctr(&["task", "ls"]);
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
    line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned()
}

/// The task ends, and both go.
pub fn ctr_remove(machine: &Machine, id: &str) {
    if !ctr_status(machine, id).is_empty() {
        machine.ctr(&["task", "rm", "--force", id]);
    }
    machine.ctr(&["container", "rm", id]);
}

/// A pod.
pub fn pod_config(machine: &Machine, name: &str) -> PodSandboxConfig {
    let metadata =
        PodSandboxMetadata { name: name.to_owned(), uid: format!("uid-{name}"), namespace: "tests".to_owned(), attempt: 0 };
    let context = LinuxSandboxSecurityContext { namespace_options: Some(NamespaceOption { network: 0, pid: 1, ipc: 0 }) };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.to_owned(),
        log_directory: machine.path("out").join(name).display().to_string(),
        linux: Some(LinuxPodSandboxConfig { cgroup_parent: format!("/{}", machine.name), security_context: Some(context) }),
    }
}

/// A pod with a container that runs; their ids.
pub fn pod_run(machine: &Machine, name: &str, image: &str) -> (String, String) {
    let (cri, config) = (machine.cri(), pod_config(machine, name));
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "towline".to_owned() };
    let pod = cri.call::<PodId>("RunPodSandbox", &request).pod_sandbox_id;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: image.to_owned() }),
        command: ["/bin/sh", "-c", SCRIPT].map(str::to_owned).into(),
        log_path: "c.log".to_owned(),
        ..ContainerConfig::default()
    };
    let (container, sandbox) = (Some(container), Some(config));
    let request = CreateContainerRequest { pod_sandbox_id: pod.clone(), config: container, sandbox_config: sandbox };
    let id = cri.call::<ContainerId>("CreateContainer", &request).container_id;
    cri.call::<Empty>("StartContainer", &ContainerId { container_id: id.clone() });
    let log = machine.path("out").join(name).join("c.log");
    wait_for(name, "first life", || fs::read_to_string(&log).unwrap_or_default());
    (pod, id)
}

/// A container's status.
pub fn pod_container(machine: &Machine, id: &str) -> ContainerStatus {
    let request = ContainerId { container_id: id.to_owned() };
    machine.cri().call::<ContainerStatusResponse>("ContainerStatus", &request).status.expect("a status")
}

/// Whether a pod is ready.
pub fn pod_is_ready(machine: &Machine, pod: &str) -> bool {
    let request = PodId { pod_sandbox_id: pod.to_owned() };
    machine.cri().call::<PodSandboxStatusResponse>("PodSandboxStatus", &request).status.expect("a status").state == 0
}

/// Stops and removes it.
pub fn pod_remove(machine: &Machine, pod: &str) {
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        machine.cri().call::<Empty>(method, &PodId { pod_sandbox_id: pod.to_owned() });
    }
}

/// `podman run -d`, or `towline run -d`, until it has said something.
pub fn cli_run(machine: &Machine, program: &str, options: &[&str], name: &str, image: &str) {
    let fixed = ["run", "--detach", "--name", name];
    machine.ok(program, &[&fixed[..], options, &[image, "/bin/sh", "-c", SCRIPT]].concat());
    wait_for(name, "first life", || machine.ok(program, &["logs", name]));
}

/// Starts it once more, until it has read everything; what it said.
pub fn cli_start(machine: &Machine, program: &str, name: &str) -> String {
    machine.ok(program, &["start", name]);
    wait_for(name, "second life", || machine.ok(program, &["logs", name]));
    machine.ok(program, &["logs", name])
}
