//! Fake directory trees for what goes into which file, the real hierarchies (as root) for what the kernel makes of it.

use std::process::{Child, Command, Stdio};

use rustix::fs::Mode as FileMode;
use serde_json::{Value, json};

use super::*;

fn resources(value: Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn mount_line(fstype: &str, mountpoint: &Path, root: &str, options: &str) -> String {
    format!("30 23 0:28 {root} {} rw,relatime shared:1 - {fstype} {fstype} {options}\n", mountpoint.display())
}

/// A host with the v1 mounts `names` (as options, such as `cpu,cpuacct`) and perhaps a v2 mount, all in a temporary directory.
fn fake(v1: &[&str], v2: Option<&str>) -> (tempfile::TempDir, Host) {
    let base = tempfile::tempdir().unwrap();
    let (mut mountinfo, mut own) = (String::new(), String::new());
    for options in v1 {
        let dir = base.path().join(options.trim_start_matches("name="));
        fs::create_dir(&dir).unwrap();
        mountinfo += &mount_line("cgroup", &dir, "/", &format!("rw,{options}"));
        own += &format!("1:{options}:/user/me\n");
    }
    if let Some(controllers) = v2 {
        let dir = base.path().join("unified");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        mountinfo += &mount_line("cgroup2", &dir, "/", "rw");
        own += "0::/user/me\n";
    }
    let host = Host::parse(&mountinfo, &own).unwrap();
    (base, host)
}

#[test]
fn the_mode_follows_the_mounts() {
    let cases: [(&[&str], Option<&str>, Mode); 6] = [
        (&["cpu,cpuacct", "memory"], None, Mode::V1),
        (&["memory", "name=systemd"], None, Mode::V1),
        (&["memory", "name=systemd"], Some(""), Mode::Hybrid),
        (&["memory", "name=systemd"], Some("hugetlb"), Mode::Hybrid),
        (&[], Some("cpu memory pids"), Mode::V2),
        (&["name=systemd"], Some("cpu memory"), Mode::V2),
    ];
    for (v1, v2, mode) in cases {
        let (_base, host) = fake(v1, v2);
        assert_eq!(host.mode(), mode, "{v1:?} {v2:?}");
    }
}

#[test]
fn mountinfo_is_read_with_its_oddities() {
    // A directory with a space, a mount that shows a part of the hierarchy, the same hierarchy twice, optional fields.
    let mountinfo = "1 0 0:1 / / rw - ext4 /dev/root rw\n\
         2 1 0:2 /docker/c1 /my\\040cgroup/cpu ro,nosuid master:9 shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
         3 1 0:3 / /systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
         4 1 0:2 /docker/c1 /again rw - cgroup cgroup rw,cpu,cpuacct\n\
         5 1 0:5 / /other rw - cgroup cgroup rw,memory,release_agent=/x\n\
         broken line\n";
    let host = Host::parse(mountinfo, "4:cpuacct,cpu:/docker/c1/inner\n3:name=systemd:/docker/c1\n2:memory:/../x\n").unwrap();
    let [cpu, systemd, memory] = host.hierarchies() else { panic!("{:?}", host.hierarchies()) };
    assert_eq!(cpu.mountpoint, Path::new("/my cgroup/cpu"));
    assert_eq!((cpu.controllers.join(" "), cpu.own.as_deref()), ("cpu cpuacct".into(), Some(Path::new("/inner"))));
    assert_eq!((systemd.name.as_deref(), systemd.controllers.len()), (Some("systemd"), 0));
    assert_eq!((memory.controllers.join(" "), memory.own.as_deref()), ("memory".into(), None));
    assert_eq!(Host::parse("1 0 0:1 / / rw - ext4 /dev/root rw\n", "").unwrap_err().outcome(), Outcome::Unsupported);
}

#[test]
fn cgroups_path_is_taken_as_runc_takes_it() {
    // (cgroupsPath, below a v1 mount point, below a pure v2 one)
    let cases = [
        (Some("/libpod_parent/libpod-1"), "libpod_parent/libpod-1", "libpod_parent/libpod-1"),
        (Some("relative/x"), "user/me/relative/x", "user/relative/x"),
        (Some("/a/../../../b/./c"), "b/c", "b/c"),
        (Some("../../../etc"), "user/me/etc", "user/etc"),
        (Some(""), "user/me/towline-id1", "user/towline-id1"),
        (None, "user/me/towline-id1", "user/towline-id1"),
    ];
    let (base1, v1) = fake(&["memory"], None);
    let (base2, v2) = fake(&[], Some("memory"));
    for (given, in_v1, in_v2) in cases {
        for (host, root, wanted) in [(&v1, base1.path().join("memory"), in_v1), (&v2, base2.path().join("unified"), in_v2)] {
            let dir = path::directory(host, &host.hierarchies()[0], given.map(Path::new), "id1").unwrap();
            assert_eq!(dir, root.join(wanted), "{given:?}");
        }
    }
    for (bad, outcome) in [("/", Outcome::BadInput), ("..", Outcome::BadInput), ("user.slice:p:n", Outcome::Unsupported)] {
        let error = path::directory(&v1, &v1.hierarchies()[0], Some(Path::new(bad)), "id1").unwrap_err();
        assert_eq!(error.outcome(), outcome, "{bad}");
    }
}

/// A control file, its content before, its content after.
type Content<'a> = (&'a str, &'a str, &'a str);

