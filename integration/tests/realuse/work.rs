//! One piece of work of each kind, as a person, a kubelet or podman would do it. Fails with what a client said; panics for output that
//! was reported complete and is not.

use std::fs;
use std::time::{Duration, Instant};

use towline_integration::cri::messages::*;

use super::machine::{Machine, failed, pod_name};
use super::node::{PATIENCE, container_id, text};
use super::random::Random;

/// Its name, and what does it for a container of a name.
pub type Work = (&'static str, fn(&Machine, &str, &mut Random) -> Result<(), String>);

/// Of these only that which takes the image away; nothing else is done meanwhile.
pub const ALONE: &str = "image";

/// All of them, in equal shares.
pub const ALL: &[Work] = &[
    ("ctr run", foreground),
    ("ctr run", foreground),
    ("ctr tasks", verbs),
    ("ctr tasks", verbs),
    ("pod", pod),
    ("pod", pod),
    ("podman run", podman_run),
    ("podman verbs", podman_verbs),
    (ALONE, image),
];

/// What `seq 1 NUMBER` prints.
fn sequence(number: u64) -> String {
    (1..=number).map(|line| format!("{line}\n")).collect()
}

/// The numbers up to `number`, and nothing else.
#[track_caller]
fn assert_sequence(what: &str, got: &str, number: u64) {
    let wanted = sequence(number);
    let end = got.len().saturating_sub(60);
    assert!(got == wanted, "{what}: {} bytes of {}, the end is {:?}", got.len(), wanted.len(), got.get(end..));
}

/// Asks until the answer is true; fails at once when the question does.
fn until(what: &str, mut asked: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while !asked()? {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a task has a status; it has to exist.
fn is(machine: &Machine, id: &str, wanted: &str) -> Result<bool, String> {
    match machine.status(id)? {
        status if status.is_empty() => Err(format!("the task {id} is gone")),
        status => Ok(status == wanted),
    }
}

/// A program in the foreground; the container writes the same into a file of the host.
fn foreground(machine: &Machine, id: &str, random: &mut Random) -> Result<(), String> {
    let (number, code) = (1 + random.below(100_000), 3 + i32::try_from(random.below(100)).expect("small"));
    let done = machine.run(&["--rm"], id, &format!("seq 1 {number} | tee /out/{id}; exit {code}"));
    if done.code() != Some(code) {
        return Err(failed(&done));
    }
    assert_sequence(&done.what, &done.stdout, number);
    let file = fs::read_to_string(machine.node.path("out").join(id)).expect("read what the container wrote");
    assert_sequence("the file", &file, number);
    removed(machine, id)
}

/// Whether `ctr run --rm` has removed its container: when containerd is killed at that moment it does not say that it has not.
fn removed(machine: &Machine, id: &str) -> Result<(), String> {
    match machine.ctr(&["container", "ls", "--quiet"])?.lines().any(|line| line == id) {
        true => Err(format!("the container {id} is still there")),
        false => Ok(()),
    }
}

/// A task in the background that goes through its verbs; its log is a file that the shim writes.
fn verbs(machine: &Machine, id: &str, random: &mut Random) -> Result<(), String> {
    let number = 1 + random.below(100_000);
    let log = machine.node.path("out").join(format!("{id}.log"));
    let uri = format!("file://{}", text(&log));
    let script = format!("trap 'seq 1 {number}; exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    let done = machine.run(&["--detach", "--log-uri", &uri], id, &script);
    if !done.status.success() {
        return Err(failed(&done));
    }
    // The first process of a pid namespace gets no signal that it has no handler for.
    until("the task to be ready", || match fs::read_to_string(&log).unwrap_or_default().as_str() {
        "ready\n" => Ok(true),
        _ => is(machine, id, "RUNNING").map(|_| false),
    })?;
    machine.see_sockets();
    for round in 0..=random.below(3) {
        match random.below(3) {
            0 => {
                let (lines, exec) = (1 + random.below(20_000), format!("{id}-e{round}"));
                let fifos = text(&machine.node.path("fifo"));
                let line = ["task", "exec", "--fifo-dir", &fifos, "--exec-id", &exec, id, "seq", "1", &lines.to_string()];
                assert_sequence("exec", &machine.ctr(&line)?, lines);
            }
            1 => {
                machine.ctr(&["task", "pause", id])?;
                until("the pause", || is(machine, id, "PAUSED"))?;
                machine.ctr(&["task", "resume", id])?;
                until("the end of the pause", || is(machine, id, "RUNNING"))?;
            }
            _ => {
                let figures = machine.ctr(&["task", "metrics", id])?;
                assert!(figures.contains("memory") && figures.contains(id), "{figures}");
            }
        }
    }
    machine.ctr(&["task", "kill", "--signal", "15", id])?;
    until("the end of the task", || is(machine, id, "STOPPED"))?;
    let written = fs::read_to_string(&log).expect("read the log");
    assert_sequence("the log of a task", written.strip_prefix("ready\n").unwrap_or(&written), number);
    // ctr ends with the task's exit code.
    machine
        .ctr(&["task", "rm", id])
        .or_else(|error| if error.contains("exit status: 5") { Ok(String::new()) } else { Err(error) })?;
    machine.ctr(&["container", "rm", id]).map(drop)
}

/// A pod with one or two containers.
fn pod(machine: &Machine, id: &str, random: &mut Random) -> Result<(), String> {
    let node = &machine.node;
    let name = pod_name(id);
    let config = node.pod(&name, CONTAINER);
    let told = |status| format!("{name}: {status:?}");
    let pod = node.try_run_pod(&config).map_err(told)?;
    let (number, image) = (1 + random.below(20_000), machine.image());
    for container in (0..=random.below(2)).map(|container| format!("c{container}")) {
        let log = container.clone();
        let named = |config: &mut ContainerConfig| config.image = Some(ImageSpec { image: image.clone() });
        let script = format!("trap 'exit 3' TERM; seq 1 {number}; while :; do sleep 0.05; done");
        let container = node.try_run_container(&pod, &config, &container, &script, named).map_err(told)?;
        machine.see_sockets();
        whole_log(machine, &name, &log, number)?;
        let exec = ExecSyncRequest {
            container_id: container.clone(),
            cmd: ["seq", "1", &number.to_string()].map(str::to_owned).into(),
            timeout: 120,
        };
        let answer: ExecSyncResponse = node.cri.try_call("ExecSync", &exec).map_err(told)?;
        assert_sequence("an exec of a pod", &String::from_utf8_lossy(&answer.stdout), number);
        if random.below(2) == 0 {
            let stop = StopContainerRequest { container_id: container.clone(), timeout: 120 };
            node.cri.try_call::<Empty>("StopContainer", &stop).map_err(told)?;
            let answer: ContainerStatusResponse =
                node.cri.try_call("ContainerStatus", &container_id(&container)).map_err(told)?;
            let code = answer.status.expect("a status").exit_code;
            if code != 3 {
                return Err(format!("{name}: exit code {code}"));
            }
        }
    }
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        node.cri.try_call::<Empty>(method, &PodId { pod_sandbox_id: pod.clone() }).map_err(told)?;
    }
    Ok(())
}

/// Waits until the log of a container that lives has everything. A containerd that is killed takes with it what it has read and not written.
fn whole_log(machine: &Machine, pod: &str, container: &str, number: u64) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(30);
    let wanted = usize::try_from(number).expect("small");
    let lines = || machine.node.log(pod, container);
    while lines().len() < wanted {
        if Instant::now() > end {
            return Err(format!("the log of {container} in {pod} has {} lines of {number}", lines().len()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let lines: String = lines().iter().map(|line| format!("{}\n", line.strip_prefix("stdout F ").unwrap_or(line))).collect();
    assert_sequence("the log of a container of a pod", &lines, number);
    Ok(())
}

fn podman_run(machine: &Machine, id: &str, random: &mut Random) -> Result<(), String> {
    let number = 1 + random.below(50_000);
    let script = format!("seq 1 {number}; exit 9");
    let done = machine.podman.run(&["run", "--rm", "--network=none", "--name", id, "localhost/box", "sh", "-c", &script]);
    assert_eq!(done.code(), Some(9), "{}", failed(&done));
    assert_sequence("podman run", &done.stdout, number);
    Ok(())
}

fn podman_verbs(machine: &Machine, id: &str, random: &mut Random) -> Result<(), String> {
    let (podman, number) = (&machine.podman, 1 + random.below(20_000));
    let script = format!("trap 'seq 1 {number}; exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    podman.ok(&["run", "--detach", "--network=none", "--name", id, "localhost/box", "sh", "-c", &script]);
    podman.wait_logs(id, "ready");
    let full = podman.inspect(id, "{{.Id}}");
    let lines = (1 + random.below(20_000)).to_string();
    assert_sequence(
        "podman exec",
        &podman.run(&["exec", id, "seq", "1", &lines]).success().stdout,
        lines.parse().expect("a number"),
    );
    if random.below(2) == 0 {
        podman.ok(&["pause", id]);
        podman.ok(&["unpause", id]);
    }
    assert!(podman.ok(&["stats", "--no-stream", "--format", "{{.Name}}", id]).contains(id));
    podman.ok(&["kill", "--signal", "TERM", id]);
    assert_eq!(podman.ok(&["wait", id]), "5");
    let logs = podman.run(&["logs", id]).success().stdout;
    assert_sequence("podman logs", logs.strip_prefix("ready\n").unwrap_or(&logs), number);
    podman.ok(&["rm", id]);
    podman.assert_gone(&full);
    Ok(())
}

/// The image is removed, pulled again, and all of it is read while it arrives.
fn image(machine: &Machine, id: &str, _random: &mut Random) -> Result<(), String> {
    machine.ctr(&["images", "rm", "--sync", &machine.image()])?;
    machine.pull()?;
    let done = machine.run(&["--rm"], id, "find / -xdev -type f -exec probe sum {} +; exit 3");
    if done.code() != Some(3) {
        return Err(failed(&done));
    }
    let (right, wrong) = machine.truth.compare(&done.stdout);
    assert!(right == machine.truth.len() && wrong.is_empty(), "{right} of {}: {wrong:?}", machine.truth.len());
    removed(machine, id)
}
