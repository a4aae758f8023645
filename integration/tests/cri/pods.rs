//! Pods and their containers: what they share, what a kubelet is told of them, and what is left.

use towline_integration::cri::messages::*;
use towline_integration::images;
use towline_integration::process::wait_until;
use towline_integration::registry::{Access, Registry};

use super::node::{Node, PATIENCE, container_id};

#[test]
fn a_pod_lives_and_leaves_nothing() {
    let Some(node) = Node::new("a_pod_lives_and_leaves_nothing") else { return };
    let config = node.pod("p1", CONTAINER);
    let pod = node.run_pod(&config);
    let status: PodSandboxStatusResponse = node.cri.call("PodSandboxStatus", &PodId { pod_sandbox_id: pod.clone() });
    let status = status.status.expect("a status");
    assert_eq!((status.state, status.runtime_handler.as_str()), (0, "towline"));
    let address = status.network.expect("a network").ip;
    assert!(address.starts_with("10.123.0."), "{address}");

    let limited = |config: &mut ContainerConfig| {
        let resources = LinuxContainerResources { cpu_shares: 0, memory_limit_in_bytes: 64 << 20 };
        config.linux.as_mut().expect("it is set").resources = Some(resources);
    };
    let web = "mkdir -p /tmp/w; echo hello > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";
    let first = node.run_container(&pod, &config, "web", web, limited);
    let second = node.run_container(&pod, &config, "side", "sleep 1000000", |_| {});
    assert_eq!(node.shims().len(), 1, "one shim for the pod and both containers");

    // They share a network, a host name and IPC, but no processes.
    wait_until("the web server", PATIENCE, || {
        let got = node.cri.exec(&second, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]);
        got.exit_code == 0 && got.stdout == b"hello\n"
    });
    let got = node.cri.exec(&second, &["sh", "-c", "hostname; readlink /proc/1/ns/ipc; cat /proc/1/comm; echo e >&2; exit 7"]);
    let other = node.cri.exec(&first, &["readlink", "/proc/1/ns/ipc"]);
    let ipc = String::from_utf8(other.stdout).expect("text");
    assert_eq!(String::from_utf8(got.stdout).expect("text"), format!("p1\n{ipc}sleep\n"));
    assert_eq!((got.stderr.as_slice(), got.exit_code), (&b"e\n"[..], 7));
    let missing: Result<ExecSyncResponse, _> = node
        .cri
        .try_call("ExecSync", &ExecSyncRequest { container_id: first.clone(), cmd: vec!["/no/such".into()], timeout: 60 });
    // The reason, and not that the time is over: whoever cleans up behind it must not wait for an end that never comes.
    let error = missing.expect_err("there is no such program");
    assert!(error.message.contains("no such file or directory"), "{error:?}");

    // Figures come by containerd's protobufs from the shim.
    let stats: ContainerStatsResponse = node.cri.call("ContainerStats", &container_id(&first));
    let stats = stats.stats.expect("figures");
    let memory = stats.memory.expect("of memory").working_set_bytes.expect("the working set").value;
    assert!((1..64 << 20).contains(&memory), "{memory}");
    assert!(stats.cpu.expect("of the CPU").usage_core_nano_seconds.expect("its time").value > 0);

    // An update reaches the cgroup.
    let resources = LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 128 << 20 };
    let request = UpdateContainerResourcesRequest { container_id: first.clone(), linux: Some(resources) };
    node.cri.call::<Empty>("UpdateContainerResources", &request);

    node.cri.call::<Empty>("StopContainer", &StopContainerRequest { container_id: second.clone(), timeout: 1 });
    assert_eq!(node.wait_end(&second), 137);
    node.cri.call::<Empty>("RemoveContainer", &container_id(&second));
    assert_eq!(node.status(&first).state, RUNNING);
    node.remove_pod(&pod);
    node.assert_empty();
}

/// A program that ends at once: clients of containerd before 1.6.22 close the FIFO when they hear of the end ("Failed to pipe stdout: file
/// already closed"), so our shim tells of it when they have read. containerd's own shim does not, and loses the end of a burst on a busy machine.
#[test]
fn the_log_of_a_container_that_has_ended_is_whole() {
    let test = "the_log_of_a_container_that_has_ended_is_whole";
    if std::env::var("SHIM").is_ok_and(|shim| shim == "runc") {
        println!("SKIP {test}: containerd 1.6 with its own shim loses output");
        return;
    }
    let Some(node) = Node::new(test) else { return };
    let config = node.pod("p5", CONTAINER);
    let pod = node.run_pod(&config);
    let containers: Vec<(String, String)> = (0..4)
        .map(|number| {
            let name = format!("burst{number}");
            let id = node.run_container(&pod, &config, &name, "seq 1 200000; printf rest; exit 3", |_| {});
            (name, id)
        })
        .collect();
    for (name, id) in &containers {
        assert_eq!(node.wait_end(id), 3);
        let whole = |lines: &[String]| lines.len() == 200_001 && lines[200_000] == "stdout P rest";
        // The end is told when containerd has read everything; it may still be writing.
        wait_until("the whole log", PATIENCE, || whole(&node.log("p5", name)));
        for (number, line) in (1..=200_000).zip(&node.log("p5", name)) {
            assert_eq!(line, &format!("stdout F {number}"));
        }
    }
    node.remove_pod(&pod);
    node.assert_empty();
}

