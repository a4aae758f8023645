//! The table of contents of an eStargz layer (stargz-snapshotter, `docs/estargz.md`).
//!
//! Such a layer is a tar compressed as many gzip members, so that each chunk of a file can be decompressed alone; the table is the last file of
//! the tar. A footer says where it is, and an annotation of the layer's descriptor what its digest is:
//!
//! ```text
//! blob:   members of the tar …  | member( tar entry stargz.index.json, end of the tar ) | footer, 51 bytes
//!         ^0                    ^ tar_end
//! containerd.io/snapshot/stargz/toc.digest = "sha256:…" of the table, uncompressed
//! ```
//!
//! Without the annotation nothing vouches for the table, so such a layer is read as plain gzip, which it is too.
//! Behind a chunk the headers of the entries that follow are in the same member or in members of their own; both are the span of that chunk.

use std::collections::BTreeMap;
use std::io::Read as _;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::spans::{self, Entrance, Span};
use crate::layer::tar::{self, FileSink};
use crate::layer::zstd_chunked::toc::{self, Dialect};
use crate::layer::{EntryKind, LayerIndex};

/// Length of the footer, bytes.
pub const FOOTER: u64 = 51;
/// Length of the footer of stargz, where eStargz comes from.
const OLD_FOOTER: usize = 47;
/// The annotation with the digest of the table.
const TABLE_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// The file that the table is.
const TABLE: &str = "stargz.index.json";
/// Behind the files that are to be fetched first.
const LANDMARK: &str = ".prefetch.landmark";
/// There are none.
const NO_LANDMARK: &str = ".no.prefetch.landmark";
/// The table may have this many bytes; about 400,000 entries.
const MAX_TABLE: u64 = 160 << 20;

/// What a layer's table says.
#[derive(Debug)]
pub struct Table {
    /// What is in the layer, without the files that are only for tools.
    pub index: LayerIndex,
    /// The spans, as they are kept.
    pub spans: Vec<u8>,
    /// Where in the blob the files end that are to be fetched first, if the layer says so.
    pub prefetch_end: Option<u64>,
}

/// Whether a path is that of a file which only tools look at.
pub fn is_own(path: &[u8]) -> bool {
    [TABLE, LANDMARK, NO_LANDMARK].iter().any(|own| path == own.as_bytes())
}

/// The digest of the table of `layer` by the annotations of its descriptor; `None` where they do not speak of eStargz.
pub fn table_digest(layer: &Digest, annotations: &BTreeMap<String, String>) -> Result<Option<Digest>> {
    let Some(text) = annotations.get(TABLE_DIGEST) else { return Ok(None) };
    text.parse().map(Some).map_err(|e| {
        Error::new(Outcome::BadInput, format!("reading the annotations of layer {layer}"))
            .because(format!("`{TABLE_DIGEST}` is wrong: {e}"))
    })
}

/// Where the table is in a blob of `blob_len` bytes by the end of it, at least [`FOOTER`] bytes where the blob has as many. `None` where there
/// is no footer.
pub fn table_offset(end: &[u8], blob_len: u64) -> Option<u64> {
    let new = end.len().checked_sub(FOOTER as usize).map(|at| &end[at..]).and_then(|footer| {
        let field = footer.strip_prefix(b"\x1f\x8b\x08\x04")?.get(6..)?.strip_prefix(b"\x1a\0SG\x16\0")?;
        Some((field, FOOTER))
    });
    let old = end.len().checked_sub(OLD_FOOTER).map(|at| &end[at..]).and_then(|footer| {
        let field = footer.strip_prefix(b"\x1f\x8b\x08\x04")?.get(6..)?.strip_prefix(b"\x16\0")?;
        Some((field, OLD_FOOTER as u64))
    });
    let (field, len) = new.or(old)?;
    let (digits, rest) = field.split_at_checked(16)?;
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|c| c.is_ascii_hexdigit()))?;
    let offset = u64::from_str_radix(digits, 16).ok()?;
    (rest.starts_with(b"STARGZ") && offset < blob_len - len).then_some(offset)
}

