//! Which namespaces a process gets: new ones, and existing ones that it joins.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Outcome, Result};

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(LinuxNamespaceType);

impl Kind {
    /// Mount namespace.
    pub const MOUNT: Self = Self(LinuxNamespaceType::Mount);
    /// Cgroup namespace.
    pub const CGROUP: Self = Self(LinuxNamespaceType::Cgroup);
    /// Network devices, addresses and ports.
    pub const NET: Self = Self(LinuxNamespaceType::Network);
    /// Pid namespace.
    pub const PID: Self = Self(LinuxNamespaceType::Pid);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(LinuxNamespaceType::Ipc);
    /// User namespace.
    pub const USER: Self = Self(LinuxNamespaceType::User);
    /// UTS namespace.
    pub const UTS: Self = Self(LinuxNamespaceType::Uts);
    /// Time namespace.
    pub const TIME: Self = Self(LinuxNamespaceType::Time);

    /// Its `CLONE_NEW*` bit.
    pub fn flag(self) -> u64 {
        self.0 as u64
    }

    /// Its name in `/proc/<pid>/ns`.
    pub fn proc_name(self) -> &'static str {
        match self.0 {
            LinuxNamespaceType::Mount => "mnt",
            LinuxNamespaceType::Cgroup => "cgroup",
            LinuxNamespaceType::Uts => "uts",
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Pid => "pid",
            LinuxNamespaceType::Network => "net",
            LinuxNamespaceType::Time => "time",
        }
    }
}

/// Namespaces to make and to join.
#[derive(Debug, Default)]
pub struct Namespaces {
    new: u64,
    join: Vec<Join>,
}

/// Namespaces to enter: one by its own descriptor, or several of a process by a pidfd.
#[derive(Debug)]
struct Join {
    flags: u64,
    fd: OwnedFd,
    what: String,
}

impl Join {
    fn enter(&self, flags: u64) -> Result<()> {
        let flags = CloneFlags::from_bits_retain(flags as i32);
        setns(&self.fd, flags).map_err(|cause| Error::sys(format!("joining {}", self.what), std::io::Error::from(cause)))
    }
}

impl Namespaces {
    /// Reads `linux.namespaces`; paths are opened here, in the runtime's own view.
    pub fn from_config(list: &[LinuxNamespace]) -> Result<Self> {
        let mut namespaces = Self::default();
        for entry in list {
            let kind = Kind(entry.typ());
            if namespaces.contains(kind) {
                return Err(Error::new(Outcome::BadInput, "checking linux.namespaces")
                    .because(format!("type {} is there twice", kind.proc_name())));
            }
            match entry.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => namespaces.new |= kind.flag(),
                Some(path) => namespaces.join.push(open(kind, path)?),
            }
        }
        Ok(namespaces)
    }

    /// Nothing but a new user namespace.
    pub fn new_user() -> Self {
        Self { new: Kind::USER.flag(), join: Vec::new() }
    }

    /// A descriptor of the namespace of this kind that is joined.
    pub fn joined(&self, kind: Kind) -> Result<OwnedFd> {
        let join = self.join.iter().find(|join| join.flags == kind.flag());
        let fd = join.map(|join| join.fd.try_clone()).unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()));
        fd.map_err(|cause| Error::sys(format!("taking the {} namespace to join", kind.proc_name()), cause))
    }

    /// True if the container has a namespace of this kind that is not the runtime's: a path may lead to that one, too.
    pub fn separate(&self, kind: Kind) -> Result<bool> {
        if !self.joins(kind) {
            return Ok(self.makes(kind));
        }
        let own = format!("/proc/self/ns/{}", kind.proc_name());
        let own = rustix::fs::stat(&own).map_err(|cause| Error::io("looking at", own, cause))?;
        let joined = rustix::fs::fstat(self.joined(kind)?).map_err(|cause| Error::sys("looking at a namespace", cause))?;
        Ok((own.st_dev, own.st_ino) != (joined.st_dev, joined.st_ino))
    }

    /// The namespaces of kinds `flags` that the process behind `pidfd` is in.
    pub fn of_process(pidfd: OwnedFd, flags: u64, what: String) -> Self {
        Self { new: 0, join: vec![Join { flags, fd: pidfd, what }] }
    }

    /// True if one of this kind is made or joined.
    pub fn contains(&self, kind: Kind) -> bool {
        self.makes(kind) || self.joins(kind)
    }

    /// True if a new one of this kind is made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.new & kind.flag() != 0
    }

    /// True if an existing one of this kind is joined.
    pub fn joins(&self, kind: Kind) -> bool {
        self.join.iter().any(|join| join.flags & kind.flag() != 0)
    }

    /// All kinds made or joined, as `CLONE_NEW*` bits.
    pub fn flags(&self) -> u64 {
        self.join.iter().fold(self.new, |flags, join| flags | join.flags)
    }

    /// The kinds that clone3 makes. A cgroup namespace must wait until the process is in its cgroup, and a time namespace until
    /// its offsets are written.
    pub(super) fn clone_flags(&self) -> u64 {
        let ipc = if self.late_ipc() { Kind::IPC.flag() } else { 0 };
        self.new & !(Kind::CGROUP.flag() | Kind::TIME.flag() | ipc)
    }

    /// True if the ipc namespace is made by the process when it is the user namespace's root: the owner of /dev/mqueue is whoever
    /// makes it.
    pub fn late_ipc(&self) -> bool {
        self.makes(Kind::IPC) && self.contains(Kind::USER)
    }

    /// True when a user namespace decides what may be joined: then a process in between has to join first.
    pub(super) fn needs_intermediate(&self) -> bool {
        self.joins(Kind::USER) || (self.makes(Kind::USER) && !self.join.is_empty())
    }

    /// Enters the pid namespace (for children made from now on), if there is one to join.
    pub(super) fn enter_pid(&self) -> Result<()> {
        self.join.iter().filter(|join| join.flags & Kind::PID.flag() != 0).try_for_each(|join| join.enter(Kind::PID.flag()))
    }

    /// Enters all but the pid namespace. A user namespace comes first: it brings the rights for the others.
    pub(super) fn enter_others(&self) -> Result<()> {
        let order = |user: bool| self.join.iter().filter(move |join| (join.flags & Kind::USER.flag() != 0) == user);
        for join in order(true).chain(order(false)) {
            let flags = join.flags & !Kind::PID.flag();
            if flags != 0 {
                join.enter(flags)?;
            }
        }
        Ok(())
    }
}

