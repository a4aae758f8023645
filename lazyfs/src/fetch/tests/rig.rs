//! An image in one layer, and a source that misbehaves on command.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream as streams;

use super::super::*;
use crate::layer::{Chunk, Entry, EntryKind, FileContent, LayerIndex, LayerKind, Meta};
use crate::source::{BoxFuture, ByteStream, RawManifest, Source};
use crate::store::big::BigData;
use crate::table::{LayerSource, Table, build};
use crate::tree::erofs::read::StoredTree;

/// What the next request meets.
pub(super) enum Fault {
    Refuse,
    /// The blob is not there.
    Missing,
    /// The connection breaks after so many bytes.
    Break(u64),
}

/// What several sources share: one portion at a time, first come, first served.
#[derive(Default)]
pub(super) struct Line(tokio::sync::Mutex<()>);

/// A request that was begun and has not ended.
struct Opened(Arc<Fake>);

impl Opened {
    fn new(fake: &Arc<Fake>) -> Self {
        let open = fake.open.fetch_add(1, Relaxed) + 1;
        fake.most_open.fetch_max(open, Relaxed);
        Self(Arc::clone(fake))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

pub(super) struct Fake {
    pub(super) manifest: Bytes,
    pub(super) files: Vec<(Digest, Range<u64>)>,
    pub(super) blob: Vec<u8>,
    /// Time to the first byte.
    pub(super) delay: Duration,
    /// Time per 16 KiB.
    pub(super) pace: Duration,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    /// A byte that comes wrong so many times.
    pub(super) flipped: Mutex<Option<(u64, u32)>>,
    pub(super) down: std::sync::atomic::AtomicBool,
    pub(super) requests: Mutex<Vec<Range<u64>>>,
    /// How often it was told that what it sent was damaged.
    pub(super) distrusted: AtomicUsize,
    pub(super) line: Option<Arc<Line>>,
    /// Bytes that were sent.
    pub(super) served: AtomicUsize,
    /// Requests that have not ended, and the most that were at the same time.
    pub(super) open: AtomicUsize,
    pub(super) most_open: AtomicUsize,
}

impl Fake {
    pub(super) fn requests(&self) -> Vec<Range<u64>> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn served(&self) -> u64 {
        self.served.load(Relaxed) as u64
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) fn piece(&self, range: Range<u64>) -> Bytes {
        let mut bytes = self.blob[range.start as usize..range.end as usize].to_vec();
        if let Some((at, times)) = &mut *self.flipped.lock().unwrap()
            && range.contains(at)
            && *times > 0
        {
            *times -= 1;
            bytes[(*at - range.start) as usize] ^= 0x40;
        }
        bytes.into()
    }
}

pub(super) struct Shared(pub(super) Arc<Fake>);

impl Source for Shared {
    fn distrust(&self, _: &Digest) -> bool {
        self.0.distrusted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        false
    }

    fn name(&self) -> String {
        "fake/image".to_owned()
    }

    fn manifest<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        let bytes = self.0.manifest.clone();
        assert_eq!(digest, Digest::of(&bytes).to_string());
        Box::pin(async move { Ok(RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() }) })
    }

    fn open(&self, _: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let fake = Arc::clone(&self.0);
        Box::pin(async move {
            let opened = Opened::new(&fake);
            fake.requests.lock().unwrap().push(range.clone());
            tokio::time::sleep(fake.delay).await;
            let down = || Err(Error::new(Outcome::Unavailable, "connecting to fake").because("connection refused"));
            if fake.down.load(std::sync::atomic::Ordering::Relaxed) {
                return down();
            }
            let breaks = match fake.faults.lock().unwrap().pop_front() {
                Some(Fault::Refuse) => return down(),
                Some(Fault::Missing) => return Err(Error::new(Outcome::NotFound, "opening the blob")),
                Some(Fault::Break(after)) => range.start + after,
                None => u64::MAX,
            };
            let steps = streams::try_unfold((range, opened), move |(rest, opened)| {
                let fake = Arc::clone(&fake);
                async move {
                    if rest.is_empty() {
                        return Ok(None);
                    }
                    if rest.start >= breaks {
                        return Err(Error::new(Outcome::Unavailable, "reading from fake").because("connection reset"));
                    }
                    {
                        let _turn = match &fake.line {
                            Some(line) => Some(line.0.lock().await),
                            None => None,
                        };
                        tokio::time::sleep(fake.pace).await;
                    }
                    let end = rest.end.min(rest.start + 16384).min(breaks);
                    fake.served.fetch_add((end - rest.start) as usize, Relaxed);
                    Ok(Some((fake.piece(rest.start..end), (end..rest.end, opened))))
                }
            });
            Ok(Box::pin(steps) as ByteStream)
        })
    }
}

