//! Containers whose init, state or disk went away, and commands that get in each other's way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use towline_integration::bundle::{Container, Done};

use crate::inventory::{Inventory, private_host};
use crate::steps::{can_run, container, wait_for_output};

/// Removes the container by force and says what is left.
fn remains(container: &Container, before: &Inventory) -> Vec<String> {
    let deleted = container.delete_force();
    let mut left = before.changes(container);
    if deleted.code != Some(0) {
        left.push(format!("{deleted:?}"));
    }
    left
}

fn state_file(container: &Container, name: &str) -> std::path::PathBuf {
    container.state_dir().join(container.id()).join(name)
}

#[test]
fn init_is_killed_from_outside() {
    if !can_run("init_is_killed_from_outside") {
        return;
    }
    private_host();
    let container = container();
    let before = Inventory::take(&container);
    for started in [false, true] {
        container.create().success();
        if started {
            container.start().success();
            wait_for_output(&container).expect("a running program");
        }
        kill(Pid::from_raw(container.pid()), Signal::SIGKILL).expect("kill init");
        container.wait_status("stopped");
        assert_eq!(container.state().expect("a state")["pid"], 0);
        for done in [container.start(), container.kill("TERM"), container.exec(&[], &["/bin/true"])] {
            let done = done.failure();
            assert!(done.stderr.contains("stopped") || done.stderr.contains("not running"), "started: {started}: {done:?}");
        }
        container.delete().success();
        assert_eq!(before.changes(&container), Vec::<String>::new(), "started: {started}");
    }
}

type Damage = fn(&Container);

/// What can happen to the files of a container, and what the error must name.
const DAMAGES: &[(&str, Damage)] = &[
    ("the record is empty", |c| fs::write(state_file(c, "state.json"), "").expect("write")),
    ("the record is cut short", |c| {
        let text = fs::read(state_file(c, "state.json")).expect("read");
        fs::write(state_file(c, "state.json"), &text[..text.len() / 2]).expect("write");
    }),
    ("the record is garbage", |c| fs::write(state_file(c, "state.json"), [0xff, 0, 0xfe, b'{']).expect("write")),
    ("the record is other JSON", |c| fs::write(state_file(c, "state.json"), "[1,2]").expect("write")),
    ("a newer version wrote the record", |c| {
        let text = fs::read(state_file(c, "state.json")).expect("read");
        let mut record: Value = serde_json::from_slice(&text).expect("JSON");
        record["version"] = json!(99);
        record["cgroup"] = json!("somewhere");
        fs::write(state_file(c, "state.json"), record.to_string()).expect("write");
    }),
    ("record and configuration are garbage", |c| {
        fs::write(state_file(c, "state.json"), "garbage").expect("write");
        fs::write(state_file(c, "config.json"), "garbage").expect("write");
    }),
    ("the record is a link to somebody's file", |c| {
        fs::remove_file(state_file(c, "state.json")).expect("remove");
        symlink("/etc/passwd", state_file(c, "state.json")).expect("link");
    }),
];

