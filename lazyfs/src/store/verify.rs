//! Reads everything that is kept and says what is not as it was written.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use super::Store;
use super::db::{Db, ImageState};
use super::needs::Needs;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::saved;
use crate::table::Table;

/// Something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// An object has other content than its name says.
    Object(Digest),
    /// An object that a complete image reads is gone.
    Missing(Digest),
    /// Tree, table or record of an image.
    Image(Digest, String),
    /// What is kept of a layer's index.
    Index(Digest),
    /// Parts of a large file of a layer have other content.
    LargeFile {
        /// The layer.
        layer: Digest,
        /// The file.
        file: Digest,
        /// Length of the layer's data file, bytes.
        data_len: u64,
        /// Where in the data file chunks are damaged.
        chunks: Vec<Range<u64>>,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Object(digest) => write!(f, "object {digest}"),
            Self::Missing(digest) => write!(f, "object {digest} is gone"),
            Self::Image(digest, name) => write!(f, "tree, table or record of image {name} ({digest}): pull it again"),
            Self::Index(layer) => write!(f, "index of layer {layer}"),
            Self::LargeFile { layer, file, chunks, .. } => {
                write!(f, "{} chunks of large file {file} of layer {layer}", chunks.len())
            }
        }
    }
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Objects that were read.
    pub objects: u64,
    /// Images whose files were read.
    pub images: u64,
    /// Indexes that were read.
    pub indexes: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// Reads everything. Only for the one daemon of a store.
pub fn verify(store: &Store, db: &Db) -> Result<Verified> {
    db.check()?;
    let mut verified = Verified::default();
    let mut layers = HashSet::new();
    let mut needed = BTreeSet::new();
    for row in db.images()? {
        verified.images += 1;
        let files = store.image(&row.digest);
        let needs = if row.state == ImageState::Complete { Needs::of(&files) } else { Ok(Needs::default()) };
        match (Table::open(&files.table()), needs) {
            (Ok(table), Ok(needs)) if files.are_intact() => {
                needed.extend(needs.objects);
                large_files(store, &table, &mut layers, &mut verified.damage)?;
            }
            _ => verified.damage.push(Damage::Image(row.digest, row.reference)),
        }
    }
    needed.retain(|object| !store.cas().contains(object));
    verified.damage.extend(needed.into_iter().map(Damage::Missing));
    for digest in store.cas().list()? {
        verified.objects += 1;
        let object = match store.cas().get(&digest) {
            // Removed meanwhile.
            Err(e) if e.outcome() == Outcome::NotFound => continue,
            object => object?,
        };
        let (found, _) = Digest::of_reader(object).map_err(|e| Error::io("reading object", digest.to_string(), e))?;
        if found != digest {
            verified.damage.push(Damage::Object(digest));
        }
    }
    let dir = store.indexes_dir();
    for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
        let entry = entry.map_err(|e| Error::io("listing", &dir, e))?;
        // Others have temporary names.
        let Ok(layer) = Digest::from_hex(&entry.file_name().to_string_lossy()) else { continue };
        verified.indexes += 1;
        let bytes = std::fs::read(entry.path()).map_err(|e| Error::io("reading", entry.path(), e))?;
        if saved::load(&bytes).is_err() {
            verified.damage.push(Damage::Index(layer));
        }
    }
    Ok(verified)
}

/// The chunks that are here of the large files of an image.
fn large_files(store: &Store, table: &Table, seen: &mut HashSet<Digest>, damage: &mut Vec<Damage>) -> Result<()> {
    for (number, layer) in table.layers().enumerate() {
        if layer.data_len == 0 || !seen.insert(layer.digest) {
            continue;
        }
        let data = store.big(&layer.digest, layer.data_len)?;
        for file in table.large_files(number as u32) {
            let Some(range) = file.data_range() else { continue };
            let mut chunks = Vec::new();
            for chunk in table.chunks(&file) {
                let begin = range.start + chunk.file_offset;
                let place = begin..begin + chunk.len;
                if !data.has(place.clone()) {
                    continue;
                }
                let mut bytes = vec![0; usize::try_from(chunk.len).expect("chunks have a limit")];
                match data.read(begin, &mut bytes) {
                    // Another repair has just forgotten it.
                    Err(e) if e.outcome() == Outcome::NotFound => continue,
                    read => read?,
                }
                let right = if chunk.zeros { bytes.iter().all(|&byte| byte == 0) } else { Digest::of(&bytes) == chunk.digest };
                if !right {
                    chunks.push(place);
                }
            }
            if !chunks.is_empty() {
                let (layer, file, data_len) = (layer.digest, file.digest, layer.data_len);
                damage.push(Damage::LargeFile { layer, file, data_len, chunks });
            }
        }
    }
    Ok(())
}

