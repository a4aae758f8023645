//! What one layer contains: the index that every layer format is read into, and that tree and mapping table are made from.
//!
//! A [`LayerIndex`] comes from a table of contents in the layer (zstd:chunked) or from the layer itself while it streams past
//! (tar with gzip, zstd or no compression). Both end in the same entries, so that one comparison decides whether an index tells the
//! truth about its layer.

pub mod estargz;
pub mod name;
pub mod pack;
pub(crate) mod rfc3339;
#[cfg(test)]
pub(crate) mod sample;
pub mod saved;
pub mod seek;
pub mod spans;
pub mod stream;
pub mod tar;
pub mod unpack;
pub mod verify;
pub mod write;
pub mod zstd_chunked;

use crate::digest::Digest;

/// How many entries a layer may have; real ones stay below 400,000.
pub const MAX_ENTRIES: usize = 1 << 20;

/// All entries of a layer, in the order of its tar stream. Paths are unique except where the tar has the same path twice; the later
/// entry wins, as it does for tar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerIndex {
    /// The entries.
    pub entries: Vec<Entry>,
}

impl LayerIndex {
    /// The content of every regular file, in the order of the tar.
    pub fn files(&self) -> impl Iterator<Item = &FileContent> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File(content) => Some(content),
            _ => None,
        })
    }
}

/// One tar entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root, components separated by `/`, no empty, `.` or `..` component; empty for the root itself.
    /// For [`EntryKind::Whiteout`] the path that is hidden, for [`EntryKind::Opaque`] the directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, time, extended attributes. Meaningless for whiteouts, opaque markers and hard links.
    pub meta: Meta,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File(FileContent),
    /// A symbolic link with this target, verbatim.
    Symlink(Vec<u8>),
    /// Another name for the file at this path (in the form of [`Entry::path`]).
    Hardlink(Vec<u8>),
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// `.wh.NAME` (image-spec, "Whiteouts"): hides what lower layers have at the path.
    Whiteout,
    /// `.wh..wh..opq`: hides all that lower layers have in the directory.
    Opaque,
}

/// Inode metadata of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since the epoch.
    pub mtime: i64,
    /// Modification time: nanoseconds, below 1,000,000,000.
    pub mtime_nanos: u32,
    /// Extended attributes, full names (`security.capability`), sorted by name, names unique.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The content of a regular file and where its bytes are in the layer's blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Length in bytes.
    pub size: u64,
    /// Digest of the whole content. For an empty file the digest of nothing.
    pub digest: Digest,
    /// The pieces, ascending and without gaps in both file and blob offset. Empty for an empty file and for a layer that
    /// has no random access ([`LayerKind::Stream`]).
    pub chunks: Vec<Chunk>,
}

/// A piece of a file that can be fetched by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// Uncompressed length, bytes.
    pub len: u64,
    /// Offset in the layer's blob, bytes.
    pub blob_offset: u64,
    /// Compressed length, bytes.
    pub blob_len: u64,
    /// Digest of the uncompressed piece.
    pub digest: Digest,
    /// The layer's index says that all bytes of the piece are zero, so that it need not be fetched.
    pub zeros: bool,
}

/// How the bytes of a layer can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// zstd:chunked: every chunk is one or more whole zstd frames; fetched in any order by range.
    ZstdChunked,
    /// eStargz: gzip members with a table of contents, fetched by [`spans`].
    Estargz,
    /// gzip without a table of contents, but with a seek index ([`seek`]), fetched by [`spans`].
    GzipSeek,
    /// No random access: the blob streams from its beginning.
    Stream,
}

impl LayerKind {
    /// Whether parts of its files can be fetched in any order.
    pub fn has_random_access(self) -> bool {
        self != Self::Stream
    }

    /// Whether it is fetched by spans, in which several files may be.
    pub fn is_spanned(self) -> bool {
        matches!(self, Self::Estargz | Self::GzipSeek)
    }
}
