//! config-linux.md, "Network Devices".

use std::process::Command;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Done, Subject, root_or_skip};

/// Runs the container from a network namespace that has a pair of devices; the first has addresses.
fn run(container: &Container, after: &str) -> Done {
    container.write_config();
    let script = format!(
        "ip link add first type veth peer name second && ip link set first address 02:00:00:00:00:07 mtu 1400 up && \
         ip addr add 10.9.8.7/24 dev first && ip addr add fd00::7/64 dev first nodad && \"$@\"; code=$?; {after}; exit $code"
    );
    let runtime = container.command(&["run", "--bundle", &container.bundle().display().to_string(), container.id()]);
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script, "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    command.current_dir(container.dir());
    container.execute(command)
}

#[test]
fn a_device_of_the_host_moves_into_the_container() {
    const TEST: &str = "a_device_of_the_host_moves_into_the_container";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {TEST}: runc 1.1 and crun 1.8 are older than runtime-spec 1.3");
        return;
    }
    for (device, name) in [(json!({ "name": "eth0" }), "eth0"), (json!({}), "first")] {
        let container = Container::new().with(|c| c["linux"]["netDevices"] = json!({ "first": device }));
        let container = container.script(&format!("ip link show dev {name}; ip addr show dev {name}"));
        let done = run(&container, "ip link show first >/dev/null 2>&1 && echo still there").success();
        for part in ["10.9.8.7/24", "fd00::7/64", "mtu 1400", "02:00:00:00:00:07", &format!("{name}@")] {
            assert!(done.stdout.contains(part), "{part}: {done:?}");
        }
        assert!(done.stdout.contains(",UP"), "{done:?}");
        assert!(!done.stdout.contains("still there"), "{done:?}");
    }
}

#[test]
fn devices_that_cannot_move_are_refused() {
    const TEST: &str = "devices_that_cannot_move_are_refused";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {TEST}: runc 1.1 and crun 1.8 are older than runtime-spec 1.3");
        return;
    }
    let shared: fn(&mut Value) = |c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "network");
        c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys");
    };
    for (devices, edit, why) in [
        (json!({ "absent": {} }), (|_| {}) as fn(&mut Value), "No such device"),
        (json!({ "first": { "name": "lo" } }), |_| {}, "File exists"),
        (json!({ "first": { "name": "a/b" } }), |_| {}, "no name of a network device"),
        (json!({ "first": { "name": "sixteen-bytes-xy" } }), |_| {}, "15 bytes"),
        (json!({ "first": { "name": "same" }, "second": { "name": "same" } }), |_| {}, "same"),
        (json!({ "first": {} }), shared, "no network namespace of its own"),
    ] {
        let container = Container::new().with(|c| c["linux"]["netDevices"] = devices.clone()).with(edit);
        let done = run(&container, ":").failure();
        assert!(done.stderr.contains(why), "{devices}: {done:?}");
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{devices}");
    }
}

#[test]
fn cache_groups_need_a_host_that_has_them() {
    const TEST: &str = "cache_groups_need_a_host_that_has_them";
    if !root_or_skip(TEST) {
        return;
    }
    if std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        println!("SKIP {TEST}: this host has resctrl");
        return;
    }
    let container = Container::new().with(|c| c["linux"]["intelRdt"] = json!({ "closID": "x", "l3CacheSchema": "L3:0=f" }));
    if container.subject() == Subject::Crun {
        println!("SKIP {TEST}: crun 1.8 ignores intelRdt");
        return;
    }
    container.create().failure();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}
