//! The life of a container under podman's verbs, and what each leaves.

use std::fs;

use towline_integration::bundle::cgroups_named;
use towline_integration::process::{run, wait_until};

use super::rig::{PATIENCE, Podman, command, inside, text};

/// Ends with 3 on SIGTERM and tells of SIGUSR1.
const SERVICE: &str = "trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; echo up; while :; do sleep 0.1; done";

fn service(podman: &Podman, name: &str) {
    podman.ok(&["run", "--detach", "--name", name, "--network=none", "--memory=100m", "localhost/box", "sh", "-c", SERVICE]);
    podman.wait_logs(name, "up");
}

fn memory_limit(id: &str) -> Option<String> {
    let files = ["memory.limit_in_bytes", "memory.max"];
    let text = cgroups_named(id).iter().find_map(|dir| files.iter().find_map(|file| fs::read_to_string(dir.join(file)).ok()))?;
    Some(text.trim().to_owned())
}

fn status(podman: &Podman, name: &str) -> String {
    podman.inspect(name, "{{.State.Status}} {{.State.ExitCode}}")
}

#[test]
fn exec_runs_in_the_container() {
    let Some(podman) = Podman::new("exec_runs_in_the_container") else { return };
    service(&podman, "e");
    let script = "id -un; pwd; echo $A; grep CapEff /proc/self/status; exit 4";
    for (args, code, wanted) in [
        (
            &["exec", "--user=user", "--workdir=/data", "--env=A=b", "e", "sh", "-c", script][..],
            4,
            "user\n/data\nb\nCapEff:\t0000000000000000\n",
        ),
        (&["exec", "--privileged", "e", "sh", "-c", "grep -c 'CapEff:.0*1' /proc/self/status"], 0, "1\n"),
        (&["exec", "e", "sh", "-c", "cat /proc/1/comm; kill -9 $$"], 137, "sh\n"),
        (&["exec", "e", "/no/such/program"], 127, ""),
        (&["exec", "e", "no-such-program"], 127, ""),
        (&["exec", "e", "/bin/not-executable"], 126, ""),
        (&["exec", "--workdir=/no/such/place", "e", "true"], 127, ""),
    ] {
        let done = podman.run(args);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(code), wanted), "{done:?}");
    }
    podman.ok(&["exec", "--detach", "e", "sh", "-c", "echo $$ > /tmp/pid; exec sleep 1000"]);
    wait_until("the detached process", PATIENCE, || podman.run(&["exec", "e", "test", "-s", "/tmp/pid"]).status.success());
    let top = podman.ok(&["top", "e", "comm"]);
    assert!(top.lines().filter(|line| *line == "sleep").count() >= 2, "{top}");
    podman.remove("e");
}

#[test]
fn a_service_is_watched_changed_and_stopped() {
    let Some(podman) = Podman::new("a_service_is_watched_changed_and_stopped") else { return };
    service(&podman, "s");
    let stats = podman.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemLimit}}", "s"]);
    assert_eq!(stats, "s 104857600");
    podman.ok(&["update", "--memory=50m", "s"]);
    // `podman stats` of 4.3 goes on showing the limit of the start.
    assert_eq!(memory_limit(&podman.inspect("s", "{{.Id}}")).as_deref(), Some("52428800"));
    podman.ok(&["kill", "--signal=USR1", "s"]);
    podman.wait_logs("s", "usr1");

    podman.ok(&["pause", "s"]);
    assert_eq!(status(&podman, "s"), "paused 0");
    assert_eq!(podman.run(&["exec", "s", "true"]).code(), Some(255), "a paused container takes no exec");
    podman.ok(&["unpause", "s"]);
    assert_eq!(status(&podman, "s"), "running 0");

    fs::write(podman.path("in"), "from the host\n").expect("write a file");
    podman.ok(&["cp", &text(&podman.path("in")), "s:/data/in"]);
    assert_eq!(podman.ok(&["exec", "s", "cat", "/data/in"]), "from the host");
    podman.ok(&["cp", "s:/etc/passwd", &text(&podman.path("out"))]);
    assert!(fs::read_to_string(podman.path("out")).expect("what was copied").starts_with("root:"));
    assert!(podman.ok(&["diff", "s"]).contains("A /data/in"));

    podman.ok(&["restart", "--time=20", "s"]);
    assert_eq!(status(&podman, "s"), "running 0");
    podman.ok(&["stop", "--time=20", "s"]);
    assert_eq!(status(&podman, "s"), "exited 3");
    assert_eq!(podman.ok(&["logs", "s"]), "up\nusr1\nterm\nup\nterm");
    podman.ok(&["start", "s"]);
    assert_eq!(podman.run(&["rm", "s"]).code(), Some(2), "a running container is not removed");
    podman.ok(&["kill", "s"]);
    assert_eq!(podman.ok(&["wait", "s"]), "137");
    podman.remove("s");
}

