//! Typed, blocking client of `towlined`, which it starts where none runs.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::protocol::{
    Command as Runs, Event, Hello, MAX_LINE, Message, Prepared, PullRequest, Reply, Request, VERSION, Verified,
};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::observe::Wait;
use crate::observe::spans::Context;
use crate::store::create_private_dir;

/// Where a store and its daemon live.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The store, `/var/lib/towline` for root.
    pub root: PathBuf,
    /// State that does not outlive a reboot, `/run/towline` for root.
    pub state: PathBuf,
}

impl Paths {
    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("towlined.sock")
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.state.join("towlined.log")
    }

    /// Held locked by the daemon of this store as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.state.join("towlined.lock")
    }

    /// Held locked by whoever starts a daemon, until it serves.
    pub fn start_lock(&self) -> PathBuf {
        self.state.join("start.lock")
    }

    /// The socket of the process that keeps the trigger's device.
    pub fn holder(&self) -> PathBuf {
        self.state.join("holder.sock")
    }

    /// Where metrics are served by default.
    pub fn metrics(&self) -> PathBuf {
        self.state.join("metrics.sock")
    }

    /// The waits of programs that the last daemon saw.
    pub fn waits(&self) -> PathBuf {
        self.state.join("waits.json")
    }

    /// Where the FUSE trigger is mounted while something is lazy.
    pub fn trigger(&self) -> PathBuf {
        self.state.join("trigger")
    }
}

/// How long a daemon that was just started may take until it serves; also covers the previous one's exit.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a daemon may take to agree that another one takes over.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(30);

/// A connection to the daemon of one store.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    pid: u32,
    ended: bool,
}

