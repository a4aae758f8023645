//! An attached image: where each part of its layers is, what is local, and what went wrong with it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::decode::{Damage, Segment};
use super::gaps::GapLog;
use super::guide::Guide;
use super::heads::Heads;
use super::inflight::Origin;
use super::obstacle::Obstacle;
use super::payer::{Group, Payer};
use super::piece::{Destination, Piece, PieceId, PiecePlan, pieces_of};
use super::programs::Programs;
use super::reads::Reads;
use super::runs::Runs;
use super::span::{Part, first_at};
use crate::daemon::protocol::Progress;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::LayerKind;
use crate::layer::spans::Spans;
use crate::source::Source;
use crate::store::Store;
use crate::store::big::BigData;
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
    /// Large files that the tree has as objects, and whether that is known.
    objects: OnceLock<HashSet<Digest>>,
    learnt: watch::Sender<bool>,
    damaged: Mutex<HashMap<PieceId, Arc<Error>>>,
    hot: Mutex<Vec<Hot>>,
    /// Directories in which programs wait.
    pub runs: Runs,
    /// Where programs read in large files.
    pub reads: Reads,
    /// Programs have begun to wait somewhere.
    pub heated: Notify,
    pub(super) guide: Guide,
    /// A pack has come that no start by a profile has followed yet.
    pub(super) was_unpacked: AtomicBool,
    pub programs: Programs,
    /// The container that waited last, as far as that is known.
    caller: Mutex<Option<Group>>,
}

/// One layer of it.
pub(super) struct Layer {
    pub record: LayerRecord,
    /// Pieces to be fetched from this layer, ascending by their place in the blob.
    pub pieces: Vec<Piece>,
    /// The extents of `pieces`.
    pub extents: Vec<Range<u64>>,
    /// Numbers of the pieces of large files, ascending by their place in the data file.
    large: Vec<usize>,
    /// Where each large file ends in the data file.
    ends: Vec<u64>,
    /// The data file, open since somebody has asked for it.
    data: OnceLock<Arc<BigData>>,
    /// Where its decompression can begin, open since somebody has asked for it.
    spans: OnceLock<Arc<Spans>>,
    /// What came of spans that are not complete.
    pub heads: Heads,
    /// Known once somebody has asked for them.
    pub gaps: OnceLock<Arc<Gaps>>,
    /// The last request for it that failed, and when.
    pub failure: Mutex<Option<(Instant, Arc<Error>)>>,
    /// Bytes of the blob that are here and counted in the image's progress.
    counted: Mutex<u64>,
}

/// Where an image has a file that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is this piece of this layer.
    Piece(usize, usize),
    /// It is a large file: these bytes of this layer's data file.
    Data(usize, Range<u64>),
}

