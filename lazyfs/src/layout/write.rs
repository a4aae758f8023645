//! An OCI image layout directory as a [`Sink`].
//!
//! A blob is written under another name and renamed, and so is `index.json`, which is changed only by who holds the directory's lock
//! (flock(2)): several processes may write into one layout.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Layout;
use super::index::IndexFile;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::About;
use crate::sink::{Blob, Content, Progress, Sink, Stored};
use crate::source::{BoxFuture, RawManifest, Source};

/// How long another process's change of `index.json` is waited for.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
/// What is being written begins with this; nobody reads it.
const NEW_PREFIX: &str = ".towline-new-";

impl Layout {
    /// Opens the directory to write into, making a layout without images where there is none. A directory with something else in it
    /// is refused.
    pub fn create(path: &Path) -> Result<Self> {
        let tried = || format!("creating the OCI layout {}", path.display());
        std::fs::create_dir_all(path).map_err(|e| Error::io("creating", path, e))?;
        let lock = lock(path)?;
        if path.join("oci-layout").exists() {
            return Self::open(path);
        }
        let foreign = std::fs::read_dir(path).map_err(|e| Error::io("listing", path, e))?.next().is_some();
        if foreign && !path.join("blobs").is_dir() {
            return Err(Error::new(Outcome::BadInput, tried())
                .because("the directory has something else in it")
                .advise("name a new or empty directory, or an OCI layout"));
        }
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|e| Error::io("creating", &blobs, e))?;
        // The version comes last: what has it is complete.
        replace(&lock, path, "index.json", &IndexFile::empty().to_bytes())?;
        replace(&lock, path, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Self::open(path)
    }

    fn blobs(&self) -> Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat2(&self.dir, "blobs/sha256", flags, Mode::empty(), ResolveFlags::BENEATH);
        let found = match open() {
            Err(Errno::NOENT) => {
                for name in ["blobs", "blobs/sha256"] {
                    match rustix::fs::mkdirat(&self.dir, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(Error::io("creating", self.path.join(name), e)),
                    }
                }
                open()
            }
            other => other,
        };
        found.map_err(|e| Error::io("opening", self.path.join("blobs/sha256"), e))
    }

    /// The length of a blob that is here.
    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        match self.file(&format!("blobs/sha256/{}", digest.hex())) {
            Ok(file) => {
                let path = self.path.join("blobs/sha256").join(digest.hex());
                Ok(Some(file.metadata().map_err(|e| Error::io("examining", path, e))?.len()))
            }
            Err(e) if e.outcome() == Outcome::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn write_blob(&self, blob: Blob, content: &Content, progress: Progress<'_>) -> Result<Stored> {
        // One of another length was damaged, and is replaced.
        if self.blob_size(&blob.digest)? == Some(blob.size) {
            progress(blob.size);
            return Ok(Stored::Existed);
        }
        let mut new = NewFile::create(self.blobs()?, &self.path.join("blobs/sha256"))?;
        content.copy(blob, progress, &mut |piece| new.write(piece)).await?;
        tokio::task::spawn_blocking(move || new.finish(&blob.digest.hex())).await.expect("writing does not panic")?;
        Ok(Stored::Sent)
    }

    fn write_manifest(&self, manifest: &RawManifest, tag: Option<&str>) -> Result<()> {
        let about = About::of(manifest)?;
        let mut new = NewFile::create(self.blobs()?, &self.path.join("blobs/sha256"))?;
        new.write(&manifest.bytes)?;
        new.finish(&manifest.digest.hex())?;
        // Manifests of an index, and whatever else is only asked for by its digest, are not listed.
        if tag.is_none() && about.subject.is_none() {
            return Ok(());
        }
        let lock = lock(&self.path)?;
        let mut index = self.index()?;
        index.add(manifest, &about, tag.filter(|tag| !tag.is_empty()));
        replace(&lock, &self.path, "index.json", &index.to_bytes())
    }
}

/// The directory, locked until it is closed.
pub(super) fn lock(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("opening", path, e))?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(Outcome::Busy, format!("changing the OCI layout {}", path.display()))
                    .because(format!("another process has held its lock for {} s", LOCK_DEADLINE.as_secs()))
                    .advise("try again when that has ended"));
            }
            Err(e) => return Err(Error::io("locking", path, e)),
        }
    }
}

/// Writes a file of the directory anew; only for who holds its lock where others write it, too.
pub(super) fn replace(dir: &OwnedFd, path: &Path, name: &str, content: &[u8]) -> Result<()> {
    let fd = dir.try_clone().map_err(|e| Error::io("opening", path, e))?;
    let mut new = NewFile::create(fd, path)?;
    new.write(content)?;
    new.finish(name)
}

/// A file that has its name only when it is complete and durable.
struct NewFile {
    dir: OwnedFd,
    path: std::path::PathBuf,
    name: String,
    file: Option<File>,
}

