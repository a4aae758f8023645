//! `update` and its flags, as runc has them.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Done, Subject, root_or_skip};

use crate::resources::{cgroup, v1_or_skip};

fn running() -> Container {
    let container = Container::new().script("echo ready; sleep 100");
    container.up();
    container.wait_output("ready");
    container
}

pub fn update(container: &Container, args: &[&str]) -> Done {
    let mut all = vec!["update"];
    all.extend(args);
    all.push(container.id());
    container.runtime(&all)
}

#[track_caller]
fn holds(container: &Container, table: &[(&str, &str, &str)]) {
    for (controller, name, wanted) in table {
        let path = cgroup(container, controller).join(name);
        assert_eq!(fs::read_to_string(&path).expect("the control file").trim(), *wanted, "{}", path.display());
    }
}

#[test]
fn resources_come_from_a_file_or_standard_input() {
    if !v1_or_skip("resources_come_from_a_file_or_standard_input") {
        return;
    }
    let container = running();
    let file = container.dir().join("resources.json").display().to_string();
    for (limit, swap) in [(100_663_296u64, 134_217_728u64), (67_108_864, 67_108_864), (201_326_592, 201_326_592)] {
        let resources = json!({ "memory": { "limit": limit, "swap": swap }, "pids": { "limit": 77 } });
        fs::write(&file, resources.to_string()).expect("write the resources");
        if limit == 67_108_864 {
            let runtime = container.command(&["update", "-r", "-", container.id()]);
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("exec \"$@\" < {file}"), "sh"]).arg(runtime.get_program()).args(runtime.get_args());
            container.execute(shell).success();
        } else {
            update(&container, &[&format!("--resources={file}")]).success();
        }
        let (limit, swap) = (limit.to_string(), swap.to_string());
        holds(
            &container,
            &[
                ("memory", "memory.limit_in_bytes", &limit),
                ("memory", "memory.memsw.limit_in_bytes", &swap),
                ("pids", "pids.max", "77"),
            ],
        );
    }
}

#[test]
fn every_flag_reaches_its_file() {
    if !v1_or_skip("every_flag_reaches_its_file") {
        return;
    }
    let container = running();
    if container.subject() == Subject::Crun {
        println!("SKIP every_flag_reaches_its_file: crun takes no suffixes of sizes");
        return;
    }
    update(
        &container,
        &[
            "--memory",
            "64m",
            "--memory-swap",
            "0.125G",
            "--memory-reservation",
            "32MB",
            "--pids-limit",
            "33",
            "--cpu-share",
            "300",
            "--cpu-period",
            "40000",
            "--cpu-quota",
            "20000",
            "--cpuset-cpus",
            "0",
            "--cpuset-mems",
            "0",
        ],
    )
    .success();
    let table = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("pids", "pids.max", "33"),
        ("cpu", "cpu.shares", "300"),
        ("cpu", "cpu.cfs_period_us", "40000"),
        ("cpu", "cpu.cfs_quota_us", "20000"),
        ("cpuset", "cpuset.cpus", "0"),
    ];
    holds(&container, &table);
    // What an update does not name stays.
    update(&container, &["--cpu-quota", "-1", "--memory", "-1", "--memory-swap", "-1", "--pids-limit", "-1"]).success();
    holds(&container, &[("cpu", "cpu.cfs_quota_us", "-1"), ("cpu", "cpu.cfs_period_us", "40000"), ("pids", "pids.max", "max")]);
    assert_eq!(container.status(), "running");
    update(&container, &["--memory", "1.5x"]).failure();
    if container.subject() == Subject::Towline {
        // runc 1.1 and crun 1.8 have no such flags yet.
        update(&container, &["--cpu-quota", "30000", "--cpu-burst", "20000"]).success();
        holds(&container, &[("cpu", "cpu.cfs_burst_us", "20000")]);
        // A quota below the burst is refused, unless the burst goes down with it.
        update(&container, &["--cpu-quota", "10000"]).failure();
        update(&container, &["--cpu-quota", "10000", "--cpu-burst", "5000"]).success();
        update(&container, &["--cpu-burst", "0"]).success();
        holds(&container, &[("cpu", "cpu.cfs_burst_us", "0"), ("cpu", "cpu.cfs_quota_us", "10000")]);
        update(&container, &["--cpu-idle", "1"]).success();
        holds(&container, &[("cpu", "cpu.idle", "1")]);
        update(&container, &["--cpu-idle", "0", "--cpu-share", "200"]).success();
        holds(&container, &[("cpu", "cpu.idle", "0"), ("cpu", "cpu.shares", "200")]);
    }
}

