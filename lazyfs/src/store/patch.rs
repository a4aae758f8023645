//! Keeps an image's tree in line with what is here of its large files.
//!
//! ```text
//! cluster is here: data (big) --> map (big) --> number of the device in tree.erofs (here) --> every mount of the image reads it locally
//! ```
//!
//! The tree may be behind the map, when a daemon was killed between the two, and ahead of it, when the machine went down: whoever attaches
//! an image brings the tree in line first, in both directions. Before that nothing may be mounted from it: what the tree says is here
//! is read from a file in which it may be a hole.
//!
//! There is one lock, on the tree's numbers; the locks of the data are taken under it, for a look.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Store;
use super::big::{BigData, ClusterListener};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::tree::erofs::devices::{DeviceMap, INDEX};
use crate::tree::erofs::read::StoredTree;

/// Numbers that are read at once.
const BATCH: u64 = 8192;

/// The tree of an image whose large files arrive.
#[derive(Debug)]
pub struct TreePatcher {
    path: PathBuf,
    file: File,
    map: DeviceMap,
    data: Vec<Arc<BigData>>,
    lock: Mutex<()>,
    /// A number could not be written.
    behind: AtomicBool,
}

impl TreePatcher {
    /// Brings the tree in the file `path` in line, and keeps it so as long as this lives. `length` says how long the data file of a
    /// layer is.
    pub fn attach(store: &Store, path: &Path, length: impl Fn(&Digest) -> Option<u64>) -> Result<Arc<Self>> {
        let tried = || format!("preparing the large files of {}", path.display());
        let map = StoredTree::device_map(path)?;
        let open = |layer: &Digest| {
            let length = length(layer).ok_or_else(|| {
                let cause = format!("the mapping table knows no large files of layer {layer}");
                Error::new(Outcome::Integrity, tried()).because(cause).advise("remove the image and pull it again")
            })?;
            store.big(layer, length)
        };
        let data = map.layers.iter().map(|layer| open(&layer.layer)).collect::<Result<Vec<_>>>()?;
        if map.layers.iter().zip(&data).any(|(layer, data)| layer.len < data.len()) {
            let cause = "it and the mapping table disagree on the length of a layer's large files";
            return Err(Error::new(Outcome::Integrity, tried()).because(cause).advise("remove the image and pull it again"));
        }
        let file = File::options().read(true).write(true).open(path).map_err(|e| Error::io("opening", path, e))?;
        let patcher = Self { path: path.to_owned(), file, map, data, lock: Mutex::default(), behind: AtomicBool::new(false) };
        let patcher = Arc::new(patcher);
        let listener: Weak<dyn ClusterListener> = Arc::downgrade(&(Arc::clone(&patcher) as Arc<dyn ClusterListener>));
        // First the listener: what arrives meanwhile waits for the lock.
        patcher.data.iter().for_each(|data| data.listen(Weak::clone(&listener)));
        patcher.align()?;
        Ok(patcher)
    }

    /// The data of the layers that have large files, in the order of their devices.
    pub fn data(&self) -> &[Arc<BigData>] {
        &self.data
    }

    /// Brings the tree in line; how many clusters are not here.
    pub fn align(&self) -> Result<u64> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut absent = 0;
        for (layer, data) in self.data.iter().enumerate() {
            for (at, clusters) in self.map.spans(layer) {
                absent += self.align_span(layer, data, at, clusters)?;
            }
        }
        self.behind.store(false, Ordering::Relaxed);
        Ok(absent)
    }

    fn align_span(&self, layer: usize, data: &BigData, at: u64, clusters: Range<u64>) -> Result<u64> {
        let mut absent = 0;
        for first in clusters.clone().step_by(BATCH as usize) {
            let batch = first..clusters.end.min(first + BATCH);
            let mut indexes = vec![0; ((batch.end - batch.start) * INDEX) as usize];
            let start = at + (first - clusters.start) * INDEX;
            self.file.read_exact_at(&mut indexes, start).map_err(|e| Error::io("reading", &self.path, e))?;
            for (cluster, index) in batch.zip(indexes.chunks(INDEX as usize)) {
                let is_here = data.has_cluster(cluster);
                absent += u64::from(!is_here);
                let number = DeviceMap::number(layer, is_here);
                if index[2..4] != number {
                    self.write(start + (cluster - first) * INDEX + 2, number)?;
                }
            }
        }
        Ok(absent)
    }

    fn write(&self, at: u64, number: [u8; 2]) -> Result<()> {
        self.file.write_all_at(&number, at).map_err(|e| Error::io("writing", &self.path, e))
    }

    /// Whether every byte of every large file is here and read without the trigger.
    pub fn is_complete(&self) -> Result<bool> {
        Ok(self.align()? == 0)
    }

    fn enter(&self, layer: usize, clusters: Range<u64>) -> Result<()> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.map.numbers(layer, clusters).try_for_each(|(_, at)| self.write(at, DeviceMap::number(layer, true)))
    }
}

