//! A container's root directory seen from outside. Its content comes from an image, so every path is resolved by the kernel as if
//! the directory were `/` (openat2, RESOLVE_IN_ROOT): no link leads out of it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use towline_lazyfs::error::{Error, Outcome, Result};

/// Longest file that is read, bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// How often a resolution is tried again when something is renamed meanwhile (openat2(2), EAGAIN).
const ATTEMPTS: usize = 32;

/// An open root directory.
#[derive(Debug)]
pub struct RootDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl RootDir {
    /// Opens the root at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("opening", path, e))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// The content of a regular file in it; `None` where there is no such file. A lazy file is fetched.
    pub fn read(&self, inside: &str) -> Result<Option<String>> {
        let shown = self.path.join(inside.trim_start_matches('/'));
        // Without blocking: the image may have a named pipe there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.resolve(inside, flags) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e @ Errno::LOOP) => {
                return Err(Error::io("reading", shown, e)
                    .advise("if the file is not a loop of links, it could not be fetched: see the log of towlined"));
            }
            Err(e) => return Err(Error::io("reading", shown, e)),
        };
        let metadata = file.metadata().map_err(|e| Error::io("reading", &shown, e))?;
        if !metadata.is_file() || metadata.len() > MAX_FILE {
            return Err(Error::new(Outcome::BadInput, format!("reading {}", shown.display()))
                .because(format!("it is not a regular file of at most {MAX_FILE} bytes")));
        }
        let mut content = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut content).map_err(|e| Error::io("reading", &shown, e))?;
        Ok(Some(String::from_utf8_lossy(&content).into_owned()))
    }

    /// Makes a directory with its parents where it is missing.
    pub fn create_dirs(&self, inside: &str) -> Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tried = |e: Errno| Error::io("creating", self.path.join(inside.trim_start_matches('/')), e);
        if self.resolve(inside, flags).is_ok() {
            return Ok(());
        }
        let mut parent = String::from("/");
        for name in inside.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let dir = self.resolve(&parent, flags).map_err(tried)?;
            parent = format!("{parent}{name}/");
            // `..` is resolved, never made.
            if name == ".." {
                continue;
            }
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(tried(e)),
            }
        }
        self.resolve(inside, flags).map(drop).map_err(tried)
    }

    /// Opens what a path means in it.
    pub fn resolve<P: rustix::path::Arg + Copy>(&self, inside: P, flags: OFlags) -> Result<OwnedFd, Errno> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..ATTEMPTS {
            match rustix::fs::openat2(&self.fd, inside, flags, Mode::empty(), how) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "host").unwrap();
        std::fs::write(root.join("secret"), "image").unwrap();
        symlink("../../../../secret", root.join("etc/up")).unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink("loop", root.join("etc/loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("etc/fifo"), Mode::from_raw_mode(0o600)).unwrap();
        let root = RootDir::open(&root).unwrap();
        for path in ["/etc/up", "etc/absolute", "../../secret"] {
            assert_eq!(root.read(path).unwrap().as_deref(), Some("image"), "{path}");
        }
        assert_eq!(root.read("/etc/none").unwrap(), None);
        assert_eq!(root.read("/secret/none").unwrap(), None);
        for path in ["/etc/loop", "/etc/fifo", "/etc"] {
            assert!(root.read(path).is_err(), "{path}");
        }
    }

    #[test]
    fn directories_are_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        std::fs::create_dir_all(&path).unwrap();
        symlink(dir.path(), path.join("out")).unwrap();
        symlink("/real", path.join("link")).unwrap();
        std::fs::write(path.join("file"), "").unwrap();
        let root = RootDir::open(&path).unwrap();
        root.create_dirs("/a/b/../c").unwrap();
        assert!(path.join("a/c").is_dir());
        // The link means a directory inside that is missing.
        assert!(root.create_dirs("/out/x").is_err());
        assert!(!dir.path().join("x").exists());
        std::fs::create_dir(path.join("real")).unwrap();
        root.create_dirs("/link/y").unwrap();
        assert!(path.join("real/y").is_dir());
        assert!(root.create_dirs("/file/z").is_err());
    }
}
