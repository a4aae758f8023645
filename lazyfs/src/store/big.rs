//! The large files of a layer: one sparse file that fills up in clusters, and the map of the clusters that are here.
//!
//! ```text
//! STORE/big/<layer>.data   the large files one behind the other, each begins at a multiple of CLUSTER; what is not here is a hole
//! STORE/big/<layer>.map    which clusters are here (map)
//! ```
//!
//! Kernels read the data file themselves: it is a device of the mounted trees of all images with the layer (ARCHITECTURE.md, "Large
//! files"). So it is never replaced and never shrinks while it has a name, and bytes that are here never change, unless they were found to be
//! damaged ([`BigData::forget`]).
//!
//! A cluster is recorded when all of its bytes were written: first its data, then the map, then the listeners, which let the kernel read it.
//! Whoever is killed in between leaves a cluster that is written again. Parts of clusters are remembered in memory only. A map that is
//! damaged, or does not belong to its data, is not trusted: everything is fetched again. After a power cut the map may be newer than
//! the data; [`super::boot`] drops the maps of layers that were not made durable.
//!
//! There is one lock, on the map and the parts; the map file is written under it, data and listeners are not.

mod map;
mod seen;

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use self::map::Map;
pub use self::seen::Seen;
use super::quota::Meter;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// The unit in bytes in which data is recorded and given to the kernel.
pub const CLUSTER: u64 = 16 << 10;

/// Longest data file in bytes: what 32-bit numbers of blocks of 4 KiB reach.
pub const MAX_DATA: u64 = 1 << 43;

/// What loop devices show is in blocks of this many bytes.
const BLOCK: u64 = 4096;

/// Is told what has become complete.
pub trait ClusterListener: Send + Sync {
    /// All bytes of these clusters are here. May be told more than once, and in any order; must not call back into the data it listens to
    /// for anything but reading.
    fn arrived(&self, layer: &Digest, clusters: Range<u64>);
}

/// The large files of one layer. [`super::Store::big`] hands out one for each layer.
pub struct BigData {
    layer: Digest,
    path: PathBuf,
    data: File,
    len: u64,
    state: Mutex<State>,
    listeners: Mutex<Vec<Weak<dyn ClusterListener>>>,
    meter: Arc<Meter>,
}

struct State {
    map: Map,
    /// Of clusters that are not complete: what was written, as ranges of the data file that neither overlap nor touch.
    parts: BTreeMap<u64, Vec<Range<u64>>>,
}

impl std::fmt::Debug for BigData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BigData({}, {} bytes)", self.layer.short(), self.len)
    }
}

