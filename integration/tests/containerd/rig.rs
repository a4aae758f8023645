//! A containerd of a test's own: root, state, socket and the runtime's state in a temporary directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;
use towline_integration::bundle::{Subject, cgroups_named, root_or_skip};
use towline_integration::process::{Finished, Job, run, wait_until};

/// Long enough for any command on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A containerd, and the root file system its containers have. Dropping it ends its tasks and itself.
pub struct Containerd {
    daemon: Option<Job>,
    dir: TempDir,
    runtime: String,
}

impl Containerd {
    /// Starts it; `None`, after saying so, where it cannot be.
    pub fn new(test: &str) -> Option<Self> {
        if !root_or_skip(test) {
            return None;
        }
        if Command::new("containerd").arg("--version").output().is_err() {
            println!("SKIP {test}: there is no containerd");
            return None;
        }
        let subject = Subject::from_env();
        if subject == Subject::Crun {
            println!("SKIP {test}: crun refuses a hybrid cgroup host; runc is the reference");
            return None;
        }
        let runtime = text(&subject.binary().canonicalize().expect("the runtime's path"));
        let dir = tempfile::Builder::new().prefix("towline-ctd-").tempdir().expect("make a directory");
        let mut containerd = Self { daemon: None, dir, runtime };
        containerd.make_root();
        containerd.start();
        Some(containerd)
    }

    fn make_root(&self) {
        let root = self.path("rootfs");
        for folder in ["bin", "etc", "dev", "proc", "sys", "tmp", "run", "data"] {
            fs::create_dir_all(root.join(folder)).expect("make a directory of the root");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy the statically linked busybox");
        for applet in ["sh", "echo", "cat", "sleep", "grep", "id", "head", "yes", "true", "pwd", "touch", "stat", "cut"] {
            symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
    }

    fn start(&mut self) {
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ntemp = \"{0}/temp\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = \"{0}/socket\"\n",
            text(self.dir.path())
        );
        fs::write(self.path("config.toml"), config).expect("write config.toml");
        let mut command = Command::new("containerd");
        command.args(["--config", &text(&self.path("config.toml"))]);
        self.daemon = Some(Job::start(command));
        wait_until("containerd's answer", PATIENCE, || self.ctr(&["version"]).status.success());
    }

    /// A path in the installation's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ctr` with arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["--address", &text(&self.path("socket"))]).args(args);
        command
    }

    /// Runs `ctr`.
    pub fn ctr(&self, args: &[&str]) -> Finished {
        run(self.command(args), PATIENCE)
    }

    /// Runs `ctr`, which must succeed; what it printed, without white space around it.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.ctr(args).success().stdout.trim().to_owned()
    }

    /// `ctr run` with `options` for a new container `id`.
    pub fn run(&self, options: &[&str], id: &str, program: &[&str]) -> Finished {
        let (oci, root) = (text(&self.path("oci")), text(&self.path("rootfs")));
        let mut args = vec!["run", "--runc-binary", &self.runtime, "--runc-root", &oci, "--env", "PATH=/bin", "--rootfs"];
        args.extend(options);
        args.extend([root.as_str(), id]);
        args.extend(program);
        self.ctr(&args)
    }

    /// The status of a task as `ctr task ls` has it; empty when there is none.
    pub fn status(&self, id: &str) -> String {
        let list = self.ok(&["task", "ls"]);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned()
    }

    /// Waits for a status.
    #[track_caller]
    pub fn wait_status(&self, id: &str, wanted: &str) {
        wait_until(&format!("{id} to be {wanted:?}"), PATIENCE, || self.status(id) == wanted);
    }

    /// Waits until nothing of a container is left: state, cgroups, mounts, processes.
    #[track_caller]
    pub fn assert_gone(&self, id: &str) {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let mut found: Vec<String> = vec![];
            found.extend(cgroups_named(id).iter().map(|dir| text(dir)));
            found.extend(mounts().into_iter().filter(|mount| mount.contains(id)));
            let state = self.path("oci").join("default").join(id);
            found.extend(state.exists().then(|| text(&state)));
            let bundle = self.path("state/io.containerd.runtime.v2.task/default").join(id);
            found.extend(bundle.exists().then(|| text(&bundle)));
            found.extend(processes_with(&format!("-id {id} ")).into_iter().map(|pid| format!("shim {pid}")));
            if found.is_empty() {
                return;
            }
            assert!(std::time::Instant::now() < end, "left of {id}: {found:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A test may have failed anywhere; what does not exist any more needs no removal.
        let list = run(self.command(&["container", "ls", "--quiet"]), PATIENCE);
        for id in list.stdout.split_whitespace() {
            for args in [&["task", "rm", "--force", id][..], &["container", "rm", id]] {
                drop(run(self.command(args), PATIENCE));
            }
        }
        drop(self.daemon.take());
        let own = text(self.dir.path());
        for mount in mounts().iter().rev().filter(|mount| mount.starts_with(&own)) {
            unmount(mount.as_str(), UnmountFlags::DETACH).unwrap_or_else(|error| eprintln!("unmounting {mount}: {error}"));
        }
    }
}

/// A path as text.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Pids of processes whose command line contains `part`.
pub fn processes_with(part: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let fits = String::from_utf8_lossy(&line).replace('\0', " ").contains(part);
        fits.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    });
    pids.collect()
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}
