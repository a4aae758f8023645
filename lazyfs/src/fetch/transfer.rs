//! Carries out one span: range requests into the decoder, and every piece to whoever waits for it the moment it is complete.
//!
//! ```text
//! source --bytes--> transfer task --bounded channel--> blocking thread: decoder -> Cas -> claims land
//! ```
//!
//! A connection that breaks is taken up where it broke; the decoder just waits. A background transfer makes room when a program
//! begins to wait: it ends behind the piece that is arriving, lets go of the others, and pauses until it is quiet again or until the
//! program turns out to wait for that very piece.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::Fetcher;
use super::backoff::Backoff;
use super::decode::{Damage, Decoding, Event, Segment};
use super::image::{Image, Layer};
use super::inflight::{Claim, Control, Landing, Origin};
use super::payer::Payer;
use super::piece::PieceId;
use super::span::cut;
use super::turns::{Kind, Turn};
use crate::error::{Error, Outcome, Result};
use crate::observe;
use crate::observe::spans::{Kind as SpanKind, Span};
use crate::source::ByteStream;

/// Portions between network and decoder. A portion is what one read from a connection gave, some tens of kilobytes.
const AHEAD: usize = 8;

/// So many bytes of one response are progress, even if the response fails then.
pub(super) const ENOUGH: u64 = 20 << 10;

/// A span that is to be fetched.
pub(super) struct Transfer {
    pub image: Arc<Image>,
    pub layer: usize,
    /// Ascending, not overlapping, not empty.
    pub segments: Vec<Segment>,
    /// The right to bring each of the pieces in `segments`.
    pub claims: Vec<Claim>,
    pub origin: Origin,
    pub control: Arc<Control>,
    /// Who is charged for it.
    pub payer: Payer,
    /// What its requests take turns as; none: it rests while programs wait, and takes no turns.
    pub kind: Option<Kind>,
    /// The pieces that a program waits for.
    pub wanted: Vec<PieceId>,
    /// Their extent; what is around it counts as readahead.
    pub demand: Range<u64>,
}

/// What became of a transfer that ended without an error.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Pieces that came damaged; their claims are still held.
    pub damaged: Vec<(Damage, Claim)>,
    /// Whether it made room before its end.
    pub yielded: bool,
}

/// What the task and the decoding thread share.
struct Arrivals {
    image: Arc<Image>,
    layer: usize,
    claims: Mutex<HashMap<PieceId, Claim>>,
    damaged: Mutex<Vec<Damage>>,
}

/// The task's side.
struct Course<'a> {
    fetcher: &'a Fetcher,
    transfer: &'a Transfer,
    pieces: Vec<Range<u64>>,
    position: u64,
    end: u64,
    yielded: bool,
    /// Requests so far.
    attempts: u64,
}

impl Fetcher {
    /// Carries a transfer out. On an error all its claims end with it: that of a demand as failed, others released.
    pub(super) async fn transfer(self: &Arc<Self>, mut transfer: Transfer, mut backoff: Backoff) -> Result<Report> {
        let claims = std::mem::take(&mut transfer.claims);
        let arrivals = Arc::new(Arrivals {
            image: Arc::clone(&transfer.image),
            layer: transfer.layer,
            claims: Mutex::new(claims.into_iter().map(|claim| (claim.piece(), claim)).collect()),
            damaged: Mutex::default(),
        });
        let (sender, portions) = mpsc::channel(AHEAD);
        let thread = {
            let (fetcher, arrivals, segments) = (Arc::clone(self), Arc::clone(&arrivals), transfer.segments.clone());
            tokio::task::spawn_blocking(move || arrivals.decode(&fetcher, segments, portions))
        };
        let mut course = Course::new(self, &transfer);
        let mut span = course.begin_span();
        course.begin(&sender).await;
        let fetched = course.run(&sender, &arrivals, &mut backoff).await;
        course.describe(&mut span);
        drop(sender);
        let decoded = match thread.await {
            Ok(decoded) => decoded,
            Err(e) => Err(Error::new(Outcome::Io, "decoding a layer").because(e)),
        };
        // The local failure is the cause where there is one: it ends the reading too.
        let start = transfer.segments.first().map_or(0, |segment| segment.range().start);
        let decoded = decoded.map_err(|e| e.during(format!("storing what came of {}", transfer.image.at(transfer.layer, start))));
        match decoded.and(fetched) {
            Ok(()) => {
                let damaged = arrivals.take_damaged();
                if !damaged.is_empty() {
                    let image = &transfer.image;
                    image.content.source.distrust(&image.layers[transfer.layer].record.digest);
                }
                Ok(Report { damaged, yielded: course.yielded })
            }
            Err(error) => {
                span.fail(&error);
                Err(arrivals.fail(&transfer, error))
            }
        }
    }
}

