//! The daemon dies by SIGKILL before everything is local.

use std::time::Duration;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::{Rig, after};
use crate::truth::Truth;

#[test]
fn local_files_go_on_and_absent_ones_are_an_error_that_no_program_mistakes() {
    if !images::available("crash::local_files_go_on_and_absent_ones_are_an_error_that_no_program_mistakes") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let script = "probe sum /data/dir/1 /data/changed > /dev/null; echo ready; wait_for dead; \
                  probe sum /data/dir/1 /data/changed /data/dir/2 /data/many/5 /data/large; echo done; wait_for end";
    let container = rig.script("crash", "zstd", script);
    container.wait_for("ready");
    rig.towline.kill_daemon_and_holder();
    container.go("dead");
    let output = container.wait_for("done");
    let lines = after(&output, "ready");
    let truth = Truth::of("small");
    let (read, failed) = truth.compare(lines);
    assert_eq!(read, 2, "what was local is read: {lines}");
    let absent = ["/data/dir/2", "/data/many/5", "/data/large"];
    assert_eq!(failed, absent.map(|path| format!("{path} errno=ELOOP")), "what was absent is ELOOP: {lines}");

    // The monitor starts another daemon, which mounts another trigger: it serves new containers. What they fetch becomes local, and
    // then the old one has it too.
    let others =
        rig.towline.run(&["run", "--rm", &rig.image("small:zstd"), "/bin/probe", "sum", absent[0], absent[1], absent[2]]);
    assert_eq!(truth.compare(&others.stdout), (3, Vec::new()), "a new container: {}{}", others.stdout, others.stderr);
    let again = rig.towline.run(&["exec", "crash", "/bin/probe", "sum", absent[0], absent[1], absent[2]]);
    assert_eq!(truth.compare(&again.stdout), (3, Vec::new()), "the old container: {}{}", again.stdout, again.stderr);
}

#[test]
fn a_killed_daemon_costs_a_wait_and_a_killed_holder_costs_nothing() {
    if !images::available("crash::a_killed_daemon_costs_a_wait_and_a_killed_holder_costs_nothing") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let script = "probe sum /data/dir/1 > /dev/null; echo ready; wait_for dead; probe sum /data/dir/2 /data/large; echo done; \
                  wait_for alone; probe sum /data/dir/3 /data/many/5; echo end; wait_for end";
    let container = rig.script("crash", "zstd", script);
    container.wait_for("ready");
    let truth = Truth::of("small");
    rig.towline.wait_for_holder();
    rig.towline.kill_daemon();
    container.go("dead");
    let output = container.wait_for("done");
    assert_eq!(truth.compare(&output), (2, Vec::new()), "the monitor's daemon answers what nobody did: {output}");

    let before = rig.towline.holders();
    rig.towline.kill(&before);
    container.go("alone");
    let output = container.wait_for("end");
    assert_eq!(truth.compare(&output), (4, Vec::new()), "nobody notices that the holder is gone: {output}");
    wait_until("another holder", PATIENCE, || rig.towline.holders().iter().any(|pid| !before.contains(pid)));
}

#[test]
fn a_restarted_daemon_resumes_where_the_fetch_stood() {
    if !images::available("crash::a_restarted_daemon_resumes_where_the_fetch_stood") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::new(40, 2));
    let total: u64 = sizes(&rig, "small", "zstd").iter().sum();
    let script = "echo ready; wait_for again; probe sum /data/dir/40 /data/many/200; echo done; wait_for end";
    let container = rig.script("crash", "zstd", script);
    container.wait_for("ready");
    wait_until("half of the image to be fetched", Duration::from_secs(30), || rig.link.bytes_down() > total / 2);
    rig.towline.kill_daemon();
    let before = rig.link.bytes_down();
    assert!(before < total * 9 / 10, "the daemon was killed too late for this test: {before} of {total}");

    // Any command that needs the daemon starts it.
    rig.towline.run(&["images", "pull", "--lazy", &rig.image("small:zstd")]).success();
    rig.towline.wait_for_hand_off(Duration::from_secs(60));
    let fetched = rig.link.bytes_down();
    // What was in flight, manifests and indexes may come twice; a quarter of the image is more than that.
    assert!(fetched < total + total / 4, "fetched {fetched} bytes of an image of {total}, {before} of them before the crash");
    container.go("again");
    let output = container.wait_for("done");
    let (read, failed) = Truth::of("small").compare(&output);
    assert!(read == 2 && failed.is_empty(), "the running container reads what the restarted daemon fetched: {output}");
}

fn sizes(rig: &Rig, name: &str, tag: &str) -> Vec<u64> {
    rig.registry.manifest(name, tag)["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).collect()
}
