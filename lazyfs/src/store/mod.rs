//! What is kept on disk.

pub mod cas;
pub mod db;

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{Error, Result};
use cas::Cas;

/// A store's files; its database is opened apart ([`db::Db::open`]).
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    cas: Cas,
}

impl Store {
    /// Opens the store at `root`, an absolute path, making what is missing.
    pub fn open(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(|e| Error::io("creating the store", root, e))?;
        let store = Self { root: root.to_owned(), cas: Cas::open(root)? };
        for dir in [store.indexes_dir(), store.gaps_dir()] {
            std::fs::create_dir_all(&dir).map_err(|e| Error::io("creating", &dir, e))?;
        }
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The content store.
    pub fn cas(&self) -> &Cas {
        &self.cas
    }

    /// Where the index of a layer is kept.
    pub fn index_path(&self, layer: &Digest) -> PathBuf {
        self.indexes_dir().join(layer.hex())
    }

    /// Where parts of blobs that belong to no file are kept.
    pub fn gaps_dir(&self) -> PathBuf {
        self.root.join("gaps")
    }

    fn indexes_dir(&self) -> PathBuf {
        self.root.join("indexes")
    }
}
