//! From the bytes of a blob to verified objects: a state machine that is fed pieces of any size, in blob order.
//!
//! ```text
//! segments: file, gap, file, …   ascending in the blob, with holes between them that are skipped
//!
//! file:  chunk -> chunk -> … -> all written --digest right--> object named, Stored
//!          \-- frame broken, wrong length or digest --> Damaged, the rest of the file's bytes are skipped
//! gap:   collected --complete--> Gap
//! ```
//!
//! What is in memory is one decompression window and one output buffer, whatever the size of a file. A machine that waits for the
//! byte at [`Decoder::position`] can wait for any time: that is how a transfer resumes after its connection broke.

use std::collections::VecDeque;
use std::ops::Range;

use zstd::stream::raw::{InBuffer, Operation as _, OutBuffer};
use zstd::zstd_safe::DParameter;

use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::layer::Chunk;
use crate::store::cas::{Cas, ObjectWriter};

/// Bytes of decompressed data that are in memory at a time.
const OUT: usize = 64 * 1024;
/// The largest window a frame may ask for: 128 MiB, the limit of the zstd program too. Only what is written to is ever resident.
const WINDOW_LOG: u32 = 27;
/// A source of zeros.
const ZEROS: [u8; 4096] = [0; 4096];

/// A file whose bytes are to be decoded.
#[derive(Clone, Debug)]
pub(super) struct FilePlan {
    /// Digest of the content.
    pub digest: Digest,
    /// Its chunks: ascending, and adding up to the file.
    pub chunks: Vec<Chunk>,
}

/// A part of the blob that somebody wants.
#[derive(Clone, Debug)]
pub(super) enum Segment {
    /// A file.
    File(FilePlan),
    /// Bytes between files, kept as they are.
    Gap(Range<u64>),
}

/// What came of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The file is an object now.
    Stored(Digest),
    /// The file's bytes are not what the index says.
    Damaged(Damage),
    /// A gap is complete.
    Gap(u64, Vec<u8>),
}

/// Where and why a file is not what the index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Digest of the content that was expected.
    pub file: Digest,
    /// Offset in the blob of the chunk that is wrong, bytes.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
}

/// The state machine.
pub(super) struct Decoder<'a> {
    cas: &'a Cas,
    position: u64,
    waiting: VecDeque<Segment>,
    current: Option<Current<'a>>,
    zstd: zstd::stream::raw::Decoder<'static>,
    out: Vec<u8>,
}

enum Current<'a> {
    File(Box<OpenFile<'a>>),
    Gap { range: Range<u64>, bytes: Vec<u8> },
}

struct OpenFile<'a> {
    plan: FilePlan,
    /// Number of the chunk that is being decoded.
    chunk: usize,
    /// Decompressed bytes of it.
    produced: u64,
    /// Whether the frame that is being read has come to its end.
    frame_ended: bool,
    hasher: Hasher,
    /// `None` once the file has turned out to be damaged.
    writer: Option<ObjectWriter<'a>>,
}

impl Segment {
    /// Its extent in the blob.
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::File(plan) => plan.range(),
            Self::Gap(range) => range.clone(),
        }
    }
}

impl FilePlan {
    /// Extent in the blob from the first to the last chunk.
    pub fn range(&self) -> Range<u64> {
        let first = self.chunks.first().map_or(0, |c| c.blob_offset);
        first..self.chunks.last().map_or(first, |c| c.blob_offset + c.blob_len)
    }
}