/// Applies `value` in a directory in which the files of `table` exist with the content given first, and checks what they
/// hold then.
fn check_files(apply: impl Fn(&Path, &LinuxResources) -> Result<()>, value: Value, table: &[Content]) {
    let dir = tempfile::tempdir().unwrap();
    for (file, before, _) in table {
        fs::write(dir.path().join(file), before).unwrap();
    }
    apply(dir.path(), &resources(value.clone())).unwrap_or_else(|error| panic!("{value}: {error:?}"));
    for (file, _, after) in table {
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), *after, "{file} by {value}");
    }
}

fn all_controllers() -> Vec<String> {
    ["cpuset", "cpu", "memory", "pids", "blkio", "io", "hugetlb", "net_cls", "net_prio", "rdma"].map(str::to_owned).to_vec()
}

#[test]
fn limits_reach_the_v1_files() {
    let throttle = json!([{ "major": 8, "minor": 0, "rate": 1000 }]);
    let cases: Vec<(Value, Vec<Content>)> = vec![
        (json!({ "memory": { "limit": 64, "swap": 128 } }), vec![("memory.limit_in_bytes", "", "64"), (SWAP, "99", "128")]),
        (json!({ "memory": { "limit": -1 } }), vec![("memory.limit_in_bytes", "", "-1"), (SWAP, "9", "-1")]),
        (json!({ "memory": { "limit": 0, "swap": 0 } }), vec![("memory.limit_in_bytes", "7", "7"), (SWAP, "7", "7")]),
        (
            json!({ "memory": { "reservation": 32, "swappiness": 0, "disableOOMKiller": true, "kernelTCP": 5 } }),
            vec![
                ("memory.soft_limit_in_bytes", "", "32"),
                ("memory.swappiness", "", "0"),
                ("memory.oom_control", "", "1"),
                ("memory.kmem.tcp.limit_in_bytes", "", "5"),
            ],
        ),
        (
            json!({ "cpu": { "shares": 512, "quota": 5000, "period": 10000, "cpus": "0", "mems": "0", "burst": 10 } }),
            vec![
                ("cpu.shares", "", "512"),
                ("cpu.cfs_quota_us", "", "5000"),
                ("cpu.cfs_period_us", "", "10000"),
                ("cpu.cfs_burst_us", "", "10"),
                ("cpuset.cpus", "", "0"),
                ("cpuset.mems", "", "0"),
            ],
        ),
        (
            // Leaving idle comes before the shares, becoming idle after them: the last write is seen.
            json!({ "cpu": { "shares": 512, "idle": 0, "burst": 0 } }),
            vec![("cpu.idle", "1", "0"), ("cpu.shares", "", "512"), ("cpu.cfs_burst_us", "9", "0")],
        ),
        (json!({ "cpu": { "idle": 0, "burst": 0 } }), vec![]),
        (json!({ "cpu": { "idle": 1 } }), vec![("cpu.idle", "0", "1")]),
        (json!({ "memory": { "useHierarchy": true } }), vec![("memory.use_hierarchy", "1", "1")]),
        (json!({ "memory": { "limit": -1, "swap": -1 } }), vec![("memory.limit_in_bytes", "", "-1")]),
        (json!({ "pids": { "limit": 20 } }), vec![("pids.max", "", "20")]),
        (json!({ "pids": { "limit": -1 } }), vec![("pids.max", "", "max")]),
        (json!({ "pids": { "limit": 0 } }), vec![("pids.max", "max", "max")]),
        (
            json!({ "blockIO": { "weight": 100, "throttleReadBpsDevice": throttle, "throttleWriteIOPSDevice": throttle } }),
            vec![
                ("blkio.bfq.weight", "", "100"),
                ("blkio.throttle.read_bps_device", "", "8:0 1000"),
                ("blkio.throttle.write_iops_device", "", "8:0 1000"),
            ],
        ),
        (
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 9 }] }),
            vec![("hugetlb.2MB.limit_in_bytes", "", "9"), ("hugetlb.2MB.rsvd.limit_in_bytes", "", "9")],
        ),
        (
            json!({ "network": { "classID": 1048577, "priorities": [{ "name": "eth0", "priority": 5 }] } }),
            vec![("net_cls.classid", "", "1048577"), ("net_prio.ifpriomap", "", "eth0 5")],
        ),
        (json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }), vec![("rdma.max", "", "mlx5_1 hca_handle=3 hca_object=max")]),
    ];
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    for (value, table) in cases {
        check_files(|dir, resources| v1::apply(&Files::new(dir), &all_controllers(), resources), value, &table);
    }
}

