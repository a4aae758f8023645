//! Pieces: what is fetched, decoded, counted and given up as one. A file that is not large is one piece and becomes an object; of a large
//! file each chunk is one, and becomes bytes of its layer's data file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::Digest;
use crate::layer::Chunk;
use crate::table::{FileRecord, Table};

/// Names a piece for all images: content that two of them have is the same piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PieceId {
    /// A file that becomes an object.
    Object(Digest),
    /// Bytes of the large files of a layer, from this place of its data file on.
    Data {
        /// Digest of the layer.
        layer: Digest,
        /// Where it begins, bytes.
        offset: u64,
    },
}

/// A piece of a layer.
#[derive(Debug)]
pub(super) struct Piece {
    /// Digest of the file that it is of.
    pub file: Digest,
    /// Its bytes in the layer's data file; `None` for a file that becomes an object.
    pub data: Option<Range<u64>>,
    /// Numbers of its chunks in the file.
    chunks: Range<u32>,
    /// Known to be in the store.
    local: AtomicBool,
}

impl Piece {
    /// Whether it is known to be in the store.
    pub fn is_local(&self) -> bool {
        self.local.load(Ordering::Relaxed)
    }

    /// Notes that it is in the store. Returns whether that was news.
    pub fn set_local(&self) -> bool {
        !self.local.swap(true, Ordering::Relaxed)
    }

    /// Its name, in this layer.
    pub fn id(&self, layer: &Digest) -> PieceId {
        match &self.data {
            None => PieceId::Object(self.file),
            Some(data) => PieceId::Data { layer: *layer, offset: data.start },
        }
    }

    /// Its chunks.
    pub fn chunks(&self, table: &Table) -> Vec<Chunk> {
        let record = table.lookup(&self.file).expect("pieces are made from the table");
        table.chunks(&record).skip(self.chunks.start as usize).take(self.chunks.len()).collect()
    }
}

/// The pieces of a file in the order of its content, each with its extent in the blob. By the table alone, so that all images with the layer
/// cut alike. None for a file whose layer has no random access.
pub(super) fn pieces_of(table: &Table, file: &FileRecord) -> Vec<(Range<u64>, Piece)> {
    let mut pieces: Vec<(Range<u64>, Piece)> = Vec::new();
    for (number, chunk) in (0u32..).zip(table.chunks(file)) {
        let blob_end = chunk.blob_offset + chunk.blob_len;
        let end = file.data_offset.map_or(0, |start| start + chunk.file_offset + chunk.len);
        match pieces.last_mut() {
            Some((extent, piece)) if piece.data.is_none() => {
                extent.end = blob_end;
                piece.chunks.end = number + 1;
            }
            _ => {
                let data = file.data_offset.map(|start| start + chunk.file_offset..end);
                let piece = Piece { file: file.digest, data, chunks: number..number + 1, local: AtomicBool::new(false) };
                pieces.push((chunk.blob_offset..blob_end, piece));
            }
        }
    }
    pieces
}

impl fmt::Display for PieceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(file) => write!(f, "file {file}"),
            Self::Data { layer, offset } => write!(f, "large files of layer {layer} from byte {offset}"),
        }
    }
}

/// What is to be decoded of a blob, and what becomes of it.
#[derive(Clone, Debug)]
pub(super) struct PiecePlan {
    /// Its name.
    pub id: PieceId,
    /// Digest of the file that it is of.
    pub file: Digest,
    /// Its chunks: ascending. Those of an object add up to the file.
    pub chunks: Arc<[Chunk]>,
    /// Where it goes.
    pub to: Destination,
}

/// Where a piece goes.
#[derive(Clone, Debug)]
pub(super) enum Destination {
    /// It becomes an object.
    Object,
    /// Into the data file of its layer.
    Data {
        /// Length of the data file.
        len: u64,
        /// Where the file begins in it.
        file: u64,
    },
}

impl PiecePlan {
    /// Extent in the blob from the first to the last chunk.
    pub fn range(&self) -> Range<u64> {
        let first = self.chunks.first().map_or(0, |c| c.blob_offset);
        first..self.chunks.last().map_or(first, |c| c.blob_offset + c.blob_len)
    }
}