impl Client {
    /// Connects to the daemon; `None` where none runs.
    pub fn connect(paths: &Paths) -> Result<Option<Self>> {
        let socket = paths.socket();
        let stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) => return Err(Error::io("connecting to", &socket, e)),
        };
        let mut client = Self { reader: BufReader::new(stream), pid: 0, ended: false };
        match client.send(&Hello { version: VERSION, replace: false }).and_then(|()| client.receive()) {
            Ok(Some(Message::Welcome { version: VERSION, pid })) => {
                client.pid = pid;
                Ok(Some(client))
            }
            Ok(Some(Message::Failed(failure))) => Err(failure.into()),
            Ok(Some(Message::Welcome { version, pid })) => {
                Err(Error::new(Outcome::Unsupported, format!("greeting towlined at {}", socket.display()))
                    .because(format!("process {pid} speaks protocol {version}, this program speaks {VERSION}"))
                    .advise("`towline system upgrade` replaces it by the installed one; containers go on"))
            }
            Ok(Some(other)) => Err(Error::new(Outcome::BadInput, format!("greeting towlined at {}", socket.display()))
                .because(format!("it answered {other:?}"))),
            // It was leaving when we came: nobody is there.
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// Connects to the daemon, and starts `towlined` where none runs. Of several processes that do this at once one starts it.
    /// `registry_config` is where the new one looks for configuration of registries first.
    pub fn connect_or_start(paths: &Paths, towlined: &Path, registry_config: Option<&Path>) -> Result<Self> {
        if let Some(client) = Self::connect(paths)? {
            return Ok(client);
        }
        let deadline = Instant::now() + START_DEADLINE;
        let _starting = start_lock(paths, deadline)?;
        loop {
            if let Some(client) = Self::connect(paths)? {
                return Ok(client);
            }
            if Instant::now() > deadline {
                return Err(Error::new(Outcome::Unavailable, format!("starting {}", towlined.display()))
                    .because(format!("it did not serve {} within {START_DEADLINE:?}", paths.socket().display()))
                    .advise(format!("see {}", paths.log().display())));
            }
            match start(paths, towlined, registry_config, &[]) {
                // One that somebody else started was there first, or is about to leave.
                Err(e) if e.outcome() == Outcome::Busy && Instant::now() < deadline => {}
                started => started?,
            }
        }
    }

    /// Starts `towlined` in place of the one that runs; containers wait meanwhile. Where none runs it is only started.
    pub fn upgrade(paths: &Paths, towlined: &Path, registry_config: Option<&Path>) -> Result<Self> {
        let _starting = start_lock(paths, Instant::now() + START_DEADLINE)?;
        start(paths, towlined, registry_config, &["--replace"])?;
        Self::connect(paths)?.ok_or_else(|| {
            Error::new(Outcome::Unavailable, format!("connecting to the new {}", towlined.display()))
                .because("it has left already")
                .advise(format!("see {}", paths.log().display()))
        })
    }

    /// Process id of the daemon.
    pub fn daemon_pid(&self) -> u32 {
        self.pid
    }

    /// Whether the daemon has ended while it was asked for something; the next one may answer.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Makes an image available; `on_event` sees what happens meanwhile. The reply is [`Reply::Pulled`].
    pub fn pull(&mut self, request: PullRequest, on_event: &mut dyn FnMut(Event)) -> Result<Reply> {
        self.request(&Request::Pull(request), on_event)
    }

    /// Pins `image` for `container` and says what its root consists of.
    pub fn prepare(&mut self, image: &str, container: &str) -> Result<Prepared> {
        let request = Request::Prepare { image: image.to_owned(), container: container.to_owned() };
        match self.request(&request, &mut |_| {})? {
            Reply::Prepared(prepared) => Ok(prepared),
            other => Err(unexpected(&request, &other)),
        }
    }

    /// Says what a container of `image` is about to run.
    pub fn ahead(&mut self, image: Digest, command: Runs, trace: Option<Context>) -> Result<()> {
        self.request(&Request::Ahead { image, command, trace }, &mut |_| {}).map(drop)
    }

    /// The last waits of programs, oldest first: of the daemon that runs, else those that the last one left behind when it went.
    pub fn waits(paths: &Paths) -> Result<Vec<Wait>> {
        let Some(mut daemon) = Self::connect(paths)? else {
            let path = paths.waits();
            return match std::fs::read(&path) {
                Ok(bytes) => serde_json::from_slice(&bytes)
                    .map_err(|e| Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(e)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(e) => Err(Error::io("reading", path, e)),
            };
        };
        match daemon.request(&Request::Waits, &mut |_| {})? {
            Reply::Waits { waits } => Ok(waits),
            other => Err(unexpected(&Request::Waits, &other)),
        }
    }

    /// Serves the tree of `image` from user space at the absolute path `dir`.
    pub fn mount_tree(&mut self, image: &str, dir: &Path) -> Result<()> {
        let request = Request::MountTree { image: image.to_owned(), dir: dir.to_owned() };
        self.request(&request, &mut |_| {}).map(drop)
    }

    /// Ends [`Self::mount_tree`].
    pub fn unmount_tree(&mut self, dir: &Path) -> Result<()> {
        self.request(&Request::UnmountTree { dir: dir.to_owned() }, &mut |_| {}).map(drop)
    }

    /// Brings a file of `image`, or a range of one that is large, into the store for the thread `caller`.
    pub fn bring(&mut self, image: Digest, content: Digest, range: Option<Range<u64>>, caller: u32) -> Result<()> {
        self.request(&Request::Bring { image, content, range, caller }, &mut |_| {}).map(drop)
    }

    /// Reads the blob of a layer of `image` into the file `into`.
    pub fn blob(&mut self, image: Digest, layer: Digest, into: &Path) -> Result<()> {
        self.request(&Request::Blob { image, layer, into: into.to_owned() }, &mut |_| {}).map(drop)
    }

    /// Pushes the access profile of `image` to where the image came from; digest of the artifact there.
    pub fn push_profile(&mut self, image: Digest) -> Result<Digest> {
        let request = Request::PushProfile { image };
        match self.request(&request, &mut |_| {})? {
            Reply::Pushed { artifact } => Ok(artifact),
            other => Err(unexpected(&request, &other)),
        }
    }

    /// Ends the pin of `container`.
    pub fn release(&mut self, container: &str) -> Result<()> {
        self.request(&Request::Release { container: container.to_owned() }, &mut |_| {}).map(drop)
    }

    /// Reports progress of `image` until it is complete.
    pub fn watch(&mut self, image: Digest, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        self.request(&Request::Watch { image }, on_event).map(drop)
    }

    /// Removes what no image names; the reply is [`Reply::Removed`].
    pub fn prune(&mut self) -> Result<Reply> {
        self.request(&Request::Prune, &mut |_| {})
    }

    /// Reads everything that is stored.
    pub fn verify(&mut self, repair: bool) -> Result<Verified> {
        let request = Request::Verify { repair };
        match self.request(&request, &mut |_| {})? {
            Reply::Verified(verified) => Ok(verified),
            other => Err(unexpected(&request, &other)),
        }
    }

    /// Removes an image name; the reply is [`Reply::Removed`].
    pub fn remove_image(&mut self, image: &str) -> Result<Reply> {
        self.request(&Request::RemoveImage { image: image.to_owned() }, &mut |_| {})
    }

    /// Blocks until the daemon closes the connection: it has left, or died. `on_event` sees the hand-off. Fails where the daemon
    /// says anything else.
    pub fn wait_gone(mut self, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        loop {
            match self.receive()? {
                None => return Ok(()),
                Some(Message::Event(event @ (Event::HandedOff | Event::Replaced))) => on_event(event),
                Some(other) => {
                    let error = Error::new(Outcome::BadInput, "waiting for towlined to leave");
                    return Err(error.because(format!("it said {other:?}")));
                }
            }
        }
    }

    fn request(&mut self, request: &Request, on_event: &mut dyn FnMut(Event)) -> Result<Reply> {
        self.ended = true;
        self.send(request)?;
        loop {
            match self.receive()? {
                Some(Message::Event(event)) => on_event(event),
                Some(Message::Done(reply)) => {
                    self.ended = false;
                    return Ok(reply);
                }
                Some(Message::Failed(failure)) => {
                    self.ended = false;
                    return Err(failure.into());
                }
                Some(Message::Welcome { .. }) | None => {
                    return Err(Error::new(Outcome::Unavailable, "waiting for towlined's answer")
                        .because(format!("towlined (process {}) ended", self.pid))
                        .advise("run the command again: it starts a new towlined, which goes on where that one stopped"));
                }
            }
        }
    }

    fn send(&mut self, document: &impl serde::Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(document).expect("protocol types have only string keys");
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).map_err(|e| Error::io("writing to", "towlined's socket", e))
    }

    fn receive(&mut self) -> Result<Option<Message>> {
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut self.reader, MAX_LINE as u64);
        let n = limited.read_until(b'\n', &mut line);
        match n {
            Ok(0) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(Error::io("reading from", "towlined's socket", e)),
            Ok(_) if line.last() != Some(&b'\n') => Ok(None),
            Ok(_) => serde_json::from_slice(&line)
                .map(Some)
                .map_err(|e| Error::new(Outcome::BadInput, "reading towlined's answer").because(e)),
        }
    }
}

