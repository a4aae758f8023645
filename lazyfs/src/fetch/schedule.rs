//! Who fetches what, and when.
//!
//! ```text
//! demand      at once; one request per file, extended to small files before and to what is behind it; a few at a time, in turn with those of
//!             other containers (turns); of large files only what a program reads (large)
//! prefetch    what a profile of the image names, in its order, over several connections; nothing is guessed meanwhile
//! ahead       at once: files that a program is known to open next
//! runs        directories in which programs open one file after the other, one part after the other, beside demands
//! readahead   places where programs just waited are fetched further once nobody has waited for a moment
//! background  once the start that a profile foretells is over and nobody has waited for a while, in requests that grow in quiet times: the
//!             rest of programs that were touched (programs), then a sweep over all layers in blob order
//! ```
//!
//! The reason for runs and readahead: programs open files one after the other, and between two of them the line is idle. What lies behind
//! the files that they opened last is what they open next more often than anything else.

use std::sync::Arc;
use std::time::Duration;

use super::Fetcher;
use super::backoff::{Backoff, may_pass};
use super::image::{Image, Place};
use super::inflight::{Claim, Claimed, Control, Landing, Origin};
use super::payer::{Caller, Payer};
use super::piece::PieceId;
use super::span::{Limits, Part, plan};
use super::transfer::Transfer;
use super::turns::Kind;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// How long a background transfer tries to go on before it lets go of its pieces.
const BACKGROUND_PATIENCE: Duration = Duration::from_millis(50);
/// Pause before the sweep looks again at pieces that somebody else was bringing.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Background requests double in size after each of these without anybody waiting.
const GROW_EVERY: Duration = Duration::from_millis(500);

impl Fetcher {
    /// Brings a file that a program waits for, or waits with it for whoever brings it.
    pub(super) async fn bring(self: &Arc<Self>, file: Digest, caller: Caller) -> Result<()> {
        loop {
            if self.store.cas().contains(&file) {
                return Ok(());
            }
            let (image, layer, nth) = match self.find(&file)? {
                (image, Place::Piece(layer, nth)) => (image, layer, nth),
                (image, Place::Data(layer, range)) => return self.bring_object(image, layer, range, file, caller).await,
            };
            let control = Control::of(caller.cause);
            let (landed, is_ours) = match self.inflight.claim(PieceId::Object(file), &control) {
                Claimed::Theirs(flight) => {
                    flight.control.urge();
                    (flight.landed(), false)
                }
                Claimed::Mine(claim) => {
                    let landed = claim.flight().landed();
                    image.progress.send_modify(|progress| progress.demanded_files += 1);
                    // A task of its own: the program may die, but others may wait for the same file by then.
                    let payer = image.payer(caller.group);
                    tokio::spawn(Arc::clone(self).demanded(image, layer, nth, claim, control, payer));
                    (landed, true)
                }
            };
            match landed.await {
                Landing::Stored => return Ok(()),
                // The patience of whoever began it is at its end, not that of whoever waits here.
                Landing::Failed(error) if !is_ours && may_pass(&error) => {}
                Landing::Failed(error) => return Err(Error::shared(format!("fetching file {file}"), &error)),
                Landing::Pending | Landing::Released => {}
            }
        }
    }

    /// Brings a file that a program is about to open, if that works at once. Claims it only when it is its turn, so that a program which is
    /// faster need not wait for the others.
    pub(super) async fn bring_ahead(self: &Arc<Self>, file: Digest) -> bool {
        let _permit = self.aheads.acquire().await.expect("the semaphore is never closed");
        let Ok((image, Place::Piece(layer, nth))) = self.find(&file) else { return false };
        let control: Arc<Control> = Arc::default();
        control.urge();
        let flight = match self.inflight.claim(PieceId::Object(file), &control) {
            Claimed::Theirs(flight) => {
                flight.control.urge();
                flight
            }
            Claimed::Mine(_) if self.store.cas().contains(&file) => return true,
            Claimed::Mine(claim) => {
                let flight = Arc::clone(claim.flight());
                let transfer = self.make(&image, layer, vec![Part::Piece(nth)], vec![claim], Origin::Readahead, control);
                let transfer = Transfer { kind: Some(Kind::Demand), ..transfer };
                // A task of its own: a program may wait for it by the time that we are given up.
                let this = Arc::clone(self);
                tokio::spawn(async move { this.urgently(transfer).await });
                flight
            }
        };
        matches!(flight.landed().await, Landing::Stored)
    }

