//! `towline images mount`: an image to look into, by the kernel and from user space, also for users other than root.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::{Job, run, wait_until};
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;

/// What `find` and `sha256sum` say of a mounted tree.
fn listing(dir: &Path) -> String {
    let script = "find . -printf '%p %y %m %U %G %s %T@ %l\\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(dir);
    run(command, PATIENCE).success().stdout
}

#[test]
fn the_kernel_and_user_space_show_the_same_image() {
    if !images::available("mount::the_kernel_and_user_space_show_the_same_image") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let towline = &rig.towline;
    let image = rig.image("small:zstd");
    let dirs = ["fuse", "kernel"].map(|by| (by, towline.dir().join(by)));
    for (by, dir) in &dirs {
        fs::create_dir(dir).unwrap();
        towline.run(&["images", "mount", "--by", by, &image, dir.to_str().unwrap()]).success();
    }
    let listed = towline.run(&["images", "mount"]).success().stdout;
    assert!(dirs.iter().all(|(_, dir)| listed.contains(dir.to_str().unwrap())), "{listed}");
    let [by_fuse, by_kernel] = [&dirs[0].1, &dirs[1].1].map(|dir| listing(dir));
    assert_eq!(by_fuse, by_kernel);
    assert!(by_fuse.lines().count() > 500);

    let refused = towline.run(&["images", "rm", &image]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("mount"), "{}", refused.stderr);
    // Killed while it serves a tree: that mount is dead, and the next daemon brings it back.
    towline.kill_daemon();
    assert_eq!(listing(&dirs[1].1), by_kernel, "what the kernel serves needs no daemon once it is local");
    towline.run(&["images", "pull", "--lazy", &image]).success();
    assert_eq!(listing(&dirs[0].1), by_fuse);

    let dirs = dirs.map(|(_, dir)| dir.to_str().unwrap().to_owned());
    towline.run(&["images", "unmount", &dirs[0], &dirs[1]]).success();
    assert!(towline.run(&["images", "mount"]).success().stdout.lines().count() == 1, "only the head of the table is left");
    let again = towline.run(&["images", "unmount", &dirs[0]]);
    assert!(again.code() != Some(0) && again.stderr.contains("has mounted nothing there"), "{}", again.stderr);
    towline.run(&["images", "rm", &image]).success();
}

#[test]
fn a_user_who_is_not_root_mounts_and_unmounts() {
    const TEST: &str = "mount::a_user_who_is_not_root_mounts_and_unmounts";
    /// Debian's `nobody`.
    const UID: u32 = 65534;
    if !images::available(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let home = dir.path().join("home");
    let target = home.join("mnt");
    for dir in [&home, &target] {
        fs::create_dir(dir).unwrap();
        chown(dir, Some(UID), Some(UID)).unwrap();
    }
    // Most systems let every user open the device; where this one does not, a mount namespace of the test's does.
    let script = format!(
        "set -e; mknod -m 0666 {0}/fuse c 10 229; mount --bind {0}/fuse /dev/fuse; echo ready; exec sleep 600",
        dir.path().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let mut namespace = Job::start(command);
    namespace.wait_for_output("ready", PATIENCE);
    let as_user = |program: &Path| {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &namespace.pid().to_string(), "setpriv", "--reuid", "65534", "--regid", "65534"]);
        command.arg("--clear-groups").arg(program).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home).current_dir("/");
        command
    };
    // The build's directory may be out of a user's reach.
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["towline", "towlined"] {
        fs::copy(towline_integration::towline::bin_dir().join(program), bin.join(program)).unwrap();
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let image = rig.image("small:zstd");
    let towline = |args: &[&str]| {
        let mut command = as_user(&bin.join("towline"));
        command.args(args);
        run(command, PATIENCE)
    };
    let at = target.to_str().unwrap();
    towline(&["images", "mount", &image, at]).success();
    // Only the user who mounted it may look into it, root included.
    let mut look = as_user(Path::new("cat"));
    look.arg(target.join("etc/os-release"));
    assert!(run(look, PATIENCE).success().stdout.contains("towline-small"));
    assert!(towline(&["info"]).success().stdout.contains("whole trees by FUSE, since"));
    let refused = towline(&["run", &image, "/bin/true"]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("root"), "{}", refused.stderr);
    towline(&["images", "unmount", at]).success();
    let socket = home.join(".local/share/towline/state/towlined.sock");
    wait_until("the user's daemon to leave", PATIENCE, || !socket.exists());
}
