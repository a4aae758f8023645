//! Device nodes and the links every program expects in `/dev` (runtime-spec, "Default Devices" and "Dev symbolic links").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, major, makedev, minor, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::procfs_targets::check_target;
use super::resolve::{Kind, Root};
use super::tree::Detached;
use crate::error::{Error, Outcome, Result};

/// A device node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    path: PathBuf,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

const DEFAULTS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Link and target. `core` is there only where the host's kernel has it.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

impl Device {
    /// Checks an entry of `linux.devices`.
    pub fn new(device: &LinuxDevice) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(Outcome::BadInput, format!("checking device {}", device.path().display())).because(why.to_owned())
        };
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err(bad("its type must be c, u, b or p")),
        };
        let number = |value: i64, name: &str| u32::try_from(value).map_err(|_| bad(&format!("its {name} number is {value}")));
        Ok(Self {
            path: device.path().clone(),
            kind,
            major: number(device.major(), "major")?,
            minor: number(device.minor(), "minor")?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        })
    }

    /// The devices every container has.
    pub fn defaults() -> impl Iterator<Item = Self> {
        DEFAULTS.iter().map(|(path, major, minor)| Self {
            path: path.into(),
            kind: FileType::CharacterDevice,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
    }

    /// Where it is in the container.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if both are for the same path.
    pub fn same_path(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// Makes the node; with `bind` (a user namespace may not make nodes) the host's node is mounted in its place.
    pub fn make(&self, root: &Root, parent: &mut Parent, bind: bool) -> Result<()> {
        let made = if bind && self.kind != FileType::Fifo { self.bind(root) } else { self.mknod(root, parent) };
        made.map_err(|error| error.during(format!("making device {}", self.path.display())))
    }

    fn mknod(&self, root: &Root, parent: &mut Parent) -> Result<()> {
        let (parent, name) = parent.of(root, &self.path)?;
        let failed = |step: &str, cause: Errno| Error::sys(step.to_owned(), cause);
        let device = makedev(self.major, self.minor);
        // The umask of init is 0, so the mode is taken as it is.
        match mknodat(parent, name, self.kind, Mode::from_raw_mode(self.mode), device) {
            Ok(()) => {}
            Err(Errno::EXIST) => self.check_existing(parent.as_fd(), name)?,
            Err(Errno::PERM) => return self.bind(root),
            Err(cause) => return Err(failed("mknod", cause)),
        }
        if self.uid != 0 || self.gid != 0 {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(|cause| failed("chown", cause))?;
        }
        Ok(())
    }

    /// A node that is there already (an image's, or a /dev that the host prepared) must be the one asked for.
    fn check_existing(&self, parent: BorrowedFd<'_>, name: &Path) -> Result<()> {
        let stat =
            statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|cause| Error::sys("looking at what is there", cause))?;
        if self.is(&stat) { Ok(()) } else { Err(Error::new(Outcome::Exists, "mknod").because("another file is there")) }
    }

    fn is(&self, stat: &rustix::fs::Stat) -> bool {
        let same_number = (major(stat.st_rdev), minor(stat.st_rdev)) == (self.major, self.minor);
        FileType::from_raw_mode(stat.st_mode) == self.kind && (self.kind == FileType::Fifo || same_number)
    }

    fn bind(&self, root: &Root) -> Result<()> {
        let source = openat(rustix::fs::CWD, &self.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(|cause| Error::io("opening the host's", &self.path, cause))?;
        let stat = rustix::fs::fstat(&source).map_err(|cause| Error::io("looking at the host's", &self.path, cause))?;
        if !self.is(&stat) {
            return Err(Error::new(Outcome::BadInput, format!("taking the host's {}", self.path.display()))
                .because(format!("it is not device {}:{}", self.major, self.minor)));
        }
        let what = self.path.display().to_string();
        let target = root.ensure(&self.path, Kind::File)?;
        check_target(target.as_fd(), &self.path)?;
        Detached::copy_of(source.as_fd(), false, &what)?.attach(target.as_fd(), &what)?;
        Ok(())
    }
}

/// Makes the links beside the devices. What the image or a mount has put there already stays, but `ptmx` is always the one of
/// the container's own devpts.
pub fn make_links(root: &Root) -> Result<()> {
    let failed = |name: &str, cause: Errno| Error::sys(format!("making link {name}"), cause);
    let core =
        std::iter::once(("/dev/core", "/proc/kcore")).filter(|_| root.open(Path::new("/proc/kcore"), OFlags::PATH).is_ok());
    let mut dir = Parent::default();
    for (name, target) in LINKS.iter().copied().chain(core) {
        let (parent, last) = dir.of(root, Path::new(name))?;
        match symlinkat(target, parent, last) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(cause) => return Err(failed(name, cause)),
        }
    }
    let (dev, ptmx) = dir.of(root, Path::new("/dev/ptmx"))?;
    match symlinkat("pts/ptmx", dev, ptmx) {
        Err(Errno::EXIST) => {
            unlinkat(dev, ptmx, AtFlags::empty()).map_err(|cause| failed("/dev/ptmx", cause))?;
            symlinkat("pts/ptmx", dev, ptmx).map_err(|cause| failed("/dev/ptmx", cause))
        }
        made => made.map_err(|cause| failed("/dev/ptmx", cause)),
    }
}

/// The directory that was made something in last: nearly all devices and links are in /dev.
#[derive(Debug, Default)]
pub struct Parent(Option<(PathBuf, OwnedFd)>);

impl Parent {
    /// The directory of `path`, made where it is missing, and the name in it.
    fn of<'a>(&mut self, root: &Root, path: &'a Path) -> Result<(BorrowedFd<'_>, &'a Path)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(Outcome::BadInput, format!("finding the directory of {}", path.display())));
        };
        let kept = self.0.take().filter(|(kept, _)| kept == parent);
        let kept = kept.map_or_else(|| Ok((parent.to_owned(), root.ensure(parent, Kind::Directory)?)), Ok)?;
        Ok((self.0.insert(kept).1.as_fd(), Path::new(name)))
    }
}
