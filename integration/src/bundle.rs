//! One container of an OCI runtime: a bundle with a busybox root in a temporary directory, and the commands on it.
//!
//! The subject is chosen by the environment variable `RUNTIME`: `runc` and `crun` are the references on which a case proves that
//! it tests what the specification says; without it (or `towline-oci`) it is ours, from `TOWLINE_BIN_DIR` or from where cargo
//! built it.
//!
//! Commands write into files, not pipes: `create` leaves a process behind that would keep a pipe open.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test harness talks to the person who runs the tests")]

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for any command here on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The runtime under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// opencontainers/runc, as packaged.
    Runc,
    /// containers/crun, as packaged.
    Crun,
    /// Ours.
    Towline,
}

impl Subject {
    /// The choice of `RUNTIME`.
    ///
    /// # Panics
    /// When it names something else.
    pub fn from_env() -> Self {
        match std::env::var("RUNTIME").as_deref() {
            Ok("runc") => Self::Runc,
            Ok("crun") => Self::Crun,
            Ok("towline-oci" | "") | Err(_) => Self::Towline,
            Ok(other) => panic!("RUNTIME={other}: runc, crun or towline-oci"),
        }
    }

    /// Where its binary is.
    ///
    /// # Panics
    /// When it is not there.
    pub fn binary(self) -> PathBuf {
        let path = match self {
            Self::Runc => PathBuf::from("/usr/sbin/runc"),
            Self::Crun => PathBuf::from("/usr/bin/crun"),
            Self::Towline => std::env::var_os("TOWLINE_BIN_DIR")
                .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug"), PathBuf::from)
                .join("towline-oci"),
        };
        assert!(path.exists(), "{} is missing: build it (cargo build --bins) or set TOWLINE_BIN_DIR", path.display());
        path
    }
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Done {
    /// The command, for messages.
    pub what: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output of the runtime and, after `create` and `run`, of the container's process.
    pub stdout: String,
    /// Standard error of the same.
    pub stderr: String,
}

impl Done {
    /// Itself if the exit code was 0.
    ///
    /// # Panics
    /// With everything that is known if it was not.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Itself if the command failed with an exit code and said why.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn failure(self) -> Self {
        assert!(self.code.is_some_and(|code| code != 0), "should have failed: {self:?}");
        assert!(!self.stderr.trim().is_empty(), "failed without a word: {self:?}");
        self
    }

    /// Standard output without white space around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

/// A container and its bundle. Dropping it deletes the container by force.
pub struct Container {
    subject: Subject,
    binary: PathBuf,
    dir: TempDir,
    id: String,
    config: Value,
    global: Vec<String>,
    commands: AtomicU32,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Container {
    /// A bundle of [`config`] with a root file system that is busybox, under the subject of the environment.
    ///
    /// # Panics
    /// When the bundle cannot be made.
    pub fn new() -> Self {
        let subject = Subject::from_env();
        let dir = tempfile::Builder::new().prefix("towline-oci-").tempdir().expect("make a bundle directory");
        let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let container = Self {
            subject,
            binary: subject.binary(),
            dir,
            id,
            config: config(),
            global: Vec::new(),
            commands: AtomicU32::new(0),
        };
        for folder in ["state", "b/rootfs"] {
            fs::create_dir_all(container.dir.path().join(folder)).expect("make a directory of the bundle");
        }
        make_root(&container.rootfs());
        container
    }

    /// The same after a change of its configuration.
    #[must_use]
    pub fn with(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.config);
        self
    }

    /// The same with an option before every verb.
    #[must_use]
    pub fn global(mut self, option: &str) -> Self {
        self.global.push(option.to_owned());
        self
    }

    /// The same with a shell script as its process.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.with(|config| config["process"]["args"] = json!(["/bin/sh", "-c", script]))
    }

