//! One sandboxed installation of towline: an empty store and state directory of its own, the binaries under test.
//!
//! The binaries are those in `TOWLINE_BIN_DIR`, or those that cargo built beside the running test. On drop everything that belongs to
//! the sandbox goes: containers, daemon, mounts, files. The directory names its owner's pid, so that the next sandbox sweeps what
//! a killed test left.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::images;
use crate::process::{Finished, Job, run, wait_until};

/// Long enough for any command of a test that is not itself about time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An installation with its own store.
pub struct Towline {
    dir: TempDir,
    bin: PathBuf,
    environment: Vec<(String, String)>,
}

impl Towline {
    /// An empty store on the disk of the images' work directory.
    ///
    /// # Panics
    /// When the binaries are not built.
    pub fn new() -> Self {
        let sandboxes = images::work_dir().join("sandboxes");
        fs::create_dir_all(&sandboxes).expect("create the directory of sandboxes");
        sweep(&sandboxes);
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .tempdir_in(&sandboxes)
            .expect("create the sandbox");
        let towline = Self { dir, bin: bin_dir(), environment: Vec::new() };
        for part in [towline.root(), towline.state()] {
            fs::create_dir(&part).expect("create a directory of the sandbox");
        }
        towline
    }

    /// The same with a variable in the environment of every command (and so of the daemon that it starts).
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same, fetching nothing but what is asked for: nothing ahead, no background fetch.
    #[must_use]
    pub fn demand_only(self) -> Self {
        self.with_env("TOWLINE_FETCH", "readahead=0,read-window=0,ahead=0,background=off")
    }

    /// A directory of the sandbox for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Sockets, logs and container state.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// `towline ARGS…` with this sandbox's environment, ready to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("towline"));
        command.args(args).env("TOWLINE_ROOT", self.root()).env("TOWLINE_STATE", self.state());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `towline ARGS…` to its end, within [`PATIENCE`].
    pub fn run(&self, args: &[&str]) -> Finished {
        run(self.command(args), PATIENCE)
    }

    /// Starts `towline ARGS…`.
    pub fn start(&self, args: &[&str]) -> Job {
        Job::start(self.command(args))
    }

    /// What the daemon that runs says on its socket of metrics.
    pub fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(self.state().join("metrics.sock")).expect("connect to the daemon's metrics");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a deadline");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: towline\r\n\r\n").expect("ask for metrics");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read metrics");
        answer
    }

    /// `towline ps -a --format json`: one object a container.
    pub fn containers(&self) -> Vec<Value> {
        let done = self.run(&["ps", "-a", "--format", "json"]).success();
        match serde_json::from_str(&done.stdout) {
            Ok(Value::Array(all)) => all,
            other => panic!("ps --format json gave no list: {other:?} in {}", done.stdout),
        }
    }

    /// The row of the container with this name.
    ///
    /// # Panics
    /// When there is none.
    pub fn row(&self, name: &str) -> Value {
        let rows = self.containers();
        rows.into_iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("there is no container {name}"))
    }

    /// Pids of all processes that work with this store.
    pub fn processes(&self) -> Vec<i32> {
        processes_of(self.dir.path())
    }

    /// Pids of this store's daemon processes.
    pub fn daemons(&self) -> Vec<i32> {
        processes_of(self.dir.path()).into_iter().filter(|pid| command_name(*pid) == "towlined").collect()
    }

    /// Kills this store's daemon processes with SIGKILL.
    ///
    /// # Panics
    /// When there is none, or it is still there after 10 s.
    pub fn kill_daemon(&self) {
        // Not until there is none: a monitor starts another.
        self.kill(&self.daemons());
    }

    /// Pids of the processes that keep this store's FUSE trigger while no daemon serves it.
    pub fn holders(&self) -> Vec<i32> {
        processes_of(self.dir.path()).into_iter().filter(|pid| command_name(*pid) == "towline-hold").collect()
    }

    /// Waits until the FUSE trigger is in the hands of a holder; it is started beside the first container.
    pub fn wait_for_holder(&self) {
        let says = "a holder keeps the FUSE trigger's device";
        wait_until("a holder of the FUSE trigger", PATIENCE, || self.daemon_log().contains(says));
    }

    /// Kills daemon and holder, so that the kernel ends the FUSE connection.
    pub fn kill_daemon_and_holder(&self) {
        // In this order: a daemon would start another holder. A monitor starts another daemon, which must find nothing.
        let daemons = self.daemons();
        for process in daemons.iter().chain(&self.holders()) {
            kill(Pid::from_raw(*process), Signal::SIGSTOP).ok();
        }
        let mut all = self.holders();
        all.extend(daemons);
        self.kill(&all);
    }

    /// Kills processes with SIGKILL and waits until they are gone.
    ///
    /// # Panics
    /// When there is none, or one is still there after 10 s.
    pub fn kill(&self, pids: &[i32]) {
        assert!(!pids.is_empty(), "no such process runs for {}", self.root().display());
        kill_all(pids);
        wait_until("the killed processes to be gone", Duration::from_secs(10), || {
            pids.iter().all(|pid| command_name(*pid).is_empty() || is_zombie(*pid))
        });
    }

    /// Waits until nothing is fetched any more: the daemon has left and no FUSE mount is below the sandbox.
    pub fn wait_for_hand_off(&self, deadline: Duration) {
        wait_until("the daemon to finish and leave", deadline, || self.daemons().is_empty() && self.fuse_mounts().is_empty());
    }

    /// Mount points of type fuse below the sandbox.
    pub fn fuse_mounts(&self) -> Vec<PathBuf> {
        mounts_below(self.dir.path()).into_iter().filter(|(_, kind)| kind.starts_with("fuse")).map(|(path, _)| path).collect()
    }

    /// Mount points below the state directory of trees that containers share.
    pub fn tree_mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.state()).into_iter().filter(|(_, kind)| kind == "erofs").map(|(path, _)| path).collect()
    }

    /// Pids of the monitors of this store's containers.
    pub fn monitors(&self) -> Vec<i32> {
        let is_monitor = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == b"monitor"))
        };
        processes_of(self.dir.path()).into_iter().filter(is_monitor).collect()
    }

    /// What the daemon logged.
    pub fn daemon_log(&self) -> String {
        fs::read(self.state().join("towlined.log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }
}

impl Default for Towline {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Towline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln_log(&self.daemon_log());
        }
        clear(self.dir.path());
    }
}

