//! eStargz as stargz-snapshotter reads it (stargz-snapshotter, `docs/estargz.md`).
//!
//! ```text
//! blob:  gzip members of the tar … | member( tar entry stargz.index.json, end of the tar ) | empty member with an extra field
//!        ^0                          ^ offset of the table                                   51 bytes: "SG", offset in hex, "STARGZ"
//! ```
//!
//! The table is a file of the tar, and so is a landmark: `.no.prefetch.landmark` at the beginning, or `.prefetch.landmark` behind the files
//! that are to be fetched first. So the diffID is another one than that of the tar that came in. Landmarks and table of a layer
//! that was eStargz before are left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use super::cuts::Cuts;
use super::output::{Output, failed};
use super::plain::gzip_level;
use super::toc::{Dialect, Table};
use super::{Bytes, Encoder, Format, Options, PIECE, Tally, Written, each};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::tar::compose::Composed;
use crate::layer::tar::split::{Head, Split};
use crate::layer::{Chunk, EntryKind};

/// Length of the chunks of files, bytes. stargz-snapshotter fetches and verifies whole chunks; its own tool makes them 4 MiB long.
pub(super) const CHUNK: u64 = 256 << 10;
/// The table's file.
const TABLE: &str = "stargz.index.json";
const LANDMARK: &str = ".prefetch.landmark";
const NO_LANDMARK: &str = ".no.prefetch.landmark";
/// What a landmark contains.
const LANDMARK_CONTENT: [u8; 1] = [0xf];
/// Annotations of the layer's descriptor.
const TABLE_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const TAR_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// Headers of a tar are collected up to this many bytes for one member.
const MAX_MEMBER: usize = 1 << 20;
/// Bytes of a tar block.
const BLOCK: usize = 512;

/// Writes the tar as gzip members.
pub(super) struct Estargz<'a> {
    output: Output<'a>,
    members: Members,
    tally: Tally,
    table: Table,
    pending: Vec<u8>,
    buffer: Vec<u8>,
    /// Bytes to the next block, since payloads of what is left out take their padding with them.
    padding: usize,
    hot_end: u64,
}

impl<'a> Estargz<'a> {
    pub(super) fn new(options: &Options, blob: &'a File, has_hot: bool) -> Result<Self> {
        let mut new = Self {
            output: Output::new(blob),
            members: Members::new(gzip_level(options.level)),
            tally: Tally::default(),
            table: Table::new(Dialect::Estargz),
            pending: Vec::new(),
            buffer: vec![0; usize::try_from(options.chunk).expect("chunks fit into memory")],
            padding: 0,
            hot_end: 0,
        };
        if !has_hot {
            new.landmark(NO_LANDMARK)?;
        }
        Ok(new)
    }

    fn landmark(&mut self, name: &str) -> Result<()> {
        let tar = [&own_header(name, LANDMARK_CONTENT.len())[..], &LANDMARK_CONTENT].concat();
        let tar = [&tar[..], &vec![0; tar.len().next_multiple_of(BLOCK) - tar.len()]].concat();
        let mut split = Split::new(&tar[..]);
        let head = split.next_head()?.expect("there is one entry");
        self.append(&head.bytes, &head, &[], &mut |buffer| split.payload(buffer))
    }

    fn between(&mut self, bytes: &[u8]) -> Result<()> {
        self.tally.tar.update(bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= MAX_MEMBER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.output.put(self.members.member(&self.pending)?)?;
        self.pending.clear();
        Ok(())
    }

    /// An entry whose head begins behind the padding.
    fn append(&mut self, bytes: &[u8], head: &Head, hot: &[Range<u64>], payload: Bytes<'_>) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.between(&vec![0; padding])?;
        self.between(bytes)?;
        let (mut chunks, mut whole) = (Vec::new(), Hasher::default());
        if head.payload_len() > 0 {
            self.flush()?;
        }
        let cuts = Cuts { chunk: self.buffer.len() as u64, hot };
        loop {
            let limit = usize::try_from(cuts.len_at(whole.length())).expect("chunks fit into memory");
            let n = payload(&mut self.buffer[..limit])?;
            if n == 0 {
                break;
            }
            let piece = &self.buffer[..n];
            self.tally.tar.update(piece);
            let file_offset = whole.length();
            whole.update(piece);
            let member = self.members.member(piece)?;
            let blob_offset = self.output.len();
            self.output.put(member)?;
            let digest = Digest::of(piece);
            chunks.push(Chunk { file_offset, len: n as u64, blob_offset, blob_len: member.len() as u64, digest, zeros: false });
        }
        let digest = whole.finish();
        self.padding = whole.length().next_multiple_of(BLOCK as u64).abs_diff(whole.length()) as usize;
        self.table.add(head, digest, &chunks, self.output.len());
        self.tally.add(head, digest, chunks);
        Ok(())
    }
}

impl Encoder for Estargz<'_> {
    fn add(&mut self, bytes: &[u8], head: &Head, hot: &[Range<u64>], payload: Bytes<'_>) -> Result<()> {
        let is_own = matches!(&head.entry, Some(entry) if matches!(entry.kind, EntryKind::File(_))
            && [TABLE, LANDMARK, NO_LANDMARK].iter().any(|own| entry.path == own.as_bytes()));
        if is_own {
            return each(payload, &mut self.buffer, &mut |_| Ok(()));
        }
        // The padding of the payload before comes from here, since that payload may have been left out.
        self.append(&bytes[head.padding.min(bytes.len())..], head, hot, payload)
    }

