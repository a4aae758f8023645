//! What is kept on disk.
//!
//! ```text
//! ROOT/cas, late, poison       content (cas)
//! ROOT/images/<digest>/        tree.erofs, table, image.json (image); of the tree changes only which large files are here (patch)
//! ROOT/indexes/<layer digest>  what a layer contains, kept so that the next image with that layer need not ask for it
//! ROOT/gaps/<layer digest>     parts of a blob that belong to no file, kept until the layer is verified (fetch::gaps)
//! ROOT/mask                    hides cas/ where the kernel cannot ([`crate::rootfs`])
//! ROOT/big/<layer digest>.*    large files that are not here as a whole (big)
//! ROOT/imported/               layers of images that were made here (imported)
//! ROOT/parents/<layer digest>  where layers of such images are that are not here (parents)
//! ROOT/profiles/<digest>       what programs of an image read while they start (profiles)
//! ROOT/db                      names, states, pins (db)
//! ```
//!
//! One daemon writes content; the command line reads all of it, and pins complete images by itself so that a container whose image
//! is local needs no daemon. Lock order: the database's transactions are the only lock between processes, and no file is
//! changed while one is open.

pub mod big;
pub mod boot;
pub mod cas;
pub mod content;
pub mod db;
pub mod image;
pub mod imported;
pub mod needs;
pub mod parents;
pub mod patch;
pub mod pins;
pub mod profiles;
pub mod quota;
pub mod rebuild;
pub mod usage;
pub mod verify;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::daemon::protocol::Prepared;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::rootfs::loops;
use crate::rootfs::plan::By;
use crate::table::Table;
use crate::tree::erofs::read::StoredTree;
use crate::trigger::Trigger;
use big::BigData;
use cas::Cas;
use db::{Db, ImageRow, ImageState};
use image::ImageFiles;
use quota::Meter;

/// A store's files; its database is opened apart ([`Db::open`]).
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    cas: Cas,
    big: Mutex<HashMap<Digest, Weak<BigData>>>,
}

