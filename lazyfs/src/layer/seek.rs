//! The seek index of a plain gzip layer: what makes such a layer, which nobody prepared, one with random access.
//!
//! It is made while the layer streams past ([`record`]), kept, and can be pushed as a referrer of the image ([`SeekIndex::encode`]):
//!
//! ```text
//! zstd( header   shared fields (wire.rs), then u64 length of the blob, u32 spans, u32 chunks, u64 length of the index
//!       index    as saved.rs writes it, files with chunks: what of the file is in one span
//!       spans    u64 blob offset, u8 kind (0: gzip header, 1: between blocks), u8 bits, u8 value, u32 length of the window, the window
//!       chunks   u64 each: where in the output of its span a chunk begins )
//! ```
//!
//! The blob begins a span about every MiB of the tar. Whether an index tells the truth about its layer is decided as for any table of contents:
//! files and chunks by their digests, everything by the diffID once the layer is complete.

mod record;

use std::io::Read as _;

pub use self::record::{Seekable, record};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::spans::{self, Entrance, MAX_SPANS, Span};
use crate::layer::{LayerIndex, saved};
use crate::wire::{self, Malformed, Reader};
use towline_sys::inflate::WINDOW;

const MAGIC: [u8; 8] = *b"TLSEEK1\n";
const VERSION: u32 = 1;
const HEADER_EXTRA: usize = 24;
/// The most that an index may have, compressed or not, bytes.
pub const MAX_SEEK_INDEX: u64 = 512 << 20;
/// How much of an expansion is believed: windows of zeros compress well.
const LEVEL: i32 = 12;

/// The index of a layer without a table of contents, with where its decompression can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekIndex {
    /// What is in the layer; files have chunks.
    pub index: LayerIndex,
    /// Length of the blob, bytes.
    pub blob_len: u64,
    /// Where decompression can begin.
    pub spans: Vec<Span>,
    /// Where each chunk of `index` begins in the output of its span.
    pub starts: Vec<u64>,
}

impl SeekIndex {
    /// The file of spans that is kept of it.
    pub fn spans_file(&self, verified: bool) -> Result<Vec<u8>> {
        spans::build(&self.index, self.blob_len, &self.spans, &self.starts, verified)
    }

    /// What is pushed.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let tried = || "writing a seek index";
        let saved = saved::save(&self.index);
        let mut out = wire::begin(MAGIC, VERSION, HEADER_EXTRA);
        let count = |n: usize| u32::try_from(n).map_err(|e| Error::new(Outcome::Unsupported, tried()).because(e));
        out.extend(self.blob_len.to_le_bytes());
        out.extend(count(self.spans.len())?.to_le_bytes());
        out.extend(count(self.starts.len())?.to_le_bytes());
        out.extend((saved.len() as u64).to_le_bytes());
        out.extend(saved);
        for span in &self.spans {
            out.extend(span.blob_offset.to_le_bytes());
            let (kind, bits, value, window): (u8, u8, u8, &[u8]) = match &span.entrance {
                Entrance::Header => (0, 0, 0, &[]),
                Entrance::Between { bits, value, window } => (1, *bits, *value, window),
            };
            out.extend([kind, bits, value]);
            out.extend(count(window.len())?.to_le_bytes());
            out.extend(window);
        }
        self.starts.iter().for_each(|start| out.extend(start.to_le_bytes()));
        let out = wire::end(out);
        if out.len() as u64 > MAX_SEEK_INDEX {
            let why = format!("it has {} bytes; the limit is {MAX_SEEK_INDEX}", out.len());
            return Err(Error::new(Outcome::Unsupported, tried()).because(why));
        }
        zstd::bulk::compress(&out, LEVEL).map_err(|e| Error::new(Outcome::Io, tried()).because(e))
    }

    /// Reads what [`SeekIndex::encode`] made, for the layer `layer` whose blob has `blob_len` bytes. Anything else is
    /// [`Outcome::BadInput`] or a newer version's.
    pub fn decode(layer: &Digest, blob_len: u64, packed: &[u8]) -> Result<Self> {
        let tried = || format!("reading the seek index of layer {layer}");
        let wrong = |e: std::io::Error| Error::new(Outcome::BadInput, tried()).because(e);
        let mut bytes = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(wrong)?;
        decoder.take(MAX_SEEK_INDEX + 1).read_to_end(&mut bytes).map_err(wrong)?;
        if bytes.len() as u64 > MAX_SEEK_INDEX {
            let why = format!("it has more than {MAX_SEEK_INDEX} bytes");
            return Err(Error::new(Outcome::BadInput, tried()).because(why));
        }
        let (this, saved) = parse(&bytes).map_err(|e| e.into_error(tried()))?;
        let this = Self { index: saved::load(saved).map_err(|e| e.during(tried()))?, ..this };
        if this.blob_len != blob_len {
            let why = format!("it is of a layer of {} bytes, this one has {blob_len}", this.blob_len);
            return Err(Error::new(Outcome::BadInput, tried()).because(why));
        }
        if this.index.files().any(|file| file.size > 0 && file.chunks.is_empty()) {
            return Err(Error::new(Outcome::BadInput, tried()).because("it has a file without chunks"));
        }
        // Says whether spans, chunks and places fit together.
        this.spans_file(false).map_err(|e| e.during(tried()))?;
        Ok(this)
    }
}

fn parse(bytes: &[u8]) -> Result<(SeekIndex, &[u8]), Malformed> {
    let (mut header, mut content) = wire::open(bytes, MAGIC, VERSION, "seek index", HEADER_EXTRA)?;
    let fields = (|| Some((header.u64()?, header.u32()?, header.u32()?, header.u64()?)))();
    let (blob_len, spans, chunks, saved) = fields.expect("wire::open has checked the header's length");
    let ends = || Malformed::Bad("it ends early".into());
    let saved = content.take(usize::try_from(saved).map_err(|_| ends())?).ok_or_else(ends)?;
    if spans as usize > MAX_SPANS {
        return Err(Malformed::Bad(format!("field `spans` is {spans}; the limit is {MAX_SPANS}")));
    }
    let mut this = SeekIndex { index: LayerIndex::default(), blob_len, spans: Vec::new(), starts: Vec::new() };
    for _ in 0..spans {
        this.spans.push(take_span(&mut content)?);
    }
    if content.remaining() != chunks as usize * 8 {
        return Err(Malformed::Bad(format!("field `chunks` is {chunks}, but {} bytes are left", content.remaining())));
    }
    this.starts.extend(std::iter::from_fn(|| content.u64()));
    Ok((this, saved))
}

fn take_span(content: &mut Reader<'_>) -> Result<Span, Malformed> {
    let mut read = || {
        let blob_offset = content.u64()?;
        let [kind, bits, value] = content.array()?;
        let len = content.u32()? as usize;
        Some((blob_offset, kind, bits, value, content.take(len)?))
    };
    let (blob_offset, kind, bits, value, window) = read().ok_or_else(|| Malformed::Bad("it ends early".into()))?;
    let entrance = match kind {
        0 if window.is_empty() => Entrance::Header,
        1 if window.len() <= WINDOW => Entrance::Between { bits, value, window: window.to_vec() },
        _ => return Err(Malformed::Bad(format!("span at {blob_offset}: its entrance is not possible"))),
    };
    Ok(Span { blob_offset, entrance })
}

#[cfg(test)]
mod tests;
