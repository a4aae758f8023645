//! Recording where a gzip stream can be entered, and what of each file lies between two such places, while it is decompressed once.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, ErrorKind, Read};
use std::rc::Rc;

use towline_sys::inflate::{Inflate, Place, WINDOW};

use super::SeekIndex;
use super::reach::reach;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::spans::{Entrance, MAX_SPANS, Span, pack_window};
use crate::layer::tar::{self, FileSink};
use crate::layer::{Chunk, EntryKind, LayerIndex};
use crate::table::CHUNKED_FROM;

/// A span begins after so many bytes of output at the earliest: what is read before what a program waits for, against some 2 KiB of window for
/// each. Of the six images of the bench, what is fetched is least, index included, between 128 and 256 KiB.
pub(super) const SPAN: u64 = 192 << 10;
/// A file is cut after so many bytes, so that whoever wants some of it need not wait for all that its span has of it.
const CUT: u64 = 64 << 10;

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
        pending: None,
        blob_at: 0,
        last_byte: 0,
        hasher: Hasher::default(),
        ended: false,
    };
    let mut cutter = Cutter { sink, course: &course, files: Vec::new(), open: None, before: 0, blob_end: 0 };
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
    /// Bytes of the blob that they were made of.
    blob_at: Cell<u64>,
    /// Where in the tar the file that is being read is cut next; one read does not cross it.
    cut: Cell<u64>,
    /// Where the span that is being read begins in the tar.
    latest: Cell<u64>,
    /// Each span, and where it begins in the tar.
    entrances: RefCell<Vec<(u64, Span)>>,
}

impl Course {
    /// Begins a span if one is due; its number.
    fn enter(&self, blob_offset: u64, entrance: Entrance) -> Option<usize> {
        let mut entrances = self.entrances.borrow_mut();
        let is_due = entrances.is_empty() || self.is_due();
        if !is_due || entrances.len() == MAX_SPANS {
            return None;
        }
        self.latest.set(self.at.get());
        entrances.push((self.at.get(), Span { blob_offset, entrance }));
        Some(entrances.len() - 1)
    }

    fn is_due(&self) -> bool {
        self.at.get() - self.latest.get() >= SPAN
    }
}

/// Decompresses. One read never crosses the beginning of a span, nor where a file is cut.
struct Recorder<R> {
    blob: R,
    inflate: Option<Inflate>,
    course: Rc<Course>,
    /// The last output, at least [`WINDOW`] bytes of it where there were as many.
    window: Vec<u8>,
    /// The latest span, until it is known what it refers to.
    pending: Option<Pending>,
    /// Bytes of the blob that were taken.
    blob_at: u64,
    last_byte: u8,
    hasher: Hasher,
    ended: bool,
}

/// A span whose window is not packed yet.
struct Pending {
    /// Its number.
    number: usize,
    bits: u8,
    value: u8,
    window: Vec<u8>,
    /// The bytes of the blob that came since.
    bytes: Vec<u8>,
    /// The bytes of output that they made.
    made: usize,
}

impl Pending {
    /// The window, with zeros for what nothing refers to, and without those at its beginning.
    fn pack(mut self) -> io::Result<Vec<u8>> {
        if let Some(marks) = reach(&self.bytes, self.bits, self.value, self.window.len()) {
            let unused = self.window.iter_mut().zip(&marks).filter(|(_, is_used)| !**is_used);
            unused.for_each(|(byte, _)| *byte = 0);
            self.window.drain(..marks.iter().position(|is_used| *is_used).unwrap_or(marks.len()));
        }
        pack_window(&self.window)
    }
}

