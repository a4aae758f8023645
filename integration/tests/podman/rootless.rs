//! An unprivileged user: the runtime alone, and podman, which is root in a user namespace of its own and starts the runtime there.
//!
//! The user exists only in a mount namespace with another /etc, with 65536 subordinate ids.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use towline_integration::bundle::{Subject, config};
use towline_integration::process::{Finished, run};

use super::rig::{PATIENCE, Podman, command, inside, text, with_etc};

const UID: u32 = 12345;

/// The user's home, XDG_RUNTIME_DIR and copy of the runtime, beside the installation of the rig.
struct User<'a> {
    podman: &'a Podman,
    runtime: PathBuf,
    etc: PathBuf,
}

impl<'a> User<'a> {
    /// `None`, after saying so, where newuidmap is missing.
    fn new(test: &str, podman: &'a Podman) -> Option<Self> {
        if Command::new("newuidmap").output().is_err() {
            println!("SKIP {test}: there is no newuidmap");
            return None;
        }
        let name = PathBuf::from(podman.runtime());
        let runtime = podman.path(name.file_name().and_then(|name| name.to_str()).expect("the runtime's name"));
        fs::copy(podman.runtime(), &runtime).expect("copy the runtime to where the user may execute it");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(podman.path("."), open).expect("let the user in");
        for folder in ["home", "xdg"] {
            fs::create_dir(podman.path(folder)).expect("make a directory of the user");
            chown(podman.path(folder), Some(UID), Some(UID)).expect("give it to the user");
        }
        fs::write(podman.path("user-storage.conf"), "[storage]\ndriver = \"vfs\"\n").expect("write storage.conf");
        let etc = podman.copy_etc("etc");
        let append = |file: &str, line: &str| {
            let old = fs::read_to_string(etc.join(file)).expect("read the copy");
            fs::write(etc.join(file), old + line + "\n").expect("write the copy");
        };
        append("passwd", &format!("tester:x:{UID}:{UID}::/:/bin/sh"));
        append("group", &format!("tester:x:{UID}:"));
        for file in ["subuid", "subgid"] {
            fs::write(etc.join(file), "tester:300000:65536\n").expect("write the copy");
        }
        Some(Self { podman, runtime, etc })
    }

    /// Runs a program as the user.
    fn run(&self, inner: &Command) -> Finished {
        let id = UID.to_string();
        let drop = inside(&command("setpriv", &["--reuid", &id, "--regid", &id, "--clear-groups", "--"]), inner);
        let mut command = with_etc(&self.etc, &drop);
        command.env("HOME", self.podman.path("home")).env("XDG_RUNTIME_DIR", self.podman.path("xdg")).env_remove("USER");
        command.current_dir(self.podman.path("home"));
        run(command, PATIENCE)
    }

    /// The runtime with arguments.
    fn oci(&self, args: &[&str]) -> Finished {
        self.run(&command(&text(&self.runtime), args))
    }

    /// podman with arguments; its storage is the user's.
    fn podman(&self, args: &[&str]) -> Finished {
        let mut inner = Command::new("podman");
        inner
            .env("CONTAINERS_CONF", self.podman.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.podman.path("user-storage.conf"));
        inner.env("CONTAINERS_REGISTRIES_CONF", self.podman.path("registries.conf"));
        inner.args(["--storage-driver", "vfs", "--runtime", &text(&self.runtime)]).args(args);
        self.run(&inner)
    }

