//! Layers for tests.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::layer::zstd_chunked::{self, TocLocation};
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

/// A layer that buildah 1.28 wrote with `push --compression-format zstd:chunked`.
pub(crate) struct Golden {
    pub(crate) blob: &'static [u8],
    pub(crate) position: &'static str,
    pub(crate) checksum: &'static str,
    pub(crate) diff_id: Digest,
}

/// All kinds of entries in the first layer, whiteouts and an opaque directory in the second.
pub(crate) fn golden() -> [Golden; 2] {
    let digest = |hex| Digest::from_hex(hex).unwrap();
    [
        Golden {
            blob: include_bytes!("../../tests/golden/buildah-1.28-layer1.tar.zst"),
            position: "4379:1383:7621:1",
            checksum: "sha256:a5648398cfaa1cc0c692e06d60358a6fa9bc8fe05931a193843648da93db585e",
            diff_id: digest("a9e3f8513487302ff493ce164cbfde04ddada277b9ce1d3cfa20325250f5cd90"),
        },
        Golden {
            blob: include_bytes!("../../tests/golden/buildah-1.28-layer2.tar.zst"),
            position: "796:568:2121:1",
            checksum: "sha256:0d8e288a76d24c81d406ce464bf7af40628986e5bd7608a962407a798440c5cf",
            diff_id: digest("52761687095b49ac80147f75c174ed8de69f039af4a6f75fe824854b0ddce3e8"),
        },
    ]
}

impl Golden {
    pub(crate) fn annotations(&self, prefix: &str) -> BTreeMap<String, String> {
        [("manifest-position", self.position), ("manifest-checksum", self.checksum)]
            .map(|(name, value)| (format!("{prefix}{name}"), value.to_owned()))
            .into()
    }

    pub(crate) fn location(&self) -> TocLocation {
        let annotations = self.annotations("io.containers.zstd-chunked.");
        TocLocation::from_annotations(&Digest::of(self.blob), self.blob.len() as u64, &annotations).unwrap().unwrap()
    }

    pub(crate) fn index(&self) -> LayerIndex {
        let location = self.location();
        let toc = &self.blob[location.range.start as usize..location.range.end as usize];
        zstd_chunked::parse(&Digest::of(self.blob), &location, toc).unwrap()
    }
}
