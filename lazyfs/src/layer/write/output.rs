//! The blob while it is written: bytes go to the file, their digest and number are kept.

use std::fs::File;
use std::io::{BufWriter, Write};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// Bytes that are written at once.
const BUFFER: usize = 256 << 10;

/// A blob that grows.
pub(super) struct Output<'a> {
    file: BufWriter<&'a File>,
    hasher: Hasher,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file: BufWriter::with_capacity(BUFFER, file), hasher: Hasher::default() }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.hasher.length()
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(failed)
    }

    /// Everything is in the file; its digest and length.
    pub(super) fn finish(mut self) -> Result<(Digest, u64)> {
        self.file.flush().map_err(failed)?;
        Ok((self.hasher.finish(), self.hasher.length()))
    }
}

/// A failed write of a blob.
pub(super) fn failed(e: std::io::Error) -> Error {
    Error::io("writing", "a layer's blob", e)
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
