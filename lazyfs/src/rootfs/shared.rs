//! One mounted tree for all containers of an image.
//!
//! Each mount of an EROFS image is a file system of its own, with a page cache of its own for large files. So containers of one image take
//! the same mount as their lower layer, of which the kernel gives each overlay a private copy. It is made by whoever needs it first, and
//! the last to leave takes it away:
//!
//! ```text
//! STATE/trees/KEY/tree    the mount
//! STATE/trees/KEY/lock    locked (flock) by each user together with the others, by who mounts or takes away alone;
//!                         its content says how the kernel's readahead of it is turned on again, where it is off
//! ```
//!
//! KEY stands for what the mount is made of: the file of the tree and each of its devices, as inodes. An inode that a mount has open is not
//! given to another file, so a tree that was pulled again, another FUSE trigger, and an image that has become complete have mounts of their
//! own, and what a key names is never anything else. The mount namespace belongs to the key as well: a mount that was made in another
//! one is not to be seen here, and must not be waited for.
//!
//! Locks go with processes. When monitors are killed their mount stays, and is taken away by whoever looks next ([`sweep`]): the next
//! container that mounts a tree, any that is torn down, or the daemon when it starts. A container whose monitor was killed keeps the file
//! system by the copy in its overlay, also when the mount is taken away; the next container of the image then makes another.
//!
//! A container whose start is recorded has a tree of its own: what is in the page cache is what tells the recorder what was read.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::mount::mount_tree;
use super::plan::RootPlan;
use super::readahead::{Before, Switch};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fscontext;
use crate::store::create_private_dir;

/// How long others may take to mount a tree or to take it away.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_micros(300);
/// The mount is only ever a layer: nothing is to be run from it by whoever finds it.
const ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A mounted tree that this process uses. Without [`Self::leave`] the mount stays until somebody sweeps.
#[derive(Debug)]
pub struct SharedTree {
    place: Place,
    lock: OwnedFd,
    root: OwnedFd,
    readahead: Option<Switch>,
}

