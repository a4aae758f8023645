//! runc's command line: flags, what is printed, exit codes, logs. Where nothing else is said the reference is runc 1.1.5.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use towline_integration::bundle::{Container, Subject, cgroups_named, root_or_skip};

fn running() -> Container {
    let container = Container::new().script("echo ready; sleep 100; true");
    container.up();
    container.wait_output("ready");
    container
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn state_and_list_have_runcs_fields() {
    if !root_or_skip("state_and_list_have_runcs_fields") {
        return;
    }
    let container = running();
    let state = container.state().expect("the container exists");
    let list: Value = serde_json::from_str(&container.runtime(&["list", "--format", "json"]).success().stdout).expect("JSON");
    let listed = &list.as_array().expect("an array")[0];
    for field in ["id", "pid", "status", "bundle"] {
        assert_eq!(state[field], listed[field], "{field}");
    }
    if container.subject() != Subject::Crun {
        let fields = BTreeSet::from(["bundle", "created", "id", "ociVersion", "owner", "pid", "rootfs", "status"]);
        assert_eq!(keys(&state), fields);
        assert_eq!(keys(listed), fields);
        assert_eq!(listed["owner"], "root");
        let rootfs = fs::canonicalize(container.rootfs()).expect("the root");
        assert_eq!(state["rootfs"].as_str(), rootfs.to_str());
        let created = state["created"].as_str().expect("a time");
        assert!(created.len() >= "2026-01-01T00:00:00Z".len() && created.ends_with('Z') && created.contains('T'), "{created}");
    }
    assert_eq!(container.runtime(&["list", "-q"]).success().text(), container.id());
    let table = container.runtime(&["list"]).success().stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let pid = container.pid().to_string();
    assert_eq!(lines[0][..5], ["ID", "PID", "STATUS", "BUNDLE", "CREATED"]);
    assert_eq!(lines[1][..3], [container.id(), pid.as_str(), "running"]);
}

#[test]
fn ps_prints_pids_or_what_ps_says() {
    if !root_or_skip("ps_prints_pids_or_what_ps_says") {
        return;
    }
    let container = running();
    let pid = container.pid();
    let pids: Vec<i32> =
        serde_json::from_str(&container.runtime(&["ps", "--format", "json", container.id()]).success().stdout).expect("pids");
    assert!(pids.contains(&pid), "{pids:?}");
    for options in [&[][..], &["-o", "pid,args"], &["aux"]] {
        let args = [&["ps", container.id()][..], options].concat();
        let table = container.runtime(&args).success().stdout;
        let mut lines = table.lines();
        assert!(lines.next().expect("a head").contains("PID"), "{table}");
        assert!(lines.any(|line| line.split_whitespace().any(|word| word == pid.to_string())), "{options:?}: {table}");
    }
    if container.subject() != Subject::Crun {
        container.runtime(&["ps", container.id(), "-o", "args"]).failure();
    }
}

#[test]
fn exit_codes_are_runcs() {
    if !root_or_skip("exit_codes_are_runcs") {
        return;
    }
    let container = Container::new();
    if container.subject() == Subject::Crun {
        println!("SKIP exit_codes_are_runcs: crun has its own");
        return;
    }
    let cases: &[(&[&str], i32)] = &[
        (&["--help"], 0),
        (&["kill", "--help"], 0),
        (&["--version"], 0),
        (&["-v"], 0),
        (&["list"], 0),
        (&["kill", "--no-such-flag", "x"], 1),
        (&["--log-format", "xml", "list"], 1),
        (&["state"], 1),
        (&["state", "nosuch"], 1),
        (&["start", "nosuch"], 1),
        (&["kill", "nosuch"], 1),
        (&["delete", "nosuch"], 1),
        (&["delete", "--force", "nosuch"], 0),
        (&["pause", "nosuch"], 1),
        (&["ps", "nosuch"], 1),
        (&["exec", "nosuch", "true"], 255),
        (&["--rootless", "false", "list"], 0),
        (&["--rootless=auto", "--debug", "list"], 0),
    ];
    for (args, code) in cases {
        let done = container.runtime(args);
        assert_eq!(done.code, Some(*code), "{done:?}");
    }
}

#[test]
fn the_version_is_lines_that_callers_parse() {
    let container = Container::new();
    let done = container.runtime(&["--version"]).success();
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines[0].contains(" version "), "{done:?}");
    for start in ["commit: ", "spec: 1."] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}: {done:?}");
    }
}

