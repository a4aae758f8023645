//! Hosts that lack something: space, /dev/fuse, privileges.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use towline_integration::images::{self, Layout};
use towline_integration::process::run;
use towline_integration::towline::{PATIENCE, Towline, bin_dir};

use crate::failure::{is_one_clear_line, next_run_works};

/// A small ext4 file system, mounted until dropped.
struct Disk {
    mount: PathBuf,
}

impl Disk {
    fn mount(image: &Path, mount: &Path, megabytes: u64) -> Self {
        fs::File::create(image).unwrap().set_len(megabytes << 20).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0"]).arg(image);
        run(mkfs, PATIENCE).success();
        let mut loop_mount = Command::new("mount");
        loop_mount.args(["-o", "loop"]).arg(image).arg(mount);
        run(loop_mount, PATIENCE).success();
        Self { mount: mount.to_owned() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.mount, MntFlags::MNT_DETACH).expect("unmount the small disk");
    }
}

#[test]
fn a_full_disk() {
    if !images::available("hosts::a_full_disk") {
        return;
    }
    let towline = Towline::new();
    // The image's files are some 24 MB.
    let disk = Disk::mount(&towline.dir().join("disk.ext4"), &towline.root(), 16);
    let image = Layout::built("small").reference("zstd");
    let done = towline.run(&["images", "pull", &image]);
    is_one_clear_line("full disk", &done, &["no space left"]);
    towline.run(&["images", "ls"]).success();
    // It may not write there any more when the disk goes.
    if !towline.daemons().is_empty() {
        towline.kill_daemon();
    }
    drop(disk);
    next_run_works("a full disk", &towline);
}

/// Runs `towline` in a mount namespace of its own after `prepare`, a shell script.
fn run_after(towline: &Towline, prepare: &str, args: &[&str]) -> towline_integration::process::Finished {
    let inner = towline.command(args);
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-ec", &format!("{prepare}\nexec \"$@\""), "sh"]);
    outer.arg(inner.get_program()).args(inner.get_args());
    outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(outer, PATIENCE)
}

#[test]
fn a_host_without_fuse() {
    if !images::available("hosts::a_host_without_fuse") {
        return;
    }
    let towline = Towline::new();
    let image = Layout::built("small").reference("zstd");
    // A /dev of the nodes that programs need, and no more.
    let dev = towline.dir().join("dev");
    fs::create_dir(&dev).unwrap();
    let prepare = format!(
        "mount -t tmpfs dev {dev}; cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty {dev}/; \
         mkdir {dev}/pts {dev}/shm; mount --bind /dev/pts {dev}/pts; ln -s pts/ptmx {dev}/ptmx; mount --move {dev} /dev",
        dev = dev.display()
    );
    let done = run_after(&towline, &prepare, &["run", "--rm", &image, "true"]);
    is_one_clear_line("no /dev/fuse", &done, &["/dev/fuse"]);
    next_run_works("a host without FUSE", &towline);
}

#[test]
#[allow(clippy::print_stdout, reason = "the summary of `make test` counts these lines")]
fn a_host_without_overlayfs() {
    // No name space hides a file system type, and no module can be taken away from a kernel that has it built in.
    println!("SKIP hosts::a_host_without_overlayfs: a kernel with overlayfs cannot be told to forget it");
}

#[test]
fn a_user_who_is_not_root() {
    if !images::available("hosts::a_user_who_is_not_root") {
        return;
    }
    let towline = Towline::new();
    // Somewhere that user can reach: the target directory may not be.
    let dir = tempfile::Builder::new().prefix("towline-bin-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for binary in ["towline", "towlined", "towline-oci"] {
        fs::copy(bin_dir().join(binary), dir.path().join(binary)).unwrap();
    }
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(dir.path().join("towline"));
    user.args(["run", "--rm", &Layout::built("small").reference("zstd"), "true"]);
    user.env("TOWLINE_ROOT", towline.root()).env("TOWLINE_STATE", towline.state());
    is_one_clear_line("not root", &run(user, PATIENCE), &["root"]);
    next_run_works("a user who is not root", &towline);
    // Roots have setuid programs in them, and images may be private.
    for dir in [towline.root().join("containers"), towline.state().join("containers")] {
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&dir).unwrap());
        assert_eq!(mode & 0o077, 0, "{} is open to other users: {mode:o}", dir.display());
    }
}

#[test]
fn root_without_the_privilege_to_mount() {
    if !images::available("hosts::root_without_the_privilege_to_mount") {
        return;
    }
    let towline = Towline::new();
    let inner = towline.command(&["run", "--rm", &Layout::built("small").reference("zstd"), "true"]);
    let mut weak = Command::new("setpriv");
    weak.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]).arg(inner.get_program()).args(inner.get_args());
    weak.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    is_one_clear_line("no CAP_SYS_ADMIN", &run(weak, PATIENCE), &["not permitted"]);
    if !towline.daemons().is_empty() {
        towline.kill_daemon();
    }
    next_run_works("root without CAP_SYS_ADMIN", &towline);
}
