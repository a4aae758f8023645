//! From the bytes of a blob to verified content: a state machine that is fed bytes in any portions, in blob order.
//!
//! ```text
//! segments: piece, gap, piece, …   ascending in the blob, with holes between them that are skipped
//!
//! piece that becomes an object:  chunk -> chunk -> … -> all written --digest right--> object named, Stored
//! piece of a large file:         chunk --digest right--> written to the data file -> chunk -> … -> Stored
//!          \-- undecodable, wrong length or digest --> Damaged, the rest of the piece's bytes are skipped
//! gap:     collected --complete--> Gap
//! ```
//!
//! What is in memory is one decompression window and one output buffer, whatever the size of a file; of a large file also the chunk that is
//! being decoded, which has a limit ([`crate::table::MAX_CHUNK`]). A machine that waits for the byte at [`Decoder::position`] can wait for any
//! time: that is how a transfer resumes after its connection broke. How a chunk is compressed only [`codec`] knows.

mod codec;
mod spans;

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

pub(super) use self::codec::Codec;
use self::spans::SpanDecoder;
use super::image::Layer;
use super::piece::{Destination, PieceId, PiecePlan};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::{Chunk, LayerKind};
use crate::store::Store;
use crate::store::big::BigData;
use crate::store::cas::ObjectWriter;

/// Bytes of decompressed data that are in memory at a time.
const OUT: usize = 64 * 1024;
/// A source of zeros.
const ZEROS: [u8; 16384] = [0; 16384];

/// A part of the blob that somebody wants.
#[derive(Clone, Debug)]
pub(super) enum Segment {
    /// A piece.
    Piece(PiecePlan),
    /// Bytes between files, kept as they are.
    Gap(Range<u64>),
}

/// What came of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The piece is in the store now.
    Stored(PieceId),
    /// The piece's bytes are not what the index says.
    Damaged(Damage),
    /// A gap is complete.
    Gap(u64, Vec<u8>),
    /// The bytes of the blob that a span is, where it is not known yet whether its gap is missing.
    Span(u64, Vec<u8>),
}

/// Where and why a piece is not what the index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The piece.
    pub piece: PieceId,
    /// Digest of the file that it is of.
    pub file: Digest,
    /// Offset in the blob of the chunk that is wrong, bytes.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
}

/// The state machine for a layer, whatever its kind.
pub(super) enum Decoding<'a> {
    /// Chunks that are decompressed each by itself.
    Chunks(Box<Decoder<'a>>),
    /// Chunks in spans.
    Spans(Box<SpanDecoder<'a>>),
}

impl<'a> Decoding<'a> {
    /// A machine for these segments of the layer, ascending.
    pub fn new(store: &'a Store, layer: &'a Layer, segments: Vec<Segment>) -> Result<Self> {
        if layer.record.kind.is_spanned() {
            let spans = Arc::clone(layer.spans(store)?);
            return Ok(Self::Spans(Box::new(SpanDecoder::new(store, layer, spans, segments))));
        }
        let decoder = Decoder::new(store, layer.record.kind, segments);
        let decoder = decoder.map_err(|e| Error::new(Outcome::Io, "setting up the decompressor").because(e))?;
        Ok(Self::Chunks(Box::new(decoder)))
    }

    /// The span that has been read in part: where it begins, and its bytes so far.
    pub fn head(&self) -> Option<(u64, &[u8])> {
        match self {
            Self::Chunks(_) => None,
            Self::Spans(decoder) => decoder.head(),
        }
    }

    /// Takes the next bytes. An error is a failure of the local store; damage is an event.
    pub fn push(&mut self, bytes: &[u8], events: &mut dyn FnMut(Event)) -> Result<()> {
        match self {
            Self::Chunks(decoder) => decoder.push(bytes, events),
            Self::Spans(decoder) => decoder.push(bytes, events),
        }
    }
}

/// The state machine for chunks that are decompressed each by itself.
pub(super) struct Decoder<'a> {
    store: &'a Store,
    position: u64,
    waiting: VecDeque<Segment>,
    current: Option<Current<'a>>,
    codec: Codec,
    out: Vec<u8>,
}

enum Current<'a> {
    Piece(Box<OpenPiece<'a>>),
    Gap { range: Range<u64>, bytes: Vec<u8> },
}

struct OpenPiece<'a> {
    plan: PiecePlan,
    /// Number of the chunk that is being decoded.
    chunk: usize,
    /// Decompressed bytes of it.
    produced: u64,
    /// Whether the chunk may end where it is.
    may_end: bool,
    hasher: Hasher,
    /// `None` once the piece has turned out to be damaged.
    output: Option<Output<'a>>,
}

/// Where content goes.
enum Output<'a> {
    /// What is written is checked by its digest at the end.
    Object(ObjectWriter<'a>),
    Data {
        big: Arc<BigData>,
        /// Where the file begins in it.
        file: u64,
        /// What has come of the chunk: nothing is written before its digest is known.
        chunk: Vec<u8>,
    },
}

