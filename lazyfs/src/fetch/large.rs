//! Demands for bytes of large files: only the pieces that a program reads, and, while it reads on, those that come next.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::Fetcher;
use super::backoff::may_pass;
use super::image::{Image, Place};
use super::inflight::{Claim, Claimed, Control, Landing, Origin};
use super::payer::Caller;
use super::schedule::Take;
use super::span::{Limits, Part, plan};
use super::transfer::Transfer;
use super::turns::Kind;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::store::content::Content;

/// The pieces that one read claims, by number.
type Claims = BTreeMap<usize, Claim>;

impl Fetcher {
    /// Brings bytes of a layer's large files that a program waits for; when this ends well they are in its data file. Ends after
    /// [`super::FetchConfig::demand_deadline`] at the latest.
    pub async fn demand_data(self: &Arc<Self>, layer: &Digest, range: Range<u64>) -> Result<()> {
        self.demand_data_by(Caller::default(), layer, range).await
    }

    /// The same, for this caller.
    pub async fn demand_data_by(self: &Arc<Self>, caller: impl Into<Caller>, layer: &Digest, range: Range<u64>) -> Result<()> {
        let caller = caller.into();
        // Where that cannot be said, it is tried in the time that a demand has.
        if self.has_data(layer, &range).unwrap_or(false) {
            return Ok(());
        }
        let _waiting = self.gate.enter();
        let bring = || self.bring_data(*layer, range.clone(), Origin::Demand, caller);
        self.in_time(bring, || self.account_of_data(layer, &range)).await
    }

    /// Brings bytes of large files that a program is about to read; whether they are here then. As urgent as a demand.
    pub async fn ahead_data(self: &Arc<Self>, layer: &Digest, range: Range<u64>) -> bool {
        match self.has_data(layer, &range) {
            Ok(false) if self.config.ahead > 0 => {}
            here => return here.unwrap_or(false),
        }
        let _waiting = self.gate.enter();
        let bring = || self.bring_data(*layer, range.clone(), Origin::Readahead, Caller::default());
        self.in_time(bring, || self.account_of_data(layer, &range)).await.is_ok()
    }

    /// A large file of an attached image, to read what is needed of it.
    pub fn large_file(self: &Arc<Self>, file: &Digest) -> Option<LargeFile> {
        let (image, Place::Data(layer, range)) = self.find(file).ok()? else { return None };
        let layer = &image.layers[layer];
        let data = Arc::clone(layer.data(&self.store).ok()?);
        let (fetcher, start) = (Arc::clone(self), range.start);
        Some(LargeFile { fetcher, layer: layer.record.digest, start, content: Content::of_data(data, range) })
    }

    /// The large file of an attached image that has this byte of a layer's data file.
    pub fn large_file_at(&self, layer: &Digest, offset: u64) -> Option<Digest> {
        let (image, number) = self.find_data(layer, &(offset..offset + 1)).ok()?;
        image.content.table.large_file_at(number as u32, offset).map(|file| file.digest)
    }

    fn has_data(&self, layer: &Digest, range: &Range<u64>) -> Result<bool> {
        let (image, number) = self.find_data(layer, range)?;
        Ok(image.layers[number].data(&self.store)?.has(range.clone()))
    }

    pub(super) async fn bring_data(
        self: &Arc<Self>,
        layer: Digest,
        range: Range<u64>,
        origin: Origin,
        caller: Caller,
    ) -> Result<()> {
        let mut filled = false;
        loop {
            let (image, number) = self.find_data(&layer, &range)?;
            let data = image.layers[number].data(&self.store).map_err(|e| self.account_of_data(&layer, &range).during(e))?;
            if data.has(range.clone()) {
                return Ok(());
            }
            if !std::mem::replace(&mut filled, true) && self.fill(&image, number, &range).await? {
                continue;
            }
            let flights = self.request(&image, number, &range, origin, caller)?;
            if flights.is_empty() && !image.layers[number].data(&self.store)?.has(range.clone()) {
                let why = format!("{} has no file there", image.content.name);
                return Err(Error::new(Outcome::NotFound, tried(&layer, &range)).because(why));
            }
            for (landed, is_ours) in flights {
                match landed.await {
                    // The patience of whoever began it is at its end, not that of whoever waits here.
                    Landing::Failed(error) if !is_ours && may_pass(&error) => {}
                    Landing::Failed(error) => return Err(Error::shared(tried(&layer, &range), &error)),
                    _ => {}
                }
            }
        }
    }

