//! The file tree of an image: all its layers merged, every inode's metadata, and for each regular file only the digest of its content.
//!
//! [`merge::merge`] makes it from the indexes of the layers; [`erofs::write`] turns it into the image that is mounted.

pub mod erofs;
pub mod merge;
pub mod tar;

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::layer::Meta;

/// A merged tree. Inodes stand breadth first: the root, then what is in it, then what is in its first directory, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    inodes: Vec<Inode>,
    ignored_xattrs: u64,
}

/// Number of an inode in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// An inode; more than one directory entry may name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Owner, mode, time and extended attributes.
    pub meta: Meta,
    /// How many names it has; for a directory what `st_nlink` says: 2 and one for each directory in it.
    pub links: u32,
    /// What it is.
    pub kind: InodeKind,
}

/// What an [`Inode`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// A directory: names without `.` and `..`.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// A regular file: length in bytes and digest of its content.
    File {
        /// Length, bytes.
        size: u64,
        /// Digest of the whole content.
        digest: Digest,
    },
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// How large a tree is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Directory entries, without the root.
    pub entries: u64,
    /// Regular files with content, each once however many names it has.
    pub files: u64,
    /// Bytes of these files; a content that two files have counts twice.
    pub bytes: u64,
}

impl Tree {
    /// The inode with this number.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// All inodes, the root first.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// The inode at a path in the form of [`crate::layer::Entry::path`]. Symbolic links are not followed.
    pub fn lookup(&self, path: &[u8]) -> Option<InodeId> {
        let mut at = InodeId::ROOT;
        for name in path.split(|&c| c == b'/').filter(|name| !name.is_empty()) {
            let InodeKind::Directory(names) = &self.inode(at).kind else { return None };
            at = *names.get(name)?;
        }
        Some(at)
    }

    /// How large the tree is.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for inode in &self.inodes {
            match &inode.kind {
                InodeKind::Directory(names) => counts.entries += names.len() as u64,
                InodeKind::File { size, .. } if *size > 0 => {
                    counts.files += 1;
                    counts.bytes = counts.bytes.saturating_add(*size);
                }
                _ => {}
            }
        }
        counts
    }

    /// Extended attributes that were left out, because Linux has no name space for them (`com.apple.quarantine` and such); setting
    /// them fails on every file system.
    pub fn ignored_xattrs(&self) -> u64 {
        self.ignored_xattrs
    }

    /// A path to a regular file with content, and its digest: something to check a mount with. `None` where there is none.
    pub fn known_file(&self) -> Option<(Vec<u8>, Digest)> {
        let found = self.inodes.iter().position(|inode| matches!(inode.kind, InodeKind::File { size: 1.., .. }))?;
        let InodeKind::File { digest, .. } = self.inodes[found].kind else { return None };
        let mut path: Vec<Vec<u8>> = Vec::new();
        let mut target = found;
        while target != 0 {
            // Breadth first: whoever names an inode for the first time stands before it.
            let (parent, name) = self.inodes.iter().enumerate().find_map(|(number, inode)| match &inode.kind {
                InodeKind::Directory(names) => {
                    names.iter().find(|(_, id)| id.index() == target).map(|(name, _)| (number, name.to_vec()))
                }
                _ => None,
            })?;
            path.push(name);
            target = parent;
        }
        path.reverse();
        Some((path.join(&b'/'), digest))
    }
}
