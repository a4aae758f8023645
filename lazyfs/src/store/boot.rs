//! What can be trusted after the machine went down.
//!
//! Nobody waits for the disk while a container starts: only when an image is complete is everything that belongs to it made durable, and
//! then recorded as complete. So after a power cut what belongs to other images may have names without content. The first daemon
//! after a boot reads all of that once and removes what is damaged; it is fetched again. Large files that are not
//! durable are fetched again without a look.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::db::{Db, ImageState};
use super::{Store, big};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::table::Table;

/// Identifies the kernel's current run (proc_sys_kernel(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What [`check`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// References of images whose tree or table was damaged; they have to be pulled again.
    pub images: Vec<String>,
    /// How many objects were damaged.
    pub objects: usize,
    /// Of how many layers the large files that were here in part are fetched again.
    pub layers: usize,
}

/// Checks what was not durable, unless that has been done since the machine was booted. Only for the one daemon of a store.
pub fn check(store: &Store, db: &mut Db) -> Result<Removed> {
    let boot = current()?;
    if db.boot()?.as_deref() == Some(boot.as_str()) {
        return Ok(Removed::default());
    }
    let mut removed = Removed::default();
    let (mut durable, mut durable_layers) = (HashSet::new(), HashSet::new());
    // Of a layer's large files what complete images have. Other images may have added to it since.
    let mut large: HashMap<Digest, Vec<Range<u64>>> = HashMap::new();
    for row in db.images()? {
        let files = store.image(&row.digest);
        // What is complete was made durable; it is only looked at, since a disk may have lost it all the same.
        let complete =
            (row.state == ImageState::Complete).then(|| Table::open(&files.table()).and_then(|t| files.record().map(|_| t)));
        let intact = match complete {
            Some(Ok(table)) => {
                durable.extend(table.files().map(|file| file.digest));
                durable_layers.extend(table.layers().map(|layer| layer.digest.hex()));
                for (number, layer) in table.layers().enumerate() {
                    let ranges = table.large_files(number as u32).filter_map(|file| file.data_range());
                    large.entry(layer.digest).or_default().extend(ranges);
                }
                true
            }
            Some(Err(_)) => false,
            None => files.are_intact(),
        };
        if !intact {
            db.forget_image(&row.digest)?;
            files.remove()?;
            removed.images.push(row.reference);
        }
    }
    // Their maps may say that something is here of which only a hole has reached the disk.
    removed.layers = store.forget_large_files(&durable_layers)?;
    for layer in big::list(&store.big_dir())? {
        big::keep_durable(&store.big_dir(), &layer, large.get(&layer).map_or(&[], Vec::as_slice))?;
    }
    for digest in store.cas().list()? {
        if !durable.contains(&digest) && !is_intact(store, &digest)? {
            store.cas().remove(&digest)?;
            removed.objects += 1;
        }
    }
    db.set_boot(&boot)?;
    super::rebuild::note_boot(store.root(), &boot)?;
    Ok(removed)
}

/// The kernel's current run.
pub(super) fn current() -> Result<String> {
    let boot = std::fs::read_to_string(BOOT_ID).map_err(|e| Error::io("reading", BOOT_ID, e))?;
    Ok(boot.trim().to_owned())
}

fn is_intact(store: &Store, digest: &Digest) -> Result<bool> {
    let object = store.cas().get(digest)?;
    let (found, _) = Digest::of_reader(object).map_err(|e| Error::io("reading object", digest.to_string(), e))?;
    Ok(found == *digest)
}

#[cfg(test)]
mod tests {
    use super::super::db::NewImage;
    use super::super::image::ImageRecord;
    use super::*;

    struct Rig {
        _dir: tempfile::TempDir,
        store: Store,
        db: Db,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (store, db) = (Store::open(dir.path()).unwrap(), Db::open(dir.path()).unwrap());
            Self { _dir: dir, store, db }
        }

        fn object(&self, content: &[u8]) -> Digest {
            let mut writer = self.store.cas().writer().unwrap();
            writer.write(content).unwrap();
            writer.finish().unwrap()
        }

        fn damage(&self, digest: &Digest) {
            let path = self.store.cas().objects_dir().join(digest.object_path());
            // As root; an object has mode 0444.
            std::fs::write(path, b"").unwrap();
        }

        fn image(&mut self, name: &str) -> Digest {
            let digest = Digest::of(name.as_bytes());
            let record = ImageRecord::new(name.into(), false, "{}".into());
            self.store.image(&digest).write(b"tree", b"table", record).unwrap();
            let state = ImageState::Lazy;
            let new = NewImage { digest, name, reference: name, state, bytes_total: 1, content_bytes: 1, entries: 1 };
            self.db.add_image(&new).unwrap();
            digest
        }
    }

    #[test]
    fn damage_goes_once_after_a_boot() {
        let mut rig = Rig::new();
        let (good, bad) = (rig.object(b"good"), rig.object(b"bad"));
        let (whole, torn) = (rig.image("host/whole:1"), rig.image("host/torn:1"));
        rig.damage(&bad);
        std::fs::write(rig.store.image(&torn).tree(), b"\0\0\0\0").unwrap();
        let layer = Digest::of(b"layer");
        rig.store.big(&layer, 1 << 20).unwrap().write(0, &[7; 1 << 15]).unwrap();

        let removed = check(&rig.store, &mut rig.db).unwrap();
        assert_eq!(removed, Removed { images: vec!["host/torn:1".into()], objects: 1, layers: 1 });
        assert!(!rig.store.big(&layer, 1 << 20).unwrap().has(0..1), "a map that was not durable is believed");
        assert!(rig.store.cas().contains(&good) && !rig.store.cas().contains(&bad));
        assert!(rig.store.image(&whole).exist() && !rig.store.image(&torn).exist());
        assert!(rig.db.image(&whole).unwrap().is_some() && rig.db.image(&torn).unwrap().is_none());

        // In the same run of the kernel nothing can have been lost, so nothing is read again.
        rig.damage(&good);
        assert_eq!(check(&rig.store, &mut rig.db).unwrap(), Removed::default());
        rig.db.set_boot("another run").unwrap();
        assert_eq!(check(&rig.store, &mut rig.db).unwrap().objects, 1);
    }
}