/// Reads the table of `layer`, whose blob has `blob_len` bytes, from the bytes of the blob from `offset` on ([`table_offset`]).
///
/// Wrong bytes are [`Outcome::Integrity`], a malformed table is [`Outcome::BadInput`] and names entry and field, and a table that is of no use
/// is [`Outcome::Unsupported`].
pub fn parse(layer: &Digest, digest: &Digest, blob_len: u64, offset: u64, member: &[u8]) -> Result<Table> {
    let tried = || format!("reading the table of contents of layer {layer}");
    let json = unpack(member).map_err(|e| e.during(tried()))?;
    let found = Digest::of(&json);
    if found != *digest {
        let cause = format!("its digest is {found}, but the manifest says {digest}");
        return Err(Error::new(Outcome::Integrity, tried()).because(cause));
    }
    let entries = toc::parse(&json[..], offset, Dialect::Estargz).map_err(|problem| problem.into_error(tried()))?;
    let mut index = LayerIndex { entries };
    let landmark = index.entries.iter().find(|entry| entry.path == LANDMARK.as_bytes());
    let prefetch_end = landmark.and_then(|entry| match &entry.kind {
        EntryKind::File(content) => Some(content.chunks.first()?.blob_offset),
        _ => None,
    });
    index.entries.retain(|entry| !is_own(&entry.path) || !matches!(entry.kind, EntryKind::File(_)));

    let mut starts: Vec<u64> = index.files().flat_map(|file| &file.chunks).map(|chunk| chunk.blob_offset).collect();
    let places = vec![0; starts.len()];
    starts.extend([0, offset]);
    starts.sort_unstable();
    starts.dedup();
    let spans: Vec<Span> = starts.into_iter().map(|blob_offset| Span { blob_offset, entrance: Entrance::Header }).collect();
    shorten(&mut index, &spans, offset);
    let spans = spans::build(&index, blob_len, &spans, &places, false).map_err(|e| e.during(tried()))?;
    Ok(Table { index, spans, prefetch_end })
}

/// Lets chunks end where the next span begins; a landmark between them is gone.
fn shorten(index: &mut LayerIndex, spans: &[Span], tar_end: u64) {
    for entry in &mut index.entries {
        let EntryKind::File(content) = &mut entry.kind else { continue };
        for chunk in &mut content.chunks {
            let next = spans.partition_point(|span| span.blob_offset <= chunk.blob_offset);
            chunk.blob_len = spans.get(next).map_or(tar_end, |span| span.blob_offset) - chunk.blob_offset;
        }
    }
}

/// The table out of its member.
fn unpack(member: &[u8]) -> Result<Vec<u8>> {
    let mut sink = Content::default();
    // The table, its header, and the end of the tar.
    let reader = flate2::bufread::GzDecoder::new(member).take(MAX_TABLE + (64 << 10));
    let index = tar::read(reader, &mut sink)?;
    match index.entries.as_slice() {
        [only] if only.path == TABLE.as_bytes() && matches!(only.kind, EntryKind::File(_)) => Ok(sink.bytes),
        _ => Err(Error::new(Outcome::BadInput, "unpacking it").because(format!("the file there is not `{TABLE}`"))),
    }
}

/// Keeps what passes.
#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
}

impl FileSink for Content {
    fn begin(&mut self) -> Result<()> {
        self.bytes.clear();
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn finish(&mut self) -> Result<Digest> {
        let mut hasher = Hasher::default();
        hasher.update(&self.bytes);
        Ok(hasher.finish())
    }
}

/// Tables give times in seconds, rounded. Where the tar has more, the entry that was found gets the time of the index, so that both compare
/// equal.
pub(super) fn settle_times(index: &LayerIndex, found: &mut LayerIndex) {
    for (said, found) in index.entries.iter().zip(&mut found.entries) {
        let (said, found) = (&said.meta, &mut found.meta);
        let rounded = said.mtime == found.mtime || Some(said.mtime) == found.mtime.checked_add(1);
        if said.mtime_nanos == 0 && found.mtime_nanos != 0 && rounded {
            (found.mtime, found.mtime_nanos) = (said.mtime, 0);
        }
    }
}

#[cfg(test)]
mod tests;
