//! The registry goes away in the middle and comes back.

use std::time::Duration;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::failure::is_one_clear_line;
use crate::rig::{Rig, after};
use crate::truth::Truth;

#[test]
fn errors_while_it_is_gone_and_recovery_without_a_restart() {
    if !images::available("outage::errors_while_it_is_gone_and_recovery_without_a_restart") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let script = "probe sum /data/dir/1 > /dev/null; echo ready; wait_for gone; probe sum /data/dir/1 /data/dir/2; echo failed; \
                  wait_for back; probe sum /data/dir/2 /data/many/9 /data/large; echo recovered; wait_for end";
    let container = rig.resident_script("outage", "zstd", script);
    container.wait_for("ready");
    rig.link.cut();
    container.go("gone");
    let output = container.wait_for_within("failed", Duration::from_secs(120));
    let truth = Truth::of("small");
    let (read, failed) = truth.compare(after(&output, "ready"));
    assert_eq!((read, failed), (1, vec!["/data/dir/2 errno=EIO".to_owned()]), "{output}");
    let log = rig.towline.daemon_log();
    assert!(log.contains(&rig.link.address().to_string()), "the log says what could not be reached: {log}");

    rig.link.restore();
    container.go("back");
    let output = container.wait_for("recovered");
    let (read, failed) = truth.compare(after(&output, "failed"));
    assert_eq!((read, failed), (3, Vec::new()), "{output}");
}

#[test]
fn the_background_fetch_survives_an_outage() {
    if !images::available("outage::the_background_fetch_survives_an_outage") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::new(40, 2));
    let container = rig.resident_script("outage", "zstd", "echo ready; wait_for end; probe sum /data/dir/40; echo done");
    container.wait_for("ready");
    rig.link.cut();
    std::thread::sleep(Duration::from_secs(3));
    rig.link.restore();
    rig.towline.wait_for_hand_off(Duration::from_secs(90));
    rig.link.cut();
    container.go("end");
    let output = container.wait_for("done");
    assert_eq!(Truth::of("small").compare(&output).0, 1, "{output}");
}

#[test]
fn a_pull_of_everything_ends_and_the_image_goes_on() {
    if !images::available("outage::a_pull_of_everything_ends_and_the_image_goes_on") {
        return;
    }
    let towline = Towline::new().with_env("TOWLINE_FETCH", "patience=2000,backoff_max=1000");
    let rig = Rig::new(towline, Quality::new(40, 2));
    let pull = rig.towline.start(&["images", "pull", &rig.image("small:zstd")]);
    wait_until("the image to be startable", PATIENCE, || pull.stderr().contains("  index "));
    rig.link.cut();
    let done = pull.wait(Duration::from_secs(30));
    let address = rig.link.address().to_string();
    is_one_clear_line("the registry is gone", &done, &["completing", &address, "in the background"]);
    let warned = done.stderr.lines().filter(|line| line.contains("warning") && line.contains(&address)).count();
    assert_eq!(warned, 1, "{}", done.stderr);

    rig.link.restore();
    rig.towline.wait_for_hand_off(Duration::from_secs(60));
    rig.link.cut();
    let read = rig.towline.run(&["run", "--rm", &rig.image("small:zstd"), "cat", "/data/changed"]);
    assert_eq!((read.code(), read.stdout.as_str()), (Some(0), "second\n"), "{}", read.stderr);
}
