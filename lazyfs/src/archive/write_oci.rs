//! An OCI layout in a new tar file as a [`Sink`]. The file has another name until it is complete.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tokio::sync::Mutex;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::tar::compose::Composed;
use crate::layout::index::IndexFile;
use crate::manifest::About;
use crate::sink::{Blob, Content, Progress, Sink, Stored};
use crate::source::{BoxFuture, RawManifest};

/// A new OCI archive.
pub struct OciArchiveWriter {
    path: PathBuf,
    /// Held while a blob is written: an archive has one end. Nothing else is locked under it.
    state: Mutex<State>,
}

struct State {
    tar: TarFile,
    blobs: HashSet<Digest>,
    index: IndexFile,
}

/// A tar file that is being written under another name, beside the one that it replaces.
pub(super) struct TarFile {
    path: PathBuf,
    file: NamedTempFile,
    end: u64,
}

impl TarFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        // What is there gets replaced, which must not happen to a device; and members are not written one after the other.
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(Error::new(Outcome::BadInput, format!("writing the archive {}", path.display()))
                .because("something is there that is no regular file")
                .advise("write a file, and copy that"));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".towline-new-")
            .tempfile_in(dir)
            .map_err(|e| Error::io("creating a file in", dir, e))?;
        Ok(Self { path: path.to_owned(), file, end: 0 })
    }

    /// Begins a member; what was written before counts only when [`Self::close`] has ended it.
    pub(super) fn begin(&self) -> MemberWriter<'_> {
        MemberWriter { file: self.file.as_file(), path: &self.path, start: self.end, len: 0 }
    }

    /// Ends a member with its name and length.
    pub(super) fn close(&mut self, name: &str, len: u64) -> Result<()> {
        let failed = |e| Error::io("writing", &self.path, e);
        let (file, start) = (self.file.as_file(), self.end);
        file.write_all_at(&Composed::file(name, 0o644, len).header(), start).map_err(failed)?;
        let padding = len.next_multiple_of(512) - len;
        let zeros = [0; 512];
        file.write_all_at(&zeros[..usize::try_from(padding).expect("below 512")], start + 512 + len).map_err(failed)?;
        self.end = start + 512 + len + padding;
        Ok(())
    }

    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut member = self.begin();
        member.write(content)?;
        let len = member.len;
        self.close(name, len)
    }

    /// Ends the archive and gives it its name.
    pub(super) fn finish(self) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("writing", &self.path, e);
        let file = self.file.as_file();
        file.set_len(self.end).and_then(|()| file.write_all_at(&[0; 1024], self.end)).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(0o644)).map_err(|e| failed(e.into()))?;
        self.file.persist(&self.path).map(drop).map_err(|e| Error::io("naming", &self.path, e.error))
    }
}

/// Writes the content of a member whose length is not known yet.
pub(super) struct MemberWriter<'a> {
    file: &'a File,
    path: &'a Path,
    start: u64,
    pub(super) len: u64,
}

impl MemberWriter<'_> {
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<()> {
        let at = self.start + 512 + self.len;
        self.file.write_all_at(piece, at).map_err(|e| Error::io("writing", self.path, e))?;
        self.len += piece.len() as u64;
        Ok(())
    }
}

impl OciArchiveWriter {
    /// Begins an archive that will be at `path`, also where another file is there.
    pub fn create(path: &Path) -> Result<Self> {
        let state = State { tar: TarFile::create(path)?, blobs: HashSet::new(), index: IndexFile::empty() };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    async fn write_blob(&self, blob: Blob, content: &Content, progress: Progress<'_>) -> Result<Stored> {
        let mut state = self.state.lock().await;
        if state.blobs.contains(&blob.digest) {
            progress(blob.size);
            return Ok(Stored::Existed);
        }
        let mut member = state.tar.begin();
        content.copy(blob, progress, &mut |piece| member.write(piece)).await?;
        let len = member.len;
        state.tar.close(&format!("blobs/sha256/{}", blob.digest.hex()), len)?;
        state.blobs.insert(blob.digest);
        Ok(Stored::Sent)
    }
}

impl Sink for OciArchiveWriter {
    fn name(&self) -> String {
        format!("oci-archive:{}", self.path.display())
    }

    fn has_blob(&self, blob: Blob) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move { Ok(self.state.lock().await.blobs.contains(&blob.digest)) })
    }

    fn put_blob<'a>(&'a self, blob: Blob, content: &'a Content, progress: Progress<'a>) -> BoxFuture<'a, Result<Stored>> {
        Box::pin(self.write_blob(blob, content, progress))
    }

    fn put_manifest<'a>(&'a self, manifest: &'a RawManifest, tag: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let about = About::of(manifest)?;
            let mut state = self.state.lock().await;
            if state.blobs.insert(manifest.digest) {
                state.tar.add(&format!("blobs/sha256/{}", manifest.digest.hex()), &manifest.bytes)?;
            }
            if tag.is_some() || about.subject.is_some() {
                state.index.add(manifest, &about, tag.filter(|tag| !tag.is_empty()));
            }
            Ok(())
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            let index = state.index.to_bytes();
            state.tar.add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            state.tar.add("index.json", &index)?;
            let tar = std::mem::replace(&mut state.tar, TarFile::create(&self.path)?);
            drop(state);
            tokio::task::spawn_blocking(move || tar.finish()).await.expect("writing does not panic")
        })
    }
}
