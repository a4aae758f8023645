//! Looking into images without pulling them: what they consist of ([`open`]), whether they are intact ([`verify`]), and how two of them
//! differ ([`diff`]).

pub mod diff;
pub mod verify;

use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Outcome, Result};
use crate::fetch::stream;
use crate::layer::tar::HashSink;
use crate::layer::zstd_chunked::{self, TocLocation};
use crate::layer::{LayerIndex, saved};
use crate::manifest::{Compression, Config, Layer, MAX_CONFIG, Manifest, Platform};
use crate::pull::{read_blob, read_range, resolve};
use crate::source::{RawManifest, Source};
use crate::store::Store;

/// The annotation of eStargz's layers (stargz-snapshotter, "eStargz").
const STARGZ_TOC: &str = "containerd.io/snapshot/stargz/toc.digest";

/// An image whose manifest and configuration have been read and verified.
#[derive(Clone)]
pub struct Opened {
    /// Where it comes from.
    pub source: Arc<dyn Source>,
    /// Its manifest, verbatim.
    pub raw: RawManifest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration, verbatim.
    pub config_text: Vec<u8>,
    /// Its configuration.
    pub config: Config,
}

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LayerFormat {
    /// Not compressed.
    #[serde(rename = "tar")]
    Tar,
    /// gzip.
    #[serde(rename = "gzip")]
    Gzip,
    /// gzip with a table of contents.
    #[serde(rename = "estargz")]
    Estargz,
    /// zstd.
    #[serde(rename = "zstd")]
    Zstd,
    /// zstd with a table of contents.
    #[serde(rename = "zstd:chunked")]
    ZstdChunked,
}

impl LayerFormat {
    /// As the manifest declares it.
    pub fn of(layer: &Layer) -> Result<Self> {
        Ok(match layer.compression {
            Compression::None => Self::Tar,
            Compression::Gzip if layer.annotations.contains_key(STARGZ_TOC) => Self::Estargz,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd if toc(layer)?.is_some() => Self::ZstdChunked,
            Compression::Zstd => Self::Zstd,
        })
    }

    /// How users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Gzip => "gzip",
            Self::Estargz => "estargz",
            Self::Zstd => "zstd",
            Self::ZstdChunked => "zstd:chunked",
        }
    }
}

fn toc(layer: &Layer) -> Result<Option<TocLocation>> {
    TocLocation::from_annotations(&layer.digest, layer.size, &layer.annotations)
}

/// Reads manifest and configuration.
pub async fn open(source: &Arc<dyn Source>, selector: &str, platform: &Platform) -> Result<Opened> {
    let (raw, manifest) = resolve(source.as_ref(), selector, platform).await?;
    let config_text = read_blob(source.as_ref(), &manifest.config, MAX_CONFIG).await?;
    let config = Config::parse(&config_text, manifest.layers.len())?;
    Ok(Opened { source: source.clone(), raw, manifest, config_text, config })
}

/// What is in a layer: what the store keeps of it, else its table of contents, else the whole layer is read.
async fn index(source: &Arc<dyn Source>, layer: &Layer, store: Option<&Store>) -> Result<LayerIndex> {
    let kept = store.map(|store| std::fs::read(store.index_path(&layer.digest)));
    if let Some(Ok(bytes)) = kept
        && let Ok(index) = saved::load(&bytes)
    {
        return Ok(index);
    }
    if layer.compression == Compression::Zstd
        && let Some(location) = toc(layer)?
    {
        let bytes = read_range(source.as_ref(), &layer.digest, location.range.clone()).await?;
        match zstd_chunked::parse(&layer.digest, &location, &bytes) {
            // One that may not be complete.
            Err(e) if e.outcome() == Outcome::Unsupported => {}
            parsed => return parsed,
        }
    }
    Ok(read_layer(source, layer, |_| ()).await?.index)
}

/// Reads a whole layer and computes both of its digests; nothing is stored. `progress` hears of compressed bytes.
async fn read_layer(
    source: &Arc<dyn Source>,
    layer: &Layer,
    progress: impl FnMut(u64) + Send + 'static,
) -> Result<crate::layer::stream::Ingested> {
    let (digest, compression) = (layer.digest, layer.compression);
    let reader = stream::reader(source.clone(), digest, layer.size, progress);
    let work = move || crate::layer::stream::ingest(reader, compression, &mut HashSink::default());
    let read = tokio::task::spawn_blocking(work).await;
    read.map_err(|e| Error::new(Outcome::Io, "reading a layer").because(e))?
        .map_err(|e| e.during(format!("reading layer {digest} of {}", source.name())))
}

#[cfg(test)]
mod tests;
