//! A podman of a test's own: storage, state, configuration and events file in a temporary directory, and an image of busybox.
//!
//! The configuration fits hosts without systemd and without CAP_SYS_RESOURCE: the cgroupfs manager, an events file, and resource
//! limits below the host's instead of podman's own, which only a capable root may set.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;
use towline_integration::bundle::{Subject, cgroups_named, root_or_skip};
use towline_integration::process::{Finished, run, wait_until};

/// Long enough for any command on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How many cases run side by side: podman mostly waits.
const WORKERS: usize = 4;

/// One podman and everything it writes. Dropping it removes all containers, mounts and files.
pub struct Podman {
    dir: TempDir,
    subject: Subject,
    runtime: String,
}

impl Podman {
    /// An installation with the image `box`; `None`, after saying so, where it cannot be.
    pub fn new(test: &str) -> Option<Self> {
        if !root_or_skip(test) {
            return None;
        }
        let subject = Subject::from_env();
        if Command::new("podman").arg("--version").output().is_err() {
            println!("SKIP {test}: there is no podman");
            return None;
        }
        if subject == Subject::Crun {
            println!("SKIP {test}: crun refuses a hybrid cgroup host; runc is the reference");
            return None;
        }
        let runtime = subject.binary().canonicalize().expect("the runtime's path").display().to_string();
        let dir = tempfile::Builder::new().prefix("towline-podman-").tempdir().expect("make a directory");
        let podman = Self { dir, subject, runtime };
        podman.write_configuration();
        podman.import_image();
        Some(podman)
    }

    fn write_configuration(&self) {
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
                    [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(self.path("containers.conf"), conf).expect("write containers.conf");
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            self.path("root").display(),
            self.path("run").display()
        );
        fs::write(self.path("storage.conf"), storage).expect("write storage.conf");
        fs::write(self.path("registries.conf"), "unqualified-search-registries = []\n").expect("write registries.conf");
        fs::create_dir(self.path("share")).expect("make a directory to mount");
    }

    /// busybox, users, and a program without the permission to be executed.
    fn import_image(&self) {
        let root = self.path("image");
        for folder in ["bin", "etc", "dev", "proc", "sys", "tmp", "run", "root", "data"] {
            fs::create_dir_all(root.join(folder)).expect("make a directory of the image");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy the statically linked busybox");
        let list = run(command("/bin/busybox", &["--list"]), PATIENCE).success();
        for applet in list.stdout.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/data:/bin/sh\n";
        fs::write(root.join("etc/passwd"), passwd).expect("passwd");
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("group");
        fs::write(root.join("bin/not-executable"), "#!/bin/sh\n").expect("write a file");
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode of /tmp");
        fs::set_permissions(root.join("data"), fs::Permissions::from_mode(0o750)).expect("mode of /data");
        let archive = self.path("image.tar");
        run(command("tar", &["-C", &text(&root), "-cf", &text(&archive), "."]), PATIENCE).success();
        self.ok(&["import", "--change", "ENV PATH=/bin", "--change", "CMD [\"sh\"]", &text(&archive), "localhost/box:latest"]);
    }

    /// A path in the installation's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The runtime under test.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// The runtime's path.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// Global options and environment, then `args`.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_with(&self.runtime, args)
    }

    /// The same with another runtime: a path, or a name that the configuration knows.
    pub fn command_with(&self, runtime: &str, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .current_dir(self.dir.path())
            .args(["--root", &text(&self.path("root")), "--runroot", &text(&self.path("run"))])
            .args(["--tmpdir", &text(&self.path("tmp")), "--runtime", runtime])
            .args(args);
        command
    }

    /// A copy of the host's /etc, to be changed and used with [`with_etc`].
    pub fn copy_etc(&self, name: &str) -> PathBuf {
        let etc = self.path(name);
        fs::create_dir(&etc).expect("make a directory");
        run(command("cp", &["-a", "/etc/.", &text(&etc)]), PATIENCE).success();
        etc
    }

