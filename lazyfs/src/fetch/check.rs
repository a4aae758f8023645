//! The end of an image's way: what lies between the files of its layers is fetched too, and every layer is checked against its diffID.
//!
//! Only zstd:chunked layers need it; a layer that streamed past was hashed then. Until an image's layers are checked, its containers run
//! on what the tables of contents say (each of which the manifest vouches for).

use std::sync::{Arc, Mutex};

use super::Fetcher;
use super::gaps::GapLog;
use super::image::{Gaps, Image, Layer};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::zstd_chunked::TocLocation;
use crate::layer::{LayerIndex, LayerKind, saved, verify};
use crate::manifest::{Document, Manifest};
use crate::store::content::Contents;

impl Fetcher {
    /// Finds out what lies between the files of the layers. Asks for the manifest, since only it says where a layer's tar ends.
    pub(super) async fn learn_gaps(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        if !chunked(image).any(|(_, layer)| layer.gaps.get().is_none()) {
            return Ok(());
        }
        let raw = image.content.source.manifest(&image.content.image.to_string()).await?;
        let Document::Image(manifest) = Document::parse(&raw)? else {
            let tried = format!("reading the manifest of {}", image.content.name);
            return Err(Error::new(Outcome::BadInput, tried).because("it is an index"));
        };
        let (fetcher, image) = (Arc::clone(self), Arc::clone(image));
        blocking("finding the gaps of layers", move || {
            chunked(&image).try_for_each(|(nth, layer)| fetcher.learn_layer(&manifest, nth, layer))
        })
        .await
    }

    fn learn_layer(&self, manifest: &Manifest, nth: usize, layer: &Layer) -> Result<()> {
        let digest = layer.record.digest;
        let tried = || format!("finding the gaps of layer {digest}");
        let described = manifest.layers.get(nth).filter(|described| described.digest == digest);
        let location = described.map(|d| TocLocation::from_annotations(&d.digest, d.size, &d.annotations)).transpose()?;
        let Some(TocLocation { tar_end, .. }) = location.flatten() else {
            return Err(Error::new(Outcome::Integrity, tried()).because("the image's manifest does not describe it"));
        };
        let mut shared = self.gaps.lock().expect("no holder of this lock panics");
        shared.retain(|_, gaps| gaps.strong_count() > 0);
        let gaps = match shared.get(&digest).and_then(std::sync::Weak::upgrade) {
            Some(gaps) => gaps,
            None => {
                let gaps = verify::gap_ranges(&self.index(layer)?, tar_end).map_err(|e| e.during(tried()))?;
                let log = Mutex::new(GapLog::open(&self.store.gaps_dir(), &digest)?);
                Arc::new(Gaps { tar_end, ranges: gaps.into_iter().flat_map(GapLog::parts_of).collect(), log })
            }
        };
        shared.insert(digest, Arc::downgrade(&gaps));
        // Set already where this image was learning twice: it is the same then.
        drop(layer.gaps.set(gaps));
        Ok(())
    }

    /// Checks all layers. [`Outcome::Integrity`] where one is not what the image's configuration says.
    pub(super) async fn verify(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let (fetcher, image) = (Arc::clone(self), Arc::clone(image));
        blocking("verifying layers", move || {
            chunked(&image).try_for_each(|(_, layer)| {
                let checked = fetcher.verify_layer(&image, layer);
                checked.map_err(|e| e.during(format!("verifying layer {} of {}", layer.record.digest, image.content.name)))
            })
        })
        .await
    }

    fn verify_layer(&self, image: &Image, layer: &Layer) -> Result<()> {
        let Some(gaps) = layer.gaps.get() else {
            return Err(Error::new(Outcome::NotFound, "reading the gaps of a layer").because("they were never looked for"));
        };
        let index = self.index(layer)?;
        let contents = Contents::new(&self.store, &image.content.table);
        let open = |file: &Digest| contents.open(file);
        verify::verify(&index, gaps.tar_end, &layer.record.diff_id, &open, |range| gaps.log().read(range))?;
        GapLog::remove(&self.store.gaps_dir(), &layer.record.digest)
    }

    /// Forgets the gaps, so that they are fetched once more: a check failed, and unlike files they have no digest of their own.
    pub(super) fn distrust_gaps(&self, image: &Image) -> Result<()> {
        chunked(image).filter_map(|(_, layer)| layer.gaps.get()).try_for_each(|gaps| gaps.log().clear())
    }

    fn index(&self, layer: &Layer) -> Result<LayerIndex> {
        let path = self.store.index_path(&layer.record.digest);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("reading the layer index", &path, e))?;
        saved::load(&bytes)
    }
}

fn chunked(image: &Image) -> impl Iterator<Item = (usize, &Layer)> {
    image.layers.iter().enumerate().filter(|(_, layer)| layer.record.kind == LayerKind::ZstdChunked)
}

async fn blocking<T: Send + 'static>(tried: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::new(Outcome::Io, tried).because(e))?
}
