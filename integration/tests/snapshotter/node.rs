//! A machine: registry behind a link, `towlined` with its snapshotter, containerd.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use towline_integration::bundle::root_or_skip;
use towline_integration::cri::Cri;
use towline_integration::cri::messages::{Empty, StatusResponse};
use towline_integration::grpc::{self, Status};
use towline_integration::images;
use towline_integration::link::{Link, Quality};
use towline_integration::process::{Finished, Job, run, wait_until};
use towline_integration::registry::{Access, Registry};
use towline_integration::towline::{Towline, bin_dir};

/// Long enough for any command on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What CRI's namespace is called.
pub const NAMESPACE: &str = "k8s.io";

/// How a node is set up.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Whether containerd says which image a layer is of.
    pub annotations: bool,
    /// Further arguments of towlined.
    pub daemon: &'static [&'static str],
    /// Whether only what programs ask for is fetched.
    pub demand_only: bool,
    /// Whether the registry is empty and takes images.
    pub writable: bool,
    /// What the registry asks for.
    pub access: Access,
    /// The address that clients know it by; a free port of 127.0.0.1 where there is none.
    pub address: Option<std::net::SocketAddr>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { annotations: true, daemon: &[], demand_only: true, writable: false, access: Access::Anonymous, address: None }
    }
}

/// `PrepareSnapshotRequest` and `ViewSnapshotRequest` of containerd's snapshot service.
#[derive(Clone, PartialEq, Message)]
struct SnapshotRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
}

/// Dropped in this order: containers, daemons, registry.
pub struct Node {
    containerd: Option<Job>,
    daemon: Option<Job>,
    setup: Setup,
    pub cri: Cri,
    pub towline: Towline,
    pub link: Arc<Link>,
    pub registry: Arc<Registry>,
}

impl Node {
    /// Starts everything; `None`, after saying so, where that cannot be.
    pub fn new(test: &str, setup: Setup) -> Option<Self> {
        if !images::available(test) || !root_or_skip(test) {
            return None;
        }
        if Command::new("containerd").arg("--version").output().is_err() {
            println!("SKIP {test}: there is no containerd");
            return None;
        }
        let registry = if setup.writable { Registry::start_empty() } else { Registry::start_with(setup.access) };
        let link = match setup.address {
            None => Link::start(registry.address(), Quality::LOOPBACK),
            Some(address) => Link::listen(address, registry.address(), Quality::LOOPBACK),
        };
        let link = link.expect("listen before the registry");
        Some(Self::beside(setup, Arc::new(link), Arc::new(registry)))
    }

    /// Another machine that reaches the same registry the same way.
    pub fn neighbour(&self) -> Self {
        Self::beside(self.setup, Arc::clone(&self.link), Arc::clone(&self.registry))
    }

    fn beside(setup: Setup, link: Arc<Link>, registry: Arc<Registry>) -> Self {
        let mut towline = Towline::new();
        if setup.demand_only {
            towline = towline.demand_only();
        }
        let hosts = towline.dir().join("certs.d").display().to_string();
        let towline = towline.with_env("TOWLINE_REGISTRY_CONFIG", &hosts);
        let cri = Cri::new(&towline.state().join("containerd.sock"));
        let mut node = Self { containerd: None, daemon: None, setup, cri, towline, link, registry };
        node.configure();
        node.start_daemon();
        node.start_containerd();
        node
    }

    /// Says in the file that containerd and towlined read which hosts stand in for the registry.
    pub fn write_hosts(&self, text: &str) {
        let address = self.link.address();
        let dir = self.towline.dir().join(format!("certs.d/{}_{}_", address.ip(), address.port()));
        fs::create_dir_all(&dir).expect("make the directory of a registry");
        fs::write(dir.join("hosts.toml"), text).expect("write hosts.toml");
    }

    /// Where the kubelet would ask for images.
    pub fn kubelet_socket(&self) -> PathBuf {
        self.towline.state().join("cri.sock")
    }