impl<'a> Course<'a> {
    fn new(fetcher: &'a Fetcher, transfer: &'a Transfer) -> Self {
        let is_piece = |segment: &&Segment| matches!(segment, Segment::Piece(_));
        let pieces = transfer.segments.iter().filter(is_piece).map(Segment::range).collect();
        let position = transfer.segments.first().map_or(0, |segment| segment.range().start);
        let end = transfer.segments.iter().map(|segment| segment.range().end).max().unwrap_or(position);
        Self { fetcher, transfer, pieces, position, end, yielded: false, attempts: 0 }
    }

    /// One is made where a wait that is traced caused the transfer.
    fn begin_span(&self) -> Span {
        let Some(cause) = self.transfer.control.cause() else { return Span::default() };
        let mut span = self.fetcher.observer.tracer().begin("fetch", SpanKind::Client, Some(cause));
        let image = &self.transfer.image;
        span.note_image(&image.content.image, &image.content.name);
        span.note("towline.layer", || image.layers[self.transfer.layer].record.digest.to_string());
        span.note("towline.offset", || self.position);
        span.note("towline.length", || self.end - self.position);
        span.note("towline.origin", || seen(self.transfer.origin).name());
        span
    }

    fn describe(&self, span: &mut Span) {
        let image = &self.transfer.image;
        let begin = self.transfer.segments.first().map_or(self.position, |segment| segment.range().start);
        span.note("towline.bytes", || self.position - begin);
        span.note("towline.attempts", || self.attempts);
        span.note("towline.source", || image.content.source.name());
        if span.is_recorded()
            && let Some(host) = image.content.source.host_of(&image.layers[self.transfer.layer].record.digest)
        {
            span.note("server.address", || host);
        }
    }

    /// Hands on what is here of the first span.
    async fn begin(&mut self, sender: &mpsc::Sender<Bytes>) {
        let layer = &self.transfer.image.layers[self.transfer.layer];
        if let Some(mut head) = layer.heads.get(self.position) {
            head.truncate(usize::try_from(self.end - self.position).unwrap_or(usize::MAX));
            self.position += head.len() as u64;
            // Whether the decoder has stopped is seen by what follows.
            drop(sender.send(head.into()).await);
        }
    }

    async fn run(&mut self, sender: &mpsc::Sender<Bytes>, arrivals: &Arrivals, backoff: &mut Backoff) -> Result<()> {
        let image = &self.transfer.image;
        let blob = image.layers[self.transfer.layer].record.digest;
        while self.position < self.end {
            if self.may_yield() {
                tokio::select! {
                    () = self.fetcher.gate.quiet(self.fetcher.config.background_idle) => {}
                    () = self.transfer.control.urged() => {}
                }
            }
            let before = self.position;
            let stop = if self.may_yield() { self.end.min(self.position + self.fetcher.budget(image)) } else { self.end };
            self.attempts += 1;
            let mut turn = self.turn(stop).await;
            // Others may have come while it waited for its turn.
            let stop = self.largest(stop);
            let (source, range) = (&image.content.source, self.position..stop);
            let opened = if self.is_waited_for() { source.open_urgently(blob, range) } else { source.open(blob, range) };
            let failure = match opened.await {
                Ok(stream) => self.receive(stream, stop, sender, arrivals, turn.as_mut()).await,
                Err(error) => Err(error),
            };
            // Neither retries nor pauses take a place from others.
            drop(turn);
            // Whoever sends less before each failure might as well send nothing: patience with it has an end.
            if self.position - before >= ENOUGH {
                backoff.reset();
            }
            if let Err(error) = failure {
                if sender.is_closed() {
                    return Ok(());
                }
                let error = self.transfer.image.failed(self.transfer.layer, self.position, error);
                backoff.pause(error).await?;
            }
        }
        Ok(())
    }

