//! Our shim: what goes beyond what `ctr` does with any (that is in `tasks.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towline_integration::process::{Job, run, wait_until};

use super::rig::{Containerd, PATIENCE, Shim, text};

fn id(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// The topics of a container's events, in order.
fn topics(seen: &str, id: &str) -> Vec<String> {
    let of = |line: &&str| line.contains(&format!("\"{id}\""));
    let topic = |line: &str| line.split_whitespace().find(|word| word.starts_with("/tasks/")).map(str::to_owned);
    seen.lines().filter(of).filter_map(topic).collect()
}

/// A subscription to containerd's events that is known to be there.
fn subscribe(containerd: &Containerd) -> Job {
    let events = Job::start(containerd.command(&["events"]));
    wait_until("the first event", PATIENCE, || {
        containerd.ok(&["namespaces", "create", "probe"]);
        containerd.ok(&["namespaces", "rm", "probe"]);
        events.stdout().contains("probe")
    });
    events
}

/// Half of them as containers, half as further processes of one, three at a time.
#[test]
fn a_hundred_programs_that_print_and_exit_lose_nothing() {
    let Some(containerd) = Containerd::new("a_hundred_programs_that_print_and_exit_lose_nothing", Shim::Towline) else { return };
    let events = subscribe(&containerd);
    let host = id("host");
    containerd.run(&["--detach"], &host, &["sleep", "1000"]).success();
    let text = "x".repeat(3000);
    for round in 0..17 {
        let names: Vec<String> = (0..3).map(|lane| format!("{}-{round}-{lane}", id("fast"))).collect();
        let jobs: Vec<Job> = names
            .iter()
            .flat_map(|name| {
                let line = containerd.run_line(&["--rm"], name, &["echo", &text]);
                let run = Job::start(containerd.command(&line.iter().map(String::as_str).collect::<Vec<_>>()));
                let exec = ["task", "exec", "--exec-id", name, &host, "echo", &text];
                [run, Job::start(containerd.command(&exec))]
            })
            .collect();
        for job in jobs {
            let done = job.wait(PATIENCE).success();
            assert!(done.stdout.trim_end() == text, "{}: {} bytes", done.what, done.stdout.len());
        }
        for name in &names {
            wait_until("the last events", PATIENCE, || {
                let topics = topics(&events.stdout(), name);
                let count = |wanted: &str| topics.iter().filter(|topic| *topic == wanted).count();
                (count("/tasks/delete"), count("/tasks/exit")) == (1, 2)
            });
            let seen = events.stdout();
            let of_exec: Vec<String> =
                topics(&seen, name).into_iter().filter(|topic| topic.starts_with("/tasks/exec-")).collect();
            let of_run: Vec<String> =
                topics(&seen, name).into_iter().filter(|topic| !topic.starts_with("/tasks/exec-")).collect();
            assert_eq!(of_exec, ["/tasks/exec-added", "/tasks/exec-started"], "{seen}");
            let of_run: Vec<String> = of_run.into_iter().filter(|topic| topic != "/tasks/exit").collect();
            assert_eq!(of_run, ["/tasks/create", "/tasks/start", "/tasks/delete"], "{seen}");
        }
    }
    assert_order(&events.stdout());
    containerd.ok(&["task", "rm", "--force", &host]);
    containerd.ok(&["container", "rm", &host]);
    containerd.assert_gone(&host);
}

/// Of each process the end comes after its start, and of each container everything between creation and deletion.
fn assert_order(seen: &str) {
    let mut last: BTreeMap<(String, u64), &str> = BTreeMap::new();
    for line in seen.lines().filter(|line| line.contains(" /tasks/")) {
        let (head, json) = line.split_once(" {").unwrap_or_else(|| panic!("{line}"));
        let event: serde_json::Value =
            serde_json::from_str(&format!("{{{json}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        let Some(pid) = event["pid"].as_u64() else { continue };
        let topic = head.rsplit(' ').next().unwrap_or_default();
        let key = (event["container_id"].as_str().unwrap_or_default().to_owned(), pid);
        let wanted: &[Option<&str>] = match topic {
            "/tasks/create" | "/tasks/exec-started" => &[None],
            "/tasks/start" => &[Some("/tasks/create")],
            "/tasks/exit" => &[Some("/tasks/start"), Some("/tasks/exec-started")],
            "/tasks/delete" => &[Some("/tasks/exit")],
            other => panic!("{other}: {line}"),
        };
        let before = last.insert(key.clone(), topic);
        assert!(wanted.contains(&before), "{topic} of {key:?} after {before:?}");
    }
    assert!(last.len() > 100, "{}", last.len());
}

#[test]
fn tasks_outlive_containerd_and_are_found_again() {
    let Some(mut containerd) = Containerd::new("tasks_outlive_containerd_and_are_found_again", Shim::Towline) else { return };
    let (kept, ended) = (id("kept"), id("ended"));
    containerd.run(&["--detach"], &kept, &["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"]).success();
    containerd.run(&["--detach"], &ended, &["sleep", "1000"]).success();
    let shims = [&kept, &ended].map(|id| containerd.shim_pid(id).expect("a shim"));
    containerd.restart();
    assert_eq!([&kept, &ended].map(|id| containerd.shim_pid(id)), shims.map(Some));
    assert_eq!(containerd.status(&kept), "RUNNING");
    let done = containerd.ctr(&["task", "exec", "--exec-id", "e", &kept, "sh", "-c", "echo here; exit 6"]);
    assert_eq!((done.code(), done.stdout.as_str()), (Some(6), "here\n"), "{done:?}");
    // The new containerd is told of ends, too.
    let events = subscribe(&containerd);
    containerd.ok(&["task", "kill", "--signal", "15", &kept]);
    containerd.wait_status(&kept, "STOPPED");
    wait_until("the end of the task", PATIENCE, || events.stdout().contains("\"exit_status\":5"));
    containerd.ok(&["task", "kill", "--signal", "9", &ended]);
    containerd.wait_status(&ended, "STOPPED");
    for id in [kept, ended] {
        containerd.ctr(&["task", "rm", &id]);
        containerd.ok(&["container", "rm", &id]);
        containerd.assert_gone(&id);
    }
}

#[test]
fn one_shim_serves_a_pod() {
    let Some(containerd) = Containerd::new("one_shim_serves_a_pod", Shim::Towline) else { return };
    let pod = id("pod");
    let names: Vec<String> = (0..3).map(|number| format!("{pod}-{number}")).collect();
    let group = format!("io.kubernetes.cri.sandbox-id={}", names[0]);
    for name in &names {
        containerd.run(&["--detach", "--annotation", &group], name, &["sleep", "1000"]).success();
    }
    let shim = containerd.shim_pid(&names[0]).expect("the shim of the pod");
    let bundles = text(&containerd.path("state/io.containerd.runtime.v2.task/default"));
    let addresses: Vec<String> =
        names.iter().map(|name| fs::read_to_string(format!("{bundles}/{name}/address")).unwrap()).collect();
    assert!(addresses.iter().all(|address| *address == addresses[0]), "{addresses:?}");
    // A container that goes takes nobody along; the first one neither.
    for (gone, left) in [(0, vec![1, 2]), (2, vec![1])] {
        containerd.ok(&["task", "rm", "--force", &names[gone]]);
        containerd.ok(&["container", "rm", &names[gone]]);
        containerd.assert_gone_from_pod(&names[gone]);
        for number in left {
            assert_eq!(containerd.status(&names[number]), "RUNNING");
        }
    }
    let rss = resident(shim);
    assert!(rss <= 8 << 10, "the shim has {rss} KiB");
    // With the shim everything of the pod goes.
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("kill the shim");
    containerd.wait_status(&names[1], "");
    containerd.ok(&["container", "rm", &names[1]]);
    containerd.assert_gone(&names[1]);
    let socket = addresses[0].trim_start_matches("unix://");
    assert!(!Path::new(socket).exists(), "{socket}");
}

/// Resident memory in KiB.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the status of the shim");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_process_has_a_terminal_where_it_is_asked_for() {
    let Some(containerd) = Containerd::new("a_process_has_a_terminal_where_it_is_asked_for", Shim::Towline) else { return };
    let id = id("tty");
    let line = containerd.run_line(&["--rm", "--tty"], &id, &["sh", "-c", "test -t 0 && test -t 1 && echo a terminal; exit 4"]);
    let program: Vec<String> =
        ["ctr".to_owned(), "--address".into(), text(&containerd.path("socket"))].into_iter().chain(line).collect();
    let quoted: Vec<String> = program.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &quoted.join(" "), "/dev/null"]);
    let done = run(script, PATIENCE);
    assert!(done.code() == Some(4) && done.stdout.contains("a terminal"), "{done:?}");
    containerd.assert_gone(&id);
}

