//! The table of contents of a zstd:chunked layer.
//!
//! Such a layer is a tar compressed as many zstd frames, so that each piece of a file can be decompressed alone. Behind the tar stands
//! the table of contents, itself compressed, in a skippable frame that decoders pass over; annotations of the layer's descriptor
//! in the manifest say where it is and what its digest is (containers/storage, `docs/containers-storage-zstd-chunked.md`):
//!
//! ```text
//! blob:   frames of the tar …  | skippable( table of contents ) | skippable( tar-split )? | skippable( footer )
//!         ^0                   ^ tar_end  ^ manifest-position
//! io.github.containers.zstd-chunked.manifest-position = "offset:compressed length:uncompressed length:1"
//! io.github.containers.zstd-chunked.manifest-checksum = "sha256:…" of the compressed table
//! ```
//!
//! The table is JSON: one object a tar entry, followed by one object of type `chunk` for each piece of the file but the first.
//! It is written by Go, which puts U+FFFD in the place of name bytes that are not UTF-8. Such a table has lost what the layer says and
//! is refused as unsupported; the layer can still be read as a stream.

pub(in crate::layer) mod toc;
mod values;

use std::collections::BTreeMap;
use std::io::{Read, Take};
use std::ops::Range;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::LayerIndex;

/// Prefixes of the annotations, newest first; Debian 12's buildah writes the second.
pub(super) const PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];
/// The table of contents as JSON may have this many bytes; about 400,000 entries.
const MAX_TOC: u64 = 160 << 20;
/// Magic and length before the content of a skippable frame (RFC 8878, section 3.1.2).
const SKIPPABLE_HEADER: u64 = 8;
/// Magic of a skippable frame.
pub(super) const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// The last bytes of the footer.
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"GNUlInUx";
/// Type of the table's format in `manifest-position`.
const JSON_TABLE: u64 = 1;

/// Where the table of contents is in the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocLocation {
    /// Bytes of the blob that hold the compressed table.
    pub range: Range<u64>,
    /// Length of the table uncompressed, bytes.
    pub uncompressed: u64,
    /// Digest of the compressed table.
    pub checksum: Digest,
    /// Where the frames of the tar end and the first skippable frame begins.
    pub tar_end: u64,
}

impl TocLocation {
    /// Reads the annotations of the descriptor of `layer`, whose blob has `blob_size` bytes. `None` where they do not speak of
    /// zstd:chunked.
    pub fn from_annotations(
        layer: &Digest,
        blob_size: u64,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<TocLocation>> {
        let annotation = |name: &str| {
            PREFIXES.iter().find_map(|prefix| {
                let key = format!("{prefix}{name}");
                annotations.get(&key).map(|value| (key, value.as_str()))
            })
        };
        let Some((key, position)) = annotation("manifest-position") else { return Ok(None) };
        let tried = || format!("reading the annotations of layer {layer}");
        let bad = |key: &str, problem: String| Error::new(Outcome::BadInput, tried()).because(format!("`{key}` {problem}"));

        let [offset, compressed, uncompressed, kind] =
            numbers(position).ok_or_else(|| bad(&key, format!("is `{position}`, not four numbers with colons between")))?;
        if kind != JSON_TABLE {
            let cause = format!("`{key}` names a table of contents of type {kind}; only type {JSON_TABLE} is known");
            return Err(Error::new(Outcome::Unsupported, tried()).because(cause));
        }
        if uncompressed > MAX_TOC {
            return Err(bad(&key, format!("names a table of {uncompressed} bytes; the limit is {MAX_TOC}")));
        }
        let end = offset.checked_add(compressed).filter(|&end| end <= blob_size && compressed > 0);
        let (Some(end), Some(mut tar_end)) = (end, offset.checked_sub(SKIPPABLE_HEADER)) else {
            return Err(bad(&key, format!("is `{position}`, which is not inside the {blob_size} bytes of the blob")));
        };
        if let Some((key, position)) = annotation("tarsplit-position") {
            let [offset, _, _] =
                numbers(position).ok_or_else(|| bad(&key, format!("is `{position}`, not three numbers with colons between")))?;
            tar_end = tar_end.min(offset.saturating_sub(SKIPPABLE_HEADER));
        }
        let Some((key, checksum)) = annotation("manifest-checksum") else {
            return Err(bad("manifest-checksum", "is missing beside `manifest-position`".into()));
        };
        let checksum = checksum.parse().map_err(|e| bad(&key, format!("is wrong: {e}")))?;
        Ok(Some(TocLocation { range: offset..end, uncompressed, checksum, tar_end }))
    }
}

fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let mut fields = text.split(':');
    let mut numbers = [0; N];
    for number in &mut numbers {
        let field = fields.next().filter(|field| field.bytes().all(|c| c.is_ascii_digit()))?;
        *number = field.parse().ok()?;
    }
    fields.next().is_none().then_some(numbers)
}

/// Reads the table of contents of `layer` from its compressed bytes ([`TocLocation::range`] of the blob).
///
/// Wrong bytes are [`Outcome::Integrity`], a malformed table is [`Outcome::BadInput`] and names entry and field, and a table that cannot
/// be trusted to be complete is [`Outcome::Unsupported`].
pub fn parse(layer: &Digest, location: &TocLocation, compressed: &[u8]) -> Result<LayerIndex> {
    let tried = || format!("reading the table of contents of layer {layer}");
    let digest = Digest::of(compressed);
    if digest != location.checksum {
        let cause = format!("its digest is {digest}, but the manifest says {}", location.checksum);
        return Err(Error::new(Outcome::Integrity, tried()).because(cause));
    }
    let bad = |problem: String| Error::new(Outcome::BadInput, tried()).because(problem);
    let mut json = Json::of(compressed, location.uncompressed).map_err(|e| bad(e.to_string()))?;
    let parsed = toc::parse(&mut json, location.tar_end, toc::Dialect::ZstdChunked);
    // Whatever is wrong with the table: that it is not the announced one is the better reason.
    std::io::copy(&mut json, &mut std::io::sink()).map_err(|e| bad(e.to_string()))?;
    if json.len != location.uncompressed {
        let expected = location.uncompressed;
        return Err(bad(format!("it does not have the {expected} uncompressed bytes that the manifest announces")));
    }
    Ok(LayerIndex { entries: parsed.map_err(|problem| problem.into_error(tried()))? })
}

/// The table as it is decompressed: never more in memory than the window.
struct Json<'a> {
    decoder: Take<zstd::stream::read::Decoder<'static, &'a [u8]>>,
    /// Bytes so far.
    len: u64,
}

impl<'a> Json<'a> {
    fn of(compressed: &'a [u8], expected: u64) -> std::io::Result<Self> {
        let decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(wrong)?;
        // One byte more than announced, to see that there is none.
        Ok(Self { decoder: decoder.take(expected.min(MAX_TOC) + 1), len: 0 })
    }
}

impl Read for Json<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.decoder.read(buffer).map_err(wrong)?;
        self.len += read as u64;
        Ok(read)
    }
}

fn wrong(error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("it cannot be decompressed: {error}"))
}

#[cfg(test)]
mod tests;
