//! All that a stored tree says of one inode: what a file system that is served from user space has to answer with.
//!
//! The counterpart of [`super::write`] for every field. What an image has that would mean something to overlayfs stands escaped in the
//! tree; here it is as the image has it, since nothing but the program looks at it.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;

use super::devices;
use super::format::{BLOCK, SLOT};
use super::read::{Inode, StoredTree, names};
use super::xattr;
use crate::digest::Digest;
use crate::wire::Reader;

/// Number of an inode: its place in the image in slots of 32 bytes, as the kernel shows it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nid(pub u64);

/// What `stat` says of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type and permission bits.
    pub mode: u32,
    /// Names that it has.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a file or of a link's target, bytes.
    pub size: u64,
    /// Device number, as Linux encodes it in 32 bits.
    pub device: u32,
    /// Time of the last change: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Its name; `.` and `..` are among them.
    pub name: Vec<u8>,
    /// What it names.
    pub nid: Nid,
    /// Type bits of its mode.
    pub kind: u32,
}

const TYPE: u32 = 0o170_000;

impl StoredTree {
    /// The root directory.
    pub fn root(&self) -> Nid {
        Nid(self.root)
    }

    /// What `stat` says; `None` where there is no such inode.
    pub fn stat(&self, nid: Nid) -> Option<Stat> {
        let stat = self.stored_stat(nid)?;
        Some(if self.is_whiteout(nid) { Stat { mode: stat.mode & !TYPE | 0o020_000, device: 0, ..stat } } else { stat })
    }

    /// The same as it stands in the tree, for overlayfs: a character device 0:0 is an empty file there.
    pub fn stored_stat(&self, nid: Nid) -> Option<Stat> {
        let start = usize::try_from(nid.0.checked_mul(SLOT)?).ok()?;
        let mut fields = Reader::new(self.bytes.get(start..)?);
        let extended = fields.u16()? & 1 == 1;
        fields.u16()?;
        let mode = u32::from(fields.u16()?);
        let narrow_links = fields.u16()?;
        let size = if extended { fields.u64()? } else { u64::from(fields.u32()?) };
        if !extended {
            fields.u32()?;
        }
        let union = fields.u32()?;
        fields.u32()?;
        let (uid, gid, mtime, links) = match extended {
            true => (fields.u32()?, fields.u32()?, (fields.u64()?.cast_signed(), fields.u32()?), fields.u32()?),
            false => (u32::from(fields.u16()?), u32::from(fields.u16()?), self.time, u32::from(narrow_links)),
        };
        let device = if matches!(mode & TYPE, 0o020_000 | 0o060_000) { union } else { 0 };
        Some(Stat { mode, links, uid, gid, size, device, mtime })
    }

    /// What a directory has; `None` for anything else.
    pub fn list(&self, nid: Nid) -> Option<Vec<Name>> {
        let data = self.directory(nid)?;
        let entry = |(nid, name): (u64, &[u8])| {
            let kind = self.stat(Nid(nid))?.mode & TYPE;
            Some(Name { name: name.to_vec(), nid: Nid(nid), kind })
        };
        Some(data.chunks(BLOCK as usize).flat_map(names).filter_map(entry).collect())
    }

    /// What a directory has under a name.
    pub fn child(&self, nid: Nid, name: &std::ffi::OsStr) -> Option<Nid> {
        let data = self.directory(nid)?;
        data.chunks(BLOCK as usize).flat_map(names).find(|(_, found)| *found == name.as_bytes()).map(|(nid, _)| Nid(nid))
    }

    /// The target of a symbolic link.
    pub fn target(&self, nid: Nid) -> Option<Vec<u8>> {
        self.data(&self.inode(nid.0).filter(Inode::is_link)?)
    }

    /// Digest of the content of a regular file; `None` for an empty one and for anything else.
    pub fn content(&self, nid: Nid) -> Option<Digest> {
        self.digest(&self.inode(nid.0).filter(Inode::is_file)?)
    }

    /// Where in the image a large file has its indexes ([`super::devices`]); `None` for anything else.
    pub fn indexes(&self, nid: Nid) -> Option<u64> {
        let inode = self.inode(nid.0).filter(|inode| inode.is_file() && inode.has_indexes())?;
        Some(inode.xattrs.end.next_multiple_of(devices::INDEX as usize) as u64)
    }

    /// For each content a path that names it, without a slash at the beginning.
    pub fn paths(&self) -> HashMap<Digest, Vec<u8>> {
        let mut paths = HashMap::new();
        let mut seen = HashSet::from([self.root()]);
        let mut pending = vec![(self.root(), Vec::new())];
        while let Some((directory, path)) = pending.pop() {
            for entry in self.list(directory).unwrap_or_default() {
                let path = if path.is_empty() { entry.name.clone() } else { [&path, &b"/"[..], &entry.name].concat() };
                match entry.kind {
                    _ if matches!(&*entry.name, b"." | b"..") => {}
                    0o040_000 if seen.insert(entry.nid) => pending.push((entry.nid, path)),
                    0o100_000 => drop(self.content(entry.nid).map(|content| paths.entry(content).or_insert(path))),
                    _ => {}
                }
            }
        }
        paths
    }