    /// The same, run from a copy of the binary that the test may lose.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn with_copied_binary(mut self) -> Self {
        let copy = self.dir.path().join("runtime-copy");
        fs::copy(&self.binary, &copy).expect("copy the runtime");
        self.binary = copy;
        self
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The runtime under test.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A directory for the test's own files, outside of the bundle.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    /// The runtime's `--root`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The container's root file system on the host.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// The runtime's command line with global options and `args`; the container's id is not added.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.subject {
            // crun refuses a host whose v2 mount carries a controller beside v1: it gets a view without that mount.
            Subject::Crun => {
                let mut command = Command::new("unshare");
                let hide = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
                command.args(["--mount", "--propagation", "private", "sh", "-c", hide, "sh"]).arg(&self.binary);
                command
            }
            _ => Command::new(&self.binary),
        };
        command.arg("--root").arg(self.state_dir()).args(&self.global).args(args).current_dir(self.dir.path());
        command
    }

    /// Runs any command with captured output.
    ///
    /// # Panics
    /// When it cannot be started or does not end in time.
    pub fn execute(&self, command: Command) -> Done {
        self.try_execute(command, PATIENCE).unwrap_or_else(|late| panic!("{late}"))
    }

    /// [`Container::execute`] for a command that may hang: it is killed after `limit`, and the error says what it had printed.
    ///
    /// # Errors
    /// When it does not end in time.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_execute(&self, mut command: Command, limit: Duration) -> Result<Done, String> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let path = |stream: &str| self.dir.path().join(format!("{number}.{stream}"));
        let file = |stream: &str| File::create(path(stream)).expect("create an output file");
        let what = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap_or_else(|error| panic!("start {what}: {error}"));
        let end = Instant::now() + limit;
        let text = |stream: &str| String::from_utf8_lossy(&fs::read(path(stream)).expect("read output")).into_owned();
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait for own child") {
                break status;
            }
            if Instant::now() >= end {
                child.kill().expect("kill own child");
                child.wait().expect("wait for own child");
                return Err(format!("{what} still ran after {limit:?}\nstdout: {}\nstderr: {}", text("out"), text("err")));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Ok(Done { what, code: status.code(), stdout: text("out"), stderr: text("err") })
    }

    /// Runs the runtime with `args`.
    pub fn runtime(&self, args: &[&str]) -> Done {
        self.execute(self.command(args))
    }

    /// Writes `config.json` as it stands now.
    ///
    /// # Panics
    /// When that fails.
    pub fn write_config(&self) {
        fs::write(self.bundle().join("config.json"), self.config.to_string()).expect("write config.json");
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Done {
        self.write_config();
        self.runtime(&["run", "--bundle", &self.bundle().display().to_string(), &self.id])
    }

    /// [`Container::run`] that may hang; see [`Container::try_execute`].
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn try_run(&self, limit: Duration) -> Result<Done, String> {
        self.write_config();
        self.try_execute(self.command(&["run", "--bundle", &self.bundle().display().to_string(), &self.id]), limit)
    }

    /// `create`, with a pid file beside the bundle. What the container's process prints later is in [`Container::output`].
    pub fn create(&self) -> Done {
        self.create_with(&[])
    }

    /// `create` with further options.
    pub fn create_with(&self, options: &[&str]) -> Done {
        self.write_config();
        self.commands.store(0, Ordering::Relaxed);
        let (bundle, pid_file) = (self.bundle().display().to_string(), self.pid_file().display().to_string());
        let mut args = vec!["create", "--bundle", &bundle, "--pid-file", &pid_file];
        args.extend(options);
        args.push(&self.id);
        self.runtime(&args)
    }

    /// Where `create` writes the pid.
    pub fn pid_file(&self) -> PathBuf {
        self.dir.path().join("pid")
    }

    /// What the process of [`Container::create`] has written to standard output so far.
    ///
    /// # Panics
    /// Before `create`.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("0.out")).expect("read the container's output").trim().to_owned()
    }

    /// `start`.
    pub fn start(&self) -> Done {
        self.runtime(&["start", &self.id])
    }

    /// `kill` with a signal as the runtime's command line takes it.
    pub fn kill(&self, signal: &str) -> Done {
        self.runtime(&["kill", &self.id, signal])
    }

    /// `delete`.
    pub fn delete(&self) -> Done {
        self.runtime(&["delete", &self.id])
    }

    /// `delete --force`.
    pub fn delete_force(&self) -> Done {
        self.runtime(&["delete", "--force", &self.id])
    }

    /// `exec` with options before the id.
    pub fn exec(&self, options: &[&str], args: &[&str]) -> Done {
        let mut all = vec!["exec"];
        all.extend(options);
        all.push(&self.id);
        all.extend(args);
        self.runtime(&all)
    }

    /// The output of `state`, if the container exists.
    ///
    /// # Panics
    /// When it is no JSON.
    pub fn state(&self) -> Option<Value> {
        let done = self.runtime(&["state", &self.id]);
        (done.code == Some(0)).then(|| serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}")))
    }

    /// The status in [`Container::state`]; `none` if there is no such container.
    pub fn status(&self) -> String {
        self.state().map_or("none".to_owned(), |state| state["status"].as_str().expect("a status").to_owned())
    }

    /// The process id of the container's process.
    ///
    /// # Panics
    /// When there is none.
    pub fn pid(&self) -> i32 {
        let pid = self.state().expect("the container exists")["pid"].as_i64().expect("a pid");
        i32::try_from(pid).expect("pids fit in 32 bits")
    }

    /// `create` and `start`, both successful.
    #[track_caller]
    pub fn up(&self) {
        self.create().success();
        self.start().success();
    }

    /// Waits until the container has this status.
    #[track_caller]
    pub fn wait_status(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status == wanted {
                return;
            }
            assert!(Instant::now() < end, "{} is {status}, not {wanted}, after {PATIENCE:?}", self.id);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the output of the created container contains `needle`, and returns the output.
    #[track_caller]
    pub fn wait_output(&self, needle: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = self.output();
            if output.contains(needle) {
                return output;
            }
            assert!(Instant::now() < end, "no {needle:?} within {PATIENCE:?} in {output:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a failed or deleted container must not leave: state, cgroups, processes.
    ///
    /// # Panics
    /// When something cannot be read.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let state = fs::read_dir(self.state_dir()).expect("list the state directory");
        for entry in state.map(|entry| entry.expect("an entry of the state directory")) {
            // A lock file for all containers is none of this one's.
            if entry.path().is_dir() && entry.file_name().to_string_lossy().contains(&self.id) {
                found.push(format!("state {}", entry.path().display()));
            }
        }
        found.extend(cgroups_named(&self.id).into_iter().map(|dir| format!("cgroup {}", dir.display())));
        for process in fs::read_dir("/proc").expect("list /proc").flatten() {
            let root = fs::read_link(process.path().join("root"));
            if root.is_ok_and(|root| root.starts_with(self.rootfs())) {
                found.push(format!("process {}", process.path().display()));
            }
        }
        found
    }
}

impl Default for Container {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The result does not matter: the container may never have existed. What it could leave is checked by the cases.
        if let Err(error) = self.command(&["delete", "--force", &self.id]).stderr(Stdio::null()).status() {
            eprintln!("deleting {}: {error}", self.id);
        }
        // crun leaves the cgroups of a failed create.
        for dir in cgroups_named(&self.id) {
            fs::remove_dir(&dir).unwrap_or_else(|error| eprintln!("removing {}: {error}", dir.display()));
        }
    }
}

