//! config.md, "Process", and config-linux.md for what belongs to the process.

use serde_json::json;
use towline_integration::bundle::{Case, Container, Done, Subject, push, root_or_skip, run_cases};

#[test]
fn the_process_gets_what_the_configuration_says() {
    if !root_or_skip("the_process_gets_what_the_configuration_says") {
        return;
    }
    run_cases(&[
        Case {
            name: "env: exactly the configured one, in order",
            edit: |c| {
                c["process"]["env"] = json!(["PATH=/bin", "B=two words", "A=", "HOME=/data"]);
                c["process"]["args"] = json!(["/bin/env"]);
            },
            script: "",
            wanted: "PATH=/bin\nB=two words\nA=\nHOME=/data",
        },
        Case {
            name: "env: HOME comes from the image's passwd when it is not set (as runc and crun)",
            edit: |c| c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }),
            script: "echo $HOME",
            wanted: "/data",
        },
        Case {
            name: "args: passed unchanged",
            edit: |c| c["process"]["args"] = json!(["/bin/printf", "<%s>", "a b", "", "*", "$x"]),
            script: "",
            wanted: "<a b><><*><$x>",
        },
        Case {
            name: "args: looked up in the PATH of process.env, inside the root",
            edit: |c| {
                c["process"]["env"] = json!(["PATH=/nowhere:/bin"]);
                c["process"]["args"] = json!(["echo", "found"]);
            },
            script: "",
            wanted: "found",
        },
        Case { name: "cwd", edit: |c| c["process"]["cwd"] = json!("/data"), script: "pwd; echo $PWD", wanted: "/data\n/data" },
        Case {
            name: "cwd: made when it is missing (as runc and crun)",
            edit: |c| c["process"]["cwd"] = json!("/data/not/there"),
            script: "pwd",
            wanted: "/data/not/there",
        },
        Case {
            name: "user: uid, gid, additionalGids",
            edit: |c| c["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [2000, 5, 1001] }),
            script: "id -u; id -g; grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr -s '\\t ' ' '",
            wanted: "1000\n1001\nUid: 1000 1000 1000 1000\nGid: 1001 1001 1001 1001\nGroups: 5 1001 2000",
        },
        Case {
            name: "user: no additionalGids means no supplementary groups of the host",
            edit: |c| c["process"]["user"] = json!({ "uid": 7, "gid": 7 }),
            script: "grep Groups /proc/self/status | wc -w",
            wanted: "1",
        },
        Case { name: "user.umask", edit: |c| c["process"]["user"]["umask"] = json!(0o027), script: "umask", wanted: "0027" },
        Case { name: "user.umask: 0022 when absent", edit: |_| {}, script: "umask", wanted: "0022" },
        Case { name: "hostname", edit: |c| c["hostname"] = json!("other.name"), script: "hostname", wanted: "other.name" },
        Case {
            name: "rlimits: soft and hard",
            edit: |c| {
                c["process"]["rlimits"] = json!([
                    { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 }
                ]);
            },
            script: "ulimit -Sn; ulimit -Hn; grep core /proc/self/limits | tr -s ' '",
            wanted: "100\n200\nMax core file size 0 4096 bytes",
        },
        Case {
            name: "noNewPrivileges true",
            edit: |_| {},
            script: "grep NoNewPrivs /proc/self/status",
            wanted: "NoNewPrivs:\t1",
        },
        Case {
            name: "noNewPrivileges false",
            edit: |c| c["process"]["noNewPrivileges"] = json!(false),
            script: "grep NoNewPrivs /proc/self/status",
            wanted: "NoNewPrivs:\t0",
        },
        Case {
            name: "oomScoreAdj",
            edit: |c| c["process"]["oomScoreAdj"] = json!(300),
            script: "cat /proc/self/oom_score_adj",
            wanted: "300",
        },
        Case {
            name: "standard input is the caller's, no signal is blocked",
            edit: |_| {},
            script: "wc -c; grep -E '^SigBlk' /proc/1/status",
            wanted: "0\nSigBlk:\t0000000000000000",
        },
        Case {
            name: "the process leads a session of its own",
            edit: |_| {},
            script: "cut -d' ' -f5,6 /proc/1/stat",
            wanted: "1 1",
        },
    ]);
}

