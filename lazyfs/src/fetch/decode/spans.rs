//! Decoding by spans: what is decompressed of a span goes to every piece that has bytes in it, and the rest is its gap.
//!
//! ```text
//! span:  entered -> gap, payload, gap, payload, … -> its bytes end --> Gap
//!                        \-- to the piece whose chunk it is; the last chunk --> Stored
//!           \-- undecodable, or a chunk's bytes end before it --> Damaged for every piece that has a chunk in it
//! ```
//!
//! A piece may go on in the next span. The bytes of spans in which nobody has anything are skipped. The bytes may end in the middle of the last
//! span, behind what is wanted of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::image::Layer;
use super::{Event, OUT, OpenPiece, Segment, usize_of};
use crate::digest::Digest;
use crate::error::Result;
use crate::layer::Chunk;
use crate::layer::spans::{Entered, Payload, Spans};
use crate::store::Store;

/// See the module.
pub(in super::super) struct SpanDecoder<'a> {
    store: &'a Store,
    layer: &'a Layer,
    spans: Arc<Spans>,
    position: u64,
    segments: Vec<Progress<'a>>,
    current: Option<OpenSpan>,
    out: Vec<u8>,
}

/// A segment and what has become of it.
enum Progress<'a> {
    Waiting(Segment),
    Open(Box<OpenPiece<'a>>),
    Done,
}

impl Progress<'_> {
    /// The chunk that comes next.
    fn chunk(&self) -> Option<&Chunk> {
        match self {
            Self::Waiting(Segment::Piece(plan)) => plan.chunks.first(),
            Self::Open(piece) => piece.plan.chunks.get(piece.chunk),
            Self::Waiting(Segment::Gap(_)) | Self::Done => None,
        }
    }
}

/// The span that is being read.
struct OpenSpan {
    number: usize,
    end: u64,
    /// `None` where nobody has anything in it, or nobody any more.
    entered: Option<Entered>,
    /// Bytes of output so far.
    at: u64,
    payloads: Vec<Payload>,
    /// Number of the payload that comes next.
    next: usize,
    /// The segments that want the content with this digest.
    wanted: HashMap<Digest, Vec<usize>>,
    /// Its gap, where that is missing.
    gap: Option<Vec<u8>>,
    /// The segment that wants the gap.
    gap_segment: Option<usize>,
    /// The bytes of the blob that came of it.
    head: Vec<u8>,
}

impl<'a> SpanDecoder<'a> {
    /// A machine for these segments, ascending.
    pub fn new(store: &'a Store, layer: &'a Layer, spans: Arc<Spans>, segments: Vec<Segment>) -> Self {
        let position = segments.first().map_or(0, |segment| segment.range().start);
        let segments = segments.into_iter().map(Progress::Waiting).collect();
        Self { store, layer, spans, position, segments, current: None, out: vec![0; OUT] }
    }

    /// Takes the next bytes. An error is a failure of the local store; damage is an event.
    pub fn push(&mut self, mut bytes: &[u8], events: &mut dyn FnMut(Event)) -> Result<()> {
        while !bytes.is_empty() {
            if self.current.is_none() {
                self.enter(events)?;
            }
            let Some(span) = &mut self.current else { return Ok(()) };
            let len = usize_of(span.end - self.position).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            if span.entered.is_some() {
                span.head.extend_from_slice(now);
            }
            self.decompress(now, events)?;
            self.position += len as u64;
            bytes = later;
            match self.current.as_ref().is_some_and(|span| span.end == self.position) {
                true => self.leave(events)?,
                false => self.miss(events)?,
            }
        }
        Ok(())
    }

    /// The span that has been read in part: where it begins, and its bytes so far.
    pub fn head(&self) -> Option<(u64, &[u8])> {
        let span = self.current.as_ref().filter(|span| span.entered.is_some())?;
        Some((self.spans.range(span.number).start, &span.head))
    }

    /// Begins the span at the position.
    fn enter(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(number) = self.spans.at(self.position) else {
            // The table was made with another index of the layer.
            for nth in 0..self.segments.len() {
                self.damage(nth, "no span of the layer begins there", events)?;
            }
            return Ok(());
        };
        let range = self.spans.range(number);
        let payloads: Vec<Payload> = self.spans.payloads(number).collect();
        let (mut wanted, mut gap_segment) = (HashMap::<Digest, Vec<usize>>::new(), None);
        let mut strays = Vec::new();
        for (nth, segment) in self.segments.iter().enumerate() {
            if let Progress::Waiting(Segment::Gap(gap)) = segment
                && gap.start == range.start
            {
                gap_segment = Some(nth);
            }
            let Some(chunk) = segment.chunk().filter(|chunk| chunk.blob_offset == range.start) else { continue };
            match payloads.iter().any(|payload| payload.digest == chunk.digest && payload.len == chunk.len) {
                true => wanted.entry(chunk.digest).or_default().push(nth),
                false => strays.push(nth),
            }
        }
        for nth in strays {
            self.damage(nth, "its span has no such bytes", events)?;
        }
        let mut entered = None;
        if !wanted.is_empty() || gap_segment.is_some() {
            match self.spans.enter(number) {
                Ok(decompressor) => entered = Some(decompressor),
                Err(e) => self.damage_all(std::mem::take(&mut wanted), &format!("its span cannot be entered: {e}"), events)?,
            }
        }
        // It costs nothing where all of the span comes anyway.
        let gap = self.layer.misses_gap(range.start).then(Vec::new);
        let (at, next, head) = (0, 0, Vec::new());
        self.current = Some(OpenSpan { number, end: range.end, entered, at, payloads, next, wanted, gap, gap_segment, head });
        Ok(())
    }