    /// Waits for the turn to ask for what is missing up to `stop`.
    async fn turn(&self, stop: u64) -> Option<Turn> {
        let bytes = self.largest(stop) - self.position;
        Some(self.fetcher.turns.turn(self.transfer.payer, self.transfer.kind?, bytes).await)
    }

    /// Whether a program waits for what comes next, and not only somebody who supposes that one will.
    fn is_waited_for(&self) -> bool {
        let is_overtaken = self.transfer.origin == Origin::Background && self.transfer.control.is_urgent();
        self.transfer.origin == Origin::Demand || is_overtaken
    }

    /// Where a request that should go to `stop` ends if others want the line as well.
    fn largest(&self, stop: u64) -> u64 {
        let largest = self.transfer.kind.map(|kind| self.fetcher.turns.largest(&self.transfer.payer, kind));
        largest.map_or(stop, |largest| stop.min(self.position.saturating_add(largest)))
    }

    /// Reads one response.
    async fn receive(
        &mut self,
        mut stream: ByteStream,
        stop: u64,
        sender: &mpsc::Sender<Bytes>,
        arrivals: &Arrivals,
        mut turn: Option<&mut Turn>,
    ) -> Result<()> {
        while self.position < stop.min(self.end) {
            let Some(portion) = stream.next().await.transpose()? else {
                let tried = format!("reading {}", self.transfer.image.content.source.name());
                return Err(Error::new(Outcome::Unavailable, tried).because("the response ended early"));
            };
            let start = self.position;
            self.position += portion.len() as u64;
            self.count(start, portion.len() as u64);
            if let Some(turn) = &mut turn {
                turn.used(portion.len() as u64);
            }
            if sender.send(portion).await.is_err() {
                let tried = "storing what was received";
                return Err(Error::new(Outcome::Io, tried).because("the decoder has stopped"));
            }
            let left = stop.min(self.end).saturating_sub(self.position);
            let in_the_way = left > self.fetcher.config.yield_bytes && self.fetcher.gate.is_busy();
            if self.transfer.origin == Origin::Background && in_the_way {
                self.make_room(arrivals);
                // The rest of the response would hold the line: whoever waits needs it now.
                if self.may_yield() {
                    return Ok(());
                }
            }
            let is_in_the_way =
                |kind| self.fetcher.turns.is_in_the_way(&self.transfer.payer, kind, stop.saturating_sub(self.position));
            if self.transfer.kind.is_some_and(is_in_the_way) {
                // It goes on in small requests, in turn with those of the others.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Readahead does not: it is small, and most likely what a program that waits now wants next.
    fn may_yield(&self) -> bool {
        self.transfer.origin == Origin::Background && !self.transfer.control.is_urgent()
    }

    fn make_room(&mut self, arrivals: &Arrivals) {
        let end = cut(&self.pieces, self.position, self.fetcher.config.yield_bytes, self.end);
        if end < self.end {
            (self.end, self.yielded) = (end, true);
            let kept = self.transfer.segments.iter().filter(|segment| segment.range().start < end);
            arrivals.keep_only(kept);
        }
    }

    fn count(&self, start: u64, len: u64) {
        let Range { start: from, end } = self.transfer.demand;
        let demanded = (start + len).min(end).saturating_sub(start.max(from));
        match self.transfer.origin {
            Origin::Demand => {
                self.counted(Origin::Demand, demanded);
                self.counted(Origin::Readahead, len - demanded);
            }
            other => self.counted(other, len),
        }
    }

    fn counted(&self, origin: Origin, bytes: u64) {
        self.transfer.image.count_fetched(origin, bytes);
        self.fetcher.observer.fetched(seen(origin), bytes);
    }
}

/// An origin as it is told.
fn seen(origin: Origin) -> observe::Origin {
    match origin {
        Origin::Demand => observe::Origin::Demand,
        Origin::Readahead | Origin::Prefetch => observe::Origin::Prefetch,
        Origin::Background => observe::Origin::Background,
    }
}

impl Arrivals {
    /// Runs on a blocking thread until the portions end.
    fn decode(&self, fetcher: &Fetcher, segments: Vec<Segment>, mut portions: mpsc::Receiver<Bytes>) -> Result<()> {
        let layer = &self.image.layers[self.layer];
        let mut decoder = Decoding::new(&fetcher.store, layer, segments)?;
        let mut gap_failed = Ok(());
        let is_spanned = layer.record.kind.is_spanned();
        let keep_head = |decoder: &Decoding<'_>| {
            if let Some((span, head)) = decoder.head() {
                layer.heads.put(&fetcher.store.gaps_dir(), span, head);
            }
        };
        while let Some(portion) = portions.blocking_recv() {
            let mut stored = Vec::new();
            let pushed = decoder.push(&portion, &mut |event| match event {
                Event::Stored(piece) if is_spanned => stored.push(piece),
                Event::Stored(piece) => self.land(fetcher, &piece),
                Event::Damaged(damage) => {
                    layer.heads.forget(damage.offset);
                    self.damaged().push(damage);
                }
                Event::Span(offset, bytes) => layer.heads.put(&fetcher.store.gaps_dir(), offset, &bytes),
                Event::Gap(offset, bytes) => match self.keep_gap(layer, offset, &bytes) {
                    Ok(()) => layer.heads.forget(offset),
                    Err(e) => gap_failed = Err(e),
                },
            });
            if !stored.is_empty() {
                // Before anybody hears of it: what a program wants next is often behind it in the same span.
                keep_head(&decoder);
                stored.iter().for_each(|piece| self.land(fetcher, piece));
            }
            pushed?;
            std::mem::replace(&mut gap_failed, Ok(()))?;
        }
        keep_head(&decoder);
        Ok(())
    }

    /// Tells everybody that a piece is in the store.
    fn land(&self, fetcher: &Fetcher, piece: &PieceId) {
        fetcher.stored(piece);
        if let Some(claim) = self.claims().remove(piece) {
            claim.land(Landing::Stored);
        }
    }

    fn keep_gap(&self, layer: &Layer, offset: u64, bytes: &[u8]) -> Result<()> {
        // Two transfers may have read the same span.
        if layer.record.kind.is_spanned() && !layer.misses_gap(offset) {
            return Ok(());
        }
        layer.keep_gap(offset, bytes)?;
        self.image.count_local(layer, layer.gap_bytes(offset, bytes.len() as u64));
        Ok(())
    }

    /// Lets go of all pieces but these.
    fn keep_only<'a>(&self, segments: impl Iterator<Item = &'a Segment>) {
        let kept: HashSet<PieceId> = segments
            .filter_map(|segment| match segment {
                Segment::Piece(plan) => Some(plan.id),
                Segment::Gap(_) => None,
            })
            .collect();
        self.claims().retain(|piece, _| kept.contains(piece));
    }

    fn take_damaged(&self) -> Vec<(Damage, Claim)> {
        let mut claims = self.claims();
        self.damaged().drain(..).filter_map(|damage| Some((claims.remove(&damage.piece)?, damage))).map(|(c, d)| (d, c)).collect()
    }

    /// Ends all flights after an error; whoever waits for the pieces that a demand is about hears of it.
    fn fail(&self, transfer: &Transfer, error: Error) -> Error {
        let mut claims = self.claims();
        if transfer.origin != Origin::Demand {
            claims.clear();
            return error;
        }
        let shared = Arc::new(error);
        for claim in transfer.wanted.iter().filter_map(|piece| claims.remove(piece)) {
            claim.land(Landing::Failed(Arc::clone(&shared)));
        }
        claims.clear();
        Error::shared("bringing what a program waits for", &shared)
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<PieceId, Claim>> {
        self.claims.lock().expect("no holder of this lock panics")
    }

    fn damaged(&self) -> MutexGuard<'_, Vec<Damage>> {
        self.damaged.lock().expect("no holder of this lock panics")
    }
}
