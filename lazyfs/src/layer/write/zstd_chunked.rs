//! zstd:chunked as containers/storage reads it; the layout is at the head of [`crate::layer::zstd_chunked`].
//!
//! - The tar between two payloads is one frame (more where it is long), each chunk of a payload is one frame. So the bytes of a
//!   chunk cost exactly themselves, and every piece of the tar decompresses alone.
//! - Large files have chunks of equal length (but see [`Cuts`]), so that a page of a file is in one chunk that starts at a multiple of that length. Chunks with
//!   borders by content would be shared between versions of a file more often, but a page would be in two of them.
//! - A blob without its table is a plain zstd layer. It stays one where entries do not fit into the table (names that are not UTF-8).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;

use super::cuts::Cuts;
use super::output::{Output, failed};
use super::tar_split::{Crc64, Packed, TarSplit};
use super::toc::{Dialect, Table};
use super::{Bytes, CHUNKS_FROM, Encoder, Format, Options, PIECE, Tally, Written, each};
use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::layer::pack;
use crate::layer::tar::split::Head;
use crate::layer::zstd_chunked::{FOOTER_MAGIC, PREFIXES, SKIPPABLE_MAGIC};
use crate::layer::{Chunk, EntryKind};

/// Length of the chunks of large files, bytes. Measured in docs/measurements.md, "Layers that towline writes".
pub(super) const CHUNK: u64 = 64 << 10;
/// Headers of a tar are collected up to this many bytes for one frame.
const MAX_FRAME: usize = 1 << 20;
/// Type of the table's format.
const JSON_TABLE: u64 = 1;
/// The table and the tar-split data are small, and read whenever the layer is.
const TABLE_LEVEL: i32 = 19;

/// Writes the tar as frames.
pub(super) struct ZstdChunked<'a> {
    output: Output<'a>,
    compressor: zstd::bulk::Compressor<'static>,
    chunk: u64,
    tally: Tally,
    table: Table,
    tar_split: TarSplit,
    /// Bytes of the tar between payloads that have not been written yet.
    pending: Vec<u8>,
    buffer: Vec<u8>,
    pack: Option<Vec<u8>>,
    /// Bytes of the pack, once it is written.
    packed: u64,
}

impl<'a> ZstdChunked<'a> {
    pub(super) fn new(options: &Options, blob: &'a File) -> Result<Self> {
        let largest = usize::try_from(CHUNKS_FROM.max(options.chunk)).expect("chunks fit into memory");
        Ok(Self {
            output: Output::new(blob),
            compressor: zstd::bulk::Compressor::new(options.level).map_err(failed)?,
            chunk: options.chunk,
            tally: Tally::default(),
            table: Table::new(Dialect::ZstdChunked),
            tar_split: TarSplit::new(TABLE_LEVEL.min(options.level.max(3)))?,
            pending: Vec::new(),
            buffer: vec![0; largest],
            pack: None,
            packed: 0,
        })
    }

    /// Puts a pack ([`crate::layer::pack`]) behind the tables.
    pub(super) fn pack(&mut self, pack: Vec<u8>) {
        self.pack = Some(pack);
    }

    fn between(&mut self, bytes: &[u8]) -> Result<()> {
        self.tally.tar.update(bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= MAX_FRAME { self.flush() } else { Ok(()) }
    }

    /// Writes the frame of what is between two payloads.
    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let frame = self.compressor.compress(&self.pending).map_err(failed)?;
        self.pending.clear();
        self.output.put(&frame)
    }

    /// Writes a payload; yields its chunks, digest and checksum.
    fn payload(&mut self, cuts: Cuts<'_>, payload: Bytes<'_>) -> Result<(Vec<Chunk>, Digest, Crc64)> {
        let (mut chunks, mut whole, mut crc) = (Vec::new(), Hasher::default(), Crc64::new());
        loop {
            let limit = usize::try_from(cuts.len_at(whole.length())).expect("chunks fit into memory");
            let n = payload(&mut self.buffer[..limit])?;
            if n == 0 {
                return Ok((chunks, whole.finish(), crc));
            }
            let piece = &self.buffer[..n];
            self.tally.tar.update(piece);
            crc.update(piece);
            let file_offset = whole.length();
            whole.update(piece);
            let frame = self.compressor.compress(piece).map_err(failed)?;
            let blob_offset = self.output.len();
            self.output.put(&frame)?;
            let digest = Digest::of(piece);
            let zeros = piece.iter().all(|&byte| byte == 0);
            chunks.push(Chunk { file_offset, len: n as u64, blob_offset, blob_len: frame.len() as u64, digest, zeros });
        }
    }

