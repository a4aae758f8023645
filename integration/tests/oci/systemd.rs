//! The cgroup manager systemd (`--systemd-cgroup`), as callers use it and as runc behaves. Hosts without systemd skip all but the
//! case about them; in the test machine (tests/testbed) there is one.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use towline_integration::bundle::{Container, Subject, push, root_or_skip};

fn systemd_or_skip(test: &str) -> bool {
    let there = Path::new("/run/systemd/system").exists();
    if !there {
        println!("SKIP {test}: this host has no systemd");
    }
    there && root_or_skip(test)
}

const SLICE: &str = "towline-test.slice";

fn container() -> Container {
    let container = Container::new().script("echo ready; sleep 1000").global("--systemd-cgroup");
    let path = format!("{SLICE}:box:{}", container.id());
    container.with(|c| c["linux"]["cgroupsPath"] = json!(path))
}

fn unit(container: &Container) -> String {
    format!("box-{}.scope", container.id())
}

/// `systemctl show`, as NAME=VALUE lines.
fn shown(container: &Container, names: &str) -> String {
    let done = Command::new("systemctl").args(["show", &unit(container), "-p", names]).output().expect("run systemctl");
    String::from_utf8(done.stdout).expect("systemctl prints text").trim().to_owned()
}

#[track_caller]
fn assert_shown(container: &Container, wanted: &[&str]) {
    let names: Vec<&str> = wanted.iter().map(|line| line.split('=').next().expect("a name")).collect();
    let shown = shown(container, &names.join(","));
    for line in wanted {
        assert!(shown.lines().any(|shown| shown == *line), "{line} is not in\n{shown}");
    }
}

/// The container's cgroup, from /proc: where systemd has put it.
fn cgroup(container: &Container) -> String {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).expect("the process's cgroups");
    let line = text.lines().find(|line| line.starts_with("0::") || line.contains(":name=systemd:")).expect("a line of systemd");
    line.rsplit(':').next().expect("a path").to_owned()
}

#[track_caller]
fn assert_gone(container: &Container) {
    assert_shown(container, &["LoadState=not-found"]);
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn a_scope_is_made_changed_and_removed() {
    if !systemd_or_skip("a_scope_is_made_changed_and_removed") {
        return;
    }
    let container = container().with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864, "swap": 100_663_296, "reservation": 33_554_432 });
        c["linux"]["resources"]["cpu"] = json!({ "quota": 20_000, "period": 50_000, "cpus": "0" });
        c["linux"]["resources"]["pids"] = json!({ "limit": 40 });
        c["annotations"] = json!({ "org.systemd.property.TimeoutStopUSec": "uint64 7000000" });
    });
    container.create().success();
    let path = cgroup(&container);
    assert_eq!(path, format!("/towline.slice/{SLICE}/{}", unit(&container)));
    assert_shown(
        &container,
        &[
            "ActiveState=active",
            "Slice=towline-test.slice",
            "Delegate=yes",
            "DefaultDependencies=no",
            "MemoryMax=67108864",
            "MemoryLow=33554432",
            "MemorySwapMax=33554432",
            "CPUQuotaPerSecUSec=400ms",
            "CPUQuotaPeriodUSec=50ms",
            "AllowedCPUs=0",
            "TasksMax=40",
            "DevicePolicy=strict",
            "TimeoutStopUSec=7s",
        ],
    );
    assert!(shown(&container, "DeviceAllow").contains("/dev/char/1:3 rwm"));
    let read = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup{path}/{file}")).expect("a control file").trim().to_owned();
    assert_eq!((read("memory.max"), read("cpu.max"), read("cpuset.cpus")), ("67108864".into(), "20000 50000".into(), "0".into()));

    container.start().success();
    container.wait_output("ready");
    container.exec(&[], &["/bin/true"]).success();
    container.runtime(&["update", "--memory", "50331648", "--pids-limit", "20", container.id()]).success();
    assert_shown(&container, &["MemoryMax=50331648", "TasksMax=20"]);
    // systemd writes all units' cgroups anew: what it was not told would be lost.
    assert!(Command::new("systemctl").arg("daemon-reload").status().expect("run systemctl").success());
    assert_eq!((read("memory.max"), read("pids.max"), read("cpu.max")), ("50331648".into(), "20".into(), "20000 50000".into()));

    container.kill("KILL").success();
    container.wait_status("stopped");
    container.delete().success();
    assert_gone(&container);
}

#[test]
fn delete_force_stops_the_scope() {
    if !systemd_or_skip("delete_force_stops_the_scope") {
        return;
    }
    let container = container();
    container.up();
    container.wait_output("ready");
    assert_shown(&container, &["ActiveState=active"]);
    container.delete_force().success();
    assert_gone(&container);
}

