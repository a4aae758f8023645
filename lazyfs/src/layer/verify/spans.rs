//! The same for a layer that is fetched by spans: its tar is what the spans decompress to, payloads from contents and the rest from gaps.

use std::collections::HashMap;
use std::io::Read;

use super::{CHECKING, compare, compare_beginning};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::estargz::{is_own, settle_times};
use crate::layer::spans::{Payload, Spans};
use crate::layer::tar::{self, HashSink};
use crate::layer::{EntryKind, LayerIndex};
use crate::store::content::Content;

/// Bytes of a content that are read at a time.
const PORTION: u64 = 256 << 10;

/// Checks a layer whose files are all here. `open` opens a content; `gap` yields what the span at this offset of the blob has beside
/// payloads. Errors are those of [`super::verify`].
pub fn verify_spans(
    index: &LayerIndex,
    spans: &Spans,
    diff_id: &Digest,
    open: &dyn Fn(&Digest) -> Result<Content>,
    gap: impl FnMut(u64) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut files = HashMap::new();
    for file in index.files() {
        for chunk in &file.chunks {
            files.insert((chunk.blob_offset, chunk.digest), (file.digest, chunk.file_offset));
        }
    }
    let mut rebuilt = Rebuilt {
        spans,
        files,
        open,
        gap,
        number: 0,
        parts: Vec::new().into_iter(),
        content: None,
        portion: Vec::new(),
        used: 0,
        hasher: Hasher::default(),
    };
    let mut found = LayerIndex::default();
    let read = tar::read_into(&mut rebuilt, &mut HashSink::default(), &mut found);
    // The table of contents of an eStargz layer is a file of it, and names neither itself nor what is only for tools.
    if !index.entries.iter().any(|entry| is_own(&entry.path)) {
        found.entries.retain(|entry| !is_own(&entry.path) || !matches!(entry.kind, EntryKind::File(_)));
    }
    settle_times(index, &mut found);
    if let Err(e) = read {
        return Err(match e.outcome() {
            Outcome::BadInput | Outcome::Unsupported => {
                compare_beginning(index, &found)?;
                Error::new(Outcome::Integrity, CHECKING).because(e.during("reading the tar that its spans make up"))
            }
            _ => e.during(CHECKING),
        });
    }
    let digest = rebuilt.hasher.finish();
    compare(index, &found)?;
    if digest != *diff_id {
        let cause = format!("its tar has the digest {digest}, but the image's configuration says {diff_id}");
        return Err(Error::new(Outcome::Integrity, CHECKING).because(cause));
    }
    Ok(())
}

/// A part of the output of a span.
enum Part {
    Gap(Vec<u8>),
    Payload(Payload, u64),
}

/// The tar of a layer, put together again.
struct Rebuilt<'a, G> {
    spans: &'a Spans,
    /// For the offset of a span and the digest of a chunk: the file, and where in it the chunk is.
    files: HashMap<(u64, Digest), (Digest, u64)>,
    open: &'a dyn Fn(&Digest) -> Result<Content>,
    gap: G,
    /// Of the span that comes next.
    number: usize,
    parts: std::vec::IntoIter<Part>,
    /// The content that a payload is read from: where, and how much is left.
    content: Option<(Content, u64, u64)>,
    portion: Vec<u8>,
    used: usize,
    hasher: Hasher,
}

impl<G: FnMut(u64) -> Result<Vec<u8>>> Rebuilt<'_, G> {
    /// Takes the next span apart.
    fn enter(&mut self) -> Result<()> {
        let offset = self.spans.range(self.number).start;
        let mut gap = (self.gap)(offset)?;
        let (mut parts, mut at) = (Vec::new(), 0);
        for payload in self.spans.payloads(self.number) {
            let before = usize::try_from(payload.start - at).unwrap_or(usize::MAX);
            if before > gap.len() {
                let why = format!("what lies between files in its span at {offset} is too short");
                return Err(Error::new(Outcome::Integrity, CHECKING).because(why));
            }
            let rest = gap.split_off(before);
            parts.push(Part::Gap(std::mem::replace(&mut gap, rest)));
            parts.push(Part::Payload(payload, offset));
            at = payload.end();
        }
        parts.push(Part::Gap(gap));
        self.parts = parts.into_iter();
        self.number += 1;
        Ok(())
    }

    /// Makes the next portion; false at the end.
    fn refill(&mut self) -> Result<bool> {
        if let Some((content, at, left)) = &mut self.content {
            let len = (*left).min(PORTION);
            self.portion.resize(usize::try_from(len).expect("a portion fits into memory"), 0);
            content.read_exact_at(*at, &mut self.portion)?;
            (*at, *left) = (*at + len, *left - len);
            if *left == 0 {
                self.content = None;
            }
            return Ok(true);
        }
        match self.parts.next() {
            Some(Part::Gap(bytes)) => self.portion = bytes,
            Some(Part::Payload(payload, span)) => {
                self.portion.clear();
                let missing = || Error::new(Outcome::Integrity, CHECKING).because("its spans have what no file of it is");
                let (file, at) = self.files.get(&(span, payload.digest)).ok_or_else(missing)?;
                self.content = Some(((self.open)(file)?, *at, payload.len));
            }
            None if self.number < self.spans.len() => {
                self.portion.clear();
                self.enter()?;
            }
            None => return Ok(false),
        }
        Ok(true)
    }
}

impl<G: FnMut(u64) -> Result<Vec<u8>>> Read for Rebuilt<'_, G> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.used == self.portion.len() {
            self.used = 0;
            if !self.refill().map_err(std::io::Error::other)? {
                self.portion.clear();
                return Ok(0);
            }
        }
        let len = buffer.len().min(self.portion.len() - self.used);
        buffer[..len].copy_from_slice(&self.portion[self.used..self.used + len]);
        self.used += len;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}
