//! Tasks: what `ctr` does with them, what containerd tells of them, and what is left.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towline_integration::process::{Job, run, wait_until};

use super::rig::{Containerd, PATIENCE, Shim, processes_with, text};

/// Unique on the machine, since what is left is looked for by name.
fn id(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

#[test]
fn programs_run_and_their_exit_codes_arrive() {
    for containerd in Containerd::each("programs_run_and_their_exit_codes_arrive") {
        for (options, program, code, wanted) in [
            (&[][..], &["echo", "hi"][..], 0, "hi"),
            (&[], &["sh", "-c", "exit 9"], 9, ""),
            (&["--cwd", "/data", "--env", "A=b"], &["sh", "-c", "pwd; echo $A"], 0, "/data\nb"),
            (&["--read-only"], &["sh", "-c", "touch /x 2>/dev/null; echo $?"], 0, "1"),
            (&["--seccomp"], &["sh", "-c", "grep Seccomp: /proc/self/status | cut -f 2"], 0, "2"),
            (&["--privileged"], &["sh", "-c", "id -u; stat -c %F /dev/null"], 0, "0\ncharacter special file"),
            (
                &["--mount", "type=bind,src=/proc,dst=/data,options=rbind:ro"],
                &["sh", "-c", "touch /data/x 2>/dev/null; echo $?"],
                0,
                "1",
            ),
        ] {
            let id = id("run");
            let mut all = vec!["--rm"];
            all.extend(options);
            let done = containerd.run(&all, &id, program);
            assert_eq!((done.code(), done.stdout.trim()), (Some(code), wanted), "{done:?}");
            containerd.assert_gone(&id);
        }
        // The reason is the last line of the runtime's log.
        for (program, wanted) in [("/no/such", "no such file or directory"), ("no-such", "executable file not found in $PATH")] {
            let id = id("bad");
            let done = containerd.run(&["--rm"], &id, &[program]);
            assert!(done.code() == Some(1) && done.stderr.contains(&format!("exec: \"{program}\"")), "{done:?}");
            assert!(done.stderr.contains(wanted), "{done:?}");
            containerd.assert_gone(&id);
        }
    }
}

#[test]
fn a_task_lives_through_its_verbs_and_events_tell_of_it() {
    for containerd in Containerd::each("a_task_lives_through_its_verbs_and_events_tell_of_it") {
        let id = id("life");
        let events = Job::start(containerd.command(&["events"]));
        // The subscription is there when an event comes through.
        wait_until("the first event", PATIENCE, || {
            containerd.ok(&["namespaces", "create", "probe"]);
            containerd.ok(&["namespaces", "rm", "probe"]);
            events.stdout().contains("probe")
        });
        let script = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
        containerd.run(&["--detach", "--memory-limit", "67108864"], &id, &["sh", "-c", script]).success();
        assert_eq!(containerd.status(&id), "RUNNING");

        let done = containerd.ctr(&["task", "exec", "--exec-id", "e1", &id, "sh", "-c", "cat /proc/1/comm; exit 4"]);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(4), "sh\n"), "{done:?}");
        let done = containerd.ctr(&["task", "exec", "--exec-id", "e2", &id, "/no/such"]);
        assert!(done.code() == Some(1) && done.stderr.contains("no such file or directory"), "{done:?}");
        assert!(containerd.ok(&["task", "ps", &id]).lines().count() >= 2);
        assert!(containerd.ok(&["task", "metrics", &id]).contains("67108864"));

        containerd.ok(&["task", "pause", &id]);
        assert_eq!(containerd.status(&id), "PAUSED");
        containerd.ok(&["task", "resume", &id]);
        assert_eq!(containerd.status(&id), "RUNNING");
        containerd.ok(&["task", "kill", "--signal", "15", &id]);
        containerd.wait_status(&id, "STOPPED");
        assert_eq!(containerd.ctr(&["task", "rm", &id]).code(), Some(0));
        containerd.ok(&["container", "rm", &id]);
        containerd.assert_gone(&id);

        wait_until("the last event", PATIENCE, || events.stdout().contains("/containers/delete"));
        let seen = events.stdout();
        let topics: Vec<&str> = seen
            .lines()
            .filter(|line| line.contains(&id))
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
            .collect();
        assert_eq!(
            topics,
            [
                "/containers/create",
                "/tasks/create",
                "/tasks/start",
                "/tasks/exec-added",
                "/tasks/exec-started",
                "/tasks/exit",
                "/tasks/exec-added",
                "/tasks/paused",
                "/tasks/resumed",
                "/tasks/exit",
                "/tasks/delete",
                "/containers/delete"
            ],
            "{seen}"
        );
        assert!(seen.lines().any(|line| line.contains("/tasks/exit") && line.contains("\"exit_status\":3")), "{seen}");
    }
}

#[test]
fn a_large_output_arrives_whole() {
    for containerd in Containerd::each("a_large_output_arrives_whole") {
        let done = containerd.run(&["--rm"], &id("large"), &["sh", "-c", "yes 0123456789abcde | head -c 20971520"]).success();
        assert_eq!(done.stdout.len(), 20 << 20);
        assert!(done.stdout.lines().all(|line| line == "0123456789abcde"));
    }
}

#[test]
fn a_killed_shim_leaves_nothing() {
    for containerd in Containerd::each("a_killed_shim_leaves_nothing") {
        let id = id("orphan");
        containerd.run(&["--detach"], &id, &["sleep", "1000"]).success();
        let shims = processes_with(&format!("-id {id} "));
        assert_eq!(shims.len(), 1, "{shims:?}");
        kill(Pid::from_raw(shims[0]), Signal::SIGKILL).expect("kill the shim");
        containerd.wait_status(&id, "");
        containerd.ok(&["container", "rm", &id]);
        containerd.assert_gone(&id);
    }
}

#[test]
fn a_forced_removal_kills() {
    for containerd in Containerd::each("a_forced_removal_kills") {
        let id = id("forced");
        containerd.run(&["--detach"], &id, &["sleep", "1000"]).success();
        // The exit code is the task's: killed.
        assert_eq!(containerd.ctr(&["task", "rm", "--force", &id]).code(), Some(0));
        containerd.ok(&["container", "rm", &id]);
        containerd.assert_gone(&id);
    }
}

#[test]
fn the_configuration_of_contrib_is_understood() {
    let Some(_containerd) = Containerd::new("the_configuration_of_contrib_is_understood", Shim::Runc) else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/containerd/config.toml");
    let mut command = Command::new("containerd");
    command.args(["--config", &text(&file), "config", "dump"]);
    let dump = run(command, PATIENCE).success().stdout;
    let (_, ours) = dump.split_once("containerd.runtimes.towline]").expect("our runtime in the merged configuration");
    let until = ours.find("containerd.runtimes.runc]").unwrap_or(ours.len());
    for line in
        ["runtime_type = \"io.containerd.runc.v2\"", "BinaryName = \"/usr/local/bin/towline-oci\"", "SystemdCgroup = false"]
    {
        assert!(ours[..until].contains(line), "{line} is not in {ours}");
    }
}