const CAPS: &str = "grep -E '^Cap' /proc/self/status | tr -s '\\t\\n' ' '";

#[test]
fn capabilities_are_those_of_the_configuration() {
    if !root_or_skip("capabilities_are_those_of_the_configuration") {
        return;
    }
    run_cases(&[
        Case {
            name: "root with three",
            edit: |_| {},
            script: CAPS,
            wanted: "CapInh: 0000000000000000 CapPrm: 0000000020000420 CapEff: 0000000020000420 \
                     CapBnd: 0000000020000420 CapAmb: 0000000000000000",
        },
        Case {
            name: "no set at all",
            edit: |c| c["process"]["capabilities"] = json!({}),
            script: CAPS,
            wanted: "CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 \
                     CapBnd: 0000000000000000 CapAmb: 0000000000000000",
        },
        Case {
            name: "another user keeps only ambient ones over execve",
            edit: |c| {
                c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
                let two = json!(["CAP_KILL", "CAP_CHOWN"]);
                c["process"]["capabilities"] = json!({
                    "bounding": two, "effective": two, "permitted": two, "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]
                });
            },
            script: CAPS,
            wanted: "CapInh: 0000000000000020 CapPrm: 0000000000000020 CapEff: 0000000000000020 \
                     CapBnd: 0000000000000021 CapAmb: 0000000000000020",
        },
        Case {
            name: "another user without ambient ones has none, with a bounding set",
            edit: |c| c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }),
            script: CAPS,
            wanted: "CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 \
                     CapBnd: 0000000020000420 CapAmb: 0000000000000000",
        },
        Case {
            name: "what cannot be granted is a warning (config.md: \"Runtimes SHOULD NOT fail\")",
            edit: |c| {
                for set in ["bounding", "permitted", "effective"] {
                    push(c, &format!("/process/capabilities/{set}"), json!("CAP_OF_A_LATER_KERNEL"));
                }
            },
            script: "grep CapEff /proc/self/status",
            wanted: "CapEff:\t0000000020000420",
        },
    ]);
}

#[test]
fn exit_codes_reach_the_caller_of_run() {
    if !root_or_skip("exit_codes_reach_the_caller_of_run") {
        return;
    }
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        assert_eq!(Container::new().script(script).run().code, Some(code), "{script}");
    }
    // 128 + n for a death by signal. The first process of a pid namespace cannot signal itself: it is killed from outside.
    let outside = Container::new().script("sleep 100").with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "pid");
        c["process"]["args"] = json!(["/bin/sh", "-c", "kill -9 $$"]);
    });
    assert_eq!(outside.run().code, Some(137));
}

#[test]
fn a_command_that_cannot_run_is_named() {
    if !root_or_skip("a_command_that_cannot_run_is_named") {
        return;
    }
    // podman finds out exit codes 127 and 126 by these words.
    let cases = [
        (json!(["no-such-command"]), ["executable file not found", "no such file or directory"]),
        (json!(["/data/no-such-command"]), ["executable file not found", "no such file or directory"]),
        (json!(["/etc/passwd"]), ["permission denied", "operation not permitted"]),
        (json!(["/data"]), ["permission denied", "operation not permitted"]),
    ];
    for (args, words) in cases {
        let container = Container::new().with(|c| c["process"]["args"] = args.clone());
        let done = container.run().failure();
        let said = done.stderr.to_lowercase();
        assert!(words.iter().any(|word| said.contains(word)), "{args}: {said}");
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{args}");
    }
}

/// `run` by a shell that prepares its descriptors and environment with `before`.
fn run_after(container: &Container, before: &str, options: &[&str]) -> Done {
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let mut args = vec!["run", "--bundle", &bundle];
    args.extend(options);
    args.push(container.id());
    let runtime = container.command(&args);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("{before}; exec \"$@\""), "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    command.current_dir(container.dir());
    container.execute(command)
}