/// A store, an image with these files in one layer, and a fetcher.
pub(super) struct Rig {
    pub(super) _dir: Arc<tempfile::TempDir>,
    pub(super) store: Arc<Store>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) fake: Arc<Fake>,
    pub(super) files: Vec<(Digest, Range<u64>)>,
    pub(super) table: Arc<Table>,
    /// Known to the fetcher only where a test says so.
    pub(super) tree: Option<Arc<StoredTree>>,
    pub(super) image: Digest,
}

pub(super) fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u32).wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Files of these lengths, incompressible, with a header before each.
pub(super) fn rig(lengths: &[usize], config: &str) -> Rig {
    rig_with(lengths, config, |_| {})
}

pub(super) fn rig_with(lengths: &[usize], config: &str, adjust: impl FnOnce(&mut Fake)) -> Rig {
    // A store has hundreds of directories: in memory, where there is such a file system, the tests do not wait for the disk.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let fetcher = Fetcher::new(Arc::clone(&store), FetchConfig::parse(config).unwrap());
    rig_in(Arc::new(dir), store, fetcher, lengths, adjust)
}

fn rig_in(
    dir: Arc<tempfile::TempDir>,
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    lengths: &[usize],
    adjust: impl FnOnce(&mut Fake),
) -> Rig {
    rig_of(dir, store, fetcher, Sample::new(lengths), adjust)
}

/// An image with these files.
pub(super) fn rig_with_files(contents: &[Vec<u8>], config: &str) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let fetcher = Fetcher::new(Arc::clone(&store), FetchConfig::parse(config).unwrap());
    rig_of(Arc::new(dir), store, fetcher, Sample::of(contents), |_| {})
}

fn rig_of(
    dir: Arc<tempfile::TempDir>,
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    layer: Sample,
    adjust: impl FnOnce(&mut Fake),
) -> Rig {
    let source = LayerSource {
        digest: layer.digest(),
        diff_id: Digest::of(&layer.tar),
        size: layer.size(),
        kind: LayerKind::ZstdChunked,
        index: &layer.index,
    };
    let table = Arc::new(Table::from_bytes(build(&[source]).unwrap()).unwrap());
    std::fs::write(store.index_path(&layer.digest()), crate::layer::saved::save(&layer.index)).unwrap();
    let mut fake = Fake {
        manifest: layer.manifest(),
        files: layer.files,
        blob: layer.blob,
        delay: Duration::ZERO,
        pace: Duration::ZERO,
        faults: Mutex::default(),
        flipped: Mutex::default(),
        down: false.into(),
        requests: Mutex::default(),
        distrusted: AtomicUsize::default(),
        line: None,
        served: AtomicUsize::default(),
        open: AtomicUsize::default(),
        most_open: AtomicUsize::default(),
    };
    adjust(&mut fake);
    let (image, files) = (Digest::of(&fake.manifest), fake.files.clone());
    let rig = Rig { _dir: dir, store, fetcher, fake: Arc::new(fake), files, table, tree: None, image };
    rig.attach(&rig.fetcher, image);
    rig
}

/// A zstd:chunked layer: each header and each piece of a file is a frame of its own.
#[derive(Default)]
pub(super) struct Sample {
    pub(super) tar: Vec<u8>,
    pub(super) blob: Vec<u8>,
    pub(super) files: Vec<(Digest, Range<u64>)>,
    pub(super) index: LayerIndex,
    pub(super) tar_end: u64,
}

impl Sample {
    pub(super) fn new(lengths: &[usize]) -> Self {
        let contents: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(n, len)| noise(*len, n + 1)).collect();
        Self::of(&contents)
    }

    fn of(contents: &[Vec<u8>]) -> Self {
        let mut layer = Self::default();
        for (n, content) in contents.iter().enumerate() {
            let mut header = tar::Header::new_ustar();
            header.set_path(format!("f{n}")).unwrap();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            let padding = layer.tar.len().next_multiple_of(512) - layer.tar.len();
            layer.gap(&[&vec![0; padding][..], header.as_bytes()].concat());
            layer.file(n, content);
        }
        let padding = layer.tar.len().next_multiple_of(512) - layer.tar.len();
        layer.gap(&vec![0; padding + 1024]);
        layer.tar_end = layer.blob.len() as u64;
        // A skippable frame, as the one with the table of contents.
        layer.blob.extend([0x50, 0x2a, 0x4d, 0x18, 10, 0, 0, 0]);
        layer.blob.extend([7; 10]);
        layer
    }

    fn gap(&mut self, bytes: &[u8]) {
        self.tar.extend(bytes);
        self.blob.extend(zstd::encode_all(bytes, 1).unwrap());
    }

    fn file(&mut self, n: usize, content: &[u8]) {
        let (start, mut chunks) = (self.blob.len() as u64, Vec::new());
        for (nth, piece) in content.chunks(100_000).enumerate() {
            let frame = zstd::encode_all(piece, 1).unwrap();
            chunks.push(Chunk {
                file_offset: nth as u64 * 100_000,
                len: piece.len() as u64,
                blob_offset: self.blob.len() as u64,
                blob_len: frame.len() as u64,
                digest: Digest::of(piece),
                zeros: false,
            });
            self.blob.extend(frame);
        }
        let digest = Digest::of(content);
        self.tar.extend(content);
        self.files.push((digest, start..self.blob.len() as u64));
        let kind = EntryKind::File(FileContent { size: content.len() as u64, digest, chunks });
        let meta = Meta { mode: 0o644, ..Meta::default() };
        self.index.entries.push(Entry { path: format!("f{n}").into_bytes(), kind, meta });
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub(super) fn size(&self) -> u64 {
        self.blob.len() as u64
    }

    pub(super) fn manifest(&self) -> Bytes {
        let (digest, size, position) = (self.digest(), self.size(), self.tar_end + 8);
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":1}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":"{digest}","size":{size},"annotations":{{
            "io.github.containers.zstd-chunked.manifest-position":"{position}:10:10:1",
            "io.github.containers.zstd-chunked.manifest-checksum":"{digest}"}}}}]}}"#
        );
        text.into()
    }
}

