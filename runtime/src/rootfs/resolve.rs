//! Paths inside the container's root: resolved by the kernel beneath one descriptor, so that no symlink of the image, and no
//! process that renames directories meanwhile, can lead out of it (SECURITY.md rows 6 and 7 of the design).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Outcome, Result};

/// Symbolic links followed while a mount point is being made, as in the kernel.
const MAX_LINKS: usize = 40;

/// The root of the container's file system.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// What a mount point should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file (the target of a bind mount of a file or device).
    File,
}

impl Root {
    /// `fd` is the root directory.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens an existing `path` the way a process with this root would see it.
    pub fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // EAGAIN: something was renamed during the look-up and the kernel could not prove that it stayed beneath the root.
            match openat2(self.0.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Opens `path` (O_PATH), making what is missing: directories with mode 0755, one component at a time beneath the root.
    pub fn ensure(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Ok(fd) => check_kind(fd, path, kind),
            Err(Errno::NOENT) => match self.make_last(path, kind)? {
                Some(fd) => check_kind(fd, path, kind),
                None => self.make(path, kind),
            },
            Err(cause) => Err(failed(path).because(std::io::Error::from(cause))),
        }
    }

    /// The usual case of [`Root::make`]: only the last component is missing. `None` where something else is in the way.
    fn make_last(&self, path: &Path, kind: Kind) -> Result<Option<OwnedFd>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let Ok(parent) = self.open_dir(parent) else { return Ok(None) };
        // Never through a link: a dangling one is an entry that exists.
        if create_entry(parent.as_fd(), name, kind).is_err() {
            return Ok(None);
        }
        self.open(path, OFlags::PATH).map(Some).map_err(|cause| failed(path).because(std::io::Error::from(cause)))
    }

    fn make(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        let mut todo: Vec<OsString> = components(path);
        todo.reverse();
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let next = done.join(&name);
            match self.open(&next, OFlags::PATH) {
                Ok(_) => {
                    done = next;
                    continue;
                }
                Err(Errno::NOENT) => {}
                Err(cause) => return Err(failed(path).because(std::io::Error::from(cause))),
            }
            let parent = self.open_dir(&done).map_err(|cause| failed(path).because(std::io::Error::from(cause)))?;
            if let Some(target) = dangling_link(parent.as_fd(), &name) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(path).because("too many symbolic links"));
                }
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                todo.extend(components(&target).into_iter().rev());
                continue;
            }
            let last = todo.is_empty();
            make_entry(parent.as_fd(), &name, if last { kind } else { Kind::Directory })
                .map_err(|cause| failed(path).because(std::io::Error::from(cause)))?;
            done = next;
        }
        let fd = self.open(&done, OFlags::PATH).map_err(|cause| failed(path).because(std::io::Error::from(cause)))?;
        check_kind(fd, path, kind)
    }

    /// Opens an existing directory for use as the parent of new entries.
    pub fn open_dir(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn failed(path: &Path) -> Error {
    Error::new(Outcome::Io, format!("making mount point {} in the container", path.display()))
}

/// The normal components and `..` of a path; the kernel resolves the latter beneath the root.
fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn dangling_link(parent: BorrowedFd<'_>, name: &OsString) -> Option<PathBuf> {
    let target = rustix::fs::readlinkat(parent, name.as_os_str(), Vec::new()).ok()?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes())))
}

fn make_entry(parent: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> rustix::io::Result<()> {
    match create_entry(parent, name, kind) {
        // Somebody was faster; the look-up that follows decides whether what they made will do.
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn create_entry(parent: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

fn check_kind(fd: OwnedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&fd).map_err(|cause| failed(path).because(std::io::Error::from(cause)))?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match (kind, is_directory) {
        (Kind::Directory, true) | (Kind::File, false) => Ok(fd),
        (Kind::Directory, false) => Err(failed(path).because("it is not a directory")),
        (Kind::File, true) => Err(failed(path).because("it is a directory and what is mounted there is not")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root_of(dir: &Path) -> Root {
        Root::new(rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap())
    }

    #[test]
    fn nothing_is_made_outside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir_all(inside.join("a")).unwrap();
        for (name, target) in
            [("abs", "/elsewhere/deep"), ("up", "../../../outside"), ("a/rel", "../made"), ("chain", "abs"), ("dev", "/dev/shm")]
        {
            symlink(target, inside.join(name)).unwrap();
        }
        let root = root_of(&inside);
        for (path, lands) in [
            ("/x/y/z", "x/y/z"),
            ("abs/m", "elsewhere/deep/m"),
            ("up/m", "outside/m"),
            ("a/rel/m", "made/m"),
            ("chain/n", "elsewhere/deep/n"),
            ("/../../q", "q"),
        ] {
            root.ensure(Path::new(path), Kind::Directory).unwrap();
            assert!(inside.join(lands).is_dir(), "{path} -> {lands}");
        }
        assert!(root.ensure(Path::new("dev/tl"), Kind::Directory).is_err(), "within the root this link leads to itself");
        assert!(inside.join("elsewhere").is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the root is beside the root");
        assert!(!Path::new("/elsewhere").exists());
    }

    #[test]
    fn the_kind_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let root = root_of(dir.path());
        root.ensure(Path::new("/f"), Kind::File).unwrap();
        assert!(dir.path().join("f").is_file());
        assert!(root.ensure(Path::new("/f"), Kind::Directory).is_err());
        assert!(root.ensure(Path::new("/f/below"), Kind::Directory).is_err());
        root.ensure(Path::new("/d"), Kind::Directory).unwrap();
        assert!(root.ensure(Path::new("/d"), Kind::File).is_err());
    }

    #[test]
    fn link_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(root_of(dir.path()).ensure(Path::new("/a/x"), Kind::Directory).is_err());
    }
}
