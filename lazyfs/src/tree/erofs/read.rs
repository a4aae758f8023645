//! Reading an image that [`super::write`] made: paths are looked up in a stored tree without mounting it.
//!
//! Only what the writer makes is understood. The file is our own, but it has been on a disk: whatever is out of bounds is an entry that is
//! not there, never a panic.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use towline_sys::mmap::MappedFile;

use super::devices::{self, DeviceMap};
use super::format::{BLOCK, COMPACT, EXTENDED, MAGIC, SLOT, SUPERBLOCK_OFFSET};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::wire::Reader;

/// Symbolic links that are followed on the way to one file; Linux follows 40.
const MAX_LINKS: usize = 40;
/// Components that are looked up on the way to one file.
const MAX_STEPS: usize = 4096;
/// Length of a record in a directory's block.
const RECORD: usize = 12;
/// What stands before the attributes of an inode.
const XATTR_HEADER: usize = 12;
/// The number for `trusted.` in the name of an attribute.
const TRUSTED: u8 = 4;
/// Where in the superblock the number of devices and the place of their table are.
const DEVICE_FIELDS: usize = 86;

/// A stored tree, in memory.
#[derive(Debug)]
pub struct StoredTree {
    pub(crate) bytes: Bytes,
    pub(super) root: u64,
    /// Of inodes that have no time of their own.
    pub(super) time: (i64, u32),
}

#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(MappedFile),
    Read(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Read(read) => read,
        }
    }
}

/// A regular file with content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// Where it is when all symbolic links are followed, without a slash at the beginning.
    pub path: Vec<u8>,
    /// Digest of its content.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// Whether it is read from its layer's data file ([`crate::store::big`]), not from an object.
    pub large: bool,
}

/// A regular file with content, as a walk over the tree finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisitedFile {
    /// A number of the directory that it is in, from 1.
    pub directory: u32,
    /// Digest of its content.
    pub digest: Digest,
    /// As [`FoundFile::large`].
    pub large: bool,
}

/// The fields of an inode that are of use here.
pub(super) struct Inode {
    mode: u16,
    layout: u16,
    size: u64,
    block: u64,
    /// Where its attributes are.
    pub(super) xattrs: std::ops::Range<usize>,
}