/// All cgroup directories, in any hierarchy, whose name contains `part`.
pub fn cgroups_named(part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = todo.pop() {
        // A cgroup may go while this walks.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(part) {
                found.push(entry.path());
            } else if depth < 5 {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// A root file system of busybox with users, in `root`.
///
/// # Panics
/// When it cannot be made.
pub fn make_root(root: &Path) {
    for folder in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "data"] {
        fs::create_dir(root.join(folder)).expect("make a directory of the root");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy the statically linked busybox");
    let list = Command::new("/bin/busybox").arg("--list").output().expect("list busybox's applets");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/data:/bin/sh\n").expect("passwd");
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").expect("group");
}

/// The configuration of `runc spec`, without a terminal and with a writable root.
pub fn config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/true"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities, "ambient": []
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Whether a test that needs root can run; says so if not.
pub fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root");
    }
    root
}

/// Adds to an array of a configuration.
///
/// # Panics
/// When there is something else than an array at `pointer`.
pub fn push(config: &mut Value, pointer: &str, value: Value) {
    config.pointer_mut(pointer).and_then(Value::as_array_mut).expect("an array in the configuration").push(value);
}

/// One run of a script in a changed container: what it prints says whether the runtime did as the specification says.
pub struct Case<'a> {
    /// Which clause, and what of it.
    pub name: &'a str,
    /// The change of the configuration of [`config`].
    pub edit: fn(&mut Value),
    /// The shell script; its standard error is part of what is compared.
    pub script: &'a str,
    /// What it must print, without white space at the ends.
    pub wanted: &'a str,
}

/// Runs all cases and reports all that fail.
///
/// # Panics
/// When one fails.
#[track_caller]
pub fn run_cases(cases: &[Case<'_>]) {
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let done = Container::new().script(&format!("exec 2>&1; {}", case.script)).with(case.edit).run();
            (done.text() != case.wanted).then(|| {
                format!(
                    "{}\n  wanted: {:?}\n  got:    {:?} {:?} {:?}",
                    case.name,
                    case.wanted,
                    done.text(),
                    done.code,
                    done.stderr
                )
            })
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
}
