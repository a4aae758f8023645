//! An attached image: where each part of its layers is, what is local, and what went wrong with it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::decode::{Damage, FilePlan, Segment};
use super::gaps::GapLog;
use super::inflight::Origin;
use super::obstacle::Obstacle;
use super::runs::Runs;
use super::span::{Part, first_at};
use crate::daemon::protocol::Progress;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::LayerKind;
use crate::source::Source;
use crate::table::{LayerRecord, Table};
use crate::tree::erofs::read::StoredTree;

/// An image that is to be fetched.
pub struct ImageContent {
    /// Digest of its manifest.
    pub image: Digest,
    /// Its name, for messages.
    pub name: String,
    /// Where its content is.
    pub table: Arc<Table>,
    /// The merged tree, to know what lies in the same directory; without it nothing is known of that.
    pub tree: Option<Arc<StoredTree>>,
    /// Where the blobs are.
    pub source: Arc<dyn Source>,
    /// Bytes that were received to know the above: manifest, configuration, indexes.
    pub index_bytes: u64,
}

/// How near to each other, in the blob, files are that a program reads for the same reason: bytes.
const NEAR: u64 = 1 << 20;
/// How many places are remembered where programs waited.
const HOT_PLACES: usize = 16;
/// How much a place can be worth at most.
const MAX_HEAT: u32 = 4;

/// See the module.
pub(super) struct Image {
    pub content: ImageContent,
    pub layers: Vec<Layer>,
    pub progress: watch::Sender<Progress>,
    /// Why the background rests.
    pub obstacle: watch::Sender<Option<Obstacle>>,
    /// It is not to rest any longer.
    pub try_again: Notify,
    pub attached: Instant,
    damaged: Mutex<HashMap<Digest, Arc<Error>>>,
    hot: Mutex<Vec<Hot>>,
    /// Directories in which programs wait.
    pub runs: Runs,
    /// Programs have begun to wait somewhere.
    pub heated: Notify,
}

/// One layer of it.
pub(super) struct Layer {
    pub record: LayerRecord,
    /// Files to be fetched from this layer, ascending by their place in the blob.
    pub files: Vec<File>,
    /// The extents of `files`.
    pub extents: Vec<Range<u64>>,
    /// Known once somebody has asked for them.
    pub gaps: OnceLock<Arc<Gaps>>,
    /// Bytes of the blob that are here and counted in the image's progress.
    counted: Mutex<u64>,
}

/// A file of a layer.
pub(super) struct File {
    pub digest: Digest,
    /// Known to be in the store.
    local: AtomicBool,
}

/// The gaps of a layer; one for all images with that layer.
pub(super) struct Gaps {
    /// Where the tar ends in the blob; behind are tables of contents.
    pub tar_end: u64,
    pub ranges: Vec<Range<u64>>,
    pub log: Mutex<GapLog>,
}

/// A place in a layer where a program waited not long ago.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hot {
    pub layer: usize,
    /// Up to where it has been fetched.
    pub from: u64,
    /// How often, less what has been fetched ahead of it.
    pub heat: u32,
}

impl Image {
    pub fn new(content: ImageContent) -> Self {
        let layers: Vec<Layer> =
            content.table.layers().enumerate().map(|(n, record)| Layer::new(&content.table, n as u32, record)).collect();
        let bytes_total = layers.iter().map(|layer| layer.record.size).sum();
        let bytes_local = layers.iter().map(|layer| *layer.counted.lock().expect("nobody else has it")).sum();
        let fetched_index = content.index_bytes;
        let progress = watch::Sender::new(Progress { bytes_total, bytes_local, fetched_index, ..Progress::default() });
        Self {
            content,
            layers,
            progress,
            obstacle: watch::Sender::new(None),
            try_again: Notify::new(),
            attached: Instant::now(),
            damaged: Mutex::default(),
            hot: Mutex::default(),
            runs: Runs::default(),
            heated: Notify::new(),
        }
    }

