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

#[test]
fn an_image_is_optimized_for_what_a_run_of_it_reads() {
    if !images::available("profile::an_image_is_optimized_for_what_a_run_of_it_reads") {
        return;
    }
    let rig = Rig::quiet(Towline::new(), Quality::LOOPBACK);
    let (towline, dir) = (&rig.towline, rig.towline.dir().join("optimized"));
    let (source, target) = (rig.image("small:zstd"), format!("oci:{}", dir.display()));
    let optimize = |flags: &[&str], tag: &str, script: &str| {
        let target = format!("{target}:{tag}");
        towline.run(&[&["images", "optimize"], flags, &[&source, &target, "--", "/bin/sh", "-c", script]].concat())
    };
    // One ends by itself, the other is a server.
    optimize(&[], "ended", "cat /data/many/15? > /dev/null").success();
    optimize(&["--until-output", "serving"], "served", "cat /data/many/12? > /dev/null; echo serving >&2; sleep 1000").success();
    let document = |digest: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap()).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    for (tag, read, other) in [("ended", "data/many/150", "data/many/120"), ("served", "data/many/120", "data/many/150")] {
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let entry = index["manifests"].as_array().unwrap().iter().find(named).unwrap_or_else(|| panic!("no {tag} in {index}"));
        let manifest = document(entry["digest"].as_str().unwrap());
        let profile = document(manifest["annotations"]["io.towline.profile.v1.digest"].as_str().unwrap());
        let paths: Vec<&str> = profile["accesses"].as_array().unwrap().iter().map(|a| a["path"].as_str().unwrap()).collect();
        assert!(paths.contains(&"bin/busybox") && paths.contains(&read) && !paths.contains(&other), "{tag}: {paths:?}");
        let has_pack = |layer: &Value| layer["annotations"]["io.towline.pack.v1"].is_string();
        assert!(manifest["layers"].as_array().unwrap().iter().any(has_pack), "{manifest}");
    }
    // What is packed comes without being asked for.
    let other = Towline::new();
    let script = "cat /data/many/15? > /dev/null; echo done";
    let started = other.run(&["run", "--rm", "--timeline", &format!("{target}:ended"), "/bin/sh", "-c", script]).success();
    let first =
        started.stderr.lines().find(|line| line.contains("by the profile")).unwrap_or_else(|| panic!("{}", started.stderr));
    assert!(started.stdout == "done\n" && !first.contains(": 0 B by the profile"), "{}", started.stderr);

    for (flags, script, why) in [
        (&[][..], "echo broken >&2; exit 3", "exit code 3; its last line: broken"),
        (&["--until-output", "serving"], "echo done", "has not written \"serving\"; its last line: done"),
    ] {
        let failed = optimize(flags, "failed", script);
        assert!(failed.code() == Some(125) && failed.stderr.contains(why), "{}", failed.stderr);
    }
    // Nothing of it stays.
    assert!(towline.containers().is_empty());
    let listed = towline.run(&["images", "ls", "--format", "json"]).success().stdout;
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap().as_array().unwrap().len(), 0, "{listed}");
}
