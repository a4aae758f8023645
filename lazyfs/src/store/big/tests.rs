use std::sync::{Arc, Barrier};

use super::*;
use crate::layer::sample::Random;
use crate::store::Store;

const LEN: u64 = 6 * CLUSTER + 1000;

fn content(len: u64) -> Vec<u8> {
    let mut random = Random(7);
    (0..len).map(|_| random.below(255) as u8 + 1).collect()
}

/// Remembers what it was told.
#[derive(Default)]
struct Told(Mutex<Vec<u64>>);

impl Told {
    fn on(big: &BigData) -> Arc<Self> {
        let told = Arc::new(Self::default());
        let listener: Weak<dyn ClusterListener> = Arc::downgrade(&(Arc::clone(&told) as Arc<dyn ClusterListener>));
        big.listen(listener);
        told
    }

    fn take(&self) -> Vec<u64> {
        let mut told = std::mem::take(&mut *self.0.lock().unwrap());
        told.sort_unstable();
        told
    }
}

impl ClusterListener for Told {
    fn arrived(&self, _: &Digest, clusters: Range<u64>) {
        self.0.lock().unwrap().extend(clusters);
    }
}

struct Rig {
    dir: tempfile::TempDir,
    layer: Digest,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), layer: Digest::of(b"layer") }
    }

    fn open(&self) -> BigData {
        BigData::open(self.dir.path(), &self.layer, LEN).unwrap()
    }
}

#[test]
fn clusters_are_told_when_their_last_byte_comes() {
    let rig = Rig::new();
    let (big, all) = (rig.open(), content(LEN));
    let told = Told::on(&big);
    let write = |range: Range<u64>, expected: &[u64]| {
        big.write(range.start, &all[range.start as usize..range.end as usize]).unwrap();
        assert_eq!(told.take(), expected, "{range:?}");
    };
    write(0..10, &[]);
    write(20..CLUSTER + 5, &[]);
    write(9..21, &[0]);
    write(0..CLUSTER, &[]); // once more, nothing new
    write(CLUSTER + 5..3 * CLUSTER, &[1, 2]);
    write(4 * CLUSTER - 1..4 * CLUSTER, &[]);
    write(6 * CLUSTER..LEN, &[6]); // the last one is short

    assert_eq!(big.missing(0..LEN), [3 * CLUSTER..4 * CLUSTER - 1, 4 * CLUSTER..6 * CLUSTER]);
    assert_eq!(big.missing(3 * CLUSTER + 7..4 * CLUSTER + 9), [3 * CLUSTER + 7..4 * CLUSTER - 1, 4 * CLUSTER..4 * CLUSTER + 9]);
    assert!(big.missing(5..5).is_empty() && big.has(4 * CLUSTER - 1..4 * CLUSTER) && !big.has(LEN - 1..LEN + 1));
    assert_eq!(big.local(), 3 * CLUSTER + 1000);

    let mut found = vec![0; 2 * CLUSTER as usize];
    big.read(11, &mut found).unwrap();
    assert_eq!(found, all[11..11 + found.len()]);
    assert_eq!(big.read(2 * CLUSTER, &mut found).unwrap_err().outcome(), Outcome::NotFound);
    for (offset, len) in [(LEN, 1), (0, LEN as usize + 1), (u64::MAX, 1)] {
        assert_eq!(big.write(offset, &vec![1; len]).unwrap_err().outcome(), Outcome::BadInput);
    }
}

