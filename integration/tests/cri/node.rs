//! A node of a cluster without the cluster: a containerd with its CRI plugin, an image, a network for pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use towline_integration::bundle::{Subject, cgroups_named, make_root, root_or_skip};
use towline_integration::cri::Cri;
use towline_integration::cri::messages::*;
use towline_integration::grpc::Status;
use towline_integration::process::{Finished, Job, run, wait_until};

/// Long enough for anything on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Busybox, which is also the sandbox's image.
pub const IMAGE: &str = "localhost/towline-test:1";

/// The namespace that the CRI plugin keeps its things in.
const K8S: &str = "k8s.io";

/// What `SHIM` says; ours unless it says `runc`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shim {
    Towline,
    Runc,
}

/// The node. Dropping it ends its pods and itself.
pub struct Node {
    daemon: Mutex<Option<Job>>,
    dir: TempDir,
    /// Part of the names of all that the test makes.
    name: String,
    snapshotter: &'static str,
    /// Its CRI.
    pub cri: Cri,
}

impl Node {
    /// Starts it; `None`, after saying so, where it cannot be.
    pub fn new(test: &str) -> Option<Self> {
        let node = Self::prepare(test, None)?;
        node.start();
        node.import_image();
        Some(node)
    }

    /// A node whose network is there and whose containerd is not started yet. Images are kept by the snapshotter `towline` that will
    /// listen on the given socket, or by containerd's own.
    pub fn prepare(test: &str, snapshotter: Option<&Path>) -> Option<Self> {
        let skip = |why: &str| {
            println!("SKIP {test}: {why}");
            None
        };
        if !root_or_skip(test) {
            return None;
        }
        if Command::new("containerd").arg("--version").output().is_err() {
            return skip("there is no containerd");
        }
        if !Path::new("/usr/lib/cni/bridge").exists() {
            return skip("there are no CNI plugins (Debian's containernetworking-plugins)");
        }
        let shim = match std::env::var("SHIM").as_deref() {
            Ok("runc") => Shim::Runc,
            _ => Shim::Towline,
        };
        let subject = Subject::from_env();
        if subject != Subject::Towline && shim == Shim::Towline {
            return skip("other runtimes are looked at with SHIM=runc");
        }
        let binary = subject.binary().canonicalize().expect("the runtime's path");
        let dir = tempfile::Builder::new().prefix("towline-cri-").tempdir().expect("make a directory");
        // Names of cgroups, and of files below the directory, are looked for when nothing should be left.
        let name = dir.path().file_name().expect("a name").to_string_lossy().into_owned();
        let cri = Cri::new(&dir.path().join("socket"));
        let snapshots = if snapshotter.is_some() { "towline" } else { "overlayfs" };
        let node = Self { daemon: Mutex::new(None), dir, name, snapshotter: snapshots, cri };
        node.configure(shim, &binary, snapshotter);
        node.make_network();
        Some(node)
    }

