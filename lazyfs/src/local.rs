//! An image of the store as a [`Source`]: manifest and configuration are those that were pulled, byte for byte. The blobs of its layers
//! are not kept, only what is in them; they come from where the image was pulled from.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::pull::Sources;
use crate::reference::Reference;
use crate::source::{BoxFuture, ByteStream, RawManifest, Source};
use crate::store::Store;
use crate::store::db::ImageRow;
use crate::store::imported;

/// An image of the store.
pub struct LocalImage {
    name: String,
    manifest: RawManifest,
    config: Bytes,
    origin: Arc<dyn Source>,
    /// Where it was pulled from; `None` for one that was made here, whose source says by itself which layer is where.
    from: Option<String>,
}

impl LocalImage {
    /// Opens an image of the store. One that was pulled by a version that kept no manifests asks its source for it.
    pub async fn open(store: &Store, row: &ImageRow, sources: &Sources) -> Result<Self> {
        let files = store.image(&row.digest);
        let record = files.record()?;
        let name = row.names.first().cloned().unwrap_or_else(|| row.digest.to_string());
        let from: Reference = record
            .reference
            .parse()
            .map_err(|e| Error::new(Outcome::Integrity, format!("reading the record of {name}")).because(e))?;
        let origin = sources.source(&from, record.plain_http).map_err(|e| gone(e, &name, &record.reference))?;
        let bytes = match files.manifest()? {
            Some(bytes) => Bytes::from(bytes),
            None => {
                let raw = origin.manifest(&row.digest.to_string()).await.map_err(|e| gone(e, &name, &record.reference))?;
                files.keep_manifest(&raw.bytes)?;
                raw.bytes
            }
        };
        let manifest = RawManifest { bytes, digest: row.digest, media_type: String::new() };
        let is_made_here = matches!(&from, Reference::Layout(layout) if layout.dir() == imported::dir(store.root()));
        let from = (!is_made_here).then_some(record.reference);
        Ok(Self { name, manifest, config: Bytes::from(record.config), origin, from })
    }

    /// The manifest, as it was pulled.
    pub fn raw(&self) -> &RawManifest {
        &self.manifest
    }
}

/// What it means that a blob cannot be had any more.
fn gone(error: Error, name: &str, from: &str) -> Error {
    let outcome = error.outcome();
    Error::new(outcome, format!("reading a layer of {name} from where it was pulled from, {from}"))
        .because(error)
        .advise(format!("the store keeps files and not the compressed layers, which only {from} has: make that reachable again"))
}

impl Source for LocalImage {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        Box::pin(async move {
            match tag_or_digest.parse::<Digest>() {
                Ok(digest) if digest != self.manifest.digest => self.origin.manifest(tag_or_digest).await,
                _ => Ok(self.manifest.clone()),
            }
        })
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move {
            if Digest::of(&self.config) == blob {
                let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(self.config.len());
                let piece = self.config.slice(at(range.start)..at(range.end));
                return Ok(Box::pin(futures_util::stream::iter([Ok(piece)])) as ByteStream);
            }
            self.origin.open(blob, range).await.map_err(|e| match &self.from {
                Some(from) => gone(e, &self.name, from),
                None => e.during(format!("reading a layer of {}", self.name)),
            })
        })
    }

    fn referrers<'a>(&'a self, subject: Digest, kind: Option<&'a str>) -> BoxFuture<'a, Result<Vec<crate::source::Referrer>>> {
        self.origin.referrers(subject, kind)
    }

    fn repository(&self) -> Option<(&str, &str)> {
        self.origin.repository()
    }

    fn repository_of(&self, blob: &Digest) -> Option<(&str, &str)> {
        self.origin.repository_of(blob)
    }
}
