//! Where images are written to: the seam between everything that makes or copies image content and the registries, layout
//! directories and archives that take it. The other direction is [`crate::source`].
//!
//! An image is written from the leaves to the root:
//!
//! ```text
//! put_blob (layers, configuration; side by side)  ->  put_manifest (no tag; of each platform)  ->  put_manifest (tag)  ->  finish
//! ```
//!
//! Nobody finds the image before its tag is set, so whoever stops in between, or is killed, leaves at most blobs that nothing names.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::manifest::Descriptor;
use crate::source::{BoxFuture, ByteStream, RawManifest, Source, stream_file};

/// Names a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl From<&Descriptor> for Blob {
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: descriptor.digest, size: descriptor.size }
    }
}

/// Where the bytes of a blob come from. They can be had from any offset, more than once: an upload that broke off goes on where it was.
#[derive(Clone)]
pub enum Content {
    /// From memory.
    Bytes(Bytes),
    /// From a file, beginning with its first byte; the path is for messages.
    File(Arc<File>, PathBuf),
    /// From a blob of a source. Not copied at all where the destination can take it over by itself.
    Blob(Arc<dyn Source>, Digest),
}

impl Content {
    /// Opens bytes `range`.
    pub async fn open(&self, range: Range<u64>) -> Result<ByteStream> {
        match self {
            Self::Bytes(bytes) => {
                let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Box::pin(stream::iter([Ok(bytes.slice(at(range.start)..at(range.end)))])))
            }
            Self::File(file, path) => Ok(stream_file(file.clone(), path.clone(), range)),
            Self::Blob(source, digest) => source.open(*digest, range).await,
        }
    }

    /// Hands all of `blob` to `take`, piece by piece, and fails with [`Outcome::Integrity`] at its end where it was another one.
    pub async fn copy(
        &self,
        blob: Blob,
        progress: Progress<'_>,
        take: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
    ) -> Result<()> {
        let mut hasher = Hasher::default();
        let mut pieces = self.open(0..blob.size).await?;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            hasher.update(&piece);
            // A page cache takes these at once; a full disk is what could wait.
            take(&piece)?;
            progress(hasher.length());
        }
        let found = hasher.finish();
        if found != blob.digest {
            return Err(Error::new(Outcome::Integrity, format!("copying blob {} from {self:?}", blob.digest))
                .because(format!("its {} bytes from offset 0 have digest {found}", hasher.length()))
                .advise("the source's copy is damaged"));
        }
        Ok(())
    }

    /// The repository in a registry that has the blob already.
    pub fn repository(&self) -> Option<(&str, &str)> {
        match self {
            Self::Blob(source, digest) => source.repository_of(digest),
            Self::Bytes(_) | Self::File(..) => None,
        }
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File(_, path) => write!(f, "{}", path.display()),
            Self::Blob(source, digest) => write!(f, "{digest} of {}", source.name()),
        }
    }
}

/// Told how many bytes of the blob have arrived at the destination; may fall back where an upload begins again.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// How a blob came to be at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It was there.
    Existed,
    /// The registry took it over from another of its repositories.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// One image repository that takes images. Dropping a future that a method returned gives that operation up and leaves no tag.
pub trait Sink: Send + Sync {
    /// What is written to, as users write it, for messages.
    fn name(&self) -> String;

    /// Whether the blob is there.
    fn has_blob(&self, blob: Blob) -> BoxFuture<'_, Result<bool>>;

    /// Stores a blob unless it is there. Fails with [`Outcome::Integrity`] where the content is another one.
    fn put_blob<'a>(&'a self, blob: Blob, content: &'a Content, progress: Progress<'a>) -> BoxFuture<'a, Result<Stored>>;

    /// Stores a manifest or index whose blobs are there, and then gives it the tag. One with a `subject` can be found among the
    /// [`Source::referrers`] of that afterwards.
    fn put_manifest<'a>(&'a self, manifest: &'a RawManifest, tag: Option<&'a str>) -> BoxFuture<'a, Result<()>>;

    /// Makes durable and visible what was put. Called once, after the last manifest.
    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
