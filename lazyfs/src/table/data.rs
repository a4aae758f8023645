//! Where the large files of a layer are in its data file (`store/big.rs`): by the layer's index alone, so that all images with the layer
//! agree on it.
//!
//! A file has a place there if it has [`CHUNKED_FROM`] bytes or more, can be fetched in chunks, and no chunk is longer than [`MAX_CHUNK`].
//! Contents are there once, in the order of the blob, each from a multiple of [`CLUSTER`] on.
//!
//! Whoever changes this rule makes another version of the mapping table and of the map of a data file: files that were laid out by the old
//! rule must not be read by the new one.

use std::collections::{HashMap, HashSet};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::LayerIndex;
use crate::store::big::{CLUSTER, MAX_DATA};

/// Files of this length or more, bytes, are fetched by chunks.
pub const CHUNKED_FROM: u64 = 256 << 10;
/// The longest chunk, in bytes of content: a chunk is in memory until its digest is known.
pub const MAX_CHUNK: u64 = 4 << 20;

/// The large files of a layer.
#[derive(Debug, Default)]
pub(super) struct DataLayout {
    /// Where each begins.
    pub offsets: HashMap<Digest, u64>,
    /// Length of the data file: a multiple of [`CLUSTER`], 0 where there are no large files.
    pub len: u64,
}

/// Lays out the large files of a layer with random access.
pub(super) fn layout(layer: &Digest, index: &LayerIndex) -> Result<DataLayout> {
    let mut seen = HashSet::new();
    // Of a content that is there twice the first counts, as in the table.
    let mut large: Vec<(u64, Digest, u64)> = index
        .files()
        .filter(|file| file.size > 0 && seen.insert(file.digest))
        .filter(|file| file.size >= CHUNKED_FROM && file.chunks.iter().all(|chunk| chunk.len <= MAX_CHUNK))
        .filter_map(|file| Some((file.chunks.first()?.blob_offset, file.digest, file.size)))
        .collect();
    large.sort_unstable();
    let mut layout = DataLayout::default();
    for (_, digest, size) in large {
        layout.offsets.insert(digest, layout.len);
        let end = layout.len.checked_add(size).and_then(|end| end.checked_next_multiple_of(CLUSTER));
        layout.len = end.filter(|end| *end <= MAX_DATA).ok_or_else(|| {
            let why = format!("its large files have more than {MAX_DATA} bytes together");
            Error::new(Outcome::Unsupported, format!("laying out the large files of layer {layer}")).because(why)
        })?;
    }
    Ok(layout)
}
