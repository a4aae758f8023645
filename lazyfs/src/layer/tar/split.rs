//! A tar taken apart into headers and payloads so that nothing is lost: written one after the other they are the same bytes again.
//!
//! Writers of layers need this. They compress each payload by itself, and the tar between the payloads must stay what it was for
//! the diffID to stay.
//!
//! ```text
//! head of entry 1 | payload | head of entry 2 | … | payload | tail
//! head            = padding of the payload before it, long names and pax headers, the header itself
//! tail            = padding, blocks of zeros, and whatever follows them
//! ```

use std::io::Read;

use super::header::{self, BLOCK, Header};
use super::{Tar, entry, padding};
use crate::error::{Error, Outcome, Result};
use crate::layer::Entry;

/// The most bytes that may stand between two payloads: more than all extensions of one entry, and far more than any tool writes.
const MAX_HEAD: usize = 16 << 20;

/// A tar being taken apart.
pub struct Split<R> {
    tar: Tar<Tape<R>>,
    /// Bytes of the current payload that nobody has read yet.
    left: u64,
    /// Bytes of padding behind it.
    padding: u64,
}

/// What stands between two payloads, and what it says.
#[derive(Debug)]
pub struct Head {
    /// The bytes of the tar.
    pub bytes: Vec<u8>,
    /// How many bytes at the beginning of `bytes` are padding of the payload before.
    pub padding: usize,
    /// The entry as this crate understands it; `None` for bookkeeping that image tools ignore.
    pub entry: Option<Entry>,
    /// The header as it is written, with its extensions.
    pub(in crate::layer) header: Header,
    /// Whether a global pax header is among the bytes.
    pub has_global: bool,
}

impl Head {
    /// Length of the payload that follows, bytes.
    pub fn payload_len(&self) -> u64 {
        self.header.size
    }
}

impl<R: Read> Split<R> {
    /// Begins.
    pub fn new(reader: R) -> Self {
        Self { tar: Tar { reader: Tape { reader, tape: Vec::new(), runs: true }, at: 0 }, left: 0, padding: 0 }
    }

    /// The next head; `None` at the end of the tar, where only [`Split::tail`] is left. The payload before must have been read.
    ///
    /// What is malformed is [`crate::error::Outcome::BadInput`] and names entry and field.
    pub fn next_head(&mut self) -> Result<Option<Head>> {
        debug_assert_eq!(self.left, 0, "the payload before has to be read first");
        let padding = std::mem::take(&mut self.padding);
        self.tar.skip(padding)?;
        let Some((start, header)) = self.tar.next_header()? else { return Ok(None) };
        let entry = entry(&header).map_err(|(outcome, text)| self.tar.bad(start, &header.name, outcome, text))?;
        let bytes = std::mem::take(&mut self.tar.reader.tape);
        let padding = padding as usize;
        self.left = header.size;
        self.padding = super::padding(header.size);
        self.tar.reader.runs = self.left == 0;
        Ok(Some(Head { has_global: has_global(&bytes[padding..]), bytes, padding, entry, header }))
    }

    /// Reads on in the payload of the last head until `buffer` is full or the payload ends; 0 at its end.
    pub fn payload(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut filled = 0;
        while filled < wanted {
            match self.tar.some(&mut buffer[filled..wanted])? {
                0 => return Err(self.tar.ends_early()),
                n => filled += n,
            }
        }
        self.left -= filled as u64;
        self.tar.reader.runs = self.left == 0;
        Ok(filled)
    }

    /// Reads on behind the last entry; 0 at the end of the stream.
    pub fn tail(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let tape = &mut self.tar.reader.tape;
        if !tape.is_empty() {
            let n = tape.len().min(buffer.len());
            buffer[..n].copy_from_slice(&tape[..n]);
            tape.drain(..n);
            return Ok(n);
        }
        self.tar.reader.runs = false;
        self.tar.some(buffer)
    }
}

/// Keeps what is read through it while it runs.
struct Tape<R> {
    reader: R,
    tape: Vec<u8>,
    runs: bool,
}

impl<R: Read> Read for Tape<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        if self.runs {
            if self.tape.len() + n > MAX_HEAD {
                let error = Error::new(Outcome::BadInput, "keeping the headers of one entry");
                return Err(std::io::Error::other(error.because(format!("they have more than {MAX_HEAD} bytes"))));
            }
            self.tape.extend_from_slice(&buffer[..n]);
        }
        Ok(n)
    }
}

/// Whether one of the headers is a global one. They have been parsed before.
fn has_global(mut headers: &[u8]) -> bool {
    while let Some((block, rest)) = headers.split_first_chunk::<BLOCK>() {
        match header::parse(block) {
            Ok(Header { kind: b'g', .. }) => return true,
            Ok(Header { kind: b'x' | b'L' | b'K', size, .. }) => {
                let behind = usize::try_from(size + padding(size)).unwrap_or(usize::MAX);
                headers = rest.get(behind..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
}
