//! A tar that was taken apart into a file, so that its entries can be had in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Bytes, PIECE, each};
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::layer::pack::{self, Part};
use crate::layer::tar::split::{Head, Split};
use crate::layer::{Entry, EntryKind, FileContent};

/// Bytes of a tar block.
const BLOCK: u64 = 512;
/// What ends a tar: two blocks of zeros.
const END: u64 = 2 * BLOCK;

/// A tar in a file.
pub(super) struct Stored<'a> {
    file: &'a File,
    heads: Vec<Head>,
    entries: Vec<Option<Entry>>,
    /// Where each payload begins in the file.
    payloads: Vec<u64>,
    /// Length of the payload that was handed out last; its padding comes before the next head.
    before: u64,
    /// Where the tail begins in the file, and the length of the file.
    tail: (u64, u64),
}

/// Takes `tar` apart into `file`.
pub(super) fn store(tar: impl Read, file: &File) -> Result<Stored<'_>> {
    let failed = |e| Error::io("writing", "the scratch file", e);
    let mut writer = BufWriter::with_capacity(256 << 10, file);
    let mut split = Split::new(tar);
    let (mut heads, mut entries, mut payloads, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut buffer = vec![0; PIECE];
    while let Some(head) = split.next_head()? {
        let mut hasher = Hasher::default();
        payloads.push(at);
        each(&mut |buffer| split.payload(buffer), &mut buffer, &mut |piece| {
            hasher.update(piece);
            writer.write_all(piece).map_err(failed)
        })?;
        at += hasher.length();
        let mut entry = head.entry.clone();
        if let Some(Entry { kind: EntryKind::File(content), .. }) = &mut entry {
            (content.size, content.digest) = (hasher.length(), hasher.finish());
        }
        heads.push(head);
        entries.push(entry);
    }
    let tail = at;
    each(&mut |buffer| split.tail(buffer), &mut buffer, &mut |piece| {
        at += piece.len() as u64;
        writer.write_all(piece).map_err(failed)
    })?;
    writer.flush().map_err(failed)?;
    drop(writer);
    Ok(Stored { file, heads, entries, payloads, before: 0, tail: (tail, at) })
}

impl Stored<'_> {
    /// The entries in the order of the tar.
    pub(super) fn entries(&self) -> &[Option<Entry>] {
        &self.entries
    }

    /// The content of an entry that is a file.
    pub(super) fn content(&self, number: usize) -> Option<&FileContent> {
        match self.entries[number].as_ref().map(|entry| &entry.kind) {
            Some(EntryKind::File(content)) => Some(content),
            _ => None,
        }
    }

    /// A pack of these parts of files, each content once.
    pub(super) fn pack(&self, chosen: &[(usize, Vec<Range<u64>>)]) -> Result<Vec<u8>> {
        let (mut parts, mut places) = (Vec::new(), HashMap::new());
        for (number, ranges) in chosen {
            let Some(content) = self.content(*number) else { continue };
            if places.insert(content.digest, self.payloads[*number]).is_none() {
                let short = ranges.iter().flat_map(|range| cut(range, pack::MAX_PART));
                parts.extend(short.map(|range| Part { file: content.digest, range }));
            }
        }
        // What comes last is needed last.
        parts.truncate(pack::MAX_PARTS);
        let mut buffer = vec![0; PIECE];
        let packed = pack::write(&parts, |part, to| {
            let payload = places[&part.file];
            let (mut at, end) = (payload + part.range.start, payload + part.range.end);
            while at < end {
                let n = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                self.file.read_exact_at(&mut buffer[..n], at)?;
                to.write_all(&buffer[..n])?;
                at += n as u64;
            }
            Ok(())
        });
        packed.map_err(|e| Error::io("packing", "what is needed first", e))
    }

    /// Hands out an entry. Where the order changes, padding is made anew.
    pub(super) fn with<T>(
        &mut self,
        number: usize,
        moves: bool,
        then: impl FnOnce(&[u8], &Head, Bytes<'_>) -> Result<T>,
    ) -> Result<T> {
        let head = &mut self.heads[number];
        if moves {
            let padding = self.before.next_multiple_of(BLOCK) - self.before;
            let own = head.bytes.split_off(head.padding);
            head.bytes = vec![0; padding as usize];
            head.bytes.extend(own);
            head.padding = padding as usize;
        }
        self.before = head.payload_len();
        let (mut at, end) = (self.payloads[number], self.payloads[number] + head.payload_len());
        then(&head.bytes, head, &mut |buffer| read(self.file, &mut at, end, buffer))
    }

    /// Hands out what is behind the last payload.
    pub(super) fn with_tail<T>(&self, moves: bool, then: impl FnOnce(Bytes<'_>) -> Result<T>) -> Result<T> {
        let (mut at, end) = self.tail;
        if !moves {
            return then(&mut |buffer| read(self.file, &mut at, end, buffer));
        }
        let mut left = self.before.next_multiple_of(BLOCK) - self.before + END;
        then(&mut |buffer| {
            let n = buffer.len().min(left as usize);
            buffer[..n].fill(0);
            left -= n as u64;
            Ok(n)
        })
    }
}

/// A range as ranges of at most `most` bytes.
fn cut(range: &Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end)
        .step_by(usize::try_from(most).unwrap_or(usize::MAX))
        .map(move |start| start..end.min(start.saturating_add(most)))
}

fn read(file: &File, at: &mut u64, end: u64, buffer: &mut [u8]) -> Result<usize> {
    let n = buffer.len().min(usize::try_from(end - *at).unwrap_or(usize::MAX));
    file.read_exact_at(&mut buffer[..n], *at).map_err(|e| Error::io("reading", "the scratch file", e))?;
    *at += n as u64;
    Ok(n)
}