#[test]
fn what_follows_a_file_in_its_last_cluster_is_nobodys() {
    let rig = Rig::new();
    let (big, all) = (rig.open(), content(LEN));
    let told = Told::on(&big);
    let end = CLUSTER + 77;
    big.pad(end).unwrap();
    big.write(0, &all[..end as usize]).unwrap();
    assert_eq!(told.take(), [0, 1]);
    // In the other order it is the same, and at the end of the data and of a cluster there is nothing to pad.
    big.write(2 * CLUSTER, &all[..9]).unwrap();
    for end in [2 * CLUSTER + 9, 3 * CLUSTER, LEN] {
        big.pad(end).unwrap();
    }
    assert_eq!(told.take(), [2]);
    let mut found = vec![1; CLUSTER as usize];
    big.read(CLUSTER, &mut found).unwrap();
    assert!(found[77..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_is_forgotten_is_written_once_more() {
    let rig = Rig::new();
    let (big, all) = (rig.open(), content(LEN));
    big.write(0, &all).unwrap();
    let told = Told::on(&big);
    big.forget(CLUSTER + 5..2 * CLUSTER + 1).unwrap();
    let gap = CLUSTER..3 * CLUSTER;
    assert_eq!(big.missing(0..LEN), std::slice::from_ref(&gap));
    assert_eq!(big.read(CLUSTER, &mut [0]).unwrap_err().outcome(), Outcome::NotFound);
    // The kernel may still read them.
    assert_eq!(std::fs::read(big.path()).unwrap(), all);
    assert_eq!(rig.open().missing(0..LEN), [gap], "it comes back with the next start");
    big.write(CLUSTER, &all[CLUSTER as usize..3 * CLUSTER as usize]).unwrap();
    assert_eq!(told.take(), [1, 2]);
    big.forget(3..3).unwrap();
    assert!(big.has(0..LEN) && big.forget(LEN - 1..LEN + 1).is_err());
}

#[test]
fn whole_clusters_survive_a_new_start_and_parts_do_not() {
    let rig = Rig::new();
    let all = content(LEN);
    rig.open().write(CLUSTER, &all[CLUSTER as usize..2 * CLUSTER as usize + 100]).unwrap();
    let big = rig.open();
    assert_eq!(big.missing(0..LEN), [0..CLUSTER, 2 * CLUSTER..LEN]);
    let mut found = vec![0; CLUSTER as usize];
    big.read(CLUSTER, &mut found).unwrap();
    assert_eq!(found, all[CLUSTER as usize..2 * CLUSTER as usize]);
    big.sync().unwrap();
}

#[test]
fn a_map_that_does_not_belong_to_its_data_is_not_trusted() {
    let whole = |rig: &Rig| {
        let big = rig.open();
        big.write(0, &content(LEN)).unwrap();
        assert!(big.has(0..LEN));
    };
    type Damage = fn(&Path, &Path);
    let cases: [(&str, Damage); 5] = [
        ("the map is torn", |_, map| std::fs::write(map, b"\0\0\0").unwrap()),
        ("a bit of the map is wrong", |_, map| {
            let mut bytes = std::fs::read(map).unwrap();
            bytes[56] ^= 1;
            std::fs::write(map, bytes).unwrap();
        }),
        ("there is no map", |_, map| std::fs::remove_file(map).unwrap()),
        ("there is no data", |data, _| std::fs::remove_file(data).unwrap()),
        ("the data is short", |data, _| File::options().write(true).open(data).unwrap().set_len(5).unwrap()),
    ];
    for (what, damage) in cases {
        let rig = Rig::new();
        whole(&rig);
        damage(&data_path(rig.dir.path(), &rig.layer), &map_path(rig.dir.path(), &rig.layer));
        let big = rig.open();
        assert_eq!(big.missing(0..LEN), vec![0..LEN; 1], "{what}");
        assert_eq!(big.data.metadata().unwrap().len(), LEN, "{what}");
        whole(&rig);
    }
}

#[test]
fn several_write_at_once() {
    let rig = Rig::new();
    let (big, all) = (rig.open(), content(LEN));
    let told = Told::on(&big);
    // Pieces that no cluster is a multiple of, and each piece twice.
    let pieces: Vec<Range<usize>> = (0..LEN as usize).step_by(999).map(|at| at..(at + 999).min(LEN as usize)).collect();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (start, pieces, all, big) = (&start, &pieces, &all, &big);
            scope.spawn(move || {
                start.wait();
                for piece in pieces.iter().skip(thread / 2).step_by(2) {
                    big.write(piece.start as u64, &all[piece.clone()]).unwrap();
                }
            });
        }
    });
    assert_eq!(told.take(), [0, 1, 2, 3, 4, 5, 6]);
    let mut found = vec![0; LEN as usize];
    rig.open().read(0, &mut found).unwrap();
    assert_eq!(found, all);
}