/// The gaps of a layer; one for all images with that layer.
pub(super) struct Gaps {
    /// Where the tar ends in the blob; behind are tables of contents. Of a layer that is fetched by spans a gap is what a span has beside
    /// payloads, kept decompressed.
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
            objects: OnceLock::new(),
            learnt: watch::Sender::new(false),
            damaged: Mutex::default(),
            hot: Mutex::default(),
            runs: Runs::default(),
            reads: Reads::default(),
            heated: Notify::new(),
            guide: Guide::default(),
            was_unpacked: AtomicBool::new(false),
            programs: Programs::default(),
            caller: Mutex::default(),
        }
    }

    /// Whom a demand is charged to; what is guessed from then on, as well ([`Image::guesser`]).
    pub fn payer(&self, caller: Option<Group>) -> Payer {
        *self.caller.lock().expect("no holder of this lock panics") = caller;
        Payer { image: self.content.image, group: caller }
    }

    /// Whom a guess is charged to: who waited last has made it likely.
    pub fn guesser(&self) -> Payer {
        Payer { image: self.content.image, group: *self.caller.lock().expect("no holder of this lock panics") }
    }

    /// Where a file of this image that can be fetched is.
    pub fn find(&self, file: &Digest) -> Option<Place> {
        let record = self.content.table.lookup(file)?;
        let number = record.layer as usize;
        let layer = self.layers.get(number)?;
        if let Some(range) = record.data_range() {
            return Some(Place::Data(number, range));
        }
        let start = self.content.table.chunks(&record).next()?.blob_offset;
        let first = first_at(&layer.extents, start);
        let mut same_start = (first..layer.pieces.len()).take_while(|n| layer.extents[*n].start == start);
        Some(Place::Piece(number, same_start.find(|n| layer.pieces[*n].file == *file)?))
    }

    /// Layer and number of a piece.
    pub fn find_piece(&self, piece: &PieceId) -> Option<(usize, usize)> {
        match piece {
            PieceId::Object(file) => match self.find(file)? {
                Place::Piece(layer, nth) => Some((layer, nth)),
                Place::Data(..) => None,
            },
            PieceId::Data { layer, offset } => {
                let number = self.layers.iter().position(|known| known.record.digest == *layer)?;
                let nth = self.layers[number].covering(&(*offset..*offset + 1)).next()?;
                (self.layers[number].pieces[nth].id(layer) == *piece).then_some((number, nth))
            }
        }
    }

    /// Learns from the tree which files lie in the same directory, and which large files are objects there; without a tree those are that
    /// are objects now.
    pub fn learn_tree(&self, objects_now: &[Digest]) {
        let is_large = |digest: &Digest| self.content.table.lookup(digest).is_some_and(|file| file.data_offset.is_some());
        let objects = match &self.content.tree {
            None => objects_now.iter().copied().filter(is_large).collect(),
            Some(tree) => {
                let pieces: Vec<usize> = self.layers.iter().map(|layer| layer.pieces.len()).collect();
                let mut objects = HashSet::new();
                self.runs.learn(tree, &pieces, |file| match self.find(&file.digest)? {
                    Place::Piece(layer, nth) => Some((layer, nth)),
                    Place::Data(..) if file.large => None,
                    Place::Data(..) => {
                        objects.insert(file.digest);
                        None
                    }
                });
                objects
            }
        };
        // Learnt already where the image was attached twice: it is the same then.
        drop(self.objects.set(objects));
        self.learnt.send_replace(true);
    }

    /// A part as the decoder takes it.
    pub fn segment(&self, layer: usize, part: Part) -> Segment {
        let (table, layer) = (&self.content.table, &self.layers[layer]);
        let piece = match part {
            Part::Gap(n) => return Segment::Gap(layer.gap_ranges()[n].clone()),
            Part::Piece(n) => &layer.pieces[n],
        };
        let chunks = piece.chunks(table);
        let to = match (&piece.data, chunks.first()) {
            (Some(data), Some(first)) => Destination::Data { len: layer.record.data_len, file: data.start - first.file_offset },
            _ => Destination::Object,
        };
        Segment::Piece(PiecePlan { id: piece.id(&layer.record.digest), file: piece.file, chunks: chunks.into(), to })
    }

    /// Notes that a piece is in the store.
    pub fn mark_local(&self, layer: usize, nth: usize) {
        let layer = &self.layers[layer];
        // Where pieces share their bytes, spans are counted.
        if layer.pieces[nth].set_local() && !layer.record.kind.is_spanned() {
            self.count_local(layer, layer.extents[nth].end - layer.extents[nth].start);
        }
    }

    /// Whether a piece is in the store, in the form in which this image reads it.
    pub fn is_stored(&self, layer: usize, nth: usize, store: &Store) -> bool {
        let layer = &self.layers[layer];
        let Piece { file, data, .. } = &layer.pieces[nth];
        match data {
            None => store.cas().contains(file),
            Some(_) if self.is_object(file) && store.cas().contains(file) => true,
            // Where the data file cannot be opened, whoever writes to it hears why.
            Some(range) => layer.data(store).is_ok_and(|data| data.has(range.clone())),
        }
    }

    /// Whether this image reads a large file from an object, as far as that is known.
    pub fn is_object(&self, file: &Digest) -> bool {
        self.objects.get().is_some_and(|objects| objects.contains(file))
    }

    /// Ends when that is known.
    pub async fn is_learnt(&self) {
        // The sender is a field of this.
        drop(self.learnt.subscribe().wait_for(|learnt| *learnt).await);
    }

    /// Large files that this image reads from objects.
    pub fn objects(&self) -> impl Iterator<Item = &Digest> {
        self.objects.get().into_iter().flatten()
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
            Origin::Prefetch => progress.fetched_prefetch += bytes,
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

    /// The error of a piece that was damaged whenever it was fetched.
    pub fn damage(&self, piece: &PieceId) -> Option<Arc<Error>> {
        self.damaged().get(piece).cloned()
    }

    /// The error of the first piece of this range of a layer's data file that was damaged whenever it was fetched.
    pub fn damage_in(&self, layer: usize, range: &Range<u64>) -> Option<Arc<Error>> {
        let layer = &self.layers[layer];
        let damaged = self.damaged();
        if damaged.is_empty() {
            return None;
        }
        layer.covering(range).find_map(|n| damaged.get(&layer.pieces[n].id(&layer.record.digest)).cloned())
    }

    /// The first of the damaged pieces, and how many there are.
    pub fn any_damage(&self) -> Option<(Arc<Error>, usize)> {
        let damaged = self.damaged();
        damaged.values().next().map(|error| (Arc::clone(error), damaged.len()))
    }

    /// Gives a piece up. Returns the error that everybody who wants it gets.
    pub fn give_up(&self, layer: usize, damage: &Damage) -> Arc<Error> {
        let Damage { piece, file, offset, why } = damage;
        let error = Error::new(Outcome::Integrity, format!("reading {file} of {}", self.at(layer, *offset)))
            .because(why.clone())
            .advise("the registry's copy is damaged, or an index lies: push the image again, or pull it from elsewhere");
        let error = Arc::new(error);
        self.damaged().insert(*piece, Arc::clone(&error));
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

    fn damaged(&self) -> MutexGuard<'_, HashMap<PieceId, Arc<Error>>> {
        self.damaged.lock().expect("no holder of this lock panics")
    }

    fn hot(&self) -> MutexGuard<'_, Vec<Hot>> {
        self.hot.lock().expect("no holder of this lock panics")
    }
}