#[test]
fn a_damaged_state_is_named_and_deleted_by_force() {
    if !can_run("a_damaged_state_is_named_and_deleted_by_force") {
        return;
    }
    private_host();
    let container = container();
    let before = Inventory::take(&container);
    let mut failures = Vec::new();
    for (name, damage) in DAMAGES {
        container.up();
        wait_for_output(&container).expect("a running program");
        damage(&container);
        let others: [Done; 5] = [
            container.runtime(&["state", container.id()]),
            container.kill("TERM"),
            container.start(),
            container.exec(&[], &["/bin/true"]),
            container.delete(),
        ];
        for done in others {
            if done.code == Some(0) || !done.stderr.contains(container.id()) {
                failures.push(format!("{name}: {done:?}"));
            }
        }
        // One damaged container must not hide the others.
        container.runtime(&["list"]).success();
        failures.extend(remains(&container, &before).into_iter().map(|left| format!("{name}: {left}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_missing_part_of_the_state_is_no_obstacle() {
    if !can_run("a_missing_part_of_the_state_is_no_obstacle") {
        return;
    }
    private_host();
    let container = container();
    let before = Inventory::take(&container);
    for name in ["config.json", "start.sock", "state.json"] {
        container.create().success();
        fs::remove_file(state_file(&container, name)).expect("remove");
        if name == "start.sock" {
            assert!(container.start().failure().stderr.contains("already running"));
        }
        if name == "state.json" {
            // It looks like a create that was interrupted; init notices nothing, so it is the test that ends it.
            let pid: i32 = fs::read_to_string(container.pid_file()).expect("the pid file").trim().parse().expect("a pid");
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill init");
        }
        assert_eq!(remains(&container, &before), Vec::<String>::new(), "without {name}");
    }
}

#[test]
fn a_full_disk_fails_the_create_and_leaves_nothing() {
    if !can_run("a_full_disk_fails_the_create_and_leaves_nothing") {
        return;
    }
    private_host();
    let container = container();
    let (mut full, mut worked) = (0, 0);
    for option in ["size=4k", "size=8k", "size=12k", "size=1m", "nr_inodes=2", "nr_inodes=3", "nr_inodes=4", "nr_inodes=5"] {
        mount(Some("tmpfs"), &container.state_dir(), Some("tmpfs"), MsFlags::empty(), Some(option)).expect("mount a small disk");
        let before = Inventory::take(&container);
        let done = container.create();
        if done.code == Some(0) {
            worked += 1;
        } else {
            full += 1;
            let done = done.failure();
            assert!(done.stderr.contains("No space left on device"), "{option}: {done:?}");
            // A failed create has undone everything by itself.
            assert_eq!(before.changes(&container), Vec::<String>::new(), "{option}");
        }
        assert_eq!(remains(&container, &before), Vec::<String>::new(), "{option}");
        umount2(&container.state_dir(), MntFlags::empty()).expect("unmount the small disk");
    }
    assert!(full > 2 && worked > 0, "{full} too small, {worked} large enough");
}

#[test]
fn one_of_many_creates_of_an_id_wins() {
    if !can_run("one_of_many_creates_of_an_id_wins") {
        return;
    }
    private_host();
    let container = container();
    container.write_config();
    let before = Inventory::take(&container);
    let bundle = container.bundle().display().to_string();
    let args = ["create", "--bundle", &bundle, container.id()];
    let all: Vec<Done> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..30).map(|_| scope.spawn(|| container.runtime(&args))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(|done| done.code == Some(0));
    assert_eq!(won.len(), 1, "{lost:?}");
    assert!(lost.iter().all(|done| done.stderr.contains("already exists")), "{lost:?}");
    assert_eq!(container.status(), "created");
    container.start().success();
    assert_eq!(remains(&container, &before), Vec::<String>::new());
}

#[test]
fn one_of_many_starts_wins() {
    if !can_run("one_of_many_starts_wins") {
        return;
    }
    private_host();
    let container = container();
    let before = Inventory::take(&container);
    for _ in 0..3 {
        container.create().success();
        let all: Vec<Done> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..10).map(|_| scope.spawn(|| container.start())).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let lost: Vec<_> = all.iter().filter(|done| done.code != Some(0)).collect();
        assert_eq!(lost.len(), 9, "{all:?}");
        assert!(lost.iter().all(|done| done.stderr.contains("already running")), "{lost:?}");
        assert_eq!(container.status(), "running");
        assert_eq!(remains(&container, &before), Vec::<String>::new());
    }
}

#[test]
fn delete_races_with_everything() {
    if !can_run("delete_races_with_everything") {
        return;
    }
    private_host();
    let container = container();
    container.write_config();
    let before = Inventory::take(&container);
    let bundle = container.bundle().display().to_string();
    let id = container.id();
    let rivals: [&[&str]; 5] =
        [&["start", id], &["kill", id, "KILL"], &["exec", id, "/bin/true"], &["state", id], &["create", "--bundle", &bundle, id]];
    for round in 0..6 {
        container.create().success();
        if round % 2 == 1 {
            container.start().success();
        }
        std::thread::scope(|scope| {
            for rival in rivals {
                scope.spawn(|| container.runtime(rival));
            }
            // Each of them may lose, none may hang (the harness says so) or leave something.
            scope.spawn(|| container.delete_force());
        });
        assert_eq!(remains(&container, &before), Vec::<String>::new(), "round {round}");
    }
}