/// Asks the daemon that runs to leave everything to a successor, and yields its process id once it has agreed; `None` where none runs.
pub(super) fn ask_to_leave(paths: &Paths) -> Result<Option<u32>> {
    let socket = paths.socket();
    let tried = || format!("asking towlined at {} to hand over", socket.display());
    let stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(Error::io("connecting to", &socket, e)),
    };
    stream.set_read_timeout(Some(HAND_OVER_DEADLINE)).map_err(|e| Error::io("using", &socket, e))?;
    let mut client = Client { reader: BufReader::new(stream), pid: 0, ended: false };
    client.send(&Hello { version: VERSION, replace: true })?;
    let (version, pid) = match client.receive()? {
        Some(Message::Welcome { version, pid }) => (version, pid),
        None => return Ok(None),
        Some(other) => return Err(Error::new(Outcome::BadInput, tried()).because(format!("it answered {other:?}"))),
    };
    match client.receive()? {
        Some(Message::Done(_)) => Ok(Some(pid)),
        Some(Message::Failed(failure)) => Err(Error::from(failure).during(tried())),
        other => Err(Error::new(Outcome::Unsupported, tried())
            .because(format!("process {pid} speaks protocol {version} and answered {other:?}"))
            .advise("end it with SIGTERM and run any towline command: files that are not local fail until then")),
    }
}

/// Keeps others from starting a daemon meanwhile.
fn start_lock(paths: &Paths, deadline: Instant) -> Result<std::fs::File> {
    create_private_dir(&paths.state)?;
    let path = paths.start_lock();
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| Error::io("opening", &path, e))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::new(Outcome::Busy, format!("locking {}", path.display()))
                    .because(format!("another process has been starting towlined for {START_DEADLINE:?}"))
                    .advise(format!("see {}", paths.log().display())));
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(Error::io("locking", &path, e)),
        }
    }
}

/// Starts `towlined` and waits until it serves or says why it cannot: it writes one line to its standard output and closes it.
fn start(paths: &Paths, towlined: &Path, registry_config: Option<&Path>, flags: &[&str]) -> Result<()> {
    let tried = || format!("starting {}", towlined.display());
    create_private_dir(&paths.state)?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(paths.log());
    let log = log.map_err(|e| Error::io("opening", paths.log(), e))?;
    let mut child = Command::new(towlined)
        .arg("--root")
        .arg(&paths.root)
        .arg("--state")
        .arg(&paths.state)
        .args(registry_config.map(|dir| ["--registry-config".as_ref(), dir.as_os_str()]).into_iter().flatten())
        .arg("serve")
        .args(flags)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| Error::new(Outcome::NotFound, tried()).because(e).advise("install towlined beside towline"))?;
    let mut line = String::new();
    let stdout = child.stdout.take().expect("stdout is piped");
    let read = BufReader::new(std::io::Read::take(stdout, MAX_LINE as u64)).read_line(&mut line);
    read.map_err(|e| Error::io("reading the first line of", towlined, e))?;
    match serde_json::from_str(&line) {
        Ok(Message::Welcome { .. }) => Ok(()),
        Ok(Message::Failed(failure)) => {
            child.wait().map_err(|e| Error::io("waiting for", towlined, e))?;
            Err(Error::from(failure).during(tried()))
        }
        _ => {
            let status = child.wait().map_err(|e| Error::io("waiting for", towlined, e))?;
            Err(Error::new(Outcome::Unavailable, tried())
                .because(format!("it ended with {status} before it served"))
                .advise(format!("see {}", paths.log().display())))
        }
    }
}

fn unexpected(request: &Request, reply: &Reply) -> Error {
    Error::new(Outcome::BadInput, format!("asking towlined for {request:?}")).because(format!("it answered {reply:?}"))
}
