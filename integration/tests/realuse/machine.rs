//! The machine: a registry, `towlined` with its snapshotter, containerd with its CRI plugin, podman; and what is left on it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towline_integration::bundle::cgroups_named;
use towline_integration::cri::messages::*;
use towline_integration::images;
use towline_integration::process::{Finished, Job, run};
use towline_integration::registry::Registry;
use towline_integration::towline::{Towline, bin_dir};

use super::node::{Node, PATIENCE, mounts, text};
use super::podman::Podman;
use super::random::Random;
use super::truth::Truth;

/// Where the shim keeps the states of the containers that `ctr` makes in CRI's namespace.
const STATES: &str = "/run/containerd/towline/k8s.io";

/// Dropped in this order: containers, daemons, registry.
pub struct Machine {
    pub podman: Podman,
    pub node: Node,
    daemon: Mutex<Option<Job>>,
    pub towline: Towline,
    /// What the image's files are.
    pub truth: Truth,
    registry: Registry,
    /// Sockets of shims that were seen.
    sockets: Mutex<BTreeSet<String>>,
}

impl Machine {
    /// Starts everything and pulls the image; `None`, after saying so, where that cannot be.
    pub fn new(test: &str) -> Option<Self> {
        if !images::available(test) {
            return None;
        }
        if std::env::var("SHIM").is_ok_and(|shim| shim == "runc") {
            println!("SKIP {test}: it is about our shim");
            return None;
        }
        let podman = Podman::new(test)?;
        let towline = Towline::new();
        let node = Node::prepare(test, Some(&towline.state().join("snapshotter.sock")))?;
        fs::create_dir(node.path("out")).expect("make a directory");
        let registry = node.in_network(Registry::start);
        let machine = Self {
            podman,
            node,
            daemon: Mutex::new(None),
            towline,
            truth: Truth::of("small"),
            registry,
            sockets: Mutex::default(),
        };
        machine.start_daemon();
        machine.node.start();
        machine.node.import_image();
        machine.pull().expect("the first pull");
        Some(machine)
    }

    /// The image that is lazy.
    pub fn image(&self) -> String {
        self.registry.reference("small:zstd")
    }

    /// Pulls it as a kubelet does.
    pub fn pull(&self) -> Result<(), String> {
        self.node.cri.pull(&self.image(), None).map(drop).map_err(|status| format!("pull: {status:?}"))
    }

    /// Starts `towlined`.
    pub fn start_daemon(&self) {
        let mut command = self.node.program(&text(&bin_dir().join("towlined")));
        let like = self.towline.command(&[]);
        let store = like.get_envs().filter_map(|(name, value)| Some((name, value?))).filter(|(name, _)| *name != "PATH");
        command.envs(store).args(["serve", "--replace", "--snapshotter"]).arg(self.towline.state().join("snapshotter.sock"));
        command.arg("--containerd").arg(self.node.path("socket"));
        let mut job = Job::start(command);
        job.wait_for_output("welcome", PATIENCE);
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
    }

    /// Kills it.
    pub fn kill_daemon(&self) {
        drop(self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Removes files of sockets that nobody listens at; how many there were.
    pub fn stale_sockets(&self) -> usize {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut stale: Vec<&str> = sockets.iter().filter_map(|address| address.strip_prefix("unix://")).collect();
        stale.retain(|path| Path::new(path).exists());
        for path in &stale {
            fs::remove_file(path).expect("remove the file of a socket");
        }
        stale.len()
    }

    /// Stops it as an administrator does.
    pub fn stop_daemon(&self) {
        let job = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take().expect("a daemon runs");
        kill(Pid::from_raw(job.pid()), Signal::SIGTERM).expect("stop towlined");
        let done = job.wait(PATIENCE);
        assert!(done.status.success(), "{}", failed(&done));
    }

    /// What is left when it was stopped.
    pub fn left_of_daemon(&self) -> Vec<String> {
        let inside = mounts().into_iter().filter(|mount| Path::new(mount).starts_with(self.towline.dir()));
        let processes = self.towline.processes().into_iter().map(|pid| format!("process {pid}"));
        inside.map(|mount| format!("mount {mount}")).chain(processes).collect()
    }

    /// Kills the shim of some container or pod, if there is one besides that of `spared`.
    pub fn kill_shim(&self, random: &mut Random, spared: &str) {
        let line = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let shims: Vec<i32> = self.node.shims().into_iter().filter(|pid| !line(pid).contains(spared)).collect();
        if shims.is_empty() {
            return;
        }
        let shim = shims[usize::try_from(random.below(shims.len() as u64)).expect("an index")];
        // It may have ended by itself meanwhile.
        match kill(Pid::from_raw(shim), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("killing the shim {shim}: {error}"),
        }
    }

    /// Of a test that failed: what runs, through containerd if it is there, and the states that are not in the test's directories.
    fn remove_containers(&self) {
        let ids = self.ctr(&["container", "ls", "--quiet"]).unwrap_or_default();
        for id in ids.lines() {
            for args in [&["task", "rm", "--force", id][..], &["container", "rm", id]] {
                self.ctr(args).map(drop).unwrap_or_else(|error| eprintln!("{error}"));
            }
        }
        // In the order of the shim's own `delete`: nothing of a container outlives its cgroup (the node removes that), or is in the way of another.
        for state in entries(Path::new(STATES)).into_iter().filter(|state| state.contains(self.node.name())) {
            let id = Path::new(&state).file_name().expect("an id").to_string_lossy().into_owned();
            let runtime = bin_dir().join("towline-oci");
            let mut command = Command::new(runtime);
            command.arg("--root").arg(STATES).args(["delete", "--force", &id]);
            let done = run(command, PATIENCE);
            if !done.status.success() {
                eprintln!("{}", failed(&done));
            }
        }
    }

    fn daemon_log(&self) -> String {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Job::stderr).unwrap_or_default()
    }

    /// Runs `ctr`, which may fail.
    pub fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let done = self.node.ctr(args);
        if done.status.success() { Ok(done.stdout) } else { Err(failed(&done)) }
    }