impl StoredTree {
    /// Maps the tree in the file `path`. The store only ever replaces it by another, but for the numbers of devices, which are not
    /// read through the mapping.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
        let mapped = MappedFile::map(&file).map_err(|e| Error::io("mapping", path, e))?;
        Self::new(Bytes::Mapped(mapped), path)
    }

    /// Reads the tree in the file `path`, with the numbers of devices.
    fn read(path: &Path) -> Result<Self> {
        Self::new(Bytes::Read(std::fs::read(path).map_err(|e| Error::io("reading", path, e))?), path)
    }

    fn new(bytes: Bytes, path: &Path) -> Result<Self> {
        let superblock = bytes.get(SUPERBLOCK_OFFSET..).and_then(|superblock| {
            let mut fields = Reader::new(superblock);
            let magic = fields.u32()?;
            fields.take(10)?;
            let root = u64::from(fields.u16()?);
            fields.take(8)?;
            Some((root, (fields.u64()?.cast_signed(), fields.u32()?))).filter(|_| magic == MAGIC)
        });
        let no_tree = || Error::new(Outcome::Integrity, format!("reading {}", path.display())).because("it is no EROFS image");
        let (root, time) = superblock.ok_or_else(no_tree)?;
        Ok(Self { bytes, root, time })
    }

    /// Where the image in the file `path` has the numbers of devices.
    pub fn device_map(path: &Path) -> Result<DeviceMap> {
        DeviceMap::of(&Self::read(path)?).map_err(|e| e.during(format!("reading {}", path.display())))
    }

    /// Digest of the image in the file `path` as it was written, whatever has arrived since.
    pub fn original_digest(path: &Path) -> Result<Digest> {
        let tree = Self::read(path)?;
        let map = DeviceMap::of(&tree).map_err(|e| e.during(format!("reading {}", path.display())))?;
        Ok(map.original_digest(&tree.bytes))
    }

    /// Lets go of what was read of it: whoever has walked through all of it needs little of it afterwards.
    pub fn forget(&self) -> Result<()> {
        match &self.bytes {
            Bytes::Mapped(mapped) => mapped.forget().map_err(|e| Error::io("letting go of", "the pages of a tree", e)),
            Bytes::Read(_) => Ok(()),
        }
    }

    /// How many inodes it has.
    pub fn inodes(&self) -> u64 {
        let mut fields = Reader::new(self.bytes.get(SUPERBLOCK_OFFSET + 16..).unwrap_or_default());
        fields.u64().unwrap_or(0)
    }

    /// The layers that have large files in the image, in the order of their devices.
    pub fn large_layers(&self) -> Result<Vec<devices::LargeLayer>> {
        devices::layers(self).ok_or_else(|| {
            Error::new(Outcome::Integrity, "reading an image's table of devices").advise("remove the image and pull it again")
        })
    }

    /// How many devices there are, and where their table begins.
    pub(super) fn device_table(&self) -> (usize, usize) {
        let mut fields = Reader::new(self.bytes.get(SUPERBLOCK_OFFSET + DEVICE_FIELDS..).unwrap_or_default());
        let (count, start) = (fields.u16().unwrap_or(0), fields.u16().unwrap_or(0));
        (usize::from(count), usize::from(start) * devices::DEVICE)
    }

    /// The regular file with content at `path`, with all symbolic links followed as in a container; `None` for anything else.
    pub fn file(&self, path: &[u8]) -> Option<FoundFile> {
        let (inode, path) = self.walk(path)?;
        let digest = inode.is_file().then(|| self.digest(&inode))??;
        Some(FoundFile { path, digest, size: inode.size, large: inode.has_indexes() })
    }

    /// Calls `visit` with each regular file that has content.
    pub fn for_each_file(&self, visit: &mut dyn FnMut(VisitedFile)) {
        self.for_each(&mut |directory, _, inode| {
            if let Some(digest) = inode.is_file().then(|| self.digest(inode)).flatten() {
                visit(VisitedFile { directory, digest, large: inode.has_indexes() });
            }
        });
    }

    /// Calls `visit` once for each large file, with the place of its indexes in the image and its length.
    pub(super) fn for_each_large_file(&self, visit: &mut dyn FnMut(usize, u64)) {
        let mut seen = HashSet::new();
        self.for_each(&mut |_, nid, inode| {
            if inode.is_file() && inode.has_indexes() && seen.insert(nid) {
                visit(inode.xattrs.end.next_multiple_of(devices::INDEX as usize), inode.size);
            }
        });
    }

    /// Calls `visit` with every name but those of directories: number of its directory, nid, inode.
    fn for_each(&self, visit: &mut dyn FnMut(u32, u64, &Inode)) {
        let mut seen = HashSet::from([self.root]);
        let mut pending = vec![self.root];
        let mut number = 0;
        while let Some(directory) = pending.pop() {
            number += 1;
            let data = self.inode(directory).filter(Inode::is_directory).and_then(|inode| self.data(&inode)).unwrap_or_default();
            for (nid, name) in data.chunks(BLOCK as usize).flat_map(names) {
                let Some(inode) = self.inode(nid).filter(|_| !matches!(name, b"." | b"..")) else { continue };
                match inode.is_directory() {
                    false => visit(number, nid, &inode),
                    true if seen.insert(nid) => pending.push(nid),
                    true => {}
                }
            }
        }
    }

    fn walk(&self, path: &[u8]) -> Option<(Inode, Vec<u8>)> {
        let mut chain: Vec<(u64, Vec<u8>)> = vec![(self.root, Vec::new())];
        let mut pending = components(path);
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = pending.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return None;
            }
            if name == b".." {
                chain.truncate(chain.len().saturating_sub(1).max(1));
                continue;
            }
            let directory = self.inode(chain.last()?.0)?;
            let nid = self.entry(&directory, &name)?;
            let inode = self.inode(nid)?;
            if !inode.is_link() {
                chain.push((nid, name));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            let target = self.data(&inode)?;
            if target.starts_with(b"/") {
                chain.truncate(1);
            }
            pending.extend(components(&target));
        }
        let inode = self.inode(chain.last()?.0)?;
        let names: Vec<Vec<u8>> = chain.into_iter().skip(1).map(|(_, name)| name).collect();
        Some((inode, names.join(&b'/')))
    }

    pub(super) fn inode(&self, nid: u64) -> Option<Inode> {
        let start = usize::try_from(nid.checked_mul(SLOT)?).ok()?;
        let mut fields = Reader::new(self.bytes.get(start..)?);
        let format = fields.u16()?;
        let xattr_count = usize::from(fields.u16()?);
        let mode = fields.u16()?;
        fields.u16()?;
        let (size, core) = match format & 1 {
            0 => (u64::from(fields.u32()?), COMPACT),
            _ => (fields.u64()?, EXTENDED),
        };
        if core == COMPACT {
            fields.u32()?;
        }
        let block = u64::from(fields.u32()?);
        let xattrs = start + core as usize;
        let xattr_len = if xattr_count == 0 { 0 } else { XATTR_HEADER + (xattr_count - 1) * 4 };
        Some(Inode { mode, layout: format >> 1 & 7, size, block, xattrs: xattrs..xattrs + xattr_len })
    }

    /// The data of a directory or a symbolic link.
    pub(super) fn data(&self, inode: &Inode) -> Option<Vec<u8>> {
        let size = usize::try_from(inode.size).ok().filter(|size| *size <= self.bytes.len())?;
        let inline = match inode.layout {
            0 => 0,
            2 => size % BLOCK as usize,
            _ => return None,
        };
        let start = usize::try_from(inode.block * BLOCK).ok()?;
        let mut data = match size - inline {
            0 => Vec::new(),
            blocks => self.bytes.get(start..start.checked_add(blocks)?)?.to_vec(),
        };
        data.extend_from_slice(self.bytes.get(inode.xattrs.end..inode.xattrs.end + inline)?);
        Some(data)
    }

    /// The nid that a directory has under a name.
    fn entry(&self, directory: &Inode, name: &[u8]) -> Option<u64> {
        if !directory.is_directory() {
            return None;
        }
        let data = self.data(directory)?;
        data.chunks(BLOCK as usize).flat_map(names).find(|(_, found)| *found == name).map(|(nid, _)| nid)
    }

    /// The digest in the attribute that leads overlayfs to the content, or in that of a large file.
    pub(super) fn digest(&self, file: &Inode) -> Option<Digest> {
        let mut left = Reader::new(self.bytes.get(file.xattrs.clone())?.get(XATTR_HEADER..)?);
        loop {
            let (name_len, prefix, value_len) = (usize::from(left.u8()?), left.u8()?, usize::from(left.u16()?));
            let (name, value) = (left.take(name_len)?, left.take(value_len)?);
            if prefix == TRUSTED && (name == b"overlay.redirect" || name == b"overlay.towline") {
                let hex: String = std::str::from_utf8(value).ok()?.chars().filter(|c| *c != '/').collect();
                return Digest::from_hex(&hex).ok();
            }
            let used = 4 + name_len + value_len;
            left.take(used.next_multiple_of(4) - used)?;
        }
    }
}