    async fn demanded(
        self: Arc<Self>,
        image: Arc<Image>,
        layer: usize,
        nth: usize,
        claim: Claim,
        control: Arc<Control>,
        payer: Payer,
    ) {
        let _seat = self.turns.seat(payer).await;
        if !claim.flight().is_wanted() {
            return; // Everybody who waited was killed.
        }
        let transfer = self.plan_demand(&image, layer, nth, claim, control);
        self.urgently(Transfer { payer, ..transfer }).await;
    }

    /// Carries out a transfer that is as patient as whoever waits for it.
    pub(super) async fn urgently(self: &Arc<Self>, transfer: Transfer) {
        let deadline = self.config.demand_deadline;
        let backoff = || Backoff::new(self.config.backoff_first, self.config.backoff_max, Some(deadline));
        if let Err(error) = self.deliver(transfer, backoff).await {
            tracing::debug!("{}", error.one_line());
        }
    }

    fn plan_demand(&self, image: &Arc<Image>, layer: usize, nth: usize, claim: Claim, control: Arc<Control>) -> Transfer {
        let wanted = image.layers[layer].extents[nth].clone();
        let heat = image.heat(layer, wanted.start, wanted.end);
        let size = wanted.end - wanted.start;
        // Twice near each other is chance, more is a program that walks a directory.
        let least = (self.config.readahead << heat.saturating_sub(2)).min(self.config.readahead_max.max(self.config.readahead));
        // A file that is larger than that keeps the line busy for longer than a round trip by itself.
        let is_guided = image.guide.is_on(true);
        let window = if is_guided { 0 } else { least.saturating_sub(size) };
        let from = if window > 0 { self.begin_before(image, layer, nth) } else { wanted.start };
        let shared = image.layers[layer].record.kind.is_spanned();
        let limits = Limits { budget: wanted.end - from + window, hole: self.config.hole, shared };
        // What is decompressed from the same bytes costs nothing more, and what a span has between files comes with all of it.
        let is_along = |part| image.layers[layer].extent(part).end <= wanted.end;
        let is_apart = |part| image.layers[layer].extent(part).end > from + limits.budget || matches!(part, Part::Gap(_));
        let mut first = Some(claim);
        let mut claims = Vec::new();
        let mut parts = plan(&image.layers[layer].extents, image.layers[layer].gap_ranges(), from, limits, |part| {
            match first.take_if(|_| part == Part::Piece(nth)) {
                Some(claim) => {
                    claims.push(claim);
                    true
                }
                // Large files are not read for what lies beside them.
                None if image.layers[layer].is_large(part) => false,
                None if shared && is_apart(part) => false,
                None if window == 0 && !(shared && is_along(part)) => false,
                None => self.take(image, layer, part, &control, &mut claims) == Take::Mine,
            }
        });
        if let Some(claim) = first {
            // Somebody took what lies before it meanwhile, and left a hole that is too large.
            (parts, claims) = (vec![Part::Piece(nth)], vec![claim]);
        }
        let transfer = self.make(image, layer, parts, claims, Origin::Demand, control);
        let end = transfer.segments.iter().map(|segment| segment.range().end).max().unwrap_or(wanted.end);
        image.cooled(layer, wanted.end, end);
        if !is_guided {
            image.runs.waited(layer, nth, wanted.end);
        }
        image.heated.notify_waiters();
        let id = image.layers[layer].pieces[nth].id(&image.layers[layer].record.digest);
        Transfer { wanted: vec![id], demand: wanted, ..transfer }
    }

