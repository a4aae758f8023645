//! The content of a container's tree, out of the same parts as its root in the kernel would have ([`RootPlan`]), searched as overlayfs and
//! EROFS search them.
//!
//! ```text
//! small file: cas/ --not here--> FUSE trigger, which answers when it is here --> late/, cas/ --not here--> error
//! large file: index in tree.erofs, read again for each read --> the layer's data file, or the trigger's file for it
//! ```
//!
//! So the one trigger of the daemon is all that brings content here too: a daemon that is killed is waited for, since the holder has
//! its connection, and what is local needs no daemon. No byte ever stands for one that is missing: every failure is an error.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::waits::Waits;
use super::{Contents, Open, Opened, Read, Wanted};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::rootfs::plan::RootPlan;
use crate::store::big::CLUSTER;
use crate::tree::erofs::devices::{INDEX, parse_index};
use crate::tree::erofs::node::Nid;
use crate::tree::erofs::read::StoredTree;

/// Hears of what a program could not read.
pub type Say = Box<dyn Fn(&Error) + Send + Sync>;

/// The parts of a root.
pub struct Layers {
    parts: Arc<Parts>,
    waits: Arc<Waits>,
}

struct Parts {
    tree: StoredTree,
    /// The same file, for the indexes, which change.
    indexes: File,
    devices: Vec<Device>,
    data: Vec<PathBuf>,
    say: Say,
}

struct Device {
    path: PathBuf,
    /// Kept open where it is a file of the store; the trigger may be another one the next time.
    open: OnceLock<File>,
}

/// Bytes of a file that lie one behind the other in a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    device: usize,
    is_here: bool,
    offset: u64,
    len: u64,
}

impl Layers {
    /// The parts that a plan names. `say` hears of every failure.
    pub fn open(plan: &RootPlan, say: Say) -> Result<Self> {
        let devices = plan.devices.iter().map(|path| Device { path: path.clone(), open: OnceLock::new() });
        let parts = Parts {
            tree: StoredTree::open(&plan.tree)?,
            indexes: File::open(&plan.tree).map_err(|e| Error::io("opening", &plan.tree, e))?,
            devices: devices.collect(),
            data: plan.data.clone(),
            say,
        };
        Ok(Self { parts: Arc::new(parts), waits: Arc::default() })
    }
}

impl Contents for Layers {
    fn open(&self, file: Wanted, opened: Opened) {
        if self.parts.tree.indexes(file.nid).is_some() {
            return opened(Ok(Open::Parts));
        }
        match self.parts.data.first().map(|local| object(local, &file.content)) {
            Some(Ok(here)) => opened(Ok(Open::Whole(here))),
            _ => {
                let parts = self.parts.clone();
                self.waits.run(Box::new(move || opened(parts.told(parts.find(&file.content).map(Open::Whole)))));
            }
        }
    }

    fn read(&self, file: Wanted, range: Range<u64>, read: Read) {
        let parts = self.parts.clone();
        match parts.runs(file.nid, &range) {
            Ok(runs) if runs.iter().all(|run| run.is_here) => read(parts.told(parts.read(&runs))),
            Ok(_) => self.waits.run(Box::new(move || read(parts.told(parts.fetch(file.nid, &range))))),
            Err(error) => read(parts.told(Err(error))),
        }
    }
}

impl Parts {
    /// Searches the data layers; the trigger among them answers when it has brought the file.
    fn find(&self, content: &Digest) -> Result<File> {
        let mut failed = None;
        // The first once more: a trigger that was unmounted meanwhile has left everything there.
        for layer in self.data.iter().chain(self.data.first()) {
            match object(layer, content) {
                Ok(file) => return Ok(file),
                // Not there, or one of the links of which the last layer consists: what the trigger said tells more.
                Err(Errno::NOENT | Errno::LOOP) => {}
                Err(errno) => failed = Some(Error::io("opening", layer.join(content.object_path()), errno)),
            }
        }
        let error = Error::new(Outcome::Unavailable, format!("looking for file {content} of the image"));
        let error = match failed {
            Some(cause) => error.because(cause),
            None => error.because("it is not in the store, and towlined has not brought it"),
        };
        Err(error.advise("the log of towlined says why"))
    }

    fn fetch(&self, nid: Nid, range: &Range<u64>) -> Result<Vec<u8>> {
        let runs = self.runs(nid, range)?;
        // What arrived meanwhile may have been the last: then there is no trigger any more.
        self.read(&runs).or_else(|error| match self.runs(nid, range)? {
            now if now != runs => self.read(&now),
            _ => Err(error),
        })
    }

    /// Where bytes of a large file are at this moment.
    fn runs(&self, nid: Nid, range: &Range<u64>) -> Result<Vec<Run>> {
        let tried =
            || Error::new(Outcome::Integrity, "reading where a large file is").advise("remove the image and pull it again");
        let start = self.tree.indexes(nid).ok_or_else(|| tried().because("it has no indexes"))?;
        let clusters = range.start / CLUSTER..range.end.div_ceil(CLUSTER);
        let mut runs: Vec<Run> = Vec::new();
        for cluster in clusters {
            let mut index = [0; INDEX as usize];
            let at = start + cluster * INDEX;
            self.indexes.read_exact_at(&mut index, at).map_err(|e| tried().because(e))?;
            let (device, is_here, place) = parse_index(&index)
                .filter(|(device, ..)| *device < self.devices.len())
                .ok_or_else(|| tried().because(format!("index {cluster} names no device")))?;
            let part = range.start.max(cluster * CLUSTER)..range.end.min((cluster + 1) * CLUSTER);
            let (offset, len) = (place + (part.start - cluster * CLUSTER), part.end - part.start);
            match runs.last_mut() {
                Some(last) if last.device == device && last.offset + last.len == offset => last.len += len,
                _ => runs.push(Run { device, is_here, offset, len }),
            }
        }
        Ok(runs)
    }

    fn read(&self, runs: &[Run]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for run in runs {
            let device = &self.devices[run.device];
            let begin = bytes.len();
            bytes.resize(begin + usize::try_from(run.len).expect("the kernel asks for at most some megabytes"), 0);
            let read = match run.is_here {
                true => device.local().and_then(|file| file.read_exact_at(&mut bytes[begin..], run.offset)),
                false => File::open(&device.path).and_then(|file| file.read_exact_at(&mut bytes[begin..], run.offset)),
            };
            read.map_err(|e| {
                let tried = format!("reading {} bytes at {} of {}", run.len, run.offset, device.path.display());
                let error = Error::new(Outcome::Unavailable, tried).because(e);
                if run.is_here {
                    error
                } else {
                    error.advise("they are not local; the log of towlined says why they do not come")
                }
            })?;
        }
        Ok(bytes)
    }

    fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| (self.say)(error))
    }
}

impl Device {
    fn local(&self) -> std::io::Result<&File> {
        match self.open.get() {
            Some(file) => Ok(file),
            None => {
                let file = File::open(&self.path)?;
                Ok(self.open.get_or_init(|| file))
            }
        }
    }
}

fn object(layer: &Path, content: &Digest) -> Result<File, Errno> {
    let path = layer.join(content.object_path());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(CWD, &path, flags, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests;
