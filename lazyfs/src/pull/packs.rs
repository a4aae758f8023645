//! Packs of an image's layers ([`crate::layer::pack`]), asked for as soon as the manifest is known: they are on their way while the tables of
//! contents are read and the tree is made.

use std::sync::Arc;
use std::time::Duration;

use crate::fetch::{Pack, stream};
use crate::layer::pack;
use crate::manifest::Layer;
use crate::source::Source;

/// Bytes of all packs together that wait until the image is known.
const ROOM: u32 = 8 << 20;
/// An image with more packs than this is nobody's.
const MAX_PACKS: usize = 16;
/// After so long without a byte the pieces are asked for one by one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for the packs of these layers. What is dropped comes no further.
pub fn begin<'a>(source: &Arc<dyn Source>, layers: impl Iterator<Item = &'a Layer>) -> Vec<Pack> {
    let place = |layer: &'a Layer| match pack::located(&layer.digest, layer.size, &layer.annotations) {
        Ok(range) => Some((layer.digest, range?)),
        Err(error) => {
            tracing::warn!("{}; what is in the pack is fetched piece by piece", error.one_line());
            None
        }
    };
    let places: Vec<_> = layers.filter_map(place).take(MAX_PACKS).collect();
    let buffer = stream::Buffer { bytes: ROOM / places.len().max(1) as u32, patience: PATIENCE };
    let begin = |(layer, range)| Pack { layer, reader: stream::range_reader(source.clone(), layer, range, buffer, |_| ()) };
    places.into_iter().map(begin).collect()
}
