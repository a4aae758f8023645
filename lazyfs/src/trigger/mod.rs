//! The FUSE trigger: look-ups in its mount tell which object a container waits for, and reads of its files which bytes of large files.
//!
//! ```text
//! overlayfs: data layers   cas/ :: TRIGGER :: late/ :: poison/
//!
//!   open(file) ─ cas/ab/cdef…? ── there ──────────────────────────────► plain file, the trigger is not asked
//!                     │ absent
//!                LOOKUP ab/cdef… ─► Resolver::resolve(digest, ticket)
//!                     │ (the caller sleeps; only this one)
//!                     ├── ticket.arrived()        ENOENT ──► late/ab/cdef…  the object, linked there by the resolver
//!                     ├── ticket.failed(errno)    errno  ──► late/: absent ──► poison/: ELOOP
//!                     ├── ticket dropped          EIO    ──► the same
//!                     ├── Trigger::unmount        EIO    ──► the same
//!                     ├── process killed          another adopts the device: asked again (RESEND)
//!                     ├── and nobody keeps it     ENOTCONN, from the kernel ──► the same
//!                     └── caller got SIGKILL      EINTR  ──► it dies; ticket.abandoned() ends
//! ```
//!
//! Large files are read through `<layer digest>.data`, one file for each layer, as long as the tree says that their bytes are not here
//! ([`crate::tree::erofs::devices`]):
//!
//! ```text
//!   read, fault, exec ─ cluster of the trigger's device ─► READ ─► Resolver::read(layer, range, ticket)
//!                                                           ├── ticket.arrived(bytes)   the bytes, all of them
//!                                                           ├── anything else           EIO, SIGBUS; tried again with the next read
//!                                                           └── caller got SIGKILL      it dies; the answer fills the page cache
//! ```
//!
//! An answer is never shorter than what was asked for: EROFS would take what is missing for zeros. The kernel caches nothing of these
//! files; their bytes are in the page cache of the tree's mount.
//!
//! Whatever the trigger answers to a look-up, overlayfs goes on to the next layer, and a file that was opened once is never looked up again. So
//! nothing of a container depends on the trigger but the first open of files that are not here yet, and it can go at any time.
//! Look-ups are answered without any lifetime: an object that is here costs none since `cas/` comes first, and one that is removed
//! from the store later has to be asked for again.
//!
//! | module      | owns                                                        |
//! |-------------|-------------------------------------------------------------|
//! | `wire`      | the bytes of requests and replies                           |
//! | `session`   | device, threads, unanswered look-ups                        |
//! | `data`      | names and numbers of the files that large files are read through |
//! | `interrupt` | the rule for callers that get signals                       |
//! | `kept`      | what another process needs to go on with a mounted trigger  |
//! | here        | the mount, and the seam to whoever fetches                  |
//!
//! There is one lock, on the table of unanswered look-ups; it is held for no system call and no call of the resolver. Whoever takes a
//! look-up out of the table writes its reply, so each gets exactly one.

mod data;
mod interrupt;
mod kept;
mod session;
mod wire;

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use tokio::sync::oneshot;

pub use self::kept::Kept;
use self::kept::Note;
use self::session::{Session, WeakSession};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fscontext::{self, FsContext};

/// How long the threads may take to end; they only wait for [`Resolver::resolve`], which does not block.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Dead mounts that may lie on top of each other at one directory before something is wrong.
const MAX_STALE: usize = 16;

/// Whoever brings objects: the seam between the trigger and the fetcher.
pub trait Resolver: Send + Sync + 'static {
    /// A container waits for the object `digest`. Called on a thread that reads requests: must not block, and passes the ticket on to
    /// where the object is fetched. The same digest may be asked for several times at once.
    fn resolve(&self, digest: Digest, ticket: Ticket);

    /// Bytes of the large files of a layer are waited for, at most to the end of its data file. As [`Resolver::resolve`]: must not block.
    fn read(&self, layer: Digest, range: Range<u64>, ticket: ReadTicket) {
        tracing::warn!("bytes {range:?} of layer {layer} are asked for, but no large files are served");
        ticket.failed(Errno::IO);
    }

    /// The layers whose large files can be read, and the lengths of their data files. Must not block.
    fn data(&self) -> Vec<(Digest, u64)> {
        Vec::new()
    }
}

/// A caller that sleeps in `open` until this is used up. Dropping it fails the look-up.
#[derive(Debug)]
#[must_use = "dropping a ticket fails the open that waits for it"]
pub struct Ticket {
    digest: Digest,
    unique: u64,
    pid: u32,
    session: WeakSession,
    gone: oneshot::Receiver<()>,
    answered: bool,
}