    /// An attached image with files there, and the number of the layer in it.
    pub(super) fn find_data(&self, layer: &Digest, range: &Range<u64>) -> Result<(Arc<Image>, usize)> {
        let mut damage = None;
        let images: Vec<Arc<Image>> = self.images().clone();
        for image in images {
            let numbers = (0..image.layers.len()).filter(|n| image.layers[*n].record.digest == *layer);
            // The same layer may be in an image twice; its files are with the lower one.
            for number in numbers {
                match image.damage_in(number, range) {
                    Some(error) => damage = Some(error),
                    None if image.layers[number].covering(range).next().is_some() => return Ok((image, number)),
                    None => {}
                }
            }
        }
        match damage {
            Some(error) => Err(Error::shared(tried(layer, range), &error)),
            None => Err(Error::new(Outcome::NotFound, tried(layer, range)).because("no image that is being fetched has it")),
        }
    }

    /// Sees to it that what is missing of the range is brought. The flights to wait for, and which of them are this request's own.
    fn request(
        self: &Arc<Self>,
        image: &Arc<Image>,
        number: usize,
        range: &Range<u64>,
        origin: Origin,
        caller: Caller,
    ) -> Result<Vec<(impl Future<Output = Landing> + Send + use<>, bool)>> {
        let layer = &image.layers[number];
        let missing = layer.data(&self.store)?.missing(range.clone());
        let control = Control::of(caller.cause);
        // What somebody waits for does not make room.
        control.urge();
        let (mut flights, mut claims) = (Vec::new(), Claims::new());
        for nth in layer.covering(range) {
            let data = layer.pieces[nth].data.clone().unwrap_or_default();
            if !missing.iter().any(|gap| gap.start < data.end && data.start < gap.end) {
                continue;
            }
            match self.inflight.claim(layer.pieces[nth].id(&layer.record.digest), &control) {
                Claimed::Theirs(flight) => {
                    flight.control.urge();
                    flights.push((flight.landed(), false));
                }
                // Whoever brought it a moment ago has stored it before letting go.
                Claimed::Mine(_) if layer.data(&self.store)?.has(data) => image.mark_local(number, nth),
                Claimed::Mine(claim) => {
                    flights.push((claim.flight().landed(), true));
                    claims.insert(nth, claim);
                }
            }
        }
        let wanted: BTreeSet<usize> = claims.keys().copied().collect();
        if origin == Origin::Demand && !image.guide.is_on(!claims.is_empty()) {
            self.read_on(image, number, range, &control, &mut claims);
        }
        let payer = image.payer(caller.group);
        for transfer in self.spans(image, number, claims, &wanted, origin, &control) {
            // What is read ahead is paid by whoever reads, and wanted as soon.
            let transfer = Transfer { payer, kind: Some(Kind::Demand), ..transfer };
            // A task of its own: the program may die, but others may wait for the same piece by then.
            tokio::spawn(Arc::clone(self).in_turn(transfer));
        }
        Ok(flights)
    }

    /// Claims what a program that reads a large file in order reads next.
    fn read_on(&self, image: &Image, number: usize, range: &Range<u64>, control: &Arc<Control>, claims: &mut Claims) {
        let layer = &image.layers[number];
        let Some(file) = image.content.table.large_file_at(number as u32, range.start).and_then(|file| file.data_range()) else {
            return;
        };
        if image.reads.is_first(number, file.start) {
            image.progress.send_modify(|progress| progress.demanded_files += 1);
        }
        let ahead = image.reads.read(number, file.start, range, self.config.read_window);
        let ahead = ahead.start..ahead.end.min(file.end);
        if ahead.is_empty() {
            return;
        }
        for nth in layer.covering(&ahead) {
            let mut claimed = Vec::new();
            if !claims.contains_key(&nth) && self.take(image, number, Part::Piece(nth), control, &mut claimed) == Take::Mine {
                claims.extend(claimed.into_iter().map(|claim| (nth, claim)));
            }
        }
    }

