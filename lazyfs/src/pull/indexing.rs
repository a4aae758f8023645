//! Making seek indexes of an image's layers, and pushing them beside the image ([`super::referrers`]): `towline images index`.
//!
//! Layers are read from their source and not stored; each is checked against its digest and its diffID before its index is made.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::referrers::{Artifact, Blob};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::stream;
use crate::inspect;
use crate::layer::estargz;
use crate::layer::tar::HashSink;
use crate::layer::zstd_chunked::TocLocation;
use crate::manifest::{Compression, Layer, OCI_MANIFEST, Platform};
use crate::sink::{self, Content, Sink};
use crate::source::{RawManifest, Source};

/// Told how many bytes of a layer have been read.
pub type Progress = Arc<dyn Fn(Digest, u64) + Send + Sync>;

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The image's manifest.
    pub image: Digest,
    /// The layers that an index was made of; others have a table of contents, or no use for an index.
    pub layers: Vec<Indexed>,
    /// The zstd layers without a table of contents: no index can be made of them, and they stream.
    pub stream: Vec<Digest>,
    /// The artifact with the indexes, where it was pushed.
    pub artifact: Option<Digest>,
}

/// A layer and its index.
#[derive(Clone, Debug, Serialize)]
pub struct Indexed {
    /// Digest of the layer.
    pub layer: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// Length of the index, bytes.
    pub index_size: u64,
    /// In how many places the layer can be entered.
    pub spans: usize,
}

/// Makes the indexes of all layers that need one, and pushes them to `sink` if there is one. `progress` hears of each layer how many bytes of
/// it have been read.
pub async fn index_image(
    source: Arc<dyn Source>,
    selector: &str,
    platform: &Platform,
    sink: Option<Arc<dyn Sink>>,
    progress: &Progress,
) -> Result<Report> {
    let image = inspect::open(&source, selector, platform).await?;
    let mut report = Report { image: image.raw.digest, layers: Vec::new(), stream: Vec::new(), artifact: None };
    let mut blobs = Vec::new();
    for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.diff_ids) {
        let is_chunked = || TocLocation::from_annotations(&layer.digest, layer.size, &layer.annotations);
        if layer.compression == Compression::Zstd && is_chunked()?.is_none() && !report.stream.contains(&layer.digest) {
            report.stream.push(layer.digest);
        }
        let has_table = estargz::table_digest(&layer.digest, &layer.annotations)?.is_some();
        if layer.compression != Compression::Gzip || has_table || report.layers.iter().any(|known| known.layer == layer.digest) {
            continue;
        }
        let (packed, spans) = index_layer(&source, layer, *diff_id, progress).await?;
        report.layers.push(Indexed { layer: layer.digest, size: layer.size, index_size: packed.len() as u64, spans });
        blobs.push((layer.digest, Bytes::from(packed)));
    }
    if let Some(sink) = sink.filter(|_| !blobs.is_empty()) {
        let artifact = push(sink.as_ref(), &image.raw, blobs).await;
        report.artifact = Some(artifact.map_err(|e| e.during(format!("pushing the indexes of {}", image.raw.digest)))?);
    }
    Ok(report)
}

async fn index_layer(source: &Arc<dyn Source>, layer: &Layer, diff_id: Digest, progress: &Progress) -> Result<(Vec<u8>, usize)> {
    let (digest, compression) = (layer.digest, layer.compression);
    let tried = || format!("indexing layer {digest} of {}", source.name());
    let told = Arc::clone(progress);
    let reader = stream::reader(source.clone(), digest, layer.size, move |bytes| told(digest, bytes));
    let work = move || {
        let ingested = crate::layer::stream::ingest(reader, compression, &mut HashSink::default())?;
        for (what, found, wanted) in
            [("digest", ingested.blob_digest, digest), ("uncompressed digest", ingested.diff_id, diff_id)]
        {
            if found != wanted {
                let why = format!("its {what} is {found}, not {wanted}");
                return Err(Error::new(Outcome::Integrity, "checking it").because(why));
            }
        }
        let none = || Error::new(Outcome::Unsupported, "making an index").because("it is not compressed with gzip");
        let seek = ingested.seek.ok_or_else(none)?;
        Ok((seek.encode()?, seek.spans.len()))
    };
    let made = tokio::task::spawn_blocking(work).await.map_err(|e| Error::new(Outcome::Io, tried()).because(e))?;
    made.map_err(|e| e.during(tried()))
}

async fn push(sink: &dyn Sink, image: &RawManifest, indexes: Vec<(Digest, Bytes)>) -> Result<Digest> {
    let mut described = Vec::new();
    for (layer, bytes) in indexes {
        let (digest, size) = put(sink, bytes).await?;
        described.push((layer, digest, size));
    }
    put(sink, Bytes::from_static(b"{}")).await?;
    let (media_type, size) = (image.media_type.clone(), image.bytes.len() as u64);
    let subject = Blob { media_type, digest: image.digest, size, annotations: BTreeMap::new() };
    let text = serde_json::to_vec(&Artifact::new(subject, described)).expect("artifacts have only string keys");
    let manifest = RawManifest { digest: Digest::of(&text), bytes: text.into(), media_type: OCI_MANIFEST.to_owned() };
    sink.put_manifest(&manifest, None).await?;
    sink.finish().await?;
    Ok(manifest.digest)
}

async fn put(sink: &dyn Sink, bytes: Bytes) -> Result<(Digest, u64)> {
    let blob = sink::Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
    sink.put_blob(blob, &Content::Bytes(bytes), &|_| ()).await?;
    Ok((blob.digest, blob.size))
}
