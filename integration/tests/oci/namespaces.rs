//! config-linux.md, "Namespaces" and "User namespace mappings".

use std::fs;
use std::process::{Child, Command};

use serde_json::json;
use towline_integration::bundle::{Case, Container, Subject, push, root_or_skip, run_cases};

const LINKS: [(&str, &str); 7] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

fn own(link: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{link}")).expect("own namespace").display().to_string()
}

#[test]
fn a_namespace_is_new_exactly_if_it_is_listed() {
    if !root_or_skip("a_namespace_is_new_exactly_if_it_is_listed") {
        return;
    }
    let script = "for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done";
    for left_out in ["network", "ipc", "pid"] {
        let container = Container::new().script(script).with(|c| {
            let list = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
            list.retain(|n| n["type"] != left_out);
            list.push(json!({ "type": "cgroup" }));
            if left_out == "network" {
                // sysfs of another network namespace needs its owner's rights; the references bind it, too.
                c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys");
            }
        });
        let done = container.run().success();
        for ((name, link), inside) in LINKS.iter().zip(done.stdout.lines()) {
            assert_eq!(inside == own(link), *name == left_out, "{name} without {left_out}: {inside}");
        }
    }
}

/// A process in namespaces of its own, for others to join.
struct Holder(Child);

impl Holder {
    fn start(option: &str) -> Self {
        let child = Command::new("unshare").args([option, "sleep", "100"]).spawn().expect("start unshare");
        let holder = Self(child);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::read_to_string(holder.path("comm")).is_ok_and(|name| name.trim() != "sleep") {
            assert!(std::time::Instant::now() < end, "unshare does not come up");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        holder
    }

    fn path(&self, rest: &str) -> String {
        format!("/proc/{}/{rest}", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_namespace_with_a_path_is_joined() {
    if !root_or_skip("a_namespace_with_a_path_is_joined") {
        return;
    }
    for (kind, link, option) in [("network", "net", "--net"), ("ipc", "ipc", "--ipc"), ("uts", "uts", "--uts")] {
        let holder = Holder::start(option);
        let path = holder.path(&format!("ns/{link}"));
        let container = Container::new().script(&format!("readlink /proc/self/ns/{link}")).with(|c| {
            for namespace in c["linux"]["namespaces"].as_array_mut().expect("namespaces") {
                if namespace["type"] == kind {
                    namespace["path"] = json!(path);
                }
            }
            // A name of the host that the container shares cannot be its own.
            c.as_object_mut().expect("an object").remove("hostname");
        });
        let wanted = fs::read_link(&path).expect("the namespace to join").display().to_string();
        assert_eq!(container.run().success().text(), wanted, "{kind}");
    }
}

/// Gives every namespace of the configuration, and those in `more`, the path of that of process `pid`.
fn join(c: &mut serde_json::Value, pid: i32, kinds: &[(&str, &str)]) {
    let list = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
    for (kind, link) in kinds {
        list.retain(|n| n["type"] != *kind);
        list.push(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{link}") }));
    }
}

#[test]
fn every_kind_of_namespace_can_be_joined() {
    const TEST: &str = "every_kind_of_namespace_can_be_joined";
    if !root_or_skip(TEST) {
        return;
    }
    let subject = Container::new().subject();
    let holder = Container::new().script("sleep 100").with(|c| {
        push(c, "/linux/namespaces", json!({ "type": "cgroup" }));
        if subject == Subject::Towline {
            push(c, "/linux/namespaces", json!({ "type": "time" }));
        }
    });
    holder.up();
    for (kind, link) in LINKS {
        // runc 1.1 and crun 1.8 know no time namespaces.
        if kind == "mount" || (kind == "time" && subject != Subject::Towline) {
            continue;
        }
        let container = Container::new().script(&format!("readlink /proc/self/ns/{link}")).with(|c| {
            join(c, holder.pid(), &[(kind, link)]);
            c.as_object_mut().expect("an object").remove("hostname");
        });
        let wanted = fs::read_link(format!("/proc/{}/ns/{link}", holder.pid())).expect("the namespace").display().to_string();
        assert_ne!(wanted, own(link), "{kind}");
        assert_eq!(container.run().success().text(), wanted, "{kind}");
    }
    if subject != Subject::Towline {
        println!("SKIP {TEST}, mount: the references put a root of their own into a mount namespace that they join");
        return;
    }
    // What is mounted there is what the process sees.
    fs::write(holder.rootfs().join("mark"), "").expect("mark the root");
    let container = Container::new().script("readlink /proc/self/ns/mnt; ls /mark").with(|c| {
        join(c, holder.pid(), &[("mount", "mnt"), ("pid", "pid")]);
    });
    let wanted = fs::read_link(format!("/proc/{}/ns/mnt", holder.pid())).expect("the namespace");
    assert_eq!(container.run().success().text(), format!("{}\n/mark", wanted.display()));
}

#[test]
fn a_pod_s_user_namespace_is_joined_with_the_others() {
    if !root_or_skip("a_pod_s_user_namespace_is_joined_with_the_others") {
        return;
    }
    let first = mapped().script("sleep 100");
    open_to_mapped_root(&first);
    first.up();
    let kinds = [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
    let second = mapped().script("readlink /proc/self/ns/user; id -u; tr -s ' ' < /proc/self/uid_map").with(|c| {
        join(c, first.pid(), &kinds);
        c.as_object_mut().expect("an object").remove("hostname");
    });
    open_to_mapped_root(&second);
    let user = fs::read_link(format!("/proc/{}/ns/user", first.pid())).expect("the namespace").display().to_string();
    let done = second.run().success();
    assert_eq!(done.text(), format!("{user}\n0\n 0 200000 1000\n 2000 300000 7"), "{done:?}");
}

#[test]
fn time_offsets() {
    const TEST: &str = "time_offsets";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {TEST}: runc 1.1 and crun 1.8 are older than time namespaces in runtime-spec (1.1)");
        return;
    }
    for userns in [false, true] {
        let container = if userns { mapped() } else { Container::new() };
        let container = container.script("cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets | tr -s ' '").with(|c| {
            push(c, "/linux/namespaces", json!({ "type": "time" }));
            c["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 86_400_000, "nanosecs": 5 }, "monotonic": { "secs": -1 } });
        });
        if userns {
            open_to_mapped_root(&container);
        }
        let done = container.run().success();
        let mut lines = done.stdout.lines();
        let uptime: u64 = lines.next().and_then(|line| line.parse().ok()).expect("seconds");
        assert!(uptime > 86_400_000, "{done:?}");
        let rest: Vec<&str> = lines.collect();
        assert_eq!(rest, ["monotonic -1 0", "boottime 86400000 5"], "{done:?}");
        let container = container.script("sleep 100");
        container.up();
        let done = container.exec(&[], &["cut", "-d.", "-f1", "/proc/uptime"]).success();
        assert!(done.text().parse::<u64>().expect("seconds") > 86_400_000, "exec: {done:?}");
    }
}

#[test]
fn a_namespace_of_the_wrong_kind_is_refused() {
    if !root_or_skip("a_namespace_of_the_wrong_kind_is_refused") {
        return;
    }
    for path in ["/proc/self/ns/uts", "/etc/passwd", "/no/such/namespace"] {
        let container = Container::new().with(|c| {
            c["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "pid" }, { "type": "network", "path": path }]);
            c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys");
        });
        container.run().failure();
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn user_namespaces_map_as_configured() {
    if !root_or_skip("user_namespaces_map_as_configured") {
        return;
    }
    let container =
        mapped().script("tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; id -u; id -g; stat -c %u /etc/passwd");
    open_to_mapped_root(&container);
    let done = container.run().success();
    assert_eq!(done.text(), "0 200000 1000\n 2000 300000 7\n 0 300000 500\n0\n0\n65534", "{done:?}");
}

#[test]
fn an_id_that_is_not_mapped_is_named() {
    const TEST: &str = "an_id_that_is_not_mapped_is_named";
    if !root_or_skip(TEST) {
        return;
    }
    for (edit, why) in [
        (
            (|c| {
                let options = json!(["gid=4000"]);
                push(c, "/mounts", json!({ "destination": "/m", "type": "tmpfs", "source": "x", "options": options }));
            }) as fn(&mut serde_json::Value),
            "option gid",
        ),
        (|c| c["process"]["user"]["uid"] = json!(4000), "user 4000"),
        (|c| c["process"]["user"]["additionalGids"] = json!([4000]), "groups [4000]"),
    ] {
        let container = mapped().with(edit);
        open_to_mapped_root(&container);
        let done = container.run().failure();
        if container.subject() == Subject::Towline {
            assert!(done.stderr.contains(why) && done.stderr.contains("the user namespace map"), "{done:?}");
        }
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{why}");
    }
}

/// A container with a user namespace.
fn mapped() -> Container {
    Container::new().with(|c| {
        push(c, "/linux/namespaces", json!({ "type": "user" }));
        c["linux"]["uidMappings"] = json!([
            { "containerID": 0, "hostID": 200000, "size": 1000 }, { "containerID": 2000, "hostID": 300000, "size": 7 }
        ]);
        c["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": 300000, "size": 500 }]);
        c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys/fs/cgroup");
    })
}

/// The root file system must be reachable for the mapped root: it is, for "other", except for the bundle's directory.
fn open_to_mapped_root(container: &Container) {
    let mode = |path: &std::path::Path| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open the directory");
    };
    mode(container.dir());
    mode(&container.bundle());
    for path in
        [container.rootfs(), container.rootfs().join("dev"), container.rootfs().join("proc"), container.rootfs().join("sys")]
    {
        std::os::unix::fs::chown(path, Some(200_000), Some(300_000)).expect("give the root to the mapped user");
    }
}

#[test]
fn the_runtime_may_itself_be_in_a_user_namespace() {
    const TEST: &str = "the_runtime_may_itself_be_in_a_user_namespace";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {TEST}: the references want a cgroup that this user may write to");
        return;
    }
    for new_userns in [false, true] {
        let container = Container::new()
            .script("id -u; stat -c %t:%T /dev/null; echo x > /dev/null && tr -s ' ' < /proc/self/uid_map")
            .with(|c| {
                c["linux"].as_object_mut().expect("linux").remove("resources");
                for mount in c["mounts"].as_array_mut().expect("mounts") {
                    // One group is mapped, and it is not 5.
                    if mount["destination"] == "/dev/pts" {
                        mount["options"].as_array_mut().expect("options").retain(|option| option != "gid=5");
                    }
                }
                if new_userns {
                    push(c, "/linux/namespaces", json!({ "type": "user" }));
                    let one = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
                    (c["linux"]["uidMappings"], c["linux"]["gidMappings"]) = (one.clone(), one);
                }
            });
        container.write_config();
        let bundle = container.bundle().display().to_string();
        let runtime = container.command(&["--cgroup-manager", "disabled", "run", "--bundle", &bundle, container.id()]);
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user"])
            .arg(runtime.get_program())
            .args(runtime.get_args())
            .current_dir(container.dir());
        let done = container.execute(command).success();
        assert_eq!(done.text(), "0\n1:3\n 0 0 1", "new user namespace {new_userns}: {done:?}");
    }
}

#[test]
fn names_and_ids_inside() {
    if !root_or_skip("names_and_ids_inside") {
        return;
    }
    run_cases(&[
        Case { name: "the process is the first of its pid namespace", edit: |_| {}, script: "echo $$", wanted: "1" },
        Case {
            name: "a new network namespace has a loopback that is up (as runc and crun)",
            edit: |_| {},
            script: "ip -o link show lo | grep -c 'LOOPBACK,UP'; ls /sys/class/net",
            wanted: "1\nlo",
        },
        Case {
            name: "a cgroup namespace hides the path",
            edit: |c| {
                c["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "cgroup" }));
            },
            script: "grep pids /proc/self/cgroup | cut -d: -f3",
            wanted: "/",
        },
    ]);
}