impl Ticket {
    /// The object that is waited for.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The thread that waits, in the pid namespace of this process; 0 where it is not visible there. For messages only: it may have
    /// ended.
    pub fn caller(&self) -> u32 {
        self.pid
    }

    /// Ends when nobody waits any more: the caller was killed, or the session left.
    pub async fn abandoned(&mut self) {
        // Nothing is ever sent.
        drop((&mut self.gone).await);
    }

    /// The object has its name in `cas/` **and** in `late/`: lets the caller open it.
    pub fn arrived(mut self) {
        self.answer(Errno::NOENT);
    }

    /// The object cannot be had. The caller's program sees ELOOP, whatever the errno (`poison/`).
    pub fn failed(mut self, errno: Errno) {
        self.answer(errno);
    }

    fn answer(&mut self, errno: Errno) {
        if !std::mem::replace(&mut self.answered, true)
            && let Some(session) = self.session.upgrade()
        {
            session.answer(self.unique, errno);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer(Errno::IO);
    }
}

/// A read that sleeps until this is used up. Dropping it fails the read.
#[derive(Debug)]
#[must_use = "dropping a ticket fails the read that waits for it"]
pub struct ReadTicket {
    pid: u32,
    len: u64,
    unique: u64,
    session: WeakSession,
    gone: oneshot::Receiver<()>,
    answered: bool,
}

impl ReadTicket {
    /// The thread that waits, as [`Ticket::caller`].
    pub fn caller(&self) -> u32 {
        self.pid
    }

    /// Ends when nobody waits any more: the caller was killed, or the session left.
    pub async fn abandoned(&mut self) {
        // Nothing is ever sent.
        drop((&mut self.gone).await);
    }

    /// Answers with all bytes that were asked for, which the caller has verified.
    pub fn arrived(mut self, bytes: &[u8]) {
        if bytes.len() as u64 != self.len {
            tracing::error!("a read of {} bytes was to be answered with {}", self.len, bytes.len());
            return;
        }
        self.answered = true;
        if let Some(session) = self.session.upgrade() {
            session.answer_read(self.unique, bytes);
        }
    }

    /// The bytes cannot be had.
    pub fn failed(mut self, errno: Errno) {
        self.fail(errno);
    }

    fn fail(&mut self, errno: Errno) {
        if !std::mem::replace(&mut self.answered, true)
            && let Some(session) = self.session.upgrade()
        {
            session.answer(self.unique, errno);
        }
    }
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        self.fail(Errno::IO);
    }
}

/// Whether this process can open the FUSE device.
pub fn has_device() -> bool {
    session::open_device().is_ok()
}

/// A mounted trigger. Dropping it unmounts it.
#[derive(Debug)]
pub struct Trigger {
    dir: PathBuf,
    session: Arc<Session>,
    mounted: bool,
}

impl Trigger {
    /// Mounts a trigger at `dir`, which is created where it is missing. What a killed process left mounted there is detached first; a
    /// living FUSE mount is [`Outcome::Busy`].
    pub fn mount(dir: &Path, resolver: Arc<dyn Resolver>) -> Result<Self> {
        let mounting = || format!("mounting the FUSE trigger at {}", dir.display());
        Self::detach_stale(dir).map_err(|e| e.during(mounting()))?;
        std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
        let device = session::open_device().map_err(|e| e.during(mounting()))?;
        let create = || {
            let context = FsContext::open("fuse")?;
            context.string("source", "towline")?;
            context.string("subtype", "towline")?;
            // As text, since the parameter has been a number before 6.15 and is a descriptor now; both take this.
            context.string("fd", &device.as_raw_fd().to_string())?;
            context.string("rootmode", "40000")?;
            context.string("user_id", "0")?;
            context.string("group_id", "0")?;
            context.flag("default_permissions")?;
            // Overlayfs looks up as whoever mounted the overlay, but checks are made per task.
            context.flag("allow_other")?;
            context
                .create(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC)
        };
        let mount = create().map_err(|refused| refused.into_error(mounting()))?;
        let session = Session::negotiate(device, resolver).map_err(|e| e.during(mounting()))?;
        let mut trigger = Self { dir: dir.to_owned(), session, mounted: false };
        trigger.session.start().map_err(|e| e.during(mounting()))?;
        fscontext::attach(&mount, dir)?;
        trigger.mounted = true;
        Ok(trigger)
    }

