//! config-linux.md, "Control groups", on v1 hierarchies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use towline_integration::bundle::{Case, Container, Subject, root_or_skip, run_cases};

const CONTROLLERS: [&str; 8] = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"];

pub fn v1_or_skip(test: &str) -> bool {
    let there = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
    if !there {
        println!("SKIP {test}: this host has no v1 hierarchies");
    }
    root_or_skip(test) && there
}

/// Removes the parent that a case has caused, when the container in it is gone.
pub struct Parent(pub String);

impl Parent {
    pub fn new(container: &Container) -> Self {
        Self(format!("towline-parent-{}", container.id()))
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for controller in CONTROLLERS.iter().chain(&["systemd", "unified", "."]) {
            let dir = Path::new("/sys/fs/cgroup").join(controller).join(&self.0);
            if dir.exists() {
                fs::remove_dir(&dir).unwrap_or_else(|error| eprintln!("removing {}: {error}", dir.display()));
            }
        }
    }
}

/// The directory of a running container in one hierarchy, from /proc.
pub fn cgroup(container: &Container, controller: &str) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).expect("the process's cgroups");
    let line = text.lines().find(|line| line.split(':').nth(1) == Some(controller)).expect("a line for the controller");
    Path::new("/sys/fs/cgroup").join(controller).join(line.splitn(3, ':').nth(2).expect("a path").trim_start_matches('/'))
}

#[test]
fn cgroups_path_is_honoured_in_every_hierarchy() {
    if !v1_or_skip("cgroups_path_is_honoured_in_every_hierarchy") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100");
    let parent = Parent::new(&container);
    let path = format!("/{}/leaf", parent.0);
    let container = container.with(|c| c["linux"]["cgroupsPath"] = json!(path));
    container.up();
    container.wait_output("ready");
    let pid = container.pid().to_string();
    for controller in CONTROLLERS {
        let procs = fs::read_to_string(format!("/sys/fs/cgroup/{controller}{path}/cgroup.procs")).unwrap_or_default();
        assert!(procs.lines().any(|line| line == pid), "{controller}: {procs:?}");
    }
    container.delete_force().success();
    for controller in CONTROLLERS {
        assert!(!Path::new(&format!("/sys/fs/cgroup/{controller}{path}")).exists(), "{controller}: the leaf is left");
    }
}

#[test]
fn parents_of_our_own_go_with_the_last_container() {
    if !v1_or_skip("parents_of_our_own_go_with_the_last_container") {
        return;
    }
    let container = Container::new().script("sleep 100");
    if container.subject() != Subject::Towline {
        // No clause: the references leave the parents they make.
        println!("SKIP parents_of_our_own_go_with_the_last_container: the references leave empty parents behind");
        return;
    }
    let theirs = Parent::new(&container);
    let dir = |controller: &str, below: &str| PathBuf::from(format!("/sys/fs/cgroup/{controller}/{}{below}", theirs.0));
    fs::create_dir(dir("memory", "")).expect("a parent of the caller's");
    let at = |leaf: &str| json!(format!("/{}/ours/{leaf}", theirs.0));
    let container = container.with(|c| c["linux"]["cgroupsPath"] = at("one"));
    let second = Container::new().script("sleep 100").with(|c| c["linux"]["cgroupsPath"] = at("two"));
    container.up();
    second.up();
    container.delete_force().success();
    assert!(CONTROLLERS.iter().all(|controller| dir(controller, "/ours/two").exists()), "the second container's are gone");
    second.delete_force().success();
    for controller in CONTROLLERS {
        assert!(!dir(controller, "/ours").exists(), "{controller}: an empty parent of ours is left");
    }
    assert!(dir("memory", "").exists(), "a parent that the caller made is gone");
}

#[test]
fn a_relative_path_is_below_the_callers_own() {
    if !v1_or_skip("a_relative_path_is_below_the_callers_own") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100");
    if container.subject() == Subject::Crun {
        // config-linux.md leaves it to the runtime "how and where" for a relative path; crun takes it from the root.
        println!("SKIP a_relative_path_is_below_the_callers_own: crun takes relative paths from the root");
        return;
    }
    let name = format!("towline-relative-{}", container.id());
    let container = container.with(|c| c["linux"]["cgroupsPath"] = json!(name));
    container.up();
    let own = fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
    let own = own.lines().find(|line| line.split(':').nth(1) == Some("memory")).expect("a line for memory");
    let own = own.splitn(3, ':').nth(2).expect("a path").trim_start_matches('/');
    assert_eq!(cgroup(&container, "memory"), Path::new("/sys/fs/cgroup/memory").join(own).join(name));
}

