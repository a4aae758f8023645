//! The index of a layer as we keep it: for a layer without a table of contents, so that it need not stream again, and for any layer that
//! is known already.
//!
//! ```text
//! header   shared fields (wire.rs), then u32 entries, u32 0
//! entry    u8 kind, path, then by kind:
//!            0 directory     metadata
//!            1 file          metadata, u64 size, digest 32, u32 chunks, each: u64 length, u64 blob offset, u64 compressed length,
//!                            digest 32, u8 flags (1: zeros)
//!            2 symlink       metadata, target
//!            3 hard link     target
//!            4, 5 device     metadata, u32 major, u32 minor (character, block)
//!            6 fifo          metadata
//!            7 whiteout, 8 opaque marker
//! metadata u16 mode, u32 uid, u32 gid, i64 mtime, u32 nanoseconds, u16 attributes, each: u8 length and name, u32 length and value
//! path and target: u16 length and bytes
//! file     all of the above, then its sha256
//! ```
//!
//! The digest at the end is why nobody waits for the disk when an index is kept: one that a power cut damaged is not believed.

use std::io::{self, Write};

use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::layer::{Chunk, Entry, EntryKind, FileContent, LayerIndex, MAX_ENTRIES, Meta, name};
use crate::wire::{self, Malformed, Reader};

const MAGIC: [u8; 8] = *b"TLINDEX\n";
const VERSION: u32 = 1;
const HEADER_EXTRA: usize = 8;
const CHUNK: usize = 57;
const FLAG_ZEROS: u8 = 1;
/// So many bytes are written at once.
const PORTION: usize = 64 << 10;
const TRIED: &str = "reading a saved layer index";
const NO_TIME: &str = "field `mtime` has too many nanoseconds";

/// The bytes to keep.
pub fn save(index: &LayerIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(index, &mut bytes).expect("memory takes all that is written to it");
    bytes
}

/// Writes what [`save`] makes.
pub fn write(index: &LayerIndex, out: &mut dyn Write) -> io::Result<()> {
    let mut hasher = Hasher::default();
    encode(index, &mut |bytes| {
        hasher.update(bytes);
        out.write_all(bytes)
    })?;
    out.write_all(hasher.finish().as_bytes())
}

/// Reads what [`save`] made. Anything else, damage included, is [`crate::error::Outcome::BadInput`] or a newer version's.
pub fn load(bytes: &[u8]) -> Result<LayerIndex> {
    Ok(LayerIndex { entries: entries(bytes)?.collect::<Result<_>>()? })
}

/// The same, one entry after the other.
pub fn entries(bytes: &[u8]) -> Result<impl Iterator<Item = Result<Entry>>> {
    let sealed = bytes.split_last_chunk().filter(|(content, digest)| Digest::of(content).as_bytes() == *digest);
    match sealed {
        Some((content, _)) => decode(content),
        None => Err(Malformed::Bad("its digest is not that at its end".into()).into_error(TRIED.into())),
    }
}

/// All but the digest, in portions.
fn encode(index: &LayerIndex, put: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut out = wire::begin(MAGIC, VERSION, HEADER_EXTRA);
    out.extend(u32::try_from(index.entries.len()).expect("an index has a limit of entries").to_le_bytes());
    out.extend([0; 4]);
    // The length stands in the header, and the whole is not to be in memory.
    let mut length = out.len() as u64;
    let mut scratch = Vec::new();
    for entry in &index.entries {
        scratch.clear();
        put_entry(&mut scratch, entry);
        length += scratch.len() as u64;
    }
    wire::enter_length(&mut out, length);
    for entry in &index.entries {
        put_entry(&mut out, entry);
        if out.len() >= PORTION {
            put(&out)?;
            out.clear();
        }
    }
    put(&out)
}