impl SharedTree {
    /// Mounts the tree of `plan` below the state directory, unless it is mounted already. `quiet`: without the kernel's readahead.
    pub fn enter(state: &Path, plan: &RootPlan, quiet: bool) -> Result<Self> {
        let place = Place(state.join("trees").join(key(plan)?));
        let begin = Instant::now();
        loop {
            if let Some(entered) = Self::try_to_enter(state, &place, plan, quiet)? {
                return Ok(entered);
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::new(Outcome::Busy, format!("mounting the image tree {}", plan.tree.display()))
                    .because(format!("for {PATIENCE:?} somebody holds {}", place.lock().display()))
                    .advise("`fuser` says who; it should be held for milliseconds"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// `None` where others are mounting it, or taking it away.
    fn try_to_enter(state: &Path, place: &Place, plan: &RootPlan, quiet: bool) -> Result<Option<Self>> {
        place.create()?;
        let Some(lock) = place.open_lock()? else { return Ok(None) };
        if place.lock_alone(&lock)? && place.root()?.is_none() {
            sweep(state)?;
            place.mount(&lock, plan, quiet)?;
        }
        // From alone to together is not one step: whoever got in between may have taken it away.
        if !place.lock_together(&lock)? {
            return Ok(None);
        }
        let Some(root) = place.root()? else { return Ok(None) };
        let readahead = Switch::read(&place.lock())?;
        Ok(Some(Self { place: place.clone(), lock, root, readahead }))
    }

    /// Its root directory.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Where it is mounted, for whoever mounts an overlay over it by path.
    pub fn path(&self) -> PathBuf {
        self.place.tree()
    }

    /// The kernel's readahead of it, where that is off. Whoever sees that the image is complete may turn it on for all.
    pub fn readahead(&self) -> Option<Switch> {
        self.readahead.clone()
    }

    /// Takes the mount away if nobody else uses it. Overlays that have it as a layer keep the file system.
    pub fn leave(&self) -> Result<()> {
        self.place.clear(&self.lock).map(drop)
    }
}

/// Takes away the mounts that nobody uses any more; how many.
pub fn sweep(state: &Path) -> Result<usize> {
    let trees = state.join("trees");
    let entries = match std::fs::read_dir(&trees) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Error::io("listing", &trees, e)),
    };
    let mut swept = 0;
    for entry in entries {
        let place = Place(entry.map_err(|e| Error::io("listing", &trees, e))?.path());
        if let Some(lock) = place.open_lock()? {
            swept += usize::from(place.clear(&lock)?);
        }
    }
    Ok(swept)
}

/// Where a tree is mounted.
#[derive(Clone, Debug)]
struct Place(PathBuf);

impl Place {
    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }

    fn create(&self) -> Result<()> {
        create_private_dir(self.0.parent().expect("it is below `trees`"))?;
        match std::fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io("creating", &self.0, e)),
            _ => Ok(()),
        }
    }

    /// `None` where it was taken away meanwhile.
    fn open_lock(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(self.lock(), flags, Mode::from_raw_mode(0o600)) {
            Ok(lock) => Ok(Some(lock)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io("opening", self.lock(), e)),
        }
    }

    fn lock_alone(&self, lock: &OwnedFd) -> Result<bool> {
        self.try_lock(lock, FlockOperation::NonBlockingLockExclusive)
    }

    fn lock_together(&self, lock: &OwnedFd) -> Result<bool> {
        self.try_lock(lock, FlockOperation::NonBlockingLockShared)
    }

    /// A lock on a file that was removed is none.
    fn try_lock(&self, lock: &OwnedFd, operation: FlockOperation) -> Result<bool> {
        let failed = |e| Error::io("locking", self.lock(), e);
        match rustix::fs::flock(lock, operation) {
            Ok(()) => Ok(rustix::fs::fstat(lock).map_err(failed)?.st_nlink > 0),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// The root directory of the mount; `None` where nothing is mounted.
    fn root(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match rustix::fs::open(self.tree(), flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(Error::io("opening", self.tree(), e)),
        };
        let stat = rustix::fs::statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
        let stat = stat.map_err(|e| Error::io("looking at", self.tree(), e))?;
        Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT).then_some(root))
    }

    /// What `lock` says of the readahead is true before the mount can be seen.
    fn mount(&self, lock: &OwnedFd, plan: &RootPlan, quiet: bool) -> Result<()> {
        match std::fs::create_dir(self.tree()) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io("creating", self.tree(), e)),
            _ => {}
        }
        let store = plan.data.first().filter(|_| quiet || !plan.devices.is_empty());
        let before = store.and_then(|store| super::mount::noted(Before::mount(store)));
        let tree = mount_tree(plan, ATTRIBUTES)?;
        let switch = before.and_then(|before| super::mount::noted(before.found())).flatten();
        let text = switch.as_ref().filter(|_| quiet).map(Switch::to_text).unwrap_or_default();
        let failed = |e: std::io::Error| Error::io("writing", self.lock(), e);
        let mut file = std::fs::File::from(lock.try_clone().map_err(failed)?);
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
        if let Some(switch) = switch {
            super::mount::noted(if quiet { switch.turn_off() } else { switch.turn_on() });
        }
        fscontext::attach(&tree, &self.tree())
    }

    /// Takes it away if nobody uses it.
    fn clear(&self, lock: &OwnedFd) -> Result<bool> {
        if !self.lock_alone(lock)? {
            return Ok(false);
        }
        fscontext::detach(&self.tree())?;
        // Where it is mounted in another namespace only, the kernel takes it away with the directory.
        let removed = |path: &Path, result: std::io::Result<()>| match result {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
            _ => Ok(()),
        };
        removed(&self.tree(), std::fs::remove_dir(self.tree()))?;
        removed(&self.lock(), std::fs::remove_file(self.lock()))?;
        match std::fs::remove_dir(&self.0) {
            // Somebody comes.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty) => {}
            other => other.map_err(|e| Error::io("removing", &self.0, e))?,
        }
        Ok(true)
    }
}

/// What a mount is made of, and where it can be seen.
fn key(plan: &RootPlan) -> Result<String> {
    let namespace = Path::new("/proc/thread-self/ns/mnt");
    let mut parts = Vec::new();
    for path in [plan.tree.as_path()].into_iter().chain(plan.devices.iter().map(PathBuf::as_path)).chain([namespace]) {
        let stat = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
        let stat = stat.map_err(|e| Error::io("looking at", path, e))?;
        parts.extend(stat.stx_dev_major.to_le_bytes());
        parts.extend(stat.stx_dev_minor.to_le_bytes());
        parts.extend(stat.stx_ino.to_le_bytes());
    }
    Ok(Digest::of(&parts).hex()[..32].to_owned())
}

#[cfg(test)]
mod tests;
