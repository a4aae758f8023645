//! config-linux.md, "Control groups", on a host with cgroup v2 alone; on others, the same in the test machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use towline_integration::bundle::{Case, Container, Subject, root_or_skip, run_cases};

use crate::resources::Parent;
use crate::update::update;

const ROOT: &str = "/sys/fs/cgroup";

fn v2_or_skip(test: &str) -> bool {
    let there = is_v2();
    if !there {
        println!("SKIP {test}: this host has v1 hierarchies; the_cases_of_v2_hold_in_the_test_machine runs it there");
    }
    root_or_skip(test) && there
}

fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The directory of a container's process. Beside v2's line there is one of a v1 hierarchy while
/// [`network_classes_are_those_of_a_v1_hierarchy_beside_v2`] has it, mounted or not.
fn cgroup(container: &Container) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).expect("the process's cgroup");
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Path::new(ROOT).join(path.unwrap_or_else(|| panic!("a path on v2: {text}")))
}

fn held(container: &Container, file: &str) -> String {
    let path = cgroup(container).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

#[track_caller]
fn holds(container: &Container, table: &[(&str, &str)]) {
    for (file, wanted) in table {
        assert_eq!(held(container, file), *wanted, "{file}");
    }
}

fn running(resources: Value) -> Container {
    let container = Container::new().script("echo ready; sleep 1000").with(|c| {
        for (field, value) in resources.as_object().expect("resources") {
            c["linux"]["resources"][field] = value.clone();
        }
    });
    container.up();
    container.wait_output("ready");
    container
}

/// The machine is emulated, and booted once for all cases.
#[test]
fn the_cases_of_v2_hold_in_the_test_machine() {
    const TEST: &str = "the_cases_of_v2_hold_in_the_test_machine";
    if !root_or_skip(TEST) || is_v2() {
        return;
    }
    let work = std::env::var("TOWLINE_WORK").unwrap_or_else(|_| "/var/tmp/towline-demo".to_owned());
    if !Path::new(&work).join("testbed/vmlinux").exists() {
        println!("SKIP {TEST}: {work}/testbed is not there: make testbed");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/run.sh");
    let cases = [
        "v2::",
        "events::",
        "no_cgroup::",
        "resources::limits_bite",
        "resources::device_rules",
        "update::device_rules",
        "paused",
    ];
    let done = Command::new(script)
        .args(["--deadline", "900", "--"])
        .arg(std::env::current_exe().expect("this test's binary"))
        .args(cases)
        .args(["--test-threads", "2"])
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("run the test machine");
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{output}\n{}", String::from_utf8_lossy(&done.stderr));
    // The cases really ran there.
    let ran = output.lines().filter(|line| line.starts_with("test v2::") && line.ends_with("ok")).count();
    assert!(ran > 5 && !output.contains("SKIP limits_reach_their_files"), "{output}");
}

#[test]
fn limits_reach_their_files() {
    if !v2_or_skip("limits_reach_their_files") {
        return;
    }
    let container = running(json!({
        "memory": { "limit": 67_108_864, "swap": 100_663_296, "reservation": 33_554_432 },
        "cpu": { "shares": 1024, "quota": 20_000, "period": 50_000, "cpus": "0", "mems": "0" },
        "pids": { "limit": 40 },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }],
        "unified": { "memory.high": "60000000", "cgroup.max.depth": "7" },
    }));
    let table = [
        ("memory.max", "67108864"),
        // v1 counts memory and swap together.
        ("memory.swap.max", "33554432"),
        ("memory.low", "33554432"),
        ("memory.high", "59998208"),
        ("cpu.max", "20000 50000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "40"),
        ("hugetlb.2MB.max", "4194304"),
        ("cgroup.max.depth", "7"),
    ];
    holds(&container, &table);
    if container.subject() == Subject::Towline {
        // runc 1.1 and crun 1.8 leave the reservation, and have an older line from shares to weight that makes the default a 39.
        holds(&container, &[("cpu.weight", "100"), ("hugetlb.2MB.rsvd.max", "4194304")]);
    }
}

#[test]
fn block_devices_are_limited() {
    if !v2_or_skip("block_devices_are_limited") {
        return;
    }
    if !Path::new("/sys/block/loop0").exists() || !Path::new(ROOT).join("io.stat").exists() {
        println!("SKIP block_devices_are_limited: no /dev/loop0, or no io controller");
        return;
    }
    let device = |rate: u64| json!([{ "major": 7, "minor": 0, "rate": rate }]);
    let container = running(json!({ "blockIO": {
        "weight": 500, "throttleReadBpsDevice": device(1_048_576), "throttleWriteIOPSDevice": device(70)
    } }));
    assert_eq!(held(&container, "io.max"), "7:0 rbps=1048576 wbps=max riops=max wiops=70");
    // runtime-spec's 10 to 1000 on v2's 1 to 10000; BFQ has a file of its own with v1's scale.
    let bfq = cgroup(&container).join("io.bfq.weight").exists();
    let (file, wanted) = if bfq { ("io.bfq.weight", "500") } else { ("io.weight", "4950") };
    let weight = held(&container, file);
    assert_eq!(weight.lines().next().map(|line| line.trim_start_matches("default ")), Some(wanted), "{weight}");
}

#[test]
fn update_changes_limits_or_leaves_them() {
    if !v2_or_skip("update_changes_limits_or_leaves_them") {
        return;
    }
    let container =
        running(json!({ "memory": { "limit": 67_108_864, "swap": 67_108_864 }, "cpu": { "quota": 20_000, "period": 50_000 } }));
    update(&container, &["--memory", "134217728", "--memory-swap", "201326592", "--pids-limit", "33", "--cpu-quota", "30000"])
        .success();
    holds(&container, &[("memory.max", "134217728"), ("memory.swap.max", "67108864"), ("pids.max", "33")]);
    if container.subject() == Subject::Crun {
        // crun 1.8 sets a period that is not given back to its default.
        return;
    }
    holds(&container, &[("cpu.max", "30000 50000")]);
    update(&container, &["--cpu-quota", "-1", "--pids-limit", "-1"]).success();
    holds(&container, &[("cpu.max", "max 50000"), ("pids.max", "max")]);
    if container.subject() != Subject::Towline {
        return;
    }
    // Swap alone counts from the limit that an earlier update has set.
    update(&container, &["--memory-swap", "150994944"]).success();
    holds(&container, &[("memory.max", "134217728"), ("memory.swap.max", "16777216")]);
    update(&container, &["--cpu-quota", "30000", "--cpu-burst", "20000"]).success();
    holds(&container, &[("cpu.max", "30000 50000"), ("cpu.max.burst", "20000")]);
    update(&container, &["--cpu-idle", "1"]).success();
    holds(&container, &[("cpu.idle", "1")]);
    update(&container, &["--cpu-idle", "0", "--cpu-share", "2048"]).success();
    holds(&container, &[("cpu.idle", "0"), ("cpu.weight", "174")]);
    let before =
        ["memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"].map(|file| (file, held(&container, file)));
    let args = ["--memory", "96m", "--memory-swap", "96m", "--cpu-share", "700", "--pids-limit", "99999999999"];
    let done = update(&container, &args).failure();
    assert!(done.stderr.contains("pids.max"), "the message names the file: {done:?}");
    for (file, wanted) in &before {
        assert_eq!(held(&container, file), *wanted, "{file}");
    }
}

#[test]
fn settings_that_v2_does_not_have_are_refused() {
    if !v2_or_skip("settings_that_v2_does_not_have_are_refused") {
        return;
    }
    let cases = [
        (json!({ "unified": { "nonsense.max": "1" } }), "nonsense"),
        (json!({ "unified": { "memory.nonsense": "1" } }), "memory.nonsense"),
        (json!({ "unified": { "memory.max": "many" } }), "memory.max"),
        (json!({ "cpu": { "cpus": "4096" } }), "cpuset.cpus"),
    ];
    for (resources, word) in cases {
        let container = Container::new().with(|c| {
            for (field, value) in resources.as_object().expect("resources") {
                c["linux"]["resources"][field] = value.clone();
            }
        });
        let done = container.create().failure();
        if container.subject() == Subject::Towline {
            assert!(done.stderr.contains(word), "{done:?}");
            assert_eq!(container.leftovers(), Vec::<String>::new(), "{resources}");
        }
    }
}

#[test]
fn pausing_is_freezing() {
    if !v2_or_skip("pausing_is_freezing") {
        return;
    }
    let container = running(json!({}));
    container.runtime(&["pause", container.id()]).success();
    assert_eq!(container.status(), "paused");
    assert!(held(&container, "cgroup.events").contains("frozen 1"));
    container.exec(&[], &["true"]).failure();
    update(&container, &["--pids-limit", "50"]).success();
    container.runtime(&["resume", container.id()]).success();
    assert_eq!(container.status(), "running");
    assert!(held(&container, "cgroup.events").contains("frozen 0"));
    container.runtime(&["pause", container.id()]).success();
    container.delete_force().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn a_container_may_have_cgroups_of_its_own() {
    if !v2_or_skip("a_container_may_have_cgroups_of_its_own") {
        return;
    }
    // What a systemd does: its own process goes below, so that controllers can be handed down.
    let script = "cd /sys/fs/cgroup; mkdir init.scope; echo 0 > init.scope/cgroup.procs; echo +memory > cgroup.subtree_control; \
                  cat cgroup.subtree_control; echo ready; sleep 1000";
    let container = Container::new().script(script).with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "cgroup" }));
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        let mount = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").expect("the cgroup mount");
        mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
    });
    container.up();
    assert!(container.wait_output("ready").starts_with("memory"), "{}", container.output());
    // The container's own cgroup takes no process any more: exec goes to where init is.
    let inside = container.exec(&[], &["grep", "^0::", "/proc/self/cgroup"]).success();
    assert_eq!(inside.text(), "0::/init.scope");
    if container.subject() == Subject::Crun {
        // crun 1.8 crashes in ps here.
        return;
    }
    let ps = container.runtime(&["ps", "--format", "json", container.id()]).success();
    let pids: Vec<i32> = serde_json::from_str(&ps.stdout).expect("a list of pids");
    assert!(pids.contains(&container.pid()), "{pids:?}");
    container.delete_force().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn the_container_sees_its_own_part() {
    if !v2_or_skip("the_container_sees_its_own_part") {
        return;
    }
    let cgroup_namespace = |c: &mut Value| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "cgroup" }));
        c["linux"]["resources"]["pids"] = json!({ "limit": 41 });
    };
    run_cases(&[Case {
        name: "with a cgroup namespace",
        edit: cgroup_namespace,
        script: "grep ^0:: /proc/self/cgroup; cat /sys/fs/cgroup/pids.max; mkdir /sys/fs/cgroup/x 2>/dev/null || echo read-only",
        wanted: "0::/\n41\nread-only",
    }]);
    if Container::new().subject() != Subject::Towline {
        // No clause. The references then show the whole hierarchy of the host.
        return;
    }
    run_cases(&[Case {
        name: "without one: a bind mount of the container's cgroup",
        edit: |c| c["linux"]["resources"]["pids"] = json!({ "limit": 42 }),
        script: "cat /sys/fs/cgroup/pids.max",
        wanted: "42",
    }]);
}

