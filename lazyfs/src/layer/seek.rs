//! The seek index of a plain gzip layer: what makes such a layer, which nobody prepared, one with random access.
//!
//! It is made while the layer streams past ([`record`]), kept, and can be pushed as a referrer of the image ([`SeekIndex::encode`]):
//!
//! ```text
//! header   shared fields (wire.rs), then u64 length of the blob, u32 spans, u32 chunks, u64 length of the index, u64 length of the head
//! head     zstd( index    as saved.rs writes it, files with chunks: what of the file is in one span
//!                spans    u64 blob offset, u8 kind (0: gzip header, 1: between blocks), u8 bits, u8 value, u32 length of the window
//!                chunks   u64 each: where in the output of its span a chunk begins )
//!          (the file length in the header is up to here: the head can be read without what follows)
//! windows  those of the spans one behind the other, each zstd: what the span refers to of the output before it, zeros for the rest
//! ```
//!
//! The blob begins a span about every 192 KiB of the tar; a chunk has bytes of the blob from the beginning of its span to where its own last byte
//! comes out. Version 1 had a span every MiB, whole windows, and no chunk that ended before its span. Whether an index tells the truth about its layer is decided as for any table of contents:
//! files and chunks by their digests, everything by the diffID once the layer is complete.

mod reach;
mod record;

use std::io::Read as _;

pub use self::record::{Seekable, record};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::spans::{self, Entrance, MAX_SPANS, Span};
use crate::layer::{LayerIndex, saved};
use crate::wire::{self, Malformed, Reader};
use towline_sys::inflate::WINDOW;

