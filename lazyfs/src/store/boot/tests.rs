//! What is believed after a power cut, and what is missed.

use super::super::big::{BigData, CLUSTER};
use super::super::db::NewImage;
use super::super::image::ImageRecord;
use super::*;
use crate::layer::sample::{file, layer};
use crate::layer::{Chunk, EntryKind, LayerKind, saved};
use crate::table::{CHUNKED_FROM, LayerSource, Table, build};
use crate::tree::erofs;
use crate::tree::erofs::devices::LargeFiles;
use crate::tree::merge::merge;

struct Rig {
    dir: tempfile::TempDir,
    store: Store,
    db: Db,
}

/// The layer that has the large file.
fn layer_digest() -> Digest {
    Digest::of(b"layer")
}

fn large() -> Vec<u8> {
    (0..CHUNKED_FROM + 5).map(|n| (n % 251) as u8).collect()
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, db) = (Store::open(dir.path()).unwrap(), Db::open(dir.path()).unwrap());
        Self { dir, store, db }
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

    /// An image with the large file and a small one that has its name as content; reads the large one from an object where there is one.
    fn image(&mut self, name: &str, state: ImageState) -> Digest {
        let digest = Digest::of(name.as_bytes());
        let chunked = |path: &str, content: &[u8], at: u64| {
            let mut entry = file(path, content);
            if let EntryKind::File(file) = &mut entry.kind {
                let (len, digest) = (content.len() as u64, Digest::of(content));
                file.chunks = vec![Chunk { file_offset: 0, len, blob_offset: at, blob_len: 9, digest, zeros: false }];
            }
            entry
        };
        let (small, big) = (layer([chunked("small", name.as_bytes(), 0)]), layer([chunked("large", &large(), 0)]));
        let kind = LayerKind::ZstdChunked;
        let source = |digest, index| LayerSource { digest, diff_id: digest, size: 100, kind, index };
        let table = Table::from_bytes(build(&[source(digest, &small), source(layer_digest(), &big)]).unwrap()).unwrap();
        let tree = merge([&small, &big]).unwrap();
        let tree = erofs::write_with(&tree, &LargeFiles::of(&table, |file| self.store.cas().contains(file))).unwrap();
        let record = ImageRecord::new(name.into(), false, "{}".into());
        self.store.image(&digest).write(&tree, table.as_bytes(), record).unwrap();
        for (layer, index) in [(digest, &small), (layer_digest(), &big)] {
            std::fs::write(self.store.index_path(&layer), saved::save(index)).unwrap();
        }
        self.object(name.as_bytes());
        let new = NewImage { digest, name, reference: name, state, bytes_total: 1, content_bytes: 1, entries: 1 };
        self.db.add_image(&new).unwrap();
        digest
    }

    fn data(&self) -> std::sync::Arc<BigData> {
        let data = self.store.big(&layer_digest(), (large().len() as u64).next_multiple_of(CLUSTER)).unwrap();
        data.pad(large().len() as u64).unwrap();
        data
    }

    fn check(&mut self) -> Removed {
        self.db.set_boot("another run").unwrap();
        check(&self.store, &mut self.db).unwrap()
    }

    fn state(&self, image: &Digest) -> Option<ImageState> {
        self.db.image(image).unwrap().map(|row| row.state)
    }
}

#[test]
fn damage_goes_once_after_a_boot() {
    let mut rig = Rig::new();
    let (good, bad) = (rig.object(b"good"), rig.object(b"bad"));
    let images = ["whole", "torn", "unindexed"].map(|name| rig.image(name, ImageState::Lazy));
    rig.damage(&bad);
    std::fs::write(rig.store.image(&images[1]).tree(), b"\0\0\0\0").unwrap();
    std::fs::write(rig.store.index_path(&images[2]), b"").unwrap();
    rig.data().write(0, &large()[..1 << 15]).unwrap();

    let removed = check(&rig.store, &mut rig.db).unwrap();
    let (images_removed, lost) = (vec!["torn".into(), "unindexed".into()], Vec::new());
    assert_eq!(removed, Removed { images: images_removed, objects: 1, layers: 1, lost });
    assert!(!rig.data().has(0..1), "a map that was not durable is believed");
    assert!(rig.store.cas().contains(&good) && !rig.store.cas().contains(&bad));
    assert_eq!(images.map(|image| rig.store.image(&image).exist()), [true, false, false]);
    assert_eq!(images.map(|image| rig.state(&image).is_some()), [true, false, false]);

    // In the same run of the kernel nothing can have been lost, so nothing is read again.
    rig.damage(&good);
    assert!(is_checked(&rig.db).unwrap());
    assert_eq!(check(&rig.store, &mut rig.db).unwrap(), Removed::default());
    assert_eq!(rig.check().objects, 1);
}

#[test]
fn a_complete_image_that_lost_something_is_lazy_again() {
    for (what, object_lost, large_lost) in [
        ("nothing", false, false),
        ("an object", true, false),
        ("the map", false, true),
        ("the data", false, true),
        ("a cluster", false, true),
    ] {
        let mut rig = Rig::new();
        let image = rig.image("image", ImageState::Complete);
        let object = Digest::of(b"image");
        rig.data().write(0, &large()).unwrap();
        let big = |end: &str| rig.dir.path().join("big").join(format!("{}.{end}", layer_digest().hex()));
        match what {
            "an object" => rig.store.cas().remove(&object).unwrap(),
            "the map" => std::fs::remove_file(big("map")).unwrap(),
            "the data" => std::fs::remove_file(big("data")).unwrap(),
            "a cluster" => rig.data().forget(CLUSTER..CLUSTER + 1).unwrap(),
            _ => {}
        }
        let lost = Lost {
            objects: if object_lost { vec![object] } else { Vec::new() },
            layers: if large_lost { vec![layer_digest()] } else { Vec::new() },
        };
        let removed = rig.check();
        let expected = if object_lost || large_lost { vec![("image".to_owned(), lost)] } else { Vec::new() };
        assert_eq!(removed, Removed { lost: expected, ..Removed::default() }, "{what}");
        let state = if object_lost || large_lost { ImageState::Lazy } else { ImageState::Complete };
        assert_eq!(rig.state(&image), Some(state), "{what}");
        assert_eq!(rig.data().has(0..1), !matches!(what, "the map" | "the data"), "{what}: what is durable is forgotten");
    }
}

#[test]
fn what_another_image_added_in_the_other_form_is_not_believed() {
    // The large file as an object that has lost its bytes, beside a complete image that reads it from the data.
    let mut rig = Rig::new();
    let image = rig.image("image", ImageState::Complete);
    rig.data().write(0, &large()).unwrap();
    let object = rig.object(&large());
    rig.damage(&object);
    assert_eq!(rig.check().objects, 1, "an object is believed that no complete image reads");
    assert!(!rig.store.cas().contains(&object) && rig.data().has(0..large().len() as u64));
    assert_eq!(rig.state(&image), Some(ImageState::Complete));

    // As data of which only a hole has reached the disk, beside a complete image that reads it from an object.
    let mut rig = Rig::new();
    let object = rig.object(&large());
    let image = rig.image("image", ImageState::Complete);
    rig.data().write(0, &vec![0; large().len()]).unwrap();
    assert_eq!(rig.check().layers, 1);
    assert!(!rig.data().has(0..1), "data is believed that no complete image reads");
    assert!(rig.store.cas().contains(&object));
    assert_eq!(rig.state(&image), Some(ImageState::Complete));
}
