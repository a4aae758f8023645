//! The mapping table of an image: for each content digest, where its bytes are. The FUSE trigger and the fetcher look files up in it.
//!
//! One immutable file, mapped into memory, all numbers little-endian, sections without gaps in this order:
//!
//! ```text
//! header   shared fields (wire.rs), then u32 layers, u32 files, u32 chunks, u32 large files
//! layers   104 bytes each, in the order of the manifest:
//!            digest 32, diffID 32, size u64, length of its data file u64, kind u32, first file u32 and number of files u32 of the
//!            layer in `order`, first file u32 and number of files u32 in `large`, u32 0
//! files    64 bytes each, sorted by digest, digests unique:
//!            digest 32, size u64, place in the layer's data file u64 (all bits set: none), layer u32, first chunk u32, number of
//!            chunks u32, u32 0
//! chunks   72 bytes each, those of a file together and ascending:
//!            file offset u64, length u64, blob offset u64, compressed length u64, digest 32, flags u32 (1: zeros), u32 0
//! order    u32 each: numbers of files, for each layer by ascending blob offset
//! large    u32 each: numbers of the files that have a place in their layer's data file, for each layer by ascending place
//! ```
//!
//! That was version 3; in version 2 fewer files were large (`table/data.rs`), version 1 knew no data files.
//!
//! Every file of every layer is in it, also one that a higher layer hides: a layer's diffID can be verified only with all of its
//! files. Content that several layers have is listed with the lowest one that has random access.
//! [`Table::open`] checks everything that the other functions rely on, so none of them can fail on a damaged file.

mod build;
mod check;
mod data;

use std::fs::File;
use std::path::Path;

use towline_sys::mmap::MappedFile;

pub use self::build::{LayerSource, build};
pub use self::data::{CHUNKED_FROM, MAX_CHUNK};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::{Chunk, LayerKind};
use crate::wire::{self, Malformed, Reader};

const MAGIC: [u8; 8] = *b"TLTABLE\n";
const HEADER_EXTRA: usize = 16;
const VERSION: u32 = 3;
const LAYER: usize = 104;
const FILE: usize = 64;
const CHUNK: usize = 72;
const ORDER: usize = 4;
const FLAG_ZEROS: u32 = 1;
const KIND_ZSTD_CHUNKED: u32 = 1;
const KIND_STREAM: u32 = 2;
const KIND_ESTARGZ: u32 = 3;
const KIND_GZIP_SEEK: u32 = 4;
const NO_PLACE: u64 = u64::MAX;

/// An open mapping table. Cheap to share; all functions are look-ups without I/O but for page faults.
#[derive(Debug)]
pub struct Table {
    bytes: Bytes,
    layers: u32,
    files: u32,
    chunks: u32,
    large: u32,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

/// A layer of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the blob, bytes.
    pub size: u64,
    /// How its bytes can be reached.
    pub kind: LayerKind,
    /// Length of the file that keeps its large files ([`crate::store::big`]), bytes; 0 where it has none.
    pub data_len: u64,
    first: u32,
    count: u32,
    first_large: u32,
    count_large: u32,
}

/// A file of the image: a content, not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// Digest of the whole content.
    pub digest: Digest,
    /// Length, bytes; never 0, since empty files need no content.
    pub size: u64,
    /// Number of the layer to fetch it from.
    pub layer: u32,
    /// Where it begins in the data file of its layer, if it is one of its large files.
    pub data_offset: Option<u64>,
    first: u32,
    count: u32,
}