#[test]
fn a_full_disk_leaves_nothing_wrong() {
    use rustix::mount::{MountFlags, UnmountFlags};
    if !rustix::process::geteuid().is_root() {
        println!("SKIP a_full_disk_leaves_nothing_wrong: needs root");
        return;
    }
    struct Tmpfs(tempfile::TempDir);
    impl Drop for Tmpfs {
        fn drop(&mut self) {
            rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
        }
    }
    let disk = Tmpfs(tempfile::tempdir().unwrap());
    rustix::mount::mount("none", disk.0.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
    let (layer, all) = (Digest::of(b"layer"), content(LEN));
    let open = || BigData::open(disk.0.path(), &layer, LEN).unwrap();
    let big = open();
    let pieces: Vec<u64> = (0..LEN).step_by(3000).collect();
    let write = |big: &BigData, at: u64| big.write(at, &all[at as usize..(at as usize + 3000).min(all.len())]);
    let failures: Vec<Error> = pieces.iter().filter_map(|&at| write(&big, at).err()).collect();
    assert!(!failures.is_empty() && failures.iter().all(|e| e.outcome() == Outcome::NoSpace), "{failures:?}");
    for big in [big, open()] {
        assert!(big.has_cluster(0) && !big.has(0..LEN));
        for cluster in (0..big.clusters()).filter(|&cluster| big.has_cluster(cluster)) {
            let bytes = big.bytes_of(cluster);
            let mut found = vec![0; (bytes.end - bytes.start) as usize];
            big.read(bytes.start, &mut found).unwrap();
            assert_eq!(found, all[bytes.start as usize..bytes.end as usize]);
        }
    }
    rustix::mount::mount_remount(disk.0.path(), MountFlags::empty(), c"size=1m").unwrap();
    let big = open();
    pieces.iter().for_each(|&at| write(&big, at).unwrap());
    assert!(big.has(0..LEN));
}

#[test]
fn a_layer_has_one_and_only_of_one_length() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let layer = Digest::of(b"layer");
    let big = store.big(&layer, LEN).unwrap();
    assert!(Arc::ptr_eq(&big, &store.big(&layer, LEN).unwrap()));
    assert_eq!(store.big(&layer, LEN + 1).unwrap_err().outcome(), Outcome::BadInput);
    assert_eq!(store.big(&Digest::of(b"other"), 0).unwrap_err().outcome(), Outcome::BadInput);
    big.write(0, &content(LEN)).unwrap();
    drop(big);
    assert!(store.big(&layer, LEN).unwrap().has(0..LEN));
}

#[test]
fn other_processes_see_what_is_here_as_it_comes() {
    let rig = Rig::new();
    let seen = || Seen::open(rig.dir.path(), &rig.layer, LEN).unwrap();
    assert!(seen().is_none());
    let (big, all) = (rig.open(), content(LEN));
    let before = seen().unwrap();
    let read = |range: Range<u64>| before.read(range).unwrap();
    assert!(read(0..LEN).is_empty());
    let write = |range: Range<u64>| big.write(range.start, &all[range.start as usize..range.end as usize]).unwrap();
    write(CLUSTER..3 * CLUSTER);
    // Half a cluster is not here for others.
    write(3 * CLUSTER..3 * CLUSTER + 100);
    write(6 * CLUSTER..LEN);
    assert!(read(0..10).is_empty() && read(5 * CLUSTER..LEN).is_empty());
    assert_eq!(read(CLUSTER + 5..LEN), all[(CLUSTER + 5) as usize..3 * CLUSTER as usize]);
    assert_eq!(read(2 * CLUSTER + 1..2 * CLUSTER + 9), all[2 * CLUSTER as usize + 1..2 * CLUSTER as usize + 9]);
    assert_eq!(read(6 * CLUSTER + 1..LEN), all[6 * CLUSTER as usize + 1..]);
    assert!(read(7..7).is_empty());
    big.forget(CLUSTER..CLUSTER + 1).unwrap();
    assert!(read(CLUSTER..3 * CLUSTER).is_empty(), "it is damaged");

    // A bit that is wrong must not make zeros pass for content.
    let path = map_path(rig.dir.path(), &rig.layer);
    let mut map = std::fs::read(&path).unwrap();
    let bits = map.len() - 8;
    map[bits] |= 1;
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&map, 0).unwrap();
    assert!(read(0..CLUSTER).is_empty() && read(2 * CLUSTER..3 * CLUSTER).is_empty());
    assert!(seen().is_none());

    // The next daemon makes another map.
    assert!(before.is_current().unwrap());
    drop(big);
    rig.open().write(0, &all).unwrap();
    assert!(!before.is_current().unwrap());
    assert_eq!(seen().unwrap().read(0..LEN).unwrap(), all);
    // A loop device shows whole blocks.
    std::fs::File::options()
        .write(true)
        .open(data_path(rig.dir.path(), &rig.layer))
        .unwrap()
        .set_len(LEN.next_multiple_of(BLOCK))
        .unwrap();
    assert_eq!(seen().unwrap().read(0..LEN).unwrap(), all);
    assert!(has_all(rig.dir.path(), &rig.layer, LEN, std::slice::from_ref(&(0..LEN))).unwrap());
}
