//! Copies files and directories between two roots, neither of which is trusted with the other: of a path that a user names every step is
//! resolved inside its root ([`RootDir`]), and below that only names of entries are opened, never links. So no link of a container leads
//! out of it, whatever its processes rename meanwhile.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use towline_lazyfs::error::{Error, Outcome, Result};

use super::rootdir::RootDir;

/// Directories in directories; each of them is open.
const MAX_DEPTH: usize = 256;

/// What is kept of files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Owner, and the bits that give rights of it.
    pub archive: bool,
    /// What a link at the end of the source leads to, and not the link.
    pub follow: bool,
    /// The bits that give rights of the owner are kept also without `archive`.
    pub keep_set_id: bool,
}

/// What is copied.
struct Source {
    stat: Stat,
    content: Content,
}

enum Content {
    Directory(OwnedFd),
    File(File),
    Link(CString),
    Pipe,
    /// A device or a socket.
    Other,
}

/// A copy that is being made.
struct Copy<'a> {
    options: Options,
    /// Told what is left out.
    warn: &'a mut dyn FnMut(&str),
}

/// Copies `from` in one root to `to` in the other, with docker's rules: into a directory that is there, otherwise by that name; of a
/// directory whose path ends in `/.` the content.
pub fn copy(source: (&RootDir, &str), target: (&RootDir, &str), options: Options, warn: &mut dyn FnMut(&str)) -> Result<()> {
    let ((from_root, from), (to_root, to)) = (source, target);
    let tried = || format!("copying {from} to {to}");
    let failed = |path: &str, e: Errno| Error::io("opening", path, e).during(tried());
    let refuse = |why: &str| Error::new(Outcome::BadInput, tried()).because(why.to_owned());
    let content_only = from == "." || from.ends_with("/.") || name_of(from).is_none();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let followed = options.follow || content_only || from.ends_with('/');
    let flags = if followed { flags } else { flags | OFlags::NOFOLLOW };
    let opened = from_root.resolve(from, flags).map_err(|e| failed(from, e))?;
    let source = Source::of(opened).map_err(|e| failed(from, e))?;
    let is_directory = matches!(source.content, Content::Directory(_));
    if from.ends_with('/') && !is_directory {
        return Err(refuse("the source is no directory"));
    }
    let directory = |path: &str| to_root.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC);
    let mut copy = Copy { options, warn };
    let done = match (directory(to), source.content, name_of(from)) {
        (Ok(into), Content::Directory(content), _) if content_only => copy.content(&content, &into, 0),
        (Ok(into), content, Some(name)) => copy.entry(Source { content, ..source }, &into, &name, 0),
        (Ok(_), ..) => return Err(refuse("the source has no name")),
        (Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP), content, _) => {
            if to.ends_with('/') && !is_directory {
                return Err(refuse("there is no such directory"));
            }
            let name = name_of(to).ok_or_else(|| refuse("the target has no name"))?;
            let parent = parent_of(to);
            let into = directory(parent).map_err(|e| failed(parent, e))?;
            copy.entry(Source { content, ..source }, &into, &name, 0)
        }
        (Err(e), ..) => return Err(failed(to, e)),
    };
    done.map_err(|e| e.during(tried()))
}

/// The last part of a path; none where it is no name.
fn name_of(path: &str) -> Option<CString> {
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."))?;
    CString::new(name).ok()
}

fn parent_of(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => parent,
        _ => "/",
    }
}

impl Source {
    /// What a descriptor stands for that cannot be read (O_PATH).
    fn of(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                Content::Directory(rustix::fs::openat(&fd, c".", flags, Mode::empty())?)
            }
            // This very file, whatever its name stands for by now.
            FileType::RegularFile => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                Content::File(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
            }
            FileType::Symlink => Content::Link(rustix::fs::readlinkat(&fd, c"", Vec::new())?),
            FileType::Fifo => Content::Pipe,
            _ => Content::Other,
        };
        Ok(Self { stat, content })
    }
}

