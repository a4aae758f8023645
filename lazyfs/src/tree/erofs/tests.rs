//! The oracles are fsck.erofs of Debian's erofs-utils and the kernel: an image is mounted and compared with the tree it was made of.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::MountAttrFlags;

use super::devices::LargeFiles;
use super::*;
use crate::digest::Digest;
use crate::fscontext::{self, FsContext};
use crate::layer::sample::{Random, dir, entry, file, hardlink, layer, symlink};
use crate::layer::{Entry, EntryKind, LayerIndex};
use crate::rootfs;
use crate::rootfs::plan::RootPlan;
use crate::store::big::CLUSTER;
use crate::store::cas::Cas;
use crate::tree::merge::merge;

/// A mounted file system that goes away with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        fscontext::detach(&self.0).unwrap();
    }
}

/// A directory on a real file system: EROFS cannot be mounted from a file on tmpfs.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn mount_image(image: &Path, target: &Path) -> Mounted {
    std::fs::create_dir_all(target).unwrap();
    let context = FsContext::open("erofs").unwrap();
    context.flag("ro").unwrap();
    context.string("source", image.to_str().unwrap()).unwrap();
    let mount = context.create(MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap();
    fscontext::attach(&mount, target).unwrap();
    Mounted(target.to_owned())
}

fn can_mount(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP {test}: not root, so the image cannot be mounted");
    }
    root
}

fn fsck(test: &str, image: &Path) {
    match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(e) => println!("SKIP {test}: fsck.erofs: {e}"),
    }
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 128 * 1024];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len].split(|&c| c == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 * 1024];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Compares an inode with the file at `path`, and what is below it.
fn compare(tree: &Tree, large: &LargeFiles, id: InodeId, path: &Path, inodes: &mut HashMap<InodeId, u64>) {
    let inode = tree.inode(id);
    let stat = path.symlink_metadata().unwrap();
    let meta = &inode.meta;
    let shown = path.display();
    assert_eq!(stat.mode(), u32::from(format::mode(inode)), "mode of {shown}");
    assert_eq!((stat.uid(), stat.gid()), (meta.uid, meta.gid), "owner of {shown}");
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (meta.mtime, i64::from(meta.mtime_nanos)), "time of {shown}");
    assert_eq!(stat.nlink(), u64::from(inode.links), "links of {shown}");
    assert_eq!(*inodes.entry(id).or_insert(stat.ino()), stat.ino(), "inode of {shown}");
    let expected: BTreeMap<_, _> = xattrs(tree, large, inode).into_iter().collect();
    assert_eq!(xattrs_of(path), expected, "attributes of {shown}");
    match &inode.kind {
        InodeKind::Directory(names) => {
            let listed: std::collections::BTreeSet<_> =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
            assert!(listed.iter().map(Vec::as_slice).eq(names.keys().map(|name| &name[..])), "names in {shown}");
            for (name, child) in names {
                compare(tree, large, *child, &path.join(std::ffi::OsStr::from_bytes(name)), inodes);
            }
        }
        InodeKind::File { size, .. } => assert_eq!(stat.len(), *size, "length of {shown}"),
        InodeKind::Symlink(target) => assert_eq!(std::fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "{shown}"),
        InodeKind::CharDevice(0, 0) => assert_eq!(stat.len(), 0, "{shown}"),
        InodeKind::CharDevice(major, minor) | InodeKind::BlockDevice(major, minor) => {
            assert_eq!(stat.rdev(), rustix::fs::makedev(*major, *minor), "device of {shown}");
        }
        InodeKind::Fifo => assert!(stat.file_type().is_fifo(), "{shown}"),
    }
}

/// Writes the image of the layers, has it checked, mounts it and compares it.
fn check(test: &str, layers: &[LayerIndex]) {
    check_with(test, layers, |image| fsck(test, image));
}

fn check_with(test: &str, layers: &[LayerIndex], fsck: impl FnOnce(&Path)) {
    let tree = merge(layers).unwrap();
    let scratch = scratch();
    let image = scratch.path().join("tree.erofs");
    std::fs::write(&image, write(&tree).unwrap()).unwrap();
    fsck(&image);
    if can_mount(test) {
        let target = scratch.path().join("mnt");
        let mounted = mount_image(&image, &target);
        compare(&tree, &LargeFiles::default(), InodeId::ROOT, &target, &mut HashMap::new());
        drop(mounted);
    }
}

