//! How far the kernel reads ahead in a mounted tree.
//!
//! Around a page fault the kernel reads 128 KiB. On a disk that is cheap; in an image that is still arriving it is a demand for what nobody
//! has asked for, in front of what programs wait for. So the readahead of a tree is off while it is lazy, or while it is recorded what a
//! program reads. What comes ahead of programs is the fetcher's choice (`fetch::reads`, `fetch::prefetch`).
//!
//! Where it is on, it is that of the disk that the store is on: a mounted tree has 128 KiB by default whatever that disk has, which makes
//! reading large files one and a half times as slow where the disk has more.
//!
//! The kernel has one value for each mounted file system (`/sys/class/bdi/erofs-N/read_ahead_kb`), which a file takes over when it is opened.
//! It does not say which N a mount got; so it is the one that has appeared since before the mount. Where that is not one, or cannot be
//! written, the kernel's own readahead stays, which costs time and nothing else.
//!
//! A tree that several containers share ([`super::shared`]) has one value for all of them: whoever mounts it turns it off, and each of them may
//! turn it on again when the image is complete.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Outcome, Result};

/// Where the kernel has the values.
const CLASS: &str = "/sys/class/bdi";
/// How long it is waited for others that mount.
const PATIENCE: Duration = Duration::from_secs(2);

/// The readahead of one mounted tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    value: PathBuf,
    /// Kilobytes where it is on.
    on: u32,
}

impl Switch {
    /// `disk`: kilobytes that the store's disk has.
    fn of(value: PathBuf, disk: u32) -> Result<Self> {
        Ok(Self { on: kilobytes(&value)?.max(disk), value })
    }

    /// For [`Self::read`], in the file of this version of this crate: a reboot is its end.
    pub(super) fn to_text(&self) -> String {
        format!("{} {}\n", self.on, self.value.display())
    }

    /// What [`Self::to_text`] has left in a file; `None` for an empty one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
        let switch = text.strip_suffix('\n').and_then(|line| line.split_once(' ')).and_then(|(on, value)| {
            let value = Path::new(value);
            Some(Self { value: value.to_owned(), on: on.parse().ok()? }).filter(|_| value.starts_with(CLASS))
        });
        match switch {
            None if !text.is_empty() => {
                Err(Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(format!("it says {text:?}")))
            }
            switch => Ok(switch),
        }
    }

    /// Turns it off.
    pub(super) fn turn_off(&self) -> Result<()> {
        self.set(0)
    }

    /// Turns it on. Nothing happens where the tree is not mounted any more.
    pub fn turn_on(&self) -> Result<()> {
        self.set(self.on)
    }

    fn set(&self, kilobytes: u32) -> Result<()> {
        match std::fs::write(&self.value, kilobytes.to_string()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
            other => other.map_err(|e| Error::io("writing to", &self.value, e)),
        }
    }
}

/// The readahead of one mounted tree, which is off while this lives.
#[derive(Debug)]
pub struct ReadaheadOff(Switch);

impl Drop for ReadaheadOff {
    fn drop(&mut self) {
        if let Err(e) = self.0.turn_on() {
            tracing::warn!("{}", e.one_line());
        }
    }
}

/// The file systems that there are before a mount. Others of this store do not mount until it is dropped.
pub(super) struct Before {
    known: HashSet<OsString>,
    disk: u32,
    _turn: OwnedFd,
}

impl Before {
    /// `store` is a directory that all who mount have in common.
    pub fn mount(store: &Path) -> Result<Self> {
        let turn = take_turn(store)?;
        Ok(Self { known: names()?, disk: disk(&turn)?.unwrap_or(0), _turn: turn })
    }

    /// Turns the readahead of what was mounted since then off; `None` where that cannot be told.
    pub fn turn_off(self) -> Result<Option<ReadaheadOff>> {
        let found = self.found()?;
        found.map(|switch| switch.turn_off().map(|()| ReadaheadOff(switch))).transpose()
    }

    /// That of what was mounted since then; `None` where that cannot be told.
    pub fn found(&self) -> Result<Option<Switch>> {
        let mut new = names()?;
        new.retain(|name| !self.known.contains(name));
        match new.into_iter().collect::<Vec<_>>().as_slice() {
            [only] => Switch::of(Path::new(CLASS).join(only).join("read_ahead_kb"), self.disk).map(Some),
            _ => Ok(None),
        }
    }
}

fn kilobytes(value: &Path) -> Result<u32> {
    let text = std::fs::read_to_string(value).map_err(|e| Error::io("reading", value, e))?;
    text.trim().parse().map_err(|e| Error::new(Outcome::BadInput, format!("reading {}", value.display())).because(e))
}

/// Kilobytes that the kernel reads ahead on the disk of a directory; `None` where it is on none, or on several.
fn disk(dir: &OwnedFd) -> Result<Option<u32>> {
    let stat = rustix::fs::fstat(dir).map_err(|e| Error::io("looking at", "the store", e))?;
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    // A partition has that of the whole disk.
    let found = ["bdi", "../bdi"].map(|bdi| Path::new(&device).join(bdi).join("read_ahead_kb"));
    found.iter().find(|value| value.exists()).map(|value| kilobytes(value)).transpose()
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