    fn configure(&self) {
        let (dir, state) = (self.towline.dir().display(), self.towline.state().display().to_string());
        let annotations = !self.setup.annotations;
        let config = format!(
            "version = 2\nroot = \"{dir}/containerd\"\nstate = \"{state}/containerd\"\ntemp = \"{dir}/temp\"\n\
             disabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = \"{state}/containerd.sock\"\n\
             [proxy_plugins.towline]\ntype = \"snapshot\"\naddress = \"{state}/snapshotter.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_port = \"0\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"towline\"\n\
             disable_snapshot_annotations = {annotations}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{dir}/certs.d\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"{dir}/cni\"\n"
        );
        fs::write(self.towline.dir().join("config.toml"), config).expect("write config.toml");
    }

    /// A program with the environment by which the sandbox knows its processes.
    fn program(&self, program: impl Into<PathBuf>) -> Command {
        let like = self.towline.command(&[]);
        let mut command = Command::new(program.into());
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Starts towlined.
    pub fn start_daemon(&mut self) {
        let state = self.towline.state();
        let mut command = self.program(bin_dir().join("towlined"));
        command.args(["serve", "--replace", "--snapshotter"]).arg(state.join("snapshotter.sock"));
        command.arg("--containerd").arg(state.join("containerd.sock"));
        command.arg("--cri").arg(self.kubelet_socket()).args(self.setup.daemon);
        let mut job = Job::start(command);
        job.wait_for_output("welcome", PATIENCE);
        self.daemon = Some(job);
    }

    /// Kills it.
    pub fn kill_daemon(&mut self) {
        let pid = self.daemon.as_ref().expect("a daemon runs").pid();
        self.towline.kill(&[pid]);
        drop(self.daemon.take());
    }

    /// What it has logged.
    pub fn daemon_log(&self) -> String {
        self.daemon.as_ref().map(Job::stderr).unwrap_or_default()
    }

    /// Starts containerd.
    pub fn start_containerd(&mut self) {
        let mut command = self.program("containerd");
        command.arg("--config").arg(self.towline.dir().join("config.toml"));
        self.containerd = Some(Job::start(command));
        wait_until("CRI's answer", PATIENCE, || self.cri.try_call::<StatusResponse>("Status", &Empty {}).is_ok());
    }

    /// Kills it.
    pub fn kill_containerd(&mut self) {
        let pid = self.containerd.as_ref().expect("containerd runs").pid();
        self.towline.kill(&[pid]);
        drop(self.containerd.take());
    }

    /// An image through the link.
    pub fn image(&self, name: &str) -> String {
        match self.link.address() {
            address if address.port() == 80 => format!("{}/{name}", address.ip()),
            address => format!("{address}/{name}"),
        }
    }

    /// Pulls an image through CRI.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        self.cri.pull(image, None)
    }

