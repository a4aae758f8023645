//! runtime.md: operations, states, and what is left behind.

use std::fs;

use serde_json::json;
use towline_integration::bundle::{Container, Subject, push, root_or_skip};

const NOTHING: Vec<String> = Vec::new();

#[test]
fn a_container_goes_from_created_to_running_to_stopped() {
    if !root_or_skip("a_container_goes_from_created_to_running_to_stopped") {
        return;
    }
    let container = Container::new().script("echo started; sleep 100").with(|c| c["annotations"] = json!({ "org.a": "b" }));
    assert_eq!(container.status(), "none");
    container.create().success();
    let state = container.state().expect("the container exists");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], container.id());
    assert_eq!(state["annotations"]["org.a"], "b", "{state}");
    let bundle = fs::canonicalize(container.bundle()).expect("the bundle");
    assert_eq!(state["bundle"].as_str(), bundle.to_str(), "bundle: the absolute path");
    assert!(state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{state}");
    assert_eq!(fs::read_to_string(container.pid_file()).expect("the pid file"), container.pid().to_string());
    assert_eq!(container.output(), "", "the program must not run before start");

    container.start().success();
    assert_eq!(container.status(), "running");
    container.wait_output("started");
    container.start().failure();
    container.delete().failure();
    assert_eq!(container.status(), "running", "a refused delete changes nothing");

    container.kill("KILL").success();
    container.wait_status("stopped");
    container.start().failure();
    container.delete().success();
    assert_eq!(container.status(), "none");
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn a_process_that_ends_leaves_a_stopped_container() {
    if !root_or_skip("a_process_that_ends_leaves_a_stopped_container") {
        return;
    }
    let container = Container::new().script("echo done");
    container.up();
    container.wait_status("stopped");
    assert_eq!(container.output(), "done");
    container.kill("TERM").failure();
    container.delete().success();
    container.delete().failure();
    container.delete_force().success();
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn run_deletes_the_container_afterwards() {
    if !root_or_skip("run_deletes_the_container_afterwards") {
        return;
    }
    let container = Container::new().script("echo hello; exit 3");
    let done = container.run();
    assert_eq!((done.code, done.text()), (Some(3), "hello"), "{done:?}");
    assert_eq!(container.status(), "none");
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn kill_sends_signals_by_name_and_number() {
    if !root_or_skip("kill_sends_signals_by_name_and_number") {
        return;
    }
    let traps = "trap 'echo term' TERM; trap 'echo hup' HUP; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done";
    let container = Container::new().script(traps);
    container.up();
    container.wait_output("ready");
    for (signal, word) in [("TERM", "term"), ("SIGHUP", "hup"), ("10", "usr1")] {
        container.kill(signal).success();
        container.wait_output(word);
    }
    // crun 1.8 takes an unknown name for signal 0. runtime.md, kill: "MUST generate an error" needs a signal that exists.
    for bad in ["NOSUCH", "999"].iter().filter(|_| container.subject() != Subject::Crun) {
        container.kill(bad).failure();
    }
    // SIGTERM is the default.
    container.runtime(&["kill", container.id()]).success();
    assert_eq!(container.status(), "running");
}

#[test]
fn kill_all_reaches_every_process() {
    if !root_or_skip("kill_all_reaches_every_process") {
        return;
    }
    // Without a pid namespace the kernel does not end the rest with the first process.
    let container = Container::new().script("sleep 1000 & sleep 1000 & echo ready; wait").with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "pid");
    });
    container.up();
    container.wait_output("ready");
    container.runtime(&["kill", "--all", container.id(), "KILL"]).success();
    container.wait_status("stopped");
    container.delete().success();
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn kill_ends_a_paused_container() {
    if !root_or_skip("kill_ends_a_paused_container") {
        return;
    }
    for args in [&["kill"] as &[&str], &["kill", "--all"]] {
        let container = Container::new().script("sleep 1000 & echo ready; wait");
        container.up();
        container.wait_output("ready");
        container.runtime(&["pause", container.id()]).success();
        assert_eq!(container.status(), "paused");
        if container.subject() == Subject::Crun {
            // crun 1.8 leaves a paused v1 container as it is until it is resumed.
            container.delete_force().success();
            continue;
        }
        let mut all = args.to_vec();
        all.extend([container.id(), "KILL"]);
        container.runtime(&all).success();
        container.wait_status("stopped");
        container.delete().success();
        assert_eq!(container.leftovers(), NOTHING, "{args:?}");
    }
}

#[test]
fn delete_force_ends_what_runs() {
    if !root_or_skip("delete_force_ends_what_runs") {
        return;
    }
    for pid_namespace in [true, false] {
        let container = Container::new().script("sleep 1000 & echo ready; wait").with(|c| {
            c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| pid_namespace || n["type"] != "pid");
        });
        container.up();
        container.wait_output("ready");
        container.delete_force().success();
        assert_eq!(container.status(), "none");
        assert_eq!(container.leftovers(), NOTHING, "pid namespace: {pid_namespace}");
    }
    let created = Container::new();
    created.create().success();
    created.delete_force().success();
    assert_eq!(created.leftovers(), NOTHING);
}

