//! `towline patch`: a file of another image in a running container.

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

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