#[test]
fn limits_reach_the_v2_files() {
    let cases: Vec<(Value, Vec<Content>)> = vec![
        (
            json!({ "memory": { "limit": 64, "swap": 100, "reservation": 32 } }),
            vec![("memory.max", "", "64"), ("memory.swap.max", "", "36"), ("memory.low", "", "32")],
        ),
        (json!({ "memory": { "limit": -1 } }), vec![("memory.max", "", "max"), ("memory.swap.max", "", "max")]),
        (json!({ "cpu": { "shares": 1024 } }), vec![("cpu.weight", "", "100")]),
        (json!({ "cpu": { "idle": 1, "burst": 7 } }), vec![("cpu.idle", "", "1"), ("cpu.max.burst", "", "7")]),
        (json!({ "cpu": { "idle": 0, "burst": 0 } }), vec![]),
        (json!({ "memory": { "limit": 64, "swap": 64 } }), vec![("memory.max", "", "64")]),
        (json!({ "cpu": { "quota": 5000, "period": 10000 } }), vec![("cpu.max", "", "5000 10000")]),
        (json!({ "cpu": { "quota": -1 } }), vec![("cpu.max", "", "max")]),
        (json!({ "cpu": { "period": 2000 } }), vec![("cpu.max", "max 100000", "max 200000")]),
        (json!({ "pids": { "limit": -1 } }), vec![("pids.max", "", "max")]),
        (
            json!({ "blockIO": { "weight": 1000, "throttleWriteBpsDevice": [{ "major": 8, "minor": 1, "rate": 7 }] } }),
            vec![("io.weight", "", "10000"), ("io.max", "", "8:1 wbps=7")],
        ),
        (
            json!({ "blockIO": { "weight": 300, "weightDevice": [{ "major": 8, "minor": 0, "weight": 400 }] } }),
            vec![("io.bfq.weight", "", "8:0 400"), ("io.weight", "7", "7")],
        ),
        (json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0, "weight": 10 }] } }), vec![("io.weight", "", "8:0 1")]),
        (json!({ "rdma": { "mlx5_1": { "hcaObjects": 3 } } }), vec![("rdma.max", "", "mlx5_1 hca_handle=max hca_object=3")]),
        (json!({ "hugepageLimits": [{ "pageSize": "1GB", "limit": 9 }] }), vec![("hugetlb.1GB.max", "", "9")]),
        (json!({ "unified": { "memory.high": "50", "pids.max": "5" } }), vec![("memory.high", "", "50"), ("pids.max", "", "5")]),
    ];
    for (value, table) in cases {
        check_files(|dir, resources| v2::apply(&Files::new(dir), &all_controllers(), resources), value, &table);
    }
}