    fn decompress(&mut self, mut bytes: &[u8], events: &mut dyn FnMut(Event)) -> Result<()> {
        let mut out = std::mem::take(&mut self.out);
        let mut result = Ok(());
        while let Some(entered) = self.current.as_mut().and_then(|span| span.entered.as_mut()) {
            match entered.step(bytes, &mut out) {
                Ok((taken, made)) => {
                    bytes = &bytes[taken..];
                    result = self.distribute(&out[..made], events);
                    let goes_on = !bytes.is_empty() || made == out.len();
                    if result.is_err() || !goes_on {
                        break;
                    }
                    if (taken, made) == (0, 0) {
                        result = self.spoil("the decompressor does not go on", events);
                        break;
                    }
                }
                Err(e) => {
                    result = self.spoil(&e.to_string(), events);
                    break;
                }
            }
        }
        self.out = out;
        result
    }

    /// Hands output to whom it belongs.
    fn distribute(&mut self, mut made: &[u8], events: &mut dyn FnMut(Event)) -> Result<()> {
        while !made.is_empty() {
            let Some(span) = &mut self.current else { return Ok(()) };
            let (start, end) = span.payloads.get(span.next).map_or((u64::MAX, u64::MAX), |p| (p.start, p.end()));
            let is_payload = span.at >= start;
            let len = usize_of(if is_payload { end } else { start } - span.at).min(made.len());
            let (now, later) = made.split_at(len);
            span.at += len as u64;
            made = later;
            if !is_payload {
                if let Some(gap) = &mut span.gap {
                    gap.extend_from_slice(now);
                }
                continue;
            }
            let digest = span.payloads[span.next].digest;
            let is_complete = span.at == end;
            let takers = if is_complete { span.wanted.remove(&digest) } else { span.wanted.get(&digest).cloned() };
            if is_complete {
                span.next += 1;
            }
            for nth in takers.unwrap_or_default() {
                self.hand(nth, now, is_complete, events)?;
            }
        }
        Ok(())
    }

    /// Gives a piece some bytes of its chunk.
    fn hand(&mut self, nth: usize, bytes: &[u8], is_complete: bool, events: &mut dyn FnMut(Event)) -> Result<()> {
        if let Progress::Waiting(Segment::Piece(plan)) = &self.segments[nth] {
            self.segments[nth] = Progress::Open(Box::new(OpenPiece::new(self.store, plan.clone())?));
        }
        let Progress::Open(piece) = &mut self.segments[nth] else { return Ok(()) };
        piece.put(bytes)?;
        if is_complete {
            piece.may_end = true;
            piece.end_chunk(events)?;
        }
        // What comes of it next may be in the same span.
        let next = piece.plan.chunks.get(piece.chunk).filter(|_| is_complete && piece.output.is_some());
        if let (Some(chunk), Some(span)) = (next, &mut self.current)
            && chunk.blob_offset == self.spans.range(span.number).start
        {
            span.wanted.entry(chunk.digest).or_default().push(nth);
        }
        if piece.output.is_none() {
            self.segments[nth] = Progress::Done;
        } else if piece.chunk == piece.plan.chunks.len()
            && let Progress::Open(piece) = std::mem::replace(&mut self.segments[nth], Progress::Done)
        {
            piece.close(events)?;
        }
        Ok(())
    }

    /// Ends the span that has been read.
    fn leave(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(span) = self.current.take() else { return Ok(()) };
        self.damage_all(span.wanted, "its span ends before it", events)?;
        let is_whole = span.entered.is_some() && span.next == span.payloads.len();
        let offset = self.spans.range(span.number).start;
        match span.gap {
            Some(gap) if is_whole => events(Event::Gap(offset, gap)),
            None if is_whole && self.layer.gaps.get().is_none() => events(Event::Span(offset, span.head)),
            _ => {}
        }
        if let Some(nth) = span.gap_segment {
            self.segments[nth] = Progress::Done;
        }
        Ok(())
    }

    /// Gives up what ought to have come out of the bytes so far.
    fn miss(&mut self, events: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(span) = &self.current else { return Ok(()) };
        let (segments, position) = (&self.segments, self.position);
        let is_late = |nth: &usize| segments[*nth].chunk().is_some_and(|chunk| chunk.blob_offset + chunk.blob_len <= position);
        let late: Vec<usize> = span.wanted.values().flatten().copied().filter(is_late).collect();
        for nth in late {
            if let Some(span) = &mut self.current {
                span.wanted.values_mut().for_each(|takers| takers.retain(|taker| *taker != nth));
            }
            self.damage(nth, "its bytes of the span end before it", events)?;
        }
        Ok(())
    }

    /// The rest of the span cannot be decompressed.
    fn spoil(&mut self, why: &str, events: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(span) = &mut self.current else { return Ok(()) };
        span.entered = None;
        let wanted = std::mem::take(&mut span.wanted);
        self.damage_all(wanted, why, events)
    }

    fn damage_all(&mut self, wanted: HashMap<Digest, Vec<usize>>, why: &str, events: &mut dyn FnMut(Event)) -> Result<()> {
        wanted.into_values().flatten().try_for_each(|nth| self.damage(nth, why, events))
    }

    fn damage(&mut self, nth: usize, why: &str, events: &mut dyn FnMut(Event)) -> Result<()> {
        match std::mem::replace(&mut self.segments[nth], Progress::Done) {
            Progress::Open(mut piece) => piece.damage(why.to_owned(), events),
            Progress::Waiting(Segment::Piece(plan)) => {
                OpenPiece::new(self.store, plan)?.damage(why.to_owned(), events);
            }
            Progress::Waiting(Segment::Gap(_)) | Progress::Done => {}
        }
        Ok(())
    }
}
