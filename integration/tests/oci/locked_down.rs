//! Hosts that show little of /proc and /sys: a container starts all the same, or the refusal says what is in the way.

use std::process::Command;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Done, Subject, push, root_or_skip};

/// `run` in a mount namespace that a shell command has changed before.
fn run_after(setup: &str, container: &Container) -> Done {
    container.write_config();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{setup} && exec \"$@\""), "sh"]);
    command.arg(container.binary()).arg("--root").arg(container.state_dir());
    command.args(["run", "--bundle", &container.bundle().display().to_string(), container.id()]);
    container.execute(command)
}

fn sysctl(config: &mut Value) {
    config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
}

fn user_namespace(config: &mut Value) {
    let ids = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    push(config, "/linux/namespaces", json!({ "type": "user" }));
    config["linux"]["uidMappings"] = ids.clone();
    config["linux"]["gidMappings"] = ids;
}

fn plain(_: &mut Value) {}

const READ_ONLY_SYSCTLS: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";

#[test]
fn a_locked_down_proc_is_no_obstacle_or_is_named() {
    if !root_or_skip("a_locked_down_proc_is_no_obstacle_or_is_named") {
        return;
    }
    type Edit = fn(&mut Value);
    // What is done to the host's files, what the container asks for, and what a refusal says; none: it runs.
    let cases: [(&str, Edit, Option<&str>); 9] = [
        ("true", sysctl, None),
        ("mount -t proc -o hidepid=2 proc /proc", sysctl, None),
        ("mount -t proc -o subset=pid proc /proc", plain, None),
        ("mount -t proc -o subset=pid proc /proc", sysctl, Some("ProcSubset=")),
        (READ_ONLY_SYSCTLS, plain, None),
        (READ_ONLY_SYSCTLS, sysctl, Some("ProtectKernelTunables=")),
        (READ_ONLY_SYSCTLS, user_namespace, Some("mounted over parts of /proc")),
        ("mount -o remount,bind,ro /sys", plain, None),
        ("mount -t tmpfs tmpfs /proc", plain, Some("is procfs mounted on /proc?")),
    ];
    for (setup, edit, refusal) in cases {
        let container = Container::new().script("echo fine").with(edit);
        if container.subject() != Subject::Towline && refusal.is_some() {
            // The references refuse too, in other words, or go around the lock.
            continue;
        }
        let done = run_after(setup, &container);
        match refusal {
            None => assert_eq!(done.text(), "fine", "{setup}: {done:?}"),
            Some(words) => {
                assert!(done.stderr.contains(words), "{setup}: {done:?}");
                assert_ne!(done.code, Some(0), "{setup}: {done:?}");
                assert_eq!(container.leftovers(), Vec::<String>::new(), "{setup}");
            }
        }
    }
}
