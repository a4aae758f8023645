//! config.md: `process.scheduler`, `ioPriority`, `execCPUAffinity`; config-linux.md: `personality`, `memoryPolicy`.

use std::fs;

use serde_json::{Value, json};
use towline_integration::bundle::{Case, Container, Subject, root_or_skip, run_cases};

/// Policy, real-time priority and nice value of a process that the shell starts.
const SCHEDULING: &str = "awk '{ print $41, $40, $19 }' /proc/self/stat";

fn newer_than_the_references(test: &str) -> bool {
    let reference = Subject::from_env() != Subject::Towline;
    if reference {
        println!("SKIP {test}: runc 1.1 and crun 1.8 are older than these fields of runtime-spec 1.1 to 1.3");
    }
    reference
}

#[test]
fn the_process_is_scheduled_as_configured() {
    const TEST: &str = "the_process_is_scheduled_as_configured";
    if !root_or_skip(TEST) || newer_than_the_references(TEST) {
        return;
    }
    run_cases(&[
        Case {
            name: "config.md scheduler: policy and nice",
            edit: |c| c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 }),
            script: SCHEDULING,
            wanted: "3 0 5",
        },
        Case {
            name: "config.md scheduler: idle",
            edit: |c| c["process"]["scheduler"] = json!({ "policy": "SCHED_IDLE" }),
            script: SCHEDULING,
            wanted: "5 0 0",
        },
        Case {
            name: "config.md scheduler: flags; a child loses the advantage",
            edit: |c| {
                c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": -3, "flags": ["SCHED_RESET_ON_FORK"] });
            },
            script: "awk '{ print $41, $19 }' /proc/1/stat; awk '{ print $41, $19 }' /proc/self/stat; :",
            wanted: "3 -3\n3 0",
        },
        Case {
            name: "config.md ioPriority",
            edit: |c| c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }),
            script: "ionice",
            wanted: "best-effort: prio 6",
        },
        Case {
            name: "config.md ioPriority: idle",
            edit: |c| c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }),
            script: "ionice",
            wanted: "idle",
        },
        Case {
            name: "config-linux.md memoryPolicy",
            edit: |c| {
                c["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] });
            },
            script: "grep -q 'bind=static:0' /proc/self/numa_maps && echo bound",
            wanted: "bound",
        },
    ]);
}

#[test]
fn a_32_bit_personality_is_the_process_s_and_exec_s() {
    const TEST: &str = "a_32_bit_personality_is_the_process_s_and_exec_s";
    if !root_or_skip(TEST) {
        return;
    }
    if !cfg!(target_arch = "x86_64") {
        println!("SKIP {TEST}: i686 is the 32-bit name of x86-64");
        return;
    }
    if Subject::from_env() == Subject::Runc {
        println!("SKIP {TEST}: runc 1.1 has no personality");
        return;
    }
    let container = Container::new().script("uname -m; exec sleep 100").with(|c| {
        c["linux"]["personality"] = json!({ "domain": "LINUX32" });
    });
    container.up();
    container.wait_output("i686");
    if container.subject() == Subject::Towline {
        assert_eq!(container.exec(&[], &["uname", "-m"]).success().text(), "i686");
    }
}

#[test]
fn exec_runs_on_the_cpus_it_is_given() {
    const TEST: &str = "exec_runs_on_the_cpus_it_is_given";
    if !root_or_skip(TEST) || newer_than_the_references(TEST) {
        return;
    }
    let container = Container::new().script("sleep 100");
    container.up();
    let cpus = |affinity: Value| {
        let path = container.dir().join("process.json");
        let process = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"], "execCPUAffinity": affinity,
            "args": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status | cut -f2"] });
        fs::write(&path, process.to_string()).expect("write the process");
        container.exec(&["--process", &path.display().to_string()], &[])
    };
    assert_eq!(cpus(json!({ "final": "0" })).success().text(), "0");
    assert_eq!(cpus(json!({ "initial": "0" })).success().text(), "0");
    // config.md: "If omitted or empty, the runtime SHOULD NOT change process' CPU affinity".
    let all = cpus(json!({ "initial": "", "final": "" })).success();
    assert_eq!(all.text(), cpus(Value::Null).success().text());
    let bad = cpus(json!({ "final": "0-x" })).failure();
    assert!(bad.stderr.contains("execCPUAffinity"), "{bad:?}");
    assert!(cpus(json!({ "final": "1000" })).failure().stderr.contains("execCPUAffinity.final"));
}

#[test]
fn values_that_nobody_knows_are_refused_by_the_field_s_name() {
    const TEST: &str = "values_that_nobody_knows_are_refused_by_the_field_s_name";
    if !root_or_skip(TEST) || newer_than_the_references(TEST) {
        return;
    }
    for (pointer, field, value) in [
        ("process", "scheduler", json!({ "policy": "SCHED_MOON" })),
        ("process", "scheduler", json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_MOON"] })),
        ("process", "scheduler", json!({ "policy": "SCHED_OTHER", "nice": 40 })),
        ("process", "scheduler", json!({ "policy": "SCHED_OTHER", "runtime": 40 })),
        ("process", "ioPriority", json!({ "class": "IOPRIO_CLASS_MOON", "priority": 0 })),
        ("process", "ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 })),
        ("linux", "personality", json!({ "domain": "MOON" })),
        ("linux", "personality", json!({ "domain": "LINUX", "flags": ["MOON"] })),
        ("linux", "memoryPolicy", json!({ "mode": "MPOL_MOON" })),
        ("linux", "memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "x" })),
        ("linux", "memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_MOON"] })),
        ("linux", "rootfsPropagation", json!("sideways")),
    ] {
        let container = Container::new().with(|c| c[pointer][field] = value.clone());
        let done = container.create().failure();
        assert!(done.stderr.contains(&format!("{pointer}.{field}")), "{value}: {done:?}");
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{value}");
    }
}