/// The last line of a JSON log.
fn last_line(log: &Path) -> Value {
    let text = fs::read_to_string(log).expect("the log");
    serde_json::from_str(text.lines().last().expect("a line")).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn failures_are_lines_of_the_json_log() {
    if !root_or_skip("failures_are_lines_of_the_json_log") {
        return;
    }
    let container = Container::new();
    let crun = container.subject() == Subject::Crun;
    let cases: [(&[&str], &str); 3] = [
        (&["start", "nosuch"], "does not exist"),
        (&["exec", "nosuch", "true"], "does not exist"),
        (&["kill", "--no-such-flag", "x"], "no-such-flag"),
    ];
    for (number, (args, words)) in cases.iter().enumerate().filter(|(number, _)| !crun || *number < 2) {
        let log = container.dir().join(format!("log{number}"));
        let name = log.display().to_string();
        container.runtime(&[&["--log", &name, "--log-format", "json"][..], args].concat()).failure();
        let line = last_line(&log);
        assert_eq!(line["level"], "error", "{line}");
        assert!(line["time"].as_str().is_some_and(|time| time.contains('T')), "{line}");
        assert!(crun || line["msg"].as_str().is_some_and(|text| text.contains(words)), "{line}");
    }
    let done = container.runtime(&["--log", "/no/such/directory/log", "list"]).failure();
    assert!(done.stderr.contains("/no/such/directory/log"), "{done:?}");
}

#[test]
fn debug_says_what_each_step_took() {
    if !root_or_skip("debug_says_what_each_step_took") {
        return;
    }
    let container = Container::new();
    if container.subject() != Subject::Towline {
        println!("SKIP debug_says_what_each_step_took: the references have other words");
        return;
    }
    container.write_config();
    let log = container.dir().join("log");
    let (name, bundle) = (log.display().to_string(), container.bundle().display().to_string());
    let global = ["--debug", "--log", &name, "--log-format", "json"];
    container.runtime(&[&global[..], &["run", "--bundle", &bundle, container.id()]].concat()).success();
    let text = fs::read_to_string(&log).expect("the log");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().all(|line| line["time"].is_string() && line["level"] == "debug"), "{text}");
    for words in ["read config.json", "made init", "making the mounts", "recorded the container", "removed the state"] {
        assert!(lines.iter().any(|line| line["msg"].as_str().is_some_and(|text| text.contains(words))), "{words}: {text}");
    }
}

#[test]
fn what_is_stopped_cannot_be_killed() {
    if !root_or_skip("what_is_stopped_cannot_be_killed") {
        return;
    }
    let container = Container::new().script("true");
    container.up();
    container.wait_status("stopped");
    let done = container.kill("TERM").failure();
    // containerd and podman look for these words of runc's; crun has others.
    assert!(container.subject() == Subject::Crun || done.stderr.contains("container not running"), "{done:?}");
    container.delete().success();
}

#[test]
fn kill_means_all_where_no_pid_namespace_does_it() {
    if !root_or_skip("kill_means_all_where_no_pid_namespace_does_it") {
        return;
    }
    let container = Container::new().script("sleep 1000 & echo ready; wait").with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "pid");
    });
    if container.subject() != Subject::Towline {
        println!("SKIP kill_means_all_where_no_pid_namespace_does_it: runc does so since 1.2, crun never");
        return;
    }
    container.up();
    container.wait_output("ready");
    container.kill("KILL").success();
    container.wait_status("stopped");
    // The sleep is no child of ours: it is gone from the cgroup when init's parent has reaped it.
    container.delete().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn exec_joins_a_cgroup_below_the_containers() {
    if !root_or_skip("exec_joins_a_cgroup_below_the_containers") {
        return;
    }
    let container = running();
    if container.subject() == Subject::Crun {
        println!("SKIP exec_joins_a_cgroup_below_the_containers: crun 1.8 knows other paths");
        return;
    }
    for dir in cgroups_named(container.id()) {
        fs::create_dir(dir.join("sub")).expect("make a cgroup");
        // A new cpuset of v1 has neither processors nor memory.
        for file in ["cpuset.cpus", "cpuset.mems"]
            .iter()
            .filter(|file| dir.join("cgroup.clone_children").exists() && dir.join(file).exists())
        {
            fs::write(dir.join("sub").join(file), fs::read(dir.join(file)).expect("the parent's")).expect("copy the parent's");
        }
    }
    let done = container.exec(&["--cgroup", "sub"], &["cat", "/proc/self/cgroup"]).success();
    let wanted = format!("{}/sub", container.id());
    assert!(done.stdout.lines().any(|line| line.ends_with(&wanted)), "{done:?}");
    for bad in ["../../..", "none"] {
        container.exec(&["--cgroup", bad], &["true"]).failure();
    }
}

#[test]
fn exec_in_a_paused_container_is_refused_or_waits() {
    if !root_or_skip("exec_in_a_paused_container_is_refused_or_waits") {
        return;
    }
    let container = running();
    if container.subject() == Subject::Crun {
        println!("SKIP exec_in_a_paused_container_is_refused_or_waits: crun 1.8 has no --ignore-paused");
        return;
    }
    container.runtime(&["pause", container.id()]).success();
    let done = container.exec(&[], &["true"]).failure();
    assert!(done.stderr.contains("paused"), "{done:?}");
    let mut waiting = container.command(&["exec", "--ignore-paused", container.id(), "true"]).spawn().expect("start exec");
    container.runtime(&["resume", container.id()]).success();
    assert!(waiting.wait().expect("wait for exec").success());
}

