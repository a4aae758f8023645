//! Writing layers: an uncompressed tar becomes a blob in one of the formats that this crate reads.
//!
//! ```text
//! tar -> Split (or Reordered) -> head, payload, head, payload, … tail -> Encoder -> blob, diffID, annotations, index
//! ```
//!
//! The encoders of all formats are here together because they share the tar taken apart, the table of contents, and one check of
//! what was written ([`check`]); what a format is made of stands at the head of its reader. Output depends on nothing but input and options.

pub mod check;
mod cuts;
mod estargz;
pub mod order;
mod output;
mod plain;
mod stored;
mod tar_split;
mod toc;
mod zstd_chunked;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::str::FromStr;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::tar::split::{Head, Split};
use crate::layer::{Chunk, EntryKind, FileContent, LayerIndex};
use crate::manifest::Compression;
use crate::table::CHUNKED_FROM;

use self::order::HotFile;

/// Files below this many bytes are one chunk in a zstd:chunked layer: nobody reads a part of them.
const CHUNKS_FROM: u64 = CHUNKED_FROM;
/// Bytes of a payload that are read at a time where a format has no chunks.
const PIECE: usize = 128 << 10;

/// How a layer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Format {
    /// tar, gzip.
    #[serde(rename = "gzip")]
    Gzip,
    /// tar, zstd.
    #[serde(rename = "zstd")]
    Zstd,
    /// eStargz: tar as many gzip members, with a table of contents that is part of the tar.
    #[serde(rename = "estargz")]
    Estargz,
    /// zstd:chunked: tar as many zstd frames, with a table of contents behind it.
    #[serde(rename = "zstd:chunked")]
    ZstdChunked,
}

impl Format {
    /// All of them, by name.
    pub const ALL: [(&'static str, Format); 4] =
        [("gzip", Format::Gzip), ("zstd", Format::Zstd), ("estargz", Format::Estargz), ("zstd:chunked", Format::ZstdChunked)];

    /// How the tar stream is compressed.
    pub fn compression(self) -> Compression {
        match self {
            Format::Gzip | Format::Estargz => Compression::Gzip,
            Format::Zstd | Format::ZstdChunked => Compression::Zstd,
        }
    }

    /// The levels that the format knows, and the one that is taken where none is asked for.
    pub fn levels(self) -> (std::ops::RangeInclusive<i32>, i32) {
        match self.compression() {
            Compression::Zstd => (1..=22, 9),
            Compression::Gzip | Compression::None => (1..=9, 9),
        }
    }

    /// Whether the tar stays what it is, and with it the diffID.
    pub fn keeps_diff_id(self) -> bool {
        self != Format::Estargz
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, format)| format == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, format)| *format);
        known.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            Error::new(Outcome::BadInput, format!("reading the layer format `{text}`"))
                .because("there is no such format")
                .advise(format!("write one of {}", names.join(", ")))
        })
    }
}

/// How a layer is to be written.
#[derive(Clone, Debug)]
pub struct Options {
    format: Format,
    level: i32,
    chunk: u64,
}

impl Options {
    /// `level` is that of the compressor, the format's own choice where it is `None`.
    pub fn new(format: Format, level: Option<i32>) -> Result<Self> {
        let (levels, usual) = format.levels();
        let level = level.unwrap_or(usual);
        if !levels.contains(&level) {
            return Err(Error::new(Outcome::BadInput, format!("choosing level {level} of {format}")).because(format!(
                "its levels are {} to {}",
                levels.start(),
                levels.end()
            )));
        }
        let chunk = match format {
            Format::Estargz => estargz::CHUNK,
            _ => zstd_chunked::CHUNK,
        };
        Ok(Self { format, level, chunk })
    }