    /// Where the request for a file begins: with missing files that end right before it, if they are small. What a program opens next is as
    /// often before as behind, and they delay the file by little.
    fn begin_before(&self, image: &Image, layer: usize, nth: usize) -> u64 {
        let layer = &image.layers[layer];
        let least = layer.extents[nth].start.saturating_sub(self.config.readbehind);
        let mut begin = layer.extents[nth].start;
        for n in (0..nth).rev() {
            let extent = &layer.extents[n];
            if extent.start < least
                || extent.end > begin
                || begin - extent.end > self.config.hole
                || layer.is_local(Part::Piece(n))
                || layer.is_large(Part::Piece(n))
            {
                break;
            }
            begin = extent.start;
        }
        begin
    }

    pub(super) fn make(
        &self,
        image: &Arc<Image>,
        layer: usize,
        parts: Vec<Part>,
        claims: Vec<Claim>,
        origin: Origin,
        control: Arc<Control>,
    ) -> Transfer {
        let segments = parts.into_iter().map(|part| image.segment(layer, part)).collect();
        let (payer, kind) = match origin {
            Origin::Demand => (image.guesser(), Some(Kind::Demand)),
            Origin::Readahead => (image.guesser(), Some(Kind::Guess)),
            // For all containers of the image.
            Origin::Prefetch => (Payer::image(image.content.image), Some(Kind::Guess)),
            Origin::Background => (Payer::image(image.content.image), None),
        };
        Transfer {
            image: Arc::clone(image),
            layer,
            segments,
            claims,
            origin,
            control,
            payer,
            kind,
            wanted: Vec::new(),
            demand: 0..0,
        }
    }

    /// Claims a part for a transfer, if it is worth fetching.
    pub(super) fn take(&self, image: &Image, layer: usize, part: Part, control: &Arc<Control>, claims: &mut Vec<Claim>) -> Take {
        if image.layers[layer].is_local(part) {
            return Take::Nothing;
        }
        let Part::Piece(nth) = part else { return Take::Mine };
        let piece = image.layers[layer].pieces[nth].id(&image.layers[layer].record.digest);
        if image.damage(&piece).is_some() {
            return Take::Nothing;
        }
        match self.inflight.claim(piece, control) {
            Claimed::Theirs(_) => Take::Theirs,
            // Asked after the claim: whoever brought it a moment ago has stored it before letting go.
            Claimed::Mine(_) if image.is_stored(layer, nth, &self.store) => {
                image.mark_local(layer, nth);
                Take::Nothing
            }
            Claimed::Mine(claim) => {
                claims.push(claim);
                Take::Mine
            }
        }
    }

    /// Carries a transfer out, and gives damaged pieces one more try, each with a request of its own.
    async fn deliver(self: &Arc<Self>, transfer: Transfer, backoff: impl Fn() -> Backoff) -> Result<bool> {
        let (image, layer, origin) = (Arc::clone(&transfer.image), transfer.layer, transfer.origin);
        let (control, wanted) = (Arc::clone(&transfer.control), transfer.wanted.clone());
        let (payer, kind) = (transfer.payer, transfer.kind);
        let report = self.transfer(transfer, backoff()).await?;
        for (damage, claim) in report.damaged {
            tracing::warn!(
                "{} of {} came damaged from layer {} at offset {} ({}); asking for it again",
                damage.piece,
                image.content.name,
                image.layers[layer].record.digest,
                damage.offset,
                damage.why
            );
            let (_, nth) = image.find_piece(&damage.piece).expect("it was planned from the table");
            let again = self.make(&image, layer, vec![Part::Piece(nth)], vec![claim], origin, Arc::clone(&control));
            let demand = if wanted.contains(&damage.piece) { image.layers[layer].extents[nth].clone() } else { 0..0 };
            let again = Transfer { wanted: vec![damage.piece], demand, payer, kind, ..again };
            for (damage, claim) in self.transfer(again, backoff()).await?.damaged {
                let error = image.give_up(layer, &damage);
                tracing::error!("{}", error.one_line());
                claim.land(Landing::Failed(error));
            }
        }
        Ok(report.yielded)
    }

    /// Does nothing but fetch around the places where programs wait, until none has waited for a while: what takes time from a starting
    /// container has to come later.
    pub(super) async fn accompany(self: &Arc<Self>, image: &Arc<Image>) {
        while let Some(hot) = self.turn(image).await {
            let backoff = || Backoff::new(self.config.backoff_first, self.config.backoff_max, Some(BACKGROUND_PATIENCE));
            if let Err(error) = self.deliver(hot, backoff).await {
                // The sweep will meet it too, if it lasts, and say so.
                return tracing::debug!("{}", error.one_line());
            }
        }
        image.guide.start_is_over().await;
    }

