//! Where decompression of a layer can begin, and which payloads each such *span* of the blob holds: what a gzip layer is fetched by.
//!
//! Spans lie one behind the other and make up the whole blob. A span is entered at a gzip header (eStargz, and any layer of several members),
//! or in the middle of a member between two blocks, with the 32 KiB of output that came before (a *checkpoint*). Several small files may
//! be in one span, and a file in several.
//!
//! Kept in `STORE/spans/<layer digest>`, mapped into memory, little-endian:
//!
//! ```text
//! header   shared fields (wire.rs), then u32 spans, u32 payloads, u64 length of the blob, u32 flags (1: verified), u32 0
//! spans    32 bytes each, ascending: blob offset u64, place of the window u64 (from the beginning of the windows), its length u32
//!          (compressed; 0: none), first payload u32, bits u8, value u8, kind u8 (0: gzip header, 1: between blocks), 0 u8, u32 0
//! payloads 48 bytes each, those of a span together and ascending: offset in the output of the span u64, length u64, digest 32
//! windows  zstd
//! then     sha256 of all of the above
//! ```
//!
//! Nothing in it is believed: a file is verified by its digest, a chunk of a large file by its own, and all together by the diffID.

use std::ops::Range;
use std::path::Path;

use towline_sys::inflate::{Inflate, Place, WINDOW};
use towline_sys::mmap::MappedFile;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::{Chunk, LayerIndex};
use crate::wire::{self, Malformed, Reader};

const MAGIC: [u8; 8] = *b"TLSPANS\n";
const VERSION: u32 = 1;
const HEADER_EXTRA: usize = 24;
const SPAN: usize = 32;
const PAYLOAD: usize = 48;
const SEAL: usize = 32;
const FLAG_VERIFIED: u32 = 1;
/// A layer of 100 GiB has not as many.
pub const MAX_SPANS: usize = 1 << 20;
const TRIED: &str = "reading the spans of a layer";

/// How a span is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// A gzip header is there.
    Header,
    /// It is between two blocks.
    Between {
        /// So many bits of the byte before belong to the span.
        bits: u8,
        /// Their value.
        value: u8,
        /// The output before it, by [`pack_window`]: nothing, or at most [`WINDOW`] bytes. What the span does not refer to may be zeros.
        window: Vec<u8>,
    },
}

/// Where a span begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset in the blob of its first whole byte.
    pub blob_offset: u64,
    /// How it is entered.
    pub entrance: Entrance,
}

/// Bytes of a file in the output of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where they begin.
    pub start: u64,
    /// How many.
    pub len: u64,
    /// Their digest, that of the chunk.
    pub digest: Digest,
}

