//! What a complete image reads of the store, and whether that is here.
//!
//! A large file is read either from an object or from the data of its layer: the image's tree says which. The other form may be here as well,
//! for another image, and then nothing says that it is durable.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::Store;
use super::big;
use super::image::ImageFiles;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::saved;
use crate::layer::spans::Spans;
use crate::table::{LayerRecord, Table};
use crate::tree::erofs::read::StoredTree;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Files that are read from objects.
    pub objects: Vec<Digest>,
    /// Layers with files that are read from their data.
    pub large: BTreeMap<Digest, LargeNeeds>,
}

/// What is read of a layer's data.
#[derive(Debug, Default)]
pub(super) struct LargeNeeds {
    /// Length of the data, bytes.
    pub len: u64,
    /// Where the files are.
    pub files: Vec<Range<u64>>,
}

/// What is not here of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Objects.
    pub objects: Vec<Digest>,
    /// Layers of whose large files something is missing.
    pub layers: Vec<Digest>,
}

impl Needs {
    /// Those of the image with these files.
    pub fn of(files: &ImageFiles) -> Result<Self> {
        let table = Table::open(&files.table())?;
        let mut objects = HashSet::new();
        if (0..table.layers().len()).any(|number| table.large_files(number as u32).next().is_some()) {
            let is_large = |file: &Digest| table.lookup(file).is_some_and(|record| record.data_offset.is_some());
            StoredTree::open(&files.tree())?.for_each_file(&mut |file| {
                if !file.large && is_large(&file.digest) {
                    objects.insert(file.digest);
                }
            });
        }
        let layers: Vec<LayerRecord> = table.layers().collect();
        let mut needs = Self::default();
        for file in table.files() {
            match file.data_range().filter(|_| !objects.contains(&file.digest)) {
                Some(range) => {
                    let layer = &layers[file.layer as usize];
                    let large = needs.large.entry(layer.digest).or_default();
                    large.len = layer.data_len;
                    large.files.push(range);
                }
                None => needs.objects.push(file.digest),
            }
        }
        Ok(needs)
    }

    /// What is not here. `here`: the objects of the store.
    pub fn lost(&self, store: &Store, here: &HashSet<Digest>) -> Result<Lost> {
        let mut lost = Lost::default();
        lost.objects.extend(self.objects.iter().filter(|object| !here.contains(object)));
        for (layer, LargeNeeds { len, files }) in &self.large {
            if !big::has_all(&store.big_dir(), layer, *len, files)? {
                lost.layers.push(*layer);
            }
        }
        Ok(lost)
    }
}

impl Lost {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.layers.is_empty()
    }
}

impl Store {
    /// Whether everything is as it was written that fetching an image goes on with: its own files, and the indexes of its layers.
    pub fn can_go_on(&self, image: &Digest) -> bool {
        let files = self.image(image);
        let indexed = |table: Table| table.layers().all(|layer| self.has_index(&layer).is_ok());
        files.are_intact() && Table::open(&files.table()).is_ok_and(indexed)
    }

    fn has_index(&self, layer: &LayerRecord) -> Result<()> {
        if layer.kind.has_random_access() {
            let path = self.index_path(&layer.digest);
            saved::load(&std::fs::read(&path).map_err(|e| Error::io("reading the layer index", &path, e))?)?;
        }
        if layer.kind.is_spanned() {
            Spans::open(&self.spans_path(&layer.digest))?;
        }
        Ok(())
    }
}
