//! Large files that are here in another form than an image reads them in: an object becomes bytes of a data file, and those an object,
//! without the network.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::Fetcher;
use super::image::{Image, Place};
use super::inflight::Origin;
use super::payer::Caller;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::Chunk;
use crate::task::blocking;

/// Bytes that are copied at a time.
const COPY: u64 = 256 << 10;

impl Fetcher {
    /// Learns what is here already. Only progress, guesses and the background need it, so no program waits for it; what is fetched is looked
    /// up in the store piece by piece.
    pub(super) fn find_local(&self, image: &Image) {
        let objects = match self.store.cas().list() {
            Ok(objects) => objects,
            Err(error) => {
                tracing::warn!("the progress shown is too low: {}", error.one_line());
                Vec::new()
            }
        };
        image.learn_tree(&objects);
        for digest in &objects {
            match image.find(digest) {
                Some(Place::Piece(layer, nth)) => image.mark_local(layer, nth),
                Some(Place::Data(layer, range)) if image.is_object(digest) => {
                    image.layers[layer].covering(&range).for_each(|nth| image.mark_local(layer, nth));
                }
                _ => {}
            }
        }
        for (number, layer) in image.layers.iter().enumerate().filter(|(_, layer)| layer.record.data_len > 0) {
            let unknown = layer.covering(&(0..layer.record.data_len)).filter(|nth| !layer.pieces[*nth].is_local());
            unknown.filter(|nth| image.is_stored(number, *nth, &self.store)).for_each(|nth| image.mark_local(number, nth));
        }
        // All of both was read, and little of it is needed again.
        let tree = image.content.tree.as_ref().map_or(Ok(()), |tree| tree.forget());
        if let Err(error) = tree.and(image.content.table.forget()) {
            tracing::warn!("{}", error.one_line());
        }
    }

    /// Brings a large file that an image reads from an object.
    pub(super) async fn bring_object(
        self: &Arc<Self>,
        image: Arc<Image>,
        layer: usize,
        range: Range<u64>,
        file: Digest,
        caller: Caller,
    ) -> Result<()> {
        self.bring_data(image.layers[layer].record.digest, range.clone(), Origin::Demand, caller).await?;
        let this = Arc::clone(self);
        blocking("making an object of a large file", move || this.make_object(&image, layer, range, &file)).await
    }

    /// Fills data files from objects that are here, for all large files that the image reads from there.
    pub(super) async fn fill_all(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let table = &image.content.table;
        for layer in 0..image.layers.len() {
            let here = table.large_files(layer as u32).filter(|file| self.store.cas().contains(&file.digest));
            for range in here.filter(|file| !image.is_object(&file.digest)).filter_map(|file| file.data_range()) {
                self.fill(image, layer, &range).await?;
            }
        }
        Ok(())
    }

    /// Makes objects of all large files that the image reads from objects. Their bytes are in data files.
    pub(super) async fn make_objects(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let (this, image) = (Arc::clone(self), Arc::clone(image));
        let work = move || {
            let missing = image.objects().filter(|file| !this.store.cas().contains(file));
            missing.into_iter().try_for_each(|file| match image.find(file) {
                Some(Place::Data(layer, range)) => this.make_object(&image, layer, range, file),
                _ => Ok(()),
            })
        };
        blocking("making objects of large files", work).await
    }

    fn make_object(&self, image: &Image, layer: usize, range: Range<u64>, file: &Digest) -> Result<()> {
        let data = image.layers[layer].data(&self.store)?;
        let mut writer = self.store.cas().writer()?;
        let mut buffer = vec![0; COPY as usize];
        let mut at = range.start;
        while at < range.end {
            let portion = &mut buffer[..(range.end - at).min(COPY) as usize];
            data.read(at, portion)?;
            writer.write(portion)?;
            at += portion.len() as u64;
        }
        writer.finish_as(file).map_err(|e| e.during(format!("making an object of a large file of {}", image.content.name)))
    }

    /// Fills the pieces that cover the range from objects, where those are here. Whether any was.
    pub(super) async fn fill(self: &Arc<Self>, image: &Arc<Image>, layer: usize, range: &Range<u64>) -> Result<bool> {
        let of = &image.layers[layer];
        let pieces: Vec<usize> = of.covering(range).filter(|nth| self.store.cas().contains(&of.pieces[*nth].file)).collect();
        if pieces.is_empty() {
            return Ok(false);
        }
        let (this, image) = (Arc::clone(self), Arc::clone(image));
        blocking("copying a large file", move || this.fill_pieces(&image, layer, &pieces)).await
    }

    fn fill_pieces(&self, image: &Image, number: usize, pieces: &[usize]) -> Result<bool> {
        let layer = &image.layers[number];
        let data = layer.data(&self.store)?;
        let mut filled = false;
        for nth in pieces {
            let piece = &layer.pieces[*nth];
            let object = self.store.cas().get(&piece.file)?;
            let chunks = piece.chunks(&image.content.table);
            let (Some(range), Some(first)) = (&piece.data, chunks.first()) else { continue };
            if data.has(range.clone()) {
                continue;
            }
            let start = range.start - first.file_offset;
            for chunk in &chunks {
                let mut content = vec![0; usize::try_from(chunk.len).expect("chunks of large files have a limit")];
                let read = object.read_exact_at(&mut content, chunk.file_offset);
                read.map_err(|e| Error::io("reading object", piece.file.to_string(), e))?;
                if !is_right(chunk, &content) {
                    // The network has it. Which of the two is wrong the layer's check will say.
                    tracing::warn!("object {} is not what an index says at offset {}", piece.file, chunk.file_offset);
                    return Ok(filled);
                }
                data.write(start + chunk.file_offset, &content)?;
            }
            self.stored(&piece.id(&layer.record.digest));
            filled = true;
        }
        Ok(filled)
    }
}

fn is_right(chunk: &Chunk, content: &[u8]) -> bool {
    match chunk.zeros {
        true => content.iter().all(|byte| *byte == 0),
        false => Digest::of(content) == chunk.digest,
    }
}
