//! What is done to containers that run, and to those that have.

use serde_json::Value;
use towline_integration::images;
use towline_integration::process::{Job, wait_until};
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::store;

fn json(towline: &Towline, args: &[&str]) -> Value {
    let done = towline.run(args).success();
    serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{args:?}: {e} in {}", done.stdout))
}

fn inspect(towline: &Towline, format: &str) -> String {
    towline.run(&["inspect", "-f", format, "c"]).success().stdout.trim_end().to_owned()
}

/// A `wait` that has begun to.
fn waiting(towline: &Towline, name: &str) -> Job {
    let job = towline.start(&["wait", name]);
    let descriptors = format!("/proc/{}/fd", job.pid());
    wait_until("`wait` to watch", PATIENCE, || {
        let all = std::fs::read_dir(&descriptors).into_iter().flatten().flatten();
        all.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|link| link.to_string_lossy().contains("inotify"))
    });
    job
}

#[test]
fn a_running_container_is_seen_and_changed() {
    if !images::available("commands::a_running_container_is_seen_and_changed") {
        return;
    }
    let (towline, image) = store();
    let script = "trap 'exit 7' TERM; echo up >> /tmp/starts; while :; do sleep 0.1; done";
    towline.run(&["run", "-d", "--name", "c", "-m", "64m", "-e", "A=1", &image, "sh", "-c", script]).success();
    let all = json(&towline, &["inspect", "c"]);
    let row = &all[0];
    assert_eq!(
        (&row["Name"], &row["State"]["Status"], &row["HostConfig"]["Memory"]),
        (&"c".into(), &"running".into(), &(64 << 20).into())
    );
    assert!(row["Config"]["Env"].to_string().contains("A=1"), "{row}");
    let pid = inspect(&towline, "{{.State.Pid}}");
    assert_eq!(towline.row("c")["pid"].to_string(), pid);
    assert!(towline.run(&["inspect", "-f", "{{.State.Nothing}}", "c"]).stderr.contains("there is no Nothing"));
    assert!(towline.run(&["inspect", "c", "nobody"]).stderr.contains("nobody"));
    assert!(towline.run(&["top", "c"]).success().stdout.contains("trap 'exit 7' TERM"));
    assert!(
        towline.run(&["top", "c", "-eo", "pid,comm"]).success().stdout.lines().any(|line| line.trim() == format!("{pid} sh"))
    );

    let stats = json(&towline, &["stats", "--no-stream", "--format", "json"]);
    assert_eq!((&stats[0]["name"], &stats[0]["memory_limit"]), (&"c".into(), &(64 << 20).into()));
    assert!(stats[0]["pids"].as_u64() >= Some(1) && stats[0]["cpu_total"].as_u64() > Some(0), "{stats}");
    towline.run(&["update", "--memory", "80m", "--pids-limit", "50", "c"]).success();
    assert_eq!(json(&towline, &["stats", "--no-stream", "--format", "json", "c"])[0]["memory_limit"], 80 << 20);
    assert_eq!(inspect(&towline, "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}"), format!("{} 50", 80 << 20));

    towline.run(&["pause", "c"]).success();
    assert_eq!(inspect(&towline, "{{.State.Status}}"), "paused");
    assert!(towline.run(&["ps"]).success().stdout.contains("(Paused)"));
    assert_eq!(towline.run(&["ps", "-q", "--filter", "status=running"]).success().stdout, "");
    towline.run(&["unpause", "c"]).success();
    towline.run(&["rename", "c", "d"]).success();
    towline.run(&["rename", "d", "c"]).success();
    assert_eq!(towline.run(&["ps", "--format", "{{.Names}}|{{.State}}", "-f", "name=c"]).success().stdout, "c|running\n");

    // A paused one is ended all the same, by its own exit.
    towline.run(&["pause", "c"]).success();
    let mut waiting = waiting(&towline, "c");
    towline.run(&["restart", "c"]).success();
    waiting.wait_for_output("7\n", PATIENCE);
    assert_ne!(inspect(&towline, "{{.State.Pid}}"), pid);
    wait_until("its program to run again", PATIENCE, || {
        towline.run(&["exec", "c", "cat", "/tmp/starts"]).success().stdout == "up\nup\n"
    });
    towline.run(&["stop", "c"]).success();
    assert_eq!(inspect(&towline, "{{.State.Status}} {{.State.ExitCode}} {{json .State.Running}}"), "exited 7 false");
    assert_eq!(towline.run(&["wait", "c"]).success().stdout, "7\n");
    assert_eq!(towline.run(&["ps", "-f", "exited=7", "--format", "{{.Names}}"]).success().stdout, "c\n");
    for verb in ["pause", "top", "stats"] {
        let done = towline.run(&[verb, "c"]);
        assert!(done.code() == Some(125) && done.stderr.contains("it does not run: Exited (7)"), "{done:?}");
    }
    towline.run(&["rm", "c"]).success();
}