impl Store {
    /// Opens the store at `root`, an absolute path, making what is missing.
    pub fn open(root: &Path) -> Result<Self> {
        create_private_dir(root)?;
        let store = Self { root: root.to_owned(), cas: Cas::open(root)?, big: Mutex::default() };
        for dir in [store.indexes_dir(), store.spans_dir(), store.gaps_dir(), store.big_dir()] {
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

    /// How much is here.
    pub fn meter(&self) -> &Arc<Meter> {
        self.cas.meter()
    }

    /// The files of an image.
    pub fn image(&self, image: &Digest) -> ImageFiles {
        ImageFiles::of(&self.root, image)
    }

    /// The access profiles.
    pub fn profiles(&self) -> profiles::Profiles {
        profiles::Profiles::of(&self.root)
    }

    /// Where the index of a layer is kept.
    pub fn index_path(&self, layer: &Digest) -> PathBuf {
        self.indexes_dir().join(layer.hex())
    }

    /// Where the spans of a layer are kept ([`crate::layer::spans`]).
    pub fn spans_path(&self, layer: &Digest) -> PathBuf {
        self.spans_dir().join(layer.hex())
    }

    /// Where parts of blobs that belong to no file are kept.
    pub fn gaps_dir(&self) -> PathBuf {
        self.root.join("gaps")
    }

    /// The large files of a layer, `length` bytes. Everybody gets the same. Only for the one daemon of a store.
    pub fn big(&self, layer: &Digest, length: u64) -> Result<Arc<BigData>> {
        let mut open = self.big.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, big| big.strong_count() > 0);
        let big = match open.get(layer).and_then(Weak::upgrade) {
            Some(big) => big,
            None => {
                let big = Arc::new(BigData::open(&self.big_dir(), layer, length)?.metered(self.meter().clone()));
                open.insert(*layer, Arc::downgrade(&big));
                big
            }
        };
        if big.len() != length {
            let text = format!("they are in use with {} bytes, not {length}", big.len());
            return Err(Error::new(Outcome::BadInput, format!("opening the large files of layer {layer}")).because(text));
        }
        Ok(big)
    }

    /// Removes the large files of all layers but these, which are named as in file names; of how many layers. The kernel goes on with
    /// those that are a device of a mounted image.
    pub fn forget_large_files(&self, keep: &HashSet<String>) -> Result<usize> {
        let mut forgotten = HashSet::new();
        let dir = self.big_dir();
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("listing", &dir, e))?;
            let name = entry.file_name();
            let layer = name.to_string_lossy().split('.').next().unwrap_or_default().to_owned();
            if !keep.contains(&layer) {
                std::fs::remove_file(entry.path()).map_err(|e| Error::io("removing", entry.path(), e))?;
                forgotten.insert(layer);
            }
        }
        Ok(forgotten.len())
    }

    /// Removes the large files of layers that are not in `keep`; returns how many bytes became free.
    fn sweep_big(&self, keep: &HashSet<String>) -> Result<u64> {
        // Whoever still has one open goes on with it, and the next one gets another.
        let mut open = self.big.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|layer, _| keep.contains(&layer.hex()));
        big::remove_all_but(&self.big_dir(), keep)
    }

    /// What is here of a layer's large files, whose data file has `length` bytes, for whoever is not the daemon; `None` where nothing is.
    pub fn seen(&self, layer: &Digest, length: u64) -> Result<Option<big::Seen>> {
        big::Seen::open(&self.big_dir(), layer, length)
    }

    /// The file with the large files of a layer.
    pub fn data_path(&self, layer: &Digest) -> PathBuf {
        big::data_path(&self.big_dir(), layer)
    }

    fn big_dir(&self) -> PathBuf {
        self.root.join("big")
    }

    /// Pins an image that is complete and says what a container's root consists of, which comes into the kernel as this machine can
    /// ([`crate::rootfs::probe::Features::complete`]).
    pub fn prepare_complete(&self, db: &mut Db, image: &ImageRow, container: &str, by: By) -> Result<Prepared> {
        let mut data = vec![self.cas.objects_dir(), self.cas.poison_dir()];
        let by = match by {
            By::Loop if !loops::is_for(&StoredTree::open(&self.image(&image.digest).tree())?) => By::Server,
            by => by,
        };
        if by == By::Loop {
            let mask = self.root.join("mask");
            loops::make_mask(&mask)?;
            data.push(mask);
        }
        // Nothing is asked of the trigger any more, and whoever mounts need not have one.
        self.prepare(db, image, container, data, None, by)
    }

    /// Pins an image whose content may be missing; files that are asked for come through the trigger mounted at `trigger`. The image's
    /// tree has to be in line ([`patch::TreePatcher`]).
    pub fn prepare_lazy(&self, db: &mut Db, image: &ImageRow, container: &str, trigger: &Path, by: By) -> Result<Prepared> {
        let data = vec![self.cas.objects_dir(), trigger.to_owned(), self.cas.late_dir(), self.cas.poison_dir()];
        self.prepare(db, image, container, data, Some(trigger), by)
    }

    fn prepare(
        &self,
        db: &mut Db,
        image: &ImageRow,
        container: &str,
        data: Vec<PathBuf>,
        trigger: Option<&Path>,
        by: By,
    ) -> Result<Prepared> {
        let files = self.image(&image.digest);
        let record = files.record()?;
        let layers = StoredTree::open(&files.tree())?.large_layers()?;
        let devices = layers.iter().flat_map(|layer| {
            let here = big::data_path(&self.big_dir(), &layer.layer);
            let absent = trigger.map_or_else(|| here.clone(), |trigger| Trigger::data_path(trigger, &layer.layer));
            [here, absent]
        });
        let devices = devices.collect();
        db.pin(container, &image.digest)?;
        let name = image.names.first().cloned().unwrap_or_else(|| image.digest.to_string());
        let (image, tree, config, lazy) = (image.digest, files.tree(), record.config, trigger.is_some());
        Ok(Prepared { image, name, tree, devices, data, lazy, by, config })
    }

    /// What the images of the database name.
    pub fn named(&self, db: &Db) -> Result<Named> {
        let mut named = Named::default();
        for row in db.images()? {
            let table = Table::open(&self.image(&row.digest).table())?;
            named.layers.extend(table.layers().map(|layer| layer.digest.hex()));
            named.objects.extend(table.files().map(|file| file.digest));
            named.images.insert(row.digest);
        }
        Ok(named)
    }

    /// Removes everything that is not named, and returns how many bytes became free. The caller makes sure that no pull is under way
    /// from before the names were read: the content of an image is stored before its row.
    pub fn sweep(&self, named: &Named) -> Result<u64> {
        let Named { images, layers, objects } = named;
        let mut freed = self.cas.remove_all_but(objects)?;
        for digest in image::list_and_tidy(&self.root)? {
            if !images.contains(&digest) {
                self.image(&digest).remove()?;
            }
        }
        for dir in [self.indexes_dir(), self.spans_dir(), self.gaps_dir()] {
            freed += remove_unnamed(&dir, layers)?;
        }
        freed += self.sweep_big(layers)?;
        freed += imported::sweep(&self.root, images)?;
        Ok(freed)
    }

    /// Whether all content of an image is here. Only says that every object has its name; an object gets its name once it is right.
    pub fn is_local(&self, table: &Table) -> bool {
        table.files().all(|file| self.cas.contains(&file.digest))
    }

    fn spans_dir(&self) -> PathBuf {
        self.root.join("spans")
    }

    fn indexes_dir(&self) -> PathBuf {
        self.root.join("indexes")
    }
}

/// Everything that images name, and that therefore stays.
#[derive(Debug, Default)]
pub struct Named {
    images: HashSet<Digest>,
    /// As they are in file names.
    layers: HashSet<String>,
    objects: HashSet<Digest>,
}

/// Creates a directory that only its owner may enter, and its parents likewise; one that exists stays as it is. Mounted roots have
/// programs with setuid bits, and images may be private, so no other user of the host may reach either (CVE-2021-41103).
pub fn create_private_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| Error::io("creating", path, e))
}

/// Removes the files in `dir` whose names are not in `keep`; returns their size in bytes.
fn remove_unnamed(dir: &Path, keep: &HashSet<String>) -> Result<u64> {
    let mut freed = 0;
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("listing", dir, e))? {
        let entry = entry.map_err(|e| Error::io("listing", dir, e))?;
        if !keep.contains(entry.file_name().to_string_lossy().as_ref()) {
            freed += entry.metadata().map_err(|e| Error::io("reading", entry.path(), e))?.len();
            std::fs::remove_file(entry.path()).map_err(|e| Error::io("removing", entry.path(), e))?;
        }
    }
    Ok(freed)
}

/// Refuses an image that cannot be started.
pub fn check_startable(image: &ImageRow) -> Result<()> {
    if image.state == ImageState::Poisoned {
        return Err(Error::new(Outcome::Integrity, format!("starting a container from {}", image.reference))
            .because(image.reason.clone())
            .advise("remove the image and pull it again, from another registry if that is possible"));
    }
    Ok(())
}
