//! What a program of the image is known to read while it starts is fetched in that order before it asks, over several connections, and
//! nothing else is guessed meanwhile.
//!
//! ```text
//! profile -> pieces in order -> portions of some hundred kilobytes -> in each: as few requests as the places in the blobs allow
//! ```
//!
//! A portion bounds how far what is wanted later may come before what is wanted first. Whoever asks for a piece that is on its way waits
//! for it; for any other piece a demand has its own request at once, as always. Until all of it is here the background rests, and until the
//! start is over, by the profile's own word, nothing is guessed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Fetcher;
use super::guide::Guide;
use super::image::{Image, Place};
use super::inflight::{Claim, Control, Origin};
use super::schedule::Take;
use super::span::Part;
use super::transfer::Transfer;
use crate::digest::Digest;
use crate::profile::Profile;

/// Compressed bytes of a portion: at first what keeps a line busy for some round trips, later what makes for fewer requests.
const FIRST_PORTION: u64 = 256 << 10;
const PORTION: u64 = 1 << 20;
/// Largest request: more is several, side by side.
const REQUEST: u64 = 512 << 10;
/// How long a start is believed to take at the longest.
const LONGEST_START: Duration = Duration::from_secs(10);

/// Pieces by layer and number, in the order in which they are wanted.
type Wanted = Vec<(usize, usize)>;

impl Fetcher {
    /// Fetches what the profile names, in its order; nothing is guessed until the recorded start would be over. Failures are left to
    /// whoever asks for the file. Does nothing for an image that is not attached.
    pub async fn prefetch(self: &Arc<Self>, image: &Digest, profile: &Profile) {
        let Some(image) = self.attached(image) else { return };
        let _guided = Guide::follow(&image);
        let begin = Instant::now();
        let start = Duration::from_millis(profile.milliseconds).min(LONGEST_START);
        let wanted = wanted(&image, profile);
        // Counts as a program that waits, until all of it is here. Not where all of it is here already: containers that start one after the
        // other would keep the background of all images away for ever.
        let waiting =
            wanted.iter().any(|(layer, nth)| !image.layers[*layer].is_local(Part::Piece(*nth))).then(|| self.gate.enter());
        if waiting.is_some() || image.was_unpacked.swap(false, Ordering::Relaxed) {
            image.guide.starts(begin + start);
        }
        let permits = Arc::new(Semaphore::new(self.config.prefetch_parallel));
        let mut running = JoinSet::new();
        for portion in portions(&image, &wanted) {
            for transfer in self.plan_portion(&image, portion) {
                let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
                let this = Arc::clone(self);
                running.spawn(async move {
                    this.urgently(transfer).await;
                    drop(permit);
                });
            }
        }
        while running.join_next().await.is_some() {}
        drop(waiting);
        self.note_programs(&image, profile);
        tracing::debug!("{} pieces of {} are here after {:?}", wanted.len(), image.content.name, begin.elapsed());
        tokio::time::sleep(start.saturating_sub(begin.elapsed())).await;
    }

    fn plan_portion(self: &Arc<Self>, image: &Arc<Image>, portion: &[(usize, usize)]) -> Vec<Transfer> {
        let mut layers: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (layer, nth) in portion {
            layers.entry(*layer).or_default().insert(*nth);
        }
        let mut transfers = Vec::new();
        for (layer, pieces) in layers {
            for pieces in requests(image, layer, pieces.into_iter().collect()) {
                let control: Arc<Control> = Arc::default();
                control.urge();
                let mut claims: BTreeMap<usize, Claim> = BTreeMap::new();
                for nth in pieces {
                    let mut claimed = Vec::new();
                    if self.take(image, layer, Part::Piece(nth), &control, &mut claimed) == Take::Mine {
                        claims.extend(claimed.into_iter().map(|claim| (nth, claim)));
                    }
                }
                transfers.extend(self.spans(image, layer, claims, &BTreeSet::new(), Origin::Prefetch, &control));
            }
        }
        transfers
    }
}

/// The pieces that a profile names, each once. What the image does not have is left out: the profile may be of another version of it.
fn wanted(image: &Image, profile: &Profile) -> Wanted {
    let (mut wanted, mut seen) = (Wanted::new(), HashSet::new());
    let mut add = |layer, nth| {
        if seen.insert((layer, nth)) {
            wanted.push((layer, nth));
        }
    };
    for access in profile.accesses() {
        match image.find(&access.digest) {
            Some(Place::Piece(layer, nth)) => add(layer, nth),
            Some(Place::Data(layer, file)) => {
                for range in access.ranges() {
                    let range = file.start + range.start..(file.start + range.end).min(file.end);
                    image.layers[layer].covering(&range).for_each(|nth| add(layer, nth));
                }
            }
            None => {}
        }
    }
    by_span(image, wanted)
}

/// With all that is wanted of a span where the first of it is: one request brings it.
fn by_span(image: &Image, wanted: Wanted) -> Wanted {
    let mut first = HashMap::new();
    let mut ranked: Vec<(usize, (usize, usize))> = Vec::with_capacity(wanted.len());
    for (rank, (layer, nth)) in wanted.into_iter().enumerate() {
        let is_spanned = image.layers[layer].record.kind.is_spanned();
        let span = (layer, image.layers[layer].extents[nth].start);
        ranked.push((if is_spanned { *first.entry(span).or_insert(rank) } else { rank }, (layer, nth)));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, piece)| piece).collect()
}

fn portions<'a>(image: &Image, wanted: &'a Wanted) -> impl Iterator<Item = &'a [(usize, usize)]> {
    let mut portions = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    let extent = |(layer, nth): &(usize, usize)| (*layer, image.layers[*layer].extents[*nth].clone());
    for (at, piece) in wanted.iter().enumerate() {
        let (layer, range) = extent(piece);
        // Of pieces that come out of the same bytes those count once.
        let before = at.checked_sub(1).map(|at| extent(&wanted[at]));
        let shared = before.filter(|(in_layer, before)| (*in_layer, before.start) == (layer, range.start));
        let counted = shared.map_or(range.start, |(_, before)| before.end.min(range.end));
        bytes += range.end - counted;
        let goes_on = wanted.get(at + 1).is_some_and(|next| {
            let (next_layer, next) = extent(next);
            (next_layer, next.start) == (layer, range.start)
        });
        let limit = if portions.len() < 4 { FIRST_PORTION } else { PORTION };
        if (bytes >= limit && !goes_on) || at + 1 == wanted.len() {
            portions.push(&wanted[begin..=at]);
            (begin, bytes) = (at + 1, 0);
        }
    }
    portions.into_iter()
}

/// Pieces of one layer, by place in the blob, cut where a request would become too large.
fn requests(image: &Image, layer: usize, mut pieces: Vec<usize>) -> Vec<Vec<usize>> {
    let extents = &image.layers[layer].extents;
    pieces.sort_by_key(|nth| extents[*nth].start);
    let mut requests: Vec<Vec<usize>> = Vec::new();
    let mut start = 0;
    let is_same =
        |request: &[usize], nth: usize| request.last().is_some_and(|last: &usize| extents[*last].start == extents[nth].start);
    for nth in pieces {
        match requests.last_mut() {
            Some(request) if extents[nth].end.saturating_sub(start) <= REQUEST || is_same(request, nth) => request.push(nth),
            _ => {
                start = extents[nth].start;
                requests.push(vec![nth]);
            }
        }
    }
    requests
}
