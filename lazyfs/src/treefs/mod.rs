//! A whole image tree served from user space: for users who may not mount EROFS, for kernels that cannot mount it from a file, and for
//! whoever wants to look into an image without a container (`towline images mount`).
//!
//! ```text
//! kernel --LOOKUP, GETATTR, READDIR, ...--> filesystem --> StoredTree      metadata: never waits, kept by the kernel for ever
//!        --OPEN-------------------------------^        --> Contents        content: the look-up in the mapping table, and the fetch
//!        <-- descriptor to pass through to (6.9, root), or READ from the file
//! ```
//!
//! For a container ([`layers`]) a process of its own serves the tree, and an overlay is mounted over it ([`crate::rootfs::served`]).
//!
//! Nothing can change: the mount is read-only, every entry is valid for ever, and pages of a file are kept when it is closed.
//!
//! What it cannot do, in contrast to the lazy root of [`crate::rootfs`]: the mount lives and dies with its process (the crate fuser cannot
//! take up a connection that another process began), and a program that is killed while it waits for content ends when the content is
//! here or given up (fuser leaves INTERRUPT unanswered).

pub(crate) mod filesystem;
pub(crate) mod handles;
pub mod layers;
pub(crate) mod push;
pub(crate) mod waits;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, MountOption, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use self::filesystem::TreeFs;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::tree::erofs::node::Nid;
use crate::tree::erofs::read::StoredTree;

/// Threads that answer the kernel. None of them waits for a fetch.
const THREADS: usize = 2;
/// The same where they push, too.
const PUSHING_THREADS: usize = 2 * push::MOST_AT_ONCE;
/// How long the threads may take to notice that they are not needed any more.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Takes what was asked for, from any thread.
pub type Opened = Box<dyn FnOnce(Result<Open>) + Send>;

/// Takes bytes that were asked for, from any thread.
pub type Read = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

/// An open content.
#[derive(Debug)]
pub enum Open {
    /// All of it is in this file.
    Whole(File),
    /// It is large, and each part is asked for when it is read.
    Parts,
}

/// Has the content of the tree's files.
pub trait Contents: Send + Sync + 'static {
    /// Opens the whole content of a file, and says so to `opened`, now or later; must not wait for a fetch.
    fn open(&self, file: Wanted, opened: Opened);

    /// Reads bytes of a file that was opened as [`Open::Parts`]; must not wait for a fetch. Yields all of the range, which is inside of the
    /// content.
    fn read(&self, file: Wanted, range: Range<u64>, read: Read);

    /// Bytes from the beginning of the range on, as many as are here without a gap: for files that are pushed ([`push`]). Does not wait.
    fn here(&self, _file: &Wanted, _range: Range<u64>) -> Vec<u8> {
        Vec::new()
    }
}

/// A file that a program has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its number in the tree.
    pub nid: Nid,
    /// Digest of its content.
    pub content: Digest,
    /// Length of its content, bytes.
    pub size: u64,
    /// The thread that has opened it, in the pid namespace of this process; 0 where it is not known.
    pub caller: u32,
}

/// What the tree is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The image.
    Image,
    /// What an overlay over it takes for the image: what would mean something to overlayfs is escaped.
    BelowOverlay,
}

/// A mounted tree. Unmounted when this is dropped.
#[derive(Debug)]
pub struct TreeMount {
    dir: PathBuf,
    thread: JoinHandle<()>,
}

impl TreeMount {
    /// Mounts `tree` at the directory `dir`, by fusermount3 for users other than root, and serves it on threads of its own. `ended` is called
    /// once, when nothing is served any more: after an unmount, whoever did it.
    pub fn mount(
        tree: StoredTree,
        contents: Arc<dyn Contents>,
        view: View,
        name: &str,
        dir: &Path,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        Self::serve(TreeFs::new(tree, contents, view, root), true, None, name, dir, ended)
    }