#[test]
fn a_failed_create_leaves_no_unit() {
    if !systemd_or_skip("a_failed_create_leaves_no_unit") {
        return;
    }
    let container = container().with(|c| {
        c["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(json!({ "destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"] }));
    });
    container.create().failure();
    assert_gone(&container);
}

#[test]
fn a_scope_that_failed_is_forgotten() {
    if !systemd_or_skip("a_scope_that_failed_is_forgotten") {
        return;
    }
    let script = "head -c 100000000 /dev/zero | tail -c 90000000 | wc -c";
    let container = container().script(script).with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 20_000_000, "swap": 20_000_000 });
    });
    assert_ne!(container.run().text(), "90000000", "90 MB went through a limit of 20 MB");
    assert_gone(&container);
}

#[test]
fn two_containers_cannot_share_a_scope() {
    if !systemd_or_skip("two_containers_cannot_share_a_scope") {
        return;
    }
    let first = container();
    if first.subject() == Subject::Runc {
        // runc 1.1 only warns that this is deprecated; runc 1.2 refuses it.
        println!("SKIP two_containers_cannot_share_a_scope: runc 1.1 lets them");
        return;
    }
    first.up();
    first.wait_output("ready");
    let path = format!("{SLICE}:box:{}", first.id());
    let second = container().with(|c| c["linux"]["cgroupsPath"] = json!(path));
    second.create().failure();
    second.delete_force().success();
    assert_eq!(first.status(), "running");
    assert_shown(&first, &["ActiveState=active"]);
}

#[test]
fn malformed_requests_are_refused() {
    if !systemd_or_skip("malformed_requests_are_refused") {
        return;
    }
    let paths = ["/a/path", "a.slice:b", "a--b.slice:x:y"];
    for path in paths {
        let container = container().with(|c| c["linux"]["cgroupsPath"] = json!(path));
        container.create().failure();
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{path}");
    }
    let container = container().with(|c| c["annotations"] = json!({ "org.systemd.property.TasksMax": "['open" }));
    container.create().failure();
    assert_gone(&container);
}

#[test]
fn without_systemd_the_error_says_what_was_tried() {
    const TEST: &str = "without_systemd_the_error_says_what_was_tried";
    if Path::new("/run/systemd/system").exists() || Path::new("/run/dbus/system_bus_socket").exists() {
        println!("SKIP {TEST}: this host has systemd or a bus");
        return;
    }
    let container = container();
    if !root_or_skip(TEST) {
        return;
    }
    let done = container.create().failure();
    assert_eq!(container.leftovers(), Vec::<String>::new());
    if container.subject() == Subject::Towline {
        for part in ["/run/systemd/private", "/run/dbus/system_bus_socket", "cgroupfs"] {
            assert!(done.stderr.contains(part), "no {part} in {}", done.stderr);
        }
    }
}

/// Run as an unprivileged user with a session: `testbed/as-user.sh` in the test machine.
#[test]
fn a_users_scope_is_in_their_session() {
    let uid = rustix::process::getuid().as_raw();
    let manager = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("systemd/private"));
    if uid == 0 || !manager.is_some_and(|socket| socket.exists()) {
        println!("SKIP a_users_scope_is_in_their_session: needs an unprivileged user with a systemd of their own");
        return;
    }
    let container = container().with(|c| {
        push(c, "/linux/namespaces", json!({ "type": "user" }));
        c["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
        c["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": rustix::process::getgid().as_raw(), "size": 1 }]);
        c["linux"]["resources"] = json!({ "memory": { "limit": 67_108_864 }, "pids": { "limit": 40 } });
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        // Its group 5 is not mapped.
        for mount in mounts.iter_mut().filter(|mount| mount["destination"] == "/dev/pts") {
            mount["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
        }
    });
    container.up();
    container.wait_output("ready");
    let path = cgroup(&container);
    let session = format!("/user.slice/user-{uid}.slice/user@{uid}.service/");
    assert!(path.starts_with(&session) && path.ends_with(&format!("/{SLICE}/{}", unit(&container))), "{path}");
    let read = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup{path}/{file}")).expect("a control file").trim().to_owned();
    assert_eq!((read("memory.max"), read("pids.max")), ("67108864".into(), "40".into()));
    container.runtime(&["update", "--pids-limit", "20", container.id()]).success();
    assert_eq!(read("pids.max"), "20");
    container.kill("KILL").success();
    container.wait_status("stopped");
    container.delete().success();
    assert!(!Path::new(&format!("/sys/fs/cgroup{path}")).exists());
}