#[test]
fn a_pidfd_comes_over_the_pidfd_socket() {
    if !root_or_skip("a_pidfd_comes_over_the_pidfd_socket") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100; true");
    if container.subject() != Subject::Towline {
        println!("SKIP a_pidfd_comes_over_the_pidfd_socket: runc has it since 1.2, crun 1.8 not");
        return;
    }
    let path = container.dir().join("pidfd");
    let name = path.display().to_string();
    let listener = UnixListener::bind(&path).expect("bind the socket");
    let receive = || receive_pid(&listener);
    container.create_with(&["--pidfd-socket", &name]).success();
    assert_eq!(receive(), container.pid());
    container.start().success();
    let pid_file = container.dir().join("exec-pid");
    let options = ["--detach", "--pidfd-socket", &name, "--pid-file", &pid_file.display().to_string()];
    container.exec(&options, &["sleep", "100"]).success();
    assert_eq!(receive().to_string(), fs::read_to_string(pid_file).expect("the pid file"));
}

/// Accepts one connection, which is there already, and returns the pid behind the pidfd that comes.
fn receive_pid(listener: &UnixListener) -> i32 {
    let (stream, _) = listener.accept().expect("accept the runtime");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 64];
    recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).expect("a message");
    let fd: OwnedFd = control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor");
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).expect("fdinfo");
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a pidfd");
    pid.trim().parse().expect("a pid")
}

#[test]
fn spec_writes_what_runc_writes() {
    if !root_or_skip("spec_writes_what_runc_writes") {
        return;
    }
    let container = Container::new();
    if container.subject() == Subject::Crun {
        println!("SKIP spec_writes_what_runc_writes: crun has an example of its own");
        return;
    }
    for options in [&[][..], &["--rootless"]] {
        let written = |command: &mut Command, name: &str| -> Value {
            let dir = container.dir().join(format!("{name}{}", options.len()));
            fs::create_dir(&dir).expect("a directory");
            let status = command.arg("spec").arg("--bundle").arg(&dir).args(options).status().expect("run spec");
            assert!(status.success(), "{command:?}");
            let mut config: Value =
                serde_json::from_reader(File::open(dir.join("config.json")).expect("config.json")).expect("JSON");
            normalise(&mut config);
            config
        };
        let reference = written(&mut Command::new(Subject::Runc.binary()), "reference");
        let ours = written(&mut Command::new(container.binary()), "ours");
        assert_eq!(ours, reference, "{options:?}");
    }
    let dir = container.dir().join("ours0");
    let again = container.runtime(&["spec", "--bundle", &dir.display().to_string()]).failure();
    assert!(again.stderr.to_lowercase().contains("exists"), "{again:?}");
}

/// Takes out what differs on purpose: the version, the name, the order of lists, the cgroup namespace (we always make one), and
/// ambient capabilities, which have no effect there without inheritable ones.
fn normalise(config: &mut Value) {
    config["ociVersion"] = json!("");
    config["hostname"] = json!("");
    for set in ["ambient", "inheritable"] {
        config["process"]["capabilities"].as_object_mut().expect("capabilities").remove(set);
    }
    // runc leaves it out on v1 hosts.
    config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|entry| entry["type"] != "cgroup");
    // For a user without root's rights all of the host's /sys is there anyway; runc mounts cgroups on top of it.
    if config["linux"]["uidMappings"].is_array() {
        config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    sort(config);
}

fn sort(value: &mut Value) {
    match value {
        Value::Array(list) => {
            list.iter_mut().for_each(sort);
            list.sort_by_key(Value::to_string);
        }
        Value::Object(map) => map.values_mut().for_each(sort),
        _ => {}
    }
}

#[test]
fn standard_streams_on_dev_null_are_the_containers() {
    if !root_or_skip("standard_streams_on_dev_null_are_the_containers") {
        return;
    }
    let container = Container::new().script("sleep 100");
    if container.subject() == Subject::Crun {
        println!("SKIP standard_streams_on_dev_null_are_the_containers: crun 1.8 hands the host's on");
        return;
    }
    container.up();
    // Standard input is /dev/null here. The host's one is on another mount.
    let pid = container.pid();
    let mount_of = |file: String| {
        let info = fs::read_to_string(file).expect("fdinfo");
        info.lines().find_map(|line| line.strip_prefix("mnt_id:")).expect("a mount").trim().to_owned()
    };
    let mount = mount_of(format!("/proc/{pid}/fdinfo/0"));
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    assert!(mounts.lines().any(|line| line.split(' ').next() == Some(&mount)), "mount {mount} is not in\n{mounts}");
}