#[test]
fn values_that_cannot_be_set_are_refused() {
    let v1_dir = tempfile::tempdir().unwrap();
    let cases = [
        (json!({ "memory": { "limit": 64, "swap": 32 } }), Outcome::BadInput),
        (json!({ "memory": { "swap": 32 } }), Outcome::BadInput),
        (json!({ "memory": { "swappiness": 10 } }), Outcome::Unsupported),
        (json!({ "memory": { "disableOOMKiller": true } }), Outcome::Unsupported),
        (json!({ "cpu": { "realtimeRuntime": 10 } }), Outcome::Unsupported),
        (json!({ "unified": { "../memory.max": "1" } }), Outcome::BadInput),
        (json!({ "unified": { "nonsense.max": "1" } }), Outcome::Unsupported),
        (json!({ "hugepageLimits": [{ "pageSize": "../2MB", "limit": 1 }] }), Outcome::BadInput),
        (json!({ "rdma": { "a b": { "hcaHandles": 1 } } }), Outcome::BadInput),
    ];
    for (value, outcome) in cases {
        let error = v2::apply(&Files::new(v1_dir.path()), &all_controllers(), &resources(value.clone())).unwrap_err();
        assert_eq!(error.outcome(), outcome, "{value}: {error:?}");
    }
    fs::write(v1_dir.path().join("memory.usage_in_bytes"), "5000\n").unwrap();
    let squeeze = resources(json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } }));
    assert_eq!(v1::apply(&Files::new(v1_dir.path()), &all_controllers(), &squeeze).unwrap_err().outcome(), Outcome::Busy);
}

#[test]
fn weights_keep_minimum_default_and_maximum() {
    let cases = [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)];
    for (shares, weight) in cases {
        assert_eq!(value::cpu_weight(shares), weight, "{shares}");
    }
    assert_eq!([10, 1000].map(value::io_weight), [1, 10_000]);
}

#[test]
fn a_missing_controller_is_an_error_only_if_a_limit_needs_it() {
    let (base, host) = fake(&["devices"], Some("hugetlb"));
    let wanted = resources(json!({ "memory": { "limit": 4096 }, "cpu": { "cpus": "0", "shares": 0 }, "pids": { "limit": -1 } }));
    let error = CgroupManager::create_on(&host, Some(Path::new("/c")), "c", Some(&wanted)).unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unsupported);
    let line = error.one_line();
    assert!(line.contains("memory.limit (controller memory), linux.resources.cpu.cpus (controller cpuset)"), "{line}");
    assert!(!line.contains("shares") && !line.contains("pids"), "{line}");
    assert!(!base.path().join("devices/c").exists(), "something was made");
    // unified is about the v2 hierarchy, also where v1 has the controller.
    let unified = resources(json!({ "unified": { "memory.max": "1", "cgroup.max.depth": "1" } }));
    for (v2, word) in [(None, "no cgroup v2 hierarchy"), (Some("hugetlb"), "controllers: memory")] {
        let (_base, host) = fake(&["memory"], v2);
        let error = CgroupManager::create_on(&host, None, "c", Some(&unified)).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unsupported);
        assert!(error.one_line().contains(word), "{error:?}");
    }
}

#[test]
fn a_failed_create_leaves_nothing() {
    // The fake tree has no devices.deny in a new directory, so the last step fails.
    let (base, host) = fake(&["memory", "devices"], Some(""));
    let error = CgroupManager::create_on(&host, Some(Path::new("/parent/c")), "c", None).unwrap_err();
    assert!(error.one_line().contains("devices.deny"), "{error:?}");
    for hierarchy in ["memory", "devices", "unified"] {
        assert!(!base.path().join(hierarchy).join("parent").exists(), "{hierarchy}");
    }
}

