//! Signals while a program waits for an absent file: a handler every 10 ms never makes an open fail, SIGKILL ends it at once.

use std::time::{Duration, Instant};

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::Towline;

use crate::rig::Rig;

#[test]
fn every_open_succeeds_under_a_signal_storm() {
    if !images::available("signals::every_open_succeeds_under_a_signal_storm") {
        return;
    }
    // 240 files, each a round trip of 30 ms: several signals hit every wait.
    let rig = Rig::new(Towline::new().demand_only(), Quality::new(100, 30));
    for (dir, files) in [("/data/many", 200), ("/data/dir", 40)] {
        let done = rig.towline.run(&["run", "--rm", &rig.image("small:zstd"), "/bin/probe", "storm", dir]);
        assert_eq!(done.code(), Some(0), "{}{}", done.stdout, done.stderr);
        assert!(done.stdout.contains(&format!("opened={files} failed=0 signals=")), "{}", done.stdout);
        let signals: u32 = done.stdout.trim().rsplit_once("signals=").unwrap().1.parse().unwrap();
        assert!(signals >= files / 2, "only {signals} signals: this was no storm");
    }
}

#[test]
fn sigkill_ends_a_program_that_waits_for_content() {
    if !images::available("signals::sigkill_ends_a_program_that_waits_for_content") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let container = rig.script("stuck", "zstd", "echo ready; wait_for go; exec probe sum /data/large");
    container.wait_for("ready");
    // Nothing arrives any more, and nothing fails either.
    rig.link.set_quality(Quality { bits_per_second: Some(64), round_trip: Duration::from_secs(1000) });
    let requested = rig.link.bytes_up();
    container.go("go");
    wait_until("the daemon to ask for the file", Duration::from_secs(20), || rig.link.bytes_up() > requested);
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    rig.towline.run(&["kill", "-s", "KILL", "stuck"]).success();
    wait_until("the killed container to end", Duration::from_secs(10), || {
        rig.towline.containers().iter().all(|one| one["status"].as_str() != Some("running"))
    });
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "SIGKILL took {took:?}");
    assert!(!container.output().contains("sum="), "the file cannot have been read");
}
