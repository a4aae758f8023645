//! A bundle, a shim for it, and the event service that the shim finds.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::empty::Empty;
use serde_json::json;
use tempfile::TempDir;
use towline_shim::rpc::client::Client;
use towline_shim::rpc::server::{self, Reply, Service};

const PATIENCE: Duration = Duration::from_secs(120);

/// How the shim is started, and says where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// containerd 1.6.
    Flags,
    /// 1.7 to 2.2.
    Json,
    /// 2.3 and later.
    Bootstrap,
}

/// What containerd's event service got.
#[derive(Default)]
struct Inbox(Mutex<Vec<Envelope>>);

impl Service for Inbox {
    fn is_quick(&self, _: &str, _: &str) -> bool {
        true
    }

    fn call(&self, service: &str, method: &str, payload: &[u8], reply: Reply) {
        assert_eq!((service, method), ("containerd.services.events.ttrpc.v1.Events", "Forward"));
        let mut request = ForwardRequest::parse_from_bytes(payload).expect("a forward request");
        self.0.lock().expect("the lock").push(request.envelope.take().expect("an envelope"));
        reply.send(Ok(Empty::new()));
    }
}

/// A pod of one container. Dropping it has the shim's `delete` clean up.
pub struct Pod {
    dir: TempDir,
    id: String,
    socket: PathBuf,
    events: Arc<Inbox>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Pod {
    /// Starts a shim for a container that runs `script`; `None`, after saying so, where it cannot be.
    pub fn start(test: &str, dialect: Dialect, script: &str) -> Option<Self> {
        let mut pod = Self::prepare(test, script)?;
        pod.launch(dialect);
        Some(pod)
    }

    /// A pod whose shim is not started yet.
    pub fn prepare(test: &str, script: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP {test}: needs root");
            return None;
        }
        if !shim().with_file_name("towline-oci").exists() {
            println!("SKIP {test}: towline-oci is not beside the shim (cargo build --bins)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("towline-shim-").tempdir().expect("make a directory");
        let id = format!("protocol-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        make_bundle(&dir.path().join("bundle"), script);
        let events = Arc::new(Inbox::default());
        let listener = UnixListener::bind(dir.path().join("c.sock.ttrpc")).expect("listen");
        let service: Arc<dyn Service> = Arc::clone(&events) as Arc<dyn Service>;
        std::thread::spawn(move || server::serve(&listener, &service));
        Some(Self { dir, id, socket: PathBuf::new(), events })
    }

    fn launch(&mut self, dialect: Dialect) {
        let address = self.address(dialect);
        self.socket = address.strip_prefix("unix://").expect("a unix socket").into();
    }

    /// `start` with the runtime's options, as containerd 1.6 does it.
    pub fn try_launch(&mut self, options: &Options) -> Result<(), String> {
        let value = options.write_to_bytes().expect("encode");
        let any = Any { type_url: "containerd.runc.v1.Options".to_owned(), value, ..Any::default() };
        let mut command = self.start_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the shim");
        child.stdin.take().expect("its input").write_all(&any.write_to_bytes().expect("encode")).expect("write to the shim");
        let output = child.wait_with_output().expect("wait for start");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let address = String::from_utf8(output.stdout).expect("an address");
        self.socket = address.strip_prefix("unix://").expect("a unix socket").into();
        Ok(())
    }

    /// `start`, in the oldest dialect.
    pub fn start_command(&self) -> Command {
        let mut command = self.command();
        command.arg("start").env_remove("MAX_SHIM_VERSION");
        command
    }

    /// The shim's pid.
    pub fn shim_pid(&self) -> i32 {
        fs::read_to_string(self.bundle().join("shim.pid")).expect("the shim's pid").trim().parse().expect("a pid")
    }

    fn address(&self, dialect: Dialect) -> String {
        let mut command = self.start_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut input = vec![];
        match dialect {
            Dialect::Flags => {}
            Dialect::Json => drop(command.env("MAX_SHIM_VERSION", "3").env("TTRPC_ADDRESS", self.path("c.sock.ttrpc"))),
            Dialect::Bootstrap => {
                let mut params = BootstrapParams::new();
                (params.instance_id, params.namespace) = (self.id.clone(), "protocol".into());
                params.containerd_grpc_address = self.path("c.sock").display().to_string();
                params.containerd_ttrpc_address = self.path("c.sock.ttrpc").display().to_string();
                params.socket_dir = Some(self.path("s").display().to_string());
                input = params.write_to_bytes().expect("encode");
            }
        }
        let mut child = command.spawn().expect("start the shim");
        child.stdin.take().expect("its input").write_all(&input).expect("write to the shim");
        // containerd waits for the end of both streams, which the shim that stays must not hold.
        let output = child.wait_with_output().expect("wait for start");
        assert!(output.status.success(), "{output:?}");
        match dialect {
            Dialect::Flags => String::from_utf8(output.stdout).expect("an address"),
            Dialect::Json => {
                let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
                assert_eq!((&json["version"], &json["protocol"]), (&json!(3), &json!("ttrpc")));
                json["address"].as_str().expect("an address").to_owned()
            }
            Dialect::Bootstrap => {
                let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("a result");
                assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
                assert!(result.address.contains(&self.path("s").display().to_string()), "{}", result.address);
                result.address
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(shim());
        command.args(["-namespace", "protocol", "-id", &self.id, "-address"]).arg(self.path("c.sock"));
        command.arg("-publish-binary").arg("/bin/false").current_dir(self.bundle());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The container's id.
    pub fn id(&self) -> String {
        self.id.clone()
    }

    /// Its bundle.
    pub fn bundle(&self) -> PathBuf {
        self.path("bundle")
    }

    /// A file for its output.
    pub fn output(&self) -> PathBuf {
        self.path("output")
    }

    /// What is in that file.
    pub fn text(&self) -> String {
        fs::read_to_string(self.output()).expect("read the output")
    }

    /// Waits until that is all there is in it.
    pub fn wait_text(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        while self.text() != wanted {
            assert!(Instant::now() < end, "{:?}, not {wanted:?}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Changes the configuration of the container, before it is made.
    pub fn edit_config(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let path = self.bundle().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).expect("read config.json")).expect("JSON");
        edit(&mut config);
        fs::write(path, config.to_string()).expect("write config.json");
    }

    /// A connection to the shim.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket, PATIENCE).expect("connect to the shim")
    }

    /// The topics of the events so far.
    pub fn topics(&self) -> Vec<String> {
        self.events.0.lock().expect("the lock").iter().map(|envelope| envelope.topic.clone()).collect()
    }

    /// The ids of the processes that ended, in the order of the events.
    pub fn exits(&self) -> Vec<String> {
        let events = self.events.0.lock().expect("the lock");
        let exits = events.iter().filter(|envelope| envelope.topic == "/tasks/exit");
        exits.map(|exit| TaskExit::parse_from_bytes(&exit.event.value).expect("an exit").id).collect()
    }

    /// Waits until the shim has gone, with its socket.
    pub fn assert_left(&self) {
        let pid = fs::read_to_string(self.bundle().join("shim.pid")).expect("the shim's pid");
        let proc = Path::new("/proc").join(pid.trim());
        // Whoever started it may not have reaped it yet.
        let lives = || fs::read_to_string(proc.join("stat")).is_ok_and(|stat| !stat.contains(") Z "));
        let end = Instant::now() + PATIENCE;
        while lives() || self.socket.exists() {
            assert!(Instant::now() < end, "the shim {pid} is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // A test may have failed anywhere: what is left goes as after a crash of the shim.
        if let Some(pid) = fs::read_to_string(self.bundle().join("shim.pid")).ok().and_then(|pid| pid.trim().parse().ok())
            && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&self.id))
        {
            drop(towline_sys::kill(pid, 9));
        }
        drop(self.command().arg("delete").stdout(Stdio::null()).status());
    }
}

fn shim() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_containerd-shim-towline-v2"))
}

fn make_bundle(bundle: &Path, script: &str) {
    let root = bundle.join("rootfs");
    for folder in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(folder)).expect("make the root");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy the statically linked busybox");
    for applet in ["sh", "sleep", "echo", "stat"] {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    let namespaces: Vec<_> = ["pid", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": { "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces },
    });
    fs::write(bundle.join("config.json"), config.to_string()).expect("write config.json");
}
