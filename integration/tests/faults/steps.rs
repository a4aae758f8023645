//! A kill before each system call of create, start, exec, run and delete.

use std::fs;
use std::path::Path;

use nix::unistd::Pid;
use serde_json::json;
use towline_integration::bundle::{Container, Subject, root_or_skip};

use crate::inventory::{CACHE, Inventory, private_host};
use crate::tracer::{Traced, Victim, run};

/// How many steps of one command are tried unless `TOWLINE_FAULTS` says otherwise.
const SAMPLES: usize = 12;

/// One command and what has to be there before it.
struct Sweep {
    name: &'static str,
    victim: fn(&Container) -> Victim,
    prepare: fn(&Container),
    verb: &'static str,
    options: fn(&Container) -> Vec<String>,
    args: &'static [&'static str],
    /// What must hold after the kill and before the deletion; says what does not.
    check: fn(&Container, &Traced) -> Result<(), String>,
}

/// Whether these tests can run here; says so if not.
pub fn can_run(test: &str) -> bool {
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {test}: the steps are those of towline-oci");
        return false;
    }
    root_or_skip(test)
}

/// A container that goes on until it is killed.
pub fn container() -> Container {
    let container = Container::new().script("echo up; sleep 1000; true");
    let mark = format!("MARK={}", container.dir().display());
    let container = container.with(|c| c["process"]["env"] = json!(["PATH=/bin", mark]));
    container.write_config();
    container
}

/// Kills at one step after the other and asserts that nothing is left each time.
fn sweep(container: &Container, sweep: &Sweep) {
    container.write_config();
    let before = Inventory::take(container);
    let total = one(container, sweep, usize::MAX, &before).expect("undisturbed").counted;
    assert!(total > 10, "{}: only {total} system calls were seen", sweep.name);
    let step = match std::env::var("TOWLINE_FAULTS").as_deref() {
        Ok("all") => 1,
        Ok(every) => every.parse().expect("TOWLINE_FAULTS is all, or the n of every n-th step"),
        Err(_) => (total / SAMPLES).max(1),
    };
    let (mut kills, mut failures) = (0, Vec::new());
    for number in (1..=total).step_by(step) {
        match one(container, sweep, number, &before) {
            Ok(traced) => kills += usize::from(traced.killed_at.is_some()),
            Err(why) => failures.push(why),
        }
        // What is left now would be taken for what the next kill leaves.
        assert!(failures.len() < 5, "{}: {}", sweep.name, failures.join("\n"));
    }
    println!("{}: {kills} kills in {total} system calls", sweep.name);
    assert!(failures.is_empty(), "{}: {}", sweep.name, failures.join("\n"));
}

fn one(container: &Container, sweep: &Sweep, number: usize, before: &Inventory) -> Result<Traced, String> {
    (sweep.prepare)(container);
    let mut args = vec![sweep.verb.to_owned()];
    args.extend((sweep.options)(container));
    args.push(container.id().to_owned());
    args.extend(sweep.args.iter().map(|arg| (*arg).to_owned()));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let traced = run(&container.command(&args), container.dir(), (sweep.victim)(container), number);
    let checked = if traced.hung.is_some() { Err("it hung".to_owned()) } else { (sweep.check)(container, &traced) };
    let deleted = container.delete_force();
    let changes = before.changes(container);
    // Whatever was found, the next round starts with nothing.
    container.delete_force();
    fs::remove_file(container.pid_file()).ok();
    let context = || format!("killed before call {number} of {} ({:?}): {traced:?}", sweep.name, traced.killed_at);
    checked.map_err(|why| format!("{why}\n  {}", context()))?;
    if deleted.code != Some(0) {
        return Err(format!("{deleted:?}\n  {}", context()));
    }
    if changes.is_empty() { Ok(traced) } else { Err(format!("{}\n  {}", changes.join("\n  "), context())) }
}

fn create_options(container: &Container) -> Vec<String> {
    [
        "--bundle".to_owned(),
        container.bundle().display().to_string(),
        "--pid-file".into(),
        container.pid_file().display().to_string(),
    ]
    .into()
}

fn run_options(container: &Container) -> Vec<String> {
    ["--bundle".to_owned(), container.bundle().display().to_string()].into()
}

fn nothing(_: &Container) -> Vec<String> {
    Vec::new()
}

/// What `state` says must be true: a container that counts as created can be started, one that counts as running runs.
fn state_is_true(container: &Container, _: &Traced) -> Result<(), String> {
    match container.status().as_str() {
        "none" | "creating" | "stopped" => Ok(()),
        "created" => {
            let done = container.start();
            // Init was about to notice that its runtime is gone.
            let ended = done.code != Some(0) && container.status() == "stopped";
            let ok = done.code == Some(0) || ended;
            if ok { Ok(()) } else { Err(format!("it counts as created and cannot be started: {done:?}")) }
        }
        "running" => wait_for_output(container),
        other => Err(format!("a state of {other}")),
    }
}

