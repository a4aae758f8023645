//! What is measured and on what: the subjects, two bundles, and one view of the cgroups for all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;
use towline_integration::bundle;

/// The configuration podman generates for a plain `podman run`, with a pids limit.
const PODMAN: &str = include_str!("podman-config.json");

/// A runtime.
pub struct Subject {
    pub name: &'static str,
    pub binary: PathBuf,
}

/// One of the two bundles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `runc spec` without a terminal: 5 namespaces, 7 mounts.
    Spec,
    /// podman's: 10 mounts, 14 capabilities, masked and read-only paths, its seccomp profile, rlimits.
    Podman,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Spec => "spec bundle",
            Self::Podman => "podman's config",
        }
    }
}

/// Everything the measurements share. Dropped, it leaves nothing.
pub struct Bench {
    pub subjects: Vec<Subject>,
    pub floor: PathBuf,
    pub cycle: PathBuf,
    dir: TempDir,
}

impl Bench {
    /// Makes it for the towline-oci at `binary` and the peers that are installed.
    pub fn new(binary: &Path) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the bench needs root");
        let binary = fs::canonicalize(binary).unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let dir = tempfile::Builder::new().prefix("towline-bench-").tempdir().expect("make a directory");
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
        hide_v2_beside_v1();
        let mut subjects: Vec<Subject> = ["runc", "crun", "youki"]
            .into_iter()
            .filter_map(|name| find(name).map(|binary| Subject { name, binary }))
            .filter(|subject| subject.name != "youki" || subject.binary.exists())
            .collect();
        subjects.push(Subject { name: "towline-oci", binary });
        let compile = |name: &str, source: &str| {
            let (from, to) = (dir.path().join(format!("{name}.c")), dir.path().join(name));
            fs::write(&from, source).expect("write a C file");
            let status = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&to).arg(&from).status().expect("start cc");
            assert!(status.success(), "cc {name}.c: {status}");
            to
        };
        let (floor, cycle) = (compile("floor", include_str!("floor.c")), compile("cycle", include_str!("cycle.c")));
        let bench = Self { subjects, floor, cycle, dir };
        fs::create_dir(bench.states()).expect("make a directory");
        mount(Some("state"), &bench.states(), Some("tmpfs"), MsFlags::empty(), Some("mode=0700")).expect("mount a tmpfs");
        for (kind, program) in [(Kind::Spec, "/bin/true"), (Kind::Podman, "/bin/true")] {
            bench.make_bundle(kind, &bench.bundle(kind), &[program]);
            bench.make_bundle(kind, &bench.sleeping_bundle(kind), &["/bin/sleep", "100000"]);
        }
        bench
    }

    /// A directory for files of the bench's own.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The bundle whose program ends at once.
    pub fn bundle(&self, kind: Kind) -> PathBuf {
        self.dir.path().join(if kind == Kind::Spec { "spec" } else { "podman" })
    }

    /// The bundle whose program stays.
    pub fn sleeping_bundle(&self, kind: Kind) -> PathBuf {
        self.dir.path().join(if kind == Kind::Spec { "spec-sleep" } else { "podman-sleep" })
    }

    /// A tmpfs, as /run is one.
    fn states(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A subject's state directory.
    pub fn state(&self, subject: &Subject) -> PathBuf {
        self.states().join(subject.name)
    }

    /// A command of a subject, silent.
    pub fn command(&self, subject: &Subject, args: &[&str]) -> Command {
        let mut command = Command::new(&subject.binary);
        command.arg("--root").arg(self.state(subject)).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts a container that stays.
    pub fn start_sleeper(&self, subject: &Subject, kind: Kind, id: &str) {
        let bundle = self.sleeping_bundle(kind).display().to_string();
        let status = self.command(subject, &["run", "--detach", "--bundle", &bundle, id]).status().expect("start a runtime");
        assert!(status.success(), "{} run --detach {id}: {status}", subject.name);
    }

    /// Takes a container away, whatever it does.
    pub fn delete(&self, subject: &Subject, id: &str) {
        let status = self.command(subject, &["delete", "--force", id]).status().expect("start a runtime");
        assert!(status.success(), "{} delete --force {id}: {status}", subject.name);
    }

    fn make_bundle(&self, kind: Kind, dir: &Path, args: &[&str]) {
        fs::create_dir_all(dir.join("rootfs")).expect("make a bundle");
        bundle::make_root(&dir.join("rootfs"));
        let mut config = match kind {
            Kind::Spec => bundle::config(),
            Kind::Podman => podman_config(dir),
        };
        config["process"]["args"] = json!(args);
        fs::write(dir.join("config.json"), config.to_string()).expect("write config.json");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(cause) = umount2(&self.states(), MntFlags::MNT_DETACH) {
            eprintln!("unmounting {}: {cause}", self.states().display());
        }
    }
}

/// The template with sources of this bundle.
fn podman_config(dir: &Path) -> Value {
    let mut config: Value = serde_json::from_str(PODMAN).expect("the template is JSON");
    let files = dir.join("files");
    fs::create_dir_all(files.join("shm")).expect("make a directory");
    for mount in config["mounts"].as_array_mut().expect("the template has mounts") {
        let Some(name) = mount["source"].as_str().and_then(|source| source.strip_prefix("files/")) else { continue };
        let source = files.join(name);
        if !source.exists() {
            fs::write(&source, "127.0.0.1 localhost\n").expect("write a file to mount");
        }
        mount["source"] = json!(source);
    }
    config
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// crun refuses a host whose v2 mount carries controllers beside v1. All subjects get a mount namespace without that mount.
fn hide_v2_beside_v1() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let of = |kind: &str| -> Vec<String> {
        let lines = mounts.lines().filter(|line| line.contains(&format!(" - {kind} ")));
        lines.filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
    };
    unshare(CloneFlags::CLONE_NEWNS).expect("make a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("make it private");
    if !of("cgroup").is_empty() {
        of("cgroup2").iter().for_each(|mount| umount2(mount.as_str(), MntFlags::MNT_DETACH).expect("hide the v2 mount"));
    }
}
