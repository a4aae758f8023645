//! What is said of a fetch that failed: image, layer, offset and source, and what happens next.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::Fetcher;
use super::image::{Image, Place};
use crate::digest::Digest;
use crate::error::{Error, Outcome};

/// What is known of something that a program waits for.
pub(super) struct Account {
    text: String,
    failure: Option<(Instant, Arc<Error>)>,
}

impl Account {
    fn new(what: &str, place: Option<(&Image, usize, u64)>) -> Self {
        let Some((image, layer, offset)) = place else { return Self { text: what.to_owned(), failure: None } };
        let failure = image.layers[layer].failure.lock().expect("no holder of this lock panics").clone();
        Self { text: format!("{what} of {}", image.at(layer, offset)), failure }
    }

    /// The error of a program that has waited since `begin`, with the reason where one is known.
    pub fn too_late(self, begin: Instant) -> Error {
        let text = format!("{}: it had not come after {:.1} s", self.text, begin.elapsed().as_secs_f32());
        match self.failure.filter(|(at, _)| *at >= begin) {
            Some((_, failure)) => Error::shared(text, &failure),
            None => Error::new(Outcome::Unavailable, text).advise("is the registry reachable? The log of towlined says more"),
        }
    }

    /// Names it in an error that does not.
    pub fn during(self, error: Error) -> Error {
        error.during(self.text)
    }
}

impl Image {
    /// Notes that a request for a layer has failed, and says where.
    pub(super) fn failed(&self, layer: usize, offset: u64, error: Error) -> Error {
        let error = Arc::new(error);
        *self.layers[layer].failure.lock().expect("no holder of this lock panics") = Some((Instant::now(), Arc::clone(&error)));
        Error::shared(format!("fetching {}", self.at(layer, offset)), &error)
    }

    /// Where something comes from: image, layer, offset in the layer's blob, and who sends it.
    pub(super) fn at(&self, layer: usize, offset: u64) -> String {
        let layer = &self.layers[layer].record.digest;
        format!("{}, layer {layer}, offset {offset}, from {}", self.content.name, self.content.source.origin(layer))
    }
}

impl Fetcher {
    /// A file that a program waits for.
    pub(super) fn account_of(&self, file: &Digest) -> Account {
        let known = self.find(file).ok();
        let place = known.as_ref().and_then(|(image, place)| place_in_blob(image, place));
        Account::new(&format!("fetching file {file}"), place)
    }

    /// Bytes of large files that a program waits for.
    pub(super) fn account_of_data(&self, layer: &Digest, range: &Range<u64>) -> Account {
        let known = self.find_data(layer, range).ok();
        let place = known.as_ref().and_then(|(image, number)| place_in_blob(image, &Place::Data(*number, range.clone())));
        Account::new(&format!("fetching bytes {} to {} of the large files", range.start, range.end), place)
    }
}

fn place_in_blob<'a>(image: &'a Image, place: &Place) -> Option<(&'a Image, usize, u64)> {
    let (layer, nth) = match place {
        Place::Piece(layer, nth) => (*layer, *nth),
        Place::Data(layer, range) => (*layer, image.layers[*layer].covering(range).next()?),
    };
    Some((image, layer, image.layers[layer].extents[nth].start))
}

/// What becomes of content that a program did not get.
pub fn what_next(error: &Error) -> &'static str {
    match error.outcome() {
        Outcome::Integrity => "it is not asked for again before the image is pulled again; everything else goes on",
        Outcome::NoSpace => "it is fetched when it is opened again and there is room",
        _ => "it is asked for again when it is opened again, and in the background",
    }
}
