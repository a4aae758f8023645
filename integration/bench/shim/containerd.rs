//! A containerd with an image, and what is measured on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use towline_integration::process::{Job, run, wait_until};

const PATIENCE: Duration = Duration::from_secs(120);
const IMAGE: &str = "bench/busybox:1";
/// Between two measurements, so that the kernel's work after one does not fall into the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// As Debian has them.
    Runc,
    /// containerd's shim with our runtime.
    RuncShim,
    /// Ours.
    Towline,
}

impl Subject {
    /// The first is what the others are compared with.
    pub const ALL: [Self; 3] = [Self::Runc, Self::RuncShim, Self::Towline];

    /// For the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "containerd's shim, runc",
            Self::RuncShim => "containerd's shim, towline-oci",
            Self::Towline => "our shim, towline-oci",
        }
    }
}

/// The installation.
pub struct Containerd {
    shim: PathBuf,
    /// Before the directory, so that it ends first.
    _daemon: Job,
    dir: TempDir,
}

impl Containerd {
    /// Starts it, with an image of busybox, unpacked.
    pub fn start(shim: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("towline-bench-shim-").tempdir().expect("make a directory");
        let path = dir.path().display();
        let config = format!(
            "version = 2\nroot = \"{path}/root\"\nstate = \"{path}/state\"\ntemp = \"{path}/temp\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = \"{path}/socket\"\n"
        );
        fs::write(dir.path().join("config.toml"), config).expect("write config.toml");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(dir.path().join("config.toml"));
        let containerd = Self { shim: shim.to_owned(), _daemon: Job::start(command), dir };
        wait_until("containerd's answer", PATIENCE, || run(containerd.ctr(&["version"]), PATIENCE).status.success());
        containerd.make_image();
        containerd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.path("socket")).args(args);
        command
    }

    fn ok(&self, args: &[&str]) {
        run(self.ctr(args), PATIENCE).success();
    }

    /// An image in the form that `docker save` writes, which needs no digests.
    fn make_image(&self) {
        let (root, image) = (self.path("image-root"), self.path("image"));
        fs::create_dir_all(root.join("bin")).expect("make a root");
        fs::create_dir_all(&image).expect("make an image");
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy the statically linked busybox");
        for applet in ["sh", "true", "sleep"] {
            symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
        let tar = |from: &Path, to: &Path| {
            let mut command = Command::new("tar");
            command.arg("-C").arg(from).arg("-cf").arg(to).arg(".");
            run(command, PATIENCE).success();
        };
        tar(&root, &image.join("layer.tar"));
        let digest = run(sha256(&image.join("layer.tar")), PATIENCE).success().stdout;
        let digest = digest.split_whitespace().next().expect("a digest");
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Env\":[\"PATH=/bin\"],\"Cmd\":[\"true\"]}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}}}}"
        );
        fs::write(image.join("config.json"), config).expect("write the config");
        let manifest = format!("[{{\"Config\":\"config.json\",\"RepoTags\":[\"{IMAGE}\"],\"Layers\":[\"layer.tar\"]}}]");
        fs::write(image.join("manifest.json"), manifest).expect("write the manifest");
        tar(&image, &self.path("image.tar"));
        self.ok(&["images", "import", "--all-platforms", &self.path("image.tar").display().to_string()]);
    }

    fn run_command(&self, subject: Subject, options: &[&str], id: &str, program: &[&str]) -> Command {
        let mut command = self.ctr(&["run"]);
        match subject {
            Subject::Runc => {}
            Subject::RuncShim => {
                command.arg("--runc-binary").arg(self.shim.with_file_name("towline-oci"));
            }
            Subject::Towline => {
                command.arg("--runtime").arg(&self.shim);
            }
        }
        command.args(options).arg(format!("docker.io/{IMAGE}")).arg(id).args(program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// How long `ctr run` takes, until it has taken the container away.
    pub fn time_run(&self, subject: Subject, id: &str) -> Duration {
        std::thread::sleep(PAUSE);
        let mut command = self.run_command(subject, &["--rm"], id, &["true"]);
        let begin = Instant::now();
        let status = command.status().expect("start ctr");
        let time = begin.elapsed();
        assert!(status.success(), "{command:?}: {status}");
        time
    }

    /// The shim's resident memory in KiB: with one container, and after `execs` further processes.
    pub fn memory(&self, subject: Subject, execs: usize) -> (u64, u64) {
        let id = format!("memory-{}-{}", std::process::id(), subject as u32);
        run(self.run_command(subject, &["--detach"], &id, &["sleep", "100000"]), PATIENCE).success();
        let pid = shim_of(&id);
        let before = resident(&pid);
        for number in 0..execs {
            self.ok(&["task", "exec", "--exec-id", &format!("e{number}"), &id, "true"]);
        }
        let after = resident(&pid);
        self.ok(&["task", "rm", "--force", &id]);
        self.ok(&["container", "rm", &id]);
        (before, after)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Something may have failed anywhere; what does not exist any more needs no removal.
        let list = run(self.ctr(&["container", "ls", "--quiet"]), PATIENCE);
        for id in list.stdout.split_whitespace() {
            for args in [&["task", "rm", "--force", id][..], &["container", "rm", id]] {
                drop(run(self.ctr(args), PATIENCE));
            }
        }
    }
}

fn sha256(file: &Path) -> Command {
    let mut command = Command::new("sha256sum");
    command.arg(file);
    command
}

/// Its command line names the container.
fn shim_of(id: &str) -> String {
    let part = format!("-id {id} ");
    let pids = fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let fits = String::from_utf8_lossy(&line).replace('\0', " ").contains(&part);
        fits.then(|| entry.file_name().into_string().ok()).flatten()
    });
    let pids: Vec<String> = pids.filter(|pid| pid.parse::<u32>().is_ok()).collect();
    assert_eq!(pids.len(), 1, "shims of {id}: {pids:?}");
    pids.into_iter().next().expect("one")
}

fn resident(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the status of a shim");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
