//! Containers on one slow line: one that reads much keeps neither one of another image waiting nor another of its own.

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
    // Builtins alone, and what was used before: it waits for this one file and nothing else, and ends if that cannot be opened.
    let modest = |file: &str| {
        format!(
            "wait_for() {{ while [ ! -e /sync/$1 ]; do sleep 0.05; done; }}
            sleep 0; set -- /sync/none-*; echo ready; wait_for go
            set -- /sync/got-*; before=$#; exec 3< {file}
            set -- /sync/got-*; echo \"others $(($# - before)) of $(({FILES} - before))\"; wait_for end"
        )
    };
    let other_image = rig.start("other", "python:zstd", &["/bin/sh", "-c", &modest("/etc/debian_version")]);
    let same_image = rig.start("same", "small:zstd", &["/bin/sh", "-c", &modest("/data/many/7")]);
    other_image.wait_for("ready");
    same_image.wait_for("ready");
    let greedy = rig.script("greedy", "zstd", &greedy);
    greedy.wait_for("ready");
    let mut modest = vec![&other_image];
    if group_of(&rig, "same") == group_of(&rig, "greedy") {
        println!("containers have no control groups of their own here: those of one image share an account");
    } else {
        modest.push(&same_image);
    }
    rig.link.set_quality(Quality::new(8, 5));
    greedy.go("greed");
    let sync = rig.towline.dir().join("sync");
    let got = || fs::read_dir(&sync).unwrap().filter(|entry| is_got(entry.as_ref().unwrap())).count();
    wait_until("the first files of the greedy container", PATIENCE, || got() > 0);
    other_image.go("go");
    for container in modest {
        let output = container.wait_for("others");
        let counts = output.rsplit_once("others ").unwrap().1.trim();
        let (meanwhile, queued) = counts.split_once(" of ").unwrap();
        let (meanwhile, queued): (usize, usize) = (meanwhile.parse().unwrap(), queued.parse().unwrap());
        assert!(meanwhile <= queued / 2, "{}: {meanwhile} of {queued} files of the greedy one came first", container.name);
    }
    greedy.wait_for("all");
    assert_eq!(got(), FILES);
    other_image.go("end");
}

fn is_got(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("got-")
}

/// The control groups of a running container.
fn group_of(rig: &Rig, name: &str) -> String {
    let all = rig.towline.containers();
    let container = all.iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no {name} in {all:?}"));
    fs::read_to_string(format!("/proc/{}/cgroup", container["pid"])).unwrap()
}
