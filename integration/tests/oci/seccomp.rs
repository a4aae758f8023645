//! config-linux.md, "Seccomp".

use serde_json::{Value, json};
use towline_integration::bundle::{Case, Container, Subject, root_or_skip, run_cases};

fn filter(c: &mut Value, default: &str, rules: Value) {
    c["linux"]["seccomp"] = json!({ "defaultAction": default, "syscalls": rules });
}

#[test]
fn rules_decide_about_system_calls() {
    if !root_or_skip("rules_decide_about_system_calls") {
        return;
    }
    run_cases(&[
        Case {
            name: "SCMP_ACT_ERRNO with errnoRet",
            edit: |c| {
                let rule = json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]);
                filter(c, "SCMP_ACT_ALLOW", rule);
            },
            script: "mkdir /data/x; touch /data/y && echo touched",
            wanted: "mkdir: can't create directory '/data/x': No space left on device\ntouched",
        },
        Case {
            name: "SCMP_ACT_ERRNO without errnoRet is EPERM",
            edit: |c| filter(c, "SCMP_ACT_ALLOW", json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }])),
            script: "mkdir /data/x",
            wanted: "mkdir: can't create directory '/data/x': Operation not permitted",
        },
        Case {
            name: "SCMP_ACT_KILL_PROCESS",
            edit: |c| filter(c, "SCMP_ACT_ALLOW", json!([{ "names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS" }])),
            script: "(mkdir /data/x) >/dev/null 2>&1; echo $?",
            wanted: "Bad system call\n159",
        },
        Case {
            name: "names that nobody knows are left out",
            edit: |c| {
                let rule = json!([{ "names": ["no_such_call", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }]);
                filter(c, "SCMP_ACT_ALLOW", rule);
            },
            script: "mkdir /data/x",
            wanted: "mkdir: can't create directory '/data/x': Operation not permitted",
        },
        Case {
            name: "arguments",
            edit: |c| {
                let test = json!([{ "index": 1, "value": 15, "op": "SCMP_CMP_EQ" }]);
                let rule = json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": test }]);
                filter(c, "SCMP_ACT_ALLOW", rule);
            },
            script: "kill -15 1; kill -0 1 && echo zero",
            wanted: "sh: can't kill pid 1: Operation not permitted\nzero",
        },
        Case {
            name: "the process file of /proc tells about it",
            edit: |c| filter(c, "SCMP_ACT_ALLOW", json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }])),
            script: "grep Seccomp: /proc/self/status",
            wanted: "Seccomp:\t2",
        },
        Case { name: "no filter", edit: |_| {}, script: "grep Seccomp: /proc/self/status", wanted: "Seccomp:\t0" },
        Case {
            name: "without noNewPrivileges",
            edit: |c| {
                c["process"]["noNewPrivileges"] = json!(false);
                filter(c, "SCMP_ACT_ALLOW", json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]));
            },
            script: "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status",
            wanted: "NoNewPrivs:\t0\nSeccomp:\t2",
        },
    ]);
}

#[test]
fn exec_has_the_filter_too() {
    if !root_or_skip("exec_has_the_filter_too") {
        return;
    }
    let container = Container::new().script("sleep 100").with(|c| {
        filter(c, "SCMP_ACT_ALLOW", json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]));
    });
    container.up();
    let done = container.exec(&[], &["mkdir", "/data/x"]);
    assert!(done.stderr.contains("No space left"), "{done:?}");
}

#[test]
fn a_filter_that_cannot_be_made_fails_the_create() {
    if !root_or_skip("a_filter_that_cannot_be_made_fails_the_create") {
        return;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP a_filter_that_cannot_be_made_fails_the_create: crun 1.8 takes anything");
        return;
    }
    let bad = [
        json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
        json!({ "defaultAction": "SCMP_ACT_SING" }),
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"] }),
    ];
    for profile in bad {
        let container = Container::new().with(|c| c["linux"]["seccomp"] = profile.clone());
        container.create().failure();
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{profile}");
    }
}