    /// Goes on with the trigger mounted at `dir`, whose device somebody kept when the process that served it ended. Look-ups that have
    /// waited meanwhile, and those that the other process had read, come now. [`Outcome::Unsupported`]: it cannot be gone on with, so
    /// whoever keeps the device has to close it, and a new trigger be mounted.
    pub fn adopt(dir: &Path, kept: Kept, resolver: Arc<dyn Resolver>) -> Result<Self> {
        let adopting = || format!("going on with the FUSE trigger at {}", dir.display());
        let adopt = || {
            let unfit = |why: &str| Error::new(Outcome::Unsupported, "looking at the kept device").because(why.to_owned());
            let note = Note::parse(&kept.note)?;
            if !note.resend {
                return Err(unfit("the kernel cannot send requests again (6.9 or later can)"));
            }
            // Nobody answers a request yet, so none must be made: DONT_SYNC.
            match mounted_at(dir)? {
                Some(device) if device == note.mounted => {}
                Some((major, minor)) => return Err(unfit(&format!("another file system ({major}:{minor}) is mounted there"))),
                None => return Err(unfit("it is not mounted any more")),
            }
            let session = Session::adopt(kept.device, resolver)?;
            session.resend()?;
            session.start()?;
            Ok(session)
        };
        let session = adopt().map_err(|e| e.during(adopting()))?;
        Ok(Self { dir: dir.to_owned(), session, mounted: true })
    }

    /// What another process needs to [`Self::adopt`] this trigger.
    pub fn kept(&self) -> Result<Kept> {
        let device = self.session.device().try_clone().map_err(|e| Error::io("duplicating", "/dev/fuse", e))?;
        let mounted = mounted_at(&self.dir)?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("looking for the FUSE trigger at {}", self.dir.display()))
                .because("somebody has unmounted it")
        })?;
        let note = Note { resend: self.session.has_resend(), mounted };
        Ok(Kept { device, note: note.to_string() })
    }

    /// Ends serving without answering anybody, and leaves the mount to whoever keeps its device.
    pub fn leave(mut self) -> Result<()> {
        self.mounted = false;
        match self.session.leave(STOP_DEADLINE) {
            0 => Ok(()),
            left => Err(Error::new(Outcome::Busy, format!("leaving the FUSE trigger at {}", self.dir.display()))
                .because(format!("{left} of its threads have not ended within {STOP_DEADLINE:?}"))),
        }
    }

    /// Detaches FUSE mounts at `dir` whose process is gone.
    pub fn detach_stale(dir: &Path) -> Result<()> {
        for _ in 0..MAX_STALE {
            // Not stat: that may be answered from the kernel's cache.
            match rustix::fs::statfs(dir) {
                Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                    tracing::info!("detaching the mount that a dead process left at {}", dir.display());
                    fscontext::detach(dir)?;
                }
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(Error::io("looking at", dir, e)),
                Ok(stat) if stat.f_type == FUSE_SUPER_MAGIC && mounted_at(dir)?.is_some() => {
                    return Err(Error::new(Outcome::Busy, format!("using {}", dir.display()))
                        .because("another process serves a FUSE mount there")
                        .advise("stop the other towlined of this store"));
                }
                Ok(_) => return Ok(()),
            }
        }
        Err(Error::new(Outcome::Busy, format!("detaching what dead processes left at {}", dir.display())))
    }

    /// Where it is mounted: the data layer between `cas/` and `late/`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file through which the large files of a layer are read, below where a trigger is mounted.
    pub fn data_path(dir: &Path, layer: &Digest) -> PathBuf {
        dir.join(data::name(layer))
    }

    /// How many callers wait for their ticket.
    pub fn waiting(&self) -> usize {
        self.session.waiting()
    }

    /// False once the kernel has ended the connection: somebody aborted it.
    pub fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    /// Takes the trigger away, also while overlays use it: they keep everything that is local. Callers that wait are failed, and so
    /// are later first opens of absent files.
    pub fn unmount(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.session.refuse();
        let detached = match std::mem::take(&mut self.mounted) {
            true => fscontext::detach(&self.dir).map(drop),
            false => Ok(()),
        };
        match self.session.stop(STOP_DEADLINE) {
            0 => detached,
            left => Err(Error::new(Outcome::Busy, format!("unmounting the FUSE trigger at {}", self.dir.display()))
                .because(format!("{left} of its threads have not ended within {STOP_DEADLINE:?}"))),
        }
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        if self.mounted
            && let Err(e) = self.end()
        {
            tracing::warn!("{}", e.one_line());
        }
    }
}

const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Device number of the file system that is mounted at `dir`; `None` where nothing is. Does not ask that file system.
fn mounted_at(dir: &Path) -> Result<Option<(u32, u32)>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    match rustix::fs::statx(CWD, dir, flags, StatxFlags::TYPE) {
        Ok(stat) if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(Some((stat.stx_dev_major, stat.stx_dev_minor)))
        }
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(Error::io("looking at", dir, e)),
    }
}
