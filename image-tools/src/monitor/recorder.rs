//! Records what a starting container reads, as an access profile of its image: a thread of the monitor.
//!
//! ```text
//! root mounted --mark--> FAN_OPEN of every file of the overlay --> path, in order --stored tree--> content digest
//!                        large files are kept open ----------------end of the start--> pages in the page cache --> ranges
//! ```
//!
//! The start is over when nothing new has been opened for a while, or the container has ended; where it is recorded to be optimized for,
//! only with the container. Small files are fetched and stored as a
//! whole, so that they were opened is all there is to know. The pages of a large file that lies in clusters on devices are in the page cache of
//! the mounted tree only if somebody read them through it; those of a large file that is an object may just as well be there since it was
//! stored, so of these only the beginning counts, unless the object was put out of the cache before ([`forget_pages`]).
//!
//! A recorder never disturbs its container: what it cannot do is a line in the monitor's journal.

use std::collections::HashSet;
use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::profile::{Access, Profile};
use towline_lazyfs::rootfs::readahead::ReadaheadOff;
use towline_lazyfs::store::profiles::Profiles;
use towline_lazyfs::store::{Store, create_private_dir};
use towline_lazyfs::table::{CHUNKED_FROM, Table};
use towline_lazyfs::tree::erofs::read::StoredTree;
use towline_sys::mmap::{page_size, resident_pages};

use super::journal::Journal;

/// A start is over when it has opened nothing new for this long, and after the second in any case.
const QUIET: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(60);
/// How often it is looked whether the start is over.
const LOOK: Duration = Duration::from_millis(500);
/// Large files whose pages are looked at.
const MAX_LARGE: usize = 256;
/// What counts of a large file of which nothing better is known: bytes.
const BEGINNING: u64 = 64 << 10;

/// What to record.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The image.
    pub image: Digest,
    /// Its stored tree.
    pub tree: PathBuf,
    /// Where the container's root is mounted.
    pub rootfs: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// Where the profile is written to besides.
    pub also: Option<PathBuf>,
    /// Until the container ends, and not only until it opens nothing new.
    pub to_the_end: bool,
    /// Whether objects were put out of the page cache before.
    pub is_cold: bool,
    /// Held while this records: only what is read by programs is in the page cache then.
    pub readahead: Option<Arc<ReadaheadOff>>,
    /// Held as long.
    pub claim: Option<Arc<Claim>>,
}

/// A running recording.
#[derive(Debug)]
pub struct Recorder {
    thread: JoinHandle<()>,
    /// Closed when the container has ended.
    running: PipeWriter,
    journal: Journal,
}

impl Recorder {
    /// Begins to record; the root is mounted, and nothing of it was opened yet.
    pub fn start(mut subject: Subject, journal: Journal) -> Result<Self> {
        let tried = || format!("watching what is opened in {}", subject.rootfs.display());
        let failed = |e: nix::Error| Error::new(Outcome::Io, tried()).because(e);
        let group = Fanotify::init(
            InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::FAN_UNLIMITED_QUEUE,
            // The kernel opens what was opened: of a FIFO, that must not wait.
            EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE | EventFFlags::O_NONBLOCK,
        )
        .map_err(failed)?;
        let root = File::open(&subject.rootfs).map_err(|e| Error::io("opening", &subject.rootfs, e))?;
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        group.mark(flags, MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC, &root, None::<&Path>).map_err(failed)?;
        let (ended, running) = std::io::pipe().map_err(|e| Error::io("making", "a pipe", e))?;
        let (tree, notes) = (StoredTree::open(&subject.tree)?, journal.clone());
        let (readahead, claim) = (subject.readahead.take(), subject.claim.take());
        let thread = std::thread::spawn(move || {
            let mut recording = Recording::new(subject, tree);
            let recorded = recording.follow(&group, &ended).and_then(|()| recording.write());
            drop((readahead, claim));
            if let Err(error) = recorded {
                notes.note(&error.during("recording what the start reads").one_line());
            }
        });
        Ok(Self { thread, running, journal })
    }

    /// The container has ended: ends the recording, which needs its root to be mounted.
    pub fn finish(self) {
        drop(self.running);
        if self.thread.join().is_err() {
            self.journal.note("recording what the start reads: the thread has panicked");
        }
    }
}