#[test]
fn what_has_ended_runs_again_with_what_it_wrote() {
    if !images::available("commands::what_has_ended_runs_again_with_what_it_wrote") {
        return;
    }
    let (towline, image) = store();
    let script = "echo x >> /tmp/count; n=$(wc -l < /tmp/count); echo run $n; exit $n";
    assert_eq!(towline.run(&["run", "--name", "c", &image, "sh", "-c", script]).code(), Some(1));
    let again = towline.run(&["start", "-a", "c"]);
    assert_eq!((again.code(), again.stdout.as_str()), (Some(2), "run 2\n"), "{again:?}");
    towline.run(&["start", "c"]).success();
    assert_eq!(towline.run(&["wait", "c"]).success().stdout, "3\n");
    assert_eq!(towline.run(&["logs", "c"]).success().stdout, "run 1\nrun 2\nrun 3\n");

    // One that was killed with its monitor.
    towline.run(&["run", "-d", "--name", "k", &image, "sleep", "1000"]).success();
    let mut all = towline.monitors();
    all.push(i32::try_from(towline.row("k")["pid"].as_i64().unwrap()).unwrap());
    towline.kill(&all);
    assert!(towline.run(&["wait", "k"]).stderr.contains("its end was not recorded"));
    towline.run(&["start", "k"]).success();
    assert_eq!(towline.row("k")["status"], "running");
    // Its exit code is caught, although it is gone at once.
    towline
        .run(&["run", "-d", "--rm", "--name", "r", &image, "sh", "-c", "while [ ! -e /go ]; do sleep 0.1; done; exit 9"])
        .success();
    let mut waits = waiting(&towline, "r");
    towline.run(&["exec", "r", "touch", "/go"]).success();
    waits.wait_for_output("9\n", PATIENCE);
    towline.run(&["rm", "-f", "k"]).success();

    // A start that fails takes nothing away.
    let broken = towline.dir().join("gone");
    std::fs::create_dir(&broken).unwrap();
    let volume = format!("{}:/v", broken.display());
    towline.run(&["run", "--name", "v", "-v", &volume, &image, "true"]).success();
    std::fs::remove_dir(&broken).unwrap();
    let failed = towline.run(&["start", "v"]);
    assert!(failed.code() == Some(125) && failed.stderr.contains("gone"), "{failed:?}");
    assert_eq!(towline.row("v")["exit_code"], 125);
    std::fs::create_dir(&broken).unwrap();
    towline.run(&["start", "v"]).success();
    assert_eq!(towline.run(&["wait", "v"]).success().stdout, "0\n");
}

/// A power cut may leave a file with its name and without its bytes.
#[test]
fn a_container_whose_files_are_empty_can_be_removed() {
    const TEST: &str = "commands::a_container_whose_files_are_empty_can_be_removed";
    if !images::available(TEST) {
        return;
    }
    let (towline, image) = store();
    for file in ["container.json", "exit"] {
        towline.run(&["run", "--name", "c", &image, "true"]).success();
        let home = towline.root().join("containers/by-name/c");
        std::fs::write(home.join(file), "").unwrap();
        let refused = towline.run(&["rm", "c"]);
        assert!(refused.code() == Some(125) && refused.stderr.contains("towline rm -f"), "{refused:?}");
        towline.run(&["ps", "-a"]).success();
        towline.run(&["rm", "-f", "c"]).success();
    }
}

#[test]
fn namespaces_have_containers_of_their_own_and_share_images() {
    if !images::available("commands::namespaces_have_containers_of_their_own_and_share_images") {
        return;
    }
    let (towline, image) = store();
    let in_team = |args: &[&str]| towline.run(&[&["-n", "team"], args].concat());
    towline.run(&["run", "-d", "--name", "c", &image, "sleep", "1000"]).success();
    let id = in_team(&["run", "-d", "--name", "c", &image, "sleep", "1000"]).success().stdout.trim().to_owned();
    let taken = in_team(&["run", "-d", "--name", "c", &image, "true"]);
    assert!(taken.code() == Some(125) && taken.stderr.contains("another container has that name"), "{}", taken.stderr);
    in_team(&["exec", "c", "sh", "-c", "echo team > /mine"]).success();
    assert_ne!(towline.run(&["exec", "c", "test", "-e", "/mine"]).code(), Some(0));
    assert_eq!(in_team(&["ps", "-q", "--no-trunc"]).success().stdout.trim(), id);
    assert_eq!((towline.containers().len(), towline.row("c")["namespace"].as_str()), (1, Some("default")));
    let refused = towline.run(&["stop", &id]);
    assert!(refused.code() == Some(125) && refused.stderr.contains("no container of that name or id"), "{}", refused.stderr);
    assert_eq!(towline.run(&["-n", "a/b", "ps"]).code(), Some(125));
    let usage = towline.run(&["system", "df", "--namespaces", "--format", "json"]).success().stdout;
    let usage: Value = serde_json::from_str(&usage).unwrap();
    for (row, name) in usage.as_array().unwrap().iter().zip(["default", "team"]) {
        assert_eq!((&row["namespace"], row["containers"].as_u64(), row["images"].as_u64()), (&name.into(), Some(1), Some(1)));
    }
    in_team(&["rm", "-f", "c"]).success();
    assert_eq!(in_team(&["ps", "-aq"]).success().stdout, "");
    assert_eq!(towline.row("c")["status"], "running");
    towline.run(&["rm", "-f", "c"]).success();
}
