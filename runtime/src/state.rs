//! The state directory: what is known about each container between two calls of the runtime.
//!
//! ```text
//! <root>/                 0700; /run/towline-oci, or --root
//!   <id>/                 0700; made by create with mkdir, so that an id is taken exactly once
//!     config.json         as it was read at create
//!     seccomp.bpf         linux.seccomp compiled, if there is one, for exec
//!     state.json          Record; written beside and renamed, so that it is there whole or not at all
//!     start.sock          init listens here until it is started: its presence is what "created" means
//! ```
//!
//! Everything is opened beneath descriptors of the root and of the container's directory. A directory without state.json is a
//! create that is still running or was killed; `delete --force` clears it away.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, flock, mkdirat, openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupManager;
use crate::client::{State, Status};
use crate::container::listener::Listener;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::init::schedule::Domain;
use crate::process::wait::Deadline;
use crate::procfs::{ProcFs, start_time};
use crate::resctrl::Group;
use crate::seccomp::{Filter, format};

const RECORD: &str = "state.json";
const CONFIG: &str = "config.json";
const START_SOCKET: &str = "start.sock";
const FILTER: &str = "seccomp.bpf";

/// How many may wait for init to accept them; each look at the status is one for a moment.
const QUEUE: i32 = 64;

/// How long init may take to accept somebody when that many wait.
const ANSWER: Duration = Duration::from_secs(10);

/// The version of [`Record`]; a reader refuses others.
const RECORD_VERSION: u32 = 2;

/// What `state.json` holds. Names are those of runc where it has them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// Of this format.
    pub version: u32,
    /// The container's id.
    pub id: String,
    /// `ociVersion` of the configuration.
    pub oci_version: String,
    /// Pid of init on the host; 0 while the container is being created.
    pub init_process_pid: i32,
    /// When it started, in clock ticks since boot: tells it from a later process with its pid.
    pub init_process_start: u64,
    /// RFC 3339.
    pub created: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system on the host, absolute.
    pub rootfs: PathBuf,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Who made it.
    pub owner: String,
    /// Kinds of namespaces that are the container's own, as `CLONE_NEW*` bits.
    pub namespaces: u64,
    /// Its cgroups.
    pub cgroup: Option<CgroupManager>,
    /// Its group of `linux.intelRdt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Group>,
    /// Whether it has a seccomp filter; then that is beside this record, for exec.
    pub seccomp: bool,
    /// Who answers for the filter's notifications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_listener: Option<Listener>,
    /// `linux.personality` and `linux.memoryPolicy`, for exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    /// Name of the session keyring, if it has one.
    pub keyring: Option<String>,
}

/// The part of every version's record.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Record {
    /// A record of this version.
    pub const VERSION: u32 = RECORD_VERSION;

    /// Reads `state.json`.
    ///
    /// # Errors
    /// `Unsupported` for another version, `BadInput` for anything else that is no record.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let tried = || Error::new(Outcome::BadInput, "parsing JSON");
        match serde_json::from_slice::<Self>(json) {
            Ok(record) if record.version == RECORD_VERSION => Ok(record),
            // What is wrong with another version's fields does not matter then.
            other => {
                let version = serde_json::from_slice::<Versioned>(json).map_err(|cause| tried().because(cause))?.version;
                if version != RECORD_VERSION {
                    return Err(Error::new(Outcome::Unsupported, "parsing JSON")
                        .because(format!("it has version {version}, and this runtime knows {RECORD_VERSION}")));
                }
                other.map_err(|cause| tried().because(cause))
            }
        }
    }

    /// True while init is there (and is not a zombie).
    pub fn is_alive(&self, proc: &ProcFs) -> bool {
        start_time(proc, self.init_process_pid) == Some(self.init_process_start)
    }

    /// The state as the runtime-spec has it.
    pub fn to_state(&self, status: Status) -> State {
        State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.init_process_pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: self.owner.clone(),
        }
    }
}