#[test]
fn a_cgroup_in_use_is_refused() {
    let (base, host) = fake(&["devices", "freezer"], None);
    let leaf = base.path().join("freezer/c");
    fs::create_dir(&leaf).unwrap();
    for (file, content, word) in [("cgroup.procs", "17\n", "processes"), ("freezer.state", "FROZEN\n", "frozen")] {
        fs::write(leaf.join(file), content).unwrap();
        let error = CgroupManager::create_on(&host, Some(Path::new("/c")), "c", None).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Busy);
        assert!(error.one_line().contains(word), "{error:?}");
        fs::remove_file(leaf.join(file)).unwrap();
    }
}

#[test]
fn controllers_are_handed_down_from_the_mount_point_to_the_parent() {
    let base = tempfile::tempdir().unwrap();
    let leaf = base.path().join("a/b");
    fs::create_dir_all(&leaf).unwrap();
    fs::write(base.path().join("cgroup.subtree_control"), "memory cpu\n").unwrap();
    fs::write(base.path().join("a/cgroup.subtree_control"), "").unwrap();
    assert!(v2::hand_down(base.path(), &leaf, &["memory".into()]).is_empty());
    assert_eq!(fs::read_to_string(base.path().join("cgroup.subtree_control")).unwrap(), "memory cpu\n");
    assert_eq!(fs::read_to_string(base.path().join("a/cgroup.subtree_control")).unwrap(), "+memory");
    fs::remove_file(base.path().join("a/cgroup.subtree_control")).unwrap();
    let refused = v2::hand_down(base.path(), &leaf, &["cpu".into()]);
    assert_eq!(refused.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["cpu"]);
}

#[test]
fn the_container_sees_its_part_of_each_hierarchy() {
    let manager = |host: &Host| CgroupManager {
        mode: host.mode(),
        warnings: Vec::new(),
        places: host
            .hierarchies()
            .iter()
            .map(|found| Place {
                version: found.version,
                controllers: found.controllers.clone(),
                name: found.name.clone(),
                mountpoint: found.mountpoint.clone(),
                dir: found.mountpoint.join("c"),
                made_above: 0,
            })
            .collect(),
        unit: None,
    };
    let (base, hybrid) = fake(&["cpu,cpuacct", "memory", "name=systemd"], Some("hugetlb"));
    let CgroupMount::Split { entries, links } = manager(&hybrid).mount_parts(true) else { panic!("not split") };
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["cpu,cpuacct", "memory", "systemd", "unified"]);
    assert_eq!(links, [("cpu", "cpu,cpuacct"), ("cpuacct", "cpu,cpuacct")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    let flag = |name: &str| (name.to_owned(), None);
    assert_eq!(entries[0].source, Source::Fresh { fstype: "cgroup", options: vec![flag("cpu"), flag("cpuacct")] });
    let systemd = vec![flag("none"), ("name".to_owned(), Some("systemd".to_owned())), flag("xattr")];
    assert_eq!(entries[2].source, Source::Fresh { fstype: "cgroup", options: systemd });
    assert_eq!(entries[3].source, Source::Fresh { fstype: "cgroup2", options: vec![] });
    let CgroupMount::Split { entries, .. } = manager(&hybrid).mount_parts(false) else { panic!("not split") };
    assert_eq!(entries[1].source, Source::Bind(base.path().join("memory/c")));
    let (base, v2) = fake(&[], Some("memory"));
    assert_eq!(manager(&v2).mount_parts(false), CgroupMount::Unified(Source::Bind(base.path().join("unified/c"))));
    let fresh = Source::Fresh { fstype: "cgroup2", options: vec![] };
    assert_eq!(manager(&v2).mount_parts(true), CgroupMount::Unified(fresh));
}

/// Removes the container's cgroups, with everything in them, also when the test fails.
struct Cleanup(CgroupManager);

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill_all().and_then(|()| self.0.remove()) {
            eprintln!("cleaning up: {error:?}");
        }
    }
}

/// A child that ends with the test.
struct Process(Child);

impl Process {
    fn start(script: &str) -> Self {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn real_host(test: &str) -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return None;
    }
    let host = Host::detect().unwrap();
    if !host.has("devices") || !host.has("freezer") || !host.has("pids") {
        println!("SKIP {test}: this host has no v1 devices, freezer and pids controllers");
        return None;
    }
    Some(host)
}

