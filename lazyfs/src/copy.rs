//! Copies an image from a [`Source`] to a [`Sink`], byte for byte: manifests keep their digests, and with them whatever signs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{Document, Platform};
use crate::pull::resolve;
use crate::sink::{Blob, Content, Sink, Stored};
use crate::source::{RawManifest, Source};

/// How many blobs are under way at once.
const PARALLEL: usize = 4;
/// How deep indexes may name indexes.
const MAX_DEPTH: u32 = 3;

/// What happens while an image is copied.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// So much is to be copied, unless it is there.
    Begin {
        /// Number of blobs.
        blobs: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// So many bytes of a blob have arrived.
    Moved {
        /// The blob.
        blob: Blob,
        /// Bytes of it.
        bytes: u64,
    },
    /// A blob is at its destination.
    Done {
        /// The blob.
        blob: Blob,
        /// How it came there.
        stored: Stored,
    },
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Digest of the manifest or index that got the tag.
    pub digest: Option<Digest>,
    /// Blobs and their bytes that were sent.
    pub sent: (usize, u64),
    /// Those that a registry took over from another repository.
    pub mounted: (usize, u64),
    /// Those that were there.
    pub existed: (usize, u64),
}

/// Copies what `selector` names and gives it `tag`; an empty one names it by its digest only. Of an image for several platforms all are
/// copied, or the one for `platform`.
pub async fn copy(
    source: &Arc<dyn Source>,
    selector: &str,
    sink: &dyn Sink,
    tag: &str,
    platform: Option<&Platform>,
    events: &(dyn Fn(Event) + Send + Sync),
) -> Result<Copied> {
    let tried = || format!("copying from {} to {}", source.name(), sink.name());
    let work = async {
        let top = match platform {
            Some(platform) => resolve(source.as_ref(), selector, platform).await?.0,
            None => source.manifest(selector).await?,
        };
        let mut all = Vec::new();
        collect(source.as_ref(), top.clone(), &mut all).await?;
        copy_all(source, &all, top, sink, tag, events).await
    };
    work.await.map_err(|e: Error| e.during(tried()))
}

/// Finds all images below a manifest or index, in an order in which nothing comes before what it names.
async fn collect(source: &dyn Source, top: RawManifest, all: &mut Vec<(RawManifest, Document)>) -> Result<()> {
    let mut open = vec![(top, 0)];
    while let Some((raw, depth)) = open.pop() {
        let document = Document::parse(&raw)?;
        if let Document::Index(index) = &document {
            if depth == MAX_DEPTH {
                return Err(Error::new(Outcome::BadInput, format!("reading index {}", raw.digest))
                    .because(format!("indexes name indexes, more than {MAX_DEPTH} deep")));
            }
            for (entry, _) in index.entries() {
                open.push((source.manifest(&entry.digest.to_string()).await?, depth + 1));
            }
        }
        all.push((raw, document));
    }
    all.reverse();
    Ok(())
}

async fn copy_all(
    source: &Arc<dyn Source>,
    all: &[(RawManifest, Document)],
    top: RawManifest,
    sink: &dyn Sink,
    tag: &str,
    events: &(dyn Fn(Event) + Send + Sync),
) -> Result<Copied> {
    let mut blobs = BTreeMap::new();
    for (_, document) in all {
        if let Document::Image(image) = document {
            blobs.insert(image.config.digest, image.config.size);
            blobs.extend(image.layers.iter().map(|layer| (layer.digest, layer.size)));
        }
    }
    let blobs: Vec<Blob> = blobs.into_iter().map(|(digest, size)| Blob { digest, size }).collect();
    events(Event::Begin { blobs: blobs.len(), bytes: blobs.iter().map(|blob| blob.size).sum() });
    let one = |blob: Blob| async move {
        let content = Content::Blob(source.clone(), blob.digest);
        let stored = sink.put_blob(blob, &content, &|bytes| events(Event::Moved { blob, bytes })).await?;
        events(Event::Done { blob, stored });
        Ok::<_, Error>((blob, stored))
    };
    let work = futures_util::stream::iter(blobs).map(one).buffer_unordered(PARALLEL);
    let mut copied = Copied { digest: Some(top.digest), ..Copied::default() };
    let stored: Vec<(Blob, Stored)> = work.try_collect().await?;
    for (blob, stored) in stored {
        let count = match stored {
            Stored::Sent => &mut copied.sent,
            Stored::Mounted => &mut copied.mounted,
            Stored::Existed => &mut copied.existed,
        };
        *count = (count.0 + 1, count.1 + blob.size);
    }
    for (raw, _) in all.iter().filter(|(raw, _)| raw.digest != top.digest) {
        sink.put_manifest(raw, None).await?;
    }
    sink.put_manifest(&top, Some(tag)).await?;
    sink.finish().await?;
    Ok(copied)
}

#[cfg(test)]
mod tests;