impl Inode {
    fn kind(&self) -> u16 {
        self.mode & 0o170_000
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == 0o040_000
    }

    pub(super) fn is_link(&self) -> bool {
        self.kind() == 0o120_000
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind() == 0o100_000
    }

    /// Whether it is laid out as a large file.
    pub(super) fn has_indexes(&self) -> bool {
        self.layout == 4 && self.block == u64::from(devices::CHUNK_FORMAT)
    }
}

/// The nids and names in one block of a directory.
pub(super) fn names(block: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let record = |n: usize| {
        let mut fields = Reader::new(block.get(n * RECORD..)?);
        Some((fields.u64()?, usize::from(fields.u16()?)))
    };
    let count = record(0).map_or(0, |(_, names)| names / RECORD);
    (0..count).map_while(move |n| {
        let (nid, start) = record(n)?;
        let end = if n + 1 < count { record(n + 1)?.1 } else { block.len() };
        let name = block.get(start..end)?;
        // The last name of a full block is followed by zeros.
        let len = name.iter().position(|c| *c == 0).unwrap_or(name.len());
        Some((nid, &name[..len]))
    })
}

/// The components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&c| c == b'/').rev().filter(|name| !name.is_empty() && name != b".").map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::{dir, file, hardlink, layer, symlink};
    use crate::tree::{erofs, merge::merge};

    fn stored(entries: Vec<crate::layer::Entry>) -> (tempfile::NamedTempFile, StoredTree) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), erofs::write(&merge(&[layer(entries)]).unwrap()).unwrap()).unwrap();
        let tree = StoredTree::open(file.path()).unwrap();
        (file, tree)
    }

    #[test]
    fn files_are_found_through_links_and_nothing_else_is() {
        let mut entries = vec![
            dir("usr/lib"),
            file("usr/lib/libc.so.6", b"libc"),
            file("usr/bin/true", b"true"),
            file("usr/bin/empty", b""),
            hardlink("usr/bin/also-true", "usr/bin/true"),
            symlink("lib", "usr/lib"),
            symlink("usr/lib/libc.so", "libc.so.6"),
            symlink("usr/bin/up", "../../../../usr/bin/true"),
            symlink("usr/bin/absolute", "/lib/libc.so"),
            symlink("loop", "loop"),
            symlink("long", &format!("{}usr/bin/true", "./".repeat(2000))),
        ];
        entries.extend((0..2000).map(|n| file(&format!("many/{n:0>60}"), n.to_string().as_bytes())));
        let (_file, tree) = stored(entries);
        let last = format!("many/{:0>60}", 1999);
        for (path, content, place) in [
            ("/usr/bin/true", "true", "usr/bin/true"),
            ("usr/bin/also-true", "true", "usr/bin/also-true"),
            ("/lib/libc.so.6", "libc", "usr/lib/libc.so.6"),
            ("/lib/libc.so", "libc", "usr/lib/libc.so.6"),
            ("/usr//bin/./up", "true", "usr/bin/true"),
            ("/usr/bin/absolute", "libc", "usr/lib/libc.so.6"),
            ("/long", "true", "usr/bin/true"),
            (&last, "1999", &last),
            (&format!("many/{:0>60}", 7), "7", &format!("many/{:0>60}", 7)),
        ] {
            let found = tree.file(path.as_bytes()).unwrap_or_else(|| panic!("{path} is not found"));
            let size = content.len() as u64;
            assert_eq!(
                found,
                FoundFile { path: place.into(), digest: Digest::of(content.as_bytes()), size, large: false },
                "{path}"
            );
        }
        for path in ["", "/", "usr", "usr/bin/empty", "nothing", "usr/bin/true/x", "loop", "many/7", "usr/lib/libc.so.6."] {
            assert_eq!(tree.file(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn every_file_is_visited_with_its_directory() {
        let entries = ["a/1", "a/2", "a/b/3", "c/4", "5"].map(|path| file(path, path.as_bytes()));
        let (_file, tree) = stored([&entries[..], &[dir("empty"), file("a/none", b""), symlink("a/l", "1")]].concat());
        let mut of: std::collections::HashMap<Digest, u32> = Default::default();
        tree.for_each_file(&mut |file| assert!(of.insert(file.digest, file.directory).is_none() && !file.large));
        let of = |path: &str| of[&Digest::of(path.as_bytes())];
        assert_eq!(of("a/1"), of("a/2"));
        let all: HashSet<u32> = ["a/1", "a/b/3", "c/4", "5"].into_iter().map(of).collect();
        assert!(all.len() == 4 && !all.contains(&0), "{all:?}");
    }

    #[test]
    fn damaged_images_have_no_files_and_do_no_harm() {
        let (file, _) = stored(vec![file("a/b", b"content"), symlink("l", "a/b"), dir("d")]);
        let image = std::fs::read(file.path()).unwrap();
        for at in 1024..1800 {
            let mut damaged = image.clone();
            damaged[at] ^= 0xff;
            std::fs::write(file.path(), &damaged).unwrap();
            if let Ok(tree) = StoredTree::open(file.path()) {
                for path in ["a/b", "l", "d/x"] {
                    drop(tree.file(path.as_bytes()));
                }
                tree.for_each_file(&mut |_| {});
            }
        }
        for len in [0, 1000, 1030, 1200, 1500] {
            std::fs::write(file.path(), &image[..len]).unwrap();
            if let Ok(tree) = StoredTree::open(file.path()) {
                assert_eq!(tree.file(b"a/b"), None, "{len}");
            }
        }
    }
}
