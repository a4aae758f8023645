//! Taking in a layer that streams past once: its files go to a sink, its entries into an index, and both digests of it are computed.
//!
//! ```text
//! blob -> [hash, count] -> gzip | zstd | - -> [hash] -> tar::read -> files
//! ```

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::layer::LayerIndex;
use crate::layer::seek::{self, SeekIndex};
use crate::layer::tar::{self, FileSink};
use crate::manifest::Compression;

/// Bytes that are read of the blob at once.
const BUFFER: usize = 256 * 1024;

/// A layer that was taken in. Whether its digests are the right ones is for the caller to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// What is in it. Files have no chunks.
    pub index: LayerIndex,
    /// Digest of the blob.
    pub blob_digest: Digest,
    /// Length of the blob, bytes.
    pub blob_size: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Of a gzip layer: the same index with random access.
    pub seek: Option<SeekIndex>,
}

/// Reads the blob of a layer to its end and hands the files in it to `sink`.
///
/// Errors name the offset in the blob that was reached. Malformed input is [`crate::error::Outcome::BadInput`]; an [`Error`] inside of an
/// I/O error of `reader` keeps its outcome.
pub fn ingest(reader: impl Read, compression: Compression, sink: &mut impl FileSink) -> Result<Ingested> {
    let reached = Cell::new(0);
    ingest_counting(reader, compression, sink, &reached)
        .map_err(|e| e.during(format!("unpacking a layer, at byte {} of its blob", reached.get())))
}

fn ingest_counting(
    reader: impl Read,
    compression: Compression,
    sink: &mut impl FileSink,
    reached: &Cell<u64>,
) -> Result<Ingested> {
    let mut blob = BufReader::with_capacity(BUFFER, Hashing { reader, hasher: Hasher::default(), reached: Some(reached) });
    let mut seek = None;
    let (index, diff_id) = match compression {
        Compression::None => unpack(&mut blob, sink)?,
        Compression::Gzip => {
            let recorded = seek::record(&mut blob, sink)?;
            seek = Some(recorded.seek);
            (recorded.index, recorded.diff_id)
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(&mut blob);
            unpack(decoder.map_err(|e| Error::new(crate::error::Outcome::Io, "starting a zstd decoder").because(e))?, sink)?
        }
    };
    // Decoders may stop before the end of the blob, but its digest is of all bytes.
    drain(&mut blob)?;
    let hasher = blob.into_inner().hasher;
    Ok(Ingested { index, blob_digest: hasher.finish(), blob_size: hasher.length(), diff_id, seek })
}

fn unpack(tar: impl Read, sink: &mut impl FileSink) -> Result<(LayerIndex, Digest)> {
    let mut tar = Hashing { reader: tar, hasher: Hasher::default(), reached: None };
    let index = tar::read(&mut tar, sink)?;
    Ok((index, tar.hasher.finish()))
}

fn drain(blob: &mut impl BufRead) -> Result<()> {
    loop {
        let len = blob.fill_buf().map_err(|e| tar::read_error(e, "reading the rest of the blob".into()))?.len();
        if len == 0 {
            return Ok(());
        }
        blob.consume(len);
    }
}

/// Hashes and counts what is read through it.
struct Hashing<'a, R> {
    reader: R,
    hasher: Hasher,
    reached: Option<&'a Cell<u64>>,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        if let Some(reached) = self.reached {
            reached.set(self.hasher.length());
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