fn decode(bytes: &[u8]) -> Result<Entries<'_>> {
    Entries::of(bytes).map_err(|problem| problem.into_error(TRIED.into()))
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(u16::try_from(text.len()).expect("paths have a limit").to_le_bytes());
    out.extend(text);
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let tag = match entry.kind {
        EntryKind::Directory => 0,
        EntryKind::File(_) => 1,
        EntryKind::Symlink(_) => 2,
        EntryKind::Hardlink(_) => 3,
        EntryKind::CharDevice(..) => 4,
        EntryKind::BlockDevice(..) => 5,
        EntryKind::Fifo => 6,
        EntryKind::Whiteout => 7,
        EntryKind::Opaque => 8,
    };
    out.push(tag);
    put_text(out, &entry.path);
    if !matches!(entry.kind, EntryKind::Hardlink(_) | EntryKind::Whiteout | EntryKind::Opaque) {
        put_meta(out, &entry.meta);
    }
    match &entry.kind {
        EntryKind::File(content) => {
            out.extend(content.size.to_le_bytes());
            out.extend(content.digest.as_bytes());
            out.extend(u32::try_from(content.chunks.len()).expect("an index has a limit of chunks").to_le_bytes());
            for chunk in &content.chunks {
                for field in [chunk.len, chunk.blob_offset, chunk.blob_len] {
                    out.extend(field.to_le_bytes());
                }
                out.extend(chunk.digest.as_bytes());
                out.push(if chunk.zeros { FLAG_ZEROS } else { 0 });
            }
        }
        EntryKind::Symlink(target) | EntryKind::Hardlink(target) => put_text(out, target),
        EntryKind::CharDevice(major, minor) | EntryKind::BlockDevice(major, minor) => {
            out.extend(major.to_le_bytes());
            out.extend(minor.to_le_bytes());
        }
        EntryKind::Directory | EntryKind::Fifo | EntryKind::Whiteout | EntryKind::Opaque => {}
    }
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    out.extend(meta.mode.to_le_bytes());
    out.extend(meta.uid.to_le_bytes());
    out.extend(meta.gid.to_le_bytes());
    out.extend(meta.mtime.to_le_bytes());
    out.extend(meta.mtime_nanos.to_le_bytes());
    out.extend(u16::try_from(meta.xattrs.len()).expect("an inode has a limit of attributes").to_le_bytes());
    for (name, value) in &meta.xattrs {
        out.push(u8::try_from(name.len()).expect("names of attributes have a limit"));
        out.extend(name);
        out.extend(u32::try_from(value.len()).expect("values of attributes have a limit").to_le_bytes());
        out.extend(value);
    }
}

/// Takes one entry after the other, the last with what it is checked for at the end.
struct Entries<'a> {
    content: Reader<'a>,
    count: usize,
    number: usize,
}

impl<'a> Entries<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (mut header, content) = wire::open(bytes, MAGIC, VERSION, "saved layer index", HEADER_EXTRA)?;
        let count = header.u32().expect("wire::open has checked the header's length") as usize;
        match count {
            0 if content.remaining() > 0 => Err(Malformed::Bad(format!("{} bytes follow the last entry", content.remaining()))),
            0..=MAX_ENTRIES => Ok(Self { content, count, number: 0 }),
            _ => Err(Malformed::Bad(format!("field `entries` is {count}; the limit is {MAX_ENTRIES}"))),
        }
    }

    fn take(&mut self) -> Result<Entry, Malformed> {
        let number = self.number;
        let entry = take_entry(&mut self.content).map_err(|text| Malformed::Bad(format!("entry {number}: {text}")))?;
        self.number += 1;
        match (self.number == self.count, self.content.remaining()) {
            (true, more @ 1..) => Err(Malformed::Bad(format!("{more} bytes follow the last entry"))),
            _ => Ok(entry),
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.number == self.count {
            return None;
        }
        let taken = self.take().map_err(|problem| problem.into_error(TRIED.into()));
        if taken.is_err() {
            self.number = self.count;
        }
        Some(taken)
    }
}

fn ends<T>(taken: Option<T>) -> Result<T, String> {
    taken.ok_or_else(|| "it ends early".into())
}

fn take_text<'a>(content: &mut Reader<'a>) -> Result<&'a [u8], String> {
    let len = ends(content.u16())?;
    ends(content.take(len.into()))
}