impl BigData {
    /// Opens the data of `layer` in `dir`, `len` bytes long, making it where it is missing. Only for the one daemon of a store.
    pub(super) fn open(dir: &Path, layer: &Digest, len: u64) -> Result<Self> {
        let path = data_path(dir, layer);
        if len == 0 || len > MAX_DATA {
            let text = format!("{len} bytes are not possible, only 1 to {MAX_DATA}");
            return Err(Error::new(Outcome::BadInput, format!("opening {}", path.display())).because(text));
        }
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("opening", &path, e))?;
        let found = data.metadata().map_err(|e| Error::io("reading", &path, e))?.len();
        let map = map_path(dir, layer);
        let is_whole = is_whole(found, len);
        let kept = if is_whole { Map::open(&map, len)? } else { None };
        let map = match kept {
            Some(kept) => kept,
            // Before the data gets its length: a process that is killed here must not leave a map that seems to belong to it.
            None => Map::create(&map, len)?,
        };
        if !is_whole {
            data.set_len(len).map_err(|e| Error::io("setting the length of", &path, e))?;
        }
        let state = Mutex::new(State { map, parts: BTreeMap::new() });
        Ok(Self { layer: *layer, path, data, len, state, listeners: Mutex::default(), meter: Arc::default() })
    }

    /// Counts what is written from now on.
    pub(super) fn metered(self, meter: Arc<Meter>) -> Self {
        Self { meter, ..self }
    }

    /// The layer.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// The data file: what the kernel reads.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes, with what is missing.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a layer without large files has no data.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the clusters that are here.
    pub fn local(&self) -> u64 {
        let state = self.state();
        let last = state.map.has(self.clusters() - 1) && !self.len.is_multiple_of(CLUSTER);
        state.map.count() * CLUSTER - if last { CLUSTER - self.len % CLUSTER } else { 0 }
    }

    /// Keeps `verified`, which the caller has checked against the digest of its chunk. Any alignment; several threads may write at once.
    pub fn write(&self, offset: u64, verified: &[u8]) -> Result<()> {
        let range = self.checked(offset..offset.saturating_add(verified.len() as u64), "writing")?;
        self.data.write_all_at(verified, offset).map_err(|e| Error::io("writing", &self.path, e))?;
        self.record(range)
    }

    /// Says that nothing follows the file that ends at `end` in its last cluster, which is complete when that file's bytes are. To be called
    /// once for each file after opening: before, that cluster stays incomplete.
    pub fn pad(&self, end: u64) -> Result<()> {
        // What nobody writes is a hole, and reads as the zeros that have to follow the end of a file.
        let range = self.checked(end..end.next_multiple_of(CLUSTER).min(self.len), "padding")?;
        self.record(range)
    }

    /// Forgets that a range is here, with the clusters that it touches: it is damaged, and has to be written once more. Its bytes stay as
    /// they are until then, since a kernel may read them. Trees that name them are the caller's to bring in line afterwards
    /// ([`super::patch::TreePatcher::attach`]), and so is the end of files in the last cluster ([`Self::pad`]).
    pub fn forget(&self, range: Range<u64>) -> Result<()> {
        let clusters = clusters_of(&self.checked(range, "forgetting")?);
        let mut state = self.state();
        clusters.clone().for_each(|cluster| drop(state.parts.remove(&cluster)));
        if clusters.is_empty() {
            return Ok(());
        }
        state.map.remove(clusters)?;
        state.map.sync()
    }

    /// What of the range is not here, ascending.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (state, mut missing) = (self.state(), Vec::<Range<u64>>::new());
        let mut add = |gap: Range<u64>| match missing.last_mut() {
            Some(last) if last.end == gap.start => last.end = gap.end,
            _ if gap.is_empty() => {}
            _ => missing.push(gap),
        };
        for cluster in clusters_of(&range) {
            if state.map.has(cluster) {
                continue;
            }
            let wanted = intersection(&range, &self.bytes_of(cluster));
            let mut at = wanted.start;
            for part in state.parts.get(&cluster).into_iter().flatten() {
                let part = intersection(part, &wanted);
                if !part.is_empty() {
                    add(at..part.start);
                    at = part.end;
                }
            }
            add(at..wanted.end);
        }
        missing
    }

    /// Whether all of the range is here.
    pub fn has(&self, range: Range<u64>) -> bool {
        range.end <= self.len && self.missing(range).is_empty()
    }

    /// Whether a cluster is recorded as complete.
    pub fn has_cluster(&self, cluster: u64) -> bool {
        self.state().map.has(cluster)
    }

    /// How many clusters there are, with those that are missing.
    pub fn clusters(&self) -> u64 {
        self.len.div_ceil(CLUSTER)
    }

    /// Reads bytes that are here; any that is not makes it [`Outcome::NotFound`].
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = self.checked(offset..offset.saturating_add(buffer.len() as u64), "reading")?;
        if let Some(gap) = self.missing(range).first() {
            return Err(Error::new(Outcome::NotFound, format!("reading bytes {gap:?} of {}", self.path.display())));
        }
        self.data.read_exact_at(buffer, offset).map_err(|e| Error::io("reading", &self.path, e))
    }

    /// Tells `listener` from now on what has arrived; what is here already it has to look up.
    pub fn listen(&self, listener: Weak<dyn ClusterListener>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    /// Makes everything that is recorded durable.
    pub fn sync(&self) -> Result<()> {
        // The map that is synced afterwards may say more than the data that was: only what is recorded now is promised.
        self.data.sync_data().map_err(|e| Error::io("syncing", &self.path, e))?;
        self.state().map.sync()
    }

    /// The range was written.
    fn record(&self, range: Range<u64>) -> Result<()> {
        let mut complete = Vec::new();
        let written = self.enter(range, &mut complete);
        // Also when the map cannot be written any more: these are in it.
        let listeners: Vec<_> = match complete.is_empty() {
            true => Vec::new(),
            false => self.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect(),
        };
        for clusters in complete {
            listeners.iter().for_each(|listener| listener.arrived(&self.layer, clusters.clone()));
        }
        written
    }

    /// Enters the range into the parts and what is complete into the map, and adds that to `complete`.
    fn enter(&self, range: Range<u64>, complete: &mut Vec<Range<u64>>) -> Result<()> {
        let mut state = self.state();
        let mut whole: Vec<Range<u64>> = Vec::new();
        for cluster in clusters_of(&range) {
            if state.map.has(cluster) {
                continue;
            }
            let bytes = self.bytes_of(cluster);
            let parts = state.parts.entry(cluster).or_default();
            join(parts, intersection(&range, &bytes));
            if *parts != [bytes] {
                continue;
            }
            // Where the map cannot be written the cluster is missing altogether, so that it is written once more.
            state.parts.remove(&cluster);
            match whole.last_mut() {
                Some(last) if last.end == cluster => last.end += 1,
                _ => whole.push(cluster..cluster + 1),
            }
        }
        for clusters in whole {
            state.map.add(clusters.clone())?;
            self.meter.add((clusters.end - clusters.start) * CLUSTER);
            complete.push(clusters);
        }
        Ok(())
    }

    fn bytes_of(&self, cluster: u64) -> Range<u64> {
        cluster * CLUSTER..((cluster + 1) * CLUSTER).min(self.len)
    }

    fn checked(&self, range: Range<u64>, operation: &str) -> Result<Range<u64>> {
        if range.start > range.end || range.end > self.len {
            let text = format!("bytes {range:?} are not in its {}", self.len);
            return Err(Error::new(Outcome::BadInput, format!("{operation} {}", self.path.display())).because(text));
        }
        Ok(range)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what of a layer's data was not made durable: all but these ranges. To be called while nobody has it open.
pub(super) fn keep_durable(dir: &Path, layer: &Digest, durable: &[Range<u64>]) -> Result<()> {
    let (path, data) = (map_path(dir, layer), data_path(dir, layer));
    let len = match std::fs::metadata(&data) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        other => other.map_err(|e| Error::io("reading", &data, e))?.len(),
    };
    let known = if (1..=MAX_DATA).contains(&len) { Map::open(&path, len)? } else { None };
    let Some(known) = known else { return remove_file(&path).map(drop) };
    let mut kept = Map::create(&path, len)?;
    for range in durable.iter().filter(|range| range.end <= len) {
        // What follows the end of a file in its cluster belongs to nobody, and no two files share a cluster.
        clusters_of(range).filter(|cluster| known.has(*cluster)).try_for_each(|cluster| kept.add(cluster..cluster + 1))?;
    }
    kept.sync()
}

/// Whether all of these files are here, by the map of their layer, whose data has `len` bytes. Changes nothing.
pub(super) fn has_all(dir: &Path, layer: &Digest, len: u64, files: &[Range<u64>]) -> Result<bool> {
    let data = data_path(dir, layer);
    match std::fs::metadata(&data) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        found if found.as_ref().is_ok_and(|found| is_whole(found.len(), len)) => {}
        found => return found.map(|_| false).map_err(|e| Error::io("reading", &data, e)),
    }
    let map = Map::open(&map_path(dir, layer), len)?;
    Ok(map.is_some_and(|map| files.iter().all(|file| clusters_of(file).all(|cluster| map.has(cluster)))))
}

