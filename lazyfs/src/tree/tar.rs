//! A stored tree as one tar, as if it had been mounted and `tar -c` had read it: whiteouts have been applied, a file with several names
//! comes once and then as hard links, and everything has its owner, time and extended attributes.
//!
//! Names are in the order of a walk, those of a directory sorted, so that the same tree makes the same bytes. Every content is compared with
//! its digest while it passes; where it is another one the tar ends there, without the blocks that end a tar.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};

use super::erofs::node::{Nid, Stat};
use super::erofs::read::StoredTree;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::tar::compose::Composed;

/// Bytes of a content that are read at a time.
const PIECE: usize = 256 << 10;
/// Bytes of a block, and of the two blocks that end a tar.
const BLOCK: u64 = 512;
const END: [u8; 1024] = [0; 1024];
/// Bits of a mode.
const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// What a tree consists of, in the order of its tar.
#[derive(Debug)]
pub struct Listing<'a> {
    tree: &'a StoredTree,
    entries: Vec<Listed>,
}

#[derive(Debug)]
struct Listed {
    /// `./`, `usr/`, `usr/bin/env`.
    name: Vec<u8>,
    nid: Nid,
    stat: Stat,
    /// Number of the entry that has the same file.
    first: Option<usize>,
}

impl<'a> Listing<'a> {
    /// Lists a tree. One that is damaged is [`Outcome::Integrity`].
    pub fn of(tree: &'a StoredTree) -> Result<Self> {
        let mut listing = Self { tree, entries: Vec::new() };
        let (mut directories, mut files) = (HashSet::new(), HashMap::new());
        let mut pending = vec![(tree.root(), Vec::new())];
        while let Some((nid, path)) = pending.pop() {
            let stat = tree.stat(nid).ok_or_else(|| damaged(&path))?;
            let number = listing.entries.len();
            if stat.mode & TYPE != DIRECTORY {
                let first = if stat.links > 1 { Some(*files.entry(nid).or_insert(number)) } else { None };
                listing.entries.push(Listed { name: path, nid, stat, first: first.filter(|first| *first != number) });
                continue;
            }
            if !directories.insert(nid) {
                return Err(damaged(&path));
            }
            let inside = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
            let names = tree.list(nid).ok_or_else(|| damaged(&path))?;
            let below = names.iter().rev().filter(|entry| !matches!(&entry.name[..], b"." | b".."));
            pending.extend(below.map(|entry| (entry.nid, inside(&entry.name))));
            let name = [if path.is_empty() { &b"."[..] } else { &path }, b"/"].concat();
            listing.entries.push(Listed { name, nid, stat, first: None });
        }
        Ok(listing)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never: a tree has a root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all contents that will be written.
    pub fn content_bytes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.first.is_none() && entry.is_file()).map(|entry| entry.stat.size).sum()
    }

    /// Writes the tar. `open` opens a content; `told` is told after each piece how many bytes of contents have been written.
    pub fn write<C: Read>(
        &self,
        open: &dyn Fn(&Digest) -> Result<C>,
        out: &mut dyn Write,
        told: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut written = 0;
        let mut buffer = vec![0; PIECE];
        for entry in &self.entries {
            let size = self.write_head(entry, out)?;
            if size > 0 {
                let mut take = |piece: &[u8]| {
                    out.write_all(piece).map_err(failed)?;
                    written += piece.len() as u64;
                    told(written);
                    Ok(())
                };
                let tried = |e: Error| e.during(format!("reading `{}`", entry.name.escape_ascii()));
                let digest = self.tree.content(entry.nid).ok_or_else(|| damaged(&entry.name))?;
                copy(open(&digest).map_err(tried)?, digest, size, &mut buffer, &mut take).map_err(tried)?;
                let padding = usize::try_from(size.next_multiple_of(BLOCK) - size).expect("less than a block");
                out.write_all(&END[..padding]).map_err(failed)?;
            }
        }
        out.write_all(&END).and_then(|()| out.flush()).map_err(failed)
    }

    /// Writes what stands before the content of an entry, and says how long that is.
    fn write_head(&self, entry: &Listed, out: &mut dyn Write) -> Result<u64> {
        let target = self.tree.target(entry.nid).unwrap_or_default();
        let (kind, link) = match (entry.first, entry.stat.mode & TYPE) {
            (Some(first), _) => (b'1', &self.entries[first].name),
            (None, 0o120_000) => (b'2', &target),
            (None, 0o020_000) => (b'3', &target),
            (None, 0o060_000) => (b'4', &target),
            (None, DIRECTORY) => (b'5', &target),
            (None, 0o010_000) => (b'6', &target),
            (None, _) => (b'0', &target),
        };
        let stat = &entry.stat;
        let size = if kind == b'0' { stat.size } else { 0 };
        // A hard link has no inode of its own.
        let xattrs = if kind == b'1' { Vec::new() } else { self.tree.xattrs(entry.nid) };
        let composed = Composed {
            name: &entry.name,
            kind,
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            size,
            mtime: stat.mtime,
            link,
            device: matches!(kind, b'3' | b'4').then(|| numbers(stat.device)),
            xattrs: &xattrs,
        };
        out.write_all(&composed.head()).map_err(failed)?;
        Ok(size)
    }
}

