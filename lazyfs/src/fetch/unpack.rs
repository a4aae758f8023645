//! What a pack brings ([`crate::layer::pack`]): its pieces are claimed at once, so that whoever wants one waits for the pack, and land one after
//! the other.
//!
//! ```text
//! pack -> list of parts -> pieces that are wholly in a part, and missing -> claims
//!      -> content -> verified like anything else -> Cas or BigData -> claims land
//! ```
//!
//! A pack takes no turn and is no prefetch of requests: it is one connection, which began before anybody knew the image. What is wrong in it, or does
//! not come, is released, and comes of the layer itself.

use std::io::{BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Fetcher;
use super::decode::{Event, Segment, store_content};
use super::guide::Guide;
use super::image::{Image, Place};
use super::inflight::{Claim, Control, Landing, Origin};
use super::schedule::Take;
use super::span::Part;
use super::stream::BlobReader;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::pack;
use crate::observe;

/// Bytes that are read of a pack at a time.
const READ: usize = 64 << 10;

/// A pack that is on its way.
#[derive(Debug)]
pub struct Pack {
    /// The layer that it is of.
    pub layer: Digest,
    /// Its bytes.
    pub reader: BlobReader,
}

/// A piece that comes with a pack.
struct Arrival {
    /// Where it begins in the content of all parts.
    at: u64,
    len: u64,
    layer: usize,
    nth: usize,
    claim: Claim,
}

impl Fetcher {
    /// Stores what packs of an image bring; ends when nothing more will come of them. Does nothing for an image that is not attached.
    pub async fn unpack(self: &Arc<Self>, image: &Digest, packs: Vec<Pack>) {
        let Some(image) = self.attached(image).filter(|_| !packs.is_empty()) else { return };
        // What programs want is on its way: nothing is guessed, and the background rests.
        let (_guided, _waiting) = (Guide::follow(&image), self.gate.enter());
        image.was_unpacked.store(true, Ordering::Relaxed);
        let unpacking = packs.into_iter().map(|Pack { layer, reader }| {
            let (this, image) = (Arc::clone(self), Arc::clone(&image));
            let work = tokio::task::spawn_blocking(move || this.unpack_one(&image, reader));
            async move { (layer, work.await.unwrap_or_else(|e| Err(Error::new(Outcome::Io, "unpacking").because(e)))) }
        });
        for (layer, unpacked) in futures_util::future::join_all(unpacking).await {
            if let Err(error) = unpacked {
                let error = error.during(format!("unpacking what comes first of layer {layer} of {}", image.content.name));
                tracing::warn!("{}; it is fetched piece by piece", error.one_line());
            }
        }
    }

    fn unpack_one(&self, image: &Arc<Image>, reader: BlobReader) -> Result<()> {
        let counted = Counted { fetcher: self, image, reader };
        let reading = |e: std::io::Error| Error::new(Outcome::Unavailable, "reading the pack").because(e);
        let mut pack = pack::Reader::new(BufReader::with_capacity(READ, counted)).map_err(reading)?;
        let arrivals = self.expect(image, pack.parts());
        let mut position = 0;
        for Arrival { at, len, layer, nth, claim } in arrivals {
            skip(&mut pack, at - position).map_err(reading)?;
            position = at + len;
            let Segment::Piece(plan) = image.segment(layer, Part::Piece(nth)) else { continue };
            let mut claim = Some(claim);
            store_content(&self.store, plan, &mut pack, &mut |event| match event {
                Event::Stored(piece) => {
                    self.stored(&piece);
                    claim.take().into_iter().for_each(|claim| claim.land(Landing::Stored));
                }
                Event::Damaged(damage) => tracing::warn!("{} is damaged in the pack: {}", damage.piece, damage.why),
                // A pack has neither.
                Event::Gap(..) | Event::Span(..) => {}
            })?;
        }
        Ok(())
    }

    /// Claims the pieces that these parts bring, in their order.
    fn expect(&self, image: &Image, parts: &[pack::Part]) -> Vec<Arrival> {
        let control: Arc<Control> = Arc::default();
        control.urge();
        let (mut arrivals, mut begin) = (Vec::new(), 0);
        let mut expect = |layer: usize, nth: usize, at, len| {
            let mut claims = Vec::new();
            if self.take(image, layer, Part::Piece(nth), &control, &mut claims) == Take::Mine {
                arrivals.extend(claims.pop().map(|claim| Arrival { at, len, layer, nth, claim }));
            }
        };
        for pack::Part { file, range } in parts {
            let len = range.end - range.start;
            match image.find(file) {
                Some(Place::Piece(layer, nth)) => {
                    let size = image.content.table.lookup(file).map(|record| record.size);
                    if range.start == 0 && size == Some(len) {
                        expect(layer, nth, begin, len);
                    }
                }
                Some(Place::Data(layer, data)) if range.end <= data.end - data.start => {
                    let part = data.start + range.start..data.start + range.end;
                    for nth in image.layers[layer].covering(&part) {
                        let piece = image.layers[layer].pieces[nth].data.clone().unwrap_or_default();
                        if part.start <= piece.start && piece.end <= part.end {
                            expect(layer, nth, begin + (piece.start - part.start), piece.end - piece.start);
                        }
                    }
                }
                // The pack is of another version of the image, or lies.
                _ => {}
            }
            begin += len;
        }
        arrivals
    }
}

fn skip(reader: &mut impl Read, bytes: u64) -> std::io::Result<()> {
    match std::io::copy(&mut reader.take(bytes), &mut std::io::sink())? {
        n if n == bytes => Ok(()),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Counts what comes over the network.
struct Counted<'a> {
    fetcher: &'a Fetcher,
    image: &'a Image,
    reader: BlobReader,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.image.count_fetched(Origin::Prefetch, n as u64);
        self.fetcher.observer.fetched(observe::Origin::Prefetch, n as u64);
        Ok(n)
    }
}
