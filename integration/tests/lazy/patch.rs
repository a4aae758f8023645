//! `towline patch`: a file of another image in a running container.

use std::fs;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::{Rig, after};

#[test]
fn the_next_open_gets_the_new_version_and_it_can_be_taken_back() {
    if !images::available("patch::the_next_open_gets_the_new_version_and_it_can_be_taken_back") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let script = "exec 3</etc/passwd; echo ready; wait_for go; echo held; cat <&3; echo end; wait_for end";
    let container = rig.script("patched", "zstd", script);
    container.wait_for("ready");
    let (towline, from) = (&rig.towline, rig.image("python:zstd"));
    let passwd = || towline.run(&["exec", "patched", "cat", "/etc/passwd"]).success().stdout;
    let own = passwd();
    let patch = |args: &[&str]| towline.run(&[&["patch", "patched"], args].concat());

    // One path that is wrong, and nothing is done.
    let refused = patch(&["/etc/passwd", "/etc/nothing", "--from", &from]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("has no such file"), "{}", refused.stderr);
    assert_eq!(passwd(), own);

    patch(&["/etc/passwd", "--from", &from]).success();
    let patched = passwd();
    assert!(patched != own && patched.contains("_apt"), "{patched}");
    container.go("go");
    let output = container.wait_for("end");
    assert!(after(&output, "held").starts_with(&own), "what was open has changed: {output}");
    assert!(patch(&["--list"]).success().stdout.contains("/etc/passwd"));
    towline.kill_daemon();
    assert_eq!(passwd(), patched, "the daemon is needed for a patch");
    // Once more is no change of the container's own.
    patch(&["/etc/passwd", "--from", &from]).success();

    towline.run(&["exec", "patched", "sh", "-c", "echo own >> /etc/passwd"]).success();
    for args in [&["/etc/passwd", "--from", &from][..], &["--revert"]] {
        let refused = patch(args);
        assert!(refused.code() != Some(0) && refused.stderr.contains("--force"), "{}", refused.stderr);
    }
    patch(&["--revert", "--force"]).success();
    assert_eq!(passwd(), own);
    assert_eq!(patch(&["--list"]).success().stdout.lines().count(), 1);
    assert!(towline.run(&["images", "mount"]).success().stdout.lines().count() == 1, "an image is still mounted");
    container.go("end");
}

#[test]
fn a_patch_that_is_killed_leaves_nothing_mounted() {
    if !images::available("patch::a_patch_that_is_killed_leaves_nothing_mounted") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let container = rig.script("patched", "zstd", "echo ready; wait_for end");
    container.wait_for("ready");
    let (towline, from) = (&rig.towline, rig.image("python:zstd"));
    towline.run(&["images", "pull", "--lazy", &from]).success();
    // Now it waits for the file's content, with the image mounted.
    rig.link.cut();
    let patch = towline.start(&["patch", "patched", "/etc/passwd", "--from", &from]);
    let prefix = towline.state().join("patch-").display().to_string();
    let is_mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&prefix);
    wait_until("the image to be mounted", PATIENCE, is_mounted);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(patch.pid()), nix::sys::signal::Signal::SIGKILL).unwrap();
    patch.wait(PATIENCE);
    assert!(is_mounted());
    let listed = towline.run(&["images", "mount"]).success().stdout;
    assert!(listed.lines().count() == 1 && !is_mounted(), "{listed}");
    let left: Vec<_> = fs::read_dir(towline.state()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    let of_command = |name: &std::ffi::OsString| ["patch-", "command-"].iter().any(|it| name.to_string_lossy().starts_with(it));
    assert!(!left.iter().any(of_command), "{left:?}");
    // Nothing holds it any more.
    towline.run(&["images", "rm", &from]).success();
    container.go("end");
}
