//! Recording where a gzip stream can be entered, and what of each file lies between two such places, while it is decompressed once.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, ErrorKind, Read};
use std::rc::Rc;

use towline_sys::inflate::{Inflate, Place, WINDOW};

use super::SeekIndex;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::spans::{Entrance, MAX_SPANS, Span};
use crate::layer::tar::{self, FileSink};
use crate::layer::{Chunk, EntryKind, LayerIndex};

/// A span begins after so many bytes of output at the earliest: what a program waits for, against 32 KiB of window for each.
pub(super) const SPAN: u64 = 1 << 20;

/// A layer that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seekable {
    /// What is in it; files have no chunks.
    pub index: LayerIndex,
    /// The same with random access.
    pub seek: SeekIndex,
    /// Digest of the tar.
    pub diff_id: Digest,
}

/// Reads a gzip layer to the end of its last member, hands its files to `sink`, and records how it can be entered.
pub fn record(blob: impl BufRead, sink: &mut impl FileSink) -> Result<Seekable> {
    let course = Rc::new(Course::default());
    let mut reader = Recorder {
        blob,
        inflate: None,
        course: Rc::clone(&course),
        window: Vec::new(),
        blob_at: 0,
        last_byte: 0,
        hasher: Hasher::default(),
        ended: false,
    };
    let mut cutter = Cutter { sink, course: &course, files: Vec::new(), open: None, before: 0 };
    let index = tar::read(&mut reader, &mut cutter)?;
    let files = cutter.files;
    if !reader.ended {
        return Err(Error::new(Outcome::BadInput, "unpacking a gzip layer").because("the tar ended, the gzip stream did not"));
    }
    let seek = lay_out(&index, files, course.entrances.take(), reader.blob_at)?;
    Ok(Seekable { index, seek, diff_id: reader.hasher.finish() })
}

/// What reader and sink both know.
#[derive(Default)]
struct Course {
    /// Bytes of the tar that were made.
    at: Cell<u64>,
    /// Where the span that is being read begins in the tar.
    latest: Cell<u64>,
    /// Each span, and where it begins in the tar.
    entrances: RefCell<Vec<(u64, Span)>>,
}

impl Course {
    fn enter(&self, blob_offset: u64, entrance: Entrance) {
        let mut entrances = self.entrances.borrow_mut();
        let is_due = entrances.is_empty() || self.at.get() - self.latest.get() >= SPAN;
        if is_due && entrances.len() < MAX_SPANS {
            self.latest.set(self.at.get());
            entrances.push((self.at.get(), Span { blob_offset, entrance }));
        }
    }

    fn is_due(&self) -> bool {
        self.at.get() - self.latest.get() >= SPAN
    }
}

/// Decompresses. One read never crosses the beginning of a span.
struct Recorder<R> {
    blob: R,
    inflate: Option<Inflate>,
    course: Rc<Course>,
    /// The last output, at least [`WINDOW`] bytes of it where there were as many.
    window: Vec<u8>,
    /// Bytes of the blob that were taken.
    blob_at: u64,
    last_byte: u8,
    hasher: Hasher,
    ended: bool,
}

impl<R: BufRead> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !buffer.is_empty() {
            let input = self.blob.fill_buf()?;
            if input.is_empty() && self.inflate.is_none() && self.blob_at > 0 {
                self.ended = true;
                break;
            }
            if input.is_empty() {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the gzip stream ends early"));
            }
            if self.inflate.is_none() {
                self.course.enter(self.blob_at, Entrance::Header);
                self.inflate = Some(Inflate::gzip()?);
            }
            let inflate = self.inflate.as_mut().expect("it was made above");
            let step = inflate.step(input, buffer, true)?;
            if let Some(last) = step.taken.checked_sub(1) {
                self.last_byte = input[last];
            }
            self.blob.consume(step.taken);
            self.blob_at += step.taken as u64;
            self.course.at.set(self.course.at.get() + step.made as u64);
            self.hasher.update(&buffer[..step.made]);
            remember(&mut self.window, &buffer[..step.made]);
            match step.place {
                Place::End => self.inflate = None,
                Place::Between(bits) if self.course.is_due() => {
                    let value = if bits == 0 { 0 } else { self.last_byte >> (8 - bits) };
                    let window = self.window[self.window.len().saturating_sub(WINDOW)..].to_vec();
                    self.course.enter(self.blob_at, Entrance::Between { bits, value, window });
                }
                Place::Between(_) | Place::Within => {}
            }
            if step.made > 0 {
                return Ok(step.made);
            }
        }
        Ok(0)
    }
}

fn remember(window: &mut Vec<u8>, made: &[u8]) {
    window.extend_from_slice(&made[made.len().saturating_sub(WINDOW)..]);
    if window.len() > 4 * WINDOW {
        window.drain(..window.len() - WINDOW);
    }
}

/// A part of a file: where it begins in the tar, its length and digest.
type Part = (u64, u64, Digest);

/// Cuts files at the beginnings of spans.
struct Cutter<'a, S> {
    sink: &'a mut S,
    course: &'a Course,
    /// The parts of each file that has content.
    files: Vec<Vec<Part>>,
    open: Option<(u64, Hasher)>,
    /// Where the span that was being read after the last write begins.
    before: u64,
}

impl<S> Cutter<'_, S> {
    fn cut(&mut self) {
        if let Some((start, hasher)) = self.open.take().filter(|(_, hasher)| hasher.length() > 0) {
            self.files.last_mut().expect("a file has begun").push((start, hasher.length(), hasher.finish()));
        }
    }
}

impl<S: FileSink> FileSink for Cutter<'_, S> {
    fn begin(&mut self) -> Result<()> {
        self.files.push(Vec::new());
        self.open = None;
        self.sink.begin()
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        let latest = self.course.latest.get();
        let start = self.course.at.get() - piece.len() as u64;
        // A span that began behind this piece is for the next one.
        let begun = if latest <= start { latest } else { self.before };
        self.before = latest;
        if self.open.as_ref().is_some_and(|(from, _)| begun > *from && begun <= start) {
            self.cut();
        }
        self.open.get_or_insert_with(|| (start, Hasher::default())).1.update(piece);
        self.sink.write(piece)
    }

    fn finish(&mut self) -> Result<Digest> {
        self.cut();
        self.sink.finish()
    }
}

/// Gives the files their chunks.
fn lay_out(index: &LayerIndex, files: Vec<Vec<Part>>, spans: Vec<(u64, Span)>, blob_len: u64) -> Result<SeekIndex> {
    let mut index = index.clone();
    let mut starts = Vec::new();
    let mut files = files.into_iter();
    for entry in &mut index.entries {
        let EntryKind::File(content) = &mut entry.kind else { continue };
        if content.size == 0 {
            continue;
        }
        let mut file_offset = 0;
        for (at, len, digest) in files.next().unwrap_or_default() {
            let number = spans.partition_point(|(from, _)| *from <= at) - 1;
            let (from, Span { blob_offset, .. }) = &spans[number];
            let end = spans.get(number + 1).map_or(blob_len, |(_, next)| next.blob_offset);
            starts.push(at - from);
            content.chunks.push(Chunk {
                file_offset,
                len,
                blob_offset: *blob_offset,
                blob_len: end - blob_offset,
                digest,
                zeros: false,
            });
            file_offset += len;
        }
        if file_offset != content.size {
            let why = format!("{file_offset} bytes passed of a file of {}", content.size);
            return Err(Error::new(Outcome::Io, "recording where files are").because(why));
        }
    }
    Ok(SeekIndex { index, blob_len, spans: spans.into_iter().map(|(_, span)| span).collect(), starts })
}