impl Layer {
    fn new(table: &Table, number: u32, record: LayerRecord) -> Self {
        let mut all: Vec<(Range<u64>, Piece)> = Vec::new();
        if record.kind != LayerKind::Stream {
            table.files_by_offset(number).for_each(|file| all.extend(pieces_of(table, &file)));
            // Only where an index is hostile do the chunks of files lie between each other.
            all.sort_by_key(|(extent, _)| extent.start);
        }
        let (extents, pieces): (Vec<Range<u64>>, Vec<Piece>) = all.into_iter().unzip();
        let place = |n: &usize| pieces[*n].data.as_ref().map(|data| data.start);
        let mut large: Vec<usize> = (0..pieces.len()).filter(|n| place(n).is_some()).collect();
        large.sort_by_key(place);
        let ends = table.large_files(number).filter_map(|file| Some(file.data_range()?.end)).collect();
        // A layer without random access was read whole before there could be a table.
        let counted = Mutex::new(if record.kind == LayerKind::Stream { record.size } else { 0 });
        Self {
            record,
            pieces,
            extents,
            large,
            ends,
            data: OnceLock::new(),
            spans: OnceLock::new(),
            heads: Heads::default(),
            gaps: OnceLock::new(),
            failure: Mutex::default(),
            counted,
        }
    }

    /// Its data file. To be called only where the layer has large files.
    pub fn data(&self, store: &Store) -> Result<&Arc<BigData>> {
        if let Some(data) = self.data.get() {
            return Ok(data);
        }
        let data = store.big(&self.record.digest, self.record.data_len)?;
        self.ends.iter().try_for_each(|end| data.pad(*end))?;
        Ok(self.data.get_or_init(|| data))
    }

    /// Numbers of the pieces that have bytes in this range of the data file, ascending by their place there.
    pub fn covering(&self, range: &Range<u64>) -> impl Iterator<Item = usize> + use<'_> {
        let data = |n: &usize| self.pieces[*n].data.clone().unwrap_or_default();
        let (first, end) = (self.large.partition_point(|n| data(n).end <= range.start), range.end);
        self.large[first..].iter().copied().take_while(move |n| data(n).start < end)
    }

    /// Whether a part belongs to a large file.
    pub fn is_large(&self, part: Part) -> bool {
        match part {
            Part::Piece(n) => self.pieces[n].data.is_some(),
            Part::Gap(_) => false,
        }
    }

    /// The gaps, as far as they are known.
    pub fn gap_ranges(&self) -> &[Range<u64>] {
        self.gaps.get().map_or(&[], |gaps| &gaps.ranges)
    }

    /// Whether a part is already here.
    pub fn is_local(&self, part: Part) -> bool {
        match part {
            Part::Piece(n) => self.pieces[n].is_local(),
            Part::Gap(n) if self.record.kind.is_spanned() => {
                self.gaps.get().is_none_or(|gaps| gaps.log().begins(gaps.ranges[n].start))
            }
            Part::Gap(n) => self.gaps.get().is_none_or(|gaps| gaps.log().contains(&gaps.ranges[n])),
        }
    }

    /// Extent of a part in the blob.
    pub fn extent(&self, part: Part) -> Range<u64> {
        match part {
            Part::Piece(n) => self.extents[n].clone(),
            Part::Gap(n) => self.gap_ranges()[n].clone(),
        }
    }

    /// Its spans. To be called only where the layer is fetched by them.
    pub fn spans(&self, store: &Store) -> Result<&Arc<Spans>> {
        if let Some(spans) = self.spans.get() {
            return Ok(spans);
        }
        let spans = Arc::new(Spans::open(&store.spans_path(&self.record.digest))?);
        Ok(self.spans.get_or_init(|| spans))
    }

    /// Bytes of the blob that a gap stands for, which begins at `offset` and has `len` bytes as it is kept.
    pub fn gap_bytes(&self, offset: u64, len: u64) -> u64 {
        match self.spans.get().filter(|_| self.record.kind.is_spanned()).and_then(|spans| Some(spans.range(spans.at(offset)?))) {
            Some(range) => range.end - range.start,
            None => len,
        }
    }

    /// Whether what a span has beside payloads is missing.
    pub fn misses_gap(&self, span: u64) -> bool {
        self.gaps.get().is_some_and(|gaps| !gaps.ranges.is_empty() && !gaps.log().begins(span))
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
