//! Layers for tests.

use crate::digest::Digest;
use crate::layer::{Chunk, Entry, EntryKind, FileContent, LayerIndex, Meta};

/// Metadata that most entries of a sample have.
pub(crate) fn meta(mode: u16) -> Meta {
    Meta { mode, uid: 0, gid: 0, mtime: 1_700_000_000, mtime_nanos: 0, xattrs: Vec::new() }
}

pub(crate) fn entry(path: &str, kind: EntryKind) -> Entry {
    let meta = match kind {
        EntryKind::Directory => meta(0o755),
        EntryKind::Symlink(_) => meta(0o777),
        EntryKind::Hardlink(_) | EntryKind::Whiteout | EntryKind::Opaque => Meta::default(),
        _ => meta(0o644),
    };
    Entry { path: path.into(), kind, meta }
}

pub(crate) fn dir(path: &str) -> Entry {
    entry(path, EntryKind::Directory)
}

/// A file without random access.
pub(crate) fn file(path: &str, content: &[u8]) -> Entry {
    let content = FileContent { size: content.len() as u64, digest: Digest::of(content), chunks: Vec::new() };
    entry(path, EntryKind::File(content))
}

/// A file of one chunk at this place of the blob.
pub(crate) fn chunked(path: &str, content: &[u8], blob_offset: u64) -> Entry {
    let mut entry = file(path, content);
    if let EntryKind::File(content) = &mut entry.kind {
        let (len, digest) = (content.size, content.digest);
        content.chunks = vec![Chunk { file_offset: 0, len, blob_offset, blob_len: len, digest, zeros: false }];
    }
    entry
}

pub(crate) fn symlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

pub(crate) fn hardlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Hardlink(target.into()))
}

pub(crate) fn whiteout(path: &str) -> Entry {
    entry(path, EntryKind::Whiteout)
}

pub(crate) fn opaque(path: &str) -> Entry {
    entry(path, EntryKind::Opaque)
}

pub(crate) fn layer(entries: impl Into<Vec<Entry>>) -> LayerIndex {
    LayerIndex { entries: entries.into() }
}

/// Numbers that are the same in every run: xorshift64. The seed must not be 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// Damages some bytes, or the length, of `original`.
    pub(crate) fn damage(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => bytes[at] ^= 1 << self.below(8),
                3 => bytes.insert(at, b"0129\"{}:,-"[self.below(10)]),
                _ => drop(bytes.remove(at)),
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        bytes
    }
}