    /// Extended attributes as the image has them: whole names, and values.
    pub fn xattrs(&self, nid: Nid) -> Vec<(Vec<u8>, Vec<u8>)> {
        let stored = self.stored_xattrs(nid).unwrap_or_default();
        stored.into_iter().filter_map(|(name, value)| Some((xattr::unescape(&name, &value)?, value))).collect()
    }

    /// Extended attributes for an overlay over the tree: what the image has for an overlay of its own stays escaped, and what leads to the
    /// content is not there.
    pub fn escaped_xattrs(&self, nid: Nid) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut stored = self.stored_xattrs(nid).unwrap_or_default();
        stored.retain(|(name, _)| !xattr::is_own(name));
        stored
    }

    fn stored_xattrs(&self, nid: Nid) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        Some(xattr::decode(self.bytes.get(self.inode(nid.0)?.xattrs)?))
    }

    fn is_whiteout(&self, nid: Nid) -> bool {
        let attributes = self.stored_xattrs(nid).unwrap_or_default();
        attributes.iter().any(|(name, _)| name == xattr::WHITEOUT)
    }

    fn directory(&self, nid: Nid) -> Option<Vec<u8>> {
        self.data(&self.inode(nid.0).filter(Inode::is_directory)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::{dir, file, layer, symlink};
    use crate::layer::{Entry, EntryKind, Meta};
    use crate::tree::erofs::format::device;
    use crate::tree::{InodeId, InodeKind, erofs, merge::merge};

    fn entries() -> Vec<Entry> {
        let special = |path: &str, kind, meta| Entry { path: path.into(), kind, meta };
        let rich = Meta {
            mode: 0o4755,
            uid: 100_000,
            gid: 7,
            mtime: 1_700_000_123,
            mtime_nanos: 5,
            xattrs: [(b"user.a".to_vec(), b"1".to_vec()), (b"trusted.overlay.opaque".to_vec(), b"y".to_vec())].into(),
        };
        let mut all = vec![
            dir("d"),
            file("d/f", b"content"),
            file("empty", b""),
            symlink("l", "d/f"),
            special("d/null", EntryKind::CharDevice(1, 3), Meta::default()),
            special("d/hidden", EntryKind::CharDevice(0, 0), Meta::default()),
            special("block", EntryKind::BlockDevice(300, 70_000), Meta::default()),
            special("pipe", EntryKind::Fifo, Meta::default()),
            special("rich", EntryKind::Directory, rich),
        ];
        all.extend((0..500).map(|n| file(&format!("many/{n:0>40}"), b"x")));
        all
    }

    /// Every field of every inode against the tree that was written.
    #[test]
    fn a_stored_tree_says_what_was_stored() {
        let merged = merge(&[layer(entries())]).unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(image.path(), erofs::write(&merged).unwrap()).unwrap();
        let tree = StoredTree::open(image.path()).unwrap();
        let mut pending = vec![(InodeId::ROOT, tree.root())];
        let mut seen = 0;
        while let Some((id, nid)) = pending.pop() {
            seen += 1;
            let (inode, stat) = (merged.inode(id), tree.stat(nid).unwrap());
            assert_eq!((stat.uid, stat.gid, stat.links), (inode.meta.uid, inode.meta.gid, inode.links));
            assert_eq!(stat.mtime, (inode.meta.mtime, inode.meta.mtime_nanos));
            assert_eq!(stat.mode & 0o7777, u32::from(inode.meta.mode));
            let mut wanted: Vec<_> = inode.meta.xattrs.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
            let mut found = tree.xattrs(nid);
            wanted.sort();
            found.sort();
            assert_eq!(found, wanted);
            let (kind, number) = match &inode.kind {
                InodeKind::Directory(names) => {
                    let listed = tree.list(nid).unwrap();
                    assert_eq!(listed.len(), names.len() + 2);
                    for (name, child) in names {
                        let entry = listed.iter().find(|entry| entry.name == **name).unwrap();
                        assert_eq!(tree.child(nid, std::ffi::OsStr::from_bytes(name)), Some(entry.nid));
                        assert_eq!(tree.stat(entry.nid).unwrap().mode & TYPE, entry.kind);
                        pending.push((*child, entry.nid));
                    }
                    (0o040_000, 0)
                }
                InodeKind::File { size, .. } => {
                    assert_eq!(stat.size, *size);
                    (0o100_000, 0)
                }
                InodeKind::Symlink(target) => {
                    assert_eq!(tree.target(nid).as_ref(), Some(target));
                    (0o120_000, 0)
                }
                InodeKind::CharDevice(major, minor) => (0o020_000, device(*major, *minor)),
                InodeKind::BlockDevice(major, minor) => (0o060_000, device(*major, *minor)),
                InodeKind::Fifo => (0o010_000, 0),
            };
            assert_eq!((stat.mode & TYPE, stat.device), (kind, number), "{inode:?}");
        }
        assert_eq!(seen, merged.inodes().len());
        assert_eq!(tree.child(tree.root(), "nothing".as_ref()), None);
        let pipe = tree.child(tree.root(), "pipe".as_ref()).unwrap();
        assert_eq!((tree.list(pipe), tree.target(pipe), tree.child(pipe, "x".as_ref())), (None, None, None));
        assert_eq!(tree.stat(Nid(u64::MAX)), None);
    }
}
