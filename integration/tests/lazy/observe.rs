//! What can be seen of a lazy start while it goes on, and afterwards.

use serde_json::Value;
use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;

#[test]
fn waits_are_counted_named_and_drawn_also_when_the_daemon_has_left() {
    if !images::available("observe::waits_are_counted_named_and_drawn_also_when_the_daemon_has_left") {
        return;
    }
    let rig =
        Rig::new(Towline::new().with_env("TOWLINE_FETCH", "background=off,ahead=0,prefetch=0,readahead=0"), Quality::LOOPBACK);
    let container = rig.script("seen", "zstd", "cat /etc/os-release; echo ready; wait_for end");
    container.wait_for("ready");
    let towline = &rig.towline;

    let answer = towline.metrics();
    let value = |name: &str| -> f64 {
        let line = answer.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {answer}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    assert!(value("towline_fetch_bytes_total{origin=\"demand\"}") > 0.0);
    assert!(value("towline_demand_seconds_count") >= 2.0);
    assert_eq!((value("towline_lazy_images"), value("towline_pinned_containers")), (1.0, 1.0));

    let status = json(&towline.run(&["lazy", "status", "--format", "json"]).success().stdout);
    assert_eq!(status[0]["name"], "seen");
    assert!(status[0]["waits"].as_u64().unwrap() >= 2 && status[0]["failed_waits"] == 0, "{status}");

    let svg = towline.dir().join("trace.svg");
    let args = ["lazy", "trace", "seen", "--format", "json", "--svg", svg.to_str().unwrap()];
    let before = json(&towline.run(&args).success().stdout);
    let paths: Vec<&str> = before.as_array().unwrap().iter().map(|wait| wait["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/etc/os-release"), "{paths:?}");
    assert!(std::fs::read_to_string(&svg).unwrap().contains("/etc/os-release"));

    // With the container its monitor goes, which would start another daemon.
    container.go("end");
    wait_until("the container to end", PATIENCE, || towline.containers().iter().all(|row| row["status"] == "exited"));
    let pid = *towline.daemons().first().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    wait_until("the daemon to leave", PATIENCE, || towline.daemons().is_empty());
    let after = json(&towline.run(&args).success().stdout);
    assert!(after.as_array().unwrap().len() >= paths.len(), "{after}");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}