#[test]
fn limits_are_in_force_before_the_program_starts() {
    if !v1_or_skip("limits_are_in_force_before_the_program_starts") {
        return;
    }
    let container = Container::new().with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864, "swap": 67_108_864, "reservation": 33_554_432 });
        c["linux"]["resources"]["cpu"] = json!({ "shares": 512, "quota": 20_000, "period": 50_000, "cpus": "0" });
        c["linux"]["resources"]["pids"] = json!({ "limit": 40 });
    });
    container.create().success();
    let table = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "20000"),
        ("cpu", "cpu.cfs_period_us", "50000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "40"),
    ];
    for (controller, file, wanted) in table {
        let path = cgroup(&container, controller).join(file);
        assert_eq!(fs::read_to_string(&path).expect("the control file").trim(), wanted, "{}", path.display());
    }
}

#[test]
fn further_resources_reach_their_files() {
    if !v1_or_skip("further_resources_reach_their_files") {
        return;
    }
    let device = fs::read_dir("/sys/block").expect("block devices").flatten().find_map(|entry| {
        let numbers = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some((major.parse::<u64>().ok()?, minor.parse::<u64>().ok()?))
    });
    let (major, minor) = device.expect("a block device");
    let container = Container::new().with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "swappiness": 30, "disableOOMKiller": true });
        c["linux"]["resources"]["cpu"] = json!({ "mems": "0" });
        c["linux"]["resources"]["blockIO"] = json!({
            "throttleReadBpsDevice": [{ "major": major, "minor": minor, "rate": 1_048_576 }],
            "throttleWriteIOPSDevice": [{ "major": major, "minor": minor, "rate": 70 }],
        });
    });
    let (towline, crun) = (container.subject() == Subject::Towline, container.subject() == Subject::Crun);
    let container = container.with(|c| {
        // crun 1.8 knows only CFQ's file, which kernels since 5.0 do not have.
        if !crun {
            c["linux"]["resources"]["blockIO"]["weight"] = json!(300);
        }
        // Younger than runc 1.1 and crun 1.8, or (kernelTCP) left out by them.
        if towline {
            c["linux"]["resources"]["memory"]["kernelTCP"] = json!(4_194_304);
            c["linux"]["resources"]["cpu"] = json!({ "mems": "0", "quota": 20_000, "burst": 10_000, "shares": 300, "idle": 1 });
            c["linux"]["resources"]["memory"]["useHierarchy"] = json!(true);
        }
    });
    container.create().success();
    let (read, write) = (format!("{major}:{minor} 1048576"), format!("{major}:{minor} 70"));
    let weight = cgroup(&container, "blkio").join("blkio.bfq.weight");
    let mut table = vec![
        ("memory", "memory.swappiness", "30"),
        ("cpuset", "cpuset.mems", "0"),
        ("blkio", "blkio.throttle.read_bps_device", &read),
        ("blkio", "blkio.throttle.write_iops_device", &write),
    ];
    if !crun {
        table.push(("blkio", if weight.exists() { "blkio.bfq.weight" } else { "blkio.weight" }, "300"));
    }
    if towline {
        table.push(("memory", "memory.kmem.tcp.limit_in_bytes", "4194304"));
        table.extend([("cpu", "cpu.cfs_burst_us", "10000"), ("cpu", "cpu.idle", "1")]);
    }
    for (controller, file, wanted) in table {
        let path = cgroup(&container, controller).join(file);
        assert_eq!(fs::read_to_string(&path).expect("the control file").trim(), wanted, "{}", path.display());
    }
    let oom = fs::read_to_string(cgroup(&container, "memory").join("memory.oom_control")).expect("the control file");
    assert!(oom.contains("oom_kill_disable 1"), "{oom}");
}

#[test]
fn limits_bite() {
    if !root_or_skip("limits_bite") {
        return;
    }
    let memory = Container::new().script("head -c 100000000 /dev/zero | tail -c 90000000 | wc -c").with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 20_000_000, "swap": 20_000_000 });
    });
    assert_ne!(memory.run().text(), "90000000", "90 MB went through a limit of 20 MB");
    let pids = Container::new().script("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all").with(|c| {
        c["linux"]["resources"]["pids"] = json!({ "limit": 5 });
    });
    let done = pids.run();
    assert!(!done.stdout.contains("all") && done.stderr.contains("fork"), "{done:?}");
}