/// The layers that have data in `dir`.
pub(super) fn list(dir: &Path) -> Result<HashSet<Digest>> {
    let names = std::fs::read_dir(dir).map_err(|e| Error::io("listing", dir, e))?;
    let layer = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.map_err(|e| Error::io("listing", dir, e))?.file_name();
        let name = name.to_string_lossy().into_owned();
        Ok(name.split_once('.').and_then(|(layer, _)| Digest::from_hex(layer).ok()))
    };
    names.map(layer).filter_map(Result::transpose).collect()
}

/// Removes the data of all layers but these; returns the bytes that became free.
pub(super) fn remove_all_but(dir: &Path, keep: &HashSet<String>) -> Result<u64> {
    let mut freed = 0;
    for layer in list(dir)?.iter().filter(|layer| !keep.contains(&layer.hex())) {
        // First the map: without it nothing is trusted that is left.
        freed += remove_file(&map_path(dir, layer))? + remove_file(&data_path(dir, layer))?;
    }
    Ok(freed)
}

/// Removes a file, if there is one; returns the bytes that it had on disk.
fn remove_file(path: &Path) -> Result<u64> {
    let blocks = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(|e| Error::io("reading", path, e))?.blocks(),
    };
    std::fs::remove_file(path).map_err(|e| Error::io("removing", path, e))?;
    Ok(blocks * 512)
}

/// The data file of a layer in the directory of big data.
pub(super) fn data_path(dir: &Path, layer: &Digest) -> PathBuf {
    dir.join(layer.hex() + ".data")
}

fn map_path(dir: &Path, layer: &Digest) -> PathBuf {
    dir.join(layer.hex() + ".map")
}

/// Whether a data file of this length is one of `len` bytes. What fills the last block is not the layer's: a loop device shows whole blocks only.
fn is_whole(found: u64, len: u64) -> bool {
    found == len || found == len.next_multiple_of(BLOCK)
}

/// The clusters that the range touches.
fn clusters_of(range: &Range<u64>) -> Range<u64> {
    match range.is_empty() {
        true => 0..0,
        false => range.start / CLUSTER..range.end.div_ceil(CLUSTER),
    }
}

fn intersection(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// Adds a range to ranges that neither overlap nor touch.
fn join(parts: &mut Vec<Range<u64>>, new: Range<u64>) {
    let first = parts.partition_point(|part| part.end < new.start);
    let last = parts.partition_point(|part| part.start <= new.end);
    let joined = match parts[first..last] {
        [] => new,
        ref touching => new.start.min(touching[0].start)..new.end.max(touching[touching.len() - 1].end),
    };
    parts.splice(first..last, [joined]);
}

#[cfg(test)]
mod tests;
