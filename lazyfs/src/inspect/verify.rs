//! Checking every byte of an image at its source: blobs against the manifest, layers against the configuration's diffIDs, and tables of
//! contents against their layers.

use std::sync::Arc;

use serde::Serialize;

use super::{LayerFormat, Opened, read_layer, toc};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::verify::compare;
use crate::layer::{EntryKind, LayerIndex, zstd_chunked};
use crate::manifest::Layer;
use crate::pull::read_range;
use crate::source::Source;

/// What was found out about a layer.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Its blob.
    pub digest: Digest,
    /// Length of the blob, bytes.
    pub size: u64,
    /// How it is stored.
    pub format: LayerFormat,
    /// Digest of the uncompressed layer that the configuration names.
    pub diff_id: Digest,
    /// Entries of the table of contents that were compared with the layer, where it has one.
    pub toc_entries: Option<usize>,
    /// What is wrong, one line each; empty where it is intact.
    pub problems: Vec<String>,
}

/// Checks the layers one after the other. `progress` hears of the bytes of each. Fails where a layer cannot be read; one that is
/// wrong is told in the result.
pub async fn verify(image: &Opened, progress: &Arc<dyn Fn(Digest, u64) + Send + Sync>) -> Result<Vec<Checked>> {
    let mut all = Vec::new();
    for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.diff_ids) {
        all.push(check(&image.source, layer, diff_id, progress.clone()).await?);
    }
    Ok(all)
}

async fn check(
    source: &Arc<dyn Source>,
    layer: &Layer,
    diff_id: &Digest,
    progress: Arc<dyn Fn(Digest, u64) + Send + Sync>,
) -> Result<Checked> {
    let (digest, size) = (layer.digest, layer.size);
    let format = LayerFormat::of(layer)?;
    let mut checked = Checked { digest, size, format, diff_id: *diff_id, toc_entries: None, problems: Vec::new() };
    let index = match format {
        LayerFormat::ZstdChunked => table(source, layer, &mut checked.problems).await?,
        _ => None,
    };
    match read_layer(source, layer, move |bytes| progress(digest, bytes)).await {
        Ok(read) => {
            if read.blob_digest != digest {
                checked.problems.push(format!("its {} bytes have digest {}", read.blob_size, read.blob_digest));
            }
            if read.diff_id != *diff_id {
                checked.problems.push(format!("its uncompressed digest is {}, the configuration says {diff_id}", read.diff_id));
            }
            if let Some(index) = &index {
                checked.toc_entries = Some(index.entries.len());
                checked.problems.extend(compare(index, &read.index).err().map(|e| e.one_line()));
            }
        }
        Err(e) if matches!(e.outcome(), Outcome::BadInput | Outcome::Integrity | Outcome::Unsupported) => {
            checked.problems.push(e.one_line());
        }
        Err(e) => return Err(e),
    }
    if !checked.problems.is_empty()
        && let Some(index) = &index
    {
        checked.problems.extend(first_bad_chunk(source.as_ref(), layer, index).await?);
    }
    Ok(checked)
}

async fn table(source: &Arc<dyn Source>, layer: &Layer, problems: &mut Vec<String>) -> Result<Option<LayerIndex>> {
    let Some(location) = toc(layer)? else { return Ok(None) };
    let bytes = read_range(source.as_ref(), &layer.digest, location.range.clone()).await?;
    match zstd_chunked::parse(&layer.digest, &location, &bytes) {
        Ok(index) => Ok(Some(index)),
        Err(e) => {
            problems.push(format!("at byte {}: {}", location.range.start, e.one_line()));
            Ok(None)
        }
    }
}

/// Where a layer begins to be wrong, as far as its table of contents tells.
async fn first_bad_chunk(source: &dyn Source, layer: &Layer, index: &LayerIndex) -> Result<Option<String>> {
    for entry in &index.entries {
        let EntryKind::File(content) = &entry.kind else { continue };
        for chunk in &content.chunks {
            let end = chunk.blob_offset + chunk.blob_len;
            let bytes = read_range(source, &layer.digest, chunk.blob_offset..end).await?;
            let wanted =
                usize::try_from(chunk.len).map_err(|e| Error::new(Outcome::Unsupported, "reading a chunk").because(e))?;
            let plain = zstd::bulk::decompress(&bytes, wanted);
            if !plain.is_ok_and(|plain| Digest::of(&plain) == chunk.digest) {
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                return Ok(Some(format!(
                    "bytes {} to {end} of the blob are not those of `{}` from byte {}",
                    chunk.blob_offset,
                    path.escape_debug(),
                    chunk.file_offset
                )));
            }
        }
    }
    Ok(None)
}
