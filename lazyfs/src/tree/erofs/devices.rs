//! Large files: their content is read from devices, cluster by cluster, and a number in the image says from which.
//!
//! An image has two devices for each layer with large files, both laid out as the layer's data file ([`crate::store::big`]): the number of the
//! first is that of the data file itself, the next one's that of the FUSE trigger. An inode has an index for each cluster:
//!
//! ```text
//! u16 upper half of the block: 0 | u16 number of the device | u32 block in the device
//! ```
//!
//! Every index names the trigger when the image is written. The number is all that ever changes in a written image: when a cluster is
//! here, it becomes that of the data file ([`crate::store::patch`]). Linux reads it each time it needs to know where a cluster is. The
//! superblock and the table of devices have a checksum, so no index is in the first block.

use std::collections::HashMap;
use std::ops::Range;

use super::format::{BLOCK, Fields, SLOT};
use super::read::StoredTree;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::store::big::{CLUSTER, MAX_DATA};
use crate::table::Table;
use crate::wire::Reader;

/// Bytes of an index.
pub const INDEX: u64 = 8;
/// Bytes of a record in the table of devices.
pub(super) const DEVICE: usize = 128;
/// Where the table of devices is, in records: right behind the superblock.
pub(super) const TABLE: u16 = 9;
/// The layout of large files: with indexes (0x20), and how much larger than a block a cluster is, as a power of two.
pub(super) const CHUNK_FORMAT: u32 = 0x20 | (CLUSTER / BLOCK).trailing_zeros();
/// Where the number of the device is in an index.
const NUMBER: u64 = 2;
/// Layers of an image that can have large files. Numbers of devices stay within a byte, so that none is ever seen half written.
const MAX_LAYERS: usize = 127;

/// Which files of an image are large, and where they are. None by default.
#[derive(Clone, Debug, Default)]
pub struct LargeFiles {
    layers: Vec<LargeLayer>,
    places: HashMap<Digest, (u16, u64)>,
}

/// A layer with large files, as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeLayer {
    /// Its digest.
    pub layer: Digest,
    /// Length of its data file, bytes, rounded up to whole blocks.
    pub len: u64,
}

impl LargeFiles {
    /// The large files of an image, but those that are in the store as a whole.
    pub fn of(table: &Table, is_stored: impl Fn(&Digest) -> bool) -> Self {
        let mut large = Self::default();
        for (number, layer) in table.layers().enumerate() {
            let files = table.large_files(number as u32).filter(|file| !is_stored(&file.digest));
            large.add(layer.digest, layer.data_len, files.filter_map(|file| Some((file.digest, file.data_offset?))));
        }
        large
    }

    /// Adds a layer: the length of its data file, and where in it files begin. All are multiples of [`CLUSTER`], but the length. A layer too
    /// many is left out: its files are then fetched as a whole.
    pub fn add(&mut self, layer: Digest, len: u64, files: impl IntoIterator<Item = (Digest, u64)>) {
        if self.layers.len() == MAX_LAYERS {
            return;
        }
        let number = self.layers.len() as u16;
        let before = self.places.len();
        for (file, offset) in files {
            debug_assert!(offset.is_multiple_of(CLUSTER) && offset < len && len <= MAX_DATA);
            self.places.entry(file).or_insert((number, offset));
        }
        if self.places.len() > before {
            self.layers.push(LargeLayer { layer, len: len.next_multiple_of(BLOCK) });
        }
    }

    /// The layers that have a large file.
    pub fn layers(&self) -> &[LargeLayer] {
        &self.layers
    }

    /// Number of the trigger's device and first block in it, for a large file.
    pub(super) fn place(&self, file: &Digest) -> Option<(u16, u32)> {
        let (layer, offset) = self.places.get(file)?;
        Some((trigger_number(*layer), (offset / BLOCK) as u32))
    }

    /// The table of devices.
    pub(super) fn table(&self) -> Vec<u8> {
        let mut fields = Fields(Vec::with_capacity(self.layers.len() * 2 * DEVICE));
        for layer in self.layers.iter().flat_map(|layer| [layer, layer]) {
            let end = fields.0.len() + DEVICE;
            fields.0.extend(layer.layer.hex().as_bytes());
            fields.u32(u32::try_from(layer.len / BLOCK).expect("data files have a limit"));
            fields.0.resize(end, 0);
        }
        fields.0
    }
}

/// The indexes of a large file of `size` bytes.
pub(super) fn indexes(device: u16, block: u32, size: u64) -> Vec<u8> {
    let mut fields = Fields(Vec::with_capacity(count(size) as usize * INDEX as usize));
    for cluster in 0..count(size) as u32 {
        fields.u16(0);
        fields.u16(device);
        fields.u32(block + cluster * (CLUSTER / BLOCK) as u32);
    }
    fields.0
}

/// Clusters of a file.
pub(super) fn count(size: u64) -> u64 {
    size.div_ceil(CLUSTER)
}

fn data_number(layer: u16) -> u16 {
    2 * layer + 1
}

fn trigger_number(layer: u16) -> u16 {
    2 * layer + 2
}

/// Where a stored image has the numbers of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMap {
    /// The layers with large files, in the order of their devices.
    pub layers: Vec<LargeLayer>,
    /// For each layer, by place in its data file. Two inodes may have the same place.
    spans: Vec<Vec<Span>>,
}

/// The indexes of one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    /// Its clusters in the layer's data file.
    clusters: Range<u64>,
    /// Where the first index is in the image.
    at: u64,
}