#[test]
fn descriptors_that_are_handed_on() {
    const TEST: &str = "descriptors_that_are_handed_on";
    if !root_or_skip(TEST) {
        return;
    }
    let open = "exec 3</etc/hostname 4</etc/hostname";
    // The shell that lists has its script open nowhere, and the list itself.
    let list =
        "cd /proc/self/fd; echo $LISTEN_FDS $LISTEN_PID; for fd in 3 4 5; do test -e /proc/$$/fd/$fd && echo $fd; done; true";
    let container = Container::new().script(list);
    assert_eq!(run_after(&container, open, &["--preserve-fds", "2"]).success().text(), "3\n4");
    let container = Container::new().script(list);
    assert_eq!(run_after(&container, open, &[]).success().text(), "");
    if container.subject() != Subject::Crun {
        // crun 1.8 hands LISTEN_PID on as it is.
        let container = Container::new().script(list);
        let before = format!("{open}; export LISTEN_FDS=1 LISTEN_PID=$$");
        assert_eq!(run_after(&container, &before, &["--preserve-fds", "1"]).success().text(), "1 1\n3\n4");
        let container = Container::new().script(list);
        let others = format!("{open}; export LISTEN_FDS=1 LISTEN_PID=1");
        assert_eq!(run_after(&container, &others, &[]).success().text(), "", "they are another process's");
        // runc 1.1 hands on a descriptor of its own in their place.
        let absent = [&["--preserve-fds", "1"][..], &["--preserve-fds", "4294967295"]];
        for options in absent.into_iter().filter(|_| container.subject() == Subject::Towline) {
            let container = Container::new().script(list);
            run_after(&container, "exec 3<&- 4<&-", options).failure();
            assert_eq!(container.leftovers(), Vec::<String>::new());
        }
    }
}

#[test]
fn labels_need_a_host_that_has_them() {
    const TEST: &str = "labels_need_a_host_that_has_them";
    if !root_or_skip(TEST) {
        return;
    }
    for (field, value, module, there) in [
        ("apparmorProfile", "some-profile", "AppArmor", "/sys/kernel/security/apparmor"),
        ("selinuxLabel", "system_u:system_r:container_t:s0", "SELinux", "/sys/fs/selinux/enforce"),
    ] {
        if std::path::Path::new(there).exists() {
            println!("SKIP {TEST}: this host has {module}");
            continue;
        }
        let container = Container::new().with(|c| c["process"][field] = json!(value));
        if container.subject() == Subject::Crun {
            // config.md leaves open what happens without the module; crun ignores the field.
            continue;
        }
        let done = container.run().failure();
        if container.subject() == Subject::Towline {
            assert!(done.stderr.contains(field) && done.stderr.contains(module), "{done:?}");
        }
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{field}");
    }
    // A label for mounts only is a warning.
    let container = Container::new().with(|c| c["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0"));
    if container.subject() == Subject::Towline && !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let done = container.run().success();
        assert!(done.stderr.contains("linux.mountLabel"), "{done:?}");
    }
}

#[test]
fn the_root_can_be_entered_without_pivot_root() {
    const TEST: &str = "the_root_can_be_entered_without_pivot_root";
    if !root_or_skip(TEST) {
        return;
    }
    let script = "ls /; ls /..; cat /proc/sys/kernel/domainname; touch /new && ls /new";
    let container = Container::new().script(script).with(|c| c["domainname"] = json!("example.org"));
    if container.subject() != Subject::Towline {
        // runtime-spec 1.1.
        println!("SKIP {TEST}: runc 1.1 and crun 1.8 have no domainname");
        return;
    }
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let done = container.runtime(&["run", "--no-pivot", "--bundle", &bundle, container.id()]).success();
    let root = "bin\ndata\ndev\netc\nproc\nroot\nsys\ntmp\n";
    assert_eq!(done.stdout, format!("{root}{root}example.org\n/new\n"), "{done:?}");
}