impl Payload {
    /// Where they end.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// The spans of a layer.
#[derive(Debug)]
pub struct Spans {
    bytes: Bytes,
    spans: u32,
    payloads: u32,
    blob_len: u64,
    verified: bool,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
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

/// A window as it is kept.
pub fn pack_window(window: &[u8]) -> std::io::Result<Vec<u8>> {
    if window.is_empty() { Ok(Vec::new()) } else { zstd::bulk::compress(window, 6) }
}

/// Makes the file of a layer whose blob has `blob_len` bytes. `starts` says for every chunk of `index`, in order, where in the output of its
/// span it begins; spans begin where chunks say that they are in the blob. Chunks that are in no span, or on each other, are
/// [`Outcome::BadInput`].
pub fn build(index: &LayerIndex, blob_len: u64, spans: &[Span], starts: &[u64], verified: bool) -> Result<Vec<u8>> {
    let bad = |text: String| Error::new(Outcome::BadInput, "laying out the spans of a layer").because(text);
    let mut payloads: Vec<(usize, Payload)> = Vec::with_capacity(starts.len());
    let chunks: Vec<&Chunk> = index.files().flat_map(|file| &file.chunks).collect();
    if chunks.len() != starts.len() {
        return Err(bad(format!("{} places for {} chunks", starts.len(), chunks.len())));
    }
    for (chunk, start) in chunks.into_iter().zip(starts) {
        let span = spans.binary_search_by_key(&chunk.blob_offset, |span| span.blob_offset);
        let span = span.map_err(|_| bad(format!("no span begins at {}", chunk.blob_offset)))?;
        payloads.push((span, Payload { start: *start, len: chunk.len, digest: chunk.digest }));
    }
    payloads.sort_by_key(|(span, payload)| (*span, payload.start));

    let count = |n: usize| u32::try_from(n).map_err(|_| bad(format!("{n} are too many")));
    let mut out = wire::begin(MAGIC, VERSION, HEADER_EXTRA);
    out.extend(count(spans.len())?.to_le_bytes());
    out.extend(count(payloads.len())?.to_le_bytes());
    out.extend(blob_len.to_le_bytes());
    out.extend(if verified { FLAG_VERIFIED } else { 0 }.to_le_bytes());
    out.extend([0; 4]);
    let mut windows: Vec<u8> = Vec::new();
    for (number, span) in spans.iter().enumerate() {
        let first = payloads.partition_point(|(of, _)| *of < number);
        let place = windows.len() as u64;
        let (bits, value, kind) = match &span.entrance {
            Entrance::Header => (0, 0, 0),
            Entrance::Between { bits, value, window } => {
                windows.extend(window);
                (*bits, *value, 1)
            }
        };
        out.extend(span.blob_offset.to_le_bytes());
        out.extend(place.to_le_bytes());
        out.extend(count(windows.len() - place as usize)?.to_le_bytes());
        out.extend(count(first)?.to_le_bytes());
        out.extend([bits, value, kind, 0, 0, 0, 0, 0]);
    }
    for (_, payload) in &payloads {
        out.extend(payload.start.to_le_bytes());
        out.extend(payload.len.to_le_bytes());
        out.extend(payload.digest.as_bytes());
    }
    out.extend(windows);
    let mut out = wire::end(out);
    out.extend(Digest::of(&out).as_bytes());
    Spans::parse(out.clone()).map_err(|e| e.during("laying out the spans of a layer"))?;
    Ok(out)
}

/// The same file, with the mark that its layer has been checked against its diffID.
pub fn mark_verified(file: &[u8]) -> Vec<u8> {
    let mut out = file[..file.len() - SEAL].to_vec();
    out[wire::HEADER + 16] |= FLAG_VERIFIED as u8;
    out.extend(Digest::of(&out).as_bytes());
    out
}

impl Spans {
    /// Opens a file that [`build`] made. Anything else, damage included, is [`Outcome::BadInput`] or a newer version's.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("opening", path, e))?;
        let mapped = MappedFile::map(&file).map_err(|e| Error::io("mapping", path, e))?;
        Self::new(Bytes::Mapped(mapped)).map_err(|e| e.into_error(format!("{TRIED} from {}", path.display())))
    }

    /// The same from memory.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Bytes::Owned(bytes)).map_err(|e| e.into_error(TRIED.into()))
    }

    fn new(bytes: Bytes) -> Result<Self, Malformed> {
        let bad = |text: &str| Malformed::Bad(text.into());
        let sealed = bytes.split_last_chunk::<SEAL>().filter(|(content, seal)| Digest::of(content).as_bytes() == *seal);
        let (content, _) = sealed.ok_or_else(|| bad("its digest is not that at its end"))?;
        let (mut header, rest) = wire::open(content, MAGIC, VERSION, "file of spans", HEADER_EXTRA)?;
        if rest.remaining() != content.len() - wire::HEADER - HEADER_EXTRA {
            return Err(bad("its header is longer than that of this version"));
        }
        let fields = (|| Some((header.u32()?, header.u32()?, header.u64()?, header.u32()?)))();
        let (spans, payloads, blob_len, flags) = fields.expect("wire::open has checked the header's length");
        let least = (wire::HEADER + HEADER_EXTRA) as u64 + u64::from(spans) * SPAN as u64 + u64::from(payloads) * PAYLOAD as u64;
        if least > content.len() as u64 || spans as usize > MAX_SPANS {
            return Err(bad("it has not as many spans and payloads as it says"));
        }
        let this = Self { spans, payloads, blob_len, verified: flags & FLAG_VERIFIED != 0, bytes };
        this.check().map_err(Malformed::Bad)?;
        Ok(this)
    }

