//! `exec`: a further process in a running container.

use std::fs;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, PATIENCE, Subject, root_or_skip};

fn running() -> Container {
    let container = Container::new().script("echo ready; sleep 100; true");
    container.up();
    container.wait_output("ready");
    container
}

#[test]
fn a_process_joins_the_container() {
    if !root_or_skip("a_process_joins_the_container") {
        return;
    }
    let container = running();
    let inside = |args: &[&str]| container.exec(&[], args).success().text().to_owned();
    assert_eq!(inside(&["/bin/hostname"]), "box");
    assert_eq!(inside(&["echo", "found in PATH"]), "found in PATH");
    let pid = container.pid();
    for namespace in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        let link = format!("ns/{namespace}");
        let theirs = fs::read_link(format!("/proc/{pid}/{link}")).expect("the container's namespace");
        assert_eq!(inside(&["readlink", &format!("/proc/self/{link}")]), theirs.display().to_string());
    }
    let cgroup = |text: String| text.lines().filter(|line| !line.starts_with("0::")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(cgroup(inside(&["cat", "/proc/self/cgroup"])), cgroup(inside(&["cat", "/proc/1/cgroup"])));
    assert_eq!(container.status(), "running");
}

#[test]
fn its_exit_code_is_the_callers() {
    if !root_or_skip("its_exit_code_is_the_callers") {
        return;
    }
    let container = running();
    for (script, code) in [("exit 0", 0), ("exit 9", 9), ("kill -9 $$", 137)] {
        assert_eq!(container.exec(&[], &["sh", "-c", script]).code, Some(code), "{script}");
    }
    let done = container.exec(&[], &["no-such-command"]).failure();
    assert!(done.stderr.to_lowercase().contains("executable file"), "{done:?}");
}

#[test]
fn options_change_the_process() {
    if !root_or_skip("options_change_the_process") {
        return;
    }
    let container = running();
    let cases: [(&[&str], &[&str], &str); 5] = [
        (&["--env", "A=1", "--env", "B=2 3"], &["/bin/sh", "-c", "echo $A.$B"], "1.2 3"),
        (&["--cwd", "/data"], &["pwd"], "/data"),
        (&["--user", "1000:2000"], &["sh", "-c", "id -u; id -g"], "1000\n2000"),
        (&["--user", "1000"], &["sh", "-c", "id -u"], "1000"),
        (&["--cap", "CAP_CHOWN"], &["grep", "CapBnd", "/proc/self/status"], "CapBnd:\t0000000020000421"),
    ];
    for (options, args, wanted) in cases {
        if container.subject() == Subject::Crun && options[0] == "--cap" {
            // crun takes --cap for all there are, runc for additional ones.
            continue;
        }
        assert_eq!(container.exec(options, args).success().text(), wanted, "{options:?}");
    }
}

#[test]
fn a_process_file_says_everything() {
    if !root_or_skip("a_process_file_says_everything") {
        return;
    }
    let container = running();
    let process = json!({
        "terminal": false,
        "user": { "uid": 1000, "gid": 1000, "additionalGids": [7] },
        "args": ["sh", "-c", "id -u; id -G; pwd; echo $X; grep -E 'NoNewPrivs|CapEff|CapInh' /proc/self/status"],
        "env": ["PATH=/bin", "X=y"],
        "cwd": "/data",
        "noNewPrivileges": true
    });
    let file = container.dir().join("process.json");
    fs::write(&file, process.to_string()).expect("write the process");
    let done = container.exec(&["--process", &file.display().to_string()], &[]).success();
    let wanted = "1000\n1000 7\n/data\ny\nCapInh:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1";
    assert_eq!(done.text(), wanted);
}

#[test]
fn a_detached_process_goes_on_and_has_a_pid_file() {
    if !root_or_skip("a_detached_process_goes_on_and_has_a_pid_file") {
        return;
    }
    let container = running();
    let pid_file = container.dir().join("exec.pid");
    let option = pid_file.display().to_string();
    let script = "echo on > /data/mark; sleep 100";
    container.exec(&["--detach", "--pid-file", &option], &["sh", "-c", script]).success();
    let pid: i32 = fs::read_to_string(&pid_file).expect("the pid file").trim().parse().expect("a pid");
    let end = std::time::Instant::now() + PATIENCE;
    while !container.rootfs().join("data/mark").exists() {
        assert!(std::time::Instant::now() < end, "the detached process did nothing");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ours = fs::read_link(format!("/proc/{pid}/ns/pid")).expect("the process runs");
    assert_eq!(ours, fs::read_link(format!("/proc/{}/ns/pid", container.pid())).expect("so does the first"));
    container.delete_force().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn only_a_running_container_takes_processes() {
    if !root_or_skip("only_a_running_container_takes_processes") {
        return;
    }
    let container = Container::new().script("exit 0");
    container.exec(&[], &["true"]).failure();
    container.create().success();
    container.start().success();
    container.wait_status("stopped");
    container.exec(&[], &["true"]).failure();
}

#[test]
fn ps_lists_the_processes() {
    if !root_or_skip("ps_lists_the_processes") {
        return;
    }
    let container = running();
    if container.subject() == Subject::Towline && !has_verb(&container, "ps") {
        println!("SKIP ps_lists_the_processes: towline-oci has no ps yet");
        return;
    }
    let done = container.runtime(&["ps", "--format", "json", container.id()]).success();
    let pids: Value = serde_json::from_str(&done.stdout).expect("a JSON array");
    assert_eq!(pids.as_array().map(Vec::len), Some(2), "the shell and its sleep: {pids}");
}

#[test]
fn pause_stops_and_resume_goes_on() {
    if !root_or_skip("pause_stops_and_resume_goes_on") {
        return;
    }
    let container = Container::new().script("while :; do echo x; sleep 0.01; done");
    if container.subject() == Subject::Towline && !has_verb(&container, "pause") {
        println!("SKIP pause_stops_and_resume_goes_on: towline-oci has no pause yet");
        return;
    }
    container.up();
    container.wait_output("x");
    container.runtime(&["pause", container.id()]).success();
    assert_eq!(container.status(), "paused");
    let before = container.output().len();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(container.output().len(), before, "it writes while paused");
    container.exec(&[], &["true"]).failure();
    container.runtime(&["resume", container.id()]).success();
    assert_eq!(container.status(), "running");
    let end = std::time::Instant::now() + PATIENCE;
    while container.output().len() == before {
        assert!(std::time::Instant::now() < end, "it does not go on");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // A paused container can be deleted by force.
    container.runtime(&["pause", container.id()]).success();
    container.delete_force().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

/// Whether the runtime knows a command at all.
pub fn has_verb(container: &Container, verb: &str) -> bool {
    container.runtime(&[verb, "--help"]).code == Some(0)
}