    /// Runs podman to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        run(self.command(args), PATIENCE)
    }

    /// Runs podman, which must succeed; what it printed, without white space around it.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).success().stdout.trim().to_owned()
    }

    /// A field of `podman inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.ok(&["inspect", "--format", template, name])
    }

    /// Waits until the logs of a container contain `needle`.
    #[track_caller]
    pub fn wait_logs(&self, name: &str, needle: &str) {
        wait_until(&format!("{needle:?} in the logs of {name}"), PATIENCE, || {
            let logs = self.run(&["logs", name]);
            logs.stdout.contains(needle) || logs.stderr.contains(needle)
        });
    }

    /// Removes a container by force and checks that nothing of it is left.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        let id = self.inspect(name, "{{.Id}}");
        self.ok(&["rm", "--force", "--time", "0", name]);
        self.assert_gone(&id);
    }

    /// Waits until nothing of a removed container is left: conmon and its cleanup end a moment after podman.
    #[track_caller]
    pub fn assert_gone(&self, id: &str) {
        let mut found = Vec::new();
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            found.clear();
            found.extend(cgroups_named(id).into_iter().map(|dir| format!("cgroup {}", text(&dir))));
            found.extend(mounts().into_iter().filter(|mount| mount.contains(id)).map(|mount| format!("mount {mount}")));
            let states = ["/run/towline-oci", "/run/runc"].map(|root| Path::new(root).join(id));
            found.extend(states.iter().filter(|state| state.exists()).map(|state| format!("state {}", text(state))));
            found.extend(processes_with(id).into_iter().map(|process| format!("process {process}")));
            if found.is_empty() {
                return;
            }
            assert!(std::time::Instant::now() < end, "left of {id}: {found:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `run --rm` for each case; all that fail are reported together.
    #[track_caller]
    pub fn run_cases(&self, cases: &[Case<'_>]) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let failed = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                        if let Err(text) = self.run_case(case) {
                            failed.lock().expect("nobody panics with this lock").push(text);
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().expect("nobody panics with this lock");
        assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
    }

    fn run_case(&self, case: &Case<'_>) -> Result<(), String> {
        let mut args = vec!["run", "--rm"];
        args.extend(case.options.iter().copied().filter(|option| *option != "box"));
        if !case.options.iter().any(|option| option.starts_with("--network") || option.starts_with("--pod")) {
            args.push("--network=none");
        }
        args.push("localhost/box");
        args.extend(case.command);
        let done = self.run(&args);
        let output = format!("{}{}", done.stdout, done.stderr);
        let right = done.code() == Some(case.code)
            && if case.code < 125 { output.trim() == case.wanted } else { output.contains(case.wanted) };
        right.then_some(()).ok_or_else(|| {
            format!("{:?}\n  wanted: {} {:?}\n  got:    {:?} {:?}", args, case.code, case.wanted, done.code(), output.trim())
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // A test may have failed anywhere, so each step is tried and says what it could not do.
        for args in [&["pod", "rm", "--all", "--force", "--time", "0"][..], &["rm", "--all", "--force", "--time", "0"]] {
            let done = run(self.command(args), PATIENCE);
            if !done.status.success() {
                eprintln!("{}: {}", done.what, done.stderr);
            }
        }
        let own = text(self.dir.path());
        for mount in mounts().iter().rev().filter(|mount| mount.starts_with(&own)) {
            unmount(mount.as_str(), UnmountFlags::DETACH).unwrap_or_else(|error| eprintln!("unmounting {mount}: {error}"));
        }
        // The parent of podman's cgroups is the same for all installations of the host: whoever still has something in it keeps it.
        for folder in ["libpod_parent/conmon", "libpod_parent"] {
            cgroups_named("libpod_parent").iter().for_each(|parent| drop(fs::remove_dir(parent.with_file_name(folder))));
        }
    }
}

/// One `podman run --rm`.
pub struct Case<'a> {
    /// Options of `run`; without a network it gets none.
    pub options: &'a [&'a str],
    /// The program and its arguments.
    pub command: &'a [&'a str],
    /// The exit code. From 125 on it is podman's or the runtime's word.
    pub code: i32,
    /// All that is printed; from code 125 on, a part of it.
    pub wanted: &'a str,
}

/// A case whose shell script must print `wanted`.
pub const fn prints<'a>(options: &'a [&'a str], script: &'a [&'a str; 3], wanted: &'a str) -> Case<'a> {
    Case { options, command: script, code: 0, wanted }
}

/// A path as text.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A command with arguments.
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// `inner` in a mount namespace where `etc` is /etc; the host's stays as it is.
pub fn with_etc(etc: &Path, inner: &Command) -> Command {
    let script = "mount --bind \"$0\" /etc && exec \"$@\"";
    inside(&command("unshare", &["--mount", "--propagation", "private", "sh", "-c", script, &text(etc)]), inner)
}

/// `inner`, with its environment, as further arguments of `outer`.
pub fn inside(outer: &Command, inner: &Command) -> Command {
    let mut command = Command::new(outer.get_program());
    command.args(outer.get_args()).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    command
}

/// Mount points of this mount namespace, in mount order.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

/// Command lines of processes that name `part`.
fn processes_with(part: &str) -> Vec<String> {
    let lines = fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(part)).collect()
}