fn with_xattrs(mut entry: Entry, xattrs: &[(&str, &[u8])]) -> Entry {
    entry.meta.xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
    entry.meta.xattrs.sort();
    entry
}

#[test]
fn every_kind_of_inode_is_what_the_kernel_shows() {
    let mut old = file("old", b"1969");
    old.meta.mtime = -31_449_600;
    let mut precise = file("precise", b"2040");
    (old.meta.mtime_nanos, precise.meta.mtime, precise.meta.mtime_nanos) = (1, 1 << 33, 999_999_999);
    let mut owned = file("owned", b"x");
    (owned.meta.uid, owned.meta.gid, owned.meta.mode) = (100_000, 3_000_000_000, 0o6755);
    let mut sticky = dir("sticky");
    sticky.meta.mode = 0o1777;
    let mut large = file("large", b"");
    if let EntryKind::File(content) = &mut large.kind {
        content.size = (1 << 43) - 1;
    }
    let link = "t".repeat(4095);
    let non_utf8 = Entry { path: b"bad\xff\xfename".to_vec(), ..file("", b"bytes") };
    check(
        "every_kind_of_inode_is_what_the_kernel_shows",
        &[layer([
            sticky,
            dir("etc"),
            file("etc/passwd", b"root"),
            file("etc/empty", b""),
            hardlink("etc/passwd-", "etc/passwd"),
            hardlink("sticky/passwd", "etc/passwd"),
            old,
            precise,
            owned,
            large,
            non_utf8,
            file("!first", b"sorts before dot"),
            symlink("short", "etc/passwd"),
            symlink("long", &link),
            with_xattrs(symlink("long-with-attribute", &link), &[("trusted.x", b"1")]),
            entry("null", EntryKind::CharDevice(1, 3)),
            entry("large-device", EntryKind::CharDevice(4095, 0xf_ffff)),
            entry("sda", EntryKind::BlockDevice(8, 0)),
            entry("fifo", EntryKind::Fifo),
            with_xattrs(
                file("attributes", b"y"),
                &[
                    ("user.a", b""),
                    ("user.nul", b"\0\xff"),
                    ("trusted.t", b"t"),
                    ("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
                ],
            ),
            with_xattrs(dir("d"), &[("user.dir", &[7; 3000])]),
        ])],
    );
}

#[test]
fn an_empty_image() {
    check("an_empty_image", &[]);
}

#[test]
fn deep_paths() {
    // `compare` takes a frame a level, and a test's thread has 2 MiB; fsck.erofs 1.5 overflows its stack here.
    let check = || check_with("deep_paths", &[layer([dir(&["d"; 1000].join("/"))])], |_| {});
    std::thread::Builder::new().stack_size(64 << 20).spawn(check).unwrap().join().unwrap();
}

#[test]
fn large_directories_and_long_names() {
    let mut entries: Vec<Entry> = (0..5000).map(|n| file(&format!("many/file-{n}"), b"same")).collect();
    entries.extend((0..300).map(|n| file(&format!("names/{n:0>255}"), b"same")));
    entries.extend((0..2000).map(|n| hardlink(&format!("links/{n}"), "many/file-1")));
    // Directories whose data ends at each distance from the end of a block.
    for n in 0..340 {
        let long = "x".repeat(n % 170 + 1);
        entries.extend((0..n / 10 + 1).map(|m| file(&format!("sizes/{n}/{m}{long}"), b"")));
    }
    check("large_directories_and_long_names", &[layer(entries)]);
}

#[test]
fn large_attributes() {
    let value = vec![b'v'; 60_000];
    let mut entries = vec![
        with_xattrs(file("one", b"1"), &[("user.large", &value)]),
        with_xattrs(symlink("link", "target"), &[("trusted.large", &value)]),
        with_xattrs(dir("directory"), &[("trusted.large", &value)]),
    ];
    for n in 0..200usize {
        entries
            .push(with_xattrs(symlink(&format!("directory/{n}"), &"t".repeat(n * 20 + 1)), &[("trusted.x", &value[..n * 20])]));
    }
    check("large_attributes", &[layer(entries)]);
}

#[test]
fn random_trees() {
    for seed in 1..=20u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut layers = Vec::new();
        for _ in 0..=random.below(3) {
            let entries: Vec<Entry> = (0..random.below(600))
                .map(|_| {
                    let depth = random.below(4);
                    let path: Vec<String> =
                        (0..=depth).map(|_| "abcdefgh"[random.below(8)..].repeat(random.below(25) + 1)).collect();
                    let path = format!("{depth}/{}", path.join("/"));
                    let mut entry = match random.below(6) {
                        0 => file(&path, b""),
                        1 => file(&path, path.as_bytes()),
                        2 => symlink(&path, &"../".repeat(random.below(1000) + 1)),
                        3 => entry(&path, EntryKind::Whiteout),
                        _ => dir(&path),
                    };
                    entry.meta.mtime += random.below(2) as i64;
                    entry.meta.uid = [0, 0, 1000, 70_000][random.below(4)];
                    entry
                })
                .collect();
            layers.push(layer(entries));
        }
        // Paths below files and links are errors that other tests are about; only the trees that can be merged are compared.
        if merge(&layers).is_ok() {
            check("random_trees", &layers);
        }
    }
}