/// Hands all of a content to `take`, and compares it with what it should be.
fn copy(
    mut content: impl Read,
    digest: Digest,
    size: u64,
    buffer: &mut [u8],
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut hasher = Hasher::default();
    while hasher.length() < size {
        let limit = usize::try_from(size - hasher.length()).unwrap_or(usize::MAX).min(buffer.len());
        match content.read(&mut buffer[..limit]) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                take(&buffer[..n])?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("reading content", digest.to_string(), e)),
        }
    }
    match hasher.finish() == digest {
        true => Ok(()),
        false => Err(Error::new(Outcome::Integrity, format!("comparing it with {digest}"))
            .because(format!("its {} bytes have digest {}", hasher.length(), hasher.finish()))
            .advise("`towline system verify --repair` fetches it again")),
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::io("writing", "the tar", e)
}

impl Listed {
    fn is_file(&self) -> bool {
        self.stat.mode & TYPE == FILE
    }
}

/// Major and minor of a device as Linux encodes it in 32 bits.
fn numbers(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}

fn damaged(path: &[u8]) -> Error {
    Error::new(Outcome::Integrity, format!("reading the image's tree at `/{}`", path.escape_ascii()))
        .because("it is damaged")
        .advise("remove the image and pull it again")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::layer::sample::{dir, entry, file, hardlink, layer, symlink, whiteout};
    use crate::layer::tar::{HashSink, read};
    use crate::layer::{Entry, EntryKind};
    use crate::tree::{erofs, merge::merge};

    /// The tree of some layers as a tar, with these contents.
    fn tar(layers: &[Vec<Entry>], contents: &[&[u8]]) -> (usize, Result<Vec<u8>>) {
        let layers: Vec<_> = layers.iter().map(|entries| layer(entries.clone())).collect();
        let stored = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(stored.path(), erofs::write(&merge(&layers).unwrap()).unwrap()).unwrap();
        let tree = StoredTree::open(stored.path()).unwrap();
        let contents: HashMap<Digest, &[u8]> = contents.iter().map(|content| (Digest::of(content), *content)).collect();
        let open = |digest: &Digest| {
            contents.get(digest).copied().ok_or_else(|| Error::new(Outcome::NotFound, format!("opening {digest}")))
        };
        let listing = Listing::of(&tree).unwrap();
        let (mut out, mut last) = (Vec::new(), 0);
        let result = listing.write(&open, &mut out, &mut |bytes| last = bytes);
        assert!(result.is_err() || last == listing.content_bytes());
        (listing.len(), result.map(|()| out))
    }

    #[test]
    fn a_tree_is_read_back_as_the_layers_that_made_it() {
        let long = format!("d/{}", "n".repeat(200));
        let mut rich = file("d/rich", b"content");
        rich.meta.mode = 0o4711;
        (rich.meta.uid, rich.meta.gid, rich.meta.mtime, rich.meta.mtime_nanos) = (u32::MAX, 7, -5, 3);
        rich.meta.xattrs = vec![(b"security.capability".to_vec(), vec![0, 0xff]), (b"user.a".to_vec(), b"1".to_vec())];
        let lower = vec![
            dir("d"),
            rich,
            file("d/gone", b"gone"),
            file(&long, b"long"),
            file("empty", b""),
            symlink("l", &"t".repeat(300)),
            entry("fifo", EntryKind::Fifo),
            entry("null", EntryKind::CharDevice(1, 300)),
            entry("disk", EntryKind::BlockDevice(4095, 5)),
        ];
        let upper = vec![whiteout("d/gone"), hardlink("a", "d/rich"), hardlink("z", "d/rich")];
        let (count, bytes) = tar(&[lower.clone(), upper], &[b"content", b"long"]);
        let bytes = bytes.unwrap();
        let found = read(&bytes[..], &mut HashSink::default()).unwrap();
        let found: BTreeMap<Vec<u8>, Entry> = found.entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        assert_eq!(count, found.len());
        for wanted in lower.iter().filter(|entry| ![&b"d/gone"[..], b"d/rich"].contains(&&entry.path[..])) {
            assert_eq!(&found[&wanted.path], wanted);
        }
        let rich = lower[1].clone();
        assert_eq!(found[&b"a"[..]], Entry { path: b"a".to_vec(), ..rich });
        assert_eq!(found[&b"d/rich"[..]].kind, EntryKind::Hardlink(b"a".to_vec()));
        assert_eq!(found[&b"z"[..]].kind, EntryKind::Hardlink(b"a".to_vec()));
        assert!(found.contains_key(&b""[..]) && !found.contains_key(&b"d/gone"[..]));
    }

    #[test]
    fn wrong_content_ends_the_tar() {
        let entries = vec![file("a", b"right"), file("b", b"other")];
        let (_, result) = tar(std::slice::from_ref(&entries), &[b"right"]);
        assert!(result.unwrap_err().one_line().contains("reading `b`"));
        // What has the name, but not the content.
        let stored = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(stored.path(), erofs::write(&merge(&[layer(entries)]).unwrap()).unwrap()).unwrap();
        let tree = StoredTree::open(stored.path()).unwrap();
        for wrong in [&b"wrong"[..], b"rig", b""] {
            let mut out = Vec::new();
            let error = Listing::of(&tree).unwrap().write(&|_| Ok(wrong), &mut out, &mut |_| {}).unwrap_err();
            assert!(error.outcome() == Outcome::Integrity && error.one_line().contains("--repair"), "{error:?}");
            assert!(out.len() < 2048);
        }
    }
}