    /// With another length of the chunks of large files, in bytes.
    pub fn with_chunk(mut self, chunk: u64) -> Self {
        self.chunk = chunk.max(1);
        self
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// A layer that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What it was written as: what was asked for, or plain zstd where its entries do not fit into a table of contents.
    pub format: Format,
    /// Why it is not what was asked for, or why other tools will not use all of it.
    pub note: Option<String>,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob, bytes.
    pub size: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the uncompressed tar, bytes.
    pub tar_size: u64,
    /// For the layer's descriptor.
    pub annotations: BTreeMap<String, String>,
    /// What is in it; with chunks where it has a table of contents.
    pub index: LayerIndex,
    /// Bytes of the blob that hold what is needed first, in front or in a pack; 0 where none was asked for.
    pub hot_bytes: u64,
}

/// Writes the layer whose uncompressed tar is `tar` into `blob`, in the tar's own order.
///
/// A malformed tar is [`Outcome::BadInput`]; one that the format cannot express is [`Outcome::Unsupported`].
pub fn write(tar: impl Read, options: &Options, blob: &File) -> Result<Written> {
    let mut encoder = encoder(options, blob, false)?;
    let mut split = Split::new(tar);
    while let Some(head) = split.next_head()? {
        encoder.add(&head.bytes, &head, &[], &mut |buffer| split.payload(buffer))?;
    }
    encoder.finish(&mut |buffer| split.tail(buffer))
}

/// Writes a layer so that the files of `hot` can be had first, in that order: zstd:chunked with a pack of them, which leaves the tar what
/// it was; other formats with the files in front, where the order of all else stays, as far as what is moved needs it.
///
/// `scratch` is an empty file that takes the uncompressed tar.
pub fn write_ordered(tar: impl Read, options: &Options, hot: &[HotFile], scratch: &File, blob: &File) -> Result<Written> {
    let mut stored = stored::store(tar, scratch)?;
    if options.format == Format::ZstdChunked {
        return write_packed(stored, options, hot, blob);
    }
    let order = order::order(stored.entries(), hot);
    let mut encoder = encoder(options, blob, order.hot > 0)?;
    for (position, &number) in order.entries.iter().enumerate() {
        if position == order.hot && order.hot > 0 {
            encoder.hot_ends()?;
        }
        let parts = order.parts.get(&number).map_or(&[][..], Vec::as_slice);
        stored.with(number, order.moves, |bytes, head, payload| encoder.add(bytes, head, parts, payload))?;
    }
    if order.hot == order.entries.len() && order.hot > 0 {
        encoder.hot_ends()?;
    }
    stored.with_tail(order.moves, |tail| encoder.finish(tail))
}

fn write_packed(mut stored: stored::Stored<'_>, options: &Options, hot: &[HotFile], blob: &File) -> Result<Written> {
    let chosen = order::chosen(stored.entries(), hot);
    let mut encoder = zstd_chunked::ZstdChunked::new(options, blob)?;
    if !chosen.is_empty() {
        encoder.pack(stored.pack(&chosen)?);
    }
    // What has the same content is read alike, whichever of them the pack is of; a file that is read as a whole is cut as ever.
    let read_of = |(number, parts): &'_ (usize, Vec<Range<u64>>)| {
        let content = stored.content(*number)?;
        let is_whole = matches!(&parts[..], [all] if *all == (0..content.size));
        (!is_whole).then(|| (content.digest, parts.clone()))
    };
    let contents: HashMap<Digest, Vec<Range<u64>>> = chosen.iter().filter_map(read_of).collect();
    let mut encoder: Box<dyn Encoder> = Box::new(encoder);
    for number in 0..stored.entries().len() {
        let parts = stored.content(number).and_then(|content| contents.get(&content.digest)).map_or(&[][..], Vec::as_slice);
        stored.with(number, false, |bytes, head, payload| encoder.add(bytes, head, parts, payload))?;
    }
    stored.with_tail(false, |tail| encoder.finish(tail))
}

/// Yields the next bytes, 0 at the end; fills the buffer where there are enough.
type Bytes<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<usize>;

/// Hands all of `bytes` to `take`, as much at a time as the buffer holds.
fn each(bytes: Bytes<'_>, buffer: &mut [u8], take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    loop {
        match bytes(buffer)? {
            0 => return Ok(()),
            n => take(&buffer[..n])?,
        }
    }
}

/// Takes a tar piece by piece and writes a blob. The same calls for each format.
trait Encoder {
    /// The next entry: the bytes of the tar before its payload, and the payload. `hot` is what is read of it where that is not all or nothing.
    fn add(&mut self, bytes: &[u8], head: &Head, hot: &[Range<u64>], payload: Bytes<'_>) -> Result<()>;

    /// The last of the hot files has been added.
    fn hot_ends(&mut self) -> Result<()>;

    /// The bytes of the tar behind the last payload; then the blob is complete.
    fn finish(self: Box<Self>, tail: Bytes<'_>) -> Result<Written>;
}

fn encoder<'a>(options: &Options, blob: &'a File, has_hot: bool) -> Result<Box<dyn Encoder + 'a>> {
    Ok(match options.format {
        Format::Gzip | Format::Zstd => Box::new(plain::Plain::new(options, blob)?),
        Format::Estargz => Box::new(estargz::Estargz::new(options, blob, has_hot)?),
        Format::ZstdChunked => Box::new(zstd_chunked::ZstdChunked::new(options, blob)?),
    })
}

/// What every encoder collects.
#[derive(Default)]
struct Tally {
    tar: Hasher,
    index: LayerIndex,
}

impl Tally {
    /// The content of the entry that was added last. Only files have one; what whiteouts carry is nobody's.
    fn add(&mut self, head: &Head, digest: Digest, chunks: Vec<Chunk>) {
        let Some(mut entry) = head.entry.clone() else { return };
        if let EntryKind::File(content) = &mut entry.kind {
            *content = FileContent { size: head.payload_len(), digest, chunks };
        }
        self.index.entries.push(entry);
    }
}

#[cfg(test)]
mod tests;