    /// Fetches everything that is missing; ends when nothing is, but for pieces that are damaged.
    pub(super) async fn sweep(self: &Arc<Self>, image: &Arc<Image>) {
        let mut cursor = Cursor::default();
        let mut pauses = self.pauses();
        loop {
            image.guide.start_is_over().await;
            let hot = self.turn(image).await;
            let transfer = match hot.or_else(|| self.plan_program(image)).or_else(|| self.plan_sweep(image, &mut cursor)) {
                Some(transfer) => transfer,
                None if std::mem::take(&mut cursor).missed => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                None => return,
            };
            let begin = (transfer.layer, transfer.segments.first().map_or(0, |segment| segment.range().start));
            let backoff = || Backoff::new(self.config.backoff_first, self.config.backoff_max, Some(BACKGROUND_PATIENCE));
            let delivered = match self.store.meter().check() {
                Ok(()) => self.deliver(transfer, backoff).await,
                Err(full) => Err(full),
            };
            match delivered {
                Ok(yielded) => {
                    image.overcome();
                    match yielded {
                        false => pauses.reset(),
                        true => cursor.back_to(begin),
                    }
                }
                Err(error) => {
                    cursor.back_to(begin);
                    self.wait_out(image, &mut pauses, error).await;
                }
            }
        }
    }

    /// The background's pauses after failures.
    pub(super) fn pauses(&self) -> Backoff {
        Backoff::new(self.config.backoff_first, self.config.backoff_max, None)
    }

    /// Says why the background rests, and rests, until [`Fetcher::try_again`] at the longest.
    pub(super) async fn wait_out(&self, image: &Image, pauses: &mut Backoff, error: Error) {
        let pause = match may_pass(&error) {
            true => pauses.next(error.asked_to_wait()),
            false => self.config.backoff_max,
        };
        if !pause.is_zero() {
            tracing::warn!("fetching {} goes on in {pause:.1?}: {}", image.content.name, error.one_line());
        }
        let asked = image.try_again.notified();
        // The first try again is at once, and most often it works: not worth a word.
        if !pause.is_zero() {
            image.met(Arc::new(error));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = asked => {}
        }
    }

    /// Waits until it is the background's turn. `Some` where a place deserves to be fetched ahead of the sweep.
    async fn turn(&self, image: &Arc<Image>) -> Option<Transfer> {
        let ahead = |plan: &dyn Fn() -> Option<Transfer>| if self.config.prefetch > 0 { plan() } else { None };
        loop {
            let heated = image.heated.notified();
            tokio::pin!(heated);
            if let Some(transfer) = ahead(&|| self.plan_run(image)) {
                return Some(transfer);
            }
            tokio::select! {
                () = &mut heated => continue,
                () = self.gate.quiet(self.config.prefetch_idle) => {}
            }
            if let Some(transfer) = ahead(&|| self.plan_hot(image)) {
                return Some(transfer);
            }
            tokio::select! {
                () = self.gate.quiet(self.config.background_idle) => return None,
                () = &mut heated => {}
            }
        }
    }

    /// The next part of a directory in which programs wait. It does not wait until they do not: the line is idle while their requests are
    /// on their way, and one part of a run keeps it busy for hardly longer than that.
    fn plan_run(&self, image: &Arc<Image>) -> Option<Transfer> {
        while let Some(run) = image.runs.latest() {
            let (control, mut claims) = (Arc::default(), Vec::new());
            let layer = &image.layers[run.layer];
            let limits = Limits {
                budget: self.config.prefetch.min(run.left),
                hole: self.config.hole,
                shared: layer.record.kind.is_spanned(),
            };
            let parts = plan(&layer.extents, &[], run.from, limits, |part| {
                let Part::Piece(nth) = part else { return false };
                let extent = layer.extent(part);
                let small = extent.end - extent.start <= self.config.prefetch;
                small && image.runs.has(&run, nth) && self.take(image, run.layer, part, &control, &mut claims) == Take::Mine
            });
            let range = parts.first().zip(parts.last()).map(|(first, last)| layer.extent(*first).start..layer.extent(*last).end);
            image.runs.advance(run, range);
            if !parts.is_empty() {
                return Some(self.make(image, run.layer, parts, claims, Origin::Readahead, control));
            }
        }
        None
    }

