//! What takes how much room in a store.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::db::Db;
use super::pins::Holder;
use super::quota::{Shared, Weighed, on_disk};
use super::{Store, big};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::table::Table;

/// One kind of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// How many there are.
    pub count: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Of these, what no image names: a sweep frees it.
    pub unnamed: u64,
    /// Of these, what only images name that no container uses.
    pub unused: u64,
}

/// The whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Trees, tables and records.
    pub images: Part,
    /// Files by their digest.
    pub objects: Part,
    /// Bytes of objects that several images name.
    pub shared_bytes: u64,
    /// Large files that are here in part or whole, one for each layer.
    pub large_files: Part,
    /// Layers of images that were made here, of which nobody else has a copy.
    pub imported: Part,
    /// What layers contain, and parts of blobs that belong to no file.
    pub indexes: Part,
    /// Records, writable layers and logs.
    pub containers: Part,
    /// The database.
    pub database_bytes: u64,
}

impl Usage {
    /// Bytes of everything that a quota counts: not what containers wrote.
    pub fn total(&self) -> u64 {
        [self.images, self.objects, self.large_files, self.imported, self.indexes].iter().map(|part| part.bytes).sum::<u64>()
            + self.database_bytes
    }
}

/// Who names something.
#[derive(Clone, Copy, Default)]
struct Namers {
    images: u32,
    pinned: u32,
}

impl Part {
    fn add(&mut self, bytes: u64, namers: Option<&Namers>) {
        self.count += 1;
        self.bytes += bytes;
        match namers {
            None => self.unnamed += bytes,
            Some(Namers { pinned: 0, .. }) => self.unused += bytes,
            Some(_) => {}
        }
    }
}

/// Looks at everything. Only reads, so it may run beside a daemon; what comes and goes meanwhile is counted or not.
pub fn usage(store: &Store, db: &Db) -> Result<Usage> {
    let mut objects: HashMap<Digest, Namers> = HashMap::new();
    let mut layers: HashMap<String, Namers> = HashMap::new();
    let mut images: HashMap<String, Namers> = HashMap::new();
    for row in db.images()? {
        let table = Table::open(&store.image(&row.digest).table())?;
        let pinned = u32::from(!db.pins(&row.digest)?.is_empty());
        let name = |namers: &mut Namers| (namers.images, namers.pinned) = (namers.images + 1, namers.pinned + pinned);
        name(images.entry(row.digest.hex()).or_default());
        table.files().for_each(|file| name(objects.entry(file.digest).or_default()));
        table.layers().for_each(|layer| name(layers.entry(layer.digest.hex()).or_default()));
    }
    let mut usage = Usage::default();
    for digest in store.cas().list()? {
        // One that went meanwhile takes no room.
        let Some(bytes) = store.cas().size(&digest).map(on_disk) else { continue };
        let namers = objects.get(&digest);
        usage.objects.add(bytes, namers);
        if namers.is_some_and(|namers| namers.images > 1) {
            usage.shared_bytes += bytes;
        }
    }
    let by_name = |part: &mut Part, dir: &str, names: &HashMap<String, Namers>| {
        each(&store.root().join(dir), &mut |name, path| {
            part.add(tree_bytes(path)?, names.get(name.split('.').next().unwrap_or_default()));
            Ok(())
        })
    };
    by_name(&mut usage.images, "images", &images)?;
    by_name(&mut usage.indexes, "indexes", &layers)?;
    by_name(&mut usage.indexes, "spans", &layers)?;
    by_name(&mut usage.indexes, "gaps", &layers)?;
    each(&store.root().join("imported/blobs/sha256"), &mut |_, path| {
        usage.imported.count += 1;
        usage.imported.bytes += tree_bytes(path)?;
        Ok(())
    })?;
    // The map of large files counts with them.
    let mut maps = Part::default();
    each(&store.root().join("big"), &mut |name, path| {
        let part = if name.ends_with(".data") { &mut usage.large_files } else { &mut maps };
        part.add(tree_bytes(path)?, layers.get(name.split('.').next().unwrap_or_default()));
        Ok(())
    })?;
    usage.large_files.bytes += maps.bytes;
    usage.large_files.unnamed += maps.unnamed;
    usage.large_files.unused += maps.unused;
    each(&store.root().join("containers"), &mut |name, path| {
        if name.len() == 64 {
            usage.containers.count += 1;
            usage.containers.bytes += tree_bytes(path)?;
        }
        Ok(())
    })?;
    for name in ["db", "db-wal", "db-shm"] {
        usage.database_bytes += tree_bytes(&store.root().join(name))?;
    }
    Ok(usage)
}