#[test]
fn the_path_is_honoured_and_our_parents_go() {
    if !v2_or_skip("the_path_is_honoured_and_our_parents_go") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 1000");
    let theirs = Parent::new(&container);
    let parent = Path::new(ROOT).join(&theirs.0);
    fs::create_dir(&parent).expect("a parent of the caller's");
    let container = container.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{}/ours/leaf", theirs.0)));
    container.up();
    assert_eq!(cgroup(&container), parent.join("ours/leaf"));
    container.delete_force().success();
    assert!(!parent.join("ours/leaf").exists() && parent.exists());
    if container.subject() == Subject::Towline {
        // No clause: the references leave the parents they make.
        assert!(!parent.join("ours").exists(), "an empty parent of ours is left");
    } else {
        fs::remove_dir(parent.join("ours")).expect("remove what the reference left");
    }
}

#[test]
fn kill_all_reaches_processes_in_cgroups_below() {
    if !v2_or_skip("kill_all_reaches_processes_in_cgroups_below") {
        return;
    }
    let container = Container::new().script("sleep 1000 & echo ready; wait").with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "pid");
    });
    container.up();
    container.wait_output("ready");
    let below = cgroup(&container).join("below");
    fs::create_dir(&below).expect("a cgroup below");
    let procs = fs::read_to_string(cgroup(&container).join("cgroup.procs")).expect("its processes");
    let init = container.pid().to_string();
    let other = procs.lines().find(|pid| *pid != init).expect("a second process");
    let mut file = fs::OpenOptions::new().write(true).open(below.join("cgroup.procs")).expect("open cgroup.procs");
    file.write_all(other.as_bytes()).expect("move the process");
    container.runtime(&["kill", "--all", container.id(), "KILL"]).success();
    container.wait_status("stopped");
    container.delete().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn network_classes_are_those_of_a_v1_hierarchy_beside_v2() {
    const TEST: &str = "network_classes_are_those_of_a_v1_hierarchy_beside_v2";
    if !v2_or_skip(TEST) {
        return;
    }
    if std::env::var_os("TESTBED").is_none() {
        println!("SKIP {TEST}: it mounts a hierarchy, which only the test machine is for");
        return;
    }
    let container = Container::new().script("sleep 1000").with(|c| {
        c["linux"]["resources"]["network"] = json!({ "classID": 1_048_577, "priorities": [{ "name": "lo", "priority": 3 }] });
    });
    if container.subject() != Subject::Towline {
        // config-linux.md, "Network": the references look no further than the v2 hierarchy at /sys/fs/cgroup.
        println!("SKIP {TEST}: the references do not use a v1 hierarchy beside v2");
        return;
    }
    // Mounted for one command at a time, so that the other cases have a host with v2 alone.
    let beside = |command: Command| {
        let mut shell = Command::new("unshare");
        let mount = "mkdir -p /tmp/net && mount -t cgroup -o net_cls,net_prio none /tmp/net && exec \"$@\"";
        shell
            .args(["--mount", "--propagation", "private", "sh", "-c", mount, "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        container.execute(shell)
    };
    container.write_config();
    let bundle = container.bundle().display().to_string();
    beside(container.command(&["create", "--bundle", &bundle, container.id()])).success();
    for (file, wanted) in [("net_cls.classid", "1048577"), ("net_prio.ifpriomap", "lo 3")] {
        let mut cat = Command::new("cat");
        cat.arg(format!("/tmp/net/towline-{}/{file}", container.id()));
        assert_eq!(beside(cat).success().text(), wanted, "{file}");
    }
    beside(container.command(&["delete", "--force", container.id()])).success();
    let mut list = Command::new("ls");
    list.arg("/tmp/net");
    assert!(!beside(list).success().stdout.contains("towline"), "a cgroup is left");
}