#[test]
fn a_container_lives_in_the_real_hierarchies() {
    let Some(host) = real_host("a_container_lives_in_the_real_hierarchies") else { return };
    let id = format!("test-life-{}", std::process::id());
    let limits = resources(json!({
        "memory": { "limit": 33554432, "swap": 67108864 },
        "pids": { "limit": 30 }, "cpu": { "shares": 300, "cpus": "0" },
        "devices": [{ "allow": false, "access": "rwm" }]
    }));
    let manager = Cleanup(CgroupManager::create_on(&host, None, &id, Some(&limits)).unwrap());
    let stored = serde_json::to_string(&manager.0).unwrap();
    assert_eq!(serde_json::from_str::<CgroupManager>(&stored).unwrap(), manager.0);
    let dir = |controller: &str| manager.0.places().iter().find(|place| place.has(controller)).unwrap().dir().to_owned();
    assert_eq!(file::read(&dir("memory"), "memory.memsw.limit_in_bytes").unwrap(), "67108864");
    assert_eq!(file::read(&dir("pids"), "pids.max").unwrap(), "30");
    assert!(file::read(&dir("devices"), "devices.list").unwrap().contains("c 1:3 rwm"));

    let child = Process::start("sleep 100 & sleep 100 & wait");
    manager.0.join(child.pid()).unwrap();
    let own = fs::read_to_string(format!("/proc/{}/cgroup", child.0.id())).unwrap();
    let inside = own.lines().filter(|line| line.ends_with(&format!("towline-{id}"))).count();
    assert_eq!(inside, host.hierarchies().len(), "{own}");
    assert!(manager.0.pids().unwrap().contains(&child.pid()));
    // What writes 0 to `tasks` is moved alone: here a thread of the test.
    let entrance = manager.0.entrance().unwrap();
    let own = std::thread::spawn(move || {
        entrance.enter().unwrap();
        fs::read_to_string("/proc/thread-self/cgroup").unwrap()
    });
    let own = own.join().unwrap();
    let inside = own.lines().filter(|line| line.ends_with(&format!("towline-{id}"))).count();
    let v1 = host.hierarchies().iter().filter(|found| found.version == Version::V1).count();
    assert_eq!(inside, v1, "{own}");

    manager.0.apply(&resources(json!({ "memory": { "limit": 134217728, "swap": 134217728 } }))).unwrap();
    assert_eq!(file::read(&dir("memory"), "memory.limit_in_bytes").unwrap(), "134217728");
    manager.0.apply(&resources(json!({ "memory": { "limit": 33554432, "swap": 33554432 } }))).unwrap();
    assert_eq!(file::read(&dir("memory"), "memory.memsw.limit_in_bytes").unwrap(), "33554432");

    // The kernel refuses the last of these: those before it are taken back.
    let (before, memory) = (file::read(&dir("devices"), "devices.list").unwrap(), "memory.limit_in_bytes");
    let error = manager
        .0
        .apply(&resources(json!({
            "memory": { "limit": 67108864, "swap": 67108864 }, "cpu": { "shares": 77, "cpus": "0" }, "pids": { "limit": 99999999999i64 }
        })))
        .unwrap_err();
    assert!(error.one_line().contains("pids.max") && error.one_line().contains("in force again"), "{error:?}");
    assert_eq!(file::read(&dir("memory"), memory).unwrap(), "33554432");
    assert_eq!(file::read(&dir("cpu"), "cpu.shares").unwrap(), "300");
    let tty = json!({ "allow": true, "type": "c", "major": 4, "minor": 1, "access": "rw" });
    manager.0.apply(&resources(json!({ "devices": [{ "allow": false }, tty] }))).unwrap();
    assert_eq!(file::read(&dir("devices"), "devices.list").unwrap(), format!("{before}\nc 4:1 rw"));
    manager.0.apply(&resources(json!({ "devices": [{ "allow": true }] }))).unwrap();
    assert_eq!(file::read(&dir("devices"), "devices.list").unwrap(), "a *:* rwm");
    manager.0.apply(&resources(json!({ "devices": [{ "allow": false }] }))).unwrap();
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&file::read(&dir("devices"), "devices.list").unwrap()), sorted(&before));

    manager.0.freeze().unwrap();
    assert!(manager.0.is_frozen().unwrap());
    // A container may make cgroups of its own, and killing must work on a frozen one.
    fs::create_dir_all(dir("pids").join("inner/most")).unwrap();
    manager.0.kill_all().unwrap();
    manager.0.remove().unwrap();
    assert!(manager.0.places().iter().all(|place| !place.dir().exists()));
    manager.0.remove().unwrap();
}