const MAGIC: [u8; 8] = *b"TLSEEK2\n";
const VERSION: u32 = 2;
const HEADER_EXTRA: usize = 32;
/// What an index of version 1 begins with: it was zstd as a whole.
const BEFORE: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The most that an index may have, its head compressed or not, bytes.
pub const MAX_SEEK_INDEX: u64 = 512 << 20;
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
        let count = |n: usize| u32::try_from(n).map_err(|e| Error::new(Outcome::Unsupported, tried()).because(e));
        let saved = saved::save(&self.index);
        let (saved_len, mut head, mut windows) = (saved.len() as u64, saved, Vec::<u8>::new());
        for span in &self.spans {
            head.extend(span.blob_offset.to_le_bytes());
            let (kind, bits, value, window): (u8, u8, u8, &[u8]) = match &span.entrance {
                Entrance::Header => (0, 0, 0, &[]),
                Entrance::Between { bits, value, window } => (1, *bits, *value, window),
            };
            head.extend([kind, bits, value]);
            head.extend(count(window.len())?.to_le_bytes());
            windows.extend(window);
        }
        self.starts.iter().for_each(|start| head.extend(start.to_le_bytes()));
        let head_len = head.len() as u64;
        let head = zstd::bulk::compress(&head, LEVEL).map_err(|e| Error::new(Outcome::Io, tried()).because(e))?;
        let mut out = wire::begin(MAGIC, VERSION, HEADER_EXTRA);
        out.extend(self.blob_len.to_le_bytes());
        out.extend(count(self.spans.len())?.to_le_bytes());
        out.extend(count(self.starts.len())?.to_le_bytes());
        out.extend(saved_len.to_le_bytes());
        out.extend((head.len() as u64).to_le_bytes());
        out.extend(head);
        let mut out = wire::end(out);
        out.extend(windows);
        let largest = head_len.max(out.len() as u64);
        if largest > MAX_SEEK_INDEX {
            let why = format!("it has {largest} bytes; the limit is {MAX_SEEK_INDEX}");
            return Err(Error::new(Outcome::Unsupported, tried()).because(why));
        }
        Ok(out)
    }

    /// Reads what [`SeekIndex::encode`] made, for the layer `layer` whose blob has `blob_len` bytes. Anything else is
    /// [`Outcome::BadInput`], or [`Outcome::Unsupported`] where it is another version's.
    pub fn decode(layer: &Digest, blob_len: u64, bytes: &[u8]) -> Result<Self> {
        let tried = || format!("reading the seek index of layer {layer}");
        if bytes.starts_with(&BEFORE) {
            let error = Error::new(Outcome::Unsupported, tried()).because("it is of version 1; only version 2 is known");
            return Err(error.advise("push it again: towline images index --push"));
        }
        let (this, saved) = parse(bytes).map_err(|e| e.into_error(tried()))?;
        let this = Self { index: saved::load(&saved).map_err(|e| e.during(tried()))?, ..this };
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

fn parse(bytes: &[u8]) -> Result<(SeekIndex, Vec<u8>), Malformed> {
    // A shorter one is judged by `wire::open`.
    let head_end = bytes.get(wire::HEADER - 8..wire::HEADER).map_or(0, |len| Reader::new(len).u64().unwrap_or(0));
    let (bytes, windows) = bytes.split_at(usize::try_from(head_end).unwrap_or(usize::MAX).min(bytes.len()));
    let mut windows = Reader::new(windows);
    let (mut header, mut content) = wire::open(bytes, MAGIC, VERSION, "seek index", HEADER_EXTRA)?;
    let fields = (|| Some((header.u64()?, header.u32()?, header.u32()?, header.u64()?, header.u64()?)))();
    let (blob_len, spans, chunks, saved, packed) = fields.expect("wire::open has checked the header's length");
    let ends = || Malformed::Bad("it ends early".into());
    if spans as usize > MAX_SPANS {
        return Err(Malformed::Bad(format!("field `spans` is {spans}; the limit is {MAX_SPANS}")));
    }
    let packed = usize::try_from(packed).ok().and_then(|packed| content.take(packed)).ok_or_else(ends)?;
    let head = unpack(packed)?;
    let mut head = Reader::new(&head);
    let saved = usize::try_from(saved).ok().and_then(|saved| head.take(saved)).ok_or_else(ends)?;
    let mut this = SeekIndex { index: LayerIndex::default(), blob_len, spans: Vec::new(), starts: Vec::new() };
    for _ in 0..spans {
        this.spans.push(take_span(&mut head, &mut windows)?);
    }
    let behind = content.remaining() + windows.remaining();
    if behind != 0 {
        return Err(Malformed::Bad(format!("{behind} bytes of it belong to nothing")));
    }
    if head.remaining() != chunks as usize * 8 {
        return Err(Malformed::Bad(format!("field `chunks` is {chunks}, but {} bytes are left", head.remaining())));
    }
    this.starts.extend(std::iter::from_fn(|| head.u64()));
    Ok((this, saved.to_vec()))
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, Malformed> {
    let wrong = |e: std::io::Error| Malformed::Bad(format!("its head cannot be unpacked: {e}"));
    let mut head = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(wrong)?;
    decoder.take(MAX_SEEK_INDEX + 1).read_to_end(&mut head).map_err(wrong)?;
    match head.len() as u64 > MAX_SEEK_INDEX {
        true => Err(Malformed::Bad(format!("its head has more than {MAX_SEEK_INDEX} bytes"))),
        false => Ok(head),
    }
}

fn take_span(head: &mut Reader<'_>, windows: &mut Reader<'_>) -> Result<Span, Malformed> {
    let mut read = || {
        let blob_offset = head.u64()?;
        let [kind, bits, value] = head.array()?;
        let len = head.u32()? as usize;
        Some((blob_offset, kind, bits, value, windows.take(len)?))
    };
    let (blob_offset, kind, bits, value, window) = read().ok_or_else(|| Malformed::Bad("it ends early".into()))?;
    let entrance = match kind {
        0 if window.is_empty() => Entrance::Header,
        1 if window.len() <= 2 * WINDOW => Entrance::Between { bits, value, window: window.to_vec() },
        _ => return Err(Malformed::Bad(format!("span at {blob_offset}: its entrance is not possible"))),
    };
    Ok(Span { blob_offset, entrance })
}

#[cfg(test)]
mod tests;