/// What is left of a record.
#[derive(Debug)]
pub struct Salvaged {
    /// Pid and start time of init; a pid of 0 is nobody.
    pub init: (i32, u64),
    /// Its cgroups.
    pub cgroup: Option<CgroupManager>,
}

/// The directory of all containers.
#[derive(Debug)]
pub struct StateRoot {
    fd: OwnedFd,
    path: PathBuf,
}

impl StateRoot {
    /// Opens `path`, and makes it (0700) when it is absent.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|cause| Error::io("making state directory", path, cause))?;
        let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|cause| Error::io("opening state directory", path, cause))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Takes an id. It must be free.
    pub fn create(&self, id: &ContainerId) -> Result<ContainerDir> {
        match mkdirat(&self.fd, id.as_str(), Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) => Err(Error::new(Outcome::Exists, format!("creating container {id}"))
                .because("container with given ID already exists")
                .advise("use another id, or delete it")),
            Err(cause) => Err(Error::io("making", self.path.join(id.as_str()), cause)),
            Ok(()) => self.find(id),
        }
    }

    /// The directory of a container, or [`Outcome::NotFound`].
    pub fn find(&self, id: &ContainerId) -> Result<ContainerDir> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.fd, id.as_str(), flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(ContainerDir { fd, id: id.clone() }),
            Err(Errno::NOENT) => {
                Err(Error::new(Outcome::NotFound, format!("finding container {id}")).because("container does not exist"))
            }
            Err(cause) => Err(Error::io("opening", self.path.join(id.as_str()), cause)),
        }
    }

    /// The ids of all containers, sorted.
    pub fn ids(&self) -> Result<Vec<ContainerId>> {
        let failed = |cause: Errno| Error::io("listing", &self.path, cause);
        let mut ids = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(id) = entry.file_name().to_str().ok().and_then(|name| ContainerId::new(name).ok()) else { continue };
            if FileType::Directory == entry.file_type() {
                ids.push(id);
            }
        }
        ids.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        Ok(ids)
    }

    /// Removes a container's directory and what the runtime keeps in it. An absent one is fine.
    pub fn remove(&self, id: &ContainerId) -> Result<()> {
        let dir = match self.find(id) {
            Err(error) if error.outcome() == Outcome::NotFound => return Ok(()),
            dir => dir?,
        };
        let failed = |name: &str, cause: Errno| Error::io("removing", self.path.join(id.as_str()).join(name), cause);
        let remove = |name: &OsStr| match unlinkat(&dir.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(cause) => Err(failed(&name.to_string_lossy(), cause)),
        };
        // Whatever is there, also what an interrupted call left. The record goes last: as long as it is there a repeated delete
        // knows what to clean up.
        for entry in Dir::read_from(&dir.fd).map_err(|cause| failed("", cause))? {
            let entry = entry.map_err(|cause| failed("", cause))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if ![".", "..", RECORD].iter().any(|other| name == *other) {
                remove(name)?;
            }
        }
        remove(OsStr::new(RECORD))?;
        match unlinkat(&self.fd, id.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(cause) => Err(failed("", cause)),
        }
    }
}

/// The directory of one container.
#[derive(Debug)]
pub struct ContainerDir {
    fd: OwnedFd,
    id: ContainerId,
}

impl ContainerDir {
    /// The container's id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Writes the record; readers see the old one or this one.
    pub fn save(&self, record: &Record) -> Result<()> {
        let json = serde_json::to_vec(record)
            .map_err(|cause| Error::new(Outcome::Io, format!("writing the state of container {}", self.id)).because(cause))?;
        self.write(RECORD, "state.json.new", &json)
    }

    /// Keeps the configuration.
    pub fn save_config(&self, json: &[u8]) -> Result<()> {
        self.write(CONFIG, "config.json.new", json)
    }

    /// The record; `None` while the container is being created (or when that was interrupted).
    pub fn load(&self) -> Result<Option<Record>> {
        let Some(json) = self.read(RECORD)? else { return Ok(None) };
        Record::parse(&json).map(Some).map_err(|error| error.during(format!("reading the state of container {}", self.id)))
    }