#[test]
fn a_value_that_the_kernel_refuses_leaves_nothing() {
    let Some(host) = real_host("a_value_that_the_kernel_refuses_leaves_nothing") else { return };
    let path = format!("/towline-test-refused-{}/inner", std::process::id());
    let wanted = resources(json!({ "cpu": { "cpus": "9999" } }));
    let error = CgroupManager::create_on(&host, Some(Path::new(&path)), "refused", Some(&wanted)).unwrap_err();
    assert!(error.one_line().contains("cpuset.cpus") && error.one_line().contains("9999"), "{error:?}");
    for hierarchy in host.hierarchies() {
        let parent = hierarchy.mountpoint.join(Path::new(&path[1..]).parent().unwrap());
        assert!(!parent.exists(), "{} is left", parent.display());
    }
}

/// A v2 cgroup below the host's, taken for the whole hierarchy: pure v2 without touching the host's own settings.
struct PureV2(PathBuf);

impl PureV2 {
    fn new(test: &str) -> Option<(Self, Host)> {
        let host = Host::detect().unwrap();
        let v2 = host.hierarchies().iter().find(|found| found.version == Version::V2);
        let Some(v2) = v2.filter(|_| rustix::process::geteuid().is_root()) else {
            println!("SKIP {test}: needs root and a mounted cgroup v2 hierarchy");
            return None;
        };
        let dir = v2.mountpoint.join(format!("towline-test-{test}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let host = Host::parse(&mount_line("cgroup2", &dir, "/", "rw"), "0::/\n").unwrap();
        Some((Self(dir), host))
    }
}

impl Drop for PureV2 {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

#[test]
fn a_container_lives_on_pure_v2() {
    let Some((_root, host)) = PureV2::new("a_container_lives_on_pure_v2") else { return };
    assert_eq!(host.mode(), Mode::V2);
    let nodes = tempfile::tempdir().unwrap();
    for (name, minor) in [("zero", 5), ("kmsg", 11), ("full", 7)] {
        let dev = rustix::fs::makedev(1, minor);
        let mode = FileMode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, nodes.path().join(name), rustix::fs::FileType::CharacterDevice, mode, dev).unwrap();
    }
    let limits = resources(json!({ "devices": [
        { "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" }
    ] }));
    let manager = Cleanup(CgroupManager::create_on(&host, Some(Path::new("/c")), "c", Some(&limits)).unwrap());
    assert!(manager.0.entrance().unwrap().clone_into().is_some());
    let script = format!(
        "exec 2>&-; cd {}; try() {{ (: < $1) && echo $1-read; }}; put() {{ (: > $1) && echo $1-write; }}; \
         read go; try zero; try kmsg; put kmsg; mknod x c 7 7 && echo mknod; read again; put kmsg; try full; sleep 100",
        nodes.path().display()
    );
    let mut child = Process::start(&script);
    manager.0.join(child.pid()).unwrap();
    let mut input = child.0.stdin.take().unwrap();
    let mut output = io::BufReader::new(child.0.stdout.take().unwrap());
    let mut line = || {
        let mut text = String::new();
        io::BufRead::read_line(&mut output, &mut text).unwrap();
        text.trim().to_owned()
    };
    io::Write::write_all(&mut input, b"go\n").unwrap();
    assert_eq!([line(), line(), line()], ["zero-read", "kmsg-write", "mknod"]);
    // An update replaces the rules.
    manager.0.apply(&resources(json!({ "devices": [{ "allow": false, "access": "rwm" }] }))).unwrap();
    io::Write::write_all(&mut input, b"again\n").unwrap();
    assert_eq!(line(), "full-read");

    manager.0.freeze().unwrap();
    assert!(manager.0.is_frozen().unwrap());
    manager.0.kill_all().unwrap();
    assert_eq!(manager.0.pids().unwrap(), []);
    manager.0.remove().unwrap();
}
