//! The waits of one container's image, with the paths of files.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::Result;
use towline_lazyfs::observe::{Wait, What};
use towline_lazyfs::store::image::ImageFiles;
use towline_lazyfs::table::Table;
use towline_lazyfs::tree::erofs::read::StoredTree;

use crate::engine::Engine;

/// One wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Microseconds since 1970.
    pub begin_us: u64,
    /// Microseconds.
    pub waited_us: u64,
    /// Name of the program that waited.
    pub program: String,
    /// Thread that waited.
    pub pid: u32,
    /// A path of the file in the image.
    pub path: String,
    /// Bytes of it, for a large file.
    pub range: Option<Range<u64>>,
    /// Why it did not come.
    pub error: Option<String>,
}

/// What an image's waits are resolved with.
pub struct Names {
    table: Table,
    paths: HashMap<Digest, Vec<u8>>,
}

impl Names {
    /// Reads the image's table and tree.
    pub fn of(engine: &Engine, image: &Digest) -> Result<Self> {
        let files = ImageFiles::of(&engine.paths.root, image);
        Ok(Self { table: Table::open(&files.table())?, paths: StoredTree::open(&files.tree())?.paths() })
    }

    /// The wait with the file's path; `None` where the image has nothing of the kind.
    pub fn resolve(&self, wait: &Wait) -> Option<Named> {
        let (content, range) = match &wait.what {
            What::File(digest) => (self.table.lookup(digest)?.digest, None),
            What::Data { layer, range } => self.large(layer, range)?,
        };
        let path = match self.paths.get(&content) {
            Some(path) => format!("/{}", String::from_utf8_lossy(path)),
            None => content.to_string(),
        };
        let path = path.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let Wait { begin_us, waited_us, pid, program, error, .. } = wait.clone();
        Some(Named { begin_us, waited_us, program, pid, path, range, error })
    }

    /// The large file that bytes of a layer's data file belong to, and which of it they are.
    fn large(&self, layer: &Digest, range: &Range<u64>) -> Option<(Digest, Option<Range<u64>>)> {
        let number = self.table.layers().position(|record| record.digest == *layer)?;
        let files = self.table.files_by_offset(u32::try_from(number).ok()?);
        let mut places = files.filter_map(|file| Some((file.digest, file.data_range()?)));
        let (digest, place) = places.find(|(_, place)| place.contains(&range.start))?;
        Some((digest, Some(range.start - place.start..range.end.min(place.end) - place.start)))
    }
}