impl<R> Recorder<R> {
    /// Enters the window of the latest span, now that all that can refer to it has passed.
    fn settle(&mut self) -> io::Result<()> {
        if let Some(pending) = self.pending.take() {
            let number = pending.number;
            let packed = pending.pack()?;
            if let Entrance::Between { window, .. } = &mut self.course.entrances.borrow_mut()[number].1.entrance {
                *window = packed;
            }
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let until_cut = usize::try_from(self.course.cut.get().saturating_sub(self.course.at.get())).unwrap_or(usize::MAX);
        let room = if until_cut == 0 { buffer.len() } else { until_cut.min(buffer.len()) };
        let buffer = &mut buffer[..room];
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
            if let Some(pending) = &mut self.pending {
                pending.bytes.extend_from_slice(&input[..step.taken]);
                pending.made += step.made;
            }
            self.blob.consume(step.taken);
            self.blob_at += step.taken as u64;
            self.course.blob_at.set(self.blob_at);
            self.course.at.set(self.course.at.get() + step.made as u64);
            self.hasher.update(&buffer[..step.made]);
            remember(&mut self.window, &buffer[..step.made]);
            if step.place == Place::End || self.pending.as_ref().is_some_and(|pending| pending.made >= WINDOW) {
                self.settle()?;
            }
            match step.place {
                Place::End => self.inflate = None,
                Place::Between(bits) if self.course.is_due() => {
                    let value = if bits == 0 { 0 } else { self.last_byte >> (8 - bits) };
                    if let Some(number) = self.course.enter(self.blob_at, Entrance::Between { bits, value, window: Vec::new() }) {
                        let window = self.window[self.window.len().saturating_sub(WINDOW)..].to_vec();
                        self.pending = Some(Pending { number, bits, value, window, bytes: Vec::new(), made: 0 });
                    }
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

/// A part of a file.
struct Part {
    /// Where it begins in the tar.
    at: u64,
    len: u64,
    digest: Digest,
    /// The blob is needed up to here for it.
    blob_end: u64,
}

/// Cuts files at the beginnings of spans.
struct Cutter<'a, S> {
    sink: &'a mut S,
    course: &'a Course,
    /// The parts of each file that has content.
    files: Vec<Vec<Part>>,
    open: Option<(u64, Hasher)>,
    /// Where the span that was being read after the last write begins.
    before: u64,
    /// Where in the blob what was written last ends.
    blob_end: u64,
}

impl<S> Cutter<'_, S> {
    fn cut(&mut self) {
        if let Some((at, hasher)) = self.open.take().filter(|(_, hasher)| hasher.length() > 0) {
            let part = Part { at, len: hasher.length(), digest: hasher.finish(), blob_end: self.blob_end };
            self.files.last_mut().expect("a file has begun").push(part);
        }
    }
}

impl<S: FileSink> FileSink for Cutter<'_, S> {
    fn begin(&mut self) -> Result<()> {
        self.files.push(Vec::new());
        self.open = None;
        self.course.cut.set(self.course.at.get() + CUT);
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
        self.blob_end = self.course.blob_at.get();
        if self.course.at.get() == self.course.cut.get() {
            self.cut();
            self.course.cut.set(self.course.at.get() + CUT);
        }
        self.sink.write(piece)
    }

    fn finish(&mut self) -> Result<Digest> {
        self.cut();
        self.course.cut.set(0);
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
        let span_of = |part: &Part| spans.partition_point(|(from, _)| *from <= part.at) - 1;
        let mut parts = files.next().unwrap_or_default();
        // What is read as a whole anyway is one chunk.
        if let [first, .., last] = parts.as_slice()
            && content.size < CHUNKED_FROM
            && span_of(first) == span_of(last)
        {
            parts = vec![Part { at: first.at, len: content.size, digest: content.digest, blob_end: last.blob_end }];
        }
        let mut file_offset = 0;
        for part in parts {
            let (from, Span { blob_offset, .. }) = &spans[span_of(&part)];
            starts.push(part.at - from);
            content.chunks.push(Chunk {
                file_offset,
                len: part.len,
                blob_offset: *blob_offset,
                blob_len: part.blob_end - blob_offset,
                digest: part.digest,
                zeros: false,
            });
            file_offset += part.len;
        }
        if file_offset != content.size {
            let why = format!("{file_offset} bytes passed of a file of {}", content.size);
            return Err(Error::new(Outcome::Io, "recording where files are").because(why));
        }
    }
    Ok(SeekIndex { index, blob_len, spans: spans.into_iter().map(|(_, span)| span).collect(), starts })
}
