//! Checking a blob right after it was written: this crate's own readers read it back, and must find what went in.
//!
//! A layer with a table of contents is read twice in one pass: the table is parsed, and then every chunk it names and every gap
//! between them is decompressed alone, as the fetcher will do it. What all of them make up is the tar with the diffID.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Format, Written};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::pack;
use crate::layer::tar::{self, HashSink};
use crate::layer::unpack::Unpacking;
use crate::layer::verify::{compare, gap_ranges};
use crate::layer::zstd_chunked::{self, TocLocation};
use crate::layer::{Entry, EntryKind, FileContent, LayerIndex};
use crate::part::FilePart;

/// Checks the blob in `file` against what its writer said.
pub fn check(written: &Written, file: &File) -> Result<()> {
    checked(written, file).map_err(|e| e.during(format!("reading layer {} back after writing it", written.digest)))
}

fn checked(written: &Written, file: &File) -> Result<()> {
    // Not with the index of a layer that streams past, which would be made, and held, for nothing.
    let mut source = Unpacking::new(FilePart::new(file, 0..written.size), written.format.compression())?;
    let read = tar::read(&mut source, &mut HashSink::default())?;
    let unpacked = source.finish()?;
    same("blob's digest", written.digest, unpacked.blob)?;
    same("diffID", written.diff_id, unpacked.tar)?;
    compare(&written.index, &read)?;
    match written.format {
        Format::Gzip | Format::Zstd => Ok(()),
        Format::ZstdChunked => {
            let location = TocLocation::from_annotations(&written.digest, written.size, &written.annotations)?
                .ok_or_else(|| wrong("its annotations do not name a table of contents".into()))?;
            let table = bytes(file, location.range.clone())?;
            let index = zstd_chunked::parse(&written.digest, &location, &table)?;
            compare(&index, &read)?;
            drop(read);
            pieces(&index, location.tar_end, written, file)?;
            packed(&index, written, file)
        }
        // The table is part of the tar, and its own entry has no chunks.
        Format::Estargz => {
            drop(read);
            let (_table, entries) = written.index.entries.split_last().ok_or_else(|| wrong("it has no table".into()))?;
            files(entries).try_for_each(|(entry, content)| file_chunks(entry, content, written, file, |_| {}))
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
    let mut gaps = gap_ranges(index.entries.iter().map(Ok), tar_end)?.into_iter();
    let mut gap = |tar: &mut Hasher| decompress(written, file, gaps.next().unwrap_or_default(), |piece| tar.update(piece));
    for (entry, content) in files(&index.entries) {
        gap(&mut tar)?;
        file_chunks(entry, content, written, file, |piece| tar.update(piece))?;
    }
    gap(&mut tar)?;
    same("diffID of its pieces", written.diff_id, tar.finish())
}

/// Unpacks the pack, where there is one: each part has to be made of whole chunks, or be a whole file.
fn packed(index: &LayerIndex, written: &Written, file: &File) -> Result<()> {
    let Some(range) = pack::located(&written.digest, written.size, &written.annotations)? else { return Ok(()) };
    let failed = |e| Error::new(Outcome::Integrity, "unpacking its pack").because(e);
    let contents: HashMap<Digest, &FileContent> = files(&index.entries).map(|(_, content)| (content.digest, content)).collect();
    let mut pack = pack::Reader::new(BufReader::new(FilePart::new(file, range))).map_err(failed)?;
    for part in pack.parts().to_vec() {
        let chunks = contents.get(&part.file).map_or(&[][..], |content| &content.chunks);
        let Range { start, end } = part.range;
        let mut at = start;
        for chunk in chunks.iter().filter(|chunk| (start..end).contains(&chunk.file_offset)) {
            let mut bytes = vec![0; usize::try_from(chunk.len).expect("chunks fit into memory")];
            pack.read_exact(&mut bytes).map_err(failed)?;
            if chunk.file_offset != at || Digest::of(&bytes) != chunk.digest {
                return Err(wrong(format!("the pack's copy of {} at {at} is not what the table says", part.file)));
            }
            at += chunk.len;
        }
        if at != end {
            return Err(wrong(format!("a part of {} in the pack ends inside of a chunk", part.file)));
        }
    }
    Ok(())
}

fn files(entries: &[Entry]) -> impl Iterator<Item = (&Entry, &FileContent)> {
    entries.iter().filter_map(|entry| match &entry.kind {
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
    let reader = BufReader::with_capacity(64 << 10, FilePart::new(file, range.clone()));
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
