//! Writing a mapping table.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::data::{DataLayout, layout};
use super::{
    CHUNK, FILE, FLAG_ZEROS, HEADER_EXTRA, KIND_ESTARGZ, KIND_GZIP_SEEK, KIND_STREAM, KIND_ZSTD_CHUNKED, LAYER, MAGIC, NO_PLACE,
    ORDER, VERSION,
};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::{Chunk, EntryKind, LayerIndex, LayerKind};
use crate::wire;

/// A layer as [`build`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct LayerSource<'a> {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar, from the image's configuration.
    pub diff_id: Digest,
    /// Length of the blob, bytes.
    pub size: u64,
    /// How its bytes can be reached.
    pub kind: LayerKind,
    /// What is in it.
    pub index: &'a LayerIndex,
}

/// Makes the mapping table of the image with these layers, lowest first. Two layers that give one content different lengths are
/// [`Outcome::Integrity`].
pub fn build(layers: &[LayerSource<'_>]) -> Result<Vec<u8>> {
    let files = collect(layers)?;
    let data = layers.iter().map(|layer| match layer.kind {
        LayerKind::ZstdChunked | LayerKind::Estargz | LayerKind::GzipSeek => layout(&layer.digest, layer.index),
        LayerKind::Stream => Ok(DataLayout::default()),
    });
    let data = data.collect::<Result<Vec<_>>>()?;
    let place = |digest: &Digest, file: &Place<'_>| data[file.layer as usize].offsets.get(digest).copied();
    let large = large(layers.len(), &files, place);
    let large_total: usize = large.iter().map(Vec::len).sum();
    let too_many = |what: &str| Error::new(Outcome::Unsupported, "making the mapping table").because(format!("too many {what}"));
    let chunk_total: usize = files.values().map(|file| file.chunks.len()).sum();
    let counts = [
        u32::try_from(layers.len()).map_err(|_| too_many("layers"))?,
        u32::try_from(files.len()).map_err(|_| too_many("files"))?,
        u32::try_from(chunk_total).map_err(|_| too_many("chunks"))?,
        u32::try_from(large_total).map_err(|_| too_many("large files"))?,
    ];
    let order = order(layers.len(), &files);

    let mut out = wire::begin(MAGIC, VERSION, HEADER_EXTRA);
    out.reserve(HEADER_EXTRA + layers.len() * LAYER + files.len() * (FILE + ORDER) + chunk_total * CHUNK + large_total * ORDER);
    counts.iter().for_each(|count| out.extend(count.to_le_bytes()));
    let (mut first_in_order, mut first_large) = (0u32, 0u32);
    for (((layer, order), data), large) in layers.iter().zip(&order).zip(&data).zip(&large) {
        out.extend(layer.digest.as_bytes());
        out.extend(layer.diff_id.as_bytes());
        out.extend(layer.size.to_le_bytes());
        out.extend(data.len.to_le_bytes());
        let kind = match layer.kind {
            LayerKind::ZstdChunked => KIND_ZSTD_CHUNKED,
            LayerKind::Stream => KIND_STREAM,
            LayerKind::Estargz => KIND_ESTARGZ,
            LayerKind::GzipSeek => KIND_GZIP_SEEK,
        };
        for field in [kind, first_in_order, order.len() as u32, first_large, large.len() as u32, 0] {
            out.extend(field.to_le_bytes());
        }
        first_in_order += order.len() as u32;
        first_large += large.len() as u32;
    }
    let mut first_chunk = 0u32;
    for (digest, file) in &files {
        out.extend(digest.as_bytes());
        out.extend(file.size.to_le_bytes());
        out.extend(place(digest, file).unwrap_or(NO_PLACE).to_le_bytes());
        for field in [file.layer, first_chunk, file.chunks.len() as u32, 0] {
            out.extend(field.to_le_bytes());
        }
        first_chunk += file.chunks.len() as u32;
    }
    for chunk in files.values().flat_map(|file| file.chunks) {
        for field in [chunk.file_offset, chunk.len, chunk.blob_offset, chunk.blob_len] {
            out.extend(field.to_le_bytes());
        }
        out.extend(chunk.digest.as_bytes());
        out.extend(if chunk.zeros { FLAG_ZEROS } else { 0 }.to_le_bytes());
        out.extend([0; 4]);
    }
    order.iter().chain(&large).flatten().for_each(|file| out.extend(file.to_le_bytes()));
    Ok(wire::end(out))
}

type Files<'a> = BTreeMap<Digest, Place<'a>>;

/// Where a content is taken from.
#[derive(Clone, Copy)]
struct Place<'a> {
    layer: u32,
    size: u64,
    chunks: &'a [Chunk],
}

/// Decides for each content which layer it is taken from.
fn collect<'a>(layers: &[LayerSource<'a>]) -> Result<Files<'a>> {
    let mut files = Files::new();
    for (number, layer) in (0u32..).zip(layers) {
        for entry in &layer.index.entries {
            let EntryKind::File(content) = &entry.kind else { continue };
            if content.size == 0 {
                continue;
            }
            let chunks: &[Chunk] = match layer.kind {
                LayerKind::ZstdChunked | LayerKind::Estargz | LayerKind::GzipSeek => &content.chunks,
                LayerKind::Stream => &[],
            };
            let here = Place { layer: number, size: content.size, chunks };
            let known = match files.entry(content.digest) {
                Slot::Vacant(slot) => slot.insert(here),
                Slot::Occupied(slot) => slot.into_mut(),
            };
            if known.size != here.size {
                let path = String::from_utf8_lossy(&entry.path);
                let tried = format!("making the mapping table: file {path:?} of layer {}", layer.digest);
                let other = layers[known.layer as usize].digest;
                let cause = format!(
                    "content {} has {} bytes there, but {} bytes in layer {other}",
                    content.digest, here.size, known.size
                );
                return Err(Error::new(Outcome::Integrity, tried).because(cause));
            }
            if known.chunks.is_empty() && !here.chunks.is_empty() {
                *known = here;
            }
        }
    }
    Ok(files)
}

/// For each layer the numbers of its files by blob offset.
fn order(layers: usize, files: &Files<'_>) -> Vec<Vec<u32>> {
    let mut order = vec![Vec::new(); layers];
    for (number, file) in (0u32..).zip(files.values()) {
        order[file.layer as usize].push((file.chunks.first().map(|chunk| chunk.blob_offset), number));
    }
    let sorted = |mut layer: Vec<(Option<u64>, u32)>| {
        layer.sort_unstable();
        layer.into_iter().map(|(_, number)| number).collect()
    };
    order.into_iter().map(sorted).collect()
}

/// For each layer the numbers of its large files by their place.
fn large(layers: usize, files: &Files<'_>, place: impl Fn(&Digest, &Place<'_>) -> Option<u64>) -> Vec<Vec<u32>> {
    let mut large = vec![Vec::new(); layers];
    for (number, (digest, file)) in (0u32..).zip(files) {
        large[file.layer as usize].extend(place(digest, file).map(|place| (place, number)));
    }
    let sorted = |mut layer: Vec<(u64, u32)>| {
        layer.sort_unstable();
        layer.into_iter().map(|(_, number)| number).collect()
    };
    large.into_iter().map(sorted).collect()
}