impl Table {
    /// Maps the table in the file `path`. The store only ever replaces such a file by another, so it does not change while it is mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
        let mapped = MappedFile::map(&file).map_err(|e| Error::io("mapping", path, e))?;
        Self::new(Bytes::Mapped(mapped))
            .map_err(|problem| problem.into_error(format!("reading the mapping table {}", path.display())))
    }

    /// The table in `bytes`, as [`build`] made it.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Bytes::Owned(bytes)).map_err(|problem| problem.into_error("reading a mapping table".into()))
    }

    /// Lets go of what was read of it, which comes back when it is looked up again.
    pub fn forget(&self) -> Result<()> {
        match &self.bytes {
            Bytes::Mapped(mapped) => mapped.forget().map_err(|e| Error::io("letting go of", "the pages of a mapping table", e)),
            Bytes::Owned(_) => Ok(()),
        }
    }

    /// The file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn new(bytes: Bytes) -> Result<Self, Malformed> {
        let (mut header, content) = wire::open(&bytes, MAGIC, VERSION, "mapping table", HEADER_EXTRA)?;
        let mut count = || header.u32().expect("wire::open has checked the header's length");
        let (layers, files, chunks, large) = (count(), count(), count(), count());
        let expected = layers as u64 * LAYER as u64
            + files as u64 * (FILE + ORDER) as u64
            + chunks as u64 * CHUNK as u64
            + large as u64 * ORDER as u64
            + (wire::HEADER + HEADER_EXTRA) as u64;
        if expected != bytes.len() as u64 || content.remaining() != bytes.len() - wire::HEADER - HEADER_EXTRA {
            let text =
                format!("{layers} layers, {files} files ({large} large) and {chunks} chunks do not have {} bytes", bytes.len());
            return Err(Malformed::Bad(text));
        }
        let table = Self { bytes, layers, files, chunks, large };
        table.check()?;
        Ok(table)
    }

    /// Finds a content.
    pub fn lookup(&self, digest: &Digest) -> Option<FileRecord> {
        let (mut low, mut high) = (0, self.files);
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.file(middle);
            match record.digest.cmp(digest) {
                std::cmp::Ordering::Equal => return Some(record),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerRecord> + '_ {
        range(0, self.layers).map(|number| self.layer(number))
    }

    /// All files, sorted by digest.
    pub fn files(&self) -> impl ExactSizeIterator<Item = FileRecord> + '_ {
        range(0, self.files).map(|number| self.file(number))
    }

    /// The files to fetch from a layer, in the order in which its blob has them. Nothing for a layer that does not exist.
    pub fn files_by_offset(&self, layer: u32) -> impl ExactSizeIterator<Item = FileRecord> + '_ {
        let (first, count) = match layer < self.layers {
            true => (self.layer(layer).first, self.layer(layer).count),
            false => (0, 0),
        };
        range(first, count).map(|position| self.file(self.order(position)))
    }

    /// The large files of a layer, in the order in which its data file has them. Nothing for a layer that does not exist.
    pub fn large_files(&self, layer: u32) -> impl ExactSizeIterator<Item = FileRecord> + '_ {
        let (first, count) = match layer < self.layers {
            true => (self.layer(layer).first_large, self.layer(layer).count_large),
            false => (0, 0),
        };
        range(first, count).map(|position| self.file(self.large(position)))
    }

    /// The large file that has this byte of a layer's data file.
    pub fn large_file_at(&self, layer: u32, offset: u64) -> Option<FileRecord> {
        let record = (layer < self.layers).then(|| self.layer(layer))?;
        let (mut low, mut high) = (record.first_large, record.first_large + record.count_large);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.file(self.large(middle)).data_offset.is_some_and(|start| start <= offset) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let file = self.file(self.large((low > record.first_large).then(|| low - 1)?));
        file.data_range().filter(|range| range.contains(&offset)).map(|_| file)
    }

    /// The pieces of a file in ascending order. None where its layer has no random access.
    pub fn chunks(&self, file: &FileRecord) -> impl ExactSizeIterator<Item = Chunk> + '_ {
        range(file.first, file.count).map(|number| self.chunk(number))
    }

    /// Bytes of all files together, each content once.
    pub fn content_bytes(&self) -> u64 {
        self.files().map(|file| file.size).sum()
    }

    /// Bytes of all blobs together.
    pub fn blob_bytes(&self) -> u64 {
        self.layers().map(|layer| layer.size).sum()
    }

    fn record(&self, section: usize, width: usize, number: u32) -> Reader<'_> {
        let start = section + number as usize * width;
        Reader::new(&self.bytes[start..start + width])
    }

    fn layers_start(&self) -> usize {
        wire::HEADER + HEADER_EXTRA
    }

    fn files_start(&self) -> usize {
        self.layers_start() + self.layers as usize * LAYER
    }

    fn chunks_start(&self) -> usize {
        self.files_start() + self.files as usize * FILE
    }

    fn order_start(&self) -> usize {
        self.chunks_start() + self.chunks as usize * CHUNK
    }

    fn large_start(&self) -> usize {
        self.order_start() + self.files as usize * ORDER
    }

    fn layer(&self, number: u32) -> LayerRecord {
        self.try_layer(number).expect("checked when the table was opened")
    }

    /// `None` where the kind is unknown.
    fn try_layer(&self, number: u32) -> Option<LayerRecord> {
        let mut fields = self.record(self.layers_start(), LAYER, number);
        let (digest, diff_id) = (Digest::from_bytes(fields.array()?), Digest::from_bytes(fields.array()?));
        let (size, data_len) = (fields.u64()?, fields.u64()?);
        let kind = match fields.u32()? {
            KIND_ZSTD_CHUNKED => LayerKind::ZstdChunked,
            KIND_STREAM => LayerKind::Stream,
            KIND_ESTARGZ => LayerKind::Estargz,
            KIND_GZIP_SEEK => LayerKind::GzipSeek,
            _ => return None,
        };
        let (first, count, first_large, count_large) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        Some(LayerRecord { digest, diff_id, size, kind, data_len, first, count, first_large, count_large })
    }

    fn file(&self, number: u32) -> FileRecord {
        let mut fields = self.record(self.files_start(), FILE, number);
        let mut read = || {
            let (digest, size) = (Digest::from_bytes(fields.array()?), fields.u64()?);
            let data_offset = Some(fields.u64()?).filter(|place| *place != NO_PLACE);
            Some(FileRecord { digest, size, data_offset, layer: fields.u32()?, first: fields.u32()?, count: fields.u32()? })
        };
        read().expect("a record has all fields")
    }

    fn chunk(&self, number: u32) -> Chunk {
        let mut fields = self.record(self.chunks_start(), CHUNK, number);
        let mut read = || {
            let (file_offset, len, blob_offset, blob_len) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
            let (digest, flags) = (Digest::from_bytes(fields.array()?), fields.u32()?);
            Some(Chunk { file_offset, len, blob_offset, blob_len, digest, zeros: flags & FLAG_ZEROS != 0 })
        };
        read().expect("a record has all fields")
    }

    fn order(&self, position: u32) -> u32 {
        self.record(self.order_start(), ORDER, position).u32().expect("a record has all fields")
    }

    fn large(&self, position: u32) -> u32 {
        self.record(self.large_start(), ORDER, position).u32().expect("a record has all fields")
    }
}

impl FileRecord {
    /// Its bytes in the data file of its layer, if it is one of its large files.
    pub fn data_range(&self) -> Option<std::ops::Range<u64>> {
        self.data_offset.map(|start| start..start + self.size)
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Owned(bytes) => bytes,
        }
    }
}

fn range(first: u32, count: u32) -> std::ops::Range<u32> {
    first..first + count
}

#[cfg(test)]
mod tests;