impl NewFile {
    fn create(dir: OwnedFd, path: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let name = format!("{NEW_PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            match rustix::fs::openat(&dir, &name, flags, Mode::from_raw_mode(0o644)) {
                Ok(fd) => return Ok(Self { dir, path: path.to_owned(), name, file: Some(fd.into()) }),
                // Left by a process that had this number before and was killed.
                Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io("creating a file in", path, e)),
            }
        }
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("it is there until it is finished");
        file.write_all(piece).map_err(|e| Error::io("writing a file in", &self.path, e))
    }

    fn finish(mut self, name: &str) -> Result<()> {
        let file = self.file.take().expect("it is finished once");
        let path = self.path.join(name);
        file.sync_all().map_err(|e| Error::io("syncing", &path, e))?;
        let named = rustix::fs::renameat(&self.dir, &self.name, &self.dir, name).map_err(|e| Error::io("naming", &path, e));
        named.inspect_err(|_| self.discard())?;
        rustix::fs::fsync(self.dir.as_fd()).map_err(|e| Error::io("syncing", &self.path, e))
    }

    fn discard(&self) {
        if let Err(e) = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()) {
            tracing::warn!("removing {}: {e}", self.path.join(&self.name).display());
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.discard();
        }
    }
}

impl Sink for Layout {
    fn name(&self) -> String {
        Source::name(self)
    }

    fn has_blob(&self, blob: Blob) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move { Ok(self.blob_size(&blob.digest)? == Some(blob.size)) })
    }

    fn put_blob<'a>(&'a self, blob: Blob, content: &'a Content, progress: Progress<'a>) -> BoxFuture<'a, Result<Stored>> {
        Box::pin(self.write_blob(blob, content, progress))
    }

    fn put_manifest<'a>(&'a self, manifest: &'a RawManifest, tag: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        // A small file and a lock that is held for as long as writing one takes.
        Box::pin(async move { self.write_manifest(manifest, tag) })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn blob(content: &[u8]) -> (Blob, Content) {
        let blob = Blob { digest: Digest::of(content), size: content.len() as u64 };
        (blob, Content::Bytes(Bytes::copy_from_slice(content)))
    }

    fn manifest(text: String) -> RawManifest {
        let bytes = Bytes::from(text);
        RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() }
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count()
    }

    #[tokio::test]
    async fn what_is_put_is_found_and_what_is_wrong_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new");
        let layout = Layout::create(&root).unwrap();
        let (good, content) = blob(b"layer");
        for stored in [Stored::Sent, Stored::Existed] {
            assert_eq!(layout.put_blob(good, &content, &|_| ()).await.unwrap(), stored);
        }
        let wrong = Blob { digest: Digest::of(b"other"), ..good };
        let error = layout.put_blob(wrong, &content, &|_| ()).await.unwrap_err();
        assert!(error.outcome() == Outcome::Integrity && error.one_line().contains("5 bytes from offset 0"), "{error:?}");
        assert!(layout.has_blob(good).await.unwrap() && !layout.has_blob(wrong).await.unwrap());
        assert_eq!(files(&root), 1);
        // One that was cut off by something else is written anew.
        std::fs::write(root.join("blobs/sha256").join(good.digest.hex()), b"lay").unwrap();
        assert_eq!(layout.put_blob(good, &content, &|_| ()).await.unwrap(), Stored::Sent);

        let image = manifest(r#"{"schemaVersion":2,"layers":[]}"#.to_owned());
        layout.put_manifest(&image, None).await.unwrap();
        assert_eq!(layout.manifest("t").await.unwrap_err().outcome(), Outcome::NotFound);
        layout.put_manifest(&image, Some("t")).await.unwrap();
        assert_eq!(Layout::create(&root).unwrap().manifest("t").await.unwrap().digest, image.digest);

        let subject = image.digest;
        let text = r#"{"schemaVersion":2,"artifactType":"a/b","subject":{"digest":"SUBJECT","size":31}}"#;
        layout.put_manifest(&manifest(text.replace("SUBJECT", &subject.to_string())), None).await.unwrap();
        let found = layout.referrers(subject, Some("a/b")).await.unwrap();
        assert_eq!((found.len(), found[0].artifact_type.as_str()), (1, "a/b"));
        assert!(layout.referrers(subject, Some("c/d")).await.unwrap().is_empty());
    }

    #[test]
    fn writers_at_the_same_time_lose_no_tag() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = dir.path();
                scope.spawn(move || {
                    let layout = Layout::create(path).unwrap();
                    for m in 0..5 {
                        let text = format!(r#"{{"schemaVersion":2,"layers":[],"annotations":{{"n":"{n}"}}}}"#);
                        layout.write_manifest(&manifest(text), Some(&format!("t{n}-{m}"))).unwrap();
                    }
                });
            }
        });
        let layout = Layout::open(dir.path()).unwrap();
        let all = (0..8).flat_map(|n| (0..5).map(move |m| format!("t{n}-{m}")));
        assert!(all.into_iter().all(|tag| layout.read_manifest(&tag).is_ok()));
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
        let error = Layout::create(dir.path()).unwrap_err();
        assert!(error.one_line().contains("something else in it"), "{error:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