#[test]
fn device_rules_are_enforced() {
    if !root_or_skip("device_rules_are_enforced") {
        return;
    }
    fn devices(c: &mut Value, rules: Value) {
        c["linux"]["resources"]["devices"] = rules;
        let mknod = json!(["CAP_MKNOD"]);
        c["process"]["capabilities"] = json!({ "bounding": mknod, "effective": mknod, "permitted": mknod });
        // A device file on the root needs no further permission than the cgroup's.
        c["process"]["noNewPrivileges"] = json!(false);
    }
    let script = "cd /dev/shm/..; mknod f c 10 229; (: < f) 2>/dev/null && echo read; (: > f) 2>/dev/null && echo write; \
                  echo x > null && echo null";
    run_cases(&[
        Case {
            name: "everything denied: the default devices stay",
            edit: |c| devices(c, json!([{ "allow": false, "access": "rwm" }])),
            script,
            wanted: "null",
        },
        Case {
            name: "one allowed for writing",
            edit: |c| {
                devices(
                    c,
                    json!([{ "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "w" }]),
                );
            },
            script,
            wanted: "write\nnull",
        },
        Case {
            name: "everything allowed",
            edit: |c| devices(c, json!([{ "allow": true, "access": "rwm" }])),
            script,
            wanted: "read\nwrite\nnull",
        },
    ]);
}

#[test]
fn a_limit_that_the_kernel_refuses_fails_the_create() {
    if !v1_or_skip("a_limit_that_the_kernel_refuses_fails_the_create") {
        return;
    }
    let cases = [json!({ "cpu": { "cpus": "4096" } }), json!({ "memory": { "limit": 67_108_864, "swap": 1_048_576 } })];
    for resources in cases {
        let container = Container::new().with(|c| c["linux"]["resources"] = resources.clone());
        container.create().failure();
        if container.subject() != Subject::Crun {
            // runtime.md, create: an error "MUST NOT affect the state"; crun 1.8 leaves its cgroups.
            assert_eq!(container.leftovers(), Vec::<String>::new(), "{resources}");
        }
    }
}

#[test]
fn huge_pages_are_limited_where_the_controller_is() {
    const TEST: &str = "huge_pages_are_limited_where_the_controller_is";
    if !v1_or_skip(TEST) {
        return;
    }
    let v1 = Path::new("/sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes").exists();
    let v2 = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default().contains("hugetlb");
    let container = Container::new().script("sleep 100");
    if !v1 && !v2 {
        println!("SKIP {TEST}: no hierarchy has hugetlb");
        return;
    }
    if !v1 && container.subject() != Subject::Towline {
        // config-linux.md, hugepageLimits: the references do not look at a v2 hierarchy beside v1.
        println!("SKIP {TEST}: hugetlb is on the v2 hierarchy of a hybrid host, which the references do not use");
        return;
    }
    let path = format!("/towline-huge-{}", container.id());
    let container = container.with(|c| {
        c["linux"]["cgroupsPath"] = json!(path);
        c["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": "2MB", "limit": 4_194_304 }]);
    });
    container.create().success();
    let files = if v1 {
        ["hugetlb/", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"]
    } else {
        ["unified/", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]
    };
    let dir = format!("/sys/fs/cgroup/{}{}", files[0], &path[1..]);
    for file in &files[1..] {
        assert_eq!(fs::read_to_string(format!("{dir}/{file}")).expect("the limit").trim(), "4194304", "{file}");
    }
}

#[test]
fn what_this_host_cannot_limit_is_refused() {
    if !v1_or_skip("what_this_host_cannot_limit_is_refused") {
        return;
    }
    let mut cases = vec![
        // config-linux.md, Unified: a controller that is not present on v2 "MUST generate an error".
        (json!({ "unified": { "memory.high": "100000000" } }), "unified"),
    ];
    if Container::new().subject() == Subject::Towline {
        // The kernel takes these and does nothing: v1 has no way to say them.
        let rule = |allow: bool, minor: i64| json!({ "allow": allow, "type": "c", "major": 10, "minor": minor, "access": "rw" });
        cases.push((json!({ "devices": [rule(true, -1), rule(false, 229)] }), "earlier rule"));
    }
    if !Path::new("/sys/fs/cgroup/net_cls").exists() {
        cases.push((json!({ "network": { "classID": 1_048_577 } }), "net"));
    }
    for (resources, word) in cases {
        let container = Container::new().with(|c| c["linux"]["resources"] = resources.clone());
        if container.subject() == Subject::Crun && word == "net" {
            // crun 1.8 leaves a limit out whose controller is missing.
            continue;
        }
        let done = container.create().failure();
        assert!(container.subject() != Subject::Towline || done.stderr.contains(word), "{resources}: {done:?}");
    }
}

#[test]
fn read_only_cgroups_are_named() {
    if !v1_or_skip("read_only_cgroups_are_named") {
        return;
    }
    let container = Container::new();
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let runtime = container.command(&["create", "--bundle", &bundle, container.id()]);
    let mut command = Command::new("unshare");
    let lock = "mount -o remount,bind,ro /sys/fs/cgroup/pids && exec \"$@\"";
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", lock, "sh"])
        .arg(runtime.get_program())
        .args(runtime.get_args());
    let done = container.execute(command).failure();
    // crun 1.8 speaks of a directory that is not there.
    assert!(container.subject() == Subject::Crun || done.stderr.to_lowercase().contains("read-only file system"), "{done:?}");
    if container.subject() == Subject::Towline {
        assert!(done.stderr.contains("/sys/fs/cgroup/pids/") && done.stderr.contains("--cgroup-manager=disabled"), "{done:?}");
        assert_eq!(container.leftovers(), Vec::<String>::new());
    }
}
