use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::layer::sample::{dir, entry, file, hardlink, layer, symlink};
use crate::layer::{Entry, EntryKind, Meta};
use crate::store::cas::Cas;
use crate::tree::{erofs, merge::merge};

/// Content that arrives when it is asked for, on another thread; `None` for what cannot be had.
struct Later {
    cas: Arc<Cas>,
    content: BTreeMap<Digest, Option<Vec<u8>>>,
    asked: Arc<Mutex<Vec<Digest>>>,
}

impl Contents for Later {
    fn open(&self, file: Wanted, opened: Opened) {
        let content = file.content;
        self.asked.lock().unwrap().push(content);
        if content == Digest::of(&large()) {
            return opened(Ok(Open::Parts));
        }
        let (cas, bytes) = (Arc::clone(&self.cas), self.content.get(&content).cloned().flatten());
        std::thread::spawn(move || {
            let Some(bytes) = bytes else {
                return opened(Err(Error::new(Outcome::Unavailable, "fetching").because("the registry is gone")));
            };
            let mut writer = cas.writer().unwrap();
            writer.write(&bytes).unwrap();
            let digest = writer.finish().unwrap();
            opened(cas.get(&digest).map(Open::Whole));
        });
    }

    fn read(&self, file: Wanted, range: std::ops::Range<u64>, read: Read) {
        self.asked.lock().unwrap().push(file.content);
        let range = range.start as usize..range.end as usize;
        std::thread::spawn(move || read(Ok(large()[range].to_vec())));
    }
}

/// Content that is read in parts.
fn large() -> Vec<u8> {
    (0..2_000_003u32).map(|n| (n / 251) as u8).collect()
}

fn entries() -> Vec<Entry> {
    let xattrs = vec![(b"user.note".to_vec(), b"value".to_vec())];
    let noted = Entry { meta: Meta { mode: 0o640, uid: 5, gid: 6, xattrs, ..Meta::default() }, ..file("noted", b"noted") };
    let mut all = vec![
        dir("d"),
        file("d/f", b"content of f"),
        hardlink("d/g", "d/f"),
        file("empty", b""),
        file("absent", b"cannot be had"),
        file("large", &vec![7; 3_000_001]),
        file("parts", &large()),
        symlink("l", "d/f"),
        entry("pipe", EntryKind::Fifo),
        noted,
    ];
    all.extend((0..1000).map(|n| file(&format!("many/{n:0>80}"), b"x")));
    all
}

struct Rig {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Digest>>>,
    mount: TreeMount,
    ended: mpsc::Receiver<()>,
}

/// `None` where FUSE cannot be used; says so.
fn rig(test: &str) -> Option<Rig> {
    if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
        println!("SKIP {test}: needs root and /dev/fuse");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, target) = (dir.path().join("tree.erofs"), dir.path().join("mnt"));
    let layer = layer(entries());
    std::fs::write(&image, erofs::write(&merge(&[layer]).unwrap()).unwrap()).unwrap();
    std::fs::create_dir(&target).unwrap();
    let content: [&[u8]; 4] = [b"content of f", &[7; 3_000_001], b"noted", b"x"];
    let content = content.map(|bytes| (Digest::of(bytes), Some(bytes.to_vec()))).into();
    let asked = Arc::<Mutex<Vec<Digest>>>::default();
    let cas = Arc::new(Cas::open(dir.path()).unwrap());
    let contents = Arc::new(Later { cas, content, asked: Arc::clone(&asked) });
    let (sender, ended) = mpsc::channel();
    let ended_signal = move || sender.send(()).unwrap();
    let mount =
        TreeMount::mount(StoredTree::open(&image).unwrap(), contents, View::Image, "test", &target, ended_signal).unwrap();
    Some(Rig { dir, asked, mount, ended })
}

#[test]
fn a_tree_is_served_and_content_only_when_it_is_opened() {
    let Some(rig) = rig("a_tree_is_served_and_content_only_when_it_is_opened") else { return };
    let root = rig.mount.dir().to_owned();
    let listed: Vec<_> = std::fs::read_dir(root.join("many")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed.len(), 1000);
    // From what the kernel has kept.
    let again: Vec<_> = std::fs::read_dir(root.join("many")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(again, listed);
    let noted = std::fs::metadata(root.join("noted")).unwrap();
    assert_eq!((noted.mode() & 0o7777, noted.uid(), noted.gid(), noted.len()), (0o640, 5, 6, 5));
    assert!(std::fs::symlink_metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(std::fs::read_link(root.join("l")).unwrap(), Path::new("d/f"));
    let (f, g) = (std::fs::metadata(root.join("d/f")).unwrap(), std::fs::metadata(root.join("d/g")).unwrap());
    assert_eq!((f.ino(), f.nlink()), (g.ino(), 2));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(root.join("noted"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..len], b"value");
    assert_eq!(std::fs::read(root.join("empty")).unwrap(), b"");
    assert!(rig.asked.lock().unwrap().is_empty(), "metadata and empty files need no content");

    assert_eq!(std::fs::read(root.join("l")).unwrap(), b"content of f");
    assert_eq!(*rig.asked.lock().unwrap(), [Digest::of(b"content of f")]);
    let (mut first, mut second) = (File::open(root.join("large")).unwrap(), File::open(root.join("large")).unwrap());
    for file in [&mut first, &mut second] {
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(content == vec![7; 3_000_001]);
    }
    let parts = File::open(root.join("parts")).unwrap();
    let mut middle = vec![0; 100_000];
    std::os::unix::fs::FileExt::read_exact_at(&parts, &mut middle, 1_234_567).unwrap();
    assert!(middle == large()[1_234_567..1_334_567]);
    assert!(std::fs::read(root.join("parts")).unwrap() == large());
    drop(parts);
    let absent = std::fs::read(root.join("absent")).unwrap_err();
    assert_eq!(absent.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "never ENOENT, never zeros");
    assert!(std::fs::write(root.join("new"), b"x").unwrap_err().raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error()));

    assert_eq!(rig.mount.unmount().unwrap_err().outcome(), Outcome::Busy);
    drop((first, second));
    rig.mount.unmount().unwrap();
    rig.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(std::fs::read_dir(rig.dir.path().join("mnt")).unwrap().count(), 0);
    assert_eq!(rig.mount.unmount().unwrap_err().outcome(), Outcome::NotFound);
}

#[test]
fn whoever_unmounts_it_the_owner_hears_of_it() {
    let Some(rig) = rig("whoever_unmounts_it_the_owner_hears_of_it") else { return };
    crate::fscontext::detach(rig.mount.dir()).unwrap();
    rig.ended.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), erofs::write(&merge(&[layer(vec![dir("d")])]).unwrap()).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cas = Arc::new(Cas::open(dir.path()).unwrap());
    let contents = Arc::new(Later { cas, content: BTreeMap::new(), asked: Arc::default() });
    let tree = StoredTree::open(image.path()).unwrap();
    let error = TreeMount::mount(tree, contents, View::Image, "test", &dir.path().join("nowhere"), || ()).unwrap_err();
    assert!(error.one_line().contains("nowhere") && error.advice().is_some(), "{error:?}");
}
