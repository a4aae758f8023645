//! Checking a complete zstd:chunked layer against its diffID, and its table of contents against the tar.
//!
//! A container runs on what the table of contents says, long before the layer is complete. The diffID, which the image's configuration
//! vouches for, is of the uncompressed tar. So when all files of the layer are here, the tar is put together again: its headers come
//! from the *gaps* of the blob, which are the frames between the payloads of files, its contents from the store. What results
//! is hashed, and on the way read as a tar again, since a table of contents that tells other names, modes or digests than the
//! tar is a lie that no digest shows.
//!
//! Gaps are whole frames: the compressor starts a new one before and behind each payload, since payloads must decompress alone. So a
//! gap decompresses without what stands before it. Where a tool should ever do otherwise, the check fails instead of passing.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::tar::{self, HashSink};
use crate::layer::{Entry, EntryKind, FileContent, LayerIndex, Meta};
use crate::store::content::Content;

const CHECKING: &str = "checking a layer";
/// A gap is asked for in pieces of at most this many bytes.
const MAX_PIECE: u64 = 4 << 20;

mod spans;

pub use self::spans::verify_spans;

/// The parts of a blob that are no payload of a file, in ascending order: together with the payloads they make up the first `tar_end`
/// bytes. There is one more than files with content, before each and behind the last; ranges may be empty.
///
/// An index whose payloads overlap or leave the tar is [`Outcome::Integrity`].
pub fn gap_ranges<E: Borrow<Entry>>(entries: impl Iterator<Item = Result<E>>, tar_end: u64) -> Result<Vec<Range<u64>>> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for entry in entries {
        let entry = entry?;
        let Some((entry, content)) = file(entry.borrow()) else { continue };
        let payload = content.chunks.first().zip(content.chunks.last()).and_then(|(first, last)| {
            let end = last.blob_offset.checked_add(last.blob_len)?;
            (first.blob_offset >= at && first.blob_offset < end && end <= tar_end).then_some(first.blob_offset..end)
        });
        let payload = payload.ok_or_else(|| disagrees(entry, "its chunks overlap those of another file or leave the tar"))?;
        gaps.push(at..payload.start);
        at = payload.end;
    }
    gaps.push(at..tar_end);
    Ok(gaps)
}

/// Checks a layer whose files are all here.
///
/// `open` opens a content; `gap` yields the bytes of the blob in a range; it is asked for all of [`gap_ranges`], piece by piece in ascending order.
/// A layer that differs from its diffID, or an index that differs from the layer, is [`Outcome::Integrity`] and names path and field
/// where there is one. A file that is not in the store is [`Outcome::NotFound`].
pub fn verify(
    index: &LayerIndex,
    tar_end: u64,
    diff_id: &Digest,
    open: &dyn Fn(&Digest) -> Result<Content>,
    gap: impl FnMut(Range<u64>) -> Result<Vec<u8>>,
) -> Result<()> {
    let gaps = gap_ranges(index.entries.iter().map(Ok), tar_end)?;
    let source = RefCell::new(gap);
    let mut rebuilt = Rebuilt {
        source: &source,
        open,
        gaps: gaps.into_iter(),
        files: files(index).collect::<Vec<_>>().into_iter(),
        part: Part::Between { gap_is_next: true },
        hasher: Hasher::default(),
    };
    let mut comparison = Comparison::new(index);
    if let Err(e) = tar::read_each(&mut rebuilt, &mut HashSink::default(), &mut |entry| comparison.next(entry)) {
        return Err(match (comparison.failed, e.outcome()) {
            // A wrong size shifts all that follows. What comes before tells which.
            (true, _) => e,
            (false, Outcome::BadInput | Outcome::Unsupported) => {
                let cause = e.during("reading the tar that its frames and its table of contents make up");
                Error::new(Outcome::Integrity, CHECKING).because(cause)
            }
            _ => e.during(CHECKING),
        });
    }
    let digest = rebuilt.hasher.finish();
    comparison.end()?;
    if digest != *diff_id {
        let cause = format!("its tar has the digest {digest}, but the image's configuration says {diff_id}");
        return Err(Error::new(Outcome::Integrity, CHECKING).because(cause));
    }
    Ok(())
}