    fn plan_hot(&self, image: &Arc<Image>) -> Option<Transfer> {
        while let Some(hot) = image.hottest() {
            let (control, mut claims) = (Arc::default(), Vec::new());
            let layer = &image.layers[hot.layer];
            let limits = Limits { budget: self.config.prefetch, hole: self.config.hole, shared: layer.record.kind.is_spanned() };
            let parts = plan(&layer.extents, layer.gap_ranges(), hot.from, limits, |part| {
                // A large file is not what a program that reads many small ones wants next.
                let extent = layer.extent(part);
                let small = extent.end - extent.start <= self.config.prefetch && !layer.is_large(part);
                let small = small && !(limits.shared && matches!(part, Part::Gap(_)));
                let near = extent.start < hot.from + self.config.prefetch * 4;
                near && small && self.take(image, hot.layer, part, &control, &mut claims) == Take::Mine
            });
            if let Some(last) = parts.last() {
                image.cooled(hot.layer, hot.from, layer.extent(*last).end);
                return Some(self.make(image, hot.layer, parts, claims, Origin::Readahead, control));
            }
        }
        None
    }

    fn plan_sweep(&self, image: &Arc<Image>, cursor: &mut Cursor) -> Option<Transfer> {
        while let Some(layer) = image.layers.get(cursor.layer) {
            let shared = layer.record.kind.is_spanned();
            let limits = Limits { budget: self.budget(image), hole: self.config.hole, shared };
            let (control, mut claims) = (Arc::default(), Vec::new());
            let (mut missed, mut begin, mut ends) = (false, None, false);
            let parts = plan(&layer.extents, layer.gap_ranges(), cursor.from, limits, |part| {
                // A request ends where a span begins of which some is here: the next one goes on behind that.
                let start = layer.extent(part).start;
                ends |= shared && begin.is_some_and(|begin| start > begin) && layer.heads.has(start);
                if ends {
                    return false;
                }
                match self.take(image, cursor.layer, part, &control, &mut claims) {
                    Take::Mine => {
                        begin.get_or_insert(start);
                        true
                    }
                    Take::Nothing => false,
                    Take::Theirs => {
                        missed = true;
                        false
                    }
                }
            });
            cursor.missed |= missed;
            if let Some(last) = parts.last() {
                // Parts that were passed over lie behind the first, so a later pass is for them.
                cursor.from = layer.extent(*last).start + 1;
                cursor.missed = true;
                return Some(self.make(image, cursor.layer, parts, claims, Origin::Background, control));
            }
            (cursor.layer, cursor.from) = (cursor.layer + 1, 0);
        }
        None
    }

    /// How large a background request may be now.
    pub(super) fn budget(&self, image: &Image) -> u64 {
        let quiet = self.gate.quiet_since(image.attached);
        let doublings = (quiet.as_millis() / GROW_EVERY.as_millis()).min(16) as u32;
        (self.config.background_first << doublings).min(self.config.background_max.max(self.config.background_first))
    }

    /// Notes in every image that has the piece that it is here now.
    pub(super) fn stored(&self, piece: &PieceId) {
        for image in self.images().iter() {
            if let Some((layer, nth)) = image.find_piece(piece) {
                image.mark_local(layer, nth);
            }
        }
    }
}

/// What [`Fetcher::take`] did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// The part is this transfer's.
    Mine,
    /// Somebody else brings it.
    Theirs,
    /// There is nothing to bring.
    Nothing,
}

/// How far the sweep has come.
#[derive(Default)]
struct Cursor {
    layer: usize,
    from: u64,
    /// Whether something was left out, so that another pass is due.
    missed: bool,
}

impl Cursor {
    fn back_to(&mut self, (layer, from): (usize, u64)) {
        if (layer, from) < (self.layer, self.from) {
            (self.layer, self.from) = (layer, from);
        }
        self.missed = true;
    }
}
