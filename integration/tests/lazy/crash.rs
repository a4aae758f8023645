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
    let container = rig.resident_script("crash", "zstd", script);
    container.wait_for("ready");
    rig.towline.kill_daemon_and_holder();
    container.go("dead");
    let output = container.wait_for("done");
    let lines = after(&output, "ready");
    let truth = Truth::of("small");
    let (read, failed) = truth.compare(lines);
    assert_eq!(read, 2, "what was local is read: {lines}");
    let absent = ["/data/dir/2", "/data/many/5", "/data/large"];
    let errors = ["EIO", "ELOOP", "EIO"];
    let expected: Vec<String> = absent.iter().zip(errors).map(|(path, error)| format!("{path} errno={error}")).collect();
    assert_eq!(failed, expected, "a file that was absent is ELOOP when it is opened, a large one EIO when it is read: {lines}");

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
    let container = rig.resident_script("crash", "zstd", script);
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

/// Four processes that read the files `many/1` to `many/200`, each when the test lets it, one line of `probe sum` each.
const READERS: &str = "
reader() { i=$1; while [ $i -le 200 ]; do wait_for $i; probe sum /data/many/$i; i=$((i + 4)); done; }
echo ready; for n in 1 2 3 4; do reader $n & done; wait; echo done; wait_for end";

#[test]
fn a_hundred_kills_at_any_moment_cost_no_read_and_no_byte() {
    const KILLS: u64 = 100;
    if !images::available("crash::a_hundred_kills_at_any_moment_cost_no_read_and_no_byte") {
        return;
    }
    // A fetch takes some round trips, so one is under way when the kill comes.
    let rig = Rig::new(Towline::new().demand_only(), Quality { bits_per_second: None, round_trip: Duration::from_millis(20) });
    let container = rig.resident_script("crash", "zstd", READERS);
    container.wait_for("ready");
    rig.towline.wait_for_holder();
    let adopted = || rig.towline.daemon_log().matches("going on with the FUSE trigger").count();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for kill in 1..=KILLS {
        // xorshift
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = adopted();
        rig.towline.kill_daemon();
        container.go(&(2 * kill - 1).to_string());
        container.go(&(2 * kill).to_string());
        wait_until("another daemon", PATIENCE, || !rig.towline.daemons().is_empty());
        // One in four is killed at any moment of its start, the others while they serve.
        if kill % 4 > 0 {
            wait_until("the daemon to serve", PATIENCE, || adopted() > before);
        }
        std::thread::sleep(Duration::from_millis(random % 300));
    }
    let output = container.wait_for("done");
    assert_eq!(Truth::of("small").compare(&output), (200, Vec::new()), "{output}");
    assert_eq!(rig.towline.fuse_mounts().len(), 1, "no trigger was mounted anew");
}

#[test]
fn an_upgrade_under_load_costs_no_read() {
    if !images::available("crash::an_upgrade_under_load_costs_no_read") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality { bits_per_second: None, round_trip: Duration::from_millis(20) });
    let container = rig.resident_script("crash", "zstd", READERS);
    container.wait_for("ready");
    for round in 0..5 {
        let before = rig.towline.daemons();
        (40 * round + 1..=40 * (round + 1)).for_each(|file| container.go(&file.to_string()));
        rig.towline.run(&["system", "upgrade"]).success();
        wait_until("the old daemon to be gone", PATIENCE, || rig.towline.daemons().iter().all(|pid| !before.contains(pid)));
    }
    let output = container.wait_for("done");
    assert_eq!(Truth::of("small").compare(&output), (200, Vec::new()), "{output}");
    assert!(!output.contains("towline:"), "the container's log tells of no failure: {output}");
    assert_eq!(rig.towline.daemon_log().matches("going on with the FUSE trigger").count(), 5);
}

#[test]
fn commands_that_start_together_start_one_daemon() {
    if !images::available("crash::commands_that_start_together_start_one_daemon") {
        return;
    }
    // Far enough away for all of them to be at it at once.
    let rig = Rig::new(Towline::new().demand_only(), Quality::new(100, 60));
    let image = rig.image("small:zstd");
    let jobs: Vec<_> = (0..6).map(|_| rig.towline.start(&["images", "pull", "--lazy", &image])).collect();
    for job in jobs {
        job.wait(PATIENCE).success();
    }
    assert_eq!(rig.towline.daemons().len(), 1);
    assert_eq!(rig.towline.daemon_log().matches("serving ").count(), 1, "{}", rig.towline.daemon_log());
    // They make one image, once.
    let config = rig.registry.manifest("small", "zstd")["config"]["digest"].as_str().unwrap().to_owned();
    let asked = rig.registry.requests().iter().filter(|request| request.path.ends_with(&config)).count();
    assert_eq!(asked, 1, "{:?}", rig.registry.requests());
}

#[test]
fn a_restarted_daemon_resumes_where_the_fetch_stood() {
    if !images::available("crash::a_restarted_daemon_resumes_where_the_fetch_stood") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::new(40, 2));
    let total: u64 = sizes(&rig, "small", "zstd").iter().sum();
    let script = "echo ready; wait_for again; probe sum /data/dir/40 /data/many/200; echo done; wait_for end";
    let container = rig.resident_script("crash", "zstd", script);
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