/// The right to record starts of an image, which one container at a time has: of many that start at once one is enough.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Claim {
    /// `None` where another container has it. Monitors that are killed let go of it.
    pub fn take(state: &Path, image: &Digest) -> Result<Option<Self>> {
        let dir = state.join("recording");
        create_private_dir(&dir)?;
        let path = dir.join(image.hex());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(|e| Error::io("opening", &path, e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::io("locking", &path, e)),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A file that stays is as good as none.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Puts the large objects of an image out of the page cache, so that whatever is in it afterwards was read by the container.
pub fn forget_pages(store: &Path, image: &Digest) -> Result<()> {
    let store = Store::open(store)?;
    let table = Table::open(&store.image(image).table())?;
    for record in table.files().filter(|file| file.size >= CHUNKED_FROM && store.cas().contains(&file.digest)) {
        let object = store.cas().get(&record.digest)?;
        let failed = |e: std::io::Error| {
            Error::io("dropping cached pages of", store.cas().objects_dir().join(record.digest.object_path()), e)
        };
        // Pages that are not on disk yet cannot be dropped.
        rustix::fs::fdatasync(&object).map_err(|e| failed(e.into()))?;
        rustix::fs::fadvise(&object, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

struct Recording {
    subject: Subject,
    tree: StoredTree,
    begin: Instant,
    seen: HashSet<Vec<u8>>,
    opened: Vec<Opened>,
}

struct Opened {
    path: Vec<u8>,
    digest: Digest,
    size: u64,
    at: Duration,
    /// Kept open, where its pages are of interest.
    file: Option<OwnedFd>,
}

impl Recording {
    fn new(subject: Subject, tree: StoredTree) -> Self {
        Self { subject, tree, begin: Instant::now(), seen: HashSet::new(), opened: Vec::new() }
    }

    /// Takes events until the start is over.
    fn follow(&mut self, group: &Fanotify, ended: &PipeReader) -> Result<()> {
        let failed = |e: nix::Error| Error::new(Outcome::Io, "reading what was opened").because(e);
        let mut news = self.begin;
        loop {
            let mut fds = [PollFd::new(group.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(LOOK).expect("a short time")) {
                Err(nix::Error::EINTR) => continue,
                other => other.map_err(failed)?,
            };
            let [opened, ends] = fds.map(|fd| fd.any() == Some(true));
            if opened {
                for event in group.read_events().map_err(failed)? {
                    if event.fd().is_some_and(|fd| self.opened(fd)) {
                        news = Instant::now();
                    }
                }
            } else if ends || (!self.subject.to_the_end && news.elapsed() > QUIET && !self.opened.is_empty()) {
                return Ok(());
            }
            if !self.subject.to_the_end && self.begin.elapsed() > LONGEST {
                return Ok(());
            }
        }
    }

    /// Notes a file that was opened; whether that is news.
    fn opened(&mut self, fd: BorrowedFd<'_>) -> bool {
        let Some(path) = self.path_of(fd).filter(|path| !self.seen.contains(path)) else { return false };
        self.seen.insert(path.clone());
        // What the container has made itself, directories, devices: nothing that is fetched.
        let Some(found) = self.tree.file(&path) else { return false };
        let large = found.size >= CHUNKED_FROM && (self.subject.is_cold || found.large);
        let kept = self.opened.iter().filter(|opened| opened.file.is_some()).count();
        let file = if large && kept < MAX_LARGE { fd.try_clone_to_owned().ok() } else { None };
        self.opened.push(Opened { path: found.path, digest: found.digest, size: found.size, at: self.begin.elapsed(), file });
        true
    }

    /// Path in the root, without a slash at the beginning: by our mount of it, or by the container's.
    fn path_of(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        use std::os::fd::AsRawFd as _;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let path = path.strip_prefix(&self.subject.rootfs).or_else(|_| path.strip_prefix("/")).ok()?;
        Some(path.as_os_str().as_bytes().to_owned())
    }

    fn write(&self) -> Result<()> {
        if self.opened.is_empty() {
            return Ok(());
        }
        let accesses = self.opened.iter().map(Opened::access);
        let last = self.opened.last().map_or(Duration::ZERO, |opened| opened.at);
        let mut profile = Profile::new(self.subject.image, milliseconds(last), accesses);
        let alone = self.subject.to_the_end.then(|| profile.to_bytes());
        let profiles = Profiles::of(&self.subject.store);
        if let Ok(Some(known)) = profiles.get(&self.subject.image) {
            profile = {
                let mut merged = known;
                merged.merge(&profile);
                merged
            };
        }
        profiles.put(&self.subject.image, &profile)?;
        match &self.subject.also {
            Some(path) => {
                std::fs::write(path, alone.unwrap_or_else(|| profile.to_bytes())).map_err(|e| Error::io("writing", path, e))
            }
            None => Ok(()),
        }
    }
}

impl Opened {
    fn access(&self) -> Access {
        let (path, at) = (String::from_utf8_lossy(&self.path).into_owned(), milliseconds(self.at));
        if self.size < CHUNKED_FROM {
            return Access::whole(self.digest, path, self.size, at);
        }
        let pages = self.file.as_ref().and_then(|file| resident_pages(file, usize::try_from(self.size).ok()?).ok());
        let page = page_size() as u64;
        let parts: Vec<_> = match pages {
            Some(pages) => {
                (0..).zip(pages).filter(|(_, page)| page & 1 == 1).map(|(n, _): (u64, u8)| n * page..(n + 1) * page).collect()
            }
            None => std::iter::once(0..BEGINNING).collect(),
        };
        Access::of(self.digest, path, self.size, at, parts)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