/// Removes damaged objects and indexes, and forgets damaged parts of large files, all of which are then fetched again; says of how many
/// things. Images that name any of it have to be recorded as lazy before, and to be attached afterwards.
pub fn remove(store: &Store, damage: &[Damage]) -> Result<usize> {
    let mut removed = 0;
    for one in damage {
        match one {
            Damage::Object(digest) => store.cas().remove(digest)?,
            Damage::Index(layer) => {
                let path = store.index_path(layer);
                std::fs::remove_file(&path).map_err(|e| Error::io("removing", path, e))?;
            }
            Damage::LargeFile { layer, data_len, chunks, .. } => {
                let data = store.big(layer, *data_len)?;
                chunks.iter().try_for_each(|chunk| data.forget(chunk.clone()))?;
            }
            // Images that are lazy fetch it.
            Damage::Missing(_) => {}
            Damage::Image(..) => continue,
        }
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::super::db::NewImage;
    use super::super::image::ImageRecord;
    use super::*;
    use crate::layer::sample::{file, layer};
    use crate::layer::{Chunk, EntryKind, LayerKind};
    use crate::table::{CHUNKED_FROM, LayerSource, build};
    use crate::tree::erofs;
    use crate::tree::erofs::devices::LargeFiles;
    use crate::tree::merge::merge;

    #[test]
    fn a_flipped_bit_is_found_at_every_kind_of_place() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut db) = (Store::open(dir.path()).unwrap(), Db::open(dir.path()).unwrap());
        let mut writer = store.cas().writer().unwrap();
        writer.write(b"content").unwrap();
        let object = writer.finish().unwrap();
        let content: Vec<u8> = (0..CHUNKED_FROM + 5).map(|n| (n % 251) as u8).collect();
        let (large, blob) = (Digest::of(&content), Digest::of(b"blob"));
        let mut entry = file("large", &content);
        if let EntryKind::File(file) = &mut entry.kind {
            let len = content.len() as u64;
            file.chunks = vec![Chunk { file_offset: 0, len, blob_offset: 0, blob_len: 9, digest: large, zeros: false }];
        }
        let mut small = file("small", b"content");
        if let EntryKind::File(file) = &mut small.kind {
            file.chunks = vec![Chunk { file_offset: 0, len: 7, blob_offset: 20, blob_len: 9, digest: object, zeros: false }];
        }
        let index = layer([entry, small]);
        let source = LayerSource { digest: blob, diff_id: blob, size: 100, kind: LayerKind::ZstdChunked, index: &index };
        let image = Digest::of(b"image");
        let files = store.image(&image);
        let table = Table::from_bytes(build(&[source]).unwrap()).unwrap();
        let tree = erofs::write_with(&merge([&index]).unwrap(), &LargeFiles::of(&table, |_| false)).unwrap();
        files.write(&tree, table.as_bytes(), ImageRecord::new("a:1".into(), false, "{}".into())).unwrap();
        let state = ImageState::Complete;
        let new = NewImage { digest: image, name: "a:1", reference: "a:1", state, bytes_total: 1, content_bytes: 1, entries: 1 };
        db.add_image(&new).unwrap();
        std::fs::write(store.index_path(&blob), saved::save(&index)).unwrap();
        let big = store.big(&blob, Table::open(&files.table()).unwrap().layers().next().unwrap().data_len).unwrap();
        big.write(0, &content).unwrap();
        assert_eq!(verify(&store, &db).unwrap(), Verified { objects: 1, images: 1, indexes: 1, damage: Vec::new() });

        let damaged_part = Damage::LargeFile {
            layer: blob,
            file: large,
            data_len: big.len(),
            chunks: std::iter::once(0..CHUNKED_FROM + 5).collect(),
        };
        let of_image = || Damage::Image(image, "a:1".into());
        let cases = [
            (store.cas().objects_dir().join(object.object_path()), 3, Damage::Object(object)),
            (files.tree(), 1, of_image()),
            (files.table(), 200, of_image()),
            (store.index_path(&blob), 50, Damage::Index(blob)),
            (big.path().to_owned(), 70_000, damaged_part.clone()),
        ];
        for (path, at, damage) in cases {
            let before = std::fs::read(&path).unwrap();
            let mut after = before.clone();
            after[at] ^= 0x10;
            std::fs::write(&path, &after).unwrap();
            assert_eq!(verify(&store, &db).unwrap().damage, [damage], "{}", path.display());
            std::fs::write(&path, &before).unwrap();
        }
        let path = store.cas().objects_dir().join(object.object_path());
        std::fs::rename(&path, dir.path().join("aside")).unwrap();
        assert_eq!(verify(&store, &db).unwrap().damage, [Damage::Missing(object)]);
        std::fs::rename(dir.path().join("aside"), &path).unwrap();

        assert_eq!(remove(&store, &[Damage::Object(object), Damage::Index(blob), of_image(), damaged_part]).unwrap(), 3);
        assert!(!store.cas().contains(&object) && !store.index_path(&blob).exists() && files.exist());
        assert!(!big.has(0..1) && !big.has(CHUNKED_FROM..CHUNKED_FROM + 5));
    }
}
