//! The tree of one layer, as an extraction of it alone would have left it for overlayfs: what it hides is there as whiteouts and opaque
//! directories.

use std::collections::HashSet;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layer::{Entry, EntryKind, LayerIndex, Meta};
use crate::tree::erofs::devices::LargeFiles;
use crate::tree::erofs::read::StoredTree;
use crate::tree::{erofs, merge};

/// Writes the tree into a file without a name in `dir`, and opens it. `root` is the root directory of a layer that does not describe it:
/// where such a layer is the topmost, its root is the container's.
pub(super) fn open(mut index: LayerIndex, root: Meta, opaque: &[u8], dir: &Path) -> Result<StoredTree> {
    if !index.entries.iter().any(|entry| entry.path.is_empty() && matches!(entry.kind, EntryKind::Directory)) {
        index.entries.insert(0, Entry { path: Vec::new(), kind: EntryKind::Directory, meta: root });
    }
    let tree = merge::merge([&shown(index, opaque)])?;
    let none = LargeFiles::default();
    let writer = erofs::Writer::plan(&tree, &none)?;
    let file = tempfile::tempfile_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
    let failed = |e| Error::io("writing the tree of a layer in", dir, e);
    let mut out = BufWriter::new(&file);
    writer.write(&mut out).and_then(|()| out.flush()).map_err(failed)?;
    drop(out);
    StoredTree::open(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// The entries that stand for what the layer does to those below.
fn shown(index: LayerIndex, opaque: &[u8]) -> LayerIndex {
    let mut own = HashSet::new();
    let (mut hidden, mut emptied) = (HashSet::new(), HashSet::new());
    for entry in &index.entries {
        match entry.kind {
            EntryKind::Whiteout => drop(hidden.insert(entry.path.clone())),
            EntryKind::Opaque => drop(emptied.insert(entry.path.clone())),
            _ => {
                // Directories that have no entry of their own are there, too.
                let ends = entry.path.iter().enumerate().filter(|(_, c)| **c == b'/').map(|(at, _)| at);
                own.extend(ends.map(|end| entry.path[..end].to_vec()));
                own.insert(entry.path.clone());
            }
        }
    }
    // A whiteout hides what is below, not what its own layer has there: of a directory that is all but itself.
    let (replaced, gone): (Vec<_>, Vec<_>) = hidden.into_iter().partition(|path| own.contains(path));
    emptied.extend(replaced);
    let mut entries: Vec<Entry> = Vec::with_capacity(index.entries.len());
    for mut entry in index.entries {
        if matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque) {
            continue;
        }
        entry.meta.xattrs.retain(|(name, _)| !is_overlays(name));
        if matches!(entry.kind, EntryKind::Directory) && emptied.contains(&entry.path) {
            mark(&mut entry.meta, opaque);
        }
        entries.push(entry);
    }
    let described: HashSet<Vec<u8>> =
        entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Directory)).map(|entry| entry.path.clone()).collect();
    let files: HashSet<&Vec<u8>> =
        entries.iter().filter(|entry| !matches!(entry.kind, EntryKind::Directory)).map(|entry| &entry.path).collect();
    let mut added: Vec<Entry> = Vec::new();
    for path in emptied.iter().filter(|path| !described.contains(*path) && !files.contains(path)) {
        let mut meta = Meta { mode: 0o755, ..Meta::default() };
        mark(&mut meta, opaque);
        added.push(Entry { path: path.clone(), kind: EntryKind::Directory, meta });
    }
    for path in gone {
        added.push(Entry { path, kind: EntryKind::CharDevice(0, 0), meta: Meta::default() });
    }
    // The order of what no other entry is at does not matter, but the tree is to be the same each time.
    added.sort_by(|a, b| a.path.cmp(&b.path));
    entries.extend(added);
    LayerIndex { entries }
}

/// What an image has for an overlay of its own would mean something to the one that its layer becomes a part of.
fn is_overlays(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn mark(meta: &mut Meta, opaque: &[u8]) {
    meta.xattrs.push((opaque.to_vec(), b"y".to_vec()));
    meta.xattrs.sort();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::{dir, entry, file, layer, symlink};

    /// Paths with their kind; `o` behind that of an opaque directory.
    fn listed(entries: Vec<Entry>) -> Vec<String> {
        let place = tempfile::tempdir().unwrap();
        let tree =
            open(layer(entries), Meta { mode: 0o711, ..Meta::default() }, b"trusted.overlay.opaque", place.path()).unwrap();
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "it has no name");
        assert_eq!(tree.stat(tree.root()).unwrap().mode & 0o7777, 0o711);
        let mut all = Vec::new();
        let mut pending = vec![(tree.root(), String::new())];
        while let Some((directory, path)) = pending.pop() {
            for name in tree.list(directory).unwrap() {
                if matches!(&*name.name, b"." | b"..") {
                    continue;
                }
                let path = format!("{path}/{}", String::from_utf8_lossy(&name.name));
                let stat = tree.stat(name.nid).unwrap();
                let kind = match name.kind {
                    0o040_000 => 'd',
                    0o020_000 if stat.device == 0 => 'w',
                    0o120_000 => 'l',
                    _ => 'f',
                };
                let attributes = tree.xattrs(name.nid);
                let opaque = attributes.iter().any(|(name, value)| name == b"trusted.overlay.opaque" && value == b"y");
                all.push(format!("{kind}{} {path}", if opaque { "o" } else { "" }));
                if kind == 'd' {
                    pending.push((name.nid, path));
                }
            }
        }
        all.sort();
        all
    }

    #[test]
    fn what_a_layer_hides_is_there_for_overlayfs() {
        let overlays = Entry {
            meta: Meta {
                mode: 0o755,
                xattrs: vec![
                    (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
                    (b"user.kept".to_vec(), b"1".to_vec()),
                    (b"user.overlay.metacopy".to_vec(), vec![]),
                ],
                ..Meta::default()
            },
            ..dir("tricky")
        };
        let found = listed(vec![
            entry("etc/gone", EntryKind::Whiteout),
            entry("opt", EntryKind::Opaque),
            file("opt/new", b"new"),
            entry("srv/all", EntryKind::Opaque),
            dir("var/log"),
            entry("var/log", EntryKind::Whiteout),
            entry("usr/replaced", EntryKind::Whiteout),
            file("usr/replaced", b"mine"),
            entry("lib", EntryKind::Whiteout),
            symlink("lib", "usr/lib"),
            entry("a/b/c", EntryKind::Whiteout),
            file("a/b/c/d", b"below what is hidden"),
            overlays,
        ]);
        let wanted = [
            "d /a",
            "d /a/b",
            "d /etc",
            "d /srv",
            "d /tricky",
            "d /usr",
            "d /var",
            "do /a/b/c",
            "do /opt",
            "do /srv/all",
            "do /var/log",
            "f /a/b/c/d",
            "f /opt/new",
            "f /usr/replaced",
            "l /lib",
            "w /etc/gone",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_hard_link_to_another_layer_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let bad = layer(vec![entry("b", EntryKind::Hardlink(b"a".to_vec()))]);
        let error = open(bad, Meta::default(), b"user.overlay.opaque", place.path()).unwrap_err();
        assert!(error.one_line().contains("does not exist"), "{}", error.one_line());
    }
}
