//! Containers of one image have one tree, and with it one page cache for large files; nothing of it stays behind.

use std::path::Path;
use std::process::Command;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::{Rig, Stepped, after};
use crate::truth::Truth;

/// Bytes of the file that are in the page cache; `None` where that cannot be told here.
fn resident(file: &Path) -> Option<u64> {
    let asked = Command::new("fincore").args(["-nb", "-o", "RES"]).arg(file).output().ok()?;
    String::from_utf8_lossy(&asked.stdout).trim().parse().ok()
}

fn root(container: &Stepped<'_>) -> std::path::PathBuf {
    let containers = container.towline.containers();
    let found = containers.iter().find(|found| found["name"] == container.name.as_str()).expect("it runs");
    container.towline.state().join("containers").join(found["id"].as_str().expect("an id")).join("rootfs")
}

fn pull(rig: &Rig) {
    rig.towline.run(&["images", "pull", &rig.image("small:zstd")]).success();
    rig.towline.wait_for_hand_off(PATIENCE);
    // The first container that reads is not to be one whose start is recorded: that has a tree of its own.
    rig.towline.run(&["run", "--rm", &rig.image("small:zstd"), "/bin/true"]).success();
}

#[test]
fn what_one_container_has_read_another_has_in_memory() {
    if !images::available("shared::what_one_container_has_read_another_has_in_memory") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    pull(&rig);
    let one = rig.script("one", "zstd", "wait_for read; probe sum /data/large; echo done; wait_for one");
    let two = rig.script("two", "zstd", "echo ready; wait_for two; probe sum /data/large");
    two.wait_for("ready");
    assert_eq!(rig.towline.tree_mounts().len(), 1, "one tree for both");
    one.go("read");
    let output = one.wait_for("done");
    assert_eq!(Truth::of("small").compare(&output), (1, Vec::new()), "{output}");
    match resident(&root(&two).join("data/large")) {
        Some(bytes) => assert!(bytes >= 8 << 20, "{bytes} bytes of 8 MiB are in the page cache of who has not read it yet"),
        None => println!("SKIP what_one_container_has_read_another_has_in_memory: there is no fincore (util-linux)"),
    }
    one.go("one");
    wait_until("the first container to end", PATIENCE, || rig.towline.monitors().len() == 1);
    assert_eq!(rig.towline.tree_mounts().len(), 1, "the other one uses it");
    two.go("two");
    wait_until("the last monitor to leave no mount", PATIENCE, || {
        rig.towline.monitors().is_empty() && rig.towline.tree_mounts().is_empty()
    });
    let output = two.output();
    assert_eq!(Truth::of("small").compare(after(&output, "ready")), (1, Vec::new()), "{output}");
}

#[test]
fn monitors_that_are_killed_leave_nothing_after_the_next_command() {
    if !images::available("shared::monitors_that_are_killed_leave_nothing_after_the_next_command") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    pull(&rig);
    let one = rig.script("one", "zstd", "echo ready; wait_for never");
    let two = rig.script(
        "two",
        "zstd",
        "echo ready; wait_for read; probe sum /data/large > /sync/sum; echo > /sync/done; wait_for never",
    );
    one.wait_for("ready");
    two.wait_for("ready");
    rig.towline.kill(&rig.towline.monitors());
    assert_eq!(rig.towline.tree_mounts().len(), 1);
    rig.towline.run(&["rm", "-f", "one"]).success();
    assert!(rig.towline.tree_mounts().is_empty(), "{:?}", rig.towline.tree_mounts());
    // The other container goes on with what it has.
    two.go("read");
    wait_until("the other container to read", PATIENCE, || rig.towline.dir().join("sync/done").exists());
    let sum = std::fs::read_to_string(rig.towline.dir().join("sync/sum")).unwrap();
    assert_eq!(Truth::of("small").compare(&sum), (1, Vec::new()), "{sum}");
    rig.towline.run(&["rm", "-f", "two"]).success();
    assert!(rig.towline.containers().is_empty() && rig.towline.tree_mounts().is_empty());
}