    /// `ctr run` of the image through our shim, with a directory of the host on /out.
    pub fn run(&self, options: &[&str], id: &str, script: &str) -> Finished {
        let (fifos, mount) =
            (text(&self.node.path("fifo")), format!("type=bind,src={},dst=/out,options=rbind:rw", text(&self.node.path("out"))));
        let fixed = ["run", "--snapshotter", "towline", "--runtime", "io.containerd.towline.v2", "--fifo-dir", &fifos];
        let image = self.image();
        self.node.ctr(&[&fixed[..], &["--mount", &mount], options, &[&image, id, "/bin/sh", "-c", script]].concat())
    }

    /// The status of a task; empty when there is none.
    pub fn status(&self, id: &str) -> Result<String, String> {
        let list = self.ctr(&["task", "ls"])?;
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        Ok(line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned())
    }

    /// Remembers the sockets of all shims that there are.
    pub fn see_sockets(&self) {
        for namespace in entries(&self.node.path("state/io.containerd.runtime.v2.task")) {
            for bundle in entries(Path::new(&namespace)) {
                let address = fs::read_to_string(format!("{bundle}/address")).unwrap_or_default();
                self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(address);
            }
        }
    }

    /// Takes away what an interrupted cycle left, by the commands that are there for it.
    #[track_caller]
    pub fn clean(&self, id: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.try_clean(id);
            if left.as_ref().is_ok_and(Vec::is_empty) {
                return self.remove_fifos(id);
            }
            assert!(Instant::now() < end, "cannot remove {id}: {left:#?}\n{}\n{}", self.node.daemon_log(), self.daemon_log());
        }
    }

    /// Removes FIFOs that `ctr` has made for a task and forgets when the task cannot be started: they are this client's and nobody else's.
    fn remove_fifos(&self, id: &str) {
        let theirs = format!("{id}-");
        for dir in entries(&self.node.path("fifo")) {
            let named =
                |file: &String| Path::new(file).file_name().is_some_and(|name| name.to_string_lossy().starts_with(&theirs));
            if entries(Path::new(&dir)).iter().any(named) {
                fs::remove_dir_all(&dir).expect("remove FIFOs of ctr");
            }
        }
    }

    fn try_clean(&self, id: &str) -> Result<Vec<String>, String> {
        let mut left = Vec::new();
        let named = |list: String| {
            let fits = |line: &str| Some(line.split_whitespace().next()?.to_owned()).filter(|name| name == id);
            list.lines().filter_map(fits).collect::<Vec<String>>()
        };
        // The last answer counts: each step is tried, and looked after in the next round.
        for (list, remove) in [
            (&["task", "ls"][..], &["task", "rm", "--force", id][..]),
            (&["container", "ls"], &["container", "rm", id]),
            (&["snapshots", "--snapshotter", "towline", "ls"], &["snapshots", "--snapshotter", "towline", "rm", id]),
        ] {
            for _ in named(self.ctr(list)?) {
                left.push(format!("{}: {:?}", list[0], self.ctr(remove)));
            }
        }
        let pods: ListPodSandboxResponse =
            self.node.cri.try_call("ListPodSandbox", &Empty {}).map_err(|status| format!("list pods: {status:?}"))?;
        let own = |pod: &PodSandbox| pod.metadata.as_ref().is_some_and(|data| data.name == pod_name(id));
        for pod in pods.items.into_iter().filter(own) {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                let done: Result<Empty, _> = self.node.cri.try_call(method, &PodId { pod_sandbox_id: pod.id.clone() });
                left.push(format!("{method} {}: {done:?}", pod.id));
            }
        }
        Ok(left)
    }

    /// Removes all images by their names, and leases of containerds that were killed, which keep what was made under them for 24 hours.
    pub fn remove_images(&self) -> Result<(), String> {
        for lease in self.ctr(&["leases", "ls", "--quiet"])?.lines() {
            self.ctr(&["leases", "rm", "--sync", lease])?;
        }
        let images = self.ctr(&["images", "ls", "--quiet"])?;
        let names: Vec<&str> = images.lines().collect();
        // CRI gives an image its names again while it still works on events of the pull: a name may be gone, or come.
        if names.is_empty() { Ok(()) } else { self.ctr(&[&["images", "rm", "--sync"], names.as_slice()].concat()).map(drop) }
    }

    /// What is left when everything was removed.
    pub fn left(&self) -> Vec<String> {
        let name = self.node.name();
        let mut found = self.node.leftovers();
        found.extend(cgroups_named(name).iter().map(|dir| text(dir)).filter(|dir| !dir.ends_with(name)));
        found.extend(mounts().into_iter().filter(|mount| mount.starts_with(STATES) && mount.contains(name)));
        found.extend(entries(Path::new(STATES)).into_iter().filter(|state| state.contains(name)));
        // A file that a shim has left which was killed at a bad moment is harmless (the next shim of that name takes its place), and is said
        // at the end ([`Machine::stale_sockets`]); somebody who listens is not.
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let heard = sockets.iter().filter_map(|address| address.strip_prefix("unix://"));
        found.extend(heard.filter(|path| UnixStream::connect(path).is_ok()).map(|path| format!("socket {path}")));
        fifos(&self.node.path(""), &mut found);
        found.extend(
            self.ctr(&["snapshots", "--snapshotter", "towline", "ls"])
                .map_or_else(|error| vec![error], |list| list.lines().skip(1).map(|line| format!("snapshot {line}")).collect()),
        );
        let images = self.towline.run(&["images", "ls"]).success().stdout;
        found.extend(images.lines().skip(1).map(|line| format!("image {line}")));
        found.extend(entries(&self.towline.root().join("snapshots/layers")).into_iter().map(|path| format!("layer {path}")));
        // The FUSE trigger is the daemon's.
        let (inside, trigger) = (self.towline.dir(), text(&self.towline.state().join("trigger")));
        let others = mounts().into_iter().filter(|mount| Path::new(mount).starts_with(inside) && *mount != trigger);
        found.extend(others.map(|mount| format!("mount {mount}")));
        found.extend(processes_of(name).into_iter().map(|process| format!("process {process}")));
        let all = self.podman.ok(&["ps", "--all", "--quiet"]);
        found.extend(all.lines().map(|id| format!("podman's container {id}")));
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in [self.daemon_log(), self.node.daemon_log()] {
                let lines: Vec<&str> = log.lines().rev().take(40).collect();
                eprintln!("---\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            self.remove_containers();
        }
    }
}

/// The name of the pod of a cycle.
pub fn pod_name(id: &str) -> String {
    id.replacen("towline-cri-", "pod-", 1).to_lowercase()
}

/// What a command said that failed.
pub fn failed(done: &Finished) -> String {
    format!("{}: {}: {}", done.what.get(..40).unwrap_or(&done.what), done.status, done.stderr.trim())
}

/// Paths in a directory; none if there is no directory.
fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| text(&entry.path())).collect()
}

/// FIFOs in and below a directory.
fn fifos(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_fifo() => found.push(format!("FIFO {}", text(&entry.path()))),
            Ok(kind) if kind.is_dir() => fifos(&entry.path(), found),
            _ => {}
        }
    }
}

/// Command lines of processes that name `part`, without the daemons that still run.
fn processes_of(part: &str) -> Vec<String> {
    let lines = fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some(format!("{} {}", entry.file_name().to_string_lossy(), String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    lines.filter(|line| line.contains(part) && !line.contains("--config") && !line.contains("--containerd")).collect()
}