/// A path, which is in the form of [`Entry::path`] or refused.
fn take_path(content: &mut Reader<'_>) -> Result<Vec<u8>, String> {
    let path = take_text(content)?;
    if !path.is_empty() && name::clean(path).map_err(|text| format!("field `path` {text}"))? != path {
        return Err("field `path` is not in its plain form".into());
    }
    Ok(path.to_vec())
}

fn take_entry(content: &mut Reader<'_>) -> Result<Entry, String> {
    let tag = ends(content.u8())?;
    let path = take_path(content)?;
    let meta = match tag {
        3 | 7 | 8 => Meta::default(),
        _ => take_meta(content)?,
    };
    let kind = match tag {
        0 => EntryKind::Directory,
        1 => EntryKind::File(take_file(content)?),
        2 => {
            let target = take_text(content)?;
            EntryKind::Symlink(name::link_target(target).map_err(|text| format!("field `target` {text}"))?.to_vec())
        }
        3 => EntryKind::Hardlink(take_path(content)?),
        4 => EntryKind::CharDevice(ends(content.u32())?, ends(content.u32())?),
        5 => EntryKind::BlockDevice(ends(content.u32())?, ends(content.u32())?),
        6 => EntryKind::Fifo,
        7 => EntryKind::Whiteout,
        8 => EntryKind::Opaque,
        other => return Err(format!("field `kind` is {other}, which is not known")),
    };
    Ok(Entry { path, kind, meta })
}

fn take_meta(content: &mut Reader<'_>) -> Result<Meta, String> {
    let (mode, uid, gid) = (ends(content.u16())?, ends(content.u32())?, ends(content.u32())?);
    let (mtime, mtime_nanos) = (i64::from_le_bytes(ends(content.array())?), ends(content.u32())?);
    if mode > 0o7777 {
        return Err(format!("field `mode` is {mode:o}"));
    }
    if mtime_nanos >= 1_000_000_000 {
        return Err(NO_TIME.into());
    }
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..ends(content.u16())? {
        let len = ends(content.u8())?;
        let name = name::xattr(ends(content.take(len.into()))?).map_err(|text| format!("field `attributes` {text}"))?;
        if xattrs.last().is_some_and(|(last, _)| &last[..] >= name) {
            return Err("field `attributes` is not sorted by name".into());
        }
        let len = ends(content.u32())?;
        xattrs.push((name.to_vec(), ends(content.take(len as usize))?.to_vec()));
    }
    Ok(Meta { mode, uid, gid, mtime, mtime_nanos, xattrs })
}

fn take_file(content: &mut Reader<'_>) -> Result<FileContent, String> {
    let (size, digest) = (ends(content.u64())?, Digest::from_bytes(ends(content.array())?));
    let count = ends(content.u32())? as usize;
    // Before anything is allocated for them.
    if count > content.remaining() / CHUNK {
        return ends(None);
    }
    let (mut file_offset, mut blob_end) = (0u64, 0u64);
    let mut chunks: Vec<Chunk> = Vec::with_capacity(count);
    for number in 0..count {
        let wrong = || format!("field `chunks`: chunk {number} does not follow the one before it");
        let (len, blob_offset, blob_len) = (ends(content.u64())?, ends(content.u64())?, ends(content.u64())?);
        let digest = Digest::from_bytes(ends(content.array())?);
        let zeros = ends(content.u8())? & FLAG_ZEROS != 0;
        // Chunks that come out of one span begin with it.
        let goes_on = |before: &Chunk| before.blob_offset == blob_offset && before.blob_len <= blob_len;
        if len == 0 || (blob_offset < blob_end && !chunks.last().is_some_and(goes_on)) {
            return Err(wrong());
        }
        chunks.push(Chunk { file_offset, len, blob_offset, blob_len, digest, zeros });
        file_offset = file_offset.checked_add(len).ok_or_else(wrong)?;
        blob_end = blob_offset.checked_add(blob_len).ok_or_else(wrong)?;
    }
    match chunks.is_empty() || file_offset == size {
        true => Ok(FileContent { size, digest, chunks }),
        false => Err("field `chunks` does not add up to `size`".into()),
    }
}

#[cfg(test)]
mod tests;