#[allow(clippy::print_stderr, reason = "a failing test shows what its daemon said")]
fn eprintln_log(log: &str) {
    let tail: Vec<&str> = log.lines().rev().take(40).collect();
    eprintln!("--- end of towlined.log\n{}\n---", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
}

/// Where the binaries under test are.
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("TOWLINE_BIN_DIR").map_or_else(
        || {
            // target/debug/deps/lazy-… -> target/debug
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(2).expect("a test runs from target/<profile>/deps").to_owned()
        },
        PathBuf::from,
    );
    for binary in ["towline", "towlined", "towline-oci"] {
        assert!(dir.join(binary).exists(), "{} is not built: run 'cargo build --workspace --bins'", dir.join(binary).display());
    }
    dir
}

/// Removes sandboxes whose owner is gone.
fn sweep(sandboxes: &Path) {
    for entry in fs::read_dir(sandboxes).expect("list the sandboxes").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().unwrap_or_default();
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            clear(&entry.path());
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Kills every process, and takes away every mount and cgroup, that belongs to a sandbox.
fn clear(dir: &Path) {
    // Killing a monitor lets nothing start anew, but a process may have just forked: look again until none is left.
    for _ in 0..50 {
        let mut all = processes_of(dir);
        all.extend(containers_of(dir));
        if all.is_empty() {
            break;
        }
        kill_all(&all);
        std::thread::sleep(Duration::from_millis(20));
    }
    for (mount, _) in mounts_below(dir).into_iter().rev() {
        // A mount that went with its parent is not an error.
        umount2(&mount, MntFlags::MNT_DETACH).ok();
    }
    for container in fs::read_dir(dir.join("root/containers")).into_iter().flatten().flatten() {
        remove_cgroups(&Path::new("towline").join(container.file_name()));
    }
}

/// Removes the cgroup of a container whose processes have been killed, in every hierarchy, and its parent with the last.
fn remove_cgroups(path: &Path) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for cgroup in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(path)).filter(|dir| dir.exists()) {
        // A process that was killed may need a moment to go.
        for _ in 0..50 {
            if fs::remove_dir(&cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(parent) = cgroup.parent() {
            // Other containers may be in it.
            fs::remove_dir(parent).ok();
        }
    }
}

fn kill_all(pids: &[i32]) {
    for pid in pids {
        // Fails only for a process that has ended by itself.
        kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
    }
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn command_name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Live processes whose environment names the sandbox: towline, its monitors, the daemon.
fn processes_of(dir: &Path) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).expect("Linux pids fit in i32");
    let mut wanted = b"TOWLINE_ROOT=".to_vec();
    wanted.extend_from_slice(dir.join("root").as_os_str().as_bytes());
    pids()
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == wanted))
        })
        .collect()
}

/// Processes in mount namespaces other than ours whose root is an overlay of the sandbox: container processes.
fn containers_of(dir: &Path) -> Vec<i32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace("self");
    let dir = dir.display().to_string();
    pids()
        .filter(|pid| namespace(&pid.to_string()).is_some_and(|theirs| Some(&theirs) != own.as_ref()))
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/mountinfo"))
                .is_ok_and(|mounts| mounts.lines().any(|line| line.contains(" / / ") && line.contains(&dir)))
        })
        .collect()
}

/// Mount points at or below `dir` in our namespace, with their types, in mount order.
fn mounts_below(dir: &Path) -> Vec<(PathBuf, String)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let path = left.split(' ').nth(4)?.replace("\\040", " ");
            Some((PathBuf::from(OsStr::new(&path)), right.split(' ').next()?.to_owned()))
        })
        .filter(|(path, _)| path.starts_with(dir))
        .collect()
}
