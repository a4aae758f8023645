//! Looking after the store as a whole: what takes room, what is damaged, what nobody needs.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::run;
use towline_integration::towline::{PATIENCE, Towline, bin_dir};

use crate::rig::Rig;
use crate::truth::Truth;

fn usage(rig: &Rig) -> Value {
    serde_json::from_str(&rig.towline.run(&["system", "df", "--format", "json"]).success().stdout).unwrap()
}

/// The first object of the store that is long enough to be damaged.
fn an_object(rig: &Rig) -> PathBuf {
    let directories = fs::read_dir(rig.towline.root().join("cas")).unwrap().flatten();
    let mut objects = directories.flat_map(|entry| fs::read_dir(entry.path()).unwrap().flatten());
    objects.find(|object| object.metadata().unwrap().len() > 1000).unwrap().path()
}

#[test]
fn damage_is_found_and_fetched_again_and_what_nobody_needs_goes() {
    if !images::available("store::damage_is_found_and_fetched_again_and_what_nobody_needs_goes") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let image = rig.image("small:zstd");
    rig.towline.run(&["images", "pull", &image]).success();
    rig.towline.wait_for_hand_off(PATIENCE);
    let whole = rig.towline.run(&["system", "verify"]);
    assert!(whole.code() == Some(0) && whole.stdout.contains("all as they should be"), "{}{}", whole.stdout, whole.stderr);

    let object = an_object(&rig);
    let mut bytes = fs::read(&object).unwrap();
    bytes[500] ^= 1;
    fs::write(&object, &bytes).unwrap();
    let digest = format!("{}{}", object.parent().unwrap().file_name().unwrap().display(), object.file_name().unwrap().display());
    let damaged = rig.towline.run(&["system", "verify"]);
    assert!(damaged.code() == Some(1) && damaged.stdout.contains(&digest), "{}{}", damaged.stdout, damaged.stderr);
    let repaired = rig.towline.run(&["system", "verify", "--repair"]);
    assert!(
        repaired.code() == Some(0) && repaired.stdout.contains("1 of them removed"),
        "{}{}",
        repaired.stdout,
        repaired.stderr
    );
    rig.towline.wait_for_hand_off(PATIENCE);
    bytes[500] ^= 1;
    assert_eq!(fs::read(&object).unwrap(), bytes, "the object is fetched again");

    let container =
        rig.script("user", "zstd", "echo ready; wait_for end; probe sum /data/dir/1 /data/large; echo done; wait_for ever");
    container.wait_for("ready");
    let before = usage(&rig);
    assert!(before["objects"]["count"].as_u64().unwrap() > 100 && before["objects"]["unused"] == 0, "{before}");
    rig.towline.run(&["system", "prune", "--all"]).success();
    rig.towline.run(&["system", "prune", "--to", "0"]).success();
    assert_eq!(usage(&rig)["objects"], before["objects"], "a container uses the image");
    container.go("end");
    let output = container.wait_for("done");
    assert_eq!(Truth::of("small").compare(&output), (2, Vec::new()), "{output}");
    rig.towline.run(&["rm", "-f", "user"]).success();
    assert_eq!(usage(&rig)["objects"]["unused"], before["objects"]["bytes"]);
    rig.towline.run(&["system", "prune", "--to", "1T"]).success();
    assert_eq!(usage(&rig)["images"]["count"], 1, "it is small enough");
    rig.towline.run(&["system", "prune", "--to", "0"]).success();
    let after = usage(&rig);
    for part in ["images", "objects", "large_files", "indexes"] {
        assert_eq!((&after[part]["count"], &after[part]["bytes"]), (&Value::from(0), &Value::from(0)), "{part}: {after}");
    }
}

/// The data file of the only layer with large files.
fn large_data(rig: &Rig) -> PathBuf {
    let files = fs::read_dir(rig.towline.root().join("big")).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|suffix| suffix == "data")).last().unwrap()
}

#[test]
fn a_large_file_is_mended_under_containers() {
    if !images::available("store::a_large_file_is_mended_under_containers") {
        return;
    }
    // Complete, so that the second container is mounted without the trigger; and lazy for ever, with it.
    for (complete, towline) in [(true, Towline::new()), (false, Towline::new().demand_only())] {
        let rig = Rig::new(towline, Quality::LOOPBACK);
        let script = "probe sum /data/large > /dev/null; echo ready; wait_for end";
        let first = rig.script("first", "zstd", script);
        first.wait_for("ready");
        if complete {
            rig.towline.wait_for_hand_off(PATIENCE);
        }
        let script = "echo ready; wait_for read; probe sum /data/large; echo done; wait_for end";
        let second = rig.script("second", "zstd", script);
        second.wait_for("ready");
        let file = fs::File::options().read(true).write(true).open(large_data(&rig)).unwrap();
        // The largest file is the last one.
        let place = file.metadata().unwrap().len() - 3_000_000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], place).unwrap();

        let damaged = rig.towline.run(&["system", "verify"]);
        assert!(damaged.code() == Some(1) && damaged.stdout.contains("1 chunks of large file"), "{}", damaged.stdout);
        let repaired = rig.towline.run(&["system", "verify", "--repair"]);
        assert!(
            repaired.code() == Some(0) && repaired.stdout.contains("1 of them removed"),
            "{}{}",
            repaired.stdout,
            repaired.stderr
        );
        let mut again = [0];
        file.read_exact_at(&mut again, place).unwrap();
        assert_eq!(again, byte, "complete: {complete}");
        second.go("read");
        let output = second.wait_for("done");
        assert_eq!(Truth::of("small").compare(&output), (1, Vec::new()), "complete: {complete}: {output}");
        let whole = rig.towline.run(&["system", "verify"]);
        assert!(whole.code() == Some(0), "{}{}", whole.stdout, whole.stderr);
        second.go("end");
    }
}

#[test]
fn a_second_daemon_on_one_store_is_refused() {
    if !images::available("store::a_second_daemon_on_one_store_is_refused") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    rig.towline.run(&["images", "pull", "--lazy", &rig.image("small:zstd")]).success();
    let first = rig.towline.daemons();
    for state in [rig.towline.state(), rig.towline.dir().join("other")] {
        let mut second = Command::new(bin_dir().join("towlined"));
        second.arg("--root").arg(rig.towline.root()).arg("--state").arg(&state).arg("serve");
        let refused = run(second, Duration::from_secs(60));
        assert!(
            refused.code() == Some(125) && refused.stderr.contains("another towlined serves this store"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(rig.towline.daemons(), first);
}
