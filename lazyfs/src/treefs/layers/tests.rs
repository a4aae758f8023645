use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::layer::sample::{dir, file, layer};
use crate::tree::erofs::devices::{DeviceMap, LargeFiles};
use crate::tree::{erofs, merge::merge};

/// Long enough for any answer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    dir: tempfile::TempDir,
    layers: Layers,
    told: mpsc::Receiver<String>,
}

fn large() -> Vec<u8> {
    (0..5 * CLUSTER as u32 + 123).map(|n| (n / 251) as u8).collect()
}

/// Directories stand for the trigger, too: one that answers that a file is not there.
fn rig() -> Rig {
    let dir_ = tempfile::tempdir().unwrap();
    let path = |name: &str| dir_.path().join(name);
    let entries = vec![dir("d"), file("d/small", b"small"), file("large", &large())];
    let mut files = LargeFiles::default();
    files.add(Digest::of(b"layer"), large().len() as u64, [(Digest::of(&large()), 0)]);
    std::fs::write(path("tree"), erofs::write_with(&merge(&[layer(entries)]).unwrap(), &files).unwrap()).unwrap();
    for layer in ["cas", "trigger", "late"] {
        std::fs::create_dir_all(path(layer).join(&Digest::of(b"small").hex()[..2])).unwrap();
    }
    std::fs::create_dir(path("poison")).unwrap();
    symlink("poison", path("poison").join(&Digest::of(b"small").hex()[..2])).unwrap();
    std::fs::write(path("data"), large()).unwrap();
    let plan = RootPlan {
        tree: path("tree"),
        devices: vec![path("data"), path("absent")],
        data: ["cas", "trigger", "late", "poison"].map(path).into(),
        writable: None,
        by: crate::rootfs::plan::By::Server,
    };
    let (say, told) = mpsc::channel();
    let layers = Layers::open(&plan, Box::new(move |error| say.send(error.one_line()).unwrap())).unwrap();
    Rig { dir: dir_, layers, told }
}

impl Rig {
    fn wanted(&self, name: &str) -> Wanted {
        let tree = &self.layers.parts.tree;
        let nid = name.split('/').fold(tree.root(), |dir, name| tree.child(dir, name.as_ref()).unwrap());
        Wanted { nid, content: tree.content(nid).unwrap(), size: tree.stat(nid).unwrap().size, caller: 0 }
    }

    fn open(&self, name: &str) -> Result<Open> {
        let (sender, answer) = mpsc::channel();
        self.layers.open(self.wanted(name), Box::new(move |opened| sender.send(opened).unwrap()));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let (sender, answer) = mpsc::channel();
        self.layers.read(self.wanted("large"), range, Box::new(move |read| sender.send(read).unwrap()));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    /// As the daemon does it when clusters are here.
    fn arrive(&self, clusters: Range<u64>) {
        let path = self.dir.path().join("tree");
        let map = StoredTree::device_map(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for (_, at) in map.numbers(0, clusters) {
            file.write_all_at(&DeviceMap::number(0, true), at).unwrap();
        }
    }
}

#[test]
fn a_file_is_found_in_each_layer_and_its_absence_is_an_error() {
    for layer in ["cas", "late"] {
        let rig = rig();
        let error = rig.open("d/small").unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unavailable, "{}", error.one_line());
        assert_eq!(rig.told.recv_timeout(PATIENCE).unwrap(), error.one_line());
        std::fs::write(rig.dir.path().join(layer).join(Digest::of(b"small").object_path()), b"small").unwrap();
        match rig.open("d/small").unwrap() {
            Open::Whole(file) => assert_eq!(std::io::read_to_string(file).unwrap(), "small", "{layer}"),
            Open::Parts => panic!("it is small"),
        }
    }
}

#[test]
fn parts_come_from_where_the_tree_says_at_that_moment() {
    let rig = rig();
    assert!(matches!(rig.open("large").unwrap(), Open::Parts));
    let len = large().len() as u64;
    let check = |range: Range<u64>| {
        let bytes = rig.read(range.clone()).unwrap();
        assert!(bytes == large()[range.start as usize..range.end as usize], "{range:?}");
    };
    // Nobody brings it, and the data file, which has it all, is not to be trusted.
    assert_eq!(rig.read(0..10).unwrap_err().outcome(), Outcome::Unavailable);
    rig.arrive(1..3);
    check(CLUSTER..3 * CLUSTER);
    check(2 * CLUSTER + 5..2 * CLUSTER + 6);
    for range in [CLUSTER - 1..CLUSTER + 1, 2 * CLUSTER..3 * CLUSTER + 1] {
        assert_eq!(rig.read(range).unwrap_err().outcome(), Outcome::Unavailable);
    }
    // The trigger brings the rest.
    std::fs::write(rig.dir.path().join("absent"), large()).unwrap();
    check(0..len);
    std::fs::remove_file(rig.dir.path().join("absent")).unwrap();
    rig.arrive(0..6);
    check(0..len);
    check(len - 1..len);
    // A file of the store that lost its end does not read as zeros.
    File::options().write(true).open(rig.dir.path().join("data")).unwrap().set_len(CLUSTER).unwrap();
    check(0..CLUSTER);
    assert_eq!(rig.read(0..CLUSTER + 1).unwrap_err().outcome(), Outcome::Unavailable);
    assert_eq!(rig.told.iter().take(4).count(), 4);
}

#[test]
fn an_index_that_names_no_device_is_no_zeros() {
    let rig = rig();
    let at = rig.layers.parts.tree.indexes(rig.wanted("large").nid).unwrap();
    let file = File::options().write(true).open(rig.dir.path().join("tree")).unwrap();
    // Upper half of the block, number of the device.
    for (high, device) in [(0u16, 0u16), (0, 3), (0, u16::MAX), (1, 1)] {
        let index = [high.to_le_bytes(), device.to_le_bytes(), [0; 2], [0; 2]].concat();
        file.write_all_at(&index, at).unwrap();
        assert_eq!(rig.read(0..1).unwrap_err().outcome(), Outcome::Integrity, "{high} {device}");
    }
}