    fn configure(&self, shim: Shim, binary: &Path, snapshotter: Option<&Path>) {
        let dir = text(self.dir.path());
        let (proxy, snapshots) = match snapshotter {
            Some(socket) => (
                format!("[proxy_plugins.towline]\ntype = \"snapshot\"\naddress = \"{}\"\n", text(socket)),
                "snapshotter = \"towline\"\ndisable_snapshot_annotations = false\n",
            ),
            None => (String::new(), ""),
        };
        let kind = match shim {
            Shim::Towline => "io.containerd.towline.v2",
            Shim::Runc => "io.containerd.runc.v2",
        };
        let config = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\ntemp = \"{dir}/temp\"\n\
             disabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.aufs\"]\n\
             [grpc]\naddress = \"{dir}/socket\"\n{proxy}\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{IMAGE}\"\nnetns_mounts_under_state_dir = true\nenable_selinux = false\n\
             stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{dir}/cni\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"towline\"\n{snapshots}\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.towline]\nruntime_type = \"{kind}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.towline.options]\n\
             BinaryName = \"{}\"\nRoot = \"{dir}/oci\"\n",
            text(binary)
        );
        fs::write(self.path("config.toml"), config).expect("write config.toml");
        let network = json!({
            "cniVersion": "0.4.0", "name": self.name,
            "plugins": [{
                "type": "bridge", "bridge": "towline0", "isGateway": true,
                "ipam": { "type": "host-local", "dataDir": self.path("ipam"), "ranges": [[{ "subnet": "10.123.0.0/24" }]] }
            }]
        });
        fs::create_dir(self.path("cni")).expect("make a directory");
        fs::write(self.path("cni/10-towline.conflist"), network.to_string()).expect("write the network");
    }

    /// A network that the node's programs share, held by a mount, so that a containerd that starts again finds its pods' bridge.
    fn make_network(&self) {
        fs::write(self.path("net"), "").expect("make a file");
        let mut command = Command::new("unshare");
        command.args([&format!("--net={}", text(&self.path("net"))), "ip", "link", "set", "lo", "up"]);
        command.env("PATH", self.search_path());
        run(command, PATIENCE).success();
    }

    /// Our binaries first, administrators' programs last.
    fn search_path(&self) -> String {
        let binaries = Subject::Towline.binary().canonicalize().expect("the path of our binaries");
        let beside = text(binaries.parent().expect("a directory"));
        format!("{beside}:{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
    }

    /// A program in the node's network.
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", text(&self.path("net")))).arg(program).env("PATH", self.search_path());
        command
    }

    /// Starts containerd, also again after [`Node::kill`].
    pub fn start(&self) {
        let mut command = self.program("containerd");
        command.args(["--config", &text(&self.path("config.toml"))]);
        let daemon = Job::start(command);
        let pid = daemon.pid();
        *self.daemon() = Some(daemon);
        wait_until("the CRI's answer", PATIENCE, || {
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "containerd has ended: {}", self.daemon_log());
            let answer: Result<StatusResponse, _> = self.cri.try_call("Status", &Empty {});
            let conditions = answer.ok().and_then(|answer| answer.status).map(|status| status.conditions).unwrap_or_default();
            !conditions.is_empty() && conditions.iter().all(|condition| condition.status)
        });
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Job>> {
        self.daemon.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the containerd that runs has logged.
    pub fn daemon_log(&self) -> String {
        self.daemon().as_ref().map(Job::stderr).unwrap_or_default()
    }

    /// Part of the names of all that the node's containers leave.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills containerd, and nothing else.
    pub fn kill(&self) {
        drop(self.daemon().take());
    }

    /// An OCI layout of one layer, made by hand.
    pub fn import_image(&self) {
        let (root, layout) = (self.path("image-root"), self.path("layout"));
        fs::create_dir(&root).expect("make a directory");
        make_root(&root);
        fs::create_dir_all(layout.join("blobs/sha256")).expect("make a directory");
        let mut command = Command::new("tar");
        command.args(["-C", &text(&root), "-cf", &text(&self.path("layer.tar")), "."]);
        run(command, PATIENCE).success();
        let blob = |bytes: &[u8], kind: &str| {
            let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(layout.join("blobs/sha256").join(&hex), bytes).expect("write a blob");
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{hex}"), "size": bytes.len() })
        };
        let layer = blob(&fs::read(self.path("layer.tar")).expect("read the layer"), "layer.v1.tar");
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": arch, "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"] },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] }
        });
        let config = blob(config.to_string().as_bytes(), "config.v1+json");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]
        });
        let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
        manifest["annotations"] = json!({ "io.containerd.image.name": IMAGE });
        manifest["platform"] = json!({ "architecture": arch, "os": "linux" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), index.to_string()).expect("write the index");
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write the layout");
        let mut command = Command::new("tar");
        command.args(["-C", &text(&layout), "-cf", &text(&self.path("image.tar")), "."]);
        run(command, PATIENCE).success();
        self.ctr(&["images", "import", "--snapshotter", self.snapshotter, &text(&self.path("image.tar"))]).success();
        wait_until("the CRI to know the image", PATIENCE, || self.cri.has_image(IMAGE));
    }

    /// A path in the node's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ctr` in the CRI's namespace.
    pub fn ctr(&self, args: &[&str]) -> Finished {
        let mut command = Command::new("ctr");
        command.args(["--address", &text(&self.path("socket")), "--namespace", K8S]).args(args);
        run(command, PATIENCE)
    }

    /// The configuration of a pod.
    pub fn pod(&self, name: &str, pid: i32) -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: name.to_owned(), uid: format!("uid-{name}"), namespace: "tests".to_owned(), attempt: 0 };
        let namespaces = NamespaceOption { network: POD, pid, ipc: POD };
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: text(&self.path(&format!("logs/{name}"))),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.name()),
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
            }),
        }
    }

    /// `RunPodSandbox`; its id.
    #[track_caller]
    pub fn run_pod(&self, config: &PodSandboxConfig) -> String {
        self.try_run_pod(config).unwrap_or_else(|status| panic!("RunPodSandbox: {status:?}"))
    }

    /// The same, which may fail.
    pub fn try_run_pod(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "towline".to_owned() };
        self.cri.try_call::<PodId>("RunPodSandbox", &request).map(|pod| pod.pod_sandbox_id)
    }

    /// Creates and starts a container of a shell script; `edit` changes its configuration before.
    #[track_caller]
    pub fn run_container(
        &self,
        pod: &str,
        sandbox: &PodSandboxConfig,
        name: &str,
        script: &str,
        edit: impl FnOnce(&mut ContainerConfig),
    ) -> String {
        let started = self.try_run_container(pod, sandbox, name, script, edit);
        started.unwrap_or_else(|status| panic!("a container {name}: {status:?}"))
    }

    /// The same, which may fail.
    pub fn try_run_container(
        &self,
        pod: &str,
        sandbox: &PodSandboxConfig,
        name: &str,
        script: &str,
        edit: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Status> {
        let namespaces = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone());
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.to_owned() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: None,
                security_context: Some(LinuxContainerSecurityContext { namespace_options: namespaces }),
            }),
            ..ContainerConfig::default()
        };
        edit(&mut config);
        let (config, sandbox_config) = (Some(config), Some(sandbox.clone()));
        let request = CreateContainerRequest { pod_sandbox_id: pod.to_owned(), config, sandbox_config };
        let id = self.cri.try_call::<ContainerId>("CreateContainer", &request)?.container_id;
        self.cri.try_call::<Empty>("StartContainer", &container_id(&id))?;
        Ok(id)
    }

    /// A container's status.
    #[track_caller]
    pub fn status(&self, container: &str) -> ContainerStatus {
        let answer: ContainerStatusResponse = self.cri.call("ContainerStatus", &container_id(container));
        answer.status.expect("a status")
    }

    /// Waits for the end of a container's program; its exit code.
    #[track_caller]
    pub fn wait_end(&self, container: &str) -> i32 {
        wait_until("a container's end", PATIENCE, || self.status(container).state == EXITED);
        self.status(container).exit_code
    }

    /// Stops and removes a pod.
    #[track_caller]
    pub fn remove_pod(&self, pod: &str) {
        self.cri.call::<Empty>("StopPodSandbox", &PodId { pod_sandbox_id: pod.to_owned() });
        self.cri.call::<Empty>("RemovePodSandbox", &PodId { pod_sandbox_id: pod.to_owned() });
    }

    /// The lines of a container's log: stream, tag and text, without the time.
    pub fn log(&self, pod: &str, container: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("logs/{pod}/{container}.log"))).expect("read a log");
        // A line that is being written is no line yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.split_once(' ').expect("a time and the rest").1.to_owned()).collect()
    }

    /// Runs `work` in a thread that is in the node's network.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = fs::File::open(self.path("net")).expect("open the network");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(network, CloneFlags::CLONE_NEWNET).expect("enter the network");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Processes of shims of this node.
    pub fn shims(&self) -> Vec<i32> {
        let socket = text(&self.path("socket"));
        let pids = fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let fits = line.contains("containerd-shim-") && line.contains(&socket);
            fits.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
        });
        pids.collect()
    }

    /// Waits until nothing is left of any pod.
    #[track_caller]
    pub fn assert_empty(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self.leftovers();
            if found.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left: {found:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is left of pods and of containers.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.shims().iter().map(|pid| format!("shim {pid}")).collect();
        for dir in cgroups_named(&self.name) {
            // The parent is ours; what is in it was of pods.
            let inside = fs::read_dir(&dir).into_iter().flatten().flatten();
            found.extend(inside.filter(|entry| entry.path().is_dir()).map(|entry| text(&entry.path())));
        }
        let own = text(self.dir.path());
        let network = text(&self.path("net"));
        found.extend(mounts().into_iter().filter(|mount| mount.starts_with(&own) && *mount != network));
        for what in [["containers", "ls", "--quiet"], ["tasks", "ls", "--quiet"]] {
            found.extend(self.ctr(&what).success().stdout.split_whitespace().map(|id| format!("{} {id}", what[0])));
        }
        for dir in ["state/netns", "oci", &format!("oci/{K8S}"), &format!("state/io.containerd.runtime.v2.task/{K8S}")] {
            let inside = fs::read_dir(self.path(dir)).into_iter().flatten().flatten().map(|entry| text(&entry.path()));
            found.extend(inside.filter(|path| !path.ends_with(K8S)));
        }
        let leases = fs::read_dir(self.path(&format!("ipam/{}", self.name))).into_iter().flatten().flatten();
        found.extend(leases.map(|entry| text(&entry.path())).filter(|path| path.contains("/10.123.")));
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.daemon().is_some() {
            let pods: Result<ListPodSandboxResponse, _> = self.cri.try_call("ListPodSandbox", &Empty {});
            for pod in pods.map(|list| list.items).unwrap_or_default() {
                for method in ["StopPodSandbox", "RemovePodSandbox"] {
                    let done: Result<Empty, _> = self.cri.try_call(method, &PodId { pod_sandbox_id: pod.id.clone() });
                    done.map(drop).unwrap_or_else(|status| eprintln!("{method} {}: {status:?}", pod.id));
                }
            }
        }
        self.kill();
        // Of a test that failed.
        for pid in self.shims() {
            let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            killed.unwrap_or_else(|error| eprintln!("killing the shim {pid}: {error}"));
        }
        for dir in cgroups_named(&self.name) {
            remove_cgroups(&dir);
        }
        let own = text(self.dir.path());
        for mount in mounts().iter().rev().filter(|mount| mount.starts_with(&own)) {
            unmount(mount.as_str(), UnmountFlags::DETACH).unwrap_or_else(|error| eprintln!("unmounting {mount}: {error}"));
        }
    }
}

/// Kills what is in a cgroup and below, and removes it.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    let end = Instant::now() + Duration::from_secs(10);
    while fs::remove_dir(dir).is_err() && dir.exists() && Instant::now() < end {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a pid"));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap_or_else(|error| eprintln!("{pid}: {error}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The message that names a container.
pub fn container_id(id: &str) -> ContainerId {
    ContainerId { container_id: id.to_owned() }
}

/// A path as text.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Mount points of this mount namespace, in mount order.
pub fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}