impl Rig {
    /// Another image for the same fetcher.
    pub(super) fn beside(&self, lengths: &[usize], adjust: impl FnOnce(&mut Fake)) -> Self {
        rig_in(Arc::clone(&self._dir), Arc::clone(&self.store), Arc::clone(&self.fetcher), lengths, adjust)
    }

    pub(super) fn attach(&self, fetcher: &Arc<Fetcher>, image: Digest) {
        self.attach_to(fetcher, image, Arc::new(Shared(Arc::clone(&self.fake))));
    }

    pub(super) fn attach_to(&self, fetcher: &Arc<Fetcher>, image: Digest, source: Arc<dyn Source>) {
        fetcher.attach(ImageContent {
            image,
            name: "fake/image:1".to_owned(),
            table: Arc::clone(&self.table),
            tree: self.tree.clone(),
            source,
            index_bytes: 0,
        });
    }

    pub(super) async fn demand(&self, file: usize) -> Result<()> {
        self.fetcher.demand(&self.files[file].0).await
    }

    /// The files that are here, in any form.
    pub(super) fn local(&self) -> Vec<usize> {
        let is_local = |n: &usize| self.store.cas().contains(&self.files[*n].0) || self.has(*n, 0..u64::MAX);
        (0..self.files.len()).filter(is_local).collect()
    }

    /// Where a large file is in the data file of the layer.
    pub(super) fn place(&self, file: usize) -> Option<Range<u64>> {
        self.table.lookup(&self.files[file].0).unwrap().data_range()
    }

    pub(super) fn data(&self) -> Arc<BigData> {
        let layer = self.table.layers().next().unwrap();
        self.store.big(&layer.digest, layer.data_len).unwrap()
    }

    /// Whether these bytes of a large file are in the data file.
    pub(super) fn has(&self, file: usize, range: Range<u64>) -> bool {
        let Some(place) = self.place(file) else { return false };
        self.data().has(place.start + range.start..range.end.saturating_add(place.start).min(place.end))
    }

    /// Reads bytes of a large file as a program does.
    pub(super) async fn read(&self, file: usize, range: Range<u64>) -> Result<Vec<u8>> {
        let (start, layer) = (self.place(file).unwrap().start, self.table.layers().next().unwrap().digest);
        self.fetcher.demand_data(&layer, start + range.start..start + range.end).await?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.data().read(start + range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Extents in the blob of a file's chunks.
    pub(super) fn chunks(&self, file: usize) -> Vec<Range<u64>> {
        let record = self.table.lookup(&self.files[file].0).unwrap();
        self.table.chunks(&record).map(|chunk| chunk.blob_offset..chunk.blob_offset + chunk.blob_len).collect()
    }

    /// Where the chunks of a file are in its content.
    pub(super) fn contents(&self, file: usize) -> Vec<Range<u64>> {
        let record = self.table.lookup(&self.files[file].0).unwrap();
        self.table.chunks(&record).map(|chunk| chunk.file_offset..chunk.file_offset + chunk.len).collect()
    }

    pub(super) async fn background(&self) -> Result<()> {
        let all = self.fetcher.background(&self.image);
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("the background fetch does not end")
    }

    pub(super) fn spawn_background(&self) -> tokio::task::JoinHandle<Result<()>> {
        let (fetcher, image) = (Arc::clone(&self.fetcher), self.image);
        tokio::spawn(async move { fetcher.background(&image).await })
    }

    pub(super) fn progress(&self) -> Progress {
        self.fetcher.progress(&self.image).borrow().clone()
    }
}