#[test]
fn overlayfs_finds_the_bytes_and_sees_through_the_escapes() {
    const TEST: &str = "overlayfs_finds_the_bytes_and_sees_through_the_escapes";
    if !can_mount(TEST) {
        return;
    }
    let scratch = scratch();
    let cas = Cas::open(scratch.path()).unwrap();
    let mut writer = cas.writer().unwrap();
    writer.write(b"the real bytes").unwrap();
    writer.finish().unwrap();
    let entries = [
        file("a/here", b"the real bytes"),
        hardlink("b/again", "a/here"),
        file("a/absent", b"never fetched"),
        file("a/empty", b""),
        entry("w/whiteout", EntryKind::CharDevice(0, 0)),
        with_xattrs(dir("nested"), &[("trusted.overlay.opaque", b"y"), ("user.u", b"u")]),
    ];
    let tree = merge(&[layer(entries)]).unwrap();
    let image = scratch.path().join("tree.erofs");
    std::fs::write(&image, write(&tree).unwrap()).unwrap();
    let target = scratch.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    rootfs::mount::mount(&RootPlan::new(&image, &cas, None, None), &target).unwrap();
    let mounted = Mounted(target.clone());

    assert_eq!(std::fs::read(target.join("a/here")).unwrap(), b"the real bytes");
    assert_eq!(std::fs::read(target.join("b/again")).unwrap(), b"the real bytes");
    assert_eq!(std::fs::read(target.join("a/empty")).unwrap(), b"");
    assert_eq!(target.join("a/absent").metadata().unwrap().len(), 13);
    let absent = std::fs::read(target.join("a/absent")).unwrap_err();
    assert_eq!(absent.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    assert!(xattrs_of(&target.join("a/here")).is_empty());

    let whiteout = target.join("w/whiteout");
    assert!(whiteout.symlink_metadata().unwrap().is_file());
    assert_eq!(xattrs_of(&whiteout), BTreeMap::from([(b"trusted.overlay.whiteout".to_vec(), Vec::new())]));
    let expected = [(b"trusted.overlay.opaque".to_vec(), b"y".to_vec()), (b"user.u".to_vec(), b"u".to_vec())];
    assert_eq!(xattrs_of(&target.join("nested")), BTreeMap::from(expected));
    drop(mounted);
}

#[test]
fn fifty_thousand_entries_are_written() {
    let mut entries = Vec::new();
    for d in 0..5000 {
        entries.push(dir(&format!("usr/share/directory-{d}")));
        for f in 0..9 {
            let path = format!("usr/share/directory-{d}/some-file-name-{f}.txt");
            entries.push(file(&path, path.as_bytes()));
        }
    }
    let index = layer(entries);
    let started = std::time::Instant::now();
    let tree = merge([&index]).unwrap();
    let merged = started.elapsed();
    let image = write(&tree).unwrap();
    let all = started.elapsed();
    println!("{} entries: merged in {merged:?}, written in {:?}, {} bytes", index.entries.len(), all - merged, image.len());
    // A release build takes some 50 ms; how long this one takes says nothing.
    assert_eq!((tree.counts().files, image.len() % 4096), (45_000, 0));
}

#[test]
fn large_files_are_read_from_the_devices_that_the_tree_names() {
    const TEST: &str = "large_files_are_read_from_the_devices_that_the_tree_names";
    let bytes = |seed: u64, len: u64| -> Vec<u8> {
        let mut random = Random(seed);
        (0..len).map(|_| random.below(256) as u8).collect()
    };
    let scratch = scratch();
    // Two layers, whose data files have two files each.
    let contents = [(1, 3 * CLUSTER + 1), (2, CLUSTER), (3, 5 * CLUSTER - 7), (4, 100)].map(|(seed, len)| bytes(seed, len));
    let (mut large, mut devices) = (LargeFiles::default(), Vec::new());
    for (name, pair) in ["lower", "upper"].into_iter().zip(contents.chunks(2)) {
        let (mut data, mut files) = (Vec::new(), Vec::new());
        for content in pair {
            files.push((Digest::of(content), data.len() as u64));
            data.extend(content);
            data.resize(data.len().next_multiple_of(CLUSTER as usize), 0);
        }
        large.add(Digest::of(name.as_bytes()), data.len() as u64, files);
        // What is not here reads as zeros.
        std::fs::write(scratch.path().join(format!("{name}.data")), vec![0; data.len()]).unwrap();
        std::fs::write(scratch.path().join(format!("{name}.trigger")), data).unwrap();
        devices.extend(["data", "trigger"].map(|kind| scratch.path().join(format!("{name}.{kind}"))));
    }
    let mut entries: Vec<Entry> = contents.iter().enumerate().map(|(n, content)| file(&format!("d{n}/large"), content)).collect();
    entries.push(with_xattrs(file("with-attributes", &contents[2]), &[("user.a", b"odd"), ("trusted.t", &[7; 3000])]));
    entries.extend([hardlink("link", "d0/large"), file("small", b"small"), dir("dir")]);
    let tree = merge(&[layer(entries)]).unwrap();
    let image = scratch.path().join("tree.erofs");
    std::fs::write(&image, write_with(&tree, &large).unwrap()).unwrap();

    let mut fsck = Command::new("fsck.erofs");
    fsck.args(devices.iter().map(|device| format!("--device={}", device.display())));
    match fsck.arg(&image).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(e) => println!("SKIP {TEST}: fsck.erofs: {e}"),
    }
    let stored = read::StoredTree::open(&image).unwrap();
    assert_eq!(stored.file(b"d2/large").unwrap().digest, Digest::of(&contents[2]));
    if !can_mount(TEST) {
        return;
    }
    let target = scratch.path().join("mnt");
    let _mounted = mount_with_devices(&image, &devices, &target);
    compare(&tree, &large, InodeId::ROOT, &target, &mut HashMap::new());
    for (path, content) in
        [("d0/large", 0), ("link", 0), ("d1/large", 1), ("d2/large", 2), ("with-attributes", 2), ("d3/large", 3)]
    {
        assert!(std::fs::read(target.join(path)).unwrap() == contents[content], "{path}");
    }
    // A cluster of the data file is written and entered in the tree: the mount, which has nothing of it in its page cache, reads it there.
    let map = read::StoredTree::device_map(&image).unwrap();
    let numbers: Vec<_> = map.numbers(1, 2..3).collect();
    assert_eq!(numbers.len(), 2, "two inodes have it");
    let local = vec![b'L'; CLUSTER as usize];
    let write = |path: &Path, offset: u64, bytes: &[u8]| {
        std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(path).unwrap(), bytes, offset)
            .unwrap();
    };
    write(&devices[2], 2 * CLUSTER, &local);
    numbers.iter().for_each(|(_, at)| write(&image, *at, &devices::DeviceMap::number(1, true)));
    let open = std::fs::File::open(target.join("d2/large")).unwrap();
    rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut found = vec![0; contents[2].len()];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut found, 0).unwrap();
    let expected = [&contents[2][..2 * CLUSTER as usize], &local, &contents[2][3 * CLUSTER as usize..]].concat();
    assert!(found == expected);
}

fn mount_with_devices(image: &Path, devices: &[PathBuf], target: &Path) -> Mounted {
    std::fs::create_dir_all(target).unwrap();
    let context = FsContext::open("erofs").unwrap();
    context.flag("ro").unwrap();
    context.string("source", image.to_str().unwrap()).unwrap();
    devices.iter().for_each(|device| context.string("device", device.to_str().unwrap()).unwrap());
    let mount = context.create(MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap();
    fscontext::attach(&mount, target).unwrap();
    Mounted(target.to_owned())
}