#[test]
fn stop_kills_what_does_not_listen() {
    let Some(podman) = Podman::new("stop_kills_what_does_not_listen") else { return };
    podman.ok(&["run", "--detach", "--name=k", "--network=none", "localhost/box", "sleep", "1000"]);
    podman.ok(&["stop", "--time=1", "k"]);
    assert_eq!(status(&podman, "k"), "exited 137");
    podman.remove("k");
}

#[test]
fn containers_are_created_initialised_started_and_restarted() {
    let Some(podman) = Podman::new("containers_are_created_initialised_started_and_restarted") else { return };
    podman.ok(&["create", "--name=c", "--network=none", "localhost/box", "sh", "-c", "echo hi; exit 5"]);
    podman.ok(&["init", "c"]);
    assert_eq!(status(&podman, "c"), "initialized 0");
    let done = podman.run(&["start", "--attach", "c"]);
    assert_eq!((done.code(), done.stdout.as_str()), (Some(5), "hi\n"), "{done:?}");
    podman.ok(&["init", "c"]);
    podman.remove("c");

    let script = "echo again; exit 1";
    podman.ok(&["run", "--detach", "--name=r", "--network=none", "--restart=on-failure:2", "localhost/box", "sh", "-c", script]);
    wait_until("three runs", PATIENCE, || podman.ok(&["logs", "r"]).lines().count() == 3 && status(&podman, "r") == "exited 1");
    podman.remove("r");

    podman.ok(&["run", "--detach", "--interactive", "--name=i", "--network=none", "localhost/box", "cat"]);
    podman.ok(&["kill", "--signal=INT", "i"]);
    podman.ok(&["kill", "i"]);
    podman.remove("i");
}

#[test]
fn health_is_checked_by_exec() {
    let Some(podman) = Podman::new("health_is_checked_by_exec") else { return };
    // Without systemd podman cannot set its timers and says so; the check itself works.
    let check = ["--health-cmd=test -e /tmp/ok", "--health-retries=1"];
    podman
        .run(&["run", "--detach", "--name=h", "--network=none", check[0], check[1], "localhost/box", "sleep", "1000"])
        .success();
    assert_eq!(podman.run(&["healthcheck", "run", "h"]).code(), Some(1));
    podman.ok(&["exec", "h", "touch", "/tmp/ok"]);
    assert_eq!(podman.run(&["healthcheck", "run", "h"]).code(), Some(0));
    podman.remove("h");
}

#[test]
fn a_large_output_arrives_whole() {
    let Some(podman) = Podman::new("a_large_output_arrives_whole") else { return };
    let script = "yes 0123456789abcdef | head -c 20971520";
    let done = podman.run(&["run", "--rm", "--network=none", "--log-driver=none", "localhost/box", "sh", "-c", script]).success();
    assert_eq!(done.stdout.len(), 20 << 20);
    assert!(done.stdout.ends_with("0123456789abcde") || done.stdout.lines().all(|line| "0123456789abcdef".starts_with(line)));
}

#[test]
fn standard_input_reaches_the_program() {
    let Some(podman) = Podman::new("standard_input_reaches_the_program") else { return };
    let inner = podman.command(&["run", "--rm", "--interactive", "--network=none", "localhost/box", "wc", "-c"]);
    let outer = inside(&command("sh", &["-c", "head -c 1000000 /dev/zero | \"$@\"", "sh"]), &inner);
    assert_eq!(run(outer, PATIENCE).success().stdout.trim(), "1000000");
}