    /// A bundle of the user's with a script, changed from what a root's would be to what `spec --rootless` says.
    fn bundle(&self, script: &str, edit: impl FnOnce(&mut Value)) -> String {
        let mut config = config();
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["root"]["path"] = json!(self.podman.path("image"));
        config["root"]["readonly"] = json!(true);
        let linux = &mut config["linux"];
        linux.as_object_mut().expect("an object").remove("resources");
        linux["uidMappings"] = json!([{ "containerID": 0, "hostID": UID, "size": 1 }]);
        linux["gidMappings"] = json!([{ "containerID": 0, "hostID": UID, "size": 1 }]);
        linux["namespaces"] =
            json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "user" }]);
        config["mounts"][2]["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
        config["mounts"][5] = json!({ "destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] });
        edit(&mut config);
        let bundle = tempfile::Builder::new().prefix("b-").tempdir_in(self.podman.path("home")).expect("make a bundle").keep();
        chown(&bundle, Some(UID), Some(UID)).expect("give it to the user");
        fs::write(bundle.join("config.json"), config.to_string()).expect("write config.json");
        text(&bundle)
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        for id in ["r", "f", "c"] {
            // What a failed test may have left; with --force an absent one is fine.
            let done = self.oci(&["delete", "--force", id]);
            if !done.status.success() {
                eprintln!("{}: {}", done.what, done.stderr);
            }
        }
        if !self.podman.path("xdg/libpod/tmp/pause.pid").exists() {
            return;
        }
        // The second ends the process that keeps podman's user namespace.
        for args in [&["rm", "--all", "--force", "--time", "0"][..], &["system", "migrate"]] {
            let done = self.podman(args);
            if !done.status.success() {
                eprintln!("{}: {}", done.what, done.stderr);
            }
        }
    }
}

/// A user's own id as root, and subordinate ids beside it.
fn many_ids(config: &mut Value) {
    for field in ["uidMappings", "gidMappings"] {
        config["linux"][field] = json!([
            { "containerID": 0, "hostID": UID, "size": 1 }, { "containerID": 1, "hostID": 300_000, "size": 65536 }
        ]);
    }
}

#[test]
fn the_runtime_serves_a_user() {
    let test = "the_runtime_serves_a_user";
    let Some(podman) = Podman::new(test) else { return };
    let Some(user) = User::new(test, &podman) else { return };
    let ids = "id -u; tr -s ' ' < /proc/self/uid_map; cat /proc/self/setgroups; echo x > /dev/null && echo null";
    let cgroup = "for d in /sys/fs/cgroup/*/; do touch ${d}x 2>/dev/null && echo $d; done; ls -d /sys/kernel";
    for (name, script, edit, wanted) in [
        ("one id", ids, (|_| {}) as fn(&mut Value), "0\n 0 12345 1\ndeny\nnull"),
        ("many ids", ids, many_ids, "0\n 0 12345 1\n 1 300000 65536\nallow\nnull"),
        (
            "another user",
            "id -u; id -g; touch /dev/shm/x; stat -c %u /dev/shm/x",
            |config| {
                many_ids(config);
                config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            },
            "1000\n1000\n1000",
        ),
        ("the host's cgroups are not writable", cgroup, |_| {}, "/sys/kernel"),
        (
            "a network of its own, so a sysfs of its own",
            "ls /sys/class/net",
            |config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
                namespaces.push(json!({ "type": "network" }));
                config["mounts"][5] = json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] });
            },
            "lo",
        ),
    ] {
        let done = user.oci(&["run", "--bundle", &user.bundle(script, edit), "r"]);
        assert_eq!((done.code(), done.stdout.trim()), (Some(0), wanted.trim()), "{name}: {done:?}");
        assert_eq!(done.stderr, "", "{name}");
    }
    // Only the owner of a pid namespace may mount its procfs: without one of its own the container gets the host's (runc fails).
    let host_pids = user.bundle("readlink /proc/self/ns/pid; test -d /proc/$$ && echo proc", |config| {
        config["linux"]["namespaces"].as_array_mut().expect("a list").remove(0);
        config["linux"].as_object_mut().expect("an object").remove("readonlyPaths");
    });
    if podman.subject() == Subject::Towline {
        let own = fs::read_link("/proc/self/ns/pid").expect("a namespace");
        let done = user.oci(&["run", "--bundle", &host_pids, "f"]);
        assert_eq!((done.code(), done.stdout), (Some(0), format!("{}\nproc\n", text(&own))), "{}", done.stderr);
    }
    let foreign = user.bundle("true", |config| config["linux"]["uidMappings"][0]["hostID"] = json!(0));
    let done = user.oci(&["run", "--bundle", &foreign, "f"]);
    // runc stumbles earlier, over the pipes it wants to give to the host's root.
    let why = if podman.subject() == Subject::Runc { "not permitted" } else { "newuidmap" };
    assert!(done.code() != Some(0) && done.stderr.contains(why), "{done:?}");
}