    /// `ctr` in CRI's namespace.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program("ctr");
        command.arg("--address").arg(self.towline.state().join("containerd.sock")).args(["--namespace", NAMESPACE]).args(args);
        command
    }

    /// Runs `ctr`.
    pub fn ctr(&self, args: &[&str]) -> Finished {
        run(self.command(args), PATIENCE)
    }

    /// Runs `ctr`, which must succeed; what it printed, without white space around it.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.ctr(args);
        assert_eq!(done.code(), Some(0), "{done:?}\n{}", self.daemon_log());
        done.stdout.trim().to_owned()
    }

    /// `ctr snapshots`, which must succeed.
    #[track_caller]
    pub fn snapshots(&self, args: &[&str]) -> String {
        self.ok(&[&["snapshots", "--snapshotter", "towline"], args].concat())
    }

    /// Calls `Prepare` or `View` of containerd's snapshot service.
    pub fn make_snapshot(
        &self,
        method: &str,
        namespace: &str,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<(), Status> {
        let request = SnapshotRequest {
            snapshotter: "towline".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let method = format!("/containerd.services.snapshots.v1.Snapshots/{method}");
        grpc::call::<Empty>(&self.towline.state().join("containerd.sock"), Some(namespace), &method, &request).map(drop)
    }

    /// `ctr run`.
    pub fn start(&self, options: &[&str], image: &str, id: &str, program: &[&str]) -> Command {
        let (runtime, root) = (bin_dir().join("towline-oci"), self.towline.state().join("oci"));
        let (runtime, root) = (runtime.display().to_string(), root.display().to_string());
        // Names of containers are those of another test, too, that runs now.
        let cgroup = format!("/{NAMESPACE}/{id}-{}", std::process::id());
        let fixed = ["run", "--snapshotter", "towline", "--runc-binary", &runtime, "--runc-root", &root, "--cgroup", &cgroup];
        let fixed = [&fixed[..], &["--env", "PATH=/bin"]].concat();
        self.command(&[&fixed[..], options, &[image, id], program].concat())
    }

    /// The same to its end; it must succeed. What it printed.
    #[track_caller]
    pub fn run(&self, image: &str, id: &str, program: &[&str]) -> String {
        self.logged(id, |log| self.start(&["--rm", "--log-uri", log], image, id, program))
    }

    /// `ctr task exec`, which must succeed. What it printed.
    #[track_caller]
    pub fn exec(&self, id: &str, program: &[&str]) -> String {
        self.logged("exec", |log| self.command(&[&["task", "exec", "--log-uri", log, "--exec-id", "exec", id], program].concat()))
    }

    /// What a container prints reaches a file through the shim: `ctr` of containerd 1.6 stops reading when it hears of the end, and
    /// loses what it has not read by then.
    #[track_caller]
    fn logged(&self, name: &str, command: impl FnOnce(&str) -> Command) -> String {
        let log = self.towline.dir().join(format!("{name}.log"));
        // The shim appends.
        drop(fs::remove_file(&log));
        let done = run(command(&format!("file://{}", log.display())), PATIENCE);
        assert_eq!(done.code(), Some(0), "{done:?}\n{}", self.daemon_log());
        fs::read_to_string(&log).unwrap_or_else(|e| panic!("read {}: {e}", log.display()))
    }

    /// The names of all snapshots.
    pub fn keys(&self) -> Vec<String> {
        let listed = self.snapshots(&["ls"]);
        listed.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }

    /// Removes all images that CRI knows, and waits until neither snapshots nor images of the store are left.
    #[track_caller]
    pub fn remove_images(&self) {
        wait_until("everything to be freed", PATIENCE, || {
            self.remove_names();
            self.keys().is_empty() && self.store_images().is_empty()
        });
    }

    /// Removes the names of all images. CRI gives an image its names again while it still works on events of the pull.
    pub fn remove_names(&self) {
        let images = self.ok(&["images", "ls", "--quiet"]);
        let names: Vec<&str> = images.lines().collect();
        if !names.is_empty() {
            drop(self.ctr(&[&["images", "rm", "--sync"], names.as_slice()].concat()));
        }
    }

    /// What `towline images ls` has.
    pub fn store_images(&self) -> Vec<String> {
        let listed = self.towline.run(&["images", "ls"]).success().stdout;
        listed.lines().skip(1).map(str::to_owned).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tail = |job: &Option<Job>| job.as_ref().map(Job::stderr).unwrap_or_default();
            for log in [tail(&self.daemon), tail(&self.containerd)] {
                let lines: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("---\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        if self.containerd.is_some() {
            let list = self.ctr(&["container", "ls", "--quiet"]);
            for id in list.stdout.split_whitespace() {
                for args in [&["task", "rm", "--force", id][..], &["container", "rm", id]] {
                    drop(self.ctr(args));
                }
            }
        }
        drop(self.containerd.take());
        drop(self.daemon.take());
    }
}