#[test]
fn logs_have_every_byte_and_the_stream_of_each_line() {
    let Some(node) = Node::new("logs_have_every_byte_and_the_stream_of_each_line") else { return };
    let config = node.pod("p2", CONTAINER);
    let pod = node.run_pod(&config);
    let wait = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let short = node.run_container(&pod, &config, "short", &format!("echo out; echo err >&2; {wait}"), |_| {});
    let burst = node.run_container(&pod, &config, "burst", &format!("seq 1 300000; {wait}"), |_| {});
    wait_until("the burst in the log", PATIENCE, || node.log("p2", "burst").len() >= 300_000);
    let lines = node.log("p2", "burst");
    assert_eq!(lines.len(), 300_000);
    for (number, line) in (1..).zip(&lines) {
        assert_eq!(line, &format!("stdout F {number}"));
    }
    wait_until("the lines in the log", PATIENCE, || node.log("p2", "short").len() >= 2);
    let mut lines = node.log("p2", "short");
    // Streams are two FIFOs: their order among each other is nobody's.
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out"]);
    for container in [short, burst] {
        node.cri.call::<Empty>("StopContainer", &StopContainerRequest { container_id: container.clone(), timeout: 120 });
        assert_eq!(node.wait_end(&container), 3);
    }
    node.remove_pod(&pod);
    node.assert_empty();
}

#[test]
fn a_shared_pid_namespace_and_an_oom_kill() {
    let Some(node) = Node::new("a_shared_pid_namespace_and_an_oom_kill") else { return };
    let config = node.pod("p3", POD);
    let pod = node.run_pod(&config);
    let limited = |config: &mut ContainerConfig| {
        let resources = LinuxContainerResources { cpu_shares: 0, memory_limit_in_bytes: 32 << 20 };
        config.linux.as_mut().expect("it is set").resources = Some(resources);
    };
    let seen = node.run_container(&pod, &config, "seen", "exec sleep 7654321", |_| {});
    let eats = node.run_container(&pod, &config, "eats", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done", limited);
    let list = "for dir in /proc/[0-9]*; do tr '\\0' ' ' < $dir/cmdline; echo; done";
    let seer = node.run_container(&pod, &config, "seer", "sleep 1000000", |_| {});
    wait_until("the other container's process", PATIENCE, || {
        String::from_utf8_lossy(&node.cri.exec(&seer, &["sh", "-c", list]).stdout).contains("sleep 7654321")
    });
    assert_eq!(node.wait_end(&eats), 137);
    wait_until("the reason", PATIENCE, || node.status(&eats).reason == "OOMKilled");
    // What a container started ends with it, also without a PID namespace of its own.
    node.cri.call::<Empty>("StopContainer", &StopContainerRequest { container_id: seen.clone(), timeout: 0 });
    wait_until("its process to be gone", PATIENCE, || {
        !String::from_utf8_lossy(&node.cri.exec(&seer, &["sh", "-c", list]).stdout).contains("sleep 7654321")
    });
    node.remove_pod(&pod);
    node.assert_empty();
}

#[test]
fn containerd_comes_back_and_finds_its_pods() {
    let Some(node) = Node::new("containerd_comes_back_and_finds_its_pods") else { return };
    let config = node.pod("p4", CONTAINER);
    let pod = node.run_pod(&config);
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
    let counts = node.run_container(&pod, &config, "counts", script, |_| {});
    wait_until("some lines", PATIENCE, || node.log("p4", "counts").len() > 10);
    node.kill();
    node.start();
    assert_eq!(node.status(&counts).state, RUNNING);
    let before = node.log("p4", "counts").len();
    wait_until("more lines", PATIENCE, || node.log("p4", "counts").len() > before + 50);
    assert_eq!(node.cri.exec(&counts, &["echo", "here"]).stdout, b"here\n");
    // What was written while nobody read is there: FIFOs keep it.
    let lines: Vec<String> = node.log("p4", "counts");
    let missing: Vec<usize> = (1..=lines.len()).filter(|number| !lines.contains(&format!("stdout F {number}"))).collect();
    assert!(missing.is_empty(), "lines are missing: {missing:?}");
    node.remove_pod(&pod);
    node.assert_empty();
}

#[test]
fn images_are_pulled_with_the_credentials_that_the_kubelet_sends() {
    let test = "images_are_pulled_with_the_credentials_that_the_kubelet_sends";
    if !images::available(test) {
        return;
    }
    let Some(node) = Node::new(test) else { return };
    // On the node's own loopback.
    let registry = node.in_network(|| Registry::start_with(Access::Basic));
    let name = registry.reference("small:gzip");
    for login in [None, Some(("towline", "wrong"))] {
        let error = node.cri.pull(&name, login).expect_err("the registry asks for a password");
        assert!(error.message.contains("nauthorized") || error.message.contains("401"), "{error:?}");
    }
    let image = node.cri.pull(&name, Some(("towline", "towline"))).expect("the password is right");
    let config = node.pod("p6", CONTAINER);
    let pod = node.run_pod(&config);
    let named = |config: &mut ContainerConfig| config.image = Some(ImageSpec { image });
    let container = node.run_container(&pod, &config, "pulled", "exec sleep 1000000", named);
    assert_eq!(node.cri.exec(&container, &["sh", "-c", "echo from it"]).stdout, b"from it\n");
    node.remove_pod(&pod);
    node.assert_empty();
}
