//! config.md, "POSIX-platform Hooks".

use std::fs;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Subject, root_or_skip};

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that appends `word`, the status it was told and its mount namespace to a file. Inside the container the file is the
/// same through a bind mount.
fn hook(log: &str, word: &str) -> Value {
    let script = format!(
        "s=$(sed 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/'); echo \"{word} $s $(readlink /proc/self/ns/mnt) $EXTRA\" >> {log}"
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["EXTRA=e", "PATH=/usr/bin:/bin"] })
}

fn with_hooks(kinds: &[&str]) -> Container {
    let container = Container::new().script("echo main >> /log/hooks");
    let dir = container.dir().join("log");
    fs::create_dir(&dir).expect("make the log directory");
    let log = dir.join("hooks").display().to_string();
    container.with(|c| {
        for kind in kinds {
            let file = if *kind == "startContainer" { "/log/hooks" } else { &log };
            c["hooks"][*kind] = json!([hook(file, &format!("{kind}.1")), hook(file, &format!("{kind}.2"))]);
        }
        let mount = json!({ "destination": "/log", "type": "bind", "source": dir, "options": ["rbind"] });
        c["mounts"].as_array_mut().expect("mounts").push(mount);
    })
}

fn lines(container: &Container) -> Vec<Vec<String>> {
    let text = fs::read_to_string(container.dir().join("log/hooks")).unwrap_or_default();
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn hooks_run_in_order_and_in_the_right_place() {
    if !root_or_skip("hooks_run_in_order_and_in_the_right_place") {
        return;
    }
    let container = with_hooks(&KINDS);
    container.create().success();
    let words = |range: &[Vec<String>]| range.iter().map(|line| line[0].clone()).collect::<Vec<_>>().join(" ");
    let created = lines(&container);
    let before_start = "prestart.1 prestart.2 createRuntime.1 createRuntime.2 createContainer.1 createContainer.2";
    // config.md: poststart hooks run "after the user-specified process is executed"; runc 1.1 runs them at create.
    let early = if container.subject() == Subject::Runc { " poststart.1 poststart.2" } else { "" };
    assert_eq!(words(&created), format!("{before_start}{early}"));
    container.start().success();
    container.wait_status("stopped");
    container.delete().success();
    let all = lines(&container);
    let rest = words(&all[created.len()..]);
    // config.md: startContainer hooks run "before the user-specified process is executed"; crun does not wait for them with poststart.
    let first = rest.starts_with("startContainer.1 startContainer.2 ") || container.subject() == Subject::Crun;
    assert!(first && rest.ends_with(" poststop.1 poststop.2"), "{rest}");
    let late = rest.contains("poststart.1 poststart.2") || rest.contains("poststart.1 main poststart.2");
    assert!(late || !early.is_empty(), "{rest}");
    let host = fs::read_link("/proc/self/ns/mnt").expect("own namespace").display().to_string();
    for line in all.iter().filter(|line| line.len() > 1) {
        let (kind, status, namespace) = (line[0].split('.').next().expect("a word"), &line[1], &line[2]);
        assert_eq!(line[3], "e", "env of {line:?}");
        let inside = ["createContainer", "startContainer"].contains(&kind);
        // crun is started in a mount namespace of its own here.
        if container.subject() != Subject::Crun {
            assert_eq!(*namespace == host, !inside, "{line:?}: host is {host}");
        }
        let wanted = match kind {
            "poststop" => ["stopped", "stopped"],
            "poststart" if early.is_empty() => ["running", "stopped"],
            // crun says "starting", which is no state of runtime.md.
            "startContainer" if container.subject() == Subject::Crun => ["created", "starting"],
            "startContainer" => ["created", "running"],
            _ => ["created", "creating"],
        };
        assert!(wanted.contains(&status.as_str()), "{line:?}");
    }
}

#[test]
fn a_failing_hook_stops_the_container() {
    if !root_or_skip("a_failing_hook_stops_the_container") {
        return;
    }
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let container = with_hooks(&[]).with(|c| {
            c["hooks"][kind] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo told-why >&2; exit 5"] }]);
        });
        let mut done = container.create();
        if kind == "startContainer" {
            done.clone().success();
            done = container.start();
            // The references let start succeed: the container fails behind it.
            if container.subject() == Subject::Towline {
                assert_ne!(done.code, Some(0), "{kind}: {done:?}");
            }
            container.delete_force().success();
        } else {
            done.failure();
        }
        assert_eq!(container.status(), "none", "{kind}");
        assert!(lines(&container).is_empty(), "{kind}: the program ran");
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn a_failing_poststop_hook_does_not_keep_the_container() {
    if !root_or_skip("a_failing_poststop_hook_does_not_keep_the_container") {
        return;
    }
    // config.md: "If any poststop hook fails, the runtime MUST log a warning, but the remaining hooks and lifecycle continue".
    let container = with_hooks(&["poststop"]).with(|c| {
        let list = c["hooks"]["poststop"].as_array_mut().expect("hooks");
        list.insert(0, json!({ "path": "/bin/false" }));
    });
    container.up();
    container.wait_status("stopped");
    container.delete();
    if container.subject() == Subject::Crun {
        // crun 1.8 keeps the container after a failed poststop hook.
        container.delete_force();
        return;
    }
    assert_eq!(container.status(), "none");
    let all = lines(&container);
    let last: Vec<&str> = all.iter().map(|line| line[0].as_str()).collect();
    if container.subject() == Subject::Runc {
        // runc 1.1 stops at the first failure.
        assert_eq!(last, ["main"]);
    } else {
        assert_eq!(last, ["main", "poststop.1", "poststop.2"]);
    }
}

#[test]
fn a_failing_poststart_hook_stops_the_container() {
    if !root_or_skip("a_failing_poststart_hook_stops_the_container") {
        return;
    }
    // runtime.md (1.2.1 and later), lifecycle 9: "the runtime MUST generate an error, stop the container, and continue the
    // lifecycle at step 12". runc 1.1 runs these hooks in create.
    let container = with_hooks(&["poststop"]).script("sleep 100").with(|c| {
        c["hooks"]["poststart"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo told-why >&2; exit 5"] }]);
    });
    let mut done = container.create();
    if container.subject() != Subject::Runc {
        done.success();
        done = container.start();
    }
    if container.subject() == Subject::Crun {
        println!("crun 1.8 follows the older text: it goes on after a failed poststart hook");
        return;
    }
    assert!(done.failure().stderr.contains("told-why"));
    assert!(["stopped", "none"].contains(&container.status().as_str()));
    container.delete_force().success();
    if container.subject() == Subject::Towline {
        let all = lines(&container);
        let words: Vec<&str> = all.iter().map(|line| line[0].as_str()).collect();
        assert_eq!(words, ["poststop.1", "poststop.2"]);
    }
    assert_eq!(container.leftovers(), Vec::<String>::new());
    if container.subject() == Subject::Towline {
        container.run().failure();
        assert_eq!(container.leftovers(), Vec::<String>::new(), "run");
    }
}

#[test]
fn a_hook_inside_the_container_has_a_timeout_too() {
    if !root_or_skip("a_hook_inside_the_container_has_a_timeout_too") {
        return;
    }
    for kind in ["createContainer", "startContainer"] {
        let sleep = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 600"], "timeout": 1 }]);
        let container = with_hooks(&[]).with(|c| c["hooks"][kind] = sleep);
        let mut done = container.create();
        if kind == "startContainer" && done.code == Some(0) {
            done = container.start();
        }
        if container.subject() == Subject::Towline {
            assert!(done.failure().stderr.contains(kind));
        }
        container.delete_force().success();
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn a_hook_has_a_timeout() {
    if !root_or_skip("a_hook_has_a_timeout") {
        return;
    }
    let container = with_hooks(&[])
        .with(|c| c["hooks"]["createRuntime"] = json!([{ "path": "/bin/sleep", "args": ["sleep", "20"], "timeout": 1 }]));
    let start = std::time::Instant::now();
    container.create().failure();
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "waited {:?}", start.elapsed());
    assert_eq!(container.leftovers(), Vec::<String>::new());
}