#[test]
fn delete_force_of_nothing_is_quiet() {
    if !root_or_skip("delete_force_of_nothing_is_quiet") {
        return;
    }
    let container = Container::new();
    for _ in 0..2 {
        container.delete_force().success();
    }
    for verb in ["state", "start", "delete"] {
        let done = container.runtime(&[verb, container.id()]).failure();
        // containerd looks for these words of runc's; crun has others.
        assert!(container.subject() == Subject::Crun || done.stderr.contains("does not exist"), "{verb}: {}", done.stderr);
    }
}

#[test]
fn an_id_is_taken_once() {
    if !root_or_skip("an_id_is_taken_once") {
        return;
    }
    let container = Container::new().script("sleep 100");
    container.up();
    let pid = container.pid();
    container.create().failure();
    assert_eq!((container.status().as_str(), container.pid()), ("running", pid), "the second create changed the first");
}

#[test]
fn a_container_outlives_a_change_of_its_config() {
    if !root_or_skip("a_container_outlives_a_change_of_its_config") {
        return;
    }
    // runtime.md, create: "Any changes made to the config.json file after this operation will not have an effect".
    let container = Container::new().script("echo first");
    container.create().success();
    fs::write(container.bundle().join("config.json"), "{}").expect("overwrite the configuration");
    container.start().success();
    container.wait_output("first");
}

#[test]
fn a_failed_create_leaves_nothing() {
    if !root_or_skip("a_failed_create_leaves_nothing") {
        return;
    }
    type Edit = fn(&mut serde_json::Value);
    let cases: [(&str, Edit); 10] = [
        ("no root directory", |c| c["root"]["path"] = json!("no-such-directory")),
        ("no such command", |c| c["process"]["args"] = json!(["/no/such/command"])),
        ("no arguments", |c| c["process"]["args"] = json!([])),
        ("a relative cwd", |c| c["process"]["cwd"] = json!("data")),
        ("a bind mount of nothing", |c| {
            push(c, "/mounts", json!({ "destination": "/data", "type": "bind", "source": "/no/such", "options": ["bind"] }));
        }),
        ("an unknown file system", |c| push(c, "/mounts", json!({ "destination": "/data", "type": "nosuchfs", "source": "x" }))),
        ("a failing hook", |c| c["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] })),
        ("a missing hook", |c| c["hooks"] = json!({ "prestart": [{ "path": "/no/such/hook" }] })),
        ("an unknown rlimit", |c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_NONE", "soft": 1, "hard": 1 }])),
        ("a namespace to join that is not there", |c| {
            c["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "network", "path": "/no/such" }]);
        }),
    ];
    for (name, edit) in cases {
        let container = Container::new().with(edit);
        // runc looks for the command only at start.
        let done = container.create();
        let failed = if done.code == Some(0) && name == "no such command" { container.start() } else { done };
        if container.subject() == Subject::Crun && name == "a relative cwd" {
            // config.md, process.cwd: "This value MUST be an absolute path"; crun takes it below the root.
            continue;
        }
        assert_ne!(failed.code, Some(0), "{name} was accepted: {failed:?}");
        if container.subject() == Subject::Runc && container.status() != "none" {
            container.delete_force().success();
        }
        assert_eq!(container.status(), "none", "{name}");
        assert_eq!(container.leftovers(), NOTHING, "{name}");
        assert!(!container.pid_file().exists() || name == "no such command", "{name}: a pid file is left");
        container.delete_force().success();
    }
}

#[test]
fn a_bad_configuration_is_refused() {
    if !root_or_skip("a_bad_configuration_is_refused") {
        return;
    }
    let good = Container::new();
    good.write_config();
    let text = fs::read_to_string(good.bundle().join("config.json")).expect("the configuration");
    let cases = [
        ("empty", String::new()),
        ("cut off", text[..text.len() / 2].to_owned()),
        ("an array", "[]".to_owned()),
        ("a wrong type", text.replace("\"cwd\":\"/\"", "\"cwd\":7")),
        ("no version", text.replace("\"ociVersion\":\"1.0.2\"", "\"ociVersion\":\"\"")),
    ];
    for (name, content) in cases {
        fs::write(good.bundle().join("config.json"), content).expect("write a bad configuration");
        let bundle = good.bundle().display().to_string();
        let done = good.runtime(&["create", "--bundle", &bundle, good.id()]);
        if name == "no version" && good.subject() != Subject::Towline {
            // config.md: ociVersion is REQUIRED and "MUST be in SemVer v2.0.0 format"; the references do not look.
            good.delete_force().success();
            continue;
        }
        done.failure();
        assert_eq!(good.leftovers(), NOTHING, "{name}");
    }
    let nowhere = good.runtime(&["create", "--bundle", "/no/such/bundle", good.id()]).failure();
    assert!(nowhere.stderr.contains("/no/such/bundle"), "{nowhere:?}");
}
