//! Paths for what programs waited for.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::What;
use crate::digest::Digest;
use crate::error::Result;
use crate::store::image::ImageFiles;
use crate::table::Table;
use crate::tree::erofs::read::StoredTree;

/// What an image's content is called.
pub struct Names {
    table: Table,
    paths: HashMap<Digest, Vec<u8>>,
}

/// A file of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// One of its paths, fit to be shown; its digest where it has none any more.
    pub path: String,
    /// Bytes of it, for a large file.
    pub range: Option<Range<u64>>,
}

impl Names {
    /// Reads the image's table and tree.
    pub fn of(store: &Path, image: &Digest) -> Result<Self> {
        let files = ImageFiles::of(store, image);
        Ok(Self { table: Table::open(&files.table())?, paths: StoredTree::open(&files.tree())?.paths() })
    }

    /// The file; `None` where the image has nothing of the kind.
    pub fn resolve(&self, what: &What) -> Option<Known> {
        let (content, range) = match what {
            What::File(digest) => (self.table.lookup(digest)?.digest, None),
            What::Data { layer, range } => self.large(layer, range)?,
        };
        let path = match self.paths.get(&content) {
            Some(path) => format!("/{}", String::from_utf8_lossy(path)),
            None => content.to_string(),
        };
        let path = path.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        Some(Known { path, range })
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