    fn check(&self) -> Result<(), String> {
        let windows = (self.bytes.len() - SEAL - self.windows_start()) as u64;
        let (mut blob, mut payload) = (None, 0);
        for number in 0..self.len() {
            let wrong = |what: &str| format!("span {number}: {what}");
            let record = self.record(number);
            if blob.is_some_and(|before| before >= record.blob_offset) || (number == 0 && record.blob_offset != 0) {
                return Err(wrong("`blob offset` is not behind that of the span before"));
            }
            if record.blob_offset >= self.blob_len {
                return Err(wrong("`blob offset` is behind the end of the blob"));
            }
            blob = Some(record.blob_offset);
            if record.window.checked_add(record.window_len.into()).is_none_or(|end| end > windows) {
                return Err(wrong("its window is not in the file"));
            }
            if record.kind > 1 || record.bits > 7 || u32::from(record.value) >> record.bits != 0 {
                return Err(wrong("its entrance is not possible"));
            }
            if record.first != payload {
                return Err(wrong("its first payload is not behind those of the span before"));
            }
            payload = self.first_payload(number + 1);
            if payload < record.first || payload > self.payloads {
                return Err(wrong("it has too many payloads"));
            }
            let mut end = 0;
            for payload in self.payloads(number) {
                if payload.start < end || payload.len == 0 || payload.start.checked_add(payload.len).is_none() {
                    return Err(wrong("its payloads lie on each other"));
                }
                end = payload.end();
            }
        }
        if payload != self.payloads {
            return Err("there are payloads in no span".into());
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans == 0
    }

    /// Length of the blob, bytes.
    pub fn blob_len(&self) -> u64 {
        self.blob_len
    }

    /// Whether the layer has been checked against its diffID.
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// The bytes that it is kept as.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of the span that begins at this byte of the blob.
    pub fn at(&self, blob_offset: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.record(middle).blob_offset < blob_offset {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        (low < self.len() && self.record(low).blob_offset == blob_offset).then_some(low)
    }

    /// Bytes of the blob that a span is.
    pub fn range(&self, number: usize) -> Range<u64> {
        let end = if number + 1 < self.len() { self.record(number + 1).blob_offset } else { self.blob_len };
        self.record(number).blob_offset..end
    }

    /// What files have in the output of a span, ascending.
    pub fn payloads(&self, number: usize) -> impl ExactSizeIterator<Item = Payload> + use<'_> {
        (self.first_payload(number)..self.first_payload(number + 1)).map(|nth| {
            let start = self.payloads_start() + nth as usize * PAYLOAD;
            let mut fields = Reader::new(&self.bytes[start..start + PAYLOAD]);
            let mut read =
                || Some(Payload { start: fields.u64()?, len: fields.u64()?, digest: Digest::from_bytes(fields.array()?) });
            read().expect("a record has all fields")
        })
    }

    /// A decompressor for the bytes of a span.
    pub fn enter(&self, number: usize) -> std::io::Result<Entered> {
        let record = self.record(number);
        if record.kind == 0 {
            return Ok(Entered { inflate: None, bare: false, trailer: 0 });
        }
        let start = self.windows_start() + record.window as usize;
        let window = match &self.bytes[start..start + record.window_len as usize] {
            [] => Vec::new(),
            packed => zstd::bulk::decompress(packed, WINDOW)?,
        };
        Ok(Entered { inflate: Some(Inflate::resume(&window, record.bits, record.value)?), bare: true, trailer: 0 })
    }

    fn first_payload(&self, number: usize) -> u32 {
        if number < self.len() { self.record(number).first } else { self.payloads }
    }

    fn payloads_start(&self) -> usize {
        wire::HEADER + HEADER_EXTRA + self.len() * SPAN
    }

    fn windows_start(&self) -> usize {
        self.payloads_start() + self.payloads as usize * PAYLOAD
    }

    fn record(&self, number: usize) -> Record {
        let start = wire::HEADER + HEADER_EXTRA + number * SPAN;
        let mut fields = Reader::new(&self.bytes[start..start + SPAN]);
        let mut read = || {
            let (blob_offset, window, window_len, first) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?);
            Some(Record { blob_offset, window, window_len, first, bits: fields.u8()?, value: fields.u8()?, kind: fields.u8()? })
        };
        read().expect("a record has all fields")
    }
}

/// Decompresses one span: the rest of a member, and the members behind it.
#[derive(Debug)]
pub struct Entered {
    inflate: Option<Inflate>,
    /// Whether the member was entered behind its header, so that its trailer is not looked at either.
    bare: bool,
    /// Bytes of that trailer that are still to come.
    trailer: usize,
}

/// Length of the trailer of a gzip member.
const TRAILER: usize = 8;

impl Entered {
    /// Decompresses some of `input`: how many bytes were taken and made. To be called again until it neither takes everything nor fills
    /// all of `output`. Wrong input is [`std::io::ErrorKind::InvalidData`].
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> std::io::Result<(usize, usize)> {
        if self.trailer > 0 {
            let taken = self.trailer.min(input.len());
            self.trailer -= taken;
            return Ok((taken, 0));
        }
        if input.is_empty() && self.inflate.is_none() {
            return Ok((0, 0));
        }
        let inflate = match &mut self.inflate {
            Some(inflate) => inflate,
            empty => empty.insert(Inflate::gzip()?),
        };
        let step = inflate.step(input, output, false)?;
        if step.place == Place::End {
            self.inflate = None;
            self.trailer = if std::mem::take(&mut self.bare) { TRAILER } else { 0 };
        }
        Ok((step.taken, step.made))
    }
}

struct Record {
    blob_offset: u64,
    window: u64,
    window_len: u32,
    first: u32,
    bits: u8,
    value: u8,
    kind: u8,
}

#[cfg(test)]
mod tests;