/// A comparison of an index with a tar, of which no more than an entry is in memory.
struct Comparison<'a> {
    index: &'a LayerIndex,
    found: usize,
    /// The first entry of the tar that is too many.
    surplus: Option<Entry>,
    failed: bool,
}

impl<'a> Comparison<'a> {
    fn new(index: &'a LayerIndex) -> Self {
        Self { index, found: 0, surplus: None, failed: false }
    }

    fn next(&mut self, found: Entry) -> Result<()> {
        let said = self.index.entries.get(self.found);
        self.found += 1;
        match said {
            Some(said) => compare_one(said, &found).inspect_err(|_| self.failed = true),
            None => {
                self.surplus.get_or_insert(found);
                Ok(())
            }
        }
    }

    fn end(self) -> Result<()> {
        let first = self.surplus.as_ref().or_else(|| self.index.entries.get(self.found));
        first.map_or(Ok(()), |first| Err(too_many(first, self.index.entries.len(), self.found)))
    }
}

/// The files that have a payload.
fn files(index: &LayerIndex) -> impl Iterator<Item = (&Entry, &FileContent)> {
    index.entries.iter().filter_map(file)
}

/// The entry as a file that has a payload.
fn file(entry: &Entry) -> Option<(&Entry, &FileContent)> {
    match &entry.kind {
        EntryKind::File(content) if content.size > 0 => Some((entry, content)),
        _ => None,
    }
}

fn disagrees(entry: &Entry, text: &str) -> Error {
    let path = String::from_utf8_lossy(&entry.path);
    Error::new(Outcome::Integrity, CHECKING).because(format!("`{}`: {text}", path.escape_debug()))
}

/// Compares what the table of contents says with what the tar says: everything but chunks.
pub(crate) fn compare(index: &LayerIndex, tar: &LayerIndex) -> Result<()> {
    compare_beginning(index, tar)?;
    let (said, found) = (index.entries.len(), tar.entries.len());
    if said == found {
        return Ok(());
    }
    let first = if said > found { &index.entries[found] } else { &tar.entries[said] };
    Err(too_many(first, said, found))
}

fn too_many(first: &Entry, said: usize, found: usize) -> Error {
    disagrees(first, &format!("is the first entry too many: the index has {said} entries, the layer {found}"))
}

/// Compares as many entries as both have.
fn compare_beginning(index: &LayerIndex, tar: &LayerIndex) -> Result<()> {
    index.entries.iter().zip(&tar.entries).try_for_each(|(said, found)| compare_one(said, found))
}

fn compare_one(said: &Entry, found: &Entry) -> Result<()> {
    if said.path != found.path {
        let text = format!("the index has it where the layer has `{}`", String::from_utf8_lossy(&found.path).escape_debug());
        return Err(disagrees(said, &text));
    }
    match difference(said, found) {
        Some((field, said_value, found_value)) => {
            let text = format!("field `{field}` is {said_value} in the index, but {found_value} in the layer");
            Err(disagrees(said, &text))
        }
        None => Ok(()),
    }
}

/// The first field in which two entries of one path differ, and both values.
fn difference(said: &Entry, found: &Entry) -> Option<(&'static str, String, String)> {
    fn differ<T: PartialEq + std::fmt::Debug>(
        field: &'static str,
        said: &T,
        found: &T,
    ) -> Option<(&'static str, String, String)> {
        (said != found).then(|| (field, short(said), short(found)))
    }
    let kind = match (&said.kind, &found.kind) {
        (EntryKind::File(said), EntryKind::File(found)) => {
            differ("size", &said.size, &found.size).or_else(|| differ("digest", &said.digest, &found.digest))
        }
        (said, found) => differ("type", said, found),
    };
    let (Meta { mode, uid, gid, mtime, mtime_nanos, xattrs }, other) = (&said.meta, &found.meta);
    kind.or_else(|| differ("mode", mode, &other.mode))
        .or_else(|| differ("uid", uid, &other.uid))
        .or_else(|| differ("gid", gid, &other.gid))
        .or_else(|| differ("mtime", &(mtime, mtime_nanos), &(&other.mtime, &other.mtime_nanos)))
        .or_else(|| differ("xattrs", &with_value(xattrs), &with_value(&other.xattrs)))
}