impl<'a> Decoder<'a> {
    /// A machine for these segments, ascending. The first byte it wants is the first of the first segment.
    pub fn new(cas: &'a Cas, segments: Vec<Segment>) -> std::io::Result<Self> {
        let mut zstd = zstd::stream::raw::Decoder::new()?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        let position = segments.first().map_or(0, |segment| segment.range().start);
        Ok(Self { cas, position, waiting: segments.into(), current: None, zstd, out: vec![0; OUT] })
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
                Some(Current::File(file)) => file.take(&mut self.zstd, &mut self.out, self.position, bytes, events)?,
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
                Some(Segment::File(plan)) => {
                    let writer = Some(self.cas.writer()?);
                    let mut file =
                        OpenFile { plan, chunk: 0, produced: 0, frame_ended: false, hasher: Hasher::default(), writer };
                    file.write_zeros()?;
                    Some(Current::File(Box::new(file)))
                }
            };
        }
        Ok(())
    }

    fn close_segment(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let ended = match &self.current {
            Some(Current::Gap { range, .. }) => self.position >= range.end,
            Some(Current::File(file)) => self.position >= file.plan.range().end,
            None => false,
        };
        if !ended {
            return Ok(());
        }
        match self.current.take() {
            Some(Current::Gap { range, bytes }) => events(Event::Gap(range.start, bytes)),
            Some(Current::File(file)) => file.close(events)?,
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

impl OpenFile<'_> {
    /// Takes some of `bytes`, which begin at `position` in the blob; returns how many are done with.
    fn take(
        &mut self,
        zstd: &mut zstd::stream::raw::Decoder<'static>,
        out: &mut [u8],
        position: u64,
        bytes: &[u8],
        events: &mut dyn FnMut(Event),
    ) -> Result<usize> {
        let end = self.plan.range().end;
        let Some(chunk) = self.plan.chunks.get(self.chunk).filter(|_| self.writer.is_some()) else {
            return Ok(usize_of(end - position).min(bytes.len()));
        };
        if position < chunk.blob_offset {
            return Ok(usize_of(chunk.blob_offset - position).min(bytes.len()));
        }
        let chunk_end = chunk.blob_offset + chunk.blob_len;
        if position == chunk.blob_offset {
            // Whatever the last chunk left behind, this one begins with a frame.
            if let Err(e) = zstd.reinit() {
                self.damage(format!("the decompressor failed: {e}"), events);
                return Ok(0);
            }
        }
        let taken = usize_of(chunk_end - position).min(bytes.len());
        self.decompress(zstd, out, &bytes[..taken], events)?;
        if self.writer.is_some() && position + taken as u64 == chunk_end {
            self.end_chunk(events)?;
        }
        Ok(taken)
    }

    fn decompress(
        &mut self,
        zstd: &mut zstd::stream::raw::Decoder<'static>,
        out: &mut [u8],
        bytes: &[u8],
        events: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let wanted = self.plan.chunks[self.chunk].len;
        // A chunk that is the whole file needs no digest of its own.
        let hashes_chunk = self.plan.chunks.len() > 1;
        let mut input = InBuffer::around(bytes);
        loop {
            let mut output = OutBuffer::around(out);
            match zstd.run(&mut input, &mut output) {
                Ok(hint) => self.frame_ended = hint == 0,
                Err(e) => {
                    self.damage(format!("it is not valid zstd: {e}"), events);
                    return Ok(());
                }
            }
            let len = output.pos();
            let (produced, full) = (&out[..len], len == out.len());
            self.produced += len as u64;
            if self.produced > wanted {
                self.damage(format!("it decompresses to more than {wanted} bytes"), events);
                return Ok(());
            }
            if hashes_chunk {
                self.hasher.update(produced);
            }
            self.writer.as_mut().expect("a damaged file is not decompressed").write(produced)?;
            if input.pos() == bytes.len() && !full {
                return Ok(());
            }
        }
    }

    fn end_chunk(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let chunk = &self.plan.chunks[self.chunk];
        let hasher = std::mem::take(&mut self.hasher);
        if self.produced != chunk.len || !self.frame_ended {
            self.damage(format!("it decompresses to {} bytes, not {}", self.produced, chunk.len), events);
            return Ok(());
        }
        if self.plan.chunks.len() > 1 && hasher.finish() != chunk.digest {
            self.damage(format!("its digest is {}, not {}", hasher.finish(), chunk.digest), events);
            return Ok(());
        }
        self.chunk += 1;
        self.produced = 0;
        self.frame_ended = false;
        self.write_zeros()
    }

    /// Writes the chunks of zeros that come next; their bytes in the blob are skipped.
    fn write_zeros(&mut self) -> Result<()> {
        while let (Some(chunk), Some(writer)) = (self.plan.chunks.get(self.chunk).filter(|c| c.zeros), &mut self.writer) {
            let mut left = chunk.len;
            while left > 0 {
                let piece = usize_of(left).min(ZEROS.len());
                writer.write(&ZEROS[..piece])?;
                left -= piece as u64;
            }
            self.chunk += 1;
        }
        Ok(())
    }

    fn damage(&mut self, why: String, events: &mut dyn FnMut(Event)) {
        let offset = self.plan.chunks.get(self.chunk).map_or(self.plan.range().start, |chunk| chunk.blob_offset);
        self.writer = None;
        events(Event::Damaged(Damage { file: self.plan.digest, offset, why }));
    }

    fn close(mut self: Box<Self>, events: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let file = self.plan.digest;
        match writer.finish_as(&file) {
            Ok(()) => events(Event::Stored(file)),
            Err(e) if e.outcome() == crate::error::Outcome::Integrity => {
                let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                events(Event::Damaged(Damage { file, offset: self.plan.range().start, why }));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
