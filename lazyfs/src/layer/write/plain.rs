//! Plain gzip and zstd: the tar as one stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;

use super::output::{Output, failed};
use super::{Bytes, Encoder, Format, Options, PIECE, Tally, Written, each};
use crate::digest::Hasher;
use crate::error::Result;
use crate::layer::tar::split::Head;

/// Writes the tar as one stream.
pub(super) struct Plain<'a> {
    format: Format,
    stream: Stream<'a>,
    tally: Tally,
    buffer: Vec<u8>,
}

enum Stream<'a> {
    Gzip(flate2::write::GzEncoder<Output<'a>>),
    Zstd(zstd::stream::write::Encoder<'static, Output<'a>>),
}

impl<'a> Plain<'a> {
    pub(super) fn new(options: &Options, blob: &'a File) -> Result<Self> {
        let output = Output::new(blob);
        let stream = match options.format {
            Format::Gzip => Stream::Gzip(flate2::write::GzEncoder::new(output, gzip_level(options.level))),
            _ => Stream::Zstd(zstd::stream::write::Encoder::new(output, options.level).map_err(failed)?),
        };
        Ok(Self { format: options.format, stream, tally: Tally::default(), buffer: vec![0; PIECE] })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.tally.tar.update(bytes);
        match &mut self.stream {
            Stream::Gzip(stream) => stream.write_all(bytes),
            Stream::Zstd(stream) => stream.write_all(bytes),
        }
        .map_err(failed)
    }

    fn drain(&mut self, bytes: Bytes<'_>, hasher: &mut Hasher) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        each(bytes, &mut buffer, &mut |piece| {
            hasher.update(piece);
            self.put(piece)
        })?;
        self.buffer = buffer;
        Ok(())
    }
}

/// The level of a gzip stream.
pub(super) fn gzip_level(level: i32) -> flate2::Compression {
    flate2::Compression::new(u32::try_from(level).unwrap_or_default())
}

impl Encoder for Plain<'_> {
    fn add(&mut self, bytes: &[u8], head: &Head, _hot: &[Range<u64>], payload: Bytes<'_>) -> Result<()> {
        self.put(bytes)?;
        let mut hasher = Hasher::default();
        self.drain(payload, &mut hasher)?;
        self.tally.add(head, hasher.finish(), Vec::new());
        Ok(())
    }

    fn hot_ends(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>, tail: Bytes<'_>) -> Result<Written> {
        self.drain(tail, &mut Hasher::default())?;
        let output = match self.stream {
            Stream::Gzip(stream) => stream.finish(),
            Stream::Zstd(stream) => stream.finish(),
        };
        let (digest, size) = output.map_err(failed)?.finish()?;
        Ok(Written {
            format: self.format,
            note: None,
            digest,
            size,
            diff_id: self.tally.tar.finish(),
            tar_size: self.tally.tar.length(),
            annotations: BTreeMap::new(),
            index: self.tally.index,
            hot_bytes: 0,
        })
    }
}
