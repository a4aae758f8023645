//! The content store: one plain file per content digest, and the hard links through which a waiting container finds a file that
//! has just arrived.
//!
//! ```text
//! STORE/cas/ab/cdef…    the object with digest sha256:abcdef…, mode 0444; whatever has a name here is complete and was verified
//! STORE/late/ab/cdef…   hard link, made only for an object that the FUSE trigger is asked for (ARCHITECTURE.md, "Lazy root")
//! STORE/poison/00..ff   256 symbolic links: a path that is looked up here fails with ELOOP
//! ```
//!
//! An object is written into an unnamed file (O_TMPFILE) and gets its name only when its digest is right, so a writer that is
//! killed leaves nothing behind.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::quota::Meter;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};

/// The content store below one directory.
#[derive(Debug)]
pub struct Cas {
    root: PathBuf,
    objects: OwnedFd,
    late: OwnedFd,
    meter: Arc<Meter>,
}

impl Cas {
    /// Opens the content store below `store`, making its directories where they are missing.
    pub fn open(store: &Path) -> Result<Self> {
        let directory = |name: &str| {
            let path = store.join(name);
            std::fs::create_dir_all(&path).map_err(|e| Error::io("creating", &path, e))?;
            rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| Error::io("opening", &path, e))
        };
        let (objects, late) = (directory("cas")?, directory("late")?);
        let cas = Self { root: store.to_owned(), objects, late, meter: Arc::default() };
        let poison = directory("poison")?;
        // Made last: where it is, all others are. A start of a container opens the store, and 768 calls would be felt.
        if rustix::fs::statat(&poison, "ff", AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(cas);
        }
        for byte in 0..=255u8 {
            let name = format!("{byte:02x}");
            for (dir, path) in [(&cas.objects, "cas"), (&cas.late, "late")] {
                match rustix::fs::mkdirat(dir, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(Error::io("creating", store.join(path).join(&name), e)),
                }
            }
            match rustix::fs::symlinkat("this-file-could-not-be-fetched--see-the-log-of-towlined", &poison, &name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io("creating", store.join("poison").join(&name), e)),
            }
        }
        Ok(cas)
    }

    /// Is told of every new object.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The directory of the objects: the first data layer of every container.
    pub fn objects_dir(&self) -> PathBuf {
        self.root.join("cas")
    }

    /// The directory of the late links: the data layer behind the FUSE trigger.
    pub fn late_dir(&self) -> PathBuf {
        self.root.join("late")
    }

    /// The last data layer.
    pub fn poison_dir(&self) -> PathBuf {
        self.root.join("poison")
    }

    /// Whether the object is here.
    pub fn contains(&self, digest: &Digest) -> bool {
        rustix::fs::accessat(&self.objects, digest.object_path(), rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Length of the object in bytes, `None` where it is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let stat = rustix::fs::statat(&self.objects, digest.object_path(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_size).ok()
    }

    /// Opens an object for reading.
    pub fn get(&self, digest: &Digest) -> Result<File> {
        let path = digest.object_path();
        match rustix::fs::openat(&self.objects, &path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(fd.into()),
            Err(Errno::NOENT) => Err(Error::new(Outcome::NotFound, format!("opening object {digest}"))),
            Err(e) => Err(Error::io("opening", self.objects_dir().join(path), e)),
        }
    }

    /// Starts a new object.
    pub fn writer(&self) -> Result<ObjectWriter<'_>> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.objects, ".", flags, Mode::from_raw_mode(0o444))
            .map_err(|e| Error::io("creating an unnamed file in", self.objects_dir(), e))?;
        Ok(ObjectWriter { cas: self, file: fd.into(), hasher: Hasher::default() })
    }

    /// Makes the object visible through `late/` too. Called before the FUSE trigger answers for it, since overlayfs has already
    /// looked into `cas/` by then.
    pub fn link_late(&self, digest: &Digest) -> Result<()> {
        let path = digest.object_path();
        match rustix::fs::linkat(&self.objects, &path, &self.late, &path, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(Error::io("linking", self.late_dir().join(path), e)),
        }
    }

    /// Removes all late links. Only while no FUSE trigger is mounted: then nobody is between `cas/` and `late/`.
    pub fn clear_late(&self) -> Result<()> {
        for byte in 0..=255u8 {
            let dir = self.late_dir().join(format!("{byte:02x}"));
            for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
                let path = entry.map_err(|e| Error::io("listing", &dir, e))?.path();
                std::fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
            }
        }
        Ok(())
    }

    /// Removes an object. The caller makes sure that no image names it (the store's garbage collection does).
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        let path = digest.object_path();
        for (dir, name) in [(&self.late, self.late_dir()), (&self.objects, self.objects_dir())] {
            match rustix::fs::unlinkat(dir, &path, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::io("removing", name.join(&path), e)),
            }
        }
        Ok(())
    }

    /// Removes all objects but these; yields their size in bytes. The caller makes sure that no image names any other.
    pub fn remove_all_but(&self, keep: &HashSet<Digest>) -> Result<u64> {
        let mut freed = 0;
        // Most objects have no late link, so it is asked once which have.
        for (dir, path) in [(&self.late, self.late_dir()), (&self.objects, self.objects_dir())] {
            let mut unnamed: Vec<(u64, Digest)> = list(&path)?.into_iter().filter(|(_, digest)| !keep.contains(digest)).collect();
            // Inodes that were made one after the other are beside each other on the disk; names are not.
            unnamed.sort_unstable();
            for (_, digest) in unnamed {
                let name = digest.object_path();
                let failed = |e: Errno| Error::io("removing", path.join(&name), e);
                let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                rustix::fs::unlinkat(dir, &name, AtFlags::empty()).map_err(failed)?;
                // The last name is what holds the bytes.
                freed += if stat.st_nlink == 1 { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
            }
        }
        Ok(freed)
    }

    /// Every object that is here, in no order.
    pub fn list(&self) -> Result<Vec<Digest>> {
        Ok(list(&self.objects_dir())?.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Makes everything that was stored so far durable, with one system call for the whole file system.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(self.objects.as_fd()).map_err(|e| Error::io("syncing", self.objects_dir(), e))
    }
}

/// An object that is being written; it has no name until [`ObjectWriter::finish`]. Dropping it discards it.
#[derive(Debug)]
pub struct ObjectWriter<'a> {
    cas: &'a Cas,
    file: File,
    hasher: Hasher,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hasher({} bytes)", self.length())
    }
}