    /// Layer and number of a file of this image that can be fetched.
    pub fn find(&self, digest: &Digest) -> Option<(usize, usize)> {
        let record = self.content.table.lookup(digest)?;
        let start = self.content.table.chunks(&record).next()?.blob_offset;
        let layer = record.layer as usize;
        let files = &self.layers.get(layer)?.extents;
        let first = first_at(files, start);
        let mut same_start = (first..files.len()).take_while(|n| files[*n].start == start);
        Some((layer, same_start.find(|n| self.layers[layer].files[*n].digest == *digest)?))
    }

    /// Learns which files lie in the same directory.
    pub fn learn_directories(&self) {
        if let Some(tree) = &self.content.tree {
            let files: Vec<usize> = self.layers.iter().map(|layer| layer.files.len()).collect();
            self.runs.learn(tree, &files, |digest| self.find(digest));
        }
    }

    /// A part as the decoder takes it.
    pub fn segment(&self, layer: usize, part: Part) -> Segment {
        let (table, layer) = (&self.content.table, &self.layers[layer]);
        match part {
            Part::Gap(n) => Segment::Gap(layer.gap_ranges()[n].clone()),
            Part::File(n) => {
                let digest = layer.files[n].digest;
                let record = table.lookup(&digest).expect("the list of files was made from the table");
                Segment::File(FilePlan { digest, chunks: table.chunks(&record).collect() })
            }
        }
    }

    /// Notes that a file is in the store. Returns whether that was news.
    pub fn mark_local(&self, layer: usize, file: usize) -> bool {
        let layer = &self.layers[layer];
        if layer.files[file].local.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.count_local(layer, layer.extents[file].end - layer.extents[file].start);
        true
    }

    /// Notes that so many bytes of the layer are here.
    pub fn count_local(&self, layer: &Layer, bytes: u64) {
        // Content that the layer has twice is fetched once, hence the limit; `count_whole` adds what is missing.
        let bytes = {
            let mut counted = layer.counted.lock().expect("no holder of this lock panics");
            let bytes = bytes.min(layer.record.size - *counted);
            *counted += bytes;
            bytes
        };
        self.progress.send_modify(|progress| progress.bytes_local += bytes);
    }

    /// Notes that nothing of the layer is missing.
    pub fn count_whole(&self, layer: &Layer) {
        self.count_local(layer, layer.record.size);
    }

    /// Notes what came over the network.
    pub fn count_fetched(&self, origin: Origin, bytes: u64) {
        self.progress.send_modify(|progress| match origin {
            Origin::Demand => progress.fetched_demand += bytes,
            Origin::Readahead => progress.fetched_readahead += bytes,
            Origin::Background => progress.fetched_background += bytes,
        });
    }

    /// Notes why the background rests.
    pub fn met(&self, error: Arc<Error>) {
        self.obstacle.send_modify(|obstacle| *obstacle = Some(Obstacle::again(obstacle.as_ref(), error)));
    }

    /// Notes that the background goes on.
    pub fn overcome(&self) {
        self.obstacle.send_if_modified(|obstacle| obstacle.take().is_some());
    }

    /// The error of a file that was damaged whenever it was fetched.
    pub fn damage(&self, file: &Digest) -> Option<Arc<Error>> {
        self.damaged().get(file).cloned()
    }

    /// The first of the damaged files, and how many there are.
    pub fn any_damage(&self) -> Option<(Arc<Error>, usize)> {
        let damaged = self.damaged();
        damaged.values().next().map(|error| (Arc::clone(error), damaged.len()))
    }