impl Copy<'_> {
    /// The entries of a directory.
    fn content(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(Error::new(Outcome::BadInput, "copying a directory").because(format!("it is more than {MAX_DEPTH} deep")));
        }
        let listing = |e: Errno| Error::io("listing", "a directory", e);
        for entry in Dir::read_from(from).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(from, name, flags, Mode::empty()).and_then(Source::of) {
                Ok(source) => self.entry(source, to, name, depth + 1)?,
                // It was removed meanwhile.
                Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::io("opening", shown(name), e)),
            }
        }
        Ok(())
    }

    fn entry(&mut self, source: Source, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
        let failed = |e: Errno| Error::io("writing", shown(name), e);
        let stat = source.stat;
        match source.content {
            Content::Directory(content) => {
                match rustix::fs::mkdirat(to, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(failed(e)),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(to, name, flags, Mode::empty()).map_err(failed)?;
                self.content(&content, &made, depth)?;
                self.mark(made.as_fd(), &stat).map_err(failed)
            }
            Content::File(file) => self.file(file, &stat, to, name),
            Content::Link(target) => {
                replace(to, name, |new| rustix::fs::symlinkat(&target, to, new)).map_err(failed)?;
                if self.options.archive {
                    let (uid, gid) = owner(&stat);
                    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                }
                Ok(())
            }
            Content::Pipe => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
                replace(to, name, |new| rustix::fs::mknodat(to, new, FileType::Fifo, mode, 0)).map_err(failed)
            }
            Content::Other => {
                (self.warn)(&format!("{} is a device or a socket: it is left out", shown(name)));
                Ok(())
            }
        }
    }

    fn file(&mut self, mut from: File, stat: &Stat, to: &OwnedFd, name: &CStr) -> Result<()> {
        let failed = |e: Errno| Error::io("writing", shown(name), e);
        let mut write = |fd: OwnedFd| {
            let mut file = File::from(fd);
            std::io::copy(&mut from, &mut file).map_err(|e| Error::io("writing", shown(name), e))?;
            self.mark(file.as_fd(), stat).map_err(failed)
        };
        let new = temporary();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(to, &new, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let named = write(made).and_then(|()| match rustix::fs::renameat(to, &new, to, name) {
            // Something is mounted on it, as on a container's /etc/hosts: its content is replaced.
            Err(Errno::BUSY) => Ok(false),
            other => other.map(|()| true).map_err(failed),
        });
        if let Ok(true) = named {
            return Ok(());
        }
        let copied = rustix::fs::openat(to, &new, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
        rustix::fs::unlinkat(to, &new, AtFlags::empty()).map_err(failed)?;
        named?;
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mounted = rustix::fs::openat(to, name, flags, Mode::empty()).map_err(failed)?;
        let copied = std::io::copy(&mut File::from(copied.map_err(failed)?), &mut File::from(mounted));
        copied.map(drop).map_err(|e| Error::io("writing", shown(name), e))
    }

    /// Gives what was made the mode and the time of what it was made of.
    fn mark(&self, made: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
        if self.options.archive {
            let (uid, gid) = owner(stat);
            rustix::fs::fchown(made, uid, gid)?;
        }
        let bits = if self.options.archive || self.options.keep_set_id { 0o7777 } else { 0o1777 };
        rustix::fs::fchmod(made, Mode::from_raw_mode(stat.st_mode & bits))?;
        let at = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
        let times = Timestamps {
            last_access: at(stat.st_atime, stat.st_atime_nsec),
            last_modification: at(stat.st_mtime, stat.st_mtime_nsec),
        };
        rustix::fs::futimens(made, &times)
    }
}

fn owner(stat: &Stat) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (Some(rustix::fs::Uid::from_raw(stat.st_uid)), Some(rustix::fs::Gid::from_raw(stat.st_gid)))
}

