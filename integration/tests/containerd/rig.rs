//! A containerd of a test's own: root, state, socket and the runtime's state in a temporary directory; its containers run through
//! Debian's shim for runc with the runtime under test, or through our own shim.

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

/// The shim under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// containerd's own, with the runtime under test in place of runc.
    Runc,
    /// Ours.
    Towline,
}

/// What our shim keeps the states of containers in.
const TOWLINE_STATES: &str = "/run/containerd/towline/default";

/// A containerd, and the root file system its containers have. Dropping it ends its tasks and itself.
pub struct Containerd {
    daemon: Option<Job>,
    dir: TempDir,
    shim: Shim,
    runtime: String,
}

impl Containerd {
    /// Starts one for each shim; none, after saying so, where it cannot be. On runc as the reference there is only its own shim.
    pub fn each(test: &str) -> impl Iterator<Item = Self> {
        let ours = Subject::from_env() == Subject::Towline;
        [Shim::Runc, Shim::Towline]
            .into_iter()
            .filter(move |shim| ours || *shim == Shim::Runc)
            .map_while(move |shim| Self::new(test, shim))
    }

    /// Starts it; `None`, after saying so, where it cannot be.
    pub fn new(test: &str, shim: Shim) -> Option<Self> {
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
        if shim == Shim::Towline && subject != Subject::Towline {
            println!("SKIP {test}: {subject:?} is a reference for shims of others only");
            return None;
        }
        let oci = subject.binary().canonicalize().expect("the runtime's path");
        let runtime = match shim {
            Shim::Runc => text(&oci),
            Shim::Towline => text(&oci.with_file_name("containerd-shim-towline-v2")),
        };
        assert!(Path::new(&runtime).exists(), "{runtime} is missing: build it (cargo build --bins) or set TOWLINE_BIN_DIR");
        let dir = tempfile::Builder::new().prefix("towline-ctd-").tempdir().expect("make a directory");
        let mut containerd = Self { daemon: None, dir, shim, runtime };
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

    /// Kills containerd and starts it again; what its shims do meanwhile is theirs.
    pub fn restart(&mut self) {
        drop(self.daemon.take());
        self.start();
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
        self.ctr(&self.run_line(options, id, program).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The arguments for a run of an image through our shim.
    pub fn image_line(&self, options: &[&str], image: &str, id: &str, program: &[&str]) -> Vec<String> {
        let mut args = vec!["run", "--runtime", &self.runtime];
        args.extend(options);
        args.extend([image, id]);
        args.extend(program);
        args.into_iter().map(str::to_owned).collect()
    }

    /// The arguments for that.
    pub fn run_line(&self, options: &[&str], id: &str, program: &[&str]) -> Vec<String> {
        let (oci, root) = (text(&self.path("oci")), text(&self.path("rootfs")));
        let mut args = match self.shim {
            Shim::Runc => vec!["run", "--runc-binary", &self.runtime, "--runc-root", &oci],
            Shim::Towline => vec!["run", "--runtime", &self.runtime],
        };
        args.extend(["--env", "PATH=/bin", "--rootfs"]);
        args.extend(options);
        args.extend([root.as_str(), id]);
        args.extend(program);
        args.into_iter().map(str::to_owned).collect()
    }

    /// An image in containerd's store with the same root, in the form that `docker save` writes, which needs few digests; its name.
    pub fn image(&self) -> &'static str {
        let image = self.path("image");
        fs::create_dir_all(&image).expect("make an image");
        let tar = |from: &Path, to: &Path| {
            let mut command = Command::new("tar");
            command.arg("-C").arg(from).arg("-cf").arg(to).arg(".");
            run(command, PATIENCE).success();
        };
        tar(&self.path("rootfs"), &image.join("layer.tar"));
        let mut sum = Command::new("sha256sum");
        sum.arg(image.join("layer.tar"));
        let sum = run(sum, PATIENCE).success().stdout;
        let digest = sum.split_whitespace().next().expect("a digest");
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Env\":[\"PATH=/bin\"],\"Cmd\":[\"true\"]}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}}}}"
        );
        fs::write(image.join("config.json"), config).expect("write the config");
        let manifest = "[{\"Config\":\"config.json\",\"RepoTags\":[\"test/busybox:1\"],\"Layers\":[\"layer.tar\"]}]";
        fs::write(image.join("manifest.json"), manifest).expect("write the manifest");
        tar(&image, &self.path("image.tar"));
        self.ok(&["images", "import", "--all-platforms", &text(&self.path("image.tar"))]);
        "docker.io/test/busybox:1"
    }

    /// The pid of the shim of a container; `None` when there is none (any more).
    pub fn shim_pid(&self, id: &str) -> Option<i32> {
        let bundle = text(&self.path("state/io.containerd.runtime.v2.task/default").join(id));
        let file = fs::read_to_string(format!("{bundle}/shim.pid")).ok()?;
        let pid: i32 = file.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
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
        self.wait_for_none(id, || {
            let shims = processes_with(&format!("-id {id} ")).into_iter().map(|pid| format!("shim {pid}"));
            self.left_of(id).into_iter().chain(shims).collect()
        });
    }

    /// The same for a container of a pod, whose shim has others.
    #[track_caller]
    pub fn assert_gone_from_pod(&self, id: &str) {
        self.wait_for_none(id, || self.left_of(id));
    }

    #[track_caller]
    fn wait_for_none(&self, id: &str, left: impl Fn() -> Vec<String>) {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let found = left();
            if found.is_empty() {
                return;
            }
            assert!(std::time::Instant::now() < end, "left of {id}: {found:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left_of(&self, id: &str) -> Vec<String> {
        let mut found: Vec<String> = cgroups_named(id).iter().map(|dir| text(dir)).collect();
        found.extend(mounts().into_iter().filter(|mount| mount.contains(id)));
        let state = match self.shim {
            Shim::Runc => self.path("oci").join("default").join(id),
            Shim::Towline => Path::new(TOWLINE_STATES).join(id),
        };
        let bundle = self.path("state/io.containerd.runtime.v2.task/default").join(id);
        found.extend([state, bundle].iter().filter(|path| path.exists()).map(|path| text(path)));
        found
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