    fn hot_ends(&mut self) -> Result<()> {
        self.landmark(LANDMARK)?;
        self.hot_end = self.output.len();
        Ok(())
    }

    fn finish(mut self: Box<Self>, tail: Bytes<'_>) -> Result<Written> {
        // The end of the tar is written anew behind the table; something else than zeros would be lost there.
        each(tail, &mut [0; PIECE], &mut |piece| match piece.iter().all(|&byte| byte == 0) {
            true => Ok(()),
            false => Err(unfit("the tar goes on behind its end")),
        })?;
        let padding = std::mem::take(&mut self.padding);
        self.between(&vec![0; padding])?;
        self.flush()?;
        let table = std::mem::replace(&mut self.table, Table::new(Dialect::Estargz)).finish(None).map_err(|why| unfit(&why))?;
        let offset = self.output.len();
        let mut end = [&own_header(TABLE, table.len())[..], &table].concat();
        end.resize(end.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
        self.tally.tar.update(&end);
        self.output.put(self.members.member(&end)?)?;
        self.output.put(&footer(offset))?;
        // The table is an entry of the tar, too.
        let mut split = Split::new(&end[..]);
        let head = split.next_head()?.expect("the table is an entry");
        self.tally.add(&head, Digest::of(&table), Vec::new());

        let annotations = BTreeMap::from([
            (TABLE_DIGEST.to_owned(), Digest::of(&table).to_string()),
            (TAR_SIZE.to_owned(), self.tally.tar.length().to_string()),
        ]);
        let (digest, size) = self.output.finish()?;
        Ok(Written {
            format: Format::Estargz,
            note: None,
            digest,
            size,
            diff_id: self.tally.tar.finish(),
            tar_size: self.tally.tar.length(),
            annotations,
            index: self.tally.index,
            hot_bytes: self.hot_end,
        })
    }
}

fn unfit(why: &str) -> Error {
    Error::new(Outcome::Unsupported, "writing a layer as eStargz").because(why.to_owned()).advise("zstd:chunked can take it")
}

/// Makes gzip members with one compressor and one buffer: there are as many as a layer has files.
struct Members {
    compressor: flate2::Compress,
    /// In the header: how hard it was tried.
    effort: u8,
    member: Vec<u8>,
}

impl Members {
    fn new(level: flate2::Compression) -> Self {
        let effort = match level.level() {
            9.. => 2,
            0..=1 => 4,
            _ => 0,
        };
        Self { compressor: flate2::Compress::new(level, false), effort, member: Vec::new() }
    }

    /// One member. No name and no time: the same bytes each time.
    fn member(&mut self, bytes: &[u8]) -> Result<&[u8]> {
        self.compressor.reset();
        self.member.clear();
        self.member.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, self.effort, 0xff]);
        loop {
            self.member.reserve(bytes.len() / 2 + 64);
            let taken = usize::try_from(self.compressor.total_in()).expect("no more than there is");
            let status = self.compressor.compress_vec(&bytes[taken..], &mut self.member, flate2::FlushCompress::Finish);
            if status.map_err(|e| failed(e.into()))? == flate2::Status::StreamEnd {
                break;
            }
        }
        let mut check = flate2::Crc::new();
        check.update(bytes);
        self.member.extend(check.sum().to_le_bytes());
        self.member.extend(check.amount().to_le_bytes());
        Ok(&self.member)
    }
}

/// An empty member whose extra field says where the table is: header, field, one stored block, and the check of nothing.
fn footer(offset: u64) -> Vec<u8> {
    let field = format!("{offset:016x}STARGZ");
    let len = u16::try_from(field.len()).expect("22 bytes");
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    footer.extend((len + 4).to_le_bytes());
    footer.extend(b"SG");
    footer.extend(len.to_le_bytes());
    footer.extend(field.as_bytes());
    footer.extend([1, 0, 0, 0xff, 0xff]);
    footer.extend([0; 8]);
    footer
}

/// Of a file that the format puts into the tar.
fn own_header(name: &str, len: usize) -> [u8; BLOCK] {
    Composed::file(name, 0, len as u64).header()
}