    fn skippable(&mut self, content: &[u8]) -> Result<u64> {
        self.output.put(&SKIPPABLE_MAGIC)?;
        self.output.put(&u32::try_from(content.len()).expect("tables are below 4 GiB").to_le_bytes())?;
        let position = self.output.len();
        self.output.put(content)?;
        Ok(position)
    }

    /// Writes what stands behind the frames, and says where it is.
    fn tables(&mut self, table: &[u8], tar_split: Option<&Packed>) -> Result<BTreeMap<String, String>> {
        let mut compressor = zstd::bulk::Compressor::new(TABLE_LEVEL).map_err(failed)?;
        let compressed = compressor.compress(table).map_err(failed)?;
        let position = self.skippable(&compressed)?;
        let annotation = |name: &str, value: String| (format!("{}{name}", PREFIXES[0]), value);
        let mut annotations = BTreeMap::from([
            annotation("manifest-checksum", Digest::of(&compressed).to_string()),
            annotation("manifest-position", format!("{position}:{}:{}:{JSON_TABLE}", compressed.len(), table.len())),
        ]);
        let mut footer = [position, compressed.len() as u64, table.len() as u64, JSON_TABLE, 0, 0, 0];
        if let Some(packed) = tar_split {
            let (position, len) = (self.skippable(&packed.compressed)?, packed.compressed.len() as u64);
            annotations.extend([
                annotation("tarsplit-checksum", Digest::of(&packed.compressed).to_string()),
                annotation("tarsplit-position", format!("{position}:{len}:{}", packed.len)),
            ]);
            footer[4..].copy_from_slice(&[position, len, packed.len]);
        }
        if let Some(pack) = self.pack.take() {
            let position = self.skippable(&pack)?;
            self.packed = pack.len() as u64;
            annotations.extend([pack::annotation(&(position..position + self.packed))]);
        }
        let footer: Vec<u8> = footer.iter().flat_map(|number| number.to_le_bytes()).chain(FOOTER_MAGIC).collect();
        self.skippable(&footer)?;
        Ok(annotations)
    }
}

impl Encoder for ZstdChunked<'_> {
    fn add(&mut self, bytes: &[u8], head: &Head, hot: &[Range<u64>], payload: Bytes<'_>) -> Result<()> {
        self.between(bytes)?;
        let len = head.payload_len();
        let is_file = matches!(&head.entry, Some(entry) if matches!(entry.kind, EntryKind::File(_)));
        let (mut chunks, mut digest, mut crc) = (Vec::new(), Digest::of(b""), Crc64::new());
        if len > 0 {
            self.flush()?;
            let chunk = match () {
                () if is_file && (len >= CHUNKS_FROM || !hot.is_empty()) => self.chunk,
                // Nobody reads what markers carry; in frames of a length that fits into memory it is only part of the tar.
                () => CHUNKS_FROM,
            };
            (chunks, digest, crc) = self.payload(Cuts { chunk, hot }, payload)?;
        }
        // What only one piece is may be anything; several pieces of what is no file would not be understood.
        let told = if is_file || chunks.len() < 2 { &chunks[..] } else { &[] };
        self.table.add(head, digest, told, self.output.len());
        self.tar_split.add(bytes, head, crc)?;
        self.tally.add(head, digest, chunks);
        Ok(())
    }

    fn hot_ends(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>, tail: Bytes<'_>) -> Result<Written> {
        each(tail, &mut [0; PIECE], &mut |piece| {
            self.between(piece)?;
            self.tar_split.segment(piece)
        })?;
        self.flush()?;
        let empty = TarSplit::new(1)?;
        let packed = std::mem::replace(&mut self.tar_split, empty).finish()?;
        let digest = packed.as_ref().ok().map(|packed| Digest::of(&packed.compressed));
        let table = std::mem::replace(&mut self.table, Table::new(Dialect::ZstdChunked)).finish(digest);
        let (format, annotations, note) = match &table {
            Ok(table) => (Format::ZstdChunked, self.tables(table, packed.as_ref().ok())?, packed.err()),
            Err(problem) => {
                for entry in &mut self.tally.index.entries {
                    if let EntryKind::File(content) = &mut entry.kind {
                        content.chunks.clear();
                    }
                }
                (Format::Zstd, BTreeMap::new(), Some(problem.clone()))
            }
        };
        self.output.flush().map_err(failed)?;
        let (digest, size) = self.output.finish()?;
        Ok(Written {
            format,
            note,
            digest,
            size,
            diff_id: self.tally.tar.finish(),
            tar_size: self.tally.tar.length(),
            annotations,
            index: self.tally.index,
            hot_bytes: self.packed,
        })
    }
}
