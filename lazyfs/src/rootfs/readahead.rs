//! How far the kernel reads ahead in a mounted tree.
//!
//! Around a page fault the kernel reads 128 KiB. On a disk that is cheap; in an image that is still arriving it is a demand for what nobody
//! has asked for, in front of what programs wait for. So the readahead of a tree is off while it is lazy, or while it is recorded what a
//! program reads. What comes ahead of programs is the fetcher's choice (`fetch::reads`, `fetch::prefetch`).
//!
//! The kernel has one value for each mounted file system (`/sys/class/bdi/erofs-N/read_ahead_kb`), which a file takes over when it is opened.
//! It does not say which N a mount got; so it is the one that has appeared since before the mount. Where that is not one, or cannot be
//! written, the kernel's own readahead stays, which costs time and nothing else.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Where the kernel has the values.
const CLASS: &str = "/sys/class/bdi";
/// How long it is waited for others that mount.
const PATIENCE: Duration = Duration::from_secs(2);

/// The readahead of one mounted tree, which is off while this lives.
#[derive(Debug)]
pub struct ReadaheadOff {
    value: PathBuf,
    before: String,
}

impl ReadaheadOff {
    fn new(value: PathBuf) -> Result<Self> {
        let before = std::fs::read_to_string(&value).map_err(|e| Error::io("reading", &value, e))?;
        let this = Self { before: before.trim().to_owned(), value };
        this.set("0").map_err(|e| Error::io("writing to", &this.value, e))?;
        Ok(this)
    }

    fn set(&self, kilobytes: &str) -> std::io::Result<()> {
        std::fs::write(&self.value, kilobytes)
    }
}

impl Drop for ReadaheadOff {
    fn drop(&mut self) {
        match self.set(&self.before) {
            Ok(()) => {}
            // It is not mounted any more.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
            Err(e) => tracing::warn!("{}", Error::io("writing to", &self.value, e).one_line()),
        }
    }
}

/// The file systems that there are before a mount. Others of this store do not mount until it is dropped.
pub(super) struct Before {
    known: HashSet<OsString>,
    _turn: OwnedFd,
}

impl Before {
    /// `store` is a directory that all who mount have in common.
    pub fn mount(store: &Path) -> Result<Self> {
        let turn = take_turn(store)?;
        Ok(Self { known: names()?, _turn: turn })
    }

    /// Turns the readahead of what was mounted since then off; `None` where that cannot be told.
    pub fn turn_off(self) -> Result<Option<ReadaheadOff>> {
        let mut new = names()?;
        new.retain(|name| !self.known.contains(name));
        match new.into_iter().collect::<Vec<_>>().as_slice() {
            [only] => ReadaheadOff::new(Path::new(CLASS).join(only).join("read_ahead_kb")).map(Some),
            _ => Ok(None),
        }
    }
}

fn names() -> Result<HashSet<OsString>> {
    let failed = |e| Error::io("listing", CLASS, e);
    let names = std::fs::read_dir(CLASS).map_err(failed)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    Ok(names.into_iter().filter(|name| name.to_string_lossy().starts_with("erofs-")).collect())
}

fn take_turn(store: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::io("locking", store, e);
    let dir = rustix::fs::open(store, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_micros(200)),
            other => return other.map(|()| dir).map_err(failed),
        }
    }
}