#[test]
fn containers_of_a_user_live_in_the_users_directory() {
    let test = "containers_of_a_user_live_in_the_users_directory";
    let Some(podman) = Podman::new(test) else { return };
    let Some(user) = User::new(test, &podman) else { return };
    let bundle = user.bundle("trap 'exit 3' TERM; while :; do sleep 0.1; done", many_ids);
    // A pipe that the container keeps would make its caller wait.
    let script = format!("\"$0\" create --bundle {bundle} c < /dev/null > /dev/null 2>&1");
    user.run(&command("sh", &["-c", &script, &text(&user.runtime)])).success();
    let state = user.oci(&["state", "c"]).success();
    assert_eq!(serde_json::from_str::<Value>(&state.stdout).expect("JSON")["status"], "created");
    let name = user.runtime.file_name().expect("a name");
    assert!(podman.path("xdg").join(name).join("c").exists(), "the state is not below XDG_RUNTIME_DIR");
    user.oci(&["start", "c"]).success();
    let done = user.oci(&["exec", "c", "sh", "-c", "id -u; cat /proc/1/comm; exit 4"]);
    assert_eq!((done.code(), done.stdout.as_str()), (Some(4), "0\nsh\n"), "{done:?}");
    let done = user.oci(&["exec", "--user", "1000:1000", "c", "id", "-u"]);
    assert_eq!(done.success().stdout, "1000\n");
    user.oci(&["kill", "c", "KILL"]).success();
    towline_integration::process::wait_until("the end of the container", PATIENCE, || {
        user.oci(&["state", "c"]).stdout.contains("stopped")
    });
    user.oci(&["delete", "c"]).success();
    assert!(!podman.path("xdg").join(name).join("c").exists(), "the state is still there");
}

#[test]
fn podman_of_a_user_works() {
    let test = "podman_of_a_user_works";
    let Some(podman) = Podman::new(test) else { return };
    let Some(user) = User::new(test, &podman) else { return };
    fs::set_permissions(podman.path("image.tar"), fs::Permissions::from_mode(0o644)).expect("let the user read the image");
    let archive = text(&podman.path("image.tar"));
    user.podman(&["import", "--change", "ENV PATH=/bin", &archive, "localhost/box:latest"]).success();
    for (options, script, code, wanted) in [
        (&[][..], "id -u; stat -c %u /etc; touch /sys/fs/cgroup/*/x 2>/dev/null; echo $?; exit 7", 7, "0\n0\n1\n"),
        (&["--userns=keep-id"], "id -u", 0, "12345\n"),
        (&["--userns=nomap"], "tr -s ' ' < /proc/self/uid_map", 0, " 0 1 65536\n"),
        (&["--user=user"], "id -u; id -g", 0, "1000\n1000\n"),
        (&["--privileged"], "mount -t tmpfs t /data && echo mounted", 0, "mounted\n"),
        (&["--network=host"], "test -d /sys/class/net/lo && echo lo", 0, "lo\n"),
        (&["--read-only", "--tmpfs=/t:size=1m"], "touch /x 2>/dev/null; echo $?; touch /t/x; echo $?", 0, "1\n0\n"),
    ] {
        let mut args = vec!["run", "--rm"];
        args.extend(options);
        if !options.iter().any(|option| option.starts_with("--network")) {
            args.push("--network=none");
        }
        args.extend(["localhost/box", "sh", "-c", script]);
        let done = user.podman(&args);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(code), wanted), "{done:?}");
    }
    let done = user.podman(&["run", "--rm", "--network=none", "localhost/box", "no-such-program"]);
    assert!(done.code() == Some(127) && done.stderr.contains("executable file not found"), "{done:?}");

    let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done";
    user.podman(&["run", "--detach", "--name=d", "--network=none", "localhost/box", "sh", "-c", script]).success();
    towline_integration::process::wait_until("the container's log", PATIENCE, || {
        user.podman(&["logs", "d"]).stdout.contains("up")
    });
    let done = user.podman(&["exec", "d", "sh", "-c", "cat /proc/1/comm; exit 4"]);
    assert_eq!((done.code(), done.stdout.as_str()), (Some(4), "sh\n"), "{done:?}");
    user.podman(&["stop", "--time=20", "d"]).success();
    assert_eq!(user.podman(&["inspect", "--format", "{{.State.ExitCode}}", "d"]).success().stdout, "3\n");
    user.podman(&["rm", "d"]).success();
}