/// Attributes that are not empty. Tables of contents of older tools (buildah 1.28) leave out the empty ones of the tar.
fn with_value(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<&(Vec<u8>, Vec<u8>)> {
    xattrs.iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn short(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take(120).collect()
}

/// The tar of a layer, put together from gaps and files.
struct Rebuilt<'a, F> {
    source: &'a RefCell<F>,
    open: &'a dyn Fn(&Digest) -> Result<Content>,
    gaps: std::vec::IntoIter<Range<u64>>,
    files: std::vec::IntoIter<(&'a Entry, &'a FileContent)>,
    part: Part<'a, F>,
    hasher: Hasher,
}

enum Part<'a, F> {
    Between { gap_is_next: bool },
    Gap(zstd::stream::read::Decoder<'static, Gap<'a, F>>),
    Payload(BufReader<Content>),
}

impl<F: FnMut(Range<u64>) -> Result<Vec<u8>>> Rebuilt<'_, F> {
    /// Starts the next part. `false` at the end.
    fn next(&mut self, gap_is_next: bool) -> std::io::Result<bool> {
        if gap_is_next {
            let Some(left) = self.gaps.next() else { return Ok(false) };
            if left.is_empty() {
                self.part = Part::Between { gap_is_next: false };
                return Ok(true);
            }
            let gap = Gap { source: self.source, left, piece: Vec::new(), used: 0 };
            self.part = Part::Gap(zstd::stream::read::Decoder::with_buffer(gap)?);
        } else {
            let Some((entry, content)) = self.files.next() else { return Ok(false) };
            let file = (self.open)(&content.digest).map_err(std::io::Error::other)?;
            let len = file.size();
            if len != content.size {
                let text = format!("field `size` is {} in the index, but its content has {len} bytes", content.size);
                return Err(std::io::Error::other(disagrees(entry, &text)));
            }
            self.part = Part::Payload(BufReader::with_capacity(128 * 1024, file));
        }
        Ok(true)
    }
}

impl<F: FnMut(Range<u64>) -> Result<Vec<u8>>> Read for Rebuilt<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let (n, gap_is_next) = match &mut self.part {
                Part::Between { gap_is_next } => (0, *gap_is_next),
                Part::Gap(gap) => (gap.read(buffer)?, false),
                Part::Payload(file) => (file.read(buffer)?, true),
            };
            if n > 0 {
                self.hasher.update(&buffer[..n]);
                return Ok(n);
            }
            if !self.next(gap_is_next)? {
                self.part = Part::Between { gap_is_next };
                return Ok(0);
            }
        }
    }
}

/// The compressed bytes of a gap, fetched as they are needed.
struct Gap<'a, F> {
    source: &'a RefCell<F>,
    left: Range<u64>,
    piece: Vec<u8>,
    used: usize,
}

impl<F: FnMut(Range<u64>) -> Result<Vec<u8>>> BufRead for Gap<'_, F> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.used == self.piece.len() && !self.left.is_empty() {
            let range = self.left.start..self.left.end.min(self.left.start + MAX_PIECE);
            self.left.start = range.end;
            self.piece = (self.source.borrow_mut())(range.clone()).map_err(std::io::Error::other)?;
            self.used = 0;
            if self.piece.len() as u64 != range.end - range.start {
                let text = format!("bytes {}..{} of the blob were asked for, {} came", range.start, range.end, self.piece.len());
                return Err(std::io::Error::other(Error::new(Outcome::Unavailable, "reading a gap of a layer").because(text)));
            }
        }
        Ok(&self.piece[self.used..])
    }

    fn consume(&mut self, amount: usize) {
        self.used += amount;
    }
}

impl<F: FnMut(Range<u64>) -> Result<Vec<u8>>> Read for Gap<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