    /// What a record that [`ContainerDir::load`] refuses still tells: another version's, or a damaged one's.
    pub fn salvage(&self) -> Salvaged {
        let json = self.read(RECORD).ok().flatten().unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
        let pid = value["init_process_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        Salvaged {
            init: (pid, value["init_process_start"].as_u64().unwrap_or(0)),
            cgroup: serde_json::from_value(value["cgroup"].clone()).unwrap_or(None),
        }
    }

    /// The configuration the container was made from.
    pub fn load_config(&self) -> Result<Vec<u8>> {
        self.read(CONFIG)?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("reading the configuration of container {}", self.id)).because("it is gone")
        })
    }

    /// Keeps the compiled filter.
    pub fn save_filter(&self, filter: &Filter) -> Result<()> {
        self.write(FILTER, "seccomp.bpf.new", &format::encode(filter, &format::Key::default()))
    }

    /// The compiled filter of a container that has one.
    pub fn load_filter(&self) -> Result<Filter> {
        let tried = || format!("reading the seccomp filter of container {}", self.id);
        let bytes = self.read(FILTER)?.ok_or_else(|| Error::new(Outcome::NotFound, tried()).because("it is gone"))?;
        format::decode(&bytes, None).map_err(|why| Error::new(Outcome::BadInput, tried()).because(why))
    }

    /// The socket on which init waits for [`ContainerDir::connect_start`].
    pub fn listen_start(&self) -> Result<OwnedFd> {
        let failed = |cause: Errno| self.socket_error("making", cause);
        let socket = self.socket()?;
        bind(&socket, &self.start_address()?).map_err(failed)?;
        listen(&socket, QUEUE).map_err(failed)?;
        Ok(socket)
    }

    /// Connects to a waiting init.
    pub fn connect_start(&self) -> Result<OwnedFd> {
        let deadline = Deadline::after(ANSWER);
        loop {
            match self.try_connect_start() {
                Ok(socket) => return Ok(socket),
                Err(Errno::AGAIN) if deadline.left() > Duration::ZERO => std::thread::sleep(Duration::from_millis(10)),
                Err(Errno::AGAIN) => {
                    return Err(Error::new(Outcome::Timeout, format!("connecting to the start socket of container {}", self.id))
                        .because(format!("init has accepted nobody for {ANSWER:?}"))
                        .advise("`delete --force` ends it"));
                }
                Err(cause) => return Err(self.socket_error("connecting to", cause)),
            }
        }
    }

    fn try_connect_start(&self) -> rustix::io::Result<OwnedFd> {
        // Not to wait in connect(2): init may be stopped, and what others queued for it may be all that it takes.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::retry_on_intr(|| connect(&socket, &self.start_address_raw()?))?;
        Ok(socket)
    }

    /// True until the container is started. The socket alone does not tell: a `start` that was killed after its word was taken
    /// leaves it, with nobody who listens.
    pub fn waits_for_start(&self) -> Result<bool> {
        match statat(&self.fd, START_SOCKET, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(cause) => return Err(self.socket_error("looking for", cause)),
        }
        match self.try_connect_start() {
            Ok(_) | Err(Errno::AGAIN) => Ok(true),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
            Err(cause) => Err(self.socket_error("trying", cause)),
        }
    }

    /// Takes the lock of the container's directory for as long as this value lives; false if somebody has it. The kernel drops it
    /// with a process that is killed.
    pub fn lock(&self) -> Result<bool> {
        match flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(cause) => Err(Error::sys(format!("locking container {}", self.id), cause)),
        }
    }

    /// The container is started: nobody can start it again.
    pub fn started(&self) -> Result<()> {
        match unlinkat(&self.fd, START_SOCKET, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(cause) => Err(self.socket_error("removing", cause)),
        }
    }

    fn socket(&self) -> Result<OwnedFd> {
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|cause| self.socket_error("making", cause))
    }

    fn start_address(&self) -> Result<SocketAddrUnix> {
        self.start_address_raw().map_err(|cause| self.socket_error("naming", cause))
    }

    /// Through /proc/self/fd, so that the 108 bytes of a socket address always suffice.
    fn start_address_raw(&self) -> rustix::io::Result<SocketAddrUnix> {
        SocketAddrUnix::new(format!("/proc/self/fd/{}/{START_SOCKET}", self.fd.as_raw_fd()))
    }

    fn socket_error(&self, operation: &str, cause: Errno) -> Error {
        Error::sys(format!("{operation} the start socket of container {}", self.id), cause)
    }

    fn write(&self, name: &str, temporary: &str, content: &[u8]) -> Result<()> {
        let failed = |cause: std::io::Error| Error::sys(format!("writing {name} of container {}", self.id), cause);
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(self.open(temporary, flags, 0o600).map_err(|cause| failed(cause.into()))?);
        file.write_all(content).map_err(failed)?;
        renameat(&self.fd, temporary, &self.fd, name).map_err(|cause| failed(cause.into()))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let failed = |cause: std::io::Error| Error::sys(format!("reading {name} of container {}", self.id), cause);
        let file = match self.open(name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(|cause| failed(cause.into()))?,
        };
        let mut content = Vec::new();
        File::from(file).read_to_end(&mut content).map_err(failed)?;
        Ok(Some(content))
    }

    fn open(&self, name: &str, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
    }
}