impl ObjectWriter<'_> {
    /// Appends `piece`.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).map_err(|e| Error::io("writing an object in", self.cas.objects_dir(), e))?;
        self.hasher.update(piece);
        Ok(())
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Names the object by the digest of what was written and returns that digest.
    pub fn finish(self) -> Result<Digest> {
        let length = self.length();
        let digest = self.hasher.finish();
        Self::publish(self.cas, &self.file, &digest, length)?;
        Ok(digest)
    }

    /// Names the object, or discards it with [`Outcome::Integrity`] where its content has another digest than `expected`.
    pub fn finish_as(self, expected: &Digest) -> Result<()> {
        let length = self.length();
        let digest = self.hasher.finish();
        if digest != *expected {
            let tried = format!("storing {length} bytes as {expected}");
            return Err(Error::new(Outcome::Integrity, tried).because(format!("their digest is {digest}")));
        }
        Self::publish(self.cas, &self.file, &digest, length)
    }

    fn publish(cas: &Cas, file: &File, digest: &Digest, length: u64) -> Result<()> {
        let path = digest.object_path();
        // Not AT_EMPTY_PATH: that needs CAP_DAC_READ_SEARCH, which a rootless store does not have.
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, unnamed, &cas.objects, &path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {
                cas.meter.add(length);
                Ok(())
            }
            Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(Error::io("naming", cas.objects_dir().join(path), e)),
        }
    }
}

/// What `cas/` or `late/` has, with the numbers of the inodes.
fn list(dir: &Path) -> Result<Vec<(u64, Digest)>> {
    let mut all = Vec::new();
    for byte in 0..=255u8 {
        let prefix = format!("{byte:02x}");
        let dir = dir.join(&prefix);
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("listing", &dir, e))?;
            if let Some(rest) = entry.file_name().to_str()
                && let Ok(digest) = Digest::from_hex(&format!("{prefix}{rest}"))
            {
                all.push((entry.ino(), digest));
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_goes_with_its_late_link() {
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let objects: Vec<Digest> = (0..50u8)
            .map(|n| {
                let mut writer = cas.writer().unwrap();
                writer.write(&vec![n; 1000]).unwrap();
                let digest = writer.finish().unwrap();
                if n % 3 == 0 {
                    cas.link_late(&digest).unwrap();
                }
                digest
            })
            .collect();
        let keep: HashSet<Digest> = objects.iter().step_by(2).copied().collect();
        assert_eq!(cas.remove_all_but(&keep).unwrap(), 25 * 1000);
        for (n, digest) in objects.iter().enumerate() {
            let late = cas.late_dir().join(digest.object_path()).exists();
            assert_eq!((cas.contains(digest), late), (n % 2 == 0, n % 6 == 0), "object {n}");
        }
        assert_eq!(cas.remove_all_but(&keep).unwrap(), 0);
    }

    #[test]
    fn an_object_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello, world");

        let mut writer = cas.writer().unwrap();
        writer.write(b"hello, ").unwrap();
        assert!(cas.list().unwrap().is_empty());
        writer.write(b"world").unwrap();
        assert_eq!(writer.finish().unwrap(), digest);
        assert_eq!(cas.list().unwrap(), [digest]);
        assert_eq!(cas.size(&digest), Some(12));

        let mut wrong = cas.writer().unwrap();
        wrong.write(b"hello, w0rld").unwrap();
        assert_eq!(wrong.finish_as(&digest).unwrap_err().outcome(), Outcome::Integrity);
        assert_eq!(std::fs::read(cas.objects_dir().join(digest.object_path())).unwrap(), b"hello, world");
        assert_eq!(cas.list().unwrap(), [digest]);
    }

    #[test]
    fn late_links_are_the_same_inode() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let mut writer = cas.writer().unwrap();
        writer.write(b"x").unwrap();
        let digest = writer.finish().unwrap();
        cas.link_late(&digest).unwrap();
        cas.link_late(&digest).unwrap();
        let inode = |dir: PathBuf| std::fs::metadata(dir.join(digest.object_path())).unwrap().ino();
        assert_eq!(inode(cas.objects_dir()), inode(cas.late_dir()));
        cas.clear_late().unwrap();
        assert!(cas.contains(&digest) && !cas.late_dir().join(digest.object_path()).exists());
        cas.remove(&digest).unwrap();
        assert!(!cas.contains(&digest));
    }

    #[test]
    fn poison_is_eloop() {
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(cas.poison_dir()).unwrap().count(), 256);
    }
}
