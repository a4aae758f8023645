//! Two containers of two images on one slow line: the one that reads much does not keep the other waiting.

use std::fs;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;

/// Files that the greedy one reads, all at once: what the line takes twelve seconds for.
const FILES: usize = 40;

#[test]
fn a_file_does_not_wait_for_the_queue_of_another_container() {
    if !images::available("fair::a_file_does_not_wait_for_the_queue_of_another_container") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::new(200, 1));
    let greedy = format!(
        "echo ready; wait_for greed; for i in $(seq {FILES}); do (cat /data/dir/$i > /dev/null && : > /sync/got-$i) & done; wait; echo all"
    );
    // Builtins alone, and what was used before: it waits for this one file and nothing else.
    let modest = "wait_for() { while [ ! -e /sync/$1 ]; do sleep 0.05; done; }
        sleep 0; set -- /sync/none-*; echo ready; wait_for go
        set -- /sync/got-*; before=$#; read -r line < /etc/debian_version && echo \"read $line\"
        set -- /sync/got-*; echo \"others $(($# - before)) of $((40 - before))\"; wait_for end";
    let modest = rig.start("modest", "python:zstd", &["/bin/sh", "-c", modest]);
    modest.wait_for("ready");
    let greedy = rig.script("greedy", "zstd", &greedy);
    greedy.wait_for("ready");
    rig.link.set_quality(Quality::new(8, 5));
    greedy.go("greed");
    let sync = rig.towline.dir().join("sync");
    let got = || fs::read_dir(&sync).unwrap().filter(|entry| is_got(entry.as_ref().unwrap())).count();
    wait_until("the first files of the greedy container", PATIENCE, || got() > 0);
    modest.go("go");
    let output = modest.wait_for("others");
    assert!(output.contains("read "), "{output}");
    let counts = output.rsplit_once("others ").unwrap().1.trim();
    let (meanwhile, queued) = counts.split_once(" of ").unwrap();
    let (meanwhile, queued): (usize, usize) = (meanwhile.parse().unwrap(), queued.parse().unwrap());
    assert!(meanwhile <= queued / 2, "{meanwhile} of {queued} files of the other container came first");
    greedy.wait_for("all");
    assert_eq!(got(), FILES);
    modest.go("end");
}

fn is_got(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("got-")
}
