//! A user without root, with podman, a store and a layer store of their own.
//!
//! The user exists only in a mount namespace with another /etc, with subordinate ids, where every user may open /dev/fuse.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use towline_integration::images;
use towline_integration::process::{Job, run};
use towline_integration::registry::Registry;
use towline_integration::towline::{PATIENCE, bin_dir};

const UID: u32 = 12346;

#[test]
fn a_user_without_root_starts_an_image_lazily() {
    const TEST: &str = "rootless::a_user_without_root_starts_an_image_lazily";
    if !images::available(TEST) {
        return;
    }
    if ["podman", "newuidmap", "fusermount3"].iter().any(|tool| Command::new(tool).arg("--version").output().is_err()) {
        println!("SKIP {TEST}: podman, newuidmap or fusermount3 is missing");
        return;
    }
    let registry = Registry::start();
    let dir = tempfile::Builder::new().prefix("towline-layers-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let [bin, etc, home, xdg] = ["bin", "etc", "home", "xdg"].map(|name| dir.path().join(name));
    for made in [&bin, &etc, &home, &xdg] {
        fs::create_dir(made).unwrap();
    }
    // The build's directory may be out of a user's reach.
    for program in ["towline", "towlined", "towline-oci"] {
        fs::copy(bin_dir().join(program), bin.join(program)).unwrap();
    }
    [&home, &xdg].iter().for_each(|own| chown(own, Some(UID), Some(UID)).unwrap());
    let mut copy = Command::new("cp");
    copy.args(["-a", "/etc/."]).arg(&etc);
    run(copy, PATIENCE).success();
    let append = |file: &str, line: String| {
        let old = fs::read_to_string(etc.join(file)).unwrap();
        fs::write(etc.join(file), format!("{old}{line}\n")).unwrap();
    };
    append("passwd", format!("layers:x:{UID}:{UID}::{}:/bin/sh", home.display()));
    append("group", format!("layers:x:{UID}:"));
    ["subuid", "subgid"].iter().for_each(|file| fs::write(etc.join(file), "layers:400000:65536\n").unwrap());
    let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
                [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
    fs::write(dir.path().join("containers.conf"), conf).unwrap();
    let registries = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.address());
    fs::write(dir.path().join("registries.conf"), registries).unwrap();
    let storage = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{1}/run\"\n[storage.options]\n\
         additionallayerstores = [\"{0}/.local/share/towline/layers:ref\"]\n",
        home.display(),
        xdg.display()
    );
    fs::write(dir.path().join("storage.conf"), storage).unwrap();

    let namespace = format!(
        "set -e; mount --bind {0}/etc /etc; mknod -m 0666 {0}/fuse c 10 229; mount --bind {0}/fuse /dev/fuse; exec setpriv --reuid {UID} \
         --regid {UID} --clear-groups sh {0}/script",
        dir.path().display()
    );
    let image = registry.reference("small:zstd");
    // All that the user has started goes with the pid namespace.
    let script = format!(
        "set -eu; cd {home}; towline system layers --background > /dev/null
         podman() {{ command podman --runtime {bin}/towline-oci \"$@\"; }}
         podman run --rm --network none {image} /bin/busybox sh -c 'id -u; stat -c %u /bin/busybox; echo x > /data/new; echo started'
         podman run --name one --network none --user 5:6 {image} /bin/busybox id
         podman commit -q one localhost/two:1 > /dev/null
         podman run --rm --network none localhost/two:1 /bin/busybox echo on top
         podman info --format 'graph {{{{.Store.GraphRoot}}}}'
         layer=$(ls -d {home}/graph/overlay/*/additionallayer {home}/.local/share/containers/storage/overlay/*/additionallayer 2>/dev/null | head -n 1)
         readlink $(dirname $layer)/diff; podman unshare stat -c 'owner %u %g' $(dirname $layer)/diff/bin
         podman rm -f one > /dev/null; podman rmi --all --force > /dev/null
         towline images rm {image}
         echo end of script",
        home = home.display(),
        bin = bin.display()
    );
    fs::write(dir.path().join("script"), script).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        &namespace,
    ]);
    command
        .env("HOME", &home)
        .env("XDG_RUNTIME_DIR", &xdg)
        .env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display()));
    command.env("TOWLINE_FETCH", "readahead=0,read-window=0,ahead=0,background=off").env_remove("USER").env_remove("LOGNAME");
    for (variable, file) in [
        ("CONTAINERS_CONF", "containers.conf"),
        ("CONTAINERS_STORAGE_CONF", "storage.conf"),
        ("CONTAINERS_REGISTRIES_CONF", "registries.conf"),
    ] {
        command.env(variable, dir.path().join(file));
    }
    let done = Job::start(command).wait(PATIENCE);
    let log = fs::read_to_string(home.join(".local/share/towline/state/layers.log"))
        .or_else(|_| fs::read_to_string(xdg.join("towline/layers.log")))
        .unwrap_or_default();
    clear(dir.path());
    let done = done.success();
    let wanted = [
        "0\n0\nstarted\n",
        "uid=5(5) gid=6(6)",
        "on top\n",
        ".local/share/towline/layers/",
        "owner 0 0",
        "removed",
        "end of script",
    ];
    for part in wanted {
        assert!(done.stdout.contains(part), "no {part:?} in\n{}\n{}\n{log}", done.stdout, done.stderr);
    }
}

/// podman's storage has files of the user's subordinate ids, in directories that only their owner may enter.
fn clear(dir: &Path) {
    let mut remove = Command::new("rm");
    remove.args(["-rf", "--one-file-system"]).arg(dir.join("home/graph"));
    run(remove, PATIENCE).success();
}