impl ClusterListener for TreePatcher {
    fn arrived(&self, layer: &Digest, clusters: Range<u64>) {
        for (number, _) in self.data.iter().enumerate().filter(|(_, data)| data.layer() == layer) {
            // The trigger still has these bytes, so nobody is harmed; `align` tries again.
            if let Err(error) = self.enter(number, clusters.clone())
                && !self.behind.swap(true, Ordering::Relaxed)
            {
                tracing::warn!("{}; those bytes go on being read through the daemon", error.one_line());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::big::CLUSTER;
    use super::*;
    use crate::layer::sample::{Random, file, hardlink, layer};
    use crate::tree::erofs::devices::LargeFiles;
    use crate::tree::{erofs, merge::merge};

    const LEN: u64 = 8 * CLUSTER;

    fn content(seed: u64, len: u64) -> Vec<u8> {
        let mut random = Random(seed);
        (0..len).map(|_| random.below(256) as u8).collect()
    }

    /// A store, and the tree of an image with a small file and two large ones, of one of which there are two inodes.
    struct Rig {
        dir: tempfile::TempDir,
        store: Store,
        tree: PathBuf,
        original: Digest,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let (one, two) = (content(1, 3 * CLUSTER - 5), content(2, 4 * CLUSTER));
            let mut large = LargeFiles::default();
            large.add(layer_digest(), LEN, [(Digest::of(&one), CLUSTER), (Digest::of(&two), 4 * CLUSTER)]);
            let entries =
                [file("one", &one), file("small", b"x"), file("two", &two), file("d/again", &one), hardlink("d/l", "two")];
            let tree = dir.path().join("tree.erofs");
            let image = erofs::write_with(&merge(&[layer(entries)]).unwrap(), &large).unwrap();
            std::fs::write(&tree, &image).unwrap();
            Self { dir, store, tree, original: Digest::of(&image) }
        }

        fn attach(&self) -> Arc<TreePatcher> {
            TreePatcher::attach(&self.store, &self.tree, |layer| (*layer == layer_digest()).then_some(LEN)).unwrap()
        }

        /// The clusters that the tree says are here, each as often as it has it.
        fn local(&self) -> Vec<u64> {
            let (map, bytes) = (StoredTree::device_map(&self.tree).unwrap(), std::fs::read(&self.tree).unwrap());
            assert_eq!(StoredTree::original_digest(&self.tree).unwrap(), self.original);
            let mut local: Vec<u64> = map
                .numbers(0, 0..u64::MAX)
                .filter(|(_, at)| bytes[*at as usize..*at as usize + 2] == DeviceMap::number(0, true))
                .map(|(cluster, _)| cluster)
                .collect();
            local.sort_unstable();
            local
        }
    }

    fn layer_digest() -> Digest {
        Digest::of(b"layer")
    }

    #[test]
    fn what_arrives_is_entered_wherever_it_is() {
        let rig = Rig::new();
        let patcher = rig.attach();
        let big = Arc::clone(&patcher.data()[0]);
        assert!(rig.local().is_empty());
        big.write(0, &content(3, 2 * CLUSTER)).unwrap();
        assert_eq!(rig.local(), [1, 1]);
        big.write(3 * CLUSTER, &content(3, 2 * CLUSTER)).unwrap();
        assert_eq!(rig.local(), [1, 1, 3, 3, 4]);
        assert!(!patcher.is_complete().unwrap());
        big.write(0, &content(3, LEN)).unwrap();
        assert_eq!(rig.local(), [1, 1, 2, 2, 3, 3, 4, 5, 6, 7]);
        assert!(patcher.is_complete().unwrap());
    }

    #[test]
    fn a_tree_is_brought_in_line_in_both_directions() {
        let rig = Rig::new();
        let big = rig.store.big(&layer_digest(), LEN).unwrap();
        // Nobody listens yet, as when a daemon was killed before it had entered them.
        big.write(2 * CLUSTER, &content(3, 3 * CLUSTER)).unwrap();
        drop(rig.attach());
        assert_eq!(rig.local(), [2, 2, 3, 3, 4]);
        // As after a power cut: the tree says that they are here, the map does not.
        drop(big);
        for entry in std::fs::read_dir(rig.dir.path().join("big")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().unwrap() == "map" {
                std::fs::remove_file(path).unwrap();
            }
        }
        let patcher = rig.attach();
        assert!(rig.local().is_empty());
        assert_eq!(patcher.align().unwrap(), 10);
    }

    #[test]
    fn trees_that_say_what_cannot_be_are_refused() {
        let rig = Rig::new();
        let attach = |length: Option<u64>| TreePatcher::attach(&rig.store, &rig.tree, |_| length);
        assert_eq!(attach(None).unwrap_err().outcome(), Outcome::Integrity);
        let (good, map) = (std::fs::read(&rig.tree).unwrap(), StoredTree::device_map(&rig.tree).unwrap());
        let (_, at) = map.numbers(0, 1..2).next().unwrap();
        let at = at as usize;
        for (what, place, value) in [
            ("a device that is not there", at, 3u8),
            ("the tree itself as device", at, 0),
            ("a block out of order", at + 2, 17),
            ("a block beyond the device", at + 3, 1),
            ("upper bits", at - 2, 1),
            ("an odd number of devices", 1024 + 86, 1),
            ("a layer that is no digest", 1024 + 128, b'x'),
        ] {
            let mut bad = good.clone();
            bad[place] = value;
            std::fs::write(&rig.tree, bad).unwrap();
            let refused = attach(Some(LEN)).map(drop).unwrap_err();
            assert_eq!(refused.outcome(), Outcome::Integrity, "{what}");
        }
    }
}