impl DeviceMap {
    /// Reads where the numbers are in an image.
    pub fn of(tree: &StoredTree) -> Result<Self> {
        let read = || {
            let layers = layers(tree)?;
            let mut spans = vec![Vec::new(); layers.len()];
            let mut whole = true;
            tree.for_each_large_file(&mut |at, size| match span(tree, at, size, &layers) {
                Some((layer, span)) => spans[layer].push(span),
                None => whole = false,
            });
            for spans in &mut spans {
                spans.sort_unstable_by_key(|span| (span.clusters.start, span.clusters.end, span.at));
                // Files of a layer do not overlap, unless they are the same.
                whole &= spans.windows(2).all(|pair| {
                    let (one, next) = (&pair[0].clusters, &pair[1].clusters);
                    one == next || one.end <= next.start
                });
            }
            whole.then_some(Self { layers, spans })
        };
        read().ok_or_else(|| {
            Error::new(Outcome::Integrity, "reading where an image's tree has its large files")
                .because("it says what cannot be")
                .advise("remove the image and pull it again")
        })
    }

    /// Where in the image the number of the device stands for these clusters of a layer, with the cluster.
    pub fn numbers(&self, layer: usize, clusters: Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let spans = &self.spans[layer];
        let first = spans.partition_point(|span| span.clusters.end <= clusters.start);
        let end = clusters.end;
        spans[first..].iter().take_while(move |span| span.clusters.start < end).flat_map(move |span| {
            let common = span.clusters.start.max(clusters.start)..span.clusters.end.min(end);
            common.map(|cluster| (cluster, span.at + (cluster - span.clusters.start) * INDEX + NUMBER))
        })
    }

    /// All indexes of a layer: where they begin in the image, and their clusters.
    pub fn spans(&self, layer: usize) -> impl Iterator<Item = (u64, Range<u64>)> + '_ {
        self.spans[layer].iter().map(|span| (span.at, span.clusters.clone()))
    }

    /// The number of the device that a cluster of a layer is to be read from, as the image has it.
    pub fn number(layer: usize, is_here: bool) -> [u8; 2] {
        let layer = layer as u16;
        if is_here { data_number(layer) } else { trigger_number(layer) }.to_le_bytes()
    }

    /// Digest of the image as it was written, whatever has arrived since.
    pub fn original_digest(&self, image: &[u8]) -> Digest {
        let spans = self.spans.iter().enumerate();
        let mut all: Vec<(usize, &Span)> = spans.flat_map(|(layer, spans)| spans.iter().map(move |span| (layer, span))).collect();
        all.sort_unstable_by_key(|(_, span)| span.at);
        let (mut hasher, mut at) = (Hasher::default(), 0);
        for (layer, span) in all {
            let (start, len) = (span.at as usize, (span.clusters.end - span.clusters.start) as usize * INDEX as usize);
            hasher.update(&image[at..start]);
            let mut indexes = image[start..start + len].to_vec();
            for index in indexes.chunks_mut(INDEX as usize) {
                index[NUMBER as usize..NUMBER as usize + 2].copy_from_slice(&Self::number(layer, false));
            }
            hasher.update(&indexes);
            at = start + len;
        }
        hasher.update(&image[at..]);
        hasher.finish()
    }
}

/// The table of devices, which has each layer twice.
pub(super) fn layers(tree: &StoredTree) -> Option<Vec<LargeLayer>> {
    let (count, start) = tree.device_table();
    let mut records = Vec::new();
    for number in 0..count {
        let mut fields = Reader::new(tree.bytes.get(start + number * DEVICE..)?);
        let layer = Digest::from_hex(str::from_utf8(fields.take(64)?).ok()?).ok()?;
        records.push(LargeLayer { layer, len: u64::from(fields.u32()?) * BLOCK });
    }
    let pairs = records.chunks(2);
    let layers =
        pairs.map(|pair| (pair.len() == 2 && pair[0] == pair[1]).then(|| pair[0].clone())).collect::<Option<Vec<_>>>()?;
    (layers.len() <= MAX_LAYERS).then_some(layers)
}

/// What an index says: place in the list of devices, whether the bytes are here (else the device is the trigger's), and where they begin.
pub(crate) fn parse_index(index: &[u8; INDEX as usize]) -> Option<(usize, bool, u64)> {
    let mut fields = Reader::new(index);
    let (high, device, block) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let number = usize::from(device.checked_sub(1)?);
    (high == 0).then_some((number, number.is_multiple_of(2), u64::from(block) * BLOCK))
}

/// Layer and place of the file whose indexes begin at `at`.
fn span(tree: &StoredTree, at: usize, size: u64, layers: &[LargeLayer]) -> Option<(usize, Span)> {
    let len = usize::try_from(count(size).checked_mul(INDEX)?).ok()?;
    let indexes = tree.bytes.get(at..at.checked_add(len)?)?;
    let read = |index: &[u8]| {
        let mut fields = Reader::new(index);
        let (high, device, block) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let layer = usize::from(device.checked_sub(1)?) / 2;
        (high == 0 && layer < layers.len()).then_some((layer, u64::from(block) * BLOCK))
    };
    let (layer, start) = read(indexes.get(..INDEX as usize)?)?;
    let first = start / CLUSTER;
    let consecutive = indexes.chunks(INDEX as usize).zip(first..).all(|(index, n)| read(index) == Some((layer, n * CLUSTER)));
    let fits = start + size <= layers[layer].len && at as u64 >= BLOCK && at.is_multiple_of(INDEX as usize);
    (consecutive && fits).then(|| (layer, Span { clusters: first..first + count(size), at: at as u64 }))
}

const _: () = assert!(BLOCK.is_multiple_of(SLOT) && DEVICE as u64 * TABLE as u64 == 1024 + 128);
