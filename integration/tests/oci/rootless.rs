//! An unprivileged user with its own ids alone, and with a cgroup that root has delegated to it (cgroups(7), "Cgroups delegation").

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use towline_integration::bundle::{Container, Done, Subject, root_or_skip};

const UID: u32 = 12345;

/// A container of a user: its root is the user, its state directory belongs to the user.
fn of_user(script: &str) -> Container {
    let container = Container::new().with_copied_binary().script(script).with(|c| {
        let linux = &mut c["linux"];
        linux["uidMappings"] = json!([{ "containerID": 0, "hostID": UID, "size": 1 }]);
        linux["gidMappings"] = json!([{ "containerID": 0, "hostID": UID, "size": 1 }]);
        linux["namespaces"] = json!([
            { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "user" }, { "type": "network" },
            { "type": "cgroup" }
        ]);
        linux.as_object_mut().expect("an object").remove("resources");
        // Group 5 of the terminals is not one of the user's.
        c["mounts"][2]["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
    });
    for path in [container.dir(), container.binary(), &container.bundle()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("let the user in");
    }
    chown(container.state_dir(), Some(UID), Some(UID)).expect("give the state directory to the user");
    container
}

/// `args` of the runtime as the user, from within `cgroup` if there is one.
fn as_user(container: &Container, cgroup: Option<&Path>, args: &[&str]) -> Done {
    let inner = container.command(args);
    let mut command = Command::new("sh");
    let join = cgroup.map_or_else(String::new, |dir| format!("echo $$ > {}/cgroup.procs && ", dir.display()));
    let id = UID.to_string();
    command.args(["-c", &format!("{join}exec setpriv --reuid {id} --regid {id} --clear-groups -- \"$@\""), "sh"]);
    command.arg(inner.get_program()).args(inner.get_args()).env_remove("XDG_RUNTIME_DIR");
    command.current_dir(container.dir());
    container.execute(command)
}

fn run(container: &Container, cgroup: Option<&Path>) -> Done {
    container.write_config();
    as_user(container, cgroup, &["run", "--bundle", &container.bundle().display().to_string(), container.id()])
}

/// A cgroup of v2 that belongs to the user, with a leaf for what starts the runtime. Removed on drop.
struct Delegated(PathBuf);

impl Delegated {
    fn new() -> Self {
        let dir = Path::new("/sys/fs/cgroup").join(format!("towline-delegated-{}", std::process::id()));
        fs::create_dir(&dir).expect("make a cgroup");
        let delegated = Self(dir);
        fs::create_dir(delegated.leaf()).expect("make a cgroup");
        for dir in [delegated.0.clone(), delegated.leaf()] {
            for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(dir.join(file), Some(UID), Some(UID)).expect("delegate a cgroup");
            }
        }
        delegated
    }

    fn leaf(&self) -> PathBuf {
        self.0.join("leaf")
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for dir in [self.leaf(), self.0.clone()] {
            fs::remove_dir(&dir).unwrap_or_else(|error| eprintln!("removing {}: {error}", dir.display()));
        }
    }
}

#[test]
fn a_user_needs_no_cgroup_but_for_limits() {
    if !root_or_skip("a_user_needs_no_cgroup_but_for_limits") {
        return;
    }
    let plain = of_user("id -u; cat /proc/self/setgroups; touch /sys/fs/cgroup/*/x 2>/dev/null; echo $?");
    let done = run(&plain, None).success();
    assert_eq!((done.text(), done.stderr.as_str()), ("0\ndeny\n1", ""), "{done:?}");
    assert_eq!(plain.leftovers(), Vec::<String>::new());

    let limited = of_user("true").with(|c| c["linux"]["resources"] = json!({ "pids": { "limit": 50 } }));
    let done = run(&limited, None).failure();
    assert!(done.stderr.contains("cgroup"), "{done:?}");
    assert_eq!(limited.leftovers(), Vec::<String>::new());
}

#[test]
fn v2_a_user_with_a_delegated_cgroup_has_limits() {
    let test = "v2_a_user_with_a_delegated_cgroup_has_limits";
    if !root_or_skip(test) {
        return;
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        println!("SKIP {test}: this host has v1 hierarchies; cases_on_pure_cgroup_v2 runs it in the test machine");
        return;
    }
    let delegated = Delegated::new();
    let name = delegated.0.file_name().expect("a name").to_string_lossy().into_owned();
    let script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max";
    let container = of_user(script).with(|c| {
        c["linux"]["resources"] = json!({ "pids": { "limit": 50 }, "memory": { "limit": 33_554_432 } });
        c["linux"]["cgroupsPath"] = json!(format!("/{name}/container"));
    });
    let done = run(&container, Some(&delegated.leaf())).success();
    assert_eq!((done.text(), done.stderr.as_str()), ("0::/\n50\n33554432", ""), "{done:?}");
    assert_eq!(container.leftovers(), Vec::<String>::new());
    // crun and runc say the same in other words.
    if container.subject() == Subject::Towline {
        assert!(!delegated.0.join("container").exists(), "the container's cgroup is still there");
    }
}
