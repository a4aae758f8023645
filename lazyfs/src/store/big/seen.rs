//! What is here of a layer's large files, for processes that are not the daemon: they ask the map for each read, and change nothing.
//!
//! Whoever has this open while the files are replaced goes on with the old ones, in which what is recorded stays true; what is new it does
//! not see before it opens them again ([`Seen::is_current`]).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::map::Map;
use super::{CLUSTER, clusters_of, data_path, is_whole, map_path};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// The large files of one layer, as they are at this moment.
#[derive(Debug)]
pub struct Seen {
    path: PathBuf,
    data: File,
    map: Map,
}

impl Seen {
    /// Opens the data of `layer` in `dir`, `len` bytes long; `None` where there is nothing that can be trusted.
    pub(in crate::store) fn open(dir: &Path, layer: &Digest, len: u64) -> Result<Option<Self>> {
        let path = data_path(dir, layer);
        let data = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io("opening", &path, e))?,
        };
        let found = data.metadata().map_err(|e| Error::io("reading", &path, e))?.len();
        if !is_whole(found, len) {
            return Ok(None);
        }
        Ok(Map::open(&map_path(dir, layer), len)?.map(|map| Self { path, data, map }))
    }

    /// Whether these are the files that the daemon writes.
    pub fn is_current(&self) -> Result<bool> {
        self.map.is_current()
    }

    /// Bytes from the beginning of the range on, which is inside of a file: as many as are here without a gap.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let end = self.map.first_absent(clusters_of(&range))?.saturating_mul(CLUSTER).min(range.end);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(range.start)).expect("whoever asks has the memory")];
        self.data.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io("reading", &self.path, e))?;
        Ok(bytes)
    }
}