/// Waits until the program has begun.
pub fn wait_for_output(container: &Container) -> Result<(), String> {
    let files = [container.dir().join("0.out"), container.dir().join("traced.out")];
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if files.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("up"))) {
            return Ok(());
        }
        if std::time::Instant::now() >= end {
            return Err("it counts as running and its program has done nothing".to_owned());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A runtime whose child was killed must notice and say so.
fn says_so(_: &Container, traced: &Traced) -> Result<(), String> {
    let silent = traced.code != Some(0) && traced.stderr.trim().is_empty();
    match traced.code {
        _ if traced.killed_at.is_none() => Ok(()),
        None => Err("the runtime was killed too".to_owned()),
        // 137 is the program's own end.
        Some(code) if silent && code != 137 => Err("it failed without a word".to_owned()),
        Some(_) => Ok(()),
    }
}

fn still_runs(container: &Container, _: &Traced) -> Result<(), String> {
    match container.status().as_str() {
        "running" => Ok(()),
        other => Err(format!("the container is {other} after a killed exec")),
    }
}

fn created(container: &Container) {
    container.create().success();
}

/// So that each time the filter is compiled and kept.
fn without_cache(_: &Container) {
    match fs::remove_dir_all(Path::new("/run").join(CACHE)) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

fn running(container: &Container) {
    container.up();
    wait_for_output(container).expect("a running program");
}

#[test]
fn create_is_killed() {
    if !can_run("create_is_killed") {
        return;
    }
    private_host();
    let container = container();
    let base = Sweep {
        name: "create, the runtime",
        victim: |_| Victim::Runtime,
        prepare: |_| {},
        verb: "create",
        options: create_options,
        args: &[],
        check: state_is_true,
    };
    sweep(&container, &base);
    sweep(&container, &Sweep { name: "create, runtime and init", victim: |_| Victim::Family, ..base });
    let undone = |container: &Container, traced: &Traced| {
        says_so(container, traced)?;
        // A failed create undoes everything by itself.
        match container.status().as_str() {
            "none" | "stopped" => Ok(()),
            "created" if traced.killed_at.is_none() => Ok(()),
            other => Err(format!("the container is {other}")),
        }
    };
    sweep(&container, &Sweep { name: "create, init", victim: |_| Victim::Child, check: undone, ..base });
}

#[test]
fn create_with_everything_is_killed() {
    if !can_run("create_with_everything_is_killed") {
        return;
    }
    private_host();
    let container = container().with(|c| {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
        let namespaces = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.extend(["user", "cgroup", "time"].map(|kind| json!({ "type": kind })));
        let hook = json!([{ "path": "/bin/true" }]);
        c["hooks"] = json!({ "createRuntime": hook, "createContainer": hook, "poststop": hook });
        let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]);
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule });
        c["linux"]["resources"] = json!({ "pids": { "limit": 50 } });
    });
    let base = Sweep {
        name: "create with user namespace and hooks, the runtime",
        victim: |_| Victim::Runtime,
        prepare: without_cache,
        verb: "create",
        options: create_options,
        args: &[],
        check: |_, _| Ok(()),
    };
    sweep(&container, &base);
    sweep(
        &container,
        &Sweep { name: "create with user namespace and hooks, a child", victim: |_| Victim::Child, check: says_so, ..base },
    );
}

#[test]
fn start_is_killed() {
    if !can_run("start_is_killed") {
        return;
    }
    private_host();
    let container = container();
    let base = Sweep {
        name: "start, the runtime",
        victim: |_| Victim::Runtime,
        prepare: created,
        verb: "start",
        options: nothing,
        args: &[],
        check: state_is_true,
    };
    sweep(&container, &base);
    let init = |container: &Container| Victim::Other(Pid::from_raw(container.pid()));
    sweep(&container, &Sweep { name: "start, init", victim: init, check: says_so, ..base });
}

#[test]
fn exec_is_killed() {
    if !can_run("exec_is_killed") {
        return;
    }
    private_host();
    let container = container();
    let base = Sweep {
        name: "exec, the runtime",
        victim: |_| Victim::Runtime,
        prepare: running,
        verb: "exec",
        options: |_| vec!["--env".to_owned(), "A=b".to_owned()],
        args: &["/bin/true"],
        check: still_runs,
    };
    sweep(&container, &base);
    sweep(&container, &Sweep { name: "exec, runtime and process", victim: |_| Victim::Family, ..base });
    let both = |container: &Container, traced: &Traced| says_so(container, traced).and_then(|()| still_runs(container, traced));
    sweep(&container, &Sweep { name: "exec, the process", victim: |_| Victim::Child, check: both, ..base });
    let init = |container: &Container| Victim::Other(Pid::from_raw(container.pid()));
    sweep(&container, &Sweep { name: "exec, the container's init", victim: init, check: says_so, ..base });
}

#[test]
fn run_is_killed() {
    if !can_run("run_is_killed") {
        return;
    }
    private_host();
    let container = container().script("echo up");
    let base = Sweep {
        name: "run, the runtime",
        victim: |_| Victim::Runtime,
        prepare: |_| {},
        verb: "run",
        options: run_options,
        args: &[],
        check: |_, _| Ok(()),
    };
    sweep(&container, &base);
    sweep(&container, &Sweep { name: "run, runtime and init", victim: |_| Victim::Family, ..base });
    sweep(&container, &Sweep { name: "run, init", victim: |_| Victim::Child, check: says_so, ..base });
}

#[test]
fn delete_is_killed() {
    if !can_run("delete_is_killed") {
        return;
    }
    private_host();
    let container = container();
    let base = Sweep {
        name: "delete --force of what runs",
        victim: |_| Victim::Runtime,
        prepare: running,
        verb: "delete",
        options: |_| vec!["--force".to_owned()],
        args: &[],
        check: |_, _| Ok(()),
    };
    sweep(&container, &base);
    let stopped = |container: &Container| {
        running(container);
        container.kill("KILL").success();
        container.wait_status("stopped");
    };
    sweep(&container, &Sweep { name: "delete of what stopped", prepare: stopped, options: nothing, ..base });
}
