//! The rest of programs and libraries that are here in part.
//!
//! A page of a mapped program that nobody can bring, because the registry is gone, ends that program by SIGBUS; no error can be returned to it.
//! While a profile says what a start touches, no more of a program is fetched than that, and of very large ones never all at once. So what
//! is left of those that were touched is what the background begins with, in the order in which they were.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Fetcher;
use super::image::{Image, Place};
use super::inflight::Origin;
use super::schedule::Take;
use super::span::{Limits, Part, plan};
use super::transfer::Transfer;
use crate::profile::Profile;

/// What an ELF file begins with (elf(5)).
const MAGIC: [u8; 4] = *b"\x7fELF";

/// Those of an image, each by its layer and where it is in that layer's data.
#[derive(Debug, Default)]
pub(super) struct Programs(Mutex<Vec<(usize, Range<u64>)>>);

impl Programs {
    /// A program has begun to use this one.
    pub fn note(&self, layer: usize, file: Range<u64>) {
        let mut touched = self.touched();
        if !touched.contains(&(layer, file.clone())) {
            touched.push((layer, file));
        }
    }

    fn first(&self) -> Option<(usize, Range<u64>)> {
        self.touched().first().cloned()
    }

    fn done(&self, program: &(usize, Range<u64>)) {
        self.touched().retain(|touched| touched != program);
    }

    fn touched(&self) -> MutexGuard<'_, Vec<(usize, Range<u64>)>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Fetcher {
    /// Notes the programs among what a profile names, as far as that is here.
    pub(super) fn note_programs(&self, image: &Image, profile: &Profile) {
        for access in profile.accesses() {
            let Some(Place::Data(layer, file)) = image.find(&access.digest) else { continue };
            let mut beginning = [0; MAGIC.len()];
            // What is not here yet is noted when a program waits for it.
            let here = image.layers[layer].data(&self.store).and_then(|data| data.read(file.start, &mut beginning));
            if here.is_ok() && beginning == MAGIC {
                image.programs.note(layer, file);
            }
        }
    }

    /// The next that is missing of programs that were touched.
    pub(super) fn plan_program(&self, image: &Arc<Image>) -> Option<Transfer> {
        while let Some(program) = image.programs.first() {
            let (number, file) = &program;
            let layer = &image.layers[*number];
            let mut pieces: Vec<usize> = layer.covering(file).collect();
            pieces.sort_unstable();
            let from = pieces.iter().map(|nth| layer.extents[*nth].start).min().unwrap_or(0);
            let limits = Limits { budget: self.budget(image), hole: self.config.hole, shared: layer.record.kind.is_spanned() };
            let (control, mut claims) = (Arc::default(), Vec::new());
            let parts = plan(&layer.extents, &[], from, limits, |part| {
                matches!(part, Part::Piece(nth) if pieces.binary_search(&nth).is_ok())
                    && self.take(image, *number, part, &control, &mut claims) == Take::Mine
            });
            if !parts.is_empty() {
                return Some(self.make(image, *number, parts, claims, Origin::Background, control));
            }
            image.programs.done(&program);
        }
        None
    }
}
