use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, XattrFlags};
use towline_lazyfs::layer::tar::{HashSink, read};
use towline_lazyfs::layer::write::Format;
use towline_lazyfs::layer::{Entry, EntryKind};

use super::*;

/// An upper directory, and the root that it stands for.
struct Sides {
    dir: tempfile::TempDir,
}

impl Sides {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for side in ["upper", "merged"] {
            std::fs::create_dir(dir.path().join(side)).unwrap();
        }
        Self { dir }
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path)
    }

    fn both(&self, make: impl Fn(&Path)) {
        ["upper", "merged"].iter().for_each(|side| make(&self.at(side)));
    }

    fn views(&self) -> Views {
        let open = |side: &str| rustix::fs::open(self.at(side), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Views { upper: open("upper"), merged: open("merged"), mounted: vec!["/etc/hosts".into(), "/proc".into()] }
    }

    fn tar(&self) -> (BTreeMap<String, Entry>, Vec<String>) {
        let mut tar = Vec::new();
        let left_out = write_tar(&self.views(), &mut tar).map_err(|failed| failed.error).unwrap();
        let index = read(&tar[..], &mut HashSink::default()).unwrap();
        let text = |entry: &Entry| String::from_utf8(entry.path.clone()).unwrap();
        (index.entries.into_iter().map(|entry| (text(&entry), entry)).collect(), left_out)
    }
}

fn overlay(dir: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(dir, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

#[test]
fn what_was_written_and_what_was_deleted_is_in_the_layer() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP what_was_written_and_what_was_deleted_is_in_the_layer: needs root");
        return;
    }
    let sides = Sides::new();
    sides.both(|root| {
        for dir in ["etc", "proc", "d/sub", "moved", "opaque"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::write(root.join("etc/hosts"), "").unwrap();
        std::fs::write(root.join("d/file"), "text").unwrap();
        std::fs::hard_link(root.join("d/file"), root.join("d/sub/other")).unwrap();
        // In this order: a new owner takes the bit away.
        std::os::unix::fs::chown(root.join("d/file"), Some(7), Some(8)).unwrap();
        std::fs::set_permissions(root.join("d/file"), std::fs::Permissions::from_mode(0o4750)).unwrap();
        rustix::fs::setxattr(root.join("d/file"), "trusted.own", b"1\0", XattrFlags::empty()).unwrap();
        symlink("nowhere", root.join("link")).unwrap();
        rustix::fs::lsetxattr(root.join("link"), "trusted.link", b"2", XattrFlags::empty()).unwrap();
        rustix::fs::mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
        rustix::fs::mkfifoat(CWD, root.join("pipe"), Mode::RUSR).unwrap();
        std::fs::write(root.join("opaque/new"), "new").unwrap();
        std::fs::write(root.join(".wh.strange"), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 8 << 20).unwrap();
    });
    // Only what it was before is in the upper directory.
    std::fs::create_dir(sides.at("merged/moved/deep")).unwrap();
    std::fs::write(sides.at("merged/moved/deep/old"), "old").unwrap();
    overlay(&sides.at("upper/moved"), "trusted.overlay.redirect", "/before");
    overlay(&sides.at("upper/opaque"), "trusted.overlay.opaque", "y");
    overlay(&sides.at("upper/d"), "trusted.overlay.impure", "y");
    for gone in ["upper/d/gone", "upper/before"] {
        rustix::fs::mknodat(CWD, sides.at(gone), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    let (found, left_out) = sides.tar();
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let wanted = [
        "before",
        "d",
        "d/file",
        "d/gone",
        "d/sub",
        "d/sub/other",
        "etc",
        "link",
        "moved",
        "moved/deep",
        "moved/deep/old",
        "null",
        "opaque",
        "opaque/new",
        "pipe",
        "sparse",
    ];
    assert_eq!(names, wanted, "marks of opaque directories have the name of their directory");
    assert!(left_out.len() == 2 && left_out[0].contains("/.wh.strange") && left_out[1].contains("/socket"), "{left_out:?}");
    for gone in ["before", "d/gone"] {
        assert_eq!(found[gone].kind, EntryKind::Whiteout);
    }
    let file = &found["d/file"];
    assert_eq!((file.meta.mode, file.meta.uid, file.meta.gid), (0o4750, 7, 8));
    assert_eq!(file.meta.xattrs, [(b"trusted.own".to_vec(), b"1\0".to_vec())]);
    let stat = std::fs::metadata(sides.at("merged/d/file")).unwrap();
    assert_eq!((file.meta.mtime, i64::from(file.meta.mtime_nanos)), (stat.mtime(), stat.mtime_nsec()));
    assert_eq!(found["d/sub/other"].kind, EntryKind::Hardlink(b"d/file".to_vec()));
    assert_eq!(found["link"].kind, EntryKind::Symlink(b"nowhere".to_vec()));
    assert_eq!(found["link"].meta.xattrs, [(b"trusted.link".to_vec(), b"2".to_vec())]);
    assert_eq!((&found["null"].kind, &found["pipe"].kind), (&EntryKind::CharDevice(1, 3), &EntryKind::Fifo));
    assert!(found["d"].meta.xattrs.is_empty());

    let blob = tempfile::tempfile().unwrap();
    let options = Options::new(Format::ZstdChunked, None).unwrap();
    let (written, left_out) = write(&sides.views(), &options, &blob).unwrap();
    assert!(written.format == Format::ZstdChunked && left_out.len() == 2);
    assert!(written.tar_size > 8 << 20 && written.size < 1 << 20, "{} bytes of holes became {}", written.tar_size, written.size);
    let opaque = written.index.entries.iter().filter(|entry| entry.kind == EntryKind::Opaque).map(|entry| &entry.path[..]);
    assert_eq!(opaque.collect::<Vec<_>>(), [&b"moved"[..], b"opaque"]);
}

#[test]
fn nothing_written_is_an_empty_layer() {
    let sides = Sides::new();
    assert!(sides.tar().0.is_empty());
    for format in [Format::ZstdChunked, Format::Gzip] {
        let blob = tempfile::tempfile().unwrap();
        let (written, _) = write(&sides.views(), &Options::new(format, None).unwrap(), &blob).unwrap();
        assert!(written.index.entries.is_empty() && written.tar_size >= 1024);
    }
}

#[test]
fn what_fails_says_on_which_file() {
    let sides = Sides::new();
    sides.both(|root| std::fs::write(root.join("file"), "text").unwrap());
    std::fs::create_dir(sides.at("merged/x")).unwrap();
    std::fs::write(sides.at("upper/x"), "").unwrap();
    // A directory that the upper layer has as a file.
    let blob = tempfile::tempfile().unwrap();
    let error = write(&sides.views(), &Options::new(Format::Gzip, None).unwrap(), &blob).unwrap_err();
    assert!(error.one_line().contains("/x"), "{error:?}");
}
