//! The root of a running container, and files in it that are put in place of others.
//!
//! The container may change what we look at while we do: every path is resolved inside its root by the kernel, nothing on another mount
//! is touched, and the last component is only ever renamed over.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use towline_lazyfs::digest::{Digest, Hasher};
use towline_lazyfs::error::{Error, Outcome, Result};

/// Bytes copied at a time.
const PIECE: usize = 256 * 1024;
/// The longest list of attributes, and the longest value, that Linux has, bytes.
const XATTR_MAX: usize = 64 * 1024;

/// A directory tree that paths are resolved in.
pub struct Root {
    dir: OwnedFd,
    name: String,
}

impl Root {
    /// The root of a process.
    pub fn of_process(pid: i32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/root")), "the container's root".into())
    }

    /// The tree at a directory.
    pub fn at(dir: &Path, name: String) -> Result<Self> {
        Self::open(dir, name)
    }

    fn open(path: &Path, name: String) -> Result<Self> {
        let dir = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { dir: dir.map_err(|e| Error::io("opening", path, e))?, name })
    }

    fn resolve(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Opens a regular file for reading; `None` where nothing has that name.
    pub fn file(&self, path: &str) -> Result<Option<File>> {
        let tried = || format!("opening {path} in {}", self.name);
        let file: File = match self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => {
                let error =
                    Error::new(Outcome::Unsupported, tried()).because("it is on a volume, or on another mount of the container");
                return Err(error.advise("change it on the volume itself"));
            }
            Err(Errno::LOOP) => {
                let error = Error::new(Outcome::Unsupported, tried());
                return Err(error
                    .because("it is a symbolic link, or a file that could not be fetched")
                    .advise("name the file that the link leads to; the log of towlined says what could not be fetched"));
            }
            Err(e) => return Err(Error::new(Outcome::Io, tried()).because(e)),
        };
        match file.metadata().map_err(|e| Error::new(Outcome::Io, tried()).because(e))?.is_file() {
            true => Ok(Some(file)),
            false => {
                Err(Error::new(Outcome::Unsupported, tried()).because("it is not a regular file").advise("name regular files"))
            }
        }
    }

    /// Digest of a file; `None` where nothing has that name.
    pub fn digest(&self, path: &str) -> Result<Option<Digest>> {
        let Some(file) = self.file(path)? else { return Ok(None) };
        Digest::of_reader(file).map(|(digest, _)| Some(digest)).map_err(|e| Error::io("reading", path, e))
    }

    /// Puts a copy of `source`, with its owner, mode, times and attributes, at `path`; what is open there stays as it is. Yields the
    /// digest of its content. When it fails, nothing has changed.
    pub fn put(&self, path: &str, source: &mut File) -> Result<Digest> {
        let (parent, name) = path.rsplit_once('/').expect("normal paths are absolute");
        let tried = || format!("replacing {path} in {}", self.name);
        let failed = |e: Errno| Error::new(Outcome::Io, tried()).because(e);
        let parent = if parent.is_empty() { "/" } else { parent };
        let dir = self.resolve(parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR => {
                Error::new(Outcome::NotFound, tried()).because(format!("{parent} is not a directory of the container"))
            }
            e => failed(e),
        })?;
        let new = format!(".towline-patch-{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Left by a patch that was killed.
        match rustix::fs::unlinkat(&dir, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        let target: File = rustix::fs::openat(&dir, &new, flags, Mode::from_raw_mode(0o600)).map_err(failed)?.into();
        let copied = copy(source, target).and_then(|digest| {
            rustix::fs::renameat(&dir, &new, &dir, name).map_err(std::io::Error::from)?;
            Ok(digest)
        });
        copied.map_err(|e| {
            let error = Error::new(Outcome::Io, tried()).because(e);
            match rustix::fs::unlinkat(&dir, &new, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => error,
                Err(left) => error.because(format!("and its copy {new} could not be removed: {left}")),
            }
        })
    }

    /// Removes a file.
    pub fn remove(&self, path: &str) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').expect("normal paths are absolute");
        let parent = if parent.is_empty() { "/" } else { parent };
        let removed = self
            .resolve(parent, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|dir| rustix::fs::unlinkat(&dir, name, AtFlags::empty()));
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::new(Outcome::Io, format!("removing {path} in {}", self.name)).because(e)),
        }
    }
}

/// Content first and mode last: a file with setuid bits has them only when it is complete.
fn copy(source: &mut File, mut target: File) -> std::io::Result<Digest> {
    let mut hasher = Hasher::default();
    let mut piece = vec![0; PIECE];
    loop {
        match source.read(&mut piece)? {
            0 => break,
            n => {
                hasher.update(&piece[..n]);
                target.write_all(&piece[..n])?;
            }
        }
    }
    let meta = source.metadata()?;
    rustix::fs::fchown(&target, Some(Uid::from_raw(meta.uid())), Some(Gid::from_raw(meta.gid())))?;
    copy_attributes(source, &target)?;
    rustix::fs::fchmod(&target, Mode::from_raw_mode(meta.mode() & 0o7777))?;
    let time = |seconds, nanos: i64| Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::futimens(&target, &times)?;
    target.sync_data()?;
    Ok(hasher.finish())
}

fn copy_attributes(source: &File, target: &File) -> std::io::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::flistxattr(source, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    for name in names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; XATTR_MAX];
        let len = rustix::fs::fgetxattr(source, name, &mut value[..])?;
        rustix::fs::fsetxattr(target, name, &value[..len], XattrFlags::empty())?;
    }
    Ok(())
}