impl Segment {
    /// Its extent in the blob.
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::Piece(plan) => plan.range(),
            Self::Gap(range) => range.clone(),
        }
    }
}

impl<'a> Decoder<'a> {
    /// A machine for these segments, ascending, of a layer of this kind. The first byte it wants is the first of the first segment.
    pub fn new(store: &'a Store, kind: LayerKind, segments: Vec<Segment>) -> std::io::Result<Self> {
        let position = segments.first().map_or(0, |segment| segment.range().start);
        Ok(Self { store, position, waiting: segments.into(), current: None, codec: Codec::of(kind)?, out: vec![0; OUT] })
    }

    /// Offset in the blob of the next byte that is wanted.
    #[cfg(test)]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes. An error is a failure of the local store; damage is an event.
    pub fn push(&mut self, mut bytes: &[u8], events: &mut dyn FnMut(Event)) -> Result<()> {
        while !bytes.is_empty() {
            self.open_next()?;
            let taken = match &mut self.current {
                Some(Current::Gap { range, bytes: kept }) => take_gap(range, kept, self.position, bytes),
                Some(Current::Piece(piece)) => piece.take(&mut self.codec, &mut self.out, self.position, bytes, events)?,
                None => bytes.len(),
            };
            self.position += taken as u64;
            bytes = &bytes[taken..];
            self.close_segment(events)?;
        }
        Ok(())
    }

    fn open_next(&mut self) -> Result<()> {
        if self.current.is_none() {
            self.current = match self.waiting.pop_front() {
                None => None,
                Some(Segment::Gap(range)) => Some(Current::Gap { range, bytes: Vec::new() }),
                Some(Segment::Piece(plan)) => Some(Current::Piece(Box::new(OpenPiece::new(self.store, plan)?))),
            };
        }
        Ok(())
    }

    fn close_segment(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let ended = match &self.current {
            Some(Current::Gap { range, .. }) => self.position >= range.end,
            Some(Current::Piece(piece)) => self.position >= piece.plan.range().end,
            None => false,
        };
        if !ended {
            return Ok(());
        }
        match self.current.take() {
            Some(Current::Gap { range, bytes }) => events(Event::Gap(range.start, bytes)),
            Some(Current::Piece(piece)) => piece.close(events)?,
            None => {}
        }
        Ok(())
    }
}

/// Collects the part of `bytes`, which begin at `position`, that is in the gap. Returns how many bytes are done with.
fn take_gap(range: &Range<u64>, kept: &mut Vec<u8>, position: u64, bytes: &[u8]) -> usize {
    let skip = usize_of(range.start.saturating_sub(position)).min(bytes.len());
    let end = usize_of(range.end - position).min(bytes.len());
    kept.extend_from_slice(&bytes[skip..end.max(skip)]);
    end.max(skip)
}

impl<'a> OpenPiece<'a> {
    fn new(store: &'a Store, plan: PiecePlan) -> Result<Self> {
        let output = match (&plan.to, &plan.id) {
            (Destination::Data { len, file }, PieceId::Data { layer, .. }) => {
                Output::Data { big: store.big(layer, *len)?, file: *file, chunk: Vec::new() }
            }
            _ => Output::Object(store.cas().writer()?),
        };
        let hasher = Hasher::default();
        let mut piece = Self { plan, chunk: 0, produced: 0, may_end: false, hasher, output: Some(output) };
        piece.write_zeros()?;
        Ok(piece)
    }

    /// A chunk that is a whole object needs no digest of its own.
    fn checks_chunks(&self) -> bool {
        self.plan.chunks.len() > 1 || matches!(self.plan.to, Destination::Data { .. })
    }

    /// Takes some of `bytes`, which begin at `position` in the blob; returns how many are done with.
    fn take(
        &mut self,
        codec: &mut Codec,
        out: &mut [u8],
        position: u64,
        bytes: &[u8],
        events: &mut dyn FnMut(Event),
    ) -> Result<usize> {
        let end = self.plan.range().end;
        let Some(chunk) = self.plan.chunks.get(self.chunk).filter(|_| self.output.is_some()) else {
            return Ok(usize_of(end - position).min(bytes.len()));
        };
        if position < chunk.blob_offset {
            return Ok(usize_of(chunk.blob_offset - position).min(bytes.len()));
        }
        let chunk_end = chunk.blob_offset + chunk.blob_len;
        if position == chunk.blob_offset
            && let Err(e) = codec.begin()
        {
            self.damage(format!("the decompressor failed: {e}"), events);
            return Ok(0);
        }
        let taken = usize_of(chunk_end - position).min(bytes.len());
        self.decompress(codec, out, &bytes[..taken], events)?;
        if self.output.is_some() && position + taken as u64 == chunk_end {
            self.end_chunk(events)?;
        }
        Ok(taken)
    }