/// Makes something under a name of its own, and gives it the name of what it replaces.
fn replace(dir: &OwnedFd, name: &CStr, make: impl FnOnce(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    let new = temporary();
    make(&new)?;
    rustix::fs::renameat(dir, &new, dir, name).inspect_err(|_| {
        // Only litter, of a name that is not used again.
        rustix::fs::unlinkat(dir, &new, AtFlags::empty()).unwrap_or_default();
    })
}

fn temporary() -> CString {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let text = format!(".towline-cp-{}-{number}", rustix::process::getpid().as_raw_nonzero());
    CString::new(text).expect("it has no zero byte")
}

fn shown(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn roots() -> (tempfile::TempDir, RootDir, RootDir) {
        let dir = tempfile::tempdir().unwrap();
        for path in ["host", "box/dir/sub", "box/into"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let write = |path: &str, text: &str| std::fs::write(dir.path().join(path), text).unwrap();
        write("secret", "outside");
        write("box/file", "text");
        write("box/dir/sub/deep", "deep");
        std::fs::set_permissions(dir.path().join("box/file"), std::fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("../../secret", dir.path().join("box/dir/link")).unwrap();
        symlink("file", dir.path().join("box/named")).unwrap();
        let (host, inside) = (RootDir::open(&dir.path().join("host")).unwrap(), RootDir::open(&dir.path().join("box")).unwrap());
        (dir, host, inside)
    }

    fn read(dir: &tempfile::TempDir, path: &str) -> String {
        std::fs::read_to_string(dir.path().join(path)).unwrap()
    }

    fn take(source: (&RootDir, &str), target: (&RootDir, &str)) -> Result<()> {
        copy(source, target, Options::default(), &mut |_| {})
    }

    #[test]
    fn names_are_as_docker_has_them() {
        let (dir, host, inside) = roots();
        take((&inside, "/file"), (&host, "/new")).unwrap();
        take((&inside, "/file"), (&host, "/")).unwrap();
        take((&inside, "/dir"), (&host, "/copy")).unwrap();
        take((&inside, "/dir"), (&host, "/copy")).unwrap();
        take((&inside, "/dir/."), (&host, "/copy/dir")).unwrap();
        take((&inside, "dir/sub/"), (&host, "/")).unwrap();
        take((&inside, "/named"), (&host, "/link")).unwrap();
        let followed = Options { follow: true, ..Options::default() };
        copy((&inside, "/named"), (&host, "/real"), followed, &mut |_| {}).unwrap();
        for (path, text) in [
            ("host/new", "text"),
            ("host/file", "text"),
            ("host/copy/sub/deep", "deep"),
            ("host/copy/dir/sub/deep", "deep"),
            ("host/sub/deep", "deep"),
            ("host/real", "text"),
        ] {
            assert_eq!(read(&dir, path), text, "{path}");
        }
        assert_eq!(std::fs::read_link(dir.path().join("host/link")).unwrap(), Path::new("file"));
        // A program that would run as its owner does not on the host.
        assert_eq!(std::fs::metadata(dir.path().join("host/new")).unwrap().permissions().mode() & 0o7777, 0o750);
        let same = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().modified().unwrap();
        assert_eq!(same("host/new"), same("box/file"));
        for (from, to) in [("/none", "/x"), ("/file", "/none/x"), ("/file", "/none/"), ("/file/", "/x"), ("/dir", "/new")] {
            assert!(take((&inside, from), (&host, to)).is_err(), "{from} {to}");
        }
        assert!(
            std::fs::read_dir(dir.path().join("host")).unwrap().all(|entry| !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("towline"))
        );
    }

    #[test]
    fn links_of_a_container_lead_nowhere_else() {
        let (dir, host, inside) = roots();
        // Read through a link: what it means inside.
        let followed = Options { follow: true, ..Options::default() };
        assert!(copy((&inside, "/dir/link"), (&host, "/out"), followed, &mut |_| {}).is_err());
        // Written through one: the link is replaced, or means what it means inside.
        std::fs::write(dir.path().join("host/mine"), "mine").unwrap();
        take((&host, "/mine"), (&inside, "/dir/link")).unwrap();
        assert_eq!((read(&dir, "secret"), read(&dir, "box/dir/link")), ("outside".into(), "mine".into()));
        symlink("/../..", dir.path().join("box/up")).unwrap();
        take((&host, "/mine"), (&inside, "/up")).unwrap();
        assert_eq!(read(&dir, "box/mine"), "mine");
        symlink(dir.path().join("host"), dir.path().join("box/absolute")).unwrap();
        assert!(take((&host, "/mine"), (&inside, "/absolute/x")).is_err());
        // A link where a directory is to be made.
        symlink(dir.path(), dir.path().join("box/into/tree")).unwrap();
        std::fs::create_dir(dir.path().join("host/tree")).unwrap();
        std::fs::write(dir.path().join("host/tree/planted"), "x").unwrap();
        assert!(take((&host, "/tree"), (&inside, "/into")).is_err());
        assert!(!dir.path().join("planted").exists());
    }
}
