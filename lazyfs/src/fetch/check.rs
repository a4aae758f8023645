//! The end of an image's way: what lies between the files of its layers is fetched too, and every layer is checked against its diffID.
//!
//! Only layers with random access need it; a layer that streamed past was hashed then. Until an image's layers are checked, its containers run
//! on what the tables of contents say (each of which the manifest vouches for).

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::Fetcher;
use super::gaps::GapLog;
use super::image::{Gaps, Image, Layer};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::zstd_chunked::TocLocation;
use crate::layer::{LayerIndex, LayerKind, saved, spans, verify};
use crate::manifest::{Document, Manifest};
use crate::store::content::{Content, Contents};
use crate::table::FileRecord;
use crate::task::blocking;

impl Fetcher {
    /// Finds out what lies between the files of the layers. Asks for the manifest, since only it says where a layer's tar ends.
    pub(super) async fn learn_gaps(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        self.learn_spanned(image).await?;
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
            let unknown = chunked(&image).filter(|(_, layer)| layer.gaps.get().is_none());
            unknown.into_iter().try_for_each(|(nth, layer)| fetcher.learn_layer(&manifest, nth, layer))
        })
        .await
    }

    /// The same for layers that are fetched by spans, which need no manifest for it.
    pub(super) async fn learn_spanned(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let (fetcher, image) = (Arc::clone(self), Arc::clone(image));
        let work = move || {
            let spanned = image.layers.iter().filter(|layer| layer.record.kind.is_spanned() && layer.gaps.get().is_none());
            spanned.into_iter().try_for_each(|layer| {
                let spans = layer.spans(&fetcher.store)?;
                // What has been checked is right as long as its files are.
                let count = if spans.is_verified() { 0 } else { spans.len() };
                let ranges = || Ok((spans.blob_len(), (0..count).map(|n| spans.range(n)).collect()));
                fetcher.learn_gaps_of(layer, ranges)
            })
        };
        blocking("finding the spans of layers", work).await
    }

    fn learn_layer(&self, manifest: &Manifest, nth: usize, layer: &Layer) -> Result<()> {
        let digest = layer.record.digest;
        let tried = || format!("finding the gaps of layer {digest}");
        let described = manifest.layers.get(nth).filter(|described| described.digest == digest);
        let location = described.map(|d| TocLocation::from_annotations(&d.digest, d.size, &d.annotations)).transpose()?;
        let Some(TocLocation { tar_end, .. }) = location.flatten() else {
            return Err(Error::new(Outcome::Integrity, tried()).because("the image's manifest does not describe it"));
        };
        self.learn_gaps_of(layer, || {
            // Entry by entry: the whole index would be the largest thing in memory.
            let saved = self.saved_index(layer)?;
            let gaps = verify::gap_ranges(saved::entries(&saved)?, tar_end).map_err(|e| e.during(tried()))?;
            Ok((tar_end, gaps.into_iter().flat_map(GapLog::parts_of).collect()))
        })
    }

    fn learn_gaps_of(&self, layer: &Layer, ranges: impl FnOnce() -> Result<(u64, Vec<Range<u64>>)>) -> Result<()> {
        let digest = layer.record.digest;
        let mut shared = self.gaps.lock().expect("no holder of this lock panics");
        shared.retain(|_, gaps| gaps.strong_count() > 0);
        let gaps = match shared.get(&digest).and_then(std::sync::Weak::upgrade) {
            Some(gaps) => gaps,
            None => {
                let (tar_end, ranges) = ranges()?;
                let log = Mutex::new(GapLog::open(&self.store.gaps_dir(), &digest)?);
                Arc::new(Gaps { tar_end, ranges, log })
            }
        };
        shared.insert(digest, Arc::downgrade(&gaps));
        // Set already where this image was learning twice: it is the same then.
        drop(layer.gaps.set(gaps));
        Ok(())
    }

    /// Looks whether what streamed past is still here, which nobody could fetch file by file. [`Outcome::Integrity`] where it is not.
    pub(super) async fn check_streamed(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let (fetcher, image) = (Arc::clone(self), Arc::clone(image));
        blocking("looking for the files of layers", move || {
            let streamed: Vec<bool> = image.layers.iter().map(|layer| layer.record.kind == LayerKind::Stream).collect();
            if !streamed.contains(&true) {
                return Ok(());
            }
            let is_lost = |file: &FileRecord| streamed[file.layer as usize] && !fetcher.store.cas().contains(&file.digest);
            let mut lost = image.content.table.files().filter(is_lost);
            let Some(first) = lost.next() else { return Ok(()) };
            let why = format!(
                "{} files of layers that can only be fetched as a whole are gone from the store, the first is {}",
                1 + lost.count(),
                first.digest
            );
            let tried = format!("looking for the files of {}", image.content.name);
            Err(Error::new(Outcome::Integrity, tried).because(why).advise("pull the image again"))
        })
        .await
    }

    /// Checks all layers. [`Outcome::Integrity`] where one is not what the image's configuration says.
    pub(super) async fn verify(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let (fetcher, image) = (Arc::clone(self), Arc::clone(image));
        blocking("verifying layers", move || {
            checked(&image).try_for_each(|(_, layer)| {
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
        if layer.record.kind.is_spanned() {
            self.verify_spanned(layer, &index, &open, gaps)?;
        } else {
            verify::verify(&index, gaps.tar_end, &layer.record.diff_id, &open, |range| gaps.log().read(range))?;
        }
        GapLog::remove(&self.store.gaps_dir(), &layer.record.digest)
    }

    fn verify_spanned(
        &self,
        layer: &Layer,
        index: &LayerIndex,
        open: &dyn Fn(&Digest) -> Result<Content>,
        gaps: &Gaps,
    ) -> Result<()> {
        let spans = layer.spans(&self.store)?;
        if spans.is_verified() {
            return Ok(());
        }
        verify::verify_spans(index, spans, &layer.record.diff_id, open, |offset| gaps.log().part(offset))?;
        // Another image with the layer need not fetch what lies between files again.
        replace(&self.store.spans_path(&layer.record.digest), &spans::mark_verified(spans.bytes()))
    }

    /// Forgets the gaps, so that they are fetched once more: a check failed, and unlike files they have no digest of their own.
    pub(super) fn distrust_gaps(&self, image: &Image) -> Result<()> {
        checked(image).filter_map(|(_, layer)| layer.gaps.get()).try_for_each(|gaps| gaps.log().clear())
    }

    /// Forgets the indexes of layers that are fetched by spans: one of them may have lied.
    pub(super) fn forget_spans(&self, image: &Image) -> Result<()> {
        let spanned = image.layers.iter().filter(|layer| layer.record.kind.is_spanned());
        let paths =
            spanned.flat_map(|layer| [self.store.spans_path(&layer.record.digest), self.store.index_path(&layer.record.digest)]);
        for path in paths {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn index(&self, layer: &Layer) -> Result<LayerIndex> {
        saved::load(&self.saved_index(layer)?)
    }

    fn saved_index(&self, layer: &Layer) -> Result<Vec<u8>> {
        let path = self.store.index_path(&layer.record.digest);
        std::fs::read(&path).map_err(|e| Error::io("reading the layer index", &path, e))
    }
}

/// Layers that are checked when they are complete.
fn checked(image: &Image) -> impl Iterator<Item = (usize, &Layer)> {
    image.layers.iter().enumerate().filter(|(_, layer)| layer.record.kind.has_random_access())
}

/// Layers with a table of contents that the manifest tells the place of.
fn chunked(image: &Image) -> impl Iterator<Item = (usize, &Layer)> {
    image.layers.iter().enumerate().filter(|(_, layer)| layer.record.kind == LayerKind::ZstdChunked)
}

/// Puts a file in the place of another one.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
    std::io::Write::write_all(&mut new, bytes).map_err(|e| Error::io("writing", path, e))?;
    new.persist(path).map_err(|e| Error::io("naming", path, e.error))?;
    Ok(())
}