    fn decompress(&mut self, codec: &mut Codec, out: &mut [u8], mut bytes: &[u8], events: &mut dyn FnMut(Event)) -> Result<()> {
        let wanted = self.plan.chunks[self.chunk].len;
        loop {
            let step = match codec.step(bytes, out) {
                Ok(step) => step,
                Err(e) => {
                    self.damage(e.to_string(), events);
                    return Ok(());
                }
            };
            if (step.taken, step.made) == (0, 0) && !bytes.is_empty() {
                self.damage("the decompressor does not go on".to_owned(), events);
                return Ok(());
            }
            // A step behind the end of a frame, which only looks whether there is more output, speaks of the next frame.
            if (step.taken, step.made) != (0, 0) {
                self.may_end = step.ended;
            }
            bytes = &bytes[step.taken..];
            if self.produced + step.made as u64 > wanted {
                self.damage(format!("it decompresses to more than {wanted} bytes"), events);
                return Ok(());
            }
            self.put(&out[..step.made])?;
            if bytes.is_empty() && step.made < out.len() {
                return Ok(());
            }
        }
    }

    /// Takes decompressed bytes of the chunk.
    fn put(&mut self, produced: &[u8]) -> Result<()> {
        self.produced += produced.len() as u64;
        if self.checks_chunks() {
            self.hasher.update(produced);
        }
        match self.output.as_mut().expect("a damaged piece is not decompressed") {
            Output::Object(writer) => writer.write(produced),
            Output::Data { chunk, .. } => {
                chunk.extend_from_slice(produced);
                Ok(())
            }
        }
    }

    fn end_chunk(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let checks = self.checks_chunks();
        let hasher = std::mem::take(&mut self.hasher);
        let Chunk { file_offset, len, digest, .. } = self.plan.chunks[self.chunk];
        if self.produced != len || !self.may_end {
            self.damage(format!("it decompresses to {} bytes, not {len}", self.produced), events);
            return Ok(());
        }
        if checks && hasher.finish() != digest {
            self.damage(format!("its digest is {}, not {digest}", hasher.finish()), events);
            return Ok(());
        }
        if let Some(Output::Data { big, file, chunk }) = &mut self.output {
            big.write(*file + file_offset, chunk)?;
            chunk.clear();
        }
        self.chunk += 1;
        self.produced = 0;
        self.may_end = false;
        self.write_zeros()
    }

    /// Writes the chunks of zeros that come next; their bytes in the blob are skipped.
    fn write_zeros(&mut self) -> Result<()> {
        while let (Some(chunk), Some(output)) = (self.plan.chunks.get(self.chunk).filter(|c| c.zeros), &mut self.output) {
            let mut at = 0;
            while at < chunk.len {
                let zeros = &ZEROS[..usize_of(chunk.len - at).min(ZEROS.len())];
                match output {
                    Output::Object(writer) => writer.write(zeros)?,
                    Output::Data { big, file, .. } => big.write(*file + chunk.file_offset + at, zeros)?,
                }
                at += zeros.len() as u64;
            }
            self.chunk += 1;
        }
        Ok(())
    }

    fn damage(&mut self, why: String, events: &mut dyn FnMut(Event)) {
        let offset = self.plan.chunks.get(self.chunk).map_or(self.plan.range().start, |chunk| chunk.blob_offset);
        self.output = None;
        events(Event::Damaged(Damage { piece: self.plan.id, file: self.plan.file, offset, why }));
    }

    fn close(mut self: Box<Self>, events: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(output) = self.output.take() else { return Ok(()) };
        let (piece, file) = (self.plan.id, self.plan.file);
        let stored: Result<(), Error> = match output {
            Output::Object(writer) => writer.finish_as(&file),
            Output::Data { .. } => Ok(()),
        };
        match stored {
            Ok(()) => events(Event::Stored(piece)),
            Err(e) if e.outcome() == Outcome::Integrity => {
                let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                events(Event::Damaged(Damage { piece, file, offset: self.plan.range().start, why }));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Stores a piece whose content comes uncompressed, all of it, from `content`. An error of the reader is [`Outcome::Unavailable`].
pub(super) fn store_content(store: &Store, plan: PiecePlan, content: &mut dyn Read, events: &mut dyn FnMut(Event)) -> Result<()> {
    let mut piece = Box::new(OpenPiece::new(store, plan)?);
    let mut out = vec![0; OUT];
    for chunk in Arc::clone(&piece.plan.chunks).iter() {
        let mut left = chunk.len;
        while left > 0 {
            let read = &mut out[..usize_of(left).min(OUT)];
            content.read_exact(read).map_err(|e| Error::new(Outcome::Unavailable, "reading the content of a file").because(e))?;
            left -= read.len() as u64;
            // What is zeros was written when the chunk before it ended.
            if !chunk.zeros && piece.output.is_some() {
                piece.put(read)?;
            }
        }
        if !chunk.zeros && piece.output.is_some() {
            piece.may_end = true;
            piece.end_chunk(events)?;
        }
    }
    piece.close(events)
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