/// All images, the one first that was not used for the longest time, with what they need on the disk; those that something holds may not go.
pub fn weigh(store: &Store, db: &Db) -> Result<Vec<Weighed>> {
    let mut weighed = Vec::new();
    for image in db.by_last_use()? {
        let files = store.image(&image);
        let table = Table::open(&files.table())?;
        let objects = table.files().filter_map(|file| {
            let bytes = store.cas().size(&file.digest)?;
            Some((Shared::Object(file.digest), on_disk(bytes)))
        });
        let mut parts: HashMap<Shared, u64> = objects.collect();
        for layer in table.layers() {
            let mut bytes = tree_bytes(&big::data_path(&store.big_dir(), &layer.digest))?;
            for path in [store.index_path(&layer.digest), store.spans_path(&layer.digest)] {
                bytes += tree_bytes(&path)?;
            }
            parts.insert(Shared::Layer(layer.digest), bytes);
        }
        let own = tree_bytes(&files.dir())?;
        let last_used = db.image(&image)?.map_or(0, |row| row.last_used);
        let last_used = UNIX_EPOCH + Duration::from_secs(last_used);
        let removable = db.pins(&image)?.is_empty();
        weighed.push(Weighed { image, removable, last_used, parts: parts.into_iter().collect(), own });
    }
    Ok(weighed)
}

/// What one image takes on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// Its names, or its digest where it has none.
    pub image: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes that no other image needs: what its removal frees.
    pub own_bytes: u64,
    /// Bytes that other images need, too.
    pub shared_bytes: u64,
    /// What holds it, in words.
    pub holders: Vec<String>,
    /// When it was last pulled, or used by a container or a mount, seconds since the epoch.
    pub last_used: u64,
}

/// All images, the one first that was not used for the longest time: the order in which a quota removes them.
pub fn by_image(store: &Store, db: &Db) -> Result<Vec<ImageUsage>> {
    let weighed = weigh(store, db)?;
    let mut namers: HashMap<Shared, u32> = HashMap::new();
    for (part, _) in weighed.iter().flat_map(|image| &image.parts) {
        *namers.entry(*part).or_default() += 1;
    }
    let mut all = Vec::new();
    for image in weighed {
        // Removed a moment ago.
        let Some(row) = db.image(&image.image)? else { continue };
        let bytes = |shared: bool| {
            let parts = image.parts.iter().filter(|(part, _)| (namers[part] > 1) == shared);
            parts.map(|(_, bytes)| bytes).sum::<u64>()
        };
        all.push(ImageUsage {
            image: if row.names.is_empty() { row.digest.to_string() } else { row.names.join(", ") },
            digest: row.digest,
            own_bytes: image.own + bytes(false),
            shared_bytes: bytes(true),
            holders: db.pins(&row.digest)?.iter().map(|pin| Holder::of(pin).to_string()).collect(),
            last_used: row.last_used,
        });
    }
    Ok(all)
}

/// What the images of one of several groups take on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupUsage {
    /// Images of the group that are in the store.
    pub images: u64,
    /// Bytes that no image outside of the group needs.
    pub own_bytes: u64,
    /// Bytes that others need, too.
    pub shared_bytes: u64,
}

/// The same for groups of images, in which each part counts once.
pub fn by_group(store: &Store, db: &Db, groups: &[HashSet<Digest>]) -> Result<Vec<GroupUsage>> {
    let weighed = weigh(store, db)?;
    let one = |group: &HashSet<Digest>| {
        let (inside, outside): (Vec<&Weighed>, Vec<&Weighed>) = weighed.iter().partition(|image| group.contains(&image.image));
        let others: HashSet<Shared> = outside.iter().flat_map(|image| &image.parts).map(|(part, _)| *part).collect();
        let parts: HashMap<Shared, u64> = inside.iter().flat_map(|image| image.parts.iter().copied()).collect();
        let bytes =
            |shared| parts.iter().filter(|(part, _)| others.contains(part) == shared).map(|(_, bytes)| bytes).sum::<u64>();
        let own = inside.iter().map(|image| image.own).sum::<u64>() + bytes(false);
        GroupUsage { images: inside.len() as u64, own_bytes: own, shared_bytes: bytes(true) }
    };
    Ok(groups.iter().map(one).collect())
}

fn each(dir: &Path, work: &mut dyn FnMut(&str, &Path) -> Result<()>) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| Error::io("listing", dir, e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("listing", dir, e))?;
        work(&entry.file_name().to_string_lossy(), &entry.path())?;
    }
    Ok(())
}