    /// Mounts any file system of this crate. `pushes`: files that are pushed to the kernel; it must have agreed to that
    /// ([`filesystem::agree_to_push`]).
    pub(crate) fn serve(
        filesystem: impl Filesystem + 'static,
        read_only: bool,
        pushes: Option<&handles::OpenFiles>,
        name: &str,
        dir: &Path,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let tried = || format!("mounting {name} at {}", dir.display());
        let root = rustix::process::geteuid().is_root();
        let mut config = Config::default();
        config.mount_options = vec![
            if read_only { MountOption::RO } else { MountOption::RW },
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::FSName("towline".into()),
            MountOption::Subtype("towline".into()),
        ];
        if root {
            // Others see what the modes of the image let them see; without root it is the user's own view of an archive.
            config.mount_options.push(MountOption::DefaultPermissions);
            config.acl = SessionACL::All;
        }
        config.n_threads = Some(if pushes.is_some() { PUSHING_THREADS } else { THREADS });
        let session = Session::new(filesystem, dir, &config).map_err(|e| {
            let advice = match e.kind() {
                std::io::ErrorKind::NotFound => "does the directory exist, and is fusermount3 (package fuse3) installed?",
                std::io::ErrorKind::PermissionDenied => "is the directory yours, and may you open /dev/fuse?",
                _ => "is FUSE there (/dev/fuse, package fuse3)?",
            };
            Error::new(Outcome::Unsupported, tried()).because(e).advise(advice)
        })?;
        if let Some(files) = pushes {
            files.push_by(session.notifier());
        }
        let what = tried();
        let serve = move || {
            if let Err(e) = session.run() {
                tracing::error!("{what}: serving it ended: {e}");
            }
            ended();
        };
        let thread = std::thread::Builder::new().name("tree".into()).spawn(serve);
        let thread = thread.map_err(|e| Error::new(Outcome::Io, tried()).because(e))?;
        Ok(Self { dir: dir.to_owned(), thread })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unmounts it and waits until nothing is served any more. Fails with [`Outcome::Busy`] while a program uses it.
    pub fn unmount(&self) -> Result<()> {
        unmount(&self.dir, UnmountFlags::NOFOLLOW)?;
        let deadline = Instant::now() + END_DEADLINE;
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                let error = Error::new(Outcome::Io, format!("ending what served {}", self.dir.display()));
                return Err(error.because(format!("it had not ended after {END_DEADLINE:?}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for TreeMount {
    fn drop(&mut self) {
        if !self.thread.is_finished()
            && let Err(error) = detach(&self.dir)
        {
            tracing::warn!("{}", error.one_line());
        }
    }
}

/// Takes a mount away, also one whose daemon is dead; programs that use it keep it.
pub fn detach(dir: &Path) -> Result<()> {
    unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

/// Whether something is mounted there, dead or alive.
pub fn is_mounted(dir: &Path) -> Result<bool> {
    match rustix::fs::statfs(dir) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        _ => crate::fscontext::is_mount_point(dir),
    }
}

/// Not by the crate: after a refusal that has forgotten its mount.
fn unmount(dir: &Path, flags: UnmountFlags) -> Result<()> {
    let tried = || format!("unmounting {}", dir.display());
    match rustix::mount::unmount(dir, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::new(Outcome::Busy, tried())
            .because("a program uses it")
            .advise("end what works in it (`fuser -m DIR` lists it) and try again")),
        Err(Errno::INVAL | Errno::NOENT) => {
            Err(Error::new(Outcome::NotFound, tried()).because("nothing is mounted there").advise("see `towline images mount`"))
        }
        // Only root may; others have FUSE's own program for it.
        Err(Errno::PERM) => {
            let mut command = std::process::Command::new("fusermount3");
            command.arg("-u").args(flags.contains(UnmountFlags::DETACH).then_some("-z")).arg("--").arg(dir);
            let ended = command.output().map_err(|e| Error::new(Outcome::Io, tried()).because(format!("fusermount3: {e}")))?;
            if ended.status.success() {
                return Ok(());
            }
            Err(Error::new(Outcome::Busy, tried()).because(String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
        }
        Err(e) => Err(Error::io("unmounting", dir, e)),
    }
}

#[cfg(test)]
mod tests;
