//! Containers on machines whose kernel cannot mount an image's tree from a file, forced by `TOWLINE_MOUNTS`: a process serves the tree while
//! content is missing, and the next start has it in the kernel.

use std::fs;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::{Rig, after};
use crate::truth::Truth;

/// Sums of all regular files of the image.
const SUM_ALL: &str = "find / -xdev -type f -exec probe sum {} +";

/// Mounts of the sandbox, and of loop devices that show its files.
fn left(towline: &Towline) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = towline.dir().to_str().unwrap();
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let shown = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    mounts.lines().map(str::to_owned).chain(shown).filter(|line| line.contains(dir)).collect()
}

#[test]
fn a_served_container_reads_every_byte_and_the_next_one_needs_nobody() {
    if !images::available("tree::a_served_container_reads_every_byte_and_the_next_one_needs_nobody") {
        return;
    }
    let truth = Truth::of("small");
    let rig = Rig::new(Towline::new().with_env("TOWLINE_MOUNTS", "tree"), Quality::LOOPBACK);
    let towline = &rig.towline;
    let image = rig.image("small:zstd");
    let script = format!("echo new > /data/new; rm /data/dir/2; {SUM_ALL}; cat /data/new; ls /data/dir | grep -c '^2$'");
    let read = towline.run(&["run", "--rm", &image, "/bin/sh", "-c", &script]);
    assert_eq!(read.code(), Some(1), "only grep finds nothing: {}", read.stderr);
    let (right, failed) = truth.compare(&read.stdout);
    assert!(right >= truth.len() - 1 && failed.is_empty(), "{right} of {} files were read, not {failed:?}", truth.len());
    assert!(read.stdout.ends_with("new\n0\n"), "it can write: {}", read.stdout);
    let info = towline.run(&["info"]).success().stdout;
    assert!(info.contains("whole trees by FUSE, since") && info.contains("complete    EROFS through loop devices"), "{info}");

    towline.run(&["images", "pull", &image]).success();
    towline.wait_for_hand_off(PATIENCE);
    assert_eq!(left(towline), Vec::<String>::new());
    rig.link.cut();
    let script = format!("{SUM_ALL}; echo; cat /proc/mounts");
    let container = rig.script("next", "zstd", &format!("{script}; echo done; wait_for end"));
    let said = container.wait_for("done");
    let (right, failed) = truth.compare(&said);
    assert!(right >= truth.len() && failed.is_empty(), "{right} of {} files were read, not {failed:?}", truth.len());
    assert!(towline.daemons().is_empty() && towline.fuse_mounts().is_empty());
    assert!(!said.contains("fuse"), "{said}");
    assert!(left(towline).iter().any(|line| line.contains("tree.erofs")), "a loop device shows the tree");
    container.go("end");
    towline.run(&["rm", "-f", "next"]).success();
    wait_until("loop devices to be free again", PATIENCE, || left(towline).is_empty());
}

#[test]
fn a_killed_daemon_is_waited_for_and_what_is_local_needs_none() {
    if !images::available("tree::a_killed_daemon_is_waited_for_and_what_is_local_needs_none") {
        return;
    }
    let truth = Truth::of("small");
    let towline = Towline::new().with_env("TOWLINE_MOUNTS", "fuse").demand_only();
    let rig = Rig::new(towline, Quality::LOOPBACK);
    let script = "probe sum /data/dir/1 /data/changed; echo ready; wait_for killed; \
                  probe sum /data/dir/2 /data/large /data/many/5 /data/changed; echo again; wait_for gone; \
                  probe sum /data/dir/1 /data/large /data/many/6; echo done; wait_for end";
    let container = rig.resident_script("served", "zstd", script);
    container.wait_for("ready");
    rig.towline.wait_for_holder();
    rig.towline.kill_daemon();
    container.go("killed");
    let said = container.wait_for("again");
    let (right, failed) = truth.compare(after(&said, "ready"));
    assert_eq!((right, failed), (4, Vec::new()), "they came from the next daemon");

    // Nobody brings anything any more: what is local is right, anything else an error.
    rig.link.cut();
    rig.towline.kill_daemon_and_holder();
    container.go("gone");
    let said = container.wait_for("done");
    let (right, failed) = truth.compare(after(&said, "again"));
    assert_eq!(right, 2, "{said}");
    assert!(failed.len() == 1 && failed[0].contains("/data/many/6") && failed[0].contains("errno=EIO"), "{failed:?}");
    let log = || rig.towline.run(&["logs", "served"]).success().stderr;
    wait_until("the log to say so", PATIENCE, || log().contains("a program gets EIO: "));

    rig.towline.run(&["rm", "-f", "served"]).success();
    wait_until("the tree to be gone", PATIENCE, || !left(&rig.towline).iter().any(|line| line.contains("/containers/")));
}
