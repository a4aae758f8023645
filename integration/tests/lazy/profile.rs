//! Access profiles: one start is recorded, the next one on another machine fetches what it names before anybody asks.

use std::fs;

use serde_json::Value;
use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

use crate::rig::Rig;

/// What a program reads: 40 small files of the many, and nothing else.
const READ: &[&str] = &["/bin/sh", "-c", "cat /data/many/1?? > /dev/null; echo done"];

fn run<'a>(reference: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--rm"], flags, &[reference], READ].concat()
}

#[test]
fn what_one_start_reads_the_next_one_fetches_before_it_is_asked_for() {
    if !images::available("profile::what_one_start_reads_the_next_one_fetches_before_it_is_asked_for") {
        return;
    }
    let rig = Rig::quiet(Towline::new(), Quality::LOOPBACK);
    let (reference, file) = (rig.image("small:zstd"), rig.towline.dir().join("profile"));
    let record = format!("--record-profile={}", file.display());
    assert_eq!(rig.towline.run(&run(&reference, &[&record])).success().stdout, "done\n");

    let recorded: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let paths: Vec<&str> =
        recorded["accesses"].as_array().unwrap().iter().map(|access| access["path"].as_str().unwrap()).collect();
    let many = paths.iter().filter(|path| path.contains("data/many/1")).count();
    assert_eq!(many, 100, "{paths:?}");
    assert!(paths.contains(&"bin/busybox") && !paths.contains(&"data/large"), "{paths:?}");
    let shown = rig.towline.run(&["images", "profile", &reference]).success().stdout;
    assert!(shown.contains("/data/many/150") && shown.contains("1 starts"), "{shown}");

    // Another machine, to which the profile came as a file.
    let other = Rig::quiet(Towline::new(), Quality::PROMISE);
    let image = recorded["image"].as_str().unwrap();
    other.towline.run(&["images", "profile", "--import", file.to_str().unwrap(), image]).success();
    let reference = other.image("small:zstd");
    let done = other.towline.run(&run(&reference, &["--timeline", "--progress", "plain"])).success();
    assert!(done.stdout.contains("done"), "{}", done.stdout);
    let first = done.stderr.lines().find(|line| line.contains("by the profile")).unwrap_or_else(|| panic!("{}", done.stderr));
    assert!(!first.contains(": 0 B by the profile"), "{first}");
    let again = other.towline.run(&["images", "profile", "--export", "-", &reference]).success().stdout;
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap()["starts"], 1, "a known start was recorded again");

    let bad = rig.towline.dir().join("bad");
    fs::write(&bad, "{\"version\":9}").unwrap();
    let refused = other.towline.run(&["images", "profile", "--import", bad.to_str().unwrap(), image]);
    assert!(!refused.status.success() && refused.stderr.contains("version 9"), "{}", refused.stderr);
}
