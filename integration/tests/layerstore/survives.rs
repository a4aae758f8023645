//! What is killed, and what goes on.

use std::fs;

use towline_integration::process::wait_until;
use towline_integration::towline::PATIENCE;

use super::rig::Rig;

/// Starts a container that waits for a file before it reads all of its image.
fn reader(rig: &Rig, name: &str, image: &str) {
    let script = "while [ ! -e /go ]; do sleep 0.1; done; find /bin /data /etc -xdev -type f -exec cat {} + | sha256sum; echo end; sleep 1000";
    rig.ok(&["run", "-d", "--name", name, "--network", "none", image, "/bin/busybox", "sh", "-c", script]);
}

/// What it has read.
fn finish(rig: &Rig, name: &str) -> String {
    rig.ok(&["exec", name, "/bin/busybox", "touch", "/go"]);
    let mut logs = String::new();
    wait_until(&format!("container {name} to have read its image"), PATIENCE, || {
        logs = rig.ok(&["logs", name]);
        logs.contains("end")
    });
    logs
}

#[test]
fn a_killed_daemon_is_waited_for() {
    let Some(rig) = Rig::new("survives::a_killed_daemon_is_waited_for") else { return };
    let image = rig.image("small:zstd");
    reader(&rig, "lazy", &image);
    rig.towline.kill_daemon();
    let lazy = finish(&rig, "lazy");
    assert!(lazy.lines().count() == 2 && !lazy.contains("rror"), "{lazy}");
    reader(&rig, "local", &image);
    rig.link.cut();
    let local = finish(&rig, "local");
    assert_eq!(local.lines().nth(1), Some("end"), "{local}");
    rig.link.restore();
}

#[test]
fn a_killed_server_of_layers_is_an_error_and_never_other_bytes() {
    let Some(rig) = Rig::new("survives::a_killed_server_of_layers_is_an_error_and_never_other_bytes") else { return };
    let image = rig.image("small:zstd");
    reader(&rig, "before", &image);
    let server = rig.servers();
    assert_eq!(server.len(), 1);
    rig.towline.kill(&server);
    // The keeper mounts it again.
    wait_until("another process to serve layers", PATIENCE, || {
        rig.servers().first().is_some_and(|pid| *pid != server[0]) && fs::read_dir(rig.layers()).is_ok()
    });
    let logged = rig.podman(&["exec", "before", "/bin/busybox", "cat", "/bin/probe"]);
    assert!(logged.code() != Some(0), "it was read without anybody who has it");
    assert_eq!(rig.script(&image, "echo well again"), "well again");
    // Its root is bound to what was killed, until podman mounts it once more.
    rig.ok(&["stop", "--time", "0", "before"]);
    rig.ok(&["start", "before"]);
    assert!(finish(&rig, "before").ends_with("end"));
    assert!(rig.log().contains("it is mounted again"), "{}", rig.log());

    // Keeper and server: nobody mounts it, and podman pulls as ever once the dead mount is away, which the next keeper does.
    rig.towline.kill(&rig.towline.processes());
    rig.serve();
    assert_eq!(rig.script(&image, "echo once more"), "once more");
}

#[test]
fn what_podman_uses_stays_and_a_tag_may_move() {
    let Some(rig) = Rig::new("survives::what_podman_uses_stays_and_a_tag_may_move") else { return };
    let image = rig.image("small:zstd");
    assert_eq!(rig.script(&image, "echo one"), "one");
    // Another image under the name in towline's store, and nothing that it does not hold.
    rig.towline.run(&["images", "pull", "--lazy", &rig.image("odd:zstd")]).success();
    rig.towline.run(&["images", "tag", &rig.image("odd:zstd"), &image]).success();
    rig.towline.run(&["system", "prune", "--all"]).success();
    // The layers are found again by what uses them.
    rig.towline.kill(&rig.towline.processes());
    rig.serve();
    assert_eq!(rig.script(&image, "cat /bin/probe > /dev/null && echo two"), "two");
    rig.ok(&["rmi", "--all", "--force"]);
    let left = rig.towline.run(&["system", "prune", "--all"]).success();
    assert!(rig.towline.run(&["images", "ls", "-q"]).success().stdout.trim().is_empty(), "{}", left.stdout);
}
