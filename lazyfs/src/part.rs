//! A part of a file as a reader.

use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt as _;

/// Reads a range of a file that others may read as well.
#[derive(Debug)]
pub struct FilePart<F> {
    file: F,
    range: Range<u64>,
}

impl<F: Deref<Target = File>> FilePart<F> {
    /// Bytes `range` of `file`.
    pub fn new(file: F, range: Range<u64>) -> Self {
        Self { file, range }
    }
}

impl<F: Deref<Target = File>> Read for FilePart<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..left], self.range.start)?;
        self.range.start += n as u64;
        Ok(n)
    }
}