    /// The transfers for these pieces: as few as their places in the blob allow.
    pub(super) fn spans(
        &self,
        image: &Arc<Image>,
        number: usize,
        mut claims: Claims,
        wanted: &BTreeSet<usize>,
        origin: Origin,
        control: &Arc<Control>,
    ) -> Vec<Transfer> {
        let layer = &image.layers[number];
        // Nobody waits for a request of a profile's own; fewer of them are less work for the registry.
        let hole = if origin == Origin::Prefetch { 2 * self.config.hole } else { self.config.hole };
        let limits = Limits { budget: u64::MAX / 2, hole, shared: image.layers[number].record.kind.is_spanned() };
        let mut transfers = Vec::new();
        while let Some((first, _)) = claims.first_key_value() {
            let from = layer.extents[*first].start;
            let mut taken = Vec::new();
            let mut ends = false;
            let parts = plan(&layer.extents, &[], from, limits, |part| {
                // A request ends where a span begins of which some is here: the next one goes on behind that.
                let start = layer.extent(part).start;
                ends |= limits.shared && start > from && layer.heads.has(start);
                if ends {
                    return false;
                }
                let claim = if let Part::Piece(nth) = part { claims.remove(&nth) } else { None };
                let is_mine = claim.is_some();
                taken.extend(claim);
                is_mine
            });
            let of_demand = |part: &&Part| matches!(part, Part::Piece(nth) if wanted.contains(nth));
            let demanded: Vec<usize> = parts.iter().filter(of_demand).map(|part| part.number()).collect();
            let id = |nth: &usize| layer.pieces[*nth].id(&layer.record.digest);
            let demand = match (demanded.first(), demanded.last()) {
                (Some(first), Some(last)) => layer.extents[*first].start..layer.extents[*last].end,
                _ => 0..0,
            };
            let origin = if demanded.is_empty() && origin == Origin::Demand { Origin::Readahead } else { origin };
            let ids = demanded.iter().map(id).collect();
            let transfer = self.make(image, number, parts, taken, origin, Arc::clone(control));
            transfers.push(Transfer { wanted: ids, demand, ..transfer });
        }
        transfers
    }

    async fn in_turn(self: Arc<Self>, transfer: Transfer) {
        let _seat = self.turns.seat(transfer.payer).await;
        if !transfer.claims.iter().any(|claim| claim.flight().is_wanted()) && !transfer.wanted.is_empty() {
            return; // Everybody who waited was killed.
        }
        self.urgently(transfer).await;
    }
}

/// A large file of which some is here.
#[derive(Debug)]
pub struct LargeFile {
    fetcher: Arc<Fetcher>,
    layer: Digest,
    start: u64,
    content: Content,
}

impl LargeFile {
    /// Up to `len` bytes from `offset` on, fewer only at the end of the file. `None`: some are not here.
    pub fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let range = self.range(offset, len);
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        self.content.read_exact_at(range.start, &mut bytes).ok().map(|()| bytes)
    }

    /// Whether an access profile says what is read of it, so that nothing has to be guessed.
    pub fn is_foretold(&self) -> bool {
        let image = self.fetcher.find_data(&self.layer, &(self.start..self.start + 1));
        image.is_ok_and(|(image, _)| image.guide.is_on(false))
    }

    /// Has all of it brought before anything else that nobody waits for, now that a program uses it.
    pub fn bring_later(&self) {
        let file = self.start..self.start + self.content.size();
        if let Ok((image, layer)) = self.fetcher.find_data(&self.layer, &file) {
            image.programs.note(layer, file);
        }
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        self.content.size()
    }

    /// Brings those bytes as urgently as for a program that waits; whether they are here then.
    pub async fn bring(&self, offset: u64, len: usize) -> bool {
        let range = self.range(offset, len);
        self.fetcher.ahead_data(&self.layer, self.start + range.start..self.start + range.end).await
    }

    fn range(&self, offset: u64, len: usize) -> Range<u64> {
        let size = self.content.size();
        offset.min(size)..offset.saturating_add(len as u64).min(size)
    }
}

fn tried(layer: &Digest, range: &Range<u64>) -> String {
    format!("fetching bytes {} to {} of the large files of layer {layer}", range.start, range.end)
}