/// The root file system is a mount of containerd's snapshotter, which the shim makes.
#[test]
fn an_image_is_mounted_and_unmounted_whoever_ends_it() {
    let Some(containerd) = Containerd::new("an_image_is_mounted_and_unmounted_whoever_ends_it", Shim::Towline) else { return };
    let image = containerd.image();
    let run = |options: &[&str], id: &str, program: &[&str]| {
        let line = containerd.image_line(options, image, id, program);
        containerd.ctr(&line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let short = id("image");
    for round in 0..5 {
        let done = run(&["--rm"], &short, &["sh", "-c", "echo x > /data/x; cat /data/x; exit 7"]);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(7), "x\n"), "{round}: {done:?}");
        containerd.assert_gone(&short);
    }
    // The shim is killed; a program that cannot be run; a container that is killed.
    let long = id("mounted");
    run(&["--detach"], &long, &["sleep", "1000"]).success();
    kill(Pid::from_raw(containerd.shim_pid(&long).expect("a shim")), Signal::SIGKILL).expect("kill the shim");
    containerd.wait_status(&long, "");
    containerd.ok(&["container", "rm", &long]);
    containerd.assert_gone(&long);
    let done = run(&["--rm"], &short, &["/no/such"]);
    assert!(done.code() == Some(1) && done.stderr.contains("no such file or directory"), "{done:?}");
    containerd.assert_gone(&short);
    run(&["--detach"], &long, &["sleep", "1000"]).success();
    assert_eq!(containerd.ctr(&["task", "rm", "--force", &long]).code(), Some(0));
    // The snapshot is as it was: the same container is started again.
    containerd.ok(&["task", "start", "--detach", "--null-io", &long]);
    assert_eq!(containerd.status(&long), "RUNNING");
    containerd.ctr(&["task", "rm", "--force", &long]);
    containerd.ok(&["container", "rm", &long]);
    containerd.assert_gone(&long);
}
