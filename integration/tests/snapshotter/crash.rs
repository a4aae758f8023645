//! Daemons are killed, and everything goes on.

use towline_integration::process::{Job, run, wait_until};

use super::node::{Node, PATIENCE, Setup};
use super::truth::Truth;

#[test]
fn a_killed_daemon_costs_a_running_container_nothing() {
    const TEST: &str = "crash::a_killed_daemon_costs_a_running_container_nothing";
    let Some(mut node) = Node::new(TEST, Setup::default()) else { return };
    let truth = Truth::of("small");
    let image = node.image("small:zstd");
    node.pull(&image).unwrap();
    let sync = node.towline.dir().join("sync");
    std::fs::create_dir(&sync).unwrap();
    let mount = format!("type=bind,src={},dst=/root,options=rbind:rw", sync.display());
    let script = "probe sum /bin/probe /bin/busybox > /dev/null; echo ready; while [ ! -e /root/go ]; do sleep 0.1; done; \
                  probe sum /data/dir/1 /data/large; echo done; while [ ! -e /root/end ]; do sleep 0.1; done";
    let mut running = Job::start(node.start(&["--rm", "--mount", &mount], &image, "running", &["/bin/sh", "-c", script]));
    running.wait_for_output("ready", PATIENCE);
    wait_until("a holder", PATIENCE, || node.daemon_log().contains("a holder keeps the FUSE trigger's device"));
    node.kill_daemon();
    std::fs::write(sync.join("go"), "").unwrap();
    node.start_daemon();
    running.wait_for_output("done", PATIENCE);
    let (right, failed) = truth.compare(&running.stdout());
    assert!(right == 2 && failed.is_empty(), "{}", running.stdout());
    std::fs::write(sync.join("end"), "").unwrap();
    assert_eq!(running.wait(PATIENCE).code(), Some(0));

    // Snapshots are what they were, for the next containers as well; containerd is killed, too.
    let detached = run(node.start(&["--detach"], &image, "stays", &["/bin/sh", "-c", "sleep 1000"]), PATIENCE);
    assert_eq!(detached.code(), Some(0), "{detached:?}");
    let before = node.keys();
    node.kill_containerd();
    node.kill_daemon();
    node.start_daemon();
    node.start_containerd();
    assert_eq!(node.keys(), before);
    let told = node.run(&image, "next", &["/bin/sh", "-c", "probe sum /data/dir/2 /data/many/5"]);
    assert_eq!(truth.compare(&told).0, 2, "{told}");
    let told = node.exec("stays", &["/bin/sh", "-c", "probe sum /data/dir/3"]);
    assert_eq!(truth.compare(&told).0, 1, "{told}");
    node.ok(&["task", "rm", "--force", "stays"]);
    node.ok(&["container", "rm", "stays"]);
    node.remove_images();
}

#[test]
fn a_registry_that_is_gone_stops_pulls_and_not_what_is_local() {
    const TEST: &str = "crash::a_registry_that_is_gone_stops_pulls_and_not_what_is_local";
    let Some(node) = Node::new(TEST, Setup { demand_only: false, ..Setup::default() }) else { return };
    let truth = Truth::of("small");
    let image = node.image("small:zstd");
    node.pull(&image).unwrap();
    wait_until("the image to be local", PATIENCE, || node.store_images()[0].contains("local"));
    node.link.cut();
    let told = node.run(&image, "local", &["/bin/sh", "-c", "find / -xdev -type f -exec probe sum {} +"]);
    assert_eq!(truth.compare(&told).0, truth.len());
    assert!(node.pull(&node.image("small:gzip")).is_err());
    node.link.restore();
    node.pull(&node.image("small:gzip")).unwrap();
    node.remove_images();
}