fn open(kind: Kind, path: &PathBuf) -> Result<Join> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| Error::io(&format!("opening {} namespace", kind.proc_name()), path, cause))?;
    Ok(Join { flags: kind.flag(), fd, what: format!("{} namespace {}", kind.proc_name(), path.display()) })
}

/// The runtime's own pid namespace, to come back to.
pub(super) struct OwnPid(OwnedFd);

impl OwnPid {
    pub(super) fn open() -> Result<Self> {
        rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(Self)
            .map_err(|cause| Error::io("opening", "/proc/self/ns/pid", cause))
    }

    pub(super) fn restore(&self) -> Result<()> {
        let fd: BorrowedFd<'_> = self.0.as_fd();
        setns(fd, CloneFlags::CLONE_NEWPID)
            .map_err(|cause| Error::sys("returning to the runtime's own pid namespace", std::io::Error::from(cause)))
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxNamespaceBuilder;

    use super::*;

    fn entry(typ: LinuxNamespaceType, path: &str) -> LinuxNamespace {
        LinuxNamespaceBuilder::default().typ(typ).path(path).build().unwrap()
    }

    #[test]
    fn new_and_joined() {
        let own = "/proc/self/ns/net";
        let list =
            [entry(LinuxNamespaceType::Pid, ""), entry(LinuxNamespaceType::Network, own), entry(LinuxNamespaceType::Cgroup, "")];
        let namespaces = Namespaces::from_config(&list).unwrap();
        assert!(namespaces.makes(Kind::PID) && !namespaces.joins(Kind::PID));
        assert_eq!(namespaces.clone_flags(), Kind::PID.flag());
        assert!(!namespaces.needs_intermediate());
        assert!(!namespaces.contains(Kind::UTS));
        // The path is that of the runtime's own.
        assert!(!namespaces.separate(Kind::NET).unwrap() && namespaces.separate(Kind::PID).unwrap());
    }

    #[test]
    fn refuses_duplicates_and_absent_paths() {
        let twice = [entry(LinuxNamespaceType::Pid, ""), entry(LinuxNamespaceType::Pid, "")];
        assert_eq!(Namespaces::from_config(&twice).unwrap_err().outcome(), Outcome::BadInput);
        let absent = [entry(LinuxNamespaceType::Pid, "/does/not/exist")];
        assert_eq!(Namespaces::from_config(&absent).unwrap_err().outcome(), Outcome::NotFound);
    }
}