#[test]
fn a_failed_update_leaves_the_old_limits() {
    if !v1_or_skip("a_failed_update_leaves_the_old_limits") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100").with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864, "swap": 67_108_864 });
        c["linux"]["resources"]["cpu"] = json!({ "shares": 500 });
        c["linux"]["resources"]["pids"] = json!({ "limit": 40 });
    });
    container.up();
    container.wait_output("ready");
    // The kernel has no such number of processes.
    let args = ["--memory", "96m", "--memory-swap", "96m", "--cpu-share", "700", "--pids-limit", "99999999999"];
    let done = update(&container, &args).failure();
    if container.subject() != Subject::Towline {
        // No clause. runc 1.1 and crun 1.8 leave some of what came before the failure.
        return;
    }
    let old = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "67108864"),
        ("cpu", "cpu.shares", "500"),
        ("pids", "pids.max", "40"),
    ];
    holds(&container, &old);
    assert!(done.stderr.contains("pids.max"), "the message names the file: {done:?}");
}

#[test]
fn a_stopped_container_is_refused_and_a_created_one_is_not() {
    if !v1_or_skip("a_stopped_container_is_refused_and_a_created_one_is_not") {
        return;
    }
    let container = Container::new().script("true");
    container.create().success();
    update(&container, &["--pids-limit", "21"]).success();
    holds(&container, &[("pids", "pids.max", "21")]);
    container.start().success();
    container.wait_status("stopped");
    if container.subject() != Subject::Crun {
        // crun 1.8 updates the cgroup that is left.
        update(&container, &["--pids-limit", "22"]).failure();
    }
    update(&Container::new(), &["--pids-limit", "22"]).failure();
}

#[test]
fn device_rules_are_replaced() {
    if !root_or_skip("device_rules_are_replaced") {
        return;
    }
    let rules = |more: Value| {
        let mut all = vec![json!({ "allow": false, "access": "rwm" })];
        all.extend(more.as_array().expect("a list").clone());
        json!({ "devices": all })
    };
    let container = Container::new();
    if container.subject() != Subject::Towline {
        println!("SKIP device_rules_are_replaced: the references' update leaves device rules out");
        return;
    }
    let fuse = json!([{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" }]);
    let container = container
        .script(
            "mknod -m 600 /f c 10 229; echo ready; while read word; do (: < /f) && echo yes || echo no; done 2>/dev/null < /fifo",
        )
        .with(|c| {
            c["linux"]["resources"] = rules(json!([]));
            let mknod = json!(["CAP_MKNOD"]);
            c["process"]["capabilities"] = json!({ "bounding": mknod, "effective": mknod, "permitted": mknod });
        });
    let fifo = container.rootfs().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    container.up();
    container.wait_output("ready");
    let mut asking = fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("open the fifo");
    let file = container.dir().join("resources.json").display().to_string();
    let mut wanted = "ready".to_owned();
    for (more, answer) in [(None, "no"), (Some(fuse), "yes"), (Some(json!([])), "no")] {
        if let Some(more) = more {
            fs::write(&file, rules(more).to_string()).expect("write the rules");
            update(&container, &["--resources", &file]).success();
        }
        std::io::Write::write_all(&mut asking, b"x\n").expect("ask");
        wanted = format!("{wanted}\n{answer}");
        container.wait_output(&wanted);
    }
    // The default devices are there in between and afterwards.
    container.exec(&[], &["/bin/sh", "-c", "echo > /dev/null"]).success();
}

#[test]
fn a_later_update_starts_from_the_earlier_one() {
    if !v1_or_skip("a_later_update_starts_from_the_earlier_one") {
        return;
    }
    let container = running();
    update(&container, &["--memory", "67108864", "--memory-swap", "67108864"]).success();
    update(&container, &["--memory-swap", "134217728"]).success();
    update(&container, &["--cpu-share", "300"]).success();
    holds(
        &container,
        &[
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.memsw.limit_in_bytes", "134217728"),
            ("cpu", "cpu.shares", "300"),
        ],
    );
    if container.subject() == Subject::Towline {
        let recorded =
            fs::read(container.state_dir().join(container.id()).join("config.json")).expect("the recorded configuration");
        let recorded: Value = serde_json::from_slice(&recorded).expect("JSON");
        let memory = json!({ "limit": 67_108_864, "swap": 134_217_728 });
        assert_eq!(recorded["linux"]["resources"]["memory"], memory, "{recorded}");
        assert_eq!(recorded["linux"]["resources"]["cpu"]["shares"], 300);
    }
}