impl AsFd for ContainerDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot::open(&dir.path().join("deep/root")).unwrap();
        let id = ContainerId::new("c1").unwrap();
        assert_eq!(root.find(&id).unwrap_err().outcome(), Outcome::NotFound);
        let container = root.create(&id).unwrap();
        assert_eq!(root.create(&id).unwrap_err().outcome(), Outcome::Exists);
        assert!(container.load().unwrap().is_none());
        container.save_config(b"{}").unwrap();
        let socket = container.listen_start().unwrap();
        assert!(container.waits_for_start().unwrap());
        container.connect_start().unwrap();
        // Nobody accepts, and still nobody hangs.
        while container.try_connect_start().is_ok() {}
        assert!(container.waits_for_start().unwrap());
        drop(socket);
        assert!(!container.waits_for_start().unwrap());
        assert!(container.lock().unwrap() && !root.find(&id).unwrap().lock().unwrap());
        container.write("left", "left.new", b"by an interrupted call").unwrap();
        assert!(container.connect_start().is_err());
        assert_eq!(root.ids().unwrap(), std::slice::from_ref(&id));
        root.remove(&id).unwrap();
        root.remove(&id).unwrap();
        assert!(root.ids().unwrap().is_empty());
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot::open(dir.path()).unwrap();
        let container = root.create(&ContainerId::new("c1").unwrap()).unwrap();
        container.write(RECORD, "state.json.new", br#"{"version":99}"#).unwrap();
        let error = container.load().unwrap_err();
        assert!(error.outcome() == Outcome::Unsupported && error.one_line().contains("version 99"), "{error:?}");
    }

    #[test]
    fn a_damaged_record_is_named_and_what_it_tells_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot::open(dir.path()).unwrap();
        let container = root.create(&ContainerId::new("c1").unwrap()).unwrap();
        for (bytes, init) in [
            (&b""[..], (0, 0)),
            (b"{\"version\":1", (0, 0)),
            (b"\0\xff\xfegarbage", (0, 0)),
            (b"[]", (0, 0)),
            (b"{\"version\":2,\"init_process_pid\":7,\"init_process_start\":9}", (7, 9)),
            (b"{\"version\":99,\"init_process_pid\":7,\"init_process_start\":9,\"new\":[]}", (7, 9)),
            (b"{\"version\":1,\"init_process_pid\":99999999999,\"init_process_start\":-1}", (0, 0)),
        ] {
            container.write(RECORD, "state.json.new", bytes).unwrap();
            let error = container.load().unwrap_err().one_line();
            assert!(error.starts_with("reading the state of container c1"), "{error}");
            assert_eq!(container.salvage().init, init, "{error}");
        }
    }
}