    /// Gives a file up. Returns the error that everybody who wants it gets.
    pub fn give_up(&self, layer: usize, damage: &Damage) -> Arc<Error> {
        let Damage { file, offset, why } = damage;
        let error = Error::new(
            Outcome::Integrity,
            format!("reading {file} of {} from layer {} at offset {offset}", self.content.name, self.layers[layer].record.digest),
        )
        .because(why.clone())
        .advise("the registry's copy is damaged, or an index lies: push the image again, or pull it from elsewhere");
        let error = Arc::new(error);
        self.damaged().insert(*file, Arc::clone(&error));
        error
    }

    /// Remembers that a program waited for bytes at `start`, and that the layer has been asked for up to `end`. Returns how often
    /// that has happened near there.
    pub fn heat(&self, layer: usize, start: u64, end: u64) -> u32 {
        let mut hot = self.hot();
        let near = hot.iter().position(|h| h.layer == layer && h.from.abs_diff(start) < NEAR);
        let old = near.map(|n| hot.remove(n));
        let heat = old.map_or(1, |old| (old.heat + 1).min(MAX_HEAT));
        if hot.len() == HOT_PLACES {
            hot.remove(0);
        }
        hot.push(Hot { layer, from: end, heat });
        heat
    }

    /// The place where programs waited last, if it is worth more; costs it some of its worth. `to` says up to where that is fetched
    /// with [`Image::cooled`].
    pub fn hottest(&self) -> Option<Hot> {
        let mut hot = self.hot();
        let place = hot.iter_mut().rev().find(|h| h.heat > 0)?;
        place.heat -= 1;
        Some(*place)
    }

    /// Says that a hot place has been fetched from `from` to `to`.
    pub fn cooled(&self, layer: usize, from: u64, to: u64) {
        if let Some(place) = self.hot().iter_mut().find(|h| h.layer == layer && h.from == from) {
            place.from = to;
        }
    }

    fn damaged(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Error>>> {
        self.damaged.lock().expect("no holder of this lock panics")
    }

    fn hot(&self) -> MutexGuard<'_, Vec<Hot>> {
        self.hot.lock().expect("no holder of this lock panics")
    }
}

impl Layer {
    fn new(table: &Table, number: u32, record: LayerRecord) -> Self {
        let (mut files, mut extents) = (Vec::new(), Vec::new());
        if record.kind != LayerKind::Stream {
            for file in table.files_by_offset(number) {
                let mut chunks = table.chunks(&file);
                let Some(first) = chunks.next() else { continue };
                let last = chunks.last().unwrap_or_else(|| first.clone());
                files.push(File { digest: file.digest, local: AtomicBool::new(false) });
                extents.push(first.blob_offset..last.blob_offset + last.blob_len);
            }
        }
        // A layer without random access was read whole before there could be a table.
        let counted = if record.kind == LayerKind::Stream { record.size } else { 0 };
        Self { record, files, extents, gaps: OnceLock::new(), counted: Mutex::new(counted) }
    }

    /// The gaps, as far as they are known.
    pub fn gap_ranges(&self) -> &[Range<u64>] {
        self.gaps.get().map_or(&[], |gaps| &gaps.ranges)
    }

    /// Whether a part is already here.
    pub fn is_local(&self, part: Part) -> bool {
        match part {
            Part::File(n) => self.files[n].local.load(Ordering::Relaxed),
            Part::Gap(n) => self.gaps.get().is_none_or(|gaps| gaps.log().contains(&gaps.ranges[n])),
        }
    }

    /// Extent of a part in the blob.
    pub fn extent(&self, part: Part) -> Range<u64> {
        match part {
            Part::File(n) => self.extents[n].clone(),
            Part::Gap(n) => self.gap_ranges()[n].clone(),
        }
    }

    /// Keeps a gap until the layer is verified.
    pub fn keep_gap(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.gaps.get() {
            Some(gaps) => gaps.log().append(offset, bytes),
            None => Ok(()),
        }
    }
}

impl Gaps {
    /// The log; held for one read or write of it.
    pub fn log(&self) -> MutexGuard<'_, GapLog> {
        self.log.lock().expect("no holder of this lock panics")
    }
}
