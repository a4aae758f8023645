//! Checking a blob right after it was written: this crate's own readers read it back, and must find what went in.
//!
//! A layer with a table of contents is read twice in one pass: the table is parsed, and then every chunk it names and every gap
//! between them is decompressed alone, as the fetcher will do it. What all of them make up is the tar with the diffID.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Format, Written};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::stream::ingest;
use crate::layer::tar::HashSink;
use crate::layer::verify::{compare, gap_ranges};
use crate::layer::zstd_chunked::{self, TocLocation};
use crate::layer::{Entry, EntryKind, FileContent, LayerIndex};

/// Checks the blob in `file` against what its writer said.
pub fn check(written: &Written, file: &File) -> Result<()> {
    checked(written, file).map_err(|e| e.during(format!("reading layer {} back after writing it", written.digest)))
}

fn checked(written: &Written, file: &File) -> Result<()> {
    let reader = At { file, range: 0..written.size };
    let read = ingest(reader, written.format.compression(), &mut HashSink::default())?;
    same("blob's digest", written.digest, read.blob_digest)?;
    same("diffID", written.diff_id, read.diff_id)?;
    compare(&written.index, &read.index)?;
    match written.format {
        Format::Gzip | Format::Zstd => Ok(()),
        Format::ZstdChunked => {
            let location = TocLocation::from_annotations(&written.digest, written.size, &written.annotations)?
                .ok_or_else(|| wrong("its annotations do not name a table of contents".into()))?;
            let table = bytes(file, location.range.clone())?;
            let index = zstd_chunked::parse(&written.digest, &location, &table)?;
            compare(&index, &read.index)?;
            pieces(&index, location.tar_end, written, file)
        }
        // The table is part of the tar, and its own entry has no chunks.
        Format::Estargz => {
            let mut index = written.index.clone();
            index.entries.pop();
            chunks(&index, written, file)
        }
    }
}

fn wrong(text: String) -> Error {
    Error::new(Outcome::Integrity, "comparing it with what went in").because(text)
}

fn same(what: &str, wanted: Digest, found: Digest) -> Result<()> {
    if wanted == found { Ok(()) } else { Err(wrong(format!("the {what} is {found}, not {wanted}"))) }
}

/// Decompresses each chunk and each gap alone; together they must be the tar.
fn pieces(index: &LayerIndex, tar_end: u64, written: &Written, file: &File) -> Result<()> {
    let mut tar = Hasher::default();
    let mut gaps = gap_ranges(index, tar_end)?.into_iter();
    let mut gap = |tar: &mut Hasher| decompress(written, file, gaps.next().unwrap_or_default(), |piece| tar.update(piece));
    for (entry, content) in files(index) {
        gap(&mut tar)?;
        file_chunks(entry, content, written, file, |piece| tar.update(piece))?;
    }
    gap(&mut tar)?;
    same("diffID of its pieces", written.diff_id, tar.finish())
}

/// Decompresses each chunk alone.
fn chunks(index: &LayerIndex, written: &Written, file: &File) -> Result<()> {
    files(index).try_for_each(|(entry, content)| file_chunks(entry, content, written, file, |_| {}))
}

fn files(index: &LayerIndex) -> impl Iterator<Item = (&Entry, &FileContent)> {
    index.entries.iter().filter_map(|entry| match &entry.kind {
        EntryKind::File(content) if content.size > 0 => Some((entry, content)),
        _ => None,
    })
}

fn file_chunks(entry: &Entry, content: &FileContent, written: &Written, file: &File, mut take: impl FnMut(&[u8])) -> Result<()> {
    let path = || String::from_utf8_lossy(&entry.path).escape_debug().to_string();
    let mut whole = Hasher::default();
    for chunk in &content.chunks {
        let mut hasher = Hasher::default();
        decompress(written, file, chunk.blob_offset..chunk.blob_offset + chunk.blob_len, |piece| {
            hasher.update(piece);
            whole.update(piece);
            take(piece);
        })?;
        if (hasher.finish(), hasher.length()) != (chunk.digest, chunk.len) {
            return Err(wrong(format!("`{}`: its piece at {} is not what the table says", path(), chunk.file_offset)));
        }
    }
    match (whole.finish(), whole.length()) == (content.digest, content.size) {
        true => Ok(()),
        false => Err(wrong(format!("`{}`: its pieces do not make up the file", path()))),
    }
}

fn decompress(written: &Written, file: &File, range: Range<u64>, mut take: impl FnMut(&[u8])) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let failed = |range: &Range<u64>, e| {
        let tried = format!("decompressing bytes {} to {} of the blob", range.start, range.end);
        Error::new(Outcome::Integrity, tried).because(e)
    };
    let reader = std::io::BufReader::with_capacity(64 << 10, At { file, range: range.clone() });
    let mut reader: Box<dyn Read> = match written.format.compression() {
        crate::manifest::Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(reader).map_err(|e| failed(&range, e))?)
        }
        _ => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer).map_err(|e| failed(&range, e))? {
            0 => return Ok(()),
            n => take(&buffer[..n]),
        }
    }
}

fn bytes(file: &File, range: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("tables fit into memory")];
    file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io("reading", "a layer's blob", e))?;
    Ok(bytes)
}

/// A part of a file as a reader.
struct At<'a> {
    file: &'a File,
    range: Range<u64>,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..n], self.range.start)?;
        self.range.start += n as u64;
        Ok(n)
    }
}