/// Bytes on the disk of a file, or of a directory with all that is in it; 0 for what has gone meanwhile.
fn tree_bytes(path: &Path) -> Result<u64> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        metadata => metadata.map_err(|e| Error::io("looking at", path, e))?,
    };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        each(path, &mut |_, entry| tree_bytes(entry).map(|more| bytes += more))?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::db::{ImageState, NewImage};
    use super::super::image::ImageRecord;
    use super::*;
    use crate::layer::sample::{file, layer};
    use crate::layer::{Chunk, Entry, EntryKind, LayerKind};
    use crate::table::{LayerSource, build};

    /// A file that is one chunk of its layer.
    fn whole(name: &str, content: &[u8], at: u64) -> Entry {
        let mut entry = file(name, content);
        if let EntryKind::File(file) = &mut entry.kind {
            let (len, digest) = (file.size, file.digest);
            file.chunks = vec![Chunk { file_offset: 0, len, blob_offset: 100 * at, blob_len: 50, digest, zeros: false }];
        }
        entry
    }

    #[test]
    fn what_is_shared_unused_and_unnamed_is_told_apart_and_only_the_latter_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut db) = (Store::open(dir.path()).unwrap(), Db::open(dir.path()).unwrap());
        let contents: [&[u8]; 4] = [b"of both", b"of the pinned", b"of the unpinned", b"of nobody"];
        for content in contents {
            let mut writer = store.cas().writer().unwrap();
            writer.write(content).unwrap();
            writer.finish().unwrap();
        }
        for (name, files) in [("pinned", [0, 1]), ("unpinned", [0, 2])] {
            let index = layer(files.map(|at| whole(&format!("f{at}"), contents[at], at as u64)));
            let blob = Digest::of(name.as_bytes());
            let source = LayerSource { digest: blob, diff_id: blob, size: 1000, kind: LayerKind::ZstdChunked, index: &index };
            let record = ImageRecord::new(name.into(), false, "{}".into());
            store.image(&blob).write(b"tree", &build(&[source]).unwrap(), record).unwrap();
            let state = ImageState::Complete;
            let new = NewImage { digest: blob, name, reference: name, state, bytes_total: 1, content_bytes: 1, entries: 1 };
            db.add_image(&new).unwrap();
            store.big(&blob, 1 << 20).unwrap().write(0, &[7; 1 << 15]).unwrap();
        }
        store.big(&Digest::of(b"no image"), 1 << 20).unwrap().write(0, &[7; 1 << 15]).unwrap();
        db.pin("container", &Digest::of(b"pinned")).unwrap();

        let before = usage(&store, &db).unwrap();
        let len = |at: usize| on_disk(contents[at].len() as u64);
        let all = (0..4).map(len).sum();
        assert_eq!(before.objects, Part { count: 4, bytes: all, unnamed: len(3), unused: len(2) });
        assert_eq!((before.shared_bytes, before.images.count, before.images.unnamed), (len(0), 2, 0));
        assert!(before.images.unused > 0 && before.images.unused < before.images.bytes);
        let large = before.large_files;
        assert!(
            large.count == 3 && large.unnamed > 0 && large.unused > 0 && large.unnamed + large.unused < large.bytes,
            "{large:?}"
        );

        let weighed = weigh(&store, &db).unwrap();
        let shared: Vec<bool> =
            weighed.iter().map(|image| image.parts.contains(&(Shared::Object(Digest::of(contents[0])), len(0)))).collect();
        assert_eq!(shared, [true, true]);
        assert!(weighed.iter().all(|image| image.own > 0 && image.removable == (image.image == Digest::of(b"unpinned"))));
        let by_image = by_image(&store, &db).unwrap();
        assert!(by_image.iter().all(|image| image.shared_bytes == len(0) && image.own_bytes > len(1)), "{by_image:?}");
        let held: Vec<_> = by_image.iter().filter(|image| !image.holders.is_empty()).collect();
        assert!(held.len() == 1 && held[0].image == "pinned" && held[0].holders == ["container container uses it"]);
        let [pinned, unpinned] = [&b"pinned"[..], b"unpinned"].map(Digest::of);
        let groups = [HashSet::from([pinned]), HashSet::from([pinned, unpinned]), HashSet::new()];
        let groups = by_group(&store, &db, &groups).unwrap();
        assert_eq!((groups[0].images, groups[0].shared_bytes, groups[1].shared_bytes), (1, len(0), 0));
        let both = |image: &ImageUsage| image.own_bytes;
        assert_eq!(groups[1].own_bytes, by_image.iter().map(both).sum::<u64>() + len(0));
        assert_eq!(groups[2], GroupUsage::default());
        let freed = before.objects.unused + before.large_files.unused + before.images.unused;
        let total: u64 = weighed[usize::from(!weighed[0].removable)].parts.iter().map(|(_, bytes)| bytes).sum();
        assert!(total >= freed - before.images.unused && total < before.total(), "{total} {before:?}");

        assert!(store.sweep(&store.named(&db).unwrap()).unwrap() > contents[3].len() as u64);
        let after = usage(&store, &db).unwrap();
        assert_eq!(
            (after.objects.count, after.objects.unnamed, after.large_files.count, after.large_files.unnamed),
            (3, 0, 2, 0)
        );
        assert_eq!((after.objects.unused, after.large_files.unused), (before.objects.unused, large.unused));
    }
}
